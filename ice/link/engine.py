"""The session at work: between the carriers below and the stream above, with a clock.

What comes of it is handed on by four callbacks: a way is used (``on_moved``), none is left
(``on_stranded``), the peer has told something (``on_signal``), it is over (``on_end``).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from ice.errors import ConnectionClosed, ConnectionLost
from ice.link.attempt import Attempt
from ice.link.carrier import Carrier, CarrierFailed
from ice.link.config import RANK, LinkConfig, Way
from ice.link.frames import MOST_SIGNAL, AbortCode
from ice.link.happenings import (
    Aborted,
    Data,
    Datagram,
    Eof,
    Finished,
    Moved,
    Recovered,
    Send,
    Signal,
    Stranded,
    Suspect,
    Writable,
)
from ice.link.session import Session
from ice.link.stream import LinkTransport
from stun.sansio import Instant

FAREWELL: Final = 2.0
"""Seconds that carriers get for what they keep, when the link ends."""
SILENCE: Final = 5.0
"""Seconds without an answer on any carrier after which another way is looked for."""
HOPE: Final = 4.0
"""Seconds that a carrier which does not answer is kept while another one does.  What it ran over
may be gone for good, as with a NAT that has been switched off and on, and a new attempt finds out;
waiting for consent to expire (RFC 7675 section 5.1) takes half a minute."""
MOST_DATAGRAMS: Final = 1024
"""Datagrams that wait for a reader; the newest are dropped, and counted, beyond."""


class Engine:
    """One session with its carriers.  ``told`` answers what the transport is asked about itself."""

    def __init__(
        self,
        config: LinkConfig,
        *,
        first: bool,
        told: Callable[[str], Any],
        on_moved: Callable[[Attempt, str, float | None], None],
        on_stranded: Callable[[], None],
        on_signal: Callable[[bytes], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        """What was dropped, in words for a person."""
        self.error: Exception | None = None
        """Why it has ended, unless both sides had finished."""
        self.over = False
        self._on_moved = on_moved
        self._on_stranded = on_stranded
        self._on_signal = on_signal
        self._on_end = on_end
        self._loop = loop = asyncio.get_running_loop()
        self._session = Session(
            controlling=first, window=config.window, congested=self._is_congested
        )
        self.transport = LinkTransport(self, loop, config.buffer, told)
        self._carriers: dict[int, tuple[Attempt, Carrier]] = {}
        self._ends: dict[int, asyncio.Future[None]] = {}
        """Of each carrier in use; set when it is lost, with the reason."""
        self._doubts: dict[int, asyncio.TimerHandle] = {}
        """When carriers that do not answer are given up."""
        self._next = 0
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._armed: Instant | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._datagrams: deque[bytes] = deque()
        self._reading: set[asyncio.Future[None]] = set()

    # Carriers. ------------------------------------------------------------------------------------

    async def carry(self, attempt: Attempt, carrier: Carrier) -> str:
        """Shake hands, use the carrier until it is lost, and return why it was.

        Raises :class:`CarrierFailed` when there was no handshake.
        """
        session = self._session
        number = self._next
        self._next += 1
        end: asyncio.Future[None] = self._loop.create_future()
        early: list[bytes] = []

        def take(data: bytes) -> None:
            session.received(number, data, self._now())
            self._pump()

        def relieved() -> None:
            session.relieved(number, self._now())
            self._pump()

        def lost(error: CarrierFailed) -> None:
            if not end.done():
                end.set_exception(error)

        carrier.on_lost, carrier.on_datagram = lost, self._take_datagram
        # The peer may be through with the handshake, and speak, before this side is.
        carrier.on_data = early.append
        try:
            await carrier.start()
            attempt.carried = True
            self._carriers[number] = attempt, carrier
            self._ends[number] = end
            session.attach(number, RANK[attempt.way], self._now())
            carrier.on_data, carrier.on_relief = take, relieved
            for data in early:
                session.received(number, data, self._now())
            self._pump()
            await end
        except CarrierFailed as error:
            if not attempt.carried:
                raise
            return str(error)
        finally:
            carrier.abort()
            if end.done():
                end.exception()
            self._ends.pop(number, None)
            self._believe(number)
            if self._carriers.pop(number, None) is not None:
                session.detach(number, "it is left", self._now())
                self._pump()
        return "it has ended"

    def _is_congested(self, number: int) -> bool:
        found = self._carriers.get(number)
        return found is None or found[1].congested

    # The session. ---------------------------------------------------------------------------------

    def _now(self) -> Instant:
        return int(self._loop.time() * 1e9)

    def _pump(self) -> None:
        """Take from the session what it has, and arm the timer."""
        if self._pumping:
            return
        session, transport, carriers = self._session, self.transport, self._carriers
        self._pumping = True
        try:
            while (output := session.poll()) is not None:
                match output:
                    case Send(number, data):
                        found = carriers.get(number)
                        if found is not None:
                            found[1].send(data)
                    case Data(data):
                        transport.feed(data)
                    case Writable():
                        transport.relieved()
                    case Eof():
                        transport.feed_eof()
                    case Signal(data):
                        self._on_signal(data)
                    case Datagram(data):
                        self._take_datagram(data)
                    case Moved(number, _, why):
                        self._moved(number, why)
                    case Suspect(number):
                        self._doubt(number)
                        self._look_around()
                    case Recovered(number):
                        self._believe(number)
                        self._look_around()
                    case Stranded():
                        self._on_stranded()
                    case Finished():
                        self.finish(None)
                    case Aborted(code, reason, by_peer):
                        who = "the peer" if by_peer else "this side"
                        self.finish(ConnectionLost(f"{who} ended it: {reason or f'code {code}'}"))
        finally:
            self._pumping = False
        self._arm()

    def _arm(self) -> None:
        due = None if self.over else self._session.deadline()
        if self._timer is not None:
            if due is not None and self._armed is not None and due >= self._armed:
                return  # it is looked at again when that has come
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._armed = due
            self._timer = self._loop.call_at(due / 1e9, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._session.on_deadline(max(self._now(), self._armed or 0))
        self._pump()

    def _moved(self, number: int, why: str) -> None:
        found = self._carriers.get(number)
        if found is not None:
            self._on_moved(found[0], why, self._session.rtt(number))

    def _doubt(self, number: int) -> None:
        """Give a carrier up if it does not answer soon."""
        self._believe(number)
        self._doubts[number] = self._loop.call_later(HOPE, self._give_up, number)

    def _believe(self, number: int) -> None:
        timer = self._doubts.pop(number, None)
        if timer is not None:
            timer.cancel()

    def _give_up(self, number: int) -> None:
        end = self._ends.get(number)
        if end is None or end.done():
            return
        if all(each.suspect for each in self._session.carriers()):
            self._doubt(number)  # it is not this one alone: they are all left if need be
            return
        end.set_exception(CarrierFailed(f"it did not answer for {HOPE:g} s, while another did"))

    def _look_around(self) -> None:
        """See whether any carrier answers; if none has for a while, it is as if there were none."""
        if any(not each.suspect for each in self._session.carriers()):
            if self._silence is not None:
                self._silence.cancel()
                self._silence = None
        elif self._silence is None:
            self._silence = self._loop.call_later(SILENCE, self._on_stranded)

    @property
    def rtt(self) -> float:
        """The round trip of the way that is used, in seconds; 0 where it is not known."""
        current = self._session.current
        found = None if current is None else self._session.rtt(current)
        return 0.0 if found is None else found

    def signal(self, data: bytes) -> bool:
        """Tell the peer something; false if it is too much, or too much waits to be told."""
        if len(data) > MOST_SIGNAL:
            return False
        told = self._session.signal(data, self._now())
        self._pump()
        return told

    # What the transport asks. ---------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Octets that may be written before the writer is to wait."""
        return self._session.room

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write octets."""
        self._session.write(data, self._now())
        current = self._session.current
        # A carrier that is congested tells when it is not.
        if current is None or not self._is_congested(current):
            self._pump()

    def write_eof(self) -> None:
        """End this direction."""
        self._session.write_eof(self._now())
        self._pump()

    def consumed(self, octets: int) -> None:
        """Take note that the reader has room for so many more."""
        self._session.consumed(octets, self._now())
        self._pump()

    def close(self) -> None:
        """End both directions, after what has been written."""
        self._session.close(self._now())
        self._pump()

    def abort(self, reason: str = "aborted") -> None:
        """End at once."""
        if not self.over:
            self._session.abort(AbortCode.APPLICATION, reason, self._now())
            self._pump()

    # Datagrams. -----------------------------------------------------------------------------------

    def send_datagram(self, data: bytes) -> bool:
        """Send a datagram, which may get lost; whether there was a way for it."""
        if self.over:
            return False
        # The most direct way that has datagrams; none is worth leaving a direct way for.
        able = {
            attempt.way: carrier
            for attempt, carrier in self._carriers.values()
            if len(data) <= carrier.most_datagram
        }
        direct = any(attempt.way is not Way.RELAY for attempt, _ in self._carriers.values())
        best = able.get(Way.UDP) or (None if direct else able.get(Way.RELAY))
        if best is not None:
            return best.send_datagram(data)
        sent = self._session.send_datagram(data, self._now())
        self._pump()
        return sent

    async def datagram(self) -> bytes:
        """Wait for the next datagram.  Raises :class:`ice.ConnectionClosed` when it is over."""
        while not self._datagrams:
            if self.over:
                raise self.error or ConnectionClosed("the link has ended")
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._reading.add(waiter)
            try:
                await waiter
            finally:
                self._reading.discard(waiter)
        return self._datagrams.popleft()

    def _take_datagram(self, data: bytes) -> None:
        if len(self._datagrams) >= MOST_DATAGRAMS:
            self.counters["datagrams dropped: nobody took the ones before"] += 1
            return
        self._datagrams.append(data)
        self._wake()

    def _wake(self) -> None:
        for waiter in self._reading:
            if not waiter.done():
                waiter.set_result(None)

    # The end. -------------------------------------------------------------------------------------

    def finish(self, error: Exception | None) -> None:
        """Tell everybody that it is over."""
        if self.over:
            return
        self.over = True
        self.error = error
        self.transport.lost(error)
        self._wake()
        self._on_end(error)

    async def close_carriers(self) -> None:
        """Let the carriers send what they keep, for a moment."""
        for timer in (self._timer, self._silence, *self._doubts.values()):
            if timer is not None:
                timer.cancel()
        self._doubts.clear()
        closing = [asyncio.ensure_future(each.close()) for _, each in self._carriers.values()]
        if closing:
            await asyncio.wait(closing, timeout=FAREWELL)
