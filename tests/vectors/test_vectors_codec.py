"""The vectors of messages and attribute values: decode, compare, prove, encode again."""

from __future__ import annotations

import binascii
import hmac
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from stun import attributes as attrs
from stun.attributes import BY_CODE, Attribute
from stun.codec import decode, encode, message_type, split_message_type, unknown_required
from stun.errors import DecodeError, DropReason
from stun.integrity import check_fingerprint, check_integrity, check_integrity_sha256
from stun.message import Message
from stun.registry import FINGERPRINT_XOR, MAGIC_COOKIE, Class
from stun.sansio import Address

BY_NAME = {attribute.name: attribute for attribute in BY_CODE.values()}

Case = dict[str, Any]


def to_json(value: Any) -> Any:
    """A value as rfc-vectors/README.md writes it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [to_json(part) for part in value]
    return value


def from_json(attribute: Attribute[Any], value: Any) -> Any:
    match attribute:
        case attrs.PASSWORD_ALGORITHM:
            return attrs.Algorithm(value[0], bytes.fromhex(value[1]))
        case attrs.PASSWORD_ALGORITHMS:
            return [attrs.Algorithm(number, bytes.fromhex(given)) for number, given in value]
        case attrs.ACCESS_TOKEN:
            return attrs.AccessToken(*map(bytes.fromhex, value))
    if isinstance(attribute, type(attrs.DATA)):
        return bytes.fromhex(value)
    if isinstance(attribute, type(attrs.MAPPED_ADDRESS)):
        return Address(*value)
    return tuple(value) if isinstance(value, list) else value


def described(message: Message) -> Case:
    return {
        "method": message.method,
        "class": message.message_class.name.lower(),
        "transaction_id": message.transaction_id.hex(),
        "attributes": [
            {"type": f"{code:#06x}", "value": value.hex()} for code, value in message.attributes
        ],
    }


def assert_proofs(message: Message, case: Case) -> None:
    for name, check in (
        ("integrity", check_integrity),
        ("integrity_sha256", check_integrity_sha256),
    ):
        if name in case:
            key = bytes.fromhex(case[name]["key"])
            assert check(message, key) is case[name]["valid"]
            assert check(message, key + b"x") is False
        else:
            assert check(message, b"any") in (None, False)
    if "fingerprint" in case:
        assert check_fingerprint(message) is case["fingerprint"]
    else:
        assert check_fingerprint(message) is None


@pytest.mark.vectors("stun/rfc5769.json")
@pytest.mark.vectors("stun/rfc8489-b1.json")
def test_message(case: Case) -> None:
    data = bytes.fromhex(case["hex"])
    if "refused" in case:
        with pytest.raises(DecodeError) as caught:
            decode(data)
        assert caught.value.reason.name == case["refused"]["reason"]
        assert caught.value.offset == case["refused"]["offset"]
        return
    message = decode(data)
    assert described(message) == case["message"]
    for name, value in case["values"].items():
        assert to_json(message.get(BY_NAME[name])) == value, name
    assert_proofs(message, case)
    # One wrong bit anywhere in what the proof covers, and it fails.
    for position in (1, 5, 19, 25, len(data) // 2):
        forged = bytearray(data)
        forged[position] ^= 1
        try:
            changed = decode(bytes(forged))
        except DecodeError:
            continue
        for proof in (check_integrity, check_integrity_sha256):
            key = (case.get("integrity") or case["integrity_sha256"])["key"]
            assert proof(changed, bytes.fromhex(key)) in (None, False)


@pytest.mark.vectors("stun/rfc5769.json")
@pytest.mark.vectors("stun/rfc8489-b1.json")
def test_message_built_from_its_values(case: Case) -> None:
    """What natkit sends for the same values is the vector, but for padding and what covers it."""
    if "refused" in case:
        # Built anew, the length is right, so the octets must not be the printed ones.
        assert int.from_bytes(bytes.fromhex(case["hex"])[2:4]) != len(case["hex"]) // 2 - 20
        return
    described_message = case["message"]
    message = Message(
        described_message["method"],
        Class[described_message["class"].upper()],
        bytes.fromhex(described_message["transaction_id"]),
    )
    names = {attribute.code: attribute.name for attribute in BY_CODE.values()}
    for row in described_message["attributes"]:
        name = names[int(row["type"], 16)]
        if name in case["values"]:
            message.add(BY_NAME[name], from_json(BY_NAME[name], case["values"][name]))
    keys = {
        parameter: bytes.fromhex(case[proof]["key"])
        for parameter, proof in (("key", "integrity"), ("sha256_key", "integrity_sha256"))
        if proof in case
    }
    built = encode(message, **keys, fingerprint="fingerprint" in case)
    expected = bytes.fromhex(case["hex"])
    if "SPACE_PADDING" in case.get("flags", ()):
        assert len(built) == len(expected)
        assert decode(built).attributes[:-2] == decode(expected).attributes[:-2]
        assert_proofs(decode(built), case)
    else:
        assert built == expected


@pytest.mark.vectors("stun/wild.json")
def test_message_of_another_implementation(case: Case) -> None:
    data = bytes.fromhex(case["hex"])
    message = decode(data)
    assert described(message) == {k: v for k, v in case["message"].items() if k != "cookie"}
    assert f"{message.cookie:08x}" == case["message"].get("cookie", f"{MAGIC_COOKIE:08x}")
    for name, value in case["values"].items():
        assert to_json(message.get(BY_NAME[name])) == value, name
    assert check_fingerprint(message) is case.get("fingerprint")
    # Padding aside, it is sent on as it came.
    again = decode(encode(message))
    assert again == message
    assert len(again.wire) == len(data)


@pytest.mark.vectors("stun/message-types.json")
def test_message_type(case: Case) -> None:
    kind = int(case["type"], 16)
    message_class = Class[case["class"].upper()]
    assert message_type(case["method"], message_class) == kind
    assert split_message_type(kind) == (case["method"], message_class)
    message = decode(encode(Message(case["method"], message_class, bytes(12))))
    assert (message.method, message.message_class) == (case["method"], message_class)
    assert message.wire[:2] == kind.to_bytes(2)


@pytest.mark.vectors("stun/primitives.json", group="crc32")
def test_fingerprint_primitive(case: Case) -> None:
    crc = binascii.crc32(bytes.fromhex(case["input"]))
    assert f"{crc:08x}" == case["output"]
    assert f"{crc ^ FINGERPRINT_XOR:08x}" == case["fingerprint"]


@pytest.mark.vectors("stun/primitives.json", group="hmac-sha1")
@pytest.mark.vectors("stun/primitives.json", group="hmac-sha256")
def test_hmac_primitive(case: Case) -> None:
    algorithm = case["group"].removeprefix("hmac-")
    mac = hmac.digest(bytes.fromhex(case["key"]), bytes.fromhex(case["input"]), algorithm)
    assert mac.hex() == case["output"]


@pytest.mark.vectors("stun/attributes.json")
def test_attribute_value(case: Case) -> None:
    attribute = BY_NAME[case["attribute"]]
    assert attribute.code == int(case["type"], 16)
    transaction_id = bytes.fromhex("b7e7a701bc34d686fa87dfae")
    octets = bytes.fromhex(case["hex"])
    assert to_json(attribute.unpack(octets, transaction_id)) == case["value"]
    assert attribute.pack(from_json(attribute, case["value"]), transaction_id) == octets


@pytest.mark.vectors("turn/access-tokens.json")
def test_access_token(case: Case) -> None:
    message = Message.request(3, bytes(12))
    message.attributes.append((attrs.ACCESS_TOKEN.code, bytes.fromhex(case["token"])))
    token = decode(encode(message)).get(attrs.ACCESS_TOKEN)
    assert token is not None
    assert token.nonce.hex() == case["nonce"]
    plain = AESGCM(bytes.fromhex(case["key"])).decrypt(
        token.nonce, token.encrypted_block, case["associated_data"].encode()
    )
    assert plain.hex() == case["plaintext"]
    assert attrs.ACCESS_TOKEN.pack(token, bytes(12)).hex() == case["token"]


@pytest.mark.vectors("turn/rfc8656-section20.json")
def test_turn_flow(case: Case) -> None:
    """Every message of the example survives, with the proofs that the figure shows.

    The RFC gives neither octets nor password, so the proofs are made here with a key of ours.
    """
    transaction_id = bytes.fromhex(case["transaction_id"])
    message = Message(case["method"], Class[case["class"].upper()], transaction_id)
    names = [row["name"] for row in case["attributes"]]
    for row in case["attributes"]:
        attribute = BY_NAME[row["name"]]
        if "value" in row:
            message.add(attribute, from_json(attribute, row["value"]))
        elif attribute is attrs.DATA:
            message.add(attrs.DATA, b"...")
    sha1, sha256 = "MESSAGE-INTEGRITY" in names, "MESSAGE-INTEGRITY-SHA256" in names
    received = decode(
        encode(message, key=b"1" if sha1 else None, sha256_key=b"2" if sha256 else None)
    )
    assert [attrs.lookup(code).name for code, _ in received.attributes] == names
    for row in case["attributes"]:
        if "value" in row:
            assert to_json(received.get(BY_NAME[row["name"]])) == row["value"]
    assert check_integrity(received, b"1") is (True if sha1 else None)
    assert check_integrity_sha256(received, b"2") is (True if sha256 else None)
    assert unknown_required(received, frozenset(BY_CODE)) == ()


PROOFS = {
    "integrity": (check_integrity, DropReason.BAD_INTEGRITY),
    "integrity-sha256": (check_integrity_sha256, DropReason.BAD_INTEGRITY),
}


@pytest.mark.vectors("hostile/stun-messages.json")
def test_hostile_message(case: Case) -> None:
    data = bytes.fromhex(case["hex"])
    if case["stage"] == "decode":
        with pytest.raises(DecodeError) as caught:
            decode(data)
        assert (caught.value.reason.name, caught.value.offset) == (case["reason"], case["offset"])
        assert caught.value.reason.value in str(caught.value)
        return
    message = decode(data)
    match case["stage"]:
        case "accept":
            assert [f"{code:#06x}" for code, _ in message.attributes] == case["attributes"]
            for name, value in case.get("first", {}).items():
                assert to_json(message.get(BY_NAME[name])) == value
            if "unknown_required" in case:
                unknown = unknown_required(message, frozenset(BY_CODE))
                assert [f"{code:#06x}" for code in unknown] == case["unknown_required"]
            for name in ("integrity", "integrity_sha256"):
                if name in case:
                    check = PROOFS[name.replace("_", "-")][0]
                    assert check(message, bytes.fromhex(case[name]["key"])) is case[name]["valid"]
        case "fingerprint":
            assert case["reason"] == DropReason.BAD_FINGERPRINT.name
            assert check_fingerprint(message) is False
        case "integrity" | "integrity-sha256" as stage:
            check, reason = PROOFS[stage]
            assert case["reason"] == reason.name
            assert check(message, bytes.fromhex(case["key"])) is False
        case "value":
            attribute = BY_NAME[case["attribute"]]
            with pytest.raises(DecodeError) as caught:
                message.get(attribute)
            found = (caught.value.reason.name, caught.value.offset)
            assert found == (case["reason"], case["offset"])
            assert attribute.name in str(caught.value)
        case stage:
            pytest.fail(f"no such stage: {stage}")
