"""The TCP part of the hub: ports, what is asked of servers, and what ends when."""

from __future__ import annotations

from collections import Counter, deque
from itertools import count
from random import Random
from typing import Any

import pytest

from ice.base import Base, BaseLost, CandidateFound, CandidateNotFound, PathClosed, PathOpened
from ice.candidate import CandidateType, TcpType
from ice.config import Config, Interface, Server
from ice.gather.book import Book
from ice.gather.pacer import Pacer
from ice.gather.patience import Patience
from ice.tcp import TcpPart
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
    Handle,
    Listen,
    Opened,
    Shut,
    Undeliverable,
    Write,
)

ETH = Interface("192.0.2.1", "eth0", 65_535)
LINK = Interface("fe80::1%eth0", "eth0", 65_503)
AT = Address("198.51.100.1", 3478)
STUN = Server("stun:a", (Target(AT, Transport.UDP),))
THERE = Address("203.0.113.5", 6000)
MAPPED = Address("203.0.113.1", 7000)


class Desk:
    """The part, led by hand.  Listeners that are asked for are open at once."""

    def __init__(self, rng: Random, **options: Any) -> None:
        config = Config(**options)
        self.orders: deque[Any] = deque()
        self.drops: Counter[DropReason] = Counter()
        self.events: list[Any] = []
        self.taken: set[int] = set()
        """Ports that others have."""
        self.listeners: dict[Handle, Listen] = {}
        self.at: dict[Handle, int] = {}
        """Their ports."""
        self.asked: list[Listen] = []
        self.dials: list[Dial] = []
        self.shut: list[Shut] = []
        self.written: list[Write] = []
        self.pacer = Pacer(config.ta)
        self.patience = Patience()
        self.part = TcpPart(
            config,
            self.orders,
            handles=count(1),
            ids=count(1),
            deliver=lambda *_: None,
            entropy=rng.randbytes,
            drops=self.drops,
            book=Book(config, self.orders, secret=b""),
            pacer=self.pacer,
            patience=self.patience,
            controlling=lambda: True,
        )
        self.now = 1000 * SECOND
        self.ports = count(50_000)

    def gather(self, interfaces: list[Interface], *servers: Server) -> None:
        self.patience.start(self.now, 10 * SECOND)
        self.part.gather(interfaces, servers, self.now)
        self.settle()

    def settle(self) -> None:
        while True:
            self.pacer.run(self.now)
            if not self.orders:
                break
            order = self.orders.popleft()
            match order:
                case Listen():
                    self._listen(order)
                case Dial():
                    self.dials.append(order)
                case Shut():
                    self.shut.append(order)
                    self.listeners.pop(order.handle, None)
                    self.at.pop(order.handle, None)
                case Write():
                    self.written.append(order)
                case _:
                    self.events.append(order)

    def _listen(self, order: Listen) -> None:
        self.asked.append(order)
        port = order.local.port or next(self.ports)
        if port in self.taken or port in self.at.values():
            self.tell(Closed(order.handle, Cause.ADDRESS_IN_USE))
        else:
            self.listeners[order.handle] = order
            self.at[order.handle] = port
            self.tell(Opened(order.handle, Address(order.local.host, port)))

    def tell(self, event: Any) -> bool:
        taken = self.part.on_socket(event, self.now)
        self.settle()
        return taken

    def wait(self, duration: int) -> None:
        self.now += duration
        self.part.on_deadline(self.now)
        self.settle()

    def told(self, kind: Any) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def base(self, tcptype: TcpType) -> Base:
        return next(base for base in self.part.bases if base.tcptype is tcptype)

    def listener(self, base: Base) -> Handle:
        return next(handle for handle, port in self.at.items() if port == base.address.port)

    def answer(self, dial: Dial, mapped: Address = MAPPED) -> None:
        """Be a STUN server for one connection."""
        self.tell(Connected(dial.handle, dial.local, dial.remote))
        self.answer_again(dial, mapped)

    def answer_again(self, dial: Dial, mapped: Address = MAPPED) -> None:
        request = [write for write in self.written if write.handle == dial.handle][-1]
        answer = Message.success(decode(request.data)).add(XOR_MAPPED_ADDRESS, mapped)
        self.tell(Arrived(dial.handle, encode(answer)))


@pytest.fixture
def desk(rng: Random) -> Desk:
    return Desk(rng)


# Ports. -------------------------------------------------------------------------------------------


def test_a_port_of_a_range_is_tried_alone_before_it_is_shared(rng: Random) -> None:
    desk = Desk(rng, ports=(6000, 6001))
    desk.taken = {6000}
    desk.gather([ETH])
    assert {order.local.port for order in desk.asked} == {6000, 6001}
    (shared,) = (order for order in desk.asked if not order.exclusive)
    assert shared.local.port == 6001
    assert any(
        order.exclusive and order.local == shared.local and Shut(order.handle) in desk.shut
        for order in desk.asked
    )
    assert len(desk.told(CandidateNotFound)) == 1


def test_a_port_of_the_system_is_shared_at_once(desk: Desk) -> None:
    desk.gather([ETH])
    assert not any(order.exclusive for order in desk.listeners.values())
    assert all(order.local == Address(ETH.host, 0) for order in desk.listeners.values())


def test_no_ports_at_all(rng: Random) -> None:
    desk = Desk(rng, simultaneous_open=0)
    desk.gather([ETH])
    assert {base.tcptype for base in desk.part.bases} == {TcpType.ACTIVE, TcpType.PASSIVE}
    with pytest.raises(UsageError):
        Config(simultaneous_open=9)
    with pytest.raises(UsageError):
        Config(simultaneous_open=-1)


def test_a_listener_that_fails_takes_its_base_along(desk: Desk) -> None:
    desk.gather([ETH])
    passive = desk.base(TcpType.PASSIVE)
    desk.tell(Closed(desk.listener(passive), Cause.OTHER, "no more"))
    assert desk.told(BaseLost) == [BaseLost(passive, "no more")]
    assert passive not in desk.part.bases


def test_connections_are_known_without_the_zone_of_the_link(desk: Desk) -> None:
    desk.gather([LINK])
    passive = desk.base(TcpType.PASSIVE)
    remote = Address("fe80::2%eth0", 6000)
    desk.tell(Accepted(desk.listener(passive), -1, passive.address, remote))
    assert desk.told(PathOpened) == [PathOpened(passive, Address("fe80::2", 6000))]
    assert {found.candidate.host for found in desk.told(CandidateFound)} == {"fe80::1"}


def test_a_connection_that_came_before_its_listener_was_shut(desk: Desk) -> None:
    desk.gather([ETH])
    passive = desk.base(TcpType.PASSIVE)
    listener = desk.listener(passive)
    desk.part.release(passive, desk.now)
    desk.settle()
    assert desk.tell(Accepted(listener, -1, passive.address, THERE))
    assert desk.shut[-1] == Shut(-1, reset=True)
    assert not desk.told(PathOpened)


def test_what_is_somebody_elses(desk: Desk) -> None:
    desk.gather([ETH])
    assert not desk.tell(Opened(999, AT))
    assert not desk.tell(Undeliverable(AT, AT, 3, 3))


# Servers. -----------------------------------------------------------------------------------------


def test_servers_are_asked_from_the_ports_that_listen(desk: Desk) -> None:
    desk.gather([ETH], STUN)
    desk.wait(SECOND)
    ports = {base.address for base in desk.part.bases if base.tcptype is not TcpType.ACTIVE}
    assert {dial.local for dial in desk.dials} == ports
    assert all(dial.remote == AT and dial.server_name is None for dial in desk.dials)


def test_tls_where_there_is_nothing_else(desk: Desk) -> None:
    tls = Target(Address("198.51.100.2", 5349), Transport.TLS, "stun.example.org")
    dtls = Target(Address("198.51.100.3", 5349), Transport.DTLS, "stun.example.org")
    desk.gather([ETH], Server("stuns:a", (dtls, tls)))
    desk.wait(SECOND)
    assert {(dial.remote, dial.server_name) for dial in desk.dials} == {
        (tls.address, "stun.example.org")
    }


def test_a_hidden_address_is_in_no_candidate(rng: Random) -> None:
    desk = Desk(rng)
    desk.gather([Interface(ETH.host, "eth0", 65_535, mdns="a.local")], STUN)
    desk.wait(SECOND)
    for dial in desk.dials:
        desk.answer(dial)
    assert len(desk.told(CandidateFound)) >= 5
    for found in desk.told(CandidateFound):
        assert ETH.host not in found.candidate.to_sdp()


def test_what_two_servers_tell_alike_is_kept_alive_at_one(desk: Desk) -> None:
    other = Server("stun:b", (Target(Address("198.51.100.9", 3478), Transport.UDP),))
    desk.gather([ETH], STUN, other)
    desk.wait(SECOND)
    passive = desk.base(TcpType.PASSIVE)
    dials = [dial for dial in desk.dials if dial.local == passive.address]
    assert len(dials) == 2
    desk.answer(dials[1])
    desk.answer(dials[0])
    assert desk.shut == [Shut(dials[0].handle, reset=True)]
    found = [
        found
        for found in desk.told(CandidateFound)
        if found.candidate.type is CandidateType.SERVER_REFLEXIVE and found.base is passive
    ]
    assert len(found) == 1


def test_another_mapping_is_another_candidate(desk: Desk) -> None:
    desk.gather([ETH], STUN)
    desk.wait(SECOND)
    passive = desk.base(TcpType.PASSIVE)
    (dial,) = (dial for dial in desk.dials if dial.local == passive.address)
    desk.answer(dial)
    desk.wait(15 * SECOND)
    desk.answer_again(dial, Address(MAPPED.host, 7001))
    ports = [
        found.candidate.port
        for found in desk.told(CandidateFound)
        if found.candidate.type is CandidateType.SERVER_REFLEXIVE and found.base is passive
    ]
    assert ports == [7000, 7001]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(40)])
def test_a_server_that_is_none(desk: Desk, answer: bytes) -> None:
    desk.gather([ETH], STUN)
    desk.wait(SECOND)
    for dial in [*desk.dials]:
        desk.tell(Connected(dial.handle, dial.local, dial.remote))
        desk.tell(Arrived(dial.handle, answer))
    assert not desk.part.gathering
    assert len(desk.told(CandidateNotFound)) == 2
    assert {shut.handle for shut in desk.shut} == {dial.handle for dial in desk.dials}


# Ending. ------------------------------------------------------------------------------------------


def test_retain_keeps_what_it_is_told_to(desk: Desk) -> None:
    desk.gather([ETH], STUN)
    desk.wait(SECOND)
    active = desk.base(TcpType.ACTIVE)
    desk.part.retain([active], desk.now)
    desk.settle()
    assert desk.part.bases == (active,)
    assert not desk.listeners
    assert not desk.told(BaseLost)
    assert {shut.handle for shut in desk.shut} >= {dial.handle for dial in desk.dials}
    desk.gather([ETH], STUN)
    assert len(desk.part.bases) == 3


def test_release_ends_what_begins_there_and_says_nothing(desk: Desk) -> None:
    desk.gather([ETH])
    passive, so = desk.base(TcpType.PASSIVE), desk.base(TcpType.SIMULTANEOUS_OPEN)
    desk.tell(Accepted(desk.listener(passive), -1, passive.address, THERE))
    desk.part.open_path(so, THERE, desk.now)
    desk.settle()
    for base in (passive, so):
        desk.part.release(base, desk.now)
    desk.settle()
    assert Shut(-1, reset=True) in desk.shut
    assert desk.dials[-1].handle in {shut.handle for shut in desk.shut}
    assert not desk.told((PathClosed, BaseLost))
    assert desk.part.deadline() is None


def test_close_shuts_everything(desk: Desk) -> None:
    desk.gather([ETH], STUN)
    desk.wait(SECOND)
    desk.part.open_path(desk.base(TcpType.ACTIVE), THERE, desk.now)
    desk.settle()
    opened = {*desk.listeners, *(dial.handle for dial in desk.dials)}
    desk.part.close(desk.now)
    desk.settle()
    assert {shut.handle for shut in desk.shut} >= opened
    assert desk.part.deadline() is None
    assert not desk.part.bases
