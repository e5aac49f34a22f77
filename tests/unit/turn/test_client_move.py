"""Mobility (RFC 8016): the allocation goes along to another address."""

from __future__ import annotations

import random

import pytest

from stun.attributes import LIFETIME, MOBILITY_TICKET
from stun.discovery import Transport
from stun.framing import channel_data
from stun.registry import Method
from stun.sansio import Address, Cause, Closed, Dial, OpenUdp, Received, Shut
from tools.clientdesk import SERVER, Desk, error, silence
from turn.client.errors import AllocationMismatch, MobilityForbidden, ServerUnreachable
from turn.client.events import (
    Allocated,
    Bound,
    Data,
    Failed,
    Lost,
    Moved,
    NotMoved,
    Permitted,
    Refreshed,
)

PEER = Address("203.0.113.50", 5000)


def mobile(rng: random.Random, **options: object) -> Desk:
    desk = Desk(rng, mobility=True, **options)  # type: ignore[arg-type]
    desk.ticket = b"the first ticket"
    desk.allocate()
    assert desk.last(Allocated).mobile
    return desk


@pytest.mark.parametrize("transport", [*Transport])
def test_a_move(rng: random.Random, transport: Transport) -> None:
    desk = mobile(rng, transport=transport)
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    local = Address("198.51.100.8", 0)
    desk.client.move(desk.now, local=local)
    desk.run()
    order = desk.orders[-1]
    assert isinstance(order, OpenUdp | Dial)
    assert order.local == local
    (request,) = desk.requests(Method.REFRESH)
    assert request.get(MOBILITY_TICKET) == b"the first ticket"
    assert not request.has(LIFETIME)
    assert len(desk.told(Moved)) == 1
    new = desk.open[order.handle]
    assert desk.last(Moved).local == new
    desk.client.send(PEER, b"on", desk.now)
    sent = desk.client.poll()
    if transport is Transport.UDP:
        assert sent.source == new
    else:
        assert sent.handle == order.handle
    # A later Refresh has no ticket: with one it "would be rejected".
    desk.client.refresh(desk.now)
    desk.run()
    assert not desk.requests(Method.REFRESH)[-1].has(MOBILITY_TICKET)
    assert desk.told(Bound) == [Bound(PEER, number)]
    # The next move has the new ticket.
    desk.client.move(desk.now)
    desk.run()
    assert desk.requests(Method.REFRESH)[-1].get(MOBILITY_TICKET) == b"another ticket"


def test_the_old_address_is_listened_to_for_a_while(rng: random.Random) -> None:
    desk = mobile(rng)
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    desk.client.move(desk.now)
    desk.run()
    old, new = desk.open.values()
    message = channel_data(number, b"to the old one", pad=False)
    desk.client.receive(Received(message, SERVER, old), desk.now)
    desk.run()
    assert desk.told(Data) == [Data(PEER, b"to the old one")]
    assert len(desk.open) == 2
    desk.client.receive(Received(message, SERVER, new), desk.now)
    desk.run()
    assert [*desk.open.values()] == [new]
    assert desk.client.owns(new)
    assert not desk.client.owns(old)
    desk.client.move(desk.now)
    desk.run()
    assert len(desk.open) == 2
    desk.pass_time(31)
    assert len(desk.open) == 1


def test_everything_stays_until_the_move_is_answered(rng: random.Random) -> None:
    desk = mobile(rng)
    desk.client.bind(PEER, desk.now)
    desk.run()
    old = next(iter(desk.open.values()))
    desk.script(Method.REFRESH, *[silence] * 7)
    desk.client.move(desk.now)
    desk.run()
    desk.client.send(PEER, b"from the old one", desk.now)
    assert desk.client.poll().source == old
    desk.pass_time(40)
    assert isinstance(desk.last(NotMoved).error, ServerUnreachable)
    assert [*desk.open.values()] == [old]
    desk.client.refresh(desk.now)
    desk.run()
    assert desk.told(Refreshed)


@pytest.mark.parametrize(("code", "kind"), [(405, MobilityForbidden), (437, AllocationMismatch)])
def test_a_move_that_is_refused(rng: random.Random, code: int, kind: type[Exception]) -> None:
    desk = mobile(rng)
    desk.script(Method.REFRESH, error(code))
    desk.client.move(desk.now)
    desk.run()
    assert isinstance(desk.last(NotMoved).error, kind)
    assert len(desk.open) == 1
    assert not desk.told(Lost)


def test_requests_go_along(rng: random.Random) -> None:
    desk = mobile(rng)
    desk.script(Method.CREATE_PERMISSION, silence)
    desk.client.permit(PEER, now=desk.now)
    desk.run()
    desk.client.move(desk.now)
    desk.run()
    assert desk.told(Moved)
    assert desk.told(Permitted) == [Permitted(PEER.host)]
    first, second = desk.requests(Method.CREATE_PERMISSION)
    assert first.transaction_id != second.transaction_id


def test_a_new_move_replaces_one_on_its_way(rng: random.Random) -> None:
    desk = mobile(rng)
    desk.script(Method.REFRESH, silence)
    desk.client.move(desk.now)
    desk.run()
    desk.client.move(desk.now)
    desk.run()
    assert len(desk.told(Moved)) == 1
    assert Shut(2) in desk.orders


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS])
def test_a_connection_that_breaks_is_moved(rng: random.Random, transport: Transport) -> None:
    desk = mobile(rng, transport=transport)
    desk.client.bind(PEER, desk.now)
    desk.run()
    desk.open.clear()
    desk.tell(Closed(1, Cause.RESET))
    assert len(desk.told(Moved)) == 1
    desk.client.send(PEER, b"on", desk.now)
    assert desk.client.poll().handle == 2
    # And if that fails too, it is lost.
    desk.refused[SERVER.host] = Cause.REFUSED
    desk.tell(Closed(2, Cause.RESET))
    assert desk.told(NotMoved)
    assert desk.told(Lost)
    assert desk.told(Failed)


def test_no_connection_for_the_move(rng: random.Random) -> None:
    desk = mobile(rng, transport=Transport.TCP)
    desk.client.move(desk.now)
    assert isinstance(desk.client.poll(), Dial)  # and nobody tells what became of it
    desk.pass_time(21)
    assert "no new connection within 20 s" in str(desk.last(NotMoved).error)
    assert not desk.told(Lost)


def test_a_move_ends_with_the_allocation(rng: random.Random) -> None:
    desk = mobile(rng)
    desk.script(Method.REFRESH, silence)
    desk.client.move(desk.now)
    desk.run()
    desk.client.release(desk.now)
    desk.run()
    assert not desk.open
    assert not desk.told(Moved)
