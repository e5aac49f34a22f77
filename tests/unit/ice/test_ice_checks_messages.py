"""The messages of checks: what they hold, and how they are read."""

from __future__ import annotations

import pytest

from ice.config import Credentials
from ice.messages import (
    NOMINATION,
    NOMINATION_PION,
    Keys,
    error_code,
    proof_holds,
    read_request,
    refusal,
    request,
    success,
    unproved_refusal,
    username_of,
)
from stun.attributes import (
    ERROR_CODE,
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    PRIORITY,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    XOR_MAPPED_ADDRESS,
)
from stun.codec import decode, encode
from stun.errors import DecodeError, UsageError
from stun.integrity import check_fingerprint, check_integrity, check_integrity_sha256
from stun.message import Message
from stun.registry import Class, ErrorCode, Method
from stun.sansio import Address

LEFT = Credentials("LFRAG", "LPASS-0123456789-0123456789")
RIGHT = Credentials("RFRAG", "RPASS-0123456789-0123456789")
TID = bytes(range(12))


def keys_of(local: Credentials = LEFT, remote: Credentials = RIGHT) -> Keys:
    keys = Keys(local)
    keys.set_remote(remote)
    return keys


def make(**values: object) -> Message:
    given: dict[str, object] = {"priority": 7, "controlling": True, "tie_breaker": 9} | values
    return decode(request(TID, keys_of(), **given))  # type: ignore[arg-type]


def test_a_check_uses_the_credentials_as_the_rfc_says() -> None:
    # RFC 8445 7.2.2: "A connectivity check from L to R utilizes the username RFRAG:LFRAG and a
    # password of RPASS."
    message = make()
    assert (message.method, message.message_class) == (Method.BINDING, Class.REQUEST)
    assert message.transaction_id == TID
    assert username_of(message) == b"RFRAG:LFRAG"
    assert check_integrity(message, RIGHT.password.encode()) is True
    assert check_integrity(message, LEFT.password.encode()) is False
    assert check_fingerprint(message) is True


@pytest.mark.parametrize("controlling", [True, False])
def test_it_says_the_role_and_the_priority(controlling: bool) -> None:
    message = make(controlling=controlling, priority=1845501695, tie_breaker=(1 << 64) - 1)
    mine, other = (
        (ICE_CONTROLLING, ICE_CONTROLLED) if controlling else (ICE_CONTROLLED, ICE_CONTROLLING)
    )
    assert message.get(mine) == (1 << 64) - 1
    assert message.get(other) is None
    assert message.get(PRIORITY) == 1845501695
    assert message.get(USE_CANDIDATE) is None
    assert not message.has(SOFTWARE)


def test_software_is_said_where_it_is_configured() -> None:
    assert make(software="natkit").get(SOFTWARE) == "natkit"


def test_a_nomination_is_numbered_from_the_second_on() -> None:
    first = make(use_candidate=True, nomination=1)
    assert first.get(USE_CANDIDATE) is True
    assert NOMINATION not in dict(first.attributes)
    second = make(use_candidate=True, nomination=2)
    assert dict(second.attributes)[NOMINATION] == b"\0\0\0\2"
    assert read_request(second, b"x").nomination == 2


def test_fragments_of_256_characters_fit() -> None:
    # RFC 8445 5.3 allows them; RFC 8489 14.3 wants a USERNAME of fewer than 509 octets.
    keys = keys_of(Credentials("l" * 256, "p" * 22), Credentials("r" * 256, "q" * 22))
    message = decode(request(TID, keys, priority=1, controlling=True, tie_breaker=1))
    assert username_of(message) == b"r" * 256 + b":" + b"l" * 256
    assert proof_holds(message, b"q" * 22)


def test_credentials_without_a_utf8_form_are_refused() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        Keys(Credentials("abc\ud800", "p" * 22))


@pytest.mark.parametrize(
    ("attributes", "nomination"),
    [
        ([], 0),
        ([(USE_CANDIDATE.code, b"")], 1),
        ([(USE_CANDIDATE.code, b""), (NOMINATION, b"\0\0\1\0")], 256),
        ([(NOMINATION_PION, b"\0\0\0\5"), (USE_CANDIDATE.code, b"")], 5),
        ([(NOMINATION, b"\0\0\0\0"), (USE_CANDIDATE.code, b"")], 1),
        ([(NOMINATION, b"\0\7")], 0),
    ],
)
def test_nominations_are_read(attributes: list[tuple[int, bytes]], nomination: int) -> None:
    message = Message.request(Method.BINDING, TID)
    message.attributes = attributes
    assert read_request(message, b"frag").nomination == nomination


@pytest.mark.parametrize(
    "attribute",
    [
        (PRIORITY.code, b"\0" * 3),
        (ICE_CONTROLLED.code, b"\0" * 4),
        (ICE_CONTROLLING.code, b""),
        (USE_CANDIDATE.code, b"\1\0\0\0"),
    ],
)
def test_values_that_are_none_are_told(attribute: tuple[int, bytes]) -> None:
    message = Message.request(Method.BINDING, TID)
    message.attributes.append(attribute)
    with pytest.raises(DecodeError):
        read_request(message, b"frag")


def test_an_answer_has_the_address_and_the_same_password_but_no_username() -> None:
    asked = make()
    source = Address("2001:db8::7", 4242)
    answer = decode(success(asked, source, RIGHT.password.encode(), "natkit"))
    assert answer.message_class is Class.SUCCESS
    assert answer.transaction_id == TID
    assert answer.get(XOR_MAPPED_ADDRESS) == source
    assert answer.get(SOFTWARE) == "natkit"
    assert username_of(answer) is None
    assert check_integrity(answer, RIGHT.password.encode()) is True
    assert check_fingerprint(answer) is True


def test_a_peer_that_proves_itself_with_sha256_is_answered_so() -> None:
    key = RIGHT.password.encode()
    message = Message.request(Method.BINDING, TID)
    asked = decode(encode(message, sha256_key=key, fingerprint=True))
    assert proof_holds(asked, key) is True
    assert proof_holds(asked, b"other") is False
    answer = decode(success(asked, Address("192.0.2.1", 1), key, None))
    assert check_integrity(answer, key) is None
    assert check_integrity_sha256(answer, key) is True


def test_no_proof_is_not_a_wrong_proof() -> None:
    assert proof_holds(decode(encode(Message.request(Method.BINDING, TID))), b"k") is None


def test_refusals() -> None:
    asked = make()
    key = RIGHT.password.encode()
    conflict = decode(refusal(asked, ErrorCode.ROLE_CONFLICT, key))
    assert error_code(conflict) == 487
    assert proof_holds(conflict, key) is True
    unknown = decode(refusal(asked, ErrorCode.UNKNOWN_ATTRIBUTE, key, (0x7F01,)))
    assert unknown.get(UNKNOWN_ATTRIBUTES) == (0x7F01,)
    stranger = decode(unproved_refusal(asked, ErrorCode.UNAUTHENTICATED))
    assert error_code(stranger) == 401
    assert proof_holds(stranger, key) is None


def test_an_error_without_a_code_has_the_code_0() -> None:
    asked = make()
    response = Message(Method.BINDING, Class.ERROR, asked.transaction_id)
    assert error_code(response) == 0
    response.attributes.append((ERROR_CODE.code, b"\0"))
    assert error_code(response) == 0
