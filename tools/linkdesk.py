"""Two sessions over simulated carriers, in virtual time.

A :class:`Wire` is one carrier: in each direction a rate, a delay and a buffer that becomes
congested, in order and reliable, and mortal in the ways real ones are: it falls silent (nobody is
told), pauses and goes on, or ends with a notice to each side at a time of its own.

A :class:`Person` is what uses a session: writes random octets in random portions, reads in random
portions, and checks that what is read is a prefix of what was written.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from ice.link.happenings import (
    Aborted,
    Data,
    Datagram,
    Eof,
    Finished,
    Moved,
    Send,
    SessionEvent,
    Signal,
    Writable,
)
from ice.link.session import Session
from stun.sansio import SECOND, Instant

BUFFER = 256 * 1024


class Clock:
    """Virtual time, and what is to happen when."""

    def __init__(self) -> None:
        self.now: Instant = 1000 * SECOND
        self._due: list[tuple[Instant, int, Callable[[], None]]] = []
        self._serial = count()

    def at(self, when: Instant, action: Callable[[], None]) -> None:
        """Do something at a time, or now if that is past."""
        heapq.heappush(self._due, (max(when, self.now), next(self._serial), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after so many seconds."""
        self.at(self.now + int(seconds * SECOND), action)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass until something holds; say whether it does."""
        end = self.now + int(seconds * SECOND)
        while not until():
            if not self._due or self._due[0][0] > end:
                self.now = end
                return until()
            self.now, _, action = heapq.heappop(self._due)
            action()
        return True


class Way:
    """One direction of a wire."""

    def __init__(self, clock: Clock, rate: float, delay: float, buffer: int) -> None:
        self.clock = clock
        self.rate = rate
        self.delay = int(delay * SECOND)
        self.buffer = buffer + int(rate * delay)
        self.grain = max(1400, int(rate / 200))
        """Octets of the pieces in which it comes out."""
        self.queued = 0
        self.free_at = clock.now
        self.paused_until = clock.now
        self.silent = False
        self.silent_after: int | None = None
        """Octets that still come through before it falls silent."""
        self.carried = 0
        self.congested = False
        self.deliver: Callable[[bytes], None]
        self.relieve: Callable[[], None]

    def send(self, data: bytes) -> None:
        """Queue octets; they come out in pieces as a real path would hand them on."""
        self.queued += len(data)
        for at in range(0, len(data), self.grain):
            part = data[at : at + self.grain]
            self.free_at = max(self.free_at, self.clock.now) + int(len(part) * SECOND / self.rate)
            self._arrive(self.free_at + self.delay, part)
        self.congested = self.congested or self.queued >= self.buffer

    def _arrive(self, when: Instant, part: bytes) -> None:
        def come() -> None:
            if self.silent:
                return
            if self.clock.now < self.paused_until:
                self._arrive(self.paused_until, part)
                return
            octets = part
            if self.silent_after is not None and len(part) >= self.silent_after:
                octets = part[: self.silent_after]
                self.silent = True
            elif self.silent_after is not None:
                self.silent_after -= len(part)
            self.queued -= len(part)
            self.carried += len(octets)
            if octets:
                self.deliver(octets)
            if self.congested and self.queued <= self.buffer // 2:
                self.congested = False
                self.relieve()

        self.clock.at(when, come)


class Wire:
    """A carrier between the two persons of a :class:`Desk`."""

    def __init__(self, desk: Desk, number: int, rank: int, ways: list[Way]) -> None:
        self.desk = desk
        self.number = number
        self.rank = rank
        self.ways = ways
        """What leaves the first person, and what leaves the second."""
        self.ended = [False, False]
        self.attached = [False, False]
        self._waiting: list[list[bytes]] = [[], []]
        for side, way in enumerate(ways):
            way.deliver = partial(self._deliver, 1 - side)
            way.relieve = partial(self._relieve, side)

    def attach(self, side: int) -> None:
        """Give it to one person's session; what has come before is kept for that moment."""
        if self.ended[side]:
            return
        person = self.desk.people[side]
        self.attached[side] = True
        person.wires[self.number] = self.ways[side]
        person.session.attach(self.number, self.rank, self.desk.clock.now)
        person.drain()
        for data in self._waiting[side]:
            self._deliver(side, data)
        self._waiting[side].clear()

    def _deliver(self, side: int, data: bytes) -> None:
        person = self.desk.people[side]
        if self.attached[side]:
            person.session.received(self.number, data, self.desk.clock.now)
            person.drain()
        elif not self.ended[side]:
            self._waiting[side].append(data)

    def _relieve(self, side: int) -> None:
        if self.attached[side]:
            person = self.desk.people[side]
            person.session.relieved(self.number, self.desk.clock.now)
            person.drain()

    def hush(self, after: int | None = None) -> None:
        """Fall silent now, or after so many octets more in each direction."""
        for way in self.ways:
            if after is None:
                way.silent = True
            else:
                way.silent_after = after

    def pause(self, seconds: float) -> None:
        """Carry nothing for a while, and then all of it."""
        for way in self.ways:
            way.paused_until = self.desk.clock.now + int(seconds * SECOND)

    def end(self, side: int, why: str = "reset") -> None:
        """Tell one side that the carrier is gone; nothing comes out there any more."""
        if self.ended[side]:
            return
        self.ended[side] = True
        self.ways[1 - side].silent = True
        person = self.desk.people[side]
        if self.attached[side]:
            self.attached[side] = False
            del person.wires[self.number]
            person.session.detach(self.number, why, self.desk.clock.now)
            person.drain()


@dataclass
class Appetite:
    """How somebody writes and reads: octets at a time, and seconds between."""

    write: int = 65536
    write_pause: float = 0.0
    read: int = 1 << 30
    read_pause: float = 0.0


@dataclass
class Told:
    """What a session has told, but for the octets themselves."""

    events: list[tuple[Instant, SessionEvent]] = field(default_factory=list)
    signals: list[bytes] = field(default_factory=list)
    datagrams: list[bytes] = field(default_factory=list)

    def of(self, *kinds: type) -> list[SessionEvent]:
        """Return the events of some kinds."""
        return [event for _, event in self.events if isinstance(event, kinds)]


class Person:
    """One side: a session and somebody who uses it."""

    def __init__(self, desk: Desk, side: int, window: int, appetite: Appetite) -> None:
        self.desk = desk
        self.side = side
        self.appetite = appetite
        self.wires: dict[int, Way] = {}
        self.session = Session(
            controlling=side == 0,
            congested=lambda number: self.wires[number].congested,
            window=window,
        )
        self.told = Told()
        self.to_write = b""
        self.written = 0
        self.read = 0
        self.pending = 0
        self.eof = False
        self.outcome: Finished | Aborted | None = None
        self.came_at = desk.clock.now
        self.stall = 0.0
        """The longest time for which nothing came although the other side had something."""
        self._ending = False
        self._armed: Instant | None = None

    def give(self, data: bytes, end: bool = True) -> None:
        """Write all of this, as far and as fast as there is room."""
        self.to_write += data
        self._ending = end
        self.desk.clock.after(0, self._write)

    def _write(self) -> None:
        now, session = self.desk.clock.now, self.session
        if session.over or (self._ending and self.written == len(self.to_write) and session.ended):
            return
        while session.room > 0 and self.written < len(self.to_write):
            portion = self.to_write[self.written : self.written + self.appetite.write]
            session.write(portion, now)
            self.written += len(portion)
            if self.appetite.write_pause:
                self.desk.clock.after(self.appetite.write_pause, self._write)
                break
        if self._ending and self.written == len(self.to_write):
            session.write_eof(now)
        self.drain()

    def _read(self) -> None:
        portion = min(self.pending, self.appetite.read)
        self.pending -= portion
        if not self.session.over:
            self.session.consumed(portion, self.desk.clock.now)
        self.drain()
        if self.pending:
            self.desk.clock.after(self.appetite.read_pause, self._read)

    def drain(self) -> None:
        """Do what the session wants done."""
        clock, session = self.desk.clock, self.session
        while (event := session.poll()) is not None:
            if isinstance(event, Send):
                self.wires[event.carrier_id].send(event.data)
                continue
            if isinstance(event, Data):
                self._take(bytes(event.data))
                continue
            self.told.events.append((clock.now, event))
            if isinstance(event, Eof):
                assert self.read == len(self.other.to_write), "the end came early"
                self.eof = True
            elif isinstance(event, Writable):
                clock.after(0, self._write)
            elif isinstance(event, Signal):
                self.told.signals.append(event.data)
            elif isinstance(event, Datagram):
                self.told.datagrams.append(event.data)
            elif isinstance(event, Finished | Aborted):
                assert self.outcome is None
                self.outcome = event
        due = session.deadline()
        real = None if session.over else session._earliest()
        assert real is None or (due is not None and due <= real), "a deadline was forgotten"
        if due is not None and (self._armed is None or due < self._armed):
            self._armed = due
            clock.at(due, self._ring)

    def _take(self, data: bytes) -> None:
        clock = self.desk.clock
        expected = self.other.to_write[self.read : self.read + len(data)]
        assert data == expected, f"not what was written, at offset {self.read}"
        assert not self.eof
        self.stall = max(self.stall, (clock.now - self.came_at) / SECOND)
        self.came_at = clock.now
        self.read += len(data)
        if not self.pending:
            clock.after(self.appetite.read_pause, self._read)
        self.pending += len(data)

    def _ring(self) -> None:
        if self._armed is None or self.desk.clock.now < self._armed:
            return
        self._armed = None
        self.session.on_deadline(self.desk.clock.now)
        self.drain()

    @property
    def other(self) -> Person:
        """The one at the other end."""
        return self.desk.people[1 - self.side]

    @property
    def moves(self) -> list[int]:
        """The carriers that it has sent on, one after the other."""
        return [event.carrier_id for event in self.told.of(Moved) if isinstance(event, Moved)]


class Desk:
    """Two people, and the wires between them."""

    def __init__(
        self, *, window: int = 8 << 20, appetites: tuple[Appetite, Appetite] | None = None
    ) -> None:
        self.clock = Clock()
        self.people: list[Person] = []
        for side in range(2):
            appetite = appetites[side] if appetites else Appetite()
            self.people.append(Person(self, side, window, appetite))
        self._numbers = count(1)

    def wire(
        self,
        rank: int = 1,
        *,
        rate: float = 10e6,
        delay: float = 0.02,
        buffer: int = BUFFER,
        skew: float = 0.0,
    ) -> Wire:
        """Make a carrier and attach it at both sides, ``skew`` seconds later at the second.

        ``rate`` in octets a second, ``delay`` one way.
        """
        ways = [Way(self.clock, rate, delay, buffer) for _ in self.people]
        wire = Wire(self, next(self._numbers), rank, ways)
        wire.attach(0)
        self.clock.after(skew, lambda: wire.attach(1))
        return wire

    def finished(self) -> bool:
        """Whether both sides have ended well."""
        return all(isinstance(person.outcome, Finished) for person in self.people)

    def over(self) -> bool:
        """Whether both sides have ended."""
        return all(person.outcome is not None for person in self.people)
