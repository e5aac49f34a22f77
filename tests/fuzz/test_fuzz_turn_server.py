"""A short run of the TURN server's fuzz target: its seeds, chains of them, and mutants of those."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.fuzz.target_turn_server import check_script
from tools.fuzz.turn_server_scene import scripts

CHAINS = 500
CHOICES = (6, 7, 8, 9, 9, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23, 1, 2, 5)
HAPPENINGS = (0, 1, 2, 3, 4, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14)


def mutate(script: bytes, rng: random.Random) -> bytes:
    changed = bytearray(script)
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 1:
                del changed[at : at + rng.randrange(1, 9)]
            case 2 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case _:
                changed[at : at + 2] = rng.choice((b"\0\0", b"\xff\xff"))
    return bytes(changed)


def test_seeds_reach_every_kind_of_output() -> None:
    reached: set[str] = set().union(*(check_script(script) for script in scripts()))
    assert reached == {
        *("OpenUdp", "Listen", "Dial", "Write", "Shut", "Hold", "Transmit"),
        *("Serving", "Started", "AllocationCreated", "AllocationEnded", "RequestRefused"),
    }


def test_chains_of_seeds_and_their_mutants(rng: random.Random) -> None:
    seeds = list(scripts())
    for _ in range(CHAINS):
        chain = b"".join(rng.choice(seeds) for _ in range(rng.randrange(1, 10)))
        check_script(chain)
        check_script(mutate(chain, rng))


@pytest.mark.parametrize("run", range(5))
def test_courses_of_events_that_go_deep(rng: random.Random, run: int) -> None:
    for _ in range(60):
        script = bytearray()
        for _ in range(rng.randrange(120)):
            script += bytes((rng.choice(HAPPENINGS), rng.randrange(4), rng.randrange(2)))
            script += bytes((rng.choice(CHOICES),))
            script += bytes(rng.randrange(6) for _ in range(rng.randrange(5)))
        check_script(mutate(script, rng))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_course_of_events(script: bytes) -> None:
    check_script(script)
