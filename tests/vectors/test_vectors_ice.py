"""The vectors of ICE: priorities, candidate attributes, session descriptions, address order."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from ice import priority, sdp
from ice.candidate import Candidate, CandidateError, CandidateType, TcpType, UnsupportedCandidate
from ice.config import Config
from ice.interfaces import LocalAddress, filter_and_rank, precedence

Case = dict[str, Any]


@pytest.mark.vectors("ice/priorities.json", group="candidate")
def test_priority_of_a_candidate(case: Case) -> None:
    kind = CandidateType(case["type"])
    local = case["local_preference"]
    assert priority.formula(case["type_preference"], local, case["component"]) == case["priority"]
    tcptype = TcpType(case["tcptype"]) if "tcptype" in case else None
    interface = local
    if tcptype is not None:
        other = case["other_preference"]
        assert priority.tcp_local_preference(kind, tcptype, other) == local
        interface = priority.HIGHEST - (8191 - other)
    ours = priority.candidate_priority(kind, case["component"], interface, tcptype)
    assert (ours == case["priority"]) is ("TYPE_PREFERENCE" not in case.get("flags", ()))
    assert ours & 0xFFFFFF == case["priority"] & 0xFFFFFF


@pytest.mark.vectors("ice/priorities.json", group="pair")
def test_priority_of_a_pair(case: Case) -> None:
    assert priority.pair_priority(case["controlling"], case["controlled"]) == case["priority"]


@pytest.mark.vectors("ice/candidates.json")
def test_candidate_line(case: Case) -> None:
    if "candidate" not in case:
        with pytest.raises(CandidateError) as caught:
            Candidate.from_sdp(case["text"])
        assert caught.value.position == case["position"]
        assert isinstance(caught.value, UnsupportedCandidate) is case.get("unsupported", False)
        return
    candidate = Candidate.from_sdp(case["text"])
    assert {
        "foundation": candidate.foundation,
        "component": candidate.component,
        "transport": candidate.transport,
        "priority": candidate.priority,
        "address": candidate.host,
        "port": candidate.port,
        "type": candidate.type,
        "related_address": candidate.related_address,
        "related_port": candidate.related_port,
        "tcptype": candidate.tcptype,
        "extensions": [list(pair) for pair in candidate.extensions],
    } == case["candidate"]
    assert candidate.to_sdp() == case["written"]
    assert Candidate.from_sdp(case["written"]).to_sdp() == case["written"]


@pytest.mark.vectors("ice/bodies.json")
@pytest.mark.parametrize("end", ["\r\n", "\n"], ids=["crlf", "lf"])
def test_body(case: Case, end: str) -> None:
    description = sdp.parse("".join(line + end for line in case["lines"]))
    assert {
        "ufrag": description.ufrag,
        "password": description.password,
        "lite": description.lite,
        "options": list(description.options),
        "pacing": description.pacing,
        "end_of_candidates": description.end_of_candidates,
        "bundle": list(description.bundle),
    } == case["session"]
    assert [
        {
            "media": section.media,
            "mid": section.mid,
            "ufrag": section.ufrag,
            "password": section.password,
            "options": list(section.options),
            "candidates": len(section.candidates),
            "remote_candidates": [list(told) for told in section.remote_candidates],
            "end_of_candidates": section.end_of_candidates,
            "mismatch": section.mismatch,
            "rtcp_mux": section.rtcp_mux,
            "default": None if section.default is None else list(section.default),
        }
        for section in description.sections
    ] == case["sections"]
    assert description.left_out == len(description.problems) == case["left_out"]
    texts = [line.removeprefix("a=") for line in case["lines"] if line.startswith("a=candidate:")]
    told = [c.to_sdp() for section in description.sections for c in section.candidates]
    if not case["left_out"]:
        assert told == [text.replace(" UDP ", " udp ").replace(" TCP ", " tcp ") for text in texts]


@pytest.mark.vectors("ice/addresses.json", group="policy")
def test_precedence_of_an_address(case: Case) -> None:
    assert precedence(ip_address(case["address"])) == case["precedence"]


@pytest.mark.vectors("ice/addresses.json", group="order")
def test_order_of_addresses(case: Case) -> None:
    addresses = [
        LocalAddress(
            host=given["host"],
            name="eth0",
            prefix=given.get("prefix", 64 if ":" in given["host"] else 24),
            temporary=given.get("temporary", False),
            deprecated=given.get("deprecated", False),
            tentative=given.get("tentative", False),
        )
        for given in case["addresses"]
    ]
    chosen = filter_and_rank(addresses, Config())
    assert [interface.host for interface in chosen] == case["order"]
    preferences = [interface.preference for interface in chosen]
    assert preferences == sorted(set(preferences), reverse=True)
    assert preferences[0] == priority.HIGHEST
