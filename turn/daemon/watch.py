"""Notices that files have changed, by looking: works on every file system and through symlinks.

Certificates are renewed by putting new files in the place of the old, often by moving a symlink
(certbot, Kubernetes), so the file behind the path is what is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

_State: TypeAlias = tuple[int, int, int, int, int] | None


class FileWatch:
    """Remembers the state of ``paths`` and says when it is another."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._states = self._look()

    def changed(self) -> bool:
        """Whether a file is another than at the last call, or at the beginning."""
        before, self._states = self._states, self._look()
        return before != self._states

    def _look(self) -> tuple[_State, ...]:
        return tuple(map(_state, self._paths))


def _state(path: Path) -> _State:
    try:
        status = path.stat()
    except OSError:
        return None
    # The time of the last change of status as well: what could not be read may be readable now.
    return (
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
    )
