"""Standard input and output, whatever they are, joined to the other side's."""

from __future__ import annotations

import asyncio
import os
import pty
import random
import threading
from pathlib import Path

import pytest

from ice.errors import ConnectionLost
from ice.punch import stdio
from ice.punch.link import PunchError, Traffic, hang_up
from ice.punch.pipe import OutputClosed, join
from ice.punch.stdio import Sink, Source
from tools.punchdesk import End, pair


@pytest.fixture(autouse=True)
def no_thread_stays() -> object:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("punch"):
            thread.join(5)
            assert not thread.is_alive()


class Pipe:
    """A pipe, as its two ends: what a test has closed is not closed again, when another has it."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self._open = {self.read, self.write}

    def close(self, fd: int) -> None:
        self._open.remove(fd)
        os.close(fd)

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in list(self._open):
            self.close(fd)


async def everything(end: End) -> bytes:
    """Be the other side, which says nothing and reads to the end."""
    end.writer.write_eof()
    return await end.reader.read()


def null() -> int:
    return os.open(os.devnull, os.O_RDWR)


async def run(end: End, stdin: int | None, stdout: int | None) -> Traffic:
    traffic = Traffic()
    await join(end, traffic, stdin, stdout)
    return traffic


# Inputs. ------------------------------------------------------------------------------------------


async def test_a_file_is_read_whole(tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes(3_000_000)
    (tmp_path / "in").write_bytes(content)
    with (tmp_path / "in").open("rb") as file, (tmp_path / "out").open("wb") as out:
        a, b = pair()
        traffic, got = await asyncio.gather(run(a, file.fileno(), out.fileno()), everything(b))
        assert got == content
        assert (traffic.sent, traffic.received) == (3_000_000, 0)
    a.abort("")


@pytest.mark.parametrize("kind", ["none", "null", "empty pipe"])
async def test_inputs_that_end_at_once(kind: str) -> None:
    with Pipe() as pipe:
        pipe.close(pipe.write)
        fd = {"none": None, "null": null(), "empty pipe": pipe.read}[kind]
        a, b = pair()
        _, got = await asyncio.gather(run(a, fd, null()), everything(b))
        assert got == b""
        a.abort("")


async def test_a_terminal() -> None:
    master, slave = pty.openpty()
    a, b = pair()
    task = asyncio.create_task(run(a, slave, slave))
    os.write(master, b"typed\n")
    assert await b.reader.readline() == b"typed\n"
    b.writer.write(b"shown\n")
    b.writer.write_eof()
    os.write(master, b"\x04")  # the end of input, as typed
    assert await b.reader.read() == b""
    await task
    shown = b""
    while b"shown\r\n" not in shown:
        shown += os.read(master, 1000)
    os.close(master)
    os.close(slave)
    a.abort("")


async def test_an_input_that_is_non_blocking() -> None:
    with Pipe() as pipe:
        os.set_blocking(pipe.read, False)
        a, b = pair()
        task = asyncio.create_task(run(a, pipe.read, null()))
        b.writer.write_eof()
        for n in range(3):
            os.write(pipe.write, b"%d" % n)
            assert await b.reader.read(1) == b"%d" % n
        pipe.close(pipe.write)
        await task
        a.abort("")


async def test_an_input_that_fails(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)  # a directory
    a, _ = pair()
    with pytest.raises(PunchError, match="the input cannot be read: Is a directory"):
        await run(a, fd, null())
    os.close(fd)
    a.abort("")


async def test_a_slow_reader_slows_the_input_down() -> None:
    with Pipe() as pipe:
        a, b = pair()
        b.transport.pause_reading()
        task = asyncio.create_task(run(a, pipe.read, null()))
        os.set_blocking(pipe.write, False)
        written = 0
        for _ in range(2000):
            try:
                written += os.write(pipe.write, bytes(65536))
            except BlockingIOError:
                await asyncio.sleep(0)
            if written > 20_000_000:
                break
        # The link's window, what waits between the thread and the loop, and the pipe itself.
        assert written < (stdio.AHEAD + 4) * stdio.CHUNK
        b.transport.resume_reading()
        b.writer.write_eof()
        pipe.close(pipe.write)
        assert len(await b.reader.read()) == written
        await task
        a.abort("")


# Outputs. -----------------------------------------------------------------------------------------


async def test_each_direction_ends_by_itself() -> None:
    with Pipe() as pipe:
        a, b = pair()
        task = asyncio.create_task(run(a, None, pipe.write))
        assert await b.reader.read() == b""  # our input has ended; our output goes on
        b.writer.write(b"still here")
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, os.read, pipe.read, 100) == b"still here"
        assert not task.done()
        b.writer.write_eof()
        # The output's reader sees the end when the direction ends.
        assert await loop.run_in_executor(None, os.read, pipe.read, 100) == b""
        await task
        a.abort("")


async def test_the_output_ends_while_the_input_goes_on() -> None:
    with Pipe() as inner, Pipe() as outer:
        a, b = pair()
        task = asyncio.create_task(run(a, inner.read, outer.write))
        b.writer.write(b"all")
        b.writer.write_eof()
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, os.read, outer.read, 100) == b"all"
        assert await loop.run_in_executor(None, os.read, outer.read, 100) == b""
        outer.close(outer.read)  # which is no reason to end: everything has been read
        os.write(inner.write, b"more")
        assert await b.reader.readexactly(4) == b"more"
        inner.close(inner.write)
        await task
        a.abort("")


async def test_an_output_whose_reader_leaves_while_nothing_comes() -> None:
    with Pipe() as inner, Pipe() as outer:
        a, _ = pair()
        task = asyncio.create_task(run(a, inner.read, outer.write))
        outer.close(outer.read)
        with pytest.raises(OutputClosed):
            await asyncio.wait_for(task, 10)
        a.abort("")


async def test_an_output_whose_reader_leaves_while_octets_come() -> None:
    with Pipe() as outer:
        a, b = pair()
        task = asyncio.create_task(run(a, None, outer.write))

        async def pour() -> None:
            while True:
                b.writer.write(bytes(65536))
                await b.writer.drain()

        pouring = asyncio.create_task(pour())
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, os.read, outer.read, 10)
        outer.close(outer.read)
        with pytest.raises(OutputClosed):
            await asyncio.wait_for(task, 10)
        hang_up(a, "nobody reads the output any more")
        with pytest.raises(ConnectionLost, match="the peer ended it: nobody reads"):
            await pouring


async def test_a_closed_output_is_one_that_nobody_reads() -> None:
    a, _ = pair()
    with pytest.raises(OutputClosed):
        await run(a, None, None)
    a.abort("")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_a_full_disk() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    a, b = pair()
    b.writer.write(b"x")
    with pytest.raises(PunchError, match="the output cannot be written: No space left on device"):
        await run(a, None, fd)
    os.close(fd)
    a.abort("")


async def test_an_output_that_is_non_blocking_and_slow(rng: random.Random) -> None:
    content = rng.randbytes(1_000_000)
    with Pipe() as pipe:
        os.set_blocking(pipe.write, False)
        a, b = pair()
        b.writer.write(content)
        b.writer.write_eof()
        task = asyncio.create_task(run(a, None, pipe.write))
        loop = asyncio.get_running_loop()
        got = b""
        while data := await loop.run_in_executor(None, os.read, pipe.read, 10_000):
            got += data
        assert got == content
        await task
        a.abort("")


async def test_a_slow_output_slows_the_peer_down() -> None:
    with Pipe() as pipe:
        sink = Sink(pipe.write)
        task = asyncio.create_task(sink.write(bytes(stdio.UNWRITTEN + 200_000)))
        await asyncio.sleep(0)
        assert not task.done()
        got = 0
        loop = asyncio.get_running_loop()
        while not task.done():
            got += len(await loop.run_in_executor(None, os.read, pipe.read, 65536))
        assert got >= 100_000
        sink.stop()
        while got < stdio.UNWRITTEN + 200_000:  # what is being written is written
            got += len(await loop.run_in_executor(None, os.read, pipe.read, 1 << 20))


# Ends that are none. ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["cut", "cancel"])
async def test_interrupted(end: str) -> None:
    with Pipe() as inner, Pipe() as outer:
        a, b = pair()
        task = asyncio.create_task(run(a, inner.read, outer.write))
        b.writer.write(b"x")
        await asyncio.sleep(0)
        if end == "cut":
            a.cut()
            with pytest.raises(ConnectionLost, match="nothing was heard"):
                await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        a.abort("")


@pytest.mark.parametrize("worker", [Source, Sink])
async def test_a_thread_that_waits_can_be_ended(worker: type[Source | Sink]) -> None:
    with Pipe() as pipe:
        made = worker(pipe.read if worker is Source else pipe.write)
        made.stop()
        made._thread.join(5)
        assert not made._thread.is_alive()
