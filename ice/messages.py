"""The messages of connectivity checks: made, and read (RFC 8445 sections 7.1 to 7.3 and 16).

All are Binding messages with the short-term credential mechanism (RFC 8489 section 9.1), protected
by MESSAGE-INTEGRITY with SHA-1, which is what every ICE agent speaks, and ended by FINGERPRINT.  A
peer that proves itself with MESSAGE-INTEGRITY-SHA256 instead is answered in kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ice.config import Credentials
from stun.attributes import (
    BY_CODE,
    ERROR_CODE,
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    PRIORITY,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
)
from stun.codec import encode
from stun.errors import DecodeError, UsageError
from stun.integrity import check_integrity, check_integrity_sha256
from stun.message import Message
from stun.registry import ErrorCode, Method
from stun.sansio import Address

NOMINATION: Final = 0xC001
"""How often the controlling agent has nominated: the greatest number decides.

Of draft-thatcher-ice-renomination, as libwebrtc sends and reads it.  IANA has given the number to
another attribute that no ICE agent sends; it is comprehension-optional, so it harms nobody.
"""
NOMINATION_PION: Final = 0x0030
"""The same as pion sends it."""

UNDERSTOOD: Final = frozenset(BY_CODE) | {NOMINATION_PION}

_USERNAME = USERNAME.code
_CONTROLLING, _CONTROLLED = ICE_CONTROLLING.code, ICE_CONTROLLED.code
_BINDING = int(Method.BINDING)


class Keys:
    """What the messages between two sets of credentials need, made once.

    Raises :class:`stun.errors.UsageError` for credentials that have no UTF-8 form.
    """

    __slots__ = ("local", "local_key", "local_ufrag", "remote", "remote_key", "username")

    def __init__(self, local: Credentials) -> None:
        self.local = local
        self.local_ufrag = _octets(local.ufrag)
        self.local_key = _octets(local.password)
        self.remote: Credentials | None = None
        self.remote_key = b""
        self.username = b""

    def set_remote(self, remote: Credentials) -> None:
        """Take the peer's credentials."""
        ufrag, self.remote_key = _octets(remote.ufrag), _octets(remote.password)
        # RFC 8445 7.2.2: "concatenating the username fragment provided by the peer with the
        # username fragment of the ICE agent sending the request, separated by a colon".
        self.username = ufrag + b":" + self.local_ufrag
        self.remote = remote


def _octets(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError("a username fragment or password has no UTF-8 form") from None


def request(
    transaction_id: bytes,
    keys: Keys,
    *,
    priority: int,
    controlling: bool,
    tie_breaker: int,
    use_candidate: bool = False,
    nomination: int = 0,
    software: str | None = None,
) -> bytes:
    """Return the octets of a check.  ``nomination`` 0 or 1: without a number."""
    message = Message.request(_BINDING, transaction_id)
    # Not by Message.add: two fragments of 256 characters are more than RFC 8489 lets a USERNAME
    # have and what RFC 8445 5.3 wants to be possible.
    message.attributes.append((_USERNAME, keys.username))
    if software is not None:
        message.add(SOFTWARE, software)
    message.add(PRIORITY, priority)
    message.add(ICE_CONTROLLING if controlling else ICE_CONTROLLED, tie_breaker)
    if use_candidate:
        message.add(USE_CANDIDATE, True)
        if nomination > 1:
            message.attributes.append((NOMINATION, nomination.to_bytes(4)))
    return encode(message, key=keys.remote_key, fingerprint=True)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the values of a request say; ``None`` where it does not say.

    ``ufrag`` is the peer's, ``nomination`` 0 without USE-CANDIDATE, 1 with it but without a number.
    """

    transaction_id: bytes
    ufrag: bytes
    priority: int | None
    controlling: int | None
    controlled: int | None
    nomination: int


def read_request(message: Message, ufrag: bytes) -> Asked:
    """Read the values of a request; raises :class:`stun.errors.DecodeError`."""
    nomination = 1 if message.get(USE_CANDIDATE) else 0
    for code, value in message.attributes:
        if code in (NOMINATION, NOMINATION_PION) and len(value) == 4:
            nomination = int.from_bytes(value) or nomination
            break
    return Asked(
        message.transaction_id,
        ufrag,
        message.get(PRIORITY),
        message.get(ICE_CONTROLLING),
        message.get(ICE_CONTROLLED),
        nomination,
    )


def username_of(message: Message) -> bytes | None:
    """Return the octets of USERNAME."""
    return next((value for code, value in message.attributes if code == _USERNAME), None)


def proof_holds(message: Message, key: bytes) -> bool | None:
    """Whether the message proves that its sender knows ``key``; ``None`` without any proof."""
    holds = check_integrity(message, key)
    return check_integrity_sha256(message, key) if holds is None else holds


def success(asked: Message, source: Address, key: bytes, software: str | None) -> bytes:
    """Return the octets of the answer to a request that came from ``source``."""
    response = Message.success(asked).add(XOR_MAPPED_ADDRESS, source)
    if software is not None:
        response.add(SOFTWARE, software)
    return _proved(response, asked, key)


def refusal(asked: Message, code: ErrorCode, key: bytes, unknown: tuple[int, ...] = ()) -> bytes:
    """Return the octets of an error response that proves itself."""
    response = Message.error(asked, code)
    if unknown:
        response.add(UNKNOWN_ATTRIBUTES, unknown)
    return _proved(response, asked, key)


def _proved(response: Message, asked: Message, key: bytes) -> bytes:
    # RFC 8489 9.1.3: the response is protected the way the request was.
    if check_integrity(asked, key) is None:
        return encode(response, sha256_key=key, fingerprint=True)
    return encode(response, key=key, fingerprint=True)


def unproved_refusal(asked: Message, code: ErrorCode) -> bytes:
    """Return the octets of an error response to somebody who has proved nothing."""
    return encode(Message.error(asked, code), fingerprint=True)


def error_code(message: Message) -> int:
    """Return the code of an error response, 0 if it has none that can be read."""
    try:
        value = message.get(ERROR_CODE)
    except DecodeError:
        return 0
    return 0 if value is None else value.code
