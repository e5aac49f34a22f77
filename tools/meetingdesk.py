"""A rendezvous for tests, honest unless it is told to forge what it says.

The honest part is what ice/rendezvous/protocol.py says and no more: no limits, no pings.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from ice.rendezvous.protocol import (
    ClientMessage,
    Error,
    ErrorCode,
    Gone,
    Join,
    Joined,
    Leave,
    Message,
    Peer,
    ServerMessage,
    Time,
    TimeAnswer,
    TurnAccess,
    Welcome,
    from_client,
)
from stun.sansio import Address

TURN = TurnAccess(("turn:192.0.2.1:3478",), "1700000000:x", "secret", 3600)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task is about to do."""
    while not condition():  # noqa: ASYNC110  (nothing tells of it)
        await asyncio.sleep(0.001)


class Guest:
    """Somebody connected.  ``number``: from 1, in the order of their coming."""

    def __init__(self, socket: ServerConnection, number: int) -> None:
        self.socket = socket
        self.number = number
        self.name: str | None = None
        self.hello = b""
        self.other: Guest | None = None
        self.heard: list[ClientMessage] = []

    async def tell(self, message: ServerMessage) -> None:
        """Send it a message, unless it is gone."""
        with contextlib.suppress(ConnectionClosed):
            await self.socket.send(message.encode())


Forge = Callable[[Guest, ServerMessage], Awaitable["list[ServerMessage | str | bytes] | None"]]
"""``forge(to, message)``: what is sent instead; ``None`` closes the connection."""


class Desk:
    """The server.  ``ahead``: seconds by which its clock is.  ``forge``: what it says instead."""

    def __init__(self, *, ahead: float = 0.0, forge: Forge | None = None) -> None:
        self.ahead = ahead
        self.forge = forge
        self.url = ""
        self.guests: list[Guest] = []
        self._waiting: dict[str, Guest] = {}
        self._paired: set[str] = set()
        self._names = itertools.count(7)

    @contextlib.asynccontextmanager
    async def open(self, port: int = 0) -> AsyncIterator[Desk]:
        """Serve on a port of this host."""
        async with serve(
            self._serve, "127.0.0.1", port, compression=None, close_timeout=0.2
        ) as server:
            self.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    def is_left(self) -> bool:
        """Whether everybody who came has gone."""
        return all(guest.socket.state is State.CLOSED for guest in self.guests)

    async def give(self, to: Guest, message: ServerMessage) -> None:
        """Send a message, or what the server makes of it."""
        if self.forge is None:
            await to.tell(message)
            return
        forged = await self.forge(to, message)
        if forged is None:
            await to.socket.close()
            return
        with contextlib.suppress(ConnectionClosed):
            for one in forged:
                await to.socket.send(one if isinstance(one, str | bytes) else one.encode())

    async def _serve(self, socket: ServerConnection) -> None:
        guest = Guest(socket, len(self.guests) + 1)
        self.guests.append(guest)
        host, port = socket.remote_address[:2]
        await self.give(guest, Welcome(Address(host, port), self._time(), "desk", TURN))
        try:
            async for text in socket:
                message = from_client(text)
                guest.heard.append(message)
                if not await self._take(guest, message):
                    break
        except ConnectionClosed:
            pass
        finally:
            await self._away(guest)

    async def _take(self, guest: Guest, message: ClientMessage) -> bool:
        match message:
            case Time(sent):
                await self.give(guest, TimeAnswer(sent, self._time()))
            case Message() if guest.other is not None:
                await self.give(guest.other, message)
            case Join(name, hello):
                return await self._join(guest, name, hello)
            case Leave():
                return False
            case _:
                raise AssertionError(message)
        return True

    async def _join(self, guest: Guest, name: str | None, hello: bytes) -> bool:
        guest.hello = hello
        guest.name = known = str(next(self._names)) if name is None else name
        refusal = None
        if known in self._paired:
            refusal = ErrorCode.UNKNOWN_NAME if known.isdecimal() else ErrorCode.BUSY
        elif name is not None and known.isdecimal() and known not in self._waiting:
            refusal = ErrorCode.UNKNOWN_NAME
        if refusal is not None:
            await self.give(guest, Error(refusal, "no"))
            return False
        await self.give(guest, Joined(known, 3600.0))
        other = self._waiting.pop(known, None)
        if other is None:
            self._waiting[known] = guest
            return True
        self._paired.add(known)
        guest.other, other.other = other, guest
        await asyncio.gather(
            self.give(other, Peer(guest.hello)), self.give(guest, Peer(other.hello))
        )
        return True

    async def _away(self, guest: Guest) -> None:
        if guest.name is not None and self._waiting.get(guest.name) is guest:
            del self._waiting[guest.name]
        other, guest.other = guest.other, None
        if other is not None:
            other.other = None
            if guest.name is not None and not guest.name.isdecimal():
                self._paired.discard(guest.name)
            left = any(isinstance(message, Leave) for message in guest.heard)
            await self.give(other, Gone("left" if left else "lost"))
            await other.socket.close()

    def _time(self) -> float:
        return time.time() + self.ahead
