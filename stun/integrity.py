"""The three proofs of a message: MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 and FINGERPRINT.

They are verified over the octets as received, never over a re-encoded message: RFC 5769's own
examples pad with spaces where RFC 8489 sends zeros.  Every check answers ``None`` when the message
has no such attribute, and otherwise whether it holds.
"""

from __future__ import annotations

from binascii import crc32
from hmac import compare_digest

from stun.errors import UsageError
from stun.layout import TLV
from stun.mac import hmac_sha1, hmac_sha256
from stun.message import Message
from stun.registry import FINGERPRINT_XOR, HEADER_SIZE, AttributeType

_MI = int(AttributeType.MESSAGE_INTEGRITY)
_MI_SHA256 = int(AttributeType.MESSAGE_INTEGRITY_SHA256)
_FINGERPRINT = int(AttributeType.FINGERPRINT)

_unpack_tlv = TLV.struct.unpack_from


def _find(message: Message, wanted: int) -> tuple[int, int] | None:
    """Return offset and length of the first such attribute.  Decoding has checked the lengths."""
    wire = message.wire
    if not wire:
        raise UsageError("this message was not received: there is nothing to verify")
    offset = HEADER_SIZE if wanted == _FINGERPRINT else message.proof_at or HEADER_SIZE
    while offset < len(wire):
        code, count = _unpack_tlv(wire, offset)
        if code == wanted:
            return offset, count
        if code == _MI_SHA256 and wanted == _MI:
            # Decoding ignores a MESSAGE-INTEGRITY behind a MESSAGE-INTEGRITY-SHA256.
            return None
        offset += count + 7 & -4
    return None


def _covered(wire: bytes, offset: int, count: int) -> bytes:
    # RFC 8489 14.5: "The Length field of the STUN message header is adjusted to point to the end of
    # the MESSAGE-INTEGRITY attribute."
    length = offset + 4 + count - HEADER_SIZE
    return wire[:2] + length.to_bytes(2) + wire[4:offset]


def check_integrity(message: Message, key: bytes) -> bool | None:
    """Whether MESSAGE-INTEGRITY holds for this key (RFC 8489 section 14.5); ``None``: absent.

    Compares in constant time.
    """
    found = _find(message, _MI)
    if found is None:
        return None
    offset, count = found
    if count != 20:
        return False
    received = message.wire[offset + 4 : offset + 24]
    return compare_digest(received, hmac_sha1(key, _covered(message.wire, offset, count)))


def check_integrity_sha256(message: Message, key: bytes, *, minimum: int = 32) -> bool | None:
    """Whether MESSAGE-INTEGRITY-SHA256 holds (RFC 8489 section 14.6); ``None``: absent.

    ``minimum`` is the shortest value that counts: "the value must be the full 32 bytes unless the
    STUN Usage explicitly specifies that truncation is allowed", and never under 16.
    """
    if not 16 <= minimum <= 32:
        raise UsageError(f"at least {minimum} octets: RFC 8489 section 14.6 allows 16 to 32")
    found = _find(message, _MI_SHA256)
    if found is None:
        return None
    offset, count = found
    if not minimum <= count <= 32 or count % 4:
        return False
    received = message.wire[offset + 4 : offset + 4 + count]
    computed = hmac_sha256(key, _covered(message.wire, offset, count))
    return compare_digest(received, computed[:count])


def check_fingerprint(message: Message) -> bool | None:
    """Whether FINGERPRINT holds (RFC 8489 section 14.7); ``None``: absent.

    One that is not the last attribute does not: it "MUST be the last attribute in the message".
    """
    wire = message.wire
    found = _find(message, _FINGERPRINT)
    if found is None:
        return None
    offset, count = found
    if count != 4 or offset + 8 != len(wire):
        return False
    return int.from_bytes(wire[offset + 4 :]) == crc32(wire[:offset]) ^ FINGERPRINT_XOR
