"""Low-TTL opening: what leaves before the first check, and what waits for it."""

from __future__ import annotations

from random import Random
from typing import Any

from ice.base import Base, CandidateFound
from ice.candidate import Candidate, CandidateType
from ice.config import Interface
from ice.spread.openings import MOST_OPENED, HeldRemote, Openings
from stun.codec import decode
from stun.registry import Class
from stun.sansio import MILLISECOND, SECOND, Address, Transmit
from tools.agentdesk import ETH, HOST, MAPPED, OUTSIDE, SERVER, AgentDesk

BASE = Base(1, 0, 1, "udp", Address(HOST, 40_000))
SECOND_BASE = Base(2, 0, 1, "udp", Address("10.0.0.2", 40_001))
WAIT = 300 * MILLISECOND


def candidate(
    address: Address = OUTSIDE,
    kind: CandidateType = CandidateType.SERVER_REFLEXIVE,
    transport: str = "udp",
) -> Candidate:
    return Candidate("1", 1, transport, 100, *address, kind)


def found(base: Base = BASE, kind: CandidateType = CandidateType.HOST) -> CandidateFound:
    return CandidateFound(candidate(base.address, kind), base)


class Sent(list[tuple[Base, Address, bytes, int]]):
    """What was sent, and where from."""

    def send(self, base: Base, remote: Address, data: bytes, ttl: int, _: int) -> None:
        self.append((base, remote, data, ttl))


def openings() -> tuple[Openings, Sent]:
    sent = Sent()
    return Openings(2, WAIT, sent.send, entropy=Random(1).randbytes), sent


class TestWhatIsHeldBack:
    def test_a_reflexive_candidate_waits_for_its_opening(self) -> None:
        held, sent = openings()
        assert not held.local(found(), 0)
        assert held.remote(candidate(), 0, 0)
        assert [(base, remote, ttl) for base, remote, _, ttl in sent] == [(BASE, OUTSIDE, 2)]
        assert held.deadline() == WAIT
        assert held.due(WAIT - 1) == []
        assert held.due(WAIT) == [HeldRemote(candidate(), 0)]
        assert held.deadline() is None

    def test_what_is_sent_harms_nobody(self) -> None:
        held, sent = openings()
        held.local(found(), 0)
        held.remote(candidate(), 0, 0)
        assert decode(sent[0][2]).message_class is Class.INDICATION

    def test_hosts_and_relays_and_tcp_do_not_wait(self) -> None:
        held, sent = openings()
        held.local(found(), 0)
        for kind in (CandidateType.HOST, CandidateType.RELAYED):
            assert not held.remote(candidate(kind=kind), 0, 0)
        assert not held.remote(candidate(transport="tcp"), 0, 0)
        assert sent == []

    def test_the_end_of_candidates_does_not_overtake_them(self) -> None:
        held, _ = openings()
        held.local(found(), 0)
        held.remote(candidate(), 0, 0)
        assert held.remote(None, 0, 5)
        assert [h.candidate for h in held.due(SECOND) if isinstance(h, HeldRemote)] == [
            candidate(), None,
        ]  # fmt: skip
        assert not held.remote(None, 0, SECOND)

    def test_a_base_that_comes_later_waits_as_well(self) -> None:
        held, sent = openings()
        assert not held.remote(candidate(), 0, 0), "there is nothing to open yet"
        assert held.local(found(), 0)
        assert held.local(found(kind=CandidateType.SERVER_REFLEXIVE), 5), "and all that is its"
        assert len(sent) == 1
        assert [h for h in held.due(SECOND) if isinstance(h, CandidateFound)] == [
            found(), found(kind=CandidateType.SERVER_REFLEXIVE),
        ]  # fmt: skip

    def test_each_base_opens_for_each(self) -> None:
        held, sent = openings()
        held.local(found(), 0)
        held.local(found(SECOND_BASE), 0)
        held.remote(candidate(), 0, 0)
        assert {base for base, *_ in sent} == {BASE, SECOND_BASE}

    def test_once(self) -> None:
        held, sent = openings()
        held.local(found(), 0)
        held.remote(candidate(), 0, 0)
        assert not held.remote(candidate(), 0, 1)
        assert len(sent) == 1

    def test_only_where_a_check_would_go(self) -> None:
        held, sent = openings()
        held.local(found(), 0)
        held.local(found(Base(3, 0, 1, "udp", Address("192.0.2.1", 1), relay="turn:x")), 0)
        held.local(found(Base(4, 1, 1, "udp", Address(HOST, 2))), 0)
        held.local(found(Base(5, 0, 2, "udp", Address(HOST, 3))), 0)
        held.local(found(Base(6, 0, 1, "udp", Address("2001:db8::1", 4))), 0)
        held.remote(candidate(), 0, 0)
        assert [base for base, *_ in sent] == [BASE]

    def test_what_is_gone_waits_for_nothing(self) -> None:
        held, sent = openings()
        held.remote(candidate(), 0, 0)
        held.local(found(), 0)
        held.forget(BASE)
        assert held.due(SECOND) == []
        held.remote(candidate(Address(OUTSIDE.host, 1)), 0, 0)
        assert len(sent) == 1

    def test_another_generation_begins_anew(self) -> None:
        held, sent = openings()
        held.local(found(), 0)
        held.remote(candidate(), 0, 0)
        held.restart()
        assert held.due(SECOND) == []
        assert not held.local(found(), 0)
        assert held.remote(candidate(), 0, 0)
        assert len(sent) == 2

    def test_what_a_peer_costs_is_bounded(self) -> None:
        held, sent = openings()
        held.local(found(), 0)
        for port in range(1, MOST_OPENED + 10):
            held.remote(candidate(Address(OUTSIDE.host, port)), 0, 0)
        assert len(sent) == MOST_OPENED


class TestInAnAgent:
    def desk(self, **options: Any) -> AgentDesk:
        desk = AgentDesk(opening_ttl=2, opening_wait=WAIT, **options)
        desk.gather(SERVER)
        desk.wait(100)
        desk.answer(MAPPED)
        desk.meet()
        desk.orders.clear()
        return desk

    def to_peer(self, desk: AgentDesk) -> list[Transmit]:
        return desk.sent(OUTSIDE)

    def test_the_check_follows_the_opening(self) -> None:
        desk = self.desk()
        desk.remote()
        assert [sent.ttl for sent in self.to_peer(desk)] == [2]
        desk.wait(299)
        assert len(self.to_peer(desk)) == 1
        desk.wait(60)
        assert [sent.ttl for sent in self.to_peer(desk)] == [2, None]
        assert desk.knows(self.to_peer(desk)[1].data)

    def test_an_early_check_of_the_peers_is_answered_at_once(self) -> None:
        desk = self.desk()
        desk.remote()
        desk.arrive(desk.check(), OUTSIDE, Address(HOST, 40_000))
        assert any(decode(sent.data).message_class is Class.SUCCESS for sent in self.to_peer(desk))

    def test_a_new_address_opens_too(self) -> None:
        desk = self.desk()
        desk.remote()
        desk.wait(400)
        desk.orders.clear()
        wlan = Interface("10.0.0.2", "wlan0", 65503)
        desk.agent.network_changed([ETH, wlan], desk.now)
        desk.pump()
        opened = [sent for sent in self.to_peer(desk) if sent.source.host == "10.0.0.2"]
        assert [sent.ttl for sent in opened] == [2]
        desk.wait(400)
        opened = [sent for sent in self.to_peer(desk) if sent.source.host == "10.0.0.2"]
        assert opened[1].ttl is None

    def test_after_a_restart_it_is_the_same(self) -> None:
        desk = self.desk()
        desk.remote()
        desk.wait(400)
        desk.agent.restart(desk.now)
        desk.pump()
        desk.orders.clear()
        from ice.config import Credentials

        desk.agent.set_remote(Credentials("far1", "g" * 24), desk.now)
        desk.remote()
        assert [sent.ttl for sent in self.to_peer(desk)] == [2]

    def test_without_it_nothing_is_held_back(self) -> None:
        desk = AgentDesk()
        desk.ready()
        desk.orders.clear()
        desk.remote()
        desk.wait(60)
        assert [sent.ttl for sent in self.to_peer(desk)] == [None]
