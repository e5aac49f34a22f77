"""What every part of the server machine shares: its tables, its queue, and how answers leave it.

The parts (:mod:`turn.server.machine` lists them) know each other little; they meet here.  Nothing
in these tables is made for anybody who has not proved who it is, save :class:`Connection`, which
the client's own operating system pays for as well.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from itertools import count
from typing import Final, TypeAlias

from stun.attributes import FINGERPRINT, SOFTWARE
from stun.codec import encode
from stun.errors import DropReason
from stun.framing import StunStream
from stun.message import Message
from stun.registry import Family, Method
from stun.responder import Endpoint
from stun.sansio import SECOND, Address, Entropy, Handle, Instant, Output, Shut, Transmit, Write
from turn.dataplane.base import RemoveRoute, RouteOrder
from turn.server.allocation import Allocation, Channel, Flow, FlowKey, Relay, Reservation
from turn.server.config import ListenAt, ServerConfig
from turn.server.events import RequestRefused, ServerEvent
from turn.server.expiry import Expiry
from turn.server.hosting import Request, Streams
from turn.server.metrics import Metrics
from turn.server.policy import Verdict, parse_network
from turn.server.ports import PortRange
from turn.server.quota import Quotas
from turn.server.replay import Replay
from turn.server.siblings import Siblings

LONGEST_REQUEST: Final = 4096
"""Octets of a message from a client that has not proved who it is; no request is longer.  So that
much of a stranger's unfinished message is kept, or of one that waits for the user store (and what
was read from its stream with it), and the work that one message can make is bounded."""
FAMILIES: Final[Mapping[int, bool]] = {Family.IPV4: False, Family.IPV6: True}
"""Address families by their numbers, and whether they are IPv6."""
REFUSALS_TOLD: Final = 20
"""How many :class:`turn.server.events.RequestRefused` a second are queued; the rest are counted."""

Expiring: TypeAlias = "Allocation | Reservation | Connection"

_FINGERPRINT = FINGERPRINT.code
_METHODS = {int(method): int(method) for method in Method}
_OF_RELAY = Verdict(True, "it is a relayed transport address of this server")


class Listener:
    """A place where clients come to, and what its Binding answers say."""

    __slots__ = ("at", "endpoint", "endpoints", "handle", "local")

    def __init__(self, handle: Handle, at: ListenAt) -> None:
        self.handle = handle
        self.at = at
        self.local: Address | None = None
        """Once it is open."""
        self.endpoint: Endpoint | None = None
        self.endpoints: dict[Address, Endpoint] = {}
        """Of a wildcard: by the local address that a client used."""


class Connection:
    """A client's connection: TCP, TLS or DTLS."""

    __slots__ = ("congested", "flow", "held", "listener", "parked", "seen", "stream")

    def __init__(
        self, flow: Flow, listener: Listener, stream: StunStream | None, now: Instant
    ) -> None:
        self.flow = flow
        self.listener = listener
        self.stream = stream
        """What cuts the octets into messages; a DTLS record is a message as it is."""
        self.seen = now
        """The last request."""
        self.congested = False
        self.parked = False
        """Whether a request of a stream waits for the user store, and all behind it with it."""
        self.held: bool | None = None
        """What the driver was told (:class:`stun.sansio.Hold`), ``None`` if nothing yet."""


class Core:
    """The tables, the queue and the answers.  Implements :class:`turn.server.hosting.Hosting`."""

    def __init__(
        self, config: ServerConfig, *, entropy: Entropy, siblings: Siblings | None = None
    ) -> None:
        self.config = config
        self.entropy = entropy
        self.siblings = siblings
        self.outbox: deque[Output | ServerEvent | RouteOrder] = deque()
        self.drops: Counter[DropReason] = Counter()
        self.metrics = Metrics()
        self.listeners: dict[Handle, Listener] = {}
        self.connections: dict[Handle, Connection] = {}
        self.allocations: dict[FlowKey, Allocation] = {}
        """A client that moves has two five-tuples for a while."""
        self.sessions: dict[str, Allocation] = {}
        self.tickets: dict[bytes, Allocation] = {}
        """By MOBILITY-TICKET."""
        self.places: dict[Address, Listener | Relay] = {}
        """Who has a local address that datagrams come to."""
        self.relays: dict[Handle, Relay] = {}
        self.relayed: dict[Address, Relay] = {}
        """Those of datagrams, by the address that peers see."""
        self.tcp_places: dict[Address, Relay] = {}
        self.tcp_relayed: dict[Address, Relay] = {}
        """The same two of TCP allocations.  They are apart because ports are: a client that has the
        UDP port of a number has no right to the TCP port, which any program of this host may have.
        """
        self.visited: dict[Address, set[Channel]] = {}
        """Channels that the data plane forwards to siblings' relayed transport addresses, by where
        those are bound."""
        self.expiry: Expiry[Expiring] = Expiry()
        self.replay = Replay()
        self.streams: Streams | None = None
        self._numbers = count(1)
        self._refusals_told = 0
        self._refusals_since: Instant = -SECOND
        self._software = b""
        self.apply(config)
        self.ports = PortRange(*config.ports, entropy)
        self.quotas = Quotas(config.limits, siblings)

    def apply(self, config: ServerConfig) -> None:
        """Go on by another configuration."""
        self.config = config
        self._software = SOFTWARE.to_octets(config.software) if config.software else b""
        denied = [parse_network(text) for text in config.policy.deny]
        self.hosts = {
            family: [relay for relay in config.relays if relay.is_ipv6 is ipv6]
            for family, ipv6 in FAMILIES.items()
        }
        """Where relayed transport addresses of a family may be."""
        self._bound = {relay.advertised: relay.local for relay in config.relays}
        self._seen = {relay.local: relay.advertised for relay in config.relays}
        self._own = frozenset(
            relay.advertised
            for relay in config.relays
            if not any(ip_address(relay.advertised) in network for network in denied)
        )

    # For every part. ------------------------------------------------------------------------------

    def queue(self, output: Output) -> None:
        """Have something done by the driver."""
        self.outbox.append(output)

    def tell(self, event: ServerEvent) -> None:
        """Tell of something."""
        self.outbox.append(event)

    def order(self, order: RouteOrder) -> None:
        """Have the data plane do something."""
        self.outbox.append(order)

    def next_handle(self) -> Handle:
        """Return a number for a socket."""
        return next(self._numbers)

    def name(self, size: int) -> bytes:
        """Return octets that nobody can guess; of siblings, the first is the number of this one.

        So whichever of them a client shows it to knows whose it is.
        """
        if self.siblings is None:
            return self.entropy(size)
        return bytes((self.siblings.number,)) + self.entropy(size - 1)

    def drop(self, reason: DropReason) -> None:
        """Count what was discarded."""
        self.drops[reason] += 1

    # Relayed transport addresses. -----------------------------------------------------------------

    def verdict_on_host(self, host: str) -> Verdict:
        """Say whether peers at ``host`` may be relayed to, as far as that can be said of a host.

        Permissions are for hosts, and the relayed transport addresses of other clients are on hosts
        of this server: so these pass here, and their ports are looked at one by one.
        """
        verdict = self.config.policy.check(host)
        return _OF_RELAY if host in self._own and not verdict.allowed else verdict

    def verdict_on_datagrams(self, peer: Address) -> Verdict:
        """Say whether a peer may be sent datagrams, and by which rule.

        The server's own hosts are refused, save the relayed transport addresses of other clients.
        What goes there stays among clients, so it does not matter if those hosts are private ones;
        what the operator denies is denied all the same.
        """
        return self._verdict(peer, self.relayed, tcp=False)

    def verdict(self, peer: Address) -> Verdict:
        """Say the same of connections with a peer."""
        return self._verdict(peer, self.tcp_relayed, tcp=True)

    def _verdict(self, peer: Address, relayed: Mapping[Address, Relay], *, tcp: bool) -> Verdict:
        verdict = self.config.policy.check(peer.host)
        if verdict.allowed or peer.host not in self._own:
            return verdict
        known = peer in relayed or self.of_sibling(peer, tcp=tcp) is not None
        return _OF_RELAY if known else verdict

    def of_sibling(self, peer: Address, *, tcp: bool = False) -> Address | None:
        """Return where a peer is bound that is a sibling's relayed transport address."""
        if self.siblings is None or (host := self._bound.get(peer.host)) is None:
            return None
        local = Address(host, peer.port)
        return local if self.siblings.has(local, tcp=tcp) else None

    def as_seen(self, source: Address, *, tcp: bool = False) -> Address:
        """Return the address that clients know a sibling's relayed transport address by.

        What is none is returned as it is.
        """
        if self.siblings is None or (host := self._seen.get(source.host)) is None:
            return source
        same = host == source.host or not self.siblings.has(source, tcp=tcp)
        return source if same else Address(host, source.port)

    def reach(self, peer: Address) -> Address | None:
        """Return where datagrams for a peer go; ``None`` where it may not be sent any.

        Another client's relayed transport address is reached where its socket is bound: a NAT in
        front of this server need not turn round what the server sends to itself.
        """
        other = self.relayed.get(peer)
        local = self.of_sibling(peer) if other is None else other.local
        if local is not None and peer.host in self._own:
            return local
        if not self.config.policy.check(peer.host).allowed:
            return None
        return peer if local is None else local

    def located(self, peer: Address) -> Address:
        """Return where a peer is reached from here by TCP."""
        other = self.tcp_relayed.get(peer)
        if other is None:
            return self.of_sibling(peer, tcp=True) or peer
        return other.local

    def announced(self, source: Address) -> Address:
        """Return the address that clients know a peer by that came by TCP: the other way round."""
        other = self.tcp_places.get(source)
        return self.as_seen(source, tcp=True) if other is None else other.advertised

    def add_relay(self, relay: Relay) -> None:
        """Take note of a relayed transport address whose socket is open."""
        self.relays[relay.handle] = relay
        if relay.tcp:
            self.tcp_relayed[relay.advertised] = self.tcp_places[relay.local] = relay
        else:
            self.relayed[relay.advertised] = self.places[relay.local] = relay
        if self.siblings is not None:
            self.siblings.opened(relay.local, tcp=relay.tcp)

    def shut_relay(self, relay: Relay) -> None:
        """Close the socket of a relayed transport address and free its port."""
        if relay.handle in self.relays:
            self.forget_relay(relay)
            self.outbox.append(Shut(relay.handle))

    def forget_relay(self, relay: Relay) -> None:
        """Free the port of a relayed transport address whose socket is closed."""
        del self.relays[relay.handle]
        if relay.visitors:
            # The port may be some program's of this host next.
            for channel in tuple(relay.visitors):
                self.unroute(channel)
        if relay.tcp:
            self.tcp_relayed.pop(relay.advertised, None)
            self.tcp_places.pop(relay.local, None)
        else:
            self.relayed.pop(relay.advertised, None)
            self.places.pop(relay.local, None)
        if self.siblings is not None:
            self.siblings.closed(relay.local, tcp=relay.tcp)
        self.ports.give_back(relay.place.local, relay.local.port)

    def unroute(self, channel: Channel) -> None:
        """Have the data plane forward no longer on a channel."""
        if channel.route is None:
            return
        self.order(RemoveRoute(channel.route.key))
        visitors = self.visited.get(channel.route.peer)
        if visitors is not None:
            visitors.discard(channel)
            if not visitors:
                del self.visited[channel.route.peer]
        channel.route = None
        if channel.target is not None and channel.target.visitors is not None:
            channel.target.visitors.discard(channel)
            channel.target = None

    # What leaves. ---------------------------------------------------------------------------------

    def send(self, flow: Flow, octets: bytes) -> bool:
        """Send a message to a client; say whether there is still a way to it."""
        handle = flow.connection
        if not handle:
            self.outbox.append(Transmit(octets, flow.client, flow.server))
            return True
        if handle in self.connections or (self.streams is not None and self.streams.owns(handle)):
            self.outbox.append(Write(handle, octets))
            return True
        return False

    def wants_fingerprint(self, request: Message) -> bool:
        """Whether the response to a request has FINGERPRINT."""
        always = self.config.fingerprint
        return has_fingerprint(request) if always is None else always

    def answer(self, request: Request, response: Message, now: Instant) -> None:
        """Send a success response, sealed; it is kept for a retransmission of the request."""
        self._respond(request, response, 0, now)

    def refuse(
        self,
        request: Request,
        code: int,
        detail: str,
        now: Instant,
        attributes: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        """Send an error response, sealed.  ``detail`` is for the log, never for the client."""
        message = request.message
        response = Message.error(message, code)
        response.attributes.extend(attributes)
        self._respond(request, response, code, now)
        client = request.flow.client
        self.told_refusal(client, message.method, code, detail, request, now=now)

    def _respond(self, request: Request, response: Message, code: int, now: Instant) -> None:
        message, flow = request.message, request.flow
        self.count_response(message.method, code)
        if self._software:
            response.attributes.append((SOFTWARE.code, self._software))
        fingerprint = self.wants_fingerprint(message)
        octets = request.authentic.seal(response, fingerprint=fingerprint)
        if not flow.is_stream:
            self.replay.keep(request.key, message.transaction_id, octets, now)
        self.send(flow, octets)

    def count_response(self, method: int, code: int) -> None:
        """Count a response."""
        self.metrics.responses[_METHODS.get(method), code] += 1

    def told_refusal(
        self,
        client: Address,
        method: int,
        code: int,
        detail: str,
        request: Request | None = None,
        *,
        now: Instant,
    ) -> None:
        """Tell of a refused request, unless too many have been told of lately."""
        if now - self._refusals_since >= SECOND:
            self._refusals_since, self._refusals_told = now, 0
        self._refusals_told += 1
        if self._refusals_told > REFUSALS_TOLD:
            return
        session = username = None
        if request is not None:
            username = request.username
            session = request.allocation.session if request.allocation is not None else None
        self.outbox.append(RequestRefused(client, method, code, detail, session, username))

    def indicate(self, allocation: Allocation, indication: Message) -> None:
        """Send an indication to the client over the flow of its allocation."""
        self.send(allocation.flow, encode(indication, fingerprint=bool(self.config.fingerprint)))

    def take_over(self, handle: Handle) -> bytes | None:
        """Let go of a client's connection, which carries data from now on."""
        connection = self.connections.pop(handle, None)
        if connection is None:
            return None
        self.expiry.cancel(connection)
        # What an allocation may have of these is limited by itself.
        self.quotas.disconnect(connection.flow.client.host)
        return b"" if connection.stream is None else connection.stream.rest()


def has_fingerprint(message: Message) -> bool:
    """Whether a message that was decoded has FINGERPRINT: nothing is read behind one."""
    attributes = message.attributes
    return bool(attributes) and attributes[-1][0] == _FINGERPRINT


def count_method(counter: Counter[int | None], method: int) -> None:
    """Count a method, all unknown ones as one."""
    counter[_METHODS.get(method)] += 1
