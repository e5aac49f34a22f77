"""What users and client addresses have of each worker, in memory that all workers see.

Theory of operation.  Each worker has a region that it alone writes: its totals, and two tables, of
users and of clients.  An entry is found by a hash of the name (a digest of 16 octets, linear
probing) and holds how many allocations and connections there are.  Whoever admits more adds up what
all regions say; that and the writing are done under the lock of the memory.  So the sums are exact,
and a worker that died is taken out of them by clearing its region.

    region:  4 allocations | 4 connections | 8 entries in use | users: SLOTS entries | clients: ...
    entry:   16 digest, zero for none | 4 allocations | 4 connections

A table never fills up more than to three quarters, or it would be slow; what finds no room there is
counted in :attr:`Accounts.unshared` and known to its own worker only.  There is room for more than
``[limits]`` allow when turnd starts; pages that are not written cost nothing.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from mmap import MADV_REMOVE, PAGESIZE
from typing import Final

from turn.daemon.workers.memory import Memory
from turn.server.config import Limits

_HEADER = struct.Struct("=IIQ")
_ENTRY = struct.Struct("=16sII")
_COUNTS = struct.Struct("=II")
_ENTRIES = struct.Struct("=Q")
_DIGEST: Final = 16
_NOBODY: Final = bytes(_DIGEST)
_LEAST, _USUAL, _MOST = 1 << 8, 1 << 17, 1 << 22


def slots_for(limits: Limits) -> int:
    """Return how many entries a table has for these limits."""
    if not limits.allocations or not limits.connections:
        return _USUAL
    wanted = 4 * (limits.allocations + limits.connections)
    slots = _LEAST
    while slots < wanted and slots < _MOST:
        slots *= 2
    return slots


def region_size(slots: int) -> int:
    """Return the octets of one worker's region."""
    size = _HEADER.size + 2 * slots * _ENTRY.size
    return -(-size // PAGESIZE) * PAGESIZE


def digest_of(name: str | bytes) -> bytes:
    """Return what stands for a user or a client address."""
    # A name may have lone surrogates where a database has; what is no UTF-8 is a name all the same.
    octets = b"s" + name.encode(errors="surrogatepass") if isinstance(name, str) else b"b" + name
    return blake2b(octets, digest_size=_DIGEST).digest()


class _Table:
    """One table: a dictionary of fixed size in shared memory."""

    __slots__ = ("_at", "_mask", "_view")

    def __init__(self, memory: Memory, at: int, slots: int) -> None:
        self._view = memory.view
        self._at = at
        self._mask = slots - 1

    def _find(self, digest: bytes) -> tuple[int, bool]:
        """Return where an entry is or would be, and whether it is there."""
        view, at, mask, size = self._view, self._at, self._mask, _ENTRY.size
        slot = int.from_bytes(digest[:8]) & mask
        while True:
            start = at + slot * size
            found = view[start : start + _DIGEST]
            if found == digest:
                return slot, True
            if found == _NOBODY:
                return slot, False
            slot = slot + 1 & mask

    def get(self, digest: bytes) -> tuple[int, int]:
        slot, known = self._find(digest)
        if not known:
            return 0, 0
        start = self._at + slot * _ENTRY.size + _DIGEST
        allocations, connections = _COUNTS.unpack_from(self._view, start)
        return allocations, connections

    def put(self, digest: bytes, allocations: int, connections: int, *, room: bool) -> int | None:
        """Set an entry; return by how much the number of entries has changed.

        ``None``: a new one finds no room.
        """
        slot, known = self._find(digest)
        if not allocations and not connections:
            if known:
                self._remove(slot)
            return -int(known)
        if not known and not room:
            return None
        start = self._at + slot * _ENTRY.size
        # The digest last: an entry is there when it is whole.
        _COUNTS.pack_into(self._view, start + _DIGEST, allocations, connections)
        self._view[start : start + _DIGEST] = digest
        return int(not known)

    def _remove(self, slot: int) -> None:
        """Close the gap, so that what was put behind it is still found."""
        view, at, mask, size = self._view, self._at, self._mask, _ENTRY.size
        follower = slot
        while True:
            follower = follower + 1 & mask
            entry = view[at + follower * size : at + (follower + 1) * size]
            if entry[:_DIGEST] == _NOBODY:
                break
            home = int.from_bytes(entry[:8]) & mask
            if (follower - home & mask) >= (follower - slot & mask):
                view[at + slot * size : at + (slot + 1) * size] = entry
                slot = follower
        view[at + slot * size : at + (slot + 1) * size] = bytes(size)


class Accounts:
    """The regions of ``workers`` workers, from ``at`` on in ``memory``; ``number`` has its own.

    The supervisor, who has none, is number 0.  All calls are to be made with the lock held.
    """

    def __init__(self, memory: Memory, at: int, slots: int, workers: int, number: int) -> None:
        self._memory = memory
        self._size = region_size(slots)
        self._starts = [at + index * self._size for index in range(workers)]
        self._most = slots * 3 // 4
        self._users = [_Table(memory, start + _HEADER.size, slots) for start in self._starts]
        behind = _HEADER.size + slots * _ENTRY.size
        self._clients = [_Table(memory, start + behind, slots) for start in self._starts]
        self._own = number - 1
        self._others = [index for index in range(workers) if index != self._own]
        self.unshared = 0
        """Accounts that found no room."""

    def totals(self) -> tuple[int, int]:
        """Return the allocations and the connections of all other workers."""
        found = [
            _HEADER.unpack_from(self._memory.view, self._starts[index]) for index in self._others
        ]
        return sum(one[0] for one in found), sum(one[1] for one in found)

    def user(self, name: str) -> int:
        """Return the allocations that a user has of all other workers."""
        digest = digest_of(name)
        return sum(self._users[index].get(digest)[0] for index in self._others)

    def client(self, name: str | bytes) -> tuple[int, int]:
        """Return the allocations and connections that a client has of all other workers."""
        digest = digest_of(name)
        found = [self._clients[index].get(digest) for index in self._others]
        return sum(one[0] for one in found), sum(one[1] for one in found)

    def note_totals(self, allocations: int, connections: int) -> None:
        """Write down what this worker has in all."""
        view, start = self._memory.view, self._starts[self._own]
        _COUNTS.pack_into(view, start, allocations, connections)

    def note_user(self, name: str, allocations: int) -> None:
        """Write down what a user has of this worker."""
        self._put(self._users[self._own], digest_of(name), allocations, 0)

    def note_client(self, name: str | bytes, allocations: int, connections: int) -> None:
        """Write down what a client has of this worker."""
        self._put(self._clients[self._own], digest_of(name), allocations, connections)

    def _put(self, table: _Table, digest: bytes, allocations: int, connections: int) -> None:
        view, at = self._memory.view, self._starts[self._own] + _COUNTS.size
        (entries,) = _ENTRIES.unpack_from(view, at)
        change = table.put(digest, allocations, connections, room=entries < self._most)
        if change is None:
            self.unshared += 1
        elif change:
            _ENTRIES.pack_into(view, at, entries + change)

    def clear(self, number: int) -> None:
        """Forget what a worker had: it is gone."""
        self._memory.view.madvise(MADV_REMOVE, self._starts[number - 1], self._size)
