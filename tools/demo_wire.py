"""What passes between two NATs: TCP segments, each followed from one to the other.

Theory of operation.  A packet socket in each NAT shows every packet at both of its interfaces, with
the kernel's time.  A segment that leaves the outer interface of one NAT is the same one that comes
in at the outer interface of the other, for nothing between them changes it.  If the other NAT lets
it in, it leaves that one's inner interface, with the same sequence number; if not, it never does,
and if that NAT refuses it, there is an RST or an ICMP error that no host has sent.

:class:`Wire` needs no socket: it is given what was seen, and tells what that means.
"""

from __future__ import annotations

import bisect
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from nattype.lab import Machine

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
OUTER, INNER = "wan", "lan"
"""What the laboratory calls the interfaces of a NAT."""
HEADERS: Final = 128
"""Octets that the headers of IPv4 and TCP take at most, and those that an ICMP error quotes."""
FORGETS: Final = 4096
"""Segments of hosts that are remembered until they leave the NAT."""
_ETH_P_ALL, _PACKET_OUTGOING, _SO_TIMESTAMPNS = 3, 4, 35
_IPV4, _TCP, _UNREACHABLE = 20, 20, 3


class Endpoint(NamedTuple):
    """A transport address."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Segment:
    """The header of a TCP segment, or what an ICMP error tells of one that was not let in.

    Such an error goes the other way: ``source`` is where the segment was meant to go.
    """

    source: Endpoint
    target: Endpoint
    flags: int
    sequence: int
    acknowledged: int = 0
    """0 without the flag ACK."""
    octets: int = 0
    is_error: bool = False

    @property
    def name(self) -> str:
        """What it is called."""
        if self.is_error:
            return "ICMP"
        if self.flags & RST:
            return "RST"
        if self.flags & SYN:
            return "SYN-ACK" if self.flags & ACK else "SYN"
        if self.flags & FIN:
            return "FIN"
        return "data" if self.octets else "ACK"


def parse(packet: bytes) -> Segment | None:
    """Read the headers of an IPv4 packet; ``None`` if that is not TCP, or cut short."""
    if len(packet) < _IPV4 or packet[0] >> 4 != 4:
        return None
    length, fragment = struct.unpack_from("!H2xH", packet, 2)
    start = (packet[0] & 15) * 4
    if fragment & 0x1FFF or start < _IPV4:
        return None
    if packet[9] == socket.IPPROTO_ICMP:
        return _parse_error(packet[start:])
    if packet[9] != socket.IPPROTO_TCP or len(packet) < start + _TCP:
        return None
    source, target = _endpoints(packet, start)
    sequence, acknowledged, offset, flags = struct.unpack_from("!IIBB", packet, start + 4)
    octets = max(0, length - start - (offset >> 4) * 4)
    return Segment(source, target, flags, sequence, acknowledged if flags & ACK else 0, octets)


def _parse_error(message: bytes) -> Segment | None:
    """Read an ICMP error, which quotes the packet's IP header and 8 octets more (RFC 792)."""
    quoted = message[8:]
    if len(quoted) < _IPV4 or message[0] != _UNREACHABLE or quoted[9] != socket.IPPROTO_TCP:
        return None
    start = (quoted[0] & 15) * 4
    if start < _IPV4 or len(quoted) < start + 8:
        return None
    source, target = _endpoints(quoted, start)
    (sequence,) = struct.unpack_from("!I", quoted, start + 4)
    return Segment(target, source, 0, sequence, is_error=True)


def _endpoints(packet: bytes, start: int) -> tuple[Endpoint, Endpoint]:
    ports = struct.unpack_from("!HH", packet, start)
    hosts = (socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16))
    source, target = map(Endpoint, hosts, ports)
    return source, target


@dataclass(slots=True, eq=False)
class Flight:
    """A segment on its way from one NAT to the other.  Times are nanoseconds."""

    side: str
    """Behind which NAT it comes from, or which NAT made it."""
    segment: Segment
    left: int
    by_nat: bool
    """Whether no host has sent it, but the NAT itself."""
    arrived: int | None = None
    """When it reached the other NAT."""
    entered: int | None = None
    """When that NAT passed it on to its host."""
    refusal: Flight | None = None
    """The RST or ICMP error with which that NAT answered."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.segment.name

    @property
    def is_syn(self) -> bool:
        """Whether it asks for a connection."""
        return self.segment.name == "SYN"

    @property
    def ends(self) -> frozenset[Endpoint]:
        """Where from and where to, as the NATs show it."""
        return frozenset((self.segment.source, self.segment.target))


class Wire:
    """All that was seen between two NATs, until both sides have a connection.

    ``outside`` has the external address of each NAT by the name of its side.  What is given to
    :meth:`take` must be in the order of time.
    """

    def __init__(self, outside: Mapping[str, str]) -> None:
        self._sides = {address: side for side, address in outside.items()}
        self.flights: list[Flight] = []
        """In the order in which they left."""
        self.established_at: int | None = None
        """When both sides of a connection had it."""
        self.ends: frozenset[Endpoint] = frozenset()
        """Its two ends, as the NATs show them."""
        self._under_way: dict[Segment, deque[Flight]] = {}
        self._from_hosts: deque[tuple[object, ...]] = deque(maxlen=FORGETS)
        self._syns: dict[tuple[Endpoint, Endpoint], int] = {}
        """Sequence numbers that sides began with, by where from and where to."""
        self._sure: dict[frozenset[Endpoint], set[str]] = {}
        """Sides that have a connection, by its ends."""

    def take(self, at: int, side: str, interface: str, *, outgoing: bool, packet: bytes) -> None:
        """Take what the NAT of ``side`` has seen at an interface."""
        segment = parse(packet)
        if segment is None:
            return
        if interface == INNER:
            if outgoing:
                if not segment.is_error:
                    self._entered(at, side, segment)
            elif segment.flags & (SYN | RST):
                self._from_hosts.append(_at_home(segment))
        elif segment.source.host in self._sides and segment.target.host in self._sides:
            if outgoing:
                self._left(at, side, segment)
            else:
                self._arrived(at, segment)

    def _left(self, at: int, side: str, segment: Segment) -> None:
        refusing = segment.is_error or bool(segment.flags & RST)
        if self.established_at is not None and not refusing:
            return
        # What a host sends has been seen at the inner interface, with an address of its own.
        by_nat = refusing and _at_home(segment) not in self._from_hosts
        flight = Flight(side, segment, at, by_nat)
        self.flights.append(flight)
        self._under_way.setdefault(segment, deque()).append(flight)
        if segment.flags & SYN:
            self._syns[segment.source, segment.target] = segment.sequence
        if by_nat:
            for other in reversed(self.flights):
                if other.refusal is None and _refuses(segment, other.segment):
                    other.refusal = flight
                    break

    def _arrived(self, at: int, segment: Segment) -> None:
        waiting = self._under_way.get(segment)
        if waiting:
            waiting.popleft().arrived = at
            if not waiting:
                del self._under_way[segment]

    def _entered(self, at: int, side: str, segment: Segment) -> None:
        for flight in reversed(self.flights):
            if (
                flight.arrived is not None
                and flight.entered is None
                and replace(flight.segment, target=segment.target) == segment
            ):
                flight.entered = at
                self._acknowledge(at, side, flight)
                return

    def _acknowledge(self, at: int, side: str, flight: Flight) -> None:
        """See whether a side has a connection now: its SYN is acknowledged (RFC 9293, 3.5)."""
        segment = flight.segment
        mine = self._syns.get((segment.target, segment.source))
        if mine is None or segment.flags & (ACK | RST) != ACK:
            return
        if segment.acknowledged != _next(mine):
            return
        ends = flight.ends
        sure = self._sure.setdefault(ends, set())
        sure.add(side)
        if len(sure) == len(self._sides) and self.established_at is None:
            self.established_at, self.ends = at, ends


def _at_home(segment: Segment) -> tuple[object, ...]:
    """Return what a NAT does not change in a segment that leaves."""
    return (segment.target, segment.flags, segment.sequence, segment.acknowledged)


def _next(sequence: int) -> int:
    return (sequence + 1) & 0xFFFFFFFF


def _refuses(refusal: Segment, segment: Segment) -> bool:
    """Whether an RST (RFC 9293 section 3.10.7.1) or an ICMP error is the answer to a SYN."""
    if segment.name != "SYN" or refusal.source != segment.target:
        return False
    if refusal.target != segment.source:
        return False
    if refusal.is_error:
        return refusal.sequence == segment.sequence
    return refusal.acknowledged == _next(segment.sequence)


class Taps:
    """A packet socket in the NAT of each side, and what they see, put in order."""

    def __init__(self, nats: Mapping[str, Machine]) -> None:
        self.sockets: dict[socket.socket, str] = {}
        """To be waited on."""
        self._seen: list[tuple[int, str, str, bool, bytes]] = []
        for side, nat in nats.items():
            # Sent packets are seen by those only who ask for every protocol, packet(7).
            tap = nat.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
            tap.setblocking(False)
            tap.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self.sockets[tap] = side

    def read(self, wire: Wire) -> None:
        """Tell ``wire`` what has been seen since the last time."""
        # A later one may have been read here before an earlier one there: it waits.
        until = time.time_ns()
        for tap, side in self.sockets.items():
            self._seen += _packets(tap, side)
        self._seen.sort(key=lambda seen: seen[0])
        ripe = bisect.bisect(self._seen, until, key=lambda seen: seen[0])
        for at, side, interface, outgoing, packet in self._seen[:ripe]:
            wire.take(at, side, interface, outgoing=outgoing, packet=packet)
        del self._seen[:ripe]

    def close(self) -> None:
        """Stop looking."""
        for tap in self.sockets:
            tap.close()
        self.sockets.clear()


def _packets(tap: socket.socket, side: str) -> Iterator[tuple[int, str, str, bool, bytes]]:
    while True:
        try:
            packet, notes, _, address = tap.recvmsg(HEADERS, 64)
        except BlockingIOError:
            return
        at = time.time_ns()
        for level, kind, data in notes:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = struct.unpack_from("@ll", data)
                at = seconds * 1_000_000_000 + nanoseconds
        yield at, side, address[0], address[2] == _PACKET_OUTGOING, packet
