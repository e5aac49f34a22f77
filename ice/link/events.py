"""What a link tells whoever uses it, in the order in which it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["relay", "direct"]
Transport: TypeAlias = Literal["tcp", "udp"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """This side is at the rendezvous: ``code`` is what the other one needs.

    ``seconds``: for how long the code is good.
    """

    code: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Met:
    """The peer is there and has proved that it has the same code, ``ms`` after this side began."""

    ms: float


@dataclass(frozen=True, slots=True)
class PathChanged:
    """What is written goes this way from now on.

    ``transport`` is what leaves this host.  ``ms``: milliseconds since the peer was met.  ``rtt``:
    the way's round trip, seconds, where it is known.  ``remote`` and ``local`` are transport
    addresses in words, of a relay's at both ends where it goes through relays; ``relay`` is the one
    that this side uses, as a URI.  ``why``: why it changed.
    """

    kind: Kind
    transport: Transport
    ms: float
    why: str
    local: str = ""
    remote: str = ""
    rtt: float | None = None
    relay: str = ""


@dataclass(frozen=True, slots=True)
class PathLost:
    """A way is gone; another carries on if there is one, else the link waits for one."""

    kind: Kind
    transport: Transport
    why: str


@dataclass(frozen=True, slots=True)
class Trying:
    """A direct way is sought: how, and why that may work."""

    transport: Transport
    strategy: str
    attempt: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class NotDirect:
    """An attempt at a direct way came to nothing; ``again``: seconds until the next, if any."""

    transport: Transport
    strategy: str
    attempt: int
    why: str
    again: float | None = None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """There is no way at all for the moment; nothing is lost, and ways are sought."""

    why: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The link is over.  ``error``: why, unless both sides had finished."""

    error: str | None = None


LinkEvent: TypeAlias = (
    Waiting | Met | PathChanged | PathLost | Trying | NotDirect | Interrupted | Ended
)
