"""Ports of relayed transport addresses: none twice, no order, pairs, and those of somebody else."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stun.errors import UsageError
from stun.sansio import SECOND
from turn.server.ports import REST, PortRange

A, B = "192.0.2.1", "2001:db8::1"


@pytest.fixture
def ports(rng: random.Random) -> PortRange:
    return PortRange(49152, 65535, rng.randbytes)


def drawn(ports: PortRange, host: str = A, now: int = 0) -> list[int]:
    result = []
    while (port := ports.pick(host, now)) is not None:
        result.append(port)
    return result


@pytest.mark.parametrize(
    ("low", "high"), [(49152, 65535), (1, 65535), (5, 5), (6, 6), (7, 10), (65535, 65535), (2, 9)]
)
def test_every_port_of_the_range_is_given_once(low: int, high: int, rng: random.Random) -> None:
    ports = PortRange(low, high, rng.randbytes)
    assert ports.available(A) == high - low + 1
    assert sorted(drawn(ports)) == list(range(low, high + 1))
    assert ports.available(A) == 0
    assert ports.pick_even(A, 0) is None
    assert ports.pick_pair(A, 0) is None


@pytest.mark.parametrize(
    ("low", "high"), [(0, 9), (9, 8), (1, 65536), (-1, 5), (70000, 70001), (65535, 1)]
)
def test_what_is_no_range_is_refused(low: int, high: int, rng: random.Random) -> None:
    with pytest.raises(UsageError, match=f"{low}-{high} is not a range"):
        PortRange(low, high, rng.randbytes)


def test_each_host_has_its_ports(ports: PortRange) -> None:
    first = set(drawn(ports))
    assert ports.available(B) == 16384
    assert set(drawn(ports, B)) == first


def test_the_order_cannot_be_foreseen(ports: PortRange, rng: random.Random) -> None:
    order = drawn(ports)
    steps = Counter(b - a for a, b in pairwise(order))
    assert max(steps.values()) < 20, "a step that returns is a pattern"
    again = drawn(PortRange(49152, 65535, rng.randbytes))
    assert sum(a == b for a, b in zip(order, again, strict=True)) < 20


def test_every_port_is_as_likely_as_any_other(rng: random.Random) -> None:
    ports = PortRange(1000, 1009, rng.randbytes)
    counts: Counter[int] = Counter()
    for _ in range(10_000):
        port = ports.pick(A, 0)
        assert port is not None
        counts[port] += 1
        ports.give_back(A, port)
    # Six standard deviations of a binomial distribution (10,000 times 1 in 10): 180.
    assert all(820 < counts[port] < 1180 for port in range(1000, 1010)), counts


def test_pairs_begin_with_an_even_port_and_are_taken_whole(rng: random.Random) -> None:
    ports = PortRange(1001, 1008, rng.randbytes)  # 1001 and 1008 are nobody's partners
    pairs = [ports.pick_pair(A, 0) for _ in range(4)]
    assert pairs[3] is None
    assert sorted(filter(None, pairs)) == [(1002, 1003), (1004, 1005), (1006, 1007)]
    assert sorted(drawn(ports)) == [1001, 1008]


def test_a_pair_is_found_in_a_range_that_is_nearly_full(
    ports: PortRange, rng: random.Random
) -> None:
    taken = drawn(ports)
    for port in taken:
        if port % 4 in {0, 3}:  # half of them, and no pair among them
            ports.give_back(A, port)
    assert ports.available(A) == 8192
    assert ports.pick_pair(A, 0) is None
    lone = rng.choice([port for port in taken if port % 4 == 1])
    ports.give_back(A, lone)
    assert ports.pick_pair(A, 0) == (lone - 1, lone)
    assert ports.pick_pair(A, 0) is None


def test_half_of_a_pair_can_be_given_back(rng: random.Random) -> None:
    ports = PortRange(1000, 1001, rng.randbytes)
    assert ports.pick_pair(A, 0) == (1000, 1001)
    ports.give_back(A, 1001)
    assert ports.pick_pair(A, 0) is None
    assert ports.pick_even(A, 0) is None
    assert ports.pick(A, 0) == 1001
    ports.give_back(A, 1000)
    ports.give_back(A, 1001)
    assert ports.pick_pair(A, 0) == (1000, 1001)


def test_an_even_port_is_even(ports: PortRange) -> None:
    picked = [ports.pick_even(A, 0) for _ in range(8193)]
    assert picked[8192] is None
    evens = {port for port in picked if port is not None}
    assert evens == set(range(49152, 65536, 2))
    assert ports.pick(A, 0) is not None


def test_a_refused_port_rests(rng: random.Random) -> None:
    ports = PortRange(1000, 1001, rng.randbytes)
    now = 5 * SECOND
    assert ports.pick_pair(A, now) == (1000, 1001)
    ports.refused(A, 1000, now)
    ports.refused(A, 1001, now + SECOND)
    ports.give_back(A, 1000)  # it is not taken but rests
    assert ports.pick(A, now + REST - 1) is None
    assert ports.pick(A, now + REST) == 1000
    assert ports.pick(A, now + REST) is None
    assert ports.pick(A, now + REST + SECOND) == 1001
    ports.give_back(A, 1000)
    ports.give_back(A, 1001)
    assert ports.pick_pair(A, now + REST + SECOND) == (1000, 1001)


def test_a_port_can_be_taken_by_its_number(rng: random.Random) -> None:
    ports = PortRange(1000, 1001, rng.randbytes)
    assert ports.take(A, 1000, 0)
    assert not ports.take(A, 1000, 0)
    assert not ports.take(A, 999, 0)
    assert not ports.take(A, 1002, 0)
    assert drawn(ports) == [1001]


def test_what_was_not_taken_is_not_given_back_twice(rng: random.Random) -> None:
    ports = PortRange(1000, 1003, rng.randbytes)
    ports.give_back(B, 1000)
    ports.refused(B, 1000, 0)
    assert ports.pick(A, 0) is not None
    for port in (0, 999, 1000, 1000, 1001, 1002, 1003, 1004, 65535, 70000):
        ports.give_back(A, port)
        ports.refused(A, port, 0)
    assert sorted(drawn(ports)) == [1000, 1001, 1002, 1003]
    assert sorted(drawn(ports, B)) == [1000, 1001, 1002, 1003]


class Model(RuleBasedStateMachine):
    """Against a set: a port is free, taken, or rests."""

    @initialize(low=st.integers(1, 9), size=st.integers(0, 12), seed=st.integers(0, 1 << 32))
    def begin(self, low: int, size: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ports = PortRange(low, low + size, self.rng.randbytes)
        self.free = set(range(low, low + size + 1))
        self.taken: list[int] = []
        self.resting: dict[int, int] = {}
        self.now = 0

    def wake(self) -> None:
        for port, until in list(self.resting.items()):
            if until <= self.now:
                del self.resting[port]
                self.free.add(port)

    def took(self, *ports: int) -> None:
        assert set(ports) <= self.free
        self.free -= set(ports)
        self.taken += ports

    @rule()
    def pick(self) -> None:
        self.wake()
        port = self.ports.pick(A, self.now)
        assert (port is None) is not bool(self.free)
        self.took(*filter(None, (port,)))

    @rule()
    def pick_even(self) -> None:
        self.wake()
        port = self.ports.pick_even(A, self.now)
        assert (port is None) is not any(port % 2 == 0 for port in self.free)
        assert port is None or port % 2 == 0
        self.took(*filter(None, (port,)))

    @rule()
    def pick_pair(self) -> None:
        self.wake()
        pair = self.ports.pick_pair(A, self.now)
        there = any(port % 2 == 0 and port + 1 in self.free for port in self.free)
        assert (pair is None) is not there
        if pair is not None:
            assert pair[0] % 2 == 0
            assert pair[1] == pair[0] + 1
            self.took(*pair)

    @rule()
    def give_back(self) -> None:
        if self.taken:
            port = self.taken.pop(self.rng.randrange(len(self.taken)))
            self.free.add(port)
            self.ports.give_back(A, port)

    @rule()
    def refuse(self) -> None:
        if self.taken:
            port = self.taken.pop()
            self.resting[port] = self.now + REST
            self.ports.refused(A, port, self.now)

    @rule(number=st.integers(0, 25))
    def take(self, number: int) -> None:
        self.wake()
        there = number in self.free
        assert self.ports.take(A, number, self.now) is there
        if there:
            self.took(number)

    @rule(number=st.integers(0, 25))
    def give_back_what_is_not_taken(self, number: int) -> None:
        if number not in self.taken:
            self.ports.give_back(A, number)

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @invariant()
    def the_number_is_right(self) -> None:
        if not any(until <= self.now for until in self.resting.values()):
            assert self.ports.available(A) == len(self.free)


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestModel = Model.TestCase
