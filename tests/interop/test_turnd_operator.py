"""A turnd of its own process and its operator: commands, signals, certificates, what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import turn.blocking
from stun.discovery import Target, Transport
from stun.sansio import Address
from tools.certificate import write_self_signed

HOST = "127.0.0.1"
TURND = [sys.executable, "-m", "turn.daemon.cli"]
USER, PASSWORD = "alice", "sesame"


class Turnd:
    def __init__(self, process: subprocess.Popen[bytes], port: int, place: Path) -> None:
        self.process = process
        self.port = port
        self.admin = place / "turnd.sock"
        self.log = place / "log"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        name, *rest = arguments
        return subprocess.run(
            [*TURND, name, "--admin-socket", str(self.admin), *rest],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def allocate(self) -> Any:
        target = Target(Address(HOST, self.port), Transport.UDP)
        return turn.blocking.connect(target, username=USER, password=PASSWORD)

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 15
        while text not in self.log.read_text():
            assert time.monotonic() < end, f"{text!r} is not in {self.log.read_text()}"
            time.sleep(0.02)


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    @contextmanager
    def started(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Turnd]:
        with socket.socket(type=socket.SOCK_DGRAM) as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        line = [
            *TURND,
            *("--listen", f"udp://{HOST}:{port}", "--relay-address", HOST),
            *("--user", f"{USER}:{PASSWORD}", "--admin-socket", str(tmp_path / "turnd.sock")),
            *("--log-format", "json", "--allow-peer", "127.0.0.0/8", *arguments),
        ]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                line, stdout=log, stderr=subprocess.STDOUT, env=os.environ | (env or {})
            )
        turnd = Turnd(process, port, tmp_path)
        try:
            turnd.wait_for('"message": "serving"')
            yield turnd
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(15)
        assert process.returncode == 0
        assert "Traceback" not in turnd.log.read_text()

    return started


def test_sessions_are_shown_and_ended(start: Start) -> None:
    with start() as turnd, turnd.allocate() as relay:
        (session,) = json.loads(turnd.command("sessions", "--json").stdout)
        assert session["user"] == USER
        assert session["relayed"] == [str(relay.relayed_address)]
        ended = turnd.command("disconnect", session["session"])
        assert (ended.returncode, ended.stdout) == (0, "1 allocation ended\n")
        assert json.loads(turnd.command("sessions", "--json").stdout) == []
        turnd.wait_for("the operator disconnected it")


def test_a_minted_credential_is_good(start: Start) -> None:
    with start("--secret", "between us") as turnd:
        minted = json.loads(turnd.command("credentials", "bob", "--ttl", "60", "--json").stdout)
        assert minted["username"].endswith(":bob")
        target = Target(Address(HOST, turnd.port), Transport.UDP)
        login = {"username": minted["username"], "password": minted["password"]}
        with turn.blocking.connect(target, **login) as relay:
            assert relay.relayed_address.host == HOST


def test_without_a_secret_no_credential_is_minted(start: Start) -> None:
    with start() as turnd:
        refused = turnd.command("credentials", "bob")
        assert refused.returncode == 1
        assert "no secret" in refused.stderr


def test_draining_ends_with_the_last_allocation(start: Start) -> None:
    with start() as turnd:
        with turnd.allocate() as relay:
            assert turnd.command("drain").stdout == "draining: 1 allocation left\n"
            with pytest.raises(turn.TurnError, match="508"), turnd.allocate():
                pass
            assert relay.refresh() > 0
            assert turnd.process.poll() is None
        assert turnd.process.wait(15) == 0


def test_check_finds_what_is_there(start: Start) -> None:
    with start() as turnd:
        done = turnd.command("check", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout)
        texts = [finding["text"] for finding in found]
        assert any("all of 10 datagrams came back" in text for text in texts), texts
        assert any("no turns:" in finding["text"] and finding["fix"] for finding in found)
        # What the operator opened is told, for who opens loopback should know.
        uri = f"turn:{HOST}:{turnd.port}?transport=udp"
        wrong = turnd.command("check", uri, "--user", "alice:wrong")
        assert wrong.returncode == 1
        assert "check the user, the password" in wrong.stdout


def test_check_of_a_server_that_is_not_there(start: Start) -> None:
    with start() as turnd:
        uri = f"turn:{HOST}:{turnd.port}?transport=tcp"
        done = turnd.command("check", uri, "--user", "alice:sesame")
        assert done.returncode == 1
        assert f"open TCP port {turnd.port} in the firewall" in done.stdout


def test_a_reload_changes_all_or_nothing(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "turnd.toml"
    config.write_text('[limits]\nallocations_per_user = 7\n[peers]\ndeny = ["127.0.0.9"]\n')
    with start("--config", str(config)) as turnd, turnd.allocate() as relay:
        with pytest.raises(turn.Forbidden):
            relay.permit("127.0.0.9")
        relay.permit("127.0.0.10")
        config.write_text('[limits]\nallocations_per_user = 8\n[peers]\ndny = ["127.0.0.10"]\n')
        turnd.process.send_signal(signal.SIGHUP)
        turnd.wait_for("did you mean 'deny'")
        relay.permit("127.0.0.10")
        config.write_text('[limits]\nallocations_per_user = 8\n[peers]\ndeny = ["127.0.0.10"]\n')
        done = turnd.command("reload")
        assert done.returncode == 0, done.stderr
        assert "the peer policy changed" in done.stdout
        assert "limit allocations_per_user is 8 (was 7)" in done.stdout
        with turnd.allocate() as another, pytest.raises(turn.Forbidden):
            another.permit("127.0.0.10")


def test_a_new_certificate_is_taken_by_itself(start: Start, tmp_path: Path) -> None:
    certificate = write_self_signed(tmp_path / "certificate.pem", "one.example")
    with start("--cert", str(certificate)) as turnd:
        write_self_signed(certificate, "two.example")
        turnd.wait_for("certificate reloaded")
        certificate.write_text("nonsense")
        turnd.wait_for("the certificate has changed and cannot be used")
        status = json.loads(turnd.command("check", "--quick", "--json").stdout)
        assert any("two.example" in finding["text"] for finding in status)


def test_systemd_is_told(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(15)
        environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"}
        said: list[str] = []

        def wait_for(state: str) -> None:
            while not any(state in one for one in said):
                said.append(manager.recv(4096).decode())

        with start(env=environment) as turnd:
            wait_for("READY=1")
            wait_for("WATCHDOG=1")
            said.clear()
            turnd.process.send_signal(signal.SIGHUP)
            wait_for("RELOADING=1")
            wait_for("READY=1")
        wait_for("STOPPING=1")


def test_metrics_count_live(start: Start) -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    url = f"http://{HOST}:{port}/metrics"

    def value(name: str) -> float:
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])

    with start("--metrics", f"{HOST}:{port}") as turnd:
        assert value("turnd_allocations ") == 0
        with socket.socket(type=socket.SOCK_DGRAM) as peer, turnd.allocate() as relay:
            peer.bind((HOST, 0))
            peer.settimeout(10)
            relay.permit(peer.getsockname())
            relay.send(b"x" * 100, peer.getsockname())
            peer.recvfrom(200)
            assert value("turnd_allocations ") == 1
            # While it goes on, not when it has ended.
            assert value('turnd_relayed_bytes_total{direction="from_client"}') == 100
        assert value('turnd_allocations_ended_total{reason="refreshed_to_zero"}') == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "udp://203.0.113.9:3478"], "203.0.113.9 is not an address of this machine"),
        (["--relay-address", "203.0.113.9"], "cannot relay from 203.0.113.9"),
        (["--listen", f"tls://{HOST}:5349"], "needs a certificate: --cert PEM"),
        (["--cert", "/nowhere.pem"], "/nowhere.pem: no such file"),
        (["--relay-ports", "5-2"], "5-2"),
        (["--allow-peer", "10.0.0.1/8"], "10.0.0.0/8"),
        (["--listen", "upd://0.0.0.0"], "there are udp, tcp, tls and dtls"),
        (["--relam", "x"], "--realm"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(arguments: list[str], words: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [*TURND, "--listen", f"udp://{HOST}:{port}", "--relay-address", HOST, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in {1, 2}
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_port_in_use_names_the_way_out(start: Start) -> None:
    with start() as turnd:
        done = subprocess.run(
            [*TURND, "--listen", f"udp://{HOST}:{turnd.port}", "--relay-address", HOST],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert f"port {turnd.port} of UDP is in use" in done.stderr
    assert "--listen udp://" in done.stderr
