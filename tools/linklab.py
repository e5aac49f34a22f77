"""Links behind kernel NATs, and what may befall them: paths that are cut, programs that are killed.

    python tools/linklab.py transfer [--gib 1] [--delay 0.02] [--kind port-restricted-cone]
    python tools/linklab.py throughput [--mib 256] [--rounds 3] [--delay 0.04] [--mbit 400]

``transfer`` sends that much from one side to the other: it begins on the relay, for the way between
the two public addresses is barred; the bar is lifted, and it goes on directly; the NAT of the one
that sends forgets all that it knows; the direct way is cut for some seconds; and it is mended.  It
prints what happened when, by which way how much came, and the longest stall after each change.

``throughput`` measures the direct way beside TLS over a plain TCP socket (asyncio's streams) on the
same network, each several times, by turns.

``tests/lab/test_link_transfer.py`` and ``tests/lab/test_link_kills.py`` use what is here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nattype.lab import Lab
from nattype.lab.kernel.lab import Machine
from nattype.lab.kernel.spec import AnyKind, site

ROOT: Final = Path(__file__).parents[1]
END: Final = ROOT / "tests" / "lab" / "link_end.py"
MIB: Final = 1 << 20
SHARE: Final = 0.8
"""What a link is to have of the throughput of TLS over plain TCP, at least."""
PATIENCE: Final = 90.0
"""Seconds that are waited for what has no bound of its own, on a machine that is busy."""
STALL: Final = 3.0
"""Seconds that nothing may be read, at most, whatever happens to the direct way."""


class LinkLabError(Exception):
    """Something did not come to pass: what, and what was told instead."""


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a program in the laboratory, with a cache of its own."""
    return os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home)}


# Programs. ----------------------------------------------------------------------------------------


class Program:
    """A program on a machine of a laboratory, and the lines of JSON that it writes."""

    def __init__(
        self, machine: Machine, args: Sequence[str], home: Path, *, events: str = "stdout"
    ) -> None:
        self.machine = machine
        self.args = list(args)
        self.told: list[dict[str, Any]] = []
        """What it has told, in order."""
        self.said: list[str] = []
        """Lines that are no JSON."""
        self.ended_at = 0.0
        self._news = threading.Condition()
        self.process = machine.popen(
            args,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(home),
            cwd=home,
        )
        self._threads = [
            threading.Thread(target=self._read, args=(name, name == events), daemon=True)
            for name in ("stdout", "stderr")
        ]
        self.output = bytearray()
        """What came on standard output, where that has no events."""
        self._ended = threading.Thread(target=self._watch, daemon=True)
        for thread in (*self._threads, self._ended):
            thread.start()

    def _read(self, name: str, has_events: bool) -> None:
        file = getattr(self.process, name)
        if not has_events and name == "stdout":
            while data := os.read(file.fileno(), 1 << 18):
                with self._news:
                    self.output += data
                    self._news.notify_all()
            return
        for line in file:
            text = line.decode(errors="replace").rstrip("\n")
            with self._news:
                try:
                    self.told.append({"seen": time.monotonic(), **json.loads(text)})
                except (ValueError, TypeError):
                    self.said.append(text)
                self._news.notify_all()

    def _watch(self) -> None:
        self.process.wait()
        for thread in self._threads:
            thread.join()
        with self._news:
            self.ended_at = time.monotonic()
            self._news.notify_all()

    @property
    def pid(self) -> int:
        """Its number inside the laboratory."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it runs, and has not told everything yet."""
        return not self.ended_at

    def do(self, what: str, **arguments: Any) -> None:
        """Give it a command."""
        self.write(json.dumps({"do": what, **arguments}).encode() + b"\n")

    def write(self, data: bytes) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) :]

    def end_input(self) -> None:
        """Close its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def until(self, what: str, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait for something that it tells or does.  Raises :class:`LinkLabError`."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise LinkLabError(f"{what}: not within {seconds:g} s; {self.story()}")
                if self.ended_at:
                    raise LinkLabError(f"{what}: it ended instead; {self.story()}")
                self._news.wait(left)

    def expect(self, seconds: float = PATIENCE, since: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait until it tells something with these fields, after its ``since``-th line."""

        def found() -> dict[str, Any] | None:
            for each in self.told[since:]:
                if all(each.get(name) == value for name, value in fields.items()):
                    return each
            return None

        self.until(f"{fields}", lambda: found() is not None, seconds)
        told = found()
        assert told is not None
        return told

    def all(self, **fields: Any) -> list[dict[str, Any]]:
        """Return all that it has told with these fields."""
        with self._news:
            return [
                each
                for each in self.told
                if all(each.get(name) == value for name, value in fields.items())
            ]

    def idle(self, seconds: float) -> None:
        """Let time pass while it runs.  Raises :class:`LinkLabError` when it ends."""
        with self._news:
            if self._news.wait_for(lambda: bool(self.ended_at), seconds):
                raise LinkLabError(f"it has ended; {self.story()}")

    def end(self, seconds: float = PATIENCE) -> int:
        """Wait for its end and return its status.  Raises :class:`LinkLabError`."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not self.ended_at:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise LinkLabError(f"it has not ended within {seconds:g} s; {self.story()}")
                self._news.wait(left)
        return self.process.wait(1)

    def kill(self) -> None:
        """End it at once (SIGKILL), and wait until it is gone."""
        self.process.kill()
        self._ended.join()

    def descriptors(self) -> list[str]:
        """Return what its file descriptors are, by kind: sockets, pipes, files."""
        done = self.machine.run(
            ["ls", "-l", f"/proc/{self.pid}/fd"], capture_output=True, text=True, check=True
        )
        kinds = re.findall(r"-> (\S+)", done.stdout)
        return sorted(kind.partition(":")[0] for kind in kinds)

    def story(self) -> str:
        """Return what it has said lately, for a failure."""
        lines = [json.dumps(each) for each in self.told if each.get("told") != "progress"]
        return "\n  ".join([" ".join(self.args[-4:]), *lines[-14:], *self.said[-20:]])

    def close(self) -> None:
        """End it if it still runs."""
        if self.running:
            self.kill()
        for name in ("stdin", "stdout", "stderr"):
            with suppress(OSError):
                getattr(self.process, name).close()


# The network. -------------------------------------------------------------------------------------


class Net:
    """A laboratory with sites ``a`` and ``b``, and the programs that run in it.

    ``hosts``: how many machines each side has: ``a0``, ``a1`` and so on.
    """

    def __init__(self, lab: Lab, home: Path) -> None:
        self.lab = lab
        self.home = home
        self.host = lab.server_addresses()[0]
        self.programs: list[Program] = []
        self._homes = 0

    def fresh(self) -> Path:
        """Make a directory for one program alone: nothing is remembered from one to the next."""
        self._homes += 1
        home = self.home / f"home{self._homes}"
        home.mkdir()
        return home

    def start(
        self, machine: str, args: Sequence[str], *, home: Path | None = None, events: str = "stdout"
    ) -> Program:
        """Start a program."""
        program = Program(self.lab[machine], args, home or self.fresh(), events=events)
        self.programs.append(program)
        return program

    def end(self, machine: str) -> Program:
        """Start one end of a link; it is ready on return."""
        end = self.start(machine, [sys.executable, "-P", str(END)])
        end.expect(told="ready")
        return end

    def punch(self, machine: str, *args: str, home: Path | None = None) -> Program:
        """Start ``punch``, which tells its events."""
        command = [sys.executable, "-P", "-m", "ice.punch.cli", *args, "--json"]
        return self.start(machine, command, home=home, events="stderr")

    def public(self, side: str) -> str:
        """Return a site's public address."""
        boxes = [m for m in self.lab.machines if m.startswith(f"{side}-box")]
        return self.lab[max(boxes) if boxes else f"{side}0"].ipv4

    # What may befall it. --------------------------------------------------------------------------

    def bar(self, side: str = "a", other: str = "b") -> None:
        """Lose whatever goes from one site's public address to the other's, or back."""
        one, two = self.public(side), self.public(other)
        self._nft(
            "table ip linklab\ndelete table ip linklab\ntable ip linklab {\n"
            " chain forward { type filter hook forward priority -10; policy accept;\n"
            f"  ip saddr {one} ip daddr {two} drop\n  ip saddr {two} ip daddr {one} drop\n"
            " }\n}\n"
        )

    def lift(self) -> None:
        """Let it through again."""
        self._nft("table ip linklab\ndelete table ip linklab\n")

    def only_server(self, host: str) -> None:
        """Let a host send to the public machine alone."""
        rule = f"ip daddr != {self.host} drop"
        self._nft(
            "table ip linklab {\n chain out { type filter hook output priority 0; policy accept;\n"
            f"  {rule}\n }}\n}}\n",
            host,
        )

    def _nft(self, script: str, machine: str = "internet") -> None:
        self.lab[machine].run(["nft", "-f", "-"], given=script, text=True, check=True)

    def strict(self, side: str) -> None:
        """Let a site's NAT take no TCP connection for known whose beginning it has not seen.

        Such a NAT drops what belongs to connections that it has forgotten.
        """
        self.lab.box(site=side).run(
            ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0"], check=True
        )

    def flush(self, side: str) -> None:
        """Let a site's NAT forget every session."""
        self.lab.box(site=side).flush()

    def limit(self, mbit: float) -> None:
        """Let no more go out to either site than that, megabits a second."""
        shape = f"root tbf rate {mbit}mbit burst 128kb latency 60ms"
        for port in ("to-a", "to-b"):
            line = f"tc qdisc replace dev {port} {shape}"
            self.lab["internet"].run(line.split(), check=True)

    def move(self, host: str, address: str) -> None:
        """Give a host another address in its network, in place of the one that it has."""
        machine = self.lab[host]
        gateway = f"{machine.ipv4.rpartition('.')[0]}.1"
        for line in (
            f"ip addr del {machine.ipv4}/24 dev eth0",
            f"ip addr add {address}/24 dev eth0",
            f"ip route replace default via {gateway}",
        ):
            machine.run(line.split(), check=True)


@contextmanager
def network(
    a: AnyKind, b: AnyKind, *, hosts: int = 1, ipv6: str = "off", **options: Any
) -> Iterator[Net]:
    """Build a network; further ``options`` are those of a site: ``delay``, ``udp_timeout``, ..."""
    sites = [
        site(kind, name=name, hosts=[f"{name}{n}" for n in range(hosts)], **options)
        for name, kind in (("a", a), ("b", b))
    ]
    with (
        tempfile.TemporaryDirectory(prefix="linklab-") as home,
        Lab(*sites, server_command=(), ipv6=ipv6) as lab,
    ):
        net = Net(lab, Path(home))
        try:
            yield net
        finally:
            for program in net.programs:
                program.close()


# The servers. -------------------------------------------------------------------------------------


class Server:
    """A daemon on the public machine, which may be killed and started again."""

    def __init__(self, net: Net, args: Sequence[str], ports: Sequence[int]) -> None:
        self.net = net
        self.args = [sys.executable, "-P", "-m", *args]
        self.ports = list(ports)
        self.program: Program | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self.program = program = self.net.start("server", self.args)
        deadline = time.monotonic() + PATIENCE
        for port in self.ports:
            while not self._listens(port):
                if time.monotonic() > deadline or not program.running:
                    raise LinkLabError(f"port {port} does not listen: {program.story()}")
                time.sleep(0.05)

    def _listens(self, port: int) -> bool:
        with self.net.lab.server.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            return probe.connect_ex((self.net.host, port)) == 0

    def kill(self) -> None:
        """End it at once."""
        assert self.program is not None
        self.program.kill()

    def figures(self, port: int) -> dict[str, float]:
        """Return what it counts (Prometheus' text form), by name with labels."""
        with self.net.lab.server.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            sock.connect((self.net.host, port))
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        found = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            with suppress(ValueError):
                found[name] = float(value)
        return found


class Relay(Server):
    """turnd, with a rendezvous in the same process unless ``apart``.

    ``lifetime``: the longest that an allocation has, seconds.  ``rate``: octets a second that a
    client may have relayed.
    """

    def __init__(
        self,
        net: Net,
        number: int = 0,
        *,
        apart: bool = False,
        secret: str = "",
        lifetime: int = 600,
        rate: int = 0,
    ) -> None:
        host = net.host
        config = net.fresh() / "turnd.toml"
        config.write_text(f"[relay]\nmax_lifetime = {lifetime}\ndefault_lifetime = {lifetime}\n")
        self.port, self.signalling, self.metrics = 3478 + 10 * number, 8080 + number, 9640 + number
        self.url = f"ws://{host}:{self.signalling}"
        args = [
            *("turn.daemon.cli", "--config", str(config), "--admin-socket", ""),
            *("--relay-address", host),
            *("--listen", f"udp://{host}:{self.port}", "--listen", f"tcp://{host}:{self.port}"),
            *("--metrics", f"{host}:{self.metrics}", "--log-format", "json"),
            *("--relay-ports", f"{49152 + 1000 * number}-{50151 + 1000 * number}"),
        ]
        ports = [self.port, self.metrics]
        if secret:
            args += ["--secret", secret]
        if rate:
            for whose in ("user", "client"):
                args += [f"--max-octets-per-second-per-{whose}", str(rate)]
        if not apart:
            args += ["--with-rendezvous", "--rendezvous-listen", self.url]
            ports.append(self.signalling)
        super().__init__(net, args, ports)

    def allocations(self) -> int:
        """Return how many allocations live."""
        return sum(
            int(value)
            for name, value in self.figures(self.metrics).items()
            if re.fullmatch(r"turnd_allocations(\{.*\})?", name)
        )

    def held(self) -> int:
        """Return how many descriptors it has, but for sockets that wait for an allocation."""
        assert self.program is not None
        return len(self.program.descriptors()) - int(self.figures(self.metrics)["turnd_spares"])


class Rendezvous(Server):
    """rendezvousd by itself, which tells of the relay."""

    def __init__(self, net: Net, relay: Relay, secret: str, number: int = 0) -> None:
        host = net.host
        port = 8180 + number
        self.url = f"ws://{host}:{port}"
        turn = f"turn:{host}:{relay.port}"
        args = [
            *("ice.rendezvous.cli", "--listen", self.url, "--turn-secret", secret),
            *("--turn-url", turn, "--stun", f"stun:{host}:{relay.port}"),
        ]
        super().__init__(net, args, [port])


# Links. -------------------------------------------------------------------------------------------


class Pair:
    """Two ends that are connected."""

    def __init__(self, a: Program, b: Program) -> None:
        self.a, self.b = a, b

    def path(self, end: Program) -> str:
        """Return the way on which an end sends now: ``relay``, ``direct tcp``, ``direct udp``."""
        changes = end.all(event="PathChanged")
        if not changes:
            return "none"
        last = changes[-1]
        return "relay" if last["kind"] == "relay" else f"direct {last['transport']}"


def connect(
    net: Net, url: str, number: int = 0, code: str = "lab-secretword", **config: Any
) -> Pair:
    """Connect the two hosts of this number."""
    a, b = net.end(f"a{number}"), net.end(f"b{number}")
    for end in (a, b):
        end.do("connect", url=url, code=code, config=config)
    for end in (a, b):
        end.expect(told="connected")
    return Pair(a, b)


# A transfer, and what befalls it. -----------------------------------------------------------------


@dataclass
class Change:
    """Something that was done to the network, and what came of it."""

    at: float
    what: str
    octets: int
    """That had been read by then."""
    moved: float | None = None
    """Seconds until the sender was on the way that was waited for."""
    stall: float = 0.0
    """The longest time between two reads from then to the next change, in seconds."""


@dataclass
class Story:
    """A transfer: what was done meanwhile, and what the one who reads has seen."""

    octets: int
    began: float = 0.0
    ended: float = 0.0
    sent: str = ""
    received: str = ""
    changes: list[Change] = field(default_factory=list)
    paths: list[tuple[float, str]] = field(default_factory=list)
    """When the sender took which way."""
    progress: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stall(self) -> float:
        """The longest time between two reads that gave octets, in seconds."""
        return max(float(each["gap"]) for each in self.progress)

    @property
    def ways(self) -> list[str]:
        """The ways that the sender took, ``relay`` or ``direct``, each change once."""
        kinds = [path.partition(" ")[0] for _, path in self.paths]
        return [kind for kind, _ in itertools.groupby(kinds)]

    def settle(self) -> None:
        """See which stall belongs to which change."""
        for change, later in itertools.zip_longest(self.changes, self.changes[1:]):
            until = later.at if later else float("inf")
            gaps = [each["gap"] for each in self.progress if change.at < each["at"] <= until]
            change.stall = max(gaps, default=0.0)

    def lines(self) -> Iterator[str]:
        """Tell it, for a person."""
        yield f"{self.octets / MIB:g} MiB in {self.ended - self.began:.1f} s"
        happened: list[tuple[float, str]] = [
            *((each.at, f"-- {each.what} --") for each in self.changes),
            *((at, f"sends on {path}") for at, path in self.paths),
        ]
        step = max(0.25, (self.ended - self.began) / 60)
        before: dict[str, Any] = {"at": self.began, "octets": 0, "by": {}}
        for each in self.progress:
            if each["at"] - before["at"] < step and each is not self.progress[-1]:
                continue
            seconds = max(each["at"] - before["at"], 1e-3)
            rates = [
                f"{way} {(count - before['by'].get(way, 0)) / seconds / 1e6:.1f}"
                for way, count in each["by"].items()
                if count != before["by"].get(way, 0)
            ]
            gap = max(one["gap"] for one in self.progress if before["at"] < one["at"] <= each["at"])
            text = f"{each['octets'] / MIB:7.1f} MiB  MB/s: {', '.join(rates) or 'none':30}"
            happened.append((each["at"], f"{text}  longest pause {gap * 1e3:.0f} ms"))
            before = each
        for at, text in sorted(happened):
            yield f"{at - self.began:7.2f} s  {text}"
        for change in self.changes:
            moved = "" if change.moved is None else f", moved after {change.moved:.2f} s"
            yield f"{change.what}: longest stall {change.stall:.2f} s{moved}"
        equal = "equal" if self.sent == self.received else "DIFFERENT"
        yield f"SHA-256 {equal}: {self.received}; longest stall {self.stall:.2f} s"


def transfer(
    net: Net, url: str, octets: int, *, cut: float = 4.0, patience: float = PATIENCE
) -> Story:
    """Send octets from ``a0`` to ``b0`` while the network changes; see the module's text.

    ``cut``: for how many seconds the direct way is barred.  ``patience``: for how many a change of
    ways is waited for.
    """
    story = Story(octets)
    net.bar()
    net.strict("a")
    pair = connect(net, url)
    a, b = pair.a, pair.b
    b.do("receive")
    a.do("send", octets=octets, seed=octets)
    story.began = time.monotonic()

    def read() -> int:
        return int(next((e["octets"] for e in reversed(b.told) if "octets" in e), 0))

    def has_read(share: float) -> None:
        b.until(f"{share:.0%} of it", lambda: read() >= share * octets, 600)

    def change(what: str, action: Callable[[], None], kind: str = "") -> None:
        told = len(a.told)
        done = Change(time.monotonic(), what, read())
        story.changes.append(done)
        action()
        if kind:
            moved = a.expect(patience, since=told, event="PathChanged", kind=kind)
            done.moved = moved["at"] - done.at

    has_read(1 / 16)
    change("the direct way is there", net.lift, "direct")
    a.expect(patience, event="PathChanged", transport="tcp", kind="direct")
    has_read(1 / 4)
    change("the NAT of a has forgotten everything", lambda: net.flush("a"), "direct")
    a.until("tcp", lambda: pair.path(a) == "direct tcp", patience)
    has_read(7 / 16)
    change("the direct way is cut", net.bar, "relay")
    time.sleep(max(0.0, story.changes[-1].at + cut - time.monotonic()))
    change("the direct way is mended", net.lift, "direct")
    received = b.expect(600, told="received")
    story.sent = a.expect(told="sent")["sha256"]
    story.received = received["sha256"]
    story.ended = received["at"]
    story.progress = [*b.all(told="progress"), received]
    story.paths = [
        (each["at"], "relay" if each["kind"] == "relay" else f"direct {each['transport']}")
        for each in a.all(event="PathChanged")
    ]
    story.settle()
    for end in (a, b):
        end.do("close")
    for end in (a, b):
        end.expect(told="closed")
    return story


# How fast. ----------------------------------------------------------------------------------------


@dataclass
class Speeds:
    """What was measured by turns, octets a second."""

    link: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The link's median as a share of the plain socket's."""
        return statistics.median(self.link) / statistics.median(self.plain)

    def lines(self) -> Iterator[str]:
        """Tell them, for a person."""
        for name, rates in (("link", self.link), ("TLS over TCP", self.plain)):
            each = ", ".join(f"{rate / 1e6:.1f}" for rate in rates)
            yield f"{name:12} {statistics.median(rates) / 1e6:7.1f} MB/s  ({each})"
        yield f"ratio        {self.ratio:7.2f}"


def measure(net: Net, url: str, octets: int, rounds: int) -> Speeds:
    """Measure a link from ``a0`` to ``b0``, whose host is public, beside TLS over plain TCP."""
    pair = connect(net, url, udp=False)
    a, b = pair.a, pair.b
    a.until("direct", lambda: pair.path(a) == "direct tcp")
    b.until("direct", lambda: pair.path(b) == "direct tcp")
    host = net.lab["b0"].ipv4
    b.do("serve", host=host, port=4433)
    b.expect(told="serving")
    a.do("dial", host=host, port=4433)
    a.expect(told="dialled")
    speeds = Speeds()
    for each in range(-1, rounds):
        for over, rates in (("link", speeds.link), ("plain", speeds.plain)):
            told = len(b.told)
            size = octets if each >= 0 else octets // 8  # the first one warms both up
            b.do("take", octets=size, over=over)
            a.do("pour", octets=size, over=over)
            rate = b.expect(600, since=told, told="took")["rate"]
            if each >= 0:
                rates.append(rate)
    return speeds


# Commands. ----------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("transfer", "throughput"):
        command = commands.add_parser(name)
        command.add_argument("--delay", type=float, default=0.0, help="one way, each side, seconds")
        command.add_argument("--mbit", type=float, default=0.0, help="what a site can receive")
        if name == "transfer":
            command.add_argument("--gib", type=float, default=1.0)
            command.add_argument("--kind", default="port-restricted-cone", help="of either NAT")
        else:
            command.add_argument("--mib", type=int, default=256)
            command.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()
    print(f"{os.cpu_count()} processors; load before: {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}")
    is_transfer = options.command == "transfer"
    kinds = (options.kind, options.kind) if is_transfer else ("port-restricted-cone", "open")
    with network(*kinds, delay=options.delay) as net:
        if options.mbit:
            net.limit(options.mbit)
        relay = Relay(net)
        told: Story | Speeds
        if is_transfer:
            told = transfer(net, relay.url, int(options.gib * 1024 * MIB))
            well = told.sent == told.received and told.stall < STALL
        else:
            told = measure(net, relay.url, options.mib * MIB, options.rounds)
            well = told.ratio >= SHARE
    print(*told.lines(), sep="\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
