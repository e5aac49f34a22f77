"""The agent as a machine: what goes in and comes out, on a wire that is two lists.

Whole conversations through NATs are in tests/sim/ice.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.candidate import Candidate, CandidateType
from ice.config import Config, Credentials, Interface, Policy
from ice.events import (
    AgentState,
    CandidateNotGathered,
    Connected,
    Disconnected,
    GatheringComplete,
    LocalCandidate,
    Restarted,
    Selected,
)
from ice.machine import AgentMachine
from stun.errors import DropReason, UsageError
from stun.sansio import (
    SECOND,
    Address,
    Cause,
    Closed,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
)

COOKIE = b"\x21\x12\xa4\x42"
STRANGER = Address("203.0.113.9", 666)


class Wire:
    """Two machines; a datagram of one is the other's at once, unless the wire is cut."""

    def __init__(self, rng: Random, **options: Any) -> None:
        self.now: Instant = SECOND
        self.cut = False
        config = Config(tcp=False, **options)
        self.data: list[list[tuple[int, int, bytes]]] = [[], []]
        self.events: list[list[Any]] = [[], []]
        self.sockets: dict[Address, int] = {}
        self.shut: list[Any] = []
        self.handles: dict[Address, int] = {}
        self.agents = [self._agent(config, which, rng) for which in range(2)]

    def _agent(self, config: Config, which: int, rng: Random) -> AgentMachine:
        def on_data(stream: int, component: int, data: bytes) -> None:
            self.data[which].append((stream, component, data))

        return AgentMachine(config, controlling=which == 0, entropy=rng.randbytes, on_data=on_data)

    def gather(self) -> None:
        for which, agent in enumerate(self.agents):
            agent.gather([Interface(f"192.0.2.{which + 1}", "eth0", 65535)], (), self.now)
        self.pump()

    def introduce(self) -> None:
        """Tell each what the other has told, of its present generation."""
        for which, agent in enumerate(self.agents):
            other = self.agents[1 - which]
            agent.set_remote(other.local, self.now)
            for found in self.told(LocalCandidate, 1 - which):
                agent.add_remote(found.candidate, self.now, found.stream)
            for stream in range(agent.config.streams):
                agent.add_remote(None, self.now, stream)
            self.pump()

    def connect(self) -> None:
        self.gather()
        self.introduce()
        self.until(AgentState.COMPLETED)

    def until(self, state: AgentState, seconds: int = 100) -> None:
        end = self.now + seconds * SECOND
        while any(agent.state is not state for agent in self.agents):
            self.step()
            assert self.now < end, [agent.state for agent in self.agents]

    def step(self) -> None:
        """Go to the next deadline."""
        due = [at for agent in self.agents if (at := agent.deadline()) is not None]
        assert due, "nothing is ever going to happen"
        self.now = max(self.now, min(due))
        for agent in self.agents:
            at = agent.deadline()
            if at is not None and at <= self.now:
                agent.on_deadline(self.now)
        self.pump()

    def wait(self, seconds: float) -> None:
        end = self.now + round(seconds * SECOND)
        while any((at := agent.deadline()) is not None and at <= end for agent in self.agents):
            self.step()
        self.now = end

    def pump(self) -> None:
        busy = True
        while busy:
            busy = False
            for which, agent in enumerate(self.agents):
                while (output := agent.poll()) is not None:
                    busy = True
                    self._carry_out(which, agent, output)

    def _carry_out(self, which: int, agent: AgentMachine, output: Any) -> None:
        match output:
            case Transmit():
                to = self.sockets.get(output.destination)
                if to is not None and not self.cut:
                    packet = Received(output.data, output.source, output.destination)
                    self.agents[to].receive(packet, self.now)
            case OpenUdp():
                at = Address(output.local.host, 5000 + len(self.sockets))
                self.sockets[at] = which
                self.handles[at] = output.handle
                agent.on_socket(Opened(output.handle, at), self.now)
            case Shut():
                self.shut.append(output)
            case _:
                self.events[which].append(output)

    def told(self, kind: Any, which: int) -> list[Any]:
        return [event for event in self.events[which] if isinstance(event, kind)]


@pytest.fixture
def wire(rng: Random) -> Wire:
    return Wire(rng)


def drain(agent: AgentMachine) -> list[Any]:
    return list(iter(agent.poll, None))


# From nothing to a connection. --------------------------------------------------------------------


def test_a_connection(wire: Wire) -> None:
    wire.connect()
    for which, agent in enumerate(wire.agents):
        assert agent.state is AgentState.COMPLETED
        assert len(wire.told(Connected, which)) == 1
        assert len(wire.told(GatheringComplete, which)) == 1
        pair = agent.pair()
        assert pair is wire.told(Selected, which)[-1].pair
        assert agent.send(b"\x80data", wire.now)
    wire.pump()
    assert wire.data == [[(0, 1, b"\x80data")]] * 2
    assert not any(agent.drops for agent in wire.agents)


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("components", [1, 2])
def test_components_and_streams_are_kept_apart(rng: Random, streams: int, components: int) -> None:
    wire = Wire(rng, streams=streams, components=components)
    wire.connect()
    places = [(s, c) for s in range(streams) for c in range(1, components + 1)]
    for stream, component in places:
        assert wire.agents[0].send(b"%d" % len(places), wire.now, component, stream)
        wire.pump()
    assert [(s, c) for s, c, _ in wire.data[1]] == places
    assert len({wire.agents[0].pair(c, s) for s, c in places}) == len(places)


def test_candidates_and_credentials_in_any_order(rng: Random) -> None:
    for _ in range(20):
        wire = Wire(rng)
        wire.gather()
        steps: list[tuple[int, Any]] = []
        for which in range(2):
            steps.append((1 - which, wire.agents[which].local))
            found = wire.told(LocalCandidate, which)
            steps += [(1 - which, each.candidate) for each in found]
            steps.append((1 - which, None))
        rng.shuffle(steps)
        # The end of candidates is the last thing that a side says.
        steps.sort(key=lambda step: step[1] is None)
        for which, what in steps:
            if isinstance(what, Credentials):
                wire.agents[which].set_remote(what, wire.now)
            else:
                wire.agents[which].add_remote(what, wire.now)
            wire.pump()
        wire.until(AgentState.COMPLETED)


def test_commands_say_what_is_wrong(wire: Wire) -> None:
    agent = wire.agents[0]
    assert not agent.send(b"too early", wire.now)
    assert agent.unsent == 1
    for stream, component in ((0, 0), (0, 2), (1, 1), (-1, 1), (0, -1), (0, 512), (1, 0)):
        with pytest.raises(UsageError, match=f"no component {component} of stream {stream}"):
            agent.send(b"nowhere", wire.now, component, stream)
    with pytest.raises(UsageError, match="stream 1"):
        agent.add_remote(None, wire.now, stream=1)
    agent.close(wire.now)
    for command in (
        lambda: agent.gather((), (), wire.now),
        lambda: agent.set_remote(Credentials("aaaa", "b" * 22), wire.now),
        lambda: agent.add_remote(None, wire.now),
        lambda: agent.restart(wire.now),
        lambda: agent.network_changed((), wire.now),
    ):
        with pytest.raises(UsageError, match="closed"):
            command()
    agent.close(wire.now)


def test_a_server_that_nobody_finds_is_told(wire: Wire) -> None:
    wire.agents[0].server_not_found("stun:nowhere.example", "NXDOMAIN", wire.now)
    assert drain(wire.agents[0]) == [CandidateNotGathered(0, 0, "stun:nowhere.example", "NXDOMAIN")]


# The short way of data. ---------------------------------------------------------------------------


def test_data_costs_no_deadline_and_no_event(wire: Wire) -> None:
    wire.connect()
    wire.wait(4)
    one, other = wire.agents
    before = one.deadline(), other.deadline()
    events = [len(events) for events in wire.events]
    for _ in range(1000):
        assert one.send(b"\x80" * 100, wire.now)
    wire.pump()
    assert len(wire.data[1]) == 1000
    assert (one.deadline(), other.deadline()) == before
    assert [len(events) for events in wire.events] == events
    sent, received = one.pair(), other.pair()
    assert sent is not None
    assert received is not None
    assert (sent.packets_sent, sent.octets_sent) == (1000, 100_000)
    assert (received.packets_received, received.octets_received) == (1000, 100_000)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\x00\x01\x00\x00", bytes(20), b"\x02" * 1500, b"\x40\x01" + COOKIE * 5],
)
def test_what_is_not_quite_stun_is_data(wire: Wire, data: bytes) -> None:
    wire.connect()
    assert wire.agents[0].send(data, wire.now)
    wire.pump()
    assert wire.data[1] == [(0, 1, data)]


def test_proved_paths(wire: Wire) -> None:
    wire.gather()
    (here,) = (at for at, which in wire.sockets.items() if which == 0)
    (there,) = (at for at, which in wire.sockets.items() if which == 1)
    agent = wire.agents[0]
    assert agent.proved(here, there) is None
    wire.introduce()
    wire.until(AgentState.COMPLETED)
    assert agent.proved(here, there) is agent.pair()
    assert agent.proved(here, STRANGER) is None
    assert agent.proved(STRANGER, there) is None
    agent.network_changed((), wire.now)
    assert agent.proved(here, there) is None


# Strangers. ---------------------------------------------------------------------------------------


def test_a_stranger_is_counted_and_not_heard(wire: Wire) -> None:
    wire.connect()
    agent = wire.agents[0]
    (here,) = (at for at, which in wire.sockets.items() if which == 0)
    for number in range(3):
        agent.receive(Received(b"\x80hello", STRANGER, here), wire.now)
        assert agent.drops[DropReason.NO_VALID_PAIR] == number + 1
    assert drain(agent) == []
    assert wire.data[0] == []


def test_nobody_is_heard_before_there_is_a_pair(wire: Wire) -> None:
    wire.gather()
    (here,) = (at for at, which in wire.sockets.items() if which == 0)
    (there,) = (at for at, which in wire.sockets.items() if which == 1)
    wire.agents[0].receive(Received(b"\x80early", there, here), wire.now)
    assert wire.agents[0].drops == {DropReason.NO_VALID_PAIR: 1}
    assert wire.data[0] == []


@given(st.lists(st.binary(max_size=200), max_size=20), st.booleans())
def test_no_bytes_raise_or_are_heard(packets: list[bytes], stun: bool) -> None:
    wire = Wire(Random(1))
    wire.connect()
    agent = wire.agents[0]
    (here,) = (at for at, which in wire.sockets.items() if which == 0)
    before = agent.pair(), sum(agent.drops.values())
    for data in packets:
        whole = b"\x00\x01" + len(data).to_bytes(2) + COOKIE + data if stun else data
        agent.receive(Received(whole, STRANGER, here), wire.now)
        wire.pump()
    assert wire.data[0] == []
    assert agent.pair() is before[0]
    indications = sum(data[:1] == b"\x00" and data[1:2] == b"\x11" for data in packets)
    assert sum(agent.drops.values()) >= before[1] + len(packets) - indications


def test_what_a_peer_tells_is_bounded(rng: Random) -> None:
    wire = Wire(rng)
    agent = wire.agents[0]
    many: Iterable[Candidate] = (
        Candidate(str(n), 1, "udp", n + 1, f"198.51.{n >> 8}.{n & 255}", 9, CandidateType.HOST)
        for n in range(10_000)
    )
    wire.gather()
    for candidate in many:
        agent.add_remote(candidate, wire.now)
    assert agent.drops[DropReason.NO_ROOM] > 9_000
    agent.set_remote(wire.agents[1].local, wire.now)
    for n in range(10_000):
        candidate = Candidate(str(n), 1, "udp", n + 1, "198.51.100.1", n + 1, CandidateType.HOST)
        agent.add_remote(candidate, wire.now)
    assert len(agent.pairs()) <= agent.config.most_pairs


@pytest.mark.parametrize("transport", ["udp", "tcp", "sctp"])
@pytest.mark.parametrize(
    "host", ["a-b-c.local", "nonsense", "", "0.0.0.0", "224.0.0.1", "::", "1.2"]
)
def test_a_candidate_that_is_nowhere(rng: Random, host: str, transport: str) -> None:
    wire = Wire(rng, policy=Policy.ALL)
    wire.gather()
    agent = wire.agents[0]
    agent.set_remote(wire.agents[1].local, wire.now)
    agent.add_remote(Candidate("1", 1, transport, 1, host, 9, CandidateType.HOST), wire.now)
    assert agent.drops == {DropReason.UNUSABLE_CANDIDATE: 1}
    assert agent.pairs() == []


# Generations. -------------------------------------------------------------------------------------


def test_the_same_credentials_again_change_nothing(wire: Wire) -> None:
    wire.connect()
    wire.agents[0].set_remote(wire.agents[1].local, wire.now)
    assert wire.agents[0].generation == 0
    assert drain(wire.agents[0]) == []


def test_other_credentials_are_a_restart(wire: Wire) -> None:
    wire.connect()
    wire.agents[1].restart(wire.now)
    wire.pump()
    assert wire.told(Restarted, 1)[-1].by_peer is False
    old = wire.agents[0].local
    for which in range(2):
        wire.events[which] = [
            event for event in wire.events[which] if not isinstance(event, LocalCandidate)
        ] + (wire.told(LocalCandidate, which)[-1:] if which == 1 else [])
    wire.agents[0].set_remote(wire.agents[1].local, wire.now)
    wire.pump()
    assert wire.told(Restarted, 0)[-1].by_peer is True
    assert wire.agents[0].local != old
    assert wire.agents[0].send(b"over the old pair", wire.now)
    wire.pump()
    assert wire.data[1] == [(0, 1, b"over the old pair")]
    wire.introduce()
    wire.until(AgentState.COMPLETED)
    assert [agent.generation for agent in wire.agents] == [1, 1]
    assert not wire.told(Disconnected, 0)


def test_a_candidate_of_a_generation_that_is_over(wire: Wire) -> None:
    wire.connect()
    agent = wire.agents[0]
    late = wire.told(LocalCandidate, 1)[0].candidate
    ufrag = wire.agents[1].local.ufrag
    wire.agents[1].restart(wire.now)
    agent.set_remote(wire.agents[1].local, wire.now)
    agent.add_remote(late, wire.now, ufrag=ufrag)
    assert agent.drops[DropReason.WRONG_GENERATION] == 1


# Sockets and the end. -----------------------------------------------------------------------------


def test_a_lost_socket_is_noticed_at_once(wire: Wire) -> None:
    wire.connect()
    (here,) = (at for at, which in wire.sockets.items() if which == 0)
    closed = Closed(wire.handles[here], Cause.OTHER, "the interface is gone")
    wire.agents[0].on_socket(closed, wire.now)
    wire.pump()
    assert wire.agents[0].state is AgentState.DISCONNECTED
    assert not wire.agents[0].send(b"nowhere", wire.now)


def test_silence(wire: Wire) -> None:
    wire.connect()
    wire.wait(10)
    wire.cut = True
    silent = wire.now
    wire.until(AgentState.DISCONNECTED)
    assert wire.now - silent <= 30 * SECOND
    wire.until(AgentState.FAILED)


def test_closing_shuts_every_socket_and_ends_all_deadlines(wire: Wire) -> None:
    wire.connect()
    for agent in wire.agents:
        agent.close(wire.now)
    wire.pump()
    assert {shut.handle for shut in wire.shut} == set(wire.handles.values())
    for which, agent in enumerate(wire.agents):
        assert agent.deadline() is None
        assert agent.state is AgentState.CLOSED
        assert not agent.send(b"after the end", wire.now)
        at = next(at for at, whose in wire.sockets.items() if whose == which)
        agent.receive(Received(b"\x80late", STRANGER, at), wire.now)
        agent.on_deadline(wire.now)
        assert drain(agent) == []


def test_an_early_deadline_does_nothing(wire: Wire) -> None:
    wire.connect()
    wire.wait(4)
    for agent in wire.agents:
        due = agent.deadline()
        assert due is not None
        agent.on_deadline(wire.now)
        assert drain(agent) == []
        assert agent.deadline() == due


def test_data_is_taken_again_after_a_command_from_within(rng: Random) -> None:
    """Whoever is given data may answer it, or close, at once."""
    wire = Wire(rng)
    wire.connect()
    one, other = wire.agents

    def echo(stream: int, component: int, data: bytes) -> None:
        if data == b"\x80end":
            other.close(wire.now)
        else:
            other.send(data, wire.now, component, stream)

    other.on_data = echo
    one.send(b"\x80ping", wire.now)
    wire.pump()
    assert wire.data[0] == [(0, 1, b"\x80ping")]
    one.send(b"\x80end", wire.now)
    wire.pump()
    assert other.state is AgentState.CLOSED
