"""Relayed TCP connections as asyncio's own streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from stun.sansio import Address, Cause
from turn.client.events import Connection, PeerClosed
from turn.client.machine import Client

StreamPair: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_ERRORS = {Cause.RESET: ConnectionResetError, Cause.TIMED_OUT: TimeoutError}


class PeerTransport(asyncio.Transport):
    """An :class:`asyncio.Transport` over a relayed connection.

    ``get_extra_info``: "peername" is the peer, "sockname" the relayed address.  There is no half
    close: RFC 6062 has a server close one side when the other closes.
    """

    def __init__(
        self,
        client: Client,
        connection: Connection,
        peer: Address,
        relayed: Address,
        flush: Callable[[], None],
    ) -> None:
        super().__init__({"peername": peer, "sockname": relayed})
        self._client = client
        self._connection = connection
        self._flush = flush
        self._protocol: asyncio.Protocol | None = None
        self._closing = False
        self._reading = True
        self.on_closed: Callable[[], object] = lambda: None

    # For protocols and streams. -------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand what arrives to another protocol."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return what gets what arrives."""
        assert self._protocol is not None
        return self._protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send octets; the driver keeps what the kernel does not take."""
        if data and not self._closing:
            self._client.write(self._connection, bytes(data))
            self._flush()

    def can_write_eof(self) -> bool:
        """Return False: see the class's text."""
        return False

    def get_write_buffer_size(self) -> int:
        """Return 0: what waits is the driver's, which says when it is too much."""
        return 0

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closing

    def is_reading(self) -> bool:
        """Whether what comes is handed on."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Leave what comes in the kernel, whose window then closes."""
        if self._reading:
            self._reading = False
            self._hold(True)

    def resume_reading(self) -> None:
        """Go on."""
        if not self._reading:
            self._reading = True
            self._hold(False)

    def _hold(self, held: bool) -> None:
        if not self._closing:
            self._client.hold(self._connection, held)
            self._flush()

    def close(self) -> None:
        """Send what waits, then close."""
        self._shut(reset=False)

    def abort(self) -> None:
        """Close at once."""
        self._shut(reset=True)

    def _shut(self, *, reset: bool) -> None:
        if not self._closing:
            self._client.close(self._connection, reset=reset)
            self._flush()
            self._finish(None)

    # For the relay. -------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take what came."""
        if self._protocol is not None and not self._closing:
            self._protocol.data_received(data)

    def congested(self, *, relieved: bool) -> None:
        """Take note of how much waits to be sent."""
        if self._protocol is not None and not self._closing:
            if relieved:
                self._protocol.resume_writing()
            else:
                self._protocol.pause_writing()

    def lost(self, event: PeerClosed | None) -> None:
        """Take note that the connection ended."""
        if self._closing:
            return
        if event is not None and event.cause is Cause.END_OF_STREAM:
            if self._protocol is not None:
                self._protocol.eof_received()
            self._finish(None)
        else:
            kind = ConnectionAbortedError if event is None else _ERRORS.get(event.cause)
            text = "the relay ended" if event is None else event.detail or event.cause.value
            self._finish((kind or ConnectionError)(text))

    def _finish(self, error: Exception | None) -> None:
        self._closing = True
        self.on_closed()
        if self._protocol is not None:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._protocol.connection_lost, error)


def make_streams(
    client: Client,
    connection: Connection,
    peer: Address,
    relayed: Address,
    flush: Callable[[], None],
) -> tuple[PeerTransport, StreamPair]:
    """Return the transport of a connection, and the two ends of asyncio's streams for it."""
    loop = asyncio.get_running_loop()
    transport = PeerTransport(client, connection, peer, relayed, flush)
    reader = asyncio.StreamReader(loop=loop)
    protocol: Any = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    return transport, (reader, asyncio.StreamWriter(transport, protocol, reader, loop))
