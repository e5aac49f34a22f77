"""What all workers count, added up, with what those counted that are gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from turn.daemon.workers.orders import Figures
from turn.meter import Usage
from turn.server.metrics import Histogram, Metrics, add_usage

_GAUGES = ("allocations", "permissions", "channels", "connections", "spares")


def nothing() -> Figures:
    """Return the figures of nobody."""
    return Figures(Metrics(), Usage(), {}, {}, None, {})


def add_up(figures: Iterable[Figures]) -> Figures:
    """Return the sum."""
    total = nothing()
    for one in figures:
        for name in Metrics.__slots__:
            value = getattr(one.metrics, name)
            match value:
                case Counter():
                    getattr(total.metrics, name).update(value)
                case Histogram():
                    _add_histogram(getattr(total.metrics, name), value)
                case Usage():
                    add_usage(getattr(total.metrics, name), value)
                case _:
                    setattr(total.metrics, name, getattr(total.metrics, name) + value)
        add_usage(total.usage, one.usage)
        total.drops = Counter(total.drops) + Counter(one.drops)
        total.transport = _sum(total.transport, one.transport)
        if one.lookups is not None:
            total.lookups = _sum(total.lookups or {}, one.lookups)
        total.accounts = _sum(total.accounts, one.accounts)
    return total


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    counts = Counter(one)
    counts.update(other)  # unlike "+" it keeps what is zero
    return dict(counts)


def _add_histogram(total: Histogram, one: Histogram) -> None:
    total.counts = [a + b for a, b in zip(total.counts, one.counts, strict=True)]
    total.total += one.total


def of_the_gone(figures: Figures) -> Figures:
    """Return what stays of a worker's figures when it is gone: counts, but nothing that lives.

    What it relayed for allocations that lived is in its usage already.
    """
    kept = add_up([figures])
    for name in _GAUGES:
        setattr(kept.metrics, name, 0)
    kept.accounts = {}
    return kept
