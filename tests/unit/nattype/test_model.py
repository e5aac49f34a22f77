import pytest

from nattype.model import (
    NAMED_KINDS,
    Allocation,
    Filtering,
    Mapping,
    NatType,
    grid,
    kind,
    nat_type,
)

EIM, APDM = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT


@pytest.mark.parametrize(
    ("mapping", "filtering", "name"),
    [
        (Mapping.NONE, Filtering.NONE, NatType.OPEN),
        (Mapping.NONE, Filtering.ADDRESS_AND_PORT_DEPENDENT, NatType.SYMMETRIC_FIREWALL),
        (Mapping.NONE, Filtering.ADDRESS_DEPENDENT, NatType.SYMMETRIC_FIREWALL),
        (Mapping.NONE, Filtering.UNKNOWN, NatType.INCONCLUSIVE),
        (EIM, Filtering.ENDPOINT_INDEPENDENT, NatType.FULL_CONE),
        (EIM, Filtering.ADDRESS_DEPENDENT, NatType.RESTRICTED_CONE),
        (EIM, Filtering.ADDRESS_AND_PORT_DEPENDENT, NatType.PORT_RESTRICTED_CONE),
        (EIM, Filtering.UNKNOWN, NatType.INCONCLUSIVE),
        (Mapping.UNKNOWN, Filtering.ENDPOINT_INDEPENDENT, NatType.INCONCLUSIVE),
    ],
)
def test_classic_names(mapping: Mapping, filtering: Filtering, name: NatType) -> None:
    assert nat_type(mapping, filtering) is name


@pytest.mark.parametrize("filtering", list(Filtering))
@pytest.mark.parametrize("mapping", [Mapping.ADDRESS_DEPENDENT, APDM])
def test_a_mapping_that_depends_on_the_destination_is_symmetric_whatever_the_filter(
    mapping: Mapping, filtering: Filtering
) -> None:
    assert nat_type(mapping, filtering) is NatType.SYMMETRIC


@pytest.mark.parametrize("mapping", list(Mapping))
@pytest.mark.parametrize("filtering", list(Filtering))
def test_every_combination_has_a_name(mapping: Mapping, filtering: Filtering) -> None:
    assert isinstance(nat_type(mapping, filtering), NatType)


def test_a_chain_is_as_restrictive_as_its_most_restrictive_box() -> None:
    expected = kind("cgnat").expected
    assert expected.udp is NatType.PORT_RESTRICTED_CONE
    assert expected.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT
    assert expected.allocation is Allocation.RANDOM


def test_blocked_protocols_are_expected_as_blocked() -> None:
    assert kind("udp-blocked").expected.udp is NatType.UDP_BLOCKED
    assert kind("udp-blocked").expected.tcp is NatType.PORT_RESTRICTED_CONE
    assert kind("tcp-blocked").expected.tcp is NatType.TCP_BLOCKED


def test_names_are_unique_and_found() -> None:
    names = [k.name for k in NAMED_KINDS]
    assert len(set(names)) == len(names)
    assert all(kind(name).name == name for name in names)


def test_the_grid_has_every_point_that_can_exist() -> None:
    kinds = grid()
    assert len({k.name for k in kinds}) == len(kinds) == 3 * 3 + 2 * 3 * 2
    point = kind("ADM+eif+Random").boxes[0]
    assert (point.mapping, point.filtering, point.allocation) == (
        Mapping.ADDRESS_DEPENDENT,
        Filtering.ENDPOINT_INDEPENDENT,
        Allocation.RANDOM,
    )


@pytest.mark.parametrize("name", ["", "cone", "eim+eif", "eim+eif+lucky", "x+eif+random"])
def test_an_unknown_kind_is_told_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown kind .* port-restricted-cone.*adm\+eif\+random"):
        kind(name)


def test_a_contradiction_is_explained() -> None:
    with pytest.raises(ValueError, match="contradicts itself"):
        kind("apdm+eif+preserved")
