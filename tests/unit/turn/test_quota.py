"""Quotas: who has how much, the codes and words of a refusal, rates shared, and no trace left."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from stun.errors import UsageError
from stun.registry import ErrorCode
from stun.sansio import SECOND
from turn.server.config import Limits
from turn.server.quota import KEPT, Quotas, client_of

HOST, OTHER, THIRD = "203.0.113.5", "203.0.113.6", "203.0.113.7"
NONE = Limits(
    allocations=0, allocations_per_user=0, allocations_per_client=0,
    octets_per_second_per_user=0, octets_per_second_per_client=0,
    packets_per_second_per_user=0, packets_per_second_per_client=0,
    connections=0, connections_per_client=0,
)  # fmt: skip


def test_a_user_has_a_quota() -> None:
    quotas = Quotas(replace(NONE, allocations_per_user=2))
    assert quotas.admit("ann", HOST) is None
    assert quotas.admit("ann", OTHER) is None
    refusal = quotas.admit("ann", THIRD)
    assert refusal is not None
    assert refusal.code == ErrorCode.ALLOCATION_QUOTA_REACHED == 486
    assert str(refusal) == "the user has all of its 2 allocations"
    assert quotas.admit("bob", HOST) is None
    quotas.release("ann", HOST)
    assert quotas.admit("ann", THIRD) is None


def test_a_client_address_has_a_quota() -> None:
    quotas = Quotas(replace(NONE, allocations_per_client=2))
    assert [quotas.admit(f"user{n}", HOST) for n in range(2)] == [None] * 2
    refusal = quotas.admit("user2", HOST)
    assert refusal == (486, "the client address has all of its 2 allocations")
    assert quotas.admit("user2", OTHER) is None


def test_the_server_has_a_capacity() -> None:
    quotas = Quotas(replace(NONE, allocations=2, allocations_per_user=1))
    assert quotas.admit("ann", HOST) is None
    assert quotas.admit("bob", HOST) is None
    refusal = quotas.admit("ann", HOST)
    assert refusal == (508, "this server has all of its 2 allocations")
    assert refusal.code == ErrorCode.INSUFFICIENT_CAPACITY
    assert quotas.allocations == 2


def test_what_is_refused_is_not_counted() -> None:
    quotas = Quotas(replace(NONE, allocations_per_user=1, allocations_per_client=1))
    assert quotas.admit("ann", HOST) is None
    for _ in range(1000):
        assert quotas.admit("ann", OTHER) is not None
        assert quotas.admit("bob", HOST) is not None
    assert quotas.allocations == 1
    assert quotas.accounts == 2
    assert quotas.of_users() == {"ann": 1}
    quotas.release("ann", HOST)
    assert quotas.admit("bob", OTHER) is None


def test_zero_is_no_limit() -> None:
    quotas = Quotas(NONE)
    assert [quotas.admit("ann", HOST) for _ in range(500)] == [None] * 500
    assert [quotas.connect(HOST) for _ in range(500)] == [None] * 500
    meter = quotas.meter("ann", HOST)
    assert all(meter.take(65507, 0) for _ in range(10_000))


def test_a_site_s_ipv6_addresses_are_one_client() -> None:
    quotas = Quotas(replace(NONE, allocations_per_client=2))
    assert quotas.admit("a", "2001:db8:1:2::1") is None
    assert quotas.admit("b", "2001:db8:1:2:ffff::9") is None
    assert quotas.admit("c", "2001:db8:1:2:3:4:5:6") is not None
    assert quotas.admit("c", "2001:db8:1:3::1") is None


def test_an_ipv4_client_is_the_same_behind_any_socket() -> None:
    assert client_of("::ffff:203.0.113.5") == client_of("203.0.113.5")
    assert client_of("203.0.113.5") != client_of("203.0.113.6")
    assert client_of("::ffff:203.0.113.5") != client_of("::ffff:203.0.113.6")
    assert client_of("fe80::1%eth0") == client_of("fe80::2")


def test_what_others_of_a_fleet_hold_counts() -> None:
    quotas = Quotas(replace(NONE, allocations_per_user=3))
    quotas.elsewhere({"ann": 2, "bob": 3})
    assert quotas.admit("ann", HOST) is None
    assert quotas.admit("ann", HOST) == (
        486, "the user has all of its 3 allocations, 2 of them on other servers",
    )  # fmt: skip
    assert quotas.admit("bob", HOST) is not None
    assert quotas.admit("eve", HOST) is None
    assert quotas.of_users() == {"ann": 1, "eve": 1}
    quotas.elsewhere({"bob": 2})
    assert quotas.admit("bob", HOST) is None
    assert quotas.admit("ann", HOST) is None


def test_connections_have_quotas_of_their_own() -> None:
    quotas = Quotas(
        replace(NONE, connections=3, connections_per_client=2, allocations_per_client=1)
    )
    assert quotas.admit("ann", HOST) is None
    assert [quotas.connect(HOST) for _ in range(2)] == [None] * 2
    assert quotas.connect(HOST) == (486, "the client address has all of its 2 connections")
    assert quotas.connect(OTHER) is None
    assert quotas.connect(THIRD) == (508, "this server has all of its 3 connections")
    quotas.disconnect(HOST)
    assert quotas.connect(THIRD) is None
    assert quotas.connections == 3


def test_what_is_not_there_cannot_be_released() -> None:
    quotas = Quotas(NONE)
    assert quotas.admit("ann", HOST) is None
    with pytest.raises(UsageError, match="'bob' has no allocation"):
        quotas.release("bob", HOST)
    with pytest.raises(UsageError, match="'ann' has no allocation from 203"):
        quotas.release("ann", OTHER)
    with pytest.raises(UsageError, match="'ann' has no allocation from 203"):
        quotas.meter("ann", OTHER)
    with pytest.raises(UsageError, match="no connection from"):
        quotas.disconnect(HOST)
    quotas.release("ann", HOST)
    with pytest.raises(UsageError, match="'ann' has no allocation"):
        quotas.release("ann", HOST)
    assert quotas.allocations == quotas.connections == quotas.accounts == 0


def test_the_allocations_of_a_user_share_a_rate_wherever_they_come_from() -> None:
    quotas = Quotas(replace(NONE, packets_per_second_per_user=100))
    for host in (HOST, OTHER):
        assert quotas.admit("ann", host) is None
    meters = [quotas.meter("ann", host) for host in (HOST, OTHER)]
    now = 7 * SECOND
    assert sum(meters[n % 2].take(100, now) for n in range(1000)) == 100
    assert quotas.admit("bob", HOST) is None
    assert quotas.meter("bob", HOST).take(100, now)


def test_the_users_of_a_client_share_a_rate() -> None:
    quotas = Quotas(replace(NONE, octets_per_second_per_client=100_000))
    for user in ("ann", "bob"):
        assert quotas.admit(user, HOST) is None
    meters = [quotas.meter(user, HOST) for user in ("ann", "bob")]
    passed = [sum(meter.take(1000, SECOND) for _ in range(1000)) for meter in meters]
    assert 98 <= sum(passed) <= 100
    assert passed[0] > passed[1], "one of them has used it up"


def test_giving_up_an_allocation_refills_no_bucket() -> None:
    quotas = Quotas(replace(NONE, packets_per_second_per_user=100))
    now, passed = SECOND, 0
    for _ in range(20):
        assert quotas.admit("ann", HOST) is None
        meter = quotas.meter("ann", HOST)
        passed += sum(meter.take(100, now) for _ in range(200))
        quotas.release("ann", HOST)
    assert passed == 100
    assert quotas.admit("ann", HOST) is None
    assert quotas.meter("ann", HOST).take(100, now + SECOND)


def test_other_limits_hold_from_now_on() -> None:
    quotas = Quotas(replace(NONE, allocations_per_user=5))
    for _ in range(5):
        assert quotas.admit("ann", HOST) is None
    free, now = quotas.meter("ann", HOST), 3 * SECOND
    assert free.take(1000, now)
    quotas.reconfigure(replace(NONE, allocations_per_user=2, packets_per_second_per_user=1000))
    assert quotas.allocations == 5
    assert quotas.admit("ann", HOST) == (486, "the user has all of its 2 allocations")
    # A meter made before is held to the rate, too, when what it leased without one is used up.
    passed = sum(free.take(10, now) for _ in range(200_000))
    assert passed < 100_000
    assert sum(free.take(10, now + 10 * SECOND) for _ in range(20_000)) <= 1000
    quotas.reconfigure(NONE)
    assert all(free.take(10, now + 20 * SECOND) for _ in range(20_000))


def test_nothing_is_left_of_any_order_of_coming_and_going(rng: random.Random) -> None:
    limits = replace(NONE, allocations=60, allocations_per_user=7, allocations_per_client=9)
    quotas = Quotas(replace(limits, connections_per_client=3))
    held: list[tuple[str, str]] = []
    connected: list[str] = []
    for _ in range(20_000):
        user, host = (
            f"user{rng.randrange(20)}",
            f"2001:db8:0:{rng.randrange(15)}::{rng.randrange(9)}",
        )
        match rng.randrange(4):
            case 0:
                users = Counter(user for user, _ in held)
                clients = Counter(client_of(host) for _, host in held)
                full = users[user] >= 7 or clients[client_of(host)] >= 9 or len(held) >= 60
                refusal = quotas.admit(user, host)
                assert (refusal is not None) is full
                if not refusal:
                    held.append((user, host))
                    quotas.meter(user, host)
            case 1 if held:
                quotas.release(*held.pop(rng.randrange(len(held))))
            case 2:
                there = sum(client_of(each) == client_of(host) for each in connected)
                assert (quotas.connect(host) is not None) is (there >= 3)
                if there < 3:
                    connected.append(host)
            case 3 if connected:
                quotas.disconnect(connected.pop(rng.randrange(len(connected))))
        assert quotas.allocations == len(held)
        assert quotas.connections == len(connected)
    for user, host in held:
        quotas.release(user, host)
    for host in connected:
        quotas.disconnect(host)
    assert quotas.allocations == quotas.connections == quotas.accounts == 0


def test_a_hundred_thousand_users_who_came_and_went_leave_little() -> None:
    quotas = Quotas(Limits())
    for number in range(5 * KEPT):
        user, host = f"user{number}", f"198.51.{number >> 8 & 255}.{number & 255}"
        assert quotas.admit(user, host) is None
        quotas.meter(user, host)
        quotas.release(user, host)
    assert quotas.accounts == 0
    assert len(quotas._users._kept) == len(quotas._clients._kept) == KEPT
