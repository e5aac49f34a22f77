"""Virtual time moves to what is due, in order, and not further than asked."""

from __future__ import annotations

from typing import Any

from nattype.lab.sim.clock import Call, Clock
from stun.sansio import SECOND

Log = list[tuple[int, Any]]


def setting() -> tuple[Clock, Log, Call]:
    """Return a clock, a log, and a call that writes the instant and its first argument there."""
    clock = Clock()
    log: Log = []
    return clock, log, lambda what, _: log.append((clock.now, what))


def test_calls_are_made_in_order_of_time_then_of_scheduling() -> None:
    clock, log, call = setting()
    for at, what in ((3, "c"), (1, "a"), (3, "d"), (2, "b")):
        clock.at(at, call, what)
    assert clock.run()
    assert log == [(1, "a"), (2, "b"), (3, "c"), (3, "d")]
    assert clock.events == 4


def test_the_past_is_now() -> None:
    clock, log, call = setting()
    clock.run(until=5 * SECOND)
    clock.at(1, call, "late")
    assert clock.run()
    assert log == [(5 * SECOND, "late")]


def test_a_predicate_ends_the_run_where_it_came_true() -> None:
    clock, log, call = setting()
    for at in range(1, 10):
        clock.at(at, call, at)
    assert clock.run(until=lambda: len(log) == 4)
    assert clock.now == 4
    assert not clock.run(until=lambda: len(log) == 99)
    assert clock.now == 9


def test_a_predicate_that_holds_already_lets_nothing_happen() -> None:
    clock, log, call = setting()
    clock.at(1, call, 1)
    assert clock.run(until=lambda: True)
    assert log == []


def test_an_instant_is_reached_with_and_without_anything_due() -> None:
    clock, log, call = setting()
    clock.at(7, call, "x")
    assert clock.run(until=5)
    assert (clock.now, log) == (5, [])
    assert clock.run(until=9)
    assert (clock.now, log) == (9, [(7, "x")])


def test_max_time_is_in_seconds_from_now() -> None:
    clock, log, call = setting()
    clock.run(until=SECOND)
    for seconds in (2, 3, 4):
        clock.at(seconds * SECOND, call, seconds)
    assert not clock.run(max_time=2)
    assert clock.now == 3 * SECOND
    assert [what for _, what in log] == [2, 3]
    assert not clock.run(until=10 * SECOND, max_time=0.5)
    assert clock.now == 3 * SECOND + SECOND // 2
    assert clock.run(max_time=10), "nothing is due any more"


def test_what_is_cancelled_neither_happens_nor_takes_time() -> None:
    clock, log, call = setting()
    clock.at(1, call, "first")
    never = clock.at(2, call, "never")
    far = clock.at(99, call, "never either")
    clock.cancel(never)
    clock.cancel(far)
    assert clock.run()
    assert (clock.now, log) == (1, [(1, "first")])
    clock.cancel(clock.at(50, call, "nor this"))
    assert clock.run(max_time=1e-9), "nothing is due: what remains is cancelled"
    assert clock.now == 1
