"""The PROXY protocol as HAProxy speaks it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stun import blocking
from stun.sansio import Accepted, Address, Arrived, Closed, Listen, Opened, Security, Write
from stun.tls import ClientTls, ServerTls
from tools.certificate import write_self_signed
from tools.driving import Recorder, Told

pytestmark = pytest.mark.interop

PATIENCE = 15.0
CONFIGURATION = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen stun
    bind {front}
    server us {back} {options}
"""


def free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("front", ["127.0.0.2", "::1"])
@pytest.mark.parametrize(
    "options",
    [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
        "send-proxy-v2-ssl-cn",
    ],
)
def test_haproxy_says_who_the_client_is(
    require_peer: Callable[..., str], tmp_path: Path, options: str, front: str, secure: bool
) -> None:
    program = require_peer("haproxy", "haproxy")
    certificate = write_self_signed(tmp_path / "certificate.pem", "stun.example")
    back = Address("127.0.0.1", free_port("127.0.0.1"))
    there = Address(front, free_port(front))
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(front=f"{front}:{there.port}", back=back, options=options))

    def echo(machine: Recorder, event: Told) -> None:
        if isinstance(event, Arrived):
            machine.order(Write(event.handle, event.data))

    machine = Recorder(echo).order(Listen(1, back, security=Security.DETECT))
    proxies = {back.port: ["127.0.0.1/32"]}
    with blocking.Driver(machine, server_tls=ServerTls(certificate), proxies=proxies) as driver:
        assert driver.run_until(lambda: bool(machine.all(Opened)), PATIENCE)
        proxy = subprocess.Popen([program, "-db", "-f", str(file)], stderr=subprocess.PIPE)
        try:
            client = dial(there, proxy)
            ours = Address(*client.getsockname()[:2])
            client.setblocking(False)
            if secure:
                client = ClientTls(certificate).streams.wrap_socket(
                    client, server_hostname="stun.example", do_handshake_on_connect=False
                )
            with client:
                received = exchange(driver, client, secure)
            assert driver.run_until(lambda: bool(machine.all(Closed)), PATIENCE), driver.counters
        finally:
            proxy.kill()
            proxy.wait()
            assert proxy.stderr is not None
            proxy.stderr.close()
    assert received == b"through the proxy"
    accepted = machine.one(Accepted)
    assert (accepted.remote, accepted.local, accepted.secure) == (ours, there, secure)


def dial(address: Address, proxy: subprocess.Popen[bytes]) -> socket.socket:
    """Connect as soon as the proxy listens."""
    end = time.monotonic() + PATIENCE
    while True:
        assert proxy.poll() is None, proxy.stderr and proxy.stderr.read()
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(address, PATIENCE)
        assert time.monotonic() < end
        time.sleep(0.02)


def exchange(driver: blocking.Driver[str], client: socket.socket, secure: bool) -> bytes:
    """Send something through and return what comes back, while the driver runs."""
    steps: list[Callable[[], object]] = [
        lambda: client.sendall(b"through the proxy"),
        lambda: received.append(client.recv(100)),
    ]
    if secure:
        steps.insert(0, client.do_handshake)  # type: ignore[attr-defined]
    received: list[bytes] = []
    end = time.monotonic() + PATIENCE
    while steps:
        assert time.monotonic() < end, driver.counters
        driver.step(0.01)
        # An ssl.SSLWantReadError is an OSError, as BlockingIOError is.
        with contextlib.suppress(OSError):
            steps[0]()
            steps.pop(0)
    return received[0]


def test_its_health_checks_are_of_its_own(require_peer: Callable[..., str], tmp_path: Path) -> None:
    # Version 2 with the command LOCAL: "the connection was established on purpose by the proxy
    # without being relayed".
    program = require_peer("haproxy", "haproxy")
    back = Address("127.0.0.1", free_port("127.0.0.1"))
    file = tmp_path / "haproxy.cfg"
    front = f"127.0.0.1:{free_port('127.0.0.1')}"
    options = "send-proxy-v2 check check-send-proxy inter 100"
    file.write_text(CONFIGURATION.format(front=front, back=back, options=options))
    machine = Recorder().order(Listen(1, back))
    with blocking.Driver(machine, proxies={back.port: ["127.0.0.1"]}) as driver:
        assert driver.run_until(lambda: bool(machine.all(Opened)), PATIENCE)
        proxy = subprocess.Popen([program, "-db", "-f", str(file)], stderr=subprocess.DEVNULL)
        try:
            assert driver.run_until(lambda: bool(machine.all(Accepted)), PATIENCE), driver.counters
        finally:
            proxy.kill()
            proxy.wait()
    accepted = machine.all(Accepted)[0]
    assert (accepted.remote.host, accepted.local) == ("127.0.0.1", back)
