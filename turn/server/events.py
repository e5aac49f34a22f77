"""What the server machine tells of itself: for logs, metrics and accounting.

Events are values.  Those that come with every allocation are not frozen, for making a frozen one
takes three times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from stun.discovery import Transport
from stun.sansio import Address, Instant
from stun.server import CannotServe, Serving
from turn.meter import Usage


class EndReason(StrEnum):
    """Why an allocation ended."""

    REFRESHED_TO_ZERO = "the client deleted it"
    EXPIRED = "its lifetime ran out"
    CONNECTION_CLOSED = "the client's connection closed"
    DISCONNECTED = "the operator disconnected it"
    POLICY = "a new configuration does not allow it"
    RELAY_LOST = "the socket of its relayed transport address failed"
    SHUTDOWN = "the server stopped"


@dataclass(frozen=True, slots=True)
class Started:
    """Every listener has been decided: ``serving`` are open, ``failed`` could not be had."""

    serving: int
    failed: int


@dataclass(frozen=True, slots=True)
class Drained:
    """The server was told to take no new allocations, and the last one is gone."""


@dataclass(slots=True)
class AllocationCreated:
    """A client has relayed transport addresses."""

    session: str
    """Twelve characters that no other session has: log lines and the admin socket name it so."""
    username: str
    client: Address
    server: Address
    transport: Transport
    """Between the client and the server."""
    relayed: tuple[Address, ...]
    """As advertised to peers."""
    tcp: bool
    """Whether it relays TCP connections (RFC 6062) instead of datagrams."""
    lifetime: int
    """In seconds."""


@dataclass(slots=True)
class AllocationEnded:
    """An allocation is gone."""

    session: str
    username: str
    client: Address
    reason: EndReason
    duration: int
    """In nanoseconds."""
    usage: Usage


@dataclass(slots=True)
class RequestRefused:
    """A request got an error response.  Rate limited by the machine: at most some tens a second.

    401 without credentials is the start of every session and is not told, only counted.
    """

    client: Address
    method: int
    code: int
    detail: str
    session: str | None = None
    username: str | None = None


@dataclass(frozen=True, slots=True)
class LookUp:
    """The user store must be asked; see :meth:`turn.server.machine.Server.found`.

    ``userhash`` is set, and ``username`` empty, where only the hash is known.
    """

    username: str
    userhash: bytes | None = None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """An allocation as the admin socket shows it."""

    session: str
    username: str
    client: Address
    server: Address
    transport: Transport
    relayed: tuple[Address, ...]
    tcp: bool
    created: Instant
    expires: Instant
    permissions: tuple[str, ...]
    channels: tuple[tuple[int, Address], ...]
    connections: int
    usage: Usage


ServerEvent: TypeAlias = (
    Serving
    | CannotServe
    | Started
    | Drained
    | AllocationCreated
    | AllocationEnded
    | RequestRefused
    | LookUp
)

__all__ = [
    "AllocationCreated",
    "AllocationEnded",
    "CannotServe",
    "Drained",
    "EndReason",
    "LookUp",
    "RequestRefused",
    "ServerEvent",
    "Serving",
    "SessionInfo",
    "Started",
]
