"""What was written and is not acknowledged: kept once, framed from anywhere.

Chunks are kept as they were written, so a large write costs no copy; small ones are gathered.  A
frame is put together by one join, the only time that the octets of the stream are copied on their
way out.
"""

from __future__ import annotations

from collections import deque

from ice.link.frames import data_header

GATHERED = 16384
"""Writes shorter than this are put together, up to as much."""


class Outbound:
    """The octets from ``base`` (acknowledged up to there) to ``end`` of a stream."""

    __slots__ = ("_at", "_chunks", "_from", "_index", "_small", "base", "end", "ended")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._small = bytearray()
        """What comes after the last chunk."""
        self._from = 0
        """Offset of the first octet of the first chunk; may be before :attr:`base`."""
        self._index = 0
        """The chunk where the last frame ended, and the offset where it begins: where the next
        one most likely starts."""
        self._at = 0
        self.base = 0
        self.end = 0
        self.ended = False

    def __len__(self) -> int:
        return self.end - self.base

    @property
    def final(self) -> int | None:
        """What the peer expects when it has everything, FIN counted as one; ``None``: no end."""
        return self.end + 1 if self.ended else None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append octets; anything but :class:`bytes` is copied."""
        length = len(data) if not isinstance(data, memoryview) else data.nbytes
        if length < GATHERED:
            self._small += data
            if len(self._small) >= GATHERED:
                self._settle()
        else:
            self._settle()
            self._chunks.append(data if type(data) is bytes else bytes(data))
        self.end += length

    def acknowledge(self, offset: int) -> None:
        """Forget what is before ``offset``."""
        self.base = min(offset, self.end)
        chunks = self._chunks
        while chunks and self._from + len(chunks[0]) <= self.base:
            self._from += len(chunks.popleft())
            self._index -= 1
        if self._index < 0:
            self._index, self._at = 0, self._from

    def frame(self, offset: int, length: int) -> bytes:
        """Return a DATA frame with the ``length`` octets from ``offset`` on, all of them kept."""
        if self._small and offset + length > self.end - len(self._small):
            self._settle()
        index, at = self._find(offset)
        chunks = self._chunks
        chunk = chunks[index]
        begin = offset - at
        if begin + length <= len(chunk):
            self._index, self._at = index, at
            if length == len(chunk):
                return data_header(offset, length) + chunk
            piece = memoryview(chunk)[begin : begin + length]
            return b"".join((data_header(offset, length), piece))
        parts: list[bytes | memoryview] = [data_header(offset, length)]
        while length > 0:
            here = memoryview(chunk)[begin : begin + length]
            parts.append(here)
            length -= len(here)
            if length > 0:
                at += len(chunk)
                index += 1
                chunk = chunks[index]
                begin = 0
        self._index, self._at = index, at
        return b"".join(parts)

    def _find(self, offset: int) -> tuple[int, int]:
        """Return the chunk that holds ``offset``, and the offset where it begins."""
        index, at = self._index, self._at
        if offset < at:
            index, at = 0, self._from
        chunks = self._chunks
        while offset >= at + len(chunks[index]):
            at += len(chunks[index])
            index += 1
        return index, at

    def _settle(self) -> None:
        """Make a chunk of the small writes, or a part of the last one if that is small, too."""
        small, chunks = self._small, self._chunks
        if not small:
            return
        if chunks and len(chunks[-1]) + len(small) <= GATHERED:
            chunks[-1] += bytes(small)
        else:
            chunks.append(bytes(small))
        small.clear()
