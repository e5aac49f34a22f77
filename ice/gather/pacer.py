"""When a new transaction with a STUN or TURN server may begin (RFC 8445 sections 5.1.1.2 and 14.2).

"The agent SHOULD NOT generate transactions more frequently than once per each ta expiration."  With
several addresses and servers that would keep the last ones waiting for half a second, although what
the pace is for, that NATs and links are not overrun, is settled by the hard limit of section 14.2:
not "more often than once every 5 ms".  So the first :data:`QUICK` transactions are that far apart,
fewer octets than any TCP connection begins with (appendix B.1), and Ta lies between the others.
What follows an authentication challenge is not counted again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from stun.sansio import MILLISECOND, Instant

Start: TypeAlias = Callable[[Instant], bool]
"""Begins a transaction, or says by False that it is not wanted any more."""

QUICK: Final = 16
LEAST: Final = 5 * MILLISECOND


class Pacer:
    """Transactions that wait for their turn."""

    __slots__ = ("_next", "_started", "_ta", "_waiting")

    def __init__(self, ta: int) -> None:
        self._ta = ta
        self._waiting: list[Start] = []
        self._next: Instant = 0
        self._started = 0

    def start_afresh(self) -> None:
        """Begin another generation: its first transactions are quick again."""
        self._started = 0

    def add(self, start: Start) -> None:
        """Have a transaction begin as soon as :meth:`run` finds it is its turn."""
        self._waiting.append(start)

    def run(self, now: Instant) -> None:
        """Begin what may begin."""
        waiting = self._waiting
        while waiting and self._next <= now:
            if waiting.pop(0)(now):
                self._started += 1
                self._next = now + (LEAST if self._started < QUICK else max(LEAST, self._ta))

    def deadline(self) -> Instant | None:
        """Say when :meth:`run` is to be called."""
        return self._next if self._waiting else None

    def clear(self) -> None:
        """Begin nothing of what waits."""
        self._waiting.clear()
