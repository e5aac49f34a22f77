"""The normative formats: strict where they must be, and complete."""

from __future__ import annotations

import re

import pytest
from construct import ConstructError

from stun import attributes as attrs
from stun import spec
from stun.registry import AttributeType

TID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
HEADER = bytes.fromhex("000100002112a442") + TID


def with_attributes(body: bytes, length: int | None = None) -> bytes:
    return HEADER[:2] + (len(body) if length is None else length).to_bytes(2) + HEADER[4:] + body


def test_every_attribute_whose_value_somebody_defines_has_a_format() -> None:
    owners = re.compile("IANA, ")
    defined = {row for row in AttributeType if not owners.match(row.section)}
    assert set(spec.VALUES) == defined


def test_an_unknown_attribute_is_opaque() -> None:
    assert spec.value_format(0x7ABC).parse(b"any").octets == b"any"
    assert spec.value_format(0x7ABC).parse(b"").octets == b""


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        HEADER[:19],
        HEADER + b"\0",
        b"\x40" + HEADER[1:],
        with_attributes(b"\x80\x22\0\1abc\0", 4),
        with_attributes(b"\x80\x22\0\5abc\0"),
        with_attributes(b"\x80\x22\0\3abc"),
        with_attributes(b"\x80\x22"),
        with_attributes(b"\x80\x22\0\3abc\0" + b"\0\0\0"),
    ],
    ids=lambda octets: octets[20:].hex() or str(len(octets)),
)
def test_a_broken_message_is_refused_whole(octets: bytes) -> None:
    """A bare GreedyRange would return the attributes before the broken one."""
    with pytest.raises(ConstructError):
        spec.MESSAGE.parse(octets)


def test_a_message_is_built_from_its_parts() -> None:
    built = spec.MESSAGE.build(
        {
            "header": {
                "message_type": {"method": 0xABC, "message_class": 3},
                "message_length": 8,
                "magic_cookie": 0x2112A442,
                "transaction_id": TID,
            },
            "attributes": [{"type": 0x8022, "length": 3, "value": b"abc"}],
        }
    )
    assert built[2:] == with_attributes(b"\x80\x22\0\3abc\0")[2:]
    assert spec.MESSAGE.parse(built).header.message_type.method == 0xABC


@pytest.mark.parametrize(
    ("types", "counted"),
    [
        ([], ""),
        ([6, 8], "++"),
        ([6, 8, 6], "++-"),
        ([6, 8, 0x8028], "+++"),
        ([8, 0x1C, 0x8028], "+++"),
        ([8, 8, 0x1C, 0x1C, 6, 0x8028], "+-+--+"),
        ([0x1C, 8, 0x1C], "+--"),
        ([0x1C, 6, 0x8028, 6], "+-+-"),
        ([6, 0x8028, 6], "+++"),
    ],
    ids=str,
)
def test_what_counts_behind_a_proof(types: list[int], counted: str) -> None:
    assert spec.counted(types) == [sign == "+" for sign in counted]


def test_fields_are_located() -> None:
    address = spec.locate(0x0020, bytes.fromhex("0001a147e112a643"), TID)
    assert [(field.name, field.start, field.end) for field in address] == [
        ("reserved", 0, 1),
        ("family", 1, 2),
        ("port", 2, 4),
        ("address", 4, 8),
    ]
    assert address[2].value == 32853
    assert address[3].value == bytes((192, 0, 2, 1))
    error = spec.locate(0x0009, b"\0\0\4\1no", TID)
    assert (error[-1].name, error[-1].start, error[-1].value) == ("reason", 4, b"no")
    assert {"digit": 4, "reserved": 0} in [field.value for field in error]
    types = spec.locate(0x000A, b"\0\1\0\2", TID)
    assert types[0].value == [{"value": 1}, {"value": 2}]


def test_a_malformed_value_has_no_fields() -> None:
    assert spec.locate(0x0020, b"\0\3" + bytes(6), TID) == []
    assert spec.locate(attrs.USE_CANDIDATE.code, b"x", TID) == []


def test_the_last_password_algorithm_may_lack_its_padding_when_received_only() -> None:
    form = spec.VALUES[AttributeType.PASSWORD_ALGORITHM]
    assert form.parse(b"\0\1\0\1x").algorithm.parameters == b"x"
    assert form.parse(b"\0\1\0\1x\0\0\0").algorithm.parameters == b"x"
    with pytest.raises(ConstructError):
        form.parse(b"\0\1\0\1x\0\0\0\0")
    algorithm = {"algorithm": 1, "parameters_length": 1, "parameters": b"x"}
    assert form.build({"algorithm": algorithm}) == b"\0\1\0\1x\0\0\0"
