"""One carrier as the session sees it: its limit, its patience, its past."""

from __future__ import annotations

import pytest

from ice.link.lane import (
    BACKLOG_WAIT,
    IDLE_PING,
    LEAST_OUTSTANDING,
    LONGEST_ANSWER,
    MOST_FLIGHTS,
    MOST_PATIENCE,
    PATIENCE,
    PRESSING_PING,
    PROBATION,
    UNPROVED_PATIENCE,
    Lane,
)
from stun.sansio import MILLISECOND, SECOND

WINDOW = 8 << 20
RTT = 40 * MILLISECOND


def proved(now: int = 0, rtt: int = RTT) -> Lane:
    """Return a carrier that has answered its first PING."""
    lane = Lane(1, 1, WINDOW, now)
    lane.ask(4, now)
    assert lane.landed(4, now + rtt)
    lane.heard = now + rtt
    lane.vouch(now + rtt)
    return lane


def test_the_limit_follows_the_rate_and_the_round_trip() -> None:
    lane = proved()
    assert lane.limit == LEAST_OUTSTANDING
    now = SECOND
    for _ in range(50):  # 10 MB/s: 1 MB takes 100 ms
        lane.launched(1_000_000, now)
        now += 100 * MILLISECOND
        lane.landed(lane.sent, now)
    assert lane.rate == pytest.approx(10e6)
    assert lane.limit == pytest.approx(2 * 10e6 * 0.165, rel=0.01)


def test_the_limit_has_a_floor_and_the_window_for_a_ceiling() -> None:
    slow, fast = proved(), proved()
    for step in range(1, 20):
        slow.launched(1000, step * SECOND)
        slow.landed(slow.sent, step * SECOND + 500 * MILLISECOND)
        fast.launched(1_000_000, step * SECOND)
        fast.landed(fast.sent, step * SECOND + MILLISECOND)
    assert slow.limit == LEAST_OUTSTANDING
    assert fast.limit == WINDOW


def test_an_idle_application_does_not_lower_the_rate_and_a_slower_path_does() -> None:
    lane = proved()
    lane.launched(1_000_000, SECOND)
    lane.landed(lane.sent, SECOND + 100 * MILLISECOND)
    lane.launched(10, 2 * SECOND)
    lane.landed(lane.sent, 2 * SECOND + 100 * MILLISECOND)
    assert lane.rate == pytest.approx(10e6)
    for step in range(3, 80):
        lane.launched(100_000, step * SECOND)
        lane.bounded = True
        lane.landed(lane.sent, step * SECOND + 100 * MILLISECOND)
    assert lane.rate == pytest.approx(1e6, rel=0.01)


def test_octets_sent_at_one_time_are_one_flight_but_a_ping_is_its_own() -> None:
    lane = Lane(1, 1, WINDOW, 0)
    lane.ask(4, 0)
    lane.launched(100, 0)
    lane.launched(100, 10)
    assert [flight.end for flight in lane.flights] == [4, 204]
    lane.launched(100, 2 * MILLISECOND)
    lane.launched(65_000, 2 * MILLISECOND)
    lane.launched(65_000, 2 * MILLISECOND)
    assert [flight.end for flight in lane.flights] == [4, 204, 65304, 130304]


def test_no_number_of_small_frames_makes_many_flights() -> None:
    lane = Lane(1, 1, WINDOW, 0)
    for step in range(3 * MOST_FLIGHTS):
        lane.launched(13, step * 10 * MILLISECOND)
    assert len(lane.flights) == MOST_FLIGHTS
    assert lane.landed(lane.sent, SECOND)
    assert not lane.flights


def test_suspicion_starts_with_something_outstanding_and_what_comes_puts_it_off() -> None:
    lane = proved()
    assert lane.patience == PATIENCE
    assert lane.suspicion_at() is None
    lane.launched(100, 10 * SECOND)
    assert lane.suspicion_at() == 10 * SECOND + PATIENCE
    assert lane.early_at() == 10 * SECOND + PATIENCE // 2
    lane.heard = 10 * SECOND + 900 * MILLISECOND
    assert lane.suspicion_at() == lane.heard + PATIENCE
    lane.heard = 100 * SECOND  # much comes, and never the answer
    assert lane.suspicion_at() == 10 * SECOND + LONGEST_ANSWER
    lane.landed(lane.sent, 100 * SECOND)
    assert lane.suspicion_at() is None


@pytest.mark.parametrize(
    ("rtt", "patience"),
    [(1, 1.0), (200, 1.0), (300, 1.15), (500, 1.75), (800, 2.25), (1600, 2.65)],
)
def test_patience_grows_with_the_round_trip(rtt: int, patience: float) -> None:
    assert proved(rtt=rtt * MILLISECOND).patience == int(patience * SECOND)


def test_the_first_answer_may_take_long_and_that_is_not_held_against_it() -> None:
    lane = Lane(1, 1, WINDOW, 0)
    lane.ask(4, 0)
    assert lane.patience == UNPROVED_PATIENCE
    assert lane.standing == 1
    lane.doubt(UNPROVED_PATIENCE)
    assert lane.standing == 0
    lane.landed(4, 4 * SECOND)
    lane.vouch(4 * SECOND)
    assert lane.suspicions == 0
    assert lane.standing == 3


def test_each_suspicion_makes_probation_twice_as_long_and_a_long_good_time_is_forgiven() -> None:
    lane = proved()
    now, spells = SECOND, []
    for _ in range(8):
        lane.doubt(now)
        assert lane.standing == 0
        lane.vouch(now)
        assert lane.standing == 2
        assert lane.probation_until is not None
        spells.append((lane.probation_until - now) // PROBATION)
        now = lane.probation_until
        assert lane.acquit(now)
        assert lane.standing == 3
    assert spells == [2, 4, 8, 16, 32, 64, 64, 64]
    assert lane.patience == MOST_PATIENCE
    lane.doubt(now + 61 * SECOND)
    assert lane.suspicions == 1


def test_suspicion_within_probation_is_not_forgiven_however_long_it_took() -> None:
    lane = proved()
    lane.suspicions = 9
    lane.doubt(SECOND)
    lane.vouch(SECOND)
    lane.doubt(SECOND + 63 * SECOND)
    assert lane.suspicions == 11


def test_what_is_old_on_it_must_have_gone_through_first() -> None:
    lane = proved()
    lane.launched(200_000, SECOND)
    lane.doubt(3 * SECOND)
    lane.vouch(3 * SECOND)
    until = lane.probation_until
    assert until == 5 * SECOND
    assert not lane.acquit(until)
    assert lane.probation_until == until + BACKLOG_WAIT
    lane.landed(lane.sent, 6 * SECOND)
    assert lane.acquit(6 * SECOND)


def test_when_it_is_asked() -> None:
    lane = proved()
    assert lane.ping_at(pressing=False) == IDLE_PING
    assert lane.ping_at(pressing=True) == PRESSING_PING
    lane.probation_until = 8 * SECOND
    assert lane.ping_at(pressing=False) == PRESSING_PING
    lane.wants_ping = True
    assert lane.ping_at(pressing=True) is None
    lane.ask(4, 0)
    assert lane.ping_at(pressing=True) is None, "one question at a time"
