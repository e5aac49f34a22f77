"""The judge of one run of ``punch``: which way it took, and how long that needed."""

from __future__ import annotations

import queue
from typing import Any, cast

import pytest

from nattype.lab import Process
from tools.grid.__main__ import told
from tools.grid.cells import Cell, Mode, Run
from tools.grid.punching import Side, Terms, _command, _judge

CELL = Cell(Mode("tcp", "rst"), "open", "symmetric")
TERMS = Terms("ws://192.0.2.1:8080", "grid-secretword", skew=0.25, late="b", patience=20)


def side(name: str, *events: tuple[float, dict[str, Any]], first: float | None = None) -> Side:
    return Side(name, cast(Process, None), queue.Queue(), events=list(events), first=first)


def path(kind: str, transport: str = "tcp") -> dict[str, Any]:
    return {"event": "path", "kind": kind, "transport": transport}


def trying(strategy: str) -> dict[str, Any]:
    return {"event": "trying", "strategy": strategy}


MET = {"event": "met"}
DIRECT = {
    "a": side(
        "a", (10.0, trying("plain")), (10.5, MET), (10.7, path("relay")),
        (11.0, trying("prediction")), (12.5, path("direct")), (12.6, trying("plain")), first=10.8,
    ),
    "b": side("b", (10.4, MET), (10.8, path("relay")), (12.4, path("direct")), first=10.9),
}  # fmt: skip
RELAYED = {
    "a": side("a", (1.0, MET), (1.25, path("relay")), first=1.5),
    "b": side("b", (1.1, MET), (1.25, path("relay")), (2.0, path("direct")), first=1.75),
}


def judge(sides: dict[str, Side], wrong: str = "", *, whole: bool = True) -> Run:
    return _judge(sides, CELL, 3, TERMS, wrong, whole=whole)


def test_times_run_from_the_first_who_met_to_the_second_who_has_it() -> None:
    run = judge(DIRECT)
    assert (run.outcome, run.over, run.strategy, run.why) == ("direct", "tcp", "prediction", "")
    assert run.first == pytest.approx(0.5)
    assert run.direct == pytest.approx(2.1)
    assert (run.number, run.skew, run.late) == (3, 0.25, "b")


def test_a_way_that_only_one_side_has_is_none() -> None:
    run = judge(RELAYED)
    assert (run.outcome, run.direct) == ("relay", None)
    assert run.first == pytest.approx(0.75)


def test_who_goes_back_to_the_relay_is_relayed() -> None:
    again = {**DIRECT, "b": side("b", *DIRECT["b"].events, (13.0, path("relay")), first=10.9)}
    assert judge(again).outcome == "relay"


def test_what_came_in_pieces_did_not_connect() -> None:
    run = judge(DIRECT, "a received 3 lines that are not the 4 that b was given", whole=False)
    assert run.outcome == "none"
    assert run.why.startswith("a received 3 lines")


def test_who_never_met_did_not_connect() -> None:
    run = judge({"a": side("a"), "b": side("b")}, "they did not meet")
    assert (run.outcome, run.first, run.direct, run.over) == ("none", None, None, "")


@pytest.mark.parametrize(("name", "first"), [("a", "listen"), ("b", "connect")])
def test_each_side_has_its_command(name: str, first: str) -> None:
    command = _command(name, CELL, TERMS)
    words = command[command.index("ice.punch.cli") + 1 :]
    assert words[0] == first
    assert {"grid-secretword", "--tcp-only", "--json", "--birthday"} < set(words)


def test_a_run_in_words() -> None:
    assert told(judge(DIRECT)) == (
        "tcp/rst open with symmetric, natkit: direct after 2.1 s by prediction (first octet 0.5 s)"
    )
    assert told(judge(RELAYED)).endswith("relay (first octet 0.75 s)")
