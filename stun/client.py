"""The client machine: requests go out, each ends in exactly one :class:`Reply` or :class:`Failed`.

Theory of operation.  :meth:`Client.request` sends over a UDP socket that somebody else opened, and
:meth:`Client.request_over` over a stream that somebody else dialled; the client itself emits only
``Transmit`` and ``Write``, so it can live inside a machine that owns the sockets.  That machine
hands over what arrives (``receive``, ``on_socket``), lends its deadline, and drains ``poll`` within
the same call.

What must hold before a response counts, in the order of RFC 8489 section 6.3:

1. it decodes, and is a response;
2. its transaction id and cookie are those of a request that is still open, and its method too;
3. it came to the socket that asked, and from one of the addresses that were allowed;
4. its FINGERPRINT holds, if it has one, or must have one;
5. it proves itself, if the request had credentials (:mod:`stun.auth_client`);
6. it has no attribute that must be understood and is not.

What fails 1 to 4 is dropped with a reason and changes nothing: an attacker who cannot see the
request cannot end it.  Failing 5 changes nothing over UDP and ends the request over a stream;
failing 6 ends it (sections 6.3.3 and 6.3.4).

A request that is challenged, or whose nonce is stale, is sent anew as another transaction; the id
that :meth:`Client.request` returned stays its name in every event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from stun.attributes import BY_CODE, SOFTWARE
from stun.auth_client import (
    Accept,
    Credentials,
    Discard,
    Guard,
    IntegrityViolated,
    Refuse,
    Retry,
    Sessions,
    with_transaction_id,
)
from stun.codec import decode, encode, unknown_required
from stun.errors import (
    DecodeError,
    Dropped,
    DropReason,
    ErrorResponse,
    StunError,
    TransactionTimedOut,
    TransportFailed,
    UsageError,
)
from stun.framing import StunStream
from stun.integrity import check_fingerprint
from stun.message import Message
from stun.outcome import (
    Event,
    Failed,
    FailureCause,
    Indication,
    NotUnderstood,
    Reply,
    TryAlternate,
    UnknownAttributeResponse,
    error_of,
    is_hard,
    mapped_address,
)
from stun.registry import Class, Method
from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Closed,
    Connected,
    Entropy,
    Handle,
    Instant,
    Opened,
    Received,
    SocketEvent,
    Timers,
    Transmit,
    Undeliverable,
    Write,
)
from stun.transaction import RC, RM, RTO, TI, RttCache, Schedule, Step, Transaction

__all__ = [
    "Client",
    "Config",
    "Event",
    "Failed",
    "FailureCause",
    "Indication",
    "NotUnderstood",
    "Reply",
    "TryAlternate",
    "UnknownAttributeResponse",
    "mapped_address",
]


@dataclass(frozen=True, slots=True)
class Config:
    """What all requests of a client share.  Durations are in nanoseconds.

    ``software``: the SOFTWARE of Binding requests that the client makes itself, or ``None``.
    ``rto``, ``rc``, ``rm``, ``ti``: RFC 8489 section 6.2; ``rto`` is the initial value, later ones
    follow the measured round-trip time.
    ``fingerprint``: the usage multiplexes STUN with other protocols (section 7), so FINGERPRINT is
    sent and demanded.  Without it a FINGERPRINT that comes must still match.
    ``understood``: the comprehension-required attributes that responses may have.
    """

    software: str | None = "natkit"
    rto: int = RTO
    rc: int = RC
    rm: int = RM
    ti: int = TI
    fingerprint: bool = False
    understood: frozenset[int] = frozenset(BY_CODE)


@dataclass(slots=True)
class _Stream:
    local: Address
    remote: Address
    splitter: StunStream


class _Route(NamedTuple):
    """Which way a request goes, and from where an answer may come."""

    source: Address
    destination: Address
    handle: Handle | None
    accept_from: frozenset[Address] | None


@dataclass(slots=True)
class _Pending:
    """A request that has not ended."""

    name: bytes
    """The transaction id that the caller knows."""
    request: Message
    wire: bytes
    route: _Route
    schedule: Schedule
    transaction: Transaction
    guard: Guard | None
    violation: str | None = None
    """Why the last response that could not prove itself was discarded."""


class Client:
    """A :class:`stun.sansio.SocketMachine` that carries requests; the module's text has the rules.

    One client serves any number of servers, sockets and streams.  It does not limit how many
    requests are open; RFC 8489 section 6.2 asks a caller to keep to ten for one server.
    """

    def __init__(self, config: Config | None = None, *, entropy: Entropy) -> None:
        self._config = config or Config()
        self._entropy = entropy
        self._pending: dict[bytes, _Pending] = {}
        self._names: dict[bytes, bytes] = {}
        self._streams: dict[Handle, _Stream] = {}
        self._timers: Timers[bytes] = Timers()
        self._queue: deque[Transmit | Write | Event] = deque()
        self._rtt = RttCache(initial=self._config.rto)
        self._sessions = Sessions()

    # Commands -------------------------------------------------------------------------------------

    def request(
        self,
        message: Message | None = None,
        *,
        destination: Address,
        source: Address,
        now: Instant,
        schedule: Schedule | None = None,
        credentials: Credentials | None = None,
        accept_from: frozenset[Address] | None = None,
    ) -> bytes:
        """Send a request over UDP from ``source``, an address that :class:`Opened` reported.

        ``message``: without authentication attributes and proofs; ``None`` is a plain Binding
        request.  ``schedule``: ``None`` for RFC 8489 section 6.2.1 with what is known of the host.
        ``accept_from``: the only addresses an answer may come from; ``None`` allows any that knows
        the transaction id, and :attr:`Reply.source` says which it was.

        Returns the transaction id that names the request in every event.  Raises
        :class:`stun.errors.UsageError` for a message that is no request, cannot be encoded, or
        whose transaction id is in use.
        """
        if schedule is None:
            rto = self._rtt.rto(destination.host, now)
            schedule = Schedule.rfc8489(rto, self._config.rc, self._config.rm)
        # A nonce may be bound to the socket that got it, so two sockets have a session each.
        guard = self._guard((source, destination), credentials)
        return self._start(
            message,
            route=_Route(source, destination, None, accept_from),
            schedule=schedule,
            guard=guard,
            now=now,
        )

    def request_over(
        self,
        handle: Handle,
        message: Message | None = None,
        *,
        now: Instant,
        schedule: Schedule | None = None,
        credentials: Credentials | None = None,
        session: Handle | None = None,
    ) -> bytes:
        """Send a request over a stream whose :class:`Connected` or :class:`Accepted` was handed in.

        Otherwise as :meth:`request`; the default schedule waits 39.5 s (section 6.2.2).  On a
        stream that has broken the request fails at once, as an event.  ``session``: another stream
        to the same server, whose realm and nonce are used from the first request on; servers want
        that of the data connections of RFC 6062.
        """
        stream = self._streams.get(handle)
        if stream is None:
            raise UsageError(f"stream {handle} is not connected")
        known = stream if session is None else self._streams.get(session, stream)
        guard = self._guard((known.local, known.remote, "stream"), credentials)
        schedule = schedule or Schedule.reliable(self._config.ti)
        name = self._start(
            message,
            route=_Route(stream.local, stream.remote, handle, None),
            schedule=schedule,
            guard=guard,
            now=now,
        )
        if stream.splitter.error is not None:
            self._stream_failed(handle, TransportFailed(str(stream.splitter.error)))
        return name

    def cancel(self, transaction_id: bytes) -> None:
        """End a request without an event.  Nothing happens when it has ended."""
        current = self._names.get(transaction_id)
        if current is not None:
            self._remove(current)

    def adopt_challenge(self, transaction_id: bytes) -> None:
        """Have later requests answer the challenge that an open one was given.

        Otherwise they wait for its success, which proves that it was the server's.  This is for
        whoever does not wait for that.
        """
        current = self._names.get(transaction_id)
        guard = None if current is None else self._pending[current].guard
        if guard is not None:
            guard.adopt()

    def forget(self, handle: Handle) -> None:
        """Take note that the owner shut a stream, which no event tells; its requests just end."""
        self._streams.pop(handle, None)
        for pending in self._over(handle):
            self._remove(pending.request.transaction_id)

    @property
    def open_requests(self) -> int:
        """How many requests have not ended."""
        return len(self._pending)

    # What happens ---------------------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram."""
        self._take(packet.data, packet.source, packet.local, None, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        match event:
            case Connected(handle, local, remote) | Accepted(_, handle, local, remote):
                self._streams[handle] = _Stream(local, remote, StunStream())
            case Arrived(handle, data):
                self._arrived(handle, data, now)
            case Closed(handle, cause, detail):
                if self._streams.pop(handle, None) is not None:
                    text = f"{cause.value}: {detail}" if detail else cause.value
                    self._stream_failed(handle, TransportFailed(text))
            case Undeliverable():
                self._undeliverable(event)
            case Opened():
                pass

    def on_deadline(self, now: Instant) -> None:
        """Send again what is due, give up what has waited long enough."""
        for current in self._timers.expired(now):
            pending = self._pending[current]
            match pending.transaction.on_deadline(now):
                case Step.SEND_AGAIN:
                    self._send(pending)
                    self._timers.set(current, pending.transaction.deadline)
                case Step.GIVE_UP:
                    self._give_up(pending)
                case Step.WAIT:
                    self._timers.set(current, pending.transaction.deadline)

    def poll(self) -> Transmit | Write | Event | None:
        """Give the next thing to send or to tell."""
        return self._queue.popleft() if self._queue else None

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        return self._timers.next()

    # Sending --------------------------------------------------------------------------------------

    def _start(
        self,
        message: Message | None,
        *,
        route: _Route,
        schedule: Schedule,
        guard: Guard | None,
        now: Instant,
    ) -> bytes:
        if message is None:
            message = Message.request(Method.BINDING, self._entropy(12))
            if self._config.software is not None:
                message.add(SOFTWARE, self._config.software)
        elif message.message_class is not Class.REQUEST:
            raise UsageError(f"{message} is not a request")
        name = message.transaction_id
        if name in self._pending or name in self._names:
            raise UsageError(f"transaction id {name.hex()} is in use")
        wire = self._dress(message, guard)
        transaction = Transaction(schedule, now)
        self._send_first(_Pending(name, message, wire, route, schedule, transaction, guard))
        return name

    def _guard(self, server: Hashable, credentials: Credentials | None) -> Guard | None:
        return None if credentials is None else self._sessions.guard(server, credentials)

    def _dress(self, message: Message, guard: Guard | None) -> bytes:
        if guard is None:
            return encode(message, fingerprint=self._config.fingerprint)
        return guard.dress(message, fingerprint=self._config.fingerprint)

    def _send_first(self, pending: _Pending) -> None:
        current = pending.request.transaction_id
        self._pending[current] = pending
        self._names[pending.name] = current
        self._timers.set(current, pending.transaction.deadline)
        self._send(pending)

    def _send(self, pending: _Pending) -> None:
        # A retransmission is the same octets: a server tells it by its transaction id, and a proof
        # made anew would be another message.
        if pending.route.handle is None:
            self._queue.append(
                Transmit(pending.wire, pending.route.destination, pending.route.source)
            )
        else:
            self._queue.append(Write(pending.route.handle, pending.wire))

    def _send_anew(self, pending: _Pending, now: Instant) -> None:
        """Repeat a request as a new transaction: a challenge is to be answered."""
        request = with_transaction_id(pending.request, self._entropy(12))
        try:
            wire = self._dress(request, pending.guard)
        except UsageError as error:
            # The challenge is so long that its answer is no message any more.
            self._fail(pending, FailureCause.AUTHENTICATION, error)
            return
        self._remove(pending.request.transaction_id)
        pending.request, pending.wire = request, wire
        pending.transaction = Transaction(pending.schedule, now)
        self._send_first(pending)

    # Ending ---------------------------------------------------------------------------------------

    def _remove(self, current: bytes) -> None:
        pending = self._pending.pop(current)
        del self._names[pending.name]
        self._timers.cancel(current)

    def _fail(
        self,
        pending: _Pending,
        cause: FailureCause,
        error: StunError,
        message: Message | None = None,
        *,
        source: Address | None = None,
    ) -> None:
        self._remove(pending.request.transaction_id)
        sends = pending.transaction.sends
        self._queue.append(Failed(pending.name, cause, error, message, source, sends))

    def _give_up(self, pending: _Pending) -> None:
        if pending.violation is not None:
            # "If all the responses received are discarded, then instead of signaling a timeout
            # after ending the transaction, the layer MUST signal that the integrity protection
            # was violated."
            self._fail(pending, FailureCause.INTEGRITY, IntegrityViolated(pending.violation))
            return
        text = f"{pending.route.destination} did not answer {pending.transaction.sends} request(s)"
        self._fail(pending, FailureCause.TIMED_OUT, TransactionTimedOut(text))

    def _over(self, handle: Handle) -> list[_Pending]:
        return [p for p in self._pending.values() if p.route.handle == handle]

    def _stream_failed(self, handle: Handle, error: TransportFailed) -> None:
        for pending in self._over(handle):
            self._fail(pending, FailureCause.TRANSPORT, error)

    def _undeliverable(self, event: Undeliverable) -> None:
        if not is_hard(event):
            return
        text = f"ICMP type {event.icmp_type} code {event.icmp_code} from the way to "
        error = TransportFailed(f"{text}{event.destination}")
        for pending in list(self._pending.values()):
            if (
                pending.route.handle is None
                and pending.route.destination == event.destination
                and _same_socket(event.local, pending.route.source)
            ):
                self._fail(pending, FailureCause.TRANSPORT, error)

    # Receiving ------------------------------------------------------------------------------------

    def _arrived(self, handle: Handle, data: bytes, now: Instant) -> None:
        stream = self._streams.get(handle)
        if stream is None:
            self._drop(DropReason.UNKNOWN_STREAM, None, f"stream {handle}")
            return
        broken = stream.splitter.error
        for message in stream.splitter.feed(data):
            self._take(message, stream.remote, stream.local, handle, now)
        error = stream.splitter.error
        if error is not None:
            detail = "the stream lost its framing" if broken else str(error)
            self._drop(error.reason, stream.remote, detail)
            self._stream_failed(handle, TransportFailed(str(error)))

    def _drop(self, reason: DropReason, source: Address | None, detail: str = "") -> None:
        self._queue.append(Dropped(reason, source, detail))

    def _take(
        self, data: bytes, source: Address, local: Address, handle: Handle | None, now: Instant
    ) -> None:
        try:
            message = decode(data)
            if message.message_class is Class.INDICATION:
                self._take_indication(message, source, local, handle)
                return
            pending = self._match(message, source, local, handle)
            if pending is not None and self._fingerprint_holds(message, source):
                self._judge(pending, message, source, local, now)
        except DecodeError as error:
            self._drop(error.reason, source, str(error))

    def _take_indication(
        self, message: Message, source: Address, local: Address, handle: Handle | None
    ) -> None:
        unknown = unknown_required(message, self._config.understood)
        if unknown:
            self._drop(DropReason.UNKNOWN_COMPREHENSION_REQUIRED, source, _hex(unknown))
        elif self._fingerprint_holds(message, source):
            self._queue.append(Indication(message, source, local, handle))

    def _match(
        self, message: Message, source: Address, local: Address, handle: Handle | None
    ) -> _Pending | None:
        """Find the request that a message answers, or drop it."""
        if message.message_class is Class.REQUEST:
            self._drop(DropReason.UNEXPECTED_CLASS, source, "a request")
            return None
        pending = self._pending.get(message.transaction_id)
        # Before RFC 5389 the cookie was the start of the transaction id, and servers of that time
        # return it: so it has to match for them, too.
        if pending is None or pending.request.cookie != message.cookie:
            self._drop(DropReason.UNKNOWN_TRANSACTION, source, message.transaction_id.hex())
            return None
        if pending.request.method != message.method:
            detail = f"method {message.method:#x} answers {pending.request.method:#x}"
            self._drop(DropReason.UNKNOWN_METHOD, source, detail)
            return None
        if pending.route.handle != handle or not (
            handle is not None or _same_socket(local, pending.route.source)
        ):
            self._drop(DropReason.UNEXPECTED_SOURCE, source, f"it came to {local}")
            return None
        if pending.route.accept_from is not None and source not in pending.route.accept_from:
            self._drop(
                DropReason.UNEXPECTED_SOURCE, source, f"asked was {pending.route.destination}"
            )
            return None
        return pending

    def _fingerprint_holds(self, message: Message, source: Address) -> bool:
        holds = check_fingerprint(message)
        if holds is None and not self._config.fingerprint:
            return True
        if not holds:
            self._drop(
                DropReason.BAD_FINGERPRINT, source, "" if holds is False else "it is missing"
            )
        return bool(holds)

    def _judge(
        self, pending: _Pending, message: Message, source: Address, local: Address, now: Instant
    ) -> None:
        verdict = Accept() if pending.guard is None else pending.guard.judge(message)
        match verdict:
            case Accept():
                self._conclude(pending, message, source, local, verdict=verdict, now=now)
            case Retry():
                self._send_anew(pending, now)
            case Refuse():
                self._fail(
                    pending, FailureCause.AUTHENTICATION, verdict.error, message, source=source
                )
            case Discard():
                self._discard(pending, message, source, verdict)
            case _:
                assert_never(verdict)

    def _discard(
        self, pending: _Pending, message: Message, source: Address, verdict: Discard
    ) -> None:
        self._drop(verdict.reason, source, verdict.detail)
        if not verdict.violation:
            return
        reason = verdict.reason.value
        pending.violation = f"{reason}: {verdict.detail}" if verdict.detail else reason
        if pending.route.handle is not None:
            # "If the request was sent over a reliable transport, [...] the layer MUST immediately
            # end the transaction and signal that the integrity protection was violated."
            error = IntegrityViolated(pending.violation)
            self._fail(pending, FailureCause.INTEGRITY, error, message, source=source)

    def _conclude(
        self,
        pending: _Pending,
        message: Message,
        source: Address,
        local: Address,
        *,
        verdict: Accept,
        now: Instant,
    ) -> None:
        unknown = unknown_required(message, self._config.understood)
        if unknown:
            error = NotUnderstood(f"unknown required attributes: {_hex(unknown)}", unknown)
            self._fail(pending, FailureCause.NOT_UNDERSTOOD, error, message, source=source)
            return
        if message.message_class is Class.ERROR:
            failure = error_of(message, verdict.authenticated)
            cause = FailureCause.ERROR_RESPONSE
            if not isinstance(failure, ErrorResponse):
                cause = FailureCause.NOT_UNDERSTOOD
            self._fail(pending, cause, failure, message, source=source)
            return
        self._remove(message.transaction_id)
        route, transaction = pending.route, pending.transaction
        rtt = transaction.rtt(now)
        if rtt is not None and route.handle is None:
            self._rtt.sample(route.destination.host, rtt, now)
        self._queue.append(
            Reply(
                pending.name,
                message,
                source,
                local,
                rtt,
                transaction.sends,
                route.handle,
                verdict.authenticated,
            )
        )


def _same_socket(local: Address, bound: Address) -> bool:
    """Whether a packet for ``local`` came to the socket that is bound to ``bound``."""
    return local == bound or (local.port == bound.port and bound.host in _WILDCARDS)


_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  (compared, not bound)


def _hex(codes: tuple[int, ...]) -> str:
    return ", ".join(f"{code:#06x}" for code in codes)
