"""A program on a machine of the laboratory, used like :class:`subprocess.Popen`."""

from __future__ import annotations

import io
import os
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import IO, Any, TypeAlias

from nattype.lab.kernel.control import STATUS

Redirection: TypeAlias = int | IO[Any] | None
"""``None`` (the owner's own), ``subprocess.PIPE``, ``DEVNULL``, ``STDOUT``, descriptor or file."""


class Process:
    """A program that was started with :meth:`nattype.lab.Machine.popen`.

    ``stdin``, ``stdout`` and ``stderr`` are file objects where ``PIPE`` was asked for, of text when
    ``text`` was.  ``pid`` is the number inside the laboratory.  A laboratory that ends ends the
    program too; its return code is then -9.
    """

    def __init__(
        self,
        args: Sequence[str],
        start: Callable[[tuple[int, int, int, int]], int],
        send_signal: Callable[[int, int], None],
        *,
        stdin: Redirection = None,
        stdout: Redirection = None,
        stderr: Redirection = None,
        text: bool = False,
    ) -> None:
        self.args = list(args)
        self.returncode: int | None = None
        self._signal = send_signal
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self._status = -1
        given: list[int] = []
        kept: list[int] = []
        try:
            theirs_in, ours_in = _redirect(stdin, 0, given, kept)
            theirs_out, ours_out = _redirect(stdout, 1, given, kept)
            if stderr == subprocess.STDOUT:
                theirs_err, ours_err = theirs_out, -1
            else:
                theirs_err, ours_err = _redirect(stderr, 2, given, kept)
            self._status, reported = os.pipe()
            kept.append(self._status)
            given.append(reported)
            self.pid = start((theirs_in, theirs_out, theirs_err, reported))
        except BaseException:
            for fd in kept:
                os.close(fd)
            self._status = -1
            raise
        finally:
            for fd in given:
                os.close(fd)
        if ours_in >= 0:
            self.stdin = _file(ours_in, "w", text)
        if ours_out >= 0:
            self.stdout = _file(ours_out, "r", text)
        if ours_err >= 0:
            self.stderr = _file(ours_err, "r", text)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the program ends, for event loops."""
        return self._status

    def poll(self) -> int | None:
        """Return the return code, or ``None`` while the program runs."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the program's end.  Raises ``subprocess.TimeoutExpired``."""
        code = self._await(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            self._signal(self.pid, number)

    def terminate(self) -> None:
        """Ask the program to end (SIGTERM)."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the program (SIGKILL)."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, given: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Feed ``given``, read everything, wait for the end; return what stdout and stderr gave.

        Raises ``subprocess.TimeoutExpired``; the program then still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        text = any(isinstance(f, io.TextIOBase) for f in (self.stdin, self.stdout, self.stderr))
        pending = memoryview(given.encode() if isinstance(given, str) else given or b"")
        collected: dict[int, bytearray] = {}
        with selectors.DefaultSelector() as selector:
            if self.stdin is not None:
                if pending:
                    selector.register(self.stdin, selectors.EVENT_WRITE)
                else:
                    self.stdin.close()
            for stream in (self.stdout, self.stderr):
                if stream is not None:
                    selector.register(stream, selectors.EVENT_READ)
                    collected[stream.fileno()] = bytearray()
            while selector.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    assert timeout is not None
                    raise subprocess.TimeoutExpired(self.args, timeout)
                for key, _ in selector.select(left):
                    if key.fileobj is self.stdin:
                        try:
                            pending = pending[os.write(key.fd, pending[:4096]) :]
                        except BrokenPipeError:
                            pending = pending[:0]
                        if not pending:
                            selector.unregister(key.fileobj)
                            self.stdin.close()
                    else:
                        data = os.read(key.fd, 65536)
                        collected[key.fd] += data
                        if not data:
                            selector.unregister(key.fileobj)
        found: list[str | bytes | None] = []
        for stream in (self.stdout, self.stderr):
            if stream is None:
                found.append(None)
                continue
            octets = bytes(collected[stream.fileno()])
            found.append(octets.decode() if text else octets)
            stream.close()
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return found[0], found[1]

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()

    def __del__(self) -> None:
        if getattr(self, "_status", -1) >= 0:
            os.close(self._status)

    def _await(self, timeout: float | None) -> int | None:
        if self.returncode is not None:
            return self.returncode
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        if not poll.poll(None if timeout is None else max(0.0, timeout) * 1000):
            return None
        data = os.read(self._status, STATUS.size)
        self.returncode = STATUS.unpack(data)[0] if data else -signal.SIGKILL
        os.close(self._status)
        self._status = -1
        return self.returncode


def _redirect(wanted: Redirection, own: int, given: list[int], kept: list[int]) -> tuple[int, int]:
    """Return the descriptor for the program and the one to keep, -1 for none.

    What must be closed is appended to ``given`` (once the program has it) or ``kept`` (on failure).
    """
    if wanted is None:
        return own, -1
    if not isinstance(wanted, int):
        return wanted.fileno(), -1
    if wanted == subprocess.DEVNULL:
        given.append(os.open(os.devnull, os.O_RDWR))
        return given[-1], -1
    if wanted == subprocess.PIPE:
        reader, writer = os.pipe()
        theirs, ours = (reader, writer) if own == 0 else (writer, reader)
        given.append(theirs)
        kept.append(ours)
        return theirs, ours
    return wanted, -1


def _file(fd: int, mode: str, text: bool) -> IO[Any]:
    if text:
        return open(fd, mode, encoding="utf-8")
    return open(fd, f"{mode}b", buffering=0 if mode == "w" else -1)
