"""Connect every kind of NAT with every other, in the kernel laboratory, and draw what came of it.

    python -m tools.grid [--runs 1] [--jobs 2] [--mode udp]... [--kind NAME]... [--program NAME]...
    python -m tools.grid --draw                # draw again what docs/grid.json holds

Each run is one ``punch listen`` and one ``punch connect``, real processes behind NATs of the
kernel with 40 ms of one-way delay between them, started 0 to 1 second apart, with turnd on a public
machine as rendezvous, STUN and TURN server.  In the modes of TCP no UDP gets through to any host,
and the NATs drop a SYN that nobody asked for, or answer it with RST or ICMP.  Beside that aioice
and libnice, with the same NATs, wires and server, and signalling that takes no time.

``docs/grid.json`` has every run, ``docs/grid.svg`` and ``docs/grid.html`` show them.  Programs and
modes that are not run keep the numbers that they have there.  The exit code is 1 when a cell is
worse than the pair matrix promises.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from nattype.lab import LabError
from tools.grid import page, picture, rows, store
from tools.grid.cells import (
    KINDS,
    MODE_NAMES,
    NATKIT,
    PROGRAMS,
    Cell,
    Mode,
    Run,
    cells,
    mark,
    shortfall,
    tally,
)
from tools.icepeers import PeersFailed

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"


@dataclass(frozen=True, slots=True)
class Task:
    """One laboratory: a row of one mode, once."""

    mode: Mode
    kind: str
    number: int


class Board:
    """Counts what is done, says it, and keeps the stories of what went wrong."""

    def __init__(self, total: int, stories: Path | None, out: Callable[[str], None]) -> None:
        self.runs: list[Run] = []
        self._total = total
        self._stories = stories
        self._out = out
        self._lock = threading.Lock()

    def take(self, run: Run, story: Sequence[str]) -> None:
        with self._lock:
            self.runs.append(run)
            self._out(f"[{len(self.runs):>{len(str(self._total))}}/{self._total}] {told(run)}")
            if self._stories is not None:
                self._stories.mkdir(parents=True, exist_ok=True)
                name = f"{run.program} {run.cell} {run.number}".replace("/", "-").replace(" ", "_")
                (self._stories / f"{name}.txt").write_text("\n".join((told(run), *story, "")))


def told(run: Run) -> str:
    """Return a run in words."""
    words = [f"{run.cell}, {run.program}: {run.outcome}"]
    if run.outcome == "direct":
        words.append(f"after {run.direct} s" if run.direct is not None else "")
        words.append(f"by {run.strategy}" if run.strategy else "")
    if run.first is not None:
        words.append(f"(first octet {run.first} s)")
    if run.why:
        words.append(f": {run.why}")
    return " ".join(word for word in words if word)


def run_row(
    task: Task, kinds: Sequence[str], programs: Sequence[str], terms: rows.Terms, board: Board
) -> None:
    """Run all cells of a row, each with all programs."""
    left = [(other, program) for other in kinds for program in programs]
    with tempfile.TemporaryDirectory(prefix="grid-") as place:
        try:
            with rows.row(task.mode, task.kind, Path(place), terms, kinds) as row:
                while left:
                    other, program = left[0]
                    run, story = row.run(program, other, task.number)
                    board.take(run, story)
                    del left[0]
        except (LabError, PeersFailed, OSError) as error:
            for other, program in left:
                cell = Cell(task.mode, task.kind, other)
                why = f"the laboratory failed: {error}"
                board.take(
                    Run(program, cell, task.number, "none", why=why[:300]), str(error).split("\n")
                )


def circumstances(terms: rows.Terms, jobs: int, began: tuple[float, ...]) -> dict[str, Any]:
    """Return what has to be known about the numbers."""
    return {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "delay_ms_one_way": round(terms.delay * 1e3, 3),
        "skew_seconds_at_most": terms.skew,
        "patience_seconds": terms.patience,
        "seed": terms.seed,
        "laboratories_at_a_time": jobs,
        "cores": len(os.sched_getaffinity(0)),
        "load_average_at_the_start": [round(each, 2) for each in began],
        "load_average_at_the_end": [round(each, 2) for each in os.getloadavg()],
        "python": platform.python_version(),
        "kernel": platform.release(),
        "natkit": _version("natkit"),
        "aioice": _version("aioice"),
        "libnice": _libnice(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _libnice() -> str:
    """Return the version of libnice as its package has it."""
    try:
        done = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", "gir1.2-nice-0.1"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "not known"
    return done.stdout.partition("-")[0]


def write(grid: store.Grid, folder: Path) -> list[Path]:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, text in (
        ("grid.json", store.dumps(grid)),
        ("grid.svg", picture.draw(grid)),
        ("grid.html", page.render(grid)),
    ):
        found.append(folder / name)
        found[-1].write_text(text)
    return found


def summary(runs: Sequence[Run], modes: Sequence[Mode], kinds: Sequence[str]) -> list[str]:
    """Return what is worse than promised, and print how it went, mode by mode."""
    worse = []
    for cell in cells(modes, kinds):
        found = tally(runs, NATKIT, cell)
        if found is None:
            continue
        wrong = shortfall(found, mark(cell.a, cell.b))
        if wrong:
            whys = {run.why for run in found.runs if run.why}
            worse.append(": ".join((f"{cell} ({mark(cell.a, cell.b)})", wrong, *sorted(whys))))
    for mode in modes:
        for program in PROGRAMS:
            chosen = [run for run in runs if run.program == program and run.cell.mode == mode]
            if chosen:
                print(
                    f"{mode}, {program}: {len(chosen)} runs, "
                    f"{sum(run.outcome != 'none' for run in chosen)} connected, "
                    f"{sum(run.outcome == 'direct' for run in chosen)} directly"
                )
    return worse


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.grid", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--runs", type=int, default=1, help="of each cell (1)")
    parser.add_argument("--jobs", type=int, default=2, help="laboratories at a time (2)")
    parser.add_argument("--mode", action="append", choices=MODE_NAMES, help="all unless given")
    parser.add_argument("--kind", action="append", choices=KINDS, help="of a row; all unless given")
    parser.add_argument("--with", dest="others", action="append", choices=KINDS,
                        help="of a column; all unless given")  # fmt: skip
    parser.add_argument("--program", action="append", choices=PROGRAMS, help="all unless given")
    parser.add_argument("--seed", type=int, default=1, help="of the starts' distances (1)")
    parser.add_argument("--patience", type=float, default=20.0,
                        help="seconds to wait for a direct way (20)")  # fmt: skip
    parser.add_argument("--add", action="store_true", help="to the runs there are")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what there is")
    parser.add_argument("--out", type=Path, default=DOCS, help="the folder to write to (docs)")
    parser.add_argument("--stories", type=Path, help="a folder for what was told in each run")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    before = store.load(options.out / "grid.json")
    if options.draw:
        print(*write(before, options.out), sep="\n")
        return 0
    terms = rows.Terms(seed=options.seed, patience=options.patience)
    modes = [MODE_NAMES[name] for name in options.mode or MODE_NAMES]
    kinds, others = options.kind or KINDS, options.others or KINDS
    programs = options.program or PROGRAMS
    tasks = [
        Task(mode, kind, number)
        for number in range(options.runs) for mode in modes for kind in kinds
    ]  # fmt: skip
    board = Board(len(tasks) * len(others) * len(programs), options.stories, _say)
    began, load = time.monotonic(), os.getloadavg()
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = [pool.submit(run_row, task, others, programs, terms, board) for task in tasks]
        try:
            for each in waiting:
                each.result()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
    about = circumstances(terms, options.jobs, load)
    paths = write(before.with_runs(board.runs, about, add=options.add), options.out)
    print()
    worse = summary(board.runs, modes, KINDS)
    print(f"{len(board.runs)} runs in {time.monotonic() - began:.0f} s")
    for words in worse:
        print(f"WORSE than promised: {words}")
    print(*paths, sep="\n")
    return 1 if worse else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
