"""RFC 6062 on the simulated network: the whole server, a client behind a NAT, peers anywhere.

The client is led by hand, so that every octet and every moment of it is the test's own.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nattype.lab.sim import SERVER_A, Attachment, pair
from nattype.lab.sim.machines import Puppet
from nattype.model import Link
from stun.attributes import (
    CONNECTION_ID,
    ERROR_CODE,
    LIFETIME,
    NONCE,
    REALM,
    REQUESTED_TRANSPORT,
    USERNAME,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
)
from stun.codec import decode, encode
from stun.credentials import LongTerm
from stun.discovery import Transport
from stun.framing import StunStream
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Class, Method
from stun.sansio import MILLISECOND, SECOND, Address, Arrived, Cause, Closed, Handle
from stun.users import StaticUsers
from turn.server.config import Limits, ListenAt, RelayAddress, ServerConfig
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

REALM_NAME = "example.org"
PASSWORDS = {"alice": "secret", "bob": "other secret"}
SERVER = Address(SERVER_A, 3478)
PATIENCE = 30 * SECOND


class Scene:
    """A server, a client behind one NAT, a peer behind another, a peer with a public address."""

    def __init__(
        self,
        seed: int,
        *,
        kind: str = "symmetric",
        link: Link | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.scenario = pair(kind, "symmetric", seed=seed, link_a=link or Link(), link_b=Link())
        self.world = world = self.scenario.world
        self.config = ServerConfig(
            listeners=(
                ListenAt(Transport.UDP, SERVER),
                ListenAt(Transport.TCP, SERVER),
            ),
            relays=(RelayAddress(SERVER_A, SERVER_A),),
            realm=REALM_NAME,
            policy=PeerPolicy(own=[SERVER_A]),
            limits=limits or Limits(),
        )
        self.users = StaticUsers(PASSWORDS, REALM_NAME)
        self.server = Server(
            self.config,
            self.users,
            NonceMaker((world.random("nonces").randbytes(16),)),
            entropy=world.entropy("server"),
            unix_epoch=1_700_000_000,
        )
        self.attached: Attachment[object] = world.attach(self.server, self.scenario.server)
        self.server.start(world.now)
        self.public = scenario_host = self.scenario.public_host("peer")
        self.peer = Puppet()
        self.peer_address = Address(scenario_host.address(ipv6=False), 7000)
        self.peer_attached = world.attach(self.peer, scenario_host)
        self.peer.listen(self.peer_address)
        self.peer_attached.pump()
        world.run(max_time=1)
        self.client = Client(self)

    def until(self, happened: Callable[[], bool], seconds: float = 60) -> None:
        assert self.world.run(until=happened, max_time=seconds)

    def wait(self, nanoseconds: int) -> None:
        self.world.run(until=self.world.now + nanoseconds)

    def peer_accepted(self) -> Handle:
        """Return the connection that the public peer took last."""
        self.until(lambda: bool(self.peer.accepted()))
        return self.peer.accepted()[-1].handle

    def write_as_peer(self, handle: Handle, data: bytes) -> None:
        self.peer.write(handle, data)
        self.peer_attached.pump()


class Client:
    """Speaks TURN over TCP, by hand."""

    def __init__(self, scene: Scene, name: str = "alice") -> None:
        self.scene = scene
        self.name = name
        self.key = LongTerm(name, PASSWORDS[name]).key(REALM_NAME)
        self.puppet = Puppet()
        self.host = scene.scenario.host.address(ipv6=False)
        self.attached = scene.world.attach(self.puppet, scene.scenario.host)
        self.nonces: dict[Handle, bytes] = {}
        self.transactions = scene.world.random(f"transactions of {name}")
        self.relayed = Address("", 0)

    def open(self) -> Handle:
        """Connect to the server."""
        handle = self.puppet.dial(Address(self.host, 0), SERVER)
        self.attached.pump()
        self.scene.until(lambda: self.puppet.connected(handle))
        return handle

    def write(self, handle: Handle, data: bytes) -> None:
        self.puppet.write(handle, data)
        self.attached.pump()

    def shut(self, handle: Handle) -> None:
        self.puppet.shut(handle)
        self.attached.pump()

    def messages(self, handle: Handle) -> list[Message]:
        return [decode(octets) for octets in StunStream().feed(self.puppet.stream(handle))]

    def indications(self, handle: Handle) -> list[Message]:
        return [m for m in self.messages(handle) if m.message_class is Class.INDICATION]

    def sign(self, handle: Handle, message: Message) -> bytes:
        message.add(USERNAME, self.name).add(REALM, REALM_NAME).add(NONCE, self.nonces[handle])
        return encode(message, key=self.key)

    def response(self, handle: Handle, request: Message) -> Message | None:
        return next(
            (
                m
                for m in self.messages(handle)
                if m.transaction_id == request.transaction_id
                and m.message_class in {Class.SUCCESS, Class.ERROR}
            ),
            None,
        )

    def make(self, method: Method) -> Message:
        return Message.request(method, self.transactions.randbytes(12))

    def challenge(self, handle: Handle) -> None:
        """Get a nonce for a connection."""
        request = self.make(Method.REFRESH)
        self.write(handle, encode(request))
        self.scene.until(lambda: self.response(handle, request) is not None)
        response = self.response(handle, request)
        assert response is not None
        self.nonces[handle] = response.get(NONCE) or b""

    def ask(self, handle: Handle, request: Message, *, behind: bytes = b"") -> Message:
        """Send an authentic request and what follows it; return the response."""
        if handle not in self.nonces:
            self.challenge(handle)
        self.write(handle, self.sign(handle, request) + behind)
        self.scene.until(lambda: self.response(handle, request) is not None)
        response = self.response(handle, request)
        assert response is not None
        return response

    def allocate(self, *, lifetime: int = 600) -> Handle:
        """Make a TCP allocation; return its control connection."""
        control = self.open()
        request = self.make(Method.ALLOCATE).add(REQUESTED_TRANSPORT, 6).add(LIFETIME, lifetime)
        response = self.ask(control, request)
        assert response.message_class is Class.SUCCESS, response.get(ERROR_CODE)
        relayed = response.get(XOR_RELAYED_ADDRESS)
        assert relayed is not None
        self.relayed = relayed
        return control

    def permit(self, control: Handle, peer: Address) -> Message:
        request = self.make(Method.CREATE_PERMISSION).add(XOR_PEER_ADDRESS, peer)
        return self.ask(control, request)

    def connect(self, control: Handle, peer: Address) -> Message:
        return self.ask(control, self.make(Method.CONNECT).add(XOR_PEER_ADDRESS, peer))

    def bind(self, identifier: int, *, behind: bytes = b"") -> tuple[Handle, Message]:
        """Bind on a connection of its own; return it and the response."""
        handle = self.open()
        request = self.make(Method.CONNECTION_BIND).add(CONNECTION_ID, identifier)
        return handle, self.ask(handle, request, behind=behind)

    def joined(self, control: Handle, peer: Address) -> tuple[Handle, Handle]:
        """Connect and bind; return the client's data connection and the peer's."""
        response = self.connect(control, peer)
        assert response.message_class is Class.SUCCESS, response.get(ERROR_CODE)
        handle, response = self.bind(response.get(CONNECTION_ID) or 0)
        assert response.message_class is Class.SUCCESS, response.get(ERROR_CODE)
        return handle, self.scene.peer_accepted()

    def data(self, handle: Handle) -> bytes:
        """Return what came on a data connection behind the response to ConnectionBind."""
        stream = StunStream()
        octets = self.puppet.stream(handle)
        taken = 0
        while True:
            size = 20 + int.from_bytes(octets[taken + 2 : taken + 4])
            (message,) = map(decode, stream.feed(octets[taken : taken + size]))
            taken += size
            if message.method == Method.CONNECTION_BIND and message.message_class is Class.SUCCESS:
                return octets[taken:]

    def code(self, response: Message) -> int:
        error = response.get(ERROR_CODE)
        return 0 if error is None else error.code


def pattern(scene: Scene, name: str, size: int) -> bytes:
    return scene.world.random(name).randbytes(size)


@pytest.mark.parametrize("kind", ["open", "symmetric", "cgnat"])
def test_octets_go_both_ways(seed: int, kind: str) -> None:
    scene = Scene(seed, kind=kind)
    client = scene.client
    control = client.allocate()
    handle, peer = client.joined(control, scene.peer_address)
    # The peer sees the relayed transport address, port and all.
    assert scene.peer.accepted()[-1].remote == client.relayed
    there, back = pattern(scene, "there", 200_000), pattern(scene, "back", 150_000)
    client.write(handle, there)
    scene.write_as_peer(peer, back)
    scene.until(lambda: len(scene.peer.stream(peer)) >= len(there))
    scene.until(lambda: len(client.data(handle)) >= len(back))
    assert scene.peer.stream(peer) == there
    assert client.data(handle) == back
    (session,) = scene.server.sessions()
    assert session.tcp
    assert session.connections == 1
    assert session.usage.octets_from_client == len(there)
    assert session.usage.octets_to_client == len(back)
    client.shut(handle)
    scene.until(lambda: scene.peer.closed(peer) is Cause.END_OF_STREAM)


@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_octets_arrive_once_and_in_order_over_a_bad_link(seed: int, loss: float) -> None:
    scene = Scene(seed, link=Link(loss=loss, delay=0.02, jitter=0.015))
    client = scene.client
    handle, peer = client.joined(client.allocate(), scene.peer_address)
    there, back = pattern(scene, "there", 20_000), pattern(scene, "back", 20_000)
    rng = scene.world.random("cuts")
    for octets, write in ((there, client.write), (back, None)):
        at = 0
        while at < len(octets):
            cut = at + rng.randint(1, 3000)
            if write is not None:
                write(handle, octets[at:cut])
            else:
                scene.write_as_peer(peer, octets[at:cut])
            scene.wait(rng.randint(0, 50) * MILLISECOND)
            at = cut
    scene.until(lambda: len(scene.peer.stream(peer)) >= len(there), 600)
    scene.until(lambda: len(client.data(handle)) >= len(back), 600)
    assert scene.peer.stream(peer) == there
    assert client.data(handle) == back


def test_what_comes_before_and_with_the_bind_is_not_lost(seed: int) -> None:
    scene = Scene(seed)
    client = scene.client
    control = client.allocate()
    response = client.connect(control, scene.peer_address)
    peer = scene.peer_accepted()
    banner = pattern(scene, "banner", 50_000)  # more than the server reads ahead
    scene.write_as_peer(peer, banner)
    scene.wait(SECOND)
    # It looks like messages, and is none.
    lookalike = encode(Message.request(Method.BINDING, bytes(12))) + b"\x40\x00\x00\x05hello"
    handle, response = client.bind(response.get(CONNECTION_ID) or 0, behind=lookalike)
    assert response.message_class is Class.SUCCESS
    scene.until(lambda: len(client.data(handle)) >= len(banner))
    assert client.data(handle) == banner
    scene.until(lambda: len(scene.peer.stream(peer)) >= len(lookalike))
    assert scene.peer.stream(peer) == lookalike


@pytest.mark.parametrize("cut", [1, 19, 20, 21, 40, 90])
def test_a_bind_that_comes_in_pieces_loses_nothing(seed: int, cut: int) -> None:
    scene = Scene(seed)
    client = scene.client
    response = client.connect(client.allocate(), scene.peer_address)
    handle = client.open()
    client.challenge(handle)
    request = client.make(Method.CONNECTION_BIND)
    request.add(CONNECTION_ID, response.get(CONNECTION_ID) or 0)
    octets = client.sign(handle, request) + b"\x40\x00\x00\x05hello"
    client.write(handle, octets[:cut])
    scene.wait(SECOND)
    client.write(handle, octets[cut:])
    peer = scene.peer_accepted()
    scene.until(lambda: len(scene.peer.stream(peer)) >= 9)
    assert scene.peer.stream(peer) == b"\x40\x00\x00\x05hello"


def test_a_permitted_peer_is_announced_and_another_is_reset(seed: int) -> None:
    scene = Scene(seed)
    client = scene.client
    control = client.allocate()
    refused = scene.peer.dial(Address(scene.peer_address.host, 0), client.relayed)
    scene.peer_attached.pump()
    scene.until(lambda: scene.peer.closed(refused) is Cause.RESET)
    assert client.permit(control, scene.peer_address).message_class is Class.SUCCESS
    accepted = scene.peer.dial(Address(scene.peer_address.host, 7001), client.relayed)
    scene.peer_attached.pump()
    scene.write_as_peer(accepted, b"hello")
    scene.until(lambda: bool(client.indications(control)))
    (attempt,) = client.indications(control)
    assert attempt.method == Method.CONNECTION_ATTEMPT
    assert attempt.get(XOR_PEER_ADDRESS) == Address(scene.peer_address.host, 7001)
    handle, _ = client.bind(attempt.get(CONNECTION_ID) or 0)
    scene.until(lambda: client.data(handle) == b"hello")
    client.write(handle, b"welcome")
    scene.until(lambda: scene.peer.stream(accepted) == b"welcome")


def test_two_clients_meet_over_their_relayed_addresses(seed: int) -> None:
    scene = Scene(seed)
    alice, bob = scene.client, Client(scene, "bob")
    control, other = alice.allocate(), bob.allocate()
    bob.permit(other, alice.relayed)
    response = alice.connect(control, bob.relayed)
    assert response.message_class is Class.SUCCESS, response.get(ERROR_CODE)
    here, _ = alice.bind(response.get(CONNECTION_ID) or 0)
    scene.until(lambda: bool(bob.indications(other)))
    (attempt,) = bob.indications(other)
    assert attempt.get(XOR_PEER_ADDRESS) == alice.relayed
    there, _ = bob.bind(attempt.get(CONNECTION_ID) or 0)
    alice.write(here, b"ping")
    scene.until(lambda: bob.data(there) == b"ping")
    bob.write(there, b"pong")
    scene.until(lambda: alice.data(here) == b"pong")


def test_errors_of_connect(seed: int) -> None:
    scene = Scene(seed)
    client = scene.client
    control = client.allocate()
    assert client.code(client.connect(control, Address("127.0.0.1", 22))) == 403
    assert client.code(client.connect(control, SERVER)) == 403
    closed = Address(scene.peer_address.host, 9)
    assert client.code(client.connect(control, closed)) == 447
    assert client.code(client.connect(control, scene.peer_address)) == 0
    assert client.code(client.connect(control, scene.peer_address)) == 446
    fresh = client.open()
    assert client.code(client.connect(fresh, scene.peer_address)) == 437
    _, response = client.bind(12345)
    assert client.code(response) == 400


def test_a_peer_that_does_not_answer_is_given_up(seed: int) -> None:
    scene = Scene(seed)
    client = scene.client
    control = client.allocate()
    # The second site's NAT, which drops what it has no mapping for.
    silent = Address("192.52.193.34", 7000)
    started = scene.world.now
    assert client.code(client.connect(control, silent)) == 447
    assert scene.world.now - started >= PATIENCE


def test_a_connection_that_nobody_binds_is_closed(seed: int) -> None:
    scene = Scene(seed)
    client = scene.client
    client.connect(client.allocate(), scene.peer_address)
    peer = scene.peer_accepted()
    connected = scene.world.now
    scene.until(lambda: scene.peer.closed(peer) is not None)
    assert PATIENCE <= scene.world.now - connected + SECOND <= PATIENCE + 2 * SECOND


@pytest.mark.parametrize("how", ["expires", "is deleted", "loses its connection", "is ended"])
def test_when_an_allocation_ends_so_do_its_connections(seed: int, how: str) -> None:
    scene = Scene(seed)
    client = scene.client
    control = client.allocate()
    handle, peer = client.joined(control, scene.peer_address)
    match how:
        case "is deleted":
            client.ask(control, client.make(Method.REFRESH).add(LIFETIME, 0))
        case "loses its connection":
            client.shut(control)
        case "is ended":
            scene.server.disconnect(scene.world.now, username="alice")
            scene.attached.pump()
    scene.until(lambda: scene.peer.closed(peer) is Cause.END_OF_STREAM, 4000)
    scene.until(lambda: client.puppet.closed(handle) is Cause.END_OF_STREAM)
    assert not list(scene.server.sessions())
    again = scene.peer.dial(Address(scene.peer_address.host, 0), client.relayed)
    scene.peer_attached.pump()
    scene.until(lambda: scene.peer.closed(again) is Cause.REFUSED)


def test_another_user_cannot_take_a_connection(seed: int) -> None:
    scene = Scene(seed)
    response = scene.client.connect(scene.client.allocate(), scene.peer_address)
    bob = Client(scene, "bob")
    _, refused = bob.bind(response.get(CONNECTION_ID) or 0)
    assert bob.code(refused) == 441
    handle, _ = scene.client.bind(response.get(CONNECTION_ID) or 0)
    peer = scene.peer_accepted()
    scene.write_as_peer(peer, b"for alice")
    scene.until(lambda: scene.client.data(handle) == b"for alice")


def test_a_rate_slows_streams_down_and_drops_nothing(seed: int) -> None:
    limits = Limits(octets_per_second_per_user=50_000, octets_per_second_per_client=0)
    scene = Scene(seed, limits=limits)
    client = scene.client
    handle, peer = client.joined(client.allocate(lifetime=3600), scene.peer_address)
    octets = pattern(scene, "much", 500_000)
    started = scene.world.now
    scene.write_as_peer(peer, octets)
    scene.until(lambda: len(client.data(handle)) >= len(octets), 600)
    assert client.data(handle) == octets
    # A second's worth at once, the last piece on credit, the rest at the rate.
    assert 7 * SECOND <= scene.world.now - started <= 10 * SECOND


def test_events_after_the_end_are_none_of_anybodys_business(seed: int) -> None:
    scene = Scene(seed)
    scene.server.on_socket(Arrived(999, b"x"), scene.world.now)
    scene.server.on_socket(Closed(999, Cause.RESET), scene.world.now)
