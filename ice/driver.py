"""The sockets and the clock of one agent: :class:`stun.aio.Driver` with the short way for data."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ice.datagrams import AgentDatagrams, FeedOf
from ice.events import AgentEvent
from ice.machine import AgentMachine
from stun.aio import Driver
from stun.datagrams import Core
from stun.sansio import Handle

if TYPE_CHECKING:
    from stun.tls import ClientTls


BULK: Final = 1 << 18
"""Octets read from a connection in one wake-up: an agent has few, and one may carry a file."""


class AgentDriver(Driver[AgentEvent]):
    """Runs one agent; used as :class:`stun.aio.Driver` is.

    ``feed_of`` says where the data of a stream and a component goes.  ``on_close`` is told of the
    end, and of the exception that caused it, if one did.
    """

    udp: AgentDatagrams

    def __init__(
        self,
        machine: AgentMachine,
        *,
        on_event: Callable[[AgentEvent], None],
        feed_of: FeedOf,
        on_close: Callable[[BaseException | None], None],
        tls: ssl.SSLContext | ClientTls | None = None,
    ) -> None:
        self._agent = machine
        self._feed_of = feed_of
        self._on_close = on_close
        super().__init__(machine, on_event=on_event, tls=tls, datagrams=self._make_datagrams)
        self._sockets.streams.read_most = BULK

    def _make_datagrams(self, core: Core) -> AgentDatagrams:
        self.udp = AgentDatagrams(core, self._agent, self._feed_of)
        return self.udp

    def send(self, handle: Handle, *parts: bytes | memoryview) -> bool:
        """Send octets on a connection, past the machine; whether that was possible now."""
        return self._sockets.send(handle, *parts)

    def close(self) -> None:
        """Close every descriptor."""
        super().close()
        self._on_close(self._failure)
