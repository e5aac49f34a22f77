"""RFC 6062 on the server's side, rule by rule."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest

from stun.attributes import CONNECTION_ID, XOR_PEER_ADDRESS
from stun.auth_server import Accepted as Authentic
from stun.credentials import Integrity
from stun.discovery import Transport
from stun.errors import DropReason
from stun.message import Message
from stun.registry import Class, ErrorCode, Method, PasswordAlgorithm
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Connected,
    Dial,
    Handle,
    Hold,
    Instant,
    Opened,
    Output,
    Relieved,
    Shut,
    Write,
)
from turn.meter import Bucket, Meter
from turn.server.allocation import Allocation, Flow, Relay
from turn.server.config import Limits, RelayAddress, ServerConfig
from turn.server.hosting import Request
from turn.server.policy import PeerPolicy, Verdict
from turn.server.tcp_relay import EARLY, EARLY_LIMIT, PATIENCE, RETRY, TcpRelay

SERVER = Address("192.31.196.10", 3478)
CLIENT = Address("192.52.193.5", 40_000)
RELAYED = Address("10.0.0.7", 50_000)
ADVERTISED = "192.31.196.11"
PEER = Address("192.175.48.20", 8080)
OTHER_PEER = Address("192.175.48.21", 8080)
PEER6 = Address("2620:4f:8000:a::20", 8080)
PRIVATE = Address("192.168.1.1", 80)
LISTENER = 7
CONTROL = -1


@dataclass
class Client:
    """A client's connection, and what came behind the request at hand."""

    behind: bytes = b""
    congested: bool = False


class Machine:
    """What the server machine does for the TCP relay, written down instead of carried out."""

    def __init__(self, limits: Limits) -> None:
        self.config = ServerConfig(
            listeners=(), relays=(), realm="example.org", policy=PeerPolicy(), limits=limits
        )
        self.entropy = random.Random(6062).randbytes
        self.orders: deque[Output] = deque()
        self.answers: list[Message] = []
        self.refusals: list[tuple[int, str]] = []
        self.indications: list[tuple[Allocation, Message]] = []
        self.drops: list[DropReason] = []
        self.connections = {CONTROL: Client()}
        self.places: dict[Address, Address] = {}
        """Where relayed transport addresses of other clients are bound."""
        self._handles = 100

    def queue(self, output: Output) -> None:
        self.orders.append(output)

    def next_handle(self) -> Handle:
        self._handles += 1
        return self._handles

    def verdict(self, peer: Address) -> Verdict:
        return self.config.policy.check(peer.host)

    def located(self, peer: Address) -> Address:
        return self.places.get(peer, peer)

    def announced(self, source: Address) -> Address:
        return {local: peer for peer, local in self.places.items()}.get(source, source)

    def answer(self, request: Request, response: Message, now: Instant) -> None:
        assert response.transaction_id == request.message.transaction_id
        self.answers.append(response)

    def refuse(
        self,
        request: Request,
        code: int,
        detail: str,
        now: Instant,
        attributes: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        assert detail
        self.refusals.append((code, detail))

    def indicate(self, allocation: Allocation, indication: Message) -> None:
        self.indications.append((allocation, indication))

    def take_over(self, handle: Handle) -> bytes | None:
        client = self.connections.pop(handle, None)
        return None if client is None else client.behind

    def drop(self, reason: DropReason) -> None:
        self.drops.append(reason)


class Rig:
    """The TCP relay with a machine around it and an allocation in it."""

    def __init__(self, *, limits: Limits | None = None) -> None:
        self.now = SECOND
        self.machine = Machine(Limits() if limits is None else limits)
        self.relay = TcpRelay(self.machine)
        self.allocation = self.allocate()
        self._numbers = -100
        self._transactions = 0

    def allocate(
        self, username: str = "alice", *, tcp: bool = True, meter: Meter | None = None
    ) -> Allocation:
        place = RelayAddress(RELAYED.host, ADVERTISED)
        allocation = Allocation(
            session="a" * 12,
            username=username,
            account=username,
            flow=Flow(Transport.TCP, CLIENT, SERVER, CONTROL),
            relays=(Relay(LISTENER, RELAYED, place),),
            tcp=tcp,
            meter=meter or Meter(),
            created=self.now,
        )
        allocation.permissions[PEER.host] = self.now + 300 * SECOND
        return allocation

    def request(
        self,
        message: Message,
        *,
        flow: Flow | None = None,
        username: str = "alice",
        token: str = "",
        allocation: Allocation | None = None,
    ) -> Request:
        authentic = self.authentic(username, token)
        flow = flow or self.allocation.flow
        return Request(message, flow, flow.key, authentic, allocation)

    def authentic(self, username: str, token: str = "") -> Authentic:
        return Authentic(username, b"key", PasswordAlgorithm.MD5, Integrity.SHA1, token)

    def message(self, method: Method) -> Message:
        self._transactions += 1
        return Message.request(method, self._transactions.to_bytes(12))

    def connect(
        self, peer: Address | None = PEER, *, allocation: Allocation | None = None
    ) -> Handle | None:
        """Ask for a connection; return the handle of the dial, if there was one."""
        message = self.message(Method.CONNECT)
        if peer is not None:
            message.add(XOR_PEER_ADDRESS, peer)
        request = self.request(message, allocation=allocation or self.allocation)
        self.relay.connect(request, self.now)
        dials = [order for order in self.machine.orders if isinstance(order, Dial)]
        return dials[-1].handle if dials else None

    def connected(self, peer: Address = PEER) -> tuple[Handle, int]:
        """Connect to a peer; return the connection's handle and its CONNECTION-ID."""
        handle = self.connect(peer)
        assert handle is not None
        self.relay.on_socket(Connected(handle, RELAYED, peer), self.now)
        identifier = self.machine.answers[-1].get(CONNECTION_ID)
        assert identifier is not None
        self.machine.orders.clear()
        return handle, identifier

    def accepted(self, peer: Address = PEER, allocation: Allocation | None = None) -> Handle:
        self._numbers -= 1
        event = Accepted(LISTENER, self._numbers, RELAYED, peer)
        self.relay.accepted(allocation or self.allocation, event, self.now)
        return self._numbers

    def bind(
        self,
        identifier: int | None,
        *,
        username: str = "alice",
        token: str = "",
        behind: bytes = b"",
        congested: bool = False,
        transport: Transport = Transport.TCP,
        allocation: Allocation | None = None,
    ) -> Handle:
        """Send ConnectionBind on a connection of its own; return that connection's handle."""
        self._numbers -= 1
        self.machine.connections[self._numbers] = Client(behind, congested)
        message = self.message(Method.CONNECTION_BIND)
        if identifier is not None:
            message.add(CONNECTION_ID, identifier)
        flow = Flow(transport, Address(CLIENT.host, 41_000), SERVER, self._numbers)
        request = self.request(
            message, flow=flow, username=username, token=token, allocation=allocation
        )
        self.relay.connection_bind(request, self.now)
        return self._numbers

    def bound(self, peer: Address = PEER) -> tuple[Handle, Handle]:
        """Return the handles of a connection's two sides, the peer's first."""
        handle, identifier = self.connected(peer)
        client = self.bind(identifier)
        self.machine.orders.clear()
        return handle, client

    def tell(self, *events: Arrived | Closed | Congested | Relieved) -> None:
        for event in events:
            self.relay.on_socket(event, self.now)

    def wait(self, duration: int) -> None:
        """Let time pass, deadline by deadline."""
        end = self.now + duration
        while (due := self.relay.deadline()) is not None and due <= end:
            assert due >= self.now
            self.now = due
            self.relay.on_deadline(self.now)
        self.now = end

    def orders(self) -> list[Output]:
        orders = list(self.machine.orders)
        self.machine.orders.clear()
        return orders

    def refusal(self) -> int:
        """Return the code of the only refusal."""
        ((code, _),) = self.machine.refusals
        return code


@pytest.fixture
def rig() -> Rig:
    return Rig()


def free(*handles: Handle) -> list[Output]:
    """What tells a driver that the relay decides what is read of these, and that they are."""
    return [Hold(handle, held=False) for handle in handles]


# Connect: RFC 6062 section 5.2. -------------------------------------------------------------------


def test_connect_dials_from_the_relayed_address_and_answers_when_it_is_connected(rig: Rig) -> None:
    handle = rig.connect()
    assert handle is not None
    # The local address, not the one that is advertised: it is the kernel that is told.
    assert rig.orders() == [Dial(handle, RELAYED, PEER)]
    assert not rig.machine.answers
    rig.relay.on_socket(Connected(handle, RELAYED, PEER), rig.now)
    (answer,) = rig.machine.answers
    assert (answer.method, answer.message_class) == (Method.CONNECT, Class.SUCCESS)
    assert answer.get(CONNECTION_ID)
    assert not rig.machine.refusals


def test_connect_needs_no_permission(rig: Rig) -> None:
    assert rig.connect(OTHER_PEER) is not None


def test_connect_without_a_tcp_allocation_is_a_mismatch(rig: Rig) -> None:
    assert rig.connect(allocation=rig.allocate(tcp=False)) is None
    assert rig.refusal() == ErrorCode.ALLOCATION_MISMATCH


@pytest.mark.parametrize("octets", [None, b"", b"\0\1\0\0", b"\0\7" + bytes(6)])
def test_connect_without_a_usable_peer_is_a_bad_request(rig: Rig, octets: bytes | None) -> None:
    message = rig.message(Method.CONNECT)
    if octets is not None:
        message.attributes.append((XOR_PEER_ADDRESS.code, octets))
    rig.relay.connect(rig.request(message, allocation=rig.allocation), rig.now)
    assert rig.refusal() == ErrorCode.BAD_REQUEST
    assert not rig.orders()


def test_connect_to_port_0_is_a_bad_request(rig: Rig) -> None:
    assert rig.connect(Address(PEER.host, 0)) is None
    assert rig.refusal() == ErrorCode.BAD_REQUEST


def test_connect_to_a_peer_that_policy_denies_is_forbidden(rig: Rig) -> None:
    assert rig.connect(PRIVATE) is None
    ((code, detail),) = rig.machine.refusals
    assert code == ErrorCode.FORBIDDEN
    assert str(PRIVATE) in detail


@pytest.mark.parametrize("peer", [RELAYED, Address(ADVERTISED, RELAYED.port)])
def test_connect_to_the_relayed_address_itself_is_forbidden(rig: Rig, peer: Address) -> None:
    policy = PeerPolicy(allow=["10.0.0.7/32", f"{ADVERTISED}/32"])
    rig.machine.config = replace(rig.machine.config, policy=policy)
    assert rig.connect(peer) is None
    assert rig.refusal() == ErrorCode.FORBIDDEN


def test_another_clients_relayed_address_is_reached_where_it_is_bound(rig: Rig) -> None:
    at_home = Address("10.0.0.7", 50_002)
    rig.machine.places = {PEER: at_home}
    handle = rig.connect()
    assert handle is not None
    assert rig.orders() == [Dial(handle, RELAYED, at_home)]
    rig.tell(Closed(handle, Cause.REFUSED))
    rig.accepted(at_home)
    assert rig.machine.indications[0][1].get(XOR_PEER_ADDRESS) == PEER


def test_connect_to_another_family_is_a_family_mismatch(rig: Rig) -> None:
    assert rig.connect(PEER6) is None
    assert rig.refusal() == ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH


def test_connect_to_the_same_peer_again_is_refused_while_dialling_pending_and_bound(
    rig: Rig,
) -> None:
    handle = rig.connect()
    assert handle is not None
    rig.connect()
    rig.relay.on_socket(Connected(handle, RELAYED, PEER), rig.now)
    rig.connect()
    identifier = rig.machine.answers[-1].get(CONNECTION_ID)
    client = rig.bind(identifier)
    rig.connect()
    assert [code for code, _ in rig.machine.refusals] == [446, 446, 446]
    rig.tell(Closed(client, Cause.END_OF_STREAM))
    assert rig.connect() not in {None, handle}
    assert len(rig.machine.refusals) == 3


def test_connect_to_a_peer_that_has_connected_by_itself_is_refused(rig: Rig) -> None:
    rig.accepted()
    rig.connect()
    assert rig.refusal() == ErrorCode.CONNECTION_ALREADY_EXISTS


def test_other_ports_of_a_peer_are_other_connections(rig: Rig) -> None:
    rig.connect()
    assert rig.connect(Address(PEER.host, PEER.port + 1)) is not None
    assert rig.relay.connections(rig.allocation) == 2


def test_a_refused_dial_is_told_at_once(rig: Rig) -> None:
    handle = rig.connect()
    assert handle is not None
    rig.orders()
    rig.tell(Closed(handle, Cause.REFUSED))
    assert rig.machine.refusals == [(447, Cause.REFUSED.value)]
    assert not rig.orders()
    assert not rig.relay.owns(handle)
    assert rig.relay.connections(rig.allocation) == 0
    assert rig.relay.deadline() is None


def test_a_dial_that_nobody_answers_is_given_up_after_30_seconds(rig: Rig) -> None:
    handle = rig.connect()
    rig.orders()
    assert PATIENCE >= 30 * SECOND  # "The timeout value MUST be at least 30 seconds"
    rig.wait(PATIENCE - 1)
    assert not rig.machine.refusals
    rig.wait(1)
    assert rig.refusal() == ErrorCode.CONNECTION_TIMEOUT_OR_FAILURE
    assert rig.orders() == [Shut(handle, reset=True)]
    assert rig.relay.connections(rig.allocation) == 0


def test_an_allocation_has_only_so_many_connections() -> None:
    rig = Rig(limits=Limits(tcp_connections_per_allocation=2))
    rig.connect(Address(PEER.host, 1))
    rig.accepted(Address(PEER.host, 2))
    rig.orders()
    assert rig.connect(Address(PEER.host, 3)) is None
    assert rig.refusal() == ErrorCode.INSUFFICIENT_CAPACITY
    handle = rig.accepted(Address(PEER.host, 4))
    assert rig.orders() == [Shut(handle, reset=True)]
    # Another allocation has a number of its own.
    assert rig.connect(Address(PEER.host, 3), allocation=rig.allocate()) is not None


def test_without_a_limit_there_is_none() -> None:
    rig = Rig(limits=Limits(tcp_connections_per_allocation=0))
    for port in range(1, 100):
        rig.connect(Address(PEER.host, port))
    assert rig.relay.connections(rig.allocation) == 99


# Connections from peers: section 5.3. -------------------------------------------------------------


def test_a_permitted_peer_is_announced(rig: Rig) -> None:
    handle = rig.accepted()
    ((allocation, attempt),) = rig.machine.indications
    assert allocation is rig.allocation
    assert attempt.method == Method.CONNECTION_ATTEMPT
    assert attempt.message_class is Class.INDICATION
    assert attempt.get(XOR_PEER_ADDRESS) == PEER
    assert attempt.get(CONNECTION_ID)
    assert rig.relay.owns(handle)
    assert not rig.orders()


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (OTHER_PEER, DropReason.NO_PERMISSION),
        (PEER6, DropReason.NO_PERMISSION),
        (PRIVATE, DropReason.REFUSED_BY_POLICY),
    ],
)
def test_a_peer_without_permission_or_against_policy_is_reset_and_counted(
    rig: Rig, peer: Address, reason: DropReason
) -> None:
    rig.allocation.permissions[PRIVATE.host] = rig.now + SECOND
    handle = rig.accepted(peer)
    assert rig.orders() == [Shut(handle, reset=True)]
    assert not rig.machine.indications
    assert rig.machine.drops == [reason]
    assert sum(n for what, n in rig.relay.counters.items() if "refused" in what) == 1
    assert not rig.relay.owns(handle)


def test_a_permission_that_has_ended_is_none(rig: Rig) -> None:
    rig.now = rig.allocation.permissions[PEER.host]
    handle = rig.accepted()
    assert rig.orders() == [Shut(handle, reset=True)]


def test_a_second_connection_with_the_same_endpoints_is_reset(rig: Rig) -> None:
    first, second = rig.accepted(), rig.accepted()
    assert rig.orders() == [Shut(second, reset=True)]
    assert rig.relay.owns(first)


def test_identifiers_differ_and_are_never_0(rig: Rig) -> None:
    drawn = deque([bytes(4), b"\0\0\0\1", b"\0\0\0\1", b"\0\0\0\2"])
    rig.machine.entropy = lambda n: drawn.popleft() if n == 4 else bytes(n)
    rig.accepted(Address(PEER.host, 1))
    rig.bind(1)  # it names this connection for as long as that lives
    rig.accepted(Address(PEER.host, 2))
    identifiers = [attempt.get(CONNECTION_ID) for _, attempt in rig.machine.indications]
    assert identifiers == [1, 2]
    assert not drawn


# ConnectionBind: section 5.4. ---------------------------------------------------------------------


def test_a_bound_connection_carries_octets_both_ways(rig: Rig) -> None:
    peer, client = rig.bound()
    assert rig.machine.answers[-1].method == Method.CONNECTION_BIND
    rig.tell(Arrived(client, b"question"), Arrived(peer, b"answer"))
    assert rig.orders() == [Write(peer, b"question"), Write(client, b"answer")]
    # No STUN any more, however much it looks like that.
    lookalike = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)
    rig.tell(Arrived(client, lookalike))
    assert rig.orders() == [Write(peer, lookalike)]


def test_a_peers_connection_is_bound_like_a_dialled_one(rig: Rig) -> None:
    peer = rig.accepted()
    client = rig.bind(rig.machine.indications[0][1].get(CONNECTION_ID))
    assert rig.orders() == free(client, peer)
    rig.tell(Arrived(peer, b"hello"))
    assert rig.orders() == [Write(client, b"hello")]


@pytest.mark.parametrize("wrong", [None, 0, 1])
def test_bind_needs_the_identifier_of_a_pending_connection(rig: Rig, wrong: int | None) -> None:
    _, identifier = rig.connected()
    client = rig.bind(None if wrong is None else identifier ^ wrong if wrong else 0)
    assert rig.refusal() == ErrorCode.BAD_REQUEST
    assert client in rig.machine.connections
    rig.bind(identifier)  # nothing is lost by somebody's wrong guess
    assert len(rig.machine.refusals) == 1


def test_bind_with_a_malformed_identifier_is_a_bad_request(rig: Rig) -> None:
    message = rig.message(Method.CONNECTION_BIND)
    message.attributes.append((CONNECTION_ID.code, b"\0\0"))
    rig.relay.connection_bind(rig.request(message), rig.now)
    assert rig.refusal() == ErrorCode.BAD_REQUEST


def test_a_connection_is_bound_only_once(rig: Rig) -> None:
    _, identifier = rig.connected()
    rig.bind(identifier)
    rig.bind(identifier)
    assert rig.refusal() == ErrorCode.BAD_REQUEST


def test_bind_of_another_user_is_refused_and_changes_nothing(rig: Rig) -> None:
    _, identifier = rig.connected()
    rig.bind(identifier, username="mallory")
    assert rig.refusal() == ErrorCode.WRONG_CREDENTIALS
    rig.bind(identifier)
    assert len(rig.machine.refusals) == 1


def test_clients_with_tokens_have_one_username_and_are_not_one_another(rig: Rig) -> None:
    first = rig.authentic("auth.example.org", "first")
    rig.allocation = rig.allocate("auth.example.org")
    rig.allocation.account = first.account
    _, identifier = rig.connected()
    rig.bind(identifier, username="auth.example.org", token="somebody else's")
    assert rig.refusal() == ErrorCode.WRONG_CREDENTIALS
    # Tokens end sooner than allocations; the client goes on with another one.
    rig.allocation.authentic = rig.authentic("auth.example.org", "second")
    rig.bind(identifier, username="auth.example.org", token="second")
    assert len(rig.machine.refusals) == 1
    _, identifier = rig.connected(OTHER_PEER)
    rig.bind(identifier, username="auth.example.org", token="first")
    assert len(rig.machine.refusals) == 1


def test_a_bind_leads_to_the_allocation_whose_token_proves_it(rig: Rig) -> None:
    _, identifier = rig.connected()
    message = rig.message(Method.CONNECTION_BIND)
    assert rig.relay.named(message) is None
    assert rig.relay.named(message.add(CONNECTION_ID, identifier)) is rig.allocation
    malformed = rig.message(Method.CONNECTION_BIND)
    malformed.attributes.append((CONNECTION_ID.code, b"\0\0"))
    assert rig.relay.named(malformed) is None
    rig.bind(identifier)
    assert rig.relay.named(message) is None


def test_bind_over_udp_or_on_a_control_connection_is_a_bad_request(rig: Rig) -> None:
    _, identifier = rig.connected()
    rig.bind(identifier, transport=Transport.UDP)
    rig.bind(identifier, transport=Transport.DTLS)
    rig.bind(identifier, allocation=rig.allocation)
    assert [code for code, _ in rig.machine.refusals] == [400, 400, 400]


def test_bind_over_tls_works(rig: Rig) -> None:
    _, identifier = rig.connected()
    rig.bind(identifier, transport=Transport.TLS)
    assert not rig.machine.refusals


def test_bind_on_a_connection_that_has_gone_leaves_the_peer_pending(rig: Rig) -> None:
    _, identifier = rig.connected()
    message = rig.message(Method.CONNECTION_BIND).add(CONNECTION_ID, identifier)
    gone = Flow(Transport.TCP, CLIENT, SERVER, -999)
    rig.relay.connection_bind(rig.request(message, flow=gone), rig.now)
    assert len(rig.machine.answers) == 1  # to Connect
    rig.bind(identifier)
    assert len(rig.machine.answers) == 2


def test_what_follows_the_request_in_its_segment_is_the_first_data(rig: Rig) -> None:
    peer, identifier = rig.connected()
    client = rig.bind(identifier, behind=b"GET /")
    assert rig.orders() == [*free(client, peer), Write(peer, b"GET /")]
    assert rig.allocation.meter.usage.octets_from_client == 5


def test_a_connection_that_is_not_bound_within_30_seconds_is_closed(rig: Rig) -> None:
    rig.now += 7 * SECOND
    dialled, identifier = rig.connected()
    rig.wait(SECOND)
    accepted = rig.accepted(Address(PEER.host, 999))
    rig.wait(PATIENCE - SECOND - 1)
    assert not rig.orders()
    rig.wait(1)
    assert rig.orders() == [Shut(dialled)]
    rig.bind(identifier)
    assert rig.refusal() == ErrorCode.BAD_REQUEST
    rig.wait(SECOND)
    assert rig.orders() == [Shut(accepted)]
    assert rig.relay.deadline() is None


def test_a_bound_connection_has_no_time_limit(rig: Rig) -> None:
    rig.bound()
    assert rig.relay.deadline() is None


# What a peer sends before the bind. ---------------------------------------------------------------


def test_what_came_before_the_bind_is_delivered_first(rig: Rig) -> None:
    peer, identifier = rig.connected()
    rig.tell(Arrived(peer, b"220 "), Arrived(peer, b"ready\r\n"))
    assert not rig.orders()
    client = rig.bind(identifier, behind=b"HELO")
    assert rig.orders() == [
        Write(client, b"220 ready\r\n"),
        *free(client, peer),
        Write(peer, b"HELO"),
    ]
    rig.tell(Arrived(peer, b"250"))
    assert rig.orders() == [Write(client, b"250")]
    assert rig.allocation.meter.usage.octets_to_client == 14
    rig.relay.ended(rig.allocation, rig.now)
    assert rig.relay.octets_lost == 0


def test_a_peer_that_sends_much_before_the_bind_is_held_until_then(rig: Rig) -> None:
    peer, identifier = rig.connected()
    rig.tell(Arrived(peer, bytes(EARLY - 1)))
    assert not rig.orders()
    rig.tell(Arrived(peer, b"x"))
    assert rig.orders() == [Hold(peer)]
    rig.tell(Arrived(peer, b"y"))  # was on its way
    assert not rig.orders()
    client = rig.bind(identifier)
    assert rig.orders() == [Write(client, bytes(EARLY - 1) + b"xy"), *free(client, peer)]


def test_a_driver_that_cannot_hold_does_not_fill_the_memory(rig: Rig) -> None:
    peer, identifier = rig.connected()
    rig.tell(*[Arrived(peer, bytes(EARLY))] * (EARLY_LIMIT // EARLY + 1))
    assert rig.orders() == [Hold(peer), Shut(peer)]
    assert rig.relay.octets_lost == EARLY_LIMIT + EARLY
    rig.bind(identifier)
    assert rig.refusal() == ErrorCode.BAD_REQUEST


def test_what_a_peer_sent_before_it_closed_can_still_be_fetched(rig: Rig) -> None:
    peer, identifier = rig.connected()
    rig.tell(Arrived(peer, b"daytime"), Closed(peer, Cause.END_OF_STREAM))
    client = rig.bind(identifier, behind=b"thanks")
    assert rig.orders() == [Write(client, b"daytime"), Shut(client)]
    assert rig.relay.octets_lost == len(b"thanks")
    assert rig.relay.connections(rig.allocation) == 0
    assert not rig.relay.owns(client)


def test_what_nobody_fetches_is_let_go_of_and_counted(rig: Rig) -> None:
    peer, _ = rig.connected()
    rig.tell(Arrived(peer, b"daytime"), Closed(peer, Cause.END_OF_STREAM))
    rig.wait(PATIENCE)
    assert rig.relay.octets_lost == len(b"daytime")
    assert rig.relay.connections(rig.allocation) == 0
    assert not rig.orders()


@pytest.mark.parametrize(("data", "cause"), [(b"", Cause.END_OF_STREAM), (b"x", Cause.RESET)])
def test_a_peer_that_has_gone_before_the_bind_is_no_pending_connection(
    rig: Rig, data: bytes, cause: Cause
) -> None:
    peer, identifier = rig.connected()
    rig.tell(Arrived(peer, data), Closed(peer, cause))
    rig.bind(identifier)
    assert rig.refusal() == ErrorCode.BAD_REQUEST
    assert rig.relay.octets_lost == len(data)


# Endings: section 5.5. ----------------------------------------------------------------------------


@pytest.mark.parametrize("cause", [Cause.END_OF_STREAM, Cause.RESET, Cause.TIMED_OUT])
@pytest.mark.parametrize("side", [0, 1])
def test_when_one_side_closes_so_does_the_other(rig: Rig, side: int, cause: Cause) -> None:
    handles = rig.bound()
    rig.tell(Arrived(handles[side], b"last words"), Closed(handles[side], cause))
    other = handles[1 - side]
    # Shut comes after Write: the driver flushes first.
    assert rig.orders() == [Write(other, b"last words"), Shut(other)]
    assert not rig.relay.owns(other)
    assert rig.relay.connections(rig.allocation) == 0


def test_a_congested_side_is_closed_when_it_has_taken_everything(rig: Rig) -> None:
    peer, client = rig.bound()
    rig.tell(Arrived(peer, b"much"), Congested(client), Arrived(peer, b"more"))
    rig.orders()
    rig.tell(Closed(peer, Cause.END_OF_STREAM))
    assert not rig.orders()
    rig.tell(Arrived(client, b"into the void"))
    assert not rig.orders()
    assert rig.relay.octets_lost == 13
    rig.tell(Relieved(client))
    assert rig.orders() == [Shut(client)]
    assert rig.relay.deadline() is None
    assert rig.relay.connections(rig.allocation) == 0


def test_a_congested_side_that_takes_nothing_is_closed_in_the_end(rig: Rig) -> None:
    peer, client = rig.bound()
    rig.tell(Congested(peer), Closed(client, Cause.END_OF_STREAM))
    rig.orders()
    rig.wait(PATIENCE)
    assert rig.orders() == [Shut(peer)]
    assert not rig.relay.owns(peer)


def test_a_congested_side_may_close_by_itself(rig: Rig) -> None:
    peer, client = rig.bound()
    rig.tell(Congested(peer), Closed(client, Cause.END_OF_STREAM))
    rig.orders()
    rig.tell(Closed(peer, Cause.RESET))
    assert not rig.orders()
    assert rig.relay.deadline() is None


def test_the_end_of_an_allocation_ends_its_connections_and_no_others(rig: Rig) -> None:
    peer, client = rig.bound()
    dialling = rig.connect(OTHER_PEER)
    pending = rig.accepted(Address(PEER.host, 9))
    other = rig.allocate()
    rig.connect(allocation=other)
    rig.orders()
    rig.relay.ended(rig.allocation, rig.now)
    shut = rig.orders()
    assert set(shut) == {Shut(peer), Shut(client), Shut(pending), Shut(dialling or 0, reset=True)}
    assert rig.refusal() == ErrorCode.CONNECTION_TIMEOUT_OR_FAILURE
    assert rig.relay.connections(rig.allocation) == 0
    assert rig.relay.connections(other) == 1
    rig.relay.ended(rig.allocation, rig.now)
    assert not rig.orders()


def test_a_new_policy_ends_what_it_does_not_allow(rig: Rig) -> None:
    peer, client = rig.bound()
    dialling = rig.connect(OTHER_PEER)
    rig.orders()
    policy = PeerPolicy(deny=[f"{PEER.host}/32"])
    rig.machine.config = replace(rig.machine.config, policy=policy)
    assert rig.relay.recheck(rig.now) == 1
    assert rig.orders() == [Shut(peer), Shut(client)]
    assert dialling is not None
    assert rig.relay.owns(dialling)


# Flow control and rates. --------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 1])
def test_who_sends_to_a_congested_side_is_held_until_that_is_relieved(rig: Rig, side: int) -> None:
    handles = rig.bound()
    source, sink = handles[side], handles[1 - side]
    rig.tell(Congested(sink))
    assert rig.orders() == [Hold(source)]
    rig.tell(Congested(sink), Arrived(source, b"was on its way"))
    assert rig.orders() == [Write(sink, b"was on its way")]
    # The other way is not concerned.
    rig.tell(Arrived(sink, b"free"))
    assert rig.orders() == [Write(source, b"free")]
    rig.tell(Relieved(sink))
    assert rig.orders() == [Hold(source, held=False)]
    rig.tell(Relieved(sink))
    assert not rig.orders()


def test_a_client_that_was_congested_before_its_bind_holds_the_peer_back(rig: Rig) -> None:
    peer, identifier = rig.connected()
    rig.tell(Arrived(peer, b"ready"))
    client = rig.bind(identifier, behind=b"HELO", congested=True)
    assert rig.orders() == [
        Write(client, b"ready"),
        *free(client),
        Hold(peer),
        Write(peer, b"HELO"),
    ]
    rig.tell(Relieved(client))
    assert rig.orders() == free(peer)
    rig.tell(Congested(client))
    assert rig.orders() == [Hold(peer)]


def test_what_is_left_of_a_peer_waits_for_a_client_that_was_congested_before_its_bind(
    rig: Rig,
) -> None:
    peer, identifier = rig.connected()
    rig.tell(Arrived(peer, b"daytime"), Closed(peer, Cause.END_OF_STREAM))
    client = rig.bind(identifier, congested=True)
    assert rig.orders() == [Write(client, b"daytime")]
    rig.tell(Relieved(client))
    assert rig.orders() == [Shut(client)]
    assert rig.relay.connections(rig.allocation) == 0
    assert rig.relay.deadline() is None


def test_congestion_of_a_side_that_has_no_other_means_nothing(rig: Rig) -> None:
    peer, _ = rig.connected()
    rig.tell(Congested(peer), Relieved(peer))
    assert not rig.orders()


def metered(octets: int) -> tuple[Rig, Handle, Handle]:
    rig = Rig()
    rig.allocation = rig.allocate(meter=Meter(Bucket(octets, 0, burst=1.0)))
    return rig, *rig.bound()


def test_over_the_rate_a_stream_is_held_and_nothing_is_dropped() -> None:
    rig, peer, client = metered(1000)
    rig.tell(Arrived(peer, bytes(900)))
    assert rig.orders() == [Write(client, bytes(900))]
    rig.tell(Arrived(peer, bytes(600)))
    assert rig.orders() == [Write(client, bytes(600)), Hold(peer)]
    assert rig.relay.deadline() == rig.now + RETRY
    held_at = rig.now
    while not rig.machine.orders:
        rig.wait(RETRY)
    # 500 octets of debt at 1000 a second.
    assert held_at + SECOND // 2 <= rig.now <= held_at + SECOND // 2 + 2 * RETRY
    assert rig.orders() == [Hold(peer, held=False)]
    assert rig.relay.deadline() is None
    usage = rig.allocation.meter.usage
    assert (usage.octets_to_client, usage.packets_to_client, usage.dropped) == (1500, 2, 0)


def test_a_stream_is_read_again_when_the_last_reason_is_gone() -> None:
    rig, peer, client = metered(1000)
    rig.tell(Arrived(peer, bytes(1500)), Congested(client))
    assert rig.orders() == [Write(client, bytes(1500)), Hold(peer)]
    rig.tell(Relieved(client))
    assert not rig.orders()
    rig.tell(Congested(client))
    rig.wait(SECOND)
    assert not rig.orders()
    rig.tell(Relieved(client))
    assert rig.orders() == [Hold(peer, held=False)]


def test_the_debt_of_one_connection_holds_the_others_once_they_bring_something() -> None:
    rig, peer, _ = metered(1000)
    second, other = rig.bound(OTHER_PEER)
    rig.tell(Arrived(peer, bytes(2000)), Arrived(other, b"x"))
    assert rig.orders()[-2:] == [Write(second, b"x"), Hold(other)]
    rig.wait(3 * SECOND)
    assert set(rig.orders()) == {Hold(peer, held=False), Hold(other, held=False)}


def test_what_was_written_need_not_wait_for_the_rate_when_its_source_closes() -> None:
    rig, peer, client = metered(1000)
    rig.tell(Arrived(peer, bytes(2000)), Closed(peer, Cause.END_OF_STREAM))
    assert rig.orders() == [Write(client, bytes(2000)), Hold(peer), Shut(client)]


def test_what_came_before_the_bind_may_use_up_the_rate() -> None:
    rig = Rig()
    rig.allocation = rig.allocate(meter=Meter(Bucket(1000, 0, burst=1.0)))
    peer, identifier = rig.connected()
    rig.tell(Arrived(peer, bytes(2000)))
    client = rig.bind(identifier)
    assert rig.orders()[-2:] == [Hold(client, held=False), Hold(peer)]
    rig.wait(3 * SECOND)
    assert rig.orders() == [Hold(peer, held=False)]


def test_an_allocation_that_ends_in_debt_leaves_no_timer() -> None:
    rig, peer, _ = metered(1000)
    rig.tell(Arrived(peer, bytes(2000)))
    rig.relay.ended(rig.allocation, rig.now)
    assert rig.relay.deadline() is None
    rig.wait(SECOND)


def test_events_for_other_sockets_are_none_of_its_business(rig: Rig) -> None:
    assert not rig.relay.owns(5)
    rig.tell(Arrived(5, b"x"), Congested(5), Relieved(5), Closed(5, Cause.RESET))
    rig.relay.on_socket(Connected(5, RELAYED, PEER), rig.now)
    rig.relay.on_socket(Opened(5, RELAYED), rig.now)
    assert not rig.orders()
    assert rig.relay.deadline() is None


def test_counters_say_what_became_of_connections(rig: Rig) -> None:
    rig.bound()
    rig.accepted(OTHER_PEER)
    handle = rig.connect(OTHER_PEER)
    assert handle is not None
    rig.tell(Closed(handle, Cause.REFUSED))
    assert rig.relay.counters == {
        "peer connections dialled": 2,
        "peer connections bound": 1,
        "peer connections refused: no permission for the peer": 1,
        "peer connections failed: connection refused (RST)": 1,
        "peer connections open": 1,
        "octets of streams that nobody could take": 0,
    }
