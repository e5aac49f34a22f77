"""A peer that does what it likes, against `punch recv` and `punch send`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ice.punch import wire
from ice.punch.link import PunchError
from ice.punch.names import SUFFIX
from ice.punch.receiving import MOST_PENDING, receive_all
from ice.punch.sending import send_all
from ice.punch.tree import find
from ice.punch.wire import (
    HEADER,
    Done,
    End,
    Have,
    Head,
    Kept,
    Kind,
    Leave,
    Refuse,
    Start,
    Total,
    Want,
)
from tools.punchdesk import Told, listed, pair

X = hashlib.sha256(b"x").hexdigest()


def head(*parts: str, number: int = 1, size: int = 1, directory: bool = False, **more: Any) -> Head:
    return Head(number, list(parts), directory, size, more.get("mtime", 0), more.get("mode", 0o644))


def data(octets: bytes) -> bytes:
    return wire.data_header(len(octets)) + octets


def message(**fields: Any) -> bytes:
    body = json.dumps(fields).encode()
    return HEADER.pack(Kind.MESSAGE, len(body)) + body


class Receiving:
    """`punch recv` with a peer that is played."""

    def __init__(self, there: Path, **options: Any) -> None:
        self.told = Told()
        self.there = there
        self.options = options
        self.answers: list[Any] = []

    async def of(self, *frames: wire.Message | bytes, eof: bool = True) -> BaseException | None:
        a, b = pair()
        a.writer.write(b"punch/1 send\n")
        for each in frames:
            a.writer.write(each if isinstance(each, bytes) else wire.encode(each))
        if eof:
            a.writer.write_eof()
        error: BaseException | None = None
        try:
            async with asyncio.timeout(20):
                await receive_all(b, self.there, self.told, **self.options)
        except PunchError as raised:
            error = raised
        finally:
            b.writer.write_eof()
        await a.reader.readline()
        while (answer := await wire.read_frame(a.reader, self.told.traffic)) is not None:
            self.answers.append(answer)
        a.abort("over")
        return error

    @property
    def refusals(self) -> list[str]:
        return [each.why for each in self.answers if isinstance(each, Refuse)]


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_bytes(b"precious")
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


WHOLE = (Start(1, 0, 1, 0), data(b"x"), End(1, X, ""))


async def test_the_play_is_right(there: Path) -> None:
    peer = Receiving(there)
    assert await peer.of(Total(1, 1), head("good"), *WHOLE, Done()) is None
    assert (there / "good").read_bytes() == b"x"
    assert peer.answers == [Want(1, 0, True), Kept(1, False)]


@pytest.mark.parametrize(
    "parts",
    [
        ("..", "outside"),
        ("..",),
        (".",),
        ("",),
        ("/etc/passwd",),
        ("/",),
        ("a/../../outside",),
        ("a\\b",),
        ("nul\0here",),
        ("line\nfeed",),
        ("esc\x1b[2J",),
        ("del\x7f",),
        ("csi\x9b2J",),
        ("x" * 250,),
        ("é" * 130,),
        ("lone\ud800surrogate",),
        (f"x{SUFFIX}",),
        (".bashrc",),
        (".ssh", "authorized_keys"),
        ("missing", "file"),
    ],
)
@pytest.mark.parametrize("directory", [False, True])
async def test_names(there: Path, parts: tuple[str, ...], directory: bool) -> None:
    before = sorted(os.walk(there.parent))
    peer = Receiving(there, force=True)
    error = await peer.of(Total(1, 1), head(*parts, directory=directory), Done())
    assert isinstance(error, PunchError)
    assert error.code == "incomplete"
    assert len(peer.refusals) == 1
    assert sorted(os.walk(there.parent)) == before
    assert (there.parent / "outside").read_bytes() == b"precious"


async def test_hidden_names_on_request(there: Path) -> None:
    peer = Receiving(there, hidden=True)
    assert await peer.of(head(".bashrc"), *WHOLE, Done()) is None
    assert (there / ".bashrc").exists()


async def test_no_name_steers_the_terminal(there: Path) -> None:
    told = Told(as_json=False)
    peer = Receiving(there)
    peer.told = told
    await peer.of(head("\x1b]0;owned\x07\u202etxt.exe"), Done())
    text = told.file.getvalue()
    assert "\\x1b]0;owned\\x07\\u202etxt.exe" in text
    assert all(c.isprintable() or c == "\n" for c in text)


# Links in the target directory. -------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
async def test_no_link_is_followed_to_a_directory(there: Path, force: bool) -> None:
    (there.parent / "elsewhere").mkdir()
    (there / "link").symlink_to(there.parent / "elsewhere")
    peer = Receiving(there, force=force)
    error = await peer.of(head("link", directory=True), head("link", "file", number=2), Done())
    assert isinstance(error, PunchError)
    assert any("symbolic link" in why for why in peer.refusals)
    assert listed(there.parent / "elsewhere") == []


async def test_a_link_in_the_place_of_the_file(there: Path) -> None:
    (there / "x").symlink_to(there.parent / "outside")
    peer = Receiving(there)
    assert await peer.of(head("x", size=8), Done()) is not None
    assert "--force" in peer.refusals[0]
    # With --force the link is replaced, not what it names.
    assert await Receiving(there, force=True).of(head("x"), *WHOLE, Done()) is None
    assert not (there / "x").is_symlink()
    assert (there.parent / "outside").read_bytes() == b"precious"


async def test_a_link_in_the_place_of_the_partial_file(there: Path) -> None:
    (there / f"x{SUFFIX}").symlink_to(there.parent / "outside")
    peer = Receiving(there)
    assert await peer.of(head("x"), *WHOLE, Done()) is not None
    assert len(peer.refusals) == 1
    assert (there.parent / "outside").read_bytes() == b"precious"


async def test_a_partial_file_with_another_name(there: Path) -> None:
    os.link(there.parent / "outside", there / f"x{SUFFIX}")
    peer = Receiving(there)
    assert await peer.of(head("x", size=8), *WHOLE, Done()) is not None
    assert "no file of punch" in peer.refusals[0]
    assert (there.parent / "outside").read_bytes() == b"precious"


async def test_a_pipe_in_the_place_of_the_partial_file(there: Path) -> None:
    os.mkfifo(there / f"x{SUFFIX}")
    peer = Receiving(there)
    assert await peer.of(head("x"), *WHOLE, Done()) is not None
    assert len(peer.refusals) == 1


async def test_a_directory_in_the_place_of_a_file_and_the_other_way_round(there: Path) -> None:
    (there / "dir").mkdir()
    (there / "file").touch()
    peer = Receiving(there, force=True)
    await peer.of(
        head("dir"), head("file", number=2, directory=True), head("file", "x", number=3), Done()
    )
    assert len(peer.refusals) == 3
    assert (there / "dir").is_dir()
    assert (there / "file").read_bytes() == b""


# Wrong lengths, hashes and order. -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([head("a"), Start(1, 0, 1, 0), data(b"xy")], "more data than"),
        ([head("a"), Start(1, 0, 2, 0), data(b"x"), End(1, X, "")], "after 1 octets"),
        ([head("a"), Start(1, 1, 1, 0)], "start of file 1 at 1"),
        ([head("a"), Start(1, 5, 1, 0)], "start of file 1 at 5"),
        ([head("a"), End(1, X, "")], "has not been started"),
        ([head("a"), data(b"x")], "data of no file"),
        ([data(b"x")], "data of no file"),
        ([Start(1, 0, 1, 0)], "not under way"),
        ([Leave(9, "")], "not under way"),
        ([head("a"), *WHOLE, *WHOLE], "not under way"),
        ([head("a"), Start(1, 0, 1, 0), Start(1, 0, 1, 0)], "out of place"),
        (
            [head("a"), head("b", number=2), Start(1, 0, 1, 0), Start(2, 0, 1, 0)],
            "start of file 2 out of place",
        ),
        ([head("a", number=2), head("b", number=2)], "out of turn"),
        ([head("a"), Done()], "not everything was sent"),
        ([Done(), head("a")], "after done"),
        ([Total(1, 1), Total(1, 1)], "total out of place"),
        ([Want(1, 0, True)], "want out of place"),
        ([head("a"), Refuse(1, "")], "refuse out of place"),
        ([head(str(n), number=n) for n in range(1, MOST_PENDING + 3)], "out of turn"),
        ([HEADER.pack(7, 0)], "kind 7"),
        ([HEADER.pack(Kind.MESSAGE, wire.MOST_MESSAGE + 1)], "octets"),
        ([HEADER.pack(Kind.DATA, wire.MOST_DATA + 1)], "octets"),
        ([HEADER.pack(Kind.MESSAGE, 5) + b"{"], "within a frame"),
        ([b"\0\0"], "within a frame"),
        ([head("a"), Start(1, 0, 9, 0), HEADER.pack(Kind.DATA, 9) + b"x"], "within a frame"),
        ([HEADER.pack(Kind.MESSAGE, 3) + b"nul"], "no JSON"),
        ([HEADER.pack(Kind.MESSAGE, 100_000) + b"[" * 100_000], "no JSON"),
        ([HEADER.pack(Kind.MESSAGE, 10_000) + b"9" * 10_000], "no JSON"),
        ([HEADER.pack(Kind.MESSAGE, 2) + b"\xff\xff"], "no JSON"),
        ([message(say="rm")], "is none"),
        ([message(say=["head"])], "is none"),
        ([message(says="head")], "is none"),
        ([message(say="leave", number=1)], "wrong why"),
        ([message(say="leave", number=True, why="")], "wrong number"),
        ([message(say="leave", number=1.0, why="")], "wrong number"),
        ([message(say="leave", number=-1, why="")], "wrong number"),
        ([message(say="end", number=1, sha256="Z" * 64, note="")], "wrong sha256"),
        ([message(say="total", files=1, octets=1 << 63)], "wrong octets"),
    ],
)  # fmt: skip
async def test_violations(there: Path, frames: list[Any], why: str) -> None:
    peer = Receiving(there)
    error = await peer.of(*frames)
    assert isinstance(error, PunchError)
    assert error.code == "protocol"
    assert why in str(error)
    assert all(name.endswith(SUFFIX) or name == "a" for name in listed(there))


@pytest.mark.parametrize(
    "change",
    [
        {"parts": []},
        {"parts": ["a"] * 65},
        {"parts": "a"},
        {"parts": [1]},
        {"parts": ["a" * 2000]},
        {"mode": 0o10000},
        {"mtime": 1 << 63},
        {"size": -1},
        {"directory": 1},
        {"number": 0},
    ],
)
async def test_heads_that_are_none(there: Path, change: dict[str, Any]) -> None:
    fields = {"number": 1, "parts": ["a"], "directory": False, "size": 1, "mtime": 0, "mode": 420}
    error = await Receiving(there).of(message(say="head", **(fields | change)))
    assert isinstance(error, PunchError)
    assert error.code == "protocol"
    assert f"head with a wrong {next(iter(change))}" in str(error)
    assert listed(there) == []


async def test_a_wrong_checksum(there: Path) -> None:
    peer = Receiving(there)
    error = await peer.of(head("a"), Start(1, 0, 1, 0), data(b"y"), End(1, X, ""), Done())
    assert isinstance(error, PunchError)
    assert peer.refusals == ["its checksum is wrong: send it again"]
    assert listed(there) == []


async def test_a_wrong_checksum_of_what_is_there(there: Path) -> None:
    (there / "a").write_bytes(b"y")
    peer = Receiving(there)
    a, b = pair()
    a.writer.write(b"punch/1 send\n" + wire.encode(head("a")))
    task = asyncio.create_task(receive_all(b, there, peer.told))
    await a.reader.readline()
    assert await wire.read_frame(a.reader, peer.told.traffic) == Want(1, 1, False)
    have = await wire.read_frame(a.reader, peer.told.traffic)
    assert have == Have(1, hashlib.sha256(b"y").hexdigest())
    a.writer.write(
        wire.encode(Start(1, 1, 1, 0)) + wire.encode(End(1, X, "")) + wire.encode(Done())
    )
    a.writer.write_eof()
    with pytest.raises(PunchError, match="checksum"):
        await task
    assert (there / "a").read_bytes() == b"y"
    a.abort("")


async def test_it_cannot_replace_by_starting_from_the_beginning(there: Path) -> None:
    (there / "a").write_bytes(b"y")
    peer = Receiving(there)
    error = await peer.of(head("a"), *WHOLE, Done())
    assert isinstance(error, PunchError)
    assert (there / "a").read_bytes() == b"y"


async def test_times_and_modes_beyond_reason(there: Path) -> None:
    peer = Receiving(there)
    strange = Start(1, 0, 1, -(1 << 63))
    error = await peer.of(
        head("a", mode=0o7777, mtime=(1 << 63) - 1), strange, data(b"x"), End(1, X, ""), Done()
    )
    assert error is None
    assert (there / "a").stat().st_mode & 0o7022 == 0


async def test_what_was_refused_is_not_written(there: Path) -> None:
    (there / "a").mkdir()
    peer = Receiving(there, force=True)
    error = await peer.of(head("a"), head("b", number=2), Start(2, 0, 1, 0), data(b"x"), Done())
    assert isinstance(error, PunchError)
    assert (there / "a").is_dir()


FRAME = st.one_of(
    st.builds(
        head,
        st.sampled_from(["a", "b", "..", "c/d", ".x", f"a{SUFFIX}"]),
        number=st.integers(1, 4),
        size=st.integers(0, 3),
        directory=st.booleans(),
    ),
    st.builds(Start, st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.just(0)),
    st.builds(data, st.binary(max_size=3)),
    st.builds(End, st.integers(1, 4), st.just(X), st.just("")),
    st.builds(Leave, st.integers(1, 4), st.just("why")),
    st.just(Done()),
    st.builds(Total, st.integers(0, 9), st.integers(0, 9)),
    st.binary(max_size=12),
)


@given(frames=st.lists(FRAME, max_size=12))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes(tmp_path_factory: pytest.TempPathFactory, frames: list[Any]) -> None:
    root = tmp_path_factory.mktemp("hostile")
    there = root / "there"
    there.mkdir()
    asyncio.run(Receiving(there, force=True, hidden=True).of(*frames))
    assert listed(root) == ["there"]
    for name in listed(there):
        if not name.endswith(SUFFIX) and (there / name).is_file():
            assert (there / name).read_bytes() in {b"x", b""}


# A hostile receiver. ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([Want(9, 0, True)], "want out of place"),
        ([Want(1, 0, True), Want(1, 0, True)], "out of place"),
        ([Have(1, X), Have(1, X)], "out of place"),
        ([Kept(1, False)], "kept out of place"),
        ([Done()], "done out of place"),
        ([head("a")], "head out of place"),
        ([data(b"x")], "data from the receiving side"),
        ([b"\0"], "within a frame"),
        ([], "ended before it had everything"),
        ([Refuse(1, "no\x1b[2J")], "file: no"),
        ([Want(1, 1 << 40, True), Have(1, X)], "ended before"),
        ([Want(1, 3, True), Have(1, X)], "ended before"),
    ],
)
async def test_a_hostile_receiver(tmp_path: Path, frames: list[Any], why: str) -> None:
    source = tmp_path / "file"
    source.write_bytes(bytes(100_000))
    a, b = pair()
    b.writer.write(b"punch/1 recv\n")
    for each in frames:
        b.writer.write(each if isinstance(each, bytes) else wire.encode(each))
    b.writer.write_eof()
    with pytest.raises(PunchError, match="(?s)" + why):
        await send_all(a, find([source]), Told())
    a.abort("")
