"""Ports and the pattern behind them."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest

from nattype.allocation import ENOUGH, Pattern, pattern, pattern_of, samples
from nattype.model import Allocation
from nattype.observations import Asked
from stun.sansio import Address

SERVER = Address("192.31.196.10", 3478)


def observed(external: list[int], first_local: int = 50000) -> list[tuple[int, int]]:
    return [(first_local + 7 * n, port) for n, port in enumerate(external)]


@pytest.mark.parametrize("delta", [1, 2, 3, 8, -1, -2])
def test_a_quiet_counter(delta: int) -> None:
    ports = [40000 + n * delta for n in range(9)]
    assert pattern(observed(ports)) == Pattern(Allocation.SEQUENTIAL, delta)


@pytest.mark.parametrize("delta", [1, 2, 4])
def test_a_counter_that_other_hosts_use_too(delta: int, rng: random.Random) -> None:
    steps = [1] * 8 + [2, 2, 3]
    rng.shuffle(steps)
    ports = [30000 + delta * taken for taken in accumulate(steps)]
    found = pattern(observed(ports))
    assert found == Pattern(Allocation.SEQUENTIAL, delta)


def test_a_counter_that_wraps() -> None:
    ports = [65533, 65534, 65535, 1024, 1025, 1026, 1027, 1028, 1029]
    assert pattern(observed(ports)) == Pattern(Allocation.SEQUENTIAL, 1)


def test_a_counter_whose_packets_overtook_each_other() -> None:
    ports = [40000, 40002, 40001, 40004, 40003, 40006, 40005, 40008, 40007, 40010]
    assert pattern(observed(ports)) == Pattern(Allocation.SEQUENTIAL, 1)


def test_a_counter_whose_order_got_lost_is_not_called_random() -> None:
    ports = [32923, 32927, 32926, 32924, 32929, 32930, 32931]
    assert pattern(observed(ports)) == Pattern()


def test_a_random_choice_from_a_small_block_is_random() -> None:
    ports = [20000, 20900, 20100, 20700, 20300, 20500]
    assert pattern(observed(ports)) == Pattern(Allocation.RANDOM)


def test_retransmissions_leave_gaps_that_other_ports_fill() -> None:
    asked = [
        Asked(
            Address("192.168.1.2", 50000 + n),
            SERVER,
            sends=2 if n in (1, 3, 5) else 1,
            mapped=Address("192.52.193.2", 40000 + n),
        )
        for n in range(9)
    ]
    assert [external - 40000 for _, external in samples(asked)] == [0, 2, 4, 6, 7, 8]
    assert pattern_of(asked) == Pattern(Allocation.SEQUENTIAL, 1)


def test_preserved_ports() -> None:
    assert pattern([(p, p) for p in (40000, 51234, 33333, 60001, 45678)]) == Pattern(
        Allocation.PRESERVED, 0
    )


def test_preserved_with_one_collision() -> None:
    ports = [(p, p) for p in (40000, 51234, 33333, 60001, 45678)] + [(50000, 1024)]
    assert pattern(ports).allocation is Allocation.PRESERVED


def test_local_ports_that_are_a_sequence_themselves_are_preserved_first() -> None:
    assert pattern([(40000 + n, 40000 + n) for n in range(8)]).allocation is Allocation.PRESERVED


def test_random_ports_are_never_a_sequence(rng: random.Random) -> None:
    for _ in range(2000):
        ports = [rng.randrange(1024, 65536) for _ in range(9)]
        assert pattern(observed(ports)).allocation is Allocation.RANDOM


def test_random_ports_of_a_small_block_are_seldom_a_sequence(rng: random.Random) -> None:
    mistaken = sum(
        pattern(observed(rng.sample(range(20000, 20512), 12))).allocation is Allocation.SEQUENTIAL
        for _ in range(2000)
    )
    assert mistaken < 10


def test_too_few_samples_say_nothing() -> None:
    assert pattern(observed([40000 + n for n in range(ENOUGH - 1)])) == Pattern()


def test_predictions() -> None:
    assert Pattern(Allocation.PRESERVED, 0).predict(50001, 0) == 50001
    assert Pattern(Allocation.SEQUENTIAL, 2).predict(50001, 40000, ahead=3) == 40006
    assert Pattern(Allocation.SEQUENTIAL, 2).predict(50001, 65535) is None
    assert Pattern(Allocation.RANDOM).predict(50001, 40000) is None


def test_a_mapping_used_again_is_one_sample() -> None:
    once = Asked(Address("192.168.1.2", 5000), SERVER, sends=1, mapped=Address("192.52.193.2", 9))
    unanswered = Asked(Address("192.168.1.2", 5001), SERVER, sends=9)
    assert samples([once, once, unanswered]) == [(5000, 9)]
