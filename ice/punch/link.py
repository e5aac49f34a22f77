"""What the commands need of a connection: a stream, who is at its other end, and what went by.

The commands get the callable that makes a connection (:func:`ice.connect`) as an argument, so a
test can give them two ends of a socket pair instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from ice.link.events import LinkEvent, PathChanged


class Stream(Protocol):
    """The part of what :func:`ice.connect` gives that is used here."""

    @property
    def reader(self) -> asyncio.StreamReader:
        """What the other side wrote."""

    @property
    def writer(self) -> asyncio.StreamWriter:
        """What the other side will read."""


Connect: TypeAlias = Callable[
    [str | None, Callable[[LinkEvent], None]], AbstractAsyncContextManager[Stream]
]
"""``connect(code, on_event)``: everything else has been settled by the options."""

Work: TypeAlias = Callable[[Stream], Awaitable[None]]


class PunchError(Exception):
    """A command has failed: ``code`` is stable, for programs; the text is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class Traffic:
    """Octets that went by, and which way.

    What is given to the writer is counted for the path in use at that time; what still waits in
    buffers when the path changes may go by the next one, so the share is an estimate.
    """

    sent: int = 0
    received: int = 0
    direct: int = 0
    clock: Callable[[], float] = time.monotonic
    _directly: bool | None = None
    _marked: int = 0
    _began: float | None = field(default=None)

    def met(self) -> None:
        """Begin to count seconds."""
        self._began = self.clock()

    def see(self, event: LinkEvent) -> None:
        """Take note of a change of paths."""
        if isinstance(event, PathChanged):
            self._settle()
            self._directly = event.kind == "direct"

    def _settle(self) -> None:
        total = self.sent + self.received
        if self._directly:
            self.direct += total - self._marked
        self._marked = total

    @property
    def seconds(self) -> float:
        """Seconds since the other side was met."""
        return 0.0 if self._began is None else self.clock() - self._began

    @property
    def share(self) -> float | None:
        """The share of the octets that went directly, or None: there were none, or no path."""
        self._settle()
        if self._directly is None or not self._marked:
            return None
        return self.direct / self._marked


_ROLES: Final = {
    "send": "punch send",
    "recv": "punch recv",
    "forward": "punch forward",
    "expose": "punch expose",
}
"""Roles as they are greeted with, and the commands that have them."""

_OPPOSITE: Final = {"send": "recv", "recv": "send", "forward": "expose", "expose": "forward"}
_MAGIC: Final = b"punch/1 "
_LONGEST: Final = 32


async def greet(stream: Stream, role: str) -> None:
    """Tell the other side this one's role, and see that it has the one that belongs to it.

    The first octets each way are ``punch/1 ROLE`` and a line feed.  Raises :class:`PunchError`
    (``wrong-command``) if the other side says anything else.
    """
    stream.writer.write(_MAGIC + role.encode() + b"\n")
    await stream.writer.drain()
    wanted = _OPPOSITE[role]
    need = f"it has to run `{_ROLES[wanted]}`, for here is `{_ROLES[role]}`"
    said = bytearray()
    while not said.endswith(b"\n"):
        one = await stream.reader.read(1)
        if not one:
            raise PunchError("wrong-command", f"the other side ended without a word: {need}")
        said += one
        if len(said) > _LONGEST or not (said.startswith(_MAGIC) or _MAGIC.startswith(said)):
            raise PunchError("wrong-command", f"the other side runs something else: {need}")
    theirs = said[len(_MAGIC) : -1].decode("ascii", "replace")
    if theirs != wanted:
        ran = f"`{_ROLES[theirs]}`" if theirs in _ROLES else "something else"
        raise PunchError("wrong-command", f"the other side runs {ran}: {need}")


def hang_up(stream: Stream, why: str) -> None:
    """End the connection at once; the other side is told ``why`` if the link can tell it."""
    abort: Callable[[str], Any] | None = getattr(stream, "abort", None)
    if abort is not None:
        abort(why)
    else:
        stream.writer.transport.abort()


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Do several things at once, and if one fails, none; raises what the first one raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
