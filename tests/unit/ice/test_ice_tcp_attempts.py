"""Opening connections: what is dialled when, from where, how far."""

from __future__ import annotations

from collections import Counter, deque
from itertools import count
from random import Random
from typing import Any

import pytest

from ice.base import Base, PathClosed, PathOpened
from ice.candidate import TcpType
from ice.tcp.attempts import (
    BURST,
    CROWDED,
    EXISTS_PAUSE,
    HOPS,
    MOST_BUCKETS,
    MOST_OUTSTANDING,
    PUNCHED,
    RATE,
    Attempts,
)
from ice.tcp.connections import Connections
from ice.tcp.switchboard import Switchboard
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Accepted,
    Address,
    Cause,
    Closed,
    Connected,
    Dial,
    Instant,
    Shut,
    SocketEvent,
)

PATIENCE = 39 * SECOND
HERE = Address("192.0.2.1", 5000)
THERE = Address("198.51.100.1", 6000)


def base_at(address: Address, tcptype: TcpType) -> Base:
    return Base(1, 0, 1, "tcp", address, tcptype)


SO = base_at(HERE, TcpType.SIMULTANEOUS_OPEN)
ACTIVE = base_at(Address(HERE.host, 9), TcpType.ACTIVE)


class Desk:
    """Attempts, led by hand: what they order comes out as a list."""

    def __init__(self, rng: Random) -> None:
        self.queue: deque[Any] = deque()
        self.board = Switchboard(self.queue, count(1))
        self.drops: Counter[Any] = Counter()
        self.connections = Connections(
            self.board,
            deliver=lambda *_: None,
            drops=self.drops,
            controlling=lambda: True,
        )
        self.attempts = Attempts(
            self.board, self.connections, patience=PATIENCE, entropy=rng.randbytes
        )
        self.now: Instant = 1000 * SECOND
        self.dialled: list[Dial] = []

    def start(self, base: Base = SO, remote: Address = THERE) -> None:
        self.attempts.start(base, remote, self.now)

    def orders(self) -> list[Any]:
        orders = [*self.queue]
        self.queue.clear()
        self.dialled += [order for order in orders if isinstance(order, Dial)]
        return orders

    def dial(self) -> Dial:
        """Return the one order there is."""
        (order,) = self.orders()
        assert isinstance(order, Dial)
        return order

    def tell(self, event: SocketEvent) -> None:
        handle = event.listener if isinstance(event, Accepted) else getattr(event, "handle", 0)
        self.board.owners[handle].on_socket(event, self.now)

    def refuse(self, dial: Dial, cause: Cause = Cause.REFUSED) -> None:
        self.tell(Closed(dial.handle, cause))

    def wait(self, duration: int) -> None:
        self.now += duration
        self.attempts.on_deadline(self.now)

    def wait_for_deadline(self) -> int:
        due = self.attempts.deadline()
        assert due is not None
        waited = max(0, due - self.now)
        self.wait(waited)
        return waited


@pytest.fixture
def desk(rng: Random) -> Desk:
    return Desk(rng)


def exhaust(desk: Desk) -> Dial:
    """Refuse as long as another dial follows at once; return the first punch."""
    desk.start()
    for n in range(BURST + 2):
        dial = desk.dial()
        if dial.ttl is not None:
            assert n == BURST + 1
            return dial
        desk.refuse(dial)
    raise AssertionError("it goes on for ever")


class TestActive:
    def test_it_dials_from_any_port_once(self, desk: Desk) -> None:
        desk.start(ACTIVE)
        dial = desk.dial()
        assert (dial.local, dial.remote, dial.ttl) == (Address(HERE.host, 0), THERE, None)
        desk.refuse(dial)
        assert desk.orders() == [PathClosed(ACTIVE, THERE, Cause.REFUSED)]
        assert desk.attempts.deadline() is None
        assert not desk.board.owners

    def test_it_connects(self, desk: Desk) -> None:
        desk.start(ACTIVE)
        dial = desk.dial()
        desk.tell(Connected(dial.handle, Address(HERE.host, 40_000), THERE))
        assert desk.orders() == [PathOpened(ACTIVE, THERE)]
        assert (ACTIVE, THERE) in desk.connections
        assert (ACTIVE, THERE) not in desk.attempts

    def test_asked_for_twice_it_dials_once(self, desk: Desk) -> None:
        desk.start(ACTIVE)
        desk.start(ACTIVE)
        assert len(desk.orders()) == 1

    def test_it_is_given_up_at_last(self, desk: Desk) -> None:
        desk.start(ACTIVE)
        dial = desk.dial()
        desk.wait(PATIENCE - 1)
        assert not desk.orders()
        desk.wait(1)
        closed, shut = desk.orders()
        assert (closed.cause, shut) == (Cause.TIMED_OUT, Shut(dial.handle))

    def test_cancelled_it_says_nothing(self, desk: Desk) -> None:
        desk.start(ACTIVE)
        dial = desk.dial()
        desk.attempts.cancel((ACTIVE, THERE), desk.now)
        desk.attempts.cancel((ACTIVE, THERE), desk.now)
        assert desk.orders() == [Shut(dial.handle)]

    def test_a_link_local_address_is_dialled_on_its_link(self, desk: Desk) -> None:
        base = base_at(Address("fe80::1%eth0", 9), TcpType.ACTIVE)
        desk.start(base, Address("fe80::2", 6000))
        dial = desk.dial()
        assert dial.remote == Address("fe80::2%eth0", 6000)
        desk.tell(Connected(dial.handle, Address("fe80::1%eth0", 1), dial.remote))
        assert desk.orders() == [PathOpened(base, Address("fe80::2", 6000))]


class TestLimits:
    """RFC 6544 section 12."""

    def test_five_at_once_to_one_address(self, desk: Desk) -> None:
        for port in range(1, 9):
            desk.start(ACTIVE, Address(THERE.host, port))
        desk.start(ACTIVE, Address("203.0.113.1", 1))
        dials = desk.orders()
        assert [dial.remote.port for dial in dials] == [1, 2, 3, 4, 5, 1]
        desk.refuse(dials[2])
        closed, following = desk.orders()
        assert closed.remote.port == 3
        assert following.remote.port == 6

    def test_others_do_not_wait_for_ever(self, desk: Desk) -> None:
        for port in range(1, 8):
            desk.start(ACTIVE, Address(THERE.host, port))
        assert len(desk.orders()) == MOST_OUTSTANDING
        desk.wait(CROWDED)
        orders = desk.orders()
        assert [o.remote.port for o in orders if isinstance(o, Dial)] == [6, 7]
        assert sum(isinstance(order, PathClosed) for order in orders) == MOST_OUTSTANDING

    def test_one_that_waits_can_be_cancelled(self, desk: Desk) -> None:
        for port in range(1, 8):
            desk.start(ACTIVE, Address(THERE.host, port))
        dials = desk.orders()
        desk.attempts.cancel((ACTIVE, Address(THERE.host, 6)), desk.now)
        assert not desk.orders()
        desk.refuse(dials[0])
        assert [o.remote.port for o in desk.orders()] == [1, 7]

    def test_all_of_a_base(self, desk: Desk) -> None:
        for port in range(1, 8):
            desk.start(ACTIVE, Address(THERE.host, port))
        desk.orders()
        desk.attempts.cancel_all(ACTIVE, desk.now)
        opened = [o.handle for o in desk.dialled]
        shut = [order.handle for order in desk.orders() if isinstance(order, Shut)]
        assert set(opened) <= set(shut)
        assert desk.attempts.deadline() is None
        assert not desk.board.owners


class TestSimultaneousOpen:
    def test_it_dials_from_the_port_that_listens(self, desk: Desk) -> None:
        desk.start()
        assert desk.dial() == Dial(1, HERE, THERE)

    @pytest.mark.parametrize("cause", [Cause.REFUSED, Cause.UNREACHABLE, Cause.RESET])
    def test_what_is_refused_is_dialled_again_at_once(self, desk: Desk, cause: Cause) -> None:
        desk.start()
        for _ in range(10):
            dial = desk.dial()
            assert (dial.local, dial.remote, dial.ttl) == (HERE, THERE, None)
            desk.refuse(dial, cause)
        desk.tell(Connected(desk.dial().handle, HERE, THERE))
        assert desk.orders() == [PathOpened(SO, THERE)]

    @pytest.mark.parametrize("cause", [Cause.NOT_PERMITTED, Cause.ADDRESS_NOT_AVAILABLE])
    def test_what_is_hopeless_is_not(self, desk: Desk, cause: Cause) -> None:
        desk.start()
        desk.refuse(desk.dial(), cause)
        (closed,) = desk.orders()
        assert closed.cause is cause

    def test_after_the_burst_there_are_pauses_and_punches(self, desk: Desk) -> None:
        punch = exhaust(desk)
        assert punch.ttl == HOPS[0]
        assert punch.local == HERE
        began, dials = desk.now, 0
        hops: list[int | None] = []
        while desk.now < began + 20 * SECOND:
            # A router tells of the punch, which changes nothing.
            desk.refuse(punch, Cause.UNREACHABLE)
            assert not desk.orders()
            desk.wait_for_deadline()
            dial = desk.dial()
            assert dial.ttl is None
            desk.refuse(dial)
            punch = desk.dial()
            hops.append(punch.ttl)
            dials += 2
        assert 0.8 * RATE * 20 < dials < 1.2 * RATE * 20
        assert {*hops} == {*HOPS}

    def test_pauses_are_not_all_alike(self, desk: Desk) -> None:
        punch = exhaust(desk)
        pauses = set()
        for _ in range(20):
            desk.refuse(punch, Cause.UNREACHABLE)
            pauses.add(desk.wait_for_deadline())
            desk.refuse(desk.dial())
            punch = desk.dial()
        assert len(pauses) > 15
        assert max(pauses) <= 4 * SECOND // RATE

    def test_a_punch_that_reached_the_peer_went_too_far(self, desk: Desk) -> None:
        punch = exhaust(desk)
        seen = []
        for _ in range(12):
            seen.append(punch.ttl)
            far = punch.ttl is not None and punch.ttl >= 4
            desk.refuse(punch, Cause.REFUSED if far else Cause.UNREACHABLE)
            desk.wait_for_deadline()
            desk.refuse(desk.dial())
            punch = desk.dial()
        assert seen[:3] == [2, 3, 4]
        assert {*seen[3:]} == {2, 3}

    def test_where_every_punch_goes_too_far_there_are_pauses_only(self, desk: Desk) -> None:
        punch = exhaust(desk)
        assert punch.ttl == 2
        desk.refuse(punch)
        desk.wait_for_deadline()
        desk.refuse(desk.dial())
        assert not desk.orders()
        desk.wait_for_deadline()
        assert desk.dial().ttl is None

    def test_a_punch_that_nobody_tells_of_is_a_dial(self, desk: Desk) -> None:
        """The kernel sends its SYN once more after a second, all the way."""
        punch = exhaust(desk)
        desk.wait_for_deadline()
        assert not desk.orders()
        desk.wait(PUNCHED)
        desk.refuse(punch)
        # So this was no punch's, and tells nothing of how far they may go.
        assert desk.dial().ttl == HOPS[1]

    def test_a_router_that_tells_of_a_punch_late(self, desk: Desk) -> None:
        punch = exhaust(desk)
        desk.wait_for_deadline()
        desk.now += MILLISECOND
        desk.refuse(punch, Cause.UNREACHABLE)
        assert desk.dial().ttl is None

    def test_a_punch_may_connect(self, desk: Desk) -> None:
        punch = exhaust(desk)
        desk.tell(Connected(punch.handle, HERE, THERE))
        assert desk.orders() == [PathOpened(SO, THERE)]
        assert desk.attempts.deadline() is None

    def test_addresses_in_use_are_waited_for(self, desk: Desk) -> None:
        desk.start()
        desk.refuse(desk.dial(), Cause.ADDRESS_IN_USE)
        assert not desk.orders()
        assert desk.wait_for_deadline() == EXISTS_PAUSE
        desk.refuse(desk.dial(), Cause.ADDRESS_IN_USE)
        # The listener has it.
        desk.connections.accepted(-1, SO, THERE, desk.now, wanted=True)
        assert desk.orders() == [PathOpened(SO, THERE)]
        desk.attempts.cancel((SO, THERE), desk.now)
        assert desk.attempts.deadline() is None
        assert not desk.orders()

    def test_what_fails_after_it_was_accepted_is_no_failure(self, desk: Desk) -> None:
        desk.start()
        dial = desk.dial()
        desk.connections.accepted(-1, SO, THERE, desk.now, wanted=True)
        desk.orders()
        desk.refuse(dial)
        assert not desk.orders()
        assert desk.attempts.deadline() is None

    def test_it_is_given_up_at_last_and_says_what_happened(self, desk: Desk) -> None:
        punch = exhaust(desk)
        while True:
            orders = desk.orders()
            if orders and isinstance(orders[0], PathClosed):
                break
            for order in orders:
                if isinstance(order, Dial):
                    desk.refuse(order)
            desk.wait_for_deadline()
        closed = orders[0]
        assert closed.cause is Cause.TIMED_OUT
        assert "connection refused" in closed.detail
        assert desk.now <= 1000 * SECOND + PATIENCE + MILLISECOND
        assert punch.handle not in desk.board.owners

    def test_the_bounds_are_those_of_an_address(self, desk: Desk) -> None:
        """Another port of it has no burst of its own; another address has."""
        exhaust(desk)
        desk.start(SO, Address(THERE.host, 7000))
        desk.refuse(desk.dial())
        assert desk.dial().ttl is not None
        desk.start(SO, Address("203.0.113.1", 7000))
        desk.refuse(desk.dial())
        assert desk.dial().ttl is None

    def test_an_attempt_anew_has_no_new_burst(self, desk: Desk) -> None:
        exhaust(desk)
        desk.attempts.cancel((SO, THERE), desk.now)
        desk.orders()
        desk.start()
        desk.refuse(desk.dial())
        assert desk.dial().ttl is not None

    def test_what_is_remembered_of_addresses_is_bounded(self, desk: Desk) -> None:
        for n in range(4 * MOST_BUCKETS):
            remote = Address(f"203.0.113.{n % 250}" if n < 250 else f"203.0.114.{n % 250}", 1)
            desk.start(SO, remote)
            desk.refuse(desk.dial())
            desk.orders()
            desk.attempts.cancel((SO, remote), desk.now)
            desk.orders()
        assert len(desk.attempts._buckets) <= MOST_BUCKETS
