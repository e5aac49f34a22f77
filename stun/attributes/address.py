"""Transport addresses: MAPPED-ADDRESS, XOR-MAPPED-ADDRESS and all that are encoded like them."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from stun.attributes.base import Attribute
from stun.errors import UsageError
from stun.layout import ADDRESS_V4, ADDRESS_V6
from stun.registry import MAGIC_COOKIE, Family
from stun.sansio import Address

_IPV4 = int(Family.IPV4)
_IPV6 = int(Family.IPV6)
_V4 = ADDRESS_V4.struct
_V6 = ADDRESS_V6.struct
_COOKIE = MAGIC_COOKIE.to_bytes(4, "big")
_PORT_MASK = MAGIC_COOKIE >> 16
_GROUPS = 8


@lru_cache(maxsize=4096)
def host_text(octets: bytes) -> str:
    """Return the text form of 4 or 16 octets, as RFC 5952 and ``inet_ntop`` write it.

    The operating system names a socket's peer in this very form, so two :class:`Address` values are
    equal exactly when the addresses are.
    """
    if len(octets) == 4:
        return f"{octets[0]}.{octets[1]}.{octets[2]}.{octets[3]}"
    groups = [octets[i] << 8 | octets[i + 1] for i in range(0, 16, 2)]
    # RFC 5952 4.2: "::" stands for the longest run of zero groups, the first of equally long ones,
    # and never for a single group.
    best_start, best_length, start = 0, 1, 0
    while start < _GROUPS:
        end = start
        while end < _GROUPS and groups[end] == 0:
            end += 1
        if end - start > best_length:
            best_start, best_length = start, end - start
        start = end + 1
    if best_length == 1:
        return ":".join(f"{group:x}" for group in groups)
    # RFC 5952 5: IPv4-mapped and IPv4-compatible addresses end in the dotted form.
    if best_start == 0 and (best_length == 6 or (best_length == 5 and groups[5] == 0xFFFF)):
        prefix = "::ffff:" if best_length == 5 else "::"
        return prefix + host_text(octets[12:])
    head = ":".join(f"{group:x}" for group in groups[:best_start])
    tail = ":".join(f"{group:x}" for group in groups[best_start + best_length :])
    return f"{head}::{tail}"


@lru_cache(maxsize=4096)
def host_octets(host: str) -> bytes:
    """Return the 4 or 16 octets of a numeric address; ``UsageError`` when it is not one.

    An IPv6 zone is left out: "zone indices are local to the node" (RFC 4007 section 11) and have no
    place in a message.
    """
    try:
        if ":" in host:
            return IPv6Address(host.partition("%")[0]).packed
        return IPv4Address(host).packed
    except AddressValueError as wrong:
        raise UsageError(f"not a numeric address: {wrong}") from None


class PlainAddress(Attribute[Address]):
    """An address as it is (RFC 8489 section 14.1)."""

    __slots__ = ()

    def to_octets(self, value: Address) -> bytes:
        """Return family, port and address."""
        host, port = value
        if not 0 <= port <= 0xFFFF:
            raise self.misused(f"port {port}")
        octets = host_octets(host)
        if len(octets) == 4:
            return _V4.pack(_IPV4, port, octets)
        return _V6.pack(_IPV6, port, octets)

    def from_octets(self, value: bytes) -> Address:
        """Return the address; the family must be one of the two and agree with the length."""
        _, port, octets = self._fields(value)
        return Address(host_text(octets), port)

    def _fields(self, value: bytes) -> tuple[int, int, bytes]:
        size = len(value)
        if size < 2:
            raise self.malformed(0, f"{size} octets")
        family = value[1]
        if family == _IPV4:
            if size != 8:
                raise self.malformed(2, f"{size} octets with an IPv4 address, not 8")
            return _V4.unpack(value)
        if family == _IPV6:
            if size != 20:
                raise self.malformed(2, f"{size} octets with an IPv6 address, not 20")
            return _V6.unpack(value)
        raise self.malformed(1, f"address family {family:#04x}")


class XorAddress(PlainAddress):
    """An address hidden from the NATs that rewrite what looks like one (RFC 8489 section 14.2)."""

    __slots__ = ()

    def pack(self, value: Address, transaction_id: bytes) -> bytes:
        """Return family, port and address, the latter two under the mask."""
        host, port = value
        if not 0 <= port <= 0xFFFF:
            raise self.misused(f"port {port}")
        octets = host_octets(host)
        if len(octets) == 4:
            return _V4.pack(_IPV4, port ^ _PORT_MASK, _xor(octets, _COOKIE))
        return _V6.pack(_IPV6, port ^ _PORT_MASK, _xor(octets, _COOKIE + transaction_id))

    def unpack(self, value: bytes, transaction_id: bytes) -> Address:
        """Return the address without the mask."""
        family, port, octets = self._fields(value)
        mask = _COOKIE if family == _IPV4 else _COOKIE + transaction_id
        return Address(host_text(_xor(octets, mask)), port ^ _PORT_MASK)


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left) ^ int.from_bytes(right)).to_bytes(len(left))
