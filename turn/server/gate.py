"""Who may pass: authentication, and what those get who have not proved who they are.

Theory of operation.  A request is authentic, or it is answered with an error, or the user store
must be asked and the request waits.  Nothing is remembered of a source that has proved nothing:

* what it may have answered is limited by its address (:class:`stun.ratelimit.PrefixLimiter`);
* over UDP, where the source may be forged, no prefix gets more octets than came from it, but for a
  burst (:class:`stun.ratelimit.ByteBudget`);
* waiting requests are few, of one client and of all, and wait for seconds; and only those wait
  whose nonce shows that their source is real.  A place among them stays taken when the client
  leaves, as the question that it stands for is still being asked.

Whoever has waited in vain or was over the limit over UDP or DTLS asks again, for there requests are
retransmitted (RFC 8489 section 6.2.1).  Over TCP and TLS "there are no retransmissions at the STUN
protocol level" (section 6.2.2), and a client would wait for 39.5 seconds; so there the request gets
a 500 (Server Error).

Whoever can prove itself is not held back by either: an honest client's first request draws a 401 of
about its own length, the second one is authentic.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final, NamedTuple

from stun.attributes import host_octets
from stun.auth_server import Accepted as Authentic
from stun.auth_server import Authenticator, Deferred, Rejected
from stun.codec import encode
from stun.credentials import SUPPORTED_ALGORITHMS
from stun.errors import DropReason
from stun.message import Message
from stun.nonce import NonceMaker
from stun.oauth import Tokens
from stun.ratelimit import ByteBudget, PrefixLimiter, prefix_of
from stun.registry import ErrorCode
from stun.sansio import SECOND, Instant
from stun.users import UserStore
from turn.server.allocation import Allocation, Flow
from turn.server.config import Limits, ServerConfig
from turn.server.core import Connection, Core
from turn.server.events import LookUp
from turn.server.quota import client_of

MOST_WAITING: Final = 1024
"""Requests that wait for the user store."""
MOST_OF_A_CLIENT: Final = 64
"""Of them, those from one client address (:func:`turn.server.quota.client_of`)."""
LONGEST_ANSWER: Final = 128
"""Octets that an answer to an unproven source hardly ever exceeds: a 401 with a realm of 24 has
100, a Binding answer to RFC 5780 clients 116.  Longer ones wait until there are so many."""
PATIENCE: Final = 3 * SECOND
"""How long they do.  Over UDP and DTLS their clients have asked again by then."""

_NO_ANSWER = Rejected(ErrorCode.SERVER_ERROR, "", detail="the user store did not answer in time")
_NO_ROOM = Rejected(ErrorCode.SERVER_ERROR, "", detail="too many requests wait for the user store")
_TOO_MANY = Rejected(ErrorCode.SERVER_ERROR, "", detail="too many unproven requests of a client")
_OUTCOMES = {
    ErrorCode.UNAUTHENTICATED: "rejected",
    ErrorCode.STALE_NONCE: "stale",
    ErrorCode.BAD_REQUEST: "malformed",
}


class Waiting(NamedTuple):
    """A request that waits for the user store."""

    message: Message
    flow: Flow
    since: Instant


class Gate:
    """Validates requests and answers those that do not pass."""

    def __init__(
        self,
        core: Core,
        users: UserStore,
        nonces: NonceMaker,
        *,
        unix_epoch: int,
        tokens: Tokens | None,
    ) -> None:
        self._core = core
        self._nonces = nonces
        self.tokens = tokens
        self._unix_epoch = unix_epoch
        self._waiting: dict[LookUp, list[Waiting]] = {}
        self._line: deque[tuple[Instant, LookUp, Waiting]] = deque()
        self._crowd: Counter[str | bytes] = Counter()
        """How many wait, by client address."""
        self._authenticator = self._make(core.config, users)
        self._limit(core.config.limits)

    def _make(self, config: ServerConfig, users: UserStore) -> Authenticator:
        return Authenticator(
            config.realm,
            users,
            self._nonces,
            algorithms=SUPPORTED_ALGORITHMS if config.sha256 else (),
            anonymous=config.anonymous,
            # Without a phrase, and without the SOFTWARE that RFC 8656 section 5 would have in every
            # response to an Allocate: a 401 must not be longer than it has to be.
            reason="",
            unix_epoch=self._unix_epoch,
            tokens=self.tokens,
        )

    def _limit(self, limits: Limits) -> None:
        entropy = self._core.entropy
        self._limits = limits
        self.budget = ByteBudget(
            limits.unverified_burst, limits.unverified_refill, least=LONGEST_ANSWER, entropy=entropy
        )
        """Octets that unproven sources may have; Binding answers are paid from it as well."""
        rate = limits.requests_per_second_per_client
        self._limiter, self._connected = (
            PrefixLimiter(rate, rate, entropy=entropy) for _ in range(2)
        )

    def reconfigure(self, config: ServerConfig, users: UserStore) -> None:
        """Go on with another realm, other users or other limits."""
        self._authenticator = self._make(config, users)
        if config.limits != self._limits:
            self._limit(config.limits)

    def set_clock(self, unix_time: int, now: Instant) -> None:
        """Say what time it is: seconds since 1970 at ``now``."""
        self._unix_epoch = unix_time - now // SECOND
        self._authenticator.set_clock(unix_time, now)

    # Answers to the unproven. ---------------------------------------------------------------------

    def may_answer(self, message: Message, flow: Flow, now: Instant) -> bool:
        """Say whether one more request of an unproven client is looked at.

        Connections have a budget of their own: it cannot be used up from forged sources.
        """
        limiter = self._connected if flow.connection else self._limiter
        if limiter.allow(host_octets(flow.client.host)[:8], now):
            return True
        if flow.is_stream:
            self._reject(_TOO_MANY, message, flow, now, told=True)
        else:
            self._core.drop(DropReason.RATE_LIMITED)
        return False

    def may_send(self, flow: Flow, came_in: int, goes_out: int, now: Instant) -> bool:
        """Debit the octets of an answer to an unproven source; say whether it may be sent.

        Over a connection the source is real: the handshake has shown it.
        """
        if flow.connection:
            return True
        prefix = prefix_of(host_octets(flow.client.host))
        if self.budget.exchange(prefix, came_in, goes_out, now):
            return True
        self._core.drop(DropReason.RATE_LIMITED)
        return False

    # Authentication. ------------------------------------------------------------------------------

    def admit(
        self, message: Message, flow: Flow, allocation: Allocation | None, now: Instant
    ) -> Authentic | None:
        """Return the proof of who sent a request; without one it has been answered or waits."""
        metrics = self._core.metrics
        if not message.proof_at:
            metrics.authentication["challenged"] += 1
            if self.may_answer(message, flow, now):
                fingerprint = self._core.wants_fingerprint(message)
                octets = self._authenticator.answer_stranger(
                    message, flow.client, now, fingerprint=fingerprint
                )
                self._answer(octets, ErrorCode.UNAUTHENTICATED, message, flow, now)
            return None
        session = None if allocation is None else allocation.authentic
        outcome = self._authenticator.validate(message, flow.client, now, session)
        if isinstance(outcome, Authentic):
            metrics.authentication["accepted"] += 1
            if not flow.connection:
                # What came counts for its prefix: clients that prove themselves bring more than
                # their challenge took, however many of them one address has.
                prefix = prefix_of(host_octets(flow.client.host))
                self.budget.credit(prefix, len(message.wire), now)
            return outcome
        if isinstance(outcome, Deferred):
            metrics.authentication["deferred"] += 1
            if self.may_answer(message, flow, now):
                self._park(LookUp(outcome.username, outcome.userhash), message, flow, now)
            return None
        metrics.authentication[_OUTCOMES.get(outcome.code, "failed")] += 1
        if self.may_answer(message, flow, now):
            told = outcome.code is not ErrorCode.STALE_NONCE
            self._reject(outcome, message, flow, now, told=told)
        return None

    def _reject(
        self, rejected: Rejected, message: Message, flow: Flow, now: Instant, *, told: bool
    ) -> None:
        core = self._core
        octets = encode(rejected.response(message), fingerprint=core.wants_fingerprint(message))
        if self._answer(octets, rejected.code, message, flow, now) and told:
            core.told_refusal(flow.client, message.method, rejected.code, rejected.detail, now=now)

    def _answer(
        self, octets: bytes, code: ErrorCode, message: Message, flow: Flow, now: Instant
    ) -> bool:
        if not self.may_send(flow, len(message.wire), len(octets), now):
            return False
        self._core.count_response(message.method, code)
        self._core.send(flow, octets)
        return True

    # Waiting for the user store. ------------------------------------------------------------------

    def _park(self, lookup: LookUp, message: Message, flow: Flow, now: Instant) -> None:
        core = self._core
        client = client_of(flow.client.host)
        if len(self._line) >= MOST_WAITING or self._crowd[client] >= MOST_OF_A_CLIENT:
            if flow.is_stream:
                self._fail(_NO_ROOM, message, flow, now)
            else:
                core.drop(DropReason.RATE_LIMITED)
            return
        if flow.is_stream:
            core.connections[flow.connection].parked = True
        self._crowd[client] += 1
        waiting = Waiting(message, flow, now)
        self._line.append((now + PATIENCE, lookup, waiting))
        others = self._waiting.get(lookup)
        if others is None:
            self._waiting[lookup] = [waiting]
            core.tell(lookup)
        else:
            others.append(waiting)

    def found(self, lookup: LookUp, now: Instant) -> list[Waiting]:
        """Give back the requests that waited for this; the store must know by now."""
        ready = self._waiting.pop(lookup, [])
        for waiting in ready:
            self._core.metrics.lookup_latency.add(now - waiting.since)
            self._leave(waiting)
        if ready:
            self._line = deque(entry for entry in self._line if entry[1] != lookup)
        return ready

    def _fail(self, rejected: Rejected, message: Message, flow: Flow, now: Instant) -> None:
        self._core.metrics.authentication["failed"] += 1
        self._reject(rejected, message, flow, now, told=True)

    def _leave(self, waiting: Waiting) -> None:
        client = client_of(waiting.flow.client.host)
        self._crowd[client] -= 1
        if not self._crowd[client]:
            del self._crowd[client]

    def stop(self) -> None:
        """Forget the requests that wait."""
        self._waiting.clear()
        self._line.clear()
        self._crowd.clear()

    def deadline(self) -> Instant | None:
        """Say when the next request has waited long enough."""
        return self._line[0][0] if self._line else None

    def give_up(self, now: Instant) -> list[Connection]:
        """Give up the requests that have waited too long; return the streams that go on."""
        core, released = self._core, []
        while self._line and self._line[0][0] <= now:
            _, lookup, waiting = self._line.popleft()
            self._leave(waiting)
            # All wait equally long, so whoever has come first is the first here, too.
            others = self._waiting[lookup]
            del others[0]
            if not others:
                # The next request of this user asks the store anew.
                del self._waiting[lookup]
            message, flow, _ = waiting
            connection = core.connections.get(flow.connection) if flow.is_stream else None
            if connection is None:
                core.drop(DropReason.NOBODY_ANSWERED)
                continue
            connection.parked = False
            self._fail(_NO_ANSWER, message, flow, now)
            released.append(connection)
        return released
