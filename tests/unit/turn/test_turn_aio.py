"""The relay's driver with a real server, on loopback."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import pytest

from stun import attributes as attrs
from stun.codec import Message, decode, encode
from stun.credentials import long_term_key
from stun.discovery import Transport
from stun.errors import DropReason
from stun.nonce import NonceMaker
from stun.registry import Class, Method
from stun.sansio import Address
from stun.users import StaticUsers
from turn.aio import RelayDriver, new_event_loop
from turn.server.config import Limits, ListenAt, RelayAddress, ServerConfig
from turn.server.events import AllocationCreated, AllocationEnded, ServerEvent, Serving
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

HOST = {4: "127.0.0.1", 6: "::1"}
CHANNEL = 0x4000
KEY = long_term_key("user", "realm", "password")


LOOPS = pytest.mark.parametrize(
    "new_loop", [new_event_loop, asyncio.new_event_loop], ids=["its own loop", "any loop"]
)
NewLoop: TypeAlias = Callable[[], asyncio.AbstractEventLoop]


def run(body: Coroutine[Any, Any, None], new_loop: NewLoop) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(body)


def make_server(host: str, *, offload: bool, **more: Any) -> Server:
    config = ServerConfig(
        listeners=(ListenAt(Transport.UDP, Address(host, 0)),),
        relays=(RelayAddress(host, host),),
        realm="realm",
        policy=PeerPolicy(allow=["127.0.0.0/8", "::1/128"]),
        offload=offload,
        **more,
    )
    users = StaticUsers({"user": "password"}, "realm")
    return Server(config, users, NonceMaker([b"a secret of nonces" * 2]), entropy=os.urandom)


class Endpoint(asyncio.DatagramProtocol):
    """A socket of the test's own."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()

    @classmethod
    async def open(cls, host: str) -> Endpoint:
        loop = asyncio.get_running_loop()
        transport, made = await loop.create_datagram_endpoint(cls, local_addr=(host, 0))
        made.transport = transport
        made.address = Address(*transport.get_extra_info("sockname")[:2])
        return made

    transport: asyncio.DatagramTransport
    address: Address

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait(data)

    async def next(self) -> bytes:
        return await asyncio.wait_for(self.received.get(), 5)


class Client:
    """The requests of a TURN client."""

    def __init__(self, endpoint: Endpoint, server: Address, rng: random.Random) -> None:
        self.endpoint, self.server, self._rng = endpoint, server, rng
        self._nonce = b""

    async def request(self, method: Method, *values: tuple[Any, Any]) -> Message:
        for _ in range(2):
            request = Message.request(method, self._rng.randbytes(12))
            for attribute, value in values:
                request.add(attribute, value)
            if self._nonce:
                request.add(attrs.USERNAME, "user").add(attrs.REALM, "realm")
                request.add(attrs.NONCE, self._nonce)
            octets = encode(request, key=KEY if self._nonce else None)
            self.endpoint.transport.sendto(octets, self.server)
            answer = decode(await self.endpoint.next())
            if answer.message_class is Class.SUCCESS:
                return answer
            self._nonce = answer.get(attrs.NONCE) or b""
        raise AssertionError(answer)


async def allocated(
    driver: RelayDriver, events: list[ServerEvent], host: str, rng: random.Random
) -> tuple[Client, Endpoint, Address]:
    (server,) = [event.local for event in events if isinstance(event, Serving)]
    client, peer = Client(await Endpoint.open(host), server, rng), await Endpoint.open(host)
    family = [(attrs.REQUESTED_ADDRESS_FAMILY, 2)] if ":" in host else []
    answer = await client.request(Method.ALLOCATE, (attrs.REQUESTED_TRANSPORT, 17), *family)
    relayed = answer.get(attrs.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    await client.request(
        Method.CHANNEL_BIND,
        (attrs.CHANNEL_NUMBER, CHANNEL),
        (attrs.XOR_PEER_ADDRESS, peer.address),
    )
    return client, peer, relayed


async def run_a_conversation(host: str, offload: bool, rng: random.Random) -> None:
    events: list[ServerEvent] = []
    server = make_server(host, offload=offload)
    async with RelayDriver(server, on_event=events.append) as driver:
        server.start(driver.now())
        driver.flush()
        client, peer, relayed = await allocated(driver, events, host, rng)
        for n in range(100):
            payload = b"to the peer %d" % n
            frame = CHANNEL.to_bytes(2) + len(payload).to_bytes(2) + payload
            client.endpoint.transport.sendto(frame, client.server)
            assert await peer.next() == payload
            peer.transport.sendto(payload, relayed)
            assert await client.endpoint.next() == frame
        counters = driver.counters
        assert counters["forwarded to peers"] == (100 if offload else 0)
        assert counters["forwarded to clients"] == (100 if offload else 0)
        usage = server.usage()
        assert usage.packets_from_client == usage.packets_to_client == 100
        await client.request(Method.REFRESH, (attrs.LIFETIME, 0))
        peer.transport.sendto(b"too late", relayed)
        assert [type(event) for event in events[-2:]] == [AllocationCreated, AllocationEnded]
        for endpoint in (client.endpoint, peer):
            endpoint.transport.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize("offload", [True, False], ids=["by the plane", "by the server"])
@pytest.mark.parametrize("host", HOST.values())
@LOOPS
def test_what_a_client_and_a_peer_say_is_relayed(
    host: str, offload: bool, new_loop: NewLoop, rng: random.Random
) -> None:
    run(run_a_conversation(host, offload, rng), new_loop)


@LOOPS
def test_bindings_are_answered_and_counted(new_loop: NewLoop, rng: random.Random) -> None:
    async def body() -> None:
        events: list[ServerEvent] = []
        server = make_server("127.0.0.1", offload=True)
        async with RelayDriver(server, on_event=events.append) as driver:
            server.start(driver.now())
            driver.flush()
            (local,) = [event.local for event in events if isinstance(event, Serving)]
            client = await Endpoint.open("127.0.0.1")
            for _ in range(10):
                request = encode(Message.request(Method.BINDING, rng.randbytes(12)))
                client.transport.sendto(request, local)
                octets = await client.next()
                assert len(octets) <= 32
                assert decode(octets).get(attrs.XOR_MAPPED_ADDRESS) == client.address
            assert server.metrics.requests[int(Method.BINDING)] == 10
            assert server.metrics.responses[int(Method.BINDING), 0] == 10
            client.transport.close()
            await asyncio.sleep(0)

    run(body(), new_loop)


@LOOPS
def test_bindings_over_the_budget_are_counted(new_loop: NewLoop, rng: random.Random) -> None:
    async def body() -> None:
        events: list[ServerEvent] = []
        limits = Limits(unverified_burst=100, unverified_refill=0)
        server = make_server("127.0.0.1", offload=True, limits=limits)
        async with RelayDriver(server, on_event=events.append) as driver:
            server.start(driver.now())
            driver.flush()
            (local,) = [event.local for event in events if isinstance(event, Serving)]
            client = await Endpoint.open("127.0.0.1")
            for _ in range(50):
                request = encode(Message.request(Method.BINDING, rng.randbytes(12)))
                client.transport.sendto(request, local)
            client.transport.sendto(encode(Message.request(Method.ALLOCATE, bytes(12))), local)
            metrics, binding = server.metrics, int(Method.BINDING)
            async with asyncio.timeout(5):
                while not metrics.requests[int(Method.ALLOCATE)]:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            answered = metrics.responses[binding, 0]
            assert 0 < answered * 32 <= 50 * 20 + 100
            assert metrics.requests[binding] == 50
            assert server.drops[DropReason.RATE_LIMITED] >= 50 - answered
            client.transport.close()
            await asyncio.sleep(0)

    run(body(), new_loop)


@LOOPS
@pytest.mark.parametrize("data", [b"a miss", encode(Message.request(Method.BINDING, bytes(12)))])
def test_an_exception_ends_the_driver_and_not_the_loop(
    data: bytes, new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        events: list[ServerEvent] = []
        server = make_server("127.0.0.1", offload=True)
        client = await Endpoint.open("127.0.0.1")

        async def serve() -> None:
            async with RelayDriver(server, on_event=events.append) as driver:
                server.start(driver.now())
                driver.flush()
                (local,) = [event.local for event in events if isinstance(event, Serving)]
                monkeypatch.setattr(server, "receive", lambda *_: 1 // 0)
                monkeypatch.setattr(Server, "config", property(lambda _: 1 // 0))
                client.transport.sendto(data, local)
                await asyncio.wait_for(driver.run(), 5)

        with pytest.raises(ZeroDivisionError):
            await serve()
        client.transport.close()
        await asyncio.sleep(0)

    run(body(), new_loop)


@LOOPS
def test_two_on_one_loop(new_loop: NewLoop, rng: random.Random) -> None:
    async def body() -> None:
        await asyncio.gather(*(run_a_conversation(HOST[4], True, rng) for _ in range(2)))
        await run_a_conversation(HOST[4], True, rng)

    run(body(), new_loop)


def test_requests_are_timed(rng: random.Random) -> None:
    async def body() -> None:
        events: list[ServerEvent] = []
        took: list[int] = []
        server = make_server("127.0.0.1", offload=True)
        observe: Callable[[int], None] = took.append
        async with RelayDriver(server, on_event=events.append, observe=observe) as driver:
            server.start(driver.now())
            driver.flush()
            client, peer, _ = await allocated(driver, events, "127.0.0.1", rng)
            for endpoint in (client.endpoint, peer):
                endpoint.transport.close()
            await asyncio.sleep(0)
        assert len(took) == 3  # two of Allocate, one of ChannelBind
        assert all(nanoseconds >= 0 for nanoseconds in took)

    asyncio.run(body())


def test_it_needs_no_running_loop_to_be_made() -> None:
    driver = RelayDriver(make_server("127.0.0.1", offload=True))
    assert driver.counters.get("datagrams received", 0) == 0
    driver.close()
