"""The rendezvous on loopback: real sockets, real certificates, clients that die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from ice.rendezvous.places import Place, by_address
from ice.rendezvous.protocol import (
    MAX_DATA,
    Error,
    Gone,
    Join,
    Joined,
    Leave,
    Message,
    Peer,
    Welcome,
    from_server,
)
from ice.rendezvous.server import CannotListen, RendezvousServer
from ice.rendezvous.terms import Terms
from stun.errors import UsageError
from stun.sansio import MILLISECOND, Address
from stun.streams import Networks
from stun.tls import ServerTls
from tools.certificate import write_self_signed

EASY = Terms(connects=0, joins=0, messages=0, octets=0)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def running(
    *urls: str, terms: Terms = EASY, **options: Any
) -> AsyncIterator[RendezvousServer]:
    server = RendezvousServer(terms=terms, **options)
    server.serve_at([Place.parse(url) for url in urls])
    async with server:
        life = asyncio.create_task(server.run())
        try:
            yield server
        finally:
            assert not life.done(), life
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)


async def hears(client: ClientConnection) -> Any:
    return from_server(await asyncio.wait_for(client.recv(), 20))


async def joins(client: ClientConnection, name: str | None, hello: bytes = b"hello") -> list[Any]:
    """Join; return what is said up to the answer."""
    await client.send(Join(name, hello).encode())
    return [await hears(client), await hears(client)]


@contextlib.asynccontextmanager
async def pair(url: str, **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    async with connect(url, **options) as first, connect(url, **options) as second:
        _, joined = await joins(first, None, b"first")
        assert isinstance(joined, Joined)
        await joins(second, joined.name, b"second")
        assert await hears(first) == Peer(b"second")
        assert await hears(second) == Peer(b"first")
        yield first, second


async def test_two_meet() -> None:
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    async with running(url), pair(url) as (first, second):
        for size in (0, 1, MAX_DATA):
            await first.send(Message(bytes(size)).encode())
            await second.send(Message(bytes(size)).encode())
        for client in (first, second):
            assert [len((await hears(client)).data) for _ in range(3)] == [0, 1, MAX_DATA]
        await first.send(Leave().encode())
        assert await hears(second) == Gone("left")
        with pytest.raises(ConnectionClosed):
            await second.recv()
        assert second.close_code == 1000


async def test_both_families_of_a_wildcard() -> None:
    port = free_port()
    async with running(f"ws://*:{port}") as server:
        assert server.serving == {Address("0.0.0.0", port), Address("::", port)}
        for host in ("127.0.0.1", "[::1]"):
            async with connect(f"ws://{host}:{port}") as client:
                welcome = await hears(client)
                assert isinstance(welcome, Welcome)
                assert welcome.observed.host == host.strip("[]")
                assert welcome.observed.port == client.local_address[1]


async def test_an_oversized_message_is_told() -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    async with running(url), pair(url) as (first, second):
        await first.send("x" * 1_000_000)
        error = await hears(first)
        assert isinstance(error, Error)
        assert error.code == "too-large"
        assert await hears(second) == Gone("expelled")


async def test_it_says_goodbye() -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(running(url))
        clients = [await stack.enter_async_context(connect(url)) for _ in range(3)]
        for client in clients:
            await joins(client, None)
        await server.__aexit__(None, None, None)
        for client in clients:
            error = await hears(client)
            assert isinstance(error, Error)
            assert error.code == "shutting-down"
        with pytest.raises(OSError, match="Connect call failed"):
            await connect(url)


# Certificates. ------------------------------------------------------------------------------------


async def test_wss_and_a_renewed_certificate(tmp_path: Path) -> None:
    path = write_self_signed(tmp_path / "here.pem", "here.example", "127.0.0.1")
    tls = ServerTls(path)
    url = f"wss://127.0.0.1:{free_port()}"

    def trusting() -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=path)
        # As browsers do.
        context.set_alpn_protocols(["http/1.1"])
        return context

    async with running(url, tls=lambda: tls):
        before = trusting()
        async with pair(url, ssl=before) as (first, second):
            write_self_signed(path, "here.example", "127.0.0.1")
            assert tls.reload()
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(url, ssl=before)
            async with connect(url, ssl=trusting()) as client:
                assert isinstance(await hears(client), Welcome)
            await first.send(Message(b"as before").encode())
            assert await hears(second) == Message(b"as before")


async def test_plain_text_on_a_port_for_tls_is_refused(tmp_path: Path) -> None:
    tls = ServerTls(write_self_signed(tmp_path / "here.pem", "127.0.0.1"))
    port = free_port()
    async with running(f"wss://127.0.0.1:{port}", tls=lambda: tls) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        writer.close()
        assert len(server.hall) == 0


# Clients that die. --------------------------------------------------------------------------------

_CHILD = """
import asyncio, sys
from websockets.asyncio.client import connect
from ice.rendezvous.protocol import Join
async def main():
    async with connect(sys.argv[1]) as client:
        await client.recv()
        await client.send(Join("a", b"child").encode())
        await client.recv()
        print("joined", flush=True)
        await asyncio.sleep(100)
asyncio.run(main())
"""


async def test_a_client_that_is_killed() -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    async with running(url) as server, connect(url) as client:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CHILD, url, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        await child.stdout.readline()
        await joins(client, "a")
        assert await hears(client) == Peer(b"child")
        os.kill(child.pid, signal.SIGKILL)
        assert await hears(client) == Gone("lost")
        await child.wait()
        child._transport.close()  # type: ignore[attr-defined]
        assert server.hall.counts.went["broken"] == 1


async def test_a_client_whose_network_vanishes() -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    terms = replace(EASY, quiet_paired=200 * MILLISECOND, patience=200 * MILLISECOND)
    async with running(url, terms=terms) as server, pair(url, close_timeout=0.1) as (first, second):
        # Its connection stays, and nothing comes through it any more.
        first.transport.pause_reading()
        assert await hears(second) == Gone("lost")
        assert server.hall.counts.went["no answer"] == 1


async def test_a_client_that_does_not_read_is_bounded() -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    async with running(url) as server, pair(url) as (first, second):
        second.transport.pause_reading()
        text, sent = Message(bytes(MAX_DATA)).encode(), 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while sent < 2000:
                    await first.send(text)
                    sent += 1
        # The kernel's buffers took some; then the sender was not read from any more.
        assert sent < 2000
        kept = sum(stream.waiting for stream in server._driver._sockets.streams._streams.values())
        assert kept < 1 << 20
        second.transport.resume_reading()
        for _ in range(sent):
            assert len((await hears(second)).data) == MAX_DATA


# Where it listens. --------------------------------------------------------------------------------


async def test_it_goes_over_to_other_places(tmp_path: Path) -> None:
    tls = ServerTls(write_self_signed(tmp_path / "here.pem", "127.0.0.1"))
    trusting = ssl.create_default_context(cafile=tmp_path / "here.pem")
    old, new, secure = (free_port() for _ in range(3))
    before = f"ws://127.0.0.1:{old}"
    async with running(before, tls=lambda: tls) as server, pair(before) as (first, second):
        urls = [f"ws://127.0.0.1:{new}", f"wss://127.0.0.1:{secure}"]
        places = [Place.parse(url) for url in urls]
        server.check(places)
        server.serve_at(places)
        async with connect(urls[0]) as one, connect(urls[1], ssl=trusting) as other:
            assert isinstance(await hears(one), Welcome)
            assert isinstance(await hears(other), Welcome)
        with pytest.raises(OSError, match="Connect call failed"):
            await connect(before)
        await first.send(Message(b"still").encode())
        assert await hears(second) == Message(b"still")


async def test_a_port_in_use() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(CannotListen, match=f"port {port} of TCP is in use; `ss -lpn"):
            async with running(f"ws://127.0.0.1:{port}"):
                raise AssertionError("it must not serve")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ws://203.0.113.77:8080", "203.0.113.77 is not an address of this machine"),
        ("wss://127.0.0.1:8443", "wss://127.0.0.1:8443 needs a certificate"),
    ],
)
async def test_what_cannot_be_had(url: str, words: str) -> None:
    with pytest.raises(CannotListen, match=words):
        async with running(url):
            raise AssertionError("it must not serve")


async def test_a_proxy_says_who_the_client_is() -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    async with running(url, proxies=Networks(["127.0.0.0/8"])):
        headers = {"X-Forwarded-For": "203.0.113.5"}
        async with connect(url, additional_headers=headers) as client:
            assert (await hears(client)).observed == Address("203.0.113.5", 0)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("ws://*:8080", "ws://*:8080"),
        ("WS://127.0.0.1", "ws://127.0.0.1:8080"),
        ("wss://[2001:db8:0::7]/", "wss://[2001:db8::7]:443"),
    ],
)
def test_places(text: str, read: str) -> None:
    assert str(Place.parse(text)) == read


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8080", "write ws://ADDRESS:PORT"),
        ("http://*:8080", "write ws://ADDRESS:PORT"),
        ("ws://::1:8080", "write ws://ADDRESS:PORT"),
        ("ws://example.org:8080", "names are not looked up"),
        ("ws://*:0", "0 is not a port"),
        ("ws://*:65536", "65536 is not a port"),
        ("ws://*:8080/path", "write ws://ADDRESS:PORT"),
    ],
)
def test_what_is_no_place(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Place.parse(text)


def test_a_port_is_of_one_kind() -> None:
    places = [Place.parse("ws://127.0.0.1:8080"), Place.parse("wss://127.0.0.2:8080")]
    with pytest.raises(UsageError, match="either for ws or for wss"):
        by_address(places)
