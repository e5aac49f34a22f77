"""Two agents on real sockets, on loopback."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ice
from ice.config import Config, Server
from ice.events import (
    AgentEvent,
    AgentState,
    Congested,
    Failed,
    Relieved,
    Restarted,
)
from ice.interfaces import LocalAddress
from ice.timeline import Event, Packet
from stun.errors import DropReason, StunError, UsageError
from stun.sansio import MILLISECOND, SECOND

HOST = "127.0.0.1"
CONFIG = Config(
    loopback=True, ipv6=False, tcp=False, addresses=("127.0.0.0/8",), watch_network=0, patience=1
)
TCP = replace(CONFIG, udp=False, tcp=True)


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run, and see that nothing is left: no task, no descriptor."""

    async def within() -> None:
        before = descriptors()
        async with asyncio.timeout(30):
            await main()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()
        assert descriptors() == before

    asyncio.run(within())


async def tell(one: ice.Agent, other: ice.Agent) -> None:
    """Trickle one side's candidates to the other."""
    other.set_remote_credentials(one.local_ufrag, one.local_pwd)
    async for candidate in one.gather():
        await other.add_remote_candidate(ice.Candidate.from_sdp(candidate.to_sdp()))
    await other.add_remote_candidate(None)


@asynccontextmanager
async def pair(
    config: Config = CONFIG, **options: Any
) -> AsyncIterator[tuple[ice.Agent, ice.Agent]]:
    async with (
        ice.Agent(controlling=True, config=config, **options) as one,
        ice.Agent(controlling=False, config=config) as other,
    ):
        yield one, other


async def connected(one: ice.Agent, other: ice.Agent) -> tuple[ice.Connection, ice.Connection]:
    await asyncio.gather(tell(one, other), tell(other, one))
    both = await asyncio.gather(one.connect(10), other.connect(10))
    return both[0], both[1]


async def eventually(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110  (the other side is a machine that tells nobody)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("config", [CONFIG, TCP], ids=["udp", "tcp"])
def test_a_conversation(config: Config) -> None:
    async def main() -> None:
        async with pair(config) as (one, other):
            a, b = await connected(one, other)
            # Until then each side may use another pair.
            await eventually(lambda: one.state is other.state is AgentState.COMPLETED)
            for number in range(50):
                await a.send(b"word %d" % number)
                assert await b.recv() == b"word %d" % number
                await b.send(b"answer %d" % number)
                assert await a.recv() == b"answer %d" % number
            assert a.recv_nowait() is None
            await a.send(b"")
            assert await b.recv() == b""
            here, there = a.selected_pair, b.selected_pair
            assert here is not None
            assert there is not None
            assert here.base.transport == ("udp" if config.udp else "tcp")
            assert (here.packets_sent, here.packets_received) == (51, 50)
            assert (there.packets_sent, there.packets_received) == (50, 51)
            assert one.explain().text().startswith("Connected directly")

    run(main)


def test_gathering_trickles_and_can_be_repeated() -> None:
    async def main() -> None:
        async with ice.Agent(controlling=True, config=CONFIG) as agent:
            seen = [candidate async for candidate in agent.gather()]
            assert seen == agent.local_candidates == await agent.gather()
            assert [candidate.host for candidate in seen] == [HOST]

    run(main)


def test_a_dead_server_delays_nothing() -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as silent:
            silent.bind((HOST, 0))
            uri = f"stun:{HOST}:{silent.getsockname()[1]}"
            async with pair(servers=[uri, "stun:name.invalid"]) as (one, other):
                gathering = one.gather()
                first = await anext(gathering)
                assert first.type is ice.CandidateType.HOST
                other.set_remote_credentials(one.local_ufrag, one.local_pwd)
                await other.add_remote_candidate(first)
                await tell(other, one)
                await asyncio.gather(one.connect(10), other.connect(10))
                assert not one.gathered  # the servers are still being asked

    run(main)


def test_credentials_and_candidates_in_any_order() -> None:
    async def main() -> None:
        async with pair() as (one, other):
            await one.gather()
            for candidate in one.local_candidates:
                await other.add_remote_candidate(candidate.to_sdp())
            await other.add_remote_candidate(None)
            waiting = asyncio.create_task(other.connect())
            await asyncio.sleep(0)
            other.set_remote_credentials(one.local_ufrag, one.local_pwd)
            one.set_remote_credentials(other.local_ufrag, other.local_pwd)
            await one.connect()
            await waiting

    run(main)


def test_several_components_and_streams() -> None:
    async def main() -> None:
        async with pair(replace(CONFIG, components=2, streams=2)) as (one, other):

            async def all_of(here: ice.Agent, there: ice.Agent) -> None:
                there.set_remote_credentials(here.local_ufrag, here.local_pwd)
                for stream in range(2):
                    async for candidate in here.gather(stream):
                        await there.add_remote_candidate(candidate, stream=stream)
                    await there.add_remote_candidate(None, stream=stream)
                assert len(here.local_candidates) == 4

            await asyncio.gather(all_of(one, other), all_of(other, one))
            await asyncio.gather(one.connect(), other.connect())
            for stream in range(2):
                for component in (1, 2):
                    text = b"%d %d" % (stream, component)
                    await one.connection(component, stream).send(text)
                    assert await other.connection(component, stream).recv() == text
            with pytest.raises(UsageError, match="no component 3 of stream 0"):
                one.connection(3)

    run(main)


def test_a_hopeless_peer() -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as silent:
            silent.bind((HOST, 0))
            port = silent.getsockname()[1]
            config = replace(CONFIG, rto=20 * MILLISECOND)
            async with ice.Agent(controlling=True, config=config) as agent:
                agent.set_remote_credentials("abcd", "x" * 22)
                text = f"candidate:1 1 udp 2130706431 {HOST} {port} typ host"
                await agent.add_remote_candidate(text)
                await agent.add_remote_candidate(None)
                with pytest.raises(ice.ConnectionFailed) as caught:
                    await agent.connect()
                assert isinstance(caught.value, ConnectionError | StunError)
                assert f"{HOST}:{port}" in str(caught.value)
                assert caught.value.explanation is not None
                assert agent.state is AgentState.FAILED

    run(main)


def test_no_connection_in_time() -> None:
    async def main() -> None:
        async with ice.Agent(controlling=True, config=CONFIG) as agent:
            with pytest.raises(
                ice.ConnectionFailed, match=r"within 0\.05 s.*set_remote_credentials"
            ):
                await agent.connect(timeout=0.05)
            with pytest.raises(UsageError, match="not connected yet"):
                await agent.connection().send(b"early")

    run(main)


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="the scheme must be one of"):
        ice.Agent(controlling=True, servers=["http://stun.example"])
    with pytest.raises(UsageError, match="a TURN server wants a username"):
        ice.Agent(controlling=True, servers=["turn:relay.example"])
    with pytest.raises(UsageError, match="a username and a password"):
        ice.Agent(controlling=True, username="user")


def test_a_closed_agent_says_so() -> None:
    async def main() -> None:
        async with pair() as (one, other):
            _, b = await connected(one, other)
            receiving = asyncio.create_task(b.recv())
            connecting = asyncio.create_task(ice.Agent(controlling=True, config=CONFIG).connect())
            connecting.cancel()
            await asyncio.sleep(0)
            await other.close()
            await other.close()
            with pytest.raises(ice.ConnectionClosed, match="the agent is closed"):
                await receiving
            with pytest.raises(ice.ConnectionClosed):
                await b.send(b"late")
            with pytest.raises(ice.ConnectionClosed):
                await other.connect()
            with pytest.raises(ice.ConnectionClosed):
                other.gather()
            assert [data async for data in b] == []
            assert other.state is AgentState.CLOSED
            await asyncio.gather(connecting, return_exceptions=True)

    run(main)


def test_what_waits_is_told_of_the_end() -> None:
    async def main() -> None:
        agent = ice.Agent(controlling=True, config=CONFIG)
        waiting = [
            asyncio.create_task(agent.connect()),
            asyncio.create_task(agent.connection().recv()),
        ]
        await asyncio.sleep(0)
        await agent.close()
        for task in waiting:
            with pytest.raises(ice.ConnectionClosed):
                await task

    run(main)


@pytest.mark.parametrize("config", [CONFIG, TCP], ids=["udp", "tcp"])
def test_cancelling_at_any_moment_leaves_nothing(config: Config, rng: random.Random) -> None:
    async def main() -> None:
        before, tasks = descriptors(), len(asyncio.all_tasks())

        async def work() -> None:
            async with pair(config, servers=["stun:localhost:9"]) as (one, other):
                a, b = await connected(one, other)
                await a.send(b"hello")
                await b.recv()
                await one.restart()
                await b.recv()

        for _ in range(60):
            task = asyncio.create_task(work())
            for _ in range(rng.randrange(60)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), task.exception()
            assert len(asyncio.all_tasks()) == tasks
        gc.collect()
        assert descriptors() == before

    run(main)


def test_a_cancelled_receiver_loses_no_packet() -> None:
    async def main() -> None:
        async with pair() as (one, other):
            a, b = await connected(one, other)
            receiving = asyncio.create_task(b.recv())
            await asyncio.sleep(0)
            b.feed(b"first")
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiving
            assert await b.recv() == b"first"
            receiving = asyncio.create_task(b.recv())
            await asyncio.sleep(0)
            with pytest.raises(UsageError, match="another task is waiting"):
                await b.recv()
            await a.send(b"second")
            assert await receiving == b"second"

    run(main)


def test_the_queue_is_bounded() -> None:
    async def main() -> None:
        async with pair(replace(CONFIG, receive_buffer=5)) as (one, other):
            a, b = await connected(one, other)
            for number in range(9):
                await a.send(b"%d" % number)
            what = "received and dropped: nobody took the ones before"
            await eventually(lambda: other.counters.get(what) == 4)
            assert [b.recv_nowait() for _ in range(6)] == [b"0", b"1", b"2", b"3", b"4", None]

    run(main)


def test_a_stranger_is_not_heard() -> None:
    async def main() -> None:
        async with pair() as (one, other):
            a, b = await connected(one, other)
            await a.send(b"so that the short way is taken")
            await b.recv()
            to = b.selected_pair.base.address if b.selected_pair else None
            with socket.socket(type=socket.SOCK_DGRAM) as stranger:
                stranger.bind((HOST, 0))
                for data in (b"boo", b"", b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)):
                    stranger.sendto(data, to or (HOST, 9))
            await eventually(lambda: sum(other.machine.drops.values()) >= 3)
            await a.send(b"mine")
            assert await b.recv() == b"mine"
            assert b.recv_nowait() is None

    run(main)


def test_data_that_looks_like_stun() -> None:
    """RFC 7983 leaves first octets of 0 to 3 to STUN; without its cookie it is data."""

    async def main() -> None:
        async with pair() as (one, other):
            a, b = await connected(one, other)
            for data in (bytes(1200), b"\x01\x01", b"\x00", b"\xff" * 65000):
                await a.send(data)
                assert await b.recv() == data
            await a.send(bytearray(b"mutable"))  # type: ignore[arg-type]
            assert await b.recv() == b"mutable"
            with pytest.raises(TypeError):
                await a.send("text")  # type: ignore[arg-type]
            await a.send(bytes(70000))
            assert one.counters["not sent: larger than the interface or the protocol allows"] == 1

    run(main)


def test_a_restart() -> None:
    async def main() -> None:
        events: list[AgentEvent] = []
        async with pair(on_event=events.append) as (one, other):
            a, b = await connected(one, other)
            before = one.local_ufrag
            await one.restart()
            assert one.local_ufrag != before
            assert any(isinstance(event, Restarted) for event in events)
            await a.send(b"over the old pair")
            assert await b.recv() == b"over the old pair"
            waiting = asyncio.create_task(one.connect())
            await asyncio.sleep(0)
            assert not waiting.done()
            # The peer learns of it by the new credentials, and has new ones as well.
            other.set_remote_credentials(one.local_ufrag, one.local_pwd)
            await asyncio.gather(tell(one, other), tell(other, one))
            await asyncio.gather(waiting, other.connect())
            await eventually(lambda: one.state is other.state is AgentState.COMPLETED)
            await a.send(b"over the new one")
            assert await b.recv() == b"over the new one"
            assert one.machine.generation == other.machine.generation == 1

    run(main)


def test_the_peer_goes_away() -> None:
    config = replace(
        CONFIG,
        consent_interval=20 * MILLISECOND,
        consent_timeout=200 * MILLISECOND,
        rto=20 * MILLISECOND,
        patience=100 * MILLISECOND,
    )

    async def main() -> None:
        events: list[AgentEvent] = []
        async with ice.Agent(controlling=True, config=config, on_event=events.append) as one:
            async with ice.Agent(controlling=False, config=config) as other:
                a, _ = await connected(one, other)
            with pytest.raises(ice.ConnectionLost):
                await a.recv()
            assert any(isinstance(event, Failed) for event in events)
            with pytest.raises(ice.ConnectionLost):
                await a.send(b"anybody?")
            with pytest.raises(ice.ConnectionFailed):
                await one.connect()

    run(main)


def test_backpressure_over_tcp() -> None:
    async def main() -> None:
        events: list[AgentEvent] = []
        async with pair(TCP, on_event=events.append) as (one, other):
            a, b = await connected(one, other)
            await eventually(lambda: one.state is other.state is AgentState.COMPLETED)
            chunk = bytes(60000)

            async def flood() -> None:
                for _ in range(200):
                    await a.send(chunk)

            # Both share an event loop: the other side reads only while this one waits.
            flooding = asyncio.create_task(flood())
            for _ in range(200):
                assert await b.recv() == chunk
            await flooding
            assert {type(event) for event in events} >= {Congested, Relieved}
            for _ in range(1000):
                a.send_nowait(chunk)
            assert one.machine.drops[DropReason.CONGESTED]

    run(main)


def test_servers_are_looked_up_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = asyncio.Event()

    async def slow(wanted: Any) -> Server:
        await answer.wait()
        return Server(str(wanted.uri), ())

    monkeypatch.setattr("ice.aio.look_up", slow)

    async def main() -> None:
        async with ice.Agent(
            controlling=True, config=CONFIG, servers=["stun:slow.example"]
        ) as agent:
            gathering = agent.gather()
            assert (await anext(gathering)).host == HOST
            end = asyncio.create_task(anext(gathering, None))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not end.done()
            answer.set()
            assert await end is None

    run(main)


def test_a_server_that_nobody_knows_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(wanted: Any) -> Server:
        raise StunError(f"{wanted.uri} has no address")

    monkeypatch.setattr("ice.aio.look_up", unknown)

    async def main() -> None:
        async with ice.Agent(controlling=True, config=CONFIG, servers=["stun:x.example"]) as agent:
            await agent.gather()
            assert "stun:x.example has no address" in agent.explain().text()

    run(main)


def test_a_name_of_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Names:
        left = 0

        async def resolve(self, name: str) -> str | None:
            await asyncio.sleep(0)
            return HOST if name == "a.local" else None

        def leave(self) -> None:
            self.left += 1

    names = Names()
    monkeypatch.setattr("ice.mdns.join", lambda: names)

    async def main() -> None:
        async with pair() as (one, other):
            for here, there in ((one, other), (other, one)):
                there.set_remote_credentials(here.local_ufrag, here.local_pwd)
                for candidate in await here.gather():
                    for host in ("a.local", "b.local"):
                        await there.add_remote_candidate(replace(candidate, host=host))
                await there.add_remote_candidate(None)
            await asyncio.gather(one.connect(), other.connect())
        assert names.left == 2

    run(main)


def test_published_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Names:
        def publish(self, host: str) -> str:
            return f"{host.replace('.', '-')}.local"

        def leave(self) -> None:
            pass

    monkeypatch.setattr("ice.mdns.join", Names)

    async def main() -> None:
        config = replace(CONFIG, mdns=ice.Mdns.PUBLISH)
        async with ice.Agent(controlling=True, config=config) as agent:
            assert [found.host for found in await agent.gather()] == ["127-0-0-1.local"]

    run(main)


def test_the_network_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[Any] = []
    addresses = [LocalAddress(host, "lo", 1, 8) for host in (HOST, "127.0.0.2")]

    class Watching:
        def addresses(self) -> list[LocalAddress]:
            return addresses

        def end(self) -> None:
            changed.append("ended")

    def watch(what: Any, interval: int) -> Watching:
        assert interval == SECOND
        changed.append(what)
        return Watching()

    monkeypatch.setattr("ice.watch.watch", watch)

    async def main() -> None:
        config = replace(CONFIG, watch_network=SECOND)
        async with pair(config) as (one, other):
            a, b = await connected(one, other)
            await eventually(lambda: one.state is AgentState.COMPLETED)
            assert a.selected_pair is not None
            gone = a.selected_pair.base.address.host
            changed[0](addresses)  # nothing is new
            assert a.selected_pair.base.address.host == gone
            changed[0]([each for each in addresses if each.host != gone])
            await eventually(lambda: a.selected_pair and a.selected_pair.base.address.host != gone)
            await a.send(b"from elsewhere")
            assert await b.recv() == b"from elsewhere"
        assert changed[2:] == ["ended", "ended"]

    run(main)


def test_a_driver_that_fails_tells_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with pair() as (one, other):
            a, b = await connected(one, other)

            def broken(*_: object) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr(other.machine, "receive", broken)
            receiving = asyncio.create_task(b.recv())
            with socket.socket(type=socket.SOCK_DGRAM) as stranger:
                assert b.selected_pair is not None
                stranger.sendto(b"boo", b.selected_pair.base.address)
            with pytest.raises(StunError, match="driver failed: ZeroDivisionError"):
                await receiving
            del a

    run(main)


def test_it_says_who_it_is() -> None:
    async def main() -> None:
        async with pair() as (one, other):
            assert repr(one) == f"<ice.Agent {one.local_ufrag} controlling new>"
            a, _ = await connected(one, other)
            await a.send(b"x")
            assert repr(a).startswith("<ice.Connection stream 0 component 1 <Pair host")

    run(main)


def test_nothing_waits_on_the_clock() -> None:
    """Connecting on one machine takes a few round trips of the event loop, no timer."""

    async def main() -> None:
        async with pair() as (one, other):
            await asyncio.gather(tell(one, other), tell(other, one))
            began = time.monotonic()
            await asyncio.gather(one.connect(10), other.connect(10))
            assert time.monotonic() - began < 5  # it is a test, not a benchmark

    assert os.name == "posix"
    run(main)


def test_statistics_count_what_was_carried() -> None:
    async def main() -> None:
        async with pair() as (one, other):
            here, there = await connected(one, other)
            for _ in range(3):
                await here.send(b"12345")
                assert await there.recv() == b"12345"
            sent, received = one.statistics(), other.statistics()
            assert (sent.packets_sent, sent.bytes_sent, sent.unsent) == (3, 15, 0)
            assert (received.packets_received, received.bytes_received) == (3, 15)
            assert sent.selections == 1
            (selected,) = (found for found in sent.pairs if found.selected)
            assert selected.packets_sent == 3
            report = sent.rtc()
            assert report[selected.id]["bytesSent"] == 15
            json.dumps(report)

    run(main)


def test_the_timeline_is_written_as_pcapng(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(replace(CONFIG, timeline=64)) as (one, other):
            await connected(one, other)
            timeline = one.machine.timeline
            assert timeline is not None
            entries = [*timeline]
            packets = [entry for entry in entries if isinstance(entry, Packet)]
            assert {packet.outgoing for packet in packets} == {True, False}
            assert any(isinstance(entry, Event) and "data goes" in entry.what for entry in entries)
            with (tmp_path / "checks.pcapng").open("wb") as file:
                one.write_timeline(file)
            written = (tmp_path / "checks.pcapng").read_bytes()
            assert written.startswith(b"\x0a\x0d\x0d\x0a")
            assert all(packet.data in written for packet in packets)

    run(main)


def test_nothing_is_kept_unless_asked_for() -> None:
    async def main() -> None:
        async with pair() as (one, _):
            assert one.machine.timeline is None
            with pytest.raises(UsageError, match="timeline=256"):
                one.write_timeline(io.BytesIO())

    run(main)


def test_what_is_told_before_gathering_has_a_time() -> None:
    # The patience of RFC 8863 counts from the peer's credentials, whenever they come.
    async def main() -> None:
        patient = replace(CONFIG, patience=60 * SECOND)
        async with ice.Agent(controlling=True, config=patient) as agent:
            agent.set_remote_credentials("peer", "p" * 24)
            await agent.add_remote_candidate(None)
            _ = [candidate async for candidate in agent.gather()]
            with pytest.raises(ice.ConnectionFailed, match=r"0\.2"):
                await agent.connect(0.2)
            assert agent.state is not AgentState.FAILED

    run(main)
