"""The connections of the small servers beside turnd, the admin socket and the metrics.

asyncio's own callbacks leave two things to do: a server that is closed does not end the connections
it has (and from Python 3.12.1 on waits for them, for ever if need be), and a visitor who does not
read what it asked for keeps its task.  Here every visit has a task, and closing ends them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeAlias

GRACE: Final = 1.0
"""Seconds that visitors who are being answered get when the server is closed."""

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Visits:
    """What :func:`asyncio.start_server` calls for each connection.

    ``serve`` may raise ``ConnectionError`` and ``TimeoutError``: the visitor has gone, or takes too
    long.  The connection is closed when it returns.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Begin a visit."""
        task = asyncio.get_running_loop().create_task(self._visit(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, TimeoutError):
                await self._serve(reader, writer)
                writer.close()
                await writer.wait_closed()
        finally:
            # Whatever is still to be sent here, nobody reads.
            writer.transport.abort()

    async def close(self, server: asyncio.Server) -> None:
        """Close ``server`` and end every visit, those being answered after :data:`GRACE`."""
        server.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()
