"""What a soak has found: the checks, a table for a person, JSON for everybody else."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from stun.errors import DropReason
from tools.soak_shots import EXACT
from tools.soak_turnd import Sample, Turnd, total

MIB: Final = 1 << 20
SIXTHS: Final = 6
SLACK: Final = 4 * MIB
"""Resident octets by which the median of the last sixth may exceed that of the second.

By the second sixth the tables of turnd that are of bounded size are mostly full (buckets of those
who left, text forms of addresses, answers kept for retransmissions), and it serves as many clients
as it will.  What still grows by two or three MiB is malloc's heap, not what is in use of it: TLS
sessions of all sizes and ages leave gaps between them.  Measured from inside, after all had gone,
5,300 allocations more left 0.06 MiB more in use of a heap that was 2.7 MiB greater.

Between the two, of ten minutes, some 8,000 allocations come and go: 520 octets left of each fail.
"""
SLACK_OF_A_SHORT_ONE: Final = 16 * MIB
"""The same below :data:`LONG_ENOUGH` seconds, when those tables have only begun to fill."""
LONG_ENOUGH: Final = 300


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    passed: bool
    detail: str


@dataclass
class Findings:
    """Everything that a soak has seen."""

    seed: int
    seconds: float
    clients: int
    idle: Sample | None = None
    """Before the first client."""
    samples: list[Sample] = field(default_factory=list)
    """While they were there."""
    end: Sample | None = None
    """After the last thing of theirs should have expired."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the end."""
    tally: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    worker_statuses: list[int] = field(default_factory=list)
    lost_in_the_kernel: int = 0
    descriptors_left: list[str] = field(default_factory=list)
    """Which there are more of than before the first client."""
    log_levels: Counter[str] = field(default_factory=Counter)
    bad_lines: list[str] = field(default_factory=list)
    """Of turnd's log: errors, tracebacks, what is not JSON."""
    status: int | None = None
    """turnd's exit status; ``None``: it had to be killed."""

    def read_log(self, turnd: Turnd) -> None:
        """Take what turnd has logged."""
        for line in turnd.log_lines():
            if isinstance(line, str):
                self.log_levels["not JSON"] += 1
                self.bad_lines.append(line)
                continue
            level = str(line.get("level"))
            self.log_levels[level] += 1
            if level not in ("debug", "info", "warning") or "Traceback" in str(line):
                self.bad_lines.append(str(line))


def checks(found: Findings) -> list[Check]:
    """Judge."""
    return [check(found) for check in _CHECKS]


def _memory(found: Findings) -> Check:
    groups = sixths(found.samples, lambda sample: sample.rss)
    if not groups:
        return Check("memory is flat", passed=False, detail="too few samples")
    before, after = statistics.median(groups[1]), statistics.median(groups[-1])
    slack = SLACK if found.seconds >= LONG_ENOUGH else SLACK_OF_A_SHORT_ONE
    return Check(
        "memory is flat",
        after - before <= slack,
        f"median of the 2nd sixth {before / MIB:.2f} MiB, of the last {after / MIB:.2f} MiB: "
        f"{(after - before) / MIB:+.2f}, allowed +{slack // MIB} MiB",
    )


def _descriptors(found: Findings) -> Check:
    idle, end = found.idle, found.end
    assert idle is not None
    assert end is not None
    peak = max(sample.descriptors for sample in found.samples)
    left = f"; left: {', '.join(found.descriptors_left)}" if found.descriptors_left else ""
    return Check(
        "no descriptor leaked",
        end.descriptors - end.spares == idle.descriptors,
        f"{idle.descriptors} before, {peak} at most, {end.descriptors} after, "
        f"{end.spares} of them kept for the next clients{left}",
    )


def _threads(found: Findings) -> Check:
    idle, end = found.idle, found.end
    assert idle is not None
    assert end is not None
    return Check(
        "no thread leaked",
        end.threads <= idle.threads,
        f"{idle.threads} before, {end.threads} after",
    )


def _gauges(found: Findings) -> Check:
    end = found.end
    assert end is not None
    left = {
        name: getattr(end, name)
        for name in ("allocations", "permissions", "channels", "connections")
    }
    return Check(
        "nothing of a client is left",
        not any(left.values()),
        ", ".join(f"{name} {value}" for name, value in left.items()),
    )


def _books(found: Findings) -> Check:
    """Allocations that were made and those that ended are as many."""
    made = total(found.metrics, "turnd_allocations_created")
    ended = total(found.metrics, "turnd_allocations_ended")
    why = _by_label(found.metrics, "turnd_allocations_ended")
    return Check(
        "every allocation ended", made == ended > 0, f"{made:.0f} made, {ended:.0f} ended: {why}"
    )


def dropped(found: Findings) -> Iterator[tuple[DropReason, int, int]]:
    """Yield the reasons that are counted exactly: what was sent, what was counted."""
    for reason in EXACT:
        name = reason.name.lower()
        counted = found.metrics.get(f'turnd_dropped_total{{reason="{name}"}}', 0.0)
        yield reason, found.tally[f"must drop: {name}"], int(counted)


def _drops(found: Findings) -> Check:
    # What the kernel had no room for turnd cannot count; nothing else may be missing.
    missing = extra = sum_sent = 0
    wrong = []
    for reason, sent, counted in dropped(found):
        sum_sent += sent
        missing += max(sent - counted, 0)
        extra += max(counted - sent, 0)
        if sent != counted:
            wrong.append(f"{reason.name.lower()}: {sent} sent, {counted} counted")
    lost = found.lost_in_the_kernel
    detail = "; ".join(wrong) or f"{sum_sent} of {len(EXACT)} reasons, to the last one"
    if lost:
        detail += f"; {lost} datagrams lost by the kernel"
    return Check("every drop is counted", sum_sent > 0 and not extra and missing <= lost, detail)


def _log(found: Findings) -> Check:
    levels = ", ".join(f"{count} {level}" for level, count in found.log_levels.items())
    return Check(
        "no error in the log",
        not found.bad_lines and sum(found.log_levels.values()) > 0,
        "; ".join([levels, *found.bad_lines[:5]]),
    )


def _status(found: Findings) -> Check:
    detail = "had to be killed" if found.status is None else f"exit status {found.status}"
    return Check("SIGTERM ends it with status 0", found.status == 0, detail)


def _clients(found: Findings) -> Check:
    tally = found.tally
    good = found.worker_statuses and not any(found.worker_statuses)
    return Check(
        "no honest client failed",
        not found.failures and bool(good) and tally["echoes"] > 0,
        "; ".join(
            [
                f"{tally['clients that came']} came, {tally['echoes']} echoes and "
                f"{tally['octets on streams'] / MIB:.0f} MiB of streams unchanged",
                *found.failures[:5],
            ]
        ),
    )


_CHECKS: Final[tuple[Callable[[Findings], Check], ...]] = (
    _memory,
    _descriptors,
    _threads,
    _gauges,
    _books,
    _drops,
    _log,
    _status,
    _clients,
)


def sixths(samples: Sequence[Sample], value: Callable[[Sample], float]) -> list[list[float]]:
    """Cut the samples into six parts of equal length; none if there are too few."""
    if len(samples) < SIXTHS:
        return []
    cuts = [len(samples) * n // SIXTHS for n in range(SIXTHS + 1)]
    return [[value(sample) for sample in samples[begin:end]] for begin, end in pairwise(cuts)]


def _by_label(found: Mapping[str, float], name: str) -> str:
    labelled = [
        (key.split('"')[1], value)
        for key, value in found.items()
        if key.startswith(f"{name}_total{{")
    ]
    return ", ".join(f"{value:.0f} {label}" for label, value in labelled)


def to_json(found: Findings) -> dict[str, Any]:
    """Return everything as JSON takes it."""
    judged = checks(found)
    document = {name: getattr(found, name) for name in Findings.__dataclass_fields__}
    for name in ("idle", "end"):
        document[name] = None if document[name] is None else asdict(document[name])
    document["samples"] = [asdict(sample) for sample in found.samples]
    document["passed"] = all(check.passed for check in judged)
    document["checks"] = [asdict(check) for check in judged]
    return document


def render(found: Findings, console: Console) -> None:
    """Show a person what there is to know."""
    table = Table(title=f"turnd, {found.seconds:.0f} s, seed {found.seed}", title_justify="left")
    for column in ("", "sixth 1", "2", "3", "4", "5", "6"):
        table.add_column(column, justify="right" if column else "left")
    rows: tuple[tuple[str, Callable[[Sample], float], str], ...] = (
        ("resident, MiB", lambda sample: sample.rss / MIB, ".2f"),
        ("descriptors", lambda sample: sample.descriptors, ".0f"),
        ("allocations", lambda sample: sample.allocations, ".0f"),
        ("permissions", lambda sample: sample.permissions, ".0f"),
        ("channels", lambda sample: sample.channels, ".0f"),
        ("connections", lambda sample: sample.connections, ".0f"),
    )
    for name, value, form in rows:
        groups = sixths(found.samples, value)
        table.add_row(name, *(format(statistics.median(group), form) for group in groups))
    console.print(table)
    for name, prefix in (("honest clients", ""), ("attacks", "attacks")):
        counts = [
            f"{key.removeprefix('attacks: ')} {value}"
            for key, value in sorted(found.tally.items())
            if key.startswith("attacks") is bool(prefix) and not key.startswith("must drop")
        ]
        console.print(f"[bold]{name}[/bold]: {', '.join(counts)}")
    console.print(f"[bold]dropped[/bold]: {_by_label(found.metrics, 'turnd_dropped')}")
    if found.samples:
        last = found.samples[-1]
        console.print(
            f"[bold]turnd[/bold]: {last.cpu / max(last.second, 1):.1%} of a core, "
            f"{last.relayed} packets relayed"
        )
    for check in checks(found):
        mark = "[green]ok  [/green]" if check.passed else "[red]FAIL[/red]"
        console.print(mark, check.name, "-", check.detail, highlight=False, markup=True)
