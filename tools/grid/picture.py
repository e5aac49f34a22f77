"""Draws a grid as SVG: one table, in which place says who meets whom and colour what came of it.

Every pair of kinds is a square with four lines, UDP and three ways of refusing a SYN.  A line has
natkit's figures, wide, and those of aioice and libnice, small.  The layout depends on nothing but
constants, so that two pictures differ only in what was measured.  The picture follows the reader's
light or dark setting by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from tools.grid import view
from tools.grid.cells import AIOICE, KINDS, LIBNICE, NATKIT, PROGRAMS
from tools.grid.store import Grid
from tools.grid.view import BANDS, NAMES, Count, Figure, Role, Square

MARGIN: Final = 24
HEAD: Final = 158
"""Width of the names of the rows."""
MARK: Final = 24
"""Width of the letter of the pair matrix."""
WIDE, SMALL, GAP, LINE = 84, 33, 2, 24
"""natkit's figures, each of the others', between them, and the height of a line."""
PAD: Final = 4
SQUARE: Final = (
    PAD + MARK + WIDE + 2 * (GAP + SMALL) + PAD,
    2 * PAD + len(BANDS) * (LINE + GAP) - GAP,
)
STEP: Final = (SQUARE[0] + 5, SQUARE[1] + 5)
WIDTH: Final = 2 * MARGIN + HEAD + len(KINDS) * STEP[0] - 5
TOP: Final = 152
"""Where the first row begins."""

# What is painted in which colour, for light and for dark.
PALETTE: Final = {
    "paper": ("#ffffff", "#0d1117"),
    "panel": ("#f3f5f7", "#161b22"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9198a1"),
    "direct": ("#aceebb", "#1b5e34"),
    "predicted": ("#96e3e0", "#0f5a62"),
    "birthday": ("#b6d4ff", "#1f4a8f"),
    "relay": ("#ffe2a0", "#664c0c"),
    "none": ("#ff9d94", "#8c2320"),
    "absent": ("#e3e7eb", "#262c34"),
}
_PAINT: Final = (
    ("text", "fill", "ink"),
    (".soft", "fill", "soft"),
    (".paper", "fill", "paper"),
    (".panel", "fill", "panel"),
    *((f".{role}", "fill", role) for role in (*view.ROLES, "absent")),
)


def draw(grid: Grid) -> str:
    """Return the picture."""
    bottom = TOP + len(KINDS) * STEP[1] + 14
    explained, height = _legend(grid, bottom)
    parts = [
        f'<rect width="{WIDTH}" height="{height}" rx="12" class="paper"/>',
        *_title(grid),
        *_columns(),
        *(part for n, row in enumerate(view.squares(grid)) for part in _row(n, row)),
        *explained,
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-labelledby="what">\n'
        '<title id="what">Every kind of NAT with every other: how natkit, aioice and libnice '
        f"connect, and how soon</title>\n<style>\n{_style()}\n</style>\n{body}\n</svg>\n"
    )


def _style() -> str:
    light, dark = (
        "".join(f"{selector}{{{what}:{PALETTE[name][n]}}}" for selector, what, name in _PAINT)
        for n in (0, 1)
    )
    return "\n".join(
        (
            "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;"
            "font-size:13px}",
            ".title{font-size:20px;font-weight:600}",
            ".name{font-size:14px;font-weight:600}",
            ".big{font-size:14px;font-weight:600}",
            ".small{font-size:11.5px}",
            ".tiny{font-size:11px}",
            ".mid{text-anchor:middle}",
            ".end{text-anchor:end}",
            light,
            f"@media (prefers-color-scheme:dark){{{dark}}}",
        )
    )


def _text(place: tuple[float, float], words: str, role: str = "") -> str:
    kind = f' class="{role}"' if role else ""
    return f'<text x="{place[0]:g}" y="{place[1]:g}"{kind}>{escape(words)}</text>'


def _box(
    place: tuple[float, float], width: float, height: float, role: str, radius: int = 4
) -> str:
    x, y = place
    size = f'width="{width:g}" height="{height:g}" rx="{radius}"'
    return f'<rect x="{x:g}" y="{y:g}" {size} class="{role}"/>'


# The table. ---------------------------------------------------------------------------------------


def _title(grid: Grid) -> Iterator[str]:
    yield _text(
        (MARGIN, 42), "Every kind of NAT with every other: how they connect, and how soon", "title"
    )
    found = {(count.program, count.transport): count for count in view.counts(grid)}
    for n, program in enumerate(PROGRAMS):
        words = [
            _in_words(transport, found[program, transport])
            for transport in ("udp", "tcp")
            if (program, transport) in found
        ]
        if words:
            line = f"{program}: {'; '.join(words)}"
            yield _text((MARGIN, 64 + 17 * n), line, "" if program == NATKIT else "soft")


def _in_words(transport: str, count: Count) -> str:
    rate = "all" if count.connected == count.runs else f"{count.connected}"
    times = f"first octet {view.number(count.first)} s"
    if count.until_direct is not None:
        times += f", direct {view.number(count.until_direct)} s"
    return (
        f"over {transport.upper()} {rate} of {count.runs} connected, "
        f"{count.direct or 'none'} directly ({times})"
    )


def _columns() -> Iterator[str]:
    for n, kind in enumerate(KINDS):
        x = MARGIN + HEAD + n * STEP[0]
        yield _text((x + SQUARE[0] / 2, TOP - 24), NAMES[kind], "name mid")
        left = x + PAD + MARK
        yield _text((left + WIDE / 2, TOP - 6), NATKIT, "tiny soft mid")
        yield _text((left + WIDE + GAP + SMALL, TOP - 6), f"{AIOICE} {LIBNICE}", "tiny soft mid")


def _row(n: int, row: list[Square]) -> Iterator[str]:
    y = TOP + n * STEP[1]
    for line, words in enumerate(_wrapped(NAMES[row[0].a], 15)):
        yield _text((MARGIN, y + PAD + 16 + 18 * line), words, "name")
    for line, words in enumerate(BANDS.values()):
        at = y + PAD + line * (LINE + GAP) + 16
        yield _text((MARGIN + HEAD - 9, at), words, "tiny soft end")
    for column, square in enumerate(row):
        yield from _square((MARGIN + HEAD + column * STEP[0], y), square)


def _square(place: tuple[float, float], square: Square) -> Iterator[str]:
    x, y = place
    yield _box(place, *SQUARE, "panel", 6)
    yield _text((x + (PAD + MARK) / 2, y + SQUARE[1] / 2 + 4), square.mark, "tiny mid")
    for n, band in enumerate(square.bands):
        at = y + PAD + n * (LINE + GAP)
        left = x + PAD + MARK
        about = f"{NAMES[square.a]} with {NAMES[square.b]}, {BANDS[band.mode]}"
        yield from _wide((left, at), band.natkit, about)
        for number, program in enumerate((AIOICE, LIBNICE)):
            where = left + WIDE + GAP + number * (SMALL + GAP)
            yield from _small((where, at), band[program], f"{about}, {program}")


def _wide(place: tuple[float, float], figure: Figure, about: str) -> Iterator[str]:
    x, y = place
    base = y + LINE / 2 + 5
    yield f"<g><title>{escape(about)}: {escape(figure.words)}</title>"
    yield _box(place, WIDE, LINE, figure.role)
    if figure.first or figure.share:
        yield _text((x + 6, base - 0.5), figure.share or figure.first, "small")
    yield _text((x + WIDE - 6, base), figure.until, "big end")
    yield "</g>"


def _small(place: tuple[float, float], figure: Figure, about: str) -> Iterator[str]:
    x, y = place
    yield f"<g><title>{escape(about)}: {escape(figure.words)}</title>"
    yield _box(place, SMALL, LINE, figure.role)
    words = figure.first or ("no" if figure.role == "none" else "")
    yield _text((x + SMALL / 2, y + LINE / 2 + 4), words, "small mid")
    yield "</g>"


# What it means. -----------------------------------------------------------------------------------


def _legend(grid: Grid, top: float) -> tuple[list[str], int]:
    """Return the explanation below the table, and where the picture ends."""
    parts: list[str] = []
    x: float = MARGIN
    roles: list[Role] = list(view.ROLES)
    for role in roles:
        parts.append(_box((x, top), 20, 14, role))
        parts.append(_text((x + 27, top + 12), view.ROLES[role]))
        x += 27 + 6.7 * len(view.ROLES[role]) + 24
    parts.append(
        _text(
            (x, top + 12),
            "natkit: seconds until the first octet, and until direct; others: until connected",
            "soft",
        )
    )
    y = top + 38
    letters = (f"{mark}: {words}" for mark, words in view.MARKS.items())
    for line in (*_wrapped("; ".join(letters) + ".", 215), *_sentences(grid)):
        parts.append(_text((MARGIN, y), line, "small soft"))
        y += 17
    return parts, round(y + 4)


def _sentences(grid: Grid) -> Iterator[str]:
    for note in view.notes(grid):
        yield from _wrapped(note, 215)


def _wrapped(words: str, width: int) -> list[str]:
    """Return a text as lines of so many characters at most."""
    lines: list[str] = []
    for word in words.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


__all__ = ["draw"]
