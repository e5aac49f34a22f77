"""The seam for datagrams: what a driver asks of whatever carries them, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from stun.datagrams import Core
from stun.errors import UsageError
from stun.sansio import (
    Address,
    Cause,
    Closed,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
    Undeliverable,
)
from stun.sockets import Callback, Sockets
from tools.driving import Recorder, Told

HERE, THERE = Address("192.0.2.1", 3478), Address("192.0.2.2", 5000)


class Still:
    """A reactor in which nothing happens by itself."""

    def __init__(self) -> None:
        self.at: Instant | None = None

    def now(self) -> Instant:
        return 0

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None) -> None: ...

    def unwatch(self, fd: int) -> None: ...

    def wake_at(self, at: Instant | None) -> None:
        self.at = at


class Carrier:
    """A :class:`stun.datagrams.Datagrams` that writes down what is asked of it."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.log: list[object] = []

    def open(self, order: OpenUdp) -> Opened | Closed:
        if order.local.port == 1:
            return Closed(order.handle, Cause.NOT_PERMITTED)
        return Opened(order.handle, order.local)

    def shut(self, handle: Handle) -> bool:
        self.log.append(("shut", handle))
        return True

    def send(self, transmit: Transmit) -> None:
        self.log.append(transmit.data)

    def flush(self) -> None:
        self.log.append("flush")

    def counters(self) -> Mapping[str, int]:
        return {"datagrams carried": len(self.log)}

    def close(self) -> None:
        self.log.append("close")

    def wake_up(self, *packets: bytes) -> None:
        """Do what a callback of the reactor does."""
        for data in packets:
            self.core.machine.receive(Received(data, THERE, HERE), 0)
            self.core.pump()
        self.core.settle()


@dataclass
class Route:
    """An order that is none of :data:`stun.sansio.Output`."""

    name: str


def test_what_is_sent_is_flushed_once_a_wake_up() -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Received):
            machine.order(Transmit(event.data.upper(), event.source, event.local))

    machine = Recorder(react).order(OpenUdp(1, HERE))
    sockets = Sockets(machine, Still(), None, datagrams=Carrier)
    carrier = sockets.datagrams
    assert isinstance(carrier, Carrier)
    sockets.flush()
    assert machine.heard == [Opened(1, HERE)]
    carrier.log.clear()
    carrier.wake_up(b"a", b"b", b"c")
    assert carrier.log == [b"A", b"B", b"C", "flush"]
    assert sockets.counters["datagrams carried"] == 4


def test_orders_go_to_the_carrier_and_answers_to_the_machine() -> None:
    machine = Recorder().order(OpenUdp(1, HERE), OpenUdp(2, HERE._replace(port=1)), Shut(1))
    sockets = Sockets(machine, Still(), None, datagrams=Carrier)
    carrier = sockets.datagrams
    assert isinstance(carrier, Carrier)
    sockets.flush()
    # What was sent before goes before; and no event follows Shut.
    assert carrier.log == ["flush", ("shut", 1), "flush"]
    assert machine.heard == [Closed(2, Cause.NOT_PERMITTED)]
    machine.order(OpenUdp(1, HERE), OpenUdp(2, HERE))
    sockets.flush()
    machine.order(OpenUdp(1, HERE))
    with pytest.raises(UsageError, match="socket 1 is open already"):
        sockets.flush()
    carrier.log.clear()
    sockets.close()
    assert carrier.log == ["flush", "close"]


def test_what_a_carrier_tells_reaches_the_machine() -> None:
    machine = Recorder().order(OpenUdp(1, HERE))
    sockets = Sockets(machine, Still(), None, datagrams=Carrier)
    sockets.flush()
    event = Undeliverable(HERE, THERE, 3, 4, 1400)
    sockets.tell(event)
    assert machine.heard[-1] == event


def test_other_orders_are_taken_in_their_place() -> None:
    machine = Recorder()
    seen: list[object] = []
    sockets = Sockets(machine, Still(), seen.append, datagrams=Carrier)
    sockets.take(Route, lambda order: seen.append(f"took {order.name}"))
    machine.queue.extend(["before", Route("one"), "after"])  # type: ignore[list-item]
    sockets.flush()
    assert seen == ["before", "took one", "after"]


def test_a_closed_driver_flushes_nothing_more() -> None:
    sockets = Sockets(Recorder(), Still(), None, datagrams=Carrier)
    carrier = sockets.datagrams
    assert isinstance(carrier, Carrier)
    sockets.close()
    sockets.close()
    carrier.wake_up()
    assert carrier.log == ["flush", "close"]
