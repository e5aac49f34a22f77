"""Relaying through a TURN server, in the calling thread.

    with turn.blocking.connect("turn:relay.example", username="user", password="secret") as relay:
        relay.permit(peer)
        relay.send(b"hello", peer)
        data, peer = relay.recv(timeout=5)

Everything is as in :mod:`turn.client.aio`, except that time passes for the relay only within its
calls: who does nothing with it for minutes calls :meth:`Relay.run` meanwhile, or the allocation
expires.
"""

from __future__ import annotations

import os
import ssl
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from stun.blocking import Driver
from stun.credentials import LongTerm, ThirdParty
from stun.discovery import Target
from stun.sansio import Address, Cause
from turn.client.config import ClientConfig
from turn.client.events import (
    ClientEvent,
    Connection,
    PeerClosed,
    PeerCongested,
    PeerConnected,
    PeerStream,
)
from turn.client.machine import Client
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

if TYPE_CHECKING:
    from stun.resolver import Family
    from stun.tls import ClientTls
    from stun.uri import TurnUri

FAREWELL: Final = 2.5
"""Seconds that giving the allocation back may take on leaving."""
KEPT: Final = 1 << 16
"""Octets of a relayed connection that are kept before the peer is held back."""


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
) -> Relay:
    """Return a relay, to be used as a context; everything as in :func:`turn.client.aio.connect`."""
    from stun.resolver import resolve

    wanted = Wanted(
        server,
        as_credentials(username, password, credentials),
        protocol,
        address_family,
        timeout,
        options,
    )
    end = time.monotonic() + timeout
    if isinstance(server, Target):
        targets = [server]
    else:
        targets = resolve(as_uri(server), supported=supported(protocol), family=address_family)
    relay = Relay(wanted.configs(targets), tls=tls, receive_limit=receive_limit, on_event=on_event)
    try:
        relay._open(wanted, end)
    except BaseException:
        relay._abandon()
        raise
    return relay


class _Wait:
    """What a call waits on."""

    __slots__ = ("error", "is_done", "result")

    def __init__(self) -> None:
        self.is_done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def set_result(self, result: Any, /) -> None:
        self.result, self.is_done = result, True

    def set_exception(self, exception: BaseException, /) -> None:
        self.error, self.is_done = exception, True

    def done(self) -> bool:
        return self.is_done


class Relay(Relaying[_Wait]):
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
        self._streams: dict[Connection, Stream] = {}
        self._incoming: deque[Stream] = deque()

    def _open(self, wanted: Wanted, end: float) -> None:
        wait = self._start("allocate")
        self._race.start(self._driver.now())
        if not self._driver.run_until(wait.done, max(0.0, end - time.monotonic())):
            raise wanted.too_late(self._race.errors)
        self._end_of(wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the allocation back, at most for :data:`FAREWELL` seconds, and shut every socket."""
        try:
            if self._end is None and self._race.client is not None:
                released = self._start("release")
                self._race.client.release(self._driver.now())
                self._driver.run_until(released.done, FAREWELL)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        if self._end is None:
            self._race.abandon(self._driver.now())
            self._driver.flush()
        self._driver.close()
        self._on_end(RelayClosed("the relay is closed"))

    def _ended(self) -> None:
        for stream in [*self._streams.values()]:
            stream._lost(Cause.OTHER, "the relay ended")
        self._streams.clear()

    @property
    def counters(self) -> Mapping[str, int]:
        """What was sent, received and dropped, in words for a person."""
        return self._counters(self._driver.counters)

    def run(self, seconds: float) -> None:
        """Keep the relay alive for a while; what arrives is kept for :meth:`recv`."""
        self._driver.run_until(lambda: self._end is not None, seconds)

    # Datagrams. -----------------------------------------------------------------------------------

    def permit(self, *peers: tuple[str, int] | str) -> None:
        """Let peers send: (host, port) or only the host, as the port does not matter."""
        addresses = [as_peer((p, 0) if isinstance(p, str) else p) for p in peers]
        client = self._client
        waits = [self._start(("permit", peer.host)) for peer in addresses]
        try:
            client.permit(*addresses, now=self._driver.now())
            self._driver.run_until(lambda: all(wait.is_done for wait in waits))
        finally:
            for wait in waits:
                self._leave(wait)
        for wait in waits:
            self._end_of(wait)

    def bind(self, peer: tuple[str, int]) -> int:
        """Bind a channel to a peer, which saves 32 octets a datagram; its number."""
        address = as_peer(peer)
        client, now = self._client, self._driver.now()
        return int(self._ask(("bind", address), lambda: client.bind(address, now)))

    def forget(self, peer: tuple[str, int]) -> None:
        """Keep the permission and the channel of a peer no longer alive."""
        self._client.forget(as_peer(peer))

    def send(self, data: bytes, peer: tuple[str, int], *, dont_fragment: bool = False) -> None:
        """Send a datagram to a peer; nothing tells whether it arrives.

        Without a permission for the peer one is installed, and the first few datagrams wait for it
        (sixteen, the others are counted in ``counters``); :meth:`permit` before a burst.
        """
        driver = self._driver
        self._client.send(as_peer(peer), data, driver.now(), dont_fragment=dont_fragment)
        driver.flush()
        if self._congested:
            # Nobody else gives the driver the time to get rid of what waits.
            driver.step(0)

    def recv(self, timeout: float | None = None) -> tuple[bytes, Address]:
        """Return the next datagram and the peer that sent it.

        Raises ``TimeoutError`` after ``timeout`` seconds, and what ended the relay when it has.
        """
        self._until(lambda: bool(self._arrived), timeout, "nothing was received")
        return self._arrived.popleft()

    def __iter__(self) -> Iterator[tuple[bytes, Address]]:
        while True:
            yield self.recv()

    # The allocation. ------------------------------------------------------------------------------

    def refresh(self, lifetime: int | None = None) -> int:
        """Refresh now; the seconds that the server gave.  It also happens by itself."""
        client, now = self._client, self._driver.now()
        return int(self._ask("refresh", lambda: client.refresh(now, lifetime=lifetime)))

    def move(self, local: tuple[str, int] | None = None) -> Address:
        """Go on from another local address (RFC 8016), which is returned."""
        client, now = self._client, self._driver.now()
        at = None if local is None else as_peer(local)
        moved: Address = self._ask("move", lambda: client.move(now, local=at))
        return moved

    # Connections (RFC 6062). ----------------------------------------------------------------------

    def open_connection(self, peer: tuple[str, int]) -> Stream:
        """Open a TCP connection to a peer through the relay."""
        client = self._client
        self._must_relay_tcp("open_connection")
        connection = client.connect(as_peer(peer), self._driver.now())
        try:
            stream: Stream = self._ask(("connect", connection), lambda: None)
        except BaseException:
            client.close(connection)
            raise
        return stream

    def accept(self, timeout: float | None = None) -> Stream:
        """Return the next connection that a permitted peer opens to the relayed address."""
        self._must_relay_tcp("accept")
        self._until(lambda: bool(self._incoming), timeout, "nobody connected")
        return self._incoming.popleft()

    def _peer_connected(self, event: PeerConnected) -> None:
        client = self._race.client
        assert client is not None
        stream = Stream(self, client, event.connection, event.peer)
        self._streams[event.connection] = stream
        if event.incoming:
            self._incoming.append(stream)
        else:
            self._settle(("connect", event.connection), stream)

    def _peer_stream(self, event: PeerStream) -> None:
        stream = self._streams.get(event.connection)
        if stream is not None:
            stream._feed(event.data)

    def _peer_congested(self, event: PeerCongested) -> None:
        stream = self._streams.get(event.connection)
        if stream is not None:
            stream._congested = not event.relieved

    def _peer_closed(self, event: PeerClosed) -> None:
        stream = self._streams.pop(event.connection, None)
        if stream is not None:
            stream._lost(event.cause, event.detail)

    # Waiting. -------------------------------------------------------------------------------------

    def _start(self, key: Hashable) -> _Wait:
        wait = _Wait()
        self._waits.setdefault(key, []).append(wait)
        return wait

    def _ask(self, key: Hashable, command: Callable[[], object]) -> Any:
        """Give the machine a command and run until something comes of it."""
        wait = self._start(key)
        try:
            command()
            self._driver.run_until(wait.done)
        finally:
            self._leave(wait)
        return self._end_of(wait)

    def _end_of(self, wait: _Wait) -> Any:
        if wait.error is not None:
            raise wait.error
        return wait.result

    def _until(self, ready: Callable[[], bool], timeout: float | None, why: str) -> None:
        if ready():
            return
        self._driver.run_until(lambda: ready() or self._end is not None, timeout)
        if ready():
            return
        if self._end is not None:
            raise self._end
        raise TimeoutError(f"{why} within {timeout:g} s")


class Stream:
    """A relayed TCP connection: ``recv`` and ``sendall`` as sockets have them."""

    def __init__(self, relay: Relay, client: Client, connection: Connection, peer: Address) -> None:
        self.peer = peer
        self._relay = relay
        self._client = client
        self._connection = connection
        self._buffer = bytearray()
        self._held = False
        self._congested = False
        self._end: tuple[Cause, str] | None = None

    def sendall(self, data: bytes) -> None:
        """Send octets; waits while the peer reads more slowly.  Raises ``ConnectionError``."""
        self._check()
        self._client.write(self._connection, data)
        self._relay._driver.run_until(lambda: not self._congested or self._end is not None)
        self._check()

    def recv(self, size: int = 65536, timeout: float | None = None) -> bytes:
        """Return what came, at most ``size`` octets; ``b""`` when the peer has closed.

        Raises ``TimeoutError`` and ``ConnectionError``.
        """
        if not self._buffer and self._end is None:
            driver = self._relay._driver
            if not driver.run_until(lambda: bool(self._buffer) or bool(self._end), timeout):
                raise TimeoutError(f"nothing came from {self.peer} within {timeout} s")
        if not self._buffer:
            if self._end is not None and self._end[0] is not Cause.END_OF_STREAM:
                self._check()
            return b""
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        if self._held and len(self._buffer) < KEPT // 2:
            self._held = False
            self._client.hold(self._connection, False)
        return data

    def close(self, *, reset: bool = False) -> None:
        """Close it; what was sent is still delivered unless it is ``reset``."""
        if self._end is None:
            self._end = (Cause.OTHER, "it was closed here")
            self._client.close(self._connection, reset=reset)
            self._relay._driver.flush()
            self._relay._streams.pop(self._connection, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self) -> None:
        if self._end is not None:
            cause, detail = self._end
            raise ConnectionError(f"the connection with {self.peer} is over: {detail or cause}")

    def _feed(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > KEPT and not self._held:
            self._held = True
            self._client.hold(self._connection, True)

    def _lost(self, cause: Cause, detail: str) -> None:
        if self._end is None:
            self._end = (cause, detail)
