"""Birthday probing over UDP: an agent led by hand."""

from __future__ import annotations

from typing import Any

import pytest

from ice.candidate import CandidateType
from ice.config import Credentials, Interface
from ice.events import AgentState, LocalCandidate, SpreadEnded
from ice.messages import Keys
from ice.spread.order import Ended, Progress, Role, Spread
from ice.spread.udp import MOST_FOUND
from stun.codec import decode, encode
from stun.errors import DropReason, UsageError
from stun.message import Message
from stun.registry import Class, Method
from stun.sansio import MILLISECOND, SECOND, Address, Cause, Closed, Opened, OpenUdp, Transmit
from tools.agentdesk import HOST, LOCAL, MAPPED, OUTSIDE, REMOTE, SERVER, STUN, AgentDesk

HIT = Address("198.51.100.7", 31_337)


def begin(desk: AgentDesk, role: Role, **order: Any) -> Progress:
    """Order a spread; what was sent before is forgotten."""
    desk.orders.clear()
    progress = desk.agent.spread(Spread(role, **order), desk.now)
    desk.pump()
    return progress


class TestSockets:
    def test_each_knocks_at_the_one_endpoint(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        progress = begin(desk, Role.SOCKETS, sockets=20, again=SECOND)
        desk.wait(500)
        knocks = [sent for sent in desk.sent(OUTSIDE) if sent.source.port != 40_000]
        assert len({sent.source for sent in knocks}) == len(knocks) == 20
        assert all(desk.knows(sent.data) for sent in knocks)
        assert len({sent.data for sent in knocks}) == 20
        assert (progress.sent, progress.opened) == (20, 20)

    def test_they_knock_again_until_the_packets_are_used_up(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        progress = begin(desk, Role.SOCKETS, sockets=4, packets=10, again=200 * MILLISECOND)
        desk.wait(3000)
        assert progress.sent == 10
        per_socket = [len([s for s in desk.sent(OUTSIDE) if s.source == at]) for at in ports(desk)]
        assert sorted(per_socket) == [2, 2, 3, 3]
        assert progress.ended is None, "they listen on"

    def test_they_are_shut_when_the_time_is_up(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        progress = begin(desk, Role.SOCKETS, sockets=4, duration=SECOND)
        desk.wait(1500)
        assert progress.ended is Ended.EXPIRED
        assert len(desk.shut()) == 4
        assert [event.why for event in desk.told(SpreadEnded)] == [Ended.EXPIRED.value]

    def test_it_waits_for_the_peers_candidate(self) -> None:
        desk = AgentDesk()
        desk.ready()
        progress = begin(desk, Role.SOCKETS, sockets=4)
        desk.wait(1000)
        assert (progress.began, desk.sent(OUTSIDE)) == (None, [])
        desk.remote()
        desk.wait(100)
        assert progress.opened == 4

    def test_it_waits_for_a_socket_of_its_own(self) -> None:
        desk = AgentDesk()
        desk.meet()
        desk.remote()
        progress = begin(desk, Role.SOCKETS, sockets=4)
        assert progress.ended is None
        desk.gather()
        desk.wait(100)
        assert progress.opened == 4

    def test_explicit_endpoints_need_no_candidate(self) -> None:
        desk = AgentDesk()
        desk.ready()
        aims = (Address("198.51.100.7", 1111), Address("198.51.100.7", 2222))
        progress = begin(desk, Role.SOCKETS, sockets=3, remotes=aims)
        desk.wait(100)
        assert progress.sent == 6
        assert [len(desk.sent(aim)) for aim in aims] == [3, 3]

    def test_new_mappings_come_before_old_ones_are_kept_alive(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        progress = begin(desk, Role.SOCKETS, sockets=30, rate=50, again=100 * MILLISECOND)
        desk.wait(700)
        assert progress.opened == 30

    def test_with_a_ttl_they_do_not_reach_the_peer(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        begin(desk, Role.SOCKETS, sockets=3, ttl=2)
        desk.wait(50)
        assert {sent.ttl for sent in desk.sent(OUTSIDE) if sent.source in ports(desk)} == {2}

    def test_one_that_cannot_be_had_is_passed_over(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        desk.gone.add(HOST)
        progress = begin(desk, Role.SOCKETS, sockets=5)
        desk.wait(100)
        assert (progress.opened, progress.refused) == (0, 5)

    def test_one_that_breaks_is_not_used_any_more(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        progress = begin(desk, Role.SOCKETS, sockets=1, again=200 * MILLISECOND)
        (handle,) = (o.handle for o in desk.orders if isinstance(o, OpenUdp))
        desk.tell(Closed(handle, Cause.OTHER))
        desk.wait(1000)
        assert (progress.sent, progress.refused) == (1, 1)


class TestAHit:
    def hit(self, desk: AgentDesk, data: bytes | None = None, source: Address = HIT) -> Address:
        at = ports(desk)[-1]
        desk.arrive(desk.check() if data is None else data, source, at)
        return at

    def sockets(self, **options: Any) -> tuple[AgentDesk, Progress]:
        desk = AgentDesk(**options)
        desk.ready()
        desk.remote()
        progress = begin(desk, Role.SOCKETS, sockets=4)
        desk.wait(100)
        return desk, progress

    def test_a_check_of_the_peers_makes_the_socket_a_base(self) -> None:
        desk, progress = self.sockets()
        at = self.hit(desk)
        assert progress.hits == 1
        assert at in [base.address for base in desk.agent.bases]
        (answer,) = (s for s in desk.sent(HIT) if decode(s.data).message_class is Class.SUCCESS)
        assert answer.source == at

    def test_the_peer_is_not_told_of_what_it_has_met(self) -> None:
        desk, _ = self.sockets()
        before = len(desk.told(LocalCandidate))
        self.hit(desk)
        assert len(desk.told(LocalCandidate)) == before

    def test_it_is_checked_and_used_like_any_other(self) -> None:
        desk, progress = self.sockets()
        at = self.hit(desk)
        desk.wait(60)
        checks = [s for s in desk.sent(HIT) if decode(s.data).message_class is Class.REQUEST]
        assert checks[0].source == at
        desk.arrive(desk.response(checks[0].data, MAPPED), HIT, at)
        assert desk.agent.state in (AgentState.CONNECTED, AgentState.COMPLETED)
        pair = desk.agent.pair()
        assert pair is not None
        assert (pair.base.address, pair.remote_address) == (at, HIT)
        assert progress.ended is Ended.FOUND
        assert [event.hits for event in desk.told(SpreadEnded)] == [1]

    def test_the_others_are_shut_then(self) -> None:
        desk, _ = self.sockets()
        at = self.hit(desk)
        desk.wait(60)
        check = asked(desk)
        desk.arrive(desk.response(check.data, MAPPED), HIT, at)
        assert at in desk.open.values()
        assert len(desk.shut()) == 3

    def test_data_goes_over_it(self) -> None:
        desk, _ = self.sockets()
        at = self.hit(desk)
        desk.wait(60)
        check = asked(desk)
        desk.arrive(desk.response(check.data, MAPPED), HIT, at)
        desk.orders.clear()
        assert desk.agent.send(b"hello", desk.now)
        desk.pump()
        assert [(s.data, s.source, s.destination) for s in desk.sent()] == [(b"hello", at, HIT)]
        desk.arrive(b"world", HIT, at)
        assert desk.data == [b"world"]

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"no STUN at all", DropReason.TOO_SHORT),
            (encode(Message.request(Method.BINDING, bytes(12))), DropReason.BAD_FINGERPRINT),
            (
                encode(Message.request(Method.BINDING, bytes(12)), fingerprint=True),
                DropReason.UNKNOWN_USERNAME,
            ),
            (
                encode(Message.indication(Method.BINDING, bytes(12)), fingerprint=True),
                DropReason.UNEXPECTED_CLASS,
            ),
            (
                encode(Message.request(Method.ALLOCATE, bytes(12)), fingerprint=True),
                DropReason.UNKNOWN_METHOD,
            ),
        ],
        ids=lambda value: value.name if isinstance(value, DropReason) else "",
    )
    def test_whoever_proves_nothing_gets_nothing(self, data: bytes, reason: DropReason) -> None:
        desk, progress = self.sockets()
        before = desk.agent.drops[reason]
        sent = len(desk.sent())
        self.hit(desk, data)
        assert desk.agent.drops[reason] == before + 1
        assert (progress.hits, len(desk.sent())) == (0, sent)

    def test_whoever_knows_another_password_gets_nothing(self) -> None:
        desk, progress = self.sockets()
        keys = Keys(REMOTE)
        keys.set_remote(Credentials(LOCAL.ufrag, "x" * 24))
        self.hit(desk, desk.check(keys=keys))
        assert progress.hits == 0
        assert desk.agent.drops[DropReason.BAD_INTEGRITY] == 1

    def test_how_many_become_bases_is_bounded(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        progress = begin(desk, Role.SOCKETS, sockets=MOST_FOUND + 4)
        desk.wait(200)
        for at in ports(desk):
            desk.arrive(desk.check(), HIT, at)
        assert progress.hits == MOST_FOUND
        assert desk.agent.drops[DropReason.NO_ROOM] == 4

    def test_another_hit_than_the_one_in_use_is_given_up_in_the_end(self) -> None:
        desk, _ = self.sockets()
        first, second = ports(desk)[:2]
        for at in (first, second):
            desk.arrive(desk.check(), HIT, at)
        assert len(desk.agent.bases) == 3
        desk.agent.close(desk.now)
        desk.pump()
        assert desk.open == {}

    def test_it_goes_with_its_address(self) -> None:
        desk, progress = self.sockets()
        self.hit(desk)
        desk.agent.network_changed([Interface("10.0.0.9", "eth1", 65535)], desk.now)
        desk.pump()
        assert progress.ended is Ended.NO_BASE
        assert [at.host for at in desk.open.values()] == ["10.0.0.9"]


class TestProbes:
    def test_they_go_from_the_mapped_socket_to_as_many_ports(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        progress = begin(desk, Role.PROBES, packets=100)
        desk.wait(1000)
        probes = [s for s in desk.sent() if s.destination.host == OUTSIDE.host]
        probes = [s for s in probes if s.destination != OUTSIDE]
        assert progress.sent == 100
        assert len({s.destination.port for s in probes}) >= 99  # one may be the peer's own
        assert {s.source for s in probes} == {Address(HOST, 40_000)}
        assert all(desk.knows(s.data) for s in probes)
        assert progress.ended is Ended.SPENT

    def test_the_rate_is_kept(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        progress = begin(desk, Role.PROBES, rate=200)
        desk.wait(1000)
        assert 190 <= progress.sent <= 201

    def test_only_the_ports_that_were_asked_for(self) -> None:
        desk = AgentDesk()
        desk.ready()
        progress = begin(desk, Role.PROBES, ports=(5000, 5009), remotes=(OUTSIDE,))
        desk.wait(200)
        hit = sorted(s.destination.port for s in desk.sent() if s.destination.host == OUTSIDE.host)
        assert hit == list(range(5000, 5010))
        assert progress.ended is Ended.SPENT

    def test_it_waits_for_the_mapping(self) -> None:
        desk = AgentDesk()
        desk.gather(SERVER)
        desk.meet()
        desk.remote()
        progress = begin(desk, Role.PROBES)
        desk.wait(30)
        assert progress.began is None
        desk.agent.server_not_found("stun:b", "nobody knows", desk.now)
        desk.wait(12_000)  # the server is given up
        assert progress.began is not None

    def test_a_direct_pair_ends_it(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        progress = begin(desk, Role.PROBES, packets=2000, rate=100)
        desk.wait(100)
        desk.arrive(desk.check(), HIT, Address(HOST, 40_000))
        desk.wait(60)
        check = asked(desk)
        desk.arrive(desk.response(check.data, MAPPED), HIT, check.source)
        assert (progress.ended, progress.hits) == (Ended.FOUND, 1)
        count = progress.sent
        desk.wait(1000)
        assert progress.sent == count

    def test_where_a_direct_pair_works_none_is_begun(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        desk.wait(60)
        check = desk.sent(OUTSIDE)[0]
        desk.arrive(desk.response(check.data, MAPPED), OUTSIDE, check.source)
        assert desk.agent.pair() is not None
        progress = begin(desk, Role.PROBES)
        assert (progress.ended, progress.sent) == (Ended.FOUND, 0)


class TestCommands:
    def test_the_peer_has_to_be_known(self) -> None:
        desk = AgentDesk()
        with pytest.raises(UsageError, match="credentials"):
            desk.agent.spread(Spread(Role.PROBES), desk.now)

    def test_what_the_agent_does_not_have_is_refused(self) -> None:
        desk = AgentDesk()
        desk.ready()
        with pytest.raises(UsageError, match="TCP"):
            desk.agent.spread(Spread(Role.PROBES, "tcp"), desk.now)
        with pytest.raises(UsageError, match="component"):
            desk.agent.spread(Spread(Role.PROBES, component=2), desk.now)
        desk = AgentDesk(udp=False, tcp=True)
        desk.meet()
        with pytest.raises(UsageError, match="UDP"):
            desk.agent.spread(Spread(Role.PROBES), desk.now)

    def test_a_lite_agent_sends_none(self) -> None:
        desk = AgentDesk(lite=True)
        desk.meet()
        with pytest.raises(UsageError, match="lite"):
            desk.agent.spread(Spread(Role.PROBES), desk.now)

    def test_four_at_a_time(self) -> None:
        desk = AgentDesk()
        desk.ready()
        for _ in range(4):
            begin(desk, Role.SOCKETS, sockets=1)
        with pytest.raises(UsageError, match="4 spreads"):
            desk.agent.spread(Spread(Role.SOCKETS), desk.now)

    @pytest.mark.parametrize("how", ["stop", "restart", "close"])
    def test_what_ends_it(self, how: str) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        going = begin(desk, Role.SOCKETS, sockets=4)
        waiting = begin(desk, Role.PROBES, component=1)
        desk.wait(50)
        before = len(desk.open)
        match how:
            case "stop":
                desk.agent.stop_spreads(desk.now)
            case "restart":
                desk.agent.restart(desk.now)
            case _:
                desk.agent.close(desk.now)
        desk.pump()
        assert going.ended is Ended.STOPPED
        assert waiting.ended is Ended.STOPPED
        assert len(desk.open) == (0 if how == "close" else before - 4)
        sent = going.sent, waiting.sent
        desk.wait(1000)
        assert (going.sent, waiting.sent) == sent

    def test_without_a_base_it_never_begins(self) -> None:
        desk = AgentDesk()
        desk.gone.add(HOST)
        desk.gather()
        desk.meet()
        desk.remote()
        progress = begin(desk, Role.SOCKETS)
        assert progress.ended is Ended.NO_BASE

    def test_what_comes_late_for_a_socket_that_is_shut_is_counted(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote()
        begin(desk, Role.SOCKETS, sockets=1)
        (order,) = (o for o in desk.orders if isinstance(o, OpenUdp))
        at = ports(desk)[0]
        desk.agent.stop_spreads(desk.now)
        desk.pump()
        desk.arrive(desk.check(), HIT, at)
        desk.tell(Opened(order.handle, at))
        assert desk.agent.drops[DropReason.UNKNOWN_STREAM] == 2

    def test_the_candidate_that_it_aims_at_is_server_reflexive(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.remote(Address("192.168.7.7", 5000), CandidateType.HOST)
        progress = begin(desk, Role.SOCKETS, sockets=1)
        desk.wait(100)
        assert progress.began is None
        assert STUN not in [s.destination for s in desk.sent()]


def asked(desk: AgentDesk) -> Transmit:
    """Return the first check that was sent to where the hit came from."""
    return next(s for s in desk.sent(HIT) if decode(s.data).message_class is Class.REQUEST)


def ports(desk: AgentDesk) -> list[Address]:
    """Return the addresses of the spread's sockets that are open."""
    return [at for at in desk.open.values() if at.port != 40_000]
