"""Binding requests: our server beside coturn's, in one run.

    python tools/bench/server.py [--rounds 6] [--seconds 2]

Every server has the first core to itself and the load the last one.  The servers take turns, the
first round is dropped.  What counts is the server's CPU time per answer, which other work on the
machine disturbs least; answers a second are what one core gave under this load.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
REQUEST = bytes.fromhex("000100002112a442")
WINDOW = 32
SOCKETS = 16

OUR_SERVER = """
import asyncio, os
from stun.aio import Driver
from stun.responder import Limits
from stun.sansio import Address
from stun.server import Server, ServerConfig

async def main():
    config = ServerConfig(Address("127.0.0.1", {port}), tcp=False, limits=Limits(answers={limit}))
    server = Server(config, entropy=os.urandom)
    async with Driver(server, on_event=lambda event: None) as driver:
        server.start(driver.now())
        driver.flush()
        await driver.run()

asyncio.run(main())
"""


class Round(NamedTuple):
    answers: int
    lost: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.answers / self.seconds

    @property
    def microseconds(self) -> float:
        return self.cpu / self.answers * 1e6


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(command: list[str], port: int) -> Iterator[int]:
    """Run a server on the first core; wait until it answers."""
    process = subprocess.Popen(
        ["taskset", "-c", "0", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(0.1)
            probe.connect(("127.0.0.1", port))
            end = time.monotonic() + 10
            while time.monotonic() < end:
                try:
                    probe.send(REQUEST + os.urandom(12))
                    probe.recv(2000)
                    break
                except OSError:
                    if process.poll() is not None:
                        sys.exit(f"{command[0]} ended with status {process.returncode}")
            else:
                sys.exit(f"{command[0]} does not answer")
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def load(port: int, seconds: float, pid: int) -> Round:
    """Keep ``WINDOW`` requests open on each of ``SOCKETS`` sockets; count the answers."""
    sockets = []
    for _ in range(SOCKETS):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.connect(("127.0.0.1", port))
        one.settimeout(0.05)
        sockets.append(one)
    request = REQUEST + os.urandom(12)
    answers = lost = 0
    cpu, begin = cpu_of(pid), time.monotonic()
    end = begin + seconds
    for one in sockets:
        for _ in range(WINDOW):
            one.send(request)
    while time.monotonic() < end:
        for one in sockets:
            receive, send = one.recv, one.send
            for n in range(WINDOW):
                try:
                    receive(2000)
                except TimeoutError:
                    lost += WINDOW - n
                    for _ in range(WINDOW - n):
                        send(request)
                    break
                answers += 1
                send(request)
    elapsed = time.monotonic() - begin
    spent = cpu_of(pid) - cpu
    for one in sockets:
        one.close()
    return Round(answers, lost, elapsed, spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    servers: dict[str, Callable[[int], list[str]]] = {
        "natkit": lambda port: [sys.executable, "-c", OUR_SERVER.format(port=port, limit=0)],
        "natkit, with budgets": lambda port: [
            sys.executable,
            "-c",
            OUR_SERVER.format(port=port, limit=1_000_000),
        ],
    }
    coturn = shutil.which("turnserver")
    if coturn is None:
        print("turnserver is missing: sudo apt-get install coturn")
    else:
        servers["coturn"] = lambda port: [
            coturn, "-n", "-L", "127.0.0.1", "-p", str(port), "-m", "1", "--no-tls", "--no-dtls",
            "--no-tcp", "--no-cli", "--no-software-attribute", "--log-file", "stdout",
            "--pidfile", "/dev/null", "--db", f"/tmp/natkit-bench-{os.getpid()}.sqlite",
        ]  # fmt: skip
    rounds: dict[str, list[Round]] = {name: [] for name in servers}
    for n in range(options.rounds + 1):
        for name, command in servers.items():
            port = free_port()
            with started(command(port), port) as pid:
                result = load(port, options.seconds, pid)
            if n:
                rounds[name].append(result)
    print(f"{'server':<24}{'answers/s':>12}{'CPU us/answer':>16}{'lost':>8}")
    for name, results in rounds.items():
        print(
            f"{name:<24}{statistics.median(r.rate for r in results):>12,.0f}"
            f"{statistics.median(r.microseconds for r in results):>16.2f}"
            f"{sum(r.lost for r in results):>8}"
        )


if __name__ == "__main__":
    main()
