"""The commands as people run them: processes, a rendezvous, and whatever way this host has."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


class Desk:
    """A rendezvous, and commands that meet there."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            self.url = f"ws://127.0.0.1:{unused.getsockname()[1]}"
        self.running: list[subprocess.Popen[str]] = []
        server = self._start("ice.rendezvous.cli", "--listen", self.url)
        assert server.stderr is not None
        while "serving" not in server.stderr.readline():
            assert server.poll() is None

    def _start(self, module: str, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.running.append(process)
        return process

    def punch(self, *args: str) -> subprocess.Popen[str]:
        return self._start("ice.punch.cli", *args, "--json", "--rendezvous", self.url)

    def event(self, process: subprocess.Popen[str], name: str) -> dict[str, object]:
        assert process.stderr is not None
        while line := process.stderr.readline():
            found: dict[str, object] = json.loads(line)
            if found["event"] == name:
                return found
        pytest.fail(f"it ended without {name}")

    def end(self, process: subprocess.Popen[str], text: str | None = None) -> tuple[int, str, str]:
        out, err = process.communicate(text, timeout=60)
        return process.returncode, out, err

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.close()


def test_a_conversation(desk: Desk) -> None:
    left = desk.punch("listen")
    right = desk.punch("connect", str(desk.event(left, "waiting")["code"]))
    assert left.stdin is not None
    left.stdin.write("question\n")
    left.stdin.flush()
    assert desk.event(right, "path")["kind"] == "direct"
    assert right.stdout is not None
    assert right.stdout.readline() == "question\n"
    left.stdin.close()
    left.stdin = None
    with ThreadPoolExecutor() as pool:  # both at once: each waits until the other has read
        answered = pool.submit(desk.end, right, "answer\n" * 100_000)
        code, out, err = desk.end(left)
    assert (code, out) == (0, "answer\n" * 100_000), err
    assert answered.result()[0] == 0


def test_files_and_ctrl_c(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    source = tmp_path / "file"
    source.write_bytes(os.urandom(1 << 20) * 64)
    args = ("--code", "files-secretword")
    sender = desk.punch("send", str(source), *args)
    receiver = desk.punch("recv", args[1], "-d", str(tmp_path / "there"))
    desk.event(receiver, "file")
    receiver.send_signal(signal.SIGINT)
    code, _, err = desk.end(receiver)
    assert (code, json.loads(err.splitlines()[-1])["code"]) == (130, "interrupted")
    code, _, err = desk.end(sender)
    assert code == 1
    assert "interrupted by its user" in json.loads(err.splitlines()[-1])["text"]
    sender = desk.punch("send", str(source), *args)
    receiver = desk.punch("recv", args[1], "-d", str(tmp_path / "there"))
    assert (desk.end(receiver)[0], desk.end(sender)[0]) == (0, 0)
    assert (tmp_path / "there" / "file").read_bytes() == source.read_bytes()


def test_a_wrong_code(desk: Desk) -> None:
    left = desk.punch("listen", "--code", "team-secretword")
    desk.event(left, "waiting")
    right = desk.punch("connect", "team-anotherword")
    for process in (left, right):
        code, _, err = desk.end(process)
        assert code == 1
        assert "Traceback" not in err
        assert json.loads(err.splitlines()[-1])["event"] == "error"


def test_nobody_is_there() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "ice.punch.cli", "listen", "--rendezvous", "ws://127.0.0.1:9"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert process.stderr.startswith("punch: ")
    assert "Traceback" not in process.stderr
