"""Relaying, allocations and Binding: turnd beside coturn, in one run.

    python tools/bench/relay.py [--full] [--rounds 6] [--seconds 0.5] [--only WORD] [--json FILE]
        [--python PROGRAM] [--plane-only]

Both servers have the first core, the load has the last one.  For each row both are started and
take turns, a short round each; the first round warms them up and is dropped.  What ranks them is
CPU time for each packet that arrived, system time included, which other work on the machine
disturbs least; packets a second are those that arrived, under a load that keeps a fixed number on
their way.  Figures are medians; a ratio is the median of the rounds' ratios, turnd's to coturn's.

It takes about seven minutes, with ``--full`` half an hour.  ``--python`` runs turnd on another
Python, ``--plane-only`` puts the data plane alone, with routes installed by hand, in its place.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from stun import attributes as attrs  # noqa: E402
from stun.codec import Message, encode  # noqa: E402
from stun.registry import Method  # noqa: E402
from stun.sansio import Address  # noqa: E402
from tools.bench import load  # noqa: E402
from tools.bench.rawturn import RawTurn  # noqa: E402
from tools.bench.servers import (  # noqa: E402
    HOST,
    Command,
    Ports,
    coturn,
    natcheck,
    serving,
    turnd,
)

CHANNEL = 0x4000
WARM_UP = 1.3
"""Seconds of the first round: flows have been noticed to be busy by then."""
OURS, THEIRS = "turnd", "coturn"

Go: TypeAlias = Callable[[float], load.Result]
"""Loads a server for so many seconds."""
Rig: TypeAlias = Callable[[int, Ports], AbstractContextManager[Go]]
"""Sets clients and peers up at a server: its process, its ports."""


@dataclass(frozen=True)
class Row:
    """One row of the table.  ``ours`` is in turnd's place, where that is another program."""

    name: str
    rig: Rig
    ours: Command | None = None
    clients: int = 0
    """Where the data plane can do it alone: for how many."""


# Relayed packets. ---------------------------------------------------------------------------------


def sockets_of(count: int) -> list[socket.socket]:
    """Return peers' sockets, each with a port of its own."""
    made = []
    for _ in range(count):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((HOST, 0))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 << 20)
        made.append(sock)
    return made


def set_up(ports: Ports, count: int) -> list[load.Pair]:
    """Allocate and bind a channel for each of ``count`` clients."""
    pairs = []
    for peer in sockets_of(count):
        client = RawTurn(Address(HOST, ports.plain))
        relayed = client.allocate()
        client.bind(CHANNEL, Address(*peer.getsockname()))
        client.sock.setblocking(False)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 << 20)
        peer.connect(relayed)
        pairs.append(load.Pair(client.sock, peer, CHANNEL, relayed))
    return pairs


@dataclass(frozen=True)
class Relaying:
    """A load of ChannelData over UDP, one way."""

    clients: int
    size: int
    burst: int
    to_peer: bool
    window: int = 0
    rate: float = 0

    @contextmanager
    def at_server(self, pid: int, ports: Ports) -> Iterator[Go]:
        """Set allocations and channels up."""
        pairs = set_up(ports, self.clients)
        try:
            with self.on(pid, pairs) as go:
                yield go
        finally:
            for pair in pairs:
                pair.client.close()
                pair.peer.close()

    @contextmanager
    def on(self, pid: int, pairs: Sequence[load.Pair]) -> Iterator[Go]:
        """Load pairs that are set up."""
        send = load.senders(pairs, self.size, self.burst, to_peer=self.to_peer)
        ends = [pair.peer if self.to_peer else pair.client for pair in pairs]
        into = load.Receivers(ends, self.burst)

        def go(seconds: float) -> load.Result:
            if self.window:
                return load.closed(pid, send, into, seconds, burst=self.burst, window=self.window)
            return load.paced(pid, send, into, seconds, burst=self.burst, rate=self.rate)

        yield go
        into.close()


def relaying() -> Iterator[Row]:
    """Yield the rows of ChannelData over UDP."""
    for to_peer in (True, False):
        way = "client to peer" if to_peer else "peer to client"
        loads = {
            f"{way}, {clients} x {size}": Relaying(clients, size, 1, to_peer, window=96)
            for clients, size in ((16, 160), (16, 1200), (200, 160), (200, 1200))
        }
        for clients, size in ((16, 160), (16, 1200), (200, 1200)):
            name = f"{way}, {clients} x {size}, bursts of 8"
            loads[name] = Relaying(clients, size, 8, to_peer, window=256)
        for rate in (10_000, 50_000):
            loads[f"{way}, 16 x 160, {rate:,}/s"] = Relaying(16, 160, 1, to_peer, rate=rate)
        for name, loaded in loads.items():
            yield Row(name, loaded.at_server, clients=loaded.clients)


@contextmanager
def bare_plane(row: Row) -> Iterator[Go]:
    """Run the data plane alone, with a route for each client of a row."""
    peers, made = sockets_of(row.clients), sockets_of(row.clients)
    job = {
        "host": HOST,
        "channel": CHANNEL,
        "clients": [sock.getsockname()[1] for sock in made],
        "peers": [sock.getsockname()[1] for sock in peers],
    }
    process = subprocess.Popen(
        ["taskset", "-c", "0", sys.executable, str(ROOT / "tools/bench/bareplane.py")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        pairs = []
        for client, peer, port in zip(made, peers, answer["relays"], strict=True):
            client.connect((HOST, answer["server"]))
            peer.connect((HOST, port))
            pairs.append(load.Pair(client, peer, CHANNEL, Address(HOST, port)))
        owner: Any = row.rig
        with owner.__self__.on(process.pid, pairs) as go:
            yield go
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        for sock in (*made, *peers):
            sock.close()


# What is not relaying of datagrams. ---------------------------------------------------------------


@contextmanager
def allocating(pid: int, ports: Ports) -> Iterator[Go]:
    """Make authenticated allocations, one after another, each on a socket of its own."""

    # Other clients in each round: coturn does not forget a five-tuple at once.
    hosts = (f"127.{n >> 16 & 255 | 64}.{n >> 8 & 255}.{n & 255}" for n in count(1))

    def go(seconds: float) -> load.Result:
        held, many = [], round(1000 * seconds)
        cpu, begin = load.cpu_of(pid), time.monotonic()
        for host in islice(hosts, many):
            client = RawTurn(Address(HOST, ports.plain), source=host)
            client.allocate()
            held.append(client)
        result = load.Result(many, many, time.monotonic() - begin, load.cpu_of(pid) - cpu)
        for client in held:  # both servers and all clients have the ports of one host
            client.delete()
            client.close()
        return result

    yield go


@contextmanager
def asking(pid: int, ports: Ports) -> Iterator[Go]:
    """Send bare Binding requests from 16 clients."""
    clients = sockets_of(16)
    request = encode(Message.request(Method.BINDING, os.urandom(12)))
    to = Address(HOST, ports.plain)
    send = [load.Sender(sock, to, request, 8, segment=False) for sock in clients]
    into = load.Receivers(clients, 8)
    yield lambda seconds: load.closed(pid, send, into, seconds, burst=8, window=256)
    into.close()
    for sock in clients:
        sock.close()


def streaming(transport: str, size: int) -> Rig:
    """Return what relays to the peers of 16 clients what these send over TCP or TLS."""

    @contextmanager
    def rig(pid: int, ports: Ports) -> Iterator[Go]:
        port = ports.tls if transport == "tls" else ports.plain
        clients, peers = [], sockets_of(16)
        for peer in peers:
            client = RawTurn(Address(HOST, port), transport)
            client.allocate()
            client.bind(CHANNEL, Address(*peer.getsockname()))
            client.sock.setblocking(True)
            clients.append(client.sock)
        frame = load.CHANNEL.pack(CHANNEL, size) + bytes(size + 3 & ~3)
        send = [load.StreamSender(sock, frame) for sock in clients]
        into = load.Receivers(peers, 1)
        yield lambda seconds: load.closed(pid, send, into, seconds, burst=1, window=96)
        into.close()
        for sock in (*clients, *peers):
            sock.close()

    return rig


def other_rows(python: str) -> Iterator[Row]:
    """Yield the rows that are not relaying of datagrams."""
    yield Row("allocations, one after another", allocating)
    yield Row("Binding requests", asking)
    yield Row("Binding requests to natcheck's server", asking, natcheck(python))
    for transport in ("tcp", "tls"):
        for size in (160, 1200):
            name = f"{transport.upper()} client to peer, 16 x {size}"
            yield Row(name, streaming(transport, size))


# Memory. ------------------------------------------------------------------------------------------


def memory_of_allocations(command: Command, count: int) -> float:
    """Return resident octets for each allocation."""
    with serving(command) as (pid, ports), ExitStack() as stack:
        before = 0
        for n in range(count + 1):
            client = RawTurn(Address(HOST, ports.plain))
            stack.callback(client.close)
            client.allocate()
            if n == 0:
                before = load.resident(pid)
        return (load.resident(pid) - before) / count


def memory_of_strangers(command: Command, count: int) -> float:
    """Return resident kilobytes gained by so many requests without credentials."""
    request = Message.request(Method.ALLOCATE, os.urandom(12))
    octets = encode(request.add(attrs.REQUESTED_TRANSPORT, 17))
    with serving(command) as (pid, ports):
        before = load.resident(pid)
        for _ in range(count):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((HOST, ports.plain))
                sock.settimeout(0.2)
                sock.send(octets)
                with suppress(TimeoutError):
                    sock.recv(2000)
        return (load.resident(pid) - before) / 1024


# The tables. --------------------------------------------------------------------------------------


def compare(
    row: Row, commands: Mapping[str, Command], rounds: int, seconds: float, *, plane_only: bool
) -> dict[str, list[load.Result]]:
    """Run a row: by server, what each round saw."""
    found: dict[str, list[load.Result]] = {name: [] for name in commands}
    with ExitStack() as stack:
        go: dict[str, Go] = {}
        for name, command in commands.items():
            if plane_only and name == OURS:
                go[name] = stack.enter_context(bare_plane(row))
                continue
            chosen = row.ours if row.ours is not None and name == OURS else command
            pid, ports = stack.enter_context(serving(chosen))
            go[name] = stack.enter_context(row.rig(pid, ports))
        for loaded in go.values():
            loaded(max(WARM_UP, seconds))
        for n in range(rounds):
            # Who is first in a round is second in the next one.
            for name in sorted(go, reverse=bool(n % 2)):
                found[name].append(go[name](seconds))
    return found


def summary(found: Mapping[str, list[load.Result]]) -> dict[str, Any]:
    """Return medians by server, and ratios."""
    medians: dict[str, Any] = {
        name: {
            "per_second": statistics.median(result.rate for result in results),
            "cpu_us": statistics.median(result.microseconds for result in results),
            "lost": statistics.median(result.loss for result in results),
        }
        for name, results in found.items()
    }
    if {OURS, THEIRS} <= found.keys():
        pairs = [*zip(found[OURS], found[THEIRS], strict=True)]
        medians["cpu_ratio"] = statistics.median(a.microseconds / b.microseconds for a, b in pairs)
        medians["rate_ratio"] = statistics.median(a.rate / b.rate for a, b in pairs)
    return medians


def table(
    rows: Sequence[Row],
    commands: Mapping[str, Command],
    rounds: int,
    seconds: float,
    *,
    plane_only: bool,
) -> Iterator[dict[str, Any]]:
    """Print rates and CPU time, by row and server; yield what was found."""
    width = max(len(row.name) for row in rows)
    ratios = f"{'CPU':>9}{'rate':>7}" if len(commands) > 1 else ""
    print(f"{'':{width}}", *(f"{name:^31}" for name in commands), f"{'ratio of':>16}")
    print(
        f"{'':{width}}", *(f"{'a second':>12}{'CPU us':>10}{'lost':>9}" for _ in commands), ratios
    )
    for row in rows:
        found = compare(row, commands, rounds, seconds, plane_only=plane_only)
        seen = summary(found)
        cells = [
            f"{seen[name]['per_second']:>12,.0f}{seen[name]['cpu_us']:>10.2f}"
            f"{seen[name]['lost']:>9.2%}"
            for name in found
        ]
        ratios = ""
        if "cpu_ratio" in seen:
            ratios = f"{seen['cpu_ratio']:>8.2f}x{seen['rate_ratio']:>6.2f}x"
        print(f"{row.name:{width}}", *cells, ratios, flush=True)
        rounds_seen = {name: [asdict(one) for one in results] for name, results in found.items()}
        yield {"row": row.name, **seen, "rounds": rounds_seen}


def memory_table(
    commands: Mapping[str, Command], held: int, strangers: int
) -> Iterator[dict[str, Any]]:
    """Print what memory is needed; yield what was found."""
    measures: list[tuple[str, Callable[[Command, int], float], int]] = [
        (f"resident octets for each of {held:,} allocations", memory_of_allocations, held),
        (f"resident KiB gained by {strangers:,} strangers", memory_of_strangers, strangers),
    ]
    width = max(len(name) for name, _, _ in measures)
    print(f"\n{'':{width}}", *(f"{name:>16}" for name in commands))
    for name, measure, many in measures:
        found = {server: measure(command, many) for server, command in commands.items()}
        print(f"{name:{width}}", *(f"{value:>16,.0f}" for value in found.values()), flush=True)
        yield {"row": name, **found}


def machine(python: str) -> dict[str, Any]:
    """Return what it was measured on."""
    version = [python, "-c", "import sys; print(sys.version, end='')"]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": subprocess.run(
            version, capture_output=True, text=True, check=True
        ).stdout.strip(),
        "coturn": _version_of_coturn(),
    }


def _version_of_coturn() -> str:
    if shutil.which("dpkg-query") is None:
        return ""
    words = ["dpkg-query", "-W", "-f", "${Version}", "coturn"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--full", action="store_true", help="longer rounds, and more of them")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--python", default=sys.executable, help="the Python that turnd runs on")
    parser.add_argument("--plane-only", action="store_true", help="the data plane for turnd")
    parser.add_argument("--json", type=Path, help="write everything that was seen to this file")
    options = parser.parse_args()
    if options.full:
        options.rounds, options.seconds = 10, 2.0
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    load.many_descriptors()
    commands: dict[str, Command] = {OURS: turnd(options.python, "--dataplane", "sockets")}
    if shutil.which("turnserver") is None:
        print("turnserver is missing: sudo apt-get install coturn")
    else:
        commands[THEIRS] = coturn
    rows = [*relaying()]
    if not options.plane_only:
        rows += other_rows(options.python)
    rows = [row for row in rows if options.only in row.name]
    report: dict[str, Any] = {"machine": machine(options.python), "rows": [], "memory": []}
    if rows:
        report["rows"] += table(
            rows, commands, options.rounds, options.seconds, plane_only=options.plane_only
        )
    if not (options.plane_only or options.only):
        held, strangers = (3_000, 100_000) if options.full else (2_000, 20_000)
        report["memory"] += memory_table(commands, held, strangers)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
