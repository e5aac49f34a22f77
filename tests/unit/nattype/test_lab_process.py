"""A program that somebody else starts, used like one of subprocess."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nattype.lab.kernel.control import STATUS
from nattype.lab.kernel.process import Process


class Starter:
    """Stands in for a supervisor: starts the program here and reports its status."""

    def __init__(self) -> None:
        self.started: list[tuple[subprocess.Popen[bytes], int]] = []

    def __call__(self, args: list[str], **redirections: Any) -> Process:
        def start(fds: tuple[int, int, int, int]) -> int:
            stdin, stdout, stderr, status = fds
            process = subprocess.Popen(args, stdin=stdin, stdout=stdout, stderr=stderr)
            self.started.append((process, os.dup(status)))
            return process.pid

        return Process(args, start, os.kill, **redirections)

    def report(self) -> None:
        """Wait for the last program and pass on how it ended."""
        process, status = self.started.pop()
        os.write(status, STATUS.pack(process.wait()))
        os.close(status)


@pytest.fixture
def starter() -> Iterator[Starter]:
    starter = Starter()
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield starter
    assert starter.started == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_streams_and_status_come_back(starter: Starter) -> None:
    program = "import sys; sys.stdout.write(sys.stdin.read()); sys.stderr.write('e'); sys.exit(3)"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = starter([sys.executable, "-c", program], text=True, **pipes)
    process.stdin.write("given")
    process.stdin.close()
    assert process.stdout.read() == "given"
    assert process.poll() is None
    starter.report()
    assert process.wait(5) == process.poll() == process.returncode == 3
    assert process.stderr.read() == "e"
    process.stdout.close()
    process.stderr.close()


def test_waiting_has_an_end(starter: Starter) -> None:
    process = starter(["sleep", "1000"], stdout=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.01)
    process.terminate()
    starter.report()
    assert process.wait(5) == -signal.SIGTERM
    # Afterwards the number may be somebody else's.
    process.kill()


def test_a_line_that_breaks_is_a_program_that_was_killed(starter: Starter) -> None:
    process = starter(["true"], stdin=subprocess.DEVNULL)
    running, status = starter.started.pop()
    running.wait()
    os.close(status)
    assert process.wait(5) == -signal.SIGKILL


def test_a_program_that_cannot_start_leaks_nothing(starter: Starter) -> None:
    with pytest.raises(FileNotFoundError):
        starter(["no-such-program"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
