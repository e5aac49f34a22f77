"""What a diagnosis says, as plain values.

:class:`Report` is what ``nattype.discover`` returns.  Its JSON form is :mod:`nattype.jsonform`, its
rendering for people :mod:`nattype.render`; nothing here does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from nattype.model import Allocation, Filtering, Hairpin, Mapping, NatType, Unsolicited
from stun.sansio import Address

SCHEMA = 1


class Outcome(StrEnum):
    """How one probe ended."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    INCONCLUSIVE = "inconclusive"
    SERVER_FAULT = "server fault"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that was tried and what came of it."""

    test: str
    """A stable name: ``udp.mapping``, ``udp.filtering``, ``tcp.simultaneous-open``, ..."""
    outcome: Outcome
    detail: str
    """One sentence for a person, with the addresses and counts it rests on."""
    at: float = 0.0
    """Seconds since the diagnosis began."""
    server: str | None = None
    """The server concerned, or at fault, as ``host:port``."""


@dataclass(frozen=True, slots=True)
class AllocationReport:
    """How external ports are chosen, and how well a prediction of the next ones did."""

    pattern: Allocation = Allocation.UNKNOWN
    delta: int | None = None
    """Step between successive ports when sequential, 0 when preserved."""
    confidence: float = 0.0
    """Hits per prediction, 0 to 1, of ports predicted before they were seen."""
    samples: tuple[tuple[int, int], ...] = ()
    """(local port, external port) in the order observed."""


@dataclass(frozen=True, slots=True)
class LifetimeReport:
    """Idle seconds that a mapping survives: the longest seen alive, the shortest seen dead."""

    alive: float | None = None
    dead: float | None = None


@dataclass(frozen=True, slots=True)
class UdpReport:
    """UDP through whatever is on the path, for one address family."""

    nat_type: NatType = NatType.INCONCLUSIVE
    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    allocation: AllocationReport = AllocationReport()
    hairpinning: Hairpin = Hairpin.UNKNOWN
    local_address: Address | None = None
    mapped_address: Address | None = None
    mapping_stable: bool | None = None
    """Whether the first mapping was still the same at the end."""
    mapping_depends_on_port_only: bool = False
    address_pooling_paired: bool | None = None
    """Whether all of this host's mappings show one external address (RFC 4787 REQ-2)."""
    remaps_after_inbound: bool | None = None
    """The inbound-first poison test: a peer that knocks first costs the mapping."""
    fragments: bool | None = None
    """Whether a datagram larger than the path's MTU arrives, both ways."""
    lifetime_one_shot: LifetimeReport | None = None
    lifetime_stream: LifetimeReport | None = None
    keepalive: float | None = None
    """Recommended seconds between keepalives; only with ``--lifetime``."""
    rtt: float | None = None
    """Smallest round trip to a server, seconds."""


@dataclass(frozen=True, slots=True)
class TcpReport:
    """TCP through whatever is on the path, for one address family."""

    nat_type: NatType = NatType.INCONCLUSIVE
    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    unsolicited: Unsolicited = Unsolicited.UNKNOWN
    """What a SYN from a stranger meets."""
    allocation: AllocationReport = AllocationReport()
    simultaneous_open: bool | None = None
    local_address: Address | None = None
    mapped_address: Address | None = None
    rtt: float | None = None


class Reach(StrEnum):
    """How a connection to a peer of some kind can be made."""

    DIRECT = "direct"
    PREDICTION = "port prediction"
    BIRTHDAY = "birthday probing"
    RELAY = "relay"
    NONE = "none"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PeerReach:
    """How peers of one kind can be reached."""

    udp: Reach
    tcp: Reach


@dataclass(frozen=True, slots=True)
class FamilyReport:
    """Everything found for one address family."""

    family: str
    """``ipv4`` or ``ipv6``."""
    udp: UdpReport | None
    tcp: TcpReport | None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole diagnosis."""

    verdict: str
    """The answer in plain words, one or two sentences."""
    family: str
    """The family that ``udp`` and ``tcp`` speak of: IPv4 when it was tried and reached a server."""
    udp: UdpReport | None
    tcp: TcpReport | None
    other_family: FamilyReport | None = None
    peers: dict[str, PeerReach] = field(default_factory=dict)
    """By the kind of peer: ``open``, ``full cone``, ``restricted cone``, ``port-restricted cone``,
    ``symmetric sequential``, ``symmetric``."""
    culprits: tuple[str, ...] = ()
    """Servers whose answers could not be trusted, each with why, as one sentence."""
    evidence: tuple[Evidence, ...] = ()
    servers: tuple[str, ...] = ()
    seconds: float = 0.0
    behind_nat: bool | None = None
    layers: int | None = None
    """Layers of NAT as far as they can be told; 2 when the LAN's or carrier's addresses show it."""

    @property
    def conclusive(self) -> bool:
        """Whether every protocol that was tried got a verdict.

        TCP filtering can be measured only with a server that dials back, which ordinary ones do
        not: beside a verdict for UDP, knowing the mapping of TCP is enough.
        """
        udp, tcp = self.udp, self.tcp
        if udp is None:
            return tcp is not None and tcp.nat_type is not NatType.INCONCLUSIVE
        if udp.nat_type is NatType.INCONCLUSIVE:
            return False
        return (
            tcp is None
            or tcp.nat_type is not NatType.INCONCLUSIVE
            or tcp.mapping is not Mapping.UNKNOWN
        )
