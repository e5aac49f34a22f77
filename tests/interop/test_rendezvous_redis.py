"""Several rendezvous that share their names through a real Redis, which also goes and returns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from ice.rendezvous.places import Place
from ice.rendezvous.protocol import (
    MAX_DATA,
    Error,
    Gone,
    Join,
    Joined,
    Message,
    Peer,
    from_server,
)
from ice.rendezvous.redis import PREFIX, RedisBook
from ice.rendezvous.server import RendezvousServer
from ice.rendezvous.terms import Terms
from stun.errors import StunError, UsageError

EASY = Terms(connects=0, joins=0, messages=0, octets=0)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Site:
    """One rendezvous of several."""

    def __init__(self, redis: str, **options: Any) -> None:
        self.states: list[str | None] = []
        options = {"report": self.states.append, "interval": 0.1} | options
        self.book = RedisBook(redis, **options)
        self.server = RendezvousServer(terms=EASY, book=self.book)
        self.url = f"ws://127.0.0.1:{free_port()}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Site]:
        self.server.serve_at([Place.parse(self.url)])
        async with self.server:
            life = asyncio.create_task(self.server.run())
            try:
                yield self
            finally:
                assert not life.done(), life
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)


@contextlib.asynccontextmanager
async def two(redis: str, **options: Any) -> AsyncIterator[tuple[Site, Site]]:
    async with Site(redis, **options).running() as here, Site(redis, **options).running() as there:
        yield here, there


@contextlib.asynccontextmanager
async def visited(
    redis: str, **options: Any
) -> AsyncIterator[tuple[Site, Site, ClientConnection, ClientConnection]]:
    """Two sites, and a client at each."""
    async with (
        two(redis, **options) as (here, there),
        connect(here.url) as first,
        connect(there.url) as second,
    ):
        yield here, there, first, second


async def hears(client: ClientConnection) -> Any:
    return from_server(await asyncio.wait_for(client.recv(), 20))


async def joins(client: ClientConnection, name: str | None, hello: bytes = b"hello") -> Any:
    await client.send(Join(name, hello).encode())
    await hears(client)
    return await hears(client)


async def refused(site: Site, name: str) -> str:
    async with connect(site.url) as client:
        answer = await joins(client, name)
    assert isinstance(answer, Error), answer
    return answer.code


async def meet(first: ClientConnection, second: ClientConnection, name: str | None) -> str:
    joined = await joins(first, name, b"first")
    assert isinstance(joined, Joined)
    assert isinstance(await joins(second, joined.name, b"second"), Joined)
    assert await hears(first) == Peer(b"second")
    assert await hears(second) == Peer(b"first")
    return joined.name


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  (what is waited for is told by nobody)
            await asyncio.sleep(0.02)


async def names(site: Site) -> dict[str, str]:
    """Return what Redis has of names."""
    redis = site.book._redis
    keys = [key async for key in redis.scan_iter(f"{PREFIX}name:*")]
    return {key.decode().rpartition(":")[2]: (await redis.get(key)).decode() for key in keys}


# Meeting. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["printer.upstairs", None])
async def test_two_meet_across_processes_and_a_third_does_not(redis_server, name):
    async with visited(redis_server.url) as (here, there, first, second):
        met = await meet(first, second, name)
        code = "busy" if name else "unknown-name"
        assert [await refused(site, met) for site in (here, there)] == [code] * 2
        for number in range(20):
            await first.send(Message(b"%d" % number).encode())
            await second.send(Message(bytes(MAX_DATA) if number == 7 else b"").encode())
        assert [(await hears(second)).data for _ in range(20)] == [b"%d" % n for n in range(20)]
        assert sum([len((await hears(first)).data) for _ in range(20)]) == MAX_DATA
        await first.close()
        assert await hears(second) == Gone("left")
        if name:
            assert await names(here) == {}
            async with connect(there.url) as again:
                assert isinstance(await joins(again, name), Joined)
        else:
            assert await names(here) == {met: "-"}


async def test_two_meet_in_one_process(redis_server):
    async with (
        two(redis_server.url) as (here, _),
        connect(here.url) as first,
        connect(here.url) as second,
    ):
        await meet(first, second, None)
        await first.send(Message(b"x").encode())
        assert await hears(second) == Message(b"x")


async def test_no_hello_and_no_message_is_stored(redis_server):
    async with visited(redis_server.url) as (here, _there, first, second):
        await meet(first, second, "a")
        await first.send(Message(b"words").encode())
        await hears(second)
        redis = here.book._redis
        stored = [key + b"=" + await redis.get(key) async for key in redis.scan_iter(f"{PREFIX}*")]
        assert len(stored) == 3
        assert not [one for one in stored if b"first" in one or b"words" in one]
        assert all([0 < await redis.pttl(one.partition(b"=")[0]) <= 15000 for one in stored])


async def test_many_at_once(redis_server):
    """Claims of one name from both sides at one moment: exactly two meet, the rest are refused."""

    async def one(site, name):
        async with connect(site.url) as client:
            answer = await joins(client, name)
            if isinstance(answer, Joined):
                answer = await hears(client)
                await asyncio.sleep(0.5)  # the others are refused meanwhile
            return answer

    async with two(redis_server.url) as (here, there):
        for name in "abc":
            answers = await asyncio.gather(*(one(site, name) for site in (here, there) * 5))
            assert sum(isinstance(answer, Peer) for answer in answers) == 2
            assert sum(getattr(answer, "code", "") == "busy" for answer in answers) == 8


async def test_those_who_wait_keep_their_names(redis_server):
    async with visited(redis_server.url, ttl=1) as (_here, _there, first, second):
        joined = await joins(first, None)
        await asyncio.sleep(2.5)
        assert isinstance(await joins(second, joined.name), Joined)
        assert await hears(second) == Peer(b"hello")


# Processes that end. ------------------------------------------------------------------------------

_PROCESS = """
import asyncio, sys
from ice.rendezvous.daemon import Rendezvousd, Settings
from ice.rendezvous.places import Place
asyncio.run(Rendezvousd(Settings((Place.parse(sys.argv[1]),), redis=sys.argv[2])).run())
"""


async def test_a_process_that_is_killed_leaves_nothing_behind(redis_server):
    async with Site(redis_server.url, interval=0.5).running() as here:
        url = f"ws://127.0.0.1:{free_port()}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _PROCESS, url, redis_server.url), stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        while b"serving" not in await process.stderr.readline():
            pass
        async with connect(here.url) as first, connect(here.url) as other:
            there = [await connect(url) for _ in range(3)]
            await meet(there[0], first, "a")
            assert isinstance(await joins(there[1], "b"), Joined)
            left = (await joins(there[2], None)).name
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            process._transport.close()
            # Whom it had with it is gone at once for whoever asks ...
            assert isinstance(await joins(other, "b"), Joined)
            assert await refused(here, left) == "unknown-name"
            # ... its clients' peers are told in seconds, and their names are free ...
            assert await hears(first) == Gone("lost")
            async with connect(here.url) as again:
                assert isinstance(await joins(again, "a"), Joined)
            for client in there:
                await client.close()

            # ... and what it has left in Redis is gone after a while.
            async def forgotten() -> bool:
                redis = here.book._redis
                keys = [key.decode() async for key in redis.scan_iter(f"{PREFIX}*")]
                return set(keys) == {f"{PREFIX}name:b", here.book._channel}

            await until(forgotten)


async def test_a_process_that_stops_says_so(redis_server):
    async with Site(redis_server.url).running() as here, connect(here.url) as first:
        async with Site(redis_server.url).running() as there:
            second, third = await connect(there.url), await connect(there.url)
            await meet(first, second, "a")
            await joins(third, None)
        assert await hears(first) == Gone("lost")
        codes = [(await hears(client)).code for client in (second, third)]
        assert codes == ["shutting-down"] * 2
        assert not [name for name, held in (await names(here)).items() if held != "-"]


async def test_a_process_that_hangs_counts_as_gone(redis_server):
    async with visited(redis_server.url, ttl=1) as (_here, there, first, second):
        await meet(first, second, "a")
        # It is subscribed, and says no more that it is alive.
        there.book._round = asyncio.Event().wait
        assert await hears(first) == Gone("lost")


# Redis that ends. ---------------------------------------------------------------------------------


async def test_redis_goes_and_comes_back(redis_server):
    async with two(redis_server.url) as (here, there), contextlib.AsyncExitStack() as stack:
        one, two_, waits, local = [
            await stack.enter_async_context(connect(site.url)) for site in (here, there, here, here)
        ]
        await meet(one, two_, "across")
        made = (await joins(waits, None, b"waiting")).name
        neighbour = await stack.enter_async_context(connect(here.url))
        await meet(local, neighbour, "local")
        redis_server.stop()
        await until(lambda: _true(here.states and there.states))
        assert here.states[0] is not None
        assert "check that Redis runs there" in here.states[0]
        # Nobody can be paired; who is paired in one process does not notice.
        assert await refused(here, "new") == "unavailable"
        await local.send(Message(b"as before").encode())
        assert await hears(neighbour) == Message(b"as before")
        redis_server.start()
        await until(lambda: _true(here.states[-1] is None and there.states[-1] is None))

        async def restored() -> bool:
            return set(await names(here)) == {"across", "local", made}

        await until(restored)
        assert await refused(there, "local") == "busy"
        await one.send(Message(b"across").encode())
        assert await hears(two_) == Message(b"across")
        late = await stack.enter_async_context(connect(there.url))
        assert isinstance(await joins(late, made, b"late"), Joined)
        assert await hears(late) == Peer(b"waiting")
        assert await hears(waits) == Peer(b"late")
        assert len(here.states) == 2


async def _true(value: object) -> bool:
    return bool(value)


async def test_what_is_said_while_redis_is_gone_ends_the_pair(redis_server):
    async with visited(redis_server.url) as (_here, there, first, second):
        await meet(first, second, "a")
        redis_server.stop()
        await first.send(Message(b"lost").encode())
        assert await hears(first) == Gone("lost")
        redis_server.start()
        await until(lambda: _true(there.states and there.states[-1] is None))
        with contextlib.suppress(ConnectionClosed):  # it may have heard by itself
            await second.send(Message(b"to nobody").encode())
        assert await hears(second) == Gone("lost")


async def test_who_has_lost_the_name_meanwhile_meets_the_one_who_has_it(redis_server):
    async with visited(redis_server.url) as (here, _there, first, second):
        await joins(first, "a", b"first")
        # As after a Redis that has forgotten: the other one claims it before it is restored.
        await here.book._redis.delete(f"{PREFIX}name:a")
        assert isinstance(await joins(second, "a", b"second"), Joined)
        assert await hears(first) == Peer(b"second")
        assert await hears(second) == Peer(b"first")


async def test_a_subscription_that_is_cut_is_made_anew(redis_server):
    async with visited(redis_server.url) as (here, _there, first, second):
        assert isinstance(await joins(first, "a", b"first"), Joined)
        await here.book._redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(1.5)
        assert isinstance(await joins(second, "a", b"second"), Joined)
        assert await hears(first) == Peer(b"second")
        assert await hears(second) == Peer(b"first")


# What is not right. -------------------------------------------------------------------------------


async def test_letters_of_others_are_dropped(redis_server):
    async with two(redis_server.url) as (here, _):
        for letter in (b"nonsense", b"[" * 100_000, b'{"kind":"nudge","to":"a/1","from":"b/1"}'):
            await here.book._redis.publish(here.book._channel, letter)

        async def dropped() -> bool:
            return here.server.hall.counts.dropped["a letter that cannot be read"] == 2

        await until(dropped)


async def test_what_others_have_written_is_refused(redis_server):
    async with two(redis_server.url) as (here, _):
        await here.book._redis.set(f"{PREFIX}name:a", "anything at all")
        await here.book._redis.hset(f"{PREFIX}name:b", "a", "hash")
        async with connect(here.url) as client:
            assert isinstance(await joins(client, "a"), Joined)
        assert await refused(here, "b") == "unavailable"
        async with connect(here.url) as client:
            assert isinstance(await joins(client, "c"), Joined)


def test_a_url_that_is_none():
    with pytest.raises(UsageError, match="is no URL of a Redis server"):
        RedisBook("nonsense")


async def test_a_redis_that_is_not_there(redis_server):
    redis_server.stop()
    with pytest.raises(StunError, match="check that Redis runs there"):
        async with Site(redis_server.url).running():
            raise AssertionError("it must not serve")


async def test_it_can_be_stopped_at_any_moment(redis_server, rng):
    """The library sometimes drops a cancellation that meets an answer."""
    for _ in range(60):
        site = Site(redis_server.url, interval=0.005)
        site.server.serve_at([Place.parse(site.url)])
        async with site.server:
            life = asyncio.create_task(site.server.run())
            await asyncio.sleep(rng.random() * 0.04)
            life.cancel()
            done, _ = await asyncio.wait([life], timeout=10)
            assert done
