"""Moving an allocation to another local address (RFC 8016).

Theory of operation.  The new socket is opened beside the old one and sends a Refresh with the
ticket.  Until its answer the old path carries everything.  Afterwards the server still sends to the
old address until it hears a Send indication or ChannelData from the new one, so the old socket
listens a while longer: until something has come to the new one, at most :data:`LINGER`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stun.attributes import LIFETIME, MOBILITY_TICKET
from stun.client import Reply
from stun.discovery import Target
from stun.errors import StunError, UsageError
from stun.outcome import value_of
from stun.registry import Method
from stun.sansio import (
    SECOND,
    Address,
    Arrived,
    Closed,
    Connected,
    Handle,
    Instant,
    Opened,
    Shut,
    SocketEvent,
)
from turn.client.allocate import DEFAULT_LIFETIME
from turn.client.errors import ServerUnreachable
from turn.client.events import Moved, NotMoved
from turn.client.path import Path
from turn.client.requests import Failure, Queue, Requests

LINGER: Final = 30 * SECOND
"""RFC 8016 section 3.2.2: servers keep the old ticket "for a period of at least 30 seconds"."""
PATIENCE: Final = 20 * SECOND
"""How long the new connection may take."""


class Mover:
    """What moves one client.

    ``moved`` is told the new path and the lifetime in seconds, ``stayed`` why it did not come to
    that; ``arrived`` takes octets of streams.
    """

    def __init__(
        self,
        queue: Queue,
        requests: Requests,
        *,
        new_handle: Callable[[], Handle],
        moved: Callable[[Path, int, Instant], None],
        stayed: Callable[[StunError, Instant], None],
        arrived: Callable[[Path, bytes, Instant], None],
    ) -> None:
        self.ticket: bytes | None = None
        self._queue = queue
        self._requests = requests
        self._new_handle = new_handle
        self._moved = moved
        self._stayed = stayed
        self._stream_arrived = arrived
        self._new: Path | None = None
        self._patience: Instant | None = None
        self._current: Path | None = None
        self.old: Path | None = None
        self._old_until: Instant = 0

    @property
    def is_moving(self) -> bool:
        """Whether a move is on its way."""
        return self._new is not None

    def __contains__(self, handle: Handle) -> bool:
        return any(path is not None and path.handle == handle for path in (self._new, self.old))

    def is_at(self, local: Address) -> bool:
        """Whether a datagram for ``local`` came to a socket of a move."""
        return any(path is not None and path.is_at(local) for path in (self._new, self.old))

    def start(self, server: Target, local: Address, now: Instant) -> None:
        """Open the new socket; an earlier move that has not ended gives way."""
        if self.ticket is None:
            raise UsageError(
                "move: there is no ticket for it; ask for mobility, which not every server allows"
            )
        self._shut_new()
        self._new = Path.control(self._new_handle(), server, local)
        self._patience = now + PATIENCE
        self._queue.append(self._new.order)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket of a move."""
        new, old = self._new, self.old
        if new is not None and getattr(event, "handle", None) == new.handle:
            match event:
                case Opened(_, local) | Connected(_, local):
                    new.local = local
                    self._patience = None
                    self._requests.on_socket(event, now)
                    self._ask(new, now)
                case Arrived(_, data):
                    self._stream_arrived(new, data, now)
                case Closed(_, cause, detail):
                    self._requests.on_socket(event, now)
                    self._requests.drain(now)
                    if self._new is new:
                        text = f"the new connection: {detail or cause.value}"
                        self._fail(new, ServerUnreachable(new.server, text), now)
                case _:
                    pass  # it carries no data yet
        elif old is not None:
            match event:
                case Arrived(_, data):
                    self._stream_arrived(old, data, now)
                case Closed():
                    self._requests.forget(old)
                    self.old = None
                case _:
                    pass

    def _ask(self, path: Path, now: Instant) -> None:
        def done(reply: Reply, _later: Instant) -> None:
            self._new = None
            # The new ticket, and never again the old one: it "can only be used for the purposes of
            # retransmission".
            self.ticket = value_of(reply.message, MOBILITY_TICKET) or self.ticket
            self._moved(path, value_of(reply.message, LIFETIME) or DEFAULT_LIFETIME, now)
            self._queue.append(Moved(path.local))

        def failed(failure: Failure, later: Instant) -> None:
            self._fail(path, failure.error, later)

        message = self._requests.message(Method.REFRESH)
        message.add(MOBILITY_TICKET, self.ticket or b"")
        self._requests.ask(path, message, now, done, failed)

    def _fail(self, path: Path, error: StunError, now: Instant) -> None:
        if self._new is path:
            self._shut_new()
        self._queue.append(NotMoved(error))
        self._stayed(error, now)

    def linger(self, old: Path, current: Path, now: Instant) -> None:
        """Listen at the old address until something has come to the new one."""
        self._shut_old()
        self._current = current
        self._old_until = now + LINGER
        if old.handle:
            self.old = old

    def heard(self, local: Address) -> None:
        """Take note that the server sent to ``local``."""
        if self._current is not None and self._current.is_at(local):
            self._shut_old()

    def upkeep(self, now: Instant) -> None:
        """Give up what has taken too long."""
        if self.old is not None and self._old_until <= now:
            self._shut_old()
        if self._new is not None and self._patience is not None and self._patience <= now:
            text = f"no new connection within {PATIENCE // SECOND} s"
            self._fail(self._new, ServerUnreachable(self._new.server, text), now)

    def deadline(self) -> Instant | None:
        """Say when :meth:`upkeep` is to be called."""
        lingering = None if self.old is None else self._old_until
        return min((at for at in (lingering, self._patience) if at is not None), default=None)

    def stop(self) -> None:
        """Shut what is open; the allocation is gone."""
        self.ticket = None
        self._shut_new()
        self._shut_old()

    def _shut_new(self) -> None:
        self._patience = None
        if self._new is not None:
            self._requests.forget(self._new)
            self._queue.append(Shut(self._new.handle))
            self._new = None

    def _shut_old(self) -> None:
        if self.old is not None:
            self._requests.forget(self.old)
            self._queue.append(Shut(self.old.handle))
            self.old = None
