"""Transport addresses as the kernel writes them."""

from __future__ import annotations

import socket

import pytest

from stun.sansio import Address
from turn.dataplane.names import NAME_SIZE, pack_name, unpack_name


@pytest.mark.parametrize(
    "address_",
    [Address("192.0.2.1", 1), Address("2001:db8::1", 65535), Address("fe80::1%lo", 3478)],
    ids=str,
)
def test_a_name_says_which_address_it_is(address_: Address) -> None:
    assert unpack_name(pack_name(address_)) == address_


@pytest.mark.parametrize("address_", [Address("example.org", 1), Address("::1%nope", 1)], ids=str)
def test_what_is_no_address_has_no_name(address_: Address) -> None:
    with pytest.raises(OSError, match=r".+"):
        pack_name(address_)


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_has_no_name(port: int) -> None:
    with pytest.raises(OverflowError):
        pack_name(Address("192.0.2.1", port))


def test_a_name_is_what_the_kernel_has_behind_the_family() -> None:
    assert pack_name(Address("192.0.2.1", 258)) == b"\x01\x02\xc0\x00\x02\x01" + bytes(8)
    packed = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    assert pack_name(Address("2001:db8::1", 258)) == b"\x01\x02" + bytes(4) + packed + bytes(4)
    for host, ipv6 in (("192.0.2.1", False), ("2001:db8::1", True)):
        assert len(pack_name(Address(host, 1))) == NAME_SIZE[ipv6] - 2
