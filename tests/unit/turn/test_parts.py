"""What may be exchanged beside a running server: opened first, then taken, or given up whole."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stun.errors import StunError
from stun.nonce import NonceMaker
from turn.daemon.config import Flags, load
from turn.daemon.parts import Health, Parts
from turn.daemon.settings import Settings
from turn.server.events import LookUp
from turn.users import open_table


class Host:
    """A turnd, as far as the parts know it."""

    version = "1"

    def __init__(self) -> None:
        self.nonces = NonceMaker([bytes(16)])
        self.answered: list[LookUp] = []
        self.warnings: list[str] = []

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.ensure_future(work)

    def unix_time(self) -> int:
        return 1_800_000_000

    def found(self, lookup: LookUp) -> None:
        self.answered.append(lookup)

    def allocations_by_account(self) -> Mapping[str, int]:
        return {}

    def elsewhere(self, allocations: Mapping[str, int]) -> None:
        raise AssertionError("there is no fleet")

    def database_state(self, problem: str | None) -> None:
        raise AssertionError(problem)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def sessions(self) -> Iterator[Any]:
        return iter(())


def settings(**tables: Any) -> Settings:
    flags = Flags()
    for path, value in ({"admin__socket": False} | tables).items():
        flags.set(tuple(path.split("__")), value, path)
    return load(None, flags)


def parts() -> tuple[Parts, Host]:
    host = Host()
    return Parts(host), host  # type: ignore[arg-type]  # the rest is for commands and scrapes


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/users.db"
    table = open_table(url, "natkit")
    table.add("ann", "secret")
    table.close()
    return url


async def test_the_database_is_asked(store: str) -> None:
    made, host = parts()
    await made.open(settings(auth__store=store))
    assert made.users is None, "not in force yet"
    made.commit()
    assert made.users is not None
    made.take(LookUp("ann"))
    async with asyncio.timeout(10):
        while not host.answered:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert len(made.users.secrets("ann", 0)) == 1
    await made.close()


async def test_without_a_database_nobody_is_asked() -> None:
    made, host = parts()
    await made.open(settings())
    made.commit()
    made.take(LookUp("ann"))
    assert not host.answered
    await made.close()


async def test_what_has_not_changed_stays(store: str) -> None:
    made, _ = parts()
    await made.open(settings(auth__store=store))
    made.commit()
    users = made.users
    await made.open(settings(auth__store=store, realm="natkit"))
    assert made.commit() == []
    assert made.users is users
    await made.open(settings())
    ((old, new),) = made.commit()
    assert (new.name, new.words) == ("database", "none")
    assert made.users is None
    await old.stack.aclose()
    await made.close()


async def test_a_user_whom_the_database_has_wrongly_is_told_of(store: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "users.db") as table:
        table.execute("UPDATE users SET password = x'ff'")
    made, host = parts()
    assert made.lookups() is None
    await made.open(settings(auth__store=store))
    made.commit()
    made.take(LookUp("ann"))
    made.take(LookUp("nobody"))
    async with asyncio.timeout(10):
        while len(host.answered) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert made.lookups() == {"answered": 1, "failed": 0, "bad_record": 1}
    (warning,) = host.warnings
    assert "ann" in warning
    await made.close()


def test_a_database_is_back_when_all_who_ask_it_say_so() -> None:
    told: list[str | None] = []
    health = Health(told.append)
    users, fleet = health.of("users"), health.of("fleet")
    users("gone")
    fleet("gone, too")
    users(None)
    assert told == ["gone"]
    fleet(None)
    assert told == ["gone", None]
    fleet("again")
    assert told == ["gone", None, "again"]


async def test_one_failure_gives_up_all(store: str, tmp_path: Path) -> None:
    made, _ = parts()
    (tmp_path / "a file").write_text("")
    with pytest.raises(StunError):
        await made.open(settings(auth__store=store, admin__socket=str(tmp_path / "a file")))
    assert made.commit() == []
    assert made.users is None
    await made.close()


async def test_an_admin_socket_nobody_named_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "turnd.sock").write_text("in the way")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    made, host = parts()
    await made.open(load())
    made.commit()
    (warning,) = host.warnings
    assert warning.endswith("there is no admin socket")
    await made.close()
