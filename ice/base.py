"""Bases: what an agent's packets leave from, and the paths that begin there.

A *base* (RFC 8445 section 5.1.1.1) is a socket of this host, an address of a relay, or a port that
connections are dialled from or accepted on.  A *path* is a base and the address of the other end.
Over UDP and through a relay's UDP address a path is simply there.  Over TCP it is a connection: it
has to be opened, and it may end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

from ice.candidate import Candidate, TcpType
from stun.sansio import Address, Cause

BaseId: TypeAlias = int


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """Where packets leave from.  There is one object for each, so it is compared by identity.

    ``address``: of the socket, or the relayed transport address.  ``relay``: the TURN server's
    URI in words, empty for a socket of this host.  ``network``: the interface, or whatever else
    tells which of this host's networks it uses.
    """

    id: BaseId
    stream: int
    component: int
    transport: Literal["udp", "tcp"]
    address: Address
    tcptype: TcpType | None = None
    relay: str = ""
    network: str = ""

    @property
    def is_reliable(self) -> bool:
        """Whether packets neither get lost nor need to be sent twice: whether it is TCP."""
        return self.transport == "tcp"

    @property
    def is_relayed(self) -> bool:
        """Whether it is an address of a TURN server."""
        return bool(self.relay)


# What the hub (everything that has sockets) tells. ------------------------------------------------


class Standing(Enum):
    """How a local candidate came to be."""

    GATHERED = "gathered"
    PREDICTED = "predicted"
    """Nobody has seen it yet: a port that the NAT is expected to give out."""
    MET = "met"
    """Of a socket that the peer has met by a check already, so there is nothing to tell it."""


@dataclass(frozen=True, slots=True)
class CandidateFound:
    """There is another local candidate.  ``server``: who told of it, empty for a host candidate."""

    candidate: Candidate
    base: Base
    server: str = ""
    standing: Standing = Standing.GATHERED


@dataclass(frozen=True, slots=True)
class CandidateNotFound:
    """A candidate that was sought and not had: at which server or address, and why not."""

    stream: int
    component: int
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class GatheringDone:
    """Every candidate of this generation has been found or given up."""


@dataclass(frozen=True, slots=True)
class PathOpened:
    """A TCP connection of a base is established: dialled, accepted, or simultaneously opened."""

    base: Base
    remote: Address


@dataclass(frozen=True, slots=True)
class PathClosed:
    """A TCP connection could not be opened, or ended."""

    base: Base
    remote: Address
    cause: Cause
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BaseLost:
    """A base is gone: its socket failed, its interface vanished, its allocation was lost."""

    base: Base
    why: str


@dataclass(frozen=True, slots=True)
class PathUnreachable:
    """An ICMP error came back for a packet of a UDP path.  ``mtu``: where it says so, else 0."""

    base: Base
    remote: Address
    icmp_type: int
    icmp_code: int
    mtu: int


@dataclass(frozen=True, slots=True)
class PathCongested:
    """The peer of a TCP path reads more slowly than is written; ``relieved``: not any more.

    What is written meanwhile is kept up to a limit; packets beyond it are dropped and counted.
    """

    base: Base
    remote: Address
    relieved: bool = False


@dataclass(frozen=True, slots=True)
class PathFound:
    """A check of the peer, ``data``, has come to a socket that has become a base by that.

    It follows the base's candidate, without which the check would mean nothing.
    """

    base: Base
    remote: Address
    data: bytes


HubEvent: TypeAlias = (
    CandidateFound
    | CandidateNotFound
    | GatheringDone
    | PathOpened
    | PathClosed
    | BaseLost
    | PathUnreachable
    | PathCongested
    | PathFound
)
