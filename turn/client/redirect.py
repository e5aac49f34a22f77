"""Whether and where a 300 (Try Alternate) is followed (RFC 8489 section 10)."""

from __future__ import annotations

from typing import Final

from stun.discovery import Target
from stun.outcome import TryAlternate
from stun.sansio import SECOND, Address, Instant
from turn.client.errors import RedirectRefused

MEMORY: Final = 300 * SECOND
"""A server that was asked "within the last five minutes" is not followed to."""

_NOWHERE = frozenset({"0.0.0.0", "::", "255.255.255.255"})  # noqa: S104  (compared, not bound)


class Redirects:
    """The redirections of one allocation, at most ``limit``.

    A redirection need not prove itself, as it usually comes before the server has asked for
    credentials.  Two things are demanded all the same: once this client has proved itself, the
    answer must, or somebody else may be talking; and over TLS and DTLS the next server must have a
    certificate for the name that was asked for, or for the ALTERNATE-DOMAIN.
    """

    __slots__ = ("_asked", "_left", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._asked: dict[Address, Instant] = {}

    def start_afresh(self) -> None:
        """Forget the past: another allocation is asked for."""
        self._left = self._limit
        self._asked.clear()

    def asked(self, server: Target, now: Instant) -> None:
        """Take note that a server was sent the request."""
        self._asked[server.address] = now

    def follow(
        self, server: Target, said: TryAlternate, now: Instant, *, challenged: bool
    ) -> Target | RedirectRefused:
        """Return the next server to ask, or why there is none."""

        def refuse(why: str) -> RedirectRefused:
            return RedirectRefused(server, f"it says 300 (Try Alternate), {why}")

        if challenged and not said.authenticated and not server.transport.is_secure:
            return refuse("without the proof that this client's password would have let it give")
        usable = [one for one in said.servers if one.port and one.host not in _NOWHERE]
        if not usable:
            return refuse("and names no address that could be asked")
        # The first is "of the same address family as the source IP address of the request".
        to = usable[0]
        if self._left <= 0:
            return refuse(f"to {to}, after {self._limit} redirections before this one")
        asked = self._asked.get(to)
        if asked is not None and now - asked < MEMORY:
            return refuse(f"to {to}, which has been asked already: they send each other in circles")
        self._left -= 1
        return Target(to, server.transport, server.name and (said.domain or server.name))
