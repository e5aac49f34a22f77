"""The data plane without a server: routes are installed by hand, nothing else is answered.

Reads one line of JSON (host, channel, ports of clients and of peers), writes one (the server's port
and those of the relays), and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque

from stun.aio import Driver
from stun.datagrams import Core
from stun.sansio import (
    SECOND,
    Address,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    SocketEvent,
)
from turn.dataplane.base import Route, RouteKey
from turn.dataplane.sockets import SocketPlane
from turn.meter import Bucket, Meter


class Nobody:
    """A machine that opens sockets and answers nothing."""

    def __init__(self) -> None:
        self.orders: deque[OpenUdp] = deque()
        self.opened: dict[Handle, Address] = {}

    def receive(self, packet: Received, now: Instant) -> None: ...

    def on_socket(self, event: SocketEvent, now: Instant) -> None:  # noqa: ARG002
        if isinstance(event, Opened):
            self.opened[event.handle] = event.local

    def on_deadline(self, now: Instant) -> None: ...

    def poll(self) -> OpenUdp | None:
        return self.orders.popleft() if self.orders else None

    def deadline(self) -> Instant | None:
        return None


async def main() -> None:
    job = json.loads(sys.stdin.readline())
    host, channel = job["host"], job["channel"]
    machine = Nobody()
    planes: list[SocketPlane] = []

    def make(core: Core) -> SocketPlane:
        planes.append(SocketPlane(core))
        return planes[0]

    async with Driver(machine, on_event=print, datagrams=make) as driver:
        machine.orders.append(OpenUdp(1, Address(host, 0), serves=True))
        for n in range(len(job["clients"])):
            machine.orders.append(OpenUdp(2 + n, Address(host, 0)))
        driver.flush()
        server = machine.opened[1]
        bucket = Bucket(10**12, 10**9)  # limits that are there, and never reached
        for n, (client, peer) in enumerate(zip(job["clients"], job["peers"], strict=True)):
            key = RouteKey(Address(host, client), server, channel)
            route = Route(key, machine.opened[2 + n], Address(host, peer), Meter(bucket))
            planes[0].install(route, driver.now() + 3600 * SECOND)
        relays = [machine.opened[2 + n].port for n in range(len(job["clients"]))]
        print(json.dumps({"server": server.port, "relays": relays}), flush=True)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(
            sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 1) or ended.set()
        )
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main())
