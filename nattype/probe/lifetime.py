"""How long an idle mapping lives (RFC 5780 section 4.6).

Theory of operation.  Socket X makes a mapping and falls silent.  After T seconds a fresh socket Y
asks the server to answer to X's external port (RESPONSE-PORT).  Does the answer reach X?  X is
spent afterwards, so every T has an X of its own and many T wait side by side: a ladder of growing T
first, then, within the bracket it leaves, a few at a time until the bracket is narrow.  The whole
costs about two or three times the lifetime found.

Linux and what is made of it have two lifetimes, one until packets went both ways for over two
seconds and a longer one afterwards; both are measured at once.

A silence counts only if Y can make the server reach a mapping that is certainly alive, made that
moment: servers limit the rate of RESPONSE-PORT, and those that lack it stay silent or refuse.
"""

from __future__ import annotations

from nattype.observations import LifetimeTrial
from nattype.probe.requests import UdpSocket
from nattype.probe.session import Session
from stun.sansio import MILLISECOND, SECOND, Address, Instant

LADDER = (2, 3, 4, 5, 7, 9, 12, 15, 20, 26, 34, 44, 57, 74, 96, 125, 162, 211, 274, 356, 463, 602)
"""Idle seconds tried at once; each is about 1.3 times the one before."""
_POINTS = 3
"""Idle times tried side by side within a bracket."""
_NARROW = 0.05
_STREAM_FOR = 2_600 * MILLISECOND
"""Linux calls a UDP flow a stream once it has gone both ways for two seconds."""
_STREAM_STEP = 400 * MILLISECOND
_OVERHEAD = 6.0
"""Seconds a trial takes besides its idle time, at most."""


class LifetimeTests:
    """The two searches of one family."""

    def __init__(self, session: Session, server: Address, until: Instant) -> None:
        self.session = session
        self.server = server
        self.until = until
        self.strands = session.strands
        self.bench = session.bench

    async def run(self) -> None:
        """Measure both lifetimes, within the time there is."""
        # A mapping made this moment is alive; if the server cannot show that, it shows nothing.
        control = await self._trial(False, 0.0)
        if control.alive:
            await self.strands.gather([self._search(False), self._search(True)])
        self.session.step("UDP mapping lifetime")

    def _left(self) -> float:
        return (self.until - self.strands.now) / SECOND

    async def _search(self, stream: bool) -> None:
        alive, dead = 0.0, None
        points = [float(t) for t in LADDER if t + _OVERHEAD <= self._left()]
        while points:
            alive, dead = await self._side_by_side(stream, points, alive, dead)
            if dead is None or dead - alive <= max(1.0, _NARROW * dead):
                return
            width = (dead - alive) / (_POINTS + 1)
            points = [
                t
                for n in range(1, _POINTS + 1)
                if (t := round(alive + n * width, 1)) + _OVERHEAD <= self._left()
            ]

    async def _side_by_side(
        self, stream: bool, points: list[float], alive: float, dead: float | None
    ) -> tuple[float, float | None]:
        trials = [self.strands.spawn(self._trial(stream, point), awaited=True) for point in points]
        try:
            for trial in trials:
                result = await trial
                if result.alive:
                    alive = max(alive, result.idle)
                elif result.alive is False:
                    # Whoever waits longer would find the same.
                    return alive, result.idle
        finally:
            for trial in trials:
                trial.cancel()
        return alive, dead

    async def _trial(self, stream: bool, idle: float) -> LifetimeTrial:
        began = self.strands.now - self.bench.started
        alive = await self._is_alive(stream, idle)
        trial = LifetimeTrial(stream, idle, alive, began)
        self.session.udp.lifetimes.append(trial)
        return trial

    async def _is_alive(self, stream: bool, idle: float) -> bool | None:
        patient = self.session.pace.patient
        x = await self.bench.udp()
        asked = await x.ask(self.server, patient)
        if stream:
            streaming_until = self.strands.now + _STREAM_FOR
            while self.strands.now < streaming_until:
                await self.strands.sleep(_STREAM_STEP)
                asked = await x.ask(self.server, patient)
        if not self.session.sound(asked) or asked.mapped is None:
            return None
        await self.strands.sleep(int(idle * SECOND))
        y = await self.bench.udp()
        here = await y.ask(self.server, patient)
        if here.mapped is None or here.mapped.host != asked.mapped.host:
            # The server answers to Y's external address, and X has another one.
            return None
        if here.mapped == asked.mapped:
            # X's external port was free to be given to Y.
            return False
        reached = await self._reaches(y, x, asked.mapped.port)
        if reached is not False:
            return reached
        z = await self.bench.udp()
        fresh = await z.ask(self.server, patient)
        if fresh.mapped is None or not await self._reaches(y, z, fresh.mapped.port):
            return None
        return False

    async def _reaches(self, asker: UdpSocket, target: UdpSocket, port: int) -> bool | None:
        """Whether an answer to ``port`` arrives at ``target``; ``None``: refused."""
        inquiry = asker.inquire(self.server, response_port=port, anywhere=True)
        await asker.walk(inquiry, self.session.pace.question, heed_icmp=False)
        result = inquiry.result(self.bench.started)
        if result.error is not None:
            return None
        return inquiry.packet is not None and inquiry.packet.local.port == target.local.port
