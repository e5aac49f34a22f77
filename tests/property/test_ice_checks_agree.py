"""Two agents over a wire that loses, delays, reorders, repeats and lies agree on what they use.

And nothing becomes valid, nominated, or otherwise different by what nobody has proved.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ice.candidate import TcpType
from ice.checks import RequestReceived
from ice.config import Config, Nomination
from ice.pair import Pair, PairState
from stun.sansio import MILLISECOND, SECOND
from tools.icedesk import Desk, Nat, Packet, Side

MS = MILLISECOND
KINDS = ("open", "open", "full", "address", "port", "port", "symmetric")


def make_nat(rng: random.Random, host: str) -> Nat | None:
    kind = rng.choice(KINDS)
    if kind == "open":
        return None
    filtering = {"full": "none", "address": "address"}.get(kind, "port")
    return Nat(host, symmetric=kind == "symmetric", filtering=filtering)


def make_desk(
    seed: int,
    *,
    relays: bool = True,
    tcp: bool = False,
    nomination: Nomination = Nomination.REGULAR,
    trickle: bool = True,
) -> Desk:
    rng = random.Random(seed)
    config = Config(
        components=rng.choice((1, 1, 2)),
        streams=rng.choice((1, 1, 2)),
        nomination=nomination,
        monitor=rng.random() < 0.7,
    )
    desk = Desk(
        seed,
        loss=rng.choice((0, 0, 0.05, 0.1, 0.2, 0.3)),
        delay=(rng.choice((1, 5, 20)) * MS, rng.choice((20, 60, 150)) * MS),
        config=config,
        controlling=rng.choice(((True, False), (False, True), (True, True), (False, False))),
        nats=(make_nat(rng, "198.51.100.1"), make_nat(rng, "203.0.113.1")),
    )
    for side, host, relay in (
        (desk.a, "10.0.0.1", "192.0.2.5"),
        (desk.b, "192.168.0.2", "192.0.2.6"),
    ):
        for stream in range(config.streams):
            for component in range(1, config.components + 1):
                base = side.host(host, component=component, stream=stream)
                if side.nat is not None and rng.random() < 0.8:
                    side.reflexive(base)
                if relays:
                    side.relayed(relay, component=component, stream=stream)
                if tcp:
                    for tcptype in TcpType:
                        side.host(host, component=component, stream=stream, tcptype=tcptype)
    desk.exchange(
        skew=rng.choice((0, 0, 30, 300, 2000)) * MS,
        trickle=rng.choice((0, 0, 20, 200)) * MS if trickle else 0,
    )
    for side in desk.sides:
        side.keep(5 * SECOND)
    return desk


def ends(desk: Desk) -> Iterator[tuple[Pair | None, Pair | None]]:
    for stream in range(desk.a.config.streams):
        for component in range(1, desk.a.config.components + 1):
            yield desk.a.selected(component, stream), desk.b.selected(component, stream)


def check_agreement(desk: Desk) -> None:
    for one, other in ends(desk):
        assert (one is None and other is None) or Desk.same_path(one, other), (one, other)
    for side in desk.sides:
        check_side(side)


def check_side(side: Side) -> None:
    """What holds at any time."""
    core = side.checker._core
    generation = core.generation
    assert generation is not None
    listed = [pair for checklist in generation.checklists for pair in checklist.pairs]
    assert set(listed) == set(generation.paths.values())
    assert len(listed) == len(generation.paths)
    for checklist in generation.checklists:
        assert [p.priority for p in checklist.pairs] == sorted(
            (p.priority for p in checklist.pairs), reverse=True
        )
        assert set(checklist.triggered) == {p for p in checklist.pairs if p.queued}
        for pair in checklist.pairs:
            assert pair.valid == (pair.state is PairState.SUCCEEDED)
            assert not pair.nominated or checklist.selected[pair.component] is pair
        for component, pair in checklist.selected.items():
            assert pair.valid
            assert pair.nominated
            assert pair.component == component


@settings(max_examples=150)
@given(st.integers(0, 1 << 32))
def test_with_relays_both_sides_end_with_the_same_pairs(seed: int) -> None:
    desk = make_desk(seed, relays=True)
    assert desk.run(300 * SECOND, until=lambda: desk.agreed), list(ends(desk))
    desk.run(60 * SECOND)
    assert desk.agreed
    check_agreement(desk)
    assert desk.a.checker.controlling is not desk.b.checker.controlling


@settings(max_examples=100)
@given(st.integers(0, 1 << 32))
def test_without_relays_they_agree_or_both_have_nothing(seed: int) -> None:
    desk = make_desk(seed, relays=False, tcp=True)
    desk.run(150 * SECOND)
    check_agreement(desk)


@settings(max_examples=60)
@given(st.integers(0, 1 << 32))
def test_aggressive_agents_agree_when_candidates_come_together(seed: int) -> None:
    desk = make_desk(seed, nomination=Nomination.AGGRESSIVE, trickle=False)
    desk.run(150 * SECOND)
    check_agreement(desk)


@settings(max_examples=60)
@given(st.integers(0, 1 << 32))
def test_they_agree_again_after_a_restart_of_both(seed: int) -> None:
    desk = make_desk(seed)
    rng = random.Random(~seed)
    desk.run(rng.choice((0, 50, 500, 5000)) * MS)
    for side in desk.sides:
        side.restart()
    desk.exchange(skew=rng.choice((0, 20, 700)) * MS)
    assert desk.run(300 * SECOND, until=lambda: desk.agreed), list(ends(desk))
    check_agreement(desk)


@settings(max_examples=60)
@given(st.integers(0, 1 << 32))
def test_what_is_repeated_and_replayed_does_no_harm(seed: int) -> None:
    desk = make_desk(seed)
    rng = random.Random(~seed)
    seen: list[Packet] = []

    def replaying(packet: Packet) -> Iterable[Packet]:
        seen.append(packet)
        yield packet
        if rng.random() < 0.3:
            yield packet
        if rng.random() < 0.3:
            again = rng.choice(seen)
            desk.after(rng.randint(0, 5000) * MS, lambda: desk.arrive(again))

    desk.tap = replaying
    assert desk.run(300 * SECOND, until=lambda: desk.agreed), list(ends(desk))
    desk.run(20 * SECOND)
    check_agreement(desk)
    assert desk.a.checker.controlling is not desk.b.checker.controlling


def flip(packet: Packet, rng: random.Random) -> Packet:
    data = bytearray(packet.data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    if bytes(data) == packet.data:
        data[-1] ^= 1
    return Packet(packet.source, packet.destination, bytes(data))


def snapshot(side: Side) -> object:
    checker = side.checker
    return (
        checker.controlling,
        checker.tie_breaker,
        checker.local,
        checker.remote,
        len(checker._core.outstanding),
        [
            (
                pair,
                pair.state,
                pair.valid,
                pair.nominated,
                pair.peer_nominated,
                pair.priority,
                pair.remote,
                pair.mapped,
                pair.rtt,
                pair.requests_received,
                pair.responses_received,
                len(pair.notes),
            )
            for pair in checker.pairs()
        ],
    )


@settings(max_examples=60)
@given(st.integers(0, 1 << 32))
def test_a_packet_that_was_tampered_with_changes_nothing(seed: int) -> None:
    desk = make_desk(seed)
    rng = random.Random(~seed)
    tampered = 0

    def lying(packet: Packet) -> Iterable[Packet]:
        nonlocal tampered
        if rng.random() < 0.5:
            for side in desk.sides:
                tampered += 1
                side.drain()
                before, told = snapshot(side), len(side.events)
                base = rng.choice(list(side.bases.values()))
                source = rng.choice((packet.source, packet.destination))
                side.checker.stun(base, source, flip(packet, rng).data, desk.now)
                side.drain()
                assert snapshot(side) == before
                assert len(side.events) == told
        yield packet

    desk.tap = lying
    assert desk.run(300 * SECOND, until=lambda: desk.agreed)
    assert tampered
    check_agreement(desk)


@settings(max_examples=40)
@given(st.integers(0, 1 << 32))
def test_nothing_is_valid_when_only_forgeries_arrive(seed: int) -> None:
    desk = make_desk(seed)
    rng = random.Random(~seed)

    def forging(packet: Packet) -> Iterable[Packet]:
        # Damaged; or, whole, back to where it came from.
        yield flip(packet, rng)
        yield Packet(packet.destination, packet.source, packet.data)

    desk.tap = forging
    desk.run(100 * SECOND)
    for side in desk.sides:
        assert not any(pair.valid for pair in side.checker.pairs())
        assert side.told(RequestReceived) == []
        assert side.checker.valid_pairs(0, 1) == []
        assert sum(side.checker.drops.values()) > 0
        assert all(p.state is not PairState.SUCCEEDED for p in side.checker.pairs())


@pytest.mark.parametrize("filtering", ["none", "address", "port"])
@pytest.mark.parametrize("other", ["none", "address", "port"])
def test_two_nats_that_can_be_punched_are_punched(filtering: str, other: str) -> None:
    nats = (Nat("198.51.100.1", filtering=filtering), Nat("203.0.113.1", filtering=other))
    desk = Desk(1, nats=nats)
    for side, host in ((desk.a, "10.0.0.1"), (desk.b, "10.0.0.1")):
        side.reflexive(side.host(host))
    desk.exchange()
    assert desk.run(2 * SECOND, until=lambda: desk.agreed)
