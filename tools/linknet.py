"""A network of two sites behind kernel NATs, and the programs that run in it and may be killed.

``tools/linklab.py`` and the laboratory tests of links use it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from nattype.lab import Lab
from nattype.lab.kernel.lab import Machine
from nattype.lab.kernel.spec import AnyKind, site

ROOT: Final = Path(__file__).parents[1]
END: Final = ROOT / "tests" / "lab" / "link_end.py"
PATIENCE: Final = 90.0
"""Seconds that are waited for what has no bound of its own, on a machine that is busy."""


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
