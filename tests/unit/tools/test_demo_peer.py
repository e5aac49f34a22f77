"""A peer of the demo: what ``punch`` tells is understood, and what it is given arrives whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, Any

import pytest

from tools.demo_peer import Peer

RELAYED = b'{"event": "path", "kind": "relay", "transport": "tcp", "ms": 120.5}\n'
DIRECT = b'{"event": "path", "kind": "direct", "transport": "tcp", "ms": 431.0}\n'


class Program:
    """A program that is a pipe: what is written to it can be read again."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(writer, False)
        self.stdin: IO[Any] | None = open(writer, "wb", buffering=0)  # noqa: SIM115, PTH123
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def read(self) -> bytes:
        """Read all that is there."""
        found = b""
        while True:
            try:
                data = os.read(self.reader, 1 << 16)
            except BlockingIOError:
                return found
            if not data:
                return found + b"<end>"
            found += data

    def close(self) -> None:
        assert self.stdin is not None
        self.stdin.close()
        os.close(self.reader)


@pytest.fixture
def program() -> Iterator[Program]:
    made = Program()
    yield made
    made.close()


@pytest.fixture
def peer(program: Program) -> Peer:
    return Peer("A", program)


# What it tells. -----------------------------------------------------------------------------------


def test_events_come_in_any_pieces(peer: Peer) -> None:
    for octet in RELAYED + DIRECT:
        peer.take_events(bytes((octet,)))
    assert [path["ms"] for path in peer.paths] == [120.5, 431.0]


def test_whether_it_is_direct_is_what_it_told_last(peer: Peer) -> None:
    told = []
    for event in (b"", RELAYED, DIRECT, RELAYED):
        peer.take_events(event)
        told.append(peer.is_direct)
    assert told == [False, False, True, False]


def test_when_they_met_is_remembered(peer: Peer) -> None:
    peer.take_events(b'{"event": "waiting", "code": "7-a-b-c"}\n')
    assert peer.met_at == 0
    peer.take_events(b'{"event": "met", "ms": 5.0}\n')
    assert peer.met_at > 0
    waiting = peer.event("waiting")
    assert waiting is not None
    assert waiting["code"] == "7-a-b-c"
    assert peer.event("path") is None


@pytest.mark.parametrize("line", [b"Traceback", b"[]", b'"text"', b"{}", b"\xff"])
def test_what_is_no_event_is_kept_as_its_last_words(peer: Peer, line: bytes) -> None:
    peer.take_events(line + b"\n")
    assert peer.events == []
    assert peer.said == line.decode(errors="replace")


def finish(peer: Peer, program: Program, code: int) -> None:
    peer.take_output(b"")
    peer.take_events(b"")
    program.returncode = code


def test_it_is_over_when_it_has_ended_and_everything_was_heard(
    peer: Peer, program: Program
) -> None:
    program.returncode = 0
    assert not peer.over
    peer.take_output(b"more")
    peer.take_output(b"")
    assert not peer.over
    peer.take_events(b"")
    assert peer.over


def test_an_end_that_was_asked_for_is_no_failure(peer: Peer, program: Program) -> None:
    peer.end()
    finish(peer, program, 0)
    assert peer.failure == ""


@pytest.mark.parametrize("code", [0, 1])
def test_an_end_that_nobody_asked_for_is_a_failure(peer: Peer, program: Program, code: int) -> None:
    finish(peer, program, code)
    assert peer.failure == "it has ended and did not say why"


def test_a_failure_has_the_words_of_the_error(peer: Peer, program: Program) -> None:
    peer.end()
    peer.take_events(b'Traceback\n{"event": "error", "code": "x", "text": "no way"}\n')
    finish(peer, program, 1)
    assert peer.failure == "no way"


def test_or_its_last_words(peer: Peer, program: Program) -> None:
    peer.take_events(b"Traceback\nKeyError: 1\n")
    finish(peer, program, 1)
    assert peer.failure == "KeyError: 1"


# What goes in. ------------------------------------------------------------------------------------


def test_what_is_sent_arrives_even_if_the_pipe_is_full(peer: Peer, program: Program) -> None:
    big = os.urandom(300_000)
    peer.send(big)
    peer.end()
    found = b""
    while not found.endswith(b"<end>"):
        assert len(found) < len(big) + 6
        found += program.read()
        peer.flush()
    assert found == big + b"<end>"
    assert peer.sent == big


def test_the_input_ends_at_once_when_all_has_been_taken(peer: Peer, program: Program) -> None:
    peer.send(b"words\n")
    peer.end()
    assert program.read() == b"words\n<end>"


def test_each_line_is_another_one(peer: Peer, program: Program) -> None:
    for _ in range(5):
        peer.send_line()
    lines = program.read().splitlines()
    assert len(set(lines)) == 5
    assert all(line.startswith(b"A ") for line in lines)


def test_a_program_that_reads_no_more_is_no_error(peer: Peer, program: Program) -> None:
    os.close(program.reader)
    program.reader = os.open(os.devnull, os.O_RDONLY)
    peer.send(b"words\n")
    peer.send_line()
