"""Which port dials whom over TCP, and what the server is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from nattype.lab.sim import SERVER_A, SERVER_B, behind
from nattype.lab.sim.diagnose import observe, serve
from nattype.model import Link
from nattype.observations import BackKind, Observations
from nattype.probe.machine import Probe
from stun.sansio import (
    Address,
    Connected,
    Dial,
    Instant,
    Listen,
    Received,
    Shut,
    SocketEvent,
)

A, B = Address(SERVER_A, 3478), Address(SERVER_B, 3479)
AQ, BP = Address(SERVER_A, 3479), Address(SERVER_B, 3478)


@dataclass
class Recorder:
    """Passes everything on, and keeps what TCP was asked for."""

    probe: Probe
    dialled: list[Dial] = field(default_factory=list)
    listened: list[Listen] = field(default_factory=list)
    connected: list[Connected] = field(default_factory=list)
    asked: set[int] = field(default_factory=set)
    shut: set[int] = field(default_factory=set)

    def receive(self, packet: Received, now: Instant) -> None:
        self.probe.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        if isinstance(event, Connected):
            self.connected.append(event)
        self.probe.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        self.probe.on_deadline(now)

    def deadline(self) -> Instant | None:
        return self.probe.deadline()

    def poll(self) -> Any:
        output = self.probe.poll()
        match output:
            case Dial():
                self.dialled.append(output)
                self.asked.add(output.handle)
            case Listen():
                self.listened.append(output)
                self.asked.add(output.handle)
            case Shut(handle):
                self.shut.add(handle)
            case _:
                pass
        return output


def recorded(name: str, seed: int, *, loss: float = 0.0) -> tuple[Recorder, Observations]:
    scenario = behind(name, seed=seed, link=Link(delay=0.005, loss=loss))
    serve(scenario)
    recorders: list[Recorder] = []

    def wrap(probe: Probe) -> Recorder:
        recorders.append(Recorder(probe))
        return recorders[0]

    seen = observe(scenario, udp=False, wrap=wrap)[0]
    return recorders[0], seen


@pytest.mark.parametrize("name", ["port-restricted-cone", "full-cone", "symmetric"])
def test_one_port_asks_all_four_with_all_connections_open(name: str, seed: int) -> None:
    recorder, seen = recorded(name, seed)
    assert seen.tcp is not None
    complete = [asked for asked in seen.tcp.mapping if len(asked) == 4]
    assert complete
    for asked in complete:
        assert {one.server for one in asked} == {A, B, AQ, BP}
        assert len({one.local for one in asked}) == 1
        handles = [c.handle for c in recorder.connected if c.local == asked[0].local]
        assert len(handles) == 4


@pytest.mark.parametrize("name", ["port-restricted-cone", "restricted-cone", "symmetric"])
def test_a_stranger_knocks_where_it_was_never_contacted(name: str, seed: int) -> None:
    recorder, seen = recorded(name, seed)
    assert seen.tcp is not None
    for kind in (BackKind.OTHER_ADDRESS, BackKind.SAME_ADDRESS):
        (back,) = [b for b in seen.tcp.back if b.kind is kind]
        assert back.granted == 8
        assert back.reported
        # The port listens, and its one connection is the one that the request went over.
        assert back.local.port in {listen.local.port for listen in recorder.listened}
        assert [c.remote for c in recorder.connected if c.local == back.local] == [A]
        assert back.local.port not in {d.local.port for d in recorder.dialled}


def test_a_simultaneous_open_is_tried_at_both_addresses(seed: int) -> None:
    recorder, seen = recorded("port-restricted-cone", seed)
    assert seen.tcp is not None
    opens = [b for b in seen.tcp.back if b.kind is BackKind.SIMULTANEOUS and b.dialled]
    assert {b.server.host for b in opens} == {SERVER_A, SERVER_B}
    for back in opens:
        assert back.dialled is not None
        assert back.dialled.connected
        # From the very port whose connection the server looks at.
        assert back.dialled.local.port == back.local.port
        assert back.local.port in {d.local.port for d in recorder.dialled}


def test_a_mapping_that_moves_by_port_makes_simultaneous_opens_pointless(seed: int) -> None:
    _, seen = recorded("symmetric", seed)
    assert seen.tcp is not None
    assert not [b for b in seen.tcp.back if b.kind is BackKind.SIMULTANEOUS]


def test_under_loss_a_lost_syn_does_not_make_a_filter(seed: int) -> None:
    for n in range(8):
        _, seen = recorded("full-cone", seed + n, loss=0.1)
        assert seen.tcp is not None
        for back in seen.tcp.back:
            if back.kind is not BackKind.SIMULTANEOUS and back.reported:
                assert back.accepted_from


def test_everything_that_was_opened_is_shut_in_the_end(seed: int) -> None:
    recorder, _ = recorded("port-restricted-cone", seed)
    open_still = recorder.asked - recorder.shut
    # What the other side had closed needs no shutting; nothing else is left.
    assert open_still <= {d.handle for d in recorder.dialled}
    assert not {listen.handle for listen in recorder.listened} - recorder.shut
