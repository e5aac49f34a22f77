"""Low-TTL opening: this side's NAT is opened before anything of the peer's can reach it.

Theory of operation.  There are NATs that take offence at a packet which comes before their own side
has sent one there: they give what is sent then another port, which the peer does not know, or let
nobody in for a while.  Against them it helps if no side's first check arrives before the other side
has sent.  So before the first check goes to a server-reflexive candidate, an *opening* goes there
that dies on the way, behind this side's NAT and before the peer's; the check follows when the peer
has had its time to do the same.

What would be checked is held back for that time, rather than checks: a candidate of the peer that
has just been told, or one of this side found when the peer's were known already.  An opening is a
Binding indication, which is a keepalive where it arrives after all (RFC 8445 section 11).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias

from ice.base import Base, CandidateFound
from ice.candidate import Candidate, CandidateType
from stun.codec import encode
from stun.message import Message
from stun.registry import Method
from stun.sansio import Address, Entropy, Instant

MOST_OPENED: Final = 512
"""Paths that are opened in one generation: what a peer tells costs as many packets."""

Open: TypeAlias = Callable[[Base, Address, bytes, int, Instant], None]
"""Sends octets from a base to an address with a TTL."""


class HeldRemote(NamedTuple):
    """A candidate of the peer, or the end of them, that waits."""

    candidate: Candidate | None
    stream: int


Held: TypeAlias = HeldRemote | CandidateFound


class Openings:
    """What is held back, and until when."""

    __slots__ = ("_bases", "_entropy", "_held", "_opened", "_remotes", "_send", "_ttl", "_wait")

    def __init__(self, ttl: int, wait: int, send: Open, *, entropy: Entropy) -> None:
        self._ttl = ttl
        self._wait = wait
        self._send = send
        self._entropy = entropy
        self._bases: dict[Base, None] = {}
        self._remotes: dict[tuple[int, int, Address], None] = {}
        """By stream and component, what is opened for."""
        self._held: deque[tuple[Instant, Held]] = deque()
        self._opened = 0

    def remote(self, candidate: Candidate | None, stream: int, now: Instant) -> bool:
        """Take a candidate of the peer; whether it is held back."""
        opened = False
        if candidate is not None and _is_behind_nat(candidate):
            key = stream, candidate.component, candidate.address
            if key not in self._remotes:
                self._remotes[key] = None
                bases = [base for base in self._bases if _goes(base, key)]
                opened = self._open(((base, candidate.address) for base in bases), now)
        # The end of candidates must not overtake one of them.
        behind = any(isinstance(held, HeldRemote) for _, held in self._held)
        if opened or (behind and candidate is None):
            self._held.append((now + self._wait, HeldRemote(candidate, stream)))
            return True
        return False

    def local(self, found: CandidateFound, now: Instant) -> bool:
        """Take a candidate of this side; whether it is held back."""
        base = found.base
        if base.transport != "udp" or base.is_relayed:
            return False
        if base not in self._bases:
            self._bases[base] = None
            remotes = [key[2] for key in self._remotes if _goes(base, key)]
            if self._open(((base, remote) for remote in remotes), now):
                self._held.append((now + self._wait, found))
                return True
        # A later candidate of a base that waits waits with it.
        waits = any(isinstance(h, CandidateFound) and h.base is base for _, h in self._held)
        if waits:
            self._held.append((now + self._wait, found))
        return waits

    def _open(self, paths: Iterable[tuple[Base, Address]], now: Instant) -> bool:
        opened = False
        for base, remote in paths:
            if self._opened < MOST_OPENED:
                self._opened += 1
                opened = True
                indication = encode(
                    Message.indication(Method.BINDING, self._entropy(12)), fingerprint=True
                )
                self._send(base, remote, indication, self._ttl, now)
        return opened

    def forget(self, base: Base) -> None:
        """Take note that a base is no more."""
        self._bases.pop(base, None)
        self._held = deque(
            (at, held)
            for at, held in self._held
            if not (isinstance(held, CandidateFound) and held.base is base)
        )

    def restart(self) -> None:
        """Begin a generation."""
        self._remotes.clear()
        self._held.clear()
        self._bases.clear()
        self._opened = 0

    def deadline(self) -> Instant | None:
        """Say when :meth:`due` has something."""
        return self._held[0][0] if self._held else None

    def due(self, now: Instant) -> list[Held]:
        """Return what has waited long enough, in order."""
        due = []
        while self._held and self._held[0][0] <= now:
            due.append(self._held.popleft()[1])
        return due


def _is_behind_nat(candidate: Candidate) -> bool:
    return candidate.transport == "udp" and candidate.type is CandidateType.SERVER_REFLEXIVE


def _goes(base: Base, key: tuple[int, int, Address]) -> bool:
    stream, component, remote = key
    same = (base.stream, base.component) == (stream, component)
    return same and base.address.is_ipv6 == remote.is_ipv6
