"""aiortc on natkit's agent: data channels and media, between itself and with aiortc on aioice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

rtc = pytest.importorskip("aiortc")

import ice.adapters.aiortc as adapter  # noqa: E402
from ice.config import Config  # noqa: E402
from ice.servers import IceServer  # noqa: E402


@contextmanager
def installed() -> Iterator[None]:
    adapter.install()
    adapter.install()
    try:
        yield
    finally:
        adapter.uninstall()


def peer() -> Any:
    return rtc.RTCPeerConnection(rtc.RTCConfiguration(iceServers=[]))


def connection_of(transport: Any) -> Any:
    return transport.transport.transport._connection


@asynccontextmanager
async def peers(ours: str) -> AsyncIterator[tuple[Any, Any]]:
    """Make the two peer connections; ``ours`` says which of them run on natkit."""

    async def make(name: str) -> Any:
        if name not in ours:
            made = peer()
            made.createDataChannel("first")  # makes the transport
            return made
        with installed():
            made = peer()
            made.createDataChannel("first")
            return made

    one, other = await make("one"), await make("other")
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


async def negotiate(one: Any, other: Any) -> None:
    await one.setLocalDescription(await one.createOffer())
    await other.setRemoteDescription(one.localDescription)
    await other.setLocalDescription(await other.createAnswer())
    await one.setRemoteDescription(other.localDescription)


@pytest.mark.parametrize("ours", ["one other", "one", "other"])
async def test_messages_of_a_data_channel(ours: str) -> None:
    async with peers(ours) as (one, other):
        arrived: asyncio.Queue[str] = asyncio.Queue()
        channel = one.createDataChannel("chat")
        channel.on("open", lambda: channel.send("hello"))
        channel.on("message", arrived.put_nowait)

        @other.on("datachannel")
        def answer(incoming: Any) -> None:
            incoming.on("message", lambda text: incoming.send(text.upper()))

        await negotiate(one, other)
        async with asyncio.timeout(30):
            assert await arrived.get() == "HELLO"
        assert one.iceConnectionState == "completed"
        for name, side in (("one", one), ("other", other)):
            assert isinstance(connection_of(side.sctp), adapter.Connection) is (name in ours)


async def test_media() -> None:
    from aiortc.mediastreams import AudioStreamTrack

    with installed():
        one, other = peer(), peer()
        one.addTrack(AudioStreamTrack())
        arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        other.on("track", arrived.set_result)
        try:
            await negotiate(one, other)
            async with asyncio.timeout(30):
                track = await arrived
                for _ in range(5):
                    assert (await track.recv()).samples
        finally:
            await one.close()
            await other.close()


def test_all_servers_are_used() -> None:
    server = rtc.RTCIceServer
    with installed():
        given = rtc.rtcicetransport.connection_kwargs(
            [
                server(["stun:a.example", "stun:b.example:5000"]),
                server("turns:c.example?transport=udp", username="user", credential="pass"),
            ]
        )
    assert given["servers"] == [
        IceServer("stun:a.example"),
        IceServer("stun:b.example:5000"),
        IceServer("turns:c.example?transport=udp", "user", "pass"),
    ]


def test_it_can_be_undone() -> None:
    from aiortc import rtcicetransport

    before = rtcicetransport.Connection
    with installed():
        assert rtcicetransport.Connection is adapter.Connection
    assert rtcicetransport.Connection is before


async def test_the_configuration_that_it_was_installed_with_is_that_of_each_agent() -> None:
    config = Config(tcp=False)
    adapter.install()
    adapter.install(config)
    try:
        made = peer()
        made.createDataChannel("first")
    finally:
        adapter.uninstall()
    assert connection_of(made.sctp)._config == config
    await made.close()
