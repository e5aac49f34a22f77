"""A judge between a TURN server machine and its driver: everything that passes must be allowed.

The :class:`Oracle` has the shape of a machine and hands everything on.  It knows nothing of the
server's insides: from the requests that it sees arrive, and the success responses that it sees
leave, it keeps a model of its own of who may do what until when (RFC 8656 sections 8, 9 and 12),
and holds each datagram that the server sends against it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from stun import attributes as a
from stun.codec import decode
from stun.message import Message
from stun.registry import Class, Method
from stun.sansio import (
    SECOND,
    Address,
    Closed,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Shut,
    SocketEvent,
    Transmit,
)
from turn.server.machine import Server

PERMISSION, CHANNEL = 300 * SECOND, 600 * SECOND


@dataclass
class Held:
    """What one client has, by what it was told."""

    relays: dict[Address, Instant]
    permissions: dict[str, Instant] = field(default_factory=dict)
    channels: dict[int, tuple[Address, Instant]] = field(default_factory=dict)

    def expires(self) -> Instant:
        """When the last relayed transport address ends."""
        return max(self.relays.values(), default=0)


class Oracle:
    """Stands in front of ``server``, which serves UDP clients at ``listeners``.

    ``relayed`` counts what passed to ``"peer"`` and to ``"client"``; a run in which nothing did
    proves nothing.
    """

    def __init__(self, server: Server, listeners: set[Address]) -> None:
        self.server = server
        self.listeners = listeners
        self.held: dict[Address, Held] = {}
        self.relayed: Counter[str] = Counter()
        self.events: list[Any] = []
        self._asked: dict[tuple[Address, bytes], Message] = {}
        self._answered: dict[tuple[Address, bytes], bytes] = {}
        self._granted: set[tuple[Address, bytes]] = set()
        self._open: dict[Handle, Address] = {}
        self._cause: Received | None = None
        self._now: Instant = 0

    # The shape of a machine. ----------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Note what came, and hand it on."""
        self._now, self._cause = now, packet
        if packet.local in self.listeners and packet.data[:1] < b"\x40":
            message = decode(packet.data)
            if message.message_class is Class.REQUEST:
                self._asked[packet.source, message.transaction_id] = message
        self.server.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Hand it on."""
        self._now = now
        if isinstance(event, Closed):
            self._open.pop(event.handle, None)
        elif isinstance(event, Opened):
            self._open[event.handle] = event.local
        self.server.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        """Hand it on."""
        self._now, self._cause = now, None
        self.server.on_deadline(now)

    def deadline(self) -> Instant | None:
        """Say what the server says; unless it is late, nothing may be left that is over."""
        due = self.server.deadline()
        if due is None or due > self._now:
            self.inspect()
        return due

    def poll(self) -> Any:
        """Judge what the server wants to be done."""
        output = self.server.poll()
        if isinstance(output, Transmit):
            if output.source in self.listeners:
                self._to_client(output)
            else:
                self._to_peer(output)
        elif isinstance(output, Shut):
            self._open.pop(output.handle, None)
        elif output is not None and not isinstance(output, OpenUdp):
            self.events.append(output)
        return output

    # The law. -------------------------------------------------------------------------------------

    def _to_peer(self, sent: Transmit) -> None:
        cause, now = self._cause, self._now
        assert cause is not None, "nobody asked for this datagram"
        held = self.held.get(cause.source)
        assert held is not None, f"{cause.source} has no allocation"
        assert now < held.relays.get(sent.source, 0), "relayed after the end of the allocation"
        host = sent.destination.host
        assert now < held.permissions.get(host, 0), f"relayed to {host} without a permission"
        if cause.data[0] >= 0x40:
            peer, until = held.channels[int.from_bytes(cause.data[:2])]
            assert now < until, "relayed over a channel that is over"
            assert (sent.destination, sent.data) == (peer, cause.data[4:][: len(sent.data)])
        else:
            message = decode(cause.data)
            assert sent.data == message.get(a.DATA)
            assert sent.destination == message.get(a.XOR_PEER_ADDRESS)
        self.relayed["peer"] += 1

    def _to_client(self, sent: Transmit) -> None:
        if sent.data[0] < 0x40:
            message = decode(sent.data)
            if message.message_class is not Class.INDICATION:
                self._answer(sent.destination, message)
                return
            peer, data = message.get(a.XOR_PEER_ADDRESS), message.get(a.DATA)
            if message.has(a.ICMP):
                return
        else:
            number = int.from_bytes(sent.data[:2])
            peer, until = self.held[sent.destination].channels[number]
            assert self._now < until, "ChannelData over a channel that is over"
            data = sent.data[4:]
        cause, held = self._cause, self.held.get(sent.destination)
        assert cause is not None, "nobody sent this datagram"
        assert held is not None, "data for a client without an allocation"
        assert self._now < held.relays.get(cause.local, 0), "data after the end of the allocation"
        assert (cause.source, cause.data) == (peer, data)
        assert self._now < held.permissions.get(cause.source.host, 0), "data without a permission"
        self.relayed["client"] += 1

    def _answer(self, client: Address, response: Message) -> None:
        key = (client, response.transaction_id)
        if response.message_class is not Class.SUCCESS or response.method == Method.BINDING:
            return
        before = self._answered.setdefault(key, response.wire)
        assert before == response.wire, "the same request got another answer"
        if key not in self._granted:
            self._granted.add(key)
            self._grant(client, self._asked[key], response)

    def _grant(self, client: Address, request: Message, response: Message) -> None:
        now = self._now
        match request.method:
            case Method.ALLOCATE:
                lifetime = response.get(a.LIFETIME)
                assert lifetime is not None
                old = self.held.get(client)
                assert old is None or old.expires() <= now, "two allocations on one five-tuple"
                relays = response.all(a.XOR_RELAYED_ADDRESS)
                self.held[client] = Held(dict.fromkeys(relays, now + lifetime * SECOND))
            case Method.REFRESH:
                self._refresh(self.held[client], request, response)
            case Method.CREATE_PERMISSION:
                for peer in request.all(a.XOR_PEER_ADDRESS):
                    self._permit(self.held[client], peer.host, now + PERMISSION)
            case Method.CHANNEL_BIND:
                self._bind(self.held[client], request)

    def _bind(self, held: Held, request: Message) -> None:
        number, peer = request.get(a.CHANNEL_NUMBER), request.get(a.XOR_PEER_ADDRESS)
        assert number is not None
        assert peer is not None
        held.channels[number] = (peer, self._now + CHANNEL)
        # Longer than section 9 has it: :meth:`turn.server.lifetimes.Lifetimes.bind` says why.
        self._permit(held, peer.host, self._now + CHANNEL)

    def _permit(self, held: Held, host: str, until: Instant) -> None:
        held.permissions[host] = max(until, held.permissions.get(host, 0))

    def _refresh(self, held: Held, request: Message, response: Message) -> None:
        family, lifetime = request.get(a.REQUESTED_ADDRESS_FAMILY), response.get(a.LIFETIME)
        assert lifetime is not None
        for relay in list(held.relays):
            if family in (None, 2 if relay.is_ipv6 else 1):
                held.relays[relay] = self._now + lifetime * SECOND
                if not lifetime:
                    self._end(held, relay)

    def _end(self, held: Held, relay: Address) -> None:
        del held.relays[relay]
        gone = relay.is_ipv6
        held.permissions = {h: t for h, t in held.permissions.items() if (":" in h) is not gone}
        held.channels = {n: c for n, c in held.channels.items() if c[0].is_ipv6 is not gone}

    def inspect(self) -> None:
        """Compare what the server says it has with what it may have."""
        now = self._now
        live = {address for held in self.held.values() for address, t in held.relays.items()
                if now < t}  # fmt: skip
        for session in self.server.sessions():
            held = self.held[session.client]
            assert set(session.relayed) <= live, "an allocation outlives its lifetime"
            assert all(now < held.permissions[host] for host in session.permissions)
            assert all(
                held.channels[number][0] == peer and now < held.channels[number][1]
                for number, peer in session.channels
            )

    def beyond(self) -> set[Address]:
        """Return the sockets that are open and belong to no listener and no allocation."""
        live = {address for held in self.held.values() for address, t in held.relays.items()
                if self._now < t}  # fmt: skip
        return set(self._open.values()) - self.listeners - live
