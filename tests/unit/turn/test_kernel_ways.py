"""What netlink says, read from octets: the cases that the laboratory's kernel does not show."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from turn.dataplane.kernel import netlink as module
from turn.dataplane.kernel.ways import Interface, Way, Ways

NEW_LINK, NEW_ROUTE, ERROR, DONE = 16, 24, 2, 3
UP, LOOPBACK = 1, 8
ETHER, NONE = 1, 0xFFFE
SLAVE_VRF, SLAVE_BRIDGE = b"vrf\0", b"bridge\0"


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def link(
    index: int, name: str, *, flags: int = UP, kind: int = ETHER, master: bytes | None = None
) -> bytes:
    body = struct.pack("=BBHiII", 0, 0, kind, index, flags, 0)
    body += attribute(3, name.encode() + b"\0") + attribute(4, number(1500))
    if master is not None:
        body += attribute(10, number(77)) + attribute(18 | 0x8000, attribute(4, master))
    return body


def route(*attributes: bytes, kind: int = 1) -> bytes:
    body = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 2, 0, kind, 0)
    return body + b"".join(attributes)


class Kernel:
    """A netlink socket that answers what the test says."""

    def __init__(self) -> None:
        self.links: list[bytes] = [link(2, "eth0")]
        self.route = route(attribute(4, number(2)))
        self.refuses = 0
        self.interrupted = 0
        """How many dumps are to be marked as not whole."""
        self.news: list[bytes | OSError] = []
        self.closed = 0
        self.policies: list[bytes] | None = None
        """``None``: the kernel has no IPsec."""
        self._answers: list[bytes] = []
        self._pair = socket.socketpair()

    def message(self, kind: int, body: bytes, sequence: int, flags: int = 0) -> bytes:
        octets = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body
        return octets + bytes(-len(octets) % 4)

    def send(self, octets: bytes) -> None:
        _, kind, _, sequence, _ = struct.unpack_from("=IHHII", octets)
        old = self.message(NEW_LINK, link(99, "old"), sequence - 1)  # an answer nobody waits for
        if self.refuses:
            body = struct.pack("=i", -self.refuses)
            self._answers = [old + self.message(ERROR, body, sequence)]
        elif kind in {18, 0x15}:
            flags = 0x10 if self.interrupted else 0
            self.interrupted = max(0, self.interrupted - 1)
            told, table = (NEW_LINK, self.links) if kind == 18 else (0x13, self.policies or [])
            several = b"".join(self.message(told, one, sequence, flags) for one in table)
            self._answers = [old, several, self.message(DONE, bytes(4), sequence)]
        else:
            self._answers = [old + self.message(NEW_ROUTE, self.route, sequence)]

    def recv(self, size: int) -> bytes:
        assert size >= 1 << 15
        if self._answers:
            return self._answers.pop(0)
        if not self.news:
            raise BlockingIOError
        told = self.news.pop(0)
        if isinstance(told, OSError):
            raise told
        return told

    def setblocking(self, value: bool) -> None: ...

    def settimeout(self, value: float) -> None: ...

    def bind(self, address: tuple[int, int]) -> None: ...

    def fileno(self) -> int:
        return self._pair[0].fileno()

    def close(self) -> None:
        self.closed += 1

    def end(self) -> None:
        for sock in self._pair:
            sock.close()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made, xfrm = Kernel(), Kernel()

    class Fake:
        def __getattr__(self, name: str) -> object:
            return getattr(socket, name)

        def socket(self, family: int, kind: int, protocol: int) -> Kernel:
            if protocol == 0:
                return made
            if made.policies is None:
                raise OSError(errno.EPROTONOSUPPORT, "no IPsec")
            xfrm.policies = made.policies
            return xfrm

    monkeypatch.setattr(module, "socket", Fake())
    yield made
    made.end()
    xfrm.end()


@pytest.fixture
def ways(kernel: Kernel) -> Iterator[Ways]:
    made = Ways()
    yield made
    made.close()
    assert made.fileno() == -1


def ask(kernel: Kernel) -> Way | None:
    ways = Ways()
    try:
        return ways.way_of("192.0.2.1", "192.0.2.2")
    finally:
        ways.close()


def names(kernel: Kernel) -> list[int]:
    ways = Ways()
    ways.close()
    return list(ways.interfaces())


def test_an_ordinary_route(kernel: Kernel) -> None:
    assert ask(kernel) == Way(2, 1500)


@pytest.mark.parametrize(
    "answer",
    [
        route(attribute(4, number(2)), kind=2),  # local
        route(attribute(4, number(2)), kind=3),  # broadcast
        route(attribute(4, number(2)), kind=7),  # unreachable
        route(),
        route(attribute(4, number(3))),  # by an interface that is no Ethernet
        route(attribute(4, b"\2\0")),
        route(attribute(4, number(2)), attribute(21, b"\1\0"), attribute(22 | 0x8000, b"")),  # MPLS
        b"",
        b"\2\0",
    ],
)
def test_what_is_no_way(kernel: Kernel, answer: bytes) -> None:
    kernel.route = answer
    assert ask(kernel) is None


@pytest.mark.parametrize(("learned", "mtu"), [(1280, 1280), (9000, 1500)])
def test_the_smaller_mtu_counts(kernel: Kernel, learned: int, mtu: int) -> None:
    metrics = attribute(1, number(0)) + attribute(2, number(learned))
    kernel.route = route(attribute(4, number(2)), attribute(8 | 0x8000, metrics))
    assert ask(kernel) == Way(2, mtu)


def test_what_the_kernel_refuses_is_no_way(kernel: Kernel, ways: Ways) -> None:
    kernel.refuses = errno.ENETUNREACH
    assert ways.way_of("192.0.2.1", "192.0.2.2") is None


def test_what_is_an_interface(kernel: Kernel) -> None:
    kernel.links = [
        link(1, "lo", flags=UP | LOOPBACK, kind=772),
        link(2, "eth0"),
        link(3, "down0", flags=0),
        link(4, "tun0", kind=NONE),
        link(5, "port0", master=SLAVE_BRIDGE),
        link(6, "red0", master=SLAVE_VRF),
        b"short",
    ]
    ways = Ways()
    ways.close()
    assert ways.interfaces() == {
        2: Interface("eth0", 1500, is_port=False),
        6: Interface("red0", 1500, is_port=False),
    }


def test_a_table_that_changed_meanwhile_is_read_again(kernel: Kernel) -> None:
    kernel.interrupted = 2
    assert names(kernel) == [2]
    kernel.interrupted = 1000
    with pytest.raises(OSError, match="faster than they are read"):
        Ways()


def test_only_news_of_links_have_the_links_read_again(kernel: Kernel, ways: Ways) -> None:
    kernel.links = [link(2, "eth0"), link(3, "eth1")]
    kernel.news = [kernel.message(NEW_ROUTE, b"", 0)]
    assert ways.changed()
    assert list(ways.interfaces()) == [2]
    kernel.news = [kernel.message(NEW_ROUTE, b"", 0), kernel.message(NEW_LINK, b"", 0)]
    assert ways.changed()
    assert list(ways.interfaces()) == [2, 3]
    assert not ways.changed()


def test_news_that_were_lost_may_have_been_of_links(kernel: Kernel, ways: Ways) -> None:
    kernel.links = [link(7, "eth7")]
    kernel.news = [OSError(errno.ENOBUFS, "")]
    assert ways.changed()
    assert list(ways.interfaces()) == [7]
    kernel.news = [OSError(errno.EBADF, "closed")]
    with pytest.raises(OSError, match="closed"):
        ways.changed()


def test_where_netlink_cannot_be_had_nothing_is_left_open(kernel: Kernel) -> None:
    kernel.refuses = errno.EPERM
    with pytest.raises(OSError, match="not permitted"):
        Ways()
    assert kernel.closed == 2


# IPsec. -------------------------------------------------------------------------------------------


def policy(
    *, to: str = "192.0.2.0", bits: int = 24, of: str = "0.0.0.0", of_bits: int = 0,
    protocol: int = 0, ports: bytes = bytes(8), interface: int = 0, priority: int = 0,
    direction: int = 1, action: int = 0, templates: bytes = bytes(64),
) -> bytes:  # fmt: skip
    """A struct xfrm_userpolicy_info and its attributes, in the kernel's words."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    hosts = [socket.inet_pton(family, host).ljust(16, b"\0") for host in (to, of)]
    body = struct.pack(
        "@16s16s8sHBBBiI", *hosts, ports, family, bits, of_bits, protocol, interface, 0
    )
    body += struct.pack("@8Q4Q", *[1 << 63] * 12)
    body += struct.pack("@IIBBBB4x", priority, 9, direction, action, 0, 0)
    return body + (attribute(5, templates) if templates else b"")


PLAIN = b""


@pytest.mark.parametrize(
    ("policies", "plain"),
    [
        ([], True),
        ([policy()], False),
        ([policy(to="192.0.2.2", bits=32)], False),
        ([policy(to="192.0.2.3", bits=32)], True),
        ([policy(to="0.0.0.0", bits=0)], False),
        ([policy(of="192.0.2.1", of_bits=32)], False),
        ([policy(of="192.0.2.9", of_bits=32)], True),
        ([policy(to="::", bits=0, of="::")], True),
        ([policy(direction=0)], True),
        ([policy(direction=2)], True),
        ([policy(action=1, templates=PLAIN)], False),
        ([policy(templates=PLAIN)], True),
        ([policy(protocol=17)], False),
        ([policy(protocol=6)], True),
        ([policy(ports=b"\0\x50\xff\xff" + bytes(4))], False),
        ([policy(interface=3)], False),
        # What is asked first decides, and an exception for a port is none for the others.
        ([policy(priority=7), policy(priority=3, templates=PLAIN)], True),
        ([policy(priority=3), policy(priority=7, templates=PLAIN)], False),
        ([policy(priority=7), policy(priority=3, templates=PLAIN, interface=2)], False),
        ([policy(priority=7), policy(priority=3, templates=PLAIN, protocol=6)], False),
        ([b"short", policy()], False),
    ],
)
def test_what_ipsec_protects_or_forbids_is_no_way(
    kernel: Kernel, policies: list[bytes], plain: bool
) -> None:
    kernel.policies = policies
    assert ask(kernel) == (Way(2, 1500) if plain else None)
