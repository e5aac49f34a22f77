"""Questions and answers of one pair: smoothing, losses, what is overdue, and bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.pulse import LONGEST_PATIENCE, MOST_WAITING, WHOLE, Pulse
from stun.sansio import MILLISECOND, SECOND
from stun.transaction import RTO


def asked(*times: int) -> Pulse:
    pulse = Pulse()
    for at in times:
        pulse.asked(at)
    return pulse


def test_smoothing_is_that_of_rfc_6298() -> None:
    pulse = Pulse()
    pulse.answered(100, 1000)
    assert (pulse.rtt, pulse.variation) == (100, 50)
    pulse.answered(180, 2000)
    # RTTVAR = 3/4 * 50 + 1/4 * |100 - 180|, SRTT = 7/8 * 100 + 1/8 * 180
    assert (pulse.rtt, pulse.variation) == (110, 57)
    assert pulse.answers == 2
    assert pulse.answered_at == 2000


def test_a_known_round_trip_is_the_start() -> None:
    pulse = Pulse(100)
    assert (pulse.rtt, pulse.variation, pulse.answers) == (100, 50, 0)


def test_a_negative_time_is_none() -> None:
    pulse = Pulse()
    pulse.answered(-5, 1000)
    assert pulse.rtt == 0


def test_patience_follows_the_path() -> None:
    pulse = Pulse()
    assert pulse.patience == RTO
    pulse.answered(MILLISECOND, 0)
    assert pulse.patience == RTO, "RFC 8489 section 6.2.1"
    steady = Pulse()
    for n in range(100):
        steady.answered(3 * SECOND, n)
    assert steady.patience == pytest.approx(3 * SECOND, abs=2 * MILLISECOND)
    assert Pulse(SECOND).patience == 3 * SECOND  # 1 + 4 * 0.5
    assert Pulse(60 * SECOND).patience == LONGEST_PATIENCE


def test_what_is_overdue() -> None:
    pulse = asked(0, SECOND, 2 * SECOND)
    assert pulse.overdue(RTO - 1) == 0
    assert pulse.overdue(RTO) == 1
    assert pulse.overdue(SECOND + RTO) == 2
    assert pulse.overdue_at() == RTO
    pulse.forget()
    assert pulse.overdue(100 * SECOND) == 0
    assert pulse.overdue_at() is None
    assert pulse.loss == 0


def test_an_answer_ends_its_question_and_those_before() -> None:
    pulse = asked(0, 10, 20, 30)
    pulse.answered(15, 35)  # to the one asked at 20
    assert pulse.waiting == [30]
    lost_two_of_three = pulse.loss
    assert lost_two_of_three > 0
    pulse.answered(10, 40)
    assert pulse.waiting == []
    assert pulse.loss < lost_two_of_three


def test_a_late_answer_leaves_the_later_questions_open() -> None:
    pulse = asked(0, 10, 20)
    pulse.answered(100, 100)  # to the very first
    assert pulse.waiting == [10, 20]
    assert pulse.loss == 0, "it came, if late"


def test_loss_is_smoothed() -> None:
    pulse = Pulse()
    now = 0
    for n in range(400):
        now += SECOND
        pulse.asked(now)
        if n % 2:
            pulse.answered(1000, now + 1000)
    assert 0.3 < pulse.loss / WHOLE < 0.7


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 10 * SECOND), st.integers(-SECOND, 100 * SECOND)),
        max_size=200,
    )
)
def test_bounds_hold_whatever_comes(steps: list[tuple[bool, int, int]]) -> None:
    pulse = Pulse()
    now = 0
    for asks, later, rtt in steps:
        now += later
        if asks:
            pulse.asked(now)
        else:
            pulse.answered(rtt, now)
        assert len(pulse.waiting) <= MOST_WAITING
        assert pulse.waiting == sorted(pulse.waiting)
        assert 0 <= pulse.loss <= WHOLE
        assert RTO <= pulse.patience <= LONGEST_PATIENCE
        assert pulse.rtt is None or pulse.rtt >= 0


def test_the_oldest_questions_count_as_lost() -> None:
    pulse = asked(*range(MOST_WAITING + 5))
    assert pulse.waiting == list(range(5, MOST_WAITING + 5))
    assert pulse.loss > 0
