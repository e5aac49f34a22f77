"""A stream that is given up as it is: its socket goes on in other hands."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from stun import aio, blocking
from stun.errors import UsageError
from stun.sansio import Accepted, Address, Arrived, Hold, Listen, Opened, Write
from tools.driving import PATIENCE, Recorder, Told

ANY = Address("127.0.0.1", 0)


def greet(machine: Recorder, event: Told) -> None:
    """Read one piece of what comes, and nothing after it."""
    if isinstance(event, Arrived):
        machine.order(Hold(event.handle), Write(event.handle, b"hello "))


@pytest.fixture
def machine() -> Recorder:
    return Recorder(greet).order(Listen(1, ANY))


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.settimeout(PATIENCE)
        yield sock


def test_nothing_is_lost(machine: Recorder, client: socket.socket) -> None:
    with blocking.Driver(machine) as driver:
        driver.run_until(lambda: bool(machine.all(Opened)), PATIENCE)
        opened = machine.one(Opened)
        client.connect(opened.local)
        client.sendall(b"one")
        driver.run_until(lambda: bool(machine.all(Arrived)), PATIENCE)
        client.sendall(b"two")
        driver.step(0.01)
        accepted = machine.one(Accepted)
        sock, unsent = driver.detach(accepted.handle)
        assert unsent == b""
        with pytest.raises(UsageError, match="is not an open stream"):
            driver.detach(accepted.handle)
        with pytest.raises(UsageError, match="is not an open stream"):
            driver.detach(opened.handle)
    # The driver is closed, and the stream is not.
    with sock:
        sock.settimeout(PATIENCE)
        assert sock.recv(100) == b"two"
        sock.sendall(b"there")
        got = b""
        while len(got) < 11:
            got += client.recv(100)
    assert got == b"hello there"
    assert client.recv(1) == b""


def test_what_the_kernel_has_not_taken(machine: Recorder, client: socket.socket) -> None:
    much = bytes(900_000)
    with blocking.Driver(machine) as driver:
        driver.run_until(lambda: bool(machine.all(Opened)), PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(machine.one(Opened).local)
        driver.run_until(lambda: bool(machine.all(Accepted)), PATIENCE)
        handle = machine.one(Accepted).handle
        raw = driver._sockets.streams._streams[handle].sock
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        machine.order(Write(handle, much))
        driver.flush()
        sock, unsent = driver.detach(handle)
        assert unsent
    with sock:
        got = 0
        client.settimeout(0.2)
        try:
            while True:
                got += len(client.recv(1 << 20))
        except TimeoutError:
            pass
    assert got + len(unsent) == len(much)


def test_under_asyncio(machine: Recorder, client: socket.socket) -> None:
    async def main() -> socket.socket:
        heard: asyncio.Queue[Told] = asyncio.Queue()

        def hear(machine: Recorder, event: Told) -> None:
            greet(machine, event)
            heard.put_nowait(event)

        machine.react = hear
        async with aio.Driver(machine) as driver, asyncio.timeout(PATIENCE):
            opened = await heard.get()
            assert isinstance(opened, Opened)
            client.connect(opened.local)
            client.sendall(b"one")
            accepted = await heard.get()
            assert isinstance(accepted, Accepted)
            assert isinstance(await heard.get(), Arrived)
            sock, unsent = driver.detach(accepted.handle)
            assert unsent == b""
            return sock

    with asyncio.run(main()) as sock:
        client.sendall(b"two")
        sock.settimeout(PATIENCE)
        assert sock.recv(100) == b"two"
