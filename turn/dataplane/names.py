"""Transport addresses as the kernel writes them, without objects: what the packet path compares."""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from typing import Final

from stun.sansio import Address
from stun.sockaddr import from_sockaddr, to_sockaddr

LARGEST_PORT: Final = 65535

_NAME_V4 = struct.Struct("!H4s8x")
_NAME_V6 = struct.Struct("!HI16s")
_SCOPE = struct.Struct("=I")
NAME_SIZE: Final = {False: 16, True: 28}
"""Octets of a ``sockaddr``, by whether it is IPv6."""


def pack_name(address: Address) -> bytes:
    """Return a ``sockaddr`` without its first field: port, address and, for IPv6, the scope.

    Raises ``OSError``, ``ValueError`` or ``OverflowError`` when it is no transport address.
    """
    if not 0 <= address.port <= LARGEST_PORT:
        raise OverflowError(f"{address.port} is no port")
    sockaddr = to_sockaddr(address)
    if ":" in address.host:
        packed = socket.inet_pton(socket.AF_INET6, sockaddr[0])
        scope = sockaddr[3] if len(sockaddr) == 4 else 0
        return _NAME_V6.pack(sockaddr[1], 0, packed) + _SCOPE.pack(scope)
    return _NAME_V4.pack(sockaddr[1], socket.inet_aton(sockaddr[0]))


@lru_cache(1024)
def unpack_name(name: bytes) -> Address:
    """Return the transport address of what :func:`pack_name` makes."""
    if len(name) == 14:
        port, packed = _NAME_V4.unpack(name)
        return Address(socket.inet_ntop(socket.AF_INET, packed), port)
    port, _, packed = _NAME_V6.unpack_from(name)
    (scope,) = _SCOPE.unpack_from(name, _NAME_V6.size)
    return from_sockaddr((socket.inet_ntop(socket.AF_INET6, packed), port, 0, scope))
