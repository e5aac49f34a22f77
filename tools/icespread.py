"""How often, and how soon, prediction and birthday probing connect two agents.

    python -m tools.icespread sim --runs 200              # the simulated network, one seed a run
    python -m tools.icespread kernel --runs 20            # kernel NATs, real sockets
    python -m tools.icespread sim --case birthday-udp --probes 174 --runs 1000

Neither side has a relay, so what does not connect directly fails.  Beside the share that connected
stands what the arithmetic says (``nattype.peers.birthday_probability``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ice.candidate import DISCARD_PORT
from ice.config import Config, Tell
from ice.events import GatheringComplete
from ice.machine import AgentMachine
from ice.predict.moves import mixed_chance
from ice.spread.order import Progress, Role, Spread
from nattype.lab import Lab, Machine
from nattype.model import Link
from nattype.peers import BIRTHDAY_SOCKETS, EPHEMERAL_PORTS, birthday_probability
from stun.sansio import MILLISECOND, SECOND, Address
from tools.icegrid import SERVERS, Meeting, Party

ROOT: Final = Path(__file__).parents[1]
END: Final = ROOT / "tests" / "lab" / "ice_spread_end.py"
DELAY: Final = 0.02
"""Seconds each way on each access link: 80 ms between the agents and back."""
PATIENCE: Final = 25.0
WINDOW: Final = 16
"""Ports that are predicted, or passed over by a run of sockets."""
SKEW: Final = 0.2
"""Seconds by which the second side is later where that makes a difference."""
AR, PR, SS, SR = "restricted-cone", "port-restricted-cone", "symmetric-sequential", "symmetric"
SA = "adm+apdf+sequential"
"""Counts, but gives all of a peer's endpoints the same port."""
MASQUERADE: Final = (
    "flush chain ip natlab translate; "
    "add rule ip natlab translate meta l4proto { tcp, udp } masquerade random"
)
"""What makes a Linux router one that draws at random, without any help of the laboratory's."""
RST, POISONED = "port-restricted-rst", "port-restricted-poisoned"


@dataclass(frozen=True)
class Side:
    """What one side does."""

    offsets: tuple[int, ...] = ()
    """Ports that it predicts, from the one that a server has seen last."""
    spread: dict[str, Any] | None = None
    aim: int = 0
    """Its spread goes to the peer's port of so many mappings from now."""
    config: dict[str, Any] = field(default_factory=dict)
    after: float = 0.0
    """Seconds until it is told of the other."""


@dataclass(frozen=True)
class Case:
    """Two kinds of NAT, and what each side does to get through."""

    name: str
    a: str
    b: str
    transport: str
    left: Side
    right: Side
    probes: int = 0
    nft: str = ""
    """What is changed about the second NAT, where there is one: in the kernel."""
    hopeless: bool = False
    """Whether it is there to show that it does not connect."""
    aims: int = 0
    """Endpoints that each socket sends to, of which a probe leaves from one alone."""

    @property
    def expected(self) -> float | None:
        """What the arithmetic says of birthday probing."""
        if self.aims:
            return mixed_chance(
                BIRTHDAY_SOCKETS, self.aims, self.aims, EPHEMERAL_PORTS, by_address=False
            )
        return birthday_probability(self.probes) if self.probes else None

    def config(self, side: Side) -> dict[str, Any]:
        """What the agent of a side is told."""
        udp = self.transport == "udp"
        return {"udp": udp, "tcp": not udp, **side.config}


def cases(probes: int = 2048) -> list[Case]:
    """Return every case that is measured."""
    ahead = tuple(range(1, WINDOW + 1))
    fast = {"ta": 5 * MILLISECOND, "tcp_attempts": 32}
    public = {"tell": "public", **fast}
    predicted = {"tell": "predicted", **fast}
    found = []
    for transport in ("udp", "tcp"):
        predicts = Side(offsets=ahead, config=predicted)
        run = {
            "role": "sockets",
            "transport": transport,
            "sockets": WINDOW,
            "again": 300 * MILLISECOND,
        }
        meets = Side(spread=run, aim=WINDOW, config=predicted)
        sockets = Side(spread={"role": "sockets", "transport": transport}, config=public)
        probing = Side(
            spread={"role": "probes", "transport": transport, "packets": probes}, config=public
        )
        plain = Side(config=public)
        counts = Side(spread=probing.spread, offsets=(1, 2), config=predicted)
        found += [
            Case(f"predict-{transport}", PR, SS, transport, plain, predicts),
            Case(f"predict-both-{transport}", SS, SS, transport, predicts, predicts),
            Case(f"rendezvous-{transport}", SS, SS, transport, meets, meets),
            Case(f"birthday-{transport}", PR, SR, transport, probing, sockets, probes),
            Case(
                f"masquerade-{transport}", PR, SR, transport, probing, sockets, probes, MASQUERADE
            ),
            Case(f"mixed-{transport}", SA, SR, transport, counts, sockets, probes),
        ]
    late = Side(after=SKEW)
    opening = {"opening_ttl": 2}
    opens, opens_late = Side(config=opening), Side(config=opening, after=SKEW)
    # Each probe consumes a port of the side that counts, and each socket aims at all of them.
    widely = {"role": "sockets", "transport": "udp", "packets": WINDOW * 256, "rate": 5000}
    singly = {"role": "probes", "transport": "udp", "packets": WINDOW, "duration": 10 * SECOND}
    counting = Side(spread=singly, offsets=ahead, config=predicted)
    drawing = replace(sockets, spread=widely)
    short = replace(sockets, spread={"role": "sockets", "transport": "tcp", "ttl": 2})
    after = replace(probing, after=0.6)
    return [
        *found,
        Case("mixed-endpoints", SS, SR, "udp", counting, drawing, aims=WINDOW),
        Case("open-then-listen", AR, SR, "tcp", Side(), Side()),
        Case("open-then-listen-ss", AR, SS, "tcp", Side(), Side()),
        Case("birthday-rst", RST, SR, "tcp", after, short, probes),
        Case("poisoned", POISONED, PR, "udp", late, Side(), hopeless=True),
        Case("poisoned-opened", POISONED, PR, "udp", opens_late, opens),
        Case("poisoned-both", POISONED, POISONED, "udp", late, Side(), hopeless=True),
        Case("poisoned-both-opened", POISONED, POISONED, "udp", opens_late, opens),
    ]


@dataclass
class Trial:
    """What came of one run."""

    seconds: float | None
    sent: int = 0
    why: str = ""


# The simulated network. ---------------------------------------------------------------------------


class _Told(Party):
    """Hears nothing until both have gathered; tells the end when its ports are predicted."""

    offsets: tuple[int, ...] = ()
    waits = True
    heard: list[Any]

    def hear(self, message: Any, _: object = None) -> None:
        if self.waits:
            self.heard.append(message)
        else:
            super().hear(message)

    def meet(self) -> None:
        """Hear what was told."""
        self.waits = False
        for message in self.heard:
            self.hear(message)

    def _signal(self, message: tuple[Any, ...]) -> None:
        if message[0] == "end" and self.offsets:
            offsets, self.offsets = self.offsets, ()
            self.agent.predict(offsets, self.meeting.world.now)
            # The candidates are events that are still to be polled; the end follows them.
            self.meeting.world.clock.at(self.meeting.world.now, lambda *_: self._signal(message))
            return
        super()._signal(message)


def simulate(case: Case, seed: int) -> Trial:
    """Run a case on the simulated network."""
    link = Link(delay=DELAY)
    configs = [
        Config(**{**case.config(side), "tell": Tell(side.config.get("tell", "all"))})
        for side in (case.left, case.right)
    ]
    meeting = Meeting(
        case.a,
        case.b,
        seed=seed,
        link_a=link,
        link_b=link,
        config_a=configs[0],
        config_b=configs[1],
        servers=SERVERS[:1],
    )
    parties: list[tuple[_Told, Side]] = []
    for party, side in zip(meeting.parties, (case.left, case.right), strict=True):
        party.__class__ = _Told
        assert isinstance(party, _Told)
        party.offsets, party.heard = side.offsets, []
        parties.append((party, side))
    meeting.start()
    meeting.run(lambda: all(party.told(GatheringComplete) for party, _ in parties), 10)
    meeting.run(meeting.world.now + SECOND // 2)
    began = meeting.world.now
    runs: list[Progress] = []
    aims = {party: _last(party.agent, case.transport) for party, _ in parties}
    for party, side in sorted(parties, key=lambda each: each[1].after):
        meeting.run(began + round(side.after * SECOND))
        party.meet()
        if side.spread is not None:
            order = _order(side, aims[party.peer])  # type: ignore[index]
            runs.append(party.agent.spread(order, meeting.world.now))
        party.attached.pump()
    connected = meeting.run(meeting.settled, PATIENCE)
    sent = sum(run.sent for run in runs)
    if not connected:
        return Trial(None, sent, "\n".join(meeting.story()))
    return Trial((meeting.world.now - began) / SECOND, sent)


def _last(agent: AgentMachine, transport: str) -> Address:
    """Return the mapping that a server has seen last."""
    return max(
        candidate.address
        for candidate in agent.mapped()
        if candidate.transport == transport and candidate.port != DISCARD_PORT
    )


def _order(side: Side, peer: Address) -> Spread:
    fields = dict(side.spread or {})
    if side.aim:
        fields["remotes"] = (Address(peer.host, peer.port + side.aim),)
    return Spread(Role(fields.pop("role")), **fields)


# Kernel NATs. -------------------------------------------------------------------------------------


class End:
    """The program on one host of a laboratory."""

    def __init__(self, lab: Lab, machine: Machine, stack: ExitStack) -> None:
        self.stun = lab.stun
        self.program = stack.enter_context(
            machine.popen([sys.executable, str(END)], stdin=-1, stdout=-1, text=True, cwd=ROOT)
        )

    def do(self, **command: Any) -> None:
        """Give a command."""
        assert self.program.stdin is not None
        self.program.stdin.write(json.dumps(command) + "\n")
        self.program.stdin.flush()

    def told(self) -> dict[str, Any]:
        """Wait for what came of it."""
        assert self.program.stdout is not None
        line = self.program.stdout.readline()
        assert line, "the program ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def start(self, case: Case, side: Side, *, controlling: bool) -> dict[str, Any]:
        """Gather, and predict; what the peer is to be told."""
        self.do(do="start", controlling=controlling, stun=self.stun, config=case.config(side))
        found = self.told()
        if side.offsets:
            self.do(do="predict", offsets=side.offsets)
            found["candidates"] += self.told()["candidates"]
        return found


@contextmanager
def ends(case: Case) -> Iterator[tuple[End, End]]:
    """Build a laboratory with an end behind each of a case's NATs."""
    with Lab.pair(case.a, case.b, delay=DELAY, ipv6="off") as lab, ExitStack() as stack:
        if case.nft:
            lab.box(0, "b").run(["nft", case.nft], check=True)
        yield End(lab, lab.a, stack), End(lab, lab.b, stack)


def attempt(case: Case, a: End, b: End) -> Trial:
    """Run a case between two ends."""
    told = [
        end.start(case, side, controlling=end is a)
        for end, side in ((a, case.left), (b, case.right))
    ]
    for end, side, other in ((a, case.left, told[1]), (b, case.right, told[0])):
        spread = None if side.spread is None else dict(side.spread)
        if spread is not None and side.aim:
            host, port = other["mapped"][case.transport]
            spread["remotes"] = [(host, port + side.aim)]
        end.do(
            do="connect",
            ufrag=other["ufrag"],
            pwd=other["pwd"],
            candidates=other["candidates"],
            spread=spread,
            after=side.after,
        )
    found = [a.told(), b.told()]
    sent = sum(one.get("sent", 0) for one in found)
    if any(one["told"] != "connected" for one in found):
        return Trial(None, sent, "\n".join(json.dumps(one) for one in found))
    return Trial(max(one["seconds"] for one in found), sent)


def in_kernel(case: Case, runs: int) -> Iterator[Trial]:
    """Run a case so many times."""
    with ends(case) as (a, b):
        for _ in range(runs):
            yield attempt(case, a, b)


# What is shown. -----------------------------------------------------------------------------------


def row(case: Case, trials: Sequence[Trial]) -> list[str]:
    """Say in a line what came of a case."""
    took = sorted(trial.seconds for trial in trials if trial.seconds is not None)
    expected = "0 %" if case.hopeless else "100 %"
    if case.expected is not None:
        expected = f"{case.expected:.2%}"
    share = f"{len(took)}/{len(trials)} = {len(took) / len(trials):.2%}"
    if not took:
        return [case.name, f"{case.a} - {case.b}", share, expected, "-", "-", "-"]
    return [
        case.name,
        f"{case.a} - {case.b}",
        share,
        expected,
        f"{statistics.median(took):.2f} s",
        f"{took[-1]:.2f} s",
        f"{statistics.mean(trial.sent for trial in trials):.0f}",
    ]


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("where", choices=("sim", "kernel"))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probes", type=int, default=2048)
    parser.add_argument("--case", action="append", help="all unless given")
    parser.add_argument("--why", action="store_true", help="tell of the first failure of each")
    options = parser.parse_args()
    console = Console()
    console.width = max(console.width, 150)
    table = Table(title=f"{options.where}: {options.runs} runs each")
    for name in ("case", "NATs", "connected", "expected", "median", "longest", "packets, mean"):
        table.add_column(name)
    failed = False
    for case in cases(options.probes):
        if options.case and case.name not in options.case:
            continue
        if options.where == "sim":
            run: Iterator[Trial] = (
                simulate(case, options.seed + number) for number in range(options.runs)
            )
        else:
            run = in_kernel(case, options.runs)
        trials = list(track(run, case.name, options.runs, console=console))
        table.add_row(*row(case, trials))
        bad = [trial for trial in trials if trial.seconds is None]
        if case.expected is None:
            failed |= len(bad) != (len(trials) if case.hopeless else 0)
        if bad and options.why:
            console.print(bad[0].why, markup=False)
    console.print(table)
    return 1 if failed else 0


__all__ = ["Case", "Side", "Trial", "attempt", "cases", "ends", "simulate"]

if __name__ == "__main__":
    sys.exit(main())
