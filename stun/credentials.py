"""Who somebody is: credentials, and the keys that are made from them (RFC 8489 section 9).

Which preparation is used with whom.  RFC 8489 prepares strings with OpaqueString, RFC 5389 with
SASLprep, and for strings outside printable ASCII the two may give different keys (see
:mod:`stun.strings`).  A server of RFC 8489 "MUST prepend the NONCE attribute value" with the nonce
cookie, so in the long-term mechanism a client knows whom it speaks to: OpaqueString after a nonce
with the cookie, SASLprep after a nonce without it.  A server sees the same sign in reverse: a
request with PASSWORD-ALGORITHM comes from RFC 8489, any other may come from either, and both keys
are tried.  The short-term mechanism has no such sign; the credential says which profile it is for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from stun.errors import UsageError
from stun.registry import PasswordAlgorithm
from stun.strings import StringError, opaque_string, saslprep

SUPPORTED_ALGORITHMS = (PasswordAlgorithm.SHA256, PasswordAlgorithm.MD5)
"""What natkit can derive a long-term key with, the one it prefers first."""

MAX_USERNAME = 508
"""Octets; RFC 8489 section 14.3: "fewer than 509 bytes"."""


class Profile(Enum):
    """How a string is prepared before it becomes a key."""

    OPAQUE_STRING = "OpaqueString"
    """RFC 8265 section 4.2, for RFC 8489."""
    SASLPREP = "SASLprep"
    """RFC 4013, for RFC 5389."""

    def prepare(self, text: str) -> str:
        """Return the prepared text; raises :class:`stun.strings.StringError`."""
        return saslprep(text) if self is Profile.SASLPREP else opaque_string(text)


class Integrity(Enum):
    """Which attribute proves a message."""

    SHA1 = "MESSAGE-INTEGRITY"
    SHA256 = "MESSAGE-INTEGRITY-SHA256"


def stripped(text: str) -> str:
    """Take off "any quotes and trailing nulls" (RFC 8489 section 9.2.2)."""
    text = text.rstrip("\0")
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def long_term_key(
    username: str,
    realm: str,
    password: str,
    algorithm: int = PasswordAlgorithm.MD5,
    *,
    profile: Profile = Profile.OPAQUE_STRING,
) -> bytes:
    """Return the HMAC key of the long-term mechanism (RFC 8489 sections 9.2.2 and 18.5.1).

    16 octets for MD5, 32 for SHA-256.  All three strings are prepared with ``profile``, which
    leaves prepared strings as they are.  Raises :class:`stun.strings.StringError` when a string
    cannot be prepared, :class:`stun.errors.UsageError` for an algorithm that is not supported.
    """
    who, where = profile.prepare(stripped(username)), prepared_realm(realm, profile)
    return key_of_prepared(who, where, profile.prepare(password.rstrip("\0")), algorithm)


@lru_cache(64)
def prepared_realm(realm: str, profile: Profile) -> str:
    """Return a realm as it goes into keys; raises :class:`stun.strings.StringError`."""
    where = stripped(realm)
    # OpaqueString refuses the empty string; servers that were given no realm have one.
    return profile.prepare(where) if where else where


def key_of_prepared(username: str, realm: str, password: str, algorithm: int) -> bytes:
    """Return what :func:`long_term_key` does, of strings that are prepared and stripped."""
    text = f"{username}:{realm}:{password}".encode()
    if algorithm == PasswordAlgorithm.MD5:
        # The protocol's choice, not ours; it keys an HMAC.
        return hashlib.md5(text, usedforsecurity=False).digest()
    if algorithm == PasswordAlgorithm.SHA256:
        return hashlib.sha256(text).digest()
    raise UsageError(f"password algorithm {int(algorithm)} is not supported")


def short_term_key(password: str, *, profile: Profile = Profile.OPAQUE_STRING) -> bytes:
    """Return the HMAC key of the short-term mechanism: the prepared password (section 9.1.1)."""
    return profile.prepare(password).encode()


def userhash(username: str, realm: str) -> bytes:
    """Return the value of USERHASH, 32 octets (RFC 8489 section 14.4)."""
    where = stripped(realm)
    text = f"{opaque_string(stripped(username))}:{opaque_string(where) if where else where}"
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True, slots=True)
class ShortTerm:
    """A username and password for one session, known to both sides (RFC 8489 section 9.1).

    ``integrity``: the one attribute that both sides are known to understand; ``None`` sends both
    in the first request and keeps to what the answer has (sections 9.1.2 and 9.1.5).
    """

    username: str
    password: str = field(repr=False)
    integrity: Integrity | None = None
    profile: Profile = Profile.OPAQUE_STRING

    def __post_init__(self) -> None:
        check_username(self.username, self.profile)
        self.profile.prepare(self.password)

    @property
    def key(self) -> bytes:
        """The HMAC key."""
        return short_term_key(self.password, profile=self.profile)


@dataclass(frozen=True, slots=True)
class LongTerm:
    """A username and password that a server knows (RFC 8489 section 9.2).

    ``realm``: the only realm that may have them; ``None`` answers whichever realm the server
    names, as browsers do with TURN.  Raises :class:`stun.strings.StringError` when neither
    OpaqueString nor SASLprep allows the strings.
    """

    username: str
    password: str = field(repr=False)
    realm: str | None = None

    def __post_init__(self) -> None:
        try:
            check_username(self.username, Profile.OPAQUE_STRING)
            opaque_string(self.password)
        except StringError:
            check_username(self.username, Profile.SASLPREP)
            saslprep(self.password)

    def key(
        self,
        realm: str,
        algorithm: int = PasswordAlgorithm.MD5,
        *,
        profile: Profile = Profile.OPAQUE_STRING,
    ) -> bytes:
        """Return the HMAC key in ``realm``; see :func:`long_term_key`."""
        return long_term_key(self.username, realm, self.password, algorithm, profile=profile)


def check_username(username: str, profile: Profile) -> str:
    """Return the prepared username; :class:`stun.strings.StringError` when it cannot be sent."""
    prepared = profile.prepare(username)
    octets = len(prepared.encode())
    if octets > MAX_USERNAME:
        raise StringError(f"a username of {octets} octets is too long: {MAX_USERNAME} are allowed")
    return prepared


@dataclass(frozen=True, slots=True)
class ThirdParty:
    """An access token that an authorization server handed out (RFC 7635).

    ``kid``: the name of the key that the server opens the token with; it is sent as USERNAME.
    ``mac_key``: the session key, which proves requests and responses as it is.
    ``token``: the octets of ACCESS-TOKEN (what the web service gave, decoded from base64); "the
    client MUST NOT examine the token" (section 6.2).
    When it expires "the Application (OAuth client) MUST obtain a new token" (erratum 4826), and
    make new credentials of it.
    """

    kid: str
    mac_key: bytes = field(repr=False)
    token: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_username(self.kid, Profile.OPAQUE_STRING)
        if not self.mac_key or not self.token:
            raise UsageError("third-party credentials need a session key and a token")


COTURN_MAC_KEY = 16
"""Octets of a session key that coturn uses, up to 4.17 at least: it takes the key for one that is
an MD5 and leaves the rest out.  RFC 7635 section 5 uses all of it, which is tried first."""


class RestCredential(NamedTuple):
    """A time-limited username and its password."""

    username: str
    password: str


def rest_username(expires: int, user: str = "") -> str:
    """Return "expiry:user", or a bare "expiry"; ``expires`` is in seconds since 1970 (UTC)."""
    return f"{expires}:{user}" if user else str(expires)


def rest_password(secret: str | bytes, username: str) -> str:
    """Return the password of a time-limited TURN credential.

    base64(HMAC-SHA1(secret, username)), draft-uberti-behave-turn-rest-00 section 2.2: the web
    service and the relay share ``secret``, and the relay keeps no list of users.
    """
    key = secret.encode() if isinstance(secret, str) else secret
    return base64.b64encode(hmac.digest(key, username.encode(), "sha1")).decode()


def mint(secret: str | bytes, user: str, ttl: int, unix_time: int) -> RestCredential:
    """Make a time-limited credential for ``user`` (who may be ``""``), as a web service does.

    ``ttl``: for how many seconds from ``unix_time`` (seconds since 1970) on.  The user's name ends
    up in logs and is what quotas are counted for.  Raises :class:`stun.errors.UsageError`.
    """
    if not secret:
        raise UsageError("a time-limited credential needs the secret that it shares with the relay")
    if ttl < 1:
        raise UsageError(f"a credential that lives for {ttl} s has expired already")
    username = rest_username(unix_time + ttl, user)
    # A name that preparing would change is another one for the relay, with another password.
    if check_username(username, Profile.OPAQUE_STRING) != username or (
        Profile.SASLPREP.prepare(username) != username
    ):
        raise StringError(f"the user {user!r} would be written differently on the wire")
    return RestCredential(username, rest_password(secret, username))


def rest_credentials(secret: str | bytes, expires: int, user: str = "") -> LongTerm:
    """Make a credential that is valid until ``expires``, in seconds since 1970 (UTC)."""
    username = rest_username(expires, user)
    return LongTerm(username, rest_password(secret, username))


def rest_expiry(username: str) -> int | None:
    """Return when a time-limited credential ends, in seconds since 1970.

    The username is "expiry:user" or a bare "expiry"; ``None`` when it is neither.
    """
    digits = username.partition(":")[0]
    # More digits than that is no time, and int() of very many is slow.
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 15 else None
