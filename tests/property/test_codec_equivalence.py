"""The hot codec and the construct specification accept the same octets and find the same values."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

import pytest
from construct import ConstructError
from hypothesis import given, settings
from hypothesis import strategies as st

from stun import attributes as attrs
from stun import spec
from stun.attributes import BY_CODE, Attribute
from stun.codec import decode, encode
from stun.errors import DecodeError
from stun.message import Message
from stun.registry import MAGIC_COOKIE, AttributeType, Class
from stun.sansio import Address

CASES_PER_BATCH = 1_000
BATCHES = 12
VALUES_PER_ATTRIBUTE = 250

# What a value of the specification is in the terms of stun.attributes. ----------------------------


def address(found: Any) -> Address:
    family = socket.AF_INET if len(found.address) == 4 else socket.AF_INET6
    return Address(socket.inet_ntop(family, found.address), found.port)


def diagnostic(octets: bytes) -> str:
    return octets.decode("utf-8", "replace").rstrip("\0")


def error(found: Any) -> attrs.ErrorValue:
    return attrs.ErrorValue(found["class"].digit * 100 + found.number, diagnostic(found.reason))


def algorithm(found: Any) -> attrs.Algorithm:
    return attrs.Algorithm(found.algorithm, found.parameters)


NATIVE: dict[type[Attribute[Any]], Callable[[Any], Any]] = {
    type(attrs.MAPPED_ADDRESS): address,
    type(attrs.XOR_MAPPED_ADDRESS): address,
    type(attrs.USERNAME): lambda found: found.text,
    type(attrs.SOFTWARE): lambda found: diagnostic(found.octets),
    type(attrs.DATA): lambda found: found.octets,
    type(attrs.LIFETIME): lambda found: found.value,
    type(attrs.RESPONSE_PORT): lambda found: found.value,
    type(attrs.REQUESTED_ADDRESS_FAMILY): lambda found: found.value,
    type(attrs.DONT_FRAGMENT): lambda found: True,
    type(attrs.ERROR_CODE): error,
    type(attrs.ADDRESS_ERROR_CODE): lambda found: attrs.AddressError(found.family, *error(found)),
    type(attrs.PASSWORD_ALGORITHM): lambda found: algorithm(found.algorithm),
    type(attrs.PASSWORD_ALGORITHMS): lambda found: tuple(map(algorithm, found.algorithms)),
    type(attrs.UNKNOWN_ATTRIBUTES): lambda found: tuple(item.value for item in found.types),
    type(attrs.CHANGE_REQUEST): lambda found: attrs.ChangeRequest(
        found.flags.change_ip, found.flags.change_port
    ),
    type(attrs.EVEN_PORT): lambda found: found.value.reserve_next,
    type(attrs.ICMP): lambda found: attrs.Icmp(found.icmp_type, found.icmp_code, found.error_data),
    type(attrs.TRANSACTION_TRANSMIT_COUNTER): lambda found: attrs.TransmitCounter(
        found.requests, found.responses
    ),
    type(attrs.ECN_CHECK): lambda found: attrs.EcnCheck(found.value.valid, found.value.echo),
    type(attrs.ACCESS_TOKEN): lambda found: attrs.AccessToken(found.nonce, found.encrypted_block),
    type(attrs.CONNECT_BACK): lambda found: attrs.ConnectBack(
        found.kind, found["count"], found.delay, found.wait, found.port
    ),
    type(attrs.CONNECT_BACK_RESULT): lambda found: attrs.ConnectBackResult(
        found.kind,
        found.established,
        found.refused,
        found.unreachable,
        found.timed_out,
        found.other,
    ),
}

REFUSED = object()


def cold_value(code: int, octets: bytes, transaction_id: bytes) -> Any:
    try:
        found = spec.value_format(code).parse(octets, transaction_id=transaction_id)
    except ConstructError:
        return REFUSED
    return NATIVE[type(attrs.lookup(code))](found)


def hot_value(code: int, octets: bytes, transaction_id: bytes) -> Any:
    try:
        return attrs.lookup(code).unpack(octets, transaction_id)
    except DecodeError as refused:
        offset = refused.offset
    assert 0 <= offset <= len(octets)
    return REFUSED


def assert_same_value(code: int, octets: bytes, transaction_id: bytes) -> Any:
    hot = hot_value(code, octets, transaction_id)
    cold = cold_value(code, octets, transaction_id)
    assert hot == cold, f"{code:#06x} {octets.hex()}"
    return hot


def assert_same_message(data: bytes) -> Message | None:
    """Demand the same verdict and the same message from both; return it."""
    hot: Message | None = None
    offset = 0
    try:
        hot = decode(data)
    except DecodeError as refused:
        offset = refused.offset
    assert 0 <= offset <= len(data)
    try:
        cold = spec.MESSAGE.parse(data)
    except ConstructError:
        cold = None
    assert (hot is None) == (cold is None), data.hex()
    if hot is None:
        return None
    header = cold.header
    assert hot.method == header.message_type.method
    assert hot.message_class == header.message_type.message_class
    assert hot.cookie == header.magic_cookie
    assert hot.transaction_id == header.transaction_id
    counted = spec.counted([attribute.type for attribute in cold.attributes])
    kept = [a for a, counts in zip(cold.attributes, counted, strict=True) if counts]
    assert hot.attributes == [(a.type, a.value) for a in kept], data.hex()
    for code, octets in hot.attributes:
        assert_same_value(code, octets, hot.transaction_id)
    return hot


# Octets that look like something. -----------------------------------------------------------------

CODES = sorted(BY_CODE)
SIZES = (0, 1, 2, 3, 4, 5, 8, 9, 16, 19, 20, 24, 31, 32, 33, 36)


def some_value(rng: random.Random, code: int) -> bytes:
    """Octets that are often, not always, a value of this attribute."""
    kind = BY_CODE.get(code)
    if isinstance(kind, type(attrs.MAPPED_ADDRESS)) and rng.random() < 0.8:
        # Zeros in an IPv6 address are what makes its text form hard.
        size = rng.choice((4, 16))
        octets = bytes(rng.choice((0, 0, 0xFF, rng.randrange(256))) for _ in range(size))
        return bytes((rng.choice((0, 0, 7)), 1 if size == 4 else 2)) + rng.randbytes(2) + octets
    if isinstance(kind, type(attrs.ERROR_CODE) | type(attrs.ADDRESS_ERROR_CODE)):
        head = bytes((rng.randrange(4), rng.randrange(256), rng.randrange(256), rng.randrange(110)))
        return head[: rng.choice((3, 4, 4, 4))] + "Grund: ungültig".encode()[: rng.randrange(20)]
    if isinstance(kind, type(attrs.PASSWORD_ALGORITHM) | type(attrs.PASSWORD_ALGORITHMS)):
        parts = b""
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            size = rng.choice((0, 0, 1, 2, 3, 4, 5))
            parts += bytes((0, rng.randrange(3), 0, size)) + rng.randbytes(size)
            parts += bytes(rng.choice((-size % 4, -size % 4, 0, 1)))
        return parts
    if isinstance(kind, type(attrs.ACCESS_TOKEN)):
        return rng.randrange(24).to_bytes(2) + rng.randbytes(rng.randrange(40))
    if isinstance(kind, type(attrs.USERNAME)) and rng.random() < 0.8:
        text = "".join(rng.choice("ab:é漢\0😀") for _ in range(rng.randrange(12)))
        return text.encode()[: rng.choice((None, None, -1))]
    return rng.randbytes(rng.choice(SIZES))


def some_attribute(rng: random.Random) -> tuple[int, bytes]:
    code = rng.choice(CODES) if rng.random() < 0.9 else rng.randrange(0x10000)
    return code, some_value(rng, code)


def some_message(rng: random.Random) -> bytes:
    message = Message(
        rng.choice((1, 3, 9, 0x80, rng.randrange(0x1000))),
        rng.choice(tuple(Class)),
        rng.randbytes(12),
        [some_attribute(rng) for _ in range(rng.randrange(6))],
        rng.choice((MAGIC_COOKIE, MAGIC_COOKIE, rng.getrandbits(32))),
    )
    for code in (0x0008, 0x001C, 0x8028):
        if rng.random() < 0.3:
            place = rng.randrange(len(message.attributes) + 1)
            message.attributes.insert(place, (code, some_value(rng, code)))
    return encode(
        message,
        key=rng.choice((None, b"key")),
        sha256_key=rng.choice((None, None, b"key")),
        fingerprint=rng.random() < 0.5,
    )


def mutated(rng: random.Random, data: bytes) -> bytes:
    octets = bytearray(data)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        where = rng.randrange(len(octets)) if octets else 0
        match rng.randrange(8):
            case 0 | 1 if octets:
                octets[where] ^= 1 << rng.randrange(8)
            case 2 if octets:
                octets[where] = rng.choice((0, 1, 4, 0x7F, 0xFF))
            case 3:
                del octets[where:]
            case 4:
                octets[where:where] = rng.randbytes(rng.choice((1, 4)))
            case 5:
                del octets[where : where + rng.choice((1, 4))]
            case 6 if len(octets) >= 20:
                # Make the length right again, so that the walk over the attributes is reached.
                octets[2:4] = (len(octets) - 20 & 0xFFFF).to_bytes(2)
            case 7 if len(octets) >= 24:
                place = 20 + 4 * rng.randrange((len(octets) - 20) // 4)
                octets[place + 2 : place + 4] = rng.randrange(40).to_bytes(2)
    return bytes(octets)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_generated_and_mutated_messages(batch: int, rng: random.Random) -> None:
    accepted = 0
    for _ in range(CASES_PER_BATCH):
        accepted += assert_same_message(mutated(rng, some_message(rng))) is not None
    # Both verdicts must have been tried in earnest, or agreement means little.
    assert CASES_PER_BATCH // 5 < accepted < CASES_PER_BATCH * 19 // 20


@pytest.mark.parametrize("code", CODES, ids=lambda code: AttributeType.make(code).label)
def test_generated_values(code: int, rng: random.Random) -> None:
    verdicts = {
        assert_same_value(code, some_value(rng, code), rng.randbytes(12)) is not REFUSED
        for _ in range(VALUES_PER_ATTRIBUTE)
    }
    assert True in verdicts


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64))
def test_any_octets(data: bytes) -> None:
    assert_same_message(data)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.integers(0, 0x4001),
    cookie=st.sampled_from((MAGIC_COOKIE, 0)),
    transaction_id=st.binary(min_size=12, max_size=12),
    attributes=st.lists(
        st.tuples(
            st.sampled_from(CODES) | st.integers(0, 0xFFFF),
            st.integers(-2, 2).filter(bool) | st.just(0),
            st.binary(max_size=24),
        ),
        max_size=6,
    ),
    length_error=st.sampled_from((0, 0, 0, -4, 4, 1)),
)
def test_structured_octets(
    kind: int,
    cookie: int,
    transaction_id: bytes,
    attributes: list[tuple[int, int, bytes]],
    length_error: int,
) -> None:
    """Attributes whose length fields may lie by a little: what shrinks to a readable failure."""
    body = b"".join(
        code.to_bytes(2) + max(0, len(value) + lie).to_bytes(2) + value + bytes(-len(value) % 4)
        for code, lie, value in attributes
    )
    head = kind.to_bytes(2) + max(0, len(body) + length_error).to_bytes(2) + cookie.to_bytes(4)
    assert_same_message(head + transaction_id + body)
