"""Punching for asyncio: ports that the peer can find, and the connection to it.

    async with await ice.tcp.map_ports(["stun:stun.example"], count=3) as mapped:
        tell_the_peer(mapped.addresses)
        hole = await mapped.punch(theirs, secret=secret, controlling=True)
    reader, writer = await hole.streams()

What is known of the ports already, such as a port that a router forwards, needs no server:

    there = [("203.0.113.9", 4000)]
    hole = await ice.tcp.punch(there, ports=[4000], secret=secret, controlling=True)

How the connection comes about is in :mod:`ice.tcp.puncher`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ice.config import Credentials, Server
from ice.errors import ConnectionFailed
from ice.tcp.driving import (
    TRANSPORT,
    AddressLike,
    Role,
    ServerLike,
    Told,
    addresses_of,
    host_towards,
    looked_up,
    ports_of,
)
from ice.tcp.puncher import Puncher
from ice.tcp.terms import Elected, GaveUp, PortsReady, PunchConfig, PunchEvent
from stun.aio import Driver
from stun.resolver import resolve_async
from stun.sansio import SECOND, Address, Instant

LIMIT = 1 << 16
"""Octets that a stream's reader keeps, as asyncio's own."""


@dataclass(frozen=True, slots=True)
class Punched:
    """A connection to the peer, and nobody else's: both sides have proved themselves on it.

    ``socket``: connected, non-blocking, the caller's to close.  ``data``: what the peer has sent on
    it already, which comes before anything that is read from it.  ``seconds``: since the attempts
    began.
    """

    socket: socket.socket
    data: bytes
    local: Address
    remote: Address
    seconds: float

    async def streams(
        self, *, limit: int = LIMIT
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the connection as streams; ``data`` is what is read first.  To be called once."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        if self.data:
            reader.feed_data(self.data)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=self.socket)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class MappedPorts(Told):
    """Ports that listen, and what they are outside.  Made by :func:`map_ports`.

    An asynchronous context manager: on leaving, the ports and the connections to the servers are
    closed, and what :meth:`punch` gave stays open.
    """

    def __init__(self, driver: Driver[PunchEvent], machine: Puncher) -> None:
        super().__init__(machine)
        self._driver = driver

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def now(self) -> Instant:
        """Return the time that ``start_at`` is in: monotonic nanoseconds."""
        return self._driver.now()

    async def opened(self, servers: Iterable[Server]) -> None:
        """Open the ports, and wait until the servers have answered."""
        self._machine.open(servers, self._driver.now())
        self._driver.flush()
        async with aclosing(self._driver.events()) as events:
            async for event in events:
                if isinstance(event, PortsReady):
                    self._ready = event
                    return
                if isinstance(event, GaveUp):
                    raise ConnectionFailed(event.why)

    async def punch(
        self,
        remote: Iterable[AddressLike],
        *,
        controlling: bool,
        secret: bytes | str | None = None,
        local_credentials: Credentials | None = None,
        remote_credentials: Credentials | None = None,
        start_at: Instant | None = None,
        low_ttl: bool = False,
        timeout: float = 30.0,  # noqa: ASYNC109  (it is part of the recipe, and says why it failed)
    ) -> Punched:
        """Connect to the peer.

        ``remote``: what the peer's ``addresses`` say.  One side is ``controlling``, the other not.
        ``secret`` is the same on both sides and random, at least 16 octets; or the ICE credentials
        of both are given.  ``start_at``: when to begin (:func:`ice.tcp.start_at`), in the time of
        :meth:`now`.  ``low_ttl``: for NATs that take offence at a SYN that comes too early.
        ``timeout``: seconds.

        Raises :class:`ice.ConnectionFailed`, whose text says what became of each attempt, and
        :class:`stun.errors.UsageError`.
        """
        role = Role(
            controlling=controlling,
            secret=secret,
            local=local_credentials,
            remote=remote_credentials,
        )
        self._machine.start(
            addresses_of(remote),
            role.local,
            role.remote,
            self._driver.now(),
            controlling=controlling,
            at=start_at,
            low_ttl=low_ttl,
            timeout=int(timeout * SECOND),
        )
        self._driver.flush()
        try:
            async with aclosing(self._driver.events()) as events:
                async for event in events:
                    if isinstance(event, Elected):
                        return await self._take(event)
                    if isinstance(event, PortsReady):
                        self._ready = event
                    else:
                        raise ConnectionFailed(event.why)
        finally:
            self.close()
        raise ConnectionFailed("the ports have been closed")

    async def _take(self, event: Elected) -> Punched:
        sock, unsent = self._driver.detach(event.handle)
        try:
            if unsent:
                await asyncio.get_running_loop().sock_sendall(sock, unsent)
        except BaseException:
            sock.close()
            raise
        return Punched(sock, event.data, event.local, event.remote, event.took / SECOND)

    def close(self) -> None:
        """Close the ports and the connections to the servers; an attempt under way fails."""
        self._machine.close()
        self._driver.flush()
        self._driver.close()


async def map_ports(
    servers: Iterable[ServerLike] = (),
    *,
    count: int = 3,
    host: str | None = None,
    ports: Sequence[int] | None = None,
    timeout: float = 10.0,  # noqa: ASYNC109  (each server's, not the caller's patience)
    software: str | None = None,
) -> MappedPorts:
    """Open ports and learn from STUN servers over TCP what they are outside.

    ``servers``: ``HOST:PORT`` or ``stun:`` URIs.  ``count`` ports, each but the first a spare; or
    ``ports``, the local ones, which sockets of this user may share that have SO_REUSEPORT.
    ``host``: the address of this machine, by default the one that the first server is reached from.
    ``timeout``: seconds that a server may take.

    Raises :class:`ice.ConnectionFailed` when no port can be had, :class:`stun.errors.StunError`
    when a server's name is not known.  A server that does not answer is in ``missing``.
    """
    found = []
    for server in servers:
        if isinstance(server, Server):
            found.append(server)
        else:
            found.append(looked_up(server, await resolve_async(server, transport=TRANSPORT)))
    host = host or host_towards(t.address for server in found for t in server.targets)
    config = PunchConfig(
        host, ports_of(count, ports), gather_timeout=int(timeout * SECOND), software=software
    )
    machine = Puncher(config, entropy=os.urandom)
    driver: Driver[PunchEvent] = Driver(machine)
    await driver.__aenter__()
    mapped = MappedPorts(driver, machine)
    try:
        await mapped.opened(found)
    except BaseException:
        mapped.close()
        raise
    return mapped


async def punch(
    remote: Iterable[AddressLike],
    *,
    controlling: bool,
    secret: bytes | str | None = None,
    local_credentials: Credentials | None = None,
    remote_credentials: Credentials | None = None,
    host: str | None = None,
    ports: Sequence[int] = (0,),
    servers: Iterable[ServerLike] = (),
    start_at: Instant | None = None,
    low_ttl: bool = False,
    timeout: float = 30.0,  # noqa: ASYNC109  (as for MappedPorts.punch)
) -> Punched:
    """Connect to the peer from ports that it knows already.

    ``ports``: the local ones, mapped by whatever means, the first one first.  ``servers``: asked to
    keep the mappings, if any.  Everything else as for :func:`map_ports` and
    :meth:`MappedPorts.punch`.
    """
    there = addresses_of(remote)
    host = host or host_towards(there)
    async with await map_ports(servers, host=host, ports=ports) as mapped:
        return await mapped.punch(
            there,
            controlling=controlling,
            secret=secret,
            local_credentials=local_credentials,
            remote_credentials=remote_credentials,
            start_at=start_at,
            low_ttl=low_ttl,
            timeout=timeout,
        )
