"""How one attempt is made: which step of the plan it carries out, and what its agent is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ice.config import Config, Nomination, Policy
from ice.link.config import Way
from ice.predict.orders import config_for
from ice.predict.steps import Step, Strategy
from ice.predict.summary import NOTHING, PathSummary, Transport
from ice.servers import ServerLike

SECONDS: Final = {Way.RELAY: 15.0, Way.UDP: 10.0, Way.TCP: 10.0}
"""For how long an attempt without a plan goes on."""
TRANSPORTS: Final[dict[Way, Transport]] = {Way.UDP: "udp", Way.TCP: "tcp"}

_WITHOUT_GUESSES: Final = {
    Strategy.PLAIN,
    Strategy.LOW_TTL,
    Strategy.OPEN_THEN_LISTEN,
    Strategy.DIAL_IN,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one attempt is made from this side.

    ``step`` is in ``place`` of the plan, which both sides have; without a plan the attempt is a
    plain one.  ``path``: how this side's NAT behaves.  ``seconds``: for how long it may go on.
    """

    step: Step | None = None
    place: int = -1
    path: PathSummary = NOTHING
    seconds: float = 10.0

    @property
    def strategy(self) -> Strategy:
        """What this side does."""
        return Strategy.PLAIN if self.step is None else self.step.strategy

    @property
    def why(self) -> str:
        """Why, in a sentence; empty without a plan."""
        return "" if self.step is None else self.step.why


def plain(way: Way) -> Recipe:
    """Return what is done where nothing is known."""
    return Recipe(seconds=SECONDS[way])


def agent_config(way: Way, base: Config, recipe: Recipe) -> Config:
    """Return what the agent of an attempt is told."""
    # Each way has an agent of its own, so that none has another pair to go over to.
    base = replace(base, monitor=False, policy=Policy.ALL)
    if way is Way.RELAY:
        # Relayed transport addresses are UDP ones, also where the server is reached by TCP.
        # What passes before a check has proved the pair is a handshake, by which each side proves
        # itself; a relay passes nothing to a host that has not asked for it.
        return replace(base, policy=Policy.RELAY, udp=True, tcp=False, assume_relayed=True)
    if way is Way.TCP:
        # A carrier keeps to one connection, so it waits for the nomination.
        base = replace(
            base,
            simultaneous_open=max(base.simultaneous_open, 1),
            nomination=Nomination.FIRST,
        )
    transport = TRANSPORTS[way]
    if recipe.step is None:
        return replace(base, udp=transport == "udp", tcp=transport == "tcp")
    return config_for(recipe.step, transport, base)


def servers_for(recipe: Recipe, servers: Sequence[ServerLike]) -> Sequence[ServerLike]:
    """Return the servers to ask: each one more costs a NAT that counts one port more."""
    return servers if recipe.strategy in _WITHOUT_GUESSES else servers[:1]
