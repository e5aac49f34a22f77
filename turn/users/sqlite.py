"""Users in an SQLite file, for the servers of one machine.

The file is made by :class:`SqliteTable` (``turnd users``), readable by its owner alone, in WAL
mode: a server reads while an operator writes.  What the operator writes is seen by a running server
within a second, and so is another file that was put in its place.  WAL shares memory between the
processes, so the file must not be on a network's file system: use Redis for several machines.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from stun.credentials import Profile
from stun.errors import UsageError
from stun.users import Secret
from turn.users.base import BackendError, BadRecord, UserRecord

T = TypeVar("T")

APPLICATION_ID = 0x6E61746B
"""The "application id" in the header of the file: "natk"."""

SCHEMA_VERSION = 1

LOCK_PATIENCE = 2.0
"""Seconds to wait for another process that writes."""

_SCHEMA = f"""
CREATE TABLE users (
    realm TEXT NOT NULL,
    name TEXT NOT NULL,             -- prepared with OpaqueString (RFC 8265)
    alias TEXT,                     -- prepared with SASLprep, where that is another name
    userhash BLOB NOT NULL,         -- RFC 8489 section 14.4
    password TEXT,                  -- or the keys that follow from it:
    md5 BLOB,
    md5_saslprep BLOB,
    sha256 BLOB,
    PRIMARY KEY (realm, name)
) WITHOUT ROWID;
CREATE INDEX users_alias ON users (realm, alias) WHERE alias IS NOT NULL;
CREATE INDEX users_userhash ON users (realm, userhash);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

# Two questions, of which the first nearly always answers: SQLite has no index for "name or alias".
_GET = "SELECT password, md5, md5_saslprep, sha256 FROM users WHERE realm = ? AND name = ?"
_GET_BY_ALIAS = (
    "SELECT password, md5, md5_saslprep, sha256 FROM users WHERE realm = ? AND alias = ?"
)


def path_of(url: str) -> Path:
    """Return the file of ``sqlite:///absolute/path`` (two slashes: relative)."""
    parts = urlsplit(url)
    path = unquote(parts.netloc + parts.path)
    if not path.strip("/"):
        raise UsageError(f"{url!r} names no file: write sqlite:///PATH")
    return Path(path)


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """Open a file that is there.  One thread at a time uses the connection."""
    mode = "rwc" if write else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=LOCK_PATIENCE,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = _text
    try:
        if not write:
            connection.execute("PRAGMA query_only = on")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if write and not tables:
            connection.execute("PRAGMA journal_mode = wal")
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        elif application != APPLICATION_ID:
            raise BackendError(
                f"{path} is an SQLite file, but not of users of turnd: name another one, "
                "and `turnd users add` makes it"
            )
        elif version != SCHEMA_VERSION:
            raise BackendError(
                f"{path} was written by another release (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): use that release of natkit"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _text(octets: bytes) -> str | bytes:
    """Read what a column of text holds; what is none is for whoever needs it to complain of."""
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ones that say which file and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise BackendError(f"{path}: {error}{_advice(path, error)}") from None
    except UnicodeDecodeError:  # of SQLite's own message, which quotes what it cannot read
        raise BackendError(f"{path}: database disk image is malformed{_RESTORE}") from None


_RESTORE = ": restore it from a backup, or remove it and add the users again"


def _advice(path: Path, error: sqlite3.Error) -> str:
    if not path.parent.is_dir():
        return f": there is no directory {path.parent}"
    if not path.exists():
        return ": the file is missing; `turnd users add` makes it"
    if path.is_dir():
        return ": it is a directory"
    if not os.access(path, os.R_OK):
        return ": this user may not read it; chown it to the user that turnd runs as"
    # Errors of Python's module, rather than of SQLite, have no name.
    name = getattr(error, "sqlite_errorname", "")
    if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
        return _RESTORE
    if name == "SQLITE_BUSY":
        return ": another process writes to it for too long"
    if not os.access(path.parent, os.W_OK):
        return f": SQLite keeps files beside it, so {path.parent} must be writable, too"
    return ""


class SqliteUsers:
    """A :class:`turn.users.base.UserBackend`: a thread that has the file open.

    The file need not be there yet.
    """

    def __init__(self, path: Path, realm: str) -> None:
        self._path = path
        self._realm = realm
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, int, int] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="users")

    async def get(self, username: str) -> Sequence[Secret] | None:
        """Return the user's password or keys."""
        who = (self._realm, username)

        def ask(users: sqlite3.Connection) -> Any:
            return (
                users.execute(_GET, who).fetchone() or users.execute(_GET_BY_ALIAS, who).fetchone()
            )

        row = await self._in_thread(ask)
        try:
            return None if row is None else UserRecord(username, None, b"", *row).secrets()
        except ValueError as error:
            raise BadRecord(
                f"{self._path}: the user {username!r} has {error}: "
                "`turnd users add --replace` writes it anew"
            ) from None

    async def by_userhash(self, value: bytes) -> str | None:
        """Return the username whose USERHASH this is."""
        row = await self._in_thread(
            lambda users: users.execute(
                "SELECT name FROM users WHERE realm = ? AND userhash = ?", (self._realm, value)
            ).fetchone()
        )
        return None if row is None else str(row[0])

    async def changed(self) -> bool:
        """Whether somebody has written to the file, or put another in its place."""
        before = self._seen
        self._seen = await self._in_thread(self._state)
        return self._seen != before

    def _state(self, users: sqlite3.Connection) -> tuple[int, int, int]:
        # "data_version" changes with what other connections commit.
        (version,) = users.execute("PRAGMA data_version").fetchone()
        return (*self._identity(), version)

    def _identity(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            reason = error.strerror or str(error)
            raise BackendError(
                f"{self._path}: {reason}; `turnd users add` makes a new one"
            ) from None
        return found.st_dev, found.st_ino

    async def _in_thread(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, ask)

    def _ask(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        with _explained(self._path):
            if self._seen is not None and self._seen[:2] != self._identity():
                self._disconnect()
            if self._connection is None:
                self._connection = _connect(self._path, write=False)
            try:
                return ask(self._connection)
            except BaseException:
                # A file that was cut short or replaced may be whole again the next time.
                self._disconnect()
                raise

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def close(self) -> None:
        """Close the file and end the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)


class SqliteTable:
    """A :class:`turn.users.base.UserTable`; makes the file when it is not there."""

    def __init__(self, path: Path, realm: str) -> None:
        self._path = path
        self._realm = realm
        with _explained(path):
            if not path.exists() and path.parent.is_dir():
                # It holds passwords, and the files that WAL puts beside it take over its mode.
                path.touch(mode=0o600)
            self._users = _connect(path, write=True)

    def add(
        self, name: str, password: str, *, keys_only: bool = False, replace: bool = False
    ) -> None:
        """Add a user; see :class:`turn.users.base.UserTable`."""
        user = UserRecord.make(name, password, self._realm, keys_only=keys_only)
        row = (
            self._realm,
            user.name,
            user.alias,
            user.userhash,
            user.password,
            user.md5,
            user.md5_saslprep,
            user.sha256,
        )
        verb = "REPLACE" if replace else "INSERT"
        try:
            with _explained(self._path):
                self._users.execute(f"{verb} INTO users VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        except BackendError as error:
            if not isinstance(error.__context__, sqlite3.IntegrityError):
                raise
            raise UsageError(
                f"the realm {self._realm!r} has a user {user.name!r} already: "
                "remove it first, or say that it shall be replaced"
            ) from None

    def remove(self, name: str) -> bool:
        """Remove a user; return whether there was one."""
        prepared = Profile.OPAQUE_STRING.prepare(name)
        with _explained(self._path):
            done = self._users.execute(
                "DELETE FROM users WHERE realm = ? AND name = ?", (self._realm, prepared)
            )
        return done.rowcount > 0

    def names(self) -> list[str]:
        """Return the names of all users of the realm, sorted."""
        with _explained(self._path):
            rows = self._users.execute(
                "SELECT name FROM users WHERE realm = ? ORDER BY name", (self._realm,)
            ).fetchall()
        return [str(name) for (name,) in rows]

    def close(self) -> None:
        """Close the file."""
        self._users.close()
