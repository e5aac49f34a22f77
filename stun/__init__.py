"""STUN (RFC 8489), with RFC 5389 and RFC 3489 peers served.

The codec is re-exported here; machines, drivers and URIs are in their own modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "Address": "stun.sansio",
    "AttributeType": "stun.registry",
    "Class": "stun.registry",
    "DecodeError": "stun.errors",
    "DropReason": "stun.errors",
    "Dropped": "stun.errors",
    "ErrorCode": "stun.registry",
    "ErrorResponse": "stun.errors",
    "MAGIC_COOKIE": "stun.registry",
    "Message": "stun.message",
    "Method": "stun.registry",
    "StunError": "stun.errors",
    "TransactionError": "stun.errors",
    "TransactionTimedOut": "stun.errors",
    "TransportFailed": "stun.errors",
    "UsageError": "stun.errors",
    "check_fingerprint": "stun.integrity",
    "check_integrity": "stun.integrity",
    "check_integrity_sha256": "stun.integrity",
    "decode": "stun.codec",
    "encode": "stun.codec",
}

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


def __getattr__(name: str) -> Any:
    # Imported when asked for: a command's --help needs no codec.
    from importlib import import_module

    if name == "attributes":
        return import_module("stun.attributes")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
