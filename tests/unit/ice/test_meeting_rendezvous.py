"""Meetings at the real rendezvous: what goes well, and each way in which it does not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ice.rendezvous import meeting as meeting_module
from ice.rendezvous import server as server_module
from ice.rendezvous.access import Minter
from ice.rendezvous.client import Client
from ice.rendezvous.errors import PeerGone, Refused, RendezvousLost, Tampered, WrongCode
from ice.rendezvous.meeting import Meeting
from ice.rendezvous.places import Place
from ice.rendezvous.protocol import MAX_DATA, Join, Joined, Leave, Message
from ice.rendezvous.server import RendezvousServer
from ice.rendezvous.terms import Terms
from stun.sansio import MILLISECOND, SECOND
from tools.meetingdesk import until

CODE = "alice.laptop-correct horse"


@contextlib.asynccontextmanager
async def rendezvous(*, port: int = 0, terms: Terms | None = None, **options: Any):
    """A rendezvous on this host: its URL, and itself."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    url = f"ws://127.0.0.1:{port}"
    server = RendezvousServer(terms=terms, **options)
    server.serve_at([Place.parse(url)])
    async with server:
        life = asyncio.create_task(server.run())
        try:
            yield url, server
        finally:
            assert not life.done(), life
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)


@contextlib.asynccontextmanager
async def met(url: str, code: str | None = None) -> AsyncIterator[tuple[Meeting, Meeting]]:
    async with await Meeting.open(url, code) as one, await Meeting.open(url, one.code) as other:
        await asyncio.gather(one.peer(), other.peer())
        yield one, other


async def exchange(one: Meeting, other: Meeting) -> None:
    await one.send({"from": "one"})
    await other.send({"from": "other"})
    assert await one.recv() == {"from": "other"}
    assert await other.recv() == {"from": "one"}


async def test_two_meet_by_a_made_code() -> None:
    async with rendezvous() as (url, server), met(url) as (one, other):
        assert one.code == other.code
        assert one.seconds == 3600
        await exchange(one, other)
        assert server.hall.states()["paired"] == 2


@pytest.mark.parametrize("code", [CODE, "x-\U0001f3b6\U0001f3b6\U0001f3b6 flute"])
async def test_two_meet_by_a_given_code_again_and_again(code: str) -> None:
    async with rendezvous() as (url, server):
        for _ in range(3):
            async with met(url, code) as (one, other):
                await exchange(one, other)
            await until(lambda: not len(server.hall))


async def test_the_longest_message() -> None:
    async with rendezvous() as (url, _), met(url) as (one, other):
        longest = {"x": "y" * 65_000}
        await one.send(longest)
        assert await other.recv() == longest


async def test_credentials_for_the_relay() -> None:
    minter = Minter("a secret", ("turn:192.0.2.1:3478",), ("stun:192.0.2.1:3478",))
    async with rendezvous(servers=minter) as (url, _), await Meeting.open(url) as one:
        said = one.welcome
        assert said.turn is not None
        assert said.turn.urls == ("turn:192.0.2.1:3478",)
        assert said.turn.username.endswith(":127.0.0.1")
        assert said.stun == ("stun:192.0.2.1:3478",)
        assert said.observed.host == "127.0.0.1"


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
async def test_clocks_an_hour_apart(ahead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted:
        @staticmethod
        def time() -> float:
            return time.time() + ahead

    monkeypatch.setattr(server_module, "time", Shifted)
    async with rendezvous() as (url, _), met(url) as (one, other):
        await exchange(one, other)
        for side in (one, other):
            said = side.welcome
            assert abs(said.clock_offset - ahead) <= said.rtt / 2 + 0.005


async def test_a_wrong_word() -> None:
    async with rendezvous() as (url, server):
        one = await Meeting.open(url)
        name, *words = one.code.split("-")
        words[1] = "zebra" if words[1] != "zebra" else "acorn"
        other = await Meeting.open(url, "-".join((name, *words)))
        for side in (one, other):
            with pytest.raises(WrongCode, match="does not have the same code"):
                await side.recv()
            await side.close()
        await until(lambda: not len(server.hall))
        # The right code does not help any more either.
        with pytest.raises(Refused, match="ask for a new code") as caught:
            await Meeting.open(url, one.code)
        assert caught.value.code == "unknown-name"


async def test_an_expired_code() -> None:
    async with rendezvous(terms=Terms(wait=50 * MILLISECOND)) as (url, _):
        async with await Meeting.open(url) as one:
            with pytest.raises(Refused, match=r"nobody came within 0\.05 s") as caught:
                await one.peer()
            assert caught.value.code == "expired"
        with pytest.raises(Refused) as late:
            await Meeting.open(url, one.code)
        with pytest.raises(Refused) as never:
            await Meeting.open(url, "424242-acorn-violin-harbor")
        assert late.value.code == never.value.code == "unknown-name"
        number = one.code.partition("-")[0]
        assert str(late.value).replace(number, "N") == str(never.value).replace("424242", "N")


async def test_a_third_party() -> None:
    async with rendezvous() as (url, _), met(url, CODE) as (one, other):
        for code in (CODE, "alice.laptop-something else"):
            with pytest.raises(Refused, match="two have met under the name") as caught:
                await Meeting.open(url, code)
            assert caught.value.code == "busy"
        await exchange(one, other)


async def test_what_is_too_large() -> None:
    async with rendezvous() as (url, _):
        async with met(url) as (one, other):
            await one._client.send(Message(bytes(MAX_DATA + 1)))
            with pytest.raises(Refused) as caught:
                await one.recv()
            assert caught.value.code == "too-large"
            with pytest.raises(PeerGone, match="the rendezvous has ended the peer's connection"):
                await other.recv()
        client = await Client.connect(url)
        await client.send(Join("alice", bytes(2000)))
        with pytest.raises(Refused) as caught:
            await client.receive()
        assert caught.value.code == "too-large"
        await client.close()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "malformed"),
        ('{"type":"dance"}', "malformed"),
        ('{"type":"join","v":1,"name":"A B","hello":""}', "malformed"),
        ('{"type":"join","v":2,"name":null,"hello":""}', "version"),
        (Message(b"to nobody").encode(), "malformed"),
    ],
)
async def test_what_is_malformed(text: str, code: str) -> None:
    async with rendezvous() as (url, _):
        client = await Client.connect(url)
        await client._socket.send(text)
        with pytest.raises(Refused) as caught:
            await client.receive()
        assert caught.value.code == code
        await client.close()
        # And the next is served.
        async with met(url) as (one, other):
            await exchange(one, other)


async def test_too_many() -> None:
    terms = Terms(joins=0.001, joins_burst=2)
    async with rendezvous(terms=terms) as (url, _), met(url) as (one, other):
        with pytest.raises(Refused, match="too many joins") as caught:
            await Meeting.open(url)
        assert caught.value.code == "too-many"
        await exchange(one, other)


async def test_the_peer_vanishes_at_every_step() -> None:
    async with rendezvous() as (url, server):
        for step in range(4):
            one = await Meeting.open(url)
            if step == 0:
                one._client._socket.transport.abort()
                with pytest.raises(RendezvousLost):
                    await one.peer()
            elif step == 1:
                client = await Client.connect(url)
                await client.send(Join(one.code.partition("-")[0], b""))
                assert isinstance(await client.receive(), Joined)
                client._socket.transport.abort()
                with pytest.raises(Tampered, match="greeting"):
                    await one.recv()
            else:
                other = await Meeting.open(url, one.code)
                await asyncio.gather(one.peer(), other.peer())
                if step == 3:
                    await other.send({"last": "words"})
                    assert await one.recv() == {"last": "words"}
                other._client._socket.transport.abort()
                with pytest.raises(PeerGone, match="connection to the rendezvous is lost"):
                    await one.recv()
                await other.close()
            await one.close()
        await until(lambda: not len(server.hall))


async def test_the_rendezvous_is_stopped_and_another_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meeting_module, "RETRY", 0.02)
    async with contextlib.AsyncExitStack() as stack:
        async with rendezvous() as (url, _):
            waiting = await stack.enter_async_context(await Meeting.open(url))
            one, other = await stack.enter_async_context(met(url))
            await exchange(one, other)
        with pytest.raises(Refused) as caught:
            await waiting.peer()
        assert caught.value.code == "shutting-down"
        for side in (one, other):
            with pytest.raises((Refused, PeerGone)):
                await side.recv()
        again = [asyncio.create_task(Meeting.resume(url, side.keys)) for side in (one, other)]
        done, _ = await asyncio.wait(again, timeout=0.1)
        assert not done
        port = int(url.rpartition(":")[2])
        await stack.enter_async_context(rendezvous(port=port))
        sides = [await stack.enter_async_context(await coming) for coming in again]
        assert sides[0].first is one.first
        await exchange(*sides)


async def test_a_resumption_while_the_connection_of_before_seems_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The network of one side goes away without a word, twice: the server pings whom it has."""
    monkeypatch.setattr(meeting_module, "RETRY", 0.05)
    terms = Terms(patience=200 * MILLISECOND, quiet_paired=SECOND)
    async with rendezvous(terms=terms) as (url, _), contextlib.AsyncExitStack() as stack:
        one, other = await stack.enter_async_context(met(url))
        for _ in range(2):
            # Nothing is read and nothing is answered, as if the cable were cut.
            one._client._socket.transport.pause_reading()
            coming = asyncio.create_task(Meeting.resume(url, one.keys))
            with pytest.raises(PeerGone):
                await other.recv()
            back = await Meeting.resume(url, other.keys)
            again = await stack.enter_async_context(await coming)
            await stack.enter_async_context(back)
            await exchange(again, back)
            one, other = again, back


async def test_leaving_frees_the_name() -> None:
    async with rendezvous() as (url, server):
        one = await Meeting.open(url, CODE)
        await one.close()
        await until(lambda: not len(server.hall))
        client = await Client.connect(url)
        await client.send(Join("alice.laptop", b"hello"))
        assert await client.receive() == Joined("alice.laptop", 3600.0)
        await client.send(Leave())
        with pytest.raises(RendezvousLost):
            await client.receive()
        await client.close()
