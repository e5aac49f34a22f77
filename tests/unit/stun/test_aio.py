"""The asyncio driver's own: events, the end, cancellation, failures; and ``aio.binding``."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from stun import aio, sockets
from stun.discovery import Transport
from stun.errors import StunError, TransactionTimedOut, TransportFailed, UsageError
from stun.sansio import (
    Address,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Received,
    SocketEvent,
    Transmit,
)
from stun.server import Server, ServerConfig, Serving

ANY = Address("127.0.0.1", 0)


class Teller:
    """Tells what it hears."""

    def __init__(self, *orders: Any) -> None:
        self.queue: deque[Any] = deque(orders)

    def receive(self, packet: Received, now: Instant) -> None:
        self.queue.append(packet.data)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        self.queue.append(event)

    def on_deadline(self, now: Instant) -> None: ...

    def poll(self) -> Any:
        return self.queue.popleft() if self.queue else None

    def deadline(self) -> Instant | None:
        return None


class Broken(Teller):
    def receive(self, packet: Received, now: Instant) -> None:
        raise ZeroDivisionError("a mistake in a machine")


def asynchronous(test: Callable[..., Any]) -> Callable[..., None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 20))

    run.__name__ = test.__name__
    return run


@asynchronous
async def test_events_are_iterated_in_order() -> None:
    machine = Teller("first", OpenUdp(1, ANY))
    async with aio.Driver(machine) as driver, aclosing(driver.events()) as events:
        assert await anext(events) == "first"
        opened = await anext(events)
        assert isinstance(opened, Opened)
        machine.queue.append(Transmit(b"x", opened.local, opened.local))
        driver.flush()
        assert await anext(events) == b"x"


@asynchronous
async def test_closing_ends_run_and_events_after_what_was_kept() -> None:
    async with aio.Driver(Teller("one", "two")) as driver:
        driver.close()
        await driver.run()
        assert [event async for event in driver.events()] == ["one", "two"]
        driver.flush()  # too late, and no mistake


@asynchronous
async def test_events_that_nobody_takes_are_bounded_and_counted() -> None:
    machine = Teller(*range(sockets.EVENT_LIMIT + 3))
    async with aio.Driver(machine) as driver:
        assert driver.counters["events that nobody took"] == 3
        async with aclosing(driver.events()) as events:
            assert await anext(events) == 3


@asynchronous
async def test_cancellation_closes_everything() -> None:
    opened: list[Opened] = []
    both = asyncio.Event()

    def on_event(event: Opened) -> None:
        opened.append(event)
        if len(opened) == 2:
            both.set()

    async def body() -> None:
        async with aio.Driver(Teller(OpenUdp(1, ANY), Listen(2, ANY)), on_event=on_event) as driver:
            await driver.run()

    task = asyncio.create_task(body())
    await both.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(opened[0].local)
    with socket.socket() as refused, pytest.raises(ConnectionRefusedError):
        refused.connect(opened[1].local)


@pytest.mark.parametrize("how", ["run", "events", "leaving"])
def test_a_mistake_of_the_machine_ends_the_driver_and_comes_out(how: str) -> None:
    async def body() -> None:
        opened: list[Any] = []
        machine = Broken(OpenUdp(1, ANY))
        async with aio.Driver(machine, on_event=opened.append if how != "events" else None) as d:
            if how == "events":
                async with aclosing(d.events()) as events:
                    opened.append(await anext(events))
                    machine.queue.append(Transmit(b"x", opened[0].local, opened[0].local))
                    d.flush()
                    await anext(events)
            machine.queue.append(Transmit(b"x", opened[0].local, opened[0].local))
            d.flush()
            if how == "run":
                await d.run()
            await asyncio.sleep(0.05)

    with pytest.raises(ZeroDivisionError, match="a mistake in a machine"):
        asyncio.run(asyncio.wait_for(body(), 10))


@asynchronous
async def test_time_is_that_of_the_loop() -> None:
    async with aio.Driver(Teller()) as driver:
        before = asyncio.get_running_loop().time()
        now = driver.now()
        after = asyncio.get_running_loop().time()
        assert before * 1e9 - 1000 <= now <= after * 1e9 + 1000


@asynchronous
async def test_a_deadline_that_moves_away_with_every_packet_costs_no_timer_each() -> None:
    class Patient(Teller):
        def deadline(self) -> Instant | None:
            return driver.now() + 60_000_000_000

    machine = Patient(OpenUdp(1, ANY))
    loop = asyncio.get_running_loop()
    driver: aio.Driver[Any] = aio.Driver(machine)
    armed: list[Any] = []
    real = loop.call_at
    async with driver, aclosing(driver.events()) as events:
        opened = await anext(events)
        loop.call_at = lambda *a, **k: armed.append(a) or real(*a, **k)  # type: ignore
        for _ in range(100):
            machine.queue.append(Transmit(b"x", opened.local, opened.local))
            driver.flush()
            await anext(events)
    assert len(armed) <= 1


# One question. ------------------------------------------------------------------------------------


def free_for_both(host: str) -> int:
    """Return a port that is free for TCP and for UDP: other tests run beside this one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(100):
        with socket.socket(family) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            tcp.bind((host, 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind((host, port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@asynccontextmanager
async def serving(host: str = "127.0.0.1") -> AsyncIterator[Address]:
    local = Address(host, free_for_both(host))
    server = Server(ServerConfig(local, connect_back=False), entropy=os.urandom)
    open_places: list[Any] = []
    async with aio.Driver(server, on_event=open_places.append) as driver:
        server.start(driver.now())
        driver.flush()
        assert sum(isinstance(event, Serving) for event in open_places) == 2
        yield local


@pytest.mark.parametrize("transport", [None, Transport.UDP, Transport.TCP])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_binding(transport: Transport | None, host: str) -> None:
    async def body() -> None:
        async with serving(host) as server:
            mapped = await aio.binding(f"stun:{server}", transport=transport, timeout=5)
            assert mapped.host == host
            assert mapped.port

    asyncio.run(body())


@asynchronous
async def test_binding_says_what_failed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        with pytest.raises(TransactionTimedOut, match=r"no answer within 0\.2 s"):
            await aio.binding(f"127.0.0.1:{port}", timeout=0.2)
        with pytest.raises(TransportFailed, match="refused"):
            await aio.binding(f"127.0.0.1:{port}", transport=Transport.TCP, timeout=5)
    with pytest.raises(UsageError):
        await aio.binding("stun://example.com")
    with pytest.raises(StunError):
        await aio.binding("127.0.0.1", family=6)
