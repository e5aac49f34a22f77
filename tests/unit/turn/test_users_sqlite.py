"""Users in an SQLite file, from the operator's side and from the server's."""

import asyncio
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from stun.credentials import long_term_key, userhash
from stun.errors import UsageError
from stun.registry import PasswordAlgorithm
from stun.users import Password, StoredKeys
from turn.users import open_backend, open_table
from turn.users.base import BackendError, BadRecord
from turn.users.sqlite import SqliteTable, SqliteUsers, path_of

REALM = "example.org"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users.db"


@pytest.fixture
def table(path):
    with closing(SqliteTable(path, REALM)) as table:
        yield table


def ask(path, *questions, realm=REALM):
    """Ask a server's side: each question is a function of it."""

    async def body():
        users = SqliteUsers(path, realm)
        try:
            return [await question(users) for question in questions]
        finally:
            await users.close()

    return asyncio.run(body())


def get(name):
    return lambda users: users.get(name)


def test_add_list_remove(table, path):
    table.add("bob", "b")
    table.add("alice", "pass")
    assert table.names() == ["alice", "bob"]
    assert ask(path, get("alice"), get("carol")) == [(Password("pass"),), None]
    assert table.remove("alice") is True
    assert table.remove("alice") is False
    assert table.names() == ["bob"]
    assert ask(path, get("alice")) == [None]


def test_a_user_is_not_replaced_by_accident(table, path):
    table.add("alice", "one")
    with pytest.raises(UsageError, match="has a user 'alice' already"):
        table.add("alice", "two")
    assert ask(path, get("alice")) == [(Password("one"),)]
    table.add("alice", "two", replace=True)
    assert ask(path, get("alice")) == [(Password("two"),)]
    assert table.names() == ["alice"]


def test_keys_in_the_place_of_passwords(table, path):
    table.add("alice", "very secret", keys_only=True)
    md5 = long_term_key("alice", REALM, "very secret")
    sha256 = long_term_key("alice", REALM, "very secret", PasswordAlgorithm.SHA256)
    assert ask(path, get("alice")) == [(StoredKeys(md5, sha256),)]
    table.close()
    assert b"very secret" not in path.read_bytes()


def test_hashes_and_both_names(table, path):
    table.add("\u2168", "pass")
    hashed = userhash("\u2168", REALM)
    found = ask(
        path,
        get("\u2168"),
        get("IX"),
        lambda users: users.by_userhash(hashed),
        lambda users: users.by_userhash(bytes(32)),
    )
    assert found == [(Password("pass"),), (Password("pass"),), "\u2168", None]
    # A user who really has the name goes before one who has it as an alias.
    table.add("IX", "other")
    assert ask(path, get("IX")) == [(Password("other"),)]
    assert table.remove("IX")
    assert table.names() == ["\u2168"]


def test_realms_are_apart(table, path):
    table.add("alice", "pass")
    with closing(SqliteTable(path, "other")) as other:
        other.add("alice", "elsewhere")
        assert other.remove("bob") is False
    assert ask(path, get("alice")) == [(Password("pass"),)]
    assert ask(path, get("alice"), realm="other") == [(Password("elsewhere"),)]
    assert table.names() == ["alice"]


def test_strings_that_cannot_be_sent(table):
    for name, password in (("", "p"), ("a", ""), ("x" * 509, "p"), ("a\0b", "p")):
        with pytest.raises(UsageError):
            table.add(name, password)
    assert table.names() == []


def test_names_are_data(table, path):
    name = "x'; DROP TABLE users; --"
    table.add(name, "'")
    assert table.names() == [name]
    assert ask(path, get(name)) == [(Password("'"),)]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("password", b"octets", "a password that is not text"),
        ("md5", "5f4dcc3b5aa765d61d8327deb882cf99", "a key that is not 16 octets"),
        ("md5", b"short", "a key that is not 16 octets"),
        ("md5_saslprep", 17, "a key that is not 16 octets"),
        ("sha256", bytes(31), "a key that is not 32 octets"),
    ],
)
def test_what_was_written_by_hand_and_is_no_user(table, path, column, value, words):
    # A column of SQLite takes values of any type.
    table.add("alice", "pass")
    table.add("bob", "pass", keys_only=True)
    with closing(sqlite3.connect(path)) as hand, hand:
        hand.execute(
            f"UPDATE users SET password = NULL, {column} = ? WHERE name = 'alice'", [value]
        )
    with pytest.raises(BadRecord, match=f"'alice' has {words}.*--replace"):
        ask(path, get("alice"))
    assert ask(path, get("bob"))[0] is not None
    table.add("alice", "new", replace=True)
    assert ask(path, get("alice")) == [(Password("new"),)]


def test_text_that_is_no_text(table, path):
    table.add("alice", "pass")
    with closing(sqlite3.connect(path)) as hand, hand:
        hand.execute("UPDATE users SET password = CAST(x'ff' AS TEXT)")
    with pytest.raises(BadRecord, match="a password that is not text"):
        ask(path, get("alice"))


@pytest.mark.parametrize("octet", [0, 0x20, 0xB5, 0xFF])
def test_a_damaged_file(table, path, octet):
    table.add("alice", "pass")
    table.close()
    text = b"CREATE TABLE users"
    path.write_bytes(path.read_bytes().replace(text, bytes([octet]) * len(text)))
    with pytest.raises(BackendError, match=r"malformed.*: restore it from a backup"):
        ask(path, get("alice"))


def test_only_the_owner_may_read_it(table, path):
    table.add("alice", "pass")
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


class TestChanges:
    def run(self, path, body):
        async def whole():
            users = SqliteUsers(path, REALM)
            try:
                await body(users)
            finally:
                await users.close()

        asyncio.run(whole())

    def test_of_the_same_file(self, table, path):
        async def body(users):
            assert await users.changed() is True  # all is new at first
            assert await users.changed() is False
            assert await users.get("alice") is None
            table.add("alice", "pass")
            assert await users.changed() is True
            assert await users.get("alice") == (Password("pass"),)
            assert await users.changed() is False

        self.run(path, body)

    def test_another_file_in_its_place(self, table, path):
        async def body(users):
            assert await users.get("alice") is None
            await users.changed()
            other = path.with_name("other.db")
            with closing(SqliteTable(other, REALM)) as second:
                second.add("alice", "pass")
            table.close()
            for left in path.parent.glob("users.db-*"):
                left.unlink()
            other.replace(path)
            assert await users.changed() is True
            assert await users.get("alice") == (Password("pass"),)

        self.run(path, body)

    def test_a_file_that_goes_and_comes(self, table, path):
        async def body(users):
            table.add("alice", "pass")
            await users.changed()
            table.close()
            kept = path.rename(path.with_name("away"))
            with pytest.raises(BackendError, match="turnd users add"):
                await users.changed()
            with pytest.raises(BackendError, match="turnd users add"):
                await users.get("alice")
            kept.rename(path)
            assert await users.get("alice") == (Password("pass"),)

        self.run(path, body)

    def test_a_file_that_is_not_there_yet(self, path):
        async def body(users):
            with pytest.raises(BackendError, match="the file is missing; `turnd users add`"):
                await users.changed()
            with closing(SqliteTable(path, REALM)) as table:
                table.add("alice", "pass")
            assert await users.changed() is True
            assert await users.get("alice") == (Password("pass"),)

        self.run(path, body)


class TestWrongFiles:
    def refused(self, path, words):
        with pytest.raises(BackendError, match=words):
            ask(path, get("alice"))
        with pytest.raises(BackendError, match=words):
            SqliteTable(path, REALM)

    def test_no_database(self, path):
        path.write_bytes(b"not a database, but long enough to look at" * 100)
        self.refused(path, "users.db: file is not a database: restore it")

    def test_another_programs(self, path):
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE users (name)")
        self.refused(path, "not of users of turnd")

    def test_another_releases(self, table, path):
        table.close()
        with closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA user_version = 99")
        self.refused(path, "schema 99")

    def test_a_directory(self, path):
        path.mkdir()
        self.refused(path, "it is a directory")

    def test_no_directory(self, path):
        self.refused(path / "users.db", "there is no directory")

    @pytest.mark.parametrize(
        ("allowed", "words"),
        [((), "chown it to the user that turnd runs as"), (("users.db",), "must be writable, too")],
    )
    def test_not_allowed(self, table, path, allowed, words, monkeypatch):
        # The tests may run as root, who may read and write everything.
        monkeypatch.setattr(os, "access", lambda file, mode: file.name in allowed)
        monkeypatch.setattr("turn.users.sqlite._GET", "SELECT nonsense")
        with pytest.raises(BackendError, match=words):
            ask(path, get("alice"))

    def test_locked(self, table, path, monkeypatch):
        monkeypatch.setattr("turn.users.sqlite.LOCK_PATIENCE", 0.0)
        with closing(SqliteTable(path, REALM)) as second:
            table._users.execute("BEGIN IMMEDIATE")
            with pytest.raises(BackendError, match="another process writes"):
                second.add("alice", "pass")
            # Readers do not wait for a writer.
            assert ask(path, get("alice")) == [None]
            table._users.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/lib/turnd/users.db", "/var/lib/turnd/users.db"),
        ("sqlite://users.db", "users.db"),
        ("sqlite://data/users.db", "data/users.db"),
        ("sqlite:///a%20b.db", "/a b.db"),
    ],
)
def test_urls(url, path):
    assert path_of(url) == Path(path)


@pytest.mark.parametrize("url", ["sqlite:", "sqlite://", "sqlite:///"])
def test_urls_without_a_file(url):
    with pytest.raises(UsageError, match="sqlite:///PATH"):
        path_of(url)


def test_by_url(path):
    url = f"sqlite://{path}"
    with closing(open_table(url, REALM)) as table:
        table.add("alice", "pass")

    async def body():
        users = open_backend(url, REALM)
        try:
            return await users.get("alice")
        finally:
            await users.close()

    assert asyncio.run(body()) == (Password("pass"),)
