"""Where packets leave, asked of a real kernel: its routes, rules and links, and their changes."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nattype.lab.kernel.namespaces import inside
from stun.icmp import keep_errors, read_errors
from tests.lab.turnd_world import Host, World, require
from turn.dataplane.flows import set_dont_fragment
from turn.dataplane.kernel.ways import Way, Ways

PATIENCE = 10


@pytest.fixture
def world() -> Iterator[World]:
    require("sockets")
    with World() as world:
        yield world


@pytest.fixture
def ways(world: World) -> Iterator[Ways]:
    with looking(world.server) as ways:
        yield ways


@contextmanager
def looking(host: Host) -> Iterator[Ways]:
    with inside(host.fd):
        ways = Ways()
    try:
        yield ways
    finally:
        ways.close()


def hear(ways: Ways) -> None:
    """Wait until something has changed, and take note of it."""
    assert select.select([ways], [], [], PATIENCE)[0]
    assert ways.changed()


def way(ways: Ways, world: World, to: str) -> Way | None:
    return ways.way_of(world.server.ipv6 if ":" in to else world.server.ipv4, to)


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_a_neighbour_and_a_host_behind_a_router(world: World, ways: Ways, *, ipv6: bool) -> None:
    peer, client = world.server.index("peer"), world.server.index("client")
    host = world.peer.ipv6 if ipv6 else world.peer.ipv4
    far = "2001:db8:77::9" if ipv6 else "203.0.113.9"
    assert way(ways, world, host) == Way(peer, 1500)
    assert way(ways, world, world.client.ipv6 if ipv6 else world.client.ipv4) == Way(client, 1500)
    assert way(ways, world, far) is None, "there is no route"
    world.server.ip(f"route add {far} via {host} mtu 1400")
    assert way(ways, world, far) == Way(peer, 1400, host)
    world.server.ip(f"route replace unreachable {far}")
    assert way(ways, world, far) is None
    world.server.ip(f"route del unreachable {far}", f"route add blackhole {far}")
    assert way(ways, world, far) is None


def test_what_the_sockets_must_do(world: World, ways: Ways) -> None:
    world.server.ip("address add 198.18.200.1/24 dev peer", "route add 224.0.0.0/4 dev peer")
    hosts = (
        world.server.ipv4, world.server.ipv6, "127.0.0.1", "::1",  # of this machine itself
        "198.18.200.1", "198.18.200.255", "255.255.255.255", "224.0.0.9", "ff02::1",
    )  # fmt: skip
    for host in hosts:
        assert way(ways, world, host) is None, host
    # Of one link alone, and the source of another machine.
    assert ways.way_of("fe80::1%peer", "fe80::2%peer") is None
    assert ways.way_of("192.0.2.77", world.peer.ipv4) is None
    assert ways.way_of(world.server.ipv4, world.peer.ipv6) is None


def test_a_tunnel_without_ethernet_headers_is_no_way(world: World, ways: Ways) -> None:
    server = world.server
    server.ip(
        "tuntap add dev tun1 mode tun",
        "address add 10.9.0.1/24 dev tun1",
        "link set tun1 up",
    )
    hear(ways)
    assert ways.way_of("10.9.0.1", "10.9.0.2") is None
    assert server.index("tun1") not in ways.interfaces()


def test_rules_decide_by_the_source(world: World, ways: Ways) -> None:
    server = world.server
    server.ip(
        "address add 198.18.1.77/32 dev peer",
        "route add 203.0.113.0/24 via 198.18.1.2",
        "route add 203.0.113.0/24 via 198.18.0.2 table 100",
        "rule add from 198.18.1.77 table 100",
    )
    assert ways.way_of("198.18.1.1", "203.0.113.1") == Way(server.index("peer"), 1500, "198.18.1.2")
    assert ways.way_of("198.18.1.77", "203.0.113.1") == Way(
        server.index("client"), 1500, "198.18.0.2"
    )


def test_interfaces_are_those_that_packets_come_in_by(world: World, ways: Ways) -> None:
    server = world.server

    def names() -> set[str]:
        return {link.name for link in ways.interfaces().values()}

    assert names() == {"client", "peer"}
    server.ip(
        "link add bridge1 type bridge",
        "link add port1 type veth peer name port2",
        "link set port1 master bridge1",
        "link set bridge1 up",
        "link set port1 up",
        "link set port2 up",
        "link add bridge2 type bridge",
    )
    hear(ways)
    assert names() == {"client", "peer", "bridge1", "port2"}
    assert way(ways, world, world.peer.ipv4) == Way(server.index("peer"), 1500)
    server.ip("address add 10.7.0.1/24 dev bridge1")
    assert ways.way_of("10.7.0.1", "10.7.0.2") == Way(server.index("bridge1"), 1500)
    server.ip("link del bridge1", "link del port1")
    hear(ways)
    assert names() == {"client", "peer"}


def test_changes_are_told(world: World, ways: Ways) -> None:
    server, peer = world.server, world.peer.ipv4
    index = server.index("peer")
    assert not ways.changed()
    for lines, expected in (
        (["link set peer mtu 1300"], Way(index, 1300)),
        (["link set peer down"], None),
        (["link set peer up"], Way(index, 1300)),
        (["address del 198.18.1.1/24 dev peer"], None),
        (["address add 198.18.1.1/24 dev peer"], Way(index, 1300)),
        (["route add 198.18.1.2 dev client"], Way(server.index("client"), 1500)),
        (["rule add to 198.18.1.2 unreachable"], None),
        (["rule del to 198.18.1.2 unreachable"], Way(server.index("client"), 1500)),
        (["link del client"], Way(index, 1300)),
    ):
        server.ip(*lines)
        hear(ways)
        assert ways.way_of("198.18.1.1", peer) == expected, lines
    assert {link.name for link in ways.interfaces().values()} == {"peer"}


def test_more_changes_than_the_kernel_keeps_are_no_loss(world: World, ways: Ways) -> None:
    server = world.server
    lines = []
    for number in range(3000):
        lines.append(f"route add 10.{number // 250}.{number % 250}.0/24 via 198.18.1.2")
    server.ip(*lines, "link set peer mtu 1280")
    hear(ways)
    assert not ways.changed()
    assert way(ways, world, "10.11.7.1") == Way(server.index("peer"), 1280, "198.18.1.2")


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_what_icmp_taught_of_a_path_is_told(world: World, ways: Ways, *, ipv6: bool) -> None:
    """A router that must not fragment says how much the next link takes."""
    far, server, router = world.add("far"), world.server, world.peer
    # The peer becomes a router with a narrow link to a host behind it.
    router.ip(
        f"link add narrow mtu 1280 type veth peer name back mtu 1280 netns {far.path}",
        "address add 10.5.0.1/24 dev narrow",
        "address add 2001:db8:5::1/64 dev narrow nodad",
        "link set narrow up",
    )
    far.ip(
        "address add 10.5.0.2/24 dev back",
        "address add 2001:db8:5::2/64 dev back nodad",
        "link set back up",
    )
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    server.ip(
        f"route add 10.5.0.0/24 via {router.ipv4}",
        f"route add 2001:db8:5::/64 via {router.ipv6}",
    )
    hear(ways)
    host = "2001:db8:5::2" if ipv6 else "10.5.0.2"
    near, by = world.address(router)[ipv6], router.ipv6 if ipv6 else router.ipv4
    assert ways.way_of(near, host) == Way(server.index("peer"), 1500, by)
    with server.socket(socket.AF_INET6 if ipv6 else socket.AF_INET) as sock:
        keep_errors(sock)
        set_dont_fragment(sock, ipv6=ipv6, on=True)
        sock.bind((near, 0))
        sock.sendto(bytes(1400), (host, 9))
        poll = select.poll()
        poll.register(sock, 0)  # errors are always told
        assert poll.poll(1000 * PATIENCE)
        (error,) = read_errors(sock)
    assert error.info == 1280
    assert ways.way_of(near, host) == Way(server.index("peer"), 1280, by)


def test_a_router_may_be_of_the_link_or_of_the_other_family(world: World, ways: Ways) -> None:
    server = world.server
    peer = server.index("peer")
    server.ip("route add 2001:db8:78::/64 via fe80::1 dev peer")
    assert way(ways, world, "2001:db8:78::1") == Way(peer, 1500, "fe80::1")
    server.ip(f"route add 203.0.113.0/24 via inet6 {world.peer.ipv6}")
    assert way(ways, world, "203.0.113.1") == Way(peer, 1500, world.peer.ipv6)


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_what_ipsec_protects_stays_with_the_sockets(
    world: World, ways: Ways, *, ipv6: bool
) -> None:
    server = world.server
    host = world.peer.ipv6 if ipv6 else world.peer.ipv4
    near = world.address(world.peer)[ipv6]
    everywhere = "::/0" if ipv6 else "0.0.0.0/0"
    plain = Way(server.index("peer"), 1500)
    assert ways.way_of(near, host) == plain
    for policy, expected in (
        (f"src {near} dst {host} dir in priority 5", plain),
        (f"src {everywhere} dst {everywhere} dir out priority 90", None),
        (f"src {near} dst {host} dir out priority 10", plain),  # an exception: no template
        (f"src {near} dst {host} dir out action block priority 8", None),
    ):
        template = f"tmpl src {near} dst {host} proto esp mode tunnel"
        words = f"ip xfrm policy update {policy} {'' if 'priority 10' in policy else template}"
        server.run(*words.split())
        hear(ways)
        assert ways.way_of(near, host) == expected, policy
    server.run("ip", "xfrm", "policy", "flush")
    hear(ways)
    assert ways.way_of(near, host) == plain


def test_it_belongs_to_where_it_was_made(world: World, ways: Ways) -> None:
    """The process may be in another network by then."""
    with inside(world.client.fd):
        assert way(ways, world, world.peer.ipv4) == Way(world.server.index("peer"), 1500)


def test_nothing_is_left_open_after_the_end(world: World) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        with looking(world.server):
            pass
    assert len([*Path("/proc/self/fd").iterdir()]) == before
