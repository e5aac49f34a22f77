"""A machine that does what a test says, under each of the real drivers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stun import aio, blocking
from stun.sansio import Address, Arrived, Handle, Instant, Output, Received, SocketEvent

PATIENCE = 10.0
"""Seconds that a scenario may take."""

Told = Received | SocketEvent


@dataclass
class Recorder:
    """A machine that orders what a test tells it, and remembers what it was told."""

    react: Callable[[Recorder, Told], None] = lambda _, __: None
    queue: deque[Output | str] = field(default_factory=deque)
    heard: list[Told] = field(default_factory=list)
    deadlines: list[Instant] = field(default_factory=list)
    due: Instant | None = None
    at: Instant = 0

    def order(self, *outputs: Output | str) -> Recorder:
        self.queue.extend(outputs)
        return self

    def take(self, event: Told, now: Instant) -> None:
        assert now >= self.at, "time went backwards"
        assert not self.queue, "the queue was not drained before the next call"
        self.at = now
        self.heard.append(event)
        self.react(self, event)

    receive = on_socket = take

    def on_deadline(self, now: Instant) -> None:
        assert now >= self.at, "time went backwards"
        self.at = now
        if self.due is not None and now >= self.due:
            self.deadlines.append(now)
            self.due = None

    def poll(self) -> Output | str | None:
        return self.queue.popleft() if self.queue else None

    def deadline(self) -> Instant | None:
        return self.due

    def all(self, kind: type, handle: Handle | None = None) -> list[Any]:
        return [
            event
            for event in self.heard
            if type(event) is kind and (handle is None or getattr(event, "handle", None) == handle)
        ]

    def one(self, kind: type, handle: Handle | None = None) -> Any:
        (event,) = self.all(kind, handle)
        return event

    def bytes_on(self, handle: Handle) -> bytes:
        return b"".join(event.data for event in self.all(Arrived, handle))


class Runner:
    """Runs a machine under one of the drivers until a condition holds."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.told: list[str] = []
        self.counters: dict[str, int] = {}
        self.driver: Any = None

    def __call__(
        self,
        machine: Recorder,
        done: Callable[[], object],
        *,
        begin: Callable[[Instant], None] = lambda _: None,
        timeout: float = PATIENCE,
        **options: Any,
    ) -> None:
        if self.kind == "blocking":
            with blocking.Driver(machine, on_event=self.told.append, **options) as driver:
                self.driver = driver
                begin(driver.now())
                finished = driver.run_until(lambda: bool(done()), timeout)
                self.counters = dict(driver.counters)
        else:
            finished = asyncio.run(self._aio(machine, done, begin, timeout, options))
        assert finished, [
            (type(event).__name__, getattr(event, "handle", None)) for event in machine.heard[-20:]
        ]

    async def _aio(
        self,
        machine: Recorder,
        done: Callable[[], object],
        begin: Callable[[Instant], None],
        patience: float,
        options: dict[str, Any],
    ) -> bool:
        driver = self.driver = aio.Driver(machine, on_event=self.told.append, **options)
        async with driver:
            begin(driver.now())
            driver.flush()
            end = time.monotonic() + patience
            while not done() and time.monotonic() < end:
                await asyncio.sleep(0.001)
                driver.flush()
            self.counters = dict(driver.counters)
            return bool(done())


def free_port() -> int:
    """Return a TCP port of loopback that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def beside(
    run: Runner,
    machine: Recorder,
    peer: Callable[[], None],
    done: Callable[[], object],
    **options: object,
) -> None:
    """Run a blocking peer in a thread beside the driver, and raise here what it raises."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            peer()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)

    def begin(_: int) -> None:
        run.driver.flush()  # the listener is there before anybody comes
        thread.start()

    try:
        run(machine, lambda: failures or done(), begin=begin, **options)
    finally:
        thread.join(PATIENCE)
    if failures:
        raise failures[0]


def connect(address: Address) -> socket.socket:
    """Return a blocking connection."""
    return socket.create_connection(address, PATIENCE)
