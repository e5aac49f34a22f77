"""One carrier as the session sees it: what is under way on it, how fast, and whether it lives.

Theory of operation.  Frames that want an answer (*eliciting*: all but HELLO, ACK, CLOSE and ABORT)
are counted by both sides in octets, carrier by carrier, and ACK tells how many have come.  That
gives, for each carrier by itself, what is outstanding, round trips, and the rate at which it
delivers; from the last two the limit of what may be outstanding.  The transport below has its own
congestion control, so the limit is no second one: it keeps what is queued ahead of the network
small, because all of that is sent again when the carrier dies, and delays whatever is behind it.

A carrier on which something is outstanding and nothing has come for its *patience* is *suspect*.
Anything that comes is life, so a slow carrier whose answers are queued behind its own octets is
not taken for a dead one.  When the peer has got something more on it, it is *on probation*: it
carries the stream only if there is none that is not.  Each further suspicion makes the probation
twice as long and the patience longer, so a path that comes and goes does not take the stream to and
fro with it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from ice.link.frames import Reader
from stun.sansio import MILLISECOND, SECOND, Instant

LEAST_OUTSTANDING = 256 * 1024
"""Octets that may always be outstanding on a carrier."""
SLACK = 125 * MILLISECOND
"""Allowed on top of the least round trip: for programs that are busy, and a path that has become
longer since."""
LEAST_ACK_GAP = 5 * MILLISECOND
QUARTER = SECOND // 4
PATIENCE = SECOND
MOST_PATIENCE = 2 * SECOND
"""With what the resending takes, no stall is longer than three seconds."""
UNPROVED_PATIENCE = 3 * SECOND
"""The first answer needs the peer to have attached its end, too."""
LONGEST_ANSWER = 15 * SECOND
"""Nothing outstanding for longer than this is unanswered on a living carrier, whatever comes."""
IDLE_PING = 5 * SECOND
"""Keeps a NAT's mapping (30 seconds and more), and what is known of a spare carrier fresh."""
PRESSING_PING = 500 * MILLISECOND
PROBATION = SECOND
MOST_PROBATION = 64 * SECOND
FORGIVEN = 60 * SECOND
"""After so long without suspicion a carrier's past is forgotten."""
LEAST_BACKLOG = 16 * 1024
"""Octets outstanding on a carrier that are no hindrance to go back to it."""
BACKLOG_WAIT = 100 * MILLISECOND
MOST_FLIGHT = 64 * 1024
MOST_FLIGHTS = 4096


class Flight(NamedTuple):
    """Octets that were sent at about one time: up to which count, when, how many were answered."""

    start: int
    end: int
    at: Instant
    acked: int


@dataclass(frozen=True, slots=True)
class CarrierView:
    """A carrier as it stands: for statistics.  Times in seconds, amounts in octets."""

    carrier_id: int
    rank: int
    proved: bool
    suspect: bool
    suspicions: int
    rtt: float | None
    rate: float
    outstanding: int
    limit: int
    sent: int
    received: int
    resent: int


class Lane:
    """What a session knows of one of its carriers."""

    __slots__ = (
        "_sealed",
        "ack_at",
        "ack_gap",
        "acked",
        "acked_at",
        "bounded",
        "counted",
        "early",
        "elicited_at",
        "excused",
        "flights",
        "greeted",
        "heard",
        "id",
        "least_rtt",
        "limit",
        "most",
        "next",
        "next_signal",
        "owed",
        "probation_until",
        "proved",
        "rank",
        "rate",
        "reader",
        "received",
        "resent",
        "rtt",
        "said_close",
        "said_hello",
        "sent",
        "steady_since",
        "suspect",
        "suspicions",
        "wants_ping",
    )

    def __init__(self, carrier_id: int, rank: int, most: int, now: Instant) -> None:
        self.id = carrier_id
        self.rank = rank
        self.reader = Reader()
        self.most = most
        # What this side sends.
        self.next = 0
        """Offset up to which the stream was put on this carrier, without a gap that matters."""
        self.next_signal = 0
        self.sent = 0
        self.acked = 0
        self.resent = 0
        self._sealed = 0
        self.flights: deque[Flight] = deque()
        self.elicited_at = now
        self.bounded = False
        """The limit was reached since the last answer."""
        self.limit = LEAST_OUTSTANDING
        self.rate = 0.0
        """Octets a second that arrive at the peer, about."""
        self.rtt: int | None = None
        self.least_rtt: int | None = None
        # What this side has taken, and owes an answer for.
        self.received = 0
        self.counted = 0
        self.owed = 0
        self.ack_at: Instant | None = None
        self.acked_at = now - SECOND
        """When the last ACK was sent."""
        self.ack_gap = LEAST_ACK_GAP
        """The least time until the next one while the carrier is congested."""
        self.wants_ping = True
        self.said_hello = False
        self.said_close = False
        # Whether it lives.
        self.greeted = False
        """The peer's HELLO has come."""
        self.proved = False
        """The peer has answered something that was sent on it."""
        self.heard = now
        self.excused = now
        """Whatever was not heard until then is no fault of the carrier's."""
        self.suspect = False
        self.early = False
        """Silent for half its patience, and the others were asked for that reason."""
        self.suspicions = 0
        self.probation_until: Instant | None = None
        self.steady_since = now

    # What is under way. ---------------------------------------------------------------------------

    @property
    def outstanding(self) -> int:
        """Octets of eliciting frames that the peer has not said to have got on this carrier."""
        return self.sent - self.acked

    def launched(self, octets: int, now: Instant) -> None:
        """Count an eliciting frame that is sent."""
        flights = self.flights
        end = self.sent + octets
        self.elicited_at = now
        if flights:
            last = flights[-1]
            near = now - last.at < MILLISECOND and end - last.start <= MOST_FLIGHT
            if (near and last.end != self._sealed) or len(flights) >= MOST_FLIGHTS:
                flights[-1] = Flight(last.start, end, last.at, last.acked)
                self.sent = end
                return
        flights.append(Flight(self.sent, end, now, self.acked))
        self.sent = end

    def ask(self, octets: int, now: Instant) -> None:
        """Count a PING that is sent: a flight of its own, so that it measures the round trip."""
        self.wants_ping = False
        self.launched(octets, now)
        self._sealed = self.sent

    def landed(self, counted: int, now: Instant) -> bool:
        """Take the peer's count; say whether it has grown."""
        if counted <= self.acked:
            return False
        self.acked = counted
        flights = self.flights
        last: Flight | None = None
        while flights and flights[0].end <= counted:
            last = flights.popleft()
        if last is not None:
            self._measure(last, now)
        self.bounded = False
        return True

    def _measure(self, flight: Flight, now: Instant) -> None:
        took = max(now - flight.at, 1000)
        self.rtt = took if self.rtt is None else self.rtt + (took - self.rtt) // 8
        if self.least_rtt is None or took < self.least_rtt:
            self.least_rtt = took
        rate = (self.acked - flight.acked) * SECOND / took
        if rate > self.rate:
            self.rate = rate
        elif self.bounded:
            # Only when the limit or the peer's window kept this side from sending more does a
            # lower figure say anything about the path.
            self.rate += (rate - self.rate) / 8
        wanted = int(2 * self.rate * (self.least_rtt + SLACK) / SECOND)
        self.limit = max(LEAST_OUTSTANDING, min(wanted, self.most))

    # Whether it lives. ----------------------------------------------------------------------------

    @property
    def patience(self) -> int:
        """How long it may be silent with something outstanding before it is suspect."""
        if self.least_rtt is None:
            return UNPROVED_PATIENCE
        learned = PATIENCE + min(self.suspicions, 2) * (MOST_PATIENCE - PATIENCE) // 2
        rtt = self.least_rtt
        usual = QUARTER + min(3 * rtt, max(MOST_PATIENCE, rtt + rtt // 2))
        return max(learned, usual)

    @property
    def silent_since(self) -> Instant | None:
        """Since when an answer is due and nothing comes; ``None``: nothing is outstanding."""
        if not self.flights:
            return None
        return max(self.heard, self.flights[0].at, self.excused)

    def excuse(self, now: Instant) -> None:
        """Give it half its patience more, because this program did not run: once in a silence.

        A program that is late all the time would otherwise never find anything out.
        """
        begun = max(self.heard, self.flights[0].at) if self.flights else self.heard
        if self.excused <= begun:
            self.excused = now - self.patience // 2

    def suspicion_at(self) -> Instant | None:
        """When it will be suspect if nothing comes."""
        since = self.silent_since
        if since is None or self.suspect:
            return None
        asked = max(self.flights[0].at, self.excused)
        return min(since + self.patience, asked + LONGEST_ANSWER)

    def early_at(self) -> Instant | None:
        """When the others are to be asked whether they live, because this one has become silent."""
        since = self.silent_since
        if since is None or self.suspect or self.early:
            return None
        return since + self.patience // 2

    def ping_at(self, pressing: bool) -> Instant | None:
        """When to ask it whether it lives; ``pressing``: an answer is waited for."""
        if self.flights or self.wants_ping:
            return None
        often = pressing or self.probation_until is not None
        return self.elicited_at + (PRESSING_PING if often else IDLE_PING)

    def doubt(self, now: Instant) -> None:
        """Suspect it: nothing has come for too long."""
        if self.probation_until is None and now - self.steady_since > FORGIVEN:
            self.suspicions = 0
        self.suspect = True
        self.probation_until = None
        self.suspicions += 1

    def vouch(self, now: Instant) -> None:
        """Take notice that the peer has answered: for the first time, or after all."""
        if self.suspect and self.proved:
            spell = PROBATION << min(self.suspicions, 10)
            self.probation_until = now + min(spell, MOST_PROBATION)
        else:
            # That it took long is the peer's, which had yet to attach its end.
            self.suspicions = 0
            self.steady_since = self.probation_until = now
        self.suspect = False
        self.proved = True
        if self.probation_until <= now:
            self.acquit(now)

    def acquit(self, now: Instant) -> bool:
        """End the probation, whose time has come; not before what is old on it has gone through.

        What the stream has left on it meanwhile went elsewhere, and all of it would come first.
        """
        if self.outstanding > max(LEAST_BACKLOG, self.rate / 4):
            self.probation_until = now + BACKLOG_WAIT
            return False
        self.probation_until = None
        self.steady_since = now
        return True

    @property
    def standing(self) -> int:
        """How well it is fit to carry the stream, before any rank."""
        if self.suspect:
            return 0
        if not self.proved:
            return 1
        return 2 if self.probation_until is not None else 3

    def view(self) -> CarrierView:
        """Return how it stands."""
        return CarrierView(
            carrier_id=self.id,
            rank=self.rank,
            proved=self.proved,
            suspect=self.suspect,
            suspicions=self.suspicions,
            rtt=None if self.rtt is None else self.rtt / SECOND,
            rate=self.rate,
            outstanding=self.outstanding,
            limit=self.limit,
            sent=self.sent,
            received=self.received,
            resent=self.resent,
        )
