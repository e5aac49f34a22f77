"""Clients' connections: TCP, TLS and DTLS.

A connection is closed when it has had neither an allocation nor a request for a while, when it
breaks its framing, and when a client has too many.  Its allocation ends with it, unless the client
has a ticket to come back with (RFC 8016).

While a request of a stream waits for the user store the stream is *parked*: what is behind the
request is kept as it came, for what it is depends on the answer.  Nothing more is read meanwhile,
so one read of the driver is the most that waits.  Messages that are datagrams (DTLS) keep no order,
and there nothing waits for another.
"""

from __future__ import annotations

from collections.abc import Callable

from stun.discovery import Transport
from stun.errors import DropReason
from stun.framing import MAX_STUN, StunStream
from stun.sansio import Accepted, Handle, Hold, Instant, Shut
from turn.server.allocate import Allocator
from turn.server.allocation import Flow
from turn.server.core import LONGEST_REQUEST, Connection, Core
from turn.server.events import EndReason
from turn.server.lifetimes import Lifetimes
from turn.server.mobility import Tickets


class Connections:
    """Accepts connections, cuts them into messages, and closes them."""

    def __init__(
        self,
        core: Core,
        lifetimes: Lifetimes,
        tickets: Tickets,
        allocator: Allocator,
        on_message: Callable[[bytes, Flow, Instant], None],
    ) -> None:
        self._core = core
        self._lifetimes = lifetimes
        self._tickets = tickets
        self._allocator = allocator
        self._on_message = on_message

    def accepted(self, event: Accepted, now: Instant) -> None:
        """Take a client's connection, or close it."""
        core = self._core
        listener = core.listeners.get(event.listener)
        if listener is None or core.quotas.connect(event.remote.host) is not None:
            core.drop(DropReason.REFUSED_BY_POLICY)
            core.queue(Shut(event.handle, reset=True))
            return
        if listener.at.transport in (Transport.UDP, Transport.DTLS):
            transport, stream = Transport.DTLS, None
        else:
            transport = Transport.TLS if event.secure else Transport.TCP
            stream = StunStream(channel_data=True, limit=LONGEST_REQUEST)
        flow = Flow(transport, event.remote, event.local, event.handle)
        connection = Connection(flow, listener, stream, now)
        core.connections[event.handle] = connection
        core.expiry.set(connection, now + core.config.idle)
        core.metrics.connections_accepted[transport] += 1

    def arrived(self, connection: Connection, data: bytes, now: Instant) -> None:
        """Take octets of a connection."""
        if connection.stream is None:
            self._on_message(data, connection.flow, now)
            return
        connection.stream.push(data)
        self._go_on(connection, connection.stream, now)

    def _go_on(self, connection: Connection, stream: StunStream, now: Instant) -> None:
        """Take the messages that are complete, up to one that has to wait."""
        core, flow = self._core, connection.flow
        # One at a time, for what follows a ConnectionBind may be data already (RFC 6062 section
        # 5.4), which is not to be taken for messages.
        while not connection.parked and (octets := stream.pop()) is not None:
            self._on_message(octets, flow, now)
            if flow.connection not in core.connections:
                return
        if stream.error is not None:
            core.drop(stream.error.reason)
            self.close(connection, now)
        else:
            self._steer(connection)

    def resume(self, connection: Connection, now: Instant) -> None:
        """Go on behind a request that has waited and was answered, or may be waiting again."""
        # It was us that the client waited for.
        connection.seen = now
        stream = connection.stream
        if stream is not None and connection.flow.connection in self._core.connections:
            self._go_on(connection, stream, now)

    def congested(self, connection: Connection, *, congested: bool) -> None:
        """Take note of whether a client takes what is written to it."""
        connection.congested = congested
        self._steer(connection)

    def _steer(self, connection: Connection) -> None:
        """Have the driver read or not.

        By itself it does not read from a client that takes no answers.  Once it was told of a
        connection that is decided here (:class:`stun.sansio.Hold`).
        """
        if connection.held is None and not connection.parked:
            return
        held = connection.parked or connection.congested
        if held is not connection.held:
            connection.held = held
            self._core.queue(Hold(connection.flow.connection, held))

    def trust(self, connection: Connection) -> None:
        """Take messages of any length: the client has proved who it is."""
        if connection.stream is not None:
            connection.stream.allow(MAX_STUN)

    def close(self, connection: Connection, now: Instant) -> None:
        """Close a connection from this side."""
        self._core.queue(Shut(connection.flow.connection))
        self.closed(connection.flow.connection, now)

    def closed(self, handle: Handle, now: Instant) -> None:
        """Forget a connection that is closed, and what depends on it."""
        core = self._core
        connection = core.connections.pop(handle)
        core.expiry.cancel(connection)
        core.quotas.disconnect(connection.flow.client.host)
        self._allocator.abort(connection.flow)
        allocation = core.allocations.get(handle)
        if allocation is not None and not self._tickets.left(allocation, handle, now):
            self._lifetimes.end(allocation, EndReason.CONNECTION_CLOSED, now)

    def idle(self, connection: Connection, now: Instant) -> None:
        """Close a connection if nothing has come of it."""
        core = self._core
        if connection.parked or connection.flow.connection in core.allocations:
            core.expiry.set(connection, now + core.config.idle)
        elif connection.seen + core.config.idle > now:
            core.expiry.set(connection, connection.seen + core.config.idle)
        else:
            self.close(connection, now)

    def reconfigure(self, now: Instant) -> None:
        """Close the connections that ride on the socket of a listener that is shut (DTLS)."""
        core = self._core
        for connection in list(core.connections.values()):
            gone = connection.listener.handle not in core.listeners
            if gone and connection.flow.transport is Transport.DTLS:
                self.close(connection, now)

    def stop(self) -> None:
        """Close every connection."""
        core = self._core
        for handle, connection in core.connections.items():
            core.expiry.cancel(connection)
            core.quotas.disconnect(connection.flow.client.host)
            core.queue(Shut(handle))
        core.connections.clear()
