"""The blocking driver's own: stepping, waiting, events, failures, and one question to a server."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from stun import aio, blocking, sockets
from stun.discovery import Transport
from stun.errors import TransactionTimedOut
from stun.sansio import Address, Instant, Opened, OpenUdp, Received, SocketEvent, Transmit
from stun.server import Server, ServerConfig, Started

ANY = Address("127.0.0.1", 0)


class Teller:
    """Tells what it hears, and when its time has come."""

    def __init__(self, *orders: Any, due: Instant | None = None) -> None:
        self.queue: deque[Any] = deque(orders)
        self.due = due

    def receive(self, packet: Received, now: Instant) -> None:
        self.queue.append(packet.data)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        self.queue.append(event)

    def on_deadline(self, now: Instant) -> None:
        if self.due is not None and now >= self.due:
            self.due = None
            self.queue.append("due")

    def poll(self) -> Any:
        return self.queue.popleft() if self.queue else None

    def deadline(self) -> Instant | None:
        return self.due


def test_events_end_with_the_time() -> None:
    with blocking.Driver(Teller("one", "two")) as driver:
        assert list(driver.events(timeout=0.05)) == ["one", "two"]
        assert list(driver.events(timeout=0)) == []


def test_events_that_nobody_takes_are_bounded_and_counted() -> None:
    with blocking.Driver(Teller(*range(sockets.EVENT_LIMIT + 3))) as driver:
        driver.flush()
        assert driver.counters["events that nobody took"] == 3
        assert next(driver.events(timeout=0)) == 3


def test_closing_ends_events_after_what_was_kept() -> None:
    with blocking.Driver(Teller("one", "two")) as driver:
        driver.flush()
        driver.close()
        assert list(driver.events()) == ["one", "two"]
        assert not driver.run_until(lambda: False)
        driver.step()  # too late, and no mistake


def test_events_without_a_time_wait() -> None:
    machine = Teller(OpenUdp(1, ANY))
    with blocking.Driver(machine) as driver:
        events = driver.events()
        opened = next(events)
        assert isinstance(opened, Opened)
        machine.queue.append(Transmit(b"x", opened.local, opened.local))
        assert next(events) == b"x"


def test_a_deadline_wakes_it_up() -> None:
    machine = Teller(due=time.monotonic_ns() + 20_000_000)
    with blocking.Driver(machine) as driver:
        assert next(driver.events(timeout=10)) == "due"


def test_run_until_says_whether_it_came_to_be() -> None:
    told: list[Any] = []
    with blocking.Driver(Teller("told"), on_event=told.append) as driver:
        assert driver.run_until(lambda: bool(told), timeout=5)
        assert not driver.run_until(lambda: False, timeout=0.02)


def test_a_step_without_patience_returns_at_once() -> None:
    with blocking.Driver(Teller(OpenUdp(1, ANY))) as driver:
        driver.step(0)
        assert next(driver.events(timeout=0)).handle == 1


def test_a_mistake_of_the_machine_comes_out_and_everything_is_closed() -> None:
    class Broken(Teller):
        def on_socket(self, event: SocketEvent, now: Instant) -> None:
            self.opened = event
            raise ZeroDivisionError("a mistake in a machine")

    machine = Broken(OpenUdp(1, ANY))
    with (
        pytest.raises(ZeroDivisionError, match="a mistake in a machine"),
        blocking.Driver(machine) as driver,
    ):
        driver.step(0)
    assert isinstance(machine.opened, Opened)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(machine.opened.local)


@pytest.fixture
def server() -> Iterator[Address]:
    with socket.socket() as probe:
        probe.bind(ANY)
        local = Address(*probe.getsockname())
    machine = Server(ServerConfig(local, connect_back=False), entropy=os.urandom)
    ready = threading.Event()
    stop: list[Any] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def on_event(event: object) -> None:
            if isinstance(event, Started):
                ready.set()

        async with aio.Driver(machine, on_event=on_event) as driver:
            stop.append(lambda: loop.call_soon_threadsafe(driver.close))
            machine.start(driver.now())
            driver.flush()
            await driver.run()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield local
    finally:
        stop[0]()
        thread.join(10)


@pytest.mark.parametrize("transport", [None, Transport.TCP])
def test_binding(server: Address, transport: Transport | None) -> None:
    mapped = blocking.binding(f"stun:{server}", transport=transport, timeout=5)
    assert mapped.host == "127.0.0.1"


def test_binding_says_what_failed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(ANY)
        with pytest.raises(TransactionTimedOut):
            blocking.binding(f"127.0.0.1:{deaf.getsockname()[1]}", timeout=0.1)
