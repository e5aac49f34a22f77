"""aioice's interface on natkit's agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import Enum
from typing import Any

import pytest

from ice.adapters.aioice import (
    Connection,
    ConnectionClosed,
    TransportPolicy,
    as_candidate,
)
from ice.candidate import Candidate
from ice.config import Config, Policy
from ice.servers import IceServer
from stun.sansio import MILLISECOND

CONFIG = Config(loopback=True, ipv6=False, tcp=False, addresses=("127.0.0.0/8",), watch_network=0)


@asynccontextmanager
async def pair(config: Config = CONFIG) -> AsyncIterator[tuple[Connection, Connection]]:
    one, other = Connection(ice_controlling=True, config=config), Connection(False, config=config)
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


async def connect(one: Connection, other: Connection) -> None:
    for here, there in ((one, other), (other, one)):
        await here.gather_candidates()
        there.remote_username, there.remote_password = here.local_username, here.local_password
        for candidate in here.local_candidates:
            text = candidate.to_sdp()
            await there.add_remote_candidate(Candidate.from_sdp(text))
        await there.add_remote_candidate(None)
    await asyncio.gather(one.connect(), other.connect())


async def test_a_conversation() -> None:
    async with pair() as (one, other):
        assert one.ice_controlling
        assert not other.ice_controlling
        await connect(one, other)
        await one.send(b"hello")
        assert await other.recv() == b"hello"
        await other.sendto(b"back", 1)
        assert await one.recvfrom() == (b"back", 1)
        assert one.remote_candidates == other.local_candidates
        assert one.get_default_candidate(1) == one.local_candidates[0]
        assert one.get_default_candidate(2) is None
        with pytest.raises(ValueError, match="after end-of-candidates"):
            await one.add_remote_candidate(None)


async def test_several_components() -> None:
    async with pair(replace(CONFIG, components=2)) as (one, other):
        await connect(one, other)
        await one.sendto(b"one", 1)
        await one.sendto(b"two", 2)
        assert {await other.recvfrom(), await other.recvfrom()} == {(b"one", 1), (b"two", 2)}
        receiving = asyncio.create_task(other.recvfrom())
        await asyncio.sleep(0)
        await one.sendto(b"three", 2)
        assert await receiving == (b"three", 2)
        receiving = asyncio.create_task(other.recvfrom())
        await asyncio.sleep(0)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        receiving = asyncio.create_task(other.recvfrom())
        await asyncio.sleep(0)
        await other.close()
        with pytest.raises(ConnectionError):
            await receiving


async def test_candidates_may_trickle() -> None:
    async with pair() as (one, other):
        for here, there in ((one, other), (other, one)):
            await here.gather_candidates()
            there.remote_username, there.remote_password = here.local_username, here.local_password
        connecting = asyncio.gather(one.connect(), other.connect())
        await asyncio.sleep(0)
        for here, there in ((one, other), (other, one)):
            for candidate in here.local_candidates:
                await there.add_remote_candidate(candidate)
            await there.add_remote_candidate(None)
        await connecting


async def test_what_has_to_come_before() -> None:
    async with pair() as (one, _):
        with pytest.raises(ConnectionError, match="gathering was not performed"):
            await one.connect()
        await one.gather_candidates()
        with pytest.raises(ConnectionError, match="username or password is missing"):
            await one.connect()
        with pytest.raises(ConnectionError, match="Cannot send data"):
            await one.send(b"early")
        with pytest.raises(ConnectionError, match="Cannot receive data"):
            await one.recv()


async def test_the_role_until_gathering() -> None:
    async with pair() as (one, _):
        one.ice_controlling = False
        assert not one.ice_controlling
        await one.gather_candidates()
        assert not one.agent.controlling


async def test_a_candidate_of_no_use_is_left_out() -> None:
    async with pair() as (one, other):
        await connect(one, other)
        before = len(one.remote_candidates)
        one._remote_ended = False
        strange = replace(other.local_candidates[0], host="name.example")
        await one.add_remote_candidate(strange)
        assert len(one.remote_candidates) <= before + 1
        await one.close()
        await one.add_remote_candidate(strange)


async def test_the_end_is_an_event() -> None:
    fast = replace(
        CONFIG,
        consent_interval=20 * MILLISECOND,
        consent_timeout=100 * MILLISECOND,
        patience=50 * MILLISECOND,
    )
    async with pair(fast) as (one, other):
        await connect(one, other)
        waiting = asyncio.create_task(one.get_event())
        await other.close()
        assert isinstance(await other.get_event(), ConnectionClosed)
        assert isinstance(await waiting, ConnectionClosed)
        with pytest.raises(ConnectionError):
            await one.recv()


class TheirCandidate:
    """As aioice has it."""

    foundation, component, transport, priority = "1", 1, "UDP", 2
    host, port, type = "192.0.2.1", 9, "srflx"
    related_address, related_port, tcptype = "10.0.0.1", 8, None


def test_candidates_of_aioice() -> None:
    text = "candidate:1 1 udp 2 192.0.2.1 9 typ srflx raddr 10.0.0.1 rport 8"
    assert as_candidate(TheirCandidate) == Candidate.from_sdp(text)


async def test_an_unknown_type_is_ignored() -> None:
    class Strange(TheirCandidate):
        type = "future"

    async with pair() as (one, _):
        await one.add_remote_candidate(Strange)
        assert one.remote_candidates == []


class TheirPolicy(Enum):
    RELAY = 7


@pytest.mark.parametrize("policy", [TransportPolicy.RELAY, TheirPolicy.RELAY])
def test_the_arguments_of_aioice(policy: Enum) -> None:
    connection = Connection(
        True,
        components=2,
        stun_server=("stun.example", 3478),
        turn_server=("2001:db8::1", 443),
        turn_username="user",
        turn_password="pass",
        turn_ssl=True,
        turn_transport="tcp",
        use_ipv6=False,
        transport_policy=policy,
        local_username="abcd",
        local_password="x" * 22,
        servers=["stun:other.example"],
    )
    expected: list[Any] = [
        "stun:other.example",
        "stun:stun.example:3478",
        IceServer("turns:[2001:db8::1]:443?transport=tcp", "user", "pass"),
    ]
    assert connection._servers == expected
    assert connection._config == Config(components=2, policy=Policy.RELAY, ipv6=False)
    assert (connection.local_username, connection.local_password) == ("abcd", "x" * 22)
    assert connection.local_candidates == []
    assert connection.agent.local_ufrag == "abcd"


def test_a_configuration_never_loosens_what_the_arguments_say() -> None:
    given = Config(loopback=True, ipv4=False, components=2)
    connection = Connection(True, transport_policy=TransportPolicy.RELAY, config=given)
    assert connection._config == replace(given, policy=Policy.RELAY)
    hidden = Config(policy=Policy.RELAY)
    assert Connection(True, config=hidden)._config == hidden
    assert not Connection(True, use_ipv6=False, config=Config())._config.ipv6
