"""What a hall grants its clients, what it asks of its driver, and what it tells of itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ice.rendezvous.letters import Letter
from ice.rendezvous.protocol import MAX_DATA, MAX_HELLO, ErrorCode, ServerMessage
from stun.sansio import SECOND, Instant


@dataclass(frozen=True, slots=True)
class Terms:
    """Limits and times.  Rates are a second, for each client address; 0 is no limit.

    A client address is an IPv4 address, or the /64 of an IPv6 address.
    """

    connections: int = 20_000
    """Of all clients."""
    connections_per_client: int = 200
    connects: float = 5.0
    connects_burst: int = 100
    joins: float = 2.0
    joins_burst: int = 50
    wrong_name_cost: int = 5
    """Joins that one for a one-time name that is not there counts for: it may be a guess."""
    messages: float = 50.0
    messages_burst: int = 500
    octets: float = 131_072.0
    """Of messages, as they come: this is no relay."""
    octets_burst: int = 8 << 20

    message: int = MAX_DATA
    """Octets of a message's data."""
    hello: int = MAX_HELLO
    """Octets of a hello."""

    wait: Instant = 3600 * SECOND
    """How long a client may wait for its peer."""
    idle: Instant = 60 * SECOND
    """How long a client may be connected before it joins."""
    knock: Instant = 5 * SECOND
    """How long another process may take to answer for the one who waits there."""
    quiet: Instant = 30 * SECOND
    """A client that nothing was heard of for so long is pinged."""
    quiet_paired: Instant = 10 * SECOND
    """The same of one whose peer would like to know that it is gone."""
    patience: Instant = 10 * SECOND
    """How long the answer to a ping may take."""


TEXTS: Final = {
    ErrorCode.BUSY: "two are connected under this name already; if one of them was you, before the "
    "network went away, try again in a few seconds",
    ErrorCode.UNKNOWN_NAME: "nobody waits under this number: such a code is good once, and for a "
    "while; ask for a new one",
    ErrorCode.EXPIRED: "nobody came in time; ask for a new code",
    ErrorCode.IDLE: "this connection was not used",
    ErrorCode.SLOW: "what was sent to this client was not read in time",
    ErrorCode.UNAVAILABLE: "the rendezvous cannot pair anybody at the moment; try again soon",
    ErrorCode.SHUTTING_DOWN: "the rendezvous is being stopped; connect again in a moment",
}
"""One text for each, so that no detail tells what must not be told."""


# What the driver does. ----------------------------------------------------------------------------


@dataclass(slots=True)
class Send:
    """Give this to a client."""

    client: int
    message: ServerMessage


@dataclass(slots=True)
class Ping:
    """Ask a client for a sign of life."""

    client: int


@dataclass(slots=True)
class End:
    """Close a client's connection after what was sent; the hall has forgotten it."""

    client: int
    code: int
    reason: str


@dataclass(slots=True)
class Claim:
    """Ask the book for a name (``None``: a one-time name); :meth:`Hall.claimed` has to follow."""

    client: int
    name: str | None


@dataclass(slots=True)
class Release:
    """Tell the book that a name is given up."""

    client: int
    name: str


@dataclass(slots=True)
class Post:
    """Carry a letter to the hall of the member that it is for."""

    letter: Letter


# What is told to logs and metrics.  A client is named by its hall's number for it; no name is in
# there, nor anything that two clients say to each other. ----------------------------------------


@dataclass(frozen=True, slots=True)
class Came:
    """A client has connected."""

    client: int
    address: str


@dataclass(frozen=True, slots=True)
class Met:
    """Two are a pair.  ``client`` is the one of this hall, ``peer`` the other in words."""

    client: int
    address: str
    peer: str
    waited: Instant


@dataclass(frozen=True, slots=True)
class Refused:
    """A client was told an error, and its connection ends."""

    client: int
    address: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Went:
    """A client is gone.  ``why`` in a word; what it had sent to its peer, ``lasted`` in all."""

    client: int
    address: str
    why: str
    lasted: Instant
    messages: int
    octets: int


Told: TypeAlias = Came | Met | Refused | Went
Output: TypeAlias = Send | Ping | End | Claim | Release | Post | Told


@dataclass(slots=True)
class Counts:
    """What a hall has counted since it began."""

    came: int = 0
    joins: Counter[str] = field(default_factory=Counter)
    """By what became of them: "waiting", "met", or the code of an error."""
    met: int = 0
    """Clients of this hall who were paired."""
    messages: int = 0
    """Handed over to clients of this hall."""
    octets: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Errors that clients were told, by code."""
    went: Counter[str] = field(default_factory=Counter)
    """Ends of connections, by why."""
    dropped: Counter[str] = field(default_factory=Counter)
    """What was not used, by reason."""
    pings: int = 0
