"""The credentials that a rendezvous hands out are taken by coturn with the same secret."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect as web

from ice.rendezvous.access import Minter
from ice.rendezvous.places import Place
from ice.rendezvous.protocol import TurnAccess, Welcome, from_server
from ice.rendezvous.server import RendezvousServer
from turn.client.aio import connect
from turn.client.errors import NotAuthenticated

SECRET = "shared with the rendezvous"


def free_port() -> int:
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        return int(tcp.getsockname()[1])


@pytest.fixture
def coturn(tmp_path: Path, require_peer) -> Iterator[int]:
    """A coturn with ``static-auth-secret``; gives its port."""
    program, port = require_peer("turnserver", "coturn"), free_port()
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                *(program, "-n", "-L", "127.0.0.1", "-E", "127.0.0.1", "-p", str(port)),
                *("--use-auth-secret", f"--static-auth-secret={SECRET}", "-r", "example.org"),
                *("--allow-loopback-peers", "--cli-password=x", "--no-cli", "--no-tls"),
                *("--no-dtls", "--log-file=stdout", f"--pidfile={tmp_path}/pid"),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
        )
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, log.read_text()
                process_wait(process)
            yield port
        finally:
            process.kill()
            process.wait(10)


def process_wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.05)
    except subprocess.TimeoutExpired:
        return


async def welcome(minter: Minter) -> TurnAccess:
    url = f"ws://127.0.0.1:{free_port()}"
    server = RendezvousServer(servers=minter)
    server.serve_at([Place.parse(url)])
    async with server:
        life = asyncio.create_task(server.run())
        async with web(url) as client:
            found = from_server(await client.recv())
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
    assert isinstance(found, Welcome)
    assert found.turn is not None
    return found.turn


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_coturn_takes_them(coturn: int, transport: str) -> None:
    uri = f"turn:127.0.0.1:{coturn}?transport={transport}"
    access = await welcome(Minter(SECRET, (uri,)))
    assert access.urls == (uri,)
    login = {"username": access.username, "password": access.credential}
    async with connect(uri, **login) as relay:
        await relay.permit(relay.relayed_address)
        relay.send(b"round", relay.relayed_address)
        assert (await relay.recv())[0] == b"round"


async def test_it_does_not_take_those_of_another_secret(coturn: int) -> None:
    uri = f"turn:127.0.0.1:{coturn}"
    access = await welcome(Minter("another", (uri,)))
    with pytest.raises(NotAuthenticated):
        async with connect(uri, username=access.username, password=access.credential):
            raise AssertionError("it must not be let in")
