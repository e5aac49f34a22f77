"""The hub: everything of an agent that has sockets, as one machine.

Theory of operation.  :meth:`Hub.gather` opens a UDP socket for each address, stream and component;
each is a candidate as soon as it is open, and from then on asks the STUN servers and allocates at
the TURN servers, all at once (:mod:`ice.gather.reflexive`, :mod:`ice.gather.relays`), while
:mod:`ice.tcp` does the same over TCP.  Each candidate is told when it is there; what is sought in
vain is told as well, and :class:`~ice.base.GatheringDone` when nothing is sought any more.

What arrives is told apart by addresses alone.  A packet for a host's socket that does not come from
a server of ours is a peer's: two dict lookups, and it is delivered.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Final

from ice.base import (
    Base,
    BaseId,
    GatheringDone,
    HubEvent,
    PathUnreachable,
)
from ice.candidate import Candidate
from ice.config import Config, Interface, Policy, Server
from ice.gather.book import Book
from ice.gather.hostsocket import Correspondent, HostSocket, Spot
from ice.gather.pacer import Pacer
from ice.gather.patience import Patience
from ice.gather.reach import can_reach, is_link_local, without_zone
from ice.gather.reflexive import Reflexive
from ice.gather.relays import Relays
from ice.gather.sockets import HostSockets
from ice.spread.part import SpreadPart
from ice.tcp.part import TcpPart
from stun.discovery import Transport
from stun.errors import DropReason, UsageError
from stun.sansio import (
    SECOND,
    Address,
    Cause,
    Closed,
    Entropy,
    Handle,
    Instant,
    Opened,
    Output,
    Received,
    SocketEvent,
    Transmit,
    Undeliverable,
)

Deliver = Callable[[Base, Address, bytes, Instant], None]

_SECRET: Final = 16
_BINDING_ANSWERS = (b"\x01\x01", b"\x01\x11")
"""How success and error responses of the Binding method begin (RFC 8489 section 5)."""


class Hub:
    """A :class:`stun.sansio.SocketMachine` of :data:`ice.base.HubEvent`.

    ``deliver`` is called with every packet of a path, STUN or data, as it arrives; framing is
    removed.  What STUN and TURN servers answer is the hub's own business.  ``handles`` numbers the
    sockets, for whoever drives the hub together with others.  ``controlling`` says whether this
    agent controls at the moment.
    """

    def __init__(
        self,
        config: Config,
        *,
        entropy: Entropy,
        deliver: Deliver,
        handles: Iterator[Handle] | None = None,
        controlling: Callable[[], bool] = lambda: True,
    ) -> None:
        self._config = config
        self._entropy = entropy
        self._deliver = deliver
        self._queue: deque[Output | HubEvent] = deque()
        self._handles = count(1) if handles is None else handles
        self._ids: Iterator[BaseId] = count(1)
        self._drops: Counter[DropReason] = Counter()
        secret = entropy(_SECRET)
        self._book = Book(config, self._queue, secret=secret)
        self._pacer = Pacer(config.ta)
        self._patience = Patience()
        self._sockets = sockets = HostSockets(
            config,
            self._queue,
            self._book,
            entropy=entropy,
            handles=self._handles,
            ids=self._ids,
            leaving=self._leaving,
        )
        # What the packet path looks things up in.
        self._at, self._zones = sockets.at, sockets.zones
        self._reflexive: Reflexive | None = None
        self._relays: Relays | None = None
        self._spreads: SpreadPart | None = None
        self._tcp: TcpPart | None = None
        if config.tcp:
            self._tcp = TcpPart(
                config,
                self._queue,
                handles=self._handles,
                ids=self._ids,
                deliver=deliver,
                entropy=entropy,
                drops=self._drops,
                book=self._book,
                pacer=self._pacer,
                patience=self._patience,
                controlling=controlling,
            )
        self._hosts: set[str] = set()
        self._servers: tuple[Server, ...] = ()
        self._gathering = False
        self._closed = False
        self._due: Instant | None = None

    # What there is. -------------------------------------------------------------------------------

    @property
    def bases(self) -> list[Base]:
        """Every base that paths can begin at."""
        bases = self._sockets.bases
        if self._relays is not None:
            bases += self._relays.bases
        if self._tcp is not None:
            bases += self._tcp.bases
        return bases

    def base_at(self, local: Address, remote: Address) -> Base | None:
        """Return the base of the socket that is bound there, if ``remote`` is a peer to it."""
        socket = self._at.get(local)
        if socket is None or not socket.is_plain or remote in socket.servers:
            return None
        return socket.base

    @property
    def is_gathering(self) -> bool:
        """Whether candidates are still sought."""
        return self._gathering

    @property
    def drops(self) -> Counter[DropReason]:
        """What came, or was to be sent, and was not used."""
        drops = Counter(self._drops)
        if self._reflexive is not None:
            drops.update(self._reflexive.drops)
        if self._relays is not None:
            drops.update(self._relays.drops)
        return drops

    @property
    def counters(self) -> Mapping[str, int]:
        """The same in words for a person."""
        return {reason.value: number for reason, number in self.drops.items()}

    # Gathering. -----------------------------------------------------------------------------------

    def gather(
        self, interfaces: Sequence[Interface], servers: Sequence[Server], now: Instant
    ) -> None:
        """Look for candidates; ends in :class:`~ice.base.GatheringDone`.

        Called again, after a restart or a change of networks, it keeps what is there without
        telling it again, looks for what is new or was given up, asks the servers whether mappings
        have changed, and tells :class:`~ice.base.BaseLost` for what went with an address.
        """
        if self._closed:
            raise UsageError("gather: the hub is closed")
        hosts = {interface.host for interface in interfaces}
        self._lose(self._hosts - hosts, now)
        self._hosts = hosts
        # RFC 8445 section 2.5: lite agents "only use host candidates".
        self._servers = () if self._config.lite else tuple(servers)
        self._gathering = True
        self._patience.start(now, self._config.gather_timeout)
        self._pacer.start_afresh()
        if self._config.udp:
            best_first = sorted(interfaces, key=lambda each: each.preference, reverse=True)
            for interface in best_first:
                for stream in range(self._config.streams):
                    for component in range(1, self._config.components + 1):
                        self._gather_at(Spot(interface, stream, component), now)
        if self._tcp is not None:
            self._tcp.gather(interfaces, self._servers, now)
        self.tend(now)

    def _gather_at(self, spot: Spot, now: Instant) -> None:
        socket = self._sockets.at_spot(spot)
        if socket is None:
            if self._needs_socket(spot.interface):
                self._sockets.open(spot)
            else:
                self._allocate(spot, None)
        elif socket.base is not None:
            socket.spot = spot
            if not socket.wanted:
                self._sockets.begin(socket, socket.base.address)
            self._ask_servers(socket, now)

    def _needs_socket(self, interface: Interface) -> bool:
        """Whether there is use for a socket, though its address may not be told."""
        return self._config.policy is not Policy.RELAY or any(
            target.transport is Transport.UDP and can_reach(interface.host, target.address)
            for server in self._servers
            if server.turn
            for target in server.targets
        )

    def _ask_servers(self, socket: HostSocket, now: Instant) -> None:
        if self._config.policy is not Policy.RELAY:
            for rank, server in enumerate(self._servers):
                if not server.turn:
                    self._reflexive_part().ask(socket, server, rank)
        self._allocate(socket.spot, socket)
        self._pacer.run(now)

    def _allocate(self, spot: Spot, socket: HostSocket | None) -> None:
        for rank, server in enumerate(self._servers):
            if server.turn:
                self._relays_part().allocate(spot, socket, server, rank)

    # Parts that an agent without servers does not need, and so does not have. ---------------------

    def _reflexive_part(self) -> Reflexive:
        if self._reflexive is None:
            self._reflexive = Reflexive(
                self._config,
                self._queue,
                self._book,
                self._pacer,
                self._patience,
                entropy=self._entropy,
            )
        return self._reflexive

    def _relays_part(self) -> Relays:
        if self._relays is None:
            self._relays = Relays(
                self._config,
                self._queue,
                self._book,
                self._pacer,
                self._patience,
                entropy=self._entropy,
                handles=self._handles,
                ids=self._ids,
                deliver=self._deliver,
                reflexive=self._reflexive_part,
                freed=self._freed,
            )
        return self._relays

    @property
    def spreads(self) -> SpreadPart:
        """Birthday probing; :meth:`tend` makes it go on when it was told something."""
        if self._spreads is None:
            self._spreads = SpreadPart(
                self._config,
                self._queue,
                self._book,
                self._sockets,
                self._tcp,
                handles=self._handles,
                drops=self._drops,
                entropy=self._entropy,
            )
        return self._spreads

    def _done(self) -> None:
        """Tell the end of gathering, if that is what it is."""
        parts = (self._sockets, self._reflexive, self._relays)
        if any(part is not None and part.is_busy for part in parts):
            return
        if self._tcp is not None and self._tcp.gathering:
            return
        self._gathering = False
        self._patience.stop()
        for socket in self._sockets:
            self._sockets.tidy(socket)
        self._queue.append(GatheringDone())

    def predict(self, offsets: Sequence[int], ports: Sequence[int]) -> list[Candidate]:
        """Make candidates of ports that NATs are expected to give out next.

        ``offsets`` are from each port that a server has told, ``ports`` are as they are; bases are
        those over UDP and for simultaneous open.
        """
        return self._book.predict(self.bases, offsets, ports)

    def forget_predictions(self) -> None:
        """Take note that the ports that were predicted are out of date."""
        self._book.forget_predictions()

    # Giving up. -----------------------------------------------------------------------------------

    def _lose(self, hosts: set[str], now: Instant) -> None:
        """Take note that addresses are not this host's any more."""
        if not hosts:
            return
        if self._spreads is not None:
            self._spreads.lose(hosts)
        why = "its address is not this host's any more"
        if self._relays is not None:
            self._relays.lose(hosts, why, now)
        for socket in self._sockets:
            if socket.spot.interface.host in hosts:
                self._sockets.lose(socket, why)

    def release(self, base: Base, now: Instant) -> None:
        """Give up a base and what belongs to it alone; nothing is told of it."""
        socket = self._sockets.of(base)
        if socket is not None:
            self._sockets.leave(socket)
            self._freed(socket)
        elif base.transport == "tcp":
            if self._tcp is not None:
                self._tcp.release(base, now)
        elif self._relays is not None:
            self._relays.release(base, now)
        self.tend(now)

    def retain(self, bases: Sequence[Base], now: Instant) -> None:
        """ICE has concluded (RFC 8445 section 8.3): give up everything that these do not need.

        Gathering ends, allocations are given back, mappings at STUN servers are left to expire.
        What still is needed later :meth:`gather` finds again.
        """
        kept = {base.id for base in bases}
        if self._reflexive is not None:
            self._reflexive.conclude()
            self._drops.update(self._reflexive.drops)
            self._reflexive = None
        if self._relays is not None:
            self._relays.give_up("not needed any more", now)
            for base in self._relays.bases:
                if base.id not in kept:
                    self._relays.release(base, now)
            self._relays.conclude()
        if self._tcp is not None:
            self._tcp.retain([base for base in bases if base.transport == "tcp"], now)
        for socket in self._sockets:
            if socket.base is None:
                self._sockets.shut(socket)
            elif socket.base.id not in kept:
                self._sockets.leave(socket)
                self._freed(socket)
        self.tend(now)

    def _leaving(self, socket: HostSocket) -> None:
        if self._reflexive is not None:
            self._reflexive.forget(socket)

    def _freed(self, socket: HostSocket) -> None:
        """Shut a socket if nobody needs it; while gathering goes on, somebody still may."""
        if not self._gathering:
            self._sockets.tidy(socket)

    def close(self, now: Instant) -> None:
        """Shut every socket at once; allocations are given back by one packet each."""
        if self._closed:
            return
        self._closed = True
        self._gathering = False
        self._patience.stop()
        self._pacer.clear()
        if self._spreads is not None:
            self._spreads.stop()
        if self._relays is not None:
            self._relays.close(now)
        if self._tcp is not None:
            self._tcp.close(now)
        for socket in self._sockets:
            self._sockets.shut(socket)
        self._plan()

    # Paths. ---------------------------------------------------------------------------------------

    def send(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        """Send a packet from a base to the other end of a path; nobody tells whether it arrives.

        Without a connection, or without a relay that permits it, it is dropped and counted.
        """
        if base.transport == "tcp":
            if self._tcp is not None:
                self._tcp.send(base, remote, data, now)
        elif base.relay:
            if self._relays is not None:
                self._sooner(self._relays.send(base, remote, data, now))
        elif self._zones and base.id in self._zones and is_link_local(remote):
            zoned = Address(f"{remote.host}%{self._zones[base.id]}", remote.port)
            self._queue.append(Transmit(data, zoned, base.address))
        else:
            self._queue.append(Transmit(data, remote, base.address))

    def bare(self, base: Base, remote: Address) -> Handle | None:
        """Return the socket of a TCP path of this host that framed packets may be written to."""
        return None if self._tcp is None else self._tcp.connections.bare(base, remote)

    def send_short(self, base: Base, remote: Address, data: bytes, ttl: int, _: Instant) -> None:
        """Send a packet that goes so many hops, from a UDP socket of this host."""
        self._queue.append(Transmit(data, remote, base.address, ttl=ttl))

    def open_path(self, base: Base, remote: Address, now: Instant) -> None:
        """Open a connection: ends in :class:`PathOpened` or :class:`PathClosed`.

        From a relayed UDP address it has the relay let the peer send, and is told only where that
        is refused; from a UDP socket there is nothing to open.
        """
        if base.transport == "tcp":
            if self._tcp is not None:
                self._tcp.open_path(base, remote, now)
        elif base.relay and self._relays is not None:
            self._relays.permit(base, remote, now)
        self.tend(now)

    def close_path(self, base: Base, remote: Address, now: Instant) -> None:
        """End a connection, the attempt to have one, or a permission; nothing is told."""
        if base.transport == "tcp":
            if self._tcp is not None:
                self._tcp.close_path(base, remote, now)
        elif base.relay and self._relays is not None:
            self._relays.forget(base, remote)
        self.tend(now)

    def prefer(self, base: Base, remote: Address, now: Instant) -> None:
        """Prepare a path for much data: a relay binds a channel, which saves 32 octets a packet."""
        if base.relay and base.transport == "udp" and self._relays is not None:
            self._relays.bind(base, remote, now)
            self.tend(now)

    def expect(self, remote: Address, now: Instant) -> None:
        """Take note that the peer has a TCP candidate there, so that it may connect."""
        if self._tcp is not None:
            self._tcp.expect(remote, now)
            self.tend(now)

    # What happens. --------------------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram."""
        socket = self._at.get(packet.local)
        if socket is None:
            if self._relays is not None and self._relays.receive(packet, now):
                self.tend(now)
            elif self._spreads is None or not self._spreads.receive(packet):
                self._drops[DropReason.UNKNOWN_STREAM] += 1
        elif socket.servers and (server := socket.servers.get(packet.source)) is not None:
            self._from_server(socket, server, packet, now)
        elif socket.is_plain:
            self._deliver(socket.base, packet.source, packet.data, now)  # type: ignore[arg-type]
        else:
            self._from_peer(socket, packet, now)

    def _from_server(
        self, socket: HostSocket, server: Correspondent, packet: Received, now: Instant
    ) -> None:
        data = packet.data
        if server.asked and server.answers is not None and data[:2] in _BINDING_ANSWERS:
            server.answers(packet, now)
            self.tend(now)
        elif server.relay is not None:
            server.relay(packet, now)
            if not data or data[0] < 0x40:  # what comes in a channel changes nothing
                self.tend(now)
        else:
            self._from_peer(socket, packet, now)

    def _from_peer(self, socket: HostSocket, packet: Received, now: Instant) -> None:
        if socket.wanted and socket.base is not None:
            self._deliver(socket.base, without_zone(packet.source), packet.data, now)
        else:
            self._drops[DropReason.REFUSED_BY_POLICY] += 1

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        handle = getattr(event, "handle", 0)
        socket = self._sockets.by_handle(handle)
        if isinstance(event, Undeliverable):
            self._undeliverable(event, now)
        elif socket is not None:
            self._on_own_socket(socket, event, now)
        elif self._relays is not None and self._relays.owns(handle):
            self._relays.on_socket(event, now)
        elif self._spreads is not None and self._spreads.on_socket(handle, event, now):
            pass
        elif self._tcp is None or not self._tcp.on_socket(event, now):
            self._drops[DropReason.UNKNOWN_STREAM] += 1
        self.tend(now)

    def _on_own_socket(self, socket: HostSocket, event: SocketEvent, now: Instant) -> None:
        if isinstance(event, Opened):
            self._sockets.opened(socket, event.local)
            self._ask_servers(socket, now)
        elif isinstance(event, Closed):
            self._closed_own(socket, event)

    def _closed_own(self, socket: HostSocket, event: Closed) -> None:
        if socket.base is not None:
            self._sockets.lose(socket, event.detail or event.cause.value)
            return
        goes_on = self._sockets.not_opened(socket, event)
        if not goes_on and event.cause is not Cause.ADDRESS_NOT_AVAILABLE:
            # Without a port for it a relay may still be had, from one that the system chooses or by
            # TCP; without the address there is nothing.
            self._allocate(socket.spot, None)

    def _undeliverable(self, event: Undeliverable, now: Instant) -> None:
        socket = self._at.get(event.local)
        server = None if socket is None else socket.servers.get(event.destination)
        if server is not None and server.asked and self._reflexive is not None:
            self._reflexive.undeliverable(event, now)
        if self._relays is not None and (socket is None or (server and server.relay)):
            self._relays.undeliverable(event, now)
        if server is None and socket is not None and socket.wanted and socket.base is not None:
            remote = without_zone(event.destination)
            self._queue.append(
                PathUnreachable(socket.base, remote, event.icmp_type, event.icmp_code, event.info)
            )

    def on_deadline(self, now: Instant) -> None:
        """Do what is due."""
        if self._tcp is not None:
            self._tcp.on_deadline(now)
        if self._due is not None and self._due <= now:
            if self._reflexive is not None:
                self._reflexive.on_deadline(now)
            if self._relays is not None:
                self._relays.on_deadline(now)
            patience = self._patience
            if patience.until is not None and patience.until <= now:
                self._out_of_patience(now)
            elif patience.enough is not None and patience.enough <= now:
                patience.enough = None
                self._give_up_mappings("no answer, long after another server's")
        self.tend(now)

    def _out_of_patience(self, now: Instant) -> None:
        why = f"no answer within {(now - self._patience.started) / SECOND:.3g} s"
        self._patience.stop()
        self._give_up_mappings(why)
        if self._relays is not None:
            self._relays.give_up(why, now)

    def _give_up_mappings(self, why: str) -> None:
        if self._reflexive is not None:
            self._reflexive.give_up(why)
        if self._tcp is not None:
            self._tcp.give_up(why)

    def poll(self) -> Output | HubEvent | None:
        """Give the next thing to do or to tell."""
        return self._queue.popleft() if self._queue else None

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        due = self._due
        if self._tcp is not None:
            other = self._tcp.deadline()
            if other is not None and (due is None or other < due):
                return other
        return due

    def tend(self, now: Instant) -> None:
        """Do what has become possible: a part was told something."""
        self._pacer.run(now)
        if self._gathering:
            self._done()
        if self._spreads is not None and not self._closed:
            self._spreads.run(now, gathering=self._gathering or not self._hosts)
        self._plan()

    def _plan(self) -> None:
        """Find the next moment at which there is something to do."""
        self._due = None
        self._sooner(self._patience.until)
        self._sooner(self._patience.enough)
        self._sooner(self._pacer.deadline())
        if self._reflexive is not None:
            self._sooner(self._reflexive.deadline())
        if self._relays is not None:
            self._sooner(self._relays.deadline())
        if self._spreads is not None and not self._closed:
            self._sooner(self._spreads.deadline())

    def _sooner(self, at: Instant | None) -> None:
        if at is not None and (self._due is None or at < self._due):
            self._due = at
