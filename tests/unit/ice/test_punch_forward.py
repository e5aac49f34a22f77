"""Connections through the tunnel: real sockets at both ends, a link in memory between."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from ice.errors import ConnectionLost
from ice.punch import forward as forwarding
from ice.punch.forward import expose, forward, listening
from ice.punch.link import PunchError
from ice.punch.mux import HEADER, Kind
from tools.punchdesk import Told, pair

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Tunnel:
    def __init__(self) -> None:
        self.a, self.b = pair()
        self.left, self.right = Told(), Told()
        self.server = listening("127.0.0.1", 0)
        self.port = self.server.getsockname()[1]
        self.tasks: list[asyncio.Task[None]] = []

    def begin(self, host: str, port: int) -> None:
        self.tasks = [
            asyncio.create_task(forward(self.a, self.left, self.server)),
            asyncio.create_task(expose(self.b, self.right, host, port)),
        ]

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def tunnel(handler: Handler | None) -> AsyncIterator[Tunnel]:
    """A tunnel to a server that does as told, or to a port where nobody is."""
    made = Tunnel()
    server = None
    if handler is None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
    else:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
    made.begin("127.0.0.1", port)
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        made.a.abort("over")
        if server is not None:
            server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # of sockets, which tell nobody
        await asyncio.sleep(0.01)


async def test_many_at_once(rng: random.Random) -> None:
    contents = [rng.randbytes(rng.choice([0, 1, 100, 70_000, 500_000])) for _ in range(60)]

    async def talk(made: Tunnel, content: bytes) -> None:
        reader, writer = await made.dial()

        async def write() -> None:
            writer.write(content)
            await writer.drain()
            writer.write_eof()

        _, got = await asyncio.gather(write(), reader.read())
        assert got == content
        await closed(writer)

    async with tunnel(echo) as made:
        await asyncio.gather(*(talk(made, content) for content in contents))
        await until(lambda: len(made.left.of("connection")) == 120)
        await until(lambda: len(made.right.of("connection")) == 120)
        for told in (made.left, made.right):
            states = [each["state"] for each in told.of("connection")]
            assert states.count("opened") == states.count("closed") == 60
        assert made.left.traffic.sent == made.right.traffic.received


async def test_each_direction_ends_by_itself() -> None:
    seen = asyncio.Queue[bytes]()

    async def sink_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.put_nowait(await reader.read())
        writer.write(b"after the end")
        writer.close()

    async with tunnel(sink_first) as made:
        reader, writer = await made.dial()
        writer.write(b"question")
        writer.write_eof()
        assert await seen.get() == b"question"
        assert await reader.read() == b"after the end"
        await closed(writer)


async def test_the_server_speaks_first_and_ends_first() -> None:
    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        writer.write_eof()
        assert await reader.read() == b"bye"
        writer.close()

    async with tunnel(banner) as made:
        reader, writer = await made.dial()
        assert await reader.read() == b"220 hello\r\n"
        writer.write(b"bye")
        await closed(writer)
        await until(lambda: made.right.of("connection")[-1]["state"] == "closed")


async def test_a_target_that_refuses() -> None:
    async with tunnel(None) as made:
        reader, writer = await made.dial()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await closed(writer)
        (left,), (right,) = made.left.of("connection"), made.right.of("connection")
        assert left["state"] == right["state"] == "refused"
        assert right["why"] == "connection refused"
        assert left["why"] == f"{right['peer']}: connection refused"
        # The tunnel goes on.
        reader, writer = await made.dial()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await closed(writer)


async def test_a_name_that_does_not_exist() -> None:
    made = Tunnel()
    made.begin("no-such-host.invalid", 80)
    reader, writer = await made.dial()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await closed(writer)
    assert made.left.of("connection")[0]["state"] == "refused"
    made.a.abort("over")
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def test_a_reset_stays_a_reset() -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with pytest.raises(ConnectionResetError):
            await reader.read()
        gone.set()
        writer.close()

    async with tunnel(wait) as made:
        _, writer = await made.dial()
        writer.write(b"x")
        await until(lambda: made.right.of("connection"))
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
        await gone.wait()
        await until(lambda: made.right.of("connection")[-1]["state"] == "reset")


async def test_a_stalled_connection_holds_up_no_other() -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() == b"echo\n":
            await echo(reader, writer)
            return
        try:
            while True:
                writer.write(bytes(65536))
                await writer.drain()
        except ConnectionError:
            writer.close()

    async with tunnel(pour) as made:
        stalled_reader, stalled = await made.dial()
        stalled.write(b"pour\n")
        transport = stalled.transport
        transport.pause_reading()
        await until(lambda: made.right.traffic.sent > 300_000)
        for _ in range(20):
            reader, writer = await made.dial()
            writer.write(b"echo\nhello")
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), 10) == b"hello"
            await closed(writer)
        before = made.right.traffic.sent
        await asyncio.sleep(0.1)
        assert made.right.traffic.sent - before < 100_000, "it goes on pouring"
        assert stalled_reader._transport is transport
        transport.abort()
        await until(lambda: made.right.of("connection")[-1]["state"] == "reset")


async def test_clients_that_came_before_the_link() -> None:
    made = Tunnel()
    reader, writer = await made.dial()
    writer.write(b"early")
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    made.begin("127.0.0.1", server.sockets[0].getsockname()[1])
    assert await reader.readexactly(5) == b"early"
    await closed(writer)
    made.a.abort("over")
    await asyncio.gather(*made.tasks, return_exceptions=True)
    server.close()


async def test_the_other_side_ends() -> None:
    async with tunnel(echo) as made:
        reader, writer = await made.dial()
        writer.write(b"x")
        await reader.readexactly(1)
        made.b.writer.write_eof()
        await made.tasks[0]
        assert made.left.of("note")[-1]["text"] == "the other side has ended"
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await closed(writer)
        with pytest.raises(ConnectionRefusedError):
            await made.dial()


async def test_the_link_is_lost() -> None:
    async with tunnel(echo) as made:
        reader, writer = await made.dial()
        writer.write(b"x")
        await reader.readexactly(1)
        made.a.cut()
        for task in made.tasks:
            with pytest.raises(ConnectionLost):
                await task
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await closed(writer)


@pytest.mark.parametrize("role", ["forward", "expose"])
async def test_a_peer_that_keeps_to_nothing(role: str) -> None:
    a, b = pair()
    server = listening("127.0.0.1", 0)
    other = {"forward": "expose", "expose": "forward"}[role]
    b.writer.write(f"punch/1 {other}\n".encode() + bytes(20))
    work = forward(a, Told(), server) if role == "forward" else expose(a, Told(), "127.0.0.1", 9)
    with pytest.raises(PunchError, match="kind 0") as caught:
        await work
    assert caught.value.code == "protocol"
    a.abort("")
    server.close()


async def test_a_peer_chooses_no_target() -> None:
    """What is exposed is one port: OPEN has no room for another."""
    a, b = pair()
    reached: asyncio.Queue[bytes] = asyncio.Queue()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.put_nowait(await reader.readexactly(4))
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    task = asyncio.create_task(expose(a, Told(), "127.0.0.1", port))
    b.writer.write(b"punch/1 forward\n" + HEADER.pack(Kind.OPEN, 1, 1000))
    await b.reader.readline()
    assert HEADER.unpack(await b.reader.readexactly(HEADER.size))[:2] == (Kind.ACCEPT, 1)
    b.writer.write(HEADER.pack(Kind.DATA, 1, 4) + b"here")
    assert await reached.get() == b"here"
    b.writer.write_eof()
    await task
    a.abort("")
    server.close()


async def test_a_client_that_leaves_before_the_target_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never = asyncio.Event()

    async def connect(*_: object) -> None:
        await never.wait()

    monkeypatch.setattr(forwarding, "_connect", connect)
    async with tunnel(echo) as made:
        _, writer = await made.dial()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: made.b.transport.passed)
        writer.transport.abort()
        await until(lambda: made.right.of("connection"))
        assert made.right.of("connection")[0]["state"] == "reset"


async def test_a_target_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(forwarding, "_connect", connect)
    monkeypatch.setattr(forwarding, "DIAL_SECONDS", 0.05)
    async with tunnel(echo) as made:
        reader, writer = await made.dial()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await closed(writer)
        assert made.right.of("connection")[0]["why"] == "no answer within 0.05 s"


def test_a_port_in_use() -> None:
    with (
        listening("127.0.0.1", 0) as first,
        pytest.raises(PunchError, match=r"cannot be opened at 127\.0\.0\.1: Addr"),
    ):
        listening("127.0.0.1", first.getsockname()[1])


def test_every_address() -> None:
    with listening("", 0) as everywhere:
        port = everywhere.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass
