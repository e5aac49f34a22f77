"""What happens to a connection: restarts, other networks, silence, strangers, the end."""

from __future__ import annotations

from typing import Any

import pytest

from ice.candidate import Candidate
from ice.config import Config, Nomination, Policy
from ice.events import (
    AgentState,
    Connected,
    ConsentLost,
    Disconnected,
    Failed,
    GatheringComplete,
    LocalCandidate,
    Restarted,
    RestartNeeded,
    Selected,
    Why,
)
from ice.pair import Pair
from nattype.lab.sim.machines import Puppet
from nattype.lab.sim.wire import Interface, Network, Packet
from nattype.model import Link
from stun.errors import DropReason
from stun.sansio import SECOND, Address
from tools.icegrid import Meeting, Party, Signalling, seen

NEAR = Link(delay=0.01)
CUT = Link(loss=1.0)


def meet(a: str, b: str, seed: int, **options: Any) -> Meeting:
    """Return two agents that have agreed, with nothing of the beginning under way any more."""
    options.setdefault("signalling", Signalling(0.001, 0.02))
    meeting = Meeting(a, b, seed=seed, link_a=NEAR, link_b=NEAR, **options)
    meeting.start()
    assert meeting.run(meeting.settled, 30), story(meeting)
    meeting.run(meeting.world.now + 5 * SECOND)
    assert meeting.settled(), story(meeting)
    return meeting


def story(meeting: Meeting) -> str:
    return "\n".join(meeting.story())


def talks(meeting: Meeting, component: int = 1, stream: int = 0) -> None:
    """Hold both sides to having a packet of the other within a second."""
    for party in meeting.parties:
        party.received.clear()
        assert party.agent.send(b"hello", meeting.world.now, component, stream), story(meeting)
        party.attached.pump()
    meeting.run(meeting.world.now + SECOND)
    assert [party.received for party in meeting.parties] == [[b"hello"], [b"hello"]], story(meeting)


def direct(party: Party) -> Pair:
    assert party.selected is not None
    assert party.selected.is_direct
    return party.selected


# Several components and streams, and other ways to be. --------------------------------------------


def test_every_component_of_every_stream(seed: int) -> None:
    config = Config(tcp=False, components=2, streams=2)
    meeting = meet("port-restricted-cone", "full-cone", seed, config=config)
    for stream in range(2):
        for component in (1, 2):
            assert meeting.agree(component, stream)
            talks(meeting, component, stream)


def test_relays_only(seed: int) -> None:
    config = Config(tcp=False, policy=Policy.RELAY)
    meeting = meet("open", "open", seed, config=config)
    for party in meeting.parties:
        told = {event.candidate.type.value for event in party.told(LocalCandidate)}
        assert told == {"relay"}
        assert party.selected is not None
        assert party.selected.base.is_relayed
    talks(meeting)


def test_from_relay_to_relay_before_a_check_has_proved_it(seed: int) -> None:
    config = Config(tcp=False, policy=Policy.RELAY, assume_relayed=True)
    meeting = Meeting(
        "port-restricted-cone",
        "symmetric",
        seed=seed,
        config=config,
        link_a=NEAR,
        link_b=NEAR,
        signalling=Signalling(0.001, 0.002),
    )
    meeting.start()
    one, two = meeting.parties
    assert meeting.run(lambda: one.selected is not None and two.selected is not None, 10)
    assert one.selected is not None
    assert not one.selected.valid
    while not two.received and not one.selected.valid:
        one.send(b"early")
        meeting.run(meeting.world.now + SECOND // 1000)
    assert two.received, "it passes before there is an answer to the first check"
    assert not one.selected.valid
    # Then all is as without it.
    assert meeting.run(meeting.settled, 30), story(meeting)
    assert one.selected.valid
    talks(meeting)


def test_what_was_assumed_of_a_relay_is_dropped_when_the_check_fails(seed: int) -> None:
    config = Config(tcp=False, policy=Policy.RELAY, assume_relayed=True, patience=SECOND)
    meeting = Meeting("open", "open", seed=seed, config=config)
    one, two = meeting.parties
    one.start(meeting.servers)
    assert meeting.run(lambda: bool(one.told(GatheringComplete)), 10)
    nobody = "1 1 udp 5 192.31.196.77 4000 typ relay raddr 192.31.196.77 rport 4000"
    one.agent.set_remote(two.agent.local, meeting.world.now)
    one.agent.add_remote(Candidate.from_sdp(nobody), meeting.world.now)
    one.agent.add_remote(None, meeting.world.now)
    one.attached.pump()
    assert one.selected is not None
    assert one.selected.assumed
    assert meeting.run(lambda: one.selected is None, 60), story(meeting)
    assert one.told(Disconnected)
    assert not one.send(b"nowhere")


@pytest.mark.parametrize("lite", ["a", "b"])
def test_a_lite_peer(seed: int, lite: str) -> None:
    configs = {f"config_{lite}": Config(tcp=False, lite=True)}
    meeting = Meeting("open", "open", seed=seed, config=Config(tcp=False), **configs)  # type: ignore[arg-type]
    one = meeting.a if lite == "a" else meeting.b
    one.peer.lite_peer = True
    meeting.start()
    assert meeting.run(meeting.settled, 30), story(meeting)
    # RFC 8445 section 6.1.1: "the full agent MUST take the controlling role".
    assert one.peer.agent.controlling
    talks(meeting)
    meeting.run(meeting.world.now + 60 * SECOND)
    assert meeting.settled(), story(meeting)
    talks(meeting)


@pytest.mark.parametrize("kind", ["open", "port-restricted-cone"])
def test_aggressive_nomination(seed: int, kind: str) -> None:
    config = Config(tcp=False, nomination=Nomination.AGGRESSIVE)
    meeting = meet(kind, "port-restricted-cone", seed, config=config)
    direct(meeting.a)
    talks(meeting)


@pytest.mark.parametrize("both", [(True, True), (False, False)])
def test_a_role_conflict_is_settled(seed: int, both: tuple[bool, bool]) -> None:
    meeting = meet("full-cone", "open", seed, controlling=both)
    assert meeting.a.agent.controlling is not meeting.b.agent.controlling
    talks(meeting)


# Restarts. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["a", "b", "both"])
@pytest.mark.parametrize("kinds", [("port-restricted-cone", "full-cone"), ("symmetric",) * 2])
def test_a_restart_goes_on_over_the_old_pair(seed: int, who: str, kinds: tuple[str, str]) -> None:
    meeting = meet(*kinds, seed, signalling=Signalling(0.1, 0.2))
    before = [party.agent.local for party in meeting.parties]
    pairs = [party.selected for party in meeting.parties]
    for name, party in zip("ab", meeting.parties, strict=True):
        if who in (name, "both"):
            party.restart()

    def generations() -> list[int]:
        return [party.agent.generation for party in meeting.parties]

    def goes_on() -> bool:
        """Whatever happens, something is always there to send over."""
        assert all(party.selected is not None for party in meeting.parties), story(meeting)
        return meeting.settled() and generations() == [1, 1]

    assert meeting.run(goes_on, 30), story(meeting)
    for party, old, pair in zip(meeting.parties, before, pairs, strict=True):
        assert party.agent.local.ufrag != old.ufrag
        assert party.selected is not pair
        assert len(party.told(Restarted)) == 1
        assert not party.told(Disconnected)
    talks(meeting)


def test_many_restarts(seed: int) -> None:
    meeting = meet("port-restricted-cone", "port-restricted-cone", seed)
    for number in range(1, 7):
        meeting.parties[number % 2].restart()
        assert meeting.run(
            lambda n=number: meeting.settled() and meeting.a.agent.generation == n, 30
        ), story(meeting)
        meeting.run(meeting.world.now + 4 * SECOND)
        talks(meeting)
    assert meeting.b.agent.generation == 6
    # What was of generations before is gone.
    assert len(meeting.a.agent.pairs()) < 20


# Other networks, and none. ------------------------------------------------------------------------


def second_address(meeting: Meeting, party: Party, number: int = 210) -> str:
    host = f"192.52.193.{number}"
    meeting.world.plug(party.host, meeting.world.internet, host, link=NEAR)
    return host


@pytest.mark.parametrize("who", ["a", "b"])
def test_an_address_comes_and_the_old_one_goes(seed: int, who: str) -> None:
    meeting = meet("full-cone", "open", seed)
    party = meeting.a if who == "a" else meeting.b
    old = direct(party)
    party.addresses = [second_address(meeting, party), *party.addresses]
    party.agent.network_changed(party.interfaces(), meeting.world.now)
    party.attached.pump()
    meeting.run(meeting.world.now + 10 * SECOND)
    talks(meeting)
    del party.addresses[1]
    party.agent.network_changed(party.interfaces(), meeting.world.now)
    party.attached.pump()
    assert party.selected is not None, story(meeting)
    assert party.selected is not old
    assert meeting.run(meeting.settled, 30), story(meeting)
    talks(meeting)
    assert not party.told(Disconnected)


def test_the_only_address_is_replaced(seed: int) -> None:
    """Without a moment with both: the new socket's checks are all that the peer sees."""
    meeting = meet("open", "open", seed)
    party = meeting.a
    party.addresses = [second_address(meeting, party)]
    party.agent.network_changed(party.interfaces(), meeting.world.now)
    party.attached.pump()
    assert party.told(Disconnected)
    assert meeting.run(meeting.settled, 60), story(meeting)
    assert direct(party).base.address.host == party.addresses[0]
    talks(meeting)


def test_the_direct_path_dies_and_the_relay_takes_over(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = meet("port-restricted-cone", "full-cone", seed)
    direct(meeting.a)
    began = meeting.world.now
    publics = {meeting.a.selected and seen(meeting.a.selected).host}
    publics.add(meeting.b.selected and seen(meeting.b.selected).host)
    carry = Network.carry

    def lossy(network: Network, packet: Packet, sender: Interface) -> None:
        """Lose what passes between the two NATs, but not what goes to the relay."""
        if {packet.source.host, packet.destination.host} != publics:
            carry(network, packet, sender)

    monkeypatch.setattr(Network, "carry", lossy)
    for _ in range(100):
        for party in meeting.parties:
            party.send(b"a packet now and then")
        meeting.run(meeting.world.now + SECOND // 10)
    assert meeting.settled(), story(meeting)
    for party in meeting.parties:
        assert party.selected is not None
        assert not party.selected.is_direct
        assert not party.told(ConsentLost)
        assert not party.told(Disconnected)
        moved = [at for at, event in party.log if isinstance(event, Selected) and at > began]
        assert moved[0] - began < 4 * SECOND, story(meeting)
    talks(meeting)
    # And back, when the direct path works again.
    monkeypatch.undo()
    meeting.run(lambda: all(p.selected and p.selected.is_direct for p in meeting.parties), 600)
    direct(meeting.a)
    talks(meeting)


def test_silence_is_noticed_in_time(seed: int) -> None:
    meeting = meet("open", "full-cone", seed)
    host = meeting.scenario.host
    interface = host.interface(host.address())
    interface.set_link(CUT)
    cut_at = meeting.world.now
    for party in meeting.parties:
        assert meeting.run(lambda p=party: bool(p.told(Disconnected)), 40), story(meeting)
    # RFC 7675: 30 seconds after the last answer, whatever happens.
    assert 24 * SECOND < meeting.world.now - cut_at < 31 * SECOND
    for party in meeting.parties:
        assert party.told(ConsentLost)
        assert not party.send(b"nothing leaves")
        assert party.agent.state is AgentState.DISCONNECTED
    assert meeting.run(lambda: meeting.both(AgentState.FAILED), 60), story(meeting)
    for party in meeting.parties:
        assert len(party.told(Failed)) == len(party.told(RestartNeeded)) == 1
    interface.set_link(NEAR)
    meeting.a.restart()
    assert meeting.run(meeting.settled, 60), story(meeting)
    talks(meeting)


def test_a_short_silence_does_no_harm(seed: int) -> None:
    meeting = meet("port-restricted-cone", "open", seed)
    box = meeting.scenario.sites[0].boxes[-1]
    host = meeting.scenario.peer
    interface = host.interface(host.address())
    interface.set_link(CUT)
    meeting.run(meeting.world.now + 15 * SECOND)
    interface.set_link(NEAR)
    meeting.run(meeting.world.now + 30 * SECOND)
    assert box is not None
    assert meeting.settled(), story(meeting)
    for party in meeting.parties:
        assert not party.told(ConsentLost)
        assert not party.told(Disconnected)
    talks(meeting)


def test_an_idle_connection_lives(seed: int) -> None:
    """For an hour, through NATs whose mappings last half a minute."""
    meeting = meet("port-restricted-cone", "port-restricted-cone", seed)
    pairs = [party.selected for party in meeting.parties]
    meeting.run(meeting.world.now + 3600 * SECOND)
    assert [party.selected for party in meeting.parties] == pairs
    talks(meeting)


def test_an_idle_relayed_connection_lives(seed: int) -> None:
    meeting = meet("symmetric", "symmetric", seed)
    meeting.run(meeting.world.now + 3600 * SECOND)
    assert meeting.settled(), story(meeting)
    talks(meeting)


def test_no_way_at_all_fails_with_a_reason(seed: int) -> None:
    meeting = Meeting("symmetric", "symmetric", seed=seed, servers=())
    meeting.start()
    assert meeting.run(lambda: meeting.both(AgentState.FAILED), 120)
    # RFC 8863: not before there was time for the peer to come; and not the 63 seconds of others.
    assert 39 * SECOND < meeting.world.now < 45 * SECOND
    for party in meeting.parties:
        failed = party.told(Failed)
        assert len(failed) == 1
        assert failed[0].why
        assert not party.told(Connected)


# Strangers. ---------------------------------------------------------------------------------------


def test_a_stranger_is_not_heard(seed: int) -> None:
    meeting = meet("open", "full-cone", seed)
    stranger = Puppet()
    host = meeting.scenario.public_host()
    attached = meeting.world.attach(stranger, host)
    at = Address(host.address(), 4000)
    stranger.bind(at)
    to = direct(meeting.a).base.address
    for data in (
        b"hello",
        b"\x00\x01",
        b"",
        b"\x80" * 1200,
        bytes(20),
        b"\x00\x01\x00\x00" + b"\x21\x12\xa4\x42" + bytes(12),
    ):
        stranger.send(at, to, data)
    attached.pump()
    before = [party.selected for party in meeting.parties]
    drops = meeting.a.agent.drops
    meeting.run(meeting.world.now + SECOND)
    assert meeting.a.received == []
    new = meeting.a.agent.drops - drops
    assert new == {DropReason.NO_VALID_PAIR: 5, DropReason.BAD_FINGERPRINT: 1}
    assert [party.selected for party in meeting.parties] == before
    talks(meeting)


def test_data_that_begins_like_stun_passes(seed: int) -> None:
    meeting = meet("open", "open", seed)
    packets = [b"", b"\x00", b"\x01" * 8, b"\x00\x01\x00\x00\x00\x00\x00\x00", b"\x03" * 1200]
    for data in packets:
        assert meeting.a.send(data)
    meeting.run(meeting.world.now + SECOND)
    assert meeting.b.received == packets


# What is kept, and the end. -----------------------------------------------------------------------


def allocations(meeting: Meeting) -> int:
    return meeting.relay.counters["allocations"]


def test_relays_are_given_back_when_they_are_not_needed(seed: int) -> None:
    alone = Config(tcp=False, monitor=False)
    meeting = meet("open", "open", seed, config=alone)
    assert allocations(meeting) == 0
    for party in meeting.parties:
        assert [base for base in party.agent.bases if base.is_relayed] == []
    # With a monitor one relay a component may stay, to fall back on.
    watched = meet("open", "open", seed)
    assert allocations(watched) <= 2


def test_closing_gives_everything_back(seed: int) -> None:
    meeting = meet("symmetric", "symmetric", seed)
    assert allocations(meeting) > 0
    meeting.close()
    meeting.run(meeting.world.now + SECOND)
    assert allocations(meeting) == 0
    for party in meeting.parties:
        assert party.agent.state is AgentState.CLOSED
        assert party.agent.deadline() is None
        assert party.attached.pending == type(party.attached.pending)()


def test_candidates_are_complete_once(seed: int) -> None:
    meeting = meet("full-cone", "restricted-cone", seed)
    for party in meeting.parties:
        assert len(party.told(GatheringComplete)) == 1
        changes = [event.why for event in party.told(Selected)]
        assert changes[-1] in (Why.NOMINATED, Why.BETTER)
