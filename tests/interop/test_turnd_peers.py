"""turnd relays for clients that others wrote, behind two symmetric NATs made by the kernel."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nattype.lab import Lab
from nattype.lab.kernel.lab import Machine
from nattype.lab.kernel.process import Process
from tools.certificate import write_self_signed

pytestmark = pytest.mark.interop

HERE = Path(__file__).parent
USER, PASSWORD = "alice", "sesame"
PORT, TLS_PORT, WEB_PORT = 3478, 5349, 8000
PATIENCE = 60
TRANSPORTS = ("udp", "tcp", "tls")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.pair("symmetric", "symmetric", server_command=()) as lab:
        yield lab


@pytest.fixture(scope="module")
def server(lab: Lab) -> str:
    return lab.server_addresses()[0]


@pytest.fixture(scope="module")
def turnd(lab: Lab, server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place = tmp_path_factory.mktemp("turnd")
    certificate = write_self_signed(place / "certificate.pem", "turn.example")
    log = place / "log"
    arguments = [
        *("--listen", f"udp://{server}:{PORT}", "--listen", f"tcp://{server}:{PORT}"),
        *("--listen", f"tls://{server}:{TLS_PORT}", "--listen", f"dtls://{server}:{TLS_PORT}"),
        *("--cert", str(certificate), "--key", str(certificate)),
        *("--realm", "example", "--user", f"{USER}:{PASSWORD}", "--relay-address", server),
    ]
    with log.open("wb") as out:
        process = lab.server.popen(
            [sys.executable, "-m", "turn.daemon.cli", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lab.server, (server, TLS_PORT), process, log)
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        status = process.wait(10)
    said = log.read_text()
    assert status == 0, said
    assert "Traceback" not in said, said


def wait_for(machine: Machine, address: tuple[str, int], process: Process, log: Path) -> None:
    end = time.monotonic() + 20
    while True:
        with machine.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(address)
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, f"nothing listens at {address}: {log.read_text()}"
            else:
                return
        time.sleep(0.05)


def port_of(transport: str) -> int:
    return TLS_PORT if transport == "tls" else PORT


def answer_of(machine: Machine, *command: str) -> Any:
    """Run a program that prints one JSON object."""
    done = machine.run(
        [*command], capture_output=True, text=True, timeout=PATIENCE, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


# Chromium. ----------------------------------------------------------------------------------------


class Mailboxes(NamedTuple):
    machine: Machine
    address: tuple[str, int]

    def take(self, box: str) -> Any:
        """Return the next message of a box, or ``None`` when none comes within two seconds."""
        with self.machine.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
            one.settimeout(10)
            one.connect(self.address)
            one.sendall(f"GET /box/{box} HTTP/1.0\r\n\r\n".encode())
            answer = b""
            while piece := one.recv(65536):
                answer += piece
        body = answer.partition(b"\r\n\r\n")[2]
        return json.loads(body) if body else None


@pytest.fixture(scope="module")
def mailboxes(
    lab: Lab, server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mailboxes]:
    log = tmp_path_factory.mktemp("mailboxes") / "log"
    with log.open("wb") as out:
        process = lab.server.popen(
            [sys.executable, str(HERE / "browser" / "mailboxes.py"), server, str(WEB_PORT)],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lab.server, (server, WEB_PORT), process, log)
        yield Mailboxes(lab.server, (server, WEB_PORT))
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def chromium(require_peer: Callable[..., str]) -> str:
    return require_peer("chromium", "chromium")


@pytest.mark.usefixtures("turnd")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_chromium_pages_exchange_messages(
    lab: Lab, chromium: str, mailboxes: Mailboxes, transport: str, tmp_path: Path
) -> None:
    server = mailboxes.address[0]
    scheme, over = ("turns", "tcp") if transport == "tls" else ("turn", transport)
    url = f"{scheme}:{server}:{port_of(transport)}?transport={over}"
    relay = {"urls": [url], "username": USER, "credential": PASSWORD}
    ice = json.dumps({"iceServers": [relay], "iceTransportPolicy": "relay"})
    sides = {"a": f"{transport}-a", "b": f"{transport}-b"}
    pages = []
    try:
        for machine, me, peer in ((lab.a, "a", "b"), (lab.b, "b", "a")):
            query = urllib.parse.urlencode(
                {"me": sides[me], "peer": sides[peer], "offer": int(me == "a"), "ice": ice}
            )
            pages.append(
                machine.popen(
                    [
                        chromium,
                        "--headless=new",
                        # Its sandbox does not start as root; the lab's namespace is one.
                        "--no-sandbox",
                        "--disable-gpu",
                        "--disable-dev-shm-usage",
                        "--disable-background-networking",
                        "--no-first-run",
                        "--ignore-certificate-errors",
                        f"--user-data-dir={tmp_path / me}",
                        f"http://{server}:{WEB_PORT}/page.html?{query}",
                    ],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        results: dict[str, Any] = {}
        end = time.monotonic() + PATIENCE
        while len(results) < 2:
            assert time.monotonic() < end, (results, [mailboxes.take(f"log-{s}") for s in sides])
            for side in sides.values():
                if side not in results and (result := mailboxes.take(f"result-{side}")):
                    results[side] = result
    finally:
        for page in pages:
            page.terminate()
        for page in pages:
            page.wait(10)
    for result in results.values():
        assert result["right"], result
        assert result["pair"]["local"] == result["pair"]["remote"] == "relay"
        assert result["pair"]["relayProtocol"] == transport
        assert result["pair"]["address"] == server


# Libraries. ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("turnd")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_aioice_connects_through_the_relay(
    lab: Lab, server: str, transport: str, require_module: Callable[..., Any]
) -> None:
    require_module("aioice")
    script = str(HERE / "peers" / "aioice_relay.py")
    port = str(port_of(transport))
    result = answer_of(lab.a, sys.executable, script, server, port, USER, PASSWORD, transport)
    assert result == {side: {"right": True, "types": ["relay"]} for side in "ab"}


@pytest.mark.usefixtures("turnd")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_libnice_connects_through_the_relay(
    lab: Lab, server: str, transport: str, missing: Callable[[str, str], Any]
) -> None:
    # The bindings belong to the system's Python, not to the one that runs the tests.
    python = "/usr/bin/python3"
    probe = "import gi; gi.require_version('Nice', '0.1'); gi.require_version('GstApp', '1.0')"
    if subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
        missing("libnice", "sudo apt-get install gstreamer1.0-nice gir1.2-nice-0.1")
    script = str(HERE / "peers" / "libnice_relay.py")
    result = answer_of(lab.a, python, script, server, str(PORT), USER, PASSWORD, transport)
    assert result == {side: {"right": True, "pair": ["relayed", "relayed"]} for side in "ab"}


@pytest.fixture(scope="module")
def pion(
    tmp_path_factory: pytest.TempPathFactory,
    require_peer: Callable[..., str],
    missing: Callable[[str, str], Any],
) -> str:
    """The program of peers/pion_relay, built from Debian's packages of Go sources."""
    go = require_peer("go", "golang-go")
    sources = Path("/usr/share/gocode")
    if not (sources / "src/github.com/pion/turn/v2").is_dir():
        missing("pion", "sudo apt-get install golang-github-pion-turn.v2-dev")
    place = tmp_path_factory.mktemp("pion")
    shutil.copytree(HERE / "peers" / "pion_relay", place / "source")
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": str(sources),
        "GOCACHE": str(place / "cache"),
    }
    subprocess.run(
        [go, "build", "-o", str(place / "pion_relay"), "."],
        cwd=place / "source",
        env=environment,
        check=True,
    )
    return str(place / "pion_relay")


@pytest.mark.usefixtures("turnd")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_pion_relays(lab: Lab, server: str, transport: str, pion: str) -> None:
    address = f"{server}:{port_of(transport)}"
    result = answer_of(lab.a, pion, transport, address, USER, PASSWORD)
    assert result["same"] == 50, result
    assert all(relayed.startswith(f"{server}:") for relayed in result["relayed"])
