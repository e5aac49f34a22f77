"""The TCP part of the hub: which candidates there are, and which part of it does what.

For each address of the host, stream and component there are three kinds of base (RFC 6544 section
5.1): one that dials from any port (active), one port that listens (passive), and ports that listen
and are dialled from at the same time (simultaneous open).  The last two are asked STUN servers
about, whose answers are server-reflexive candidates; what they tell of the address makes an active
one as well, so that the peer's relays know whom to let in ("some techniques require knowing the IP
address of the peer's active candidates beforehand", section 5.2).

:mod:`ice.tcp.ports` opens ports, :mod:`ice.tcp.reflexive` asks STUN servers,
:mod:`ice.tcp.attempts` opens connections, :mod:`ice.tcp.connections` has those that are open, and
:mod:`ice.tcp.relays` is RFC 6062.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ice.base import Base, BaseId, BaseLost, PathClosed, PathOpened, Standing
from ice.candidate import TcpType
from ice.config import Config, Interface, Policy, Server
from ice.gather.book import DISCARD, Book
from ice.gather.pacer import Pacer
from ice.gather.patience import Patience
from ice.tcp.attempts import Attempts
from ice.tcp.connections import Connections, Deliver
from ice.tcp.ports import Place, Port, PortEvents
from ice.tcp.reflexive import Mappings, Query
from ice.tcp.relays import Relay, RelayEvents, targets
from ice.tcp.switchboard import Queue, Switchboard
from stun.errors import DropReason
from stun.sansio import (
    Accepted,
    Address,
    Cause,
    Entropy,
    Handle,
    Instant,
    SocketEvent,
    Undeliverable,
)

MOST_EXPECTED: Final = 256
"""Hosts of the peer that are remembered."""


class TcpPart:
    """Everything of a hub that is TCP.

    It is no machine of its own: orders and events go to the hub's ``queue``, sockets and bases are
    numbered by the hub's ``handles`` and ``ids``, candidates are entered in its ``book``,
    transactions with servers wait for their turn at its ``pacer``, and what is dropped is counted
    in its ``drops``.  ``deliver(base, remote, data, now)`` is given every packet of a connection,
    without its framing.  ``controlling`` says whether this agent controls at the moment.
    """

    __slots__ = (
        "_active", "_adopted", "_attempts", "_book", "_config", "_entropy", "_expected", "_handles",
        "_ids", "_mappings", "_pacer", "_patience", "_port_events", "_ports", "_queue", "_relays",
        "_servers", "board", "connections", "drops", "send",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        queue: Queue,
        *,
        handles: Iterator[Handle],
        ids: Iterator[BaseId],
        deliver: Deliver,
        entropy: Entropy,
        drops: Counter[DropReason],
        book: Book,
        pacer: Pacer,
        patience: Patience,
        controlling: Callable[[], bool],
    ) -> None:
        self._config = config
        self._queue = queue
        self._handles = handles
        self._ids = ids
        self._entropy = entropy
        self.drops = drops
        self._book = book
        self._pacer = pacer
        self._patience = patience
        self.board = board = Switchboard(queue, handles)
        self.connections = Connections(board, deliver=deliver, drops=drops, controlling=controlling)
        self._attempts = Attempts(
            board,
            self.connections,
            patience=config.ti,
            entropy=entropy,
            most=config.tcp_attempts,
            low_ttl=config.low_ttl_first,
        )
        self.connections.reopen = self._attempts.start
        self._mappings: Mappings | None = None
        self._active: dict[Place, Base] = {}
        self._adopted: list[Base] = []
        """The ports of connections that others have brought about."""
        self._ports: dict[Port, None] = {}
        self._port_events = PortEvents(self._opened, self._not_opened, self._accepted)
        self._relays: dict[tuple[Place, str], Relay] = {}
        self._servers: tuple[Server, ...] = ()
        self._expected: dict[str, None] = {}
        self.send = self.connections.send
        """``send(base, remote, data, now) -> bool``: send a packet; whether it was taken.

        Else it is counted why not: there is no connection, or its peer reads more slowly than is
        written (``PathCongested`` tells when that begins and ends), or it is longer than 65535.
        """

    # Gathering. -----------------------------------------------------------------------------------

    def gather(
        self, interfaces: Sequence[Interface], servers: Sequence[Server], now: Instant
    ) -> None:
        """Look for candidates: ``CandidateFound`` and ``CandidateNotFound`` as they come.

        Called again it looks for what is new, keeps what is there without telling it again, and
        tells ``BaseLost`` for the bases of interfaces that are gone.  What :meth:`retain` or
        :meth:`release` gave up is looked for anew.  STUN servers are asked over TCP whatever their
        URIs say; TURN servers are asked for relayed TCP as well if ``config.relay_tcp``.
        """
        self._servers = tuple(servers)
        hosts = {interface.host for interface in interfaces}
        for base in [*self._host_bases()]:
            if base.address.host not in hosts:
                self._lose(base, "its address is gone", now)
        for relay in [r for r in self._relays.values() if r.place.interface.host not in hosts]:
            self._give_up_relay(relay, "the address that it was reached from is gone", now)
        config = self._config
        for interface in interfaces:
            for stream in range(config.streams):
                for component in range(1, config.components + 1):
                    place = Place(interface, stream, component)
                    if config.policy is not Policy.RELAY:
                        self._gather_host(place)
                    if config.relay_tcp and not config.lite:
                        self._gather_relayed(place)
        for port in self._ports:
            self._ask(port)

    def _gather_host(self, place: Place) -> None:
        config = self._config
        there = [port.tcptype for port in self._ports if _same(port.place, place)]
        wanted = [TcpType.PASSIVE]
        if not config.lite:
            # RFC 6544 section 4.4: lite has "only passive host candidates".
            wanted += [TcpType.SIMULTANEOUS_OPEN] * config.simultaneous_open
            if not any(_same(active, place) for active in self._active):
                base = place.base(next(self._ids), DISCARD, TcpType.ACTIVE)
                self._active[place] = base
                self._book.host(base, place.interface)
        for tcptype in wanted:
            if tcptype in there:
                there.remove(tcptype)
                continue
            port = Port(
                self.board,
                self._port_events,
                place,
                tcptype,
                ports=config.ports,
                entropy=self._entropy,
            )
            self._ports[port] = None

    def _gather_relayed(self, place: Place) -> None:
        for rank, server in enumerate(self._servers):
            known = any(_same(where, place) for where, name in self._relays if name == server.name)
            if known or not server.turn or not targets(server, place.interface.host):
                continue
            relay = Relay(
                self._config,
                self.board,
                self.connections,
                RelayEvents(self._allocated, self._not_allocated),
                place=place,
                server=server,
                rank=rank,
                ids=self._ids,
                handles=self._handles,
                drops=self.drops,
                entropy=self._entropy,
            )
            self._relays[place, server.name] = relay
            self._pacer.add(relay.start)

    def _ask(self, port: Port) -> None:
        """Ask servers what they see a port as."""
        if port.base is None or self._config.lite or not self._servers:
            return
        if self._mappings is None:
            self._mappings = Mappings(
                self._config,
                self.board,
                self._pacer,
                self._patience,
                found=self._mapped,
                not_found=self._not_mapped,
                drops=self.drops,
                entropy=self._entropy,
            )
        self._mappings.ask(port, enumerate(self._servers))

    @property
    def gathering(self) -> bool:
        """Whether a candidate may still come."""
        return (
            any(port.base is None for port in self._ports)
            or (self._mappings is not None and self._mappings.is_busy)
            or any(relay.is_busy for relay in self._relays.values())
        )

    def give_up(self, why: str) -> None:
        """Wait for no more server-reflexive candidates; a relay is waited for as long as it takes.

        That is ``config.gather_timeout``, as for all servers.
        """
        if self._mappings is not None:
            self._mappings.give_up(why)

    # What gathering finds. ------------------------------------------------------------------------

    def _opened(self, port: Port, local: Address, _now: Instant) -> None:
        if port.base is None:
            port.base = port.place.base(next(self._ids), local.port, port.tcptype)
            self._book.host(port.base, port.place.interface)
            self._ask(port)

    def _not_opened(self, port: Port, why: str, now: Instant) -> None:
        place = port.place
        if port.base is not None:
            self._lose(port.base, why, now)
            return
        self._ports.pop(port, None)
        what = f"TCP {port.tcptype} host on {place.interface.host}"
        self._book.missing(place.stream, place.component, what, why)

    def _mapped(self, query: Query, mapped: Address) -> None:
        port = query.port
        if port.base is None:
            return
        interface = port.place.interface
        self._book.reflexive(port.base, interface, mapped, query.source)
        active = next((b for p, b in self._active.items() if _same(p, port.place)), None)
        if active is not None:
            place = Address(mapped.host, DISCARD)
            self._book.reflexive(active, interface, place, query.source)

    def _not_mapped(self, query: Query, why: str) -> None:
        place = query.port.place
        self._book.missing(place.stream, place.component, query.what, why)

    def _allocated(self, relay: Relay, mapped: Address, now: Instant) -> None:
        self._patience.answered(now)
        for base in relay.bases:
            self._book.relayed(base, relay.place.interface, mapped, relay.source)
        relay.permit([*self._expected], now)

    def _not_allocated(self, relay: Relay, why: str) -> None:
        self._relays.pop((relay.place, relay.server.name), None)
        place = relay.place
        self._book.missing(place.stream, place.component, relay.what, why)

    # Bases. ---------------------------------------------------------------------------------------

    def _host_bases(self) -> Iterator[Base]:
        yield from self._active.values()
        for port in self._ports:
            if port.base is not None:
                yield port.base
        yield from self._adopted

    def meeting_port(self, stream: int, component: int, *, ipv6: bool) -> Port | None:
        """Return an open port for simultaneous open, if there is one."""
        for port in self._ports:
            base = port.base
            if base is None or base.tcptype is not TcpType.SIMULTANEOUS_OPEN:
                continue
            if (base.stream, base.component, base.address.is_ipv6) == (stream, component, ipv6):
                return port
        return None

    def adopt(self, place: Place, local: Address) -> Base:
        """Make a base of a port that a connection was dialled from or accepted on."""
        base = place.base(next(self._ids), local.port, TcpType.SIMULTANEOUS_OPEN)
        self._adopted.append(base)
        self._book.host(base, place.interface, Standing.MET)
        return base

    @property
    def bases(self) -> Sequence[Base]:
        """Every base there is."""
        relayed = (base for relay in self._relays.values() for base in relay.bases)
        return (*self._host_bases(), *relayed)

    def retain(self, bases: Sequence[Base], now: Instant) -> None:
        """ICE has concluded: give up every other base, and the connections to STUN servers.

        Nothing is told of bases that are given up so.
        """
        kept = {base.id for base in bases}
        if self._mappings is not None:
            self._mappings.conclude()
            self._mappings = None
        for base in self.bases:
            if base.id not in kept and not self._is_tied(base, kept):
                self.release(base, now)
        for relay in [relay for relay in self._relays.values() if relay.is_busy]:
            self._give_up_relay(relay, "", now)
        for port in [port for port in self._ports if port.base is None]:
            port.shut()
            del self._ports[port]

    def _is_tied(self, base: Base, kept: set[BaseId]) -> bool:
        """Whether it shares an allocation with one that is kept."""
        relay = self._relay_of(base)
        return relay is not None and any(other.id in kept for other in relay.bases)

    def release(self, base: Base, now: Instant) -> None:
        """Give up one base with its connections; nothing is told of it.

        With either base of an allocation the allocation is given back.
        """
        relay = self._relay_of(base)
        if relay is not None:
            for each in relay.bases:
                self._forget(each, now)
            self._relays.pop((relay.place, relay.server.name), None)
            relay.release(now)
            return
        self._forget(base, now)
        self._adopted = [each for each in self._adopted if each is not base]
        for place in [place for place, active in self._active.items() if active is base]:
            del self._active[place]
        for port in [port for port in self._ports if port.base is base]:
            if self._mappings is not None:
                self._mappings.forget(port)
            port.shut()
            del self._ports[port]

    def _forget(self, base: Base, now: Instant, *, reset: bool = True) -> None:
        self._attempts.cancel_all(base, now)
        for connection in self.connections.of(base):
            self.connections.drop(connection.key, reset=reset)
        self._book.forget(base)

    def _lose(self, base: Base, why: str, now: Instant) -> None:
        self.release(base, now)
        self._queue.append(BaseLost(base, why))

    def _give_up_relay(self, relay: Relay, why: str, now: Instant) -> None:
        bases = relay.bases
        for base in bases:
            self._forget(base, now)
        self._relays.pop((relay.place, relay.server.name), None)
        relay.release(now)
        for base in bases:
            self._queue.append(BaseLost(base, why))

    def _relay_of(self, base: Base) -> Relay | None:
        if not base.is_relayed:
            return None
        return next((r for r in self._relays.values() if base in r.bases), None)

    def expect(self, remote: Address, now: Instant) -> None:
        """Take note that the peer has a TCP candidate there, of whatever kind.

        Relays are asked to let its host connect (RFC 6062 section 4.2), and strangers give way to
        connections from there.
        """
        host = remote.host
        if host in self._expected or len(self._expected) >= MOST_EXPECTED:
            return
        self._expected[host] = None
        self.connections.expected.add(host)
        for relay in self._relays.values():
            relay.permit((host,), now)

    # Paths. ---------------------------------------------------------------------------------------

    def open_path(self, base: Base, remote: Address, now: Instant) -> None:
        """Open a connection: ends in ``PathOpened`` or ``PathClosed``.

        If there is one already, ``PathOpened`` is told of it once more.
        """
        if (base, remote) in self.connections:
            self._queue.append(PathOpened(base, remote))
            return
        if base.is_relayed:
            relay = self._relay_of(base)
            if relay is None:
                closed = PathClosed(base, remote, Cause.OTHER, "there is no such allocation")
                self._queue.append(closed)
            elif not relay.is_opening(base, remote):
                relay.open(base, remote, now)
        elif base.tcptype is TcpType.PASSIVE:
            # RFC 6544 section 6.2: such pairs are pruned, so nobody should ask.
            closed = PathClosed(base, remote, Cause.OTHER, "a passive candidate does not connect")
            self._queue.append(closed)
        else:
            self._attempts.start(base, remote, now)

    def close_path(self, base: Base, remote: Address, now: Instant) -> None:
        """End a connection, or the attempt to have one; nothing is told."""
        self._attempts.cancel((base, remote), now)
        relay = self._relay_of(base)
        if relay is not None:
            relay.cancel(base, remote, now)
        self.connections.drop((base, remote))

    def _accepted(self, port: Port, handle: Handle, remote: Address, now: Instant) -> None:
        assert port.base is not None
        # A zone is of this host and in no candidate (RFC 4007 section 11.2).
        remote = Address(remote.host.partition("%")[0], remote.port)
        key = port.base, remote
        wanted = key in self._attempts
        if self.connections.accepted(handle, port.base, remote, now, wanted=wanted):
            self._attempts.cancel(key, now)

    def close(self, now: Instant) -> None:
        """End everything; nothing is told."""
        for base in self.bases:
            self._forget(base, now, reset=False)
        if self._mappings is not None:
            self._mappings.conclude()
        for port in self._ports:
            port.shut()
        for relay in self._relays.values():
            relay.abandon(now)
        self._active.clear()
        self._adopted.clear()
        self._ports.clear()
        self._relays.clear()

    # What the hub hands over. ---------------------------------------------------------------------

    def on_socket(self, event: SocketEvent, now: Instant) -> bool:
        """Take an event, if it is for a socket of this part; say whether it was."""
        if isinstance(event, Undeliverable):
            return False
        if isinstance(event, Accepted):
            owner = self.board.owners.get(event.listener)
            if owner is None:
                # It came before the listener was shut, and nobody else has listeners here.
                self.board.shut(event.handle, reset=True)
                return True
        else:
            owner = self.board.owners.get(event.handle)
            if owner is None:
                return False
        owner.on_socket(event, now)
        return True

    def on_deadline(self, now: Instant) -> None:
        """Do what is due."""
        self.connections.on_deadline(now)
        self._attempts.on_deadline(now)
        if self._mappings is not None:
            self._mappings.on_deadline(now)
        for relay in [*self._relays.values()]:
            relay.on_deadline(now)

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        # Asked after each packet that is sent.
        due, other = self.connections.deadline(), self._attempts.deadline()
        if other is not None and (due is None or other < due):
            due = other
        if self._mappings is not None:
            other = self._mappings.deadline()
            if other is not None and (due is None or other < due):
                due = other
        for relay in self._relays.values():
            other = relay.deadline()
            if other is not None and (due is None or other < due):
                due = other
        return due


def _same(one: Place, other: Place) -> bool:
    """Whether two places differ at most in what is known of the interface."""
    return (one.interface.host, one.stream, one.component) == (
        other.interface.host,
        other.stream,
        other.component,
    )
