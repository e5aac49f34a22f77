"""turnd with one worker and with more of them, in one run: packets a second, CPU for each packet.

    python tools/bench/workers.py [--workers 1 2] [--rounds 8] [--seconds 1] [--json FILE]

The servers take turns, a short round each, and have all processors; so has the load, which is one
process.  A machine with few of them shows less than workers can do: what the load takes they lack.
So CPU for each packet counts that of all of turnd's processes, and beside it stands what share of a
processor each of them had.  With more than one, packets a second are those of the machine, load
included.  Figures are medians of the rounds but the first, which warms up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import load  # noqa: E402
from relay import WARM_UP, Relaying  # noqa: E402
from servers import serving, turnd  # noqa: E402

LOADS = {
    "client to peer, 32 x 160": Relaying(32, 160, 1, to_peer=True, window=192),
    "peer to client, 32 x 160": Relaying(32, 160, 1, to_peer=False, window=192),
    "client to peer, 32 x 1200, bursts of 8": Relaying(32, 1200, 8, to_peer=True, window=512),
    "peer to client, 32 x 1200, bursts of 8": Relaying(32, 1200, 8, to_peer=False, window=512),
}


@dataclass(frozen=True)
class Figure:
    """What one server did under one load."""

    load: str
    workers: int
    packets_per_second: float
    microseconds_per_packet: float
    """Of all its processes together."""
    processors: float
    """How many its processes had, on average."""
    spread: tuple[float, ...]
    """Of what its workers used together, the part of each."""


def processes_of(pid: int) -> list[int]:
    """Return a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def measure(names: list[str], counts: list[int], rounds: int, seconds: float) -> list[Figure]:
    """Return the figures of all loads and numbers of workers."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    figures = []
    for name in names:
        with ExitStack() as stack:
            loaded = {}
            for count in counts:
                command = turnd(sys.executable, "--dataplane", "sockets", "--workers", str(count))
                pid, ports = stack.enter_context(serving(command, cores=cores))
                go = stack.enter_context(LOADS[name].at_server(pid, ports))
                loaded[count] = processes_of(pid), go
                go(WARM_UP)
            rows: dict[int, list[tuple[float, float, float, list[float]]]] = {}
            for _ in range(rounds):
                for count, (pids, go) in loaded.items():
                    before, began = [load.cpu_of(pid) for pid in pids], time.monotonic()
                    result = go(seconds)
                    took = time.monotonic() - began
                    used = [load.cpu_of(pid) - b for pid, b in zip(pids, before, strict=True)]
                    packets = max(result.received, 1)
                    rows.setdefault(count, []).append(
                        (result.rate, sum(used) * 1e6 / packets, sum(used) / took, used[1:] or used)
                    )
        for count, found in rows.items():
            parts = [sum(one) for one in zip(*(row[3] for row in found), strict=True)]
            figures.append(
                Figure(
                    name,
                    count,
                    statistics.median(row[0] for row in found),
                    statistics.median(row[1] for row in found),
                    statistics.median(row[2] for row in found),
                    tuple(round(part / sum(parts), 2) for part in parts),
                )
            )
            print(render(figures[-1]), flush=True)
    return figures


def render(figure: Figure) -> str:
    """Return a figure as a line."""
    parts = " ".join(f"{part:.2f}" for part in figure.spread)
    return (
        f"{figure.load:40} {figure.workers:2} workers {figure.packets_per_second:10,.0f}/s "
        f"{figure.microseconds_per_packet:6.2f} us a packet, {figure.processors:.2f} processors "
        f"({parts})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="", help="loads whose name has this")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    load.many_descriptors()
    names = [name for name in LOADS if given.only in name]
    figures = measure(names, given.workers, given.rounds, given.seconds)
    if given.json:
        machine = {"cores": len(os.sched_getaffinity(0)), "kernel": platform.release()}
        rows = [asdict(figure) for figure in figures]
        given.json.write_text(json.dumps({"machine": machine, "figures": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
