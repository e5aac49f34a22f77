"""Dialling back: spacing, outcomes, simultaneous open, budgets, and that nothing is left behind."""

from __future__ import annotations

import random
from collections import deque
from itertools import count
from typing import Any

import pytest

from stun.attributes import CONNECT_BACK_RESULT, ConnectBack, ConnectBackResult
from stun.codec import decode
from stun.connectback import COURTESY, MOST_DIALS, SPACING, Dialler
from stun.ratelimit import PrefixLimiter
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Cause,
    Closed,
    Connected,
    Dial,
    Handle,
    Instant,
    Shut,
    Write,
)

LOCAL = Address("192.0.2.1", 0)
SILENT = Address("192.0.2.1", 50_000)
CLIENT = Address("203.0.113.5", 54321)
CONTROL = -1
SOURCE = b"\xcb\x00\x71\x05"


class Dialling:
    """A dialler with the driver's part played by hand."""

    def __init__(self, rng: random.Random, *, rate: float = 0, burst: int = 0, most: int = 99):
        self.orders: deque[Any] = deque()
        numbers = count(1)
        self.now: Instant = 50 * SECOND
        self.dialler = Dialler(
            self.orders,
            lambda: next(numbers),
            lambda local: local,
            PrefixLimiter(rate, burst, entropy=rng.randbytes),
            most=most,
            entropy=rng.randbytes,
        )

    def grant(
        self,
        kind: int,
        number: int = 1,
        *,
        delay: int = 0,
        wait: int = 1000,
        control: Handle = CONTROL,
        local: Address | None = LOCAL,
        source: bytes = SOURCE,
    ) -> ConnectBack:
        return self.dialler.grant(
            ConnectBack(kind, number, delay, wait, 0),
            control=control,
            local=SILENT if kind == 3 and local is not None else local,
            remote=CLIENT,
            source=source,
            now=self.now,
        )

    def drain(self) -> list[Any]:
        drained = list(self.orders)
        self.orders.clear()
        return drained

    def until(self, at: Instant) -> list[tuple[Instant, Any]]:
        """Let the time pass; return the orders with the time since the start at which they came."""
        start, drained = self.now, []
        while (due := self.dialler.deadline()) is not None and due <= at:
            self.now = max(self.now, due)
            self.dialler.on_deadline(self.now)
            drained += [(self.now - start, order) for order in self.drain()]
        self.now = at
        return drained

    def after(self, duration: Instant) -> list[tuple[Instant, Any]]:
        return self.until(self.now + duration)

    def close(self, handle: Handle, cause: Cause) -> list[Any]:
        assert self.dialler.owns(handle)
        self.dialler.closed(Closed(handle, cause), self.now)
        return self.drain()

    def establish(self, handle: Handle) -> list[Any]:
        self.dialler.connected(Connected(handle, Address(LOCAL.host, 40_000), CLIENT), self.now)
        return self.drain()


@pytest.fixture
def dialling(rng: random.Random) -> Dialling:
    return Dialling(rng)


def result(orders: list[Any]) -> ConnectBackResult | None:
    for order in orders:
        if isinstance(order, Write) and order.handle == CONTROL:
            return decode(order.data).get(CONNECT_BACK_RESULT)
    return None


def test_dials_are_spaced_and_begin_after_the_delay(dialling: Dialling) -> None:
    assert dialling.grant(1, 4, delay=200, wait=5000).count == 4
    dialled = [(at, order) for at, order in dialling.after(SECOND) if isinstance(order, Dial)]
    assert [at for at, _ in dialled] == [200 * MILLISECOND + n * SPACING for n in range(4)]
    assert {(dial.local, dial.remote) for _, dial in dialled} == {(LOCAL, CLIENT)}
    assert len({dial.handle for _, dial in dialled}) == 4


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 1), (8, 8), (9, 8), (255, 8)])
def test_no_request_gets_more_than_the_most(dialling: Dialling, asked: int, given: int) -> None:
    assert dialling.grant(1, asked, wait=10).count == given
    dialled = [order for _, order in dialling.after(20 * SECOND) if isinstance(order, Dial)]
    assert len(dialled) == given <= MOST_DIALS


def test_a_client_cannot_make_it_wait_for_ever(dialling: Dialling) -> None:
    granted = dialling.grant(1, 1, delay=65535, wait=65535)
    assert (granted.delay, granted.wait) == (10_000, 10_000)
    orders = dialling.after(21 * SECOND)
    assert result([order for _, order in orders]) == ConnectBackResult(1, 0, 0, 0, 1, 0)
    assert dialling.dialler.deadline() is None


@pytest.mark.parametrize(
    ("cause", "outcome"),
    [
        (Cause.REFUSED, ConnectBackResult(1, 0, 1, 0, 0, 0)),
        (Cause.RESET, ConnectBackResult(1, 0, 1, 0, 0, 0)),
        (Cause.UNREACHABLE, ConnectBackResult(1, 0, 0, 1, 0, 0)),
        (Cause.TIMED_OUT, ConnectBackResult(1, 0, 0, 0, 1, 0)),
        (Cause.ADDRESS_IN_USE, ConnectBackResult(1, 0, 0, 0, 0, 1)),
        (Cause.OTHER, ConnectBackResult(1, 0, 0, 0, 0, 1)),
    ],
)
def test_outcomes(dialling: Dialling, cause: Cause, outcome: ConnectBackResult) -> None:
    dialling.grant(1)
    ((_, dial),) = dialling.after(0)
    assert result(dialling.close(dial.handle, cause)) == outcome
    assert dialling.dialler.deadline() is None


def test_silence_is_a_time_out_and_the_dial_is_dropped(dialling: Dialling) -> None:
    dialling.grant(1, wait=300)
    ((_, dial),) = dialling.after(0)
    (shut_at, shut), (_, told) = dialling.after(SECOND)
    assert (shut_at, shut) == (300 * MILLISECOND, Shut(dial.handle, reset=True))
    assert result([told]) == ConnectBackResult(1, 0, 0, 0, 1, 0)
    assert not dialling.dialler.owns(dial.handle)


def test_the_result_waits_for_the_last_dial(dialling: Dialling) -> None:
    dialling.grant(2, 3, wait=400)
    one, two, three = [order.handle for _, order in dialling.after(3 * SPACING)]
    assert result(dialling.close(one, Cause.REFUSED)) is None
    assert result(dialling.establish(three)) is None
    orders = [order for _, order in dialling.after(SECOND)]
    assert Shut(two, reset=True) in orders
    assert result(orders) == ConnectBackResult(2, 1, 1, 0, 1, 0)


def test_an_established_connection_is_closed_out_of_courtesy_last(dialling: Dialling) -> None:
    dialling.grant(1)
    ((_, dial),) = dialling.after(0)
    dialling.establish(dial.handle)
    assert dialling.after(COURTESY - 1) == []
    assert [order for _, order in dialling.after(1)] == [Shut(dial.handle)]
    assert dialling.dialler.deadline() is None


def test_a_client_that_closes_first_is_not_closed_again(dialling: Dialling) -> None:
    dialling.grant(1)
    ((_, dial),) = dialling.after(0)
    dialling.establish(dial.handle)
    assert dialling.close(dial.handle, Cause.END_OF_STREAM) == []
    assert dialling.after(60 * SECOND) == []


def test_one_job_a_connection_at_a_time(dialling: Dialling) -> None:
    assert dialling.grant(1).count == 1
    assert dialling.grant(1).count == 0
    ((_, dial),) = dialling.after(0)
    dialling.close(dial.handle, Cause.REFUSED)
    assert dialling.grant(1).count == 1


def test_dials_that_are_undecided_are_limited_in_all(rng: random.Random) -> None:
    dialling = Dialling(rng, most=5)
    assert dialling.grant(1, 4, control=-1).count == 4
    assert dialling.grant(1, 2, control=-2).count == 0
    assert dialling.grant(1, 1, control=-3).count == 1


def test_a_source_has_a_budget(rng: random.Random) -> None:
    dialling = Dialling(rng, rate=1, burst=8)
    assert dialling.grant(1, 8, control=-1).count == 8
    assert dialling.grant(1, 1, control=-2).count == 0
    assert dialling.grant(1, 1, control=-3, source=b"\xcb\x00\x71\x06").count == 1
    dialling.after(SECOND)
    assert dialling.grant(1, 1, control=-2).count == 1


# Simultaneous open. -------------------------------------------------------------------------------


def test_simultaneous_open_has_one_dial_at_a_time_from_the_silent_port(
    dialling: Dialling,
) -> None:
    granted = dialling.grant(3, 8, delay=100, wait=500)
    assert (granted.count, granted.port) == (1, SILENT.port)
    orders = dialling.after(450 * MILLISECOND)
    assert [(at, order.local) for at, order in orders] == [(100 * MILLISECOND, SILENT)]


@pytest.mark.parametrize("cause", [Cause.REFUSED, Cause.UNREACHABLE])
def test_a_refused_simultaneous_open_is_repeated(dialling: Dialling, cause: Cause) -> None:
    dialling.grant(3, wait=1000)
    ((_, dial),) = dialling.after(0)
    for _ in range(3):
        assert dialling.close(dial.handle, cause) == []
        ((at, again),) = dialling.after(SPACING)
        assert (at, again.local, again.remote) == (SPACING, SILENT, CLIENT)
        assert again.handle != dial.handle
        dial = again
    assert result(dialling.establish(dial.handle)) == ConnectBackResult(3, 1, 0, 0, 0, 0)


def test_repeating_ends_with_the_time_and_the_last_outcome_counts(dialling: Dialling) -> None:
    dialling.grant(3, wait=300)
    orders = [order for _, order in dialling.after(0)]
    attempts, told = 0, None
    while told is None:
        (dial,) = [order for order in orders if isinstance(order, Dial)]
        attempts += 1
        told = result(dialling.close(dial.handle, Cause.REFUSED))
        if told is None:
            orders = [order for _, order in dialling.after(SPACING)]
    assert told == ConnectBackResult(3, 0, 1, 0, 0, 0)
    assert attempts == 300 * MILLISECOND // SPACING
    assert dialling.after(60 * SECOND) == []


def test_a_repeated_dial_has_only_what_is_left_of_the_time(dialling: Dialling) -> None:
    dialling.grant(3, wait=300)
    ((_, dial),) = dialling.after(0)
    dialling.after(100 * MILLISECOND)
    dialling.close(dial.handle, Cause.REFUSED)
    dialled, shut, told = dialling.after(SECOND)
    assert dialled[0] == SPACING
    assert shut[0] == 200 * MILLISECOND
    assert result([told[1]]) == ConnectBackResult(3, 0, 0, 0, 1, 0)


# Cancelling. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("elapsed", [0, 40, 60, 99, 400])
def test_cancelling_leaves_nothing_behind(dialling: Dialling, elapsed: int) -> None:
    dialling.grant(1, 3, delay=50, wait=5000)
    dialled = {o.handle for _, o in dialling.after(elapsed * MILLISECOND) if isinstance(o, Dial)}
    dialling.dialler.cancel(CONTROL)
    assert {(order.handle, order.reset) for order in dialling.drain()} == {
        (handle, True) for handle in dialled
    }
    assert dialling.dialler.deadline() is None
    assert not any(dialling.dialler.owns(handle) for handle in dialled)


def test_cancelling_while_a_simultaneous_open_waits_to_be_repeated(dialling: Dialling) -> None:
    dialling.grant(3)
    ((_, dial),) = dialling.after(0)
    dialling.close(dial.handle, Cause.REFUSED)
    dialling.dialler.cancel(CONTROL)
    assert dialling.after(60 * SECOND) == []


def test_cancelling_keeps_established_connections_to_their_end(dialling: Dialling) -> None:
    dialling.grant(1, 2)
    ((_, dial),) = dialling.after(0)
    dialling.establish(dial.handle)
    dialling.dialler.cancel(CONTROL)
    assert [order for _, order in dialling.after(COURTESY)] == [Shut(dial.handle)]


def test_cancelling_what_is_not_there_does_nothing(dialling: Dialling) -> None:
    dialling.dialler.cancel(-77)
    assert dialling.drain() == []
