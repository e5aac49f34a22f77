"""What each tool said, in one vocabulary, and whether it is right.

A tool is judged in its own terms.  pystun3 speaks the names of RFC 3489; its "Restric" ones are
taken as spelled out.  turnutils_natdiscovery speaks of mapping and filtering apart; both count.
natcheck has to get the name *and* both behaviours right.

* ``right``: it names what is there, and nothing that it says is untrue.
* ``wrong``: something that it says is untrue.
* ``no answer``: it says that it does not know, fails, or does not end.

Where nobody filters, "no filtering" and "endpoint-independent filtering" are the same thing, since
no test can tell them apart.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum

from nattype.model import Expected, Filtering, Mapping, NatType, nat_type


class Mark(StrEnum):
    """The judgement on one answer."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no answer"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a tool: what it printed, and how it ended."""

    out: str
    code: int | None
    """``None``: stopped because it did not end."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool claims; ``None`` for what it makes no claim about."""

    words: str
    """Its own words, as short as they can be."""
    name: NatType | None = None
    mapping: Mapping | None = None
    filtering: Filtering | None = None
    seconds: float = 0.0


PYSTUN3: dict[str, NatType] = {
    "Blocked": NatType.UDP_BLOCKED,
    "Open Internet": NatType.OPEN,
    "Symmetric UDP Firewall": NatType.SYMMETRIC_FIREWALL,
    "Full Cone": NatType.FULL_CONE,
    "Restric NAT": NatType.RESTRICTED_CONE,
    "Restric Port NAT": NatType.PORT_RESTRICTED_CONE,
    "Symmetric NAT": NatType.SYMMETRIC,
}
TURNUTILS_MAPPING: dict[str, Mapping] = {
    "No NAT!": Mapping.NONE,
    "NAT with Endpoint Independent Mapping!": Mapping.ENDPOINT_INDEPENDENT,
    "NAT with Address Dependent Mapping!": Mapping.ADDRESS_DEPENDENT,
    "NAT with Address and Port Dependent Mapping!": Mapping.ADDRESS_AND_PORT_DEPENDENT,
}
TURNUTILS_FILTERING: dict[str, Filtering] = {
    "NAT with Endpoint Independent Filtering!": Filtering.ENDPOINT_INDEPENDENT,
    "NAT with Address Dependent Filtering!": Filtering.ADDRESS_DEPENDENT,
    "NAT with Address and Port Dependent Filtering!": Filtering.ADDRESS_AND_PORT_DEPENDENT,
}
# Two tables, because the members of the two enumerations are equal as strings.
_SHORT_MAPPING: dict[Mapping, str] = {
    Mapping.NONE: "no NAT",
    Mapping.ENDPOINT_INDEPENDENT: "EIM",
    Mapping.ADDRESS_DEPENDENT: "ADM",
    Mapping.ADDRESS_AND_PORT_DEPENDENT: "APDM",
}
_SHORT_FILTERING: dict[Filtering, str] = {
    Filtering.ENDPOINT_INDEPENDENT: "EIF",
    Filtering.ADDRESS_DEPENDENT: "ADF",
    Filtering.ADDRESS_AND_PORT_DEPENDENT: "APDF",
}


def failure(run: Run) -> str | None:
    """Return in words how a run failed, ``None`` when it ended by itself and without a crash."""
    if run.code is None:
        return "does not end"
    crash = re.findall(r"^(\w*(?:Error|Exception))\b", run.out, re.MULTILINE)
    if crash:
        return f"crashes ({crash[-1]})"
    return f"killed by signal {-run.code}" if run.code < 0 else None


def pystun3(run: Run) -> Answer:
    """Return what pystun3 said."""
    found = re.search(r"^NAT Type: (.*)$", run.out, re.MULTILINE)
    if found is None:
        return Answer(failure(run) or "nothing", seconds=run.seconds)
    said = found[1].strip()
    return Answer(said, PYSTUN3.get(said), seconds=run.seconds)


def turnutils(run: Run) -> Answer:
    """Return what turnutils_natdiscovery said."""
    mapping = next((m for words, m in TURNUTILS_MAPPING.items() if words in run.out), None)
    filtering = next((f for words, f in TURNUTILS_FILTERING.items() if words in run.out), None)
    said = [] if mapping is None else [_SHORT_MAPPING[mapping]]
    said += [] if filtering is None else [_SHORT_FILTERING[filtering]]
    words = " + ".join(said) or failure(run) or "nothing"
    name = None
    if mapping is not None:
        found = nat_type(mapping, Filtering.UNKNOWN if filtering is None else filtering)
        name = None if found is NatType.INCONCLUSIVE else found
    return Answer(words, name, mapping, filtering, run.seconds)


def natcheck(run: Run) -> Answer:
    """Return what ``natcheck --json --udp-only`` said."""
    try:
        report = json.loads(run.out[run.out.index("{") :])
    except ValueError:
        return Answer(failure(run) or "nothing", seconds=run.seconds)
    udp = report["udp"]
    name = NatType(udp["nat_type"])
    words = name.value
    if name is NatType.INCONCLUSIVE and report["culprits"]:
        words = "inconclusive, names the server as the cause"
    return Answer(
        words,
        None if name is NatType.INCONCLUSIVE else name,
        None if udp["mapping"] == Mapping.UNKNOWN else Mapping(udp["mapping"]),
        None if udp["filtering"] == Filtering.UNKNOWN else Filtering(udp["filtering"]),
        run.seconds,
    )


def mark(answer: Answer, truth: Expected) -> Mark:
    """Judge an answer."""
    claims: list[tuple[StrEnum | None, StrEnum | None]] = [
        (answer.name, truth.udp),
        (answer.mapping, truth.mapping),
        (_as_seen(answer.filtering), _as_seen(truth.filtering)),
    ]
    if truth.udp is NatType.UDP_BLOCKED:
        # There is nothing behind which a mapping or a filter could be seen.
        claims = claims[:1]
    if any(claim is not None and claim is not true for claim, true in claims):
        return Mark.WRONG
    return Mark.NO_ANSWER if answer.name is None else Mark.RIGHT


def _as_seen(filtering: Filtering | None) -> Filtering | None:
    return Filtering.ENDPOINT_INDEPENDENT if filtering is Filtering.NONE else filtering
