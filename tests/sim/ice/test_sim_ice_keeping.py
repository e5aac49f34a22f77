"""Whole agents on the simulated network: consent on slow and lossy paths, and explanations."""

from __future__ import annotations

import io

import pytest

from ice.config import Config
from ice.events import AgentState, ConsentLost, Disconnected, GatheringComplete, LocalCandidate
from ice.explain import Explanation, explain
from ice.explanation import Fate, Outcome
from ice.stats import statistics
from ice.timeline import Packet, Timeline, write_pcapng
from ice.view import AgentView
from nattype.model import Link
from stun.codec import decode
from stun.registry import Class
from stun.sansio import MILLISECOND, SECOND
from tools.icegrid import Meeting, Party, Signalling

QUICK = Signalling(0.001, 0.01)


def meet(a: str, b: str, seed: int, link: Link, config: Config | None = None) -> Meeting:
    meeting = Meeting(
        a, b, seed=seed, link_a=link, link_b=link, signalling=QUICK,
        config=config or Config(tcp=False),
    )  # fmt: skip
    meeting.start()
    assert meeting.run(meeting.settled, 60), "\n".join(meeting.story())
    return meeting


def go_on(meeting: Meeting, seconds: int) -> None:
    """Let so much time pass."""
    end = meeting.world.now + seconds * SECOND
    meeting.run(end, seconds + 1)
    assert meeting.world.now >= end - SECOND


def view_of(party: Party) -> AgentView:
    """Return what the party's agent lets be seen, put together from its log."""
    view = AgentView(party.agent)
    view.servers = party.meeting.servers
    view.has_credentials = party.agent.remote is not None
    for at, event in party.log:
        view.take(event, at)
    for at, event in party.peer.log:
        if isinstance(event, LocalCandidate):
            view.told(event.candidate, event.stream, at)
        elif isinstance(event, GatheringComplete):
            view.told(None, 0, at)
    return view


def explained(party: Party) -> Explanation:
    return explain(view_of(party), party.meeting.world.now)


@pytest.mark.parametrize(
    "link",
    [
        Link(delay=0.15),  # 600 ms there and back, over two access links each way
        Link(delay=0.75),  # 3 s
        Link(delay=0.3, jitter=0.4),
        Link(delay=0.02, loss=0.15),  # half of all questions get no answer
    ],
    ids=["600ms", "3s", "jitter", "loss"],
)
def test_a_slow_or_lossy_path_keeps_its_consent(seed: int, link: Link) -> None:
    meeting = meet("open", "full-cone", seed, link)
    go_on(meeting, 900)
    for party in meeting.parties:
        assert not party.told(ConsentLost), "\n".join(meeting.story())
        assert not party.told(Disconnected)
        assert party.selected is not None
        asked = party.selected.consent_requests_sent
        if not link.loss and not link.jitter:
            assert 900 / 6 - 1 <= asked <= 900 / 4 + 1, "once in 4 to 6 seconds"
    assert meeting.settled()


def test_keepalives_alone_keep_the_nats_open(seed: int) -> None:
    """RFC 8445 section 11: a Binding indication each 15 seconds, no questions at all."""
    config = Config(tcp=False, consent=False, monitor=False)
    meeting = meet("port-restricted-cone", "port-restricted-cone", seed, Link(delay=0.02), config)
    go_on(meeting, 10)
    counts = [statistics(view_of(party), meeting.world.now) for party in meeting.parties]
    go_on(meeting, 3600)
    for party, before in zip(meeting.parties, counts, strict=True):
        after = statistics(view_of(party), meeting.world.now)
        assert after.requests_sent == before.requests_sent
        assert after.consent_requests_sent == 0
        assert party.send(b"still here")
    go_on(meeting, 1)
    assert [party.received for party in meeting.parties] == [[b"still here"]] * 2


def test_a_direct_connection_explained(seed: int) -> None:
    meeting = meet("port-restricted-cone", "full-cone", seed, Link(delay=0.02))
    for party in meeting.parties:
        found = explained(party)
        assert found.outcome is Outcome.CONNECTED
        assert found.verdict.startswith("Connected directly over UDP: "), found.text()
        chosen = [pair for pair in found.pairs if pair.fate is Fate.SELECTED]
        assert len(chosen) == 1
        assert "nominated" in chosen[0].why
        assert all(pair.why for pair in found.pairs)
        assert {each.type for each in found.local} >= {"host", "srflx", "relay"}
        assert found.text(notes=True)


def test_a_relayed_connection_explained(seed: int) -> None:
    meeting = meet("symmetric", "symmetric", seed, Link(delay=0.02))
    go_on(meeting, 60)
    for party in meeting.parties:
        found = explained(party)
        assert "relay" in found.verdict, found.text()
        direct = [pair for pair in found.pairs if pair.direct and pair.requests_sent]
        assert direct
        for pair in direct:
            assert pair.fate in {Fate.FAILED, Fate.UNTRIED, Fate.CHECKING}, found.text()
        assert any("port prediction" in advice for advice in found.advice) or any(
            "None of the direct pairs" in advice for advice in found.advice
        ), found.text()


def test_a_failure_explained(seed: int) -> None:
    meeting = Meeting(
        "symmetric", "symmetric", seed=seed, signalling=QUICK,
        servers=tuple(s for s in Meeting("open", "open", seed=seed).servers if not s.turn),
    )  # fmt: skip
    meeting.start()
    assert meeting.run(lambda: meeting.both(AgentState.FAILED), 120)
    for party in meeting.parties:
        found = explained(party)
        assert found.outcome is Outcome.FAILED
        assert found.verdict.endswith("and there is no relay."), found.text()
        assert found.advice[0].startswith("Configure a TURN server on either side"), found.text()
        failed = [pair for pair in found.pairs if pair.fate is Fate.FAILED]
        assert failed
        assert any(
            pair.why.startswith("no answer to 7 checks in ") and " drops what" in pair.why
            for pair in failed
        ), found.text()


def test_a_wrong_password_explained(seed: int) -> None:
    meeting = Meeting("open", "open", seed=seed, signalling=QUICK)
    for party in meeting.parties:
        credentials = party.agent.local
        wrong = type(credentials)(credentials.ufrag, credentials.password[::-1] + "x")
        party.peer.agent.set_remote(wrong, meeting.world.now)
        party._signal = lambda message, old=party._signal: (  # type: ignore[method-assign]
            None if message[0] == "credentials" else old(message)
        )
    meeting.start()
    assert meeting.run(lambda: meeting.both(AgentState.FAILED), 120)
    for party in meeting.parties:
        found = explained(party)
        assert "did not prove the password" in found.verdict, found.text()
        assert "username fragment and password of the same offer" in found.advice[0]


def test_statistics_of_a_connection(seed: int) -> None:
    meeting = meet("port-restricted-cone", "open", seed, Link(delay=0.02))
    go_on(meeting, 1)
    for number in range(10):
        assert meeting.a.send(bytes(100 + number))
    go_on(meeting, 30)
    sent, heard = (statistics(view_of(party), meeting.world.now) for party in meeting.parties)
    assert (sent.packets_sent, sent.bytes_sent) == (10, 1045)
    assert (heard.packets_received, heard.bytes_received) == (10, 1045)
    assert sent.requests_sent >= sent.consent_requests_sent >= 4
    assert sent.responses_received <= sent.requests_sent
    (chosen,) = [pair for pair in sent.pairs if pair.selected]
    assert chosen.rtt == pytest.approx(0.08, rel=0.3)


def test_a_timeline_of_a_connection(seed: int) -> None:
    """What an agent sends through a tap is what the peer's checks are made of."""
    meeting = Meeting("open", "open", seed=seed, signalling=QUICK)
    timeline = Timeline()
    checker = meeting.a.agent._checker
    core = checker._core  # the one place that checks leave from
    core.send = timeline.tap(core.send)
    meeting.start()
    assert meeting.run(meeting.settled, 30)
    timeline.event("settled", meeting.world.now)
    packets = [entry for entry in timeline if isinstance(entry, Packet)]
    classes = {decode(packet.data).message_class for packet in packets}
    assert classes == {Class.REQUEST, Class.SUCCESS}
    file = io.BytesIO()
    write_pcapng(timeline, file, epoch=1_700_000_000 * SECOND)
    assert len(file.getvalue()) > 100 * len(packets)
    assert all(packet.at <= 30 * SECOND + MILLISECOND for packet in packets)
