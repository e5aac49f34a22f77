"""What an agent lets be seen of itself, for explanations and statistics.

It is little that has to be remembered for it: candidates with the time they came, what was sought
in vain, and the notes and counters that pairs have anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ice.candidate import Candidate
from ice.config import Config, Role, Server
from ice.pair import Note, Pair
from stun.errors import DropReason
from stun.sansio import Instant


@dataclass(frozen=True, slots=True)
class Gathered:
    """A local candidate: when it was found, and the server that told of it, if one did."""

    candidate: Candidate
    at: Instant
    stream: int = 0
    server: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """A remote candidate: when it came; ``learned``: from a check, not from the peer's words."""

    candidate: Candidate
    at: Instant
    stream: int = 0
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """A local candidate that was sought and not found."""

    stream: int
    component: int
    what: str
    why: str
    at: Instant


class View(Protocol):
    """What an agent lets be seen of itself.  Nothing of it is changed by looking."""

    @property
    def config(self) -> Config:
        """How it was told to behave."""

    @property
    def role(self) -> Role:
        """Its present role."""

    @property
    def generation(self) -> int:
        """How many restarts there have been."""

    @property
    def started(self) -> Instant:
        """When it began; times are told from here."""

    @property
    def servers(self) -> Sequence[Server]:
        """The STUN and TURN servers that it was given."""

    @property
    def is_gathered(self) -> bool:
        """Whether all local candidates of this generation are known."""

    @property
    def has_credentials(self) -> bool:
        """Whether the peer's credentials of this generation are known."""

    @property
    def has_all_remote(self) -> bool:
        """Whether the peer has said that there are no more candidates."""

    @property
    def local(self) -> Sequence[Gathered]:
        """The local candidates of this generation."""

    @property
    def remote(self) -> Sequence[Told]:
        """The remote candidates of this generation."""

    @property
    def missing(self) -> Sequence[Missing]:
        """What was sought and not found in this generation."""

    @property
    def pairs(self) -> Iterable[Pair]:
        """All pairs, those of the generation before that are in use still among them."""

    @property
    def selected(self) -> Mapping[tuple[int, int], Pair]:
        """By (stream, component), the pair that data goes over; without those that have none."""

    @property
    def failure(self) -> str:
        """Why it has failed; empty if it has not."""

    @property
    def events(self) -> Sequence[Note]:
        """What happened to the agent as a whole, in order."""

    @property
    def drops(self) -> Mapping[DropReason, int]:
        """How much came and was not used, by reason."""
