"""natcheck behind every kind of kernel NAT, many times over, without loss and with it.

    python tools/repeat.py [--runs 20] [--loss 0 --loss 10] [--jobs 4] [--kind NAME]...

Each run is `natlab run --nat KIND --loss P -- natcheck --json`.  A run is *wrong* when anything it
says (type, mapping, filtering or allocation, over UDP or TCP) is not what was built, *open* when
something is left undecided; without loss it must be neither.  The exit code is 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from nattype.model import NAMED_KINDS, Kind, grid, kind

NATLAB = Path(sys.executable).with_name("natlab")
UNDECIDED = {"inconclusive", "unknown"}


@dataclass
class Tally:
    """What came of the runs of one kind at one loss."""

    right: int = 0
    undecided: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def run(built: Kind, loss: float) -> dict[str, Any]:
    """Diagnose once and return the document, or what natlab and natcheck said instead."""
    command = [NATLAB, "run", "--nat", built.name, "--loss", str(loss), "--", "natcheck", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"failed": f"exit {done.returncode}: {done.stderr.strip()[-300:]}"}
    return document


def judge(built: Kind, document: dict[str, Any], tally: Tally) -> None:
    """Count one run."""
    if "failed" in document:
        tally.wrong.append(document["failed"])
        return
    expected = built.expected
    said = {}
    for protocol, nat_type in (("udp", expected.udp), ("tcp", expected.tcp)):
        found = document[protocol]
        said[f"{protocol} type"] = (found["nat_type"], nat_type)
        if "blocked" not in nat_type:
            said[f"{protocol} mapping"] = (found["mapping"], expected.mapping)
            said[f"{protocol} filtering"] = (found["filtering"], expected.filtering)
            said[f"{protocol} ports"] = (found["allocation"]["pattern"], expected.allocation)
    wrong = [
        f"{what}: {found}" for what, (found, true) in said.items()
        if found != true and found not in UNDECIDED
    ]  # fmt: skip
    tally.seconds.append(document["seconds"])
    if wrong:
        tally.wrong.append(", ".join(wrong))
    elif any(found in UNDECIDED for found, _ in said.values()):
        tally.undecided += 1
    else:
        tally.right += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--loss", type=float, action="append", help="percent, each way")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--kind", action="append", help="by default all, the grid included")
    arguments = parser.parse_args()
    kinds = [kind(name) for name in arguments.kind or ()] or [*NAMED_KINDS, *grid()]
    losses = arguments.loss or [0.0, 10.0]
    jobs = [(built, loss) for _ in range(arguments.runs) for built in kinds for loss in losses]
    tallies: defaultdict[tuple[str, float], Tally] = defaultdict(Tally)
    console = Console(width=None if sys.stdout.isatty() else 120)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        documents = pool.map(lambda job: run(*job), jobs)
        progress = track(documents, total=len(jobs), console=Console(stderr=True))
        for (built, loss), document in zip(jobs, progress, strict=True):
            judge(built, document, tallies[built.name, loss])
    table = Table("kind", "loss", "right", "open", "wrong", "median s", "longest s", box=None)
    failed = False
    for (name, loss), tally in tallies.items():
        seconds = tally.seconds or [0.0]
        table.add_row(
            name, f"{loss:g} %", f"{tally.right} of {arguments.runs}", str(tally.undecided),
            str(len(tally.wrong)), f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}",
        )  # fmt: skip
        failed |= bool(tally.wrong) or (not loss and bool(tally.undecided))
    console.print(table)
    for (name, loss), tally in tallies.items():
        for what in tally.wrong:
            console.print(f"{name} at {loss:g} %: {what}", highlight=False)
    for loss in losses:
        chosen = [tally for (_, at), tally in tallies.items() if at == loss]
        console.print(
            f"{loss:g} % loss: {sum(t.right for t in chosen)} right, "
            f"{sum(t.undecided for t in chosen)} open, {sum(len(t.wrong) for t in chosen)} wrong, "
            f"median {statistics.median([s for t in chosen for s in t.seconds] or [0]):.2f} s",
            highlight=False,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
