"""Two ends of a link on a desk, in memory: what `punch` commands are tested on.

    a, b = pair()
    await together(send_all(a, ..., output()), receive_all(b, ..., output()))

Reader and writer are asyncio's own; under them octets go from one end's transport to the other
end's reader, as far as the window goes.  ``a.abort("why")`` ends both, as a link does; ``a.cut()``
is a link that was lost.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ice.errors import ConnectionLost
from ice.punch import events
from ice.punch.output import Output


class _Transport(asyncio.Transport):
    """Hands octets to the other end on the next turn of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, window: int) -> None:
        super().__init__()
        self._loop = loop
        self._window = window
        self.reader = asyncio.StreamReader(limit=1 << 16, loop=loop)
        self.protocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        self.protocol.connection_made(self)
        self.other: _Transport
        self.waiting = bytearray()
        self.ending = self.closing = self.over = self._ended = False
        self.held = False
        self._paused = False
        self._scheduled = False
        self.passed = 0
        self.on_write: Callable[[bytes], bytes | None] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.over or self.ending:
            return
        self.waiting += data
        self._schedule()
        if len(self.waiting) > self._window and not self._paused:
            self._paused = True
            self.protocol.pause_writing()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._move)

    def _move(self) -> None:
        self._scheduled = False
        if self.over or self.other.held:
            return
        data, self.waiting = bytes(self.waiting[:65536]), self.waiting[65536:]
        if self.on_write is not None:
            changed = self.on_write(data)
            data = data if changed is None else changed
        if data:
            self.passed += len(data)
            self.other.protocol.data_received(data)
        if self.waiting:
            self._schedule()
        elif self.ending and not self._ended:
            self._ended = True
            self.other.protocol.eof_received()
        if self._paused and len(self.waiting) <= self._window:
            self._paused = False
            self.protocol.resume_writing()

    def write_eof(self) -> None:
        if not self.ending:
            self.ending = True
            self._schedule()

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self.held = True

    def resume_reading(self) -> None:
        self.held = False
        self.other._schedule()

    def is_closing(self) -> bool:
        # A test that has failed closes nothing, and is to show its own failure, not that.
        return self.over or self.closing or self._loop.is_closed()

    def close(self) -> None:
        self.closing = True
        self.write_eof()

    def abort(self) -> None:
        self.lose(None)
        self.other.lose(ConnectionResetError("reset by the peer"))

    def lose(self, error: Exception | None) -> None:
        if not self.over:
            self.over = True
            if self._paused:
                self._paused = False
                self.protocol.resume_writing()
            self.protocol.connection_lost(error)


class End:
    """One end of a link; what :func:`ice.connect` gives has the same members."""

    def __init__(self, loop: asyncio.AbstractEventLoop, window: int) -> None:
        self.transport = _Transport(loop, window)
        self.reader = self.transport.reader
        self.writer = asyncio.StreamWriter(
            self.transport, self.transport.protocol, self.reader, loop
        )
        self.told: str | None = None

    def abort(self, reason: str) -> None:
        """End at once; the other end learns the reason."""
        if not self.transport.over:
            self.told = reason
            self.transport.lose(ConnectionLost(f"this side ended it: {reason}"))
            self.transport.other.lose(ConnectionLost(f"the peer ended it: {reason}"))

    def cut(self) -> None:
        """Lose the link: neither end knows why."""
        for transport in (self.transport, self.transport.other):
            transport.lose(ConnectionLost("nothing was heard of the peer for 30 s on any way"))

    async def __aenter__(self) -> End:
        return self

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if error is None:
            self.writer.close()
        else:
            self.abort("the other side failed")


def pair(window: int = 1 << 16) -> tuple[End, End]:
    """Return the two ends of a link."""
    loop = asyncio.get_running_loop()
    a, b = End(loop, window), End(loop, window)
    a.transport.other, b.transport.other = b.transport, a.transport
    return a, b


def listed(directory: Path) -> list[str]:
    """Return the names in a directory, sorted."""
    return sorted(each.name for each in directory.iterdir())


class Told(Output):
    """An :class:`ice.punch.output.Output` whose events a test can look at."""

    def __init__(self, **options: Any) -> None:
        self.file = io.StringIO()
        options.setdefault("as_json", True)
        super().__init__(lambda code: f"punch other {code}", file=self.file, **options)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events, as ``--json`` has them."""
        return [json.loads(line) for line in self.file.getvalue().splitlines()]

    def of(self, name: str) -> list[dict[str, Any]]:
        """The events of one name."""
        return [each for each in self.events if each["event"] == name]

    @property
    def files(self) -> dict[str, str]:
        """The last state of each file."""
        return {each["name"]: each["state"] for each in self.of(events.File.event)}
