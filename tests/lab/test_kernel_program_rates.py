"""Rates in the kernel: what is over them is dropped there, whoever else takes from the same bucket.

A packet or a draw costs a thousand seconds here, so that the time that a test takes is nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from stun.sansio import SECOND
from tests.lab.kernel_rig import Leg, Relay, arriving, datagram, relays
from turn.dataplane.kernel.layouts import Count
from turn.dataplane.kernel.libbpf import TC_DROP

pytestmark = pytest.mark.lab

COST = 1000 * SECOND
THOUSAND = bytes(1000)
"""A packet that costs as much at one octet a second."""


@pytest.fixture
def relay() -> Iterator[Relay]:
    with relays() as relay:
        yield relay


def forwards(relay: Relay, leg: Leg, times: int = 1) -> None:
    for _ in range(times):
        relay.forwards(arriving(datagram(leg, THOUSAND)))


def drops(relay: Relay, leg: Leg, payload: bytes = THOUSAND, times: int = 1) -> None:
    for _ in range(times):
        verdict, _, counts = relay.counted(arriving(datagram(leg, payload)))
        assert (verdict, counts) == (TC_DROP, {Count.OVER_RATE: 1})


def test_what_is_over_the_rate_is_dropped_and_counted(relay: Relay) -> None:
    for number, leg in enumerate(relay.legs.values()):
        if number == 7:
            break  # there are seven buckets
        relay.program.set_bucket(number + 1, 1, 0, 3 * COST)
        relay.set(leg, buckets=(number + 1, 0))
        # Room for three, and one more goes into debt.
        forwards(relay, leg, 4)
        drops(relay, leg, times=3)
        assert relay.program.usage(leg.usage) == (4, 4000, 3)


def test_a_bucket_may_be_the_second_of_a_path(relay: Relay) -> None:
    leg = relay.leg("to peers")
    relay.program.set_bucket(1, 1, 0, 3 * COST)
    relay.set(leg, buckets=(0, 1))
    forwards(relay, leg, 4)
    drops(relay, leg)


def test_in_debt_not_even_an_empty_packet_passes(relay: Relay) -> None:
    leg = relay.leg("to peers")
    relay.program.set_bucket(1, 1, 0, 0)
    relay.set(leg, buckets=(1, 0))
    forwards(relay, leg)
    drops(relay, leg, b"")


def test_both_directions_and_the_server_share_a_bucket(relay: Relay) -> None:
    to_peers, to_clients = relay.leg("to peers"), relay.leg("to clients")
    relay.program.set_bucket(1, 1, 0, 3 * COST)
    for leg in (to_peers, to_clients):
        relay.set(leg, buckets=(1, 0))
    forwards(relay, to_peers)
    assert relay.program.draw(1, 1000, 1)
    forwards(relay, to_clients)
    assert relay.program.draw(1, 1000, 1)
    assert not relay.program.draw(1, 0, 0)
    drops(relay, to_peers)
    drops(relay, to_clients)


def test_packets_have_a_rate_of_their_own(relay: Relay) -> None:
    leg = relay.leg("to clients")
    relay.program.set_bucket(1, 0, 1, 3 * COST)
    relay.set(leg, buckets=(1, 0))
    for _ in range(2):
        assert relay.program.draw(1, 1 << 40, 1000)
    forwards(relay, leg)
    assert relay.program.draw(1, 0, 1000)
    assert not relay.program.draw(1, 0, 0)
    drops(relay, leg)


def test_who_is_refused_by_one_bucket_takes_nothing_of_the_other(relay: Relay) -> None:
    leg = relay.leg("to peers")
    relay.program.set_bucket(1, 1, 1, 5 * COST)
    relay.program.set_bucket(2, 1, 0, 0)
    for number in (1, 2):
        assert relay.program.draw(number, 1000, 1000)
    before = relay.program.rate(1)
    relay.set(leg, buckets=(1, 2))
    drops(relay, leg, times=50)
    assert relay.program.rate(1) == before
    relay.set(leg, buckets=(1, 0))
    forwards(relay, leg, 5)
    drops(relay, leg)


def test_each_bucket_is_paid_for_each_packet(relay: Relay) -> None:
    leg = relay.leg("to clients")
    for number in (1, 2):
        relay.program.set_bucket(number, 1, 1, 9 * COST)
    relay.set(leg, buckets=(1, 2))
    forwards(relay, leg, 3)
    for number in (1, 2):
        rate = relay.program.rate(number)
        # Three thousand octets and three packets, from the same moment on.
        assert rate.octets_at - rate.packets_at == 3000 * SECOND - 3 * SECOND


def test_a_bucket_is_never_fuller_than_full(relay: Relay) -> None:
    # It was full already ten thousand seconds before.
    before = time.monotonic_ns()
    relay.program.set_bucket(1, 1, 1, 2 * COST, now=max(before - 10 * COST, 0))
    assert relay.program.draw(1, 1000, 1000)
    rate = relay.program.rate(1)
    assert rate.octets_at == rate.packets_at
    assert rate.octets_at >= before + COST


def test_a_debt_is_paid_by_time(relay: Relay) -> None:
    leg = relay.leg("to peers")
    relay.program.set_bucket(1, 20_000, 0, 0)
    relay.set(leg, buckets=(1, 0))
    before = time.monotonic_ns()
    forwards(relay, leg)
    while not relay.program.draw(1, 0, 0):
        time.sleep(0.001)
    # A thousand octets, at twenty thousand a second.
    assert time.monotonic_ns() - before >= SECOND // 20


def test_other_rates_take_hold_at_once(relay: Relay) -> None:
    leg = relay.leg("to peers")
    relay.program.set_bucket(1, 1, 0, COST)
    relay.set(leg, buckets=(1, 0))
    forwards(relay, leg, 2)
    drops(relay, leg)
    # What is owed takes a millionth of the time at a million times the rate, and without a limit
    # nothing is owed.
    relay.program.set_bucket(1, 10**6, 0, COST)
    owed = relay.program.rate(1)
    assert owed.octets_at - time.monotonic_ns() <= COST + SECOND // 1000
    relay.program.set_bucket(1, 0, 0, 0)
    forwards(relay, leg)
    relay.program.set_bucket(1, 1, 0, COST)
    forwards(relay, leg, 2)
    drops(relay, leg)
