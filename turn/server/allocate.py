"""Allocate (RFC 8656 section 7.2; RFC 6062 section 5.1; RFC 8016 section 3.1.2).

Theory of operation.  The checks need no socket and are done at once.  Then the relayed transport
addresses are opened, which the driver does: an :class:`_Opening` waits for its answers.  It has a
*slot* for each address: one; or two families (a dual allocation); or a port and the next one, which
is held for whoever brings the RESERVATION-TOKEN.  A port that somebody else has is replaced by
another, a few times.  The request is answered when every slot is decided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from stun.attributes import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    ALTERNATE_SERVER,
    DONT_FRAGMENT,
    EVEN_PORT,
    LIFETIME,
    MOBILITY_TICKET,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    XOR_MAPPED_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressError,
    Attribute,
)
from stun.message import Message
from stun.registry import ErrorCode, Family
from stun.sansio import (
    SECOND,
    Address,
    Cause,
    Closed,
    Handle,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Shut,
)
from turn.server.allocation import Allocation, Flow, FlowKey, Relay, Reservation
from turn.server.config import RelayAddress, ServerConfig
from turn.server.core import Core
from turn.server.hosting import Request
from turn.server.lifetimes import Lifetimes
from turn.server.mobility import Tickets
from turn.server.policy import tunnel_of
from turn.server.quota import Refusal
from turn.server.spares import Spares

T = TypeVar("T")

UDP: Final = 17
TCP: Final = 6
"""Protocol numbers in REQUESTED-TRANSPORT (RFC 8656 section 18.8, RFC 6062 section 4.1)."""
COTURN_ADDITIONAL: Final = 0x8032
"""What coturn and its clients have for ADDITIONAL-ADDRESS-FAMILY, of the time before it had a
number (0x8000).  IANA has given it to nothing."""
_OPTIONS = frozenset(
    {
        EVEN_PORT.code,
        RESERVATION_TOKEN.code,
        REQUESTED_ADDRESS_FAMILY.code,
        ADDITIONAL_ADDRESS_FAMILY.code,
        COTURN_ADDITIONAL,
        DONT_FRAGMENT.code,
        MOBILITY_TICKET.code,
    }
)
"""What an Allocate may ask for beyond an address and a lifetime."""
ATTEMPTS: Final = 8
"""Ports that are tried for one relayed transport address."""
RESERVED_FOR: Final = 30 * SECOND
""""The server MUST hold this reservation for at least 30 seconds" (RFC 8656 section 7.2)."""

DRAINING: Final = "the server takes no new allocations"


class _Slot:
    """A relayed transport address that is being opened."""

    __slots__ = ("attempts", "family", "handle", "local", "places", "problem", "relay")

    def __init__(self, family: int, places: list[RelayAddress]) -> None:
        self.family = family
        self.places = places
        """Where it may be; the first is tried now."""
        self.attempts = 0
        self.handle: Handle = 0
        self.local = Address("", 0)
        self.relay: Relay | None = None
        self.problem = ""
        """Why there is none, once there is to be none."""

    @property
    def is_decided(self) -> bool:
        return self.relay is not None or bool(self.problem)


class _Wish:
    """What an Allocate request asks for, once it has passed every check."""

    __slots__ = ("even", "families", "lifetime", "mobile", "reserve", "tcp", "token", "unserved")

    def __init__(self) -> None:
        self.families: list[int] = []
        self.unserved: int | None = None
        """The family of a dual allocation that this server does not have."""
        self.tcp = False
        self.even = False
        self.reserve = False
        self.token: bytes | None = None
        self.mobile = False
        self.lifetime: Instant = 0


class _Opening:
    """An Allocate request whose addresses are being opened."""

    __slots__ = ("account", "next_port", "request", "since", "slots", "wish")

    def __init__(self, request: Request, wish: _Wish, slots: list[_Slot], now: Instant) -> None:
        self.request = request
        self.wish = wish
        self.slots = slots
        self.since = now
        self.account = request.authentic.account
        self.next_port: _Slot | None = None
        """The slot of the port to be reserved."""


class Refused(Exception):
    """The request gets this error."""

    def __init__(
        self, code: ErrorCode, detail: str, attributes: tuple[tuple[int, bytes], ...] = ()
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.attributes = attributes


class Allocator:
    """Does Allocate requests."""

    def __init__(self, core: Core, lifetimes: Lifetimes, tickets: Tickets) -> None:
        self._core = core
        self._lifetimes = lifetimes
        self._tickets = tickets
        self.spares = Spares(core)
        self._openings: dict[FlowKey, _Opening] = {}
        self._slots: dict[Handle, tuple[_Opening, _Slot]] = {}
        self._reservations: dict[bytes, Reservation] = {}
        self._turn = 0

    # The request. ---------------------------------------------------------------------------------

    def allocate(self, request: Request, now: Instant) -> None:
        """Do an Allocate request."""
        core, key = self._core, request.key
        opening = self._openings.get(key)
        if opening is not None:
            if opening.request.message.transaction_id != request.message.transaction_id:
                core.refuse(
                    request, ErrorCode.ALLOCATION_MISMATCH, "another Allocate is under way", now
                )
            # Else it is the same request again: its answer comes when the port is open.
            return
        try:
            if request.allocation is not None:
                raise Refused(ErrorCode.ALLOCATION_MISMATCH, "the five-tuple has an allocation")
            wish = self._examine(request, now)
            self._redirect(request)
            self._admit(request, wish)
        except Refused as refused:
            core.refuse(request, refused.code, refused.detail, now, refused.attributes)
            return
        self._turn += 1
        slots = [_Slot(family, self._places(family)) for family in wish.families]
        opening = self._openings[key] = _Opening(request, wish, slots, now)
        if wish.token is not None:
            self._redeem(opening, wish.token)
        else:
            for slot in slots:
                self._open(opening, slot, now)
        self._advance(opening, now)

    def _examine(self, request: Request, now: Instant) -> _Wish:
        """Check the request in the order of section 7.2; raises :class:`Refused`."""
        message, flow, config = request.message, request.flow, self._core.config
        hosts = self._core.hosts
        wish = _Wish()
        tunnel = tunnel_of(flow.client.host)
        if tunnel:
            raise Refused(ErrorCode.FORBIDDEN, f"from a {tunnel} address")
        present = request.present

        def optional(attribute: Attribute[T]) -> T | None:
            return message.get(attribute) if attribute.code in present else None

        protocol = message.get(REQUESTED_TRANSPORT)
        if protocol is None:
            raise Refused(ErrorCode.BAD_REQUEST, "no REQUESTED-TRANSPORT")
        if protocol not in (UDP, TCP) or (protocol == TCP and not config.tcp_relay):
            raise Refused(
                ErrorCode.UNSUPPORTED_TRANSPORT_PROTOCOL, f"REQUESTED-TRANSPORT {protocol}"
            )
        wish.tcp = protocol == TCP
        if protocol == UDP and _OPTIONS.isdisjoint(present):  # as most requests are
            wish.lifetime = granted(config, optional(LIFETIME), request, now)
            wish.families = [self._served(Family.IPV4)]
            return wish
        even, token = optional(EVEN_PORT), optional(RESERVATION_TOKEN)
        asked, added = optional(REQUESTED_ADDRESS_FAMILY), optional(ADDITIONAL_ADDRESS_FAMILY)
        if added is None and COTURN_ADDITIONAL in present:
            added = ADDITIONAL_ADDRESS_FAMILY.from_octets(present[COTURN_ADDITIONAL])
        dont_fragment = optional(DONT_FRAGMENT)
        if wish.tcp:
            # RFC 6062 section 5.1.
            if not flow.is_stream:
                raise Refused(
                    ErrorCode.BAD_REQUEST, f"a TCP allocation over {flow.transport.value}"
                )
            if even is not None or token is not None or dont_fragment is not None:
                raise Refused(
                    ErrorCode.BAD_REQUEST,
                    "DONT-FRAGMENT, EVEN-PORT or RESERVATION-TOKEN with a TCP allocation",
                )
        wish.mobile = self._examine_mobility(optional(MOBILITY_TICKET))
        wish.lifetime = granted(config, optional(LIFETIME), request, now)
        if token is not None:
            if even is not None or asked is not None or added is not None:
                raise Refused(ErrorCode.BAD_REQUEST, "RESERVATION-TOKEN with what it excludes")
            if token not in self._reservations:
                raise Refused(ErrorCode.INSUFFICIENT_CAPACITY, "no such reservation")
            wish.token = token
            return wish
        if asked is not None and added is not None:
            raise Refused(
                ErrorCode.BAD_REQUEST, "REQUESTED- and ADDITIONAL-ADDRESS-FAMILY together"
            )
        wish.even, wish.reserve = even is not None, bool(even)
        if added is not None:
            if added != Family.IPV6:
                raise Refused(ErrorCode.BAD_REQUEST, f"ADDITIONAL-ADDRESS-FAMILY {added:#04x}")
            if wish.reserve or wish.tcp:
                raise Refused(
                    ErrorCode.BAD_REQUEST, "ADDITIONAL-ADDRESS-FAMILY with what it excludes"
                )
            wish.families = [family for family, places in hosts.items() if places]
            missing = [family for family, places in hosts.items() if not places]
            wish.unserved = missing[0] if missing else None
        else:
            wish.families = [self._served(Family.IPV4 if asked is None else asked)]
        return wish

    def _served(self, family: int) -> int:
        if not self._core.hosts.get(family):
            raise Refused(ErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED, f"address family {family:#04x}")
        return family

    def _examine_mobility(self, ticket: bytes | None) -> bool:
        # RFC 8016 section 3.1.2.
        if ticket is None:
            return False
        if ticket:
            raise Refused(ErrorCode.BAD_REQUEST, "MOBILITY-TICKET with a value")
        if not self._core.config.mobility:
            raise Refused(ErrorCode.MOBILITY_FORBIDDEN, "mobility is off")
        return True

    def _admit(self, request: Request, wish: _Wish) -> None:
        """Charge the quotas, twice where a port is to be reserved; raises :class:`Refused`."""
        core, account, host = self._core, request.authentic.account, request.flow.client.host
        if wish.token is not None:
            # The port is paid for; whoever redeems it takes the charge over.
            held = self._reservations[wish.token]
            self._check(core.quotas.transfer(held.account, held.client_host, account, host))
            return
        for charged in range(2 if wish.reserve else 1):
            refusal = core.quotas.admit(account, host)
            if refusal is None:
                continue
            for _ in range(charged):
                core.quotas.release(account, host)
            self._check(refusal)

    def _check(self, refusal: Refusal | None) -> None:
        if refusal is None:
            return
        code = ErrorCode.make(refusal.code)
        whose = "server" if code is ErrorCode.INSUFFICIENT_CAPACITY else "user or client"
        self._core.metrics.quota_refusals[whose] += 1
        raise Refused(code, refusal.detail)

    def _discharge(self, opening: _Opening) -> None:
        for _ in range(2 if opening.wish.reserve else 1):
            self._core.quotas.release(opening.account, opening.request.flow.client.host)

    def _redirect(self, request: Request) -> None:
        """Send the client elsewhere, if it is to go there; raises :class:`Refused`."""
        if self._core.config.alternates:
            self._name_alternate(request)
        if self._lifetimes.draining:
            raise Refused(ErrorCode.INSUFFICIENT_CAPACITY, DRAINING)

    def _name_alternate(self, request: Request) -> None:
        alternates, ipv6 = self._core.config.alternates, request.flow.client.is_ipv6
        # RFC 8489 section 10: "at least one [...] which MUST contain an IP address of the same
        # address family as the source IP address of the request message", and one of the other
        # family after it if there is one.
        named = [server for server in alternates if server.is_ipv6 is ipv6]
        others = [server for server in alternates if server.is_ipv6 is not ipv6]
        if named:
            self._turn += 1
            chosen = [servers[self._turn % len(servers)] for servers in (named, others) if servers]
            transaction_id = request.message.transaction_id
            values = [ALTERNATE_SERVER.pack(server, transaction_id) for server in chosen]
            raise Refused(
                ErrorCode.TRY_ALTERNATE,
                f"sent to {chosen[0]}",
                tuple((ALTERNATE_SERVER.code, value) for value in values),
            )

    def _places(self, family: int) -> list[RelayAddress]:
        """Return the hosts of a family, each time another one first."""
        places = self._core.hosts[family]
        start = self._turn % len(places)
        return places[start:] + places[:start]

    # Opening. -------------------------------------------------------------------------------------

    def _open(self, opening: _Opening, slot: _Slot, now: Instant) -> None:
        """Try a port for a slot, and the next one if that is to be reserved."""
        core, wish = self._core, opening.wish
        while slot.places:
            place = slot.places[0]
            if not wish.even and not wish.tcp and (spare := self.spares.take(place)) is not None:
                slot.relay = Relay(*spare, place)
                core.add_relay(slot.relay)
                return
            following: int | None = None
            if wish.reserve:
                pair = core.ports.pick_pair(place.local, now)
                port, following = pair or (None, None)
            elif wish.even:
                port = core.ports.pick_even(place.local, now)
            else:
                port = core.ports.pick(place.local, now)
            if port is not None:
                break
            slot.places.pop(0)
        else:
            slot.problem = slot.problem or "no port is free"
            return
        slot.problem = ""
        slot.attempts += 1
        self._bind(opening, slot, place, port)
        if following is not None:
            opening.next_port = _Slot(slot.family, [place])
            self._bind(opening, opening.next_port, place, following)

    def _bind(self, opening: _Opening, slot: _Slot, place: RelayAddress, port: int) -> None:
        core = self._core
        slot.handle = core.next_handle()
        slot.local = Address(place.local, port)
        self._slots[slot.handle] = (opening, slot)
        core.queue(
            Listen(slot.handle, slot.local)
            if opening.wish.tcp
            else OpenUdp(slot.handle, slot.local)
        )

    def _redeem(self, opening: _Opening, token: bytes) -> None:
        """Use the port that was reserved."""
        reservation = self._reservations.pop(token)
        self._core.expiry.cancel(reservation)
        relay = reservation.relay
        slot = _Slot(Family.IPV6 if relay.place.is_ipv6 else Family.IPV4, [relay.place])
        slot.relay = relay
        opening.slots.append(slot)

    def owns(self, handle: Handle) -> bool:
        """Whether a socket is one of those that are no allocation's yet."""
        return handle in self._slots or self.spares.owns(handle)

    def is_opening(self, key: FlowKey) -> bool:
        """Whether an Allocate request of a five-tuple is not answered yet."""
        return key in self._openings

    def opened(self, event: Opened, now: Instant) -> None:
        """Take note that a port is open."""
        if self.spares.opened(event):
            return
        opening, slot = self._slots.pop(event.handle)
        slot.relay = Relay(event.handle, event.local, slot.places[0], tcp=opening.wish.tcp)
        self._core.add_relay(slot.relay)
        self._advance(opening, now)

    def closed(self, event: Closed, now: Instant) -> None:
        """Take note that a port could not be had, and try another."""
        core = self._core
        if event.handle not in self._slots:
            self.spares.closed(event, now)
            return
        opening, slot = self._slots.pop(event.handle)
        host, port = slot.local
        if event.cause is Cause.ADDRESS_IN_USE:
            core.ports.refused(host, port, now)
        else:
            # Another port of this host would fare no better.
            slot.places = slot.places[1:]
            core.ports.give_back(host, port)
        slot.problem = f"{slot.local}: {event.detail or event.cause.value}"
        self._advance(opening, now)

    def _advance(self, opening: _Opening, now: Instant) -> None:
        """Answer, try again, or wait for what is not decided yet."""
        partner = opening.next_port
        if partner is not None:
            first = opening.slots[0]
            if not (first.is_decided and partner.is_decided):
                return
            if first.problem or partner.problem:
                # A pair is had whole or not at all.
                first.problem = first.problem or partner.problem
                for slot in (first, partner):
                    if slot.relay is not None:
                        self._core.shut_relay(slot.relay)
                        slot.relay = None
                opening.next_port = None
        decided = True
        for slot in opening.slots:
            if slot.problem and slot.places and slot.attempts < ATTEMPTS:
                self._open(opening, slot, now)
            decided = decided and slot.is_decided
        if not decided:
            return
        del self._openings[opening.request.key]
        relays = tuple([slot.relay for slot in opening.slots if slot.relay is not None])
        if relays:
            self._succeed(opening, relays, now)
        else:
            self._fail(opening, now)

    def _fail(self, opening: _Opening, now: Instant) -> None:
        request = opening.request
        self._discharge(opening)
        problems = "; ".join(dict.fromkeys(slot.problem for slot in opening.slots))
        self._core.metrics.quota_refusals["ports"] += 1
        self._core.refuse(
            request, ErrorCode.INSUFFICIENT_CAPACITY, problems or "no address to relay from", now
        )

    def _succeed(self, opening: _Opening, relays: tuple[Relay, ...], now: Instant) -> None:
        core, request, wish = self._core, opening.request, opening.wish
        for relay in relays:
            relay.expires = now + wish.lifetime
        session = core.entropy(6).hex()
        while session in core.sessions:
            session = core.entropy(6).hex()
        authentic, flow = request.authentic, request.flow
        allocation = Allocation(
            session=session,
            username=request.username,
            account=opening.account,
            flow=flow,
            relays=relays,
            tcp=wish.tcp,
            meter=core.quotas.meter(opening.account, flow.client.host),
            created=now,
        )
        if authentic.token:
            allocation.authentic = authentic
        response = Message.success(request.message)
        for relay in relays:
            response.add(XOR_RELAYED_ADDRESS, relay.advertised)
        response.add(LIFETIME, wish.lifetime // SECOND)
        if opening.next_port is not None and opening.next_port.relay is not None:
            token = self._reserve(opening.next_port.relay, opening, now)
            response.add(RESERVATION_TOKEN, token)
        response.add(XOR_MAPPED_ADDRESS, flow.client)
        failed = [(slot.family, 508) for slot in opening.slots if slot.relay is None]
        if wish.unserved is not None:
            failed.append((wish.unserved, ErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED))
        for family, code in failed:
            response.add(ADDRESS_ERROR_CODE, AddressError(family, code, ""))
        if wish.mobile:
            response.add(MOBILITY_TICKET, self._tickets.issue(allocation))
        # The answer first: what is queued behind it is done when it is on the way.
        core.answer(request, response, now)
        self._lifetimes.begin(allocation, now)
        core.metrics.allocate_latency.add(now - opening.since)
        if not wish.tcp:
            for relay in relays:
                self.spares.want(relay.place, now)

    # Reservations. --------------------------------------------------------------------------------

    def _reserve(self, relay: Relay, opening: _Opening, now: Instant) -> bytes:
        """Hold an open port for whoever brings the token."""
        core = self._core
        token = core.name(8)
        host = opening.request.flow.client.host
        reservation = Reservation(token, relay, opening.account, host)
        self._reservations[token] = reservation
        core.expiry.set(reservation, now + RESERVED_FOR)
        return token

    def give_up(self, reservation: Reservation) -> None:
        """End a reservation that nobody used."""
        del self._reservations[reservation.token]
        self._core.quotas.release(reservation.account, reservation.client_host)
        self._core.shut_relay(reservation.relay)

    # Endings. -------------------------------------------------------------------------------------

    def abort(self, flow: Flow) -> None:
        """Forget what is being opened for a client that is gone."""
        opening = self._openings.pop(flow.key, None)
        if opening is None:
            return
        slots = list(opening.slots)
        if opening.next_port is not None:
            slots.append(opening.next_port)
        for slot in slots:
            if slot.relay is not None:
                self._core.shut_relay(slot.relay)
            elif self._slots.pop(slot.handle, None) is not None:
                # Shut is carried out after the socket was opened, and no event follows it.
                self._core.queue(Shut(slot.handle))
                self._core.ports.give_back(*slot.local)
        self._discharge(opening)

    def lost(self, relay: Relay, now: Instant) -> None:
        """Forget a relayed transport address whose socket failed before it had an owner."""
        for reservation in [one for one in self._reservations.values() if one.relay is relay]:
            self._core.expiry.cancel(reservation)
            self.give_up(reservation)
        for opening in list(self._openings.values()):
            partner = () if opening.next_port is None else (opening.next_port,)
            if any(slot.relay is relay for slot in (*opening.slots, *partner)):
                self._give_up_opening(opening, "the socket failed", now)

    def drain(self, now: Instant) -> None:
        """Refuse what is being opened: it would be a new allocation."""
        self.spares.stop()
        for opening in list(self._openings.values()):
            self._give_up_opening(opening, DRAINING, now)

    def _give_up_opening(self, opening: _Opening, why: str, now: Instant) -> None:
        self.abort(opening.request.flow)
        self._core.refuse(opening.request, ErrorCode.INSUFFICIENT_CAPACITY, why, now)

    def reconfigure(self, is_served: Callable[[Address], bool]) -> None:
        """Forget what is being opened for clients of a listener that is gone."""
        for opening in list(self._openings.values()):
            flow = opening.request.flow
            if not flow.connection and not is_served(flow.server):
                self.abort(flow)

    def stop(self) -> None:
        """Forget everything that is not an allocation yet."""
        self.spares.stop()
        for opening in list(self._openings.values()):
            self.abort(opening.request.flow)
        for reservation in list(self._reservations.values()):
            self._core.expiry.cancel(reservation)
            self.give_up(reservation)


def granted(config: ServerConfig, asked: int | None, request: Request, now: Instant) -> Instant:
    """Return for how long an allocation lives: RFC 8656 section 7.2, the initial time-to-expiry.

    ``asked`` is in seconds, what is returned in nanoseconds.  With an access token it is at most
    the token's rest, in whole seconds.
    """
    lifetime = config.default_lifetime
    if asked is not None:
        lifetime = max(lifetime, min(asked * SECOND, config.max_lifetime))
    end = request.authentic.expires
    if end is not None:
        lifetime = min(lifetime, max(end - now, SECOND))
    return lifetime // SECOND * SECOND
