"""What is to be seen of a grid, before anything is drawn: figures, their colours, the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from tools.grid.cells import (
    AIOICE,
    KINDS,
    LIBNICE,
    MODES,
    NATKIT,
    PROGRAMS,
    Cell,
    Mark,
    Mode,
    Run,
    Tally,
    mark,
    tally,
)
from tools.grid.store import Grid

Role: TypeAlias = Literal["direct", "predicted", "birthday", "relay", "none", "absent"]
"""What a colour stands for."""

NAMES: Final = {
    "open": "open",
    "full-cone": "full cone",
    "restricted-cone": "restricted",
    "port-restricted-cone": "port-restricted",
    "symmetric-sequential": "symmetric sequential",
    "symmetric": "symmetric random",
}
BANDS: Final = dict(zip(MODES, ("UDP", "TCP, drop", "RST", "ICMP"), strict=True))
"""What a line of a cell is called: over what, and what the NATs do with an uninvited SYN."""
ROLES: Final[dict[Role, str]] = {
    "direct": "direct",
    "predicted": "direct, by port prediction",
    "birthday": "direct, by birthday probing",
    "relay": "relayed",
    "none": "not connected",
}
MARKS: Final[dict[Mark, str]] = {
    "D": "direct",
    "D*": "direct; over TCP the restricted side opens its filter first",
    "P": "port prediction",
    "B": "birthday probing, which has to be allowed",
    "B+P": "both at once; with filters by address and port, as here, 2048 packets have a chance of "
    "3 %, and half a chance takes 45 000, so natkit stays on the relay",
    "R": "relay",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """What one program did in one cell.  Times are medians in seconds, in print."""

    role: Role
    first: str = ""
    """Until the first octet."""
    until: str = ""
    """Until direct, or the word for what it is instead."""
    share: str = ""
    """How many runs came to that, where not all did."""
    words: str = ""
    """All of it, for a person."""


@dataclass(frozen=True, slots=True)
class Band:
    """One mode of one pair of kinds."""

    mode: Mode
    natkit: Figure
    aioice: Figure
    libnice: Figure

    def __getitem__(self, program: str) -> Figure:
        found: Figure = getattr(self, program)
        return found


@dataclass(frozen=True, slots=True)
class Square:
    """One pair of kinds."""

    a: str
    b: str
    mark: Mark
    bands: tuple[Band, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """The runs of one program over one transport."""

    program: str
    transport: str
    runs: int
    connected: int
    direct: int
    first: float | None
    """The median, seconds."""
    until_direct: float | None


def squares(grid: Grid) -> list[list[Square]]:
    """Return the whole grid, row by row."""
    return [[_square(grid.runs, a, b) for b in KINDS] for a in KINDS]


def _square(runs: Sequence[Run], a: str, b: str) -> Square:
    mine = [run for run in runs if (run.cell.a, run.cell.b) == (a, b)]
    bands = tuple(
        Band(mode, *(figure(tally(mine, program, Cell(mode, a, b))) for program in PROGRAMS))
        for mode in MODES
    )
    return Square(a, b, mark(a, b), bands)


def figure(found: Tally | None) -> Figure:
    """Return what is to be seen of some runs."""
    if found is None:
        return Figure("absent", words="not measured")
    count, outcome = len(found.runs), found.outcome
    times = {"first": number(found.first), "direct": number(found.until_direct)}
    share = ""
    if found.is_mixed:
        same = sum(run.outcome == outcome for run in found.runs)
        share = f"{same}/{count}"
    words = [f"{found.connected} of {count} connected, {found.direct} directly"]
    if found.strategy:
        words.append(f"by {found.strategy}")
    if times["first"]:
        words.append(f"first octet after {times['first']} s")
    if times["direct"]:
        words.append(f"direct after {times['direct']} s")
        if count > 1 and found.slowest is not None:
            words.append(f"at most {number(found.slowest)} s")
    words += sorted({run.why for run in found.runs if run.why})
    return Figure(
        role=role(found),
        first=times["first"],
        until={"direct": times["direct"], "relay": "relay", "none": "no"}[outcome],
        share=share,
        words="; ".join(words),
    )


def role(found: Tally) -> Role:
    """Return the colour of some runs."""
    if found.outcome != "direct":
        return found.outcome
    if "prediction" in found.strategy:
        return "predicted"
    return "birthday" if "birthday" in found.strategy else "direct"


def number(seconds: float | None) -> str:
    """Return a time in seconds, in four characters at most."""
    if seconds is None:
        return ""
    return f"{seconds:.2f}" if seconds < 9.995 else f"{seconds:.1f}"


def counts(grid: Grid) -> list[Count]:
    """Return how many runs there were, and what they came to."""
    found = []
    for program in PROGRAMS:
        for transport in ("udp", "tcp"):
            runs = tuple(
                run
                for run in grid.runs
                if run.program == program and run.cell.mode.transport == transport
            )
            if runs:
                all_of = Tally(runs)
                found.append(
                    Count(
                        program,
                        transport,
                        len(runs),
                        all_of.connected,
                        all_of.direct,
                        all_of.first,
                        all_of.until_direct,
                    )
                )
    return found


def notes(grid: Grid) -> list[str]:
    """Return what has to be known to read the figures."""
    about = grid.about
    runs = [run for run in grid.runs if run.program == NATKIT]
    load = sorted(run.load for run in runs)
    each = sorted({len(list(group)) for group in _by_cell(runs)})
    several = f"{each[0]}" if len(each) == 1 else f"{each[0]} to {each[-1]}" if each else "no"
    delay, skew = about.get("delay_ms_one_way", 40), about.get("skew_seconds_at_most", 1)
    patience = about.get("patience_seconds", 20)
    found = [
        f"NATs of the Linux kernel, {delay:g} ms one way from end to end; the two commands start "
        f"0 to {skew:g} s apart; a direct way is waited for {patience:g} s. "
        f"natkit: {several} run{'' if several == '1' else 's'} a line, medians.",
        "natkit's times run from when the two met at the rendezvous until both sides had the "
        "octet, or the way: signalling over the same wires, encryption and all. Where the first "
        "figure is the greater one, the direct way was there before the relay.",
        "aioice and libnice: from the agents' start until both could send; their signalling takes "
        "no time, nothing is encrypted. In the lines of TCP no UDP comes in, and their relays "
        "are reached over TCP.",
    ]
    if load:
        found.append(
            f"{about.get('cores', '?')} cores shared with other work, load average "
            f"{load[0]:.1f} to {load[-1]:.1f} during the runs, {about.get('measured', '')}; "
            f"aioice {about.get('aioice', '?')}, libnice {about.get('libnice', '?')}."
        )
    return found


def _by_cell(runs: Sequence[Run]) -> list[list[Run]]:
    found: dict[Cell, list[Run]] = {}
    for run in runs:
        found.setdefault(run.cell, []).append(run)
    return list(found.values())


__all__ = ["AIOICE", "LIBNICE", "Band", "Count", "Figure", "Role", "Square", "counts", "squares"]
