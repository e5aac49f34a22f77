"""What can go wrong for whoever uses an agent: each error says what happened and what to do.

All are :class:`stun.errors.StunError`, and ``ConnectionError`` too, which is what a program that
knows sockets catches.  Wrong arguments are :class:`stun.errors.UsageError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stun.errors import StunError

if TYPE_CHECKING:
    from ice.explain import Explanation


class IceError(StunError, ConnectionError):
    """The root of what becomes of connections."""


class ConnectionFailed(IceError):
    """No pair of candidates works, or none did in time.

    The text is the whole explanation.  ``why`` is its first line; ``explanation`` the same as plain
    values, where there was something to explain.
    """

    def __init__(self, why: str, explanation: Explanation | None = None) -> None:
        super().__init__(why if explanation is None else f"{why}\n{explanation.text()}")
        self.why = why
        self.explanation = explanation


class ConnectionLost(ConnectionFailed):
    """There was a connection and it is gone: the peer's consent was lost, or every path."""


class ConnectionClosed(IceError):
    """This side has closed the agent."""


__all__ = ["ConnectionClosed", "ConnectionFailed", "ConnectionLost", "IceError"]
