"""The rates of users and clients, as accounts that all workers draw on.

Theory of operation.  A bucket of :mod:`turn.meter` can have a :class:`turn.meter.Source`: it then
draws a lease at a time from there.  Here that is an entry in memory that all workers see, read and
written under the lock; so of all workers together nobody gets more than one would give.  A lease is
a part of a second's worth, so this happens some hundred times a second for each busy user, not for
each packet.

An entry has nobody who opens or closes it.  One that has not been drawn on for so long that it is
full again says the same as none; so it may be taken for another name.  A place is sought among
:data:`WAYS` that the hash of the name allows, and if all of them are in use the one that has been
idle longest is taken: with :data:`ENTRIES` that is rare, and what it costs is a debt that is
forgotten, or a burst that is given twice.

    entry:  16 digest | 8 octets | 8 packets (both floating) | 8 time of the last draw
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Final

from stun.sansio import SECOND, Instant
from turn.daemon.workers.accounts import digest_of
from turn.daemon.workers.memory import Memory
from turn.meter import Bucket

ENTRIES: Final = 1 << 15
WAYS: Final = 8

_ENTRY = struct.Struct("=16sddq")
_NOBODY: Final = bytes(16)
SIZE: Final = ENTRIES * _ENTRY.size
"""Octets of the whole table."""


class Rates:
    """The table, from ``at`` on in ``memory``.

    ``clock`` gives the same time to all workers: CLOCK_MONOTONIC, in nanoseconds.
    """

    def __init__(
        self, memory: Memory, at: int, clock: Callable[[], Instant] = time.monotonic_ns
    ) -> None:
        self._memory = memory
        self._at = at
        self._clock = clock

    def bucket(self, whose: str, name: str | bytes, rates: tuple[int, int]) -> Bucket:
        """Return the bucket of a user or a client; ``whose`` tells these apart."""
        bucket = Bucket(*rates)
        source = _Account(self, bucket, digest_of(whose.encode() + digest_of(name)))
        # What this bucket would have is not its own to bring: others may have spent it.
        bucket.share(source, self._clock())
        return bucket

    def draw(self, digest: bytes, bucket: Bucket, octets: int, packets: int) -> bool:
        """Take so much of an account whose rates are those of ``bucket``, unless it is in debt."""
        now = self._clock()
        with self._memory as memory:
            slot, found = self._find(digest, now)
            depth = bucket.octet_rate * bucket.burst, bucket.packet_rate * bucket.burst
            held, others = depth if found is None else found[:2]
            if found is not None:
                # What another worker has drawn meanwhile may be later than this clock's reading.
                elapsed = max(now - found[2], 0) / SECOND
                held = min(depth[0], held + elapsed * bucket.octet_rate)
                others = min(max(depth[1], 1.0), others + elapsed * bucket.packet_rate)
                now = max(now, found[2])
            granted = not ((octets and held <= 0) or (packets and others <= 0))
            if granted:
                held, others = held - octets, others - packets
            _ENTRY.pack_into(memory.view, self._at + slot * _ENTRY.size, digest, held, others, now)
        return granted

    def _find(self, digest: bytes, now: Instant) -> tuple[int, tuple[float, float, int] | None]:
        """Return where an entry is and what it says, or where it may be put."""
        view, first = self._memory.view, int.from_bytes(digest[:8]) % (ENTRIES - WAYS)
        oldest, place = now + SECOND, first
        free: int | None = None
        for slot in range(first, first + WAYS):
            name, octets, packets, at = _ENTRY.unpack_from(view, self._at + slot * _ENTRY.size)
            if name == digest:
                return slot, (octets, packets, at)
            if name == _NOBODY:
                free = slot if free is None else free
            elif at < oldest:
                oldest, place = at, slot
        return (place if free is None else free), None


class _Account:
    """The source of one bucket."""

    __slots__ = ("_bucket", "_digest", "_rates")

    def __init__(self, rates: Rates, bucket: Bucket, digest: bytes) -> None:
        self._rates = rates
        self._bucket = bucket
        self._digest = digest

    def draw(self, octets: int, packets: int) -> bool:
        return self._rates.draw(self._digest, self._bucket, octets, packets)

    def change(self) -> None:
        """Nothing: the rates are asked for with each draw."""
