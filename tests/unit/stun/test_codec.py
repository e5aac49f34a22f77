"""Messages to octets and back."""

from __future__ import annotations

import random
import struct
import subprocess
import sys

import pytest

import stun
from stun import attributes as attrs
from stun.codec import decode, encode, message_type, split_message_type, unknown_required
from stun.errors import DecodeError, DropReason, UsageError
from stun.message import Message
from stun.registry import MAGIC_COOKIE, Class, Method

TID = bytes.fromhex("b7e7a701bc34d686fa87dfae")


def request(*attributes: tuple[int, bytes]) -> Message:
    return Message(Method.BINDING, Class.REQUEST, TID, list(attributes))


def test_the_smallest_message() -> None:
    octets = encode(Message.request(Method.BINDING, TID))
    assert octets == bytes.fromhex("000100002112a442") + TID
    message = decode(octets)
    assert message == Message.request(1, TID)
    assert message.wire == octets
    assert str(message) == "Binding request b7e7a701bc34d686fa87dfae"


def test_every_message_type_goes_both_ways() -> None:
    seen = set()
    for method in range(0x1000):
        for message_class in Class:
            kind = message_type(method, message_class)
            assert kind <= 0x3FFF
            assert split_message_type(kind) == (method, message_class)
            seen.add(kind)
    assert len(seen) == 0x4000


def test_order_repetition_and_unknown_attributes_survive() -> None:
    given = [(0x7FFF, b"a"), (0x0006, b"bc"), (0x7FFF, b""), (0xFFFF, b"defg"), (0x0006, b"hi")]
    message = decode(encode(request(*given)))
    assert message.attributes == given
    assert message.get(attrs.USERNAME) == "bc"
    assert message.all(attrs.USERNAME) == ["bc", "hi"]
    assert message.get(attrs.lookup(0x7FFF)) == b"a"


@pytest.mark.parametrize("size", range(9))
def test_padding_is_zero_and_not_counted(size: int) -> None:
    octets = encode(request((0x8022, b"x" * size)))
    assert len(octets) % 4 == 0
    assert octets[22:24] == size.to_bytes(2)
    assert octets[24 + size :] == bytes(-size % 4)
    assert decode(octets).attributes == [(0x8022, b"x" * size)]


def test_proofs_come_in_the_order_of_the_norm_and_leave_the_message_alone() -> None:
    message = request((0x0006, b"user"))
    octets = encode(message, key=b"a", sha256_key=b"b", fingerprint=True)
    assert message.attributes == [(0x0006, b"user")]
    assert [code for code, _ in decode(octets).attributes] == [0x0006, 0x0008, 0x001C, 0x8028]


def test_a_decoded_message_encodes_to_the_same_octets() -> None:
    octets = encode(request((0x0006, b"abc")), key=b"k", sha256_key=b"k", fingerprint=True)
    assert encode(decode(octets)) == octets


def test_an_rfc_3489_peer_gets_its_cookie_back() -> None:
    old = bytes.fromhex("00010000") + bytes(range(16))
    message = decode(old)
    assert message.is_rfc3489
    assert message.cookie == 0x00010203
    assert message.transaction_id == bytes(range(4, 16))
    for answer in (Message.success(message), Message.error(message, 400)):
        assert encode(answer)[4:20] == bytes(range(16))
    assert not decode(encode(Message.request(1, TID))).is_rfc3489


def test_every_prefix_of_a_message_is_refused() -> None:
    octets = encode(request((0x0006, b"user"), (0x8022, b"soft")), key=b"k", fingerprint=True)
    for size in range(len(octets)):
        with pytest.raises(DecodeError) as caught:
            decode(octets[:size])
        short = DropReason.TOO_SHORT if size < 20 else DropReason.LENGTH_MISMATCH
        assert caught.value.reason is short
    for size in range(1, 5):
        with pytest.raises(DecodeError) as caught:
            decode(octets + bytes(size))
        assert caught.value.reason is DropReason.LENGTH_MISMATCH


def test_what_follows_the_proof_does_not_count_but_stays_in_the_wire() -> None:
    proved = encode(request((0x0006, b"user")), key=b"k")
    extra = bytes.fromhex("80220003") + b"abc\0"
    octets = proved[:2] + (len(proved) - 20 + len(extra)).to_bytes(2) + proved[4:] + extra
    message = decode(octets)
    assert [code for code, _ in message.attributes] == [0x0006, 0x0008]
    assert message.wire == octets


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Message(1, Class.REQUEST, b"short"), "transaction id of 5 octets"),
        (Message(1, Class.REQUEST, bytes(16)), "transaction id of 16 octets"),
        (Message(0x1000, Class.REQUEST, TID), "a method of 0x1000"),
        (Message(-1, Class.REQUEST, TID), "a method of -0x1"),
        (Message(1, Class.REQUEST, TID, cookie=1 << 32), "a cookie of"),
        (request((0x10000, b"")), "an attribute type of 0x10000"),
        (request((-1, b"")), "an attribute type of -0x1"),
        (request((0x8022, bytes(0x10000))), "attribute 0x8022 has 65536 octets"),
        (request((0x8022, bytes(0x8000)), (0x8022, bytes(0x8000))), "longer together"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_a_message_is_the_caller_s_mistake(message: Message, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        encode(message, key=b"k", fingerprint=True)


def test_the_longest_message() -> None:
    octets = encode(request((0x0013, bytes(0xFFF8))))
    assert len(octets) == 20 + 0xFFFC
    assert decode(octets).attributes == [(0x0013, bytes(0xFFF8))]
    with pytest.raises(UsageError, match="longer together"):
        encode(request((0x0013, bytes(0xFFF8))), fingerprint=True)


def test_unknown_required() -> None:
    codes = (0x0006, 0x7FFF, 0x8FFF, 0x7FFE, 0x7FFF)
    message = request(*((code, b"") for code in codes))
    assert unknown_required(message, frozenset({0x0006})) == (0x7FFF, 0x7FFE)
    assert unknown_required(message, frozenset(codes)) == ()


def test_random_octets_never_raise_anything_else(rng: random.Random) -> None:
    for _ in range(2_000):
        body = rng.randbytes(4 * rng.randrange(20))
        head = struct.pack(">HHI12s", rng.randrange(0x4000), len(body), MAGIC_COOKIE, TID)
        offset = 20
        try:
            decode(head + body)
        except DecodeError as refused:
            offset = refused.offset
        assert 20 <= offset <= 20 + len(body)


def test_the_package_exports_what_it_says() -> None:
    for name in stun.__all__:
        assert hasattr(stun, name)
    assert stun.decode is decode


def test_importing_the_package_does_not_import_construct() -> None:
    """construct takes longer to import than a command line may take to start."""
    program = (
        "import sys, stun, stun.codec, stun.attributes, stun.integrity\n"
        "heavy = {'construct', 'socket', 'asyncio', 'ssl', 'logging'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
