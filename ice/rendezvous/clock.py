"""How far the server's clock is from this one's, by asking it a few times.

An answer says what the server's clock showed at some moment between the question and its arrival;
taking the middle is wrong by half of the round trip at most, so of several exchanges the quickest
counts (as the clock filter of NTP does, RFC 5905 section 10).  Both peers know their distance to
the same server, and by it the distance to each other, whatever the time of day it believes in.

Questions are timed with the monotonic clock, so that a clock that is set meanwhile spoils nothing.
"""

from __future__ import annotations

from typing import Final

EXCHANGES: Final = 4
"""In one burst; each question follows the answer to the one before."""


class ServerClock:
    """What is known of the server's clock.  All times are in seconds."""

    __slots__ = ("_asked", "_best", "_fresh", "_left", "_number")

    def __init__(self, sent: float, received: float, theirs: float) -> None:
        """Start from the server's first words.

        ``theirs``: its time, seconds since 1970, which it wrote between ``sent`` and ``received``
        of the monotonic clock.
        """
        self._best = (received - sent, theirs - (sent + received) / 2)
        self._fresh = False
        self._left = 0
        self._number = 0
        self._asked: tuple[float, float] | None = None

    @property
    def rtt(self) -> float:
        """The quickest round trip."""
        return self._best[0]

    def ahead_of(self, monotonic: float) -> float:
        """Return the server's time when the monotonic clock shows ``monotonic``."""
        return self._best[1] + monotonic

    def burst(self, now: float) -> float | None:
        """Begin a burst, after which what was known before does not count any more.

        Returns the number to ask with, or ``None`` while there is a question without an answer.
        """
        self._fresh = False
        self._left = EXCHANGES
        return self._ask(now) if self._asked is None else None

    def answered(self, number: float, theirs: float, now: float) -> float | None:
        """Take an answer; returns the number to ask with next, or ``None``.

        An answer that was not asked for counts for nothing.
        """
        if self._asked is None or self._asked[0] != number:
            return None
        sent = self._asked[1]
        self._asked = None
        sample = (now - sent, theirs - (sent + now) / 2)
        if not self._fresh or sample < self._best:
            self._best, self._fresh = sample, True
        return self._ask(now)

    def _ask(self, now: float) -> float | None:
        if not self._left:
            return None
        self._left -= 1
        # A number that tells nothing: neither the time here nor how long this machine is up.
        self._number += 1
        self._asked = (float(self._number), now)
        return self._asked[0]
