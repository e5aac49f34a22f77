"""The line between a laboratory and its owner: messages, descriptors, errors."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from nattype.lab.kernel import control
from nattype.lab.kernel.errors import LabError, NotPermitted, Unsupported


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        yield here, there


def test_messages_keep_their_bounds_and_carry_descriptors(
    line: tuple[socket.socket, socket.socket],
) -> None:
    here, there = line
    reader, writer = os.pipe()
    control.send(here, {"number": 1}, (writer,))
    control.send(here, {"number": 2})
    os.close(writer)
    message, fds = control.receive(there)
    assert message == {"number": 1}
    os.write(fds[0], b"through")
    os.close(fds[0])
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert control.receive(there) == ({"number": 2}, [])
    here.close()
    assert control.receive(there) == (None, [])


def test_a_whole_environment_fits(line: tuple[socket.socket, socket.socket]) -> None:
    here, there = line
    control.widen(here)
    environment = {"VARIABLE": "x" * 150_000}
    control.send(here, environment)
    assert control.receive(there)[0] == environment


@pytest.mark.parametrize("error", [LabError("a"), NotPermitted("b"), Unsupported("c")])
def test_errors_arrive_as_what_they_were(error: LabError) -> None:
    with pytest.raises(type(error), match=str(error)):
        control.unwrap(control.failure(error))


def test_system_errors_keep_their_number_and_file() -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "prog")
    with pytest.raises(FileNotFoundError, match="'prog'"):
        control.unwrap(control.failure(error))
    with pytest.raises(LabError, match="strange"):
        control.unwrap(control.failure(ValueError("strange")))


def test_a_broken_line_is_said_to_be_one() -> None:
    with pytest.raises(LabError, match="gone"):
        control.unwrap(None)
    assert control.unwrap({"fine": True}) == {"fine": True}
