"""A STUN server as a machine: RFC 8489 Binding and RFC 5780 behaviour discovery, UDP, TCP and TLS.

Theory of operation.  A *site* is what one address family has: a primary transport address and, for
behaviour discovery, an alternate one that differs in host and in port.  Each transport then opens
"a pair of ports [...] on each IP address" (RFC 5780 section 6), a *grid* of four endpoints.  As
long as one of the four is missing, the others serve Binding but advertise no OTHER-ADDRESS, as that
section demands.

Datagrams go through :class:`stun.responder.Responder` and leave no trace.  A connection keeps the
splitter of its byte stream and the time of its last message; connections are bounded in number, in
all and per source, and so is the rate of a source's messages.  Discards are counted in
:attr:`Server.drops` and not queued as events: a flood must not become a flood of objects.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final, NamedTuple, TypeAlias

from stun.attributes import CONNECT_BACK, FINGERPRINT, ConnectBack, host_octets
from stun.codec import Message, decode, encode
from stun.connectback import Dialler, Kind
from stun.discovery import Transport
from stun.errors import DecodeError, DropReason, UsageError
from stun.framing import StunStream
from stun.ratelimit import PrefixLimiter
from stun.registry import Class
from stun.responder import CHANGE_IP, CHANGE_PORT, Endpoint, Limits, Responder, check
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Entropy,
    Handle,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Output,
    Received,
    Shut,
    SocketEvent,
    Undeliverable,
    Write,
)

LONGEST_MESSAGE: Final = 8192
"""Octets of a message on a stream; a Binding request with PADDING is a quarter of that."""
MOST_ENDPOINTS: Final = 4096
"""Local addresses behind a wildcard that are remembered; the others work, more slowly."""


class Site(NamedTuple):
    """Where to serve one address family.  The alternate differs in host and in port."""

    primary: Address
    alternate: Address | None = None


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What to serve and how much of it.

    ``more`` are sites beside the first, for the other address family.  ``advertised`` maps local
    hosts to those that clients see, for a server behind a one-to-one NAT.  Hosts are numeric and in
    the form of RFC 5952.

    ``tls_ports`` are the ports of TLS at the primary and the alternate address of every site; the
    driver has the certificate.  "TCP and TCP/TLS MUST use different ports" (RFC 5780 section 6).
    """

    primary: Address
    alternate: Address | None = None
    more: tuple[Site, ...] = ()
    advertised: Mapping[str, str] = field(default_factory=dict)
    tcp: bool = True
    tls_ports: tuple[int, int] | None = None
    connect_back: bool = True
    software: str | None = None
    limits: Limits = field(default_factory=Limits)
    idle: Instant = 60 * SECOND
    """A connection without a message for this long is closed."""
    connections: int = 4096
    connections_per_source: int = 256
    """A source is an IPv4 address, or the /64 of an IPv6 one."""
    message_rate: float = 1000
    """Messages a second over all connections of a source, 0 for no limit.  A connection that goes
    over it is closed: one client's haste would be every other client's delay."""
    message_burst: int = 4000
    dials: int = 256
    """Connections dialled for CONNECT-BACK that may be undecided at once."""
    dial_rate: float = 16
    """Dials a second and source prefix."""
    dial_burst: int = 128

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site, the first one first."""
        return (Site(self.primary, self.alternate), *self.more)


@dataclass(frozen=True, slots=True)
class Serving:
    """An endpoint is open."""

    transport: Transport
    local: Address


@dataclass(frozen=True, slots=True)
class CannotServe:
    """An endpoint could not be had."""

    transport: Transport
    local: Address
    cause: Cause
    detail: str


@dataclass(frozen=True, slots=True)
class Started:
    """Every endpoint is either open or known to fail."""


ServerEvent: TypeAlias = Serving | CannotServe | Started


class _Grid:
    """The endpoints of one transport at one site: one, or two hosts by two ports."""

    def __init__(self, transport: Transport, primary: Address, alternate: Address | None) -> None:
        self.transport = transport
        # The order of the flags of CHANGE-REQUEST: an index xor CHANGE_IP is at the other host, one
        # xor CHANGE_PORT at the other port.
        self.wanted: tuple[Address, ...] = (primary,)
        if alternate is not None:
            self.wanted = (
                primary,
                Address(primary.host, alternate.port),
                Address(alternate.host, primary.port),
                alternate,
            )
        self.open: dict[int, Endpoint] = {}

    def opened(self, index: int, endpoint: Endpoint) -> None:
        self.open[index] = endpoint
        if len(self.open) == len(self.wanted) > 1:
            for at, one in self.open.items():
                one.join(
                    self.open[at ^ CHANGE_PORT],
                    self.open[at ^ CHANGE_IP],
                    self.open[at ^ CHANGE_IP ^ CHANGE_PORT],
                )


class _Place(NamedTuple):
    """What a handle that the server opened is for; the silent ports belong to no grid."""

    transport: Transport
    wanted: Address
    grid: _Grid | None
    at: int


@dataclass(slots=True)
class _Connection:
    handle: Handle
    endpoint: Endpoint
    remote: Address
    stream: StunStream
    seen: Instant


class Server:
    """Serves what ``config`` says once :meth:`start` was called.

    Events: :class:`Serving` or :class:`CannotServe` for each endpoint, then :class:`Started`.
    Raises :class:`stun.errors.UsageError` for a configuration that cannot be served.
    """

    def __init__(self, config: ServerConfig, *, entropy: Entropy) -> None:
        _check(config)
        self._config = config
        self._entropy = entropy
        self._responder = Responder(config.limits, config.software, entropy=entropy)
        self._queue: deque[Output | ServerEvent] = deque()
        self._numbers = count(1)
        self._places: dict[Handle, _Place] = {}
        self._undecided = 0
        # By local address: what datagrams came to, and what connections came to.
        self._datagrams: dict[Address, Endpoint] = {}
        self._streams: dict[Address, Endpoint] = {}
        self._silent: dict[str, Address] = {}
        self._other_host = {
            ours: other
            for site in config.sites
            if site.alternate is not None
            for ours, other in (
                (site.primary.host, site.alternate.host),
                (site.alternate.host, site.primary.host),
            )
        }
        # In the order of their last message, so the one that idles longest is the first.
        self._connections: OrderedDict[Handle, _Connection] = OrderedDict()
        self._sources: Counter[bytes] = Counter()
        self._messages = PrefixLimiter(config.message_rate, config.message_burst, entropy=entropy)
        self._dialler = Dialler(
            self._queue,
            lambda: next(self._numbers),
            self._advertised,
            PrefixLimiter(config.dial_rate, config.dial_burst, entropy=entropy, slots_log2=10),
            most=config.dials,
            entropy=entropy,
        )
        self.drops: Counter[DropReason] = Counter()
        """What was discarded, by reason."""
        self._counts: Counter[str] = Counter()

    # Commands. ------------------------------------------------------------------------------------

    def start(self, now: Instant) -> None:  # noqa: ARG002  (every command takes the time)
        """Open everything that is configured."""
        if self._places:
            raise UsageError("the server was started already")
        config = self._config
        for primary, alternate in config.sites:
            self._open(_Grid(Transport.UDP, primary, alternate))
            if config.tcp:
                self._open(_Grid(Transport.TCP, primary, alternate))
            if config.tls_ports is not None:
                ports = config.tls_ports
                self._open(
                    _Grid(
                        Transport.TLS,
                        Address(primary.host, ports[0]),
                        Address(alternate.host, ports[1]) if alternate else None,
                    )
                )
            if config.tcp and config.connect_back:
                for address in filter(None, (primary, alternate)):
                    handle = next(self._numbers)
                    local = Address(address.host, 0)
                    self._places[handle] = _Place(Transport.TCP, local, None, 0)
                    self._queue.append(Listen(handle, local, silent=True))

    def _open(self, grid: _Grid) -> None:
        for index, local in enumerate(grid.wanted):
            handle = next(self._numbers)
            self._places[handle] = _Place(grid.transport, local, grid, index)
            self._undecided += 1
            is_udp = grid.transport is Transport.UDP
            self._queue.append(OpenUdp(handle, local) if is_udp else Listen(handle, local))

    # The shape of a machine. ----------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram; answer it, or count why not."""
        endpoint = self._datagrams.get(packet.local)
        if endpoint is None:
            endpoint = self._at_wildcard(packet.local, self._datagrams)
        if endpoint is None:
            self.drops[DropReason.UNKNOWN_STREAM] += 1
            return
        answer = self._responder.datagram(packet.data, packet.source, endpoint, now)
        if answer is None:
            self._counts["indications"] += 1
        elif isinstance(answer, DropReason):
            self.drops[answer] += 1
        else:
            self._counts["answers over UDP"] += 1
            self._queue.append(answer)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        match event:
            case Arrived(handle, data):
                if handle in self._connections:
                    self._arrived(self._connections[handle], data, now)
            case Accepted():
                self._accepted(event, now)
            case Opened(handle, local):
                self._opened(self._places[handle], local)
            case Connected(handle):
                if self._dialler.owns(handle):
                    self._dialler.connected(event, now)
            case Closed(handle, cause, detail):
                if handle in self._connections:
                    self._forget(handle)
                elif self._dialler.owns(handle):
                    self._dialler.closed(event, now)
                elif handle in self._places:
                    self._failed(self._places[handle], cause, detail)
            case Undeliverable():
                self._counts["answers that ICMP reported undeliverable"] += 1

    def on_deadline(self, now: Instant) -> None:
        """Close connections that idle and let dials go on."""
        for handle, connection in list(self._idle(now)):
            self._counts["connections closed as idle"] += 1
            self._forget(handle)
            self._queue.append(Shut(connection.handle))
        self._dialler.on_deadline(now)

    def _idle(self, now: Instant) -> Iterator[tuple[Handle, _Connection]]:
        for handle, connection in self._connections.items():
            if connection.seen + self._config.idle > now:
                return
            yield handle, connection

    def poll(self) -> Output | ServerEvent | None:
        """Give the next thing to do or to tell."""
        return self._queue.popleft() if self._queue else None

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        due = self._dialler.deadline()
        if self._connections:
            first = next(iter(self._connections.values())).seen + self._config.idle
            due = first if due is None else min(first, due)
        return due

    @property
    def counters(self) -> Mapping[str, int]:
        """What was done and what was discarded since the start, in words for a person."""
        counts = Counter(self._counts)
        counts["connections open"] = len(self._connections)
        counts["connections dialled back"] = self._dialler.dialled
        for reason, times in self.drops.items():
            counts[f"dropped: {reason.value}"] = times
        return counts

    # Opening. -------------------------------------------------------------------------------------

    def _opened(self, place: _Place, local: Address) -> None:
        if place.grid is None:
            self._silent[local.host] = local
            return
        endpoint = Endpoint(local, self._advertised(local))
        place.grid.opened(place.at, endpoint)
        is_udp = place.transport is Transport.UDP
        (self._datagrams if is_udp else self._streams)[local] = endpoint
        self._queue.append(Serving(place.transport, local))
        self._decided()

    def _failed(self, place: _Place, cause: Cause, detail: str) -> None:
        # Without a silent port CONNECT-BACK is granted for the other kinds only.
        if place.grid is not None:
            self._queue.append(CannotServe(place.transport, place.wanted, cause, detail))
            self._decided()

    def _decided(self) -> None:
        self._undecided -= 1
        if self._undecided == 0:
            self._queue.append(Started())

    def _advertised(self, local: Address) -> Address:
        return Address(self._config.advertised.get(local.host, local.host), local.port)

    def _at_wildcard(self, local: Address, endpoints: dict[Address, Endpoint]) -> Endpoint | None:
        """Return the endpoint for one of the addresses that a wildcard stands for."""
        any_host = Address("::" if local.is_ipv6 else "0.0.0.0", local.port)  # noqa: S104
        if any_host not in endpoints:
            return None
        endpoint = Endpoint(local, self._advertised(local))
        # A whole prefix may be local (127.0.0.0/8; an IPv6 /64 that is routed to this host).
        if len(endpoints) < MOST_ENDPOINTS:
            endpoints[local] = endpoint
        return endpoint

    # Connections. ---------------------------------------------------------------------------------

    def _accepted(self, event: Accepted, now: Instant) -> None:
        config, source = self._config, _source_of(event.remote)
        endpoint = self._streams.get(event.local) or self._at_wildcard(event.local, self._streams)
        if (
            endpoint is None
            or len(self._connections) >= config.connections
            or self._sources[source] >= config.connections_per_source
        ):
            self.drops[DropReason.REFUSED_BY_POLICY] += 1
            self._queue.append(Shut(event.handle, reset=True))
            return
        self._sources[source] += 1
        self._counts["connections accepted"] += 1
        self._connections[event.handle] = _Connection(
            event.handle, endpoint, event.remote, StunStream(limit=LONGEST_MESSAGE), now
        )

    def _arrived(self, connection: _Connection, data: bytes, now: Instant) -> None:
        source = _source_of(connection.remote)
        for octets in connection.stream.feed(data):
            if not self._messages.allow(source, now):
                self.drops[DropReason.RATE_LIMITED] += 1
                self._forget(connection.handle)
                self._queue.append(Shut(connection.handle, reset=True))
                return
            connection.seen = now
            self._connections.move_to_end(connection.handle)
            try:
                message = decode(octets)
            except DecodeError as error:
                self.drops[error.reason] += 1
                continue
            refusal = check(message)
            if refusal is not None:
                self.drops[refusal] += 1
            elif message.message_class is Class.REQUEST:
                self._answer(connection, message, now)
            else:
                self._counts["indications"] += 1
        broken = connection.stream.error
        if broken is not None:
            self.drops[broken.reason] += 1
            self._forget(connection.handle)
            self._queue.append(Shut(connection.handle))

    def _answer(self, connection: _Connection, request: Message, now: Instant) -> None:
        remote = connection.remote
        answer = self._responder.over_stream(request, remote, connection.endpoint)
        if answer.message_class is Class.SUCCESS and self._config.connect_back:
            try:
                wanted = request.get(CONNECT_BACK)
            except DecodeError:
                wanted = None  # comprehension-optional: as if it were not there
            if wanted is not None:
                answer.add(CONNECT_BACK, self._grant(connection, wanted, now))
        self._counts["answers over streams"] += 1
        fingerprint = request.has(FINGERPRINT)
        self._queue.append(Write(connection.handle, encode(answer, fingerprint=fingerprint)))

    def _grant(self, connection: _Connection, wanted: ConnectBack, now: Instant) -> ConnectBack:
        here = connection.endpoint.local.host
        local: Address | None = None
        if wanted.kind == Kind.SAME_ADDRESS:
            local = Address(here, 0)
        elif wanted.kind == Kind.OTHER_ADDRESS and here in self._other_host:
            local = Address(self._other_host[here], 0)
        elif wanted.kind == Kind.SIMULTANEOUS_OPEN:
            local = self._silent.get(here)
        return self._dialler.grant(
            wanted,
            control=connection.handle,
            local=local,
            remote=connection.remote,
            source=_source_of(connection.remote),
            now=now,
        )

    def _forget(self, handle: Handle) -> None:
        connection = self._connections.pop(handle)
        source = _source_of(connection.remote)
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]
        self._dialler.cancel(handle)


def _source_of(remote: Address) -> bytes:
    """Return what one host has for itself: an IPv4 address, or the /64 of an IPv6 one."""
    return host_octets(remote.host)[:8]


def _check(config: ServerConfig) -> None:
    for primary, alternate in config.sites:
        if alternate is None:
            continue
        if alternate.host == primary.host or alternate.port == primary.port:
            raise UsageError(
                f"the alternate address {alternate} must differ from {primary} in host and in port"
            )
        if alternate.is_ipv6 != primary.is_ipv6:
            raise UsageError(f"{primary} and {alternate} are of different address families")
        if 0 in {primary.port, alternate.port}:
            raise UsageError("with two addresses the ports must be given: both hosts have both")
    if config.tls_ports is not None:
        taken = {a.port for site in config.sites for a in site if a is not None}
        if len({*config.tls_ports}) < 2 or taken & {*config.tls_ports}:
            raise UsageError("TLS needs ports of its own (RFC 5780 section 6)")
