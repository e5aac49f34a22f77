"""One end of a simultaneous open, for test_ice_tcp_so.py: a hub on real sockets, led over stdin.

A line in is a command, a line out is what came of it, both JSON::

    {"do": "gather", "host": "192.168.1.10", "stun": ["192.31.196.10", 3478]}
    {"told": "candidate", "at": ["192.52.193.2", 40001]}
    {"do": "open", "to": ["192.52.193.34", 40002], "after": 0.2}
    {"told": "data", "data": "hello", "seconds": 0.08}

Each ``gather`` begins anew.  The two ends check the path with one Binding request and its answer
each way, and then send one packet of data each way.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from ice.base import Base, CandidateFound, CandidateNotFound, HubEvent, PathClosed, PathOpened
from ice.candidate import CandidateType, TcpType
from ice.config import Config, Interface, Server
from ice.hub import Hub
from stun.aio import Driver
from stun.attributes import XOR_MAPPED_ADDRESS
from stun.codec import decode, encode
from stun.discovery import Target, Transport
from stun.message import Message
from stun.registry import Class, Method
from stun.sansio import Address, Instant


def tell(told: str, **what: Any) -> None:
    print(json.dumps({"told": told, **what}), flush=True)


class End:
    """A hub, and what is done on the one path that it opens."""

    def __init__(self) -> None:
        self.hub = Hub(Config(udp=False), entropy=os.urandom, deliver=self.deliver)
        self.driver: Driver[HubEvent] = Driver(self.hub, on_event=self.on_event)
        self.base: Base | None = None
        self.opened_at = 0.0
        self.is_done = False
        self.running = asyncio.create_task(self.run())

    async def run(self) -> None:
        try:
            await self.driver.run()
        except Exception as error:
            tell("failed", why=repr(error))

    def close(self) -> None:
        self.hub.close(self.driver.now())
        self.driver.flush()
        self.driver.close()

    def on_event(self, event: HubEvent) -> None:
        match event:
            case CandidateFound(candidate, base):
                if (candidate.type, candidate.tcptype) == (
                    CandidateType.SERVER_REFLEXIVE,
                    TcpType.SIMULTANEOUS_OPEN,
                ):
                    self.base = base
                    tell("candidate", at=list(candidate.address))
            case CandidateNotFound(_, _, what, why):
                tell("not found", what=what, why=why)
            case PathOpened(base, remote):
                request = Message.request(Method.BINDING, os.urandom(12))
                self.hub.send(base, remote, encode(request), self.driver.now())
            case PathClosed(_, _, cause, detail) if not self.is_done:
                tell("closed", cause=cause.value, detail=detail)
            case _:
                pass

    def deliver(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        if data == b"hello":
            self.is_done = True
            seconds = asyncio.get_running_loop().time() - self.opened_at
            tell("data", data=data.decode(), seconds=round(seconds, 4), remote=list(remote))
            return
        message = decode(data)
        if message.message_class is Class.REQUEST:
            answer = Message.success(message).add(XOR_MAPPED_ADDRESS, remote)
            self.hub.send(base, remote, encode(answer), now)
        elif message.message_class is Class.SUCCESS:
            self.hub.send(base, remote, b"hello", now)

    async def open(self, remote: Address, after: float) -> None:
        await asyncio.sleep(after)
        assert self.base is not None
        self.opened_at = asyncio.get_running_loop().time()
        self.hub.open_path(self.base, remote, self.driver.now())
        self.driver.flush()


async def main() -> None:
    loop = asyncio.get_running_loop()
    end: End | None = None
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if command["do"] == "gather":
            if end is not None:
                end.close()
            end = End()
            server = Target(Address(*command["stun"]), Transport.UDP)
            end.hub.gather(
                [Interface(command["host"], "", 0xFFFF)],
                [Server("stun", (server,))],
                end.driver.now(),
            )
            end.driver.flush()
        elif end is not None:
            await end.open(Address(*command["to"]), command["after"])
    if end is not None:
        end.close()


asyncio.run(main())
