"""What ends when, for more things than :class:`stun.sansio.Timers` is meant for.

Theory of operation.  A heap of (instant, number, thing), and beside it the instant that counts for
each thing.  Setting a later time only writes that instant down: when the old entry comes up it is
put back for the new time.  So a lifetime that is extended over and over, as TURN's all are, costs
one entry.  Entries that count no longer stay until they come up, unless they are more than half
of the heap; then it is made anew, so that short lives leave nothing behind.  When nothing is to be
due any more they go at once: who waits for the next deadline need not wake up for them.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

from stun.sansio import Instant

Thing = TypeVar("Thing", bound=Hashable)

SLACK: Final = 256
"""Entries of cancelled things that are left alone in any case."""


class Expiry(Generic[Thing]):
    """Deadlines, one a thing.  Setting, cancelling and looking take no time that grows with them.

    (Setting takes the logarithm of their number where a deadline comes nearer.)
    """

    __slots__ = ("_at", "_heap", "_number")

    def __init__(self) -> None:
        self._at: dict[Thing, Instant] = {}
        self._heap: list[tuple[Instant, int, Thing]] = []
        self._number = 0

    def set(self, thing: Thing, at: Instant) -> None:
        """Let ``thing`` be due at ``at``, in place of when it was."""
        before = self._at.get(thing)
        self._at[thing] = at
        if before is None or at < before:
            self._push(thing, at)

    def hasten(self, thing: Thing, at: Instant) -> None:
        """Let ``thing`` be due at ``at`` if it is not due before."""
        before = self._at.get(thing)
        if before is None or at < before:
            self._at[thing] = at
            self._push(thing, at)

    def cancel(self, thing: Thing) -> None:
        """Let ``thing`` never be due; nothing happens when it is not going to be."""
        if self._at.pop(thing, None) is not None:
            self._tidy()

    def next(self) -> Instant | None:
        """Return an instant at which :meth:`due` may have something, none before it has."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: Instant) -> Iterator[Thing]:
        """Disarm and yield each thing whose time has come, the earliest first.

        Whoever takes one may set and cancel others, and that one too, but not for ``now``.
        """
        while self._heap and self._heap[0][0] <= now:
            entered, _, thing = heapq.heappop(self._heap)
            at = self._at.get(thing)
            if at == entered:
                del self._at[thing]
                yield thing
            elif at is not None:
                self._push(thing, at)

    def _push(self, thing: Thing, at: Instant) -> None:
        self._number += 1
        heapq.heappush(self._heap, (at, self._number, thing))
        self._tidy()

    def _tidy(self) -> None:
        if not self._at:
            self._heap.clear()
        elif len(self._heap) > 2 * len(self._at) + SLACK:
            self._heap = [(at, n, one) for n, (one, at) in enumerate(self._at.items())]
            self._number = len(self._heap)
            heapq.heapify(self._heap)

    def __contains__(self, thing: object) -> bool:
        return thing in self._at

    def __len__(self) -> int:
        return len(self._at)
