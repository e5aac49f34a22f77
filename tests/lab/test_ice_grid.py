"""Agents behind every pair of NATs connect: directly where ICE can, by a relay where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.icelab import KINDS, Grid, grid, is_direct

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", params=KINDS)
def row(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One host behind this kind of NAT, and one behind each kind that it may want to reach."""
    with grid(request.param, tmp_path_factory.mktemp("grid")) as found:
        yield found


@pytest.mark.parametrize("other", KINDS)
def test_the_grid(row: Grid, other: str, tmp_path: Path) -> None:
    found = row.connect(other, tmp_path)
    assert found.relayed is not is_direct(row.kind, other)
    assert found.agree


def test_what_plain_ice_can_do() -> None:
    """The table of the field: D where two kinds of NAT let each other in without a guess."""
    direct = [[is_direct(a, b) for b in KINDS] for a in KINDS]
    assert direct == [
        [True, True, True, True, True, True],
        [True, True, True, True, True, True],
        [True, True, True, True, True, True],
        [True, True, True, True, False, False],
        [True, True, True, False, False, False],
        [True, True, True, False, False, False],
    ]
