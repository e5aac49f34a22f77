"""How long the RFC 5769 request takes, beside aioice on the same machine in the same run.

    python -m pytest tests/bench/test_bench_codec.py -o addopts= --benchmark-group-by=group

Three groups.  *decode*: octets to a message (attributes as octets for natkit, which decodes a value
when it is asked for; as values for aioice, which knows no other way) and, for a fair comparison,
natkit reading every value too (neither checks a proof, but for the FINGERPRINT that
aioice checks whenever it parses).  *encode*: the same values to octets with MESSAGE-INTEGRITY and
FINGERPRINT.  *verify*: MESSAGE-INTEGRITY and FINGERPRINT of a received message.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stun import attributes as attrs
from stun import spec
from stun.codec import decode, encode
from stun.integrity import check_fingerprint, check_integrity
from stun.message import Message

VECTORS = Path(__file__).resolve().parents[2] / "rfc-vectors" / "stun" / "rfc5769.json"
CASE = json.loads(VECTORS.read_text())["cases"][0]
OCTETS = bytes.fromhex(CASE["hex"])
KEY = bytes.fromhex(CASE["integrity"]["key"])
TID = bytes.fromhex(CASE["message"]["transaction_id"])
SOFTWARE, PRIORITY, CONTROLLED, USERNAME = CASE["values"].values()
READ: tuple[attrs.Attribute[Any], ...] = (
    attrs.SOFTWARE,
    attrs.PRIORITY,
    attrs.ICE_CONTROLLED,
    attrs.USERNAME,
)


@pytest.fixture
def aioice() -> Any:
    return pytest.importorskip("aioice.stun")


def built() -> Message:
    return (
        Message.request(1, TID)
        .add(attrs.SOFTWARE, SOFTWARE)
        .add(attrs.PRIORITY, PRIORITY)
        .add(attrs.ICE_CONTROLLED, CONTROLLED)
        .add(attrs.USERNAME, USERNAME)
    )


@pytest.mark.benchmark(group="decode")
def test_natkit_decode(benchmark: Any) -> None:
    message = benchmark(decode, OCTETS)
    assert message.get(attrs.USERNAME) == USERNAME


@pytest.mark.benchmark(group="decode")
def test_natkit_decode_and_read_every_value(benchmark: Any) -> None:
    def run() -> list[object]:
        get = decode(OCTETS).get
        return [get(attribute) for attribute in READ]

    assert benchmark(run) == [SOFTWARE, PRIORITY, CONTROLLED, USERNAME]


@pytest.mark.benchmark(group="decode")
def test_aioice_decode(benchmark: Any, aioice: Any) -> None:
    message = benchmark(aioice.parse_message, OCTETS)
    assert message.attributes["USERNAME"] == USERNAME


@pytest.mark.benchmark(group="decode")
def test_specification_decode(benchmark: Any) -> None:
    assert len(benchmark(spec.MESSAGE.parse, OCTETS).attributes) == 6


@pytest.mark.benchmark(group="encode")
def test_natkit_encode(benchmark: Any) -> None:
    message = built()
    octets = benchmark(lambda: encode(message, key=KEY, fingerprint=True))
    assert check_integrity(decode(octets), KEY)


@pytest.mark.benchmark(group="encode")
def test_natkit_encode_from_values(benchmark: Any) -> None:
    octets = benchmark(lambda: encode(built(), key=KEY, fingerprint=True))
    assert len(octets) == len(OCTETS)
    assert check_fingerprint(decode(octets))


@pytest.mark.benchmark(group="encode")
def test_aioice_encode_from_values(benchmark: Any, aioice: Any) -> None:
    def run() -> bytes:
        message = aioice.Message(
            message_method=aioice.Method.BINDING,
            message_class=aioice.Class.REQUEST,
            transaction_id=TID,
        )
        message.attributes["SOFTWARE"] = SOFTWARE
        message.attributes["PRIORITY"] = PRIORITY
        message.attributes["ICE-CONTROLLED"] = CONTROLLED
        message.attributes["USERNAME"] = USERNAME
        message.add_message_integrity(KEY)
        message.add_fingerprint()
        return bytes(message)

    assert benchmark(run) == encode(built(), key=KEY, fingerprint=True)


@pytest.mark.benchmark(group="verify")
def test_natkit_decode_and_verify(benchmark: Any) -> None:
    def run() -> tuple[bool | None, bool | None]:
        message = decode(OCTETS)
        return check_fingerprint(message), check_integrity(message, KEY)

    assert benchmark(run) == (True, True)


@pytest.mark.benchmark(group="verify")
def test_aioice_decode_and_verify(benchmark: Any, aioice: Any) -> None:
    # aioice checks the fingerprint of every message that it parses.
    def run() -> Any:
        message = aioice.parse_message(OCTETS)
        message.check_message_integrity(KEY)
        return message

    assert benchmark(run).attributes["PRIORITY"] == PRIORITY
