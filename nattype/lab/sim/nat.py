"""A box on the path: a NAT with the axes of :class:`~nattype.model.NatModel`, or a firewall.

Theory of operation.  Two tables.  A *mapping* ties an internal endpoint (with a destination, when
the mapping depends on it) to an external one; a *session* is one remote endpoint that talks over a
mapping, like an entry of Linux's conntrack.  A packet from inside that belongs to a live session
uses its mapping; else the mapping is found by the key that the mapping behaviour says, or
allocated, and a session is opened.  A packet from outside must meet a live mapping, and then a
live session or a filter that lets strangers in; it opens a session too, so that the answer leaves
by the mapping that was addressed, whatever the mapping behaviour.

A mapping lives as long as one of its sessions does, and for the transitory time after a TCP
connection.  Lifetimes are Linux's rules with the model's
numbers: UDP has the short one until packets went both ways for over two seconds, TCP the transitory
one until it is established and again after both FINs, 10 s after an RST, nothing at all after an
RST that was the only answer.

A firewall (``Mapping.NONE``) is the same thing with mappings that change nothing.

Where it departs from a Linux router: an external port belongs to one mapping at a time (RFC 4787
REQ-3), while Linux lets two internal hosts share one as long as their remote endpoints differ; TCP
windows are not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from random import Random
from typing import Final, TypeAlias

from nattype.lab.sim.clock import Clock
from nattype.lab.sim.options import LIKE_LINUX, Refresh, SimOptions
from nattype.lab.sim.ports import PortPool
from nattype.lab.sim.wire import (
    ACK,
    FIN,
    PORT_UNREACHABLE,
    RST,
    SYN,
    TCP,
    TIME_EXCEEDED,
    UDP,
    Fate,
    IcmpError,
    IcmpReason,
    Interface,
    Ledger,
    Packet,
    Quote,
    Segment,
    icmp_error,
)
from nattype.model import Filtering, Mapping, NatModel, Unsolicited
from stun.sansio import SECOND, Address, Instant

STREAM_AFTER: Final = 2 * SECOND
"""Linux: a UDP session is a stream once packets went both ways for longer than this."""
CLOSED_LIFETIME: Final = 10 * SECOND
"""Linux: nf_conntrack_tcp_timeout_close, after an RST."""

MappingKey: TypeAlias = tuple[int, Address, Address | str | None]

_NEW, _ESTABLISHED, _CLOSING, _CLOSED = range(4)


class Translation:
    """A mapping: an internal and an external endpoint, and the sessions between them."""

    __slots__ = (
        "created",
        "expires",
        "external",
        "hosts",
        "internal",
        "key",
        "protocol",
        "sessions",
    )

    def __init__(self, key: MappingKey, external: Address, now: Instant) -> None:
        self.key = key
        self.protocol, self.internal, _ = key
        self.external = external
        self.created = now
        self.expires = now
        self.sessions: dict[Address, Session] = {}
        self.hosts: dict[str, Instant] = {}
        """Until when a session with this remote host lives: the address-dependent filter."""


class Session:
    """One remote endpoint of a mapping."""

    __slots__ = (
        "created",
        "expires",
        "fins",
        "outward",
        "remote",
        "replied",
        "state",
        "via",
    )

    def __init__(self, via: Translation, remote: Address, now: Instant, *, outward: bool) -> None:
        self.via = via
        self.remote = remote
        self.created = now
        self.expires = now
        self.outward = outward
        """Whether its first packet came from inside."""
        self.replied = False
        self.state = _NEW
        self.fins = 0


class Box:
    """A NAT or a firewall: the gateway of an inside network, a guest on an outside network."""

    def __init__(
        self,
        name: str,
        model: NatModel,
        *,
        clock: Clock,
        ledger: Ledger,
        random: Random,
        options: SimOptions = LIKE_LINUX,
    ) -> None:
        self.name = name
        self.model = model
        self.options = options
        self._clock = clock
        self._ledger = ledger
        self._ports = PortPool(model, options, random, self._free)
        self._inside: Interface
        self._outside: Interface
        self._firewall = model.mapping is Mapping.NONE
        self._owned: set[str] = set()
        self._translations: dict[MappingKey, Translation] = {}
        self._by_external: dict[tuple[int, Address], Translation] = {}
        self._sessions: dict[tuple[int, Address, Address], Session] = {}
        self._poison: dict[tuple[Address, Address], Instant] = {}
        self._sweep_at = 1024
        self._one_shot = round(model.lifetimes.udp_one_shot * SECOND)
        self._stream = round(model.lifetimes.udp_stream * SECOND)
        self._tcp_established = round(model.lifetimes.tcp_established * SECOND)
        self._tcp_transitory = round(options.tcp_transitory * SECOND)
        self._remap_after: Instant | None = (
            None if options.remap_after is None else round(options.remap_after * SECOND)
        )
        self._refreshes = {
            outward: options.refresh
            in (Refresh.BOTH, Refresh.OUTBOUND if outward else Refresh.INBOUND)
            for outward in (False, True)
        }
        self._by_host = model.filtering is Filtering.ADDRESS_DEPENDENT

    # Cabling. ------------------------------------------------------------------------------------

    def connect(self, inside: Interface, outside: Interface, external: Sequence[str]) -> None:
        """Plug both sides in.  ``external`` are the addresses that mappings come from."""
        self._inside, self._outside = inside, outside
        inside.network.gateway = inside
        for host in (*inside.addresses, *outside.addresses):
            self._owned.add(host)
        for host in external:
            self._ports.add(host)

    def adopt(self, host: str) -> None:
        """Learn of an inside host; a firewall makes its address known outside."""
        if self._firewall:
            outside = self._outside.network
            outside.route(host, self._outside)
            if outside.gateway is not None and isinstance(outside.gateway.node, Box):
                outside.gateway.node.adopt(host)

    def external_addresses(self, *, ipv6: bool = False) -> tuple[str, ...]:
        """Return the addresses that mappings of a family can have."""
        return tuple(self._ports.hosts[ipv6])

    def translations(self) -> list[tuple[int, Address, Address]]:
        """Return (IP protocol, internal, external) of each mapping that is alive, oldest first."""
        now = self._clock.now
        return [
            (t.protocol, t.internal, t.external)
            for t in self._translations.values()
            if t.expires > now
        ]

    def forget(self) -> None:
        """Lose all state, as by a restart."""
        self._translations.clear()
        self._by_external.clear()
        self._sessions.clear()
        self._poison.clear()

    # Packets. ------------------------------------------------------------------------------------

    def receive(self, packet: Packet, interface: Interface) -> None:
        """Take a packet from either side."""
        packet.ttl -= 1
        if packet.ttl <= 0:
            self._ledger.drop(packet, self.name, Fate.TTL_EXPIRED)
            self._answer(packet, interface, TIME_EXCEEDED)
            return
        protocol = packet.protocol
        if (protocol == UDP and self.model.udp_blocked) or (
            protocol == TCP and self.model.tcp_blocked
        ):
            self._ledger.drop(packet, self.name, Fate.BLOCKED)
        elif packet.fragments > 1 and self.options.drop_fragments:
            self._ledger.drop(packet, self.name, Fate.FRAGMENT_DROPPED)
        elif isinstance(packet, IcmpError):
            if interface is self._inside:
                self._error_outward(packet)
            else:
                self._error_inward(packet)
        elif interface is self._inside:
            self._outward(packet)
        else:
            self._inward(packet)

    def _outward(self, packet: Packet) -> None:
        destination = packet.destination
        hairpin = destination.host in self._ports.hosts[":" in destination.host]
        if not hairpin and destination.host in self._owned:
            self._to_router(packet, self._inside)
            return
        if hairpin and not self.model.hairpin:
            self._ledger.drop(packet, self.name, Fate.NO_HAIRPIN)
            return
        session = self._session_from_inside(packet)
        if session is None:
            return
        internal = packet.source
        packet.source = session.via.external
        if self.options.alg and not self._firewall:
            _rewrite(packet, internal.host, packet.source.host)
        if not hairpin:
            self._outside.network.carry(packet, self._outside)
        elif self._inward(packet) and self.options.hairpin_internal_source:
            packet.source = internal

    def _session_from_inside(self, packet: Packet) -> Session | None:
        """Return the session of a packet from inside, opened if need be; ``None`` if dropped."""
        now = self._clock.now
        key = (packet.protocol, packet.source, packet.destination)
        session = self._sessions.get(key)
        if session is None or session.expires <= now or self._outlived(session.via):
            if packet.protocol == TCP:
                assert isinstance(packet, Segment)
                if packet.flags & (RST | FIN):
                    # Linux opens a session for a segment in mid-stream, but not for the end of one.
                    self._ledger.drop(packet, self.name, Fate.INVALID)
                    return None
            via = self._translation_for(packet)
            if via is None:
                self._ledger.drop(packet, self.name, Fate.NO_PORT)
                return None
            session = via.sessions.get(packet.destination)
            if session is None or session.expires <= now:
                session = self._open(via, packet.destination, outward=True)
            self._sessions[key] = session
        self._refresh(session, packet, outward=True)
        return session

    def _inward(self, packet: Packet) -> bool:
        """Take a packet for an external endpoint; say whether it was let in."""
        now = self._clock.now
        via = self._by_external.get((packet.protocol, packet.destination))
        if via is None or via.expires <= now:
            self._unmapped(packet)
            return False
        session = via.sessions.get(packet.source)
        if session is None or session.expires <= now:
            if not self._invites(via, packet):
                self._uninvited(packet)
                return False
            session = self._open(via, packet.source, outward=False)
            # The answer must leave by this mapping, unless another one already leads there.
            key = (packet.protocol, via.internal, packet.source)
            other = self._sessions.get(key)
            if other is None or other.expires <= now:
                self._sessions[key] = session
        elif session.state == _CLOSED and isinstance(packet, Segment) and packet.flags & SYN:
            # Linux's table has no way from CLOSE for a SYN in the direction that did not dial.
            self._uninvited(packet)
            return False
        self._refresh(session, packet, outward=False)
        external = packet.destination
        packet.destination = via.internal
        if self.options.alg and not self._firewall:
            _rewrite(packet, external.host, via.internal.host)
        self._inside.network.carry(packet, self._inside)
        return True

    def _invites(self, via: Translation, packet: Packet) -> bool:
        filtering = self.model.filtering
        if filtering in (Filtering.ENDPOINT_INDEPENDENT, Filtering.NONE):
            return True
        if isinstance(packet, Segment) and self.model.unsolicited_tcp is Unsolicited.OPEN:
            return True
        return self._by_host and via.hosts.get(packet.source.host, 0) > self._clock.now

    def _unmapped(self, packet: Packet) -> None:
        """Take a packet from outside for which there is no mapping."""
        if not self._firewall:
            self._uninvited(packet)
        elif packet.destination.host in self._owned:
            self._to_router(packet, self._outside)
        elif self.model.filtering is Filtering.NONE or (
            packet.protocol == TCP and self.model.unsolicited_tcp is Unsolicited.OPEN
        ):
            key = (packet.protocol, packet.destination, None)
            via = self._install(Translation(key, packet.destination, self._clock.now))
            session = self._open(via, packet.source, outward=False)
            self._sessions[packet.protocol, packet.destination, packet.source] = session
            self._refresh(session, packet, outward=False)
            self._inside.network.carry(packet, self._inside)
        else:
            self._uninvited(packet)

    def _uninvited(self, packet: Packet) -> None:
        """Refuse a packet from outside in the way that the model says."""
        if packet.protocol == UDP:
            if self.model.remaps_after_inbound:
                # The router's own stack takes it, and its conntrack remembers who asked for what.
                key = (packet.destination, packet.source)
                self._poison[key] = self._clock.now + self._one_shot
                self._to_router(packet, self._outside)
            else:
                self._ledger.drop(packet, self.name, Fate.NOT_INVITED)
            return
        assert isinstance(packet, Segment)
        if packet.flags & SYN and not packet.flags & ACK and self.options.syn_hold:
            self._ledger.drop(packet, self.name, Fate.HELD)
            due = self._clock.now + round(self.options.syn_hold * SECOND)
            self._clock.at(due, self._end_hold, _Held(packet, self._clock.now))
            return
        self._ledger.drop(packet, self.name, Fate.NOT_INVITED)
        match self.model.unsolicited_tcp:
            case Unsolicited.RST:
                self._reset(packet, self._outside)
            case Unsolicited.ICMP:
                # Type 3, code 3: what RFC 5382 REQ-4 names.
                self._answer(packet, self._outside, PORT_UNREACHABLE)
            case _:
                pass

    def _end_hold(self, held: _Held, _: object) -> None:
        # RFC 5382 REQ-4: "If during this interval the NAT receives and translates an outbound SYN
        # for the connection the NAT MUST silently drop the original unsolicited inbound SYN
        # packet.  Otherwise, the NAT SHOULD send an ICMP Port Unreachable error (Type 3, Code 3)".
        packet = held.packet
        via = self._by_external.get((TCP, packet.destination))
        session = via.sessions.get(packet.source) if via is not None else None
        if session is None or session.created < held.since:
            self._answer(packet, self._outside, PORT_UNREACHABLE)

    def _to_router(self, packet: Packet, interface: Interface) -> None:
        """Let the box's own stack, on which nothing listens, take a packet."""
        self._ledger.drop(packet, self.name, Fate.TO_ROUTER)
        if isinstance(packet, Segment):
            self._reset(packet, interface)
        else:
            self._answer(packet, interface, PORT_UNREACHABLE)

    # ICMP errors and resets. ---------------------------------------------------------------------

    def _answer(self, packet: Packet, interface: Interface, reason: IcmpReason) -> None:
        own = interface.address(ipv6=packet.source.is_ipv6)
        error = icmp_error(own, packet, reason) if own is not None else None
        if error is not None:
            self._ledger.send(error, self.name)
            interface.network.carry(error, interface)

    def _reset(self, packet: Segment, interface: Interface) -> None:
        reset = reset_for(packet)
        if reset is not None:
            self._ledger.send(reset, self.name)
            interface.network.carry(reset, interface)

    def _error_inward(self, packet: IcmpError) -> None:
        """Pass an error about a packet that left by a mapping (RFC 4787 REQ-10, RFC 5508)."""
        protocol, source, destination = packet.quote
        via = self._by_external.get((protocol, source))
        if via is None or destination not in via.sessions:
            self._ledger.drop(packet, self.name, Fate.INVALID)
            return
        packet.quote = Quote(protocol, via.internal, destination)
        packet.destination = Address(via.internal.host, 0)
        self._inside.network.carry(packet, self._inside)

    def _error_outward(self, packet: IcmpError) -> None:
        """Pass an error that an inside host, or a box further in, sends about an inbound packet."""
        protocol, source, destination = packet.quote
        session = self._sessions.get((protocol, destination, source))
        if session is None:
            self._ledger.drop(packet, self.name, Fate.INVALID)
            return
        packet.quote = Quote(protocol, source, session.via.external)
        packet.source = Address(session.via.external.host, 0)
        self._outside.network.carry(packet, self._outside)

    # Mappings and sessions. ----------------------------------------------------------------------

    def _open(self, via: Translation, remote: Address, *, outward: bool) -> Session:
        session = Session(via, remote, self._clock.now, outward=outward)
        via.sessions[remote] = session
        return session

    def _outlived(self, via: Translation) -> bool:
        """Whether the box replaces this mapping although it is in use; if so, it is gone now."""
        if self._remap_after is None or self._clock.now < via.created + self._remap_after:
            return False
        self._remove(via)
        return True

    def _translation_for(self, packet: Packet) -> Translation | None:
        now = self._clock.now
        protocol, internal, remote = packet.protocol, packet.source, packet.destination
        dependence: Address | str | None
        match self.model.mapping:
            case Mapping.ADDRESS_DEPENDENT:
                dependence = remote.host
            case Mapping.ADDRESS_AND_PORT_DEPENDENT:
                dependence = remote
            case _:
                dependence = None
        via = self._live((protocol, internal, dependence))
        if via is None:
            key = (protocol, internal, dependence)
            external = internal if self._firewall else self._ports.allocate(protocol, internal)
            if external is None:
                return None
            via = self._install(Translation(key, external, now))
        if self._poison and self._poison.get((via.external, remote), 0) > now:
            # Linux: the tuple that this flow would answer to is taken by the packet that came
            # uninvited, so this one flow gets another port.
            key = (protocol, internal, remote)
            alone = self._live(key) if key != via.key else None
            if alone is None:
                external = self._ports.allocate(protocol, internal, preserve=False)
                if external is None:
                    return None
                alone = Translation(key, external, now)
                if key == via.key:
                    self._remove(via)
                self._install(alone)
            via = alone
        return via

    def _live(self, key: MappingKey) -> Translation | None:
        via = self._translations.get(key)
        if via is None:
            return None
        if via.expires <= self._clock.now or self._outlived(via):
            self._remove(via)
            return None
        return via

    def _install(self, via: Translation) -> Translation:
        stale = self._translations.get(via.key)
        if stale is not None:
            self._remove(stale)
        if len(self._translations) >= self._sweep_at:
            self._sweep()
        self._translations[via.key] = via
        self._by_external[via.protocol, via.external] = via
        return via

    def _remove(self, via: Translation) -> None:
        if self._translations.get(via.key) is via:
            del self._translations[via.key]
        if self._by_external.get((via.protocol, via.external)) is via:
            del self._by_external[via.protocol, via.external]
        for remote, session in via.sessions.items():
            if self._sessions.get((via.protocol, via.internal, remote)) is session:
                del self._sessions[via.protocol, via.internal, remote]

    def _free(self, protocol: int, external: Address) -> bool:
        other = self._by_external.get((protocol, external))
        if other is None:
            return True
        if other.expires > self._clock.now:
            return False
        self._remove(other)
        return True

    def _sweep(self) -> None:
        now = self._clock.now
        for via in [t for t in self._translations.values() if t.expires <= now]:
            self._remove(via)
        self._poison = {key: at for key, at in self._poison.items() if at > now}
        self._sweep_at = max(1024, 2 * len(self._translations))

    def _refresh(self, session: Session, packet: Packet, *, outward: bool) -> None:
        """Move a session's state and its end for a packet in one direction."""
        now = self._clock.now
        reply = outward is not session.outward
        if isinstance(packet, Segment):
            lifetime = self._tcp_step(session, packet, reply=reply, outward=outward)
        elif not session.replied:
            lifetime = self._one_shot
        elif now > session.created + STREAM_AFTER:
            lifetime = self._stream
        else:
            lifetime = self._one_shot
        session.replied = session.replied or reply
        via = session.via
        if packet.protocol == UDP and not self._refreshes[outward]:
            if session.expires > now:
                return
            if not outward:
                # A stranger's packet opens a session, but does not make the mapping live longer.
                lifetime = min(lifetime, via.expires - now)
        expires = now + lifetime
        shortened = expires < session.expires
        session.expires = expires
        if shortened:
            self._shorten(via)
        elif outward or session.outward or session.replied:
            # A stranger whom nobody answers does not keep a mapping alive.
            via.expires = max(via.expires, expires)
            if self._by_host:
                host = session.remote.host
                via.hosts[host] = max(expires, via.hosts.get(host, 0))

    def _shorten(self, via: Translation) -> None:
        """Let a mapping, one of whose connections has ended, live as long as the other ones.

        It stays for the transitory time, so that an endpoint-independent mapping does not change
        because one connection was refused.
        """
        least = self._clock.now + self._tcp_transitory
        sessions = via.sessions.values()
        via.expires = max(min(via.expires, least), *(s.expires for s in sessions))
        for host, until in via.hosts.items():
            via.hosts[host] = max(
                min(until, least), *(s.expires for s in sessions if s.remote.host == host), 0
            )

    def _tcp_step(
        self, session: Session, packet: Segment, *, reply: bool, outward: bool
    ) -> Instant:
        """Move a TCP session's state; return its lifetime from now."""
        flags = packet.flags
        if flags & RST:
            if reply and not session.replied:
                # "If only reply is a RST, we can consider ourselves not to have an established
                # connection": Linux forgets the session at once.
                session.state = _CLOSED
                return 0
            session.state = _CLOSED
            return CLOSED_LIFETIME
        if flags & SYN and not flags & ACK:
            if session.state in (_CLOSING, _CLOSED) and not reply:
                session.state, session.replied, session.fins = _NEW, False, 0
        elif session.state == _NEW and (session.replied if not flags & SYN else not reply):
            # Each side has now seen the other.  (A SYN-ACK from the side that dialled is the
            # middle of a simultaneous open.)
            session.state = _ESTABLISHED
        if flags & FIN:
            session.fins |= 1 if outward else 2
            if session.fins == 3:
                session.state = _CLOSING
        if session.state == _ESTABLISHED:
            return self._tcp_established
        return CLOSED_LIFETIME if session.state == _CLOSED else self._tcp_transitory


class _Held:
    """A SYN that waits for its six seconds; as a bare packet it would count as in flight."""

    __slots__ = ("packet", "since")

    def __init__(self, packet: Segment, since: Instant) -> None:
        self.packet = packet
        self.since = since


def reset_for(segment: Segment) -> Segment | None:
    """Return the RST that answers a segment for no connection (RFC 9293 section 3.10.7.1)."""
    if segment.flags & RST:
        return None
    if segment.flags & ACK:
        return Segment(segment.destination, segment.source, RST, segment.acknowledgment)
    length = len(segment.data) + bool(segment.flags & SYN) + bool(segment.flags & FIN)
    return Segment(
        segment.destination, segment.source, RST | ACK, 0, acknowledgment=segment.sequence + length
    )


def _rewrite(packet: Packet, old: str, new: str) -> None:
    if packet.protocol == UDP:
        packet.data = packet.data.replace(ip_address(old).packed, ip_address(new).packed)
