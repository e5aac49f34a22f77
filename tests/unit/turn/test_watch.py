"""Files that change are noticed, however they are put in place."""

from __future__ import annotations

import os
from pathlib import Path

from turn.daemon.watch import FileWatch


def test_writing_replacing_and_removing_are_changes(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    watch = FileWatch([path])
    assert not watch.changed(), "a file that is not there yet"
    path.write_text("one")
    assert watch.changed()
    assert not watch.changed()
    replacement = tmp_path / "new"
    replacement.write_text("two")
    status = path.stat()
    os.utime(replacement, ns=(status.st_atime_ns, status.st_mtime_ns))
    replacement.rename(path)
    assert watch.changed(), "same size, same time, another file"
    path.unlink()
    assert watch.changed()


def test_a_symlink_that_is_moved_is_a_change(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cert.pem").write_text("same")
    current = tmp_path / "current"
    current.symlink_to("1")
    watch = FileWatch([current / "cert.pem"])
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").rename(current)
    assert watch.changed()


def test_nothing_to_watch_never_changes() -> None:
    assert not FileWatch([]).changed()
