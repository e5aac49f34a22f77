"""When the data plane looks at its sockets: readiness, rests, and the end of each wake-up.

Theory of operation.  All sockets are in one epoll set, and a wake-up is one call, however many of
them are ready: an event loop's callback for each costs more than relaying a packet does.  The set
is that of the event loop itself where that lets itself be shared (:mod:`turn.dataplane.loop`); on
any other loop it is the plane's own, and its descriptor the only one that the loop knows.  Where
there is no epoll, each socket is watched.

A wake-up costs more than relaying some packets does.  Where many come one by one it would be paid
for each, so rounds are kept :data:`PACE` apart as long as each finds more than one packet; a packet
that comes alone never waits.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Container
from functools import partial
from time import monotonic_ns, sleep
from typing import TYPE_CHECKING, Final, TypeAlias

from stun.datagrams import Core
from stun.sansio import SECOND, Instant

if TYPE_CHECKING:
    from turn.dataplane.loop import SharedSelector

Events: TypeAlias = list[tuple[int, int]]
"""Descriptors that are ready, and for what, as ``select.epoll.poll`` returns them."""

READY: Final = getattr(select, "EPOLLIN", 1)
EVENTS: Final = 256
"""Sockets served in one round."""
TURN: Final = SECOND // 1000
"""How long a plane that shares no set goes on before streams and timers get their turn."""
PACE: Final = 200_000
"""Nanoseconds from one round to the next where several packets come in that time.

It is what network cards do (interrupt moderation), in their order of magnitude: little beside the
time a packet takes through the Internet.
"""
SHORTEST: Final = 20_000
"""Nanoseconds that are worth going to sleep for."""


class Wakeups:
    """Calls ``serve`` with what is ready; it returns how many packets it forwarded.

    ``watched`` are the descriptors of what is watched; whoever makes this keeps it.  ``now`` is the
    clock of whoever drives it.  :attr:`asked` is to be set when the machine was called: only then
    has it something new to say, or another deadline.
    """

    def __init__(self, core: Core, serve: Callable[[Events], int], watched: Container[int]) -> None:
        self._core, self._serve = core, serve
        self.now: Callable[[], Instant] = core.reactor.now
        self.asked = False
        self.full = False
        """Whether a batch was as large as can be, so that more waits: there is no rest then."""
        self._watched = watched
        self._epoll: select.epoll | None = None
        self._shared: SharedSelector | None = None
        self._fail: Callable[[BaseException], None] = _throw
        self._began: Instant = 0
        """When the last round did."""
        self._rested = False
        """Whether it was followed by a rest."""

    def share(self, selector: SharedSelector, fail: Callable[[BaseException], None]) -> None:
        """Use an event loop's own selector; to be called before anything is watched.

        ``fail`` is given what is raised meanwhile, and ends the driver but not the event loop.
        Nothing happens if somebody else has the selector.
        """
        if self._epoll is None:
            self._epoll = selector.share(self._serve_shared, self._watched)
            if self._epoll is not None:
                self._shared, self._fail = selector, fail
                self.now = monotonic_ns  # which is that loop's clock

    def watch(self, sock: socket.socket) -> None:
        """Serve a socket when it is readable, or has an error."""
        fd = sock.fileno()
        if self._epoll is None and hasattr(select, "epoll"):
            self._epoll = select.epoll()
            self._core.reactor.watch(self._epoll.fileno(), self._on_ready, None)
        if self._epoll is not None:
            self._epoll.register(fd, READY)
        else:
            self._core.reactor.watch(fd, partial(self._on_readable, fd), None)

    def unwatch(self, sock: socket.socket) -> None:
        """Serve a socket no longer, which is about to be closed."""
        if self._epoll is None:  # closing takes it out of an epoll set
            self._core.reactor.unwatch(sock.fileno())

    def close(self) -> None:
        """Let go of the set.  Every socket must have been unwatched."""
        if self._shared is not None:
            self._shared.unshare()
        elif self._epoll is not None:
            self._core.reactor.unwatch(self._epoll.fileno())
            self._epoll.close()
        self._epoll = self._shared = None

    def _serve_shared(self, events: Events) -> None:
        """Serve what is ready in the set of the event loop."""
        try:
            self._round(events)
            if self.asked:
                self._settle()
        except BaseException as error:
            self._fail(error)

    def _on_ready(self) -> None:
        """Serve what is ready in a set of the plane's own."""
        begin, epoll = monotonic_ns(), self._epoll
        while epoll is not None and (events := epoll.poll(0, EVENTS)):
            if not self._round(events) or monotonic_ns() - begin > TURN:
                break
            epoll = self._epoll  # gone, if the machine has had enough
        self._settle()

    def _on_readable(self, fd: int) -> None:
        """Serve one socket, where there is no epoll."""
        self._serve([(fd, READY)])
        self.asked = True
        self._settle()

    def _round(self, events: Events) -> bool:
        """Serve what is ready; say whether more is likely to be ready by now."""
        begin = monotonic_ns()
        self.full = False
        forwarded = self._serve(events)
        # A rest that brought no more than one packet was not worth it.
        rests = forwarded > 1 if self._rested else forwarded and begin - self._began < PACE
        self._rested = False
        if rests and not self.full and (rest := begin + PACE - monotonic_ns()) > SHORTEST:
            sleep(rest / 1e9)
            self._rested = True
        self._began = begin
        return forwarded > 1

    def _settle(self) -> None:
        if self.asked:
            self.asked = False
            self._core.settle()


def _throw(error: BaseException) -> None:
    raise error
