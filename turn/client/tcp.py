"""Relayed TCP connections of the client (RFC 6062).

Theory of operation.  A connection goes through these stages::

    ASKED      a Connect request waits for the server to reach the peer      (outgoing only)
    DIALLING   a second connection to the server is being opened
    BINDING    ConnectionBind has been sent on it
    OPEN       "data sent on it by the client will be relayed as-is"

The answer to ConnectionBind and the peer's first octets may come in one piece, so the octets of a
connection that is being bound are cut here, message by message, until the answer has been judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count
from typing import Final

from stun.attributes import CONNECTION_ID, XOR_PEER_ADDRESS
from stun.client import Indication, Reply
from stun.errors import DropReason, StunError, UsageError
from stun.framing import MAX_STUN
from stun.outcome import value_of
from stun.registry import ErrorCode, Method
from stun.sansio import (
    SECOND,
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
from turn.client.errors import ServerRefused, ServerUnreachable, TurnError
from turn.client.events import (
    Connection,
    PeerClosed,
    PeerCongested,
    PeerConnected,
    PeerRefused,
    PeerStream,
)
from turn.client.path import Path
from turn.client.requests import Ask, Failure, Queue, Requests

PATIENCE: Final = 30 * SECOND
"""RFC 6062 section 5.2: a connection that nobody binds "within 30 seconds" is closed."""

_HEADER: Final = 20


class Stage(Enum):
    """How far a connection has come."""

    ASKED = auto()
    DIALLING = auto()
    BINDING = auto()
    OPEN = auto()


@dataclass(slots=True, eq=False)
class _Connection:
    number: Connection
    peer: Address
    incoming: bool
    stage: Stage
    ask: Ask | None = None
    path: Path | None = None
    identifier: int = 0
    until: Instant | None = None
    unwanted: bool = False
    """It was closed before it was there."""
    arrived: bytearray = field(default_factory=bytearray)


class Connections:
    """The relayed connections of one allocation.

    ``control`` is the path that the allocation was made on, ``new_handle`` names a socket, ``lost``
    is told when an answer shows that the allocation is gone.
    """

    def __init__(
        self,
        queue: Queue,
        requests: Requests,
        *,
        control: Callable[[], Path],
        new_handle: Callable[[], Handle],
        lost: Callable[[StunError, Instant], None],
        accept_limit: int,
    ) -> None:
        self._queue = queue
        self._requests = requests
        self._control = control
        self._new_handle = new_handle
        self._lost = lost
        self._accept_limit = accept_limit
        self._numbers = count(1)
        self._all: dict[Connection, _Connection] = {}
        self._by_handle: dict[Handle, _Connection] = {}

    def __contains__(self, handle: Handle) -> bool:
        return handle in self._by_handle

    # Commands. ------------------------------------------------------------------------------------

    def connect(self, peer: Address, now: Instant) -> Connection:
        """Ask the server to connect to a peer."""
        on_its_way = [c for c in self._all.values() if c.peer == peer and c.stage is not Stage.OPEN]
        for connection in on_its_way:
            if connection.unwanted:
                return self._want_again(connection)
            if connection.stage is Stage.ASKED:
                # Section 4.3: "Connect requests with the same XOR-PEER-ADDRESS parameter MUST NOT
                # be sent simultaneously."
                raise UsageError(f"{peer} is being connected to already")
        connection = _Connection(next(self._numbers), peer, incoming=False, stage=Stage.ASKED)
        self._all[connection.number] = connection

        def done(reply: Reply, later: Instant) -> None:
            connection.ask = None
            identifier = value_of(reply.message, CONNECTION_ID)
            if identifier is None:
                error = TurnError(self._control().server, "its answer has no CONNECTION-ID")
                self._fail(connection, Method.CONNECT, error)
            else:
                connection.identifier = identifier
                self._dial(connection, later)

        def failed(failure: Failure, later: Instant) -> None:
            self._fail(connection, Method.CONNECT, failure.error)
            self._look_for_mismatch(failure.error, later)

        message = self._requests.message(Method.CONNECT).add(XOR_PEER_ADDRESS, peer)
        connection.ask = self._requests.ask(self._control(), message, now, done, failed)
        return connection.number

    def attempted(self, indication: Indication, now: Instant) -> None:
        """Take a ConnectionAttempt: a peer has connected to the relayed address."""
        identifier = value_of(indication.message, CONNECTION_ID)
        peer = value_of(indication.message, XOR_PEER_ADDRESS)
        if identifier is None or peer is None:
            reason = DropReason.BAD_ATTRIBUTE_VALUE
            self._requests.drop(reason, indication.source, "ConnectionAttempt")
        elif sum(c.incoming for c in self._all.values()) >= self._accept_limit:
            # What is not bound, the server closes after 30 seconds.
            self._requests.drop(DropReason.RATE_LIMITED, peer, "too many connections of peers")
        else:
            connection = _Connection(next(self._numbers), peer, True, Stage.DIALLING)
            connection.identifier = identifier
            self._all[connection.number] = connection
            self._dial(connection, now)

    def write(self, connection: Connection, data: bytes) -> None:
        """Send octets to the peer; on a connection that has ended they go nowhere."""
        known = self._all.get(connection)
        if known is not None and known.stage is Stage.OPEN and known.path is not None:
            self._queue.append(Write(known.path.handle, data))

    def hold(self, connection: Connection, held: bool) -> None:
        """Read nothing of a connection for now, or go on reading."""
        known = self._all.get(connection)
        if known is not None and known.stage is Stage.OPEN and known.path is not None:
            self._queue.append(Hold(known.path.handle, held))

    def close(self, connection: Connection, *, reset: bool = False) -> None:
        """End a connection at any stage, without an event."""
        known = self._all.get(connection)
        if known is not None and known.stage is Stage.OPEN:
            self._remove(known, reset=reset)
        elif known is not None:
            # A request cannot be taken back: the server would keep its connection with the peer for
            # 30 seconds and refuse another one (446).  So it is completed and then closed.
            known.unwanted = True

    def _want_again(self, connection: _Connection) -> Connection:
        connection.unwanted = False
        del self._all[connection.number]
        connection.number = next(self._numbers)
        self._all[connection.number] = connection
        return connection.number

    def clear(self, cause: Cause | None) -> None:
        """End all of them; ``cause`` is told of each, ``None`` for nothing to be told."""
        for connection in [*self._all.values()]:
            self._remove(connection)
            if cause is not None and not connection.unwanted:
                self._queue.append(PeerClosed(connection.number, cause, "the allocation ended"))

    # What happens. --------------------------------------------------------------------------------

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket of ours."""
        match event:
            case Connected(handle, local):
                connection = self._by_handle[handle]
                if connection.path is not None:
                    connection.path.local = local
                    self._requests.on_socket(event, now)
                    self._bind(connection, connection.path, now)
            case Arrived(handle, data):
                connection = self._by_handle[handle]
                if connection.stage is Stage.OPEN:
                    self._queue.append(PeerStream(connection.number, data))
                else:
                    self._arrived(connection, data, now)
            case Congested(handle):
                self._queue.append(PeerCongested(self._by_handle[handle].number))
            case Relieved(handle):
                self._queue.append(PeerCongested(self._by_handle[handle].number, relieved=True))
            case Closed(handle, cause, detail):
                self._closed(self._by_handle[handle], cause, detail)
            case _:
                pass  # the other events are of sockets that are none of ours

    def upkeep(self, now: Instant) -> None:
        """Give up what has taken too long."""
        for connection in [*self._all.values()]:
            if connection.until is not None and connection.until <= now:
                error = ServerUnreachable(
                    self._control().server, "the second connection to it took more than 30 s"
                )
                self._fail(connection, Method.CONNECTION_BIND, error)

    def deadline(self) -> Instant | None:
        """Say when :meth:`upkeep` is to be called."""
        times = (c.until for c in self._all.values() if c.until is not None)
        return min(times, default=None)

    def _dial(self, connection: _Connection, now: Instant) -> None:
        control = self._control()
        handle = self._new_handle()
        # Section 4.3: "utilizing the same destination transport address [...] using a different
        # local transport address".
        local = Address(control.local.host, 0)
        connection.stage = Stage.DIALLING
        connection.until = now + PATIENCE
        connection.path = Path(handle, control.server, local)
        self._by_handle[handle] = connection
        self._queue.append(Dial(handle, local, control.server.address, control.server.name))

    def _bind(self, connection: _Connection, path: Path, now: Instant) -> None:
        def done(_: Reply, _later: Instant) -> None:
            connection.ask = None
            connection.stage = Stage.OPEN
            connection.until = None
            # From here on the octets are the peer's.
            self._requests.forget(path)
            peer, number = connection.peer, connection.number
            if connection.unwanted:
                self._remove(connection, reset=True)
            else:
                self._queue.append(PeerConnected(number, peer, connection.incoming))

        def failed(failure: Failure, later: Instant) -> None:
            self._fail(connection, Method.CONNECTION_BIND, failure.error)
            self._look_for_mismatch(failure.error, later)

        connection.stage = Stage.BINDING
        message = self._requests.message(Method.CONNECTION_BIND)
        message.add(CONNECTION_ID, connection.identifier)
        # Section 4.3: it "MUST use the same method and credentials as for the control connection",
        # and coturn closes a connection whose first request is not authenticated.
        connection.ask = self._requests.ask(
            path, message, now, done, failed, session=self._control()
        )

    def _arrived(self, connection: _Connection, data: bytes, now: Instant) -> None:
        if connection.path is None:
            return
        buffer = connection.arrived
        buffer += data
        while connection.stage is Stage.BINDING and len(buffer) >= _HEADER:
            end = _HEADER + (buffer[2] << 8 | buffer[3])
            if buffer[0] > 3 or end > MAX_STUN:
                error = TurnError(self._control().server, "it does not speak STUN")
                self._fail(connection, Method.CONNECTION_BIND, error)
                return
            if len(buffer) < end:
                return
            message = bytes(buffer[:end])
            del buffer[:end]
            self._requests.on_socket(Arrived(connection.path.handle, message), now)
            self._requests.drain(now)
        if connection.stage is Stage.OPEN and buffer:
            connection.arrived = bytearray()
            if connection.number in self._all:
                self._queue.append(PeerStream(connection.number, bytes(buffer)))

    def _closed(self, connection: _Connection, cause: Cause, detail: str) -> None:
        if connection.stage is Stage.OPEN:
            self._remove(connection, shut=False)
            self._queue.append(PeerClosed(connection.number, cause, detail))
            return
        error = ServerUnreachable(
            self._control().server,
            f"the second connection to it, for {connection.peer}: {detail or cause.value}",
        )
        self._fail(connection, Method.CONNECTION_BIND, error, shut=False)

    def _fail(
        self, connection: _Connection, method: Method, error: StunError, *, shut: bool = True
    ) -> None:
        connection.ask = None
        self._remove(connection, shut=shut)
        if not connection.unwanted:
            self._queue.append(PeerRefused(connection.peer, method, error, connection.number))

    def _remove(self, connection: _Connection, *, shut: bool = True, reset: bool = False) -> None:
        self._all.pop(connection.number, None)
        if connection.ask is not None:
            self._requests.cancel(connection.ask)
        if connection.path is not None:
            self._by_handle.pop(connection.path.handle, None)
            self._requests.forget(connection.path)
            if shut:
                self._queue.append(Shut(connection.path.handle, reset))

    def _look_for_mismatch(self, error: StunError, now: Instant) -> None:
        if isinstance(error, ServerRefused) and error.code == ErrorCode.ALLOCATION_MISMATCH:
            self._lost(error, now)
