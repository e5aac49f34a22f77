"""Relayed transport addresses that are open before anybody asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import stun.attributes as a
from stun.sansio import Address, Cause, Closed, OpenUdp, Transmit
from stun.users import StaticUsers
from tools.turndesk import HOST, HOST6, PEER, REALM, UNLIMITED, Caller, Desk, code
from turn.server.spares import SCARCE

ALL = 16_384


@pytest.fixture
def desk() -> Desk:
    return Desk(limits=UNLIMITED, spares=2)


def queued(desk: Desk, caller: Caller) -> list[Any]:
    """Return what the server wants, in order, on an Allocate request, and carry it out."""
    order: list[Any] = []
    carry_out = desk._carry_out

    def noting(output: Any, pending: list[Any]) -> None:
        order.append(output)
        carry_out(output, pending)

    desk._carry_out = noting  # type: ignore[method-assign]
    caller.relayed()
    desk._carry_out = carry_out  # type: ignore[method-assign]
    return order


def relays(desk: Desk) -> set[Address]:
    listeners = {listener.local for listener in desk.server._core.listeners.values()}
    return {local for local in desk.open.values() if local not in listeners}


def test_nothing_is_open_before_the_first_client(desk: Desk) -> None:
    assert relays(desk) == set()


def test_the_next_client_is_answered_before_a_socket_is_opened(desk: Desk) -> None:
    desk.caller().relayed()
    spare = relays(desk)
    assert len(spare) == 3
    order = queued(desk, desk.caller(address=Address("192.52.193.6", 1)))
    kinds = [type(one) for one in order if isinstance(one, Transmit | OpenUdp)]
    assert kinds == [Transmit, Transmit, OpenUdp]  # the challenge, the answer
    assert relays(desk) > spare
    (created,) = desk.created[-1:]
    assert set(created.relayed) <= spare


def test_both_families_have_their_own(desk: Desk) -> None:
    for port in (1, 2):
        caller = desk.caller(address=Address("192.52.193.6", port))
        caller.relayed((a.ADDITIONAL_ADDRESS_FAMILY, 2))
    free = relays(desk) - {one for made in desk.created for one in made.relayed}
    assert {host: sum(one.host == host for one in free) for host in (HOST, HOST6)} == {
        HOST: 2,
        HOST6: 2,
    }


def test_a_spare_relays_for_whoever_has_it_and_for_nobody_before(desk: Desk) -> None:
    desk.caller().relayed()
    owned = {one for made in desk.created for one in made.relayed}
    for spare in relays(desk) - owned:
        assert desk.receive(b"early", PEER, spare) == []
    caller = desk.caller(address=Address("192.52.193.6", 1))
    relayed = caller.relayed()
    assert relayed not in owned
    assert desk.receive(b"no permission", PEER, relayed) == []
    caller.permit(PEER)
    assert len(desk.receive(b"now", PEER, relayed)) == 1


def test_even_ports_and_tcp_do_not_take_one(desk: Desk) -> None:
    desk.caller().relayed()
    before = relays(desk)
    relayed = desk.caller(address=Address("192.52.193.6", 1)).relayed((a.EVEN_PORT, True))
    assert relayed not in before
    assert before < relays(desk)


def test_one_that_cannot_be_had_is_replaced_by_the_next_client(desk: Desk) -> None:
    desk.caller().relayed()
    for spare in list(desk.server._core.ports._hosts):
        assert desk.server._core.ports.available(spare) == ALL - 3
    desk.refuse = lambda _: Cause.ADDRESS_IN_USE
    for port in (1, 2):
        desk.caller(address=Address("192.52.193.6", port)).relayed()
    assert code(desk.caller(address=Address("192.52.193.6", 3)).ask(3, (a.REQUESTED_TRANSPORT, 17)))
    desk.refuse = lambda _: None
    desk.caller(address=Address("192.52.193.6", 4)).relayed()


def test_one_that_fails_is_forgotten_and_its_port_is_free(desk: Desk) -> None:
    caller = desk.caller()
    owned = caller.relayed()
    handle = next(h for h, local in desk.open.items() if local in relays(desk) - {owned})
    lost = desk.open.pop(handle)
    desk.tell(Closed(handle, Cause.OTHER))
    assert desk.server._core.ports.available(HOST) == ALL - 2
    assert desk.caller(address=Address("192.52.193.6", 1)).relayed() != lost


@pytest.mark.parametrize("how", ["stop", "drain", "reconfigure"])
def test_they_are_shut_and_their_ports_freed(desk: Desk, how: str) -> None:
    caller = desk.caller()
    caller.relayed()
    match how:
        case "stop":
            desk.server.stop(desk.now)
        case "drain":
            desk.server.drain(desk.now)
        case _:
            users = StaticUsers({"alice": "secret"}, REALM)
            changed = replace(desk.config, ports=(50_000, 60_000))
            desk.server.reconfigure(changed, users, desk.now)
    desk.pump()
    kept = 0 if how == "stop" else 1
    assert len(relays(desk)) == kept
    if how != "reconfigure":
        assert desk.server._core.ports.available(HOST) == ALL - kept
    else:
        caller.refresh(0)
        fresh = desk.caller(address=Address("192.52.193.6", 1))
        assert 50_000 <= fresh.relayed().port <= 60_000


def test_none_that_is_on_its_way_is_forgotten(desk: Desk) -> None:
    caller = desk.caller()
    caller.relayed()
    desk.holding = True
    desk.caller(address=Address("192.52.193.6", 1)).relayed()
    assert desk.held
    desk.server.stop(desk.now)
    desk.pump()
    desk.release()
    assert desk.open == {}
    assert desk.server._core.ports.available(HOST) == ALL


def test_none_is_kept_where_ports_are_scarce() -> None:
    desk = Desk(limits=UNLIMITED, spares=2, ports=(50_000, 50_000 + SCARCE - 1))
    desk.caller().relayed()
    assert len(relays(desk)) == 1


def test_without_the_setting_there_are_none() -> None:
    desk = Desk(limits=UNLIMITED)
    desk.caller().relayed()
    assert len(relays(desk)) == 1
