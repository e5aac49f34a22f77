"""A message as a value: building, reading, answering."""

from __future__ import annotations

import pytest

from stun import attributes as attrs
from stun.codec import decode, encode
from stun.errors import DecodeError, DropReason
from stun.message import Message
from stun.registry import Class, Method
from stun.sansio import Address

TID = bytes.fromhex("b7e7a701bc34d686fa87dfae")


def request(*attributes: tuple[int, bytes]) -> Message:
    return Message(Method.BINDING, Class.REQUEST, TID, list(attributes))


def test_responses_answer_their_request() -> None:
    asked = Message.request(Method.ALLOCATE, TID)
    granted = Message.success(asked)
    assert (granted.method, granted.message_class) == (Method.ALLOCATE, Class.SUCCESS)
    assert granted.transaction_id == TID
    refused = Message.error(asked, 437)
    assert refused.message_class is Class.ERROR
    assert refused.get(attrs.ERROR_CODE) == (437, "Allocation Mismatch")
    assert Message.error(asked, 437, "No").get(attrs.ERROR_CODE) == (437, "No")
    assert Message.indication(Method.SEND, TID).message_class is Class.INDICATION


def test_add_chains_and_get_reads() -> None:
    message = (
        Message.request(Method.BINDING, TID)
        .add(attrs.USE_CANDIDATE, True)
        .add(attrs.PRIORITY, 0x6E0001FF)
        .add(attrs.XOR_MAPPED_ADDRESS, Address("2001:db8::1", 65535))
    )
    again = decode(encode(message))
    assert again.has(attrs.USE_CANDIDATE)
    assert again.get(attrs.USE_CANDIDATE) is True
    assert again.get(attrs.PRIORITY) == 0x6E0001FF
    assert again.get(attrs.XOR_MAPPED_ADDRESS) == Address("2001:db8::1", 65535)
    assert again.get(attrs.SOFTWARE) is None
    assert not again.has(attrs.SOFTWARE)
    assert again.all(attrs.SOFTWARE) == []


def test_a_malformed_attribute_hurts_only_who_asks_for_it() -> None:
    message = decode(encode(request((0x0024, b"ab"), (0x0006, b"user"))))
    assert message.get(attrs.USERNAME) == "user"
    assert message.has(attrs.PRIORITY)
    with pytest.raises(DecodeError) as caught:
        message.get(attrs.PRIORITY)
    assert caught.value.reason is DropReason.BAD_ATTRIBUTE_VALUE
    # The first one decides, even when a second one would be fine.
    twice = decode(encode(request((0x0024, b"ab"), (0x0024, bytes(4)))))
    with pytest.raises(DecodeError):
        twice.get(attrs.PRIORITY)


def test_the_wire_is_no_part_of_the_value() -> None:
    made = request((0x0006, b"user"))
    received = decode(encode(made))
    assert received == made
    assert received.wire
    assert not made.wire
    assert "wire" not in repr(received)


def test_a_message_of_an_unknown_method_has_a_text() -> None:
    assert str(Message(0xABC, Class.ERROR, bytes(12))) == "0x0abc error " + "00" * 12
