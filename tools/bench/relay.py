"""Relaying: turnd beside coturn, in one run.

    python tools/bench/relay.py [--quick] [--rounds 6] [--seconds 2] [--only WORD] [--plane-only]

Every server has the first core to itself, the load the last one.  Servers take turns, and the first
round is dropped.  What ranks them is CPU time per packet that arrived, system time included, which
other work on the machine disturbs least; packets a second are those that arrived, under a load
that keeps a fixed number on their way.  ``--plane-only`` puts the data plane alone, with routes
installed by hand, in turnd's place.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import load  # noqa: E402
from rawturn import PASSWORD, REALM, USER, RawTurn  # noqa: E402
from server import load as load_bindings  # noqa: E402

from stun import attributes as attrs  # noqa: E402
from stun.codec import Message, encode  # noqa: E402
from stun.registry import Method  # noqa: E402
from stun.sansio import Address  # noqa: E402
from tools.certificate import write_self_signed  # noqa: E402

HOST = "127.0.0.1"
CHANNEL = 0x4000
SETTLE = 1.3
"""Seconds of load before a measurement: flows have been noticed to be busy by then."""

TURND = """
realm = "{realm}"
[[listen]]
url = "udp://{host}:{port}"
[[listen]]
url = "tcp://{host}:{port}"
[[listen]]
url = "tls://{host}:{tls}"
[tls]
certificate = "{pem}"
[relay]
addresses = ["{host}"]
[auth]
users = {{ {user} = "{password}" }}
[peers]
allow = ["127.0.0.0/8"]
[admin]
socket = "{admin}"
[limits]
allocations = 0
allocations_per_user = 0
allocations_per_client = 0
octets_per_second_per_user = 0
octets_per_second_per_client = 0
packets_per_second_per_user = 0
packets_per_second_per_client = 0
requests_per_second_per_client = 0
unverified_burst = 1000000000000
connections = 0
connections_per_client = 0
"""


@dataclass(frozen=True)
class Ports:
    """Where a server listens."""

    plain: int
    tls: int


def free_port() -> int:
    """Return a port that is free for UDP and TCP."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        ):
            udp.bind((HOST, 0))
            port: int = udp.getsockname()[1]
            try:
                tcp.bind((HOST, port))
            except OSError:
                continue
            return port


def turnd_command(ports: Ports, directory: Path) -> list[str]:
    """Return how to start turnd."""
    pem = write_self_signed(directory / "cert.pem", HOST, "localhost")
    config = directory / "turnd.toml"
    config.write_text(
        TURND.format(host=HOST, port=ports.plain, tls=ports.tls, pem=pem, realm=REALM,
                     user=USER, password=PASSWORD, admin=directory / "admin")
    )  # fmt: skip
    return [
        sys.executable,
        "-m",
        "turn.daemon.cli",
        "--config",
        str(config),
        "--log-level",
        "error",
    ]


def coturn_command(ports: Ports, directory: Path) -> list[str]:
    """Return how to start coturn, with one relay thread."""
    pem = write_self_signed(directory / "cert.pem", HOST, "localhost")
    return [
        "turnserver", "-n", "-L", HOST, "-E", HOST, "-p", str(ports.plain),
        "--tls-listening-port", str(ports.tls), "-m", "1", "--lt-cred-mech",
        "-u", f"{USER}:{PASSWORD}", "-r", REALM, "--allow-loopback-peers", "--no-dtls", "--no-cli",
        "--cert", str(pem), "--pkey", str(pem), "--no-software-attribute",
        "--log-file", "/dev/null", "--simple-log", "--pidfile", str(directory / "pid"),
        "--db", str(directory / "db"),
    ]  # fmt: skip


Command = Callable[[Ports, Path], list[str]]


@contextmanager
def serving(command: Command) -> Iterator[tuple[int, Ports]]:
    """Run a server on the first core; yield its process and its ports once it answers."""
    with tempfile.TemporaryDirectory(prefix="natkit-bench-") as name:
        ports = Ports(free_port(), free_port())
        words = command(ports, Path(name))
        process = subprocess.Popen(
            ["taskset", "-c", "0", *words],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            end = time.monotonic() + 15
            while True:
                probe = RawTurn(Address(HOST, ports.plain), patience=0.1)
                try:
                    probe.request(Message.request(Method.BINDING, bytes(12)), bare=True)
                    break
                except Exception:
                    if process.poll() is not None or time.monotonic() > end:
                        sys.exit(f"{words[0]} does not serve: {process.communicate()[1]}")
                finally:
                    probe.close()
                time.sleep(0.05)
            time.sleep(0.5)  # coturn answers before all of its threads have their sockets
            yield process.pid, ports
        finally:
            process.terminate()
            process.wait()


# Relayed packets. ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """One row of the table."""

    name: str
    clients: int
    size: int
    burst: int
    to_peer: bool
    window: int = 0
    rate: float = 0

    def run(self, pid: int, pairs: Sequence[load.Pair], seconds: float) -> load.Result:
        """Load the relay and measure."""
        send = load.senders(pairs, self.size, self.burst, to_peer=self.to_peer)
        into = load.Receivers(
            [pair.peer if self.to_peer else pair.client for pair in pairs], self.burst
        )
        try:
            if self.window:
                load.closed(pid, send, into, SETTLE, burst=self.burst, window=self.window)
                return load.closed(pid, send, into, seconds, burst=self.burst, window=self.window)
            load.paced(pid, send, into, SETTLE, burst=self.burst, rate=self.rate)
            return load.paced(pid, send, into, seconds, burst=self.burst, rate=self.rate)
        finally:
            into.close()


def scenarios() -> list[Scenario]:
    """Return all rows."""
    made = []
    for to_peer in (True, False):
        way = "client to peer" if to_peer else "peer to client"
        for clients, size in ((16, 160), (16, 1200), (200, 160), (200, 1200)):
            made.append(
                Scenario(f"{way}, {clients} x {size}", clients, size, 1, to_peer, window=96)
            )
        for clients, size in ((16, 160), (16, 1200), (200, 1200)):
            name = f"{way}, {clients} x {size}, bursts of 8"
            made.append(Scenario(name, clients, size, 8, to_peer, window=256))
        for rate in (10_000, 50_000):
            name = f"{way}, 16 x 160, {rate:,}/s"
            made.append(Scenario(name, 16, 160, 1, to_peer, rate=rate))
    return made


def sockets_of(count: int) -> Iterator[socket.socket]:
    """Yield peers' sockets, each with a port of its own."""
    for _ in range(count):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((HOST, 0))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 << 20)
        yield sock


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


def measure(command: Command, scenario: Scenario, seconds: float) -> load.Result:
    """Run one scenario on a fresh server."""
    with serving(command) as (pid, ports):
        pairs = set_up(ports, scenario.clients)
        try:
            return scenario.run(pid, pairs, seconds)
        finally:
            for pair in pairs:
                pair.client.close()
                pair.peer.close()


@contextmanager
def bare_plane(clients: int) -> Iterator[tuple[int, list[load.Pair]]]:
    """Run the data plane alone, with a route for each client."""
    peers, made = list(sockets_of(clients)), list(sockets_of(clients))
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
        yield process.pid, pairs
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        for sock in (*made, *peers):
            sock.close()


def measure_bare_plane(scenario: Scenario, seconds: float) -> load.Result:
    """Run one scenario on the data plane alone."""
    with bare_plane(scenario.clients) as (pid, pairs):
        return scenario.run(pid, pairs, seconds)


Measure = Callable[[Scenario, float], load.Result]


def relay_table(
    servers: dict[str, Measure], rows: Sequence[Scenario], rounds: int, seconds: float
) -> None:
    """Print packets a second and CPU per packet, by scenario and server."""
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}", *(f"{name:^31}" for name in servers))
    print(f"{'':{width}}", *(f"{'packets/s':>12}{'us/packet':>10}{'lost':>9}" for _ in servers))
    for row in rows:
        results: dict[str, list[load.Result]] = {name: [] for name in servers}
        for n in range(rounds + 1):
            for name, measured in servers.items():
                result = measured(row, seconds)
                if n:
                    results[name].append(result)
        cells, costs = [], []
        for found in results.values():
            costs.append(statistics.median(result.microseconds for result in found))
            rate = statistics.median(result.rate for result in found)
            lost = statistics.median(result.loss for result in found)
            cells.append(f"{rate:>12,.0f}{costs[-1]:>10.2f}{lost:>9.2%}")
        ratio = f"   {costs[0] / costs[1]:.2f}x" if len(costs) == 2 else ""
        print(f"{row.name:{width}}", *cells, ratio, flush=True)


# What is not relaying. ----------------------------------------------------------------------------


def allocations(command: Command, count: int) -> tuple[float, float, float]:
    """Return allocations a second, CPU microseconds and resident octets for each."""
    with serving(command) as (pid, ports):
        warm = RawTurn(Address(HOST, ports.plain))
        warm.allocate()
        held = []
        before, cpu, begin = load.resident(pid), load.cpu_of(pid), time.monotonic()
        for _ in range(count):
            client = RawTurn(Address(HOST, ports.plain))
            client.allocate()
            held.append(client)
        elapsed = time.monotonic() - begin
        spent, grown = load.cpu_of(pid) - cpu, load.resident(pid) - before
        for client in (*held, warm):
            client.close()
        return count / elapsed, spent / count * 1e6, grown / count


def strangers(command: Command, counts: Sequence[int]) -> list[tuple[int, float]]:
    """Return resident kilobytes gained after so many requests without credentials."""
    request = Message.request(Method.ALLOCATE, os.urandom(12))
    octets = encode(request.add(attrs.REQUESTED_TRANSPORT, 17))
    grown = []
    with serving(command) as (pid, ports):
        before, sent = load.resident(pid), 0
        for count in counts:
            while sent < count:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.connect((HOST, ports.plain))
                    sock.settimeout(0.2)
                    sock.send(octets)
                    with suppress(TimeoutError):
                        sock.recv(2000)
                sent += 1
            grown.append((count, (load.resident(pid) - before) / 1024))
    return grown


def bindings(command: Command, seconds: float) -> tuple[float, float]:
    """Return bare Binding requests answered a second, and CPU microseconds for each."""
    with serving(command) as (pid, ports):
        found = load_bindings(ports.plain, seconds, pid)
        return found.rate, found.microseconds


def streams(command: Command, transport: str, size: int, seconds: float) -> load.Result:
    """Relay what 16 clients send over TCP or TLS to their peers."""
    with serving(command) as (pid, ports):
        port = ports.tls if transport == "tls" else ports.plain
        clients, peers = [], list(sockets_of(16))
        for peer in peers:
            client = RawTurn(Address(HOST, port), transport)
            client.allocate()
            client.bind(CHANNEL, Address(*peer.getsockname()))
            client.sock.setblocking(True)
            clients.append(client.sock)
        frame = load.CHANNEL.pack(CHANNEL, size) + bytes(size + 3 & ~3)
        senders = [load.StreamSender(sock, frame) for sock in clients]
        into = load.Receivers(peers, 1)
        try:
            load.closed(pid, senders, into, SETTLE, burst=1, window=96)
            return load.closed(pid, senders, into, seconds, burst=1, window=96)
        finally:
            into.close()
            for sock in (*clients, *peers):
                sock.close()


def other_tables(servers: dict[str, Command], rounds: int, seconds: float, *, quick: bool) -> None:
    """Print what is not relaying of datagrams."""
    width = 44
    print(f"\n{'':{width}}", *(f"{name:>16}" for name in servers))

    def row(name: str, values: Sequence[str]) -> None:
        print(f"{name:{width}}", *(f"{value:>16}" for value in values), flush=True)

    count = 500 if quick else 3000
    found = {
        name: [allocations(command, count) for _ in range(rounds)]
        for name, command in servers.items()
    }
    for n, (title, style) in enumerate(
        (
            ("allocations a second, one after another", "{:,.0f}"),
            ("CPU us for each", "{:.0f}"),
            ("resident octets for each", "{:,.0f}"),
        )
    ):
        row(title, [style.format(statistics.median(r[n] for r in rs)) for rs in found.values()])
    counts = (1_000, 5_000) if quick else (10_000, 100_000)
    grown = {name: strangers(command, counts) for name, command in servers.items()}
    for n, many in enumerate(counts):
        row(
            f"resident KiB gained by {many:,} strangers",
            [f"{results[n][1]:,.0f}" for results in grown.values()],
        )
    answered: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, command in servers.items():
            answered[name].append(bindings(command, seconds))
    for n, (title, style) in enumerate(
        (("Binding requests a second", "{:,.0f}"), ("CPU us for each", "{:.2f}"))
    ):
        row(title, [style.format(statistics.median(r[n] for r in rs)) for rs in answered.values()])
    for transport in ("tcp", "tls"):
        for size in (160, 1200):
            over: dict[str, list[load.Result]] = {name: [] for name in servers}
            for _ in range(rounds):
                for name, command in servers.items():
                    over[name].append(streams(command, transport, size, seconds))
            row(
                f"{transport.upper()} client to peer, 16 x {size}, packets/s",
                [f"{statistics.median(r.rate for r in rs):,.0f}" for rs in over.values()],
            )
            row(
                "CPU us for each",
                [f"{statistics.median(r.microseconds for r in rs):.2f}" for rs in over.values()],
            )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true", help="two rounds, half a second each")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--plane-only", action="store_true", help="the data plane for turnd")
    parser.add_argument("--relaying-only", action="store_true", help="leave the rest out")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 0.5
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    commands: dict[str, Command] = {"turnd": turnd_command}
    if shutil.which("turnserver") is None:
        print("turnserver is missing: sudo apt-get install coturn")
    else:
        commands["coturn"] = coturn_command

    def through(command: Command) -> Measure:
        return lambda scenario, seconds: measure(command, scenario, seconds)

    servers: dict[str, Measure] = {name: through(command) for name, command in commands.items()}
    if options.plane_only:
        servers = {"data plane alone": measure_bare_plane} | servers
        servers.pop("turnd")
    rows = [row for row in scenarios() if options.only in row.name]
    if rows:
        relay_table(servers, rows, options.rounds, options.seconds)
    if not (options.plane_only or options.relaying_only or options.only):
        other_tables(commands, options.rounds, options.seconds, quick=options.quick)


if __name__ == "__main__":
    main()
