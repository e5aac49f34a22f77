"""Kernel NATs against the model they were built from, measured with plain sockets.

Nothing of natkit's own probing is used.  The tests hold sockets of the host and of the server in
one process and look at what arrives where: the server's side is the truth.

That a packet was dropped is not concluded from silence but from a *fence*: a packet that is known
to pass, sent after it on the same way by a process that stays on one processor, arrives first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest

from nattype.lab import Lab, Site
from nattype.lab.kernel.errors import Unsupported
from nattype.model import (
    NAMED_KINDS,
    Allocation,
    Filtering,
    Mapping,
    NatModel,
    Unsolicited,
    grid,
    kind,
)

pytestmark = pytest.mark.lab

PATIENCE = 5
"""Seconds to wait for what must come; only a failing test waits that long."""
SILENCE = 0.3
"""Seconds of silence that count as a drop, where a fence is not possible: TCP."""

IP_RECVERR, IPV6_RECVERR, SO_ATTACH_FILTER = 11, 25, 26
SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6 = 2, 3
P, Q = 5000, 5001


class Net:
    """Both ends of a laboratory for one family, every socket closed at the end."""

    def __init__(self, lab: Lab, stack: ExitStack, ipv6: bool) -> None:
        self.lab, self.stack, self.ipv6 = lab, stack, ipv6
        self.family = socket.AF_INET6 if ipv6 else socket.AF_INET
        a, b = lab.server_addresses(ipv6=ipv6)
        self.endpoints = {"A:p": (a, P), "A:q": (a, Q), "B:p": (b, P), "B:q": (b, Q)}
        self.udp = {name: self.server_udp(*end) for name, end in self.endpoints.items()}

    def keep(self, sock: socket.socket) -> socket.socket:
        return self.stack.enter_context(sock)

    def server_udp(self, host: str, port: int) -> socket.socket:
        sock = self.keep(self.lab.server.socket(self.family))
        sock.bind((host, port))
        sock.settimeout(PATIENCE)
        return sock

    def host_udp(self, port: int = 0, host: str = "host") -> socket.socket:
        machine = self.lab[host]
        sock = self.keep(machine.socket(self.family))
        sock.bind((machine.ipv6 if self.ipv6 else machine.ipv4, port))
        sock.settimeout(PATIENCE)
        return sock

    def tcp(self, machine: str, host: str, port: int) -> socket.socket:
        sock = self.keep(self.lab[machine].socket(self.family, socket.SOCK_STREAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        return sock

    def after_fence(
        self, sock: socket.socket, mapped: tuple[str, int]
    ) -> tuple[bytes, tuple[str, int]] | None:
        """Return what came to ``sock`` before a packet that A:p sends to it now."""
        self.udp["A:p"].sendto(b"fence", mapped)
        first = received(sock)
        if first[0] == b"fence":
            return None
        assert received(sock)[0] == b"fence"
        return first

    def seen(self, sock: socket.socket, name: str) -> tuple[str, int]:
        """Send from ``sock`` to an endpoint; return the source that the server sees."""
        sock.sendto(b"?", self.endpoints[name])
        _, source = self.udp[name].recvfrom(100)
        return source[0], source[1]


@contextmanager
def network(*args: object, ipv6: bool = False, **options: object) -> Iterator[Net]:
    lab = Lab.nat(*args, server_command=(), ipv6="nat" if ipv6 else "off", **options)
    with lab, ExitStack() as stack:
        yield Net(lab, stack, ipv6)


def received(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    data, source = sock.recvfrom(100)
    return data, (source[0], source[1])


@pytest.fixture(autouse=True)
def one_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def mapping_of(seen: dict[str, tuple[str, int]], local: tuple[str, int]) -> Mapping:
    values = list(seen.values())
    if len(set(values)) == 1:
        return Mapping.NONE if values[0] == local else Mapping.ENDPOINT_INDEPENDENT
    if seen["A:p"] == seen["A:q"] and seen["B:p"] == seen["B:q"]:
        return Mapping.ADDRESS_DEPENDENT
    assert len(set(values)) == 4, seen
    return Mapping.ADDRESS_AND_PORT_DEPENDENT


def filtering_of(let_in: set[str]) -> Filtering:
    return {
        frozenset(): Filtering.ADDRESS_AND_PORT_DEPENDENT,
        frozenset({"A:q"}): Filtering.ADDRESS_DEPENDENT,
        frozenset({"A:q", "B:p", "B:q"}): Filtering.ENDPOINT_INDEPENDENT,
    }[frozenset(let_in)]


def udp_mapping(net: Net) -> Mapping:
    sock = net.host_udp()
    seen = {name: net.seen(sock, name) for name in net.endpoints}
    # The way back, and stability: an answer arrives, and asking again shows the same mapping.
    for name, source in seen.items():
        net.udp[name].sendto(name.encode(), source)
        assert received(sock) == (name.encode(), net.endpoints[name])
        assert net.seen(sock, name) == source
    return mapping_of(seen, sock.getsockname()[:2])


def udp_filtering(net: Net) -> Filtering:
    sock = net.host_udp()
    mapped = net.seen(sock, "A:p")
    let_in = set()
    for name in ("B:q", "B:p", "A:q"):
        net.udp[name].sendto(name.encode(), mapped)
        got = net.after_fence(sock, mapped)
        if got is not None:
            assert got == (name.encode(), net.endpoints[name])
            let_in.add(name)
            # What answers a stranger goes out through the mapping that the stranger came in by.
            assert net.seen(sock, name) == mapped
    return filtering_of(let_in)


def allocation_of(pairs: list[tuple[int, int]]) -> tuple[Allocation, int | None]:
    if all(local == external for local, external in pairs):
        return Allocation.PRESERVED, 0
    steps = {after - before for (_, before), (_, after) in pairwise(pairs)}
    if len(steps) == 1:
        return Allocation.SEQUENTIAL, steps.pop()
    assert len(steps) == len(pairs) - 1
    return Allocation.RANDOM, None


def udp_allocation(net: Net) -> tuple[Allocation, int | None]:
    socks = [net.host_udp() for _ in range(8)]
    return allocation_of([(s.getsockname()[1], net.seen(s, "A:p")[1]) for s in socks])


class Tcp:
    """Connections from one local port of the host, and back to it."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.listeners = {}
        for name, (host, port) in net.endpoints.items():
            listener = net.tcp("server", host, port)
            listener.listen()
            listener.settimeout(PATIENCE)
            self.listeners[name] = listener
        self.local = net.lab.host.ipv6 if net.ipv6 else net.lab.host.ipv4

    def connect(self, name: str, port: int = 0) -> tuple[int, tuple[str, int]]:
        """Connect from ``port``; return the local port and the source that the server sees."""
        sock = self.net.tcp("host", self.local, port)
        sock.settimeout(PATIENCE)
        sock.connect(self.net.endpoints[name])
        accepted, source = self.listeners[name].accept()
        self.net.keep(accepted)
        return sock.getsockname()[1], (source[0], source[1])

    def mapping(self) -> Mapping:
        port, first = self.connect("A:p")
        seen = {"A:p": first}
        for name in ("A:q", "B:p", "B:q"):
            seen[name] = self.connect(name, port)[1]
        return mapping_of(seen, (self.local, port))

    def allocation(self) -> tuple[Allocation, int | None]:
        pairs = [self.connect("A:p") for _ in range(8)]
        return allocation_of([(local, source[1]) for local, source in pairs])

    def dial_back(self, name: str, mapped: tuple[str, int], port: int) -> str:
        """Connect from a server's endpoint to the host's mapping: open, drop, rst or icmp."""
        sock = self.net.tcp("server", *self.net.endpoints[name])
        level = socket.IPPROTO_IPV6 if self.net.ipv6 else socket.IPPROTO_IP
        sock.setsockopt(level, IPV6_RECVERR if self.net.ipv6 else IP_RECVERR, 1)
        sock.setblocking(False)
        sock.connect_ex(mapped)
        _, writable, _ = select.select([], [sock], [], SILENCE)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if writable else None
        origin = None
        try:
            _, ancillary, _, _ = sock.recvmsg(100, 512, socket.MSG_ERRQUEUE)
            for _, _, data in ancillary:
                origin = struct.unpack_from("=IB", data)[1]
        except OSError:
            pass
        sock.close()
        if origin in (SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6):
            return "icmp"
        if code is None:
            return "drop"
        return {0: "open", errno.ECONNREFUSED: "rst"}[code]

    def filtering(self) -> tuple[Filtering, set[str]]:
        """Return the filtering and what refused connections met."""
        port, mapped = self.connect("A:p")
        listener = self.net.tcp("host", self.local, port)
        listener.listen()
        outcomes = {}
        # From ports that were never contacted, so the listeners there must go.
        for name in ("B:q", "B:p", "A:q"):
            self.listeners.pop(name).close()
            outcomes[name] = self.dial_back(name, mapped, port)
        let_in = {name for name, outcome in outcomes.items() if outcome == "open"}
        return filtering_of(let_in), set(outcomes.values()) - {"open"}


def names(kinds: object) -> list[str]:
    return [k.name for k in kinds]


ALL = names(grid()) + names(NAMED_KINDS)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("name", ALL)
def test_udp_is_what_the_model_says(name: str, family: str) -> None:
    chosen = kind(name)
    expected = chosen.expected
    with network(name, ipv6=family == "ipv6") as net:
        if any(box.udp_blocked for box in chosen.boxes):
            net.udp["A:p"].settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                net.seen(net.host_udp(), "A:p")
            return
        assert udp_mapping(net) is expected.mapping
        found = udp_filtering(net)
        if expected.filtering is Filtering.NONE:
            assert found is Filtering.ENDPOINT_INDEPENDENT
        else:
            assert found is expected.filtering
        pattern, delta = udp_allocation(net)
        assert pattern is expected.allocation
        if pattern is Allocation.SEQUENTIAL:
            assert delta == chosen.boxes[0].delta


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("name", ALL)
def test_tcp_is_what_the_model_says(name: str, family: str) -> None:
    chosen = kind(name)
    expected = chosen.expected
    with network(name, ipv6=family == "ipv6") as net:
        tcp = Tcp(net)
        if any(box.tcp_blocked for box in chosen.boxes):
            sock = net.tcp("host", tcp.local, 0)
            sock.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                sock.connect(net.endpoints["A:p"])
            return
        assert tcp.mapping() is expected.mapping
        assert tcp.allocation()[0] is expected.allocation
        filtering, refusals = tcp.filtering()
        if expected.filtering is Filtering.NONE:
            assert filtering is Filtering.ENDPOINT_INDEPENDENT
        else:
            assert filtering is expected.filtering
        if refusals:
            assert refusals == {chosen.boxes[-1].unsolicited_tcp.value}


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("unsolicited", [Unsolicited.DROP, Unsolicited.RST, Unsolicited.ICMP])
@pytest.mark.parametrize("name", ["port-restricted-cone", "adm+adf+random", "firewall"])
def test_an_uninvited_syn_meets_what_was_asked_for(
    name: str, unsolicited: Unsolicited, family: str
) -> None:
    with network(name, ipv6=family == "ipv6", tcp_unsolicited=unsolicited) as net:
        tcp = Tcp(net)
        assert tcp.filtering()[1] == {unsolicited.value}
        outside = net.lab.box().ipv6 if net.ipv6 else net.lab.box().ipv4
        if name != "firewall":
            # To a port of the NAT that nothing maps: nobody is there either.
            tcp.listeners.pop("A:p").close()
            assert tcp.dial_back("A:p", (outside, 999), 0) == unsolicited.value


def test_open_to_uninvited_syns_leaves_udp_as_it_was() -> None:
    with network("port-restricted-cone", tcp_unsolicited="open") as net:
        assert Tcp(net).filtering()[0] is Filtering.ENDPOINT_INDEPENDENT
        assert udp_filtering(net) is Filtering.ADDRESS_AND_PORT_DEPENDENT


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("name", [k.name for k in grid() if k.name.startswith("eim")])
def test_tcp_simultaneous_open_succeeds_through_a_silent_nat(name: str, family: str) -> None:
    with network(name, ipv6=family == "ipv6") as net:
        tcp = Tcp(net)
        port, mapped = tcp.connect("A:p")
        # The server's port swallows bare SYNs: a listener whose filter accepts no octet.
        tcp.listeners.pop("B:q").close()
        silent = net.tcp("server", *net.endpoints["B:q"])
        silent.listen()
        program = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
        filters = struct.pack("=H6xQ", 1, ctypes.addressof(program))
        silent.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filters)
        inner = net.tcp("host", tcp.local, port)
        inner.setblocking(False)
        inner.connect_ex(net.endpoints["B:q"])
        assert not select.select([], [inner], [], SILENCE)[1]
        outer = net.tcp("server", *net.endpoints["B:q"])
        outer.setblocking(False)
        outer.connect_ex(mapped)
        assert select.select([], [inner], [], PATIENCE)[1]
        assert inner.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        inner.send(b"hello")
        assert select.select([outer], [], [], PATIENCE)[0]
        assert outer.recv(100) == b"hello"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("point", names(grid()))
def test_hairpinning_shows_the_external_source_and_keeps_the_filter(
    point: str, family: str
) -> None:
    model = kind(point).boxes[0]
    with network(point, ipv6=family == "ipv6", hairpin=True) as net:
        a, b = net.host_udp(), net.host_udp()
        mapped_a, mapped_b = net.seen(a, "A:p"), net.seen(b, "A:p")
        b.sendto(b"permit", mapped_a)
        first = net.after_fence(a, mapped_a)
        assert (first is not None) == (model.filtering is Filtering.ENDPOINT_INDEPENDENT)
        a.sendto(b"nonce", mapped_b)
        got = net.after_fence(b, mapped_b)
        if model.mapping is Mapping.ENDPOINT_INDEPENDENT:
            # RFC 4787 REQ-9: from the sender's external address and port.
            assert got == (b"nonce", mapped_a)
        elif model.filtering is Filtering.ENDPOINT_INDEPENDENT:
            assert got is not None
            assert got[1][0] == mapped_a[0]
        else:
            # What b sent went out through another mapping and permits nothing to this one.
            assert got is None


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("point", names(grid()))
def test_without_hairpinning_nothing_turns_round(point: str, family: str) -> None:
    with network(point, ipv6=family == "ipv6") as net:
        a, b = net.host_udp(), net.host_udp()
        mapped_a, mapped_b = net.seen(a, "A:p"), net.seen(b, "A:p")
        b.sendto(b"permit", mapped_a)
        a.sendto(b"nonce", mapped_b)
        assert net.after_fence(b, mapped_b) is None
        assert net.after_fence(a, mapped_a) is None


def test_tcp_hairpins_too() -> None:
    with network("full-cone-hairpin") as net:
        tcp = Tcp(net)
        port, mapped = tcp.connect("A:p")
        listener = net.tcp("host", tcp.local, port)
        listener.listen()
        listener.settimeout(PATIENCE)
        other, outside = tcp.connect("A:p")
        sock = net.tcp("host", tcp.local, other)
        sock.settimeout(PATIENCE)
        sock.connect(mapped)
        accepted, source = listener.accept()
        with accepted:
            assert source == outside


@pytest.mark.parametrize("point", ["eim+apdf+preserved", "eim+apdf+random", "adm+apdf+sequential"])
@pytest.mark.parametrize("poisoned", [True, False])
def test_a_stranger_who_knocks_first_costs_the_mapping_only_if_poisoned(
    point: str, poisoned: bool
) -> None:
    model = replace(kind(point).boxes[0], remaps_after_inbound=poisoned)
    with network(model) as net:
        sock = net.host_udp()
        mapped = net.seen(sock, "A:p")
        net.udp["B:q"].sendto(b"knock", mapped)
        assert net.after_fence(sock, mapped) is None
        control, asked = net.seen(sock, "B:p"), net.seen(sock, "B:q")
        if model.mapping is Mapping.ENDPOINT_INDEPENDENT:
            assert control == mapped
        assert (asked == control) == (not poisoned)


@pytest.mark.parametrize("point", ["eim+eif+preserved", "eim+adf+random", "adm+eif+sequential"])
def test_mappings_live_as_long_as_was_asked_for(point: str) -> None:
    """Two lifetimes: one exchange, and packets both ways for over two seconds."""
    with network(point, udp_timeout=1, udp_stream_timeout=3) as net:
        one_shot, stream = net.host_udp(), net.host_udp()
        mapped = net.seen(one_shot, "A:p")
        talking = net.seen(stream, "A:p")
        for _ in range(6):
            net.udp["A:p"].sendto(b"!", talking)
            assert received(stream)[0] == b"!"
            time.sleep(0.4)
            assert net.seen(stream, "A:p") == talking
        time.sleep(2)
        net.udp["A:p"].sendto(b"still there?", talking)
        assert received(stream)[0] == b"still there?"
        # The fence of the one that is gone arrives through the one that is not.
        net.udp["A:p"].sendto(b"gone?", mapped)
        net.udp["A:p"].sendto(b"fence", talking)
        assert received(stream)[0] == b"fence"
        one_shot.setblocking(False)
        with pytest.raises(BlockingIOError):
            received(one_shot)
        time.sleep(3.2)
        net.udp["A:p"].sendto(b"gone?", talking)
        fence = net.host_udp()
        net.udp["A:p"].sendto(b"fence", net.seen(fence, "A:p"))
        assert received(fence)[0] == b"fence"
        stream.setblocking(False)
        with pytest.raises(BlockingIOError):
            received(stream)


@pytest.mark.parametrize("point", names(grid()))
def test_a_box_that_reboots_forgets_everything(point: str) -> None:
    with network(point) as net:
        sock = net.host_udp()
        mapped = net.seen(sock, "A:p")
        net.lab.box().flush()
        net.udp["A:p"].sendto(b"anybody?", mapped)
        again = net.seen(sock, "A:p")
        assert net.after_fence(sock, again) is None
        assert (again == mapped) == point.endswith("preserved")


def test_double_nat_and_a_firewall_in_front_of_a_nat() -> None:
    models = (
        NatModel(mapping=Mapping.NONE, filtering=Filtering.ADDRESS_DEPENDENT),
        NatModel(filtering=Filtering.ENDPOINT_INDEPENDENT, allocation=Allocation.RANDOM),
    )
    with network(models) as net:
        assert udp_mapping(net) is Mapping.ENDPOINT_INDEPENDENT
        assert udp_filtering(net) is Filtering.ADDRESS_DEPENDENT


def test_two_firewalls_in_a_row_route_and_filter() -> None:
    inner = NatModel(mapping=Mapping.NONE, filtering=Filtering.ADDRESS_DEPENDENT)
    outer = NatModel(mapping=Mapping.NONE, filtering=Filtering.ENDPOINT_INDEPENDENT)
    for ipv6 in (False, True):
        with network((inner, outer), ipv6=ipv6) as net:
            assert udp_mapping(net) is Mapping.NONE
            assert udp_filtering(net) is Filtering.ADDRESS_DEPENDENT


def test_hosts_of_one_site_share_a_lan_and_an_external_address() -> None:
    with network("full-cone", hosts=("host", "second")) as net:
        one, two = net.host_udp(), net.host_udp(host="second")
        two.sendto(b"neighbour", one.getsockname())
        assert received(one) == (b"neighbour", two.getsockname())
        assert net.seen(one, "A:p")[0] == net.seen(two, "A:p")[0] == net.lab.box().ipv4


def test_routed_ipv6_filters_and_does_not_translate() -> None:
    with Lab.nat("symmetric", ipv6="routed", server_command=()) as lab, ExitStack() as stack:
        net = Net(lab, stack, ipv6=True)
        assert udp_mapping(net) is Mapping.NONE
        assert udp_filtering(net) is Filtering.ADDRESS_AND_PORT_DEPENDENT


def test_sites_reach_one_another_through_their_mappings() -> None:
    with Lab.pair("full-cone", "symmetric", server_command=()) as lab, ExitStack() as stack:
        server = stack.enter_context(lab.server.socket())
        server.bind((lab.server_addresses()[0], P))
        server.settimeout(PATIENCE)
        a, b = (stack.enter_context(machine.socket()) for machine in (lab.a, lab.b))
        a.sendto(b"?", server.getsockname())
        _, mapped = server.recvfrom(10)
        b.sendto(b"through", mapped)
        a.settimeout(PATIENCE)
        data, source = a.recvfrom(100)
        assert data == b"through"
        assert source[0] == lab.box(0, "b").ipv4
        a.sendto(b"back", source)
        b.settimeout(PATIENCE)
        assert b.recvfrom(100) == (b"back", mapped)


def test_what_the_kernel_cannot_express_is_refused_with_a_reason() -> None:
    with pytest.raises(Unsupported, match="contradicts itself"):
        Lab.nat(NatModel(mapping=Mapping.ADDRESS_DEPENDENT))
    with pytest.raises(Unsupported, match="no mapping"):
        Lab(
            Site(kind("firewall")),
            Site(
                replace(
                    kind("firewall"),
                    boxes=(NatModel(mapping=Mapping.NONE, remaps_after_inbound=True),),
                ),
                name="b",
                hosts=("b",),
            ),
        )
