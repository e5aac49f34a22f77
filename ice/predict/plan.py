"""How two sides behind NATs seek a direct way, decided before the first packet.

Theory of operation.  :func:`plan` is pure: two summaries and the terms give the steps.  Each side
computes it for itself from the same two summaries, and ``plan(a, b)`` is ``plan(b, a)`` mirrored.

Where everything was measured a pair is one cell of the matrix in :mod:`nattype.peers`, and the plan
is what that cell needs.  A measurement that is missing widens a path to several kinds, so several
cells apply; the plan then is all that any of them needs, from the cheapest to the dearest.  A
filter that is not known is presumed to be the usual one, and what that needs comes first: plain
checks have been going on since before there was a plan.

What the matrix leaves open is decided here (:mod:`ice.predict.pair`):

* A symmetric NAT whose *filter* lets anybody in is reached like a full cone: the mapping that a
  server saw is open, and answers leave through it.  A symmetric NAT whose filter is not known may
  be such a one, so plain checks come first.
* A symmetric NAT that counts against one that draws at random ("B+P" in the literature) is harder
  than it looks.  The counting side's next port is known, but with a mapping for each endpoint it is
  the port of *one* packet to *one* guess: of the random side's mappings only those meet it that aim
  at this very port, each with a chance of 1 in 64512.  However the packets are split, half a chance
  costs 45 000 of them (:func:`ice.predict.moves.mixed_chance`), and the first mappings are
  forgotten before the last ones are made.  So that is the relay's, unless the random ports come
  from a small block.  It is cheap where either filter, or the counting side's mapping, goes by
  *address*: then one known port takes every guess.
* Two that draw at random meet if one filter goes by address: 256 mappings on that side admit any
  port of the other's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ice.predict.moves import steps_for
from ice.predict.pair import Pair, Side, Way
from ice.predict.steps import Budget, Move, Plan, Step, Strategy
from ice.predict.summary import FAMILIES, NOTHING, Family, NatSummary, PathSummary, Transport
from nattype.model import Filtering

_BIRTHDAY = (Way.BIRTHDAY, Way.MIXED)


def plan(
    mine: NatSummary,
    theirs: NatSummary,
    *,
    transport: Transport,
    budget: Budget | None = None,
    birthday: bool = False,
    history: Collection[Strategy] = (),
) -> Plan:
    """Return how to seek a direct way over ``transport``.

    ``budget`` bounds each guessing step; without one it is
    :data:`ice.predict.moves.PREDICTION_BUDGET` for prediction and ``BIRTHDAY_BUDGET`` for birthday
    probing.  ``birthday`` allows the latter.  Both have to be what the two sides agreed on, and so
    has ``history``, what worked between these networks before, as seen from this side; it is tried
    first (:class:`ice.predict.offer.Offer` sees to all of that).
    """
    pairs = _pairs(mine, theirs, transport, budget)
    found: dict[tuple[Way, bool, Family | None], list[Step]] = {}
    could_guess = False
    for pair in pairs:
        for way, flipped in pair.ways():
            steps = list(steps_for(pair, way, flipped=flipped))
            if way in _BIRTHDAY and not birthday:
                could_guess = could_guess or bool(steps)
            elif steps:
                # Plain checks go over all families in any case: once is enough.
                family = None if way in (Way.PLAIN, Way.LOW_TTL) else pair.family
                found.setdefault((way, flipped, family), steps)
    likely = _likely(mine, theirs, transport, budget)
    # Sorting is stable: within one way IPv6 comes before IPv4, on both sides.
    keys = sorted(found, key=lambda key: (key[:2] not in likely, key[0].value))
    ordered = [step for key in keys for step in found[key]]
    ordered.sort(key=lambda step: step.strategy not in history)
    last = _relay(pairs, transport, found_any=bool(ordered), could_guess=could_guess)
    return Plan(transport, (*ordered, last))


def _likely(
    mine: NatSummary, theirs: NatSummary, transport: Transport, budget: Budget | None
) -> set[tuple[Way, bool]]:
    """Return the ways that are needed if what is not known of filters is as usual."""
    pairs = [
        replace(
            pair,
            mine=_as_usual(pair.mine, mine.path("udp", pair.family)),
            theirs=_as_usual(pair.theirs, theirs.path("udp", pair.family)),
        )
        for pair in _pairs(mine, theirs, transport, budget)
    ]
    return {(way, flipped) for pair in pairs for way, flipped in pair.ways()}


def _as_usual(side: Side, udp: PathSummary | None) -> Side:
    """Return a path with the filter that it probably has, where none was measured.

    How TCP is filtered tells only a server that dials back, which few do.  RFC 5382 asks of TCP
    what RFC 4787 asks of UDP, and most NATs have one code for both.  Where UDP tells nothing,
    either, it is what most routers at home and most carriers do.
    """
    path = side.path
    if path.blocked or path.filtering is not Filtering.UNKNOWN:
        return side
    filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT
    if udp is not None and udp.mapping is path.mapping and udp.filtering is not Filtering.UNKNOWN:
        filtering = udp.filtering
    return replace(side, path=replace(path, filtering=filtering))


def _pairs(
    mine: NatSummary, theirs: NatSummary, transport: Transport, budget: Budget | None
) -> list[Pair]:
    """Return the paths of each family that both sides may have."""
    ours, others = mine.families or FAMILIES, theirs.families or FAMILIES
    return [
        Pair(
            transport,
            family,
            Side(mine.path(transport, family) or NOTHING, mine.layers),
            Side(theirs.path(transport, family) or NOTHING, theirs.layers),
            budget,
        )
        for family in FAMILIES
        if family in ours and family in others
    ]


def _relay(pairs: list[Pair], transport: Transport, *, found_any: bool, could_guess: bool) -> Step:
    """Make the last step, with why there is no better one."""
    if found_any:
        why = "if none of this gets through, the relay stays"
    elif not pairs:
        why = "the two have no address family in common"
    elif all(pair.is_blocked for pair in pairs):
        why = f"no {transport.upper()} gets through on one side at least"
    elif all(pair.is_blocked or pair.is_shut for pair in pairs):
        why = "neither NAT lets a SYN in after one went out (RFC 5382 REQ-2 asks for it)"
    elif could_guess:
        why = "only birthday probing could find a way, and it was not allowed"
    else:
        why = "both NATs choose ports that no affordable number of guesses finds"
    return Step(Move(Strategy.RELAY), Move(Strategy.RELAY), 0.0, why)


__all__ = ["Budget", "Move", "Plan", "Step", "Strategy", "plan"]
