"""What the judges of UDP and TCP share: how findings are kept, and the mapping behaviour.

Everything here is pure: from observations to conclusions and the sentences that explain them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from nattype.allocation import ENOUGH, pattern_of, samples
from nattype.honesty import fault_of_mapped, fault_of_other, same_host
from nattype.model import Allocation, Mapping
from nattype.observations import Allocations, Asked, Contact
from nattype.report import AllocationReport, Evidence, Outcome
from stun.sansio import SECOND, Address, Instant


@dataclass(slots=True)
class Findings:
    """Evidence and culprits, as they are collected."""

    names: dict[Address, str] = field(default_factory=dict)
    """What the user called the servers."""
    evidence: list[Evidence] = field(default_factory=list)
    culprits: dict[str, None] = field(default_factory=dict)

    def note(
        self, test: str, outcome: Outcome, detail: str, at: Instant, server: Address | None = None
    ) -> None:
        """Write down one thing that was tried and what came of it."""
        self.evidence.append(
            Evidence(test, outcome, detail, at / SECOND, str(server) if server else None)
        )

    def blame(self, server: Address, what: str, at: Instant) -> None:
        """Name a server whose answers cannot be trusted, and why."""
        name = self.names.get(server)
        shown = f"{name} ({server})" if name not in (None, str(server)) else str(server)
        sentence = f"{shown} {what}."
        if sentence not in self.culprits:
            self.culprits[sentence] = None
            self.note("server.honesty", Outcome.SERVER_FAULT, sentence, at, server)


def milliseconds(duration: int) -> str:
    """Return a duration in ns as a person writes it."""
    return f"{duration / 1e6:.1f} ms" if duration < 10_000_000 else f"{duration / 1e6:.0f} ms"


CUT_SHORT = "the time allowed was up, or no more sockets could be had"
"""Why tests that were begun say nothing."""


def times(count: int, what: str) -> str:
    """Return ``3 requests``, ``1 request``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def judge_contacts(contacts: Sequence[Contact], test: str, findings: Findings) -> None:
    """Say what each server answered at first, and find fault with what it advertises."""
    for contact in contacts:
        asked = contact.asked
        if asked is None or asked.source is None:
            if asked is not None:
                icmp = f"; {times(asked.icmp, 'ICMP error')} came back" if asked.icmp else ""
                stray = f"; {asked.strange} answered instead" if asked.strange else ""
                findings.note(
                    test,
                    Outcome.NEGATIVE,
                    f"{contact.server} did not answer {times(asked.sends, 'request')}{icmp}"
                    f"{stray}.",
                    asked.at,
                    contact.server,
                )
            continue
        if asked.error is not None:
            findings.blame(
                contact.server,
                f"answers a plain Binding request with error {asked.error}",
                asked.at,
            )
            continue
        fault = fault_of_mapped(asked)
        if fault is not None:
            findings.blame(contact.server, fault, asked.at)
            continue
        took = f" after {milliseconds(asked.rtt)}" if asked.rtt is not None else ""
        findings.note(
            test,
            Outcome.POSITIVE,
            f"{contact.server} answered{took}: it sees {asked.local} as {asked.mapped}.",
            asked.at,
            contact.server,
        )
        if asked.other is not None:
            fault = fault_of_other(contact.server, asked.other)
            if fault is not None:
                findings.blame(contact.server, fault, asked.at)
        if asked.plain_mapped is not None and asked.plain_mapped != asked.mapped:
            findings.note(
                f"{test.partition('.')[0]}.alg",
                Outcome.POSITIVE,
                f"MAPPED-ADDRESS came as {asked.plain_mapped}, XOR-MAPPED-ADDRESS as "
                f"{asked.mapped}: something on the path rewrites addresses inside packets.",
                asked.at,
                contact.server,
            )


@dataclass(frozen=True, slots=True)
class MappingFinding:
    """A mapping behaviour and why."""

    mapping: Mapping = Mapping.UNKNOWN
    port_only: bool = False
    """It depends on the destination's port and not on its address."""
    because: str = ""


def usable(asked: Sequence[Asked]) -> list[Asked]:
    """Return the exchanges that gave a mapped address which can be used."""
    return [one for one in asked if one.answered and fault_of_mapped(one) is None]


def infer_mapping(asked: Sequence[Asked]) -> MappingFinding:
    """Tell the mapping behaviour from what several endpoints saw of one socket.

    RFC 5780 section 4.3, made to hold for any set of endpoints: every pair of them is a test.  Two
    that differ in the port alone tell of the port, two that differ in the address alone tell of the
    address.
    """
    seen = usable(asked)
    if not seen:
        return MappingFinding(because="no endpoint answered")
    shown = "; ".join(f"{one.server} sees {one.mapped}" for one in seen)
    if all(one.mapped == one.local for one in seen):
        return MappingFinding(Mapping.NONE, because=f"the local address is what is seen: {shown}")
    port, address, both = _pairs(seen)
    if False in port:
        # Whether the address matters as well is seen where the port is the same.
        port_only = bool(address) and all(address)
        return MappingFinding(Mapping.ADDRESS_AND_PORT_DEPENDENT, port_only, shown)
    if False in address or False in both:
        if port:
            return MappingFinding(Mapping.ADDRESS_DEPENDENT, because=shown)
        # RFC 4787 section 4.1: an address-dependent mapping is one that "reuses the port mapping
        # for subsequent packets sent [...] to the same external IP address, regardless of the
        # external port".  No reuse was seen, and a peer had better not count on it.
        why = f"{shown} (each at one port only, so one for each address would look the same)"
        return MappingFinding(Mapping.ADDRESS_AND_PORT_DEPENDENT, because=why)
    if address or both:
        return MappingFinding(Mapping.ENDPOINT_INDEPENDENT, because=shown)
    return MappingFinding(because=f"only one address could be asked: {shown}")


def _pairs(seen: Sequence[Asked]) -> tuple[list[bool], list[bool], list[bool]]:
    """Return whether mapped addresses agree, for endpoints that differ in port, address, both."""
    port: list[bool] = []
    address: list[bool] = []
    both: list[bool] = []
    for one, other in combinations(seen, 2):
        hosts = same_host(one.server.host, other.server.host)
        ports = one.server.port == other.server.port
        agree = one.mapped == other.mapped
        if hosts and not ports:
            port.append(agree)
        elif ports and not hosts:
            address.append(agree)
        elif not hosts:
            both.append(agree)
    return port, address, both


def judge_allocation(seen: Allocations, test: str, findings: Findings) -> AllocationReport:
    """Tell how external ports are chosen, and how well they could be foretold."""
    ports = samples(seen.asked)
    found = pattern_of(seen.asked)
    shown = ", ".join(str(external) for _, external in ports)
    if found.allocation is Allocation.UNKNOWN:
        if seen.asked:
            why = (
                f"Only {times(len(ports), 'mapping')} of the {ENOUGH} needed could be seen."
                if len(ports) < ENOUGH
                else f"External ports lie close together, in no order that was kept: {shown}."
            )
            findings.note(test, Outcome.INCONCLUSIVE, why, seen.asked[0].at)
        return AllocationReport(samples=tuple(ports))
    hits = sum(p.predicted == p.seen for p in seen.predictions)
    tried = len(seen.predictions)
    confidence = hits / tried if tried else 0.0
    at = seen.asked[0].at
    match found.allocation:
        case Allocation.PRESERVED:
            what = f"{len(ports)} local ports were kept as external ones"
        case Allocation.SEQUENTIAL:
            what = f"External ports go by steps of {found.delta}: {shown}"
        case _:
            what = f"External ports show no pattern: {shown}"
    if found.allocation is not Allocation.RANDOM:
        what += f"; {hits} of {tried} foretold ports came true"
    if found.allocation is Allocation.SEQUENTIAL and tried >= ENOUGH and not hits:
        # A pattern that foretells nothing is none.
        findings.note(test, Outcome.INCONCLUSIVE, f"{what}.", at)
        return AllocationReport(samples=tuple(ports))
    findings.note(test, Outcome.POSITIVE, f"{what}.", at)
    return AllocationReport(found.allocation, found.delta, confidence, tuple(ports))
