"""The tap: it shows everything that passes, and neither side can tell that it is there."""

from __future__ import annotations

from collections import deque

from nattype.trace import Step, Tap, Traced
from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Instant,
    Opened,
    OpenUdp,
    Output,
    Received,
    Shut,
    SocketEvent,
    Transmit,
    Write,
)

HOST, SERVER = Address("192.168.1.2", 5000), Address("192.0.2.1", 3478)


class Scripted:
    """A machine that gives what it was told to give, and notes what it gets."""

    def __init__(self) -> None:
        self.outputs: deque[Output | str] = deque()
        self.got: list[object] = []

    def receive(self, packet: Received, now: Instant) -> None:
        self.got.append((packet, now))

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        self.got.append((event, now))

    def on_deadline(self, now: Instant) -> None:
        self.got.append(now)

    def deadline(self) -> Instant | None:
        return 77

    def poll(self) -> Output | str | None:
        return self.outputs.popleft() if self.outputs else None


def tapped() -> tuple[Scripted, Tap[str], list[Traced]]:
    machine, shown = Scripted(), []
    return machine, Tap(machine, shown.append), shown


def test_everything_passes_unchanged() -> None:
    machine, tap, _ = tapped()
    outputs = [
        OpenUdp(1, HOST),
        Transmit(b"x", SERVER, HOST),
        Dial(2, HOST, SERVER),
        Write(2, b"y"),
        Shut(2),
        "an event",
    ]
    machine.outputs.extend(outputs)
    assert [tap.poll() for _ in range(len(outputs) + 1)] == [*outputs, None]
    packet = Received(b"z", SERVER, HOST)
    events: list[SocketEvent] = [
        Opened(1, HOST),
        Connected(2, HOST, SERVER),
        Arrived(2, b"w"),
        Accepted(1, -1, HOST, SERVER),
        Closed(2, Cause.RESET),
    ]
    tap.receive(packet, 5)
    for event in events:
        tap.on_socket(event, 6)
    tap.on_deadline(9)
    assert machine.got == [(packet, 5), *((event, 6) for event in events), 9]
    assert tap.deadline() == 77


def test_datagrams_are_shown_with_both_ends() -> None:
    machine, tap, shown = tapped()
    tap.on_deadline(3)
    machine.outputs.append(Transmit(b"out", SERVER, HOST))
    tap.poll()
    tap.receive(Received(b"in", SERVER, HOST), 8)
    assert shown == [
        Traced(3, Step.SENT, "UDP", HOST, SERVER, b"out"),
        Traced(8, Step.RECEIVED, "UDP", HOST, SERVER, b"in"),
    ]


def test_streams_are_shown_from_dial_to_end() -> None:
    machine, tap, shown = tapped()
    any_port = Address(HOST.host, 0)
    machine.outputs.append(Dial(4, any_port, SERVER))
    tap.poll()
    tap.on_socket(Connected(4, HOST, SERVER), 10)
    machine.outputs.append(Write(4, b"out"))
    tap.poll()
    tap.on_socket(Arrived(4, b"in"), 20)
    tap.on_socket(Closed(4, Cause.END_OF_STREAM), 30)
    assert shown == [
        Traced(0, Step.DIALLED, "TCP", any_port, SERVER),
        Traced(10, Step.CONNECTED, "TCP", HOST, SERVER),
        Traced(10, Step.SENT, "TCP", HOST, SERVER, b"out"),
        Traced(20, Step.RECEIVED, "TCP", HOST, SERVER, b"in"),
        Traced(30, Step.CLOSED, "TCP", HOST, SERVER, b"", Cause.END_OF_STREAM.value),
    ]


def test_accepted_streams_are_shown_too() -> None:
    _, tap, shown = tapped()
    tap.on_socket(Accepted(1, -1, HOST, SERVER), 1)
    tap.on_socket(Arrived(-1, b"in"), 2)
    assert [traced.step for traced in shown] == [Step.ACCEPTED, Step.RECEIVED]
    assert shown[1].remote == SERVER


def test_sockets_that_never_were_a_stream_are_not_shown() -> None:
    _, tap, shown = tapped()
    tap.on_socket(Opened(1, HOST), 1)
    tap.on_socket(Closed(1, Cause.ADDRESS_IN_USE), 2)
    assert shown == []
