"""The demo's meeting without a laboratory: what is shown where, and what if it cannot be."""

from __future__ import annotations

import io
import os
import signal

import pytest
from rich.console import Console
from rich.text import Text

from nattype.lab.kernel.errors import NotPermitted
from nattype.render import plain
from tools import demo, demo_meeting
from tools.demo_meeting import Stage


def test_times_stand_in_one_column() -> None:
    def draw(console: Console) -> None:
        stage = Stage(console)
        stage.at(7.4, "met")
        stage.at(1234.5, ("direct", "green"), " at last")
        stage.at(None, Text("and so on"))
        stage.typed("A", "punch listen")

    assert plain(draw).splitlines() == [
        "     7 ms  met",
        "  1234 ms  direct at last",
        "           and so on",
        "A$ punch listen",
    ]


def test_a_pipe_gets_no_pictures() -> None:
    def draw(console: Console) -> None:
        stage = Stage(console)
        with stage.moving():
            stage.show(Text("a picture"))
            stage.say("a line")

    assert plain(draw) == "a line\n"


def test_a_terminal_gets_pictures_below_the_lines_and_they_vanish() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, color_system=None, _environ={})
    stage = Stage(console)
    with stage.moving():
        stage.show(Text("picture 1"))
        stage.say("a line")
        stage.show(Text("picture 2"))
    stage.show(Text("picture 3"))
    shown = file.getvalue()
    first, line, second = (shown.index(what) for what in ("picture 1", "a line", "picture 2"))
    assert first < line < second
    assert "picture 3" not in shown
    # The last picture is erased, and the cursor is shown again.
    assert "\x1b[2K" in shown[second:]
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_a_laboratory_that_cannot_be_built_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise NotPermitted("no namespaces today")

    monkeypatch.setattr(demo_meeting, "Lab", refuse)
    results: list[bool] = []
    text = plain(lambda console: results.append(demo_meeting.run(console)))
    assert results == [False]
    assert text.splitlines()[-1] == "The meeting failed: no namespaces today"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_as_exceptions_do(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, demo_meeting.ended_by_signals():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with demo_meeting.ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# Where there are no real NATs. --------------------------------------------------------------------


def left_out(monkeypatch: pytest.MonkeyPatch, problem: str | None, *, simulated: bool) -> str:
    monkeypatch.setattr("nattype.lab.doctor.problem", lambda: problem)
    monkeypatch.setattr(demo_meeting, "run", lambda _: pytest.fail("it was not left out"))
    results: list[bool] = []
    text = plain(lambda console: results.append(demo.meeting(simulated, console)), width=60)
    assert results == [True]
    return text


def test_it_is_left_out_in_one_line_with_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = "nftables is not installed; run: sudo apt-get install -y nftables"
    text = left_out(monkeypatch, problem, simulated=False)
    assert len(text.splitlines()) == 1
    assert text.startswith("Left out: two peers behind two NATs")
    assert text.endswith(f"; {problem}\n")


def test_it_is_left_out_of_a_simulated_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    text = left_out(monkeypatch, None, simulated=True)
    assert text.endswith("; run the demo without --simulated\n")


def test_the_meeting_decides_about_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nattype.lab.doctor.problem", lambda: None)
    for right in (True, False):
        monkeypatch.setattr(demo_meeting, "run", lambda _, right=right: right)
        monkeypatch.setattr("sys.argv", ["demo", "--meeting"])
        assert demo.main() == (0 if right else 1)
