"""Deadlines in a heap."""

from __future__ import annotations

import random

from turn.server.expiry import SLACK, Expiry


def test_what_is_due_comes_earliest_first_and_once() -> None:
    expiry: Expiry[str] = Expiry()
    for thing, at in (("b", 20), ("a", 10), ("c", 30)):
        expiry.set(thing, at)
    assert expiry.next() == 10
    assert list(expiry.due(25)) == ["a", "b"]
    assert list(expiry.due(25)) == []
    assert "c" in expiry
    assert len(expiry) == 1


def test_later_sooner_and_never() -> None:
    expiry: Expiry[str] = Expiry()
    expiry.set("later", 10)
    expiry.set("later", 30)
    expiry.set("sooner", 40)
    expiry.set("sooner", 5)
    expiry.set("never", 1)
    expiry.cancel("never")
    expiry.cancel("unheard of")
    expiry.hasten("later", 50)
    assert list(expiry.due(9)) == ["sooner"]
    assert list(expiry.due(29)) == []
    assert list(expiry.due(30)) == ["later"]
    assert list(expiry.due(100)) == []
    assert expiry.next() is None


def test_one_that_is_set_again_while_it_is_due() -> None:
    expiry: Expiry[str] = Expiry()
    expiry.set("again", 10)
    for thing in expiry.due(10):
        expiry.set(thing, 20)
    assert expiry.next() == 20
    assert list(expiry.due(20)) == ["again"]


def test_it_agrees_with_a_table(rng: random.Random) -> None:
    expiry: Expiry[int] = Expiry()
    table: dict[int, int] = {}
    now = 0
    for _ in range(5000):
        thing = rng.randrange(50)
        match rng.randrange(4):
            case 0:
                at = now + 1 + rng.randrange(100)
                expiry.set(thing, at)
                table[thing] = at
            case 1:
                at = now + 1 + rng.randrange(100)
                expiry.hasten(thing, at)
                table[thing] = min(at, table.get(thing, at))
            case 2:
                expiry.cancel(thing)
                table.pop(thing, None)
            case _:
                now += rng.randrange(10)
                due = list(expiry.due(now))
                assert sorted(due) == sorted(t for t, at in table.items() if at <= now)
                assert [table[t] for t in due] == sorted(table[t] for t in due)
                for one in due:
                    del table[one]
        following = expiry.next()
        if table:
            assert following is not None
            assert following <= min(table.values())


def test_short_lives_leave_nothing_behind() -> None:
    expiry: Expiry[int] = Expiry()
    for thing in range(100_000):
        expiry.set(thing, 600)
        expiry.cancel(thing)
    assert len(expiry._heap) <= SLACK + 1


def test_nothing_is_awaited_when_nothing_is_to_be_due() -> None:
    expiry: Expiry[str] = Expiry()
    for at in (30, 20, 10):
        expiry.set("one", at)
    expiry.set("two", 40)
    expiry.cancel("two")
    assert expiry.next() == 10
    expiry.cancel("one")
    assert expiry.next() is None
    expiry.set("one", 50)
    assert expiry.next() == 50
