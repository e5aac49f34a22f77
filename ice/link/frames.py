"""The frames that a session puts on its carriers, and their reader.

A carrier is an ordered stream of octets.  On it stand frames: four octets of header (the kind, and
the length of the body in 24 bits), then the body; all numbers in network byte order.

==========  =====================================================================================
HELLO       version (8), role (8), then the state (below).  The first frame, and only the first
DATA        offset (64), then octets of the stream from there on, at most 262132
FIN         offset (64) of the octet after the last one
ACK         the state, then how many octets of this very carrier's eliciting frames have come (64)
PING        nothing; it wants an ACK at once
SIGNAL      its number (32), counted from 0 in each direction, then at most 16384 octets
DATAGRAM    at most 16384 octets that are never sent again
CLOSE       nothing: both directions have ended, and this side knows that
ABORT       a code (16), then the reason in UTF-8
==========  =====================================================================================

The *state* is the same on all carriers: the offset of the octet that is expected next (one more
once FIN has been taken, as with TCP's sequence numbers), the end of the receive window (64 each),
and how many signals were taken (32).  It only ever grows, so an old one that comes late on a slow
carrier does no harm.

DATA is handed on in the pieces in which it comes; of the others at most one body is kept until it
is complete.  So a reader holds less than 17 KiB, whatever comes.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

VERSION = 1
MOST_FRAME = 1 << 18
"""Octets of a DATA frame with its header: sixteen full records of TLS."""
DATA_OVERHEAD = 12
MOST_DATA = MOST_FRAME - DATA_OVERHEAD
LESS_DATA = (1 << 16) - DATA_OVERHEAD
"""The same where what is behind a frame would wait for it."""
MOST_SIGNAL = 16384
MOST_DATAGRAM = 16384
MOST_REASON = 1024
MOST_OFFSET = 1 << 63
"""No stream gets there; sums of an offset and a length stay in 64 bits."""

HEADER = Struct(">I")
_DATA_HEADER = Struct(">IQ")
_STATE = Struct(">QQI")
_HELLO = Struct(">IBBQQI")
_ACK = Struct(">IQQIQ")
_ACK_BODY = Struct(">QQIQ")
_FIN = Struct(">IQ")
_OFFSET = Struct(">Q")
_SIGNAL = Struct(">II")
_SERIAL = Struct(">I")
_ABORT = Struct(">IH")
_CODE = Struct(">H")


class Kind(IntEnum):
    """What a frame is: the first octet of its header."""

    HELLO = 1
    DATA = 2
    FIN = 3
    ACK = 4
    PING = 5
    SIGNAL = 6
    DATAGRAM = 7
    CLOSE = 8
    ABORT = 9


class AbortCode(IntEnum):
    """Why a session was broken off.  Codes from 16 upwards are the application's."""

    PROTOCOL = 1
    VERSION = 2
    APPLICATION = 16


class Violation(Exception):
    """The peer did what the protocol does not allow.  Never leaves the session."""

    def __init__(self, text: str, code: int = AbortCode.PROTOCOL) -> None:
        super().__init__(text)
        self.code = code


class State(NamedTuple):
    """How far a side has come with what its peer sends."""

    offset: int
    window_end: int
    signals: int


_BODIES: dict[int, tuple[int, int]] = {
    Kind.HELLO: (2 + _STATE.size, 64),  # later versions may say more
    Kind.FIN: (8, 8),
    Kind.ACK: (_ACK_BODY.size, _ACK_BODY.size),
    Kind.PING: (0, 0),
    Kind.SIGNAL: (4, 4 + MOST_SIGNAL),
    Kind.DATAGRAM: (0, MOST_DATAGRAM),
    Kind.CLOSE: (0, 0),
    Kind.ABORT: (2, 2 + MOST_REASON),
}
"""The least and the most octets of each kind's body; DATA has its own way."""

_DATA = int(Kind.DATA)
_DATA_TAG = _DATA << 24


def hello(controlling: bool, state: State) -> bytes:
    """Return a HELLO frame."""
    length = _HELLO.size - HEADER.size
    return _HELLO.pack(Kind.HELLO << 24 | length, VERSION, 1 if controlling else 0, *state)


def read_hello(body: bytes) -> tuple[bool, State]:
    """Return the sender's role (whether it is the controlling one) and its state."""
    if body[0] != VERSION:
        raise Violation(
            f"the other side speaks version {body[0]} of the link's protocol, this one {VERSION}",
            AbortCode.VERSION,
        )
    if body[1] > 1:
        raise Violation(f"HELLO with the unknown role {body[1]}")
    return body[1] == 1, State(*_STATE.unpack_from(body, 2))


def data_header(offset: int, length: int) -> bytes:
    """Return the header of a DATA frame with ``length`` octets of the stream."""
    return _DATA_HEADER.pack(_DATA_TAG | length + 8, offset)


def fin(offset: int) -> bytes:
    """Return a FIN frame."""
    return _FIN.pack(Kind.FIN << 24 | 8, offset)


def ack(state: State, counted: int) -> bytes:
    """Return an ACK frame for a carrier of whose eliciting frames ``counted`` octets have come."""
    return _ACK.pack(
        Kind.ACK << 24 | _ACK_BODY.size, state.offset, state.window_end, state.signals, counted
    )


def read_ack(body: bytes) -> tuple[State, int]:
    """Return the state and the count of an ACK."""
    offset, window_end, signals, counted = _ACK_BODY.unpack(body)
    return State(offset, window_end, signals), counted


def read_fin(body: bytes) -> int:
    """Return the offset after the last octet."""
    offset: int = _OFFSET.unpack(body)[0]
    return offset


def ping() -> bytes:
    """Return a PING frame."""
    return HEADER.pack(Kind.PING << 24)


def signal(serial: int, text: bytes) -> bytes:
    """Return a SIGNAL frame."""
    return _SIGNAL.pack(Kind.SIGNAL << 24 | len(text) + 4, serial) + text


def read_signal(body: bytes) -> tuple[int, bytes]:
    """Return a signal's number and its text."""
    return _SERIAL.unpack_from(body)[0], body[4:]


def datagram(data: bytes) -> bytes:
    """Return a DATAGRAM frame."""
    return HEADER.pack(Kind.DATAGRAM << 24 | len(data)) + data


def close() -> bytes:
    """Return a CLOSE frame."""
    return HEADER.pack(Kind.CLOSE << 24)


def abort(code: int, reason: str) -> bytes:
    """Return an ABORT frame; a long reason is cut."""
    text = reason.encode("utf-8", "replace")[:MOST_REASON]
    return _ABORT.pack(Kind.ABORT << 24 | len(text) + 2, code) + text


def read_abort(body: bytes) -> tuple[int, str]:
    """Return the code and the reason, fit to be shown to a person."""
    text = body[2:].decode("utf-8", "replace")
    return _CODE.unpack_from(body)[0], "".join(c if c.isprintable() else "?" for c in text)


class Piece(NamedTuple):
    """Octets of the stream; ``first`` if they are the first ones of their frame."""

    offset: int
    data: bytes | memoryview
    first: bool


class Frame(NamedTuple):
    """A frame of any kind but DATA."""

    kind: Kind
    body: bytes


class Reader:
    """Cuts what comes on one carrier into frames.

    A piece of DATA may be a view of what was fed, so whoever keeps it keeps that.
    """

    __slots__ = ("_begun", "_first", "_left", "_offset")

    def __init__(self) -> None:
        self._begun = bytearray()
        """A header or a body that is not complete."""
        self._left = 0
        """Octets of the stream that the DATA frame under way still has."""
        self._first = False
        """Nothing of them has come: the header was at the end of what was fed."""
        self._offset = 0

    @property
    def kept(self) -> int:
        """Octets that wait for the rest of their frame."""
        return len(self._begun)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Piece | Frame]:
        """Take octets, return what they complete.  Raises :class:`Violation`."""
        if isinstance(data, bytearray):
            data = bytes(data)  # whoever owns it may change it
        at, end = 0, len(data)
        found: list[Piece | Frame] = []
        view = memoryview(data)
        if self._left and end:
            at = min(self._left, end)
            found.append(Piece(self._offset, data if at == end else view[:at], self._first))
            self._first = False
            self._offset += at
            self._left -= at
        while at < end:
            if not self._begun and end - at >= DATA_OVERHEAD:
                head, offset = _DATA_HEADER.unpack_from(view, at)
                if head >> 24 == _DATA:
                    at = self._data(view, at + DATA_OVERHEAD, head & 0xFFFFFF, offset, found)
                    continue
                after = at + 4 + self._length(head)
                if after <= end:
                    found.append(Frame(Kind(head >> 24), bytes(view[at + 4 : after])))
                    at = after
                    continue
            at = self._complete(view, at, found)
        return found

    def _data(
        self, view: memoryview, at: int, length: int, offset: int, found: list[Piece | Frame]
    ) -> int:
        """Begin a DATA frame whose header ends at ``at``; return where the octets go on."""
        length -= 8
        if not 0 < length <= MOST_DATA:
            raise Violation(f"DATA with {length} octets")
        if offset >= MOST_OFFSET:
            raise Violation(f"DATA at offset {offset}")
        here = min(length, len(view) - at)
        if here:
            found.append(Piece(offset, view[at : at + here], True))
        else:
            self._first = True
        self._offset = offset + here
        self._left = length - here
        return at + here

    def _length(self, head: int) -> int:
        """Return the length of the body, of which ``head`` is the header."""
        bounds = _BODIES.get(head >> 24)
        length = head & 0xFFFFFF
        if bounds is None:
            raise Violation(f"a frame of the unknown kind {head >> 24}")
        if not bounds[0] <= length <= bounds[1]:
            raise Violation(f"{Kind(head >> 24).name} with a body of {length} octets")
        return length

    def _complete(self, view: memoryview, at: int, found: list[Piece | Frame]) -> int:
        """Go on with a frame that does not stand whole in ``view``; return where it ended."""
        begun = self._begun
        while at < len(view):
            need = 4
            if len(begun) >= 4:
                (head,) = HEADER.unpack_from(begun)
                need = DATA_OVERHEAD if head >> 24 == _DATA else 4 + self._length(head)
            step = view[at : at + need - len(begun)]
            begun += step
            at += len(step)
            if len(begun) < 4:
                return at
            (head,) = HEADER.unpack_from(begun)
            if head >> 24 == _DATA:
                if len(begun) < DATA_OVERHEAD:
                    continue
                head, offset = _DATA_HEADER.unpack(begun)
                begun.clear()
                return self._data(view, at, head & 0xFFFFFF, offset, found)
            if len(begun) == 4 + self._length(head):
                found.append(Frame(Kind(head >> 24), bytes(begun[4:])))
                begun.clear()
                return at
        return at
