"""The STUN client side: checks are sent, answered, lost (RFC 8445 sections 7.2 and 6.1.4).

A response counts if its transaction id is that of a check under way, it came to the base that asked
from the address that was asked, and it proves that its sender knows the peer's password.  All else
is counted and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ice.base import Base
from ice.candidate import TcpType
from ice.checks.core import Core
from ice.checks.events import ConsentRevoked, PairValid, ProbeAnswered
from ice.checks.pairs import CheckedPair, PathState
from ice.checks.transactions import TOTAL_RTO, Check, Kind, schedule_for
from ice.config import Nomination
from ice.messages import UNDERSTOOD, error_code, proof_holds, request
from ice.pair import PairState
from ice.priority import peer_reflexive_priority
from stun.codec import unknown_required
from stun.errors import DropReason
from stun.integrity import check_fingerprint
from stun.message import Message
from stun.outcome import mapped_address
from stun.registry import Class, ErrorCode, default_reason
from stun.sansio import Address, Cause, Instant
from stun.transaction import Schedule, Step, Transaction

MOST_CONFLICTS: Final = 8
"""Role conflicts that a pair may have before it counts as failed: two agents need one."""
COMPLAINTS: Final = 3
"""ICMP errors, each for another send, after which a check has failed.

RFC 8445 section 7.2.5.2.2 lets the first one fail it.  But anybody can forge one, and a NAT whose
port is not open yet sends one, too, for a check that would pass a moment later.
"""
GIVE_WAY: Final = 4
"""Sends of a nomination after which another valid pair, if there is one, is nominated instead."""


class Asker:
    """Sends checks and takes what becomes of them.

    ``agreed`` is called for a pair that is to be used: nominated, and answered.
    """

    __slots__ = ("_agreed", "_core")

    def __init__(self, core: Core, agreed: Callable[[CheckedPair, Instant], None]) -> None:
        self._core = core
        self._agreed = agreed

    # Sending --------------------------------------------------------------------------------------

    def tick(self, now: Instant) -> None:
        """Send the next check if its time has come (Ta)."""
        core = self._core
        generation = core.generation
        if core.tick_at is None or now < core.tick_at or generation is None:
            return
        pair = generation.next_pair()
        if pair is None:
            core.tick_at = None
            return
        core.last_check = now
        core.tick_at = now + core.config.ta
        self.check(pair, now)

    def check(self, pair: CheckedPair, now: Instant) -> None:
        """Perform a connectivity check on a pair."""
        pair.move(PairState.IN_PROGRESS)
        if pair.path is not PathState.OPEN and pair.base.tcptype is TcpType.PASSIVE:
            self.fail(pair, "the peer closed the connection", now)
            return
        pair.current = check = Check(pair, Kind.CHECK, self._transaction(pair, now))
        self._start(check, now)

    def nominate(self, pair: CheckedPair, number: int, now: Instant) -> None:
        """Repeat the check of a valid pair, this time with USE-CANDIDATE (section 8.1.1).

        It is not held back by Ta, which is there for the bindings that checks create in NATs and
        for paths of which nothing is known; this path has just answered.
        """
        check = Check(pair, Kind.NOMINATION, self._transaction(pair, now))
        check.nomination = number
        self._start(check, now)

    def probe(self, pair: CheckedPair, now: Instant) -> None:
        """Send a request once."""
        schedule = Schedule.reliable(self._core.config.consent_timeout)
        self._start(Check(pair, Kind.PROBE, Transaction(schedule, now)), now)

    def _transaction(self, pair: CheckedPair, now: Instant) -> Transaction:
        config = self._core.config
        if pair.base.is_reliable:
            return Transaction(Schedule.reliable(config.ti), now)
        # RFC 8445 14.3: "RTO = MAX (500ms, Ta * N * (Num-Waiting + Num-In-Progress))", which is to
        # "send its first packet for every single connectivity check before performing a
        # retransmit".  N was the number of checklists with a timer of their own (RFC 5245 section
        # 16.1); with the one timer of RFC 8445 it is 1, or 100 pairs would wait for 500 s.
        rto = max(config.rto, config.ta * pair.generation.busy())
        return Transaction(schedule_for(rto, TOTAL_RTO * config.rto), now)

    def _start(self, check: Check, now: Instant) -> None:
        core, pair = self._core, check.pair
        if pair.path is PathState.OPEN:
            self._dress(check)
            core.outstanding.add(check)
            self._transmit(check, now)
            return
        core.outstanding.add(check)
        if pair.path is PathState.NONE:
            # RFC 6544 7.1: "it first opens a TCP connection, if none yet exists".
            pair.path = PathState.OPENING
            core.open_path(pair.base, pair.remote_address, now)

    def _dress(self, check: Check) -> None:
        core, pair = self._core, check.pair
        check.id = core.entropy(12)
        check.controlling = core.controlling
        check.priority = peer_reflexive_priority(pair.local)
        if check.kind is Kind.CHECK and self._is_aggressive(pair):
            check.nomination = 1
        check.wire = request(
            check.id,
            pair.generation.keys,
            priority=check.priority,
            controlling=core.controlling,
            tie_breaker=core.tie_breaker,
            # "The controlled agent MUST NOT include the USE-CANDIDATE attribute" (7.1.2).
            use_candidate=core.controlling and check.nomination > 0,
            nomination=check.nomination,
            software=core.config.software,
        )

    def _is_aggressive(self, pair: CheckedPair) -> bool:
        core = self._core
        if not core.controlling or core.config.nomination is not Nomination.AGGRESSIVE:
            return False
        # RFC 6544 8: "If there are TCP candidates for a media stream, a controlling agent MUST use
        # the regular selection algorithm."
        checklist = pair.generation.checklists[pair.base.stream]
        return not any(other.base.is_reliable for other in checklist.pairs)

    def _transmit(self, check: Check, now: Instant) -> None:
        pair = check.pair
        if pair.checked is None:
            pair.checked = now
        pair.requests_sent += 1
        self._core.send(pair.base, pair.remote_address, check.wire, now)

    # Connections ----------------------------------------------------------------------------------

    def path_opened(self, pair: CheckedPair, now: Instant) -> None:
        """Send what waited for the connection."""
        pair.path = PathState.OPEN
        outstanding = self._core.outstanding
        for check in outstanding.of(pair):
            if not check.wire:
                outstanding.remove(check)
                self._dress(check)
                # The answer is timed from here, and the whole ends when it would have ended.
                left = max(1, check.transaction.deadline - now)
                check.transaction = Transaction(Schedule.reliable(left), now)
                outstanding.add(check)
                self._transmit(check, now)

    def path_closed(self, pair: CheckedPair, cause: Cause, now: Instant) -> None:
        """Take that a connection could not be had, or ended: the check "has failed"."""
        opening = pair.path is PathState.OPENING
        if pair.base.is_reliable:
            pair.path = PathState.NONE
        if pair.state is not PairState.FAILED and (
            opening or pair.valid or pair.state is PairState.IN_PROGRESS
        ):
            what = "no connection" if opening else "the path was closed"
            self.fail(pair, f"{what}: {cause.value}", now)

    def path_unreachable(self, pair: CheckedPair, now: Instant) -> None:
        """Take a hard ICMP error; :data:`COMPLAINTS` says how much it counts."""
        check = pair.current
        if pair.state is not PairState.IN_PROGRESS or check is None:
            return
        if check.complaints < check.transaction.sends:
            check.complaints += 1
            if check.complaints == 1:
                pair.note(now, "ICMP: unreachable")
        if check.complaints >= COMPLAINTS:
            self.fail(pair, "unreachable (ICMP)", now)

    # Time -----------------------------------------------------------------------------------------

    def on_deadline(self, now: Instant) -> None:
        """Send again what is due, give up what has waited long enough."""
        for check, step in self._core.outstanding.due(now):
            if check.pair.removed:
                self._core.outstanding.remove(check)
            elif step is Step.GIVE_UP:
                self._gave_up(check, now)
            elif step is Step.SEND_AGAIN and not check.cancelled:
                if check.kind is Kind.NOMINATION and self._gives_way(check):
                    self._core.outstanding.remove(check)
                    self.fail(check.pair, "the nomination was not answered", now)
                else:
                    self._transmit(check, now)
                    # It may have become silent enough for others of its foundation to go on.
                    self._core.wake(now)

    def _gives_way(self, check: Check) -> bool:
        pair = check.pair
        if check.transaction.sends < GIVE_WAY or pair.nominated:
            return False
        checklist = pair.generation.checklists[pair.base.stream]
        return any(p.valid and p is not pair for p in checklist.of(pair.base.component))

    def _gave_up(self, check: Check, now: Instant) -> None:
        pair = check.pair
        if check.kind is Kind.PROBE:
            return
        if pair.current is check and pair.state is PairState.IN_PROGRESS:
            if pair.parked:
                pair.move(PairState.FROZEN)
            elif pair.path is PathState.OPENING:
                self.fail(pair, "no connection in time", now)
            else:
                self.fail(pair, f"no answer to {check.transaction.sends} requests", now)
        elif check.kind is Kind.NOMINATION:
            self._nomination_gave_up(check, now)

    def _nomination_gave_up(self, check: Check, now: Instant) -> None:
        pair = check.pair
        checklist = pair.generation.checklists[pair.base.stream]
        component = pair.base.component
        if pair.heard > check.transaction.started:
            # The pair works; it was the answers to these requests that were lost.
            if checklist.nominating.get(component) is pair:
                self.nominate(pair, check.nomination, now)
        elif not pair.nominated:
            self.fail(pair, "the nomination was not answered", now)
        elif checklist.nominating.get(component) is pair:
            # It was nominated before, and whether it still works is what consent is asked for.
            del checklist.nominating[component]

    # Answers --------------------------------------------------------------------------------------

    def answered(self, message: Message, base: Base, source: Address, now: Instant) -> None:
        """Take a response."""
        core = self._core
        check = core.outstanding.get(message.transaction_id)
        if check is None or check.pair.removed:
            core.drop(DropReason.UNKNOWN_TRANSACTION)
            return
        pair = check.pair
        if not check_fingerprint(message):
            core.drop(DropReason.BAD_FINGERPRINT)
            return
        holds = proof_holds(message, pair.generation.keys.remote_key)
        if not holds:
            missing = holds is None
            core.drop(DropReason.MISSING_INTEGRITY if missing else DropReason.BAD_INTEGRITY)
            return
        if pair.base is not base or pair.remote_address != source:
            self._not_symmetric(check, source, now)
            return
        core.outstanding.remove(check)
        pair.responses_received += 1
        pair.heard = now
        if message.message_class is Class.ERROR:
            self._refused(check, error_code(message), now)
            return
        mapped = mapped_address(message)
        if mapped is None or unknown_required(message, UNDERSTOOD):
            core.drop(DropReason.UNKNOWN_COMPREHENSION_REQUIRED if mapped else _NO_VALUE)
            self._failed(check, "an answer that cannot be understood", now)
            return
        self._succeeded(check, mapped, now)

    def _not_symmetric(self, check: Check, source: Address, now: Instant) -> None:
        """Take the peer's answer from an address that was not asked.

        RFC 8445 section 7.2.5.2.1 sets the pair to Failed.  Here it is failed when none has come
        from the right address within another RTO, for else whoever can see packets, but not stop
        them, could fail every pair by sending copies of the answers.
        """
        core = self._core
        core.drop(DropReason.UNEXPECTED_SOURCE)
        if check.kind is Kind.PROBE or check.cancelled or check.pair.base.is_reliable:
            return
        check.pair.note(now, f"answered from {source}")
        check.cancelled = True
        check.transaction = Transaction(Schedule.reliable(core.config.rto), now)
        core.outstanding.plan(check)

    def _refused(self, check: Check, code: int, now: Instant) -> None:
        """Take an error response that proves itself."""
        pair = check.pair
        if check.kind is Kind.PROBE and code == ErrorCode.FORBIDDEN:
            self._core.events.append(ConsentRevoked(pair))
        if code != ErrorCode.ROLE_CONFLICT:
            self._failed(check, f"refused: {code} {default_reason(code)}".rstrip(), now)
            return
        core = self._core
        pair.conflicts += 1
        # Section 7.2.5.1: the role to leave is that of the request; it may be left already.
        if check.controlling == core.controlling:
            pair.note(now, "role conflict: this side gave way")
            core.set_role(controlling=not check.controlling, now=now)
            core.new_tie_breaker()
        if check.kind is Kind.PROBE or pair.generation is not core.generation:
            return
        if pair.conflicts > MOST_CONFLICTS:
            self._failed(check, "one role conflict after another", now)
        elif pair.current is check and pair.state is PairState.IN_PROGRESS:
            pair.move(PairState.WAITING)
            pair.generation.checklists[pair.base.stream].enqueue(pair)
            core.wake(now)

    def _failed(self, check: Check, why: str, now: Instant) -> None:
        if check.kind is Kind.NOMINATION or (
            check.pair.current is check and check.pair.state is PairState.IN_PROGRESS
        ):
            self.fail(check.pair, why, now)

    def fail(self, pair: CheckedPair, why: str, now: Instant) -> None:
        """Set a pair to Failed; a valid one is valid no more."""
        core = self._core
        pair.note(now, f"failed: {why}")
        checklist = pair.generation.checklists[pair.base.stream]
        checklist.unqueue(pair)
        for check in core.outstanding.of(pair):
            if check.kind is not Kind.PROBE:
                core.outstanding.remove(check)
        pair.current = None
        pair.move(PairState.FAILED)
        pair.valid = pair.nominated = False
        component = pair.base.component
        if checklist.nominating.get(component) is pair:
            del checklist.nominating[component]
            checklist.disputed.add(component)
        if checklist.selected.get(component) is pair:
            del checklist.selected[component]
            pair.generation.unpark(checklist, component)
        core.touch(pair, now)

    def _succeeded(self, check: Check, mapped: Address, now: Instant) -> None:
        core, pair = self._core, check.pair
        rtt = check.transaction.rtt(now)
        if rtt is not None:
            pair.rtt = rtt if pair.rtt is None else pair.rtt + (rtt - pair.rtt) // 8
        if check.kind is Kind.PROBE:
            core.events.append(ProbeAnswered(pair, rtt or 0))
            return
        generation = pair.generation
        pair.mapped = generation.local_at(mapped, pair, check.priority)
        pair.move(PairState.SUCCEEDED)
        pair.current = None
        generation.checklists[pair.base.stream].unqueue(pair)
        for other in core.outstanding.of(pair):
            if other.kind is Kind.CHECK:
                core.outstanding.remove(other)
        if not pair.valid:
            pair.valid = True
            pair.note(now, f"valid: the peer sees {mapped}")
            core.events.append(PairValid(pair))
            generation.unfreeze(pair)
        if check.nomination and check.controlling and core.controlling:
            pair.nomination = max(pair.nomination, check.nomination)
            self._agreed(pair, now)
        elif pair.peer_nominated and not core.controlling:
            self._agreed(pair, now)
        core.touch(pair, now)


_NO_VALUE = DropReason.BAD_ATTRIBUTE_VALUE
