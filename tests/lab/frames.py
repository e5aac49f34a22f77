"""Ethernet frames made and read by hand: what a socket would never send, and all that came.

Written apart from everything that is tested, so that one cannot be wrong in the same way as the
other.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, replace
from itertools import pairwise

from stun.sansio import Address

IPV4, IPV6, VLAN = 0x0800, 0x86DD, 0x8100
UDP, ICMP, ICMPV6 = 17, 1, 58
_FRAGMENT_HEADER = 44


@dataclass(frozen=True)
class Datagram:
    """A UDP datagram with all that the headers say of it."""

    source: Address
    destination: Address
    payload: bytes
    ttl: int = 64
    tos: int = 0
    """DSCP and ECN, as the second octet of an IPv4 header has them."""
    df: bool = False
    identification: int = 0x4E4B
    options: bytes = b""
    """Of IPv4; of IPv6 a whole extension header, whose number is ``extension``."""
    extension: int = 60
    flow_label: int = 0
    checksum: int | None = None
    """Of UDP; ``None``: the right one."""

    def to(self, destination: Address) -> Datagram:
        """Return it with another destination."""
        return replace(self, destination=destination)


@dataclass(frozen=True)
class Seen:
    """What a frame was found to be."""

    packet: Datagram
    checksum_right: bool
    """Of UDP."""
    header_right: bool
    """The checksum of an IPv4 header, and that all lengths agree."""


def checksum(octets: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total = sum(
        struct.unpack(f"!{len(octets) // 2 + len(octets) % 2}H", octets + bytes(len(octets) % 2))
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _packed(address: Address) -> bytes:
    return ipaddress.ip_address(address.host).packed


def _pseudo_header(source: bytes, destination: bytes, length: int) -> bytes:
    if len(source) == 4:
        return source + destination + struct.pack("!BBH", 0, UDP, length)
    return source + destination + struct.pack("!II", length, UDP)


def udp(datagram: Datagram) -> bytes:
    """Return the UDP header and payload."""
    source, destination = _packed(datagram.source), _packed(datagram.destination)
    length = 8 + len(datagram.payload)
    ports = struct.pack("!HHH", datagram.source.port, datagram.destination.port, length)
    found = datagram.checksum
    if found is None:
        pseudo = _pseudo_header(source, destination, length)
        # RFC 768: "If the computed checksum is zero, it is transmitted as all ones".
        found = checksum(pseudo + ports + bytes(2) + datagram.payload) or 0xFFFF
    return ports + struct.pack("!H", found) + datagram.payload


def packets(datagram: Datagram, *, cuts: tuple[int, ...] = ()) -> list[bytes]:
    """Return the IP packet; with ``cuts``, multiples of eight, the fragments between them."""
    body = udp(datagram)
    parts = [(at, body[at:end]) for at, end in pairwise((0, *cuts, len(body)))]
    if datagram.source.is_ipv6:
        return [_ipv6(datagram, at, part, len(body)) for at, part in parts]
    return [_ipv4(datagram, at, part, len(body)) for at, part in parts]


def _ipv4(datagram: Datagram, at: int, part: bytes, whole: int) -> bytes:
    assert len(datagram.options) % 4 == 0
    words = 5 + len(datagram.options) // 4
    more = 0x2000 if at + len(part) < whole else 0
    head = struct.pack(
        "!BBHHHBBH", 0x40 | words, datagram.tos, 4 * words + len(part), datagram.identification,
        (0x4000 if datagram.df else 0) | more | at // 8, datagram.ttl, UDP, 0,
    )  # fmt: skip
    head += _packed(datagram.source) + _packed(datagram.destination) + datagram.options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + part


def _ipv6(datagram: Datagram, at: int, part: bytes, whole: int) -> bytes:
    following, between = UDP, b""
    if len(part) < whole:
        more = int(at + len(part) < whole)
        between = struct.pack("!BBHI", UDP, 0, at | more, datagram.identification)
        following = _FRAGMENT_HEADER
    if datagram.options:
        between = bytes([following]) + datagram.options[1:] + between
        following = datagram.extension
    first = 6 << 28 | datagram.tos << 20 | datagram.flow_label
    head = struct.pack("!IHBB", first, len(between) + len(part), following, datagram.ttl)
    return head + _packed(datagram.source) + _packed(datagram.destination) + between + part


def frame(destination: str, source: str, packet: bytes, *, vlan: int | None = None) -> bytes:
    """Return an Ethernet frame; ``vlan`` is the number of an 802.1Q tag."""
    kind = IPV6 if packet[0] >> 4 == 6 else IPV4
    tag = b"" if vlan is None else struct.pack("!HH", VLAN, vlan)
    macs = bytes.fromhex((destination + source).replace(":", ""))
    return macs + tag + struct.pack("!H", kind) + packet


def read(octets: bytes) -> Seen | None:
    """Return the UDP datagram of a frame; ``None`` when it has another content, or a fragment."""
    (kind,) = struct.unpack_from("!H", octets, 12)
    packet = octets[14:]
    if kind == IPV4:
        return _read_ipv4(packet)
    return _read_ipv6(packet) if kind == IPV6 else None


def _read_ipv4(packet: bytes) -> Seen | None:
    size = 4 * (packet[0] & 15)
    _, tos, length, identification, flags, ttl, protocol = struct.unpack_from("!BBHHHBB", packet)
    if protocol != UDP or flags & 0x3FFF:
        return None
    header_right = checksum(packet[:size]) == 0 and packet[0] >> 4 == 4
    source, destination = packet[12:16], packet[16:20]
    seen = _read_udp(packet[size:length], source, destination, header_right and length >= size + 8)
    found = replace(
        seen.packet, ttl=ttl, tos=tos, df=bool(flags & 0x4000), identification=identification,
        options=packet[20:size],
    )  # fmt: skip
    return replace(seen, packet=found)


def _read_ipv6(packet: bytes) -> Seen | None:
    first, length, following, ttl = struct.unpack_from("!IHBB", packet)
    if following != UDP:
        return None
    body = packet[40 : 40 + length]
    seen = _read_udp(body, packet[8:24], packet[24:40], first >> 28 == 6 and len(body) == length)
    found = replace(seen.packet, ttl=ttl, tos=first >> 20 & 0xFF, flow_label=first & 0xFFFFF)
    return replace(seen, packet=found)


def _read_udp(body: bytes, source: bytes, destination: bytes, header_right: bool) -> Seen:
    source_port, destination_port, length, given = struct.unpack_from("!HHHH", body)
    pseudo = _pseudo_header(source, destination, length)
    right = checksum(pseudo + body[:length]) == 0
    if given == 0:
        right = len(source) == 4  # RFC 768: "the transmitter generated no checksum"
    found = Datagram(
        Address(str(ipaddress.ip_address(source)), source_port),
        Address(str(ipaddress.ip_address(destination)), destination_port),
        body[8:length],
        checksum=given,
    )
    return Seen(found, right, header_right and length == len(body))
