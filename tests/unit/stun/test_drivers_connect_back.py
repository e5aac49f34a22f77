"""CONNECT-BACK from end to end on loopback: server and client are machines on real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import deque
from typing import Any

import pytest

from stun.aio import Driver
from stun.attributes import (
    CONNECT_BACK,
    CONNECT_BACK_RESULT,
    RESPONSE_ORIGIN,
    ConnectBack,
    ConnectBackResult,
)
from stun.codec import Message, decode, encode
from stun.framing import StunStream
from stun.registry import Method
from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Connected,
    Dial,
    Handle,
    Instant,
    Listen,
    Opened,
    Received,
    SocketEvent,
    Write,
)
from stun.server import Server, ServerConfig, Started

A, B, CLIENT = "127.0.0.1", "127.0.0.2", "127.0.0.3"


class Asking:
    """Connects to the server from a port that it also listens on, and asks to be dialled."""

    def __init__(self, server: Address, wanted: ConnectBack, *, listen: bool) -> None:
        self.server, self.wanted, self.listen = server, wanted, listen
        self.queue: deque[Any] = deque()
        self.streams: dict[Handle, StunStream] = {}
        self.origins: list[Address] = []
        self.met: list[Address] = []
        self.granted: ConnectBack | None = None

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind((CLIENT, 0))
            self.local = Address(*probe.getsockname())
        if self.listen:
            self.queue.append(Listen(1, self.local))
        else:
            self.queue.append(Dial(2, self.local, self.server))

    def receive(self, packet: Received, now: Instant) -> None:
        raise AssertionError("there is no UDP here")

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        match event:
            case Opened(1):
                self.queue.append(Dial(2, self.local, self.server))
            case Connected(2):
                self.streams[2] = StunStream()
                request = Message.request(Method.BINDING, bytes(12)).add(CONNECT_BACK, self.wanted)
                self.queue.append(Write(2, encode(request)))
            case Accepted(_, handle, _, remote) | Connected(handle, _, remote):
                self.streams[handle] = StunStream()
                self.met.append(remote)
            case Arrived(handle, data):
                for octets in self.streams[handle].feed(data):
                    self.take(handle, decode(octets))

    def take(self, handle: Handle, message: Message) -> None:
        if handle != 2:
            origin = message.get(RESPONSE_ORIGIN)
            assert origin is not None
            self.origins.append(origin)
        elif (result := message.get(CONNECT_BACK_RESULT)) is not None:
            self.queue.append(result)
        else:
            self.granted = message.get(CONNECT_BACK)
            assert self.granted is not None
            if self.granted.port:
                silent = Address(self.server.host, self.granted.port)
                self.queue.append(Dial(3, self.local, silent))

    def on_deadline(self, now: Instant) -> None:
        pass

    def poll(self) -> Any:
        return self.queue.popleft() if self.queue else None

    def deadline(self) -> None:
        return None


async def run(kind: int, *, count: int = 2, listen: bool = True) -> tuple[Asking, Any]:
    with socket.socket() as one, socket.socket() as two:
        one.bind((A, 0))
        two.bind((A, 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    server = Server(ServerConfig(Address(A, ports[0]), Address(B, ports[1])), entropy=os.urandom)
    wanted = ConnectBack(kind, count, 30, 1500, 0)
    asking = Asking(Address(A, ports[0]), wanted, listen=listen)
    results: asyncio.Queue[Any] = asyncio.Queue()
    started = asyncio.Event()

    def on_event(event: object) -> None:
        if isinstance(event, Started):
            started.set()

    async with Driver(server, on_event=on_event) as serving:
        server.start(serving.now())
        serving.flush()
        await asyncio.wait_for(started.wait(), 5)
        async with Driver(asking, on_event=results.put_nowait) as driver:
            asking.start()
            driver.flush()
            result = await asyncio.wait_for(results.get(), 10)
            # What was established is known to both ends, but the ends learn of it one by one.
            for _ in range(500):
                if len(asking.origins) >= result.established:
                    break
                await asyncio.sleep(0.005)
    return asking, result


@pytest.mark.parametrize(("kind", "host"), [(1, A), (2, B)])
def test_the_server_dials_from_ports_that_were_never_contacted(kind: int, host: str) -> None:
    asking, result = asyncio.run(run(kind))
    assert result == ConnectBackResult(kind, 2, 0, 0, 0, 0)
    assert asking.granted == ConnectBack(kind, 2, 30, 1500, 0)
    assert sorted(asking.origins) == sorted(asking.met)
    assert {origin.host for origin in asking.origins} == {host}
    assert len({origin.port for origin in asking.origins} - {asking.server.port}) == 2


@pytest.mark.parametrize("kind", [1, 2])
def test_a_host_that_does_not_listen_refuses(kind: int) -> None:
    asking, result = asyncio.run(run(kind, listen=False))
    assert result == ConnectBackResult(kind, 0, 2, 0, 0, 0)
    assert asking.met == []


@pytest.mark.skipif(sys.platform != "linux", reason="a silent listener needs Linux")
@pytest.mark.parametrize("listen", [True, False])
def test_simultaneous_open(listen: bool) -> None:
    asking, result = asyncio.run(run(3, listen=listen))
    assert result == ConnectBackResult(3, 1, 0, 0, 0, 0)
    assert asking.granted is not None
    silent = Address(A, asking.granted.port)
    assert asking.met == asking.origins == [silent]
