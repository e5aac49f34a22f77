"""One row of the grid: a laboratory with one host behind a kind of NAT and one behind each kind.

Every program of a row finds the same NATs, wires and server: ``turnd --with-rendezvous``, which is
STUN server, TURN server and, for ``punch``, the place to meet.  The NATs forget everything before
each run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from nattype.lab import Lab
from nattype.lab.kernel.spec import Site, site
from tools import icelab
from tools.grid import punching
from tools.grid.cells import AIOICE, KINDS, LIBNICE, NATKIT, Cell, Mode, Run
from tools.icepeers import PeersFailed, Relay, Setup, meeting

PEERS: Final = punching.ROOT / "tests" / "interop" / "peers"
SYSTEM_PYTHON: Final = "/usr/bin/python3"
"""libnice's introspection belongs to the system's own Python."""
COMMANDS: Final = {
    AIOICE: [sys.executable, str(PEERS / "ice_aioice.py")],
    LIBNICE: [SYSTEM_PYTHON, str(PEERS / "ice_libnice.py")],
}
COULD: Final = {AIOICE: ("udp",), LIBNICE: ("udp", "tcp")}
"""Over what each agent has candidates of its own."""
NO_UDP: Final = (
    "table ip no_udp { chain input { type filter hook input priority 0; meta l4proto udp drop; }; }"
)
"""Where nothing but TCP shall pass: an agent that cannot be told so finds it out, as it would in
such a network.  (Dropping what goes *out* would make sending fail, which no network does.)"""
RENDEZVOUS_PORT: Final = 8080


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for the whole grid.  Durations are seconds."""

    seed: int = 1
    delay: float = 0.04
    """One way, from end to end."""
    skew: float = 1.0
    """The two starts are at most so far apart."""
    patience: float = 20.0
    """How long a direct way is waited for."""

    def draw(self, cell: Cell, number: int) -> tuple[float, str]:
        """Return how far apart the two starts of a run are, and who is late."""
        random = Random(f"{self.seed}/{cell}/{number}")
        return random.uniform(0, self.skew), random.choice("ab")


@dataclass(frozen=True, slots=True)
class Row:
    """A laboratory that is up."""

    lab: Lab
    mode: Mode
    kind: str
    kinds: Sequence[str]
    relay: Relay
    terms: Terms
    folder: Path

    def run(self, program: str, other: str, number: int) -> tuple[Run, list[str]]:
        """Let a program connect to its like behind another kind of NAT."""
        self._forget(other)
        cell = Cell(self.mode, self.kind, other)
        folder = self.folder / f"{program}-{other}-{number}"
        folder.mkdir()
        return (
            self._punch(cell, number, folder)
            if program == NATKIT
            else self._agents(program, cell, number, folder)
        )

    def _forget(self, other: str) -> None:
        for name, kind in (("a", self.kind), (self._name(other), other)):
            if kind != "open":
                self.lab.box(site=name).flush()

    def _name(self, other: str) -> str:
        return f"b{list(self.kinds).index(other)}"

    def _punch(self, cell: Cell, number: int, folder: Path) -> tuple[Run, list[str]]:
        skew, late = self.terms.draw(cell, number)
        host = self.lab.server_addresses()[0]
        terms = punching.Terms(
            rendezvous=f"ws://{host}:{RENDEZVOUS_PORT}",
            code=f"grid.{self._name(cell.b)}.{number}-{os.urandom(8).hex()}",
            skew=skew,
            late=late,
            patience=self.terms.patience,
        )
        machines = {"a": self.lab["a"], "b": self.lab[self._name(cell.b)]}
        return punching.connect(machines, cell, number, terms, folder)

    def _agents(self, program: str, cell: Cell, number: int, folder: Path) -> tuple[Run, list[str]]:
        over = self.mode.transport
        command = COMMANDS[program]
        first, second = self.lab["a"], self.lab[self._name(cell.b)]
        setups = [
            Setup(
                controlling=controlling,
                stun=(self.lab.server_addresses()[0], icelab.TURN_PORT),
                relay=self.relay._replace(url=self.relay.url.replace("=udp", f"={over}")),
                transports=COULD[program] if over == "tcp" else ("udp",),
            )
            for controlling in (True, False)
        ]
        direct = over in COULD[program] and icelab.is_direct(cell.a, cell.b)
        load = round(os.getloadavg()[0], 2)
        try:
            with meeting((first, command), (second, command), folder) as both:
                found = both.connect(
                    setups[0],
                    setups[1],
                    # An agent that goes over to a better pair later is given the time for that.
                    settled=lambda found: found.agree and found.relayed != direct,
                )
        except PeersFailed as failure:
            why = str(failure).partition("\n")[0][:300]
            run = Run(program, cell, number, "none", load=load, why=why)
            return run, str(failure).splitlines()
        took = round(found.seconds, 3)
        run = Run(
            program,
            cell,
            number,
            "relay" if found.relayed else "direct",
            over=over,
            first=took,
            direct=None if found.relayed else took,
            load=load,
        )
        return run, [f"a: {found.a}", f"b: {found.b}"]


@contextmanager
def row(
    mode: Mode, kind: str, folder: Path, terms: Terms, kinds: Sequence[str] = KINDS
) -> Iterator[Row]:
    """Build a row, which is gone when the block ends."""

    def behind(kind: str, name: str) -> Site:
        return site(
            kind,
            name=name,
            hosts=(name,),
            delay=terms.delay / 2,
            tcp_unsolicited=mode.uninvited or None,
        )

    sites = [behind(kind, "a"), *(behind(other, f"b{n}") for n, other in enumerate(kinds))]
    with Lab(*sites, server_command=(), ipv6="off") as lab:
        if mode.transport == "tcp":
            for each in sites:
                lab[each.name].run(["nft", NO_UDP], check=True)
        host, second = lab.server_addresses()
        at = f"ws://{host}:{RENDEZVOUS_PORT}"
        options = ("--with-rendezvous", "--rendezvous-listen", at, "--alternate-address", second)
        with icelab.turnd(lab, folder, *options) as relay:
            icelab.wait_for(lab, (host, RENDEZVOUS_PORT), folder / "turnd.log")
            yield Row(lab, mode, kind, kinds, relay, terms, folder)
