"""Octets to messages and back: the hot path.

Theory of operation.  The fixed parts are read by ``struct`` objects of :mod:`stun.layout`; only
the walk over the attributes is written by hand.  :mod:`stun.spec` says the same with construct,
strictly and slowly, and a test demands that both accept the same octets and find the same values.

What decoding decides (RFC 8489 sections 5, 6.3 and 14):

* the first two bits are zero, the length is a multiple of four and is that of the octets given, and
  each attribute lies within the message;
* the cookie is *not* required: without it the message is an RFC 3489 peer's (section 11);
* padding may be anything;
* attributes behind MESSAGE-INTEGRITY are left out, save MESSAGE-INTEGRITY-SHA256 and FINGERPRINT,
  and behind MESSAGE-INTEGRITY-SHA256 all but FINGERPRINT: "agents MUST ignore" them (section 9).
  It is done here, once, so that no machine can act on an attribute that no proof covers.  Section 9
  lets attributes behind MESSAGE-INTEGRITY-SHA256 count if a MESSAGE-INTEGRITY follows; nobody sends
  that order, and an attacker could append both to a message that only the first proof is checked
  of, so such a message is cut at its first proof too.  ``Message.wire`` still has everything.

What it leaves to others: values (decoded when asked for), proofs (:mod:`stun.integrity`), unknown
attributes that must be understood (:func:`unknown_required`), methods.
"""

from __future__ import annotations

import struct
from binascii import crc32
from collections.abc import Iterable

from stun.errors import DecodeError, DropReason, UsageError
from stun.layout import HEADER, TLV
from stun.mac import hmac_sha1, hmac_sha256
from stun.message import Message
from stun.registry import (
    FINGERPRINT_XOR,
    HEADER_SIZE,
    AttributeType,
    Class,
    Method,
    comprehension_required,
)

__all__ = [
    "Message",
    "decode",
    "encode",
    "encode_around",
    "encode_attributes",
    "message_type",
    "split_message_type",
    "unknown_required",
]

_MI = int(AttributeType.MESSAGE_INTEGRITY)
_MI_SHA256 = int(AttributeType.MESSAGE_INTEGRITY_SHA256)
_FINGERPRINT = int(AttributeType.FINGERPRINT)
_AFTER_PROOF = {
    _MI: frozenset({_MI_SHA256, _FINGERPRINT}),
    _MI_SHA256: frozenset({_FINGERPRINT}),
}
_MAX_METHOD = 0xFFF
_MI_SIZE = 4 + 20
_MI_SHA256_SIZE = 4 + 32
_FINGERPRINT_SIZE = 4 + 4

_unpack_header = HEADER.struct.unpack_from
_unpack_tlv = TLV.struct.unpack_from
_pack_header = HEADER.struct.pack
_pack_tlv = TLV.struct.pack
_new_message = object.__new__
_CLASSES = tuple(Class)
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def message_type(method: int, message_class: int) -> int:
    """Return the 14 bits of the message type (RFC 8489 section 5, figure 3).

    The appendix of RFC 8489 has a mask that is one bit too wide (erratum 8900).
    """
    return (
        (method & 0x00F)
        | (method & 0x070) << 1
        | (method & 0xF80) << 2
        | (message_class & 1) << 4
        | (message_class & 2) << 7
    )


def split_message_type(value: int) -> tuple[int, Class]:
    """Return the method and the class that a 14-bit message type names."""
    method = value & 0x00F | value >> 1 & 0x070 | value >> 2 & 0xF80
    return method, _CLASSES[value >> 4 & 1 | value >> 7 & 2]


# Message types that are to be expected, both ways: a look-up costs less than the arithmetic.
_KINDS = {(int(m), c): message_type(m, c) for m in Method for c in Class}
_TYPES = {kind: split_message_type(kind) for kind in _KINDS.values()}


def decode(data: bytes) -> Message:
    """Return the message that ``data`` is, to the last octet.

    Raises :class:`stun.errors.DecodeError` and nothing else, whatever the octets; the offset counts
    from the start of ``data``.
    """
    size = len(data)
    if size < HEADER_SIZE:
        raise DecodeError(DropReason.TOO_SHORT, size, f"{size} octets")
    kind, length, cookie, transaction_id = _unpack_header(data)
    if kind > 0x3FFF:
        raise DecodeError(DropReason.NOT_STUN, 0, f"first octet {data[0]:#04x}")
    if length & 3:
        raise DecodeError(DropReason.BAD_LENGTH_ALIGNMENT, 2, f"length {length}")
    if length + HEADER_SIZE != size:
        raise DecodeError(
            DropReason.LENGTH_MISMATCH, 2, f"length {length}, {size - HEADER_SIZE} octets follow"
        )
    attributes: list[tuple[int, bytes]] = []
    allowed: frozenset[int] | None = None
    offset, proof_at = HEADER_SIZE, 0
    # Both ends of an attribute are multiples of four, so four octets at least are left here.
    while offset < size:
        code, count = _unpack_tlv(data, offset)
        start = offset + 4
        end = start + count
        if end > size:
            raise DecodeError(
                DropReason.ATTRIBUTE_OVERRUN,
                offset,
                f"attribute {code:#06x} of {count} octets, {size - start} are left",
            )
        if allowed is None or code in allowed:
            attributes.append((code, data[start:end]))
            if code in _AFTER_PROOF:
                allowed = _AFTER_PROOF[code]
                proof_at = proof_at or offset
        offset = end + 3 & -4
    # Filled in here and not by __init__: the call would be a tenth of the time of the whole.
    message = _new_message(Message)
    message.method, message.message_class = _TYPES.get(kind) or split_message_type(kind)
    message.transaction_id = transaction_id
    message.attributes = attributes
    message.cookie = cookie
    message.wire = data
    message.proof_at = proof_at
    return message


def encode(
    message: Message,
    *,
    key: bytes | None = None,
    sha256_key: bytes | None = None,
    fingerprint: bool = False,
) -> bytes:
    """Return the octets of a message, padded with zeros as RFC 8489 section 14 demands.

    With ``key`` a MESSAGE-INTEGRITY is appended, with ``sha256_key`` a MESSAGE-INTEGRITY-SHA256 of
    full length, with ``fingerprint`` a FINGERPRINT, in this order.  The message itself is not
    changed.  Raises :class:`stun.errors.UsageError` for a message that cannot be one.
    """
    transaction_id, cookie = message.transaction_id, message.cookie
    kind = _KINDS.get((message.method, message.message_class))
    if kind is None:
        if not 0 <= message.method <= _MAX_METHOD:
            raise _unencodable(message)
        kind = message_type(message.method, message.message_class)
    if len(transaction_id) != 12:
        raise _unencodable(message)
    parts = []
    try:
        for code, value in message.attributes:
            count = len(value)
            parts.append(_pack_tlv(code, count))
            parts.append(value)
            if count & 3:
                parts.append(_PADDING[count & 3])
        body = b"".join(parts)
        # Each proof covers a header whose length already counts the proof itself (sections 14.5 to
        # 14.7), so the header is made anew for each.
        if key is not None:
            head = _pack_header(kind, len(body) + _MI_SIZE, cookie, transaction_id)
            body += _MI_HEAD + hmac_sha1(key, head + body)
        if sha256_key is not None:
            head = _pack_header(kind, len(body) + _MI_SHA256_SIZE, cookie, transaction_id)
            body += _MI_SHA256_HEAD + hmac_sha256(sha256_key, head + body)
        if not fingerprint:
            return _pack_header(kind, len(body), cookie, transaction_id) + body
        size = len(body) + _FINGERPRINT_SIZE
        return _fingerprinted(_pack_header(kind, size, cookie, transaction_id) + body)
    except struct.error:
        raise _unencodable(message) from None


def _fingerprinted(whole: bytes) -> bytes:
    return whole + _FINGERPRINT_HEAD + (crc32(whole) ^ FINGERPRINT_XOR).to_bytes(4)


def encode_attributes(attributes: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the octets of attributes, each padded, for :func:`encode_around`."""
    return b"".join(
        _pack_tlv(code, len(value)) + value + _PADDING[len(value) & 3] for code, value in attributes
    )


def encode_around(
    request: Message, message_class: int, body: bytes, *, fingerprint: bool = False
) -> bytes:
    """Return the octets of a response whose attributes are encoded already.

    For a server's answers that hardly differ: :func:`encode` walks over their attributes each time.
    """
    kind = message_type(request.method, message_class)
    size = len(body) + _FINGERPRINT_SIZE if fingerprint else len(body)
    whole = _pack_header(kind, size, request.cookie, request.transaction_id) + body
    return _fingerprinted(whole) if fingerprint else whole


_MI_HEAD = _pack_tlv(_MI, 20)
_MI_SHA256_HEAD = _pack_tlv(_MI_SHA256, 32)
_FINGERPRINT_HEAD = _pack_tlv(_FINGERPRINT, 4)


def _unencodable(message: Message) -> UsageError:
    if len(message.transaction_id) != 12:
        return UsageError(f"a transaction id of {len(message.transaction_id)} octets, not 12")
    if not 0 <= message.method <= _MAX_METHOD:
        return UsageError(f"a method of {message.method:#x}: it has 12 bits")
    if not 0 <= message.cookie <= 0xFFFFFFFF:
        return UsageError(f"a cookie of {message.cookie:#x}")
    for code, value in message.attributes:
        if not 0 <= code <= 0xFFFF:
            return UsageError(f"an attribute type of {code:#x}")
        if len(value) > 0xFFFF:
            return UsageError(f"attribute {code:#06x} has {len(value)} octets")
    return UsageError("the attributes are longer together than a message may be")


def unknown_required(message: Message, understood: frozenset[int]) -> tuple[int, ...]:
    """Return the types that the receiver had to understand and does not, each once, in order.

    They are what a 420 (Unknown Attribute) response lists (RFC 8489 section 6.3.1).
    """
    return tuple(
        dict.fromkeys(
            code
            for code, _ in message.attributes
            if comprehension_required(code) and code not in understood
        )
    )
