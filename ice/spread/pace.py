"""How fast a spread may send, and how much: a rate, a budget, a time.

RFC 8445 section 14.2 forbids new transactions "more frequently than" every 5 ms, because of the
bindings that they make in NATs.  A spread is the deliberate exception: whoever orders one states
its rate and its budget.
"""

from __future__ import annotations

from typing import Final

from ice.spread.order import Ended, Progress
from stun.sansio import MILLISECOND, SECOND, Instant

TOGETHER: Final = 2 * MILLISECOND
"""What falls due within so long leaves together: timers are no finer, and each costs a wake-up."""
BURST: Final = 32
"""No more than so many at once, however late a timer was: NATs and links drop longer bursts."""


class Pace:
    """Says when the next packet of a spread may leave."""

    __slots__ = ("_at", "_interval", "_packets", "_progress", "until")

    def __init__(self, progress: Progress, now: Instant) -> None:
        order = progress.order
        self._progress = progress
        self._interval = SECOND // order.rate
        self._packets = order.packets
        self._at = now
        self.until = now + order.duration
        progress.began = now

    def take(self, now: Instant) -> bool:
        """Whether one more may leave now; counts it if so."""
        if self._progress.sent >= self._packets or self._at > now or now >= self.until:
            return False
        late = now - BURST * self._interval
        self._at = max(self._at, late) + self._interval
        self._progress.sent += 1
        return True

    @property
    def is_spent(self) -> bool:
        """Whether the budget is used up."""
        return self._progress.sent >= self._packets

    def why_over(self, now: Instant) -> Ended | None:
        """Say whether and why the time for it is over."""
        return Ended.EXPIRED if now >= self.until else None

    def next(self, now: Instant) -> Instant:
        """Say when the next may leave."""
        return max(self._at, now + TOGETHER)
