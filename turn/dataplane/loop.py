"""An event loop in whose selector the data plane has its sockets.  Linux only.

Theory of operation.  A data plane beside an event loop has an epoll set of its own, whose
descriptor the loop watches.  Each wake-up then costs three calls of epoll_wait and a turn of the
loop, which at low rates is more than relaying the packet.  Here both share one set: what is the
plane's is served before :meth:`SharedSelector.select` returns, and as long as the loop has nothing
to do, that is one call of epoll_wait a wake-up and no turn of the loop.

The loop is kept from nothing.  Each poll looks at its descriptors too.  It gets its turn, after one
round of the plane, which is bounded, when one of them is ready,
when the plane or the machine has had the loop call something (:attr:`SharedSelector.wanted`), and
when the time is up that the loop gave.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
from collections.abc import Callable, Container
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVarTuple

from turn.dataplane.wakeups import EVENTS, Events

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_Ts = TypeVarTuple("_Ts")
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
# Errors and hang-ups are for both readers and writers, as in the base class.
_NOT_IN, _NOT_OUT = ~select.EPOLLIN, ~select.EPOLLOUT


def _nobody(_events: Events) -> None: ...


class SharedSelector(selectors.EpollSelector):
    """The selector of a :class:`RelayLoop`: its epoll set may be shared by one other."""

    def __init__(self) -> None:
        super().__init__()
        # The same set under a descriptor of our own: the other one is the base class's to close.
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))
        self._serve: Callable[[Events], None] = _nobody
        self._theirs: Container[int] = ()
        # What get_map() has, without its detour by way of file objects.
        self._keys: dict[int, selectors.SelectorKey] = {}
        self.wanted = False
        """Whether the loop has got something to do since :meth:`select` was called."""

    def share(self, serve: Callable[[Events], None], theirs: Container[int]) -> select.epoll | None:
        """Have ``serve`` called for those of ``theirs`` that are ready; return where to register.

        ``None``: the set is shared already; it stays so until :meth:`unshare`.
        """
        if self._serve is not _nobody:
            return None
        self._serve, self._theirs = serve, theirs
        return self._epoll

    def unshare(self) -> None:
        """Serve nobody any more.  What was registered must have been closed."""
        self._serve, self._theirs = _nobody, ()

    def register(
        self, fileobj: FileDescriptorLike, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        """Watch a descriptor of the loop's."""
        key = super().register(fileobj, events, data)
        self._keys[key.fd] = key
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Watch it no longer."""
        key = super().unregister(fileobj)
        del self._keys[key.fd]
        return key

    def modify(
        self, fileobj: FileDescriptorLike, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        """Watch it for something else."""
        key = super().modify(fileobj, events, data)
        self._keys[key.fd] = key
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready of the loop's own; serve what is not, meanwhile."""
        poll, now, keys = self._epoll.poll, monotonic, self._keys
        wait = -1.0 if timeout is None else max(timeout, 0.0)
        end = now() + wait
        self.wanted = False
        while True:
            events, theirs = poll(wait, EVENTS), self._theirs
            served = [event for event in events if event[0] in theirs]
            if len(served) < len(events):
                ready = [
                    (key, ((mask & _NOT_IN and _WRITE) | (mask & _NOT_OUT and _READ)) & key.events)
                    for fd, mask in events
                    if (key := keys.get(fd)) is not None
                ]
                if served:
                    self._serve(served)
                    # Some may have been closed since, and their numbers given to others: that of a
                    # reader that is gone would have the loop remove the new one.
                    ready = [one for one in ready if keys.get(one[0].fd) is one[0]]
                return ready
            if not served:
                return []
            self._serve(served)
            if self.wanted or wait == 0:
                return []
            if wait > 0:
                wait = max(end - now(), 0.0)

    def close(self) -> None:
        """Close the set."""
        self.unshare()
        self._epoll.close()
        super().close()


class RelayLoop(asyncio.SelectorEventLoop):
    """An event loop with a :class:`SharedSelector`."""

    def __init__(self) -> None:
        self.selector = SharedSelector()
        super().__init__(self.selector)

    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Have something called in the next turn, which is to come soon."""
        self.selector.wanted = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Have something called at a time, which may be earlier than the selector waits."""
        self.selector.wanted = True
        return super().call_at(when, callback, *args, context=context)

    def stop(self) -> None:
        """Stop after this turn."""
        self.selector.wanted = True
        super().stop()
