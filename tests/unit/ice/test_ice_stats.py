"""Statistics: plain values, their sums, and WebRTC's names for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from ice.base import Base
from ice.candidate import Candidate, CandidateType, TcpType
from ice.config import Config, Role, Server
from ice.explain import Gathered, Missing, Told
from ice.monitor import Measurement
from ice.pair import Note, Pair, PairState
from ice.stats import statistics
from stun.errors import DropReason
from stun.sansio import MILLISECOND, SECOND, Address, Instant


@dataclass
class Seen:
    """An agent as it may be seen."""

    config: Config = field(default_factory=Config)
    role: Role = "controlled"
    generation: int = 2
    started: Instant = 5 * SECOND
    servers: Sequence[Server] = ()
    is_gathered: bool = True
    has_credentials: bool = True
    has_all_remote: bool = True
    local: Sequence[Gathered] = ()
    remote: Sequence[Told] = ()
    missing: Sequence[Missing] = ()
    pairs: list[Pair] = field(default_factory=list)
    selected: dict[tuple[int, int], Pair] = field(default_factory=dict)
    failure: str = ""
    events: Sequence[Note] = ()
    drops: Mapping[DropReason, int] = field(default_factory=dict)


def make_pair(number: int, *, relay: str = "", tcptype: TcpType | None = None) -> Pair:
    base = Base(
        number, 0, 1, "tcp" if tcptype else "udp", Address("10.0.0.1", 5000), tcptype, relay
    )
    local = Candidate("1", 1, base.transport, 100, "10.0.0.1", 5000, CandidateType.HOST)
    remote = Candidate(
        "2", 1, base.transport, 200, "192.0.2.2", 6000, CandidateType.SERVER_REFLEXIVE,
        "10.9.9.9", 6000, None if tcptype is None else tcptype.counterpart,
    )  # fmt: skip
    return Pair(local, base, remote, 300)


def seen_with_two() -> Seen:
    first = make_pair(1)
    first.state, first.valid, first.nominated = PairState.SUCCEEDED, True, True
    first.mapped = Candidate(
        "3", 1, "udp", 90, "203.0.113.5", 40000, CandidateType.PEER_REFLEXIVE, "10.0.0.1", 5000
    )
    first.rtt = 25 * MILLISECOND
    first.packets_sent, first.octets_sent = 10, 1000
    first.packets_received, first.octets_received = 20, 4000
    first.requests_sent, first.responses_received, first.consent_requests_sent = 9, 8, 6
    first.requests_received, first.responses_sent = 5, 4
    second = make_pair(2, relay="turn:relay.example", tcptype=TcpType.ACTIVE)
    second.requests_sent = 7
    seen = Seen(pairs=[first, second], selected={(0, 1): first})
    seen.drops = {DropReason.BAD_INTEGRITY: 3, DropReason.TOO_SHORT: 0, DropReason.NOT_STUN: 1}
    return seen


def test_sums() -> None:
    found = statistics(seen_with_two(), 8 * SECOND, selections=2, unsent=4)
    assert (found.at, found.role, found.generation) == (3.0, "controlled", 2)
    assert (found.packets_sent, found.packets_received) == (10, 20)
    assert (found.bytes_sent, found.bytes_received) == (1000, 4000)
    assert (found.requests_sent, found.responses_received) == (16, 8)
    assert (found.requests_received, found.responses_sent) == (5, 4)
    assert (found.consent_requests_sent, found.selections, found.unsent) == (6, 2, 4)
    assert found.dropped == 4
    assert found.drops == {
        "the message integrity does not match": 3, "the first two bits are not zero": 1,
    }  # fmt: skip


def test_pairs_and_their_candidates() -> None:
    seen = seen_with_two()
    measured = {seen.pairs[0]: Measurement(25 * MILLISECOND, 2 * MILLISECOND, 0.25, 7)}
    found = statistics(seen, 8 * SECOND, measured=measured.get)
    first, second = found.pairs
    assert (first.rtt, first.rtt_variation, first.loss) == (0.025, 0.002, 0.25)
    assert (second.rtt, second.rtt_variation, second.loss) == (None, None, None)
    assert (first.selected, second.selected) == (True, False)
    assert (first.nominated, first.state) == (True, PairState.SUCCEEDED)
    assert len({first.id, second.id}) == 2
    local = {candidate.id: candidate for candidate in found.local}
    remote = {candidate.id: candidate for candidate in found.remote}
    assert local[first.local].type == "prflx", "as the peer sees it"
    assert local[second.local].relay == "turn:relay.example"
    assert remote[first.remote].related_address == "10.9.9.9"
    assert remote[second.remote].tcptype == "passive"


def test_identifiers_stay_the_same() -> None:
    seen = seen_with_two()
    before = [pair.id for pair in statistics(seen, 8 * SECOND).pairs]
    seen.pairs[1].state = PairState.FAILED
    seen.pairs[1].requests_sent += 1
    assert [pair.id for pair in statistics(seen, 9 * SECOND).pairs] == before


def test_webrtc_names() -> None:
    report = statistics(seen_with_two(), 8 * SECOND, selections=1).rtc(1234.5)
    assert all(entry["id"] == name for name, entry in report.items())
    assert {entry["timestamp"] for entry in report.values()} == {1234.5}
    transport = report["transport"]
    pair = report[transport["selectedCandidatePairId"]]
    assert (transport["iceRole"], transport["bytesReceived"]) == ("controlled", 4000)
    assert transport["selectedCandidatePairChanges"] == 1
    assert pair["type"] == "candidate-pair"
    assert (pair["state"], pair["nominated"]) == ("succeeded", True)
    assert pair["currentRoundTripTime"] == 0.025
    # What asks for consent is counted apart from the checks.
    assert (pair["requestsSent"], pair["consentRequestsSent"]) == (3, 6)
    local, remote = report[pair["localCandidateId"]], report[pair["remoteCandidateId"]]
    assert (local["type"], local["candidateType"]) == ("local-candidate", "prflx")
    assert (remote["type"], remote["relatedPort"]) == ("remote-candidate", 6000)
    assert "tcpType" not in remote
    others = [entry for entry in report.values() if entry["type"] == "candidate-pair"]
    assert "currentRoundTripTime" not in next(entry for entry in others if entry is not pair)


def test_an_agent_that_has_done_nothing() -> None:
    found = statistics(Seen(), 5 * SECOND)
    assert (found.pairs, found.local, found.remote, found.dropped) == ((), (), (), 0)
    assert "selectedCandidatePairId" not in found.rtc()["transport"]


def test_the_values_cannot_be_changed() -> None:
    found = statistics(seen_with_two(), 5 * SECOND)
    with pytest.raises(AttributeError):
        found.packets_sent = 1  # type: ignore[misc]
