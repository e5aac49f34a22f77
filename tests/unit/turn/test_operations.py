"""What may be asked of a turnd, and how it is shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stun.discovery import Transport
from stun.errors import UsageError
from stun.sansio import SECOND, Address, Instant
from turn.daemon import admin_cli
from turn.daemon.admin import AdminSocket
from turn.daemon.operations import Minted, commands
from turn.meter import Usage
from turn.server.events import SessionInfo


def session_info(name: str, user: str) -> SessionInfo:
    usage = Usage()
    usage.octets_from_client, usage.packets_from_client = 2048, 10
    return SessionInfo(
        session=name,
        username=user,
        client=Address("198.51.100.7", 40000),
        server=Address("203.0.113.1", 3478),
        transport=Transport.UDP,
        relayed=(Address("203.0.113.1", 50000),),
        tcp=False,
        created=10 * SECOND,
        expires=700 * SECOND,
        permissions=("192.0.2.1",),
        channels=((0x4001, Address("192.0.2.1", 9)),),
        connections=0,
        usage=usage,
    )


class Turnd:
    """A turnd with two allocations."""

    def __init__(self) -> None:
        self.live = [session_info("aaaaaaaaaaaa", "alice"), session_info("bbbbbbbbbbbb", "bob")]
        self.draining = False

    def now(self) -> Instant:
        return 100 * SECOND

    def sessions(self) -> Iterator[SessionInfo]:
        yield from self.live

    def disconnect(self, *, session: str | None, username: str | None) -> int:
        left = [s for s in self.live if s.session != session and s.username != username]
        ended, self.live = len(self.live) - len(left), left
        return ended

    def credentials(self, name: str, ttl: int) -> Minted:
        return Minted(f"{1000 + ttl}:{name}", "secret", ttl, ("turn:203.0.113.1",))

    def drain(self) -> int:
        self.draining = True
        return len(self.live)

    async def reload(self) -> list[str]:
        if self.draining:
            raise UsageError("line 3: 'relm' is no key; did you mean 'realm'?")
        return ["realm: a -> b"]

    def status(self) -> dict[str, Any]:
        return {"version": "1"}


async def do(turnd: Turnd, command: str, **arguments: Any) -> Any:
    answer = await commands(turnd)[command]({"command": command, **arguments})
    return json.loads(json.dumps(answer))


async def test_sessions_are_described() -> None:
    first, second = await do(Turnd(), "sessions")
    assert second["user"] == "bob"
    assert first == {
        "session": "aaaaaaaaaaaa",
        "user": "alice",
        "client": "198.51.100.7:40000",
        "server": "203.0.113.1:3478",
        "transport": "UDP",
        "relayed": ["203.0.113.1:50000"],
        "protocol": "udp",
        "age": 90.0,
        "expires_in": 600.0,
        "permissions": ["192.0.2.1"],
        "channels": {"0x4001": "192.0.2.1:9"},
        "connections": 0,
        "packets_from_client": 10,
        "octets_from_client": 2048,
        "packets_to_client": 0,
        "octets_to_client": 0,
        "packets_over_rate": 0,
    }


async def test_a_session_or_a_user_is_disconnected() -> None:
    turnd = Turnd()
    assert await do(turnd, "disconnect", session="aaaaaaaaaaaa") == {"ended": 1}
    assert await do(turnd, "disconnect", session="aaaaaaaaaaaa") == {"ended": 0}
    assert await do(turnd, "disconnect", user="bob") == {"ended": 1}
    assert turnd.live == []


@pytest.mark.parametrize(
    "arguments", [{}, {"session": "a", "user": "b"}, {"session": 7}, {"user": ["x"]}]
)
async def test_a_disconnect_that_names_nothing_is_refused(arguments: dict[str, Any]) -> None:
    turnd = Turnd()
    with pytest.raises(UsageError):
        await do(turnd, "disconnect", **arguments)
    assert len(turnd.live) == 2


@pytest.mark.parametrize("ttl", [0, -1, "60", 1.5, True, 10**12])
async def test_a_lifetime_that_is_none_is_refused(ttl: object) -> None:
    with pytest.raises(UsageError, match="ttl is a number of seconds"):
        await do(Turnd(), "credentials", ttl=ttl)


async def run_command(path: Path, turnd: Turnd, *arguments: str) -> tuple[int, str]:
    """Run a command line against a served turnd; return its status and what it printed."""
    by_name = {command.name: command for command in admin_cli.COMMANDS}
    command = by_name[arguments[0]]
    line = ["--admin-socket", str(path), *arguments[1:]]
    async with AdminSocket(path, commands(turnd)):
        result = await asyncio.to_thread(CliRunner().invoke, command, line)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


async def test_the_table_of_sessions(tmp_path: Path) -> None:
    status, printed = await run_command(tmp_path / "s", Turnd(), "sessions")
    assert status == 0
    head, first, second = printed.splitlines()
    assert head.split() == "SESSION USER CLIENT OVER RELAYED AGE EXPIRES SENT GOT".split()
    assert (
        first.split()
        == (
            "aaaaaaaaaaaa alice 198.51.100.7:40000 UDP 203.0.113.1:50000 1m30s 10m00s 2.0 KiB 0 B"
        ).split()
    )
    assert "bob" in second


async def test_the_sessions_of_one_user_as_json(tmp_path: Path) -> None:
    status, printed = await run_command(
        tmp_path / "s", Turnd(), "sessions", "--json", "--user", "bob"
    )
    assert status == 0
    assert [one["session"] for one in json.loads(printed)] == ["bbbbbbbbbbbb"]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["sessions", "--user", "nobody"], 0, "no allocations"),
        (["disconnect", "aaaaaaaaaaaa"], 0, "1 allocation ended"),
        (["disconnect", "--user", "bob"], 0, "1 allocation ended"),
        (["disconnect", "cccccccccccc"], 1, "turnd: there is no such session"),
        (["disconnect", "--user", "eve"], 1, "turnd: there is no such user with an allocation"),
        (["disconnect"], 2, "name a session"),
        (["credentials", "alice", "--ttl", "60"], 0, "username  1060:alice\npassword  secret"),
        (["credentials", "--ttl", "0"], 2, "--ttl"),
        (["drain"], 0, "draining: 2 allocations left"),
        (["reload"], 0, "realm: a -> b"),
    ],
)
async def test_a_command_says_what_it_did(
    tmp_path: Path, arguments: list[str], status: int, text: str
) -> None:
    found, printed = await run_command(tmp_path / "s", Turnd(), *arguments)
    assert (found, text in printed) == (status, True), printed


async def test_a_reload_that_fails_says_why(tmp_path: Path) -> None:
    turnd = Turnd()
    turnd.draining = True
    status, printed = await run_command(tmp_path / "s", turnd, "reload")
    assert status == 1
    assert "turnd: line 3: 'relm' is no key; did you mean 'realm'?" in printed


def test_without_a_turnd_the_command_says_so(tmp_path: Path) -> None:
    for command in admin_cli.COMMANDS:
        line = ["--admin-socket", str(tmp_path / "none")]
        if command.name == "disconnect":
            line.append("aaaaaaaaaaaa")
        result = CliRunner().invoke(command, line)
        assert result.exit_code == 1
        assert "no turnd answers at" in result.output
