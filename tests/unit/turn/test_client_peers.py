"""Permissions and channels: kept alive, batched, given up, their numbers used again in time."""

from __future__ import annotations

import random

import pytest

from stun.attributes import CHANNEL_NUMBER, XOR_PEER_ADDRESS
from stun.errors import UsageError
from stun.framing import channel_data
from stun.registry import Method
from stun.sansio import Address
from tools.clientdesk import Desk, error, silence
from turn.client.errors import Forbidden, PeerFamilyMismatch, ServerUnreachable
from turn.client.events import Bound, Data, Lost, PeerRefused, Permitted
from turn.client.requests import MAX_OPEN

PEER = Address("203.0.113.50", 5000)
SAME_HOST = Address("203.0.113.50", 6000)
OTHER = Address("203.0.113.51", 5001)


def hosts(number: int) -> list[Address]:
    return [Address(f"203.0.113.{n}", 9) for n in range(1, number + 1)]


def test_a_permission_is_refreshed_before_it_expires(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.permit(PEER, now=desk.now)
    desk.run()
    desk.pass_time(239)
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 1
    desk.pass_time(1)
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 2
    desk.pass_time(2400)
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 12
    # Told once, however often it is refreshed.
    assert desk.told(Permitted) == [Permitted(PEER.host)]


def test_a_permission_is_for_a_host(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.permit(PEER, SAME_HOST, now=desk.now)
    desk.run()
    assert len(desk.requests(Method.CREATE_PERMISSION)[0].all(XOR_PEER_ADDRESS)) == 1
    desk.client.permit(SAME_HOST, now=desk.now)  # there already: told at once, asked no more
    desk.run()
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 1
    assert len(desk.told(Permitted)) == 2


def test_permissions_share_requests(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    peers = hosts(20)
    for peer in peers[:10]:
        desk.client.permit(peer, now=desk.now)
    desk.client.permit(*peers[10:], now=desk.now)
    desk.run()
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 11
    assert [permitted.host for permitted in desk.told(Permitted)] == [p.host for p in peers]
    desk.sent.clear()
    desk.pass_time(240)
    sizes = [len(m.all(XOR_PEER_ADDRESS)) for m in desk.requests(Method.CREATE_PERMISSION)]
    assert sizes == [16, 4]


def test_one_of_several_is_refused(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.script(Method.CREATE_PERMISSION, error(403), error(403))
    desk.client.permit(PEER, OTHER, now=desk.now)
    desk.run()
    # The server says no to all; which one it meant shows when each is asked for alone.
    (refused,) = desk.told(PeerRefused)
    assert (refused.peer, refused.method) == (PEER, Method.CREATE_PERMISSION)
    assert isinstance(refused.error, Forbidden)
    assert desk.told(Permitted) == [Permitted(OTHER.host)]


def test_a_permission_that_is_withdrawn(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.permit(PEER, now=desk.now)
    desk.run()
    desk.script(Method.CREATE_PERMISSION, error(443))
    desk.pass_time(241)
    assert isinstance(desk.last(PeerRefused).error, PeerFamilyMismatch)
    desk.pass_time(600)
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 2


def test_a_refresh_is_tried_until_the_permission_ends(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.permit(PEER, now=desk.now)
    desk.run()
    desk.script(Method.CREATE_PERMISSION, error(500), error(500), *[silence] * 3)
    desk.pass_time(280)
    assert not desk.told(PeerRefused)
    desk.script(Method.CREATE_PERMISSION, *[silence] * 99)
    desk.pass_time(400)
    assert isinstance(desk.last(PeerRefused).error, ServerUnreachable)


@pytest.mark.parametrize("method", [Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
def test_an_answer_that_knows_no_allocation(rng: random.Random, method: Method) -> None:
    desk = Desk(rng).allocate()
    desk.script(method, error(437))
    if method is Method.CHANNEL_BIND:
        desk.client.bind(PEER, desk.now)
    else:
        desk.client.permit(PEER, now=desk.now)
    desk.run()
    assert desk.told(Lost)


def test_forgetting_a_permission(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.permit(PEER, now=desk.now)
    desk.run()
    desk.client.forget(PEER)
    desk.pass_time(299)
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 1
    desk.client.send(PEER, b"still allowed", desk.now)
    desk.run()
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 1
    desk.pass_time(2)
    desk.client.send(PEER, b"asked for anew", desk.now)
    desk.run()
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 2


def test_a_channel_is_refreshed_and_its_permission_more_often(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    desk.pass_time(539)
    assert len(desk.requests(Method.CHANNEL_BIND)) == 1
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 2
    desk.pass_time(1)
    assert len(desk.requests(Method.CHANNEL_BIND)) == 2
    desk.pass_time(5400)
    assert len(desk.requests(Method.CHANNEL_BIND)) == 12
    assert desk.told(Bound) == [Bound(PEER, number)]
    desk.client.send(PEER, b"alive", desk.now)
    desk.run()
    assert desk.sent[-1] == channel_data(number, b"alive", pad=False)


def test_binding_twice_is_binding_once(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    assert desk.client.bind(PEER, desk.now) == desk.client.bind(PEER, desk.now)
    desk.run()
    desk.client.bind(PEER, desk.now)
    desk.run()
    assert len(desk.requests(Method.CHANNEL_BIND)) == 1
    assert len(desk.told(Bound)) == 2


def test_data_that_overtakes_the_answer(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.script(Method.CHANNEL_BIND, silence)
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    desk.say(channel_data(number, b"early", pad=False))
    assert desk.told(Data) == [Data(PEER, b"early")]


def test_a_channel_that_is_refused(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.script(Method.CHANNEL_BIND, error(403))
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    assert isinstance(desk.last(PeerRefused).error, Forbidden)
    assert desk.last(PeerRefused).method is Method.CHANNEL_BIND
    # Another peer does not get the same number.
    assert desk.client.bind(OTHER, desk.now) != number
    assert desk.client.bind(PEER, desk.now) == number


def test_a_channel_out_of_step(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.bind(PEER, desk.now)
    desk.run()
    desk.script(Method.CHANNEL_BIND, error(400))
    desk.pass_time(541)
    # RFC 8656 section 12.3 recommends to start afresh.
    assert desk.told(Lost)


def test_a_forgotten_channel_rests_before_its_number_is_used_again(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    desk.client.forget(PEER)
    desk.pass_time(599)
    assert len(desk.requests(Method.CHANNEL_BIND)) == 1
    desk.say(channel_data(number, b"late", pad=False))
    assert desk.told(Data) == [Data(PEER, b"late")]
    desk.pass_time(2)
    desk.say(channel_data(number, b"too late", pad=False))
    assert len(desk.told(Data)) == 1
    # The same peer may have it at any time, another one only after five minutes.
    desk.client._peers._next = number
    assert desk.client.bind(OTHER, desk.now) == number + 1
    desk.pass_time(300)
    desk.client._peers._next = number
    assert desk.client.bind(Address("203.0.113.99", 9), desk.now) == number


def test_a_forgotten_channel_can_be_had_back(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    desk.client.forget(PEER)
    desk.pass_time(100)
    assert desk.client.bind(PEER, desk.now) == number
    desk.pass_time(500)
    assert len(desk.requests(Method.CHANNEL_BIND)) == 2
    desk.client.forget(PEER)
    desk.pass_time(700)
    assert desk.client.bind(PEER, desk.now) == number
    desk.run()
    assert len(desk.requests(Method.CHANNEL_BIND)) == 3


def test_the_permission_stays_while_another_channel_needs_it(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.bind(PEER, desk.now)
    desk.client.bind(SAME_HOST, desk.now)
    desk.run()
    desk.client.forget(PEER)
    desk.sent.clear()
    desk.pass_time(1000)
    assert len(desk.requests(Method.CREATE_PERMISSION)) >= 3
    desk.client.forget(SAME_HOST)
    desk.pass_time(600)
    desk.sent.clear()
    desk.pass_time(2000)
    assert not desk.requests(Method.CREATE_PERMISSION)
    assert not desk.requests(Method.CHANNEL_BIND)


def test_all_channels(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    numbers = set()
    for n in range(4096):
        peer = Address("203.0.113.50", 1 + n)
        numbers.add(desk.client.bind(peer, desk.now))
        desk.run()
    assert numbers == set(range(0x4000, 0x5000))
    with pytest.raises(UsageError, match="all 4096"):
        desk.client.bind(Address("203.0.113.50", 5000), desk.now)
    bound = [m.get(CHANNEL_NUMBER) for m in desk.requests(Method.CHANNEL_BIND)]
    assert len(set(bound)) == len(bound) == 4096


def test_no_more_than_ten_requests_at_once(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.script(Method.CREATE_PERMISSION, *[silence] * MAX_OPEN)
    peers = hosts(30)
    for peer in peers:
        desk.client.permit(peer, now=desk.now)
    desk.run()
    assert len(desk.requests(Method.CREATE_PERMISSION)) == MAX_OPEN
    desk.pass_time(1)
    assert len(desk.told(Permitted)) == 30
