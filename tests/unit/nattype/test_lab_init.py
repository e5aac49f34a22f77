"""The package: light to import, everything of the laboratory by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nattype import lab

ROOT = Path(__file__).parents[3]


def test_every_public_name_is_there() -> None:
    for name in lab.__all__:
        assert getattr(lab, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        lab.no_such_name  # noqa: B018


@pytest.mark.parametrize("module", ["nattype.lab", "nattype.lab.cli"])
def test_importing_it_loads_little(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    heavy = {"asyncio", "construct", "rich", "subprocess", "nattype.lab.kernel.lab", "stun.codec"}
    assert not loaded & (heavy - ({"subprocess"} if module.endswith("cli") else set()))
