"""``punch forward`` and ``punch expose``: TCP connections that come out at the other side.

The side that forwards has the listening socket and opens connections; the side that exposes has the
target, one, of its own choosing: a peer can ask for nothing else.  :mod:`ice.punch.mux` is between.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, assert_never

from ice.punch import events, mux
from ice.punch.link import PunchError, Stream, Traffic, greet
from ice.punch.output import Output
from stun.errors import UsageError

TAKE: Final = 1 << 17
"""Octets that are written to the stream at once."""
READ: Final = 1 << 18
DIAL_SECONDS: Final = 15.0
"""For how long the target may take to accept."""


def listening(host: str, port: int) -> socket.socket:
    """Return a listening socket; an empty host is every address.  Raises :class:`PunchError`.

    It is opened before the other side is met, so that what cannot be had is known at once;
    connections that come before wait.
    """
    try:
        if not host and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128
            )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise PunchError(
            "port", f"port {port} cannot be opened{f' at {host}' if host else ''}: {why}"
        ) from error


async def forward(stream: Stream, output: Output, server: socket.socket) -> None:
    """Carry every connection to ``server`` to the other side, until one side ends it.

    Raises :class:`ice.punch.link.PunchError`, or what the stream raises.
    """
    await greet(stream, "forward")
    tunnel = _Tunnel(stream, output, mux.Mux(opens=True))
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _Client(tunnel), sock=server)
    try:
        await tunnel.run()
    finally:
        listener.close()


async def expose(stream: Stream, output: Output, host: str, port: int) -> None:
    """Carry every connection of the other side to a port of this host, until one side ends it.

    Raises :class:`ice.punch.link.PunchError`, or what the stream raises.
    """
    await greet(stream, "expose")
    await _Exposing(stream, output, host, port).run()


class _Tunnel:
    """The machine, the stream and the local connections."""

    def __init__(self, stream: Stream, output: Output, machine: mux.Mux) -> None:
        self.mux = machine
        self.locals: dict[int, _Local] = {}
        self._stream = stream
        self._output = output
        self._traffic: Traffic = output.traffic
        self._wake = asyncio.Event()
        self._failure: PunchError | None = None
        self._over = False

    async def run(self) -> None:
        """Go on until the other side ends it, or the connection is lost."""
        writing = asyncio.create_task(self._write())
        try:
            reading = asyncio.create_task(self._read())
            try:
                await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                reading.cancel()
                writing.cancel()
            for ended in await asyncio.gather(reading, writing, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended
        finally:
            self._over = True
            for each in list(self.locals.values()):
                each.break_off()

    async def _read(self) -> None:
        while data := await self._stream.reader.read(READ):
            self._traffic.received += len(data)
            self.mux.receive(data)
            self.after()
        self._output.tell(events.Note("the other side has ended"))

    async def _write(self) -> None:
        writer = self._stream.writer
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._failure is not None:
                raise self._failure
            while self.mux.has_output:
                data = self.mux.take(TAKE)
                self._traffic.sent += len(data)
                writer.write(data)
                self.after()
                await writer.drain()

    def after(self) -> None:
        """Take from the machine what it tells.  Called after every call of it."""
        while (event := self.mux.poll()) is not None:
            self._take(event)
        if self.mux.has_output or self._failure is not None:
            self._wake.set()

    def _take(self, event: mux.Event) -> None:
        match event:
            case mux.Opened(number):
                self.dial(number)
            case mux.Accepted(number):
                self.told(number, "opened")
            case mux.Refused(number, why):
                self.told(number, "refused", why)
                self.locals.pop(number).break_off()
            case mux.Arrived(number, data):
                self.locals[number].write(data)
            case mux.PeerEnded(number):
                self.locals[number].write_eof()
            case mux.Writable(number):
                self.locals[number].go_on()
            case mux.Closed(number, None):
                self.told(number, "closed")
                self.locals.pop(number).close()
            case mux.Closed(number, why):
                self.told(number, "reset", why)
                self.locals.pop(number).break_off()
            case mux.Failed(why):
                text = f"the other side does not keep to the protocol: {why}"
                self._failure = PunchError("protocol", text)
            case _:
                assert_never(event)

    def dial(self, number: int) -> None:
        """Connect to the target."""
        raise NotImplementedError

    def told(self, number: int, state: events.State, why: str | None = None) -> None:
        """Tell what becomes of a connection."""
        if self._over:
            return
        local = self.locals.get(number)
        peer = "" if local is None else local.peer
        self._output.tell(events.Connection(number, state, peer, why))


class _Exposing(_Tunnel):
    """The side that has the target."""

    def __init__(self, stream: Stream, output: Output, host: str, port: int) -> None:
        super().__init__(stream, output, mux.Mux(opens=False))
        self._host, self._port = host, port

    def dial(self, number: int) -> None:
        self.locals[number] = _Target(self, number, self._host, self._port)


class _Local(asyncio.Protocol):
    """A connection of this host.  ``peer`` is its other end, in words."""

    peer = ""

    def __init__(self, tunnel: _Tunnel) -> None:
        self._tunnel = tunnel
        self._mux = tunnel.mux
        self._number = 0
        self._transport: asyncio.Transport | None = None
        self._held = False
        self._untaken = 0

    # What asyncio tells. --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._mux.is_open(self._number):
            return
        self._mux.write(self._number, data)
        if self._mux.room(self._number) <= 0 and self._transport is not None:
            self._transport.pause_reading()
        self._tunnel.after()

    def eof_received(self) -> bool:
        if self._mux.is_open(self._number):
            self._mux.write_eof(self._number)
            self._tunnel.after()
        return True  # the other direction goes on

    def pause_writing(self) -> None:
        self._held = True

    def resume_writing(self) -> None:
        self._held = False
        untaken, self._untaken = self._untaken, 0
        self._mux.consumed(self._number, untaken)
        self._tunnel.after()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._mux.is_open(self._number):
            why = "closed" if exc is None else _words(exc)
            self._mux.reset(self._number, f"{self.peer}: {why}" if self.peer else why)
            self._tunnel.told(self._number, "reset", why)
            self._tunnel.locals.pop(self._number, None)
            self._tunnel.after()

    # What the tunnel tells. -----------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write octets; they have been consumed when the kernel has about all of them."""
        if self._transport is not None:
            self._transport.write(data)
        if self._held:
            self._untaken += len(data)
        else:
            self._mux.consumed(self._number, len(data))

    def write_eof(self) -> None:
        """End this direction."""
        if self._transport is not None:
            with suppress(OSError):  # the connection is gone, which connection_lost() tells
                self._transport.write_eof()

    def go_on(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """End, after what has been written."""
        if self._transport is not None:
            self._transport.close()

    def break_off(self) -> None:
        """End with a RST, so that nobody takes it for a complete conversation."""
        if self._transport is not None:
            found = self._transport.get_extra_info("socket")
            if found is not None:
                with suppress(OSError):
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


class _Client(_Local):
    """A connection that came to the port that is forwarded."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = _shown(transport.get_extra_info("peername"))
        try:
            self._number = self._mux.open()
        except UsageError:
            self.break_off()
            return
        self._tunnel.locals[self._number] = self
        self._tunnel.after()


class _Target(_Local):
    """A connection to the target, or the attempt at one."""

    def __init__(self, tunnel: _Tunnel, number: int, host: str, port: int) -> None:
        super().__init__(tunnel)
        self._number = number
        self.peer = _shown((host, port))
        self._dialling = asyncio.create_task(self._dial(host, port))

    async def _dial(self, host: str, port: int) -> None:
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await _connect(lambda: self, host, port)
        except (OSError, TimeoutError) as error:
            if self._mux.is_open(self._number):
                why = _words(error)
                self._mux.refuse(self._number, f"{self.peer}: {why}")
                self._tunnel.told(self._number, "refused", why)
                self._tunnel.locals.pop(self._number, None)
        else:
            self._mux.accept(self._number)
            self._tunnel.told(self._number, "opened")
        self._tunnel.after()

    def break_off(self) -> None:
        self._dialling.cancel()
        super().break_off()


async def _connect(factory: Callable[[], _Local], host: str, port: int) -> None:
    """Connect to the first address of a name that accepts.  Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, proto, _, address in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, proto)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            await loop.create_connection(factory, sock=sock)
        except OSError as error:
            failure = failure or error
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return
    raise failure or OSError("the name has no address")


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {DIAL_SECONDS:g} s"
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno).lower()
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _shown(address: tuple[str, int] | None) -> str:
    if not address:
        return ""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
