"""What an agent tells whoever uses it, in the order in which it happened.

Data is no event: it is handed to :attr:`ice.machine.AgentMachine.on_data` as it comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from ice.candidate import Candidate
from ice.config import Credentials
from ice.pair import Pair


class AgentState(StrEnum):
    """How far an agent is, all streams and components taken together."""

    NEW = "new"
    """Nothing to check yet: the peer's credentials or candidates are missing."""
    CHECKING = "checking"
    """Some component has no valid pair yet."""
    CONNECTED = "connected"
    """Each component has a valid pair, so that data may pass (RFC 8445 section 12.1)."""
    COMPLETED = "completed"
    """Each component has a nominated pair (RFC 8445 section 8.1.2)."""
    DISCONNECTED = "disconnected"
    """A component that had a pair has none left; it may come back."""
    FAILED = "failed"
    """A component cannot be connected; a restart may help."""
    CLOSED = "closed"


class Why(StrEnum):
    """Why another pair is used for data from now on."""

    FIRST_VALID = "the first pair that a check has proved"
    ASSUMED = "from relay to relay, where nothing is in the way; checks go on"
    BETTER_VALID = "of higher priority than the valid pair before it"
    NOMINATED = "nominated"
    BETTER = "measured to be better"
    CONSENT_LOST = "the peer's consent on the pair before it was lost"
    SHAKY = "answers on the pair before it are overdue, and this one is alive"
    BASE_LOST = "the address that the pair before it was sent from is gone"
    CLOSED = "the connection of the pair before it ended"
    NOT_VALID = "a check on the pair before it has failed"


@dataclass(frozen=True, slots=True)
class LocalCandidate:
    """There is another local candidate, to be told to the peer."""

    candidate: Candidate
    stream: int = 0
    server: str = ""
    """Who told of it; empty for a host candidate."""


@dataclass(frozen=True, slots=True)
class CandidateNotGathered:
    """A candidate that was sought and not had: where, and why not."""

    stream: int
    component: int
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class GatheringComplete:
    """There are no more local candidates in this generation (RFC 8838 section 13)."""

    generation: int = 0


@dataclass(frozen=True, slots=True)
class RemoteCandidate:
    """A peer-reflexive candidate was learned from a check (RFC 8445 section 7.3.1.3)."""

    candidate: Candidate
    stream: int = 0


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The agent as a whole is in another state; ``why`` in words, where there is more to say."""

    state: AgentState
    why: str = ""


@dataclass(frozen=True, slots=True)
class Connected:
    """A component has its first valid pair: data may pass on it (RFC 8445 section 12.1)."""

    pair: Pair


@dataclass(frozen=True, slots=True)
class Selected:
    """Data of a component goes over another pair from now on.

    ``nominated``: whether the agents have agreed on it.  ``previous`` is what was used before.
    """

    pair: Pair
    previous: Pair | None
    why: Why
    nominated: bool = False


@dataclass(frozen=True, slots=True)
class ConsentLost:
    """The peer has not consented to receive on the pair for too long (RFC 7675 section 5.1)."""

    pair: Pair


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A component that had a pair has none; nothing can be sent on it for now."""

    stream: int
    component: int
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A component cannot be connected in this generation; a restart may help.

    ``component`` 0 stands for each component of the stream.
    """

    stream: int
    component: int
    why: str


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """A role conflict was resolved (RFC 8445 section 7.3.1.1)."""

    controlling: bool


@dataclass(frozen=True, slots=True)
class Restarted:
    """A new generation began (RFC 8445 section 9): ``credentials`` are to be told to the peer."""

    credentials: Credentials
    generation: int
    by_peer: bool


@dataclass(frozen=True, slots=True)
class RestartNeeded:
    """The peer wants a restart, or nothing but one can help; ``why`` in words."""

    why: str


@dataclass(frozen=True, slots=True)
class Congested:
    """The connection of a component's pair takes no more for now; what is sent may be dropped."""

    stream: int
    component: int


@dataclass(frozen=True, slots=True)
class Relieved:
    """The connection of a component's pair takes data again."""

    stream: int
    component: int


@dataclass(frozen=True, slots=True)
class SpreadEnded:
    """A spread (:meth:`ice.Agent.spread`) sends no more: ``why`` in words, and what came of it.

    ``what`` it was, in words; ``sent`` datagrams or dials, from ``opened`` sockets; ``hits``: paths
    that it found.
    """

    stream: int
    component: int
    what: str
    why: str
    sent: int
    opened: int
    hits: int


AgentEvent: TypeAlias = (
    LocalCandidate
    | CandidateNotGathered
    | GatheringComplete
    | RemoteCandidate
    | StateChanged
    | Connected
    | Selected
    | ConsentLost
    | Disconnected
    | Failed
    | RoleChanged
    | Restarted
    | RestartNeeded
    | Congested
    | Relieved
    | SpreadEnded
)
