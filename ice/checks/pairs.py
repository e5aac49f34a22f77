"""A candidate pair as the checker sees it, and which candidates make one."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from ice.base import Base
from ice.candidate import Candidate, TcpType
from ice.pair import Pair, PairState
from ice.priority import pair_priority
from stun.sansio import Instant

if TYPE_CHECKING:
    from ice.checks.checklist import Generation
    from ice.checks.transactions import Check

_FROZEN, _WAITING, _IN_PROGRESS, _SUCCEEDED, _FAILED = PairState

MOVES: Final = {
    # RFC 8445 6.1.2.6, figure 6: "unfreeze"; a check of the peer unfreezes as well.  An answer may
    # come late, to a check that was cancelled; and what a pair needs may vanish at any time.
    _FROZEN: {_WAITING, _SUCCEEDED, _FAILED},
    # "perform"; back when a pair is not needed any more because another was nominated.
    _WAITING: {_IN_PROGRESS, _FROZEN, _SUCCEEDED, _FAILED},
    # "success", "failure"; and 7.3.1.4: cancelled, "set the state of the pair to Waiting".
    _IN_PROGRESS: {_SUCCEEDED, _FAILED, _WAITING, _FROZEN},
    # 7.2.5.3.4 and lost connections.
    _SUCCEEDED: {_FAILED},
    # 7.3.1.4: revived by a check of the peer; and late answers.
    _FAILED: {_WAITING, _SUCCEEDED},
}
"""From which state a pair may pass to which."""


SILENT: Final = 3
"""Sends of a check without an answer after which others of its foundation need not wait."""


class PathState(Enum):
    """Of the TCP connection that a pair needs."""

    NONE = "none"
    OPENING = "opening"
    OPEN = "open"


class CheckedPair(Pair):
    """A pair of one generation, with what is under way for it."""

    __slots__ = (
        "checked_first", "conflicts", "current", "early_ufrag", "foundation", "generation",
        "heard", "nominated_order", "nomination", "parked", "path", "queued", "removed",
    )  # fmt: skip

    def __init__(
        self, generation: Generation, local: Candidate, base: Base, remote: Candidate
    ) -> None:
        super().__init__(local, base, remote, 0)
        self.generation = generation
        self.foundation = (local.foundation, remote.foundation)
        self.current: Check | None = None
        """The check whose failure is the pair's."""
        self.queued = False
        """Whether it is in the triggered-check queue."""
        self.removed = False
        """Whether it was taken off its checklist."""
        self.parked = False
        """Whether it is not checked any more because a better one was nominated."""
        self.path = PathState.NONE if base.is_reliable else PathState.OPEN
        self.heard: Instant = 0
        """When the peer has last proved that it is there: by a request or a response."""
        self.nomination = 0
        """The greatest number that it was nominated with."""
        self.checked_first = False
        """Whether the peer, while controlling, has checked it without USE-CANDIDATE."""
        self.nominated_order = 0
        """Which of the peer's nominations, of all components, was its latest."""
        self.conflicts = 0
        """How many of its checks ended in a role conflict."""
        self.early_ufrag: bytes | None = None
        """Whose check made it, when the peer's credentials were not known yet."""
        self.rank()

    def rank(self) -> None:
        """Compute the priority for this side's role (RFC 8445 section 6.1.2.3)."""
        self.priority = self._priority(self.local.priority)

    @property
    def valid_priority(self) -> int:
        """The priority of the valid pair, as both agents see it.

        Its local candidate is the one that the peer sees (RFC 8445 section 7.2.5.3.2), so the two
        ends of a pair have the same value; those of a check need not.
        """
        return self._priority((self.mapped or self.local).priority)

    def _priority(self, local: int) -> int:
        remote = self.remote.priority
        if self.generation.controlling:
            return pair_priority(local, remote)
        return pair_priority(remote, local)

    def is_promising(self) -> bool:
        """Whether its check is to be waited for before others of its foundation are begun."""
        if self.parked or self.state not in (_WAITING, _IN_PROGRESS):
            return False
        return self.current is None or self.current.transaction.sends < SILENT

    def move(self, state: PairState) -> None:
        """Change the state; staying is allowed."""
        if state is not self.state:
            assert state in MOVES[self.state], f"{self.state} -> {state}"
            self.state = state


def order(pair: CheckedPair) -> tuple[int, int]:
    """Return what pairs are sorted by: priority, and "the lowest component ID" (6.1.4.2)."""
    return -pair.priority, pair.base.component


def zone_of(host: str) -> str:
    """Return ``%`` and the IPv6 zone, or nothing."""
    return host[host.index("%") :] if "%" in host else ""


def without_zone(host: str) -> str:
    """Return a host as it is told to a peer: zones are local to a node (RFC 4007 section 11)."""
    return host.partition("%")[0]


def is_link_local(host: str) -> bool:
    """Whether an IPv6 host is of fe80::/10."""
    return ":" in host and host[:3].lower() in ("fe8", "fe9", "fea", "feb")


def is_loopback(host: str) -> bool:
    """Whether a host is this node itself."""
    return host.startswith("127.") or host == "::1"


def can_pair(base: Base, remote: Candidate) -> bool:
    """Whether checks are sent from a base to a remote candidate of the same stream.

    RFC 8445 section 6.1.2.2: same component, same family, link-local IPv6 with its like only.  RFC
    6544 section 6.2: active with passive, simultaneous-open with its like; pairs whose local
    candidate is passive are removed.
    """
    host, to = base.address.host, remote.host
    if remote.component != base.component or remote.transport != base.transport:
        return False
    if (":" in host) != (":" in to) or is_link_local(host) != is_link_local(to):
        return False
    if is_loopback(host) != is_loopback(to):
        # No packet leaves a host from or to a loopback address.
        return False
    if base.relay and remote.local_name is not None:
        # Section 3.3.2 of draft-ietf-mmusic-mdns-ice-candidates: the relay's operator "MUST NOT"
        # learn an address that its owner has hidden.
        return False
    if base.tcptype is None:
        return True
    return base.tcptype is not TcpType.PASSIVE and remote.tcptype is base.tcptype.counterpart
