"""TCP simultaneous open between two kernel NATs, many times over: the table of how often it works.

    python tools/sotable.py [--trials 32] [--mode plain] [--pairs] [--skew 0.4] [--delay 0.04]

Two programs, each on a host behind its own NAT, 40 ms one way from each other, map three ports by a
STUN server, learn each other's addresses from this program, and connect by ``ice.tcp.punch``.  One
of them starts up to 400 ms later than the other, each in turn.  A trial has succeeded when both
have the same connection and what each sends at once has come to the other, whole.  The columns are
what both NATs do with a SYN that nobody asked for; beside ours stand the numbers of simpler recipes
as they were measured in the field, in a laboratory like this one.

``--pairs`` adds NATs that differ.  ``--delay 0`` is the hardest case there is: a refusal comes back
before a program can do anything, so that no two SYNs are ever under way at once.  The exit code is
1 when a trial failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from ice.errors import ConnectionFailed
from ice.tcp.aio import MappedPorts, Punched, map_ports
from nattype.lab import Lab, Machine
from stun.sansio import SECOND

ROOT: Final = Path(__file__).parents[1]
DROPS, RESETS, ICMP = "port-restricted-cone", "port-restricted-rst", "port-restricted-icmp"
COLUMNS: Final = {DROPS: "drops the SYN", RESETS: "sends RST", ICMP: "sends ICMP"}
SHORT: Final = {DROPS: "drop", RESETS: "RST", ICMP: "ICMP"}
MIXED: Final = ((DROPS, RESETS), (DROPS, ICMP), (RESETS, ICMP))
FIELD: Final = (
    ("fixed gap of 50 ms", 32, 21, 27),
    ("random gap, 0 to 200 ms", 31, 32, 24),
    ("random gap and a listener", 32, 32, 21),
    ("at once, on a new socket", None, 32, 32),
)
"""Successes of 32 by recipe: 40 ms one way, 0 to 400 ms of skew, two Linux NATs."""
HELLO: Final = 20_000
"""Octets that each end sends as soon as it has the connection."""


# One end: a program on a host of the laboratory. --------------------------------------------------


async def _exchange(hole: Punched, name: str) -> str:
    """Send what is too much for one segment; return who the other one says it is."""
    reader, writer = await hole.streams()
    try:
        writer.write(name.encode().ljust(HELLO, b"."))
        data = await reader.readexactly(HELLO)
        # Neither end closes while the other may still be sending.
        writer.write(b"!")
        await reader.readexactly(1)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return data.decode().rstrip(".")


async def _connect(mapped: MappedPorts, command: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    try:
        hole = await mapped.punch(
            command["to"],
            secret=command["secret"],
            controlling=command["controlling"],
            start_at=mapped.now() + int(command["after"] * SECOND),
            low_ttl=command["low_ttl"],
            timeout=command["timeout"],
        )
        took = time.monotonic() - began
        async with asyncio.timeout(10):
            peer = await _exchange(hole, command["name"])
    except (ConnectionFailed, OSError, EOFError, TimeoutError) as error:
        return {"failed": f"{type(error).__name__}: {error}", "counters": dict(mapped.counters)}
    return {
        "peer": peer,
        "took": took,
        "spare": hole.local != mapped.ports[0].local if mapped.ports else False,
        "counters": dict(mapped.counters),
    }


async def _end(host: str, server: str) -> None:
    """Obey what comes in line by line, and tell what came of it, both as JSON."""
    loop = asyncio.get_running_loop()
    mapped: MappedPorts | None = None
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if command["do"] == "map":
            if mapped is not None:
                mapped.close()
            mapped = await map_ports([server], host=host, count=command["count"])
            told: dict[str, Any] = {"at": mapped.addresses, "missing": mapped.missing}
        else:
            assert mapped is not None
            told = await _connect(mapped, command)
        print(json.dumps(told), flush=True)


class End:
    """One end, seen from outside."""

    def __init__(self, lab: Lab, machine: Machine, stack: ExitStack) -> None:
        host, port = lab.stun
        self.name = machine.name
        self.program = stack.enter_context(
            machine.popen(
                [sys.executable, "-P", __file__, "--end", machine.ipv4, f"{host}:{port}"],
                stdin=-1,
                stdout=-1,
                text=True,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        )

    def do(self, **command: Any) -> None:
        """Give a command."""
        assert self.program.stdin is not None
        self.program.stdin.write(json.dumps(command) + "\n")
        self.program.stdin.flush()

    def told(self) -> dict[str, Any]:
        """Wait for what came of it."""
        assert self.program.stdout is not None
        line = self.program.stdout.readline()
        if not line:
            raise RuntimeError(f"the program on {self.name} has ended")
        found: dict[str, Any] = json.loads(line)
        return found


# Trials. ------------------------------------------------------------------------------------------


@dataclass
class Cell:
    """What came of the trials between two NATs."""

    trials: int = 0
    seconds: list[float] = field(default_factory=list)
    """From the later one's start until both had the connection, for each success."""
    spares: int = 0
    """Successes on another pair of ports than the first."""
    failures: list[str] = field(default_factory=list)

    @property
    def successes(self) -> int:
        """How many there were."""
        return len(self.seconds)

    def __str__(self) -> str:
        if not self.seconds:
            return f"{self.successes} of {self.trials}"
        median, most = statistics.median(self.seconds), max(self.seconds)
        return f"{self.successes} of {self.trials}\n{median:.2f} s, at most {most:.2f}"


@contextmanager
def ends(left: str, right: str, *, delay: float) -> Iterator[tuple[End, End]]:
    """Have an end behind each of these NATs, ``delay`` seconds one way from each other."""
    with Lab.pair(left, right, delay=delay / 2, ipv6="off") as lab, ExitStack() as stack:
        yield End(lab, lab.a, stack), End(lab, lab.b, stack)


def trial(
    a: End,
    b: End,
    *,
    skew: float,
    late_is_a: bool,
    low_ttl: bool,
    count: int = 3,
    timeout: float = 20,
) -> dict[str, Any]:
    """Connect once; what came of it has ``took`` or ``failed``."""
    secret = secrets.token_urlsafe()
    for end in (a, b):
        end.do(do="map", count=count)
    at_a, at_b = a.told(), b.told()
    for end, there, controlling, late in (
        (a, at_b, True, late_is_a),
        (b, at_a, False, not late_is_a),
    ):
        end.do(
            do="punch",
            to=there["at"],
            secret=secret,
            controlling=controlling,
            after=skew if late else 0,
            low_ttl=low_ttl,
            timeout=timeout,
            name=end.name,
        )
    told_a, told_b = a.told(), b.told()
    if told_a.get("peer") != b.name or told_b.get("peer") != a.name:
        return {"failed": f"a: {told_a}\nb: {told_b}"}
    took = max(told_a["took"], told_b["took"]) - skew
    return {"took": took, "spare": told_a["spare"]}


def run_cell(
    left: str, right: str, *, trials: int, skew: float, delay: float, low_ttl: bool, count: int = 3
) -> Cell:
    """Try so many times, with starts that are 0 to ``skew`` seconds apart."""
    cell = Cell()
    with ends(left, right, delay=delay) as (a, b):
        for n in range(trials):
            apart = skew * (n // 2) / max(1, (trials - 1) // 2)
            found = trial(a, b, skew=apart, late_is_a=n % 2 == 0, low_ttl=low_ttl, count=count)
            cell.trials += 1
            if "failed" in found:
                cell.failures.append(f"trial {n}, {apart * 1e3:.0f} ms apart: {found['failed']}")
            else:
                cell.seconds.append(found["took"])
                cell.spares += found["spare"]
    return cell


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--mode", choices=["plain", "low-ttl"], action="append")
    parser.add_argument("--skew", type=float, default=0.4, help="seconds, at most (0.4)")
    parser.add_argument("--delay", type=float, default=0.04, help="seconds one way (0.04)")
    parser.add_argument("--ports", type=int, default=3, help="of each end, spares included (3)")
    parser.add_argument("--pairs", action="store_true", help="also NATs that differ")
    parser.add_argument("--end", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.end:
        asyncio.run(_end(*options.end))
        return 0
    console = Console()
    console.width = max(console.width, 110)
    modes = options.mode or ["plain", "low-ttl"]
    failures: list[str] = []

    def cell_of(left: str, right: str, mode: str) -> str:
        cell = run_cell(
            left,
            right,
            trials=options.trials,
            skew=options.skew,
            delay=options.delay,
            low_ttl=mode == "low-ttl",
            count=options.ports,
        )
        what = f"{mode}, {SHORT[left]} and {SHORT[right]}"
        console.print(f"{what}: {cell}".replace("\n", "; "), markup=False)
        failures.extend(f"{what}, {failure}" for failure in cell.failures)
        return str(cell)

    where = f"{options.delay * 1e3:g} ms one way, starts 0 to {options.skew * 1e3:g} ms apart"
    table = Table("recipe", *COLUMNS.values(), title=f"successes; both NATs alike, {where}")
    if (options.delay, options.skew) == (0.04, 0.4):
        for name, *numbers in FIELD:
            cells = ["n/a" if number is None else f"{number} of 32" for number in numbers]
            table.add_row(f"field: {name}", *cells)
    for mode in modes:
        table.add_row(f"natkit, {mode}", *(cell_of(kind, kind, mode) for kind in COLUMNS))
    console.print(table)
    if options.pairs:
        pairs = [pair for left, right in MIXED for pair in ((left, right), (right, left))]
        table = Table("NATs", *modes, title=f"successes; NATs that differ, {where}")
        for left, right in pairs:
            cells = [cell_of(left, right, mode) for mode in modes]
            table.add_row(f"{SHORT[left]} and {SHORT[right]}", *cells)
        console.print(table)
    for failure in failures:
        console.print(failure, markup=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
