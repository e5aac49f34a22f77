"""Packets, the networks that carry them, and the ledger of what became of each.

Theory of operation.  A :class:`Network` is a place where interfaces meet: a LAN, a carrier's access
network, the public network.  Each :class:`Interface` hangs on its network by a
:class:`~nattype.model.Link`; a packet from one to another crosses both links, so its delay is
the sum and it has two chances to be lost.  One scheduled call carries a packet over one network.

A packet is one mutable object from the sender to the end: a NAT rewrites its addresses in place, as
a NAT does.  Whoever ends its life says so to the :class:`Ledger`, exactly once: delivered, or
dropped with a :class:`Fate`.  So at any moment ``sent = delivered + dropped + in flight``.

Departures from a real network, all on purpose: links have no bandwidth and no queues; a datagram
that is larger than the MTU travels as one object whose fragments are lost and delayed one by one
(it arrives with the last one, or not at all); an IPv6 router fragments like an IPv4 router instead
of answering Packet Too Big; every router clamps the TCP MSS to its MTU, as home routers do.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from heapq import heappush
from random import Random
from typing import Final, NamedTuple, Protocol

from nattype.lab.sim.clock import Clock
from nattype.model import Link
from stun.sansio import MILLISECOND, SECOND, Address, Instant

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
PROTOCOL_NAMES: Final = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10

DEFAULT_TTL: Final = 64
HOP: Final = MILLISECOND // 100
"""10 us: what one network takes even over perfect links, so that time moves with every packet."""

IPV4_HEADER, IPV6_HEADER, UDP_HEADER, TCP_HEADER = 20, 40, 8, 20
MAX_UDP_PAYLOAD: Final = 65_507

PERFECT: Final = Link()
"""A link that does nothing to packets."""


class Fate(StrEnum):
    """Why a packet did not arrive.  The value is what a person reads in a trace."""

    LOST = "lost on the link"
    FRAGMENT_LOST = "one of its fragments was lost"
    FRAGMENT_DROPPED = "this box drops fragments"
    NO_ROUTE = "no route to the destination"
    TTL_EXPIRED = "TTL expired"
    NOT_INVITED = "filtered: not invited"
    BLOCKED = "this box lets none of this protocol through"
    NO_HAIRPIN = "this box does not hairpin"
    NO_PORT = "no external port is free"
    TO_ROUTER = "it was for the router itself"
    INVALID = "belongs to no connection"
    HELD = "held: a SYN that might be half of a simultaneous open"
    NO_SOCKET = "no socket has this address"
    SILENT = "the port is silent"
    TOO_LONG = "longer than a datagram can be"
    NOT_OPEN = "sent from a socket that is not open"


class Packet:
    """An IP packet with a UDP datagram in it, and what TCP and ICMP packets have in common."""

    __slots__ = ("data", "destination", "fragments", "serial", "source", "ttl")

    protocol = UDP
    transport_header = UDP_HEADER

    def __init__(
        self, source: Address, destination: Address, data: bytes = b"", ttl: int = DEFAULT_TTL
    ) -> None:
        self.source = source
        self.destination = destination
        self.data = data
        self.ttl = ttl
        self.fragments = 1
        self.serial = 0

    @property
    def size(self) -> int:
        """Octets on the wire, from the IP header on."""
        ip = IPV6_HEADER if ":" in self.destination[0] else IPV4_HEADER
        return ip + self.transport_header + len(self.data)

    @property
    def detail(self) -> str:
        """What a trace says beside addresses and length."""
        return ""


class Segment(Packet):
    """An IP packet with a TCP segment in it.  Sequence numbers do not wrap."""

    __slots__ = ("acknowledgment", "flags", "mss", "sequence", "window")

    protocol = TCP
    transport_header = TCP_HEADER

    def __init__(
        self,
        source: Address,
        destination: Address,
        flags: int,
        sequence: int,
        *,
        acknowledgment: int = 0,
        data: bytes = b"",
        mss: int = 65_535,
        window: int = 65_536,
        ttl: int = DEFAULT_TTL,
    ) -> None:
        super().__init__(source, destination, data, ttl)
        self.window = window
        self.flags = flags
        self.sequence = sequence
        self.acknowledgment = acknowledgment
        self.mss = mss

    @property
    def detail(self) -> str:
        """The flags, then the two numbers."""
        names = ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK"))
        flags = "+".join(name for bit, name in names if self.flags & bit) or "none"
        return f"{flags} seq={self.sequence} ack={self.acknowledgment}"


class Quote(NamedTuple):
    """The part of an ICMP error that says which packet it is about."""

    protocol: int
    source: Address
    destination: Address


class IcmpError(Packet):
    """An ICMP or ICMPv6 error about a packet; the addresses have port 0."""

    __slots__ = ("code", "icmp_type", "quote")

    protocol = ICMP
    transport_header = UDP_HEADER + IPV4_HEADER + UDP_HEADER  # its own header and the quotation

    def __init__(self, source: str, about: Packet, icmp_type: int, code: int) -> None:
        super().__init__(Address(source, 0), Address(about.source.host, 0))
        self.icmp_type = icmp_type
        self.code = code
        self.quote = Quote(about.protocol, about.source, about.destination)

    @property
    def detail(self) -> str:
        """Type and code, and what the error is about."""
        quote = self.quote
        name = PROTOCOL_NAMES[quote.protocol]
        return f"{self.icmp_type}/{self.code} about {name} {quote.source} > {quote.destination}"


class IcmpReason(NamedTuple):
    """An error in the numbers of ICMP (RFC 792) and of ICMPv6 (RFC 4443)."""

    v4: tuple[int, int]
    v6: tuple[int, int]


NO_ROUTE_ERROR: Final = IcmpReason((3, 0), (1, 0))
PORT_UNREACHABLE: Final = IcmpReason((3, 3), (1, 4))
TIME_EXCEEDED: Final = IcmpReason((11, 0), (3, 0))


def icmp_error(source: str, about: Packet, reason: IcmpReason) -> IcmpError | None:
    """Return the error that ``source`` sends about a packet, or ``None`` where none may be sent.

    RFC 1122 section 3.2.2: an ICMP error MUST NOT be sent as the result of receiving an ICMP error.
    """
    if about.protocol == ICMP:
        return None
    kind, code = reason.v6 if ":" in about.source.host else reason.v4
    return IcmpError(source, about, kind, code)


class Happening(StrEnum):
    """What a trace entry tells."""

    SENT = "sent"
    FORWARDED = "forwarded"
    DELIVERED = "delivered"
    DROPPED = "dropped"


class Entry(NamedTuple):
    """One line of a trace: a packet as it was at an instant in a place.  Plain values only."""

    at: Instant
    serial: int
    """The packet's number; it keeps it through every translation."""
    place: str
    happening: Happening
    reason: str
    """A :class:`Fate` for a dropped packet, else empty."""
    protocol: int
    source: Address
    destination: Address
    ttl: int
    size: int
    detail: str
    data: bytes

    def __str__(self) -> str:
        line = (
            f"{self.at / SECOND:12.6f} #{self.serial:<5} {self.place:<12} {self.happening:<9} "
            f"{PROTOCOL_NAMES[self.protocol]:<4} {self.source} > {self.destination} "
            f"ttl={self.ttl} size={self.size}"
        )
        return " ".join(
            part for part in (line, self.detail, self.reason and f"[{self.reason}]") if part
        )


class Ledger:
    """Counts what became of packets and, when asked to, writes down each step."""

    __slots__ = ("_clock", "delivered", "dropped", "sent", "trace")

    def __init__(self, clock: Clock, *, trace: bool = False) -> None:
        self._clock = clock
        self.sent = 0
        self.delivered = 0
        self.dropped: Counter[Fate] = Counter()
        self.trace: list[Entry] | None = [] if trace else None

    def send(self, packet: Packet, place: str) -> None:
        """Take note of a packet that a host or a router made, and number it."""
        self.sent += 1
        packet.serial = self.sent
        if self.trace is not None:
            self.note(packet, place, Happening.SENT)

    def deliver(self, packet: Packet, place: str) -> None:
        """End a packet's life at a socket."""
        self.delivered += 1
        if self.trace is not None:
            self.note(packet, place, Happening.DELIVERED)

    def drop(self, packet: Packet, place: str, fate: Fate) -> None:
        """End a packet's life anywhere else."""
        self.dropped[fate] += 1
        if self.trace is not None:
            self.note(packet, place, Happening.DROPPED, fate)

    def note(self, packet: Packet, place: str, happening: Happening, reason: str = "") -> None:
        """Write a step down.  Call it only when :attr:`trace` is a list."""
        assert self.trace is not None
        self.trace.append(
            Entry(
                self._clock.now,
                packet.serial,
                place,
                happening,
                str(reason),
                packet.protocol,
                packet.source,
                packet.destination,
                packet.ttl,
                packet.size,
                packet.detail,
                packet.data,
            )
        )

    def in_flight(self) -> int:
        """Count the packets that are between two nodes right now, by looking for them."""
        return sum(isinstance(first, Packet) for _, _, _, first, _ in self._clock.heap)


class Node(Protocol):
    """What can hang on a network."""

    @property
    def name(self) -> str:
        """What a trace calls it."""
        ...

    def receive(self, packet: Packet, interface: Interface) -> None:
        """Take a packet that arrived on one of its interfaces."""
        ...


class Interface:
    """Where a node hangs on a network, by which link, and with which addresses."""

    __slots__ = ("addresses", "delay", "jitter", "loss", "mtu", "network", "node", "perfect")

    def __init__(self, node: Node, network: Network, link: Link = PERFECT) -> None:
        self.node = node
        self.network = network
        self.addresses: list[str] = []
        self.delay = 0
        self.jitter = 0
        self.loss = 0.0
        self.mtu = 1500
        self.perfect = True
        self.set_link(link)

    def set_link(self, link: Link) -> None:
        """Change the link; packets that are on their way are not touched."""
        self.loss = link.loss
        self.delay = round(link.delay * SECOND)
        self.jitter = round(link.jitter * SECOND)
        self.mtu = link.mtu
        self.perfect = self.loss == 0.0 and self.jitter == 0

    def add(self, host: str) -> None:
        """Give this interface an address on its network."""
        self.addresses.append(host)
        self.network.route(host, self)

    def address(self, *, ipv6: bool) -> str | None:
        """Return the first address of a family, if there is one."""
        return next((host for host in self.addresses if (":" in host) == ipv6), None)


class Network:
    """A place where interfaces meet.

    With ``router`` (its IPv4 and its IPv6 address) it stands for a routed network: one more hop.
    """

    __slots__ = (
        "_clock",
        "_heap",
        "_ledger",
        "_random",
        "_serial",
        "gateway",
        "name",
        "router",
        "routes",
    )

    def __init__(
        self,
        name: str,
        clock: Clock,
        ledger: Ledger,
        random: Random,
        *,
        router: tuple[str, str] | None = None,
    ) -> None:
        self.name = name
        self.routes: dict[str, Interface] = {}
        self.gateway: Interface | None = None
        self.router = router
        self._clock = clock
        self._heap = clock.heap
        self._serial = clock.serial
        self._ledger = ledger
        self._random = random

    def route(self, host: str, interface: Interface) -> None:
        """Have packets for ``host`` handed to ``interface``."""
        other = self.routes.get(host)
        if other is not None and other is not interface:
            raise ValueError(f"{host} is already {other.node.name}'s on {self.name}")
        self.routes[host] = interface

    def carry(self, packet: Packet, sender: Interface) -> None:
        """Take a packet from ``sender`` to whoever has its destination, else to the gateway."""
        receiver = self.routes.get(packet.destination[0], self.gateway)
        if receiver is None or receiver is sender:
            self._refuse(packet, Fate.NO_ROUTE, NO_ROUTE_ERROR)
            return
        if self.router is not None:
            packet.ttl -= 1
            if packet.ttl <= 0:
                self._refuse(packet, Fate.TTL_EXPIRED, TIME_EXCEEDED)
                return
        mtu = sender.mtu if sender.mtu < receiver.mtu else receiver.mtu
        if isinstance(packet, Segment):
            if packet.flags & SYN:
                ip = IPV6_HEADER if ":" in packet.destination[0] else IPV4_HEADER
                packet.mss = min(packet.mss, mtu - ip - TCP_HEADER)
        elif len(packet.data) > mtu - IPV6_HEADER - UDP_HEADER:
            self._fragment(packet, mtu)
        delay = HOP + sender.delay + receiver.delay
        if not (sender.perfect and receiver.perfect):
            extra = self._disturb(packet, sender, receiver)
            if extra is None:
                return
            delay += extra
        if self._ledger.trace is not None:
            self._ledger.note(packet, self.name, Happening.FORWARDED)
        heappush(
            self._heap,
            (self._clock.now + delay, self._serial(), receiver.node.receive, packet, receiver),
        )

    def _fragment(self, packet: Packet, mtu: int) -> None:
        ip = IPV6_HEADER if ":" in packet.destination[0] else IPV4_HEADER
        payload = packet.size - ip
        if payload > mtu - ip:
            # RFC 791: fragment offsets count units of 8 octets.
            packet.fragments = max(packet.fragments, -(-payload // ((mtu - ip) // 8 * 8)))

    def _disturb(self, packet: Packet, sender: Interface, receiver: Interface) -> int | None:
        """Return the extra delay of the slowest fragment, or ``None`` when one was lost."""
        draw = self._random.random
        slowest = 0
        for _ in range(packet.fragments):
            extra = 0
            for interface in (sender, receiver):
                if interface.loss and draw() < interface.loss:
                    fate = Fate.LOST if packet.fragments == 1 else Fate.FRAGMENT_LOST
                    self._ledger.drop(packet, self.name, fate)
                    return None
                if interface.jitter:
                    extra += int(draw() * interface.jitter)
            slowest = max(slowest, extra)
        return slowest

    def _refuse(self, packet: Packet, fate: Fate, reason: IcmpReason) -> None:
        self._ledger.drop(packet, self.name, fate)
        if self.router is None:
            return
        error = icmp_error(self.router[packet.destination.is_ipv6], packet, reason)
        back = self.routes.get(packet.source.host, self.gateway)
        if error is not None and back is not None:
            self._ledger.send(error, self.name)
            heappush(
                self._heap,
                (
                    self._clock.now + HOP + back.delay,
                    self._serial(),
                    back.node.receive,
                    error,
                    back,
                ),
            )
