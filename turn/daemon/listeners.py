"""Which listeners of the plan are open, and which are missed: what the server machine told of them.

A listener may fail when turnd starts, which is a reason not to, unless its address merely stands
behind a wildcard and has gone.  Or it fails while turnd runs, and is then tried again.
"""

from __future__ import annotations

from collections.abc import Callable

from stun.sansio import Address, Cause
from turn.daemon.announce import advise
from turn.daemon.beforehand import CannotStart
from turn.daemon.plan import Plan, turn_uris
from turn.daemon.probe import problem_with_listener
from turn.server.config import ListenAt
from turn.server.events import CannotServe, Serving


class Listeners:
    """Those of one turnd."""

    def __init__(
        self, problem_with: Callable[[ListenAt], CannotServe | None] = problem_with_listener
    ) -> None:
        self._problem_with = problem_with
        self.serving: dict[tuple[str, Address], Serving] = {}
        """Listeners that are open, by protocol ("udp" or "tcp") and local address."""
        self._starting = True
        self._failures: list[CannotServe] = []
        # Listeners that could not be had, to be tried again.
        self._missing: set[Address] = set()

    def opened(self, event: Serving) -> None:
        """Take that one is open."""
        self.serving[event.transport.protocol, event.local] = event

    def lost(self, event: CannotServe) -> bool:
        """Take that one is not; say whether it was while turnd started, and is told of later."""
        self.serving.pop((event.transport.protocol, event.local), None)
        if self._starting:
            self._failures.append(event)
        else:
            self._missing.add(event.local)
        return self._starting

    def check_started(self, plan: Plan, *, partial: bool) -> list[str]:
        """Return what is to be told of those that are missing, when all have been tried.

        Raises :class:`CannotStart` if one is missing that must not be; with ``partial`` if all are.
        """
        self._starting = False
        self._missing.update(failure.local for failure in self._failures)
        grave = [failure for failure in self._failures if not _may_be_missing(failure, plan)]
        words = advise(grave, plan.passing)
        if grave and not (partial and self.serving):
            raise CannotStart("\n".join(words))
        if not self.serving:
            raise CannotStart("no listener could be opened: there is nothing to serve")
        return words

    def there_again(self, plan: Plan) -> set[Address]:
        """Return the places that were missed and can be had by now."""
        return {
            at.local
            for at in plan.config.listeners
            if at.local in self._missing and self._problem_with(at) is None
        }

    def forgive(self, places: set[Address] | None = None) -> None:
        """Miss these no longer, or (``None``) any: the machine is to try them now."""
        self._missing -= self._missing if places is None else places

    def go_over(self, plan: Plan) -> None:
        """Forget those that another plan has not."""
        wanted = {(at.transport.protocol, at.local) for at in plan.config.listeners}
        self.serving = {key: value for key, value in self.serving.items() if key in wanted}

    def uris(self, plan: Plan, names: tuple[str, ...], host: str | None = None) -> list[str]:
        """Return what clients are configured with, those that reach furthest first.

        ``names``: of the certificate.  ``host``: those alone that are at this local address, if
        there are any.
        """
        listeners = [
            at for at in plan.config.listeners if (at.transport.protocol, at.local) in self.serving
        ]
        listeners = [at for at in listeners if at.local.host == host] or listeners
        return turn_uris(listeners, names)

    def places(self) -> dict[str, str]:
        """Return where it serves by transport, as fields of a log line."""
        places: dict[str, list[str]] = {}
        for one in self.serving.values():
            places.setdefault(one.transport.value.lower(), []).append(str(one.local))
        return {transport: " ".join(where) for transport, where in places.items()}


def _may_be_missing(failure: CannotServe, plan: Plan) -> bool:
    """Whether it is an address behind a wildcard that has gone, or is not ready yet."""
    return failure.local in plan.passing and failure.cause is Cause.ADDRESS_NOT_AVAILABLE
