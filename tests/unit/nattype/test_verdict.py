"""The verdict and the advice: right for every kind, and never more than is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nattype.model import (
    NAMED_KINDS,
    Allocation,
    Filtering,
    Hairpin,
    Kind,
    Mapping,
    NatType,
)
from nattype.report import (
    AllocationReport,
    Evidence,
    FamilyReport,
    Outcome,
    Report,
    TcpReport,
    UdpReport,
)
from nattype.verdict import advice, complete, verdict
from stun.sansio import Address

SEEN = Address("192.52.193.7", 40000)


def report_of(kind: Kind) -> Report:
    expected = kind.expected
    paths = {
        "mapping": expected.mapping,
        "filtering": expected.filtering,
        "allocation": AllocationReport(expected.allocation),
        "mapped_address": SEEN,
    }
    return Report(
        "",
        "ipv4",
        UdpReport(nat_type=expected.udp, **paths),
        TcpReport(nat_type=expected.tcp, **paths),
        layers=len(kind.boxes),
    )


def report(udp: UdpReport | None = None, tcp: TcpReport | None = None, **more) -> Report:
    return Report("", "ipv4", udp, tcp, **more)


NAME_IN_WORDS = {
    NatType.OPEN: "nothing filters",
    NatType.SYMMETRIC_FIREWALL: "firewall",
    NatType.UDP_BLOCKED: "UDP does not get through",
    NatType.TCP_BLOCKED: "TCP does not get through",
}


@pytest.mark.parametrize("kind", NAMED_KINDS, ids=lambda kind: kind.name)
def test_the_verdict_names_the_kind(kind: Kind) -> None:
    said = verdict(report_of(kind))
    for found in (kind.expected.udp, kind.expected.tcp):
        assert NAME_IN_WORDS.get(found, f"{found} NAT") in said
    assert said.endswith(".")
    assert said.count(". ") <= 1, "two sentences at most"


def test_what_is_alike_is_said_once() -> None:
    same = report_of(NAMED_KINDS[2])
    assert "TCP" not in verdict(same)


def test_what_differs_is_said_of_both() -> None:
    udp = report_of(NAMED_KINDS[2]).udp
    other = replace(report_of(NAMED_KINDS[12]), udp=udp)
    assert "full cone" in verdict(other)
    assert "Over TCP it is a symmetric NAT" in verdict(other)


def test_carriers_nat_counts_the_layers() -> None:
    cgnat = next(kind for kind in NAMED_KINDS if kind.name == "cgnat")
    said = verdict(report_of(cgnat))
    assert "two layers of NAT" in said
    assert "ordinary home router" not in said
    assert any("carrier" in line for line in advice(report_of(cgnat)))


def test_no_answer_names_who_was_asked() -> None:
    mute = report(UdpReport(), TcpReport(), servers=("192.0.2.1:3478",))
    assert verdict(mute).startswith("Inconclusive: no STUN server answered (192.0.2.1:3478)")
    assert not mute.conclusive


def test_the_known_half_is_told() -> None:
    half = UdpReport(mapping=Mapping.ENDPOINT_INDEPENDENT, mapped_address=SEEN)
    assert "same address and port" in verdict(report(half))
    none = UdpReport(mapping=Mapping.NONE, mapped_address=SEEN)
    assert "there is no NAT" in verdict(report(none))


def test_an_answer_without_any_classification() -> None:
    assert "a server answered over UDP" in verdict(report(UdpReport(mapped_address=SEEN)))
    assert "a server answered over TCP" in verdict(report(None, TcpReport(mapped_address=SEEN)))


def test_udp_blocked_tells_what_tcp_is_behind() -> None:
    tcp = report_of(NAMED_KINDS[6]).tcp
    said = verdict(report(UdpReport(NatType.UDP_BLOCKED), tcp))
    assert said.startswith("UDP does not get through from here. Over TCP: You are behind a port-")
    assert verdict(report(UdpReport(NatType.UDP_BLOCKED))) == "UDP does not get through from here."
    both = verdict(report(UdpReport(NatType.UDP_BLOCKED), TcpReport(NatType.TCP_BLOCKED)))
    assert both == "UDP does not get through from here, and neither does TCP."


def test_tcp_alone_and_blocked() -> None:
    said = verdict(report(None, TcpReport(NatType.TCP_BLOCKED)))
    assert said == "TCP does not get through from here."


@pytest.mark.parametrize("udp", [None, *(t for t in NatType if t is not NatType.TCP_BLOCKED)])
@pytest.mark.parametrize("tcp", [None, *(t for t in NatType if t is not NatType.UDP_BLOCKED)])
@pytest.mark.parametrize("layers", [None, 0, 2])
def test_every_combination_has_a_verdict_and_an_advice(
    udp: NatType | None, tcp: NatType | None, layers: int | None
) -> None:
    both = report(
        None if udp is None else UdpReport(udp),
        None if tcp is None else TcpReport(tcp),
        layers=layers,
    )
    assert verdict(both).endswith(".")
    assert all(line.endswith(".") for line in advice(both))


def test_tcp_inconclusive_beside_a_clear_udp() -> None:
    udp = report_of(NAMED_KINDS[6]).udp
    tcp = TcpReport(mapping=Mapping.ENDPOINT_INDEPENDENT, mapped_address=SEEN)
    assert "Over TCP there is a NAT" in verdict(report(udp, tcp))
    assert "Over TCP no server answered" in verdict(report(udp, TcpReport()))
    answered = TcpReport(mapped_address=SEEN)
    assert "Over TCP a server answered, but" in verdict(report(udp, answered))


def skipped(test: str) -> Evidence:
    return Evidence(test, Outcome.SKIPPED, "The server cannot.")


def test_what_the_servers_do_not_offer_is_no_failure() -> None:
    udp = report_of(NAMED_KINDS[6]).udp
    tcp = TcpReport(mapping=Mapping.ENDPOINT_INDEPENDENT, mapped_address=SEEN)
    ordinary = report(udp, tcp, evidence=(skipped("tcp.filtering"),))
    assert verdict(ordinary).endswith("is told only by a server that dials back.")
    assert "could not be measured" in verdict(report(udp, tcp))
    alone = report(None, tcp, evidence=(skipped("tcp.filtering"),))
    assert "natcheck serve" in advice(alone)[0]
    assert "Run it again" not in " ".join(advice(alone))


def test_two_ordinary_servers_are_told_of_in_one_sentence() -> None:
    udp = UdpReport(mapping=Mapping.NONE, mapped_address=SEEN)
    tcp = TcpReport(mapping=Mapping.NONE, mapped_address=SEEN)
    evidence = (skipped("udp.filtering"), skipped("tcp.filtering"))
    both = report(udp, tcp, evidence=evidence)
    assert verdict(both) == (
        "Inconclusive: there is no NAT, but whether a firewall filters is told only by a server "
        "that has a second address."
    )
    assert advice(both)[0].startswith("Ask a server with two addresses (RFC 5780)")


def test_one_ordinary_server_shows_that_there_is_a_nat() -> None:
    udp, tcp = UdpReport(mapped_address=SEEN), TcpReport(mapped_address=SEEN)
    one = report(udp, tcp, behind_nat=True, evidence=(skipped("udp.filtering"),))
    assert verdict(one).startswith("Inconclusive: there is a NAT, but too few addresses answered")
    assert "TCP" not in verdict(one)
    assert "--server ONE --server OTHER" in advice(one)[0]


@pytest.mark.parametrize("kind", NAMED_KINDS, ids=lambda kind: kind.name)
def test_the_hosts_own_firewall_is_thought_of_where_it_may_be_what_filters(kind: Kind) -> None:
    found = {kind.expected.udp, kind.expected.tcp}
    strict = found & {NatType.RESTRICTED_CONE, NatType.PORT_RESTRICTED_CONE}
    said = any("this host's own firewall" in line for line in advice(report_of(kind)))
    assert said == bool(strict)


def test_udp_without_an_answer_beside_a_clear_tcp() -> None:
    tcp = report_of(NAMED_KINDS[6]).tcp
    said = verdict(report(UdpReport(), tcp))
    assert said.startswith("Inconclusive: no server answered over UDP.")
    assert "Over TCP it is a port-restricted cone NAT" in said


def test_nothing_tested() -> None:
    assert verdict(report()) == "Nothing was tested."


def test_culprits_lead_to_another_server() -> None:
    dishonest = report(UdpReport(mapped_address=SEEN), culprits=("192.0.2.1:3478 lies",))
    assert any("untrustworthy" in line for line in advice(dishonest))


def test_advice_follows_the_findings() -> None:
    path = UdpReport(
        nat_type=NatType.SYMMETRIC,
        mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
        filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
        allocation=AllocationReport(Allocation.RANDOM),
        hairpinning=Hairpin.NONE,
        mapped_address=SEEN,
        mapping_stable=False,
        address_pooling_paired=False,
        remaps_after_inbound=True,
        fragments=False,
        keepalive=25.0,
    )
    said = " ".join(advice(report(path, TcpReport(NatType.TCP_BLOCKED, simultaneous_open=False))))
    for word in (
        "TURN relay",
        "TCP that is blocked",
        "low TTL",
        "hairpinning",
        "REQ-2",
        "Fragments",
        "every 25 seconds",
        "renew candidates",
        "forward a port",
    ):
        assert word in said


def test_an_ordinary_server_leaves_tcp_filtering_open_and_that_is_said() -> None:
    tcp = TcpReport(mapping=Mapping.ENDPOINT_INDEPENDENT, mapped_address=SEEN)
    half = report(report_of(NAMED_KINDS[6]).udp, tcp)
    assert half.conclusive
    assert "natcheck serve" in advice(half)[0]


def test_open_needs_no_advice() -> None:
    assert advice(report_of(NAMED_KINDS[0])) == ()


def test_a_family_without_nat_is_recommended() -> None:
    v6 = UdpReport(nat_type=NatType.OPEN, mapping=Mapping.NONE, filtering=Filtering.NONE)
    both = replace(report_of(NAMED_KINDS[6]), other_family=FamilyReport("ipv6", v6, None))
    assert advice(both)[0] == "Prefer IPv6: there is no NAT on it."


def test_complete_fills_in_what_follows() -> None:
    whole = complete(report_of(NAMED_KINDS[6]))
    assert whole.verdict == verdict(whole)
    assert len(whole.peers) == 6
