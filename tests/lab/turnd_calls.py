"""Calls through the turnd of a :class:`tests.lab.turnd_world.World`, by sockets and by frames."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from stun.sansio import Address
from stun.sockaddr import from_sockaddr
from tests.lab import frames
from tests.lab.frames import Datagram
from tests.lab.turn_caller import PATIENCE, Caller
from tests.lab.turnd_world import ROOM, SO_RCVBUFFORCE, Host, World

ETH_P_ALL = 3


class Tap:
    """One end of a cable: what comes in there, and frames that are sent as they are."""

    def __init__(self, host: Host, interface: str) -> None:
        self._sock = host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._sock.bind((interface, ETH_P_ALL))

    def close(self) -> None:
        """Look no longer."""
        self._sock.close()

    def send(self, *octets: bytes) -> None:
        """Send frames."""
        for one in octets:
            self._sock.send(one)

    def next(self, payload: bytes | None = None) -> frames.Datagram:
        """Return the next UDP datagram that comes in, with this payload; all must be well made."""
        end = time.monotonic() + PATIENCE
        while True:
            left = end - time.monotonic()
            assert left > 0, f"nothing came in with {payload!r}"
            if not select.select([self._sock], [], [], left)[0]:
                continue
            octets, (_, _, kind, *_) = self._sock.recvfrom(65536)
            seen = frames.read(octets) if kind != socket.PACKET_OUTGOING else None
            if seen is not None and payload in {None, seen.packet.payload}:
                assert seen.header_right, octets.hex()
                assert seen.checksum_right, octets.hex()
                return seen.packet


class Call(NamedTuple):
    """A client with a channel to a peer."""

    caller: Caller
    channel: int
    peer: Address
    sock: socket.socket
    """The peer's."""

    @property
    def client(self) -> Address:
        return self.caller.local

    def datagram(self, payload: bytes, *, padding: int = 0) -> Datagram:
        """Return ChannelData as a packet from the client to turnd, to be changed at will."""
        message = channel_data(self.channel, payload, padding)
        return Datagram(self.client, self.caller.server, message)

    def returned(self, payload: bytes) -> Datagram:
        """Return a packet from the peer to the relayed transport address."""
        return Datagram(self.peer, self.caller.relayed, payload)

    def heard(self, payload: bytes) -> bool:
        """Whether this is what comes to the client next, in its channel."""
        return self.caller.read() == channel_data(self.channel, payload)

    def both_ways(self, payload: bytes) -> None:
        """Send this there and back; it has to arrive."""
        self.caller.write(channel_data(self.channel, payload))
        assert received(self.sock) == (payload, self.caller.relayed)
        self.sock.sendto(payload, self.caller.relayed)
        assert self.heard(payload)


Dial = Callable[..., Call]
"""What the fixture ``dial`` is: :func:`open_call` in its own world."""


def open_call(
    world: World, stack: ExitStack, *, client6: bool = False, peer6: bool = False, **options: Any
) -> Call:
    """Return a call between these families, which ends with the stack.

    ``options`` are those of :meth:`World.caller`.
    """
    sock = stack.enter_context(world.peer.bind(ipv6=peer6))
    caller = world.caller(ipv6=client6, family=6 if peer6 else 4, **options)
    stack.callback(caller.abandon)
    caller.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
    peer = from_sockaddr(sock.getsockname())
    call = Call(caller, caller.bind(peer), peer, sock)
    # Everybody's link-layer address is known from now on.
    call.both_ways(b"first")
    return call


class Wire:
    """Both far ends of the cables: packets are sent from there as they are, and seen there."""

    def __init__(self, world: World, stack: ExitStack) -> None:
        self._mac = world.mac
        self._taps: dict[str, Tap] = {}
        for name, host in (("client", world.client), ("peer", world.peer)):
            self._taps[name] = tap = Tap(host, "wire")
            stack.callback(tap.close)

    def send(self, end: str, *datagrams: Datagram) -> None:
        """Send packets from an end to turnd."""
        for datagram in datagrams:
            self.send_packets(end, *frames.packets(datagram))

    def send_packets(
        self, end: str, *packets: bytes, vlan: int | None = None, to: str | None = None
    ) -> None:
        """Send packets that were made before; ``to``: a link-layer address other than turnd's."""
        for packet in packets:
            to = to or self._mac[f"server-{end}"]
            self._taps[end].send(frames.frame(to, self._mac[end], packet, vlan=vlan))

    def next(self, end: str, payload: bytes | None = None) -> Datagram:
        """Return the next datagram that comes to an end, with this payload."""
        return self._taps[end].next(payload)

    def until(self, end: str, payload: bytes) -> list[bytes]:
        """Return the payloads of all that comes to an end before this one."""
        found = []
        while (came := self._taps[end].next().payload) != payload:
            found.append(came)
        return found


def channel_data(channel: int, payload: bytes, padding: int = 0) -> bytes:
    """Return a ChannelData message (RFC 8656 section 12.4); its padding may be anything."""
    behind = (b"\xa5\xff\x01" * padding)[:padding]
    return channel.to_bytes(2) + len(payload).to_bytes(2) + payload + behind


def received(sock: socket.socket) -> tuple[bytes, Address]:
    """Return the next datagram and where it came from."""
    data, source = sock.recvfrom(65536)
    return data, from_sockaddr(source)


def waiting(sock: socket.socket, patience: float = 0.2) -> list[bytes]:
    """Return what has come, and what comes until nothing has for ``patience`` seconds."""
    found = []
    while select.select([sock], [], [], patience)[0]:
        found.append(sock.recv(65536))
    return found
