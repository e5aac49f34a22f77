"""What the kernel's tables look like, and what is made of tables that change or are refused."""

from __future__ import annotations

import random
import socket
import struct
import sys

import pytest

from ice import netlink

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")

LINK, ADDRESS = 16, 20
DONE, ERROR = 3, 2
INTERRUPTED = 0x10


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes = b"", flags: int = 0) -> tuple[int, int, bytes]:
    return kind, flags, body


def link(index: int, name: str, flags: int) -> tuple[int, int, bytes]:
    fixed = struct.pack("=BBHiII", 0, 0, 1, index, flags, 0)
    return message(LINK, fixed + attribute(3, name.encode() + b"\0") + attribute(99, b"?"))


def address(
    index: int, host: str, prefix: int, flags: int, **more: bytes
) -> tuple[int, int, bytes]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    octets = socket.inet_pton(family, host)
    fixed = struct.pack("=BBBBI", family, prefix, flags & 0xFF, 0, index)
    kinds = {"local": 2, "wide": 8}
    extra = b"".join(attribute(kinds[name], value) for name, value in more.items())
    return message(ADDRESS, fixed + attribute(1, octets) + extra)


class Kernel:
    """Answers each dump with the next of its tables, each a list of datagrams."""

    def __init__(self, *tables: list[list[tuple[int, int, bytes]]]) -> None:
        self.tables = list(tables)
        self.datagrams: list[bytes] = []
        self.asked: list[int] = []

    def send(self, octets: bytes) -> None:
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", octets)
        assert length == len(octets)
        self.asked.append(kind)
        for messages in self.tables.pop(0):
            self.datagrams.append(
                b"".join(
                    struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0)
                    + body
                    + bytes(-len(body) % 4)
                    for kind, flags, body in messages
                )
            )

    def recv(self, _: int) -> bytes:
        return self.datagrams.pop(0)

    def settimeout(self, _: float) -> None:
        pass

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):
    def ask(*tables: list[list[tuple[int, int, bytes]]]) -> list[netlink.KernelAddress]:
        kernel = Kernel(*tables)
        monkeypatch.setattr(netlink.socket, "socket", lambda *_: kernel)
        found = netlink.addresses()
        assert not kernel.datagrams
        return found

    return ask


END = message(DONE)


def test_two_tables(ask) -> None:
    found = ask(
        [[link(1, "lo", 9), link(2, "eth0", 0x43)], [END]],
        [
            [address(2, "192.0.2.1", 24, 0x80), address(2, "2001:db8::1", 64, 1)],
            [address(7, "192.0.2.9", 24, 0), END],
        ],
    )
    assert found == [
        netlink.KernelAddress("192.0.2.1", 24, 0x80, 2, "eth0", 0x43),
        netlink.KernelAddress("2001:db8::1", 64, netlink.TEMPORARY, 2, "eth0", 0x43),
        netlink.KernelAddress("192.0.2.9", 24, 0, 7, "", 0),
    ]


def test_the_local_end_of_a_point_to_point_link(ask) -> None:
    (found,) = ask(
        [[END]],
        [[address(3, "10.0.0.1", 32, 0, local=socket.inet_aton("10.0.0.2")), END]],
    )
    assert found.host == "10.0.0.2"


def test_flags_that_do_not_fit_into_an_octet(ask) -> None:
    wide = (0x900).to_bytes(4, sys.byteorder)
    (found,) = ask([[END]], [[address(3, "fe80::1", 64, 0, wide=wide), END]])
    assert found.flags == 0x900


def test_a_table_that_changed_meanwhile_is_asked_for_again(ask) -> None:
    torn = [[address(1, "10.0.0.1", 8, 0), message(DONE, flags=INTERRUPTED)]]
    torn[0][0] = (*torn[0][0][:1], INTERRUPTED, torn[0][0][2])
    whole = [[address(1, "10.0.0.2", 8, 0), END]]
    assert [found.host for found in ask([[END]], torn, whole)] == ["10.0.0.2"]


def test_one_that_goes_on_changing_is_taken_as_it_is(ask) -> None:
    kind, _, body = address(1, "10.0.0.1", 8, 0)
    torn = [[(kind, INTERRUPTED, body), END]]
    assert [found.host for found in ask([[END]], *[torn] * 5)] == ["10.0.0.1"]


def test_a_refusal(ask) -> None:
    with pytest.raises(OSError, match="refuses"):
        ask([[message(ERROR, bytes(20))]])


def test_what_is_no_address_of_a_known_family(ask) -> None:
    odd = message(ADDRESS, struct.pack("=BBBBI", 40, 0, 0, 0, 1) + attribute(1, b"12345"))
    short = message(
        ADDRESS, struct.pack("=BBBBI", socket.AF_INET6, 0, 0, 0, 1) + attribute(1, b"1234")
    )
    shorter = message(ADDRESS, b"123")
    assert ask([[END]], [[odd, short, shorter, END]]) == []


def test_octets_of_any_kind_end_the_walk(rng: random.Random) -> None:
    for _ in range(3000):
        octets = rng.randbytes(rng.randrange(64))
        assert len(list(netlink._messages(octets))) <= 4
        assert len(list(netlink._attributes(octets, 0))) <= 16


def test_changes_are_silent_until_there_are_some() -> None:
    with netlink.Changes() as changes:
        assert changes.fileno() >= 0
        assert changes.take() is False
