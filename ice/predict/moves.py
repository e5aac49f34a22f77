"""The step for each way to meet: how many packets, how fast, from how many sockets, in which order.

Rates.  Guessing opens a mapping a packet in NATs whose owners did not ask for it.  Home routers
hold 4096 sessions and more, an unanswered one for 30 seconds, so a total of 2048 probes and 256
sockets leaves room for everybody else; flood filters of such routers act at some hundred packets a
second, so :data:`UDP_RATE` stays below and leaves room for keeping the sockets' mappings open
meanwhile.  At that rate half of all attempts have met within 0.7 s, 98 % within 4.1 s, and all
probes are sent within 8.2 s, well inside the shortest mapping lifetimes (RFC 4787 section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from ice.predict.pair import OPEN, SYMMETRIC, Pair, Side, Way
from ice.predict.ports import step_of
from ice.predict.steps import Budget, Move, Step, Strategy
from ice.predict.summary import Transport
from nattype.model import Filtering, Mapping
from nattype.peers import birthday_probability

BIRTHDAY_BUDGET: Final = Budget()
"""What birthday probing may cost when it was asked for and nothing else said."""
PREDICTION_BUDGET: Final = Budget(packets=192, sockets=48, seconds=20.0)
"""What prediction may cost in any case: about what plain ICE sends."""

UDP_RATE: Final = 250
"""Packets a second of birthday probing."""
TCP_RATE: Final = 200
"""SYNs a second: flood filters are stricter there, and every dial costs a socket."""
PREDICTION_RATE: Final = 500
"""Packets a second of prediction: a run of a few, and a quick one, because whatever others take
meanwhile breaks it."""

WINDOW: Final = 16
"""Ports of a prediction where every one before it was right."""
WIDEST_WINDOW: Final = 48
MOST_FORETOLD: Final = 64
"""Ports that a side may foretell: as many candidates for the peer to take."""
WIDER: Final = 3
"""How many times as wide the window is when the usual one was not enough: somebody else takes ports
faster than most do."""
REPEATS: Final = 4
"""How often each socket of a prediction sends, in case that something gets lost."""
ATTEMPTS: Final = 2
"""How often a prediction is made with one window, each time with ports measured anew."""
WORTHWHILE: Final = 0.1
"""Below this chance an attempt is not worth its packets."""
AGAIN: Final = 2.0
"""Seconds after which a socket of a birthday sends again."""
LIFETIME: Final = 25.0
"""Seconds that a mapping is there which nobody answers: home routers give it 30 (Linux; RFC 4787
REQ-5 asks for two minutes)."""
LEAD: Final = 0.3
"""Seconds that one side begins before the other where the order matters: longer than most ways."""
TTL: Final = 2
"""Hops that pass one NAT and reach nothing behind the next router."""

_SECONDS: Final[dict[Transport, float]] = {"udp": 5.0, "tcp": 8.0}
"""Of a step without guessing: the SYNs of TCP are sent again after 1, 3 and 7 seconds."""


def steps_for(pair: Pair, way: Way, *, flipped: bool) -> Iterator[Step]:
    """Yield the steps for a way; none where the budget does not do.  See :meth:`Pair.ways`."""
    seen = pair.mirrored() if flipped else pair
    made: list[Step] = []
    for wide in (False, True) if way in (Way.PREDICT, Way.PREDICT_BOTH) else (False,):
        step = _BUILDERS[way](replace(seen, wide=wide))
        if step is not None and step not in made:
            made.append(step)
            yield step.mirrored() if flipped else step


@dataclass(frozen=True, slots=True)
class _Terms:
    """What may be spent, in the numbers that a move needs."""

    packets: int
    sockets: int
    seconds: float
    rate: int


def _terms(pair: Pair) -> _Terms:
    """Return what birthday probing may cost."""
    budget = pair.budget or BIRTHDAY_BUDGET
    rate = UDP_RATE if pair.transport == "udp" else TCP_RATE
    packets = min(budget.packets, int(max(0.0, budget.seconds - AGAIN) * rate))
    return _Terms(packets, min(budget.sockets, packets), budget.seconds, rate)


def _ttl(side: Side) -> int:
    return TTL if side.layers is None else max(TTL, side.layers + 1)


def _window(pair: Pair, side: Side) -> int:
    """Return how many ports to predict: the more, the less predictions were worth so far."""
    window = math.ceil(WINDOW / max(side.path.confidence, 0.1))
    return min(WIDEST_WINDOW, WIDER * window if pair.wide else window)


def _step_between_ports(side: Side) -> int:
    return step_of(side.path.delta or 1, keeps_parity=side.path.parity)


def _percent(chance: float) -> str:
    return f"a chance of {math.floor(1000 * chance) / 10:g} %"


# Without guessing. --------------------------------------------------------------------------------


def _both(pair: Pair, strategy: Strategy, why: str, ttl: tuple[int | None, int | None]) -> Step:
    return Step(
        Move(strategy, ttl=ttl[0]), Move(strategy, ttl=ttl[1]), _SECONDS[pair.transport], why
    )


def _plain(pair: Pair) -> Step:
    mine, theirs = pair.mine.path, pair.theirs.path
    possible = mine.kinds | theirs.kinds
    if pair.is_shared:
        why = (
            "both are behind one external address: their local addresses, or a NAT that turns "
            "packets round, lead from one to the other"
        )
    elif len(mine.kinds) > 1 or len(theirs.kinds) > 1:
        why = "not all was measured, and plain checks find most ways there are"
    elif possible & OPEN or mine.admits_anybody or theirs.admits_anybody:
        why = "at least one of the two can be reached where a server saw it"
    elif possible & SYMMETRIC:
        why = (
            "one filter goes by address, so that a packet to any port opens it; the side whose "
            "ports cannot be known comes in"
        )
    else:
        why = (
            "both keep one mapping for everybody, so packets that cross open each side's NAT for "
            "the other"
        )
    return _both(pair, Strategy.PLAIN, why, (None, None))


def _low_ttl(pair: Pair) -> Step:
    """Make the step in which nothing reaches a NAT that minds before its own side has sent."""
    minds = [_minds(pair, side) for side in (pair.mine, pair.theirs)]
    paths = (pair.mine.path, pair.theirs.path)
    if pair.transport == "tcp":
        why = (
            "a NAT that refuses a SYN which comes too early is not given one: the first SYN opens "
            "the sender's own NAT and dies on the way"
        )
    elif any(path.remaps_after_inbound for path in paths):
        why = (
            "a NAT changes the mapping when a packet comes in before one went out, so the first "
            "packet towards it dies on the way"
        )
    else:
        why = "there may be a NAT that minds what comes in before something went out"
    mine = _ttl(pair.mine) if minds[1] else None
    theirs = _ttl(pair.theirs) if minds[0] else None
    return _both(pair, Strategy.LOW_TTL, why, (mine, theirs))


def _minds(pair: Pair, side: Side) -> bool:
    path = side.path
    if path.admits_anybody:
        return False
    return path.remaps_after_inbound is not False if pair.transport == "udp" else path.refuses


def _open(pair: Pair) -> Step:
    opener, dialler = pair.mine, pair.theirs
    return Step(
        # What comes back from a NAT that refuses would shut the opener's NAT again.
        Move(Strategy.OPEN_THEN_LISTEN, ttl=_ttl(opener) if dialler.path.refuses else None),
        Move(Strategy.DIAL_IN, after=LEAD),
        _SECONDS[pair.transport],
        "one SYN to any port of the symmetric side's address opens a filter that goes by address; "
        "then the symmetric side dials in",
        family=pair.family,
    )


# Prediction. --------------------------------------------------------------------------------------


def _predict(pair: Pair) -> Step | None:
    """Make the step in which the first one's next ports are foretold to the second."""
    counting, other = pair.mine, pair.theirs
    budget = pair.budget or PREDICTION_BUDGET
    window = min(_window(pair, counting), budget.packets, budget.sockets)
    if not window:
        return None
    step = _step_between_ports(counting)
    if pair.transport == "udp":
        # The second one's NAT is opened for each port that is tried, so that ports which others
        # take do no harm as long as the mapping lies within the window.
        offsets = tuple(step * n for n in range(1, window + 1))
        first = Move(
            Strategy.PREDICT,
            offsets,
            rate=PREDICTION_RATE,
            packets=1,
            ttl=_ttl(counting) if other.path.remaps_after_inbound else None,
        )
        second = Move(
            Strategy.PREDICT,
            rate=PREDICTION_RATE,
            packets=window,
            ttl=_ttl(other) if counting.path.remaps_after_inbound else None,
        )
        why = (
            "one NAT gives the next port to every new destination, so the other side tries the "
            f"next {window}"
        )
    else:
        # A dial for each port would take long, since each keeps a socket busy for seconds; a run
        # of sockets towards one port costs the other side a single dial.
        first = Move(
            Strategy.PREDICT,
            (step * window,),
            sockets=window,
            rate=PREDICTION_RATE,
            packets=min(budget.packets, REPEATS * window),
            ttl=_ttl(counting) if other.path.refuses else None,
        )
        # What dies on the way comes back as an ICMP error, which ends a dial even where the other
        # one's SYN has come in meanwhile.  So that one waits until all of them listen.
        after = LEAD if first.ttl is not None else 0.0
        second = Move(Strategy.PREDICT, rate=PREDICTION_RATE, packets=1, after=after)
        why = (
            f"one NAT gives the next port to every new destination: {window} sockets in a row pass "
            "the one that the other side dials"
        )
    seconds = min(_SECONDS[pair.transport], budget.seconds)
    return Step(first, second, seconds, why, family=pair.family, attempts=ATTEMPTS)


def _predict_both(pair: Pair) -> Step | None:
    """Make the step in which two counters meet (:mod:`ice.predict.ports` says how)."""
    budget = pair.budget or PREDICTION_BUDGET
    sides = (pair.mine, pair.theirs)
    window = min(max(_window(pair, side) for side in sides), budget.packets, budget.sockets)
    if not window:
        return None
    mine, theirs = (_run(side, window, budget) for side in sides)
    if pair.transport == "tcp" and any(side.path.refuses for side in sides):
        # One run opens its NAT with SYNs that die on the way, and listens; the other one dials in
        # after it.  Which one is all the same, as long as both sides agree.
        if pair.mine.key > pair.theirs.key:
            mine, theirs = replace(mine, ttl=_ttl(pair.mine)), replace(theirs, after=LEAD)
        elif pair.mine.key < pair.theirs.key:
            mine, theirs = replace(mine, after=LEAD), replace(theirs, ttl=_ttl(pair.theirs))
    return Step(
        mine,
        theirs,
        min(_SECONDS[pair.transport], budget.seconds),
        f"both NATs give the next port to every new destination: {window} sockets in a row on each "
        "side all aim at one port that the other's run passes",
        family=pair.family,
        attempts=ATTEMPTS,
    )


def _run(side: Side, window: int, budget: Budget) -> Move:
    # Where parities are counted apart, every second one of sockets with any port counts.
    sockets = min(2 * window, budget.packets, budget.sockets) if side.path.parity else window
    point = max(1, 3 * window // 4) if side.path.parity else window
    return Move(
        Strategy.PREDICT,
        (_step_between_ports(side) * point,),
        sockets=sockets,
        rate=PREDICTION_RATE,
        packets=min(budget.packets, REPEATS * sockets),
    )


# Birthday probing. --------------------------------------------------------------------------------


def _birthday(pair: Pair) -> Step | None:
    """Make the step in which one of the first one's mappings is hit by chance."""
    holder, prober = pair.mine, pair.theirs
    terms = _terms(pair)
    pool, rate = holder.path.ports, terms.rate
    # A subscriber with a block of ports needs some for everything else.
    sockets = min(terms.sockets, max(1, len(pool) // 4))
    # What the sockets send opens the holder's NAT; where the prober's would take offence, it goes
    # no further.  A probe that came before is wasted then, and so it is where the holder's NAT
    # answers a miss; elsewhere the prober's NAT stays open for what comes later.
    if pair.transport == "tcp":
        low, wasted = prober.path.refuses, holder.path.refuses
    else:
        low, wasted = bool(prober.path.remaps_after_inbound), False
    after = sockets / rate if low or wasted else 0.0
    probes = min(terms.packets, len(pool), int((terms.seconds - AGAIN - after) * rate))
    if probes < 1:
        return None
    chance = birthday_probability(probes, sockets, len(pool))
    if chance < WORTHWHILE:
        return None
    seconds = after + probes / rate + AGAIN
    why = (
        f"ports drawn at random are met by chance: {sockets} sockets on one side, {probes} probes "
        f"out of {len(pool)} ports by the other, {_percent(chance)}"
    )
    if prober.path.is_symmetric and holder.path.filtering is Filtering.UNKNOWN:
        why += " if the filter in front of the sockets goes by address"
        known = None
    else:
        known = chance
    return Step(
        Move(
            Strategy.BIRTHDAY_SOCKETS,
            sockets=sockets,
            rate=rate,
            packets=min(terms.packets, sockets * (1 + int(seconds / AGAIN))),
            ttl=_ttl(holder) if low else None,
        ),
        Move(
            Strategy.BIRTHDAY_PROBES,
            probes=probes,
            ports=(pool[0], pool[-1]),
            rate=rate,
            packets=probes,
            after=after,
        ),
        seconds,
        why,
        family=pair.family,
        chance=known,
    )


def _mixed(pair: Pair) -> Step | None:
    """Make the step of a NAT that draws (first) and one that counts (second)."""
    drawing, counting = pair.mine, pair.theirs
    terms = _terms(pair)
    pool = drawing.path.ports
    by_address = counting.path.mapping is Mapping.ADDRESS_DEPENDENT
    room = max(1, len(pool) // 2)
    sockets = min(terms.sockets, room)
    if sockets < 1:
        return None
    # Each socket aims at each port that the counting side may have, or will have one after another.
    mappings = min(terms.packets, room)
    if not by_address:
        # Each is used once, and has to be there when its counterpart is: nobody keeps it open.
        mappings = min(mappings, int(LIFETIME * terms.rate))
    aims = min(mappings // sockets, MOST_FORETOLD)
    probes = min(terms.packets, len(pool))
    if by_address:
        aims = min(aims, _window(pair, counting))
    else:
        probes = aims
    chance = mixed_chance(sockets, aims, probes, len(pool), by_address=by_address)
    if chance < WORTHWHILE:
        return None
    step = _step_between_ports(counting)
    return Step(
        Move(
            Strategy.BIRTHDAY_SOCKETS,
            sockets=sockets,
            rate=terms.rate,
            packets=sockets * aims,
        ),
        Move(
            Strategy.BIRTHDAY_PROBES,
            tuple(step * n for n in range(1, aims + 1)),
            probes=probes,
            ports=(pool[0], pool[-1]),
            rate=terms.rate,
            packets=probes,
        ),
        max(sockets * aims, probes) / terms.rate + AGAIN,
        f"one NAT counts and the other draws: {sockets} sockets aim at the {aims} ports that come "
        f"next, {probes} probes leave from there, {_percent(chance)}",
        family=pair.family,
        chance=chance,
    )


def mixed_chance(sockets: int, aims: int, probes: int, pool: int, *, by_address: bool) -> float:
    """Return the chance that a NAT which draws and one which counts meet.

    With a mapping for each address all probes leave from one port, which every socket aims at: an
    ordinary birthday.  With a mapping for each endpoint, the probe that leaves from a port meets
    only those of the ``sockets`` mappings that aim at this very port.
    """
    if by_address:
        return birthday_probability(probes, sockets, pool) if aims else 0.0
    return -math.expm1(-min(aims, probes) * sockets / pool)


_BUILDERS: Final[dict[Way, Callable[[Pair], Step | None]]] = {
    Way.PLAIN: _plain,
    Way.OPEN: _open,
    Way.LOW_TTL: _low_ttl,
    Way.PREDICT: _predict,
    Way.PREDICT_BOTH: _predict_both,
    Way.BIRTHDAY: _birthday,
    Way.MIXED: _mixed,
}
