"""Punching in a plain program: ports that the peer can find, and a connected socket.

    with ice.tcp.blocking.map_ports(["stun:stun.example"], count=3) as mapped:
        tell_the_peer(mapped.addresses)
        hole = mapped.punch(theirs, secret=secret, controlling=True)
    hole.socket.sendall(b"hello")

Everything as in :mod:`ice.tcp.aio`.  Time passes for the ports only within these calls: between
them nobody is answered, and a mapping is not kept alive, so what lies between :func:`map_ports` and
:meth:`MappedPorts.punch` has to be a matter of seconds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
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
from stun.blocking import Driver
from stun.resolver import resolve
from stun.sansio import SECOND, Address, Instant


@dataclass(frozen=True, slots=True)
class Punched:
    """A connection to the peer, and nobody else's: both sides have proved themselves on it.

    ``socket``: connected, blocking, the caller's to close.  ``data``: what the peer has sent on it
    already, which comes before anything that is read from it; :meth:`recv` minds that.
    ``seconds``: since the attempts began.
    """

    socket: socket.socket
    data: bytearray
    local: Address
    remote: Address
    seconds: float

    def recv(self, size: int) -> bytes:
        """Return up to so many octets: ``data`` first, and then what the socket gives."""
        if not self.data:
            return self.socket.recv(size)
        found = bytes(self.data[:size])
        del self.data[:size]
        return found

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class MappedPorts(Told):
    """Ports that listen, and what they are outside.  Made by :func:`map_ports`.

    A context manager: on leaving, the ports and the connections to the servers are closed, and what
    :meth:`punch` gave stays open.
    """

    def __init__(self, driver: Driver[PunchEvent], machine: Puncher) -> None:
        super().__init__(machine)
        self._driver = driver

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def now(self) -> Instant:
        """Return the time that ``start_at`` is in: ``time.monotonic_ns()``."""
        return self._driver.now()

    def opened(self, servers: Iterable[Server]) -> None:
        """Open the ports, and wait until the servers have answered."""
        self._machine.open(servers, self._driver.now())
        for event in self._driver.events():
            if isinstance(event, PortsReady):
                self._ready = event
                return
            if isinstance(event, GaveUp):
                raise ConnectionFailed(event.why)

    def wait(self, seconds: float) -> None:
        """Let time pass for the ports: keep the mappings, take the peer's connections."""
        for event in self._driver.events(seconds):
            if isinstance(event, PortsReady):
                self._ready = event

    def punch(
        self,
        remote: Iterable[AddressLike],
        *,
        controlling: bool,
        secret: bytes | str | None = None,
        local_credentials: Credentials | None = None,
        remote_credentials: Credentials | None = None,
        start_at: Instant | None = None,
        low_ttl: bool = False,
        timeout: float = 30.0,
    ) -> Punched:
        """Connect to the peer: everything as for :meth:`ice.tcp.aio.MappedPorts.punch`."""
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
        try:
            for event in self._driver.events():
                if isinstance(event, Elected):
                    return self._take(event)
                if isinstance(event, PortsReady):
                    self._ready = event
                else:
                    raise ConnectionFailed(event.why)
        finally:
            self.close()
        raise ConnectionFailed("the ports have been closed")

    def _take(self, event: Elected) -> Punched:
        sock, unsent = self._driver.detach(event.handle)
        try:
            sock.setblocking(True)
            sock.sendall(unsent)
        except BaseException:
            sock.close()
            raise
        data = bytearray(event.data)
        return Punched(sock, data, event.local, event.remote, event.took / SECOND)

    def close(self) -> None:
        """Close the ports and the connections to the servers."""
        self._machine.close()
        self._driver.flush()
        self._driver.close()


def map_ports(
    servers: Iterable[ServerLike] = (),
    *,
    count: int = 3,
    host: str | None = None,
    ports: Sequence[int] | None = None,
    timeout: float = 10.0,
    software: str | None = None,
) -> MappedPorts:
    """Open ports and learn from STUN servers over TCP what they are outside.

    Everything as for :func:`ice.tcp.aio.map_ports`.
    """
    found = [
        server
        if isinstance(server, Server)
        else looked_up(server, resolve(server, transport=TRANSPORT))
        for server in servers
    ]
    host = host or host_towards(t.address for server in found for t in server.targets)
    config = PunchConfig(
        host, ports_of(count, ports), gather_timeout=int(timeout * SECOND), software=software
    )
    machine = Puncher(config, entropy=os.urandom)
    driver: Driver[PunchEvent] = Driver(machine)
    mapped = MappedPorts(driver, machine)
    try:
        mapped.opened(found)
    except BaseException:
        mapped.close()
        raise
    return mapped


def punch(
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
    timeout: float = 30.0,
) -> Punched:
    """Connect to the peer from ports that it knows already: as :func:`ice.tcp.aio.punch`."""
    there = addresses_of(remote)
    host = host or host_towards(there)
    with map_ports(servers, host=host, ports=ports) as mapped:
        return mapped.punch(
            there,
            controlling=controlling,
            secret=secret,
            local_credentials=local_credentials,
            remote_credentials=remote_credentials,
            start_at=start_at,
            low_ttl=low_ttl,
            timeout=timeout,
        )
