"""The server's side of the long-term mechanism (RFC 8489 section 9.2.4).

:class:`Authenticator` keeps no state of its clients: nonces are checked by their MAC
(:mod:`stun.nonce`), so a flood of requests without credentials costs no memory.  It is asked for
each request::

    match authenticator.validate(request, source, now):
        case Accepted() as accepted:
            send(accepted.seal(response))
        case Rejected() as rejected:
            send(rejected.response(request))
        case Deferred() as deferred:
            ...  # ask whoever knows, fill the store, and validate the same request again

Users come from a :class:`stun.users.UserStore`.

What takes how long.  The keys of the users who proved themselves last are kept, so their next
request costs two HMACs: of its proof and of its nonce.  Only a proof that holds puts a key there,
so who has no credentials leaves nothing behind.  A proof that does not hold always pays for making
a key, whether the user is known, was seen before, or does not exist: the time that a refusal takes
tells nobody who is a user.

With ``tokens`` a client may come with an access token of RFC 7635 in the place of a password; see
:mod:`stun.oauth`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from stun.attributes import (
    ACCESS_TOKEN,
    ERROR_CODE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    THIRD_PARTY_AUTHORIZATION,
    UNKNOWN_ATTRIBUTES,
    USERHASH,
    USERNAME,
    Algorithm,
    ErrorValue,
)
from stun.codec import encode, encode_around, encode_attributes
from stun.credentials import COTURN_MAC_KEY, SUPPORTED_ALGORITHMS, Integrity
from stun.errors import DecodeError, StunError
from stun.integrity import check_integrity, check_integrity_sha256
from stun.mac import hmac_sha256
from stun.message import Message
from stun.nonce import COOKIE_LENGTH, NonceMaker, NonceState, nonce_cookie, parse_cookie
from stun.registry import Class, ErrorCode, PasswordAlgorithm, SecurityFeature
from stun.sansio import SECOND, Address, Instant
from stun.users import (
    AnyOf,
    Gap,
    Password,
    RestUsers,
    Secret,
    SharedSecret,
    StaticUsers,
    StoredKeys,
    UserStore,
)

if TYPE_CHECKING:
    # Not at run time: it loads the cryptography library, which most servers do without.
    from stun.oauth import Tokens

__all__ = [
    "Accepted",
    "AnyOf",
    "Authenticator",
    "Deferred",
    "Gap",
    "Outcome",
    "Password",
    "Rejected",
    "RestUsers",
    "Secret",
    "SharedSecret",
    "StaticUsers",
    "StoredKeys",
    "UserStore",
]

KEYS_KEPT = 4096
"""Of how many users, at most, an :class:`Authenticator` keeps the keys."""

_ACCESS_TOKEN = ACCESS_TOKEN.code
_ALGORITHM = PASSWORD_ALGORITHM.code
_ALGORITHMS = PASSWORD_ALGORITHMS.code
_MI = MESSAGE_INTEGRITY.code
_MI_SHA256 = MESSAGE_INTEGRITY_SHA256.code
_NONCE = NONCE.code
_REALM = REALM.code
_USERHASH = USERHASH.code
_USERNAME = USERNAME.code
_MD5 = PasswordAlgorithm.MD5
_SHA1_PROOF, _SHA256_PROOF = Integrity.SHA1, Integrity.SHA256
_UNAUTHENTICATED, _STALE_NONCE = ErrorCode.UNAUTHENTICATED, ErrorCode.STALE_NONCE


def _session_keys(mac_key: bytes) -> tuple[bytes, ...]:
    """Return what clients may prove a request with who have this session key."""
    if len(mac_key) <= COTURN_MAC_KEY:
        return (mac_key,)
    return mac_key, mac_key[:COTURN_MAC_KEY]


_Place: TypeAlias = tuple[str, PasswordAlgorithm, bool]
_Check: TypeAlias = Callable[[Message, bytes], bool | None]


@lru_cache(64)
def _has_algorithms(cookie: bytes) -> bool:
    """Whether a nonce that starts like this says that PASSWORD-ALGORITHMS was offered."""
    features = parse_cookie(cookie)
    return features is not None and SecurityFeature.PASSWORD_ALGORITHMS in features


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is authentic.  ``key`` seals the response.

    ``token``: names the access token that proved it; empty for a password.
    ``expires``: when that token ends, and with it whatever it was good for: "The lifetime provided
    by the TURN server in the Allocate and Refresh responses MUST be less than or equal to the
    lifetime of the token" (RFC 7635 section 9).
    ``person``: of a time-limited username what stands behind its time; empty for any other.
    """

    username: str
    key: bytes = field(repr=False)
    algorithm: PasswordAlgorithm
    integrity: Integrity
    token: str = ""
    expires: Instant | None = None
    person: str = ""

    @property
    def account(self) -> str:
        """Whom quotas are counted for.

        All clients of an authorization server have its key's name for a username, so with a token
        it is the username and the token.  Of a time-limited credential it is the person: a new one
        for the same person is no new allowance.
        """
        return f"{self.username} {self.token}" if self.token else self.person or self.username

    def may_use(self, username: str, session: Accepted | None) -> bool:
        """Whether whoever this is may go on with what ``username`` began.

        ``session``: as what that was last accepted, if it was with an access token.  "All requests
        after the initial Allocate must use the same username" (RFC 8656 section 5); but with tokens
        the username names a key, and "The client MUST use the new token to refresh existing
        allocations" (RFC 7635 section 9), which may be one of the authorization server's next key.
        """
        both = bool(self.token) and session is not None and bool(session.token)
        return self.username == username or both

    def seal(self, response: Message, *, fingerprint: bool = False) -> bytes:
        """Return the response's octets with the proof that the client expects."""
        if self.integrity is Integrity.SHA256:
            return encode(response, sha256_key=self.key, fingerprint=fingerprint)
        return encode(response, key=self.key, fingerprint=fingerprint)


def _error_octets(code: int, reason: str) -> bytes:
    if not reason:
        # ERROR-CODE puts in a phrase where there is none; here its absence is what is wanted.
        return bytes((0, 0, *divmod(code, 100)))
    return ERROR_CODE.to_octets(ErrorValue(code, reason))


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request is answered with this error.

    ``attributes``: (type, octets) that the response has beside ERROR-CODE.
    """

    code: ErrorCode
    reason: str
    attributes: tuple[tuple[int, bytes], ...] = ()
    detail: str = field(default="", compare=False)
    """For the server's log, never for the client."""

    def response(self, request: Message) -> Message:
        """Make the error response."""
        number = (ERROR_CODE.code, _error_octets(self.code, self.reason))
        return Message(
            request.method,
            Class.ERROR,
            request.transaction_id,
            [number, *self.attributes],
            request.cookie,
        )


@dataclass(frozen=True, slots=True)
class Deferred:
    """The store must ask; when it has been filled, the same request is validated again.

    ``userhash`` is set, and ``username`` empty, where only the hash is known.
    """

    username: str
    userhash: bytes | None = None


Outcome: TypeAlias = Accepted | Rejected | Deferred


class Authenticator:
    """Decides about requests by section 9.2.4, in its order.

    ``algorithms``: what PASSWORD-ALGORITHMS offers, in the server's order; empty for a server that
    speaks like RFC 5389 (no cookie, MD5 and SHA-1 only), with the shortest challenge.
    ``anonymous``: ask for USERHASH instead of USERNAME; the users must be known by name.
    ``reason``: the reason phrase; ``""`` leaves it out, for a 401 that gives nothing to amplify
    (see :attr:`challenge_size`); ``None`` for the registry's.
    ``unix_epoch``: seconds since 1970 at Instant 0 of the driver's clock, with which every server
    of a fleet reads the same time; :meth:`set_clock` corrects it later.
    ``tokens``: take access tokens (RFC 7635), too.
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
        tokens: Tokens | None = None,
    ) -> None:
        self._realm = realm
        self._users = users
        self._nonces = nonces
        self._reason = reason
        self._epoch = unix_epoch
        self._tokens = tokens
        self._offered = tuple(Algorithm(int(number)) for number in algorithms)
        features = set()
        if self._offered:
            features.add(SecurityFeature.PASSWORD_ALGORITHMS)
        if anonymous:
            features.add(SecurityFeature.USERNAME_ANONYMITY)
        self._cookie = nonce_cookie(features)
        unused = bytes(12)
        self._realm_octets = (REALM.code, REALM.pack(realm, unused))
        self._offer_octets = PASSWORD_ALGORITHMS.pack(self._offered, unused)
        # As nearly all clients write what they chose, so that it need not be taken apart.
        self._choices = {
            PASSWORD_ALGORITHM.pack(one, unused): PasswordAlgorithm.make(one.number)
            for one in self._offered
        }
        after_nonce = []
        if self._offered:
            after_nonce.append((_ALGORITHMS, self._offer_octets))
        self._after_nonce = tuple(after_nonce)
        if tokens is not None:
            server = THIRD_PARTY_AUTHORIZATION.pack(tokens.server_name, unused)
            after_nonce.append((THIRD_PARTY_AUTHORIZATION.code, server))
        self._after_first_nonce = tuple(after_nonce)
        number = (ERROR_CODE.code, _error_octets(_UNAUTHENTICATED, self._phrase(_UNAUTHENTICATED)))
        self._before_nonce = encode_attributes([number, self._realm_octets])
        self._behind_nonce = encode_attributes(after_nonce)
        # What a request of an unknown user is measured against, so that it takes as long.
        self._decoy_key = hmac_sha256(nonces.secrets[0], b"no such user")
        self._decoy = Password(self._decoy_key.hex())
        self._proven: OrderedDict[_Place, tuple[Secret, Accepted]] = OrderedDict()

    @property
    def realm(self) -> str:
        """The realm."""
        return self._realm

    @property
    def challenge_size(self) -> int:
        """Octets of a 401 to a request without credentials, before any SOFTWARE or FINGERPRINT.

        With no reason phrase and PASSWORD-ALGORITHMS 76 and the realm, padded to four octets; with
        access tokens 4 and the server's name, padded, in addition.
        """
        rejected = self.challenge(Address("0.0.0.0", 0), 0)  # noqa: S104  (bound to nothing)
        return len(encode(rejected.response(Message.request(0, bytes(12)))))

    def set_clock(self, unix_time: int, now: Instant) -> None:
        """Say what time it is: seconds since 1970 at ``now``."""
        self._epoch = unix_time - now // SECOND

    def _unix_time(self, now: Instant) -> int:
        return self._epoch + now // SECOND

    def challenge(
        self,
        source: Address,
        now: Instant,
        code: ErrorCode = ErrorCode.UNAUTHENTICATED,
        detail: str = "",
    ) -> Rejected:
        """Return the 401 or 438 that hands ``source`` a fresh nonce."""
        nonce = self._nonces.make_with(self._cookie, source, self._unix_time(now))
        # RFC 7635 section 3 has THIRD-PARTY-AUTHORIZATION in a 401; who gets a 438 has chosen.
        rest = self._after_nonce if code is _STALE_NONCE else self._after_first_nonce
        attributes = (self._realm_octets, (_NONCE, nonce), *rest)
        phrase = self._phrase(code) if self._reason is None else self._reason
        return Rejected(code, phrase, attributes, detail)

    def answer_stranger(
        self, request: Message, source: Address, now: Instant, *, fingerprint: bool = False
    ) -> bytes:
        """Return the octets of the :meth:`challenge` to a request without credentials.

        It is what a server under load sends most, and only the nonce differs.
        """
        nonce = self._nonces.make_with(self._cookie, source, self._unix_time(now))
        attributes = self._before_nonce + encode_attributes([(_NONCE, nonce)]) + self._behind_nonce
        return encode_around(request, Class.ERROR, attributes, fingerprint=fingerprint)

    def _phrase(self, code: ErrorCode) -> str:
        return code.label if self._reason is None else self._reason

    def _bad_request(self, detail: str) -> Rejected:
        code = ErrorCode.BAD_REQUEST
        return Rejected(code, self._phrase(code), detail=detail)

    def validate(
        self, request: Message, source: Address, now: Instant, session: Accepted | None = None
    ) -> Outcome:
        """Decide about a received request (``request.wire`` is what the proof covers).

        ``session``: as what the client's allocation was last accepted, if it has one.  Clients
        send their token "only in Allocate and Refresh requests" (RFC 7635 section 9): what lies
        between them is proved with the key of that one.

        Never raises on what the request holds.
        """
        try:
            return self._validate(request, source, now, session)
        except DecodeError as error:
            return self._bad_request(str(error))

    def _validate(
        self, request: Message, source: Address, now: Instant, session: Accepted | None
    ) -> Outcome:
        # "only the first occurrence needs to be processed" (section 14), so it is put in last.
        found = dict(reversed(request.attributes))
        sha256 = _MI_SHA256 in found
        if not sha256 and _MI not in found:
            return self.challenge(source, now)
        named, nonce = found.get(_USERNAME), found.get(_NONCE)
        if (named is None and _USERHASH not in found) or nonce is None or _REALM not in found:
            return self._bad_request("USERNAME or USERHASH, REALM or NONCE is missing")
        algorithm, modern = _MD5, False
        if _has_algorithms(nonce[:COOKIE_LENGTH]):
            echoed, number = found.get(_ALGORITHMS), self._choices.get(found.get(_ALGORITHM, b""))
            if number is not None and echoed == self._offer_octets:
                algorithm, modern = number, True
            elif echoed is not None or _ALGORITHM in found:
                chosen = request.get(PASSWORD_ALGORITHM)
                listed = request.get(PASSWORD_ALGORITHMS)
                # "PASSWORD-ALGORITHMS matches the value sent in the response that sent this
                # NONCE": whoever took an algorithm out of our offer shows here.
                if listed != self._offered or chosen not in self._offered:
                    return self._bad_request("PASSWORD-ALGORITHMS is not what was offered")
                algorithm, modern = PasswordAlgorithm.make(chosen.number), True
        check = check_integrity_sha256 if sha256 else check_integrity
        unix_time = self._unix_time(now)
        name: str | Gap | None
        proven: Accepted | Gap | None
        # "the MESSAGE-INTEGRITY-SHA256 attribute [...] unless the request was processed as though
        # PASSWORD-ALGORITHM was MD5 (because the request contained neither)".
        integrity = _SHA256_PROOF if modern else _SHA1_PROOF
        detail = "no such user, or another password"
        if named is not None:
            name = USERNAME.from_octets(named)
        else:
            hashed = USERHASH.from_octets(found[_USERHASH])
            name = self._users.by_userhash(hashed, unix_time)
        if _ACCESS_TOKEN in found:
            if self._tokens is None:
                return self._unexpected_token(request)
            if not isinstance(name, str):
                return self._bad_request("an access token needs USERNAME, the name of its key")
            try:
                grant = self._tokens.redeem(name, found[_ACCESS_TOKEN], unix_time)
            except StunError as refused:
                return self.challenge(source, now, detail=str(refused))
            key = next((k for k in _session_keys(grant.mac_key) if check(request, k)), b"")
            expires = now + (grant.expires - unix_time) * SECOND
            proven = Accepted(name, key, algorithm, integrity, grant.name, expires) if key else None
            detail = "the proof was not made with the key of its access token"
        elif session is not None and session.token and session.username == name:
            if session.expires is not None and session.expires <= now:
                return self.challenge(source, now, detail="the access token has expired")
            proven = None
            if check(request, session.key):
                proven = replace(session, algorithm=algorithm, integrity=integrity)
            detail = "the proof was not made with the key of the last access token"
        elif isinstance(name, Gap):
            proven = name
        else:
            proven = self._find(request, check, name, (algorithm, modern), unix_time)
        if proven is None:
            return self.challenge(source, now, detail=detail)
        if self._nonces.check(nonce, source, unix_time) is not NonceState.VALID:
            return self.challenge(source, now, _STALE_NONCE)
        if isinstance(proven, Gap):
            # Only here, behind the nonce: who has one of ours is really at its address, so nobody
            # can have the database asked in a stranger's name.
            return self._unanswered(proven, name, found)
        return proven

    def _find(
        self,
        request: Message,
        check: _Check,
        name: str | None,
        kind: tuple[PasswordAlgorithm, bool],
        unix_time: int,
    ) -> Accepted | Gap | None:
        """Return as what the request was proved, if the key is one of the user's."""
        algorithm, modern = kind
        secrets = () if name is None else self._users.secrets(name, unix_time)
        name = name or ""
        place = (name, algorithm, modern)
        known = self._proven.get(place)
        tried: list[bytes] = []
        # The store was asked first: whose password was changed is not let in by an old key.
        if known is not None and known[0] in secrets:
            if check(request, known[1].key):
                self._proven.move_to_end(place)
                return known[1]
            tried.append(known[1].key)
        gap = None
        derived = False
        for secret in secrets:
            if isinstance(secret, Gap):
                gap = secret if gap is None else Gap.NOT_YET
                continue
            for key in secret.keys(name, self._realm, algorithm, modern=modern):
                if key in tried:
                    continue
                if check(request, key):
                    return self._keep(place, secret, key)
                tried.append(key)
            derived = derived or not isinstance(secret, StoredKeys)
        # As long as for a user who has a password, which may give two keys.
        if not derived:
            self._decoy.keys(name or "?", self._realm, algorithm, modern=modern)
        for _ in range(len(tried), 2):
            check(request, self._decoy_key)
        return gap

    def _keep(self, place: _Place, secret: Secret, key: bytes) -> Accepted:
        name, algorithm, modern = place
        integrity = _SHA256_PROOF if modern else _SHA1_PROOF
        person = name.partition(":")[2] if isinstance(secret, SharedSecret) else ""
        accepted = Accepted(name, key, algorithm, integrity, person=person)
        self._proven[place] = (secret, accepted)
        self._proven.move_to_end(place)
        if len(self._proven) > KEYS_KEPT:
            self._proven.popitem(last=False)
        return accepted

    def _unanswered(self, gap: Gap, name: str | Gap | None, found: dict[int, bytes]) -> Outcome:
        if gap is Gap.NOT_YET:
            return Deferred(name) if isinstance(name, str) else Deferred("", found[_USERHASH])
        # "The server has suffered a temporary error.  The client should try again."
        code = ErrorCode.SERVER_ERROR
        return Rejected(code, self._phrase(code), detail="the users' database is out of reach")

    def _unexpected_token(self, request: Message) -> Rejected:
        # RFC 7635 section 7: without THIRD-PARTY-AUTHORIZATION in a challenge "it will respond with
        # an error code of 420 (Unknown Attribute)".
        code = ErrorCode.UNKNOWN_ATTRIBUTE
        listed = UNKNOWN_ATTRIBUTES.pack((_ACCESS_TOKEN,), request.transaction_id)
        attributes = ((UNKNOWN_ATTRIBUTES.code, listed),)
        return Rejected(code, self._phrase(code), attributes, "access tokens are not taken here")
