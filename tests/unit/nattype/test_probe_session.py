"""What the tests of a family share."""

from __future__ import annotations

import random
from collections import deque

from nattype.observations import Asked, Challenge, Change
from nattype.probe.bench import Bench
from nattype.probe.pace import Pace
from nattype.probe.session import Lock, Quad, Server, Session
from nattype.probe.strand import Strands
from stun.sansio import MILLISECOND, Address

A, B = Address("192.31.196.10", 3478), Address("192.175.48.10", 3479)
LOCAL = Address("192.168.1.2", 50000)
MAPPED = Address("192.52.193.2", 9)


def session() -> Session:
    bench = Bench(Strands(), deque(), LOCAL.host, 1, random.Random(0).randbytes)
    return Session(bench, "ipv4", (Server(A, "a"),), lambda _: None)


def answer(rtt: int | None, mapped: Address | None = MAPPED) -> Asked:
    return Asked(LOCAL, A, expected=A, sends=1, source=A, mapped=mapped, rtt=rtt)


def test_the_farthest_server_sets_the_pace() -> None:
    one = session()
    assert one.pace == Pace()
    for rtt in (20, 80, None, 40):
        one.note_rtt(answer(rtt and rtt * MILLISECOND))
    assert one.pace == Pace(80 * MILLISECOND)


def test_a_segment_that_was_sent_again_does_not_slow_the_tests_down() -> None:
    one = session()
    for rtt in (7_000, 210, None, 1_200):
        one.note_stream_rtt(answer(rtt and rtt * MILLISECOND))
    assert one.pace == Pace(210 * MILLISECOND)
    one.note_rtt(answer(250 * MILLISECOND))
    assert one.pace == Pace(250 * MILLISECOND), "a datagram's round trip is known better"


def test_an_answer_is_sound_with_a_mapped_address_that_can_be_used() -> None:
    one = session()
    assert one.sound(answer(1))
    assert not one.sound(answer(1, None))
    assert not one.sound(answer(1, Address("0.0.0.0", 9)))
    assert not one.sound(Asked(LOCAL, A, expected=A, sends=9))


def test_what_was_seen_is_frozen_as_far_as_it_goes() -> None:
    one = session()
    nothing = one.freeze(udp=True, tcp=False)
    assert nothing.tcp is None
    assert nothing.udp is not None
    assert nothing.udp.filtering is None
    one.quad = Quad(A, B)
    one.server = A
    one.udp.both = Challenge(Asked(LOCAL, A, Change.BOTH))
    seen = one.freeze(udp=True, tcp=True)
    assert (seen.primary, seen.alternate) == (A, B)
    assert seen.udp is not None
    assert seen.udp.filtering is not None
    assert seen.udp.filtering.both == one.udp.both
    # What is noted later does not change what was given away.
    one.udp.mapping.append(answer(1))
    assert seen.udp.mapping == ()


def test_the_lock_lets_one_in_at_a_time_and_in_order() -> None:
    strands = Strands()
    lock, order = Lock(strands), []

    async def holder(name: str, duration: int) -> None:
        async with lock:
            order.append(f"{name} in")
            await strands.sleep(duration)
            order.append(f"{name} out")

    first = strands.spawn(holder("a", 10))
    strands.spawn(holder("b", 10))
    strands.spawn(holder("c", 10))
    strands.run(0)
    strands.run(5)
    assert order == ["a in"]
    # A holder that is cancelled lets the next one in.
    first.cancel()
    for now in (6, 16, 26):
        strands.run(now)
    assert order == ["a in", "b in", "b out", "c in", "c out"]
