"""RFC 6062 on the server's side: connections with peers, relayed octet by octet.

Theory of operation.  A *peer data connection* is dialled for a Connect request or accepted on a
relayed transport address.  It is *pending* until a ConnectionBind request names it, on a connection
of its own; with that the client's connection becomes the *client data connection*, the two are
*bound*, and whatever arrives on one is written to the other.  When one of them closes, the other is
*closing* until it has taken what was written to it.

Nothing is dropped from a stream and nothing is kept beside it: "if the relay process is no longer
able to write data to the destination of the relayed data, the relay process stops reading data from
the source" (section 3).  A stream is *held* for one reason or several at once (the ``_*`` flags
below) and read from again when the last of them is gone.  A rate works the same way: what has
arrived passes, the meter may go into debt for it, and the streams of an allocation in debt are held
until the debt is paid.

Octets of a peer that come before the ConnectionBind are kept, :data:`EARLY` of them; then the
connection is held, so that TCP's window tells the peer.  Reading some of them, instead of holding
at once, shows when a peer gives up before the client takes its connection.

Every wait is equally long, so the connections that wait stand in line, and the first one is the
next whose time is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from stun.attributes import CONNECTION_ID, XOR_PEER_ADDRESS, Attribute
from stun.errors import DecodeError, DropReason
from stun.message import Message
from stun.registry import ErrorCode, Method
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Connected,
    Dial,
    Handle,
    Hold,
    Instant,
    Relieved,
    Shut,
    SocketEvent,
    Write,
)
from turn.server.allocation import Allocation
from turn.server.hosting import Hosting, Request

T = TypeVar("T")

PATIENCE: Final = 30 * SECOND
"""How long a dial may take ("The timeout value MUST be at least 30 seconds", section 5.2), how long
a connection may wait for its ConnectionBind ("after 30 seconds, the peer data connection MUST be
closed"), and how long the last octets may take when the other side has closed."""
EARLY: Final = 1 << 14
"""Octets of a peer that are read before the ConnectionBind."""
EARLY_LIMIT: Final = 1 << 18
"""More than a driver delivers after it was told to hold; beyond it "the server [may] drop the
connection" (section 7)."""
RETRY: Final = SECOND // 20
"""How often an allocation in debt asks its meter for credit."""

# Why a stream is not read from.
_CONGESTED: Final = 1
"""The other side does not take what is written to it."""
_IN_DEBT: Final = 2
"""Its allocation has used up its rate."""
_UNBOUND: Final = 4
"""There is no other side yet, and as much is kept as may be."""


class _Stream:
    """One of the two streams of a connection."""

    __slots__ = ("closing", "connection", "handle", "held", "other")

    def __init__(self, handle: Handle, connection: _Connection) -> None:
        self.handle = handle
        self.connection = connection
        self.other: _Stream | None = None
        self.held = 0
        self.closing = False
        """It is shut once it has taken what was written to it."""


class _Connection:
    """A connection with a peer, from the dial or the accept on."""

    __slots__ = ("allocation", "client", "early", "identifier", "peer", "request", "stream")

    def __init__(self, allocation: Allocation, peer: Address, request: Request | None) -> None:
        self.allocation = allocation
        self.peer = peer
        self.request = request
        """The Connect request, while it is not answered."""
        self.identifier = 0
        """CONNECTION-ID, from the moment when there is a connection that it could name."""
        self.stream: _Stream | None = None
        """With the peer; ``None`` when that has ended and :attr:`early` is still to be taken."""
        self.client: _Stream | None = None
        self.early = bytearray()


class TcpRelay:
    """The connections of all TCP allocations; see :class:`turn.server.hosting.Streams`."""

    __slots__ = ("_connections", "_counts", "_debtors", "_host", "_identified", "_number",
                 "_streams", "_waiting", "octets_lost")  # fmt: skip

    def __init__(self, host: Hosting, number: int = 0) -> None:
        self._host = host
        self._number = number
        """Of this process among its siblings: the first octet of its CONNECTION-IDs."""
        self._streams: dict[Handle, _Stream] = {}
        self._connections: dict[Allocation, dict[Address, _Connection]] = {}
        self._identified: dict[int, _Connection] = {}
        """By CONNECTION-ID."""
        self._waiting: dict[_Connection, Instant] = {}
        """Until when, the earliest first: dialling, pending and closing ones."""
        self._debtors: dict[Allocation, Instant] = {}
        """When to ask for credit again, the earliest first."""
        self._counts: Counter[str] = Counter()
        self.octets_lost = 0
        """Octets that came from one side after the other had closed, or that nobody fetched."""

    # Requests. ------------------------------------------------------------------------------------

    def connect(self, request: Request, now: Instant) -> None:
        """Do a Connect request (RFC 6062 section 5.2): dial the peer, or refuse at once."""
        host, allocation = self._host, request.allocation
        if allocation is None or not allocation.tcp:
            host.refuse(request, ErrorCode.ALLOCATION_MISMATCH, "not a TCP allocation", now)
            return
        peer = _value(request.message, XOR_PEER_ADDRESS)
        if peer is None or peer.port == 0:
            host.refuse(request, ErrorCode.BAD_REQUEST, "no usable XOR-PEER-ADDRESS", now)
            return
        existing = self._connections.get(allocation, {})
        if peer in existing:
            # "a maximum of one connection to a given peer transport address can be established per
            # allocation" (section 3), whichever side began it.
            host.refuse(
                request, ErrorCode.CONNECTION_ALREADY_EXISTS, f"{peer} is connected already", now
            )
            return
        relay = allocation.relay_for(ipv6=peer.is_ipv6)
        if relay is None:
            host.refuse(
                request, ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH, f"{peer} is of another family", now
            )
            return
        verdict = host.verdict(peer)
        if not verdict.allowed:
            host.refuse(request, ErrorCode.FORBIDDEN, f"{peer}: {verdict}", now)
            return
        if peer in (relay.local, relay.advertised):
            # TCP would let the port connect to itself (RFC 9293 section 3.5).
            host.refuse(request, ErrorCode.FORBIDDEN, f"{peer} is the relayed address itself", now)
            return
        if self._is_full(allocation):
            host.refuse(
                request, ErrorCode.INSUFFICIENT_CAPACITY, f"{len(existing)} connections", now
            )
            return
        self._counts["connections dialled"] += 1
        connection = self._add(allocation, peer, host.next_handle(), request)
        assert connection.stream is not None
        self._wait(connection, now)
        # "The local endpoint is the relayed transport address associated with the allocation."
        host.queue(Dial(connection.stream.handle, relay.local, host.located(peer)))

    def connection_bind(self, request: Request, now: Instant) -> None:
        """Do a ConnectionBind request (RFC 6062 section 5.4): join the two connections."""
        host, flow = self._host, request.flow
        if not flow.is_stream or request.allocation is not None:
            host.refuse(request, ErrorCode.BAD_REQUEST, "not on a connection of its own", now)
            return
        connection = self._pending(request.message)
        if connection is None:
            host.refuse(request, ErrorCode.BAD_REQUEST, "names no pending connection", now)
            return
        if request.authentic.account not in _accounts(connection.allocation):
            # Section 4.3: "Authentication of the client by the server MUST use the same method and
            # credentials as for the control connection."
            host.refuse(request, ErrorCode.WRONG_CREDENTIALS, "another user's connection", now)
            return
        accepted = host.connections.get(flow.connection)
        rest = host.take_over(flow.connection)
        if accepted is None or rest is None:
            return
        self._counts["connections bound"] += 1
        del self._waiting[connection]
        client = connection.client = _Stream(flow.connection, connection)
        self._streams[flow.connection] = client
        host.answer(request, Message.success(request.message), now)
        stream = connection.stream
        if stream is not None:
            client.other, stream.other = stream, client
        early, connection.early = bytes(connection.early), bytearray()
        if early:
            # "This includes data that was received [...] before this ConnectionBind request"
            host.queue(Write(client.handle, early))
            self._account(stream or client, len(early), now, to_client=True)
        if stream is None:
            self.octets_lost += len(rest)
            self._close(client, now, congested=accepted.congested)
            return
        # From here on nobody but this relay decides what is read: each way flows by itself, however
        # much waits on the other.
        stream.held &= ~_UNBOUND
        if accepted.congested:
            # By answers that the client has not taken yet; a driver does not say it twice.
            stream.held |= _CONGESTED
        for one in (client, stream):
            host.queue(Hold(one.handle, bool(one.held)))
        if rest:
            self._relay(client, rest, now)

    def named(self, message: Message) -> Allocation | None:
        """Return the allocation whose pending connection a ConnectionBind request names.

        With access tokens the proof of the request is looked for there, since clients send their
        token "only in Allocate and Refresh requests" (RFC 7635 section 9).
        """
        connection = self._pending(message)
        return None if connection is None else connection.allocation

    def _pending(self, message: Message) -> _Connection | None:
        """Return the connection that CONNECTION-ID names, if it has not been bound."""
        identifier = _value(message, CONNECTION_ID)
        connection = None if identifier is None else self._identified.get(identifier)
        return None if connection is None or connection.client is not None else connection

    # Connections with peers. ----------------------------------------------------------------------

    def accepted(self, allocation: Allocation, event: Accepted, now: Instant) -> None:
        """Take a peer's connection to a relayed transport address (RFC 6062 section 5.3)."""
        peer = self._host.announced(event.remote)
        refusal, reason = "", DropReason.REFUSED_BY_POLICY
        if not self._host.verdict(peer).allowed:
            refusal = "policy does not allow the peer"
        elif not allocation.permits(peer.host, now):
            # "the server MUST close the connection with the peer immediately"
            refusal, reason = "no permission for the peer", DropReason.NO_PERMISSION
        elif self._is_full(allocation):
            refusal = "the allocation has as many as it may have"
        elif peer in self._connections.get(allocation, ()):
            refusal = "the peer is connected already"
        if refusal:
            self._counts[f"connections refused: {refusal}"] += 1
            self._host.drop(reason)
            self._host.queue(Shut(event.handle, reset=True))
            return
        self._counts["connections accepted"] += 1
        connection = self._add(allocation, peer, event.handle, None)
        self._await_bind(connection, now)
        attempt = Message.indication(Method.CONNECTION_ATTEMPT, self._host.entropy(12))
        attempt.add(XOR_PEER_ADDRESS, peer)
        attempt.add(CONNECTION_ID, connection.identifier)
        self._host.indicate(allocation, attempt)

    def _add(
        self, allocation: Allocation, peer: Address, handle: Handle, request: Request | None
    ) -> _Connection:
        connection = _Connection(allocation, peer, request)
        connection.stream = self._streams[handle] = _Stream(handle, connection)
        self._connections.setdefault(allocation, {})[peer] = connection
        return connection

    def _await_bind(self, connection: _Connection, now: Instant) -> None:
        identifier = 0
        # Nobody is to guess it, and 0 is what a client has that did not read it.
        while not identifier or identifier in self._identified:
            identifier = int.from_bytes(self._host.entropy(4))
            if self._number:
                identifier = self._number << 24 | identifier & 0xFFFFFF
        connection.identifier = identifier
        self._identified[identifier] = connection
        self._wait(connection, now)

    def _is_full(self, allocation: Allocation) -> bool:
        most = self._host.config.limits.tcp_connections_per_allocation
        return bool(most) and len(self._connections.get(allocation, ())) >= most

    def connections(self, allocation: Allocation) -> int:
        """Return how many connections with peers an allocation has, those being dialled too."""
        return len(self._connections.get(allocation, ()))

    def ended(self, allocation: Allocation, now: Instant) -> None:
        """Close the connections of an allocation that is gone (RFC 6062 section 5.5)."""
        for connection in list(self._connections.get(allocation, {}).values()):
            self._abandon(connection, "the allocation ended", now)

    def recheck(self, now: Instant) -> int:
        """End the connections that the policy in force does not allow; return how many."""
        verdict = self._host.verdict
        refused = [
            connection
            for connections in self._connections.values()
            for connection in connections.values()
            if not verdict(connection.peer).allowed
        ]
        for connection in refused:
            self._abandon(connection, "policy does not allow the peer any more", now)
        return len(refused)

    @property
    def counters(self) -> Mapping[str, int]:
        """What became of connections, and how many there are, in words for a person."""
        counts = Counter({f"peer {what}": times for what, times in self._counts.items()})
        counts["peer connections open"] = sum(map(len, self._connections.values()))
        counts["octets of streams that nobody could take"] = self.octets_lost
        return counts

    # What happens to sockets. ---------------------------------------------------------------------

    def owns(self, handle: Handle) -> bool:
        """Whether a connection is one of these."""
        return handle in self._streams

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a connection; nothing happens if it is not one of these."""
        match event:
            case Arrived(handle, data):
                if (stream := self._streams.get(handle)) is not None:
                    self._arrived(stream, data, now)
            case Congested(handle):
                if (stream := self._streams.get(handle)) is not None and stream.other is not None:
                    self._hold(stream.other, _CONGESTED)
            case Relieved(handle):
                if (stream := self._streams.get(handle)) is not None:
                    self._relieved(stream)
            case Connected(handle):
                if (stream := self._streams.get(handle)) is not None:
                    self._connected(stream.connection, now)
            case Closed(handle, cause):
                if (stream := self._streams.pop(handle, None)) is not None:
                    self._closed(stream, cause, now)
            case _:
                pass  # a machine's other sockets

    def _connected(self, connection: _Connection, now: Instant) -> None:
        request, connection.request = connection.request, None
        if request is None:
            return
        del self._waiting[connection]
        self._await_bind(connection, now)
        response = Message.success(request.message).add(CONNECTION_ID, connection.identifier)
        self._host.answer(request, response, now)

    def _arrived(self, stream: _Stream, data: bytes, now: Instant) -> None:
        if stream.other is not None:
            self._relay(stream, data, now)
            return
        connection = stream.connection
        if stream.closing or connection.client is not None:
            self.octets_lost += len(data)
            return
        connection.early += data
        if len(connection.early) > EARLY_LIMIT:
            self._counts["connections closed: too much came before the ConnectionBind"] += 1
            self._abandon(connection, "too much came before the ConnectionBind", now)
        elif len(connection.early) >= EARLY:
            self._hold(stream, _UNBOUND)

    def _relay(self, stream: _Stream, data: bytes, now: Instant) -> None:
        assert stream.other is not None
        self._host.queue(Write(stream.other.handle, data))
        self._account(stream, len(data), now, to_client=stream.other is stream.connection.client)

    def _account(self, stream: _Stream, octets: int, now: Instant, *, to_client: bool) -> None:
        """Charge octets that ``stream`` brought to its allocation, and hold it if that is broke."""
        allocation = stream.connection.allocation
        meter = allocation.meter
        usage = meter.usage
        if to_client:
            usage.packets_to_client += 1
            usage.octets_to_client += octets
        else:
            usage.packets_from_client += 1
            usage.octets_from_client += octets
        if not meter.charge(octets, now):
            self._hold(stream, _IN_DEBT)
            self._debtors.setdefault(allocation, now + RETRY)

    def _hold(self, stream: _Stream, reason: int, *, held: bool = True) -> None:
        before = stream.held
        stream.held = before | reason if held else before & ~reason
        if bool(before) is not bool(stream.held):
            self._host.queue(Hold(stream.handle, held))

    def _relieved(self, stream: _Stream) -> None:
        if stream.closing:
            self._finish(stream)
        elif stream.other is not None:
            self._hold(stream.other, _CONGESTED, held=False)

    # Endings. -------------------------------------------------------------------------------------

    def _closed(self, stream: _Stream, cause: Cause, now: Instant) -> None:
        connection, request = stream.connection, stream.connection.request
        if request is not None:
            self._counts[f"connections failed: {cause.value}"] += 1
            connection.stream = None
            self._abandon(connection, cause.value, now)
        elif stream.closing:
            self._forget(connection)
        elif stream.other is not None:
            # "When a client data connection is closed, the server MUST close the corresponding peer
            # data connection", and the other way round (section 5.5).
            other, stream.other = stream.other, None
            other.other = None
            self._close(other, now, congested=bool(stream.held & _CONGESTED))
        elif connection.early and cause is Cause.END_OF_STREAM:
            # The peer has said what it had to say; the client may still fetch it.
            connection.stream = None
        else:
            self._counts["connections closed by the peer before the ConnectionBind"] += 1
            connection.stream = None
            self._abandon(connection, cause.value, now)

    def _close(self, stream: _Stream, now: Instant, *, congested: bool = False) -> None:
        """Close one side because the other is gone; one that is congested, once it no longer is.

        A driver flushes what it keeps for a stream that is shut, but not for long.
        """
        if not congested:
            self._finish(stream)
            return
        stream.closing = True
        self._wait(stream.connection, now)

    def _finish(self, stream: _Stream) -> None:
        self._host.queue(Shut(stream.handle))
        del self._streams[stream.handle]
        self._forget(stream.connection)

    def _abandon(self, connection: _Connection, why: str, now: Instant) -> None:
        """Close whatever a connection still has, and answer the Connect request, if it waits."""
        request, connection.request = connection.request, None
        self.octets_lost += len(connection.early)
        for stream in (connection.stream, connection.client):
            if stream is not None and self._streams.pop(stream.handle, None) is not None:
                # Who dials has nothing to flush, and nobody is to be connected to any more.
                self._host.queue(Shut(stream.handle, reset=request is not None))
        self._forget(connection)
        if request is not None:
            self._host.refuse(request, ErrorCode.CONNECTION_TIMEOUT_OR_FAILURE, why, now)

    def _forget(self, connection: _Connection) -> None:
        allocation = connection.allocation
        self._waiting.pop(connection, None)
        if connection.identifier:
            del self._identified[connection.identifier]
        connections = self._connections[allocation]
        del connections[connection.peer]
        if not connections:
            del self._connections[allocation]
            self._debtors.pop(allocation, None)
        # They know each other: apart, none of them waits for the garbage collector.
        connection.stream = connection.client = None

    # Time. ----------------------------------------------------------------------------------------

    def _wait(self, connection: _Connection, now: Instant) -> None:
        self._waiting[connection] = now + PATIENCE

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        if not self._waiting and not self._debtors:
            return None
        first = _first(self._waiting.values())
        debtor = _first(self._debtors.values())
        return debtor if first is None or (debtor is not None and debtor < first) else first

    def on_deadline(self, now: Instant) -> None:
        """Give up on what has waited too long, and let streams go on whose debt is paid."""
        while (due := _first(self._waiting.values())) is not None and due <= now:
            connection = next(iter(self._waiting))
            if connection.request is not None:
                self._counts[f"connections failed: {Cause.TIMED_OUT.value}"] += 1
            elif connection.client is None:
                self._counts["connections closed: no ConnectionBind came"] += 1
            else:
                self._counts["connections closed: the last octets were not taken"] += 1
            self._abandon(connection, "no answer in time", now)
        while (due := _first(self._debtors.values())) is not None and due <= now:
            allocation = next(iter(self._debtors))
            del self._debtors[allocation]
            if not allocation.meter.settle(now):
                self._debtors[allocation] = now + RETRY
                continue
            for connection in self._connections[allocation].values():
                for stream in (connection.stream, connection.client):
                    if stream is not None and stream.held & _IN_DEBT:
                        self._hold(stream, _IN_DEBT, held=False)


def _first(instants: Iterable[Instant]) -> Instant | None:
    return next(iter(instants), None)


def _value(message: Message, attribute: Attribute[T]) -> T | None:
    """Return an attribute's value, ``None`` if it is not there or is none."""
    try:
        return message.get(attribute)
    except DecodeError:
        return None


def _accounts(allocation: Allocation) -> tuple[str, ...]:
    """Return whose an allocation is.

    The username is not enough: all clients with access tokens of one authorization server have the
    same one (RFC 7635 section 4).  They may change the token, and go on with the latest.
    """
    latest = allocation.authentic
    return (allocation.account,) if latest is None else (allocation.account, latest.account)
