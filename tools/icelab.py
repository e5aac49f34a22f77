"""Two of natkit's agents behind every pair of kernel NATs, many times over.

    python tools/icelab.py [--runs 20] [--jobs 2] [--kind NAME]...

Every pair has to connect: directly where plain ICE can (the mapping of one side is let through by
the filter of the other), by the relay where it cannot.  The exit code is 1 when one did not.

``tests/lab/test_ice_grid.py`` runs each pair once with what is here.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track
from rich.table import Table

from nattype.lab import Lab
from nattype.lab.kernel.spec import Site, site
from tools.icepeers import Connected, PeersFailed, Relay, Setup, meeting

ROOT: Final = Path(__file__).parents[1]
NATKIT: Final = [sys.executable, str(ROOT / "tests" / "interop" / "peers" / "ice_natkit.py")]
KINDS: Final = (
    "open",
    "full-cone",
    "restricted-cone",
    "port-restricted-cone",
    "symmetric-sequential",
    "symmetric",
)
TURN_PORT: Final = 3478
USER, PASSWORD = "alice", "sesame"
COTURN_PORT: Final = 3500
_BY_PORT: Final = {"port-restricted-cone", "symmetric-sequential", "symmetric"}
"""Kinds that let a packet in only from an endpoint that they have sent one to."""
_SYMMETRIC: Final = {"symmetric-sequential", "symmetric"}
"""Kinds whose next mapping no server can tell."""


def is_direct(a: str, b: str) -> bool:
    """Whether checks alone open the way between two kinds of NAT.

    They do unless one side's endpoint is not known before its first packet, and the other side
    lets nothing in from an endpoint that it does not know.
    """
    return not ((a in _SYMMETRIC and b in _BY_PORT) or (b in _SYMMETRIC and a in _BY_PORT))


@contextmanager
def turnd(lab: Lab, folder: Path, *options: str) -> Iterator[Relay]:
    """Run turnd on the laboratory's server, for STUN and TURN over UDP and TCP."""
    host = lab.server_addresses()[0]
    log = folder / "turnd.log"
    command = [
        *(sys.executable, "-P", "-m", "turn.daemon.cli", "--realm", "example.org"),
        *("--listen", f"udp://{host}:{TURN_PORT}", "--listen", f"tcp://{host}:{TURN_PORT}"),
        *("--relay-address", host, "--user", f"{USER}:{PASSWORD}", "--admin-socket", ""),
        *options,
    ]
    with log.open("wb") as out:
        process = lab.server.popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    with process:
        wait_for(lab, (host, TURN_PORT), log)
        yield Relay(f"turn:{host}:{TURN_PORT}?transport=udp", USER, PASSWORD)
        process.terminate()
        status = process.wait(20)
    said = log.read_text()
    if status or "Traceback" in said:
        raise PeersFailed(f"turnd ended with {status}: {said}")


@contextmanager
def coturn(lab: Lab, folder: Path, program: str) -> Iterator[Relay]:
    """Run coturn there, beside turnd, for TURN over UDP and TCP."""
    host, log = lab.server_addresses()[0], folder / "coturn.log"
    options = (
        f"-n --no-cli --no-tls --no-dtls --log-file stdout --simple-log -L {host} -E {host}"
        f" -p {COTURN_PORT} -r example.org --lt-cred-mech -u {USER}:{PASSWORD}"
        f" --pidfile {folder / 'pid'} --userdb {folder / 'db'}"
        # turnd gives out ports, too.
        " --min-port 40000 --max-port 44999"
    )
    with (
        log.open("wb") as out,
        lab.server.popen([program, *options.split()], stdout=out, stderr=out) as process,
    ):
        wait_for(lab, (host, COTURN_PORT), log)
        yield Relay(f"turn:{host}:{COTURN_PORT}?transport=udp", USER, PASSWORD)
        process.terminate()
        process.wait(10)


def wait_for(lab: Lab, address: tuple[str, int], log: Path) -> None:
    """Wait until something on the laboratory's server takes TCP connections."""
    end = time.monotonic() + 20
    while True:
        with lab.server.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(address)
            except OSError:
                if time.monotonic() > end:
                    raise PeersFailed(f"{address} does not listen: {log.read_text()}") from None
            else:
                return
        time.sleep(0.05)


class Grid:
    """One host behind NAT ``a``, and hosts behind every kind of NAT that it may want to reach."""

    def __init__(self, lab: Lab, kind: str, relay: Relay, kinds: Sequence[str]) -> None:
        self.kind = kind
        self._lab = lab
        self._relay = relay
        self._kinds = list(kinds)

    def connect(self, kind: str, folder: Path) -> Connected:
        """Connect ``a``, the controlling side, to the host behind this kind of NAT.

        Raises :class:`tools.icepeers.PeersFailed` also when they do not use what they should.
        """
        index = self._kinds.index(kind)
        direct = is_direct(self.kind, kind)
        a = Setup(controlling=True, stun=(self._lab.server.ipv4, TURN_PORT), relay=self._relay)
        b = Setup(controlling=False, stun=(self._lab.server.ipv4, TURN_PORT), relay=self._relay)
        first, second = self._lab["a"], self._lab[f"b{index}"]
        with meeting((first, NATKIT), (second, NATKIT), folder) as both:
            found = both.connect(
                a, b, settled=lambda found: found.agree and found.relayed != direct
            )
        if found.relayed == direct:
            what = "relay" if direct else "direct"
            raise PeersFailed(f"{self.kind} to {kind} is {what}: {found}: {both.story()}")
        if not found.agree:
            raise PeersFailed(f"{self.kind} to {kind}: not one path: {found}: {both.story()}")
        return found


@contextmanager
def grid(kind: str, folder: Path, kinds: Sequence[str] = KINDS) -> Iterator[Grid]:
    """Build the laboratory of one row of the grid, with turnd in it."""
    sites: list[Site] = [site(kind, name="a", hosts=("a",))]
    sites += [site(other, name=f"b{n}", hosts=(f"b{n}",)) for n, other in enumerate(kinds)]
    with Lab(*sites, server_command=(), ipv6="off") as lab, turnd(lab, folder) as relay:
        yield Grid(lab, kind, relay, kinds)


def run_row(kind: str, kinds: Sequence[str], run: int) -> dict[tuple[str, str], str | Connected]:
    """Connect one kind to all others, once; the failures are in words."""
    found: dict[tuple[str, str], str | Connected] = {}
    with tempfile.TemporaryDirectory(prefix=f"icelab-{run}-") as place:
        try:
            with grid(kind, Path(place), kinds) as row:
                for other in kinds:
                    try:
                        found[kind, other] = row.connect(other, Path(place))
                    except PeersFailed as failure:
                        found[kind, other] = str(failure)
        except PeersFailed as failure:
            found[kind, ""] = str(failure)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="laboratories at a time")
    parser.add_argument("--kind", action="append", choices=KINDS, help="all unless given")
    options = parser.parse_args()
    kinds = options.kind or KINDS
    console = Console()
    console.width = max(console.width, 140)  # the table is that wide, whatever it is printed to
    tasks = list(itertools.product(kinds, range(options.runs)))
    seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    failures: list[tuple[tuple[str, str], str]] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = pool.map(lambda task: run_row(task[0], kinds, task[1]), tasks)
        for row in track(rows, "connecting", len(tasks), console=console):
            for pair, found in row.items():
                if isinstance(found, str):
                    failures.append((pair, found))
                else:
                    seconds[pair].append(found.seconds)
    table = Table(title=f"runs of {options.runs} that connected as they should; median ms")
    table.add_column("controls")
    for other in kinds:
        table.add_column(other)
    for kind in kinds:
        cells = []
        for other in kinds:
            took = seconds[kind, other]
            median = f"{statistics.median(took) * 1e3:.0f} ms" if took else "-"
            way = "direct" if is_direct(kind, other) else "relay"
            cells.append(f"{len(took)} {way}\n{median}")
        table.add_row(kind, *cells)
    console.print(table)
    for pair, why in failures:
        console.print(f"{' to '.join(pair)}: {why}", markup=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
