"""When checks are sent again and given up."""

from __future__ import annotations

from typing import cast

import pytest

from ice.checks.pairs import CheckedPair
from ice.checks.transactions import (
    MOST_OF_PAIR,
    TOTAL_RTO,
    Check,
    Kind,
    Outstanding,
    schedule_for,
)
from stun.sansio import MILLISECOND, SECOND
from stun.transaction import Schedule, Step, Transaction

TOTAL = TOTAL_RTO * 500 * MILLISECOND
PAIR = cast(CheckedPair, object())


def check_of(schedule: Schedule, at: int, name: int, kind: Kind = Kind.CHECK) -> Check:
    check = Check(PAIR, kind, Transaction(schedule, at))
    check.id = name.to_bytes(12)
    return check


def test_the_default_is_that_of_stun() -> None:
    # RFC 8489 6.2.1: "requests are sent at times 0 ms, 500 ms, 1500 ms, 3500 ms, 7500 ms, 15500 ms,
    # and 31500 ms"; given up at 39500 ms.
    assert schedule_for(500 * MILLISECOND, TOTAL) == Schedule.rfc8489()
    assert TOTAL == 39_500 * MILLISECOND


@pytest.mark.parametrize("rto", [500, 501, 999, 1000, 2500, 5000, 20_000, 39_499, 39_500, 90_000])
def test_a_long_rto_does_not_make_a_check_last_longer(rto: int) -> None:
    schedule = schedule_for(rto * MILLISECOND, TOTAL)
    assert schedule.total == TOTAL
    assert schedule.sends <= 7
    assert schedule.intervals == tuple(
        rto * MILLISECOND << n for n in range(len(schedule.intervals))
    )


def test_what_is_due_comes_in_order_and_what_is_given_up_is_gone() -> None:
    outstanding = Outstanding()
    slow = check_of(Schedule.reliable(10 * SECOND), 0, 1)
    quick = check_of(Schedule.fixed([SECOND], 2 * SECOND), 0, 2)
    outstanding.add(slow)
    outstanding.add(quick)
    assert outstanding.deadline() == SECOND
    assert list(outstanding.due(SECOND - 1)) == []
    assert list(outstanding.due(SECOND)) == [(quick, Step.SEND_AGAIN)]
    assert outstanding.deadline() == 3 * SECOND
    assert list(outstanding.due(20 * SECOND)) == [(quick, Step.GIVE_UP), (slow, Step.GIVE_UP)]
    assert outstanding.deadline() is None
    assert len(outstanding) == 0
    assert outstanding.get(quick.id) is None


def test_a_check_that_is_removed_is_never_due() -> None:
    outstanding = Outstanding()
    check = check_of(Schedule.reliable(SECOND), 0, 1)
    outstanding.add(check)
    assert outstanding.get(check.id) is check
    outstanding.remove(check)
    outstanding.remove(check)
    assert outstanding.deadline() is None
    assert list(outstanding.due(SECOND)) == []


def test_a_deadline_that_changes_counts_once() -> None:
    outstanding = Outstanding()
    check = check_of(Schedule.reliable(10 * SECOND), 0, 1)
    outstanding.add(check)
    check.transaction = Transaction(Schedule.reliable(SECOND), 0)
    outstanding.plan(check)
    assert outstanding.deadline() == SECOND
    assert list(outstanding.due(SECOND)) == [(check, Step.GIVE_UP)]
    assert outstanding.deadline() is None


def test_a_pair_has_so_many_at_most_and_the_oldest_goes() -> None:
    outstanding = Outstanding()
    checks = [check_of(Schedule.reliable(SECOND), at, at + 1) for at in range(MOST_OF_PAIR + 3)]
    for check in checks:
        outstanding.add(check)
    probe = check_of(Schedule.reliable(SECOND), 0, 99, Kind.PROBE)
    outstanding.add(probe)
    assert outstanding.of(PAIR) == [*checks[3:], probe]
    assert list(outstanding) == [*checks[3:], probe]
