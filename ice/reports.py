"""What an agent says about itself to a person or a log: counts, explanations, a timeline."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

from stun.errors import UsageError

if TYPE_CHECKING:
    from ice.connection import Connection
    from ice.driver import AgentDriver
    from ice.explain import Explanation
    from ice.machine import AgentMachine
    from ice.stats import Statistics
    from ice.view import AgentView


class Reports:
    """What :class:`ice.Agent` reports; none of it changes anything."""

    _machine: AgentMachine
    _view: AgentView
    _driver: AgentDriver | None
    _connections: dict[tuple[int, int], Connection]

    def _now(self) -> int:
        raise NotImplementedError

    @property
    def counters(self) -> Mapping[str, int]:
        """What was sent, received and dropped, in words for a person."""
        counts: Counter[str] = Counter()
        for reason, number in self._machine.drops.items():
            counts[f"received and dropped: {reason.value}"] += number
        if self._driver is not None:
            counts.update(self._driver.counters)
        for connection in self._connections.values():
            counts.update(connection.counters)
        return counts

    def explain(self) -> Explanation:
        """Say why each pair won, lost or failed; ``.text()`` and ``.json()`` of it are for use."""
        from ice.explain import explain

        return explain(self._view, self._now())

    def statistics(self) -> Statistics:
        """Count what each pair has carried, and measure it; ``.rtc()`` has WebRTC's names."""
        from ice.stats import statistics

        machine, view = self._machine, self._view
        return statistics(
            view,
            self._now(),
            measured=machine.measured,
            selections=view.selections,
            unsent=machine.unsent,
        )

    def write_timeline(self, file: BinaryIO) -> None:
        """Write the checks and events that were kept as a pcapng file, for Wireshark.

        Raises :class:`stun.errors.UsageError` without ``Config.timeline``.
        """
        from ice.timeline import write_pcapng

        if self._machine.timeline is None:
            raise UsageError("nothing was kept: ask for it by ice.Config(timeline=256)")
        write_pcapng(self._machine.timeline, file, epoch=time.time_ns() - self._now())
