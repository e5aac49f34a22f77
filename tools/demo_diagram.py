"""Draws what passed between two NATs as a sequence diagram, in a terminal or for a pipe.

        ms A's NAT                                 B's NAT
       0.0 ├─── SYN 4000→4001 ───╲ ╱─── SYN 4000←4001 ───┤ 0.6
           │                      ╳                      │         they cross
      20.7 │◀────────────────────╱ ╲────────────────────▶│ 20.2    both let in
      20.8 ├────────────────── SYN-ACK ─────────────────▶│ 41.0

Each NAT has a line, and the numbers beside it are its times.  Ports stand at the side that they
belong to.  What a NAT does not let in ends in a cross.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from rich.text import Text

from tools.demo_wire import Flight, Wire

SIDES: Final = ("A", "B")
"""Whose NAT is on the left, and whose on the right."""
STYLES: Final = {"A": "cyan", "B": "magenta"}
BAD: Final = "red"
GOOD: Final = "green"
TIME: Final = 8
"""Columns of a time."""
NOTE: Final = 17
"""Columns of what is said about a row."""
NARROWEST: Final = 25
"""Columns between the two lines, at least."""
WIDEST: Final = 61
"""Columns between the two lines, at most."""
SILENT: Final = 5_000_000
"""Nanoseconds after which a NAT that has neither let a SYN in nor refused it has dropped it."""
LOST: Final = 1_000_000_000
"""Nanoseconds after which a segment that has not arrived never will."""
SHOWN: Final = 2
"""SYNs that one NAT refuses, one after another, that are all drawn."""

_ASCII: Final = str.maketrans("─│├┤▶◀╲╱╳╞╡═→←⋮", "-|++><\\/X++=><:")


class Fate(Enum):
    """What has become of a segment."""

    UNDER_WAY = auto()
    LOST = auto()
    ARRIVED = auto()
    """It is at the other NAT, and no more is known."""
    LET_IN = auto()
    REFUSED = auto()
    DROPPED = auto()


_DEAD: Final = {Fate.LOST, Fate.REFUSED, Fate.DROPPED}
_NOTES: Final = {
    Fate.LOST: Text("lost", BAD),
    Fate.LET_IN: Text("let in", GOOD),
    Fate.REFUSED: Text("refused", BAD),
    Fate.DROPPED: Text("dropped", BAD),
}


@dataclass(frozen=True, slots=True)
class Crossing:
    """Two SYNs of one connection, each of which left before the other one arrived."""

    ours: Flight
    """The one from the left."""
    theirs: Flight


@dataclass(frozen=True, slots=True)
class Refusals:
    """SYNs in a row that one NAT did not let in."""

    flights: tuple[Flight, ...]


Item = Flight | Crossing | Refusals


# What is drawn. -----------------------------------------------------------------------------------


def fate(flight: Flight, now: int) -> Fate:
    """Say what has become of a segment by the time ``now``, in nanoseconds."""
    if flight.arrived is None:
        return Fate.LOST if now - flight.left > LOST else Fate.UNDER_WAY
    if flight.entered is not None:
        return Fate.LET_IN
    if flight.refusal is not None:
        return Fate.REFUSED
    # What a NAT makes of an RST cannot be seen outside, so only SYNs are called dropped.
    if flight.is_syn and now - flight.arrived > SILENT:
        return Fate.DROPPED
    return Fate.ARRIVED


def chosen(wire: Wire) -> Iterator[Flight]:
    """Return what belongs to the story: SYNs and what answers them, until there is a connection."""
    end = wire.established_at
    for flight in wire.flights:
        # What a NAT has made is drawn with what it refuses.
        tells = flight.name in {"SYN", "SYN-ACK", "RST"} and not flight.by_nat
        if end is None:
            if tells:
                yield flight
        elif flight.ends == wire.ends:
            if flight.left <= end and (tells or flight.entered == end):
                yield flight
        elif tells and flight.arrived is not None and flight.arrived <= end:
            yield flight


def arranged(flights: Sequence[Flight], now: int) -> list[Item]:
    """Put together what is drawn together."""
    items: list[Item] = []
    done: set[Flight] = set()
    for flight in flights:
        if flight in done:
            continue
        other = next((f for f in flights if f not in done and _cross(flight, f)), None)
        last = items[-1] if items else None
        if other is not None:
            done.add(other)
            left, right = sorted((flight, other), key=lambda each: SIDES.index(each.side))
            items.append(Crossing(left, right))
        elif not flight.is_syn or fate(flight, now) not in _DEAD:
            items.append(flight)
        elif isinstance(last, Refusals) and last.flights[0].side == flight.side:
            items[-1] = Refusals((*last.flights, flight))
        else:
            items.append(Refusals((flight,)))
    return items


def _cross(one: Flight, other: Flight) -> bool:
    return (
        one.is_syn
        and other.is_syn
        and one.segment.source == other.segment.target
        and one.segment.target == other.segment.source
        and one.entered is not None
        and other.entered is not None
        and one.left < other.entered
        and other.left < one.entered
    )


# How it is drawn. ---------------------------------------------------------------------------------


class Diagram:
    """The picture of a wire, in so many columns.

    ``addresses`` has those of the NATs by side.  ``zero`` is the time from which milliseconds are
    counted, the first SYN's if that is earlier or there is none.
    """

    def __init__(
        self, wire: Wire, addresses: Mapping[str, str], width: int, *, zero: int | None = None
    ) -> None:
        self._wire = wire
        self._addresses = addresses
        wide = width - 2 * TIME - 2
        self._has_notes = wide - NOTE >= NARROWEST
        middle = min(WIDEST, max(NARROWEST, wide - NOTE if self._has_notes else wide))
        self._middle = middle - 1 + middle % 2
        """Columns between the lines; odd, so that there is one in the middle."""
        self._zero = sys.maxsize if zero is None else zero

    def lines(self, now: int, *, encoding: str = "utf-8") -> list[Text]:
        """Return the picture at the time ``now``; none before a SYN was seen."""
        flights = list(chosen(self._wire))
        if not flights:
            return []
        self._zero = min(self._zero, flights[0].left)
        lines = [self._head()]
        for item in arranged(flights, now):
            if isinstance(item, Crossing):
                lines += self._crossing(item)
            elif isinstance(item, Refusals):
                lines += self._refusals(item, now)
            else:
                lines.append(self._arrow(item, now))
        if self._wire.established_at is not None:
            lines.append(self._established(self._wire.established_at))
        if not encoding.lower().startswith("utf"):
            lines = [_ascii(line) for line in lines]
        return lines

    def _head(self) -> Text:
        room = self._middle + 2
        names = [f"{side}'s NAT {self._addresses[side]}" for side in SIDES]
        if sum(map(len, names)) + 2 > room:
            names = [f"{side}'s NAT" for side in SIDES]
        return Text.assemble(
            (f"{'ms':>{TIME - 1}} ", "dim"),
            (names[0], f"bold {STYLES[SIDES[0]]}"),
            " " * (room - sum(map(len, names))),
            (names[1], f"bold {STYLES[SIDES[1]]}"),
        )

    def _row(
        self,
        middle: Text,
        left: tuple[int | None, str] = (None, "│"),
        right: tuple[int | None, str] = (None, "│"),
        note: Text | None = None,
    ) -> Text:
        line = Text(f"{self._ms(left[0]):>{TIME - 1}} ", "dim")
        line = Text.assemble(line, left[1], middle, right[1])
        line.append(f" {self._ms(right[0]):<{TIME - 1}}", "dim")
        if note is not None and self._has_notes:
            line.append_text(note)
        line.rstrip()
        return line

    def _ms(self, at: int | None) -> str:
        return "" if at is None else f"{(at - self._zero) / 1e6:.1f}"

    def _arrow(self, flight: Flight, now: int) -> Text:
        became, style = fate(flight, now), _style(flight)
        to_the_right = flight.side == SIDES[0]
        room = self._middle * 2 // 3 if became is Fate.UNDER_WAY else self._middle
        rest = " " * (self._middle - room)
        line = Text(_fill(self._label(flight), room - 1), style)
        head = Text("▶" if to_the_right else "◀", style)
        if became in _DEAD:
            head = Text("╳", f"bold {BAD}")
        note = _NOTES.get(became) if flight.is_syn or became in _DEAD else None
        if to_the_right:
            middle = Text.assemble(line, head, rest)
            return self._row(middle, (flight.left, "├"), (flight.arrived, "│"), note)
        middle = Text.assemble(rest, head, line)
        return self._row(middle, (flight.arrived, "│"), (flight.left, "┤"), note)

    def _crossing(self, item: Crossing) -> list[Text]:
        ours, theirs = item.ours, item.theirs
        half = (self._middle - 3) // 2
        above = Text.assemble(
            (_fill(self._label(ours), half) + "╲", _style(ours)),
            " ",
            ("╱" + _fill(self._label(theirs), half), _style(theirs)),
        )
        below = Text.assemble(
            ("◀" + "─" * (half - 1) + "╱", _style(theirs)),
            " ",
            ("╲" + "─" * (half - 1) + "▶", _style(ours)),
        )
        ended = (theirs.arrived, "│"), (ours.arrived, "│")
        return [
            self._row(above, (ours.left, "├"), (theirs.left, "┤")),
            self._row(Text(f"{'╳':^{self._middle}}"), note=Text("they cross", "bold")),
            self._row(below, *ended, Text("both let in", GOOD)),
        ]

    def _refusals(self, item: Refusals, now: int) -> list[Text]:
        flights = item.flights
        hidden = len(flights) - SHOWN
        lines: list[Text] = []
        for flight in flights if hidden <= 0 else (flights[0], flights[-1]):
            if lines and hidden > 0:
                text = f"⋮ {hidden} more like this"
                lines.append(self._row(Text(f"{text:^{self._middle}}", "dim")))
            lines.append(self._arrow(flight, now))
            if flight.refusal is not None:
                lines.append(self._arrow(flight.refusal, now))
        return lines

    def _established(self, at: int) -> Text:
        middle = Text(f"{' established ':═^{self._middle}}", f"bold {GOOD}")
        return self._row(middle, (at, "╞"), (None, "╡"), Text("on both sides", GOOD))

    def _label(self, flight: Flight) -> str:
        if not flight.is_syn:
            return flight.name
        source, target = flight.segment.source.port, flight.segment.target.port
        ports = f"{source}→{target}" if flight.side == SIDES[0] else f"{target}←{source}"
        return f"{flight.name} {ports}"


def _style(flight: Flight) -> str:
    return BAD if flight.name in {"RST", "ICMP"} else STYLES[flight.side]


def _fill(label: str, columns: int) -> str:
    """Return dashes with a label in their middle, or with its first word."""
    if len(label) + 2 > columns:
        label = label.partition(" ")[0]
    if len(label) + 2 > columns:
        return "─" * columns
    return f"{f' {label} ':─^{columns}}"


def _ascii(line: Text) -> Text:
    plain = line.copy()
    plain.plain = line.plain.translate(_ASCII)
    return plain
