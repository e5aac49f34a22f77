"""The proofs: what they cover, and what makes them fail."""

from __future__ import annotations

import binascii
import hmac

import pytest

from stun import attributes as attrs
from stun.codec import decode, encode
from stun.errors import DecodeError, UsageError
from stun.integrity import check_fingerprint, check_integrity, check_integrity_sha256
from stun.message import Message
from stun.registry import Class

TID = bytes(range(12))
KEY = b"the key"


def proved(**proofs: object) -> Message:
    message = Message.request(1, TID).add(attrs.USERNAME, "user")
    return decode(encode(message, **proofs))  # type: ignore[arg-type]


def rewritten(message: Message, attributes: list[tuple[int, bytes]]) -> Message:
    return decode(encode(Message(1, Class.REQUEST, TID, attributes)))


def test_absent_proofs_are_none() -> None:
    message = proved()
    assert check_integrity(message, KEY) is None
    assert check_integrity_sha256(message, KEY) is None
    assert check_fingerprint(message) is None


def test_all_three_hold_together() -> None:
    message = proved(key=KEY, sha256_key=b"other", fingerprint=True)
    assert check_integrity(message, KEY) is True
    assert check_integrity(message, b"other") is False
    assert check_integrity_sha256(message, b"other") is True
    assert check_integrity_sha256(message, KEY) is False
    assert check_fingerprint(message) is True


def test_integrity_is_the_hmac_over_the_adjusted_header() -> None:
    """RFC 8489 section 14.5, computed by hand."""
    message = proved(key=KEY, sha256_key=KEY, fingerprint=True)
    wire = message.wire
    username = wire[20:28]
    adjusted = wire[:2] + (8 + 24).to_bytes(2) + wire[4:20] + username
    assert message.get(attrs.MESSAGE_INTEGRITY) == hmac.digest(KEY, adjusted, "sha1")
    integrity = wire[28:52]
    adjusted = wire[:2] + (8 + 24 + 36).to_bytes(2) + wire[4:20] + username + integrity
    assert message.get(attrs.MESSAGE_INTEGRITY_SHA256) == hmac.digest(KEY, adjusted, "sha256")
    assert message.get(attrs.FINGERPRINT) == binascii.crc32(wire[:-8]) ^ 0x5354554E


@pytest.mark.parametrize("proof", ["key", "sha256_key"])
def test_every_bit_that_is_covered_matters(proof: str) -> None:
    message = proved(**{proof: KEY})
    check = check_integrity if proof == "key" else check_integrity_sha256
    assert check(message, KEY) is True
    for position in range(len(message.wire)):
        for bit in range(8):
            forged = bytearray(message.wire)
            forged[position] ^= 1 << bit
            try:
                changed = decode(bytes(forged))
            except DecodeError:
                continue
            # None when the attribute's own type was hit: a caller that wants a proof has none.
            assert check(changed, KEY) is not True, (position, bit)


def test_every_bit_matters_to_the_fingerprint() -> None:
    message = proved(fingerprint=True)
    for position in range(len(message.wire)):
        forged = bytearray(message.wire)
        forged[position] ^= 0x10
        try:
            changed = decode(bytes(forged))
        except DecodeError:
            continue
        assert check_fingerprint(changed) is not True


@pytest.mark.parametrize("size", [16, 20, 24, 28, 32])
def test_a_truncated_sha256_counts_only_where_it_is_allowed(size: int) -> None:
    full = Message.request(1, TID).add(attrs.USERNAME, "user")
    head = encode(rewritten(full, [*full.attributes, (0x001C, bytes(size))]))
    mac = hmac.digest(KEY, head[: -size - 4], "sha256")[:size]
    message = rewritten(full, [*full.attributes, (0x001C, mac)])
    assert check_integrity_sha256(message, KEY) is (size == 32)
    assert check_integrity_sha256(message, KEY, minimum=16) is True
    assert check_integrity_sha256(message, KEY, minimum=size) is True
    if size < 32:
        assert check_integrity_sha256(message, KEY, minimum=size + 4) is False


@pytest.mark.parametrize("size", [0, 4, 12, 15, 17, 18, 19, 21, 31, 33, 36])
def test_a_sha256_of_no_allowed_length_never_holds(size: int) -> None:
    message = rewritten(proved(), [(0x001C, bytes(size))])
    mac = hmac.digest(KEY, message.wire[:20], "sha256").ljust(size, b"\0")[:size]
    assert check_integrity_sha256(rewritten(message, [(0x001C, mac)]), KEY, minimum=16) is False


@pytest.mark.parametrize("minimum", [0, 15, 33])
def test_the_minimum_has_bounds_of_its_own(minimum: int) -> None:
    with pytest.raises(UsageError):
        check_integrity_sha256(proved(sha256_key=KEY), KEY, minimum=minimum)


@pytest.mark.parametrize("size", [0, 16, 19, 21])
def test_an_integrity_of_another_length_never_holds(size: int) -> None:
    assert check_integrity(rewritten(proved(), [(0x0008, bytes(size))]), KEY) is False


def test_only_received_messages_can_be_verified() -> None:
    made = Message.request(1, TID)
    with pytest.raises(UsageError, match="was not received"):
        check_integrity(made, KEY)
    with pytest.raises(UsageError, match="was not received"):
        check_integrity_sha256(made, KEY)
    with pytest.raises(UsageError, match="was not received"):
        check_fingerprint(made)


def test_what_looks_like_a_fingerprint_inside_a_value_is_none() -> None:
    inner = encode(Message.request(1, TID), fingerprint=True)
    message = decode(encode(Message.indication(7, TID).add(attrs.DATA, inner)))
    assert message.wire[-8:] == inner[-8:]
    assert check_fingerprint(message) is None


def test_a_message_changed_after_decoding_is_verified_as_it_was_received() -> None:
    message = proved(key=KEY)
    message.attributes.clear()
    assert check_integrity(message, KEY) is True


def test_integrity_behind_sha256_is_ignored_as_decoding_does() -> None:
    first = encode(Message.request(1, TID), sha256_key=KEY)
    both = decode(first).attributes
    message = rewritten(proved(), [*both, (0x0008, bytes(20))])
    assert check_integrity(message, KEY) is None
    assert not message.has(attrs.MESSAGE_INTEGRITY)
