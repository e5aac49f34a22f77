"""The TURN server as a machine: RFC 8656 and what extends it, without a socket or a clock.

Theory of operation.  :class:`Server` hands what comes in to the part whose business it is::

    listening      where clients come to; RFC 5780
    connections    clients' connections (TCP, TLS, DTLS) and their framing
    gate           authentication; what strangers get
    allocate       Allocate, and the opening of relayed transport addresses
    requests       Refresh, CreatePermission, ChannelBind
    mobility       clients that come from another address (RFC 8016)
    relaying       datagrams, both ways
    tcp_relay      connections with peers (RFC 6062)
    lifetimes      what begins, ends and expires; routes for a data plane

They share :class:`turn.server.core.Core`, and know of each other what the imports say.

What comes from whom is decided by addresses: a datagram's local address belongs to a listener or to
a relay; a client's five-tuple, or its connection, leads to its allocation.  Discards are counted
in :attr:`Server.drops` and not queued as events: a flood must not become a flood of objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from stun.attributes import ERROR_CODE, MOBILITY_TICKET, UNKNOWN_ATTRIBUTES
from stun.codec import decode, encode, message_type, unknown_required
from stun.discovery import Transport
from stun.errors import DecodeError, DropReason, UsageError
from stun.integrity import check_fingerprint
from stun.message import Message
from stun.nonce import NonceMaker
from stun.oauth import Tokens
from stun.registry import Class, ErrorCode, Method
from stun.responder import UNDERSTOOD, Responder
from stun.responder import Limits as AnswerLimits
from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Closed,
    Congested,
    Entropy,
    Instant,
    Opened,
    Output,
    Received,
    Relieved,
    SocketEvent,
    Transmit,
    Undeliverable,
)
from stun.users import UserStore
from turn.dataplane.base import RouteOrder
from turn.meter import Usage
from turn.server.allocate import Allocator
from turn.server.allocation import Allocation, Flow, FlowKey, Relay, Reservation
from turn.server.config import ServerConfig
from turn.server.connections import Connections
from turn.server.core import (
    LONGEST_REQUEST,
    Connection,
    Core,
    Listener,
    count_method,
    has_fingerprint,
)
from turn.server.events import Drained, EndReason, LookUp, ServerEvent, SessionInfo
from turn.server.gate import Gate
from turn.server.hosting import Request
from turn.server.lifetimes import Lifetimes
from turn.server.listening import Listening
from turn.server.metrics import Metrics, add_usage
from turn.server.mobility import Tickets
from turn.server.reconfigure import reconfigure
from turn.server.relaying import Relaying
from turn.server.requests import Requests
from turn.server.siblings import Siblings
from turn.server.tcp_relay import TcpRelay

_BINDING = int(Method.BINDING)
_BINDING_SUCCESS = message_type(_BINDING, Class.SUCCESS).to_bytes(2)
_ALLOCATE = int(Method.ALLOCATE)
_REFRESH = int(Method.REFRESH)
_SEND = int(Method.SEND)
_CONNECTION_BIND = int(Method.CONNECTION_BIND)
_REQUEST, _INDICATION = Class.REQUEST, Class.INDICATION
_UDP = Transport.UDP


class Server:
    """A TURN server; :class:`stun.sansio.SocketMachine` of events and route orders.

    ``users``, ``nonces``, ``unix_epoch`` and ``tokens`` are those of
    :class:`stun.auth_server.Authenticator`; ``siblings`` the other processes of this server.
    """

    def __init__(
        self,
        config: ServerConfig,
        users: UserStore,
        nonces: NonceMaker,
        *,
        entropy: Entropy,
        unix_epoch: int = 0,
        tokens: Tokens | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        core = self._core = Core(config, entropy=entropy, siblings=siblings)
        self._users = users
        self._lifetimes = Lifetimes(core)
        self._tickets = Tickets(core, self._lifetimes)
        self._gate = Gate(core, users, nonces, unix_epoch=unix_epoch, tokens=tokens)
        self._allocator = Allocator(core, self._lifetimes, self._tickets)
        self._spares = self._allocator.spares
        self._requests = Requests(core, self._lifetimes, self._tickets)
        self._relaying = Relaying(core, self._tickets)
        self._listening = Listening(core, self._lifetimes)
        self._connections = Connections(
            core, self._lifetimes, self._tickets, self._allocator, self._message
        )
        self._tcp = core.streams = TcpRelay(core, 0 if siblings is None else siblings.number)
        self._answer_bindings()
        self._methods: dict[int, Callable[[Request, Instant], None]] = {
            _ALLOCATE: self._allocator.allocate,
            _REFRESH: self._requests.refresh,
            int(Method.CREATE_PERMISSION): self._requests.create_permission,
            int(Method.CHANNEL_BIND): self._requests.channel_bind,
            int(Method.CONNECT): self._tcp.connect,
            _CONNECTION_BIND: self._tcp.connection_bind,
        }
        self._started = False

    def _answer_bindings(self) -> None:
        # SOFTWARE never: whoever asks for a Binding has proved nothing.
        self.responder = Responder(
            AnswerLimits(answers=0),
            None,
            entropy=self._core.entropy,
            lean=True,
            budget=self._gate.budget,
        )
        """Answers Binding requests; a driver may ask it directly."""

    # Commands. ------------------------------------------------------------------------------------

    def start(self, now: Instant) -> None:  # noqa: ARG002  (every command takes the time)
        """Open every listener that is configured."""
        if self._started:
            raise UsageError("the server was started already")
        self._started = True
        self._listening.start()

    def reconfigure(self, config: ServerConfig, users: UserStore, now: Instant) -> list[str]:
        """Go on by another configuration and with other users; return what changed, in words."""
        before = self._core.config
        self._spares.stop()  # by the old configuration
        words = reconfigure(self._core, self._lifetimes, config, now)
        self._gate.reconfigure(config, users)
        if config.limits != before.limits:
            self._answer_bindings()
        if self._started:
            words += self._listening.reconfigure(now)
            self._connections.reconfigure(now)
            self._allocator.reconfigure(self._listening.serves)
        if users is not self._users:
            self._users = users
            words.append("users replaced: whoever is gone is refused from the next request on")
        return words

    def set_tokens(self, tokens: Tokens | None) -> None:
        """Take other keys of access tokens (RFC 7635), from the next :meth:`reconfigure` on."""
        self._gate.tokens = tokens

    def set_clock(self, unix_time: int, now: Instant) -> None:
        """Say what time it is: seconds since 1970 at ``now``."""
        self._gate.set_clock(unix_time, now)

    def drain(self, now: Instant) -> None:
        """Take no new allocations.  :class:`turn.server.events.Drained` comes with the last end."""
        if not self._lifetimes.draining:
            self._lifetimes.draining = True
            self._allocator.drain(now)
            if not self._core.sessions:
                self._core.tell(Drained())

    def disconnect(
        self, now: Instant, *, session: str | None = None, username: str | None = None
    ) -> int:
        """End the allocation of a session, or all of a user; return how many there were."""
        if session is None and username is None:
            raise UsageError("disconnect takes a session or a username")
        ended = [
            allocation
            for allocation in self._core.sessions.values()
            if session in (None, allocation.session) and username in (None, allocation.username)
        ]
        for allocation in ended:
            self._lifetimes.end(allocation, EndReason.DISCONNECTED, now)
        return len(ended)

    def stop(self, now: Instant) -> None:
        """End everything and shut every socket."""
        self._allocator.stop()
        for allocation in list(self._core.sessions.values()):
            self._lifetimes.end(allocation, EndReason.SHUTDOWN, now)
        self._connections.stop()
        self._listening.stop()
        self._gate.stop()

    def found(self, lookup: LookUp, now: Instant) -> None:
        """Go on with the requests that waited for the user store, which knows the answer now."""
        for message, flow, _ in self._gate.found(lookup, now):
            if not flow.connection:
                self._request(message, flow, flow.key, now)
            elif (connection := self._core.connections.get(flow.connection)) is not None:
                connection.parked = False
                self._request(message, flow, flow.key, now)
                self._connections.resume(connection, now)

    def set_elsewhere(self, allocations: Mapping[str, int]) -> None:
        """Say how many allocations users have on other servers of a fleet."""
        self._core.quotas.elsewhere(allocations)

    def allocations_by_account(self) -> Mapping[str, int]:
        """Return how many allocations each user has here, by what quotas call a user."""
        return self._core.quotas.of_users()

    def left(self, local: Address) -> None:
        """Take note that a sibling's relayed transport address, bound to ``local``, is closed."""
        for channel in tuple(self._core.visited.get(local, ())):
            self._core.unroute(channel)

    # Looking. -------------------------------------------------------------------------------------

    def sessions(self) -> Iterator[SessionInfo]:
        """Yield every allocation."""
        for allocation in list(self._core.sessions.values()):
            yield self._describe(allocation)

    def _describe(self, allocation: Allocation) -> SessionInfo:
        flow = allocation.flow
        return SessionInfo(
            allocation.session,
            allocation.username,
            flow.client,
            flow.server,
            flow.transport,
            tuple(relay.advertised for relay in allocation.relays),
            allocation.tcp,
            allocation.created,
            allocation.expires,
            tuple(allocation.permissions),
            tuple((channel.number, channel.peer) for channel in allocation.channels.values()),
            self._tcp.connections(allocation) if allocation.tcp else 0,
            allocation.meter.collected(),
        )

    @property
    def config(self) -> ServerConfig:
        """What it decides by."""
        return self._core.config

    @property
    def drops(self) -> Counter[DropReason]:
        """What was discarded, by reason."""
        return self._core.drops

    @property
    def metrics(self) -> Metrics:
        """The counts since the start."""
        self._core.metrics.connections = len(self._core.connections)
        self._core.metrics.spares = len(self._spares)
        return self._core.metrics

    def usage(self) -> Usage:
        """Return what was relayed since the start, by allocations that live and by those ended."""
        total = Usage()
        add_usage(total, self._core.metrics.usage)
        for allocation in self._core.sessions.values():
            add_usage(total, allocation.meter.collected())
        return total

    @property
    def counters(self) -> Mapping[str, int]:
        """What was done and what was discarded since the start, in words for a person."""
        metrics, counts = self.metrics, Counter(self._tcp.counters)
        for method, times in metrics.requests.items():
            counts[f"{_label(method)} requests"] = times
        for (method, code), times in metrics.responses.items():
            counts[f"{_label(method)} {'successes' if not code else f'answered {code}'}"] = times
        for outcome, times in metrics.authentication.items():
            counts[f"requests {outcome}"] = times
        counts["requests that came again"] = metrics.repeated
        counts["allocations"] = metrics.allocations
        counts["permissions"] = metrics.permissions
        counts["channels"] = metrics.channels
        counts["client connections open"] = metrics.connections
        for reason, times in self._core.drops.items():
            counts[f"dropped: {reason.value}"] = times
        return counts

    # The shape of a machine. ----------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram: from a client, or from a peer."""
        core, data = self._core, packet.data
        place = core.places.get(packet.local) or self._listening.behind_wildcard(packet.local)
        if type(place) is Relay:
            self._relaying.from_peer(place, packet, now)
        elif type(place) is not Listener:
            core.drop(DropReason.UNKNOWN_STREAM)
        elif not data:
            core.drop(DropReason.TOO_SHORT)
        elif 0x40 <= data[0] <= 0x7F:
            self._relaying.channel_data(data, (packet.source, packet.local), now)
        elif data[:2] == b"\x00\x01":
            self._binding(packet, place, now)
        else:
            client, server = packet.source, packet.local
            self._stun(data, Flow(_UDP, client, server), (client, server), now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        core = self._core
        match event:
            case Arrived(handle, data):
                connection = core.connections.get(handle)
                if connection is not None:
                    self._connections.arrived(connection, data, now)
                elif self._tcp.owns(handle):
                    self._tcp.on_socket(event, now)
                else:
                    core.drop(DropReason.UNKNOWN_STREAM)
            case Accepted(listener):
                relay = core.relays.get(listener)
                if relay is not None and relay.owner is not None:
                    self._tcp.accepted(relay.owner, event, now)
                else:
                    self._connections.accepted(event, now)
            case Opened(handle):
                if self._allocator.owns(handle):
                    self._allocator.opened(event, now)
                elif handle in core.listeners:
                    self._listening.opened(event)
            case Closed(handle):
                self._closed(event, now)
            case Congested(handle) | Relieved(handle):
                connection = core.connections.get(handle)
                if connection is not None:
                    self._connections.congested(connection, congested=type(event) is Congested)
                elif self._tcp.owns(handle):
                    self._tcp.on_socket(event, now)
            case Undeliverable():
                self._relaying.undeliverable(event, now)
            case _:
                self._tcp.on_socket(event, now)

    def _closed(self, event: Closed, now: Instant) -> None:
        core, handle = self._core, event.handle
        if handle in core.connections:
            self._connections.closed(handle, now)
        elif self._allocator.owns(handle):
            self._allocator.closed(event, now)
        elif handle in core.relays:
            relay = core.relays[handle]
            core.forget_relay(relay)
            if relay.owner is not None:
                self._lifetimes.end_relay(relay.owner, relay, EndReason.RELAY_LOST, now)
            else:
                self._allocator.lost(relay, now)
        elif handle in core.listeners:
            self._listening.closed(event)
        else:
            self._tcp.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        """End what is over."""
        for thing in self._core.expiry.due(now):
            if type(thing) is Allocation:
                self._lifetimes.expire(thing, now)
            elif type(thing) is Connection:
                self._connections.idle(thing, now)
            elif type(thing) is Reservation:
                self._allocator.give_up(thing)
        for connection in self._gate.give_up(now):
            self._connections.resume(connection, now)
        self._tcp.on_deadline(now)

    def poll(self) -> Output | ServerEvent | RouteOrder | None:
        """Give the next thing to do or to tell."""
        outbox, spares = self._core.outbox, self._spares
        if not outbox and spares.wanted:
            spares.refill()
        return outbox.popleft() if outbox else None

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        due = self._core.expiry.next()
        for other in (self._gate.deadline(), self._tcp.deadline()):
            if other is not None and (due is None or other < due):
                due = other
        return due

    # Messages. ------------------------------------------------------------------------------------

    def _message(self, octets: bytes, flow: Flow, now: Instant) -> None:
        """Take a message of a connection."""
        if octets and 0x40 <= octets[0] <= 0x7F:
            self._relaying.channel_data(octets, flow.connection, now)
        else:
            self._stun(octets, flow, flow.connection, now)

    def _stun(self, octets: bytes, flow: Flow, key: FlowKey, now: Instant) -> None:
        core = self._core
        if len(octets) > LONGEST_REQUEST and key not in core.allocations:
            core.drop(DropReason.TOO_LONG)
            return
        try:
            message = decode(octets)
        except DecodeError as error:
            core.drop(error.reason)
            return
        if message.is_rfc3489:
            # TURN has the cookie; Binding requests of RFC 3489 do not come this way.
            core.drop(DropReason.NOT_EXPECTED_PROTOCOL)
        elif has_fingerprint(message) and not check_fingerprint(message):
            core.drop(DropReason.BAD_FINGERPRINT)
        elif message.message_class is _REQUEST:
            count_method(core.metrics.requests, message.method)
            self._request(message, flow, key, now)
        elif message.message_class is not _INDICATION:
            core.drop(DropReason.UNEXPECTED_CLASS)
        elif message.method == _SEND:
            core.metrics.indications[_SEND] += 1
            self._relaying.send(message, key, now)
        else:
            count_method(core.metrics.indications, message.method)
            if message.method != _BINDING:
                core.drop(DropReason.UNKNOWN_METHOD)

    def _request(self, message: Message, flow: Flow, key: FlowKey, now: Instant) -> None:
        core, method = self._core, message.method
        connection = core.connections.get(flow.connection) if flow.connection else None
        if connection is not None:
            connection.seen = now
        if method == _BINDING and connection is not None:
            self._binding_over_stream(message, connection)
            return
        handler = self._methods.get(method)
        if handler is None:
            core.drop(DropReason.UNKNOWN_METHOD)
            return
        allocation = self._lifetimes.find(key, now)
        proven_by = allocation
        if method == _CONNECTION_BIND and allocation is None:
            proven_by = self._tcp.named(message)
        authentic = self._gate.admit(message, flow, proven_by, now)
        if authentic is None:
            return
        if connection is not None:
            self._connections.trust(connection)
        if not flow.is_stream:
            kept = core.replay.find(key, message.transaction_id, now)
            if kept is not None:
                core.metrics.repeated += 1
                core.send(flow, kept)
                return
        request = Request(message, flow, key, authentic, allocation)
        try:
            if self._may(request, now):
                handler(request, now)
        except DecodeError as error:
            core.refuse(request, ErrorCode.BAD_REQUEST, str(error), now)

    def _may(self, request: Request, now: Instant) -> bool:
        """Check what is the same for every method; refuse the request if it does not hold."""
        core, message, allocation = self._core, request.message, request.allocation
        # Most requests have nothing that is not known: one operation tells.
        if not request.present.keys() <= UNDERSTOOD and (
            unknown := unknown_required(message, UNDERSTOOD)
        ):
            value = UNKNOWN_ATTRIBUTES.pack(unknown, message.transaction_id)
            attributes = ((UNKNOWN_ATTRIBUTES.code, value),)
            names = ", ".join(f"{code:#06x}" for code in unknown)
            core.refuse(request, ErrorCode.UNKNOWN_ATTRIBUTE, names, now, attributes)
            return False
        method = message.method
        if method == _ALLOCATE:
            return True
        if self._allocator.is_opening(request.key):
            # Whatever ends with an allocation on this five-tuple must wait for that one.
            core.refuse(request, ErrorCode.ALLOCATION_MISMATCH, "its Allocate is under way", now)
            return False
        if method == _CONNECTION_BIND:
            return True
        if method == _REFRESH and MOBILITY_TICKET.code in request.present:
            return True  # the ticket says which allocation, not the five-tuple
        if allocation is None:
            core.refuse(request, ErrorCode.ALLOCATION_MISMATCH, "no allocation", now)
            return False
        if not request.authentic.may_use(allocation.username, allocation.authentic):
            # "All requests after the initial Allocate must use the same username as that used to
            # create the allocation" (RFC 8656 section 5).
            core.refuse(request, ErrorCode.WRONG_CREDENTIALS, "another user's allocation", now)
            return False
        if allocation.mobility is not None:
            self._tickets.heard(allocation, request.key, now)
        return True

    # Binding. -------------------------------------------------------------------------------------

    def _binding(self, packet: Received, listener: Listener, now: Instant) -> None:
        core = self._core
        core.metrics.requests[_BINDING] += 1
        if len(packet.data) > LONGEST_REQUEST:
            core.drop(DropReason.TOO_LONG)
            return
        endpoint = self._listening.endpoint(listener, packet.local)
        if endpoint is None:
            return
        answer = self.responder.datagram(packet.data, packet.source, endpoint, now)
        if type(answer) is Transmit:
            succeeded = answer.data.startswith(_BINDING_SUCCESS)
            error = None if succeeded else decode(answer.data).get(ERROR_CODE)
            core.count_response(_BINDING, 0 if error is None else error.code)
            core.outbox.append(answer)
        elif isinstance(answer, DropReason):
            core.drop(answer)

    def _binding_over_stream(self, message: Message, connection: Connection) -> None:
        core, flow = self._core, connection.flow
        endpoint = self._listening.endpoint(connection.listener, flow.server)
        if endpoint is None:
            return
        answer = self.responder.over_stream(message, flow.client, endpoint)
        error = answer.get(ERROR_CODE)
        core.count_response(_BINDING, 0 if error is None else error.code)
        octets = encode(answer, fingerprint=core.wants_fingerprint(message))
        core.send(flow, octets)


def _label(method: int | None) -> str:
    return "unknown" if method is None else Method.make(method).label
