"""The relay's driver with a data plane in the kernel beside the sockets: who is told what, when."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stun.sansio import SECOND
from tests.unit.turn.kernel_fakes import Clock, FakeNetwork, FakeProgram
from tests.unit.turn.test_turn_aio import Client, allocated, make_server
from turn import aio
from turn.aio import RelayDriver
from turn.dataplane.kernel.routes import SWEEP, KernelRoutes
from turn.dataplane.kernel.ways import Interface, Way
from turn.server.events import AllocationEnded, ServerEvent
from turn.server.machine import Server


class Network(FakeNetwork):
    """One whose news can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.looks = 0

    def tell(self) -> None:
        """Something has changed."""
        self.news = True
        self._theirs.send(b"!")

    def fileno(self) -> int:
        return self._ours.fileno()

    def changed(self) -> bool:
        self.looks += 1
        self._ours.recv(65536)
        return super().changed()

    def close(self) -> None:
        super().close()
        self._ours.close()
        self._theirs.close()


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.program, self.network = FakeProgram(self.clock, usages=2000), Network()
        self.kernel = KernelRoutes(self.program, self.network, clock=self.clock)


@pytest.fixture
def scenes() -> Iterator[list[Scene]]:
    made: list[Scene] = []
    yield made
    for scene in made:
        scene.kernel.close()


@pytest.fixture
def scene(scenes: list[Scene]) -> Scene:
    scenes.append(Scene())
    return scenes[0]


async def until(done: Callable[[], object]) -> None:
    for _ in range(500):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within five seconds")


@asynccontextmanager
async def calling(
    machine: Server, driver: RelayDriver, events: list[ServerEvent], rng: random.Random
) -> AsyncIterator[Client]:
    """An allocation with a channel; the sockets relay what the kernel does not."""
    machine.start(driver.now())
    driver.flush()
    client, peer, _ = await allocated(driver, events, "127.0.0.1", rng)
    try:
        client.endpoint.transport.sendto(b"\x40\0\0\5hello", client.server)
        assert await peer.next() == b"hello"
        yield client
    finally:
        client.endpoint.transport.close()
        peer.transport.close()


async def test_the_kernel_learns_each_route_and_forgets_it(
    scene: Scene, rng: random.Random
) -> None:
    events: list[ServerEvent] = []
    machine = make_server("127.0.0.1", offload=True)
    driver = RelayDriver(machine, on_event=events.append, kernel=scene.kernel)
    async with driver, calling(machine, driver, events, rng):
        assert len(scene.program.paths) == 2
        # What the kernel relays is counted where the server's operator looks.
        (key,) = [key for key in scene.program.paths if key.channel]
        scene.clock.now = driver.now()
        assert scene.program.packet(key, 1000)
        assert machine.usage().octets_from_client == 1005
        (session,) = machine.sessions()
        assert session.usage.packets_from_client == 2
        assert driver.counters["forwarded to peers in the kernel"] == 1
        assert driver.counters["forwarded to peers"] == 1
        assert scene.program.packet(key, 1)
        machine.disconnect(driver.now(), session=session.session)
        driver.flush()
        assert scene.program.paths == {}
        (ended,) = [event for event in events if isinstance(event, AllocationEnded)]
        assert ended.usage.octets_from_client == 1006
        assert machine.usage().octets_from_client == 1006
    assert scene.program.closed
    assert scene.network.closed


async def test_changes_of_the_network_are_looked_at_but_not_all_the_time(
    scene: Scene, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "CALM", 0.05)
    events: list[ServerEvent] = []
    machine = make_server("127.0.0.1", offload=True)
    driver = RelayDriver(machine, on_event=events.append, kernel=scene.kernel)
    async with driver, calling(machine, driver, events, rng):
        scene.network.usual = Way(8, 1400)
        scene.network.links = {8: Interface("eth8", 1500, is_port=False)}
        for _ in range(50):
            scene.network.tell()
        await until(lambda: {path.ifindex for path in scene.program.paths.values()} == {8})
        assert scene.program.attached_to == {8}
        assert scene.network.looks == 1
        scene.network.usual = None
        scene.network.tell()
        await until(lambda: not scene.program.paths)
        assert scene.network.looks == 2


async def test_many_ways_are_asked_for_between_other_things(
    scene: Scene, rng: random.Random
) -> None:
    events: list[ServerEvent] = []
    machine = make_server("127.0.0.1", offload=True)
    driver = RelayDriver(machine, on_event=events.append, kernel=scene.kernel)
    async with driver, calling(machine, driver, events, rng):
        (route,) = [entry.route for entry in scene.kernel._entries.values()]
        for number in range(3 * SWEEP):
            key = route.key._replace(channel=0x4100 + number)
            peer = route.peer._replace(host=f"10.1.{number // 250}.{number % 250}")
            scene.kernel.install(type(route)(key, route.relay, peer, route.meter), 1 << 62)
        scene.network.usual = Way(8, 1400)
        turns = 0
        scene.network.tell()
        while {path.ifindex for path in scene.program.paths.values()} != {8}:
            turns += 1
            assert turns < 1000
            await asyncio.sleep(0)
        assert turns >= 4


async def test_another_kernel_plane_or_none_takes_over_while_it_runs(
    scenes: list[Scene], rng: random.Random
) -> None:
    events: list[ServerEvent] = []
    machine = make_server("127.0.0.1", offload=True)
    driver = RelayDriver(machine, on_event=events.append)
    async with driver, calling(machine, driver, events, rng) as client:
        total = 5
        for _ in range(2):
            scenes.append(Scene())
            scene = scenes[-1]
            driver.use_kernel(scene.kernel)
            assert len(scene.program.paths) == 2, "routes that there were"
            scene.clock.now = driver.now()
            (key,) = [key for key in scene.program.paths if key.channel]
            path = scene.program.paths[key]
            assert 0 < path.expires - driver.now() <= 600 * SECOND
            assert len({*path.buckets} - {0}) == 2
            assert scene.program.packet(key, 100)
            total += 100
        assert scenes[0].program.closed
        driver.use_kernel(scenes[-1].kernel)  # nothing new: it stays
        assert not scenes[-1].program.closed
        driver.use_kernel(None)
        assert scenes[-1].program.closed
        assert machine.usage().octets_from_client == total
        assert driver.counters["forwarded to peers in the kernel"] == 2
        client.endpoint.transport.sendto(b"\x40\0\0\5again", client.server)
        await until(lambda: machine.usage().octets_from_client == total + 5)


async def test_a_driver_that_was_never_entered_closes_what_it_was_given(scene: Scene) -> None:
    driver = RelayDriver(make_server("127.0.0.1", offload=True), kernel=scene.kernel)
    driver.close()
    assert scene.program.closed


async def test_nothing_is_left_open(scenes: list[Scene]) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        scenes.append(Scene())
        machine = make_server("127.0.0.1", offload=True)
        async with RelayDriver(machine, kernel=scenes[-1].kernel) as driver:
            scenes[-1].network.tell()
            await until(lambda: scenes[-1].network.looks)
            del driver
    assert len([*Path("/proc/self/fd").iterdir()]) == before
