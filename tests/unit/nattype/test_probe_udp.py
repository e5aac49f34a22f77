"""Which socket asks whom, in which order: what a wrong order would poison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from nattype.lab.sim import SERVER_A, SERVER_B, behind
from nattype.lab.sim.diagnose import observe, serve
from nattype.model import Link
from nattype.observations import Observations
from nattype.probe.machine import Probe
from stun import attributes
from stun.codec import Message, decode
from stun.sansio import Address, Instant, Received, SocketEvent, Transmit

A, B = Address(SERVER_A, 3478), Address(SERVER_B, 3479)
AQ, BP = Address(SERVER_A, 3479), Address(SERVER_B, 3478)


@dataclass
class Recorder:
    """Passes everything on, and keeps what was sent and received in its order."""

    probe: Probe
    log: list[tuple[Instant, Transmit | Received]] = field(default_factory=list)
    now: Instant = 0

    def receive(self, packet: Received, now: Instant) -> None:
        self.now = now
        self.log.append((now, packet))
        self.probe.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        self.now = now
        self.probe.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        self.now = now
        self.probe.on_deadline(now)

    def deadline(self) -> Instant | None:
        return self.probe.deadline()

    def poll(self) -> Any:
        output = self.probe.poll()
        if isinstance(output, Transmit):
            self.log.append((self.now, output))
        return output

    def sent_by_socket(self) -> dict[Address, list[tuple[Transmit, Message]]]:
        found: dict[Address, list[tuple[Transmit, Message]]] = {}
        for _, packet in self.log:
            if isinstance(packet, Transmit):
                found.setdefault(packet.source, []).append((packet, decode(packet.data)))
        return found


def recorded(name: str, seed: int, **options: Any) -> tuple[Recorder, Observations]:
    scenario = behind(name, seed=seed, link=Link(delay=0.005))
    serve(scenario)
    recorders: list[Recorder] = []

    def wrap(probe: Probe) -> Recorder:
        recorders.append(Recorder(probe))
        return recorders[0]

    seen = observe(scenario, tcp=False, wrap=wrap, **options)[0]
    return recorders[0], seen


@pytest.fixture(params=["port-restricted-cone", "symmetric", "full-cone", "restricted-cone"])
def run(request: pytest.FixtureRequest, seed: int) -> tuple[Recorder, Observations]:
    return recorded(request.param, seed)


def test_the_mapping_socket_never_asks_for_a_change(run: tuple[Recorder, Observations]) -> None:
    recorder, seen = run
    assert seen.udp is not None
    (socket,) = {asked.local for asked in seen.udp.mapping}
    sent = recorder.sent_by_socket()[socket]
    assert [packet.destination for packet, _ in sent[:4]] == [A, BP, B, AQ]
    assert sent[-1][0].destination == A
    assert not any(m.has(attributes.CHANGE_REQUEST) for _, m in sent)


def test_a_filter_is_tested_where_the_answer_comes_from_a_stranger(
    run: tuple[Recorder, Observations],
) -> None:
    recorder, seen = run
    assert seen.udp is not None
    filtering = seen.udp.filtering
    assert filtering is not None
    assert filtering.both is not None
    assert filtering.port is not None
    sockets = [filtering.both.asked.local, filtering.port.asked.local]
    assert sockets[0] != sockets[1]
    for socket, stranger in zip(sockets, (SERVER_B, AQ), strict=True):
        changes = contacted = 0
        for packet, message in recorder.sent_by_socket()[socket]:
            if message.has(attributes.CHANGE_REQUEST):
                assert packet.destination == A
                # Nothing had gone to the stranger when it was asked to knock.
                assert not contacted
                changes += 1
            elif stranger in (packet.destination, packet.destination.host):
                contacted += 1
        assert changes


def test_the_controls_contact_first(run: tuple[Recorder, Observations]) -> None:
    recorder, seen = run
    assert seen.udp is not None
    filtering = seen.udp.filtering
    assert filtering is not None
    for control, source in ((filtering.both_control, B), (filtering.port_control, AQ)):
        assert control is not None
        assert control.positive
        sent = recorder.sent_by_socket()[control.asked.local]
        assert sent[0][0].destination == source
        assert not sent[0][1].has(attributes.CHANGE_REQUEST)


def test_only_a_moving_mapping_needs_response_port(seed: int) -> None:
    for name, needed in (("port-restricted-cone", False), ("symmetric", True)):
        recorder, _ = recorded(name, seed)
        used = any(
            message.has(attributes.RESPONSE_PORT)
            for sent in recorder.sent_by_socket().values()
            for _, message in sent
        )
        assert used is needed


def test_ports_are_counted_before_anything_else_makes_mappings(seed: int) -> None:
    recorder, seen = recorded("symmetric-sequential", seed)
    assert seen.udp is not None
    counted = {a.local for a in seen.udp.allocations.asked}
    foretold = len(seen.udp.allocations.predictions)
    assert foretold == 5
    order = list(recorder.sent_by_socket())
    # First contact, then the sockets that count, then those that are foretold, then the others.
    assert set(order[1 : 1 + len(counted)]) == counted
    first_change = next(
        n for n, sent in enumerate(recorder.sent_by_socket().values())
        if any(m.has(attributes.CHANGE_REQUEST) for _, m in sent)
    )  # fmt: skip
    assert first_change >= 1 + len(counted) + foretold + 1


def test_predictions_were_made_before_the_port_was_seen(seed: int) -> None:
    _, seen = recorded("eim+eif+sequential", seed)
    assert seen.udp is not None
    assert seen.udp.allocations.predictions
    assert all(p.predicted == p.seen for p in seen.udp.allocations.predictions)


def test_an_idle_socket_is_silent_until_it_is_knocked_at(seed: int) -> None:
    recorder, seen = recorded("port-restricted-cone", seed, lifetime=True, timeout=120)
    assert seen.udp is not None
    assert any(trial.idle >= 20 for trial in seen.udp.lifetimes)
    knocks = {
        message.get(attributes.RESPONSE_PORT)
        for sent in recorder.sent_by_socket().values()
        for _, message in sent
        if message.has(attributes.RESPONSE_PORT)
    }
    idle = [local for local in recorder.sent_by_socket() if local.port in knocks]
    assert len(idle) > 10
    for local in idle:
        sent = [at for at, p in recorder.log if isinstance(p, Transmit) and p.source == local]
        # One exchange, or a stream of a few seconds; never anything after the silence began.
        assert sent[-1] - sent[0] < 4_000_000_000


def test_local_ports_are_never_used_for_two_tests(run: tuple[Recorder, Observations]) -> None:
    recorder, _ = run
    ports = [local.port for local in recorder.sent_by_socket()]
    assert len(ports) == len(set(ports))
