"""``make demo``: it tells right from wrong, and its simulated half is right about every kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from nattype.model import NAMED_KINDS, Kind, Mapping, NatType, kind
from nattype.render import plain
from tools import demo
from tools.demo import Board, Result

SYMMETRIC = kind("symmetric")


@pytest.mark.parametrize("which", NAMED_KINDS, ids=lambda which: which.name)
def test_simulated_kinds_are_named_as_they_were_built(which: Kind) -> None:
    result = demo.simulated(which)
    assert result.differences == []
    assert result.report is not None
    assert result.report.verdict


def board_of(*results: Result) -> Board:
    board = Board([result.kind for result in results])
    for result in results:
        board.results[result.kind.name] = result
    return board


def test_a_wrong_name_is_a_difference() -> None:
    right = demo.simulated(SYMMETRIC)
    assert right.report is not None
    assert right.report.udp is not None
    wrong = replace(
        right,
        report=replace(
            right.report,
            udp=replace(right.report.udp, nat_type=NatType.FULL_CONE, mapping=Mapping.UNKNOWN),
        ),
    )
    assert wrong.differences == [
        "UDP is symmetric, natcheck says full cone",
        "UDP mapping is address-and-port-dependent, natcheck says unknown",
    ]
    board = board_of(wrong)
    shown = plain(lambda console: console.print(board))
    assert "UDP full cone, TCP symmetric" in shown
    verdicts: list[bool] = []

    def draw(console: Console) -> None:
        verdicts.append(demo.summary(board, "simulated", 1.0, console))

    text = plain(draw, width=200)
    assert verdicts == [False]
    assert "symmetric: UDP is symmetric, natcheck says full cone" in text
    assert "1 kind of NAT simulated, 0 named correctly" in text


def test_a_run_without_a_report_is_a_difference() -> None:
    failed = Result(SYMMETRIC, None, 1.0, "exit code 1: no luck")
    assert failed.differences == ["exit code 1: no luck"]
    assert "no report" in plain(lambda console: console.print(board_of(failed)))


def test_the_table_shows_expected_and_found() -> None:
    results = [demo.simulated(kind(name)) for name in ("open", "udp-blocked")]
    text = " ".join(plain(lambda console: console.print(board_of(*results)), width=120).split())
    assert "kind expected found, UDP and TCP seconds" in text
    assert "open open open" in text
    blocked = "UDP blocked, TCP port-restricted cone"
    assert f"udp-blocked {blocked} {blocked}" in text


def test_what_has_not_ended_is_shown_as_waiting_or_running() -> None:
    board = Board([SYMMETRIC, kind("open")])
    board.started(SYMMETRIC)
    text = plain(lambda console: console.print(board))
    assert "symmetric  symmetric             ..." in text
    assert text.splitlines()[2].split() == ["open", "open"]


def test_every_kind_is_run_and_none_is_lost() -> None:
    kinds = [kind(name) for name in ("open", "symmetric", "cgnat")]
    board = Board(kinds)
    ticks: list[int] = []
    demo.run(kinds, demo.simulated, board, lambda: ticks.append(len(board.results)))
    assert set(board.results) == {which.name for which in kinds}
    assert ticks[-1] == 3


def test_a_kind_that_is_none_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["demo", "--simulated", "cubic"])
    with pytest.raises(SystemExit) as caught:
        demo.main()
    assert caught.value.code == 2
    assert "unknown kind 'cubic'" in capsys.readouterr().err


def test_the_whole_demo_simulated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["demo", "--simulated"])
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert f"{len(NAMED_KINDS)} kinds of NAT simulated, {len(NAMED_KINDS)} named correctly" in out
    assert "natlab run --nat symmetric" in out
    assert "/turnd --with-rendezvous   relay" in out
    assert "Left out: two peers" in out


def choice(monkeypatch: pytest.MonkeyPatch, problem: str | None) -> tuple[object, str]:
    monkeypatch.setattr("nattype.lab.doctor.problem", lambda: problem)
    chosen: list[object] = []
    text = plain(lambda console: chosen.append(demo.choose(False, console)[0]), width=200)
    return chosen[0], text


def test_real_nats_are_taken_where_they_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice(monkeypatch, None) == (demo.in_the_kernel, "")


def test_what_is_missing_is_one_line_with_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = "nftables is not installed; run: sudo apt-get install -y nftables"
    runner, text = choice(monkeypatch, problem)
    assert runner is demo.simulated
    assert text.splitlines() == [
        f"No real NATs here: {problem}",
        "Going on with the simulated network.",
    ]
