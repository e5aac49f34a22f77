"""A short run of the rendezvous's fuzzing targets in every test session; the long: tools/fuzz."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.fuzz.target_rendezvous import TARGETS, check_channel, check_message

MUTATIONS = {"rendezvous": 3_000, "channel": 1_000, "hello": 40, "code": 3_000}


@pytest.fixture(params=TARGETS)
def target(request):
    check, seeds = TARGETS[request.param]
    return request.param, check, list(seeds())


def test_the_seeds(target) -> None:
    _, check, seeds = target
    assert len(seeds) > 10
    for octets in seeds:
        check(octets)


def test_mutated_seeds(target, rng: random.Random) -> None:
    name, check, seeds = target
    for _ in range(MUTATIONS[name]):
        octets = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 5)):
            where = rng.randrange(len(octets)) if octets else 0
            match rng.randrange(5):
                case 0:
                    octets[where : where + 1] = rng.randbytes(1)
                case 1:
                    del octets[where : where + rng.choice((1, 2, 8))]
                case 2:
                    octets[where:where] = rng.choice(seeds)[: rng.randrange(60)]
                case 3:
                    octets[where:where] = rng.choice((b'"', b"null", b"-", b"1e999", b"\xe0\x00"))
                case 4:
                    octets += rng.choice(seeds)
        check(bytes(octets[:4096]))


def test_noise(target, rng: random.Random) -> None:
    name, check, _ = target
    for _ in range(MUTATIONS[name] // 6):
        check(rng.randbytes(rng.randrange(60)))


STEP = st.builds(
    lambda what, octets: bytes([what, len(octets)]) + octets,
    st.integers(0, 255),
    st.binary(max_size=20),
)


@settings(max_examples=200)
@given(st.lists(STEP, max_size=12).map(b"".join))
def test_conversations(steps: bytes) -> None:
    check_channel(steps)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(max_examples=100)
@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4) | JSON)
def test_messages(value: object) -> None:
    import json

    check_message(json.dumps(value).encode())
