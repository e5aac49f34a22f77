"""The program in docs/connect.md does what the page says, behind two real NATs."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nattype.lab import Lab, Machine, Process
from nattype.lab.pytest_plugin import LabFactory

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "connect.md"
SECONDS = 30.0
DELAY = 0.01


def example() -> str:
    """Return the page's program."""
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (program,) = [block for block in blocks if "asyncio.run(" in block]
    return str(program)


class Person:
    """Somebody who runs the program on a host, types, and reads what it prints."""

    def __init__(self, machine: Machine, command: list[str], environment: dict[str, str]) -> None:
        self.process: Process = machine.popen(
            [sys.executable, "-P", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.read = ""

    def types(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def sees(self, pattern: str) -> re.Match[str]:
        """Wait until something has been printed."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + SECONDS
        while True:
            found = re.search(pattern, self.read, re.MULTILINE)
            if found is not None:
                return found
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self.process.stdout], [], [], left)
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert data, f"no {pattern!r} in:\n{self.read}"
            self.read += data.decode()


def wait_for(lab: Lab, port: int) -> None:
    """Wait until somebody listens on the public host."""
    deadline = time.monotonic() + SECONDS
    while True:
        with lab.server.socket(socket.AF_INET, socket.SOCK_STREAM) as caller:
            if caller.connect_ex((lab.stun[0], port)) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_program_of_the_page(natlab: LabFactory, tmp_path: Path) -> None:
    kind = "port-restricted-cone"
    lab = natlab.pair(kind, kind, delay=DELAY, ipv6="off", server_command=())
    (tmp_path / "chat.py").write_text(example())
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "RENDEZVOUS": f"ws://{lab.stun[0]}:8080",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    turnd = [sys.executable, "-P", "-m", "turn.daemon.cli", "--with-rendezvous"]
    program = str(tmp_path / "chat.py")
    with contextlib.ExitStack() as stack:
        serving = lab.server.popen(turnd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.enter_context(serving)
        stack.callback(serving.kill)
        wait_for(lab, 8080)
        a = Person(lab.a, [program], environment)
        stack.enter_context(a.process)
        code = a.sees(r"the other side types: chat\.py (\S+)$")[1]
        b = Person(lab.b, [program, code], environment)
        stack.enter_context(b.process)
        a.types("hello")
        b.sees(r"^> hello$")
        b.types("hello to you")
        a.sees(r"^> hello to you$")
        for person in (a, b):
            person.sees(r"^\* relay over udp after \d+ ms$")
            person.sees(r"^\* direct over tcp after \d+ ms$")
        a.types("goodbye")
        b.sees(r"^> goodbye$")
        for person in (a, b):
            assert person.process.stdin is not None
            person.process.stdin.close()
        assert [person.process.wait(SECONDS) for person in (a, b)] == [0, 0]
