"""Clients that come from another address: RFC 8016, rule by rule."""

from __future__ import annotations

from stun import attributes as a
from stun.discovery import Transport
from stun.message import Message
from stun.sansio import Address, Cause, Closed
from tools.turndesk import PEER, TCP, Caller, Desk, code
from turn.server.events import EndReason

NEW = Address("198.41.0.4", 50_000)
NEWER = Address("198.41.0.5", 50_001)


def _ticket(response: Message | None) -> bytes:
    assert response is not None
    ticket = response.get(a.MOBILITY_TICKET)
    assert ticket
    return ticket


def _mobile(desk: Desk, transport: Transport = Transport.UDP) -> tuple[Caller, Address, bytes]:
    caller = desk.caller(transport=transport)
    response = caller.allocate((a.MOBILITY_TICKET, b""))
    relayed = response.get(a.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    assert code(caller.bind(0x4000, PEER)) == 0
    return caller, relayed, _ticket(response)


def _refresh(caller: Caller, ticket: bytes, lifetime: int | None = None) -> Message | None:
    return caller.refresh(lifetime, (a.MOBILITY_TICKET, ticket))


def _hears(desk: Desk, caller: Caller, relayed: Address) -> bool:
    desk.receive(b"data", PEER, relayed)
    caller.fetch()
    heard = caller.channels == [(0x4000, b"data")]
    caller.channels.clear()
    return heard


def test_a_move_make_before_break() -> None:
    desk = Desk(offload=True)
    old, relayed, ticket = _mobile(desk)
    new = desk.caller(address=NEW)
    following = _ticket(_refresh(new, ticket))
    assert following != ticket
    # "MUST continue receiving and processing data on the old 5-tuple and MUST continue transmitting
    # data on the old-5 tuple until it receives a Send Indication or ChannelData [...] on the new"
    assert _hears(desk, old, relayed)
    old.push(0x4000, b"from the old")
    assert [route.client for route in desk.routes] == [old.address]
    new.push(0x4000, b"from the new")
    assert [sent.data for sent in desk.sent if sent.destination == PEER] == [
        b"from the old",
        b"from the new",
    ]
    assert _hears(desk, new, relayed)
    assert [route.client for route in desk.routes] == [new.address]
    desk.sent.clear()
    old.push(0x4000, b"from the old")
    assert desk.sent == []
    assert code(old.refresh()) == 437
    assert code(new.refresh()) == 0
    (session,) = desk.server.sessions()
    assert session.client == NEW
    assert session.channels == ((0x4000, PEER),)


def test_a_send_indication_completes_it_too() -> None:
    desk = Desk()
    _, relayed, ticket = _mobile(desk)
    new = desk.caller(address=NEW)
    _refresh(new, ticket)
    new.indicate(PEER, b"x")
    assert _hears(desk, new, relayed)


def test_the_refresh_is_a_refresh() -> None:
    desk = Desk()
    _, _, ticket = _mobile(desk)
    desk.wait(500)
    new = desk.caller(address=NEW)
    response = _refresh(new, ticket, 1200)
    assert response is not None
    assert response.get(a.LIFETIME) == 1200
    desk.wait(1199)
    assert not desk.ended


def test_a_lost_response_is_repeated() -> None:
    desk = Desk()
    _, _, ticket = _mobile(desk)
    new = desk.caller(address=NEW)
    following = _ticket(_refresh(new, ticket))
    assert _ticket(new.say(new.requested)) == following
    assert _ticket(_refresh(new, ticket)) == following, "as a new transaction, too"
    desk.wait(31)
    assert code(_refresh(new, ticket)) == 400
    third = desk.caller(address=NEWER)
    assert code(_refresh(third, ticket)) == 400, "whoever moves on needs the new ticket"
    assert _ticket(_refresh(third, following)) not in (ticket, following)


def test_moving_twice_before_any_data() -> None:
    desk = Desk()
    _, relayed, ticket = _mobile(desk)
    new, newer = desk.caller(address=NEW), desk.caller(address=NEWER)
    second = _ticket(_refresh(new, ticket))
    _refresh(newer, second)
    assert code(new.refresh()) == 437
    newer.push(0x4000, b"x")
    assert _hears(desk, newer, relayed)


def test_tickets_are_refused() -> None:
    desk = Desk()
    caller, _, ticket = _mobile(desk)
    new = desk.caller(address=NEW)
    assert code(_refresh(caller, ticket)) == 400, "from the same five-tuple"
    assert code(_refresh(new, ticket[:-1])) == 400
    assert code(_refresh(new, ticket[:-1] + bytes((ticket[-1] ^ 1,)))) == 400
    assert code(_refresh(new, b"")) == 400
    thief = desk.caller(address=NEWER, username="bob", password="hidden")
    assert code(_refresh(thief, ticket)) == 441
    busy = desk.caller(address=Address("198.41.0.6", 1))
    busy.relayed()
    assert code(_refresh(busy, ticket)) == 437
    caller.refresh(0)
    assert code(_refresh(new, ticket)) == 437, "a ticket of ours, but its allocation is gone"


def test_without_a_ticket_nobody_moves() -> None:
    desk = Desk()
    desk.caller().relayed()
    assert code(desk.caller(address=NEW).refresh()) == 437


def test_a_ticket_can_end_the_allocation() -> None:
    desk = Desk()
    _, _, ticket = _mobile(desk)
    assert code(_refresh(desk.caller(address=NEW), ticket, 0)) == 0
    assert [end.reason for end in desk.ended] == [EndReason.REFRESHED_TO_ZERO]
    assert desk.server._core.tickets == {}
    assert desk.server._core.allocations == {}


def test_a_request_on_the_new_five_tuple_completes_the_move() -> None:
    desk = Desk(offload=True)
    _, relayed, ticket = _mobile(desk)
    new = desk.caller(address=NEW)
    _refresh(new, ticket)
    assert code(new.bind(0x4000, PEER)) == 0
    assert _hears(desk, new, relayed)


def test_a_ticket_is_a_text() -> None:
    # coturn's client keeps it in a C string of at most 32 characters.
    _, _, ticket = _mobile(Desk())
    assert len(ticket) == 32
    assert ticket.decode("ascii").isprintable()


def test_break_before_make_over_tcp() -> None:
    desk = Desk()
    old, relayed, ticket = _mobile(desk, Transport.TCP)
    desk.tell(Closed(old.handle, Cause.RESET))
    assert not desk.ended, "the client may come back"
    assert desk.receive(b"x", PEER, relayed) == []
    new = desk.caller(address=NEW, transport=Transport.TLS)
    assert _refresh(new, ticket) is not None
    assert _hears(desk, new, relayed)
    desk.wait(601)
    assert len(desk.ended) == 1
    assert desk.server._core.allocations == {}


def test_the_old_connection_closes_after_the_refresh() -> None:
    desk = Desk()
    old, relayed, ticket = _mobile(desk, Transport.TCP)
    new = desk.caller(address=NEW)
    _refresh(new, ticket)
    desk.tell(Closed(old.handle, Cause.END_OF_STREAM))
    assert _hears(desk, new, relayed)


def test_the_new_connection_closes_before_any_data() -> None:
    desk = Desk()
    old, relayed, ticket = _mobile(desk)
    new = desk.caller(address=NEW, transport=Transport.TCP)
    following = _ticket(_refresh(new, ticket))
    desk.tell(Closed(new.handle, Cause.END_OF_STREAM))
    assert _hears(desk, old, relayed)
    assert _refresh(desk.caller(address=NEWER), following) is not None


def test_a_tcp_allocation_moves_to_streams_only() -> None:
    desk = Desk()
    caller = desk.caller(transport=Transport.TCP)
    ticket = _ticket(caller.allocate((a.MOBILITY_TICKET, b""), transport=TCP))
    assert code(_refresh(desk.caller(address=NEW), ticket)) == 400
    assert code(_refresh(desk.caller(address=NEW, transport=Transport.TCP), ticket)) == 0


def test_an_expired_allocation_cannot_be_moved() -> None:
    desk = Desk()
    _, _, ticket = _mobile(desk)
    new = desk.caller(address=NEW)
    new.refresh()  # to have a nonce
    desk.now += 600 * 10**9
    assert code(_refresh(new, ticket)) == 437
