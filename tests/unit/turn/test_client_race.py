"""Several servers for one allocation."""

from __future__ import annotations

import random

import pytest

from stun.attributes import LIFETIME
from stun.discovery import Target, Transport
from stun.errors import UsageError
from stun.registry import Method
from stun.sansio import Address, Cause, Dial, OpenUdp, Undeliverable
from tools.clientdesk import SERVER, USER, Desk, error, silence
from turn.client.config import ClientConfig
from turn.client.errors import NoRelay, NotAuthenticated
from turn.client.events import Allocated, Data, Failed, Released
from turn.client.race import Race

SECOND_SERVER = Address("192.0.2.2", 3478)
PEER = Address("203.0.113.50", 5000)


def race(rng: random.Random, *targets: Target) -> Desk:
    configs = [ClientConfig(target, USER) for target in targets]
    return Desk(rng, machine=Race(configs, entropy=rng.randbytes))


def start(desk: Desk) -> Desk:
    desk.client.start(desk.now)
    desk.run()
    return desk


UDP, TCP = Target(SERVER, Transport.UDP), Target(SERVER, Transport.TCP)
ELSEWHERE = Target(SECOND_SERVER, Transport.UDP)


def test_the_first_one_answers(rng: random.Random) -> None:
    desk = start(race(rng, UDP, TCP))
    assert desk.last(Allocated).server == UDP
    assert [type(order) for order in desk.orders] == [OpenUdp]
    desk.pass_time(10)
    assert len(desk.orders) == 1
    # Now the race *is* its winner.
    winner = desk.client.client
    assert desk.client.poll == winner.poll
    assert desk.client.receive == winner.receive
    winner.bind(PEER, desk.now)
    desk.run()
    desk.say(b"\x40\x00\x00\x02hi")
    assert desk.told(Data) == [Data(PEER, b"hi")]


def test_the_first_one_is_silent(rng: random.Random) -> None:
    desk = race(rng, UDP, TCP)
    desk.script(Method.ALLOCATE, silence)
    desk.key = b""
    start(desk)
    desk.script(Method.ALLOCATE, silence)
    desk.pass_time(0.9)
    assert len(desk.orders) == 1
    desk.pass_time(0.2)
    assert isinstance(desk.orders[1], Dial)
    assert desk.last(Allocated).server == TCP


def test_one_that_answers_late_gets_it_back(rng: random.Random) -> None:
    desk = race(rng, UDP, ELSEWHERE)
    desk.key = b""
    desk.script(Method.ALLOCATE, silence, silence)
    start(desk)
    desk.pass_time(1.1)
    assert desk.last(Allocated).server == ELSEWHERE
    assert desk.client.poll != desk.client.client.poll
    desk.sent.clear()
    desk.pass_time(1)  # the retransmission at 1.5 s is answered
    released = [m for m in desk.sent if m.method == Method.REFRESH]  # type: ignore[union-attr]
    assert [m.get(LIFETIME) for m in released] == [0]  # type: ignore[union-attr]
    assert len(desk.open) == 1
    desk.run()
    assert desk.client.poll == desk.client.client.poll
    assert not desk.told(Released)


def test_the_next_one_is_asked_at_once_after_a_failure(rng: random.Random) -> None:
    desk = race(rng, TCP, ELSEWHERE)
    desk.refused[SERVER.host] = Cause.REFUSED
    start(desk)
    assert desk.last(Allocated).server == ELSEWHERE


def test_all_of_them_fail(rng: random.Random) -> None:
    desk = race(rng, UDP, ELSEWHERE)
    desk.script(Method.ALLOCATE, error(508), error(500))
    start(desk)
    (failed,) = desk.events
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, NoRelay)
    assert len(failed.error.errors) == 2
    for text in ("none of 2 TURN servers", "192.0.2.1", "192.0.2.2", "508", "500"):
        assert text in str(failed.error)
    assert not desk.open
    assert desk.client.deadline() is None


def test_a_server_is_not_asked_again_in_vain(rng: random.Random) -> None:
    desk = race(rng, UDP, TCP)
    desk.key = b"another key"
    start(desk)
    # RFC 8656 section 7.4, of 401: "SHOULD NOT send any further requests to this server".
    assert [type(order) for order in desk.orders if not hasattr(order, "reset")] == [OpenUdp]
    assert isinstance(desk.last(Failed).error, NotAuthenticated)


def test_abandoning(rng: random.Random) -> None:
    desk = race(rng, UDP, TCP)
    desk.key = b""
    desk.script(Method.ALLOCATE, *[silence] * 5)
    start(desk)
    desk.pass_time(1.1)
    assert len(desk.open) == 2
    desk.client.abandon(desk.now)
    desk.run()
    assert not desk.open
    assert not desk.told(Failed)


def test_an_icmp_error_is_for_whoever_sent(rng: random.Random) -> None:
    desk = race(rng, UDP, ELSEWHERE)
    desk.key = b""
    desk.script(Method.ALLOCATE, silence)
    start(desk)
    local = next(iter(desk.open.values()))
    desk.tell(Undeliverable(local, SERVER, 3, 3))
    assert desk.last(Allocated).server == ELSEWHERE


def test_nobody_to_ask(rng: random.Random) -> None:
    with pytest.raises(UsageError, match="no server"):
        Race([], entropy=rng.randbytes)


def test_its_sockets_are_numbered_by_whoever_has_others(rng: random.Random) -> None:
    configs = [ClientConfig(target, USER) for target in (UDP, TCP)]
    numbers = iter((70, 80, 90))
    desk = start(Desk(rng, machine=Race(configs, entropy=rng.randbytes, handles=numbers)))
    assert [order.handle for order in desk.orders] == [70]
