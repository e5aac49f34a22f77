"""What becomes of a request: the events of :mod:`stun.client` and the failures with a type."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias, TypeVar

from stun.attributes import (
    ALTERNATE_DOMAIN,
    ALTERNATE_SERVER,
    ERROR_CODE,
    MAPPED_ADDRESS,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    XOR_MAPPED_ADDRESS_DRAFT,
    Attribute,
)
from stun.errors import DecodeError, Dropped, ErrorResponse, StunError, TransactionError
from stun.message import Message
from stun.registry import ErrorCode
from stun.sansio import Address, Handle, Undeliverable

_T = TypeVar("_T")


class FailureCause(StrEnum):
    """The kinds of failure; :attr:`Failed.error` has the particulars."""

    TIMED_OUT = "no answer"
    ERROR_RESPONSE = "error response"
    TRANSPORT = "transport failed"
    INTEGRITY = "integrity protection violated"
    AUTHENTICATION = "authentication failed"
    NOT_UNDERSTOOD = "the response cannot be understood"


class UnknownAttributeResponse(ErrorResponse):
    """420: the server does not understand these attributes of the request (section 14.13)."""

    def __init__(self, code: int, reason: str, attributes: tuple[int, ...]) -> None:
        super().__init__(code, reason)
        self.attributes = attributes


class TryAlternate(ErrorResponse):
    """300: ask another server (section 10).

    ``servers``: at the same transport protocol, the address of the request's own family first.
    ``domain``: the name that its certificate must have, when it is another one.
    ``authenticated``: whether the response proved itself.  Whoever follows it should remember whom
    it asked within the last five minutes.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        servers: tuple[Address, ...],
        domain: str | None,
        authenticated: bool,
    ) -> None:
        super().__init__(code, reason)
        self.servers = servers
        self.domain = domain
        self.authenticated = authenticated


class NotUnderstood(TransactionError):
    """The response has unknown attributes that must be understood, or lacks its ERROR-CODE."""

    def __init__(self, text: str, attributes: tuple[int, ...] = ()) -> None:
        super().__init__(text)
        self.attributes = attributes


@dataclass(frozen=True, slots=True)
class Reply:
    """A success response that counts.

    ``transaction_id``: what the request returned; ``message.transaction_id`` is another one after
    a challenge.  ``rtt``: nanoseconds, ``None`` after a retransmission (Karn's rule).
    ``attempts``: sends of the transaction that was answered.  ``handle``: the stream, ``None`` over
    UDP.  Values in ``message`` are decoded when asked for and may then raise
    :class:`stun.errors.DecodeError`; :func:`mapped_address` does not.
    """

    transaction_id: bytes
    message: Message
    source: Address
    local: Address
    rtt: int | None
    attempts: int
    handle: Handle | None = None
    authenticated: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """A request that ended without a success response.

    ``message`` and ``source`` are those of the response that ended it, if one did.
    """

    transaction_id: bytes
    cause: FailureCause
    error: StunError
    message: Message | None = None
    source: Address | None = None
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Indication:
    """An indication that nobody has proved (section 6.3.2): what it says is for the owner to judge.

    ``handle``: the stream it came on, ``None`` over UDP.
    """

    message: Message
    source: Address
    local: Address
    handle: Handle | None = None


Event: TypeAlias = Reply | Failed | Indication | Dropped


def error_of(message: Message, authenticated: bool) -> TransactionError:
    """Return the exception that an error response stands for (section 6.3.4)."""
    value = value_of(message, ERROR_CODE)
    if value is None:
        return NotUnderstood("the error response has no valid ERROR-CODE")
    if value.code == ErrorCode.UNKNOWN_ATTRIBUTE:
        named = value_of(message, UNKNOWN_ATTRIBUTES) or ()
        return UnknownAttributeResponse(value.code, value.reason, named)
    if value.code == ErrorCode.TRY_ALTERNATE:
        try:
            servers = tuple(message.all(ALTERNATE_SERVER))
        except DecodeError:
            servers = ()
        domain = value_of(message, ALTERNATE_DOMAIN)
        return TryAlternate(value.code, value.reason, servers, domain, authenticated)
    return ErrorResponse(value.code, value.reason)


def value_of(message: Message, attribute: Attribute[_T]) -> _T | None:
    """Return the attribute's value, and ``None`` also when it is malformed."""
    try:
        return message.get(attribute)
    except DecodeError:
        return None


def mapped_address(message: Message) -> Address | None:
    """Return the address that a Binding response says the request came from.

    XOR-MAPPED-ADDRESS where it is; else its number from before RFC 5389; else MAPPED-ADDRESS, which
    is all that servers of RFC 3489 send and which some NATs rewrite.  One that is malformed, or of
    a family that nobody knows, "SHOULD be ignored" (section 6.3.3).
    """
    for attribute in (XOR_MAPPED_ADDRESS, XOR_MAPPED_ADDRESS_DRAFT, MAPPED_ADDRESS):
        address = value_of(message, attribute)
        if address is not None:
            return address
    return None


# RFC 1122 section 3.2.2.1: protocol and port unreachable are hard, net and host unreachable soft;
# "fragmentation needed" makes the sender fragment, so the next send may pass.  RFC 1812 section
# 5.2.7.1 added the administrative ones: a filter that says no will say it again.
_HARD_IPV4 = frozenset({(3, 2), (3, 3), (3, 9), (3, 10), (3, 13)})
# RFC 4443 section 3.1: prohibited, port unreachable, failed policy, reject route.
_HARD_IPV6 = frozenset({(1, 1), (1, 4), (1, 5), (1, 6)})


def is_hard(event: Undeliverable) -> bool:
    """Whether trying again is in vain (RFC 8489 section 6.2.1: "a hard ICMP error")."""
    hard = _HARD_IPV6 if event.destination.is_ipv6 else _HARD_IPV4
    return (event.icmp_type, event.icmp_code) in hard
