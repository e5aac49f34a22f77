"""Relayed TCP candidates: allocations of RFC 6062 at TURN servers (RFC 6544 section 5.5).

Theory of operation.  An allocation has two bases.  The passive one is its relayed address, which
the peer connects to; the server lets only hosts connect that it was asked to (RFC 6062 section
4.2), so each host that the peer has named gets a permission.  The active one is the same host with
no port of its own: the server connects to the peer from there.  Each connection is one more
connection of this host to the server, and so a path like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ice.base import Base, BaseId, BaseLost, PathClosed
from ice.candidate import TcpType
from ice.config import Config, Server
from ice.gather.book import DISCARD, Source
from ice.gather.reach import can_reach
from ice.tcp.connections import Connection, Connections
from ice.tcp.ports import Place
from ice.tcp.switchboard import Switchboard
from stun.client import Config as StunConfig
from stun.discovery import Target, Transport
from stun.errors import Dropped, DropReason, UsageError
from stun.registry import Method
from stun.sansio import (
    SECOND,
    Address,
    Cause,
    Closed,
    Dial,
    Entropy,
    Handle,
    Instant,
    Shut,
    SocketEvent,
    Transmit,
)
from turn.client.config import ClientConfig, RelayedFamily
from turn.client.events import (
    Allocated,
    ClientEvent,
    Failed,
    Lost,
    PeerClosed,
    PeerCongested,
    PeerConnected,
    PeerRefused,
    PeerStream,
)
from turn.client.events import Connection as Number
from turn.client.lifecycle import State
from turn.client.race import Race

MOST_TARGETS: Final = 4
"""Addresses of one server that are tried, one after the other."""


class Relayed(Connection):
    """A connection of the relay's address with the peer."""

    __slots__ = ("_number", "_relay")

    def __init__(
        self,
        relay: Relay,
        number: Number,
        base: Base,
        remote: Address,
        *,
        accepted: bool,
        now: Instant,
    ) -> None:
        super().__init__(base, remote, accepted=accepted, now=now)
        self._relay = relay
        self._number = number

    def write(self, data: bytes, now: Instant) -> None:
        """Send octets."""
        self._relay.write(self._number, data, now)

    def shut(self, *, reset: bool = False) -> None:
        """Close it."""
        self._relay.shut(self._number, reset=reset)


@dataclass(frozen=True, slots=True)
class RelayEvents:
    """What a relay tells whoever asked for it."""

    allocated: Callable[[Relay, Address, Instant], None]
    """``bases`` are there; the address is what the server sees of this host."""
    failed: Callable[[Relay, str], None]
    """There is no allocation and none is coming."""


class Relay:
    """One allocation, or the attempt to have one: for a place, at a server."""

    def __init__(
        self,
        config: Config,
        board: Switchboard,
        connections: Connections,
        events: RelayEvents,
        *,
        place: Place,
        server: Server,
        rank: int,
        ids: Iterator[BaseId],
        handles: Iterator[Handle],
        drops: Counter[DropReason],
        entropy: Entropy,
    ) -> None:
        self._board = board
        self._connections = connections
        self._events = events
        self._ids = ids
        self._drops = drops
        self.place = place
        self.server = server
        self._rank = rank
        self.source = Source(server.name, "", rank)
        self.bases: tuple[Base, ...] = ()
        """Active and passive, once there is an allocation."""
        self.is_over = False
        """Whether it is given up or lost, so that another one may be asked for."""
        self._open: dict[Number, Connection] = {}
        self._opening: dict[Number, tuple[Base, Address]] = {}
        self._permitted: set[str] = set()
        self._now: Instant = 0
        self._until: Instant | None = None
        """When it is given up, while it is being asked for."""
        self._timeout = config.gather_timeout
        self._draining = False
        self._race = Race(
            [
                ClientConfig(
                    server=target,
                    credentials=server.credentials,
                    local=Address(place.interface.host, 0),
                    tcp=True,
                    family=_family(place.interface.host),
                    software=config.software,
                    stun=StunConfig(software=None),
                )
                for target in targets(server, place.interface.host)
            ],
            entropy=entropy,
            handles=handles,
        )

    @property
    def what(self) -> str:
        """What it is for, in words."""
        return f"TCP relayed by {self.server.name} from {self.place.interface.host}"

    @property
    def is_busy(self) -> bool:
        """Whether candidates may still come."""
        return not self.bases and not self.is_over

    # Commands. ------------------------------------------------------------------------------------

    def start(self, now: Instant) -> bool:
        """Ask for the allocation."""
        if self.is_over:
            return False
        self._until = now + self._timeout
        self._race.start(now)
        self._drain(now)
        return True

    def permit(self, hosts: Sequence[str], now: Instant) -> None:
        """Let these hosts connect to the relayed address."""
        client = self._race.client
        if client is None or client.state is not State.ALLOCATED or not self.bases:
            return
        is_ipv6 = self.bases[0].address.is_ipv6
        wanted = [h for h in hosts if (":" in h) is is_ipv6 and h not in self._permitted]
        if wanted:
            self._permitted.update(wanted)
            client.permit(*(Address(host, DISCARD) for host in wanted), now=now)
            self._drain(now)

    def open(self, base: Base, remote: Address, now: Instant) -> None:
        """Have the server connect to a peer: ends in ``PathOpened`` or ``PathClosed``."""
        client = self._race.client
        try:
            if client is None or base.tcptype is not TcpType.ACTIVE:
                raise UsageError("a passive candidate opens no connections")
            number = client.connect(remote, now)
        except UsageError as error:
            self._board.queue.append(PathClosed(base, remote, Cause.OTHER, str(error)))
            return
        self._opening[number] = base, remote
        self._drain(now)

    def cancel(self, base: Base, remote: Address, now: Instant) -> None:
        """Have the server connect no more."""
        client = self._race.client
        for number, key in [*self._opening.items()]:
            if key == (base, remote):
                del self._opening[number]
                if client is not None:
                    client.close(number)
        self._drain(now)

    def is_opening(self, base: Base, remote: Address) -> bool:
        """Whether the server is connecting."""
        return (base, remote) in self._opening.values()

    def write(self, number: Number, data: bytes, now: Instant) -> None:
        """Send octets on a connection."""
        client = self._race.client
        if client is not None:
            client.write(number, data)
            self._drain(now)

    def shut(self, number: Number, *, reset: bool) -> None:
        """Close a connection."""
        client = self._race.client
        if self._open.pop(number, None) is not None and client is not None:
            client.close(number, reset=reset)
            self._drain(self._now)

    def release(self, now: Instant) -> None:
        """Give the allocation back; nothing is told."""
        self.is_over = True
        self.bases = ()
        client = self._race.client
        if client is not None and client.state is State.ALLOCATED:
            client.release(now)
        else:
            self._race.abandon(now)
        self._drain(now)

    def abandon(self, now: Instant) -> None:
        """Shut every socket at once; nothing is told."""
        self.is_over = True
        self.bases = ()
        self._race.abandon(now)
        self._drain(now)

    # What happens. --------------------------------------------------------------------------------

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to one of its sockets."""
        if isinstance(event, Closed):
            self._board.owners.pop(event.handle, None)
        self._race.on_socket(event, now)
        self._drain(now)

    def on_deadline(self, now: Instant) -> None:
        """Do what is due."""
        self._race.on_deadline(now)
        self._drain(now)
        if self._until is not None and self._until <= now and self.is_busy:
            self._lost(f"no answer within {self._timeout / SECOND:g} s")
            self._race.abandon(now)
            self._drain(now)

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        due = self._race.deadline()
        if self._until is None or not self.is_busy:
            return due
        return self._until if due is None else min(due, self._until)

    def _drain(self, now: Instant) -> None:
        self._now = now
        if self._draining:  # what is told below may give it something to do
            return
        self._draining = True
        race, queue, owners = self._race, self._board.queue, self._board.owners
        while (output := race.poll()) is not None:
            if isinstance(output, Dial):
                owners[output.handle] = self
            elif isinstance(output, Shut):
                owners.pop(output.handle, None)
            if isinstance(output, ClientEvent):
                self._told(output, now)
            elif not isinstance(output, Transmit):
                queue.append(output)
        self._draining = False

    def _told(self, event: ClientEvent, now: Instant) -> None:
        match event:
            case PeerStream(number, data):
                connection = self._open.get(number)
                if connection is not None:
                    self._connections.arrived(connection, data, now)
            case PeerCongested(number, relieved):
                connection = self._open.get(number)
                if connection is not None:
                    self._connections.congested(connection, relieved=relieved)
            case PeerConnected(number, peer, incoming):
                self._connected(number, peer, incoming, now)
            case PeerClosed(number, cause, detail):
                connection = self._open.pop(number, None)
                if connection is not None:
                    self._connections.ended(connection, cause, detail)
            case PeerRefused(peer, method, error, number):
                key = None if number is None else self._opening.pop(number, None)
                if key is not None:
                    self._board.queue.append(PathClosed(*key, Cause.OTHER, str(error)))
                elif method == Method.CREATE_PERMISSION:
                    self._permitted.discard(peer.host)
            case Allocated():
                self._allocated(event, now)
            case Lost(error) | Failed(error):
                self._lost(str(error))
            case Dropped(reason):
                self._drops[reason] += 1
            case _:
                pass  # the others need nothing to be done

    def _allocated(self, event: Allocated, now: Instant) -> None:
        if self.is_over:  # it was given up while the answer was on its way
            self.release(now)
            return
        place = self.place
        relayed = event.relayed[0]
        self.source = Source(self.server.name, event.server.address.host, self._rank)
        self.bases = tuple(
            Base(
                next(self._ids),
                place.stream,
                place.component,
                "tcp",
                address,
                tcptype,
                relay=self.server.name,
                network=place.interface.name,
            )
            for address, tcptype in (
                # RFC 6544 section 4.5: it "MUST be identical to the IP address of a passive or
                # simultaneous-open candidate from the same relay server".
                (Address(relayed.host, DISCARD), TcpType.ACTIVE),
                (relayed, TcpType.PASSIVE),
            )
        )
        self._events.allocated(self, event.mapped, now)

    def _connected(self, number: Number, peer: Address, incoming: bool, now: Instant) -> None:
        key = self._opening.pop(number, None)
        if incoming and self.bases:
            base = self.bases[1]
            if not self._connections.admit(base, peer):
                key = None
            else:
                key = base, peer
        client = self._race.client
        if key is None:
            if client is not None:
                client.close(number, reset=True)
            return
        base, remote = key
        connection = Relayed(self, number, base, remote, accepted=incoming, now=now)
        self._open[number] = connection
        self._connections.add(connection)

    def _lost(self, why: str) -> None:
        if self.is_over:
            return
        self.is_over = True
        bases, self.bases = self.bases, ()
        for key in self._opening.values():
            self._board.queue.append(PathClosed(*key, Cause.OTHER, why))
        self._opening.clear()
        if bases:
            for base in bases:
                for connection in self._connections.of(base):
                    self._connections.ended(connection, Cause.OTHER, why)
                self._board.queue.append(BaseLost(base, why))
        self._open.clear()
        self._events.failed(self, why)


def targets(server: Server, host: str) -> list[Target]:
    """Return where a server may be asked for TCP relaying from an address of this host.

    RFC 6062 section 4.1: "TCP allocations cannot be obtained using a UDP association".
    """
    reliable = (Transport.TCP, Transport.TLS)
    found = [t for t in server.targets if t.transport in reliable and can_reach(host, t.address)]
    return found[:MOST_TARGETS]


def _family(host: str) -> RelayedFamily:
    """Ask for the relayed address that goes with ours; IPv4 is what servers give unasked."""
    return 6 if ":" in host else None
