"""What tests of the drivers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.certificate import write_self_signed
from tools.driving import Runner


@pytest.fixture(params=["aio", "blocking"])
def run(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Runs a machine under each of the drivers, and looks for descriptors left open."""
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.exists() else 0
    yield Runner(request.param)
    if folder.exists():
        assert len(list(folder.iterdir())) <= before, "descriptors were left open"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for ``stun.example``, and its key."""
    return write_self_signed(
        tmp_path_factory.mktemp("tls") / "stun.example.pem", "stun.example", "127.0.0.1"
    )
