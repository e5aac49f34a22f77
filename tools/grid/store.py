"""The grid in a file: what was measured, under which circumstances, one run a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tools.grid.cells import KINDS, MODES, PROGRAMS, Cell, Mode, Run

VERSION = 1


@dataclass(frozen=True, slots=True)
class Grid:
    """All that was measured.  ``about``: under which circumstances, in words and numbers."""

    about: dict[str, Any]
    runs: tuple[Run, ...] = ()

    def with_runs(self, runs: Iterable[Run], about: dict[str, Any], *, add: bool) -> Grid:
        """Return it with further runs; unless they are to ``add`` up they replace older ones."""
        new = tuple(runs)
        measured = set() if add else {(run.program, run.cell) for run in new}
        kept = [run for run in self.runs if (run.program, run.cell) not in measured]
        if add:
            # Numbers go on where they ended, so that no two runs of a cell have the same.
            last: dict[tuple[str, Cell], int] = {}
            for run in kept:
                key = run.program, run.cell
                last[key] = max(last.get(key, -1), run.number)
            new = tuple(_renumbered(run, last) for run in new)
        return Grid(about, tuple(sorted((*kept, *new), key=_place)))


def _renumbered(run: Run, last: dict[tuple[str, Cell], int]) -> Run:
    number = last.get((run.program, run.cell), -1) + 1 + run.number
    return Run(**{each.name: getattr(run, each.name) for each in fields(run)} | {"number": number})


def _place(run: Run) -> tuple[int, ...]:
    cell = run.cell
    return (
        PROGRAMS.index(run.program),
        MODES.index(cell.mode),
        KINDS.index(cell.a),
        KINDS.index(cell.b),
        run.number,
    )


def dumps(grid: Grid) -> str:
    """Return the text of the file."""
    about = json.dumps(grid.about, indent=2, sort_keys=True).replace("\n", "\n  ")
    runs = ",\n".join(f"    {json.dumps(_to_json(run))}" for run in grid.runs)
    return f'{{\n  "version": {VERSION},\n  "about": {about},\n  "runs": [\n{runs}\n  ]\n}}\n'


def loads(text: str) -> Grid:
    """Return what :func:`dumps` wrote.  Raises ``ValueError`` for anything else."""
    found = json.loads(text)
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise ValueError(f"not a grid of version {VERSION}")
    return Grid(found["about"], tuple(_from_json(each) for each in found["runs"]))


def load(path: Path) -> Grid:
    """Return the grid of a file, an empty one if there is none."""
    return loads(path.read_text()) if path.exists() else Grid({})


def _to_json(run: Run) -> dict[str, Any]:
    """Return a run without what says nothing."""
    found = asdict(run)
    del found["cell"]
    mode, a, b = run.cell
    found = {"program": run.program, "mode": str(mode), "a": a, "b": b} | found
    empty: Sequence[Any] = ("", None)
    return {name: value for name, value in found.items() if value not in empty}


def _from_json(found: dict[str, Any]) -> Run:
    transport, _, uninvited = found.pop("mode").partition("/")
    cell = Cell(Mode(transport, uninvited), found.pop("a"), found.pop("b"))
    return Run(cell=cell, **found)
