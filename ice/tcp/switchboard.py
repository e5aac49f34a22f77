"""Which part a socket belongs to, and the orders to the driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol, TypeAlias

from ice.base import HubEvent
from stun.sansio import Address, Dial, Handle, Instant, Listen, Output, Shut, SocketEvent

Queue: TypeAlias = deque[Output | HubEvent]


class Owner(Protocol):
    """Who a socket belongs to."""

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to it."""
        ...


class Switchboard:
    """The sockets of the TCP part: ``owners`` has one for each handle in use."""

    __slots__ = ("_handles", "owners", "queue")

    def __init__(self, queue: Queue, handles: Iterator[Handle]) -> None:
        self.queue = queue
        self.owners: dict[Handle, Owner] = {}
        self._handles = handles

    def listen(self, owner: Owner, local: Address, *, exclusive: bool = False) -> Handle:
        """Listen on a port."""
        handle = next(self._handles)
        self.owners[handle] = owner
        self.queue.append(Listen(handle, local, exclusive=exclusive))
        return handle

    def dial(
        self,
        owner: Owner,
        local: Address,
        remote: Address,
        *,
        server_name: str | None = None,
        ttl: int | None = None,
    ) -> Handle:
        """Open a connection."""
        handle = next(self._handles)
        self.owners[handle] = owner
        self.queue.append(Dial(handle, local, remote, server_name, ttl=ttl))
        return handle

    def shut(self, handle: Handle, *, reset: bool = False) -> None:
        """Close a socket; its owner hears no more of it."""
        self.owners.pop(handle, None)
        self.queue.append(Shut(handle, reset))
