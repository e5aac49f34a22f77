"""Where received files go: nothing outside the directory, nothing overwritten, nothing by halves.

Theory of operation.  A file is written under its name and a suffix, and gets its name when its hash
has been checked; until then it stays, so that a later transfer goes on from there.  Whatever the
peer says, no symbolic link below the directory is followed: parts of a path that are links are
refused, and the file itself is opened with O_NOFOLLOW.  It must be a plain file of this user with
one name, and it is locked while it is written to.

Everything here blocks, and raises :class:`Refusal` for what is not done and ``OSError``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ice.punch import names

try:
    import fcntl
except ImportError:  # Windows has other locks, and opens what is written to but once
    fcntl = None  # type: ignore[assignment]

DIFFERENT: Final = "there is another file of that name (punch recv --force replaces it)"
READ: Final = 1 << 20
_PARTIAL_FLAGS: Final = (
    os.O_RDWR
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a pipe in its place must not stop us
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class Refusal(Exception):
    """A file is not taken; the text says why, to both sides."""


@dataclass(frozen=True, slots=True)
class Found:
    """What there is already of a file: so many octets of ``path``, or nothing (None).

    ``complete``: it is the file itself, not one that was interrupted.
    """

    path: Path | None = None
    octets: int = 0
    complete: bool = False


class Store:
    """A directory that files of a peer go to."""

    def __init__(self, root: Path, *, force: bool = False, hidden: bool = False) -> None:
        self._root = root.absolute()
        self.force = force
        self._hidden = hidden
        self.opened: set[Partial] = set()
        self._directories: list[tuple[Path, int, int]] = []
        mask = os.umask(0)
        os.umask(mask)
        self._mask = mask

    def look(self, parts: Sequence[str], size: int) -> Found:
        """Say what there is of a file, before anything is written."""
        path = self._place(parts)
        with suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                raise Refusal("there is a directory of that name")
            plain = stat.S_ISREG(status.st_mode)
            if plain and status.st_size == size:
                return Found(path, size, complete=True)
            if not self.force:
                raise Refusal(DIFFERENT)
        partial = self._partial_of(path)
        with suppress(FileNotFoundError):
            status = partial.lstat()
            if stat.S_ISREG(status.st_mode) and 0 < status.st_size <= size:
                return Found(partial, status.st_size)
        return Found()

    def make_directory(self, parts: Sequence[str], mode: int, mtime: int) -> None:
        """Make a directory, unless there is one."""
        path = self._place(parts)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise Refusal("there is something else of that name") from None
        else:
            self._directories.append((path, mode, mtime))

    def close(self) -> None:
        """Close what is still open, and give the directories that were made here what they had.

        Modes and times, that is, the innermost first: making files in them would change these.
        """
        for partial in list(self.opened):
            partial.close()
        while self._directories:
            path, mode, mtime = self._directories.pop()
            with suppress(OSError, OverflowError):
                os.utime(path, ns=(mtime, mtime))
                path.chmod(self._permitted(mode) | 0o700)

    def open(self, parts: Sequence[str]) -> Partial:
        """Open what the file is until it is complete, and make it if there is none."""
        path = self._place(parts)
        return Partial(self, path, self._partial_of(path))

    def room(self, parts: Sequence[str], octets: int) -> None:
        """Refuse a file for which there is no room now."""
        free = shutil.disk_usage(self._place(parts).parent).free
        if octets > free:
            raise Refusal(f"the disk is full: {octets} octets are needed, {free} are free")

    def _place(self, parts: Sequence[str]) -> Path:
        why = names.objection(parts, hidden=self._hidden)
        if why is not None:
            raise Refusal(why)
        path = self._root
        for part in parts[:-1]:
            path /= part
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                raise Refusal("its directory is not there") from None
            if stat.S_ISLNK(mode):
                raise Refusal(f"{part!r} is a symbolic link here, and none is followed")
            if not stat.S_ISDIR(mode):
                raise Refusal(f"{part!r} is no directory here")
        return path / parts[-1]

    def _permitted(self, mode: int) -> int:
        # Neither set-user-ID nor its like, and nothing that this user's umask takes away.
        return mode & 0o777 & ~self._mask

    @staticmethod
    def _partial_of(path: Path) -> Path:
        return path.with_name(path.name + names.SUFFIX)


def _hash_part(fd: int, done: int, octets: int, into: hashlib._Hash) -> int:
    os.lseek(fd, done, os.SEEK_SET)
    data = os.read(fd, min(READ, octets - done))
    if not data:
        raise Refusal("what is there of it was shortened meanwhile")
    into.update(data)
    return len(data)


class Existing:
    """A file that has been there before, to be compared."""

    def __init__(self, found: Found) -> None:
        assert found.path is not None
        self.received = 0
        self._hash = hashlib.sha256()
        flags = os.O_RDONLY | (_PARTIAL_FLAGS & ~(os.O_RDWR | os.O_CREAT))
        self._fd = os.open(found.path, flags)

    def hash_more(self, octets: int) -> None:
        """Hash the next part of what is there, which is ``octets`` altogether."""
        self.received += _hash_part(self._fd, self.received, octets, self._hash)

    @property
    def sha256(self) -> str:
        """The hash of what has been read, in hexadecimal digits."""
        return self._hash.hexdigest()

    is_open = True

    def close(self) -> None:
        """Close it."""
        self.is_open = False
        os.close(self._fd)


class Partial:
    """A file that is being received.  ``received`` octets are there, and hashed."""

    def __init__(self, store: Store, target: Path, path: Path) -> None:
        self._store = store
        self._target = target
        self.path = path
        self.received = 0
        self._hash = hashlib.sha256()
        self._fd = os.open(path, _PARTIAL_FLAGS, 0o600)
        try:
            self._check()
        except BaseException:
            os.close(self._fd)
            raise
        store.opened.add(self)

    def _check(self) -> None:
        status = os.fstat(self._fd)
        mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
        if not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and mine):
            raise Refusal(f"{self.path.name} is there and is no file of punch")
        if fcntl is not None:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refusal("another punch recv is receiving it") from None
            except OSError:
                pass  # a file system without locks

    def hash_more(self, octets: int) -> None:
        """Hash the next part of what is there, which is ``octets`` altogether."""
        self.received += _hash_part(self._fd, self.received, octets, self._hash)

    def begin(self, offset: int) -> None:
        """Go on at ``offset``, which is what has been hashed, or 0: from the beginning."""
        if offset == 0:
            self.received = 0
            self._hash = hashlib.sha256()
        os.ftruncate(self._fd, offset)
        os.lseek(self._fd, offset, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        """Write octets, and hash them."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._hash.update(data)
        self.received += len(data)

    @property
    def sha256(self) -> str:
        """The hash of what has been received, in hexadecimal digits."""
        return self._hash.hexdigest()

    @property
    def is_open(self) -> bool:
        """Whether it has neither been finished nor closed."""
        return self._fd >= 0

    def finish(self, mode: int, mtime: int) -> None:
        """Give the file its name; it is closed afterwards."""
        if hasattr(os, "fchmod"):
            os.fchmod(self._fd, self._store._permitted(mode))
        self.close()
        with suppress(OSError, OverflowError):
            os.utime(self.path, ns=(mtime, mtime))
        if self._store.force:
            self.path.replace(self._target)
            return
        try:
            # Unlike a rename, a link does not replace what may have come to be there meanwhile.
            os.link(self.path, self._target, follow_symlinks=False)
        except FileExistsError:
            raise Refusal("there is another file of that name by now") from None
        except (OSError, NotImplementedError):
            if os.path.lexists(self._target):
                raise Refusal("there is another file of that name by now") from None
            self.path.rename(self._target)  # a file system without hard links
        else:
            self.path.unlink()

    def discard(self) -> None:
        """Remove it."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave it as it is, for a later transfer."""
        self._store.opened.discard(self)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
