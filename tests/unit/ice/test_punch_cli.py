"""The command: what it refuses, what it says and how it exits."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ice.errors import ConnectionFailed, ConnectionLost
from ice.link.carrier import CarrierFailed
from ice.link.events import Waiting
from ice.punch import cli
from ice.punch.link import PunchError
from ice.punch.running import explain
from ice.rendezvous.errors import PeerGone, Refused, RendezvousUnreachable, WrongCode
from stun.errors import UsageError

ROOT = Path(__file__).parents[3]
URL = "ws://192.0.2.1:8080"
HERE = ["--rendezvous", URL]


@pytest.fixture(autouse=True)
def no_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUNCH_RENDEZVOUS", raising=False)


def run(*args: str) -> int:
    return cli.run_command(list(args))


# Usage. -------------------------------------------------------------------------------------------


def test_help_loads_nothing_that_costs_time() -> None:
    heavy = "asyncio ssl cryptography aioquic websockets spake2 rich pydantic construct"
    program = f"""
        import sys
        from ice.punch import cli
        assert cli.run_command(["--help"]) == 0
        for name in {heavy.split()}:
            assert name not in sys.modules, name
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=ROOT)


@pytest.mark.parametrize("command", ["listen", "connect", "send", "recv", "forward", "expose"])
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    for option in ("--rendezvous", "--no-relay", "--relay-only", "--tcp-only", "--json", "--quiet"):
        assert option in text


def test_version_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("punch ")
    assert run("--json-schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "A line of punch --json"


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["listen"], "turnd --with-rendezvous"),
        (["listen", *HERE, "--no-relay", "--relay-only"], "--no-relay and --relay-only exclude"),
        (["listen", *HERE, "--udp-only", "--tcp-only"], "--tcp-only and --udp-only exclude"),
        (["listen", *HERE, "--json", "--quiet"], "--json and --quiet exclude"),
        (["connect", *HERE], "Missing argument 'CODE'"),
        (["conect", "x"], "did you mean 'connect'?"),
        (["send", *HERE], "Missing argument"),
        (["send", "/no/such/file", *HERE], "No such file"),
        (["recv", "-d", "/no/such/directory", *HERE], "is no directory"),
        (["forward", "x", *HERE], "is no port"),
        (["forward", "70000", *HERE], "is no port"),
        (["expose", "0", *HERE], "is no port"),
        (["expose", "::1:80", *HERE], "is no port"),
        ([], "Usage"),
    ],
)
def test_wrong_usage(args: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(*args)
    told = capsys.readouterr()
    if args:
        assert code == 2
    assert why in told.err + told.out


def test_a_code_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("connect", "team-x", *HERE) == 2
    text = capsys.readouterr().err
    assert text.startswith("punch: ")
    assert text.count("\n") <= 2
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("80", ("127.0.0.1", 80)),
        (":80", ("127.0.0.1", 80)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("*:0", ("*", 0)),
    ],
)
def test_endpoints(text: str, found: tuple[str, int]) -> None:
    assert cli._endpoint(text, "127.0.0.1", least=0) == found


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run("forward", str(taken.getsockname()[1]), *HERE) == 1
    assert "cannot be opened at 127.0.0.1: Address already in use" in capsys.readouterr().err


# Errors. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (PunchError("incomplete", "x"), 1, "incomplete"),
        (WrongCode("x"), 1, "wrong-code"),
        (Refused("busy", "x"), 1, "busy"),
        (PeerGone("x"), 1, "peer-gone"),
        (RendezvousUnreachable("x"), 1, "unreachable"),
        (ConnectionFailed("x"), 1, "connection-failed"),
        (ConnectionLost("x"), 1, "connection-lost"),
        (CarrierFailed("x"), 1, "carrier-failed"),
        (ConnectionResetError("x"), 1, "connection-reset-error"),
        (OSError("x"), 1, "system"),
        (TimeoutError("x"), 1, "system"),
        (UsageError("x"), 2, "usage"),
    ],
)
def test_errors_become_words(error: Exception, code: int, word: str) -> None:
    found = explain(error, verbose=False)
    assert found is not None
    assert (found[0], found[1].code, found[1].text) == (code, word, "x")


def test_a_fault_in_the_program_is_none_of_these() -> None:
    assert explain(KeyError("x"), verbose=False) is None


def played(monkeypatch: pytest.MonkeyPatch, play: Callable[..., Any]) -> list[Any]:
    """Let the command connect to a play instead; returns what it was configured with."""
    seen: list[Any] = []

    def connect(code: str | None = None, **options: Any) -> Any:
        seen.append((code, options))
        return asynccontextmanager(play)(options["on_event"])

    monkeypatch.setattr("ice.link.connect.connect", connect)
    return seen


def test_a_failure_before_there_is_a_link(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def play(on_event: Callable[[Any], None]) -> Any:
        on_event(Waiting("7-a-b-c", 3600))
        raise WrongCode("the peer does not have the same code word")
        yield

    seen = played(monkeypatch, play)
    assert run("connect", "7-acorn-violin-harbor", "--json", "--relay-only", *HERE) == 1
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["waiting", "error"]
    assert lines[0]["command"] == f"punch listen --code 7-a-b-c --rendezvous {URL}"
    assert lines[1]["code"] == "wrong-code"
    ((code, options),) = seen
    assert code == "7-acorn-violin-harbor"
    assert options["rendezvous"] == URL
    config = options["config"]
    assert (config.relay, config.direct, config.tcp, config.udp) == (True, False, True, True)


def test_a_fault_shows_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(_: object) -> Any:
        raise ZeroDivisionError
        yield

    played(monkeypatch, play)
    with pytest.raises(ZeroDivisionError):
        run("listen", *HERE)


def test_the_whole_explanation_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Explained(ConnectionFailed):
        def __str__(self) -> str:
            return "no way\nbecause of this\nand that"

    async def play(_: object) -> Any:
        raise Explained("no way")
        yield

    played(monkeypatch, play)
    assert run("listen", *HERE) == 1
    assert capsys.readouterr().err == "punch: no way\n"
    assert run("listen", "--explain", *HERE) == 1
    assert capsys.readouterr().err == "punch: no way\nbecause of this\nand that\n"


# Processes, joined by a socket pair. --------------------------------------------------------------

PROGRAM = """
import asyncio, socket, sys
from contextlib import asynccontextmanager
from ice.link.events import Met, PathChanged, Waiting
from ice.punch import cli

sock = socket.socket(fileno=int(sys.argv.pop(1)))

@asynccontextmanager
async def connect(code=None, *, on_event, **_):
    reader, writer = await asyncio.open_connection(sock=sock)
    on_event(Waiting(code or "7-acorn-violin-harbor", 3600))
    on_event(Met(1))
    on_event(PathChanged("direct", "tcp", 1, "it is the first"))
    class Stream: pass
    stream = Stream()
    stream.reader, stream.writer = reader, writer
    try:
        yield stream
    finally:
        writer.close()
        await writer.wait_closed()

import ice.link.connect
ice.link.connect.connect = connect
cli.main()
"""


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    yield
    while Side.running:
        process = Side.running.pop()
        if process.poll() is None:
            process.kill()
        process.wait()
        for file in (process.stdin, process.stdout, process.stderr):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()


class Side:
    """A `punch` that runs."""

    running: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, sock: socket.socket, *args: str, **options: Any) -> None:
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(sock.fileno()), *args, *HERE],
            pass_fds=[sock.fileno()],
            stderr=subprocess.PIPE,
            cwd=ROOT,
            **options,
        )
        self.running.append(self.process)
        sock.close()

    def end(self, data: bytes | None = None) -> tuple[int, bytes, str]:
        out, err = self.process.communicate(data, timeout=30)
        return self.process.returncode, out, err.decode()


def test_netcat() -> None:
    a, b = socket.socketpair()
    left = Side(a, "listen", stdin=subprocess.PIPE)
    right = Side(b, "connect", "7-acorn-violin-harbor", stdin=subprocess.PIPE)
    sent = os.urandom(3_000_000)
    assert left.process.stdin is not None
    left.process.stdin.write(b"hello")
    left.process.stdin.close()
    left.process.stdin = None
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(right.end, sent)  # both at once: each waits until the other has read
        code, out, err = left.end()
    assert (code, out) == (0, sent), err
    assert ended.result()[:2] == (0, b"hello")
    assert "code: 7-acorn-violin-harbor\n" in err
    assert f"punch connect 7-acorn-violin-harbor --rendezvous {URL}\n" in err
    assert err.splitlines()[-1].startswith("sent 5 B, received 3 MB in ")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_standard_files_that_are_closed(closed: int) -> None:
    a, b = socket.socketpair()
    shut = f'exec {closed}{"<" if closed == 0 else ">"}&-; exec "$@"'
    Side.running.append(side := subprocess.Popen(
        ["sh", "-c", shut, "sh", sys.executable, "-c", PROGRAM, str(a.fileno()), "listen", *HERE],
        pass_fds=[a.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=ROOT,
    ))  # fmt: skip
    a.close()
    if closed != 1:
        b.sendall(b"hello")
    b.shutdown(socket.SHUT_WR)
    out, err = side.communicate(timeout=30)
    assert side.returncode == 0, err
    assert out == (b"" if closed == 1 else b"hello")
    assert b"Traceback" not in err
    assert b.recv(10) == b""
    b.close()


def test_output_closed_early() -> None:
    a, b = socket.socketpair()
    side = Side(a, "listen", stdin=subprocess.PIPE)
    b.sendall(b"0123456789")
    assert side.process.stdout is not None
    assert side.process.stdout.read(5) == b"01234"
    side.process.stdout.close()  # the input stays open, and nothing more comes
    b.settimeout(30)
    assert b.recv(10) == b""
    assert side.process.wait(30) == 0
    assert side.process.stderr is not None
    assert b"Traceback" not in side.process.stderr.read()
    assert side.process.stdin is not None
    side.process.stdin.close()
    side.process.stderr.close()
    b.close()


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "ended by a signal"),
        (signal.SIGHUP, 129, "ended by a signal"),
    ],
)
def test_signals(number: int, code: int, word: str) -> None:
    a, b = socket.socketpair()
    side = Side(a, "listen", stdin=subprocess.PIPE)
    b.sendall(b"x")
    assert side.process.stdout is not None
    assert side.process.stdout.read(1) == b"x"
    side.process.send_signal(number)
    b.settimeout(30)
    assert b.recv(10) == b""
    found, _, err = side.end()
    assert found == code
    assert err.endswith(f"punch: {word}\n")
    assert "Traceback" not in err
    b.close()


def test_a_signal_while_waiting_for_the_other_side(tmp_path: Path) -> None:
    a, b = socket.socketpair()
    side = Side(a, "recv", "-d", str(tmp_path), "--json")
    assert side.process.stderr is not None
    line = ""
    while '"path"' not in line:
        line = side.process.stderr.readline().decode()
    time.sleep(0.05)
    side.process.send_signal(signal.SIGINT)
    code, _, err = side.end()
    assert code == 130
    assert json.loads(err.splitlines()[-1]) == {
        "event": "error", "code": "interrupted", "text": "interrupted",
    }  # fmt: skip
    b.close()


def test_files(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(1_000_000))
    (tmp_path / "target").mkdir()
    a, b = socket.socketpair()
    left = Side(a, "send", str(tmp_path / "source"), "--json")
    right = Side(b, "recv", "7-acorn-violin-harbor", "-d", str(tmp_path / "target"))
    code, _, err = right.end()
    assert code == 0, err
    assert "source: 1 MB, SHA-256 " in err
    code, _, err = left.end()
    assert code == 0, err
    names = [json.loads(line)["event"] for line in err.splitlines()]
    assert names[:4] == ["waiting", "met", "path", "offer"]
    assert names[-2:] == ["file", "summary"]
    same = (tmp_path / "target" / "source").read_bytes()
    assert same == (tmp_path / "source").read_bytes()


def test_tunnel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        a, b = socket.socketpair()
        left = Side(a, "forward", "0", "--json")
        right = Side(b, "expose", str(server.getsockname()[1]), "7-acorn-violin-harbor")
        assert left.process.stderr is not None
        port = json.loads(left.process.stderr.readline())["port"]
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            server.settimeout(30)
            accepted, _ = server.accept()
            client.sendall(b"through")
            assert accepted.recv(10) == b"through"
            accepted.close()
            assert client.recv(10) == b""
        left.process.send_signal(signal.SIGINT)
        assert left.end()[0] == 130
        code, _, err = right.end()
        assert "the other side" in err
        assert code in {0, 1}
