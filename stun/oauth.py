"""Access tokens that a third party hands out, and the keys that open them (RFC 7635).

A web service (the *authorization server*) lets a client use a relay that does not know the client.
It shares a long-term key with the relay, named by a *kid*; it makes a session key, locks it up in a
token together with the time, and gives both to the client.  The client sends the token
(ACCESS-TOKEN) under the name of the long-term key (USERNAME) and proves its requests with the
session key; the relay opens the token and finds the session key in it.  Nobody is asked, and
nothing is stored.

A token (section 6.2) is::

    nonce length: 2 octets | nonce | AEAD( key length: 2 | mac_key | timestamp: 8 | lifetime: 4 )

with the server's name as associated data, so that a token for one server is of no use to another
that has the same long-term key.  Of the algorithms natkit has AEAD_AES_256_GCM, which every server
must have, and AEAD_AES_128_GCM; RFC 5116 makes the nonce of both 12 octets.

What the norm leaves open.  The long-term key may be longer than the algorithm's: the examples of
appendix A use its first octets, and so does coturn, and natkit.  Erratum 5059: a session key may
have any length, though section 6.2 speaks of 160 bits.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from stun.attributes import ACCESS_TOKEN, AccessToken
from stun.errors import DecodeError, DropReason, StunError, UsageError

NONCE_LENGTH = 12
"""Octets; RFC 5116 sections 5.1 and 5.2."""

DELTA = 5
"""Seconds that clocks may differ: "The RECOMMENDED value for the allowed Delta is 5 seconds"."""

_TICKS = 64000
"""In a second: the lower 16 bits of a timestamp "indicate the number of 1/64000 fractions"."""

_KEY_LENGTH = struct.Struct("!H")
_TIMES = struct.Struct("!QI")


class TokenAlgorithm(StrEnum):
    """How tokens are locked, by the names of RFC 7518 section 5.1 ("enc" of RFC 7635 4.1.1)."""

    AES_256_GCM = "A256GCM"
    AES_128_GCM = "A128GCM"

    @property
    def key_length(self) -> int:
        """Octets of its key."""
        return 32 if self is TokenAlgorithm.AES_256_GCM else 16

    @classmethod
    def named(cls, name: str) -> TokenAlgorithm:
        """Return the algorithm of this name: "A256GCM", "AEAD_AES_256_GCM", "AEAD-AES-256-GCM"."""
        plain = name.upper().replace("-", "_")
        for algorithm in cls:
            if plain in (algorithm.value, f"AEAD_{algorithm.name}"):
                return algorithm
        known = ", ".join(cls)
        raise UsageError(f"tokens cannot be encrypted with {name!r}: known are {known}")


class TokenRefused(StunError):
    """An access token that opens nothing; the text says why."""


class Contents(NamedTuple):
    """What a token holds for the server."""

    mac_key: bytes
    """The session key, which requests and responses are proved with."""
    timestamp: int
    """When it was made: 48 bits of seconds since 1970 and 16 bits of 1/64000 s."""
    lifetime: int
    """In seconds."""

    @property
    def issued(self) -> float:
        """When it was made, in seconds since 1970."""
        return (self.timestamp >> 16) + (self.timestamp & 0xFFFF) / _TICKS

    def to_octets(self) -> bytes:
        """Return the block that is encrypted."""
        try:
            head = _KEY_LENGTH.pack(len(self.mac_key))
            return head + self.mac_key + _TIMES.pack(self.timestamp, self.lifetime)
        except struct.error:
            raise UsageError("a timestamp has 64 bits, a lifetime 32, a key 65535 octets") from None

    @classmethod
    def from_octets(cls, block: bytes) -> Contents:
        """Return what a decrypted block means; raises :class:`stun.errors.DecodeError`."""
        if len(block) >= _KEY_LENGTH.size:
            end = _KEY_LENGTH.size + _KEY_LENGTH.unpack_from(block)[0]
            if len(block) == end + _TIMES.size:
                return cls(block[_KEY_LENGTH.size : end], *_TIMES.unpack_from(block, end))
        raise DecodeError(
            DropReason.BAD_ATTRIBUTE_VALUE, 0, f"ACCESS-TOKEN: a block of {len(block)} octets"
        )


def timestamp_of(unix_time: float) -> int:
    """Return a time, in seconds since 1970, as a token writes it."""
    seconds = int(unix_time)
    return seconds << 16 | int((unix_time - seconds) * _TICKS)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A long-term key that authorization server and relay share (section 4.1).

    ``kid``: its name, which clients send as USERNAME.
    ``key``: at least as long as the algorithm's; its first octets are used.
    ``valid_from``, ``valid_until``: in seconds since 1970; ``None`` for no end.  Tokens that were
    made under a key end with it.
    """

    kid: str
    key: bytes = field(repr=False)
    algorithm: TokenAlgorithm = TokenAlgorithm.AES_256_GCM
    valid_from: int = 0
    valid_until: int | None = None
    _cipher: AESGCM = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.kid:
            raise UsageError("a key of access tokens needs a name (kid)")
        wanted = self.algorithm.key_length
        if len(self.key) < wanted:
            raise UsageError(
                f"the key {self.kid!r} has {len(self.key)} octets: {self.algorithm} needs {wanted}"
            )
        if self.valid_until is not None and self.valid_until <= self.valid_from:
            raise UsageError(f"the key {self.kid!r} ends before it begins")
        object.__setattr__(self, "_cipher", AESGCM(self.key[:wanted]))

    @classmethod
    def from_base64(
        cls,
        kid: str,
        key: str,
        algorithm: str = TokenAlgorithm.AES_256_GCM,
        *,
        timestamp: int = 0,
        lifetime: int = 0,
    ) -> TokenKey:
        """Make a key of what configurations and coturn's ``oauth_key`` table have.

        ``key``: in base64.  ``timestamp``: seconds since 1970; ``lifetime``: seconds from then on,
        0 for no end.  Raises :class:`stun.errors.UsageError`.
        """
        try:
            octets = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            raise UsageError(f"the key {kid!r} is not base64") from None
        until = timestamp + lifetime if lifetime else None
        return cls(kid, octets, TokenAlgorithm.named(algorithm), timestamp, until)

    def seal(self, contents: Contents, server_name: str, nonce: bytes) -> bytes:
        """Make the octets of ACCESS-TOKEN, as the authorization server does.

        ``nonce``: 12 octets; RFC 5116 section 3: never the same twice under one key.
        """
        if len(nonce) != NONCE_LENGTH:
            raise UsageError(f"a nonce of {len(nonce)} octets: {self.algorithm} needs 12")
        block = self._cipher.encrypt(nonce, contents.to_octets(), server_name.encode())
        return ACCESS_TOKEN.to_octets(AccessToken(nonce, block))

    def open(self, token: bytes, server_name: str) -> Contents:
        """Return what ACCESS-TOKEN holds; raises :class:`TokenRefused` when it was not made for us.

        Says nothing about time: see :meth:`Tokens.redeem`.
        """
        try:
            nonce, block = ACCESS_TOKEN.from_octets(token)
            if len(nonce) != NONCE_LENGTH:
                raise TokenRefused(f"a nonce of {len(nonce)} octets, not {NONCE_LENGTH}")
            return Contents.from_octets(self._cipher.decrypt(nonce, block, server_name.encode()))
        except InvalidTag:
            raise TokenRefused(
                f"not made with the key {self.kid!r} for the server {server_name!r}"
            ) from None
        except DecodeError as error:
            raise TokenRefused(str(error)) from None


class Grant(NamedTuple):
    """What a token that is good gives its bearer."""

    mac_key: bytes
    expires: int
    """In seconds since 1970, Delta included."""
    name: str
    """Twelve characters that tell tokens apart, of which the token cannot be made."""


class Tokens:
    """The keys whose tokens a server takes, by their names.

    ``server_name``: what THIRD-PARTY-AUTHORIZATION says, and what tokens must have been made for.
    """

    __slots__ = ("_keys", "server_name")

    def __init__(self, server_name: str, keys: Iterable[TokenKey]) -> None:
        if not server_name:
            raise UsageError("access tokens are made for a server: it needs a name")
        self.server_name = server_name
        self._keys: dict[str, TokenKey] = {}
        for key in keys:
            if key.kid in self._keys:
                raise UsageError(f"two keys of access tokens have the name {key.kid!r}")
            self._keys[key.kid] = key
        if not self._keys:
            raise UsageError("access tokens need a key")

    def redeem(self, kid: str, token: bytes, unix_time: int) -> Grant:
        """Open a token as section 7 says; raises :class:`TokenRefused`.

        ``unix_time``: seconds since 1970.
        """
        key = self._keys.get(kid)
        if key is None:
            raise TokenRefused(f"no key of access tokens has the name {kid!r}")
        if unix_time < key.valid_from or (
            key.valid_until is not None and unix_time >= key.valid_until
        ):
            raise TokenRefused(f"the key {kid!r} is not valid now")
        contents = key.open(token, self.server_name)
        # "lifetime + Delta > abs(RDnew - TS)", which lets in tokens from the future as far as old
        # ones; so it stands in the norm, and a server whose clock is slow depends on it.
        left = contents.lifetime + DELTA - abs(unix_time - contents.issued)
        if left <= 0:
            made = f"made at {contents.issued:.0f} for {contents.lifetime} s"
            raise TokenRefused(f"the token was {made}, and now it is {unix_time}")
        if not contents.mac_key:
            raise TokenRefused("the token has no session key")
        # "It is RECOMMENDED that the TURN server calculate the maximum allowed lifetime value using
        # the formula: lifetime + Delta - abs(RDnew - TS)".
        expires = unix_time + int(left)
        if key.valid_until is not None:
            expires = min(expires, key.valid_until)
        return Grant(contents.mac_key, expires, hashlib.sha256(token).hexdigest()[:12])
