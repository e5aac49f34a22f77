"""natkit's ICE agent beside aioice's, in one run, in turns.

    python -m tools.bench.ice [--rounds 5] [--only connect --only pingpong ...] [--json FILE]

Each figure is the median over the rounds.  Where rates depend on what else the machine does, the
CPU time a packet tells more.

    connect    both agents in one process: from the first call to the first packet received
    rtt80      the same with 80 ms there and back, on a wire simulated between them
    dead       gathering and connecting with a STUN server that never answers
    pingpong   1200 octets there and back, one at a time
    oneway     1200 octets one way, as fast as they arrive
    memory     resident set a connected agent, in a process of its own
    messages   a check: parsed, and built with its MESSAGE-INTEGRITY and FINGERPRINT
    hopeless   until a peer that never answers is given up (a minute: only when asked for)
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PAYLOAD = b"\x80" + bytes(1199)
ONE_WAY = 0.040
SECONDS = 1.0
AGENTS = 100
"""In the measurement of memory, half on each side."""
CHUNKS = (1, 8, 32)
"""Packets sent before others get their turn; each stack is given the number that suits it best."""

Pair = tuple[Any, Any]


class Stack(ABC):
    """What the measurements need of a stack."""

    name: str

    @abstractmethod
    def agent(self, *, controlling: bool, stun: tuple[str, int] | None = None) -> Any: ...

    @abstractmethod
    async def gather(self, agent: Any) -> None:
        """Find candidates, as far as that is to be waited for."""

    @abstractmethod
    def endpoint(self, agent: Any) -> tuple[str, int]:
        """Where its first IPv4 host candidate is."""

    @abstractmethod
    async def tell(self, agent: Any, other: Any, at: tuple[str, int] | None = None) -> None:
        """Tell ``other`` of ``agent``: credentials and candidates, or a host candidate ``at``."""

    @abstractmethod
    async def connect(self, agent: Any) -> Any:
        """Wait for the connection: something with ``send`` and ``recv``."""

    @abstractmethod
    async def close(self, agent: Any) -> None: ...

    @abstractmethod
    def messages(self) -> tuple[Callable[[], object], Callable[[], object]]:
        """Return what parses a check, and what builds one."""


class Natkit(Stack):
    name = "natkit"

    def agent(self, *, controlling: bool, stun: tuple[str, int] | None = None) -> Any:
        import ice

        servers = [f"stun:{stun[0]}:{stun[1]}"] if stun else []
        config = ice.Config(ipv6=False, tcp=False)
        return ice.Agent(controlling=controlling, servers=servers, config=config)

    async def gather(self, agent: Any) -> None:
        # Candidates trickle: the first one is enough to begin with.
        await anext(agent.gather())

    def endpoint(self, agent: Any) -> tuple[str, int]:
        first = agent.local_candidates[0]
        return first.host, first.port

    async def tell(self, agent: Any, other: Any, at: tuple[str, int] | None = None) -> None:
        import ice

        other.set_remote_credentials(agent.local_ufrag, agent.local_pwd)
        if at is None:
            for candidate in agent.local_candidates:
                await other.add_remote_candidate(ice.Candidate.from_sdp(candidate.to_sdp()))
        else:
            text = f"candidate:1 1 udp 2130706431 {at[0]} {at[1]} typ host"
            await other.add_remote_candidate(text)
        await other.add_remote_candidate(None)

    async def connect(self, agent: Any) -> Any:
        return await agent.connect(timeout=None)

    async def close(self, agent: Any) -> None:
        await agent.close()

    def messages(self) -> tuple[Callable[[], object], Callable[[], object]]:
        from ice.config import Credentials
        from ice.messages import Keys, read_request, request
        from stun.codec import decode
        from stun.integrity import check_fingerprint

        keys = Keys(Credentials("ijklmnop", "l" * 24))
        keys.set_remote(Credentials("abcdefgh", "p" * 24))

        def build() -> bytes:
            return request(
                os.urandom(12), keys, priority=1853824767, controlling=True, tie_breaker=1 << 60
            )

        def parse() -> object:
            message = decode(built)
            return check_fingerprint(message), read_request(message, b"ijklmnop")

        built = build()
        return parse, build


class Aioice(Stack):
    name = "aioice"

    def agent(self, *, controlling: bool, stun: tuple[str, int] | None = None) -> Any:
        import aioice

        return aioice.Connection(controlling, stun_server=stun, use_ipv6=False)

    async def gather(self, agent: Any) -> None:
        await agent.gather_candidates()

    def endpoint(self, agent: Any) -> tuple[str, int]:
        first = agent.local_candidates[0]
        return first.host, first.port

    async def tell(self, agent: Any, other: Any, at: tuple[str, int] | None = None) -> None:
        import aioice

        other.remote_username, other.remote_password = agent.local_username, agent.local_password
        if at is None:
            for candidate in agent.local_candidates:
                text = candidate.to_sdp()
                await other.add_remote_candidate(aioice.Candidate.from_sdp(text))
        else:
            text = f"1 1 udp 2130706431 {at[0]} {at[1]} typ host"
            await other.add_remote_candidate(aioice.Candidate.from_sdp(text))
        await other.add_remote_candidate(None)

    async def connect(self, agent: Any) -> Any:
        await agent.connect()
        return agent

    async def close(self, agent: Any) -> None:
        await agent.close()

    def messages(self) -> tuple[Callable[[], object], Callable[[], object]]:
        from aioice import stun

        def build() -> bytes:
            message = stun.Message(
                message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST
            )
            message.attributes["USERNAME"] = "abcdefgh:ijklmnop"
            message.attributes["PRIORITY"] = 1853824767
            message.attributes["ICE-CONTROLLING"] = 1 << 60
            message.add_message_integrity(b"p" * 24)
            return bytes(message)

        built = build()
        return (lambda: stun.parse_message(built)), build


STACKS: tuple[Stack, ...] = (Natkit(), Aioice())


async def connected(stack: Stack) -> tuple[Pair, Pair]:
    """Connect two agents; the agents, and what they send and receive with."""
    one, other = stack.agent(controlling=True), stack.agent(controlling=False)
    for agent in (one, other):
        await stack.gather(agent)
    await stack.tell(one, other)
    await stack.tell(other, one)
    here, there = await asyncio.gather(stack.connect(one), stack.connect(other))
    return (one, other), (here, there)


async def first_packet(here: Any, there: Any) -> None:
    await here.send(PAYLOAD)
    await there.recv()


# The measurements: each returns figures by name. --------------------------------------------------


async def connect(stack: Stack) -> dict[str, float]:
    took, cpu = [], time.process_time()
    for _ in range(20):
        began = time.perf_counter()
        agents, (here, there) = await connected(stack)
        await first_packet(here, there)
        took.append(time.perf_counter() - began)
        for agent in agents:
            await stack.close(agent)
    cpu = (time.process_time() - cpu) / len(took)
    return {"ms": statistics.median(took) * 1e3, "CPU ms": cpu * 1e3}


class Wire:
    """Two UDP sockets that carry packets between two agents, each late.

    Each agent knows the other by the socket on its side.
    """

    def __init__(self, host: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._ends = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
        self.agents: list[tuple[str, int]] = []
        for number, end in enumerate(self._ends):
            end.bind((host, 0))
            end.setblocking(False)
            self._loop.add_reader(end.fileno(), self._arrived, number)

    def address(self, number: int) -> tuple[str, int]:
        host, port = self._ends[number].getsockname()
        return host, port

    def _arrived(self, number: int) -> None:
        data, _ = self._ends[number].recvfrom(65535)
        far = 1 - number
        self._loop.call_later(ONE_WAY, self._deliver, far, data)

    def _deliver(self, number: int, data: bytes) -> None:
        if self._ends[number].fileno() >= 0:
            self._ends[number].sendto(data, self.agents[number])

    def close(self) -> None:
        for end in self._ends:
            self._loop.remove_reader(end.fileno())
            end.close()


async def rtt80(stack: Stack) -> dict[str, float]:
    """From the moment when both have the other's candidates to the first packet received."""
    one, other = stack.agent(controlling=True), stack.agent(controlling=False)
    for agent in (one, other):
        await stack.gather(agent)
    wire = Wire(stack.endpoint(one)[0])
    try:
        wire.agents = [stack.endpoint(one), stack.endpoint(other)]
        began = time.perf_counter()
        await stack.tell(one, other, wire.address(1))
        await stack.tell(other, one, wire.address(0))

        async def sender() -> float:
            line = await stack.connect(one)
            waited = time.perf_counter() - began
            await line.send(PAYLOAD)
            return waited

        async def receiver() -> float:
            await (await stack.connect(other)).recv()
            return time.perf_counter() - began

        ready, arrived = await asyncio.gather(sender(), receiver())
        return {"ready ms": ready * 1e3, "first packet ms": arrived * 1e3}
    finally:
        for agent in (one, other):
            await stack.close(agent)
        wire.close()


async def dead(stack: Stack) -> dict[str, float]:
    probe = stack.agent(controlling=True)
    await stack.gather(probe)
    host = stack.endpoint(probe)[0]
    await stack.close(probe)
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind((host, 0))
        began = time.perf_counter()
        one = stack.agent(controlling=True, stun=silent.getsockname())
        other = stack.agent(controlling=False)
        for agent in (one, other):
            await stack.gather(agent)
        await stack.tell(one, other)
        await stack.tell(other, one)
        here, there = await asyncio.gather(stack.connect(one), stack.connect(other))
        await first_packet(here, there)
        took = time.perf_counter() - began
        for agent in (one, other):
            await stack.close(agent)
    return {"ms": took * 1e3}


async def pingpong(stack: Stack) -> dict[str, float]:
    agents, (here, there) = await connected(stack)

    async def echo() -> None:
        while True:
            await there.send(await there.recv())

    echoing = asyncio.create_task(echo())
    count, cpu = 0, time.process_time()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        await here.send(PAYLOAD)
        await here.recv()
        count += 1
    cpu = time.process_time() - cpu
    await ended(echoing)
    for agent in agents:
        await stack.close(agent)
    return {"a second": count / SECONDS, "CPU us": cpu / count * 1e6}


async def oneway(stack: Stack) -> dict[str, float]:
    best: dict[str, float] = {}
    agents, (here, there) = await connected(stack)
    count = 0

    async def sink() -> None:
        nonlocal count
        while True:
            await there.recv()
            count += 1

    sinking = asyncio.create_task(sink())
    for chunk in CHUNKS:
        count, cpu = 0, time.process_time()
        end = time.monotonic() + SECONDS / 2
        while time.monotonic() < end:
            for _ in range(chunk):
                await here.send(PAYLOAD)
            await asyncio.sleep(0)
        cpu = time.process_time() - cpu
        figures = {"a second": count / SECONDS * 2, "CPU us": cpu / max(count, 1) * 1e6}
        if not best or figures["CPU us"] < best["CPU us"]:
            best = figures
    await ended(sinking)
    for agent in agents:
        await stack.close(agent)
    return best


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def memory(stack: Stack) -> dict[str, float]:
    command = [sys.executable, "-m", "tools.bench.ice", "--weigh", stack.name]
    told = await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, text=True
    )
    return {"KB an agent": float(told.stdout)}


async def weigh(stack: Stack) -> float:
    """Return kilobytes of this process for each of many connected agents."""
    warm = [await connected(stack) for _ in range(4)]
    gc.collect()
    before = resident()
    kept = [await connected(stack) for _ in range(AGENTS // 2)]
    gc.collect()
    grown = resident() - before
    for agents, _ in warm + kept:
        for agent in agents:
            await stack.close(agent)
    return grown / AGENTS / 1024


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def messages(stack: Stack) -> dict[str, float]:
    figures = {}
    for what, do in zip(("parse us", "build us"), stack.messages(), strict=True):
        best = float("inf")
        for _ in range(5):
            began = time.process_time()
            for _ in range(2000):
                do()
            best = min(best, (time.process_time() - began) / 2000)
        figures[what] = best * 1e6
    return figures


async def hopeless(stack: Stack) -> dict[str, float]:
    one = stack.agent(controlling=True)
    other = stack.agent(controlling=False)
    await stack.gather(one)
    await stack.gather(other)
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind((stack.endpoint(one)[0], 0))
        await stack.tell(other, one, silent.getsockname())
        began = time.perf_counter()
        try:
            await stack.connect(one)
        except ConnectionError:
            took = time.perf_counter() - began
    for agent in (one, other):
        await stack.close(agent)
    return {"s": took}


Measurement = Callable[[Stack], Awaitable[dict[str, float]]]
MEASUREMENTS: dict[str, Measurement] = {
    "connect": connect,
    "rtt80": rtt80,
    "dead": dead,
    "pingpong": pingpong,
    "oneway": oneway,
    "memory": memory,
    "messages": messages,
    "hopeless": hopeless,
}
SLOW = {"hopeless"}


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Collect garbage between the measurements, not in them."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measure(names: list[str], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in names:
        taken: dict[str, list[dict[str, float]]] = {stack.name: [] for stack in STACKS}
        for _ in range(1 if name in SLOW else rounds):
            for stack in STACKS:
                with quiet_collector():
                    taken[stack.name].append(asyncio.run(MEASUREMENTS[name](stack)))  # type: ignore[arg-type]
        results[name] = {
            stack: {what: statistics.median(one[what] for one in each) for what in each[0]}
            for stack, each in taken.items()
        }
        show(name, results[name])
    return results


def show(name: str, result: dict[str, dict[str, float]]) -> None:
    ours, theirs = (result[stack.name] for stack in STACKS)
    for what, figure in ours.items():
        other = theirs[what]
        more = what == "a second"
        times = (figure / other if more else other / figure) if figure and other else 0
        words = f"{times:.2f} times {'as many' if more else 'less'}"
        print(
            f"{name:10} {what:16} natkit {figure:10.2f}   aioice {other:10.2f}   {words}",
            flush=True,
        )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", action="append", choices=[*MEASUREMENTS])
    options.add_argument("--json", type=Path)
    options.add_argument(
        "--weigh", choices=[stack.name for stack in STACKS], help=argparse.SUPPRESS
    )
    given = options.parse_args()
    if given.weigh:
        stack = next(stack for stack in STACKS if stack.name == given.weigh)
        print(asyncio.run(weigh(stack)))
        return
    names = given.only or [name for name in MEASUREMENTS if name not in SLOW]
    results = measure(names, given.rounds)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
