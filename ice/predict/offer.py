"""What a side says before a plan is made: its NATs, what it may spend, what worked before.

Each side sends its offer and has the other's.  The plan is made of both alike, so that nothing has
to be agreed on by further messages: of two budgets the smaller one holds, birthday probing needs
both sides' leave, and what either side remembers counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ice.predict.moves import BIRTHDAY_BUDGET, PREDICTION_BUDGET
from ice.predict.plan import plan
from ice.predict.steps import MOST_PACKETS, MOST_SECONDS, MOST_SOCKETS, Budget, Plan, Strategy
from ice.predict.summary import MOST_OCTETS, Json, NatSummary, SummaryError, Transport

_TRANSPORTS: Final[tuple[Transport, ...]] = ("udp", "tcp")


@dataclass(frozen=True, slots=True)
class Offer:
    """One side's half of a plan.

    ``budget``: for birthday probing when ``birthday`` allows it, for prediction otherwise; ``None``
    for the usual ones.  ``remembered``: by transport, what this side did when it worked.
    """

    summary: NatSummary = field(default_factory=NatSummary)
    budget: Budget | None = None
    birthday: bool = False
    remembered: Mapping[Transport, tuple[Strategy, ...]] = field(default_factory=dict)

    def plan(self, theirs: Offer, transport: Transport) -> Plan:
        """Return the plan that follows from both; the peer's is the same one, mirrored."""
        ours = self.remembered.get(transport, ())
        others = (strategy.counterpart for strategy in theirs.remembered.get(transport, ()))
        birthday = self.birthday and theirs.birthday
        budget = None
        if self.budget is not None or theirs.budget is not None:
            usual = BIRTHDAY_BUDGET if birthday else PREDICTION_BUDGET
            budget = (self.budget or usual).meet(theirs.budget or usual)
        return plan(
            self.summary,
            theirs.summary,
            transport=transport,
            budget=budget,
            birthday=birthday,
            history={*ours, *others},
        )

    # JSON. ----------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Json]:
        """Return the offer as a JSON document."""
        budget = self.budget
        return {
            "nat": self.summary.to_json(),
            "budget": None
            if budget is None
            else {
                "packets": budget.packets,
                "sockets": budget.sockets,
                "seconds": budget.seconds,
            },
            "birthday": self.birthday,
            "worked": {
                transport: [strategy.value for strategy in strategies]
                for transport, strategies in self.remembered.items()
            },
        }

    @classmethod
    def from_json(cls, document: Json) -> Offer:
        """Return the offer in a parsed JSON document.

        Raises :class:`ice.predict.summary.SummaryError`, whatever the document is.
        """
        if not isinstance(document, dict):
            raise SummaryError("", "an offer is a JSON object")
        birthday = document.get("birthday", False)
        if not isinstance(birthday, bool):
            raise SummaryError("birthday", "must be true or false")
        summary = document.get("nat")
        return cls(
            NatSummary() if summary is None else NatSummary.from_json(summary),
            _budget(document.get("budget")),
            birthday,
            _worked(document.get("worked")),
        )

    def dumps(self) -> str:
        """Return the offer as JSON text on one line."""
        return json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False)

    @classmethod
    def loads(cls, text: str | bytes) -> Offer:
        """Return the offer in this JSON text.  Raises :class:`ice.predict.summary.SummaryError`."""
        if len(text) > MOST_OCTETS:
            raise SummaryError("", f"{len(text)} octets are more than the {MOST_OCTETS} allowed")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise SummaryError("", "this is not JSON") from None
        return cls.from_json(document)


def _budget(raw: Json) -> Budget | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise SummaryError("budget", "must be an object")
    # What is beyond this side's bounds is as good as the bound: the smaller budget holds.
    packets = _number(raw.get("packets"), "budget.packets", 0, MOST_PACKETS)
    sockets = _number(raw.get("sockets"), "budget.sockets", 1, MOST_SOCKETS)
    seconds = _number(raw.get("seconds"), "budget.seconds", 0.001, MOST_SECONDS)
    return Budget(int(packets), int(sockets), seconds)


def _number(raw: Json, at: str, least: float, most: float) -> float:
    # A comparison with NaN is false, and Python's JSON has it.
    if not isinstance(raw, int | float) or isinstance(raw, bool) or not raw >= least:
        raise SummaryError(at, f"must be a number from {least:g} on")
    return float(min(raw, most))


def _worked(raw: Json) -> dict[Transport, tuple[Strategy, ...]]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise SummaryError("worked", "must be an object")
    found: dict[Transport, tuple[Strategy, ...]] = {}
    for transport in _TRANSPORTS:
        names = raw.get(transport, [])
        if not isinstance(names, list) or len(names) > 4 * len(Strategy):
            raise SummaryError(f"worked.{transport}", "must be a list of strategies")
        known = tuple(s for s in Strategy if s.value in (n for n in names if isinstance(n, str)))
        if known:
            found[transport] = known
    return found
