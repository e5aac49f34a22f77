"""What the checker tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ice.events import RemoteCandidate, RoleChanged
from ice.pair import Pair


@dataclass(frozen=True, slots=True)
class PairValid:
    """A check on the pair succeeded: data may pass on it (RFC 8445 section 12.1)."""

    pair: Pair


@dataclass(frozen=True, slots=True)
class Nominated:
    """The pair is the selected one of its component from now on (RFC 8445 section 8.1.1).

    Told again when another pair takes its place.
    """

    pair: Pair


@dataclass(frozen=True, slots=True)
class ChecklistCompleted:
    """Each component of the stream has a nominated pair."""

    stream: int


@dataclass(frozen=True, slots=True)
class ChecklistFailed:
    """Some component of the stream has no valid pair, and none is to be expected; why, in words.

    It is not for ever: a check of the peer on a path that was given up revives it.
    """

    stream: int
    why: str


@dataclass(frozen=True, slots=True)
class ProbeAnswered:
    """The peer answered a probe.  ``rtt``: nanoseconds."""

    pair: Pair
    rtt: int


@dataclass(frozen=True, slots=True)
class ConsentRevoked:
    """The peer refused a probe with 403 (Forbidden), and proved itself (RFC 7675 section 5.2)."""

    pair: Pair


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """The peer sent a request that proves itself on the pair, and was answered."""

    pair: Pair


CheckEvent: TypeAlias = (
    PairValid
    | Nominated
    | ChecklistCompleted
    | ChecklistFailed
    | ProbeAnswered
    | ConsentRevoked
    | RequestReceived
    | RemoteCandidate
    | RoleChanged
)
