"""What one side sends: its stream, the end of it, and its signals, until they are acknowledged."""

from __future__ import annotations

from collections import deque

from ice.link import frames
from ice.link.frames import State, Violation
from ice.link.lane import Lane
from ice.link.outbound import Outbound
from stun.sansio import Instant

FIRST_WINDOW = 64 * 1024
"""What may be sent before a window was told: every window is at least as large."""
MOST_SIGNALS = 64 * 1024
"""Octets of signals that may wait for their acknowledgement."""
FAST = 16 * frames.MOST_FRAME
"""A carrier on which so much may be outstanding gets long frames, which cost less."""
SIGNAL_COST = 64
"""What a signal counts for beside its text."""


class Sending:
    """The stream by offsets, the signals by numbers; each carrier has a cursor of its own."""

    __slots__ = ("_high", "_signals", "_signals_high", "_weight", "acked", "end", "octets", "taken")

    def __init__(self) -> None:
        self.octets = Outbound()
        self.acked = 0
        """What the peer expects next; FIN counts as one."""
        self.end = FIRST_WINDOW
        """Where the peer's window ends."""
        self.taken = 0
        """Signals that the peer has."""
        self._high = 0
        self._signals: deque[bytes] = deque()
        self._signals_high = 0
        self._weight = 0

    def add_signal(self, text: bytes) -> bool:
        """Keep a signal; false if too many wait."""
        weight = len(text) + SIGNAL_COST
        if self._weight + weight > MOST_SIGNALS:
            return False
        self._signals.append(bytes(text))
        self._weight += weight
        return True

    @property
    def waits_for_window(self) -> bool:
        """Whether the peer's window is closed to octets that wait."""
        return self.acked <= self.end < self.octets.end

    @property
    def all_sent(self) -> bool:
        """Whether everything up to FIN was put on some carrier."""
        return self._high == self.octets.final

    @property
    def done(self) -> bool:
        """Whether the peer has everything up to FIN."""
        return self.acked == self.octets.final

    def has_next(self, lane: Lane) -> bool:
        """Whether there is something that may go on a carrier, as far as the peer goes."""
        if lane.next_signal < self._signals_end and self._signals:
            return True
        octets = self.octets
        offset = max(lane.next, self.acked)
        return offset < min(self.end, octets.end) or (octets.ended and offset == octets.end)

    def next(self, lane: Lane, now: Instant) -> bytes:
        """Return the next frame for a carrier, of which :meth:`has_next` holds."""
        if lane.next_signal < self._signals_end and self._signals:
            serial = max(lane.next_signal, self.taken)
            frame = frames.signal(serial, self._signals[serial - self.taken])
            lane.next_signal = serial + 1
            if serial >= self._signals_high:
                self._signals_high = serial + 1
            else:
                lane.resent += len(frame)
            lane.launched(len(frame), now)
            return frame
        octets = self.octets
        offset = max(lane.next, self.acked)
        size = min(self.end, octets.end) - offset
        if size > 0:
            size = min(size, frames.MOST_DATA if lane.limit >= FAST else frames.LESS_DATA)
            frame = octets.frame(offset, size)
        else:
            size = 1
            frame = frames.fin(offset)
        lane.next = offset + size
        if lane.next > self._high:
            self._high = lane.next
        else:
            lane.resent += len(frame)
        lane.launched(len(frame), now)
        return frame

    def take(self, state: State) -> bool:
        """Take what the peer says to have; whether it has more of the stream than before."""
        offset, window_end, signals = state
        if offset > self._high:
            raise Violation(f"offset {offset} is acknowledged; {self._high} were sent")
        if signals > self._signals_high:
            raise Violation(f"{signals} signals are acknowledged; {self._signals_high} were sent")
        while self.taken < signals:
            self.taken += 1
            self._weight -= len(self._signals.popleft()) + SIGNAL_COST
        self.end = max(self.end, window_end)
        if offset <= self.acked:
            return False
        self.acked = offset
        self.octets.acknowledge(offset)
        return True

    @property
    def _signals_end(self) -> int:
        return self.taken + len(self._signals)
