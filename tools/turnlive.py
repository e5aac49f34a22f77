"""Clients as those of :mod:`tools.turndesk`, over real sockets, and a turnd in processes for them.

A client is led by hand: it says which socket it has, and sees each message.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from stun.discovery import Transport
from stun.framing import StunStream
from stun.sansio import Address
from stun.sockaddr import from_sockaddr
from tools.turndesk import Caller, Desk
from turn.daemon.admin import NotRunning, Refused, ask

PATIENCE: Final = 5.0
"""Seconds to wait for what must come; only a failing test waits that long."""


class _NoDesk:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng


class LiveCaller(Caller):
    """A client with a socket of its own; ``tls`` makes it one of TLS."""

    def __init__(
        self,
        server: Address,
        rng: random.Random,
        *,
        transport: Transport = Transport.UDP,
        tls: ssl.SSLContext | None = None,
        username: str = "alice",
        password: str = "secret",
        host: str = "127.0.0.1",
    ) -> None:
        self.server = server
        self.sock = self._open(server, transport, tls, host)
        self._live = StunStream(channel_data=True)
        desk: Any = _NoDesk(rng)
        super().__init__(
            desk,
            address=from_sockaddr(self.sock.getsockname()),
            transport=transport,
            username=username,
            password=password,
            server=server,
        )

    @staticmethod
    def _open(
        server: Address, transport: Transport, tls: ssl.SSLContext | None, host: str
    ) -> socket.socket:
        if transport is Transport.UDP:
            sock = socket.socket(type=socket.SOCK_DGRAM)
            sock.bind((host, 0))
            sock.connect(server)
            return sock
        stream = socket.create_connection(server, PATIENCE, (host, 0))
        return stream if tls is None else tls.wrap_socket(stream)

    def connect(self) -> None:
        """Nothing: it has come by its connection."""
        self.handle = -1

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def send(self, octets: bytes) -> list[bytes]:
        """Send a message; of a request, return what comes back, data put aside."""
        self.sock.sendall(octets)
        # The two bits of a message's class are zero in a request (RFC 8489 section 5).
        is_request = octets[0] < 0x40 and not int.from_bytes(octets[:2]) & 0x0110
        if not is_request:
            return []
        end = time.monotonic() + PATIENCE
        found: list[bytes] = []
        while time.monotonic() < end:
            came = self.fetch(end - time.monotonic())
            found += came
            if any(one[8:20] == octets[8:20] for one in came):
                break
        return found

    def fetch(self, patience: float = 0.0) -> list[bytes]:
        """Return the messages that have come, after waiting for the first; keep the data."""
        came = self._receive(patience)
        # As in the class above: what is data is put aside.
        self.desk = _Came(self.desk, came, self.address)  # type: ignore[assignment]
        transport, self.transport = self.transport, Transport.UDP
        handle, self.handle = self.handle, 0
        try:
            return super().fetch()
        finally:
            self.transport, self.handle = transport, handle
            self.desk = self.desk.desk  # type: ignore[attr-defined]

    def _receive(self, patience: float) -> list[bytes]:
        pending = getattr(self.sock, "pending", lambda: 0)
        if not pending() and not select.select([self.sock], [], [], max(patience, 0))[0]:
            return []
        data = self.sock.recv(65536)
        if self.transport is Transport.UDP:
            return [data]
        if not data:
            raise ConnectionError("the server has closed the connection")
        return self._live.feed(data)

    def rest(self) -> bytes:
        """Return what came behind the last message: after a ConnectionBind it is data."""
        return self._live.rest()

    def wait_for_data(self) -> tuple[int, bytes] | None:
        """Return the next ChannelData that comes: number and payload."""
        end = time.monotonic() + PATIENCE
        while not self.channels and time.monotonic() < end:
            self.fetch(end - time.monotonic())
        return self.channels.pop(0) if self.channels else None


class _Came:
    """A desk on which certain messages lie."""

    def __init__(self, desk: Desk, came: list[bytes], address: Address) -> None:
        from stun.sansio import Transmit

        self.desk = desk
        self.rng = desk.rng
        self.sent = [Transmit(octets, address, address) for octets in came]


class LiveTurnd:
    """``turnd`` as a program, with a configuration of ``tables``.  A context manager.

    It listens on ``port`` of 127.0.0.1, UDP and TCP, for alice and bob.
    """

    def __init__(self, tables: Mapping[str, Any], *arguments: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="turnd-"))
        self.socket = self.directory / "admin.sock"
        self.log = self.directory / "log"
        self.config = self.directory / "turnd.toml"
        self.port = free_port()
        self.arguments = arguments
        self.tables: dict[str, Any] = {
            "listen": [f"udp://127.0.0.1:{self.port}", f"tcp://127.0.0.1:{self.port}"],
            "relay.addresses": ["127.0.0.1"],
            "peers.allow": ["127.0.0.0/8"],
            "auth.users": {"alice": "secret", "bob": "hidden"},
            "log.format": "json",
            "dataplane": "sockets",
        } | dict(tables)
        self.process: subprocess.Popen[bytes]

    @property
    def server(self) -> Address:
        """Where clients come to."""
        return Address("127.0.0.1", self.port)

    def write(self, **changes: Any) -> None:
        """Write the configuration; a name's dots are written as two underscores."""
        self.tables |= {key.replace("__", "."): value for key, value in changes.items()}
        top, tables = [], []
        for path, value in self.tables.items():
            if path == "listen":
                tables += [f"[[listen]]\nurl = {json.dumps(url)}" for url in value]
                continue
            table, _, key = path.rpartition(".")
            text = f"{key} = {_toml(value)}"
            if table:
                tables.append(f"{table}.{text}")
            else:
                top.append(text)
        dotted = [one for one in tables if not one.startswith("[[")]
        listeners = [one for one in tables if one.startswith("[[")]
        self.config.write_text("\n".join([*top, *dotted, *listeners]) + "\n")

    def __enter__(self) -> Self:
        self.write()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "turn.daemon.cli",
                    "--config",
                    str(self.config),
                    "--admin-socket",
                    str(self.socket),
                    *self.arguments,
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            )
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if '"serving"' in self.log.read_text() or self.process.poll() is not None:
                break
            time.sleep(0.05)
        if self.process.poll() is not None:
            said = self.log.read_text()
            self._clean()
            raise AssertionError(said)
        return self

    def _clean(self) -> None:
        for left in self.directory.iterdir():
            left.unlink()
        self.directory.rmdir()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            if error is not None:
                print(self.log.read_text())
            self._clean()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Ask it at its admin socket."""
        return ask(self.socket, command, timeout=20, **arguments)

    def answers(self) -> bool:
        """Whether it answers there."""
        try:
            self.ask("status")
        except (NotRunning, Refused):
            return False
        return True

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]

    def wait_for(self, message: str) -> dict[str, Any]:
        """Return the line of the log with this message, once it is there."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for line in self.lines():
                if line["message"] == message:
                    return line
            time.sleep(0.05)
        raise AssertionError(f"not logged: {message}\n{self.log.read_text()}")


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free for UDP and TCP."""
    for _ in range(50):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
