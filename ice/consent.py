"""Consent freshness and keepalives: whether a peer still wants what it is sent.

Theory of operation.  For each component there is one pair that data is sent on.  On it a Binding
request with the session's credentials goes out every 4 to 6 seconds (RFC 7675 section 5.1), each
once, each with a new transaction: the checker makes and proves them, this machine says when.
Consent is a matter of time and nothing else: it runs out 30 seconds after the last valid answer.
How many questions stayed without an answer does not count, nor how long an answer took, so a path
of 600 ms or of three seconds is as healthy as any.

One thing is added.  Once an answer is overdue, by the round-trip time of that pair, the question is
repeated at once, and again at growing distances, until the usual distance is reached.  RFC 7675
says that the *period* of the checks is no less than 4 seconds, and it is not; these are what
retransmissions are to other requests, but with a new transaction each, as that section demands.
After three in a row :class:`ConsentShaky` is told, so that whoever has another pair can go there in
seconds, while the declaration that consent is lost keeps its 30 seconds.

Where no consent is asked for, because the configuration says so or because the agent is a lite one
(RFC 7675 section 2: it "does not generate consent checks"), a Binding indication keeps the NATs on
the way open whenever nothing has been sent for Tr (RFC 8445 section 11); data counts.  Where
consent is asked for, its checks serve that purpose, too (RFC 7675 section 4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from ice.base import Base
from ice.config import Config
from ice.pair import Pair
from ice.pulse import Pulse
from stun.codec import encode
from stun.message import Message
from stun.registry import Method
from stun.sansio import Address, Entropy, Instant

SHAKY: Final = 3
"""So many answers in a row have to be overdue before a person or another machine hears of it."""
REVOKED: Final = "the peer revoked its consent (403)"
EXPIRED: Final = "no valid answer in time"


@dataclass(frozen=True, slots=True)
class ConsentShaky:
    """Answers are overdue: ``unanswered`` questions, the last answer ``silence`` nanoseconds ago.

    Consent still holds and data may be sent; chances are that it does not arrive.
    """

    pair: Pair
    unanswered: int
    silence: int


@dataclass(frozen=True, slots=True)
class ConsentRecovered:
    """An answer came on a pair that was shaky, ``silence`` nanoseconds after the one before."""

    pair: Pair
    silence: int


@dataclass(frozen=True, slots=True)
class ConsentLost:
    """The peer does not consent any more: nothing but checks may be sent on the pair.

    ``silence``: nanoseconds since the last valid answer.  The pair is not asked any further, and
    answers that are still on their way "do not re-establish consent" (RFC 7675 section 5.1).
    """

    pair: Pair
    silence: int
    why: str = EXPIRED


ConsentEvent: TypeAlias = ConsentShaky | ConsentRecovered | ConsentLost


class _Kept:
    """A pair that data is sent on.

    ``ask_at``: when its period is over; or, where nothing is asked, when a keepalive may be due.
    ``again_at``: when the answer to the latest question is overdue.
    """

    __slots__ = ("again_at", "ask_at", "fresh", "pair", "pulse", "sent", "shaky")

    def __init__(self, pair: Pair, now: Instant) -> None:
        self.pair = pair
        self.fresh = now if pair.answered is None else pair.answered
        """When the last valid answer came."""
        self.pulse = Pulse(pair.rtt)
        self.sent = now
        """When anything was last sent, as far as it was told."""
        self.ask_at = now
        self.again_at: Instant | None = None
        self.shaky = False


class Consent:
    """Keeps the pairs that data is sent on, at most one a component.

    ``probe(pair, now)`` sends one authenticated Binding request; :meth:`answered` is told of each
    valid answer.  ``send(base, remote, octets, now)`` sends the octets of a Binding indication.
    """

    __slots__ = ("_asks", "_due", "_entropy", "_events", "_interval", "_kept", "_probe", "_send",
                 "_timeout", "_tr")  # fmt: skip

    def __init__(
        self,
        config: Config,
        *,
        entropy: Entropy,
        probe: Callable[[Pair, Instant], None],
        send: Callable[[Base, Address, bytes, Instant], None],
    ) -> None:
        self._asks = config.consent and not config.lite
        self._interval = config.consent_interval
        self._timeout = config.consent_timeout
        self._tr = config.keepalive
        self._entropy = entropy
        self._probe = probe
        self._send = send
        self._kept: dict[tuple[int, int], _Kept] = {}
        self._due: Instant | None = None
        self._events: deque[ConsentEvent] = deque()

    # What it is told. -----------------------------------------------------------------------------

    def select(self, pair: Pair, now: Instant) -> None:
        """Keep this pair from now on, in place of the one that its component had.

        Consent counts from the last answer on the pair (``pair.answered``): an endpoint "gains
        consent to send on a candidate pair when the pair enters the Succeeded ICE state" (RFC 7675
        section 5).  A pair whose last answer is older than the timeout is therefore lost at the
        next :meth:`on_deadline`; it has to answer before it is selected.
        """
        key = pair.stream, pair.component
        before = self._kept.get(key)
        if before is not None and before.pair is pair:
            return
        kept = self._kept[key] = _Kept(pair, now)
        if self._asks:
            kept.ask_at = max(now, kept.fresh + self._jittered())
        else:
            kept.ask_at = now + self._tr
        self._plan()

    def release(self, pair: Pair, now: Instant) -> None:  # noqa: ARG002  (commands take the time)
        """Keep this pair no longer: data is not sent on it any more.  Nothing is told."""
        if self._of(pair) is not None:
            del self._kept[pair.stream, pair.component]
            self._plan()

    def answered(self, pair: Pair, rtt: int, now: Instant) -> None:
        """Take a valid, authenticated success response to a request on this pair.

        An answer on a pair that is not kept, or not any more, is ignored.
        """
        kept = self._of(pair)
        if kept is None or not self._asks:
            return
        silence = now - kept.fresh
        if silence >= self._timeout:
            return  # It is lost already, which the next on_deadline tells.
        kept.fresh = now
        pulse = kept.pulse
        pulse.answered(rtt, now)
        if not pulse.waiting and kept.again_at is not None:
            kept.again_at = None
            # Back to the period, counted from the last question.
            asked = now if pulse.asked_at is None else pulse.asked_at
            kept.ask_at = max(now, asked + self._jittered())
        if kept.shaky:
            kept.shaky = False
            self._events.append(ConsentRecovered(pair, silence))
        self._plan()

    def revoked(self, pair: Pair, now: Instant) -> None:
        """Take a valid, authenticated error response 403 (Forbidden) to a request on this pair.

        RFC 7675 section 5.2: consent "is immediately revoked".
        """
        kept = self._of(pair)
        if kept is not None and self._asks:
            self._lose(kept, now, REVOKED)
            self._plan()

    def sent(self, pair: Pair, at: Instant) -> None:
        """Take note that something was last sent on this pair at ``at``.

        It need not be told of each packet: the time of the latest one, before each
        :meth:`on_deadline`, says the same.
        """
        kept = self._of(pair)
        if kept is not None and at > kept.sent:
            kept.sent = at

    # What it gives. -------------------------------------------------------------------------------

    def holds(self, pair: Pair, now: Instant) -> bool:
        """Whether data may be sent on this pair now."""
        kept = self._of(pair)
        return kept is not None and (not self._asks or now - kept.fresh < self._timeout)

    def pairs(self) -> list[Pair]:
        """Return the pairs that are kept."""
        return [kept.pair for kept in self._kept.values()]

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called; costs nothing."""
        return self._due

    def poll(self) -> ConsentEvent | None:
        """Give the next event, or ``None``."""
        return self._events.popleft() if self._events else None

    def on_deadline(self, now: Instant) -> None:
        """Ask, keep alive, or declare lost, as the time demands."""
        if self._due is None or now < self._due:
            return
        for kept in tuple(self._kept.values()):
            if not self._asks:
                self._keep_alive(kept, now)
            elif now - kept.fresh >= self._timeout:
                self._lose(kept, now, EXPIRED)
            else:
                self._ask(kept, now)
        self._plan()

    # ----------------------------------------------------------------------------------------------

    def _of(self, pair: Pair) -> _Kept | None:
        kept = self._kept.get((pair.stream, pair.component))
        return kept if kept is not None and kept.pair is pair else None

    def _jittered(self) -> int:
        """One period: RFC 7675 section 5.1 "randomized from between 0.8 and 1.2"."""
        draw = int.from_bytes(self._entropy(2))
        return self._interval * 4 // 5 + self._interval * 2 * draw // (5 * 0xFFFF)

    def _ask(self, kept: _Kept, now: Instant) -> None:
        pulse = kept.pulse
        overdue = pulse.overdue(now)
        if overdue >= SHAKY and not kept.shaky:
            kept.shaky = True
            self._events.append(ConsentShaky(kept.pair, overdue, now - kept.fresh))
        hurried = kept.again_at is not None and now >= kept.again_at
        if not hurried and now < kept.ask_at:
            return
        period = self._jittered()
        kept.ask_at = now + period
        # Patience for the first three, then twice as long each time until a period is reached.
        kept.again_at = now + min(pulse.patience << max(overdue - SHAKY + 1, 0), period)
        kept.sent = now
        kept.pair.consent_requests_sent += 1
        pulse.asked(now)
        self._probe(kept.pair, now)

    def _keep_alive(self, kept: _Kept, now: Instant) -> None:
        if now < kept.sent + self._tr:
            kept.ask_at = kept.sent + self._tr
            return
        kept.sent = now
        kept.ask_at = now + self._tr
        # "The Indication MUST NOT utilize any authentication mechanism.  It SHOULD contain the
        # FINGERPRINT attribute [...] but it SHOULD NOT contain any other attributes."
        indication = Message.indication(Method.BINDING, self._entropy(12))
        octets = encode(indication, fingerprint=True)
        self._send(kept.pair.base, kept.pair.remote_address, octets, now)

    def _lose(self, kept: _Kept, now: Instant, why: str) -> None:
        # "All outstanding STUN consent transactions for a candidate pair MUST be discarded".
        pair = kept.pair
        del self._kept[pair.stream, pair.component]
        self._events.append(ConsentLost(pair, now - kept.fresh, why))

    def _plan(self) -> None:
        due: Instant | None = None
        for kept in self._kept.values():
            at = kept.ask_at
            if self._asks:
                at = min(at, kept.fresh + self._timeout)
                if kept.again_at is not None:
                    at = min(at, kept.again_at)
            if due is None or at < due:
                due = at
        self._due = due
