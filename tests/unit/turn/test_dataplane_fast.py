"""The socket plane with a faster one beside it: what that is told, and what stays here."""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Iterator, Mapping

import pytest

from stun import udp as udp_module
from stun.icmp import IcmpError
from stun.sansio import SECOND, Address, Instant, Opened, OpenUdp, Undeliverable
from tests.unit.turn.test_dataplane_sockets import Core
from turn.dataplane import sockets as plane_module
from turn.dataplane.base import Route, RouteKey
from turn.dataplane.flows import JOINS, WAS_JOINING
from turn.dataplane.sockets import SocketPlane
from turn.meter import Meter

LOCALHOST = "127.0.0.1"
GRO = 104
MINUTE = 60 * SECOND


class Fast:
    """A plane that forwards nothing and keeps what it is told."""

    def __init__(self) -> None:
        self.routes: dict[RouteKey, tuple[Route, Instant]] = {}
        self.heard: list[tuple[Address, Address, int]] = []
        self.counts = {"forwarded to peers in the kernel": 3, "passed up: fragment": 4}

    def install(self, route: Route, expires: Instant) -> None:
        self.routes[route.key] = route, expires

    def remove(self, key: RouteKey) -> None:
        self.routes.pop(key, None)

    def too_big(self, local: Address, remote: Address, mtu: int) -> None:
        self.heard.append((local, remote, mtu))

    def counters(self) -> Mapping[str, int]:
        return self.counts


class Scene:
    def __init__(self, fast: Fast | None) -> None:
        self.core = Core()
        self.core.plane = self.plane = SocketPlane(self.core, fast=fast)  # type: ignore[arg-type]
        self.server, self.relay = self._open(1, serves=True), self._open(2, serves=False)

    def _open(self, handle: int, *, serves: bool) -> Address:
        opened = self.plane.open(OpenUdp(handle, Address(LOCALHOST, 0), serves=serves))
        assert isinstance(opened, Opened)
        return opened.local

    def route(self, client: Address, peer: Address, channel: int = 0x4000) -> Route:
        return Route(RouteKey(client, self.server, channel), self.relay, peer, Meter())

    def joins(self) -> list[bool]:
        """Whether the kernel joins datagrams: of each listener."""
        found = self.plane._listeners.values()
        return [bool(one.sock.getsockopt(socket.IPPROTO_UDP, GRO)) for one in found]

    def serve(self) -> None:
        while ready := select.select([*self.core.watched], [], [], 0)[0]:
            for fd in ready:
                self.core.watched[fd]()


CLIENT, PEER = Address(LOCALHOST, 1111), Address(LOCALHOST, 2222)


@pytest.fixture
def fast() -> Fast:
    return Fast()


@pytest.fixture
def scene(fast: Fast) -> Iterator[Scene]:
    made = Scene(fast)
    yield made
    made.plane.close()


def test_it_learns_what_the_sockets_learn(scene: Scene, fast: Fast) -> None:
    one = scene.route(CLIENT, PEER)
    scene.plane.install(one, 1000)
    assert fast.routes == {one.key: (one, 1000)}
    scene.plane.install(one, 2000)
    assert fast.routes == {one.key: (one, 2000)}
    # A key with another peer: the new one is not taken back with the old one.
    other = scene.route(CLIENT, Address(LOCALHOST, 3333))
    scene.plane.install(other, 3000)
    assert fast.routes == {one.key: (other, 3000)}
    scene.plane.remove(one.key)
    assert fast.routes == {}


def test_it_learns_of_routes_that_the_sockets_leave_to_the_machine(
    scene: Scene, fast: Fast
) -> None:
    """Those of a listener that stands for every address of the host."""
    route = Route(RouteKey(CLIENT, Address("192.0.2.1", 3478), 0x4000), scene.relay, PEER, Meter())
    scene.plane.install(route, 1000)
    assert route.key in fast.routes
    scene.plane.remove(route.key)
    assert fast.routes == {}


@pytest.mark.parametrize("handle", [1, 2], ids=["listener", "relay"])
def test_with_a_socket_its_routes_go(scene: Scene, fast: Fast, handle: int) -> None:
    scene.plane.install(scene.route(CLIENT, PEER), 1000)
    scene.plane.install(scene.route(CLIENT, Address(LOCALHOST, 3333), 0x4001), 1000)
    assert len(fast.routes) == 2
    scene.plane.shut(handle)
    assert fast.routes == {}


def test_a_smaller_mtu_is_passed_on_and_no_other_error(
    scene: Scene, fast: Fast, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [IcmpError(PEER, 3, 3, 0), IcmpError(PEER, 3, 4, 1280)]
    monkeypatch.setattr(plane_module, "read_errors", lambda sock: errors)
    port = scene.plane._from[scene.relay]
    scene.plane._report_errors(port.sock, scene.relay)
    assert fast.heard == [(scene.relay, PEER, 1280)]
    # The client is told as ever.
    told = [event for event in scene.core.told if isinstance(event, Undeliverable)]
    assert [event.info for event in told] == [0, 1280]


def test_what_a_wildcard_socket_hears_is_passed_on_too(
    scene: Scene, fast: Fast, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(scene.core.watched)
    opened = scene.plane.open(OpenUdp(3, Address("0.0.0.0", 0), serves=True))
    assert isinstance(opened, Opened)
    (fd,) = scene.core.watched.keys() - before
    monkeypatch.setattr(udp_module, "read_errors", lambda sock: [IcmpError(PEER, 3, 4, 1280)])
    scene.core.watched[fd]()
    assert fast.heard == [(opened.local, PEER, 1280)]
    assert scene.core.told == [Undeliverable(opened.local, PEER, 3, 4, 1280)]


def test_its_counts_are_beside_the_sockets(scene: Scene) -> None:
    counts = scene.plane.counters()
    assert counts["forwarded to peers in the kernel"] == 3
    assert counts["passed up: fragment"] == 4
    assert counts["forwarded to peers"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's")
def test_nothing_is_joined_as_long_as_it_is_there(fast: Fast) -> None:
    scene = Scene(None)
    try:
        assert scene.joins() == [True]
        client, peer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        with client, peer:
            for sock in (client, peer):
                sock.bind((LOCALHOST, 0))
            route = scene.route(Address(*client.getsockname()), Address(*peer.getsockname()))
            scene.plane.install(route, scene.core.clock + MINUTE)
            flow = scene.plane._flows[route.key]

            def burst() -> None:
                data = b"".join(bytes([n]) * 100 for n in range(20))
                control = [(socket.IPPROTO_UDP, 103, (100).to_bytes(2, sys.byteorder))]
                peer.sendmsg([data], control, 0, scene.relay)
                scene.serve()
                came = [client.recv(200)[4:] for _ in range(20)]
                assert came == [bytes([n]) * 100 for n in range(20)]

            for _ in range(60):
                burst()
                scene.core.clock += SECOND // 10
            assert flow.joins == JOINS
            scene.plane.relay_beside(fast)
            assert fast.routes[route.key] == (route, flow.expires)
            assert scene.joins() == [False]
            assert flow.joins == WAS_JOINING
            for _ in range(100):
                burst()
            assert flow.joins != JOINS
            scene.plane.relay_beside(None)
            assert scene.joins() == [True]
            for _ in range(100):
                burst()
            assert flow.joins == JOINS
            # What it forwarded while it was there stays counted.
            assert scene.plane.counters()["forwarded to peers in the kernel"] == 3
    finally:
        scene.plane.close()
