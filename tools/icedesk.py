"""Two agents' connectivity checks face to face on a desk: in memory, in virtual time.

A :class:`Desk` has two :class:`Side` objects, each with an :class:`ice.checks.Checker`, and a wire
between them that loses, delays and reorders as it is told::

    desk = Desk(seed=7, loss=0.1, delay=(5 * MILLISECOND, 80 * MILLISECOND))
    desk.a.host("10.0.0.1")
    desk.b.host("10.0.0.2")
    desk.exchange()
    desk.run(60 * SECOND)
    assert desk.a.selected() and desk.b.selected()

Sides may be behind a :class:`Nat`.  ``desk.tap`` sees, changes and drops what passes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import TypeAlias

from ice.base import Base
from ice.candidate import Candidate, CandidateType, TcpType
from ice.checks import Checker, CheckEvent, Nominated
from ice.config import Config, Credentials
from ice.pair import Pair
from ice.priority import candidate_priority, foundation
from stun.sansio import MILLISECOND, SECOND, Address, Cause, Instant

FOREVER: Instant = 1 << 62


@dataclass(slots=True)
class Packet:
    """What is on the wire: source and destination as seen there, behind any NAT of the sender."""

    source: Address
    destination: Address
    data: bytes
    reliable: bool = False


Tap: TypeAlias = Callable[[Packet], Iterable[Packet]]


class Nat:
    """A NAT before a side.

    ``symmetric``: another mapping for each destination.  ``filtering``: what is let in, ``"none"``
    (anything for a mapping), ``"address"`` or ``"port"`` (only from where was sent to).
    """

    def __init__(self, host: str, *, symmetric: bool = False, filtering: str = "port") -> None:
        self.host = host
        self._symmetric = symmetric
        self._filtering = filtering
        self._ports = count(20_000)
        self._mapped: dict[tuple[Address, Address | None], Address] = {}
        self._inside: dict[Address, Address] = {}
        self._sent: dict[Address, set[Address]] = {}

    def out(self, source: Address, destination: Address) -> Address:
        """Translate what leaves."""
        key = (source, destination if self._symmetric else None)
        outside = self._mapped.get(key)
        if outside is None:
            outside = self._mapped[key] = Address(self.host, next(self._ports))
            self._inside[outside] = source
        self._sent.setdefault(outside, set()).add(destination)
        return outside

    def into(self, source: Address, destination: Address) -> Address | None:
        """Translate what arrives; ``None``: it is filtered."""
        inside = self._inside.get(destination)
        if inside is None:
            return None
        sent = self._sent.get(destination, set())
        match self._filtering:
            case "port" if source not in sent:
                return None
            case "address" if source.host not in {to.host for to in sent}:
                return None
        return inside


@dataclass(slots=True)
class _Connection:
    """A TCP connection: each end's base, and the other end's address as it sees it."""

    ends: tuple[tuple[Side, Base, Address], tuple[Side, Base, Address]]
    busy_until: list[Instant] = field(default_factory=lambda: [0, 0])


class Side:
    """One agent's checks, its bases, and what it has told."""

    def __init__(
        self, desk: Desk, name: str, config: Config, *, controlling: bool, nat: Nat | None
    ) -> None:
        self.desk = desk
        self.name = name
        self.config = config
        self.nat = nat
        self.rng = random.Random(f"{desk.seed}/{name}")
        self.checker = Checker(
            config,
            controlling=controlling,
            entropy=self.rng.randbytes,
            send=self._send,
            open_path=self._open_path,
        )
        self.generation = 0
        self.credentials = self._new_credentials()
        self.checker.set_local(self.credentials)
        self.events: list[tuple[Instant, CheckEvent]] = []
        self.local: list[tuple[Candidate, Base]] = []
        self.bases: dict[Address, Base] = {}
        self.connections: dict[tuple[Base, Address], _Connection] = {}
        self.sent = 0
        self._ids = count(1)
        self._ports = count(5000)

    def _new_credentials(self) -> Credentials:
        self.generation += 1
        name = f"{self.name}{self.generation:03}"
        return Credentials(name * 2, name * 6)

    @property
    def peer(self) -> Side:
        """The other side."""
        return self.desk.b if self is self.desk.a else self.desk.a

    # What there is. -------------------------------------------------------------------------------

    def host(
        self,
        host: str,
        port: int | None = None,
        *,
        component: int = 1,
        stream: int = 0,
        tcptype: TcpType | None = None,
        preference: int = 65535,
    ) -> Base:
        """Add a base of this host and its candidate; told to the peer by :meth:`Desk.exchange`."""
        port = next(self._ports) if port is None else port
        at = Address(host, port)
        base = self._base(at, component, stream, tcptype)
        told = replace_port(at, 9) if tcptype is TcpType.ACTIVE else at
        self._candidate(CandidateType.HOST, told, base, preference)
        if tcptype is not TcpType.ACTIVE:
            self.bases[at] = base
        return base

    def reflexive(self, base: Base, preference: int = 65535) -> Candidate:
        """Add the server-reflexive candidate that the NAT gives a base."""
        assert self.nat is not None
        server = Address("192.0.2.250", 3478)
        at = self.nat.out(base.address, server)
        return self._candidate(CandidateType.SERVER_REFLEXIVE, at, base, preference)

    def relayed(self, host: str, *, component: int = 1, stream: int = 0) -> Base:
        """Add a base at a relay, which anybody can reach."""
        at = Address(host, next(self._ports))
        base = self._base(at, component, stream, None, relay="turn:relay.example")
        self.bases[at] = base
        self._candidate(CandidateType.RELAYED, at, base, 65535)
        return base

    def _base(
        self, at: Address, component: int, stream: int, tcptype: TcpType | None, relay: str = ""
    ) -> Base:
        transport = "udp" if tcptype is None else "tcp"
        number = next(self._ids)
        return Base(number, stream, component, transport, at, tcptype, relay)  # type: ignore[arg-type]

    def _candidate(
        self, kind: CandidateType, at: Address, base: Base, preference: int
    ) -> Candidate:
        server = "192.0.2.250" if kind is CandidateType.SERVER_REFLEXIVE else ""
        candidate = Candidate(
            foundation(kind, base.address.host, server, base.transport),
            base.component,
            base.transport,
            candidate_priority(kind, base.component, preference, base.tcptype),
            *at,
            kind,
            tcptype=base.tcptype,
        )
        self.local.append((candidate, base))
        self.checker.add_local(candidate, base, self.desk.now)
        return candidate

    # The wire. ------------------------------------------------------------------------------------

    def _send(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        assert now == self.desk.now
        self.sent += 1
        if base.is_reliable:
            connection = self.connections.get((base, remote))
            if connection is not None:
                self.desk.carry(connection, self, base, data)
            return
        source = base.address
        if self.nat is not None and not base.is_relayed:
            source = self.nat.out(source, remote)
        self.desk.post(Packet(source, remote, data))

    def deliver(self, packet: Packet) -> bool:
        """Take a packet of the wire if it is for this side."""
        destination = packet.destination
        base = self.bases.get(destination)
        if base is None and self.nat is not None:
            inside = self.nat.into(packet.source, destination)
            base = None if inside is None else self.bases.get(inside)
        elif base is not None and self.nat is not None and not base.is_relayed:
            # A private address behind a NAT: nobody outside has a way to it.
            return False
        if base is None:
            return False
        self.checker.stun(base, packet.source, packet.data, self.desk.now)
        self.drain()
        return True

    def _open_path(self, base: Base, remote: Address, _: Instant) -> None:
        self.desk.after(self.desk.latency(), lambda: self.desk.connect(self, base, remote))

    # Commands. ------------------------------------------------------------------------------------

    def learn(self, *, trickle: Instant = 0, end: bool = True) -> None:
        """Take credentials and candidates of the peer, these ``trickle`` nanoseconds apart."""
        peer, desk = self.peer, self.desk
        self.checker.set_remote(peer.credentials, peer.config.lite, desk.now)
        mine, theirs = self.generation, peer.generation
        for place, (candidate, base) in enumerate(peer.local):
            if trickle:
                desk.after(
                    trickle * place,
                    lambda c=candidate, b=base: self._told(c, b.stream, mine, theirs),  # type: ignore[misc]
                )
            else:
                self.checker.add_remote(candidate, base.stream, desk.now)
        if end:
            desk.after(trickle * len(peer.local), lambda: self._ended(mine, theirs))
        self.drain()

    def _told(self, candidate: Candidate, stream: int, mine: int, theirs: int) -> None:
        if (mine, theirs) == (self.generation, self.peer.generation):
            self.checker.add_remote(candidate, stream, self.desk.now)
            self.drain()

    def _ended(self, mine: int, theirs: int) -> None:
        if (mine, theirs) == (self.generation, self.peer.generation):
            self.checker.end_of_local(self.desk.now)
            self.checker.end_of_remote(self.desk.now)
            self.drain()

    def restart(self) -> None:
        """Begin a new generation with the same candidates."""
        self.credentials = self._new_credentials()
        self.checker.restart(self.credentials, self.desk.now)
        for candidate, base in self.local:
            self.checker.add_local(candidate, base, self.desk.now)

    def drain(self) -> None:
        """Keep the checker's events, with their time."""
        while (event := self.checker.poll()) is not None:
            self.events.append((self.desk.now, event))

    # What came of it. -----------------------------------------------------------------------------

    def told(self, kind: type[CheckEvent]) -> list[CheckEvent]:
        """Return the events of a kind."""
        return [event for _, event in self.events if isinstance(event, kind)]

    def keep(self, interval: Instant) -> None:
        """Ask for consent on the selected pairs from now on, as an agent does (RFC 7675)."""
        for stream in range(self.config.streams):
            for component in range(1, self.config.components + 1):
                pair = self.selected(component, stream)
                if pair is not None:
                    self.checker.probe(pair, self.desk.now)
        self.drain()
        self.desk.after(interval, lambda: self.keep(interval))

    def selected(self, component: int = 1, stream: int = 0) -> Pair | None:
        """Return the selected pair of a component."""
        return self.checker.selected(stream, component)

    def nominated_at(self) -> Instant | None:
        """Return when the first pair was nominated."""
        return next((at for at, event in self.events if isinstance(event, Nominated)), None)

    @property
    def drops(self) -> Counter[str]:
        """What the checker has dropped."""
        return Counter({reason.name: n for reason, n in self.checker.drops.items()})


class Desk:
    """Two sides and the wire.  ``delay``: the least and the most one-way delay, in nanoseconds."""

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        delay: tuple[int, int] = (10 * MILLISECOND, 10 * MILLISECOND),
        config: Config | None = None,
        config_b: Config | None = None,
        controlling: tuple[bool, bool] = (True, False),
        nats: tuple[Nat | None, Nat | None] = (None, None),
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.loss = loss
        self.delay = delay
        self.now: Instant = 1 * SECOND
        self.tap: Tap = lambda packet: (packet,)
        self.blocked: set[tuple[str, str]] = set()
        """(source host, destination host) on the wire between which nothing passes."""
        self._queue: list[tuple[Instant, int, Callable[[], None]]] = []
        self._numbers = count()
        config = config or Config()
        self.a = Side(self, "alfa", config, controlling=controlling[0], nat=nats[0])
        self.b = Side(self, "bravo", config_b or config, controlling=controlling[1], nat=nats[1])

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both."""
        return self.a, self.b

    def exchange(self, *, skew: Instant = 0, trickle: Instant = 0, end: bool = True) -> None:
        """Tell each side what the other one has; the second is told ``skew`` later."""
        self.b.learn(trickle=trickle, end=end)
        if skew:
            self.after(skew, lambda: self.a.learn(trickle=trickle, end=end))
        else:
            self.a.learn(trickle=trickle, end=end)

    # The wire. ------------------------------------------------------------------------------------

    def after(self, delay: Instant, what: Callable[[], None]) -> None:
        """Have something done later."""
        heappush(self._queue, (self.now + delay, next(self._numbers), what))

    def latency(self) -> int:
        """Draw a one-way delay."""
        return self.rng.randint(*self.delay)

    def post(self, packet: Packet) -> None:
        """Put a datagram on the wire."""
        for each in self.tap(packet):
            hosts = (each.source.host, each.destination.host)
            if hosts in self.blocked or self.rng.random() < self.loss:
                continue
            self.after(self.latency(), lambda p=each: self.arrive(p))  # type: ignore[misc]

    def arrive(self, packet: Packet) -> None:
        """Have a packet come out of the wire."""
        if not self.a.deliver(packet):
            self.b.deliver(packet)

    def connect(self, side: Side, base: Base, remote: Address) -> None:
        """Do what a SYN does."""
        peer = side.peer
        source = base.address
        if base.tcptype is TcpType.ACTIVE:
            source = replace_port(source, self.rng.randint(30_000, 60_000))
        if side.nat is not None:
            source = side.nat.out(source, remote)
        if (base, remote) in side.connections:
            side.checker.path_opened(base, remote, self.now)
            side.drain()
            return
        target = peer.bases.get(remote)
        if peer.nat is not None:
            inside = peer.nat.into(source, remote)
            target = None if inside is None else peer.bases.get(inside)
        if (source.host, remote.host) in self.blocked:
            return
        if target is None or not target.is_reliable:
            side.checker.path_closed(base, remote, Cause.REFUSED, self.now)
            side.drain()
            return
        connection = _Connection(((side, base, remote), (peer, target, source)))
        for each, local, far in connection.ends:
            each.connections[local, far] = connection
            each.checker.path_opened(local, far, self.now)
            each.drain()

    def carry(self, connection: _Connection, side: Side, base: Base, data: bytes) -> None:
        """Carry a packet of a connection: nothing is lost, and the order is kept."""
        place = 0 if connection.ends[0][:2] == (side, base) else 1
        peer, target, far = connection.ends[1 - place]
        at = max(self.now + self.latency(), connection.busy_until[place])
        connection.busy_until[place] = at

        def arrive() -> None:
            if peer.connections.get((target, far)) is connection:
                peer.checker.stun(target, far, data, self.now)
                peer.drain()

        self.after(at - self.now, arrive)

    def cut(self, connection: _Connection) -> None:
        """End a connection on both sides."""
        for side, base, far in connection.ends:
            del side.connections[base, far]
            side.checker.path_closed(base, far, Cause.RESET, self.now)
            side.drain()

    # Time. ----------------------------------------------------------------------------------------

    def run(
        self, duration: Instant = 60 * SECOND, *, until: Callable[[], bool] | None = None
    ) -> bool:
        """Let time pass until nothing is left to do; whether ``until`` came true."""
        end = self.now + duration
        while until is None or not until():
            times = [side.checker.deadline() for side in self.sides]
            due = min((at for at in times if at is not None), default=FOREVER)
            wire = self._queue[0][0] if self._queue else FOREVER
            at = max(self.now, min(due, wire))
            if at > end:
                self.now = end if at == FOREVER or at > end else self.now
                return False
            self.now = at
            if wire <= due:
                heappop(self._queue)[2]()
            else:
                for side, time in zip(self.sides, times, strict=True):
                    if time is not None and time <= at:
                        side.checker.on_deadline(at)
                        side.drain()
        return True

    @property
    def agreed(self) -> bool:
        """Whether both sides have selected the two ends of one path, for every component."""
        return all(
            self.same_path(self.a.selected(component, stream), self.b.selected(component, stream))
            for stream in range(self.a.config.streams)
            for component in range(1, self.a.config.components + 1)
        )

    @staticmethod
    def same_path(one: Pair | None, other: Pair | None) -> bool:
        """Whether two pairs, one of each side, are the same: what one sees is the other's base."""
        if one is None or other is None:
            return False
        ends = []
        for pair in (one, other):
            mapped = pair.mapped
            seen = pair.base.address if mapped is None else mapped.address
            ends.append((seen, pair.remote_address))
        return ends[0] == ends[1][::-1]


def replace_port(address: Address, port: int) -> Address:
    """Return the address with another port."""
    return address._replace(port=port)
