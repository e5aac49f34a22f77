"""``turnd`` as it is called: options, commands, exit codes, and the program itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from turn.daemon import cli
from turn.daemon.cli import LIMITS, make_flags, run_command, turnd
from turn.server.config import Limits


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``run(*arguments)`` is the exit code, what was printed, and what was complained of."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = run_command(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_every_limit_has_a_flag() -> None:
    assert {field.name: field.default for field in fields(Limits)} == LIMITS
    names = {option for parameter in turnd.params for option in parameter.opts}
    assert {f"--max-{name.replace('_', '-')}" for name in LIMITS} <= names


def test_every_option_says_what_it_is() -> None:
    def walk(command: click.Command) -> Iterator[click.Parameter]:
        yield from command.params
        if isinstance(command, click.Group):
            for inner in command.commands.values():
                assert inner.help, inner.name
                yield from walk(inner)

    for parameter in walk(turnd):
        if isinstance(parameter, click.Option) and not str(parameter.name).startswith("max_"):
            assert parameter.help, parameter.opts


def test_flags_have_the_shape_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = make_flags(
        {
            "listen": ("udp://127.0.0.1", "tcp://127.0.0.1"),
            "realm": "r",
            "user": ("ann:x",),
            "secret": ("north",),
            "secret_file": ("keys/one",),
            "relay_address": (),
            "allow_peer": ("10.0.0.0/8",),
            "cert": "c.pem",
            "admin_socket": "",
            "partial": True,
            "max_connections": 0,
            "log_format": None,
        }
    )
    assert flags.users == ["ann:x"]
    assert flags.table == {
        "listen": [{"url": "udp://127.0.0.1"}, {"url": "tcp://127.0.0.1"}],
        "realm": "r",
        "auth": {"secrets": ["north", {"file": str(tmp_path / "keys/one")}]},
        "peers": {"allow": ["10.0.0.0/8"]},
        "tls": {"certificate": str(tmp_path / "c.pem")},
        "admin": {"socket": False},
        "partial": True,
        "limits": {"connections": 0},
    }
    assert flags.origin(("limits", "connections")) == "--max-connections"
    assert flags.origin(("listen", 1, "url")) == "--listen"


def test_a_wrong_configuration_is_told_without_a_traceback(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "turnd.toml"
    path.write_text('relm = "x"\n[log]\nformat = "jsn"\n')
    code, out, err = run("--config", str(path))
    assert code == 2
    assert not out
    first, second = err.splitlines()
    assert first.startswith(f"turnd: {path}, line 1: the configuration has no key 'relm'")
    assert second.startswith(f"turnd: {path}, line 3: log.format: ")


def test_a_wrong_flag_is_told(run: Any) -> None:
    code, _, err = run("--listen", "udp://1.2.3")
    assert code == 2
    assert err.startswith("turnd: --listen: '1.2.3' is not a numeric")
    code, _, err = run("--max-allocations", "many")
    assert code == 2
    assert "is not a valid integer" in err


def test_an_unknown_command_is_guessed(run: Any) -> None:
    code, _, err = run("sesions")
    assert code == 2
    assert "did you mean 'sessions'?" in err
    assert "a configuration is given with --config" in run("turnd.toml")[2]


def test_a_missing_certificate_is_status_1(run: Any, tmp_path: Path) -> None:
    code, _, err = run("--cert", str(tmp_path / "nope.pem"), "--admin-socket", "")
    assert code == 1
    assert err == f"turnd: {tmp_path}/nope.pem: no such file\n"


def test_checking_a_configuration_shows_it_and_hides_secrets(run: Any) -> None:
    code, out, _ = run(
        "--check-config", "--listen", "udp://127.0.0.1", "--user", "ann:hunter2",
        "--secret", "hunter2", "--relay-address", "127.0.0.1=203.0.113.5",
    )  # fmt: skip
    assert code == 0
    assert "hunter2" not in out
    assert '[auth.users]\nann = "(hidden)"' in out
    assert "# serves UDP at 127.0.0.1:3478" in out
    assert "# relaying from 127.0.0.1 (as 203.0.113.5), ports 49152 to 65535" in out


def test_explaining_a_peer_takes_options_before_and_behind(run: Any, tmp_path: Path) -> None:
    base = ("--relay-address", "127.0.0.1")
    code, out, _ = run(*base, "explain-peer", "10.1.2.3")
    assert code == 1
    assert out.startswith("10.1.2.3 is denied: ")
    code, out, _ = run(*base, "--allow-peer", "10.0.0.0/8", "explain-peer", "10.1.2.3")
    assert code == 0
    assert out.startswith("10.1.2.3 is allowed: your allow rule 10.0.0.0/8")
    path = tmp_path / "turnd.toml"
    path.write_text('[peers]\nallow = ["10.0.0.0/8"]\n')
    _, out, _ = run("explain-peer", "10.1.2.3", "--config", str(path), "--deny-peer", "10.1.0.0/16")
    assert out.startswith("10.1.2.3 is denied: your deny rule 10.1.0.0/16")


@pytest.mark.parametrize("address", ["", "example.org", "203.0.113.7:53", "10.0.0.0/8", "[::1]:3"])
def test_what_is_no_address_is_not_explained(run: Any, address: str) -> None:
    code, out, error = run("explain-peer", address)
    assert (code, out) == (2, "")
    assert "is not an IP address" in error


def test_the_users_of_a_database(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ("--user-store", f"sqlite:///{tmp_path}/users.db")
    monkeypatch.setenv("TURND_PASSWORD", "secret")
    assert run("users", "add", *store, "ann") == (0, "ann may relay from now on\n", "")
    code, _, err = run("users", "add", *store, "ann")
    assert code == 2
    assert "ann" in err
    assert run("users", "add", *store, "--replace", "--keys-only", "ann")[0] == 0
    assert run(*store, "users", "list")[:2] == (0, "ann\n")
    assert run("users", "remove", *store, "ann")[:2] == (0, "ann is removed\n")
    code, _, err = run("users", "remove", *store, "ann")
    assert code == 1
    assert "there is no user 'ann'" in err
    code, _, err = run("users", "list")
    assert code == 2
    assert "there is no database: name one with --user-store" in err


def test_a_password_can_come_on_standard_input(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/users.db"
    runner = CliRunner()
    arguments = ["users", "add", "--user-store", store, "ann"]
    assert runner.invoke(turnd, arguments, input="secret\n").exit_code == 0
    result = runner.invoke(turnd, ["users", "add", "--user-store", store, "bob"], input="\n")
    assert result.exit_code == 2
    assert "the password is empty" in result.output


def test_the_admin_socket_of_a_configuration_is_found(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "turnd.toml"
    path.write_text('[admin]\nsocket = "here.sock"\n')
    code, _, err = run("--config", str(path), "sessions")
    assert code == 1
    assert f"no turnd answers at {tmp_path}/here.sock" in err
    code, _, err = run("--admin-socket", str(tmp_path / "there.sock"), "drain")
    assert f"no turnd answers at {tmp_path}/there.sock" in err


def test_how_it_would_relay_is_told_beforehand(run: Any) -> None:
    arguments = ("--check-config", "--dataplane", "sockets", "--relay-address", "127.0.0.1")
    code, out, _ = run(*arguments, "--listen", "udp://127.0.0.1")
    assert code == 0
    assert 'dataplane = "sockets"\n' in out
    assert "# relaying with sockets: as configured\n" in out
    code, _, err = run(*arguments[:2], "kernl")
    assert code == 2
    assert "allowed: auto, kernel or sockets; did you mean 'kernel'?" in err


def test_check_config_stands_alone(run: Any) -> None:
    assert "stands alone" in run("--check-config", "sessions")[2]


def test_version_and_help(run: Any) -> None:
    assert run("--version")[1].startswith("turnd ")
    assert "--relay-address A[=PUBLIC]" in run("--help")[1]


def test_help_loads_little() -> None:
    code = (
        "import sys; from turn.daemon.cli import run_command; run_command(['--help']); "
        "print('loaded', *(m for m in ('pydantic', 'rich.console', 'structlog', 'cryptography', "
        "'prometheus_client', 'OpenSSL') if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "loaded\n"


# The program itself. ------------------------------------------------------------------------------


@contextmanager
def program(log: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    # What is tested here is not how it relays, and must not touch the interfaces of this machine.
    sockets = ("--dataplane", "sockets")
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "turn.daemon.cli", *sockets, *arguments],
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
def test_it_serves_reloads_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    config, log = tmp_path / "turnd.toml", tmp_path / "log"
    port = _free_port()
    config.write_text(
        f'[[listen]]\nurl = "udp://127.0.0.1:{port}"\n[admin]\nsocket = "s.sock"\n'
        '[relay]\naddresses = ["127.0.0.1=198.41.0.4"]\n[auth]\nusers = { ann = "x" }\n'
    )
    with program(log, "--config", str(config)) as process:
        appears(log, f"serving.*udp=127.0.0.1:{port}", process)
        config.write_text(config.read_text().replace("ann", "bob"))
        process.send_signal(signal.SIGHUP)
        appears(log, "reloaded", process)
        config.write_text("nonsense")
        process.send_signal(signal.SIGHUP)
        appears(log, "nothing reloaded.*turnd.toml", process)
        process.send_signal(number)
        assert process.wait(10) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "s.sock").exists()


def test_a_configuration_that_names_another_admin_socket_can_be_reloaded(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd does it: the command reads the new file, turnd is still at the old socket."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.delenv("TURND_ADMIN_SOCKET", raising=False)
    config, log = tmp_path / "turnd.toml", tmp_path / "log"
    text = (
        f'[[listen]]\nurl = "udp://127.0.0.1:{_free_port()}"\n'
        '[relay]\naddresses = ["127.0.0.1=198.41.0.4"]\n[auth]\nusers = { ann = "x" }\n'
    )
    # Each to the next: named, another, none named (the default one), and none at all.
    sockets = ["one.sock", "two.sock", None, False]
    tables = ["" if s is None else f"[admin]\nsocket = {_toml(s)}\n" for s in sockets]
    config.write_text(text + tables[0])
    with program(log, "--config", str(config)) as process:
        appears(log, "serving", process)
        for table, name in zip(tables[1:], ["two.sock", "run/turnd.sock", "none"], strict=True):
            config.write_text(text + table)
            assert run("--config", str(config), "sessions") == (0, "no allocations\n", "")
            place = name if name == "none" else tmp_path / name
            assert run("--config", str(config), "reload") == (0, f"admin: {place}\n", "")
        assert run("--config", str(config), "sessions")[0] == 1, "there is none any more"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert not [path for path in tmp_path.rglob("*") if path.is_socket() or path.is_symlink()]


def _toml(value: str | bool) -> str:
    return f'"{value}"' if isinstance(value, str) else "false"


def test_it_drains(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ("--listen", f"udp://127.0.0.1:{_free_port()}", "--relay-address", "127.0.0.1")
    with program(log, *arguments, "--admin-socket", "") as process:
        appears(log, "credential", process)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(10) == 0, log.read_text()


def test_a_port_in_use_is_status_1(tmp_path: Path) -> None:
    log = tmp_path / "log"
    port = _free_port()
    arguments = (
        "--listen", f"udp://127.0.0.1:{port}", "--relay-address", "127.0.0.1",
        "--admin-socket", "",
    )  # fmt: skip
    with program(log, *arguments) as process:
        appears(log, "credential", process)
        done = subprocess.run(
            [sys.executable, "-m", "turn.daemon.cli", *arguments], capture_output=True, text=True,
            timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert f"port {port} of UDP is in use at 127.0.0.1" in done.stderr
        assert "Traceback" not in done.stderr


def _free_port() -> int:
    import socket

    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_main_exits_with_the_code() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0


def test_a_reader_that_goes_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "turn.daemon.cli", "--help"], stdout=write, stderr=subprocess.PIPE,
        check=False,
    )  # fmt: skip
    os.close(write)
    assert done.returncode in (0, 1)
    assert done.stderr == b""
