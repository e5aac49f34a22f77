"""What an agent does beyond plain ICE to get through NATs, as its machine needs it.

Which candidates the peer is told, predicted ports among them; birthday probing; what is held back
until this side's NAT is open.  All of it is asked for: by a command, or by :class:`ice.Config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Final

from ice.base import Base, CandidateFound, Standing
from ice.candidate import Candidate, CandidateType, TcpType
from ice.checks.checker import Checker
from ice.config import Config, Tell
from ice.hub import Hub
from ice.pair import Pair
from ice.session import Session
from ice.spread.knocks import Knocks
from ice.spread.openings import Held, Openings
from ice.spread.order import Progress, Spread
from ice.spread.part import SpreadPart, Told
from stun.errors import UsageError
from stun.sansio import Entropy, Instant

MOST_REMOTES: Final = 64
"""Endpoints of the peer, of one transport and component, that spreads are aimed at unasked."""

_MET_AT: Final = (None, TcpType.SIMULTANEOUS_OPEN)
_PRIVATE: Final = tuple(
    ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
        *("100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8"),  # RFC 6598, RFC 3927, loopback
        *("fc00::/7", "fe80::/10", "::1/128"),  # RFC 4193, RFC 4291
    )
)


class Spreading:
    """Prediction, birthday probing and openings of one agent."""

    __slots__ = (
        "_checker", "_config", "_entropy", "_hub", "_openings", "_part", "_session", "_told",
    )  # fmt: skip

    def __init__(
        self, config: Config, hub: Hub, checker: Checker, session: Session, *, entropy: Entropy
    ) -> None:
        self._config = config
        self._hub = hub
        self._checker = checker
        self._session = session
        self._entropy = entropy
        self._part: SpreadPart | None = None
        self._told: Told = {}
        """The server-reflexive candidates of the peer, by stream, component and transport."""
        ttl, wait = config.opening_ttl, config.opening_wait
        self._openings = (
            None if ttl is None else Openings(ttl, wait, hub.send_short, entropy=entropy)
        )

    # Commands. ------------------------------------------------------------------------------------

    def predict(self, offsets: Sequence[int], ports: Sequence[int]) -> list[Candidate]:
        """Make candidates of ports that this side's NAT is expected to give out next."""
        return self._hub.predict(offsets, ports)

    def spread(self, order: Spread, now: Instant) -> Progress:
        """Begin birthday probing, as soon as all is known that it needs."""
        session, checker = self._session, self._checker
        if session.remote is None or not session.is_answered:
            raise UsageError("spread: the peer's credentials are not known yet")
        if self._config.lite:
            raise UsageError("spread: a lite agent sends no checks")
        knocks = Knocks(
            self._config,
            session.local,
            session.remote,
            entropy=self._entropy,
            role=lambda: (checker.controlling, checker.tie_breaker),
        )
        if self._part is None:
            self._part = self._hub.spreads
        progress = Progress(order)
        self._part.add(progress, knocks, self._told)
        for pair in checker.valid_pairs(order.stream, order.component):
            self.valid(pair)
        self._hub.tend(now)
        return progress

    def stop(self, now: Instant) -> None:
        """End all birthday probing; what it has found stays."""
        if self._part is not None:
            self._part.stop()
            self._hub.tend(now)

    def restart(self, now: Instant) -> None:
        """Begin a generation: the credentials that knocks were made with hold no more."""
        self.stop(now)
        self._hub.forget_predictions()
        self._told.clear()
        if self._openings is not None:
            self._openings.restart()

    # What is found out. ---------------------------------------------------------------------------

    def remote(self, candidate: Candidate | None, stream: int, now: Instant) -> bool:
        """Take a candidate of the peer; whether it is held back for now."""
        return self._openings is not None and self._openings.remote(candidate, stream, now)

    def taken(self, candidate: Candidate, stream: int, now: Instant) -> None:
        """Take note that the checker has a candidate of the peer."""
        # Over TCP the peer has one port that dials and listens, and that is what is to be met.
        if candidate.type is CandidateType.SERVER_REFLEXIVE and candidate.tcptype in _MET_AT:
            key = stream, candidate.component, candidate.transport
            told = self._told.setdefault(key, [])
            if candidate.address not in told and len(told) < MOST_REMOTES:
                told.append(candidate.address)
                if self._part is not None:
                    self._hub.tend(now)

    def local(self, found: CandidateFound, now: Instant) -> bool:
        """Take a candidate of this side; whether it is held back for now."""
        return self._openings is not None and self._openings.local(found, now)

    def tells(self, found: CandidateFound) -> bool:
        """Whether the peer is told of a candidate."""
        if found.standing is Standing.MET:
            return False
        match self._config.tell:
            case Tell.PREDICTED:
                return found.standing is Standing.PREDICTED
            case Tell.PUBLIC:
                return is_public(found.candidate.host)
            case _:
                return True

    def valid(self, pair: Pair) -> None:
        """Take note that a pair works: if it is direct, nothing more is sought."""
        if self._part is not None and pair.is_direct:
            self._part.found(pair)

    def forget(self, base: Base) -> None:
        """Take note that a base is no more."""
        if self._openings is not None:
            self._openings.forget(base)

    # Time. ----------------------------------------------------------------------------------------

    def deadline(self) -> Instant | None:
        """Say when :meth:`due` has something."""
        return None if self._openings is None else self._openings.deadline()

    def due(self, now: Instant) -> Sequence[Held]:
        """Return what was held back long enough."""
        return () if self._openings is None else self._openings.due(now)


def is_public(host: str) -> bool:
    """Whether an address can be reached from elsewhere; of a name nobody knows, so it is not."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return not any(address in network for network in _PRIVATE)
