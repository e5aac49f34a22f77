"""An event loop's selector that serves the data plane's sockets by itself.  Linux only.

Theory of operation.  A data plane beside an event loop has an epoll set of its own, whose
descriptor the loop watches.  Each wake-up then costs three calls of epoll_wait and a turn of the
loop, which at low rates is more than relaying the packet.  Here both share one set: what is the
plane's is served before :meth:`SharedSelector.select` returns, and as long as the loop has nothing
to do, that is one call of epoll_wait a wake-up and no turn of the loop.

The loop is kept from nothing.  Each poll looks at its descriptors too.  It gets its turn, after one
round of the plane, which is bounded (:mod:`turn.dataplane.sockets`), when one of them is ready,
when the plane has called the machine, which may have set timers, and when the time is up that the
loop gave.
"""

from __future__ import annotations

import os
import select
import selectors
from collections.abc import Callable, Container
from time import monotonic
from typing import Final, TypeAlias

Events: TypeAlias = list[tuple[int, int]]
"""Descriptors that are ready, and for what, as ``select.epoll.poll`` returns them."""

EVENTS: Final = 256
"""Descriptors that one poll tells of."""

_NOT_IN, _NOT_OUT = ~select.EPOLLIN, ~select.EPOLLOUT


def _nobody(_events: Events) -> bool:
    return False


class SharedSelector(selectors.EpollSelector):
    """What :class:`asyncio.SelectorEventLoop` takes, with an epoll set that one other may share."""

    def __init__(self) -> None:
        super().__init__()
        # The same set under a descriptor of our own: the other one is the base class's to close.
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))
        self._serve: Callable[[Events], bool] = _nobody
        self._theirs: Container[int] = ()

    def share(self, serve: Callable[[Events], bool], theirs: Container[int]) -> select.epoll | None:
        """Have ``serve`` called for those of ``theirs`` that are ready; return where to register.

        ``serve`` says whether the loop may have got something to do.  ``None`` is returned when the
        set is shared already; it stays so until :meth:`unshare`.
        """
        if self._serve is not _nobody:
            return None
        self._serve, self._theirs = serve, theirs
        return self._epoll

    def unshare(self) -> None:
        """Serve nobody any more.  What was registered must have been closed."""
        self._serve, self._theirs = _nobody, ()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready of the loop's own; serve what is not, meanwhile."""
        poll, now = self._epoll.poll, monotonic
        wait = -1.0 if timeout is None else max(timeout, 0.0)
        end = now() + wait
        while True:
            events, theirs = poll(wait, EVENTS), self._theirs
            served = [event for event in events if event[0] in theirs]
            if len(served) == len(events):
                # Most often nothing is the loop's.
                if not served or self._serve(served) or wait == 0:
                    return []
            else:
                ours = [event for event in events if event[0] not in theirs]
                ready = self._keys_of(ours)
                if served and self._serve(served):
                    # Some may have been closed since, and their numbers given to others: that of a
                    # reader that is gone would have the loop remove the new one.
                    there = self.get_map()
                    ready = [one for one in ready if there.get(one[0].fd) is one[0]]
                return ready
            if wait > 0:
                wait = max(end - now(), 0.0)

    def _keys_of(self, events: Events) -> list[tuple[selectors.SelectorKey, int]]:
        ready = []
        keys = self.get_map()
        for fd, mask in events:
            key = keys.get(fd)
            if key is not None:
                # Errors and hang-ups are for both, as in the base class.
                kind = (selectors.EVENT_WRITE if mask & _NOT_IN else 0) | (
                    selectors.EVENT_READ if mask & _NOT_OUT else 0
                )
                ready.append((key, kind & key.events))
        return ready

    def close(self) -> None:
        """Close the set."""
        self.unshare()
        self._epoll.close()
        super().close()
