"""The server's clock, from exchanges of which the quickest counts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.rendezvous.clock import EXCHANGES, ServerClock

HOUR = 3600.0
EPOCH = 1_700_000_000.0


def test_the_welcome_is_a_first_estimate() -> None:
    clock = ServerClock(10.0, 10.4, EPOCH)
    assert clock.rtt == pytest.approx(0.4)
    assert clock.ahead_of(10.2) == pytest.approx(EPOCH)
    assert clock.ahead_of(11.2) == pytest.approx(EPOCH + 1)


def test_a_burst_is_of_a_few_exchanges_one_after_the_other() -> None:
    clock = ServerClock(0.0, 1.0, EPOCH)
    number = clock.burst(1.0)
    asked = []
    while number is not None:
        asked.append(number)
        number = clock.answered(number, EPOCH, 1.0)
    assert len(set(asked)) == len(asked) == EXCHANGES


def test_a_question_under_way_is_not_asked_twice() -> None:
    clock = ServerClock(0.0, 1.0, EPOCH)
    number = clock.burst(1.0)
    assert number is not None
    assert clock.burst(1.1) is None
    # The burst that began meanwhile goes on from the answer.
    assert clock.answered(number, EPOCH, 1.2) is not None


def test_answers_that_nobody_asked_for_count_for_nothing() -> None:
    clock = ServerClock(0.0, 0.5, EPOCH)
    assert clock.answered(1.0, 0.0, 1.0) is None
    number = clock.burst(1.0)
    assert number is not None
    assert clock.answered(number + 7, 0.0, 1.0) is None
    assert clock.ahead_of(0.25) == pytest.approx(EPOCH)
    assert clock.answered(number, EPOCH + 0.8, 1.1) is not None
    # Nor does the same answer a second time.
    assert clock.answered(number, 0.0, 1.1) is None
    assert clock.ahead_of(1.05) == pytest.approx(EPOCH + 0.8)


def test_a_new_burst_forgets_the_one_before() -> None:
    clock = ServerClock(0.0, 0.001, EPOCH)
    later = 1800.0
    number = clock.burst(later)
    # The clocks have drifted by 50 ms, and the way has become longer.
    assert number is not None
    clock.answered(number, EPOCH + later + 0.05, later + 0.1)
    assert clock.rtt == pytest.approx(0.1)
    assert clock.ahead_of(later + 0.05) == pytest.approx(EPOCH + later + 0.05)


@given(
    st.integers(0, 1 << 30),
    st.floats(-2 * HOUR, 2 * HOUR),
    st.floats(0.0, 0.3),
    st.floats(0.0, 2.0),
)
def test_the_error_is_half_of_the_quickest_round_trip_at_most(
    seed: int, ahead: float, shortest: float, jitter: float
) -> None:
    draw = random.Random(seed)

    def way() -> float:
        return shortest / 2 + draw.random() * jitter

    def theirs(at: float) -> float:
        return EPOCH + ahead + at

    now = 100.0
    out, back = way(), way()
    clock = ServerClock(now, now + out + back, theirs(now + out))
    now += out + back
    number = clock.burst(now)
    trips = []
    while number is not None:
        out, back = way(), way()
        trips.append(out + back)
        number = clock.answered(number, theirs(now + out), now + out + back)
        now += out + back
    assert clock.rtt == pytest.approx(min(trips), abs=1e-6)
    assert abs(clock.ahead_of(now) - theirs(now)) <= min(trips) / 2 + 1e-5
