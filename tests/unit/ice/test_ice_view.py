"""What is remembered for explanations."""

from __future__ import annotations

from typing import Any

import pytest

from ice.base import Base
from ice.candidate import Candidate, CandidateType
from ice.config import Config, Credentials
from ice.events import (
    AgentEvent,
    AgentState,
    CandidateNotGathered,
    Connected,
    ConsentLost,
    Disconnected,
    Failed,
    GatheringComplete,
    LocalCandidate,
    RemoteCandidate,
    Restarted,
    RestartNeeded,
    RoleChanged,
    Selected,
    StateChanged,
    Why,
)
from ice.explain import explain
from ice.machine import AgentMachine
from ice.pair import Pair
from ice.view import MOST_CANDIDATES, MOST_NOTES, AgentView
from stun.sansio import Address

HERE, THERE = Address("192.0.2.1", 1000), Address("192.0.2.2", 2000)


def candidate(address: Address = HERE) -> Candidate:
    return Candidate("1", 1, "udp", 1, *address, CandidateType.HOST)


PAIR = Pair(candidate(), Base(1, 0, 1, "udp", HERE), candidate(THERE), 1)
PATH = "host 192.0.2.1:1000 -> host 192.0.2.2:2000"


@pytest.fixture
def view() -> AgentView:
    return AgentView(AgentMachine(Config(), controlling=True, entropy=bytes))


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (GatheringComplete(), "all candidates are gathered"),
        (Connected(PAIR), f"data may pass on {PATH}"),
        (Selected(PAIR, None, Why.NOMINATED, nominated=True), f"data goes over {PATH}: nominated"),
        (ConsentLost(PAIR), f"consent was lost on {PATH}"),
        (Disconnected(0, 1, "gone"), "component 1 has no pair: gone"),
        (RoleChanged(controlling=True), "a role conflict was settled: this side is controlling"),
        (StateChanged(AgentState.FAILED, "no answer"), "failed: no answer"),
        (StateChanged(AgentState.CHECKING), "checking"),
        (RestartNeeded("too late"), "a restart is needed: too late"),
        (
            Restarted(Credentials("abcd", "x" * 22), 1, by_peer=True),
            "restarted by the peer: generation 1",
        ),
        (
            Restarted(Credentials("abcd", "x" * 22), 2, by_peer=False),
            "restarted by this side: generation 2",
        ),
    ],
)
def test_what_happened_is_told_in_words(view: AgentView, event: AgentEvent, words: str) -> None:
    view.take(event, 5)
    assert view.events[-1].what.startswith(words)
    assert view.events[-1].at == 5


def test_candidates_of_both_sides(view: AgentView) -> None:
    view.told(candidate(THERE), 0, 3)
    view.start(10)
    view.take(LocalCandidate(candidate(), server="stun:x"), 11)
    view.take(RemoteCandidate(candidate(THERE)), 12)
    view.take(CandidateNotGathered(0, 1, "stun:y", "no answer"), 13)
    view.told(None, 0, 14)
    assert [(each.at, each.server) for each in view.local] == [(11, "stun:x")]
    assert [(each.at, each.learned) for each in view.remote] == [(10, False), (12, True)]
    assert [(each.at, each.why) for each in view.missing] == [(13, "no answer")]
    assert view.has_all_remote
    view.take(Restarted(Credentials("abcd", "x" * 22), 1, by_peer=False), 15)
    assert view.local == view.remote == view.missing == []
    assert not view.has_all_remote


def test_a_failure_until_there_is_a_pair(view: AgentView) -> None:
    view.take(Failed(0, 1, "no answer"), 1)
    assert view.failure == "no answer"
    view.take(Connected(PAIR), 2)
    assert view.failure == ""


def test_memory_is_bounded(view: AgentView) -> None:
    for number in range(1000):
        told: Any = candidate(Address("192.0.2.9", number))
        view.told(told, 0, number)
        view.take(LocalCandidate(told), number)
        view.take(CandidateNotGathered(0, 1, "x", "y"), number)
        view.take(StateChanged(AgentState.CHECKING, str(number)), number)
    assert len(view.remote) == len(view.local) == len(view.missing) == MOST_CANDIDATES
    assert len(view.events) == MOST_NOTES
    assert (view.events[0].at, view.events[-1].at) == (0, 999)


def test_the_machine_is_seen_through_it(view: AgentView) -> None:
    assert view.role == "controlling"
    assert view.generation == 0
    assert view.pairs == []
    assert view.selected == {}
    assert not view.drops
    assert view.config == Config()
    assert "Local candidates (controlling)" in explain(view, 1).text()
