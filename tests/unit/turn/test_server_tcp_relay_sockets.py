"""RFC 6062 over real sockets on loopback: flow control is the kernel's, so it must be the real one.

Both ends send more than all buffers between them hold while nobody reads, and read slowly then.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from stun.aio import Driver
from stun.attributes import (
    CONNECTION_ID,
    ERROR_CODE,
    NONCE,
    REALM,
    REQUESTED_TRANSPORT,
    USERNAME,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
)
from stun.codec import decode, encode
from stun.credentials import LongTerm
from stun.discovery import Transport
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Class, Method
from stun.sansio import Address
from stun.users import StaticUsers
from turn.server.config import Limits, ListenAt, RelayAddress, ServerConfig
from turn.server.events import Serving
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

HOST = "127.0.0.1"
REALM_NAME = "example.org"
KEY = LongTerm("alice", "secret").key(REALM_NAME)
MUCH = 12 << 20
UNLIMITED = Limits(octets_per_second_per_user=0, octets_per_second_per_client=0)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Scene:
    """A server on loopback, and a client of it that is led by hand."""

    def __init__(self, server: Server, address: Address) -> None:
        self.server = server
        self.address = address
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self, address: Address | None = None) -> Streams:
        """Connect: to the server, unless told where to."""
        host, port = address or self.address
        streams = await asyncio.open_connection(host, port)
        self._writers.append(streams[1])
        return streams

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[tuple[Address, asyncio.Queue[Streams]]]:
        """A peer that listens; its connections come out of the queue."""
        accepted: asyncio.Queue[Streams] = asyncio.Queue()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.append(writer)
            accepted.put_nowait((reader, writer))

        listening = await asyncio.start_server(take, HOST, 0)
        try:
            yield Address(*listening.sockets[0].getsockname()[:2]), accepted
        finally:
            listening.close()

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def ask(self, streams: Streams, request: Message, behind: bytes = b"") -> Message:
        """Send a request, and again with a proof; return the response."""
        challenge = await self._exchange(streams, encode(request))
        signed = Message.request(request.method, os.urandom(12))
        signed.attributes = list(request.attributes)
        signed.add(USERNAME, "alice").add(REALM, REALM_NAME)
        signed.add(NONCE, challenge.get(NONCE) or b"")
        response = await self._exchange(streams, encode(signed, key=KEY) + behind)
        assert response.message_class is Class.SUCCESS, response.get(ERROR_CODE)
        return response

    async def _exchange(self, streams: Streams, octets: bytes) -> Message:
        reader, writer = streams
        writer.write(octets)
        header = await reader.readexactly(20)
        return decode(header + await reader.readexactly(int.from_bytes(header[2:4])))

    def make(self, method: Method) -> Message:
        return Message.request(method, os.urandom(12))

    async def allocate(self) -> tuple[Streams, Address]:
        control = await self.open()
        request = self.make(Method.ALLOCATE).add(REQUESTED_TRANSPORT, 6)
        response = await self.ask(control, request)
        relayed = response.get(XOR_RELAYED_ADDRESS)
        assert relayed is not None
        return control, relayed

    async def connect(self, control: Streams, peer: Address) -> int:
        request = self.make(Method.CONNECT).add(XOR_PEER_ADDRESS, peer)
        return (await self.ask(control, request)).get(CONNECTION_ID) or 0

    async def bind(self, identifier: int, behind: bytes = b"") -> Streams:
        data = await self.open()
        request = self.make(Method.CONNECTION_BIND).add(CONNECTION_ID, identifier)
        await self.ask(data, request, behind)
        return data


@asynccontextmanager
async def scene(limits: Limits = UNLIMITED) -> AsyncIterator[Scene]:
    config = ServerConfig(
        listeners=(ListenAt(Transport.TCP, Address(HOST, 0)),),
        relays=(RelayAddress(HOST, HOST),),
        realm=REALM_NAME,
        policy=PeerPolicy(allow=[f"{HOST}/32"], own=[HOST]),
        limits=limits,
    )
    server = Server(
        config,
        StaticUsers({"alice": "secret"}, REALM_NAME),
        NonceMaker((os.urandom(16),)),
        entropy=os.urandom,
    )
    serving: asyncio.Future[Address] = asyncio.get_running_loop().create_future()

    def on_event(event: object) -> None:
        if isinstance(event, Serving):
            serving.set_result(event.local)

    async with Driver(server, on_event=on_event) as driver:
        server.start(driver.now())
        driver.flush()
        turn = Scene(server, await serving)
        try:
            yield turn
        finally:
            await turn.close()


async def send(streams: Streams, octets: bytes, rng: random.Random) -> None:
    at = 0
    while at < len(octets):
        cut = at + rng.randint(1, 200_000)
        streams[1].write(octets[at:cut])
        await streams[1].drain()
        at = cut


async def receive(streams: Streams, size: int, rng: random.Random) -> str:
    digest, left = hashlib.sha256(), size
    while left:
        octets = await streams[0].read(rng.randint(1, 300_000))
        assert octets, f"{left} octets are missing"
        digest.update(octets)
        left -= len(octets)
    return digest.hexdigest()


async def read_all(turn: Scene, address: Address) -> bytes:
    """Connect, and read what comes."""
    reader, _ = await turn.open(address)
    return await reader.read()


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


def test_much_goes_both_ways_at_once_and_arrives_whole(rng: random.Random) -> None:
    there, back = rng.randbytes(MUCH), rng.randbytes(MUCH)

    async def body() -> None:
        async with scene() as turn, turn.peer() as (address, accepted):
            control, _ = await turn.allocate()
            data = await turn.bind(await turn.connect(control, address))
            peer = await accepted.get()
            _, _, first, second = await asyncio.gather(
                send(data, there, rng),
                send(peer, back, rng),
                receive(peer, MUCH, rng),
                receive(data, MUCH, rng),
            )
            assert first == hashlib.sha256(there).hexdigest()
            assert second == hashlib.sha256(back).hexdigest()

    run(body)


def test_who_does_not_read_holds_the_sender_and_loses_nothing(rng: random.Random) -> None:
    octets = rng.randbytes(MUCH)

    async def body() -> None:
        async with scene() as turn, turn.peer() as (address, accepted):
            control, _ = await turn.allocate()
            # The client's side reads nothing until the peer cannot write any more.
            data = await turn.bind(await turn.connect(control, address))
            data[0]._transport.pause_reading()  # type: ignore[attr-defined]
            peer = await accepted.get()
            sending = asyncio.create_task(send(peer, octets, rng))
            before = -1
            usage = turn.server.usage
            while usage().octets_to_client != before:
                before = usage().octets_to_client
                await asyncio.sleep(0.3)
            assert 0 < before < MUCH
            assert not sending.done()
            data[0]._transport.resume_reading()  # type: ignore[attr-defined]
            assert await receive(data, MUCH, rng) == hashlib.sha256(octets).hexdigest()
            await sending

    run(body)


def test_who_does_not_read_can_still_send(rng: random.Random) -> None:
    octets = rng.randbytes(MUCH)

    async def body() -> None:
        async with scene() as turn, turn.peer() as (address, accepted):
            control, _ = await turn.allocate()
            data = await turn.bind(await turn.connect(control, address))
            data[0]._transport.pause_reading()  # type: ignore[attr-defined]
            peer = await accepted.get()
            flood = asyncio.create_task(send(peer, bytes(2 * MUCH), rng))
            _, digest = await asyncio.gather(send(data, octets, rng), receive(peer, MUCH, rng))
            assert digest == hashlib.sha256(octets).hexdigest()
            assert not flood.done()
            flood.cancel()

    run(body)


def test_what_was_sent_before_the_bind_and_before_the_end_is_delivered(rng: random.Random) -> None:
    octets = rng.randbytes(1 << 20)

    async def body() -> None:
        async with scene() as turn, turn.peer() as (address, accepted):
            control, _ = await turn.allocate()
            identifier = await turn.connect(control, address)
            peer = await accepted.get()
            sending = asyncio.create_task(send(peer, octets, rng))
            data = await turn.bind(identifier, behind=b"\x40\x00\x00\x05hello")
            assert await peer[0].readexactly(9) == b"\x40\x00\x00\x05hello"
            await sending
            peer[1].close()
            assert await receive(data, len(octets), rng) == hashlib.sha256(octets).hexdigest()
            assert await data[0].read() == b""

    run(body)


def test_a_peer_connects_to_the_relayed_address(rng: random.Random) -> None:
    async def body() -> None:
        async with scene() as turn:
            control, relayed = await turn.allocate()
            with pytest.raises(ConnectionResetError):
                await read_all(turn, relayed)
            permission = turn.make(Method.CREATE_PERMISSION)
            await turn.ask(control, permission.add(XOR_PEER_ADDRESS, Address(HOST, 1)))
            peer = await turn.open(relayed)
            peer[1].write(b"hello")
            header = await control[0].readexactly(20)
            attempt = decode(header + await control[0].readexactly(int.from_bytes(header[2:4])))
            assert attempt.method == Method.CONNECTION_ATTEMPT
            assert attempt.get(XOR_PEER_ADDRESS) == Address(*peer[1].get_extra_info("sockname"))
            data = await turn.bind(attempt.get(CONNECTION_ID) or 0)
            assert await data[0].readexactly(5) == b"hello"
            data[1].write(b"welcome")
            assert await peer[0].readexactly(7) == b"welcome"
            control[1].close()  # the allocation ends, and with it every connection
            assert await peer[0].read() == b""
            assert await data[0].read() == b""

    run(body)


def test_a_rate_that_is_used_up_costs_no_octet(rng: random.Random) -> None:
    octets = rng.randbytes(3 << 20)
    rate = 2 << 20

    async def body() -> None:
        limits = Limits(octets_per_second_per_user=rate, octets_per_second_per_client=0)
        async with scene(limits) as turn, turn.peer() as (address, accepted):
            control, _ = await turn.allocate()
            data = await turn.bind(await turn.connect(control, address))
            peer = await accepted.get()
            sending = asyncio.create_task(send(data, octets, rng))
            assert await receive(peer, len(octets), rng) == hashlib.sha256(octets).hexdigest()
            await sending
            assert turn.server.usage().octets_from_client == len(octets)
            assert turn.server.usage().dropped == 0

    run(body)
