"""A session between two agents: its generations of credentials, and whom a candidate belongs to.

An ICE restart (RFC 8445 section 9) is a change of both sides' credentials.  With trickling, the
messages of two generations may cross on their way, so what the peer tells comes, where it can, with
the username fragment that it goes with: RFC 8840 section 4.3 wants it in every message, browsers
put it into each candidate (the extension ``ufrag``).  A candidate of a generation that is over is
not taken, one of a generation that has not begun is kept until then.
"""

from __future__ import annotations

from binascii import b2a_base64
from typing import Final, NamedTuple

from ice.candidate import Candidate
from ice.config import Credentials
from stun.sansio import Entropy

UFRAG_OCTETS: Final = 6
"""Eight characters; "at least 24 bits of randomness" are asked for (RFC 8445 section 5.3)."""
PASSWORD_OCTETS: Final = 18
"""Twenty-four characters; "at least 128 bits of randomness"."""
MOST_HELD: Final = 256
"""Candidates that are kept for a generation to come, over all streams."""
MOST_PAST: Final = 8
"""Username fragments of the peer's generations before, so that late candidates are known."""


def make_credentials(entropy: Entropy) -> Credentials:
    """Draw a username fragment and a password.

    The alphabet of base64 is that of ``ice-char`` (RFC 8839 section 5.1), and whole groups need no
    padding.
    """
    ufrag = b2a_base64(entropy(UFRAG_OCTETS), newline=False)
    password = b2a_base64(entropy(PASSWORD_OCTETS), newline=False)
    return Credentials(ufrag.decode(), password.decode())


class Held(NamedTuple):
    """A candidate, or the end of them, that waits for its generation."""

    ufrag: str
    candidate: Candidate | None
    stream: int


class Session:
    """Which generation it is, and both sides' credentials in it."""

    __slots__ = ("_answered", "_held", "_past", "generation", "lite", "local", "options", "remote")

    def __init__(self, local: Credentials) -> None:
        self.generation = 0
        self.local = local
        self.remote: Credentials | None = None
        self.lite = False
        """Whether the peer is a lite agent."""
        self.options: tuple[str, ...] = ()
        """The peer's ice-options."""
        self._answered = False
        self._past: tuple[str, ...] = ()
        self._held: list[Held] = []

    def restart(self, local: Credentials) -> None:
        """Begin a generation with these credentials; the peer's are those of before until told."""
        self.generation += 1
        self.local = local
        self._answered = False

    def is_restart(self, remote: Credentials) -> bool:
        """Whether these credentials mean that the peer has restarted, unasked.

        RFC 8839 section 4.4.1.1.1: "To restart ICE, an agent MUST change both the "ice-pwd" and the
        "ice-ufrag"".
        """
        return self._answered and self.remote != remote

    def agree(self, remote: Credentials, *, lite: bool, options: tuple[str, ...]) -> list[Held]:
        """Take the peer's credentials of this generation; return what was kept for them."""
        before = self.remote
        if before is not None and before.ufrag != remote.ufrag:
            self._past = (*self._past, before.ufrag)[-MOST_PAST:]
        self.remote, self.lite, self.options = remote, lite, options
        self._answered = True
        held, self._held = self._held, []
        return [each for each in held if not each.ufrag or each.ufrag == remote.ufrag]

    @property
    def is_answered(self) -> bool:
        """Whether the peer's credentials of this generation are known."""
        return self._answered

    def hold(self, candidate: Candidate | None, stream: int, ufrag: str = "") -> bool:
        """Keep for a generation to come; False if there is no more room."""
        if len(self._held) >= MOST_HELD:
            return False
        self._held.append(Held(ufrag, candidate, stream))
        return True

    def belongs(self, ufrag: str) -> bool | None:
        """Whether something with this username fragment is of this generation.

        ``None``: of none that is known, so perhaps of the next one.  Without a fragment it is of
        this generation, once that is agreed on.
        """
        if not self._answered or self.remote is None:
            return False if ufrag in self._past or self._is_over(ufrag) else None
        if not ufrag or ufrag == self.remote.ufrag:
            return True
        return False if ufrag in self._past else None

    def _is_over(self, ufrag: str) -> bool:
        """Whether it is the peer's of the generation before a restart of ours."""
        return bool(ufrag) and self.remote is not None and ufrag == self.remote.ufrag


def ufrag_of(candidate: Candidate) -> str:
    """Return the username fragment that a candidate says it goes with, if it says so."""
    for name, value in candidate.extensions:
        if name == "ufrag":
            return value
    return ""
