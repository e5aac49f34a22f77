"""Authenticated Binding requests that belong to no pair yet, and how they are recognised.

A *knock* is a connectivity check like any other (RFC 8445 section 7.1) but for one thing: nobody
waits for its answer.  Whom it reaches answers and checks back, and that check is what makes a pair
(section 7.3.1.3), so a knock needs no transaction of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from ice.candidate import CandidateType, TcpType
from ice.config import Config, Credentials
from ice.messages import Keys, proof_holds, request, username_of
from ice.priority import formula, type_preference
from stun.codec import decode
from stun.errors import DecodeError, DropReason
from stun.integrity import check_fingerprint
from stun.registry import Class, Method
from stun.sansio import Entropy

_BINDING = int(Method.BINDING)


class Knocks:
    """Makes and recognises knocks between two sets of credentials.

    ``role`` gives the present role and tie-breaker (RFC 8445 section 7.1.3).
    """

    __slots__ = ("_config", "_entropy", "_keys", "_role")

    def __init__(
        self,
        config: Config,
        local: Credentials,
        remote: Credentials,
        *,
        entropy: Entropy,
        role: Callable[[], tuple[bool, int]],
    ) -> None:
        self._config = config
        self._keys = Keys(local)
        self._keys.set_remote(remote)
        self._entropy = entropy
        self._role = role

    def make(self, component: int, preference: int, tcptype: TcpType | None = None) -> bytes:
        """Return the octets of another knock.

        ``preference`` is the local preference of the address that it is sent from.
        """
        controlling, tie_breaker = self._role()
        kind = type_preference(CandidateType.PEER_REFLEXIVE, tcptype)
        return request(
            self._entropy(12),
            self._keys,
            priority=formula(kind, preference, component),
            controlling=controlling,
            tie_breaker=tie_breaker,
            software=self._config.software,
        )

    def objection(self, packet: bytes) -> DropReason | None:
        """Say why a packet is no authentic check of the peer's; ``None`` if it is one."""
        try:
            message = decode(packet)
        except DecodeError as error:
            return error.reason
        if message.method != _BINDING:
            return DropReason.UNKNOWN_METHOD
        if message.message_class is not Class.REQUEST:
            # An answer proves as much; but its sender checks back, and that makes the pair.
            return DropReason.UNEXPECTED_CLASS
        if not check_fingerprint(message):
            return DropReason.BAD_FINGERPRINT
        ufrag, _, _ = (username_of(message) or b"").partition(b":")
        if ufrag != self._keys.local_ufrag:
            return DropReason.UNKNOWN_USERNAME
        if not proof_holds(message, self._keys.local_key):
            return DropReason.BAD_INTEGRITY
        return None
