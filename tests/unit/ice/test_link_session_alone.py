"""A session's behaviour, one thing at a time: where it sends, when it moves, how it ends."""

from __future__ import annotations

from random import Random

import pytest

from ice.link import frames
from ice.link.frames import State
from ice.link.happenings import (
    Aborted,
    Data,
    Datagram,
    Eof,
    Finished,
    Moved,
    Recovered,
    Send,
    SessionEvent,
    Signal,
    Stranded,
    Suspect,
    Writable,
)
from ice.link.session import LINGER, Session
from stun.errors import UsageError
from stun.sansio import MILLISECOND, SECOND
from tools.linkdesk import Appetite, Desk

START = State(0, 1 << 20, 0)
HELLO = frames.hello(False, START)


class Lone:
    """A session whose peer is played by the test."""

    def __init__(self, **options: int) -> None:
        self.congested: set[int] = set()
        self.session = Session(
            controlling=True, congested=lambda number: number in self.congested, **options
        )
        self.now = 5 * SECOND
        self._told: list[SessionEvent] = []

    def pump(self) -> None:
        self._told += iter(self.session.poll, None)

    def drain(self) -> list[SessionEvent]:
        """Return what it has told since this was last asked."""
        self.pump()
        told, self._told = self._told, []
        return told

    def sent(self, number: int = 1) -> list[object]:
        """Return the frames that it sends on a carrier from here on."""
        told = self.drain()
        octets = b"".join(
            event.data for event in told if isinstance(event, Send) and event.carrier_id == number
        )
        return [
            item.kind.name if isinstance(item, frames.Frame) else (item.offset, bytes(item.data))
            for item in frames.Reader().feed(octets)
        ]

    def hear(self, *octets: bytes, number: int = 1) -> None:
        self.session.received(number, b"".join(octets), self.now)

    def past(self, seconds: float) -> None:
        """Let time pass, deadline by deadline."""
        end = self.now + int(seconds * SECOND)
        while (due := self.session.deadline()) is not None and due <= end:
            self.now = max(due, self.now)
            self.session.on_deadline(self.now)
            self.pump()
        self.now = end

    def meet(self, number: int = 1, rank: int = 1, state: State = START) -> None:
        """Attach a carrier and prove it, 20 ms later."""
        self.session.attach(number, rank, self.now)
        self.pump()
        self.now += 20 * MILLISECOND
        self.hear(frames.hello(False, state), frames.ack(state, 4), number=number)


@pytest.fixture
def lone() -> Lone:
    lone = Lone()
    lone.meet()
    lone.drain()
    return lone


def data(offset: int, octets: bytes) -> bytes:
    return frames.data_header(offset, len(octets)) + octets


# The start. ---------------------------------------------------------------------------------------


def test_the_first_carrier_is_greeted_asked_and_used_at_once() -> None:
    lone = Lone()
    lone.session.write(b"early", lone.now)
    assert lone.drain() == []
    lone.session.attach(7, 1, lone.now)
    assert lone.session.poll() == Moved(7, None, "it is the first")
    assert lone.sent(7) == ["HELLO", "PING", (0, b"early")]


def test_before_a_window_is_known_64_kib_may_go() -> None:
    lone = Lone()
    lone.session.attach(1, 1, lone.now)
    lone.session.write(bytes(100_000), lone.now)
    assert sum(len(item[1]) for item in lone.sent() if isinstance(item, tuple)) == 65536
    lone.hear(HELLO)
    assert sum(len(item[1]) for item in lone.sent() if isinstance(item, tuple)) == 34464


def test_a_better_carrier_is_used_when_it_has_answered_both_ways(lone: Lone) -> None:
    lone.session.attach(2, 9, lone.now)
    lone.session.write(b"a", lone.now)
    assert (0, b"a") in lone.sent(1)
    lone.hear(HELLO, number=2)
    assert lone.drain() == []
    lone.hear(frames.ack(START, 4), number=2)
    assert lone.session.poll() == Moved(2, 1, "it is better")
    assert lone.sent(2) == [(0, b"a")], "what is not acknowledged goes there at once"
    assert lone.session.current == 2


def test_a_worse_or_equal_carrier_changes_nothing(lone: Lone) -> None:
    lone.meet(2, 1)
    lone.meet(3, 0)
    assert lone.session.current == 1
    assert not any(isinstance(event, Moved) for event in lone.drain())


def test_a_hello_on_a_late_carrier_says_where_to_go_on(lone: Lone) -> None:
    lone.session.write(b"0123456789", lone.now)
    lone.drain()
    lone.session.detach(1, "reset", lone.now)
    assert lone.drain() == [Stranded()]
    lone.past(3600)
    lone.session.write(b"xyz", lone.now)
    lone.hear(b"", number=1)
    lone.session.attach(2, 1, lone.now)
    assert lone.sent(2) == ["HELLO", "PING", (0, b"0123456789xyz")], "as good as anything to wait"
    lone.session.attach(3, 2, lone.now)
    lone.hear(frames.hello(False, State(6, 1 << 20, 0)), number=2)
    assert lone.sent(3) == ["HELLO", "PING"], "no better than another as long as it says nothing"
    lone.session.detach(2, "reset", lone.now)
    assert lone.sent(3) == [(6, b"6789xyz")]


# Sending. -----------------------------------------------------------------------------------------


def test_a_congested_carrier_gets_nothing_until_it_is_relieved(lone: Lone) -> None:
    lone.congested.add(1)
    lone.session.write(b"waits", lone.now)
    assert lone.drain() == []
    lone.congested.clear()
    lone.session.relieved(1, lone.now)
    assert lone.sent() == [(0, b"waits")]


def test_no_more_is_outstanding_than_the_limit(lone: Lone) -> None:
    lone.session.write(bytes(1 << 20), lone.now)
    lone.drain()
    (view,) = lone.session.carriers()
    assert view.limit <= view.outstanding < view.limit + frames.MOST_FRAME
    assert view.limit == 256 * 1024


def test_a_cursor_of_each_carrier_puts_nothing_twice_on_the_same_one(lone: Lone) -> None:
    lone.session.write(b"abcdef", lone.now)
    assert lone.sent(1) == [(0, b"abcdef")]
    lone.meet(2, 2)
    assert lone.sent(2) == ["HELLO", "PING", (0, b"abcdef")]
    lone.session.detach(2, "reset", lone.now)
    lone.session.write(b"g", lone.now)
    assert lone.sent(1) == [(6, b"g")]
    lone.meet(3, 2, State(4, 1 << 20, 0))
    assert lone.sent(3) == ["HELLO", "PING", (4, b"efg")]


def test_room_and_writable() -> None:
    lone = Lone(window=65536, keep=1000)
    lone.meet()
    lone.session.write(bytes(600), lone.now)
    assert lone.session.room == 400
    lone.session.write(bytes(900), lone.now)
    assert lone.session.room == 0
    assert lone.session.unacknowledged == 1500
    lone.drain()
    lone.hear(frames.ack(State(900, 1 << 20, 0), 8))
    assert lone.drain() == []
    lone.hear(frames.ack(State(1000, 1 << 20, 0), 8))
    assert lone.drain() == [Writable()]
    assert lone.session.room == 500


def test_signals_go_first_and_again_on_another_carrier(lone: Lone) -> None:
    lone.session.write(b"stream", lone.now)
    assert lone.session.signal(b"one", lone.now)
    assert lone.session.signal(b"two", lone.now)
    assert lone.sent() == ["SIGNAL", "SIGNAL", (0, b"stream")]
    lone.meet(2, 5, State(0, 1 << 20, 1))
    assert lone.sent(2) == ["HELLO", "PING", "SIGNAL", (0, b"stream")]


def test_only_so_many_signals_wait(lone: Lone) -> None:
    taken = 0
    while lone.session.signal(bytes(10_000), lone.now):
        taken += 1
    assert taken == 6
    lone.drain()
    lone.hear(frames.ack(State(0, 1 << 20, 6), 0))
    assert lone.session.signal(bytes(10_000), lone.now)
    for _ in range(10_000):
        lone.session.signal(b"", lone.now)
    assert not lone.session.signal(b"", lone.now)


def test_a_datagram_goes_now_or_not_at_all(lone: Lone) -> None:
    assert not Lone().session.send_datagram(b"nobody there", 0)
    assert lone.session.send_datagram(b"now", lone.now)
    assert lone.sent() == ["DATAGRAM"]
    assert not lone.session.send_datagram(bytes(frames.MOST_DATAGRAM + 1), lone.now)
    lone.congested.add(1)
    assert not lone.session.send_datagram(b"later", lone.now)
    lone.congested.clear()
    lone.session.write(bytes(1 << 20), lone.now)
    lone.drain()
    assert not lone.session.send_datagram(b"the limit is reached", lone.now)


# Receiving. ---------------------------------------------------------------------------------------


def test_what_is_new_is_handed_on_and_the_rest_dropped(lone: Lone) -> None:
    lone.hear(data(0, b"abc"), data(3, b"def"))
    lone.meet(2, 5)
    lone.hear(data(1, b"bcde"), data(5, b"fgh"), number=2)
    taken = [bytes(event.data) for event in lone.drain() if isinstance(event, Data)]
    assert taken == [b"abc", b"def", b"gh"]
    assert lone.session.counters == {"octets of the stream that came again": 5}
    lone.hear(frames.signal(0, b"x"), frames.datagram(b"y"), frames.signal(0, b"x"), frames.fin(8))
    assert [event for event in lone.drain() if not isinstance(event, Send)] == [
        Signal(b"x"),
        Datagram(b"y"),
        Eof(),
    ]
    assert lone.session.counters["signals that came again"] == 1


def test_little_is_acknowledged_after_a_moment_and_much_at_once(lone: Lone) -> None:
    lone.hear(data(0, b"abc"))
    assert lone.sent() == []
    lone.past(0.006)
    assert lone.sent() == ["ACK"]
    lone.hear(*(data(3 + at, bytes(60_000)) for at in range(0, 540_000, 60_000)))
    assert lone.sent() == ["ACK"]
    lone.hear(frames.ping())
    assert lone.sent() == ["ACK"]


def test_acknowledgements_behind_a_full_queue_become_rare(lone: Lone) -> None:
    lone.congested.add(1)
    sent = 0
    for step in range(100):
        lone.hear(data(step * 10, bytes(10)))
        lone.past(0.02)
        sent += len(lone.sent())
    assert 10 <= sent <= 20
    lone.congested.clear()
    for step in range(100, 120):
        lone.hear(data(step * 10, bytes(10)))
        lone.past(0.02)
        sent += len(lone.sent())
    assert sent >= 25


def test_the_window_opens_when_enough_is_consumed() -> None:
    lone = Lone(window=65536)
    lone.meet()
    lone.hear(data(0, bytes(65000)))
    lone.past(0.01)
    lone.drain()
    lone.session.consumed(10_000, lone.now)
    assert lone.sent() == []
    lone.session.consumed(10_000, lone.now)
    assert lone.sent() == ["ACK"]


def test_a_peer_that_waits_for_the_window_asks_for_it(lone: Lone) -> None:
    lone.session.write(bytes((1 << 20) + 5), lone.now)
    for _ in range(10):
        lone.drain()
        view = lone.session.carriers()[0]
        lone.hear(frames.ack(START, view.sent))
    lone.hear(frames.ack(State(1 << 20, 1 << 20, 0), view.sent))
    assert lone.drain() == []
    lone.past(0.6)
    assert lone.sent() == ["PING"]
    lone.hear(frames.ack(State(1 << 20, 1 << 21, 0), lone.session.carriers()[0].sent))
    assert lone.sent() == [(1 << 20, bytes(5))]


def test_after_close_what_comes_is_thrown_away(lone: Lone) -> None:
    lone.hear(data(0, b"unread"))
    lone.session.close(lone.now)
    lone.drain()
    lone.hear(data(6, bytes(1000)), frames.fin(1006), frames.ack(State(1, 1 << 20, 0), 16))
    assert [event for event in lone.drain() if not isinstance(event, Send)] == []
    lone.session.consumed(6, lone.now)  # of what was given before
    lone.hear(frames.close())
    assert Finished() in lone.drain()


# Life and death. ----------------------------------------------------------------------------------


def test_a_silent_carrier_is_suspect_and_all_goes_on_the_next(lone: Lone) -> None:
    lone.meet(2, 5)
    lone.drain()
    lone.session.write(b"abc", lone.now)
    assert lone.sent(2) == [(0, b"abc")]
    lone.past(0.45)
    assert lone.drain() == []
    lone.past(0.1)
    assert lone.sent(1) == ["PING"]
    lone.past(0.5)
    found = lone.drain()
    assert found[:2] == [Suspect(2, 1.0), Moved(1, 2, "no answer for 1.0 s")]
    assert isinstance(found[2], Send)
    lone.hear(frames.ack(State(3, 1 << 20, 0), 19), number=2)
    assert lone.drain() == [Recovered(2)], "it has to prove itself first"
    lone.past(0.6)
    assert "PING" in lone.sent(2)


def test_half_way_to_suspicion_the_spare_is_asked(lone: Lone) -> None:
    lone.meet(2, 5)
    lone.past(4)
    lone.drain()
    lone.session.write(b"abc", lone.now)
    lone.drain()
    lone.past(0.55)
    assert lone.sent(1) == ["PING"]


def test_the_only_carrier_is_kept_although_suspect(lone: Lone) -> None:
    lone.session.write(b"abc", lone.now)
    lone.drain()
    lone.past(2)
    assert lone.drain() == [Suspect(1, 1.0)]
    assert lone.session.current == 1
    lone.session.write(b"def", lone.now)
    assert lone.sent() == [(3, b"def")]
    lone.hear(frames.ack(State(6, 1 << 20, 0), 34))
    assert lone.drain() == [Recovered(1)]


def test_when_all_are_silent_it_stays_where_it_is_and_goes_where_the_first_answer_comes(
    lone: Lone,
) -> None:
    lone.meet(2, 5)
    lone.session.write(b"abc", lone.now)
    lone.drain()
    lone.past(2.5)
    found = [event for event in lone.drain() if isinstance(event, Moved | Suspect)]
    assert [type(event) for event in found] == [Suspect, Moved, Suspect]
    assert lone.session.current == 1
    lone.hear(frames.ack(START, 8), number=2)
    assert lone.drain()[:2] == [Recovered(2), Moved(2, 1, "it answers")]


def test_an_idle_carrier_is_asked_every_five_seconds(lone: Lone) -> None:
    asked = 0
    for _ in range(30):
        lone.past(1)
        if "PING" in lone.sent():
            asked += 1
            view = lone.session.carriers()[0]
            lone.hear(frames.ack(START, view.sent))
    assert asked in {5, 6}
    assert not lone.session.carriers()[0].suspect


def test_a_program_that_was_stopped_does_not_suspect_everybody(lone: Lone) -> None:
    lone.session.write(b"abc", lone.now)
    lone.drain()
    lone.now += 60 * SECOND
    lone.session.on_deadline(lone.now)
    assert lone.drain() == []
    lone.past(0.7)
    assert lone.drain() == [Suspect(1, 1.0)]


def test_a_program_that_is_always_late_finds_out_all_the_same(lone: Lone) -> None:
    lone.session.write(b"abc", lone.now)
    lone.drain()
    began = lone.now
    while not any(isinstance(event, Suspect) for event in lone.drain()):
        due = lone.session.deadline()
        assert due is not None
        lone.now = due + 300 * MILLISECOND
        lone.session.on_deadline(lone.now)
    assert lone.now - began < 2 * SECOND


def test_early_deadlines_do_nothing(lone: Lone) -> None:
    lone.session.write(b"abc", lone.now)
    lone.drain()
    due = lone.session.deadline()
    assert due is not None
    lone.session.on_deadline(due - 1)
    assert lone.drain() == []


def test_a_pair_on_a_slow_link_does_not_flap(rng: Random) -> None:
    # 1 Mbit/s each way with 256 KiB of kernel buffers, both ways full: answers take two seconds.
    desk = Desk()
    desk.wire(1, rate=1e6, delay=0.04)
    desk.clock.run(1)
    desk.wire(5, rate=125e3, delay=0.02)
    for person in desk.people:
        person.give(rng.randbytes(4_000_000))
    assert desk.clock.run(60, desk.finished)
    for person in desk.people:
        assert person.moves == [1, 2]
        assert not person.told.of(Suspect)
        assert person.stall < 2.5


def test_a_path_that_stops_now_and_then_takes_the_stream_along_ever_less(rng: Random) -> None:
    desk = Desk()
    desk.wire(1, rate=200e3, delay=0.04)
    flaky = desk.wire(5, rate=200e3, delay=0.02)
    for _ in range(60):  # 2.5 seconds of silence in every 5, for five minutes
        desk.people[0].give(rng.randbytes(600_000), end=False)
        desk.clock.run(2.5)
        flaky.pause(2.5)
        desk.clock.run(2.5)
    first = desk.people[0]
    assert 7 <= len(first.moves) <= 20
    assert first.other.stall < 3
    assert first.other.read == 60 * 600_000


def test_a_dead_carrier_costs_little_that_is_sent_again(rng: Random) -> None:
    desk = Desk()
    desk.wire(1, rate=2e6, delay=0.04)
    direct = desk.wire(5, rate=20e6, delay=0.02)
    desk.people[0].give(rng.randbytes(40_000_000))
    desk.people[1].give(b"")
    desk.clock.run(1.5)
    direct.hush()
    assert desk.clock.run(40, desk.finished)
    reader = desk.people[1]
    assert reader.stall < 1.5
    assert reader.session.counters["octets of the stream that came again"] < 1_000_000


# The end. -----------------------------------------------------------------------------------------


def test_both_sides_finish_within_two_round_trips() -> None:
    desk = Desk()
    desk.wire(delay=0.1)
    desk.people[0].give(b"question")
    desk.people[1].give(b"answer")
    start = desk.clock.now
    assert desk.clock.run(5, desk.finished)
    assert desk.clock.now - start <= 420 * MILLISECOND
    for person in desk.people:
        assert isinstance(person.told.events[-1][1], Finished)
        assert person.session.deadline() is None


def test_one_direction_may_end_long_before_the_other(rng: Random) -> None:
    desk = Desk()
    desk.wire()
    desk.people[0].give(b"")
    desk.people[1].give(rng.randbytes(100_000), end=False)
    assert not desk.clock.run(30, desk.over)
    assert desk.people[1].eof
    assert desk.people[0].read == 100_000
    desk.people[1].give(b"")
    assert desk.clock.run(1, desk.finished)


@pytest.mark.parametrize("octets", range(0, 130, 3))
def test_both_sides_end_wherever_the_last_carrier_dies_if_another_comes(octets: int) -> None:
    desk = Desk()
    wire = desk.wire()
    wire.hush(octets)
    for person in desk.people:
        person.give(b"x")
    desk.clock.run(4)
    desk.wire()
    assert desk.clock.run(10, desk.finished)


def test_a_side_that_has_all_ends_although_nobody_says_close(lone: Lone) -> None:
    lone.session.write_eof(lone.now)
    assert lone.sent() == ["FIN"]
    lone.hear(frames.fin(0), frames.ack(State(1, 1 << 20, 0), 16))
    assert lone.sent() == ["ACK", "CLOSE"]
    lone.session.detach(1, "reset", lone.now)
    assert lone.drain() == [Stranded()]
    lone.past(LINGER / SECOND - 0.1)
    assert lone.drain() == []
    lone.past(0.2)
    assert lone.drain() == [Finished()]


def test_close_is_answered_before_the_end(lone: Lone) -> None:
    lone.session.write_eof(lone.now)
    lone.drain()
    lone.hear(frames.fin(0), frames.close())
    found = lone.drain()
    assert found[0] == Eof()
    assert isinstance(found[1], Send)
    assert found[1].data.endswith(frames.close())
    assert found[2:] == [Finished()]


def test_abort_tells_the_peer_on_every_carrier() -> None:
    desk = Desk()
    desk.wire(1)
    desk.wire(2)
    desk.clock.run(1)
    first, second = desk.people
    first.session.abort(17, "changed my mind", desk.clock.now)
    first.drain()
    assert first.outcome == Aborted(17, "changed my mind", by_peer=False)
    desk.clock.run(1)
    assert second.outcome == Aborted(17, "changed my mind", by_peer=True)
    assert second.session.over
    second.session.abort(18, "too late", desk.clock.now)
    second.drain()


def test_what_came_before_an_abort_is_still_told(lone: Lone) -> None:
    lone.hear(data(0, b"last words"), frames.abort(20, "bye"), data(10, b"and after"))
    found = lone.drain()
    assert isinstance(found[0], Data)
    assert found[1:] == [Aborted(20, "bye", by_peer=True)]
    assert lone.session.counters["frames after the end"] == 1


# What is not allowed. -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        (HELLO, "HELLO again"),
        (data(1, b"x"), "DATA at offset 1 when 0 was expected"),
        (frames.fin(1), "FIN at offset 1 when 0 was expected"),
        (frames.fin(0) + frames.fin(1), "FIN at offset 1, and before at 0"),
        (frames.fin(0) + data(0, b"x"), "DATA up to offset 1, after the end at 0"),
        (frames.signal(1, b""), "signal 1 when 0 was expected"),
        (frames.ack(State(1, 0, 0), 0), "offset 1 is acknowledged; 0 were sent"),
        (frames.ack(State(0, 0, 1), 0), "1 signals are acknowledged; 0 were sent"),
        (frames.ack(State(0, 0, 0), 5), "ACK of 5 octets on a carrier; 4 were sent"),
        (frames.close(), "CLOSE before both directions have ended"),
        (b"\x7f\0\0\0", "unknown kind 127"),
    ],
)
def test_violations_end_the_session_and_the_peer_is_told(
    lone: Lone, octets: bytes, complaint: str
) -> None:
    lone.hear(octets)
    *_, told, aborted = lone.drain()
    assert isinstance(aborted, Aborted)
    assert complaint in aborted.reason
    assert (aborted.code, aborted.by_peer) == (frames.AbortCode.PROTOCOL, False)
    assert isinstance(told, Send)
    assert complaint.encode() in told.data
    lone.hear(data(0, b"x"))
    assert lone.drain() == []


def test_no_more_than_the_window_is_taken() -> None:
    lone = Lone(window=65536)
    lone.meet()
    lone.hear(data(0, bytes(60_000)), data(60_000, bytes(5_536)))
    lone.drain()
    lone.hear(data(65_536, b"x"))
    assert "the window ends at 65536" in str(lone.drain()[-1])


@pytest.mark.parametrize("octets", [data(0, b"x"), frames.ping(), frames.abort(1, "")])
def test_hello_comes_first(octets: bytes) -> None:
    lone = Lone()
    lone.session.attach(1, 1, lone.now)
    lone.drain()
    lone.hear(octets)
    assert "before HELLO" in str(lone.drain()[-1])


def test_two_that_have_the_same_role_are_not_two_ends() -> None:
    lone = Lone()
    lone.session.attach(1, 1, lone.now)
    (mine,) = [event.data for event in lone.drain() if isinstance(event, Send)]
    lone.hear(mine)
    assert "both sides say" in str(lone.drain()[-1])


def test_another_version_is_its_own_code() -> None:
    lone = Lone()
    lone.session.attach(1, 1, lone.now)
    lone.hear(HELLO[:4] + b"\x02" + HELLO[5:])
    aborted = lone.drain()[-1]
    assert isinstance(aborted, Aborted)
    assert aborted.code == frames.AbortCode.VERSION


def test_the_callers_mistakes(lone: Lone) -> None:
    session, now = lone.session, lone.now
    with pytest.raises(UsageError, match="attached already"):
        session.attach(1, 1, now)
    with pytest.raises(UsageError, match=r"consumed\(1\) of 0"):
        session.consumed(1, now)
    with pytest.raises(UsageError, match="a signal of 16385 octets"):
        session.signal(bytes(16385), now)
    session.write_eof(now)
    session.write_eof(now)
    with pytest.raises(UsageError, match="after write_eof"):
        session.write(b"x", now)
    session.abort(16, "", now)
    with pytest.raises(UsageError, match="is over"):
        session.write(b"x", now)
    with pytest.raises(UsageError, match="the least is 65536"):
        Session(controlling=True, congested=bool, window=65535)


def test_carriers_that_are_not_there_do_no_harm(lone: Lone) -> None:
    lone.hear(b"\xff" * 100, number=9)
    lone.session.relieved(9, lone.now)
    lone.session.detach(9, "gone", lone.now)
    assert lone.drain() == []
    assert sum(lone.session.counters.values()) == 100
    assert lone.session.rtt(9) is None
    assert lone.session.rtt(1) == pytest.approx(0.02)


def test_a_reader_that_takes_nothing_stops_the_writer_and_nothing_grows(rng: Random) -> None:
    desk = Desk(window=256 * 1024, appetites=(Appetite(), Appetite(read=0, read_pause=1)))
    desk.wire()
    writer, reader = desk.people
    writer.give(rng.randbytes(2_000_000))
    desk.clock.run(30)
    assert reader.read == 256 * 1024
    assert writer.session.unacknowledged <= 256 * 1024 + 65536
    assert not writer.told.of(Suspect)
    reader.appetite.read = 1 << 20
    assert desk.clock.run(10, lambda: reader.read == 2_000_000)
