"""Why a connection came about as it did: for every pair why it won, lost or failed.

:func:`explain` looks at an agent through a :class:`ice.seen.View`, which reads and changes nothing,
and gives plain values (:mod:`ice.explanation`).

The notes are words, and some are looked for here: a pair that works has one that begins with
"valid:", one that was given up "failed:" and the cause, one whose peer fell silent "consent was
lost".  A note that is not known is shown as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from ice import advice
from ice.candidate import Candidate
from ice.explanation import (
    CandidateExplained,
    Count,
    Explanation,
    Fate,
    Happening,
    MissingExplained,
    Outcome,
    PairExplained,
)
from ice.pair import Note, Pair, PairState
from ice.seen import Gathered, Missing, Told, View
from stun.sansio import MILLISECOND, SECOND, Instant

__all__ = ["Explanation", "Gathered", "Missing", "Told", "View", "explain"]


DROPPED: Final = "a NAT or firewall on the way drops what this side sends"

# How notes begin (:mod:`ice.checks`, :mod:`ice.selection`).
_VALID: Final = "valid:"
_FAILED: Final = "failed: "
_NO_ANSWER: Final = "no answer"
_REFUSED: Final = "refused: "
_ELSEWHERE: Final = "answered from "
_SILENT: Final = "consent was lost"
_IN_USE: Final = "in use:"
_BETTER: Final = "better than"


def explain(view: View, now: Instant) -> Explanation:
    """Return what became of the agent so far, and why."""
    began = view.started
    pairs = sorted(view.pairs, key=lambda p: (p.stream, p.component, -p.priority))
    told = tuple(_explained(n, p, view, pairs, now) for n, p in enumerate(pairs, 1))
    outcome = _outcome(view, pairs)
    return Explanation(
        outcome=outcome,
        verdict=advice.verdict(view, outcome, pairs, now),
        advice=tuple(advice.advise(view, outcome, pairs)),
        role=view.role,
        generation=view.generation,
        seconds=_seconds(now - began),
        local=tuple(
            _candidate(each.candidate, each.stream, each.at - began, server=each.server)
            for each in view.local
        ),
        remote=tuple(
            _candidate(each.candidate, each.stream, each.at - began, learned=each.learned)
            for each in view.remote
        ),
        missing=tuple(
            MissingExplained(m.stream, m.component, m.what, m.why, _seconds(m.at - began))
            for m in view.missing
        ),
        pairs=told,
        events=_happenings(view.events, began),
        drops=tuple(
            Count(reason.value, times)
            for reason, times in sorted(view.drops.items(), key=lambda item: (-item[1], item[0]))
            if times
        ),
    )


def _seconds(span: int) -> float:
    return round(span / SECOND, 6)


def _happenings(notes: Iterable[Note], began: Instant) -> tuple[Happening, ...]:
    return tuple(Happening(_seconds(note.at - began), note.what) for note in notes)


def _candidate(
    candidate: Candidate, stream: int, after: int, *, server: str = "", learned: bool = False
) -> CandidateExplained:
    related = None
    if candidate.related_address is not None:
        related = advice.address(candidate.related_address, candidate.related_port or 0)
    return CandidateExplained(
        stream=stream,
        component=candidate.component,
        type=candidate.type.value,
        transport=candidate.transport,
        tcptype=None if candidate.tcptype is None else candidate.tcptype.value,
        address=str(candidate.address),
        related=related,
        priority=candidate.priority,
        foundation=candidate.foundation,
        server=server,
        learned=learned,
        at=_seconds(after),
    )


def _outcome(view: View, pairs: Sequence[Pair]) -> Outcome:
    if view.failure:
        return Outcome.FAILED
    components = view.config.streams * view.config.components
    if len(view.selected) == components:
        return Outcome.CONNECTED
    if any(_was_used(pair) for pair in pairs if pair not in view.selected.values()):
        return Outcome.DISCONNECTED
    if not pairs:
        return Outcome.WAITING
    return Outcome.CHECKING


def _was_used(pair: Pair) -> bool:
    return pair.nominated or bool(pair.packets_sent)


# Pairs. -------------------------------------------------------------------------------------------


def _explained(
    number: int, pair: Pair, view: View, pairs: Sequence[Pair], now: Instant
) -> PairExplained:
    chosen = view.selected.get((pair.stream, pair.component))
    fate = _fate(pair, chosen)
    local = pair.local if pair.mapped is None else pair.mapped
    return PairExplained(
        number=number,
        stream=pair.stream,
        component=pair.component,
        transport=pair.base.transport,
        local_type=local.type.value,
        from_address=str(pair.base.address),
        relay=pair.base.relay,
        remote_type=pair.remote.type.value,
        remote_address=str(pair.remote_address),
        direct=pair.is_direct,
        fate=fate,
        why=_why(pair, fate, chosen, pairs, now),
        state=pair.state.value,
        valid=pair.valid,
        nominated=pair.nominated,
        priority=pair.priority,
        rtt=None if pair.rtt is None else _seconds(pair.rtt),
        requests_sent=pair.requests_sent,
        responses_received=pair.responses_received,
        requests_received=pair.requests_received,
        responses_sent=pair.responses_sent,
        packets_sent=pair.packets_sent,
        packets_received=pair.packets_received,
        notes=_happenings(pair.notes, view.started),
    )


def _fate(pair: Pair, chosen: Pair | None) -> Fate:
    if pair is chosen:
        return Fate.SELECTED
    if pair.valid:
        return Fate.LOST if _is_silent(pair) else Fate.WORKED
    match pair.state:
        case PairState.SUCCEEDED:
            return Fate.WORKED
        case PairState.FAILED:
            return Fate.LOST if any(n.what.startswith(_VALID) for n in pair.notes) else Fate.FAILED
        case PairState.IN_PROGRESS:
            return Fate.CHECKING
        case _:
            return Fate.CHECKING if pair.requests_sent else Fate.UNTRIED


def _is_silent(pair: Pair) -> bool:
    """Whether consent was lost on the pair and no answer has come since."""
    lost = [note.at for note in pair.notes if note.what.startswith(_SILENT)]
    return bool(lost) and (pair.answered is None or pair.answered < lost[-1])


def _why(pair: Pair, fate: Fate, chosen: Pair | None, pairs: Sequence[Pair], now: Instant) -> str:
    match fate:
        case Fate.SELECTED:
            return _why_selected(pair, pairs)
        case Fate.WORKED:
            return _why_not_selected(pair, chosen)
        case Fate.LOST:
            return f"it worked, and then: {_last(pair)}"
        case Fate.FAILED:
            return _why_failed(pair)
        case Fate.CHECKING:
            return _so_far(pair, now)
        case Fate.UNTRIED:
            return _why_untried(pair, chosen)


def _why_selected(pair: Pair, pairs: Sequence[Pair]) -> str:
    rivals = [
        other
        for other in pairs
        if (other.stream, other.component) == (pair.stream, pair.component) and other is not pair
    ]
    if pair.nominated:
        how = "nominated by the peer" if pair.peer_nominated else "nominated"
    else:
        how = "the first that worked; not nominated yet"
    higher = [other for other in rivals if other.priority > pair.priority]
    failed = sum(1 for other in higher if other.state is PairState.FAILED and not other.valid)
    if higher and failed == len(higher):
        which = "the one" if failed == 1 else f"all {failed}"
        return f"{how}; {which} of higher priority failed"
    working = sum(1 for other in rivals if other.valid)
    if not higher:
        return f"{how}; it has the highest priority" + (
            f" of {working + 1} that work" if working else ""
        )
    better = next((n.what for n in reversed(pair.notes) if n.what.startswith(_BETTER)), "")
    if better:
        return f"{how}; {better}"
    return f"{how}; {len(higher)} of higher priority, {failed} of them failed"


def _why_not_selected(pair: Pair, chosen: Pair | None) -> str:
    if chosen is None:
        return "it works; none has been chosen"
    if chosen.is_direct and not pair.is_direct:
        return "it worked, but the pair in use is direct and this one goes through a relay"
    if chosen.base.transport == "udp" != pair.base.transport:
        return "it worked, but the pair in use is UDP and this one is TCP"
    if chosen.priority > pair.priority:
        return "it worked, but the pair in use has the higher priority"
    if pair.rtt is not None and chosen.rtt is not None and chosen.rtt < pair.rtt:
        ours, theirs = pair.rtt / MILLISECOND, chosen.rtt / MILLISECOND
        return f"it worked, but the pair in use is nearer: {theirs:.0f} ms against {ours:.0f} ms"
    return "it worked, but the other had been chosen before"


def _last(pair: Pair) -> str:
    """Return what happened to a pair last, in its own words."""
    for note in reversed(pair.notes):
        if not note.what.startswith(_IN_USE):
            return note.what.removeprefix(_FAILED)
    return "nothing is known"


def _why_failed(pair: Pair) -> str:
    cause = _last(pair) if pair.notes else ""
    if cause.startswith(_REFUSED):
        return f"the peer answered {cause.removeprefix(_REFUSED)}"
    if cause and not cause.startswith(_NO_ANSWER):
        return cause
    if not pair.requests_sent:
        return cause or "it was given up before anything was sent"
    text = f"no answer to {_checks(pair.requests_sent)}{_duration(pair)}"
    elsewhere = [n.what for n in pair.notes if n.what.startswith(_ELSEWHERE)]
    if elsewhere:
        source = elsewhere[-1].removeprefix(_ELSEWHERE)
        return f"{text} from where they were sent to: the answers came from {source}"
    if pair.requests_received:
        return f"{text}, though the peer's checks arrive: what this side sends does not"
    if pair.base.is_reliable:
        return f"{text} over a connection that was made"
    return f"{text}: {DROPPED}"


def _so_far(pair: Pair, now: Instant) -> str:
    if not pair.requests_sent:
        return "the connection is being opened" if pair.base.is_reliable else "about to be checked"
    text = f"no answer yet to {_checks(pair.requests_sent)}"
    return text if pair.checked is None else f"{text} in {(now - pair.checked) / SECOND:.1f} s"


def _why_untried(pair: Pair, chosen: Pair | None) -> str:
    if chosen is not None:
        return "not tried: another pair was chosen first"
    if pair.state is PairState.FROZEN:
        return "not tried yet: one of the same foundation goes first"
    return "not tried yet: its turn has not come"


def _checks(number: int) -> str:
    return "one check" if number == 1 else f"{number} checks"


def _duration(pair: Pair) -> str:
    """Return over how long a pair was checked, as far as is known."""
    if pair.checked is None or not pair.notes:
        return ""
    return f" in {(pair.notes[-1].at - pair.checked) / SECOND:.1f} s"
