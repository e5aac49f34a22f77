"""Users in Redis, for a fleet of servers that share them.

What is stored, each key with ``natkit:{realm}:`` before it (the braces keep all keys of a realm on
one node of a cluster):

=================  ======  ======================================================================
``user:NAME``      hash    ``password``, or ``md5``, ``md5_saslprep`` and ``sha256`` in hexadecimal
``userhash:HEX``   string  the name whose USERHASH it is
``users``          set     the names
``changes``        number  counts what was written: servers look at it once a second
=================  ======  ======================================================================

What a fleet shares beside its users is in :mod:`turn.users.fleet`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from stun.credentials import Profile, userhash
from stun.errors import StunError, UsageError
from stun.strings import StringError
from stun.users import Secret
from turn.users.base import BackendError, BadRecord, UserRecord, redacted

PATIENCE = 2.0
"""Seconds for a connection, and for an answer."""


_ABOUT_PASSWORDS = re.compile("password|authenticat", re.IGNORECASE)
_CHECK_URL = "check the user and password in its URL"


def key_prefix(realm: str) -> str:
    """Return what stands before the keys of a realm."""
    return f"natkit:{{{realm}}}:"


def bad_record(url: str, key: str) -> BadRecord:
    """Say that what is stored under ``key`` is no user."""
    return BadRecord(
        f"{redacted(url)}: {key} is no user: `turnd users add --replace` writes it anew"
    )


@contextmanager
def explained(url: str, key: str = "") -> Iterator[None]:
    """Turn the library's errors into ones that say which server and what to do.

    ``key``: what is asked for of one user; a value of another type there is a bad record.
    """
    from redis import exceptions

    try:
        yield
    except exceptions.RedisError as error:
        name = redacted(url)
        match error:
            case exceptions.ResponseError() if key and str(error).startswith("WRONGTYPE"):
                raise bad_record(url, key) from None
            case exceptions.AuthenticationError():
                how = _CHECK_URL
            case exceptions.ConnectionError() if _ABOUT_PASSWORDS.search(str(error)):
                # Where the library wraps it, and where Redis refuses a greeting without any.
                how = _CHECK_URL
            case exceptions.NoPermissionError():
                how = "allow its user the keys natkit:* and the commands that turnd needs"
            case exceptions.TimeoutError() | exceptions.ConnectionError():
                how = "check that Redis runs there and that this machine may reach it"
            case exceptions.ResponseError():
                how = "keys that begin with natkit: must be turnd's own"
            case _:
                how = "see Redis's own log"
        raise BackendError(f"{name}: {error}: {how}") from None
    except StunError:
        raise
    except Exception as error:
        # The library passes on whatever it was sent, and trips over some of it.
        what = f"{type(error).__name__}: {error}"
        raise BackendError(f"{redacted(url)} does not answer as Redis does ({what})") from None


def connect(url: str, *, blocking: bool = False) -> Any:
    """Return a client of the ``redis`` library; connects when it is first used.

    Raises :class:`stun.errors.UsageError` without the library, and for a URL it does not take.
    """
    try:
        import redis
        import redis.asyncio
        from redis.asyncio.retry import Retry as AsyncRetry
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError:
        raise UsageError(
            f"{redacted(url)} needs the redis package: pip install 'natkit[redis]'"
        ) from None
    # One more attempt at once, for a connection that Redis closed meanwhile; whoever asks waits,
    # so what lasts longer is for the caller to decide.
    retry: Any = Retry(NoBackoff(), 1) if blocking else AsyncRetry(NoBackoff(), 1)
    make: Any = redis.Redis if blocking else redis.asyncio.Redis
    try:
        return make.from_url(
            url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=retry
        )
    except ValueError as error:
        raise UsageError(f"{redacted(url)!r} is no URL of a Redis server: {error}") from None


def to_fields(user: UserRecord) -> dict[str, str]:
    """Return the hash that a user is stored as."""
    if user.password is not None:
        return {"password": user.password}
    keys = {"md5": user.md5, "md5_saslprep": user.md5_saslprep, "sha256": user.sha256}
    return {name: key.hex() for name, key in keys.items() if key is not None}


def from_fields(name: str, fields: Mapping[bytes, bytes]) -> UserRecord:
    """Return the user that a hash means; raises :class:`ValueError` for what is none."""
    password = fields.get(b"password")

    def key(field: bytes) -> bytes | None:
        value = fields.get(field)
        return None if value is None else bytes.fromhex(value.decode())

    return UserRecord(
        name,
        None,
        b"",
        None if password is None else password.decode(),
        key(b"md5"),
        key(b"md5_saslprep"),
        key(b"sha256"),
    )


class RedisUsers:
    """A :class:`turn.users.base.UserBackend`."""

    def __init__(self, url: str, realm: str) -> None:
        self._url = url
        self._prefix = key_prefix(realm)
        self._redis = connect(url)
        self._changes: bytes | None = None

    async def get(self, username: str) -> Sequence[Secret] | None:
        """Return the user's password or keys."""
        key = f"{self._prefix}user:{username}"
        with explained(self._url, key):
            fields = dict(await self._redis.hgetall(key))
        try:
            return from_fields(username, fields).secrets() if fields else None
        except ValueError:
            raise bad_record(self._url, key) from None

    async def by_userhash(self, value: bytes) -> str | None:
        """Return the username whose USERHASH this is."""
        key = f"{self._prefix}userhash:{value.hex()}"
        with explained(self._url, key):
            name = await self._redis.get(key)
            return None if name is None else str(name, "utf-8", "replace")

    async def changed(self) -> bool:
        """Whether a user was added or removed."""
        before = self._changes
        with explained(self._url):
            self._changes = await self._redis.get(f"{self._prefix}changes")
        return self._changes != before

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


class RedisTable:
    """A :class:`turn.users.base.UserTable`."""

    def __init__(self, url: str, realm: str) -> None:
        self._url = url
        self._realm = realm
        self._prefix = key_prefix(realm)
        self._redis = connect(url, blocking=True)
        with explained(url):
            self._redis.ping()

    def add(
        self, name: str, password: str, *, keys_only: bool = False, replace: bool = False
    ) -> None:
        """Add a user; see :class:`turn.users.base.UserTable`."""
        user = UserRecord.make(name, password, self._realm, keys_only=keys_only)
        users = f"{self._prefix}users"

        def write(work: Any) -> None:
            if work.sismember(users, user.name) and not replace:
                raise UsageError(
                    f"the realm {self._realm!r} has a user {user.name!r} already: "
                    "remove it first, or say that it shall be replaced"
                )
            known_as = self._known_as(work, user.name)
            work.multi()
            work.delete(*known_as)
            for key in known_as:
                work.hset(key, mapping=to_fields(user))
            work.set(f"{self._prefix}userhash:{user.userhash.hex()}", user.name)
            work.sadd(users, user.name)
            work.incr(f"{self._prefix}changes")

        with explained(self._url):
            # All of it or nothing, and again if somebody else wrote users meanwhile.
            self._redis.transaction(write, users)

    def _known_as(self, work: Any, prepared: str) -> list[str]:
        """Return where a user is found, by its name and by what SASLprep makes of it.

        Unless somebody has that for a name: he comes first.
        """
        names = {prepared}
        with suppress(StringError):
            alias = Profile.SASLPREP.prepare(prepared)
            if not work.sismember(f"{self._prefix}users", alias):
                names.add(alias)
        return [f"{self._prefix}user:{name}" for name in names]

    def remove(self, name: str) -> bool:
        """Remove a user; return whether there was one."""
        prepared = Profile.OPAQUE_STRING.prepare(name)
        users = f"{self._prefix}users"

        def write(work: Any) -> None:
            known_as = self._known_as(work, prepared)
            work.multi()
            work.srem(users, prepared)
            work.delete(*known_as)
            work.delete(f"{self._prefix}userhash:{userhash(prepared, self._realm).hex()}")
            work.incr(f"{self._prefix}changes")

        with explained(self._url):
            return bool(self._redis.transaction(write, users)[0])

    def names(self) -> list[str]:
        """Return the names of all users of the realm, sorted."""
        with explained(self._url):
            found = self._redis.smembers(f"{self._prefix}users")
        return sorted(str(name, "utf-8", "replace") for name in found)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
