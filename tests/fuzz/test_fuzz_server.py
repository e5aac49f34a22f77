"""A short run of the server's fuzz targets: their seeds, and mutants of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from tools.fuzz.target_server import TARGETS

MUTANTS = 400


def mutate(octets: bytes, rng: random.Random) -> bytes:
    changed = bytearray(octets)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 1:
                del changed[at : at + rng.randrange(1, 9)]
            case 2 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case _:
                changed[at : at + 2] = rng.choice((b"\0\0", b"\xff\xff", b"\0\x01", b"\x00\x26"))
    return bytes(changed)


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_and_their_mutants(target: str, rng: random.Random) -> None:
    check: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    check, seeds = TARGETS[target]
    corpus = list(seeds())
    for octets in corpus:
        check(octets)
    for _ in range(MUTANTS):
        check(mutate(rng.choice(corpus), rng))


def test_the_seeds_reach_every_kind_of_output() -> None:
    check, seeds = TARGETS["server"]
    reached = set().union(*(check(script) for script in seeds()))
    assert reached == {
        *("OpenUdp", "Listen", "Dial", "Write", "Shut", "Transmit"),
        *("Serving", "Started"),
    }
