"""The server's side of the long-term mechanism (RFC 8489 section 9.2.4).

:class:`Authenticator` keeps no state of its clients: nonces are checked by their MAC
(:mod:`stun.nonce`), so a flood of requests without credentials costs no memory.  It is asked for
each request::

    outcome = authenticator.validate(request, source, now)
    if isinstance(outcome, Rejected):
        send(outcome.response(request))
    else:
        send(outcome.seal(response))

Users come from a :class:`UserStore`: a table (:class:`StaticUsers`), time-limited credentials that
a web service hands out (:class:`RestUsers`), several of them (:class:`AnyOf`), or one's own.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from stun.attributes import (
    ERROR_CODE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    USERHASH,
    USERNAME,
    Algorithm,
)
from stun.codec import encode
from stun.credentials import (
    SUPPORTED_ALGORITHMS,
    Integrity,
    Profile,
    long_term_key,
    rest_expiry,
    rest_password,
    userhash,
)
from stun.errors import DecodeError, UsageError
from stun.integrity import check_integrity, check_integrity_sha256
from stun.message import Message
from stun.nonce import NonceMaker, NonceState, parse_cookie
from stun.registry import ErrorCode, PasswordAlgorithm, SecurityFeature
from stun.sansio import SECOND, Address, Instant
from stun.strings import StringError


@dataclass(frozen=True, slots=True)
class Password:
    """A user's password in plain text: any key can be made from it."""

    text: str = field(repr=False)

    def keys(self, username: str, realm: str, algorithm: int, *, modern: bool) -> list[bytes]:
        """Return the keys that the client may have derived.

        ``modern``: it announced itself as RFC 8489, so it used OpaqueString; otherwise it may have
        used SASLprep as well.
        """
        profiles = (Profile.OPAQUE_STRING,) if modern else tuple(Profile)
        keys: list[bytes] = []
        for profile in profiles:
            try:
                key = long_term_key(username, realm, self.text, algorithm, profile=profile)
            except StringError:
                continue
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


Secret: TypeAlias = Password | StoredKeys


class UserStore(Protocol):
    """Where the users are.  Both methods are asked for each request, so they must not block."""

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret]:
        """Return what ``username`` may have proved itself with; empty when there is no such user.

        ``unix_time``: seconds since 1970.
        """
        ...

    def by_userhash(self, value: bytes) -> str | None:
        """Return the username whose USERHASH this is."""
        ...


class StaticUsers:
    """A table of users, for one realm.  Values are passwords or :class:`StoredKeys`."""

    __slots__ = ("_by_hash", "_secrets")

    def __init__(self, users: Mapping[str, str | StoredKeys], realm: str) -> None:
        self._secrets: dict[str, Secret] = {}
        self._by_hash: dict[bytes, str] = {}
        for name, value in users.items():
            # Clients of RFC 8489 and of RFC 5389 may write the same name differently.
            for profile in Profile:
                try:
                    prepared = profile.prepare(name)
                except StringError:
                    continue
                self._secrets[prepared] = Password(value) if isinstance(value, str) else value
            try:
                self._by_hash[userhash(name, realm)] = Profile.OPAQUE_STRING.prepare(name)
            except StringError:
                continue

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret]:
        """Return the user's password or keys."""
        del unix_time
        secret = self._secrets.get(username)
        return () if secret is None else (secret,)

    def by_userhash(self, value: bytes) -> str | None:
        """Return the username whose USERHASH this is."""
        return self._by_hash.get(value)


class RestUsers:
    """Time-limited credentials (draft-uberti-behave-turn-rest-00): secrets instead of users.

    Several secrets allow one to be replaced while credentials made with it are still out.  Their
    users cannot be found by USERHASH, since there is no list of them.
    """

    __slots__ = ("_keys",)

    def __init__(self, secrets: Sequence[str | bytes]) -> None:
        if not secrets:
            raise UsageError("time-limited credentials need a secret")
        self._keys = tuple(secrets)

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret]:
        """Return the password for each secret, nothing once the time in the username is over."""
        expires = rest_expiry(username)
        if expires is None or expires < unix_time:
            return ()
        return [Password(rest_password(key, username)) for key in self._keys]

    def by_userhash(self, value: bytes) -> None:
        """Return ``None``: a hash does not lead back to a name that is not on a list."""
        del value


class AnyOf:
    """Users of several stores; whichever knows the name."""

    __slots__ = ("_stores",)

    def __init__(self, *stores: UserStore) -> None:
        self._stores = stores

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret]:
        """Return what any of the stores has."""
        return [secret for store in self._stores for secret in store.secrets(username, unix_time)]

    def by_userhash(self, value: bytes) -> str | None:
        """Return the username from the first store that knows the hash."""
        found = (store.by_userhash(value) for store in self._stores)
        return next((name for name in found if name is not None), None)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is authentic.  ``key`` seals the response."""

    username: str
    key: bytes = field(repr=False)
    algorithm: PasswordAlgorithm
    integrity: Integrity

    def seal(self, response: Message, *, fingerprint: bool = False) -> bytes:
        """Return the response's octets with the proof that the client expects."""
        if self.integrity is Integrity.SHA256:
            return encode(response, sha256_key=self.key, fingerprint=fingerprint)
        return encode(response, key=self.key, fingerprint=fingerprint)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request is answered with this error.

    ``attributes``: (type, octets) that the response has beside ERROR-CODE.
    """

    code: ErrorCode
    reason: str
    attributes: tuple[tuple[int, bytes], ...] = ()
    detail: str = ""
    """For the server's log, never for the client."""

    def response(self, request: Message) -> Message:
        """Make the error response."""
        response = Message.error(request, self.code, self.reason)
        if not self.reason:
            # Attributes put in a phrase where there is none; here its absence is what is wanted.
            response.attributes = [(ERROR_CODE.code, bytes((0, 0, *divmod(self.code, 100))))]
        response.attributes.extend(self.attributes)
        return response


class Authenticator:
    """Decides about requests by section 9.2.4, in its order.

    ``algorithms``: what PASSWORD-ALGORITHMS offers, in the server's order; empty for a server that
    speaks like RFC 5389 (no cookie, MD5 and SHA-1 only), with the shortest challenge.
    ``anonymous``: ask for USERHASH instead of USERNAME; the users must be known by name.
    ``reason``: the reason phrase; ``""`` leaves it out, for a 401 that gives nothing to amplify
    (84 octets with a realm of 16 and no algorithms); ``None`` for the registry's.
    ``unix_epoch``: seconds since 1970 at Instant 0 of the driver's clock, with which every server
    of a fleet reads the same time; :meth:`set_clock` corrects it later.
    """

    def __init__(
        self,
        realm: str,
        users: UserStore,
        nonces: NonceMaker,
        *,
        algorithms: Sequence[PasswordAlgorithm] = SUPPORTED_ALGORITHMS,
        anonymous: bool = False,
        reason: str | None = None,
        unix_epoch: int = 0,
    ) -> None:
        self._realm = realm
        self._users = users
        self._nonces = nonces
        self._reason = reason
        self._epoch = unix_epoch
        self._offered = tuple(Algorithm(int(number)) for number in algorithms)
        features = set()
        if self._offered:
            features.add(SecurityFeature.PASSWORD_ALGORITHMS)
        if anonymous:
            features.add(SecurityFeature.USERNAME_ANONYMITY)
        self._features = frozenset(features)
        unused = bytes(12)
        self._realm_octets = REALM.pack(realm, unused)
        self._offer_octets = PASSWORD_ALGORITHMS.pack(self._offered, unused)
        # What a request of an unknown user is measured against, so that it takes as long.
        self._no_key = hmac.digest(nonces.secrets[0], b"no such user", "sha256")

    @property
    def realm(self) -> str:
        """The realm."""
        return self._realm

    def set_clock(self, unix_time: int, now: Instant) -> None:
        """Say what time it is: seconds since 1970 at ``now``."""
        self._epoch = unix_time - now // SECOND

    def _unix_time(self, now: Instant) -> int:
        return self._epoch + now // SECOND

    def challenge(
        self, source: Address, now: Instant, code: ErrorCode = ErrorCode.UNAUTHENTICATED
    ) -> Rejected:
        """Return the 401 or 438 that hands ``source`` a fresh nonce."""
        nonce = self._nonces.make(source, self._unix_time(now), self._features)
        attributes = [(REALM.code, self._realm_octets), (NONCE.code, nonce)]
        if self._offered:
            attributes.append((PASSWORD_ALGORITHMS.code, self._offer_octets))
        return Rejected(code, self._phrase(code), tuple(attributes))

    def _phrase(self, code: ErrorCode) -> str:
        return code.label if self._reason is None else self._reason

    def _bad_request(self, detail: str) -> Rejected:
        code = ErrorCode.BAD_REQUEST
        return Rejected(code, self._phrase(code), detail=detail)

    def validate(self, request: Message, source: Address, now: Instant) -> Accepted | Rejected:
        """Decide about a received request (``request.wire`` is what the proof covers).

        Never raises on what the request holds.
        """
        try:
            return self._validate(request, source, now)
        except DecodeError as error:
            return self._bad_request(str(error))

    def _validate(self, request: Message, source: Address, now: Instant) -> Accepted | Rejected:
        sha256 = request.has(MESSAGE_INTEGRITY_SHA256)
        if not sha256 and not request.has(MESSAGE_INTEGRITY):
            return self.challenge(source, now)
        name = request.get(USERNAME)
        hashed = request.get(USERHASH)
        nonce = request.get(NONCE)
        if (name is None and hashed is None) or nonce is None or not request.has(REALM):
            return self._bad_request("USERNAME or USERHASH, REALM or NONCE is missing")
        algorithm, modern = PasswordAlgorithm.MD5, False
        features = parse_cookie(nonce) or frozenset()
        if SecurityFeature.PASSWORD_ALGORITHMS in features:
            chosen = request.get(PASSWORD_ALGORITHM)
            listed = request.get(PASSWORD_ALGORITHMS)
            if chosen is not None or listed is not None:
                # "PASSWORD-ALGORITHMS matches the value sent in the response that sent this
                # NONCE": whoever took an algorithm out of our offer shows here.
                if listed != self._offered or chosen not in self._offered:
                    return self._bad_request("PASSWORD-ALGORITHMS is not what was offered")
                algorithm, modern = PasswordAlgorithm.make(chosen.number), True
        unix_time = self._unix_time(now)
        if name is None and hashed is not None:
            name = self._users.by_userhash(hashed)
        candidates: list[bytes] = []
        if name is not None:
            for secret in self._users.secrets(name, unix_time):
                candidates += secret.keys(name, self._realm, algorithm, modern=modern)
        check = check_integrity_sha256 if sha256 else check_integrity
        key = next((key for key in candidates or [self._no_key] if check(request, key)), None)
        if key is None or name is None or not candidates:
            return self.challenge(source, now)
        if self._nonces.check(nonce, source, unix_time) is not NonceState.VALID:
            return self.challenge(source, now, ErrorCode.STALE_NONCE)
        # "the MESSAGE-INTEGRITY-SHA256 attribute [...] unless the request was processed as though
        # PASSWORD-ALGORITHM was MD5 (because the request contained neither)".
        integrity = Integrity.SHA256 if modern else Integrity.SHA1
        return Accepted(name, key, algorithm, integrity)
