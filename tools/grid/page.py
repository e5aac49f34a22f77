"""The grid as a page of HTML: the same table, with all that is known of a figure one pointer away.

One file without anything to load; light or dark as the reader has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from tools.grid import view
from tools.grid.cells import AIOICE, KINDS, LIBNICE, NATKIT, PROGRAMS
from tools.grid.picture import PALETTE
from tools.grid.store import Grid
from tools.grid.view import BANDS, NAMES, Band, Figure, Square

TITLE: Final = "Every kind of NAT with every other"
_STYLE: Final = """
body{margin:2rem auto;padding:0 1.5rem;max-width:88rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}
h1{font-size:1.5rem;margin:0 0 .5rem}
p{margin:.4rem 0;max-width:72rem}
.scroll{overflow-x:auto;margin:1.2rem 0}
table{border-collapse:separate;border-spacing:4px}
th{text-align:left;vertical-align:top;font-weight:600;padding:2px 6px;white-space:nowrap}
.counts td,.counts th{padding:1px 14px 1px 0}
.counts td{font-variant-numeric:tabular-nums}
.counts .natkit td{font-weight:600}
.grid thead th{text-align:center}
.grid tbody th:first-child{white-space:normal;max-width:7.6rem}
.grid thead .line{margin:0;color:var(--soft);font-weight:400;padding:0 4px}
.grid thead .line span{cursor:auto;justify-content:center;font-size:11px;padding:2px 0}
.line i{font-style:normal}
.grid td{background:var(--panel);border-radius:6px;padding:4px}
.grid .mark{display:block;font-size:12px;color:var(--soft);padding:0 4px 2px;white-space:nowrap}
.line{display:grid;grid-template-columns:1fr 38px 38px;gap:2px;min-width:166px;margin-top:2px}
.line span{border-radius:4px;padding:2px 5px;font-size:12px;line-height:20px;height:20px;
font-variant-numeric:tabular-nums;display:flex;justify-content:space-between;cursor:help}
.line span+span{justify-content:center;padding:2px 0}
.line b{font-size:14px}
.grid .bands{padding-top:4px;color:var(--soft);font-weight:400;font-size:12px;text-align:right}
.bands div{height:24px;line-height:24px;margin-top:2px}
.bands .mark{visibility:hidden}
.soft,footer{color:var(--soft);font-size:13px}
.key span{display:inline-block;border-radius:4px;padding:1px 10px;margin:0 8px 4px 0}
"""


def render(grid: Grid) -> str:
    """Return the page."""
    parts = (
        "<!doctype html>",
        '<html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{TITLE}</title>",
        f"<style>{_colours()}{_STYLE}</style>",
        f"<h1>{TITLE}</h1>",
        "<p>Two hosts behind NATs of these kinds, a row's and a column's, run one command each, "
        "<code>punch listen</code> and <code>punch connect</code>. A line has the seconds until "
        "the first octet was there and, in bold, until both sides sent directly; beside them how "
        "long aioice and libnice take to connect. Colours say how it ended.</p>",
        *_key(),
        *_counts(grid),
        '<div class="scroll"><table class="grid">',
        *_head(),
        *(part for row in view.squares(grid) for part in _row(row)),
        "</tbody></table></div>",
        "<footer>",
        *(f"<p>{escape(note)}</p>" for note in view.notes(grid)),
        "<p>Every run is in <code>grid.json</code>; <code>make grid</code> makes it anew.</p>",
        "</footer></html>",
    )
    return "\n".join(parts) + "\n"


def _colours() -> str:
    light, dark = (
        ";".join(f"--{name}:{colours[n]}" for name, colours in PALETTE.items()) for n in (0, 1)
    )
    roles = "".join(f".{role}{{background:var(--{role})}}" for role in (*view.ROLES, "absent"))
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}{roles}"
    )


def _key() -> Iterator[str]:
    yield '<p class="key">'
    for role, words in view.ROLES.items():
        yield f'<span class="{role}">{words}</span>'
    marks = "; ".join(f"<b>{mark}</b> {escape(words)}" for mark, words in view.MARKS.items())
    yield f'</p><p class="soft">What the literature says is possible: {marks}.</p>'


def _counts(grid: Grid) -> Iterator[str]:
    yield '<table class="counts"><tr><th></th><th>over</th><th>runs</th><th>connected</th>'
    yield "<th>directly</th><th>first octet, median</th><th>direct, median</th></tr>"
    for count in view.counts(grid):
        cells = (
            count.program,
            count.transport.upper(),
            str(count.runs),
            str(count.connected),
            str(count.direct),
            _seconds(count.first),
            _seconds(count.until_direct),
        )
        yield f"<tr class={count.program}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</table>"


def _seconds(time: float | None) -> str:
    return "-" if time is None else f"{view.number(time)} s"


def _head() -> Iterator[str]:
    programs = "".join(f"<span>{program}</span>" for program in PROGRAMS)
    names = "".join(f'<th>{NAMES[kind]}<div class="line">{programs}</div></th>' for kind in KINDS)
    yield f"<thead><tr><th></th><th></th>{names}</tr></thead><tbody>"


def _row(row: list[Square]) -> Iterator[str]:
    bands = "".join(f"<div>{words}</div>" for words in BANDS.values())
    yield f"<tr><th>{NAMES[row[0].a]}</th>"
    yield f'<th class="bands"><span class="mark">.</span>{bands}</th>'
    for square in row:
        yield f'<td><span class="mark">{square.mark}</span>'
        for band in square.bands:
            yield _line(band)
        yield "</td>"
    yield "</tr>"


def _line(band: Band) -> str:
    mine = band.natkit
    figures = [
        _span(NATKIT, mine, f"<i>{mine.share or mine.first}</i><b>{mine.until}</b>"),
        *(_span(program, band[program], _time(band[program])) for program in (AIOICE, LIBNICE)),
    ]
    return f'<div class="line">{"".join(figures)}</div>'


def _span(program: str, figure: Figure, words: str) -> str:
    return f'<span class="{figure.role}" title="{program}: {escape(figure.words)}">{words}</span>'


def _time(figure: Figure) -> str:
    return figure.first or ("no" if figure.role == "none" else "")


__all__ = ["render"]
