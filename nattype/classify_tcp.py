"""The judge of TCP: pure, from observations to a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from nattype.findings import (
    CUT_SHORT,
    Findings,
    MappingFinding,
    infer_mapping,
    judge_allocation,
    judge_contacts,
    times,
    usable,
)
from nattype.honesty import same_host
from nattype.model import Filtering, Mapping, NatType, Unsolicited, nat_type
from nattype.observations import BackKind, ConnectedBack, Observations, TcpObservations
from nattype.report import Outcome, TcpReport, UdpReport
from stun.sansio import SECOND, Cause

_ENOUGH_OPENS = 3
"""Simultaneous opens that must have failed before the NAT is held to be against them."""


def judge_tcp(
    tcp: TcpObservations, seen: Observations, udp: UdpReport | None, findings: Findings
) -> TcpReport:
    """Judge TCP.  ``udp`` is what was found for UDP over the same path, if that was tried."""
    return _Tcp(tcp, seen, udp, findings).judge()


class _Tcp:
    def __init__(
        self,
        tcp: TcpObservations,
        seen: Observations,
        udp: UdpReport | None,
        findings: Findings,
    ) -> None:
        self.tcp = tcp
        self.seen = seen
        self.udp = udp
        self.findings = findings
        self._at = 0
        """When the servers had answered: for what is said of tests that were not made."""

    def judge(self) -> TcpReport:
        tcp, findings = self.tcp, self.findings
        judge_contacts(tcp.contacts, "tcp.contact", findings)
        answered = usable([c.asked for c in tcp.contacts if c.asked is not None])
        if not answered:
            return self._nobody_answered()
        self._at = max(one.at for one in answered)
        mapping = self._mapping()
        simultaneous = self._simultaneous(mapping.mapping)
        filtering, unsolicited = self._filtering()
        if mapping.mapping is Mapping.NONE and filtering is Filtering.ENDPOINT_INDEPENDENT:
            filtering = Filtering.NONE
        first = answered[0]
        rtts = [a.rtt for a in (*answered, *tcp.allocations.asked) if a.rtt is not None]
        return TcpReport(
            nat_type=nat_type(mapping.mapping, filtering),
            mapping=mapping.mapping,
            filtering=filtering,
            unsolicited=unsolicited,
            allocation=judge_allocation(tcp.allocations, "tcp.allocation", findings),
            simultaneous_open=simultaneous,
            local_address=first.local,
            mapped_address=first.mapped,
            rtt=min(rtts) / SECOND if rtts else None,
        )

    def _nobody_answered(self) -> TcpReport:
        if not self.tcp.complete:
            self.findings.note(
                "tcp.blocked",
                Outcome.INCONCLUSIVE,
                f"No server had answered over TCP when {CUT_SHORT}.",
                self.seen.took,
            )
            return TcpReport()
        dialled = self.tcp.dialled
        at = max((d.at for d in dialled), default=0)
        hosts = {d.remote.host for d in dialled}
        count = f"{times(len(dialled), 'connection attempt')} to {', '.join(sorted(hosts))}"
        if any(d.connected for d in dialled):
            why = f"{count}: something accepts connections and does not speak STUN"
        elif any(d.cause is Cause.REFUSED for d in dialled):
            why = f"{count}: refused, so the servers may not offer TCP"
        else:
            # One host may lack TCP behind a firewall of its own; two that are alive may not.
            alive = {a.host for a in self.tcp.udp_alive} & hosts
            if len(alive) > 1:
                self.findings.note(
                    "tcp.blocked",
                    Outcome.NEGATIVE,
                    f"{count} met silence or ICMP errors, while all of these answer over UDP: TCP "
                    "is blocked.",
                    at,
                )
                return TcpReport(nat_type=NatType.TCP_BLOCKED)
            why = f"{count}: silence, and too few of them are known to be alive"
        self.findings.note(
            "tcp.blocked", Outcome.INCONCLUSIVE, f"TCP could not be tried: {why}.", at
        )
        return TcpReport()

    def _mapping(self) -> MappingFinding:
        sets = sorted(self.tcp.mapping, key=len, reverse=True)
        answered = usable([c.asked for c in self.tcp.contacts if c.asked is not None])
        best = sets[0] if sets else answered[:1]
        found = infer_mapping(best)
        known = found.mapping is not Mapping.UNKNOWN
        what = f"{found.mapping.value} mapping" if known else "The mapping is not known"
        if found.mapping is Mapping.NONE:
            what = "No NAT"
        self.findings.note(
            "tcp.mapping",
            Outcome.POSITIVE if known else Outcome.INCONCLUSIVE,
            f"{what[0].upper()}{what[1:]}: {found.because}.",
            best[0].at,
        )
        return found

    # Simultaneous open.

    def _opens(self, host: str | None = None) -> list[ConnectedBack]:
        return [
            b
            for b in self.tcp.back
            if b.kind is BackKind.SIMULTANEOUS
            and b.granted
            and b.reported
            and (host is None or same_host(b.server.host, host))
        ]

    def _simultaneous(self, mapping: Mapping) -> bool | None:
        opens = self._opens()
        done = [b for b in opens if _opened(b)]
        if done:
            first = done[0]
            assert first.dialled is not None
            self.findings.note(
                "tcp.simultaneous-open",
                Outcome.POSITIVE,
                f"{first.local} and {first.dialled.remote}, which ignores SYNs, dialled each other "
                "and were connected.",
                first.at,
            )
            return True
        if mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT:
            self.findings.note(
                "tcp.simultaneous-open",
                Outcome.SKIPPED,
                "The mapping differs for every endpoint, so the server cannot know which port to "
                "dial.",
                opens[0].at if opens else self._at,
            )
            return None
        if len(opens) < _ENOUGH_OPENS:
            return None
        self.findings.note(
            "tcp.simultaneous-open",
            Outcome.NEGATIVE,
            f"{times(len(opens), 'attempt')} failed, in which this host and the server dialled "
            "each other.",
            opens[0].at,
        )
        return False

    # Filtering.

    def _filtering(self) -> tuple[Filtering, Unsolicited]:
        stranger = self._knocks(BackKind.OTHER_ADDRESS)
        neighbour = self._knocks(BackKind.SAME_ADDRESS)
        if not stranger or self.seen.alternate is None:
            return self._not_tested(), Unsolicited.UNKNOWN
        at = stranger[0].at
        other = self.seen.alternate.host
        met = self._met(stranger, other)
        if met is None:
            return self._unknown("what the server's connections met is not clear", at), _UNKNOWN
        if met is Unsolicited.OPEN:
            self._conclude(
                f"{other}, never contacted, connected to {stranger[0].local}: endpoint-independent "
                "filtering",
                at,
            )
            return Filtering.ENDPOINT_INDEPENDENT, met
        server = neighbour[0].server.host if neighbour else ""
        next_door = self._met(neighbour, server) if neighbour else None
        if next_door is Unsolicited.OPEN:
            filtering = Filtering.ADDRESS_DEPENDENT
            shown = f"{server}, from a port never contacted, did connect"
        elif next_door is not None:
            filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT
            shown = f"{server}, from a port never contacted, could not either"
        else:
            return self._unknown("no connection back from a contacted address was decided", at), met
        controlled = self._controlled(met, other) and (
            next_door is Unsolicited.OPEN or self._controlled(next_door, server)
        )
        if not controlled and not self._as_udp(filtering):
            why = (
                "the server's connections met silence, and no simultaneous open showed that it can "
                "dial at all"
            )
            return self._unknown(why, at), _UNKNOWN
        self._conclude(
            f"{times(sum(b.granted for b in stranger), 'connection')} from {other}, never "
            f"contacted, met {_words(met)}; {shown}: {filtering.value} filtering",
            at,
        )
        return filtering, met

    def _knocks(self, kind: BackKind) -> list[ConnectedBack]:
        return [b for b in self.tcp.back if b.kind is kind and b.granted]

    def _not_tested(self) -> Filtering:
        """Say why nobody knocked: an ordinary server cannot be asked to, which is no failure."""
        outcome = Outcome.SKIPPED
        if self.seen.alternate is None:
            why = "the server has no second address to connect from"
        elif any(b.kind is not BackKind.SIMULTANEOUS for b in self.tcp.back):
            why = "the server cannot connect back"
            refused = [b.error for b in self.tcp.back if b.error is not None]
            if refused:
                why = f"the server would not connect back at this time (error {refused[0]})"
                outcome = Outcome.INCONCLUSIVE
        else:
            why = CUT_SHORT if not self.tcp.complete else "no connection was left to ask over"
            outcome = Outcome.INCONCLUSIVE
        self.findings.note("tcp.filtering", outcome, f"Filtering is not known: {why}.", self._at)
        return Filtering.UNKNOWN

    def _met(self, knocks: Sequence[ConnectedBack], host: str) -> Unsolicited | None:
        """Return what SYNs from ``host`` met, ``None`` when that cannot be told."""
        if any(same_host(a.host, host) for b in knocks for a in b.accepted_from):
            return Unsolicited.OPEN
        reported = [b for b in knocks if b.reported]
        if not reported or any(b.established or b.other for b in reported):
            # Connected, but not to this host: something in between answers for it.
            return None
        if any(b.refused for b in reported):
            return Unsolicited.RST
        if any(b.unreachable for b in reported):
            return Unsolicited.ICMP
        return Unsolicited.DROP

    def _controlled(self, met: Unsolicited, host: str) -> bool:
        """Whether it is proved that SYNs from ``host`` get as far as the NAT."""
        return met is not Unsolicited.DROP or any(_opened(b) for b in self._opens(host))

    def _as_udp(self, filtering: Filtering) -> bool:
        """Whether UDP, which has controls of its own, was found to be filtered in the same way.

        A NAT whose mapping differs for every endpoint allows no simultaneous open and so no
        control; that both protocols agree is the next best.
        """
        return self.udp is not None and self.udp.filtering is filtering

    def _conclude(self, what: str, at: int) -> None:
        self.findings.note("tcp.filtering", Outcome.POSITIVE, f"{what}.", at)

    def _unknown(self, why: str, at: int) -> Filtering:
        self.findings.note(
            "tcp.filtering", Outcome.INCONCLUSIVE, f"Filtering is not known: {why}.", at
        )
        return Filtering.UNKNOWN


_UNKNOWN = Unsolicited.UNKNOWN


def _opened(back: ConnectedBack) -> bool:
    return bool(back.established) and back.dialled is not None and back.dialled.connected


def _words(met: Unsolicited) -> str:
    return {
        Unsolicited.RST: "a refusal (RST)",
        Unsolicited.ICMP: "an ICMP error",
        Unsolicited.DROP: "silence",
    }.get(met, met.value)
