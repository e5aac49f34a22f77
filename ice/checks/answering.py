"""The STUN server side: the peer's checks are proved, answered, learned from (section 7.3).

Whoever proves to know this side's password is answered at once, also before the peer's credentials
are here (the "early checks" of section 7.3): what the request tells is kept with its pair, and the
triggered check waits for the credentials.  Who proves nothing is told so, at most once in Ta.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ice.base import Base
from ice.checks.checklist import Generation
from ice.checks.core import Core
from ice.checks.events import PairValid, RequestReceived
from ice.checks.pairs import CheckedPair, PathState
from ice.checks.transactions import Kind
from ice.events import RemoteCandidate
from ice.messages import (
    UNDERSTOOD,
    Asked,
    proof_holds,
    read_request,
    refusal,
    success,
    unproved_refusal,
    username_of,
)
from ice.pair import PairState
from stun.codec import unknown_required
from stun.errors import DecodeError, DropReason
from stun.integrity import check_fingerprint
from stun.message import Message
from stun.registry import ErrorCode
from stun.sansio import Address, Instant

NOMINATIONS_KEPT: Final = 64
"""Transaction ids of requests with USE-CANDIDATE that are remembered, so that none counts twice."""


class Answerer:
    """Takes requests.

    ``agreed`` is called for a valid pair that the peer wants to be used, ``opened`` for one whose
    connection shows by what it carries that it is open.
    """

    __slots__ = ("_agreed", "_core", "_nominations", "_opened", "_order", "_refused_at")

    def __init__(
        self,
        core: Core,
        agreed: Callable[[CheckedPair, Instant], None],
        opened: Callable[[CheckedPair, Instant], None],
    ) -> None:
        self._core = core
        self._agreed = agreed
        self._opened = opened
        self._refused_at: Instant | None = None
        self._nominations: dict[bytes, None] = {}
        self._order = 0

    def asked(self, message: Message, base: Base, source: Address, now: Instant) -> None:
        """Take a request."""
        core = self._core
        if not check_fingerprint(message):
            core.drop(DropReason.BAD_FINGERPRINT)
            return
        username = username_of(message)
        ufrag, colon, remote_ufrag = (username or b"").partition(b":")
        generation = self._generation_of(ufrag) if colon else None
        holds = None if generation is None else proof_holds(message, generation.keys.local_key)
        if generation is None or not holds:
            self._refuse(message, base, source, now, known=generation is not None, holds=holds)
            return
        key = generation.keys.local_key
        unknown = unknown_required(message, UNDERSTOOD)
        if unknown:
            core.drop(DropReason.UNKNOWN_COMPREHENSION_REQUIRED)
            core.send(
                base, source, refusal(message, ErrorCode.UNKNOWN_ATTRIBUTE, key, unknown), now
            )
            return
        try:
            asked = read_request(message, remote_ufrag)
        except DecodeError:
            core.drop(DropReason.BAD_ATTRIBUTE_VALUE)
            core.send(base, source, refusal(message, ErrorCode.BAD_REQUEST, key), now)
            return
        if not core.config.lite and self._keeps_role(asked, now):
            core.send(base, source, refusal(message, ErrorCode.ROLE_CONFLICT, key), now)
            return
        core.send(base, source, success(message, source, key, core.config.software), now)
        self._learn(generation, asked, base, source, now)

    def _generation_of(self, ufrag: bytes) -> Generation | None:
        """Return whose username fragment it is: this one's, or the one's before a restart."""
        for generation in (self._core.generation, self._core.old):
            if generation is not None and generation.keys.local_ufrag == ufrag:
                return generation
        return None

    def _refuse(
        self,
        message: Message,
        base: Base,
        source: Address,
        now: Instant,
        *,
        known: bool,
        holds: bool | None,
    ) -> None:
        core = self._core
        code = ErrorCode.UNAUTHENTICATED
        if not known:
            core.drop(DropReason.UNKNOWN_USERNAME)
        elif holds is None:
            # RFC 8489 9.1.3: without both USERNAME and a proof it is 400 (Bad Request).
            code = ErrorCode.BAD_REQUEST
            core.drop(DropReason.MISSING_INTEGRITY)
        else:
            core.drop(DropReason.BAD_INTEGRITY)
        if self._refused_at is None or now - self._refused_at >= core.config.ta:
            self._refused_at = now
            core.send(base, source, unproved_refusal(message, code), now)

    def _keeps_role(self, asked: Asked, now: Instant) -> bool:
        """Detect a role conflict; whether the peer has to give way (section 7.3.1.1)."""
        core = self._core
        theirs = asked.controlling if core.controlling else asked.controlled
        if theirs is None:
            return False
        larger = core.tie_breaker >= theirs
        if larger == core.controlling:
            return True
        core.set_role(controlling=not core.controlling, now=now)
        return False

    def _learn(
        self, generation: Generation, asked: Asked, base: Base, source: Address, now: Instant
    ) -> None:
        core = self._core
        if generation is not core.generation:
            # The peer keeps a pair of before the restart alive.
            pair = generation.paths.get((base, source))
            if pair is not None:
                self._count(pair, now)
            return
        remote = generation.keys.remote
        if remote is not None and remote.ufrag.encode() != asked.ufrag:
            # Another session of the peer's: answered (section 7.3), but it has no part in this one.
            core.drop(DropReason.UNKNOWN_USERNAME)
            return
        pair = generation.paths.get((base, source)) or self._new_pair(
            generation, asked, base, source
        )
        if pair is None:
            return
        if remote is None:
            pair.early_ufrag = asked.ufrag
        if pair.path is not PathState.OPEN:
            self._opened(pair, now)
        if asked.controlling is not None and not asked.nomination:
            pair.checked_first = True
        self._count(pair, now)
        if core.config.lite:
            self._lite(pair, asked, now)
            return
        self._trigger(pair, now)
        if asked.nomination and not core.controlling:
            self._nominated(pair, asked, now)

    def _count(self, pair: CheckedPair, now: Instant) -> None:
        pair.heard = now
        pair.requests_received += 1
        pair.responses_sent += 1
        self._core.events.append(RequestReceived(pair))

    def _new_pair(
        self, generation: Generation, asked: Asked, base: Base, source: Address
    ) -> CheckedPair | None:
        core = self._core
        if base not in generation.bases:
            # Its candidate is not told yet, so nothing can be said of its pairs.
            core.drop(DropReason.WRONG_GENERATION)
            return None
        if asked.priority is None:
            # "The PRIORITY attribute MUST be included in a Binding request" (section 7.1.1).
            core.drop(DropReason.BAD_ATTRIBUTE_VALUE)
            return None
        candidate, new = generation.learn(base, source, asked.priority)
        pair = generation.form(base, candidate, proved=True)
        if new:
            core.events.append(RemoteCandidate(candidate, base.stream))
        return pair

    def _trigger(self, pair: CheckedPair, now: Instant) -> None:
        """Have the pair checked at the next opportunity (section 7.3.1.4)."""
        core = self._core
        if pair.state is PairState.SUCCEEDED:
            return
        if pair.state is PairState.IN_PROGRESS:
            if pair.base.is_reliable:
                # What is on its way over a connection arrives; asking again gains nothing.
                return
            for check in core.outstanding.of(pair):
                check.cancelled = check.cancelled or check.kind is Kind.CHECK
        pair.parked = False
        pair.move(PairState.WAITING)
        pair.generation.checklists[pair.base.stream].enqueue(pair)
        core.touch(pair, now)

    def _nominated(self, pair: CheckedPair, asked: Asked, now: Instant) -> None:
        """Take USE-CANDIDATE (section 7.3.1.5): now, or when the pair has become valid."""
        if asked.transaction_id in self._nominations:
            # Sent again, or replayed: it is as old as the first of its kind.
            return
        if len(self._nominations) >= NOMINATIONS_KEPT:
            del self._nominations[next(iter(self._nominations))]
        self._nominations[asked.transaction_id] = None
        self._order += 1
        pair.peer_nominated = True
        pair.nomination = max(pair.nomination, asked.nomination)
        pair.nominated_order = self._order
        if pair.valid:
            self._agreed(pair, now)

    def _lite(self, pair: CheckedPair, asked: Asked, now: Instant) -> None:
        """Do what a lite implementation does (section 7.3.2): the peer has checked it all."""
        core = self._core
        if not asked.nomination:
            return
        pair.move(PairState.SUCCEEDED)
        if not pair.valid:
            pair.valid = True
            pair.note(now, "valid: the peer has nominated it")
            core.events.append(PairValid(pair))
        self._nominated(pair, asked, now)
