"""Consent: thirty seconds by time, whatever the round trip; keepalives where none is asked for."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.base import Base
from ice.candidate import Candidate, CandidateType
from ice.config import Config
from ice.consent import (
    EXPIRED,
    REVOKED,
    Consent,
    ConsentEvent,
    ConsentLost,
    ConsentRecovered,
    ConsentShaky,
)
from ice.pair import Pair
from stun.codec import decode
from stun.registry import AttributeType, Class, Method
from stun.sansio import MILLISECOND, SECOND, Address, Instant

START = 1000 * SECOND


def make_pair(component: int = 1, stream: int = 0, *, relay: str = "") -> Pair:
    base = Base(1, stream, component, "udp", Address("10.0.0.1", 5000), relay=relay)
    local = Candidate("1", component, "udp", 1, "10.0.0.1", 5000, CandidateType.HOST)
    remote = Candidate("2", component, "udp", 1, "192.0.2.2", 6000, CandidateType.HOST)
    return Pair(local, base, remote, 1)


class Play:
    """A consent machine in virtual time, and a peer whose answers take ``rtt(now)``.

    ``rtt`` gives nanoseconds, or ``None`` for an answer that never comes.
    """

    def __init__(
        self, rtt: Callable[[Instant], int | None], seed: int = 1, config: Config | None = None
    ) -> None:
        self.now = START
        self.rtt = rtt
        self.asked: list[Instant] = []
        self.indications: list[tuple[Instant, Base, Address, bytes]] = []
        self.events: list[tuple[Instant, ConsentEvent]] = []
        self._answers: list[tuple[Instant, int, int, Pair]] = []
        self._numbers = 0
        self.consent = Consent(
            config or Config(), entropy=random.Random(seed).randbytes, probe=self.probe,
            send=lambda base, remote, data, now: self.indications.append((now, base, remote, data)),
        )  # fmt: skip

    def probe(self, pair: Pair, now: Instant) -> None:
        assert now == self.now
        self.asked.append(now)
        rtt = self.rtt(now)
        if rtt is not None:
            self._numbers += 1
            heapq.heappush(self._answers, (now + rtt, self._numbers, rtt, pair))

    def run(self, span: int) -> None:
        until = self.now + span
        while True:
            due = self.consent.deadline()
            answer = self._answers[0][0] if self._answers else None
            at = min((t for t in (due, answer) if t is not None), default=until + 1)
            if at > until:
                break
            self.now = max(self.now, at)
            at = self.now
            if answer is not None and answer <= at:
                _, _, rtt, pair = heapq.heappop(self._answers)
                pair.answered = at
                self.consent.answered(pair, rtt, at)
            else:
                self.consent.on_deadline(at)
                after = self.consent.deadline()
                assert after is None or after > at, "it would spin"
            self.drain()
        self.now = until

    def drain(self) -> None:
        while (event := self.consent.poll()) is not None:
            self.events.append((self.now, event))

    def select(self, pair: Pair) -> Pair:
        if pair.answered is None:
            pair.answered = self.now
        self.consent.select(pair, self.now)
        return pair


def gaps(times: list[Instant]) -> list[int]:
    return [later - earlier for earlier, later in pairwise(times)]


def test_the_period_is_4_to_6_seconds_and_random() -> None:
    play = Play(lambda now: 20 * MILLISECOND)
    pair = play.select(make_pair())
    play.run(1000 * SECOND)
    found = gaps(play.asked)
    assert all(4 * SECOND <= gap <= 6 * SECOND for gap in found)
    assert min(found) < 4.3 * SECOND
    assert max(found) > 5.7 * SECOND
    assert not play.events
    assert pair.consent_requests_sent == len(play.asked)


@pytest.mark.parametrize("milliseconds", [0, 1, 200, 600, 1500, 3000, 9000])
def test_a_slow_path_is_a_healthy_path(milliseconds: int) -> None:
    play = Play(lambda now: milliseconds * MILLISECOND)
    pair = make_pair()
    pair.rtt = milliseconds * MILLISECOND
    play.select(pair)
    play.run(600 * SECOND)
    assert not play.events
    assert all(gap >= 4 * SECOND for gap in gaps(play.asked))
    assert play.consent.holds(pair, play.now)


@given(seed=st.integers(0, 1 << 32), low=st.integers(0, 3000), high=st.integers(0, 3000))
def test_no_round_trip_time_of_up_to_3_seconds_ever_closes(seed: int, low: int, high: int) -> None:
    rng = random.Random(seed)
    low, high = sorted((low, high))
    play = Play(lambda now: rng.randint(low, high) * MILLISECOND, seed)
    pair = play.select(make_pair())
    play.run(300 * SECOND)
    assert not any(isinstance(event, ConsentLost) for _, event in play.events)
    assert play.consent.holds(pair, play.now)


@given(seed=st.integers(0, 1 << 32))
def test_half_of_all_answers_lost_does_not_close(seed: int) -> None:
    # Of the period's own questions six fit in 30 seconds; with those in a hurry eight in a row may
    # be lost, whenever it begins.
    rng = random.Random(seed)
    lossy = [rng.random() < 0.5 for _ in range(1000)]
    lossy[8::9] = [False] * len(lossy[8::9])
    play = Play(lambda now: None if lossy.pop() else 80 * MILLISECOND, seed)
    play.select(make_pair())
    play.run(200 * SECOND)
    assert not any(isinstance(event, ConsentLost) for _, event in play.events)


def test_death_is_known_early_and_declared_at_30_seconds() -> None:
    dead_from = START + 60 * SECOND
    play = Play(lambda now: 50 * MILLISECOND if now < dead_from else None)
    pair = play.select(make_pair())
    play.run(60 * SECOND)
    last = pair.answered
    assert last is not None
    play.run(60 * SECOND)
    assert [type(event) for _, event in play.events] == [ConsentShaky, ConsentLost]
    (shaky_at, shaky), (lost_at, lost) = play.events
    assert isinstance(shaky, ConsentShaky)
    assert isinstance(lost, ConsentLost)
    assert shaky.unanswered == 3
    assert shaky_at - last <= 6 * SECOND + 3 * 500 * MILLISECOND
    assert lost_at == last + 30 * SECOND
    assert (lost.silence, lost.why) == (30 * SECOND, EXPIRED)
    assert not play.consent.holds(pair, lost_at)
    # From the first overdue answer on they come quickly, then ever more slowly, then as usual.
    asked = [at for at in play.asked if at >= last]
    assert gaps(asked)[:4] == [500 * MILLISECOND] * 3 + [1000 * MILLISECOND]
    assert max(gaps(asked)) <= 6 * SECOND
    # Nothing is asked once it is lost.
    assert asked[-1] < lost_at
    assert play.consent.deadline() is None


def test_until_the_last_moment_it_holds() -> None:
    play = Play(lambda now: None)
    pair = play.select(make_pair())
    play.run(30 * SECOND - 1)
    assert play.consent.holds(pair, play.now)
    play.run(1)
    assert not play.consent.holds(pair, play.now)
    assert isinstance(play.events[-1][1], ConsentLost)


def test_one_answer_in_time_is_enough_whichever_question_it_answers() -> None:
    """RFC 7675 section 5.1: "a response might be for a previous request"."""
    play = Play(lambda now: None)
    pair = play.select(make_pair())
    play.run(29 * SECOND)
    first = play.asked[0]
    assert len(play.asked) > 5
    pair.answered = play.now
    play.consent.answered(pair, play.now - first, play.now)
    play.drain()
    _, event = play.events[-1]
    assert event == ConsentRecovered(pair, 29 * SECOND)
    play.run(25 * SECOND)
    assert not any(isinstance(event, ConsentLost) for _, event in play.events)
    play.run(5 * SECOND)
    assert play.events[-1][0] == START + 59 * SECOND
    assert isinstance(play.events[-1][1], ConsentLost)


def test_an_answer_after_expiry_does_not_bring_it_back() -> None:
    play = Play(lambda now: 30 * SECOND + 1)
    pair = make_pair()
    play.select(pair)
    play.run(40 * SECOND)
    assert isinstance(play.events[-1][1], ConsentLost)
    assert not play.consent.holds(pair, play.now)


def test_an_answer_that_comes_with_the_deadline_is_too_late() -> None:
    play = Play(lambda now: None)
    pair = play.select(make_pair())
    play.run(30 * SECOND - 1)
    late = START + 30 * SECOND
    play.consent.answered(pair, SECOND, late)
    assert not play.consent.holds(pair, late)
    play.run(1)
    assert isinstance(play.events[-1][1], ConsentLost)


def test_a_pair_that_has_answered_again_may_be_selected_again() -> None:
    play = Play(lambda now: None)
    pair = play.select(make_pair())
    play.run(40 * SECOND)
    assert isinstance(play.events[-1][1], ConsentLost)
    play.consent.select(pair, play.now)  # not yet: its last answer is too old
    play.run(0)
    assert len([1 for _, event in play.events if isinstance(event, ConsentLost)]) == 2
    pair.answered = play.now
    play.rtt = lambda now: MILLISECOND
    play.consent.select(pair, play.now)
    play.run(100 * SECOND)
    assert play.consent.holds(pair, play.now)


def test_revocation_is_immediate() -> None:
    """RFC 7675 section 5.2: 403 (Forbidden)."""
    play = Play(lambda now: MILLISECOND)
    pair = play.select(make_pair())
    play.run(7 * SECOND)
    play.consent.revoked(pair, play.now)
    play.drain()
    (_, event) = play.events[-1]
    assert isinstance(event, ConsentLost)
    assert event.why == REVOKED
    assert not play.consent.holds(pair, play.now)
    asked = len(play.asked)
    play.run(60 * SECOND)
    assert len(play.asked) == asked


def test_time_since_the_last_check_counts_when_selected() -> None:
    play = Play(lambda now: None)
    pair = make_pair()
    pair.answered = START - 20 * SECOND
    play.consent.select(pair, START)
    play.run(9 * SECOND)
    assert play.consent.holds(pair, play.now)
    assert play.asked[0] == START, "it was not asked for longer than a period"
    play.run(1 * SECOND)
    assert not play.consent.holds(pair, play.now)


def test_each_component_has_a_pair_and_another_one_takes_its_place() -> None:
    play = Play(lambda now: MILLISECOND)
    first, second, other = make_pair(1), make_pair(2), make_pair(1)
    play.select(first)
    play.select(second)
    assert play.consent.pairs() == [first, second]
    play.select(other)
    assert play.consent.pairs() == [other, second]
    assert not play.consent.holds(first, play.now)
    play.consent.revoked(first, play.now)
    play.consent.release(first, play.now)
    play.consent.answered(first, 1, play.now)
    assert play.consent.pairs() == [other, second]
    play.consent.release(other, play.now)
    play.consent.release(second, play.now)
    assert play.consent.deadline() is None
    play.drain()
    assert not play.events


def test_a_clock_that_jumps_does_not_make_a_burst() -> None:
    play = Play(lambda now: None)
    pair = play.select(make_pair())
    play.now += 25 * SECOND
    play.consent.on_deadline(play.now)
    assert len(play.asked) == 1
    assert play.consent.holds(pair, play.now)


def test_an_early_deadline_does_nothing() -> None:
    play = Play(lambda now: None)
    play.select(make_pair())
    due = play.consent.deadline()
    assert due is not None
    play.consent.on_deadline(due - 1)
    assert not play.asked
    assert play.consent.deadline() == due


@pytest.mark.parametrize("config", [Config(consent=False), Config(lite=True)])
def test_without_consent_there_are_keepalives(config: Config) -> None:
    """RFC 8445 section 11."""
    play = Play(lambda now: None, config=config)
    pair = play.select(make_pair())
    play.run(65 * SECOND)
    assert not play.asked
    assert [at for at, *_ in play.indications] == [START + n * 15 * SECOND for n in (1, 2, 3, 4)]
    _, base, remote, data = play.indications[0]
    assert (base, remote) == (pair.base, pair.remote_address)
    message = decode(data)
    assert (message.method, message.message_class) == (Method.BINDING, Class.INDICATION)
    assert [code for code, _ in message.attributes] == [AttributeType.FINGERPRINT]
    assert len({decode(data).transaction_id for *_, data in play.indications}) == 4
    assert play.consent.holds(pair, play.now)
    # Nobody is asked, so nobody can fail to answer.
    play.consent.answered(pair, 1, play.now)
    play.consent.revoked(pair, play.now)
    play.run(600 * SECOND)
    assert not play.events


def test_data_counts_as_a_keepalive() -> None:
    play = Play(lambda now: None, config=Config(consent=False))
    pair = play.select(make_pair())
    for _ in range(10):
        play.run(10 * SECOND)
        play.consent.sent(pair, play.now)
    assert not play.indications
    play.consent.sent(pair, START)  # an older one changes nothing
    play.run(15 * SECOND - 1)
    assert not play.indications
    play.run(1)
    assert len(play.indications) == 1


def test_where_consent_is_asked_for_there_are_no_keepalives() -> None:
    play = Play(lambda now: MILLISECOND)
    play.select(make_pair())
    play.run(300 * SECOND)
    assert not play.indications
