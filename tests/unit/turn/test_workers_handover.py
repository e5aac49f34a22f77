"""What belongs to another worker goes there, and comes back: two machines, no sockets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from stun import attributes as a
from stun.codec import encode
from stun.discovery import Transport
from stun.message import Message
from stun.registry import Method
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Handle,
    Received,
    Relieved,
    Write,
)
from stun.users import Gap, Password
from tools.turndesk import HOST, PEER, TCP, UNLIMITED, Caller, Desk, code
from turn.daemon.workers.handover import (
    MOST_TENTATIVE,
    TENTATIVE,
    Claim,
    MemberServer,
    PassConnection,
    PassDatagram,
    Passed,
    Records,
    named_worker,
    with_length,
)
from turn.daemon.workers.orders import share_of_ports
from turn.daemon.workers.shared import Shared, make_memory
from turn.server.config import DEFAULT_PORTS, RelayAddress
from turn.server.events import LookUp
from turn.server.policy import PeerPolicy

ONE, OTHER, THIRD = (Address("192.52.193.5", port) for port in (40_000, 40_001, 40_002))
REQUEST = (a.REQUESTED_TRANSPORT, 17)


class Pair:
    """Two workers at one desk each, and the lines between them, which a test may cut."""

    def __init__(self, **changes: Any) -> None:
        self.memory = make_memory(2, 256)
        self.delivers = True
        self.pipes: dict[tuple[int, Handle], tuple[int, Handle]] = {}
        """The ends of pipes: (desk, handle)."""
        self.claims: list[Claim] = []
        changes.setdefault("limits", UNLIMITED)
        self.desks = {number: self._desk(number, changes) for number in (1, 2)}

    def _desk(self, number: int, changes: dict[str, Any]) -> Desk:
        shared = Shared(
            self.memory,
            workers=2,
            slots=256,
            number=number,
            key=bytes(range(32)),
            tell=lambda local: self.server(3 - number).left(local),
        )
        shared.openings.places = {HOST: 0, "2620:4f:8000:a::10": 1}
        # One seed: they have the same secret of nonces, as the supervisor sees to.
        return Desk(
            make=partial(MemberServer, siblings=shared, workers=2),
            ports=share_of_ports(DEFAULT_PORTS, number, 2),
            **changes,
        )

    def server(self, number: int) -> MemberServer:
        server = self.desks[number].server
        assert isinstance(server, MemberServer)
        return server

    def settle(self) -> None:
        """Deliver what the workers have for each other, until there is nothing."""
        busy = True
        while busy:
            busy = False
            for number, desk in self.desks.items():
                orders = desk.told(PassDatagram) + desk.told(PassConnection) + desk.told(Claim)
                desk.events = [event for event in desk.events if event not in orders]
                for order in orders:
                    busy = True
                    if self.delivers:
                        self._deliver(number, order)
                busy = self._carry(number) or busy

    def _deliver(self, number: int, order: PassDatagram | PassConnection | Claim) -> None:
        desk, server = self.desks[order.worker], self.server(order.worker)
        match order:
            case PassDatagram(_, data, client, local):
                server.take(Received(data, client, local), number, desk.now)
            case Claim(_, flows, mine):
                self.claims.append(order)
                server.claimed(flows, number, mine=mine)
            case PassConnection():
                self._adopt(number, order)
        desk.pump()

    def _adopt(self, number: int, order: PassConnection) -> None:
        flow, desk = order.flow, self.desks[order.worker]
        passed = Passed(
            order.listener, flow.transport.is_secure, flow.transport is Transport.DTLS,
            flow.server, flow.client, order.data, b"",
        )  # fmt: skip
        taken = self.server(order.worker).adopt(passed)
        assert taken is not None
        handle, listener = taken
        here = (number, order.pipe or flow.connection)
        self.pipes[here], self.pipes[order.worker, handle] = (order.worker, handle), here
        desk.tell(Accepted(listener, handle, flow.server, flow.client, secure=passed.secure))
        desk.tell(Arrived(handle, order.data))

    def _carry(self, number: int) -> bool:
        """Carry what was written into a pipe, or to a connection that has gone elsewhere."""
        desk, carried = self.desks[number], False
        there_are = [one for one in desk.written if one > 0 and (number, one) in self.pipes]
        for handle in there_are:
            other, there = self.pipes[number, handle]
            data = desk.written.pop(handle)
            carried = True
            if there < 0:
                # A plain connection: its client reads from the same socket as before.
                self.desks[other].written[there] = data
            else:
                self.desks[other].tell(Arrived(there, data))
        return carried

    def caller(self, worker: int, address: Address, **options: Any) -> PairCaller:
        return PairCaller(self, worker, address=address, **options)


class PairCaller(Caller):
    """A client that reaches one worker; answers may come from either, from the same address."""

    def __init__(self, pair: Pair, worker: int, **options: Any) -> None:
        self.pair = pair
        super().__init__(pair.desks[worker], **options)

    def send(self, octets: bytes) -> list[bytes]:
        desk = self.desk
        number = next(n for n, one in self.pair.desks.items() if one is desk)
        if self.handle and (number, self.handle) in self.pair.pipes and self.transport is _TCP:
            other, there = self.pair.pipes[number, self.handle]
            self.pair.desks[other].tell(Arrived(there, octets))
        elif self.handle:
            desk.tell(Arrived(self.handle, octets))
        else:
            desk.machine.receive(Received(octets, self.address, self.server), desk.now)
            desk.pump()
        self.pair.settle()
        return self.fetch()

    def fetch(self) -> list[bytes]:
        came = super().fetch()
        if not self.handle:
            own = self.desk
            for desk in self.pair.desks.values():
                if desk is not own:
                    self.desk = desk
                    came += super().fetch()
            self.desk = own
        return came


_TCP = Transport.TCP


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.memory.close()


def token_of(response: Message) -> bytes:
    token = response.get(a.RESERVATION_TOKEN)
    assert token is not None
    return token


def owners(pair: Pair) -> dict[Address, int]:
    return {s.client: number for number in (1, 2) for s in pair.server(number).sessions()}


# Datagrams. ---------------------------------------------------------------------------------------


def test_a_reservation_and_all_that_follows(pair: Pair) -> None:
    one, other = pair.caller(1, ONE), pair.caller(2, OTHER)
    token = token_of(one.allocate((a.EVEN_PORT, True)))
    assert token[0] == 1
    other.allocate((a.RESERVATION_TOKEN, token))
    assert owners(pair) == {ONE: 1, OTHER: 1}
    assert [(claim.worker, claim.flows, claim.mine) for claim in pair.claims] == [
        (2, ((OTHER, other.server),), True)
    ]
    assert code(other.bind(0x4000, PEER)) == 0
    other.push(0x4000, b"data")
    assert [sent.data for sent in pair.desks[1].sent if sent.destination == PEER] == [b"data"]
    assert not [sent for sent in pair.desks[2].sent if sent.destination == PEER]


def test_before_the_claim_arrives(pair: Pair) -> None:
    one, other = pair.caller(1, ONE), pair.caller(2, OTHER)
    token = token_of(one.allocate((a.EVEN_PORT, True)))
    server = pair.server(2)
    claimed = server.claimed
    server.claimed = lambda *_, **__: None  # type: ignore[method-assign]
    other.allocate((a.RESERVATION_TOKEN, token))
    assert code(other.bind(0x4000, PEER)) == 0, "it is known where the request went"
    server.claimed = claimed  # type: ignore[method-assign]
    pair.desks[2].now += TENTATIVE
    assert code(other.refresh()) == 437, "but not for ever"
    pair.server(1).sweep()
    pair.desks[1].pump()
    pair.settle()
    assert code(other.refresh()) == 0, "and claims are repeated"


class Asking:
    """Users of a database, which must be asked for each request while ``slow``."""

    def __init__(self) -> None:
        self.slow = False

    def secrets(self, username: str, unix_time: int) -> Sequence[Password | Gap]:
        del unix_time
        known = {"alice": (Password("secret"),)}
        return (Gap.NOT_YET,) if self.slow else known.get(username, ())

    def by_userhash(self, value: bytes, unix_time: int) -> None:
        del value, unix_time


def test_a_request_that_waited_for_the_database_is_claimed_later() -> None:
    users = Asking()
    pair = Pair(users=users)
    one, other = pair.caller(1, ONE), pair.caller(2, OTHER)
    token = token_of(one.allocate((a.EVEN_PORT, True)))
    assert code(other.refresh()) == 437, "it has a nonce by now"
    users.slow = True
    assert other.ask(Method.ALLOCATE, REQUEST, (a.RESERVATION_TOKEN, token)) is None
    users.slow = False
    desk, server = pair.desks[1], pair.server(1)
    for lookup in desk.told(LookUp):
        server.found(lookup, desk.now)
    desk.pump()
    assert owners(pair)[OTHER] == 1
    assert not pair.claims
    server.sweep()
    desk.pump()
    pair.settle()
    pair.desks[2].now += TENTATIVE
    assert code(other.refresh()) == 0
    for _ in range(2):
        server.sweep()
    assert not server._unsettled
    pair.memory.close()


def test_a_five_tuple_is_given_back(pair: Pair) -> None:
    one, other = pair.caller(1, ONE), pair.caller(2, OTHER)
    other.allocate((a.RESERVATION_TOKEN, token_of(one.allocate((a.EVEN_PORT, True)))))
    assert code(other.refresh(0)) == 0
    pair.server(1).sweep()
    pair.desks[1].pump()
    pair.settle()
    assert pair.claims[-1] == Claim(2, ((OTHER, other.server),), mine=False)
    other.allocate()
    assert owners(pair) == {ONE: 1, OTHER: 2}


def test_an_allocation_here_goes_before_whatever_is_named(pair: Pair) -> None:
    one, other = pair.caller(1, ONE), pair.caller(2, OTHER)
    token = token_of(one.allocate((a.EVEN_PORT, True)))
    other.allocate()
    assert code(other.ask(Method.ALLOCATE, REQUEST, (a.RESERVATION_TOKEN, token))) == 437
    assert not pair.claims
    pair.server(2).claimed([(OTHER, other.server)], 1, mine=True)
    assert code(other.refresh()) == 0, "a claim that comes too late is none"


def test_what_is_remembered_of_strangers_is_bounded(pair: Pair) -> None:
    pair.delivers = False
    desk, server = pair.desks[2], pair.server(2)
    request = Message.request(Method.ALLOCATE, bytes(12))
    request.add(a.REQUESTED_TRANSPORT, 17).add(a.RESERVATION_TOKEN, b"\1" + bytes(7))
    octets = encode(request)
    for number in range(MOST_TENTATIVE + 10):
        source = Address(f"192.52.{number >> 8}.{number & 255}", 5000)
        server.receive(Received(octets, source, Address(HOST, 3478)), desk.now)
        desk.pump()
    assert len(server._sent) == MOST_TENTATIVE
    assert len(desk.told(PassDatagram)) == MOST_TENTATIVE + 10


def test_peers_are_not_handed_over(pair: Pair) -> None:
    one = pair.caller(2, ONE)
    relayed = one.relayed()
    assert code(one.permit(PEER)) == 0
    request = Message.request(Method.ALLOCATE, bytes(12))
    request.add(a.RESERVATION_TOKEN, b"\1" + bytes(7))
    pair.desks[2].receive(encode(request), PEER, relayed)
    assert not pair.desks[2].told(PassDatagram)


@pytest.mark.parametrize("octets", [b"", b"\0\3", b"\0\3\0\0", b"\0\4" + bytes(40), b"\0\x0b"])
def test_what_names_nobody(octets: bytes) -> None:
    assert named_worker(octets) == 0


def test_a_lost_worker_is_forgotten(pair: Pair) -> None:
    one, other = pair.caller(1, ONE), pair.caller(2, OTHER)
    other.allocate((a.RESERVATION_TOKEN, token_of(one.allocate((a.EVEN_PORT, True)))))
    pair.server(2).lost(1)
    assert code(other.refresh()) == 437
    other.allocate()
    assert owners(pair)[OTHER] == 2


def test_a_move_and_a_ticket_of_a_worker_that_was(pair: Pair) -> None:
    old, new = pair.caller(1, ONE), pair.caller(2, OTHER)
    ticket = old.allocate((a.MOBILITY_TICKET, b"")).get(a.MOBILITY_TICKET)
    assert code(old.bind(0x4000, PEER)) == 0
    assert code(new.refresh(None, (a.MOBILITY_TICKET, ticket))) == 0
    new.push(0x4000, b"from the new")
    assert code(old.refresh()) == 437
    assert owners(pair) == {OTHER: 1}
    assert pair.server(1).disconnect(pair.desks[1].now, username="alice") == 1
    third = pair.caller(2, THIRD)
    assert code(third.refresh(None, (a.MOBILITY_TICKET, ticket))) == 437, "ours, but gone"


# Connections. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS, Transport.DTLS])
def test_a_move_to_a_connection(pair: Pair, transport: Transport) -> None:
    old = pair.caller(1, ONE)
    ticket = old.allocate((a.MOBILITY_TICKET, b"")).get(a.MOBILITY_TICKET)
    assert code(old.bind(0x4000, PEER)) == 0
    new = pair.caller(2, OTHER, transport=transport)
    assert code(new.refresh(None, (a.MOBILITY_TICKET, ticket))) == 0
    for data in (b"one", b"another"):
        new.push(0x4000, data)
    assert [s.data for s in pair.desks[1].sent if s.destination == PEER] == [b"one", b"another"]
    (session,) = pair.server(1).sessions()
    assert (session.client, session.transport) == (OTHER, transport)
    assert pair.desks[2].server.metrics.connections == 0
    assert pair.desks[1].server.metrics.connections == 1
    pair.desks[1].receive(b"to the client", PEER, session.relayed[0])
    pair.settle()
    new.fetch()
    assert new.channels == [(0x4000, b"to the client")]


def piped(pair: Pair, transport: Transport) -> tuple[PairCaller, Handle]:
    old = pair.caller(1, ONE)
    ticket = old.allocate((a.MOBILITY_TICKET, b"")).get(a.MOBILITY_TICKET)
    new = pair.caller(2, OTHER, transport=transport)
    assert code(new.refresh(None, (a.MOBILITY_TICKET, ticket))) == 0
    (pipe,) = [h for (number, h) in pair.pipes if number == 2]
    return new, pipe


def test_a_pipe_that_is_full_holds_a_stream(pair: Pair) -> None:
    new, pipe = piped(pair, Transport.TLS)
    desk = pair.desks[2]
    desk.tell(Congested(pipe))
    assert desk.unread == {new.handle}
    desk.tell(Relieved(pipe))
    assert not desk.unread
    desk.tell(Congested(new.handle))
    assert desk.unread == {pipe}


def test_what_is_said_through_a_pipe_is_not_joined(pair: Pair) -> None:
    """A record of TLS has one message: there are clients that read no more from it."""
    new, pipe = piped(pair, Transport.TLS)
    desk = pair.desks[2]
    sent: list[bytes] = []
    carry_out = desk._carry_out
    desk._carry_out = lambda output, pending: (  # type: ignore[method-assign]
        sent.append(output.data)
        if isinstance(output, Write) and output.handle == new.handle
        else carry_out(output, pending)
    )
    desk.tell(Arrived(pipe, with_length(b"one") + with_length(b"another")))
    assert sent == [b"one", b"another"]


def test_a_pipe_that_is_full_drops_records(pair: Pair) -> None:
    new, pipe = piped(pair, Transport.DTLS)
    desk = pair.desks[2]
    desk.tell(Congested(pipe))
    desk.tell(Arrived(new.handle, b"lost"))
    desk.tell(Relieved(pipe))
    desk.tell(Arrived(new.handle, b"kept"))
    assert desk.written[pipe] == with_length(b"kept")
    assert sum(desk.server.drops.values()) == 1


@pytest.mark.parametrize("transport", [Transport.TLS, Transport.DTLS])
@pytest.mark.parametrize("end", ["pipe", "client"])
def test_both_ends_of_a_pipe_go_together(pair: Pair, transport: Transport, end: str) -> None:
    new, pipe = piped(pair, transport)
    desk, server = pair.desks[2], pair.server(2)
    gone, left = (pipe, new.handle) if end == "pipe" else (new.handle, pipe)
    desk.tell(Closed(gone, Cause.END_OF_STREAM))
    assert left in desk.shut
    assert (server._pipes, server._records) == ({}, {})


def test_a_connection_with_an_allocation_stays(pair: Pair) -> None:
    token = token_of(pair.caller(1, ONE).allocate((a.EVEN_PORT, True)))
    other = pair.caller(2, OTHER, transport=Transport.TCP)
    other.allocate()
    assert code(other.ask(Method.ALLOCATE, REQUEST, (a.RESERVATION_TOKEN, token))) == 437
    assert not pair.pipes


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS])
def test_a_connection_does_not_go_round(pair: Pair, transport: Transport) -> None:
    stranger = pair.caller(2, ONE, transport=transport)
    for worker in (1, 2, 1, 2, 1):
        identifier = (a.CONNECTION_ID, worker << 24 | 5)
        assert code(stranger.ask(Method.CONNECTION_BIND, identifier)) == 400
    assert len(pair.pipes) == 2, "there and back: it went once"
    (handle,) = [handle for number, handle in pair.pipes if number == 1]
    pair.desks[1].tell(Closed(handle, Cause.RESET))
    pair.server(1).sweep()
    assert not pair.server(1)._adopted


def test_what_is_behind_the_request_goes_along(pair: Pair) -> None:
    control = pair.caller(1, ONE, transport=Transport.TCP)
    control.allocate(transport=TCP)
    other = pair.caller(2, OTHER, transport=Transport.TCP)
    bind = Message.request(Method.CONNECTION_BIND, bytes(12)).add(a.CONNECTION_ID, 1 << 24 | 5)
    octets = encode(bind)
    desk = pair.desks[2]
    desk.tell(Arrived(other.handle, octets + b"and data"))
    (order,) = desk.told(PassConnection)
    assert order == replace(order, worker=1, data=octets + b"and data", pipe=0)


def test_records_in_a_stream() -> None:
    records = [b"", b"a", bytes(300), b"\xff" * 65_535]
    octets = b"".join(map(with_length, records))
    assert Records().feed(octets) == records
    long = bytes(range(256)) * 600
    assert b"".join(Records().feed(with_length(long))) == long
    cut, found = Records(), []
    for at in range(0, len(octets), 7):
        found += cut.feed(octets[at : at + 7])
    assert found == records


# What siblings know of each other. ----------------------------------------------------------------


def test_relayed_addresses_of_siblings_are_reached(pair: Pair) -> None:
    one, other = pair.caller(1, ONE), pair.caller(2, OTHER)
    here, there = one.relayed(), other.relayed()
    assert code(one.bind(0x4000, there)) == 0
    one.push(0x4000, b"x")
    assert pair.desks[1].sent[-1].destination == there
    assert code(one.bind(0x4001, Address(HOST, there.port ^ 1))) == 403
    assert code(other.refresh(0)) == 0
    pair.desks[1].sent.clear()
    one.push(0x4000, b"x")
    assert pair.desks[1].sent == [], "its port may be some program's by now"
    assert here.port < there.port


def test_relayed_addresses_of_siblings_behind_a_nat() -> None:
    public = "203.0.113.9"
    pair = Pair(
        relays=(RelayAddress(HOST, public),),
        policy=PeerPolicy(own=(HOST, public)),
    )
    one, other = pair.caller(1, ONE), pair.caller(2, OTHER)
    here, there = one.relayed(), other.relayed()
    assert (here.host, there.host) == (public, public)
    assert code(one.bind(0x4000, there)) == code(other.bind(0x4001, here)) == 0
    one.push(0x4000, b"x")
    sent = pair.desks[1].sent[-1]
    assert (sent.source, sent.destination) == (Address(HOST, here.port), Address(HOST, there.port))
    pair.desks[2].receive(sent.data, sent.source, sent.destination)
    other.fetch()
    assert other.channels == [(0x4001, b"x")], "the source is known by its public address"
    pair.memory.close()


def test_a_route_to_a_sibling_ends_with_its_relayed_address() -> None:
    pair = Pair(offload=True)
    one, other = pair.caller(1, ONE), pair.caller(2, OTHER)
    one.relayed()
    there = other.relayed()
    assert code(one.bind(0x4000, there)) == 0
    assert [key.client for key in pair.desks[1].routes] == [ONE]
    assert code(other.refresh(0)) == 0
    pair.desks[1].pump()
    assert not pair.desks[1].routes
    assert not pair.server(1)._core.visited
    pair.memory.close()


def test_quotas_are_of_all() -> None:
    limits = replace(UNLIMITED, allocations_per_user=2, allocations_per_client=3)
    pair = Pair(limits=limits)
    callers = [pair.caller(1 + n % 2, Address("192.52.193.5", 41_000 + n)) for n in range(3)]
    assert [code(c.ask(Method.ALLOCATE, REQUEST)) for c in callers] == [0, 0, 486]
    bobs = [
        pair.caller(2, Address("192.52.193.5", 42_000 + n), username="bob", password="hidden")
        for n in range(2)
    ]
    assert [code(c.ask(Method.ALLOCATE, REQUEST)) for c in bobs] == [0, 486]
    pair.desks[1].wait(700)
    assert code(callers[2].ask(Method.ALLOCATE, REQUEST)) == 0, "what expires there is free here"
    pair.memory.close()


def test_stopping_shuts_what_is_piped(pair: Pair) -> None:
    one, other = pair.caller(1, ONE), pair.caller(2, OTHER, transport=Transport.TLS)
    ticket = one.allocate((a.MOBILITY_TICKET, b"")).get(a.MOBILITY_TICKET)
    assert code(other.refresh(None, (a.MOBILITY_TICKET, ticket))) == 0
    pair.server(2).stop(SECOND)
    pair.desks[2].pump()
    assert other.handle in pair.desks[2].shut
