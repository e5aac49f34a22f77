"""Whole agents that have nothing but TCP, behind every pair of NATs of the simulated network."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest

from ice.candidate import TcpType
from ice.config import Config, Server
from ice.events import AgentState
from nattype.lab.sim.tcp import Connection
from nattype.model import Link
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.sansio import SECOND
from tools.icegrid import KINDS, RELAY, Meeting, Party, is_direct

NEAR = Link(delay=0.01)
REFUSING = ("port-restricted-cone", "port-restricted-rst", "port-restricted-icmp")
"""What they do with a SYN that nobody asked for differs."""
TURN = Server(
    "turn:a?transport=tcp",
    (Target(RELAY, Transport.TCP),),
    turn=True,
    credentials=LongTerm("alice", "secret"),
)


def connection_of(party: Party) -> Connection:
    """Return the simulated host's end of the connection that a party uses."""
    assert party.selected is not None
    (found,) = (
        socket
        for socket in party.attached._sockets.values()
        if isinstance(socket, Connection) and socket.remote == party.selected.remote_address
    )
    return found


def meet(meeting: Meeting) -> None:
    """Have two agents connect, send a packet each, and stay connected."""
    meeting.start()
    assert meeting.run(meeting.settled, 30), "\n".join(meeting.story())
    for message in (b"one", b"other"):
        meeting.run(meeting.world.now + 40 * SECOND)
        for party in meeting.parties:
            assert party.agent.state is AgentState.COMPLETED, "\n".join(meeting.story())
            assert party.send(message)
    meeting.run(meeting.world.now + SECOND)
    assert [party.received for party in meeting.parties] == [[b"one", b"other"]] * 2
    for party in meeting.parties:
        assert party.selected is not None
        assert party.selected.base.is_reliable


@pytest.mark.parametrize(
    ("a", "b"),
    [pair for pair in combinations_with_replacement(KINDS, 2) if is_direct(*pair)],
    ids="-".join,
)
def test_directly_where_udp_would_be(a: str, b: str, seed: int) -> None:
    meeting = Meeting(a, b, seed=seed, link_a=NEAR, link_b=NEAR, config=Config(udp=False))
    meet(meeting)
    assert all(party.selected.is_direct for party in meeting.parties if party.selected)


@pytest.mark.parametrize(("a", "b"), [*combinations_with_replacement(REFUSING, 2)], ids="-".join)
def test_by_simultaneous_open(a: str, b: str, seed: int) -> None:
    meeting = Meeting(a, b, seed=seed, link_a=NEAR, link_b=NEAR, config=Config(udp=False))
    meet(meeting)
    for party in meeting.parties:
        assert party.selected is not None
        assert party.selected.base.tcptype is TcpType.SIMULTANEOUS_OPEN


@pytest.mark.parametrize("a", ["symmetric", "port-restricted-rst"])
def test_over_a_relay_of_tcp(a: str, seed: int) -> None:
    meeting = Meeting(
        a,
        "symmetric",
        seed=seed,
        link_a=NEAR,
        link_b=NEAR,
        config=Config(udp=False, relay_tcp=True),
        servers=(TURN,),
    )
    meet(meeting)
    assert any(party.selected.base.is_relayed for party in meeting.parties if party.selected)


def test_with_loss(seed: int) -> None:
    for n in range(10):
        lossy = Link(loss=0.05, delay=0.02, jitter=0.01)
        kind = REFUSING[n % 3]
        meeting = Meeting(
            kind, kind, seed=seed + n, link_a=lossy, link_b=lossy, config=Config(udp=False)
        )
        meet(meeting)


def test_udp_is_preferred(seed: int) -> None:
    meeting = Meeting("open", "open", seed=seed, link_a=NEAR, link_b=NEAR, config=Config())
    meeting.start()
    assert meeting.run(meeting.settled, 30)
    for party in meeting.parties:
        assert party.selected is not None
        assert not party.selected.base.is_reliable


@pytest.mark.parametrize("kind", REFUSING)
def test_a_restart_goes_on_with_the_connection_that_there_is(kind: str, seed: int) -> None:
    """RFC 6544 section 9.2: "that existing connection is reused"."""
    meeting = Meeting(kind, kind, seed=seed, link_a=NEAR, link_b=NEAR, config=Config(udp=False))
    meet(meeting)
    before = [party.selected for party in meeting.parties]
    connections = [connection_of(party) for party in meeting.parties]
    meeting.a.restart()
    meeting.run(meeting.world.now + SECOND)
    meeting.run(meeting.settled, 30)
    for party, old in zip(meeting.parties, before, strict=True):
        assert party.selected is not None
        assert old is not None
        assert party.agent.state is AgentState.COMPLETED, "\n".join(meeting.story())
        assert party.selected is not old
        assert party.selected.base is old.base
        assert party.selected.remote_address == old.remote_address
        assert party.send(b"afterwards")
    meeting.run(meeting.world.now + SECOND)
    assert [party.received[2:] for party in meeting.parties] == [[b"afterwards"]] * 2
    assert [connection_of(party) for party in meeting.parties] == connections
