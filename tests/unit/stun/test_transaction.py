"""The retransmission machine, its exact times, and what is learned about round trips."""

import pytest

from stun.errors import UsageError
from stun.sansio import MILLISECOND, SECOND
from stun.transaction import MAX_RTO, RTO, STALE, RttCache, Schedule, Step, Transaction

MS = MILLISECOND


def walk(schedule, start):
    """Return the times of all sends, and when the transaction is given up."""
    transaction = Transaction(schedule, start)
    sends = [start]
    while True:
        now = transaction.deadline
        assert transaction.on_deadline(now - 1) is Step.WAIT
        match transaction.on_deadline(now):
            case Step.SEND_AGAIN:
                sends.append(now)
            case Step.GIVE_UP:
                return sends, now
            case Step.WAIT:
                pytest.fail("a due deadline was told to wait")


def test_rfc8489_example():
    # RFC 8489 6.2.1: "requests would be sent at times 0 ms, 500 ms, 1500 ms, 3500 ms, 7500 ms,
    # 15500 ms, and 31500 ms.  If the client has not received a response after 39500 ms ..."
    start = 123_456_789
    sends, end = walk(Schedule.rfc8489(), start)
    assert [(at - start) // MS for at in sends] == [0, 500, 1500, 3500, 7500, 15500, 31500]
    assert end - start == 39_500 * MS == Schedule.rfc8489().total


def test_rc_rm_and_rto_are_configurable():
    sends, end = walk(Schedule.rfc8489(rto=100 * MS, rc=3, rm=2), 0)
    assert sends == [0, 100 * MS, 300 * MS]
    assert end == 500 * MS


def test_once_when_rc_is_one():
    assert walk(Schedule.rfc8489(rto=10 * MS, rc=1, rm=4), 5) == ([5], 5 + 40 * MS)


def test_reliable_never_sends_again():
    # RFC 8489 6.2.2: Ti "SHOULD have a default of 39.5 s".
    assert walk(Schedule.reliable(), 0) == ([0], 39_500 * MS)
    assert walk(Schedule.reliable(2 * SECOND), 0) == ([0], 2 * SECOND)


def test_a_schedule_of_ones_own():
    schedule = Schedule.fixed([250 * MS, 500 * MS, 1000 * MS, 2000 * MS], 2 * SECOND)
    assert schedule.sends == 5
    assert walk(schedule, 0) == ([0, 250 * MS, 750 * MS, 1750 * MS, 3750 * MS], 5750 * MS)


def test_late_call_sends_once_not_in_a_burst():
    transaction = Transaction(Schedule.rfc8489(), 0)
    woke = 20 * SECOND
    assert transaction.on_deadline(woke) is Step.SEND_AGAIN
    assert transaction.on_deadline(woke) is Step.WAIT
    assert transaction.deadline == woke + 1000 * MS


def test_giving_up_is_repeated():
    transaction = Transaction(Schedule.reliable(1), 0)
    assert transaction.on_deadline(1) is Step.GIVE_UP
    assert transaction.on_deadline(2) is Step.GIVE_UP


@pytest.mark.parametrize(
    "make",
    [
        lambda: Schedule((0,), 1),
        lambda: Schedule((1,), 0),
        lambda: Schedule.rfc8489(rc=0),
        lambda: Schedule.rfc8489(rto=0),
        lambda: Schedule.reliable(-1),
    ],
)
def test_schedules_that_make_no_sense(make):
    with pytest.raises(UsageError):
        make()


def test_karn():
    transaction = Transaction(Schedule.rfc8489(), 1000)
    assert transaction.rtt(1500) == 500
    transaction.on_deadline(transaction.deadline)
    assert transaction.rtt(transaction.deadline) is None


class TestRttCache:
    def test_unknown_host_gets_the_initial_rto(self):
        assert RttCache().rto("192.0.2.1", 0) == RTO == 500 * MS

    def test_first_sample(self):
        # RFC 6298 2.2: SRTT = R, RTTVAR = R/2, RTO = SRTT + 4 * RTTVAR = 3 R.
        cache = RttCache()
        cache.sample("192.0.2.1", 600 * MS, 0)
        assert cache.rto("192.0.2.1", 1) == 1800 * MS
        assert cache.rto("192.0.2.2", 1) == RTO

    def test_second_sample(self):
        # RFC 6298 2.3 by hand: RTTVAR = 3/4 * 300 + 1/4 * |600 - 1000| = 325, SRTT = 650.
        cache = RttCache()
        cache.sample("h", 600 * MS, 0)
        cache.sample("h", 1000 * MS, 1)
        assert cache.rto("h", 2) == (650 + 4 * 325) * MS

    def test_never_below_the_initial_nor_above_a_minute(self):
        cache = RttCache()
        cache.sample("near", 3 * MS, 0)
        cache.sample("far", 100 * SECOND, 0)
        assert cache.rto("near", 1) == RTO
        assert cache.rto("far", 1) == MAX_RTO

    def test_stale_after_ten_minutes_without_a_transaction(self):
        cache = RttCache()
        cache.sample("h", SECOND, 0)
        assert cache.rto("h", STALE) == 3 * SECOND  # and this use keeps it fresh
        assert cache.rto("h", 2 * STALE) == 3 * SECOND
        assert cache.rto("h", 3 * STALE + 1) == RTO
        assert len(cache) == 0

    def test_a_sample_after_a_long_time_starts_anew(self):
        cache = RttCache()
        cache.sample("h", 10 * SECOND, 0)
        cache.sample("h", SECOND, STALE + 1)
        assert cache.rto("h", STALE + 2) == 3 * SECOND

    def test_memory_is_bounded_and_the_least_recently_used_goes(self):
        cache = RttCache(capacity=2)
        cache.sample("a", SECOND, 0)
        cache.sample("b", SECOND, 1)
        cache.rto("a", 2)
        cache.sample("c", SECOND, 3)
        assert len(cache) == 2
        assert cache.rto("a", 4) == 3 * SECOND
        assert cache.rto("b", 4) == RTO
