"""The transport under asyncio's reader and writer: back-pressure both ways, and every end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ice.link.stream import LinkTransport

LIMIT = 64


class Session:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.room = 100
        self.written = bytearray()
        self.used = 0
        self.told: list[str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data
        self.room -= len(data)

    def write_eof(self) -> None:
        self.told.append("eof")

    def consumed(self, octets: int) -> None:
        self.used += octets

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")


def run(
    test: Callable[[Session, LinkTransport], Coroutine[Any, Any, None]],
) -> None:
    async def main() -> None:
        session = Session()
        link = LinkTransport(session, asyncio.get_running_loop(), LIMIT, {"path": "p"}.get)
        try:
            await test(session, link)
        finally:
            link.lost(None)

    asyncio.run(main())


def test_what_arrives_is_read() -> None:
    async def test(session: Session, link: LinkTransport) -> None:
        link.feed(b"one\ntwo")
        assert await link.reader.readline() == b"one\n"
        link.feed(memoryview(b"!"))
        link.feed_eof()
        assert await link.reader.read() == b"two!"
        assert session.used == 8

    run(test)


def test_a_reader_that_is_slow_slows_the_peer_down() -> None:
    async def test(session: Session, link: LinkTransport) -> None:
        link.feed(bytes(2 * LIMIT))
        assert session.used == 2 * LIMIT
        link.feed(bytes(1))
        link.feed(bytes(10))
        assert not link.is_reading()
        # What was fed before the reader said that it is full counts as used; the rest does not.
        assert session.used < 2 * LIMIT + 11
        await link.reader.readexactly(2 * LIMIT)
        assert link.is_reading()
        assert session.used == 2 * LIMIT + 11

    run(test)


def test_a_writer_waits_for_room() -> None:
    async def test(session: Session, link: LinkTransport) -> None:
        link.writer.write(bytes(99))
        await link.writer.drain()
        link.writer.write(bytes(1))
        waiting = asyncio.create_task(link.writer.drain())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        session.room = 50
        link.relieved()
        await waiting
        assert len(session.written) == 100

    run(test)


def test_each_direction_ends_by_itself() -> None:
    async def test(session: Session, link: LinkTransport) -> None:
        link.writer.write_eof()
        link.writer.write_eof()
        assert session.told == ["eof"]
        with pytest.raises(RuntimeError, match="has been ended"):
            link.writer.write(b"more")
        link.feed(b"still")
        assert await link.reader.read(5) == b"still"

    run(test)


def test_after_close_nothing_is_read_and_the_peer_is_not_held_up() -> None:
    async def test(session: Session, link: LinkTransport) -> None:
        link.feed(bytes(3 * LIMIT))
        before = session.used
        link.writer.close()
        assert session.told == ["close"]
        assert session.used >= before
        link.feed(bytes(1000))
        assert session.used == 3 * LIMIT + 1000
        link.lost(None)
        await link.writer.wait_closed()

    run(test)


def test_a_loss_is_raised_by_reader_and_writer() -> None:
    async def test(session: Session, link: LinkTransport) -> None:
        reading = asyncio.create_task(link.reader.read(1))
        session.room = 0
        link.writer.write(b"x")
        waiting = asyncio.create_task(link.writer.drain())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        link.lost(ConnectionResetError("the peer is gone"))
        for task in (reading, waiting):
            with pytest.raises(ConnectionError):
                await task
        link.writer.write(b"dropped")
        assert session.written == b"x"

    run(test)


def test_what_the_writer_knows_of_the_link() -> None:
    async def test(session: Session, link: LinkTransport) -> None:
        assert link.writer.get_extra_info("path") == "p"
        assert link.writer.get_extra_info("peername", 7) == 7
        link.abort()
        assert session.told == ["abort"]
        assert link.is_closing()

    run(test)
