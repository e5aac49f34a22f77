"""Connections of turnd's small servers: none outlives its server, whatever its visitor does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from turn.daemon import visits
from turn.daemon.visits import Serve, Visits


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[tuple[Visits, asyncio.Server, int]]:
    made = Visits(serve)
    server = await asyncio.start_server(made, "127.0.0.1", 0)
    yield made, server, server.sockets[0].getsockname()[1]
    if server.is_serving():
        await made.close(server)
    assert not made._tasks


async def closed(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.read()


async def test_a_visitor_is_served_and_the_connection_closed() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()) * 10_000)
        await writer.drain()

    async with serving(answer) as (_, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"to be read whole\n")
        assert await closed(reader) == b"to be read whole\n" * 10_000
        writer.close()


@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError])
async def test_who_has_gone_or_takes_too_long_is_no_error(error: type[Exception]) -> None:
    async def fail(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        raise error

    async with serving(fail) as (made, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        # The kernel may deliver an end where it was reset before anything was read.
        with suppress(ConnectionResetError):
            assert await closed(reader) == b""
        writer.close()
        assert not made._tasks


async def test_closing_ends_who_says_nothing_and_who_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(visits, "GRACE", 0.01)
    begun = asyncio.Semaphore(0)

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.release()
        if await reader.readline():
            writer.write(bytes(1 << 24))
            begun.release()
            await writer.drain()

    async with serving(pour) as (made, server, port):
        there = ("127.0.0.1", port)
        with socket.create_connection(there) as greedy, socket.create_connection(there):
            greedy.sendall(b"all of it\n")
            async with asyncio.timeout(10):
                for _ in range(3):
                    await begun.acquire()
                await made.close(server)
            assert not made._tasks


async def test_closing_waits_for_who_is_being_answered() -> None:
    go_on = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        go_on.set()
        await asyncio.sleep(0)
        writer.write(b"done")

    async with serving(answer) as (made, server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"reload\n")
        await go_on.wait()
        await made.close(server)
        assert await closed(reader) == b"done"
        writer.close()
