"""Where a server's users are, and what they prove themselves with (RFC 8489 section 9.2).

A :class:`UserStore` is asked for each request and answers at once: out of a table
(:class:`StaticUsers`), by computing (:class:`RestUsers`: time-limited credentials that a web
service hands out), or by asking several stores (:class:`AnyOf`).  One in front of a database says
:attr:`Gap.NOT_YET` about whom it must ask there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias

from stun.credentials import (
    Profile,
    key_of_prepared,
    prepared_realm,
    rest_expiry,
    rest_password,
    stripped,
    userhash,
)
from stun.errors import UsageError
from stun.registry import PasswordAlgorithm
from stun.strings import StringError


@dataclass(frozen=True, slots=True)
class Password:
    """A user's password in plain text: any key can be made from it."""

    text: str = field(repr=False)
    _prepared: tuple[tuple[Profile, str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Not for each request: preparing takes a hundred times as long as a key, for some strings.
        prepared = []
        for profile in Profile:
            with suppress(StringError):
                prepared.append((profile, profile.prepare(self.text.rstrip("\0"))))
        object.__setattr__(self, "_prepared", tuple(prepared))

    def keys(self, username: str, realm: str, algorithm: int, *, modern: bool) -> list[bytes]:
        """Return the keys that the client may have derived.

        ``username``: as the client sent it, which had to prepare it.
        ``modern``: it announced itself as RFC 8489, so it used OpaqueString; otherwise it may have
        used SASLprep as well.
        """
        who = stripped(username)
        keys: list[bytes] = []
        for profile, password in self._prepared:
            if modern and profile is not Profile.OPAQUE_STRING:
                continue
            try:
                where = prepared_realm(realm, profile)
            except StringError:
                continue
            key = key_of_prepared(who, where, password, algorithm)
            if key not in keys:
                keys.append(key)
        return keys


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """The keys instead of the password, for databases that never had it (section 9.2.2, "H(A1)").

    They are bound to the realm they were made for.
    """

    md5: bytes | None = field(default=None, repr=False)
    sha256: bytes | None = field(default=None, repr=False)

    def keys(self, username: str, realm: str, algorithm: int, *, modern: bool) -> list[bytes]:
        """Return the key for the algorithm, if it is stored."""
        del username, realm, modern
        key = self.md5 if algorithm == PasswordAlgorithm.MD5 else self.sha256
        return [] if key is None else [key]


@dataclass(frozen=True, slots=True)
class SharedSecret:
    """What the passwords of time-limited credentials follow from (:func:`rest_password`)."""

    secret: str | bytes = field(repr=False)

    def keys(self, username: str, realm: str, algorithm: int, *, modern: bool) -> list[bytes]:
        """Return the keys of the password that belongs to the username."""
        password = Password(rest_password(self.secret, username))
        return password.keys(username, realm, algorithm, modern=modern)


class Gap(Enum):
    """What a store says that cannot answer out of memory."""

    NOT_YET = "the answer must be fetched"
    """The request waits (:class:`Deferred`) until the store has been filled."""
    UNAVAILABLE = "the answer cannot be had now"
    """The database is out of reach: the request gets 500 (Server Error)."""


Secret: TypeAlias = Password | StoredKeys | SharedSecret


class UserStore(Protocol):
    """Where the users are.  Both methods are asked for each request, so they must not block."""

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret | Gap]:
        """Return what ``username`` may have proved itself with; empty when there is no such user.

        A :class:`Gap` among them says that there may be more; it counts only when nothing else
        fits.  ``unix_time``: seconds since 1970.
        """
        ...

    def by_userhash(self, value: bytes, unix_time: int) -> str | Gap | None:
        """Return the username whose USERHASH this is."""
        ...


class StaticUsers:
    """A table of users, for one realm.  Values are passwords or :class:`StoredKeys`."""

    __slots__ = ("_by_hash", "_secrets")

    def __init__(self, users: Mapping[str, str | StoredKeys], realm: str) -> None:
        self._secrets: dict[str, Secret] = {}
        self._by_hash: dict[bytes, str] = {}
        for name, value in users.items():
            secret = Password(value) if isinstance(value, str) else value
            with suppress(StringError):
                prepared = Profile.OPAQUE_STRING.prepare(name)
                self._secrets[prepared] = secret
                self._by_hash[userhash(name, realm)] = prepared
        # Clients of RFC 5389 may write the same name differently; who has that name comes first.
        for name, value in users.items():
            with suppress(StringError):
                alias = Profile.SASLPREP.prepare(name)
                self._secrets.setdefault(
                    alias, Password(value) if isinstance(value, str) else value
                )

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret]:
        """Return the user's password or keys."""
        del unix_time
        secret = self._secrets.get(username)
        return () if secret is None else (secret,)

    def by_userhash(self, value: bytes, unix_time: int) -> str | None:
        """Return the username whose USERHASH this is."""
        del unix_time
        return self._by_hash.get(value)


class RestUsers:
    """Time-limited credentials (draft-uberti-behave-turn-rest-00): secrets instead of users.

    Several secrets allow one to be replaced while credentials made with it are still out.  Their
    users cannot be found by USERHASH, since there is no list of them.
    """

    __slots__ = ("_secrets",)

    def __init__(self, secrets: Sequence[str | bytes]) -> None:
        if not secrets or not all(secrets):
            raise UsageError("time-limited credentials need a secret, and not an empty one")
        self._secrets = tuple(map(SharedSecret, secrets))

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret]:
        """Return each secret, and nothing once the time in the username is over."""
        expires = rest_expiry(username)
        return () if expires is None or expires < unix_time else self._secrets

    def by_userhash(self, value: bytes, unix_time: int) -> None:
        """Return ``None``: a hash does not lead back to a name that is not on a list."""
        del value, unix_time


class AnyOf:
    """Users of several stores; whichever knows the name."""

    __slots__ = ("_stores",)

    def __init__(self, *stores: UserStore) -> None:
        self._stores = stores

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret | Gap]:
        """Return what any of the stores has."""
        return [secret for store in self._stores for secret in store.secrets(username, unix_time)]

    def by_userhash(self, value: bytes, unix_time: int) -> str | Gap | None:
        """Return the username from the first store that knows the hash."""
        gap = None
        for store in self._stores:
            name = store.by_userhash(value, unix_time)
            if isinstance(name, str):
                return name
            if gap is not Gap.NOT_YET:
                gap = name or gap
        return gap
