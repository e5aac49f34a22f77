"""What can go wrong, and whose fault it is.

A :class:`UsageError` is the caller's, a :class:`DecodeError` is in a peer's bytes, a
:class:`TransactionError` is what became of a request.  Inside a machine a peer's bytes never raise:
the machine queues :class:`Dropped` with a :class:`DropReason` that a person can read and count.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from stun.sansio import Address


class StunError(Exception):
    """The root of every exception that natkit raises on purpose."""


class UsageError(StunError):
    """The caller asked for what the protocol or the machine's state does not allow."""


class DropReason(StrEnum):
    """Why received bytes were not used.  The value is what a person reads."""

    # The datagram or frame as a whole (RFC 8489 section 5).
    TOO_SHORT = "shorter than a STUN header"
    NOT_STUN = "the first two bits are not zero"
    BAD_LENGTH_ALIGNMENT = "message length is not a multiple of four"
    LENGTH_MISMATCH = "message length does not match the bytes received"
    TOO_LONG = "longer than this transport allows"
    NOT_EXPECTED_PROTOCOL = "not a protocol that this port speaks"
    # Its attributes (RFC 8489 section 14).
    ATTRIBUTE_OVERRUN = "an attribute is longer than the message"
    BAD_ATTRIBUTE_VALUE = "an attribute has a value that its definition does not allow"
    UNKNOWN_COMPREHENSION_REQUIRED = "an unknown attribute must be understood"
    # Its proof (RFC 8489 sections 9 and 14.5 to 14.7).
    BAD_FINGERPRINT = "FINGERPRINT does not match"
    BAD_INTEGRITY = "the message integrity does not match"
    MISSING_INTEGRITY = "the message integrity is missing"
    BID_DOWN = "a weaker protection than agreed was used"
    # Its place in the conversation.
    UNKNOWN_TRANSACTION = "no request of ours has this transaction id"
    UNEXPECTED_SOURCE = "the answer came from an address that was not asked"
    UNEXPECTED_CLASS = "this class of message is not expected here"
    UNKNOWN_METHOD = "unknown method"
    UNKNOWN_STREAM = "bytes for a stream that is not open"
    RATE_LIMITED = "over the rate that this client may have"
    REFUSED_BY_POLICY = "policy does not allow it"
    # Its place in a relay (RFC 8656).
    NO_ALLOCATION = "there is no allocation on this five-tuple"
    NO_PERMISSION = "there is no permission for this peer"
    NO_CHANNEL = "this channel is not bound"
    CONGESTED = "the receiver reads more slowly than it is sent to"
    NOBODY_ANSWERED = "the user store did not answer in time"
    # Its place between two ICE agents (RFC 8445).
    NO_VALID_PAIR = "data on a path that no check has proved"
    WRONG_GENERATION = "it belongs to a session before the restart"
    NO_ROOM = "there is no room for more of its kind"
    UNKNOWN_USERNAME = "its username is not of this session"
    UNUSABLE_CANDIDATE = "a candidate that no check can be sent to"
    LATE_CANDIDATE = "a candidate after the end of candidates"


class DecodeError(StunError):
    """Bytes that are not what they should be: the reason, and where (an offset in octets)."""

    def __init__(self, reason: DropReason, offset: int = 0, detail: str = "") -> None:
        text = f"{reason.value} (at octet {offset})"
        super().__init__(f"{text}: {detail}" if detail else text)
        self.reason = reason
        self.offset = offset
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Dropped:
    """The event a machine queues for everything that it does not use."""

    reason: DropReason
    source: Address | None = None
    detail: str = ""


class TransactionError(StunError):
    """A request ended without a success response."""


class TransactionTimedOut(TransactionError):
    """No answer came within the time that RFC 8489 section 6.2 allows."""


class TransportFailed(TransactionError):
    """The connection or the socket failed: the text says how."""


class ErrorResponse(TransactionError):
    """The server answered with an error (RFC 8489 section 14.8)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason
