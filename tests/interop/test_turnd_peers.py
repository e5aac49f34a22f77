"""turnd relays for clients that others wrote, behind two symmetric NATs made by the kernel.

With sockets one turnd serves both.  What goes from one of its relayed addresses to another is never
seen by the kernel's data plane; so there each side has a turnd of its own, on another machine.
"""

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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nattype.lab import Lab
from nattype.lab.kernel.lab import Machine
from nattype.lab.kernel.process import Process
from nattype.lab.kernel.spec import site
from tests.lab.turnd_world import moved, scrape
from tools.certificate import write_self_signed

pytestmark = pytest.mark.interop

HERE = Path(__file__).parent
USER, PASSWORD = "alice", "sesame"
PORT, TLS_PORT, WEB_PORT, METRICS_PORT = 3478, 5349, 8000, 9641
SITES = {"a": "symmetric", "b": "symmetric", "second": "open"}
PATIENCE = 60
TRANSPORTS = ("udp", "tcp", "tls")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    sites = (site(kind, name=name, hosts=(name,)) for name, kind in SITES.items())
    with Lab(*sites, server_command=()) as lab:
        yield lab


@pytest.fixture(scope="module")
def server(lab: Lab) -> str:
    return lab.server_addresses()[0]


class Servers:
    """The turnd of each side, which may be the same."""

    def __init__(self, lab: Lab, plane: str, machines: list[Machine]) -> None:
        self.lab = lab
        self._plane, self._machines = plane, machines
        self.hosts = [machines[0].ipv4, machines[-1].ipv4]

    @property
    def named(self) -> str:
        """Their addresses, as the programs of peers/ take them."""
        return ",".join(dict.fromkeys(self.hosts))

    @contextmanager
    def relaying(self, transport: str, *, channels: bool = True) -> Iterator[None]:
        """In the block something is relayed, and by whom it ought to be.

        ``channels``: it surely goes through channels, and not in Send indications.
        """
        before = self._in_kernel()
        yield
        if transport == "udp" and not channels:
            return
        for was, now in zip(before, self._in_kernel(), strict=True):
            assert (now > was) is (self._plane == "kernel" and transport == "udp")

    def _in_kernel(self) -> list[int]:
        return [moved(scrape(machine, METRICS_PORT)).in_kernel for machine in self._machines]


@pytest.fixture(scope="module")
def turnd(lab: Lab, plane: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    machines = [lab.server]
    if plane == "kernel":
        machines.append(lab["second"])
        for host in (lab.a, lab.b):
            # A checksum that is left to a network card is never computed in a laboratory, and the
            # kernel's data plane leaves such packets to the sockets.
            done = host.run(["ip", "-json", "link"], capture_output=True, text=True, check=True)
            for link in json.loads(done.stdout):
                if link["ifname"] != "lo":
                    host.run(["ethtool", "-K", link["ifname"], "tx", "off"], stdout=subprocess.PIPE)
    with ExitStack() as stack:
        for machine in machines:
            place = tmp_path_factory.mktemp("turnd")
            stack.enter_context(serving(machine, plane, place))
        yield Servers(lab, plane, machines)


@contextmanager
def serving(machine: Machine, plane: str, place: Path) -> Iterator[None]:
    """Run turnd on a machine; it must end as it is told."""
    host, log = machine.ipv4, place / "log"
    certificate = write_self_signed(place / "certificate.pem", "turn.example")
    arguments = [
        *("--listen", f"udp://{host}:{PORT}", "--listen", f"tcp://{host}:{PORT}"),
        *("--listen", f"tls://{host}:{TLS_PORT}", "--listen", f"dtls://{host}:{TLS_PORT}"),
        *("--cert", str(certificate), "--key", str(certificate)),
        *("--realm", "example", "--user", f"{USER}:{PASSWORD}", "--relay-address", host),
        *("--dataplane", plane, "--metrics", f"127.0.0.1:{METRICS_PORT}", "--admin-socket", ""),
    ]
    with log.open("wb") as out:
        process = machine.popen(
            [sys.executable, "-m", "turn.daemon.cli", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(machine, (host, TLS_PORT), process, log)
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


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_chromium_pages_exchange_messages(
    turnd: Servers, chromium: str, mailboxes: Mailboxes, transport: str, tmp_path: Path
) -> None:
    lab, server = turnd.lab, mailboxes.address[0]
    sides = {name: f"{transport}-{name}-of-{turnd.named}" for name in "ab"}
    ends = zip((lab.a, lab.b), "ab", "ba", turnd.hosts, strict=True)
    with turnd.relaying(transport), ExitStack() as pages:
        for machine, me, peer, relay in ends:
            query = {
                "me": sides[me],
                "peer": sides[peer],
                "offer": int(me == "a"),
                "ice": ice_by(relay, transport),
            }
            page = machine.popen(
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
                    f"http://{server}:{WEB_PORT}/page.html?{urllib.parse.urlencode(query)}",
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            pages.callback(page.wait, 10)
            pages.callback(page.terminate)
        results: dict[str, Any] = {}
        end = time.monotonic() + PATIENCE
        while len(results) < 2:
            assert time.monotonic() < end, (results, [mailboxes.take(f"log-{s}") for s in sides])
            for side in sides.values():
                if side not in results and (result := mailboxes.take(f"result-{side}")):
                    results[side] = result
    for result in results.values():
        assert result["right"], result
        assert result["pair"]["local"] == result["pair"]["remote"] == "relay"
        assert result["pair"]["relayProtocol"] == transport
    assert [results[side]["pair"]["address"] for side in sides.values()] == turnd.hosts


def ice_by(server: str, transport: str) -> str:
    """Return the configuration of a page that may use nothing but this server."""
    scheme, over = ("turns", "tcp") if transport == "tls" else ("turn", transport)
    url = f"{scheme}:{server}:{port_of(transport)}?transport={over}"
    relay = {"urls": [url], "username": USER, "credential": PASSWORD}
    return json.dumps({"iceServers": [relay], "iceTransportPolicy": "relay"})


# Libraries. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_aioice_connects_through_the_relay(
    lab: Lab, turnd: Servers, transport: str, require_module: Callable[..., Any]
) -> None:
    require_module("aioice")
    script = str(HERE / "peers" / "aioice_relay.py")
    port = str(port_of(transport))
    with turnd.relaying(transport):
        result = answer_of(
            lab.a, sys.executable, script, turnd.named, port, USER, PASSWORD, transport
        )
    assert result == {side: {"right": True, "types": ["relay"]} for side in "ab"}


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_libnice_connects_through_the_relay(
    lab: Lab, turnd: Servers, transport: str, missing: Callable[[str, str], Any]
) -> None:
    # The bindings belong to the system's Python, not to the one that runs the tests.
    python = "/usr/bin/python3"
    probe = "import gi; gi.require_version('Nice', '0.1'); gi.require_version('GstApp', '1.0')"
    if subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
        missing("libnice", "sudo apt-get install gstreamer1.0-nice gir1.2-nice-0.1")
    script = str(HERE / "peers" / "libnice_relay.py")
    # libnice may have sent all of it before its channel is bound.
    with turnd.relaying(transport, channels=False):
        result = answer_of(lab.a, python, script, turnd.named, str(PORT), USER, PASSWORD, transport)
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


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_pion_relays(lab: Lab, turnd: Servers, transport: str, pion: str) -> None:
    port = str(port_of(transport))
    with turnd.relaying(transport):
        result = answer_of(lab.a, pion, transport, turnd.named, port, USER, PASSWORD)
    assert result["same"] == 50, result
    assert [relayed.partition(":")[0] for relayed in result["relayed"]] == turnd.hosts
