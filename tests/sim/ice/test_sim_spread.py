"""Prediction, birthday probing and low-TTL opening between whole agents, on the simulated network.

``python -m tools.icespread sim`` measures the same over any number of seeds.
"""

from __future__ import annotations

import math

import pytest

from ice.config import Config, Tell
from ice.predict.moves import mixed_chance
from ice.spread.order import Role, Spread
from nattype.model import Link
from nattype.peers import birthday_probability
from stun.sansio import SECOND
from tools.icegrid import SERVERS, Meeting
from tools.icespread import PR, SR, Case, cases, simulate

CASES = {case.name: case for case in cases()}
SURE = [
    case
    for case in CASES.values()
    if not case.hopeless and not case.nft and (case.expected is None or case.expected > 0.999)
]


@pytest.mark.parametrize("case", SURE, ids=lambda case: case.name)
def test_it_connects(case: Case, seed: int) -> None:
    trial = simulate(case, seed)
    # One in 3000 birthdays fails with 2048 probes; not two in a row.
    if trial.seconds is None and case.expected is not None:
        trial = simulate(case, seed + 1)
    assert trial.seconds is not None, trial.why
    assert trial.seconds < 10


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.hopeless], ids=lambda c: c.name)
def test_without_it_there_is_no_way(case: Case, seed: int) -> None:
    assert simulate(case, seed).seconds is None


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_as_often_as_the_arithmetic_says(transport: str, seed: int) -> None:
    """174 probes hit one of 256 mappings in half of all runs.

    Over 60 runs, 30 +- 3.9 are to be expected; five times that, once in a million tests, is not.
    """
    runs, probes = 60, 174
    (case,) = (c for c in cases(probes) if c.name == f"birthday-{transport}")
    chance = birthday_probability(probes)
    assert 0.49 < chance < 0.51
    connected = sum(simulate(case, seed * 1000 + n).seconds is not None for n in range(runs))
    deviation = math.sqrt(runs * chance * (1 - chance))
    assert abs(connected - runs * chance) < 5 * deviation


def test_one_that_counts_and_one_that_draws(seed: int) -> None:
    """With a mapping for each endpoint it takes far more: 4096 packets are worth 6 %."""
    case = CASES["mixed-endpoints"]
    assert case.expected == mixed_chance(256, 16, 16, 64512, by_address=False)
    assert 0.06 < case.expected < 0.07
    runs = 40
    connected = sum(simulate(case, seed * 1000 + n).seconds is not None for n in range(runs))
    assert connected < runs * 0.4


def test_the_budget_is_kept(seed: int) -> None:
    (case,) = (c for c in cases(64) if c.name == "birthday-udp")
    for n in range(5):
        assert case.right.spread is not None
        trial = simulate(case, seed + n)
        assert trial.sent <= 64 + 2048
        if trial.seconds is not None:
            assert trial.sent <= 64 + 256


class TestAfterwards:
    """A path that was found by chance is one like others."""

    def meet(
        self, transport: str, seed: int, controlling: tuple[bool, bool] = (True, False)
    ) -> Meeting:
        udp = transport == "udp"
        config = Config(udp=udp, tcp=not udp, tell=Tell.PUBLIC)
        link = Link(delay=0.01)
        meeting = Meeting(
            PR,
            SR,
            seed=seed,
            link_a=link,
            link_b=link,
            config=config,
            controlling=controlling,
            servers=SERVERS[:1],
        )
        meeting.start()
        known = meeting.run(lambda: all(party.agent.remote for party in meeting.parties), 10)
        assert known
        for party, role in zip(meeting.parties, (Role.PROBES, Role.SOCKETS), strict=True):
            order = Spread(role, "udp" if udp else "tcp", packets=4096)
            party.agent.spread(order, meeting.world.now)
            party.attached.pump()
        assert meeting.run(meeting.settled, 30), "\n".join(meeting.story())
        return meeting

    def talk(self, meeting: Meeting) -> None:
        for party in meeting.parties:
            party.received.clear()
            assert party.send(b"hello")
        meeting.run(meeting.world.now + SECOND)
        assert [party.received for party in meeting.parties] == [[b"hello"], [b"hello"]]

    @pytest.mark.parametrize("transport", ["udp", "tcp"])
    def test_it_lasts(self, transport: str, seed: int) -> None:
        meeting = self.meet(transport, seed)
        meeting.run(meeting.world.now + 300 * SECOND)
        assert meeting.settled()
        self.talk(meeting)

    @pytest.mark.parametrize("transport", ["udp", "tcp"])
    def test_it_outlives_a_restart(self, transport: str, seed: int) -> None:
        meeting = self.meet(transport, seed)
        before = [party.selected for party in meeting.parties]
        meeting.run(meeting.world.now + 20 * SECOND)
        meeting.a.restart()
        assert meeting.run(lambda: meeting.generations() == {1} and meeting.settled(), 30), (
            "\n".join(meeting.story())
        )
        self.talk(meeting)
        for party, pair in zip(meeting.parties, before, strict=True):
            assert pair is not None
            assert party.selected is not None
            assert party.selected is not pair
            assert party.selected.remote_address == pair.remote_address

    @pytest.mark.parametrize("transport", ["udp", "tcp"])
    @pytest.mark.parametrize("role", [True, False])
    def test_a_conflict_of_roles_is_settled(self, transport: str, role: bool, seed: int) -> None:
        meeting = self.meet(transport, seed, (role, role))
        assert len({party.agent.controlling for party in meeting.parties}) == 2
        self.talk(meeting)

    @pytest.mark.parametrize("transport", ["udp", "tcp"])
    def test_nothing_is_left_over(self, transport: str, seed: int) -> None:
        """Ten seconds later there is one socket on each side, and none when they are closed."""
        meeting = self.meet(transport, seed)
        meeting.run(meeting.world.now + 10 * SECOND)
        for party in meeting.parties:
            kept = [base for base in party.agent.bases if not base.is_relayed]
            assert len(kept) <= 4, kept
            assert len(party.attached._sockets) <= 8
        meeting.close()
        meeting.run(meeting.world.now + 10 * SECOND)
        assert [party.attached._sockets for party in meeting.parties] == [{}, {}]
