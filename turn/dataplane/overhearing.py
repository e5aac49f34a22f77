"""A driver as a part of it sees it, with somebody who hears of events before the machine does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stun.datagrams import Core, Reactor
from stun.sansio import Handle, Received, SocketEvent, SocketMachine


class Overhearing:
    """A :class:`stun.datagrams.Core` that gives each event to ``hear``, and then passes it on."""

    def __init__(self, core: Core, hear: Callable[[SocketEvent], None]) -> None:
        self._core, self._hear = core, hear

    @property
    def machine(self) -> SocketMachine[Any]:
        """The driver's."""
        return self._core.machine

    @property
    def reactor(self) -> Reactor:
        """The driver's."""
        return self._core.reactor

    def pump(self) -> None:
        """Have the driver do it."""
        self._core.pump()

    def tell(self, event: SocketEvent) -> None:
        """Let it be heard, and have the driver tell it."""
        self._hear(event)
        self._core.tell(event)

    def encrypted(self, packet: Received, handle: Handle) -> None:
        """Have the driver take it."""
        self._core.encrypted(packet, handle)

    def settle(self) -> None:
        """Have the driver do it."""
        self._core.settle()
