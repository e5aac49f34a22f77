"""The puncher by itself: its ports, what it pairs, what it orders at the end."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from ice.config import Credentials, Server
from ice.tcp.puncher import AGAIN, Puncher, Stage
from ice.tcp.terms import (
    MOST_PORTS,
    Elected,
    GaveUp,
    MappedPort,
    PortsReady,
    PunchConfig,
    credentials,
    start_at,
)
from stun.attributes import XOR_MAPPED_ADDRESS
from stun.codec import decode, encode
from stun.discovery import Target, Transport
from stun.errors import DropReason, UsageError
from stun.message import Message
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Instant,
    Listen,
    Opened,
    Received,
    Shut,
    Undeliverable,
    Write,
)

HOST = "192.0.2.1"
STUN = Address("203.0.113.1", 3478)
SERVER = Server("stun:one", (Target(STUN, Transport.TCP),))
THERE = Address("198.51.100.1", 6000)
OURS, THEIRS = credentials(b"0123456789abcdef", controlling=True)


class Desk:
    """A puncher, led by hand."""

    def __init__(self, rng: Random, *ports: int, host: str = HOST) -> None:
        self.puncher = Puncher(PunchConfig(host, ports or (0,)), entropy=rng.randbytes)
        self.now: Instant = 1000 * SECOND
        self.host = host
        self.said: list[Any] = []

    def poll(self) -> list[Any]:
        found = []
        while (output := self.puncher.poll()) is not None:
            found.append(output)
        self.said += found
        return found

    def tell(self, event: Any) -> list[Any]:
        self.puncher.on_socket(event, self.now)
        return self.poll()

    def open(self, *servers: Server) -> list[Any]:
        """Open the ports; they are 5001, 5002 and so on."""
        self.puncher.open(servers, self.now)
        orders = []
        for n, order in enumerate(self.poll(), 1):
            assert isinstance(order, Listen)
            orders += self.tell(
                Opened(order.handle, Address(self.host, order.local.port or 5000 + n))
            )
        return orders

    def wait(self, duration: int) -> list[Any]:
        self.now += duration
        self.puncher.on_deadline(self.now)
        return self.poll()

    def start(self, *remote: Address, **options: Any) -> list[Any]:
        options = {"controlling": True} | options
        self.puncher.start(remote or (THERE,), OURS, THEIRS, self.now, **options)
        return self.poll()

    def answer(self, dial: Dial, mapped: Address) -> list[Any]:
        """Have a STUN server answer on a connection."""
        orders = self.tell(Connected(dial.handle, dial.local, dial.remote))
        (write,) = (order for order in orders if isinstance(order, Write))
        answer = Message.success(decode(write.data)).add(XOR_MAPPED_ADDRESS, mapped)
        return self.tell(Arrived(dial.handle, encode(answer)))


@pytest.fixture
def desk(rng: Random) -> Desk:
    return Desk(rng)


class TestConfig:
    @pytest.mark.parametrize(
        ("host", "ports"),
        [
            ("example.org", (0,)),
            (HOST, ()),
            (HOST, (0,) * (MOST_PORTS + 1)),
            (HOST, (70_000,)),
            (HOST, (-1,)),
            (HOST, (4000, 4000)),
        ],
    )
    def test_what_is_wrong(self, host: str, ports: tuple[int, ...]) -> None:
        with pytest.raises(UsageError):
            PunchConfig(host, ports)

    def test_any_port_may_be_wanted_often(self) -> None:
        assert PunchConfig("fe80::1%eth0", (0, 0, 4000)).ports == (0, 0, 4000)


class TestSecret:
    def test_both_sides_derive_the_same(self) -> None:
        a = credentials("a secret of some length", controlling=True)
        b = credentials(b"a secret of some length", controlling=False)
        assert a == (b[1], b[0])
        assert a[0] != a[1]
        assert credentials("another secret of some length", controlling=True) != a

    def test_a_short_one_is_refused(self) -> None:
        with pytest.raises(UsageError, match="can be guessed"):
            credentials("password", controlling=True)

    def test_what_sees_it_can_be_ice_credentials(self) -> None:
        for each in credentials(b"\xff" * 16, controlling=False):
            assert isinstance(each, Credentials)


class TestInStep:
    def test_who_says_it_waits_until_it_is_heard(self) -> None:
        assert start_at(5 * SECOND, SECOND // 5, told=False) == 5 * SECOND + SECOND // 10
        assert start_at(5 * SECOND, SECOND // 5, told=True) == 5 * SECOND

    def test_nothing_is_dialled_before(self, desk: Desk) -> None:
        desk.open()
        assert not desk.start(at=desk.now + SECOND)
        assert desk.puncher.deadline() == desk.now + SECOND
        assert not desk.wait(SECOND - 1)
        (dial,) = desk.wait(1)
        assert (dial.local, dial.remote) == (Address(HOST, 5001), THERE)

    def test_what_is_past_is_now(self, desk: Desk) -> None:
        desk.open()
        (dial,) = desk.start(at=desk.now - SECOND)
        assert isinstance(dial, Dial)


class TestPorts:
    def test_without_a_server_they_are_what_they_are(self, rng: Random) -> None:
        desk = Desk(rng, 0, 4000)
        (ready,) = desk.open()
        assert ready == PortsReady(
            (MappedPort(Address(HOST, 5001), ()), MappedPort(Address(HOST, 4000), ()))
        )
        assert ready.addresses() == (Address(HOST, 5001), Address(HOST, 4000))

    def test_a_chosen_port_may_be_shared(self, rng: Random) -> None:
        """Whoever chose it may have mapped it himself, by a socket that is still open."""
        desk = Desk(rng, 4000)
        desk.puncher.open((), desk.now)
        (listen,) = desk.poll()
        assert (listen.local, listen.exclusive) == (Address(HOST, 4000), False)

    def test_a_server_tells_what_they_are_outside(self, rng: Random) -> None:
        desk = Desk(rng, 0, 0)
        orders = desk.open(SERVER)
        orders += desk.wait(5_000_000)
        dials = [order for order in orders if isinstance(order, Dial)]
        assert [dial.local.port for dial in dials] == [5001, 5002]
        assert not desk.answer(dials[0], Address("203.0.113.9", 7001))
        (ready,) = desk.answer(dials[1], Address("203.0.113.9", 7002))
        assert ready.addresses() == (
            Address("203.0.113.9", 7001),
            Address("203.0.113.9", 7002),
            Address(HOST, 5001),
            Address(HOST, 5002),
        )

    def test_a_port_that_nobody_outside_knows_is_shut(self, rng: Random) -> None:
        """It would come between the others and the peer's."""
        desk = Desk(rng, 0, 0)
        orders = desk.open(SERVER)
        orders += desk.wait(5_000_000)
        first, second = (order for order in orders if isinstance(order, Dial))
        desk.tell(Closed(first.handle, Cause.REFUSED))
        ready, shut = desk.answer(second, Address("203.0.113.9", 7002))
        assert isinstance(shut, Shut)
        assert ready.addresses() == (Address("203.0.113.9", 7002), Address(HOST, 5002))
        assert "stun:one" in ready.missing[0]

    def test_a_server_that_does_not_answer_is_not_waited_for(self, desk: Desk) -> None:
        desk.open(SERVER)
        (ready,) = (e for e in desk.wait(10 * SECOND) if isinstance(e, PortsReady))
        assert ready.ports == (MappedPort(Address(HOST, 5001), ()),)
        assert "no answer" in ready.missing[0]

    def test_a_mapping_that_changes_is_told(self, desk: Desk) -> None:
        (dial,) = desk.open(SERVER)
        (ready,) = desk.answer(dial, Address("203.0.113.9", 7001))
        (write,) = desk.wait(15 * SECOND)
        answer = Message.success(decode(write.data))
        answer.add(XOR_MAPPED_ADDRESS, Address("203.0.113.9", 7009))
        (again,) = desk.tell(Arrived(dial.handle, encode(answer)))
        assert again.addresses()[0] == Address("203.0.113.9", 7009)
        assert again != ready

    def test_of_what_a_symmetric_nat_gives_one_is_told(self) -> None:
        """There is no pairing ports of which each has several."""
        ready = PortsReady(
            (
                MappedPort(
                    Address(HOST, 1), (Address("203.0.113.9", 11), Address("203.0.113.9", 12))
                ),
                MappedPort(
                    Address(HOST, 2), (Address("203.0.113.9", 21), Address("203.0.113.8", 22))
                ),
            )
        )
        assert [address.port for address in ready.addresses()] == [11, 21, 22, 1, 2]

    def test_no_port_at_all(self, desk: Desk) -> None:
        desk.puncher.open((), desk.now)
        (listen,) = desk.poll()
        (gave_up,) = desk.tell(Closed(listen.handle, Cause.ADDRESS_IN_USE, "in use"))
        assert gave_up == GaveUp(f"no TCP port of {HOST} can be opened: in use")
        assert desk.puncher.stage is Stage.OVER

    def test_one_of_two(self, rng: Random) -> None:
        desk = Desk(rng, 4000, 4001)
        desk.puncher.open((), desk.now)
        first, second = desk.poll()
        assert not desk.tell(Closed(first.handle, Cause.ADDRESS_IN_USE, "in use"))
        (ready,) = desk.tell(Opened(second.handle, second.local))
        assert ready.addresses() == (Address(HOST, 4001),)
        assert "in use" in ready.missing[0]


class TestPairing:
    def dialled(self, desk: Desk, *remote: Address) -> list[tuple[int, Address]]:
        """Refuse every dial until all pairs of ports have been tried."""
        desk.open()
        pending = desk.start(*remote)
        seen: dict[tuple[int, Address], None] = {}
        for _ in range(300):
            if not pending:
                pending = desk.wait(SECOND // 10)
                continue
            dial = pending.pop(0)
            if isinstance(dial, Dial):
                seen[dial.local.port, dial.remote] = None
                if dial.handle in desk.puncher._board.owners:
                    pending += desk.tell(Closed(dial.handle, Cause.REFUSED))
        return [*seen]

    def test_ports_go_with_their_like(self, rng: Random) -> None:
        desk = Desk(rng, 0, 0, 0)
        remote = [Address("198.51.100.1", 6000 + n) for n in range(3)]
        assert self.dialled(desk, *remote) == [(5001 + n, remote[n]) for n in range(3)]

    def test_the_first_alone_at_first(self, rng: Random) -> None:
        desk = Desk(rng, 0, 0, 0)
        desk.open()
        remote = [Address("198.51.100.1", 6000 + n) for n in range(3)]
        (dial,) = desk.start(*remote)
        assert dial.remote == remote[0]

    def test_each_address_of_the_peer_at_once(self, rng: Random) -> None:
        desk = Desk(rng, 0, 0)
        desk.open()
        dials = desk.start(
            Address("198.51.100.1", 6000),
            Address("198.51.100.1", 6001),
            Address("192.168.1.9", 7000),
            Address("192.168.1.9", 7001),
        )
        assert [(d.local.port, d.remote.port) for d in dials] == [(5001, 6000), (5001, 7000)]

    def test_one_port_against_three(self, rng: Random) -> None:
        desk = Desk(rng, 0)
        remote = [Address("198.51.100.1", 6000 + n) for n in range(3)]
        assert self.dialled(desk, *remote) == [(5001, address) for address in remote]

    def test_three_ports_against_one(self, rng: Random) -> None:
        desk = Desk(rng, 0, 0, 0)
        assert self.dialled(desk, THERE) == [(5001 + n, THERE) for n in range(3)]

    def test_what_cannot_be_reached_is_left_out(self, desk: Desk) -> None:
        desk.open()
        (dial,) = desk.start(Address("2001:db8::1", 1), Address("127.0.0.1", 1), THERE)
        assert dial.remote == THERE

    @pytest.mark.parametrize(
        "remote",
        [
            Address("2001:db8::1", 1),
            Address("198.51.100.1", 0),
            Address("127.0.0.1", 80),
            Address("224.0.0.1", 80),
        ],
    )
    def test_nothing_can_be_reached(self, desk: Desk, remote: Address) -> None:
        desk.open()
        with pytest.raises(UsageError, match="can be reached from"):
            desk.start(remote)

    def test_what_is_no_address(self, desk: Desk) -> None:
        desk.open()
        with pytest.raises(UsageError, match="an address of the peer"):
            desk.start(Address("example.org", 80))

    def test_too_many(self, desk: Desk) -> None:
        desk.open()
        with pytest.raises(UsageError, match="addresses of the peer"):
            desk.start(*(Address("198.51.100.1", n) for n in range(1, 100)))


class TestOrder:
    def test_it_is_opened_once_and_started_once(self, desk: Desk) -> None:
        with pytest.raises(UsageError, match="PortsReady"):
            desk.start()
        desk.open()
        with pytest.raises(UsageError, match="open already"):
            desk.puncher.open((), desk.now)
        desk.start()
        with pytest.raises(UsageError):
            desk.start()

    def test_a_datagram_is_counted(self, desk: Desk) -> None:
        desk.puncher.receive(Received(b"", THERE, Address(HOST, 1)), desk.now)
        assert desk.puncher.counters == {DropReason.UNEXPECTED_SOURCE.value: 1}
        assert not desk.tell(Undeliverable(Address(HOST, 1), THERE, 3, 3))

    def test_a_connection_after_the_end_is_reset(self, desk: Desk) -> None:
        desk.open()
        (listen,) = (order for order in desk.said if isinstance(order, Listen))
        desk.puncher.close()
        assert Shut(listen.handle) in desk.poll()
        shut = desk.tell(Accepted(listen.handle, -1, Address(HOST, 5001), THERE))
        assert shut == [Shut(-1, reset=True)]
        desk.puncher.close()
        assert not desk.poll()
        assert desk.puncher.deadline() is None


class TestAttempts:
    def test_low_ttl(self, desk: Desk) -> None:
        desk.open()
        (dial,) = desk.start(low_ttl=True)
        assert dial.ttl == 2

    def test_what_comes_up_and_is_of_no_use_is_opened_again(self, desk: Desk) -> None:
        desk.open()
        (dial,) = desk.start()
        orders = desk.tell(Connected(dial.handle, dial.local, dial.remote))
        assert isinstance(orders[0], Write)
        shut = desk.tell(Arrived(dial.handle, b"\x00\x04nope"))
        assert shut == [Shut(dial.handle, reset=True)]
        assert not desk.wait(AGAIN - 1)
        (again,) = desk.wait(1)
        assert isinstance(again, Dial)

    def test_hopeless_ones_end_it(self, desk: Desk) -> None:
        desk.open()
        (dial,) = desk.start()
        *_, gave_up = desk.tell(Closed(dial.handle, Cause.NOT_PERMITTED, "no"))
        assert isinstance(gave_up, GaveUp)
        assert "every attempt has failed" in gave_up.why
        assert str(THERE) in gave_up.why

    def test_the_end_of_patience_says_what_happened(self, desk: Desk) -> None:
        desk.open()
        (dial,) = desk.start(timeout=2 * SECOND)
        (dial,) = desk.tell(Closed(dial.handle, Cause.REFUSED))
        orders = desk.wait(2 * SECOND)
        gave_up = orders[-1]
        assert isinstance(gave_up, GaveUp)
        assert gave_up.why.startswith("no connection within 2 s\n")
        assert f"{HOST}:5001 to {THERE}: 1 x connection refused (RST)" in gave_up.why
        shut = {order.handle for order in orders if isinstance(order, Shut)}
        assert dial.handle in shut

    def test_without_any_answer_it_says_so(self, desk: Desk) -> None:
        desk.open()
        desk.start(timeout=SECOND)
        assert "no answer at all" in desk.wait(SECOND)[-1].why

    def test_nobody_is_elected_by_himself(self, desk: Desk) -> None:
        """A connection to oneself proves nothing: its checks are one's own."""
        desk.open()
        (dial,) = desk.start()
        (write,) = desk.tell(Connected(dial.handle, dial.local, dial.remote))
        said = desk.tell(Arrived(dial.handle, write.data))
        assert not any(isinstance(each, Elected) for each in said)
