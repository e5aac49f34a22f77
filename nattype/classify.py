"""From observations to a verdict: pure, and the same for the same observations.

The rules, and what each guards against, are those of RFC 5780 section 4 with one addition: nothing
is concluded from a silence unless a control proved that the silence was the NAT's.  What cannot be
concluded is *unknown* with a reason, never a guess.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from nattype.classify_tcp import judge_tcp
from nattype.findings import (
    CUT_SHORT,
    Findings,
    MappingFinding,
    infer_mapping,
    judge_allocation,
    judge_contacts,
    milliseconds,
    times,
    usable,
)
from nattype.honesty import same_host
from nattype.model import Filtering, Hairpin, Mapping, NatType, nat_type
from nattype.observations import (
    Asked,
    Challenge,
    LifetimeTrial,
    Observations,
    UdpObservations,
)
from nattype.report import Evidence, LifetimeReport, Outcome, TcpReport, UdpReport
from stun.sansio import SECOND, Address

KEEPALIVE_FRACTION = 0.75
"""Of the shortest lifetime found, what a keepalive interval may be: timers are coarse."""
_CARRIER = ipaddress.ip_network("100.64.0.0/10")
_OLD = 20 * SECOND
"""How long a mapping may have been idle for its change to count against the NAT.  RFC 4787 REQ-5
wants two minutes; some gateways forget after 30 seconds, and that is no change of mind."""
_PADDED = 1000
"""Octets of PADDING from which an answer was certainly cut into fragments with the request's."""


@dataclass(frozen=True, slots=True)
class Classified:
    """The verdict for one address family."""

    family: str
    udp: UdpReport | None
    tcp: TcpReport | None
    evidence: tuple[Evidence, ...]
    culprits: tuple[str, ...]
    reached: bool
    """Whether any server answered."""
    behind_nat: bool | None
    layers: int | None


def classify(seen: Observations) -> Classified:
    """Judge everything that was seen for one address family."""
    findings = Findings()
    for part in (seen.udp, seen.tcp):
        if part is not None:
            findings.names.update({c.server: c.name for c in part.contacts})
    udp = None if seen.udp is None else _Udp(seen.udp, seen, findings).judge()
    tcp = None if seen.tcp is None else judge_tcp(seen.tcp, seen, udp, findings)
    mapped = [m for part in (udp, tcp) if part is not None and (m := part.mapped_address)]
    local = next((p.local_host for p in (seen.udp, seen.tcp) if p is not None), None)
    behind, layers = _layers(seen, local, mapped, findings)
    return Classified(
        seen.family,
        udp,
        tcp,
        tuple(sorted(findings.evidence, key=lambda e: e.at)),
        tuple(findings.culprits),
        bool(mapped),
        behind,
        layers,
    )


def _layers(
    seen: Observations, local: str | None, mapped: list[Address], findings: Findings
) -> tuple[bool | None, int | None]:
    """Return whether there is a NAT and, where the addresses show it, how many."""
    if local is None or not mapped:
        return None, None
    behind = not any(same_host(m.host, local) for m in mapped)
    if not behind:
        return False, 0
    gateway = seen.gateway
    if gateway is None or gateway.external is None:
        return True, None
    outside = gateway.external
    if any(same_host(m.host, outside) for m in mapped):
        return True, 1
    kind = (
        "a carrier's shared address"
        if ipaddress.ip_address(outside) in _CARRIER
        else "not the address that servers see"
    )
    findings.note(
        "nat.layers",
        Outcome.POSITIVE,
        f"The router {gateway.router.host} says by {gateway.protocol} that its outside is "
        f"{outside}, {kind} ({mapped[0].host}): there is another NAT behind it.",
        gateway.at,
    )
    return True, 2


class _Udp:
    """The judge of UDP."""

    def __init__(self, udp: UdpObservations, seen: Observations, findings: Findings) -> None:
        self.udp = udp
        self.seen = seen
        self.findings = findings
        self._at = 0
        """When the servers had answered: for what is said of tests that were not made."""

    def judge(self) -> UdpReport:
        udp, findings = self.udp, self.findings
        judge_contacts(udp.contacts, "udp.contact", findings)
        answered = usable([c.asked for c in udp.contacts if c.asked is not None])
        if not answered:
            return self._nobody_answered()
        self._at = max(one.at for one in answered)
        mapping = self._mapping()
        filtering = self._filtering(mapping.mapping)
        if mapping.mapping is Mapping.NONE and filtering is Filtering.ENDPOINT_INDEPENDENT:
            filtering = Filtering.NONE
        first = usable([*udp.mapping, *answered])[0]
        one_shot, stream = (self._lifetime(stream) for stream in (False, True))
        return UdpReport(
            nat_type=nat_type(mapping.mapping, filtering),
            mapping=mapping.mapping,
            filtering=filtering,
            allocation=judge_allocation(udp.allocations, "udp.allocation", findings),
            hairpinning=self._hairpin(mapping.mapping),
            local_address=first.local,
            mapped_address=first.mapped,
            mapping_stable=self._stable(),
            mapping_depends_on_port_only=mapping.port_only,
            address_pooling_paired=self._pooling(),
            remaps_after_inbound=self._poisoned(mapping.mapping),
            fragments=self._fragments(),
            lifetime_one_shot=one_shot,
            lifetime_stream=stream,
            keepalive=_keepalive(one_shot, stream),
            rtt=_smallest_rtt([*answered, *udp.mapping, *udp.allocations.asked]),
        )

    def _nobody_answered(self) -> UdpReport:
        udp = self.udp
        if not udp.complete:
            # Those that are still to answer would be counted among the silent.
            self.findings.note(
                "udp.blocked",
                Outcome.INCONCLUSIVE,
                f"No server had answered over UDP when {CUT_SHORT}.",
                self.seen.took,
            )
            return UdpReport()
        count = len({c.server for c in udp.contacts})
        sends = sum(c.asked.sends for c in udp.contacts if c.asked is not None)
        silent = [c for c in udp.contacts if c.asked is not None and c.asked.source is None]
        at = max((c.asked.at for c in silent if c.asked is not None), default=0)
        heard = {c.server for c in silent} & set(udp.strays)
        for server in sorted(heard):
            self.findings.blame(server, "sends datagrams that answer none of the requests", at)
        if silent and len(silent) == len(udp.contacts) and udp.tcp_alive and not heard:
            self.findings.note(
                "udp.blocked",
                Outcome.NEGATIVE,
                f"{times(sends, 'request')} to {times(count, 'server')} stayed unanswered "
                "over UDP, while a server among them answers over TCP: UDP is blocked.",
                at,
            )
            return UdpReport(nat_type=NatType.UDP_BLOCKED)
        self.findings.note(
            "udp.blocked",
            Outcome.INCONCLUSIVE,
            f"{times(sends, 'request')} to {times(count, 'server')} stayed without a "
            "usable answer, and nothing proves that any of them is alive.",
            at,
        )
        return UdpReport()

    # Mapping.

    def _mapping(self) -> MappingFinding:
        udp = self.udp
        alone = usable([c.asked for c in udp.contacts if c.asked is not None])
        found = infer_mapping(udp.mapping or alone[:1])
        at = udp.mapping[0].at if udp.mapping else alone[0].at
        self._dead_second_address()
        first = next(iter(usable(udp.mapping)), None)
        last = self._last()
        dependent = found.mapping not in (
            Mapping.NONE,
            Mapping.ENDPOINT_INDEPENDENT,
            Mapping.UNKNOWN,
        )
        if dependent and first and last and last.answered and last.mapped != first.mapped:
            # The difference may be one of time and not of destination.
            self.findings.note(
                "udp.mapping",
                Outcome.INCONCLUSIVE,
                f"The mapping of {first.local} differs between destinations, but also changed by "
                f"itself from {first.mapped} to {last.mapped}: {found.because}.",
                at,
            )
            return MappingFinding()
        known = found.mapping is not Mapping.UNKNOWN
        what = f"{found.mapping.value} mapping" if known else "The mapping is not known"
        if found.mapping is Mapping.NONE:
            what = "No NAT"
        self.findings.note(
            "udp.mapping",
            Outcome.POSITIVE if known else Outcome.INCONCLUSIVE,
            f"{what[0].upper()}{what[1:]}: {found.because}.",
            at,
        )
        return found

    def _dead_second_address(self) -> None:
        """Blame a server whose second address is silent while its first one answers."""
        primary, alternate = self.seen.primary, self.seen.alternate
        if primary is None or alternate is None:
            return
        at_second = [a for a in self.udp.mapping if same_host(a.server.host, alternate.host)]
        alive = any(a.answered for a in self.udp.mapping if a not in at_second)
        if at_second and alive and not any(a.answered for a in at_second):
            sends = sum(a.sends for a in at_second)
            self.findings.blame(
                primary,
                f"advertises {alternate} as its second address, which did not answer "
                f"{times(sends, 'request')}",
                at_second[0].at,
            )

    def _last(self) -> Asked | None:
        """Return the last exchange of the mapping socket, unless its mapping may have expired."""
        last, mapping = self.udp.last, self.udp.mapping
        old = last is not None and mapping and last.at - mapping[0].at > _OLD
        return None if old else last

    def _stable(self) -> bool | None:
        last = self._last()
        first = next(
            (a for a in usable(self.udp.mapping) if last and a.server == last.server), None
        )
        if first is None or last is None or not last.answered or last.mapped is None:
            return None
        same = first.mapped == last.mapped
        how = "is still" if same else f"was {first.mapped} and is now"
        self.findings.note(
            "udp.stability",
            Outcome.POSITIVE if same else Outcome.NEGATIVE,
            f"{milliseconds(last.at - first.at)} later the mapping of {first.local} {how} "
            f"{last.mapped}.",
            last.at,
        )
        return same

    def _pooling(self) -> bool | None:
        seen = usable([*self.udp.mapping, *self.udp.allocations.asked])
        hosts = list(dict.fromkeys(a.mapped.host for a in seen if a.mapped is not None))
        if len({a.local for a in seen}) < 2:
            return None
        if len(hosts) > 1:
            self.findings.note(
                "udp.pooling",
                Outcome.NEGATIVE,
                f"This host's mappings show {len(hosts)} external addresses: {', '.join(hosts)}.",
                seen[0].at,
            )
        return len(hosts) == 1

    # Filtering.

    def _filtering(self, mapping: Mapping) -> Filtering:
        run = self.udp.filtering
        if run is None:
            primary = self.seen.primary
            if self.seen.alternate is None and primary is not None:
                self.findings.note(
                    "udp.filtering",
                    Outcome.SKIPPED,
                    f"{primary} has no second address to answer from, so filtering is not known.",
                    self._at,
                    primary,
                )
            return Filtering.UNKNOWN
        primary, alternate = self.seen.primary, self.seen.alternate
        assert primary is not None
        assert alternate is not None
        if self._dishonest(primary, [run.both, run.port, run.both_control, run.port_control]):
            return Filtering.UNKNOWN
        both, port = run.both, run.port
        if both is None:
            return self._unknown(
                "the socket for it got no answer from the primary address", self._at
            )
        at = both.asked.at
        if both.positive:
            self._conclude(
                f"{both.asked.source} answered {both.asked.local}, which had contacted {primary} "
                "only: endpoint-independent filtering",
                at,
            )
            return Filtering.ENDPOINT_INDEPENDENT
        if not both.negative:
            return self._unknown(
                f"{times(both.asked.sends, 'request')} for an answer from {alternate} stayed "
                "unanswered, and so did the control",
                at,
            )
        if not self._invited_arrives(run.both_control, primary, alternate, mapping, at):
            return Filtering.UNKNOWN
        silent = (
            f"{times(both.asked.sends, 'request')} for an answer from {alternate}, never "
            "contacted, stayed unanswered (where contacted before, it arrived)"
        )
        if port is not None and port.positive:
            self._conclude(
                f"{silent}; {port.asked.source} answered {port.asked.local}, which had contacted "
                f"{primary} only: address-dependent filtering",
                at,
            )
            return Filtering.ADDRESS_DEPENDENT
        same = Address(primary.host, alternate.port)
        if port is None or not port.negative:
            return self._unknown(f"{silent}; whether {same} gets through could not be seen", at)
        if not self._invited_arrives(run.port_control, primary, same, mapping, at):
            return Filtering.UNKNOWN
        self._conclude(
            f"{silent}; so did {times(port.asked.sends, 'request')} for one from {same}: "
            "address-and-port-dependent filtering",
            at,
        )
        return Filtering.ADDRESS_AND_PORT_DEPENDENT

    def _conclude(self, what: str, at: int) -> None:
        self.findings.note("udp.filtering", Outcome.POSITIVE, f"{what}.", at)

    def _unknown(self, why: str, at: int) -> Filtering:
        self.findings.note(
            "udp.filtering", Outcome.INCONCLUSIVE, f"Filtering is not known: {why}.", at
        )
        return Filtering.UNKNOWN

    def _dishonest(self, primary: Address, challenges: Iterable[Challenge | None]) -> bool:
        """Blame a server that does not answer from where it was asked to."""
        for number, challenge in enumerate(challenges):
            if challenge is None:
                continue
            asked = challenge.asked
            if asked.error is not None:
                if number > 1:
                    # The controls may carry RESPONSE-PORT, which a server need not know.
                    continue
                self.findings.blame(
                    primary,
                    f"answers CHANGE-REQUEST with error {asked.error}, so filtering cannot be "
                    "measured with it",
                    asked.at,
                )
                return True
            if asked.source is not None and asked.source == asked.server:
                self.findings.blame(
                    primary,
                    f"ignores CHANGE-REQUEST: asked to answer from {asked.expected}, it answered "
                    f"from {asked.source}",
                    asked.at,
                )
                return True
            if asked.strange is not None and not asked.answered:
                self.findings.blame(
                    primary,
                    f"was asked to answer from {asked.expected} and answered from {asked.strange}",
                    asked.at,
                )
                return True
        return False

    def _invited_arrives(
        self,
        control: Challenge | None,
        primary: Address,
        source: Address,
        mapping: Mapping,
        at: int,
    ) -> bool:
        """Whether an answer from ``source`` arrives where it was invited; explain if not.

        ``at``: when the uninvited one was asked for.
        """
        if control is not None and control.positive:
            return True
        at = control.asked.at if control is not None else at
        if control is None or control.asked.error is not None:
            why = (
                f"{source} itself does not answer"
                if control is None
                else f"{primary} answers RESPONSE-PORT with error {control.asked.error}"
            )
            self._unknown(f"there is no control for the silence, {why}", at)
            return False
        if mapping in (Mapping.NONE, Mapping.ENDPOINT_INDEPENDENT) and control.negative:
            self.findings.blame(
                primary,
                f"was asked {control.asked.sends} times to answer from {source}, and no answer "
                "came even to a socket that had contacted that address",
                at,
            )
        self._unknown(f"an answer from {source} does not arrive where it was invited either", at)
        return False

    # The rest.

    def _poisoned(self, mapping: Mapping) -> bool | None:
        run = self.udp.poison
        if run is None or mapping is not Mapping.ENDPOINT_INDEPENDENT:
            return None
        if not run.knocker.answered or run.before.mapped != run.elsewhere.mapped:
            return None
        remapped = run.knocker.mapped != run.elsewhere.mapped
        self.findings.note(
            "udp.inbound-first",
            Outcome.POSITIVE if remapped else Outcome.NEGATIVE,
            f"{run.knocker.server} knocked at {run.before.mapped} first; afterwards it sees "
            f"{run.knocker.local} as {run.knocker.mapped}, {run.elsewhere.server} as "
            f"{run.elsewhere.mapped}: "
            + ("a peer that knocks first costs the mapping." if remapped else "no harm done."),
            run.knocker.at,
        )
        return remapped

    def _hairpin(self, mapping: Mapping) -> Hairpin:
        run = self.udp.hairpin
        if run is None or mapping is Mapping.NONE:
            return Hairpin.UNKNOWN
        if run.seen is None:
            alive = run.control is not None and run.control.answered
            self.findings.note(
                "udp.hairpinning",
                Outcome.NEGATIVE if alive else Outcome.INCONCLUSIVE,
                f"{times(run.sends, 'datagram')} from {run.local_a} to {run.mapped_b}, the "
                f"external address of {run.local_b}, did not arrive"
                + ("." if alive else ", but neither did a control."),
                run.at,
            )
            return Hairpin.NONE if alive else Hairpin.UNKNOWN
        external = not same_host(run.seen.host, run.local_a.host)
        self.findings.note(
            "udp.hairpinning",
            Outcome.POSITIVE,
            f"A datagram from {run.local_a} to {run.mapped_b} arrived at {run.local_b} with source "
            f"{run.seen}.",
            run.at,
        )
        return Hairpin.EXTERNAL if external else Hairpin.INTERNAL

    def _fragments(self) -> bool | None:
        run = self.udp.fragments
        if run is None:
            return None
        asked = run.asked
        if asked.error is not None or (run.positive and asked.padding < _PADDED):
            why = (
                f"it answers PADDING with error {asked.error}"
                if asked.error is not None
                else "it does not pad its answers"
            )
            self.findings.note(
                "udp.fragments", Outcome.SKIPPED, f"{asked.server} cannot tell: {why}.", asked.at
            )
            return None
        if run.positive:
            detail = f"A request to {asked.server} and its answer passed in fragments."
        elif run.negative:
            detail = (
                f"{times(asked.sends, 'request')} in fragments to {asked.server} stayed "
                "unanswered, a small one was answered."
            )
        else:
            return None
        self.findings.note(
            "udp.fragments",
            Outcome.POSITIVE if run.positive else Outcome.NEGATIVE,
            detail,
            asked.at,
        )
        return run.positive

    def _lifetime(self, stream: bool) -> LifetimeReport | None:
        trials = [t for t in self.udp.lifetimes if t.stream is stream and t.alive is not None]
        if not self.udp.lifetimes:
            return None
        alive, dead = _bracket(trials)
        kind = "A stream's mapping" if stream else "A mapping"
        if alive is None and dead is None:
            if not stream:
                self.findings.note(
                    "udp.lifetime",
                    Outcome.INCONCLUSIVE,
                    "The server could not be made to answer to another port (RESPONSE-PORT), so "
                    "lifetimes cannot be measured with it.",
                    self.udp.lifetimes[0].at,
                )
            return LifetimeReport()
        parts = [f"was alive after {alive:g} s of silence"] if alive is not None else []
        parts += [f"was gone after {dead:g} s"] if dead is not None else []
        at = max(t.at + int(t.idle * SECOND) for t in trials)
        self.findings.note("udp.lifetime", Outcome.POSITIVE, f"{kind} {' and '.join(parts)}.", at)
        return LifetimeReport(alive, dead)


def _bracket(trials: Iterable[LifetimeTrial]) -> tuple[float | None, float | None]:
    """Return the shortest idle time found dead, and the longest below it found alive."""
    trials = list(trials)
    dead = min((t.idle for t in trials if t.alive is False), default=None)
    alive = max(
        (t.idle for t in trials if t.alive and (dead is None or t.idle < dead)), default=None
    )
    return alive, dead


def _keepalive(*lifetimes: LifetimeReport | None) -> float | None:
    """Return how often to send, for the shorter of the lifetimes; at least a second apart."""
    alive = [found.alive for found in lifetimes if found is not None and found.alive]
    return max(1.0, round(KEEPALIVE_FRACTION * min(alive), 1)) if alive else None


def _smallest_rtt(asked: Iterable[Asked]) -> float | None:
    rtts = [one.rtt for one in asked if one.rtt is not None]
    return min(rtts) / SECOND if rtts else None
