"""Listening ports: the bases of passive and simultaneous-open candidates (RFC 6544 section 5.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ice.base import Base, BaseId
from ice.candidate import TcpType
from ice.config import Interface
from ice.gather.ports import ports_to_try
from ice.tcp.switchboard import Switchboard
from stun.sansio import (
    Accepted,
    Address,
    Cause,
    Closed,
    Entropy,
    Handle,
    Instant,
    Opened,
    SocketEvent,
)


@dataclass(frozen=True, slots=True)
class Place:
    """What candidates are gathered for: a component of a stream, on an interface."""

    interface: Interface
    stream: int
    component: int

    def base(self, number: BaseId, port: int, tcptype: TcpType) -> Base:
        """Make a base of this host."""
        address = Address(self.interface.host, port)
        return Base(
            number,
            self.stream,
            self.component,
            "tcp",
            address,
            tcptype,
            network=self.interface.name,
        )


@dataclass(frozen=True, slots=True)
class PortEvents:
    """What a port tells whoever opened it."""

    opened: Callable[[Port, Address, Instant], None]
    failed: Callable[[Port, str, Instant], None]
    accepted: Callable[[Port, Handle, Address, Instant], None]


class Port:
    """A port that listens, and that connections are dialled from.

    With ``ports`` it is one of that range.  As the port is shared (SO_REUSEPORT), it would be
    shared with another agent of the same user as well, and each would accept connections of the
    other.  So a port that somebody chose is first opened for this agent alone: that fails if
    anybody else has it.  A port that the system chooses is nobody's, and with ``shared`` the one
    that was chosen may have other sockets of whoever chose it.
    """

    __slots__ = (
        "_board", "_events", "_left", "_shared", "_trying", "base", "handle", "place", "tcptype",
    )  # fmt: skip

    def __init__(
        self,
        board: Switchboard,
        events: PortEvents,
        place: Place,
        tcptype: TcpType,
        *,
        ports: tuple[int, int] | None,
        entropy: Entropy,
        shared: bool = False,
    ) -> None:
        self._board = board
        self._events = events
        self._shared = shared
        self._left = ports_to_try(ports, entropy)
        self._trying: int | None = None
        """The port that is tried for this agent alone."""
        self.place = place
        self.tcptype = tcptype
        self.handle: Handle | None = None
        self.base: Base | None = None
        """Once it is open."""
        self._next()

    def _next(self) -> bool:
        port = next(self._left, None)
        if port is None:
            return False
        self._trying = None if self._shared else port or None
        local = Address(self.place.interface.host, port)
        self.handle = self._board.listen(self, local, exclusive=self._trying is not None)
        return True

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to the listener."""
        match event:
            case Opened(handle, local) if self._trying is not None:
                self._trying = None
                self._board.shut(handle)
                self.handle = self._board.listen(self, local)
            case Opened(_, local):
                self._events.opened(self, local, now)
            case Closed(handle, cause, detail):
                self._board.owners.pop(handle, None)
                self.handle = None
                if self.base is None and cause is Cause.ADDRESS_IN_USE and self._next():
                    return
                self._events.failed(self, detail or cause.value, now)
            case Accepted(_, handle, _, remote):
                if self.base is None:
                    self._board.shut(handle, reset=True)
                else:
                    self._events.accepted(self, handle, remote, now)
            case _:
                pass  # the other events are not of listeners

    def shut(self) -> None:
        """Listen no more."""
        if self.handle is not None:
            self._board.shut(self.handle)
            self.handle = None
