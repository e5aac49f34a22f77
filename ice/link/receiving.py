"""What one side takes: what is new of the peer's stream and signals, and the window for it."""

from __future__ import annotations

from collections import Counter

from ice.link.frames import Piece, State, Violation
from ice.link.sending import FIRST_WINDOW


class Receiving:
    """Nothing is kept here: what is new is handed on at once, the rest is dropped and counted.

    ``window``: octets that may have been handed on and not been consumed.
    """

    __slots__ = ("_advertised", "_window", "consumed", "counters", "expected", "final", "signals")

    def __init__(self, window: int, counters: Counter[str]) -> None:
        self._window = window
        self._advertised = FIRST_WINDOW
        self.counters = counters
        self.expected = 0
        """What comes next; FIN counts as one."""
        self.consumed = 0
        self.final: int | None = None
        self.signals = 0

    @property
    def unconsumed(self) -> int:
        """Octets that were handed on and not consumed."""
        return (self.expected if self.final is None else self.final) - self.consumed

    def state(self) -> State:
        """Return what the peer is to be told.  It may then rely on the window."""
        end = self.consumed + self._window
        self._advertised = max(self._advertised, end)
        return State(self.expected, self._advertised, self.signals)

    def consume(self, octets: int) -> bool:
        """Make room; whether the peer ought to be told at once that there is."""
        self.consumed += octets
        gained = self.consumed + self._window - self._advertised
        return gained >= self._window // 4 and self.final is None

    def take(self, piece: Piece) -> bytes | memoryview | None:
        """Return what is new in a piece of the stream, if anything is."""
        offset, data, _ = piece
        expected = self.expected
        end = offset + len(data)
        if offset > expected:
            raise Violation(f"DATA at offset {offset} when {expected} was expected")
        if end > self._advertised:
            raise Violation(f"DATA up to offset {end}, the window ends at {self._advertised}")
        if self.final is not None and end > self.final:
            raise Violation(f"DATA up to offset {end}, after the end at {self.final}")
        if end <= expected:
            self.counters["octets of the stream that came again"] += len(data)
            return None
        self.expected = end
        if offset == expected:
            return data
        self.counters["octets of the stream that came again"] += expected - offset
        return memoryview(data)[expected - offset :]

    def take_fin(self, final: int) -> bool:
        """Take the end of the stream; whether it is new."""
        if self.final is not None:
            if final != self.final:
                raise Violation(f"FIN at offset {final}, and before at {self.final}")
            return False
        if final != self.expected:
            raise Violation(f"FIN at offset {final} when {self.expected} was expected")
        self.final = final
        self.expected = final + 1
        return True

    def take_signal(self, serial: int) -> bool:
        """Take a signal; whether it is new."""
        if serial > self.signals:
            raise Violation(f"signal {serial} when {self.signals} was expected")
        if serial < self.signals:
            self.counters["signals that came again"] += 1
            return False
        self.signals += 1
        return True
