"""When a pair is nominated, and what completes or fails a checklist."""

from __future__ import annotations

import pytest

from ice.candidate import CandidateType
from ice.checks import (
    ChecklistCompleted,
    ChecklistFailed,
    ChecklistState,
    Nominated,
    PairValid,
)
from ice.config import Config, Nomination
from ice.messages import NOMINATION
from ice.pair import PairState
from stun.attributes import USE_CANDIDATE
from stun.errors import UsageError
from stun.registry import Class
from stun.sansio import MILLISECOND, SECOND, Address
from tools.icestub import Bench, Sent

MS = MILLISECOND


def nominations(bench: Bench) -> list[tuple[str, float]]:
    """Return whom the checker nominated, and when, in milliseconds from the start."""
    return [
        (sent.remote.host, (sent.at - SECOND) / MS)
        for sent in bench.sent
        if sent.message.message_class is Class.REQUEST and sent.message.get(USE_CANDIDATE)
    ]


def requests(sent: list[Sent]) -> list[Sent]:
    return [s for s in sent if s.message.message_class is Class.REQUEST]


def with_candidates(*hosts: str, ended: bool = True, **values: object) -> Bench:
    """Have one base and remote candidates of falling priority, all sent to."""
    bench = Bench(Config(**values))  # type: ignore[arg-type]
    bench.host()
    bench.know_peer()
    for place, host in enumerate(hosts):
        bench.candidate(host, preference=9000 - place)
    if ended:
        bench.checker.end_of_local(bench.now)
        bench.checker.end_of_remote(bench.now)
    bench.advance()
    return bench


def check_to(bench: Bench, host: str) -> Sent:
    return next(s for s in requests(bench.sent) if s.remote.host == host)


# Nominating. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [True, False])
def test_the_best_pair_is_nominated_the_moment_it_is_valid(ended: bool) -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3", ended=ended)
    bench.answer(check_to(bench, "10.0.0.2"), after=7 * MS)
    assert nominations(bench) == [("10.0.0.2", 7)]


def test_a_better_pair_gets_two_round_trips_from_its_check_on() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3")
    bench.advance(50 * MS)
    # Round trip 40 ms; the better one was asked 90 ms ago: that has been time enough.
    bench.answer(check_to(bench, "10.0.0.3"), after=40 * MS)
    assert nominations(bench) == [("10.0.0.3", 90)]
    # Round trip 100 ms: the better one has until 200 ms after it was asked.
    bench = with_candidates("10.0.0.2", "10.0.0.3")
    bench.advance(50 * MS)
    bench.answer(check_to(bench, "10.0.0.3"), after=100 * MS)
    assert nominations(bench) == []
    bench.advance(100 * MS)
    assert nominations(bench) == [("10.0.0.3", 200)]


def test_who_wants_the_first_pair_waits_for_no_better_one() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3", nomination=Nomination.FIRST)
    bench.advance(50 * MS)
    bench.answer(check_to(bench, "10.0.0.3"), after=100 * MS)
    assert nominations(bench) == [("10.0.0.3", 150)]


def test_a_better_pair_on_which_the_peer_has_come_through_gets_the_time_once_more() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3")
    bench.advance(50 * MS)
    bench.answer(check_to(bench, "10.0.0.3"), after=100 * MS)
    bench.advance(30 * MS)
    for _ in range(5):
        bench.ask(bench.pair().base, bench.pair().remote_address)
    bench.advance(20 * MS)
    assert nominations(bench) == []
    # The check that this triggered was sent at 180 ms; but it comes to nothing.
    bench.advance(179 * MS)
    assert nominations(bench) == []
    bench.advance(MS)
    assert nominations(bench) == [("10.0.0.3", 380)]


def test_a_better_pair_that_answers_in_time_is_nominated_at_once() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3")
    bench.advance(50 * MS)
    bench.answer(check_to(bench, "10.0.0.3"), after=100 * MS)
    bench.answer(check_to(bench, "10.0.0.2"), after=20 * MS)
    bench.advance(SECOND)
    assert nominations(bench)[0] == ("10.0.0.2", 170)


def test_when_the_better_pairs_have_failed_nothing_is_waited_for() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3")
    bench.advance(50 * MS)
    bench.answer(check_to(bench, "10.0.0.3"), after=300 * MS)
    assert nominations(bench) == []
    bench.refuse(check_to(bench, "10.0.0.2"), 400)
    assert nominations(bench) == [("10.0.0.3", 350)]


def test_a_better_pair_that_fails_after_it_was_begun_anew_is_waited_for_no_longer() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3")
    bench.advance(1500 * MS)
    # The worse one answers, but the better one is begun anew by a check of the peer.
    better, worse = check_to(bench, "10.0.0.2"), check_to(bench, "10.0.0.3")
    bench.ask(better.base, better.remote)
    bench.advance(MS)
    bench.answer(worse, after=MS)
    assert nominations(bench) == []
    bench.advance(0)
    for _ in range(3):
        bench.checker.path_unreachable(better.base, better.remote, bench.now)
    assert nominations(bench) == []
    bench.refuse(next(s for s in requests(bench.sent)[::-1] if s.remote == better.remote), 400)
    assert nominations(bench) == [("10.0.0.3", 1502)]


def test_checks_that_are_still_to_be_sent_are_waited_for() -> None:
    bench = with_candidates("10.0.0.3", ended=False)
    for place in range(3):
        bench.candidate(f"10.0.1.{place}", preference=9900 - place)
    bench.answer(check_to(bench, "10.0.0.3"), after=10 * MS)
    assert nominations(bench) == []
    bench.advance(SECOND)
    # Three more of them at 50, 100 and 150 ms, as reckoned at 10 ms; and two round trips.
    assert nominations(bench)[0] == ("10.0.0.3", 180)


def test_a_relay_waits_for_a_direct_way_that_may_yet_be_told() -> None:
    bench = Bench()
    bench.host(relay="turn:relay.example")
    bench.know_peer()
    bench.candidate("192.0.2.9", kind=CandidateType.RELAYED)
    bench.advance()
    bench.answer(bench.sent[0], after=50 * MS)
    assert nominations(bench) == []
    bench.advance(149 * MS)
    assert nominations(bench) == []
    bench.advance(1 * MS)
    assert nominations(bench) == [("192.0.2.9", 200)]


@pytest.mark.parametrize("side", ["local", "remote"])
def test_a_relay_waits_while_either_side_may_have_more(side: str) -> None:
    bench = Bench()
    bench.host(relay="turn:relay.example")
    bench.know_peer()
    bench.candidate("192.0.2.9", kind=CandidateType.RELAYED)
    if side == "local":
        bench.checker.end_of_local(bench.now)
    else:
        bench.checker.end_of_remote(bench.now)
    bench.advance()
    bench.answer(bench.sent[0], after=50 * MS)
    assert nominations(bench) == []
    # Now all is told.
    bench.checker.end_of_local(bench.now)
    bench.checker.end_of_remote(bench.now)
    assert nominations(bench) == [("192.0.2.9", 50)]


def test_a_relay_that_is_all_there_will_be_is_nominated_at_once() -> None:
    bench = Bench()
    bench.host(relay="turn:relay.example")
    bench.know_peer()
    bench.candidate("192.0.2.9", kind=CandidateType.RELAYED)
    bench.checker.end_of_local(bench.now)
    bench.checker.end_of_remote(bench.now)
    bench.advance()
    bench.answer(bench.sent[0], after=50 * MS)
    assert nominations(bench) == [("192.0.2.9", 50)]


def test_the_wait_is_bounded() -> None:
    bench = Bench()
    bench.host(relay="turn:relay.example")
    bench.know_peer()
    bench.candidate("192.0.2.9", kind=CandidateType.RELAYED)
    bench.advance()
    # Three round trips of 490 ms would be longer than a second.
    bench.answer(bench.sent[0], after=490 * MS)
    bench.advance(999 * MS)
    assert nominations(bench) == []
    bench.advance(1 * MS)
    assert nominations(bench) == [("192.0.2.9", 1490)]


def test_without_a_measured_round_trip_half_the_rto_stands_for_it() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3")
    bench.advance(50 * MS)
    bench.answer(check_to(bench, "10.0.0.3"), after=510 * MS)
    assert bench.checker.valid_pairs(0, 1)[0].rtt is None
    # The better one was asked first 560 ms ago, and twice 250 ms are over.
    assert nominations(bench) == [("10.0.0.3", 560)]


def test_each_component_is_nominated_by_itself() -> None:
    bench = Bench(Config(components=2))
    for component in (1, 2):
        bench.host(port=5000 + component, component=component)
    bench.know_peer()
    for component in (1, 2):
        bench.candidate(port=6000 + component, component=component)
    (first,) = bench.advance()
    bench.answer(first)
    # "MUST set the states for all other Frozen candidate pairs [...] with the same foundation".
    second = requests(bench.advance(50 * MS))[-1]
    assert second.remote.port == 6002
    bench.answer(bench.sent[1])
    assert bench.told(ChecklistCompleted) == []
    bench.answer(second)
    bench.answer(bench.sent[-1])
    assert bench.told(ChecklistCompleted) == [ChecklistCompleted(0)]
    assert {pair.component for pair in bench.checker.pairs() if pair.nominated} == {1, 2}


def test_a_component_that_the_peer_does_not_have_is_not_waited_for() -> None:
    bench = Bench(Config(components=2))
    for component in (1, 2):
        bench.host(port=5000 + component, component=component)
    bench.know_peer()
    bench.candidate()
    bench.advance()
    bench.answer(bench.sent[0])
    bench.answer(bench.sent[1])
    assert bench.checker.state(0) is ChecklistState.RUNNING
    bench.checker.end_of_remote(bench.now)
    assert bench.told(ChecklistCompleted) == [ChecklistCompleted(0)]


# Nominating again. --------------------------------------------------------------------------------


def two_valid() -> Bench:
    bench = with_candidates("10.0.0.2", "10.0.0.3")
    bench.advance(50 * MS)
    bench.answer(check_to(bench, "10.0.0.2"), after=MS)
    bench.answer(check_to(bench, "10.0.0.3"), after=MS)
    bench.answer(next(s for s in bench.sent if s.message.get(USE_CANDIDATE)), after=MS)
    return bench


def test_another_pair_is_nominated_on_demand_and_numbered() -> None:
    bench = two_valid()
    first, second = bench.checker.pairs()
    assert bench.checker.selected(0, 1) is first
    bench.checker.nominate(second, bench.now)
    message = bench.sent[-1].message
    assert dict(message.attributes)[NOMINATION] == b"\0\0\0\2"
    # Until the peer has agreed nothing changes.
    assert bench.checker.selected(0, 1) is first
    before = len(bench.sent)
    bench.checker.nominate(second, bench.now)
    assert len(bench.sent) == before
    bench.answer(bench.sent[-1])
    assert bench.checker.selected(0, 1) is second
    assert (first.nominated, second.nominated) == (False, True)
    assert bench.told(Nominated) == [Nominated(first), Nominated(second)]
    # And back again: another number, though it was nominated before.
    bench.checker.nominate(first, bench.now)
    assert dict(bench.sent[-1].message.attributes)[NOMINATION] == b"\0\0\0\3"
    bench.answer(bench.sent[-1])
    assert bench.checker.selected(0, 1) is first


def test_the_answer_to_an_overtaken_nomination_changes_nothing() -> None:
    bench = two_valid()
    first, second = bench.checker.pairs()
    bench.checker.nominate(second, bench.now)
    overtaken = bench.sent[-1]
    bench.checker.nominate(first, bench.now)
    bench.answer(bench.sent[-1])
    bench.answer(overtaken)
    assert bench.checker.selected(0, 1) is first


def test_when_another_nomination_comes_to_nothing_the_selected_pair_is_nominated_anew() -> None:
    # The peer may have taken it, and only its answers have been lost.
    bench = two_valid()
    first, second = bench.checker.pairs()
    bench.checker.nominate(second, bench.now)
    bench.refuse(bench.sent[-1], 500)
    again = bench.sent[-1]
    assert again.remote == first.remote_address
    assert dict(again.message.attributes)[NOMINATION] == b"\0\0\0\3"
    assert bench.checker.selected(0, 1) is first
    bench.answer(again)
    assert bench.checker.selected(0, 1) is first
    assert bench.advance(60 * SECOND) == []


def test_a_nomination_anew_that_is_not_answered_fails_nothing() -> None:
    bench = two_valid()
    first, second = bench.checker.pairs()
    bench.checker.nominate(second, bench.now)
    bench.refuse(bench.sent[-1], 500)
    bench.advance(60 * SECOND)
    # Whether it still works is for consent to find out; it can be nominated again at any time.
    assert bench.checker.selected(0, 1) is first
    assert first.valid
    assert bench.checker.deadline() is None
    bench.checker.lost(first, "no consent", bench.now)
    assert bench.checker.selected(0, 1) is None


def test_nominating_what_is_selected_is_nothing() -> None:
    bench = two_valid()
    before = len(bench.sent)
    bench.checker.nominate(bench.pair(), bench.now)
    assert len(bench.sent) == before


def test_only_valid_pairs_are_nominated_and_only_by_the_controlling_agent() -> None:
    bench = with_candidates("10.0.0.2")
    with pytest.raises(UsageError, match="not valid"):
        bench.checker.nominate(bench.pair(), bench.now)
    bench = Bench(controlling=False)
    _, pair = bench.connected()
    with pytest.raises(UsageError, match="only the controlling"):
        bench.checker.nominate(pair, bench.now)


def test_when_the_selected_pair_is_lost_the_next_valid_one_is_nominated() -> None:
    bench = two_valid()
    first, second = bench.checker.pairs()
    bench.checker.lost(first, "consent was lost", bench.now)
    assert not first.valid
    assert bench.sent[-1].remote == second.remote_address
    assert bench.sent[-1].message.get(USE_CANDIDATE) is True
    bench.answer(bench.sent[-1])
    assert bench.checker.selected(0, 1) is second
    assert bench.checker.state(0) is ChecklistState.COMPLETED
    assert len(bench.told(ChecklistCompleted)) == 2


def test_what_was_stopped_goes_on_when_the_selected_pair_is_lost() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3", "10.0.0.4", monitor=False)
    bench.answer(check_to(bench, "10.0.0.2"), after=MS)
    bench.answer(bench.sent[-1], after=MS)
    assert requests(bench.advance(10 * SECOND)) == []
    first = bench.pair()
    bench.checker.lost(first, "consent was lost", bench.now)
    hosts = [s.remote.host for s in requests(bench.advance(50 * MS))]
    assert hosts == ["10.0.0.3", "10.0.0.4"]


def test_after_the_nomination_no_other_pair_is_checked_without_a_monitor() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3", "10.0.0.4", monitor=False)
    bench.advance(100 * MS)
    bench.answer(check_to(bench, "10.0.0.3"), after=MS)
    bench.advance(5 * MS)
    (nomination,) = [s for s in bench.sent if s.message.get(USE_CANDIDATE)]
    bench.answer(nomination)
    # "the agent will not retransmit the Binding requests" (8.1.2), and nobody fails for it.
    assert requests(bench.advance(60 * SECOND)) == []
    assert [pair.state for pair in bench.checker.pairs()] == [
        PairState.FROZEN,
        PairState.SUCCEEDED,
        PairState.FROZEN,
    ]


def test_valid_pairs_stay_what_they_are_when_another_one_is_nominated() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3", monitor=False)
    bench.advance(50 * MS)
    bench.answer(check_to(bench, "10.0.0.2"), after=MS)
    bench.answer(check_to(bench, "10.0.0.3"), after=MS)
    bench.answer(next(s for s in bench.sent if s.message.get(USE_CANDIDATE)))
    first, second = bench.checker.pairs()
    assert first.nominated
    assert bench.checker.valid_pairs(0, 1) == [first, second]
    assert not second.parked  # type: ignore[attr-defined]


def test_nominating_a_pair_that_is_gone_is_nothing() -> None:
    bench = two_valid()
    second = list(bench.checker.pairs())[1]
    bench.checker.base_lost(second.base, bench.now)
    before = len(bench.sent)
    bench.checker.nominate(second, bench.now)
    bench.checker.lost(second, "gone", bench.now)
    assert len(bench.sent) == before


def test_a_late_answer_to_a_stopped_check_makes_its_pair_valid() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3", monitor=False)
    bench.advance(50 * MS)
    first, second = check_to(bench, "10.0.0.2"), check_to(bench, "10.0.0.3")
    bench.answer(second, after=100 * MS)
    bench.advance(200 * MS)
    bench.answer(next(s for s in bench.sent if s.message.get(USE_CANDIDATE)))
    bench.answer(first)
    assert [pair.valid for pair in bench.checker.pairs()] == [True, True]
    assert bench.checker.selected(0, 1) is list(bench.checker.pairs())[1]


# Completing and failing. --------------------------------------------------------------------------


def test_a_hopeless_checklist_fails_when_its_last_check_does() -> None:
    bench = with_candidates("10.0.0.2", "10.0.0.3", "10.0.0.4")
    bench.advance(39_599 * MS)
    assert bench.told(ChecklistFailed) == []
    bench.advance(MS)
    (failed,) = bench.told(ChecklistFailed)
    assert failed == ChecklistFailed(0, "component 1: all 3 pairs failed")
    assert bench.checker.state(0) is ChecklistState.FAILED
    assert bench.checker.deadline() is None


def test_several_components_do_not_fail_one_after_the_other() -> None:
    bench = Bench(Config(components=4))
    for component in range(1, 5):
        bench.host(port=5000 + component, component=component)
    bench.know_peer()
    for component in range(1, 5):
        bench.candidate(port=6000 + component, component=component)
    bench.checker.end_of_local(bench.now)
    bench.checker.end_of_remote(bench.now)
    bench.advance(50 * SECOND)
    assert len(bench.told(ChecklistFailed)) == 1


@pytest.mark.parametrize("ending", ["neither", "local", "remote"])
def test_a_checklist_does_not_fail_before_both_sides_have_told_all(ending: str) -> None:
    # RFC 8838 section 8.
    bench = with_candidates("10.0.0.2", ended=False)
    if ending == "local":
        bench.checker.end_of_local(bench.now)
    if ending == "remote":
        bench.checker.end_of_remote(bench.now)
    bench.advance(300 * SECOND)
    assert bench.told(ChecklistFailed) == []
    bench.checker.end_of_local(bench.now)
    bench.checker.end_of_remote(bench.now)
    assert len(bench.told(ChecklistFailed)) == 1


def test_a_checklist_has_patience_though_all_its_pairs_have_failed() -> None:
    # RFC 8863: the peer may find this side though this side does not find the peer.
    bench = with_candidates("10.0.0.2")
    bench.refuse(bench.sent[0], 400)
    assert bench.pair().state is PairState.FAILED
    bench.advance(39_499 * MS)
    assert bench.told(ChecklistFailed) == []
    bench.advance(MS)
    assert len(bench.told(ChecklistFailed)) == 1


def test_a_checklist_without_any_pair_fails_after_the_patience_and_says_why() -> None:
    bench = with_candidates()
    bench.advance(40 * SECOND)
    assert bench.told(ChecklistFailed) == [ChecklistFailed(0, "the peer has no candidates")]
    bench = with_candidates("2001:db8::2")
    bench.advance(40 * SECOND)
    (failed,) = bench.told(ChecklistFailed)
    assert "no candidate of the peer goes with one of this side" in failed.why  # type: ignore[union-attr]


def test_a_failed_checklist_is_revived_by_a_check_of_the_peer() -> None:
    bench = with_candidates("10.0.0.2")
    bench.advance(40 * SECOND)
    assert bench.checker.state(0) is ChecklistState.FAILED
    base, remote = bench.pair().base, bench.pair().remote_address
    bench.ask(base, remote)
    assert bench.checker.state(0) is ChecklistState.RUNNING
    (check,) = requests(bench.advance())
    bench.answer(check)
    bench.answer(bench.sent[-1])
    assert bench.checker.state(0) is ChecklistState.COMPLETED


def test_a_valid_pair_that_is_not_nominated_keeps_the_checklist_running() -> None:
    bench = Bench(controlling=False)
    bench.host()
    bench.know_peer()
    bench.candidate()
    bench.checker.end_of_local(bench.now)
    bench.checker.end_of_remote(bench.now)
    bench.advance()
    bench.answer(bench.sent[0])
    bench.advance(600 * SECOND)
    assert bench.checker.state(0) is ChecklistState.RUNNING
    assert bench.told(ChecklistFailed) == []


def test_streams_complete_and_fail_by_themselves() -> None:
    bench = Bench(Config(streams=2))
    for stream in (0, 1):
        bench.host(port=5000 + stream, stream=stream)
    bench.know_peer()
    for stream in (0, 1):
        bench.candidate(port=6000 + stream, stream=stream)
    bench.checker.end_of_local(bench.now)
    bench.checker.end_of_remote(bench.now)
    bench.advance()
    bench.answer(bench.sent[0])
    bench.answer(bench.sent[1])
    assert bench.told(ChecklistCompleted) == [ChecklistCompleted(0)]
    bench.advance(60 * SECOND)
    assert [e.stream for e in bench.told(ChecklistFailed)] == [1]  # type: ignore[union-attr]


# Both lite. ---------------------------------------------------------------------------------------


def test_two_lite_agents_use_the_best_pair_unchecked_once_all_is_told() -> None:
    bench = Bench(Config(lite=True))
    bench.host()
    bench.know_peer(lite=True)
    bench.candidate("192.0.2.2", preference=1)
    bench.candidate("192.0.2.3", preference=2)
    bench.checker.end_of_local(bench.now)
    assert bench.told(PairValid) == []
    bench.checker.end_of_remote(bench.now)
    (nominated,) = bench.told(Nominated)
    assert nominated.pair.remote_address == Address("192.0.2.3", 6000)  # type: ignore[union-attr]
    assert bench.told(ChecklistCompleted) == [ChecklistCompleted(0)]
    assert bench.advance(60 * SECOND) == []


def test_two_lite_agents_without_a_pair_fail() -> None:
    bench = Bench(Config(lite=True))
    bench.host()
    bench.know_peer(lite=True)
    bench.checker.end_of_local(bench.now)
    bench.checker.end_of_remote(bench.now)
    bench.advance(40 * SECOND)
    assert len(bench.told(ChecklistFailed)) == 1


def test_a_lite_agent_with_a_full_peer_waits_for_ever() -> None:
    bench = Bench(Config(lite=True), controlling=False)
    bench.host()
    bench.know_peer()
    bench.checker.end_of_local(bench.now)
    bench.checker.end_of_remote(bench.now)
    bench.advance(600 * SECOND)
    assert bench.told(ChecklistFailed) == []
