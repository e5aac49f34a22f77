"""turnd between a client and a peer, on each data plane: what the tests of it share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.lab.turnd_calls import Call, Dial, Wire, open_call
from tests.lab.turnd_world import PLANES, Turnd, World, require

FAMILIES = [(False, False), (False, True), (True, False), (True, True)]
NAMES = ["4to4", "4to6", "6to4", "6to6"]


@pytest.fixture(scope="module", params=PLANES)
def plane(request: pytest.FixtureRequest) -> str:
    return require(request.param)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture(scope="module")
def turnd(world: World, plane: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnd]:
    with world.turnd(tmp_path_factory.mktemp(plane), plane) as turnd:
        yield turnd


@pytest.fixture
def dial(world: World) -> Iterator[Dial]:
    """``dial(client6=..., peer6=...)``: a call between these families, which ends with the test."""
    with ExitStack() as stack:
        yield partial(open_call, world, stack)


@pytest.fixture(params=FAMILIES, ids=NAMES)
def call(turnd: Turnd, dial: Dial, request: pytest.FixtureRequest) -> Call:
    """A call between all pairs of families, the client's first."""
    client6, peer6 = request.param
    return dial(client6=client6, peer6=peer6)


@pytest.fixture
def call4(turnd: Turnd, dial: Dial) -> Call:
    """A call over IPv4 alone."""
    return dial()


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    with ExitStack() as stack:
        yield Wire(world, stack)
