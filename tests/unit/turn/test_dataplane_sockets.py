"""What is particular to the socket plane; what any data plane does is in tests/conformance."""

from __future__ import annotations

import errno
import select
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from mmap import mmap
from typing import Any

import pytest

from stun.sansio import (
    SECOND,
    Address,
    Cause,
    Closed,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Security,
    SocketEvent,
    Transmit,
    Undeliverable,
)
from turn.dataplane import sockets as plane_module
from turn.dataplane.base import Route, RouteKey
from turn.dataplane.flows import Flow, set_dont_fragment
from turn.dataplane.sockets import BUSY, SETTLING, SocketPlane
from turn.meter import Bucket, Meter

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's")
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
BARE = bytes.fromhex("000100002112a442") + bytes(range(12))
CHANNEL = 0x4000


class Core:
    """A driver, and a machine that keeps what it gets and says what it is told to say."""

    def __init__(self) -> None:
        self.machine = self.reactor = self
        self.clock = 1000 * SECOND
        self.received: list[Received] = []
        self.secret: list[tuple[Received, Handle]] = []
        self.told: list[SocketEvent] = []
        self.react: Callable[[Received], None] = lambda packet: None
        self.watched: dict[int, Callable[[], None]] = {}
        self.settled = 0

    def now(self) -> Instant:
        return self.clock

    def watch(self, fd: int, readable: Any, writable: Any) -> None:
        self.watched[fd] = readable

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def receive(self, packet: Received, now: Instant) -> None:
        self.received.append(packet)
        self.react(packet)

    def pump(self) -> None: ...

    def tell(self, event: SocketEvent) -> None:
        self.told.append(event)

    def encrypted(self, packet: Received, handle: Handle) -> None:
        self.secret.append((packet, handle))

    def settle(self) -> None:
        self.settled += 1
        self.plane.flush()

    plane: SocketPlane

    def run(self) -> None:
        while ready := select.select([*self.watched], [], [], 0)[0]:
            for fd in ready:
                if fd in self.watched:
                    self.watched[fd]()

    def open(self, handle: Handle, host: str, **kind: Any) -> Address:
        opened = self.plane.open(OpenUdp(handle, Address(host, 0), **kind))
        assert isinstance(opened, Opened), opened
        assert opened.handle == handle
        return opened.local


@pytest.fixture
def core() -> Iterator[Core]:
    made = Core()
    made.plane = SocketPlane(made)  # type: ignore[arg-type]
    yield made
    made.plane.close()
    assert made.watched == {}


@pytest.fixture(params=["epoll", "none"])
def any_core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Core]:
    """With an epoll set of its own, and as on a system that has none."""
    if request.param == "none":
        monkeypatch.delattr(select, "epoll", raising=False)
    made = Core()
    made.plane = SocketPlane(made)  # type: ignore[arg-type]
    yield made
    made.plane.close()
    assert made.watched == {}


class Hosts:
    def __init__(self) -> None:
        self.all: list[socket.socket] = []

    def __call__(self, host: str = "127.0.0.1") -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((host, 0))
        sock.setblocking(False)
        self.all.append(sock)
        return sock


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    yield made
    for sock in made.all:
        sock.close()


def address(sock: socket.socket) -> Address:
    return Address(*sock.getsockname()[:2])


def everything(sock: socket.socket) -> list[bytes]:
    got = []
    while True:
        try:
            got.append(sock.recv(65535))
        except BlockingIOError:
            return got


def install(core: Core, client: socket.socket, server: Address, relay: Address,
            peer: socket.socket) -> Route:  # fmt: skip
    key = RouteKey(address(client), server, CHANNEL)
    route = Route(key, relay, address(peer), Meter(Bucket(0, 0)))
    core.plane.install(route, core.now() + 600 * SECOND)
    return route


def flow_of(core: Core, route: Route) -> Flow:
    return core.plane._flows[route.key]


# Sockets. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", LOOPBACK.values())
@pytest.mark.parametrize("serves", [True, False], ids=["listener", "relay"])
def test_what_comes_goes_to_the_machine_and_answers_go_back(
    any_core: Core, hosts: Hosts, host: str, serves: bool
) -> None:
    core = any_core
    local = core.open(1, host, serves=serves)
    other = hosts(host)
    core.react = lambda packet: core.plane.send(Transmit(b"pong", packet.source, packet.local))
    for data in (b"ping", b"", bytes(3000)):
        other.sendto(data, local)
        core.run()
        assert core.received.pop() == Received(data, address(other), local)
        assert everything(other) == [b"pong"]
    counters = core.plane.counters()
    assert counters["datagrams received"] == counters["datagrams sent"] == 3


@pytest.mark.parametrize("security", Security)
def test_a_wildcard_knows_where_each_datagram_was_sent_to(
    core: Core, hosts: Hosts, security: Security
) -> None:
    local = core.open(1, "0.0.0.0", serves=True, security=security)
    other = hosts()
    core.react = lambda packet: core.plane.send(Transmit(b"pong", packet.source, packet.local))
    other.sendto(b"ping", Address("127.0.0.1", local.port))
    core.run()
    if security is Security.REQUIRED:
        assert [handle for _, handle in core.secret] == [1]
    else:
        assert [packet.local.host for packet in core.received] == ["127.0.0.1"]
        assert everything(other) == [b"pong"]
    assert core.plane.shut(1)
    assert not core.plane.shut(1)


def test_a_route_of_a_wildcard_is_left_to_the_machine(core: Core, hosts: Hosts) -> None:
    listener = core.open(1, "0.0.0.0", serves=True)
    relay, client, peer = core.open(2, "127.0.0.1"), hosts(), hosts()
    server = Address("127.0.0.1", listener.port)
    install(core, client, server, relay, peer)
    client.sendto(b"\x40\0\0\1x", server)
    core.run()
    assert [packet.data for packet in core.received] == [b"\x40\0\0\1x"]


def test_a_port_in_use_is_said(core: Core, hosts: Hosts) -> None:
    taken = address(hosts())
    for serves in (True, False):
        closed = core.plane.open(OpenUdp(1, taken, serves=serves))
        assert isinstance(closed, Closed)
        assert (closed.handle, closed.cause) == (1, Cause.ADDRESS_IN_USE)


def test_an_address_that_is_not_ours_is_said(core: Core) -> None:
    closed = core.plane.open(OpenUdp(1, Address("192.0.2.1", 0)))
    assert isinstance(closed, Closed)
    assert closed.cause is Cause.ADDRESS_NOT_AVAILABLE


@pytest.mark.parametrize("serves", [True, False])
def test_nothing_of_a_shut_socket_is_handed_over(
    any_core: Core, hosts: Hosts, serves: bool
) -> None:
    core = any_core
    local, other = core.open(1, "127.0.0.1", serves=serves), hosts()
    core.react = lambda packet: core.plane.shut(1) and None  # type: ignore[func-returns-value]
    for n in range(5):
        other.sendto(b"%d" % n, local)
    core.run()
    assert [packet.data for packet in core.received] == [b"0"]
    assert not core.plane.shut(1)
    again = core.plane.open(OpenUdp(1, local, serves=serves))
    assert again == Opened(1, local)


def test_shutting_a_relay_or_a_listener_ends_its_routes(core: Core, hosts: Hosts) -> None:
    server, client = core.open(1, "127.0.0.1", serves=True), hosts()
    for handle in (2, 3):
        install(core, client, server, core.open(handle, "127.0.0.1"), hosts())
        assert len(core.plane._flows) == 1
        core.plane.shut(handle if handle == 2 else 1)
        assert core.plane._flows == {}


def test_a_send_that_is_refused_is_counted_with_its_reason(core: Core) -> None:
    for handle, serves in ((1, True), (2, False)):
        local = core.open(handle, "127.0.0.1", serves=serves)
        core.plane.send(Transmit(b"x", Address("127.0.0.1", 0), local))
        core.plane.send(Transmit(b"x", Address("not a host", 9), local))
        core.plane.send(Transmit(b"x", Address("127.0.0.1", 1 << 16), local))
        core.plane.flush()
    core.plane.send(Transmit(b"x", Address("127.0.0.1", 9), Address("127.0.0.1", 9)))
    counters = core.plane.counters()
    assert counters["datagrams sent"] == 0
    refused = {words: n for words, n in counters.items() if words.startswith("not sent: ")}
    assert sum(refused.values()) == 7
    assert refused["not sent: no socket has this source address"] == 1


# DTLS, Binding. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("security", Security)
def test_encrypted_datagrams_are_told_apart(core: Core, hosts: Hosts, security: Security) -> None:
    local = core.open(5, "127.0.0.1", serves=True, security=security)
    other = hosts()
    datagrams = [b"\x16\xfe\xfd", b"\x14", b"\x3f", b"\x13", b"\x40", BARE, b""]
    for data in datagrams:
        other.sendto(data, local)
    core.run()
    secret = [packet.data for packet, handle in core.secret if handle == 5]
    plain = [packet.data for packet in core.received]
    expected = {
        Security.NONE: [],
        Security.DETECT: datagrams[:3],
        Security.REQUIRED: datagrams,
    }[security]
    assert secret == expected
    assert plain == [data for data in datagrams if data not in expected]


class Bindings:
    """Answers as it is told to, and takes note of who asked."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.singly: list[tuple[bytes, bytes]] = []
        self.together: list[list[bytes]] = []

    def bare(self, data: bytes, packed: bytes, now: Instant) -> bytes | None:
        self.singly.append((data, packed))
        return self.answer

    def bare_in_place(
        self, memory: mmap, starts: Sequence[int], now: Instant, *, ipv6: bool
    ) -> list[int] | None:
        self.together.append([memory[start : start + 20] for start in starts])
        if self.answer is None:
            return None
        for start in starts:
            memory[start : start + 44] = self.answer.ljust(44)
        return [*starts] if self.answer else []


ANSWERS = pytest.mark.parametrize(
    "answer", [b"answer", b"", None], ids=["yes", "over budget", "not mine"]
)


@pytest.mark.parametrize("host", LOOPBACK.values())
@ANSWERS
def test_bare_binding_requests_are_answered_where_they_lie(
    hosts: Hosts, host: str, answer: bytes | None
) -> None:
    core, bindings = Core(), Bindings(answer)
    core.plane = SocketPlane(core, bindings=bindings)  # type: ignore[arg-type]
    local, one, other = core.open(1, host, serves=True), hosts(host), hosts(host)
    requests = [BARE[:8] + bytes([n]) * 12 for n in range(3)]
    one.sendto(requests[0], local)
    one.sendto(BARE + b"\0\0\0\0", local)
    other.sendto(requests[1], local)
    one.sendto(b"\0\x02" + BARE[2:], local)
    one.sendto(requests[2], local)
    core.run()
    assert [one for batch in bindings.together for one in batch] == requests
    assert bindings.singly == []
    answers = [answer.ljust(44 if ":" in host else 32)] if answer else []
    assert everything(one) == 2 * answers
    assert everything(other) == answers
    assert len(core.received) == (5 if answer is None else 2)
    if answer is None:
        assert {packet.source for packet in core.received} == {address(one), address(other)}
    core.plane.close()


@linux
@pytest.mark.parametrize("host", LOOPBACK.values())
@ANSWERS
def test_bare_binding_requests_that_the_kernel_joined_are_answered_too(
    hosts: Hosts, host: str, answer: bytes | None
) -> None:
    core, bindings = Core(), Bindings(answer)
    core.plane = SocketPlane(core, bindings=bindings)  # type: ignore[arg-type]
    local, other = core.open(1, host, serves=True), hosts(host)
    segments = [(17, 103, (20).to_bytes(2, sys.byteorder))]
    other.sendmsg([BARE * 5], segments, 0, local)
    core.run()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed = address(other).port.to_bytes(2) + socket.inet_pton(family, host)
    assert bindings.singly == [(BARE, packed)] * 5
    assert everything(other) == ([answer] * 5 if answer else [])
    assert len(core.received) == (5 if answer is None else 0)
    core.plane.close()


def test_a_listener_that_is_shut_answers_no_bindings(hosts: Hosts) -> None:
    core, bindings = Core(), Bindings(b"answer")
    core.plane = SocketPlane(core, bindings=bindings)  # type: ignore[arg-type]
    local, other = core.open(1, "127.0.0.1", serves=True), hosts()
    core.react = lambda packet: core.plane.shut(1) and None  # type: ignore[func-returns-value]
    other.sendto(BARE, local)
    other.sendto(b"the end", local)
    core.run()
    assert everything(other) == []
    core.plane.close()


def test_the_time_that_the_machine_takes_is_told(hosts: Hosts) -> None:
    core, took = Core(), []

    def think(packet: Received) -> None:
        core.clock += 5000

    core.react = think
    core.plane = SocketPlane(core, observe=took.append)  # type: ignore[arg-type]
    hosts().sendto(b"x", core.open(1, "127.0.0.1", serves=True))
    hosts().sendto(b"x", core.open(2, "127.0.0.1"))
    core.run()
    assert took == [5000, 5000]
    core.plane.close()


# ICMP and DF. -------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("serves", [True, False], ids=["listener", "relay"])
@pytest.mark.parametrize("host", LOOPBACK.values())
def test_icmp_errors_are_told(core: Core, hosts: Hosts, host: str, serves: bool) -> None:
    local = core.open(1, host, serves=serves)
    gone = address(hosts(host))
    hosts.all[-1].close()
    core.plane.send(Transmit(b"x", gone, local))
    core.plane.flush()
    core.run()
    code = (1, 4) if ":" in host else (3, 3)
    assert core.told == [Undeliverable(local, gone, *code, 0)]


@linux
def test_icmp_errors_of_a_busy_flow_are_told(core: Core, hosts: Hosts) -> None:
    server, relay = core.open(1, "127.0.0.1", serves=True), core.open(2, "127.0.0.1")
    client, peer = hosts(), hosts()
    route = install(core, client, server, relay, peer)
    make_busy(core, client, server, route)
    peer.close()
    client.sendto(b"\x40\0\0\1x", server)
    core.run()
    assert core.told == [Undeliverable(relay, route.peer, 3, 3, 0)]


@linux
def test_dont_fragment_is_for_one_datagram(core: Core, hosts: Hosts) -> None:
    relay, peer = core.open(1, "127.0.0.1"), hosts()
    peer.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS: nothing shows DF; the option must do
    sock = core.plane._relays[1].sock

    def discover() -> int:
        return sock.getsockopt(socket.IPPROTO_IP, 10)

    before = discover()
    core.plane.send(Transmit(b"x", address(peer), relay, dont_fragment=True))
    assert everything(peer) == [b"x"]
    assert discover() == before
    set_dont_fragment(sock, ipv6=False, on=True)
    assert discover() != before


# Flows with a socket of their own. ----------------------------------------------------------------


def make_busy(core: Core, client: socket.socket, server: Address, route: Route) -> None:
    for _ in range(BUSY):
        client.sendto(b"\x40\0\0\1x", server)
        core.run()
    assert flow_of(core, route).sock is not None
    core.clock += SETTLING


@linux
def test_a_busy_flow_gets_a_socket_and_gives_it_back(core: Core, hosts: Hosts) -> None:
    server, relay = core.open(1, "127.0.0.1", serves=True), core.open(2, "127.0.0.1")
    client, peer = hosts(), hosts()
    route = install(core, client, server, relay, peer)
    make_busy(core, client, server, route)
    own = flow_of(core, route).sock
    assert own is not None
    assert address(own) == relay
    assert own.getpeername() == address(peer)
    core.plane.remove(route.key)
    assert own.fileno() == -1


@linux
def test_nobody_else_can_share_the_port_of_a_busy_flow(core: Core, hosts: Hosts) -> None:
    server, relay = core.open(1, "127.0.0.1", serves=True), core.open(2, "127.0.0.1")
    client = hosts()
    make_busy(core, client, server, install(core, client, server, relay, hosts()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use") as caught:
            thief.bind(relay)
        assert caught.value.errno == errno.EADDRINUSE


@linux
def test_what_a_new_socket_caught_of_strangers_is_not_relayed(core: Core, hosts: Hosts) -> None:
    """Between bind and connect it takes datagrams from everybody."""
    server, relay = core.open(1, "127.0.0.1", serves=True), core.open(2, "127.0.0.1")
    client, peer, stranger = hosts(), hosts(), hosts()
    route = install(core, client, server, relay, peer)
    flow = flow_of(core, route)

    class Slow(socket.socket):
        """While it connects, somebody sends."""

        def connect(self, to: Any) -> None:
            stranger.sendto(b"let me in", relay)
            super().connect(to)

    real = socket.socket
    try:
        socket.socket = Slow  # type: ignore[misc]
        core.plane._promote(flow, core.now())
    finally:
        socket.socket = real  # type: ignore[misc]
    peer.sendto(b"\x01\x02", relay)
    core.run()
    assert everything(client) == [b"\x40\0\0\2\x01\x02"]
    assert [(packet.data, packet.source) for packet in core.received] == [
        (b"let me in", address(stranger))
    ]


@linux
def test_without_descriptors_to_spare_a_busy_flow_stays_as_it_is(
    core: Core, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane_module, "descriptors", lambda: 3)
    server, relay = core.open(1, "127.0.0.1", serves=True), core.open(2, "127.0.0.1")
    client, peer = hosts(), hosts()
    route = install(core, client, server, relay, peer)
    for _ in range(3 * BUSY):
        client.sendto(b"\x40\0\0\1x", server)
        core.run()
    assert flow_of(core, route).sock is None
    assert everything(peer) == [b"x"] * (3 * BUSY)


@linux
def test_a_flow_goes_from_bursts_to_single_packets_and_back(core: Core, hosts: Hosts) -> None:
    server, relay = core.open(1, "127.0.0.1", serves=True), core.open(2, "127.0.0.1")
    client, peer = hosts(), hosts()
    route = install(core, client, server, relay, peer)
    make_busy(core, client, server, route)
    flow = flow_of(core, route)
    modes = []
    for round_ in range(3):
        for _ in range(30):
            sent = [b"%d %d" % (round_, n) for n in range(8)]
            for data in sent:
                peer.sendto(data, relay)
            core.run()
            assert [frame[4:] for frame in everything(client)] == sent
        modes.append(flow.pause == 0)
        for n in range(200):
            peer.sendto(b"%d" % n, relay)
            core.run()
            assert everything(client) == [b"\x40\0\0" + bytes([len(b"%d" % n)]) + b"%d" % n]
        modes.append(flow.pause == 0)
    assert modes == [True, False] * 3


def test_one_wakeup_ends_with_one_settlement(core: Core, hosts: Hosts) -> None:
    local, other = core.open(1, "127.0.0.1", serves=True), hosts()
    for n in range(20):
        other.sendto(b"%d" % n, local)
    core.run()
    assert core.settled == 1
    assert len(core.received) == 20
