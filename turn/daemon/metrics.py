"""turnd's figures for Prometheus, live: a scrape reads the counters as they are at that moment.

No label holds anything that a client chooses (its address, its name, what it asks for), so the
number of series is the same on the first day and after a flood.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Protocol

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from stun.errors import DropReason, UsageError
from stun.registry import Method
from stun.sansio import SECOND, Address
from turn.daemon.visits import Visits
from turn.meter import Usage
from turn.server.metrics import Histogram, Metrics

LONGEST_HEAD: Final = 16384
PATIENCE: Final = 10.0
"""Seconds that a scraper may take to ask."""


class Source(Protocol):
    """What is shown: a running turnd."""

    version: str

    @property
    def metrics(self) -> Metrics:
        """The server machine's counts."""
        ...

    def usage(self) -> Usage:
        """Return what all allocations have relayed, those that live and those that ended."""
        ...

    @property
    def drops(self) -> Mapping[DropReason, int]:
        """What the server machine discarded, by reason."""
        ...

    def transport_counters(self) -> Mapping[str, int]:
        """Return the driver's and the data plane's counts, in words."""
        ...

    def kernel_routes(self) -> int | None:
        """Return how many routes the kernel has; ``None`` where sockets relay alone."""
        ...

    def certificate_expiry(self) -> float | None:
        """Return when the certificate expires (seconds since 1970); ``None`` without one."""
        ...

    def lookups(self) -> Mapping[str, int] | None:
        """Return what became of questions to the users' database; ``None`` without one."""
        ...


class TurndCollector:
    """Makes Prometheus' metrics of a :class:`Source`."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Yield every family of metrics."""
        source = self._source
        metrics = source.metrics
        yield InfoMetricFamily("turnd", "What runs.", {"version": source.version})
        yield from self._gauges(metrics)
        yield _counter(
            "turnd_requests",
            "Requests by method.",
            ("method",),
            {(_method(method),): count for method, count in metrics.requests.items()},
        )
        yield _counter(
            "turnd_indications",
            "Indications from clients by method.",
            ("method",),
            {(_method(method),): count for method, count in metrics.indications.items()},
        )
        yield _counter(
            "turnd_responses",
            "Responses by method and STUN error code; code 0 is success.",
            ("method", "code"),
            {(_method(m), str(code)): count for (m, code), count in metrics.responses.items()},
        )
        yield _counter(
            "turnd_repeated_requests",
            "Requests that came again and got the response that was kept.",
            (),
            {(): metrics.repeated},
        )
        yield _counter(
            "turnd_authentications",
            "Requests by the outcome of their authentication.",
            ("result",),
            {(result,): count for result, count in metrics.authentication.items()},
        )
        yield _counter(
            "turnd_quota_refusals",
            "Allocations and bindings refused because a limit was reached.",
            ("limit",),
            {(limit,): count for limit, count in metrics.quota_refusals.items()},
        )
        yield _counter(
            "turnd_allocations_created",
            "Allocations made, by the transport between client and server.",
            ("transport",),
            {(t.value.lower(),): count for t, count in metrics.allocations_created.items()},
        )
        yield _counter(
            "turnd_allocations_ended",
            "Allocations that ended, by reason.",
            ("reason",),
            {(reason.name.lower(),): count for reason, count in metrics.allocations_ended.items()},
        )
        yield _counter(
            "turnd_connections_accepted",
            "Connections of clients.",
            ("transport",),
            {(t.value.lower(),): count for t, count in metrics.connections_accepted.items()},
        )
        lookups = source.lookups()
        if lookups is not None:
            yield _counter(
                "turnd_user_lookups",
                "Questions to the users' database by what became of them; of a bad record it has "
                "what cannot be used.",
                ("result",),
                {(result,): count for result, count in lookups.items()},
            )
        yield from self._relayed(source.usage())
        yield _counter(
            "turnd_dropped",
            "What the server discarded, by reason.",
            ("reason",),
            {(reason.name.lower(),): source.drops.get(reason, 0) for reason in DropReason},
        )
        yield _counter(
            "turnd_transport_events",
            "What the sockets and the data plane counted.",
            ("event",),
            {(words,): count for words, count in source.transport_counters().items()},
        )
        yield _histogram(
            "turnd_allocate_seconds",
            "From an authentic Allocate request to its success response.",
            metrics.allocate_latency,
        )
        yield _histogram(
            "turnd_user_lookup_seconds",
            "How long requests waited for the user store.",
            metrics.lookup_latency,
        )
        yield _histogram(
            "turnd_allocation_duration_seconds",
            "How long allocations lived.",
            metrics.session_duration,
        )

    def _gauges(self, metrics: Metrics) -> Iterator[Metric]:
        for name, text, value in (
            ("allocations", "Allocations that live.", metrics.allocations),
            ("permissions", "Permissions that live.", metrics.permissions),
            ("channels", "Channel bindings that live.", metrics.channels),
            ("connections", "Connections of clients that are open.", metrics.connections),
            ("spares", "Sockets open for the next allocations.", metrics.spares),
        ):
            yield GaugeMetricFamily(f"turnd_{name}", text, value)
        routes = self._source.kernel_routes()
        yield GaugeMetricFamily(
            "turnd_kernel_data_plane",
            "1 where the kernel relays, 0 where sockets do alone.",
            int(routes is not None),
        )
        if routes is not None:
            yield GaugeMetricFamily(
                "turnd_kernel_routes", "Channels that are relayed in the kernel.", routes
            )
        expiry = self._source.certificate_expiry()
        if expiry is not None:
            yield GaugeMetricFamily(
                "turnd_certificate_expiry_timestamp_seconds",
                "When the certificate that is served expires.",
                expiry,
            )

    def _relayed(self, usage: Usage) -> Iterator[Metric]:
        yield _counter(
            "turnd_relayed_packets",
            "Packets relayed, by direction.",
            ("direction",),
            {
                ("from_client",): usage.packets_from_client,
                ("to_client",): usage.packets_to_client,
            },
        )
        yield _counter(
            "turnd_relayed_bytes",
            "Octets of payload relayed, by direction.",
            ("direction",),
            {
                ("from_client",): usage.octets_from_client,
                ("to_client",): usage.octets_to_client,
            },
        )
        yield _counter(
            "turnd_rate_limited_packets",
            "Packets that were not relayed because their user or client was over its rate.",
            (),
            {(): usage.dropped},
        )


def _method(method: int | None) -> str:
    return "other" if method is None else Method.make(method).label


def _counter(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for labelled, value in values.items():
        family.add_metric(labelled, value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    buckets, below = [], 0
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        below += count
        buckets.append(("+Inf" if bound is None else repr(bound / SECOND), float(below)))
    family = HistogramMetricFamily(name, text)
    family.add_metric([], buckets, histogram.total / SECOND)
    return family


def registry(source: Source) -> CollectorRegistry:
    """Return what is scraped: turnd's own metrics and those of its process."""
    made = CollectorRegistry(auto_describe=False)
    made.register(TurndCollector(source))
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        made.register(collector)
    return made


class MetricsServer:
    """Serves ``GET /metrics`` over HTTP on the running event loop, one answer a connection.

    Not ``prometheus_client.start_http_server``: its thread would read counters while the loop
    changes them.  An asynchronous context manager; raises ``UsageError`` if the port is taken.
    """

    def __init__(self, address: Address, registry: CollectorRegistry) -> None:
        self._address = address
        self._registry = registry
        self._visits = Visits(self._serve)
        self._server: asyncio.Server | None = None
        self.answers: Counter[int] = Counter()
        """Answers by HTTP status."""

    @property
    def local(self) -> Address:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    async def __aenter__(self) -> MetricsServer:
        try:
            self._server = await asyncio.start_server(
                self._visits, self._address.host, self._address.port, limit=LONGEST_HEAD
            )
        except OSError as error:
            raise UsageError(
                f"metrics cannot be served at {self._address}: {error.strerror or error}; "
                "choose another address with --metrics"
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            await self._visits.close(self._server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                status, kind, body = await self._answer(reader)
                self.answers[int(status[:3])] += 1
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (ConnectionError, TimeoutError):
            self.answers[0] += 1  # whoever asked has gone, or does not read
            raise

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
        plain = "text/plain; charset=utf-8"
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return "400 Bad Request", plain, b"this is HTTP: GET /metrics\n"
        lines = head.split("\r\n")
        method, _, rest = lines[0].partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if path != "/metrics":
            return "404 Not Found", plain, b"there is only /metrics\n"
        if method != "GET":
            return "405 Method Not Allowed", plain, b"only GET is answered\n"
        encode, kind = choose_encoder(_accepted(lines[1:]))
        return "200 OK", kind, encode(self._registry)


def _accepted(headers: Iterable[str]) -> str:
    for header in headers:
        name, _, value = header.partition(":")
        if name.lower() == "accept":
            return value.strip()
    return ""
