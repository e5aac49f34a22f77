"""Every pair of NATs, by the plan that natkit makes for it, on the simulated network.

    python -m tools.predictsim [--runs 20] [--transport udp] [--only symmetric] [--others 5]
    python -m tools.predictsim --counters        # two NATs that count: which order of ports meets

Each cell of the matrix is played as two programs would: both sides are diagnosed by natcheck's
probe, tell each other what came of it, make the plan, and carry its steps out one after the other
with new agents each time, as :mod:`ice.predict.orders` says.  No relay helps.  The table shows how
many of the runs became direct, by which step, and after how many seconds.

``--others`` has that many mappings a second taken by somebody else behind each NAT.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from statistics import median
from typing import Any, Final

from ice.candidate import Candidate
from ice.config import Config, Server
from ice.events import AgentState, GatheringComplete
from ice.predict.orders import config_for, ports_for, remotes_for, spread_for
from ice.predict.plan import plan
from ice.predict.steps import Budget, Step
from ice.predict.summary import NatSummary
from ice.predict.summary import Transport as Via
from nattype.lab.sim import pair
from nattype.lab.sim.diagnose import diagnose
from nattype.lab.sim.machines import Puppet
from nattype.model import Kind, Link, Unsolicited, kind
from stun.discovery import Target, Transport
from stun.sansio import SECOND, Address
from tools.icegrid import KINDS, STUN, Meeting, Party, Signalling

LINK: Final = Link(delay=0.02)
"""Of each side: 40 ms one way between them."""
STUN_SERVERS: Final = (
    Server("stun:b", (Target(STUN, Transport.UDP), Target(STUN, Transport.TCP))),
)
HOSTS: Final = ("192.52.193.2", "192.52.193.34")
SKEW: Final = 0.1
"""Seconds that one side may begin later."""
TROUBLE: Final = {"drop": Unsolicited.DROP, "rst": Unsolicited.RST, "icmp": Unsolicited.ICMP}


def refusing(name: str, unsolicited: Unsolicited) -> Kind:
    """Return a kind whose NATs meet an uninvited SYN in another way."""
    known = kind(name)
    boxes = tuple(replace(box, unsolicited_tcp=unsolicited) for box in known.boxes)
    return Kind(f"{name}/{unsolicited}", known.summary, boxes)


@cache
def summary_of(which: Kind, host: str) -> NatSummary:
    """Diagnose a kind.  ``host``: the external address, since every diagnosis has its own world."""
    found = NatSummary.from_report(diagnose(which, seed=5))
    assert found.ipv4 is not None
    udp, tcp = found.ipv4.udp, found.ipv4.tcp
    family = replace(
        found.ipv4,
        udp=udp and replace(udp, hosts=(host,)),
        tcp=tcp and replace(tcp, hosts=(host,)),
    )
    return replace(found, ipv4=family)


# One pair. ----------------------------------------------------------------------------------------


class _Side(Party):
    """A party that says that it has no more candidates only when it has foretold its ports."""

    ready = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.told_by_peer: list[Candidate] = []

    def _told(self, event: Any) -> None:
        if isinstance(event, GatheringComplete):
            self.ready = True
            self.log.append((self.meeting.world.now, event))
            return
        super()._told(event)

    def carry_out(self, step: Step, transport: Via, summary: NatSummary) -> None:
        """Do what is this side's part beyond plain checks."""
        now = self.meeting.world.now
        path = summary.path(transport, "ipv4")
        assert path is not None
        ports = ports_for(step, transport, self.agent.mapped(), path)
        if ports:
            self.agent.predict((), now, ports=ports)
            self.attached.pump()
        self._signal(("end", self.agent.local.ufrag))
        self.attached.pump()
        # The peer is told at once, and what is sent waits.
        self.meeting.world.clock.at(
            now + round(step.mine.after * SECOND), self._spread, (step, transport)
        )

    def _spread(self, what: tuple[Step, Via], _: object) -> None:
        """Order what the step wants, as soon as it is known where to."""
        if self.agent.state is AgentState.CLOSED or spread_for(*what) is None:
            return
        now = self.meeting.world.now
        remotes = remotes_for(*what, self.told_by_peer)
        if not remotes:
            self.meeting.world.clock.at(now + SECOND // 50, self._spread, what)
            return
        order = spread_for(*what, remotes)
        assert order is not None
        self.agent.spread(order, now)
        self.attached.pump()

    def hear(self, message: Any, _: object = None) -> None:
        """Take a message; keep what it says of the peer's candidates."""
        if message[0] == "candidate":
            self.told_by_peer.append(Candidate.from_sdp(message[1]))
        super().hear(message)


class Duel(Meeting):
    """Two sites, and one attempt after the other between their hosts."""

    parties: tuple[_Side, _Side]

    def __init__(self, a: Kind, b: Kind, *, seed: int, others: float = 0.0) -> None:
        self.scenario = pair(a, b, seed=seed, link_a=LINK, link_b=LINK)
        self.world = self.scenario.world
        self.signalling = Signalling(0.03, 0.06)
        self.servers = STUN_SERVERS
        self.relay = self._serve()
        self._random = Random(f"{seed} skew")
        if others:
            for site in range(2):
                self._crowd(site, others)

    def _crowd(self, site: int, others: float) -> None:
        """Let somebody else behind a site's NATs take ports."""
        world = self.world
        host = self.scenario.neighbour(f"others {site}", site=site)
        random = world.random(f"others {site}")
        transports = Puppet(), Puppet()
        for puppet in transports:
            world.attach(puppet, host)
        number = itertools.count(20_000)
        own = host.address(ipv6=False)

        def one(_: object, __: object) -> None:
            local = Address(own, next(number))
            transports[0].bind(local)
            transports[0].send(local, STUN)
            handle = transports[1].dial(Address(own, 0), STUN)
            transports[1].shut(handle)
            for attachment in world._attachments:
                if attachment.machine in transports:
                    attachment.pump()
            world.clock.at(world.now + round(random.expovariate(others) * SECOND), one, None)

        world.clock.at(world.now + round(random.expovariate(others) * SECOND), one, None)

    def attempt(self, step: Step, transport: Via, summaries: tuple[NatSummary, NatSummary]) -> bool:
        """Carry out one step once; whether a direct way was found."""
        world = self.world
        self.parties = (
            _Side(
                self,
                f"a {world.now}",
                self.scenario.host,
                config_for(step, transport, Config()),
                controlling=True,
            ),
            _Side(
                self,
                f"b {world.now}",
                self.scenario.peer,
                config_for(step.mirrored(), transport, Config()),
                controlling=False,
            ),
        )
        self.start()
        self.run(lambda: all(side.ready for side in self.parties), 3.0)
        begin = world.now + round(0.1 * SECOND)
        for side, seen, summary in zip(
            self.parties, (step, step.mirrored()), summaries, strict=True
        ):
            late = self._random.uniform(0, SKEW)
            world.clock.at(
                begin + round(late * SECOND),
                lambda one, _: one[0].carry_out(one[1], transport, one[2]),
                (side, seen, summary),
            )
        met = self.run(self.settled, step.seconds + 1.0)
        self.close()
        return met


@dataclass(slots=True)
class Cell:
    """What came of all runs of one pair."""

    a: str
    b: str
    plan: tuple[str, ...]
    runs: int = 0
    direct: int = 0
    by: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


def play(
    a: Kind,
    b: Kind,
    transport: Via,
    *,
    runs: int,
    budget: Budget | None = None,
    others: float = 0.0,
    seed: int = 0,
) -> Cell:
    """Play one pair as often as asked."""
    summaries = summary_of(a, HOSTS[0]), summary_of(b, HOSTS[1])
    made = plan(*summaries, transport=transport, birthday=True, budget=budget)
    cell = Cell(a.name, b.name, tuple(step.strategy.value for step in made.direct))
    for run in range(runs):
        duel = Duel(a, b, seed=1000 * seed + run, others=others)
        cell.runs += 1
        began = duel.world.now
        for step in made.direct:
            if any(duel.attempt(step, transport, summaries) for _ in range(step.attempts)):
                cell.direct += 1
                cell.by[step.strategy.value] += 1
                cell.seconds.append((duel.world.now - began) / SECOND)
                break
    return cell


# Counters alone. ----------------------------------------------------------------------------------


def aligned(mine: Sequence[int], theirs: Sequence[int], taken: int, taken_there: int) -> bool:
    """Whether two sequences of aims meet, if others took so many ports before each began.

    ``mine[j]`` is which mapping of the peer this side's (j+1)-th packet to a new destination aims
    at; that packet leaves from this side's mapping ``taken + j + 1``.  They meet where each aims at
    what the other one's packet leaves from.
    """
    return any(
        0 < there - taken_there <= len(theirs) and theirs[there - taken_there - 1] == taken + number
        for number, there in enumerate(mine, 1)
    )


def orders(window: int) -> dict[str, tuple[Sequence[int], Sequence[int], bool]]:
    """Return ways in which two sides may aim: at which ports, and if each from a fresh socket."""
    up = list(range(1, window + 1))
    nested = [port for two in zip(up, reversed(up), strict=True) for port in two][:window]
    return {
        "both in the same order": (up, up, False),
        "in opposite orders": (up, up[::-1], False),
        "one nested": (up, nested, False),
        "runs of sockets at one port": ([window] * window, [window] * window, True),
    }


def counters(window: int, most: int) -> None:
    """Print how often two counters meet, by ports that others took before they begin."""
    print(f"{'taken on each side, at most':32}" + "".join(f"{k:>7}" for k in range(most + 1)))
    for name, (mine, theirs, _) in orders(window).items():
        rates = []
        for most_taken in range(most + 1):
            pairs = list(itertools.product(range(most_taken + 1), repeat=2))
            rates.append(sum(aligned(mine, theirs, *taken) for taken in pairs) / len(pairs))
        print(f"{name:32}" + "".join(f"{rate:7.0%}" for rate in rates))


# The command. -------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what was asked for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--transport", choices=("udp", "tcp"), action="append")
    parser.add_argument("--trouble", choices=tuple(TROUBLE), action="append")
    parser.add_argument("--only", action="append", help="kinds, both of a pair or one of them")
    parser.add_argument("--others", type=float, default=0.0, help="mappings a second")
    parser.add_argument("--packets", type=int, help="the budget of a guessing step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--counters", action="store_true", help="two counters, without a network")
    wanted = parser.parse_args(arguments)
    if wanted.counters:
        counters(16, 12)
        return 0
    budget = None if wanted.packets is None else Budget(packets=wanted.packets, seconds=120)
    failed = 0
    for transport in wanted.transport or ("udp", "tcp"):
        troubles = ["drop"] if transport == "udp" else (wanted.trouble or list(TROUBLE))
        for trouble in troubles:
            for a, b in itertools.combinations_with_replacement(KINDS, 2):
                if wanted.only and not set(wanted.only) <= {a, b}:
                    continue
                began = time.monotonic()
                cell = play(
                    refusing(a, TROUBLE[trouble]),
                    refusing(b, TROUBLE[trouble]),
                    transport,
                    runs=wanted.runs,
                    budget=budget,
                    others=wanted.others,
                    seed=wanted.seed,
                )
                name = f"{transport}/{trouble}" if transport == "tcp" else transport
                middle = f"{median(cell.seconds):6.2f} s" if cell.seconds else "       -"
                failed += bool(cell.plan) and cell.direct < cell.runs
                print(
                    f"{name:9} {a:21} {b:21} {cell.direct:4}/{cell.runs:<4} {middle}  "
                    f"{', '.join(f'{k}: {n}' for k, n in cell.by.items()) or 'relay'}"
                    f"  [{time.monotonic() - began:.1f} s]",
                    flush=True,
                )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
