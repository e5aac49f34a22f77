"""Which data plane turnd relays with, and why: a program in the kernel, or sockets alone.

``dataplane = "auto"`` takes the kernel where it can be had; where not, turnd goes on with sockets
and says why in one line.  ``"kernel"`` refuses to start without; ``"sockets"`` does not ask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from turn.daemon.beforehand import CannotStart
from turn.server.config import ServerConfig

if TYPE_CHECKING:
    from turn.dataplane.kernel.routes import KernelRoutes

Wanted: TypeAlias = Literal["auto", "kernel", "sockets"]

AS_CONFIGURED: Final = "as configured"
LEFT: Final = "routes left to the sockets: "
"""How :meth:`turn.dataplane.kernel.routes.KernelRoutes.counters` begins to tell of those."""
ROUTES_EACH: Final = 2
"""Channels that an allocation has on average, at most, before routes stay with the sockets."""
MOST_ROUTES: Final = 1 << 17
"""Room for one takes 176 octets of the kernel's memory, and one that is there 336 more."""


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What was wanted and what it has become."""

    wanted: Wanted
    kernel: KernelRoutes | None
    why: str = ""
    """Why not in the kernel; empty if it is."""
    detail: str = ""
    """More of that, for a log: the end of what the kernel's verifier says."""

    def __str__(self) -> str:
        if self.kernel is None:
            return f"with sockets: {self.why}"
        return f"in the kernel, at {', '.join(self.kernel.interfaces) or 'no interface yet'}"

    def status(self) -> dict[str, Any]:
        """Return what ``turnd check`` needs to know, as JSON."""
        return {
            "wanted": self.wanted,
            "kernel": self.kernel is not None,
            "why": self.why,
            "interfaces": [] if self.kernel is None else list(self.kernel.interfaces),
            "refused": [] if self.kernel is None else list(self.kernel.refused),
            "left": {} if self.kernel is None else self._left(self.kernel),
        }

    @staticmethod
    def _left(kernel: KernelRoutes) -> dict[str, int]:
        """Return how many routes the kernel did not get, by why."""
        return {
            words.removeprefix(LEFT): count
            for words, count in kernel.counters().items()
            if words.startswith(LEFT)
        }

    def follow(self, wanted: Wanted, config: ServerConfig) -> Forwarding:
        """Return this, or what takes its place under another configuration; closes nothing.

        Raises :class:`CannotStart` as :func:`open_forwarding` does.
        """
        if self.kernel is not None and wanted != "sockets":
            return self if wanted == self.wanted else replace(self, wanted=wanted)
        if wanted == self.wanted == "sockets":
            return self
        # Also where it was sought before and not found: what was missing may be there by now.
        return open_forwarding(wanted, config)

    def close(self) -> None:
        """Give back what it holds."""
        if self.kernel is not None:
            self.kernel.close()


def why_not() -> str | None:
    """Say in one line why turnd cannot relay in the kernel here; ``None`` if it seems it can."""
    from turn.dataplane.kernel import support

    return support.why_not()


def would_relay(wanted: Wanted) -> str:
    """Say how turnd would relay if it started here now."""
    problem = AS_CONFIGURED if wanted == "sockets" else why_not()
    if problem is None:
        return "relaying in the kernel"
    if wanted == "kernel":
        return f"would not start: it cannot relay in the kernel: {problem}"
    return f"relaying with sockets: {problem}"


def open_forwarding(wanted: Wanted, config: ServerConfig) -> Forwarding:
    """Load the program, if it is wanted and can be had, with room for what ``config`` allows.

    Raises :class:`CannotStart` if nothing but it is wanted.
    """
    if wanted == "sockets":
        return Forwarding(wanted, None, AS_CONFIGURED)
    from turn.dataplane.kernel.support import KernelUnavailable

    try:
        # Asked for first, for what comes then can be imported on Linux alone.
        if (problem := why_not()) is not None:
            raise KernelUnavailable(problem)
        return Forwarding(wanted, _load(room(config)))
    except KernelUnavailable as error:
        if wanted == "kernel":
            raise CannotStart(
                f"cannot relay in the kernel: {error}; or have turnd choose: --dataplane auto"
            ) from error
        return Forwarding(wanted, None, str(error), error.detail)


def _load(routes: int) -> KernelRoutes:
    """Return what relays in the kernel; raises ``KernelUnavailable``."""
    from turn.dataplane.kernel.program import RelayProgram
    from turn.dataplane.kernel.routes import KernelRoutes
    from turn.dataplane.kernel.support import KernelUnavailable
    from turn.dataplane.kernel.ways import Ways

    program = RelayProgram.load(routes=routes, buckets=routes)
    try:
        return KernelRoutes(program, Ways())
    except OSError as error:
        program.close()
        raise KernelUnavailable(
            f"this machine's interfaces cannot be had (netlink): {error.strerror or error}"
        ) from error


def room(config: ServerConfig) -> int:
    """Return for how many routes there is room in the kernel's maps."""
    low, high = config.ports
    ports = (high - low + 1) * len(config.relays)
    allocations = min(config.limits.allocations or ports, ports)
    return min(allocations * ROUTES_EACH, MOST_ROUTES)
