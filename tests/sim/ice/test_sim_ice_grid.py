"""Two whole agents behind NATs, with the project's own servers, on the simulated network."""

from __future__ import annotations

from collections import Counter
from itertools import combinations_with_replacement
from random import Random

import pytest

from ice.events import AgentState, Connected, GatheringComplete, LocalCandidate, Selected
from nattype.model import Link
from stun.sansio import MILLISECOND, SECOND
from tools.icegrid import KINDS, Meeting, Plan, Signalling, is_direct, play, seen

PAIRS = list(combinations_with_replacement(KINDS, 2))
NEAR = Link(delay=0.01)


@pytest.mark.parametrize(("a", "b"), PAIRS, ids="-".join)
def test_every_pair_of_nats_connects(a: str, b: str, seed: int, rng: Random) -> None:
    turned = rng.random() < 0.5
    meeting = Meeting(a, b, seed=seed, link_a=NEAR, link_b=NEAR, controlling=(turned, not turned))
    meeting.start()
    assert meeting.run(meeting.settled, 30), "\n".join(meeting.story())
    meeting.run(meeting.world.now + 10 * SECOND)
    assert meeting.settled(), "\n".join(meeting.story())
    for party in meeting.parties:
        assert party.selected is not None
        assert party.selected.is_direct is is_direct(a, b), "\n".join(meeting.story())
        assert party.send(b"hello")
    meeting.run(meeting.world.now + SECOND)
    assert [party.received for party in meeting.parties] == [[b"hello"], [b"hello"]]


def test_it_takes_no_longer_than_the_paths(seed: int) -> None:
    """Without loss, between open hosts: data can pass a round trip after the candidates came."""
    link = Link(delay=0.04)
    meeting = Meeting(
        "open", "open", seed=seed, link_a=link, link_b=link, signalling=Signalling(0.001, 0.001)
    )
    meeting.start()
    assert meeting.run(lambda: meeting.both(AgentState.CONNECTED, AgentState.COMPLETED), 10)
    # Two hops of 40 ms each way between them: 160 ms, and the signalling.
    assert meeting.world.now < 170 * MILLISECOND


def test_a_dead_server_costs_nothing(seed: int) -> None:
    from ice.config import Server
    from stun.discovery import Target, Transport
    from stun.sansio import Address

    dead = [
        Server(f"stun:{port}", (Target(Address("192.31.196.77", port), Transport.UDP),))
        for port in (3478, 3479)
    ]
    times = []
    for servers in ((), dead):
        meeting = Meeting("open", "full-cone", seed=seed, link_a=NEAR, link_b=NEAR, servers=servers)
        meeting.start()
        assert meeting.run(meeting.settled, 30)
        times.append(meeting.world.now)
    assert times[1] <= times[0] + MILLISECOND * 200
    assert not meeting.a.told(GatheringComplete)


def test_what_is_agreed_on_is_told_in_order(seed: int) -> None:
    meeting = Meeting("port-restricted-cone", "full-cone", seed=seed, link_a=NEAR, link_b=NEAR)
    meeting.start()
    meeting.run(meeting.settled, 30)
    for party in meeting.parties:
        kinds = [type(event) for _, event in party.log]
        assert kinds.index(LocalCandidate) < kinds.index(Connected) < kinds.index(Selected)
        assert Counter(kinds)[Connected] == 1
        assert party.told(Selected)[-1].nominated


def test_both_see_the_same_addresses(seed: int) -> None:
    meeting = Meeting("symmetric", "restricted-cone", seed=seed, link_a=NEAR, link_b=NEAR)
    meeting.start()
    assert meeting.run(meeting.settled, 30)
    one, other = (party.selected for party in meeting.parties)
    assert one is not None
    assert other is not None
    assert (seen(one), seen(other)) == (other.remote_address, one.remote_address)


@pytest.mark.parametrize("number", range(60))
def test_runs_with_loss_delay_and_reordering(number: int, seed: int) -> None:
    plan = Plan.draw(f"{seed}/{number}")
    outcome, meeting = play(plan)
    assert not outcome.faults, f"--replay {plan.seed}\n{plan}\n" + "\n".join(meeting.story())


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_many_runs(number: int, seed: int) -> None:
    for run in range(50):
        plan = Plan.draw(f"{seed}/{number}/{run}")
        outcome, meeting = play(plan)
        assert not outcome.faults, f"--replay {plan.seed}\n{plan}\n" + "\n".join(meeting.story())
