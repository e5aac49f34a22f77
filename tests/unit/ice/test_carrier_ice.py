"""Carriers over agents with sockets, on the loopback interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import ice
from ice.config import Config
from ice.connection import Receiver
from ice.link.certificate import Identity
from ice.link.quic import QuicCarrier
from ice.link.tls import TlsCarrier
from stun.errors import StunError
from tools.carrierdesk import Heard

KINDS = pytest.mark.parametrize("kind", [TlsCarrier, QuicCarrier], ids=["tls", "quic"])
Kind = type[TlsCarrier] | type[QuicCarrier]


@asynccontextmanager
async def connected(*, tcp: bool) -> AsyncIterator[tuple[ice.Connection, ice.Connection]]:
    config = Config(udp=not tcp, tcp=tcp, loopback=True, addresses=("127.0.0.0/8",), monitor=False)
    one = ice.Agent(controlling=True, config=config)
    other = ice.Agent(controlling=False, config=config)
    async with one, other:
        for agent in (one, other):
            await agent.gather()
        for agent, peer in ((one, other), (other, one)):
            peer.set_remote_credentials(agent.local_ufrag, agent.local_pwd)
            for candidate in agent.local_candidates:
                await peer.add_remote_candidate(candidate)
            await peer.add_remote_candidate(None)
        yield tuple(await asyncio.gather(one.connect(), other.connect()))  # type: ignore[misc]


@asynccontextmanager
async def carried(kind: Kind) -> AsyncIterator[tuple[Any, Any, Heard, Heard]]:
    async with connected(tcp=kind is TlsCarrier) as (left, right):
        ours, theirs = Identity.make(), Identity.make()
        server = kind(left, ours, theirs.fingerprint, server=True)
        client = kind(right, theirs, ours.fingerprint, server=False)
        at_server, at_client = Heard(server), Heard(client)
        await asyncio.gather(server.start(), client.start())
        yield server, client, at_server, at_client


@KINDS
async def test_both_directions_at_once(kind, rng):
    there, back = rng.randbytes(2_000_000), rng.randbytes(3_000_000)
    async with carried(kind) as (server, client, at_server, at_client):
        await asyncio.gather(at_server.pour(back, 65447), at_client.pour(there, 12345))
        await at_server.until(lambda: len(at_server.data) == len(there))
        await at_client.until(lambda: len(at_client.data) == len(back))
        assert at_server.data == there
        assert at_client.data == back
        await client.close()
        await at_server.until(lambda: at_server.lost)
        assert at_server.lost == ["the peer has closed the connection"]
        server.abort()


@KINDS
async def test_a_reader_that_answers_everything_from_within(kind, rng):
    there = rng.randbytes(3_000_000)
    async with carried(kind) as (server, _, at_server, at_client):
        # A megabyte that comes in one wake-up is answered in one: more than a driver keeps.
        server.on_data = server.send
        await at_client.pour(there, 65447)
        await at_client.until(lambda: len(at_client.data) == len(there))
        assert at_client.data == there
        assert not at_server.lost


@KINDS
async def test_the_agent_is_closed(kind):
    async with carried(kind) as (_, _, at_server, _):
        pass
    await at_server.until(lambda: at_server.lost)
    assert at_server.lost == ["the ICE connection ended: the agent is closed"]


async def test_a_tcp_connection_that_breaks_is_noticed_at_once():
    async with carried(TlsCarrier) as (server, _, at_server, at_client):
        agent = server._connection._agent
        for stream in [*agent._driver._sockets.streams._streams.values()]:
            stream.sock.shutdown(2)
        await at_server.until(lambda: at_server.lost)
        assert at_server.lost == ["the TCP connection to the peer has ended"]
        await at_client.until(lambda: at_client.lost)


class Ear:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.rest: list[object] = []
        self.news = asyncio.Event()

    def packet(self, data: bytes) -> None:
        self.packets.append(data)
        self.news.set()

    def relieved(self) -> None:
        self.rest.append("relieved")

    def rerouted(self) -> None:
        self.rest.append("rerouted")

    def ended(self, why: StunError) -> None:
        self.rest.append(why)


@pytest.mark.parametrize("tcp", [True, False], ids=["tcp", "udp"])
async def test_packets_can_be_diverted(tcp):
    async with connected(tcp=tcp) as (left, right):
        await right.send(b"before")
        while not left._arrived:  # noqa: ASYNC110 - it tells nobody that it is there
            await asyncio.sleep(0)
        ear = Ear()
        receiver: Receiver = ear
        left.divert(receiver)
        assert ear.packets == [b"before"]
        ear.news.clear()
        await right.send(b"after")
        await ear.news.wait()
        assert ear.packets == [b"before", b"after"]
        left.divert(None)
        await right.send(b"not any more")
        assert await left.recv() == b"not any more"
        assert len(ear.packets) == 2
        left.divert(receiver)
    assert isinstance(ear.rest[-1], ice.ConnectionClosed)
    again = Ear()
    left.divert(again)
    assert again.rest == ear.rest[-1:]
