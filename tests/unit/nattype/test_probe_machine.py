"""The probe as a machine: its commands, its rules, and how it ends."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from nattype.probe.bench import Progress
from nattype.probe.machine import Finished, Plan, Probe, ProbeConfig
from nattype.probe.session import Server
from stun.codec import Message, encode
from stun.errors import Dropped, DropReason, UsageError
from stun.registry import Method
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
    Undeliverable,
)

A = Address("192.31.196.10", 3478)
A6 = Address("2620:4f:8000:a::10", 3478)
V4 = Plan("ipv4", "192.168.1.2", (Server(A, "a"),))
V6 = Plan("ipv6", "fd00::2", (Server(A6, "a6"),))


@dataclass
class Rig:
    """A probe whose sockets all open, and which nobody answers."""

    probe: Probe
    outputs: list[object] = field(default_factory=list)
    local: list[Address] = field(default_factory=list)
    now: int = 0

    def drain(self) -> None:
        pending: list[OpenUdp] = []
        while True:
            while (output := self.probe.poll()) is not None:
                self.outputs.append(output)
                if isinstance(output, OpenUdp):
                    pending.append(output)
            if not pending:
                return
            order = pending.pop(0)
            local = Address(order.local.host, 40_000 + order.handle % 20_000)
            self.local.append(local)
            self.probe.on_socket(Opened(order.handle, local), self.now)

    def to_the_end(self) -> Finished:
        while (deadline := self.probe.deadline()) is not None:
            self.now = max(self.now, deadline)
            self.probe.on_deadline(self.now)
            self.drain()
        finished = [o for o in self.outputs if isinstance(o, Finished)]
        assert len(finished) == 1
        return finished[0]

    def of(self, kind: type) -> list:
        return [output for output in self.outputs if isinstance(output, kind)]


def rig(*plans: Plan, **options: object) -> Rig:
    config = ProbeConfig(plans or (V4,), **options)  # type: ignore[arg-type]
    made = Rig(Probe(config, entropy=random.Random(1).randbytes))
    made.probe.start(0)
    made.drain()
    return made


def test_nothing_to_do_is_a_usage_error() -> None:
    for config in (
        ProbeConfig(()),
        ProbeConfig((V4,), udp=False, tcp=False),
        ProbeConfig((Plan("ipv4", "192.168.1.2", ()),)),
    ):
        with pytest.raises(UsageError):
            Probe(config, entropy=bytes)


def test_it_starts_once() -> None:
    one = rig()
    with pytest.raises(UsageError):
        one.probe.start(5)


def test_both_protocols_are_tried_at_once_and_all_families() -> None:
    one = rig(V4, V6)
    assert {t.destination for t in one.of(Transmit)} == {A, A6}
    assert {d.remote for d in one.of(Dial)} == {A, A6}
    # A socket is bound to this host's own address of its family, and handles do not collide.
    for opened in one.of(OpenUdp):
        assert opened.local.host in ("192.168.1.2", "fd00::2")
    handles = [o.handle for o in (*one.of(OpenUdp), *one.of(Dial))]
    assert len(handles) == len(set(handles))


def test_one_protocol_alone_leaves_the_other_in_peace_at_first() -> None:
    assert rig(tcp=False).of(Dial) == []
    assert rig(udp=False).of(Transmit) == []


def test_nobody_answers() -> None:
    one = rig()
    finished = one.to_the_end()
    (seen,) = finished.observations
    assert seen.udp is not None
    assert seen.tcp is not None
    assert seen.udp.complete
    assert seen.tcp.complete
    assert seen.primary is None
    assert 2 * SECOND < one.now < 10 * SECOND
    assert one.of(Progress)[-1].done == one.of(Progress)[-1].total


def test_the_budget_ends_it_and_every_socket_is_shut() -> None:
    one = rig(budget=SECOND)
    finished = one.to_the_end()
    assert one.now == SECOND
    (seen,) = finished.observations
    assert seen.udp is not None
    assert not seen.udp.complete
    asked_for = {o.handle for o in (*one.of(OpenUdp), *one.of(Dial))}
    assert {s.handle for s in one.of(Shut)} == asked_for
    assert one.probe.finished


def test_an_early_deadline_does_nothing() -> None:
    one = rig()
    before = len(one.outputs)
    one.probe.on_deadline(0)
    one.drain()
    assert len(one.outputs) == before


def test_retransmissions_are_identical_and_back_off() -> None:
    one = rig(tcp=False, budget=3 * SECOND)
    times: list[int] = []
    while (deadline := one.probe.deadline()) is not None and deadline < 2 * SECOND:
        sent = len(one.of(Transmit))
        one.now = deadline
        one.probe.on_deadline(deadline)
        one.drain()
        times += [deadline] * (len(one.of(Transmit)) - sent)
    steps = [after - before for before, after in pairwise(times)]
    assert len(steps) > 5
    assert steps == sorted(steps)
    assert len({t.data for t in one.of(Transmit)}) == 1


def stray_answer() -> bytes:
    request = Message.request(Method.BINDING, bytes(12))
    return encode(Message.success(request))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", DropReason.TOO_SHORT),
        (b"\xff" * 40, DropReason.NOT_STUN),
        (stray_answer(), DropReason.UNKNOWN_TRANSACTION),
        (encode(Message.request(Method.BINDING, bytes(12))), DropReason.UNEXPECTED_CLASS),
        (encode(Message.request(0x003, bytes(12))), DropReason.UNKNOWN_METHOD),
    ],
)
def test_what_is_not_used_is_dropped_with_its_reason(data: bytes, reason: DropReason) -> None:
    one = rig()
    one.probe.receive(Received(data, A, one.local[0]), 1)
    one.drain()
    assert [(d.reason, d.source) for d in one.of(Dropped)] == [(reason, A)]


def test_an_answer_from_an_address_that_was_not_asked_is_dropped() -> None:
    one = rig()
    request = one.of(Transmit)[0]
    answer = bytearray(request.data)
    answer[0] |= 1  # the class bit of a success response
    stranger = Address("198.51.100.1", 3478)
    one.probe.receive(Received(bytes(answer), stranger, request.source), 1)
    one.drain()
    assert one.of(Dropped)[0].reason is DropReason.UNEXPECTED_SOURCE


def test_events_of_sockets_that_are_not_its_own_do_no_harm() -> None:
    one = rig()
    local = Address("192.168.1.2", 1)
    for event in (
        Accepted(999, -1, local, A),
        Arrived(999, b"x"),
        Closed(999, Cause.RESET),
        Connected(999, local, A),
        Opened(999, local),
        Undeliverable(local, A, 3, 3),
        Undeliverable(Address("fd00::9", 1), A6, 1, 4),
    ):
        one.probe.on_socket(event, 1)
    one.drain()
    # Whoever connected uninvited is sent away.
    assert one.of(Shut) == [Shut(-1, reset=True)]


def test_icmp_ends_the_waiting_for_a_server_that_is_not_there() -> None:
    one = rig(tcp=False)
    while one.now < SECOND and (deadline := one.probe.deadline()) is not None:
        one.now = deadline
        for transmit in one.of(Transmit)[-1:]:
            error = Undeliverable(transmit.source, A, 3, 3)
            one.probe.on_socket(error, one.now)
        one.probe.on_deadline(one.now)
        one.drain()
    assert len(one.of(Transmit)) < 6


def test_a_host_without_sockets_ends_without_a_verdict() -> None:
    probe = Probe(ProbeConfig((V4,), tcp=False), entropy=random.Random(1).randbytes)
    probe.start(0)
    now, finished = 0, None
    for _ in range(200):
        while (output := probe.poll()) is not None:
            match output:
                case OpenUdp(handle):
                    probe.on_socket(Closed(handle, Cause.NOT_PERMITTED), now)
                case Dial(handle):
                    probe.on_socket(Closed(handle, Cause.NOT_PERMITTED), now)
                case Finished():
                    finished = output
                case _:
                    pass
        deadline = probe.deadline()
        if deadline is None:
            break
        now = max(now, deadline)
        probe.on_deadline(now)
    assert finished is not None
    assert finished.observations[0].udp is not None
    assert finished.observations[0].udp.contacts == ()


def test_progress_reads_well() -> None:
    assert str(Progress("UDP mapping", 3, 10)) == "UDP mapping (3 of 10)"
