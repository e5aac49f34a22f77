"""The listening sockets of all workers: one for each of them at each place, in one group.

"SO_REUSEPORT [...] Permits multiple AF_INET or AF_INET6 sockets to be bound to an identical socket
address" (socket(7)).  Which of a group gets a packet is decided by a hash of the five-tuple and by
the order in which they were bound; so all are bound together, and kept as long as the listener is.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TypeAlias

from stun.sansio import Address
from stun.sockaddr import cause_of_bind, detail_of, family_of, from_sockaddr, to_sockaddr
from turn.daemon.probe import problem_with_listener
from turn.dataplane.flows import open_socket
from turn.server.config import ListenAt
from turn.server.events import CannotServe, Serving

Key: TypeAlias = tuple[str, Address]
"""Protocol ("udp" or "tcp") and local address, as configured."""


class Bound:
    """The sockets for ``workers`` workers."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._sockets: dict[Key, list[socket.socket]] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._sockets

    def open(self, at: ListenAt) -> Serving | CannotServe:
        """Bind a place for all workers, or say why that cannot be."""
        # Without the option: another turnd of this user, with workers too, would share the port.
        problem = problem_with_listener(at)
        if problem is not None:
            return problem
        made: list[socket.socket] = []
        local = at.local
        try:
            for _ in range(self._workers):
                sock = _open(at.transport.protocol, local)
                made.append(sock)
                sock.bind(to_sockaddr(local))
                local = from_sockaddr(sock.getsockname())
        except OSError as error:
            for sock in made:
                sock.close()
            return CannotServe(at.transport, at.local, cause_of_bind(error), detail_of(error))
        self._sockets[at.transport.protocol, at.local] = made
        return Serving(at.transport, local)

    def close(self, keys: Iterable[Key]) -> None:
        """Close this process's sockets of these places."""
        for key in keys:
            for sock in self._sockets.pop(key):
                sock.close()

    def close_all(self) -> None:
        """Close all of them."""
        self.close([*self._sockets])

    def of(self, number: int, keys: Iterable[Key] | None = None) -> dict[Key, int]:
        """Return the descriptors of worker ``number``, of all places or of some."""
        wanted = self._sockets if keys is None else keys
        return {key: self._sockets[key][number - 1].fileno() for key in wanted}

    @property
    def keys(self) -> frozenset[Key]:
        """What is bound."""
        return frozenset(self._sockets)


def _open(protocol: str, local: Address) -> socket.socket:
    if protocol == "udp":
        sock = open_socket(local)
    else:
        sock = socket.socket(family_of(local), socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if local.is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock
