"""What can be seen of an agent's machine: its state, its pairs, what was dropped.

Looking changes nothing, so it can be done at any time.  :class:`ice.machine.AgentMachine` is what
is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from ice.base import Base, CandidateFound, Standing
from ice.candidate import Candidate, CandidateType
from ice.checks.checker import Checker
from ice.component import Component, key_of
from ice.config import Credentials
from ice.events import AgentState
from ice.hub import Hub
from ice.monitor import Measurement, Monitor
from ice.pair import Pair
from ice.selection import Selection
from ice.session import Session
from stun.errors import DropReason, UsageError
from stun.sansio import Address


class Sight:
    """The parts of an agent, looked at."""

    _session: Session
    _hub: Hub
    _checker: Checker
    _monitor: Monitor
    _selection: Selection
    _components: dict[int, Component]
    _local: list[CandidateFound]
    _own_drops: Counter[DropReason]
    _sockets: dict[Address, Base]
    _pair_of: Callable[[Base, Address], Pair | None]

    @property
    def local(self) -> Credentials:
        """This side's credentials in the present generation."""
        return self._session.local

    @property
    def remote(self) -> Credentials | None:
        """The peer's credentials, the latest that are known."""
        return self._session.remote

    @property
    def generation(self) -> int:
        """How many restarts there have been."""
        return self._session.generation

    @property
    def controlling(self) -> bool:
        """Whether this side nominates; a role conflict may change it."""
        return self._checker.controlling

    @property
    def state(self) -> AgentState:
        """How far the agent is as a whole."""
        return self._selection.state

    @property
    def drops(self) -> Counter[DropReason]:
        """What came and was not used, by reason, over all parts."""
        return self._own_drops + self._checker.drops + self._hub.drops

    def pairs(self) -> list[Pair]:
        """Return every candidate pair there is, of all streams."""
        return list(self._checker.pairs())

    def pair(self, component: int = 1, stream: int = 0) -> Pair | None:
        """Return the pair that a component's data goes over now."""
        return self.component(component, stream).pair

    @property
    def components(self) -> Iterable[Component]:
        """The components of all streams: what each uses, and since when."""
        return self._components.values()

    def component(self, component: int = 1, stream: int = 0) -> Component:
        """Return one of them.  Raises :class:`stun.errors.UsageError` if there is none such."""
        found = self._components.get(key_of(stream, component))
        if found is None or component < 1:
            raise UsageError(f"there is no component {component} of stream {stream}")
        return found

    @property
    def bases(self) -> list[Base]:
        """Where packets can leave from at present."""
        return self._hub.bases

    def mapped(self) -> list[Candidate]:
        """Return what servers have seen this side as, whether or not the peer is told of it."""
        return [
            found.candidate
            for found in self._local
            if found.candidate.type is CandidateType.SERVER_REFLEXIVE
            and found.standing is Standing.GATHERED
        ]

    def measured(self, pair: Pair) -> Measurement | None:
        """Return what the monitor knows of a pair, ``None`` if it does not watch it."""
        return self._monitor.measured(pair)

    def proved(self, local: Address, remote: Address) -> Pair | None:
        """Return the pair that data of this UDP path belongs to, if a check has proved it.

        A driver may hand such data to its reader itself, as long as the pair is valid: it is what
        :meth:`receive` would do.  ``local`` is a socket's address.
        """
        base = self._sockets.get(local)
        pair = None if base is None else self._pair_of(base, remote)
        return pair if pair is not None and pair.valid else None
