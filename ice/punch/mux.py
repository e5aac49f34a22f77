"""Many connections over one stream: a sans-IO machine.

Theory of operation.  One side opens connections, the other one accepts or refuses them.  The stream
carries frames; a frame is a header of nine octets, ``kind`` (one), ``connection`` (four) and
``value`` (four, all in network order), and for three kinds ``value`` octets after it:

=======  =======  ===========================================================================
kind     value    meaning
=======  =======  ===========================================================================
OPEN     credit   open ``connection``; the other side may send so many octets on it
ACCEPT   credit   it is open; the opener may send so many octets on it
REFUSE   length   it is not; words for a person follow
DATA     length   octets follow
CREDIT   credit   so many more octets may be sent
END      0        this direction has ended
RESET    length   the connection has been broken off; words for a person follow
BLOCKED  0        there are octets to be sent, and no credit
=======  =======  ===========================================================================

Connections are numbered from 1 upwards and no number is used twice, so a late frame is told from a
wrong one.  Each direction of each connection has a window of its own: nobody may send octets for
which there is no room at the other end, so a connection whose reader has stopped holds up no other,
and all that a peer can make this side keep is bounded.  A window begins small and doubles when the
sender says that it is blocked while the application here keeps up, as far as a common budget goes.

What is to be sent waits per connection and leaves in turns, control frames first: a bulk transfer
delays a keystroke by a frame for each connection that sends, not by its own length.

The driver calls :meth:`Mux.receive` with what the stream brought, drains :meth:`Mux.poll` after
every call, and takes what is to be written with :meth:`Mux.take` as long as the stream has room.
There are no timers, so nothing needs the time.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeAlias

from stun.errors import UsageError

HEADER: Final = struct.Struct("!BII")
MOST_DATA: Final = 1 << 16
"""Octets of the longest DATA frame."""
FAIR_DATA: Final = 1 << 14
"""The same while several connections want to send: it is what one waits for another."""
MOST_TEXT: Final = 1024
"""Octets of the longest text in REFUSE and RESET."""
MOST_CREDIT: Final = 1 << 30
MOST_CONTROL: Final = 1 << 22
"""Octets of control frames that may wait.  An honest peer takes them; one that goes on sending what
has to be answered, and takes no answers, is left."""


class Kind(IntEnum):
    """The kinds of frames."""

    OPEN = 1
    ACCEPT = 2
    REFUSE = 3
    DATA = 4
    CREDIT = 5
    END = 6
    RESET = 7
    BLOCKED = 8


_MOST: Final = {Kind.DATA: MOST_DATA, Kind.REFUSE: MOST_TEXT, Kind.RESET: MOST_TEXT}
"""The kinds that are followed by octets, and by how many at most."""
_FROM_OPENER: Final = frozenset(Kind) - {Kind.ACCEPT, Kind.REFUSE}
_FROM_OTHER: Final = frozenset(Kind) - {Kind.OPEN}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept.  Octets, but for ``connections``."""

    connections: int = 1024
    first_window: int = 1 << 16
    greatest_window: int = 1 << 23
    budget: int = 1 << 27
    """All windows together; the first ones count, but are never denied."""
    queue: int = 1 << 18
    """What may wait to be sent on a connection before its writer is to wait."""


# Events. ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer wants to open a connection: to be answered by ``accept`` or ``refuse``."""

    connection: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """A connection that was opened here is open."""

    connection: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A connection that was opened here is none; ``why`` is the peer's words."""

    connection: int
    why: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """Octets came.  They count against the window until ``consumed`` is called."""

    connection: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PeerEnded:
    """The peer sends no more on this connection."""

    connection: int


@dataclass(frozen=True, slots=True)
class Writable:
    """There is room again on a connection that had none."""

    connection: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over and forgotten: both directions have ended and all has been taken.

    ``why``: the peer has broken it off, in its words; None if both sides ended it.
    """

    connection: int
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The peer does not keep to the protocol; nothing more is read."""

    why: str


Event: TypeAlias = Opened | Accepted | Refused | Arrived | PeerEnded | Writable | Closed | Failed


@dataclass(slots=True)
class _Connection:
    """One connection.  Octets are counted from its beginning, each way."""

    number: int
    window: int
    credit: int = 0
    """What the peer lets us send yet."""
    granted: int = 0
    """What the peer may have sent by now, counted from the beginning."""
    received: int = 0
    consumed: int = 0
    queue: deque[memoryview] = field(default_factory=deque)
    queued: int = 0
    accepted: bool = False
    ending: bool = False
    """The application has ended its direction."""
    ended: bool = False
    """END has been sent."""
    peer_ended: bool = False
    blocked: bool = False
    """BLOCKED has been sent, and there was no credit since."""
    peer_blocked: bool = False
    """The peer has sent BLOCKED, and no octets since."""
    full: bool = False
    """The application has been told, by ``room``, to wait."""


class Mux:
    """One end.  ``opens`` says whether it is this one that opens connections."""

    def __init__(self, *, opens: bool, limits: Limits | None = None) -> None:
        self._opens = opens
        self._limits = limits or Limits()
        self._connections: dict[int, _Connection] = {}
        self._last = 0
        self._control: deque[bytes] = deque()
        self._waiting = 0
        self._turns: dict[int, None] = {}
        """Who has octets and may send them, in turns."""
        self._events: deque[Event] = deque()
        self._input = bytearray()
        self._failed = False
        self._windows = 0
        self.refusals: Counter[str] = Counter()
        """Frames that were of no use, by why."""

    def __len__(self) -> int:
        return len(self._connections)

    # What the application does. -------------------------------------------------------------------

    def open(self) -> int:
        """Open a connection; returns its number.

        Raises :class:`stun.errors.UsageError` where the other side is the one to open them, or
        when there are as many as there may be.
        """
        if not self._opens:
            raise UsageError("this side only accepts connections")
        if len(self._connections) >= self._limits.connections or self._last >= (1 << 32) - 1:
            raise UsageError(f"{len(self._connections)} connections are open: no more are possible")
        self._last += 1
        connection = self._make(self._last)
        self._frame(Kind.OPEN, connection.number, connection.granted)
        return connection.number

    def accept(self, number: int) -> None:
        """Accept a connection that :class:`Opened` told of."""
        connection = self._asked(number)
        connection.accepted = True
        self._frame(Kind.ACCEPT, number, connection.granted)
        self._ready(connection)

    def refuse(self, number: int, why: str) -> None:
        """Refuse a connection that :class:`Opened` told of; the peer is told ``why``."""
        self._forget(self._asked(number))
        self._text(Kind.REFUSE, number, why)

    def write(self, number: int, data: bytes | bytearray | memoryview) -> None:
        """Queue octets, however many; :meth:`room` says when the writer should wait."""
        connection = self._known(number)
        if connection.ending:
            raise UsageError(f"connection {number}: this direction has been ended")
        if data:
            connection.queue.append(memoryview(bytes(data)))
            connection.queued += len(data)
            self._ready(connection)

    def write_eof(self, number: int) -> None:
        """End this direction, after what has been queued."""
        connection = self._known(number)
        connection.ending = True
        self._ready(connection)

    def reset(self, number: int, why: str) -> None:
        """Break a connection off; what is queued is dropped, and the peer is told ``why``."""
        self._forget(self._known(number))
        self._text(Kind.RESET, number, why)

    def consumed(self, number: int, octets: int) -> None:
        """Take note that there is room again for octets that have arrived.

        A connection that is over already is passed over.
        """
        connection = self._connections.get(number)
        if connection is None:
            return
        if not 0 <= octets <= connection.received - connection.consumed:
            raise UsageError(f"connection {number}: {octets} octets have not arrived")
        connection.consumed += octets
        self._widen(connection)
        self._grant(connection)
        self._settle(connection)

    def room(self, number: int) -> int:
        """Return how many octets may be written before the writer should wait.

        When that is not positive, :class:`Writable` follows.  0 for a connection that is over.
        """
        connection = self._connections.get(number)
        if connection is None:
            return 0
        room = self._limits.queue - connection.queued
        connection.full = room <= 0
        return room

    def is_open(self, number: int) -> bool:
        """Whether there is such a connection."""
        return number in self._connections

    def numbers(self) -> list[int]:
        """Return the connections that there are."""
        return list(self._connections)

    # What the driver does. ------------------------------------------------------------------------

    def poll(self) -> Event | None:
        """Return the next thing to tell."""
        return self._events.popleft() if self._events else None

    def take(self, most: int) -> bytes:
        """Return frames to be written: about ``most`` octets, more by one frame at most."""
        parts: list[bytes | memoryview] = []
        size = 0
        while size < most and self._control:
            frame = self._control.popleft()
            self._waiting -= len(frame)
            size += len(frame)
            parts.append(frame)
        while size < most and self._turns:
            number = next(iter(self._turns))
            del self._turns[number]
            size += self._send(self._connections[number], parts)
        return b"".join(parts)

    @property
    def has_output(self) -> bool:
        """Whether :meth:`take` has something to give."""
        return bool(self._control or self._turns)

    def _send(self, connection: _Connection, parts: list[bytes | memoryview]) -> int:
        most = FAIR_DATA if self._turns else MOST_DATA
        octets = min(most, connection.credit, connection.queued)
        size = 0
        if octets:
            parts.append(HEADER.pack(Kind.DATA, connection.number, octets))
            size = HEADER.size + octets
            connection.credit -= octets
            connection.queued -= octets
            queue = connection.queue
            while octets:
                first = queue.popleft()
                if len(first) > octets:
                    queue.appendleft(first[octets:])
                    first = first[:octets]
                parts.append(first)
                octets -= len(first)
        if connection.queued and not connection.credit and not connection.blocked:
            connection.blocked = True
            parts.append(HEADER.pack(Kind.BLOCKED, connection.number, 0))
            size += HEADER.size
        if connection.ending and not connection.queued and not connection.ended:
            connection.ended = True
            parts.append(HEADER.pack(Kind.END, connection.number, 0))
            size += HEADER.size
            self._settle(connection)
        elif connection.full and connection.queued <= self._limits.queue // 2:
            connection.full = False
            self._events.append(Writable(connection.number))
        self._ready(connection)
        return size

    # What the peer sends. -------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take octets of the stream, cut anywhere.  Never raises on what they are."""
        if self._failed:
            return
        self._input += data
        at, end = 0, len(self._input)
        while end - at >= HEADER.size and not self._failed:
            kind, number, value = HEADER.unpack_from(self._input, at)
            problem = self._problem(kind, number, value)
            if problem:
                self._fail(problem)
                return
            length = value if kind in _MOST else 0
            if end - at < HEADER.size + length:
                break
            at += HEADER.size
            self._take(Kind(kind), number, value, bytes(self._input[at : at + length]))
            at += length
        del self._input[:at]

    def _problem(self, kind: int, number: int, value: int) -> str | None:
        """Say what is wrong with a header, before anything of its length is kept."""
        if kind not in (_FROM_OTHER if self._opens else _FROM_OPENER):
            return f"a frame of kind {kind}, which there is not in this direction"
        if value > _MOST.get(Kind(kind), MOST_CREDIT):
            return f"{Kind(kind).name} with {value}, more than allowed"
        if number == 0 or (kind != Kind.OPEN and number > self._last):
            return f"{Kind(kind).name} for connection {number}, which was never opened"
        return None

    def _take(self, kind: Kind, number: int, value: int, body: bytes) -> None:
        if kind is Kind.OPEN:
            self._take_open(number, value)
            return
        connection = self._connections.get(number)
        if connection is None:
            # It was broken off or refused here, and the peer did not know yet.
            self.refusals[f"{kind.name} for a connection that is over"] += 1
            return
        if not connection.accepted and kind not in {Kind.ACCEPT, Kind.REFUSE, Kind.RESET}:
            self._fail(f"{kind.name} for connection {number}, which has not been accepted")
            return
        match kind:
            case Kind.ACCEPT if connection.accepted:
                self._fail(f"ACCEPT for connection {number}, which has been accepted already")
            case Kind.ACCEPT:
                connection.accepted = True
                connection.credit = value
                self._events.append(Accepted(number))
                self._ready(connection)
            case Kind.REFUSE if connection.accepted:
                self._fail(f"REFUSE for connection {number}, which has been accepted already")
            case Kind.REFUSE:
                self._forget(connection)
                self._events.append(Refused(number, _words(body)))
            case Kind.DATA:
                self._take_data(connection, body)
            case Kind.CREDIT:
                connection.credit = min(connection.credit + value, MOST_CREDIT)
                connection.blocked = False
                self._ready(connection)
            case Kind.END if connection.peer_ended:
                self._fail(f"END for connection {number} twice")
            case Kind.END:
                connection.peer_ended = True
                self._events.append(PeerEnded(number))
                self._settle(connection)
            case Kind.BLOCKED:
                connection.peer_blocked = True
                self._widen(connection)
                self._grant(connection)
            case Kind.RESET:
                self._forget(connection)
                self._events.append(Closed(number, _words(body)))

    def _take_open(self, number: int, value: int) -> None:
        if number != self._last + 1:
            self._fail(f"OPEN for connection {number}, where {self._last + 1} is next")
            return
        self._last = number
        if len(self._connections) >= self._limits.connections:
            self.refusals["OPEN beyond the number of connections that may be open"] += 1
            self._text(Kind.REFUSE, number, "too many connections are open")
            return
        connection = self._make(number)
        connection.credit = value
        self._events.append(Opened(number))

    def _take_data(self, connection: _Connection, body: bytes) -> None:
        number = connection.number
        if connection.peer_ended:
            self._fail(f"DATA for connection {number} after its END")
        elif connection.received + len(body) > connection.granted:
            self._fail(f"DATA for connection {number} beyond its window")
        elif body:
            connection.received += len(body)
            connection.peer_blocked = False
            self._events.append(Arrived(number, body))

    def _fail(self, why: str) -> None:
        self._failed = True
        self._input.clear()
        self._events.append(Failed(why))

    # Windows, turns and the end. ------------------------------------------------------------------

    def _make(self, number: int) -> _Connection:
        window = self._limits.first_window
        self._windows += window
        connection = _Connection(number, window, granted=window)
        self._connections[number] = connection
        return connection

    def _grant(self, connection: _Connection) -> None:
        """Let the peer send again, in portions of half a window."""
        more = connection.consumed + connection.window - connection.granted
        if more >= connection.window // 2 and not connection.peer_ended:
            connection.granted += more
            self._frame(Kind.CREDIT, connection.number, more)

    def _widen(self, connection: _Connection) -> None:
        """Double the window if the peer waits for it, and not for the application here."""
        waiting = connection.received - connection.consumed
        if not connection.peer_blocked or waiting > connection.window // 4:
            return
        connection.peer_blocked = False
        greater = min(connection.window * 2, self._limits.greatest_window)
        more = greater - connection.window
        if self._windows + more <= self._limits.budget:
            self._windows += more
            connection.window = greater

    def _ready(self, connection: _Connection) -> None:
        """Give the connection its turn if it has something that may be sent."""
        if (
            not connection.accepted
            or connection.ended
            or connection.number not in self._connections
        ):
            return
        if (connection.queued and connection.credit) or (
            connection.ending and not connection.queued
        ):
            self._turns[connection.number] = None

    def _settle(self, connection: _Connection) -> None:
        """Forget a connection that has ended both ways and of which everything was taken."""
        taken = connection.received == connection.consumed
        if connection.ended and connection.peer_ended and taken:
            self._forget(connection)
            self._events.append(Closed(connection.number))

    def _forget(self, connection: _Connection) -> None:
        del self._connections[connection.number]
        self._turns.pop(connection.number, None)
        self._windows -= connection.window

    def _known(self, number: int) -> _Connection:
        connection = self._connections.get(number)
        if connection is None:
            raise UsageError(f"there is no connection {number}")
        return connection

    def _asked(self, number: int) -> _Connection:
        connection = self._known(number)
        if self._opens or connection.accepted:
            raise UsageError(f"connection {number} does not wait for an answer")
        return connection

    def _frame(self, kind: Kind, number: int, value: int, body: bytes = b"") -> None:
        self._control.append(HEADER.pack(kind, number, value) + body)
        self._waiting += HEADER.size + len(body)
        if self._waiting > MOST_CONTROL and not self._failed:
            self._fail("the peer takes no answers")

    def _text(self, kind: Kind, number: int, text: str) -> None:
        body = text.encode("utf-8", "replace")[:MOST_TEXT]
        self._frame(kind, number, len(body), body)


def _words(body: bytes) -> str:
    return body.decode("utf-8", "replace")
