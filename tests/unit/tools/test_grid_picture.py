"""The grid, drawn: what was measured has its place and its colour, and nothing overlaps."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from ice.predict.moves import BIRTHDAY_BUDGET, mixed_chance
from nattype.peers import EPHEMERAL_PORTS
from tools.grid import page, picture, view
from tools.grid.cells import (
    AIOICE,
    KINDS,
    LIBNICE,
    MODES,
    NATKIT,
    UDP,
    Cell,
    Outcome,
    Run,
    Tally,
    cells,
)
from tools.grid.store import Grid

SVG = "{http://www.w3.org/2000/svg}"
TCP = MODES[1]


def run(cell: Cell, outcome: Outcome = "direct", strategy: str = "plain", **more: object) -> Run:
    direct = 1.25 if outcome == "direct" else None
    first = None if outcome == "none" else 0.25
    numbers: dict[str, object] = {"number": 0, "first": first, "direct": direct} | more
    return Run(NATKIT, cell, outcome=outcome, strategy=strategy, **numbers)  # type: ignore[arg-type]


@pytest.fixture
def whole() -> Grid:
    """A grid with every cell in it."""
    found = [run(cell) for cell in cells()]
    found += [
        Run(program, cell, 0, "relay", "udp", 5.2) for program in (AIOICE, LIBNICE)
        for cell in cells()
    ]  # fmt: skip
    return Grid({"cores": 2, "measured": "2026-01-02 03:04 UTC", "aioice": "1.2.3"}, tuple(found))


# Figures. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "strategy", "role", "until"),
    [
        ("direct", "plain", "direct", "1.25"),
        ("direct", "open, then listen", "direct", "1.25"),
        ("direct", "prediction", "predicted", "1.25"),
        ("direct", "birthday, many sockets", "birthday", "1.25"),
        ("relay", "birthday, many sockets", "relay", "relay"),
        ("none", "plain", "none", "no"),
    ],
)
def test_the_colour_says_what_came_of_it(
    outcome: Outcome, strategy: str, role: str, until: str
) -> None:
    cell = Cell(UDP, "open", "symmetric")
    found = view.figure(Tally((run(cell, outcome, strategy),)))
    assert (found.role, found.until, found.share) == (role, until, "")


def test_of_a_mixed_cell_it_is_told_how_many() -> None:
    cell = Cell(UDP, "open", "symmetric")
    runs = (run(cell), run(cell, "relay", number=1), run(cell, number=2, direct=3.0))
    found = view.figure(Tally(runs))
    assert (found.role, found.share) == ("direct", "2/3")
    assert "3 of 3 connected, 2 directly" in found.words
    assert "at most 3.00 s" in found.words


def test_what_is_wrong_is_told() -> None:
    found = view.figure(Tally((run(Cell(UDP, "open", "open"), why="a does not end"),)))
    assert found.words.endswith("a does not end")


def test_the_chance_of_the_hardest_pair_is_the_planner_s() -> None:
    words = view.MARKS["B+P"]
    sockets, ports = BIRTHDAY_BUDGET.sockets, EPHEMERAL_PORTS
    aims = BIRTHDAY_BUDGET.packets // sockets
    chance = mixed_chance(sockets, aims, aims, ports, by_address=False)
    assert (
        f"{BIRTHDAY_BUDGET.packets} packets have a chance of {chance:.0%}".replace("%", " %")
        in words
    )
    dear = 45_000 // sockets
    assert "half a chance takes 45 000" in words
    assert mixed_chance(sockets, dear, dear, ports, by_address=False) == pytest.approx(
        0.5, abs=0.01
    )


def test_what_was_not_measured_is_no_failure() -> None:
    assert view.figure(None) == view.Figure("absent", words="not measured")


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, ""), (0.047, "0.05"), (9.99, "9.99"), (9.996, "10.0")]
)
def test_times_have_four_characters_at_most(seconds: float | None, words: str) -> None:
    assert view.number(seconds) == words


def test_the_counts_go_by_program_and_transport(whole: Grid) -> None:
    found = {(each.program, each.transport): each for each in view.counts(whole)}
    assert len(found) == 6
    assert (found[NATKIT, "udp"].runs, found[NATKIT, "tcp"].runs) == (36, 108)
    assert (found[AIOICE, "udp"].connected, found[AIOICE, "udp"].direct) == (36, 0)
    assert found[NATKIT, "tcp"].until_direct == 1.25


# The picture. -------------------------------------------------------------------------------------


def boxes(svg: str, role: str) -> list[tuple[float, float, float, float]]:
    root = ElementTree.fromstring(svg)
    return [
        tuple(float(box.attrib[name]) for name in ("x", "y", "width", "height"))  # type: ignore[misc]
        for box in root.iter(f"{SVG}rect")
        if box.attrib.get("class") == role
    ]


def test_every_figure_has_a_box_of_its_own(whole: Grid) -> None:
    svg = picture.draw(whole)
    direct, relayed = boxes(svg, "direct"), boxes(svg, "relay")
    # One of each colour belongs to the legend.
    assert (len(direct), len(relayed)) == (36 * 4 + 1, 2 * 36 * 4 + 1)
    assert not boxes(svg, "absent")
    placed = direct + relayed
    for n, (x, y, width, height) in enumerate(placed):
        assert 0 <= x <= picture.WIDTH - width
        for other_x, other_y, other_width, other_height in placed[:n]:
            apart_x = x + width <= other_x or other_x + other_width <= x
            apart_y = y + height <= other_y or other_y + other_height <= y
            assert apart_x or apart_y


def test_a_figure_stands_in_its_row_and_column() -> None:
    cell = Cell(TCP, KINDS[4], KINDS[2])
    svg = picture.draw(Grid({}, (run(cell, "direct", "prediction"),)))
    [(x, y, *_)] = [box for box in boxes(svg, "predicted") if box[2] == picture.WIDE]
    column = (x - picture.MARGIN - picture.HEAD) // picture.STEP[0]
    line = y - picture.TOP
    assert (line // picture.STEP[1], column) == (4, 2)
    assert (line % picture.STEP[1] - picture.PAD) / (picture.LINE + picture.GAP) == 1
    assert len(boxes(svg, "absent")) == 36 * 4 * 3 - 1
    assert "symmetric sequential with restricted, TCP, drop: 1 of 1 connected" in svg


def test_all_of_the_picture_lies_in_its_frame(whole: Grid) -> None:
    svg = picture.draw(whole)
    root = ElementTree.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    lowest = max(float(text.attrib["y"]) for text in root.iter(f"{SVG}text"))
    assert width == picture.WIDTH
    assert height - 40 < lowest < height
    assert all(float(text.attrib["x"]) <= width for text in root.iter(f"{SVG}text"))


def test_the_same_numbers_make_the_same_picture(whole: Grid) -> None:
    again = Grid(dict(reversed(whole.about.items())), whole.runs)
    assert picture.draw(whole) == picture.draw(again)
    assert page.render(whole) == page.render(again)


@pytest.mark.parametrize("render", [picture.draw, page.render])
def test_there_are_colours_for_light_and_for_dark(whole: Grid, render: object) -> None:
    text = render(whole)  # type: ignore[operator]
    light, dark = text.split("prefers-color-scheme:dark", 1)
    for name in view.ROLES:
        assert picture.PALETTE[name][0] in light
        assert picture.PALETTE[name][1] in dark


def test_the_circumstances_stand_below(whole: Grid) -> None:
    for text in (picture.draw(whole), page.render(whole)):
        assert "2 cores shared with other work" in text
        assert "aioice 1.2.3" in text
        assert "40 ms one way" in text


def test_what_a_program_says_is_no_markup() -> None:
    cell = Cell(UDP, "open", "open")
    grid = Grid({}, (run(cell, why='<script>"&'),))
    for text in (picture.draw(grid), page.render(grid)):
        assert "<script>" not in text
        assert "&lt;script&gt;" in text
    ElementTree.fromstring(picture.draw(grid))


# The page. ----------------------------------------------------------------------------------------


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.figures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "p", "html"}:
            self.open.append(tag)
        if title := dict(attrs).get("title"):
            self.figures.append(title)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"p", "html"}:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_tells_each_figure(whole: Grid) -> None:
    reader = Reader()
    reader.feed(page.render(whole))
    assert not reader.open
    assert len(reader.figures) == 36 * 4 * 3
    assert reader.figures[:2] == [
        "natkit: 1 of 1 connected, 1 directly; by plain; first octet after 0.25 s; "
        "direct after 1.25 s",
        "aioice: 1 of 1 connected, 0 directly; first octet after 5.20 s",
    ]


def test_the_page_loads_nothing(whole: Grid) -> None:
    assert not re.search(r"(src|href)=|@import|url\(", page.render(whole))
