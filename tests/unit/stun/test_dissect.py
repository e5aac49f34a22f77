"""The dissection: complete, honest about what is wrong, and never in the way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from stun import attributes as attrs
from stun.codec import decode, encode
from stun.dissect import Dissection, Part, explain
from stun.errors import DecodeError, DropReason
from stun.message import Message
from stun.sansio import Address

VECTORS = Path(__file__).resolve().parents[3] / "rfc-vectors"
TID = bytes.fromhex("b7e7a701bc34d686fa87dfae")


def cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / name).read_text())["cases"]
    return found


def part(found: Dissection | Part, *path: str) -> Part:
    for name in path:
        (found,) = (inner for inner in found.parts if inner.name == name)
    assert isinstance(found, Part)
    return found


def assert_gapless(data: bytes, parts: tuple[Part, ...], start: int, end: int) -> None:
    """The parts are the octets, in order, none left out and none shown twice."""
    offset = start
    for one in parts:
        assert one.offset == offset
        assert data[offset : offset + len(one.octets)] == one.octets
        offset += len(one.octets)
        if one.name == "header":
            assert_gapless(data, one.parts, one.offset, offset)
    assert offset == end


def test_the_rfc_5769_response() -> None:
    case = cases("stun/rfc5769.json")[1]
    data = bytes.fromhex(case["hex"])
    found = explain(data, key=bytes.fromhex(case["integrity"]["key"]))
    assert found.problem is None
    assert found.summary == "Binding success b7e7a701bc34d686fa87dfae, 80 octets"
    assert_gapless(data, found.parts, 0, len(data))
    mapped = part(found, "XOR-MAPPED-ADDRESS")
    assert (mapped.offset, mapped.value) == (36, "192.0.2.1:32853")
    assert mapped.section == "RFC 8489 section 14.2"
    assert part(mapped, "port").value == "32853"
    assert part(mapped, "address").offset == 44
    assert part(found, "MESSAGE-INTEGRITY").note == "holds"
    assert part(found, "FINGERPRINT").note == "holds"
    assert part(found, "SOFTWARE", "padding").note == "not zero"
    assert part(found, "header", "message type").value == "Binding success"
    wrong = explain(data, key=b"wrong")
    assert part(wrong, "MESSAGE-INTEGRITY").note == "does not hold"
    assert part(explain(data), "MESSAGE-INTEGRITY").note == ""


@pytest.mark.parametrize("case", cases("hostile/stun-messages.json"), ids=lambda c: c["id"])
def test_hostile_octets_are_explained(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    found = explain(data)
    assert b"".join(one.octets for one in found.parts) == data
    lines = found.lines()
    match case["stage"]:
        case "decode":
            assert found.problem is not None
            reason = DropReason[case["reason"]]
            assert (found.problem.reason, found.problem.offset) == (reason, case["offset"])
            assert lines[1].startswith(f"refused: {reason.value} (at octet {case['offset']})")
        case "value":
            assert "malformed at octet" in part(found, case["attribute"]).note
        case "fingerprint":
            assert any("does not hold" in line for line in lines)


def test_what_is_ignored_is_shown_and_called_ignored() -> None:
    (case,) = (
        c for c in cases("hostile/stun-messages.json") if c["id"] == "attribute-behind-integrity"
    )
    found = explain(bytes.fromhex(case["hex"]))
    assert part(found, "XOR-MAPPED-ADDRESS").note == "ignored: behind the proof of integrity"


def test_unknown_numbers_are_named_as_such() -> None:
    message = Message.request(0x123, TID)
    message.attributes += [(0x7FFE, b""), (0xFFFE, b"ab"), (0xF4A1, bytes(8)), (0x0003, bytes(4))]
    found = explain(encode(message))
    assert part(found, "header", "message type").note == "unknown method"
    assert part(found, "0x7ffe").note == "unknown, and must be understood"
    assert part(found, "0xfffe").note == "unknown"
    assert "natkit" in part(found, "CONNECT-BACK-RESULT").note
    assert part(found, "CHANGE-REQUEST").note == "reserved by IANA, yet in use"


def test_an_rfc_3489_peer_is_recognised() -> None:
    found = explain(bytes.fromhex("00010000") + bytes(16))
    assert found.summary.endswith("from an RFC 3489 peer")
    assert part(found, "header", "magic cookie").note == "not the magic cookie: RFC 3489"


def test_structured_values_are_readable() -> None:
    message = (
        Message.request(1, TID)
        .add(attrs.ERROR_CODE, attrs.ErrorValue(438, "Stale Nonce"))
        .add(attrs.PASSWORD_ALGORITHMS, (attrs.Algorithm(1), attrs.Algorithm(2, b"ab")))
        .add(attrs.CHANGE_REQUEST, attrs.ChangeRequest(True, False))
        .add(attrs.UNKNOWN_ATTRIBUTES, (1, 2))
        .add(attrs.OTHER_ADDRESS, Address("2001:db8::1", 3478))
    )
    found = explain(encode(message))
    assert part(found, "ERROR-CODE").value == "code 438, reason Stale Nonce"
    algorithms = "number 1, parameters ; number 2, parameters 6162"
    assert part(found, "PASSWORD-ALGORITHMS").value == algorithms
    assert part(found, "CHANGE-REQUEST").value == "change_ip True, change_port False"
    assert part(found, "UNKNOWN-ATTRIBUTES").value == "1; 2"
    assert part(found, "OTHER-ADDRESS").value == "[2001:db8::1]:3478"


def test_a_peer_s_text_cannot_drive_the_terminal() -> None:
    message = Message.request(1, TID).add(attrs.SOFTWARE, "\x1b[2Jgone\r\n\u202e")
    found = explain(encode(message))
    assert part(found, "SOFTWARE").value == "\\u001b[2Jgone\\u000d\\u000a\\u202e"
    assert all(line.isprintable() for line in found.lines())


def test_any_octets_are_explained(rng: random.Random) -> None:
    for _ in range(500):
        body = bytearray(rng.randbytes(rng.randrange(60)))
        head = bytes((0, rng.randrange(256))) + rng.choice(
            (len(body).to_bytes(2), rng.randbytes(2))
        )
        data = head + bytes(16) + bytes(body)
        data = data[: rng.choice((len(data), rng.randrange(len(data))))]
        found = explain(data, key=b"k", sha256_key=b"k")
        assert b"".join(one.octets for one in found.parts) == data
        reason: DropReason | None = None
        try:
            decode(data)
        except DecodeError as refused:
            reason = refused.reason
        assert (found.problem and found.problem.reason) is reason
