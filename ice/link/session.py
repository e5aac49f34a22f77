"""A stream in both directions over whatever carriers there are, none of which lasts.

Theory of operation.  What is written gets offsets and is kept until the peer has acknowledged it.
Each side puts its octets on one carrier at a time, the best that lives, and on its own account:
the two sides need not agree, and what comes is taken from every carrier.

Each carrier has its own cursor: up to which offset the stream was put on it.  A carrier that gets
its turn goes on from its cursor or from what is acknowledged, whichever is further.  So nothing is
put twice on the same carrier, all that a dead carrier may have lost goes on the next one, and a
move to a better carrier does not wait for the queue of the old one; if the old one delivers it
first, its acknowledgements let the new one skip what is left.  It follows that whatever comes on a
carrier either goes on where the carrier left off or starts at or before what the peer has already:
there are no gaps to wait for, so nothing needs to be put in order by the receiver, who takes what
is new and drops the rest.  A gap is a violation.

Signals go the same way, counted one by one.

The end.  FIN counts as one octet.  A side whose FIN is acknowledged and that has the peer's is
*complete*: it says CLOSE on all carriers, and has finished when the peer says so, too.  Finished
means on either side that all octets of both directions have been delivered, without exception.
That both sides get to know it cannot be guaranteed (no protocol can, over carriers that may die:
the two generals).  What remains: a side that is complete and hears no CLOSE ends after
:data:`LINGER`, rightly.  A side for which the very last acknowledgement was lost with all carriers,
none of which is replaced within that time, is stranded although everything has arrived; its driver
gives up.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from ice.link import frames
from ice.link.frames import Frame, Kind, Piece, State, Violation
from ice.link.happenings import (
    Aborted,
    Data,
    Datagram,
    Eof,
    Finished,
    Moved,
    Recovered,
    Send,
    SessionEvent,
    Signal,
    Stranded,
    Suspect,
    Writable,
)
from ice.link.lane import LEAST_ACK_GAP, CarrierView, Lane
from ice.link.receiving import Receiving
from ice.link.sending import FIRST_WINDOW, Sending
from stun.errors import UsageError
from stun.sansio import MILLISECOND, SECOND, Instant

__all__ = ["CarrierView", "Session"]

WINDOW = 8 * 1024 * 1024
ACK_EVERY = 512 * 1024
"""Octets after which an ACK is sent at once."""
ACK_DELAY = 5 * MILLISECOND
MOST_ACK_GAP = 200 * MILLISECOND
"""ACKs that are put behind what a carrier cannot get rid of become rarer, down to one in this."""
LINGER = 5 * SECOND
LATE = 250 * MILLISECOND
"""A deadline that is noticed so much too late says that this program did not run."""


class Session:
    """The machine; see the module's text.

    ``congested`` says whether a carrier has enough to do; the session then waits for
    :meth:`relieved`.  ``window``: octets that the peer may send ahead of what was consumed.
    ``keep``: octets that are kept for sending, :attr:`room` is what is left of it.

    The caller's mistakes raise :class:`stun.errors.UsageError`, a peer's end in
    :class:`~ice.link.happenings.Aborted`.
    """

    def __init__(
        self,
        *,
        controlling: bool,
        congested: Callable[[int], bool],
        window: int = WINDOW,
        keep: int | None = None,
    ) -> None:
        if window < FIRST_WINDOW:
            raise UsageError(f"a window of {window} octets; the least is {FIRST_WINDOW}")
        self.counters: Counter[str] = Counter()
        """What was not used, and why."""
        self._controlling = controlling
        self._congested = congested
        self._keep = window if keep is None else keep
        self._now: Instant = 0
        self._lanes: dict[int, Lane] = {}
        self._talk: dict[int, Lane] = {}
        """Carriers on which something else than the stream may be due."""
        self._sender: Lane | None = None
        """The carrier that this side sends its stream on."""
        self._data_lane: Lane | None = None
        """The carrier that the peer's stream last came on."""
        self._queue: deque[SessionEvent] = deque()
        self._out = Sending()
        self._in = Receiving(window, self.counters)
        self._full = False
        self._deaf = False
        """The application wants nothing more; what comes is consumed at once."""
        self._complete = False
        self._linger_at: Instant | None = None
        self._over = False
        self._due: Instant | None = None
        self._timed = True
        """Whether nothing is due before :attr:`_due`."""

    # The application. -----------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Octets that may be written before there is enough; more are taken all the same."""
        return max(0, self._keep - len(self._out.octets))

    @property
    def unacknowledged(self) -> int:
        """Octets that were written and are not acknowledged."""
        return len(self._out.octets)

    @property
    def ended(self) -> bool:
        """Whether this side's stream has been ended (what it holds may still be under way)."""
        return self._out.octets.ended

    def write(self, data: bytes | bytearray | memoryview, now: Instant) -> None:
        """Append octets to this side's stream.  Large :class:`bytes` are kept without a copy."""
        self._now = now
        if self._over:
            raise UsageError("write() on a session that is over")
        octets = self._out.octets
        if octets.ended:
            raise UsageError("write() after write_eof()")
        octets.write(data)
        if len(octets) >= self._keep:
            self._full = True

    def write_eof(self, now: Instant) -> None:
        """End this side's stream after what was written.  Once is enough."""
        self._now = now
        self._out.octets.ended = True

    def consumed(self, octets: int, now: Instant) -> None:
        """Octets of :class:`Data` were used, the peer may send as many more."""
        self._now = now
        if self._deaf:
            return
        if not 0 <= octets <= self._in.unconsumed:
            raise UsageError(f"consumed({octets}) of {self._in.unconsumed} octets that were given")
        self._consume(octets, now)

    def signal(self, text: bytes, now: Instant) -> bool:
        """Send a control message; false if too many wait for their acknowledgement."""
        self._now = now
        if len(text) > frames.MOST_SIGNAL:
            raise UsageError(f"a signal of {len(text)} octets; the most is {frames.MOST_SIGNAL}")
        return not self._over and self._out.add_signal(text)

    def send_datagram(self, data: bytes, now: Instant) -> bool:
        """Send a datagram on the carrier of the moment; false if it cannot go now."""
        self._now = now
        lane = self._sender
        if self._over or lane is None or not (lane.greeted and lane.said_hello):
            return False
        if len(data) > frames.MOST_DATAGRAM:
            return False
        if lane.outstanding >= lane.limit or self._congested(lane.id):
            return False
        frame = frames.datagram(data)
        self._timed = False
        lane.launched(len(frame), now)
        self._send(lane, frame)
        return True

    def close(self, now: Instant) -> None:
        """End this side's stream; what the peer still sends is taken and thrown away."""
        self.write_eof(now)
        self._deaf = True
        self._consume(self._in.unconsumed, now)

    def abort(self, code: int, reason: str, now: Instant) -> None:
        """Break off at once.  The peer is told on every carrier."""
        self._now = now
        self._break(code, reason)

    # The carriers. --------------------------------------------------------------------------------

    def attach(self, carrier_id: int, rank: int, now: Instant) -> None:
        """Use a carrier whose handshake is done.  The higher the rank the better."""
        self._now = now
        if carrier_id in self._lanes:
            raise UsageError(f"carrier {carrier_id} is attached already")
        if self._over:
            return
        self._timed = False
        lane = self._lanes[carrier_id] = Lane(carrier_id, rank, self._keep, now)
        self._talk[carrier_id] = lane
        self._choose("it is the first" if self._sender is None else "it is better")

    def detach(self, carrier_id: int, why: str, now: Instant) -> None:
        """Take notice that a carrier has ended; nothing may be sent on it any more."""
        self._now = now
        lane = self._lanes.pop(carrier_id, None)
        if lane is None or self._over:
            return
        self._timed = False
        self._talk.pop(carrier_id, None)
        if self._data_lane is lane:
            self._data_lane = None
        if self._sender is lane:
            self._choose(why)

    def relieved(self, carrier_id: int, now: Instant) -> None:
        """Take notice that a carrier is not congested any more."""
        del carrier_id  # nothing is kept of it: poll() asks again
        self._now = now

    def received(self, carrier_id: int, data: bytes | bytearray | memoryview, now: Instant) -> None:
        """Octets came on a carrier, cut anywhere.  Never raises on what they are."""
        self._now = now
        lane = self._lanes.get(carrier_id)
        if lane is None or self._over:
            self.counters["octets on a carrier that is not attached"] += len(data)
            return
        lane.heard = now
        lane.early = False
        lane.received += len(data)
        try:
            for item in lane.reader.feed(data):
                if self.over:  # by one of the frames before
                    self.counters["frames after the end"] += 1
                elif isinstance(item, Piece):
                    self._take_piece(lane, item, now)
                else:
                    self._take(lane, item, now)
        except Violation as wrong:
            self._break(wrong.code, f"the other side broke the protocol: {wrong}")

    # What a driver asks. --------------------------------------------------------------------------

    def poll(self) -> SessionEvent | None:
        """Give the next thing to do or to tell, or ``None`` when there is none."""
        while True:
            if self._queue:
                return self._queue.popleft()
            if self._over:
                return None
            if self._talk:
                self._speak(self._talk.popitem()[1])
                continue
            return self._stream()

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called, or ``None``.

        May be earlier than anything happens: what comes puts most deadlines off, and to find out by
        how much is left until then.
        """
        if self._over:
            return None
        if not self._timed:
            self._timed = True
            self._due = self._earliest()
        return self._due

    def _earliest(self) -> Instant | None:
        times = [] if self._linger_at is None else [self._linger_at]
        for lane in self._lanes.values():
            times += [
                at
                for at in (
                    lane.ack_at,
                    lane.suspicion_at(),
                    lane.early_at() if lane is self._sender else None,
                    lane.ping_at(self._pressing(lane)),
                    lane.probation_until,
                )
                if at is not None
            ]
        return min(times, default=None)

    def on_deadline(self, now: Instant) -> None:
        """Take notice that time has passed.  Does nothing when called early."""
        due = self.deadline()
        self._now = now
        if due is None or now < due:
            return
        self._timed = False
        if now - due > LATE:
            # The process was stopped, or the host asleep: what the carriers brought meanwhile is
            # still to be read, so their silence says nothing yet.
            for lane in self._lanes.values():
                lane.excuse(now)
        why = ""
        for lane in self._lanes.values():
            why = self._check(lane, now) or why
        if why:
            self._choose(why)
        if self._linger_at is not None and now >= self._linger_at:
            self._finish()

    @property
    def current(self) -> int | None:
        """The carrier on which this side sends."""
        return None if self._sender is None else self._sender.id

    @property
    def over(self) -> bool:
        """Whether it has finished or was broken off."""
        return self._over

    def rtt(self, carrier_id: int) -> float | None:
        """Return the round trip of a carrier in seconds, smoothed, where it is known."""
        lane = self._lanes.get(carrier_id)
        return None if lane is None or lane.rtt is None else lane.rtt / SECOND

    def carriers(self) -> list[CarrierView]:
        """Return all attached carriers as they stand."""
        return [lane.view() for lane in self._lanes.values()]

    # Sending. -------------------------------------------------------------------------------------

    def _send(self, lane: Lane, data: bytes) -> None:
        self._queue.append(Send(lane.id, data))

    def _speak(self, lane: Lane) -> None:
        """Send what is due on a carrier beside the stream."""
        now = self._now
        self._timed = self._timed and not lane.wants_ping
        parts = []
        if not lane.said_hello:
            lane.said_hello = True
            parts.append(frames.hello(self._controlling, self._in.state()))
        if lane.owed >= ACK_EVERY or (lane.ack_at is not None and lane.ack_at <= now):
            again = lane.acked_at + lane.ack_gap
            congested = self._congested(lane.id)
            if congested and now < again:
                lane.ack_at = again
                self._timed = False
            else:
                gap = min(lane.ack_gap * 2, MOST_ACK_GAP) if congested else LEAST_ACK_GAP
                lane.ack_gap = gap
                lane.owed, lane.ack_at, lane.acked_at = 0, None, now
                parts.append(frames.ack(self._in.state(), lane.counted))
        if lane.wants_ping:
            ping = frames.ping()
            lane.ask(len(ping), now)
            parts.append(ping)
        if self._complete and not lane.said_close:
            lane.said_close = True
            parts.append(frames.close())
        if parts:
            self._send(lane, b"".join(parts))

    def _stream(self) -> SessionEvent | None:
        """Return the next signal or the next octets of the stream, if they may go."""
        lane = self._sender
        if lane is None:
            return None
        if lane.sent - lane.acked >= lane.limit:
            lane.bounded = True
            return None
        if not lane.flights:
            self._timed = False
        if not self._out.has_next(lane):
            lane.bounded = lane.bounded or self._out.waits_for_window
            return None
        if self._congested(lane.id):
            lane.bounded = True
            return None
        return Send(lane.id, self._out.next(lane, self._now))

    # Receiving. -----------------------------------------------------------------------------------

    def _take_piece(self, lane: Lane, piece: Piece, now: Instant) -> None:
        if not lane.greeted:
            raise Violation("DATA before HELLO")
        size = len(piece.data)
        self._count(lane, size + frames.DATA_OVERHEAD if piece.first else size, now)
        self._data_lane = lane
        data = self._in.take(piece)
        if data is None:
            return
        if self._deaf:
            self._consume(len(data), now)
        else:
            self._queue.append(Data(data))

    def _count(self, lane: Lane, octets: int, now: Instant) -> None:
        """Count what wants an answer."""
        lane.counted += octets
        lane.owed += octets
        if lane.owed >= ACK_EVERY:
            self._talk[lane.id] = lane
        elif lane.ack_at is None:
            lane.ack_at = now + ACK_DELAY
            if self._due is None or lane.ack_at < self._due:
                self._timed = False

    def _answer(self, lane: Lane, now: Instant) -> None:
        """Send an ACK at once."""
        lane.ack_at = now
        self._timed = False
        self._talk[lane.id] = lane

    def _consume(self, octets: int, now: Instant) -> None:
        if not self._in.consume(octets) or self._over:
            return
        lane = self._data_lane or self._sender
        if lane is not None:
            self._answer(lane, now)

    def _take(self, lane: Lane, frame: Frame, now: Instant) -> None:
        kind, body = frame
        if lane.greeted is (kind is Kind.HELLO):
            raise Violation(f"{kind.name} {'again' if lane.greeted else 'before HELLO'}")
        if kind is Kind.HELLO:
            controlling, state = frames.read_hello(body)
            if controlling is self._controlling:
                raise Violation("both sides say that they are the controlling one, or neither")
            lane.greeted = True
            self._take_state(state, now)
        elif kind is Kind.ACK:
            state, counted = frames.read_ack(body)
            if counted > lane.sent:
                raise Violation(f"ACK of {counted} octets on a carrier; {lane.sent} were sent")
            self._take_state(state, now)
            least = lane.least_rtt
            if lane.landed(counted, now):
                if lane.suspect or not lane.proved:
                    self._vouch(lane, now)
                if not lane.flights or lane.least_rtt != least:
                    self._timed = False
        elif kind is Kind.ABORT:
            code, reason = frames.read_abort(body)
            self._over = True
            self._queue.append(Aborted(code, reason, by_peer=True))
        elif kind is Kind.CLOSE:
            self._take_close()
        else:
            self._count(lane, 4 + len(body), now)
            if kind is Kind.PING:
                self._answer(lane, now)
            elif kind is Kind.DATAGRAM:
                self._queue.append(Datagram(body))
            elif kind is Kind.SIGNAL:
                self._take_signal(body)
            else:
                assert kind is Kind.FIN, kind
                self._answer(lane, now)
                self._take_fin(body, now)

    def _take_state(self, state: State, now: Instant) -> None:
        if not self._out.take(state):
            return
        if self._full and len(self._out.octets) * 2 <= self._keep:
            self._full = False
            self._queue.append(Writable())
        self._settle(now)

    def _take_signal(self, body: bytes) -> None:
        serial, text = frames.read_signal(body)
        if self._in.take_signal(serial):
            self._queue.append(Signal(text))

    def _take_fin(self, body: bytes, now: Instant) -> None:
        if not self._in.take_fin(frames.read_fin(body)):
            return
        if not self._deaf:
            self._queue.append(Eof())
        self._settle(now)

    # Which carrier. -------------------------------------------------------------------------------

    def _pressing(self, lane: Lane) -> bool:
        """Whether an answer is waited for although nothing is outstanding: a closed window.

        What opens it may have been sent on a carrier that died, so it is asked for.
        """
        return lane is self._sender and self._out.waits_for_window and not self._out.has_next(lane)

    def _check(self, lane: Lane, now: Instant) -> str:
        """See what time has done to a carrier; return why the choice may be another, if so."""
        why = ""
        if lane.ack_at is not None and lane.ack_at <= now:
            self._talk[lane.id] = lane
        suspicion = lane.suspicion_at()
        early = lane.early_at()
        if suspicion is not None and suspicion <= now:
            since = lane.silent_since
            silent = 0.0 if since is None else (now - since) / SECOND
            lane.doubt(now)
            self._queue.append(Suspect(lane.id, silent))
            why = f"no answer for {silent:.1f} s"
        elif early is not None and early <= now and lane is self._sender:
            lane.early = True
            for other in self._lanes.values():
                if other is not lane and not other.flights:
                    self._ask(other)
        if lane.probation_until is not None and lane.probation_until <= now and lane.acquit(now):
            why = why or "it is better, and has proved itself"
        ping = lane.ping_at(self._pressing(lane))
        if ping is not None and ping <= now:
            self._ask(lane)
        return why

    def _ask(self, lane: Lane) -> None:
        self._timed = False
        lane.wants_ping = True
        self._talk[lane.id] = lane

    def _vouch(self, lane: Lane, now: Instant) -> None:
        """Take notice that a carrier has answered: the first time, or after it was suspect."""
        why = "it is better"
        if lane.suspect:
            why = "it answers"
            self._queue.append(Recovered(lane.id))
        lane.vouch(now)
        self._timed = False
        self._choose(why)

    def _choose(self, why: str) -> None:
        """Send on the best carrier; ``why``: what has changed."""
        current = self._sender
        if not self._lanes:
            if current is not None:
                self._sender = None
                self._queue.append(Stranded())
            return
        # One that has not answered yet is no better than the one in use, whatever its rank.
        best = max(
            self._lanes.values(),
            key=lambda lane: (lane.standing, lane.rank if lane.proved else 0, lane is current),
        )
        if best is current:
            return
        if current is not None and current.id in self._lanes and best.suspect:
            return  # none of them answers, and one is as good as another
        self._sender = best
        self._timed = False
        self._queue.append(Moved(best.id, None if current is None else current.id, why))

    # The end. -------------------------------------------------------------------------------------

    def _settle(self, now: Instant) -> None:
        """See whether both directions have ended."""
        if self._complete or self._in.final is None or not self._out.done:
            return
        self._complete = True
        self._linger_at = now + LINGER
        self._timed = False
        self._talk.update(self._lanes)

    def _take_close(self) -> None:
        # The peer is complete, so it has this side's FIN, and knows that this side has its own.
        if self._in.final is None or not self._out.all_sent:
            raise Violation("CLOSE before both directions have ended")
        self._finish()

    def _finish(self) -> None:
        self._complete = True
        for lane in self._lanes.values():
            self._speak(lane)
        self._over = True
        self._queue.append(Finished())

    def _break(self, code: int, reason: str) -> None:
        if self._over:
            return
        for lane in self._lanes.values():
            greeting = b"" if lane.said_hello else frames.hello(self._controlling, self._in.state())
            self._send(lane, greeting + frames.abort(code, reason))
        self._over = True
        self._queue.append(Aborted(code, reason, by_peer=False))
