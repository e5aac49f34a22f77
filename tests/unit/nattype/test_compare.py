"""Two people's reports: can they connect, how, over which family, and in what words."""

from __future__ import annotations

from dataclasses import replace

from nattype.model import Allocation, Filtering, Hairpin, Mapping, NatType, nat_type
from nattype.peers import Comparison, compare
from nattype.report import AllocationReport, FamilyReport, Reach, Report, TcpReport, UdpReport
from stun.sansio import Address

EIM, APDM = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
EIF, ADF, APDF = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)


def udp(
    mapping: Mapping = EIM,
    filtering: Filtering = APDF,
    pattern: Allocation = Allocation.PRESERVED,
    *,
    external: str = "192.52.193.4",
    internal: str = "192.168.1.2",
) -> UdpReport:
    return UdpReport(
        nat_type=nat_type(mapping, filtering),
        mapping=mapping,
        filtering=filtering,
        allocation=AllocationReport(pattern),
        mapped_address=Address(external, 50000),
        local_address=Address(internal, 50000),
    )


def as_tcp(report: UdpReport) -> TcpReport:
    return TcpReport(
        nat_type=report.nat_type,
        mapping=report.mapping,
        filtering=report.filtering,
        allocation=report.allocation,
        mapped_address=report.mapped_address,
        local_address=report.local_address,
        simultaneous_open=True,
    )


def both(path: UdpReport) -> Report:
    return Report("", "ipv4", path, as_tcp(path))


HOME = both(udp())
ELSEWHERE = both(udp(external="192.52.193.9", internal="192.168.7.2"))
SYMMETRIC = both(udp(APDM, APDF, Allocation.RANDOM, external="192.52.193.8"))
SEQUENTIAL = both(udp(APDM, APDF, Allocation.SEQUENTIAL, external="192.52.193.8"))
OPEN = both(udp(Mapping.NONE, Filtering.NONE, external="192.52.193.20", internal="192.52.193.20"))


def said(comparison: Comparison) -> str:
    return " ".join(comparison.reasons)


def test_two_home_routers() -> None:
    found = compare(HOME, ELSEWHERE)
    assert (found.udp, found.tcp, found.best) == (Reach.DIRECT,) * 3
    assert found.sentence == "Yes: directly, over UDP and over TCP (IPv4)."
    assert "port-restricted cone with port-restricted cone" in said(found)
    assert "simultaneous open" in said(found)
    assert not found.same_nat


def test_the_answer_is_the_same_whoever_is_first() -> None:
    reports = (HOME, ELSEWHERE, SYMMETRIC, SEQUENTIAL, OPEN)
    for a in reports:
        for b in reports:
            one, other = compare(a, b), compare(b, a)
            assert (one.udp, one.tcp, one.best, one.sentence) == (
                other.udp,
                other.tcp,
                other.best,
                other.sentence,
            )


def test_home_router_with_symmetric() -> None:
    found = compare(HOME, SYMMETRIC)
    assert found.udp is found.tcp is Reach.BIRTHDAY
    assert "1024 probes" in said(found)
    assert "98 %" in said(found)


def test_home_router_with_sequential_symmetric() -> None:
    assert compare(HOME, SEQUENTIAL).best is Reach.PREDICTION


def test_two_symmetric_nats_need_a_relay() -> None:
    other = both(udp(APDM, APDF, Allocation.RANDOM, external="192.52.193.5"))
    found = compare(SYMMETRIC, other)
    assert found.best is Reach.RELAY
    assert found.sentence.startswith("No, not directly: only through a relay")


def test_open_reaches_everybody_and_nobody_needs_simultaneous_open() -> None:
    for other in (HOME, SYMMETRIC, SEQUENTIAL):
        found = compare(OPEN, other)
        assert found.udp is found.tcp is Reach.DIRECT
        assert "simultaneous" not in said(found)


def test_tcp_is_direct_from_symmetric_to_restricted_and_the_symmetric_side_dials() -> None:
    restricted = both(udp(EIM, ADF, external="192.52.193.9"))
    found = compare(restricted, SYMMETRIC)
    assert found.tcp is Reach.DIRECT
    assert "the second one, behind the symmetric NAT, dials" in said(found)


def test_tcp_needs_one_nat_that_lets_a_syn_in_after_one_went_out() -> None:
    def stubborn(report: Report) -> Report:
        assert report.tcp is not None
        return replace(report, tcp=replace(report.tcp, simultaneous_open=False))

    assert compare(stubborn(HOME), ELSEWHERE).tcp is Reach.DIRECT
    neither = compare(stubborn(HOME), stubborn(ELSEWHERE))
    assert neither.tcp is Reach.RELAY
    assert neither.udp is Reach.DIRECT
    assert "neither NAT lets a SYN in" in said(neither)
    assert neither.sentence == (
        "Yes: directly over UDP (IPv4), only through a relay over TCP (IPv4)."
    )
    assert compare(stubborn(HOME), stubborn(OPEN)).tcp is Reach.DIRECT


def test_blocked_udp_goes_over_a_relay_reached_by_tcp() -> None:
    blocked = replace(HOME, udp=UdpReport(NatType.UDP_BLOCKED))
    found = compare(blocked, ELSEWHERE)
    assert found.udp is Reach.RELAY
    assert found.tcp is Reach.DIRECT
    assert "the relay over TCP or TLS" in said(found)


def test_blocked_tcp_has_no_replacement() -> None:
    blocked = replace(ELSEWHERE, tcp=TcpReport(NatType.TCP_BLOCKED))
    found = compare(HOME, blocked)
    assert (found.udp, found.tcp) == (Reach.DIRECT, Reach.NONE)
    assert "The second one gets no TCP through." in found.reasons
    assert "not over TCP" in found.sentence


def test_one_network_uses_local_addresses() -> None:
    neighbour = both(udp(internal="192.168.1.77"))
    found = compare(HOME, neighbour)
    assert found.same_nat
    assert found.best is Reach.DIRECT
    assert "192.168.1.2 and 192.168.1.77 are on one network" in said(found)


def test_the_same_machine_twice_stands_for_two_machines() -> None:
    found = compare(both(udp(APDM, APDF, Allocation.RANDOM)), both(udp()))
    assert not found.same_nat
    assert found.udp is Reach.BIRTHDAY
    assert "as if made on one machine" in said(found)


def test_two_homes_behind_one_carrier_are_not_neighbours() -> None:
    # Same external address, same numbers inside, but two layers of NAT.
    behind = replace(HOME, layers=2)
    assert behind.udp is not None
    other = replace(behind, udp=replace(behind.udp, hairpinning=Hairpin.NONE))
    found = compare(behind, other)
    assert found.same_nat
    assert found.best is Reach.RELAY
    assert "no hairpinning" in said(found)


def test_one_carrier_that_turns_packets_round() -> None:
    behind = replace(HOME, layers=2)
    assert behind.udp is not None
    other = replace(behind, udp=replace(behind.udp, hairpinning=Hairpin.EXTERNAL))
    found = compare(behind, other)
    assert found.udp is Reach.DIRECT
    assert "hairpinning" in said(found)


def test_one_carrier_of_which_hairpinning_is_not_known() -> None:
    behind = replace(HOME, layers=2)
    found = compare(behind, behind)
    assert found.best is Reach.UNKNOWN
    assert found.sentence.startswith("Not known")
    assert "was not measured" in said(found)


def test_ipv6_is_taken_where_it_is_better() -> None:
    def with_ipv6(report: Report, host: str) -> Report:
        path = udp(Mapping.NONE, Filtering.NONE, external=host, internal=host)
        return replace(report, other_family=FamilyReport("ipv6", path, as_tcp(path)))

    a = with_ipv6(SYMMETRIC, "2620:4f:8000:1::1")
    b = with_ipv6(SYMMETRIC, "2620:4f:8000:1::2")
    found = compare(a, b)
    assert found.best is Reach.DIRECT
    assert (found.udp_family, found.tcp_family) == ("ipv6", "ipv6")
    assert "(IPv6)" in found.sentence
    assert compare(a, HOME).udp_family == "ipv4"


def test_each_protocol_may_take_its_own_family() -> None:
    v6 = udp(
        Mapping.NONE, Filtering.NONE, external="2620:4f:8000:1::1", internal="2620:4f:8000:1::1"
    )
    a = replace(SYMMETRIC, other_family=FamilyReport("ipv6", v6, TcpReport(NatType.TCP_BLOCKED)))
    found = compare(a, a)
    assert (found.udp, found.udp_family) == (Reach.DIRECT, "ipv6")


def test_no_common_family_needs_a_relay_that_has_both() -> None:
    path = udp(Mapping.NONE, APDF, external="2620:4f:8000:1::1", internal="2620:4f:8000:1::1")
    only_v6 = Report("", "ipv6", path, as_tcp(path))
    found = compare(HOME, only_v6)
    assert found.best is Reach.RELAY
    assert "IPv4 only" in said(found)
    assert "IPv6 only" in said(found)


def test_a_report_without_any_answer_says_so() -> None:
    mute = Report("", "ipv4", UdpReport(), TcpReport())
    found = compare(HOME, mute)
    assert found.best is Reach.UNKNOWN
    assert found.reasons == ("The second report reached no STUN server.",)
    assert compare(mute, mute).reasons == (
        "The first and the second report reached no STUN server.",
    )


def test_one_protocol_measured_on_one_side_only() -> None:
    found = compare(replace(HOME, tcp=None), ELSEWHERE)
    assert (found.udp, found.tcp) == (Reach.DIRECT, Reach.UNKNOWN)
    assert "IPv4, TCP: only one report has measured it." in found.reasons
    assert found.sentence == "Yes: directly over UDP (IPv4), not known over TCP."


def test_the_poisoned_mapping_is_told_to_the_other_side() -> None:
    assert HOME.udp is not None
    poisoned = replace(HOME, udp=replace(HOME.udp, remaps_after_inbound=True))
    assert "must not knock first" in said(compare(ELSEWHERE, poisoned))
