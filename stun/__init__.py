"""STUN (RFC 8489), with RFC 5389 and RFC 3489 peers served.

The codec is re-exported here; machines, drivers and URIs are in their own modules.
"""

from stun import attributes
from stun.codec import decode, encode
from stun.errors import (
    DecodeError,
    Dropped,
    DropReason,
    ErrorResponse,
    StunError,
    TransactionError,
    TransactionTimedOut,
    TransportFailed,
    UsageError,
)
from stun.integrity import check_fingerprint, check_integrity, check_integrity_sha256
from stun.message import Message
from stun.registry import MAGIC_COOKIE, AttributeType, Class, ErrorCode, Method
from stun.sansio import Address

__all__ = [
    "MAGIC_COOKIE",
    "Address",
    "AttributeType",
    "Class",
    "DecodeError",
    "DropReason",
    "Dropped",
    "ErrorCode",
    "ErrorResponse",
    "Message",
    "Method",
    "StunError",
    "TransactionError",
    "TransactionTimedOut",
    "TransportFailed",
    "UsageError",
    "attributes",
    "check_fingerprint",
    "check_integrity",
    "check_integrity_sha256",
    "decode",
    "encode",
]
