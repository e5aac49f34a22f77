"""Connections by themselves: framing cut anywhere, proof, and two of one path."""

from __future__ import annotations

from collections import Counter, deque
from itertools import count, product
from random import Random
from typing import Any

import pytest

from ice.base import Base, PathClosed, PathCongested, PathOpened
from ice.candidate import TcpType
from ice.tcp.connections import (
    MOST_INTERRUPTIONS,
    MOST_UNANSWERED,
    PROOF,
    UNPROVEN_FRAME,
    WAITING,
    Connections,
    Direct,
)
from ice.tcp.switchboard import Switchboard
from stun.codec import encode
from stun.errors import DropReason
from stun.framing import rfc4571_frame
from stun.message import Message
from stun.registry import Method
from stun.sansio import Address, Arrived, Cause, Closed, Congested, Relieved, Shut, Write

HERE, THERE = Address("192.0.2.1", 5000), Address("198.51.100.1", 6000)
BASE = Base(1, 0, 1, "tcp", HERE, TcpType.SIMULTANEOUS_OPEN)
REQUEST = Message.request(Method.BINDING, bytes(12))
SUCCESS = encode(Message.success(REQUEST))
ERROR = encode(Message.error(REQUEST, 487))
CHECK = encode(REQUEST)
DATA = b"\xc8some data"


class Desk:
    def __init__(self, *, controlling: bool = True, trusting: bool = True) -> None:
        self.queue: deque[Any] = deque()
        self.board = Switchboard(self.queue, count(1))
        self.drops: Counter[DropReason] = Counter()
        self.got: list[bytes] = []
        self.answer = b""
        self.connections = Connections(
            self.board,
            deliver=self._deliver,
            drops=self.drops,
            controlling=lambda: controlling,
            trusting=trusting,
        )
        self.now = 0

    def _deliver(self, base: Base, remote: Address, data: bytes, now: int) -> None:
        assert (base, remote, now) == (BASE, THERE, self.now)
        self.got.append(data)
        if self.answer:
            self.connections.send(base, remote, self.answer, now)

    def orders(self) -> list[Any]:
        orders = [*self.queue]
        self.queue.clear()
        return orders

    def accept(self, handle: int = -1) -> None:
        self.connections.accepted(handle, BASE, THERE, self.now, wanted=False)

    def dialled(self, handle: int) -> None:
        self.connections.add(
            Direct(self.connections, self.board, handle, BASE, THERE, accepted=False, now=self.now)
        )

    def send(self, data: bytes = DATA) -> bool:
        return self.connections.send(BASE, THERE, data, self.now)

    def tell(self, event: Any) -> None:
        self.board.owners[event.handle].on_socket(event, self.now)

    def used(self) -> int:
        """Return which connection what is sent goes over."""
        self.orders()
        assert self.send()
        (order,) = self.orders()
        assert isinstance(order, Write)
        return order.handle


@pytest.fixture
def desk() -> Desk:
    return Desk()


class TestFraming:
    """RFC 4571."""

    def test_what_is_sent_has_its_length_before_it(self, desk: Desk) -> None:
        desk.dialled(1)
        desk.orders()
        for data in (b"", DATA, bytes(65_535)):
            desk.send(data)
            assert desk.orders() == [Write(1, rfc4571_frame(data))]

    @pytest.mark.parametrize("accepted", [False, True])
    def test_cut_anywhere(self, desk: Desk, rng: Random, accepted: bool) -> None:
        handle = -1 if accepted else 1
        desk.accept() if accepted else desk.dialled(1)
        desk.answer = SUCCESS
        packets = [CHECK, DATA, b"", CHECK, bytes(3000), b"\xff" * 65_535, DATA]
        stream = b"".join(map(rfc4571_frame, packets))
        while stream:
            size = rng.choice((1, 2, 3, 20, 1000, 20_000))
            desk.tell(Arrived(handle, stream[:size]))
            stream = stream[size:]
        assert desk.got == packets
        assert not desk.drops

    def test_octet_by_octet_and_all_at_once(self, desk: Desk) -> None:
        stream = rfc4571_frame(CHECK) + rfc4571_frame(DATA)
        desk.answer = SUCCESS
        desk.accept(-1)
        desk.tell(Arrived(-1, stream))
        for octet in stream:
            desk.tell(Arrived(-1, bytes([octet])))
        assert desk.got == [CHECK, DATA] * 2


class TestProof:
    def test_success_proves(self, desk: Desk) -> None:
        desk.accept()
        desk.answer = SUCCESS
        desk.tell(Arrived(-1, rfc4571_frame(CHECK)))
        assert desk.connections.deadline() is None
        desk.tell(Arrived(-1, rfc4571_frame(bytes(60_000))))
        assert desk.got == [CHECK, bytes(60_000)]

    @pytest.mark.parametrize("answer", [ERROR, b""], ids=["error", "none"])
    def test_nothing_else_does(self, desk: Desk, answer: bytes) -> None:
        desk.accept()
        desk.answer = answer
        desk.tell(Arrived(-1, rfc4571_frame(CHECK)))
        assert desk.connections.deadline() == PROOF
        desk.orders()
        desk.tell(Arrived(-1, rfc4571_frame(DATA)))
        assert desk.got == [CHECK]
        assert Shut(-1, reset=True) in desk.orders()
        assert desk.drops == {DropReason.NOT_EXPECTED_PROTOCOL: 1}

    def test_what_is_kept_of_a_stranger_is_bounded(self, desk: Desk) -> None:
        desk.accept()
        desk.orders()
        desk.tell(Arrived(-1, (UNPROVEN_FRAME + 1).to_bytes(2)))
        shut, closed = desk.orders()
        assert shut == Shut(-1, reset=True)
        assert closed.cause is Cause.OTHER
        assert desk.drops == {DropReason.TOO_LONG: 1}
        assert not desk.board.owners

    def test_null_packets_of_a_stranger_are_nothing(self, desk: Desk) -> None:
        desk.accept()
        desk.tell(Arrived(-1, bytes(2000)))
        assert not desk.got
        assert desk.connections.deadline() == PROOF

    def test_who_was_dialled_has_to_begin_with_stun(self, desk: Desk) -> None:
        """RFC 6544 section 7.1."""
        desk.dialled(1)
        desk.orders()
        desk.tell(Arrived(1, rfc4571_frame(b"SSH-2.0-OpenSSH")))
        assert desk.orders()[1] == PathClosed(
            BASE, THERE, Cause.OTHER, "what came first was not STUN"
        )

    def test_time_is_up(self, desk: Desk) -> None:
        desk.accept()
        desk.now = PROOF - 1
        desk.connections.on_deadline(desk.now)
        assert desk.orders() == [PathOpened(BASE, THERE)]
        desk.now = PROOF
        desk.connections.on_deadline(desk.now)
        shut, closed = desk.orders()
        assert shut == Shut(-1, reset=True)
        assert closed.cause is Cause.TIMED_OUT
        assert desk.drops == {DropReason.MISSING_INTEGRITY: 1}


class TestTwoOfOnePath:
    """Both agents, which see them in any order, keep the same one."""

    @pytest.mark.parametrize(("first_a", "first_b"), [*product("xy", repeat=2)])
    def test_both_keep_what_the_controlling_one_dialled(self, first_a: str, first_b: str) -> None:
        a, b = Desk(controlling=True), Desk(controlling=False)
        # x is dialled by a and accepted by b; y is the other way round.
        at_a = {"x": lambda: a.dialled(1), "y": lambda: a.accept(-1)}
        at_b = {"x": lambda: b.accept(-1), "y": lambda: b.dialled(1)}
        for how, first in ((at_a, first_a), (at_b, first_b)):
            how[first]()
            how["y" if first == "x" else "x"]()
        for desk, lost in ((a, -1), (b, 1)):
            orders = desk.orders()
            assert orders.count(PathOpened(BASE, THERE)) == 1
            assert [order for order in orders if isinstance(order, Shut)] == [Shut(lost, True)]
            assert not any(isinstance(order, PathClosed) for order in orders)
            assert desk.used() == -lost
            assert [*desk.board.owners] == [-lost]

    def test_a_newer_one_of_the_same_kind_replaces_one_that_must_be_dead(self, desk: Desk) -> None:
        desk.accept(-1)
        desk.accept(-2)
        assert desk.orders() == [PathOpened(BASE, THERE), Shut(-1, True)]
        assert desk.used() == -2

    def test_congestion_ends_with_the_one_that_had_it(self, desk: Desk) -> None:
        desk.accept(-1)
        desk.tell(Congested(-1))
        desk.accept(-2)
        assert desk.orders()[-1] == PathCongested(BASE, THERE, relieved=True)


class TestCongestion:
    def test_some_is_taken_and_then_no_more(self, desk: Desk) -> None:
        desk.dialled(1)
        desk.tell(Congested(1))
        assert PathCongested(BASE, THERE) in desk.orders()
        taken = 0
        while desk.send(bytes(1000)):
            taken += 1000
        assert WAITING - 1000 <= taken <= WAITING
        assert desk.drops == {DropReason.CONGESTED: 1}
        desk.orders()
        desk.tell(Relieved(1))
        assert desk.orders() == [PathCongested(BASE, THERE, relieved=True)]
        assert desk.send(bytes(1000))

    def test_the_end(self, desk: Desk) -> None:
        desk.dialled(1)
        desk.orders()
        desk.tell(Closed(1, Cause.RESET, "so be it"))
        assert desk.orders() == [PathClosed(BASE, THERE, Cause.RESET, "so be it")]
        assert not desk.send()
        assert desk.drops == {DropReason.UNKNOWN_STREAM: 1}


class TestInterruption:
    """A simultaneous open that succeeded here and failed there."""

    @pytest.fixture
    def asked(self, desk: Desk) -> list[Any]:
        asked: list[Any] = []
        desk.connections.reopen = lambda *what: asked.append(what)
        return asked

    def test_it_is_opened_again_and_what_was_sent_is_sent_again(
        self, desk: Desk, asked: list[Any]
    ) -> None:
        desk.dialled(1)
        desk.send(CHECK)
        desk.orders()
        desk.now = 7
        desk.tell(Closed(1, Cause.RESET))
        assert asked == [(BASE, THERE, 7)]
        assert not desk.orders()
        desk.connections.accepted(-1, BASE, THERE, 8, wanted=True)
        assert desk.orders() == [Write(-1, rfc4571_frame(CHECK))]
        desk.tell(Closed(-1, Cause.RESET))
        desk.dialled(2)
        assert desk.orders() == [Write(2, rfc4571_frame(CHECK))]
        assert desk.send()

    def test_not_for_ever(self, desk: Desk, asked: list[Any]) -> None:
        for n in range(1, MOST_INTERRUPTIONS + 2):
            desk.dialled(n)
            desk.tell(Closed(n, Cause.RESET))
        assert len(asked) == MOST_INTERRUPTIONS
        assert desk.orders() == [PathOpened(BASE, THERE), PathClosed(BASE, THERE, Cause.RESET)]

    def test_not_after_something_came(self, desk: Desk, asked: list[Any]) -> None:
        desk.dialled(1)
        desk.tell(Arrived(1, rfc4571_frame(SUCCESS)))
        desk.tell(Closed(1, Cause.RESET))
        assert not asked
        assert desk.orders()[-1] == PathClosed(BASE, THERE, Cause.RESET)

    def test_not_what_nobody_here_asked_for(self, desk: Desk, asked: list[Any]) -> None:
        desk.accept()
        desk.tell(Closed(-1, Cause.RESET))
        assert not asked
        assert desk.orders()[-1] == PathClosed(BASE, THERE, Cause.RESET)

    def test_what_is_kept_for_that_is_bounded(self, desk: Desk, asked: list[Any]) -> None:
        desk.dialled(1)
        for _ in range(100):
            desk.send()
        desk.tell(Closed(1, Cause.RESET))
        desk.orders()
        desk.dialled(2)
        assert len(desk.orders()) == MOST_UNANSWERED
        assert len(asked) == 1

    def test_it_may_be_given_up(self, desk: Desk, asked: list[Any]) -> None:
        desk.dialled(1)
        desk.send(CHECK)
        desk.tell(Closed(1, Cause.RESET))
        desk.connections.give_up((BASE, THERE))
        desk.orders()
        desk.dialled(2)
        assert desk.orders() == [PathOpened(BASE, THERE)]
        assert asked


class TestHandingOver:
    """A connection goes to somebody else, octets and all."""

    def test_what_this_side_opened_has_to_prove_itself_too(self) -> None:
        desk = Desk(trusting=False)
        desk.dialled(1)
        desk.orders()
        desk.now = PROOF
        desk.connections.on_deadline(desk.now)
        shut, closed = desk.orders()
        assert (shut, closed.cause) == (Shut(1, reset=True), Cause.TIMED_OUT)
        assert desk.drops == {DropReason.MISSING_INTEGRITY: 1}

    def test_nothing_behind_the_packet_that_decides_is_read(self) -> None:
        desk = Desk(trusting=False)
        desk.dialled(1)
        desk.answer = SUCCESS
        released = []

        def deliver(base: Base, remote: Address, data: bytes, now: int) -> None:
            desk._deliver(base, remote, data, now)
            if len(desk.got) == 2:
                released.append(desk.connections.release((base, remote)))

        desk.connections._deliver = deliver
        desk.tell(Arrived(1, rfc4571_frame(CHECK)))
        desk.tell(Arrived(1, rfc4571_frame(CHECK) + b"\x00\x03abcdef"))
        assert desk.got == [CHECK, CHECK]
        assert released == [(1, b"\x00\x03abcdef")]
        assert not desk.board.owners
        assert (BASE, THERE) not in desk.connections
        assert not any(isinstance(order, Shut) for order in desk.orders())

    def test_there_is_none(self, desk: Desk) -> None:
        assert desk.connections.release((BASE, THERE)) is None


def test_what_is_sent_while_a_path_is_opened_again_is_sent_then(desk: Desk) -> None:
    reopened: list[Address] = []
    desk.connections.reopen = lambda _, remote, __: reopened.append(remote)
    desk.dialled(1)
    desk.send(CHECK)
    desk.tell(Closed(1, Cause.RESET))
    assert reopened == [THERE]
    desk.orders()
    assert desk.send(SUCCESS)
    assert not desk.orders()
    desk.dialled(2)
    assert desk.orders() == [Write(2, rfc4571_frame(CHECK)), Write(2, rfc4571_frame(SUCCESS))]


def test_but_no_more_than_can_be_kept(desk: Desk) -> None:
    desk.connections.reopen = lambda *_: None
    desk.dialled(1)
    desk.tell(Closed(1, Cause.RESET))
    taken = [desk.send(CHECK) for _ in range(MOST_UNANSWERED + 2)]
    assert taken == [True] * MOST_UNANSWERED + [False] * 2
    assert desk.drops == {DropReason.UNKNOWN_STREAM: 2}
    assert not desk.connections.send(BASE, HERE, CHECK, 0)
