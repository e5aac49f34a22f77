"""The cells of the grid: which they are, what the pair matrix promises of each, what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import comb
from typing import Final, Literal, NamedTuple, TypeAlias

from nattype.peers import MATRIX, PeerKind
from nattype.report import Reach

Transport: TypeAlias = Literal["udp", "tcp"]
Outcome: TypeAlias = Literal["direct", "relay", "none"]
Mark: TypeAlias = Literal["D", "D*", "P", "B", "B+P", "R"]
"""What the pair matrix of the literature says: directly; directly, over TCP if the restricted side
opens its filter first; by port prediction; by birthday probing; by both together; by a relay."""

KINDS: Final = (
    "open",
    "full-cone",
    "restricted-cone",
    "port-restricted-cone",
    "symmetric-sequential",
    "symmetric",
)
NATKIT, AIOICE, LIBNICE = PROGRAMS = ("natkit", "aioice", "libnice")

_PEER_KINDS: Final = dict(zip(KINDS, PeerKind, strict=True))
_RESTRICTED, _SEQUENTIAL, _RANDOM = KINDS[2], KINDS[4], KINDS[5]
_MARKS: Final[dict[Reach, Mark]] = {
    Reach.DIRECT: "D",
    Reach.PREDICTION: "P",
    Reach.BIRTHDAY: "B",
    Reach.RELAY: "R",
}

BIRTHDAY_RATE: Final = 0.983
"""What the matrix gives for 256 sockets and 1024 probes."""
DOUBT: Final = 0.05
"""So unlikely a result is no bad luck any more."""


class Mode(NamedTuple):
    """What may leave the hosts, and what the NATs do with a SYN that nobody asked for."""

    transport: Transport
    uninvited: str = ""
    """``drop``, ``rst`` or ``icmp``; empty where no SYN matters."""

    def __str__(self) -> str:
        return f"{self.transport}/{self.uninvited}" if self.uninvited else self.transport


UDP: Final = Mode("udp")
MODES: Final = (UDP, Mode("tcp", "drop"), Mode("tcp", "rst"), Mode("tcp", "icmp"))
MODE_NAMES: Final = {str(mode): mode for mode in MODES}


class Cell(NamedTuple):
    """One pair of NATs in one mode.  ``a`` waits, or controls, and ``b`` comes to it."""

    mode: Mode
    a: str
    b: str

    def __str__(self) -> str:
        return f"{self.mode} {self.a} with {self.b}"


def cells(modes: Sequence[Mode] = MODES, kinds: Sequence[str] = KINDS) -> Iterator[Cell]:
    """Yield all cells of these modes."""
    for mode, a, b in product(modes, kinds, kinds):
        yield Cell(mode, a, b)


def mark(a: str, b: str) -> Mark:
    """Return what the matrix says of two kinds."""
    if {a, b} == {_SEQUENTIAL, _RANDOM}:
        return "B+P"
    if _RESTRICTED in (a, b) and {a, b} & {_SEQUENTIAL, _RANDOM}:
        return "D*"
    return _MARKS[MATRIX[_PEER_KINDS[a], _PEER_KINDS[b]]]


def due(which: Mark) -> float:
    """Return the share of runs that have to become direct.

    A NAT that counts and one that draws at random, both with filters that go by address and port,
    meet far more seldom than their mark suggests: half a chance costs 45 000 packets
    (:mod:`ice.predict.plan`).  A direct way is welcome there, and not asked for.
    """
    if which == "B":
        return BIRTHDAY_RATE
    return 0.0 if which in ("R", "B+P") else 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """What came of two programs that were to connect.  Times are in seconds."""

    program: str
    cell: Cell
    number: int
    outcome: Outcome
    """The way that was in use at the end."""
    over: str = ""
    """What left the hosts on it: ``udp`` or ``tcp``."""
    first: float | None = None
    """Until each side had an octet of the other one's."""
    direct: float | None = None
    """Until both sides sent directly."""
    strategy: str = ""
    """How the direct way was found, or what was tried last."""
    skew: float = 0.0
    """How much later one of the two was started."""
    late: str = ""
    """Which one."""
    load: float = 0.0
    """The machine's load average over the last minute."""
    why: str = ""
    """What is wrong, if anything is."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The runs of one program in one cell, counted."""

    runs: tuple[Run, ...]

    @property
    def connected(self) -> int:
        return sum(run.outcome != "none" for run in self.runs)

    @property
    def direct(self) -> int:
        return sum(run.outcome == "direct" for run in self.runs)

    @property
    def outcome(self) -> Outcome:
        """What most runs came to; the worse of two that are as frequent."""
        counts: dict[Outcome, int] = {
            "none": len(self.runs) - self.connected,
            "relay": self.connected - self.direct,
            "direct": self.direct,
        }
        return max(counts, key=lambda each: counts[each])

    @property
    def is_mixed(self) -> bool:
        return len({run.outcome for run in self.runs}) > 1

    @property
    def first(self) -> float | None:
        """The median, seconds."""
        return _median([run.first for run in self.runs])

    @property
    def until_direct(self) -> float | None:
        """The median, seconds, of the runs that became direct."""
        return _median([run.direct for run in self.runs if run.outcome == "direct"])

    @property
    def slowest(self) -> float | None:
        """The longest time until direct, seconds."""
        found = [run.direct for run in self.runs if run.direct is not None]
        return max(found) if found else None

    @property
    def strategy(self) -> str:
        """How most direct ways were found."""
        found = [run.strategy for run in self.runs if run.outcome == "direct"]
        return statistics.mode(found) if found else ""


def tally(runs: Sequence[Run], program: str, cell: Cell) -> Tally | None:
    """Count the runs of a program in a cell; ``None`` if there is none."""
    found = tuple(run for run in runs if run.program == program and run.cell == cell)
    return Tally(found) if found else None


def shortfall(found: Tally, which: Mark) -> str:
    """Say what is worse than it has to be; empty if nothing is."""
    count = len(found.runs)
    if found.connected < count:
        return f"{count - found.connected} of {count} runs did not connect"
    if unclean := sum(bool(run.why) for run in found.runs):
        return f"{unclean} of {count} runs did not end as they should"
    wanted = due(which)
    if luck(found.direct, count, wanted) < DOUBT:
        share = "all" if wanted == 1 else f"{wanted:.1%}"
        return f"{found.direct} of {count} runs became direct, where {share} should"
    return ""


def luck(successes: int, count: int, rate: float) -> float:
    """Return how likely so few successes, or fewer, are where each has a chance of ``rate``."""
    return sum(
        comb(count, each) * rate**each * (1 - rate) ** (count - each)
        for each in range(successes + 1)
    )


def _median(found: Sequence[float | None]) -> float | None:
    known = [each for each in found if each is not None]
    return statistics.median(known) if known else None
