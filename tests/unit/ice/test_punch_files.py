"""Files from one directory to another, over a link in memory: interrupted, changed, refused."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ice.errors import ConnectionLost
from ice.punch import sending, store
from ice.punch.link import PunchError
from ice.punch.names import SUFFIX
from ice.punch.receiving import receive_all
from ice.punch.sending import send_all
from ice.punch.tree import find
from tools.punchdesk import End, Told, listed, pair

SIZE = 1_500_001


class Transfer:
    """One run of both commands; ``errors`` is what `send` and `recv` raised."""

    def __init__(self) -> None:
        self.sender, self.receiver = Told(), Told()
        self.errors: list[BaseException | None] = []
        self.a, self.b = pair()

    async def run(self, *sources: Path, to: Path, **options: Any) -> Transfer:
        async def left() -> None:
            async with self.a as stream:
                await send_all(stream, find(sources), self.sender)

        async def right() -> None:
            async with self.b as stream:
                await receive_all(stream, to, self.receiver, **options)

        self.tasks = [asyncio.create_task(left()), asyncio.create_task(right())]
        self.errors = list(await asyncio.gather(*self.tasks, return_exceptions=True))
        return self

    def after(self, octets: int, what: Callable[[], None], *, end: End | None = None) -> None:
        """Do something when so many octets have gone one way."""
        transport = (end or self.a).transport

        def on_write(data: bytes) -> None:
            if transport.passed + len(data) >= octets and not transport.over:
                transport.on_write = None
                asyncio.get_running_loop().call_soon(what)

        transport.on_write = on_write

    @property
    def offset(self) -> int:
        return self.receiver.of("file")[0]["offset"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.fixture
def big(here: Path, rng: random.Random) -> Path:
    path = here / "big.iso"
    path.write_bytes(rng.randbytes(SIZE))
    return path


def whole(target: Path, source: Path) -> bool:
    return target.read_bytes() == source.read_bytes()


# What goes well. ----------------------------------------------------------------------------------


async def test_a_file_arrives_with_its_mode_and_time(big: Path, there: Path) -> None:
    big.chmod(0o4751)
    os.utime(big, ns=(10**18 + 5, 10**18 + 5))
    done = await Transfer().run(big, to=there)
    assert done.errors == [None, None]
    target = there / "big.iso"
    assert whole(target, big)
    assert target.stat().st_mtime_ns == 10**18 + 5
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o751 & ~mask  # and no set-user-ID bit
    assert listed(there) == ["big.iso"]
    for told in (done.sender, done.receiver):
        (offer,) = told.of("offer")
        assert (offer["files"], offer["octets"]) == (1, SIZE)
        assert told.files == {"big.iso": "done"}
        assert told.of("file")[-1]["sha256"] == hashlib.sha256(big.read_bytes()).hexdigest()
        assert told.of("progress")[-1]["octets"] == SIZE
    assert done.sender.traffic.sent == done.receiver.traffic.received


async def test_read_only_and_empty_files(here: Path, there: Path) -> None:
    (here / "empty").touch()
    (here / "fixed").write_bytes(b"x")
    (here / "fixed").chmod(0o444)
    done = await Transfer().run(here / "empty", here / "fixed", to=there)
    assert done.errors == [None, None]
    assert (there / "empty").read_bytes() == b""
    assert stat.S_IMODE((there / "fixed").stat().st_mode) == 0o444
    assert listed(there) == ["empty", "fixed"]


async def test_a_tree_and_the_same_again(here: Path, there: Path, rng: random.Random) -> None:
    tree = here / "tree"
    (tree / "empty").mkdir(parents=True)
    deep = tree / "a" / "b"
    deep.mkdir(parents=True)
    for n in range(150):  # more than are under way at once
        (deep / f"{n}").write_bytes(rng.randbytes(n * 7))
    os.utime(tree / "a", ns=(10**18, 10**18))
    (tree / "a").chmod(0o750)
    done = await Transfer().run(tree, to=there)
    assert done.errors == [None, None]
    assert all(whole(there / "tree/a/b" / f"{n}", deep / f"{n}") for n in range(150))
    assert (there / "tree/empty").is_dir()
    assert (there / "tree/a").stat().st_mtime_ns == 10**18
    assert stat.S_IMODE((there / "tree/a").stat().st_mode) == 0o750
    (deep / "new").write_bytes(b"new")
    again = await Transfer().run(tree, to=there)
    assert again.errors == [None, None]
    assert again.receiver.files.pop("tree/a/b/new") == "done"
    states = again.receiver.files
    assert {name: states[name] for name in states if name != "tree/a/b/new"} == dict.fromkeys(
        (f"tree/a/b/{n}" for n in range(150)), "same"
    )


async def test_a_name_that_is_no_utf8(here: Path, there: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (here / name).write_bytes(b"x")
    (here / "né Ω 文").write_bytes(b"y")
    done = await Transfer().run(here / name, here / "né Ω 文", to=there)
    assert done.errors == [None, None]
    assert listed(there) == sorted([name, "né Ω 文"])


async def test_links_and_pipes_in_a_tree_are_passed_over(here: Path, there: Path) -> None:
    tree = here / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x")
    (tree / "link").symlink_to("/etc/passwd")
    os.mkfifo(tree / "pipe")
    done = await Transfer().run(tree, to=there)
    assert done.errors == [None, None]
    assert listed(there / "tree") == ["file"]
    skipped = {e["name"]: e["why"] for e in done.sender.of("file") if e["state"] == "skipped"}
    assert skipped == {"tree/link": "a symbolic link", "tree/pipe": "a pipe"}


# Files that exist. --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"another size", b"", bytes(SIZE)])
async def test_nothing_is_overwritten(big: Path, there: Path, content: bytes) -> None:
    target = there / "big.iso"
    target.write_bytes(content)
    done = await Transfer().run(big, to=there)
    for error in done.errors:
        assert isinstance(error, PunchError)
        assert error.code == "incomplete"
        assert "--force" in str(error)
    assert target.read_bytes() == content
    assert listed(there) == ["big.iso"]


@pytest.mark.parametrize("content", [b"another size", b"", bytes(SIZE)])
async def test_force_replaces(big: Path, there: Path, content: bytes) -> None:
    (there / "big.iso").write_bytes(content)
    done = await Transfer().run(big, to=there, force=True)
    assert done.errors == [None, None]
    assert whole(there / "big.iso", big)


async def test_the_same_is_not_sent_again(big: Path, there: Path) -> None:
    (there / "big.iso").write_bytes(big.read_bytes())
    done = await Transfer().run(big, to=there)
    assert done.errors == [None, None]
    assert done.receiver.files == done.sender.files == {"big.iso": "same"}
    assert done.sender.traffic.sent < 2000


async def test_an_empty_file_that_got_contents(here: Path, there: Path) -> None:
    source = here / "log"
    source.touch()
    (there / "log").touch()
    done = await Transfer().run(source, to=there)
    assert done.errors == [None, None]
    assert done.receiver.files == {"log": "same"}


async def test_one_refused_file_does_not_keep_the_others(here: Path, there: Path) -> None:
    for name in "abc":
        (here / name).write_bytes(name.encode() * 100_000)
    (there / "b").mkdir()
    done = await Transfer().run(here / "a", here / "b", here / "c", to=there, force=True)
    assert [type(error) for error in done.errors] == [PunchError, PunchError]
    assert "b: there is a directory of that name" in str(done.errors[0])
    assert whole(there / "a", here / "a")
    assert whole(there / "c", here / "c")
    assert done.sender.files == done.receiver.files == {"a": "done", "b": "failed", "c": "done"}


# Interruptions. -----------------------------------------------------------------------------------


def cut(run: Transfer) -> None:
    run.a.cut()


def stop_sender(run: Transfer) -> None:
    run.tasks[0].cancel()


def stop_receiver(run: Transfer) -> None:
    run.tasks[1].cancel()


def reset(run: Transfer) -> None:
    run.a.transport.abort()


@pytest.mark.parametrize("how", [cut, stop_sender, stop_receiver, reset])
@pytest.mark.parametrize("at", [1, 300, 400_000, 1_100_000, SIZE + 250])
async def test_it_goes_on_where_it_was_interrupted(
    big: Path, there: Path, how: Callable[[Transfer], None], at: int
) -> None:
    first = Transfer()
    first.after(at, lambda: how(first))
    await first.run(big, to=there)
    assert all(error is not None for error in first.errors)
    target, partial = there / "big.iso", there / f"big.iso{SUFFIX}"
    kept = partial.stat().st_size if partial.exists() else 0
    if target.exists():  # it was interrupted after the last octet
        assert at > SIZE
        assert whole(target, big)
        kept = SIZE
    elif kept:
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
        (told,) = [e for e in first.receiver.of("file") if e["state"] == "failed"]
        assert SUFFIX in told["why"]
    second = await Transfer().run(big, to=there)
    assert second.errors == [None, None]
    assert second.offset == kept
    assert whole(target, big)
    assert listed(there) == ["big.iso"]
    assert second.sender.traffic.sent < SIZE - kept + 3000


async def test_again_and_again(big: Path, there: Path, rng: random.Random) -> None:
    offsets = []
    for _ in range(100):
        run = Transfer()
        run.after(
            rng.randrange(200_000, 500_000),
            lambda run=run: rng.choice([cut, stop_sender, stop_receiver, reset])(run),
        )
        await run.run(big, to=there)
        offsets.append(run.receiver.of("file")[0]["offset"] if run.receiver.of("file") else 0)
        if run.errors == [None, None]:
            break
    assert whole(there / "big.iso", big)
    assert offsets == sorted(offsets)
    assert len(offsets) > 3


async def test_interrupted_while_what_is_there_is_hashed(
    big: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (there / f"big.iso{SUFFIX}").write_bytes(big.read_bytes()[:-100])
    run = Transfer()
    monkeypatch.setattr(store, "READ", 1000)
    hashed = store.Partial.hash_more

    def hash_more(self: store.Partial, octets: int) -> None:
        hashed(self, octets)
        if self.received == 50_000:
            run.b.transport._loop.call_soon_threadsafe(cut, run)

    monkeypatch.setattr(store.Partial, "hash_more", hash_more)
    await run.run(big, to=there)
    assert all(isinstance(error, ConnectionLost) for error in run.errors)
    second = await Transfer().run(big, to=there)
    assert second.errors == [None, None]
    assert second.offset == SIZE - 100


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:100_000] + b"!" + data[100_001:500_000],
        lambda _: b"something else",
        lambda data: data + b"too long",
    ],
)
async def test_a_partial_file_that_is_something_else(
    big: Path, there: Path, spoil: Callable[[bytes], bytes]
) -> None:
    (there / f"big.iso{SUFFIX}").write_bytes(spoil(big.read_bytes()))
    done = await Transfer().run(big, to=there)
    assert done.errors == [None, None]
    assert done.offset == 0
    assert whole(there / "big.iso", big)
    assert listed(there) == ["big.iso"]


async def test_a_partial_file_that_lacks_only_its_name(big: Path, there: Path) -> None:
    (there / f"big.iso{SUFFIX}").write_bytes(big.read_bytes())
    done = await Transfer().run(big, to=there)
    assert done.errors == [None, None]
    assert done.offset == SIZE
    assert whole(there / "big.iso", big)


async def test_the_source_was_changed_between_two_runs(big: Path, there: Path) -> None:
    first = Transfer()
    first.after(700_000, first.a.cut)
    await first.run(big, to=there)
    assert (there / f"big.iso{SUFFIX}").stat().st_size > 100_000
    big.write_bytes(bytes(SIZE))
    second = await Transfer().run(big, to=there)
    assert second.errors == [None, None]
    assert second.offset == 0
    assert (there / "big.iso").read_bytes() == bytes(SIZE)


async def test_two_receive_the_same_file(big: Path, there: Path) -> None:
    first = Transfer()
    second: list[Transfer] = []

    async def meanwhile() -> None:
        second.append(await Transfer().run(big, to=there))
        first.b.transport.resume_reading()

    def begin() -> None:
        first.b.transport.pause_reading()
        tasks.append(asyncio.create_task(meanwhile()))

    tasks: list[asyncio.Task[None]] = []
    first.after(700_000, begin)
    await first.run(big, to=there)
    await tasks[0]
    assert first.errors == [None, None]
    assert "another punch recv is receiving it" in str(second[0].errors[0])
    assert whole(there / "big.iso", big)


# Files that change, and disks that fail. ----------------------------------------------------------


def during(monkeypatch: pytest.MonkeyPatch, what: Callable[[], None]) -> None:
    """Do something when the third part of a file is read."""
    read = sending._Open.read
    calls = []

    def meddled(self: sending._Open, octets: int) -> bytes:
        calls.append(octets)
        if len(calls) == 3:
            what()
        return read(self, octets)

    monkeypatch.setattr(sending._Open, "read", meddled)


async def test_a_file_that_grows(big: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = big.read_bytes()

    def grow() -> None:
        with big.open("ab") as file:
            file.write(b"more")

    during(monkeypatch, grow)
    done = await Transfer().run(big, to=there)
    assert done.errors == [None, None]
    assert (there / "big.iso").read_bytes() == before
    for told in (done.sender, done.receiver):
        assert "it grew" in told.of("file")[-1]["why"]


async def test_a_file_that_shrinks(big: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (big.parent / "next").write_bytes(b"next")
    during(monkeypatch, lambda: os.truncate(big, 600_000))
    done = await Transfer().run(big, big.parent / "next", to=there)
    assert "became shorter" in str(done.errors[0])
    assert "became shorter" in str(done.errors[1])
    assert not (there / "big.iso").exists()
    assert (there / "next").read_bytes() == b"next"


async def test_a_file_that_is_rewritten(
    big: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rewrite() -> None:
        with big.open("r+b") as file:
            file.write(b"changed")
        os.utime(big, ns=(1, 1))

    during(monkeypatch, rewrite)
    done = await Transfer().run(big, to=there)
    assert done.errors == [None, None]
    assert "changed while it was sent" in done.receiver.of("file")[-1]["why"]


async def test_a_file_that_is_gone(here: Path, there: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    run = Transfer()
    run.after(1, (here / "a").unlink)
    entries = find([here / "a", here / "b"])
    (here / "a").unlink()

    async def left() -> None:
        await send_all(run.a, entries, run.sender)

    errors = await asyncio.gather(
        left(), receive_all(run.b, there, run.receiver), return_exceptions=True
    )
    assert "a: it cannot be read: No such file or directory" in str(errors[0])
    assert "a: it cannot be read: No such file or directory" in str(errors[1])
    assert (there / "b").read_bytes() == b"b"
    run.a.abort("done")


async def test_a_disk_that_becomes_full(
    big: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store.Partial.write

    def full(self: store.Partial, data: bytes) -> None:
        if self.received > 500_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(store.Partial, "write", full)
    os.truncate(big, 10_000_000)
    (big.parent / "small").write_bytes(b"small")
    done = await Transfer().run(big, big.parent / "small", to=there)
    for error in done.errors:
        assert "big.iso: it cannot be written: No space left on device" in str(error)
    assert (there / "small").read_bytes() == b"small"
    kept = (there / f"big.iso{SUFFIX}").stat().st_size
    assert kept > 500_000
    assert done.sender.traffic.sent < 8_000_000, "the sender went on after it was told"
    monkeypatch.undo()
    again = await Transfer().run(big, to=there)
    assert again.errors == [None, None]
    assert again.offset == kept


async def test_a_disk_that_is_too_small(
    big: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=9, used=5, free=4)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage)
    done = await Transfer().run(big, to=there)
    for error in done.errors:
        assert f"the disk is full: {SIZE} octets are needed, 4 are free" in str(error)


async def test_a_directory_that_must_not_be_written_to(
    big: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(store.Store, "open", denied)
    done = await Transfer().run(big, to=there)
    for error in done.errors:
        assert "it cannot be written: Permission denied" in str(error)


async def test_somebody_else_makes_the_file_meanwhile(big: Path, there: Path) -> None:
    run = Transfer()
    run.after(700_000, lambda: (there / "big.iso").write_bytes(b"mine"))
    await run.run(big, to=there)
    assert "by now" in str(run.errors[0])
    assert (there / "big.iso").read_bytes() == b"mine"
    assert (there / f"big.iso{SUFFIX}").stat().st_size == SIZE


async def test_a_file_system_without_hard_links(
    big: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(store.os, "link", no_links)
    done = await Transfer().run(big, to=there)
    assert done.errors == [None, None]
    assert whole(there / "big.iso", big)
    assert listed(there) == ["big.iso"]


async def test_wrong_commands(there: Path) -> None:
    async def both(a: Any, b: Any) -> list[Any]:
        return await asyncio.gather(a, b, return_exceptions=True)

    a, b = pair()
    for error in await both(send_all(a, [], Told()), send_all(b, [], Told())):
        assert error.code == "wrong-command"
        assert "the other side runs `punch send`: it has to run `punch recv`" in str(error)
    a.abort("")
    a, b = pair()
    a.writer.write(b"SSH-2.0-OpenSSH")
    with pytest.raises(PunchError, match="something else"):
        await receive_all(b, there, Told())
    a.abort("")
    a, b = pair()
    a.writer.write_eof()
    with pytest.raises(PunchError, match="without a word"):
        await receive_all(b, there, Told())
    a.abort("")
