"""How long the data plane takes for a packet that is waiting: kernel and Python together.

    python -m pytest tests/bench/test_bench_relay.py -o addopts= --benchmark-group-by=group

Beside it, what C and Python calls of the same kind cost here: one ``recvfrom`` and one ``sendto``
for each packet, no table, no header, no counting.  Servers as a whole, coturn among them:
``tools/bench/relay.py``.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stun.sansio import SECOND, Address, Instant, Opened, OpenUdp
from turn.dataplane import wakeups
from turn.dataplane.base import Route, RouteKey
from turn.dataplane.sockets import SETTLING, SocketPlane
from turn.meter import Bucket, Meter

FLOWS = 16
CHANNEL = 0x4000


class Core:
    """As much of a driver as the plane needs."""

    def __init__(self) -> None:
        self.machine = self.reactor = self
        self.late = 0
        self.wake: Callable[[], None] = lambda: None
        self.plane = SocketPlane(self)  # type: ignore[arg-type]

    def now(self) -> Instant:
        return time.monotonic_ns() + self.late

    def watch(self, fd: int, readable: Callable[[], None], writable: Any) -> None:
        self.wake = readable

    def unwatch(self, fd: int) -> None: ...

    def pump(self) -> None: ...

    def settle(self) -> None: ...

    def tell(self, event: Any) -> None: ...

    def receive(self, packet: Any, now: Instant) -> None: ...


class Field:
    """Clients, peers, and a route between each two."""

    def __init__(self) -> None:
        self.core = Core()
        opened = self.core.plane.open(OpenUdp(1, Address("127.0.0.1", 0), serves=True))
        assert isinstance(opened, Opened)
        self.clients = [self._socket() for _ in range(FLOWS)]
        self.peers = [self._socket() for _ in range(FLOWS)]
        bucket = Bucket(10**12, 10**9)
        for n, (client, peer) in enumerate(zip(self.clients, self.peers, strict=True)):
            relay = self.core.plane.open(OpenUdp(2 + n, Address("127.0.0.1", 0)))
            assert isinstance(relay, Opened)
            key = RouteKey(Address(*client.getsockname()), opened.local, CHANNEL)
            route = Route(key, relay.local, Address(*peer.getsockname()), Meter(bucket))
            self.core.plane.install(route, self.core.now() + 3600 * SECOND)
            client.connect(opened.local)
            peer.connect(relay.local)

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        return sock

    def fill(self, socks: list[socket.socket], data: bytes, each: int) -> None:
        for sock in socks:
            for _ in range(each):
                sock.send(data)

    @staticmethod
    def drain(socks: list[socket.socket]) -> int:
        got = 0
        for sock in socks:
            while True:
                try:
                    sock.recv(2000)
                except BlockingIOError:
                    break
                got += 1
        return got

    def close(self) -> None:
        self.core.plane.close()
        for sock in (*self.clients, *self.peers):
            sock.close()


@pytest.fixture
def field(monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    # What is measured is the work, not the rests from it.
    monkeypatch.setattr(wakeups, "sleep", lambda seconds: None)
    made = Field()
    yield made
    made.close()


WAYS = {"client to peer": True, "peer to client": False}


@pytest.mark.benchmark(group="a wake-up with 16 flows")
@pytest.mark.parametrize("size", [160, 1200])
@pytest.mark.parametrize("each", [1, 8], ids=["single packets", "bursts of 8"])
@pytest.mark.parametrize("way", WAYS)
def test_data_plane(benchmark: Any, field: Field, way: str, each: int, size: int) -> None:
    from_, to = field.clients, field.peers
    data = CHANNEL.to_bytes(2) + size.to_bytes(2) + bytes(size)
    if not WAYS[way]:
        from_, to, data = to, from_, bytes(size)

    def prepare() -> None:
        field.drain(to)
        field.fill(from_, data, each)

    for _ in range(100):  # flows prove busy, and get sockets of their own
        prepare()
        field.core.wake()
    field.core.late = SETTLING
    for _ in range(100):
        prepare()
        field.core.wake()
    assert field.drain(to) == FLOWS * each
    benchmark.pedantic(field.core.wake, setup=prepare, rounds=300)
    assert field.drain(to) == FLOWS * each


@pytest.mark.benchmark(group="a wake-up with 16 flows")
@pytest.mark.parametrize("size", [160, 1200])
def test_recvfrom_and_sendto(benchmark: Any, field: Field, size: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as middle:
        middle.bind(("127.0.0.1", 0))
        middle.setblocking(False)
        for client in field.clients:
            client.connect(middle.getsockname())
        targets = [peer.getsockname() for peer in field.peers]
        for peer in field.peers:
            peer.connect(middle.getsockname())

        def prepare() -> None:
            field.drain(field.peers)
            field.fill(field.clients, bytes(size), 1)

        def relay() -> None:
            for target in targets:
                data, _ = middle.recvfrom(65535)
                middle.sendto(data, target)

        benchmark.pedantic(relay, setup=prepare, rounds=300)
        assert field.drain(field.peers) == FLOWS
