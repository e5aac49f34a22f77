"""What to try next at a direct way: from what both sides know of their NATs.

Theory of operation.  Each side finds out, beside everything else, what NATs it is behind, and tells
the other one.  From then on both have the same plan, so that naming a step says what either does.
Until then attempts are plain ones, and so they stay where nothing can be found out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ice.link.config import LinkConfig, Way
from ice.link.recipes import TRANSPORTS, Recipe, plain
from ice.predict.diagnose import diagnose
from ice.predict.memory import Memory, default_path
from ice.predict.offer import Offer
from ice.predict.steps import Plan, Step, Strategy
from ice.predict.summary import NOTHING, NatSummary, SummaryError, Transport

GRACE: Final = 3.0
"""Seconds that an attempt gets beyond what its step needs: both sides have to hear of it."""
SOON: Final = 0.1
"""Seconds between two attempts of one plan."""


class Planner:
    """The plans of one link.  ``on_plan`` is called when there are new ones."""

    def __init__(
        self,
        config: LinkConfig,
        *,
        tell: Callable[[dict[str, Any]], None],
        on_plan: Callable[[], None],
    ) -> None:
        self._config = config
        self._tell = tell
        self._on_plan = on_plan
        self._memory: Memory | None = None
        self._mine: Offer | None = None
        self._theirs: Offer | None = None
        self._met = False
        self._plans: dict[Way, Plan] = {}
        self.notes: Counter[str] = Counter()
        """What went wrong, in words for a person."""

    # Finding out. ---------------------------------------------------------------------------------

    async def find_out(self, servers: Sequence[Any]) -> None:
        """Find out what NATs this side is behind, or remember it."""
        config = self._config
        summary: NatSummary | None = None
        if config.remember:
            # It reads a file, and hashes what must not be in it.
            self._memory, summary = await asyncio.to_thread(_remember)
        if summary is None:
            found = await diagnose(servers, udp=config.udp, tcp=config.tcp)
            summary = found.summary
            if found.note:
                self.notes[found.note] += 1
            if self._memory is not None:
                await asyncio.to_thread(self._memory.measured, summary)
        self._mine = Offer(summary, config.budget, config.birthday)
        self._offer()

    def meet(self) -> None:
        """Take note that the peer is there."""
        self._met = True
        self._offer()

    def _offer(self) -> None:
        if self._met and self._mine is not None:
            self._tell({"type": "nat", "offer": self._mine.to_json()})
            self._plan()

    def take(self, message: Mapping[str, Any]) -> None:
        """Take what the peer has found out."""
        try:
            self._theirs = Offer.from_json(message.get("offer"))
        except SummaryError as wrong:
            self.notes[f"what the peer told of its NATs cannot be used: {wrong}"[:200]] += 1
            return
        self._plan()
        if self._memory is not None and self._mine is not None and not self._mine.remembered:
            self._recall(self._memory, self._mine, self._theirs)

    def _recall(self, memory: Memory, mine: Offer, theirs: Offer) -> None:
        """See what has reached such a peer from here; if something has, the peer has to know."""
        transports: tuple[Transport, ...] = ("udp", "tcp")
        remembered = {
            transport: worked
            for transport in transports
            if (worked := memory.worked(theirs.summary, transport))
        }
        if remembered:
            self._mine = replace(mine, remembered=remembered)
            self._offer()

    def _plan(self) -> None:
        mine, theirs = self._mine, self._theirs
        if mine is None or theirs is None:
            return
        for way, transport in TRANSPORTS.items():
            self._plans[way] = mine.plan(theirs, transport)
        self._on_plan()

    # Using it. ------------------------------------------------------------------------------------

    def steps(self, way: Way) -> Sequence[Step] | None:
        """Return the steps that seek a direct way; ``None`` without a plan."""
        plan = self._plans.get(way)
        return None if plan is None else plan.direct

    def hopeless(self, way: Way) -> str:
        """Say why a plan has no step for a way; empty if it has one, or there is no plan."""
        plan = self._plans.get(way)
        return plan.steps[-1].why if plan is not None and not plan.direct else ""

    def recipe(self, way: Way, failures: int) -> Recipe:
        """Return how the next attempt is made, after so many that have failed."""
        order = self._order(way)
        if not order:
            return plain(way)
        place = order[failures % len(order)]
        return self._recipe(way, place, (self.steps(way) or ())[place])

    def follow(self, way: Way, number: int, strategy: str) -> Recipe:
        """Return this side's part of a step that the peer, which does ``strategy``, has begun."""
        steps = [*enumerate(self.steps(way) or ())]
        # What either has remembered changes the order, and may have reached one side only yet.
        for place, step in [*steps[number : number + 1], *steps]:
            if step.theirs.strategy.value == strategy:
                return self._recipe(way, place, step)
        return plain(way)

    def _recipe(self, way: Way, place: int, step: Step) -> Recipe:
        path = NOTHING
        if self._mine is not None:
            path = self._mine.summary.path(TRANSPORTS[way], step.family or "ipv4") or NOTHING
        return Recipe(step, place, path, step.seconds + GRACE)

    def pause(self, way: Way, failures: int) -> float:
        """Return how long to wait before the next attempt, after so many that have failed."""
        order, pauses = self._order(way), self._config.again
        if self.hopeless(way):
            return pauses[-1]
        if 0 < failures < len(order):
            return SOON
        rounds = failures // max(len(order), 1) - 1
        return pauses[min(max(rounds, 0), len(pauses) - 1)]

    def _order(self, way: Way) -> list[int]:
        """Return the steps in the order of the attempts, those that are worth it several times."""
        steps = self.steps(way) or ()
        return [n for n, step in enumerate(steps) for _ in range(step.attempts)]

    def begins_otherwise(self, way: Way) -> bool:
        """Whether the plan begins with something else than a plain attempt."""
        steps = self.steps(way)
        return bool(steps) and steps[0].strategy is not Strategy.PLAIN  # type: ignore[index]

    # Learning. ------------------------------------------------------------------------------------

    async def learn(self, way: Way, recipe: Recipe) -> None:
        """Remember what has worked in this network."""
        memory, theirs, transport = self._memory, self._theirs, TRANSPORTS.get(way)
        if memory is None or theirs is None or transport is None:
            return
        await asyncio.to_thread(memory.learn, theirs.summary, transport, recipe.strategy)

    def forget(self) -> None:
        """Take note that this host may be in another network: nothing is known of it."""
        self._plans.clear()
        if self._mine is not None:
            self._mine = replace(self._mine, summary=NatSummary())


def _remember() -> tuple[Memory, NatSummary | None]:
    memory = Memory(default_path())
    return memory, memory.summary()
