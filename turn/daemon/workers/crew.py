"""The workers as their supervisor has them: started, asked, replaced, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from stun.errors import StunError
from turn.daemon.beforehand import CannotStart
from turn.daemon.workers.bound import Bound
from turn.daemon.workers.figures import add_up, nothing, of_the_gone
from turn.daemon.workers.line import MOST_DESCRIPTORS, Line, pair
from turn.daemon.workers.orders import Birth, Figures, Orders
from turn.daemon.workers.shared import Shared

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

HUNG: Final = 30.0
"""Seconds after which a worker that gives no sign of life is killed."""
STARTING: Final = 60.0
"""Seconds that a worker may take to begin."""
PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a worker is replaced, by how many have died in a row."""
STEADY: Final = 30.0
"""Seconds after which a worker that dies is the first of a row again."""
ANSWER: Final = 60.0
"""Seconds that workers may take to answer."""
STOPPING: Final = 10.0
"""Seconds that they may take to stop."""


class NoAnswer(StunError):
    """A worker did not do what it was asked."""


class Member:
    """One worker's place, and whoever has it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: asyncio.subprocess.Process | None = None
        self.line: Line | None = None
        self.ready = False
        self.decided = asyncio.Event()
        """Set once it serves, or cannot."""
        self.problem = ""
        self.figures = nothing()
        self.heard = 0.0
        self.since = 0.0
        self.deaths = 0
        self.drained = False

    @property
    def pid(self) -> int | None:
        """Its process, while it has one."""
        return None if self.process is None else self.process.pid

    @property
    def serves(self) -> bool:
        """Whether it can be asked."""
        return self.ready and self.line is not None and not self.line.ended


class Crew:
    """All of them.  ``orders`` says what worker N is to be at this moment."""

    def __init__(
        self,
        births: Sequence[Birth],
        shared: Shared,
        bound: Bound,
        *,
        orders: Callable[[int], Orders],
        log: Callable[[], FilteringBoundLogger],
        on_drained: Callable[[], None],
    ) -> None:
        self._births = births
        self._shared = shared
        self._bound = bound
        self._orders = orders
        self._log = log
        self._on_drained = on_drained
        self.members = [Member(birth.number) for birth in births]
        self._mesh: dict[tuple[int, int], socket.socket] = {}
        """The end that the first number has of the line to the second."""
        for one in range(1, len(births) + 1):
            for other in range(one + 1, len(births) + 1):
                self._mesh[one, other], self._mesh[other, one] = pair()
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._idents = count(1)
        self._past = nothing()
        self.replaced = 0
        """Workers that died and were replaced."""
        self._stopping = asyncio.Event()
        self._started = False
        self._keepers: list[asyncio.Task[None]] = []

    # Their lives. ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all of them, and wait until they serve.

        Raises :class:`turn.daemon.beforehand.CannotStart` if one cannot; the rest are to be
        stopped.
        """
        self._keepers = [asyncio.create_task(self._keep(member)) for member in self.members]
        with suppress(TimeoutError):
            async with asyncio.timeout(STARTING):
                await asyncio.gather(*(member.decided.wait() for member in self.members))
        problems = dict.fromkeys(member.problem for member in self.members if member.problem)
        if not all(member.serves for member in self.members):
            raise CannotStart("\n".join(problems) or "a worker does not begin to serve")
        self._started = True

    async def watch(self) -> None:
        """Wait for what must not happen: that keeping one of them fails."""
        await asyncio.gather(*self._keepers)

    async def _keep(self, member: Member) -> None:
        """Have somebody in a place, until all stop."""
        while not self._stopping.is_set():
            await self._live(member)
            if self._stopping.is_set():
                return
            if not self._started:
                member.problem = member.problem or (
                    f"worker {member.number} ended before it served ({_end(member)})"
                )
                member.decided.set()
                return
            self._bury(member)
            pause = PAUSES[min(member.deaths, len(PAUSES) - 1)]
            member.deaths += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _live(self, member: Member) -> None:
        """Start a worker and see it through to its end."""
        ours, theirs = pair()
        member.line = Line(ours, lambda value, _: self._heard(member, value))
        member.ready = False
        member.drained = False
        member.figures = nothing()
        environment = {name: value for name, value in os.environ.items() if name not in _SYSTEMD}
        # It is to find the very modules that this process has found.
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        try:
            with theirs:
                member.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # not whatever lies where turnd was started
                    "-m",
                    "turn.daemon.workers",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    # What a terminal sends to all is for the supervisor.
                    start_new_session=True,
                )
        except OSError as error:
            member.line.close()
            member.problem = f"worker {member.number} cannot be started: {error.strerror}"
            self._log().error(member.problem)
            return
        member.since = member.heard = time.monotonic()
        self._equip(member, member.line)
        member.line.start()
        if self._stopping.is_set():  # while it was being started
            member.line.send(("stop",))
        try:
            await self._attend(member, member.process)
        finally:
            member.line.close()
            if member.process.returncode is None:
                with suppress(ProcessLookupError):
                    member.process.kill()
                await member.process.wait()

    def _equip(self, member: Member, line: Line) -> None:
        number = member.number
        line.send(("memory",), [self._shared.memory.fd])
        others = [one.number for one in self.members if one is not member]
        line.send(("mesh", others), [self._mesh[number, one].fileno() for one in others])
        self._give(line, self._bound.of(number))
        line.send(("begin", self._births[number - 1], self._orders(number)))

    def _give(self, line: Line, sockets: Mapping[Any, int]) -> None:
        keys = list(sockets)
        for at in range(0, len(keys), MOST_DESCRIPTORS):
            part = keys[at : at + MOST_DESCRIPTORS]
            line.send(("sockets", part), [sockets[key] for key in part])

    async def _attend(self, member: Member, process: asyncio.subprocess.Process) -> None:
        """Wait for the end of a worker; make it come if it hangs."""
        ended = asyncio.ensure_future(process.wait())
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=HUNG / 6)
                patience = HUNG if member.ready else STARTING
                if not ended.done() and time.monotonic() - member.heard > patience:
                    self._log().error(
                        "a worker gives no sign of life and is killed",
                        worker=member.number,
                        seconds=round(patience),
                    )
                    process.kill()
        finally:
            ended.cancel()

    def _bury(self, member: Member) -> None:
        """Take what a dead worker had out of what all share, and tell whoever is concerned."""
        lost = member.figures.metrics.allocations
        if time.monotonic() - member.since > STEADY:
            member.deaths = 0
        self.replaced += 1
        self._past = add_up([self._past, of_the_gone(member.figures)])
        member.figures = nothing()
        member.ready = False
        with self._shared.memory:
            self._shared.accounts.clear(member.number)
            self._shared.openings.clear(member.number)
        self._log().error(
            "a worker has ended, and another takes its place",
            worker=member.number,
            how=_end(member),
            allocations_lost=lost,
        )
        self._tell_others(member, "lost")

    def _tell_others(self, member: Member, what: str) -> None:
        for other in self.members:
            if other is not member and other.line is not None:
                other.line.send((what, member.number))

    async def stop(self) -> None:
        """Have all of them end their allocations and stop."""
        self._stopping.set()
        for member in self.members:
            if member.line is not None and not member.line.ended:
                member.line.send(("stop",))
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=STOPPING)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for end in self._mesh.values():
            end.close()
        self._mesh.clear()

    # What they say. -------------------------------------------------------------------------------

    def _heard(self, member: Member, value: Any) -> None:
        member.heard = time.monotonic()
        match value:
            case ("beat", figures):
                member.figures = figures
            case ("ready", _):
                member.ready = True
                member.decided.set()
                if self._started:
                    self._log().info("a worker serves in its place", worker=member.number)
                    self._tell_others(member, "there")
            case ("cannot", text):
                member.problem = text
                self._log().error("a worker cannot serve", worker=member.number, problem=text)
            case ("answer", ident, result, problem):
                question = self._questions.pop(ident, None)
                if question is not None and not question.done():
                    if problem:
                        question.set_exception(NoAnswer(problem))
                    else:
                        question.set_result(result)
            case ("drained",):
                member.drained = True
                if all(one.drained for one in self.members):
                    self._on_drained()

    # What they are told. --------------------------------------------------------------------------

    async def ask(self, member: Member, *message: Any) -> Any:
        """Have a worker do something; return what it answers.

        ``message`` is its kind and what goes behind the question's number.  Raises ``StunError``.
        """
        line = member.line
        if line is None or not member.serves:
            raise NoAnswer(f"worker {member.number} does not serve at the moment")
        ident = next(self._idents)
        question = self._questions[ident] = asyncio.get_running_loop().create_future()
        line.send((message[0], ident, *message[1:]))
        assert member.process is not None
        gone = asyncio.ensure_future(member.process.wait())
        try:
            await asyncio.wait({question, gone}, timeout=ANSWER, return_when="FIRST_COMPLETED")
            if not question.done():
                raise NoAnswer(f"worker {member.number} does not answer")
            return question.result()
        finally:
            gone.cancel()
            self._questions.pop(ident, None)

    async def ask_all(self, command: str, request: Mapping[str, Any]) -> list[tuple[int, Any]]:
        """Have all that serve do something; return their numbers and answers.

        One that dies over it has nothing to say.  Raises what one of them objects.
        """
        serving = [member for member in self.members if member.serves]
        asked = {**request, "command": command}
        answers = await asyncio.gather(
            *(self.ask(member, "ask", asked) for member in serving), return_exceptions=True
        )
        found = []
        for member, answer in zip(serving, answers, strict=True):
            if isinstance(answer, BaseException):
                if member.serves:
                    raise answer
                continue
            found.append((member.number, answer))
        return found

    def give_all(self, keys: Sequence[Any]) -> None:
        """Give sockets that are new to all of them."""
        for member in self.members:
            if member.line is not None and keys:
                self._give(member.line, self._bound.of(member.number, keys))

    def take_back(self, keys: Iterable[Any]) -> None:
        """Have sockets closed that were given and are not wanted after all."""
        for member in self.members:
            if member.line is not None:
                member.line.send(("forget", list(keys)))

    def order_all(self) -> None:
        """Tell all of them what they are to be now."""
        for member in self.members:
            if member.line is not None:
                member.line.send(("orders", self._orders(member.number)))

    # What they count. -----------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Ask for all figures anew; one that does not answer has those that it sent last."""
        for number, figures in await self.ask_all("figures", {}):
            self.members[number - 1].figures = figures

    def figures(self) -> Figures:
        """Return what they have sent last, and what those counted that are gone."""
        return add_up([self._past, *(member.figures for member in self.members)])


_SYSTEMD = {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}
"""The supervisor alone speaks with it."""


def _end(member: Member) -> str:
    """Say how a worker ended."""
    code = None if member.process is None else member.process.returncode
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
