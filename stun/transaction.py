"""When a request is sent again, and when it is given up (RFC 8489 section 6.2).

Theory of operation.  A :class:`Schedule` is a plain value: the silences between sends, and the
silence after the last one.  A :class:`Transaction` walks along it and says at each deadline whether
to send again or to give up; it knows neither the message nor the socket.  A :class:`RttCache` keeps
what was learned about a server's distance for the next transaction to it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from stun.errors import UsageError
from stun.sansio import MILLISECOND, SECOND, Instant

RTO = 500 * MILLISECOND
"""RFC 8489 section 6.2.1: the initial RTO "SHOULD be greater than or equal to 500 ms"."""
RC = 7
RM = 16
TI = 39_500 * MILLISECOND
"""RFC 8489 section 6.2.2: over TCP and TLS the client gives up after Ti, 39.5 s by default."""

MAX_RTO = 60 * SECOND
"""RFC 6298 section 2.5: "A maximum value MAY be placed on RTO provided it is at least 60 s"."""

STALE = 600 * SECOND
"""RFC 8489 section 6.2.1: a cached RTO is discarded after 10 minutes without a transaction."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The silences of one transaction, in nanoseconds.

    ``intervals``: before the second, third, ... send; empty when the request is sent once.
    ``final``: after the last send, until the transaction is given up.
    """

    intervals: tuple[int, ...]
    final: int

    def __post_init__(self) -> None:
        if self.final <= 0 or any(interval <= 0 for interval in self.intervals):
            raise UsageError("the intervals of a schedule must be positive")

    @classmethod
    def rfc8489(cls, rto: int = RTO, rc: int = RC, rm: int = RM) -> Schedule:
        """Doubling from ``rto`` until ``rc`` requests are sent, then ``rm`` times ``rto``.

        By default at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s, given up at 39.5 s.
        """
        if rc < 1:
            raise UsageError("a request is sent at least once (Rc)")
        return cls(tuple(rto << n for n in range(rc - 1)), rm * rto)

    @classmethod
    def reliable(cls, ti: int = TI) -> Schedule:
        """Once, as over TCP and TLS: "there are no retransmissions at the STUN protocol level"."""
        return cls((), ti)

    @classmethod
    def fixed(cls, intervals: Iterable[int], final: int) -> Schedule:
        """Make a schedule of one's own, in nanoseconds; a probe in a hurry has one."""
        return cls(tuple(intervals), final)

    @property
    def sends(self) -> int:
        """How often the request is sent when nobody answers (Rc)."""
        return len(self.intervals) + 1

    @property
    def total(self) -> int:
        """Nanoseconds from the first send until the transaction is given up."""
        return sum(self.intervals) + self.final


class Step(Enum):
    """What :meth:`Transaction.on_deadline` asks for."""

    WAIT = "wait"
    SEND_AGAIN = "send again"
    GIVE_UP = "give up"


class Transaction:
    """One request on its way.  Created at the moment of the first send."""

    __slots__ = ("_due", "_schedule", "sends", "started")

    def __init__(self, schedule: Schedule, now: Instant) -> None:
        self._schedule = schedule
        self.started = now
        self.sends = 1
        self._due = now + self._silence()

    def _silence(self) -> int:
        intervals = self._schedule.intervals
        return intervals[self.sends - 1] if self.sends <= len(intervals) else self._schedule.final

    @property
    def deadline(self) -> Instant:
        """When :meth:`on_deadline` has something to say."""
        return self._due

    def on_deadline(self, now: Instant) -> Step:
        """Say what is to be done at ``now``; early calls are told to wait.

        The next silence starts when this send happens, not when it was due: after a machine slept
        through several deadlines the request is sent once, not in a burst.
        """
        if now < self._due:
            return Step.WAIT
        if self.sends >= self._schedule.sends:
            return Step.GIVE_UP
        self.sends += 1
        self._due = now + self._silence()
        return Step.SEND_AGAIN

    def rtt(self, now: Instant) -> int | None:
        """Return the round-trip time in nanoseconds if a response arrives at ``now``.

        ``None`` after a retransmission: "RTT estimates SHOULD NOT be computed from STUN
        transactions that result in the retransmission of a request" (Karn's algorithm), since one
        cannot tell which of the sends was answered.
        """
        return now - self.started if self.sends == 1 else None


class _Estimate:
    """The smoothed round-trip time to one host (RFC 6298 section 2)."""

    __slots__ = ("smoothed", "used", "variation")

    def __init__(self, sample: int, now: Instant) -> None:
        self.smoothed = sample
        self.variation = sample // 2
        self.used = now

    def update(self, sample: int, now: Instant) -> None:
        # RFC 6298 section 2.3, alpha = 1/8 and beta = 1/4, the variation first.
        self.variation += (abs(self.smoothed - sample) - self.variation) // 4
        self.smoothed += (sample - self.smoothed) // 8
        self.used = now


class RttCache:
    """RTO by host, from measured round trips (RFC 8489 section 6.2.1, RFC 6298).

    ``initial``: what an unknown host gets and what no known one goes below, in nanoseconds.  RFC
    6298 section 2.4 would not go below a second, RFC 8489 allows 500 ms, and less than that
    retransmits into queues that are merely slow.  ``capacity``: hosts remembered; the one that was
    not used for longest goes first, so that a scan of many servers costs no more memory.
    """

    __slots__ = ("_capacity", "_hosts", "_initial")

    def __init__(self, *, initial: int = RTO, capacity: int = 256) -> None:
        self._initial = initial
        self._capacity = capacity
        self._hosts: OrderedDict[str, _Estimate] = OrderedDict()

    def rto(self, host: str, now: Instant) -> int:
        """Return the RTO for the first interval to ``host``, in nanoseconds."""
        estimate = self._hosts.get(host)
        if estimate is None:
            return self._initial
        if now - estimate.used > STALE:
            del self._hosts[host]
            return self._initial
        estimate.used = now
        self._hosts.move_to_end(host)
        # RFC 6298 section 2.3: SRTT + max(G, 4 * RTTVAR), with G the 1 ms that RFC 8489 asks for.
        rto = estimate.smoothed + max(MILLISECOND, 4 * estimate.variation)
        return min(max(rto, self._initial), MAX_RTO)

    def sample(self, host: str, rtt: int, now: Instant) -> None:
        """Take a round-trip time that Karn's algorithm allows (:meth:`Transaction.rtt`)."""
        estimate = self._hosts.get(host)
        if estimate is None or now - estimate.used > STALE:
            self._hosts[host] = _Estimate(rtt, now)
        else:
            estimate.update(rtt, now)
        self._hosts.move_to_end(host)
        if len(self._hosts) > self._capacity:
            self._hosts.popitem(last=False)

    def __len__(self) -> int:
        return len(self._hosts)
