"""The client's side of authentication: dressing requests, judging responses (RFC 8489 section 9).

Theory of operation.  Each request that has credentials gets a *guard*.  It dresses the request
(adds the attributes and the proof) and judges each response with one of four verdicts::

    Accept    it counts
    Discard   "as if it had never been received": the transaction goes on
    Retry     send the request anew, dressed again, as a new transaction
    Refuse    the transaction has failed, and this is why

A guard knows neither sockets nor time.  What outlives a request (realm, nonce and algorithm of a
server) is kept in :class:`Sessions`, by server and credential, so that the next request to the same
server needs no challenge.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from stun.attributes import (
    ACCESS_TOKEN,
    BY_CODE,
    ERROR_CODE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    THIRD_PARTY_AUTHORIZATION,
    USERHASH,
    USERNAME,
    Algorithm,
    Attribute,
)
from stun.attributes.address import XorAddress
from stun.codec import encode
from stun.credentials import (
    COTURN_MAC_KEY,
    Integrity,
    LongTerm,
    Profile,
    ShortTerm,
    ThirdParty,
    check_username,
    userhash,
)
from stun.errors import DecodeError, DropReason, ErrorResponse, TransactionError
from stun.integrity import check_integrity, check_integrity_sha256
from stun.message import Message
from stun.nonce import parse_cookie
from stun.registry import ErrorCode, Method, PasswordAlgorithm, SecurityFeature
from stun.strings import StringError

Credentials: TypeAlias = ShortTerm | LongTerm | ThirdParty

_WITHOUT_TOKEN = frozenset(
    {
        Method.CREATE_PERMISSION,
        Method.CHANNEL_BIND,
        Method.CONNECT,
        Method.CONNECTION_BIND,
    }
)
"""RFC 7635 section 9: "The TURN client MUST include the ACCESS-TOKEN attribute only in Allocate and
Refresh requests"; beside those of TURN only Binding has a use for it."""

MAX_CHALLENGES = 4
"""Challenges that one request answers before it gives up: one for the realm and three stale nonces.
A server that declares each fresh nonce stale would otherwise keep a client busy for ever."""


class IntegrityViolated(TransactionError):
    """Responses came, but none could prove itself (RFC 8489 sections 9.1.4 and 9.2.5)."""


class AuthenticationFailed(ErrorResponse):
    """A challenge that these credentials cannot or must not answer; the text says why."""

    def __init__(self, code: int, reason: str, why: str) -> None:
        super().__init__(code, reason)
        self.why = why

    def __str__(self) -> str:
        return f"{super().__str__()}: {self.why}"


@dataclass(frozen=True, slots=True)
class Accept:
    """The response counts; ``authenticated``: its integrity was verified."""

    authenticated: bool = False


@dataclass(frozen=True, slots=True)
class Discard:
    """The response is passed over.

    ``violation``: it failed to prove itself, so on a stream the transaction ends here, and
    otherwise it ends with :class:`IntegrityViolated` instead of a timeout if nothing better comes.
    """

    reason: DropReason
    detail: str = ""
    violation: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """Send the request again as a new transaction."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request has failed."""

    error: ErrorResponse


Verdict: TypeAlias = Accept | Discard | Retry | Refuse


class Guard(Protocol):
    """Protects one request and judges what comes back."""

    def dress(self, request: Message, *, fingerprint: bool) -> bytes:
        """Return the octets to send; ``request`` itself stays as it is."""
        ...

    def judge(self, response: Message) -> Verdict:
        """Say what is to be done with a response; raises nothing on its octets but DecodeError."""
        ...

    def adopt(self) -> None:
        """Have later requests begin with what this one has been asked for, unproven as it is."""
        ...


class Sessions:
    """What is known about servers: a bounded table, the one unused for longest goes first."""

    __slots__ = ("_capacity", "_known")

    def __init__(self, capacity: int = 256) -> None:
        self._capacity = capacity
        self._known: OrderedDict[tuple[Hashable, Credentials], Challenge | Integrity] = (
            OrderedDict()
        )

    def recall(self, server: Hashable, credentials: Credentials) -> Challenge | Integrity | None:
        """Return what the last request with these credentials learned about the server."""
        known = self._known.get((server, credentials))
        if known is not None:
            self._known.move_to_end((server, credentials))
        return known

    def remember(
        self, server: Hashable, credentials: Credentials, known: Challenge | Integrity
    ) -> None:
        """Keep what a request learned."""
        self._known[server, credentials] = known
        self._known.move_to_end((server, credentials))
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)

    def forget(self, server: Hashable, credentials: Credentials) -> None:
        """Start anew with this server."""
        self._known.pop((server, credentials), None)

    def guard(self, server: Hashable, credentials: Credentials) -> Guard:
        """Return the guard of a new request to ``server``.

        "Same server" means "same IP address and port number" (RFC 8489 section 9.1.5).
        """
        known = self.recall(server, credentials)
        if isinstance(credentials, ShortTerm):
            agreed = known if isinstance(known, Integrity) else credentials.integrity
            return ShortTermGuard(self, server, credentials, agreed)
        challenge = known if isinstance(known, Challenge) else None
        return LongTermGuard(self, server, credentials, challenge)

    def __len__(self) -> int:
        return len(self._known)


def _with(request: Message) -> Message:
    """Return a copy whose attributes may be added to."""
    return Message(
        request.method,
        request.message_class,
        request.transaction_id,
        list(request.attributes),
        request.cookie,
    )


def with_transaction_id(message: Message, transaction_id: bytes) -> Message:
    """Return a message under another transaction id, for a retry.

    IPv6 addresses in XOR-...-ADDRESS attributes are masked with the transaction id (section 14.2),
    so their octets change with it.
    """
    copy = _with(message)
    copy.transaction_id = transaction_id
    for index, (code, value) in enumerate(message.attributes):
        attribute = BY_CODE.get(code)
        if isinstance(attribute, XorAddress):
            # What is no address was made so by the caller, and stays as it is.
            with suppress(DecodeError):
                address = attribute.unpack(value, message.transaction_id)
                copy.attributes[index] = (code, attribute.pack(address, transaction_id))
    return copy


def _raw(message: Message, attribute: Attribute[Any]) -> bytes | None:
    """Return the octets of the first such attribute, to be sent back exactly as they came."""
    return next((value for code, value in message.attributes if code == attribute.code), None)


def _prove(
    response: Message, key: bytes, sent: Integrity | None, code: int | None
) -> Accept | Discard:
    """Check the proof of a response to a request that had the proof ``sent`` (``None``: both)."""
    sha256 = response.has(MESSAGE_INTEGRITY_SHA256)
    sha1 = response.has(MESSAGE_INTEGRITY)
    if not sha256 and not sha1:
        said = "" if code is None else f"error {code} without a proof"
        return Discard(DropReason.MISSING_INTEGRITY, said, violation=True)
    used = Integrity.SHA256 if sha256 else Integrity.SHA1
    if sent is not None and used is not sent:
        # Section 9.1.4: "the algorithm in the response has to match; otherwise, the response MUST
        # be discarded."  A message with both was made by nobody who keeps to the norm.
        detail = f"{used.value} answers {sent.value}"
        return Discard(DropReason.BID_DOWN, detail, violation=True)
    holds = (check_integrity_sha256 if sha256 else check_integrity)(response, key)
    if holds:
        return Accept(authenticated=True)
    return Discard(DropReason.BAD_INTEGRITY, used.value, violation=True)


def _error_code(response: Message) -> tuple[int, str] | None:
    value = response.get(ERROR_CODE)
    return None if value is None else (value.code, value.reason)


class ShortTermGuard:
    """Section 9.1: a username and a key that both sides have; no challenges."""

    __slots__ = ("_credentials", "_integrity", "_key", "_server", "_sessions")

    def __init__(
        self,
        sessions: Sessions,
        server: Hashable,
        credentials: ShortTerm,
        integrity: Integrity | None,
    ) -> None:
        self._sessions = sessions
        self._server = server
        self._credentials = credentials
        self._key = credentials.key
        self._integrity = integrity

    def dress(self, request: Message, *, fingerprint: bool) -> bytes:
        """Add USERNAME and, as long as nothing is agreed, both proofs (section 9.1.2)."""
        message = _with(request)
        message.add(USERNAME, self._credentials.profile.prepare(self._credentials.username))
        return encode(
            message,
            key=self._key if self._integrity is not Integrity.SHA256 else None,
            sha256_key=self._key if self._integrity is not Integrity.SHA1 else None,
            fingerprint=fingerprint,
        )

    def adopt(self) -> None:
        """Do nothing: there are no challenges."""

    def judge(self, response: Message) -> Verdict:
        """Every response needs a proof, errors too (section 9.1.4)."""
        error = _error_code(response)
        verdict = _prove(response, self._key, self._integrity, error and error[0])
        if isinstance(verdict, Accept) and self._integrity is None:
            # Section 9.1.5: later requests have only the one that the response had.
            sha256 = response.has(MESSAGE_INTEGRITY_SHA256)
            used = Integrity.SHA256 if sha256 else Integrity.SHA1
            self._sessions.remember(self._server, self._credentials, used)
        return verdict


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a 401 or 438 asked for, and the key that answers it."""

    realm: bytes
    nonce: bytes
    algorithms: bytes | None
    """PASSWORD-ALGORITHMS as it came; ``None``: a server of RFC 5389, or one with MD5 only."""
    algorithm: Algorithm
    anonymous: bool
    """USERHASH is to be sent instead of USERNAME."""
    username: str
    userhash: bytes
    key: bytes

    @property
    def integrity(self) -> Integrity:
        """Which proof goes with it.

        Section 9.2.5: "If the response contains a PASSWORD-ALGORITHMS attribute, all the subsequent
        requests MUST be authenticated using MESSAGE-INTEGRITY-SHA256 only."
        """
        return Integrity.SHA1 if self.algorithms is None else Integrity.SHA256


class LongTermGuard:
    """Section 9.2: the server challenges, the client answers.

    With :class:`stun.credentials.ThirdParty` the key comes with an access token, which goes along,
    instead of from a password (RFC 7635 section 5).
    """

    __slots__ = ("_answered", "_challenge", "_credentials", "_server", "_sessions")

    def __init__(
        self,
        sessions: Sessions,
        server: Hashable,
        credentials: LongTerm | ThirdParty,
        challenge: Challenge | None,
    ) -> None:
        self._sessions = sessions
        self._server = server
        self._credentials = credentials
        self._challenge = challenge
        self._answered = 0

    def dress(self, request: Message, *, fingerprint: bool) -> bytes:
        """Answer the challenge; without one the request goes out bare (section 9.2.3.1)."""
        challenge = self._challenge
        if challenge is None:
            return encode(request, fingerprint=fingerprint)
        message = _with(request)
        if challenge.anonymous:
            message.add(USERHASH, challenge.userhash)
        else:
            message.add(USERNAME, challenge.username)
        message.attributes.append((REALM.code, challenge.realm))
        message.attributes.append((NONCE.code, challenge.nonce))
        if isinstance(self._credentials, ThirdParty) and message.method not in _WITHOUT_TOKEN:
            message.attributes.append((ACCESS_TOKEN.code, self._credentials.token))
        if challenge.algorithms is None:
            return encode(message, key=challenge.key, fingerprint=fingerprint)
        # Section 9.2.3.2 leaves PASSWORD-ALGORITHMS out of later requests, but 9.2.4 answers 400
        # when it is missing, so it is sent each time.
        message.attributes.append((PASSWORD_ALGORITHMS.code, challenge.algorithms))
        message.add(PASSWORD_ALGORITHM, challenge.algorithm)
        return encode(message, sha256_key=challenge.key, fingerprint=fingerprint)

    def judge(self, response: Message) -> Verdict:
        """Follow section 9.2.5, in its order."""
        error = _error_code(response)
        code = None if error is None else error[0]
        if error is not None and code in (ErrorCode.UNAUTHENTICATED, ErrorCode.STALE_NONCE):
            return self._challenged(response, *error)
        if _promises_algorithms(response) and not response.has(PASSWORD_ALGORITHMS):
            return Discard(DropReason.BID_DOWN, "the nonce promises PASSWORD-ALGORITHMS")
        challenge = self._challenge
        if challenge is None:
            # The server wants no authentication, or has another complaint: there is no key yet
            # that could prove either.
            return Accept()
        proven = response.has(MESSAGE_INTEGRITY) or response.has(MESSAGE_INTEGRITY_SHA256)
        if not proven and code == ErrorCode.BAD_REQUEST:
            # "In this case, the 400 response will never reach the application"
            return Discard(DropReason.MISSING_INTEGRITY, "error 400 without a proof")
        if not proven and code == ErrorCode.TRY_ALTERNATE:
            # Section 10: there are "use cases for ALTERNATE-SERVER where authentication of the
            # response is not possible or practical".
            return Accept()
        verdict = _prove(response, challenge.key, challenge.integrity, code)
        if isinstance(verdict, Accept):
            self._sessions.remember(self._server, self._credentials, challenge)
        return verdict

    def _challenged(self, response: Message, code: int, reason: str) -> Verdict:
        def refuse(why: str) -> Refuse:
            self._sessions.forget(self._server, self._credentials)
            return Refuse(AuthenticationFailed(code, reason, why))

        old = self._challenge
        try:
            new = self._read_challenge(response)
        except _Unanswerable as wrong:
            return refuse(str(wrong))
        if old is not None:
            if old.algorithms is not None and new.algorithms is None:
                # The rule quoted at Challenge.integrity: there is no way back to MD5 and SHA-1.
                detail = "PASSWORD-ALGORITHMS was offered before"
                return Discard(DropReason.BID_DOWN, detail, violation=True)
            if (
                code == ErrorCode.UNAUTHENTICATED
                and new.realm == old.realm
                and new.anonymous == old.anonymous
            ):
                if isinstance(self._credentials, ThirdParty) and len(old.key) > COTURN_MAC_KEY:
                    return self._answer(replace(new, key=old.key[:COTURN_MAC_KEY]))
                # "The client MUST NOT perform this retry if it is not changing the USERNAME,
                # USERHASH, REALM, or its associated password from the previous attempt."
                return refuse(self._not_accepted(response))
        if self._answered >= MAX_CHALLENGES:
            return refuse(f"{MAX_CHALLENGES} challenges were answered and another one came")
        return self._answer(new)

    def adopt(self) -> None:
        """Have later requests answer the challenge that this one was given."""
        if self._challenge is not None:
            self._sessions.remember(self._server, self._credentials, self._challenge)

    def _answer(self, challenge: Challenge) -> Retry:
        self._answered += 1
        self._challenge = challenge
        return Retry()

    def _not_accepted(self, response: Message) -> str:
        if isinstance(self._credentials, LongTerm):
            return "the server does not accept this username and password"
        server = response.get(THIRD_PARTY_AUTHORIZATION)
        if server is None:
            return "the server takes no access tokens"
        return f"the server does not accept this access token; it takes those made for {server!r}"

    def _read_challenge(self, response: Message) -> Challenge:
        realm = response.get(REALM)
        raw_realm = _raw(response, REALM)
        nonce = response.get(NONCE)
        old = self._challenge
        if realm is None and old is not None:
            # Some servers leave REALM out of a 438, though they must not.
            raw_realm = old.realm
            realm = old.realm.decode()
        if realm is None or raw_realm is None:
            raise _Unanswerable("the challenge has no REALM")
        if nonce is None:
            raise _Unanswerable("the challenge has no NONCE")
        credentials = self._credentials
        if isinstance(credentials, LongTerm) and credentials.realm not in (None, realm):
            raise _Unanswerable(f"the credentials are not for the realm {realm!r}")
        features = parse_cookie(nonce)
        offered = response.get(PASSWORD_ALGORITHMS)
        if offered is None:
            if _promises_algorithms(response):
                raise _Unanswerable("bid-down: the nonce promises PASSWORD-ALGORITHMS")
            algorithm = Algorithm(PasswordAlgorithm.MD5)
        else:
            # "the first algorithm supported on the list"; the two known ones have no parameters.
            supported = [Algorithm(PasswordAlgorithm.MD5), Algorithm(PasswordAlgorithm.SHA256)]
            chosen = next((one for one in offered if one in supported), None)
            if chosen is None:
                raise _Unanswerable("no password algorithm of the server is supported")
            algorithm = chosen
        # Who sends the cookie keeps to RFC 8489; see the text of stun.credentials.
        profile = Profile.SASLPREP if features is None else Profile.OPAQUE_STRING
        anonymous = features is not None and SecurityFeature.USERNAME_ANONYMITY in features
        algorithms = _raw(response, PASSWORD_ALGORITHMS)
        if isinstance(credentials, ThirdParty):
            # USERNAME names a key of the authorization server, not a person: no USERHASH.
            return Challenge(
                raw_realm,
                nonce,
                algorithms,
                algorithm,
                anonymous=False,
                username=credentials.kid,
                userhash=b"",
                key=credentials.mac_key if old is None else old.key,
            )
        try:
            return Challenge(
                raw_realm,
                nonce,
                algorithms,
                algorithm,
                anonymous,
                check_username(credentials.username, profile),
                userhash(credentials.username, realm) if anonymous else b"",
                credentials.key(realm, algorithm.number, profile=profile),
            )
        except StringError as wrong:
            raise _Unanswerable(str(wrong)) from None


class _Unanswerable(Exception):
    """Why a challenge gets no answer."""


def _promises_algorithms(response: Message) -> bool:
    nonce = response.get(NONCE)
    features = None if nonce is None else parse_cookie(nonce)
    return features is not None and SecurityFeature.PASSWORD_ALGORITHMS in features
