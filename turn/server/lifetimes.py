"""The beginning and the end of allocations, permissions and channels, and the routes they imply.

Theory of operation.  What a packet may pass by is compared with ``now`` when the packet comes, so
nothing lives longer than it should however late the machine is called; the deadlines here only
clean up.  An allocation has one deadline, the earliest of everything that is its own.  When it
comes, what is over goes, and the next one is set.
"""

from __future__ import annotations

from typing import Final

from stun.discovery import Transport
from stun.sansio import SECOND, Address, Instant
from turn.dataplane.base import InstallRoute, Route, RouteKey
from turn.server.allocation import Allocation, Channel, Flow, FlowKey, Relay
from turn.server.core import Core
from turn.server.events import AllocationCreated, AllocationEnded, Drained, EndReason

PERMISSION: Final = 300 * SECOND
""""The Permission Lifetime MUST be 300 seconds" (RFC 8656 section 9)."""
CHANNEL: Final = 600 * SECOND
""""A channel binding lasts for 10 minutes unless refreshed" (RFC 8656 section 12)."""


class Lifetimes:
    """Makes and ends what clients have."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.draining = False

    # Allocations. ---------------------------------------------------------------------------------

    def begin(self, allocation: Allocation, now: Instant) -> None:
        """Enter an allocation whose relayed transport addresses are open."""
        core, flow = self._core, allocation.flow
        core.allocations[flow.key] = allocation
        core.sessions[allocation.session] = allocation
        for relay in allocation.relays:
            relay.owner = allocation
        core.expiry.set(allocation, allocation.expires)  # of all, in the beginning
        core.metrics.allocations += 1
        core.metrics.allocations_created[flow.transport] += 1
        core.tell(
            AllocationCreated(
                allocation.session,
                allocation.username,
                flow.client,
                flow.server,
                flow.transport,
                tuple([relay.advertised for relay in allocation.relays]),
                allocation.tcp,
                (allocation.expires - now) // SECOND,
            )
        )

    def end(self, allocation: Allocation, reason: EndReason, now: Instant) -> None:
        """End an allocation with everything that belongs to it."""
        core, metrics, usage = self._core, self._core.metrics, allocation.meter.collected()
        if core.sessions.pop(allocation.session, None) is None:
            return
        core.allocations.pop(allocation.flow.key, None)
        mobility = allocation.mobility
        if mobility is not None:
            core.tickets.pop(mobility.ticket, None)
            if mobility.old_ticket is not None:
                core.tickets.pop(mobility.old_ticket, None)
            if mobility.moving is not None:
                core.allocations.pop(mobility.moving.key, None)
        core.expiry.cancel(allocation)
        for channel in tuple(allocation.channels.values()):
            self.unbind(allocation, channel)
        metrics.permissions -= len(allocation.permissions)
        allocation.permissions.clear()
        if allocation.tcp and core.streams is not None:
            core.streams.ended(allocation, now)
        for relay in allocation.relays:
            core.shut_relay(relay)
            relay.owner = None
        core.quotas.release(allocation.account, allocation.client_host)
        duration = now - allocation.created
        metrics.allocations -= 1
        metrics.allocations_ended[reason] += 1
        metrics.session_duration.add(duration)
        metrics.close(usage)
        allocation.meter.late = metrics.usage
        client = allocation.flow.client
        core.tell(
            AllocationEnded(
                allocation.session, allocation.username, client, reason, duration, usage
            )
        )
        if self.draining and not core.sessions:
            core.tell(Drained())

    def end_relay(
        self, allocation: Allocation, relay: Relay, reason: EndReason, now: Instant
    ) -> None:
        """End one relayed transport address, and the allocation with its last one.

        "Deleting a single allocation destroys any permissions or channels associated with that
        particular allocation; it MUST NOT affect any permissions or channels associated with
        allocations for the other address family" (RFC 8656 section 8.1).
        """
        if len(allocation.relays) == 1:
            self.end(allocation, reason, now)
            return
        for channel in [c for c in allocation.channels.values() if c.relay is relay]:
            self.unbind(allocation, channel)
        ipv6 = relay.place.is_ipv6
        for host in [host for host in allocation.permissions if (":" in host) is ipv6]:
            self._forbid(allocation, host)
        self._core.shut_relay(relay)
        relay.owner = None
        allocation.relays = tuple(one for one in allocation.relays if one is not relay)
        allocation.expires = max(one.expires for one in allocation.relays)

    def extend(self, allocation: Allocation, relay: Relay, expires: Instant, now: Instant) -> None:
        """Set until when a relayed transport address lives: later or, rarely, sooner."""
        relay.expires = expires
        allocation.expires = max(one.expires for one in allocation.relays)
        self._core.expiry.hasten(allocation, expires)
        for channel in allocation.channels.values():
            if channel.relay is relay:
                self._route(allocation, channel, now)

    def find(self, key: FlowKey, now: Instant) -> Allocation | None:
        """Return the allocation of a five-tuple, if there is one that lives."""
        allocation = self._core.allocations.get(key)
        return allocation if allocation is not None and self.lives(allocation, now) else None

    def lives(self, allocation: Allocation, now: Instant) -> bool:
        """Whether an allocation is not over; what of it is over is removed.

        One of two relayed transport addresses that is over must not be there to be refreshed.
        """
        for relay in allocation.relays:
            if relay.expires <= now:
                self.expire(allocation, now)
                return allocation.session in self._core.sessions
        return True

    # Permissions and channels. --------------------------------------------------------------------

    def permit(self, allocation: Allocation, host: str, until: Instant, now: Instant) -> None:
        """Install or refresh a permission; never for less long than it has."""
        before = allocation.permissions.get(host)
        if before is None:
            self._core.metrics.permissions += 1
        elif before >= until:
            return
        allocation.permissions[host] = until
        self._core.expiry.hasten(allocation, until)
        for channel in allocation.channels.values():
            if channel.peer.host == host:
                self._route(allocation, channel, now)

    def bind(
        self, allocation: Allocation, number: int, peer: Address, relay: Relay, now: Instant
    ) -> None:
        """Bind a channel, or refresh it, and the permission with it.

        The permission lasts as long as the channel, though section 9 gives it 300 seconds whatever
        installs it.  Clients in use bind once in eight to ten minutes and create no permission
        beside it, as coturn lets them; with the shorter time their peers would be mute for half of
        it.  What the client consented to is the same.
        """
        channel = allocation.channels.get(number)
        if channel is None:
            channel = Channel(number, peer, relay, now + CHANNEL)
            allocation.channels[number] = allocation.peers[peer] = channel
            self._core.metrics.channels += 1
        channel.expires = now + CHANNEL
        self._core.expiry.hasten(allocation, channel.expires)
        self.permit(allocation, peer.host, channel.expires, now)
        self._route(allocation, channel, now)

    def unbind(self, allocation: Allocation, channel: Channel) -> None:
        """Remove a channel binding."""
        del allocation.channels[channel.number]
        del allocation.peers[channel.peer]
        self._core.metrics.channels -= 1
        self._core.unroute(channel)

    def withdraw(self, allocation: Allocation, host: str) -> None:
        """Take a permission back, and the channels to that host with it."""
        for channel in [c for c in allocation.channels.values() if c.peer.host == host]:
            self.unbind(allocation, channel)
        self._forbid(allocation, host)

    def _forbid(self, allocation: Allocation, host: str) -> None:
        if allocation.permissions.pop(host, None) is not None:
            self._core.metrics.permissions -= 1

    # Time. ----------------------------------------------------------------------------------------

    def expire(self, allocation: Allocation, now: Instant) -> None:
        """Remove what of an allocation is over, and set its next deadline."""
        for relay in allocation.relays:
            if relay.expires <= now:
                self.end_relay(allocation, relay, EndReason.EXPIRED, now)
        if allocation.session not in self._core.sessions:
            return
        for channel in [c for c in allocation.channels.values() if c.expires <= now]:
            self.unbind(allocation, channel)
        for host in [host for host, until in allocation.permissions.items() if until <= now]:
            self._forbid(allocation, host)
        due = min(relay.expires for relay in allocation.relays)
        if allocation.permissions:
            due = min(due, *allocation.permissions.values())
        if allocation.channels:
            due = min(due, *(channel.expires for channel in allocation.channels.values()))
        self._core.expiry.set(allocation, due)

    # Routes. --------------------------------------------------------------------------------------

    def move(self, allocation: Allocation, flow: Flow, now: Instant) -> None:
        """Let an allocation belong to another five-tuple."""
        core = self._core
        if core.allocations.get(allocation.flow.key) is allocation:
            del core.allocations[allocation.flow.key]
        for channel in allocation.channels.values():
            core.unroute(channel)
        allocation.flow = flow
        core.allocations[flow.key] = allocation
        for channel in allocation.channels.values():
            self._route(allocation, channel, now)

    def _route(self, allocation: Allocation, channel: Channel, now: Instant) -> None:
        """Tell the data plane until when it may forward on a channel, if that has changed."""
        core, flow = self._core, allocation.flow
        if not core.config.offload or flow.transport is not Transport.UDP:
            return
        until = min(
            channel.expires,
            channel.relay.expires,
            allocation.permissions.get(channel.peer.host, 0),
        )
        if until <= now or (channel.route is not None and channel.routed_until == until):
            return
        if channel.route is None:
            key = RouteKey(flow.client, flow.server, channel.number)
            peer = core.reach(channel.peer)
            if peer is None:
                return
            other = core.relayed.get(channel.peer)
            if other is not None:
                channel.target = other
                other.visitors = other.visitors or set()
                other.visitors.add(channel)
            elif core.siblings is not None and core.of_sibling(channel.peer) is not None:
                core.siblings.visit(peer)
                if core.reach(channel.peer) != peer:
                    return  # it closed before the visit was known of
                core.visited.setdefault(peer, set()).add(channel)
            channel.route = Route(key, channel.relay.local, peer, allocation.meter)
        channel.routed_until = until
        core.order(InstallRoute(channel.route, until))
