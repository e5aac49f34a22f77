"""The stream as asyncio knows it: a reader and a writer over a session.

The reader and the writer are asyncio's own (:class:`asyncio.StreamReader` and
:class:`asyncio.StreamWriter`), so that whatever takes these takes a link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol


class Octets(Protocol):
    """What the transport needs of the session behind it; nothing here raises."""

    @property
    def room(self) -> int:
        """Octets that may be written before the writer is to wait."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write octets."""

    def write_eof(self) -> None:
        """End this direction."""

    def consumed(self, octets: int) -> None:
        """Take note that the reader has room for so many more."""

    def close(self) -> None:
        """End both directions, after what has been written."""

    def abort(self) -> None:
        """End at once."""


class LinkTransport(asyncio.Transport):
    """The transport that asyncio's writer writes to.  ``told``: what get_extra_info() knows."""

    def __init__(
        self,
        octets: Octets,
        loop: asyncio.AbstractEventLoop,
        limit: int,
        told: Callable[[str], Any],
    ) -> None:
        super().__init__()
        self._octets = octets
        self._loop = loop
        self._told = told
        self._closing = False
        self._over = False
        self._ended = False
        self._reading = True
        self._unread = 0
        self._waiting = False
        self.reader = asyncio.StreamReader(limit=limit, loop=loop)
        self._protocol: asyncio.BaseProtocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        self._protocol.connection_made(self)
        assert isinstance(self._protocol, asyncio.StreamReaderProtocol)
        self.writer = asyncio.StreamWriter(self, self._protocol, self.reader, loop)

    # What arrives. --------------------------------------------------------------------------------

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Hand octets to the reader."""
        if self._closing:
            # Nobody reads any more; the peer need not be slowed down by that.
            self._octets.consumed(len(data))
            return
        self._unread += len(data)
        self._protocol.data_received(data)  # type: ignore[attr-defined]
        if self._reading:
            self._consume()

    def feed_eof(self) -> None:
        """Tell the reader that there will be no more."""
        if not self._over:
            self._protocol.eof_received()  # type: ignore[attr-defined]

    def relieved(self) -> None:
        """Let the writer go on."""
        if self._waiting and not self._over:
            self._waiting = False
            self._protocol.resume_writing()

    def lost(self, error: Exception | None) -> None:
        """Tell reader and writer that it is over."""
        if self._over:
            return
        self._over = self._closing = True
        self._protocol.connection_lost(error)

    def _consume(self) -> None:
        unread, self._unread = self._unread, 0
        if unread:
            self._octets.consumed(unread)

    # What asyncio asks. ---------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write octets; the writer is to wait while there is no room."""
        if self._ended:
            raise RuntimeError("write: this direction has been ended")
        if self._over or not data:
            return
        octets = self._octets
        octets.write(data)
        if octets.room <= 0 and not self._waiting:
            self._waiting = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """Each direction ends by itself."""
        return True

    def write_eof(self) -> None:
        """End this direction."""
        if not self._ended and not self._over:
            self._ended = True
            self._octets.write_eof()

    def pause_reading(self) -> None:
        """Let no more octets come than are on their way."""
        self._reading = False

    def resume_reading(self) -> None:
        """Let octets come again."""
        self._reading = True
        self._consume()

    def is_reading(self) -> bool:
        """Whether octets may come."""
        return self._reading and not self._closing

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing

    def close(self) -> None:
        """End both directions after what has been written."""
        if not self._closing:
            self._closing = self._ended = True
            self._reading = True
            self._consume()
            self._octets.close()

    def abort(self) -> None:
        """End at once."""
        self._closing = self._ended = True
        self._octets.abort()

    def get_write_buffer_size(self) -> int:
        """Octets that have been written and not been acknowledged are the session's business."""
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand what comes to another protocol from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return what is handed what comes."""
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known by a name: ``path``, ``code`` or ``link``."""
        found = self._told(name)
        return default if found is None else found
