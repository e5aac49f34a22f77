"""Addresses between us and the system, and which errno means what."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from stun.sansio import Address, Cause
from stun.sockaddr import (
    cause_of_bind,
    cause_of_stream,
    detail_of,
    family_of,
    from_sockaddr,
    is_wildcard,
    to_sockaddr,
)


@pytest.mark.parametrize(
    ("sockaddr", "address"),
    [
        (("192.0.2.1", 80), Address("192.0.2.1", 80)),
        (("2001:db8::1", 80, 0, 0), Address("2001:db8::1", 80)),
        (("2001:db8::1", 80, 12345, 0), Address("2001:db8::1", 80)),
        (("fe80::1%lo", 80, 0, 1), Address("fe80::1%lo", 80)),
    ],
)
def test_what_the_system_gives(
    sockaddr: tuple[str, int] | tuple[str, int, int, int], address: Address
) -> None:
    found = from_sockaddr(sockaddr)
    assert found == address
    assert type(found) is Address
    assert found.is_ipv6 is (":" in address.host)


def test_a_zone_there_and_back() -> None:
    index, name = socket.if_nameindex()[0]
    assert from_sockaddr(("fe80::1", 80, 0, index)) == Address(f"fe80::1%{name}", 80)
    assert to_sockaddr(Address(f"fe80::1%{name}", 80)) == ("fe80::1", 80, 0, index)
    assert to_sockaddr(Address(f"fe80::1%{index}", 80)) == ("fe80::1", 80, 0, index)


def test_a_zone_that_is_not_there() -> None:
    assert from_sockaddr(("fe80::1", 80, 0, 4_000_000)) == Address("fe80::1%4000000", 80)
    with pytest.raises(OSError, match="interface"):
        to_sockaddr(Address("fe80::1%nosuch", 80))


def test_families_and_wildcards() -> None:
    assert family_of(Address("192.0.2.1", 0)) == socket.AF_INET
    assert family_of(Address("::1", 0)) == socket.AF_INET6
    assert [is_wildcard(host) for host in ("0.0.0.0", "::", "127.0.0.1", "::1")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("number", "stream", "bind"),
    [
        (errno.ECONNREFUSED, Cause.REFUSED, Cause.OTHER),
        (errno.ECONNRESET, Cause.RESET, Cause.OTHER),
        (errno.EPIPE, Cause.RESET, Cause.OTHER),
        (errno.EHOSTUNREACH, Cause.UNREACHABLE, Cause.OTHER),
        (errno.ENETUNREACH, Cause.UNREACHABLE, Cause.OTHER),
        (errno.EACCES, Cause.UNREACHABLE, Cause.NOT_PERMITTED),
        (errno.EPERM, Cause.NOT_PERMITTED, Cause.NOT_PERMITTED),
        (errno.ETIMEDOUT, Cause.TIMED_OUT, Cause.OTHER),
        (errno.EADDRINUSE, Cause.ADDRESS_IN_USE, Cause.ADDRESS_IN_USE),
        (errno.EADDRNOTAVAIL, Cause.ADDRESS_IN_USE, Cause.ADDRESS_NOT_AVAILABLE),
        (errno.EAFNOSUPPORT, Cause.OTHER, Cause.ADDRESS_NOT_AVAILABLE),
        (errno.EMFILE, Cause.OTHER, Cause.OTHER),
    ],
)
def test_causes(number: int, stream: Cause, bind: Cause) -> None:
    error = OSError(number, "")
    assert cause_of_stream(error) is stream
    assert cause_of_bind(error) is bind
    assert detail_of(error) == os.strerror(number)


def test_an_error_without_a_number_speaks_for_itself() -> None:
    assert cause_of_stream(OSError("strange")) is Cause.OTHER
    assert detail_of(OSError("strange")) == "strange"
