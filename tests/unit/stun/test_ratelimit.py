"""Budgets: what an honest prefix has, what a flooding one does not take from others, and memory."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from stun.ratelimit import PrefixLimiter, prefix_of
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
