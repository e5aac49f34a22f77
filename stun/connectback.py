"""Dialling back: what a client needs to learn how its NAT treats TCP connections from outside.

Theory of operation.  RFC 5780 can tell how UDP is filtered, because a server may answer from
another address; over TCP "STUN forbids a server from creating a new TCP or TCP/TLS connection to
the client" (RFC 5780 section 3).  natkit departs from that with an attribute of its own,
CONNECT-BACK, and only so far:

* the server dials the source of the connection that the request came over, and nothing else.  That
  source is proven: it completed a handshake;
* at most :data:`MOST_DIALS` dials a request, :data:`SPACING` apart, one request a connection at a
  time, a budget a source, and a limit on all that go on at once;
* when the connection is closed, everything that goes on for it is abandoned.

A job goes through dials; each is decided once, as a connection, a refusal, an ICMP error, silence
for the time that the client asked for, or anything else.  When all are decided the counts are told
in a Binding indication over the connection that asked.

The third kind is a simultaneous open (RFC 9293 section 3.5).  The server dials from its *silent*
port, which ignores bare SYNs, so the client's own SYN opens its NAT and is not answered; the two
SYNs cross.  Every dial of this kind has the same two endpoints, so there is one at a time, and a
refused one is repeated, :data:`SPACING` later, until the client's time is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import Any, Final

from stun.attributes import (
    CONNECT_BACK_RESULT,
    RESPONSE_ORIGIN,
    ConnectBack,
    ConnectBackResult,
)
from stun.codec import Message, encode
from stun.ratelimit import PrefixLimiter
from stun.registry import Method
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Cause,
    Closed,
    Connected,
    Dial,
    Entropy,
    Handle,
    Instant,
    Shut,
    Timers,
    Write,
)

MOST_DIALS: Final = 8
SPACING: Final = 50 * MILLISECOND
LONGEST_DELAY: Final = 10_000
"""Milliseconds that a client may put before the first dial."""
LONGEST_WAIT: Final = 10_000
"""Milliseconds that a client may have a dial wait for an answer."""
COURTESY: Final = 2 * SECOND
"""How long an established connection is kept for the client to close it first."""


class Kind(IntEnum):
    """What to dial from."""

    SAME_ADDRESS = 1
    """The address that the client reached, a port it never contacted."""
    OTHER_ADDRESS = 2
    """The server's other address, a port it never contacted."""
    SIMULTANEOUS_OPEN = 3
    """The silent port of the address that the client reached."""


class _Outcome(Enum):
    ESTABLISHED = auto()
    REFUSED = auto()
    UNREACHABLE = auto()
    TIMED_OUT = auto()
    OTHER = auto()


_OUTCOMES = {
    Cause.REFUSED: _Outcome.REFUSED,
    Cause.RESET: _Outcome.REFUSED,
    Cause.UNREACHABLE: _Outcome.UNREACHABLE,
    Cause.TIMED_OUT: _Outcome.TIMED_OUT,
}
_REPEATED = {_Outcome.REFUSED, _Outcome.UNREACHABLE}


@dataclass(eq=False, slots=True)
class _Job:
    control: Handle
    kind: Kind
    local: Address
    remote: Address
    wait: int
    to_dial: int
    undecided: int
    give_up: Instant = 0
    """Simultaneous open: no dial is repeated after this."""
    dials: set[Handle] = field(default_factory=set)
    counts: dict[_Outcome, int] = field(default_factory=lambda: dict.fromkeys(_Outcome, 0))


@dataclass(frozen=True, slots=True)
class _DialDue:
    job: _Job


@dataclass(frozen=True, slots=True)
class _AnswerDue:
    handle: Handle


@dataclass(frozen=True, slots=True)
class _FarewellDue:
    handle: Handle


_Timer = _DialDue | _AnswerDue | _FarewellDue


class Dialler:
    """Carries out what CONNECT-BACK asks for.

    It takes its socket numbers from ``number``, puts its orders into ``orders`` and says with
    ``advertise`` what a local address is called outside.
    """

    def __init__(
        self,
        orders: deque[Any],
        number: Callable[[], Handle],
        advertise: Callable[[Address], Address],
        budget: PrefixLimiter,
        *,
        most: int,
        entropy: Entropy,
    ) -> None:
        self._orders = orders
        self._number = number
        self._advertise = advertise
        self._budget = budget
        self._most = most
        self._entropy = entropy
        self._jobs: dict[Handle, _Job] = {}
        self._dials: dict[Handle, _Job] = {}
        self._established: dict[Handle, _Job] = {}
        self._timers: Timers[Hashable] = Timers()
        self.dialled = 0

    def grant(
        self,
        request: ConnectBack,
        *,
        control: Handle,
        local: Address | None,
        remote: Address,
        source: bytes,
        now: Instant,
    ) -> ConnectBack:
        """Begin a job and return what is granted; a count of 0 says that nothing is.

        ``local`` is where the dials of this kind come from (port 0: any), ``None`` if there is no
        such place.
        """
        refused = ConnectBack(request.kind, 0, request.delay, request.wait, 0)
        if local is None or control in self._jobs or request.kind not in set(Kind):
            return refused
        kind = Kind(request.kind)
        count = min(request.count, 1 if kind is Kind.SIMULTANEOUS_OPEN else MOST_DIALS)
        busy = sum(job.undecided for job in self._jobs.values())
        if count == 0 or busy + count > self._most or not self._budget.allow(source, now, count):
            return refused
        delay, wait = min(request.delay, LONGEST_DELAY), min(request.wait, LONGEST_WAIT)
        job = _Job(control, kind, local, remote, wait * MILLISECOND, count, count)
        job.give_up = now + (delay + wait) * MILLISECOND
        self._jobs[control] = job
        self._timers.set(_DialDue(job), now + delay * MILLISECOND)
        port = local.port if kind is Kind.SIMULTANEOUS_OPEN else 0
        return ConnectBack(kind, count, delay, wait, port)

    def cancel(self, control: Handle) -> None:
        """Abandon what goes on for a connection that has ended."""
        job = self._jobs.pop(control, None)
        if job is None:
            return
        self._timers.cancel(_DialDue(job))
        for handle in job.dials:
            self._drop_dial(handle)

    def _drop_dial(self, handle: Handle) -> None:
        del self._dials[handle]
        self._timers.cancel(_AnswerDue(handle))
        self._orders.append(Shut(handle, reset=True))

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        return self._timers.next() if self._timers else None

    def on_deadline(self, now: Instant) -> None:
        """Dial, give up on silence, and close what the client did not."""
        for timer in self._timers.expired(now):
            assert isinstance(timer, _Timer)
            match timer:
                case _DialDue(job):
                    self._dial(job, now)
                case _AnswerDue(handle):
                    job = self._dials[handle]
                    self._drop_dial(handle)
                    self._decide(job, handle, _Outcome.TIMED_OUT)
                case _FarewellDue(handle):
                    del self._established[handle]
                    self._orders.append(Shut(handle))

    def _dial(self, job: _Job, now: Instant) -> None:
        handle = self._number()
        job.to_dial -= 1
        job.dials.add(handle)
        self._dials[handle] = job
        self.dialled += 1
        self._orders.append(Dial(handle, job.local, job.remote))
        until = job.give_up if job.kind is Kind.SIMULTANEOUS_OPEN else now + job.wait
        self._timers.set(_AnswerDue(handle), until)
        if job.to_dial:
            self._timers.set(_DialDue(job), now + SPACING)

    def owns(self, handle: Handle) -> bool:
        """Whether a socket is one of these dials."""
        return handle in self._dials or handle in self._established

    def connected(self, event: Connected, now: Instant) -> None:
        """Greet the client on a connection that was established, and count it."""
        job = self._dials.pop(event.handle)
        self._timers.cancel(_AnswerDue(event.handle))
        self._established[event.handle] = job
        self._timers.set(_FarewellDue(event.handle), now + COURTESY)
        greeting = Message.indication(Method.BINDING, self._entropy(12))
        greeting.add(RESPONSE_ORIGIN, self._advertise(event.local))
        self._orders.append(Write(event.handle, encode(greeting)))
        self._decide(job, event.handle, _Outcome.ESTABLISHED)

    def closed(self, event: Closed, now: Instant) -> None:
        """Count a dial that failed; forget a connection that the client closed."""
        handle = event.handle
        if self._established.pop(handle, None) is not None:
            self._timers.cancel(_FarewellDue(handle))
            return
        job = self._dials.pop(handle)
        self._timers.cancel(_AnswerDue(handle))
        outcome = _OUTCOMES.get(event.cause, _Outcome.OTHER)
        repeatable = job.kind is Kind.SIMULTANEOUS_OPEN and outcome in _REPEATED
        if repeatable and now + SPACING < job.give_up:
            job.dials.discard(handle)
            job.to_dial += 1
            self._timers.set(_DialDue(job), now + SPACING)
            return
        self._decide(job, handle, outcome)

    def _decide(self, job: _Job, handle: Handle, outcome: _Outcome) -> None:
        job.dials.discard(handle)
        job.counts[outcome] += 1
        job.undecided -= 1
        if job.undecided:
            return
        del self._jobs[job.control]
        counts = job.counts
        result = ConnectBackResult(
            job.kind,
            counts[_Outcome.ESTABLISHED],
            counts[_Outcome.REFUSED],
            counts[_Outcome.UNREACHABLE],
            counts[_Outcome.TIMED_OUT],
            counts[_Outcome.OTHER],
        )
        report = Message.indication(Method.BINDING, self._entropy(12))
        self._orders.append(Write(job.control, encode(report.add(CONNECT_BACK_RESULT, result))))
