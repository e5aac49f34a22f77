"""The multiplexer: whatever two sides do, each connection's octets arrive whole, or not at all."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ice.punch import mux
from ice.punch.mux import HEADER, Kind, Limits, Mux
from stun.errors import UsageError

SMALL = Limits(connections=8, first_window=64, greatest_window=512, budget=4096, queue=100)


class Side:
    """A machine with an application that keeps what it is told."""

    def __init__(self, *, opens: bool, limits: Limits = SMALL, take: bool = True) -> None:
        self.mux = Mux(opens=opens, limits=limits)
        self.takes = take
        self.asked: list[int] = []
        self.accepted: list[int] = []
        self.refused: dict[int, str] = {}
        self.got: dict[int, bytearray] = {}
        self.untaken: dict[int, int] = {}
        self.ended: set[int] = set()
        self.closed: dict[int, str | None] = {}
        self.writable: list[int] = []
        self.failed: list[str] = []

    def drain(self) -> None:
        while (event := self.mux.poll()) is not None:
            match event:
                case mux.Opened(n):
                    self.asked.append(n)
                case mux.Accepted(n):
                    self.accepted.append(n)
                case mux.Refused(n, why):
                    self.refused[n] = why
                case mux.Arrived(n, data):
                    assert n not in self.ended
                    assert n not in self.closed
                    self.got.setdefault(n, bytearray()).extend(data)
                    if self.takes:
                        self.mux.consumed(n, len(data))
                    else:
                        self.untaken[n] = self.untaken.get(n, 0) + len(data)
                case mux.PeerEnded(n):
                    self.ended.add(n)
                case mux.Writable(n):
                    self.writable.append(n)
                case mux.Closed(n, why):
                    self.closed[n] = why
                case mux.Failed(why):
                    self.failed.append(why)

    def take(self, n: int, octets: int | None = None) -> None:
        octets = self.untaken.get(n, 0) if octets is None else octets
        self.untaken[n] -= octets
        self.mux.consumed(n, octets)
        self.drain()


def two(limits: Limits = SMALL, **options: Any) -> tuple[Side, Side]:
    return Side(opens=True, limits=limits, **options), Side(opens=False, limits=limits, **options)


def move(a: Side, b: Side, most: int = 1 << 20) -> int:
    data = a.mux.take(most)
    b.mux.receive(data)
    b.drain()
    a.drain()
    return len(data)


def exchange(a: Side, b: Side) -> None:
    while a.mux.has_output or b.mux.has_output:
        move(a, b)
        move(b, a)


def opened(a: Side, b: Side) -> int:
    number = a.mux.open()
    exchange(a, b)
    b.mux.accept(number)
    exchange(a, b)
    assert number in a.accepted
    return number


def test_a_conversation() -> None:
    a, b = two()
    number = a.mux.open()
    a.mux.write(number, b"early")  # before it is known whether anybody is there
    exchange(a, b)
    assert b.asked == [number]
    assert b.got == {}
    b.mux.accept(number)
    exchange(a, b)
    assert b.got[number] == b"early"
    b.mux.write(number, b"answer")
    b.mux.write_eof(number)
    exchange(a, b)
    assert a.got[number] == b"answer"
    assert number in a.ended
    assert a.closed == {}
    a.mux.write(number, b", and more")
    a.mux.write_eof(number)
    exchange(a, b)
    assert b.got[number] == b"early, and more"
    assert a.closed == b.closed == {number: None}
    assert len(a.mux) == len(b.mux) == 0


def test_refused() -> None:
    a, b = two()
    number = a.mux.open()
    a.mux.write(number, b"lost")
    exchange(a, b)
    b.mux.refuse(number, "connection refused, née Ω")
    exchange(a, b)
    assert a.refused == {number: "connection refused, née Ω"}
    assert not a.mux.is_open(number)
    assert len(b.mux) == 0


@pytest.mark.parametrize("who", [0, 1])
def test_reset_says_why(who: int) -> None:
    sides = two()
    number = opened(*sides)
    breaker, other = sides[who], sides[1 - who]
    breaker.mux.write(number, b"dropped")
    breaker.mux.reset(number, "closed")
    other.mux.write(number, b"late")
    exchange(*sides)
    assert other.closed == {number: "closed"}
    assert breaker.failed == other.failed == []
    # What is on its way when a connection is broken off is nobody's fault.
    a, b = two()
    number = opened(a, b)
    a.mux.write(number, b"under way")
    late = a.mux.take(1 << 20)
    b.mux.reset(number, "closed")
    b.mux.receive(late)
    b.drain()
    assert b.failed == []
    assert b.mux.refusals == {"DATA for a connection that is over": 1}


def test_a_reset_before_the_answer() -> None:
    a, b = two()
    number = a.mux.open()
    exchange(a, b)
    a.mux.reset(number, "the client has left")
    b.mux.accept(number)
    exchange(a, b)
    assert b.closed == {number: "the client has left"}
    assert a.failed == b.failed == []


def test_who_does_not_take_stops_the_sender_within_the_window() -> None:
    a, b = two(take=False)
    number = opened(a, b)
    a.mux.write(number, bytes(5000))
    exchange(a, b)
    assert len(b.got[number]) == SMALL.first_window
    b.take(number)
    exchange(a, b)
    assert len(b.got[number]) > SMALL.first_window


def test_a_stalled_connection_holds_up_no_other() -> None:
    a, b = two(take=False)
    stalled, lively = opened(a, b), opened(a, b)
    a.mux.write(stalled, bytes(5000))
    a.mux.write(lively, bytes(5000))
    for _ in range(200):
        exchange(a, b)
        b.take(lively)
    assert len(b.got[lively]) == 5000
    assert len(b.got[stalled]) == SMALL.first_window


def test_a_window_grows_when_it_is_what_holds_up() -> None:
    a, b = two()
    number = opened(a, b)
    a.mux.write(number, bytes(20_000))
    exchange(a, b)
    assert len(b.got[number]) == 20_000
    # From now on, a whole great window goes at once.
    a.mux.write(number, bytes(20_000))
    before = len(b.got[number])
    while a.mux.has_output:
        move(a, b)  # one way: no more credit comes
    assert len(b.got[number]) - before >= SMALL.greatest_window // 2


def test_windows_keep_to_the_budget() -> None:
    limits = Limits(connections=8, first_window=64, greatest_window=1 << 20, budget=1024, queue=100)
    a, b = two(limits)
    for number in [opened(a, b) for _ in range(4)]:
        a.mux.write(number, bytes(50_000))
    exchange(a, b)
    assert all(len(got) == 50_000 for got in b.got.values())
    assert sum(each.window for each in b.mux._connections.values()) <= 1024
    for number in list(b.got):
        a.mux.write_eof(number)
        b.mux.write_eof(number)
    exchange(a, b)
    assert b.mux._windows == 0


def test_turns_are_fair() -> None:
    limits = Limits(first_window=1 << 20)
    a, b = two(limits)
    bulk, key = opened(a, b), opened(a, b)
    a.mux.write(bulk, bytes(1 << 19))
    a.mux.take(1 << 16)
    a.mux.write(key, b"k")
    sent = a.mux.take(2 * mux.FAIR_DATA)
    assert HEADER.pack(Kind.DATA, key, 1) + b"k" in sent


def test_take_keeps_to_the_measure() -> None:
    a, b = two(Limits(first_window=1 << 20))
    number = opened(a, b)
    a.mux.write(number, bytes(1 << 20))
    assert len(a.mux.take(1000)) <= 1000 + HEADER.size + mux.MOST_DATA
    assert a.mux.take(0) == b""


def test_back_pressure_of_the_writer() -> None:
    a, b = two(take=False)
    number = opened(a, b)
    assert a.mux.room(number) == SMALL.queue
    a.mux.write(number, bytes(SMALL.queue + 64))
    assert a.mux.room(number) <= 0
    exchange(a, b)
    assert a.writable == []  # the window is used up, and too much waits still
    b.take(number)
    exchange(a, b)
    assert a.writable == [number]
    assert a.mux.room(999) == 0


def test_as_many_as_allowed() -> None:
    a, b = two()
    for _ in range(SMALL.connections):
        opened(a, b)
    with pytest.raises(UsageError, match="no more"):
        a.mux.open()
    generous = Side(opens=True, limits=Limits(connections=100))
    strict = Side(opens=False)
    for _ in range(10):
        generous.mux.open()
    exchange(generous, strict)
    assert generous.refused == dict.fromkeys((9, 10), "too many connections are open")


def test_wrong_use() -> None:
    a, b = two()
    with pytest.raises(UsageError):
        b.mux.open()
    for call in (a.mux.accept, a.mux.write_eof, lambda n: a.mux.write(n, b""), b.mux.accept):
        with pytest.raises(UsageError):
            call(5)
    number = opened(a, b)
    with pytest.raises(UsageError):
        b.mux.accept(number)
    with pytest.raises(UsageError):
        b.mux.refuse(number, "")
    with pytest.raises(UsageError):
        a.mux.consumed(number, 1)
    a.mux.write_eof(number)
    with pytest.raises(UsageError):
        a.mux.write(number, b"x")
    a.mux.consumed(77, 5)  # of a connection that is over: nobody's fault


# Hostile peers. -----------------------------------------------------------------------------------


def frame(kind: int, number: int, value: int = 0, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, number, value) + body


OPEN = frame(Kind.OPEN, 1, 100)
ACCEPT = frame(Kind.ACCEPT, 1, 100)


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (frame(0, 1), "kind 0"),
        (frame(99, 1), "kind 99"),
        (frame(Kind.ACCEPT, 1), "kind 2"),
        (frame(Kind.DATA, 1, 1, b"x"), "never opened"),
        (frame(Kind.OPEN, 0), "connection 0"),
        (frame(Kind.OPEN, 2), "where 1 is next"),
        (OPEN + OPEN, "where 2 is next"),
        (frame(Kind.OPEN, 1, mux.MOST_CREDIT + 1), "more than allowed"),
        (OPEN + frame(Kind.DATA, 1, mux.MOST_DATA + 1), "more than allowed"),
        (OPEN + frame(Kind.RESET, 1, mux.MOST_TEXT + 1), "more than allowed"),
        (OPEN + frame(Kind.DATA, 1, 1, b"x"), "has not been accepted"),
        (OPEN + frame(Kind.CREDIT, 1, 1), "has not been accepted"),
    ],
)
def test_a_hostile_opener(stream: bytes, why: str) -> None:
    side = Side(opens=False)
    side.mux.receive(stream)
    side.drain()
    assert len(side.failed) == 1
    assert why in side.failed[0]
    side.mux.receive(OPEN)  # nothing more is read
    side.drain()
    assert len(side.failed) == 1


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (OPEN, "kind 1"),
        (ACCEPT + ACCEPT, "accepted already"),
        (ACCEPT + frame(Kind.REFUSE, 1), "accepted already"),
        (frame(Kind.ACCEPT, 2), "never opened"),
        (frame(Kind.END, 1), "not been accepted"),
        (ACCEPT + frame(Kind.END, 1) * 2, "twice"),
        (ACCEPT + frame(Kind.END, 1) + frame(Kind.DATA, 1, 1, b"x"), "after its END"),
        (ACCEPT + frame(Kind.DATA, 1, 65, bytes(65)), "beyond its window"),
    ],
)
def test_a_hostile_acceptor(stream: bytes, why: str) -> None:
    side = Side(opens=True)
    side.mux.open()
    side.mux.receive(stream)
    side.drain()
    assert len(side.failed) == 1
    assert why in side.failed[0]


def test_credit_cannot_overflow() -> None:
    side = Side(opens=True)
    side.mux.open()
    side.mux.receive(ACCEPT + frame(Kind.CREDIT, 1, mux.MOST_CREDIT) * 10)
    side.mux.write(1, b"x")
    assert side.mux.take(1 << 20).endswith(b"x")


def test_who_takes_no_answers_is_left() -> None:
    side = Side(opens=False, limits=Limits(connections=0))
    for number in range(1, 200_000):
        side.mux.receive(frame(Kind.OPEN, number))
        side.drain()
        if side.failed:
            break
    assert side.failed == ["the peer takes no answers"]


@given(st.lists(st.binary(max_size=60), max_size=20), st.booleans())
def test_nothing_raises_on_random_octets(parts: list[bytes], opens: bool) -> None:
    side = Side(opens=opens)
    if opens:
        side.mux.open()
    for part in parts:
        side.mux.receive(part)
        side.drain()
    assert len(side.mux._input) <= HEADER.size + mux.MOST_DATA


FRAMES = st.tuples(
    st.sampled_from(list(Kind)), st.integers(0, 4), st.integers(0, 80), st.booleans()
)


@given(st.lists(FRAMES, max_size=40), st.booleans(), st.integers(1, 30))
def test_nothing_raises_on_random_frames(
    frames: list[tuple[Kind, int, int, bool]], opens: bool, cut: int
) -> None:
    stream = b"".join(
        frame(kind, number, value, bytes(value) if kind in mux._MOST or odd else b"")
        for kind, number, value, odd in frames
    )
    side = Side(opens=opens)
    if opens:
        side.mux.open()
    for at in range(0, len(stream), cut):
        side.mux.receive(stream[at : at + cut])
        side.drain()
        for number in side.asked:
            if side.mux.is_open(number) and not side.mux._connections[number].accepted:
                side.mux.accept(number)
        side.mux.take(1000)
    # What the peer could make this side keep is what its windows allow.
    for connection in side.mux._connections.values():
        assert connection.received - connection.consumed <= connection.window


# Whatever two honest sides do. --------------------------------------------------------------------


@given(st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_what_is_written_arrives(source: random.Random) -> None:
    a, b = two(take=False)
    sides = (a, b)
    wires: dict[int, bytearray] = {0: bytearray(), 1: bytearray()}
    written: dict[tuple[int, int], bytearray] = {}
    finished: set[tuple[int, int]] = set()
    broken: set[int] = set()
    refused: set[int] = set()

    def step() -> None:
        who = source.randrange(2)
        side = sides[who]
        number = source.choice(side.mux.numbers() or [0])
        match source.randrange(10):
            case 0 if len(a.mux) < SMALL.connections:
                a.mux.open()
            case 1 if b.asked:
                asked = b.asked.pop()
                if not b.mux.is_open(asked):
                    pass
                elif source.random() < 0.8:
                    b.mux.accept(asked)
                else:
                    b.mux.refuse(asked, "no")
                    refused.add(asked)
            case 2 | 3 if number and (who, number) not in finished:
                data = source.randbytes(source.randrange(300))
                side.mux.write(number, data)
                written.setdefault((who, number), bytearray()).extend(data)
            case 4 if number and source.random() < 0.4 and (who, number) not in finished:
                side.mux.write_eof(number)
                finished.add((who, number))
            case 5 if number and source.random() < 0.1:
                side.mux.reset(number, "broken")
                broken.add(number)
            case 6 | 7 if side.untaken.get(number):
                side.take(number, source.randint(1, side.untaken[number]))
            case 8:
                wires[who] += side.mux.take(source.randrange(400))
            case 9:
                cut = source.randrange(len(wires[1 - who]) + 1)
                side.mux.receive(bytes(wires[1 - who][:cut]))
                del wires[1 - who][:cut]
        for each in sides:
            each.drain()
            assert each.failed == []
            for connection in each.mux._connections.values():
                assert connection.received - connection.consumed <= connection.window
            assert each.mux._windows == sum(c.window for c in each.mux._connections.values())

    for _ in range(source.randrange(400)):
        step()

    # Then everything is answered, ended and taken, and the wires run dry.
    for _ in range(2000):
        for who, side in enumerate(sides):
            while b.asked:
                asked = b.asked.pop()
                if b.mux.is_open(asked):
                    b.mux.accept(asked)
            for number in side.mux.numbers():
                if (who, number) not in finished:
                    side.mux.write_eof(number)
                    finished.add((who, number))
                if side.untaken.get(number):
                    side.take(number)
            wires[who] += side.mux.take(1 << 20)
            sides[1 - who].mux.receive(bytes(wires[who]))
            wires[who].clear()
            a.drain()
            b.drain()
        if not (len(a.mux) or len(b.mux) or a.mux.has_output or b.mux.has_output):
            break
    assert a.failed == b.failed == []
    assert len(a.mux) == len(b.mux) == 0, "a connection that never ends"
    for (who, number), data in written.items():
        got = bytes(sides[1 - who].got.get(number, b""))
        if number in broken or number in refused:
            assert bytes(data).startswith(got)
        else:
            assert got == bytes(data)


def test_the_header_is_as_documented() -> None:
    assert HEADER.size == 9
    assert frame(Kind.OPEN, 7, 100) == struct.pack("!BII", 1, 7, 100)


def test_cut_anywhere() -> None:
    def conversation(cut: Callable[[bytes], list[bytes]]) -> bytearray:
        a, b = two()
        number = opened(a, b)
        a.mux.write(number, bytes(range(60)))
        a.mux.write_eof(number)
        for part in cut(a.mux.take(1 << 20)):
            b.mux.receive(part)
            b.drain()
        assert number in b.ended
        return b.got[number]

    whole = conversation(lambda data: [data])
    assert conversation(lambda data: [data[n : n + 1] for n in range(len(data))]) == whole
