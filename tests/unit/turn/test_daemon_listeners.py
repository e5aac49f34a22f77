"""Which listeners are open, which are missed, and which of that ends turnd."""

from __future__ import annotations

import socket

import pytest

from stun.discovery import Transport
from stun.sansio import Address, Cause
from turn.daemon.addresses import LocalAddress
from turn.daemon.beforehand import CannotStart
from turn.daemon.config import Flags, load
from turn.daemon.listeners import Listeners
from turn.daemon.plan import Plan, make_plan
from turn.server.events import CannotServe, Serving

UDP, TCP = Transport.UDP, Transport.TCP
GONE, IN_USE = Cause.ADDRESS_NOT_AVAILABLE, Cause.ADDRESS_IN_USE
LOOPBACK = LocalAddress("127.0.0.1", "lo")


def plan(*urls: str) -> Plan:
    flags = Flags()
    flags.set(("listen",), [{"url": url} for url in urls], "--listen")
    flags.set(("relay", "addresses"), ["127.0.0.1"], "--relay-address")
    return make_plan(load(None, flags), [LOOPBACK], {4: "127.0.0.1", 6: None}.get)


def at(port: int, host: str = "127.0.0.1") -> Address:
    return Address(host, port)


def lost(port: int, cause: Cause = IN_USE, transport: Transport = UDP) -> CannotServe:
    return CannotServe(transport, at(port), cause, "")


def test_all_are_there() -> None:
    listeners = Listeners()
    made = plan("udp://127.0.0.1:3478", "tcp://127.0.0.1:3479")
    listeners.opened(Serving(UDP, at(3478)))
    listeners.opened(Serving(TCP, at(3479)))
    assert listeners.check_started(made, partial=False) == []
    assert listeners.places() == {"udp": "127.0.0.1:3478", "tcp": "127.0.0.1:3479"}
    assert listeners.uris(made, ()) == [
        "turn:127.0.0.1?transport=udp",
        "turn:127.0.0.1:3479?transport=tcp",
    ]
    listeners.go_over(plan("tcp://127.0.0.1:3479"))
    assert [*listeners.serving] == [("tcp", at(3479))]


def test_one_that_is_missing_ends_it_unless_it_may_be_done_without() -> None:
    made = plan("udp://127.0.0.1:3478", "udp://127.0.0.1:3479")
    for partial in (False, True):
        listeners = Listeners()
        listeners.opened(Serving(UDP, at(3478)))
        assert listeners.lost(lost(3479)), "it is told of with all others"
        if partial:
            (line,) = listeners.check_started(made, partial=True)
            assert "port 3479 of UDP is in use" in line
        else:
            with pytest.raises(CannotStart, match="port 3479 of UDP is in use"):
                listeners.check_started(made, partial=False)


def test_with_none_at_all_there_is_nothing_to_serve() -> None:
    listeners = Listeners()
    listeners.lost(lost(3478, GONE))
    with pytest.raises(CannotStart, match="nothing to serve"):
        listeners.check_started(plan("udp://*:3478"), partial=True)


def test_an_address_behind_a_wildcard_may_be_gone() -> None:
    listeners = Listeners()
    made = plan("udp://*:3478", "udp://127.0.0.1:3479")
    listeners.opened(Serving(UDP, at(3479)))
    listeners.lost(lost(3478, GONE))
    assert listeners.check_started(made, partial=False) == []


def test_what_is_lost_later_is_tried_again() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        made = plan(f"udp://127.0.0.1:{port}", "tcp://127.0.0.1:3478")
        listeners = Listeners()
        for serving in (Serving(UDP, at(port)), Serving(TCP, at(3478))):
            listeners.opened(serving)
        listeners.check_started(made, partial=False)
        assert not listeners.lost(lost(port)), "now it is told of at once"
        assert listeners.uris(made, ()) == ["turn:127.0.0.1?transport=tcp"]
        assert listeners.there_again(made) == set()
    assert listeners.there_again(made) == {at(port)}
    listeners.forgive({at(port)})
    assert listeners.there_again(made) == set()


def test_forgiving_forgets_all() -> None:
    listeners = Listeners()
    listeners.opened(Serving(TCP, at(3478)))
    made = plan("udp://127.0.0.1:1", "tcp://127.0.0.1:3478")
    listeners.check_started(made, partial=False)
    listeners.lost(lost(1, Cause.NOT_PERMITTED))
    listeners.forgive()
    assert listeners.there_again(made) == set()
