"""The asyncio driver: gives real sockets and time to any machine.

    async with Driver(machine, on_event=print) as driver:
        machine.some_command(driver.now())
        driver.flush()
        await driver.run()

Datagrams do not pass through asyncio's protocols: a socket is watched with ``loop.add_reader`` and
drained in a loop, so the price of the event loop is paid once a batch.  One timer is armed at a
time.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from stun.sansio import SECOND, Accepted, Address, Arrived, Handle, Instant, SocketMachine
from stun.sockets import Callback, DatagramsFactory, Sockets, UdpDatagrams

if TYPE_CHECKING:
    import socket

    from stun.discovery import Transport
    from stun.resolver import Family
    from stun.tls import ClientTls, ServerTls
    from stun.uri import StunUri

Event = TypeVar("Event")


class Driver(Generic[Event]):
    """Runs one :class:`stun.sansio.SocketMachine` on the running event loop.

    Use it as an asynchronous context manager: on leaving, also by cancellation, every descriptor is
    closed.  What the machine tells goes to ``on_event``, or is kept for :meth:`events` without one.
    After a command to the machine call :meth:`flush`; within ``on_event`` that is not needed.

    ``tls`` verifies what the machine dials with a server name (the system's trust store by
    default).  ``server_tls`` is the certificate for ports that the machine opens with a
    :class:`stun.sansio.Security`; ``tls_ports`` gives contexts for listeners by port instead.  The
    PROXY protocol is required on the ports of ``proxies``, from the networks given there and from
    nobody else.  ``datagrams`` makes what carries UDP.

    An exception of the machine or of ``on_event`` ends the driver and is raised by :meth:`run`,
    :meth:`events` and on leaving the context.
    """

    def __init__(
        self,
        machine: SocketMachine[Event],
        *,
        on_event: Callable[[Event], None] | None = None,
        tls: ssl.SSLContext | ClientTls | None = None,
        tls_ports: Mapping[int, ssl.SSLContext] | None = None,
        server_tls: ServerTls | None = None,
        proxies: Mapping[int, Iterable[str]] | None = None,
        datagrams: DatagramsFactory = UdpDatagrams,
    ) -> None:
        self.machine = machine
        self._reactor = _AsyncioReactor(self._guarded)
        self._sockets: Sockets[Event] = Sockets(
            machine,
            self._reactor,
            on_event or self._keep,
            tls=tls,
            tls_ports=tls_ports,
            server_tls=server_tls,
            proxies=proxies,
            datagrams=datagrams,
        )
        self._reactor.on_time = self._sockets.on_time
        self._failure: BaseException | None = None
        self._ended = False
        self._wakeup: asyncio.Event = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._reactor.loop = asyncio.get_running_loop()
        try:
            self.flush()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if self._failure is not None and error is None:
            raise self._failure

    def take(self, kind: type, perform: Callable[[Any], None]) -> None:
        """Give what the machine polls of this type to ``perform`` instead of ``on_event``."""
        self._sockets.take(kind, perform)

    def now(self) -> Instant:
        """Return the time that commands to the machine take, in nanoseconds."""
        return self._reactor.now()

    def flush(self) -> None:
        """Carry out what the machine has queued: to be called after a command."""
        if not self._ended:
            self._sockets.flush()

    def detach(self, handle: Handle) -> tuple[socket.socket, bytes]:
        """Give up a stream of the machine: its socket, and the octets still to be sent on it.

        Raises :class:`stun.errors.UsageError` for what is not an open stream without TLS.
        """
        return self._sockets.streams.detach(handle)

    def adopt(
        self,
        sock: socket.socket,
        local: Address,
        remote: Address,
        *,
        handle: Handle | None = None,
        listener: Handle | None = None,
        secure: bool = False,
        data: bytes = b"",
        unsent: bytes = b"",
    ) -> None:
        """Take a connected stream socket that comes from elsewhere, and is to have this ``handle``.

        With a ``listener`` the machine is told that it was accepted there, ``secure`` or not, and
        that ``data`` has arrived on it.  ``unsent`` is sent first.
        """
        made = self._sockets.streams.adopt(
            sock, local, remote, handle=handle, listener=listener, unsent=unsent
        )
        if listener is not None:
            self._sockets.tell(Accepted(listener, made, local, remote, secure))
            if data:
                self._sockets.tell(Arrived(made, data))
        self._sockets.settle()

    def serve_on(self, given: Callable[[str, Address], socket.socket | None]) -> None:
        """Take listening sockets from ``given`` instead of opening them.

        It gets the protocol ("tcp") and the local address, and may raise ``OSError``; where it has
        none, one is opened.
        """
        self._sockets.streams.given = lambda local: given("tcp", local)

    @property
    def counters(self) -> Mapping[str, int]:
        """What was sent, received and refused, in words for a person."""
        return self._sockets.counters

    def serve_with(
        self,
        server_tls: ServerTls | None,
        proxies: Mapping[int, Iterable[str]],
        tls_ports: Mapping[int, ssl.SSLContext] | None = None,
    ) -> None:
        """Use another certificate and trust other proxies, for what connects from now on.

        ``tls_ports``, if given, is for listeners that are opened from now on.
        """
        self._sockets.serve_with(server_tls, proxies, tls_ports)

    async def run(self) -> None:
        """Serve until cancelled, or until :meth:`close`."""
        while not self._ended:
            await self._next_wakeup()
        self._raise_failure()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what the machine tells, until :meth:`close`."""
        while True:
            while self._sockets.kept:
                yield self._sockets.kept.popleft()
            if self._ended:
                break
            await self._next_wakeup()
        self._raise_failure()

    async def see_off(self, patience: float) -> None:
        """Wait until streams that the machine has shut have sent what they keep.

        At most ``patience`` seconds: :meth:`close`, which is to follow, resets those that have not.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        # Looked at now and then: it is done once in a life, too seldom to be an event.
        while self._sockets.streams.owed and not self._ended and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Close every descriptor; :meth:`run` and :meth:`events` come to an end."""
        self._ended = True
        self._sockets.close()
        self._wakeup.set()

    async def _next_wakeup(self) -> None:
        await self._wakeup.wait()
        self._wakeup.clear()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _keep(self, event: Event) -> None:
        self._sockets.keep(event)
        self._wakeup.set()

    def _guarded(self, callback: Callback) -> None:
        try:
            callback()
        except BaseException as error:
            self._failure = error
            self.close()
            if not isinstance(error, Exception):
                raise


async def binding(
    server: str | StunUri,
    *,
    transport: Transport | None = None,
    family: Family = None,
    timeout: float = 10.0,  # noqa: ASYNC109  (it is the transaction's, not the caller's patience)
    tls: ssl.SSLContext | None = None,
) -> Address:
    """Return the transport address that a STUN server sees this machine as.

    ``server`` is a ``stun:`` or ``stuns:`` URI, or a host with or without a port; names are looked
    up as RFC 8489 section 8 says.  ``transport`` is UDP by default, TLS for ``stuns:``; ``family``
    is 4 or 6, both by default; ``timeout`` in seconds, after the lookup; ``tls`` as for
    :class:`Driver`.  Raises :class:`stun.errors.StunError`, which says what failed.
    """
    # Not at the top: who drives machines of his own needs neither the resolver nor the client.
    from stun.binding import Answered, BindingQuery, NotAnswered
    from stun.resolver import resolve_async

    targets = await resolve_async(server, transport=transport, family=family)
    query = BindingQuery(targets, patience=int(timeout * SECOND), entropy=os.urandom)
    driver: Driver[Answered | NotAnswered] = Driver(query, tls=tls)
    async with driver:
        query.start(driver.now())
        driver.flush()
        async with aclosing(driver.events()) as events:
            async for event in events:
                if isinstance(event, NotAnswered):
                    raise event.error
                return event.mapped
    raise AssertionError("a query always ends with an event")


class _AsyncioReactor:
    """A :class:`stun.sockets.Reactor` on an event loop that has ``add_reader``."""

    def __init__(self, guarded: Callable[[Callback], None]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.on_time: Callback = lambda: None
        self._guarded = guarded
        self._timer: asyncio.TimerHandle | None = None
        self._at: Instant = 0
        self._reading: set[int] = set()
        self._writing: set[int] = set()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self.loop is None:
            self.loop = asyncio.get_running_loop()
        return self.loop

    def now(self) -> Instant:
        return int(self._running().time() * 1e9)

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None) -> None:
        loop = self._running()
        if readable is not None:
            loop.add_reader(fd, self._guarded, readable)
            self._reading.add(fd)
        elif fd in self._reading:
            loop.remove_reader(fd)
            self._reading.discard(fd)
        if writable is not None:
            loop.add_writer(fd, self._guarded, writable)
            self._writing.add(fd)
        elif fd in self._writing:
            loop.remove_writer(fd)
            self._writing.discard(fd)

    def unwatch(self, fd: int) -> None:
        self.watch(fd, None, None)

    def wake_at(self, at: Instant | None) -> None:
        if self._timer is not None:
            # A timer that comes early does no harm, so one that is due before is left alone: a
            # deadline that moves away with every packet then costs nothing.
            if at is not None and self._at <= at:
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._at = at
            self._timer = self._running().call_at(max(at, self.now()) / 1e9, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._guarded(self.on_time)
