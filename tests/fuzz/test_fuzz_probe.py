"""A short run of the probe's fuzzing target in every test session."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TARGET = Path(__file__).resolve().parents[2] / "tools" / "fuzz" / "target_probe.py"
_spec = importlib.util.spec_from_file_location("natkit_fuzz_target_probe", TARGET)
assert _spec is not None
assert _spec.loader is not None
target = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(target)

SEEDS = list(target.seeds())


def test_the_seeds_reach_every_kind_of_output() -> None:
    reached = set().union(*(target.check_script(script) for script in SEEDS))
    assert reached == {
        *("OpenUdp", "Listen", "Dial", "Write", "Shut", "Transmit"),
        *("Progress", "Dropped", "Finished"),
    }


def test_mutated_seeds(rng: random.Random) -> None:
    for _ in range(60):
        script = bytearray(rng.choice(SEEDS))
        for _ in range(rng.randrange(1, 30)):
            script[rng.randrange(len(script))] = rng.randrange(256)
        target.check_script(bytes(script))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=600))
def test_generated_scripts(script: bytes) -> None:
    target.check_script(script)
