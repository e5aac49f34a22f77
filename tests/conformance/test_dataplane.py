"""What every data plane does: one suite, run on each.

A :class:`Rig` puts a data plane between clients and peers that the test plays, and the machine's
place is taken by a list of what was passed up to it.  That of the plane in the kernel needs
machines of its own: it is in ``tests/lab``, and runs the same tests.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, TypeAlias

import pytest

from stun.sansio import SECOND, Address, Instant, Opened, OpenUdp, Received, SocketEvent
from turn.dataplane.base import DataPlane, Route, RouteKey
from turn.dataplane.sockets import SocketPlane
from turn.meter import Bucket, Meter

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
CHANNEL = 0x4001
MINUTE = 60 * SECOND

Side: TypeAlias = Literal["client", "peer"]
"""Which machine a host is: a rig may have one for clients, and another for peers."""


def channel_data(channel: int, payload: bytes, padding: int = 0) -> bytes:
    return channel.to_bytes(2) + len(payload).to_bytes(2) + payload + bytes(padding)


class Rig(Protocol):
    """A data plane with a listener, and time that the test lets pass."""

    server: Address
    punted: list[Received]
    sockets: list[socket.socket]
    """Of clients and peers: closed in the end."""

    @property
    def plane(self) -> DataPlane:
        """The data plane, with everything that belongs to it."""
        ...

    def new_socket(self, side: Side) -> socket.socket:
        """Return a new UDP socket, of the family of this rig, on the machine of a side."""
        ...

    def host(self, side: Side) -> str:
        """Return the address of that machine."""
        ...

    def open_relay(self) -> Address:
        """Open a relayed transport address."""
        ...

    def run(self) -> None:
        """Let it do all that is to be done now."""
        ...

    def now(self) -> Instant: ...

    def pass_time(self, nanoseconds: int) -> None: ...

    def close(self) -> None: ...


class Driven:
    """What drives a socket plane in a rig, on a clock that stands still."""

    plane: SocketPlane

    def __init__(self, host: str) -> None:
        self._host = host
        self.punted: list[Received] = []
        self.told: list[SocketEvent] = []
        self.sockets: list[socket.socket] = []
        self.machine = self.reactor = self
        self._watched: dict[int, Callable[[], None]] = {}
        self._clock = 1000 * SECOND
        self._handles = 0

    def _open(self, *, serves: bool) -> Address:
        self._handles += 1
        opened = self.plane.open(OpenUdp(self._handles, Address(self._host, 0), serves=serves))
        assert isinstance(opened, Opened), opened
        return opened.local

    def open_relay(self) -> Address:
        return self._open(serves=False)

    # What a driver is to the plane. ---------------------------------------------------------------

    def now(self) -> Instant:
        return self._clock

    def watch(self, fd: int, readable: Any, writable: Any) -> None:
        self._watched[fd] = readable

    def unwatch(self, fd: int) -> None:
        self._watched.pop(fd, None)

    def wake_at(self, at: Instant | None) -> None: ...

    def receive(self, packet: Received, now: Instant) -> None:
        self.punted.append(packet)

    def pump(self) -> None: ...

    def tell(self, event: SocketEvent) -> None:
        self.told.append(event)

    def encrypted(self, packet: Received, handle: int) -> None:
        raise AssertionError("nothing here is encrypted")

    def settle(self) -> None:
        self.plane.flush()


class SocketRig(Driven):
    """The socket plane on loopback."""

    def __init__(self, family: int) -> None:
        super().__init__(LOOPBACK[family])
        self.plane = SocketPlane(self)  # type: ignore[arg-type]
        self.server = self._open(serves=True)

    def new_socket(self, side: Side) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        return socket.socket(family, socket.SOCK_DGRAM)

    def host(self, side: Side) -> str:
        return self._host

    def run(self) -> None:
        while ready := select.select([*self._watched], [], [], 0)[0]:
            for fd in ready:
                self._watched[fd]()

    def pass_time(self, nanoseconds: int) -> None:
        self._clock += nanoseconds

    def close(self) -> None:
        self.plane.close()
        assert not self._watched


RIGS: dict[str, Callable[[int], Rig]] = {"sockets": SocketRig}


KINDS = [(name, family) for name in RIGS for family in LOOPBACK]


@pytest.fixture(params=KINDS, ids=[f"{name}, IPv{family}" for name, family in KINDS])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    name, family = request.param
    made = RIGS[name](family)
    yield made
    made.close()
    for sock in made.sockets:
        sock.close()


class Host:
    """A client or a peer."""

    def __init__(self, rig: Rig, side: Side, address: Address | None = None) -> None:
        self._rig = rig
        self.sock = rig.new_socket(side)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind(address or (rig.host(side), 0))
        self.sock.setblocking(False)
        rig.sockets.append(self.sock)
        self.address = Address(*self.sock.getsockname()[:2])

    def send(self, data: bytes, to: Address) -> None:
        self.sock.sendto(data, to)

    def received(self) -> list[tuple[bytes, Address]]:
        """Let the plane run; return what came, with where from."""
        self._rig.run()
        came: list[tuple[bytes, Address]] = []
        while True:
            try:
                data, source = self.sock.recvfrom(65535)
            except BlockingIOError:
                return came
            came.append((data, Address(*source[:2])))

    def payloads(self) -> list[bytes]:
        return [data for data, _ in self.received()]


class Bound:
    """A client with a channel to a peer."""

    def __init__(self, rig: Rig, channel: int = CHANNEL, client: Host | None = None) -> None:
        self.rig = rig
        self.client, self.peer = client or Host(rig, "client"), Host(rig, "peer")
        self.relay = rig.open_relay()
        self.meter = Meter(Bucket(0, 0))
        self.key = RouteKey(self.client.address, rig.server, channel)
        self.route = Route(self.key, self.relay, self.peer.address, self.meter)
        rig.plane.install(self.route, rig.now() + MINUTE)

    def talk(self, payload: bytes) -> None:
        """Send to the peer and back, and demand that both arrive."""
        self.client.send(channel_data(self.key.channel, payload), self.rig.server)
        assert self.peer.received() == [(payload, self.relay)]
        self.peer.send(payload, self.relay)
        expected = channel_data(self.key.channel, payload)
        assert self.client.received() == [(expected, self.rig.server)]

    def make_busy(self) -> None:
        """Have it relay as much as makes a plane treat it specially, if it does at all."""
        for n in range(100):
            self.talk(b"packet %d" % n)
        self.rig.pass_time(2 * SECOND)
        for n in range(100):
            self.talk(b"and packet %d" % n)


@pytest.fixture
def bound(rig: Rig) -> Bound:
    return Bound(rig)


@pytest.fixture(params=["new", "busy"])
def old_or_new(request: pytest.FixtureRequest, bound: Bound) -> Bound:
    if request.param == "busy":
        bound.make_busy()
    return bound


SIZES = [0, 1, 2, 3, 4, 5, 160, 1200, 1472, 1473, 9000, 65000]


@pytest.mark.parametrize("size", SIZES)
def test_both_ways_the_payload_arrives_whole(old_or_new: Bound, size: int) -> None:
    old_or_new.talk(bytes(n % 251 for n in range(size)))
    assert old_or_new.rig.punted == []


def test_padding_is_not_relayed(bound: Bound) -> None:
    # RFC 8656 section 12.5: over UDP, "the padding is not required but MAY be included".
    bound.client.send(channel_data(CHANNEL, b"hello", padding=3), bound.rig.server)
    assert bound.peer.payloads() == [b"hello"]


@pytest.mark.parametrize(
    "datagram",
    [
        channel_data(CHANNEL, b"hello")[:-1],
        channel_data(CHANNEL, b"hello", padding=4),
        channel_data(CHANNEL, b"")[:3],
        channel_data(CHANNEL, b"")[:2],
        channel_data(CHANNEL + 1, b"hello"),
        channel_data(CHANNEL, b"")[:1],
        b"",
        b"\0\1\0\0" + bytes(16),
    ],
    ids=["cut", "too long", "3 octets", "2 octets", "channel", "1 octet", "empty", "STUN"],
)
def test_what_is_no_channel_data_of_a_route_is_passed_up(
    old_or_new: Bound, datagram: bytes
) -> None:
    bound, rig = old_or_new, old_or_new.rig
    bound.client.send(datagram, rig.server)
    assert bound.peer.received() == []
    assert rig.punted == [Received(datagram, bound.client.address, rig.server)]


def test_the_channel_of_another_client_is_not_ours(old_or_new: Bound) -> None:
    bound, rig = old_or_new, old_or_new.rig
    stranger = Host(rig, "client")
    stranger.send(channel_data(CHANNEL, b"mine"), rig.server)
    assert bound.peer.received() == []
    assert [packet.source for packet in rig.punted] == [stranger.address]


def test_what_another_peer_sends_is_passed_up(old_or_new: Bound) -> None:
    bound, rig = old_or_new, old_or_new.rig
    stranger = Host(rig, "peer")
    stranger.send(b"let me in", bound.relay)
    assert bound.client.received() == []
    assert rig.punted == [Received(b"let me in", stranger.address, bound.relay)]
    bound.talk(b"and still it works")


@pytest.mark.parametrize("late", [0, 1, 3600 * SECOND])
def test_nothing_passes_at_or_after_the_end(old_or_new: Bound, late: int) -> None:
    bound, rig = old_or_new, old_or_new.rig
    rig.plane.install(bound.route, rig.now() + SECOND)
    rig.pass_time(SECOND - 1)
    bound.talk(b"in time")
    rig.pass_time(1 + late)
    bound.client.send(channel_data(CHANNEL, b"too late"), rig.server)
    bound.peer.send(b"too late", bound.relay)
    assert bound.peer.received() == []
    assert bound.client.received() == []
    assert {packet.source for packet in rig.punted} == {bound.client.address, bound.peer.address}


def test_a_later_end_counts_from_when_it_is_told(old_or_new: Bound) -> None:
    bound, rig = old_or_new, old_or_new.rig
    rig.plane.install(bound.route, rig.now() + SECOND)
    rig.pass_time(2 * SECOND)
    rig.plane.install(bound.route, rig.now() + SECOND)
    bound.talk(b"again")


def test_after_removal_nothing_passes(old_or_new: Bound) -> None:
    bound, rig = old_or_new, old_or_new.rig
    bound.client.send(channel_data(CHANNEL, b"before"), rig.server)
    rig.plane.remove(bound.key)
    rig.plane.remove(bound.key)  # gone already: nothing happens
    bound.client.send(channel_data(CHANNEL, b"after"), rig.server)
    bound.peer.send(b"after", bound.relay)
    # The first may have been on its way to the peer when the route was removed, or else it waited.
    came = bound.peer.payloads()
    assert came in ([], [b"before"])
    assert bound.client.received() == []
    assert {packet.local for packet in rig.punted} == {rig.server, bound.relay}
    assert len(rig.punted) == 3 - len(came)


def test_a_removed_route_can_come_back(old_or_new: Bound) -> None:
    bound, rig = old_or_new, old_or_new.rig
    rig.plane.remove(bound.key)
    rig.plane.install(bound.route, rig.now() + MINUTE)
    bound.make_busy()
    assert rig.punted == []


def test_a_key_may_get_another_peer(old_or_new: Bound) -> None:
    bound, rig = old_or_new, old_or_new.rig
    before, bound.peer = bound.peer, Host(rig, "peer")
    bound.route = Route(bound.key, bound.relay, bound.peer.address, bound.meter)
    rig.plane.install(bound.route, rig.now() + MINUTE)
    bound.make_busy()
    before.send(b"am I still your peer?", bound.relay)
    assert bound.client.received() == []
    assert before.received() == []
    assert len(rig.punted) == 1


def test_channels_of_one_client_and_equal_channels_of_two_are_kept_apart(rig: Rig) -> None:
    client = Host(rig, "client")
    routes = [Bound(rig, 0x4000, client), Bound(rig, 0x4FFF, client), Bound(rig, 0x4000)]
    for route in routes:
        route.make_busy()
    assert rig.punted == []


def test_two_channels_share_a_relayed_address(bound: Bound) -> None:
    rig, other = bound.rig, Host(bound.rig, "peer")
    key = RouteKey(bound.client.address, rig.server, CHANNEL + 1)
    route = Route(key, bound.relay, other.address, bound.meter)
    rig.plane.install(route, rig.now() + MINUTE)
    for n in range(100):
        bound.talk(b"%d" % n)
        bound.client.send(channel_data(CHANNEL + 1, b"to the other"), rig.server)
        assert other.received() == [(b"to the other", bound.relay)]
        other.send(b"from the other", bound.relay)
        expected = channel_data(CHANNEL + 1, b"from the other")
        assert bound.client.received() == [(expected, rig.server)]
    rig.plane.remove(key)
    bound.talk(b"one goes, one stays")
    other.send(b"and I?", bound.relay)
    assert bound.client.received() == []


BURSTS = [
    [160] * 20,
    [1200] * 64,
    [1200] * 70,
    [1200] * 9 + [300],
    [300, 1200, 1200, 1200, 300, 300, 0, 0, 5],
    [0] * 5,
    [9000] * 12,
    [1, 2, 3, 4, 5, 4, 3, 2, 1],
]


@pytest.mark.parametrize("sizes", BURSTS, ids=lambda sizes: f"{len(sizes)}x{sizes[0]}")
def test_bursts_arrive_whole_and_in_order(old_or_new: Bound, sizes: list[int]) -> None:
    bound, rig = old_or_new, old_or_new.rig
    for round_ in range(3):
        sent = [bytes([n, round_] * size)[:size] for n, size in enumerate(sizes)]
        for payload in sent:
            bound.client.send(channel_data(CHANNEL, payload), rig.server)
        assert bound.peer.payloads() == sent
        for payload in sent:
            bound.peer.send(payload, bound.relay)
        assert bound.client.payloads() == [channel_data(CHANNEL, data) for data in sent]
    assert rig.punted == []


def segmented(sock: socket.socket, data: bytes, size: int, to: Address) -> None:
    """Send as one datagram that is cut into many: they arrive in one piece where that is wanted."""
    sock.sendmsg([data], [(17, 103, size.to_bytes(2, "little"))], 0, to)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux's")
@pytest.mark.parametrize(("size", "count"), [(500, 31), (100, 64), (10, 100), (1300, 49)])
def test_datagrams_that_the_kernel_joined_are_cut_again(
    old_or_new: Bound, size: int, count: int
) -> None:
    bound, rig = old_or_new, old_or_new.rig
    parts = [bytes([n]) * size for n in range(count - 1)] + [b"last"]
    frames = [channel_data(CHANNEL, part) for part in parts]
    for _ in range(100):  # the first ones may not be joined yet
        segmented(bound.client.sock, b"".join(frames), size + 4, rig.server)
        assert bound.peer.payloads() == parts
        segmented(bound.peer.sock, b"".join(parts), size, bound.relay)
        assert bound.client.payloads() == frames
        for _ in range(4):
            bound.talk(b"one by one")
    assert rig.punted == []
    usage = bound.meter.collected()
    assert usage.packets_from_client == usage.packets_to_client


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux's")
def test_joined_datagrams_are_passed_up_one_by_one_after_the_end(old_or_new: Bound) -> None:
    bound, rig = old_or_new, old_or_new.rig
    parts = [bytes([n]) * 100 for n in range(10)]
    frames = [channel_data(CHANNEL, part) for part in parts]
    for _ in range(100):
        segmented(bound.peer.sock, b"".join(parts), 100, bound.relay)
        assert bound.client.payloads() == frames
    rig.plane.install(bound.route, rig.now())
    segmented(bound.peer.sock, b"".join(parts), 100, bound.relay)
    segmented(bound.client.sock, b"".join(frames), 104, rig.server)
    assert bound.client.received() == []
    assert bound.peer.received() == []
    assert sorted(packet.data for packet in rig.punted) == sorted(parts + frames)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux's")
def test_joined_datagrams_are_cut_where_an_error_came_with_them(old_or_new: Bound) -> None:
    bound, rig = old_or_new, old_or_new.rig
    parts = [bytes([n]) * 100 for n in range(10)]
    frames = [channel_data(CHANNEL, part) for part in parts]
    for _ in range(100):
        segmented(bound.peer.sock, b"".join(parts), 100, bound.relay)
        assert bound.client.payloads() == frames
    gone = bound.peer.address
    bound.peer.sock.close()
    bound.client.send(channel_data(CHANNEL, b"anybody there?"), rig.server)
    rig.run()
    bound.client.send(channel_data(CHANNEL, b"and now?"), rig.server)
    peer = bound.peer = Host(rig, "peer", gone)
    rig.run()
    for _ in range(3):
        segmented(peer.sock, b"".join(parts), 100, bound.relay)
        assert bound.client.payloads() == frames


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux's")
def test_of_joined_datagrams_each_is_looked_at(bound: Bound) -> None:
    rig = bound.rig
    frames = [channel_data(CHANNEL + n % 2, bytes([n]) * 100) for n in range(10)]
    segmented(bound.client.sock, b"".join(frames), 104, rig.server)
    assert bound.peer.payloads() == [frame[4:] for frame in frames[::2]]
    assert [packet.data for packet in rig.punted] == frames[1::2]


def test_usage_counts_packets_and_octets_of_payload(old_or_new: Bound) -> None:
    def counted() -> tuple[int, ...]:
        usage = old_or_new.meter.collected()
        return (
            usage.packets_from_client, usage.octets_from_client,
            usage.packets_to_client, usage.octets_to_client, usage.dropped,
        )  # fmt: skip

    before = counted()
    for _ in range(3):
        old_or_new.talk(bytes(100))
    added = tuple(after - once for once, after in zip(before, counted(), strict=True))
    assert added == (3, 300, 3, 300, 0)
    # It is the session's, and does not go with a route.
    old_or_new.rig.plane.remove(old_or_new.key)
    assert sum(counted()) == sum(before) + 606


def forwarded(rig: Rig, way: str) -> int:
    """Return how many packets went to peers, or to clients, by whichever part of the plane."""
    counts = rig.plane.counters()
    return counts[f"forwarded to {way}"] + counts.get(f"forwarded to {way} in the kernel", 0)


@pytest.mark.parametrize("way", ["peers", "clients"])
def test_what_is_over_the_rate_is_dropped_and_counted(rig: Rig, way: str) -> None:
    bound = Bound(rig)
    bound.make_busy()
    # 50 packets a second, 50 at once.
    bound.meter = meter = Meter(Bucket(0, 50))
    bound.route = Route(bound.key, bound.relay, bound.peer.address, meter)
    rig.plane.install(bound.route, rig.now() + MINUTE)
    before = {each: forwarded(rig, each) for each in ("peers", "clients")}
    for _ in range(200):
        if way == "peers":
            bound.client.send(channel_data(CHANNEL, b"payload"), rig.server)
        else:
            bound.peer.send(b"payload", bound.relay)
    arrived = len(bound.peer.received()) + len(bound.client.received())
    for each, number in before.items():
        assert forwarded(rig, each) - number == (arrived if each == way else 0)
    assert 0 < arrived <= 60
    usage = meter.collected()
    assert usage.dropped == 200 - arrived
    assert usage.packets_from_client + usage.packets_to_client == arrived
    assert rig.punted == []
    rig.pass_time(SECOND)
    bound.talk(b"a second later")


def test_counters_say_what_was_done(bound: Bound) -> None:
    bound.talk(b"hello")
    assert forwarded(bound.rig, "peers") == forwarded(bound.rig, "clients") == 1
    assert all(isinstance(value, int) for value in bound.rig.plane.counters().values())


def test_a_route_to_nowhere_harms_nobody(bound: Bound) -> None:
    rig = bound.rig
    nowhere = Address(rig.server.host, 9)
    bad = Route(RouteKey(bound.client.address, nowhere, CHANNEL), bound.relay, nowhere, bound.meter)
    rig.plane.install(bad, rig.now() + MINUTE)
    bound.talk(b"still here")
    rig.plane.remove(bad.key)


def test_a_peer_that_is_gone_stops_nobody(old_or_new: Bound) -> None:
    bound, rig = old_or_new, old_or_new.rig
    bound.peer.sock.close()  # what is sent to it is answered with ICMP "port unreachable"
    other = Bound(rig)
    for n in range(5):
        bound.client.send(channel_data(CHANNEL, b"are you there?"), rig.server)
        other.talk(b"%d" % n)
