"""The JSON form: there and back for any report, as its schema says; errors that name the field."""

from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import fields

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattype import jsonform
from nattype.jsonform import ReportFormatError, dumps, from_json, json_schema, loads, to_json
from nattype.model import Allocation, Filtering, Hairpin, Mapping, NatType, Unsolicited
from nattype.peers import PeerKind
from nattype.report import (
    AllocationReport,
    Evidence,
    FamilyReport,
    LifetimeReport,
    Outcome,
    PeerReach,
    Reach,
    Report,
    TcpReport,
    UdpReport,
)
from stun.sansio import Address

seconds = st.integers(0, 10**10).map(lambda micro: round(micro / 1e6, 6))
shares = st.integers(0, 10**6).map(lambda ppm: round(ppm / 1e6, 6))
ports = st.integers(0, 65535)
addresses = st.builds(Address, st.ip_addresses().map(str) | st.just("fe80::1%eth0"), ports)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
maybe = st.none() | st.booleans()
allocations = st.builds(
    AllocationReport,
    pattern=st.sampled_from(Allocation),
    delta=st.none() | st.integers(-65535, 65535),
    confidence=shares,
    samples=st.lists(st.tuples(ports, ports), max_size=4).map(tuple),
)
lifetimes = st.none() | st.builds(
    LifetimeReport, alive=st.none() | seconds, dead=st.none() | seconds
)
udps = st.builds(
    UdpReport,
    nat_type=st.sampled_from([t for t in NatType if t is not NatType.TCP_BLOCKED]),
    mapping=st.sampled_from(Mapping),
    filtering=st.sampled_from(Filtering),
    allocation=allocations,
    hairpinning=st.sampled_from(Hairpin),
    local_address=st.none() | addresses,
    mapped_address=st.none() | addresses,
    mapping_stable=maybe,
    mapping_depends_on_port_only=st.booleans(),
    address_pooling_paired=maybe,
    remaps_after_inbound=maybe,
    fragments=maybe,
    lifetime_one_shot=lifetimes,
    lifetime_stream=lifetimes,
    keepalive=st.none() | seconds,
    rtt=st.none() | seconds,
)
tcps = st.builds(
    TcpReport,
    nat_type=st.sampled_from([t for t in NatType if t is not NatType.UDP_BLOCKED]),
    mapping=st.sampled_from(Mapping),
    filtering=st.sampled_from(Filtering),
    unsolicited=st.sampled_from(Unsolicited),
    allocation=allocations,
    simultaneous_open=maybe,
    local_address=st.none() | addresses,
    mapped_address=st.none() | addresses,
    rtt=st.none() | seconds,
)
families = st.sampled_from(["ipv4", "ipv6"])
reports = st.builds(
    Report,
    verdict=texts,
    family=families,
    udp=st.none() | udps,
    tcp=st.none() | tcps,
    other_family=st.none()
    | st.builds(FamilyReport, family=families, udp=st.none() | udps, tcp=st.none() | tcps),
    peers=st.dictionaries(
        st.sampled_from([kind.value for kind in PeerKind]),
        st.builds(PeerReach, udp=st.sampled_from(Reach), tcp=st.sampled_from(Reach)),
    ),
    culprits=st.lists(texts, max_size=2).map(tuple),
    evidence=st.lists(
        st.builds(
            Evidence,
            test=texts,
            outcome=st.sampled_from(Outcome),
            detail=texts,
            at=seconds,
            server=st.none() | texts,
        ),
        max_size=3,
    ).map(tuple),
    servers=st.lists(texts, max_size=3).map(tuple),
    seconds=seconds,
    behind_nat=maybe,
    layers=st.none() | st.integers(0, 16),
)

WHOLE = Report(
    "A verdict.",
    "ipv4",
    UdpReport(
        NatType.SYMMETRIC,
        Mapping.ADDRESS_DEPENDENT,
        Filtering.ENDPOINT_INDEPENDENT,
        AllocationReport(Allocation.SEQUENTIAL, 2, 0.75, ((5000, 40000), (5001, 40002))),
        Hairpin.EXTERNAL,
        Address("192.168.1.2", 5000),
        Address("192.52.193.4", 40000),
        lifetime_stream=LifetimeReport(120.0, None),
    ),
    TcpReport(NatType.OPEN, local_address=Address("2001:db8::1", 1)),
    other_family=FamilyReport("ipv6", UdpReport(), None),
    peers={"open": PeerReach(Reach.DIRECT, Reach.NONE)},
    culprits=("It lies.",),
    evidence=(Evidence("udp.mapping", Outcome.POSITIVE, "It was so.", 0.5, "192.0.2.1:3478"),),
)


def closed(schema: dict) -> dict:
    """The same schema, but with no room for fields that it does not describe."""
    if isinstance(schema, dict):
        schema = {key: closed(value) for key, value in schema.items()}
        if "properties" in schema and schema.get("type") == "object":
            schema["additionalProperties"] = False
    elif isinstance(schema, list):
        schema = [closed(item) for item in schema]
    return schema


VALIDATOR = jsonschema.Draft202012Validator(closed(json_schema()))


@given(reports)
def test_there_and_back(report: Report) -> None:
    assert loads(dumps(report)) == report


@given(reports)
def test_every_document_is_as_the_schema_says(report: Report) -> None:
    VALIDATOR.validate(json.loads(dumps(report)))


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_every_field_of_every_report_is_declared() -> None:
    for record in (
        jsonform.REPORT,
        jsonform.UDP,
        jsonform.TCP,
        jsonform.FAMILY,
        jsonform.PEER,
        jsonform.EVIDENCE,
        jsonform.ALLOCATION,
        jsonform.LIFETIME,
    ):
        assert set(record.fields) == {field.name for field in fields(record._cls)}
        assert all(text.endswith(".") for _, text in record.fields.values())


def test_the_shape() -> None:
    document = to_json(WHOLE)
    assert list(document)[:5] == ["schema", "verdict", "family", "udp", "tcp"]
    assert document["schema"] == 1
    assert list(document["udp"])[:7] == [
        "nat_type",
        "mapping",
        "filtering",
        "allocation",
        "hairpinning",
        "mapped_address",
        "local_address",
    ]
    assert document["udp"]["nat_type"] == "symmetric"
    assert document["udp"]["mapped_address"] == "192.52.193.4:40000"
    assert document["udp"]["allocation"] == {
        "pattern": "sequential",
        "delta": 2,
        "confidence": 0.75,
        "samples": [[5000, 40000], [5001, 40002]],
    }
    assert document["tcp"]["local_address"] == "[2001:db8::1]:1"
    assert document["udp"]["keepalive"] is None
    assert document["peers"] == {"open": {"udp": "direct", "tcp": "none"}}
    assert to_json(Report("", "ipv4", None, None))["udp"] is None


def test_text_cannot_steer_a_terminal() -> None:
    report = Report("\x1b[31m\x9b\u202e", "ipv4", None, None)
    assert dumps(report).isascii()
    assert "\x1b" not in dumps(report)
    assert loads(dumps(report)) == report


WRONG = [
    (("schema",), 2, "schema"),
    (("schema",), True, "schema"),
    (("verdict",), 1, "verdict"),
    (("family",), "ipv5", "family"),
    (("udp",), [], "udp"),
    (("udp", "nat_type"), "tcp blocked", "udp.nat_type"),
    (("udp", "mapping"), "endpoint independent", "udp.mapping"),
    (("udp", "mapping_depends_on_port_only"), None, "udp.mapping_depends_on_port_only"),
    (("udp", "mapping_stable"), 0, "udp.mapping_stable"),
    (("udp", "allocation", "confidence"), 1.01, "udp.allocation.confidence"),
    (("udp", "allocation", "confidence"), float("nan"), "udp.allocation.confidence"),
    (("udp", "allocation", "delta"), 1.5, "udp.allocation.delta"),
    (("udp", "allocation", "samples"), [[1, 2], [3]], "udp.allocation.samples[1]"),
    (("udp", "allocation", "samples"), [[1, 65536]], "udp.allocation.samples[0][1]"),
    (("udp", "mapped_address"), "192.52.193.4", "udp.mapped_address"),
    (("udp", "mapped_address"), "192.52.193.4:65536", "udp.mapped_address"),
    (("udp", "mapped_address"), "192.52.193.400:1", "udp.mapped_address"),
    (("udp", "mapped_address"), "2001:db8::1:80", "udp.mapped_address"),
    (("udp", "mapped_address"), "[192.0.2.1]:80", "udp.mapped_address"),
    (("udp", "mapped_address"), "[fe80::1%\x1b[2J]:80", "udp.mapped_address"),
    (("udp", "mapped_address"), "192.52.193.4:\u0665", "udp.mapped_address"),
    (("udp", "rtt"), -1, "udp.rtt"),
    (("udp", "rtt"), float("inf"), "udp.rtt"),
    (("udp", "rtt"), 10**400, "udp.rtt"),
    (("udp", "rtt"), True, "udp.rtt"),
    (("peers", "open", "udp"), "maybe", "peers.open.udp"),
    (("peers",), [], "peers"),
    (("evidence",), {}, "evidence"),
    (("evidence", 0, "outcome"), "good", "evidence[0].outcome"),
    (("layers",), 17, "layers"),
    (("layers",), True, "layers"),
]


@pytest.mark.parametrize(("path", "value", "field"), WRONG)
def test_what_is_wrong_is_named(path: tuple, value: object, field: str) -> None:
    document = copy.deepcopy(to_json(WHOLE))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ReportFormatError) as caught:
        from_json(document)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def test_what_is_missing_is_named() -> None:
    document = to_json(WHOLE)
    del document["udp"]["mapping"]
    with pytest.raises(ReportFormatError, match=r"^udp\.mapping: is missing$"):
        from_json(document)
    with pytest.raises(ReportFormatError, match="no report of natcheck"):
        from_json({})


def test_room_to_grow() -> None:
    document = to_json(WHOLE)
    document["colour"] = "blue"
    document["udp"]["mood"] = "fine"
    document["peers"]["martian"] = {"udp": "direct", "tcp": "direct"}
    assert from_json(document) == WHOLE


def test_what_may_be_null_may_be_missing() -> None:
    document = to_json(WHOLE)
    del document["udp"]["lifetime_one_shot"]
    del document["layers"]
    assert from_json(document) == WHOLE


@pytest.mark.parametrize(
    "text", ["", "[", "\x00", "null", "[1]", '"x"', "[" * 100_000, b"\xff\xfe\xff"]
)
def test_no_json_at_all(text: str | bytes) -> None:
    with pytest.raises(ReportFormatError):
        loads(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.lists(
        st.sampled_from(["udp", "tcp", "peers", "evidence", "allocation", "samples", "rtt"]),
        max_size=3,
    ),
    json_values,
)
def test_any_change_is_read_as_a_report_or_refused(path: list[str], value: object) -> None:
    document = copy.deepcopy(to_json(WHOLE))
    place: object = document
    for step in path:
        if isinstance(place, dict):
            below = place.get(step)
            if not isinstance(below, dict):
                place[step] = value
                break
            place = below
    with contextlib.suppress(ReportFormatError):
        again = from_json(document)
        assert from_json(to_json(again)) == again
