"""turnd and what it runs beside the relay: the rendezvous, or what a test has in its place."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect as web

from ice.rendezvous.protocol import Error, Join, Joined, Welcome, from_server
from stun.errors import StunError, UsageError
from stun.tls import ServerTls
from tools.certificate import write_self_signed
from turn.client.aio import connect
from turn.client.errors import NotAuthenticated
from turn.daemon import companion as module
from turn.daemon.addresses import LocalAddress
from turn.daemon.admin import ask
from turn.daemon.beforehand import CannotStart
from turn.daemon.companion import Surroundings, load_companion
from turn.daemon.config import ConfigError, Flags, effective, load
from turn.daemon.service import Turnd

HOSTS = (LocalAddress("127.0.0.1", "lo"), LocalAddress("127.0.0.2", "lo"))


def free_port() -> int:
    for _ in range(50):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port
    raise AssertionError("no port is free")


class Stage:
    """A turnd with a rendezvous, whose configuration the test changes."""

    def __init__(self, **tables: Any) -> None:
        self.relay, self.port = free_port(), free_port()
        self.url = f"ws://127.0.0.1:{self.port}"
        self.tables: dict[str, Any] = {
            "listen": [{"url": f"udp://*:{self.relay}"}, {"url": f"tcp://*:{self.relay}"}],
            "relay.addresses": ["127.0.0.1"],
            "dataplane": "sockets",
            "peers.allow": ["127.0.0.0/8"],
            "auth.users": {"ann": "secret"},
            "admin.socket": False,
            "log.level": "error",
            "rendezvous.listen": [self.url],
        } | {key.replace("__", "."): value for key, value in tables.items()}

    def load(self) -> Any:
        flags = Flags()
        for path, value in self.tables.items():
            flags.set(tuple(path.split(".")), value, f"--{path}")
        return load(None, flags)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Turnd]:
        ready = asyncio.Event()

        def on_ready(_: Turnd) -> bool:
            ready.set()
            return True

        turnd = Turnd(self.load, on_ready=on_ready, lister=lambda: HOSTS, version="1.2")
        life = asyncio.ensure_future(turnd.run())
        waiting = asyncio.ensure_future(ready.wait())
        await asyncio.wait((life, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            if ready.is_set():
                yield turnd
        finally:
            turnd.stop()
            await life

    async def welcome(self, url: str | None = None, **options: Any) -> Welcome:
        async with web(url or self.url, **options) as client:
            found = from_server(await client.recv())
        assert isinstance(found, Welcome)
        return found


async def relays(welcome: Welcome, index: int = 0) -> bool:
    """Whether the first server of a welcome relays for its credential."""
    assert welcome.turn is not None
    access = welcome.turn
    login = {"username": access.username, "password": access.credential}
    async with connect(access.urls[index], **login) as relay:
        await relay.permit(relay.relayed_address)
        relay.send(b"round", relay.relayed_address)
        return bool((await relay.recv())[0] == b"round")


# Together with the rendezvous. --------------------------------------------------------------------


@pytest.mark.parametrize("auth", [{}, {"auth__secrets": ["north", "south"]}])
async def test_it_hands_out_credentials_that_turnd_takes(auth: dict[str, Any]) -> None:
    stage = Stage(**auth)
    async with stage.running():
        welcome = await stage.welcome()
        assert welcome.turn is not None
        assert welcome.software == "natkit/1.2"
        assert welcome.turn.urls == (
            f"turn:127.0.0.1:{stage.relay}?transport=udp",
            f"turn:127.0.0.1:{stage.relay}?transport=tcp",
        )
        assert welcome.stun == (f"stun:127.0.0.1:{stage.relay}",)
        assert welcome.turn.username.endswith(":127.0.0.1")
        assert await relays(welcome)
        assert await relays(welcome, 1)


async def test_a_client_is_told_of_the_address_that_it_has_reached() -> None:
    stage = Stage()
    stage.tables["rendezvous.listen"] = [f"ws://*:{stage.port}"]
    async with stage.running():
        welcome = await stage.welcome(f"ws://127.0.0.2:{stage.port}")
        assert welcome.turn is not None
        assert {url.split(":")[1] for url in welcome.turn.urls} == {"127.0.0.2"}


async def test_the_made_up_secret_outlives_a_reload() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        welcome = await stage.welcome()
        await turnd.reload()
        assert await relays(welcome)
        stage.tables["auth.secrets"] = ["north"]
        assert any("users" in line for line in await turnd.reload())
        assert await relays(await stage.welcome())
        with pytest.raises(NotAuthenticated):
            await relays(welcome)


async def test_it_comes_moves_and_goes_while_turnd_runs() -> None:
    stage = Stage()
    del stage.tables["rendezvous.listen"]
    async with stage.running() as turnd:
        assert turnd.status()["rendezvous"] is None
        stage.tables["rendezvous.listen"] = [stage.url]
        assert f"rendezvous: {stage.url}" in await turnd.reload()
        async with web(stage.url) as client:
            await client.recv()
            await client.send(Join(None, b"hello").encode())
            assert isinstance(from_server(await client.recv()), Joined)
            other = f"ws://127.0.0.1:{free_port()}"
            stage.tables["rendezvous.listen"] = [other]
            assert f"rendezvous: {other}" in await turnd.reload()
            assert (await stage.welcome(other)).turn is not None
            with pytest.raises(OSError, match="Connect call failed"):
                await stage.welcome()
            assert turnd.status()["rendezvous"]["waiting"] == 1, "it goes on waiting"
            del stage.tables["rendezvous.listen"]
            assert "rendezvous: none" in await turnd.reload()
            error = from_server(await client.recv())
            assert isinstance(error, Error)
            assert error.code == "shutting-down"
            with pytest.raises(OSError, match="Connect call failed"):
                await stage.welcome(other)


async def test_a_place_that_is_taken_changes_nothing() -> None:
    stage = Stage()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = f"ws://127.0.0.1:{holder.getsockname()[1]}"
        async with stage.running() as turnd:
            stage.tables["rendezvous.listen"] = [stage.url, taken]
            with pytest.raises(StunError, match=r"is in use.*--rendezvous-listen ws://"):
                await turnd.reload()
            assert (await stage.welcome()).turn is not None
            assert turnd.status()["rendezvous"]["places"] == [stage.url]
        stage.tables["rendezvous.listen"] = [taken]
        with pytest.raises(StunError, match="is in use"):
            async with stage.running():
                raise AssertionError("it must not serve")


async def test_it_stops_with_turnd_when_the_relay_cannot_be_had() -> None:
    stage = Stage()
    with socket.socket(type=socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", stage.relay))
        with pytest.raises(CannotStart, match="is in use"):
            async with stage.running():
                raise AssertionError("it must not serve")
    with socket.socket() as again:
        again.bind(("127.0.0.1", stage.port))


async def test_its_figures_are_turnds(tmp_path: Path) -> None:
    metrics = free_port()
    stage = Stage(metrics__listen=f"127.0.0.1:{metrics}", admin__socket=str(tmp_path / "s"))
    async with stage.running(), web(stage.url) as client:
        await client.recv()
        reader, writer = await asyncio.open_connection("127.0.0.1", metrics)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        assert "rendezvous_connected 1.0" in text
        assert "turnd_allocations 0.0" in text
        status = await asyncio.to_thread(ask, tmp_path / "s", "status")
        assert status["rendezvous"]["connected"] == 1


async def test_wss_has_turnds_certificate(tmp_path: Path) -> None:
    import ssl

    path = write_self_signed(tmp_path / "here.pem", "127.0.0.1")
    stage = Stage(tls__certificate=str(path))
    stage.url = f"wss://127.0.0.1:{stage.port}"
    stage.tables["rendezvous.listen"] = [stage.url]
    async with stage.running() as turnd:
        first = ssl.create_default_context(cafile=path)
        assert (await stage.welcome(ssl=first)).turn is not None
        write_self_signed(path, "127.0.0.1")
        await turnd.reload()
        with pytest.raises(ssl.SSLCertVerificationError):
            await stage.welcome(ssl=first)
        await stage.welcome(ssl=ssl.create_default_context(cafile=path))


# Its settings. ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ws://here:1", "'here' is not"),
        ("tcp://*:1", "is not a place to listen for WebSockets"),
        ("ws://*:1?proxy=10.0.0.0/8", "is not a place to listen for WebSockets"),
        ([], "must not be empty"),
        ([7], "7 is not a text"),
        (["ws://*:1", "wss://*:1"], "a port is either for ws or wss"),
        ("wss://*:1", "wss://*:1 needs a certificate: --cert PEM"),
    ],
)
def test_what_is_wrong_is_told(value: Any, words: str) -> None:
    flags = Flags()
    flags.set(("rendezvous", "listen"), value, "--rendezvous-listen")
    with pytest.raises(ConfigError, match=re.escape(words)):
        load(None, flags)


def test_the_configuration_shows_it() -> None:
    assert "rendezvous" not in effective(load())
    flags = Flags()
    flags.set(("rendezvous",), {}, "--with-rendezvous")
    assert '[rendezvous]\nlisten = ["ws://*:8080"]\nproxies = []' in effective(load(None, flags))


# Finding it. --------------------------------------------------------------------------------------


class Point:
    def __init__(self, made: Any) -> None:
        self.made = made

    def load(self) -> Any:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


@pytest.fixture
def surroundings() -> Surroundings:
    def nothing(*_: Any) -> Any:
        raise AssertionError("not asked for")

    return Surroundings("1", nothing, nothing, nothing, nothing, nothing)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    points: list[Any] = []
    monkeypatch.setattr(module, "entry_points", lambda **_: [Point(made) for made in points])
    return points


def test_a_companion_is_found_by_its_entry_point(
    installed: list[Any], surroundings: Surroundings
) -> None:
    installed.append(lambda found: ("made", found))
    assert load_companion("rendezvous", surroundings) == ("made", surroundings)  # type: ignore[comparison-overlap]


def test_without_it_the_operator_is_told(installed: list[Any], surroundings: Surroundings) -> None:
    with pytest.raises(UsageError, match=r"has no rendezvous.*pip install natkit"):
        load_companion("rendezvous", surroundings)
    installed.append(ImportError("No module named 'websockets'"))
    with pytest.raises(UsageError, match="cannot be loaded: No module named 'websockets'"):
        load_companion("rendezvous", surroundings)


def test_the_rendezvous_is_installed(surroundings: Surroundings) -> None:
    def tls() -> ServerTls | None:
        return None

    found = load_companion("rendezvous", Surroundings("1", *[tls] * 5))  # type: ignore[arg-type]
    assert found.status()["places"] == []
