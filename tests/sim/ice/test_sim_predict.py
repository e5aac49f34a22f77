"""Every cell of the pair matrix, carried out by two agents as the plan says."""

from __future__ import annotations

import pytest

from ice.predict.summary import Transport
from nattype.model import kind
from tools.predictsim import TROUBLE, play, refusing

KINDS = {
    "O": "open",
    "FC": "full-cone",
    "AR": "restricted-cone",
    "PR": "port-restricted-cone",
    "SS": "symmetric-sequential",
    "SR": "symmetric",
}
RELAYED = {frozenset(("SS", "SR")), frozenset(("SR",))}
PAIRS = [(a, b) for n, a in enumerate(KINDS) for b in list(KINDS)[n:]]
RUNS = 4


def runs_direct(a: str, b: str, transport: Transport, trouble: str, seed: int) -> tuple[int, int]:
    cell = play(
        refusing(KINDS[a], TROUBLE[trouble]),
        refusing(KINDS[b], TROUBLE[trouble]),
        transport,
        runs=RUNS,
        seed=seed,
    )
    return cell.direct, len(cell.plan)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_over_udp(a: str, b: str, seed: int) -> None:
    direct, steps = runs_direct(a, b, "udp", "drop", seed)
    assert (direct, bool(steps)) == ((0, False) if {a, b} in RELAYED else (RUNS, True))


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_over_tcp(a: str, b: str, trouble: str, seed: int) -> None:
    direct, steps = runs_direct(a, b, "tcp", trouble, seed)
    assert (direct, bool(steps)) == ((0, False) if {a, b} in RELAYED else (RUNS, True))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        # Beyond the matrix: what a filter or a mapping by address makes possible.
        ("adm+apdf+sequential", "symmetric"),
        ("apdm+adf+sequential", "symmetric"),
        ("apdm+adf+random", "symmetric"),
        ("apdm+eif+random", "symmetric"),
        ("symmetric-address", "port-restricted-cone"),
        # NATs that mind what comes too early, and two in a row.
        ("port-restricted-poisoned", "port-restricted-poisoned"),
        ("port-restricted-poisoned", "symmetric-sequential"),
        ("port-restricted-poisoned", "symmetric"),
        ("cgnat", "symmetric"),
        ("firewall", "symmetric"),
    ],
)
def test_what_is_not_in_the_matrix(a: str, b: str, seed: int) -> None:
    assert play(kind(a), kind(b), "udp", runs=RUNS, seed=seed).direct == RUNS


def test_prediction_stands_others_who_take_ports(seed: int) -> None:
    """Ten mappings a second by somebody else, behind each of the two NATs."""
    both = kind("symmetric-sequential")
    cone = kind("port-restricted-cone")
    assert play(cone, both, "udp", runs=RUNS, others=10, seed=seed).direct == RUNS
    for transport in ("udp", "tcp"):
        assert play(both, both, transport, runs=RUNS, others=10, seed=seed).direct == RUNS
