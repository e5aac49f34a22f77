"""The program in the kernel, loaded: what it knows, what it counts, and which interfaces it is on.

Theory of operation.  A :class:`RelayProgram` holds descriptors and nothing else: of the programs,
of their maps, and of one link for each interface.  When they are closed, and the kernel closes them
when the process ends in whatever way, all of it is gone.  Several of them on an interface make a
list: each passes on what is not its own.

Paths are set and taken out with a system call each.  What has passed on them is read without one,
from the memory that the kernel counts in.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from stun.sansio import Instant
from turn.dataplane.kernel import libbpf
from turn.dataplane.kernel.layouts import (
    BUCKET,
    KEY,
    PATH,
    PORT_WORDS,
    USAGE,
    Count,
    PathUsage,
    Rate,
    changed,
    pack_draw,
    unpack_rate,
)
from turn.dataplane.kernel.support import KernelUnavailable, explain, object_path, why_not

ROUTES: Final = 32768
BUCKETS: Final = 16384
"""For how many there is room, if nothing else is said: 4 MB, and more with each path."""

_INDEX = struct.Struct("=I")
_COUNTER = struct.Struct("=Q")
_GRANTED = 1
_LAYOUTS = {"paths": (KEY.size, PATH.size), "usage": (4, USAGE.size), "buckets": (4, BUCKET.size),
            "ports": (4, 8), "counts": (4, 8)}  # fmt: skip


class RelayProgram:
    """The loaded program with its maps.  Made by :meth:`load`; to be closed.

    Everything after that raises ``OSError`` when the kernel refuses it.  Not for use from several
    threads at once.
    """

    def __init__(self, object_: libbpf.BpfObject) -> None:
        """Take over an object that is loaded."""
        self._object = object_
        maps = {name: object_.map(name) for name in _LAYOUTS}
        for name, sizes in _LAYOUTS.items():
            if (maps[name].key_size, maps[name].value_size) != sizes:
                raise KernelUnavailable(
                    f"{object_.path} is of another version of natkit "
                    f'(its map "{name}" is laid out differently): make bpf'
                )
        self._paths = maps["paths"]
        self._usage = maps["usage"]
        self._buckets = maps["buckets"]
        self._ports = maps["ports"]
        self._counts = maps["counts"]
        if self._counts.max_entries != len(Count):
            raise KernelUnavailable(f"{object_.path} is of another version of natkit: make bpf")
        self._relay = object_.program("relay")
        self._run = libbpf.TestRun(self._relay)
        self._draw = libbpf.TestRun(object_.program("draw"))
        self._links: dict[int, int] = {}
        self._served: Counter[int] = Counter()
        self._bits = [0] * PORT_WORDS
        self._cpus = libbpf.possible_cpus()
        self.path_limit: Final = self._paths.max_entries
        """How many paths there can be."""
        self.usage_limit: Final = self._usage.max_entries
        """Indices of usage are below it."""
        self.bucket_limit: Final = self._buckets.max_entries
        """Indices of buckets are below it; 0 is no bucket."""
        octets = self._usage.max_entries * USAGE.size
        pages = -(-octets // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(self._usage.fd, pages, mmap.MAP_SHARED, mmap.PROT_READ)
        # Elements of a view are read with one instruction each, so no count is seen half written.
        self._used = memoryview(self._memory).cast("Q")

    @classmethod
    def load(
        cls, *, routes: int = ROUTES, buckets: int = BUCKETS, path: Path | None = None
    ) -> RelayProgram:
        """Load the program, with room for so many routes (two paths each) and buckets.

        Raises :class:`KernelUnavailable`.
        """
        if (reason := why_not(path)) is not None:
            raise KernelUnavailable(reason)
        object_ = None
        try:
            object_ = libbpf.BpfObject(path or object_path())
            object_.resize("paths", 2 * routes)
            object_.resize("usage", 2 * routes)
            object_.resize("buckets", buckets)
            object_.load()
            return cls(object_)
        except OSError as error:
            if object_ is not None:
                object_.close()
            raise KernelUnavailable(
                f"the kernel does not take the program: {explain(error)}",
                error.detail if isinstance(error, libbpf.BpfError) else "",
            ) from error
        except KernelUnavailable:
            if object_ is not None:
                object_.close()
            raise

    def close(self) -> None:
        """Take the program off all interfaces and free everything."""
        for ifindex in list(self._links):
            self.detach(ifindex)
        self._used.release()
        self._memory.close()
        self._object.close()

    # Interfaces. ----------------------------------------------------------------------------------

    @property
    def attached(self) -> frozenset[int]:
        """The interfaces that it is on; not those that are gone."""
        return frozenset(n for n, link in self._links.items() if libbpf.attached_to(link) == n)

    def attach(self, ifindex: int) -> None:
        """Put it on an interface, after programs that are there already.

        Nothing happens when it is there.  Raises ``OSError``.
        """
        link = self._links.get(ifindex)
        if link is not None:
            if libbpf.attached_to(link) == ifindex:
                return
            # The interface went away and another has its number, or somebody took it off.
            self.detach(ifindex)
        self._links[ifindex] = libbpf.attach(self._relay, ifindex)

    def detach(self, ifindex: int) -> None:
        """Take it off an interface.  Nothing happens when it is not there."""
        link = self._links.pop(ifindex, None)
        if link is not None:
            os.close(link)

    # Paths. ---------------------------------------------------------------------------------------

    def set_path(self, key: bytes, value: bytes) -> None:
        """Forward on this path, or from now on by this value.  See ``layouts`` for the octets.

        Raises ``OSError``: E2BIG when there are as many paths as there can be.
        """
        self._paths.update(key, value)

    def drop_path(self, key: bytes) -> bool:
        """Forward no longer on this path; say whether there was one.

        At most one packet for each CPU, which found the path before, still passes.
        """
        return self._paths.delete(key)

    def path(self, key: bytes) -> bytes | None:
        """Return what is set for this key."""
        return self._paths.lookup(key)

    def usage(self, index: int) -> PathUsage:
        """Return what has passed and what was over the rate since it was cleared."""
        at = 4 * index
        packets, octets, dropped = self._used[at : at + 3]
        return PathUsage(packets, octets, dropped)

    def clear_usage(self, index: int) -> None:
        """Begin at zero."""
        self._usage.update(_INDEX.pack(index), bytes(USAGE.size))

    def serve_port(self, port: int) -> None:
        """Look at what arrives at this port.  Each call is to be undone once."""
        if not self._served[port]:
            self._set_port(port, 1)
        self._served[port] += 1

    def unserve_port(self, port: int) -> None:
        """Pass on what arrives at this port, when nobody else asked for it."""
        if not self._served[port]:
            raise ValueError(f"port {port} is not served")
        if self._served[port] == 1:
            self._set_port(port, 0)
        self._served[port] -= 1

    def _set_port(self, port: int, bit: int) -> None:
        word, at = divmod(port, 64)
        value = self._bits[word] & ~(1 << at) | bit << at
        self._ports.update(_INDEX.pack(word), _COUNTER.pack(value))
        self._bits[word] = value

    # Rates. ---------------------------------------------------------------------------------------

    def set_bucket(
        self,
        index: int,
        octet_rate: int,
        packet_rate: int,
        burst_ns: int,
        *,
        now: Instant | None = None,
    ) -> None:
        """Set the rates of a bucket, each a second (0: no limit), and its depth in time.

        What it holds and what it owes stay, up to the new depth.  What passes in the microseconds
        between reading and writing it is not charged.
        """
        key = _INDEX.pack(index)
        old = self._buckets.lookup(key, libbpf.LOCKED)
        if old is None or not index:
            raise IndexError(f"there is no bucket {index}: they are 1 to {self.bucket_limit - 1}")
        at = time.monotonic_ns() if now is None else now
        new = changed(unpack_rate(old), octet_rate, packet_rate, burst_ns, at)
        self._buckets.update(key, new.pack(), libbpf.LOCKED)

    def rate(self, index: int) -> Rate:
        """Return a bucket as it is at this moment."""
        found = self._buckets.lookup(_INDEX.pack(index), libbpf.LOCKED)
        if found is None:
            raise IndexError(f"there is no bucket {index}: they are 1 to {self.bucket_limit - 1}")
        return unpack_rate(found)

    def draw(self, index: int, octets: int, packets: int) -> bool:
        """Take octets and packets out of a bucket; say whether it had any.

        What it has less than that, it owes: as with a packet, of whatever size, in the kernel.
        """
        return self._draw.verdict(pack_draw(index, octets, packets)) == _GRANTED

    # Looking at it. -------------------------------------------------------------------------------

    def counts(self) -> dict[Count, int]:
        """Return what was forwarded, dropped and passed up since it was loaded."""
        found = {}
        for count in Count:
            values = self._counts.lookup(_INDEX.pack(count), copies=self._cpus) or b""
            found[count] = sum(
                int.from_bytes(values[at : at + 8], sys.byteorder)
                for at in range(0, len(values), 8)
            )
        return found

    def run(self, frame: bytes, *, ifindex: int = 0, segment: int = 0) -> tuple[int, bytes]:
        """Run it on an Ethernet frame of ours; return its verdict and the frame as it left it.

        The frame goes nowhere, but it is counted.  ``ifindex`` is where it arrives (0: the loopback
        interface), ``segment`` the octets of each datagram when it is several in one.
        """
        return self._run.packet(frame, ifindex=ifindex, segment=segment)
