"""Which pair is used: nominating, agreeing, and what follows for the checklist (section 8.1).

When to nominate "is a matter of local optimization" (RFC 8445 section 8.1.1).  Data may be sent on
any valid pair before (section 12.1), and a better pair can be nominated later, so there is no need
to wait for long, and none to wait for a fixed time:

* if no pair of the component that may still succeed has a higher priority than the best valid one,
  that one is nominated at once;
* otherwise each of the better ones gets the time that it takes to send its check and to have an
  answer from as far away as the peer is on the valid pair: twice its round-trip time, for a first
  check may meet a NAT that the peer's has yet to open; and once more if the valid pair goes over a
  relay, for a direct one is worth more.  A pair on which the peer's own check has come by then gets
  that time once more.

``Nomination.FIRST`` waits for none of them.

The controlled agent follows.  What a peer nominates later takes the place of what it nominated
before, by the numbers of its nominations if it has some.  Of pairs that were nominated aggressively
(RFC 5245), by their very first check, the one of the highest priority is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ice.checks.checklist import Checklist, ChecklistState, Generation
from ice.checks.core import Core
from ice.checks.events import ChecklistCompleted, ChecklistFailed, Nominated, PairValid
from ice.checks.pairs import CheckedPair
from ice.config import Nomination
from ice.pair import PairState
from stun.errors import UsageError
from stun.sansio import SECOND, Instant

MOST_WAIT: Final = 1 * SECOND
"""The most that is waited for an answer on a better pair."""
MOST_UNSENT: Final = 10
"""Checks that have not been sent yet and are waited for."""

_OPEN = (PairState.FROZEN, PairState.WAITING, PairState.IN_PROGRESS)


class Chooser:
    """Looks at checklists of which something has changed.  ``nominate`` sends the nomination."""

    __slots__ = ("_core", "_nominate")

    def __init__(self, core: Core, nominate: Callable[[CheckedPair, int, Instant], None]) -> None:
        self._core = core
        self._nominate = nominate

    # The selected pair ----------------------------------------------------------------------------

    def agreed(self, pair: CheckedPair, now: Instant) -> None:
        """Take that a valid pair was nominated by one agent and accepted by the other."""
        core, generation = self._core, pair.generation
        checklist = generation.checklists[pair.base.stream]
        component = pair.base.component
        if checklist.nominating.get(component) is pair:
            del checklist.nominating[component]
        current = checklist.selected.get(component)
        if current is pair or (current is not None and not self._supersedes(pair, current)):
            return
        if current is not None:
            current.nominated = False
            current.note(now, "another pair was nominated")
        pair.nominated = True
        pair.note(now, "nominated")
        checklist.selected[component] = pair
        for stopped in generation.park(checklist, pair):
            for check in core.outstanding.of(stopped):
                check.cancelled = True
        core.events.append(Nominated(pair))
        core.touch(pair, now)

    def _supersedes(self, pair: CheckedPair, current: CheckedPair) -> bool:
        if pair.nomination != current.nomination:
            return pair.nomination > current.nomination
        if self._by_priority(pair):
            return pair.valid_priority > current.valid_priority
        return pair.nominated_order > current.nominated_order

    def _by_priority(self, pair: CheckedPair) -> bool:
        """Whether the nomination is an aggressive one.

        "If more than one candidate pair is nominated [...] the agents MUST [...] use the pairs with
        the highest priority" (section 8.1.1).  Whoever uses regular nomination has had an answer
        on the pair before, so a request without USE-CANDIDATE has come first.
        """
        return self._core.controlling or not pair.checked_first

    def _reconsider(self, checklist: Checklist, now: Instant) -> None:
        """Look at aggressive nominations again: a peer-reflexive candidate was told meanwhile.

        Its priority was that of a peer-reflexive one until then, on this side alone.
        """
        for component, current in list(checklist.selected.items()):
            for pair in checklist.of(component):
                if pair.valid and pair.nomination == current.nomination and self._by_priority(pair):
                    self.agreed(pair, now)

    def nominate(self, pair: CheckedPair, now: Instant) -> None:
        """Nominate a valid pair of this generation."""
        if not self._core.controlling:
            raise UsageError("only the controlling agent nominates")
        if not pair.valid:
            raise UsageError(f"{pair} is not valid")
        checklist = pair.generation.checklists[pair.base.stream]
        component = pair.base.component
        if checklist.nominating.get(component) is pair or (
            checklist.selected.get(component) is pair
            and component not in checklist.nominating
            and component not in checklist.disputed
        ):
            return
        checklist.disputed.discard(component)
        number = checklist.nominations.get(component, 0) + 1
        checklist.nominations[component] = number
        checklist.nominating[component] = pair
        self._nominate(pair, number, now)

    # Reviewing ------------------------------------------------------------------------------------

    def review(self, generation: Generation, checklist: Checklist, now: Instant) -> None:
        """Nominate what is to be nominated; complete or fail the checklist."""
        core = self._core
        if core.config.lite:
            if generation.remote_is_lite:
                self._both_lite(generation, checklist, now)
        elif core.controlling and generation.keys.remote is not None:
            for component in generation.components(checklist):
                if component in checklist.nominating:
                    continue
                selected = checklist.selected.get(component)
                if selected is None:
                    self._choose(generation, checklist, component, now)
                elif component in checklist.disputed and selected.valid:
                    # The peer, whose answers may be all that got lost, has to be told.
                    self.nominate(selected, now)
        if checklist.selected:
            self._reconsider(checklist, now)
        self._conclude(generation, checklist, now)

    def _choose(
        self, generation: Generation, checklist: Checklist, component: int, now: Instant
    ) -> None:
        best = None
        better: list[CheckedPair] = []
        for pair in checklist.of(component):
            if pair.valid:
                best = pair
                break
            if pair.state in _OPEN and not pair.parked:
                better.append(pair)
        if best is None:
            return
        ended = generation.ended_local and checklist.stream in generation.ended_remote
        # A direct pair may yet come from candidates that are still to come.
        may_come = better or not (ended or best.is_direct)
        if may_come and self._core.config.nomination is not Nomination.FIRST:
            until = checklist.settle.get(component)
            if until is None:
                until = checklist.settle[component] = self._until(best, better, now)
            if until <= now and component not in checklist.extended:
                # What the peer has found a way to is worth one more round: its own check has come,
                # so the answer to the check that this triggered is on its way.
                promising = [pair for pair in better if pair.requests_received]
                if promising:
                    checklist.extended.add(component)
                    until = checklist.settle[component] = self._until(best, promising, now)
            if now < until:
                return
        self.nominate(best, now)

    def _until(self, best: CheckedPair, better: list[CheckedPair], now: Instant) -> Instant:
        """Return until when pairs that are better than the best valid one should have answered."""
        config = self._core.config
        # Without a measurement, because the request was sent again: half of the time after which
        # it was.
        rtt = config.rto // 2 if best.rtt is None else best.rtt
        answer = min((2 if best.is_direct else 3) * rtt, MOST_WAIT)
        until, unsent = now, 0
        for pair in better:
            if pair.state is PairState.IN_PROGRESS and pair.current is not None:
                sent = pair.current.transaction.started
            else:
                unsent = min(unsent + 1, MOST_UNSENT)
                sent = now + config.ta * unsent
            until = max(until, sent + answer)
        return until if better else now + answer

    def _both_lite(self, generation: Generation, checklist: Checklist, now: Instant) -> None:
        """Agree without any check (section 8.2): by the candidates alone, once all are known."""
        if not (generation.ended_local and checklist.stream in generation.ended_remote):
            return
        for component in generation.components(checklist):
            pair = next(checklist.of(component), None)
            if pair is None or component in checklist.selected:
                continue
            pair.move(PairState.SUCCEEDED)
            pair.valid = True
            pair.note(now, "both agents are lite: not checked")
            self._core.events.append(PairValid(pair))
            self.agreed(pair, now)

    def _conclude(self, generation: Generation, checklist: Checklist, now: Instant) -> None:
        core = self._core
        components = generation.components(checklist)
        if all(component in checklist.selected for component in components):
            if checklist.state is not ChecklistState.COMPLETED:
                checklist.state = ChecklistState.COMPLETED
                core.events.append(ChecklistCompleted(checklist.stream))
            return
        why = self._why_failed(generation, checklist, now)
        if why is None:
            checklist.state = ChecklistState.RUNNING
        elif checklist.state is not ChecklistState.FAILED:
            checklist.state = ChecklistState.FAILED
            core.events.append(ChecklistFailed(checklist.stream, why))

    def _why_failed(self, generation: Generation, checklist: Checklist, now: Instant) -> str | None:
        """Say why a checklist has failed, or ``None`` while there is hope.

        RFC 8445 section 7.2.5.4: all pairs have failed or succeeded, and a component has no valid
        one; RFC 8838 section 8: and no candidate is to come from either side; RFC 8863 section 4:
        and the peer has had its time to find this side.
        """
        if generation.patience is None or now < generation.patience:
            return None
        if self._core.config.lite and not generation.remote_is_lite:
            # It checks nothing, so it cannot know.
            return None
        if not generation.ended_local or checklist.stream not in generation.ended_remote:
            return None
        if any(pair.state in _OPEN and not pair.parked for pair in checklist.pairs):
            return None
        for component in generation.components(checklist):
            pairs = list(checklist.of(component))
            if any(pair.valid for pair in pairs):
                continue
            if pairs:
                return f"component {component}: all {len(pairs)} pairs failed"
            if not checklist.remotes:
                return "the peer has no candidates"
            return f"component {component}: no candidate of the peer goes with one of this side"
        return None
