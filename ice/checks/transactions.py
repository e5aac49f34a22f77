"""The checks that are under way: which are to be sent again or given up, and when.

A check that is *cancelled* is not sent again, and that it has no answer does not count, but an
answer does (RFC 8445 section 7.3.1.4), so it stays here until its time is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import lru_cache
from heapq import heappop, heappush

from ice.checks.pairs import CheckedPair
from stun.sansio import Instant
from stun.transaction import RC, RM, Schedule, Step, Transaction

TOTAL_RTO = (1 << RC - 1) - 1 + RM
"""How many times the RTO a transaction lasts (RFC 8489 section 6.2.1): 39.5 s for 500 ms."""
MOST_OF_PAIR = 8
"""Checks of a pair that are kept, and probes; the oldest are forgotten."""


class Kind(Enum):
    """What a request is for."""

    CHECK = "check"
    NOMINATION = "nomination"
    PROBE = "probe"


@lru_cache(64)
def schedule_for(rto: int, total: int) -> Schedule:
    """Return when a check is sent again: after ``rto``, doubling, and given up after ``total``.

    Checks of a long checklist have a long RTO, and would last for minutes if they were sent as
    often as others.
    """
    intervals: list[int] = []
    spent = 0
    while len(intervals) < RC - 1 and spent + (rto << len(intervals)) < total:
        intervals.append(rto << len(intervals))
        spent += intervals[-1]
    return Schedule.fixed(intervals, total - spent)


class Check:
    """A Binding request that was sent, or waits for its connection."""

    __slots__ = (
        "cancelled", "complaints", "controlling", "id", "kind", "nomination", "pair",
        "priority", "transaction", "wire",
    )  # fmt: skip

    def __init__(self, pair: CheckedPair, kind: Kind, transaction: Transaction) -> None:
        self.pair = pair
        self.kind = kind
        self.transaction = transaction
        self.id = b""
        self.wire = b""
        """What was sent; empty while the connection is being opened."""
        self.controlling = False
        """The role that it was sent in."""
        self.priority = 0
        """What its PRIORITY says."""
        self.nomination = 0
        """Which nomination of its component it is; 0: none."""
        self.cancelled = False
        self.complaints = 0
        """ICMP errors that came for it."""


class Outstanding:
    """All checks under way.  A machine may have some hundred, so the deadlines are in a heap."""

    __slots__ = ("_all", "_by_id", "_heap", "_number")

    def __init__(self) -> None:
        self._all: dict[Check, None] = {}
        self._by_id: dict[bytes, Check] = {}
        self._heap: list[tuple[Instant, int, Check]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._all)

    def add(self, check: Check) -> None:
        """Take a check; the oldest of the same pair and kind makes room if there are too many."""
        same = [c for c in self._all if c.pair is check.pair and c.kind is check.kind]
        if len(same) >= MOST_OF_PAIR:
            self.remove(min(same, key=lambda c: c.transaction.started))
        self._all[check] = None
        if check.id:
            self._by_id[check.id] = check
        self.plan(check)

    def plan(self, check: Check) -> None:
        """Take notice that the deadline of a check has changed."""
        self._number += 1
        heappush(self._heap, (check.transaction.deadline, self._number, check))

    def remove(self, check: Check) -> None:
        """Forget a check."""
        self._all.pop(check, None)
        self._by_id.pop(check.id, None)

    def get(self, transaction_id: bytes) -> Check | None:
        """Return the check that a response answers."""
        return self._by_id.get(transaction_id)

    def of(self, pair: CheckedPair) -> list[Check]:
        """Return the checks of a pair."""
        return [check for check in self._all if check.pair is pair]

    def __iter__(self) -> Iterator[Check]:
        return iter(list(self._all))

    def due(self, now: Instant) -> Iterator[tuple[Check, Step]]:
        """Yield what is to be sent again or given up; the latter are forgotten."""
        while (at := self.deadline()) is not None and at <= now:
            _, _, check = heappop(self._heap)
            step = check.transaction.on_deadline(now)
            if step is Step.GIVE_UP:
                self.remove(check)
            else:
                self.plan(check)
            yield check, step

    def deadline(self) -> Instant | None:
        """Say when :meth:`due` has something."""
        heap = self._heap
        while heap:
            at, _, check = heap[0]
            if check in self._all and check.transaction.deadline == at:
                return at
            heappop(heap)
        return None
