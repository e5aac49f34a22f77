"""Keeping an allocation: refreshed before it expires, its way through NATs kept open.

RFC 8656 section 8 wants the allocation refreshed "roughly 1 minute before it expires".  That is far
too seldom for the NATs before the client: "many NATs deployed in the field expire their UDP
bindings considerably earlier" (section 9), and then what the server sends is lost and what the
client sends comes from an address that has no allocation.  So over UDP and DTLS a Binding
indication follows whenever nothing was sent for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stun.attributes import LIFETIME
from stun.client import Reply
from stun.codec import encode
from stun.errors import StunError
from stun.message import Message
from stun.outcome import value_of
from stun.registry import Class, Method
from stun.sansio import SECOND, Address, Instant
from turn.client.allocate import DEFAULT_LIFETIME
from turn.client.errors import AllocationLost, ServerRefused
from turn.client.events import Refreshed
from turn.client.path import Path
from turn.client.requests import Ask, Failure, Queue, Requests

EARLY: Final = 60 * SECOND
""""roughly 1 minute before it expires"."""
AGAIN: Final = 5 * SECOND
"""How long after an unanswered Refresh the next one follows."""
SUSPICION: Final = 10 * SECOND
"""After an ICMP error the server is asked whether it still has the allocation; at most so often."""


class Keeper:
    """Keeps one allocation alive.  ``lifetime``: what to ask for, ``None``: the server's default.

    ``path`` gives the way to the server, ``lost`` is told when the allocation is gone.
    """

    def __init__(
        self,
        queue: Queue,
        requests: Requests,
        *,
        path: Callable[[], Path],
        lost: Callable[[StunError, Instant], None],
        write: Callable[[bytes], None],
        lifetime: int | None,
        keepalive: int | None,
    ) -> None:
        self._queue = queue
        self._requests = requests
        self._path = path
        self._lost = lost
        self._write = write
        self._lifetime = lifetime
        self._silence = None if keepalive is None else keepalive * SECOND
        self._keepalive_at: Instant = 0
        self.sent: Instant = 0
        """When something was last sent to the server."""
        self._asked: Ask | None = None
        self._refresh_at: Instant = 0
        self._expires: Instant = 0
        self._last_suspicion: Instant | None = None
        self._error: StunError | None = None

    def adopt(self, lifetime: int, asked: Instant) -> None:
        """Take note that the allocation lives for so many seconds from ``asked``.

        Counted from the question: the server's own clock started before its answer came.
        """
        span = lifetime * SECOND
        self._expires = asked + span
        self._refresh_at = asked + max(span - EARLY, span // 2)
        self._error = None
        self._note(asked)

    def _note(self, now: Instant) -> None:
        self.sent = now
        self._keepalive_at = now + (self._silence or 0)

    def refresh(self, now: Instant, lifetime: int | None = None) -> None:
        """Send a Refresh now, in place of one that is on its way."""
        self.stop()
        message = self._requests.message(Method.REFRESH)
        wanted = self._lifetime if lifetime is None else lifetime
        if wanted is not None:
            message.add(LIFETIME, wanted)

        def done(reply: Reply, later: Instant) -> None:
            self._asked = None
            seconds = value_of(reply.message, LIFETIME)
            if seconds == 0:
                self._lost(AllocationLost(self._path().server, "the server ended it"), later)
                return
            self.adopt(seconds or wanted or DEFAULT_LIFETIME, now)
            self._queue.append(Refreshed(seconds or wanted or DEFAULT_LIFETIME))

        def failed(failure: Failure, later: Instant) -> None:
            self._asked = None
            error = self._error = failure.error
            if isinstance(error, ServerRefused) and error.code < 500:
                self._lost(error, later)
            else:
                # It lives on until it expires, and one of the next requests may get through.
                self._refresh_at = later + AGAIN

        self._asked = self._requests.ask(self._path(), message, now, done, failed)

    def suspect(self, server: Address, now: Instant) -> None:
        """Ask soon: an ICMP error says that nobody is at ``server`` any more."""
        last = self._last_suspicion
        if server == self._path().server.address and (last is None or now - last >= SUSPICION):
            self._last_suspicion = now
            self._refresh_at = min(self._refresh_at, now)

    def upkeep(self, now: Instant) -> None:
        """Refresh when it is time; tell when it is too late."""
        if self._expires <= now:
            why = "it expired, and no Refresh was answered in time"
            text = why if self._error is None else f"{why}: {self._error}"
            self._lost(AllocationLost(self._path().server, text, self._error), now)
        elif self._refresh_at <= now and self._asked is None:
            self.refresh(now)
        elif self._keeps_open and self._keepalive_at <= now:
            # Most often something was sent since; the packet path only notes when.
            self._keepalive_at = self.sent + (self._silence or 0)
            if self._keepalive_at <= now:
                self._note(now)
                message = self._requests.message(Method.BINDING)
                message.message_class = Class.INDICATION
                self._write(encode(message))

    @property
    def _keeps_open(self) -> bool:
        return self._silence is not None and not self._path().is_reliable

    def deadline(self) -> Instant:
        """Say when :meth:`upkeep` is to be called."""
        at = self._expires if self._asked is not None else min(self._refresh_at, self._expires)
        return min(at, self._keepalive_at) if self._keeps_open else at

    def stop(self) -> None:
        """Ask no more."""
        if self._asked is not None:
            self._requests.cancel(self._asked)
            self._asked = None


def deletion(requests: Requests) -> Message:
    """Make the Refresh that deletes an allocation: "a LIFETIME attribute with a value of zero"."""
    return requests.message(Method.REFRESH).add(LIFETIME, 0)
