"""The hub on the simulated network, with the real STUN and TURN server machine behind NATs."""

from __future__ import annotations

from typing import Any

import pytest

from ice.base import (
    Base,
    BaseLost,
    CandidateFound,
    CandidateNotFound,
    GatheringDone,
    PathClosed,
    PathOpened,
)
from ice.candidate import CandidateType, TcpType
from ice.config import Config, Interface, Policy, Server
from ice.hub import Hub
from nattype.lab.sim import SERVER_A, SERVER_A6, SERVER_B, Scenario, behind
from nattype.lab.sim.machines import Puppet
from nattype.model import Link
from stun.codec import encode
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.errors import DropReason
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Method
from stun.sansio import MILLISECOND, SECOND, Address, Instant
from stun.users import StaticUsers
from turn.server.config import Limits, ListenAt, RelayAddress, ServerConfig
from turn.server.machine import Server as TurnServer
from turn.server.policy import PeerPolicy

REALM = "example.org"
AT = Address(SERVER_A, 3478)
AT6 = Address(SERVER_A6, 3478)
AT_B = Address(SERVER_B, 3478)
ALICE = LongTerm("alice", "secret")

STUN = Server("stun:a", (Target(AT, Transport.UDP),))
STUN6 = Server("stun:a6", (Target(AT6, Transport.UDP),))
TURN = Server("turn:a", (Target(AT, Transport.UDP),), turn=True, credentials=ALICE)
TURN_TCP = Server("turn:a?tcp", (Target(AT, Transport.TCP),), turn=True, credentials=ALICE)

Arrived = tuple[Base, Address, bytes]


class Scene:
    """A host behind a NAT with a hub, the server, a peer with a public address."""

    def __init__(
        self,
        seed: int,
        *,
        nat: str = "port-restricted-cone",
        link: Link | None = None,
        ipv6: bool = False,
        limits: Limits | None = None,
        relay_policy: PeerPolicy | None = None,
        **options: Any,
    ) -> None:
        self.scenario: Scenario = behind(nat, seed=seed, link=link or Link())
        self.world = world = self.scenario.world
        server_config = ServerConfig(
            listeners=(
                ListenAt(Transport.UDP, AT),
                ListenAt(Transport.TCP, AT),
                ListenAt(Transport.UDP, AT6),
                ListenAt(Transport.UDP, AT_B),
            ),
            relays=(RelayAddress(SERVER_A, SERVER_A), RelayAddress(SERVER_A6, SERVER_A6)),
            realm=REALM,
            policy=relay_policy or PeerPolicy(own=[SERVER_A]),
            limits=limits or Limits(),
        )
        self.server = TurnServer(
            server_config,
            StaticUsers({"alice": "secret"}, REALM),
            NonceMaker((world.random("nonces").randbytes(16),)),
            entropy=world.entropy("server"),
        )
        self.server_attached = world.attach(self.server, self.scenario.server)
        self.server.start(world.now)
        self.peer = Puppet()
        host = self.scenario.public_host("peer")
        self.peer_at = Address(host.address(ipv6=ipv6), 7000)
        self.peer_attached = world.attach(self.peer, host)
        self.peer.bind(self.peer_at)
        nobody = self.peer_at._replace(port=3478)
        self.peer.bind(nobody)
        self.silent = Server("stun:nobody", (Target(nobody, Transport.UDP),))
        """It takes what comes and says nothing."""
        self.peer_attached.pump()
        world.run(max_time=1)

        options.setdefault("tcp", False)
        options.setdefault("ipv4", not ipv6)
        options.setdefault("ipv6", ipv6)
        self.config = Config(**options)
        self.arrived: list[Arrived] = []
        self.events: list[Any] = []
        self.when: list[Instant] = []
        self.hub = Hub(self.config, entropy=world.entropy("hub"), deliver=self._deliver)
        self.attached = world.attach(self.hub, self.scenario.host, self._told)
        self.interfaces = [
            Interface(address, "eth0", 65535 - 32 * n)
            for n, address in enumerate(self.scenario.host.addresses)
            if (":" in address) == ipv6
        ]
        self.began = world.now

    def _deliver(self, base: Base, remote: Address, data: bytes, _now: Instant) -> None:
        self.arrived.append((base, remote, data))

    def _told(self, event: Any) -> None:
        self.events.append(event)
        self.when.append(self.world.now)

    def gather(self, *servers: Server) -> None:
        self.began = self.world.now
        self.hub.gather(self.interfaces, servers, self.world.now)
        self.attached.pump()

    def gathered(self, *servers: Server, seconds: float = 30) -> list[CandidateFound]:
        self.gather(*servers)
        self.until(lambda: bool(self.told(GatheringDone)), seconds)
        return self.told(CandidateFound)

    def until(self, what: Any, seconds: float = 30) -> None:
        assert self.world.run(until=what, max_time=seconds), self.events

    def told(self, kind: Any) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def of_type(self, kind: CandidateType) -> list[CandidateFound]:
        return [found for found in self.told(CandidateFound) if found.candidate.type is kind]

    def time_of(self, event: object) -> int:
        """How long after the beginning something was told."""
        return next(w for e, w in zip(self.events, self.when, strict=True) if e is event) - (
            self.began
        )


def test_a_host_candidate_comes_at_once_and_gathering_is_done(seed: int) -> None:
    scene = Scene(seed)
    (found,) = scene.gathered()
    candidate = found.candidate
    assert candidate.type is CandidateType.HOST
    assert candidate.address == found.base.address
    assert (candidate.host, candidate.related_address) == ("192.168.1.10", None)
    assert scene.time_of(found) == 0
    assert scene.events[-1] == GatheringDone()


def test_the_three_kinds_of_candidates(seed: int) -> None:
    scene = Scene(seed, link=Link(delay=0.02))
    host, reflexive, relayed = scene.gathered(STUN, TURN)
    kinds = [found.candidate.type for found in (host, reflexive, relayed)]
    assert kinds == [
        CandidateType.HOST,
        CandidateType.SERVER_REFLEXIVE,
        CandidateType.RELAYED,
    ]
    assert reflexive.base is host.base
    assert (reflexive.candidate.related_address, reflexive.candidate.related_port) == (
        host.base.address
    )
    assert reflexive.server == "stun:a"
    assert relayed.base.relay == "turn:a"
    assert relayed.base.address == relayed.candidate.address
    assert relayed.candidate.host == SERVER_A
    # RFC 8839 section 5.1: of a relayed candidate it is the mapped address.
    assert (relayed.candidate.related_address, relayed.candidate.related_port) == (
        reflexive.candidate.address
    )
    assert host.candidate.priority > reflexive.candidate.priority > relayed.candidate.priority
    # One round trip to a STUN server, two to a TURN server, and nobody waited for anybody.
    assert scene.time_of(reflexive) < 45 * MILLISECOND
    assert scene.time_of(relayed) < 95 * MILLISECOND
    assert scene.hub.bases == [host.base, relayed.base]


def test_what_a_relay_sees_is_a_candidate_of_the_host_socket(seed: int) -> None:
    scene = Scene(seed)
    host, reflexive, relayed = scene.gathered(TURN)
    assert reflexive.candidate.type is CandidateType.SERVER_REFLEXIVE
    assert reflexive.server == relayed.server == "turn:a"
    assert reflexive.base is host.base


def test_paths_of_all_kinds_carry_packets_both_ways(seed: int) -> None:
    scene = Scene(seed)
    host, _, relayed = scene.gathered(STUN, TURN)
    for base in (host.base, relayed.base):
        scene.hub.send(base, scene.peer_at, b"over", scene.world.now)
        scene.attached.pump()
        scene.until(lambda: bool(scene.peer.received()))
        packet = scene.peer.received()[-1]
        scene.peer.log.clear()
        assert packet.data == b"over"
        scene.peer.send(scene.peer_at, packet.source, b"back")
        scene.peer_attached.pump()
        scene.until(lambda: bool(scene.arrived))
        assert scene.arrived.pop() == (base, scene.peer_at, b"back")


def test_a_dead_server_delays_nothing_but_the_end_and_that_briefly(seed: int) -> None:
    scene = Scene(seed, link=Link(delay=0.02))
    _, reflexive = scene.gathered(scene.silent, STUN)
    assert scene.time_of(reflexive) < 60 * MILLISECOND
    (missing,) = scene.told(CandidateNotFound)
    assert "stun:nobody" in missing.what
    assert "no answer" in missing.why
    assert scene.time_of(scene.events[-1]) < 600 * MILLISECOND


def test_with_dead_servers_only_gathering_ends_after_the_timeout(seed: int) -> None:
    scene = Scene(seed, gather_timeout=4 * SECOND)
    turn = Server("turn:nobody", scene.silent.targets, turn=True, credentials=ALICE)
    (host,) = scene.gathered(scene.silent, turn)
    assert host.candidate.type is CandidateType.HOST
    assert {m.why for m in scene.told(CandidateNotFound)} == {"no answer within 4 s"}
    assert scene.time_of(scene.events[-1]) == 4 * SECOND


def test_over_a_bad_link_everything_is_found_all_the_same(seed: int) -> None:
    scene = Scene(seed, link=Link(loss=0.2, delay=0.03, jitter=0.02))
    scene.gathered(STUN, TURN)
    kinds = {found.candidate.type for found in scene.told(CandidateFound)}
    assert CandidateType.SERVER_REFLEXIVE in kinds


@pytest.mark.parametrize("server", [TURN, TURN_TCP], ids=["udp", "tcp"])
def test_the_relay_policy_tells_nothing_of_this_host(seed: int, server: Server) -> None:
    scene = Scene(seed, policy=Policy.RELAY)
    (found,) = scene.gathered(STUN, server)
    candidate = found.candidate
    assert candidate.type is CandidateType.RELAYED
    assert (candidate.related_address, candidate.related_port) == ("0.0.0.0", 9)
    assert scene.hub.bases == [found.base]


def test_strangers_reach_nobody_under_the_relay_policy(seed: int) -> None:
    scene = Scene(seed, policy=Policy.RELAY, nat="full-cone")
    scene.gathered(TURN)
    ((_, _, mapping),) = scene.scenario.boxes[0].translations()
    scene.peer.send(scene.peer_at, mapping, b"hello")
    scene.peer_attached.pump()
    scene.until(lambda: bool(scene.hub.drops))
    assert scene.hub.drops == {DropReason.REFUSED_BY_POLICY: 1}
    assert scene.arrived == []


def test_a_dual_allocation_is_a_candidate_for_each_family(seed: int) -> None:
    scene = Scene(seed, ipv6=True, ipv4=True)
    scene.gathered(Server("turn:a6", (Target(AT6, Transport.UDP),), turn=True, credentials=ALICE))
    four, six = scene.of_type(CandidateType.RELAYED)
    assert (four.candidate.host, six.candidate.host) == (SERVER_A, SERVER_A6)
    assert four.base is not six.base
    assert four.candidate.priority != six.candidate.priority
    scene.hub.send(six.base, scene.peer_at, b"six", scene.world.now)
    scene.attached.pump()
    scene.until(lambda: bool(scene.peer.received()))
    assert scene.peer.received()[-1].source == six.base.address


def test_a_lost_allocation_is_told(seed: int) -> None:
    scene = Scene(seed)
    *_, relayed = scene.gathered(TURN)
    scene.server_attached.detach()
    scene.until(lambda: bool(scene.told(BaseLost)), seconds=3600)
    (lost,) = scene.told(BaseLost)
    assert lost.base is relayed.base
    assert "the allocation is lost" in lost.why
    assert relayed.base not in scene.hub.bases


def test_a_peer_that_the_relay_does_not_permit_is_told(seed: int) -> None:
    scene = Scene(seed)
    *_, relayed = scene.gathered(TURN)
    remote = Address("10.0.0.1", 5000)
    scene.hub.send(relayed.base, remote, b"check", scene.world.now)
    scene.attached.pump()
    scene.until(lambda: bool(scene.told(PathClosed)))
    (closed,) = scene.told(PathClosed)
    assert (closed.base, closed.remote) == (relayed.base, remote)
    assert "403" in closed.detail


def test_where_no_udp_passes_a_relay_is_reached_by_tcp(seed: int) -> None:
    scene = Scene(seed, nat="udp-blocked", link=Link(delay=0.02))
    both = Server(
        "turn:a",
        (Target(AT, Transport.UDP), Target(AT, Transport.TCP)),
        turn=True,
        credentials=ALICE,
    )
    _, relayed = scene.gathered(STUN, both)
    assert relayed.candidate.type is CandidateType.RELAYED
    # Half a second for UDP, then three round trips.
    assert scene.time_of(relayed) < 700 * MILLISECOND
    scene.hub.send(relayed.base, scene.peer_at, b"over TCP", scene.world.now)
    scene.attached.pump()
    scene.until(lambda: bool(scene.peer.received()))
    assert scene.peer.received()[-1].source == relayed.base.address


def test_a_server_without_room_still_tells_the_mapping(seed: int) -> None:
    scene = Scene(seed, limits=Limits(allocations=1), components=2)
    scene.gathered(TURN)
    mapped = scene.of_type(CandidateType.SERVER_REFLEXIVE)
    assert {found.candidate.component for found in mapped} == {1, 2}
    (relayed,) = scene.of_type(CandidateType.RELAYED)
    (missing,) = scene.told(CandidateNotFound)
    assert missing.component != relayed.candidate.component


def test_behind_a_symmetric_nat_each_server_tells_another_mapping(seed: int) -> None:
    scene = Scene(seed, nat="symmetric")
    scene.gathered(STUN, Server("stun:b", (Target(AT_B, Transport.UDP),)))
    one, two = scene.of_type(CandidateType.SERVER_REFLEXIVE)
    assert one.candidate.address != two.candidate.address
    assert one.candidate.priority != two.candidate.priority
    assert one.candidate.foundation != two.candidate.foundation
    assert one.base is two.base


def test_mappings_and_allocations_outlive_the_nats_patience(seed: int) -> None:
    scene = Scene(seed, link=Link(loss=0.1, delay=0.03))
    host, *_ = scene.gathered(STUN, TURN)
    (relayed,) = scene.of_type(CandidateType.RELAYED)
    before = scene.scenario.boxes[0].translations()
    scene.world.run(max_time=1800)
    assert scene.scenario.boxes[0].translations() == before
    assert scene.told(BaseLost) == []
    for _ in range(20):  # any of them may be lost
        scene.hub.send(relayed.base, scene.peer_at, b"later", scene.world.now)
        scene.attached.pump()
        scene.world.run(max_time=1)
    assert scene.peer.received()[-1].source == relayed.base.address
    assert host.base in scene.hub.bases


def test_closing_gives_the_relay_its_allocation_back(seed: int) -> None:
    scene = Scene(seed)
    scene.gathered(TURN)
    assert scene.server.metrics.allocations == 1
    scene.hub.close(scene.world.now)
    scene.attached.pump()
    scene.until(lambda: scene.server.metrics.allocations == 0)


def test_udp_and_tcp_are_gathered_together_and_end_together(seed: int) -> None:
    scene = Scene(seed, tcp=True, link=Link(delay=0.02))
    found = scene.gathered(STUN, TURN)
    candidates = [each.candidate for each in found]
    assert {candidate.transport for candidate in candidates} == {"udp", "tcp"}
    assert len({candidate.priority for candidate in candidates}) == len(candidates)
    assert set(scene.hub.bases) == {each.base for each in found}
    assert scene.events[-1] == GatheringDone()
    tcp = next(base for base in scene.hub.bases if base.tcptype is TcpType.PASSIVE)
    udp = next(base for base in scene.hub.bases if base.transport == "udp")
    scene.hub.expect(scene.peer_at, scene.world.now)
    scene.hub.release(udp, scene.world.now)
    scene.hub.retain([tcp], scene.world.now)
    scene.attached.pump()
    assert scene.hub.bases == [tcp]
    scene.hub.release(tcp, scene.world.now)
    scene.hub.close(scene.world.now)
    scene.attached.pump()
    scene.world.run(max_time=60)
    assert scene.hub.deadline() is None
    assert scene.told(BaseLost) == []


def test_a_tcp_path_is_opened_used_and_closed_through_the_hub(seed: int) -> None:
    scene = Scene(seed, tcp=True, nat="open")
    scene.gathered()
    active = next(base for base in scene.hub.bases if base.tcptype is TcpType.ACTIVE)
    scene.peer.listen(scene.peer_at)
    scene.peer_attached.pump()
    scene.hub.open_path(active, scene.peer_at, scene.world.now)
    scene.attached.pump()
    scene.until(lambda: bool(scene.told(PathOpened)))
    scene.hub.send(active, scene.peer_at, b"framed", scene.world.now)
    scene.attached.pump()
    scene.until(lambda: bool(scene.peer.accepted()))
    (accepted,) = scene.peer.accepted()
    scene.until(lambda: scene.peer.stream(accepted.handle) == b"\x00\x06framed")
    # The first packet of a connection is a check's (RFC 6544 section 7).
    check = encode(Message.request(Method.BINDING, bytes(12)))
    scene.peer.write(accepted.handle, len(check).to_bytes(2) + check)
    scene.peer_attached.pump()
    scene.until(lambda: scene.arrived == [(active, scene.peer_at, check)])
    scene.hub.close_path(active, scene.peer_at, scene.world.now)
    scene.attached.pump()
    scene.until(lambda: scene.peer.closed(accepted.handle) is not None)
