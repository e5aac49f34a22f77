"""DTLS with OpenSSL's own programs and with coturn, either of us as the server."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from stun import blocking
from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Closed,
    Connected,
    Dial,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Output,
    Received,
    Security,
    Shut,
    SocketEvent,
    Transmit,
    Write,
)
from stun.tls import ClientTls, ServerTls
from tools.certificate import write_self_signed

pytestmark = pytest.mark.interop

LOCALHOST = "127.0.0.1"
NAME = "stun.example"
PATIENCE = 15.0


class Shouter:
    """Answers with the same in capitals whatever comes, on any transport."""

    def __init__(self, *orders: Output) -> None:
        self.queue: deque[Output] = deque(orders)
        self.heard: list[SocketEvent | Received] = []

    def receive(self, packet: Received, now: Instant) -> None:
        self.heard.append(packet)
        self.queue.append(Transmit(packet.data.upper(), packet.source, packet.local))

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        self.heard.append(event)
        if isinstance(event, Arrived):
            self.queue.append(Write(event.handle, event.data.upper()))

    def on_deadline(self, now: Instant) -> None: ...

    def poll(self) -> Output | None:
        return self.queue.popleft() if self.queue else None

    def deadline(self) -> Instant | None:
        return None

    def all(self, kind: type) -> list[Any]:
        return [event for event in self.heard if type(event) is kind]


@contextlib.contextmanager
def serving(certificate: Path, *orders: Output) -> Iterator[tuple[Shouter, list[Address]]]:
    """Run a server in a thread; gives its machine and where it listens."""
    machine = Shouter(*orders)
    stop = threading.Event()
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            with blocking.Driver(machine, server_tls=ServerTls(certificate)) as driver:
                while not stop.is_set():
                    driver.step(0.05)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        wait(lambda: len(machine.all(Opened)) == len(orders) or failures)
        yield machine, [event.local for event in machine.all(Opened)]
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert not failures, failures


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return write_self_signed(tmp_path / "certificate.pem", NAME)


class Program:
    """A program that is talked to through its standard input and output."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.output = b""
        self._thread = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        while piece := os.read(stream.fileno(), 65536):
            self.output += piece

    def say(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def shows(self, text: bytes) -> None:
        wait(lambda: text in self.output or self.process.poll() is not None)
        assert text in self.output, self.output.decode(errors="replace")

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def s_client(address: Address, certificate: Path, *more: str) -> Program:
    return Program(
        "openssl", "s_client", "-connect", str(address), "-CAfile", str(certificate),
        "-verify_return_error", "-verify_hostname", NAME, *more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "security", [Security.DETECT, Security.REQUIRED], ids=["detect", "required"]
)
@pytest.mark.parametrize("alpn", ["", "stun.turn", "stun.nat-discovery"])
def test_s_client_over_udp(
    require_peer: Callable[..., str], certificate: Path, security: Security, alpn: str
) -> None:
    require_peer("openssl", "openssl")
    order = OpenUdp(1, Address(LOCALHOST, 0), security)
    options = ["-dtls1_2", *(["-alpn", alpn] if alpn else [])]
    with (
        serving(certificate, order) as (machine, (address,)),
        s_client(address, certificate, *options) as client,
    ):
        client.shows(b"Verify return code: 0 (ok)")
        if alpn:
            client.shows(b"ALPN protocol: " + alpn.encode())
        for n in range(5):
            client.say(b"datagram %d\n" % n)
            client.shows(b"DATAGRAM %d" % n)
        client.say(b"Q\n")
        wait(lambda: machine.all(Closed))
    (accepted,) = machine.all(Accepted)
    assert accepted.secure
    assert [event.data for event in machine.all(Arrived)] == [
        b"datagram %d\n" % n for n in range(5)
    ]


@pytest.mark.parametrize("mtu", ["300", "600"])
def test_s_client_on_a_small_mtu(
    require_peer: Callable[..., str], certificate: Path, mtu: str
) -> None:
    require_peer("openssl", "openssl")
    order = OpenUdp(1, Address(LOCALHOST, 0), Security.REQUIRED)
    with (
        serving(certificate, order) as (_, (address,)),
        s_client(address, certificate, "-dtls1_2", "-mtu", mtu) as client,
    ):
        client.say(b"small\n")
        client.shows(b"SMALL")


@pytest.mark.parametrize(
    ("transport", "refused"),
    [(["-dtls1"], b"alert"), (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], b"alert")],
)
def test_versions_of_the_past_are_refused(
    require_peer: Callable[..., str], certificate: Path, transport: list[str], refused: bytes
) -> None:
    require_peer("openssl", "openssl")
    local = Address(LOCALHOST, 0)
    orders = (OpenUdp(1, local, Security.REQUIRED), Listen(2, local, security=Security.REQUIRED))
    with serving(certificate, *orders) as (machine, (udp, tcp)):
        address = udp if transport[0].startswith("-dtls") else tcp
        with s_client(address, certificate, *transport) as client:
            wait(lambda: client.process.poll() is not None)
            assert refused in client.output
        assert not machine.all(Accepted)


@pytest.mark.parametrize("transport", ["-dtls1_2", "-tls1_2", "-tls1_3"])
def test_s_client_for_another_protocol(
    require_peer: Callable[..., str], certificate: Path, transport: str
) -> None:
    require_peer("openssl", "openssl")
    local = Address(LOCALHOST, 0)
    orders = (OpenUdp(1, local, Security.DETECT), Listen(2, local, security=Security.DETECT))
    with serving(certificate, *orders) as (machine, (udp, tcp)):
        address = udp if transport == "-dtls1_2" else tcp
        with s_client(address, certificate, transport, "-alpn", "h2") as client:
            client.shows(b"alert number 120")  # no_application_protocol, RFC 7301
        assert not machine.all(Accepted)


@pytest.mark.parametrize("transport", ["-tls1_2", "-tls1_3"])
def test_s_client_over_tcp(
    require_peer: Callable[..., str], certificate: Path, transport: str
) -> None:
    require_peer("openssl", "openssl")
    order = Listen(1, Address(LOCALHOST, 0), security=Security.DETECT)
    with (
        serving(certificate, order) as (machine, (address,)),
        s_client(address, certificate, transport, "-alpn", "stun.turn") as client,
    ):
        client.shows(b"ALPN protocol: stun.turn")
        client.say(b"stream\n")
        client.shows(b"STREAM")
        assert machine.all(Accepted)[0].secure


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOCALHOST, 0))
        port: int = sock.getsockname()[1]
        return port


def test_s_server(require_peer: Callable[..., str], certificate: Path) -> None:
    require_peer("openssl", "openssl")
    port = free_udp_port()
    machine = Shouter()
    with (
        Program(
            "openssl", "s_server", "-dtls1_2", "-accept", f"{LOCALHOST}:{port}",
            "-cert", str(certificate), "-alpn", "stun.turn", "-listen",
        ) as server,
        blocking.Driver(machine, tls=ClientTls(certificate)) as driver,
    ):  # fmt: skip
        server.shows(b"ACCEPT")
        machine.queue.append(
            Dial(1, Address(LOCALHOST, 0), Address(LOCALHOST, port), NAME, datagrams=True)
        )
        assert driver.run_until(lambda: bool(machine.all(Connected)), PATIENCE), machine.heard
        machine.queue.append(Write(1, b"from us\n"))
        driver.flush()
        server.shows(b"from us")
        assert b"ALPN protocols selected: stun.turn" in server.output
        server.say(b"from them\n")
        assert driver.run_until(lambda: bool(machine.all(Arrived)), PATIENCE)
        assert machine.all(Arrived)[0].data == b"from them\n"
        machine.queue.append(Shut(1))
        driver.flush()
        server.shows(b"DONE")


def test_a_binding_request_to_coturn(
    require_peer: Callable[..., str], certificate: Path, tmp_path: Path
) -> None:
    require_peer("turnserver", "coturn")
    port = free_udp_port()
    machine = Shouter()
    with (
        Program(
            "turnserver", "-n", "-v", "--log-file", "stdout", "--no-cli", "-L", LOCALHOST,
            "--listening-port", str(free_udp_port()), "--tls-listening-port", str(port),
            "--cert", str(certificate), "--pkey", str(certificate), "--pidfile",
            str(tmp_path / "pid"), "--userdb", str(tmp_path / "db"), "--no-tcp",
        ) as server,
        blocking.Driver(machine, tls=ClientTls(certificate)) as driver,
    ):  # fmt: skip
        server.shows(b"DTLS/UDP listener opened on: %s:%d" % (LOCALHOST.encode(), port))
        machine.queue.append(
            Dial(1, Address(LOCALHOST, 0), Address(LOCALHOST, port), NAME, datagrams=True)
        )
        ended = (Connected, Closed)
        assert driver.run_until(lambda: any(map(machine.all, ended)), PATIENCE)
        assert machine.all(Connected), machine.heard
        request = bytes.fromhex("000100002112a442") + os.urandom(12)
        machine.queue.append(Write(1, request))
        assert driver.run_until(lambda: bool(machine.all(Arrived)), PATIENCE)
    answer = machine.all(Arrived)[0].data
    assert answer[:2] == b"\x01\x01", "a success response to Binding"
    assert answer[4:20] == request[4:20]
