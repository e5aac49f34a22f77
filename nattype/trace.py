"""What went over the wire, for ``natcheck --explain``: a tap between a machine and its driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Closed,
    Connected,
    Dial,
    Handle,
    Instant,
    Output,
    Received,
    SocketEvent,
    SocketMachine,
    Transmit,
    Write,
)

Event = TypeVar("Event")


class Step(StrEnum):
    """What happened."""

    SENT = "->"
    RECEIVED = "<-"
    DIALLED = "dial"
    CONNECTED = "connected"
    ACCEPTED = "accepted"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Traced:
    """One packet, one piece of a stream, or one thing that happened to a connection."""

    at: Instant
    """Nanoseconds on the driver's clock."""
    step: Step
    transport: str
    """``UDP`` or ``TCP``."""
    local: Address | None
    remote: Address | None
    data: bytes = b""
    detail: str = ""


class Tap(Generic[Event]):
    """Stands in for ``machine`` and shows everything that passes to ``show``; changes nothing."""

    def __init__(self, machine: SocketMachine[Event], show: Callable[[Traced], None]) -> None:
        self._machine = machine
        self._show = show
        self._now: Instant = 0
        self._streams: dict[Handle, tuple[Address | None, Address | None]] = {}

    def receive(self, packet: Received, now: Instant) -> None:
        """Show a datagram that arrived, and pass it on."""
        self._now = now
        self._show(Traced(now, Step.RECEIVED, "UDP", packet.local, packet.source, packet.data))
        self._machine.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Show what happened to a stream, and pass everything on."""
        self._now = now
        match event:
            case Connected(handle, local, remote):
                self._streams[handle] = local, remote
                self._stream(Step.CONNECTED, handle)
            case Accepted(_, handle, local, remote):
                self._streams[handle] = local, remote
                self._stream(Step.ACCEPTED, handle)
            case Arrived(handle, data):
                self._stream(Step.RECEIVED, handle, data)
            case Closed(handle, cause, detail):
                if handle in self._streams:
                    self._stream(Step.CLOSED, handle, detail=detail or cause.value)
                    del self._streams[handle]
            case _:
                pass
        self._machine.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        """Pass the time on."""
        self._now = now
        self._machine.on_deadline(now)

    def deadline(self) -> Instant | None:
        """Pass the machine's deadline on."""
        return self._machine.deadline()

    def poll(self) -> Output | Event | None:
        """Show what is to be sent, and pass it on."""
        output = self._machine.poll()
        match output:
            case Transmit(data, destination, source):
                self._show(Traced(self._now, Step.SENT, "UDP", source, destination, data))
            case Dial(handle, local, remote):
                self._streams[handle] = local, remote
                self._stream(Step.DIALLED, handle)
            case Write(handle, data):
                self._stream(Step.SENT, handle, data)
            case _:
                pass
        return output

    def _stream(self, step: Step, handle: Handle, data: bytes = b"", detail: str = "") -> None:
        local, remote = self._streams.get(handle, (None, None))
        self._show(Traced(self._now, step, "TCP", local, remote, data, detail))
