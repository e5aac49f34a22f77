"""Candidate pairs and what is known of them (RFC 8445 section 6.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ice.base import Base
from ice.candidate import Candidate
from stun.sansio import Address, Instant


class PairState(StrEnum):
    """RFC 8445 section 6.1.2.6."""

    FROZEN = "frozen"
    WAITING = "waiting"
    IN_PROGRESS = "in-progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened to a pair, in words for a person."""

    at: Instant
    what: str


class Pair:
    """A local and a remote candidate.  Compared by identity.

    ``local`` is the candidate whose base the packets leave from; ``base`` is that base, and
    ``remote.address`` where they go to.  ``mapped`` is the local candidate that the peer sees on
    this pair, once a check has told (the valid pair of RFC 8445 section 7.2.5.3.2 has it).
    """

    __slots__ = (
        "answered", "assumed", "base", "checked", "consent_requests_sent", "local", "mapped",
        "nominated", "notes", "octets_received", "octets_sent", "packets_received", "packets_sent",
        "peer_nominated", "priority", "remote",
        "requests_received", "requests_sent", "responses_received", "responses_sent", "rtt",
        "state", "valid",
    )  # fmt: skip

    NOTES = 32

    def __init__(self, local: Candidate, base: Base, remote: Candidate, priority: int) -> None:
        self.local = local
        self.base = base
        self.remote = remote
        self.priority = priority
        self.state = PairState.FROZEN
        self.valid = False
        """Whether a check on it succeeded, so that data may pass."""
        self.assumed = False
        """Whether data may pass before a check has succeeded (``Config.assume_relayed``)."""
        self.mapped: Candidate | None = None
        self.nominated = False
        """Whether it is to be used: USE-CANDIDATE was sent and answered, or received and agreed."""
        self.peer_nominated = False
        """Whether the controlling peer has sent USE-CANDIDATE on it."""
        self.rtt: int | None = None
        """Smoothed round-trip time in nanoseconds."""
        self.checked: Instant | None = None
        """When the first check was sent on it."""
        self.answered: Instant | None = None
        """When a request on it was last answered, with proof: consent is counted from then."""
        self.notes: list[Note] = []
        self.requests_sent = self.responses_received = 0
        self.requests_received = self.responses_sent = 0
        self.consent_requests_sent = 0
        """Of the requests, those that asked for consent (RFC 7675)."""
        self.packets_sent = self.octets_sent = 0
        """Of data, without checks."""
        self.packets_received = self.octets_received = 0

    @property
    def remote_address(self) -> Address:
        """Where its packets go."""
        return self.remote.address

    @property
    def component(self) -> int:
        """The component that both candidates belong to."""
        return self.base.component

    @property
    def stream(self) -> int:
        """The data stream that it belongs to."""
        return self.base.stream

    @property
    def is_direct(self) -> bool:
        """Whether neither side's candidate is a relay's, as far as this side can tell."""
        return not self.base.is_relayed and self.remote.type != "relay"

    def note(self, now: Instant, what: str) -> None:
        """Remember what happened; the first and the latest notes are kept."""
        if len(self.notes) >= self.NOTES:
            del self.notes[self.NOTES // 2]
        self.notes.append(Note(now, what))

    def __repr__(self) -> str:
        return (
            f"<Pair {self.local.type} {self.base.address} -> {self.remote.type} "
            f"{self.remote_address} {self.state}{' valid' if self.valid else ''}>"
        )
