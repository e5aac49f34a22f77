"""Names that are taken, what is found to be sent, and where it goes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.punch import wire
from ice.punch.names import MOST_OCTETS, SUFFIX, objection
from ice.punch.store import Refusal, Store
from ice.punch.tree import Missing, find
from ice.punch.wire import MOST_DEPTH
from tools.punchdesk import listed


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "a b",
        "né",
        "文",
        "-rf",
        "a.tar.gz",
        "con",
        "x" * MOST_OCTETS,
        os.fsdecode(b"\xff"),
        "a:b",
    ],
)
def test_harmless_names(part: str) -> None:
    assert objection([part], windows=False) is None


@pytest.mark.parametrize(
    "part",
    ["con", "CON.txt", "Lpt1", "com¹.x", "nul ", "a.", "a ", "a:b", "a?", "a*b", '"', "<", "|"],
)
def test_what_windows_takes_for_something_else(part: str) -> None:
    assert objection([part], windows=True) is not None


@pytest.mark.parametrize("part", ["console", "common.txt", "a b", "nulls", "lpt"])
def test_what_windows_takes_for_a_name(part: str) -> None:
    assert objection([part], windows=True) is None


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_what_is_taken_stays_inside(parts: list[str]) -> None:
    if objection(parts, windows=False) is None:
        joined = os.path.normpath("/root/" + "/".join(parts))
        assert joined == "/root/" + "/".join(parts)
        assert joined.count("/") == len(parts) + 1
        assert not parts[0].startswith(".")


# What there is to be sent. ------------------------------------------------------------------------


def test_find(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "b").mkdir(parents=True)
    (tree / "b" / "x").write_bytes(b"123")
    (tree / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tree / "a")
    found = find([tree, tmp_path / "link"])
    assert [(each.name, each.directory, each.size) for each in found] == [
        ("tree", True, 0),
        ("tree/a", False, 1),
        ("tree/b", True, 0),
        ("tree/b/x", False, 3),
        ("link", False, 1),  # one that was named is followed
    ]


def test_find_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "d" / "e")
    assert find([Path()])[0].name == "e"
    assert find([Path("..")])[0].name == "d"


def test_what_cannot_be_sent(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    (tmp_path / "x").touch()
    os.mkfifo(tmp_path / "pipe")
    for paths, why in (
        ([tmp_path / "none"], "No such file"),
        ([tmp_path / "pipe"], "is a pipe; to send what comes out of it"),
        ([tmp_path / "x", tmp_path / "a" / "x"], "would both arrive as x"),
        ([Path("/")], "has no name of its own"),
        ([Path("nul\0")], "null byte"),
    ):
        with pytest.raises(Missing, match=why):
            find(paths)


def test_what_is_found_in_a_tree_and_cannot_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "deep"
    inner = deep
    for _ in range(MOST_DEPTH + 2):
        inner = inner / "d"
    inner.mkdir(parents=True)
    assert [each.why for each in find([deep]) if each.why] == ["too deep a directory"]

    def denied(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ice.punch.tree.os.scandir", denied)
    assert find([deep])[1].why == "Permission denied"


# Where it goes. -----------------------------------------------------------------------------------


def test_a_partial_file_is_nobody_elses_to_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    partial = store.open(["x"])
    partial.begin(0)
    partial.write(b"secret")
    path = tmp_path / f"x{SUFFIX}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(Refusal, match="another punch recv"):
        store.open(["x"])
    partial.finish(0o666, 10**18)
    assert (tmp_path / "x").read_bytes() == b"secret"
    assert listed(tmp_path) == ["x"]
    store.close()


def test_what_is_left_open_is_closed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    partial = store.open(["x"])
    store.close()
    assert store.opened == set()
    partial.close()
    Store(tmp_path).open(["x"]).close()


def test_a_write_that_takes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr("ice.punch.store.os.write", lambda fd, data: write(fd, data[:3]))
    store = Store(tmp_path)
    partial = store.open(["x"])
    partial.begin(0)
    partial.write(b"0123456789")
    partial.finish(0o644, 0)
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_directories_get_their_times_at_the_end(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make_directory(["d"], 0o555, 10**18)
    store.make_directory(["d", "e"], 0o755, 10**17)
    store.make_directory(["d"], 0o700, 5)  # it is there: nothing happens
    store.close()
    assert (tmp_path / "d").stat().st_mtime_ns == 10**18
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o755  # ours to write to, still
    assert (tmp_path / "d" / "e").stat().st_mtime_ns == 10**17


# Frames. ------------------------------------------------------------------------------------------

TEXT = st.text(max_size=30)
NUMBER = st.integers(1, (1 << 31) - 1)
OCTETS = st.integers(0, (1 << 63) - 1)
MESSAGE = st.one_of(
    st.builds(wire.Total, OCTETS, OCTETS),
    st.builds(
        wire.Head, NUMBER, st.lists(TEXT, min_size=1, max_size=5), st.booleans(), OCTETS,
        st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 0o7777),
    ),
    st.builds(wire.Start, NUMBER, OCTETS, OCTETS, st.integers(-(1 << 63), (1 << 63) - 1)),
    st.builds(wire.End, NUMBER, st.just("0" * 64), TEXT),
    st.builds(wire.Leave, NUMBER, TEXT),
    st.just(wire.Done()),
    st.builds(wire.Want, NUMBER, OCTETS, st.booleans()),
    st.builds(wire.Have, NUMBER, st.just("f" * 64)),
    st.builds(wire.Kept, NUMBER, st.booleans()),
    st.builds(wire.Refuse, NUMBER, TEXT),
)  # fmt: skip


@given(MESSAGE)
def test_what_is_said_is_heard(message: wire.Message) -> None:
    frame = wire.encode(message)
    kind, length = wire.HEADER.unpack(frame[: wire.HEADER.size])
    assert (kind, length) == (wire.Kind.MESSAGE, len(frame) - wire.HEADER.size)
    assert length <= wire.MOST_MESSAGE
    assert wire.decode(frame[wire.HEADER.size :]) == message


def test_a_text_of_ours_is_cut_to_what_is_heard() -> None:
    frame = wire.encode(wire.Refuse(1, "x" * 5000))
    heard = wire.decode(frame[wire.HEADER.size :])
    assert heard == wire.Refuse(1, "x" * wire.MOST_TEXT)


@given(st.binary(max_size=200))
def test_octets_that_are_no_message(body: bytes) -> None:
    try:
        wire.decode(body)
    except wire.WireError:
        pass
    else:
        pytest.fail("random octets are a message")


def test_the_longest_head_fits() -> None:
    head = wire.Head(1, ["\udcff" * 255] * MOST_DEPTH, False, 1, 1, 1)
    assert len(wire.encode(head)) <= wire.MOST_MESSAGE
