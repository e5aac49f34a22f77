"""Memory that the supervisor and its workers see, and the lock that goes with it.

It is an anonymous file (memfd_create(2)) that every process maps.  The lock is a record lock on it
(fcntl(2), ``F_SETLKW``): the kernel lets go of it when its holder dies, however that happens, and
what the others then find is at worst half of one entry of the one that died, which is cleared.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from types import TracebackType
from typing import Self


class Memory:
    """``size`` octets, zero in the beginning; pages that nobody writes cost nothing.

    A context manager: within it, this process alone reads and writes.  It may be entered again by
    the same thread.
    """

    __slots__ = ("_depth", "fd", "view")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.view = mmap.mmap(fd, 0)
        self._depth = 0

    @classmethod
    def make(cls, size: int) -> Self:
        """Return new memory."""
        fd = os.memfd_create("turnd", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Let go of it; it is gone with the last process that does."""
        self.view.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        if not self._depth:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
        self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if not self._depth:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)
