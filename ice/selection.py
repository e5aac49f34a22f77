"""Which pair each component uses: chosen, agreed on, lost, replaced.

Theory of operation.  Pairs become valid, one is nominated, the monitor finds a better one, consent
or a path is lost: each of these comes in here as one call, and what follows for the component comes
out as events.  A component without a pair has :data:`Config.patience` to find another one, with
those valid pairs asked for consent that have not been asked lately; then it has failed.

Both sides are to use the same pair, so only the controlling agent moves of its own accord to one
that is better: it nominates it, and the other follows.  From a pair that is gone either side moves
at once, to what it has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ice import consent as freshness
from ice.candidate import CandidateType
from ice.component import Component, key_of, preference
from ice.config import Config
from ice.events import (
    AgentEvent,
    AgentState,
    Connected,
    ConsentLost,
    Disconnected,
    Failed,
    RestartNeeded,
    Selected,
    StateChanged,
    Why,
)
from ice.monitor import Reason
from ice.pair import PairState
from stun.sansio import SECOND, Instant, Output

if TYPE_CHECKING:
    from ice.base import Base
    from ice.checks.checker import Checker
    from ice.consent import Consent, ConsentEvent
    from ice.monitor import Better, Monitor
    from ice.pair import Pair

MOST_ASKED: Final = 8
"""Valid pairs that are asked for consent at once when a component has lost its own."""
ASK_AGAIN: Final = 1 * SECOND
"""Between two rounds of that."""
MOST_SPARE: Final = 8
"""Pairs beside the one in use whose sockets are kept."""

_LOSSES: Final = {
    Why.CONSENT_LOST: "the peer's consent was lost",
    Why.BASE_LOST: "its local address is gone",
    Why.CLOSED: "its connection ended",
    Why.NOT_VALID: "a check on it failed",
}


class Selection:
    """The components of all streams.  ``queue`` takes events, in order with everything else.

    :attr:`table` has each component by :func:`ice.component.key_of`; whoever sends looks there.
    """

    def __init__(
        self,
        config: Config,
        checker: Checker,
        consent: Consent,
        monitor: Monitor,
        queue: deque[Output | AgentEvent],
    ) -> None:
        self._config = config
        self._checker = checker
        self._consent = consent
        self._monitor = monitor
        self._queue = queue
        self.table: dict[int, Component] = {}
        for stream in range(config.streams):
            for number in range(1, config.components + 1):
                component = Component(stream, number)
                self.table[component.key] = component
        self.generation = 0
        self.state = AgentState.NEW
        self._ask_at: Instant | None = None

    # What is found out. ---------------------------------------------------------------------------

    def valid(self, pair: Pair, now: Instant) -> None:
        """Take note that a check on the pair succeeded."""
        pair.answered = now
        self._monitor.valid(pair, now)
        component = self.table[key_of(pair.stream, pair.component)]
        component.lost -= {pair}
        was_connected, component.connected_in = component.connected_in, self.generation
        current = component.pair
        if current is None:
            self._use(component, pair, Why.FIRST_VALID, now)
            if was_connected >= 0:
                # The pair that was agreed on is gone, and nobody nominates in a completed list.
                self._agree(component, pair, now)
        elif component.nominated is None:
            if component.generation == self.generation and pair.priority > current.priority:
                self._use(component, pair, Why.BETTER_VALID, now)
        else:
            self._upgrade(component, now)

    def assume(self, now: Instant) -> None:
        """Use a pair from relay to relay before it is proved, where there is nothing better yet."""
        for component in self.table.values():
            if component.connected_in >= self.generation:
                continue
            relayed = [
                pair
                for pair in self._checker.pairs(component.stream)
                if pair.component == component.id and _is_relayed(pair)
            ]
            for pair in relayed:
                pair.assumed = True
            if relayed and component.pair is None:
                best = max(relayed, key=preference)
                self._use(component, best, Why.ASSUMED, now)

    def nominated(self, pair: Pair, now: Instant) -> None:
        """Take note that both agents have agreed on the pair."""
        component = self.table[key_of(pair.stream, pair.component)]
        component.nominated = pair
        component.connected_in = self.generation
        component.lost -= {pair}
        if self._has_consent(pair, now):
            self._use(component, pair, Why.NOMINATED, now)
        else:
            # The peer's word is not its consent: that comes with the answer to a request.
            self._checker.probe(pair, now)
        self._upgrade(component, now)

    def _upgrade(self, component: Component, now: Instant) -> None:
        """Leave a relay for a direct pair that a check has just proved.

        The monitor would find it out by and by.  What was left because it did not answer is left to
        the monitor.
        """
        agreed = component.nominated
        if agreed is None or agreed.is_direct:
            return
        if not self._config.monitor or not self._checker.controlling:
            return
        fresh, _ = self._fallbacks(component, now)
        for pair in fresh:
            if pair.is_direct and pair not in component.doubted:
                pair.note(now, "it is direct; the pair that was agreed on goes through a relay")
                self._agree(component, pair, now)
                return

    def better(self, advice: Better, now: Instant) -> None:
        """Take the word of the monitor that a pair is better than the one in use."""
        pair = advice.pair
        component = self.table[key_of(pair.stream, pair.component)]
        if pair in component.lost or not pair.valid:
            return
        pair.note(now, f"better than the pair in use: {advice.why}")
        component.doubted -= {pair}
        if component.pair is None or advice.reason is Reason.ANSWERS:
            # Nothing is lost by leaving what does not answer, whoever says so.
            if component.pair is not None:
                component.doubted |= {component.pair}
            self._use(component, pair, Why.BETTER, now)
        self._agree(component, pair, now)

    def answered(self, pair: Pair, rtt: int, now: Instant) -> None:
        """Take note that a request on the pair was answered, outside the checks."""
        self._consent.answered(pair, rtt, now)
        pair.answered = now
        self._monitor.answered(pair, rtt, now)
        component = self.table[key_of(pair.stream, pair.component)]
        current = component.pair
        if pair is current or not pair.valid or pair in component.lost:
            return
        if pair is component.nominated and not self._checker.controlling:
            # What the peer wants can be done again, or for the first time.
            self._use(component, pair, Why.NOMINATED, now)
        elif current is None:
            self._use(component, pair, Why.CONSENT_LOST, now)
            self._agree(component, pair, now)
        elif component.shaky:
            self._use(component, pair, Why.SHAKY, now)
            self._agree(component, pair, now)

    def _has_consent(self, pair: Pair, now: Instant) -> bool:
        return (
            not self._config.consent
            or self._config.lite
            or pair.answered is None
            or now - pair.answered < self._config.consent_timeout
        )

    def consent_told(self, event: ConsentEvent, now: Instant) -> None:
        """Consent was lost, or an answer is overdue."""
        pair = event.pair
        match event:
            case freshness.ConsentLost():
                # RFC 7675 section 5.1: the agent "MUST cease transmission".
                self.table[key_of(pair.stream, pair.component)].lost |= {pair}
                pair.note(now, f"consent was lost: {event.why}")
                self._tell(ConsentLost(pair))
                self.gone(pair, Why.CONSENT_LOST, now)
            case freshness.ConsentShaky():
                self._shaky(pair, now)
            case freshness.ConsentRecovered():
                self.table[key_of(pair.stream, pair.component)].shaky = False
                pair.note(now, "answers come again")

    def _shaky(self, pair: Pair, now: Instant) -> None:
        """Ask others who might be alive; the monitor, if there is one, has done so already."""
        component = self.table[key_of(pair.stream, pair.component)]
        if component.pair is not pair or self._config.monitor:
            return
        component.shaky = True
        fresh, stale = self._fallbacks(component, now)
        for other in (*fresh, *stale)[:MOST_ASKED]:
            self._checker.probe(other, now)

    def tend(self, now: Instant) -> bool:
        """Leave pairs that are valid no more: a later check on them has failed.  Whether any."""
        found = False
        for component in self.table.values():
            pair = component.pair
            if pair is not None and not pair.valid and not _is_assumed(pair):
                found = True
                self.gone(pair, Why.NOT_VALID, now)
        return found

    def base_lost(self, base: Base, now: Instant) -> None:
        """Use nothing that is sent from this base any more."""
        for component in self.table.values():
            pair = component.pair
            if pair is not None and pair.base is base:
                self.gone(pair, Why.BASE_LOST, now)

    def gone(self, pair: Pair, why: Why, now: Instant) -> None:
        """Use the pair no more: go on over another one, if there is one."""
        self._monitor.lost(pair, now)
        component = self.table[key_of(pair.stream, pair.component)]
        if component.pair is not pair:
            return
        words = _LOSSES.get(why, why.value)
        if pair.valid:
            self._checker.lost(pair, words, now)
        fresh, stale = self._fallbacks(component, now)
        if fresh:
            self._use(component, fresh[0], why, now)
            self._agree(component, fresh[0], now)
            return
        component.leave(now)
        self._consent.release(pair, now)
        for other in stale[:MOST_ASKED]:
            self._checker.probe(other, now)
        self._ask_at = now + ASK_AGAIN
        self._tell(
            Disconnected(component.stream, component.id, f"the pair in use is gone: {words}")
        )

    def checklist_failed(self, stream: int, why: str) -> None:
        """Give up those components of the stream that have no pair."""
        for component in self.table.values():
            if component.stream != stream or component.failed:
                continue
            if component.connected_in < self.generation and component.pair is None:
                self._fail(component, why)

    def _fail(self, component: Component, why: str) -> None:
        component.failed = why
        self._tell(Failed(component.stream, component.id, why))

    def restart(self, generation: int) -> None:
        """Begin a generation: what is used stays in use until there is something new."""
        self.generation = generation
        for component in self.table.values():
            component.failed = ""
            component.lost = component.doubted = frozenset()
            component.nominated = None

    def wanted(self, bases: Iterable[Base]) -> set[Base]:
        """Return which of the bases are still of use when the agents have agreed.

        They are those in use, and for the monitor those of other pairs that data could go over:
        :data:`MOST_SPARE` a component, of which one may be a relay's.  As long as a component has
        to use a relay its sockets stay: checks from there, or the peer's, may yet succeed.
        """
        kept: set[Base] = set()
        relayed: set[tuple[int, int]] = set()
        for component in self.table.values():
            if component.pair is not None:
                kept.add(component.pair.base)
            if not self._config.monitor:
                continue
            if component.pair is None or not component.pair.is_direct:
                relayed.add((component.stream, component.id))
            valid = self._checker.valid_pairs(component.stream, component.id)
            usable = [pair for pair in valid if pair.valid and pair not in component.lost]
            usable.sort(key=preference, reverse=True)
            spare = [pair for pair in usable if not pair.base.is_relayed][:MOST_SPARE]
            spare += [pair for pair in usable if pair.base.is_relayed][:1]
            kept.update(pair.base for pair in spare)
        kept.update(
            base
            for base in bases
            if not base.is_relayed and (base.stream, base.component) in relayed
        )
        return kept

    def _fallbacks(self, component: Component, now: Instant) -> tuple[list[Pair], list[Pair]]:
        valid = self._checker.valid_pairs(component.stream, component.id)
        usable = (pair for pair in valid if pair is not component.pair)
        return component.fallbacks(usable, now - self._config.consent_timeout)

    # What follows. --------------------------------------------------------------------------------

    def _use(self, component: Component, pair: Pair, why: Why, now: Instant) -> None:
        nominated = why is Why.NOMINATED
        before = component.use(pair, self.generation)
        if before is not pair:
            self._consent.select(pair, now)
            self._monitor.selected(pair, now)
            pair.note(now, f"in use: {why.value}")
        if before is None:
            self._tell(Connected(pair))
        if before is not None or nominated:
            self._tell(Selected(pair, before, why, nominated))

    def _agree(self, component: Component, pair: Pair, now: Instant) -> None:
        """Have the peer use the pair as well, where that is this side's to say."""
        if self._checker.controlling and component.nominated is not pair:
            self._checker.nominate(pair, now)

    def _tell(self, event: AgentEvent) -> None:
        self._queue.append(event)

    # Time. ----------------------------------------------------------------------------------------

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        times = [self._consent.deadline(), self._ask_at]
        times += map(self._gives_up_at, self.table.values())
        return min((at for at in times if at is not None), default=None)

    def on_deadline(self, now: Instant) -> None:
        """Ask for consent, and give up what has been without a pair for too long."""
        due = self._consent.deadline()
        if due is not None and due <= now:
            for component in self.table.values():
                if component.sent is not None and component.pair is not None:
                    self._consent.sent(component.pair, component.sent)
            self._consent.on_deadline(now)
        for component in self.table.values():
            gives_up_at = self._gives_up_at(component)
            if gives_up_at is not None and gives_up_at <= now:
                self._fail(component, "without a pair for too long")
                self._needs_restart(component, "no pair has come back")
        if self._ask_at is not None and self._ask_at <= now:
            self._ask_again(now)

    def _gives_up_at(self, component: Component) -> Instant | None:
        if component.since is None or component.failed:
            return None
        return component.since + self._config.patience

    def _ask_again(self, now: Instant) -> None:
        """Ask on every valid pair of a component that has lost its own."""
        waiting = [c for c in self.table.values() if self._gives_up_at(c) is not None]
        for component in waiting:
            fresh, stale = self._fallbacks(component, now)
            for pair in (*fresh, *stale)[:MOST_ASKED]:
                self._checker.probe(pair, now)
            if not fresh and not stale and not self._hopes(component):
                self._needs_restart(component, "no pair is left that could be used")
        self._ask_at = now + ASK_AGAIN if waiting else None

    def _needs_restart(self, component: Component, why: str) -> None:
        if not component.hopeless:
            component.hopeless = True
            self._tell(RestartNeeded(why))

    def _hopes(self, component: Component) -> bool:
        """Whether some pair of the component is being checked, or about to be."""
        return any(
            pair.component == component.id
            and pair.state in (PairState.WAITING, PairState.IN_PROGRESS)
            for pair in self._checker.pairs(component.stream)
        )

    def update(self, *, checking: bool, closed: bool) -> None:
        """Tell of the agent's state as a whole if it has changed."""
        state = self._state(checking=checking, closed=closed)
        if state is not self.state:
            self.state = state
            failed = next((c.failed for c in self.table.values() if c.failed), "")
            self._tell(StateChanged(state, failed if state is AgentState.FAILED else ""))

    def _state(self, *, checking: bool, closed: bool) -> AgentState:
        if closed:
            return AgentState.CLOSED
        components = self.table.values()
        if any(component.failed and component.pair is None for component in components):
            return AgentState.FAILED
        if any(component.since is not None for component in components):
            return AgentState.DISCONNECTED
        if all(component.pair is not None for component in components):
            agreed = all(component.nominated is component.pair for component in components)
            return AgentState.COMPLETED if agreed else AgentState.CONNECTED
        return AgentState.CHECKING if checking else AgentState.NEW


def _is_relayed(pair: Pair) -> bool:
    """Whether it goes from relay to relay, and no check has failed on it."""
    return (
        pair.base.is_relayed
        and not pair.base.is_reliable
        and pair.remote.type is CandidateType.RELAYED
        and pair.state is not PairState.FAILED
    )


def _is_assumed(pair: Pair) -> bool:
    return pair.assumed and pair.state is not PairState.FAILED
