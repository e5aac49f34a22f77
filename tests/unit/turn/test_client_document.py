"""The examples of docs/turn-client.md run as they stand, against a server of our own."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stun.discovery import Transport
from stun.nonce import NonceMaker
from stun.sansio import Address
from stun.users import StaticUsers
from turn.aio import RelayDriver
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.events import Serving
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

HOST = "127.0.0.1"
DOCUMENT = Path(__file__).parents[3] / "docs" / "turn-client.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, source: Any) -> None:
        self.transport.sendto(data, source)


async def knock(server: Server) -> None:
    """Connect to the relayed address as soon as that is allowed."""
    while not any(s.permissions for s in server.sessions()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    (session,) = server.sessions()
    reader, writer = await asyncio.open_connection(*session.relayed[0])
    try:
        await reader.read()
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()


@pytest.fixture
def ports() -> Iterator[dict[str, str]]:
    """A server and peers, as what the document calls them by and where they are."""
    listeners = [
        ListenAt(transport, Address(HOST, 0)) for transport in (Transport.UDP, Transport.TCP)
    ]
    config = ServerConfig(
        tuple(listeners), (RelayAddress(HOST, HOST),), "r", PeerPolicy(allow=["127.0.0.0/8"])
    )
    users = StaticUsers({"user": "secret"}, "r")
    server = Server(config, users, NonceMaker((os.urandom(16),)), entropy=os.urandom)
    names: dict[str, str] = {"203.0.113.7": HOST}
    ready = threading.Event()
    closing: list[Any] = []

    def on_event(event: object) -> None:
        if isinstance(event, Serving):
            ending = f"?transport={event.transport.value.lower()}"
            query = ending if event.transport is Transport.TCP else ""
            names[f'"turn:relay.example{query}"'] = f'"turn:{event.local}{ending}"'

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=(HOST, 0))
        listening = await asyncio.start_server(answer, HOST, 0)
        names["9000"] = str(transport.get_extra_info("sockname")[1])
        names["9001"] = str(listening.sockets[0].getsockname()[1])
        async with listening, RelayDriver(server, on_event=on_event) as driver:
            closing.append(lambda: loop.call_soon_threadsafe(driver.close))
            server.start(driver.now())
            driver.flush()
            knocking = asyncio.create_task(knock(server))
            ready.set()
            await driver.run()
            knocking.cancel()
            await asyncio.wait([knocking])
        transport.close()
        await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="relay server")
    thread.start()
    try:
        assert ready.wait(10)
        yield names
    finally:
        closing[0]()
        thread.join(10)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example(number: int, ports: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code = EXAMPLES[number]
    for name, here in ports.items():
        code = code.replace(name, here)
    assert "relay.example" not in code
    names: dict[str, Any] = {}
    exec("import asyncio, turn\n" + code, names)
    said = capsys.readouterr().out
    if "print" in code:
        assert "hello" in said
    else:
        assert names["data"] == b"hello"


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3
