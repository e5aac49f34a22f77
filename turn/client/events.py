"""What the client machine tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from stun.attributes import AddressError
from stun.discovery import Target
from stun.errors import Dropped, StunError
from stun.registry import Method
from stun.sansio import Address, Cause

Connection: TypeAlias = int
"""Names a relayed TCP connection (RFC 6062): a number of the client's, not the CONNECTION-ID."""


@dataclass(frozen=True, slots=True)
class Allocated:
    """There is a relayed transport address, or two.  Told again when one is made anew.

    ``relayed``: in the order in which the server named them; ``mapped``: what the server sees of
    this client (server-reflexive); ``lifetime`` in seconds; ``reservation_token``: what a second
    allocation takes the reserved port with.  ``refused``: of a dual allocation, the family that was
    not given and why (RFC 8656 section 7.3: after 440 it is not to be asked for again).
    """

    relayed: tuple[Address, ...]
    mapped: Address
    local: Address
    lifetime: int
    server: Target
    reservation_token: bytes | None = None
    refused: AddressError | None = None
    mobile: bool = False


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The allocation lives ``lifetime`` more seconds."""

    lifetime: int


@dataclass(frozen=True, slots=True)
class Moved:
    """The allocation goes on from another local address (RFC 8016)."""

    local: Address


@dataclass(frozen=True, slots=True)
class NotMoved:
    """It stays where it was, and why."""

    error: StunError


@dataclass(frozen=True, slots=True)
class Redirected:
    """The server named another one (300), which is asked now."""

    server: Target
    to: Target


@dataclass(frozen=True, slots=True)
class Permitted:
    """Peers at this IP address may send from now on."""

    host: str


@dataclass(frozen=True, slots=True)
class Bound:
    """Datagrams to and from ``peer`` go through a channel: four octets of overhead, not 36."""

    peer: Address
    channel: int


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """``method`` (CREATE_PERMISSION, CHANNEL_BIND, CONNECT, CONNECTION_BIND) failed for a peer."""

    peer: Address
    method: Method
    error: StunError
    connection: Connection | None = None


@dataclass(slots=True)
class Data:
    """A datagram that ``peer`` sent to the relayed address."""

    peer: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class PeerUnreachable:
    """An ICMP error came back to the server for what it relayed (RFC 8656 section 11.6).

    ``mtu``: of the next hop, where the error says so, else 0.
    """

    peer: Address
    icmp_type: int
    icmp_code: int
    mtu: int


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A TCP connection with a peer is established; ``incoming``: the peer opened it."""

    connection: Connection
    peer: Address
    incoming: bool


@dataclass(slots=True)
class PeerStream:
    """Octets that came on a relayed connection, cut anywhere."""

    connection: Connection
    data: bytes


@dataclass(frozen=True, slots=True)
class PeerCongested:
    """More waits for the peer than it reads; stop writing until it is ``relieved``."""

    connection: Connection
    relieved: bool = False


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """A relayed connection ended."""

    connection: Connection
    cause: Cause
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ServerCongested:
    """The connection to the server takes no more for now: datagrams are dropped, and counted."""

    relieved: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """The allocation is gone; ``again``: another one is being made."""

    error: StunError
    again: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no allocation and none is being made."""

    error: StunError


@dataclass(frozen=True, slots=True)
class Released:
    """The allocation was given back, and every socket is shut."""


ClientEvent: TypeAlias = (
    Allocated
    | Refreshed
    | Moved
    | NotMoved
    | Redirected
    | Permitted
    | Bound
    | PeerRefused
    | Data
    | PeerUnreachable
    | PeerConnected
    | PeerStream
    | PeerCongested
    | PeerClosed
    | ServerCongested
    | Lost
    | Failed
    | Released
    | Dropped
)
