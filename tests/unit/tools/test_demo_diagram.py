"""The demo's sequence diagram: from what was seen at two NATs, this picture."""

from __future__ import annotations

import pytest
from rich.text import Text

from tools.demo_diagram import BAD, GOOD, STYLES, Diagram, Fate, fate
from tools.demo_wire import ACK, RST, SYN
from tools.demodesk import NAT, Play

HEAD = "     ms A's NAT 192.52.193.2      B's NAT 192.52.193.34"


def lines(
    play: Play, now: float, width: int = 80, zero: int | None = 0, encoding: str = "utf-8"
) -> list[Text]:
    diagram = Diagram(play.wire, NAT, width, zero=zero)
    return diagram.lines(round(now * 1e6), encoding=encoding)


def picture(
    play: Play,
    now: float = 500,
    width: int = 80,
    zero: int | None = 0,
    encoding: str = "utf-8",
) -> list[str]:
    """Draw what was seen as it looks at a time in milliseconds."""
    return [line.plain for line in lines(play, now, width, zero, encoding)]


@pytest.fixture
def play() -> Play:
    return Play()


@pytest.fixture
def crossing(play: Play) -> Play:
    play.simultaneous_open(a=100, b=103.5)
    return play


def test_nothing_is_drawn_of_nothing(play: Play) -> None:
    assert picture(play) == []


def test_two_syns_that_cross(crossing: Play) -> None:
    assert picture(crossing) == [
        HEAD,
        "  100.0 ├─── SYN 4000→5000 ───╲ ╱─── SYN 4000←5000 ───┤ 103.5",
        "        │                      ╳                      │        they cross",
        "  123.5 │◀────────────────────╱ ╲────────────────────▶│ 120.0  both let in",
        "  140.0 │◀───────────────── SYN-ACK ──────────────────┤ 120.0",
        "  123.5 ├───────────────── SYN-ACK ──────────────────▶│ 143.5",
        "  143.5 ╞════════════════ established ════════════════╡        on both sides",
    ]


def test_whoever_is_first_the_left_stays_on_the_left(play: Play) -> None:
    play.simultaneous_open(a=5, b=0)
    assert picture(play)[1:4] == [
        "    5.0 ├─── SYN 4000→5000 ───╲ ╱─── SYN 4000←5000 ───┤ 0.0",
        "        │                      ╳                      │        they cross",
        "   20.0 │◀────────────────────╱ ╲────────────────────▶│ 25.0   both let in",
    ]


def test_without_a_beginning_the_first_syn_is_one(crossing: Play) -> None:
    assert picture(crossing, zero=None)[1].startswith("    0.0 ├")


def test_a_beginning_after_the_first_syn_is_none(crossing: Play) -> None:
    assert picture(crossing, zero=101_000_000)[1].startswith("    0.0 ├")


def test_columns_suffice_without_notes(crossing: Play) -> None:
    assert picture(crossing, width=48) == [
        "     ms A's NAT                 B's NAT",
        "  100.0 ├──── SYN ────╲ ╱──── SYN ────┤ 103.5",
        "        │              ╳              │",
        "  123.5 │◀────────────╱ ╲────────────▶│ 120.0",
        "  140.0 │◀───────── SYN-ACK ──────────┤ 120.0",
        "  123.5 ├───────── SYN-ACK ──────────▶│ 143.5",
        "  143.5 ╞════════ established ════════╡",
    ]


@pytest.mark.parametrize("width", range(43, 140))
def test_no_line_is_too_long(play: Play, width: int) -> None:
    for number in range(4):
        play.leave(40 * number, "A", SYN, number)
        play.arrive(40 * number + 20, "A", SYN, number, let_in=False)
        play.refuse(40 * number + 20, "A", number)
    play.simultaneous_open(a=200, b=201)
    drawn = picture(play, width=width)
    assert max(map(len, drawn)) <= width
    # Both of the NATs' lines are straight.
    for place in (drawn[1].index("├"), drawn[2].index("┤")):
        assert {line[place] for line in drawn[1:]} <= set("│├┤╞╡")


def test_a_terminal_without_such_characters_gets_others(crossing: Play) -> None:
    drawn = picture(crossing, encoding="iso8859-1")
    assert all(line.isascii() for line in drawn)
    assert drawn[1:4] == [
        "  100.0 +--- SYN 4000>5000 ---\\ /--- SYN 4000<5000 ---+ 103.5",
        "        |                      X                      |        they cross",
        "  123.5 |<--------------------/ \\-------------------->| 120.0  both let in",
    ]
    # Their colours stay where they were.
    assert lines(crossing, 500, encoding="ascii")[1].spans == lines(crossing, 500)[1].spans


# What a NAT does with a SYN. ----------------------------------------------------------------------


def test_a_syn_on_its_way(play: Play) -> None:
    play.leave(0, "A", SYN)
    play.leave(1, "B", SYN)
    assert picture(play, now=5) == [
        HEAD,
        "    0.0 ├─────── SYN 4000→5000 ───────▶               │",
        "        │               ◀─────── SYN 4000←5000 ───────┤ 1.0",
    ]


def test_a_syn_that_has_just_arrived(play: Play) -> None:
    play.leave(0, "A", SYN)
    play.arrive(20, "A", SYN, let_in=False)
    row = "    0.0 ├────────────── SYN 4000→5000 ───────────────▶│ 20.0"
    assert picture(play, now=21) == [HEAD, row]


def test_a_syn_that_is_dropped(play: Play) -> None:
    play.leave(0, "A", SYN)
    play.arrive(20, "A", SYN, let_in=False)
    row = "    0.0 ├────────────── SYN 4000→5000 ───────────────╳│ 20.0   dropped"
    assert picture(play) == [HEAD, row]


def test_a_syn_that_is_refused(play: Play) -> None:
    play.leave(0, "B", SYN)
    play.arrive(20, "B", SYN, let_in=False)
    play.refuse(20, "B")
    assert picture(play) == [
        HEAD,
        "   20.0 │╳────────────── SYN 4000←5000 ───────────────┤ 0.0    refused",
        "   20.0 ├─────────────────── RST ────────────────────▶│ 40.0",
    ]


def test_a_syn_that_is_let_in_and_reset_by_the_host(play: Play) -> None:
    play.leave(0, "A", SYN)
    play.arrive(20, "A", SYN)
    play.leave(20, "B", RST | ACK, 0, 101)
    play.arrive(40, "B", RST | ACK, 0, 101)
    assert picture(play) == [
        HEAD,
        "    0.0 ├────────────── SYN 4000→5000 ───────────────▶│ 20.0   let in",
        "   40.0 │◀─────────────────── RST ────────────────────┤ 20.0",
    ]


def test_a_syn_that_never_arrives(play: Play) -> None:
    play.leave(0, "B", SYN)
    row = "        │╳────────────── SYN 4000←5000 ───────────────┤ 0.0    lost"
    assert picture(play, now=1500) == [HEAD, row]


def test_many_refusals_are_few_lines(play: Play) -> None:
    for number in range(30):
        play.leave(40 * number, "B", SYN, number)
        play.arrive(40 * number + 20, "B", SYN, number, let_in=False)
        play.refuse(40 * number + 20, "B", number)
    assert picture(play, now=2000) == [
        HEAD,
        "   20.0 │╳────────────── SYN 4000←5000 ───────────────┤ 0.0    refused",
        "   20.0 ├─────────────────── RST ────────────────────▶│ 40.0",
        "        │             ⋮ 28 more like this             │",
        " 1180.0 │╳────────────── SYN 4000←5000 ───────────────┤ 1160.0 refused",
        " 1180.0 ├─────────────────── RST ────────────────────▶│ 1200.0",
    ]


def test_two_sides_that_are_refused_by_turns_are_all_drawn(play: Play) -> None:
    for number in range(3):
        for side, after in (("A", 0), ("B", 1)):
            play.leave(40 * number + after, side, SYN, number)
            play.arrive(40 * number + after + 20, side, SYN, number, let_in=False)
    assert [line[-7:] for line in picture(play)[1:]] == ["dropped"] * 6


# The end of the story. ----------------------------------------------------------------------------


def test_an_ordinary_handshake_has_its_ack(play: Play) -> None:
    play.leave(0, "B", SYN, 900)
    play.arrive(20, "B", SYN, 900)
    play.leave(20, "A", SYN | ACK, 100, 901)
    play.arrive(40, "A", SYN | ACK, 100, 901)
    play.leave(40, "B", ACK, 901, 101)
    play.arrive(60, "B", ACK, 901, 101)
    assert picture(play) == [
        HEAD,
        "   20.0 │◀────────────── SYN 4000←5000 ───────────────┤ 0.0    let in",
        "   20.0 ├───────────────── SYN-ACK ──────────────────▶│ 40.0",
        "   60.0 │◀─────────────────── ACK ────────────────────┤ 40.0",
        "   60.0 ╞════════════════ established ════════════════╡        on both sides",
    ]


def test_what_comes_later_or_is_decided_later_is_left_out(crossing: Play) -> None:
    before = picture(crossing)
    crossing.leave(144, "A", SYN, 5)
    crossing.leave(150, "B", RST, 5, 5)
    assert picture(crossing) == before


def test_another_syn_that_was_still_under_way_then_is_left_out(play: Play) -> None:
    play.leave(20, "A", SYN, 7, ports=(1, 2))
    play.simultaneous_open()
    assert [line for line in picture(play) if "1→2" in line] == []


def test_another_syn_that_had_arrived_by_then_is_drawn(play: Play) -> None:
    play.leave(1, "A", SYN, 7, ports=(1, 2))
    play.arrive(21, "A", SYN, 7, ports=(1, 2), let_in=False)
    play.simultaneous_open(a=10, b=12)
    assert "SYN 1→2" in picture(play)[1]


# Colours. -----------------------------------------------------------------------------------------


def styles_of(line: Text, part: str) -> set[str]:
    place = line.plain.index(part)
    return {str(span.style) for span in line.spans if span.start <= place < span.end}


def test_each_side_has_its_colour_and_a_refusal_another_one(play: Play) -> None:
    play.leave(0, "A", SYN)
    play.arrive(20, "A", SYN, let_in=False)
    play.refuse(20, "A")
    play.simultaneous_open(a=100, b=101)
    _, refused, reset, crossed, _, let_in, *_ = lines(play, 500)
    assert styles_of(refused, "SYN") == {STYLES["A"]}
    assert styles_of(refused, "╳") == {f"bold {BAD}"}
    assert styles_of(refused, "refused") == {BAD}
    assert styles_of(reset, "RST") == {BAD}
    assert styles_of(crossed, "4000→5000") == {STYLES["A"]}
    assert styles_of(crossed, "4000←5000") == {STYLES["B"]}
    assert styles_of(let_in, "both") == {GOOD}


def test_what_has_become_of_a_segment(play: Play) -> None:
    play.leave(0, "A", SYN)
    (flight,) = play.wire.flights
    assert fate(flight, 1_000_000) is Fate.UNDER_WAY
    assert fate(flight, 2_000_000_000) is Fate.LOST
    play.arrive(20, "A", SYN, let_in=False)
    assert fate(flight, 21_000_000) is Fate.ARRIVED
    assert fate(flight, 26_000_000) is Fate.DROPPED
    play.refuse(26, "A")
    assert fate(flight, 26_000_000) is Fate.REFUSED
    assert fate(play.wire.flights[-1], 90_000_000_000) is Fate.LET_IN
