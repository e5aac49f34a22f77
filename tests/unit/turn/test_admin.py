"""The admin socket: what it answers, who may open it, and what becomes of its file."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stun.errors import UsageError
from turn.daemon.admin import AdminSocket, NotRunning, Refused, Signpost, ask, default_path


async def echo(request: Mapping[str, Any]) -> Any:
    return request["text"]


async def refuse(_: Mapping[str, Any]) -> Any:
    raise UsageError("not today")


COMMANDS = {"echo": echo, "refuse": refuse}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "made" / "turnd.sock"


async def raw(path: Path, request: bytes) -> Any:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return json.loads(answer)


async def test_a_command_is_answered(place: Path) -> None:
    async with AdminSocket(place, COMMANDS):
        assert await asyncio.to_thread(ask, place, "echo", text="héllo") == "héllo"


async def test_an_error_of_a_command_reaches_the_client(place: Path) -> None:
    async with AdminSocket(place, COMMANDS):
        with pytest.raises(Refused, match="not today"):
            await asyncio.to_thread(ask, place, "refuse")


async def test_an_unknown_command_names_those_there_are(place: Path) -> None:
    async with AdminSocket(place, COMMANDS):
        with pytest.raises(Refused, match="no command 'fly'; there are echo, refuse"):
            await asyncio.to_thread(ask, place, "fly")


@pytest.mark.parametrize(
    "request_",
    [
        b"\n",
        b"",
        b"echo\n",
        b"[1]\n",
        b'{"command": 7}\n',
        b"\xff\xfe\n",
        b"x" * 100_000 + b"\n",
        b"[" * 60_000 + b"\n",
    ],
)
async def test_nonsense_is_answered_with_an_error(place: Path, request_: bytes) -> None:
    async with AdminSocket(place, COMMANDS):
        answer = await raw(place, request_)
        assert answer["ok"] is False
        assert answer["error"]
        assert await asyncio.to_thread(ask, place, "echo", text="still there") == "still there"


async def test_only_the_owner_may_open_it_and_it_is_gone_afterwards(place: Path) -> None:
    async with AdminSocket(place, COMMANDS):
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert not place.exists()


async def test_a_socket_that_nobody_answers_at_is_replaced(place: Path) -> None:
    place.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))
    async with AdminSocket(place, COMMANDS):
        assert await asyncio.to_thread(ask, place, "echo", text="new") == "new"


async def test_a_second_turnd_is_told_of_the_first(place: Path) -> None:
    async with AdminSocket(place, COMMANDS):
        with pytest.raises(UsageError, match="another turnd runs"):
            async with AdminSocket(place, COMMANDS):
                pass
        assert await asyncio.to_thread(ask, place, "echo", text="first") == "first"


async def test_a_file_of_somebody_else_is_left_alone(place: Path) -> None:
    place.parent.mkdir()
    place.write_text("precious")
    with pytest.raises(UsageError, match="is no socket"):
        async with AdminSocket(place, COMMANDS):
            pass
    assert place.read_text() == "precious"


async def test_the_socket_of_a_successor_is_not_removed(place: Path) -> None:
    async with AdminSocket(place, COMMANDS):
        place.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(place))
    assert place.exists()


async def test_a_place_is_free_while_the_last_ones_are_still_answered(place: Path) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(_: Mapping[str, Any]) -> Any:
        asked.set()
        await answer.wait()
        return "old"

    async with AdminSocket(place, {"ask": slow}) as old:
        visit = asyncio.ensure_future(asyncio.to_thread(ask, place, "ask"))
        await asked.wait()
        closing = asyncio.ensure_future(old.__aexit__())
        await asyncio.sleep(0)
        async with AdminSocket(place, COMMANDS):
            answer.set()
            await closing
            assert await visit == "old"
            assert await asyncio.to_thread(ask, place, "echo", text="new") == "new"


class TestSignpost:
    """Where turnd is that runs by a file which names another socket than turnd has."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        return tmp_path / "turnd.toml"

    @pytest.fixture
    def environment(self, tmp_path: Path) -> dict[str, str]:
        return {"RUNTIME_DIRECTORY": str(tmp_path / "run")}

    async def test_it_stands_in_where_nobody_answers(
        self, place: Path, config: Path, environment: dict[str, str], tmp_path: Path
    ) -> None:
        named = tmp_path / "named.sock"
        turnd, command = (Signpost(config, environment) for _ in range(2))
        assert command.follow(named) == named
        async with AdminSocket(place, COMMANDS):
            assert command.follow(named) == named
            turnd.point_to(place)
            assert command.follow(named) == place
            assert Signpost(tmp_path / "other.toml", environment).follow(named) == named
            async with AdminSocket(named, COMMANDS):
                assert command.follow(named) == named
            turnd.remove()
            assert command.follow(named) == named
            turnd.point_to(place)
        # Whoever left it has gone without a word.
        assert command.follow(named) == named

    async def test_the_last_turnd_of_a_configuration_has_it(
        self, place: Path, config: Path, environment: dict[str, str], tmp_path: Path
    ) -> None:
        first, second = (Signpost(config, environment) for _ in range(2))
        async with AdminSocket(place, COMMANDS):
            first.point_to(tmp_path / "first.sock")
            second.point_to(place)
            first.remove()
            assert first.follow(tmp_path / "named.sock") == place

    def test_turnd_can_do_without(self, place: Path, config: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        signpost = Signpost(config, {"RUNTIME_DIRECTORY": str(tmp_path / "file" / "run")})
        signpost.remove()
        signpost.point_to(place)
        assert signpost.follow(place) == place
        signpost.remove()

    async def test_a_link_of_somebody_else_is_not_followed(
        self,
        place: Path,
        config: Path,
        environment: dict[str, str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        signpost = Signpost(config, environment)
        named = tmp_path / "named.sock"
        async with AdminSocket(place, COMMANDS):
            signpost.point_to(place)
            (link,) = (tmp_path / "run").iterdir()
            if os.geteuid() == 0:
                os.lchown(link, 4711, 4711)
                assert signpost.follow(named) == place, "root may be led by any turnd's user"
            owner = link.lstat().st_uid
            monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
            assert signpost.follow(named) == named


def test_where_nothing_runs_the_text_says_what_to_do(place: Path) -> None:
    with pytest.raises(NotRunning, match=r"no turnd answers at .*turnd.sock; start it"):
        ask(place, "sessions")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TURND_ADMIN_SOCKET": "/x.sock", "RUNTIME_DIRECTORY": "/run/turnd"}, "/x.sock"),
        ({"RUNTIME_DIRECTORY": "/run/turnd-7:/run/other"}, "/run/turnd-7/turnd.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/turnd.sock"),
    ],
)
def test_the_default_place(environment: dict[str, str], expected: str) -> None:
    if "XDG_RUNTIME_DIR" in environment and os.geteuid() == 0:
        expected = "/run/turnd/turnd.sock"
    assert default_path(environment) == Path(expected)
