"""A short run of the fuzzing target in every test session; the long one is tools/fuzz.

NATKIT_FUZZ_CORPUS may name a directory of files to replay and to mutate besides.
"""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

TARGET = Path(__file__).resolve().parents[2] / "tools" / "fuzz" / "target_decode.py"
_spec = importlib.util.spec_from_file_location("natkit_fuzz_target_decode", TARGET)
assert _spec is not None
assert _spec.loader is not None
target = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(target)

CORPUS = os.environ.get("NATKIT_FUZZ_CORPUS")
SEEDS = list(target.seeds())
if CORPUS is not None:
    SEEDS += [path.read_bytes() for path in sorted(Path(CORPUS).rglob("*")) if path.is_file()]
MUTATIONS = 3_000


def test_the_seeds() -> None:
    assert len(SEEDS) > 100
    for octets in SEEDS:
        target.check_message(octets)


def test_mutated_seeds(rng: random.Random) -> None:
    for _ in range(MUTATIONS):
        octets = bytearray(rng.choice(SEEDS))
        for _ in range(rng.randrange(1, 4)):
            if not octets:
                break
            where = rng.randrange(len(octets))
            match rng.randrange(4):
                case 0:
                    octets[where] = rng.randrange(256)
                case 1:
                    del octets[where : where + rng.choice((1, 4, 8))]
                case 2:
                    octets[where:where] = rng.choice(SEEDS)[20:60]
                case 3:
                    octets[2:4] = (max(0, len(octets) - 20) & 0xFFFF).to_bytes(2)
        target.check_message(bytes(octets))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(
        lambda kind, body: kind.to_bytes(2) + len(body).to_bytes(2) + bytes(16) + body,
        st.integers(0, 0x3FFF),
        st.lists(
            st.builds(
                lambda code, value: (
                    code.to_bytes(2) + len(value).to_bytes(2) + value + bytes(-len(value) % 4)
                ),
                st.sampled_from((0x0001, 0x0006, 0x0008, 0x0009, 0x001C, 0x0020, 0x8002, 0x8028))
                | st.integers(0, 0xFFFF),
                st.binary(max_size=40),
            ),
            max_size=6,
        ).map(b"".join),
    )
    | st.binary(max_size=80)
)
@example(b"")
def test_generated_octets(data: bytes) -> None:
    target.check_message(data)
