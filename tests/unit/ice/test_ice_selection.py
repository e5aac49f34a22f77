"""Which pair a component uses, told by what is found out of its pairs.

The checker and the monitor are stand-ins that note what they are asked; consent is the real one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import count
from random import Random
from typing import Any

import pytest

from ice.base import Base
from ice.candidate import Candidate, CandidateType
from ice.component import key_of
from ice.config import Config
from ice.consent import Consent, ConsentRecovered, ConsentShaky
from ice.events import (
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
from ice.monitor import Better, Reason
from ice.pair import Pair
from ice.selection import Selection
from stun.sansio import SECOND, Address, Instant

PORTS = count(1000)


class Checks:
    """Knows which pairs are valid, and notes what it is asked."""

    def __init__(self) -> None:
        self.controlling = True
        self.known: list[Pair] = []
        self.nominated: list[Pair] = []
        self.probed: list[Pair] = []

    def valid_pairs(self, stream: int, component: int) -> list[Pair]:
        place = stream, component
        return [p for p in self.known if p.valid and (p.stream, p.component) == place]

    def pairs(self, stream: int) -> list[Pair]:
        return [pair for pair in self.known if pair.stream == stream]

    def nominate(self, pair: Pair, now: Instant) -> None:
        self.nominated.append(pair)

    def lost(self, pair: Pair, why: str, now: Instant) -> None:
        pair.valid = pair.nominated = False

    def probe(self, pair: Pair, now: Instant) -> None:
        self.probed.append(pair)


class Measures:
    def __init__(self) -> None:
        self.log: list[tuple[str, Pair]] = []

    def valid(self, pair: Pair, now: Instant) -> None:
        self.log.append(("valid", pair))

    def selected(self, pair: Pair, now: Instant) -> None:
        self.log.append(("selected", pair))

    def answered(self, pair: Pair, rtt: int, now: Instant) -> None:
        self.log.append(("answered", pair))

    def lost(self, pair: Pair, now: Instant) -> None:
        self.log.append(("lost", pair))


class Scene:
    def __init__(self, rng: Random, **options: Any) -> None:
        self.config = Config(**options)
        self.checks = Checks()
        self.measures = Measures()
        self.queue: deque[Any] = deque()
        self.consent = Consent(
            self.config,
            entropy=rng.randbytes,
            probe=self.checks.probe,
            send=lambda *_: None,
        )
        self.selection = Selection(
            self.config,
            self.checks,  # type: ignore[arg-type]
            self.consent,
            self.measures,  # type: ignore[arg-type]
            self.queue,
        )

    def pair(self, priority: int, component: int = 1, stream: int = 0, relay: str = "") -> Pair:
        port = next(PORTS)
        kind = CandidateType.RELAYED if relay else CandidateType.HOST
        local = Candidate("1", component, "udp", priority, "192.0.2.1", port, kind)
        remote = Candidate("1", component, "udp", 1, "192.0.2.2", port, CandidateType.HOST)
        base = Base(port, stream, component, "udp", Address("192.0.2.1", port), relay=relay)
        pair = Pair(local, base, remote, priority)
        self.checks.known.append(pair)
        return pair

    def valid(self, pair: Pair, now: Instant = 0) -> Pair:
        pair.valid = True
        self.selection.valid(pair, now)
        return pair

    def nominated(self, pair: Pair, now: Instant = 0) -> Pair:
        pair.nominated = pair.valid = True
        self.selection.nominated(pair, now)
        return pair

    def told(self) -> list[Any]:
        events = list(self.queue)
        self.queue.clear()
        return events

    def in_use(self, component: int = 1, stream: int = 0) -> Pair | None:
        return self.selection.table[key_of(stream, component)].pair

    def pass_time(self, start: Instant, end: Instant, answering: Iterable[Pair] = ()) -> list[Any]:
        """Go through the deadlines; the pairs named answer what they are asked, at once."""
        answering = list(answering)
        while (due := self.selection.deadline()) is not None and due <= end:
            now = max(due, start)
            self.checks.probed.clear()
            self.selection.on_deadline(now)
            while (event := self.consent.poll()) is not None:
                self.selection.consent_told(event, now)
            for pair in list(self.checks.probed):
                if pair in answering:
                    self.selection.answered(pair, 1_000_000, now)
        return self.told()


@pytest.fixture
def scene(rng: Random) -> Scene:
    return Scene(rng)


def test_the_first_valid_pair_carries_data_and_a_better_one_replaces_it(scene: Scene) -> None:
    relayed, worse, direct = scene.pair(10, relay="turn:a"), scene.pair(5), scene.pair(20)
    scene.valid(relayed)
    assert scene.told() == [Connected(relayed)]
    scene.valid(worse)
    assert scene.told() == []
    scene.valid(direct)
    assert scene.told() == [Selected(direct, relayed, Why.BETTER_VALID)]
    assert scene.in_use() is direct
    assert scene.checks.nominated == []


def test_nomination_decides_whatever_the_priority(scene: Scene) -> None:
    high, low = scene.pair(20), scene.pair(10)
    scene.valid(high)
    scene.valid(low)
    scene.nominated(low)
    assert scene.told()[1:] == [Selected(low, high, Why.NOMINATED, nominated=True)]
    higher = scene.pair(30)
    scene.valid(higher)
    assert scene.told() == []
    assert scene.in_use() is low


def test_nominating_the_pair_in_use_is_told(scene: Scene) -> None:
    pair = scene.valid(scene.pair(1))
    scene.nominated(pair)
    assert scene.told() == [Connected(pair), Selected(pair, pair, Why.NOMINATED, nominated=True)]


def test_the_state_is_that_of_the_last_component(rng: Random) -> None:
    scene = Scene(rng, components=2, streams=2)
    places = [(1, 0), (2, 0), (1, 1), (2, 1)]

    def state() -> AgentState:
        scene.selection.update(checking=True, closed=False)
        return scene.selection.state

    assert state() is AgentState.CHECKING
    pairs = []
    for component, stream in places:
        assert state() is AgentState.CHECKING
        pairs.append(scene.valid(scene.pair(1, component, stream)))
    assert state() is AgentState.CONNECTED
    for pair in pairs:
        assert state() is AgentState.CONNECTED
        scene.nominated(pair)
    assert state() is AgentState.COMPLETED
    changes = [event.state for event in scene.told() if isinstance(event, StateChanged)]
    assert changes == [AgentState.CHECKING, AgentState.CONNECTED, AgentState.COMPLETED]


def test_what_is_better_is_nominated_by_the_controlling_side_only(scene: Scene) -> None:
    now, better = scene.nominated(scene.pair(1)), scene.pair(2)
    scene.valid(better)
    advice = Better(better, "it is direct", Reason.DIRECT)
    scene.selection.better(advice, 0)
    assert scene.checks.nominated == [better]
    assert scene.in_use() is now  # until the peer has answered
    scene.checks.nominated.clear()
    scene.checks.controlling = False
    scene.selection.better(advice, 0)
    assert scene.checks.nominated == []
    assert scene.in_use() is now


@pytest.mark.parametrize("controlling", [True, False])
def test_from_a_pair_that_does_not_answer_either_side_moves_at_once(
    scene: Scene, controlling: bool
) -> None:
    scene.checks.controlling = controlling
    dead, alive = scene.nominated(scene.pair(2)), scene.pair(1)
    scene.valid(alive)
    scene.told()
    scene.selection.better(Better(alive, "it answers", Reason.ANSWERS), 1)
    assert scene.told() == [Selected(alive, dead, Why.BETTER)]
    assert scene.checks.nominated == ([alive] if controlling else [])
    # The controlled side goes back to what was agreed on as soon as that works again.
    scene.selection.answered(dead, 1_000_000, 2)
    assert scene.in_use() is (alive if controlling else dead)


def test_a_nomination_without_consent_waits_for_it(scene: Scene) -> None:
    scene.checks.controlling = False
    used, other = scene.nominated(scene.pair(1)), scene.pair(2)
    scene.valid(other)
    later = 40 * SECOND
    used.answered = later
    scene.told()
    scene.nominated(other, later)
    assert scene.in_use() is used
    assert scene.checks.probed == [other]
    scene.selection.answered(other, 1_000_000, later + 1)
    assert scene.told() == [Selected(other, used, Why.NOMINATED, nominated=True)]


def test_consent_lost_moves_to_a_pair_that_answered_lately(scene: Scene) -> None:
    used, spare = scene.nominated(scene.pair(2)), scene.pair(1)
    scene.valid(spare)
    scene.told()
    # The spare pair has answered within the time of consent; nobody answers on the one in use.
    spare.answered = 20 * SECOND
    events = scene.pass_time(0, 31 * SECOND)
    assert ConsentLost(used) in events
    assert Selected(spare, used, Why.CONSENT_LOST) in events
    assert scene.in_use() is spare
    assert scene.checks.nominated == [spare]


def test_without_a_monitor_an_overdue_answer_has_others_asked(rng: Random) -> None:
    scene = Scene(rng, monitor=False)
    used, spare = scene.nominated(scene.pair(2)), scene.pair(1)
    scene.valid(spare)
    scene.told()
    events = scene.pass_time(0, 29 * SECOND, answering=[spare])
    assert events == [Selected(spare, used, Why.SHAKY)]
    assert scene.checks.nominated == [spare]


def test_a_shaky_pair_is_kept_when_no_other_one_answers(rng: Random) -> None:
    scene = Scene(rng, monitor=False)
    used, spare = scene.nominated(scene.pair(2)), scene.pair(1)
    scene.valid(spare)
    scene.checks.probed.clear()
    scene.selection.consent_told(ConsentShaky(used, 3, 5 * SECOND), 8 * SECOND)
    assert scene.checks.probed == [spare]
    scene.selection.consent_told(ConsentRecovered(used, 5 * SECOND), 9 * SECOND)
    scene.selection.answered(spare, 1_000_000, 10 * SECOND)
    assert scene.in_use() is used


def test_without_another_pair_it_is_disconnected_and_fails_in_time(scene: Scene) -> None:
    used = scene.nominated(scene.pair(2))
    scene.told()
    scene.selection.update(checking=True, closed=False)
    events = scene.pass_time(0, 30 * SECOND)
    assert [type(event) for event in events if not isinstance(event, StateChanged)] == [
        ConsentLost,
        Disconnected,
    ]
    assert scene.in_use() is None
    scene.selection.update(checking=True, closed=False)
    assert scene.selection.state is AgentState.DISCONNECTED
    scene.told()
    lost_at = 30 * SECOND
    # Nothing is left to ask on either.
    told = scene.pass_time(lost_at, lost_at + scene.config.patience - 1)
    assert [type(event) for event in told] == [RestartNeeded]
    told = scene.pass_time(lost_at, lost_at + scene.config.patience)
    assert [type(event) for event in told] == [Failed]
    scene.selection.update(checking=True, closed=False)
    assert scene.selection.state is AgentState.FAILED
    scene.told()
    assert scene.pass_time(lost_at, 1000 * SECOND) == []
    assert scene.selection.deadline() is None
    # RFC 7675 section 5.1: the pair is not to be used again with the same credentials.
    scene.selection.answered(used, 1, 100 * SECOND)
    assert scene.in_use() is None


def test_a_pair_without_fresh_consent_is_asked_first(scene: Scene) -> None:
    used, spare = scene.nominated(scene.pair(2)), scene.pair(1)
    scene.valid(spare)
    scene.told()
    now = 100 * SECOND
    used.answered = now
    scene.selection.gone(used, Why.CLOSED, now)
    assert scene.in_use() is None
    assert scene.checks.probed == [spare]
    scene.selection.answered(spare, 1_000_000, now + 1)
    assert scene.in_use() is spare
    assert scene.checks.nominated == [spare]
    assert [type(event) for event in scene.told()] == [Disconnected, Connected]


def test_a_lost_base_moves_at_once(rng: Random) -> None:
    scene = Scene(rng, components=2)
    first, second = scene.nominated(scene.pair(2)), scene.nominated(scene.pair(2, component=2))
    spare = scene.valid(scene.pair(1))
    scene.told()
    first.valid = False
    scene.selection.base_lost(first.base, 1)
    assert scene.told() == [Selected(spare, first, Why.BASE_LOST)]
    assert scene.in_use(2) is second
    assert ("lost", first) in scene.measures.log


def test_a_restart_changes_nothing_until_there_is_something_new(scene: Scene) -> None:
    old = scene.nominated(scene.pair(5))
    scene.selection.restart(1)
    scene.told()
    new = scene.valid(scene.pair(9))
    assert scene.told() == []
    assert scene.in_use() is old
    scene.nominated(new)
    assert scene.told() == [Selected(new, old, Why.NOMINATED, nominated=True)]


def test_a_restart_whose_old_pair_is_gone_uses_what_is_valid(scene: Scene) -> None:
    old = scene.nominated(scene.pair(5))
    scene.selection.restart(1)
    new = scene.valid(scene.pair(4))
    scene.told()
    scene.selection.gone(old, Why.CLOSED, 1)
    assert scene.told() == [Selected(new, old, Why.CLOSED)]


def test_a_failed_checklist_fails_only_what_has_no_pair(rng: Random) -> None:
    scene = Scene(rng, components=2)
    scene.valid(scene.pair(1, component=2))
    scene.told()
    scene.selection.checklist_failed(0, "no answers")
    assert scene.told() == [Failed(0, 1, "no answers")]
    scene.selection.checklist_failed(0, "no answers")
    assert scene.told() == []
    late = scene.valid(scene.pair(1))
    assert scene.told() == [Connected(late)]
    scene.selection.update(checking=True, closed=False)
    assert scene.selection.state is AgentState.CONNECTED


def test_what_is_kept_after_completion(rng: Random) -> None:
    scene = Scene(rng)
    used = scene.nominated(scene.pair(50))
    direct = [scene.valid(scene.pair(n)) for n in range(20, 34)]
    relays = [scene.valid(scene.pair(n, relay=f"turn:{n}")) for n in range(3)]
    unused = scene.pair(99)
    bases = [pair.base for pair in (used, *direct, *relays, unused)]
    kept = scene.selection.wanted(bases)
    assert used.base in kept
    assert unused.base not in kept
    assert [pair.base in kept for pair in relays] == [False, False, True]
    assert [pair.base in kept for pair in direct] == [False] * 7 + [True] * 7
    alone = Scene(rng, monitor=False)
    used = alone.nominated(alone.pair(1))
    other = alone.valid(alone.pair(2))
    assert alone.selection.wanted([used.base, other.base]) == {used.base}


def test_who_uses_a_relay_keeps_his_sockets(rng: Random) -> None:
    scene = Scene(rng)
    used = scene.nominated(scene.pair(1, relay="turn:a"))
    other, unused = scene.pair(2, relay="turn:b"), scene.pair(3)
    bases = [used.base, other.base, unused.base]
    assert scene.selection.wanted(bases) == {used.base, unused.base}


@pytest.mark.parametrize("controlling", [True, False])
@pytest.mark.parametrize("nominated_first", [True, False])
def test_a_direct_pair_takes_the_place_of_a_relay_at_once(
    scene: Scene, controlling: bool, nominated_first: bool
) -> None:
    scene.checks.controlling = controlling
    relayed, direct = scene.pair(1, relay="turn:a"), scene.pair(2)
    if nominated_first:
        scene.nominated(relayed)
        scene.valid(direct)
    else:
        scene.valid(direct)
        scene.nominated(relayed)
    assert scene.checks.nominated == ([direct] if controlling else [])
    assert scene.in_use() is relayed
