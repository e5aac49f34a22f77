"""Draws docs/bench-planes.svg from docs/bench-planes.json: how costs and latency grow.

    python -m tools.bench.planes_picture [JSON [SVG]]

Four plots: CPU time for a packet by clients, by channels and by payload, and the latency added by
load.  Both axes are logarithmic where what they show spans more than a decade.  The SVG follows the
reader's light or dark setting by itself; all numbers drawn are in the JSON.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 1080, 800
PLOT_WIDTH, PLOT_HEIGHT = 350, 250
LEFTS, TOPS = (76, 612), (124, 500)
DOT = 3.4
CLOSE = 13.0
"""Names beside the ends of lines are at least so far apart."""

# One colour a role, for light and for dark.
PALETTE = {
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9198a1"),
    "grid": ("#d8dee4", "#2a313a"),
    "way0": ("#59636e", "#9198a1"),
    "way1": ("#1a7f37", "#3fb950"),
    "way2": ("#0969da", "#4493f8"),
    "way3": ("#bc4c00", "#f0883e"),
}
WAYS = ("IP forwarding", "turnd, kernel", "turnd, sockets", "coturn")
PAINT = (
    ("text", "fill", "ink"),
    (".soft", "fill", "soft"),
    (".paper", "fill", "paper"),
    (".grid", "stroke", "grid"),
    *((f".line{n}", "stroke", f"way{n}") for n in range(len(WAYS))),
    *((f".dot{n}", "fill", f"way{n}") for n in range(len(WAYS))),
    *((f"text.dot{n}", "fill", f"way{n}") for n in range(len(WAYS))),
)

Points: TypeAlias = list[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """Where values are on an axis ``length`` long."""

    low: float
    high: float
    length: float
    logarithmic: bool

    def at(self, value: float) -> float:
        """Return how far along a value is."""
        if self.logarithmic:
            value = max(value, self.low)
            return self.length * math.log(value / self.low) / math.log(self.high / self.low)
        return self.length * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Plot:
    """One plot: its words, where its numbers are in the report."""

    title: str
    below: str
    across: str
    lines: Mapping[str, Points]
    ticks: Sequence[float]
    logarithmic: bool = True
    name: Callable[[float], str] = field(default=lambda value: f"{value:,.0f}")
    dashed: Mapping[str, Points] = field(default_factory=dict)


def style() -> str:
    """Return the style sheet: the light colours, then the dark ones for readers who prefer them."""
    light, dark = (
        "".join(f"{selector}{{{what}:{PALETTE[role][n]}}}" for selector, what, role in PAINT)
        for n in (0, 1)
    )
    rules = [
        "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;"
        "font-size:12px}",
        ".title{font-size:17px;font-weight:600}",
        ".name{font-size:13.5px;font-weight:600}",
        ".middle{text-anchor:middle}",
        ".end{text-anchor:end}",
        ".grid{stroke-width:1}",
        "path{fill:none;stroke-width:2}",
        ".dashed{stroke-dasharray:5 4;stroke-width:1.5}",
        light,
        f"@media (prefers-color-scheme:dark){{{dark}}}",
    ]
    return "\n".join(rules)


def text(x: float, y: float, words: str, role: str = "") -> str:
    """Return a line of text that begins at ``x`` unless its role says otherwise."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{role}">{escape(words)}</text>'


def decades(values: Sequence[float]) -> list[float]:
    """Return the marks of a logarithmic axis that has all values: 1, 2 and 5 of each decade."""
    low, high = min(values), max(values)
    marks = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        for factor in (1, 2, 5)
    ]
    first = max((n for n, mark in enumerate(marks) if mark <= low), default=0)
    last = min(n for n, mark in enumerate(marks) if mark >= high)
    chosen = marks[first : last + 1]
    if len(chosen) > 9:
        powers = [mark for mark in chosen if f"{mark:e}".startswith("1.0")]
        chosen = [*({chosen[0], *powers, chosen[-1]})]
    return sorted(chosen)


def microseconds(value: float) -> str:
    """Return a value of the upright axis in words."""
    return f"{value / 1000:g} ms" if value >= 1000 else f"{value:g} µs"


def draw_plot(plot: Plot, left: float, top: float) -> Iterator[str]:
    """Yield the parts of one plot."""
    lines = {**plot.lines}
    values = [y for points in (*lines.values(), *plot.dashed.values()) for _, y in points]
    marks = decades([max(value, 0.05) for value in values])
    upright = Axis(marks[0], marks[-1], PLOT_HEIGHT, logarithmic=True)
    across = Axis(plot.ticks[0], plot.ticks[-1], PLOT_WIDTH, plot.logarithmic)
    bottom = top + PLOT_HEIGHT
    yield text(left, top - 30, plot.title, "name")
    yield text(left, top - 13, plot.below, "soft")
    for mark in marks:
        y = bottom - upright.at(mark)
        yield f'<line x1="{left}" x2="{left + PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        yield text(left - 8, y + 4, microseconds(mark), "soft end")
    for tick in plot.ticks:
        x = left + across.at(tick)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" class="grid"/>'
        yield text(x, bottom + 18, plot.name(tick), "soft middle")
    yield text(left + PLOT_WIDTH / 2, bottom + 38, plot.across, "soft middle")

    def path(points: Points, role: str) -> str:
        places = [(left + across.at(x), bottom - upright.at(max(y, 0.05))) for x, y in points]
        return f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}" class="{role}"/>'

    ends: list[tuple[float, int, str]] = []
    for name, points in plot.dashed.items():
        yield path(points, f"line{WAYS.index(name)} dashed")
    for name, points in lines.items():
        way = WAYS.index(name)
        yield path(points, f"line{way}")
        for x, y in points:
            yield (
                f'<circle cx="{left + across.at(x):.1f}" '
                f'cy="{bottom - upright.at(max(y, 0.05)):.1f}" r="{DOT}" class="dot{way}">'
                f"<title>{escape(name)}: {plot.name(x)}: {y:.2f} µs</title></circle>"
            )
        ends.append((bottom - upright.at(max(points[-1][1], 0.05)), way, name))
    # Names move apart, and none below the plot.
    places = [y for y, _, _ in sorted(ends)]
    for n in range(1, len(places)):
        places[n] = max(places[n], places[n - 1] + CLOSE)
    excess = bottom
    for n in reversed(range(len(places))):
        places[n] = excess = min(places[n], excess)
        excess -= CLOSE
    for y, (_, way, name) in zip(places, sorted(ends), strict=True):
        yield text(left + PLOT_WIDTH + 8, y + 4, name.removeprefix("IP "), f"dot{way}")


# What is in the report. ---------------------------------------------------------------------------


def costs(report: Mapping[str, Any], section: str, by: str) -> dict[str, Points]:
    """Return the costs of a section's rows by way, for the shortest payload and to the peer."""
    rows = [
        row
        for row in report["rows"]
        if row["section"] == section
        and row["direction"] == "client to peer"
        and (by == "octets" or row["octets"] == 160)
    ]
    found: dict[str, Points] = {}
    for name in WAYS:
        points = [(row[by], row["cost"][name]["cpu_us"]) for row in rows if name in row["cost"]]
        if points:
            found[name] = points
    return found


def added(report: Mapping[str, Any], what: str) -> dict[str, Points]:
    """Return the latency added, by way and load in percent, to the peer."""
    found: dict[str, Points] = {}
    for row in report["rows"]:
        if row["section"] == "latency" and row["direction"] == "client to peer":
            for name in WAYS:
                if what in row["latency"].get(name, {}):
                    point = (100 * row["load"], row["latency"][name][what])
                    found.setdefault(name, []).append(point)
    return found


def plots(report: Mapping[str, Any]) -> Iterator[Plot]:
    """Yield the plots that the report has numbers for."""
    own = "CPU of the whole machine for a packet relayed"
    for section, by, across in (
        ("clients", "clients", "clients with a channel each"),
        ("channels", "channels", "channels, up to 1,000 for a client"),
        ("payload", "octets", "octets of payload"),
    ):
        lines = costs(report, section, by)
        ticks = sorted({x for points in lines.values() for x, _ in points})
        if len(ticks) > 1:
            below = "100 clients" if by == "octets" else "160 octets"
            yield Plot(own, f"by {across}; {below}", across, lines, ticks, by != "octets")
    lines = added(report, "added_p50_us")
    ticks = sorted({x for points in lines.values() for x, _ in points})
    if len(ticks) > 1:
        yield Plot(
            "Latency added",
            "p50, and p99 dashed; 100 clients, 160 octets",
            "load, in percent of what coturn can do",
            lines,
            ticks,
            logarithmic=False,
            name=lambda value: f"{value:.0f} %",
            dashed=added(report, "added_p99_us"),
        )


def draw(report: Mapping[str, Any]) -> str:
    """Return the whole picture of a report."""
    machine = report["machine"]
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" class="paper"/>',
        text(
            WIDTH / 2,
            34,
            "Relaying ChannelData: turnd in the kernel and with sockets, coturn, plain forwarding",
            "title middle",
        ),
        text(
            WIDTH / 2,
            55,
            "The same packets without a relay are subtracted. "
            f"Linux {machine['kernel']}, {machine['cores']} cores, "
            f"coturn {machine['coturn'] or 'not there'}, {machine['date'][:10]}",
            "soft middle",
        ),
    ]
    for n, plot in enumerate(plots(report)):
        parts += draw_plot(plot, LEFTS[n % 2], TOPS[n // 2])
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="what">\n'
        '<title id="what">CPU time for each relayed packet by clients, channels and payload, and '
        "the latency added by load</title>\n"
        f"<style>\n{style()}\n</style>\n{body}\n</svg>\n"
    )


def main() -> None:
    """Write the picture."""
    words = sys.argv[1:]
    given = Path(words[0]) if words else ROOT / "docs/bench-planes.json"
    made = Path(words[1]) if len(words) > 1 else given.with_suffix(".svg")
    made.write_text(draw(json.loads(given.read_text())))
    print(made)


if __name__ == "__main__":
    main()
