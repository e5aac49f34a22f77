"""Datagrams from clients to peers and back (RFC 8656 sections 11 and 12).

This is the whole of the relay's work; a data plane takes the most of it off the machine's hands
where there is one.  What is not forwarded is dropped without an answer, as the norm wants it, and
counted.
"""

from __future__ import annotations

from stun.attributes import DATA, DONT_FRAGMENT, ICMP, XOR_PEER_ADDRESS, Icmp
from stun.codec import encode, unknown_required
from stun.errors import DecodeError, DropReason
from stun.message import Message
from stun.registry import Class, Method
from stun.responder import UNDERSTOOD
from stun.sansio import Address, Instant, Received, Transmit, Undeliverable, Write
from turn.server.allocation import Allocation, FlowKey, Relay
from turn.server.core import Core
from turn.server.mobility import Tickets

_HEADER = 4
_DATA = int(Method.DATA)
_INDICATION = Class.INDICATION
_LONGEST = {False: 65_508, True: 65_496}
"""Octets that a Data indication can carry, by whether the peer's address is IPv6: what is left of
65,532 for XOR-PEER-ADDRESS, the header of DATA and FINGERPRINT."""
_REPORTED = {False: (3, 11), True: (1, 2, 3)}
"""By whether it is IPv6.  RFC 8656 section 11.5: "the type is either 3 or 11 for an ICMPv4 [...]
packet or either 1, 2, or 3 for an ICMPv6"."""


class Relaying:
    """Relays datagrams."""

    def __init__(self, core: Core, tickets: Tickets) -> None:
        self._core = core
        self._tickets = tickets

    # From clients. --------------------------------------------------------------------------------

    def channel_data(self, octets: bytes, key: FlowKey, now: Instant) -> None:
        """Relay a ChannelData message to the peer (RFC 8656 section 12.6)."""
        core = self._core
        allocation = core.allocations.get(key)
        if allocation is None:
            core.drop(DropReason.NO_ALLOCATION)
            return
        if len(octets) < _HEADER:
            core.drop(DropReason.TOO_SHORT)
            return
        end = _HEADER + (octets[2] << 8 | octets[3])
        if end > len(octets):
            core.drop(DropReason.LENGTH_MISMATCH)
            return
        if allocation.mobility is not None:
            self._tickets.heard(allocation, key, now)
        channel = allocation.channels.get(octets[0] << 8 | octets[1])
        if channel is None or channel.expires <= now:
            core.drop(DropReason.NO_CHANNEL)
            return
        # What is behind the length is padding: "Over UDP, the padding is not required but MAY be
        # included" (section 12.5).
        self._to_peer(allocation, channel.relay, channel.peer, octets[_HEADER:end], now)

    def send(self, message: Message, key: FlowKey, now: Instant) -> None:
        """Relay what a Send indication has to the peer (RFC 8656 section 11.2)."""
        core = self._core
        allocation = core.allocations.get(key)
        if allocation is None:
            core.drop(DropReason.NO_ALLOCATION)
            return
        if unknown_required(message, UNDERSTOOD):
            core.drop(DropReason.UNKNOWN_COMPREHENSION_REQUIRED)
            return
        try:
            peer, data = message.get(XOR_PEER_ADDRESS), message.get(DATA)
            dont_fragment = message.get(DONT_FRAGMENT) is not None
        except DecodeError as error:
            core.drop(error.reason)
            return
        if peer is None or data is None or peer.port == 0:
            core.drop(DropReason.BAD_ATTRIBUTE_VALUE)
            return
        if allocation.mobility is not None:
            self._tickets.heard(allocation, key, now)
        relay = allocation.relay_for(ipv6=peer.is_ipv6)
        if relay is None or allocation.tcp:
            core.drop(DropReason.NO_PERMISSION)
        else:
            self._to_peer(allocation, relay, peer, data, now, dont_fragment=dont_fragment)

    def _to_peer(
        self,
        allocation: Allocation,
        relay: Relay,
        peer: Address,
        data: bytes,
        now: Instant,
        *,
        dont_fragment: bool = False,
    ) -> None:
        core = self._core
        if relay.expires <= now:
            core.drop(DropReason.NO_ALLOCATION)
            return
        # For a channel too: the relayed transport address that it was bound to may be gone, and its
        # port some program's of this host.
        destination = core.reach(peer)
        if destination is None:
            core.drop(DropReason.REFUSED_BY_POLICY)
            return
        until = allocation.permissions.get(peer.host)
        if until is None or until <= now:
            core.drop(DropReason.NO_PERMISSION)
            return
        meter = allocation.meter
        if not meter.take(len(data), now):
            core.drop(DropReason.RATE_LIMITED)
            return
        meter.usage.packets_from_client += 1
        meter.usage.octets_from_client += len(data)
        core.outbox.append(Transmit(data, destination, relay.local, dont_fragment))

    # From peers. ----------------------------------------------------------------------------------

    def from_peer(self, relay: Relay, packet: Received, now: Instant) -> None:
        """Relay a datagram that came to a relayed transport address (section 11.3)."""
        core, allocation = self._core, relay.owner
        if allocation is None or relay.expires <= now:
            core.drop(DropReason.NO_ALLOCATION)
            return
        source, data = packet.source, packet.data
        other = core.places.get(source)
        if type(other) is Relay:
            source = other.advertised
        elif core.siblings is not None:
            source = core.as_seen(source)
        until = allocation.permissions.get(source.host)
        if until is None or until <= now:
            core.drop(DropReason.NO_PERMISSION)
            return
        meter = allocation.meter
        if not meter.take(len(data), now):
            core.drop(DropReason.RATE_LIMITED)
            return
        channel = allocation.peers.get(source)
        if channel is not None and now < channel.expires:
            # "The server [...] MUST use the ChannelData message if a channel has been bound to the
            # peer" (section 12.5).
            octets = channel.number.to_bytes(2) + len(data).to_bytes(2) + data
            if allocation.flow.is_stream and len(data) & 3:
                octets += bytes(-len(data) & 3)
        elif len(data) > _LONGEST[source.is_ipv6]:
            core.drop(DropReason.TOO_LONG)
            return
        else:
            core.metrics.data_indications += 1
            octets = self._indication(source, (DATA.code, data))
        if self._to_client(allocation, octets):
            meter.usage.packets_to_client += 1
            meter.usage.octets_to_client += len(data)

    def undeliverable(self, event: Undeliverable, now: Instant) -> None:
        """Tell a client of an ICMP error that its datagram drew (section 11.5)."""
        core = self._core
        relay = core.places.get(event.local)
        allocation = relay.owner if type(relay) is Relay else None
        if type(relay) is not Relay or allocation is None or relay.expires <= now:
            return
        peer, kind = event.destination, event.icmp_type
        if kind not in _REPORTED[peer.is_ipv6]:
            return
        other = core.places.get(peer)
        if type(other) is Relay:
            peer = other.advertised
        elif core.siblings is not None:
            peer = core.as_seen(peer)
        # "the source IP address MUST NOT be checked against the permissions list [...] Instead, the
        # server extracts the destination IP address from the encapsulated IP header."
        if not allocation.permits(peer.host, now) or not allocation.meter.take(0, now):
            return
        # Section 18.13: the MTU with "Packet too big" and "fragmentation needed", else zero.
        has_mtu = kind == 2 if peer.is_ipv6 else (kind, event.icmp_code) == (3, 4)
        value = ICMP.to_octets(Icmp(kind, event.icmp_code, event.info if has_mtu else 0))
        core.metrics.data_indications += 1
        core.metrics.icmp_indications += 1
        self._to_client(allocation, self._indication(peer, (ICMP.code, value)))

    def _indication(self, peer: Address, attribute: tuple[int, bytes]) -> bytes:
        core = self._core
        indication = Message(_DATA, _INDICATION, core.entropy(12))
        indication.add(XOR_PEER_ADDRESS, peer).attributes.append(attribute)
        return encode(indication, fingerprint=bool(core.config.fingerprint))

    def _to_client(self, allocation: Allocation, octets: bytes) -> bool:
        core, flow = self._core, allocation.flow
        handle = flow.connection
        if not handle:
            core.outbox.append(Transmit(octets, flow.client, flow.server))
            return True
        connection = core.connections.get(handle)
        if connection is None:
            # A mobile client whose connection closed and who has not come back yet.
            core.drop(DropReason.UNKNOWN_STREAM)
            return False
        if connection.congested:
            # Datagrams may be lost, and those that wait are worth less than those to come.
            core.drop(DropReason.CONGESTED)
            return False
        core.outbox.append(Write(handle, octets))
        return True
