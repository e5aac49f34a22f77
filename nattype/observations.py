"""What a diagnosis saw, as plain values: who was asked from where, and what came back.

Theory of operation.  The probe (:mod:`nattype.probe`) talks to servers and writes down what
happened without judging it; :mod:`nattype.classify` judges without talking.  These values are what
passes between them, so every verdict can be recomputed, explained and tested from them alone.
Times are nanoseconds since the diagnosis began.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from stun.sansio import Address, Cause, Instant


class Change(StrEnum):
    """From where a server was asked to answer (CHANGE-REQUEST, RFC 5780 section 7.2)."""

    NONE = "the address that was asked"
    PORT = "another port of the same address"
    BOTH = "another address and port"


@dataclass(frozen=True, slots=True)
class Asked:
    """One Binding exchange over UDP or TCP."""

    local: Address
    """The socket that asked."""
    server: Address
    """The transport address that was asked."""
    change: Change = Change.NONE
    expected: Address | None = None
    """Where an honest answer comes from; ``None`` when it is not known."""
    sends: int = 0
    source: Address | None = None
    """Where the answer came from; ``None`` when there was none."""
    mapped: Address | None = None
    """XOR-MAPPED-ADDRESS, or MAPPED-ADDRESS when the server sent no other."""
    plain_mapped: Address | None = None
    """MAPPED-ADDRESS, when the server sent both."""
    other: Address | None = None
    """OTHER-ADDRESS, or CHANGED-ADDRESS of RFC 3489."""
    software: str | None = None
    padding: int = 0
    """Octets of PADDING in the answer."""
    error: int | None = None
    """The code of an error response."""
    strange: Address | None = None
    """An address that answered this very request though nobody asked it."""
    icmp: int = 0
    """ICMP errors that came back for the requests."""
    arrived_at: Address | None = None
    """The local socket that got the answer, when it was not the one that asked."""
    rtt: int | None = None
    """Nanoseconds; ``None`` after a retransmission (Karn's algorithm)."""
    at: Instant = 0

    @property
    def answered(self) -> bool:
        """Whether a success response came from where it should."""
        return (
            self.source is not None
            and self.error is None
            and (self.expected is None or self.source == self.expected)
        )


@dataclass(frozen=True, slots=True)
class Challenge:
    """A request whose silence is an answer, and the control on the same socket after it.

    ``control`` is the plain request sent after a silence: answered, it proves that the socket, the
    path and the server were alive throughout.
    """

    asked: Asked
    control: Asked | None = None

    @property
    def positive(self) -> bool:
        """Whether the answer came from where it was asked for."""
        return self.asked.answered

    @property
    def negative(self) -> bool:
        """Whether there was silence, and proof that it was not the path's."""
        return (
            self.asked.source is None
            and self.asked.error is None
            and self.control is not None
            and self.control.answered
        )


@dataclass(frozen=True, slots=True)
class Contact:
    """The first exchange with one server over one protocol."""

    server: Address
    name: str
    """The server as the user gave it."""
    asked: Asked | None = None
    """The Binding exchange; ``None`` when no connection came about."""


@dataclass(frozen=True, slots=True)
class Dialled:
    """One attempt to open a TCP connection."""

    local: Address
    remote: Address
    connected: bool
    cause: Cause | None = None
    """Why not; :attr:`Cause.TIMED_OUT` too when the probe gave up first."""
    took: int = 0
    at: Instant = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """A port foretold, and the one that came.  ``predicted`` was fixed before ``seen``."""

    predicted: int
    seen: int | None


@dataclass(frozen=True, slots=True)
class Allocations:
    """External ports in the order in which their mappings were asked for."""

    asked: tuple[Asked, ...] = ()
    """Exchanges in the order of their first sends: fresh sockets to one server address, and one
    socket to several endpoints in between."""
    predictions: tuple[Prediction, ...] = ()


@dataclass(frozen=True, slots=True)
class FilteringRun:
    """UDP filtering: four challenges, each from a fresh socket that has asked A:p only."""

    first: tuple[Asked, ...] = ()
    """The plain requests that opened the sockets' mappings."""
    both: Challenge | None = None
    """Answer from B:q, never contacted."""
    port: Challenge | None = None
    """Answer from A:q, never contacted."""
    both_control: Challenge | None = None
    """Answer from B:q, contacted before: must arrive, or the server is no help."""
    port_control: Challenge | None = None
    """Answer from A:q, contacted before."""


@dataclass(frozen=True, slots=True)
class PoisonRun:
    """The socket that B:q knocked at, asking B:p and then B:q itself."""

    before: Asked
    elsewhere: Asked
    knocker: Asked


@dataclass(frozen=True, slots=True)
class HairpinRun:
    """Two sockets of this host, each sending to the other's mapped address."""

    mapped_a: Address
    mapped_b: Address
    local_a: Address
    local_b: Address
    sends: int
    seen: Address | None
    """The source that b saw on a's datagram; ``None`` when none came."""
    control: Asked | None
    at: Instant = 0


@dataclass(frozen=True, slots=True)
class LifetimeTrial:
    """A mapping left idle, then knocked at through the server."""

    stream: bool
    """Whether traffic went both ways for over two seconds before the silence."""
    idle: float
    """Seconds."""
    alive: bool | None
    """``None`` when the trial cannot be used: another external address, no control answer."""
    at: Instant = 0


@dataclass(frozen=True, slots=True)
class UdpObservations:
    """Everything seen over UDP."""

    local_host: str
    contacts: tuple[Contact, ...] = ()
    mapping: tuple[Asked, ...] = ()
    """All from one socket that never asked for a change: A:p, B:p, B:q, A:q; other servers."""
    last: Asked | None = None
    """A:p again from that socket, after everything else."""
    filtering: FilteringRun | None = None
    poison: PoisonRun | None = None
    hairpin: HairpinRun | None = None
    fragments: Challenge | None = None
    allocations: Allocations = Allocations()
    lifetimes: tuple[LifetimeTrial, ...] = ()
    tcp_alive: bool = False
    """Whether any of the servers answered over TCP."""
    strays: tuple[Address, ...] = ()
    """Who sent datagrams that answer none of the requests."""
    complete: bool = True
    """Whether the tests ran to their end within the time allowed."""


class BackKind(StrEnum):
    """From where a server was asked to connect back (the CONNECT-BACK attribute)."""

    SAME_ADDRESS = "a never-contacted port of the same address"
    OTHER_ADDRESS = "a never-contacted port of the other address"
    SIMULTANEOUS = "the port that this host is dialling at that moment"


@dataclass(frozen=True, slots=True)
class ConnectedBack:
    """One request to connect back, what the server reports, and what this host saw."""

    kind: BackKind
    local: Address
    server: Address
    granted: int = 0
    """Connections the server promised to dial; 0: it cannot help."""
    error: int | None = None
    established: int = 0
    refused: int = 0
    unreachable: int = 0
    timed_out: int = 0
    other: int = 0
    reported: bool = False
    """Whether the server's report came."""
    accepted_from: tuple[Address, ...] = ()
    """Who connected to this host's listener."""
    dialled: Dialled | None = None
    """This host's half of a simultaneous open."""
    at: Instant = 0


@dataclass(frozen=True, slots=True)
class TcpObservations:
    """Everything seen over TCP."""

    local_host: str
    contacts: tuple[Contact, ...] = ()
    dialled: tuple[Dialled, ...] = ()
    """Every attempt to connect to a server."""
    mapping: tuple[tuple[Asked, ...], ...] = ()
    """By local port: what the endpoints answered over connections that were open together."""
    back: tuple[ConnectedBack, ...] = ()
    allocations: Allocations = Allocations()
    udp_alive: tuple[Address, ...] = ()
    """Servers' addresses that answered over UDP."""
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the default router says of itself (RFC 6886, RFC 6887), asked without mapping."""

    router: Address
    protocol: str
    external: str | None = None
    at: Instant = 0


@dataclass(frozen=True, slots=True)
class Observations:
    """Everything seen for one address family."""

    family: str
    """``ipv4`` or ``ipv6``."""
    udp: UdpObservations | None
    tcp: TcpObservations | None
    primary: Address | None = None
    """A:p, the server that the tests used."""
    alternate: Address | None = None
    """B:q, as it advertised and as far as it could be used."""
    gateway: Gateway | None = None
    took: int = 0
