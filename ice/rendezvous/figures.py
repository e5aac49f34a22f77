"""A rendezvous' figures for Prometheus, and its log.

Neither has anything in it that clients say to each other, nor the names under which they meet.  No
label holds anything that a client chooses, so the number of series does not grow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ice.rendezvous.hall import Hall
from ice.rendezvous.machine import CannotServe, RendezvousEvent, Serving
from ice.rendezvous.protocol import ErrorCode
from ice.rendezvous.terms import Came, Claim, Met, Post, Refused, Release, Went
from stun.sansio import SECOND

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_QUIET: Final = frozenset({ErrorCode.IDLE.value, ErrorCode.SHUTTING_DOWN.value})


class HallCollector:
    """Makes Prometheus' metrics of a hall's counts."""

    def __init__(self, hall: Hall) -> None:
        self._hall = hall

    def collect(self) -> Iterator[Metric]:
        """Yield every family of metrics."""
        states, counts = self._hall.states(), self._hall.counts
        for name, text in (
            ("connected", "Clients that are connected."),
            ("waiting", "Clients that wait for their peer."),
            ("paired", "Clients that have a peer."),
        ):
            yield GaugeMetricFamily(f"rendezvous_{name}", text, states[name])
        yield _counter("rendezvous_connections", "WebSockets opened.", "", {"": counts.came})
        yield _counter(
            "rendezvous_joins",
            'Names asked for, by what became of it: "waiting", "met", or the code of an error.',
            "result",
            counts.joins,
        )
        yield _counter("rendezvous_met", "Clients that were paired.", "", {"": counts.met})
        yield _counter("rendezvous_messages", "Messages handed over.", "", {"": counts.messages})
        yield _counter("rendezvous_bytes", "Octets in them.", "", {"": counts.octets})
        yield _counter(
            "rendezvous_refused", "Errors that clients were told.", "code", counts.refused
        )
        yield _counter("rendezvous_ended", "Ends of connections, by why.", "reason", counts.went)
        yield _counter("rendezvous_dropped", "What was not used.", "reason", counts.dropped)
        yield _counter("rendezvous_pings", "Pings sent.", "", {"": counts.pings})


def _counter(name: str, text: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label] if label else [])
    for value, count in values.items():
        family.add_metric([value] if label else [], count)
    return family


class Journal:
    """Writes what a rendezvous tells, a line an event."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self.log = log

    def tell(self, event: RendezvousEvent) -> None:
        """Write the line of one event."""
        log = self.log
        match event:
            case Came():
                log.debug("connected", client=event.client, address=event.address)
            case Met():
                log.info(
                    "met",
                    client=event.client,
                    address=event.address,
                    peer=event.peer,
                    waited=round(event.waited / SECOND, 3),
                )
            case Refused():
                write = log.debug if event.code in _QUIET else log.info
                write(
                    "refused",
                    client=event.client,
                    address=event.address,
                    code=event.code,
                    text=event.text,
                )
            case Went():
                log.debug(
                    "gone",
                    client=event.client,
                    address=event.address,
                    why=event.why,
                    seconds=round(event.lasted / SECOND, 3),
                    messages=event.messages,
                    octets=event.octets,
                )
            case Serving():
                log.debug("listening", address=str(event.local))
            case CannotServe():
                log.error(
                    "cannot listen",
                    address=str(event.local),
                    cause=event.cause.value,
                    detail=event.detail,
                )
            case Claim() | Release() | Post():
                pass
