"""What a users' database is to a server, and how its answers come to where they are needed.

Theory of operation.  The server machine decides at once and never waits, a database takes its time.
Between them stands :class:`turn.users.cache.CachedUsers`: the machine asks it, and it either knows
or says that it must be told.  Then the machine puts the request aside and emits
:class:`turn.server.events.LookUp`; a :class:`Loader` asks the :class:`UserBackend`, fills the
cache, and lets the machine go on with the request::

    loader = Loader(cached, backend, lambda lookup: server.found(lookup, driver.now()))
    loader.take(event)        # each event of the machine
    await loader.run()        # beside the server

So that requests seldom wait, a loader with a clock also asks by itself for users who are in use,
shortly before what is known of them is too old.

When the database is down, the users whom the cache knows go on, everybody else is answered 500
(Server Error: "The client should try again"), and the loader tries the database until it answers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeVar

from stun.credentials import Profile, check_username, long_term_key, userhash
from stun.errors import StunError, UsageError
from stun.registry import PasswordAlgorithm
from stun.strings import StringError
from stun.users import Password, Secret, StoredKeys
from turn.server.events import LookUp
from turn.users.cache import CachedUsers

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds that a database may take for an answer before it counts as down."""

AT_ONCE = 32
"""Questions that are put to the database at the same time; others wait for their turn."""

AHEAD_AT_ONCE = 8
"""The same of questions ahead of time, which take no turn from the others."""

AHEAD = 64
"""How many of those there are at most between two looks at the database."""

WATCH = 1.0
"""Seconds between two looks at whether users have changed."""

BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds between attempts to reach a database that is down; the last one repeats."""


class BackendError(StunError):
    """A database cannot be used: which one, why, and what to do about it."""


class BadRecord(StunError):
    """What a database has of one user cannot be used; the others are not concerned."""


class UserBackend(Protocol):
    """A database of users, asked by a running server.

    Every method raises :class:`BackendError` when the database cannot answer, and those that are
    about one user :class:`BadRecord` when the answer makes no sense.
    """

    async def get(self, username: str) -> Sequence[Secret] | None:
        """Return what ``username``, prepared as on the wire, may prove itself with.

        ``None``: there is no such user.
        """
        ...

    async def by_userhash(self, value: bytes) -> str | None:
        """Return the username whose USERHASH this is."""
        ...

    async def changed(self) -> bool:
        """Whether users may have changed since the last call; asked about once a second."""
        ...

    async def close(self) -> None:
        """Let go of connections and files."""
        ...


class UserTable(Protocol):
    """A database of users, written by an operator.  Blocking; errors as in :class:`UserBackend`."""

    def add(
        self, name: str, password: str, *, keys_only: bool = False, replace: bool = False
    ) -> None:
        """Add a user.

        ``keys_only``: store the keys that follow from the password, not the password itself.
        Raises :class:`stun.errors.UsageError` for strings that cannot be sent, and for a user who
        exists unless ``replace``.
        """
        ...

    def remove(self, name: str) -> bool:
        """Remove a user; return whether there was one."""
        ...

    def names(self) -> list[str]:
        """Return the names of all users of the realm, sorted."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...


@dataclass(frozen=True, slots=True)
class UserRecord:
    """A user as databases store it.

    ``name`` is prepared with OpaqueString, ``alias`` with SASLprep where that differs (clients of
    RFC 5389 send it).  ``md5_saslprep``: the key that such a client derives, where it differs.
    """

    name: str
    alias: str | None
    userhash: bytes
    password: str | None = field(default=None, repr=False)
    md5: bytes | None = field(default=None, repr=False)
    md5_saslprep: bytes | None = field(default=None, repr=False)
    sha256: bytes | None = field(default=None, repr=False)

    @classmethod
    def make(cls, name: str, password: str, realm: str, *, keys_only: bool = False) -> UserRecord:
        """Prepare a user; raises :class:`stun.strings.StringError` for what cannot be sent."""
        prepared = check_username(name, Profile.OPAQUE_STRING)
        Profile.OPAQUE_STRING.prepare(password)
        alias = legacy = None
        with suppress(StringError):
            alias = Profile.SASLPREP.prepare(name)
        hashed = userhash(name, realm)
        alias = None if alias == prepared else alias
        if not keys_only:
            return cls(prepared, alias, hashed, password)
        md5 = long_term_key(name, realm, password)
        with suppress(StringError):
            legacy = long_term_key(name, realm, password, profile=Profile.SASLPREP)
        sha256 = long_term_key(name, realm, password, PasswordAlgorithm.SHA256)
        return cls(prepared, alias, hashed, None, md5, None if legacy == md5 else legacy, sha256)

    def secrets(self) -> tuple[Secret, ...]:
        """Return what the user may prove itself with; raises ``ValueError`` if it is no such thing.

        Databases hold what somebody has put there: in SQLite a column may have values of any type.
        """
        keys = (self.md5, 16), (self.md5_saslprep, 16), (self.sha256, 32)
        for key, size in keys:
            if not _is_key(key, size):
                raise ValueError(f"a key that is not {size} octets")
        password: object = self.password
        if not isinstance(password, str | None):
            raise ValueError("a password that is not text")
        if self.password is not None:
            return (Password(self.password),)
        made: list[Secret] = []
        if self.md5 is not None or self.sha256 is not None:
            made.append(StoredKeys(self.md5, self.sha256))
        if self.md5_saslprep is not None:
            made.append(StoredKeys(self.md5_saslprep))
        return tuple(made)


def _is_key(value: object, size: int) -> bool:
    return value is None or (isinstance(value, bytes) and len(value) == size)


class Where(Enum):
    """Which kind of database a URL names."""

    SQLITE = "sqlite"
    REDIS = "redis"


_SCHEMES = {
    "sqlite": Where.SQLITE,
    "redis": Where.REDIS,
    "rediss": Where.REDIS,
    "unix": Where.REDIS,
}


def where(url: str) -> Where:
    """Return the kind of database; raises :class:`stun.errors.UsageError` for no known one."""
    scheme, colon, _ = url.partition("://")
    kind = _SCHEMES.get(scheme.lower())
    if not colon or kind is None:
        raise UsageError(
            f"{redacted(url)!r} names no users' database: write sqlite:///PATH, "
            "redis://HOST:PORT/NUMBER, rediss:// for TLS, or unix:///PATH of Redis's socket"
        )
    return kind


_PASSWORD = re.compile(
    r"(?P<before>://[^/?#@:]*:)[^/?#]*(?=@)"  # redis://user:password@host
    r"|(?P<query>[?&]password=)[^&#]*"  # unix:///path?password=...
)


def redacted(url: str) -> str:
    """Return a URL without the password that it may have, for people."""
    return _PASSWORD.sub(lambda found: f"{found['before'] or found['query']}***", url)


class Loader:
    """Fills the cache from the database, on the event loop that the server runs on.

    ``answered`` is called once for each :class:`LookUp` that was taken, after the cache was told.
    ``report`` is told when the database goes down, with the reason, and ``None`` when it is back.
    ``complain`` is told of each user who cannot be let in because of what the database has of them.
    ``clock`` tells the seconds since 1970, as the machine has them; without it nobody is asked for
    ahead of time.
    """

    def __init__(
        self,
        users: CachedUsers,
        backend: UserBackend,
        answered: Callable[[LookUp], None],
        *,
        report: Callable[[str | None], None] = lambda _: None,
        complain: Callable[[str], None] = lambda _: None,
        clock: Callable[[], int] | None = None,
        patience: float = PATIENCE,
        watch: float = WATCH,
        backoff: Sequence[float] = BACKOFF,
    ) -> None:
        self._users = users
        self._backend = backend
        self._answered = answered
        self._report = report
        self._complain = complain
        self._clock = clock
        self._patience = patience
        self._watch = watch
        self._backoff = backoff
        self._asking: dict[LookUp, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._ahead = 0
        """Questions ahead of time that are under way, and how many more may be put."""
        self._ahead_left = 0
        self._down = asyncio.Event()
        self.lookups = 0
        """Questions put to the database."""
        self.failures = 0
        """Of which the database did not answer."""
        self.bad_records = 0
        """Of which it answered what cannot be used."""

    def take(self, event: object) -> None:
        """Take an event of the machine; all but :class:`LookUp` are passed over.

        The same question asked again before its answer has come is one question.
        """
        if isinstance(event, LookUp) and event not in self._asking:
            self._begin(event, self._in_turn(event))

    def _begin(self, lookup: LookUp, work: Coroutine[Any, Any, None]) -> None:
        self._asking[lookup] = asyncio.get_running_loop().create_task(work)

    async def _in_turn(self, lookup: LookUp) -> None:
        try:
            async with self._turn:
                await self._look_up(lookup)
        finally:
            del self._asking[lookup]
        self._answered(lookup)

    def _ask_ahead(self) -> None:
        """Ask for users whom the machine would soon have to ask for."""
        if self._clock is None or not self._users.reachable:
            return
        room = min(self._ahead_left, AHEAD_AT_ONCE - self._ahead)
        for name in self._users.due(self._clock(), room):
            lookup = LookUp(name)
            if lookup not in self._asking:
                self._ahead_left -= 1
                self._ahead += 1
                self._begin(lookup, self._ahead_of_time(lookup))

    async def _ahead_of_time(self, lookup: LookUp) -> None:
        try:
            await self._look_up(lookup)
        finally:
            del self._asking[lookup]
            self._ahead -= 1
        # Perhaps a request has come to need the answer meanwhile.
        self._answered(lookup)
        self._ask_ahead()

    async def _look_up(self, lookup: LookUp) -> None:
        self.lookups += 1
        with self._noticing():
            async with asyncio.timeout(self._patience):
                await self._ask(lookup)

    async def _ask(self, lookup: LookUp) -> None:
        # Who changes users while we ask may be faster than the answer.
        generation = self._users.generation
        asked = None if self._clock is None else self._clock()
        name: str | None = lookup.username
        if lookup.userhash is not None:
            name = await self._usable(self._backend.by_userhash(lookup.userhash))
            self._users.put_userhash(lookup.userhash, name, generation, asked)
        if name is not None:
            secrets = await self._usable(self._backend.get(name))
            self._users.put(name, secrets, generation, asked)

    async def _usable(self, answer: Awaitable[T | None]) -> T | None:
        try:
            return await answer
        except BadRecord as error:
            self.bad_records += 1
            self._complain(str(error))
            return None

    def _noticing(self) -> _Noticing:
        return _Noticing(self._failed)

    def _failed(self, reason: str) -> None:
        self.failures += 1
        if self._users.reachable:
            self._users.reachable = False
            self._report(reason)
        self._down.set()

    async def run(self) -> None:
        """Watch the database for changes, and for its return when it is down; until cancelled."""
        attempt = 0
        while True:
            self._down.clear()
            with self._noticing():
                async with asyncio.timeout(self._patience):
                    changed = await self._backend.changed()
                if not self._users.reachable:
                    self._users.reachable = True
                    self._report(None)
                    changed = True
                if changed:
                    self._users.invalidate()
            if self._users.reachable:
                attempt = 0
                self._ahead_left = AHEAD
                self._ask_ahead()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._down.wait(), self._watch)
            if not self._users.reachable:
                await asyncio.sleep(self._backoff[min(attempt, len(self._backoff) - 1)])
                attempt += 1

    async def close(self) -> None:
        """Stop asking, and close the database."""
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await self._backend.close()


class _Noticing:
    """Tells ``failed`` of a database that did not answer, and catches nothing else."""

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed = failed

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if isinstance(error, TimeoutError):
            self._failed("the users' database takes too long to answer")
        elif isinstance(error, BackendError):
            self._failed(str(error))
        else:
            return False
        return True
