"""The end of ``make demo``, as anybody sees it: two peers behind two real NATs meet."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nattype.lab.doctor import problem

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, str(ROOT / "tools" / "demo.py"), "--meeting"]
MARK = "NATKIT_DEMO_TEST"


@pytest.fixture(autouse=True, scope="module")
def _laboratory() -> None:
    missing = problem()
    if missing is not None:
        if os.environ.get("CI") or os.environ.get("NATLAB_REQUIRED"):
            pytest.fail(f"no laboratory: {missing}")
        pytest.skip(f"no laboratory: {missing}")


def marked(mark: str) -> list[str]:
    """Return the command lines of all processes that have this mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if f"{MARK}={mark}\0".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def settled(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def number(pattern: str, text: str) -> float:
    """Return the number that a pattern finds."""
    found = re.search(pattern, text, re.MULTILINE)
    assert found is not None, f"no {pattern!r} in:\n{text}"
    return float(found[1])


def test_two_peers_meet(tmp_path: Path) -> None:
    mark = str(tmp_path)
    done = subprocess.run(
        DEMO,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {MARK: mark, "TMPDIR": str(tmp_path), "PYTHONIOENCODING": "utf-8"},
    )
    shown = done.stdout
    assert done.returncode == 0, shown + done.stderr
    assert done.stderr == ""
    assert "\x1b" not in shown

    # What is typed, and what comes of it.
    assert "public host$ turnd --with-rendezvous\n" in shown
    assert "\nA$ punch listen" in shown
    code = re.search(r"the code is (\d+(?:-[a-z]+){3})\n", shown)
    assert code is not None
    assert f"\nB$ punch connect {code[1]} " in shown

    # First the relay, then directly over TCP.
    relayed = number(r"^ *(\d+) ms  relayed by turnd at", shown)
    direct = number(r"^ *(\d+) ms  direct over TCP", shown)
    assert relayed < direct
    ends = re.search(r"direct over TCP, [\d.]+:(\d+) to [\d.]+:(\d+)\n", shown)
    assert ends is not None

    # Both sides' SYNs between the NATs, by those very ports, and the connection out of them.
    assert f" SYN {ends[1]}→{ends[2]} " in shown
    assert f" SYN {ends[1]}←{ends[2]} " in shown
    assert number(r"^ *([\d.]+) ╞═* established ═*╡ +on both sides$", shown) < direct + 100

    # Octets went over either, each way, and were the same at the other end.
    assert "A: Can you hear me, B?" in shown
    assert "B: Loud and clear, A." in shown
    assert number(r"(\d+) lines were said", shown) > 20
    assert number(r"(\d+) % directly;", shown) > 10
    assert number(r"(\d+) % by the relay", shown) > 0
    assert "each was heard, once and in order" in shown
    assert f"Relayed after {relayed:.0f} ms, direct over TCP after {direct:.0f} ms." in shown

    assert settled(lambda: marked(mark) == [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("moment", ["It takes", "the code is", "they have met", "SYN"])
def test_nothing_is_left_whatever_ends_it(tmp_path: Path, how: str, moment: str) -> None:
    mark = str(tmp_path)
    terminal, theirs = pty.openpty()
    demo = subprocess.Popen(
        DEMO,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=os.environ | {MARK: mark, "TMPDIR": str(tmp_path), "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    shown = ""
    try:
        while moment not in shown:
            shown += os.read(terminal, 65536).decode(errors="replace")
        assert marked(mark)
        if how == "Ctrl-C":
            # Which a terminal sends to all that run in the foreground.
            os.killpg(demo.pid, signal.SIGINT)
        else:
            demo.send_signal(signal.Signals[how])
        while True:
            try:
                shown += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # nobody has the terminal any more
                break
    finally:
        os.close(terminal)
        code = demo.wait(20)
    assert code == {"Ctrl-C": 130, "SIGTERM": 143, "SIGKILL": -9}[how], shown
    assert "Traceback" not in shown
    if how != "SIGKILL":
        # The terminal has its cursor again.
        assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert settled(lambda: marked(mark) == [])
    assert list(tmp_path.iterdir()) == []
