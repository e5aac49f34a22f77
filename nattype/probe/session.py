"""What the tests of one address family share: the bench, the servers, and what was seen so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nattype.honesty import fault_of_mapped
from nattype.observations import (
    Allocations,
    Asked,
    Challenge,
    ConnectedBack,
    Contact,
    Dialled,
    FilteringRun,
    Gateway,
    HairpinRun,
    LifetimeTrial,
    Observations,
    PoisonRun,
    Prediction,
    TcpObservations,
    UdpObservations,
)
from nattype.probe.bench import Bench
from nattype.probe.pace import Pace
from nattype.probe.strand import Strands, Wait
from stun.sansio import Address


@dataclass(frozen=True, slots=True)
class Server:
    """A server to ask: its transport address, and what the user called it."""

    address: Address
    name: str


@dataclass(frozen=True, slots=True)
class Quad:
    """The four transport addresses of an RFC 5780 server: A:p, A:q, B:p, B:q."""

    primary: Address
    alternate: Address

    @property
    def same_address(self) -> Address:
        """A:q, the primary address with the other port."""
        return Address(self.primary.host, self.alternate.port)

    @property
    def same_port(self) -> Address:
        """B:p, the other address with the primary port."""
        return Address(self.alternate.host, self.primary.port)


@dataclass(slots=True)
class UdpNotes:
    """UDP observations while they are being made."""

    contacts: list[Contact] = field(default_factory=list)
    mapping: list[Asked] = field(default_factory=list)
    last: Asked | None = None
    first: list[Asked] = field(default_factory=list)
    both: Challenge | None = None
    port: Challenge | None = None
    both_control: Challenge | None = None
    port_control: Challenge | None = None
    poison: PoisonRun | None = None
    hairpin: HairpinRun | None = None
    fragments: Challenge | None = None
    ordered: list[Asked] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    lifetimes: list[LifetimeTrial] = field(default_factory=list)
    complete: bool = False

    def first_of(self, local: Address) -> Asked | None:
        """Return the exchange that opened this socket's mapping."""
        return next((asked for asked in self.first if asked.local == local), None)


@dataclass(slots=True)
class TcpNotes:
    """TCP observations while they are being made."""

    contacts: list[Contact] = field(default_factory=list)
    dialled: list[Dialled] = field(default_factory=list)
    mapping: dict[int, list[Asked]] = field(default_factory=dict)
    back: list[ConnectedBack] = field(default_factory=list)
    ordered: list[Asked] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    complete: bool = False


class Lock:
    """Lets one strand at a time in, in the order of asking."""

    def __init__(self, strands: Strands) -> None:
        self._strands = strands
        self._holder: Wait[None] | None = None

    async def __aenter__(self) -> None:
        while self._holder is not None:
            await self._holder
        self._holder = Wait()

    async def __aexit__(self, *_: object) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.set(None)


class Session:
    """One family's diagnosis under way."""

    def __init__(
        self,
        bench: Bench,
        family: str,
        servers: tuple[Server, ...],
        step: Callable[[str], None],
    ) -> None:
        self.bench = bench
        self.strands = bench.strands
        self.family = family
        self.servers = servers
        self.step = step
        self.udp = UdpNotes()
        self.tcp = TcpNotes()
        self.quad: Quad | None = None
        self.server: Address | None = None
        self.router: str | None = None
        self.gateway: Gateway | None = None
        self.alive_over_udp: dict[Address, None] = {}
        self.alive_over_tcp: dict[Address, None] = {}
        self.allocating = Lock(self.strands)
        """Held while ports are being counted: a mapping made meanwhile would look like noise."""
        self._rtt = 0
        self._stream_rtt = 0

    @property
    def pace(self) -> Pace:
        """The timing, as the round trips measured so far have it."""
        rtt = self._rtt or self._stream_rtt
        return Pace(rtt) if rtt else Pace()

    def note_rtt(self, asked: Asked) -> None:
        """Learn from an answer how far the servers are; the farthest one sets the pace."""
        if asked.rtt is not None:
            self._rtt = max(self._rtt, asked.rtt)

    def note_stream_rtt(self, asked: Asked) -> None:
        """Learn from an answer over TCP, where no datagram has told.

        What TCP had to send again takes a second or more, and nobody says so; the quickest exchange
        is the one of which nothing was lost.
        """
        if asked.rtt is not None:
            self._stream_rtt = min(self._stream_rtt or asked.rtt, asked.rtt)

    def sound(self, asked: Asked) -> bool:
        """Whether an exchange gave a mapped address that can be used."""
        return asked.answered and fault_of_mapped(asked) is None

    def freeze(self, *, udp: bool, tcp: bool) -> Observations:
        """Return what was seen so far as a value."""
        u, t = self.udp, self.tcp
        filtering = FilteringRun(tuple(u.first), u.both, u.port, u.both_control, u.port_control)
        asked_for_change = any((u.both, u.port, u.both_control, u.port_control))
        return Observations(
            family=self.family,
            udp=UdpObservations(
                local_host=self.bench.host,
                contacts=tuple(u.contacts),
                mapping=tuple(u.mapping),
                last=u.last,
                filtering=filtering if asked_for_change else None,
                poison=u.poison,
                hairpin=u.hairpin,
                fragments=u.fragments,
                allocations=Allocations(tuple(u.ordered), tuple(u.predictions)),
                lifetimes=tuple(u.lifetimes),
                tcp_alive=bool(self.alive_over_tcp),
                strays=tuple(self.bench.strays),
                complete=u.complete,
            )
            if udp
            else None,
            tcp=TcpObservations(
                local_host=self.bench.host,
                contacts=tuple(t.contacts),
                dialled=tuple(t.dialled),
                mapping=tuple(tuple(asked) for asked in t.mapping.values()),
                back=tuple(t.back),
                allocations=Allocations(tuple(t.ordered), tuple(t.predictions)),
                udp_alive=tuple(self.alive_over_udp),
                complete=t.complete,
            )
            if tcp
            else None,
            primary=self.server,
            alternate=self.quad.alternate if self.quad is not None else None,
            gateway=self.gateway,
            took=self.strands.now - self.bench.started,
        )
