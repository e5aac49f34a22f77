"""What an agent remembers of its life, for explanations (:class:`ice.explain.View`).

A machine keeps what it needs to go on; why it came to where it is it would forget.  Whoever drives
one gives :class:`AgentView` the machine's events and what the peer has told, each with its time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from ice.candidate import Candidate
from ice.config import Config, Role, Server
from ice.events import (
    AgentEvent,
    CandidateNotGathered,
    Connected,
    ConsentLost,
    Disconnected,
    Failed,
    GatheringComplete,
    LocalCandidate,
    RemoteCandidate,
    Restarted,
    RestartNeeded,
    RoleChanged,
    Selected,
    SpreadEnded,
    StateChanged,
)
from ice.machine import AgentMachine
from ice.pair import Note, Pair
from ice.seen import Gathered, Missing, Told
from stun.errors import DropReason
from stun.sansio import Instant

MOST_NOTES: Final = 64
"""Of the agent as a whole; the first and the latest are kept."""
MOST_CANDIDATES: Final = 256
"""Of each side that are remembered; a peer may tell any number."""


class AgentView:
    """A machine as :func:`ice.explain.explain` looks at it."""

    __slots__ = (
        "_machine", "events", "failure", "has_all_remote", "has_credentials", "is_gathered",
        "local", "missing", "remote", "selections", "servers", "started",
    )  # fmt: skip

    def __init__(self, machine: AgentMachine) -> None:
        self._machine = machine
        self.started: Instant = 0
        self.servers: Sequence[Server] = ()
        self.failure = ""
        self.selections = 0
        """How often data went over another pair than before, the first one included."""
        self.events: list[Note] = []
        self._begin()

    def _begin(self) -> None:
        """Begin a generation."""
        self.is_gathered = self.has_credentials = self.has_all_remote = False
        self.local: list[Gathered] = []
        self.remote: list[Told] = []
        self.missing: list[Missing] = []

    def start(self, now: Instant) -> None:
        """Begin to count time; what was told before that was told now."""
        self.started = now
        self.remote = [replace(told, at=now) for told in self.remote]

    # What is told. --------------------------------------------------------------------------------

    def told(self, candidate: Candidate | None, stream: int, now: Instant) -> None:
        """Take note of a candidate of the peer; ``None``: there are no more."""
        if candidate is None:
            self.has_all_remote = True
        elif len(self.remote) < MOST_CANDIDATES:
            self.remote.append(Told(candidate, now, stream))

    def take(self, event: AgentEvent, now: Instant) -> None:
        """Take note of an event."""
        match event:
            case LocalCandidate():
                if len(self.local) < MOST_CANDIDATES:
                    self.local.append(Gathered(event.candidate, now, event.stream, event.server))
            case RemoteCandidate():
                if len(self.remote) < MOST_CANDIDATES:
                    self.remote.append(Told(event.candidate, now, event.stream, learned=True))
            case CandidateNotGathered():
                if len(self.missing) < MOST_CANDIDATES:
                    self.missing.append(
                        Missing(event.stream, event.component, event.what, event.why, now)
                    )
            case GatheringComplete():
                self.is_gathered = True
                self._note("all candidates are gathered", now)
            case Restarted():
                self._begin()
                by = "the peer" if event.by_peer else "this side"
                self._note(f"restarted by {by}: generation {event.generation}", now)
                self.failure = ""
            case StateChanged():
                self._note(f"{event.state}: {event.why}" if event.why else str(event.state), now)
            case Failed():
                self.failure = event.why
            case Connected():
                self.failure = ""
                self.selections += 1
                self._note(f"data may pass on {_path(event.pair)}", now)
            case Selected():
                self.selections += event.pair is not event.previous
                self._note(f"data goes over {_path(event.pair)}: {event.why.value}", now)
            case ConsentLost():
                self._note(f"consent was lost on {_path(event.pair)}", now)
            case Disconnected():
                self._note(f"component {event.component} has no pair: {event.why}", now)
            case RestartNeeded():
                self._note(f"a restart is needed: {event.why}", now)
            case SpreadEnded():
                count = f"{event.sent} sent, {event.hits} paths found"
                self._note(f"{event.what} ended, {event.why}: {count}", now)
            case RoleChanged():
                self._note(f"a role conflict was settled: this side is {self.role} now", now)

    def _note(self, what: str, now: Instant) -> None:
        if len(self.events) >= MOST_NOTES:
            del self.events[MOST_NOTES // 2]
        self.events.append(Note(now, what))
        if self._machine.timeline is not None:
            self._machine.timeline.event(what, now)

    # What is read off the machine. ----------------------------------------------------------------

    @property
    def config(self) -> Config:
        """How it was told to behave."""
        return self._machine.config

    @property
    def role(self) -> Role:
        """Its present role."""
        return "controlling" if self._machine.controlling else "controlled"

    @property
    def generation(self) -> int:
        """How many restarts there have been."""
        return self._machine.generation

    @property
    def pairs(self) -> list[Pair]:
        """All pairs."""
        return self._machine.pairs()

    @property
    def selected(self) -> Mapping[tuple[int, int], Pair]:
        """By (stream, component), the pair that data goes over."""
        return {
            (component.stream, component.id): component.pair
            for component in self._machine.components
            if component.pair is not None
        }

    @property
    def drops(self) -> Mapping[DropReason, int]:
        """How much came and was not used, by reason."""
        return self._machine.drops


def _path(pair: Pair) -> str:
    return f"{pair.local.type} {pair.base.address} -> {pair.remote.type} {pair.remote_address}"
