"""What is told to the peer of one's NATs, and what is believed of what the peer tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.predict.offer import Offer
from ice.predict.steps import Budget, Strategy
from ice.predict.summary import (
    MOST_OCTETS,
    FamilySummary,
    NatSummary,
    PathSummary,
    SummaryError,
)
from nattype.lab.sim.diagnose import diagnose
from nattype.model import Allocation, Filtering, Mapping, NatType, Unsolicited
from nattype.peers import PeerKind
from nattype.report import AllocationReport, FamilyReport, Report, TcpReport, UdpReport
from stun.sansio import Address

paths = st.builds(
    PathSummary,
    blocked=st.booleans(),
    mapping=st.sampled_from(Mapping),
    filtering=st.sampled_from(Filtering),
    allocation=st.sampled_from([a for a in Allocation if a is not Allocation.SEQUENTIAL]),
    confidence=st.integers(0, 10_000).map(lambda n: n / 10_000),
    pool=st.none() | st.just((2048, 4095)),
    parity=st.booleans(),
    hosts=st.sampled_from([(), ("192.0.2.1",), ("192.0.2.1", "192.0.2.2")]),
    unsolicited=st.sampled_from(Unsolicited),
    simultaneous_open=st.none() | st.booleans(),
    remaps_after_inbound=st.none() | st.booleans(),
)
families = st.builds(FamilySummary, st.none() | paths, st.none() | paths)
summaries = st.builds(NatSummary, ipv4=st.none() | families, layers=st.none() | st.integers(0, 16))
anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["udp", "random", "sequential", "192.0.2.1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


def complaint(read: Callable[[Any], object], raw: Any) -> str | None:
    """What is said against a text or a document; anything but the one error is a failure."""
    try:
        read(raw)
    except SummaryError as error:
        return str(error)
    return None


@given(summaries)
def test_what_is_told_is_what_is_understood(summary: NatSummary) -> None:
    assert NatSummary.loads(summary.dumps()) == summary


@given(anything)
def test_whatever_a_peer_says_is_a_summary_or_one_kind_of_error(document: Any) -> None:
    for read in (NatSummary.from_json, Offer.from_json):
        assert complaint(read, document) != ""


@given(summaries, st.data())
def test_a_summary_with_one_wrong_value_names_it_or_is_a_summary(
    summary: NatSummary, data: st.DataObject
) -> None:
    document = summary.to_json()
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(anything)
    said = complaint(NatSummary.from_json, document)
    assert said is None or any(name in said for name in (key, *document))


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_no_trouble(text: bytes) -> None:
    for read in (NatSummary.loads, Offer.loads):
        assert complaint(read, text) != ""


GOOD: dict[str, Any] = NatSummary(FamilySummary(PathSummary(), None), layers=1).to_json()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("delta", 5000, "-4096 to 4096"),
        ("delta", True, "whole number"),
        ("confidence", 1.5, "from 0 to 1"),
        ("confidence", float("nan"), "from 0 to 1"),
        ("confidence", 10**400, "from 0 to 1"),
        ("pool", [5, 4], "5 to 65535"),
        ("pool", [0, 4], "1 to 65535"),
        ("pool", [1], "first and the last port"),
        ("hosts", ["192.0.2.1"] * 9, "at most 8"),
        ("hosts", ["example.org"], "must be an address"),
        ("hosts", ["fe80::1%eth0"], "must be an address"),
        ("hosts", ["2001:db8::1"], "must be an IPv4 address"),
        ("hosts", [7], "must be an address"),
        ("mapping", 7, "must be a string"),
        ("blocked", "yes", "true, false or null"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: Any, says: str) -> None:
    document = json.loads(json.dumps(GOOD))
    document["ipv4"]["udp"][field] = value
    with pytest.raises(SummaryError, match=says) as caught:
        NatSummary.from_json(document)
    assert caught.value.field.startswith(f"ipv4.udp.{field}")


def test_ports_in_sequence_have_a_step() -> None:
    document = json.loads(json.dumps(GOOD))
    document["ipv4"]["udp"]["allocation"] = "sequential"
    for delta in (None, 0):
        document["ipv4"]["udp"]["delta"] = delta
        with pytest.raises(SummaryError, match="step other than 0"):
            NatSummary.from_json(document)


def test_the_format_may_grow() -> None:
    document = json.loads(json.dumps(GOOD))
    document["weather"] = "fine"
    document["ipv4"]["sctp"] = {}
    document["ipv4"]["udp"] |= {"colour": 7, "mapping": "by the phase of the moon"}
    read = NatSummary.from_json(document)
    assert read == NatSummary.from_json(GOOD)
    path = read.path("udp", "ipv4")
    assert path is not None
    assert path.mapping is Mapping.UNKNOWN


@pytest.mark.parametrize("version", [2, 0, "1", None, True])
def test_another_version_is_refused_in_words(version: Any) -> None:
    with pytest.raises(SummaryError) as caught:
        NatSummary.from_json({**GOOD, "v": version})
    assert caught.value.field == "v"


def test_long_texts_are_not_even_parsed() -> None:
    with pytest.raises(SummaryError, match="more than the"):
        NatSummary.loads(" " * (MOST_OCTETS + 1))


def test_deep_texts_are_no_json() -> None:
    with pytest.raises(SummaryError):
        NatSummary.loads("[" * MOST_OCTETS)


def test_an_error_shows_little_of_what_was_sent() -> None:
    with pytest.raises(SummaryError) as caught:
        NatSummary.from_json({**GOOD, "layers": "\x1b[2J" + "x" * 10_000})
    assert len(str(caught.value)) < 120
    assert "\x1b" not in str(caught.value)


# From reports. ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("open", PeerKind.OPEN),
        ("firewall", PeerKind.PORT_RESTRICTED_CONE),
        ("full-cone", PeerKind.FULL_CONE),
        ("restricted-cone", PeerKind.RESTRICTED_CONE),
        ("port-restricted-cone", PeerKind.PORT_RESTRICTED_CONE),
        ("symmetric-sequential", PeerKind.SYMMETRIC_SEQUENTIAL),
        ("symmetric", PeerKind.SYMMETRIC),
    ],
)
def test_a_diagnosis_becomes_the_kind_that_was_built(name: str, kind: PeerKind, seed: int) -> None:
    summary = NatSummary.from_report(diagnose(name, seed=seed))
    for transport in ("udp", "tcp"):
        path = summary.path(transport, "ipv4")
        assert path is not None
        assert path.kinds == {kind}
    assert NatSummary.loads(summary.dumps()) == summary


def test_what_a_report_says_of_each_axis_is_kept() -> None:
    report = Report(
        verdict="",
        family="ipv4",
        udp=UdpReport(
            nat_type=NatType.SYMMETRIC,
            mapping=Mapping.ADDRESS_DEPENDENT,
            filtering=Filtering.ADDRESS_DEPENDENT,
            allocation=AllocationReport(Allocation.SEQUENTIAL, -2, 0.123456),
            mapped_address=Address("192.0.2.1", 4000),
            remaps_after_inbound=True,
        ),
        tcp=TcpReport(nat_type=NatType.TCP_BLOCKED, unsolicited=Unsolicited.ICMP),
        other_family=FamilyReport("ipv6", UdpReport(), None),
        layers=2,
    )
    summary = NatSummary.from_report(report)
    udp, tcp = summary.path("udp", "ipv4"), summary.path("tcp", "ipv4")
    assert udp == PathSummary(
        mapping=Mapping.ADDRESS_DEPENDENT,
        filtering=Filtering.ADDRESS_DEPENDENT,
        allocation=Allocation.SEQUENTIAL,
        delta=-2,
        confidence=0.1235,
        hosts=("192.0.2.1",),
        remaps_after_inbound=True,
    )
    assert tcp == PathSummary(blocked=True, unsolicited=Unsolicited.ICMP)
    assert tcp.kinds == frozenset()
    assert summary.path("udp", "ipv6") == PathSummary()
    assert summary.path("tcp", "ipv6") is None
    assert summary.layers == 2
    assert summary.families == ("ipv6", "ipv4")


def test_a_block_of_ports_is_told_of_a_nat_that_draws() -> None:
    samples = tuple(
        (50_000 + n, 4096 + port) for n, port in enumerate((7, 900, 300, 1000, 512, 64))
    )
    drawn = UdpReport(
        mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
        allocation=AllocationReport(Allocation.RANDOM, None, 0.0, samples),
    )
    path = NatSummary.from_report(Report("", "ipv4", drawn, None)).path("udp", "ipv4")
    assert path is not None
    assert path.pool is not None
    assert path.pool[0] <= 4103
    assert path.pool[1] >= 5096
    assert len(path.ports) <= 4096


# Offers. ------------------------------------------------------------------------------------------


def test_an_offer_is_understood_as_it_was_made() -> None:
    offer = Offer(
        NatSummary(FamilySummary(PathSummary(), None)),
        Budget(512, 128, 7.5),
        birthday=True,
        remembered={"udp": (Strategy.PLAIN, Strategy.BIRTHDAY_SOCKETS)},
    )
    assert Offer.loads(offer.dumps()) == offer
    assert Offer.loads(Offer().dumps()) == Offer()
    assert Offer.from_json({}) == Offer()


@pytest.mark.parametrize(
    "document",
    [
        {"budget": 7},
        {"budget": {}},
        {"budget": {"packets": -1, "sockets": 1, "seconds": 1}},
        {"budget": {"packets": 1, "sockets": float("nan"), "seconds": 1}},
        {"birthday": 1},
        {"worked": []},
        {"worked": {"udp": "plain"}},
        {"worked": {"udp": ["plain"] * 1000}},
        {"nat": 7},
    ],
)
def test_a_wrong_offer_is_one_kind_of_error(document: dict[str, Any]) -> None:
    with pytest.raises(SummaryError):
        Offer.from_json(document)


def test_an_immodest_budget_is_cut_down() -> None:
    raw = {"packets": 1e300, "sockets": 10**400, "seconds": float("inf")}
    offer = Offer.from_json({"budget": raw})
    assert offer.budget == Budget(131_072, 1024, 120.0)


def test_both_offers_make_one_plan() -> None:
    cone = PathSummary(
        mapping=Mapping.ENDPOINT_INDEPENDENT,
        filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
        allocation=Allocation.PRESERVED,
    )
    draws = PathSummary(
        mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
        filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
        allocation=Allocation.RANDOM,
    )
    mine = Offer(NatSummary(FamilySummary(cone)), Budget(1000, 256, 20), birthday=True)
    theirs = Offer(
        NatSummary(FamilySummary(draws)),
        birthday=True,
        remembered={"udp": (Strategy.BIRTHDAY_SOCKETS,)},
    )
    made = mine.plan(theirs, "udp")
    assert made == theirs.plan(mine, "udp").mirrored()
    assert made.strategies[0] is Strategy.BIRTHDAY_PROBES
    assert made.steps[0].mine.probes == 1000
    # One side's leave is not enough.
    shy = Offer(theirs.summary)
    assert mine.plan(shy, "udp").strategies == (Strategy.RELAY,)
    assert shy.plan(mine, "udp").strategies == (Strategy.RELAY,)
