"""What two paths need of each other: the pair matrix, and what it leaves open.

Theory of operation.  :meth:`Pair.ways` goes through every kind that either path may be and yields
what each combination needs: plain checks, prediction, birthday probing and so on, with who does
what.  A way whose two sides do different things has a *first* and a *second*; ``flipped`` says that
the first is the peer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import product
from typing import Final

from ice.predict.steps import Budget
from ice.predict.summary import Family, PathSummary, Transport
from nattype.model import Filtering
from nattype.peers import MATRIX, PeerKind
from nattype.report import Reach

_SS, _SR = PeerKind.SYMMETRIC_SEQUENTIAL, PeerKind.SYMMETRIC
_AR, _PR = PeerKind.RESTRICTED_CONE, PeerKind.PORT_RESTRICTED_CONE
SYMMETRIC: Final = frozenset({_SS, _SR})
OPEN: Final = frozenset({PeerKind.OPEN, PeerKind.FULL_CONE})
_MAY_ADMIT: Final = (Filtering.NONE, Filtering.ENDPOINT_INDEPENDENT, Filtering.UNKNOWN)
_MAY_GO_BY_ADDRESS: Final = (Filtering.ADDRESS_DEPENDENT, Filtering.UNKNOWN)


class Way(Enum):
    """What a pair of kinds needs, cheapest first; the roles are those of a first and a second."""

    PLAIN = auto()
    OPEN = auto()
    """The first opens and listens, the second dials."""
    LOW_TTL = auto()
    PREDICT = auto()
    """The first counts, the second keeps its mapping."""
    PREDICT_BOTH = auto()
    BIRTHDAY = auto()
    """The first has many sockets, the second probes."""
    MIXED = auto()
    """The first has many sockets, the second counts and probes."""


SHARED: Final = frozenset({Way.PLAIN, Way.LOW_TTL, Way.PREDICT_BOTH})
"""Ways in which both do the same."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side's end of a pair of paths."""

    path: PathSummary
    layers: int | None
    """NATs one behind the other, as far as they can be told."""

    @property
    def key(self) -> str:
        """Something to tell two sides apart by, the same for both of them."""
        return repr((self.path, self.layers))


@dataclass(frozen=True, slots=True)
class Pair:
    """One transport over one family, between two sides."""

    transport: Transport
    family: Family
    mine: Side
    theirs: Side
    budget: Budget | None
    wide: bool = False
    """Whether more ports are to be foretold than usual."""

    def mirrored(self) -> Pair:
        """Return the pair as the peer sees it."""
        return replace(self, mine=self.theirs, theirs=self.mine)

    @property
    def is_blocked(self) -> bool:
        """Whether nothing of this transport passes on one side at least."""
        return self.mine.path.blocked or self.theirs.path.blocked

    @property
    def is_shared(self) -> bool:
        """Whether both are behind one external address."""
        return bool({*self.mine.path.hosts} & {*self.theirs.path.hosts})

    @property
    def is_shut(self) -> bool:
        """Whether neither NAT lets a SYN in even after one went out (against RFC 5382 REQ-2)."""
        mine, theirs = self.mine.path, self.theirs.path
        return (
            self.transport == "tcp"
            and mine.simultaneous_open is theirs.simultaneous_open is False
            and not (mine.kinds | theirs.kinds) & OPEN
        )

    # What is needed. ------------------------------------------------------------------------------

    def ways(self) -> Iterator[tuple[Way, bool]]:
        """Yield each way that any of the possible kinds needs, cheapest first, and who is first."""
        if self.is_blocked or self.is_shut:
            return
        if self.is_shared:
            yield Way.PLAIN, False
            return
        needed = {
            found
            for mine, theirs in product(self.mine.path.kinds, self.theirs.path.kinds)
            for found in self._cell(mine, theirs)
        }
        for way in Way:
            turned = [flipped for flipped in (False, True) if (way, flipped) in needed]
            if len(turned) == 2:
                # Each may be what the other is taken for.  Both sides must agree whose turn is
                # first, and two that look alike in everything cannot.
                if self.mine.key == self.theirs.key:
                    continue
                turned.sort(key=lambda flipped: (self.mine.key > self.theirs.key) is flipped)
            for flipped in turned:
                yield way, flipped

    def _cell(self, mine: PeerKind, theirs: PeerKind) -> Iterator[tuple[Way, bool]]:
        """Yield what these two kinds need; true with those whose first is the peer."""
        if mine in SYMMETRIC and theirs not in SYMMETRIC:
            for way, flipped in self.mirrored()._cell(theirs, mine):
                yield way, way not in SHARED and not flipped
            return
        a, b = self.mine.path, self.theirs.path
        if mine not in SYMMETRIC:
            yield from self._cone(mine, theirs)
            return
        # Both are symmetric.
        if a.filtering in _MAY_ADMIT or b.filtering in _MAY_ADMIT:
            yield from self._checks()
        if a.admits_anybody or b.admits_anybody:
            return
        if mine is theirs is _SS:
            yield Way.PREDICT_BOTH, False
        elif not (a.is_symmetric and b.is_symmetric):
            return  # dear guesses, and neither known to be what it is taken for
        elif mine is theirs:
            for path, flipped in ((a, False), (b, True)):
                if self._goes_by_address(path):
                    yield Way.BIRTHDAY, flipped
        else:
            yield from self._counting_and_random(counting_is_mine=mine is _SS)

    def _cone(self, mine: PeerKind, theirs: PeerKind) -> Iterator[tuple[Way, bool]]:
        """Yield what a path whose mapping is steady needs against any other."""
        a, b = self.mine.path, self.theirs.path
        if theirs not in SYMMETRIC:
            yield from self._checks()
            return
        if mine in OPEN or b.filtering in _MAY_ADMIT or (self.transport == "udp" and mine is _AR):
            yield from self._checks()
        if mine in OPEN or b.admits_anybody or not (a.is_steady or b.is_symmetric):
            # With neither known to be what it is taken for, guessing would be guesswork.
            return
        if self.transport == "tcp" and mine is _AR and a.simultaneous_open is not False:
            yield Way.OPEN, False
        if mine is _PR:
            if MATRIX[mine, theirs] is Reach.PREDICTION:
                yield Way.PREDICT, True
            yield Way.BIRTHDAY, True

    def _counting_and_random(self, *, counting_is_mine: bool) -> Iterator[tuple[Way, bool]]:
        counting, drawing = (
            (self.mine.path, self.theirs.path)
            if counting_is_mine
            else (self.theirs.path, self.mine.path)
        )
        if self._goes_by_address(counting):
            yield Way.PREDICT, not counting_is_mine
        if self._goes_by_address(drawing):
            yield Way.BIRTHDAY, counting_is_mine
        if self.transport == "udp" and drawing.filtering is not Filtering.ADDRESS_DEPENDENT:
            # Over TCP each of many sockets dials one endpoint, which leaves too few for each port.
            yield Way.MIXED, counting_is_mine

    def _goes_by_address(self, path: PathSummary) -> bool:
        """Whether one mapping may take a packet from any port of the peer's address.

        Of use over UDP alone: a TCP socket that dials is open to one endpoint.
        """
        return self.transport == "udp" and path.filtering in _MAY_GO_BY_ADDRESS

    def _checks(self) -> Iterator[tuple[Way, bool]]:
        """Yield plain checks, or their gentler form, or the one after the other."""
        sides = (self.mine.path, self.theirs.path)
        if self.transport == "udp":
            spoilt = [path.remaps_after_inbound for path in sides if not path.admits_anybody]
            if True not in spoilt:
                yield Way.PLAIN, False
            if True in spoilt or None in spoilt:
                yield Way.LOW_TTL, False
        else:
            yield Way.PLAIN, False
            if any(path.refuses for path in sides if not path.admits_anybody):
                yield Way.LOW_TTL, False
