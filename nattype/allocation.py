"""How a NAT chooses external ports, told from the ports that it chose (RFC 4787 section 4.2).

Theory of operation.  The evidence is a list of (local port, external port) in the order in which
fresh mappings were asked for.  *Preserved*: nearly all external ports equal the local ones.
*Sequential*: nearly all steps between successive external ports go the same way by a small multiple
of one delta; other hosts behind the same NAT take ports in between, so a step may be several deltas
long, and a counter that wraps makes one step that is wild.  *Random*: everything else, unless the
ports crowd as no random ones would; then nothing is said.  With seven steps the chance that a
random allocator out of 60 000 ports looks sequential is below 1e-12, and that one that preserves
looks random is nil, because preserving is decided first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from nattype.model import Allocation
from nattype.observations import Asked

ENOUGH = 4
"""Samples without which nothing is said."""

_NEARLY_ALL = 0.7
_LONGEST_STEP = 256
_LARGEST_DELTA = 64
_TYPICAL = 16
"""The median step, in deltas, above which ports are taken for random ones from a small block."""
_ORDERLY = 0.6
"""Kendall's tau (from -1 to 1) from which ports count as growing or shrinking."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A way to allocate: ``delta`` is 0 when preserved and ``None`` when there is no step."""

    allocation: Allocation = Allocation.UNKNOWN
    delta: int | None = None

    def predict(self, local_port: int, last_external: int, ahead: int = 1) -> int | None:
        """Foretell the external port of the mapping that is ``ahead`` after the last one."""
        match self.allocation:
            case Allocation.PRESERVED:
                return local_port
            case Allocation.SEQUENTIAL if self.delta is not None:
                predicted = last_external + ahead * self.delta
                return predicted if 0 < predicted <= 0xFFFF else None
            case _:
                return None


def samples(ordered: Sequence[Asked]) -> list[tuple[int, int]]:
    """Return (local port, external port) of each mapping seen, in the order of making.

    An answer after a retransmission does not tell when its mapping was made, so it counts only
    where few others are left.  A mapping that is used again is one sample.
    """
    answered = [a for a in ordered if a.mapped is not None]
    certain = [a for a in answered if a.sends == 1]
    used = certain if len(certain) > max(ENOUGH, len(answered) // 2) else answered
    seen = {(a.local.port, a.mapped.port): None for a in used if a.mapped is not None}
    return list(seen)


def pattern_of(asked: Sequence[Asked]) -> Pattern:
    """Return how ports are allocated, from exchanges in the order of their first sends."""
    taken = {one.mapped.port for one in asked if one.mapped is not None}
    return pattern(samples(asked), taken)


def pattern(observed: Sequence[tuple[int, int]], taken: Iterable[int] = ()) -> Pattern:
    """Return how ports are allocated, from (local port, external port) in the order of asking.

    ``taken``: external ports that were allocated meanwhile, in no known order.  They do not tell
    whether there is an order, but where there is one they fill its gaps.
    """
    if len(observed) < ENOUGH:
        return Pattern()
    kept = sum(local == external for local, external in observed)
    if kept >= _NEARLY_ALL * len(observed):
        return Pattern(Allocation.PRESERVED, 0)
    moved = [external for local, external in observed if local != external]
    delta = _delta(moved, taken)
    if delta is None:
        delta = _delta_in_disorder(moved)
    if delta is not None:
        return Pattern(Allocation.SEQUENTIAL, delta)
    if _crowded(moved):
        return Pattern()
    return Pattern(Allocation.RANDOM)


def _delta(ports: Sequence[int], taken: Iterable[int]) -> int | None:
    """Return the step of a counter that other hosts may use too, or ``None``."""
    steps = [after - before for before, after in pairwise(ports)]
    if len(steps) < ENOUGH - 1:
        return None
    for sign in (1, -1):
        small = [sign * step for step in steps if 0 < sign * step <= _LONGEST_STEP]
        if len(small) < _NEARLY_ALL * len(steps):
            continue
        # Random ports within a small block also make small steps, but as many down as up.
        delta = _usual(small)
        if delta is not None:
            known = pairwise(sorted({*ports, *taken}))
            steps = [after - before for before, after in known if after - before <= _LONGEST_STEP]
            return sign * (_usual(steps) or delta)
    return None


def _delta_in_disorder(ports: Sequence[int]) -> int | None:
    """Return the step when packets overtook each other on their way to the NAT, or ``None``.

    The ports then lie close together and still grow (or shrink) on the whole.
    """
    if len(ports) < 2 * ENOUGH:
        return None
    ranked = sorted(ports)
    gaps = [after - before for before, after in pairwise(ranked)]
    small = [gap for gap in gaps if 0 < gap <= _LONGEST_STEP]
    if len(small) < len(gaps) or max(gaps) > 4 * _LARGEST_DELTA:
        return None
    pairs = [later - earlier for n, earlier in enumerate(ports) for later in ports[n + 1 :]]
    growth = sum((pair > 0) - (pair < 0) for pair in pairs) / len(pairs)
    delta = _usual(small)
    if delta is None or abs(growth) < _ORDERLY:
        return None
    return delta if growth > 0 else -delta


def _crowded(ports: Sequence[int]) -> bool:
    """Say if ports lie so close together that a counter made them, in an order that got lost.

    Packets that overtook each other, and answers lost on the way, leave nothing to see an order in;
    a random allocator that hits its own neighbours that often is not to be expected either.
    """
    gaps = sorted(after - before for before, after in pairwise(sorted(set(ports))))
    return bool(gaps) and gaps[len(gaps) // 2] <= _TYPICAL and gaps[-1] <= _LONGEST_STEP


def _usual(steps: Sequence[int]) -> int | None:
    """Return the step behind ``steps``: the commonest when the NAT is quiet, else their divisor.

    Under noise every step is a multiple of the delta.
    """
    common, times = Counter(steps).most_common(1)[0]
    delta = common if 2 * times > len(steps) else math.gcd(*steps)
    typical = sorted(steps)[len(steps) // 2]
    return delta if delta <= _LARGEST_DELTA and typical <= _TYPICAL * delta else None
