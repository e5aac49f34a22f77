"""What becomes of one TURN server for one component: who competes for it, and who has won."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ice.base import Base
from ice.config import Server
from ice.gather.hostsocket import HostSocket, Spot
from stun.discovery import Target
from stun.sansio import Address, Handle, Instant
from turn.client.machine import Client


@dataclass(slots=True, eq=False)
class Contest:
    """Between the transport addresses of one server, for one spot."""

    spot: Spot
    socket: HostSocket | None
    server: Server
    rank: int
    targets: deque[Target]
    attempts: list[Relay] = field(default_factory=list)
    winner: Relay | None = None
    next: Instant | None = None
    is_waiting: bool = False
    """Whether a target waits for its turn at the pacer."""
    errors: list[str] = field(default_factory=list)

    @property
    def what(self) -> str:
        """What it is for, in words."""
        return f"relayed by {self.server.name} from {self.spot.interface.host}"

    @property
    def is_open(self) -> bool:
        """Whether it may still be won."""
        going = self.is_waiting or bool(self.attempts) or bool(self.targets)
        return self.winner is None and going


@dataclass(slots=True, eq=False)
class Relay:
    """An allocation, or the attempt to get one.  ``shared`` is its handle for the host's socket."""

    contest: Contest
    target: Target
    client: Client
    shared: Handle = 0
    socket: HostSocket | None = None
    local: Address | None = None
    """Of a UDP socket of its own."""
    bases: dict[bool, Base] = field(default_factory=dict)
    """By family: whether it is IPv6's.  A peer speaks with the relayed address of its own."""
    refused: set[str] = field(default_factory=set)
    """Hosts that the server will not relay to."""
    peers: set[Address] = field(default_factory=set)
    """Who has a permission, or a channel that is not there for much data."""
