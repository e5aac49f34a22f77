"""The ways to the peer: attempts are made, answered, and made again when one has ended.

Theory of operation.  Attempts at a way are numbered.  Either side may begin one by telling its
number and credentials; the other one joins it if the number is greater than that of its own, and
leaves its own for it.  Two that begin the same number at once have begun one attempt.  So nobody
needs to be asked, and a message that comes late names an attempt that is over.

The *first* side (the two have agreed on who that is) begins again after a pause when an attempt has
failed.  When a way that has carried octets is lost, whoever notices begins again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from ice.connection import Connection
from ice.errors import IceError
from ice.link.attempt import Attempt, Offer, Tell, read_key, read_offer
from ice.link.carrier import Carrier, CarrierFailed
from ice.link.config import LinkConfig, Way
from ice.link.events import LinkEvent, NotDirect, Trying
from ice.link.planner import Planner
from ice.link.recipes import Recipe, plain
from ice.servers import ServerLike

FRESH: Final = 20.0
"""Seconds after which what was gathered is gathered again: a NAT keeps no mapping much longer."""
EARLY: Final = 64
"""Candidates that are kept for an attempt whose beginning has not been told yet."""
AT_ONCE: Final = 0.05
"""Seconds after which the first side begins again when a way is lost."""
AFTER_THE_PEER: Final = 0.6
"""Seconds that the other side leaves it for that."""

SPARE: Final = 15.0
"""Seconds after which a relay is tried again at the latest: it costs little, and is what is fallen
back on."""

MakeCarrier = Callable[[Attempt, Connection], Carrier]
Carry = Callable[[Attempt, Carrier], Awaitable[None]]


class Seeker:
    """What is known of one way.  ``attempt`` is the current one."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.number = -1
        self.attempt: Attempt | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.failures = 0
        self.declined = ""
        """Why the peer does not want this way."""
        self.verdict = ""
        """What became of the last attempt."""
        self.early: list[tuple[int, str]] = []

    def rest(self) -> None:
        """Begin nothing by itself."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Ways:
    """Every way of a link.

    ``tell`` takes messages for the peer.  ``make_carrier`` makes what runs over a connection;
    ``carry`` has it shake hands and uses it, and raises :class:`CarrierFailed` when it is over.
    ``planner`` chooses how the next attempt is made.  ``renew`` is awaited before another attempt
    at the relay, and may change ``servers``.  ``rtt`` is the round trip to the peer in seconds, as
    far as it is known.
    """

    def __init__(
        self,
        config: LinkConfig,
        servers: Mapping[Way, Sequence[ServerLike]],
        *,
        tell: Tell,
        make_carrier: MakeCarrier,
        carry: Carry,
        on_event: Callable[[LinkEvent], None],
        planner: Planner,
        renew: Callable[[], Awaitable[None]],
        rtt: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._config = config
        self._servers = servers
        self._tell = tell
        self._make_carrier = make_carrier
        self._carry = carry
        self._on_event = on_event
        self._planner = planner
        self._renew = renew
        self._rtt = rtt
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._seekers = {way: Seeker(way) for way in config.ways if servers.get(way) is not None}
        self._first = False
        self._met = self._closed = False
        self.refusals: Counter[str] = Counter()
        """Messages of the peer that were of no use, by why."""

    def serve(self, servers: Mapping[Way, Sequence[ServerLike]]) -> None:
        """Use these servers from the next attempt on."""
        self._servers = {**self._servers, **servers}

    # Beginning. -----------------------------------------------------------------------------------

    def gather(self) -> None:
        """Begin to look for candidates before the peer is there."""
        for seeker in self._seekers.values():
            self._make(seeker, 0, plain(seeker.way))

    def meet(self, *, first: bool) -> list[dict[str, Any]]:
        """Take note that the peer is there; what it is to be told of each way's first attempt."""
        self._first = first
        self._met = True
        offers = []
        for seeker in self._seekers.values():
            attempt = seeker.attempt
            stale = attempt is not None and self._loop.time() - attempt.began > FRESH
            if attempt is None or (stale and seeker.way is not Way.RELAY):
                attempt = self._make(seeker, 0, plain(seeker.way))
            offers.append(attempt.offer())
            self._run(seeker, attempt)
        return offers

    def begin_again(self) -> None:
        """Begin an attempt at every way that has none under way which carries."""
        for seeker in self._seekers.values():
            self._begin(seeker)

    def plan(self) -> None:
        """Go over to the plan, where a way is sought by something else."""
        for seeker in self._seekers.values():
            attempt = seeker.attempt
            if attempt is not None and attempt.carried:
                continue
            hopeless = self._planner.hopeless(seeker.way)
            if hopeless:
                seeker.verdict = hopeless
            elif self._first and self._planner.begins_otherwise(seeker.way):
                seeker.failures = 0
                self._begin(seeker)

    # What the peer tells. -------------------------------------------------------------------------

    def take(self, message: Mapping[str, Any]) -> None:
        """Take a message of the peer: an attempt, a candidate, or that it does not want a way."""
        try:
            match message.get("type"):
                case "attempt":
                    self._take_offer(read_offer(message))
                case "candidate":
                    way, number = read_key(message)
                    self._take_candidate(way, number, str(message.get("candidate")))
                case "decline":
                    way, number = read_key(message)
                    self._take_refusal(way, str(message.get("why"))[:200])
                case other:
                    self.refusals[f"unknown: {str(other)[:32]}"] += 1
        except (ValueError, TypeError) as wrong:
            self.refusals[f"malformed: {str(wrong)[:80]}"] += 1

    @property
    def hopeless(self) -> bool:
        """Whether the peer wants none of the ways that this side may use."""
        return self._met and all(seeker.declined for seeker in self._seekers.values())

    def _take_offer(self, offer: Offer) -> None:
        seeker = self._seekers.get(offer.way)
        if seeker is None or self._closed:
            self._tell(
                {
                    "type": "decline",
                    "way": offer.way,
                    "number": offer.number,
                    "why": "not allowed here"
                    if offer.way not in self._config.ways
                    else "no server",
                }
            )
            return
        if offer.number < seeker.number:
            self.refusals["an attempt that is over"] += 1
            return
        attempt = seeker.attempt
        if attempt is not None and offer.number == seeker.number:
            self._spawn(self._answer(seeker, attempt, offer, 0.0))
        elif offer.way is Way.RELAY:
            self._spawn(self._join_renewed(seeker, offer))
        else:
            self._join(seeker, offer)

    def _join(self, seeker: Seeker, offer: Offer) -> None:
        """Take part in an attempt that the peer has begun."""
        recipe = self._planner.follow(offer.way, offer.step, offer.strategy)
        attempt = self._make(seeker, offer.number, recipe)
        self._tell(attempt.offer())
        self._run(seeker, attempt)
        # The peer begins when it has that answer, and this side then.
        self._spawn(self._answer(seeker, attempt, offer, self._rtt() / 2))

    async def _join_renewed(self, seeker: Seeker, offer: Offer) -> None:
        await self._renew()
        if self._closed:
            return
        if seeker.attempt is None or offer.number > seeker.number:
            self._join(seeker, offer)
        elif offer.number == seeker.number:
            await self._answer(seeker, seeker.attempt, offer, 0.0)

    async def _answer(self, seeker: Seeker, attempt: Attempt, offer: Offer, delay: float) -> None:
        with suppress(IceError):  # it has just been closed
            await attempt.answer(offer, controlling=self._first, delay=delay)
            early, seeker.early = seeker.early, []
            for number, candidate in early:
                if number == attempt.number:
                    await attempt.add(candidate)

    def _take_candidate(self, way: Way, number: int, candidate: str) -> None:
        seeker = self._seekers.get(way)
        if seeker is None or number < seeker.number:
            self.refusals["a candidate of an attempt that is over"] += 1
        elif seeker.attempt is not None and number == seeker.number and seeker.attempt.answered:
            self._spawn(self._add(seeker.attempt, candidate))
        elif len(seeker.early) < EARLY:
            seeker.early.append((number, candidate))
        else:
            self.refusals["too many candidates of an attempt that has not begun"] += 1

    async def _add(self, attempt: Attempt, candidate: str) -> None:
        with suppress(IceError):
            await attempt.add(candidate)

    def _take_refusal(self, way: Way, why: str) -> None:
        seeker = self._seekers.get(way)
        if seeker is not None:
            seeker.declined = seeker.verdict = f"the peer does not want it: {why}"
            self._leave(seeker)

    # Attempts. ------------------------------------------------------------------------------------

    def _make(self, seeker: Seeker, number: int, recipe: Recipe) -> Attempt:
        self._leave(seeker)
        seeker.number = number
        seeker.attempt = attempt = Attempt(
            seeker.way,
            number,
            self._config.ice,
            self._servers[seeker.way],
            tell=self._tell,
            recipe=recipe,
        )
        attempt.gather()
        return attempt

    def _leave(self, seeker: Seeker) -> None:
        """End the current attempt, if there is one."""
        seeker.rest()
        attempt, seeker.attempt = seeker.attempt, None
        task, seeker.task = seeker.task, None
        if task is not None:
            task.cancel()  # which closes the attempt
        elif attempt is not None:
            self._spawn(attempt.close())

    def _run(self, seeker: Seeker, attempt: Attempt) -> None:
        if seeker.way is not Way.RELAY:
            why = attempt.recipe.why
            self._on_event(Trying(attempt.transport, attempt.strategy, attempt.number, why))
        seeker.task = self._spawn(self._life(seeker, attempt))

    def _begin(self, seeker: Seeker) -> None:
        """Begin an attempt from this side."""
        seeker.rest()
        if self._closed or not self._met or seeker.declined:
            return
        if seeker.way is Way.RELAY:
            self._spawn(self._begin_renewed(seeker))
        else:
            self._begin_now(seeker)

    async def _begin_renewed(self, seeker: Seeker) -> None:
        number = seeker.number
        await self._renew()
        if not self._closed and seeker.number == number:
            self._begin_now(seeker)

    def _begin_now(self, seeker: Seeker) -> None:
        recipe = self._planner.recipe(seeker.way, seeker.failures)
        attempt = self._make(seeker, seeker.number + 1, recipe)
        self._tell(attempt.offer())
        self._run(seeker, attempt)

    async def _life(self, seeker: Seeker, attempt: Attempt) -> None:
        why = "it has ended"
        try:
            connection = await attempt.connect()
            await self._carry(attempt, self._make_carrier(attempt, connection))
        except (IceError, CarrierFailed) as error:
            why = str(error).partition("\n")[0]
            if not attempt.answered:
                why = "the peer did not take part"
        finally:
            await attempt.close()
        if seeker.attempt is attempt:
            seeker.attempt = seeker.task = None
            self._ended(seeker, attempt, why)

    def _ended(self, seeker: Seeker, attempt: Attempt, why: str) -> None:
        hopeless = "" if attempt.carried else self._planner.hopeless(seeker.way)
        seeker.verdict = why = hopeless or why
        pause: float | None
        if attempt.carried:
            seeker.failures = 0
            pause = AT_ONCE if self._first else AFTER_THE_PEER
        else:
            seeker.failures += 1
            pause = self._planner.pause(seeker.way, seeker.failures) if self._first else None
            if pause is not None and seeker.way is Way.RELAY:
                pause = min(pause, SPARE)
        if not attempt.carried and seeker.way is not Way.RELAY:
            transport = attempt.transport
            self._on_event(NotDirect(transport, attempt.strategy, attempt.number, why, pause))
        if pause is not None and not self._closed:
            seeker.timer = self._loop.call_later(pause, self._begin, seeker)

    # Words, and the end. --------------------------------------------------------------------------

    def verdicts(self) -> list[str]:
        """Say of each way what became of it, a sentence each."""
        found = []
        for way, seeker in self._seekers.items():
            attempt = seeker.attempt
            text = seeker.verdict or (attempt.verdict() if attempt is not None else "not tried")
            found.append(f"{_NAMES[way]}: {text}")
        return found

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def stop(self) -> None:
        """Begin no attempt any more."""
        self._closed = True
        for seeker in self._seekers.values():
            seeker.rest()

    async def close(self) -> None:
        """End every attempt."""
        self.stop()
        for seeker in self._seekers.values():
            self._leave(seeker)
        while self._tasks:
            await asyncio.wait(self._tasks)


_NAMES: Final = {
    Way.RELAY: "through a relay",
    Way.UDP: "directly over UDP",
    Way.TCP: "directly over TCP",
}
