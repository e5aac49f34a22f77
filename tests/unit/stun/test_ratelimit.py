"""Budgets: what an honest prefix has, what a flooding one does not take from others, and memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

import pytest

from stun.ratelimit import ByteBudget, PrefixLimiter, prefix_of
from stun.sansio import SECOND


@pytest.fixture
def entropy(rng: random.Random) -> Callable[[int], bytes]:
    return rng.randbytes


def test_a_rested_prefix_has_its_burst_and_then_its_rate(
    entropy: Callable[[int], bytes],
) -> None:
    limiter = PrefixLimiter(10, 5, entropy=entropy)
    now = 7 * SECOND
    assert [limiter.allow(b"abc", now) for _ in range(7)] == [True] * 5 + [False] * 2
    tenth = SECOND // 10
    assert not limiter.allow(b"abc", now + tenth - 1)
    assert limiter.allow(b"abc", now + tenth)
    assert not limiter.allow(b"abc", now + tenth)
    assert [limiter.allow(b"abc", now + 60 * SECOND) for _ in range(6)] == [True] * 5 + [False]


@pytest.mark.parametrize("rate", [0.5, 1, 30, 4000])
def test_over_a_long_time_the_rate_is_kept(
    rate: float, entropy: Callable[[int], bytes], rng: random.Random
) -> None:
    limiter = PrefixLimiter(rate, 10, entropy=entropy)
    seconds, allowed, now = 20, 0, 0
    end = seconds * SECOND
    step = round(SECOND / rate / 3)
    while now < end:
        now += rng.randrange(1, 2 * step)
        allowed += limiter.allow(b"abc", now)
    assert allowed <= rate * seconds + 10 + 1
    assert allowed >= rate * seconds * 0.9


def test_prefixes_do_not_disturb_each_other(entropy: Callable[[int], bytes]) -> None:
    limiter = PrefixLimiter(1, 3, entropy=entropy)
    flooding, honest = b"\xc0\x00\x02", b"\xc6\x33\x64"
    for _ in range(1000):
        limiter.allow(flooding, 0)
    assert limiter.allow(honest, 0)


def test_a_cost_is_taken_whole_or_not_at_all(entropy: Callable[[int], bytes]) -> None:
    limiter = PrefixLimiter(1, 8, entropy=entropy)
    assert limiter.allow(b"abc", 0, cost=6)
    assert not limiter.allow(b"abc", 0, cost=3)
    assert limiter.allow(b"abc", 0, cost=2)
    assert not limiter.allow(b"abc", 0)


def test_a_rate_of_zero_is_no_limit(entropy: Callable[[int], bytes]) -> None:
    limiter = PrefixLimiter(0, 0, entropy=entropy)
    assert all(limiter.allow(b"abc", 0) for _ in range(100_000))


def test_forged_prefixes_share_the_slots_evenly(
    entropy: Callable[[int], bytes], rng: random.Random
) -> None:
    # Were one slot favoured, a forger could exhaust the budget of whoever lives there.
    limiter = PrefixLimiter(1, 1, entropy=entropy, slots_log2=8)
    prefixes = {rng.randbytes(3) for _ in range(20_000)}
    served = sum(limiter.allow(prefix, 0) for prefix in prefixes)
    assert served == 256, "one event a slot, and every slot is hit"


def test_neighbouring_prefixes_fall_into_different_slots(
    entropy: Callable[[int], bytes],
) -> None:
    limiter = PrefixLimiter(1, 1, entropy=entropy)
    served = sum(limiter.allow(bytes((192, 0, n)), 0) for n in range(256))
    assert served > 200


def test_what_belongs_to_one_prefix() -> None:
    assert prefix_of(bytes((192, 0, 2, 1))) == prefix_of(bytes((192, 0, 2, 254)))
    assert prefix_of(bytes((192, 0, 2, 1))) != prefix_of(bytes((192, 0, 3, 1)))
    site = bytes.fromhex("20010db80001")
    assert prefix_of(site + bytes(10)) == prefix_of(site + b"\xff" * 10) == site


# Budgets of octets. -------------------------------------------------------------------------------


def test_a_rested_prefix_is_given_the_burst_and_then_what_it_brings(
    entropy: Callable[[int], bytes],
) -> None:
    budget = ByteBudget(1000, 10, entropy=entropy)
    now = 7 * SECOND
    assert [budget.spend(b"abc", 100, now) for _ in range(12)] == [True] * 10 + [False] * 2
    budget.credit(b"abc", 150, now)
    assert budget.spend(b"abc", 100, now)
    assert not budget.spend(b"abc", 51, now)
    assert budget.spend(b"abc", 50, now)
    assert not budget.spend(b"abc", 10, now + SECOND - 1)
    assert budget.spend(b"abc", 10, now + SECOND)
    assert not budget.spend(b"abc", 1, now + SECOND)


def test_a_flood_for_short_answers_does_not_starve_a_longer_one(
    entropy: Callable[[int], bytes], rng: random.Random
) -> None:
    def answered(least: int) -> int:
        """Of 100 requests for a challenge among 100,000 for a Binding answer, how many."""
        budget = ByteBudget(16384, 0, entropy=entropy, least=least)
        found = 0
        for number in range(100_000):
            if number % 1000 == rng.randrange(1000):
                found += budget.exchange(b"abc", 28, 100, 0)
            budget.exchange(b"abc", 20, 32, 0)
        return found

    assert answered(0) < 20, "those that came while there was a burst"
    assert answered(128) > 40


def test_credit_that_is_not_used_ends_at_the_burst(entropy: Callable[[int], bytes]) -> None:
    budget = ByteBudget(1000, 10, entropy=entropy)
    for _ in range(1000):
        budget.credit(b"abc", 1 << 16, 0)
    assert budget.spend(b"abc", 1000, 3600 * SECOND)
    assert not budget.spend(b"abc", 1, 3600 * SECOND)


def test_an_exchange_is_made_at_once(entropy: Callable[[int], bytes]) -> None:
    budget = ByteBudget(100, 0, entropy=entropy)
    assert budget.exchange(b"abc", 5000, 5100, 0), "what came in pays, though it is over the burst"
    assert not budget.exchange(b"abc", 20, 32, 0)
    assert budget.exchange(b"abc", 20, 32, 0), "what came with the one before is not lost"
    assert budget.spend(b"abc", 8, 0)
    assert not budget.spend(b"abc", 1, 0)


@pytest.mark.parametrize("refill", [0, 0.25, 1, 1024, 3e8, 1e12])
@pytest.mark.parametrize("burst", [1, 100, 16384, 1 << 30])
@pytest.mark.parametrize("run", range(4))
def test_the_law_of_octets(
    burst: int,
    refill: float,
    run: int,
    entropy: Callable[[int], bytes],
    rng: random.Random,
) -> None:
    budget = ByteBudget(burst, refill, entropy=entropy, least=run % 2 * 128)
    # The excess of any window is what was spent, less what was credited and refilled, against its
    # lowest value before.  Exact numbers: an octet too many must show.
    rate, now, excess, lowest = Fraction(refill), rng.randrange(1 << 55), Fraction(0), Fraction(0)
    steps, sizes = (0, 1, 1000, SECOND // 100, SECOND, 50 * SECOND), (1, 20, 32, 100, 1500, 65507)
    spent = 0
    for _ in range(3000):
        step = rng.choice(steps) if rng.random() < 0.3 else 0
        now += step
        excess -= rate * step / SECOND
        lowest = min(lowest, excess)
        came, goes = rng.choice(sizes), rng.choice(sizes)
        match rng.randrange(3):
            case 0:
                budget.credit(b"abc", came, now)
                goes = 0
            case 1:
                came, goes = 0, goes * budget.spend(b"abc", goes, now)
            case 2:
                goes *= budget.exchange(b"abc", came, goes, now)
        excess += goes - came
        assert excess - lowest <= burst
        lowest = min(lowest, excess)
        spent += goes
    assert spent


def test_a_budget_refuses_no_more_than_it_must(
    entropy: Callable[[int], bytes], rng: random.Random
) -> None:
    budget = ByteBudget(500, 0, entropy=entropy)
    level = 500
    for _ in range(5000):
        came, goes = rng.randrange(120), rng.randrange(120)
        may = level + came - goes >= 0
        assert budget.exchange(b"abc", came, goes, 0) is may
        level = min(500, level + came - goes if may else level + came)


def test_who_repeats_a_request_gets_an_answer_though_the_burst_is_spent(
    entropy: Callable[[int], bytes],
) -> None:
    budget = ByteBudget(16384, 0, entropy=entropy)
    while budget.spend(b"abc", 100, 0):
        pass
    # RFC 8489 section 6.2.1: a request is sent seven times.  28 octets draw a challenge of 100.
    assert any(budget.exchange(b"abc", 28, 100, 0) for _ in range(7))


def test_prefixes_have_budgets_of_their_own_and_memory_is_constant(
    entropy: Callable[[int], bytes], rng: random.Random
) -> None:
    budget = ByteBudget(100, 0, entropy=entropy, slots_log2=8)
    assert not budget.spend(b"\xc0\x00\x02", 101, 0)
    assert budget.spend(b"\xc0\x00\x02", 100, 0)
    assert budget.spend(b"\xc6\x33\x64", 100, 0)
    served = sum(budget.spend(rng.randbytes(6), 100, 0) for _ in range(20_000))
    assert 250 <= served <= 254, "every slot is hit, and none gives twice"


def test_a_burst_of_zero_is_no_limit(entropy: Callable[[int], bytes]) -> None:
    budget = ByteBudget(0, 1024, entropy=entropy)
    budget.credit(b"abc", 5, 0)
    assert all(budget.spend(b"abc", 65507, 0) for _ in range(10_000))
    assert all(budget.exchange(b"abc", 0, 65507, 0) for _ in range(10_000))
