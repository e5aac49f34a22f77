"""The program in the kernel and the network, as far as those who fill its maps can tell."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Mapping
from typing import TypeAlias

from stun.sansio import SECOND, Address, Instant
from turn.dataplane.kernel.layouts import (
    Count,
    Path,
    PathKey,
    PathUsage,
    Rate,
    changed,
    unpack_key,
    unpack_path,
)
from turn.dataplane.kernel.ways import Interface, Way

Hosts: TypeAlias = tuple[str, str]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now: Instant = 1000 * SECOND

    def __call__(self) -> Instant:
        return self.now


class FakeProgram:
    """The maps, with the arithmetic of ``relay.bpf.c`` where others rely on it."""

    def __init__(
        self, clock: Clock, *, paths: int = 1000, usages: int = 1000, buckets: int = 100
    ) -> None:
        self.clock = clock
        self.path_limit, self.usage_limit, self.bucket_limit = paths, usages, buckets
        self.paths: dict[PathKey, Path] = {}
        self.used = [PathUsage(0, 0, 0)] * usages
        self.buckets = [Rate(0, 0, 0, 0, 0)] * buckets
        self.ports: Counter[int] = Counter()
        self.told: Counter[Count] = Counter()
        self.attached_to: set[int] = set()
        self.refuses: dict[str, int] = {}
        """Error numbers by the name of the method that raises them."""
        self.closed = False

    def _may(self, what: str) -> None:
        assert not self.closed, f"{what} after the end"
        if what in self.refuses:
            code = self.refuses[what]
            raise OSError(code, os.strerror(code))

    # What KernelRoutes uses. ----------------------------------------------------------------------

    @property
    def attached(self) -> frozenset[int]:
        return frozenset(self.attached_to)

    def attach(self, ifindex: int) -> None:
        self._may("attach")
        self.attached_to.add(ifindex)

    def detach(self, ifindex: int) -> None:
        self._may("detach")
        self.attached_to.discard(ifindex)

    def set_path(self, key: bytes, value: bytes) -> None:
        self._may("set_path")
        found = unpack_key(key)
        if found not in self.paths and len(self.paths) == self.path_limit:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        self.paths[found] = unpack_path(value)

    def drop_path(self, key: bytes) -> bool:
        self._may("drop_path")
        return self.paths.pop(unpack_key(key), None) is not None

    def usage(self, index: int) -> PathUsage:
        self._may("usage")
        return self.used[index]

    def serve_port(self, port: int) -> None:
        self._may("serve_port")
        self.ports[port] += 1

    def unserve_port(self, port: int) -> None:
        self._may("unserve_port")
        assert self.ports[port] > 0, port
        self.ports[port] -= 1

    def set_bucket(
        self,
        index: int,
        octet_rate: int,
        packet_rate: int,
        burst_ns: int,
        *,
        now: Instant | None = None,
    ) -> None:
        self._may("set_bucket")
        assert 0 < index < self.bucket_limit, index
        at = self.clock() if now is None else now
        self.buckets[index] = changed(self.buckets[index], octet_rate, packet_rate, burst_ns, at)

    def rate(self, index: int) -> Rate:
        self._may("rate")
        assert 0 < index < self.bucket_limit, index
        return self.buckets[index]

    def draw(self, index: int, octets: int, packets: int) -> bool:
        self._may("draw")
        assert 0 < index < self.bucket_limit, index
        assert octets >= 0, octets
        assert 0 <= packets < 1 << 32, packets
        return self._take(index, octets, packets)

    def counts(self) -> dict[Count, int]:
        self._may("counts")
        return {count: self.told[count] for count in Count}

    def close(self) -> None:
        self.closed = True

    # What packets do. -----------------------------------------------------------------------------

    def _take(self, index: int, octets: int, packets: int) -> bool:
        cost, packet_cost, burst, octets_at, packets_at = self.buckets[index]
        now = self.clock()
        if (cost and octets_at > now + burst) or (packet_cost and packets_at > now + burst):
            return False
        octets_at = max(octets_at, now) + (octets * cost >> 16)
        packets_at = max(packets_at, now) + packets * packet_cost
        self.buckets[index] = Rate(cost, packet_cost, burst, octets_at, packets_at)
        return True

    def packet(self, key: PathKey, octets: int) -> Path | None:
        """Have a packet arrive; return the path that it went on, ``None`` when it did not."""
        path = self.paths.get(key)
        if path is None or not self.ports[key.local.port] or self.clock() >= path.expires:
            return None
        packets, total, dropped = self.used[path.usage]
        taken: list[int] = []
        for index in path.buckets:
            if index and not self._take(index, octets, 1):
                for other in taken:
                    old = self.buckets[other]
                    self.buckets[other] = old._replace(
                        octets_at=old.octets_at - (octets * old.octet_cost >> 16),
                        packets_at=old.packets_at - old.packet_cost,
                    )
                self.used[path.usage] = PathUsage(packets, total, dropped + 1)
                self.told[Count.OVER_RATE] += 1
                return None
            if index:
                taken.append(index)
        self.used[path.usage] = PathUsage(packets + 1, total + octets, dropped)
        self.told[Count.TO_PEERS if key.channel else Count.TO_CLIENTS] += 1
        return path


class FakeNetwork:
    """What :class:`turn.dataplane.kernel.ways.Ways` says; everything leaves by ``usual``."""

    def __init__(self) -> None:
        self.usual: Way | None = Way(2, 1500)
        self.ways: dict[Hosts, Way | None] = {}
        self.asked: list[Hosts] = []
        self.links: Mapping[int, Interface] = {2: Interface("eth0", 1500, is_port=False)}
        self.news = False
        self.fails = 0
        self.closed = False

    def way_of(self, source: str, destination: str) -> Way | None:
        self.asked.append((source, destination))
        return self.ways.get((source, destination), self.usual)

    def interfaces(self) -> Mapping[int, Interface]:
        return self.links

    def fileno(self) -> int:
        return -1 if self.closed else 99

    def changed(self) -> bool:
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails))
        news, self.news = self.news, False
        return news

    def close(self) -> None:
        self.closed = True


def key_to_peer(server: Address, client: Address, channel: int) -> PathKey:
    """Return how the program finds ChannelData."""
    return PathKey(server, client, channel)


def key_to_client(relay: Address, peer: Address) -> PathKey:
    """Return how the program finds what a peer sends."""
    return PathKey(relay, peer, 0)
