"""The seam between a driver and whatever carries its datagrams, and what is behind it by default.

:class:`stun.sockets.Sockets` has no UDP socket of its own.  It passes the machine's orders to a
:class:`Datagrams`, which calls back through :class:`Core`.  :class:`UdpDatagrams` is one socket an
order, drained in a plain loop; a relay puts a data plane in its place that forwards most packets
without the machine ever hearing of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from stun.sansio import (
    Address,
    Closed,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Security,
    SocketEvent,
    SocketMachine,
    Transmit,
)
from stun.sockaddr import cause_of_bind, detail_of
from stun.udp import UdpSocket

Callback: TypeAlias = Callable[[], None]


class Reactor(Protocol):
    """What a runtime gives."""

    def now(self) -> Instant:
        """Return the monotonic time in nanoseconds."""
        ...

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None) -> None:
        """Call back while ``fd`` is ready, level-triggered, in place of what was watched before."""
        ...

    def unwatch(self, fd: int) -> None:
        """Watch ``fd`` no longer; nothing happens when it is not watched."""
        ...

    def wake_at(self, at: Instant | None) -> None:
        """Call :meth:`Sockets.on_time` at ``at``, in place of any earlier order.  May be early."""
        ...


class Core(Protocol):
    """What the parts of a driver need of the driver they belong to.

    A callback from the reactor hands over everything it has, then ends with :meth:`settle`.
    """

    @property
    def machine(self) -> SocketMachine[Any]:
        """The machine.  Each call into it is followed by :meth:`pump`."""
        ...

    @property
    def reactor(self) -> Reactor:
        """Where descriptors are watched."""
        ...

    def pump(self) -> None:
        """Carry out what the machine has queued."""
        ...

    def tell(self, event: SocketEvent) -> None:
        """Tell the machine, now or as soon as its queue is drained; includes :meth:`pump`."""
        ...

    def encrypted(self, packet: Received, handle: Handle) -> None:
        """Take a packet of a socket that serves DTLS, in place of the machine.

        With :attr:`Security.REQUIRED` every packet goes here, with :attr:`Security.DETECT` those
        whose first octet is 20 to 63 (RFC 7983 section 7), see :func:`is_encrypted`.
        """
        ...

    def settle(self) -> None:
        """End a wake-up: flush the datagrams, order the next wake-up."""
        ...


class Datagrams(Protocol):
    """UDP for one machine."""

    def open(self, order: OpenUdp) -> Opened | Closed:
        """Bind a socket and start to read it."""
        ...

    def shut(self, handle: Handle) -> bool:
        """Close a socket; say whether there was one.  Nothing of it is handed over afterwards."""
        ...

    def send(self, transmit: Transmit) -> None:
        """Send, now or at the next :meth:`flush`.  Never raises: what cannot be sent is counted."""
        ...

    def flush(self) -> None:
        """Send what :meth:`send` has collected.  Called at the end of each wake-up."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Return what was received, sent and refused since the start, in words for a person."""
        ...

    def close(self) -> None:
        """Close every socket."""
        ...


DatagramsFactory: TypeAlias = Callable[[Core], Datagrams]


def is_encrypted(data: bytes, security: Security) -> bool:
    """Whether a packet on a socket with ``security`` is for :meth:`Core.encrypted`."""
    if security is Security.DETECT:
        return bool(data) and 20 <= data[0] < 64
    return security is Security.REQUIRED


class UdpDatagrams:
    """One :class:`stun.udp.UdpSocket` for each order, each datagram sent at once."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._sockets: dict[Handle, UdpSocket] = {}
        self._from: dict[Address, UdpSocket] = {}
        self._counts: Counter[str] = Counter()

    def open(self, order: OpenUdp) -> Opened | Closed:
        """Bind a socket and start to read it."""
        try:
            port = UdpSocket(order.handle, order.local)
        except OSError as error:
            return Closed(order.handle, cause_of_bind(error), detail_of(error))
        self._sockets[order.handle] = port
        self._from[port.local] = port
        readable = (
            (lambda: self._readable(port))
            if order.security is Security.NONE
            else (lambda: self._readable_secured(port, order.security))
        )
        self._core.reactor.watch(port.sock.fileno(), readable, None)
        return Opened(order.handle, port.local)

    def shut(self, handle: Handle) -> bool:
        """Close a socket; say whether there was one."""
        port = self._sockets.pop(handle, None)
        if port is None:
            return False
        del self._from[port.local]
        self._core.reactor.unwatch(port.sock.fileno())
        port.close()
        _count(self._counts, port)
        return True

    def send(self, transmit: Transmit) -> None:
        """Send from the socket that has the source address."""
        source = transmit.source
        port = self._from.get(source) or self._wildcard_for(source)
        if port is None:
            self._counts["not sent: no socket has this source address"] += 1
        elif transmit.ttl is None:
            port.send(transmit.data, transmit.destination, source)
        else:
            port.send_short(transmit.data, transmit.destination, transmit.ttl)

    def flush(self) -> None:
        """Do nothing: every datagram is sent at once."""

    def counters(self) -> Mapping[str, int]:
        """Return what was received, sent and refused."""
        counts = Counter(self._counts)
        for port in self._sockets.values():
            _count(counts, port)
        return counts

    def close(self) -> None:
        """Close every socket."""
        for handle in [*self._sockets]:
            self.shut(handle)

    def _wildcard_for(self, source: Address) -> UdpSocket | None:
        host = "::" if source.is_ipv6 else "0.0.0.0"  # noqa: S104  (a lookup, not a bind)
        return self._from.get(Address(host, source.port))

    def _readable(self, port: UdpSocket) -> None:
        core, handle, ours = self._core, port.handle, self._sockets
        packets, errors = port.drain()
        now = core.reactor.now()
        receive, pump = core.machine.receive, core.pump
        for packet in packets:
            if ours.get(handle) is not port:  # shut because of the packet before: nothing follows
                break
            receive(packet, now)
            pump()
        else:
            for error in errors:
                core.tell(error)
        core.settle()

    def _readable_secured(self, port: UdpSocket, security: Security) -> None:
        core, handle, ours = self._core, port.handle, self._sockets
        packets, errors = port.drain()
        now = core.reactor.now()
        for packet in packets:
            if ours.get(handle) is not port:
                break
            if is_encrypted(packet.data, security):
                core.encrypted(packet, handle)
            else:
                core.machine.receive(packet, now)
                core.pump()
        else:
            for error in errors:
                core.tell(error)
        core.settle()


def _count(counts: Counter[str], port: UdpSocket) -> None:
    counts["datagrams received"] += port.received
    counts["datagrams sent"] += port.sent
    for reason, count in port.refused.items():
        counts[f"not sent: {reason}"] += count
