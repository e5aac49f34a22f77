"""The grid's cells: what is promised of each, and when less came of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tools.grid import store
from tools.grid.cells import (
    AIOICE,
    KINDS,
    MODE_NAMES,
    MODES,
    NATKIT,
    UDP,
    Cell,
    Outcome,
    Run,
    Tally,
    cells,
    due,
    luck,
    mark,
    shortfall,
    tally,
)
from tools.grid.rows import Terms

CELL = Cell(UDP, "port-restricted-cone", "symmetric")


def run(number: int = 0, outcome: Outcome = "direct", **changes: object) -> Run:
    direct = 2.0 + number if outcome == "direct" else None
    made = Run(NATKIT, CELL, number, outcome, "udp", 0.5, direct, "birthday, many probes")
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_marks_are_those_of_the_literature() -> None:
    table = [" ".join(mark(a, b) for b in KINDS) for a in KINDS]
    assert table == [
        "D D D D D D",
        "D D D D D D",
        "D D D D D* D*",
        "D D D D P B",
        "D D D* P P B+P",
        "D D D* B B+P R",
    ]


def test_every_cell_is_there_once() -> None:
    found = list(cells())
    assert len(found) == len(set(found)) == len(MODES) * 36
    assert [str(mode) for mode in MODES] == ["udp", "tcp/drop", "tcp/rst", "tcp/icmp"]
    assert MODE_NAMES["tcp/rst"].uninvited == "rst"


@pytest.mark.parametrize(
    ("which", "rate"),
    [("D", 1.0), ("D*", 1.0), ("P", 1.0), ("B", 0.983), ("B+P", 0.0), ("R", 0.0)],
)
def test_how_many_have_to_be_direct(which: str, rate: float) -> None:
    assert due(which) == rate  # type: ignore[arg-type]


def test_luck_is_the_binomial_distribution() -> None:
    assert luck(3, 3, 0.9) == pytest.approx(1)
    assert luck(0, 2, 0.9) == pytest.approx(0.01)
    assert luck(1, 2, 0.9) == pytest.approx(0.19)
    assert luck(2, 3, 1.0) == 0


def test_a_cell_that_does_not_connect_is_worse() -> None:
    found = Tally((run(), run(1, "none")))
    assert shortfall(found, "R") == "1 of 2 runs did not connect"


def test_a_relay_is_worse_where_a_direct_way_is_due() -> None:
    found = Tally((run(), run(1, "relay")))
    assert shortfall(found, "P") == "1 of 2 runs became direct, where all should"
    assert not shortfall(found, "R")
    assert not shortfall(found, "B+P")


def test_chance_may_fail_now_and_then() -> None:
    one_of_ten = Tally((*(run(n) for n in range(9)), run(9, "relay")))
    assert not shortfall(one_of_ten, "B")
    two_of_ten = Tally((*(run(n) for n in range(8)), run(8, "relay"), run(9, "relay")))
    assert shortfall(two_of_ten, "B") == "8 of 10 runs became direct, where 98.3% should"


def test_an_unclean_end_is_worse() -> None:
    found = Tally((run(), run(1, why="a ended with 1: killed")))
    assert shortfall(found, "B") == "1 of 2 runs did not end as they should"


def test_a_better_outcome_than_promised_is_none_the_worse() -> None:
    assert not shortfall(Tally((run(),)), "R")


def test_what_is_counted() -> None:
    found = Tally((run(0), run(1, "relay", first=0.9), run(2), run(3, first=0.7)))
    assert (found.connected, found.direct, found.outcome, found.is_mixed) == (4, 3, "direct", True)
    assert found.first == pytest.approx(0.6)
    assert found.until_direct == 4.0
    assert found.slowest == 5.0
    assert found.strategy == "birthday, many probes"


def test_of_outcomes_as_frequent_the_worse_is_told() -> None:
    assert Tally((run(), run(1, "relay"))).outcome == "relay"
    assert Tally((run(0, "none"), run(1, "relay"))).outcome == "none"


def test_only_the_runs_of_the_cell_and_the_program_count() -> None:
    other = Cell(UDP, "open", "open")
    runs = [run(), run(cell=other), run(program=AIOICE)]
    found = tally(runs, NATKIT, CELL)
    assert found is not None
    assert found.runs == (runs[0],)
    assert tally(runs, AIOICE, other) is None


# The file. ----------------------------------------------------------------------------------------


def test_a_grid_comes_back_from_its_file(tmp_path: Path) -> None:
    grid = store.Grid({"cores": 2}, (run(), run(1, "relay", why="no", skew=0.25, late="b")))
    path = tmp_path / "grid.json"
    path.write_text(store.dumps(grid))
    assert store.load(path) == grid
    lines = path.read_text().splitlines()
    assert sum('"program"' in line for line in lines) == 2, "one run a line"
    assert "strategy" in json.loads(path.read_text())["runs"][0]


def test_without_a_file_there_is_an_empty_grid(tmp_path: Path) -> None:
    assert store.load(tmp_path / "none.json") == store.Grid({})


@pytest.mark.parametrize("text", ["[]", '{"version": 99, "about": {}, "runs": []}', "{}"])
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a grid"):
        store.loads(text)


def test_new_runs_take_the_place_of_old_ones_of_their_cell() -> None:
    elsewhere = run(cell=Cell(UDP, "open", "open"))
    before = store.Grid({"old": 1}, (elsewhere, run(), run(1, "relay"), run(program=AIOICE)))
    after = before.with_runs([run(0, "relay")], {"new": 1}, add=False)
    assert after == store.Grid({"new": 1}, (elsewhere, run(0, "relay"), run(program=AIOICE)))


def test_new_runs_may_be_added() -> None:
    before = store.Grid({}, (run(0), run(1)))
    after = before.with_runs([run(0, "relay"), run(1, "none")], {}, add=True)
    assert [(each.number, each.outcome) for each in after.runs] == [
        (0, "direct"),
        (1, "direct"),
        (2, "relay"),
        (3, "none"),
    ]


# Starts. ------------------------------------------------------------------------------------------


def test_the_starts_are_drawn_from_the_seed() -> None:
    terms = Terms(seed=7, skew=1.0)
    drawn = [terms.draw(cell, number) for cell in cells() for number in range(3)]
    assert drawn == [Terms(seed=7).draw(cell, number) for cell in cells() for number in range(3)]
    assert drawn != [Terms(seed=8).draw(cell, number) for cell in cells() for number in range(3)]
    assert all(0 <= skew <= 1 for skew, _ in drawn)
    assert max(skew for skew, _ in drawn) > 0.9
    assert {late for _, late in drawn} == {"a", "b"}
