"""Rates that two share: the law holds over both, and nobody gains by moving between them."""

from __future__ import annotations

import errno
import math
import random

import pytest

from stun.sansio import MILLISECOND, SECOND, Address
from tests.unit.turn.kernel_fakes import Clock, FakeNetwork, FakeProgram, key_to_peer
from turn.dataplane.base import Route, RouteKey
from turn.dataplane.kernel.layouts import PathKey
from turn.dataplane.kernel.routes import KernelRoutes
from turn.dataplane.kernel.sharing import Account, Accounts, Indices
from turn.meter import LEASE_TIME, SMALLEST_LEASE, Bucket, Meter

SERVER, CLIENT = Address("192.0.2.1", 3478), Address("198.51.100.7", 4000)
HOUR = 3600 * SECOND


class Scene:
    """Allocations whose packets go through the program or through this process."""

    def __init__(self, *, buckets: int = 100) -> None:
        self.clock = Clock()
        self.program = FakeProgram(self.clock, buckets=buckets)
        self.routes = KernelRoutes(self.program, FakeNetwork(), clock=self.clock)
        self.meters: list[Meter] = []

    def allocate(self, *buckets: Bucket) -> Meter:
        """Return the meter of an allocation with a channel that the kernel knows."""
        meter = Meter(*buckets)
        self.meters.append(meter)
        self.install(meter)
        return meter

    def route(self, meter: Meter) -> Route:
        number = self.meters.index(meter)
        relay = Address("192.0.2.1", 50000 + number)
        key = RouteKey(CLIENT, SERVER, 0x4000 + number)
        return Route(key, relay, Address("203.0.113.9", 5000), meter)

    def install(self, meter: Meter) -> None:
        self.routes.install(self.route(meter), self.clock.now + HOUR)

    def remove(self, meter: Meter) -> None:
        self.routes.remove(self.route(meter).key)

    def by_kernel(self, meter: Meter, octets: int) -> bool:
        """Have a packet come that the kernel knows; what it does not, this process relays."""
        key = self.key(meter)
        if key not in self.program.paths:
            return self.by_process(meter, octets)
        return self.program.packet(key, octets) is not None

    def by_process(self, meter: Meter, octets: int) -> bool:
        """Have one come that the kernel passes up: a fragment, say."""
        return meter.take(octets, self.clock.now)

    def key(self, meter: Meter) -> PathKey:
        route = self.route(meter)
        return key_to_peer(SERVER, CLIENT, route.key.channel)


def lease(rate: int, least: float) -> float:
    return max(rate * LEASE_TIME / SECOND, least) if rate else 0.0


def excess(passed: list[tuple[int, int]], rate: float) -> float:
    """Return by how much any window of any length holds more than the rate alone gives."""
    lowest = total = most = 0.0
    before = passed[0][0]
    for now, amount in passed:
        total -= rate * (now - before) / SECOND
        before = now
        lowest = min(lowest, total)
        total += amount
        most = max(most, total - lowest)
    return most


@pytest.mark.parametrize("octet_rate", [0, 1000, 20_000, 1_000_000, 12_500_000])
@pytest.mark.parametrize("packet_rate", [0, 1, 50, 25_000])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_law_holds_over_both(
    octet_rate: int, packet_rate: int, share: float, rng: random.Random
) -> None:
    scene, bucket = Scene(), Bucket(octet_rate, packet_rate)
    if not octet_rate and not packet_rate:
        return
    meters = [scene.allocate(bucket) for _ in range(3)]
    passed: list[tuple[int, int]] = []
    for _ in range(1000):
        for _ in range(rng.randrange(30)):
            octets, meter = rng.randint(1, 1400), rng.choice(meters)
            relay = scene.by_kernel if rng.random() < share else scene.by_process
            if relay(meter, octets):
                passed.append((scene.clock.now, octets))
        scene.clock.now += rng.choice((0, MILLISECOND, 10 * MILLISECOND, 50 * MILLISECOND))
    assert passed
    # What each held of a lease before, what the bucket keeps, the draw that found nothing owed.
    holders = len(meters) + 1.5 + 1.5
    if octet_rate:
        most = octet_rate + 1400 + holders * min(lease(octet_rate, SMALLEST_LEASE), octet_rate)
        # The program rounds each packet's time down to a nanosecond.
        assert excess(passed, octet_rate) <= most + len(passed) * octet_rate / SECOND
    if packet_rate:
        most = packet_rate + 1 + holders * math.ceil(lease(packet_rate, 1))
        assert excess([(now, 1) for now, _ in passed], packet_rate) <= most + 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_all_of_the_rate_is_to_be_had(share: float, rng: random.Random) -> None:
    rate = 1_000_000
    scene, bucket = Scene(), Bucket(rate, 0)
    meters = [scene.allocate(bucket) for _ in range(3)]
    begin, passed = scene.clock.now, 0
    while scene.clock.now < begin + 20 * SECOND:
        for _ in range(20):
            relay = scene.by_kernel if rng.random() < share else scene.by_process
            passed += 1000 * relay(rng.choice(meters), 1000)
        scene.clock.now += 5 * MILLISECOND
    assert 0.97 * 21 * rate <= passed <= 1.01 * 21 * rate


def test_neither_starves_the_other(rng: random.Random) -> None:
    scene, bucket = Scene(), Bucket(1_000_000, 0)
    kernel, process = scene.allocate(bucket), scene.allocate(bucket)
    passed = [0, 0]
    for _ in range(20_000):
        if rng.random() < 0.5:
            passed[0] += scene.by_kernel(kernel, 1000)
        else:
            passed[1] += scene.by_process(process, 1000)
        scene.clock.now += MILLISECOND // 2
    assert min(passed) > 0.15 * sum(passed), passed


def test_a_route_brings_no_second_burst() -> None:
    """The burst that was spent before the first route is spent, and the other way round."""
    scene, bucket = Scene(), Bucket(1_000_000, 0)
    meter = Meter(bucket)
    scene.meters.append(meter)
    total = 0
    for _ in range(20):
        for relay in (scene.by_process, scene.by_kernel):
            if relay == scene.by_kernel:
                scene.install(meter)
            else:
                scene.remove(meter)
            for _ in range(1000):
                total += 700 * relay(meter, 700)
    assert 0.95 * 1_000_000 <= total <= 1_000_000 + 700 + 4 * SMALLEST_LEASE


@pytest.mark.parametrize("spent", [0, 300_000, 999_000])
def test_what_is_left_of_the_burst_comes_along(spent: int) -> None:
    scene, bucket = Scene(), Bucket(1_000_000, 0)
    meter = Meter(bucket)
    scene.meters.append(meter)
    for _ in range(spent // 1000):
        assert scene.by_process(meter, 1000)
    scene.install(meter)
    in_kernel = sum(1000 * scene.by_kernel(meter, 1000) for _ in range(2000))
    assert abs(in_kernel - (1_000_000 - spent)) <= 2 * SMALLEST_LEASE
    scene.clock.now += SECOND // 2
    scene.remove(meter)
    back = sum(1000 * scene.by_process(meter, 1000) for _ in range(2000))
    assert abs(back - 500_000) <= 2 * SMALLEST_LEASE


def test_two_rates_bind_each_for_itself() -> None:
    scene = Scene()
    user, client = Bucket(1_000_000, 0), Bucket(0, 100)
    meter, other = scene.allocate(user, client), scene.allocate(user, Bucket(0, 100))
    for one in (meter, other):
        path = scene.program.paths[scene.key(one)]
        assert len({*path.buckets} - {0}) == 2
    assert sum(scene.by_kernel(meter, 10) for _ in range(1000)) == 101
    # What the client's rate refused was not charged to the user.
    assert sum(scene.by_kernel(other, 10) for _ in range(1000)) == 101


def test_without_limits_no_bucket_is_used() -> None:
    scene = Scene(buckets=1)
    meter = scene.allocate(Bucket(0, 0), Bucket(0, 0))
    assert scene.program.paths[scene.key(meter)].buckets == (0, 0)
    assert scene.by_kernel(meter, 65000)
    assert all(scene.by_process(meter, 65000) for _ in range(10_000))


# Other rates. -------------------------------------------------------------------------------------


def test_a_lower_rate_holds_for_both_at_once() -> None:
    scene, bucket = Scene(), Bucket(1_000_000, 10_000)
    meter = scene.allocate(bucket)
    bucket.change(10_000, 10)
    passed = sum(scene.by_kernel(meter, 100) + scene.by_process(meter, 100) for _ in range(1000))
    assert passed <= 10 + 1 + 2
    scene.clock.now += 10 * SECOND
    bucket.change(1_000_000, 0)
    scene.clock.now += SECOND
    assert sum(scene.by_kernel(meter, 100) for _ in range(20_000)) >= 9_900


def test_a_limit_where_none_was_takes_hold_and_one_that_goes_is_gone() -> None:
    scene, bucket = Scene(), Bucket(0, 0)
    meter = scene.allocate(bucket)
    assert scene.by_kernel(meter, 1000)
    bucket.change(0, 100)
    assert scene.program.paths[scene.key(meter)].buckets != (0, 0)
    assert sum(scene.by_kernel(meter, 10) for _ in range(1000)) == 101
    bucket.change(0, 0)
    assert all(scene.by_kernel(meter, 10) for _ in range(1000))
    assert all(scene.by_process(meter, 10) for _ in range(1000))
    scene.remove(meter)
    assert bucket.source is None


def test_when_the_kernel_has_no_bucket_left_the_limit_holds_here() -> None:
    scene = Scene(buckets=2)  # one, for 0 is none
    first, second, free = Bucket(0, 50), Bucket(0, 50), Bucket(0, 0)
    held, left, unlimited = (scene.allocate(bucket) for bucket in (first, second, free))
    keys = [scene.key(meter) for meter in (held, left, unlimited)]
    assert [key in scene.program.paths for key in keys] == [True, False, True]
    assert sum(scene.by_kernel(left, 10) for _ in range(200)) == 50
    free.change(0, 50)  # its routes go back to the sockets, with a full bucket
    assert keys[2] not in scene.program.paths
    assert sum(scene.by_kernel(unlimited, 10) for _ in range(200)) == 50
    # There is room again: with the next renewal they are in the kernel.
    scene.remove(held)
    scene.install(left)
    assert keys[1] in scene.program.paths
    scene.remove(left)
    # Without a limit again nothing is needed; and the next limit is learned of.
    free.change(0, 0)
    another = scene.allocate(free)
    assert scene.by_kernel(another, 10)
    free.change(0, 50)
    assert max(scene.program.paths[scene.key(another)].buckets) == 1
    assert sum(scene.by_kernel(another, 10) for _ in range(200)) == 51
    for meter in (unlimited, another):
        scene.remove(meter)
    assert all(bucket.source is None for bucket in (first, second, free))


# What the kernel refuses. -------------------------------------------------------------------------


def test_a_refusal_leaves_the_route_to_the_sockets() -> None:
    scene, bucket = Scene(), Bucket(0, 50)
    scene.program.refuses["set_bucket"] = errno.ENOMEM
    meter = scene.allocate(bucket)
    assert bucket.source is None
    assert scene.program.paths == {}
    assert (
        scene.routes.counters()[
            "routes left to the sockets: the kernel says: Cannot allocate memory"
        ]
        == 1
    )
    assert sum(scene.by_process(meter, 10) for _ in range(200)) == 50
    scene.program.refuses.clear()
    scene.install(meter)
    assert sum(scene.by_kernel(meter, 10) for _ in range(200)) <= 1


@pytest.mark.parametrize("call", ["set_bucket", "rate"])
def test_a_rate_that_cannot_be_read_back_gives_no_more_than_there_was(call: str) -> None:
    scene, bucket = Scene(buckets=3), Bucket(0, 50)
    meter = scene.allocate(bucket)
    scene.program.refuses[call] = errno.ENOMEM
    scene.remove(meter)
    scene.program.refuses.clear()
    assert bucket.source is None
    assert sum(scene.by_process(meter, 10) for _ in range(200)) <= 50
    assert scene.routes.counters()["refused by the kernel: Cannot allocate memory"] == 1
    # The number is not given to others, who would inherit its debt; the next one is.
    scene.install(meter)
    assert max(scene.program.paths[scene.key(meter)].buckets) == 2


def test_a_change_that_is_refused_ends_the_sharing() -> None:
    scene, bucket = Scene(), Bucket(0, 50)
    meter = scene.allocate(bucket)
    scene.program.refuses["set_bucket"] = errno.ENOMEM
    bucket.change(0, 10)
    assert scene.program.paths == {}
    assert bucket.source is None
    assert sum(scene.by_process(meter, 10) for _ in range(200)) <= 10


def test_a_draw_that_fails_is_as_one_that_was_refused() -> None:
    scene, bucket = Scene(), Bucket(0, 50)
    meter = scene.allocate(bucket)
    scene.program.refuses["draw"] = errno.ENOMEM
    assert not scene.by_process(meter, 10)
    scene.program.refuses.clear()
    scene.clock.now += SECOND
    assert scene.by_process(meter, 10)


# Numbers. -----------------------------------------------------------------------------------------


def test_numbers_are_given_out_once_and_the_oldest_first() -> None:
    indices = Indices(1, 4)
    assert [indices.take() for _ in range(4)] == [1, 2, 3, None]
    for number in (2, 1, 3):
        indices.give_back(number)
    assert [indices.take() for _ in range(4)] == [2, 1, 3, None]


def test_an_account_is_gone_with_its_last_user() -> None:
    clock = Clock()
    program = FakeProgram(clock)
    moved: list[Account] = []
    accounts = Accounts(program, clock, moved.append, lambda error: None)
    bucket = Bucket(1000, 0)
    account = accounts.join(bucket, "one")
    assert account is not None
    assert accounts.join(bucket, "two") is account
    accounts.leave(account, "one")
    assert (len(accounts), bucket.source) == (1, account)
    accounts.leave(account, "two")
    assert (len(accounts), bucket.source) == (0, None)
    assert program.buckets[1].octet_cost == 0
    assert moved == []
