"""TCP simultaneous open by itself: two hosts behind NATs, and one connection between them.

Theory of operation.  A :class:`Puncher` has up to :data:`~ice.tcp.terms.MOST_PORTS` ports.  Each
listens, and is dialled from.

1. :meth:`Puncher.open` opens them, and asks STUN servers over TCP what each is outside
   (:mod:`ice.tcp.reflexive`).  :class:`PortsReady` tells it.  The connections to the servers stay
   open, since the FIN of one may close the mapping.
2. Somebody carries the addresses to the peer, and the peer's addresses back.
3. :meth:`Puncher.start` opens connections to them, from a given instant on, so that both sides
   begin together (:func:`ice.tcp.terms.start_at`).  :mod:`ice.tcp.attempts` has the recipe.
4. Over every connection that comes up both sides prove themselves, and one is chosen by both
   (:mod:`ice.tcp.election`).  :class:`Elected` tells it: the socket, on which nothing is read any
   more, and what came on it behind the last check.  Everything else is closed.

Ports are used in pairs: the k-th port of one side goes with the k-th of the other.  The first pair
is tried first; the others are its spares, for a NAT may be spoilt for one pair of ports.  A peer
with several IP addresses is tried at each of them at the same time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto
from ipaddress import ip_address
from itertools import count
from typing import Final

from ice.base import Base, HubEvent, PathClosed, PathOpened
from ice.candidate import TcpType
from ice.config import Config, Credentials, Interface, Server
from ice.gather.pacer import Pacer
from ice.gather.patience import Patience
from ice.gather.reach import can_reach, is_plausible, without_zone
from ice.messages import Keys
from ice.priority import HIGHEST
from ice.tcp.attempts import Attempts
from ice.tcp.connections import Connections, Key
from ice.tcp.election import Election, Told
from ice.tcp.ports import Place, Port, PortEvents
from ice.tcp.reflexive import Mappings, Query
from ice.tcp.switchboard import Switchboard
from ice.tcp.terms import (
    MOST_PORTS,
    Elected,
    GaveUp,
    MappedPort,
    PortsReady,
    PunchConfig,
    PunchEvent,
)
from stun.errors import DropReason, UsageError
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Accepted,
    Address,
    Entropy,
    Handle,
    Hold,
    Instant,
    Output,
    Received,
    SocketEvent,
    Timers,
    Undeliverable,
)

MOST_REMOTE: Final = 64
"""Addresses of the peer that are taken."""
MOST_HOSTS: Final = 8
"""IP addresses of the peer that are tried at once."""
AGAIN: Final = 250 * MILLISECOND
"""Before a path is opened again whose connection came up and was of no use."""


class Stage(Enum):
    """How far a puncher is."""

    NEW = auto()
    OPENING = auto()
    READY = auto()
    WAITING = auto()
    """It has been told where the peer is, and when to begin."""
    PUNCHING = auto()
    OVER = auto()


class Puncher:
    """A :class:`stun.sansio.SocketMachine` of :data:`PunchEvent`; the module's text has the rest.

    Commands raise :class:`stun.errors.UsageError`; nothing that comes from outside does.
    """

    def __init__(self, config: PunchConfig, *, entropy: Entropy) -> None:
        self._config = config
        self._entropy = entropy
        self._queue: deque[Output | PunchEvent] = deque()
        self._inner: deque[Output | HubEvent] = deque()
        self._board = board = Switchboard(self._inner, count(1))
        self._drops: Counter[DropReason] = Counter()
        self._ids = count(1)
        self._controlling = True
        self._connections = connections = Connections(
            board,
            deliver=self._deliver,
            drops=self._drops,
            controlling=lambda: self._controlling,
            trusting=False,
        )
        connections.reopen = self._reopen
        self._election = Election(
            connections,
            Told(self._won, self._lost, self._hopeless),
            drops=self._drops,
            entropy=entropy,
            software=config.software,
        )
        self._attempts = Attempts(board, connections, patience=0, entropy=entropy)  # there are none
        self._pacer = Pacer(5 * MILLISECOND)
        self._mappings: Mappings | None = None
        self._ports: list[Port] = []
        self._external: dict[Port, dict[Query, Address]] = {}
        self._missing: list[str] = []
        self._servers: tuple[Server, ...] = ()
        self._told: PortsReady | None = None
        self._stage = Stage.NEW
        self._chains: list[list[Key]] = []
        self._wanted: dict[Key, None] = {}
        self._again: Timers[Key] = Timers()
        self._notes: list[str] = []
        self._timeout = 0
        self._began: Instant = 0
        self._due: Instant | None = None
        """When to begin, or to give up."""

    # What there is. -------------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        """How far it is."""
        return self._stage

    @property
    def drops(self) -> Counter[DropReason]:
        """What came and was not used; a stranger's connection is one of these."""
        return self._drops

    @property
    def counters(self) -> Mapping[str, int]:
        """The same in words for a person."""
        return {reason.value: number for reason, number in self._drops.items()}

    # Commands. ------------------------------------------------------------------------------------

    def open(self, servers: Iterable[Server], now: Instant) -> None:
        """Open the ports, and ask these servers about them: ends in :class:`PortsReady`.

        Or in :class:`GaveUp`, if no port could be opened.
        """
        if self._stage is not Stage.NEW:
            raise UsageError("open: the ports are open already")
        self._stage = Stage.OPENING
        config = self._config
        servers = tuple(servers)
        if servers:
            self._mappings = Mappings(
                Config(
                    udp=False,
                    gather_timeout=config.gather_timeout,
                    keepalive=config.keepalive,
                    software=config.software,
                ),
                self._board,
                self._pacer,
                Patience(),
                found=self._mapped,
                not_found=self._not_mapped,
                drops=self._drops,
                entropy=self._entropy,
            )
        self._servers = servers
        place = Place(Interface(config.host, "", HIGHEST), 0, 1)
        events = PortEvents(self._opened, self._not_opened, self._accepted)
        for number in config.ports:
            port = Port(
                self._board,
                events,
                place,
                TcpType.SIMULTANEOUS_OPEN,
                ports=(number, number) if number else None,
                entropy=self._entropy,
                shared=True,
            )
            self._ports.append(port)
            self._external[port] = {}
        self._after(now)

    def start(
        self,
        remote: Sequence[Address],
        local_credentials: Credentials,
        remote_credentials: Credentials,
        now: Instant,
        *,
        controlling: bool,
        at: Instant | None = None,
        low_ttl: bool = False,
        timeout: int = 30 * SECOND,
    ) -> None:
        """Connect to the peer: ends in :class:`Elected` or :class:`GaveUp`.

        ``remote``: the peer's addresses, those of one IP address in the order of its ports, as
        :meth:`PortsReady.addresses` gives them.  ``at``: when to begin, at once by default
        (:func:`ice.tcp.terms.start_at`).  ``low_ttl``: the first SYN to each address dies on its
        way, for NATs that take offence at one that comes too early; it costs about a second.
        ``timeout``: nanoseconds after which it is given up.
        """
        if self._stage is not Stage.READY:
            raise UsageError("start: once, after PortsReady has told what the peer has to know")
        if not 0 < len(remote) <= MOST_REMOTE:
            raise UsageError(f"{len(remote)} addresses of the peer: 1 to {MOST_REMOTE}")
        keys = Keys(local_credentials)
        keys.set_remote(remote_credentials)
        chains = self._pair(remote)
        self._chains = chains
        self._wanted = dict.fromkeys(key for chain in chains for key in chain)
        self._connections.expected.update(key[1].host for key in self._wanted)
        self._controlling = controlling
        self._timeout = timeout
        self._attempts = Attempts(
            self._board,
            self._connections,
            patience=timeout + SECOND,  # this machine ends them
            entropy=self._entropy,
            low_ttl=low_ttl,
        )
        self._stage = Stage.WAITING
        self._due = now if at is None else max(now, at)
        self._began = self._due
        self._election.begin(keys, now, controlling=controlling)
        self.on_deadline(now)
        self._after(now)

    def _pair(self, remote: Sequence[Address]) -> list[list[Key]]:
        """Return for each of the peer's IP addresses a pair of ports, and its spares."""
        bases = [port.base for port in self._ports if port.base is not None]
        hosts: dict[str, list[Address]] = {}
        for address in dict.fromkeys(without_zone(each) for each in remote):
            try:
                may_dial = self._may_dial(address)
            except ValueError as wrong:
                raise UsageError(f"an address of the peer: {wrong}") from None
            if may_dial:
                hosts.setdefault(address.host, []).append(address)
        if not hosts:
            shown = ", ".join(map(str, remote))
            raise UsageError(f"nothing of {shown} can be reached from {self._config.host}")
        chains = []
        for addresses in [*hosts.values()][:MOST_HOSTS]:
            pairs = max(len(bases), min(len(addresses), MOST_PORTS))
            chain = [(bases[k % len(bases)], addresses[k % len(addresses)]) for k in range(pairs)]
            chains.append([key for key in chain if key[0].address != key[1]])
        return [chain for chain in chains if chain]

    def _may_dial(self, address: Address) -> bool:
        """Whether the peer may have this machine dial there at all.

        Loopback addresses are this machine's own affair (RFC 8445 section 5.1.1.1), unless that is
        where it has been told to be.
        """
        host = self._config.host
        if not can_reach(host, address) or not is_plausible(address):
            return False
        return _is_loopback(host) or not _is_loopback(address.host)

    def close(self) -> None:
        """End everything; nothing is told."""
        self._over()

    # Ports and mappings. --------------------------------------------------------------------------

    def _opened(self, port: Port, local: Address, now: Instant) -> None:
        if port.base is not None:
            return
        port.base = port.place.base(next(self._ids), local.port, port.tcptype)
        if self._mappings is not None:
            self._mappings.ask(port, enumerate(self._servers))
        self._pacer.run(now)

    def _not_opened(self, port: Port, why: str, now: Instant) -> None:
        host = self._config.host
        what = host if port.base is None else str(port.base.address)
        self._missing.append(f"a TCP port on {what}: {why}")
        self._ports.remove(port)
        if self._mappings is not None:
            self._mappings.forget(port)
        if not self._ports:
            self._give_up(f"no TCP port of {host} can be opened: {why}", now)

    def _mapped(self, query: Query, mapped: Address) -> None:
        self._external[query.port][query] = mapped

    def _not_mapped(self, query: Query, why: str) -> None:
        self._missing.append(f"{query.what}: {why}")

    def _tell_ports(self) -> None:
        """Tell what the ports are outside, once it is known, and when it has changed."""
        is_busy = self._mappings is not None and self._mappings.is_busy
        if is_busy or not self._ports or any(port.base is None for port in self._ports):
            return
        if self._stage is Stage.OPENING:
            self._stage = Stage.READY
            if any(self._external[port] for port in self._ports):
                for port in [port for port in self._ports if not self._external[port]]:
                    port.shut()
                    self._ports.remove(port)
        elif self._told is None or self._stage not in (Stage.READY, Stage.WAITING):
            return
        found = tuple(
            MappedPort(port.base.address, tuple(dict.fromkeys(self._external[port].values())))
            for port in self._ports
            if port.base is not None
        )
        if self._told is None or self._told.ports != found:
            self._told = PortsReady(found, tuple(self._missing))
            self._queue.append(self._told)

    # Connections. ---------------------------------------------------------------------------------

    def _accepted(self, port: Port, handle: Handle, remote: Address, now: Instant) -> None:
        assert port.base is not None
        key = port.base, without_zone(remote)
        wanted = key in self._attempts
        if self._connections.accepted(handle, *key, now, wanted=wanted):
            self._attempts.cancel(key, now)

    def _reopen(self, base: Base, remote: Address, now: Instant) -> None:
        self._attempts.start(base, remote, now)

    def _deliver(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        self._drain(now)  # what came first is told first: that it is open
        self._election.packet(base, remote, data, now)

    def _closed(self, event: PathClosed, now: Instant) -> None:
        key = event.base, event.remote
        why = event.detail or event.cause.value
        if key in self._election:
            self._election.closed(key, now)
            self._lost(key, why, now)
        else:
            self._notes.append(f"{event.base.address} to {event.remote}: {why}")
            del self._notes[:-MOST_REMOTE]
            self._look(now)

    def _lost(self, key: Key, why: str, now: Instant) -> None:
        """Open a path again whose connection was of no use."""
        if self._stage is Stage.PUNCHING and key in self._wanted:
            self._again.set(key, now + AGAIN)
        if len(self._notes) < MOST_REMOTE:
            self._notes.append(f"{key[0].address} to {key[1]}: came up, and then: {why}")

    def _look(self, now: Instant) -> None:
        """Give up when nothing is under way and nothing can come."""
        if self._stage is not Stage.PUNCHING or self._election.up or len(self._again):
            return
        if not any(key in self._attempts for key in self._wanted):
            self._give_up("every attempt has failed", now)

    # The end. -------------------------------------------------------------------------------------

    def _won(self, key: Key, now: Instant) -> None:
        found = self._connections.release(key)
        assert found is not None  # the election is about connections of this host
        handle, data = found
        # Before anything else: what comes from here on stays in the kernel.
        self._inner.append(Hold(handle))
        self._drain(now)
        self._over()
        took = max(0, now - self._began)
        self._queue.append(Elected(handle, key[0].address, key[1], data, took))

    def _hopeless(self, why: str, now: Instant) -> None:
        self._give_up(why, now)

    def _give_up(self, why: str, now: Instant) -> None:
        if self._stage is Stage.OVER:
            return
        notes = dict.fromkeys(self._notes)
        for (base, remote), story in self._attempts.stories():
            notes[f"{base.address} to {remote}: {story or 'no answer at all'}"] = None
        if self._drops:
            counted = ", ".join(f"{number} x {reason}" for reason, number in self.counters.items())
            notes[f"not used: {counted}"] = None
        self._drain(now)
        self._over()
        self._queue.append(GaveUp("\n  ".join((why, *notes))))

    def _over(self) -> None:
        if self._stage is Stage.OVER:
            return
        self._stage = Stage.OVER
        self._due = None
        self._again = Timers()
        self._pacer.clear()
        for port in self._ports:
            if port.base is not None:
                self._attempts.cancel_all(port.base, self._began)
                for connection in self._connections.of(port.base):
                    self._connections.drop(connection.key)
            port.shut()
        if self._mappings is not None:
            self._mappings.conclude()
        self._flush()

    # The machine. ---------------------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:  # noqa: ARG002
        """Take a datagram: there is no socket that any could come to."""
        self._drops[DropReason.UNEXPECTED_SOURCE] += 1

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        if not isinstance(event, Undeliverable):
            handle = event.listener if isinstance(event, Accepted) else event.handle
            owner = self._board.owners.get(handle)
            if owner is not None:
                owner.on_socket(event, now)
            elif isinstance(event, Accepted):
                # It came before the listener was shut.
                self._board.shut(event.handle, reset=True)
        self._after(now)

    def on_deadline(self, now: Instant) -> None:
        """Do what is due."""
        if self._stage is Stage.OVER:
            return
        self._pacer.run(now)
        if self._mappings is not None:
            self._mappings.on_deadline(now)
        self._connections.on_deadline(now)
        self._attempts.on_deadline(now)
        self._election.on_deadline(now)
        for key in self._again.expired(now):
            if key not in self._election:
                self._attempts.start(*key, now)
        if self._due is not None and self._due <= now:
            if self._stage is Stage.WAITING:
                self._stage = Stage.PUNCHING
                self._due = now + self._timeout
                for first, *spares in self._chains:
                    if first not in self._election:
                        self._attempts.start(*first, now, spares)
            elif self._stage is Stage.PUNCHING:
                seconds = self._timeout / SECOND
                self._give_up(f"no connection within {seconds:g} s", now)
        self._after(now)

    def _after(self, now: Instant) -> None:
        self._drain(now)
        self._tell_ports()
        self._drain(now)

    def _drain(self, now: Instant) -> None:
        """Pass on what the parts have ordered, and take what they tell."""
        inner = self._inner
        while inner:
            output = inner.popleft()
            match output:
                case PathOpened(base, remote):
                    if (base, remote) in self._connections:
                        self._election.opened((base, remote), now)
                case PathClosed():
                    self._closed(output, now)
                case _:
                    self._queue.append(output)  # type: ignore[arg-type]  # no other event is told

    def _flush(self) -> None:
        """Pass on the orders of the end; what is told now concerns nobody any more."""
        while self._inner:
            output = self._inner.popleft()
            if not isinstance(output, PathOpened | PathClosed):
                self._queue.append(output)  # type: ignore[arg-type]

    def poll(self) -> Output | PunchEvent | None:
        """Give the next thing to do or to tell."""
        return self._queue.popleft() if self._queue else None

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        if self._stage is Stage.OVER:
            return None
        times = [
            self._due,
            self._pacer.deadline(),
            self._connections.deadline(),
            self._attempts.deadline(),
            self._election.deadline(),
            self._again.next(),
        ]
        if self._mappings is not None:
            times.append(self._mappings.deadline())
        return min((at for at in times if at is not None), default=None)


def _is_loopback(host: str) -> bool:
    return ip_address(host.partition("%")[0]).is_loopback
