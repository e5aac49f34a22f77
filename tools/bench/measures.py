"""What is measured of a way through the server's machine: its cost, its rate, its latency.

*Cost.*  So many packets a second, far from any limit, and everybody asleep between: CPU time of the
whole machine, as the time that its cores were not idle.  On veth the kernel works in the context of
whoever sent, so no process's own time tells what a way costs; the machine's does, once that of the
same packets sent without a relay is subtracted.  Generator and sink sleep and wake by the clock,
never because something arrived, so they cost the same whatever is between them.

*Rate.*  What arrives a second when a fixed number of packets is on its way.

*Latency.*  From the call that sends a probe to its arrival at the other machine as the kernel
stamps it (SO_TIMESTAMPNS), among packets that are sent at random moments.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from nattype.lab.kernel.namespaces import die_with_parent, precise_timers
from tools.bench.frames import BATCH, Generator, Sink
from tools.bench.load import cpu_of

SERVER_CORE = 0
LOAD_CORE = max(os.sched_getaffinity(0))
"""Of generator and sink; the servers have the other one."""
CORES = os.cpu_count() or 1
WARM_UP = 0.15
"""Seconds of load before a measurement."""
SETTLE = 0.01
"""Seconds in which what is on its way arrives."""
QUIET = 0.05
"""Seconds without an arrival after which nothing is on its way any more."""
TICK = 0.0001
"""Seconds between two bursts of a paced load: as even as sleeping lets it be."""
MAKE_UP = 0.001
"""Seconds of a paced load that are sent at once by one who slept too long."""
READ_EVERY = 0.001
STALLED = 0.05
"""Seconds without an arrival after which what is on its way is taken for lost."""
QUEUED = 96 << 10
"""Octets of datagrams that any server's socket has room for, as the kernel accounts for them."""
MOST = 256
AHEAD = 16384
"""Packets on their way where nothing queues but the sink's socket."""
PROBES = 2000
"""Probes a second."""
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@qq")
_IDLE = re.compile(r"\.(?:idle|iowait)_sleeptime\s*: (\d+) nsecs")


@dataclass(frozen=True)
class Traffic:
    """A load that is ready: what sends it, where it arrives, which server is between."""

    generator: Generator
    sink: Sink | None
    """None: nobody; the frames are sent, and that is all."""
    pids: Sequence[int] = ()
    flows: int = 1
    size: int = 160
    """Octets of payload."""
    in_user_space: bool = False
    """Whether a process moves the packets: it has a core to itself, generator and sink share one.
    Otherwise the generator's core does the work, and the sink has the other one."""


@dataclass(frozen=True)
class Seen:
    """One measurement.  Times are seconds; ``busy`` is CPU time of the whole machine."""

    sent: int
    received: int
    elapsed: float
    busy: float
    server: float
    """CPU time of the server's process alone."""
    load: float
    """CPU time of generator and sink, with what the kernel does in their context."""

    @property
    def rate(self) -> float:
        """Packets a second that arrived."""
        return self.received / self.elapsed

    @property
    def microseconds(self) -> float:
        """CPU time of the machine for each packet that was sent."""
        return self.busy / max(self.sent, 1) * 1e6

    @property
    def own_microseconds(self) -> float:
        """CPU time of the processes involved for each packet that was sent.

        It lacks what interrupts did while a core was idle, but other work on the machine is not in
        it: where the two differ, the machine was not quiet.
        """
        return (self.server + self.load) / max(self.sent, 1) * 1e6

    @property
    def loss(self) -> float:
        """The share of what was sent that never came."""
        return max(0.0, 1 - self.received / max(self.sent, 1))


def idle() -> float:
    """Return for how many seconds the cores have been idle, all of them together.

    /proc/stat has the same in hundredths of a second, which is too coarse here.
    """
    found = _IDLE.findall(Path("/proc/timer_list").read_text())
    if not found:
        raise OSError("/proc/timer_list does not say how long this kernel's cores were idle")
    return sum(int(ns) for ns in found) / 1e9


def family(pid: int) -> tuple[int, ...]:
    """Return a process and all that it has started, itself first."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # proc(5): "pid (comm) state ppid ..."; comm may have anything in it.
            before, _, after = path.read_text().rpartition(")")
            children.setdefault(int(after.split()[1]), []).append(int(before.split()[0]))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return tuple(found)


class Child:
    """A piece of work in a process of its own, on a core of its own."""

    def __init__(self, work: Callable[[], Any], core: int) -> None:
        into, out = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(out)
            self._into = into
            return
        status = 1
        try:
            die_with_parent(signal.SIGKILL)
            os.sched_setaffinity(0, {core})
            precise_timers()
            gc.disable()
            os.write(out, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)

    def result(self) -> Any:
        """Wait for its end; return what the work returned.  Raises ``RuntimeError``."""
        with os.fdopen(self._into, "rb") as pipe:
            octets = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if status:
            raise RuntimeError(f"a measurement failed (wait status {status})")
        return json.loads(octets)


@dataclass
class Board:
    """What generator and sink see of one another."""

    _memory: memoryview = field(
        default_factory=lambda: memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
    )

    @property
    def received(self) -> int:
        """Datagrams that have arrived."""
        return self._memory[0]

    def reading(self, sink: Sink, every: float) -> Callable[[], None]:
        """Return the sink's work: to count until it is told to stop."""

        def read() -> None:
            memory = self._memory
            while not memory[1]:
                memory[0] += sink.take()
                time.sleep(every)

        return read

    def stop(self) -> None:
        """Let the sink end."""
        self._memory[1] = 1


def drain(traffic: Traffic) -> None:
    """Forget what is still on its way."""
    if traffic.sink is not None:
        time.sleep(SETTLE)
        while traffic.sink.take():
            time.sleep(QUIET)


def passes(traffic: Traffic) -> int:
    """Send a packet of each flow; return how many arrive."""
    assert traffic.sink is not None
    drain(traffic)
    got = 0
    for n in range(0, traffic.flows, 16):
        traffic.generator.send(min(16, traffic.flows - n))
        time.sleep(MAKE_UP)
        got += traffic.sink.take()
    time.sleep(SETTLE * 5)
    return got + traffic.sink.take()


Moment: TypeAlias = tuple[int, float, float, float, float]


def _moment(board: Board, servers: Sequence[int], load: Sequence[int]) -> Moment:
    """Return arrivals, CPU times and the time, once what is on its way has arrived."""
    time.sleep(SETTLE)
    return (
        board.received,
        sum(map(cpu_of, servers)),
        sum(map(cpu_of, load)),
        idle(),
        time.monotonic(),
    )


def _between(sent: int, before: Moment, after: Moment) -> list[float]:
    """Return the fields of what was seen."""
    received, server, load, slept, elapsed = (b - a for a, b in zip(before, after, strict=True))
    return [sent, received, elapsed - SETTLE, elapsed * CORES - slept, server, load]


def cost(traffic: Traffic, rate: float, seconds: float) -> Seen:
    """Send ``rate`` packets a second; return what that needed."""
    board = Board()

    def pace(seconds: float) -> int:
        sent, begin = 0, time.monotonic()
        last = begin
        while (now := time.monotonic()) < begin + seconds:
            due = min(round((now - last) * rate), round(MAKE_UP * rate))
            sent += traffic.generator.send(due)
            last = now
            time.sleep(TICK)
        return sent

    return _measured(traffic, board, pace, seconds, every=READ_EVERY, core=LOAD_CORE)


def _measured(
    traffic: Traffic,
    board: Board,
    push: Callable[[float], int],
    seconds: float,
    *,
    every: float,
    core: int,
) -> Seen:
    """Run generator and sink as two processes; ``push`` sends for so long, on ``core``."""
    drain(traffic)
    sink = None
    if traffic.sink is not None:
        sink = Child(board.reading(traffic.sink, every), LOAD_CORE)

    def work() -> list[float]:
        load = [os.getpid(), *([sink.pid] if sink else [])]
        push(WARM_UP)
        before = _moment(board, traffic.pids, load)
        sent = push(seconds)
        return _between(sent, before, _moment(board, traffic.pids, load))

    found = Child(work, core).result()
    board.stop()
    if sink is not None:
        sink.result()
    return Seen(*found)


def rate(traffic: Traffic, seconds: float) -> Seen:
    """Keep packets on their way without a pause; return how many arrived."""
    assert traffic.sink is not None
    drain(traffic)
    return _together(traffic, seconds) if traffic.in_user_space else _apart(traffic, seconds)


def _together(traffic: Traffic, seconds: float) -> Seen:
    """Generator and sink take turns on one core; the server has the other."""
    assert traffic.sink is not None
    generator, sink = traffic.generator, traffic.sink
    # A datagram is accounted for with its buffer, a power of two, and a sk_buff.
    each = (1 << (traffic.size + 400).bit_length()) + 256
    window = min(QUEUED // each * traffic.flows, MOST)

    def push(seconds: float) -> tuple[int, int]:
        received = sent = on_the_way = 0
        begin = heard = time.monotonic()
        while (now := time.monotonic()) < begin + seconds:
            if on_the_way < window:
                done = generator.send(min(window - on_the_way, BATCH))
                sent += done
                on_the_way += done
            got = sink.take(window)
            if got:
                received, on_the_way, heard = received + got, max(on_the_way - got, 0), now
            elif now > heard + STALLED:
                on_the_way, heard = 0, now
        return sent, received

    def work() -> list[float]:
        board, load = Board(), [os.getpid()]
        push(WARM_UP)
        before = _moment(board, traffic.pids, load)
        sink.take()  # of the warm-up
        sent, received = push(seconds)
        after = _moment(board, traffic.pids, load)
        late = sink.take()  # on their way at the end: neither received in time nor lost
        found = _between(sent - late, before, after)
        return [found[0], received, *found[2:]]

    return Seen(*Child(work, LOAD_CORE).result())


def _apart(traffic: Traffic, seconds: float) -> Seen:
    """The generator has a core, on which the kernel does all the work, and the sink the other."""
    generator, board = traffic.generator, Board()

    def push(seconds: float) -> int:
        sent, lost = 0, board.received
        begin = heard = time.monotonic()
        while (now := time.monotonic()) < begin + seconds:
            if sent + lost - board.received < AHEAD:
                sent += generator.send(BATCH)
                heard = now
            elif now > heard + STALLED:
                lost = board.received - sent
        return sent

    return _measured(traffic, board, push, seconds, every=MAKE_UP / 4, core=SERVER_CORE)


def latency(
    traffic: Traffic,
    frames: Sequence[bytes],
    arrivals: Sink,
    rate: float,
    seed: int,
) -> list[float]:
    """Return how many microseconds each probe took, in any order; what was lost is not in it.

    ``frames`` are the probes, whose datagrams end in their number in 8 octets, and ``arrivals`` is
    where they come to.  The other packets are sent at random moments (a Poisson process).
    """
    assert traffic.sink is not None
    generator, sink = traffic.generator, traffic.sink
    sink.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # nobody reads there meanwhile
    arrivals.take()
    arrivals.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def work() -> list[float]:
        random = Random(seed)
        gaps = [random.expovariate(rate) for _ in range(1 << 14)]
        pauses = [random.uniform(0.5, 1.5) / PROBES for _ in frames]
        left = [0] * len(frames)
        send = generator.sock.send
        n = at = 0
        turn = following = time.monotonic()
        while n < len(frames):
            now = time.monotonic()
            due = 0
            while turn <= now:
                due += 1
                turn += gaps[at]
                at = at + 1 & 0x3FFF
            if due:
                generator.send(due)
            if now >= following:
                left[n] = time.clock_gettime_ns(time.CLOCK_REALTIME)
                send(frames[n])
                following = now + pauses[n]
                n += 1
        time.sleep(5 * SETTLE)
        return [(came - left[number]) / 1000 for number, came in _arrived(arrivals.sock)]

    taken = Child(work, LOAD_CORE).result()
    arrivals.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 0)
    sink.widen()
    drain(traffic)
    return list(taken)


def _arrived(sock: socket.socket) -> list[tuple[int, int]]:
    """Return the numbers of the probes that have come, and when, in nanoseconds."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(2048, 64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return found
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, ns = _TIMESPEC.unpack_from(value)
                found.append((int.from_bytes(data[-8:]), seconds * 1_000_000_000 + ns))
