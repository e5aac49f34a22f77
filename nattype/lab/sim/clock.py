"""Virtual time: an instant that only moves when something is due.

Theory of operation.  Everything that happens in a simulated network is a call that was scheduled
for an instant.  :meth:`Clock.run` takes the earliest, moves :attr:`Clock.now` there and makes the
call; calls for the same instant are made in the order in which they were scheduled, so a run is a
function of its seed.  Nothing waits for anything: an hour of silence costs as much as a
microsecond.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeAlias

from stun.sansio import SECOND, Instant

Call: TypeAlias = Callable[[Any, Any], None]
Due: TypeAlias = tuple[Instant, int, Call, Any, Any]


class Clock:
    """The instant, and what is due later."""

    __slots__ = ("_cancelled", "events", "heap", "now", "serial")

    def __init__(self) -> None:
        self.now: Instant = 0
        self.events = 0
        """Calls made so far."""
        self.heap: list[Due] = []
        """What is due, as a heap.  Public because the wire pushes onto it directly."""
        self.serial: Callable[[], int] = count().__next__
        self._cancelled: set[int] = set()

    def at(self, instant: Instant, call: Call, first: object = None, second: object = None) -> int:
        """Have ``call(first, second)`` made at ``instant``, or now if that has passed.

        Returns what :meth:`cancel` takes.
        """
        serial = self.serial()
        heappush(self.heap, (max(instant, self.now), serial, call, first, second))
        return serial

    def cancel(self, serial: int) -> None:
        """Have a call not made after all; it must not have been made yet.

        What is cancelled does not move time, so a run ends with the last thing that happened.
        """
        self._cancelled.add(serial)

    def run(
        self,
        until: Callable[[], bool] | Instant | None = None,
        max_time: float | None = None,
    ) -> bool:
        """Make due calls until ``until`` holds, nothing is due, or ``max_time`` seconds are over.

        ``until`` is a predicate, asked before the first and after each call, or an instant.
        Returns whether ``until`` came about; without one, whether everything that was due is done.
        When an instant or ``max_time`` ends the run, :attr:`now` is at that limit afterwards.
        """
        limit: Instant | None = None if max_time is None else self.now + round(max_time * SECOND)
        predicate: Callable[[], bool] | None = None
        target: Instant | None = None
        if callable(until):
            predicate = until
            if predicate():
                return True
        elif until is not None:
            target = until
            limit = until if limit is None else min(limit, until)
        heap, cancelled = self.heap, self._cancelled
        while heap:
            at = heap[0][0]
            if limit is not None and at > limit:
                break
            _, serial, call, first, second = heappop(heap)
            if serial in cancelled:
                cancelled.remove(serial)
                continue
            self.now = at
            self.events += 1
            call(first, second)
            if predicate is not None and predicate():
                return True
        else:
            if limit is None:
                return predicate is None
        assert limit is not None
        idle = len(heap) == len(cancelled)
        if target is not None or not idle:
            self.now = max(self.now, limit)
        if target is not None:
            return self.now >= target
        return predicate is None and idle
