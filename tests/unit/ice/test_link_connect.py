"""``ice.connect`` over this host's loopback: every way, every end, and what a peer may tell."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest

import ice
from ice.config import Config
from ice.link.config import LinkConfig, Way
from ice.link.connect import Stream
from ice.link.events import Ended, Interrupted, LinkEvent, Met, PathChanged, PathLost, Waiting
from ice.rendezvous.errors import WrongCode
from stun.errors import UsageError
from tools.meetingdesk import Desk

LOOPBACK = Config(loopback=True, addresses=("127.0.0.0/8",))
BOTH = LinkConfig(relay=False, ice=LOOPBACK, diagnose=False, remember=False, patience=8.0)
UDP = LinkConfig(relay=False, tcp=False, ice=LOOPBACK, diagnose=False, remember=False, patience=8.0)
TCP = LinkConfig(relay=False, udp=False, ice=LOOPBACK, diagnose=False, remember=False, patience=8.0)


class Side:
    """One end, and what it was told."""

    def __init__(self) -> None:
        self.events: list[LinkEvent] = []
        self.code: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.stream: Stream

    def take(self, event: LinkEvent) -> None:
        self.events.append(event)
        if isinstance(event, Waiting) and not self.code.done():
            self.code.set_result(event.code)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def link(self) -> Any:
        return self.stream._link

    async def until(self, condition: Callable[[], bool]) -> None:
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def linked(
    one: LinkConfig, two: LinkConfig | None = None
) -> AsyncIterator[tuple[Side, Side, Desk]]:
    a, b = Side(), Side()
    async with Desk().open() as desk:

        async def join() -> Stream:
            code = await a.code
            return await ice.connect(code, rendezvous=desk.url, config=two or one, on_event=b.take)

        async with asyncio.TaskGroup() as group:
            opening = ice.connect(rendezvous=desk.url, config=one, on_event=a.take)
            first, second = group.create_task(opening._open()), group.create_task(join())
        a.stream, b.stream = first.result(), second.result()
        try:
            yield a, b, desk
        finally:
            for side in (a, b):
                side.stream.abort("the test is over")
            for side in (a, b):
                with suppress(ConnectionError):
                    await side.stream.close()


def run(test: Callable[[], Awaitable[None]], seconds: float = 60) -> None:
    async def main() -> None:
        async with asyncio.timeout(seconds):
            await test()
        # Whatever was begun has ended.
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(main())


async def send(side: Side, data: bytes) -> None:
    for at in range(0, len(data), 50_000):
        side.stream.writer.write(data[at : at + 50_000])
        await side.stream.writer.drain()
    side.stream.writer.write_eof()


async def exchange(a: Side, b: Side, rng: Random, size: int = 3_000_000) -> None:
    """Send both ways at once until both have ended."""
    left, right = rng.randbytes(size), rng.randbytes(size)
    *_, got_left, got_right = await asyncio.gather(
        send(a, left), send(b, right), a.stream.reader.read(), b.stream.reader.read()
    )
    assert hashlib.sha256(got_left).digest() == hashlib.sha256(right).digest()
    assert hashlib.sha256(got_right).digest() == hashlib.sha256(left).digest()


@pytest.mark.parametrize(("config", "transport"), [(UDP, "udp"), (TCP, "tcp")])
def test_octets_arrive_over_each_transport(config: LinkConfig, transport: str, rng: Random) -> None:
    async def test() -> None:
        async with linked(config) as (a, b, _):
            await exchange(a, b, rng)
            await asyncio.gather(a.stream.close(), b.stream.close())
            for side in (a, b):
                assert [type(event) for event in side.events][:1] == [Waiting]
                assert len(side.of(Met)) == 1
                assert {event.transport for event in side.of(PathChanged)} == {transport}
                assert side.of(Ended) == [Ended(None)]

    run(test)


def test_tcp_is_preferred_and_udp_takes_over_when_it_breaks(rng: Random) -> None:
    async def test() -> None:
        async with linked(BOTH) as (a, b, _):
            for side in (a, b):
                await side.until(lambda s=side: s.stream.path.transport == "tcp")
            data = rng.randbytes(2_000_000)
            sending = asyncio.create_task(send(a, data))
            got = await b.stream.reader.readexactly(100_000)
            # As when a NAT has forgotten the connection.
            for side in (a, b):
                await side.link._ways._seekers[Way.TCP].attempt.agent.close()
            got += await b.stream.reader.read()
            await sending
            assert got == data
            assert a.of(PathLost)
            # And it is tried again by itself.
            for side in (a, b):
                await side.until(lambda s=side: s.stream.path.transport == "tcp")

    run(test)


def test_after_a_total_interruption_the_two_meet_again(rng: Random) -> None:
    async def test() -> None:
        async with linked(TCP) as (a, b, desk):
            data = rng.randbytes(1_000_000)
            got = b""
            sending = asyncio.create_task(send(a, data))
            got += await b.stream.reader.readexactly(50_000)
            for side in (a, b):
                side.link._leave_rendezvous()
                await side.link._ways._seekers[Way.TCP].attempt.agent.close()
            got += await b.stream.reader.read()
            await sending
            assert got == data
            assert a.of(Interrupted)
            assert b.of(Interrupted)
            # They met a second time, under a name that nobody was told.
            assert len(desk.guests) > 2
            names = {guest.name for guest in desk.guests}
            assert all(
                name is None or name.startswith("r.")
                for name in names - {a.stream.code.partition("-")[0]}
            )

    run(test)


def test_a_peer_that_is_gone_is_given_up_after_patience() -> None:
    async def test() -> None:
        patient = LinkConfig(
            relay=False, udp=False, ice=LOOPBACK, diagnose=False, remember=False, patience=2.0
        )
        async with linked(patient) as (a, b, _):
            # It is killed: nothing is said to anybody.
            b.link._spawn = lambda work: work.close()
            b.link._leave_rendezvous = lambda: None
            for task in b.link._tasks | b.link._ways._tasks:
                task.cancel()
            await b.link._ways._seekers[Way.TCP].attempt.agent.close()
            with pytest.raises(ice.ConnectionLost, match="nothing was heard of the peer for 2 s"):
                await a.stream.reader.read()
            with pytest.raises(ice.ConnectionLost):
                await a.stream.close()
            b.link._engine.finish(None)

    run(test)


def test_a_reason_for_an_end_reaches_the_peer() -> None:
    async def test() -> None:
        async with linked(TCP) as (a, b, _):
            a.stream.abort("no space left on device")
            with pytest.raises(ice.ConnectionLost, match="the peer ended it: no space left"):
                await b.stream.reader.read()

    run(test)


def test_datagrams_go_beside_the_stream() -> None:
    async def test() -> None:
        async with linked(BOTH) as (a, b, _):
            received = asyncio.create_task(b.stream.datagrams.recv())
            while not received.done():
                a.stream.datagrams.send(b"\x00now")
                await asyncio.sleep(0.02)
            assert await received == b"\x00now"
            assert not a.stream.datagrams.send(bytes(1 << 20))

    run(test)


def test_another_code_word_is_told_to_both() -> None:
    async def test() -> None:
        a, b = Side(), Side()
        async with Desk().open() as desk:
            first = asyncio.ensure_future(
                ice.connect(rendezvous=desk.url, config=TCP, on_event=a.take)._open()
            )
            name = (await a.code).partition("-")[0]
            with pytest.raises(WrongCode):
                await ice.connect(
                    f"{name}-acorn-acorn-acorn", rendezvous=desk.url, config=TCP, on_event=b.take
                )
            with pytest.raises(WrongCode):
                await first
            assert len(b.of(Ended)) == 1

    run(test)


def test_ways_that_the_two_do_not_share_are_named_at_once() -> None:
    async def test() -> None:
        a = Side()
        async with Desk().open() as desk:
            first = asyncio.ensure_future(
                ice.connect(rendezvous=desk.url, config=TCP, on_event=a.take)._open()
            )
            code = await a.code
            second = ice.connect(code, rendezvous=desk.url, config=UDP)._open()
            began = asyncio.get_running_loop().time()
            for error in await asyncio.gather(first, second, return_exceptions=True):
                assert isinstance(error, ice.ConnectionFailed)
                assert "not allowed here" in str(error)
            assert asyncio.get_running_loop().time() - began < TCP.patience

    run(test)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": 7},
        {"type": "attempt"},
        {"type": "attempt", "way": "tcp", "number": -1},
        {"type": "attempt", "way": "tcp", "number": 1 << 40, "ufrag": "aaaa", "password": "b" * 22},
        {"type": "attempt", "way": "tcp", "number": 9, "ufrag": "a", "password": "b" * 22},
        {"type": "attempt", "way": "tcp", "number": 9, "ufrag": "aaaa", "password": []},
        {
            "type": "attempt",
            "way": "udp",
            "number": 0,
            "ufrag": "aaaa",
            "password": "b" * 22,
            "candidates": ["nonsense", 7] * 500,
        },
        {"type": "candidate", "way": "carrier pigeon", "number": 0, "candidate": "x"},
        {"type": "candidate", "way": "tcp", "number": 0, "candidate": {"x": [1] * 100}},
        {"type": "candidate", "way": "tcp", "number": True, "candidate": "\0"},
        {"type": "decline", "way": None, "number": 0},
        {"type": "hello", "v": 99},
        {"type": "hello", "v": 1, "fingerprint": "zz", "attempts": "none"},
        {"type": "hello", "v": 1, "fingerprint": "00" * 32, "attempts": [None, 1, {}]},
    ],
)
def test_nothing_that_a_peer_tells_breaks_a_link(message: dict[str, Any], rng: Random) -> None:
    async def test() -> None:
        async with linked(TCP) as (a, b, _):
            a.link._tell(message)
            a.stream._engine.signal(b"[no object")
            a.stream._engine.signal(json.dumps([1]).encode())
            await exchange(a, b, rng, 10_000)
            assert b.stream.counters["dropped: a signal that is no object"] == 2

    run(test)


def test_what_cannot_be_is_refused_at_once() -> None:
    async def test() -> None:
        with pytest.raises(UsageError, match="neither UDP nor TCP"):
            LinkConfig(udp=False, tcp=False)
        with pytest.raises(UsageError, match="nothing is left"):
            LinkConfig(relay=False, direct=False)
        with pytest.raises(UsageError):
            await ice.connect("no", rendezvous="ws://127.0.0.1:9")

    run(test)
