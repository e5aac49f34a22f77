"""Connectivity checks: which candidate pairs work, and which one is used (RFC 8445, 6 to 9 and 12).

Theory of operation.  The checker is told candidates and credentials of both sides, at any time and
in any order (RFC 8838), and what happens on the paths between them.  It sends checks by ``send``,
asks for connections by ``open_path``, and tells what it finds out in events.  It has five parts,
which share a :class:`ice.checks.core.Core`:

    checklist     candidates become pairs; which of them is next
    asking        checks are sent; what their answers, or the lack of them, mean
    answering     the peer's checks are proved and answered, and teach
    nomination    when a pair is nominated, and what completes or fails a checklist
    transactions  what is under way, and until when

There is no command to start: checks are sent, one in Ta, as soon as there are credentials of the
peer and a pair.  :meth:`Checker.restart` begins another generation; what the one before it has
proved may carry data until the new one has nominated a pair.

Where it departs from the letter of RFC 8445, the reasons stand at each place:

* hard ICMP errors have to come three times (:data:`ice.checks.asking.COMPLAINTS`), and an answer
  from the wrong address leaves time for the right one (``Asker._not_symmetric``);
* N of the RTO formula is 1, and no check lasts longer than the others (``Asker._transaction``);
* nominations are not held back by Ta (:meth:`ice.checks.asking.Asker.nominate`);
* a check that has been silent for a while does not keep others of its foundation frozen
  (:meth:`ice.checks.pairs.CheckedPair.is_promising`);
* after the nomination some pairs go on being checked (``Generation._worthwhile``), and another pair
  may be nominated without a restart (:data:`ice.messages.NOMINATION`);
* a nomination that fails does not fail the checklist while another valid pair can be nominated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from ice.base import Base
from ice.candidate import Candidate, TcpType
from ice.checks.answering import Answerer
from ice.checks.asking import Asker
from ice.checks.checklist import ChecklistState, Generation
from ice.checks.core import Core, OpenPath, Send
from ice.checks.events import CheckEvent
from ice.checks.nomination import Chooser
from ice.checks.pairs import CheckedPair, PathState, zone_of
from ice.checks.transactions import Kind
from ice.config import Config, Credentials
from ice.pair import Pair
from stun.attributes import host_octets, host_text
from stun.codec import decode
from stun.errors import DecodeError, DropReason, UsageError
from stun.registry import MAGIC_COOKIE, Class, Method
from stun.sansio import SECOND, Address, Cause, Entropy, Instant

LINGER: Final = 3 * SECOND
"""For how long pairs of before a restart may carry data that is still on its way, once the new
generation is completed; RFC 8445 section 8.3.1 gives candidates as long."""

_BINDING = int(Method.BINDING)


class Checker:
    """Connectivity checks of one agent.  The module's text has the rules.

    ``send`` and ``open_path`` take a base, the address of the other end, and the time; the result
    of the latter is told by :meth:`path_opened` or :meth:`path_closed`.  Commands raise
    :class:`stun.errors.UsageError`; what a peer sends never raises.
    """

    def __init__(
        self,
        config: Config,
        *,
        controlling: bool,
        entropy: Entropy,
        send: Send,
        open_path: OpenPath,
    ) -> None:
        self._core = core = Core(
            config, controlling=controlling, entropy=entropy, send=send, open_path=open_path
        )
        self._chooser = chooser = Chooser(core, self._send_nomination)
        self._asker = Asker(core, chooser.agreed)
        self._answerer = Answerer(core, chooser.agreed, self._asker.path_opened)
        self._paths: dict[tuple[Base, Address], CheckedPair] = {}
        self._retire_at: Instant | None = None
        self._reviewed: Instant = -1
        """Until when checklists have been looked at because of the time."""

    def _send_nomination(self, pair: CheckedPair, number: int, now: Instant) -> None:
        self._asker.nominate(pair, number, now)

    # What is known --------------------------------------------------------------------------------

    @property
    def controlling(self) -> bool:
        """The role (RFC 8445 section 6.1.1)."""
        return self._core.controlling

    def take_role(self, *, controlling: bool, now: Instant) -> None:
        """Take a role that both sides have agreed on elsewhere."""
        self._core.set_role(controlling=controlling, now=now)

    @property
    def tie_breaker(self) -> int:
        """What decides a role conflict: 64 bits."""
        return self._core.tie_breaker

    @property
    def drops(self) -> Counter[DropReason]:
        """What was not used, by reason."""
        return self._core.drops

    @property
    def local(self) -> Credentials | None:
        """This side's credentials of this generation."""
        generation = self._core.generation
        return None if generation is None else generation.keys.local

    @property
    def remote(self) -> Credentials | None:
        """The peer's credentials of this generation."""
        generation = self._core.generation
        return None if generation is None else generation.keys.remote

    def pairs(self, stream: int | None = None) -> Iterator[Pair]:
        """Give the pairs, in descending order of priority in each stream.

        Those of before a restart that are still valid come last.
        """
        core = self._core
        for generation in (core.generation, core.old):
            if generation is None:
                continue
            for checklist in generation.checklists:
                if stream is None or checklist.stream == stream:
                    for pair in list(checklist.pairs):
                        if generation is core.generation or pair.valid:
                            yield pair

    def valid_pairs(self, stream: int, component: int) -> list[Pair]:
        """Return the pairs that data may pass on, those of this generation and the best first."""
        return [pair for pair in self.pairs(stream) if pair.valid and pair.component == component]

    def selected(self, stream: int, component: int) -> Pair | None:
        """Return the nominated pair of a component in this generation."""
        generation = self._core.generation
        return None if generation is None else generation.checklists[stream].selected.get(component)

    def state(self, stream: int) -> ChecklistState:
        """Return the state of a stream's checklist."""
        generation = self._core.generation
        if generation is None:
            return ChecklistState.RUNNING
        return generation.checklists[stream].state

    def pair_of(self, base: Base, remote: Address) -> Pair | None:
        """Return the pair of a path: of this generation, or a valid one of before the restart."""
        pair = self._paths.get((base, remote))
        old = self._core.old
        if old is None or (pair is not None and pair.valid):
            return pair
        before = old.paths.get((base, remote))
        return before if before is not None and before.valid else pair

    # Commands -------------------------------------------------------------------------------------

    def set_local(self, credentials: Credentials) -> None:
        """Take this side's credentials of the first generation."""
        if self._core.generation is not None:
            raise UsageError("the credentials change by a restart only")
        self._begin(credentials)

    def restart(self, local: Credentials, now: Instant) -> None:
        """Begin a new generation (RFC 8445 section 9).

        All candidates of both sides are to be told anew; the role stays.
        """
        core = self._core
        before = core.generation
        if before is not None and before.keys.local.ufrag == local.ufrag:
            raise UsageError("a restart changes the username fragment (RFC 8445 section 9)")
        core.old = before
        self._retire_at = None
        for check in core.outstanding:
            if check.kind is not Kind.PROBE or check.pair.generation is not before:
                core.outstanding.remove(check)
        self._begin(local)
        core.wake(now)

    def _begin(self, local: Credentials) -> None:
        core = self._core
        core.generation = generation = Generation(
            core.config, local, core.drops, core.connections, controlling=core.controlling
        )
        core.dirty.clear()
        core.tick_at = None
        self._paths = generation.paths

    def _generation(self, command: str) -> Generation:
        if self._core.generation is None:
            raise UsageError(f"{command}: set_local comes first")
        return self._core.generation

    def set_remote(self, credentials: Credentials, lite: bool, now: Instant) -> None:
        """Take the peer's credentials of this generation, and whether it is lite."""
        core, generation = self._core, self._generation("set_remote")
        keys = generation.keys
        if keys.remote is not None:
            if keys.remote == credentials:
                return
            raise UsageError("the peer's credentials change by a restart only")
        keys.set_remote(credentials)
        generation.remote_is_lite = lite
        generation.patience = now + core.config.patience
        if lite and not core.config.lite:
            # "The full agent MUST take the controlling role" (section 6.1.1).
            core.set_role(controlling=True, now=now)
        ufrag = credentials.ufrag.encode()
        for pair in [p for p in generation.paths.values() if p.early_ufrag not in (None, ufrag)]:
            # Somebody else who was told this side's credentials: another branch of a fork.
            generation.forget(pair)
            core.drop(DropReason.UNKNOWN_USERNAME)
        core.touch_all(now)
        self._settle(now)

    def add_local(self, candidate: Candidate, base: Base, now: Instant) -> None:
        """Take a candidate of this side that the peer is told of."""
        self._place(base.stream, base.component, "add_local")
        core = self._core
        self._generation("add_local").add_local(candidate, base)
        core.touch_all(now)
        self._settle(now)

    def add_remote(self, candidate: Candidate, stream: int, now: Instant) -> Candidate | None:
        """Take a candidate of the peer; return it, with its host as the system writes it.

        One that cannot be used is counted in :attr:`drops`, and ``None`` is returned.
        """
        core, generation = self._core, self._generation("add_remote")
        self._place(stream, 1, "add_remote")
        if stream in generation.ended_remote:
            # RFC 8838 14: after the end of candidates the agent "MUST ignore any newly received".
            core.drop(DropReason.LATE_CANDIDATE)
            return None
        usable = self._usable(candidate)
        if usable is None:
            core.drop(DropReason.UNUSABLE_CANDIDATE)
            return None
        generation.add_remote(usable, stream)
        core.touch_all(now)
        self._settle(now)
        return usable

    def _usable(self, candidate: Candidate) -> Candidate | None:
        """Return the candidate with its address as the system writes it, if it has one."""
        if not 1 <= candidate.component <= self._core.config.components:
            return None
        try:
            octets = host_octets(candidate.host)
        except UsageError:
            return None
        # Neither "this host" nor a group of hosts is where a peer is.
        group = octets[0] == 0xFF if len(octets) == 16 else octets[0] >= 0xE0
        if group or not any(octets) or not 1 <= candidate.port <= 0xFFFF:
            return None
        tcptype = candidate.tcptype
        if candidate.transport == "tcp":
            # Before RFC 6544 candidates had no type, and were for connecting to.
            tcptype = tcptype or TcpType.PASSIVE
        elif candidate.transport != "udp":
            return None
        host = host_text(octets) + zone_of(candidate.host)
        if host == candidate.host and tcptype is candidate.tcptype:
            return candidate
        return replace(candidate, host=host, tcptype=tcptype)

    def end_of_local(self, now: Instant) -> None:
        """Take that gathering is over for this generation."""
        self._generation("end_of_local").ended_local = True
        self._core.touch_all(now)
        self._settle(now)

    def end_of_remote(self, now: Instant, stream: int | None = None) -> None:
        """Take the peer's end of candidates, for one stream or all (RFC 8838 section 14)."""
        generation = self._generation("end_of_remote")
        streams = range(self._core.config.streams) if stream is None else (stream,)
        generation.ended_remote.update(streams)
        self._core.touch_all(now)
        self._settle(now)

    def probe(self, pair: Pair, now: Instant) -> None:
        """Send one request on a pair, outside its checklist; :class:`ProbeAnswered` if answered."""
        known = self._known(pair)
        if known is None or known.path is not PathState.OPEN:
            return
        if known.generation.keys.remote is not None:
            self._asker.probe(known, now)

    def nominate(self, pair: Pair, now: Instant) -> None:
        """Nominate a valid pair: ends in :class:`Nominated`, unless it fails or is superseded.

        Of a pair of before the restart nothing comes: the new generation chooses its own.
        """
        known = self._known(pair)
        if known is not None and known.generation is self._core.generation:
            self._chooser.nominate(known, now)
            self._settle(now)

    def _known(self, pair: Pair) -> CheckedPair | None:
        """Return the pair if it still is on a checklist."""
        if not isinstance(pair, CheckedPair):
            raise UsageError(f"{pair} is none of this checker's")
        return None if pair.removed else pair

    def _place(self, stream: int, component: int, command: str) -> None:
        config = self._core.config
        if not 0 <= stream < config.streams or not 1 <= component <= config.components:
            raise UsageError(f"{command}: there is no component {component} of stream {stream}")

    # What happens on paths ------------------------------------------------------------------------

    def stun(self, base: Base, remote: Address, octets: bytes, now: Instant) -> None:
        """Take a STUN packet that came on a path.  Never raises on what it holds."""
        core = self._core
        try:
            message = decode(octets)
        except DecodeError as error:
            core.drop(error.reason)
            return
        if message.method != _BINDING:
            core.drop(DropReason.UNKNOWN_METHOD)
        elif message.cookie != MAGIC_COOKIE:
            # An agent "MUST NOT support the backwards-compatibility mechanisms" (section 7.3).
            core.drop(DropReason.NOT_STUN)
        elif message.message_class is Class.REQUEST:
            self._answerer.asked(message, base, remote, now)
            self._settle(now)
        elif message.message_class is not Class.INDICATION:
            # An indication is a keepalive (section 11): that it came is all it says.
            self._asker.answered(message, base, remote, now)
            self._settle(now)

    def path_opened(self, base: Base, remote: Address, now: Instant) -> None:
        """Take that a connection is there: dialled, or accepted."""
        self._core.connections.add((base, remote))
        for pair in self._pairs_on(base, remote):
            self._asker.path_opened(pair, now)
        self._settle(now)

    def path_closed(self, base: Base, remote: Address, cause: Cause, now: Instant) -> None:
        """Take that a connection could not be had, or has ended."""
        self._core.connections.discard((base, remote))
        for pair in self._pairs_on(base, remote):
            self._asker.path_closed(pair, cause, now)
        self._settle(now)

    def path_unreachable(self, base: Base, remote: Address, now: Instant) -> None:
        """Take a hard ICMP error for a packet of a path."""
        for pair in self._pairs_on(base, remote):
            self._asker.path_unreachable(pair, now)
        self._settle(now)

    def lost(self, pair: Pair, why: str, now: Instant) -> None:
        """Take that a pair works no more, as its user has found out: it is not valid any more."""
        known = self._known(pair)
        if known is not None:
            self._asker.fail(known, why, now)
            self._settle(now)

    def base_lost(self, base: Base, now: Instant) -> None:
        """Take that nothing can be sent from a base any more."""
        self._core.connections -= {path for path in self._core.connections if path[0] is base}
        for generation in (self._core.generation, self._core.old):
            if generation is None or generation.bases.pop(base, None) is None:
                continue
            for pair in generation.of_base(base):
                self._asker.fail(pair, "its local address is gone", now)
                for check in self._core.outstanding.of(pair):
                    self._core.outstanding.remove(check)
                generation.remove(pair)
        self._settle(now)

    def _pairs_on(self, base: Base, remote: Address) -> list[CheckedPair]:
        core = self._core
        found = []
        for generation in (core.generation, core.old):
            pair = None if generation is None else generation.paths.get((base, remote))
            if pair is not None:
                found.append(pair)
        return found

    # The driver -----------------------------------------------------------------------------------

    def on_deadline(self, now: Instant) -> None:
        """Send the next check, send again, nominate, give up: whatever is due."""
        core = self._core
        self._asker.on_deadline(now)
        generation = core.generation
        if generation is not None:
            for checklist in generation.checklists:
                if any(at <= now for at in self._review_times(generation, checklist.stream)):
                    core.dirty[checklist] = None
        self._reviewed = now
        if self._retire_at is not None and self._retire_at <= now:
            self._retire()
        self._asker.tick(now)
        self._settle(now)

    def poll(self) -> CheckEvent | None:
        """Give the next event."""
        events = self._core.events
        return events.popleft() if events else None

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        core = self._core
        times = [core.outstanding.deadline(), core.tick_at, self._retire_at]
        generation = core.generation
        if generation is not None:
            for checklist in generation.checklists:
                times.extend(self._review_times(generation, checklist.stream))
        return min((at for at in times if at is not None), default=None)

    def _review_times(self, generation: Generation, stream: int) -> Iterator[Instant]:
        """Give the times at which a checklist is to be looked at, though nothing has happened."""
        checklist = generation.checklists[stream]
        if checklist.state is ChecklistState.COMPLETED:
            return
        for at in (generation.patience, *checklist.settle.values()):
            if at is not None and at > self._reviewed:
                yield at

    def _settle(self, now: Instant) -> None:
        """Look at the checklists of which something has changed."""
        core = self._core
        generation = core.generation
        while core.dirty and generation is not None:
            checklist = next(iter(core.dirty))
            del core.dirty[checklist]
            self._chooser.review(generation, checklist, now)
            if core.old is not None and self._retire_at is None and self._is_completed(generation):
                self._retire_at = now + LINGER

    @staticmethod
    def _is_completed(generation: Generation) -> bool:
        return all(c.state is ChecklistState.COMPLETED for c in generation.checklists)

    def _retire(self) -> None:
        """Forget the pairs of before the restart; checks with its credentials are still answered.

        The peer may not have noticed yet that the new generation is completed.
        """
        self._retire_at = None
        if self._core.old is not None:
            self._core.old.clear()
