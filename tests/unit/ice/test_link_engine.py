"""The engine with carriers of the test's own: when one of them is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ice.link import engine as module
from ice.link.carrier import CarrierFailed
from ice.link.config import LinkConfig, Way
from ice.link.engine import Engine


class Wire:
    """A carrier in this process; one that is silent keeps what it takes until it goes on."""

    most_datagram = 0
    congested = False

    def __init__(self) -> None:
        self.on_data: Callable[[bytes], None]
        self.on_relief: Callable[[], None]
        self.on_lost: Callable[[CarrierFailed], None]
        self.on_datagram: Callable[[bytes], None]
        self.peer: Wire
        self.silent = self.ended = False
        self.kept: list[bytes] = []

    async def start(self) -> None:
        await asyncio.sleep(0)

    def send(self, data: bytes) -> None:
        self.kept.append(bytes(data))
        if not self.silent:
            self.go_on()

    def go_on(self) -> None:
        self.silent = False
        kept, self.kept = self.kept, []
        for data in kept:
            asyncio.get_running_loop().call_soon(self.peer.arrive, data)

    def arrive(self, data: bytes) -> None:
        if not self.ended:
            self.on_data(data)

    def send_datagram(self, data: bytes) -> bool:
        return False

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self.ended = True


class Side:
    def __init__(self, *, first: bool) -> None:
        self.moved: list[Way] = []
        self.stranded = 0
        self.engine = Engine(
            LinkConfig(),
            first=first,
            told=lambda _: None,
            on_moved=lambda attempt, *_: self.moved.append(attempt.way),
            on_stranded=self._strand,
            on_signal=lambda _: None,
            on_end=lambda _: None,
        )

    def _strand(self) -> None:
        self.stranded += 1

    def carry(self, way: Way, wire: Wire) -> asyncio.Task[str]:
        attempt: Any = SimpleNamespace(way=way, carried=False)
        return asyncio.ensure_future(self.engine.carry(attempt, wire))


def join(a: Side, b: Side, way: Way) -> tuple[Wire, Wire, list[asyncio.Task[str]]]:
    one, two = Wire(), Wire()
    one.peer, two.peer = two, one
    return one, two, [a.carry(way, one), b.carry(way, two)]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOPE", 1.25)  # which is more than it takes to suspect the others
    monkeypatch.setattr(module, "SILENCE", 0.2)


async def until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(0.005)


async def both(*ways: Way) -> tuple[Side, Side, dict[Way, Any]]:
    a, b = Side(first=True), Side(first=False)
    joined = {way: join(a, b, way) for way in ways}
    await until(lambda: a.moved[-1:] == b.moved[-1:] == [ways[-1]])
    return a, b, joined


async def over(a: Side, b: Side, tasks: list[asyncio.Task[str]]) -> None:
    for side in (a, b):
        side.engine.abort("the test is over")
        await side.engine.close_carriers()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.usefixtures("hasty")
async def test_a_carrier_that_stays_silent_is_given_up_while_another_answers() -> None:
    a, b, joined = await both(Way.RELAY, Way.TCP)
    one, two, (carried, other) = joined[Way.TCP]
    one.silent = two.silent = True
    a.engine.write(b"x" * 1000)
    async with asyncio.timeout(10):
        assert await carried == "it did not answer for 1.25 s, while another did"
        assert await b.engine.transport.reader.readexactly(1000) == b"x" * 1000
    assert a.moved[-1] is Way.RELAY
    assert one.ended
    assert not a.stranded
    await over(a, b, [other, *joined[Way.RELAY][2]])


@pytest.mark.usefixtures("hasty")
async def test_none_is_given_up_where_none_answers() -> None:
    a, b, joined = await both(Way.RELAY, Way.TCP)
    tasks = [task for _, _, pair in joined.values() for task in pair]
    for one, two, _ in joined.values():
        one.silent = two.silent = True
    a.engine.write(b"x")
    async with asyncio.timeout(10):
        await until(lambda: a.stranded > 0)
        await asyncio.sleep(1.5)
    assert not any(task.done() for task in tasks)
    for one, two, _ in joined.values():
        one.go_on()
        two.go_on()
    a.engine.write(b"y")
    async with asyncio.timeout(10):
        assert await b.engine.transport.reader.readexactly(2) == b"xy"
    await over(a, b, tasks)
