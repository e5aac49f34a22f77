"""When the data plane looks at its sockets, on a clock of the test's own."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from turn.dataplane import wakeups as module
from turn.dataplane.wakeups import PACE, TURN, Events, Wakeups

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux's")
WORK = 10_000
"""Nanoseconds that each round takes."""


class Core:
    """A driver, and the time."""

    def __init__(self) -> None:
        self.reactor = self.machine = self
        self.clock = 10**12
        self.rests: list[int] = []
        self.settled = 0
        self.wake: Callable[[], None] = lambda: None

    def now(self) -> int:
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.rests.append(round(seconds * 1e9))
        self.clock += self.rests[-1]

    def watch(self, fd: int, readable: Callable[[], None], writable: Any) -> None:
        self.wake = readable

    def unwatch(self, fd: int) -> None: ...

    def settle(self) -> None:
        self.settled += 1


class Plane:
    """Forwards as many packets in each round as it is told."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.work = WORK
        self.full = False
        self.rounds: list[int] = []
        self.forwards: Iterator[int] = iter(())
        self.watched: set[int] = set()
        self.wakeups = Wakeups(core, self.serve, self.watched)  # type: ignore[arg-type]
        self.here, self.there = socket.socketpair()
        self.watched.add(self.here.fileno())
        self.wakeups.watch(self.here)
        self.there.send(b"ready")

    def serve(self, events: Events) -> int:
        assert [fd for fd, _ in events] == [self.here.fileno()]
        self.rounds.append(self.core.clock)
        self.core.clock += self.work
        self.wakeups.full = self.full
        return next(self.forwards)

    def wake(self, *forwards: int) -> int:
        """Let it run; return how many rounds it made."""
        before = len(self.rounds)
        self.forwards = iter(forwards)
        self.core.wake()
        return len(self.rounds) - before


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    core = Core()
    monkeypatch.setattr(module, "monotonic_ns", core.now)
    monkeypatch.setattr(module, "sleep", core.sleep)
    made = Plane(core)
    yield made
    made.wakeups.close()
    made.here.close()
    made.there.close()


def test_packets_that_come_alone_wait_for_nothing(plane: Plane) -> None:
    for _ in range(10):
        plane.core.clock += PACE
        assert plane.wake(1) == 1
    assert plane.core.rests == []


def test_where_several_come_in_a_while_rounds_are_apart(plane: Plane) -> None:
    plane.wake(1)
    plane.core.clock += PACE // 2
    plane.wake(1)  # the second one within PACE: the first rest
    assert plane.core.rests == [PACE - WORK]
    plane.wake(3, 3, 1)
    starts = plane.rounds[1:]
    assert [later - start for start, later in pairwise(starts)] == [PACE] * 3
    assert plane.core.rests == [PACE - WORK] * 3, "the last rest has brought too little"
    plane.core.clock += PACE
    plane.wake(1)
    assert len(plane.core.rests) == 3


def test_while_batches_are_full_there_is_no_rest(plane: Plane) -> None:
    plane.full = True
    plane.wake(32, 32, 32, 1)
    assert [later - start for start, later in pairwise(plane.rounds)] == [WORK] * 3
    assert plane.core.rests == []
    plane.full = False
    plane.wake(32, 32, 1)
    assert plane.core.rests == [PACE - WORK] * 2


def test_what_is_no_relaying_is_followed_by_no_rest(plane: Plane) -> None:
    for _ in range(5):
        assert plane.wake(0) == 1
    assert plane.core.rests == []


def test_a_round_that_takes_long_is_followed_by_no_rest(plane: Plane) -> None:
    plane.work = PACE
    plane.wake(64, 64, 64, 1)
    assert plane.core.rests == []


def test_others_get_their_turn_though_more_is_ready(plane: Plane) -> None:
    begin = plane.core.clock
    rounds = plane.wake(*[64] * 1000)
    assert 1 < rounds < 1000
    assert TURN <= plane.core.clock - begin <= TURN + 2 * PACE


def test_the_machine_is_asked_for_news_once_it_was_called(plane: Plane) -> None:
    plane.wake(1)
    assert plane.core.settled == 0
    plane.wakeups.asked = True
    plane.wake(1)
    plane.wake(1)
    assert plane.core.settled == 1
