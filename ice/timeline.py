"""A record of checks and events, bounded, that can be looked at with Wireshark.

Theory of operation.  A :class:`Timeline` keeps what it is told: the packets of paths that are STUN,
and events in words.  It keeps the first and the latest entries, since a connection fails at its
beginning or at its end; what is left out in between is counted.

:func:`write_pcapng` writes it as a pcapng file (draft-ietf-opsawg-pcapng).  Each packet gets the IP
and UDP or TCP header that it had on its path, as far as that is known here: between the base and
the remote address, for a relayed base between the relay and the peer.  An event that happened with
a packet is that packet's comment; one that happened by itself is an entry of its own, at its own
time, in the form of a journal entry: Wireshark lists it between the packets, libpcap skips it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import BinaryIO, Final, NamedTuple, TypeAlias

from ice.base import Base
from stun.sansio import Address, Instant

Send: TypeAlias = Callable[[Base, Address, bytes, Instant], None]

MOST: Final = 256
"""Entries that are kept by default."""
LONGEST: Final = 2048
"""Octets of a packet that are kept; checks have a hundred or two."""
LONGEST_EVENT: Final = 500
"""Characters of an event that are kept."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet of a path, as it was without framing.  ``size``: before it was cut."""

    at: Instant
    outgoing: bool
    base: Base
    remote: Address
    data: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, in words."""

    at: Instant
    what: str


Entry: TypeAlias = Packet | Event


class Timeline:
    """Keeps at most ``most`` entries: the first half of them, and the latest."""

    __slots__ = ("_first", "_half", "_latest", "left_out")

    def __init__(self, most: int = MOST) -> None:
        self._half = max(most // 2, 1)
        self._first: list[Entry] = []
        self._latest: deque[Entry] = deque(maxlen=self._half)
        self.left_out = 0
        """Entries between the first and the latest that are not kept."""

    def sent(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        """Take a packet that was sent; the arguments are those of :meth:`ice.hub.Hub.send`."""
        self._add(Packet(now, True, base, remote, bytes(data[:LONGEST]), len(data)))

    def tap(self, send: Send) -> Send:
        """Return ``send`` with a record of what passes."""

        def record(base: Base, remote: Address, data: bytes, now: Instant) -> None:
            self.sent(base, remote, data, now)
            send(base, remote, data, now)

        return record

    def received(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        """Take a packet that arrived."""
        self._add(Packet(now, False, base, remote, bytes(data[:LONGEST]), len(data)))

    def event(self, what: str, now: Instant) -> None:
        """Take something that happened."""
        self._add(Event(now, what[:LONGEST_EVENT]))

    def _add(self, entry: Entry) -> None:
        if len(self._first) < self._half:
            self._first.append(entry)
            return
        if len(self._latest) == self._half:
            self.left_out += 1
        self._latest.append(entry)

    def __iter__(self) -> Iterator[Entry]:
        yield from self._first
        yield from self._latest

    def __len__(self) -> int:
        return len(self._first) + len(self._latest)


# The file. ----------------------------------------------------------------------------------------

_SECTION_HEADER: Final = 0x0A0D0D0A
_INTERFACE_DESCRIPTION: Final = 1
_ENHANCED_PACKET: Final = 6
_JOURNAL_ENTRY: Final = 9
_BYTE_ORDER: Final = 0x1A2B3C4D
_LINKTYPE_RAW: Final = 101
"""A packet "begins with an IPv4 or IPv6 header"."""

_END_OF_OPTIONS, _COMMENT = 0, 1
_USER_APPLICATION: Final = 4  # of a section header
_INTERFACE_NAME, _TIME_RESOLUTION = 2, 9  # of an interface description
_FLAGS: Final = 2  # of a packet
_INBOUND, _OUTBOUND = 1, 2
_NANOSECONDS: Final = 9
"""Time stamps are in units of 10 to the power of minus nine seconds."""

_UDP, _TCP = 17, 6
_CHECKSUM_AT: Final = {_UDP: 6, _TCP: 16}
_PUSH_ACK: Final = 0x18
_IP_TTL: Final = 64
_DONT_FRAGMENT: Final = 0x4000


def write_pcapng(entries: Iterable[Entry], file: BinaryIO, *, epoch: int = 0) -> None:
    """Write entries, such as a :class:`Timeline`, as a pcapng file.

    ``epoch``: nanoseconds from 1970 to the instant 0 of the entries' clock, so that the times are
    those of the day.  The file is written from where it stands; it is not closed.
    """
    file.write(_section())
    sequence: dict[_Ends, int] = {}
    for head, tail in _together(list(entries)):
        stamp = max(head.at + epoch, 0)
        if isinstance(head, Event):
            file.write(_journal(head.what, stamp))
            continue
        comments = [f"through the relay {head.base.relay}"] if head.base.relay else []
        comments += [event.what for event in tail]
        file.write(_packet(head, comments, stamp, sequence))


def _together(entries: list[Entry]) -> Iterator[tuple[Entry, list[Event]]]:
    """Yield packets, each with the events of its moment, and the events that have none."""
    head: Packet | None = None
    waiting: list[Event] = []  # of the moment of no packet yet
    tail: list[Event] = []
    for entry in entries:
        at = head.at if head is not None else waiting[0].at if waiting else entry.at
        if entry.at != at:
            yield from _closed(head, waiting, tail)
            head, waiting, tail = None, [], []
        if isinstance(entry, Packet):
            if head is not None:
                yield head, tail
                tail = []
            head, tail, waiting = entry, waiting + tail, []
        elif head is None:
            waiting.append(entry)
        else:
            tail.append(entry)
    yield from _closed(head, waiting, tail)


def _closed(
    head: Packet | None, waiting: list[Event], tail: list[Event]
) -> Iterator[tuple[Entry, list[Event]]]:
    if head is not None:
        yield head, tail
    for event in waiting:
        yield event, []


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    value = value[:0xFFFF]
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _section() -> bytes:
    """Return the section header and the description of the one interface."""
    end = _option(_END_OF_OPTIONS, b"")
    header = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
    header += _option(_USER_APPLICATION, b"natkit") + end
    interface = struct.pack("<HHI", _LINKTYPE_RAW, 0, 0)
    interface += _option(_INTERFACE_NAME, b"ice") + _option(_TIME_RESOLUTION, bytes([_NANOSECONDS]))
    return _block(_SECTION_HEADER, header) + _block(_INTERFACE_DESCRIPTION, interface + end)


def _journal(what: str, stamp: int) -> bytes:
    """Return an entry in systemd's Journal Export Format: a line a field, microseconds."""
    line = " ".join(what.split())
    text = (
        f"__REALTIME_TIMESTAMP={stamp // 1000}\nPRIORITY=6\nSYSLOG_IDENTIFIER=ice\nMESSAGE={line}\n"
    )
    return _block(_JOURNAL_ENTRY, _padded(text.encode(errors="replace")))


def _packet(
    packet: Packet,
    comments: list[str],
    stamp: int,
    sequence: dict[_Ends, int],
) -> bytes:
    here, there = packet.base.address, packet.remote
    ends = _Ends(here, there) if packet.outgoing else _Ends(there, here)
    load = _Load(packet.data, packet.size)
    if packet.base.is_reliable:
        # RFC 4571: the length goes before each packet.
        load = _Load(load.size.to_bytes(2) + load.data, load.size + 2)
        begun = sequence.get(ends, 1)
        sequence[ends] = begun + load.size
        octets, whole = _in_tcp(ends, load, begun, sequence.get(_Ends(*reversed(ends)), 1))
    else:
        octets, whole = _in_udp(ends, load)
    body = struct.pack(
        "<IIIII", 0, stamp >> 32 & 0xFFFFFFFF, stamp & 0xFFFFFFFF, len(octets), whole
    )
    options = b"".join(_option(_COMMENT, text.encode(errors="replace")) for text in comments)
    flags = _OUTBOUND if packet.outgoing else _INBOUND
    options += _option(_FLAGS, struct.pack("<I", flags)) + _option(_END_OF_OPTIONS, b"")
    return _block(_ENHANCED_PACKET, body + _padded(octets) + options)


class _Ends(NamedTuple):
    source: Address
    destination: Address


class _Load(NamedTuple):
    """What is carried.  ``size``: before it was cut."""

    data: bytes
    size: int


def _in_udp(ends: _Ends, load: _Load) -> tuple[bytes, int]:
    length = min(8 + load.size, 0xFFFF)
    header = struct.pack(">HHHH", ends.source.port, ends.destination.port, length, 0)
    return _in_ip(_UDP, ends, header, load)


def _in_tcp(ends: _Ends, load: _Load, begun: int, acknowledged: int) -> tuple[bytes, int]:
    header = struct.pack(
        ">HHIIBBHHH",
        ends.source.port,
        ends.destination.port,
        begun & 0xFFFFFFFF,
        acknowledged & 0xFFFFFFFF,
        5 << 4,
        _PUSH_ACK,
        0xFFFF,
        0,
        0,
    )
    return _in_ip(_TCP, ends, header, load)


def _in_ip(protocol: int, ends: _Ends, header: bytes, load: _Load) -> tuple[bytes, int]:
    """Return a packet with its headers, and how long it was before it was cut."""
    data, size = load
    begin, end = _octets(ends.source.host, ends.destination.host)
    length = len(header) + size
    if len(data) == size:  # a checksum covers all of it
        pseudo = begin + end + struct.pack(">II", length, protocol)
        found = _checksum(pseudo + header + data)
        if protocol == _UDP:
            found = found or 0xFFFF  # RFC 768: zero stands for none
        at = _CHECKSUM_AT[protocol]
        header = header[:at] + found.to_bytes(2) + header[at + 2 :]
    if len(begin) == 16:
        ip = struct.pack(">IHBB", 6 << 28, min(length, 0xFFFF), protocol, _IP_TTL) + begin + end
    else:
        fields = (0x45, 0, min(20 + length, 0xFFFF), 0, _DONT_FRAGMENT, _IP_TTL, protocol)
        ip = struct.pack(">BBHHHBBH", *fields, 0) + begin + end
        ip = ip[:10] + _checksum(ip).to_bytes(2) + ip[12:]
    return ip + header + data, len(ip) + length


def _octets(source: str, destination: str) -> tuple[bytes, bytes]:
    """Return both addresses in one family; an IPv4 address may have to be mapped into IPv6."""
    pair = _parsed(source), _parsed(destination)
    if all(isinstance(each, IPv4Address) for each in pair):
        return pair[0].packed, pair[1].packed
    first, second = (
        each.packed if isinstance(each, IPv6Address) else bytes(10) + b"\xff\xff" + each.packed
        for each in pair
    )
    return first, second


def _parsed(host: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:  # a name that stands for an address which is not known here
        return IPv4Address(0)


def _checksum(data: bytes) -> int:
    """RFC 1071: the one's complement of the sum of all 16-bit words in one's complement."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
