"""This host's addresses as they change, for every agent of an event loop together.

On Linux the kernel tells of changes (:class:`ice.netlink.Changes`), so that addresses that were
asked for a moment ago need not be asked for again; elsewhere they are looked at every few seconds.
Changes come in bursts, an interface and then its addresses one by one, so a moment passes before
anybody is told.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from ice.interfaces import LocalAddress, local_addresses
from ice.netlink import Changes
from stun.sansio import SECOND

SETTLING: Final = 0.2
"""Seconds from the first word of a change until somebody looks."""
FRESH: Final = 1.0
"""Seconds that what was asked for counts as known, unless there is word of a change.  Which address
the system prefers (RFC 6724) may change without."""

Changed: TypeAlias = Callable[[Sequence[LocalAddress]], None]

_watches: dict[asyncio.AbstractEventLoop, _Watch] = {}


class Watching:
    """What :func:`watch` gives to one agent."""

    def __init__(self, shared: _Watch, number: int) -> None:
        self._shared = shared
        self._number = number

    def addresses(self) -> Sequence[LocalAddress]:
        """Return this host's addresses."""
        return self._shared.addresses()

    def end(self) -> None:
        """Be told no more."""
        self._shared.remove(self._number)


def watch(changed: Changed, interval: int) -> Watching:
    """Have ``changed`` called in the running loop, with all addresses, when some come or go.

    ``interval`` in nanoseconds: how often to look where the system does not tell.
    """
    loop = asyncio.get_running_loop()
    shared = _watches.get(loop)
    if shared is None:
        shared = _watches[loop] = _Watch(loop, interval / SECOND)
    return Watching(shared, shared.add(changed))


class _Watch:
    """What one event loop watches."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval: float) -> None:
        self._loop = loop
        self._interval = interval
        self._told: dict[int, Changed] = {}
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None
        self._kernel = _changes()
        # Asked before the addresses are: what happens in between is told.
        self._known: Sequence[LocalAddress] = local_addresses()
        self._asked_at = loop.time()
        if self._kernel is not None:
            loop.add_reader(self._kernel.fileno(), self._word)
        else:
            self._timer = loop.call_later(interval, self._look)

    def addresses(self) -> Sequence[LocalAddress]:
        if self._kernel is None or self._loop.time() - self._asked_at > FRESH:
            self._ask()
        elif self._kernel.take():
            self._ask()
            self._soon()
        return self._known

    def _ask(self) -> None:
        self._asked_at = self._loop.time()
        self._known = local_addresses()

    def add(self, changed: Changed) -> int:
        self._next += 1
        self._told[self._next] = changed
        return self._next

    def remove(self, number: int) -> None:
        if self._told.pop(number, None) is None or self._told:
            return
        if self._kernel is not None:
            self._loop.remove_reader(self._kernel.fileno())
            self._kernel.close()
        if self._timer is not None:
            self._timer.cancel()
        _watches.pop(self._loop, None)

    def _word(self) -> None:
        assert self._kernel is not None
        if self._kernel.take():
            self._asked_at = float("-inf")
            self._soon()

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SETTLING, self._look)

    def _look(self) -> None:
        before = self._known
        self._ask()
        self._timer = None
        if self._kernel is None:
            self._timer = self._loop.call_later(self._interval, self._look)
            if self._known == before:
                return
        for changed in [*self._told.values()]:
            changed(self._known)


def _changes() -> Changes | None:
    if not hasattr(socket, "AF_NETLINK"):
        return None
    try:
        return Changes()
    except OSError:  # a sandbox may forbid it
        return None
