"""One report of two families."""

from __future__ import annotations

from nattype.assembly import assemble
from nattype.classify import Classified
from nattype.model import Filtering, Mapping, NatType
from nattype.report import Evidence, Outcome, UdpReport
from stun.sansio import Address


def family(name: str, *, reached: bool = True, kind: NatType = NatType.OPEN) -> Classified:
    udp = UdpReport(
        nat_type=kind if reached else NatType.INCONCLUSIVE,
        mapping=Mapping.NONE if reached else Mapping.UNKNOWN,
        filtering=Filtering.NONE if reached else Filtering.UNKNOWN,
        mapped_address=Address("192.0.2.1", 1) if reached else None,
    )
    evidence = (Evidence("udp.contact", Outcome.POSITIVE, f"Said of {name}."),)
    return Classified(name, udp, None, evidence, (f"{name} lies.",), reached, not reached, None)


def test_one_family() -> None:
    report = assemble([family("ipv6")])
    assert report.family == "ipv6"
    assert report.other_family is None
    assert report.verdict
    assert report.peers
    assert [e.detail for e in report.evidence] == ["Said of ipv6."]


def test_ipv4_goes_first_and_sentences_say_of_which_family_they_are() -> None:
    report = assemble([family("ipv4"), family("ipv6")])
    assert report.family == "ipv4"
    assert report.other_family is not None
    assert report.other_family.family == "ipv6"
    assert [e.detail for e in report.evidence] == ["IPv4: Said of ipv4.", "IPv6: Said of ipv6."]
    assert report.culprits == ("ipv4 lies.", "ipv6 lies.")


def test_a_family_that_reached_nobody_gives_way() -> None:
    report = assemble([family("ipv4", reached=False), family("ipv6")])
    assert report.family == "ipv6"
    assert report.other_family is None
    assert report.conclusive


def test_nobody_reached() -> None:
    report = assemble([family("ipv4", reached=False), family("ipv6", reached=False)])
    assert report.family == "ipv4"
    assert not report.conclusive
