"""Word of changes, with the kernel played."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ice import watch as watching
from ice.interfaces import LocalAddress
from stun.sansio import MILLISECOND, SECOND

ONE, OTHER = LocalAddress("192.0.2.1", "eth0"), LocalAddress("192.0.2.2", "eth1")


class System:
    """The addresses, and how often they were asked for."""

    def __init__(self) -> None:
        self.addresses = [ONE]
        self.asked = 0
        self.kernel: Kernel | None = None

    def __call__(self) -> list[LocalAddress]:
        self.asked += 1
        return [*self.addresses]


class Kernel:
    """:class:`ice.netlink.Changes` that a test speaks for."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)

    def fileno(self) -> int:
        return self.near.fileno()

    def take(self) -> bool:
        try:
            return bool(self.near.recv(100))
        except BlockingIOError:
            return False

    def speak(self) -> None:
        self.far.send(b"word")

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    system = System()

    def changes() -> Kernel:
        system.kernel = Kernel()
        return system.kernel

    monkeypatch.setattr(watching, "Changes", changes)
    monkeypatch.setattr(watching, "local_addresses", system)
    monkeypatch.setattr(watching, "SETTLING", 0.0)
    return system


async def eventually(what: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_change_is_told_to_everybody_together(system: System) -> None:
    told: list[Sequence[LocalAddress]] = []
    one = watching.watch(told.append, SECOND)
    other = watching.watch(told.append, SECOND)
    assert one.addresses() == other.addresses() == [ONE]
    assert system.asked == 1
    system.addresses.append(OTHER)
    assert system.kernel is not None
    system.kernel.speak()
    system.kernel.speak()
    await eventually(lambda: told)
    assert told == [[ONE, OTHER]] * 2
    one.end()
    one.end()
    system.kernel.speak()
    await eventually(lambda: len(told) == 3)
    other.end()
    assert system.kernel.fileno() == -1
    assert not watching._watches


async def test_word_that_nobody_has_read_yet_counts(system: System) -> None:
    told: list[Any] = []
    one = watching.watch(told.append, SECOND)
    system.addresses.append(OTHER)
    assert one.addresses() == [ONE]
    assert system.kernel is not None
    system.kernel.speak()
    assert one.addresses() == [ONE, OTHER]
    await eventually(lambda: told)
    one.end()


async def test_what_was_asked_for_is_known_for_a_moment_only(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = watching.watch(print, SECOND)
    one.addresses()
    assert system.asked == 1
    monkeypatch.setattr(watching, "FRESH", -1.0)
    one.addresses()
    assert system.asked == 2
    one.end()


async def test_without_a_kernel_that_tells(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> Kernel:
        raise OSError

    monkeypatch.setattr(watching, "Changes", refused)
    told: list[Any] = []
    one = watching.watch(told.append, MILLISECOND)
    await eventually(lambda: system.asked > 3)
    assert not told
    system.addresses = []
    await eventually(lambda: told)
    assert told == [[]]
    assert one.addresses() == []
    one.end()


async def test_the_real_thing_begins_and_ends() -> None:
    one = watching.watch(print, SECOND)
    assert any(address.loopback for address in one.addresses())
    one.end()
    assert not watching._watches
