"""The scheduler: order, time, cancellation, and that nothing is left behind."""

from __future__ import annotations

import pytest

from nattype.probe.strand import Cancelled, Strands, Wait
from stun.sansio import MILLISECOND


def test_strands_go_on_in_the_order_in_which_they_became_able_to() -> None:
    strands, wait, order = Strands(), Wait[None](), []

    async def one(name: str) -> None:
        order.append(f"{name} begins")
        await wait
        order.append(f"{name} ends")

    for name in "abc":
        strands.spawn(one(name))
    strands.run(0)
    assert order == ["a begins", "b begins", "c begins"]
    wait.set(None)
    strands.run(0)
    assert order[3:] == ["a ends", "b ends", "c ends"]


def test_a_wait_keeps_its_first_value() -> None:
    strands, wait, seen = Strands(), Wait[int](), []

    async def reader() -> None:
        seen.append(await wait)
        seen.append(await wait)

    wait.set(1)
    wait.set(2)
    strands.spawn(reader())
    strands.run(0)
    assert seen == [1, 1]
    assert wait.value == 1


def test_sleeping_strands_wake_at_their_time_and_in_its_order() -> None:
    strands, order = Strands(), []

    async def sleeper(name: str, duration: int) -> None:
        await strands.sleep(duration)
        order.append((name, strands.now))

    strands.spawn(sleeper("late", 30))
    strands.spawn(sleeper("early", 10))
    strands.run(0)
    assert strands.deadline() == 10
    strands.run(9)
    assert order == []
    strands.run(10)
    assert order == [("early", 10)]
    assert strands.deadline() == 30
    # A driver that comes late makes up for it, in order.
    strands.spawn(sleeper("after", 5))
    strands.run(40)
    assert order == [("early", 10), ("late", 40)]
    strands.run(45)
    assert order[-1] == ("after", 45)
    assert strands.deadline() is None


def test_time_never_goes_back() -> None:
    strands = Strands()
    strands.run(50)
    strands.run(20)
    assert strands.now == 50


def test_any_of_tells_time_from_news_and_disarms_its_timer() -> None:
    strands, news, seen = Strands(), Wait[str](), []

    async def waiter() -> None:
        seen.append(await strands.any_of(news, within=10))
        seen.append(await strands.any_of(news, within=10))

    strands.spawn(waiter())
    strands.run(0)
    strands.run(10)
    assert seen == [False]
    news.set("here")
    strands.run(12)
    assert seen == [False, True]
    assert strands.deadline() is None


def test_any_of_with_news_that_is_there_does_not_wait() -> None:
    strands, news, seen = Strands(), Wait[None](), []
    news.set(None)

    async def waiter() -> None:
        seen.append(await strands.any_of(news, within=0))

    strands.spawn(waiter())
    strands.run(0)
    assert seen == [True]


def test_gather_returns_in_the_order_given() -> None:
    strands, results = Strands(), []

    async def after(duration: int) -> int:
        await strands.sleep(duration)
        return duration

    async def everything() -> None:
        results.extend(await strands.gather([after(30), after(10), after(20)]))

    strands.spawn(everything())
    strands.run(0)
    for now in (10, 20, 30):
        strands.run(now)
    assert results == [30, 10, 20]


def test_cancelling_runs_finally_and_reaches_the_children() -> None:
    strands, ended = Strands(), []

    async def child(name: str) -> None:
        try:
            await strands.sleep(10 * MILLISECOND)
        finally:
            ended.append(name)

    async def parent() -> None:
        await strands.gather([child("a"), child("b")])

    strand = strands.spawn(parent())
    strands.run(0)
    strand.cancel()
    strands.run(0)
    assert ended == ["a", "b"]
    assert strand.done
    assert strand.cancelled
    strand.cancel()  # once more does nothing


def test_a_strand_that_never_began_can_be_cancelled() -> None:
    strands = Strands()

    async def never() -> None:
        raise AssertionError

    strand = strands.spawn(never())
    strand.cancel()
    strands.run(0)
    assert strand.done


def test_awaiting_a_cancelled_strand_ends_the_waiter_too() -> None:
    strands, reached = Strands(), []

    async def sleeper() -> None:
        await strands.sleep(10)

    async def waiter() -> None:
        try:
            await inner
        except Cancelled:
            reached.append("cancelled")
            raise

    inner = strands.spawn(sleeper())
    outer = strands.spawn(waiter())
    strands.run(0)
    inner.cancel()
    strands.run(0)
    assert reached == ["cancelled"]
    assert outer.cancelled


def test_a_mistake_in_a_strand_is_not_swallowed() -> None:
    strands = Strands()

    async def wrong() -> None:
        raise ZeroDivisionError

    strands.spawn(wrong())
    with pytest.raises(ZeroDivisionError):
        strands.run(0)


def test_an_exception_is_raised_where_the_strand_is_awaited() -> None:
    strands, caught = Strands(), []

    async def wrong() -> None:
        await strands.sleep(5)
        raise ZeroDivisionError

    async def patient() -> None:
        await strands.sleep(50)

    async def waiter() -> None:
        try:
            await strands.gather([patient(), wrong()])
        except ZeroDivisionError:
            caught.append(strands.now)

    strands.spawn(waiter())
    for now in (0, 5, 50):
        strands.run(now)
    assert caught == [50]
