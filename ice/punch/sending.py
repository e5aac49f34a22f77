"""``punch send``: files and directories to ``punch recv``."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from ice.punch import events, wire
from ice.punch.link import PunchError, Stream, greet, together
from ice.punch.output import Output, count
from ice.punch.store import DIFFERENT
from ice.punch.tree import Entry

LEAST: Final = 1 << 16
MOST: Final = 1 << 20
"""Octets that are read and sent at once: few where the way is slow, so that progress is seen and
the other side's words are heeded, many where it is fast."""
REFUSED: Final = "it was refused"
_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)  # it may have become a pipe since it was found
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)

T = TypeVar("T")


async def send_all(stream: Stream, entries: Sequence[Entry], output: Output) -> None:
    """Send everything.

    Raises :class:`ice.punch.link.PunchError` if anything could not be sent or was not taken, and
    what the stream raises.
    """
    await greet(stream, "send")
    with ThreadPoolExecutor(1, "punch-read") as pool:
        sender = _Sender(stream, entries, output, pool)
        try:
            await sender.run()
        finally:
            # In the same thread, so after whatever was being opened when this was interrupted.
            await asyncio.wrap_future(pool.submit(sender.close))


class NotSent(Exception):
    """A file cannot be sent, or not to its end: why."""


class _Open:
    """A file that is being sent.  All of this blocks."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, _FLAGS)
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise NotSent("it is no regular file any more")
        self.size = status.st_size
        self.mtime = status.st_mtime_ns
        self.hash = hashlib.sha256()

    def read(self, octets: int) -> bytes:
        """Read, and hash, exactly so many octets."""
        data = os.read(self.fd, octets)
        while len(data) < octets:
            more = os.read(self.fd, octets - len(data))
            if not more:
                raise NotSent("it became shorter while it was sent")
            data += more
        self.hash.update(data)
        return data

    def rewind(self) -> None:
        """Begin anew."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        self.hash = hashlib.sha256()

    def note(self) -> str:
        """Say what is odd about a file that was sent to the end of what it had been."""
        status = os.fstat(self.fd)
        if status.st_size > self.size:
            return "it grew while it was sent, and what was added is missing"
        if status.st_size != self.size or status.st_mtime_ns != self.mtime:
            return "it was changed while it was sent: parts may be old and parts new"
        return ""

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)


class _Pending:
    """An entry under way: what has been sent of it, and what the other side says."""

    def __init__(self, number: int, entry: Entry) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.entry = entry
        self.size = entry.size
        self.sha256: str | None = None
        self.note = ""
        self.sent = False
        self.over = False
        self.refused = False
        self.want: asyncio.Future[wire.Want | None] = loop.create_future()
        """None: it is refused."""
        self.have: asyncio.Future[str | None] = loop.create_future()
        self.outcome: asyncio.Future[None] = loop.create_future()

    def conclude(self) -> None:
        """Let nobody wait for the other side's words on it any more."""
        self.over = True
        for future in (self.want, self.have, self.outcome):
            if not future.done():
                future.set_result(None)


class _Sender:
    def __init__(
        self, stream: Stream, entries: Sequence[Entry], output: Output, pool: ThreadPoolExecutor
    ) -> None:
        self._stream = stream
        self._output = output
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._all = [_Pending(number, entry) for number, entry in enumerate(entries, 1)]
        self._pending = {each.number: each for each in self._all if not each.entry.why}
        self._ahead = asyncio.Semaphore(wire.AHEAD)
        self._total = sum(entry.size for entry in entries)
        self._octets = 0
        self._failures: list[str] = []
        self._done = False
        self._opened: _Open | None = None

    async def run(self) -> None:
        """Send everything, and wait until the other side has said what became of it."""
        files = sum(not each.entry.directory for each in self._pending.values())
        self._output.tell(events.Offer(files, self._total))
        self._output.begin(self._total)
        self._say(wire.Total(files, self._total))
        for each in self._all:
            if each.entry.why:
                self._output.tell(events.File(each.entry.name, "skipped", why=each.entry.why))
        await together(self._heads(), self._contents(), self._listen())
        raise_incomplete(self._failures)

    def _open(self, path: Path) -> _Open:
        self._opened = _Open(path)
        return self._opened

    def _finish(self) -> str:
        assert self._opened is not None
        try:
            return self._opened.note()
        finally:
            self.close()

    def _read(self, opened: _Open, octets: int) -> asyncio.Future[bytes] | None:
        return asyncio.ensure_future(self._blocking(opened.read, octets)) if octets else None

    def close(self) -> None:
        """Close the file that is open, if there is one."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    # Talking. -------------------------------------------------------------------------------------

    def _say(self, message: wire.Message) -> None:
        self._write(wire.encode(message))

    def _write(self, data: bytes) -> None:
        self._stream.writer.write(data)
        self._output.traffic.sent += len(data)

    async def _heads(self) -> None:
        for each in self._pending.values():
            await self._ahead.acquire()
            entry = each.entry
            self._say(
                wire.Head(
                    each.number,
                    list(entry.parts),
                    entry.directory,
                    entry.size,
                    entry.mtime,
                    entry.mode,
                )
            )
            await self._stream.writer.drain()

    async def _listen(self) -> None:
        while True:
            message = await wire.read_frame(self._stream.reader, self._output.traffic)
            if message is None:
                if self._done:
                    return
                raise_incomplete(self._failures)
                raise PunchError("incomplete", "the other side ended before it had everything")
            if isinstance(message, int):
                raise wire.WireError("data from the receiving side")
            self._take(message)

    def _take(self, message: wire.Message) -> None:
        match message:
            case wire.Want() | wire.Have() | wire.Kept() | wire.Refuse():
                each = self._pending.get(message.number)
            case _:
                each = None
        if each is None:
            raise wire.WireError(f"{message.say} out of place")
        if each.over:
            return  # it has been left here meanwhile
        match message:
            case wire.Want() if not each.want.done():
                each.want.set_result(message)
            case wire.Have(_, sha256) if not each.have.done():
                each.have.set_result(sha256)
            case wire.Kept(_, same) if each.sent or each.entry.directory:
                each.conclude()
                if not each.entry.directory:
                    self._tell(each, "same" if same else "done", each.note or None)
            case wire.Refuse(_, why):
                each.refused = True
                self._fail(each, why)
            case _:
                raise wire.WireError(f"{message.say} out of place")

    def _tell(self, each: _Pending, state: events.FileState, why: str | None = None) -> None:
        name, sha256 = each.entry.name, each.sha256 if state in {"done", "same"} else None
        self._output.tell(events.File(name, state, each.size, sha256=sha256, why=why))

    def _fail(self, each: _Pending, why: str) -> None:
        each.conclude()
        self._failures.append(f"{each.entry.name}: {why}")
        self._tell(each, "failed", why)

    # Contents. ------------------------------------------------------------------------------------

    async def _contents(self) -> None:
        for each in self._pending.values():
            if not each.entry.directory:
                await self._file(each)
            self._ahead.release()
        for each in self._pending.values():
            await each.outcome
        self._say(wire.Done())
        self._done = True
        self._stream.writer.write_eof()

    async def _file(self, each: _Pending) -> None:
        want = await each.want
        if want is None:
            return
        before = self._octets
        try:
            opened = await self._blocking(self._open, each.entry.path)
            try:
                self._total += opened.size - each.size
                each.size = opened.size
                await self._content(each, want, opened)
            finally:
                if self._opened is not None:
                    await self._blocking(self.close)
        except NotSent as error:
            self._say(wire.Leave(each.number, str(error)))
            if not each.over:
                self._fail(each, str(error))
        if each.over:
            self._octets, self._total = before, self._total - each.size

    async def _content(self, each: _Pending, want: wire.Want, opened: _Open) -> None:
        offset = await self._offset(each, want, opened)
        if each.over:
            raise NotSent(REFUSED)
        if offset:
            self._octets += offset
            self._progress(each, goes_on=True)
        self._output.tell(events.File(each.entry.name, "started", each.size, offset))
        self._say(wire.Start(each.number, offset, opened.size, opened.mtime))
        left = opened.size - offset
        part = LEAST
        # The next part is read and hashed while this one is on its way.
        reading = self._read(opened, min(left, part))
        try:
            while reading is not None:
                data = await reading
                left -= len(data)
                reading = self._read(opened, min(left, part))
                began = self._loop.time()
                self._write(wire.data_header(len(data)))
                self._write(data)
                self._octets += len(data)
                self._progress(each)
                await self._stream.writer.drain()
                if each.over:
                    raise NotSent(REFUSED)
                part = _suitable(part, self._loop.time() - began)
        finally:
            if reading is not None:
                await asyncio.wait({reading})
                with suppress(NotSent):
                    reading.result()
        each.sha256 = opened.hash.hexdigest()
        each.note = await self._blocking(self._finish)
        each.sent = True
        self._say(wire.End(each.number, each.sha256, each.note))

    async def _offset(self, each: _Pending, want: wire.Want, opened: _Open) -> int:
        """Return from where on the contents are to be sent: what is there may be of use."""
        if not want.offset:
            if each.size and not want.replace:
                raise NotSent(DIFFERENT)
            return 0
        mine = None
        if want.offset <= opened.size:
            left = want.offset
            while left:
                left -= len(await self._blocking(opened.read, min(left, MOST)))
            mine = opened.hash.hexdigest()
        theirs = await each.have
        if theirs is not None and mine == theirs:
            return want.offset
        if not want.replace:
            raise NotSent(DIFFERENT)
        await self._blocking(opened.rewind)
        return 0

    def _progress(self, each: _Pending, *, goes_on: bool = False) -> None:
        self._output.progress(self._octets, self._total, each.entry.name, goes_on=goes_on)

    async def _blocking(self, work: Callable[..., T], *args: object) -> T:
        """Do what blocks in a thread.  Raises :class:`NotSent` for what the system refuses."""
        try:
            return await self._loop.run_in_executor(self._pool, work, *args)
        except OSError as error:
            raise NotSent(f"it cannot be read: {error.strerror or error}") from error


def _suitable(part: int, seconds: float) -> int:
    """Return how much to send at once, after ``part`` octets took so long."""
    if seconds > 0.25:
        return max(part // 2, LEAST)
    return min(part * 2, MOST) if seconds < 0.05 else part


def raise_incomplete(failures: Sequence[str]) -> None:
    """Raise :class:`ice.punch.link.PunchError` if there is a failure."""
    if not failures:
        return
    more = f"; {count(len(failures) - 1, 'more file')} failed" if len(failures) > 1 else ""
    raise PunchError("incomplete", f"{failures[0]}{more}")
