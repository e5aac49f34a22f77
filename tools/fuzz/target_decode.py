"""What must hold for any octets that are taken for a STUN message.

Shared by the coverage-guided fuzzer (python -m tools.fuzz) and the short run of every test
session (tests/fuzz/test_fuzz_decode.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from construct import ConstructError

from stun import spec
from stun.attributes import lookup
from stun.codec import decode, encode, unknown_required
from stun.dissect import explain
from stun.errors import DecodeError
from stun.integrity import check_fingerprint, check_integrity, check_integrity_sha256

VECTORS = Path(__file__).resolve().parents[2] / "rfc-vectors"
KEY = b"VOkJxbRl1RmTxUk/WvJxBt"  # of RFC 5769, so that some seeds verify


def seeds() -> Iterator[bytes]:
    """Yield every message of the vectors, good and hostile."""
    for name in ("stun/rfc5769.json", "stun/rfc8489-b1.json", "hostile/stun-messages.json"):
        for case in json.loads((VECTORS / name).read_text())["cases"]:
            yield bytes.fromhex(case["hex"])


def check_message(data: bytes) -> None:
    """Raise ``AssertionError``, or whatever escapes, when the codec does wrong on these octets."""
    explained = explain(data, key=KEY, sha256_key=KEY)
    assert b"".join(part.octets for part in explained.parts) == data
    assert all(line.isprintable() for line in explained.lines())
    message = refusal = None
    try:
        message = decode(data)
    except DecodeError as refused:
        refusal = refused
    assert _specified(data) is (message is not None)
    if message is None:
        assert refusal is not None
        assert 0 <= refusal.offset <= len(data)
        assert explained.problem is not None
        assert explained.problem.reason is refusal.reason
        return
    assert explained.problem is None
    assert len(message.transaction_id) == 12
    for code, value in message.attributes:
        attribute = lookup(code)
        offset = 0
        try:
            attribute.unpack(value, message.transaction_id)
        except DecodeError as refused:
            offset = refused.offset
        assert 0 <= offset <= len(value)
    unknown_required(message, frozenset())
    proofs = (
        check_integrity(message, KEY),
        check_integrity_sha256(message, KEY, minimum=16),
        check_fingerprint(message),
    )
    codes = [code for code, _ in message.attributes]
    assert [proof is not None for proof in proofs] == [
        code in codes for code in (0x0008, 0x001C, 0x8028)
    ]
    # What was taken can be sent, and is then taken for the same.
    again = decode(encode(message))
    assert again == message


def _specified(data: bytes) -> bool:
    try:
        spec.MESSAGE.parse(data)
    except ConstructError:
        return False
    return True


TARGETS = {"decode": (check_message, seeds)}
