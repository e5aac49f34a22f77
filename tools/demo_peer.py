"""A peer of the demo: a ``punch`` that runs somewhere, what it tells, and what goes in and out.

It does not wait for anything: whoever has it waits on the descriptors and hands over what came.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from typing import IO, Any, Protocol


class Program(Protocol):
    """What is needed of a program that runs."""

    stdin: IO[Any] | None
    returncode: int | None

    def poll(self) -> int | None:
        """Return the exit code, or ``None`` while it runs."""


@dataclass(slots=True)
class Peer:
    """One side: its ``punch``, what that tells, and what goes in and comes out."""

    side: str
    process: Program
    events: list[dict[str, Any]] = field(default_factory=list)
    said: str = ""
    """The last line that was no event."""
    met_at: int = 0
    """The system's clock, in nanoseconds, when it told that the other side is there."""
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    _waiting: bytearray = field(default_factory=bytearray)
    """What has been sent and not been taken by the pipe."""
    _partial: bytes = b""
    _open: int = 2
    _ended: bool = False

    def take_output(self, data: bytes) -> None:
        """Take what comes out of it; nothing is the end."""
        self.received += data
        self._open -= not data

    def take_events(self, data: bytes) -> None:
        """Take what it tells, an event a line; nothing is the end."""
        self._open -= not data
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
                name = event["event"]
            except (ValueError, TypeError, KeyError):
                self.said = line.decode(errors="replace")
                continue
            self.events.append(event)
            if name == "met":
                self.met_at = time.time_ns()

    def event(self, name: str) -> dict[str, Any] | None:
        """Return the first event of a name."""
        return next((event for event in self.events if event["event"] == name), None)

    @property
    def paths(self) -> list[dict[str, Any]]:
        """The ways that it has gone, in order."""
        return [event for event in self.events if event["event"] == "path"]

    @property
    def is_direct(self) -> bool:
        """Whether what it sends goes directly."""
        return bool(self.paths) and self.paths[-1]["kind"] == "direct"

    @property
    def over(self) -> bool:
        """Whether it has ended, and everything that it told has been heard."""
        return self._open == 0 and self.process.poll() is not None

    @property
    def failure(self) -> str:
        """Why it has ended before its time, empty if it has not."""
        if not self.over or (self._ended and not self.process.returncode):
            return ""
        error = self.event("error")
        return str(error["text"]) if error else self.said or "it has ended and did not say why"

    def send(self, data: bytes) -> None:
        """Give it something to send."""
        self.sent += data
        self._waiting += data
        self.flush()

    def send_line(self) -> None:
        """Give it one of many lines, each of which is another one."""
        number = self.sent.count(b"\n")
        self.send(f"{self.side} counts the lines of this conversation: {number}\n".encode())

    def flush(self) -> None:
        """Write what the pipe takes."""
        assert self.process.stdin is not None
        # If nobody reads, the process has ended, and that is told otherwise.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._waiting:
                del self._waiting[: os.write(self.process.stdin.fileno(), self._waiting)]
        if self._ended and not self._waiting:
            self.process.stdin.close()

    def end(self) -> None:
        """End its input, once it has taken everything."""
        self._ended = True
        self.flush()
