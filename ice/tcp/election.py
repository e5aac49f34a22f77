"""One connection of several, chosen by both sides: the checks that prove it, and its nomination.

Theory of operation.  Dials and a listener on several ports bring up several connections at times,
and strangers' among them.  Over each one both sides send a connectivity check, a Binding request
with the short-term credentials of the two (RFC 8445 section 7.2.2), in RFC 4571 frames.  Whoever
does not prove itself is reset.  The controlling side nominates the first connection over which the
peer's check has come and been answered, by a check with USE-CANDIDATE (section 8.1.1); the answer
makes it the one, on both sides.

The connection then belongs to somebody else, octets and all, so each side must be able to tell
where the checks end.  They end

* from the controlling to the controlled side with the nomination: the controlling side has nothing
  left to answer, since the peer's check came before, and sends nothing else until it is answered;
* from the controlled to the controlling side with the answer to the nomination: its own check was
  sent when the connection came up.

So what follows these two packets is the user's.  The nomination may be sent while the controlling
side's own first check is not answered yet, for answers keep their order: two connections that cross
need one and a half round trips until both sides have the socket.

What comes before :meth:`Election.begin` has told the credentials is kept until then, a little of
it: a peer may be early.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ice.base import Base
from ice.candidate import CandidateType, TcpType
from ice.messages import (
    UNDERSTOOD,
    Keys,
    error_code,
    proof_holds,
    read_request,
    refusal,
    request,
    success,
    username_of,
)
from ice.priority import HIGHEST, candidate_priority
from ice.tcp.connections import Connections, Key
from stun.codec import decode, unknown_required
from stun.errors import DecodeError, DropReason
from stun.integrity import check_fingerprint
from stun.message import Message
from stun.registry import Class, ErrorCode, Method
from stun.sansio import SECOND, Address, Entropy, Instant

PATIENCE: Final = 4 * SECOND
"""How long a nomination may stay without an answer before another connection is nominated."""
MOST_EARLY: Final = 4
"""Packets of one connection that are kept until the credentials are known."""
_PRIORITY: Final = candidate_priority(
    CandidateType.PEER_REFLEXIVE, 1, HIGHEST, TcpType.SIMULTANEOUS_OPEN
)


@dataclass(slots=True)
class Link:
    """A connection that is up, as far as the election goes."""

    check: bytes = b""
    """The transaction of this side's check."""
    answered: bool = False
    """Whether the peer has answered it."""
    asked: bool = False
    """Whether the peer's check has come, and has been answered."""
    nomination: bytes = b""
    """The transaction that nominates it."""
    early: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Told:
    """What an election tells, each with the connection that it is about."""

    won: Callable[[Key, Instant], None]
    """It is the one; nothing of it has been read behind the last check."""
    lost: Callable[[Key, str, Instant], None]
    """It has been reset; why, in words."""
    hopeless: Callable[[str, Instant], None]
    """There can be no winner; why, in words."""


class Election:
    """The connections that are up; one is chosen.  ``drops`` counts what was not used."""

    def __init__(
        self,
        connections: Connections,
        told: Told,
        *,
        drops: Counter[DropReason],
        entropy: Entropy,
        software: str | None,
    ) -> None:
        self._connections = connections
        self._told = told
        self._drops = drops
        self._entropy = entropy
        self._software = software
        self._links: dict[Key, Link] = {}
        self._keys: Keys | None = None
        self._controlling = False
        self._tie_breaker = int.from_bytes(entropy(8))
        self._nominated: Key | None = None
        self._due: Instant | None = None

    def __contains__(self, key: Key) -> bool:
        return key in self._links

    @property
    def up(self) -> int:
        """How many connections are up."""
        return len(self._links)

    # What is known. -------------------------------------------------------------------------------

    def begin(self, keys: Keys, now: Instant, *, controlling: bool) -> None:
        """Take the credentials of both sides, and the role of this one."""
        self._keys = keys
        self._controlling = controlling
        for key, link in [*self._links.items()]:
            self._check(key, link, now)
            early, link.early = link.early, []
            for data in early:
                if self._links.get(key) is link:
                    self.packet(*key, data, now)

    def opened(self, key: Key, now: Instant) -> None:
        """Take note that a connection is up."""
        link = self._links[key] = Link()
        self._check(key, link, now)

    def closed(self, key: Key, now: Instant) -> None:
        """Take note that a connection is no more."""
        self._links.pop(key, None)
        if self._nominated == key:
            self._nominate_another(now)

    def _check(self, key: Key, link: Link, now: Instant) -> None:
        if self._keys is not None:
            link.check = self._ask(self._keys, key, now)

    def _ask(self, keys: Keys, key: Key, now: Instant, *, nominate: bool = False) -> bytes:
        name = self._entropy(12)
        data = request(
            name,
            keys,
            priority=_PRIORITY,
            controlling=self._controlling,
            tie_breaker=self._tie_breaker,
            use_candidate=nominate,
            software=self._software,
        )
        self._connections.send(*key, data, now)
        return name

    # What comes. ----------------------------------------------------------------------------------

    def packet(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        """Take a packet of a connection."""
        key = base, remote
        link = self._links.get(key)
        if link is None:
            self._drops[DropReason.UNKNOWN_STREAM] += 1
            return
        keys = self._keys
        if keys is None:
            if len(link.early) < MOST_EARLY:
                link.early.append(data)
            else:
                self._reset(key, DropReason.NO_ROOM, now)
            return
        try:
            message = decode(data)
            if message.method != Method.BINDING:
                self._reset(key, DropReason.UNKNOWN_METHOD, now)
            elif not check_fingerprint(message):
                self._reset(key, DropReason.BAD_FINGERPRINT, now)
            elif message.message_class is Class.REQUEST:
                self._asked(keys, key, link, message, now)
            elif message.message_class is Class.INDICATION:
                self._drops[DropReason.UNEXPECTED_CLASS] += 1
            else:
                self._answered(keys, key, link, message, now)
        except DecodeError as error:
            self._reset(key, error.reason, now)

    def _asked(self, keys: Keys, key: Key, link: Link, message: Message, now: Instant) -> None:
        username = username_of(message) or b""
        if username == keys.username and proof_holds(message, keys.remote_key):
            # It knows the credentials, and takes those for the peer's that are its own.
            self._same_role(now)
            return
        ufrag, _, remote_ufrag = username.partition(b":")
        known = None if keys.remote is None else keys.remote.ufrag.encode()
        if (ufrag, remote_ufrag) != (keys.local_ufrag, known):
            self._reset(key, DropReason.UNKNOWN_USERNAME, now)
            return
        holds = proof_holds(message, keys.local_key)
        if not holds:
            missing = holds is None
            reason = DropReason.MISSING_INTEGRITY if missing else DropReason.BAD_INTEGRITY
            self._reset(key, reason, now)
            return
        unknown = unknown_required(message, UNDERSTOOD)
        if unknown:
            self._drops[DropReason.UNKNOWN_COMPREHENSION_REQUIRED] += 1
            code = ErrorCode.UNKNOWN_ATTRIBUTE
            answer = refusal(message, code, keys.local_key, unknown)
            self._connections.send(*key, answer, now)
            return
        asked = read_request(message, remote_ufrag)
        same = asked.controlling if self._controlling else asked.controlled
        if same is not None:
            answer = refusal(message, ErrorCode.ROLE_CONFLICT, keys.local_key)
            self._connections.send(*key, answer, now)
            self._same_role(now)
            return
        answer = success(message, key[1], keys.local_key, self._software)
        self._connections.send(*key, answer, now)
        link.asked = True
        if self._controlling:
            if self._nominated is None:
                self._nominate(key, link, now)
        elif asked.nomination:
            self._links.pop(key)
            self._told.won(key, now)

    def _answered(self, keys: Keys, key: Key, link: Link, message: Message, now: Instant) -> None:
        name = message.transaction_id
        if not name or name not in (link.check, link.nomination):
            self._drops[DropReason.UNKNOWN_TRANSACTION] += 1
            return
        holds = proof_holds(message, keys.remote_key)
        if not holds:
            missing = holds is None
            reason = DropReason.MISSING_INTEGRITY if missing else DropReason.BAD_INTEGRITY
            self._reset(key, reason, now)
        elif message.message_class is Class.ERROR:
            if error_code(message) == ErrorCode.ROLE_CONFLICT:
                self._same_role(now)
            else:
                self._reset(key, DropReason.REFUSED_BY_POLICY, now)
        elif name == link.nomination:
            self._links.pop(key)
            self._told.won(key, now)
        else:
            link.answered = True

    def _reset(self, key: Key, reason: DropReason, now: Instant) -> None:
        """Close the connection of a stranger, or of a peer that makes no sense."""
        self._drops[reason] += 1
        self._connections.drop(key)
        self.closed(key, now)
        self._told.lost(key, reason.value, now)

    def _same_role(self, now: Instant) -> None:
        role = "controlling" if self._controlling else "controlled"
        self._told.hopeless(
            f"the peer is {role}, too: one side has to be controlling, the other controlled", now
        )

    # The nomination. ------------------------------------------------------------------------------

    def _nominate(self, key: Key, link: Link, now: Instant) -> None:
        assert self._keys is not None
        self._nominated = key
        self._due = now + PATIENCE
        link.nomination = self._ask(self._keys, key, now, nominate=True)

    def _nominate_another(self, now: Instant) -> None:
        self._nominated = self._due = None
        for key, link in self._links.items():
            if link.asked:
                self._nominate(key, link, now)
                return

    def on_deadline(self, now: Instant) -> None:
        """Give up a nomination that nobody answers."""
        if self._due is None or now < self._due:
            return
        key = self._nominated
        self._due = None
        if key is not None:
            self._reset(key, DropReason.NOBODY_ANSWERED, now)

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        return self._due
