"""Host candidates over UDP: a socket for each address, stream and component (RFC 8445 5.1.1.1).

A socket is there for the paths that begin at its base, for the allocations that are spoken for over
it, or both.  It may outlive its base: when only a relay is needed any more, the host's candidate is
given up and the socket is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ice.base import Base, BaseId, BaseLost, Standing
from ice.config import Config, Policy
from ice.gather.book import Book
from ice.gather.hostsocket import HostSocket, Spot, SpotKey
from ice.gather.ports import ports_to_try
from stun.sansio import Address, Cause, Closed, Entropy, Handle, OpenUdp, Shut


class HostSockets:
    """The sockets of one hub.

    ``leaving`` is told of a socket that no paths begin at any more, before it is shut if it is.
    ``at`` and ``zones`` are for the packet path: the sockets by their addresses, and the zones of
    bases that have one.
    """

    def __init__(
        self,
        config: Config,
        queue: deque[Any],
        book: Book,
        *,
        entropy: Entropy,
        handles: Iterator[Handle],
        ids: Iterator[BaseId],
        leaving: Callable[[HostSocket], None],
    ) -> None:
        self.at: dict[Address, HostSocket] = {}
        self.zones: dict[BaseId, str] = {}
        self._config = config
        self._queue = queue
        self._book = book
        self._entropy = entropy
        self._handles = handles
        self._ids = ids
        self._leaving = leaving
        self._by_handle: dict[Handle, HostSocket] = {}
        self._spots: dict[SpotKey, HostSocket] = {}

    def __iter__(self) -> Iterator[HostSocket]:
        return iter([*self._by_handle.values()])

    @property
    def is_busy(self) -> bool:
        """Whether one is being opened."""
        return any(socket.base is None for socket in self._by_handle.values())

    @property
    def bases(self) -> list[Base]:
        """The bases that paths can begin at."""
        return [socket.base for socket in self if socket.wanted and socket.base is not None]

    def at_spot(self, spot: Spot) -> HostSocket | None:
        """Return the socket that there is for a spot."""
        return self._spots.get(spot.key)

    def by_handle(self, handle: Handle) -> HostSocket | None:
        """Return the socket that has a handle."""
        return self._by_handle.get(handle)

    def of(self, base: Base) -> HostSocket | None:
        """Return the socket of a base that paths can begin at."""
        socket = self.at.get(base.address)
        return socket if socket is not None and socket.wanted and socket.base is base else None

    # Opening. -------------------------------------------------------------------------------------

    def open(self, spot: Spot) -> None:
        """Have a socket bound; ends in :meth:`opened` or :meth:`not_opened`."""
        socket = HostSocket(next(self._handles), spot)
        socket.ports = ports_to_try(self._config.ports, self._entropy)
        self._by_handle[socket.handle] = self._spots[spot.key] = socket
        self._bind(socket, next(socket.ports))

    def _bind(self, socket: HostSocket, port: int) -> None:
        self._queue.append(OpenUdp(socket.handle, Address(socket.spot.interface.host, port)))

    def opened(self, socket: HostSocket, local: Address) -> None:
        """Take note that a socket is bound."""
        self.at[local] = socket
        self.begin(socket, local)

    def adopt(self, handle: Handle, spot: Spot, local: Address) -> Base:
        """Take a socket that was opened for another purpose, beside the one of its spot."""
        socket = HostSocket(handle, spot)
        self._by_handle[handle] = self.at[local] = socket
        self.begin(socket, local, Standing.MET)
        assert socket.base is not None
        return socket.base

    def begin(
        self, socket: HostSocket, local: Address, standing: Standing = Standing.GATHERED
    ) -> None:
        """Make a base of an open socket, and a candidate unless policy forbids it."""
        interface, stream, component = socket.spot
        socket.base = base = Base(
            id=next(self._ids),
            stream=stream,
            component=component,
            transport="udp",
            address=local,
            network=interface.name,
        )
        if self._config.policy is Policy.RELAY:
            return
        socket.set_wanted(True)
        if socket.zone:
            self.zones[base.id] = socket.zone
        self._book.host(base, interface, standing)

    def not_opened(self, socket: HostSocket, event: Closed) -> bool:
        """Try the next port; False if there is none, and the socket is given up."""
        if event.cause is Cause.ADDRESS_IN_USE:
            port = next(socket.ports, None)
            if port is not None:
                self._bind(socket, port)
                return True
        self._forget(socket)
        host, stream, component = socket.spot.key
        why = f"{event.cause.value}: {event.detail}" if event.detail else event.cause.value
        if self._config.ports is not None and event.cause is Cause.ADDRESS_IN_USE:
            why = f"no port of {self._config.ports[0]}-{self._config.ports[1]} could be had"
        self._book.missing(stream, component, f"host {host}", why)
        return False

    # Giving up. -----------------------------------------------------------------------------------

    def leave(self, socket: HostSocket) -> None:
        """Have no paths begin at a socket any more; an allocation may go on over it."""
        self._leaving(socket)
        socket.set_wanted(False)
        if socket.base is not None:
            self.zones.pop(socket.base.id, None)
            self._book.forget(socket.base)

    def tidy(self, socket: HostSocket) -> None:
        """Shut a socket that nobody needs, if it is one."""
        if not socket.wanted and not socket.relays and socket.handle in self._by_handle:
            self.shut(socket)

    def shut(self, socket: HostSocket) -> None:
        """Shut a socket."""
        self.leave(socket)
        self._forget(socket)
        self._queue.append(Shut(socket.handle))

    def lose(self, socket: HostSocket, why: str) -> None:
        """Take note that a socket can be used no more, and tell it."""
        if socket.wanted and socket.base is not None:
            self._queue.append(BaseLost(socket.base, why))
        self.shut(socket)

    def _forget(self, socket: HostSocket) -> None:
        del self._by_handle[socket.handle]
        if self._spots.get(socket.spot.key) is socket:
            del self._spots[socket.spot.key]
        if socket.base is not None:
            del self.at[socket.base.address]
        socket.base = None
        socket.servers.clear()
