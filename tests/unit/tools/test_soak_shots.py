"""What a soak expects of malformed messages is what the server machine does with them."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from stun.discovery import Transport
from stun.errors import DropReason
from stun.sansio import Address
from tools.soak_shots import EXACT, Shots, fate, stream_fates
from tools.turndesk import HOST, Desk
from turn.server.config import Limits

LISTENER = Address(HOST, 3478)
UNLIMITED = Limits(requests_per_second_per_client=0, unverified_burst=0)
SHOTS = 2000


def test_a_datagram_meets_its_fate(rng: random.Random) -> None:
    desk, shots = Desk(limits=UNLIMITED), Shots(rng)
    met: Counter[DropReason | None] = Counter()
    for port in range(1024, 1024 + SHOTS):
        octets = shots.any()
        if octets and 20 <= octets[0] < 64:
            continue  # the driver keeps what is DTLS to itself
        before = desk.server.drops.copy()
        desk.receive(octets, Address("192.52.193.5", port), LISTENER)
        expected = fate(octets)
        assert desk.server.drops - before == Counter([expected] if expected else []), octets.hex()
        met[expected] += 1
    # Each reason for which the sums of a soak are compared has come up, but for the one that is for
    # those who have an allocation.
    assert {*EXACT} - {*met} == {DropReason.NO_CHANNEL}
    assert met[None]


def test_a_stream_meets_its_fate(rng: random.Random) -> None:
    desk, shots = Desk(limits=UNLIMITED), Shots(rng)
    met: Counter[DropReason] = Counter()
    for port in range(1024, 1024 + 300):
        octets = shots.broken_stream()
        fates, is_closed = stream_fates(octets)
        assert is_closed
        assert octets[0] != 22
        before = desk.server.drops.copy()
        caller = desk.caller(address=Address("192.52.193.5", port), transport=Transport.TCP)
        caller.send(octets)
        assert desk.server.drops - before == fates, octets.hex()
        assert caller.handle in desk.shut
        met += fates
    assert met[DropReason.TOO_LONG]
    assert met[DropReason.NOT_EXPECTED_PROTOCOL]


def test_half_a_message_draws_nothing_and_stays_open(rng: random.Random) -> None:
    desk, shots = Desk(limits=UNLIMITED), Shots(rng)
    for port in range(1024, 1024 + 100):
        octets = shots.half()
        assert stream_fates(octets) == (Counter(), False)
        caller = desk.caller(address=Address("192.52.193.5", port), transport=Transport.TCP)
        assert caller.send(octets) == []
        assert caller.handle not in desk.shut
        desk.wait(61)  # but not for long
        assert caller.handle in desk.shut
    assert not desk.server.drops


def test_a_corpus_is_mutated_too(rng: random.Random, tmp_path: Path) -> None:
    mark = bytes(range(64, 128)) * 4
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one").write_bytes(mark)
    shots = Shots(rng, tmp_path)
    assert any(mark[100:120] in shots.any() for _ in range(5000))


def test_the_same_seed_makes_the_same(seed: int) -> None:
    one, other = (Shots(random.Random(seed)) for _ in range(2))
    assert [one.any() for _ in range(200)] == [other.any() for _ in range(200)]


@pytest.mark.parametrize("number", range(3))
def test_what_is_to_be_dropped_draws_no_answer(rng: random.Random, number: int) -> None:
    desk, shots = Desk(number, limits=UNLIMITED), Shots(rng)
    ports = count(1024)
    for _ in range(200):
        octets = shots.dropped()
        assert desk.receive(octets, Address("192.52.193.5", next(ports)), LISTENER) == []
