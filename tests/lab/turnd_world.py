"""turnd between a client and a peer that are next to it: three machines, two cables, nothing else.

What turnd forwards in the kernel is to be seen frame by frame, and frames that no socket sends are
to reach it; so the ends are on its own cables, without a router between them.  All of it belongs to
the process that makes it, and goes with it: the network namespaces have no names.

::

    client  198.18.0.2 --------- 198.18.0.1  server  198.18.1.1 --------- 198.18.1.2  peer
        2001:db8:0:0::2           2001:db8:0:0::1   2001:db8:0:1::1      2001:db8:0:1::2
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from nattype.lab.kernel.build import offloads_off
from nattype.lab.kernel.namespaces import CLONE_NEWNET, inside, is_privileged, setns, unshare
from stun.discovery import Target, Transport
from stun.sansio import Address
from tests.lab.turn_caller import PATIENCE, USER, Caller, Place
from turn.aio import CALM
from turn.daemon.admin import ask
from turn.dataplane.kernel.layouts import WORDS, Count
from turn.dataplane.kernel.support import why_not

ROOT = Path(__file__).parents[2]
PORT, METRICS_PORT = 3478, 9641
SO_RCVBUFFORCE = 33
ROOM = 8 << 20
"""Octets of what nobody has read yet, with what the kernel needs for each packet."""
PLANES = ("sockets", "kernel")
BY_SOCKETS = "forwarded to peers", "forwarded to clients"
IN_KERNEL = tuple(f"{words} in the kernel" for words in BY_SOCKETS)
_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")


def require(plane: str) -> str:
    """Return the plane's name; where it cannot be had, the test is skipped."""
    if plane == "kernel" and (why := why_not()) is not None:
        pytest.skip(f"no data plane in the kernel: {why}")
    return plane


class Host:
    """A machine: a network namespace, and what is in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            unshare(CLONE_NEWNET)
            self.fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            setns(before)
            os.close(before)
        self.ipv4 = self.ipv6 = ""
        """Its own addresses, of the server those that clients see."""
        self.ip("link set lo up")

    @property
    def path(self) -> str:
        """The namespace, in the words of ``ip``."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, protocol: int = 0
    ) -> socket.socket:
        """Return a new socket of this machine."""
        with inside(self.fd):
            return socket.socket(family, kind, protocol)

    def popen(self, args: list[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program here."""
        with inside(self.fd):
            return subprocess.Popen(args, **options)

    def run(self, *args: str, given: str | None = None, check: bool = True) -> str:
        """Run a program here; return what it wrote, errors too."""
        with inside(self.fd):
            done = subprocess.run(
                args, input=given, check=False, text=True, timeout=60,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(args)}: {done.stdout}"
        return done.stdout

    def ip(self, *lines: str) -> None:
        """Run lines of ``ip``."""
        self.run("ip", "-batch", "-", given="".join(f"{line}\n" for line in lines))

    def index(self, name: str) -> int:
        """Return the index of an interface."""
        with inside(self.fd):
            return socket.if_nametoindex(name)

    def bind(self, port: int = 0, *, ipv6: bool = False) -> socket.socket:
        """Return a bound UDP socket, with patience."""
        sock = self.socket(socket.AF_INET6 if ipv6 else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        sock.settimeout(PATIENCE)
        sock.bind((self.ipv6 if ipv6 else self.ipv4, port))
        return sock


class Moved(Counter[str]):
    """What was forwarded by whom, and what passed up and why, in turnd's words."""

    def was(self, plane: str, to_peers: int, to_clients: int) -> bool:
        """Whether so many packets were forwarded, all of them by this plane.

        The kernel's leaves one in 65,536 alone, whose checksum looks as if it were to be computed
        still; those are counted.
        """
        sockets = [self[words] for words in BY_SOCKETS]
        kernel = [self[words] for words in IN_KERNEL]
        both = [sum(pair) for pair in zip(sockets, kernel, strict=True)]
        if plane == "sockets":
            return both == [to_peers, to_clients] and not any(kernel)
        return both == [to_peers, to_clients] and sum(sockets) == self[WORDS[Count.UNFINISHED]]

    @property
    def in_kernel(self) -> int:
        """How many packets the kernel forwarded."""
        return sum(self[words] for words in IN_KERNEL)


def scrape(machine: Place, port: int) -> dict[str, float]:
    """Return what the turnd of a machine shows at its port for metrics, by name and labels."""
    with machine.socket(socket.AF_INET, socket.SOCK_STREAM) as line:
        line.settimeout(PATIENCE)
        line.connect(("127.0.0.1", port))
        line.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    found = {}
    for sample in answer.partition(b"\r\n\r\n")[2].decode().splitlines():
        if match := _SAMPLE.fullmatch(sample):
            name, labels, value = match.group("name", "labels", "value")
            found[f"{name}{{{labels}}}" if labels else name] = float(value)
    return found


def moved(metrics: dict[str, float]) -> Moved:
    """Return what was forwarded by whom, of a scrape."""
    start, found = 'turnd_transport_events_total{event="', Moved()
    for key, value in metrics.items():
        if key.startswith(start):
            found[key.removeprefix(start).removesuffix('"}')] = int(value)
    return found


class Turnd:
    """A turnd on the server, looked at from outside."""

    def __init__(
        self, host: Host, process: subprocess.Popen[bytes], place: Path, port: int
    ) -> None:
        self.host = host
        self.process = process
        self.admin_socket = place / "turnd.sock"
        self.log = place / "log"
        self._metrics_port = port

    def said(self) -> str:
        """Return its log."""
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        """Wait until its log has this."""
        end = time.monotonic() + 30
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, f"{text!r} is not in {self.said()}"
            time.sleep(0.02)

    def ask(self, command: str, **arguments: Any) -> Any:
        """Give a command at the admin socket."""
        return ask(self.admin_socket, command, **arguments)

    def settle(self) -> None:
        """Let it take what the kernel has told it already: links, addresses and routes."""
        time.sleep(2 * CALM)  # it looks at such things no more often than that
        self.ask("status")

    def session(self) -> Any:
        """Return the only allocation, as the operator sees it."""
        (session,) = self.ask("sessions")
        return session

    def metrics(self) -> dict[str, float]:
        """Return what a scrape shows, by name and labels as Prometheus writes them."""
        return scrape(self.host, self._metrics_port)

    def moved(self) -> Moved:
        """Return what was forwarded so far, by whom, and what the kernel passed up and why."""
        return moved(self.metrics())

    @contextmanager
    def watched(self) -> Iterator[Moved]:
        """Yield what is filled, when the block ends, with what was forwarded in it."""
        before, found = self.moved(), Moved()
        yield found
        after = self.moved()
        found.update({key: after[key] - before[key] for key in after})

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold the process: whatever is forwarded meanwhile, it is not turnd that does it."""
        self.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


class World:
    """The three machines; a context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._places, self._ports = itertools.count(), itertools.count(METRICS_PORT)
        self.mac: dict[str, str] = {}
        """Of both ends of each cable, by the name of the machine at the far end of it."""

    def __enter__(self) -> World:
        if not is_privileged():
            pytest.skip("only root gives turnd a network of its own in which it may load programs")
        self.server = self._host("server")
        self.client = self.add("client")
        self.peer = self.add("peer")
        self.server.ipv4, self.server.ipv6 = "198.18.0.1", "2001:db8::1"
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _host(self, name: str) -> Host:
        host = Host(name)
        self._stack.callback(host.close)
        return host

    def add(self, name: str) -> Host:
        """Plug in a further machine: its own end is ``wire``, the server's has its name."""
        host, number = self._host(name), next(self._places)
        self.plug(host, number)
        host.ipv4, host.ipv6 = f"198.18.{number}.2", str(IPv6Address(f"2001:db8:0:{number}::2"))
        host.ip(f"route add 198.18.0.0/15 via 198.18.{number}.1")
        host.ip(f"route add 2001:db8::/48 via 2001:db8:0:{number}::1")
        return host

    def plug(self, host: Host, number: int, *, near: str = "", far: str = "wire") -> None:
        """Plug in a cable to a machine, at the ``number``-th place of the server.

        ``near`` and ``far`` are the names of its ends, by default the machine's and ``wire``.
        """
        near, index = near or host.name, 10 * (number + 1)
        own, others = f"02:00:00:00:{number:02x}:01", f"02:00:00:00:{number:02x}:02"
        # The kernel reports the carrier at once only if the numbers of the two ends differ.
        self.server.ip(
            f"link add {near} index {index} address {own} type veth "
            f"peer name {far} index {index + 1} address {others} netns {host.path}"
        )
        for machine, interface, last in ((self.server, near, 1), (host, far, 2)):
            with inside(machine.fd):
                # A checksum that is left to a network card is never computed on a veth.
                offloads_off(interface)
            machine.ip(
                f"address add 198.18.{number}.{last}/24 dev {interface}",
                f"address add 2001:db8:0:{number}::{last}/64 dev {interface} nodad",
                f"link set {interface} up",
            )
        self.mac[f"server-{near}"], self.mac[near] = own, others

    def address(self, host: Host) -> tuple[str, str]:
        """Return the server's addresses on the cable to a machine."""
        return host.ipv4[:-1] + "1", str(IPv6Address(host.ipv6[:-1] + "1"))

    @contextmanager
    def turnd(
        self, place: Path, plane: str, *arguments: str, port: int = PORT, host: str = ""
    ) -> Iterator[Turnd]:
        """Run turnd on a data plane; it must end as it is told, unless it is gone by then.

        Without a ``plane`` the configuration says which.
        """
        place.mkdir(exist_ok=True)
        listen = [f"udp://{host or self.server.ipv4}:{port}"]
        if not host:
            listen += [f"tcp://{self.server.ipv4}:{port}", f"udp://[{self.server.ipv6}]:{port}"]
        metrics = next(self._ports)
        if "--relay-address" not in arguments:
            for own in self.address(self.peer):
                arguments = (*arguments, "--relay-address", own)
        line = [
            *(sys.executable, "-P", "-m", "turn.daemon.cli"),
            *(("--dataplane", plane) if plane else ()),
            *(argument for url in listen for argument in ("--listen", url)),
            *("--allow-peer", "198.18.0.0/15", "--allow-peer", "2001:db8::/32"),
            *("--realm", "example.org", "--user", f"{USER.username}:sesame"),
            *("--admin-socket", str(place / "turnd.sock"), "--log-format", "json"),
            *("--metrics", f"127.0.0.1:{metrics}", *arguments),
        ]
        with (place / "log").open("wb") as log:
            process = self.server.popen(
                line, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )
        turnd = Turnd(self.server, process, place, metrics)
        try:
            turnd.wait_for('"message": "serving"')
            yield turnd
        finally:
            gone = process.poll() is not None
            process.terminate()
            status = process.wait(20)
        assert gone or status == 0, turnd.said()
        assert "Traceback" not in turnd.said(), turnd.said()

    def caller(self, *, ipv6: bool = False, port: int = PORT, **options: Any) -> Caller:
        """Return a client with an allocation, over UDP."""
        transport = options.pop("transport", Transport.UDP)
        host = options.pop("host", self.server.ipv6 if ipv6 else self.server.ipv4)
        return Caller(self.client, Target(Address(host, port), transport), **options)
