"""Meters: the law of the rate, whoever shares it and however it is asked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from stun.sansio import MILLISECOND, SECOND
from turn.meter import LEASE_TIME, SMALLEST_LEASE, Bucket, Meter

LARGEST = 65_507


def lease_of(rate: int) -> float:
    """The octets that one meter may hold of a lease."""
    return max(rate * LEASE_TIME / SECOND, SMALLEST_LEASE) if rate else 0


def instants(rng: random.Random, until: int) -> Iterator[int]:
    """Now and then a burst, now and then a rest."""
    now = rng.randrange(1 << 50)
    end = now + until
    while now < end:
        yield now
        if rng.random() < 0.5:
            now += rng.choice((1, MILLISECOND, 10 * MILLISECOND, 200 * MILLISECOND, SECOND))


def check_windows(passed: list[tuple[int, int]], rate: float, most: float) -> None:
    """No window of any length holds more than ``rate`` and time allow, and ``most``."""
    # The greatest excess of any window is found in one pass: what has passed, less what time has
    # given, against its lowest value so far.
    lowest, total = 0.0, 0.0
    for (before, _), (now, octets) in pairwise([passed[0], *passed]):
        total -= rate * (now - before) / SECOND
        lowest = min(lowest, total)
        total += octets
        assert total - lowest <= most + 1e-3, (total - lowest, most)


@pytest.mark.parametrize("rate", [1000, 20_000, 1_000_000, 12_500_000])
@pytest.mark.parametrize("parties", [1, 2, 7])
@pytest.mark.parametrize("sizes", [(1, 200), (900, 1400), (1, LARGEST), (LARGEST, LARGEST)])
def test_in_no_time_do_all_together_pass_more_octets_than_the_law_says(
    rate: int, parties: int, sizes: tuple[int, int], rng: random.Random
) -> None:
    bucket = Bucket(rate, 0)
    meters = [Meter(bucket) for _ in range(parties)]
    passed = []
    for now in instants(rng, 20 * SECOND):
        for _ in range(rng.randrange(30)):
            octets = rng.randint(*sizes)
            if rng.choice(meters).take(octets, now):
                passed.append((now, octets))
    assert passed
    check_windows(passed, rate, rate + sizes[1] + parties * lease_of(rate))


@pytest.mark.parametrize("rate", [1, 50, 5000])
@pytest.mark.parametrize("parties", [1, 2, 7])
def test_in_no_time_do_all_together_pass_more_packets_than_the_law_says(
    rate: int, parties: int, rng: random.Random
) -> None:
    bucket = Bucket(0, rate)
    meters = [Meter(bucket) for _ in range(parties)]
    passed = []
    for now in instants(rng, 20 * SECOND):
        for _ in range(rng.randrange(300)):
            if rng.choice(meters).take(100, now):
                passed.append((now, 1))
    check_windows(passed, rate, rate + 1 + parties * max(1.0, rate * LEASE_TIME / SECOND))


def test_from_the_start_two_parties_pass_the_rate_and_the_burst() -> None:
    bucket = Bucket(100_000, 0, burst=0.5)
    meters = [Meter(bucket), Meter(bucket)]
    now = 1 << 60
    assert 480 <= sum(meters[n % 2].take(100, now) for n in range(5000)) <= 500
    passed = 0
    for step in range(1, 1001):
        passed += sum(meters[n % 2].take(100, now + step * 10 * MILLISECOND) for n in range(50))
    # Ten seconds more: all of the rate is used, and no more than that.
    assert 0.99 * 10_000 <= passed <= 10_020


def test_a_user_and_a_client_address_bind_each_for_itself(rng: random.Random) -> None:
    user, host, other = Bucket(300_000, 0), Bucket(0, 100), Bucket(100_000, 0)
    meters = {(user, host): Meter(user, host), (user, other): Meter(user, other)}
    passed: dict[Bucket, list[tuple[int, int, int]]] = {user: [], host: [], other: []}
    for now in instants(rng, 20 * SECOND):
        for _ in range(30):
            buckets, meter = rng.choice(list(meters.items()))
            octets = rng.randint(1, 1400)
            if meter.take(octets, now):
                for bucket in buckets:
                    passed[bucket].append((now, octets, 1))
    most = 1400 + 2 * lease_of(300_000)
    check_windows([(now, n) for now, n, _ in passed[user]], 300_000, 300_000 + most)
    check_windows([(now, n) for now, n, _ in passed[other]], 100_000, 100_000 + most)
    check_windows([(now, n) for now, _, n in passed[host]], 100, 100 + 2)


@pytest.mark.parametrize("rate", [100, 5000, 1_000_000])
def test_a_huge_packet_does_not_wedge_the_meter(rate: int) -> None:
    bucket = Bucket(rate, 0)
    huge, small = Meter(bucket), Meter(bucket)
    now = 1 << 40
    assert huge.take(LARGEST, now), "what is longer than the bucket passes when that is full"
    debt = max(0, LARGEST - rate)
    rested = now + int(debt / rate * SECOND)
    assert small.take(50, rested - SECOND // 10) is (rate == 1_000_000)
    assert small.take(50, rested + SECOND)
    assert huge.take(50, rested + 2 * SECOND)


def test_large_packets_are_not_starved_by_small_ones() -> None:
    bucket = Bucket(100_000, 0)
    small, large = Meter(bucket), Meter(bucket)
    passed = [0, 0]
    for step in range(100_000):  # ten seconds: eight times the rate in small packets alone
        now = (1 << 40) + step * SECOND // 10_000
        passed[0] += 80 * small.take(80, now)
        if step % 10 == 0:
            passed[1] += 1400 * large.take(1400, now)
    assert passed[1] > 100_000, passed
    assert sum(passed) > 0.99 * 1_000_000


def test_a_lease_that_idles_leaves_the_rest_to_others() -> None:
    rate = 12_500_000
    bucket = Bucket(rate, 25_000)
    now = SECOND
    for _ in range(100):
        assert Meter(bucket).take(10, now)  # they come once, and hold a lease each
    active = Meter(bucket)
    passed = sum(active.take(1000, now) for _ in range(20_000))
    assert passed > 0.55 * 12_500
    passed = sum(
        active.take(1000, now + n * SECOND // 1000) for n in range(1000) for _ in range(30)
    )
    assert 0.99 * 12_500 < passed < 1.01 * 12_500


def test_the_packet_path_as_it_is_written_out(rng: random.Random) -> None:
    """The same as take(), for those who have no time for a call."""
    one, other = Meter(Bucket(50_000, 300)), Meter(Bucket(50_000, 300))
    for now in instants(rng, 20 * SECOND):
        octets = rng.randint(1, 1400)
        one.octets -= octets
        one.packets -= 1
        passes = (one.octets >= 0 and one.packets >= 0) or one.renew(now, octets)
        assert passes is other.take(octets, now)
    assert (one.octets, one.packets) == (other.octets, other.packets)
    assert one.usage.dropped == other.usage.dropped > 0


def test_who_does_not_say_how_large_a_dropped_packet_was_gets_no_more(rng: random.Random) -> None:
    meter, passed = Meter(Bucket(50_000, 300)), []
    for now in instants(rng, 20 * SECOND):
        octets = rng.randint(1, 1400)
        meter.octets -= octets
        meter.packets -= 1
        if (meter.octets >= 0 and meter.packets >= 0) or meter.renew(now):
            passed.append((now, octets))
    check_windows(passed, 50_000, 50_000 + 1400 + lease_of(50_000))
    check_windows([(now, 1) for now, _ in passed], 300, 300 + 1 + 1.2)


def test_drops_are_counted_and_cost_nothing() -> None:
    meter, now = Meter(Bucket(0, 10)), SECOND
    assert [meter.take(10, now) for _ in range(1000)] == [True] * 10 + [False] * 990
    assert meter.usage.dropped == 990
    assert [meter.take(10, now + SECOND // 10) for _ in range(3)] == [True, False, False]


def test_without_limits_everything_passes() -> None:
    for meter in (Meter(), Meter(Bucket(0, 0)), Meter(Bucket(0, 0), Bucket(0, 0))):
        assert all(meter.take(LARGEST, 0) for _ in range(20_000))
        assert all(meter.charge(1 << 30, 0) for _ in range(100))
        assert meter.usage.dropped == 0


def test_time_that_seems_to_go_back_gives_nothing_twice() -> None:
    bucket = Bucket(0, 10)
    meter, now = Meter(bucket), SECOND
    assert sum(meter.take(1, now) for _ in range(100)) == 10
    for _ in range(100):
        assert not meter.take(1, now - SECOND)
        assert not meter.take(1, now)
    assert meter.take(1, now + SECOND // 10)


# Streams. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [100, 1400, 65536, 1 << 20])
def test_a_stream_goes_into_debt_and_is_held_to_the_rate(chunk: int) -> None:
    rate = 200_000
    meter, now, passed = Meter(Bucket(rate, 0)), 1 << 40, 0
    begin = now
    for _ in range(10 + 20_000_000 // chunk):
        passed += chunk
        if not meter.charge(chunk, now):
            while not meter.settle(now):
                now += 10 * MILLISECOND
            now += MILLISECOND
    seconds = (now - begin) / SECOND
    assert passed <= rate * (seconds + 1) + chunk + lease_of(rate)
    assert passed >= 0.85 * rate * seconds


def test_streams_that_share_a_bucket_share_its_rate(rng: random.Random) -> None:
    rate = 1_000_000
    bucket = Bucket(rate, 0)
    meters = [Meter(bucket) for _ in range(4)]
    now = begin = 1 << 40
    passed = [0] * 4
    while now < begin + 20 * SECOND:
        for index, meter in enumerate(meters):
            if meter.settle(now):
                passed[index] += 65536
                meter.charge(65536, now)
        now += LEASE_TIME
    assert sum(passed) <= rate * 21 + 4 * (65536 + lease_of(rate))
    assert sum(passed) >= rate * 20
    assert min(passed) > 0.1 * sum(passed)


def test_what_owes_nothing_has_settled() -> None:
    meter = Meter(Bucket(1000, 0))
    assert meter.settle(0)
    assert meter.charge(1000, 0)
    assert not meter.charge(1, 0)
    assert not meter.settle(0)
    assert meter.settle(SECOND)


# Changing rates. ----------------------------------------------------------------------------------


def test_a_lower_rate_holds_at_once() -> None:
    bucket = Bucket(1_000_000, 10_000)
    meter, now = Meter(bucket), SECOND
    bucket.change(10_000, 10)
    assert sum(meter.take(100, now) for _ in range(1000)) <= 10
    bucket.change(1_000_000, 0)
    assert sum(meter.take(100, now + SECOND) for _ in range(20_000)) >= 9_900


def test_a_limit_where_none_was_takes_hold() -> None:
    bucket = Bucket(0, 0)
    meter, now = Meter(bucket), SECOND
    assert meter.take(100, now)
    bucket.change(0, 100)
    assert sum(meter.take(100, now) for _ in range(200_000)) < 100_000
