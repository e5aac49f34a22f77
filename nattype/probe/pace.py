"""How often a request is sent, and how long a silence must last before it is an answer.

Theory of operation.  RFC 8489's schedule takes 39.5 s to give up, which is right for a client that
needs the answer and wrong for a test whose answer is the silence itself.  What makes a silence
trustworthy is the number of sends, not the waiting.  At 10 % loss each way one round trip in 0.19
is lost; nine sends are all lost with probability 0.19 ** 9 = 3.2e-7 (:func:`false_negative`), so a
negative is wrong less than once in three million times.  The sends are spread over more than half a
second so that one burst of loss does not take them all, and they back off (RFC 8085 section 3.1.1)
without waiting for a whole round trip, since a few duplicates of a 20-octet request cost less than
the user's time.  All of it scales with the measured round-trip time.
"""

from __future__ import annotations

from dataclasses import dataclass

from stun.sansio import MILLISECOND
from stun.transaction import Schedule

SENDS = 9
"""Sends before a silence counts."""

_FIRST = 60 * MILLISECOND
_GROWTH = 1.15
_SILENCE = 400 * MILLISECOND
_CONTACT = 100 * MILLISECOND
_CONTACT_GROWTH = 1.2
_CONTACT_SILENCE = 700 * MILLISECOND
_LONGEST_RTT = 2_000 * MILLISECOND


def false_negative(loss: float, sends: int = SENDS) -> float:
    """Return the probability that ``sends`` round trips all fail; ``loss`` is that of one way."""
    return float((1 - (1 - loss) ** 2) ** sends)


def _growing(first: int, growth: float, sends: int) -> tuple[int, ...]:
    return tuple(int(first * growth**n) for n in range(sends - 1))


def contact() -> Schedule:
    """Return the schedule for a server whose distance is not known.

    Ten sends within 2.1 s, then 0.7 s of silence: a round trip of a second still gets its answer.
    """
    return Schedule.fixed(_growing(_CONTACT, _CONTACT_GROWTH, 10), _CONTACT_SILENCE)


@dataclass(frozen=True, slots=True)
class Pace:
    """The timing of tests against a server whose round trip takes ``rtt`` ns."""

    rtt: int = 200 * MILLISECOND

    @property
    def silence(self) -> int:
        """How long nothing may come after the last send before it counts as silence, ns."""
        return max(_SILENCE, 4 * min(self.rtt, _LONGEST_RTT))

    @property
    def grace(self) -> int:
        """How much later than a control's answer a reply sent before it may still come, ns."""
        return max(60 * MILLISECOND, min(self.rtt, _LONGEST_RTT))

    @property
    def question(self) -> Schedule:
        """For a request that should be answered, or whose silence is the answer."""
        first = max(_FIRST, min(self.rtt, _LONGEST_RTT) // 2)
        return Schedule.fixed(_growing(first, _GROWTH, SENDS), self.silence)

    @property
    def patient(self) -> Schedule:
        """For a control: when it fails the result is inconclusive, so it may take its time."""
        first = max(_FIRST, min(self.rtt, _LONGEST_RTT) // 2)
        return Schedule.fixed(_growing(first, _GROWTH, SENDS + 3), 2 * self.silence)

    @property
    def handshake(self) -> int:
        """How long a TCP connection may take, ns.

        A lost SYN is sent again after 1 s and after 3 s (RFC 6298 section 2): long enough for both,
        and the answers to the second.
        """
        return 3_500 * MILLISECOND + 4 * min(self.rtt, _LONGEST_RTT)
