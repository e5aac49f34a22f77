"""Statistics: what the pairs of an agent and the agent as a whole have done, as plain values.

The values are those that browsers give ("Identifiers for WebRTC's Statistics API", W3C), and
:meth:`Statistics.rtc` has them under the names of that document.  Counts only grow; times are in
seconds.  Data is counted without the octets of IP, UDP and framing, and without STUN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ice.base import Base
from ice.candidate import Candidate
from ice.config import Role
from ice.monitor import Measurement
from ice.pair import Pair, PairState
from ice.seen import View
from stun.sansio import SECOND, Instant


@dataclass(frozen=True, slots=True)
class CandidateStatistics:
    """A candidate of some pair.  ``id`` stays the same for as long as the agent lives."""

    id: str
    type: str
    transport: str
    host: str
    port: int
    priority: int
    foundation: str
    related_address: str | None
    related_port: int | None
    tcptype: str | None
    relay: str = ""
    """Of a local one, the TURN server it is at."""


@dataclass(frozen=True, slots=True)
class PairStatistics:
    """One pair.  ``consent_requests_sent`` are among ``requests_sent``."""

    id: str
    local: str
    """The ``id`` of the local candidate."""
    remote: str
    stream: int
    component: int
    state: PairState
    priority: int
    nominated: bool
    selected: bool
    packets_sent: int
    packets_received: int
    bytes_sent: int
    bytes_received: int
    requests_sent: int
    responses_received: int
    requests_received: int
    responses_sent: int
    consent_requests_sent: int
    rtt: float | None
    """Smoothed round-trip time."""
    rtt_variation: float | None = None
    """Mean deviation of it, where the pair is monitored."""
    loss: float | None = None
    """Smoothed share of the questions without an answer, 0 to 1, where the pair is monitored."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """An agent: sums over its pairs, and the pairs."""

    at: float
    """Seconds since the agent began."""
    role: Role
    generation: int
    packets_sent: int
    packets_received: int
    bytes_sent: int
    bytes_received: int
    requests_sent: int
    responses_received: int
    requests_received: int
    responses_sent: int
    consent_requests_sent: int
    selections: int
    """How often a component was given a pair to send on, the first time included."""
    unsent: int
    """Packets that were not sent because there was no pair to send them on."""
    dropped: int
    """Packets that came and were not used."""
    drops: Mapping[str, int] = field(default_factory=dict)
    """The same by reason."""
    pairs: tuple[PairStatistics, ...] = ()
    local: tuple[CandidateStatistics, ...] = ()
    remote: tuple[CandidateStatistics, ...] = ()

    def rtc(self, timestamp: float = 0.0) -> dict[str, dict[str, Any]]:
        """Return it by ``id`` under WebRTC's names, as a browser's ``getStats`` does.

        ``timestamp``: milliseconds since 1970, of now.  There is one ``transport``, the agent.
        """
        chosen = [pair for pair in self.pairs if pair.selected]
        report: dict[str, dict[str, Any]] = {
            _TRANSPORT: {
                "type": "transport",
                "iceRole": self.role,
                "packetsSent": self.packets_sent,
                "packetsReceived": self.packets_received,
                "bytesSent": self.bytes_sent,
                "bytesReceived": self.bytes_received,
                "selectedCandidatePairChanges": self.selections,
            }
        }
        if chosen:
            report[_TRANSPORT]["selectedCandidatePairId"] = chosen[0].id
        for pair in self.pairs:
            report[pair.id] = _rtc_pair(pair)
        for kind, candidates in (
            ("local-candidate", self.local),
            ("remote-candidate", self.remote),
        ):
            for candidate in candidates:
                report[candidate.id] = _rtc_candidate(kind, candidate)
        return {
            name: {"id": name, "timestamp": timestamp, **entry} for name, entry in report.items()
        }


_TRANSPORT: Final = "transport"


def statistics(
    view: View,
    now: Instant,
    *,
    measured: Callable[[Pair], Measurement | None] | None = None,
    selections: int = 0,
    unsent: int = 0,
) -> Statistics:
    """Return the statistics of the agent that ``view`` shows.

    ``measured`` is :meth:`ice.monitor.Monitor.measured`, if there is a monitor.
    """
    chosen = set(view.selected.values())
    local: dict[str, CandidateStatistics] = {}
    remote: dict[str, CandidateStatistics] = {}
    pairs = []
    for pair in view.pairs:
        ours = _local(pair.base, pair.local if pair.mapped is None else pair.mapped)
        theirs = _remote(pair.stream, pair.remote)
        local[ours.id], remote[theirs.id] = ours, theirs
        found = None if measured is None else measured(pair)
        pairs.append(_pair(pair, ours.id, theirs.id, found, selected=pair in chosen))
    drops = {reason.value: times for reason, times in view.drops.items() if times}
    return Statistics(
        at=round((now - view.started) / SECOND, 6),
        role=view.role,
        generation=view.generation,
        packets_sent=sum(pair.packets_sent for pair in pairs),
        packets_received=sum(pair.packets_received for pair in pairs),
        bytes_sent=sum(pair.bytes_sent for pair in pairs),
        bytes_received=sum(pair.bytes_received for pair in pairs),
        requests_sent=sum(pair.requests_sent for pair in pairs),
        responses_received=sum(pair.responses_received for pair in pairs),
        requests_received=sum(pair.requests_received for pair in pairs),
        responses_sent=sum(pair.responses_sent for pair in pairs),
        consent_requests_sent=sum(pair.consent_requests_sent for pair in pairs),
        selections=selections,
        unsent=unsent,
        dropped=sum(drops.values()),
        drops=drops,
        pairs=tuple(pairs),
        local=tuple(local.values()),
        remote=tuple(remote.values()),
    )


def _local(base: Base, candidate: Candidate) -> CandidateStatistics:
    return _candidate(
        f"local-{base.id}-{candidate.type}-{candidate.address}", candidate, base.relay
    )


def _remote(stream: int, candidate: Candidate) -> CandidateStatistics:
    name = f"remote-{stream}-{candidate.component}-{candidate.transport}-{candidate.address}"
    return _candidate(name, candidate)


def _candidate(name: str, candidate: Candidate, relay: str = "") -> CandidateStatistics:
    return CandidateStatistics(
        id=name,
        type=candidate.type.value,
        transport=candidate.transport,
        host=candidate.host,
        port=candidate.port,
        priority=candidate.priority,
        foundation=candidate.foundation,
        related_address=candidate.related_address,
        related_port=candidate.related_port,
        tcptype=None if candidate.tcptype is None else candidate.tcptype.value,
        relay=relay,
    )


def _pair(
    pair: Pair, local: str, remote: str, found: Measurement | None, *, selected: bool
) -> PairStatistics:
    return PairStatistics(
        id=f"pair-{pair.base.id}-{remote}",
        local=local,
        remote=remote,
        stream=pair.stream,
        component=pair.component,
        state=pair.state,
        priority=pair.priority,
        nominated=pair.nominated,
        selected=selected,
        packets_sent=pair.packets_sent,
        packets_received=pair.packets_received,
        bytes_sent=pair.octets_sent,
        bytes_received=pair.octets_received,
        requests_sent=pair.requests_sent,
        responses_received=pair.responses_received,
        requests_received=pair.requests_received,
        responses_sent=pair.responses_sent,
        consent_requests_sent=pair.consent_requests_sent,
        rtt=None if pair.rtt is None else pair.rtt / SECOND,
        rtt_variation=None if found is None else found.variation / SECOND,
        loss=None if found is None else found.loss,
    )


def _rtc_pair(pair: PairStatistics) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "candidate-pair",
        "transportId": _TRANSPORT,
        "localCandidateId": pair.local,
        "remoteCandidateId": pair.remote,
        "state": pair.state.value,
        "nominated": pair.nominated,
        "packetsSent": pair.packets_sent,
        "packetsReceived": pair.packets_received,
        "bytesSent": pair.bytes_sent,
        "bytesReceived": pair.bytes_received,
        # There what asks for consent is counted apart from the checks.
        "requestsSent": pair.requests_sent - pair.consent_requests_sent,
        "responsesReceived": pair.responses_received,
        "requestsReceived": pair.requests_received,
        "responsesSent": pair.responses_sent,
        "consentRequestsSent": pair.consent_requests_sent,
    }
    if pair.rtt is not None:
        entry["currentRoundTripTime"] = pair.rtt
    return entry


def _rtc_candidate(kind: str, candidate: CandidateStatistics) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": kind,
        "transportId": _TRANSPORT,
        "address": candidate.host,
        "port": candidate.port,
        "protocol": candidate.transport,
        "candidateType": candidate.type,
        "priority": candidate.priority,
        "foundation": candidate.foundation,
    }
    optional = {
        "relatedAddress": candidate.related_address,
        "relatedPort": candidate.related_port,
        "tcpType": candidate.tcptype,
        "url": candidate.relay or None,
    }
    return entry | {name: value for name, value in optional.items() if value is not None}
