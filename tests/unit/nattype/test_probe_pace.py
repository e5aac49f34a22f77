"""How sure a silence is, and how long it takes."""

from __future__ import annotations

import pytest

from nattype.probe.pace import SENDS, Pace, contact, false_negative
from stun.sansio import MILLISECOND, SECOND


def test_a_silence_is_wrong_less_than_once_in_a_hundred_thousand() -> None:
    assert false_negative(0.10) == pytest.approx(0.19**SENDS)
    assert false_negative(0.10) < 1e-6
    # Even where a third of the round trips fail it stays rare.
    assert false_negative(0.20) < 1e-3


@pytest.mark.parametrize("rtt_ms", [1, 20, 100, 300, 900])
def test_timing_grows_with_the_distance(rtt_ms: int) -> None:
    pace = Pace(rtt_ms * MILLISECOND)
    for schedule in (pace.question, pace.patient):
        assert schedule.sends >= SENDS
        # Sends back off, and the last one has time for more than one round trip.
        assert list(schedule.intervals) == sorted(schedule.intervals)
        assert schedule.final >= 2 * pace.rtt
    assert pace.patient.total > pace.question.total
    assert pace.grace >= pace.rtt
    assert pace.handshake > 3 * SECOND + pace.rtt


def test_a_near_server_is_decided_in_little_more_than_a_second() -> None:
    assert Pace(10 * MILLISECOND).question.total < 1_300 * MILLISECOND


def test_a_distance_that_cannot_be_is_not_waited_for() -> None:
    assert Pace(60 * SECOND).question.total < 30 * SECOND


def test_first_contact_waits_for_a_satellite() -> None:
    schedule = contact()
    assert schedule.total > 2 * SECOND
    assert false_negative(0.10, schedule.sends) < 1e-6
    # At 700 ms of round trip, the sends of the first two seconds still count.
    assert schedule.final >= 700 * MILLISECOND
