"""A service that turnd runs beside the relay, from a package that turnd does not know.

The rendezvous is one: it hands out credentials for this very relay, so that one public machine is
one command.  It is found as an *entry point* of the group :data:`GROUP`: a callable that takes a
:class:`Surroundings` and returns a :class:`Companion`.

A companion goes over to other places in two steps, as everything in turnd does
(:mod:`turn.daemon.service`): :meth:`Companion.prepare` does all that may fail and changes nothing,
:meth:`Companion.commit` puts it in force and does not fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from stun.credentials import RestCredential
from stun.errors import UsageError
from stun.tls import ServerTls

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from structlog.typing import FilteringBoundLogger

GROUP: Final = "natkit.turnd"
RENDEZVOUS: Final = "rendezvous"
"""The entry point of ``--with-rendezvous``."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a companion may use of its turnd, each as it is at the moment of the call."""

    version: str
    log: Callable[[], FilteringBoundLogger]
    tls: Callable[[], ServerTls | None]
    """The certificate of ``[tls]``."""
    mint: Callable[[str, int, int], RestCredential]
    """A time-limited credential for this relay: of a user, for so many seconds from a Unix time."""
    uris: Callable[[str], Sequence[str]]
    """``turn:`` URIs for a client that has come to this local host, those that it can reach."""
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    """Has something done beside the relay; its failure ends turnd."""


class Companion(Protocol):
    """What turnd needs of a companion."""

    async def prepare(self, places: Sequence[str], proxies: Sequence[str]) -> None:
        """Find out whether it can serve at these URLs, for these HTTP proxies.

        Raises ``StunError``, with nothing changed.
        """
        ...

    def commit(self) -> None:
        """Serve where :meth:`prepare` was told, and nowhere else."""
        ...

    async def close(self) -> None:
        """Tell its clients, and end."""
        ...

    def collect(self) -> Iterable[Metric]:
        """Return its figures for Prometheus."""
        ...

    def status(self) -> dict[str, Any]:
        """Return how it is, as JSON."""
        ...


def load_companion(name: str, surroundings: Surroundings) -> Companion:
    """Return the companion that the entry point ``name`` makes.

    Raises :class:`stun.errors.UsageError` where there is none.
    """
    for point in entry_points(group=GROUP, name=name):
        try:
            make = point.load()
        except ImportError as error:
            raise UsageError(f"the {name} of this installation cannot be loaded: {error}") from None
        return cast("Companion", make(surroundings))
    raise UsageError(
        f"this installation has no {name}: it comes with the package natkit "
        f"(its entry point {GROUP!r} is missing; install it again: pip install natkit)"
    )
