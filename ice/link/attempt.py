"""One attempt at one way to the peer: an ICE agent of its own, and what both sides tell of it.

A fresh agent for each attempt needs neither an ICE restart nor the peer's agreement on which
generation a candidate belongs to: the attempt's number says it all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ice.aio import Agent
from ice.candidate import Candidate, CandidateError
from ice.config import Config
from ice.connection import Connection
from ice.errors import IceError
from ice.events import AgentEvent, GatheringComplete, LocalCandidate
from ice.link.config import Way
from ice.link.events import Kind, Transport
from ice.link.recipes import TRANSPORTS, Recipe, agent_config, servers_for
from ice.predict.orders import ports_for, remotes_for, spread_for
from ice.servers import ServerLike
from ice.spread.order import Spread
from stun.errors import UsageError

MOST_CANDIDATES: Final = 128
"""Of the peer, in one message."""
MOST_NUMBER: Final = 1 << 32

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Offer:
    """What the peer has told of an attempt.  ``candidates``: those known so far."""

    way: Way
    number: int
    ufrag: str
    password: str
    candidates: tuple[str, ...]
    strategy: str
    step: int


def read_offer(message: Mapping[str, Any]) -> Offer:
    """Read a message "attempt".  Raises ``ValueError`` with what is wrong for one that is none."""
    candidates = message.get("candidates", [])
    if not isinstance(candidates, list) or len(candidates) > MOST_CANDIDATES:
        raise ValueError("the candidates are no list, or too many")
    step = message.get("step")
    if not isinstance(step, int):
        raise ValueError("the step is no number")
    way, number = read_key(message)
    return Offer(
        way,
        number,
        _text(message, "ufrag"),
        _text(message, "password"),
        tuple(str(candidate) for candidate in candidates),
        str(message.get("strategy"))[:32],
        max(step, -1),
    )


def read_key(message: Mapping[str, Any]) -> tuple[Way, int]:
    """Read which attempt a message belongs to.  Raises ``ValueError``."""
    number = message.get("number")
    if not isinstance(number, int) or not 0 <= number < MOST_NUMBER:
        raise ValueError(f"{number!r} is not the number of an attempt")
    return Way(str(message.get("way"))), number


def _text(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not 4 <= len(value) <= 256:
        raise ValueError(f"{key} is no text of 4 to 256 characters")
    return value


class Attempt:
    """One agent, from its first candidate to its end.

    ``tell`` takes messages for the peer.  Candidates are told once :meth:`offer` has been asked
    for; until then they are kept, so that gathering may begin before the peer is there.
    """

    def __init__(
        self,
        way: Way,
        number: int,
        config: Config,
        servers: Sequence[ServerLike],
        *,
        tell: Tell,
        recipe: Recipe,
    ) -> None:
        self.way = way
        self.number = number
        self.recipe = recipe
        self._loop = asyncio.get_running_loop()
        self.began = self._loop.time()
        self._answering = self._predicted = self._spreading = False
        self._told: list[Candidate] = []
        self._tell = tell
        self._offered = False
        self._refused: list[str] = []
        self.agent = Agent(
            controlling=False,
            servers=servers_for(recipe, servers),
            config=agent_config(way, config, recipe),
            on_event=self._take,
        )
        self.carried = False
        """Whether a carrier has run over it."""
        self.answered = False
        """Whether the agent knows the peer's credentials."""

    def gather(self) -> None:
        """Begin to look for candidates."""
        self.agent.gather()

    @property
    def strategy(self) -> str:
        """What this side does."""
        return self.recipe.strategy.value

    def _take(self, event: AgentEvent) -> None:
        if isinstance(event, GatheringComplete) and not self._predicted:
            # Where the next mapping will be follows from where the last one is.
            self._predicted = True
            self._loop.call_soon(self._predict)
        if isinstance(event, LocalCandidate) and self._offered:
            self._tell(
                {
                    "type": "candidate",
                    "way": self.way,
                    "number": self.number,
                    "candidate": event.candidate.to_sdp(),
                }
            )

    def _predict(self) -> None:
        recipe = self.recipe
        if recipe.step is None:
            return
        seen = self.agent.machine.mapped()
        ports = ports_for(recipe.step, TRANSPORTS[self.way], seen, recipe.path)
        if ports:
            with suppress(IceError):  # it has just been closed
                self.agent.predict(ports=ports)

    def offer(self) -> dict[str, Any]:
        """Return what the peer needs; candidates that are found later are told one by one."""
        self._offered = True
        return {
            "type": "attempt",
            "way": self.way,
            "number": self.number,
            "ufrag": self.agent.local_ufrag,
            "password": self.agent.local_pwd,
            "candidates": [each.to_sdp() for each in self.agent.local_candidates],
            "strategy": self.strategy,
            "step": self.recipe.place,
        }

    async def answer(self, offer: Offer, *, controlling: bool, delay: float = 0.0) -> None:
        """Take what the peer has told of its side, after ``delay`` seconds, and begin."""
        if self._answering:
            return
        self._answering = True
        step = self.recipe.step
        if step is not None and spread_for(step, TRANSPORTS[self.way]) is None:
            delay += step.mine.after
        await asyncio.sleep(delay)
        self.agent.take_role(controlling=controlling)
        self.agent.set_remote_credentials(offer.ufrag, offer.password)
        self.answered = True
        for text in offer.candidates:
            await self.add(text)
        self._spread()

    async def add(self, text: str) -> None:
        """Take a candidate of the peer; one that is none is remembered for :meth:`verdict`."""
        try:
            candidate = Candidate.from_sdp(text)
            await self.agent.add_remote_candidate(candidate)
        except (CandidateError, UsageError) as wrong:
            if len(self._refused) < MOST_CANDIDATES:
                self._refused.append(str(wrong))
        else:
            if self.recipe.step is not None and not self._spreading:
                self._told.append(candidate)
                self._spread()

    def _spread(self) -> None:
        """Order what the step wants beyond checks, once it is known where to, and from whom.

        Candidates that are told one by one may come before :meth:`answer` is through.
        """
        step = self.recipe.step
        if step is None or self._spreading or not self.answered:
            return
        transport = TRANSPORTS[self.way]
        order = spread_for(step, transport, remotes_for(step, transport, self._told))
        if order is not None and order.remotes:
            self._spreading = True
            self._loop.call_later(step.mine.after, self._order, order)

    def _order(self, order: Spread) -> None:
        with suppress(IceError):  # it has been closed meanwhile
            self.agent.spread(order)

    async def connect(self) -> Connection:
        """Wait for the way.  Raises :class:`ice.ConnectionFailed`."""
        return await self.agent.connect(self.recipe.seconds)

    @property
    def kind(self) -> Kind:
        """Whether it goes through a relay."""
        return "relay" if self.way is Way.RELAY else "direct"

    @property
    def transport(self) -> Transport:
        """What leaves this host."""
        if self.way is not Way.RELAY:
            return "tcp" if self.way is Way.TCP else "udp"
        pair = self.agent.connection().selected_pair
        return "tcp" if pair is not None and _is_by_tcp(pair.base.relay) else "udp"

    def endpoints(self) -> tuple[str, str, str]:
        """Return both transport addresses and this side's relay in words, empty without a pair."""
        pair = self.agent.connection().selected_pair
        if pair is None:
            return "", "", ""
        local = str((pair.mapped or pair.local).address)
        return local, str(pair.remote_address), pair.base.relay

    def verdict(self) -> str:
        """Say in a sentence what became of it."""
        text = self.agent.explain().verdict
        return (
            f"{text} ({len(self._refused)} of its candidates unusable)" if self._refused else text
        )

    async def close(self) -> None:
        """End it; what it has allocated is given back."""
        await self.agent.close()


def _is_by_tcp(relay: str) -> bool:
    return relay.startswith("turns:") or "transport=tcp" in relay
