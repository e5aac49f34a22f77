"""coturn's test client relays TCP connections (RFC 6062) through turnd."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.certificate import write_self_signed

HOST = "127.0.0.1"
MESSAGES, LENGTH = 20, 800
PATIENCE = 100
"""Seconds; the client starts to send after up to six."""


class Turnd:
    """turnd on loopback, and what it wrote in its log."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as plain, socket.socket() as secure:
            plain.bind((HOST, 0))
            secure.bind((HOST, 0))
            self.port, self.tls_port = plain.getsockname()[1], secure.getsockname()[1]
        certificate = write_self_signed(folder / "certificate.pem", "turn.example")
        self._log = folder / "log"
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "turn.daemon.cli", "--log-format", "json"),
                    *("--listen", f"tcp://{HOST}:{self.port}"),
                    *("--listen", f"tls://{HOST}:{self.tls_port}"),
                    *("--cert", str(certificate), "--realm", "example", "--user", "alice:sesame"),
                    *("--relay-address", HOST, "--allow-peer", f"{HOST}/32"),
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
            )

    def wait(self) -> None:
        end = time.monotonic() + 20
        while True:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            try:
                for port in (self.port, self.tls_port):
                    socket.create_connection((HOST, port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            assert self._process.wait(20) == 0, self._log.read_text()
        finally:
            self._process.kill()
            self._process.wait()

    def events(self) -> list[dict[str, Any]]:
        """Return the log's lines; raises for one that is not a log line."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@pytest.fixture
def turnd(tmp_path: Path) -> Iterator[Turnd]:
    server = Turnd(tmp_path)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def relay(require_peer: Callable[..., str], port: int, *options: str) -> tuple[int, int]:
    """Let the client run; return how many messages it sent and how many it got."""
    client = require_peer("turnutils_uclient", "coturn")
    command = [client, "-T", "-n", str(MESSAGES), "-l", str(LENGTH), "-z", "5", *options]
    command += ["-u", "alice", "-w", "sesame", "-p", str(port), HOST]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, errors="replace"
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    totals = re.findall(r"start_mclient: tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", said)
    assert totals, said
    return int(totals[-1][0]), int(totals[-1][1])


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
def test_two_clients_meet_over_tcp_allocations(
    turnd: Turnd, require_peer: Callable[..., str], secure: bool
) -> None:
    port, options = (turnd.tls_port, ["-S"]) if secure else (turnd.port, [])
    sent, received = relay(require_peer, port, *options)
    assert sent == 2 * MESSAGES
    # The client takes two messages that arrive together for one, and loses it.
    assert received >= sent * 0.9
    turnd.stop()
    ended = [event for event in turnd.events() if event["message"] == "allocation ended"]
    assert len(ended) >= 2
    # Each octet was relayed twice: out of one allocation and into the other.
    brought = sum(event["octets_from_client"] for event in ended)
    assert brought == sum(event["octets_to_client"] for event in ended)
    assert brought == 2 * MESSAGES * LENGTH


def test_a_client_that_waits_for_its_peers(turnd: Turnd, require_peer: Callable[..., str]) -> None:
    sent, received = relay(require_peer, turnd.port, "-P", "-m", "2")
    assert sent == 2 * MESSAGES
    # One of the two does not count what it gets; it is the same with the client's own server.
    assert received >= MESSAGES * 0.9


def test_each_data_connection_is_admitted_by_the_nonce_of_its_client(
    turnd: Turnd, require_peer: Callable[..., str]
) -> None:
    # A 438 for each of them, for the port is another one, has this client stop without a word.
    sent, received = relay(require_peer, turnd.port, "-m", "4")
    assert sent == 4 * MESSAGES
    assert received >= sent * 0.9
