"""What a session wants done and has to tell, in the order in which it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(slots=True)
class Send:
    """Put octets on a carrier."""

    carrier_id: int
    data: bytes


@dataclass(slots=True)
class Data:
    """The next octets of the peer's stream.

    They count against the window until :meth:`Session.consumed` says that they are used.  May be a
    view of what was given to :meth:`Session.received`.
    """

    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Eof:
    """The peer has ended its direction; there is no more :class:`Data`."""


@dataclass(frozen=True, slots=True)
class Writable:
    """There is room again after there was none."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram of the peer's, which may be missing or come late, but never twice."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Signal:
    """A control message of the peer's: none is missing, none comes twice, the order is kept."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Moved:
    """What this side sends goes on another carrier from now on (``previous`` may be gone)."""

    carrier_id: int
    previous: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """A carrier does not answer.  It may come back: :class:`Recovered`."""

    carrier_id: int
    silent: float
    """Seconds since anything came, or since what waits for an answer was sent."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A suspect carrier has answered."""

    carrier_id: int


@dataclass(frozen=True, slots=True)
class Stranded:
    """There is no carrier left.  Everything is kept for the next one."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Both directions have ended, and each side has all that the other one wrote.  The last."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """The session was broken off, by the peer or by this side.  The last."""

    code: int
    reason: str
    by_peer: bool


SessionEvent: TypeAlias = (
    Send
    | Data
    | Eof
    | Writable
    | Datagram
    | Signal
    | Moved
    | Suspect
    | Recovered
    | Stranded
    | Finished
    | Aborted
)
