"""How findings are kept, and the mapping behaviour of any set of endpoints."""

from __future__ import annotations

import pytest

from nattype.findings import (
    Findings,
    infer_mapping,
    judge_allocation,
    judge_contacts,
    milliseconds,
    times,
)
from nattype.model import Allocation, Mapping
from nattype.observations import Allocations, Asked, Contact, Prediction
from nattype.report import Outcome
from stun.sansio import MILLISECOND, Address

LOCAL = Address("192.168.1.2", 50000)
A = Address("192.31.196.10", 3478)


def saw(server: str, port: int) -> Asked:
    host, _, at = server.rpartition(":")
    address = Address(host, int(at))
    mapped = Address("192.52.193.2", port)
    return Asked(LOCAL, address, expected=address, sends=1, source=address, mapped=mapped)


@pytest.mark.parametrize(
    ("seen", "mapping"),
    [
        # Ordinary servers at unrelated addresses.
        ([saw("1.1.1.1:3478", 7), saw("8.8.8.8:3478", 7)], Mapping.ENDPOINT_INDEPENDENT),
        ([saw("1.1.1.1:3478", 7), saw("8.8.8.8:19302", 7)], Mapping.ENDPOINT_INDEPENDENT),
        # Asked at one port each, they show no reuse of a mapping for another port.
        (
            [saw("1.1.1.1:3478", 7), saw("8.8.8.8:3478", 8)],
            Mapping.ADDRESS_AND_PORT_DEPENDENT,
        ),
        (
            [saw("1.1.1.1:3478", 7), saw("8.8.8.8:19302", 8)],
            Mapping.ADDRESS_AND_PORT_DEPENDENT,
        ),
        # One server that answers at two ports settles the rest.
        (
            [saw("1.1.1.1:3478", 7), saw("1.1.1.1:3479", 9), saw("8.8.8.8:3478", 8)],
            Mapping.ADDRESS_AND_PORT_DEPENDENT,
        ),
        (
            [saw("1.1.1.1:3478", 7), saw("1.1.1.1:3479", 7), saw("8.8.8.8:3478", 8)],
            Mapping.ADDRESS_DEPENDENT,
        ),
        # One address does not tell, however many ports.
        ([saw("1.1.1.1:3478", 7), saw("1.1.1.1:3479", 7)], Mapping.UNKNOWN),
        ([saw("1.1.1.1:3478", 7), saw("1.1.1.1:3479", 8)], Mapping.ADDRESS_AND_PORT_DEPENDENT),
        ([], Mapping.UNKNOWN),
    ],
)
def test_any_endpoints(seen: list[Asked], mapping: Mapping) -> None:
    found = infer_mapping(seen)
    assert found.mapping is mapping
    assert found.because


def test_another_external_host_is_another_mapping() -> None:
    other = saw("8.8.8.8:3478", 7)
    moved = Asked(
        LOCAL, other.server, expected=other.server, source=other.server,
        mapped=Address("192.52.193.3", 7),
    )  # fmt: skip
    found = infer_mapping([saw("1.1.1.1:3478", 7), moved])
    assert found.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT
    assert "would look the same" in found.because


def test_a_culprit_is_named_once_and_by_its_name() -> None:
    findings = Findings({A: "stun.example.org"})
    for _ in range(2):
        findings.blame(A, "lies", 0)
    assert list(findings.culprits) == ["stun.example.org (192.31.196.10:3478) lies."]
    assert len(findings.evidence) == 1


def test_contacts() -> None:
    findings = Findings()
    silent = Asked(LOCAL, A, sends=10, icmp=2, strange=Address("198.51.100.1", 1))
    judge_contacts([Contact(A, "a", silent)], "udp.contact", findings)
    (said,) = findings.evidence
    assert said.outcome is Outcome.NEGATIVE
    assert "10 requests" in said.detail
    assert "2 ICMP errors" in said.detail
    assert "198.51.100.1:1" in said.detail
    for alter, word in (
        ({"error": 500}, "error 500"),
        ({"mapped": None}, "without a mapped address"),
        ({"other": Address("10.0.0.1", 3479)}, "private"),
    ):
        findings = Findings()
        values = {"source": A, "mapped": Address("192.52.193.2", 9), "sends": 1, **alter}
        asked = Asked(LOCAL, A, **values)  # type: ignore[arg-type]
        judge_contacts([Contact(A, str(A), asked)], "udp.contact", findings)
        assert any(word in culprit for culprit in findings.culprits)


def allocations(ports: list[int], hits: int, misses: int) -> Allocations:
    asked = tuple(
        Asked(Address(LOCAL.host, 50000 + 3 * n), A, sends=1, mapped=Address("192.52.193.2", port))
        for n, port in enumerate(ports)
    )
    good, bad = Prediction(5, 5), Prediction(5, 6)
    return Allocations(asked, (good,) * hits + (bad,) * misses)


def test_confidence_is_hits_a_prediction() -> None:
    findings = Findings()
    ports = list(range(40000, 40009))
    report = judge_allocation(allocations(ports, 3, 1), "udp.allocation", findings)
    assert report.pattern is Allocation.SEQUENTIAL
    assert report.delta == 1
    assert report.confidence == 0.75
    assert len(report.samples) == 9
    assert "3 of 4" in findings.evidence[0].detail


def test_a_pattern_that_foretells_nothing_is_none() -> None:
    ports = list(range(40000, 40009))
    report = judge_allocation(allocations(ports, 0, 5), "udp.allocation", Findings())
    assert report.pattern is Allocation.UNKNOWN


def test_too_few_ports() -> None:
    findings = Findings()
    report = judge_allocation(allocations([5, 6], 0, 0), "udp.allocation", findings)
    assert report.pattern is Allocation.UNKNOWN
    assert findings.evidence[0].outcome is Outcome.INCONCLUSIVE


def test_words() -> None:
    assert times(1, "request") == "1 request"
    assert times(3, "request") == "3 requests"
    assert milliseconds(1_540_000) == "1.5 ms"
    assert milliseconds(125 * MILLISECOND) == "125 ms"
