"""What a driver that is about to be closed gives the streams that its machine has shut."""

from __future__ import annotations

import asyncio
import socket

from stun.aio import Driver
from stun.sansio import Accepted, Address, Listen, Shut, Write
from tools.driving import Recorder, Told, free_port

PIECE = bytes(1 << 16)


async def said(patience: float, *, reads: bool) -> tuple[int, int | None]:
    """Return how many octets a client was sent, and how many it got; ``None`` for a reset."""
    address = Address("127.0.0.1", free_port())
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def react(_: Recorder, event: Told) -> None:
        if isinstance(event, Accepted):
            accepted.set_result(event.handle)

    machine = Recorder(react).order(Listen(1, address))
    sent = 0
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        async with Driver(machine, on_event=lambda _: None) as driver:
            await asyncio.get_running_loop().sock_connect(client, address)
            handle = await accepted
            # As much as the kernel takes, and a little more.
            while not driver._sockets.streams._streams[handle].waiting:
                machine.order(Write(handle, PIECE))
                driver.flush()
                sent += len(PIECE)
            machine.order(Shut(handle))
            driver.flush()
            assert driver._sockets.streams.owed
            seeing_off = asyncio.ensure_future(driver.see_off(patience))
            got = await read_all(client) if reads else 0
            await seeing_off
        try:
            return sent, got + await read_all(client)
        except ConnectionResetError:
            return sent, None


async def read_all(client: socket.socket) -> int:
    loop, got = asyncio.get_running_loop(), 0
    async with asyncio.timeout(20):
        while part := await loop.sock_recv(client, 1 << 16):
            got += len(part)
    return got


async def test_who_reads_gets_all_of_it() -> None:
    sent, got = await said(20, reads=True)
    assert got == sent


async def test_who_does_not_read_is_not_waited_for_long() -> None:
    _, got = await said(0.05, reads=False)
    assert got is None, "a part must not look like the whole"
