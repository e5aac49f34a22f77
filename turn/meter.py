"""How much an allocation may relay, and how much it has: shared by the machine and the data plane.

A :class:`Bucket` holds the rate of one user or of one client address.  Asking two of them for each
packet would be felt, so a :class:`Meter`, one an allocation, takes leases: its credit is a small
part of what the buckets allow, and only when it is used up are they asked again.

On the packet path it is used like this, without a call for most packets::

    meter.octets -= len(payload)
    meter.packets -= 1
    if meter.octets < 0 or meter.packets < 0:
        if not meter.renew(now, len(payload)):
            ...  # over the rate: count the drop

Streams, of which nothing can be dropped, go into debt instead: see :meth:`Meter.charge`.

What was relayed is counted by :class:`Usage`, the octets of payload (not of headers).

The law.  In any T seconds, all meters that share a bucket pass together at most ``rate * T`` and
the bucket's depth, ``rate * burst``; and beyond that one packet, and what their leases held before,
at most :data:`LEASE_TIME`'s worth (or :data:`SMALLEST_LEASE`) each.

A packet passes when half a lease is to be had, however large the packet is; what is missing is the
bucket's debt.  Were all of it to be paid at once, then what is larger than the bucket would never
pass, and what is large not as long as others take each octet as it comes.  Meters that were refused
stand in line: who sends more often or is asked first has no more of a rate than others.

Where packets are relayed that never come to a meter (:mod:`turn.dataplane.kernel`), the account is
kept where those are, as a :class:`Source`, and the bucket is only a purse: it draws a lease at a
time, and keeps one and a half at most.  A draw succeeds as long as nothing is owed, so there may
then be the one draw beside the one packet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from stun.sansio import SECOND, Instant

LEASE_TIME: Final = SECOND // 256
"""The part of a second's worth that is leased at once: how far apart the accounts may drift.

A lease of the default limits is about a hundred packets, so its price is not felt; and the two
hundred allocations that a user may have hold less than a second's worth together.
"""
SMALLEST_LEASE: Final = 4096
"""Octets, where the rate is low."""

PATIENCE: Final = SECOND
"""How long the place in line is kept of a meter that does not ask again."""

LONGEST_WAIT: Final = SECOND // 20
"""How long a meter that was refused does not ask, at most: what it then drops costs little."""

_SHARE = LEASE_TIME / SECOND
# What is leased of an unlimited rate: so much, and not infinity, that a limit set later takes hold.
_UNLIMITED = float(1 << 24), float(1 << 16)

Lease: TypeAlias = tuple[float, float]
"""Octets and packets."""


class Source(Protocol):
    """The account of a rate that others draw on as well."""

    def draw(self, octets: int, packets: int) -> bool:
        """Take so much, all of it or nothing; say whether it was had."""
        ...

    def change(self) -> None:
        """Take note of the new rates of the bucket."""
        ...


class Bucket:
    """A rate in octets and one in packets, each a second; 0 is no limit.  ``burst``: in seconds."""

    __slots__ = (
        "_at",
        "_line",
        "_octets",
        "_packets",
        "again",
        "burst",
        "octet_rate",
        "packet_rate",
        "source",
    )

    def __init__(self, octet_rate: int, packet_rate: int, *, burst: float = 1.0) -> None:
        self.octet_rate = octet_rate
        self.packet_rate = packet_rate
        self.burst = burst
        self._octets = octet_rate * burst
        self._packets = packet_rate * burst
        self._at: Instant = 0
        self.again: Instant = 0
        """When it is worth the while of who was refused last to ask again."""
        self._line: dict[Meter, Instant] = {}
        """Meters that were refused, the first of them first, and when each last was."""
        self.source: Source | None = None
        """Where leases are drawn instead of being earned by time."""

    def change(self, octet_rate: int, packet_rate: int) -> None:
        """Set other rates.  What it holds and what it owes stay, up to the new depth."""
        if self.source is not None:
            self._octets = min(self._octets, octet_rate * self.burst)
            self._packets = min(self._packets, packet_rate * self.burst)
            self.octet_rate, self.packet_rate = octet_rate, packet_rate
            self.source.change()
            return
        if self.octet_rate:
            self._octets = min(self._octets, octet_rate * self.burst)
        else:
            self._octets = octet_rate * self.burst
        if self.packet_rate:
            self._packets = min(self._packets, packet_rate * self.burst)
        else:
            self._packets = packet_rate * self.burst
        self.octet_rate, self.packet_rate = octet_rate, packet_rate

    def share(self, source: Source, now: Instant) -> Lease:
        """Draw on ``source`` from now on; return what is missing from the bucket, which is its.

        What has no limit is missing nothing.
        """
        self._earn(now)
        missing = (
            self.octet_rate * self.burst - self._octets,
            self.packet_rate * self.burst - self._packets,
        )
        self._octets = self._packets = 0.0
        self.source = source
        return missing

    def unshare(self, octets: float, packets: float, now: Instant) -> None:
        """Earn what it leases by time again.  ``octets`` and ``packets`` are what the source held.

        Of a debt they are negative; what was drawn and is not leased yet is added.
        """
        self.source = None
        self._octets = min(self._octets + octets, self.octet_rate * self.burst)
        self._packets = min(self._packets + packets, self.packet_rate * self.burst)
        self._at = now

    def _earn(self, now: Instant) -> None:
        """Add what the time since it was last asked has given."""
        # Who shares a bucket may have read the clock one after the other: time that was counted
        # is not counted again.
        elapsed = (now - self._at) / SECOND
        if elapsed <= 0:
            return
        self._at = now
        rate = self.octet_rate
        self._octets = min(rate * self.burst, self._octets + elapsed * rate)
        rate = self.packet_rate
        self._packets = min(max(rate * self.burst, 1.0), self._packets + elapsed * rate)

    def _draw(self, source: Source, reserve: float) -> None:
        """Have a lease in the purse and the ``reserve``, a part of one, if they are to be had."""
        octets = packets = 0
        rate = self.octet_rate
        if rate:
            lease = min(max(rate * _SHARE, SMALLEST_LEASE), rate * self.burst)
            if self._octets < lease / 2 + reserve * lease:
                octets = math.ceil(lease + reserve * lease - self._octets)
        rate = self.packet_rate
        if rate:
            lease = max(rate * _SHARE, 1.0)
            if rate * self.burst < 2 * lease:
                reserve = 0.0
            if self._packets < max(lease / 2, 1.0) + reserve * lease:
                packets = math.ceil(lease + reserve * lease - self._packets)
        if (octets or packets) and source.draw(octets, packets):
            self._octets += octets
            self._packets += packets

    def offer(self, meter: Meter, need: float, now: Instant) -> Lease | None:
        """Say what ``meter`` can lease at ``now``, ``None`` when there is less than half a lease.

        ``need`` is the octets of a debt that is to be paid from it.  For others there must be half
        a lease more, as long as somebody stands in line.
        """
        octets, packets = max(_UNLIMITED[0], need), _UNLIMITED[1]
        # Half a lease is kept for who is first in line.
        reserve = 0.5 if self._line and self._first(now) is not meter else 0.0
        if self.source is None:
            self._earn(now)
        else:
            self._draw(self.source, reserve)
        wait = 0.0
        rate = self.octet_rate
        if rate:
            depth = rate * self.burst
            lease = min(max(rate * _SHARE, SMALLEST_LEASE), depth)
            held = self._octets - reserve * lease
            octets = min(held, max(lease, need))
            wait = (lease / 2 - held) / rate
        rate = self.packet_rate
        if rate:
            depth = max(rate * self.burst, 1.0)
            held = self._packets
            lease = max(rate * _SHARE, 1.0)
            if depth >= 2 * lease:
                held -= reserve * lease
            packets = min(held, lease)
            wait = max(wait, (max(lease / 2, 1.0) - held) / rate)
        if wait <= 0:
            return octets, packets
        self._line[meter] = now
        self.again = now + min(int(wait * SECOND), LONGEST_WAIT)
        return None

    def _first(self, now: Instant) -> Meter | None:
        """Return who has stood in line longest, of those who still ask."""
        line = self._line
        while line:
            meter = next(iter(line))
            if line[meter] + PATIENCE > now:
                return meter
            del line[meter]
        return None

    def take(self, meter: Meter, octets: float, packets: float) -> None:
        """Take what was offered, or more, which the bucket then owes."""
        self._line.pop(meter, None)
        if self.octet_rate:
            self._octets -= octets
        if self.packet_rate:
            self._packets -= packets


class Usage:
    """What one allocation has relayed from and to its client: packets, and octets of payload."""

    __slots__ = ("dropped", "octets_from_client", "octets_to_client", "packets_from_client",
                 "packets_to_client")  # fmt: skip

    def __init__(self) -> None:
        self.packets_from_client = self.octets_from_client = 0
        self.packets_to_client = self.octets_to_client = 0
        self.dropped = 0
        """Packets over the rate."""


def nothing_to_collect() -> None:
    """Do nothing: what :attr:`Meter.collect` is at first."""


class Meter:
    """The credit of one allocation and its usage.  See the module's text for the packet path."""

    __slots__ = ("_again", "buckets", "collect", "late", "octets", "packets", "usage")

    def __init__(self, *buckets: Bucket) -> None:
        self.buckets = buckets
        self._again: Instant = 0
        self.usage = Usage()
        self.collect: Callable[[], None] = nothing_to_collect
        """To be called before :attr:`usage` is read: adds what was counted elsewhere since."""
        self.late: Usage | None = None
        """What the usage has been added to, at the end of the allocation: what is collected after
        that, of packets that passed before the routes were gone, is to be added there as well."""
        unlimited = float("inf")
        self.octets: float = 0.0 if buckets else unlimited
        self.packets: float = 0.0 if buckets else unlimited

    def collected(self) -> Usage:
        """Return the usage as it is now, with what was counted elsewhere."""
        self.collect()
        return self.usage

    def renew(self, now: Instant, octets: int = 0) -> bool:
        """Ask the buckets for new credit, when the packet at hand was taken from the old already.

        Returns whether that packet may pass; if not, it is counted as dropped.  ``octets`` is how
        many it had: of a packet that is dropped they are given back.  Without them the rest of the
        credit, less than the packet, is lost.
        """
        lease = self._lease(0.0, now)
        if lease is None:
            self.octets = max(self.octets + octets, 0.0)
            self.packets += 1
            self.usage.dropped += 1
            return False
        more_octets = max(lease[0], -self.octets)
        more_packets = max(lease[1], -self.packets)
        for bucket in self.buckets:
            bucket.take(self, more_octets, more_packets)
        self.octets += more_octets
        self.packets += more_packets
        return True

    def take(self, octets: int, now: Instant) -> bool:
        """Take one packet with ``octets`` of payload; say whether it may pass."""
        self.octets -= octets
        self.packets -= 1
        return (self.octets >= 0 and self.packets >= 0) or self.renew(now, octets)

    def charge(self, octets: int, now: Instant) -> bool:
        """Take octets of a stream, which pass in any case; say whether they could be paid.

        If not, the meter is in debt: nothing more is to be read until :meth:`settle` says so.
        """
        self.octets -= octets
        return self.octets >= 0 or self.settle(now)

    def settle(self, now: Instant) -> bool:
        """Pay a debt of :meth:`charge` as far as that is possible; say whether it is paid."""
        if self.octets < 0:
            lease = self._lease(-self.octets, now)
            if lease is not None:
                # A stream has no packets; octets are all that it takes.
                for bucket in self.buckets:
                    bucket.take(self, lease[0], 0.0)
                self.octets += lease[0]
        return self.octets >= 0

    def _lease(self, need: float, now: Instant) -> Lease | None:
        """Return what all of the buckets offer."""
        if now < self._again:
            return None
        octets = packets = float("inf")
        for bucket in self.buckets:
            offer = bucket.offer(self, need, now)
            if offer is None:
                self._again = bucket.again
                return None
            octets = min(octets, offer[0])
            packets = min(packets, offer[1])
        return octets, packets
