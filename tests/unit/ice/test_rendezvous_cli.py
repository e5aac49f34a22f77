"""``rendezvousd``: its flags, what it says of wrong ones, and the program itself."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from ice.rendezvous import cli
from ice.rendezvous.access import TTL
from ice.rendezvous.cli import make_settings, rendezvousd, run_command
from ice.rendezvous.protocol import Error, Join, Welcome, from_server
from ice.rendezvous.terms import Terms
from stun.sansio import SECOND, Address
from tools.certificate import write_self_signed


def settings(*arguments: str) -> Any:
    with rendezvousd.make_context("rendezvousd", list(arguments)) as context:
        return make_settings(context.params)


def test_defaults_are_those_of_the_modules() -> None:
    made = settings()
    assert made.terms == Terms()
    assert made.minter.ttl == cli.DEFAULTS["ttl"] == TTL
    assert [str(place) for place in made.listen] == [cli.DEFAULT_LISTEN]


def test_flags(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("north\nsouth\n")
    made = settings(
        *("--listen", "ws://127.0.0.1:1", "--listen", "wss://[::1]:2", "--cert", "a.pem"),
        *("--turn-url", "turn:a", "--turn-secret-file", str(secret), "--turn-ttl", "600"),
        *("--stun", "stun:a", "--redis", "redis://:pw@h/1", "--proxy", "10.0.0.0/8"),
        *("--wait", "60", "--max-connections", "7", "--max-connections-per-client", "3"),
        *("--metrics", "[::1]:9642", "--log-format", "json", "--log-level", "debug"),
    )
    assert [str(place) for place in made.listen] == ["ws://127.0.0.1:1", "wss://[::1]:2"]
    assert (made.minter.secret, made.minter.urls, made.minter.ttl) == ("north", ("turn:a",), 600)
    assert made.terms == Terms(wait=60 * SECOND, connections=7, connections_per_client=3)
    assert made.metrics == Address("::1", 9642)
    assert "north" not in repr(made)
    assert ":pw@" not in repr(made)


def test_a_certificate_makes_it_wss() -> None:
    assert [str(place) for place in settings("--cert", "a.pem").listen] == ["wss://*:443"]


def test_the_environment_has_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDEZVOUSD_TURN_SECRET", "north")
    monkeypatch.setenv("RENDEZVOUSD_REDIS", "redis://h/1")
    made = settings("--turn-url", "turns:a")
    assert (made.minter.secret, made.redis) == ("north", "redis://h/1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "udp://*:1"], "--listen: 'udp://*:1' is not a place to listen"),
        (["--listen", "wss://*:1"], "--listen wss://*:1 needs a certificate"),
        (
            ["--listen", "ws://*:1", "--listen", "wss://*:1", "--cert", "a"],
            "a port is either for ws",
        ),
        (["--key", "a.pem"], "--key belongs to a certificate"),
        (["--turn-url", "turn:a"], "--turn-url needs the secret"),
        (["--turn-secret", "a"], "no relay that has it"),
        (["--turn-url", "stun:a", "--turn-secret", "b"], "begins with turn: or turns:"),
        (["--turn-url", "turn:a b", "--turn-secret", "b"], "--turn-url: 'turn:a b'"),
        (["--stun", "turn:a"], "begins with stun: or stuns:"),
        (["--turn-secret", "a", "--turn-secret-file", "b", "--turn-url", "turn:a"], "give one"),
        (["--turn-secret-file", "/nowhere", "--turn-url", "turn:a"], "/nowhere cannot be read"),
        (["--proxy", "10.0.0.1/8"], "--proxy: 10.0.0.1/8 has host bits set"),
        (["--metrics", "9642"], "is not ADDRESS:PORT"),
        (["--metrics", "here:9642"], "does not appear to be an IPv4 or IPv6 address"),
        (["--wait", "0"], "--wait"),
        (["--redis", "nonsense"], "is no URL of a Redis server"),
        (["--nonsense"], "No such option"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == 2
    assert words in capsys.readouterr().err


def test_what_cannot_be_served_is_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["--cert", str(tmp_path / "none.pem")]) == 1
    assert "none.pem: no such file" in capsys.readouterr().err
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert run_command(["--listen", f"ws://127.0.0.1:{port}"]) == 1
    assert f"rendezvousd: port {port} of TCP is in use" in capsys.readouterr().err


def test_a_redis_that_is_not_there_is_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("redis")
    url = f"unix://{tmp_path}/none.sock"
    assert run_command(["--listen", f"ws://127.0.0.1:{free_port()}", "--redis", url]) == 1
    assert "check that Redis runs there" in capsys.readouterr().err


def test_help_loads_little() -> None:
    code = (
        "import sys; from ice.rendezvous.cli import run_command; run_command(['--help']); "
        "print('loaded', *(m for m in ('asyncio', 'websockets', 'structlog', 'cryptography', "
        "'prometheus_client', 'redis') if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "loaded\n"
    assert "RENDEZVOUSD_TURN_SECRET" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rendezvousd ")


# The program itself. ------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def program(log: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "ice.rendezvous.cli", *arguments],
            stdout=out, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)


def appears(log: Path, pattern: str, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 30
    while not (found := re.search(pattern, log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return found[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    log, port, metrics = tmp_path / "log", free_port(), free_port()
    url = f"ws://127.0.0.1:{port}"

    async def visit(process: subprocess.Popen[str]) -> None:
        async with connect(url) as first, connect(url) as second:
            for client in (first, second):
                assert isinstance(from_server(await client.recv()), Welcome)
                await client.send(Join("my.secret.name", b"my hello").encode())
                await client.recv()
            await asyncio.to_thread(appears, log, "met ", process)
            figures = await asyncio.to_thread(read, f"http://127.0.0.1:{metrics}/metrics")
            assert "rendezvous_paired 2.0" in figures
            assert 'rendezvous_joins_total{result="met"} 1.0' in figures
            health = await asyncio.to_thread(read, f"http://127.0.0.1:{port}/health")
            assert '"paired": 2' in health
            process.send_signal(number)
            await first.recv()
            error = from_server(await first.recv())
            assert isinstance(error, Error)
            assert error.code == "shutting-down"

    arguments = ("--listen", url, "--metrics", f"127.0.0.1:{metrics}", "--log-level", "debug")
    with program(log, *arguments) as process:
        appears(log, f"serving.*at={url}", process)
        asyncio.run(visit(process))
        assert process.wait(10) == 0, log.read_text()
    text = log.read_text()
    assert "stopped" in text
    assert "Traceback" not in text
    assert "secret.name" not in text
    assert "hello" not in text


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")


def test_a_renewed_certificate_is_taken(tmp_path: Path) -> None:
    log, pem = tmp_path / "log", tmp_path / "here.pem"
    write_self_signed(pem, "here.example")
    url = f"wss://127.0.0.1:{free_port()}"
    with program(log, "--listen", url, "--cert", str(pem)) as process:
        appears(log, "serving", process)
        pem.write_text("nonsense")
        process.send_signal(signal.SIGHUP)
        appears(log, "certificate has changed and cannot be used.*here.pem", process)
        write_self_signed(pem, "there.example")
        process.send_signal(signal.SIGHUP)
        appears(log, "certificate reloaded.*there.example", process)
