"""The turnd of a soak: a process of its own, looked at from outside."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.bench.rawturn import PASSWORD as RAW_PASSWORD
from tools.bench.rawturn import USER as RAW_USER
from tools.certificate import write_self_signed
from tools.soak_worker import NAME, PASSWORD, REALM, ROOT, USERS

HOSTS: Final = ("127.0.0.1", "::1")
LISTENER_PORTS: Final = (10_000, 19_000)
RELAY_PORTS: Final = (20_000, 29_999)
"""Both below the ports that the kernel gives to sockets by itself: nobody else's strays come here,
and are counted."""
_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")


@dataclass(frozen=True)
class Sample:
    """turnd at one moment."""

    second: float
    """Since the soak began."""
    rss: int
    """Resident octets."""
    descriptors: int
    threads: int
    cpu: float
    """Seconds of processor time since it started."""
    allocations: int
    permissions: int
    channels: int
    connections: int
    spares: int
    """Sockets open for the next allocations; they are among the descriptors."""
    relayed: int
    """Packets, both ways."""
    dropped: int
    """All reasons together."""


class Turnd:
    """A turnd with every kind of listener, on loopback."""

    program = ("-m", "turn.daemon.cli")

    def __init__(self, place: Path, *, lifetime: int, idle: int) -> None:
        self.place = place
        self.port, self.tls_port, self.metrics_port = free_ports(3)
        self.certificate = write_self_signed(place / "certificate.pem", NAME)
        self.log = place / "turnd.log"
        self._config = place / "turnd.toml"
        self._config.write_text(self._toml(lifetime, idle))
        self._process: subprocess.Popen[bytes] | None = None
        self._since = 0.0

    def _toml(self, lifetime: int, idle: int) -> str:
        urls = [
            f"{scheme}://{'[::1]' if ':' in host else host}:{port}"
            for host in HOSTS
            for scheme, port in (
                ("udp", self.port),
                ("tcp", self.port),
                ("tls", self.tls_port),
                ("dtls", self.tls_port),
            )
        ]
        users = {**dict.fromkeys(USERS, PASSWORD), RAW_USER: RAW_PASSWORD}
        return "\n".join(
            (
                f'realm = "{REALM}"',
                f"idle = {idle}",
                *(f'[[listen]]\nurl = "{url}"' for url in urls),
                f'[tls]\ncertificate = "{self.certificate}"',
                f"[relay]\naddresses = {json.dumps(HOSTS)}",
                f'ports = "{RELAY_PORTS[0]}-{RELAY_PORTS[1]}"',
                f"default_lifetime = {lifetime}",
                "[auth.users]",
                *(f'{name} = "{password}"' for name, password in users.items()),
                '[peers]\nallow = ["127.0.0.0/8", "::1/128"]',
                f'[metrics]\nlisten = "127.0.0.1:{self.metrics_port}"',
                '[log]\nformat = "json"',
                "[admin]\nsocket = false",
                "",
            )
        )

    # Life. ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait until it serves."""
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    # Whatever is not closed by those who opened it shall be told.
                    *("-W", "always::ResourceWarning"),
                    *(*self.program, "--config", str(self._config)),
                ],
                cwd=ROOT,
                stdout=out,
                stderr=out,
            )
        end = time.monotonic() + 20
        while True:
            try:
                self.metrics()
            except OSError:
                if self.has_ended or time.monotonic() > end:
                    self.stop()
                    raise RuntimeError(f"turnd did not start: {self.log.read_text()}") from None
                time.sleep(0.05)
            else:
                self._since = time.monotonic()
                return

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is gone already."""
        return self._process is None or self._process.poll() is not None

    def reload(self) -> None:
        """Have it read its configuration again."""
        if not self.has_ended:
            os.kill(self.pid, signal.SIGHUP)

    def stop(self) -> int | None:
        """Ask it to stop; return its exit status, ``None`` if it did not within 15 seconds."""
        process = self._process
        assert process is not None
        process.terminate()
        try:
            return process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None

    # Looking. -------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Return what a scrape shows, by name and labels as Prometheus writes them."""
        with socket.create_connection(("127.0.0.1", self.metrics_port), 10) as scrape:
            scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: scrape.recv(65536), b""))
        return dict(_samples(answer.partition(b"\r\n\r\n")[2].decode()))

    def sample(self) -> tuple[Sample, dict[str, float]]:
        """Look at it."""
        found = self.metrics()
        # turnd closes the scrape's own connection a moment after its answer.
        time.sleep(0.05)
        rss, threads, cpu = self._process_state()
        return (
            Sample(
                round(time.monotonic() - self._since, 1),
                rss,
                len(self.descriptors()),
                threads,
                cpu,
                int(found["turnd_allocations"]),
                int(found["turnd_permissions"]),
                int(found["turnd_channels"]),
                int(found["turnd_connections"]),
                int(found["turnd_spares"]),
                int(total(found, "turnd_relayed_packets")),
                int(total(found, "turnd_dropped")),
            ),
            found,
        )

    def resident(self) -> int:
        """Return its resident octets."""
        return self._process_state()[0]

    def _process_state(self) -> tuple[int, int, float]:
        """Return resident octets, threads, and seconds of processor time: see proc(5)."""
        place = Path(f"/proc/{self.pid}")
        lines = (place / "status").read_text().splitlines()
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        times = (place / "stat").read_text().rpartition(")")[2].split()
        ticks = int(times[11]) + int(times[12])
        return int(fields["VmRSS"].split()[0]) * 1024, int(fields["Threads"]), ticks / _TICKS

    def descriptors(self) -> list[str]:
        """Say what its open descriptors are."""
        found = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):  # closed since
                found.append(str(entry.readlink()))
        return sorted(found)

    def lost_in_the_kernel(self) -> int:
        """Return how many datagrams the kernel had no room for in front of the listeners."""
        lost = 0
        for family in ("udp", "udp6"):
            for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
                columns = line.split()
                if int(columns[1].rpartition(":")[2], 16) in (self.port, self.tls_port):
                    lost += int(columns[-1])
        return lost

    def log_lines(self) -> Iterator[Mapping[str, Any] | str]:
        """Yield the lines of its log, those that are not JSON as text."""
        with self.log.open(errors="replace") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    yield line.rstrip()


def _samples(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is not None:
            labels = match["labels"]
            yield match["name"] + (f"{{{labels}}}" if labels else ""), float(match["value"])


def total(found: Mapping[str, float], name: str) -> float:
    """Return the sum of a counter over all its labels."""
    return sum(value for key, value in found.items() if key.partition("{")[0] == f"{name}_total")


def free_ports(number: int) -> list[int]:
    """Return ports that are free on every host, for UDP and TCP."""
    for _ in range(100):
        with ExitStack() as stack:
            first = LISTENER_PORTS[0] + secrets.randbelow(LISTENER_PORTS[1] - LISTENER_PORTS[0])
            ports = [first + more for more in range(number)]
            try:
                for host in HOSTS:
                    family = socket.AF_INET6 if ":" in host else socket.AF_INET
                    for port in ports:
                        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                            stack.enter_context(socket.socket(family, kind)).bind((host, port))
            except (OSError, OverflowError):
                continue
            return ports
    raise RuntimeError("no free ports")
