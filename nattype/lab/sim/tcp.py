"""One end of a TCP connection (RFC 9293), as far as NAT traversal can tell it from the real thing.

Theory of operation.  A :class:`Connection` has the states of RFC 9293 and exchanges segments with
flags and sequence numbers; bytes arrive in order and exactly once whatever the links do.
Connections do not know machines: what is to be told goes to the :class:`Owner`'s queue, which the
host hands over once the segment is dealt with, so that a machine never acts in the middle of a
state change.

Timers are those of RFC 6298 with Linux's limits: a SYN goes out again after 1, 3, 7, 15, 31 and 63
s and gives up after 127 s; data after at least 200 ms, doubling, 15 times.  There is no congestion
control (fixed buffers, fast retransmission after three duplicates), no delayed ACK and no Nagle.

A machine that reads nothing for a while (:class:`~stun.sansio.Hold`) fills that buffer, and the
peer's window closes; what the peer's machine then writes fills its send buffer, then waits in the
driver, which says :class:`~stun.sansio.Congested`.  After a machine's Shut the driver reads on for
a while and throws away what comes (:mod:`stun.tcp`); what comes later is answered with RST.

What is told apart with care, because hole punching lives on it: simultaneous open (a SYN that meets
SYN_SENT is answered with SYN-ACK from the same endpoints), RST and ICMP errors in SYN_SENT, a SYN
that meets TIME_WAIT, and whom an RST may kill.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final, Protocol

from nattype.lab.sim.wire import ACK, DEFAULT_TTL, FIN, PSH, RST, SYN, Segment
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Connected,
    Handle,
    Instant,
    Relieved,
    SocketEvent,
)

SYN_RTO: Final = SECOND
SYN_RETRIES: Final = 6
SYN_ACK_RETRIES: Final = 5
MIN_RTO: Final = 200 * MILLISECOND
MAX_RTO: Final = 120 * SECOND
DATA_RETRIES: Final = 15
WINDOW: Final = 65_536
"""Octets of a receive buffer, and of a send buffer."""
PENDING_MARK: Final = 65_536
PENDING_LIMIT: Final = 1 << 20
"""What waits beyond the send buffer: when a stream is congested, when it ends (:mod:`stun.tcp`)."""
LINGER: Final = 5 * SECOND
TIME_WAIT: Final = 60 * SECOND
FIN_TIMEOUT: Final = 60 * SECOND
DUPLICATES: Final = 3


class State(StrEnum):
    """The states of RFC 9293 section 3.3.2 that a connection object can be in.

    LISTEN belongs to the host; TIME_WAIT is a line in the host's table, not an object.
    """

    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    CLOSED = "CLOSED"


_OPENING = {State.SYN_SENT: (SYN, "SYN"), State.SYN_RECEIVED: (SYN | ACK, "SYN-ACK")}
_FIN_SENT = frozenset({State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSING, State.LAST_ACK})


class Owner(Protocol):
    """Who a connection's events are for."""

    pending: deque[SocketEvent]

    def adopt(self, connection: Connection) -> Handle:
        """Give an accepted connection its handle."""
        ...

    def release(self, handle: Handle) -> None:
        """Forget a handle: its connection is over for the machine."""
        ...

    def pump(self) -> None:
        """Hand over what is pending."""
        ...


class Stack(Protocol):
    """What a connection needs of its host."""

    def emit(self, segment: Segment) -> None:
        """Send a segment."""
        ...

    def arm(self, connection: Connection, delay: int) -> int:
        """Call :meth:`Connection.on_timer` after ``delay``; return what :meth:`disarm` takes."""
        ...

    def disarm(self, timer: int) -> None:
        """Stop a timer that has not gone off."""
        ...

    def gone(self, connection: Connection, *, time_wait: bool) -> None:
        """Take the connection out of the table."""
        ...

    def time(self) -> Instant:
        """Return the instant."""
        ...


class Connection:
    """One end of a connection."""

    __slots__ = (
        "_buffer", "_congested", "_duplicates", "_fin_at", "_fin_queued", "_first_ttl", "_gaps",
        "_held", "_lingers_until", "_mss", "_peer_closed", "_peer_window", "_retries", "_rto",
        "_rtt", "_rtt_at", "_rtt_for", "_stack", "_timer", "_una", "_unread", "_unread_end",
        "acknowledged", "handle", "listener", "local", "next", "owner", "remote", "state",
    )  # fmt: skip

    def __init__(
        self,
        stack: Stack,
        owner: Owner,
        local: Address,
        remote: Address,
        *,
        initial: int,
        mss: int,
        handle: Handle = 0,
        listener: Handle | None = None,
        first_ttl: int = DEFAULT_TTL,
    ) -> None:
        self._stack = stack
        self.owner: Owner | None = owner
        self.local, self.remote = local, remote
        self.handle = handle
        self.listener = listener
        """The listener's handle for a connection that came in, else ``None``."""
        self.state = State.CLOSED
        self._una = initial
        """The first sequence number that is not acknowledged."""
        self.next = initial
        """The next sequence number to send."""
        self.acknowledged = 0
        """The next sequence number expected from the peer."""
        self._buffer = bytearray()
        """What was written and is not acknowledged; it starts at ``_una`` once established."""
        self._fin_queued = False
        self._fin_at: int | None = None
        """The sequence number that our FIN takes, once sent."""
        self._peer_closed = False
        self._gaps: dict[int, Segment] = {}
        self._mss = mss
        self._peer_window = WINDOW
        """How much the peer takes beyond ``_una``."""
        self._held: bool | None = None
        """What the machine said; ``None`` if it has left it to the driver."""
        self._unread = bytearray()
        """What came while nothing was read, and whether the end came after it."""
        self._unread_end = False
        self._congested = False
        self._lingers_until: Instant = 0
        self._first_ttl = first_ttl
        self._retries = 0
        self._rto = SYN_RTO
        self._rtt: int | None = None
        self._rtt_for: int | None = None
        """The acknowledgment that ends the round trip being timed (RFC 6298: one at a time, and
        never for a retransmission)."""
        self._rtt_at: Instant = 0
        self._duplicates = 0
        self._timer: int | None = None

    # Commands. -----------------------------------------------------------------------------------

    def dial(self) -> None:
        """Send the first SYN."""
        self._open(State.SYN_SENT, ttl=self._first_ttl)

    def accept(self, syn: Segment) -> None:
        """Answer a SYN that came to a listener."""
        self._take_syn(syn)
        self._open(State.SYN_RECEIVED)

    def _open(self, state: State, ttl: int = DEFAULT_TTL) -> None:
        self.state = state
        self.next = self._una + 1
        self._rtt_for, self._rtt_at = self.next, self._stack.time()
        self._send(_OPENING[state][0], self._una, ttl=ttl)
        self._arm(SYN_RTO)

    def write(self, data: bytes) -> None:
        """Queue bytes and send what the window takes."""
        self._buffer += data
        if self.state is State.ESTABLISHED:
            self._push()
        if self._waiting > PENDING_LIMIT:
            self._send(RST | ACK, self._una)  # what a peer with a closed window expects
            self._fail(Cause.OTHER, "peer does not read")
        elif self._waiting > PENDING_MARK and not self._congested and self.owner is not None:
            self._congested = True
            self.owner.pending.append(Congested(self.handle))

    @property
    def _waiting(self) -> int:
        """Octets that the send buffer has no room for, which a driver keeps."""
        return max(0, len(self._buffer) - WINDOW)

    def hold(self, *, held: bool) -> None:
        """Read nothing, or go on."""
        self._held = held
        self._read()

    def _is_reading(self) -> bool:
        # The drivers do not read a client that does not take its answers either.
        if self._held is None:
            return self.listener is None or not self._congested
        return not self._held

    def _read(self) -> None:
        """Hand over what came while nothing was read."""
        if self.owner is None or not self._is_reading():
            return
        full = self._room <= self._mss
        if self._unread:
            self.owner.pending.append(Arrived(self.handle, bytes(self._unread)))
            self._unread.clear()
        if self._unread_end:
            self._unread_end = False
            self._tell_end()
        elif full:
            self._send(ACK, self.next)  # the window has opened

    def shut(self, *, reset: bool) -> None:
        """Close on the machine's order: nothing is told any more."""
        self._disown()
        if self.state is State.SYN_SENT:
            self._end()
        elif reset or self.state is State.SYN_RECEIVED:
            self._send(RST | ACK, self.next)
            self._end()
        elif not self._fin_queued:
            self._fin_queued = True
            self._lingers_until = self._stack.time() + LINGER
            self._held = False
            if self._unread:
                self._unread.clear()
                self._send(ACK, self.next)  # the window has opened
            self._push()

    # What happens. -------------------------------------------------------------------------------

    def on_icmp(self, detail: str) -> None:
        """Take an ICMP error: it ends an attempt, and leaves an established connection alone.

        Linux tells a program that connects of every error, "time exceeded" included, whatever RFC
        1122 section 4.2.3.9 calls soft; the drivers then close the socket, and so this ends here.
        """
        if self.listener is None and self.state in _OPENING:
            self._fail(Cause.UNREACHABLE, detail)

    def on_timer(self) -> None:
        """Retransmit, or give up."""
        self._timer = None
        self._retries += 1
        self._rtt_for = None
        if self.state in _OPENING:
            flags, name = _OPENING[self.state]
            if self._retries > (SYN_RETRIES if self.listener is None else SYN_ACK_RETRIES):
                self._fail(Cause.TIMED_OUT, f"no answer to {name}")
                return
            self._send(flags, self._una)
        elif self.state is State.FIN_WAIT_2:
            self._end()
            return
        else:
            if self._retries > DATA_RETRIES:
                self._fail(Cause.TIMED_OUT, "no acknowledgment")
                return
            if self._una == self.next and self.state is State.ESTABLISHED and self._buffer:
                # RFC 9293 section 3.8.6.1: zero-window probing, with "one octet of new data".
                self._send(ACK | PSH, self.next, bytes(self._buffer[:1]))
                self.next += 1
            else:
                self._resend()
        self._rto = min(2 * self._rto, MAX_RTO)
        self._arm(self._rto)

    def on_segment(self, segment: Segment) -> None:
        """Take a segment for these endpoints (RFC 9293 section 3.10.7)."""
        if self.state is State.SYN_SENT:
            self._in_syn_sent(segment)
            return
        flags = segment.flags
        if flags & RST:
            # RFC 5961 section 3.2: only the exact sequence number is believed.
            if segment.sequence == self.acknowledged:
                self._fail(Cause.RESET, "")
            return
        if flags & SYN:
            self._in_again(segment)
            return
        if not flags & ACK:
            return
        if self.state is State.SYN_RECEIVED:
            if segment.acknowledgment < self._una + 1 or segment.acknowledgment > self.next:
                self._send(RST, segment.acknowledgment)
                return
            self._establish()
        self._take_acknowledgment(segment)
        if self._closed() or not (segment.data or flags & FIN):
            return
        end = segment.sequence + len(segment.data)
        unread = bool(segment.data) and end > self.acknowledged and self.owner is None
        if unread and self.state in _FIN_SENT and self._stack.time() >= self._lingers_until:
            # RFC 9293 section 3.6.1 with RFC 1122 4.2.2.13: data for a socket that was closed
            # cannot be read by anybody, which the peer learns by an RST.
            self._send(RST | ACK, self.next)
            self._end()
            return
        self._take_data(segment)

    def _closed(self) -> bool:
        return self.state is State.CLOSED

    def _in_syn_sent(self, segment: Segment) -> None:
        flags = segment.flags
        if flags & ACK and segment.acknowledgment != self.next:
            if not flags & RST:
                self._send(RST, segment.acknowledgment)
            return
        if flags & RST:
            if flags & ACK:
                self._fail(Cause.REFUSED, "")
            return
        if not flags & SYN:
            return
        self._take_syn(segment)
        self._retries = 0
        if flags & ACK:
            self._establish()
            self._send(ACK, self.next)
        else:
            # RFC 9293 section 3.5, figure 7: simultaneous connection synchronization.
            self.state = State.SYN_RECEIVED
            self._send(SYN | ACK, self._una)
            self._rto = SYN_RTO
            self._arm(self._rto)

    def _in_again(self, segment: Segment) -> None:
        """Take a SYN in a state that has had one: our answer was missed, or two SYNs crossed."""
        if self.state is State.SYN_RECEIVED:
            if segment.sequence != self.acknowledged - 1:
                self._send(RST | ACK, self.next)
                return
            if segment.flags & ACK and segment.acknowledgment == self.next:
                self._establish()
                self._send(ACK, self.next)
            elif not segment.flags & ACK:
                self._send(SYN | ACK, self._una)
        else:
            # RFC 5961 section 4.2: challenge ACK.
            self._send(ACK, self.next)

    def _take_syn(self, segment: Segment) -> None:
        self.acknowledged = segment.sequence + 1
        self._mss = min(self._mss, segment.mss)

    def _establish(self) -> None:
        self.state = State.ESTABLISHED
        self._una = self.next
        self._retries = 0
        self._time_round_trip(self.next)
        self.disarm()
        if self.owner is not None:
            event: SocketEvent
            if self.listener is None:
                event = Connected(self.handle, self.local, self.remote)
            else:
                self.handle = self.owner.adopt(self)
                event = Accepted(self.listener, self.handle, self.local, self.remote)
            self.owner.pending.append(event)
        self._push()

    def _take_acknowledgment(self, segment: Segment) -> None:
        number = segment.acknowledgment
        if number >= self._una:
            opened = self._peer_window == 0 < segment.window
            self._peer_window = segment.window
            if self._peer_window == 0:
                self._retries = 0  # "the sending TCP peer MUST allow the connection to stay open"
            elif opened and number == self._una < self.next:
                self._resend()  # the probe
        if self._una < number <= self.next:
            self._time_round_trip(number)
            del self._buffer[: number - self._una]
            self._una = number
            self._retries = 0
            self._duplicates = 0
            if self._congested and not self._waiting and self.owner is not None:
                self._congested = False
                self.owner.pending.append(Relieved(self.handle))
                self._read()
            if self._una < self.next:
                self._arm(self._rto)
            else:
                self.disarm()
            if self._fin_at is not None and number > self._fin_at:
                self._fin_acknowledged()
                return
            self._push()
        elif number == self._una == self.next:
            self._push()
        elif number == self._una < self.next and not segment.data and not segment.flags & FIN:
            self._duplicates += 1
            if self._duplicates == DUPLICATES:
                self._rtt_for = None
                self._resend()

    def _fin_acknowledged(self) -> None:
        match self.state:
            case State.FIN_WAIT_1:
                self.state = State.FIN_WAIT_2
                self._arm(FIN_TIMEOUT)
            case State.CLOSING:
                self._end(time_wait=True)
            case State.LAST_ACK:
                self._end()
            case _:
                pass

    def _take_data(self, segment: Segment) -> None:
        if segment.sequence > self.acknowledged:
            self._gaps[segment.sequence] = segment
            self._send(ACK, self.next)
            return
        arrived = bytearray()
        finished = False
        following: Segment | None = segment
        while following is not None:
            new = following.data[max(0, self.acknowledged - following.sequence) :]
            new = new[: self._room - len(arrived)]
            arrived += new
            self.acknowledged += len(new)
            if following.flags & FIN and (
                following.sequence + len(following.data) == self.acknowledged
            ):
                finished = True
            following = self._following()
        if arrived and self.owner is not None:
            if self._is_reading():
                self.owner.pending.append(Arrived(self.handle, bytes(arrived)))
            else:
                self._unread += arrived
        if finished:
            self.acknowledged += 1
            self._send(ACK, self.next)
            self._peer_finished()
        else:
            self._send(ACK, self.next)

    @property
    def _room(self) -> int:
        """What the receive buffer takes."""
        return WINDOW - len(self._unread)

    def _following(self) -> Segment | None:
        """Return a segment that came early and now has something to add."""
        for sequence in sorted(self._gaps):
            if sequence > self.acknowledged:
                return None
            segment = self._gaps.pop(sequence)
            end = sequence + len(segment.data)
            if end > self.acknowledged or (segment.flags & FIN and end == self.acknowledged):
                return segment
        return None

    def _peer_finished(self) -> None:
        self._peer_closed = True
        if self._unread or not self._is_reading():
            self._unread_end = True  # a machine that does not read does not learn of it either
        else:
            self._tell_end()

    def _tell_end(self) -> None:
        owner = self._disown()
        if owner is not None:
            owner.pending.append(Closed(self.handle, Cause.END_OF_STREAM))
        match self.state:
            case State.ESTABLISHED:
                self._fin_queued = True
                self._push()
            case State.FIN_WAIT_1:
                self.state = State.CLOSING
            case State.FIN_WAIT_2:
                self._end(time_wait=True)
            case _:
                pass

    # Sending. ------------------------------------------------------------------------------------

    def _push(self) -> None:
        """Send what is written and fits the window, then our FIN if it is due."""
        if self.state is not State.ESTABLISHED:
            return
        idle = self._una == self.next
        while True:
            start = self.next - self._una
            size = min(len(self._buffer) - start, self._mss, min(WINDOW, self._peer_window) - start)
            if size <= 0:
                break
            data = bytes(self._buffer[start : start + size])
            if self._rtt_for is None:
                self._rtt_for, self._rtt_at = self.next + size, self._stack.time()
            self._send(ACK | PSH, self.next, data)
            self.next += size
        if self._fin_queued and self.next - self._una == len(self._buffer):
            self._fin_at = self.next
            self._send(FIN | ACK, self.next)
            self.next += 1
            self.state = State.LAST_ACK if self._peer_closed else State.FIN_WAIT_1
        if idle and (self._una < self.next or self._buffer):
            self._arm(self._rto)

    def _resend(self) -> None:
        """Send the first thing again that is not acknowledged."""
        size = min(len(self._buffer), self._mss, self.next - self._una)
        if size > 0:
            self._send(ACK | PSH, self._una, bytes(self._buffer[:size]))
        elif self._fin_at is not None:
            self._send(FIN | ACK, self._fin_at)

    def _send(self, flags: int, sequence: int, data: bytes = b"", ttl: int = DEFAULT_TTL) -> None:
        self._stack.emit(
            Segment(
                self.local,
                self.remote,
                flags,
                sequence,
                acknowledgment=self.acknowledged if flags & ACK else 0,
                data=data,
                mss=self._mss,
                window=self._room,
                ttl=ttl,
            )
        )

    def _time_round_trip(self, number: int) -> None:
        """Take note that ``number`` is acknowledged; a back-off that was under way ends with it."""
        if self._rtt_for is not None and number >= self._rtt_for:
            sample = self._stack.time() - self._rtt_at
            self._rtt_for = None
            self._rtt = sample if self._rtt is None else (7 * self._rtt + sample) // 8
        self._rto = SYN_RTO if self._rtt is None else max(MIN_RTO, 2 * self._rtt)

    def _arm(self, delay: int) -> None:
        self.disarm()
        self._timer = self._stack.arm(self, delay)

    def disarm(self) -> None:
        """Stop the timer, if it runs."""
        if self._timer is not None:
            self._stack.disarm(self._timer)
            self._timer = None

    # Endings. ------------------------------------------------------------------------------------

    def _fail(self, cause: Cause, detail: str) -> None:
        owner = self._disown()
        # A connection that came in and was never accepted is unknown to the machine.
        if owner is not None and not (self.listener is not None and self.handle == 0):
            owner.pending.append(Closed(self.handle, cause, detail))
        self._end()

    def _disown(self) -> Owner | None:
        owner, self.owner = self.owner, None
        if owner is not None and self.handle:
            owner.release(self.handle)
        return owner

    def _end(self, *, time_wait: bool = False) -> None:
        self.state = State.CLOSED
        self.disarm()
        self._stack.gone(self, time_wait=time_wait)
