"""What the server machine counts: plain integers, of bounded number, for whoever shows them.

Nothing here is keyed by what a client chooses (names, addresses): the number of series stays the
same however many come.  Methods are those of TURN and ``None`` for any other; codes those that the
server sends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final

from stun.discovery import Transport
from stun.sansio import MILLISECOND, SECOND
from turn.meter import Usage
from turn.server.events import EndReason

LATENCY_BOUNDS: Final = tuple(
    bound * MILLISECOND // 10 for bound in (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 5000, 30000)
)
"""Nanoseconds: from a tenth of a millisecond to three seconds."""
DURATION_BOUNDS: Final = tuple(bound * SECOND for bound in (1, 10, 60, 300, 600, 1800, 3600, 14400))


class Histogram:
    """Durations in nanoseconds by upper bound: ``counts`` has one more for what is longer."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0
        """The sum of all durations."""

    def add(self, duration: int) -> None:
        """Count a duration."""
        self.counts[bisect_left(self.bounds, duration)] += 1
        self.total += duration


class Metrics:
    """The counts since the server was made; the gauges say so."""

    __slots__ = (
        "allocate_latency",
        "allocations",
        "allocations_created",
        "allocations_ended",
        "authentication",
        "channels",
        "connections",
        "connections_accepted",
        "data_indications",
        "icmp_indications",
        "indications",
        "lookup_latency",
        "permissions",
        "quota_refusals",
        "repeated",
        "requests",
        "responses",
        "session_duration",
        "spares",
        "usage",
    )

    def __init__(self) -> None:
        self.requests: Counter[int | None] = Counter()
        """Requests by method (:class:`stun.registry.Method`)."""
        self.indications: Counter[int | None] = Counter()
        """Indications from clients by method."""
        self.responses: Counter[tuple[int | None, int]] = Counter()
        """Responses by method and error code, which is 0 for success."""
        self.repeated = 0
        """Requests that came again and got the response that was kept."""
        self.authentication: Counter[str] = Counter()
        """Requests that were ``accepted``, ``challenged`` (401: no credentials), ``rejected`` (401:
        wrong ones), ``stale`` (438), ``malformed`` (400), or ``deferred`` until the user store
        answers."""
        self.quota_refusals: Counter[str] = Counter()
        """486 and 508 by which limit was reached."""
        self.allocations_created: Counter[Transport] = Counter()
        """By the transport between the client and the server."""
        self.allocations_ended: Counter[EndReason] = Counter()
        self.connections_accepted: Counter[Transport] = Counter()
        """Connections of clients."""
        self.data_indications = 0
        """Data indications sent to clients."""
        self.icmp_indications = 0
        """Of them, those that report an ICMP error."""
        self.allocate_latency = Histogram(LATENCY_BOUNDS)
        """From an authentic Allocate to its success, the opening of the relay's port included."""
        self.lookup_latency = Histogram(LATENCY_BOUNDS)
        """How long requests waited for the user store."""
        self.session_duration = Histogram(DURATION_BOUNDS)
        self.usage = Usage()
        """What allocations that have ended relayed; :meth:`turn.server.machine.Server.usage` adds
        those that live."""
        # Gauges.
        self.allocations = 0
        self.permissions = 0
        self.channels = 0
        self.connections = 0
        self.spares = 0

    def close(self, usage: Usage) -> None:
        """Add what an allocation that ends has relayed."""
        add_usage(self.usage, usage)


def add_usage(total: Usage, usage: Usage) -> None:
    """Add one usage to another."""
    total.packets_from_client += usage.packets_from_client
    total.octets_from_client += usage.octets_from_client
    total.packets_to_client += usage.packets_to_client
    total.octets_to_client += usage.octets_to_client
    total.dropped += usage.dropped
