"""The whole client and the whole server on the simulated network: NATs, loss, time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nattype.lab.sim import SERVER_A, pair
from nattype.lab.sim.machines import Puppet
from nattype.model import Link
from stun.credentials import LongTerm, ThirdParty
from stun.discovery import Target, Transport
from stun.nonce import NonceMaker
from stun.oauth import Contents, TokenKey, Tokens, timestamp_of
from stun.sansio import SECOND, Address
from stun.users import StaticUsers
from turn.client.config import ClientConfig
from turn.client.errors import Forbidden, NotAuthenticated, QuotaReached
from turn.client.events import (
    Allocated,
    Bound,
    Data,
    Failed,
    Lost,
    Moved,
    PeerClosed,
    PeerConnected,
    PeerRefused,
    PeerStream,
    Permitted,
    Refreshed,
    Released,
)
from turn.client.machine import Client
from turn.server.config import Limits, ListenAt, RelayAddress, ServerConfig
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

REALM = "example.org"
SERVER = Address(SERVER_A, 3478)
LOSSY = Link(loss=0.2, delay=0.03, jitter=0.02)
BOTH = pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])


class Scene:
    """A server, our client behind a symmetric NAT, a peer with a public address."""

    def __init__(
        self,
        seed: int,
        *,
        link: Link | None = None,
        transport: Transport = Transport.UDP,
        password: str = "secret",
        credentials: ThirdParty | None = None,
        tokens: Tokens | None = None,
        server: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.scenario = pair(
            "symmetric", "symmetric", seed=seed, link_a=link or Link(), link_b=Link()
        )
        self.world = world = self.scenario.world
        config = ServerConfig(
            listeners=(ListenAt(Transport.UDP, SERVER), ListenAt(Transport.TCP, SERVER)),
            relays=(RelayAddress(SERVER_A, SERVER_A),),
            realm=REALM,
            policy=PeerPolicy(own=[SERVER_A]),
            **(server or {}),
        )
        self.server = Server(
            config,
            StaticUsers({"alice": "secret"}, REALM),
            NonceMaker((world.random("nonces").randbytes(16),)),
            entropy=world.entropy("server"),
            unix_epoch=1_700_000_000,
            tokens=tokens,
        )
        world.attach(self.server, self.scenario.server)
        self.server.start(world.now)
        self.peer = Puppet()
        host = self.scenario.public_host("peer")
        self.peer_at = Address(host.address(ipv6=False), 7000)
        self.peer_attached = world.attach(self.peer, host)
        self.peer.bind(self.peer_at)
        self.peer.listen(self.peer_at)
        self.peer_attached.pump()
        world.run(max_time=1)
        self.target = Target(SERVER, transport)
        self.options = options
        self.credentials = credentials or LongTerm("alice", password)
        self.events: list[Any] = []
        self.client = self.another("client", self.events)

    def another(self, name: str, events: list[Any]) -> Client:
        """Attach a client to the host behind the NAT."""
        config = ClientConfig(self.target, self.credentials, **self.options)
        client = Client(config, entropy=self.world.entropy(name))
        self.world.attach(client, self.scenario.host, events.append)
        return client

    def allocate(self) -> Allocated:
        self.client.allocate(self.world.now)
        return self.until(Allocated)

    def until(self, kind: Any, seconds: float = 90) -> Any:
        assert self.world.run(until=lambda: bool(self.told(kind)), max_time=seconds), self.events
        return self.told(kind)[-1]

    def happens(self, what: Callable[[], bool], seconds: float = 90) -> None:
        assert self.world.run(until=what, max_time=seconds), self.events

    def told(self, kind: Any) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def say(self, data: bytes) -> None:
        self.client.send(self.peer_at, data, self.world.now)

    def heard(self) -> list[bytes]:
        return [packet.data for packet in self.peer.received()]

    def answer(self, data: bytes, to: Address) -> None:
        self.peer.send(self.peer_at, to, data)
        self.peer_attached.pump()


@BOTH
def test_a_conversation(seed: int, transport: Transport) -> None:
    scene = Scene(seed, transport=transport)
    allocated = scene.allocate()
    # What the server sees is the NAT's address, not the host's.
    assert allocated.mapped.host != scene.scenario.host.address(ipv6=False)
    assert allocated.relayed[0].host == SERVER_A
    for number in range(10):
        scene.say(b"%d" % number)
        scene.happens(lambda n=number: len(scene.heard()) == n + 1)
        scene.answer(b"re: %d" % number, allocated.relayed[0])
        scene.happens(lambda n=number: len(scene.told(Data)) == n + 1)
    assert [event.data for event in scene.told(Data)] == [b"re: %d" % n for n in range(10)]
    assert scene.told(Bound)
    scene.client.release(scene.world.now)
    scene.until(Released)
    assert [*scene.server.sessions()] == []
    assert not scene.client.drops


def test_it_lives_for_hours_on_a_bad_link(seed: int) -> None:
    scene = Scene(seed, link=LOSSY)
    allocated = scene.allocate()
    scene.client.bind(scene.peer_at, scene.world.now)
    scene.until(Bound)
    for _ in range(24):
        scene.world.run(max_time=600)
        assert not scene.told(Lost)
        before = len(scene.told(Data))
        # A datagram may be lost; some of twenty are not.
        for _ in range(20):
            scene.answer(b"still there", allocated.relayed[0])
        scene.happens(lambda before=before: len(scene.told(Data)) > before, 10)
    (session,) = scene.server.sessions()
    assert len(session.channels) == 1
    assert len(scene.told(Refreshed)) > 20
    assert len(scene.told(Allocated)) == 1


def test_what_is_forgotten_ends_on_the_server(seed: int) -> None:
    scene = Scene(seed)
    scene.allocate()
    scene.client.bind(scene.peer_at, scene.world.now)
    scene.client.permit(Address("203.0.114.200", 0), now=scene.world.now)
    scene.happens(lambda: len(scene.told(Permitted)) == 2)
    scene.world.run(max_time=2000)
    (session,) = scene.server.sessions()
    assert (len(session.permissions), len(session.channels)) == (2, 1)
    scene.client.forget(scene.peer_at)
    scene.world.run(max_time=700)
    (session,) = scene.server.sessions()
    assert (session.permissions, len(session.channels)) == (("203.0.114.200",), 0)


@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize("sha256", [False, True])
def test_every_way_to_authenticate(seed: int, sha256: bool, anonymous: bool) -> None:
    scene = Scene(seed, server={"sha256": sha256, "anonymous": anonymous})
    scene.allocate()
    scene.client.bind(scene.peer_at, scene.world.now)
    scene.until(Bound)
    (session,) = scene.server.sessions()
    assert session.username == "alice"


def test_a_token_of_a_third_party(seed: int) -> None:
    key = TokenKey("north", bytes(range(32)))
    contents = Contents(b"a session key", timestamp_of(1_700_000_000), 3600)
    token = key.seal(contents, "relay.example", bytes(12))
    credentials = ThirdParty("north", b"a session key", token)
    scene = Scene(seed, credentials=credentials, tokens=Tokens("relay.example", [key]))
    scene.allocate()
    scene.client.bind(scene.peer_at, scene.world.now)
    scene.until(Bound)
    scene.world.run(max_time=1000)
    assert not scene.told(Lost)


def test_a_wrong_password(seed: int) -> None:
    scene = Scene(seed, password="wrong")
    scene.client.allocate(scene.world.now)
    assert isinstance(scene.until(Failed).error, NotAuthenticated)


def test_a_quota(seed: int) -> None:
    scene = Scene(seed, server={"limits": Limits(allocations_per_user=1)})
    scene.allocate()
    events: list[Any] = []
    other = scene.another("other", events)
    other.allocate(scene.world.now)
    scene.happens(lambda: bool(events))
    assert isinstance(events[0].error, QuotaReached)


def test_a_peer_that_policy_forbids(seed: int) -> None:
    scene = Scene(seed)
    scene.allocate()
    for host in ("127.0.0.1", "10.0.0.1", "169.254.169.254"):
        scene.client.permit(Address(host, 0), now=scene.world.now)
    scene.happens(lambda: len(scene.told(PeerRefused)) == 3)
    assert all(isinstance(event.error, Forbidden) for event in scene.told(PeerRefused))


def test_an_even_port_and_its_neighbour(seed: int) -> None:
    scene = Scene(seed, even_port=True, reserve_next=True)
    first = scene.allocate()
    assert first.relayed[0].port % 2 == 0
    assert first.reservation_token is not None
    scene.options = {"reservation_token": first.reservation_token}
    events: list[Any] = []
    scene.another("other", events).allocate(scene.world.now)
    scene.happens(lambda: bool(events))
    assert events[0].relayed[0].port == first.relayed[0].port + 1


@BOTH
def test_a_move(seed: int, transport: Transport) -> None:
    scene = Scene(seed, mobility=True, transport=transport)
    allocated = scene.allocate()
    assert allocated.mobile
    scene.client.bind(scene.peer_at, scene.world.now)
    scene.until(Bound)
    for number in range(3):
        scene.client.move(scene.world.now)
        scene.happens(lambda n=number: len(scene.told(Moved)) == n + 1)
        scene.say(b"%d" % number)
        scene.happens(lambda n=number: len(scene.heard()) == n + 1)
        scene.answer(b"%d" % number, allocated.relayed[0])
        scene.happens(lambda n=number: len(scene.told(Data)) == n + 1)
    scene.world.run(max_time=1200)
    assert not scene.told(Lost)
    (session,) = scene.server.sessions()
    assert session.relayed == allocated.relayed


def test_the_server_forgets(seed: int) -> None:
    scene = Scene(seed, allocate_again=True)
    first = scene.allocate()
    scene.client.bind(scene.peer_at, scene.world.now)
    scene.until(Bound)
    scene.server.disconnect(scene.world.now, username="alice")
    scene.world.run(max_time=700)
    assert scene.told(Lost)
    second = scene.told(Allocated)[-1]
    assert second != first
    before = len(scene.heard())
    scene.say(b"again")
    scene.happens(lambda: len(scene.heard()) == before + 1)
    assert scene.peer.received()[-1].source == second.relayed[0]


def test_another_server(seed: int) -> None:
    elsewhere = Address(SERVER_A, 3479)
    scene = Scene(seed, server={"alternates": (elsewhere,)})
    scene.client.allocate(scene.world.now)
    # Nobody is there: what matters is that it was asked.
    failed = scene.until(Failed)
    assert failed.error.server.address == elsewhere


def test_relayed_connections(seed: int) -> None:
    scene = Scene(seed, transport=Transport.TCP, tcp=True)
    allocated = scene.allocate()
    number = scene.client.connect(scene.peer_at, scene.world.now)
    assert scene.until(PeerConnected) == PeerConnected(number, scene.peer_at, incoming=False)
    scene.client.write(number, b"hello" * 1000)
    accepted = scene.peer.accepted()[-1].handle

    def arrived(handle: int) -> bytes:
        return scene.peer.stream(handle)

    scene.happens(lambda: len(arrived(accepted)) == 5000)
    scene.peer.write(accepted, b"there" * 1000)
    scene.peer_attached.pump()
    scene.happens(lambda: sum(len(e.data) for e in scene.told(PeerStream)) == 5000)
    scene.client.close(number)
    # The other way round, and closed by the peer.
    scene.client.permit(scene.peer_at, now=scene.world.now)
    scene.until(Permitted)
    handle = scene.peer.dial(Address(scene.peer_at.host, 0), allocated.relayed[0])
    scene.peer_attached.pump()
    scene.happens(lambda: len(scene.told(PeerConnected)) == 2)
    incoming = scene.told(PeerConnected)[-1]
    assert incoming.incoming
    scene.client.write(incoming.connection, b"welcome")
    scene.happens(lambda: arrived(handle) == b"welcome")
    scene.peer.shut(handle)
    scene.peer_attached.pump()
    scene.happens(lambda: any(e.connection == incoming.connection for e in scene.told(PeerClosed)))


@pytest.mark.parametrize("loss", [0.1, 0.2])
def test_lost_packets_change_nothing(seed: int, loss: float) -> None:
    scene = Scene(seed, link=Link(loss=loss, delay=0.05))
    scene.allocate()
    peers = [Address(f"203.0.114.{n}", 9) for n in range(1, 31)]
    for peer in peers:
        scene.client.bind(peer, scene.world.now)
    scene.happens(lambda: len(scene.told(Bound)) == 30, 200)
    scene.world.run(max_time=3000)
    (session,) = scene.server.sessions()
    assert {channel[1] for channel in session.channels} == set(peers)
    assert not scene.told(PeerRefused)
    assert scene.client.deadline() is not None
    assert scene.world.now > 3000 * SECOND
