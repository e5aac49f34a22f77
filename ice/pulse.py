"""What the questions on one pair tell: its distance, its losses, its life.

A question is a Binding request with a transaction of its own, "transmitted once only" (RFC 7675
section 5.1), so that "a response might be for a previous request".  Round-trip times are smoothed
as RFC 6298 section 2 does, and an answer is *overdue* once it has taken longer than they give
reason to expect: after a second, that is so on a path of a millisecond and not on one of three
seconds.
"""

from __future__ import annotations

from typing import Final

from stun.sansio import MILLISECOND, SECOND, Instant
from stun.transaction import RTO

MOST_WAITING: Final = 16
"""Questions without an answer that are remembered; the oldest count as lost beyond that."""
LONGEST_PATIENCE: Final = 10 * SECOND
GRANULARITY: Final = MILLISECOND
""""the time granularity (e.g., 1 ms)" G of RFC 6298 section 2."""
LOSS_SHIFT: Final = 3
"""A lost question weighs an eighth, as a sample of the round-trip time does."""
WHOLE: Final = 1 << 16
"""What :attr:`Pulse.loss` is when everything gets lost."""


class Pulse:
    """The questions and answers of one pair.  ``rtt``: what is known of it beforehand."""

    __slots__ = ("answered_at", "answers", "asked_at", "loss", "rtt", "variation", "waiting")

    def __init__(self, rtt: int | None = None) -> None:
        self.rtt = rtt
        """Smoothed round-trip time in nanoseconds."""
        self.variation = 0 if rtt is None else rtt // 2
        """Mean deviation of it."""
        self.loss = 0
        """Smoothed share of the questions without an answer, in parts of :data:`WHOLE`."""
        self.answers = 0
        """How many there were in all."""
        self.asked_at: Instant | None = None
        self.answered_at: Instant | None = None
        self.waiting: list[Instant] = []
        """When the questions were asked that have no answer yet, the earliest first."""

    def asked(self, now: Instant) -> None:
        """Take note of a question."""
        self.asked_at = now
        self.waiting.append(now)
        if len(self.waiting) > MOST_WAITING:
            del self.waiting[0]
            self._count(lost=True)

    def answered(self, rtt: int, now: Instant) -> None:
        """Take note of a valid answer that took ``rtt`` nanoseconds.

        The questions before the one it answers are taken for lost: their answers would have had to
        come first.
        """
        rtt = max(rtt, 0)
        self.answered_at = now
        self.answers += 1
        if self.rtt is None:
            self.rtt, self.variation = rtt, rtt // 2
        else:
            # RFC 6298 section 2.3: alpha = 1/8 and beta = 1/4, the variation first.
            self.variation += (abs(self.rtt - rtt) - self.variation) // 4
            self.rtt += (rtt - self.rtt) // 8
        question = now - rtt
        while self.waiting and self.waiting[0] <= question:
            last = len(self.waiting) == 1 or self.waiting[1] > question
            del self.waiting[0]
            self._count(lost=not last)

    def _count(self, *, lost: bool) -> None:
        self.loss += ((WHOLE if lost else 0) - self.loss) >> LOSS_SHIFT

    @property
    def patience(self) -> int:
        """For how many nanoseconds an answer may be out before it is overdue.

        It is the retransmission timeout of RFC 6298 section 2.3, not below the 500 ms of RFC 8489.
        """
        if self.rtt is None:
            return RTO
        return min(max(self.rtt + max(GRANULARITY, 4 * self.variation), RTO), LONGEST_PATIENCE)

    def overdue(self, now: Instant) -> int:
        """Return how many answers are overdue."""
        latest = now - self.patience
        return sum(1 for asked in self.waiting if asked <= latest)

    def overdue_at(self) -> Instant | None:
        """Return when the earliest question's answer is overdue, or ``None``."""
        return self.waiting[0] + self.patience if self.waiting else None

    def forget(self) -> None:
        """Expect no more answers: what is out counts neither as lost nor as answered."""
        self.waiting.clear()
