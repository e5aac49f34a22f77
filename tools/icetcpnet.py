"""Two hubs behind NATs, over TCP, on the simulated network; the agents above are led by hand.

Addresses are carried across by the test, and each end answers a check as an agent does that has
found it authentic.  The server between them is STUN's and TURN's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ice.base import Base, CandidateFound, GatheringDone
from ice.candidate import CandidateType, TcpType
from ice.config import Config, Interface, Server
from ice.hub import Hub
from nattype.lab.sim import SERVER_A, SERVER_B, Host, SimOptions, pair
from nattype.lab.sim.machines import Puppet
from nattype.model import Link
from stun.attributes import XOR_MAPPED_ADDRESS
from stun.codec import decode, encode
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Class, Method
from stun.sansio import SECOND, Accepted, Address, Closed, Instant
from stun.users import StaticUsers
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.machine import Server as TurnServer
from turn.server.policy import PeerPolicy

REALM = "example.org"
AT = Address(SERVER_A, 3478)
STUN = Server("stun:a", (Target(AT, Transport.UDP),))
SILENT = Server("stun:nobody", (Target(Address(SERVER_B, 3478), Transport.UDP),))
TURN = Server(
    "turn:a?transport=tcp",
    (Target(AT, Transport.TCP),),
    turn=True,
    credentials=LongTerm("alice", "secret"),
)
HOST, REFLEXIVE, RELAYED = (
    CandidateType.HOST,
    CandidateType.SERVER_REFLEXIVE,
    CandidateType.RELAYED,
)
ACTIVE, PASSIVE, SO = TcpType.ACTIVE, TcpType.PASSIVE, TcpType.SIMULTANEOUS_OPEN
DROPS, RESETS, ICMP = "port-restricted-cone", "port-restricted-rst", "port-restricted-icmp"
FAST = Link(delay=0.0001)
FAR = Link(delay=0.02)
OUTSIDE_A, OUTSIDE_B = "192.52.193.2", "192.52.193.34"
"""The NATs' addresses."""
ID = bytes(12)


class End:
    """A hub on a host."""

    def __init__(
        self, net: Net, name: str, host: Host, *, controlling: bool, **options: Any
    ) -> None:
        self.net = net
        self.host = host
        self.arrived: list[tuple[Base, Address, bytes]] = []
        self.data: list[bytes] = []
        self.stands_for_reflexive = REFLEXIVE
        self.answers = True
        """Whether requests are answered with success."""
        self.hub = Hub(
            Config(udp=False, **options),
            entropy=net.world.entropy(name),
            deliver=self._deliver,
            controlling=lambda: controlling,
        )
        self.attached = net.world.attach(self.hub, host)
        self.interface = Interface(host.address(), "eth0", 0xFFFF)

    @property
    def events(self) -> list[Any]:
        return self.attached.events

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def _deliver(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        self.arrived.append((base, remote, data))
        if data[:1] > b"\x03":
            self.data.append(data)
            return
        message = decode(data)
        if message.message_class is Class.REQUEST and self.answers:
            answer = Message.success(message).add(XOR_MAPPED_ADDRESS, remote)
            self.hub.send(base, remote, encode(answer), now)

    def gather(self, *servers: Server) -> None:
        self.hub.gather([self.interface], servers, self.net.world.now)
        self.attached.pump()

    def candidate(self, kind: CandidateType, tcptype: TcpType) -> CandidateFound:
        if kind is REFLEXIVE:
            kind = self.stands_for_reflexive
        found = [
            found
            for found in self.told(CandidateFound)
            if found.candidate.type is kind and found.candidate.tcptype is tcptype
        ]
        assert len(found) == 1, found
        event: CandidateFound = found[0]
        return event

    def open(self, base: Base, remote: Address) -> None:
        self.hub.open_path(base, remote, self.net.world.now)
        self.attached.pump()

    def send(self, base: Base, remote: Address, data: bytes) -> None:
        self.hub.send(base, remote, data, self.net.world.now)
        self.attached.pump()

    def check(self, base: Base, remote: Address) -> None:
        self.send(base, remote, encode(Message.request(Method.BINDING, ID)))


class Net:
    """Two ends, the server between them, and the time."""

    def __init__(
        self,
        seed: int,
        a: str = DROPS,
        b: str = DROPS,
        *,
        link: Link = FAR,
        options: SimOptions | None = None,
        **config: Any,
    ) -> None:
        each = options or SimOptions()
        self.scenario = pair(
            a, b, seed=seed, link_a=link, link_b=link, options_a=each, options_b=each
        )
        self.world = world = self.scenario.world
        self.server = TurnServer(
            ServerConfig(
                listeners=(ListenAt(Transport.UDP, AT), ListenAt(Transport.TCP, AT)),
                relays=(RelayAddress(SERVER_A, SERVER_A),),
                realm=REALM,
                policy=PeerPolicy(own=[]),
            ),
            StaticUsers({"alice": "secret"}, REALM),
            NonceMaker((world.random("nonces").randbytes(16),)),
            entropy=world.entropy("server"),
        )
        self.server_attached = world.attach(self.server, self.scenario.server)
        self.server.start(world.now)
        self.a = End(self, "a", self.scenario.host, controlling=True, **config)
        self.b = End(self, "b", self.scenario.peer, controlling=False, **config)
        world.run(max_time=1)

    def until(self, what: Callable[[], object], seconds: float = 60) -> None:
        assert self.world.run(until=lambda: bool(what()), max_time=seconds), (
            self.a.events,
            self.b.events,
        )

    def until_told(self, kind: type, times: int, *ends: End) -> None:
        self.until(lambda: all(len(end.told(kind)) >= times for end in ends))

    def wait(self, seconds: float) -> None:
        self.world.run(until=self.world.now + int(seconds * SECOND))

    def gathered(self, *servers: Server) -> None:
        for end in (self.a, self.b):
            end.gather(*servers)
        self.until(lambda: self.a.told(GatheringDone) and self.b.told(GatheringDone))

    def stranger(self) -> tuple[Puppet, Any]:
        """Put somebody else on the public network."""
        puppet = Puppet()
        name = f"stranger {len(self.world.internet.routes)}"
        return puppet, self.world.attach(puppet, self.scenario.public_host(name))


class Hangup:
    """A STUN server, by hand, that can close its connections."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.puppet = Puppet()
        self.accepted = self.asked = 0
        self.is_rude = False
        self.open: dict[int, Address] = {}
        host = net.scenario.public_host("rude server")
        self.attached = net.world.attach(self.puppet, host, self._told)
        at = Address(host.address(), 3478)
        self.server = Server("stun:rude", (Target(at, Transport.UDP),))
        self.puppet.listen(at)
        self.attached.pump()

    def _told(self, event: Any) -> None:
        if isinstance(event, Accepted):
            self.accepted += 1
            self.open[event.handle] = event.remote
            if self.is_rude:
                self.hang_up()
        elif isinstance(event, Closed):
            self.open.pop(event.handle, None)
        elif hasattr(event, "data") and event.handle in self.open:
            self.asked += 1
            answer = Message.success(decode(event.data))
            answer.add(XOR_MAPPED_ADDRESS, self.open[event.handle])
            self.puppet.write(event.handle, encode(answer))

    def hang_up(self) -> None:
        for handle in [*self.open]:
            self.puppet.shut(handle)
        self.open.clear()
        self.attached.pump()
