"""The hub: sockets, what is asked of whom, what comes of it, and what ends it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.base import Base, BaseLost, CandidateFound, GatheringDone, PathUnreachable
from ice.candidate import CandidateType
from ice.config import Interface, Policy
from stun.attributes import XOR_MAPPED_ADDRESS
from stun.codec import encode
from stun.discovery import Target, Transport
from stun.errors import DropReason, UsageError
from stun.message import Message
from stun.registry import Method
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Cause,
    Closed,
    Connected,
    Opened,
    OpenUdp,
    Shut,
    Transmit,
    Undeliverable,
)
from tools.hubdesk import ETH, HOST, PEER, Desk, stun_server, turn_server

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"
MAPPED = Address("203.0.113.5", 6000)
OTHER = Address("203.0.113.5", 6001)
WLAN = Interface("10.0.0.2", "wlan0", 65503)
LINK = Interface("fe80::1%eth0", "eth0", 65471)


def base_of(desk: Desk, n: int = 0) -> Base:
    return desk.told(CandidateFound)[n].base


# Host candidates. ---------------------------------------------------------------------------------


def test_a_host_candidate_is_told_in_the_call_that_opened_its_socket() -> None:
    desk = Desk()
    desk.hub.gather([ETH], [], desk.now)
    order = desk.hub.poll()
    assert order == OpenUdp(1, Address(HOST, 0))
    assert desk.hub.poll() is None
    desk.hub.on_socket(Opened(1, Address(HOST, 50_000)), desk.now)
    found = desk.hub.poll()
    assert isinstance(found, CandidateFound)
    assert found.candidate.address == found.base.address == Address(HOST, 50_000)
    assert desk.hub.poll() == GatheringDone()
    assert desk.hub.deadline() is None


def test_each_stream_and_component_has_a_socket_on_each_address() -> None:
    desk = Desk(streams=2, components=2)
    desk.gather(interfaces=(WLAN, ETH))
    found = desk.told(CandidateFound)
    assert {(f.base.network, f.base.stream, f.base.component) for f in found} == {
        (name, stream, component)
        for name in ("eth0", "wlan0")
        for stream in (0, 1)
        for component in (1, 2)
    }
    assert len({base.address for base in desk.hub.bases}) == 8
    # The preferred address first: its candidates are worth the most.
    assert [f.base.network for f in found] == ["eth0"] * 4 + ["wlan0"] * 4
    for stream in (0, 1):
        of_stream = [f.candidate.priority for f in found if f.base.stream == stream]
        assert len(set(of_stream)) == 4


def test_without_udp_nothing_is_opened() -> None:
    desk = Desk(udp=False)
    desk.gather(stun_server(A))
    assert (desk.orders, desk.events) == ([], [GatheringDone()])


def test_without_interfaces_gathering_is_done() -> None:
    desk = Desk()
    desk.gather(stun_server(A), interfaces=())
    assert desk.events == [GatheringDone()]


# Ports. -------------------------------------------------------------------------------------------


def test_ports_are_taken_from_the_range_and_those_in_use_are_passed_over(seed: int) -> None:
    desk = Desk(seed, ports=(5000, 5003), components=2)
    desk.in_use = {5000, 5001}
    desk.gather()
    assert {candidate.port for candidate in desk.candidates} == {5002, 5003}


def test_an_exhausted_range_is_told_and_costs_a_bounded_number_of_tries(seed: int) -> None:
    desk = Desk(seed, ports=(5000, 9999))
    desk.in_use = set(range(5000, 10_000))
    desk.gather()
    (missing,) = desk.missing
    assert "no port of 5000-9999" in missing.why
    assert 1 < len(desk.ordered(OpenUdp)) <= 64
    assert desk.is_done()


def test_an_address_that_is_gone_is_told_in_words() -> None:
    desk = Desk()
    desk.gone = {HOST}
    desk.gather(stun_server(A), turn_server(Target(Address(B, 3478), Transport.UDP)))
    (missing,) = desk.missing
    assert missing.what == "host 10.0.0.1"
    assert "not one of this machine" in missing.why
    assert desk.is_done()
    assert not desk.ordered(Transmit)


# Server-reflexive candidates. ---------------------------------------------------------------------


def test_a_mapping_is_a_candidate_of_the_socket_that_asked() -> None:
    desk = Desk()
    desk.gather(stun_server(A, name="stun:a"))
    desk.answer(MAPPED)
    found = desk.told(CandidateFound)[1]
    candidate = found.candidate
    assert (candidate.type, candidate.address) == (CandidateType.SERVER_REFLEXIVE, MAPPED)
    assert (candidate.related_address, candidate.related_port) == base_of(desk).address
    assert (found.base, found.server) == (base_of(desk), "stun:a")
    assert desk.is_done()


def test_redundant_mappings_are_dropped_and_others_are_not() -> None:
    desk = Desk()
    desk.gather(*(stun_server(f"192.0.2.{n}") for n in range(1, 6)))
    desk.wait(25)
    mappings = [MAPPED, MAPPED, OTHER, base_of(desk).address, MAPPED]
    asked = desk.requests()
    for mapped, (order, request) in zip(mappings, asked, strict=True):
        reply = Message.success(request).add(XOR_MAPPED_ADDRESS, mapped)
        desk.arrive(encode(reply), order.destination, order.source)
    host, first, second = desk.candidates
    assert host.type is CandidateType.HOST
    assert (first.address, second.address) == (MAPPED, OTHER)
    assert host.priority > first.priority > second.priority
    assert desk.is_done()


def test_an_address_that_makes_no_sense_is_no_candidate() -> None:
    desk = Desk()
    desk.gather(stun_server(A))
    desk.answer(Address("0.0.0.0", 6000))
    (missing,) = desk.missing
    assert "no usable address" in missing.why
    assert [c.type for c in desk.candidates] == [CandidateType.HOST]


def test_servers_of_the_other_family_are_not_asked() -> None:
    desk = Desk()
    desk.gather(stun_server("2001:db8::1"), stun_server("127.0.0.1"))
    assert [order.destination.host for order, _ in desk.requests()] == ["127.0.0.1"]


def test_from_loopback_and_link_local_addresses_only_neighbours_are_asked() -> None:
    desk = Desk()
    loopback = Interface("127.0.0.1", "lo", 65535)
    desk.gather(stun_server(A), stun_server("2001:db8::1"), interfaces=(loopback, LINK))
    assert desk.is_done()
    assert not desk.ordered(Transmit)


def test_a_lite_agent_asks_nobody() -> None:
    desk = Desk(lite=True)
    desk.gather(stun_server(A), turn_server(Target(Address(B, 3478), Transport.UDP)))
    assert [c.type for c in desk.candidates] == [CandidateType.HOST]
    assert not desk.ordered(Transmit)
    assert desk.is_done()


def test_transactions_begin_at_the_pace_of_the_rfc() -> None:
    desk = Desk()
    desk.gather(*(stun_server(f"192.0.2.{n}") for n in range(1, 41)))
    times = []
    start = desk.now
    for _ in range(3000):
        times += [desk.now - start for _ in desk.requests()]
        desk.wait(1)
        if len(times) >= 40:
            break
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0
    assert min(gaps) >= 5 * MILLISECOND, "RFC 8445 section 14.2: MUST NOT"
    assert all(gap >= 50 * MILLISECOND for gap in gaps[16:39])


def test_a_request_that_is_lost_is_sent_again() -> None:
    desk = Desk()
    desk.gather(stun_server(A))
    first = desk.requests()
    desk.wait(499)
    assert desk.requests() == []
    desk.wait(2)
    assert [m.transaction_id for _, m in desk.requests()] == [m.transaction_id for _, m in first]


def test_other_servers_are_not_waited_for_long_once_one_has_answered() -> None:
    desk = Desk()
    desk.gather(stun_server(A), stun_server(B))
    desk.wait(10)
    desk.answer(MAPPED, at=Address(A, 3478))
    assert not desk.is_done()
    desk.wait(501)
    assert desk.is_done()
    (missing,) = desk.missing
    assert "another server" in missing.why
    desk.requests()
    desk.wait(5000)
    assert desk.requests() == [], "a server that was given up is not asked again"


def test_one_address_that_reaches_nobody_does_not_hold_up_the_others_for_long() -> None:
    desk = Desk()
    desk.gather(stun_server(A), interfaces=(ETH, WLAN))
    desk.wait(10)
    (first, *_) = desk.requests()
    desk.orders.append(first[0])
    desk.answer(MAPPED)
    desk.wait(2900)
    assert not desk.is_done()
    desk.wait(100)
    assert desk.is_done()


def test_nobody_answers() -> None:
    desk = Desk(gather_timeout=3 * SECOND)
    desk.gather(stun_server(A), stun_server(B))
    desk.wait(2999)
    assert not desk.is_done()
    desk.wait(1)
    assert desk.is_done()
    assert [m.why for m in desk.missing] == ["no answer within 3 s"] * 2
    assert desk.hub.deadline() is None


def test_an_error_response_and_an_icmp_error_end_it_at_once() -> None:
    desk = Desk()
    desk.gather(stun_server(A), stun_server(B))
    desk.wait(10)
    (one, request), (two, _) = desk.requests()
    desk.arrive(encode(Message.error(request, 500)), one.destination, one.source)
    desk.tell(Undeliverable(two.source, two.destination, 3, 3))
    assert desk.is_done()
    assert "500" in desk.missing[0].why
    assert "ICMP type 3 code 3" in desk.missing[1].why


def test_after_an_icmp_error_that_may_pass_a_server_has_one_more_try() -> None:
    desk = Desk()
    desk.gather(stun_server(A))
    ((order, _),) = desk.requests()
    desk.tell(Undeliverable(order.source, order.destination, 3, 0))
    assert not desk.is_done()
    desk.wait(999)
    assert len(desk.requests()) == 1
    desk.wait(1)
    assert desk.is_done()
    assert desk.missing[0].why == "no answer; ICMP type 3 code 0"


def test_mappings_are_kept_alive_until_ice_has_concluded() -> None:
    desk = Desk(keepalive=15 * SECOND)
    desk.gather(stun_server(A))
    desk.answer(MAPPED)
    desk.wait(14_900)
    assert desk.requests() == []
    desk.wait(200)
    assert desk.answer(MAPPED) == 1
    desk.wait(15_000)
    assert len(desk.requests()) == 1
    assert len(desk.candidates) == 2
    desk.hub.retain(desk.hub.bases, desk.now)
    desk.pump()
    desk.wait(60_000)
    assert desk.requests() == []
    assert desk.hub.deadline() is None


def test_a_mapping_that_has_changed_is_another_candidate() -> None:
    desk = Desk()
    desk.gather(stun_server(A))
    desk.answer(MAPPED)
    desk.wait(15_100)
    assert desk.answer(OTHER) == 1
    assert [c.address for c in desk.candidates[1:]] == [MAPPED, OTHER]
    assert desk.events.count(GatheringDone()) == 1


# What is told of an address. ----------------------------------------------------------------------


def test_an_advertised_address_is_a_mapping_that_nobody_had_to_tell() -> None:
    desk = Desk()
    desk.gather(stun_server(A), interfaces=(replace(ETH, advertised=MAPPED.host),))
    host, advertised = desk.candidates
    assert (advertised.type, advertised.host) == (CandidateType.SERVER_REFLEXIVE, MAPPED.host)
    assert advertised.port == host.port == advertised.related_port
    desk.answer(Address(MAPPED.host, host.port))
    assert len(desk.candidates) == 2


def test_a_lite_agent_has_the_advertised_address_in_place_of_its_own() -> None:
    desk = Desk(lite=True)
    desk.gather(interfaces=(replace(ETH, advertised=MAPPED.host),))
    (only,) = desk.candidates
    assert (only.type, only.host) == (CandidateType.HOST, MAPPED.host)
    assert base_of(desk).address.host == HOST


def test_a_name_stands_for_a_hidden_address() -> None:
    name = "3f1b3f1b-0000-4000-8000-000000000000.local"
    desk = Desk()
    desk.gather(stun_server(A), interfaces=(replace(ETH, mdns=name),))
    desk.answer(base_of(desk).address)
    host, reflexive = desk.candidates
    assert host.host == name
    # The draft, section 3.1.2.2: a public address is told, and "MUST NOT be considered redundant".
    assert reflexive.address == base_of(desk).address
    assert (reflexive.related_address, reflexive.related_port) == ("0.0.0.0", 9)


def test_foundations_do_not_betray_what_is_hidden() -> None:
    foundations = set()
    for seed in (1, 2):
        desk = Desk(seed)
        desk.gather()
        foundations.add(desk.candidates[0].foundation)
    assert len(foundations) == 2


def test_under_the_relay_policy_nothing_is_opened_without_a_relay() -> None:
    desk = Desk(policy=Policy.RELAY)
    desk.gather(stun_server(A))
    assert (desk.orders, desk.events) == ([], [GatheringDone()])


# Packets. -----------------------------------------------------------------------------------------


def test_packets_of_peers_are_delivered_as_they_come() -> None:
    desk = Desk()
    desk.gather()
    base = base_of(desk)
    for data in (b"", b"\x00", b"data", b"\x01\x01" + bytes(18)):
        desk.arrive(data, PEER, base.address)
        assert desk.arrived.pop() == (base, PEER, data)
    desk.hub.send(base, PEER, b"back", desk.now)
    assert desk.hub.poll() == Transmit(b"back", PEER, base.address)


def test_what_is_no_answer_of_a_server_is_a_peers() -> None:
    desk = Desk()
    desk.gather(stun_server(A))
    base, at = base_of(desk), Address(A, 3478)
    request = encode(Message.request(Method.BINDING, bytes(12)))
    desk.arrive(request, at, base.address)
    desk.arrive(b"\x80data", at, base.address)
    assert desk.arrived == [(base, at, request), (base, at, b"\x80data")]
    desk.answer(MAPPED)
    late = encode(Message.success(Message.request(Method.BINDING, bytes(12))))
    desk.arrive(late, at, base.address)
    assert desk.arrived[-1] == (base, at, late)


def test_forged_answers_are_counted_and_change_nothing() -> None:
    desk = Desk()
    desk.gather(stun_server(A))
    base, at = base_of(desk), Address(A, 3478)
    forged = encode(Message.success(Message.request(Method.BINDING, bytes(12))))
    desk.arrive(forged, at, base.address)
    desk.arrive(b"\x01\x01\xff", at, base.address)
    assert desk.arrived == []
    assert desk.hub.drops == {DropReason.UNKNOWN_TRANSACTION: 1, DropReason.TOO_SHORT: 1}
    assert desk.hub.counters == {reason.value: 1 for reason in desk.hub.drops}
    desk.arrive(forged, PEER, base.address)
    assert desk.arrived == [(base, PEER, forged)], "a path's own answers are the checks'"
    assert desk.answer(MAPPED) == 1
    assert desk.is_done()


def test_zones_stay_on_this_host() -> None:
    desk = Desk()
    desk.gather(interfaces=(LINK,))
    base = base_of(desk)
    assert base.address.host == "fe80::1%eth0"
    assert desk.candidates[0].host == "fe80::1"
    desk.arrive(b"in", Address("fe80::2%eth0", 9), base.address)
    assert desk.arrived == [(base, Address("fe80::2", 9), b"in")]
    desk.hub.send(base, Address("fe80::2", 9), b"out", desk.now)
    assert desk.hub.poll() == Transmit(b"out", Address("fe80::2%eth0", 9), base.address)
    desk.tell(Undeliverable(base.address, Address("fe80::2%eth0", 9), 1, 4))
    assert desk.told(PathUnreachable)[0].remote == Address("fe80::2", 9)


def test_an_icmp_error_of_a_path_is_told_with_its_mtu() -> None:
    desk = Desk()
    desk.gather()
    base = base_of(desk)
    desk.tell(Undeliverable(base.address, PEER, 3, 4, 1280))
    assert desk.events[-1] == PathUnreachable(base, PEER, 3, 4, 1280)


def test_events_of_unknown_sockets_are_counted() -> None:
    desk = Desk()
    desk.gather()
    desk.tell(Connected(99, Address(HOST, 1), PEER))
    desk.arrive(b"x", PEER, Address(HOST, 1))
    assert desk.hub.drops == {DropReason.UNKNOWN_STREAM: 2}


# Networks that change. ----------------------------------------------------------------------------


def test_gathering_again_finds_what_is_new_and_loses_what_is_gone() -> None:
    desk = Desk()
    desk.gather()
    old = base_of(desk)
    desk.gather(interfaces=(WLAN,))
    assert [c.host for c in desk.candidates] == [HOST, WLAN.host]
    assert desk.lost == [old]
    assert Shut(1) in desk.orders
    assert [base.network for base in desk.hub.bases] == ["wlan0"]
    desk.gather(interfaces=(WLAN,))
    assert len(desk.candidates) == 2, "what is kept is not told again"
    assert desk.events.count(GatheringDone()) == 3
    desk.arrive(b"x", PEER, old.address)
    assert desk.arrived == []


def test_gathering_again_asks_again_but_never_twice_at_once() -> None:
    desk = Desk()
    desk.gather(stun_server(A))
    desk.gather(stun_server(A))
    assert desk.answer(MAPPED) == 1
    assert desk.is_done()
    desk.gather(stun_server(A))
    desk.wait(5)
    assert desk.answer(OTHER) == 1
    assert [c.address for c in desk.candidates[1:]] == [MAPPED, OTHER]


def test_a_socket_that_fails_is_a_base_that_is_lost() -> None:
    desk = Desk()
    desk.gather()
    desk.tell(Closed(1, Cause.OTHER, "the adapter was unplugged"))
    assert desk.told(BaseLost) == [BaseLost(base_of(desk), "the adapter was unplugged")]
    assert desk.hub.bases == []


def test_what_is_not_needed_is_given_up_and_found_again_later() -> None:
    desk = Desk()
    desk.gather(interfaces=(ETH, WLAN))
    kept, given_up = desk.hub.bases
    desk.hub.retain([kept], desk.now)
    desk.pump()
    assert desk.hub.bases == [kept]
    assert desk.lost == [], "nothing is told of what was given up"
    assert desk.open == {1: kept.address}
    desk.gather(interfaces=(ETH, WLAN))
    again = desk.told(CandidateFound)[-1].base
    assert again.network == given_up.network
    assert again.id != given_up.id


def test_concluding_ends_gathering() -> None:
    desk = Desk()
    desk.gather(stun_server(A))
    desk.hub.retain(desk.hub.bases, desk.now)
    desk.pump()
    assert desk.is_done()
    assert not desk.hub.is_gathering
    desk.arrive(b"x", Address(A, 3478), base_of(desk).address)
    assert len(desk.arrived) == 1


def test_a_base_can_be_released_alone() -> None:
    desk = Desk()
    desk.gather(stun_server(A), interfaces=(ETH, WLAN))
    one, two = desk.hub.bases
    desk.hub.release(one, desk.now)
    desk.hub.release(one, desk.now)
    desk.pump()
    desk.wait(20)
    desk.answer(MAPPED)
    assert desk.hub.bases == [two]
    assert desk.is_done()


def test_closing_shuts_everything_for_good() -> None:
    desk = Desk()
    desk.gather(stun_server(A), interfaces=(ETH, WLAN))
    desk.hub.close(desk.now)
    desk.hub.close(desk.now)
    desk.pump()
    assert (desk.open, desk.hub.bases, desk.hub.deadline()) == ({}, [], None)
    desk.wait(60_000)
    with pytest.raises(UsageError, match="closed"):
        desk.hub.gather([ETH], [], desk.now)


def test_what_is_being_opened_when_ice_concludes_is_not_opened() -> None:
    desk = Desk()
    desk.hub.gather([ETH], [], desk.now)
    desk.hub.retain([], desk.now)
    outputs = [desk.hub.poll() for _ in range(3)]
    assert outputs == [OpenUdp(1, Address(HOST, 0)), Shut(1), GatheringDone()]
    assert desk.hub.poll() is None


# Anything at all. ---------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_no_bytes_of_a_server_do_harm(packets: list[bytes]) -> None:
    desk = Desk()
    desk.gather(stun_server(A), turn_server(Target(Address(B, 3478), Transport.UDP)))
    desk.wait(10)
    base = base_of(desk)
    for data in packets:
        for host in (A, B):
            desk.arrive(data, Address(host, 3478), base.address)
            desk.arrive(b"\x01\x01" + data, Address(host, 3478), base.address)
    desk.wait(11_000)
    assert desk.is_done()


def test_whatever_happens_the_books_balance(rng: Random) -> None:
    for _ in range(60):
        desk = Desk(rng.getrandbits(32), components=rng.choice((1, 2)))
        servers = [stun_server(A), stun_server(B, C)]
        interfaces = [ETH, WLAN, LINK, Interface("2001:db8::7", "eth0", 65439)]
        for _ in range(rng.randrange(1, 15)):
            match rng.randrange(6):
                case 0:
                    some = rng.sample(interfaces, rng.randrange(len(interfaces) + 1))
                    chosen = rng.sample(servers, rng.randrange(3))
                    desk.gather(*chosen, interfaces=tuple(some))
                case 1:
                    desk.wait(rng.choice((1, 60, 600, 16_000)))
                case 2:
                    desk.answer(rng.choice((MAPPED, OTHER)))
                case 3 if desk.hub.bases:
                    desk.hub.release(rng.choice(desk.hub.bases), desk.now)
                case 4:
                    bases = desk.hub.bases
                    desk.hub.retain(rng.sample(bases, rng.randrange(len(bases) + 1)), desk.now)
                case _:
                    desk.tell(Closed(rng.randrange(1, 8), Cause.OTHER))
            desk.pump()
            known = {found.base for found in desk.told(CandidateFound)}
            assert set(desk.hub.bases) <= known - set(desk.lost)
            assert {base.address for base in desk.hub.bases} <= set(desk.open.values())
        desk.wait(30_000)
        assert not desk.hub.is_gathering
        desk.hub.close(desk.now)
        desk.pump()
        assert desk.open == {}
