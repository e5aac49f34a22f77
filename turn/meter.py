"""How much an allocation may relay, and how much it has: shared by the machine and the data plane.

A :class:`Bucket` holds the rate of one user or of one client address.  Asking two of them for each
packet would be felt, so a :class:`Meter`, one an allocation, takes leases: its credit is a small
part of what the buckets allow, and only when it is used up are they asked again.

On the packet path it is used like this, without a call for most packets::

    meter.octets -= len(payload)
    meter.packets -= 1
    if meter.octets < 0 or meter.packets < 0:
        if not meter.renew(now):
            ...  # over the rate: count the drop

What was relayed is counted by :class:`Usage`, the octets of payload (not of headers).
"""

from __future__ import annotations

from stun.sansio import SECOND, Instant

LEASE_TIME = SECOND // 20
"""The part of a second's worth that is leased at once: how far apart the accounts may drift."""


class Bucket:
    """A rate in octets and one in packets, each a second; 0 is no limit.  ``burst``: in seconds."""

    __slots__ = ("_at", "_octets", "_packets", "burst", "octet_rate", "packet_rate")

    def __init__(self, octet_rate: int, packet_rate: int, *, burst: float = 1.0) -> None:
        self.octet_rate = octet_rate
        self.packet_rate = packet_rate
        self.burst = burst
        self._octets = octet_rate * burst
        self._packets = packet_rate * burst
        self._at: Instant = 0

    def lease(self, now: Instant) -> tuple[float, float]:
        """Take what is to be had of a lease (octets, packets) at ``now``; infinity without limit.

        Both are 0 when either rate is used up: a packet needs an allowance of each.
        """
        elapsed = (now - self._at) / SECOND
        self._at = now
        share = LEASE_TIME / SECOND
        octets = packets = float("inf")
        if self.octet_rate:
            self._octets = min(
                self.octet_rate * self.burst, self._octets + elapsed * self.octet_rate
            )
            octets = min(self._octets, max(self.octet_rate * share, 65536.0))
        if self.packet_rate:
            self._packets = min(
                self.packet_rate * self.burst, self._packets + elapsed * self.packet_rate
            )
            packets = min(self._packets, max(self.packet_rate * share, 1.0))
        if octets < 1 or packets < 1:
            return 0.0, 0.0
        if self.octet_rate:
            self._octets -= octets
        if self.packet_rate:
            self._packets -= packets
        return octets, packets

    def give_back(self, octets: float, packets: float) -> None:
        """Return what of a lease was not used."""
        if self.octet_rate:
            self._octets += octets
        if self.packet_rate:
            self._packets += packets


class Usage:
    """What one allocation has relayed from and to its client: packets, and octets of payload."""

    __slots__ = ("dropped", "octets_from_client", "octets_to_client", "packets_from_client",
                 "packets_to_client")  # fmt: skip

    def __init__(self) -> None:
        self.packets_from_client = self.octets_from_client = 0
        self.packets_to_client = self.octets_to_client = 0
        self.dropped = 0
        """Packets over the rate."""


class Meter:
    """The credit of one allocation and its usage.  See the module's text for the packet path."""

    __slots__ = ("_buckets", "octets", "packets", "usage")

    def __init__(self, *buckets: Bucket) -> None:
        self._buckets = tuple(b for b in buckets if b.octet_rate or b.packet_rate)
        self.usage = Usage()
        self.octets: float = 0.0
        self.packets: float = 0.0
        if not self._buckets:
            self.octets = self.packets = float("inf")

    def renew(self, now: Instant) -> bool:
        """Ask the buckets for new credit, the debt of the packet at hand paid from it.

        Returns whether that packet may pass; if not, its debt is forgiven, for it was dropped.
        """
        octets, packets = float("inf"), float("inf")
        leases: list[tuple[Bucket, float, float]] = []
        for bucket in self._buckets:
            lease = bucket.lease(now)
            leases.append((bucket, *lease))
            octets, packets = min(octets, lease[0]), min(packets, lease[1])
        for bucket, more_octets, more_packets in leases:
            bucket.give_back(more_octets - octets, more_packets - packets)
        if octets == 0 or packets == 0:
            self.octets, self.packets = 0.0, 0.0
            self.usage.dropped += 1
            return False
        # The credit left over from before is at most one packet's: it is in the sums.
        self.octets += octets
        self.packets += packets
        return True

    def take(self, octets: int, now: Instant) -> bool:
        """Take one packet with ``octets`` of payload; say whether it may pass."""
        self.octets -= octets
        self.packets -= 1
        return (self.octets >= 0 and self.packets >= 0) or self.renew(now)
