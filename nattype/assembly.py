"""One report of the verdicts for the address families."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nattype.classify import Classified
from nattype.report import Evidence, FamilyReport, Report
from nattype.verdict import complete


def assemble(families: Sequence[Classified], servers: tuple[str, ...] = ()) -> Report:
    """Make one report of the families' verdicts; the first is IPv4 if that was tried.

    A family that reached no server gives way to one that did.  ``servers``: whom they asked.
    """
    ordered = sorted(families, key=lambda one: not one.reached)
    main = ordered[0]
    other = ordered[1] if len(ordered) > 1 and ordered[1].reached else None
    evidence = [e for one in ordered if one is main or one is other for e in _of(one, ordered)]
    return complete(
        Report(
            verdict="",
            family=main.family,
            udp=main.udp,
            tcp=main.tcp,
            other_family=None
            if other is None
            else FamilyReport(other.family, other.udp, other.tcp),
            culprits=tuple(dict.fromkeys(c for one in ordered for c in one.culprits)),
            evidence=tuple(evidence),
            servers=servers,
            behind_nat=main.behind_nat,
            layers=main.layers,
        )
    )


def _of(one: Classified, among: Sequence[Classified]) -> Iterable[Evidence]:
    """Return a family's evidence; where there are two, each sentence says of which it speaks."""
    if sum(other.reached for other in among) < 2:
        return one.evidence
    name = {"ipv4": "IPv4", "ipv6": "IPv6"}[one.family]
    return (replace(e, detail=f"{name}: {e.detail}") for e in one.evidence)
