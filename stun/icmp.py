"""What ICMP says about packets that a socket sent: the kernel's error queue (Linux, ip(7)).

With IP_RECVERR the kernel keeps each ICMP error with its type and code, which the error number that
a socket call returns has lost: "port unreachable" for a SYN, which RFC 5382 REQ-4 has NATs send,
comes out of connect(2) as the ECONNREFUSED that a RST gives as well.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

from stun.sansio import Address
from stun.sockaddr import from_sockaddr

BATCH = 64
"""Errors read in one go."""

ANCILLARY = socket.CMSG_SPACE(128) if hasattr(socket, "CMSG_SPACE") else 256
"""Octets that hold any ancillary data asked for."""

_LINUX = sys.platform == "linux"
# Values of <linux/in.h>, <linux/in6.h> and <linux/errqueue.h>; Python 3.11 lacks these names.
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_OPTION = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_RECVERR),
    socket.AF_INET6: (socket.IPPROTO_IPV6, _IPV6_RECVERR),
}
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
# Fragmentation needed (RFC 1191 section 4) and packet too big (RFC 4443 section 3.2).
_HAVE_MTU = {(_ORIGIN_ICMP, 3, 4), (_ORIGIN_ICMP6, 2, 0)}
_EXTENDED_ERROR = struct.Struct("=IBBBxII")


class IcmpError(NamedTuple):
    """An ICMP error and the address that the packet it is about was sent to."""

    destination: Address
    icmp_type: int
    icmp_code: int
    info: int
    """The MTU, where the message says one (:attr:`stun.sansio.Undeliverable.info`), else 0."""


def keep_errors(
    sock: socket.socket, *, keep: bool = True, family: socket.AddressFamily | None = None
) -> None:
    """Have the kernel keep ICMP errors for ``sock``; nothing happens where it cannot.

    ``family``: that of the socket, for whoever knows it: asking takes longer than the system call.
    """
    if _LINUX:
        level, option = _OPTION[sock.family if family is None else family]
        sock.setsockopt(level, option, int(keep))


def read_errors(sock: socket.socket) -> list[IcmpError]:
    """Return and forget the errors that are kept."""
    if not _LINUX:
        return []
    errors = []
    for _ in range(BATCH):
        try:
            _, ancillary, _, destination = sock.recvmsg(
                0, ANCILLARY, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
            )
        except OSError:
            break
        for level, kind, value in ancillary:
            if (level, kind) != _OPTION[sock.family]:
                continue
            _, origin, icmp_type, icmp_code, info, _ = _EXTENDED_ERROR.unpack_from(value)
            if origin in {_ORIGIN_ICMP, _ORIGIN_ICMP6} and destination:
                # Elsewhere that word is unused, or a length (RFC 4884).
                mtu = info if (origin, icmp_type, icmp_code) in _HAVE_MTU else 0
                errors.append(IcmpError(from_sockaddr(destination), icmp_type, icmp_code, mtu))
    return errors
