"""Two agents behind every pair of NATs, thousands of times, on the simulated network.

    python -m tools.icegrid --runs 10000 --seed 1
    python -m tools.icegrid --replay 1/4711          # one run again, with what happened

Each run draws from its own seed: the two NATs, loss, delay and reordering on both access links,
how long the signalling takes for each message, who controls, when the second agent starts.  It
holds the two agents to what ICE promises: both connect and use the same pair, in both directions,
or both say why not; directly where a plain exchange of candidates can (the matrix below), over the
relay elsewhere; and data sent on it arrives.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from ice.candidate import Candidate, CandidateType
from ice.config import Config, Credentials, Interface, Server
from ice.events import (
    AgentEvent,
    AgentState,
    Disconnected,
    Failed,
    GatheringComplete,
    LocalCandidate,
    Restarted,
    Selected,
)
from ice.machine import AgentMachine
from ice.pair import Pair
from nattype.lab.sim import SERVER_A, SERVER_B, pair
from nattype.lab.sim.driver import Attachment
from nattype.lab.sim.host import Host
from nattype.lab.sim.world import World
from nattype.model import Link
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.nonce import NonceMaker
from stun.sansio import MILLISECOND, SECOND, Address, Instant
from stun.users import StaticUsers
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.machine import Server as RelayServer
from turn.server.policy import PeerPolicy

KINDS: Final = (
    "open",
    "full-cone",
    "restricted-cone",
    "port-restricted-cone",
    "symmetric-sequential",
    "symmetric",
)
NOT_DIRECT: Final = frozenset(
    frozenset(each)
    for each in (
        ("port-restricted-cone", "symmetric-sequential"),
        ("port-restricted-cone", "symmetric"),
        ("symmetric-sequential",),
        ("symmetric-sequential", "symmetric"),
        ("symmetric",),
    )
)
"""Where a packet must come from a port that nobody could have told: prediction apart, a relay."""

RELAY: Final = Address(SERVER_A, 3478)
STUN: Final = Address(SERVER_B, 3478)
REALM: Final = "example.org"
SERVERS: Final = (
    Server("stun:b", (Target(STUN, Transport.UDP),)),
    Server(
        "turn:a",
        (Target(RELAY, Transport.UDP),),
        turn=True,
        credentials=LongTerm("alice", "secret"),
    ),
)


def is_direct(a: str, b: str) -> bool:
    """Whether two kinds can meet without a relay over UDP."""
    return frozenset((a, b)) not in NOT_DIRECT


@dataclass(frozen=True, slots=True)
class Signalling:
    """How long a message takes: each its own time, but none overtakes another (seconds)."""

    least: float = 0.01
    most: float = 0.1


class Party:
    """An agent on its host, and the messages that it is sent by its peer."""

    def __init__(
        self, meeting: Meeting, name: str, host: Host, config: Config, *, controlling: bool
    ) -> None:
        self.meeting = meeting
        self.name = name
        self.host = host
        self.log: list[tuple[Instant, AgentEvent]] = []
        self.received: list[bytes] = []
        self.addresses = [host.address(ipv6=False)]
        """Of the host, the preferred one first."""
        world = meeting.world
        self.agent = AgentMachine(
            config,
            controlling=controlling,
            entropy=world.entropy(f"agent {name}"),
            on_data=lambda _stream, _component, data: self.received.append(data),
        )
        self.attached: Attachment[AgentEvent] = world.attach(self.agent, host, self._told)
        self._random = world.random(f"signalling of {name}")
        self._latest: Instant = 0
        self.lite_peer = False

    @property
    def peer(self) -> Party:
        a, b = self.meeting.parties
        return b if self is a else a

    @property
    def selected(self) -> Pair | None:
        return self.agent.pair()

    def interfaces(self) -> list[Interface]:
        return [
            Interface(host, f"eth{number}", 65535 - 32 * number)
            for number, host in enumerate(self.addresses)
        ]

    def start(self, servers: Sequence[Server]) -> None:
        self._signal(("credentials", self.agent.local))
        self.agent.gather(self.interfaces(), servers, self.meeting.world.now)
        self.attached.pump()

    def send(self, data: bytes) -> bool:
        sent = self.agent.send(data, self.meeting.world.now)
        self.attached.pump()
        return sent

    def restart(self) -> None:
        self.agent.restart(self.meeting.world.now)
        self.attached.pump()

    def told(self, kind: type) -> list[Any]:
        return [event for _, event in self.log if isinstance(event, kind)]

    def _told(self, event: AgentEvent) -> None:
        self.log.append((self.meeting.world.now, event))
        ufrag = self.agent.local.ufrag
        match event:
            case LocalCandidate():
                self._signal(("candidate", event.candidate.to_sdp(), event.stream, ufrag))
            case GatheringComplete():
                self._signal(("end", ufrag))
            case Restarted():
                self._signal(("credentials", event.credentials))

    def _signal(self, message: tuple[Any, ...]) -> None:
        world, how = self.meeting.world, self.meeting.signalling
        delay = self._random.uniform(how.least, how.most)
        self._latest = max(self._latest, world.now + round(delay * SECOND))
        world.clock.at(self._latest, self.peer.hear, message)

    def hear(self, message: Any, _: object = None) -> None:
        now = self.meeting.world.now
        if self.agent.state is AgentState.CLOSED:
            return
        match message:
            case ("credentials", Credentials() as credentials):
                self.agent.set_remote(credentials, now, lite=self.lite_peer)
            case ("candidate", str() as text, int() as stream, str() as ufrag):
                candidate = Candidate.from_sdp(text)
                self.agent.add_remote(candidate, now, stream, ufrag)
            case ("end", str() as ufrag):
                self.agent.add_remote(None, now, 0, ufrag)
        self.attached.pump()


class Meeting:
    """Two agents, the servers, and the signalling between them."""

    def __init__(
        self,
        a: str,
        b: str,
        *,
        seed: int,
        link_a: Link | None = None,
        link_b: Link | None = None,
        signalling: Signalling | None = None,
        config: Config | None = None,
        config_a: Config | None = None,
        config_b: Config | None = None,
        controlling: tuple[bool, bool] = (True, False),
        servers: Sequence[Server] = SERVERS,
        trace: bool = False,
    ) -> None:
        self.scenario = pair(
            a, b, seed=seed, link_a=link_a or Link(), link_b=link_b or Link(), trace=trace
        )
        self.world: World = self.scenario.world
        self.signalling = signalling or Signalling()
        self.servers = servers
        default = config or Config(tcp=False)
        self.relay = self._serve()
        self.parties = (
            Party(self, "a", self.scenario.host, config_a or default, controlling=controlling[0]),
            Party(self, "b", self.scenario.peer, config_b or default, controlling=controlling[1]),
        )

    @property
    def a(self) -> Party:
        return self.parties[0]

    @property
    def b(self) -> Party:
        return self.parties[1]

    def _serve(self) -> RelayServer:
        world = self.world
        listeners = [
            ListenAt(transport, address)
            for address in (RELAY, STUN)
            for transport in (Transport.UDP, Transport.TCP)
        ]
        config = ServerConfig(
            listeners=tuple(listeners),
            relays=(RelayAddress(SERVER_A, SERVER_A),),
            realm=REALM,
            policy=PeerPolicy(allow=[SERVER_A], own=[SERVER_A, SERVER_B]),
        )
        server = RelayServer(
            config,
            StaticUsers({"alice": "secret"}, REALM),
            NonceMaker((world.random("nonces").randbytes(16),)),
            entropy=world.entropy("server"),
            unix_epoch=1_700_000_000,
        )
        world.attach(server, self.scenario.server)
        server.start(world.now)
        return server

    def start(self, *, later: float = 0.0) -> None:
        """Start ``a`` now and ``b`` ``later`` seconds from now."""
        self.a.start(self.servers)
        if later:
            at = self.world.now + round(later * SECOND)
            self.world.clock.at(at, lambda _, __: self.b.start(self.servers))
        else:
            self.b.start(self.servers)

    def generations(self) -> set[int]:
        return {party.agent.generation for party in self.parties}

    def both(self, *states: AgentState) -> bool:
        return all(party.agent.state in states for party in self.parties)

    def agree(self, component: int = 1, stream: int = 0) -> bool:
        """Whether both sides use the same pair, each the other's mirror."""
        one, other = (party.agent.pair(component, stream) for party in self.parties)
        if one is None or other is None:
            return False
        return seen(one) == other.remote_address and seen(other) == one.remote_address

    def run(self, until: Callable[[], bool] | Instant, seconds: float = 60) -> bool:
        """Let time pass until an instant, or until something holds, for ``seconds`` at most."""
        return self.world.run(until=until, max_time=seconds if callable(until) else None)

    def settled(self) -> bool:
        """Whether everything is agreed on, and alike."""
        return self.both(AgentState.COMPLETED) and all(
            self.agree(component.id, component.stream) for component in self.a.agent.components
        )

    def close(self) -> None:
        for party in self.parties:
            party.agent.close(self.world.now)
            party.attached.pump()

    def story(self) -> Iterator[str]:
        """Tell what happened, a line an event, and how every pair ended."""
        lines: list[tuple[Instant, str]] = []
        for party in self.parties:
            lines += [(at, f"{party.name}: {event}") for at, event in party.log]
        for at, line in sorted(lines, key=lambda each: each[0]):
            yield f"{at / MILLISECOND:10.1f} ms  {line}"
        for party in self.parties:
            yield f"{party.name}: {party.agent.state}, drops {dict(party.agent.drops)}"
            for each in party.agent.pairs():
                mark = "*" if each is party.selected else " "
                yield f" {mark} {each!r} priority {each.priority:x} rtt {each.rtt}"
                for note in each.notes:
                    yield f"      {note.at / MILLISECOND:10.1f} ms  {note.what}"


def seen(one: Pair) -> Address:
    """Return the address that the peer sees packets of this pair come from."""
    return one.base.address if one.mapped is None else one.mapped.address


# Runs. --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, drawn from its seed."""

    seed: str
    a: str
    b: str
    link_a: Link
    link_b: Link
    signalling: Signalling
    controlling: tuple[bool, bool]
    later: float
    tcp: bool
    components: int
    restart: str
    """Who restarts once they have agreed: neither, one of them, or both at the same time."""

    @classmethod
    def draw(cls, seed: str) -> Plan:
        random = Random(seed)

        def link() -> Link:
            delay = random.choice((0.0, 0.005, 0.02, 0.05, 0.15))
            return Link(
                loss=random.choice((0.0, 0.0, 0.01, 0.05, 0.1)),
                delay=delay,
                jitter=random.choice((0.0, delay / 2, delay)),
            )

        most = random.choice((0.001, 0.05, 0.3, 1.0))
        # A conflict of roles now and then: both say the same.
        controlling = random.choice(
            ((True, False), (False, True)) * 4 + ((True, True), (False,) * 2)
        )
        return cls(
            seed,
            random.choice(KINDS),
            random.choice(KINDS),
            link(),
            link(),
            Signalling(most / 4, most),
            (controlling[0], controlling[1]),
            random.choice((0.0, 0.0, 0.1, 0.5, 2.0)),
            random.random() < 0.2,
            random.choice((1, 1, 1, 2)),
            random.choice(("", "", "", "a", "b", "ab")),
        )

    @property
    def round_trip_loss(self) -> float:
        """The share of the checks that get no answer, on the direct path."""
        return 1 - ((1 - self.link_a.loss) * (1 - self.link_b.loss)) ** 2

    def __str__(self) -> str:
        return (
            f"{self.a} ({self.link_a.delay * 1000:.0f}+{self.link_a.jitter * 1000:.0f} ms, "
            f"{self.link_a.loss:.0%}) with {self.b} ({self.link_b.delay * 1000:.0f}+"
            f"{self.link_b.jitter * 1000:.0f} ms, {self.link_b.loss:.0%}), signalling up to "
            f"{self.signalling.most * 1000:.0f} ms, {self.controlling}, later {self.later} s, "
            f"{self.components} components{', TCP' if self.tcp else ''}, restart {self.restart!r}"
        )


@dataclass(slots=True)
class Outcome:
    """What came of a run.  ``faults``: promises that were not kept."""

    plan: Plan
    direct: bool = False
    avoided: bool = False
    """Whether a direct pair works, but so much gets lost that the monitor does not trust it."""
    connected: float = 0.0
    """Seconds from the later start until both could send."""
    completed: float = 0.0
    faults: list[str] = field(default_factory=list)


PATIENCE: Final = 60.0
"""Seconds that two agents may take to complete."""
LOOK: Final = 30.0
"""Seconds that are waited for the right pair."""
ROUNDS: Final = 4
"""How often."""
HEAVY: Final = 0.25
"""Share of the checks without an answer from which on it may stay with a relay."""
PACKETS: Final = 20
MOST_CHANGES: Final = 12
"""Of the pair of one component in one generation."""


def play(plan: Plan, *, trace: bool = False) -> tuple[Outcome, Meeting]:
    """Carry out one run."""
    meeting = Meeting(
        plan.a,
        plan.b,
        seed=Random(plan.seed + "world").getrandbits(32),
        link_a=plan.link_a,
        link_b=plan.link_b,
        signalling=plan.signalling,
        controlling=plan.controlling,
        config=Config(tcp=plan.tcp, components=plan.components),
        trace=trace,
    )
    outcome = Outcome(plan)
    world = meeting.world
    meeting.start(later=plan.later)
    started = world.now + round(plan.later * SECOND)
    ended = (AgentState.CONNECTED, AgentState.COMPLETED, AgentState.FAILED)
    if meeting.run(lambda: meeting.both(*ended), PATIENCE):
        outcome.connected = (world.now - started) / SECOND
    if not meeting.run(meeting.settled, PATIENCE):
        states = " and ".join(str(party.agent.state) for party in meeting.parties)
        outcome.faults.append(f"no agreement after {PATIENCE:.0f} s: {states}")
        return outcome, meeting
    outcome.completed = (world.now - started) / SECOND
    for party in meeting.parties:
        if party.name in plan.restart:
            party.restart()
    generation = min(len(plan.restart), 1)
    if not meeting.run(lambda: meeting.settled() and meeting.generations() == {generation}):
        outcome.faults.append(f"no agreement {PATIENCE:.0f} s after a restart")
        return outcome, meeting
    direct = is_direct(plan.a, plan.b)
    for _ in range(ROUNDS):
        # With heavy loss a direct pair may seem dead for a while, and the relay alive.
        meeting.run(lambda: meeting.settled() and _direct(meeting) is direct, LOOK)
        meeting.run(world.now + 2 * SECOND)
        if meeting.settled() and _direct(meeting) is direct:
            break
    if not meeting.settled():
        outcome.faults.append("they agreed, and later did not")
        return outcome, meeting
    outcome.direct = _direct(meeting)
    if direct and not outcome.direct:
        outcome.avoided = plan.round_trip_loss > HEAVY and _could_be_direct(meeting)
        if not outcome.avoided:
            outcome.faults.append("not direct")
    elif outcome.direct and not direct:
        outcome.faults.append("direct where it cannot be")
    _talk(meeting, outcome)
    _look_back(meeting, outcome)
    return outcome, meeting


def _direct(meeting: Meeting) -> bool:
    return all(
        each is not None
        and not each.base.is_relayed
        and each.remote.type is not CandidateType.RELAYED
        and each.remote_address.host != SERVER_A
        for party in meeting.parties
        for each in (component.pair for component in party.agent.components)
    )


def _could_be_direct(meeting: Meeting) -> bool:
    return all(
        any(p.valid and p.is_direct and p.component == component.id for p in party.agent.pairs())
        for party in meeting.parties
        for component in party.agent.components
    )


def _talk(meeting: Meeting, outcome: Outcome) -> None:
    """Send packets both ways; those that are not lost arrive, once."""
    reliable = all(party.selected and party.selected.base.is_reliable for party in meeting.parties)
    for number in range(PACKETS):
        for party in meeting.parties:
            if not party.send(b"%s says %d" % (party.name.encode(), number)):
                outcome.faults.append(f"{party.name} cannot send")
                return
        meeting.run(meeting.world.now + 20 * MILLISECOND)
    meeting.run(meeting.world.now + 2 * SECOND)
    if reliable:  # where packets are lost below, they come late
        meeting.run(lambda: all(len(p.received) == PACKETS for p in meeting.parties), PATIENCE)
    # A relay's way is the sum of both links' at most.
    through = 1 - outcome.plan.round_trip_loss
    for party in meeting.parties:
        got = len(set(party.received))
        if got != len(party.received):
            outcome.faults.append(f"{party.name} got a packet twice")
        if got < PACKETS * through / 3 or (got < PACKETS and (reliable or through == 1)):
            outcome.faults.append(f"{party.name} got {got} of {PACKETS} packets")


def _look_back(meeting: Meeting, outcome: Outcome) -> None:
    for party in meeting.parties:
        if failed := party.told(Failed):
            outcome.faults.append(f"{party.name} failed on the way: {failed[0].why}")
        if party.told(Disconnected):
            outcome.faults.append(f"{party.name} was disconnected on the way")
        changes, plan = len(party.told(Selected)), outcome.plan
        if changes > MOST_CHANGES * plan.components * (2 if plan.restart else 1):
            outcome.faults.append(f"{party.name} changed its pair {changes} times")


# The command. -------------------------------------------------------------------------------------


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Draw the matrix of kinds: runs, how they connected, and the median time to connect."""
    cells: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        a, b = sorted((outcome.plan.a, outcome.plan.b), key=KINDS.index)
        cells[a, b].append(outcome)
    short = {"open": "open", "full-cone": "full", "restricted-cone": "restr.",
             "port-restricted-cone": "port-r.", "symmetric-sequential": "sym-seq",
             "symmetric": "symm."}  # fmt: skip
    yield " " * 9 + "".join(f"{short[kind]:>20}" for kind in KINDS)
    for row in KINDS:
        line = f"{short[row]:<9}"
        for column in KINDS:
            found = cells.get((row, column), [])
            if not found:
                line += " " * 20
                continue
            direct = sum(outcome.direct for outcome in found)
            bad = sum(bool(outcome.faults) for outcome in found)
            how = "direct" if direct * 2 > len(found) else "relay"
            times = sorted(outcome.connected for outcome in found)
            middle = times[len(times) // 2]
            line += f"{len(found) - bad}/{len(found)} {how} {middle:5.2f}s".rjust(20)
        yield line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the grid; 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="icegrid", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--replay", metavar="SEED/RUN", help="one run again, and its story")
    parser.add_argument("--show", type=int, default=20, help="failures to name (20)")
    options = parser.parse_args(arguments)
    if options.replay:
        plan = Plan.draw(options.replay)
        print(plan)
        outcome, meeting = play(plan)
        print("\n".join(meeting.story()))
        print(f"direct {outcome.direct}, connected {outcome.connected:.3f} s: {outcome.faults}")
        return bool(outcome.faults)
    began = time.perf_counter()
    outcomes: list[Outcome] = []
    last: deque[str] = deque(maxlen=1)
    for number in range(options.runs):
        plan = Plan.draw(f"{options.seed}/{number}")
        try:
            outcome, _ = play(plan)
        except Exception as error:  # a crash is a failure with a seed like any other
            outcome = Outcome(plan, faults=[f"{type(error).__name__}: {error}"])
        outcomes.append(outcome)
        if sys.stderr.isatty() and number % 50 == 0:
            last.append(f"\r{number}/{options.runs}")
            print(last[0], end="", file=sys.stderr, flush=True)
    print("\n".join(table(outcomes)))
    bad = [outcome for outcome in outcomes if outcome.faults]
    for outcome in bad[: options.show]:
        print(f"{outcome.plan.seed}: {'; '.join(outcome.faults)}\n    {outcome.plan}")
    kinds = Counter(fault for outcome in bad for fault in outcome.faults)
    for fault, number in kinds.most_common(10):
        print(f"{number:6}  {fault}")
    spent = time.perf_counter() - began
    print(
        f"{len(outcomes) - len(bad)} of {len(outcomes)} runs as promised, "
        f"{sum(outcome.direct for outcome in outcomes)} direct, "
        f"{sum(outcome.avoided for outcome in outcomes)} kept to a relay by loss; {spent:.0f} s"
    )
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
