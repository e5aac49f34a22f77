"""The event loop that shares its epoll set: asyncio's own business, and the other's."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux's")

if hasattr(select, "epoll"):
    from turn.dataplane.loop import RelayLoop, SharedSelector
    from turn.dataplane.wakeups import Events


def run(body: Callable[[RelayLoop], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, RelayLoop)
        await asyncio.wait_for(body(loop), 20)

    with asyncio.Runner(loop_factory=RelayLoop) as runner:
        runner.run(whole())


class Other:
    """Somebody who shares the set: echoes what comes to its socket."""

    def __init__(self, selector: SharedSelector) -> None:
        self.here, self.there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.here.setblocking(False)
        self.there.setblocking(False)
        self.fds = {self.here.fileno()}
        self.served = 0
        self.react: Callable[[], None] = lambda: None
        epoll = selector.share(self.serve, self.fds)
        assert epoll is not None
        epoll.register(self.here.fileno(), select.EPOLLIN)

    def serve(self, events: Events) -> None:
        self.served += 1
        for fd, mask in events:
            assert (fd, mask) == (self.here.fileno(), select.EPOLLIN)
            self.here.send(self.here.recv(100))
        self.react()

    def flood(self) -> None:
        """Be ready, always."""
        self.there.send(b"x")

        def again() -> None:
            self.there.send(self.there.recv(100))

        self.react = again

    def close(self) -> None:
        self.here.close()
        self.there.close()


@pytest.fixture
def others() -> Iterator[list[Other]]:
    made: list[Other] = []
    yield made
    for other in made:
        other.close()


def test_it_is_an_event_loop_as_any_other() -> None:
    async def body(loop: RelayLoop) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            big = b"x" * 60_000 + b"\n"
            writer.write(big)
            assert await reader.readline() == big
            writer.close()
            await writer.wait_closed()
        assert await asyncio.to_thread(lambda: 7) == 7
        begin = time.monotonic()
        await asyncio.sleep(0.01)
        assert time.monotonic() - begin >= 0.01

    run(body)


def test_both_are_served(others: list[Other]) -> None:
    async def body(loop: RelayLoop) -> None:
        other = Other(loop.selector)
        others.append(other)
        for n in range(20):
            other.there.send(b"%d" % n)
            assert await asyncio.wait_for(loop.sock_recv(other.there, 100), 5) == b"%d" % n
        assert other.served == 20

    run(body)


def test_the_loop_takes_no_turn_for_what_is_not_its_own(others: list[Other]) -> None:
    async def body(loop: RelayLoop) -> None:
        other = Other(loop.selector)
        others.append(other)
        turns = 0
        select_ = loop.selector.select

        def counted(timeout: float | None = None) -> Any:
            nonlocal turns
            turns += 1
            return select_(timeout)

        loop.selector.select = counted  # type: ignore[method-assign]
        other.flood()
        await asyncio.sleep(0.05)
        assert other.served > 50
        assert turns < 10

    run(body)


def test_timers_and_other_threads_are_on_time_in_a_flood(others: list[Other]) -> None:
    async def body(loop: RelayLoop) -> None:
        other = Other(loop.selector)
        others.append(other)
        other.flood()
        begin = time.monotonic()
        await asyncio.sleep(0.02)
        assert time.monotonic() - begin < 1
        called = asyncio.Event()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(called.set))
        thread.start()
        await asyncio.wait_for(called.wait(), 5)
        thread.join()
        one, two = socket.socketpair()
        with one, two:
            one.setblocking(False)
            two.send(b"y")
            assert await asyncio.wait_for(loop.sock_recv(one, 10), 5) == b"y"

    run(body)


@pytest.mark.parametrize("when", ["soon", "later"])
def test_the_loop_hears_of_what_it_is_to_do_at_once(others: list[Other], when: str) -> None:
    async def body(loop: RelayLoop) -> None:
        other = Other(loop.selector)
        others.append(other)
        done = asyncio.Event()

        def react() -> None:
            if when == "soon":
                done.set()  # wakes a waiting task: call_soon
            else:
                loop.call_later(0.001, done.set)

        other.react = react
        other.there.send(b"x")
        await done.wait()  # no timer of the loop's is due before its patience of 20 s
        assert other.served == 1

    run(body)


def test_a_reader_that_is_gone_meanwhile_takes_nobody_with_it(others: list[Other]) -> None:
    """Its descriptor's number may be another's by then: the loop would remove that one."""

    async def body(loop: RelayLoop) -> None:
        other = Other(loop.selector)
        others.append(other)
        doomed, its_peer = socket.socketpair()
        fd = doomed.fileno()
        replacement, heard = socket.socketpair(), asyncio.Event()
        loop.add_reader(fd, lambda: None)

        def react() -> None:
            other.react = lambda: None
            loop.remove_reader(fd)
            doomed.close()
            new = replacement[0].dup()
            assert new.fileno() == fd
            others_new.append(new)
            loop.add_reader(fd, heard.set)

        others_new: list[socket.socket] = []
        other.react = react
        its_peer.send(b"for the one that is gone")
        other.there.send(b"x")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert others_new
        replacement[1].send(b"y")
        await asyncio.wait_for(heard.wait(), 5)
        loop.remove_reader(fd)
        for sock in (its_peer, *replacement, *others_new):
            sock.close()

    run(body)


def test_only_one_shares_at_a_time(others: list[Other]) -> None:
    async def body(loop: RelayLoop) -> None:
        others.append(Other(loop.selector))
        assert loop.selector.share(lambda events: None, ()) is None
        others.pop().close()
        loop.selector.unshare()
        others.append(Other(loop.selector))

    run(body)


def test_it_can_be_stopped_by_whom_it_serves(others: list[Other]) -> None:
    loop = RelayLoop()
    try:
        other = Other(loop.selector)
        others.append(other)
        other.react = loop.stop
        other.there.send(b"x")
        loop.run_forever()
        assert other.served == 1
    finally:
        loop.close()
