"""The PROXY protocol, versions 1 and 2: what a load balancer says about the client it connects.

A connection from a trusted proxy begins with a header that names the client's and the server's
transport address; what follows are the client's octets.  :func:`read` takes a header off the front
of what has arrived, however it was cut.  The norm is HAProxy's ``doc/proxy-protocol.txt`` ("the
specification" below), revision of 2020.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from stun.sansio import Address

V1_LIMIT: Final = 107
"""Octets of the longest version 1 header there is, its CRLF included (section 2.1)."""
V2_LIMIT: Final = 8192
"""Octets of a version 2 header that are taken.  The addresses need 52; the rest are TLVs, which
may hold the certificate of a TLS client."""

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V1: Final = b"PROXY "
_V2_FIXED: Final = 16
_TCP4, _TCP6 = 0x11, 0x21
_TLV_CRC32C: Final = 0x03


@dataclass(frozen=True, slots=True)
class Header:
    """A whole header of ``size`` octets.

    Without addresses the connection is the proxy's own, or the proxy knows nothing of the client:
    then the real ends of the connection are what counts.
    """

    size: int
    client: Address | None = None
    server: Address | None = None


@dataclass(frozen=True, slots=True)
class NotProxied:
    """What arrived is no header that can be taken: why."""

    reason: str


def read(data: bytes) -> Header | NotProxied | None:
    """Read the header at the front of ``data``; ``None`` when more is needed to tell."""
    if data[:1] == b"P":
        return _read_v1(data)
    if not _SIGNATURE.startswith(data[: len(_SIGNATURE)]):
        return NotProxied("no PROXY protocol header")
    if len(data) < _V2_FIXED:
        return None
    return _read_v2(data)


def _read_v1(data: bytes) -> Header | NotProxied | None:
    if not data.startswith(_V1[: len(data)]):
        return NotProxied("no PROXY protocol header")
    end = data.find(b"\r\n", 0, V1_LIMIT)
    if end < 0:
        return None if len(data) < V1_LIMIT else NotProxied("PROXY v1: the line does not end")
    size = end + 2
    kind, *fields = data[len(_V1) : end].split(b" ")
    if kind == b"UNKNOWN":
        # Section 2.1: "the receiver must ignore anything presented before the CRLF".
        return Header(size)
    if kind not in {b"TCP4", b"TCP6"}:
        return NotProxied("PROXY v1: neither TCP4, TCP6 nor UNKNOWN")
    if len(fields) != 4:
        return NotProxied("PROXY v1: not two addresses and two ports")
    version = 4 if kind == b"TCP4" else 6
    source, destination, *ports = fields
    client, server = (
        _address(host, port, version)
        for host, port in zip((source, destination), ports, strict=True)
    )
    if client is None or server is None:
        return NotProxied("PROXY v1: an address or a port is not valid")
    return Header(size, *_unmapped(client, server))


def _address(host: bytes, port: bytes, version: int) -> Address | None:
    # Section 2.1: ports are decimal "without heading zeroes".
    if not (port.isdigit() and len(port) <= 5 and int(port) <= 0xFFFF):
        return None
    if port != b"0" and port.startswith(b"0"):
        return None
    try:
        parsed = ipaddress.ip_address(host.decode("ascii"))
    except ValueError:
        return None
    if parsed.version != version or "%" in str(parsed):
        return None
    return Address(str(parsed), int(port))


def _read_v2(data: bytes) -> Header | NotProxied | None:
    version, command = data[12] >> 4, data[12] & 0x0F
    if version != 2:
        return NotProxied(f"PROXY: version {version}")
    if command > 1:
        # Section 2.2: "receivers must drop connections presenting unexpected values here".
        return NotProxied(f"PROXY v2: unknown command {command}")
    family = data[13]
    length = int.from_bytes(data[14:16], "big")
    size = _V2_FIXED + length
    if size > V2_LIMIT:
        return NotProxied("PROXY v2: the header is too long")
    if command == 1 and family not in {0, _TCP4, _TCP6}:
        return NotProxied(f"PROXY v2: {_family_in_words(family)}")
    hosts = {_TCP4: 4, _TCP6: 16}.get(family, 0) if command == 1 else 0
    if hosts and length < 2 * hosts + 4:
        return NotProxied("PROXY v2: too short for its addresses")
    if len(data) < size:
        return None
    if command == 0 or not hosts:
        # LOCAL: "the receiver must accept this connection as valid and must use the real
        # connection endpoints"; and so with UNSPEC.  What follows is skipped.
        return Header(size)
    if problem := _check_tlvs(data[:size], _V2_FIXED + 2 * hosts + 4):
        return NotProxied(problem)
    client, server = _V2_FIXED, _V2_FIXED + hosts
    ports = server + hosts
    return Header(
        size,
        *_unmapped(
            Address(
                str(ipaddress.ip_address(data[client:server])),
                int.from_bytes(data[ports : ports + 2], "big"),
            ),
            Address(
                str(ipaddress.ip_address(data[server:ports])),
                int.from_bytes(data[ports + 2 : ports + 4], "big"),
            ),
        ),
    )


def _family_in_words(family: int) -> str:
    if family >> 4 == 3:
        return "a Unix socket has no transport address"
    if family & 0x0F == 2:
        return "datagrams do not come over a stream"
    return f"unknown address family {family:#04x}"


def _check_tlvs(header: bytes, at: int) -> str | None:
    """Say what is wrong with the TLVs of a header (specification section 2.2.4), if anything is."""
    while at < len(header):
        if at + 3 > len(header):
            return "PROXY v2: a TLV is cut short"
        kind = header[at]
        value, at = at + 3, at + 3 + int.from_bytes(header[at + 1 : at + 3], "big")
        if at > len(header):
            return "PROXY v2: a TLV is longer than the header"
        if kind == _TLV_CRC32C:
            if at - value != 4:
                return "PROXY v2: a checksum that is not four octets"
            # "calculated over the whole PROXY header" with the field "filled with zeroes".
            if crc32c(header[:value] + bytes(4) + header[at:]) != int.from_bytes(
                header[value:at], "big"
            ):
                return "PROXY v2: the checksum does not match"
    return None


def _unmapped(client: Address, server: Address) -> tuple[Address, Address]:
    """Write what a dual-stack proxy saw over IPv4 as IPv4: ``::ffff:192.0.2.1``."""
    ends = [
        ipaddress.ip_address(end.host).ipv4_mapped if end.is_ipv6 else None  # type: ignore[union-attr]
        for end in (client, server)
    ]
    if None in ends:
        return client, server
    return Address(str(ends[0]), client.port), Address(str(ends[1]), server.port)


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)  # noqa: PLW2901
        table.append(n)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of ``data``, RFC 4960 appendix B."""
    value = 0xFFFFFFFF
    for octet in data:
        value = (value >> 8) ^ _CRC32C[(value ^ octet) & 0xFF]
    return value ^ 0xFFFFFFFF
