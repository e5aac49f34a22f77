"""Which external address and port a new mapping gets (RFC 4787 sections 4.1 and 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from nattype.lab.sim.options import Pooling, SimOptions
from nattype.model import Allocation, NatModel
from stun.sansio import Address

LOWEST_PORT: Final = 1024
HIGHEST_PORT: Final = 65_535


class PortPool:
    """The external addresses of a box and the order in which it gives their ports out.

    ``free(protocol, external)`` says whether an endpoint is unused; who uses it is the box's
    affair.
    """

    def __init__(
        self,
        model: NatModel,
        options: SimOptions,
        random: Random,
        free: Callable[[int, Address], bool],
    ) -> None:
        self.hosts: dict[bool, list[str]] = {False: [], True: []}
        """The external addresses: IPv4 under ``False``, IPv6 under ``True``."""
        self._allocation = model.allocation
        self._delta = model.delta
        self._options = options
        self._random = random
        self._free = free
        self._paired: dict[str, str] = {}
        self._next: dict[tuple[int, str, int], int] = {}
        self._blocks: dict[tuple[str, str], range] = {}

    def add(self, host: str) -> None:
        """Put an external address into the pool."""
        self.hosts[":" in host].append(host)

    def allocate(
        self, protocol: int, internal: Address, *, preserve: bool = True
    ) -> Address | None:
        """Return a free external endpoint for a new mapping, or ``None`` when there is none."""
        pool = self.hosts[":" in internal.host]
        if not pool:
            return None
        if len(pool) == 1:
            host = pool[0]
        elif self._options.pooling is Pooling.ARBITRARY:
            host = self._random.choice(pool)
        else:
            host = self._paired.get(internal.host) or self._random.choice(pool)
            self._paired[internal.host] = host
        ports = self._range(host, internal.host)
        if self._options.port_parity:
            ports = ports[(ports.start ^ internal.port) & 1 :: 2] if ports else ports
        if not ports:
            return None
        if self._allocation is Allocation.SEQUENTIAL:
            return self._following(protocol, host, ports)
        if self._allocation is Allocation.PRESERVED and preserve:
            same = Address(host, internal.port)
            allowed = self._options.port_block is None or internal.port in ports
            if allowed and self._free(protocol, same):
                return same
        return self._any(protocol, host, ports)

    def _range(self, host: str, internal: str) -> range:
        """Return the ports from which an inside address is served; empty when none are left."""
        size = self._options.port_block
        if size is None:
            return range(LOWEST_PORT, HIGHEST_PORT + 1)
        block = self._blocks.get((host, internal))
        if block is None:
            taken = {b.start for (h, _), b in self._blocks.items() if h == host}
            first = -(-LOWEST_PORT // size) * size
            starts = [s for s in range(first, HIGHEST_PORT + 2 - size, size) if s not in taken]
            if not starts:
                return range(0)
            start = self._random.choice(starts)
            block = self._blocks[host, internal] = range(start, start + size)
        return block

    def _any(self, protocol: int, host: str, ports: range) -> Address | None:
        offset = self._random.randrange(len(ports))
        for n in range(len(ports)):
            external = Address(host, ports[(offset + n) % len(ports)])
            if self._free(protocol, external):
                return external
        return None

    def _following(self, protocol: int, host: str, ports: range) -> Address | None:
        counter = (protocol, host, ports.start)
        index = self._next.get(counter)
        if index is None:
            # Somewhere in the middle, so that the sequence is rarely seen to wrap.
            index = len(ports) // 4 + self._random.randrange(max(1, len(ports) // 2))
        for _ in range(len(ports)):
            external = Address(host, ports[index % len(ports)])
            index += self._delta
            if self._free(protocol, external):
                self._next[counter] = index
                return external
        return None
