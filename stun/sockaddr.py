"""Transport addresses as the system writes them, and its errors as a machine reads them."""

from __future__ import annotations

import errno
import os
import socket

from stun.sansio import Address, Cause

_new_tuple = tuple.__new__


def family_of(address: Address) -> socket.AddressFamily:
    """Return the address family of a numeric transport address."""
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def to_sockaddr(address: Address) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return what the socket calls take.

    A zone (``%eth0``) becomes the scope id.  Raises ``OSError`` when there is no such interface.
    """
    host, port = address
    if "%" not in host:
        return address
    host, _, zone = host.partition("%")
    return host, port, 0, int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)


def from_sockaddr(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """Return the :class:`Address` of what the socket calls give."""
    if len(sockaddr) == 2:
        # The tuple holds just the two fields already; this is on the path of every datagram and
        # three times as fast as Address(host, port).
        return _new_tuple(Address, sockaddr)
    host, port, _, scope = sockaddr
    if scope and "%" not in host:
        try:
            host = f"{host}%{socket.if_indextoname(scope)}"
        except OSError:  # the interface went away between the packet and this line
            host = f"{host}%{scope}"
    return Address(host, port)


def is_wildcard(host: str) -> bool:
    """Whether a socket bound to this host takes packets for every local address."""
    return host in {"0.0.0.0", "::"}  # noqa: S104  (a comparison, not a bind)


# What ICMP can do to a connection attempt: RFC 1122 4.2.3.9 (IPv4) and RFC 4443 3.1 (IPv6), in the
# numbers that Linux and the BSDs translate them to.
_UNREACHABLE = {
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    getattr(errno, "ENONET", errno.EHOSTUNREACH),
}
_STREAM_CAUSES = {
    errno.ECONNREFUSED: Cause.REFUSED,
    errno.ECONNRESET: Cause.RESET,
    errno.EPIPE: Cause.RESET,
    errno.ECONNABORTED: Cause.RESET,
    errno.ETIMEDOUT: Cause.TIMED_OUT,
    # With the local port given, "cannot assign requested address" from connect(2) says that this
    # pair of endpoints is taken already.
    errno.EADDRNOTAVAIL: Cause.ADDRESS_IN_USE,
    errno.EADDRINUSE: Cause.ADDRESS_IN_USE,
    # ICMPv6 "administratively prohibited" and "reject route" arrive as EACCES.
    errno.EACCES: Cause.UNREACHABLE,
    errno.EPERM: Cause.NOT_PERMITTED,
    **dict.fromkeys(_UNREACHABLE, Cause.UNREACHABLE),
}
_BIND_CAUSES = {
    errno.EADDRINUSE: Cause.ADDRESS_IN_USE,
    errno.EADDRNOTAVAIL: Cause.ADDRESS_NOT_AVAILABLE,
    errno.EAFNOSUPPORT: Cause.ADDRESS_NOT_AVAILABLE,
    errno.ENODEV: Cause.ADDRESS_NOT_AVAILABLE,
    errno.ENXIO: Cause.ADDRESS_NOT_AVAILABLE,
    errno.EACCES: Cause.NOT_PERMITTED,
    errno.EPERM: Cause.NOT_PERMITTED,
}


def cause_of_stream(error: OSError) -> Cause:
    """Say why a stream ended or was not established."""
    return _STREAM_CAUSES.get(error.errno or 0, Cause.OTHER)


def cause_of_bind(error: OSError) -> Cause:
    """Say why a local address could not be had."""
    return _BIND_CAUSES.get(error.errno or 0, Cause.OTHER)


def detail_of(error: OSError) -> str:
    """Return the system's own words for an error, without the bracketed number."""
    return os.strerror(error.errno) if error.errno else str(error)
