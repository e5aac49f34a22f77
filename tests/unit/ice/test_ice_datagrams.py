"""The short way of data, with the sockets and the machine played."""

from __future__ import annotations

from typing import Any

import pytest

from ice.base import Base
from ice.candidate import Candidate, CandidateType
from ice.datagrams import MOST_CALM, AgentDatagrams, Lane
from ice.pair import Pair
from stun.sansio import Address, OpenUdp, Received
from stun.udp import BATCH

HERE, THERE = Address("192.0.2.1", 1000), Address("192.0.2.2", 2000)
REQUEST = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)


def some_pair() -> Pair:
    base = Base(1, 0, 1, "udp", HERE)
    local = Candidate("1", 1, "udp", 1, *HERE, CandidateType.HOST)
    pair = Pair(local, base, Candidate("1", 1, "udp", 1, *THERE, CandidateType.HOST), 1)
    pair.valid = True
    return pair


class Socket:
    """What :class:`stun.udp.UdpSocket` has, with packets to be read."""

    handle = 1
    local = HERE

    def __init__(self) -> None:
        self.sock = self
        self.packets: list[Any] = []
        self.reads = self.received = self.sent = 0
        self.refused: dict[str, int] = {}

    def recvfrom(self, _: int) -> tuple[bytes, tuple[str, int]]:
        self.reads += 1
        if not self.packets:
            raise BlockingIOError
        packet = self.packets.pop(0)
        if isinstance(packet, OSError):
            raise packet
        return packet

    def fileno(self) -> int:
        return 9

    def close(self) -> None:
        pass


class World:
    """The driver and the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.port = Socket()
        self.log: list[Any] = []
        self.pair: Pair | None = None
        self.machine = self.reactor = self
        self.shut_on: bytes | None = None
        monkeypatch.setattr("stun.datagrams.UdpSocket", lambda *_: self.port)
        monkeypatch.setattr("ice.datagrams.read_errors", lambda _: self.errors)
        self.errors: list[Any] = []
        self.udp = AgentDatagrams(self, self, self.feed_of)  # type: ignore[arg-type]
        self.udp.open(OpenUdp(1, HERE))

    def feed_of(self, stream: int, component: int) -> Any:
        self.log.append(("feed of", stream, component))
        return lambda data: self.log.append(("data", data))

    def proved(self, local: Address, remote: Address) -> Pair | None:
        self.log.append(("proved?", local, remote))
        return self.pair

    def receive(self, packet: Received, now: int) -> None:
        self.log.append(("machine", packet.data, packet.source, now))
        if packet.data == self.shut_on:
            self.udp.shut(1)

    def tell(self, event: Any) -> None:
        self.log.append(("told", event))

    def now(self) -> int:
        return 7

    def pump(self) -> None:
        pass

    def settle(self) -> None:
        self.log.append("settled")

    def watch(self, *_: object) -> None:
        self.readable = _[1]

    def unwatch(self, _: int) -> None:
        pass

    def arrive(self, *packets: Any) -> list[Any]:
        self.log.clear()
        self.port.packets += [
            p if isinstance(p, OSError) else (p, tuple(THERE)) if isinstance(p, bytes) else p
            for p in packets
        ]
        while self.port.packets:
            self.readable()  # type: ignore[operator]
        return self.log


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_what_is_not_proved_goes_through_the_machine(world: World) -> None:
    assert world.arrive(b"data") == [
        ("machine", b"data", THERE, 7),
        ("proved?", HERE, THERE),
        "settled",
    ]


def test_what_is_proved_goes_to_the_reader(world: World) -> None:
    world.pair = pair = some_pair()
    assert world.arrive(b"first")[-2:] == [("feed of", 0, 1), "settled"]
    assert world.arrive(b"second", b"", b"\x00\x01 no cookie") == [
        ("data", b"second"),
        ("data", b""),
        ("data", b"\x00\x01 no cookie"),
    ]
    assert (pair.packets_received, pair.octets_received) == (3, 18)
    assert world.port.received == 4


def test_checks_still_go_to_the_machine(world: World) -> None:
    world.pair = some_pair()
    world.arrive(b"first")
    assert world.arrive(REQUEST) == [("machine", REQUEST, THERE, 7), "settled"]


def test_a_stranger_is_no_peer(world: World) -> None:
    world.pair = some_pair()
    world.arrive(b"first")
    world.pair = None
    stranger = ("198.51.100.1", 1)
    assert world.arrive((b"boo", stranger))[0] == ("machine", b"boo", Address(*stranger), 7)


def test_a_pair_that_is_valid_no_more(world: World) -> None:
    world.pair = some_pair()
    world.arrive(b"first")
    world.pair.valid = False
    assert world.arrive(b"late")[0] == ("machine", b"late", THERE, 7)


def test_what_is_known_can_be_forgotten(world: World) -> None:
    world.pair = some_pair()
    world.arrive(b"first")
    world.udp.forget()
    assert world.arrive(b"again")[0] == ("machine", b"again", THERE, 7)


def test_nothing_follows_a_socket_that_was_shut(world: World) -> None:
    world.shut_on = b"last"
    world.port.packets.append((b"last", tuple(THERE)))
    world.port.packets.append((b"more", tuple(THERE)))
    world.readable()  # type: ignore[operator]
    assert [entry[1] for entry in world.log if entry[0] == "machine"] == [b"last"]
    assert world.log[-1] == "settled"
    assert world.udp.socket_of(HERE) is None


def test_icmp_errors_reach_the_machine(world: World) -> None:
    world.errors = [(THERE, 3, 3, 0)]
    log = world.arrive(ConnectionRefusedError())
    assert log[0][0] == "told"
    assert log[0][1].destination == THERE
    assert log[-1] == "settled"


def test_a_lone_packet_costs_one_read(world: World) -> None:
    world.pair = some_pair()
    for _ in range(200):
        world.arrive(b"one")
    before = world.port.reads
    for _ in range(100):
        world.arrive(b"one")
    # Now and then it is seen whether another one waits.
    assert world.port.reads - before <= 100 + 100 // MOST_CALM + 1


def test_bursts_are_read_together() -> None:
    lane = Lane()
    bursts = []
    for _ in range(10):
        bursts.append(lane.burst)
        lane.full()
    assert bursts == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]
    assert lane.burst == BATCH
    lane.empty(10)
    assert lane.burst == 11
    lane.empty(1)
    assert lane.burst == 1


def test_a_trial_in_vain_makes_the_next_one_rarer() -> None:
    lane = Lane()
    gaps = []
    for _ in range(9):
        gap = 0
        while lane.burst == 1:
            lane.full()
            gap += 1
        lane.empty(1)
        gaps.append(gap)
    assert gaps == [1, 2, 4, 8, 16, 32, 32, 32, 32]
