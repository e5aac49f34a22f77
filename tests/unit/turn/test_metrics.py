"""What Prometheus reads, and that a flood does not make it more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stun.discovery import Transport
from stun.errors import DropReason, UsageError
from stun.registry import Method
from stun.sansio import MILLISECOND, SECOND, Address
from turn.daemon.metrics import MetricsServer, registry
from turn.meter import Usage
from turn.server.events import EndReason
from turn.server.metrics import Metrics

ANY = Address("127.0.0.1", 0)


class Turnd:
    """What is shown."""

    version = "1.2.3"

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.drops: Counter[DropReason] = Counter()
        self.expiry: float | None = None
        self.routes: int | None = None

    def usage(self) -> Usage:
        usage = Usage()
        usage.packets_from_client, usage.octets_from_client = 5, 500
        usage.packets_to_client, usage.octets_to_client = 4, 400
        usage.dropped = 3
        return usage

    def transport_counters(self) -> Mapping[str, int]:
        return {"datagrams received": 9}

    def certificate_expiry(self) -> float | None:
        return self.expiry

    def kernel_routes(self) -> int | None:
        return self.routes

    def lookups(self) -> Mapping[str, int] | None:
        return {"answered": 5, "failed": 1, "bad_record": 2}


async def fetch(
    address: Address, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
) -> tuple[str, dict[str, str], str]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    writer.write_eof()
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    status, *lines = head.split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


async def samples(turnd: Turnd) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    async with MetricsServer(ANY, registry(turnd)) as server:
        status, headers, body = await fetch(server.local)
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"].startswith("text/plain")
    assert int(headers["Content-Length"]) == len(body.encode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


async def test_every_count_is_shown_live() -> None:
    turnd = Turnd()
    metrics = turnd.metrics
    metrics.requests[Method.ALLOCATE] = 7
    metrics.requests[None] = 1
    metrics.responses[Method.ALLOCATE, 0] = 3
    metrics.responses[Method.ALLOCATE, 401] = 4
    metrics.authentication["accepted"] = 3
    metrics.allocations_created[Transport.DTLS] = 2
    metrics.allocations_ended[EndReason.EXPIRED] = 1
    metrics.allocations = 1
    metrics.allocate_latency.add(3 * MILLISECOND)
    metrics.allocate_latency.add(3600 * SECOND)
    turnd.drops[DropReason.RATE_LIMITED] = 11
    turnd.expiry = 1_800_000_000.0
    found = await samples(turnd)
    for name, labels, value in [
        ("turnd_info", {"version": "1.2.3"}, 1),
        ("turnd_requests_total", {"method": "Allocate"}, 7),
        ("turnd_requests_total", {"method": "other"}, 1),
        ("turnd_responses_total", {"method": "Allocate", "code": "0"}, 3),
        ("turnd_responses_total", {"method": "Allocate", "code": "401"}, 4),
        ("turnd_authentications_total", {"result": "accepted"}, 3),
        ("turnd_allocations_created_total", {"transport": "dtls"}, 2),
        ("turnd_allocations_ended_total", {"reason": "expired"}, 1),
        ("turnd_allocations", {}, 1),
        ("turnd_relayed_packets_total", {"direction": "from_client"}, 5),
        ("turnd_relayed_bytes_total", {"direction": "to_client"}, 400),
        ("turnd_rate_limited_packets_total", {}, 3),
        ("turnd_dropped_total", {"reason": "rate_limited"}, 11),
        ("turnd_transport_events_total", {"event": "datagrams received"}, 9),
        ("turnd_certificate_expiry_timestamp_seconds", {}, 1.8e9),
        ("turnd_allocate_seconds_bucket", {"le": "0.0025"}, 0),
        ("turnd_allocate_seconds_bucket", {"le": "0.005"}, 1),
        ("turnd_allocate_seconds_bucket", {"le": "+Inf"}, 2),
        ("turnd_allocate_seconds_count", {}, 2),
        ("turnd_allocate_seconds_sum", {}, 3600.003),
    ]:
        assert found[name, tuple(sorted(labels.items()))] == pytest.approx(value), name
    assert ("process_open_fds", ()) in found


async def test_the_kernel_data_plane_has_its_own_figures() -> None:
    turnd = Turnd()
    found = await samples(turnd)
    assert found["turnd_kernel_data_plane", ()] == 0
    assert ("turnd_kernel_routes", ()) not in found
    turnd.routes = 7
    found = await samples(turnd)
    assert found["turnd_kernel_data_plane", ()] == 1
    assert found["turnd_kernel_routes", ()] == 7


async def test_without_a_certificate_there_is_no_expiry() -> None:
    assert not [name for name, _ in await samples(Turnd()) if "certificate" in name]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200"),
        (b"\x16\x03\x01\x02\x00", "400"),
        (b"", "400"),
        (b"GET /" + b"x" * 100_000, "400"),
    ],
)
async def test_other_requests(request_: bytes, status: str) -> None:
    async with MetricsServer(ANY, registry(Turnd())) as server:
        found, _, _ = await fetch(server.local, request_)
        assert found.split()[1] == status
        assert (await fetch(server.local))[0].endswith("200 OK")


async def test_openmetrics_for_those_who_ask() -> None:
    request = (
        b"GET /metrics HTTP/1.1\r\n"
        b"Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n"
    )
    async with MetricsServer(ANY, registry(Turnd())) as server:
        _, headers, body = await fetch(server.local, request)
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


async def test_a_port_in_use_says_what_to_do() -> None:
    async with MetricsServer(ANY, registry(Turnd())) as server:
        taken = server.local
        with pytest.raises(UsageError, match="choose another address with --metrics"):
            async with MetricsServer(taken, registry(Turnd())):
                pass


async def test_the_number_of_series_has_a_bound() -> None:
    """However many methods and codes come, the labels are those of the protocol."""
    turnd = Turnd()
    metrics: Any = turnd.metrics
    for method in Method:
        metrics.requests[method] += 1
        for code in (0, 300, 400, 401, 403, 405, 420, 437, 438, 440, 441, 442, 443, 446, 447):
            metrics.responses[method, code] += 1
    for reason in DropReason:
        turnd.drops[reason] += 1
    assert len(await samples(turnd)) < 1000
