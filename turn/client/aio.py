"""Relaying through a TURN server, with asyncio.

    async with turn.connect("turn:relay.example", username="user", password="secret") as relay:
        await relay.permit(peer)             # (host, port), learned by other means
        relay.send(b"hello", peer)           # never blocks
        data, peer = await relay.recv()

    async with turn.connect("turn:relay.example", ..., protocol="tcp") as relay:
        reader, writer = await relay.open_connection(peer)       # asyncio's own stream classes

The allocation, permissions and channels are kept alive until the context is left.  Cancelling any
of these calls leaves nothing behind.

Back-pressure.  What is received waits in a queue of ``receive_limit`` datagrams; what comes beyond
that is dropped and counted (:attr:`Relay.counters`), as a socket does.  :meth:`Relay.send` hands a
datagram to the kernel at once; over TCP and TLS it drops, and counts, while more waits for the
server than it reads, and :meth:`Relay.drain` waits for that to be over.  Relayed TCP connections
have the flow control of asyncio's streams in both directions.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Hashable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, Unpack

from stun.aio import Driver
from stun.credentials import LongTerm, ThirdParty
from stun.discovery import Target
from stun.errors import StunError
from stun.sansio import Address
from turn.client.config import ClientConfig
from turn.client.events import (
    ClientEvent,
    Connection,
    PeerClosed,
    PeerCongested,
    PeerConnected,
    PeerStream,
)
from turn.client.race import Race
from turn.client.relay import RECEIVE_LIMIT, RelayClosed, Relaying
from turn.client.setup import (
    Options,
    Protocol,
    Wanted,
    as_credentials,
    as_peer,
    as_uri,
    supported,
)
from turn.client.streams import PeerTransport, StreamPair, make_streams

if TYPE_CHECKING:
    from stun.resolver import Family
    from stun.tls import ClientTls
    from stun.uri import TurnUri

Incoming: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter, Address]
"""A connection that a peer opened, and the peer."""

FAREWELL: Final = 2.5
"""Seconds that giving the allocation back may take on leaving."""


def connect(
    server: str | TurnUri | Target,
    *,
    username: str | None = None,
    password: str | None = None,
    credentials: LongTerm | ThirdParty | None = None,
    protocol: Protocol = "udp",
    address_family: Family = None,
    timeout: float = 30.0,
    tls: ssl.SSLContext | ClientTls | None = None,
    receive_limit: int = RECEIVE_LIMIT,
    on_event: Callable[[ClientEvent], None] | None = None,
    **options: Unpack[Options],
) -> Connecting:
    """Get a relay: use it as ``async with turn.connect(...) as relay``, or ``await`` it.

    ``server``: a ``turn:`` or ``turns:`` URI or the bare host, looked up as RFC 5928 says; its
    alternatives are tried in order, each when the one before has failed or kept everybody waiting
    for a second.  Or a :class:`stun.discovery.Target`, which is one server and one transport.
    ``username`` and ``password``, or ``credentials``: a :class:`stun.credentials.LongTerm` or, for
    RFC 7635, a :class:`stun.credentials.ThirdParty`.  ``protocol``: "tcp" relays connections
    (RFC 6062).  ``address_family``: 4 or 6 for the way to the server; ``family`` (4, 6 or "dual")
    for the relayed address.  ``timeout`` in seconds, for all of it.  ``tls`` verifies the server,
    the system's trust store by default.  ``on_event`` is told every event but arriving data.  The
    other options are those of :class:`turn.client.config.ClientConfig`.

    Raises :class:`stun.errors.StunError`: the text names the server and says what to do.
    """
    wanted = Wanted(
        server,
        as_credentials(username, password, credentials),
        protocol,
        address_family,
        timeout,
        options,
    )
    return Connecting(
        wanted,
        lambda configs: Relay(configs, tls=tls, receive_limit=receive_limit, on_event=on_event),
    )


class Connecting:
    """A relay that is to be: enter it as a context, or await it and call :meth:`Relay.aclose`."""

    def __init__(self, wanted: Wanted, make: Callable[[list[ClientConfig]], Relay]) -> None:
        self._wanted = wanted
        self._make = make
        self._relay: Relay | None = None

    def __await__(self) -> Generator[Any, None, Relay]:
        return self._connect().__await__()

    async def __aenter__(self) -> Relay:
        self._relay = await self._connect()
        return self._relay

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._relay is not None
        await self._relay.aclose()

    async def _connect(self) -> Relay:
        relay: Relay | None = None
        try:
            async with asyncio.timeout(self._wanted.timeout):
                relay = self._make(self._wanted.configs(await self._targets()))
                await relay._open()
        except TimeoutError:
            raise self._wanted.too_late([] if relay is None else relay._race.errors) from None
        return relay

    async def _targets(self) -> list[Target]:
        from stun.resolver import resolve_async

        wanted = self._wanted
        if isinstance(wanted.server, Target):
            return [wanted.server]
        return await resolve_async(
            as_uri(wanted.server),
            supported=supported(wanted.protocol),
            family=wanted.address_family,
        )


class Relay(Relaying["asyncio.Future[Any]"]):
    """A relayed transport address and what goes through it.  Made by :func:`connect`."""

    def __init__(
        self,
        configs: list[ClientConfig],
        *,
        tls: ssl.SSLContext | ClientTls | None = None,
        receive_limit: int = RECEIVE_LIMIT,
        on_event: Callable[[ClientEvent], None] | None = None,
    ) -> None:
        race = Race(configs, entropy=os.urandom)
        super().__init__(race, receive_limit=receive_limit, on_event=on_event)
        if tls is None and any(config.server.transport.is_secure for config in configs):
            from stun.tls import ClientTls

            tls = ClientTls()
        self._driver: Driver[ClientEvent] = Driver(race, on_event=self.take, tls=tls)
        self._watch: asyncio.Task[None] | None = None
        self._streams: dict[Connection, PeerTransport] = {}
        self._incoming: deque[Incoming] = deque()

    # Life. ----------------------------------------------------------------------------------------

    async def _open(self) -> None:
        await self._driver.__aenter__()
        self._watch = asyncio.create_task(self._driver.run(), name="TURN relay")
        self._watch.add_done_callback(self._driver_ended)
        try:
            self._race.start(self._driver.now())
            self._driver.flush()
            await self._wait("allocate")
        except BaseException:
            await self._abandon()
            raise

    def _driver_ended(self, watch: asyncio.Task[None]) -> None:
        failure = None if watch.cancelled() else watch.exception()
        if failure is not None and self._end is None:
            broken = StunError(f"the relay's driver failed: {failure!r}")
            broken.__cause__ = failure
            self._on_end(broken)

    async def aclose(self) -> None:
        """Give the allocation back, at most for :data:`FAREWELL` seconds, and shut every socket."""
        try:
            if self._end is None and self._race.client is not None:
                released = self._future("release")
                self._race.client.release(self._driver.now())
                self._driver.flush()
                await asyncio.wait([released], timeout=FAREWELL)
        finally:
            await self._abandon()

    async def _abandon(self) -> None:
        """Shut every socket at once."""
        if self._end is None:
            self._race.abandon(self._driver.now())
            self._driver.flush()
        self._driver.close()
        self._on_end(RelayClosed("the relay is closed"))
        if self._watch is not None:
            # It ends by itself now that the driver is closed; what failed is known already.
            await asyncio.wait([self._watch])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _ended(self) -> None:
        for transport in [*self._streams.values()]:
            transport.lost(None)
        self._streams.clear()

    @property
    def counters(self) -> Mapping[str, int]:
        """What was sent, received and dropped, in words for a person."""
        return self._counters(self._driver.counters)

    # Datagrams. -----------------------------------------------------------------------------------

    async def permit(self, *peers: tuple[str, int] | str) -> None:
        """Let peers send: (host, port) or only the host, as the port does not matter.

        Raises :class:`turn.client.errors.Forbidden` and others when the server refuses one.
        """
        addresses = [as_peer((p, 0) if isinstance(p, str) else p) for p in peers]
        client = self._client
        futures = [self._future(("permit", peer.host)) for peer in addresses]
        try:
            client.permit(*addresses, now=self._driver.now())
            self._driver.flush()
            await asyncio.wait(futures) if futures else None
        finally:
            for future in futures:
                self._leave(future)
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]

    async def bind(self, peer: tuple[str, int]) -> int:
        """Bind a channel to a peer, which saves 32 octets a datagram; its number.

        Not necessary: peers that are sent to more than a few times get one by themselves.
        """
        address = as_peer(peer)
        client, now = self._client, self._driver.now()
        return int(await self._ask(("bind", address), lambda: client.bind(address, now)))

    def forget(self, peer: tuple[str, int]) -> None:
        """Keep the permission and the channel of a peer no longer alive."""
        self._client.forget(as_peer(peer))

    def send(self, data: bytes, peer: tuple[str, int], *, dont_fragment: bool = False) -> None:
        """Send a datagram to a peer.  Never blocks; nothing tells whether it arrives.

        Without a permission for the peer one is installed, and the first few datagrams wait for it
        (sixteen, the others are counted in ``counters``); :meth:`permit` before a burst.
        """
        driver = self._driver
        self._client.send(as_peer(peer), data, driver.now(), dont_fragment=dont_fragment)
        driver.flush()

    async def drain(self) -> None:
        """Wait until the connection to the server takes more, where it is a stream."""
        if self._congested and self._end is None:
            await self._one(self._future("drain"))

    async def recv(self) -> tuple[bytes, Address]:
        """Return the next datagram and the peer that sent it.

        Raises what ended the relay when it has ended and nothing is left:
        :class:`turn.client.errors.AllocationLost`, or ``RelayClosed``.
        """
        while not self._arrived:
            await self._turn("receive", lambda: bool(self._arrived))
        return self._arrived.popleft()

    def recv_nowait(self) -> tuple[bytes, Address] | None:
        """Return the next datagram if one is there."""
        return self._arrived.popleft() if self._arrived else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, Address]:
        return await self.recv()

    # The allocation. ------------------------------------------------------------------------------

    async def refresh(self, lifetime: int | None = None) -> int:
        """Refresh now; the seconds that the server gave.  It also happens by itself."""
        client, now = self._client, self._driver.now()
        return int(await self._ask("refresh", lambda: client.refresh(now, lifetime=lifetime)))

    async def move(self, local: tuple[str, int] | None = None) -> Address:
        """Go on from another local address after a change of networks (RFC 8016).

        The relay must have been made with ``mobility``.  Relayed addresses, permissions and
        channels stay.  Returns the new local address.
        """
        client, now = self._client, self._driver.now()
        at = None if local is None else as_peer(local)
        moved: Address = await self._ask("move", lambda: client.move(now, local=at))
        return moved

    # Connections (RFC 6062). ----------------------------------------------------------------------

    async def open_connection(self, peer: tuple[str, int]) -> StreamPair:
        """Open a TCP connection to a peer through the relay.

        Returns an :class:`asyncio.StreamReader` and an :class:`asyncio.StreamWriter`.  Raises
        :class:`turn.client.errors.PeerNotReached` and others.
        """
        client = self._client
        self._must_relay_tcp("open_connection")
        connection = client.connect(as_peer(peer), self._driver.now())
        future = self._future(("connect", connection))
        self._driver.flush()
        try:
            pair: StreamPair = await self._one(future)
        except asyncio.CancelledError:
            transport = self._streams.get(connection)
            if transport is not None:  # it came in the same moment
                transport.abort()
            elif self._end is None:
                client.close(connection)
                self._driver.flush()
            raise
        return pair

    async def accept(self) -> AsyncIterator[Incoming]:
        """Yield the connections that permitted peers open to the relayed address, and the peers."""
        self._must_relay_tcp("accept")
        while True:
            while not self._incoming:
                await self._turn("accept", lambda: bool(self._incoming))
            yield self._incoming.popleft()

    def _peer_connected(self, event: PeerConnected) -> None:
        client = self._race.client
        assert client is not None
        transport, pair = make_streams(
            client, event.connection, event.peer, self.relayed_address, self._driver.flush
        )
        self._streams[event.connection] = transport
        transport.on_closed = lambda: self._streams.pop(event.connection, None)
        if event.incoming:
            self._incoming.append((*pair, event.peer))
            self._wake("accept")
        elif not all(wait.done() for wait in self._waits.get(("connect", event.connection), ())):
            self._settle(("connect", event.connection), pair)
        else:  # nobody waits any more, or whoever did was cancelled a moment ago
            transport.abort()

    def _peer_stream(self, event: PeerStream) -> None:
        transport = self._streams.get(event.connection)
        if transport is not None:
            transport.feed(event.data)

    def _peer_congested(self, event: PeerCongested) -> None:
        transport = self._streams.get(event.connection)
        if transport is not None:
            transport.congested(relieved=event.relieved)

    def _peer_closed(self, event: PeerClosed) -> None:
        transport = self._streams.pop(event.connection, None)
        if transport is not None:
            transport.lost(event)

    # Waiting. -------------------------------------------------------------------------------------

    def _future(self, key: Hashable) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waits.setdefault(key, []).append(future)
        return future

    async def _wait(self, key: Hashable) -> Any:
        return await self._one(self._future(key))

    async def _ask(self, key: Hashable, command: Callable[[], object]) -> Any:
        """Give the machine a command and wait for what comes of it."""
        future = self._future(key)
        try:
            command()
            self._driver.flush()
            return await future
        finally:
            self._leave(future)

    async def _one(self, future: asyncio.Future[Any]) -> Any:
        try:
            return await future
        finally:
            self._leave(future)

    def _leave(self, wait: asyncio.Future[Any]) -> None:
        wait.cancel()
        super()._leave(wait)

    async def _turn(self, key: str, ready: Callable[[], bool]) -> None:
        """Wait for one's turn at a queue; pass it on when it is not taken."""
        if self._end is not None:
            raise self._end
        future = self._future(key)
        try:
            await future
        except BaseException:
            if future.done() and not future.cancelled() and ready():
                self._wake(key)
            raise
        finally:
            self._leave(future)
