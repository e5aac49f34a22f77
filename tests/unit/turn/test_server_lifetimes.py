"""What begins, ends and expires; and the routes that a data plane is told."""

from __future__ import annotations

from typing import Any

import pytest

from stun import attributes as a
from stun.discovery import Transport
from stun.registry import Family
from stun.sansio import SECOND, Address, Cause
from tools.turndesk import PEER, PEER6, UNLIMITED, Desk, code
from turn.dataplane.base import InstallRoute, RemoveRoute, RouteKey
from turn.server.config import RelayAddress
from turn.server.events import EndReason
from turn.server.metrics import Metrics


def _gauges(metrics: Metrics) -> tuple[int, int, int]:
    return metrics.allocations, metrics.permissions, metrics.channels


def test_everything_goes_with_the_allocation() -> None:
    desk = Desk()
    caller = desk.caller()
    before = dict(desk.open)
    caller.relayed((a.MOBILITY_TICKET, b""))
    caller.permit(PEER)
    caller.bind(0x4000, Address(PEER.host, 1))
    caller.bind(0x4001, Address("192.175.48.21", 1))
    assert _gauges(desk.server.metrics) == (1, 2, 2)
    response = caller.refresh(0)
    assert response is not None
    assert response.get(a.LIFETIME) == 0
    assert _gauges(desk.server.metrics) == (0, 0, 0)
    assert desk.open == before
    core = desk.server._core
    for table in (core.allocations, core.sessions, core.tickets, core.relays, core.relayed):
        assert table == {}
    assert len(core.expiry) == 0
    assert core.quotas.allocations == 0
    assert [end.reason for end in desk.ended] == [EndReason.REFRESHED_TO_ZERO]
    assert code(caller.refresh()) == 437


def test_refreshing_goes_on_for_ever_and_costs_one_deadline() -> None:
    desk = Desk(limits=UNLIMITED)
    caller = desk.caller()
    caller.relayed()
    for _ in range(100):
        desk.wait(540)
        response = caller.refresh()
        assert response is not None
        assert response.get(a.LIFETIME) == 600
        assert len(desk.server._core.expiry._heap) <= 2
    desk.wait(600)
    assert desk.ended[0].duration == (100 * 540 + 600) * SECOND


@pytest.mark.parametrize(("asked", "given"), [(1, 600), (600, 600), (700, 700), (9999, 3600)])
def test_lifetimes_of_a_refresh(asked: int, given: int) -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    desk.wait(100)
    response = caller.refresh(asked)
    assert response is not None
    assert response.get(a.LIFETIME) == given
    desk.wait(given - 0.001)
    assert not desk.ended
    desk.wait(0.001)
    assert desk.ended


def test_a_permission_that_is_created_again_starts_anew() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    caller.permit(PEER)
    desk.wait(200)
    caller.permit(PEER)
    desk.wait(299)
    assert next(desk.server.sessions()).permissions == (PEER.host,)
    desk.wait(1)
    assert next(desk.server.sessions()).permissions == ()


def test_nothing_is_left_after_thousands_of_short_lives() -> None:
    desk = Desk(limits=UNLIMITED)
    caller = desk.caller()
    for _ in range(2000):
        caller.relayed()
        caller.refresh(0)
    core = desk.server._core
    assert len(core.expiry._heap) < 300
    assert core.ports.available("192.31.196.10") == 16_384


# Routes. ------------------------------------------------------------------------------------------


def _until(desk: Desk) -> list[float]:
    return [order.expires / SECOND for order in desk.routes.values()]


def test_a_route_for_each_channel_of_a_udp_client() -> None:
    desk = Desk(offload=True, relays=(RelayAddress("10.0.0.7", "203.0.113.7"),))
    caller = desk.caller()
    relayed = caller.relayed()
    caller.permit(PEER)
    assert desk.orders == []
    caller.bind(0x4000, PEER)
    key = RouteKey(caller.address, caller.server, 0x4000)
    route = desk.routes[key].route
    assert (route.relay, route.peer) == (Address("10.0.0.7", relayed.port), PEER)
    assert route.meter.usage is next(desk.server.sessions()).usage
    assert _until(desk) == [600]
    caller.push(0x4000, b"x")
    assert len(desk.sent) == 1, "what comes here all the same is relayed"


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS, Transport.DTLS])
def test_no_routes_for_connections(transport: Transport) -> None:
    desk = Desk(offload=True)
    caller = desk.caller(transport=transport)
    caller.relayed()
    caller.bind(0x4000, PEER)
    assert desk.orders == []


def test_no_routes_without_a_data_plane() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    caller.bind(0x4000, PEER)
    assert desk.orders == []


def test_a_route_ends_with_what_ends_first_and_is_prolonged() -> None:
    desk = Desk(offload=True)
    caller = desk.caller()
    caller.relayed()
    desk.wait(100)
    caller.bind(0x4000, PEER)
    assert _until(desk) == [600], "the allocation ends first"
    caller.refresh(3600)
    assert _until(desk) == [700], "then the channel"
    desk.wait(100)
    caller.bind(0x4000, PEER)
    assert _until(desk) == [800]
    caller.permit(PEER)
    assert len(desk.orders) == 3, "what changes nothing orders nothing"
    desk.wait(600)
    assert desk.routes == {}
    assert desk.orders[-1] == RemoveRoute(RouteKey(caller.address, caller.server, 0x4000))


def test_routes_are_removed_before_the_socket_is_shut() -> None:
    desk = Desk(offload=True)
    caller = desk.caller()
    caller.relayed()
    caller.bind(0x4000, PEER)
    seen: list[Any] = []
    carry_out = desk._carry_out

    def watch(output: Any, pending: list[Any]) -> None:
        seen.append(type(output).__name__)
        carry_out(output, pending)

    desk._carry_out = watch  # type: ignore[method-assign]
    caller.refresh(0)
    assert seen.index("RemoveRoute") < seen.index("Shut")


def test_each_family_has_its_routes() -> None:
    desk = Desk(offload=True)
    caller = desk.caller()
    caller.allocate((a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6))
    caller.bind(0x4000, PEER)
    caller.bind(0x4001, PEER6)
    caller.refresh(0, (a.REQUESTED_ADDRESS_FAMILY, Family.IPV6))
    assert [key.channel for key in desk.routes] == [0x4000]


def test_a_route_to_another_clients_relayed_address_goes_to_its_socket() -> None:
    desk = Desk(offload=True, relays=(RelayAddress("10.0.0.7", "192.175.48.77"),))
    one, two = desk.caller(), desk.caller(address=Address("192.52.193.6", 1))
    one.relayed()
    other = two.relayed()
    one.bind(0x4000, other)
    (order,) = desk.routes.values()
    assert isinstance(order, InstallRoute)
    assert order.route.peer == Address("10.0.0.7", other.port)


def test_a_lost_relay_of_two_leaves_the_other() -> None:
    desk = Desk()
    caller = desk.caller()
    response = caller.allocate((a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6))
    lost, left = response.all(a.XOR_RELAYED_ADDRESS)
    from stun.sansio import Closed

    handle = next(handle for handle, local in desk.open.items() if local == lost)
    desk.tell(Closed(handle, Cause.OTHER))
    assert not desk.ended
    assert next(desk.server.sessions()).relayed == (left,)
