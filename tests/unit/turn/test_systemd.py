"""What systemd is told, with a socket of ours in its place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from turn.daemon import systemd


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[dict[str, str], socket.socket]]:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(path)
        line.settimeout(5)
        yield {"NOTIFY_SOCKET": path}, line


def test_a_state_arrives(manager: tuple[dict[str, str], socket.socket]) -> None:
    environment, line = manager
    assert systemd.notify("READY=1\nSTATUS=serving", environment)
    assert line.recv(1000) == b"READY=1\nSTATUS=serving"


def test_an_abstract_socket_is_found() -> None:
    name = f"natkit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind("\0" + name)
        line.settimeout(5)
        assert systemd.notify("READY=1", {"NOTIFY_SOCKET": "@" + name})
        assert line.recv(1000) == b"READY=1"


@pytest.mark.parametrize("place", ["", "relative", "/nowhere/at/all"])
def test_without_a_manager_nothing_happens(place: str) -> None:
    assert not systemd.notify("READY=1", {"NOTIFY_SOCKET": place})
    assert not systemd.notify("READY=1", {})


def test_a_reload_carries_the_time(manager: tuple[dict[str, str], socket.socket]) -> None:
    environment, line = manager
    assert systemd.reloading(environment)
    first, second = line.recv(1000).decode().split("\n")
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert int(value) > 0


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_demands(
    environment: dict[str, str], interval: float | None
) -> None:
    assert systemd.watchdog_interval(environment) == interval
