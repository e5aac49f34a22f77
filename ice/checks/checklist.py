"""Checklists: candidates, the pairs that they form, and which of these is to be checked next.

One :class:`Generation` is a checklist set (RFC 8445 section 6.1.2): a :class:`Checklist` for each
data stream, and the candidates and credentials of both sides.  An ICE restart begins another one.

Candidates may come at any time (RFC 8838), so a pair gets its state when it is formed: by the rules
of RFC 8838 section 12, which give what RFC 8445 section 6.1.2.6 wants when all are there at once.
A pair is one base and one remote address.  That is what pruning leaves: "redundant if their local
candidates have the same base and their remote candidates are identical" (section 6.1.2.4).
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterator, Set
from dataclasses import replace
from enum import StrEnum

from ice.base import Base
from ice.candidate import Candidate, CandidateType
from ice.checks.pairs import (
    CheckedPair,
    PathState,
    can_pair,
    is_link_local,
    order,
    without_zone,
    zone_of,
)
from ice.config import Config, Credentials, Nomination
from ice.messages import Keys
from ice.pair import PairState
from ice.priority import foundation
from stun.errors import DropReason
from stun.sansio import Address, Instant

_BUSY = (PairState.WAITING, PairState.IN_PROGRESS)
_UNCHECKED = (PairState.FROZEN, PairState.WAITING)

RemoteKey = tuple[int, str, str, int]


class ChecklistState(StrEnum):
    """RFC 8445 section 6.1.2.1."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class Checklist:
    """The pairs of one data stream, in descending order of priority."""

    __slots__ = (
        "disputed", "extended", "nominating", "nominations", "pairs", "remotes", "selected",
        "settle", "state", "stream", "triggered",
    )  # fmt: skip

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.state = ChecklistState.RUNNING
        self.pairs: list[CheckedPair] = []
        self.triggered: deque[CheckedPair] = deque()
        self.remotes: dict[RemoteKey, Candidate] = {}
        """Those of the peer that are known: signalled and peer-reflexive."""
        self.selected: dict[int, CheckedPair] = {}
        """The nominated pair of each component."""
        self.disputed: set[int] = set()
        """Components of which the peer may have taken a nomination that came to nothing here."""
        self.nominating: dict[int, CheckedPair] = {}
        """The pair that is being nominated."""
        self.nominations: dict[int, int] = {}
        """How many pairs of a component have been nominated."""
        self.settle: dict[int, Instant] = {}
        """Until when a component waits for a pair that is better than the valid one."""
        self.extended: set[int] = set()
        """The components that have waited once more."""

    def waiting(self) -> CheckedPair | None:
        """Return the pair that is next in order of priority, if one is in the Waiting state."""
        for pair in self.pairs:
            if pair.state is PairState.WAITING and not pair.parked and not pair.queued:
                return pair
        return None

    def enqueue(self, pair: CheckedPair) -> None:
        """Put a pair into the triggered-check queue, if it is not there (7.3.1.4)."""
        if not pair.queued:
            pair.queued = True
            self.triggered.append(pair)

    def unqueue(self, pair: CheckedPair) -> None:
        """Take a pair out of the triggered-check queue."""
        if pair.queued:
            pair.queued = False
            self.triggered.remove(pair)

    def next_triggered(self) -> CheckedPair | None:
        """Remove the top of the triggered-check queue."""
        if not self.triggered:
            return None
        pair = self.triggered.popleft()
        pair.queued = False
        return pair

    def of(self, component: int) -> Iterator[CheckedPair]:
        """Give the pairs of a component, the best first."""
        return (pair for pair in self.pairs if pair.base.component == component)


class Generation:
    """A checklist set, from the credentials of this side until the next restart."""

    def __init__(
        self,
        config: Config,
        local: Credentials,
        drops: Counter[DropReason],
        connections: Set[tuple[Base, Address]],
        *,
        controlling: bool,
    ) -> None:
        self.config = config
        self.keys = Keys(local)
        self.drops = drops
        self.controlling = controlling
        self._connections = connections
        self.checklists = [Checklist(stream) for stream in range(config.streams)]
        self.bases: dict[Base, list[Candidate]] = {}
        """The local candidates of each base."""
        self.paths: dict[tuple[Base, Address], CheckedPair] = {}
        self.remote_is_lite = False
        self.ended_local = False
        self.ended_remote: set[int] = set()
        """The streams whose end of candidates the peer has told (RFC 8838 section 14)."""
        self.patience: Instant | None = None
        """Until when no checklist is failed (RFC 8863), once checks can be sent."""
        self._groups: dict[tuple[str, str], list[CheckedPair]] = {}
        self._next = 0
        self._learned = 0

    # Candidates. ----------------------------------------------------------------------------------

    def add_local(self, candidate: Candidate, base: Base) -> None:
        """Take a local candidate, and pair its base."""
        known = self.bases.get(base)
        if known is None:
            self.bases[base] = [candidate]
            for remote in list(self.checklists[base.stream].remotes.values()):
                # Section 7.3.1.3: the agent "does not pair" those that it has learned.
                if remote.type is not CandidateType.PEER_REFLEXIVE and can_pair(base, remote):
                    self.form(base, remote)
            return
        if candidate in known:
            return
        known.append(candidate)
        if self.local_of(base) is candidate:
            # The base's own candidate takes the place of a reflexive one that came earlier.
            for pair in self.of_base(base):
                if pair.state in _UNCHECKED:
                    pair.local = candidate
                    self._regroup(pair)
                    self.rank(pair)

    def local_of(self, base: Base) -> Candidate:
        """Return the candidate that stands for a base.

        "For each pair where the local candidate is reflexive, the candidate MUST be replaced by its
        base" (RFC 8445 section 6.1.2.4).
        """
        known = self.bases[base]
        for candidate in known:
            if candidate.type in (CandidateType.HOST, CandidateType.RELAYED):
                return candidate
        return known[0]

    def local_at(self, mapped: Address, pair: CheckedPair, priority: int) -> Candidate:
        """Return the local candidate that the peer sees, peer-reflexive if it is not known.

        RFC 8445 section 7.2.5.3.1; ``priority`` is what the PRIORITY of the check said.
        """
        base = pair.base
        if mapped == (without_zone(base.address.host), base.address.port):
            return pair.local
        for candidate in self.bases.get(base, ()):
            if candidate.port == mapped.port and candidate.host == mapped.host:
                return candidate
        if pair.mapped is not None and pair.mapped.address == mapped:
            return pair.mapped
        host, port = base.address
        return Candidate(
            # Section 5.1.1.3: the foundation of a reflexive candidate depends on who told of it.
            foundation(
                CandidateType.PEER_REFLEXIVE, host, pair.remote.host, base.transport, b"peer"
            ),
            base.component,
            base.transport,
            priority,
            *mapped,
            CandidateType.PEER_REFLEXIVE,
            without_zone(host),
            port,
            base.tcptype,
        )

    def add_remote(self, candidate: Candidate, stream: int) -> None:
        """Take a candidate that the peer has told, and pair it."""
        checklist = self.checklists[stream]
        key = _key(candidate)
        known = checklist.remotes.get(key)
        if known is None:
            if len(checklist.remotes) >= self.config.most_remote:
                self.drops[DropReason.NO_ROOM] += 1
                return
            checklist.remotes[key] = candidate
        elif known.type is CandidateType.PEER_REFLEXIVE:
            # Learned from a check before it was told: now its foundation is known.
            checklist.remotes[key] = candidate
            for pair in checklist.pairs:
                if pair.remote is known or _key(pair.remote) == key:
                    pair.remote = replace(candidate, host=pair.remote.host)
                    self._regroup(pair)
            self.resort(checklist)
        else:
            return
        for base in list(self.bases):
            if base.stream == stream and can_pair(base, candidate):
                self.form(base, candidate)

    def learn(self, base: Base, source: Address, priority: int) -> tuple[Candidate, bool]:
        """Return the remote candidate that a request came from, and whether it is new.

        RFC 8445 section 7.3.1.3: an unknown one is peer-reflexive, with the priority of the check
        and a foundation of its own.
        """
        checklist = self.checklists[base.stream]
        host = without_zone(source.host)
        key = (base.component, base.transport, host, source.port)
        known = checklist.remotes.get(key)
        if known is not None:
            return known, False
        told = {candidate.foundation for candidate in checklist.remotes.values()}
        while (name := f"prflx{self._learned}") in told:
            self._learned += 1
        self._learned += 1
        candidate = Candidate(
            name,
            base.component,
            base.transport,
            priority,
            host,
            source.port,
            CandidateType.PEER_REFLEXIVE,
            tcptype=None if base.tcptype is None else base.tcptype.counterpart,
        )
        if len(checklist.remotes) >= self.config.most_remote:
            self._forget_one(checklist)
        checklist.remotes[key] = candidate
        return candidate, True

    def _forget_one(self, checklist: Checklist) -> None:
        """Make room for a candidate that has proved itself: one of no pair goes first."""
        used = {_key(pair.remote) for pair in checklist.pairs}
        for key in checklist.remotes:
            if key not in used:
                del checklist.remotes[key]
                return
        least = min(checklist.remotes, key=lambda key: checklist.remotes[key].priority)
        del checklist.remotes[least]

    # Pairs. ---------------------------------------------------------------------------------------

    def form(self, base: Base, remote: Candidate, *, proved: bool = False) -> CheckedPair | None:
        """Form a pair, if it is not there and there is room for it.

        ``proved``: a request that proves itself has come on it, so others make room for it.
        """
        zone = zone_of(base.address.host)
        if zone and is_link_local(remote.host):
            # This host needs to know which link it is that both are local to.
            remote = replace(remote, host=without_zone(remote.host) + zone)
        path = (base, remote.address)
        known = self.paths.get(path)
        if known is not None:
            return known
        pair = CheckedPair(self, self.local_of(base), base, remote)
        checklist = self.checklists[base.stream]
        if len(checklist.pairs) >= self.config.most_pairs and not self._make_room(
            checklist, pair, proved=proved
        ):
            self.drops[DropReason.NO_ROOM] += 1
            return None
        if path in self._connections:
            pair.path = PathState.OPEN
        self.paths[path] = pair
        insort(checklist.pairs, pair, key=order)
        group = self._groups.setdefault(pair.foundation, [])
        selected = checklist.selected.get(base.component)
        if selected is not None and not self._worthwhile(pair, selected):
            pair.parked = True
        elif self._is_first(pair, group):
            pair.move(PairState.WAITING)
        group.append(pair)
        return pair

    def _is_first(self, pair: CheckedPair, group: list[CheckedPair]) -> bool:
        # RFC 8838 12: "the lowest component ID and, if the component IDs are equal, the highest
        # priority of any candidate pair for this foundation", or one has succeeded.
        place = (pair.base.component, -pair.priority)
        first = True
        for other in group:
            if other.state is PairState.SUCCEEDED:
                return True
            if not other.parked and (other.base.component, -other.priority) <= place:
                first = False
        return first

    def _worthwhile(self, pair: CheckedPair, selected: CheckedPair) -> bool:
        # RFC 8445 8.1.2 stops all other checks.  What the peer has nominated goes on, as it does
        # with aggressive nomination (RFC 5245 section 8.1.2); and where there is a monitor that can
        # move to another pair, so do those that might be better, and those from elsewhere, which
        # may go on working when an address of this side or what is behind it does not.
        config = self.config
        if pair.peer_nominated or (config.monitor and pair.base is not selected.base):
            return True
        better = pair.priority > selected.valid_priority
        return better and (config.monitor or config.nomination is Nomination.AGGRESSIVE)

    def _make_room(self, checklist: Checklist, pair: CheckedPair, *, proved: bool) -> bool:
        """Discard a pair for another one (RFC 8838 section 10, point 6)."""
        lowest = None
        for other in reversed(checklist.pairs):
            if other.valid or other.queued:
                continue
            if other.state is PairState.FAILED:
                lowest = other
                break
            if lowest is not None:
                continue
            if (proved and not other.requests_received) or (
                other.state in _UNCHECKED and other.priority < pair.priority
            ):
                lowest = other
        if lowest is None:
            return False
        self.remove(lowest)
        self.drops[DropReason.NO_ROOM] += 1
        return True

    def forget(self, pair: CheckedPair) -> None:
        """Take a pair off its checklist, and what was learned of its remote candidate."""
        self.remove(pair)
        remotes = self.checklists[pair.base.stream].remotes
        key = _key(pair.remote)
        if key in remotes and remotes[key].type is CandidateType.PEER_REFLEXIVE:
            del remotes[key]

    def remove(self, pair: CheckedPair) -> None:
        """Take a pair off its checklist."""
        checklist = self.checklists[pair.base.stream]
        checklist.unqueue(pair)
        pair.removed = True
        checklist.pairs.remove(pair)
        del self.paths[pair.base, pair.remote.address]
        self._ungroup(pair)
        component = pair.base.component
        for table in (checklist.selected, checklist.nominating):
            if table.get(component) is pair:
                del table[component]

    def clear(self) -> None:
        """Forget all pairs and candidates; the credentials stay."""
        for pair in self.paths.values():
            pair.removed = True
        self.paths.clear()
        self._groups.clear()
        self.bases.clear()
        self.checklists = [Checklist(checklist.stream) for checklist in self.checklists]

    def of_base(self, base: Base) -> list[CheckedPair]:
        """Return the pairs of a base."""
        return [pair for pair in self.checklists[base.stream].pairs if pair.base is base]

    def _ungroup(self, pair: CheckedPair) -> None:
        group = self._groups[pair.foundation]
        group.remove(pair)
        if not group:
            del self._groups[pair.foundation]

    def _regroup(self, pair: CheckedPair) -> None:
        self._ungroup(pair)
        pair.foundation = (pair.local.foundation, pair.remote.foundation)
        self._groups.setdefault(pair.foundation, []).append(pair)

    def rank(self, pair: CheckedPair) -> None:
        """Compute a pair's priority anew and put it into its place."""
        pairs = self.checklists[pair.base.stream].pairs
        pairs.remove(pair)
        pair.rank()
        insort(pairs, pair, key=order)

    def resort(self, checklist: Checklist) -> None:
        """Compute the priorities of a checklist anew: a role or a candidate has changed."""
        for pair in checklist.pairs:
            pair.rank()
        checklist.pairs.sort(key=order)
        for component, selected in checklist.selected.items():
            # A nominated pair that seemed the best may turn out to be a relay's once it is told.
            for pair in checklist.of(component):
                if self._worthwhile(pair, selected):
                    self._resume(pair)

    # What is next. --------------------------------------------------------------------------------

    def unfreeze(self, pair: CheckedPair) -> None:
        """Set the Frozen pairs of the foundation of one that succeeded to Waiting (7.2.5.3.3)."""
        for other in self._groups.get(pair.foundation, ()):
            if other.state is PairState.FROZEN and not other.parked:
                other.move(PairState.WAITING)

    def next_pair(self) -> CheckedPair | None:
        """Return the pair to check next, taken from the checklists in turn (6.1.4.2)."""
        count = len(self.checklists)
        for step in range(count):
            place = (self._next + step) % count
            checklist = self.checklists[place]
            pair = checklist.next_triggered() or checklist.waiting() or self._thaw(checklist)
            if pair is not None:
                self._next = place + 1
                return pair
        return None

    def _thaw(self, checklist: Checklist) -> CheckedPair | None:
        # Section 6.1.4.2, step 2: "For a given foundation, if there is no pair (in any checklist in
        # the checklist set) in the Waiting or In-Progress state".  One that has been silent for a
        # while does not count: else n components that cannot be connected take n times 39.5 s.
        for pair in checklist.pairs:
            if (
                pair.state is PairState.FROZEN
                and not pair.parked
                and not any(other.is_promising() for other in self._groups[pair.foundation])
            ):
                pair.move(PairState.WAITING)
        return checklist.waiting()

    def busy(self) -> int:
        """Count the pairs in the Waiting and In-Progress states."""
        return sum(
            pair.state in _BUSY and not pair.parked
            for checklist in self.checklists
            for pair in checklist.pairs
        )

    def park(self, checklist: Checklist, selected: CheckedPair) -> list[CheckedPair]:
        """Stop the checks that a nomination makes needless (8.1.2); those that were under way."""
        stopped = []
        for pair in checklist.of(selected.base.component):
            if pair is selected or pair.valid or self._worthwhile(pair, selected):
                continue
            checklist.unqueue(pair)
            pair.parked = True
            if pair.state is PairState.WAITING:
                pair.move(PairState.FROZEN)
            elif pair.state is PairState.IN_PROGRESS:
                stopped.append(pair)
        return stopped

    def unpark(self, checklist: Checklist, component: int) -> None:
        """Check again what was stopped: the nominated pair is lost."""
        for pair in checklist.of(component):
            self._resume(pair)

    def _resume(self, pair: CheckedPair) -> None:
        if pair.parked:
            pair.parked = False
            # One that was under way was cancelled, so it is begun anew.
            if pair.state in (PairState.FROZEN, PairState.IN_PROGRESS):
                pair.move(PairState.WAITING)

    # Components. ----------------------------------------------------------------------------------

    def components(self, checklist: Checklist) -> range:
        """Return the components that have to be connected.

        RFC 8445 section 6.1.2.2: "the minimum across both agents of the maximum component ID
        provided by each agent", once the peer has told all.
        """
        most = self.config.components
        if checklist.stream in self.ended_remote and checklist.remotes:
            most = min(most, max(remote.component for remote in checklist.remotes.values()))
        return range(1, most + 1)


def _key(candidate: Candidate) -> RemoteKey:
    return (
        candidate.component,
        candidate.transport,
        without_zone(candidate.host),
        candidate.port,
    )
