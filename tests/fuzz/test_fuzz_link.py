"""A short run of the link's fuzzing targets in every test session; the long one is tools/fuzz."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tools.fuzz.target_link import TARGETS, check_session, session_seeds

MUTATIONS = 2_000
Target = tuple[Callable[[bytes], object], list[bytes]]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    check: Callable[[bytes], object]
    check, seeds = TARGETS[request.param]
    return check, list(seeds())


def test_the_scripts_reach_everything_that_a_session_tells() -> None:
    reached: set[str] = set().union(*(check_session(script) for script in session_seeds()))
    assert reached == {
        *("Send", "Data", "Eof", "Datagram", "Signal", "Moved", "Suspect", "Recovered"),
        *("Stranded", "Finished", "Aborted", "UsageError", "Writable"),
    }


def test_the_seeds(target: Target) -> None:
    check, seeds = target
    assert len(seeds) >= 10
    for octets in seeds:
        check(octets)


def test_mutated_seeds(target: Target, rng: random.Random) -> None:
    check, seeds = target
    for _ in range(MUTATIONS):
        octets = bytearray(rng.choice(seeds) + rng.choice(seeds)[rng.randrange(20) :])
        for _ in range(rng.randrange(6)):
            where = rng.randrange(len(octets)) if octets else 0
            match rng.randrange(4):
                case 0:
                    octets[where : where + 1] = rng.randbytes(1)
                case 1:
                    del octets[where : where + rng.choice((1, 2, 8))]
                case 2:
                    octets[where:where] = rng.choice(seeds)[-rng.randrange(1, 40) :]
                case 3 if octets:
                    octets[where] ^= 1 << rng.randrange(8)
        check(bytes(octets))


def test_noise(target: Target, rng: random.Random) -> None:
    check, _ = target
    for _ in range(500):
        check(rng.randbytes(rng.randrange(60)))
