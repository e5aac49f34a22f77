"""What a relay server is told: plain values, made by :mod:`turn.daemon.plan` of settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from stun.discovery import Transport
from stun.sansio import SECOND, Address
from turn.server.policy import PeerPolicy

DEFAULT_PORTS: Final = (49152, 65535)
"""RFC 8656 section 7.2: "the range 49152 - 65535 (the Dynamic and/or Private Port range)"."""


@dataclass(frozen=True, slots=True)
class ListenAt:
    """Where clients come to.

    With UDP and TCP, ``detect`` also takes DTLS and TLS clients, told apart by their first octet;
    the driver has the certificate.  ``proxied``: connections come through a proxy that names the
    client (the PROXY protocol).  ``advertised`` is the address as clients see it, behind a
    one-to-one NAT.
    """

    transport: Transport
    local: Address
    detect: bool = False
    proxied: bool = False
    advertised: Address | None = None


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """A host that relayed transport addresses are opened on, and the host that peers see."""

    local: str
    advertised: str

    @property
    def is_ipv6(self) -> bool:
        """Whether relayed transport addresses on it are IPv6."""
        return ":" in self.local


@dataclass(frozen=True, slots=True)
class Limits:
    """What one user, one client address and the server as a whole may have; 0 is no limit.

    A client address is an IPv4 host or an IPv6 /64.  Rates are of payload relayed, both ways
    together.
    """

    allocations: int = 50_000
    allocations_per_user: int = 200
    allocations_per_client: int = 200
    permissions_per_allocation: int = 64
    channels_per_allocation: int = 64
    tcp_connections_per_allocation: int = 32
    octets_per_second_per_user: int = 12_500_000
    octets_per_second_per_client: int = 12_500_000
    packets_per_second_per_user: int = 25_000
    packets_per_second_per_client: int = 25_000
    connections: int = 10_000
    """Connections of clients (TCP, TLS, DTLS) in all."""
    connections_per_client: int = 200
    requests_per_second_per_client: int = 2_000
    """Requests that a client address may have handled before it must prove who it is."""
    unverified_burst: int = 16_384
    """Octets that an address prefix may be sent beyond what came from it, without proof."""
    unverified_refill: int = 1_024
    """Octets a second by which that burst fills up again."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything that the server machine decides by.  Durations are nanoseconds."""

    listeners: tuple[ListenAt, ...]
    relays: tuple[RelayAddress, ...]
    realm: str
    policy: PeerPolicy
    ports: tuple[int, int] = DEFAULT_PORTS
    limits: Limits = field(default_factory=Limits)
    software: str | None = None
    fingerprint: bool | None = None
    """FINGERPRINT in responses: always, never, or (``None``) where the request has it."""
    default_lifetime: int = 600 * SECOND
    max_lifetime: int = 3600 * SECOND
    alternates: tuple[Address, ...] = ()
    """Servers that unallocated clients are sent to with 300 (Try Alternate), in turn."""
    discovery: tuple[tuple[Address, Address], ...] = ()
    """For RFC 5780, one a family: (primary, alternate) addresses.  They are listeners as well."""
    mobility: bool = True
    tcp_relay: bool = True
    anonymous: bool = False
    """Ask clients for USERHASH instead of USERNAME (RFC 8489 section 9.2)."""
    sha256: bool = True
    """Offer PASSWORD-ALGORITHMS with SHA-256 in challenges (RFC 8489 section 9.2.1)."""
    idle: int = 60 * SECOND
    """A connection without an allocation is closed after this long without a request."""
    spares: int = 0
    """Relayed transport addresses that are kept open for the next clients."""
    offload: bool = False
    """Queue :class:`turn.dataplane.base.InstallRoute` for a data plane."""
