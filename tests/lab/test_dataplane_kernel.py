"""What every data plane does, done by the one in the kernel; and that it is it who does it.

The plane runs in this process, on the machine between a client's and a peer's.  What is sent goes
through real interfaces, so it takes its time; that all has arrived is known from marks that are
sent after it, on the same cables, which no packet overtakes as long as one CPU does all of it.

The program's clock cannot be held.  The rig's stands still, as that of the sockets does: a route
that lives at that moment gets an end that is far away, and when time is to pass, one that is over
gets an end that is past.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest

import tests.conformance.test_dataplane as suite
from nattype.lab.kernel.build import offloads_off
from nattype.lab.kernel.namespaces import inside
from stun.sansio import SECOND, Address, Instant, Opened, OpenUdp
from tests.conformance.test_dataplane import (
    CHANNEL,
    MINUTE,
    Bound,
    Driven,
    Side,
    bound,
    channel_data,
    old_or_new,
)
from tests.lab.turnd_world import Host, World, require
from turn.dataplane.base import Route, RouteKey
from turn.dataplane.kernel.program import RelayProgram
from turn.dataplane.kernel.routes import KernelRoutes
from turn.dataplane.kernel.ways import Ways
from turn.dataplane.sockets import SocketPlane
from turn.meter import SMALLEST_LEASE, Bucket, Meter

__all__ = ["bound", "old_or_new"]

HOUR = 3600 * SECOND
PATIENCE = 10.0

for _name in dir(suite):
    if _name.startswith("test_"):
        globals()[_name] = getattr(suite, _name)


class Marks:
    """Sockets at both ends of a cable: what is sent between them comes after all sent before."""

    def __init__(self, near: Host, far: Host, address: str) -> None:
        self._far = far.socket()
        self._near = near.socket()
        self._near.bind((address, 0))
        self._far.connect(self._near.getsockname())
        self._near.connect(self._far.getsockname())
        for sock in (self._near, self._far):
            sock.settimeout(PATIENCE)

    def pass_in(self) -> None:
        """Wait until what was sent at the far end is here."""
        self._far.send(b"")
        self._near.recv(1)

    def pass_out(self) -> None:
        """Wait until what was sent here is at the far end."""
        self._near.send(b"")
        self._far.recv(1)

    def close(self) -> None:
        self._near.close()
        self._far.close()


class Shifted:
    """The kernel's routes, told of times by a clock that stands still."""

    def __init__(self, kernel: KernelRoutes, clock: Callable[[], Instant]) -> None:
        self._kernel, self._clock = kernel, clock
        self._ends: dict[RouteKey, tuple[Route, Instant]] = {}

    def install(self, route: Route, expires: Instant) -> None:
        self._ends[route.key] = route, expires
        left = expires - self._clock()
        self._kernel.install(route, time.monotonic_ns() + (HOUR if left > 0 else left))

    def remove(self, key: RouteKey) -> None:
        self._ends.pop(key, None)
        self._kernel.remove(key)

    def shift(self) -> None:
        """Tell the ends anew, as they are by now."""
        for route, expires in self._ends.values():
            self.install(route, expires)

    def too_big(self, local: Address, remote: Address, mtu: int) -> None:
        self._kernel.too_big(local, remote, mtu)

    def counters(self) -> Mapping[str, int]:
        return self._kernel.counters()

    @property
    def limited(self) -> bool:
        """Whether a rate holds for any route."""
        return any(
            bucket.octet_rate or bucket.packet_rate
            for route, _ in self._ends.values()
            for bucket in route.meter.buckets
        )


class KernelRig(Driven):
    """The kernel's plane and the sockets', with a client and a peer on machines of their own.

    It is in the server's network from when it is made until it is closed.
    """

    def __init__(self, world: World, family: int) -> None:
        self._world, self._ipv6 = world, family == 6
        super().__init__(world.server.ipv6 if self._ipv6 else world.server.ipv4)
        self._stack = ExitStack()
        with ExitStack() as stack:
            stack.enter_context(inside(world.server.fd))
            cpus = os.sched_getaffinity(0)
            stack.callback(os.sched_setaffinity, 0, cpus)
            os.sched_setaffinity(0, {min(cpus)})
            self._marks = []
            for host in (world.client, world.peer):
                marks = Marks(world.server, host, world.address(host)[0])
                stack.callback(marks.close)
                self._marks.append(marks)
            self.program = RelayProgram.load(routes=1024, buckets=64)
            self.kernel = KernelRoutes(self.program, Ways())
            stack.callback(self.kernel.close)
            self.fast = Shifted(self.kernel, self.now)
            self.plane = SocketPlane(self, fast=self.fast)  # type: ignore[arg-type]
            stack.callback(self.plane.close)
            self.server = self._open(serves=True)
            self._stack = stack.pop_all()

    def new_socket(self, side: Side) -> socket.socket:
        return self._machine(side).socket(socket.AF_INET6 if self._ipv6 else socket.AF_INET)

    def host(self, side: Side) -> str:
        machine = self._machine(side)
        return machine.ipv6 if self._ipv6 else machine.ipv4

    def _machine(self, side: Side) -> Host:
        return self._world.client if side == "client" else self._world.peer

    def run(self) -> None:
        while True:
            for marks in self._marks:
                marks.pass_in()
            for marks in self._marks:
                marks.pass_out()
            ready = select.select([*self._watched], [], [], 0)[0]
            if not ready:
                return
            for fd in ready:
                self._watched[fd]()

    def pass_time(self, nanoseconds: int) -> None:
        if self.fast.limited:  # by the program's clock
            time.sleep(nanoseconds / SECOND)
        self._clock += nanoseconds
        self.fast.shift()

    def close(self) -> None:
        self._stack.close()
        assert not self._watched

    # What the kernel did. -------------------------------------------------------------------------

    def moved(self, *, kernel: tuple[int, int], sockets: tuple[int, int] = (0, 0)) -> bool:
        """Whether so many packets were forwarded, to peers and to clients, by whom.

        One in 65,536 has a checksum that looks unfinished, and is passed up: those are counted.
        """
        counts = self.kernel.counters()
        found = [counts[f"forwarded to {way} in the kernel"] for way in ("peers", "clients")]
        odd = counts["passed up: sent on this machine"]
        others = self.plane.to_peers, self.plane.to_clients
        both = [a + b for a, b in zip(found, others, strict=True)]
        wanted = [a + b for a, b in zip(kernel, sockets, strict=True)]
        return both == wanted and sum(found) == sum(kernel) - odd


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    require("kernel")
    with World() as world:
        for host in (world.client, world.peer):
            # No packet is to wait until a neighbour has answered.
            (near4, near6), here, there = world.address(host), world.server, host
            mac = world.mac[f"server-{host.name}"], world.mac[host.name]
            here.ip(
                f"neigh replace {host.ipv4} lladdr {mac[1]} dev {host.name} nud permanent",
                f"neigh replace {host.ipv6} lladdr {mac[1]} dev {host.name} nud permanent",
            )
            there.ip(
                f"neigh replace {near4} lladdr {mac[0]} dev wire nud permanent",
                f"neigh replace {near6} lladdr {mac[0]} dev wire nud permanent",
            )
        yield world


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def rig(world: World, request: pytest.FixtureRequest) -> Iterator[KernelRig]:
    made = KernelRig(world, request.param)
    yield made
    for sock in made.sockets:
        sock.close()
    made.close()


def test_it_is_the_kernel_that_forwards(rig: KernelRig) -> None:
    bound = Bound(rig)
    for n in range(100):
        bound.talk(b"packet %d" % n)
    assert rig.moved(kernel=(100, 100))
    rig.plane.remove(bound.key)
    bound.client.send(channel_data(CHANNEL, b"after the end"), rig.server)
    rig.run()
    assert rig.moved(kernel=(100, 100))
    assert len(rig.punted) == 1
    rig.plane.install(bound.route, rig.now() + MINUTE)
    bound.talk(b"and again")
    assert rig.moved(kernel=(101, 101))


def test_a_key_with_another_peer_stays_in_the_kernel(rig: KernelRig) -> None:
    bound = Bound(rig)
    bound.talk(b"to the first")
    bound.peer = suite.Host(rig, "peer")
    bound.route = Route(bound.key, bound.relay, bound.peer.address, bound.meter)
    rig.plane.install(bound.route, rig.now() + MINUTE)
    bound.talk(b"to the second")
    assert rig.moved(kernel=(2, 2), sockets=(0, 0))


def test_one_rate_for_what_the_kernel_relays_and_what_it_passes_up(rig: KernelRig) -> None:
    """Small datagrams pass in the kernel; large ones come in fragments, to the sockets."""
    rate, small, large = 200_000, 160, 3000
    bound = Bound(rig)
    bucket = Bucket(rate, 0)
    bound.meter = Meter(bucket)
    bound.route = Route(bound.key, bound.relay, bound.peer.address, bound.meter)
    rig.plane.install(bound.route, rig.now() + MINUTE)
    begin, sizes = time.monotonic(), []
    for _ in range(200):
        for size in [small] * 10 + [large]:
            bound.client.send(channel_data(CHANNEL, bytes(size)), rig.server)
        sizes += [len(payload) for payload in bound.peer.payloads()]
    elapsed = time.monotonic() - begin
    assert set(sizes) == {small, large}
    most = rate * (1 + elapsed) + large + 4 * SMALLEST_LEASE
    assert 0.9 * rate <= sum(sizes) <= most, (sum(sizes), most, elapsed)
    usage = bound.meter.collected()
    assert (usage.packets_from_client, usage.octets_from_client) == (len(sizes), sum(sizes))
    assert usage.dropped == 200 * 11 - len(sizes)
    assert rig.moved(kernel=(sizes.count(small), 0), sockets=(sizes.count(large), 0))
    # Without a route the rate goes on where it was.
    rig.plane.remove(bound.key)
    assert bucket.source is None
    passed = sum(1000 * bound.meter.take(1000, time.monotonic_ns()) for _ in range(400))
    assert passed <= most - sum(sizes) + rate * (time.monotonic() - begin - elapsed) + 1000


def test_a_smaller_mtu_of_the_interface_holds_at_once(rig: KernelRig, world: World) -> None:
    bound = Bound(rig)

    def send(size: int) -> None:
        bound.client.send(channel_data(CHANNEL, bytes(size)), rig.server)
        assert bound.peer.payloads() == [bytes(size)]

    send(1400)
    try:
        world.server.ip("link set peer mtu 1300")
        assert rig.kernel.changed()
        assert not rig.kernel.refresh()
        send(1400)
        send(1300 - 48 if rig.server.is_ipv6 else 1300 - 28)
        assert rig.moved(kernel=(2, 0), sockets=(1, 0))
    finally:
        world.server.ip("link set peer mtu 1500")
    rig.kernel.changed()
    rig.kernel.refresh()
    send(1400)
    assert rig.moved(kernel=(3, 0), sockets=(1, 0))


def test_routes_of_a_wildcard_listener_are_in_the_kernel(rig: KernelRig) -> None:
    """The sockets leave those to the machine, for they would have to look where each was sent."""
    everywhere = Address("::" if rig.server.is_ipv6 else "0.0.0.0", 0)
    opened = rig.plane.open(OpenUdp(77, everywhere, serves=True))
    assert isinstance(opened, Opened)
    rig.server = Address(rig.server.host, opened.local.port)
    bound = Bound(rig)
    for n in range(10):
        bound.talk(b"packet %d" % n)
    assert rig.moved(kernel=(10, 10))
    rig.plane.remove(bound.key)
    bound.client.send(channel_data(CHANNEL, b"after the end"), rig.server)
    rig.run()
    assert [packet.local for packet in rig.punted] == [rig.server]


def test_two_relayed_addresses_of_one_server_reach_each_other(rig: KernelRig) -> None:
    one, other = Bound(rig), Bound(rig)
    for sender, receiver in ((one, other), (other, one)):
        rig.plane.remove(sender.key)
        sender.route = Route(sender.key, sender.relay, receiver.relay, sender.meter)
        rig.plane.install(sender.route, rig.now() + MINUTE)
    for sender, receiver in ((one, other), (other, one)):
        sender.client.send(channel_data(CHANNEL, b"hello"), rig.server)
        assert receiver.client.payloads() == [channel_data(CHANNEL, b"hello")]
    assert rig.moved(kernel=(0, 0), sockets=(2, 2))
    assert rig.punted == []


def test_what_icmp_says_of_the_way_to_a_peer_holds_for_the_kernel(
    rig: KernelRig, world: World
) -> None:
    """The peer's machine is a router here, with a narrow link to the host behind it."""
    ipv6 = rig.server.is_ipv6
    router, near = world.peer, "2001:db8:5" if ipv6 else "10.5.0"
    joint = f"{near}::" if ipv6 else f"{near}."
    prefix = f"{joint}{'/64' if ipv6 else '0/24'}"
    with ExitStack() as stack:
        far = Host("far")
        stack.callback(far.close)
        router.ip(f"link add narrow mtu 1280 type veth peer name wire mtu 1280 netns {far.path}")
        stack.callback(router.ip, "link del narrow")
        nodad, length = ("nodad", 64) if ipv6 else ("", 24)
        for machine, interface, last in ((router, "narrow", 1), (far, "wire", 2)):
            with inside(machine.fd):
                offloads_off(interface)
            machine.ip(
                f"address add {joint}{last}/{length} dev {interface} {nodad}",
                f"link set {interface} up",
            )
        far.ip(f"route add {'2001:db8::/48' if ipv6 else '198.18.0.0/15'} via {joint}1")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        via = router.ipv6 if ipv6 else router.ipv4
        world.server.ip(f"route add {prefix} via {via}")
        stack.callback(world.server.ip, f"route del {prefix}")
        stack.callback(world.server.run, "ip", "-6" if ipv6 else "-4", "route", "flush", "cache")
        rig.kernel.changed()

        bound = Bound(rig)
        sock = far.socket(socket.AF_INET6 if ipv6 else socket.AF_INET)
        stack.callback(sock.close)
        sock.bind((f"{joint}2", 0))
        sock.settimeout(PATIENCE)
        peer = Address(*sock.getsockname()[:2])
        bound.route = Route(bound.key, bound.relay, peer, bound.meter)
        rig.plane.install(bound.route, rig.now() + MINUTE)
        # Linux sets DF in what a UDP socket sends, and it is copied.
        large = channel_data(CHANNEL, bytes(1400))
        bound.client.send(large, rig.server)
        told = time.monotonic() + PATIENCE
        while not rig.told:
            rig.run()
            assert time.monotonic() < told, "no word from the router"
        assert rig.moved(kernel=(1, 0))
        # From now on it is fragmented: the sockets do that.
        bound.client.send(large, rig.server)
        rig.run()
        assert len(sock.recv(2000)) == 1400
        bound.client.send(channel_data(CHANNEL, bytes(1000)), rig.server)
        assert len(sock.recv(2000)) == 1000
        assert rig.moved(kernel=(2, 0), sockets=(1, 0))


def test_where_the_clock_is_not_the_kernels_it_is_refused() -> None:
    """Routes would live on after their end, by as much as the clock is ahead."""
    require("kernel")
    ask = "from turn.dataplane.kernel.support import why_not; print(why_not())"
    for offset, words in (("1000", "time namespace"), ("-1", "time namespace"), ("0", "None")):
        done = subprocess.run(
            ["unshare", "--time", "--fork", "--monotonic", offset, sys.executable, "-c", ask],
            check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert words in done.stdout, (offset, done.stdout)
