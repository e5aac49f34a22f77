"""``punch recv``: what ``punch send`` sends, into a directory of this host."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from ice.punch import events, wire
from ice.punch.link import PunchError, Stream, greet
from ice.punch.names import SUFFIX
from ice.punch.output import Output, size
from ice.punch.sending import raise_incomplete
from ice.punch.store import DIFFERENT, Existing, Found, Partial, Refusal, Store

MOST_PENDING: Final = 4 * wire.AHEAD
READ: Final = 1 << 20
"""Octets that are taken from the stream, and written, at most at once."""
EMPTY: Final = hashlib.sha256().hexdigest()

T = TypeVar("T")


async def receive_all(
    stream: Stream, directory: Path, output: Output, *, force: bool = False, hidden: bool = False
) -> None:
    """Receive everything.

    Raises :class:`ice.punch.link.PunchError` if anything was not received, and what the stream
    raises; what has come of a file is kept then, and a later transfer goes on from there.
    """
    await greet(stream, "recv")
    store = Store(directory, force=force, hidden=hidden)
    with (
        ThreadPoolExecutor(1, "punch-write") as writing,
        ThreadPoolExecutor(1, "punch-hash") as hashing,
    ):
        receiver = _Receiver(stream, store, output, writing, hashing)
        try:
            await receiver.run()
        finally:
            await receiver.close()


class _Incoming:
    """A file whose head has come."""

    def __init__(self, head: wire.Head) -> None:
        self.head = head
        self.name = "/".join(head.parts)
        self.size = head.size
        self.mtime = head.mtime
        self.found = Found()
        self.partial: Partial | None = None
        self.existing: Existing | None = None
        self.hashing: asyncio.Task[None] | None = None
        self.have: str | None = None
        self.started = False
        self.same = False
        self.refused = False
        self.counted = 0


class _Receiver:
    def __init__(
        self,
        stream: Stream,
        store: Store,
        output: Output,
        writing: ThreadPoolExecutor,
        hashing: ThreadPoolExecutor,
    ) -> None:
        self._stream = stream
        self._store = store
        self._output = output
        self._writing = writing
        self._hashing = hashing
        self._loop = asyncio.get_running_loop()
        self._incoming: dict[int, _Incoming] = {}
        self._current: _Incoming | None = None
        self._written: asyncio.Future[None] | None = None
        self._last = 0
        self._total = 0
        self._octets = 0
        self._failures: list[str] = []
        self._greeted = self._done = False

    async def run(self) -> None:
        """Receive until the other side has no more."""
        while True:
            frame = await wire.read_frame(self._stream.reader, self._output.traffic)
            if frame is None:
                break
            if isinstance(frame, int):
                await self._data(frame)
            else:
                await self._take(frame)
        if not self._done:
            raise PunchError("incomplete", "the other side ended before everything was here")
        self._stream.writer.write_eof()
        raise_incomplete(self._failures)

    async def close(self) -> None:
        """Close what is open; tell of what has come of a file that was interrupted."""
        with suppress(Refusal):
            await self._flushed()
        for each in self._incoming.values():
            interrupted = each.partial if each.started and not each.refused else None
            each.refused = True
            await self._close(each)
            if interrupted is not None:
                self._interrupted(each, interrupted.received)
        # In the same thread, so after whatever was being opened when this was interrupted.
        await self._blocking(self._store.close)

    def _interrupted(self, each: _Incoming, received: int) -> None:
        why = (
            f"interrupted; {size(received)} of {size(each.size)} are kept in {each.name}{SUFFIX}, "
            "and the next punch recv here goes on from there"
        )
        self._output.tell(events.File(each.name, "failed", each.size, why=why))

    # Talking. -------------------------------------------------------------------------------------

    def _say(self, message: wire.Message) -> None:
        data = wire.encode(message)
        self._stream.writer.write(data)
        self._output.traffic.sent += len(data)

    async def _take(self, message: wire.Message) -> None:
        if self._done:
            raise wire.WireError(f"{message.say} after done")
        match message:
            case wire.Total(files, octets) if not self._greeted:
                self._greeted = True
                self._total = octets
                self._output.tell(events.Offer(files, octets))
                self._output.begin(octets)
            case wire.Head():
                await self._head(message)
            case wire.Start():
                await self._start(message)
            case wire.End():
                await self._end(message)
            case wire.Leave():
                await self._leave(message)
            case wire.Done():
                if self._incoming:
                    raise wire.WireError("done, and not everything was sent")
                self._done = True
            case _:
                raise wire.WireError(f"{message.say} out of place")
        await self._stream.writer.drain()

    def _known(self, message: wire.Message, number: int) -> _Incoming:
        each = self._incoming.get(number)
        if each is None:
            raise wire.WireError(f"{message.say} of file {number}, which is not under way")
        return each

    def _refuse(self, each: _Incoming, why: str) -> None:
        """Take no more of a file; the other side is told, and goes on with the next."""
        if not each.refused:
            each.refused = True
            self._say(wire.Refuse(each.head.number, why))
            self._failed(each, why)

    def _failed(self, each: _Incoming, why: str) -> None:
        self._failures.append(f"{each.name}: {why}")
        self._output.tell(events.File(each.name, "failed", each.size, why=why))

    def _forget(self, each: _Incoming) -> None:
        del self._incoming[each.head.number]
        if self._current is each:
            self._current = None

    # Files. ---------------------------------------------------------------------------------------

    async def _head(self, head: wire.Head) -> None:
        if head.number <= self._last or len(self._incoming) >= MOST_PENDING:
            raise wire.WireError(f"head of file {head.number} out of turn")
        self._last = head.number
        each = _Incoming(head)
        try:
            if head.directory:
                await self._blocking(self._store.make_directory, head.parts, head.mode, head.mtime)
                self._say(wire.Kept(head.number, False))
                return
            each.found = found = await self._blocking(self._store.look, head.parts, head.size)
            if found.octets and not found.complete:
                each.partial = await self._blocking(self._store.open, head.parts)
        except Refusal as refusal:
            self._refuse(each, str(refusal))
            return
        self._incoming[head.number] = each
        replace = self._store.force or not found.complete
        self._say(wire.Want(head.number, found.octets, replace))
        if found.complete and not found.octets:
            each.have = EMPTY
        elif found.octets:
            each.hashing = asyncio.create_task(self._hash(each))

    async def _hash(self, each: _Incoming) -> None:
        """Tell the other side the hash of what is there; in pieces, so that it can be left."""
        octets = each.found.octets
        try:
            source: Existing | Partial
            if each.partial is None:
                source = each.existing = await self._blocking(Existing, each.found)
            else:
                source = each.partial
            while source.received < octets and not each.refused:
                await self._blocking(source.hash_more, octets, pool=self._hashing)
        except Refusal as refusal:
            self._refuse(each, str(refusal))
        if not each.refused:
            each.have = source.sha256
            self._say(wire.Have(each.head.number, each.have))

    async def _start(self, message: wire.Start) -> None:
        each = self._known(message, message.number)
        offset = message.offset
        known = offset == 0 or (each.have is not None and offset == each.found.octets)
        if each.started or self._current is not None:
            raise wire.WireError(f"start of file {message.number} out of place")
        if not each.refused and (not known or offset > message.size):
            raise wire.WireError(f"start of file {message.number} at {offset}")
        self._current = each
        self._total += message.size - each.size
        each.started, each.size, each.mtime = True, message.size, message.mtime
        if each.refused:
            return
        try:
            if each.found.complete and offset == each.found.octets == each.size:
                each.same = True
            elif each.found.complete and offset:
                raise Refusal("it has grown meanwhile: send it again")
            elif each.found.complete and not self._store.force:
                raise Refusal(DIFFERENT)
            else:
                each.partial = await self._blocking(self._begin, each, offset)
        except Refusal as refusal:
            await self._drop(each, str(refusal))
            return
        each.counted = offset
        self._octets += offset
        self._output.tell(events.File(each.name, "started", each.size, offset))
        self._progress(each, goes_on=bool(offset))

    def _begin(self, each: _Incoming, offset: int) -> Partial:
        self._store.room(each.head.parts, each.size - offset)
        partial = each.partial or self._store.open(each.head.parts)
        partial.begin(offset)
        return partial

    async def _data(self, octets: int) -> None:
        each = self._current
        if each is None:
            raise wire.WireError("data of no file")
        if not each.refused and each.counted + octets > each.size:
            raise wire.WireError(f"more data than file {each.head.number} has")
        while octets:
            data = await self._stream.reader.read(min(octets, READ))
            if not data:
                raise wire.WireError("it ended within a frame")
            octets -= len(data)
            self._output.traffic.received += len(data)
            if not each.refused:
                await self._write(each, data)

    async def _write(self, each: _Incoming, data: bytes) -> None:
        """Write in a thread, while the next octets are on their way."""
        assert each.partial is not None
        try:
            await self._flushed()
        except Refusal as refusal:
            await self._drop(each, str(refusal))
            return
        self._written = asyncio.ensure_future(self._blocking(each.partial.write, data))
        each.counted += len(data)
        self._octets += len(data)
        self._progress(each)

    async def _flushed(self) -> None:
        written, self._written = self._written, None
        if written is not None:
            await written

    async def _end(self, message: wire.End) -> None:
        each = self._known(message, message.number)
        if each is not self._current:
            raise wire.WireError(f"end of file {message.number}, which has not been started")
        if not each.refused and each.counted != each.size:
            raise wire.WireError(f"end of file {message.number} after {each.counted} octets")
        try:
            await self._flushed()
            if not each.refused:
                await self._complete(each, message)
            await self._close(each)
        except Refusal as refusal:
            await self._drop(each, str(refusal))
        self._forget(each)

    async def _complete(self, each: _Incoming, message: wire.End) -> None:
        partial = each.partial
        sha256 = each.have if partial is None else partial.sha256
        if sha256 != message.sha256:
            if partial is not None:
                await self._blocking(partial.discard)
            raise Refusal("its checksum is wrong: send it again")
        if partial is not None:
            await self._blocking(partial.finish, each.head.mode, each.mtime)
            each.partial = None
        self._say(wire.Kept(each.head.number, each.same))
        state: events.FileState = "same" if each.same else "done"
        note = message.note or None
        self._output.tell(events.File(each.name, state, each.size, sha256=sha256, why=note))

    async def _leave(self, message: wire.Leave) -> None:
        each = self._known(message, message.number)
        with suppress(Refusal):
            await self._flushed()
        if not each.refused:
            each.refused = True
            self._failed(each, message.why)
        await self._drop(each, message.why)
        self._forget(each)

    async def _drop(self, each: _Incoming, why: str) -> None:
        """Refuse what cannot be taken after all.  What has come of it stays, for a later time."""
        self._refuse(each, why)
        await self._close(each)

    async def _close(self, each: _Incoming) -> None:
        """Close what is open of a file, which has been refused, completed or interrupted."""
        hashing, each.hashing = each.hashing, None
        if hashing is not None:
            await asyncio.wait({hashing})
        for file in (each.partial, each.existing):
            if file is not None and file.is_open:
                with suppress(Refusal):
                    await self._blocking(file.close)
        each.partial = each.existing = None

    def _progress(self, each: _Incoming, *, goes_on: bool = False) -> None:
        self._output.progress(self._octets, self._total, each.name, goes_on=goes_on)

    async def _blocking(
        self, work: Callable[..., T], *args: object, pool: ThreadPoolExecutor | None = None
    ) -> T:
        """Do what blocks in a thread.  Raises :class:`Refusal` for what the system refuses, too."""
        try:
            return await self._loop.run_in_executor(pool or self._writing, work, *args)
        except OSError as error:
            raise Refusal(f"it cannot be written: {error.strerror or error}") from error
