"""Find out, beside everything else, what NATs this host is behind.

Theory of operation.  :class:`Diagnosing` runs natcheck's probe (:func:`nattype.discover_async`) as
a task of its own, on sockets of its own, with a time limit, while the relay already carries data.
What is known when the time is up is what the summary says; where servers offer too little (one
address, no RFC 5780) it says less, and the plan widens.  Nothing raises: a diagnosis that fails is
an empty summary with a note.

nattype's driver is imported when it is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from ice.predict.summary import NatSummary
from nattype.report import Report
from stun.errors import StunError
from stun.uri import StunUri, parse_server

SECONDS: Final = 6.0
"""After which a diagnosis ends with what is known; one without losses takes one or two."""
GRACE: Final = 2.0
"""Seconds beyond that for the probe to wind up, looking up names included."""
MOST_SERVERS: Final = 8


class Discover(Protocol):
    """What :func:`nattype.discover_async` is to this module."""

    def __call__(
        self, servers: Sequence[str | StunUri], *, udp: bool, tcp: bool, timeout: float
    ) -> Awaitable[Report]:
        """Diagnose within ``timeout`` seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found, and why not more (``note``, empty if all went well)."""

    summary: NatSummary
    note: str = ""


async def diagnose(
    servers: Iterable[str | StunUri],
    *,
    udp: bool = True,
    tcp: bool = True,
    seconds: float = SECONDS,
    discover: Discover | None = None,
) -> Diagnosis:
    """Diagnose by asking these STUN servers, and no others.

    ``servers`` are hosts, ``host:port`` or ``stun:`` URIs; those that would need TLS are left out,
    since NAT behaviour is tested with plain STUN.  ``discover`` stands in for
    :func:`nattype.discover_async`.
    """
    asked, left_out = _plain(servers)
    if not asked or not (udp or tcp):
        why = "no plain STUN server was given" if not left_out else "; ".join(left_out)
        return Diagnosis(NatSummary(), why)
    if discover is None:
        from nattype.discover import discover_async

        discover = discover_async
    try:
        async with asyncio.timeout(seconds + GRACE):
            report = await discover(asked, udp=udp, tcp=tcp, timeout=seconds)
    except TimeoutError:
        return Diagnosis(NatSummary(), f"the diagnosis did not end within {seconds + GRACE:g} s")
    except (StunError, OSError) as error:
        return Diagnosis(NatSummary(), f"the diagnosis failed: {error}")
    return Diagnosis(NatSummary.from_report(report), "; ".join(left_out))


def _plain(servers: Iterable[str | StunUri]) -> tuple[list[StunUri], list[str]]:
    """Return the servers to ask, and why others are not asked."""
    asked: dict[StunUri, None] = {}
    left_out = []
    for server in servers:
        try:
            uri = parse_server(server) if isinstance(server, str) else server
        except StunError as error:
            left_out.append(str(error))
            continue
        if not isinstance(uri, StunUri) or uri.secure:
            left_out.append(f"{server} is no plain STUN server")
        else:
            asked[uri] = None
    return list(asked)[:MOST_SERVERS], left_out


class Diagnosing:
    """A diagnosis in the background: begun on entering the context, over on leaving it.

    ``on_done`` is called with the result, from within the event loop, unless it is left before.
    """

    def __init__(
        self,
        servers: Iterable[str | StunUri],
        *,
        udp: bool = True,
        tcp: bool = True,
        seconds: float = SECONDS,
        discover: Discover | None = None,
        on_done: Callable[[Diagnosis], None] | None = None,
    ) -> None:
        self._servers = tuple(servers)
        self._udp, self._tcp, self._seconds = udp, tcp, seconds
        self._discover = discover
        self._on_done = on_done
        self._task: asyncio.Task[Diagnosis] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="NAT diagnosis")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> Diagnosis:
        found = await diagnose(
            self._servers,
            udp=self._udp,
            tcp=self._tcp,
            seconds=self._seconds,
            discover=self._discover,
        )
        if self._on_done is not None:
            self._on_done(found)
        return found

    @property
    def found(self) -> Diagnosis | None:
        """The result, once there is one."""
        task = self._task
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    async def result(self, patience: float | None = None) -> Diagnosis:
        """Wait for the result; after ``patience`` seconds take what there is, which is nothing."""
        assert self._task is not None, "the context has not been entered"
        done, _ = await asyncio.wait({self._task}, timeout=patience)
        if not done:
            return Diagnosis(NatSummary(), "the diagnosis is still going on")
        return self._task.result()
