"""A host: addresses, sockets, and the part of the operating system between them and the wire.

Theory of operation.  A host has one or more interfaces; a packet leaves by the one that has its
source address.  UDP sockets, listeners and connections are three tables keyed by address.  A
segment is looked up by its four-tuple first, then among the connections in TIME_WAIT, then among
the listeners; nobody there means RST (TCP) or ICMP port unreachable (UDP).  A socket belongs to an
:class:`Application`, which is how a host sees the driver of a machine.

Sharing follows what SO_REUSEADDR with SO_REUSEPORT gives on Linux: a listener and any number of
dialled connections on one port, as long as no two have the same four-tuple.  Two listeners on one
port are refused, though Linux would deal connections out among them: no protocol here wants that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple, Protocol

from nattype.lab.sim.clock import Clock
from nattype.lab.sim.nat import reset_for
from nattype.lab.sim.tcp import TIME_WAIT, Connection, State
from nattype.lab.sim.wire import (
    ACK,
    DEFAULT_TTL,
    HOP,
    IPV4_HEADER,
    IPV6_HEADER,
    MAX_UDP_PAYLOAD,
    PORT_UNREACHABLE,
    RST,
    SYN,
    TCP,
    TCP_HEADER,
    UDP,
    Fate,
    IcmpError,
    Interface,
    Ledger,
    Packet,
    Segment,
    icmp_error,
)
from stun.sansio import Address, Cause, Handle, Instant, SocketEvent, Undeliverable

EPHEMERAL: Final = range(32_768, 61_000)
"""Linux: net.ipv4.ip_local_port_range."""
LOOPBACK: Final = ("127.0.0.1", "::1")
ANY: Final = ("0.0.0.0", "::")  # noqa: S104 - the wildcard address as a value


class Application(Protocol):
    """What owns sockets on a host."""

    pending: deque[SocketEvent]

    def datagram(self, packet: Packet) -> None:
        """Take a datagram that arrived for one of its sockets."""
        ...

    def pump(self) -> None:
        """Hand over what is pending and carry out what the machine then wants."""
        ...

    def adopt(self, connection: Connection) -> Handle:
        """Give an accepted connection its handle."""
        ...

    def release(self, handle: Handle) -> None:
        """Forget a handle."""
        ...


class UdpSocket(NamedTuple):
    """A bound UDP socket."""

    owner: Application
    local: Address


class Listener(NamedTuple):
    """A listening TCP port."""

    owner: Application
    handle: Handle
    local: Address
    silent: bool


class Waiting(NamedTuple):
    """A connection in TIME_WAIT."""

    until: Instant
    next: int
    acknowledged: int


class Host:
    """A machine on the network.  Made by :class:`~nattype.lab.sim.world.World`."""

    def __init__(self, name: str, clock: Clock, ledger: Ledger, random: Random) -> None:
        self.name = name
        self.ttl = DEFAULT_TTL
        self._clock = clock
        self._ledger = ledger
        self._random = random
        self._addresses: dict[str, Interface] = {}
        self._udp: dict[tuple[str, int], UdpSocket] = {}
        self._listeners: dict[tuple[str, int], Listener] = {}
        self._connections: dict[tuple[Address, Address], Connection] = {}
        self._time_wait: dict[tuple[Address, Address], Waiting] = {}

    # Addresses. ----------------------------------------------------------------------------------

    def add_address(self, host: str, interface: Interface) -> None:
        """Give the host another address, reachable over one of its interfaces."""
        interface.add(host)
        self._addresses[host] = interface

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address, in the order added, without loopback."""
        return tuple(self._addresses)

    def address(self, *, ipv6: bool = False) -> str:
        """Return the first address of a family; LookupError when there is none."""
        for host in self._addresses:
            if (":" in host) == ipv6:
                return host
        raise LookupError(f"{self.name} has no IPv{6 if ipv6 else 4} address")

    def interface(self, host: str) -> Interface:
        """Return the interface that has an address."""
        return self._addresses[host]

    def is_local(self, host: str) -> bool:
        """Whether a socket may be bound to this address."""
        return host in self._addresses or host in LOOPBACK or host in ANY

    def _source_for(self, local: Address, remote: Address) -> Address | None:
        """Return ``local`` with a wildcard replaced by the address that routing would choose."""
        if local.host not in ANY:
            return local
        if remote.host in self._addresses or remote.host in LOOPBACK:
            return Address(remote.host, local.port)
        try:
            return Address(self.address(ipv6=remote.is_ipv6), local.port)
        except LookupError:
            return None

    # UDP. ----------------------------------------------------------------------------------------

    def open_udp(self, owner: Application, local: Address) -> UdpSocket | Cause:
        """Bind a UDP socket, or say why not."""
        if not self.is_local(local.host):
            return Cause.ADDRESS_NOT_AVAILABLE
        if local.port == 0:
            port = self._ephemeral(lambda port: not self._udp_taken(local.host, port))
            if port is None:
                return Cause.ADDRESS_IN_USE
            local = Address(local.host, port)
        elif self._udp_taken(local.host, local.port):
            return Cause.ADDRESS_IN_USE
        socket = UdpSocket(owner, local)
        self._udp[local] = socket
        return socket

    def close_udp(self, socket: UdpSocket) -> None:
        """Free the socket's address."""
        if self._udp.get(socket.local) is socket:
            del self._udp[socket.local]

    def send_udp(
        self,
        owner: Application,
        source: Address,
        destination: Address,
        data: bytes,
        ttl: int | None,
    ) -> None:
        """Send a datagram from an open socket."""
        actual = self._source_for(source, destination)
        packet = Packet(actual or source, destination, data, self.ttl if ttl is None else ttl)
        self._ledger.send(packet, self.name)
        socket = self._udp_socket(packet.source)
        if socket is None or socket.owner is not owner:
            self._ledger.drop(packet, self.name, Fate.NOT_OPEN)
        elif len(data) > MAX_UDP_PAYLOAD:
            self._ledger.drop(packet, self.name, Fate.TOO_LONG)
        elif actual is None or source.is_ipv6 != destination.is_ipv6:
            self._ledger.drop(packet, self.name, Fate.NO_ROUTE)
        else:
            self._carry(packet)

    def _udp_socket(self, local: Address) -> UdpSocket | None:
        socket = self._udp.get(local)
        if socket is None:
            socket = self._udp.get((ANY[":" in local.host], local.port))
        return socket

    def _udp_taken(self, host: str, port: int) -> bool:
        ipv6 = ":" in host
        if host in ANY:
            return any(p == port and (":" in h) == ipv6 for h, p in self._udp)
        return (host, port) in self._udp or (ANY[ipv6], port) in self._udp

    # TCP. ----------------------------------------------------------------------------------------

    def listen(
        self, owner: Application, handle: Handle, local: Address, *, silent: bool
    ) -> Listener | Cause:
        """Listen on a port, or say why not."""
        if not self.is_local(local.host):
            return Cause.ADDRESS_NOT_AVAILABLE
        if local.port == 0:
            port = self._ephemeral(lambda port: not self._tcp_taken(port))
            if port is None:
                return Cause.ADDRESS_IN_USE
            local = Address(local.host, port)
        elif local in self._listeners:
            return Cause.ADDRESS_IN_USE
        listener = Listener(owner, handle, local, silent)
        self._listeners[local] = listener
        return listener

    def close_listener(self, listener: Listener) -> None:
        """Stop listening; connections that were accepted live on, half-open ones do not."""
        if self._listeners.get(listener.local) is not listener:
            return
        del self._listeners[listener.local]
        for key, connection in list(self._connections.items()):
            if (
                connection.state is State.SYN_RECEIVED
                and connection.owner is listener.owner
                and connection.listener == listener.handle
            ):
                connection.owner = None
                connection.disarm()
                del self._connections[key]

    def dial(
        self, owner: Application, handle: Handle, local: Address, remote: Address, ttl: int | None
    ) -> Connection | Cause:
        """Send a SYN, or say why not."""
        if not self.is_local(local.host):
            return Cause.ADDRESS_NOT_AVAILABLE
        actual = self._source_for(local, remote)
        if actual is None or actual.is_ipv6 != remote.is_ipv6:
            return Cause.UNREACHABLE
        local = actual
        if local.port == 0:
            port = self._ephemeral(lambda port: not self._tcp_taken(port))
            if port is None:
                return Cause.ADDRESS_NOT_AVAILABLE
            local = Address(local.host, port)
        if (local, remote) in self._connections or self._waiting(local, remote) is not None:
            # connect(2) says EADDRNOTAVAIL, "cannot assign requested address", when the local
            # address was given and the pair of endpoints exists.
            return Cause.ADDRESS_IN_USE
        connection = self._connection(owner, local, remote, handle=handle, ttl=ttl)
        connection.dial()
        return connection

    def emit(self, segment: Segment) -> None:
        """Send a segment of one of this host's connections."""
        self._ledger.send(segment, self.name)
        self._carry(segment)

    def arm(self, connection: Connection, delay: int) -> int:
        """Start a connection's timer."""
        return self._clock.at(self._clock.now + delay, self._tick, connection)

    def disarm(self, timer: int) -> None:
        """Stop a timer that has not gone off."""
        self._clock.cancel(timer)

    def gone(self, connection: Connection, *, time_wait: bool) -> None:
        """Take a connection out of the table."""
        key = (connection.local, connection.remote)
        if self._connections.get(key) is connection:
            del self._connections[key]
        if time_wait:
            self._time_wait[key] = Waiting(
                self._clock.now + TIME_WAIT, connection.next, connection.acknowledged
            )

    def time(self) -> Instant:
        """Return the instant."""
        return self._clock.now

    def _connection(
        self,
        owner: Application,
        local: Address,
        remote: Address,
        *,
        handle: Handle = 0,
        listener: Handle | None = None,
        ttl: int | None = None,
    ) -> Connection:
        interface = self._addresses.get(local.host)
        header = (IPV6_HEADER if local.is_ipv6 else IPV4_HEADER) + TCP_HEADER
        connection = Connection(
            self,
            owner,
            local,
            remote,
            initial=self._random.getrandbits(31),
            mss=(interface.mtu if interface is not None else 65_535) - header,
            handle=handle,
            listener=listener,
            first_ttl=self.ttl if ttl is None else ttl,
        )
        self._connections[local, remote] = connection
        return connection

    def _tick(self, connection: Connection, _: object) -> None:
        owner = connection.owner
        connection.on_timer()
        if owner is not None and owner.pending:
            owner.pump()

    def _waiting(self, local: Address, remote: Address) -> Waiting | None:
        waiting = self._time_wait.get((local, remote))
        if waiting is not None and waiting.until <= self._clock.now:
            del self._time_wait[local, remote]
            return None
        return waiting

    def _tcp_taken(self, port: int) -> bool:
        return (
            any(p == port for _, p in self._listeners)
            or any(local.port == port for local, _ in self._connections)
            or any(local.port == port for local, _ in self._time_wait)
        )

    def _ephemeral(self, free: Callable[[int], bool]) -> int | None:
        offset = self._random.randrange(len(EPHEMERAL))
        for n in range(len(EPHEMERAL)):
            port = EPHEMERAL[(offset + n) % len(EPHEMERAL)]
            if free(port):
                return port
        return None

    # Packets. ------------------------------------------------------------------------------------

    def _carry(self, packet: Packet) -> None:
        host = packet.destination.host
        if host in self._addresses or host in LOOPBACK:
            self._clock.at(self._clock.now + HOP, self.receive, packet)
            return
        interface = self._addresses.get(packet.source.host)
        if interface is None:
            self._ledger.drop(packet, self.name, Fate.NO_ROUTE)
            return
        interface.network.carry(packet, interface)

    def receive(self, packet: Packet, _: object = None) -> None:
        """Take a packet off the wire."""
        if packet.protocol == UDP:
            socket = self._udp.get(packet.destination) or self._udp_socket(packet.destination)
            if socket is not None:
                self._ledger.deliver(packet, self.name)
                socket.owner.datagram(packet)
                return
            self._ledger.drop(packet, self.name, Fate.NO_SOCKET)
            error = icmp_error(packet.destination.host, packet, PORT_UNREACHABLE)
            if error is not None:
                self._ledger.send(error, self.name)
                self._carry(error)
        elif isinstance(packet, Segment):
            self._receive_segment(packet)
        elif isinstance(packet, IcmpError):
            self._ledger.deliver(packet, self.name)
            self._receive_error(packet)

    def _receive_segment(self, segment: Segment) -> None:
        key = (segment.destination, segment.source)
        connection = self._connections.get(key)
        if connection is not None:
            self._ledger.deliver(segment, self.name)
            owner = connection.owner
            connection.on_segment(segment)
            if owner is not None and owner.pending:
                owner.pump()
            return
        listener = self._listeners.get(segment.destination) or self._listeners.get(
            (ANY[segment.destination.is_ipv6], segment.destination.port)
        )
        waiting = self._waiting(*key)
        if waiting is not None:
            if segment.flags & RST:
                # The hazard of RFC 1337, to which Linux is exposed by default like most stacks.
                self._ledger.deliver(segment, self.name)
                if segment.sequence == waiting.acknowledged:
                    del self._time_wait[key]
                return
            if not (segment.flags & SYN and listener is not None and not listener.silent):
                # RFC 9293 section 3.10.7.4: acknowledge a retransmitted FIN.  Linux answers a SYN
                # for which nobody listens in the same way.
                self._ledger.deliver(segment, self.name)
                self.emit(Segment(*key, ACK, waiting.next, acknowledgment=waiting.acknowledged))
                return
            del self._time_wait[key]
        if listener is not None and listener.silent:
            self._ledger.drop(segment, self.name, Fate.SILENT)
        elif listener is not None and segment.flags & (SYN | ACK | RST) == SYN:
            self._ledger.deliver(segment, self.name)
            fresh = self._connection(listener.owner, *key, listener=listener.handle)
            fresh.accept(segment)
        else:
            self._ledger.drop(segment, self.name, Fate.NO_SOCKET)
            reset = reset_for(segment)
            if reset is not None:
                self.emit(reset)

    def _receive_error(self, error: IcmpError) -> None:
        protocol, local, remote = error.quote
        text = f"ICMP type {error.icmp_type} code {error.code} from {error.source.host}"
        if protocol == UDP:
            socket = self._udp_socket(local)
            if socket is not None:
                socket.owner.pending.append(
                    Undeliverable(local, remote, error.icmp_type, error.code)
                )
                socket.owner.pump()
        elif protocol == TCP:
            connection = self._connections.get((local, remote))
            if connection is not None:
                owner = connection.owner
                connection.on_icmp(text)
                if owner is not None and owner.pending:
                    owner.pump()
