"""A short run of ICE's fuzzing targets in every test session; the long one is tools/fuzz."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.fuzz.target_ice import TARGETS, check_candidate, check_sdp

MUTATIONS = 3_000


@pytest.fixture(params=TARGETS)
def target(request):
    check, seeds = TARGETS[request.param]
    return check, list(seeds())


def test_the_seeds(target) -> None:
    check, seeds = target
    assert len(seeds) > 10
    for octets in seeds:
        check(octets)


def test_mutated_seeds(target, rng: random.Random) -> None:
    check, seeds = target
    for _ in range(MUTATIONS):
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
                    octets[where:where] = rng.choice((b" ", b"\r\n", b":", b"0", b"%", b"\xc2\xa0"))
                case 4:
                    octets[where:where] = rng.choice(
                        (b"tcp", b"tcptype so", b"raddr", b"m=", b"a=")
                    )
        check(bytes(octets))


def test_noise(target, rng: random.Random) -> None:
    check, _ = target
    for _ in range(500):
        check(rng.randbytes(rng.randrange(60)))


WORD = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["1", "udp", "tcp", "typ", "host", "srflx", "raddr", "rport", "tcptype", "so", "::1", "0", ""]
)


@settings(max_examples=300)
@given(st.lists(WORD, max_size=16).map(" ".join))
def test_words(text: str) -> None:
    check_candidate(text.encode())
    check_sdp(f"m=audio 9 RTP/AVP 0\na=candidate:{text}\n".encode())
