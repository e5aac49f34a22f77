"""What there is to be sent: files, and directories with what is in them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ice.punch.wire import MOST_DEPTH


class Missing(Exception):
    """What is named on the command line cannot be sent: which, and why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a directory.  ``parts`` is its path at the other side; ``mtime`` nanoseconds.

    ``why``: it cannot be sent, and this is why.
    """

    path: Path
    parts: tuple[str, ...]
    directory: bool = False
    size: int = 0
    mtime: int = 0
    mode: int = 0
    why: str = ""

    @property
    def name(self) -> str:
        """The path at the other side, for people."""
        return "/".join(self.parts)


def find(paths: Sequence[Path]) -> list[Entry]:
    """Return everything under ``paths``, directories before what is in them.

    Raises :class:`Missing` for what was named and cannot be had; what is found in a directory and
    cannot be sent is an entry that says why.
    """
    found: list[Entry] = []
    names: dict[str, Path] = {}
    for path in paths:
        name = path.name if path.name not in {"", ".."} else path.resolve().name
        if not name:
            raise Missing(f"{path} has no name of its own; send the directories in it.")
        if name in names:
            raise Missing(f"{names[name]} and {path} would both arrive as {name}.")
        names[name] = path
        try:
            status = path.stat()  # a link that was named is followed
        except (OSError, ValueError) as error:
            raise Missing(f"{path}: {getattr(error, 'strerror', None) or error}.") from None
        entry = _entry(path, (name,), status)
        if entry.why:
            raise Missing(
                f"{path} is {entry.why}; to send what comes out of it, join it to `punch listen`."
            )
        if not os.access(path, os.R_OK):
            raise Missing(f"{path} cannot be read: permission denied.")
        found.append(entry)
        if entry.directory:
            found.extend(_inside(entry))
    return found


def _inside(parent: Entry) -> Iterator[Entry]:
    try:
        with os.scandir(parent.path) as scanned:
            children = sorted(scanned, key=lambda each: each.name)
    except OSError as error:
        yield Entry(parent.path, (*parent.parts, "*"), why=error.strerror or str(error))
        return
    for child in children:
        parts = (*parent.parts, child.name)
        if len(parts) > MOST_DEPTH:
            yield Entry(Path(child.path), parts, why="too deep a directory")
            return
        try:
            entry = _entry(Path(child.path), parts, child.stat(follow_symlinks=False))
        except OSError as error:
            entry = Entry(Path(child.path), parts, why=error.strerror or str(error))
        yield entry
        if entry.directory and not entry.why:
            yield from _inside(entry)


def _entry(path: Path, parts: tuple[str, ...], status: os.stat_result) -> Entry:
    kind = status.st_mode
    mode, mtime = stat.S_IMODE(kind), status.st_mtime_ns
    if stat.S_ISDIR(kind):
        return Entry(path, parts, True, 0, mtime, mode)
    if stat.S_ISREG(kind):
        return Entry(path, parts, False, status.st_size, mtime, mode)
    for test, what in (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(kind):
            return Entry(path, parts, why=what)
    return Entry(path, parts, why="no regular file")
