"""One connection of several: proof, nomination, and where the checks end."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from itertools import count
from random import Random
from typing import Any

import pytest

from ice.base import Base, PathClosed
from ice.candidate import TcpType
from ice.config import Credentials
from ice.messages import Keys, refusal, request, success, unproved_refusal
from ice.tcp.connections import Connections, Direct, Key
from ice.tcp.election import MOST_EARLY, PATIENCE, Election, Told
from ice.tcp.switchboard import Switchboard
from stun.codec import decode, encode
from stun.errors import DropReason
from stun.framing import rfc4571_frame
from stun.message import Message
from stun.registry import ErrorCode, Method
from stun.sansio import Address, Arrived, Instant, Shut, Write

A = Credentials("aaaa", "a" * 22)
B = Credentials("bbbb", "b" * 22)
HERE, THERE = Address("192.0.2.1", 5000), Address("198.51.100.1", 6000)


class Side:
    """One side: its connections are numbered from 1 up, in the order in which they come up."""

    def __init__(self, rng: Random, *, controlling: bool) -> None:
        self.queue: deque[Any] = deque()
        self.board = Switchboard(self.queue, count(100))
        self.drops: Counter[DropReason] = Counter()
        self.controlling = controlling
        self.now: Instant = 0
        self.won: list[tuple[int, bytes]] = []
        self.lost: list[str] = []
        self.hopeless: list[str] = []
        self.connections = Connections(
            self.board,
            deliver=self._deliver,
            drops=self.drops,
            controlling=lambda: controlling,
            trusting=False,
        )
        self.election = Election(
            self.connections,
            Told(
                self._won,
                lambda _, why, __: self.lost.append(why),
                lambda why, _: self.hopeless.append(why),
            ),
            drops=self.drops,
            entropy=rng.randbytes,
            software=None,
        )
        self.keys: dict[int, Key] = {}

    def _deliver(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        self.election.packet(base, remote, data, now)

    def _won(self, key: Key, now: Instant) -> None:
        assert now == self.now
        found = self.connections.release(key)
        assert found is not None
        self.won.append(found)

    def begin(self, local: Credentials | None = None, remote: Credentials | None = None) -> None:
        mine, theirs = (A, B) if self.controlling else (B, A)
        keys = Keys(local or mine)
        keys.set_remote(remote or theirs)
        self.election.begin(keys, self.now, controlling=self.controlling)

    def up(self, number: int) -> None:
        base = Base(number, 0, 1, "tcp", HERE, TcpType.SIMULTANEOUS_OPEN)
        self.keys[number] = base, THERE
        connection = Direct(
            self.connections, self.board, number, base, THERE, accepted=False, now=self.now
        )
        self.connections.add(connection)
        self.election.opened((base, THERE), self.now)

    def arrive(self, number: int, data: bytes) -> None:
        self.board.owners[number].on_socket(Arrived(number, data), self.now)

    def said(self) -> list[Any]:
        orders = [order for order in self.queue if isinstance(order, Write | Shut)]
        self.queue.clear()
        return orders

    def told_closed(self) -> list[PathClosed]:
        return [order for order in self.queue if isinstance(order, PathClosed)]


@pytest.fixture
def make(rng: Random) -> Callable[..., Side]:
    return lambda **options: Side(rng, **options)


def one_packet(side: Side) -> Message:
    """Return the one packet that a side has just sent."""
    (order,) = side.said()
    assert isinstance(order, Write)
    return decode(order.data[2:])


def run(a: Side, b: Side, rng: Random) -> tuple[bytes, bytes]:
    """Carry octets, cut anywhere, until both have won; return what each was sent behind that.

    The moment that a side has won, its user sends something.
    """
    wires: dict[tuple[int, int], bytearray] = {}
    words = {0: b"A" * 3000, 1: b"B" * 3000}
    spoken: set[int] = set()
    got = [bytearray(), bytearray()]
    sides = (a, b)
    for _ in range(100_000):
        for n, side in enumerate(sides):
            for order in side.said():
                if isinstance(order, Write):
                    wires.setdefault((n, order.handle), bytearray()).extend(order.data)
            if side.won and n not in spoken:
                spoken.add(n)
                handle, rest = side.won[0]
                got[n] += rest
                wires.setdefault((n, handle), bytearray()).extend(words[n])
        ready = [key for key, wire in wires.items() if wire]
        if not ready:
            break
        n, handle = rng.choice(ready)
        wire = wires[n, handle]
        size = rng.choice((1, 3, 50, 200, 5000))
        data, other = bytes(wire[:size]), 1 - n
        del wire[:size]
        if sides[other].won and sides[other].won[0][0] == handle:
            got[other] += data
        elif handle in sides[other].board.owners:
            sides[other].arrive(handle, data)
    assert (bytes(got[0]), bytes(got[1])) == (words[1], words[0])
    return bytes(got[0]), bytes(got[1])


class TestWinning:
    @pytest.mark.parametrize("connections", [1, 2, 5])
    def test_both_have_the_same_one_and_lose_nothing(
        self, make: Callable[..., Side], rng: Random, connections: int
    ) -> None:
        for _ in range(30):
            a, b = make(controlling=True), make(controlling=False)
            steps: list[Callable[[], None]] = [a.begin, b.begin]
            for number in range(1, connections + 1):
                steps += [partial(a.up, number), partial(b.up, number)]
            rng.shuffle(steps)
            for step in steps:
                step()
            run(a, b, rng)
            assert len(a.won) == len(b.won) == 1
            assert a.won[0][0] == b.won[0][0]
            assert not a.lost
            assert not b.lost

    def test_the_controlling_side_nominates_one_at_a_time(self, make: Callable[..., Side]) -> None:
        a = make(controlling=True)
        a.begin()
        for number in (1, 2):
            a.up(number)
        a.said()
        for number in (1, 2):
            a.arrive(number, check(b"%012d" % number))
        nominations = [
            order
            for order in a.said()
            if any(code == 0x25 for code, _ in decode(order.data[2:]).attributes)
        ]
        assert [order.handle for order in nominations] == [1]
        a.now += PATIENCE
        a.election.on_deadline(a.now)
        shut, again = a.said()
        assert shut == Shut(1, reset=True)
        assert again.handle == 2
        assert a.drops[DropReason.NOBODY_ANSWERED] == 1
        assert a.lost == [DropReason.NOBODY_ANSWERED.value]

    def test_a_nominated_one_that_ends_gives_way(self, make: Callable[..., Side]) -> None:
        a = make(controlling=True)
        a.begin()
        for number in (1, 2):
            a.up(number)
            a.arrive(number, check(b"%012d" % number))
        a.said()
        a.connections.drop(a.keys[1])
        a.election.closed(a.keys[1], a.now)
        shut, again = a.said()
        assert (shut.handle, again.handle) == (1, 2)
        assert a.election.up == 1

    def test_the_deadline_is_the_nominations(self, make: Callable[..., Side]) -> None:
        a = make(controlling=True)
        a.begin()
        a.up(1)
        assert a.election.deadline() is None
        a.arrive(1, check(bytes(12)))
        assert a.election.deadline() == a.now + PATIENCE
        a.election.on_deadline(a.now)
        assert a.keys[1] in a.election


def check(name: bytes, **options: Any) -> bytes:
    """Return a check of the controlled side, as it comes over the connection."""
    keys = Keys(options.pop("local", B))
    keys.set_remote(options.pop("remote", A))
    options = {"priority": 1, "controlling": False, "tie_breaker": 7} | options
    return rfc4571_frame(request(name, keys, **options))


class TestStrangers:
    @pytest.mark.parametrize(
        ("packet", "reason"),
        [
            (
                check(bytes(12), local=Credentials("cccc", "c" * 22)),
                DropReason.UNKNOWN_USERNAME,
            ),
            (
                check(bytes(12), remote=Credentials("aaaa", "x" * 22)),
                DropReason.BAD_INTEGRITY,
            ),
            (
                check(bytes(12), remote=Credentials("dddd", "a" * 22)),
                DropReason.UNKNOWN_USERNAME,
            ),
            (
                rfc4571_frame(encode(Message.request(Method.BINDING, bytes(12)), fingerprint=True)),
                DropReason.UNKNOWN_USERNAME,
            ),
            (
                rfc4571_frame(encode(Message.request(Method.BINDING, bytes(12)))),
                DropReason.BAD_FINGERPRINT,
            ),
            (
                rfc4571_frame(encode(Message.request(Method.ALLOCATE, bytes(12)))),
                DropReason.UNKNOWN_METHOD,
            ),
            (
                rfc4571_frame(b"\x00\x01\x00\x04!\x12\xa4\x42" + bytes(12)),
                DropReason.LENGTH_MISMATCH,
            ),
        ],
    )
    def test_who_does_not_prove_himself_is_reset(
        self, make: Callable[..., Side], packet: bytes, reason: DropReason
    ) -> None:
        a = make(controlling=True)
        a.begin()
        a.up(1)
        a.said()
        a.arrive(1, packet)
        assert a.said() == [Shut(1, reset=True)]
        assert a.drops == {reason: 1}
        assert a.lost == [reason.value]
        assert a.keys[1] not in a.election

    def test_what_was_not_asked_for(self, make: Callable[..., Side]) -> None:
        a = make(controlling=True)
        a.begin()
        a.up(1)
        a.said()
        asked = decode(encode(Message.request(Method.BINDING, b"z" * 12)))
        a.arrive(1, rfc4571_frame(success(asked, HERE, B.password.encode(), None)))
        assert a.drops == {DropReason.UNKNOWN_TRANSACTION: 1}
        assert not a.said()

    @pytest.mark.parametrize("key", [b"wrong", b""])
    def test_an_answer_that_proves_nothing(self, make: Callable[..., Side], key: bytes) -> None:
        a = make(controlling=True)
        a.begin()
        a.up(1)
        asked = one_packet(a)
        answer = success(asked, HERE, key, None)
        if not key:
            answer = encode(Message.success(asked), fingerprint=True)
        a.arrive(1, rfc4571_frame(answer))
        assert a.said() == [Shut(1, reset=True)]
        assert a.drops == {DropReason.BAD_INTEGRITY if key else DropReason.MISSING_INTEGRITY: 1}

    def test_a_refusal_that_proves_nothing(self, make: Callable[..., Side]) -> None:
        a = make(controlling=True)
        a.begin()
        a.up(1)
        asked = one_packet(a)
        a.arrive(1, rfc4571_frame(unproved_refusal(asked, ErrorCode.UNAUTHENTICATED)))
        assert a.drops == {DropReason.MISSING_INTEGRITY: 1}

    def test_a_refusal_of_the_peer(self, make: Callable[..., Side]) -> None:
        a = make(controlling=True)
        a.begin()
        a.up(1)
        answer = refusal(one_packet(a), ErrorCode.BAD_REQUEST, B.password.encode())
        a.arrive(1, rfc4571_frame(answer))
        assert a.said() == [Shut(1, reset=True)]
        assert not a.hopeless

    def test_an_attribute_that_nobody_knows(self, make: Callable[..., Side]) -> None:
        """RFC 8489 section 6.3.1: 420, and the connection lives on."""
        a = make(controlling=True)
        a.begin()
        a.up(1)
        a.said()
        message = Message.request(Method.BINDING, bytes(12))
        message.attributes += [(0x0006, b"aaaa:bbbb"), (0x7ABC, b"")]
        data = encode(message, key=A.password.encode(), fingerprint=True)
        a.arrive(1, rfc4571_frame(data))
        assert one_packet(a).message_class.name == "ERROR"
        assert a.keys[1] in a.election
        assert a.drops == {DropReason.UNKNOWN_COMPREHENSION_REQUIRED: 1}


class TestRoles:
    def test_the_same_role_is_told_to_both(self, make: Callable[..., Side], rng: Random) -> None:
        a, b = make(controlling=True), make(controlling=True)
        a.begin()
        b.begin(B, A)
        a.up(1)
        b.up(1)
        (said,) = a.said()
        b.arrive(1, said.data)
        assert "one side has to be controlling" in b.hopeless[0]
        answer = b.said()[-1]
        assert isinstance(answer, Write)
        a.arrive(1, answer.data)
        assert "one side has to be controlling" in a.hopeless[0]

    def test_the_same_credentials_on_both_sides(self, make: Callable[..., Side]) -> None:
        """As where both derive them from one secret, and both say that they control."""
        a, b = make(controlling=True), make(controlling=True)
        a.begin()
        b.begin()
        a.up(1)
        b.up(1)
        (said,) = a.said()
        b.arrive(1, said.data)
        assert b.hopeless

    def test_a_nomination_by_the_controlled_side_is_none(self, make: Callable[..., Side]) -> None:
        a = make(controlling=True)
        a.begin()
        a.up(1)
        a.arrive(1, check(bytes(12), use_candidate=True))
        assert not a.won


class TestEarly:
    def test_what_comes_before_the_credentials_is_kept(
        self, make: Callable[..., Side], rng: Random
    ) -> None:
        a, b = make(controlling=True), make(controlling=False)
        b.begin()
        a.up(1)
        b.up(1)
        (early,) = b.said()
        a.arrive(1, early.data)
        assert not a.said()
        a.begin()
        run(a, b, rng)

    def test_but_not_much_of_it(self, make: Callable[..., Side]) -> None:
        a = make(controlling=True)
        a.up(1)
        for n in range(MOST_EARLY):
            a.arrive(1, check(b"%012d" % n))
        assert not a.said()
        a.arrive(1, check(b"z" * 12))
        assert a.said() == [Shut(1, reset=True)]
        assert a.drops == {DropReason.NO_ROOM: 1}


def test_a_packet_of_no_connection(make: Callable[..., Side]) -> None:
    a = make(controlling=True)
    base = Base(1, 0, 1, "tcp", HERE, TcpType.SIMULTANEOUS_OPEN)
    a.election.packet(base, THERE, b"", 0)
    assert a.drops == {DropReason.UNKNOWN_STREAM: 1}
