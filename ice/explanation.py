"""What became of a connection and why, as plain values, as text and as JSON.

:func:`ice.explain.explain` makes an :class:`Explanation`; here are its parts and both renderings.
Times are seconds since the agent began.  Addresses are ``host:port`` texts, ``[host]:port`` for
IPv6; the host of a remote candidate may be a ``.local`` name.

The JSON form has ``"schema": 1`` and one member for each field here, under the same name, always
present; enumerations are their values, unknown numbers ``null``.  Members may be added under the
same number; none is renamed, removed or given another meaning without another one.  Its JSON Schema
is ``docs/ice-explanation.schema.json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any, Final

SCHEMA: Final = 1


class Outcome(StrEnum):
    """How far the connection is."""

    WAITING = "waiting"
    """There is nothing to check yet: something has not been told or found."""
    CHECKING = "checking"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    """It was connected; now some component has no pair that answers."""
    FAILED = "failed"


class Fate(StrEnum):
    """What became of a pair."""

    SELECTED = "selected"
    """Data goes over it."""
    WORKED = "worked"
    """It could be used, and is not."""
    LOST = "lost"
    """It worked, and does no more."""
    FAILED = "failed"
    CHECKING = "checking"
    UNTRIED = "untried"


@dataclass(frozen=True, slots=True)
class CandidateExplained:
    """A local or remote candidate.

    ``learned``: it was not told but seen in a check (peer-reflexive).  ``server``: of a local one,
    who told of it.
    """

    stream: int
    component: int
    type: str
    transport: str
    tcptype: str | None
    address: str
    related: str | None
    priority: int
    foundation: str
    server: str
    learned: bool
    at: float


@dataclass(frozen=True, slots=True)
class MissingExplained:
    """A local candidate that was sought and not found: what, and why not."""

    stream: int
    component: int
    what: str
    why: str
    at: float


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened, in words."""

    at: float
    what: str


@dataclass(frozen=True, slots=True)
class PairExplained:
    """A candidate pair, what became of it, and why in one sentence.

    ``from_address`` is its base's address, ``relay`` the server that base is on, if any.  ``rtt``
    in seconds.  The counts of requests and responses are those of checks and of consent together.
    """

    number: int
    stream: int
    component: int
    transport: str
    local_type: str
    from_address: str
    relay: str
    remote_type: str
    remote_address: str
    direct: bool
    fate: Fate
    why: str
    state: str
    valid: bool
    nominated: bool
    priority: int
    rtt: float | None
    requests_sent: int
    responses_received: int
    requests_received: int
    responses_sent: int
    packets_sent: int
    packets_received: int
    notes: tuple[Happening, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """How often something was dropped, and why."""

    why: str
    times: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole story.  ``verdict`` is one sentence; ``advice`` says what could be done."""

    outcome: Outcome
    verdict: str
    advice: tuple[str, ...]
    role: str
    generation: int
    seconds: float
    local: tuple[CandidateExplained, ...]
    remote: tuple[CandidateExplained, ...]
    missing: tuple[MissingExplained, ...]
    pairs: tuple[PairExplained, ...]
    events: tuple[Happening, ...]
    drops: tuple[Count, ...]

    def json(self) -> dict[str, Any]:
        """Return it as what :func:`json.dumps` takes; the module's text has the promises."""
        return {"schema": SCHEMA, **_plain(self)}

    def text(self, *, notes: bool = False) -> str:
        """Return it for a person, in aligned columns; with ``notes`` each pair's history as well.

        What came from a peer is shown so that it cannot steer a terminal.
        """
        return printable("\n".join(_lines(self, notes=notes)))

    def __str__(self) -> str:
        return self.text()


def printable(text: str) -> str:
    """Return ``text`` with everything but line ends that could steer a terminal as an escape."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value.value if isinstance(value, StrEnum) else value


# Text. --------------------------------------------------------------------------------------------


def _lines(explanation: Explanation, *, notes: bool) -> Iterable[str]:
    e = explanation
    yield e.verdict
    if e.advice:
        yield from ("", "What to do")
        for advice in e.advice:
            yield f"  * {advice}"
    yield from ("", f"Local candidates ({e.role}{_generation(e.generation)})")
    yield from _table([_candidate(each) for each in e.local]) or ["  none"]
    if e.missing:
        yield from ("", "Not found")
        yield from _table([(each.what, each.why, f"{each.at:.3f} s") for each in e.missing])
    yield from ("", "Remote candidates")
    yield from _table([_candidate(each) for each in e.remote]) or ["  none"]
    yield from ("", "Pairs, the highest priority first")
    yield from _pairs(e.pairs, notes=notes) or ["  none"]
    if e.events:
        yield from ("", "What happened")
        yield from _table([(f"{each.at:.3f} s", each.what) for each in e.events], right=(0,))
    if e.drops:
        yield from ("", "Dropped")
        yield from _table([(str(each.times), each.why) for each in e.drops], right=(0,))


def _generation(generation: int) -> str:
    if generation == 0:
        return ""
    return ", restarted" if generation == 1 else f", restarted {generation} times"


def _candidate(candidate: CandidateExplained) -> tuple[str, ...]:
    words = [candidate.transport]
    if candidate.tcptype:
        words.append(candidate.tcptype)
    if candidate.learned:
        origin = "learned from a check"
    elif candidate.server:
        origin = f"from {candidate.server}"
    else:
        origin = ""
    component = f"{candidate.stream}/{candidate.component}"
    return (
        component, candidate.type, " ".join(words), candidate.address, f"{candidate.at:.3f} s",
        origin,
    )  # fmt: skip


_PAIR_HEAD: Final = ("", "", "from", "to", "rtt", "sent", "answered", "why")


def _pairs(pairs: Sequence[PairExplained], *, notes: bool) -> list[str]:
    if not pairs:
        return []
    rows = [_PAIR_HEAD] + [_pair(each) for each in pairs]
    lines = _table(rows, right=(4, 5, 6))
    if not notes:
        return lines
    told = lines[:1]
    for line, pair in zip(lines[1:], pairs, strict=True):
        told.append(line)
        told += [f"        {each.at:9.3f} s  {each.what}" for each in pair.notes]
    return told


def _pair(pair: PairExplained) -> tuple[str, ...]:
    transport = "" if pair.transport == "udp" else f"{pair.transport} "
    rtt = "" if pair.rtt is None else f"{pair.rtt * 1000:.1f} ms"
    return (
        f"{pair.stream}/{pair.component}",
        pair.fate.value,
        f"{transport}{pair.local_type} {pair.from_address}",
        f"{pair.remote_type} {pair.remote_address}",
        rtt,
        str(pair.requests_sent),
        str(pair.responses_received),
        pair.why,
    )


def _table(rows: Sequence[Sequence[str]], *, right: tuple[int, ...] = ()) -> list[str]:
    """Return rows as lines whose columns are aligned; the last column runs on."""
    if not rows:
        return []
    rows = [[printable(cell.replace("\n", " ")) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
