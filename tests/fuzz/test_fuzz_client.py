"""A short run of the client's fuzzing targets in every test session; the long one is tools/fuzz."""

from __future__ import annotations

import random

import pytest

from tools.fuzz.target_client import TARGETS

MUTATIONS = 2_000


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
            match rng.randrange(4):
                case 0:
                    octets[where : where + 1] = rng.randbytes(1)
                case 1:
                    del octets[where : where + rng.choice((1, 4, 8))]
                case 2:
                    octets[where:where] = rng.choice(seeds)
                case 3:
                    octets += rng.randbytes(rng.randrange(30))
        check(bytes(octets))


def test_noise(target, rng: random.Random) -> None:
    check, _ = target
    for _ in range(500):
        check(rng.randbytes(rng.randrange(60)))
