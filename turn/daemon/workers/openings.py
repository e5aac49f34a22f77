"""Which relayed transport addresses are open, of all workers, in memory that all of them see.

Two clients that relay through the same server are a common pair, and often of different workers.
Each worker must know of the other's relayed transport addresses that they are such: the policy
allows those on the server's own hosts and nothing else there, and behind a one-to-one NAT they are
reached where they are bound.

For each host that is relayed from, and for UDP and TCP apart, there is an octet a port: the number
of the worker that has it open, 0 for none; and for UDP another one that says whether a data plane
of some other worker forwards there.  A port belongs to one worker's share, so nobody else writes
its octet, and no lock is needed.

Whatever passes through a server machine looks here for each packet.  A data plane does not: a
route that leads to another worker's relayed transport address ends when the message that this has
closed is read, which is as soon as that worker has its next turn.

    host:  65536 open by UDP | 65536 open by TCP | 65536 visited
"""

from __future__ import annotations

from typing import Final

from turn.daemon.workers.memory import Memory

HOSTS: Final = 64
"""Hosts that may have been relayed from, from the start of turnd to its end."""
_PORTS: Final = 1 << 16
_HOST: Final = 3 * _PORTS
SIZE: Final = HOSTS * _HOST


class Openings:
    """The octets, from ``at`` on in ``memory``.

    ``places`` says which host has which part; a host that has none is as if nothing were open.
    """

    def __init__(self, memory: Memory, at: int, number: int) -> None:
        self._memory = memory
        self._view = memory.view
        self._at = at
        self._number = number
        self.places: dict[str, int] = {}

    def _find(self, host: str, part: int) -> int | None:
        place = self.places.get(host)
        return None if place is None else self._at + place * _HOST + part * _PORTS

    def open(self, host: str, port: int, *, tcp: bool) -> None:
        """Say that this worker has a port open."""
        start = self._find(host, int(tcp))
        if start is not None:
            self._view[start + port] = self._number

    def close(self, host: str, port: int, *, tcp: bool) -> bool:
        """Say that it has no more; return whether some other worker is to be told."""
        start, visited = self._find(host, int(tcp)), self._find(host, 2)
        if start is None or visited is None:
            return False
        self._view[start + port] = 0
        if tcp or not self._view[visited + port]:
            return False
        self._view[visited + port] = 0
        return True

    def has(self, host: str, port: int, *, tcp: bool) -> bool:
        """Whether another worker has a port open."""
        start = self._find(host, int(tcp))
        return start is not None and self._view[start + port] not in (0, self._number)

    def visit(self, host: str, port: int) -> None:
        """Have whoever has it open tell all when it closes."""
        start = self._find(host, 2)
        if start is not None:
            self._view[start + port] = 1

    def clear(self, number: int) -> None:
        """Close everything of a worker that is gone."""
        for place in self.places.values():
            start = self._at + place * _HOST
            octets = self._view[start : start + 2 * _PORTS]
            mark = number.to_bytes(1)
            index = octets.find(mark)
            while index >= 0:
                self._view[start + index] = 0
                index = octets.find(mark, index + 1)
