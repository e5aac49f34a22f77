"""Refresh, CreatePermission and ChannelBind: what an allocation's owner may ask for.

Whoever comes here is authentic, and the allocation's owner.
"""

from __future__ import annotations

from typing import Final

from stun.attributes import (
    CHANNEL_NUMBER,
    LIFETIME,
    MOBILITY_TICKET,
    REQUESTED_ADDRESS_FAMILY,
    XOR_PEER_ADDRESS,
)
from stun.message import Message
from stun.registry import ErrorCode
from stun.sansio import SECOND, Instant
from turn.server.allocate import granted
from turn.server.allocation import Allocation, Relay
from turn.server.core import FAMILIES, Core
from turn.server.events import EndReason
from turn.server.hosting import Request
from turn.server.lifetimes import PERMISSION, Lifetimes
from turn.server.mobility import Tickets

LOWEST_CHANNEL: Final = 0x4000
HIGHEST_CHANNEL: Final = 0x7FFF
"""RFC 8656 section 12 ends the range at 0x4FFF, RFC 5766 section 11 at 0x7FFF (errata 3854 and
4815), and clients of RFC 5766 are still many.  The newer bound keeps first octets from 80 on free
for QUIC and RTP where a *client* receives them on the same socket (RFC 9443); what comes to a
server's port is STUN, DTLS or ChannelData, so the wider range is safe here.  Whoever picks such a
number has it demultiplexed at home."""


class Requests:
    """Does the requests that need an allocation."""

    def __init__(self, core: Core, lifetimes: Lifetimes, tickets: Tickets) -> None:
        self._core = core
        self._lifetimes = lifetimes
        self._tickets = tickets

    # Refresh. -------------------------------------------------------------------------------------

    def refresh(self, request: Request, now: Instant) -> None:
        """Do a Refresh request (RFC 8656 section 8.2, RFC 8016 section 3.2.2)."""
        core, message = self._core, request.message
        moves = MOBILITY_TICKET.code in request.present
        allocation = self._tickets.find(request, now) if moves else request.allocation
        if allocation is None:
            return
        request.allocation = allocation
        relays = self._relays(allocation, message)
        if not relays:
            core.refuse(
                request,
                ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH,
                "no relayed transport address of this family",
                now,
            )
            return
        asked = message.get(LIFETIME)
        response = Message.success(message)
        if asked == 0:
            # What the client deleted is gone when it learns so, from the data plane as well.
            for relay in relays:
                self._lifetimes.end_relay(allocation, relay, EndReason.REFRESHED_TO_ZERO, now)
            response.add(LIFETIME, 0)
            core.answer(request, response, now)
            return
        lifetime = granted(core.config, asked, request, now)
        if allocation.authentic is not None:
            allocation.authentic = request.authentic
        for relay in relays:
            self._lifetimes.extend(allocation, relay, now + lifetime, now)
        response.add(LIFETIME, lifetime // SECOND)
        if moves:
            response.add(MOBILITY_TICKET, self._tickets.enter(allocation, request.flow, now))
        core.answer(request, response, now)

    def _relays(self, allocation: Allocation, message: Message) -> tuple[Relay, ...]:
        family = message.get(REQUESTED_ADDRESS_FAMILY)
        if family is None:
            # "the request should be treated as applying to all current allocations" (section 8.1).
            return allocation.relays
        wanted = FAMILIES.get(family)
        return tuple(relay for relay in allocation.relays if relay.place.is_ipv6 is wanted)

    # CreatePermission. ----------------------------------------------------------------------------

    def create_permission(self, request: Request, now: Instant) -> None:
        """Do a CreatePermission request (RFC 8656 section 10.2): all of it or nothing."""
        core, allocation = self._core, request.allocation
        assert allocation is not None
        peers = request.message.all(XOR_PEER_ADDRESS)
        if not peers:
            core.refuse(request, ErrorCode.BAD_REQUEST, "no XOR-PEER-ADDRESS", now)
            return
        hosts = dict.fromkeys(peer.host for peer in peers)
        most = core.config.limits.permissions_per_allocation
        if 0 < most < len(hosts):
            # Before the policy is asked of thousands of hosts.
            core.refuse(request, ErrorCode.INSUFFICIENT_CAPACITY, f"{len(hosts)} peers", now)
            return
        for peer in peers:
            if allocation.relay_for(ipv6=peer.is_ipv6) is None:
                core.refuse(
                    request, ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH, f"{peer.host}: family", now
                )
                return
            verdict = core.verdict_on_host(peer.host)
            if not verdict.allowed:
                core.refuse(request, ErrorCode.FORBIDDEN, f"{peer.host}: {verdict}", now)
                return
        if not self._has_room(allocation, sum(h not in allocation.permissions for h in hosts), now):
            core.refuse(request, ErrorCode.INSUFFICIENT_CAPACITY, "too many permissions", now)
            return
        for host in hosts:
            self._lifetimes.permit(allocation, host, now + PERMISSION, now)
        core.answer(request, Message.success(request.message), now)

    def _has_room(self, allocation: Allocation, more: int, now: Instant) -> bool:
        most = self._core.config.limits.permissions_per_allocation
        if not most or len(allocation.permissions) + more <= most:
            return True
        self._lifetimes.expire(allocation, now)
        return len(allocation.permissions) + more <= most

    # ChannelBind. ---------------------------------------------------------------------------------

    def channel_bind(self, request: Request, now: Instant) -> None:
        """Do a ChannelBind request (RFC 8656 section 12.2)."""
        allocation = request.allocation
        assert allocation is not None
        number, peer = request.message.get(CHANNEL_NUMBER), request.message.get(XOR_PEER_ADDRESS)
        core, code, detail = self._core, ErrorCode.BAD_REQUEST, ""
        if number is None or peer is None:
            detail = "no CHANNEL-NUMBER or no XOR-PEER-ADDRESS"
        elif not LOWEST_CHANNEL <= number <= HIGHEST_CHANNEL:
            detail = f"channel {number:#06x}"
        elif not peer.port:
            detail = "a channel to port 0"
        elif allocation.tcp:
            # RFC 6062 relays streams over connections of their own; there is no datagram to carry.
            detail = "a channel on a TCP allocation"
        if detail or number is None or peer is None:
            core.refuse(request, code, detail, now)
            return
        relay = allocation.relay_for(ipv6=peer.is_ipv6)
        verdict = core.verdict_on_datagrams(peer)
        by_number, by_peer = allocation.channels.get(number), allocation.peers.get(peer)
        if any(one is not None and one.expires <= now for one in (by_number, by_peer)):
            self._lifetimes.expire(allocation, now)
            by_number, by_peer = allocation.channels.get(number), allocation.peers.get(peer)
        if relay is None:
            code, detail = ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH, f"{peer}: family"
        elif by_number is not None and by_number.peer != peer:
            detail = f"channel {number:#06x} is bound to {by_number.peer}"
        elif by_peer is not None and by_peer.number != number:
            detail = f"{peer} is bound to channel {by_peer.number:#06x}"
        elif not verdict.allowed:
            code, detail = ErrorCode.FORBIDDEN, f"{peer}: {verdict}"
        elif by_number is None and not self._has_channel_room(allocation, now):
            code, detail = ErrorCode.INSUFFICIENT_CAPACITY, "too many channels"
        elif not self._has_room(allocation, peer.host not in allocation.permissions, now):
            code, detail = ErrorCode.INSUFFICIENT_CAPACITY, "too many permissions"
        else:
            self._lifetimes.bind(allocation, number, peer, relay, now)
            core.answer(request, Message.success(request.message), now)
            return
        core.refuse(request, code, detail, now)

    def _has_channel_room(self, allocation: Allocation, now: Instant) -> bool:
        most = self._core.config.limits.channels_per_allocation
        if not most or len(allocation.channels) < most:
            return True
        self._lifetimes.expire(allocation, now)
        return len(allocation.channels) < most
