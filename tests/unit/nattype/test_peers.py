"""The pair matrix, and what follows for reports that know everything, something or nothing."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from nattype.model import Allocation, Filtering, Mapping, NatType, nat_type
from nattype.peers import (
    BIRTHDAY_SOCKETS,
    EPHEMERAL_PORTS,
    MATRIX,
    PeerKind,
    birthday_probability,
    birthday_probes,
    kinds,
    reach,
)
from nattype.report import AllocationReport, PeerReach, Reach, TcpReport, UdpReport
from stun.sansio import Address

D, P, B, R, U = Reach.DIRECT, Reach.PREDICTION, Reach.BIRTHDAY, Reach.RELAY, Reach.UNKNOWN
SEEN = Address("192.52.193.7", 40000)


def udp(mapping: Mapping, filtering: Filtering, pattern: Allocation = Allocation.RANDOM):
    return UdpReport(
        nat_type=nat_type(mapping, filtering),
        mapping=mapping,
        filtering=filtering,
        allocation=AllocationReport(pattern),
        mapped_address=SEEN,
    )


def tcp(mapping: Mapping, filtering: Filtering, pattern: Allocation = Allocation.RANDOM):
    return TcpReport(
        nat_type=nat_type(mapping, filtering),
        mapping=mapping,
        filtering=filtering,
        allocation=AllocationReport(pattern),
        mapped_address=SEEN,
    )


EIM, APDM = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
EIF, ADF, APDF = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)


def over_udp(report: UdpReport) -> list[Reach]:
    return [peer.udp for peer in reach(report, None).values()]


def test_the_matrix_has_every_pair_and_does_not_care_who_is_asked() -> None:
    assert set(MATRIX) == {(a, b) for a in PeerKind for b in PeerKind}
    assert all(MATRIX[a, b] is MATRIX[b, a] for a, b in MATRIX)


def test_a_harder_kind_is_never_easier_to_reach() -> None:
    rank = [D, P, B, R]
    for mine in PeerKind:
        row = [rank.index(MATRIX[mine, theirs]) for theirs in PeerKind]
        assert row == sorted(row), mine


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (udp(Mapping.NONE, Filtering.NONE), [D, D, D, D, D, D]),
        (udp(Mapping.NONE, EIF), [D, D, D, D, D, D]),
        (udp(EIM, EIF), [D, D, D, D, D, D]),
        (udp(EIM, ADF), [D, D, D, D, D, D]),
        (udp(EIM, APDF), [D, D, D, D, P, B]),
        (udp(APDM, APDF, Allocation.SEQUENTIAL), [D, D, D, P, P, B]),
        (udp(APDM, APDF), [D, D, D, B, B, R]),
        (udp(Mapping.ADDRESS_DEPENDENT, EIF), [D, D, D, B, B, R]),
        # A firewall without a NAT is punched like the cone with its filter.
        (udp(Mapping.NONE, APDF), [D, D, D, D, P, B]),
        (udp(Mapping.NONE, ADF), [D, D, D, D, D, D]),
    ],
)
def test_each_kind_gets_its_row(report: UdpReport, expected: list[Reach]) -> None:
    assert over_udp(report) == expected


def test_tcp_has_the_same_rows() -> None:
    found = reach(None, tcp(EIM, APDF))
    assert [peer.tcp for peer in found.values()] == [D, D, D, D, P, B]
    assert {peer.udp for peer in found.values()} == {U}


def test_the_peers_are_in_order_and_plain_strings() -> None:
    found = reach(udp(EIM, EIF), None)
    assert list(found) == [
        "open",
        "full cone",
        "restricted cone",
        "port-restricted cone",
        "symmetric sequential",
        "symmetric",
    ]
    assert {type(name) for name in found} == {str}


def test_an_unknown_filter_leaves_open_only_what_depends_on_it() -> None:
    # Two ordinary STUN servers tell that much.
    assert over_udp(udp(EIM, Filtering.UNKNOWN)) == [D, D, D, D, U, U]


def test_a_symmetric_mapping_alone_decides() -> None:
    assert over_udp(udp(APDM, Filtering.UNKNOWN)) == [D, D, D, B, B, R]


def test_an_unknown_pattern_counts_as_random() -> None:
    assert over_udp(udp(APDM, APDF, Allocation.UNKNOWN)) == over_udp(udp(APDM, APDF))


def test_with_no_measurement_but_an_answer_only_the_easy_peers_are_sure() -> None:
    report = UdpReport(mapped_address=SEEN)
    assert over_udp(report) == [D, D, D, U, U, U]


def test_without_any_answer_nothing_is_known() -> None:
    assert set(reach(UdpReport(), TcpReport()).values()) == {PeerReach(U, U)}
    assert set(reach(None, None).values()) == {PeerReach(U, U)}


def test_blocked_udp_is_relayed_over_tcp() -> None:
    found = reach(UdpReport(NatType.UDP_BLOCKED), tcp(EIM, APDF))
    assert {peer.udp for peer in found.values()} == {R}


def test_blocked_udp_without_a_tcp_measurement_is_unknown() -> None:
    assert set(over_udp(UdpReport(NatType.UDP_BLOCKED))) == {U}


def test_nothing_passes() -> None:
    found = reach(UdpReport(NatType.UDP_BLOCKED), TcpReport(NatType.TCP_BLOCKED))
    assert set(found.values()) == {PeerReach(Reach.NONE, Reach.NONE)}


def test_blocked_tcp_cannot_be_replaced() -> None:
    found = reach(udp(EIM, EIF), TcpReport(NatType.TCP_BLOCKED))
    assert set(found.values()) == {PeerReach(D, Reach.NONE)}


@pytest.mark.parametrize("mapping", Mapping)
@pytest.mark.parametrize("filtering", Filtering)
@pytest.mark.parametrize("pattern", Allocation)
def test_less_knowledge_never_contradicts_more(
    mapping: Mapping, filtering: Filtering, pattern: Allocation
) -> None:
    full = udp(mapping, filtering, pattern)
    for less in (
        replace(full, nat_type=NatType.INCONCLUSIVE, mapping=Mapping.UNKNOWN),
        replace(full, nat_type=NatType.INCONCLUSIVE, filtering=Filtering.UNKNOWN),
    ):
        assert kinds(full) <= kinds(less)
        for more_known, less_known in zip(over_udp(full), over_udp(less), strict=True):
            assert less_known in (more_known, U)


@pytest.mark.parametrize(
    ("probes", "chance"), [(174, 0.50), (512, 0.87), (1024, 0.983), (2048, 0.9997)]
)
def test_the_birthday_figures_of_the_literature(probes: int, chance: float) -> None:
    assert birthday_probability(probes) == pytest.approx(chance, abs=0.001)


def test_birthday_probability_agrees_with_its_definition() -> None:
    for probes, sockets, ports in ((0, 5, 100), (3, 5, 100), (40, 20, 64), (50, 20, 64)):
        miss = math.comb(ports - sockets, probes) / math.comb(ports, probes)
        assert birthday_probability(probes, sockets, ports) == pytest.approx(1 - miss)


def test_birthday_probability_agrees_with_an_experiment(rng: random.Random) -> None:
    ports, sockets, probes, trials = 2000, 40, 40, 2000
    hits = sum(
        not set(rng.sample(range(ports), sockets)).isdisjoint(rng.sample(range(ports), probes))
        for _ in range(trials)
    )
    # Six standard deviations.
    assert hits / trials == pytest.approx(birthday_probability(probes, sockets, ports), abs=0.067)


def test_birthday_probes_is_the_inverse() -> None:
    for chance in (0.1, 0.5, 0.9, 0.99):
        needed = birthday_probes(chance)
        assert birthday_probability(needed) >= chance > birthday_probability(needed - 1)
    assert birthday_probes(1.0) <= EPHEMERAL_PORTS - BIRTHDAY_SOCKETS + 1
