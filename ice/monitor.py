"""Watching every valid pair, so that a better one is known when it is there, or is needed.

Theory of operation.  A connection is made over the pair that happened to answer first, or that both
sides could agree on at that time; networks change afterwards.  So the other valid pairs go on being
asked, each with a single authenticated Binding request now and then, which keeps their NATs open,
too.  Three things make another pair better than the one in use:

* *It answers, and the one in use does not.*  While data flows and nothing comes back, the pair in
  use is asked at once.  With the first overdue answer the best of the others are asked along with
  it; when three are overdue and one of the others has answered meanwhile, that one is better.  That
  is about two seconds, where consent takes thirty.  If none of them answers, it is the host's
  network that is gone, and nothing is told: there is nowhere to go.
* *It is of a better kind*: direct and not relayed, or UDP and not TCP.  A few answers in a row are
  enough, and they are asked for in quick succession.
* *It is markedly nearer*: its round-trip time is below 0.7 of the other's, by more than 10 ms, and
  by more than both vary, for five answers in a row.

It never flaps.  A pair that was left because it did not answer has to answer twice as often in a
row as the time before until it is thought well of again, and after each change for the sake of
distance the next such change has to wait twice as long.

What it costs is bounded: two questions a second in all to the other pairs, however many there are,
and a few more where one of a better kind has just turned up or the one in use is silent.  With only
one valid pair there is nothing to compare, and nothing is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from ice.config import Config
from ice.pair import Pair
from ice.pulse import WHOLE, Pulse
from stun.sansio import MILLISECOND, SECOND, Entropy, Instant

DEAD: Final = 3
"""So many overdue answers in a row, and the pair in use is given up for one that answers."""
MOST_DEAD: Final = 8
"""So many at most, where answers get lost anyway."""
UNLUCKY: Final = 500
"""Once in so many times, it may be taken for dead because answers happened to get lost."""
FEW: Final = 3
"""So many answers in a row, and a pair of a better kind is taken."""
NEARER: Final = 5
"""So many answers in a row have to show that a pair is markedly nearer."""
MOST_IN_A_ROW: Final = 48
"""What a pair that keeps dying has to show at most."""
MARGIN: Final = 10 * MILLISECOND
HOLD: Final = 30 * SECOND
"""After a change, none for the sake of distance for so long; doubled by each such change."""
LONGEST_HOLD: Final = 3600 * SECOND
REDEEMED: Final = 300 * SECOND
"""After so long in use without failing, it is forgotten that a pair failed before."""

FLOWING: Final = 500 * MILLISECOND
"""How often the pair in use is looked at while data flows."""
IDLE: Final = 1 * SECOND
"""How often otherwise."""
UNHEARD: Final = 400 * MILLISECOND
"""While data flows and nothing was heard for so long, the pair in use is asked."""
UNANSWERED: Final = 2 * SECOND
"""Whatever is heard, it has to answer so often: that data comes does not say that data arrives."""
FLOWS_ON: Final = 5 * SECOND
"""For so long after the last packet of data, more of it is expected."""
EAGER: Final = 150 * MILLISECOND
"""Between the questions to a pair of a better kind that has not answered often enough."""
SHARE: Final = 500 * MILLISECOND
"""Each of the other pairs adds so much to the interval when there are many: two a second in all."""
WITNESSES: Final = 3
"""Other pairs that are asked along with one that has become silent."""
TELL_AGAIN: Final = 5 * SECOND
"""If nobody followed the advice, it is repeated after so long, then twice as long, ..."""


class Reason(StrEnum):
    """Why a pair is better than the one in use."""

    ANSWERS = "answers"
    DIRECT = "direct"
    UDP = "udp"
    NEARER = "nearer"


@dataclass(frozen=True, slots=True)
class Better:
    """``pair`` is better than what its component uses: ``why`` in words, ``reason`` for code."""

    pair: Pair
    why: str
    reason: Reason


class Measurement(NamedTuple):
    """What is known of a pair.  Times in nanoseconds."""

    rtt: int | None
    """Smoothed round-trip time."""
    variation: int
    """Mean deviation of it."""
    loss: float
    """Smoothed share of the questions that got no answer, 0 to 1."""
    answers: int


def kind_of(pair: Pair) -> int:
    """Rank a pair by its kind, the best highest: direct before relayed, UDP before TCP."""
    return 2 * pair.is_direct + (pair.base.transport == "udp")


def dead_after(pulse: Pulse) -> int:
    """Return how many overdue answers in a row show that a pair is dead.

    Where one in three gets lost, three in a row say little: as many are needed as make an accident
    unlikely.
    """
    number, chance = DEAD, pulse.loss**DEAD
    while number < MOST_DEAD and chance * UNLUCKY > WHOLE**number:
        number += 1
        chance *= pulse.loss
    return number


class _Watched:
    """A valid pair.  ``streak``: answers in a row; ``ahead``: how many of them markedly sooner."""

    __slots__ = ("ahead", "due", "failures", "pair", "pulse", "streak")

    def __init__(self, pair: Pair, now: Instant) -> None:
        self.pair = pair
        self.pulse = Pulse(pair.rtt)
        self.streak = 0
        self.ahead = 0
        self.failures = 0
        """How often it was left because it did not answer."""
        self.due = now
        """When it is asked next."""

    @property
    def kind(self) -> int:
        """Rank the pair; what seemed a host may turn out to be a relay when the peer tells."""
        return kind_of(self.pair)

    @property
    def is_trusted_after(self) -> int:
        """How many answers in a row show that it works, after what happened with it before."""
        return min(FEW << self.failures, MOST_IN_A_ROW)

    @property
    def distance(self) -> int:
        rtt = self.pulse.rtt
        return SECOND if rtt is None else rtt


class _Group:
    """The valid pairs of one component."""

    __slots__ = ("flowed_at", "heard", "heard_at", "hold", "hold_until", "members", "since",
                 "tell_after", "tell_at", "told", "used", "used_sent")  # fmt: skip

    def __init__(self) -> None:
        self.members: dict[Pair, _Watched] = {}
        self.used: _Watched | None = None
        self.since: Instant = 0
        """When it was taken into use."""
        self.heard = self.used_sent = 0
        """Its counters when they were looked at last."""
        self.heard_at: Instant = 0
        self.flowed_at: Instant | None = None
        self.hold = HOLD
        self.hold_until: Instant = 0
        self.told: Better | None = None
        self.tell_after = TELL_AGAIN
        self.tell_at: Instant = 0

    def others(self) -> list[_Watched]:
        return [w for w in self.members.values() if w is not self.used]

    def flows(self, now: Instant) -> bool:
        return self.flowed_at is not None and now - self.flowed_at < FLOWS_ON

    def observe(self, now: Instant) -> None:
        """Look at the counters of the pair in use: whether data was sent, whether any was heard."""
        assert self.used is not None
        pair = self.used.pair
        heard = pair.packets_received
        if heard != self.heard:
            self.heard, self.heard_at, self.flowed_at = heard, now, now
        if pair.packets_sent != self.used_sent:
            self.used_sent, self.flowed_at = pair.packets_sent, now


class Monitor:
    """Measures valid pairs, and tells :class:`Better`.  ``probe(pair, now)`` asks one.

    With ``config.monitor`` off, or in a lite agent, it does nothing at all.
    """

    __slots__ = ("_due", "_entropy", "_events", "_groups", "_interval", "_on", "_probe", "asked")

    def __init__(
        self, config: Config, *, entropy: Entropy, probe: Callable[[Pair, Instant], None]
    ) -> None:
        self._on = config.monitor and not config.lite
        self._interval = config.monitor_interval
        self._entropy = entropy
        self._probe = probe
        self._groups: dict[tuple[int, int], _Group] = {}
        self._due: Instant | None = None
        self._events: deque[Better] = deque()
        self.asked = 0
        """Questions in all."""

    # What it is told. -----------------------------------------------------------------------------

    def valid(self, pair: Pair, now: Instant) -> None:
        """Watch this pair from now on: a check on it succeeded."""
        if not self._on:
            return
        group = self._group(pair)
        watched = group.members.get(pair)
        if watched is None:
            watched = group.members[pair] = _Watched(pair, now)
            watched.streak = 1  # the check
            watched.due = now + self._pause(group, watched)
        self._plan(now)

    def selected(self, pair: Pair, now: Instant) -> None:
        """Compare with this pair from now on: data of its component goes over it."""
        if not self._on:
            return
        group = self._group(pair)
        before = group.used
        if before is not None and before.pair is pair:
            return
        used = group.members.get(pair)
        if used is None:
            used = group.members[pair] = _Watched(pair, now)
        if before is not None and before.pulse.overdue(now) >= dead_after(before.pulse):
            before.failures += 1
            before.streak = 0
        told, group.told = group.told, None
        if told is not None and told.pair is pair and told.reason is Reason.NEARER:
            group.hold = min(2 * group.hold, LONGEST_HOLD)
        group.hold_until = now + group.hold
        group.tell_after, group.tell_at = TELL_AGAIN, now
        group.used, group.since = used, now
        group.heard, group.used_sent = pair.packets_received, pair.packets_sent
        group.heard_at = now
        for watched in group.members.values():
            watched.ahead = 0
            watched.due = now + self._pause(group, watched)
        self._plan(now)

    def answered(self, pair: Pair, rtt: int, now: Instant) -> None:
        """Take a valid, authenticated answer on this pair, whoever asked."""
        group = self._groups.get((pair.stream, pair.component))
        watched = None if group is None else group.members.get(pair)
        if group is None or watched is None:
            return
        if watched.pulse.overdue(now):
            watched.streak = watched.ahead = 0
        watched.pulse.answered(rtt, now)
        watched.streak += 1
        used = group.used
        if watched is used:
            group.heard_at = now
            if watched.failures and now - group.since >= REDEEMED:
                watched.failures = 0
        elif used is not None:
            watched.ahead = watched.ahead + 1 if _is_nearer(watched.pulse, used.pulse) else 0
            watched.due = now + self._pause(group, watched)
        self._judge(group, now)
        self._plan(now)

    def lost(self, pair: Pair, now: Instant) -> None:
        """Forget this pair: it can be used no more."""
        group = self._groups.get((pair.stream, pair.component))
        if group is None or group.members.pop(pair, None) is None:
            return
        if group.used is not None and group.used.pair is pair:
            group.used = None
            for watched in group.members.values():
                watched.due = now
        if group.told is not None and group.told.pair is pair:
            group.told = None
        self._plan(now)

    # What it gives. -------------------------------------------------------------------------------

    def measured(self, pair: Pair) -> Measurement | None:
        """Return what is known of a pair, ``None`` if it is not watched."""
        group = self._groups.get((pair.stream, pair.component))
        watched = None if group is None else group.members.get(pair)
        if watched is None:
            return None
        pulse = watched.pulse
        return Measurement(pulse.rtt, pulse.variation, pulse.loss / WHOLE, pulse.answers)

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called; costs nothing."""
        return self._due

    def poll(self) -> Better | None:
        """Give the next advice, or ``None``."""
        return self._events.popleft() if self._events else None

    def on_deadline(self, now: Instant) -> None:
        """Ask whom it is time to ask, and judge."""
        if self._due is None or now < self._due:
            return
        for group in tuple(self._groups.values()):
            if group.used is None:
                self._without(group, now)
            elif len(group.members) > 1:
                self._look(group, group.used, now)
                self._judge(group, now)
        self._plan(now)

    # ----------------------------------------------------------------------------------------------

    def _group(self, pair: Pair) -> _Group:
        key = pair.stream, pair.component
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
        return group

    def _jittered(self, span: int) -> int:
        return span * 4 // 5 + span * 2 * int.from_bytes(self._entropy(2)) // (5 * 0xFFFF)

    def _pause(self, group: _Group, watched: _Watched) -> int:
        """How long to wait until this pair, not in use, is asked again."""
        used = group.used
        if (
            used is not None
            and watched.kind > used.kind
            and watched.streak < watched.is_trusted_after
            and not watched.failures
        ):
            return self._jittered(EAGER)
        everybody = sum(len(g.members) for g in self._groups.values())
        return self._jittered(max(self._interval, everybody * SHARE))

    def _ask(self, watched: _Watched, now: Instant) -> None:
        watched.pulse.asked(now)
        self.asked += 1
        self._probe(watched.pair, now)

    def _look(self, group: _Group, used: _Watched, now: Instant) -> None:
        """Ask the pair in use if there is reason to, and the others when it is their time."""
        group.observe(now)
        pulse = used.pulse
        overdue = pulse.overdue(now)
        if pulse.waiting:
            again = bool(overdue) and now >= self._again_at(pulse, overdue)
        else:
            answered = max(pulse.answered_at or 0, group.since, used.pair.answered or 0)
            again = now - answered >= UNANSWERED or (
                group.flows(now) and now - max(group.heard_at, answered) >= UNHEARD
            )
        if again:
            self._ask(used, now)
        others = group.others()
        if overdue and again:
            others.sort(key=_standing, reverse=True)
            for watched in others[:WITNESSES]:
                if not watched.pulse.waiting or watched.pulse.overdue(now):
                    watched.due = min(watched.due, now)
        for watched in others:
            if watched.due <= now:
                self._ask_other(group, watched, now)

    def _again_at(self, pulse: Pulse, overdue: int) -> Instant:
        """When a silent pair is asked again: twice in quick succession, then ever more seldom."""
        patience = pulse.patience
        dead = dead_after(pulse)
        if overdue < dead:
            return pulse.waiting[-1] + (patience // 2 if overdue else patience)
        return pulse.waiting[-1] + min(patience << (overdue - dead), self._interval)

    def _ask_other(self, group: _Group, watched: _Watched, now: Instant) -> None:
        self._ask(watched, now)
        pause = self._pause(group, watched)
        watched.due = now + max(pause, min(watched.pulse.patience, self._interval))

    def _judge(self, group: _Group, now: Instant) -> None:
        used = group.used
        if used is None or len(group.members) < 2:
            return
        overdue = used.pulse.overdue(now)
        if overdue >= dead_after(used.pulse):
            since = used.pulse.waiting[0]
            alive = [w for w in group.others() if _answers(w, since)]
            if alive:
                best = max(alive, key=_standing)
                took = (now - since) / SECOND
                why = (
                    f"it answers; the pair in use has not answered {overdue} checks in {took:.1f} s"
                )
                self._tell(group, Better(best.pair, why, Reason.ANSWERS), now)
            return
        trusted = [w for w in group.others() if w.kind > used.kind and _is_trusted(w, now)]
        if trusted:
            best = max(trusted, key=_standing)
            if best.pair.is_direct and not used.pair.is_direct:
                why, reason = "it is direct; the pair in use goes through a relay", Reason.DIRECT
            else:
                why, reason = "it is UDP; the pair in use is TCP", Reason.UDP
            self._tell(group, Better(best.pair, why, reason), now)
            return
        if now < group.hold_until:
            return
        nearer = [
            w
            for w in group.others()
            if w.kind == used.kind and w.ahead >= NEARER and _is_trusted(w, now)
        ]
        if nearer:
            best = min(nearer, key=lambda w: w.distance)
            theirs, ours = best.distance / MILLISECOND, used.distance / MILLISECOND
            why = f"it answers in {theirs:.0f} ms; the pair in use takes {ours:.0f} ms"
            self._tell(group, Better(best.pair, why, Reason.NEARER), now)

    def _without(self, group: _Group, now: Instant) -> None:
        """No pair is in use: any that has answered is better than none."""
        known = sorted(group.members.values(), key=_standing, reverse=True)
        best = next((w for w in known if not w.pulse.overdue(now)), None)
        if best is not None:
            why = "it answers; no pair is in use"
            self._tell(group, Better(best.pair, why, Reason.ANSWERS), now)
        for n, watched in enumerate(w for w in known if w.due <= now):
            if n < WITNESSES:
                self._ask_other(group, watched, now)
            else:
                watched.due = now + self._pause(group, watched)

    def _tell(self, group: _Group, better: Better, now: Instant) -> None:
        told = None if group.told is None else group.members.get(group.told.pair)
        if told is not None and now < group.tell_at and not told.pulse.overdue(now):
            return
        group.told = better
        group.tell_at = now + group.tell_after
        group.tell_after = min(2 * group.tell_after, LONGEST_HOLD)
        self._events.append(better)

    def _plan(self, now: Instant) -> None:
        due: Instant | None = None
        for group in self._groups.values():
            at = self._next(group, now)
            if at is not None and (due is None or at < due):
                due = at
        self._due = due

    def _next(self, group: _Group, now: Instant) -> Instant | None:
        used = group.used
        if used is None:
            # Not at once: whoever told that the pair is lost may have another one in mind.
            return min((max(w.due, now) for w in group.members.values()), default=None)
        if len(group.members) < 2:
            return None
        at = now + (FLOWING if group.flows(now) else IDLE)
        pulse = used.pulse
        if pulse.waiting:
            at = min(at, max(self._again_at(pulse, pulse.overdue(now)), now))
            fresh = (asked + pulse.patience for asked in pulse.waiting)
            at = min(at, *(overdue for overdue in fresh if overdue > now), at)
        return min(at, *(max(w.due, now) for w in group.others()))


def _standing(watched: _Watched) -> tuple[bool, int, int]:
    """Order pairs by what speaks for them, the best last."""
    return not watched.failures, watched.kind, -watched.distance


def _answers(watched: _Watched, since: Instant) -> bool:
    """Whether a pair has answered since then, as often as is asked of it."""
    at = watched.pulse.answered_at
    enough = watched.is_trusted_after if watched.failures else 1
    return at is not None and at > since and watched.streak >= enough


def _is_trusted(watched: _Watched, now: Instant) -> bool:
    return watched.streak >= watched.is_trusted_after and not watched.pulse.overdue(now)


def _is_nearer(one: Pulse, other: Pulse) -> bool:
    """Whether one is so much nearer than the other that it is no accident."""
    if one.rtt is None or other.rtt is None:
        return False
    gain = other.rtt - one.rtt
    return 10 * one.rtt < 7 * other.rtt and gain > max(MARGIN, one.variation + other.variation)
