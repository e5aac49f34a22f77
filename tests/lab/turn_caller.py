"""A TURN client that is led by hand over sockets of a laboratory: each octet can be looked at."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Any, Protocol, TypeVar

from stun.credentials import LongTerm
from stun.discovery import Target
from stun.framing import StunStream
from stun.sansio import (
    SECOND,
    Address,
    Arrived,
    Connected,
    Dial,
    Handle,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
    Write,
)
from stun.sockaddr import from_sockaddr
from turn.client.config import ClientConfig
from turn.client.events import (
    Allocated,
    Bound,
    ClientEvent,
    Failed,
    Moved,
    PeerRefused,
    Permitted,
    Refreshed,
    Released,
)
from turn.client.machine import Client

USER = LongTerm("alice", "sesame")
PATIENCE = 10.0
"""Seconds to wait for what must come; only a failing test waits that long."""

Told = TypeVar("Told")


class Place(Protocol):
    """Where a client is: a machine of any laboratory."""

    @property
    def ipv4(self) -> str: ...

    @property
    def ipv6(self) -> str: ...

    def socket(self, family: int, kind: int, /) -> socket.socket: ...


class Caller:
    """A TURN client with one socket of a machine, which it reaches turnd by.

    It has an allocation when it is made.  Further ``options`` are those of
    :class:`turn.client.config.ClientConfig`; no channel is bound but by :meth:`bind`.
    """

    def __init__(self, machine: Place, server: Target, **options: Any) -> None:
        config = ClientConfig(server, **{"credentials": USER, "bind_after": 0, **options})
        self.client = Client(config, entropy=os.urandom)
        self.messages: list[bytes] = []
        """What turnd sent and nobody has looked at, each message as it was."""
        self._machine = machine
        self._socks: dict[Handle, socket.socket] = {}
        self._stream = StunStream(channel_data=True)
        self._events: list[ClientEvent] = []
        self.client.allocate(time.monotonic_ns())
        self.allocated = self.wait(Allocated)
        self.relayed = self.allocated.relayed[0]

    # The client's commands. -----------------------------------------------------------------------

    def permit(self, peer: Address) -> None:
        """Let a host send."""
        self.client.permit(peer, now=time.monotonic_ns())
        self.wait(Permitted)

    def bind(self, peer: Address) -> int:
        """Bind a channel, and have the permission for it; return the channel's number."""
        self.client.bind(peer, time.monotonic_ns())
        channel = self._await(Bound).channel
        self.messages.clear()
        return channel

    def send(self, peer: Address, data: bytes, *, dont_fragment: bool = False) -> None:
        """Send a datagram, through the peer's channel if there is one."""
        self.client.send(peer, data, time.monotonic_ns(), dont_fragment=dont_fragment)
        self._obey()

    def refresh(self) -> None:
        """Refresh the allocation."""
        self.client.refresh(time.monotonic_ns())
        self.wait(Refreshed)

    def move(self) -> None:
        """Go on from another port (RFC 8016)."""
        self.client.move(time.monotonic_ns())
        self.wait(Moved)

    def close(self) -> None:
        """Give the allocation back, whatever came that nobody has looked at."""
        try:
            self.client.release(time.monotonic_ns())
            self._await(Released)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the socket without a word to the server."""
        for sock in self._socks.values():
            sock.close()
        self._socks.clear()

    def wait(self, kind: type[Told]) -> Told:
        """Return the next event, which is to be of this kind."""
        event = self._next(kind.__name__)
        assert isinstance(event, kind), event
        return event

    def _await(self, kind: type[Told]) -> Told:
        """Return the next event of this kind, and forget those before it."""
        while not isinstance(event := self._next(kind.__name__), kind):
            pass
        return event

    def _next(self, wanted: str) -> ClientEvent:
        end = time.monotonic() + PATIENCE
        self._obey()
        while not self._events:
            assert time.monotonic() < end, f"no {wanted} within {PATIENCE} s"
            self._step(end)
        return self._events.pop(0)

    # The octets on the wire. ----------------------------------------------------------------------

    @property
    def sock(self) -> socket.socket:
        """The socket that it uses, the newest when it has moved."""
        return [*self._socks.values()][-1]

    @property
    def local(self) -> Address:
        """Where it sends from."""
        return from_sockaddr(self.sock.getsockname())

    @property
    def server(self) -> Address:
        """Where turnd is."""
        return self.client.config.server.address

    def write(self, message: bytes) -> None:
        """Send a message as it is, over UDP."""
        self.sock.sendto(message, self.server)

    def read(self) -> bytes:
        """Return the next message as it is; the client does not learn of it."""
        data, source = self.sock.recvfrom(65536)
        assert from_sockaddr(source) == self.server
        return data

    # Its driver. ----------------------------------------------------------------------------------

    def _obey(self) -> None:
        """Do what the machine asks for; keep what it tells."""
        while (output := self.client.poll()) is not None:
            match output:
                case OpenUdp(handle):
                    self._open(handle, socket.SOCK_DGRAM)
                    self.client.on_socket(Opened(handle, self.local), time.monotonic_ns())
                case Dial(handle, _, remote):
                    self._open(handle, socket.SOCK_STREAM).connect(remote)
                    connected = Connected(handle, self.local, remote)
                    self.client.on_socket(connected, time.monotonic_ns())
                case Transmit(data, destination, source=source):
                    self._at(source).sendto(data, destination)
                case Write(handle, data):
                    self._socks[handle].sendall(data)
                case Shut(handle):
                    self._socks.pop(handle).close()
                case _:
                    assert not isinstance(output, Failed | PeerRefused), output
                    self._events.append(output)  # type: ignore[arg-type]

    def _open(self, handle: Handle, kind: socket.SocketKind) -> socket.socket:
        machine, ipv6 = self._machine, self.server.is_ipv6
        sock = machine.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, kind)
        self._socks[handle] = sock
        sock.settimeout(PATIENCE)
        wanted = self.client.config.local
        sock.bind(wanted or (machine.ipv6 if ipv6 else machine.ipv4, 0))
        return sock

    def _at(self, local: Address) -> socket.socket:
        for sock in self._socks.values():
            if from_sockaddr(sock.getsockname()) == local:
                return sock
        return self.sock

    def _step(self, end: float) -> None:
        """Wait for turnd or for the client's next deadline."""
        due = self.client.deadline()
        until = end if due is None else min(end, due / SECOND)
        handles = {sock: handle for handle, sock in self._socks.items()}
        readable, _, _ = select.select([*handles], [], [], max(0.0, until - time.monotonic()))
        now = time.monotonic_ns()
        if not readable:
            self.client.on_deadline(now)
        for sock in readable:
            if sock.type == socket.SOCK_DGRAM:
                data, source = sock.recvfrom(65536)
                self.messages.append(data)
                local = from_sockaddr(sock.getsockname())
                self.client.receive(Received(data, from_sockaddr(source), local), now)
            else:
                data = sock.recv(65536)
                assert data, "turnd closed the connection"
                self.messages += self._stream.feed(data)
                self.client.on_socket(Arrived(handles[sock], data), now)
        self._obey()
