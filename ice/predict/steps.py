"""A plan as values: what each side does, one step after the other.

A :class:`Step` has two moves (:class:`Move`), this side's and the peer's.  The plan that the peer
makes from the same two summaries is the same one seen from there: :meth:`Plan.mirrored`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from ice.predict.ports import POOL
from ice.predict.summary import Family, Transport
from stun.errors import UsageError


class Strategy(StrEnum):
    """What one side does in a step."""

    PLAIN = "plain"
    """Ordinary checks; over TCP simultaneous open, with a new socket at once after a refusal."""
    LOW_TTL = "low TTL"
    """The same, but what is sent first opens this side's NAT and dies before the peer's."""
    OPEN_THEN_LISTEN = "open, then listen"
    """Dial any port of the peer's address once, then listen (TCP)."""
    DIAL_IN = "dial in"
    """Dial the one who has opened and listens (TCP)."""
    PREDICT = "prediction"
    """Foretell the ports of a NAT that counts."""
    BIRTHDAY_SOCKETS = "birthday, many sockets"
    """Open many sockets, each with a mapping that the peer may hit."""
    BIRTHDAY_PROBES = "birthday, many probes"
    """Send from one socket to many ports of the peer's address."""
    RELAY = "relay"
    """Seek no direct way: stay on the relay."""

    @property
    def counterpart(self) -> Strategy:
        """What the peer does meanwhile, unless the step says otherwise."""
        return _COUNTERPARTS.get(self, self)


_COUNTERPARTS: Final = {
    Strategy.OPEN_THEN_LISTEN: Strategy.DIAL_IN,
    Strategy.DIAL_IN: Strategy.OPEN_THEN_LISTEN,
    Strategy.BIRTHDAY_SOCKETS: Strategy.BIRTHDAY_PROBES,
    Strategy.BIRTHDAY_PROBES: Strategy.BIRTHDAY_SOCKETS,
}

MOST_PACKETS: Final = 131_072
MOST_SOCKETS: Final = 1024
MOST_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What guessing may cost one side in one step.  Raises :class:`stun.errors.UsageError`.

    ``packets``: datagrams, or SYNs, beyond what plain ICE sends.  ``sockets``: how many may be
    open for it at once.  ``seconds``: how long one step may last.
    """

    packets: int = 2048
    sockets: int = 256
    seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.packets <= MOST_PACKETS:
            raise UsageError(f"a budget of {self.packets} packets: 0 to {MOST_PACKETS}")
        if not 1 <= self.sockets <= MOST_SOCKETS:
            raise UsageError(f"a budget of {self.sockets} sockets: 1 to {MOST_SOCKETS}")
        if not 0 < self.seconds <= MOST_SECONDS:
            raise UsageError(f"a budget of {self.seconds} seconds: up to {MOST_SECONDS:g}")

    def meet(self, other: Budget) -> Budget:
        """Return what both sides can afford."""
        return Budget(
            min(self.packets, other.packets),
            min(self.sockets, other.sockets),
            min(self.seconds, other.seconds),
        )


@dataclass(frozen=True, slots=True)
class Move:
    """What one side does.

    ``offsets``: where this side expects its own mappings, as distances from the external port that
    it was given last; each is a candidate to tell the peer.  ``sockets``: fresh sockets to open,
    each of which sends to every candidate of the peer's that the step is about; 0: the usual one.
    ``probes``: ports of the peer's address to send to from one socket, drawn from ``ports`` (first
    and last, both included) without repetition.  ``rate`` is packets per second, ``packets`` the
    bound on what the move sends beyond plain ICE.  ``ttl`` is the hop limit of what is sent first.
    ``after``: seconds from the common start until this side sends; what it foretells, it tells at
    once.
    """

    strategy: Strategy
    offsets: tuple[int, ...] = ()
    sockets: int = 0
    probes: int = 0
    ports: tuple[int, int] = (POOL[0], POOL[-1])
    rate: int = 0
    packets: int = 0
    ttl: int | None = None
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that both sides do at the same time.

    ``family``: the address family that it is about; ``None`` for all.  ``seconds``: how long it may
    take.  ``attempts``: how often it is worth making, each time with ports measured anew.
    ``chance``: of one attempt, 0 to 1, where it can be computed and the measurements are right.
    ``why``: one sentence for a person, the same on both sides.
    """

    mine: Move
    theirs: Move
    seconds: float
    why: str
    family: Family | None = None
    attempts: int = 1
    chance: float | None = None

    @property
    def strategy(self) -> Strategy:
        """What this side does."""
        return self.mine.strategy

    def mirrored(self) -> Step:
        """Return the same step as the peer sees it."""
        return replace(self, mine=self.theirs, theirs=self.mine)

    def __str__(self) -> str:
        mine, theirs = self.mine.strategy, self.theirs.strategy
        what = mine.value if mine is theirs else f"{mine.value} (peer: {theirs.value})"
        return f"{what}: {self.why}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order in which they are to be tried; the last one is always the relay."""

    transport: Transport
    steps: tuple[Step, ...]

    @property
    def direct(self) -> tuple[Step, ...]:
        """The steps that seek a direct way; none where the relay is all there is."""
        return tuple(step for step in self.steps if step.strategy is not Strategy.RELAY)

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """What this side does, step by step."""
        return tuple(step.strategy for step in self.steps)

    def mirrored(self) -> Plan:
        """Return the plan that the peer has."""
        return replace(self, steps=tuple(step.mirrored() for step in self.steps))

    def __str__(self) -> str:
        lines = (f"{n}. {step}" for n, step in enumerate(self.steps, 1))
        return "\n".join((f"over {self.transport.upper()}:", *lines))
