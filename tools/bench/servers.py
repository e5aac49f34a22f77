"""The servers of the benchmarks: on the first core, on loopback unless told otherwise."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from nattype.lab.kernel.namespaces import die_with_parent  # noqa: E402
from stun.codec import Message  # noqa: E402
from stun.registry import Method  # noqa: E402
from stun.sansio import Address  # noqa: E402
from tools.bench.rawturn import PASSWORD, REALM, USER, RawTurn  # noqa: E402
from tools.certificate import write_self_signed  # noqa: E402

HOST = "127.0.0.1"
PATIENCE = 15.0
"""Seconds that a server may take to start."""
LIFETIME = 600
"""Seconds of an allocation (RFC 8656 section 3.2)."""

TURND = """
realm = "{realm}"
[[listen]]
url = "udp://{host}:{port}"
[[listen]]
url = "tcp://{host}:{port}"
[[listen]]
url = "tls://{host}:{tls}"
[tls]
certificate = "{pem}"
[relay]
addresses = ["{relay}"]
default_lifetime = {lifetime}
[auth]
users = {{ {user} = "{password}" }}
[peers]
allow = ["127.0.0.0/8", "10.0.0.0/8"]
[admin]
socket = "{admin}"
[limits]
allocations = 0
allocations_per_user = 0
allocations_per_client = 0
permissions_per_allocation = 0
channels_per_allocation = 0
octets_per_second_per_user = 0
octets_per_second_per_client = 0
packets_per_second_per_user = 0
packets_per_second_per_client = 0
requests_per_second_per_client = 0
unverified_burst = 1000000000000
connections = 0
connections_per_client = 0
"""

NATCHECK = """
import asyncio, os
from stun.aio import Driver
from stun.responder import Limits
from stun.sansio import Address
from stun.server import Server, ServerConfig

async def main():
    limits = Limits(answers=1_000_000)
    config = ServerConfig(Address("{host}", {port}), tcp=False, limits=limits)
    server = Server(config, entropy=os.urandom)
    async with Driver(server, on_event=lambda event: None) as driver:
        server.start(driver.now())
        driver.flush()
        await driver.run()

asyncio.run(main())
"""


@dataclass(frozen=True)
class Ports:
    """Where a server listens."""

    plain: int
    tls: int
    host: str = HOST
    relay: str = HOST
    """Where it relays from."""


Command: TypeAlias = Callable[[Ports, Path], list[str]]
"""Returns how to start a server; the directory is for its files."""


def free_port() -> int:
    """Return a port that is free for UDP and TCP."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        ):
            udp.bind((HOST, 0))
            port: int = udp.getsockname()[1]
            try:
                tcp.bind((HOST, port))
            except OSError:
                continue
            return port


def turnd(python: str, *more: str, lifetime: int = LIFETIME) -> Command:
    """Return how to start turnd on a Python; limits are there, but never reached.

    ``lifetime``: seconds that an allocation has whose client asks for no more.
    """

    def command(ports: Ports, directory: Path) -> list[str]:
        pem = write_self_signed(directory / "cert.pem", ports.host, "localhost")
        config = directory / "turnd.toml"
        config.write_text(
            TURND.format(host=ports.host, port=ports.plain, tls=ports.tls, relay=ports.relay,
                         pem=pem, realm=REALM, user=USER, password=PASSWORD, lifetime=lifetime,
                         admin=directory / "admin")
        )  # fmt: skip
        module = ["-m", "turn.daemon.cli", "--config", str(config), "--log-level", "error"]
        return [python, *module, *more]

    return command


def coturn_with(*more: str, lifetime: int = LIFETIME) -> Command:
    """Return how to start coturn, with one relay thread unless ``more`` says otherwise."""

    def command(ports: Ports, directory: Path) -> list[str]:
        pem = write_self_signed(directory / "cert.pem", ports.host, "localhost")
        return [
            "turnserver", "-n", "-L", ports.host, "-E", ports.relay, "-p", str(ports.plain),
            "--tls-listening-port", str(ports.tls), "-m", "1", "--lt-cred-mech",
            "-u", f"{USER}:{PASSWORD}", "-r", REALM, "--allow-loopback-peers", "--no-dtls",
            "--no-cli", "--cert", str(pem), "--pkey", str(pem), "--no-software-attribute",
            "--log-file", "/dev/null", "--simple-log", "--pidfile", str(directory / "pid"),
            "--db", str(directory / "db"), "--max-allocate-lifetime", str(lifetime), *more,
        ]  # fmt: skip

    return command


coturn: Command = coturn_with()
"""How to start coturn as it is."""


def natcheck(python: str) -> Command:
    """Return how to start natcheck's STUN server, whose answers are those of RFC 5780."""

    def command(ports: Ports, _directory: Path) -> list[str]:
        return [python, "-c", NATCHECK.format(host=HOST, port=ports.plain)]

    return command


@contextmanager
def serving(
    command: Command, ports: Ports | None = None, cores: str = "0"
) -> Iterator[tuple[int, Ports]]:
    """Run a server on the first core; yield its process and its ports once it answers."""
    with tempfile.TemporaryDirectory(prefix="natkit-bench-") as name:
        ports = ports or Ports(free_port(), free_port())
        words = command(ports, Path(name))
        process = subprocess.Popen(
            ["taskset", "-c", cores, *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *_packages(words[0])])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # noqa: PLW1509  # no threads here
        )
        try:
            _wait(process, ports)
            yield process.pid, ports
        finally:
            process.terminate()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


def _packages(program: str) -> list[str]:
    """Return where another Python than this one finds the packages of this one."""
    return [] if program == sys.executable else [path for path in sys.path if "-packages" in path]


def _wait(process: subprocess.Popen[str], ports: Ports) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        probe = RawTurn(Address(ports.host, ports.plain), patience=0.1)
        try:
            probe.request(Message.request(Method.BINDING, bytes(12)), bare=True)
            break
        except Exception:
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{process.args!r} does not serve: {process.communicate()[1]}")
        finally:
            probe.close()
        time.sleep(0.05)
    time.sleep(0.5)  # coturn answers before all of its threads have their sockets
