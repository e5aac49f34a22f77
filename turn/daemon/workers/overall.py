"""What there is one of beside several workers: they are asked, and what they say is added up."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from stun.sansio import Address
from turn.daemon.admin import Command
from turn.daemon.metrics import MetricsServer
from turn.daemon.operations import commands
from turn.daemon.parts import Health, Part, Parts
from turn.daemon.settings import Settings
from turn.daemon.workers.orders import has_fleet

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from turn.daemon.workers.crew import Crew
    from turn.daemon.workers.supervisor import Supervisor


class OverallMetrics(MetricsServer):
    """Asks the workers for their figures before it answers."""

    def __init__(self, crew: Crew, address: Address, registry: CollectorRegistry) -> None:
        super().__init__(address, registry)
        self._crew = crew

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
        await self._crew.refresh()
        return await super()._answer(reader)


def overall_commands(supervisor: Supervisor) -> dict[str, Command]:
    """Return the commands of the admin socket: those of one turnd, for all workers."""
    crew = supervisor.crew

    async def sessions(_: Mapping[str, Any]) -> Any:
        answers = await crew.ask_all("sessions", {})
        return [{**one, "worker": number} for number, found in answers for one in found]

    async def disconnect(request: Mapping[str, Any]) -> Any:
        answers = await crew.ask_all("disconnect", request)
        return {"ended": sum(answer["ended"] for _, answer in answers)}

    async def drain(_: Mapping[str, Any]) -> Any:
        await crew.refresh()
        return {"left": supervisor.drain()}

    async def status(_: Mapping[str, Any]) -> Any:
        await crew.refresh()
        return supervisor.status()

    return commands(supervisor) | {
        "sessions": sessions,
        "disconnect": disconnect,
        "drain": drain,
        "status": status,
    }


def figures_of_processes(crew: Crew) -> Iterator[Metric]:
    """Yield what Prometheus is told of each worker's process."""
    serves = GaugeMetricFamily("turnd_worker_up", "Whether a worker serves.", labels=("worker",))
    allocations = GaugeMetricFamily(
        "turnd_worker_allocations", "Allocations that live, by worker.", labels=("worker",)
    )
    memory = GaugeMetricFamily(
        "turnd_worker_resident_memory_bytes", "Resident memory, by worker.", labels=("worker",)
    )
    cpu = CounterMetricFamily(
        "turnd_worker_cpu_seconds",
        "CPU time, user and system, of those who have the workers' places now.",
        labels=("worker",),
    )
    for member in crew.members:
        label = (str(member.number),)
        serves.add_metric(label, int(member.serves))
        allocations.add_metric(label, member.figures.metrics.allocations)
        if member.pid is not None and (used := _used_by(member.pid)) is not None:
            cpu.add_metric(label, used[0])
            memory.add_metric(label, used[1])
    yield from (serves, allocations, memory, cpu)
    replaced = CounterMetricFamily(
        "turnd_workers_replaced", "Workers that died and were replaced.", value=crew.replaced
    )
    yield replaced


def _used_by(pid: int) -> tuple[float, int] | None:
    """Return the CPU time in seconds and the resident octets of a process, if it is there."""
    try:
        # proc(5): behind the name, which may hold anything, in brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


class OverallParts(Parts):
    """The supervisor's parts; the database of users is asked by each worker for itself."""

    def __init__(self, supervisor: Supervisor, config: Path | None) -> None:
        super().__init__(supervisor, config)
        self._supervisor = supervisor

    async def _database(self, part: Part, settings: Settings) -> None:
        if has_fleet(settings):
            await self._join_fleet(part, settings, Health(self._host.database_state))

    def _metrics_server(self, listen: Address, figures: CollectorRegistry) -> MetricsServer:
        return OverallMetrics(self._supervisor.crew, listen, figures)

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of the rendezvous, if there is one, and of the workers' processes."""
        yield from super().collect()
        yield from figures_of_processes(self._supervisor.crew)

    def _commands(self) -> dict[str, Command]:
        return overall_commands(self._supervisor)
