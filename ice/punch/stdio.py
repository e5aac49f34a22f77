"""Standard input and output for an event loop, whatever they are.

Theory of operation.  Each has a thread, which reads or writes with plain blocking system calls.
asyncio's own pipes are no alternative: epoll takes no regular files, and making a terminal or an
inherited pipe non-blocking changes it for every other process that has it, the shell included.

Both threads wait in ``poll`` before they do anything, together with a pipe of their own, so a
thread that waits can be ended; one that is stuck in ``write`` cannot, and as a daemon does not keep
the process.  By ``poll`` the output's thread notices, too, that nobody reads its pipe any more,
although there is nothing to be written.  Where there is no ``poll`` (Windows), the threads block.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

CHUNK: Final = 1 << 18
"""Octets that are read at most at once."""
AHEAD: Final = 8
"""Chunks that may wait between the reading thread and the event loop."""
UNWRITTEN: Final = 1 << 20
"""Octets that may wait for the writing thread before the event loop has to."""

_CAN_POLL: Final = hasattr(select, "poll")


class _Wake:
    """Waits for a file descriptor, or to be woken."""

    def __init__(self, fd: int, events: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._open = True
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)
        self._poll.register(fd, events)

    def wait(self) -> int:
        """Wait until either has happened.  Returns the events of the file descriptor."""
        found = dict(self._poll.poll())
        if self._read in found:
            os.read(self._read, 4096)
        return found.get(self._fd, 0)

    def up(self) -> None:
        """End the wait."""
        with self._lock:
            if self._open:
                with suppress(BlockingIOError):  # full of wakes that have not been noticed yet
                    os.write(self._write, b"\0")

    def close(self) -> None:
        """Close the pipe.  Called by the thread that waits."""
        with self._lock:
            self._open = False
            os.close(self._read)
            os.close(self._write)


class _Worker:
    """A thread beside the event loop."""

    def __init__(self, fd: int | None, events: int, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = fd is None
        self._fd = -1 if fd is None else fd
        self._wake = _Wake(self._fd, events) if _CAN_POLL and fd is not None else None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        if fd is not None:
            self._thread.start()

    def _run(self) -> None:
        error: OSError | None = None
        try:
            self._work()
        except OSError as failed:
            error = failed
        if self._wake is not None:
            self._wake.close()
        self._tell(self._ended, error)

    def _work(self) -> None:
        raise NotImplementedError

    def _ended(self, error: OSError | None) -> None:
        raise NotImplementedError

    def _tell(self, what: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:
            self._stopped = True  # the loop has been closed meanwhile


class Source(_Worker):
    """Reads a file descriptor, which stays open.  None is one that has ended already."""

    def __init__(self, fd: int | None) -> None:
        self._chunks: deque[bytes] = deque()
        self._more = asyncio.Event()
        self._room = threading.Semaphore(AHEAD)
        self._over = fd is None
        self._error: OSError | None = None
        super().__init__(fd, getattr(select, "POLLIN", 0), "punch-input")

    async def read(self) -> bytes:
        """Return the next octets, none at the end.  Raises ``OSError``."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._over:
                return b""
            self._more.clear()
            await self._more.wait()
        self._room.release()
        return self._chunks.popleft()

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        self._room.release()
        if self._wake is not None:
            self._wake.up()

    def _work(self) -> None:
        while True:
            self._room.acquire()
            if self._wake is not None and not self._stopped:
                self._wake.wait()
            if self._stopped:
                return
            try:
                data = os.read(self._fd, CHUNK)
            except BlockingIOError:  # whoever started us left it so; `poll` has waited in vain
                self._room.release()
                continue
            if not data:
                return
            self._tell(self._arrived, data)

    def _arrived(self, data: bytes) -> None:
        self._chunks.append(data)
        self._more.set()

    def _ended(self, error: OSError | None) -> None:
        self._over = True
        self._error = error
        self._more.set()


class Sink(_Worker):
    """Writes to a file descriptor.  None is one that nobody reads."""

    def __init__(self, fd: int | None) -> None:
        self._failed = asyncio.Event()
        self._queue: deque[bytes] = deque()
        self._filled = threading.Semaphore(0)
        self._waiting = 0
        self._room = asyncio.Event()
        self._error: OSError | None = None
        super().__init__(fd, 0, "punch-output")
        if fd is None:
            self._ended(BrokenPipeError(errno.EPIPE, "it is closed"))

    async def write(self, data: bytes) -> None:
        """Take octets, and wait while too many wait.  Raises ``OSError``."""
        self._check()
        self._waiting += len(data)
        self._queue.append(data)
        self._filled.release()
        if self._wake is not None:
            self._wake.up()
        await self._until(UNWRITTEN)

    async def finish(self) -> None:
        """Wait until everything is written, and end the output for whoever reads it."""
        await self._until(0)
        self.stop()
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            # The number stays taken, so that nothing that is opened later gets it.
            os.dup2(null, self._fd, inheritable=self._fd <= 2)
        finally:
            os.close(null)

    async def gone(self) -> OSError:
        """Wait until writing is no use any more; why: the reader has left, or the disk is full."""
        await self._failed.wait()
        assert self._error is not None
        return self._error

    async def _until(self, most: int) -> None:
        while self._waiting > most:
            self._check()
            self._room.clear()
            await self._room.wait()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Write no more than what is being written."""
        self._stopped = True
        self._filled.release()
        if self._wake is not None:
            self._wake.up()

    def _work(self) -> None:
        while True:
            while self._wake is not None and not self._queue and not self._stopped:
                # Nothing is asked for, so these are errors: POLLERR of a pipe without a reader,
                # POLLHUP of a terminal that is gone.
                if self._wake.wait():
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            self._filled.acquire()
            if self._stopped:
                return
            data = self._queue.popleft()
            view = memoryview(data)
            while view:
                view = view[self._write(view) :]
            self._tell(self._wrote, len(data))

    def _write(self, view: memoryview) -> int:
        try:
            return os.write(self._fd, view)
        except BlockingIOError:
            writable = select.poll()
            writable.register(self._fd, select.POLLOUT)
            writable.poll()
            return 0

    def _wrote(self, octets: int) -> None:
        self._waiting -= octets
        self._room.set()

    def _ended(self, error: OSError | None) -> None:
        self._error = error or self._error
        self._room.set()
        if error is not None:
            self._failed.set()
