"""The virtual driver: gives a protocol machine the sockets of a simulated host and virtual time.

Theory of operation.  An :class:`Attachment` does what :mod:`stun.aio` and :mod:`stun.blocking` do
with real sockets, under the same rules: after every call into the machine it polls until there is
nothing left; what happens to sockets meanwhile waits in a queue and is told one by one, each
followed by polling again.  So the machine cannot tell where it runs.

TLS and DTLS are the one thing that is missing: what asks for them is answered by
:class:`~stun.sansio.Closed` with ``TLS_FAILED``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from nattype.lab.sim.clock import Clock
from nattype.lab.sim.host import Host, Listener, UdpSocket
from nattype.lab.sim.tcp import Connection
from nattype.lab.sim.wire import Packet
from stun.sansio import (
    Cause,
    Closed,
    Dial,
    Handle,
    Hold,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Received,
    Security,
    Shut,
    SocketEvent,
    SocketMachine,
    Transmit,
    Write,
)

Event = TypeVar("Event")

NO_TLS: Final = "the simulated network has no TLS"
STUCK_AFTER: Final = 10_000
"""So many deadlines at one instant mean a machine that never moves its deadline."""


class Attachment(Generic[Event]):
    """A machine on a host.  Made by :meth:`~nattype.lab.sim.world.World.attach`.

    ``events`` holds what the machine told, oldest first, unless ``on_event`` takes it.  After a
    command to the machine call :meth:`pump`; running the world does so for every machine first.
    """

    def __init__(
        self,
        machine: SocketMachine[Event],
        host: Host,
        clock: Clock,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.machine = machine
        self.host = host
        self.events: list[Event] = []
        self.pending: deque[SocketEvent] = deque()
        self._on_event = self.events.append if on_event is None else on_event
        self._clock = clock
        self._sockets: dict[Handle, UdpSocket | Listener | Connection] = {}
        self._accepted = 0
        self._armed: Instant | None = None
        self._timer: int | None = None
        self._last_wake: Instant = -1
        self._wakes = 0
        self._pumping = False
        self._detached = False
        self._outputs: dict[type, Callable[[Any], None]] = {
            Transmit: self._transmit,
            OpenUdp: self._open_udp,
            Listen: self._listen,
            Dial: self._dial,
            Write: self._write,
            Hold: self._hold,
            Shut: self._shut,
        }

    # Calls into the machine. ---------------------------------------------------------------------

    def pump(self) -> None:
        """Tell the machine what is pending, carry out what it asks, keep what it tells."""
        if self._pumping or self._detached:
            return
        self._pumping = True
        machine, pending, outputs = self.machine, self.pending, self._outputs
        poll = machine.poll
        try:
            while True:
                while (output := poll()) is not None:
                    carry_out = outputs.get(type(output))
                    if carry_out is None:
                        self._on_event(output)  # type: ignore[arg-type]  # not an Output: an event
                    else:
                        carry_out(output)
                if not pending:
                    break
                machine.on_socket(pending.popleft(), self._clock.now)
        finally:
            self._pumping = False
        deadline = machine.deadline()
        if deadline != self._armed:
            self._disarm()
            if deadline is not None:
                self._armed = deadline
                self._timer = self._clock.at(deadline, self._wake)

    def datagram(self, packet: Packet) -> None:
        """Take a datagram for one of the machine's sockets."""
        if self._detached:
            return
        self.machine.receive(
            Received(packet.data, packet.source, packet.destination), self._clock.now
        )
        self.pump()

    def detach(self) -> None:
        """Take the machine off the host as if its process had been killed: every socket closes."""
        for handle in list(self._sockets):
            self._close(handle, reset=False)
        self.pending.clear()
        self._disarm()
        self._detached = True

    def _disarm(self) -> None:
        if self._timer is not None:
            self._clock.cancel(self._timer)
        self._armed = self._timer = None

    def _wake(self, _: object, __: object) -> None:
        self._armed = self._timer = None
        now = self._clock.now
        self._wakes = self._wakes + 1 if now == self._last_wake else 1
        self._last_wake = now
        if self._wakes > STUCK_AFTER:
            raise RuntimeError(
                f"{type(self.machine).__name__} on {self.host.name} does not move its deadline "
                f"past {now} ns"
            )
        self.machine.on_deadline(now)
        self.pump()

    # What a machine asks for. --------------------------------------------------------------------

    def _transmit(self, output: Transmit) -> None:
        ttl: int | None = getattr(output, "ttl", None)
        self.host.send_udp(self, output.source, output.destination, output.data, ttl)

    def _open_udp(self, output: OpenUdp) -> None:
        if self._wants_tls(output.handle, output.security):
            return
        self._opened(output.handle, self.host.open_udp(self, output.local))

    def _wants_tls(self, handle: Handle, security: Security) -> bool:
        wanted = security is not Security.NONE
        if wanted:
            self.pending.append(Closed(handle, Cause.TLS_FAILED, NO_TLS))
        return wanted

    def _listen(self, output: Listen) -> None:
        if self._wants_tls(output.handle, output.security):
            return
        self._opened(
            output.handle,
            self.host.listen(self, output.handle, output.local, silent=output.silent),
        )

    def _opened(self, handle: Handle, socket: UdpSocket | Listener | Cause) -> None:
        if isinstance(socket, Cause):
            self.pending.append(Closed(handle, socket))
            return
        self._sockets[handle] = socket
        self.pending.append(Opened(handle, socket.local))

    def _dial(self, output: Dial) -> None:
        if output.server_name is not None or output.datagrams:
            self.pending.append(Closed(output.handle, Cause.TLS_FAILED, NO_TLS))
            return
        connection = self.host.dial(self, output.handle, output.local, output.remote, output.ttl)
        if isinstance(connection, Cause):
            self.pending.append(Closed(output.handle, connection))
        else:
            self._sockets[output.handle] = connection

    def _write(self, output: Write) -> None:
        connection = self._sockets.get(output.handle)
        if isinstance(connection, Connection):
            connection.write(output.data)

    def _hold(self, output: Hold) -> None:
        connection = self._sockets.get(output.handle)
        if isinstance(connection, Connection):
            connection.hold(held=output.held)

    def _shut(self, output: Shut) -> None:
        self._close(output.handle, reset=output.reset)

    def _close(self, handle: Handle, *, reset: bool) -> None:
        socket = self._sockets.pop(handle, None)
        match socket:
            case UdpSocket():
                self.host.close_udp(socket)
            case Listener():
                self.host.close_listener(socket)
            case Connection():
                socket.shut(reset=reset)
            case None:
                return
        # The contract of Shut: no event follows, not even one that is waiting to be told.
        for event in [e for e in self.pending if getattr(e, "handle", None) == handle]:
            self.pending.remove(event)

    # What a host's TCP asks for. -----------------------------------------------------------------

    def adopt(self, connection: Connection) -> Handle:
        """Give an accepted connection the next negative number."""
        self._accepted -= 1
        self._sockets[self._accepted] = connection
        return self._accepted

    def release(self, handle: Handle) -> None:
        """Forget a connection that is over."""
        self._sockets.pop(handle, None)
