"""Predicted and guessed ports, and how two NATs that count meet."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.predict.ports import (
    POOL,
    advance,
    keeps_parity,
    latest,
    pool_of,
    step_of,
)
from stun.errors import UsageError
from tools.predictsim import aligned


@pytest.mark.parametrize(
    ("last", "delta", "expected"),
    [
        (40000, 1, (40001, 40002, 40003)),
        (40000, 2, (40002, 40004, 40006)),
        (40000, -1, (39999, 39998, 39997)),
        (65534, 1, (65535, 1024, 1025)),
        (1025, -1, (1024, 65535, 65534)),
        (1000, 1, (1001, 1002, 1003)),  # below the usual pool: counted on from all the same
    ],
)
def test_the_next_ports_of_a_nat_that_counts(
    last: int, delta: int, expected: tuple[int, ...]
) -> None:
    assert tuple(advance(last, steps, delta) for steps in (1, 2, 3)) == expected


def test_a_sequence_stays_inside_the_pool_it_comes_from() -> None:
    block = range(2048, 2112)
    assert [advance(2110, n, 1, block) for n in range(1, 5)] == [2111, 2048, 2049, 2050]
    assert {advance(2100, n, 1, block) for n in range(500)} == set(block)


@given(st.integers(1, 0xFFFF), st.integers(-2000, 2000), st.integers(-9, 9).filter(bool))
def test_an_advance_never_leaves_the_ports_there_are(port: int, steps: int, delta: int) -> None:
    assert 1 <= advance(port, steps, delta) <= 0xFFFF


@given(st.integers(0, len(POOL) - 1), st.integers(0, 500), st.integers(0, 500))
def test_advances_add_up(index: int, first: int, second: int) -> None:
    port = POOL[index]
    assert advance(advance(port, first), second) == advance(port, first + second)


def test_parity_is_told_only_from_ports_that_were_moved() -> None:
    moved = [(5000 + n, 30000 + n) for n in range(10)]
    assert keeps_parity(moved)
    assert not keeps_parity([(port, port) for port, _ in moved])
    assert not keeps_parity(moved[:7])
    assert not keeps_parity([(5000 + 2 * n, 30000 + 2 * n) for n in range(10)])
    assert not keeps_parity([*moved, (5011, 30020)])


def test_a_nat_that_keeps_parity_takes_every_second_port() -> None:
    assert step_of(1, keeps_parity=True) == 2
    assert step_of(2, keeps_parity=True) == 2
    assert step_of(-1, keeps_parity=True) == -2
    assert step_of(1, keeps_parity=False) == 1


@pytest.mark.parametrize(
    ("ports", "delta", "expected"),
    [
        ([40002, 40000, 40001], 1, 40002),
        ([40002, 40000, 40001], -1, 40000),
        ([1025, 65535, 1024], 1, 1025),  # it went around
        ([1024, 65535, 65534], -1, 65534),
        ([5000], 1, 5000),
        ([5000, 5000], 1, 5000),
    ],
)
def test_the_latest_of_answers_in_any_order(ports: list[int], delta: int, expected: int) -> None:
    assert latest(ports, delta) == expected


def test_without_any_port_there_is_no_latest() -> None:
    with pytest.raises(UsageError):
        latest([], 1)


def test_a_block_of_ports_is_recognized_and_all_ports_are_not_taken_for_one(rng: Random) -> None:
    for size in (256, 1024, 2048):
        for _ in range(200):
            start = size * rng.randrange(1, 65536 // size)
            samples = [start + rng.randrange(size) for _ in range(10)]
            pool = pool_of(samples)
            assert all(port in pool for port in samples)
            assert len(pool) <= 4096 + 2048
    everything = [pool_of([rng.choice(POOL) for _ in range(10)]) for _ in range(500)]
    assert everything == [POOL] * 500


def test_a_block_usually_contains_the_ports_that_were_not_seen(rng: Random) -> None:
    inside = total = 0
    for _ in range(300):
        start = 1024 * rng.randrange(1, 64)
        pool = pool_of([start + rng.randrange(1024) for _ in range(10)])
        total += 1024
        inside += sum(port in pool for port in range(start, start + 1024))
    assert inside / total > 0.93


def test_few_samples_say_nothing_of_the_pool() -> None:
    assert pool_of([5000, 5001, 5002, 5003]) == POOL


# Two counters. ------------------------------------------------------------------------------------

WINDOW = 16


def rate(mine: list[int], theirs: list[int], most_taken: int) -> float:
    """How often two orders of aims meet, over all numbers of ports that others took."""
    cases = list(product(range(most_taken + 1), repeat=2))
    return sum(aligned(mine, theirs, *taken) for taken in cases) / len(cases)


def test_two_that_send_in_the_same_order_meet_only_if_nobody_takes_a_port() -> None:
    order = list(range(1, WINDOW + 1))
    assert aligned(order, order, 0, 0)
    # Whatever is taken on one side alone, no packet of the run fits any more.
    assert not any(aligned(order, order, taken, 0) for taken in range(1, WINDOW))
    assert rate(order, order, 8) < 0.02


def test_opposite_orders_meet_every_other_time() -> None:
    order = list(range(1, WINDOW + 1))
    assert rate(order, order[::-1], 8) == pytest.approx(0.5, abs=0.02)


def test_runs_of_sockets_at_one_port_meet_whatever_others_took_before() -> None:
    run = [WINDOW] * WINDOW
    assert rate(run, run, WINDOW - 1) == 1.0
    assert not aligned(run, run, WINDOW, 0)


@pytest.mark.parametrize(("others", "least"), [(0, 1.0), (2, 0.97), (10, 0.9), (50, 0.5)])
def test_runs_meet_while_others_go_on_taking_ports(others: int, least: float, rng: Random) -> None:
    """``others`` mappings a second on each side, from the measurement to the end of the run."""
    met = 0
    rounds = 400
    for _ in range(rounds):
        first, second = (_taken_by_run(others, rng) for _ in range(2))
        # Mapping number 16 of each side must be one of the run's own.
        met += first and second
    assert met / rounds >= least


def _taken_by_run(others: int, rng: Random) -> bool:
    """Whether mapping ``WINDOW`` since the measurement is one of this side's run."""
    signalling, rate_of_run = 0.15, 500
    number, now, sent = 0, 0.0, 0
    at = rng.expovariate(others) if others else float("inf")
    while number < WINDOW:
        mine = signalling + sent / rate_of_run
        if sent < WINDOW and mine < at:
            now, sent, own = mine, sent + 1, True
        elif at == float("inf"):
            return False
        else:
            now, own = at, False
            at = now + rng.expovariate(others)
        number += 1
    return own
