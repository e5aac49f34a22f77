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
    MENDING,
    MOST_BUCKETS,
    MOST_OUTSTANDING,
    ONE_LOST,
    OPENING,
    PUNCHED,
    RATE,
    ROUND_TRIPS,
    SILENCE,
    STALE,
    TURN,
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

    def __init__(self, rng: Random, *, low_ttl: bool = False) -> None:
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
            self.board,
            self.connections,
            patience=PATIENCE,
            entropy=rng.randbytes,
            low_ttl=low_ttl,
        )
        self.now: Instant = 1000 * SECOND
        self.dialled: list[Dial] = []

    def start(
        self, base: Base = SO, remote: Address = THERE, *spares: tuple[Base, Address]
    ) -> None:
        self.attempts.start(base, remote, self.now, spares)

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
        assert (closed.cause, shut) == (Cause.TIMED_OUT, Shut(dial.handle, reset=True))

    def test_cancelled_it_says_nothing(self, desk: Desk) -> None:
        desk.start(ACTIVE)
        dial = desk.dial()
        desk.attempts.cancel((ACTIVE, THERE), desk.now)
        desk.attempts.cancel((ACTIVE, THERE), desk.now)
        assert desk.orders() == [Shut(dial.handle, reset=True)]

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
            if any(isinstance(order, PathClosed) for order in orders):
                break
            for order in orders:
                if isinstance(order, Dial) and order.handle in desk.board.owners:
                    desk.refuse(order)
            desk.wait_for_deadline()
        (closed,) = (order for order in orders if isinstance(order, PathClosed))
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


class TestSilence:
    """A socket may be in SYN-RECEIVED with nothing of it passing its NAT any more."""

    def test_it_gives_way_to_another_one(self, desk: Desk) -> None:
        desk.start()
        first = desk.dial()
        desk.wait(STALE - 1)
        assert not desk.orders()
        desk.wait(1)
        # With a RST, as a FIN would leave the addresses in use.
        assert desk.orders() == [Shut(first.handle, reset=True)]
        assert desk.wait_for_deadline() <= MENDING
        again = desk.dial()
        assert (again.local, again.remote, again.ttl) == (HERE, THERE, None)

    def test_refusals_tell_how_long_an_answer_takes(self, desk: Desk) -> None:
        desk.start()
        for took in (80, 50, 200):
            dial = desk.dial()
            desk.now += took * MILLISECOND
            desk.refuse(dial)
        dial = desk.dial()
        assert desk.wait_for_deadline() == ONE_LOST + ROUND_TRIPS * 50 * MILLISECOND
        assert desk.orders() == [Shut(dial.handle, reset=True)]

    def test_each_time_it_takes_twice_as_long(self, desk: Desk) -> None:
        """The way may be longer than what was thought."""
        desk.start()
        waits = []
        for _ in range(3):
            desk.dial()
            waits.append(desk.wait_for_deadline())
            desk.orders()
            desk.wait_for_deadline()
        assert waits[:3] == [STALE, 2 * STALE, 4 * STALE]

    def test_an_active_one_is_left_alone(self, desk: Desk) -> None:
        desk.start(ACTIVE)
        desk.dial()
        assert desk.wait_for_deadline() == PATIENCE


class TestLowTtl:
    """Nothing arrives at the peer's NAT before the peer has had time to begin."""

    def test_the_first_one_dies_on_its_way(self, rng: Random) -> None:
        desk = Desk(rng, low_ttl=True)
        desk.start()
        punch = desk.dial()
        assert punch.ttl == HOPS[0]
        desk.now += 2 * MILLISECOND
        desk.refuse(punch, Cause.UNREACHABLE)  # a router tells of it
        assert not desk.orders()
        assert desk.wait_for_deadline() == OPENING - 2 * MILLISECOND
        assert desk.dial().ttl is None

    def test_if_nobody_tells_of_it_the_kernel_sends_the_next(self, rng: Random) -> None:
        desk = Desk(rng, low_ttl=True)
        desk.start()
        punch = desk.dial()
        assert desk.wait_for_deadline() == OPENING
        assert not desk.orders()
        desk.tell(Connected(punch.handle, HERE, THERE))
        assert desk.orders() == [PathOpened(SO, THERE)]

    def test_after_a_refusal_the_next_one_dies_further_on(self, rng: Random) -> None:
        desk = Desk(rng, low_ttl=True)
        desk.start()
        desk.refuse(desk.dial(), Cause.UNREACHABLE)
        desk.wait_for_deadline()
        desk.refuse(desk.dial())
        assert desk.dial().ttl == HOPS[1]

    def test_where_it_reaches_the_peer_it_is_a_dial_like_any_other(self, rng: Random) -> None:
        desk = Desk(rng, low_ttl=True)
        desk.start()
        desk.refuse(desk.dial())
        desk.wait_for_deadline()
        assert desk.dial().ttl is None

    def test_an_active_one_is_left_alone(self, rng: Random) -> None:
        desk = Desk(rng, low_ttl=True)
        desk.start(ACTIVE)
        assert desk.dial().ttl is None


OTHER = base_at(Address(HERE.host, 5001), TcpType.SIMULTANEOUS_OPEN)
THIRD = base_at(Address(HERE.host, 5002), TcpType.SIMULTANEOUS_OPEN)
SPARES = ((OTHER, Address(THERE.host, 6001)), (THIRD, Address(THERE.host, 6002)))


class TestSpares:
    """Other pairs of ports, for where one is spoilt."""

    def test_after_some_failures(self, desk: Desk) -> None:
        desk.start(SO, THERE, *SPARES)
        for _ in range(TURN - 1):
            desk.refuse(desk.dial())
        desk.refuse(desk.dial())
        orders = desk.orders()
        # The first one goes on: the peer may be where this side has been.
        assert [(o.local.port, o.remote.port) for o in orders] == [(5001, 6001), (5000, 6000)]
        again = orders[0]
        for _ in range(TURN):
            desk.refuse(again)
            spare, *others = [o for o in desk.orders() if isinstance(o, Dial)]
            again = others[0] if others else spare
        assert (spare.local.port, spare.remote.port) == (5002, 6002)

    def test_after_some_silence(self, desk: Desk) -> None:
        desk.start(SO, THERE, *SPARES)
        desk.dial()
        assert desk.wait_for_deadline() == SILENCE
        assert desk.dial().remote == SPARES[0][1]
        desk.wait(SILENCE)
        assert SPARES[1][1] in {order.remote for order in desk.orders() if isinstance(order, Dial)}

    def test_what_is_being_opened_is_not_opened_twice(self, desk: Desk) -> None:
        desk.start(SO, THERE, (SO, THERE))
        desk.dial()
        desk.wait(SILENCE)
        assert not desk.orders()

    def test_stories(self, desk: Desk) -> None:
        desk.start()
        desk.refuse(desk.dial())
        desk.refuse(desk.dial(), Cause.UNREACHABLE)
        (story,) = desk.attempts.stories()
        assert story == ((SO, THERE), "1 x connection refused (RST), 1 x unreachable (ICMP)")


class TestTurns:
    """More than may be dialled at once."""

    def start_all(self, desk: Desk) -> list[Dial]:
        for port in range(1, MOST_OUTSTANDING + 3):
            desk.start(SO, Address(THERE.host, port))
        dials = desk.orders()
        assert len(dials) == MOST_OUTSTANDING
        return dials

    def test_who_has_failed_often_waits_for_another_turn(self, desk: Desk) -> None:
        dial = self.start_all(desk)[0]
        for _ in range(TURN - 1):
            desk.refuse(dial)
            dial = desk.dial()
        desk.refuse(dial)
        assert desk.dial().remote.port == MOST_OUTSTANDING + 1
        assert (SO, Address(THERE.host, 1)) in desk.attempts

    def test_who_is_silent_for_long_waits_too(self, desk: Desk) -> None:
        first = self.start_all(desk)
        desk.wait(CROWDED)
        orders = desk.orders()
        assert not any(isinstance(order, PathClosed) for order in orders)
        shut = {order.handle for order in orders if isinstance(order, Shut)}
        assert {dial.handle for dial in first} >= shut
        ports = [order.remote.port for order in orders if isinstance(order, Dial)]
        assert {MOST_OUTSTANDING + 1, MOST_OUTSTANDING + 2} <= {*ports}

    def test_all_end_at_last(self, desk: Desk) -> None:
        self.start_all(desk)
        closed = []
        for _ in range(2000):
            if desk.attempts.deadline() is None:
                break
            desk.wait_for_deadline()
            closed += [order for order in desk.orders() if isinstance(order, PathClosed)]
        assert {each.remote.port for each in closed} == {*range(1, MOST_OUTSTANDING + 3)}
        assert all(each.cause is Cause.TIMED_OUT for each in closed)
        assert desk.now <= 1000 * SECOND + 2 * PATIENCE
        assert not desk.board.owners
