"""Conversations of two agents on the desk, step by step."""

from __future__ import annotations

import pytest

from ice.candidate import CandidateType, TcpType
from ice.checks import ChecklistCompleted, ChecklistFailed, RemoteCandidate, RoleChanged
from ice.config import Config
from stun.registry import Class
from stun.sansio import MILLISECOND, SECOND, Cause
from tools.icedesk import Desk, Nat

MS = MILLISECOND
ACTIVE, PASSIVE, SO = TcpType.ACTIVE, TcpType.PASSIVE, TcpType.SIMULTANEOUS_OPEN


def lan(**values: object) -> Desk:
    desk = Desk(1, delay=(10 * MS, 10 * MS), **values)  # type: ignore[arg-type]
    desk.a.host("10.0.0.1")
    desk.b.host("10.0.0.2")
    desk.exchange()
    return desk


def test_on_a_lan_two_round_trips_and_three_packets_of_each_suffice() -> None:
    desk = lan()
    assert desk.run(until=lambda: desk.agreed)
    assert desk.now == SECOND + 40 * MS
    desk.run(10 * SECOND)
    # A check, an answer to the peer's, and the nomination or the answer to it.
    assert (desk.a.sent, desk.b.sent) == (3, 3)
    for side in desk.sides:
        assert len(side.told(ChecklistCompleted)) == 1
        assert side.drops == {}


def test_data_may_pass_after_one_round_trip() -> None:
    desk = lan()
    desk.run(20 * MS)
    for side in desk.sides:
        (pair,) = side.checker.valid_pairs(0, 1)
        assert pair.rtt == 20 * MS


@pytest.mark.parametrize("controlling", [(True, True), (False, False)])
def test_one_of_two_agents_of_one_role_gives_way(controlling: tuple[bool, bool]) -> None:
    desk = lan(controlling=controlling)
    desk.run(SECOND)
    assert desk.agreed
    assert desk.a.checker.controlling is not desk.b.checker.controlling
    assert len(desk.a.told(RoleChanged) + desk.b.told(RoleChanged)) == 1
    winner = max(desk.sides, key=lambda side: side.told(RoleChanged) == [])
    assert winner.checker.controlling is controlling[0]


def test_the_example_of_rfc_8445_section_15_1() -> None:
    # L is behind a NAT with endpoint-independent mapping and address-dependent filtering, R is not.
    desk = Desk(1, nats=(Nat("192.0.2.3", filtering="address"), None))
    left = desk.a.host("10.0.1.1")
    mapped = desk.a.reflexive(left)
    desk.b.host("192.0.2.1")
    desk.exchange()
    desk.run(60 * SECOND)
    assert desk.agreed
    # "agent L will prune the pair containing its server-reflexive candidate".
    (l1,) = desk.a.checker.pairs()
    assert (l1.local.host, l1.mapped) == ("10.0.1.1", mapped)
    r1, r2 = desk.b.checker.pairs()
    assert (r1.remote.host, r1.valid) == ("10.0.1.1", False)
    assert (r2.remote, r2.valid, r2.nominated) == (mapped, True, True)


@pytest.mark.parametrize("kind", [ACTIVE, PASSIVE, SO])
def test_tcp_pairs_of_each_kind(kind: TcpType) -> None:
    desk = Desk(1)
    desk.a.host("10.0.0.1", tcptype=kind)
    desk.b.host("10.0.0.2", tcptype=kind.counterpart)
    desk.exchange()
    desk.run(5 * SECOND)
    assert desk.agreed
    one, other = desk.a.selected(), desk.b.selected()
    assert one is not None
    assert other is not None
    # RFC 6544 7.2: requests on a passive candidate "will typically produce a remote peer reflexive
    # candidate".
    passive = one if kind is PASSIVE else other
    learned = CandidateType.HOST if kind is SO else CandidateType.PEER_REFLEXIVE
    assert passive.remote.type is learned
    connections = set(map(id, (*desk.a.connections.values(), *desk.b.connections.values())))
    assert len(connections) == 1


def test_a_cut_connection_is_told_to_both() -> None:
    desk = Desk(1)
    base = desk.a.host("10.0.0.1", tcptype=ACTIVE)
    desk.b.host("10.0.0.2", tcptype=PASSIVE)
    desk.exchange()
    desk.run(5 * SECOND)
    desk.cut(next(iter(desk.a.connections.values())))
    assert not desk.a.selected()
    assert not desk.b.selected()
    assert Cause.RESET.value in next(iter(desk.a.checker.pairs())).notes[-1].what
    assert next(iter(desk.a.checker.pairs())).base is base


def test_udp_and_tcp_are_raced() -> None:
    desk = Desk(1)
    for side, host in ((desk.a, "10.0.0.1"), (desk.b, "10.0.0.2")):
        side.host(host)
        for kind in TcpType:
            side.host(host, tcptype=kind)
    # UDP does not get through.
    desk.tap = lambda packet: ()
    desk.exchange()
    desk.run(5 * SECOND)
    assert desk.agreed
    pair = desk.a.selected()
    assert pair is not None
    assert pair.base.transport == "tcp"


def test_a_symmetric_nat_is_met_by_its_peer_reflexive_address() -> None:
    desk = Desk(1, nats=(Nat("198.51.100.1", symmetric=True), None))
    desk.a.reflexive(desk.a.host("10.0.0.1"))
    desk.b.host("192.0.2.1")
    desk.exchange()
    desk.run(5 * SECOND)
    assert desk.agreed
    (told,) = desk.b.told(RemoteCandidate)
    pair = desk.b.selected()
    assert pair is not None
    assert pair.remote == told.candidate  # type: ignore[union-attr]


@pytest.mark.parametrize("skew", [0, 30, 3000])
def test_whoever_is_told_late_finds_the_checks_already_made(skew: int) -> None:
    desk = Desk(1)
    desk.a.host("10.0.0.1")
    desk.b.host("10.0.0.2")
    desk.exchange(skew=skew * MS)
    assert desk.run(5 * SECOND, until=lambda: desk.agreed)


def test_an_agent_that_knows_no_candidate_of_the_peer_is_found() -> None:
    desk = Desk(1)
    desk.a.host("10.0.0.1")
    desk.b.host("10.0.0.2")
    # RFC 8863: A sees no candidate that it can use, and B finds A after all.
    desk.a.checker.set_remote(desk.b.credentials, False, desk.now)
    desk.a.checker.end_of_local(desk.now)
    desk.a.checker.end_of_remote(desk.now)
    desk.after(30 * SECOND, desk.b.learn)
    desk.run(60 * SECOND)
    assert desk.agreed
    assert desk.a.told(ChecklistFailed) == []


def test_two_streams_of_two_components() -> None:
    desk = Desk(1, config=Config(streams=2, components=2))
    for stream in (0, 1):
        for component in (1, 2):
            desk.a.host("10.0.0.1", stream=stream, component=component)
            desk.b.host("10.0.0.2", stream=stream, component=component)
    desk.exchange()
    desk.run(5 * SECOND)
    assert desk.agreed
    assert len(desk.a.told(ChecklistCompleted)) == 2


def test_a_full_agent_and_a_lite_one() -> None:
    desk = Desk(1, config=Config(), config_b=Config(lite=True), controlling=(False, False))
    desk.a.host("10.0.0.1")
    desk.b.host("10.0.0.2")
    kinds: set[Class] = set()

    def watch(packet):  # type: ignore[no-untyped-def]
        if packet.source.host == "10.0.0.2":
            kinds.add(Class((packet.data[0] & 1) * 2 + (packet.data[1] >> 4 & 1)))
        return (packet,)

    desk.tap = watch
    desk.exchange()
    desk.run(5 * SECOND)
    assert desk.agreed
    assert desk.a.checker.controlling
    assert kinds == {Class.SUCCESS}


def test_a_better_pair_is_used_without_a_restart() -> None:
    desk = Desk(1)
    desk.a.host("10.0.0.1")
    desk.b.host("10.0.0.2")
    desk.b.host("10.0.0.3", preference=3)
    desk.blocked = {("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")}
    desk.exchange()
    desk.run(2 * SECOND)
    assert desk.agreed
    assert desk.a.selected().remote.host == "10.0.0.3"  # type: ignore[union-attr]
    desk.blocked.clear()
    desk.run(20 * SECOND)
    better = desk.a.checker.valid_pairs(0, 1)[0]
    assert better.remote.host == "10.0.0.2"
    desk.a.checker.nominate(better, desk.now)
    desk.a.drain()
    desk.run(SECOND)
    assert desk.agreed
    assert desk.a.selected() is better


def test_after_a_restart_the_new_pairs_are_used() -> None:
    desk = lan()
    desk.run(SECOND)
    before = desk.a.selected()
    for side in desk.sides:
        side.restart()
    assert desk.a.checker.valid_pairs(0, 1) == [before]
    desk.exchange()
    desk.run(10 * SECOND)
    assert desk.agreed
    assert desk.a.selected() is not before
    assert before not in list(desk.a.checker.pairs())
