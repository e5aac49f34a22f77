"""Peers that the project did not write, and a server of ours for them to talk to.

Each worker of a parallel run has a network of its own.  The programs here take neighbouring ports
unasked (turnutils_peer), or ones that their protocol fixes (3479), and a relay hands out ports by
the hundred: on one loopback the tests of two workers would sooner or later meet.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nattype.lab.kernel.namespaces import CLONE_NEWNET, is_privileged, unshare
from stun.aio import Driver
from stun.sansio import Address
from stun.server import CannotServe, Server, ServerConfig, Started
from tools.certificate import write_self_signed
from turn.dataplane.kernel.support import why_not

PRIMARY, ALTERNATE = "127.0.0.1", "127.0.0.2"


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") and is_privileged():
        unshare(CLONE_NEWNET)
        # ICE agents look for a network; this one ends in the same place, with nobody else on it.
        for command in (
            "link set lo up",
            "link add natkit0 type veth peer name natkit1",
            "address add 10.86.0.2/24 dev natkit0",
            "address add fd86::2/64 dev natkit0 nodad",
            "link set natkit0 up",
            "link set natkit1 up",
        ):
            subprocess.run(["ip", *command.split()], check=True)


def _missing(name: str, how: str) -> Any:
    sentence = f"{name} is missing: {how}"
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)


@pytest.fixture(scope="session")
def missing() -> Callable[[str, str], Any]:
    """``missing(name, how)`` fails in CI and skips elsewhere, saying how to get the peer."""
    return _missing


@pytest.fixture(scope="session")
def require_peer() -> Callable[..., str]:
    """``require_peer("turnserver", "coturn")`` is the path of a program of a Debian package.

    Without it the test is skipped with the line that installs it; with CI in the environment it
    fails.
    """

    def require(program: str, package: str) -> str:
        found = shutil.which(program)
        return found or _missing(program, f"sudo apt-get install {package}")

    return require


@pytest.fixture(scope="session")
def require_module() -> Callable[..., ModuleType]:
    """``require_module("aioice")`` is a module of a distribution, named alike unless told."""

    def require(name: str, distribution: str | None = None) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            return _missing(name, f"pip install {distribution or name}")

    return require


@pytest.fixture(scope="module", params=["sockets", "kernel"])
def plane(request: pytest.FixtureRequest) -> str:
    """A data plane of turnd: what asks for it is run on each."""
    if request.param == "kernel" and (why := why_not()) is not None:
        _missing("the data plane in the kernel", why)
    return str(request.param)


@dataclass
class Running:
    """A server of ours that runs in a thread."""

    config: ServerConfig
    server: Server

    @property
    def port(self) -> int:
        return self.config.primary.port


@contextmanager
def running_server(config: ServerConfig, **options: Any) -> Iterator[Running]:
    """Run a server until the block ends; raises what went wrong in it."""
    server = Server(config, entropy=os.urandom)
    ready, failures = threading.Event(), list[Any]()
    stop: list[Callable[[], object]] = []

    def on_event(event: object) -> None:
        if isinstance(event, CannotServe):
            failures.append(event)
        elif isinstance(event, Started):
            ready.set()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        async with Driver(server, on_event=on_event, **options) as driver:
            stop.append(lambda: loop.call_soon_threadsafe(driver.close))
            server.start(driver.now())
            driver.flush()
            await driver.run()

    def body() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=body, name="server")
    thread.start()
    try:
        assert ready.wait(10), "the server did not start"
        assert not failures, failures
        yield Running(config, server)
    finally:
        if thread.is_alive():
            stop[0]()
        thread.join(10)
    assert not failures, failures


def free_ports(hosts: tuple[str, ...], number: int) -> list[int]:
    """Return ``number`` ports in a row that are free at all hosts, for UDP and TCP."""
    for _ in range(100):
        with ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind((hosts[0], 0))
            ports = [first.getsockname()[1] + n for n in range(1, number + 1)]
            try:
                for host in hosts:
                    for port in ports:
                        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                            family = socket.AF_INET6 if ":" in host else socket.AF_INET
                            stack.enter_context(socket.socket(family, kind)).bind((host, port))
            except (OSError, OverflowError):
                continue
            return ports
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def natkit_server() -> Iterator[Running]:
    """A server with two addresses and two ports on loopback: all of 127.0.0.0/8 is local."""
    port, other = free_ports((PRIMARY, ALTERNATE), 2)
    config = ServerConfig(Address(PRIMARY, port), Address(ALTERNATE, other), software="natkit")
    with running_server(config) as running:
        yield running


@pytest.fixture(scope="module")
def lone_server() -> Iterator[Running]:
    """A server with one address."""
    (port,) = free_ports((PRIMARY,), 1)
    with running_server(ServerConfig(Address(PRIMARY, port))) as running:
        yield running


@pytest.fixture(scope="module")
def serve() -> Callable[..., Any]:
    """Run a server of one's own making: :func:`running_server`."""
    return running_server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for ``stun.example``, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "stun.example.pem"
    return write_self_signed(path, "stun.example")


class RedisServer:
    """A redis-server of our own: on a socket in a folder, with nothing saved."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._socket = folder / "redis.sock"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def start(self, *options: str) -> None:
        """Start it and wait until it takes connections."""
        command = [self._program, "--port", "0", "--unixsocket", str(self._socket), "--save", ""]
        command += ["--dir", str(self._folder), "--appendonly", "no", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if b"ready to accept connections" in line.lower():
                return
        raise AssertionError("redis-server did not start")

    def stop(self) -> None:
        """End it as a crash would."""
        if self._process is not None and self._process.stdout is not None:
            self._process.kill()
            self._process.stdout.close()
            self._process.wait(10)
            self._process = None
            self._socket.unlink(missing_ok=True)


@pytest.fixture
def redis_server(
    tmp_path: Path, require_peer: Callable[..., str], require_module: Callable[..., ModuleType]
) -> Iterator[RedisServer]:
    """A redis-server that runs until the test ends."""
    require_module("redis")
    server = RedisServer(require_peer("redis-server", "redis-server"), tmp_path)
    server.start()
    yield server
    server.stop()
