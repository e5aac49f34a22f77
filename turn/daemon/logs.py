"""turnd's log: one line an event, as text for a person or as JSON for a machine.

Every line about a client carries its ``session``, the same that the admin socket shows, so that
what happened to one call can be found with grep.  No line holds a password, a key or a nonce.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO

import structlog

from stun.registry import Method
from stun.sansio import SECOND
from turn.meter import Usage
from turn.server.events import (
    AllocationCreated,
    AllocationEnded,
    CannotServe,
    Drained,
    LookUp,
    RequestRefused,
    ServerEvent,
    Serving,
    Started,
)

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]


def logger(
    form: Format = "text", level: Level = "info", stream: TextIO | None = None
) -> structlog.typing.FilteringBoundLogger:
    """Return a logger that writes to ``stream`` (standard error), a line an event."""
    out = sys.stderr if stream is None else stream
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0, sort_keys=False)
    )
    made: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(out),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.EventRenamer("message") if form == "json" else _same,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return made


def _same(_logger: Any, _name: str, event: Any) -> Any:
    return event


_INFO: tuple[type, ...] = (AllocationCreated, AllocationEnded, RequestRefused, Drained)
_DEBUG: tuple[type, ...] = (Serving, Started, LookUp)
_UNWRITTEN: dict[Level, frozenset[type]] = {
    "debug": frozenset(),
    "info": frozenset(_DEBUG),
    "warning": frozenset(_DEBUG + _INFO),
    "error": frozenset(_DEBUG + _INFO),
}


class Journal:
    """Writes what the server machine tells.

    ``level`` is the logger's: what that would not write is not put into words first.
    """

    def __init__(self, log: structlog.typing.FilteringBoundLogger, level: Level = "debug") -> None:
        self._log = log
        self._unwritten = _UNWRITTEN[level]

    def tell(self, event: ServerEvent) -> None:
        """Write the line of one event."""
        if type(event) in self._unwritten:
            return
        log = self._log
        match event:
            case AllocationCreated():
                log.info(
                    "allocation created",
                    session=event.session,
                    user=event.username,
                    client=str(event.client),
                    transport=event.transport.value,
                    relayed=" ".join(map(str, event.relayed)),
                    protocol="tcp" if event.tcp else "udp",
                    lifetime=event.lifetime,
                )
            case AllocationEnded():
                log.info(
                    "allocation ended",
                    session=event.session,
                    user=event.username,
                    client=str(event.client),
                    reason=event.reason.value,
                    seconds=round(event.duration / SECOND, 3),
                    **usage_fields(event.usage),
                )
            case RequestRefused():
                log.info(
                    "request refused",
                    client=str(event.client),
                    method=Method.make(event.method).label,
                    code=int(event.code),
                    detail=event.detail,
                    **{
                        key: value
                        for key, value in (("session", event.session), ("user", event.username))
                        if value is not None
                    },
                )
            case Serving():
                log.debug("serving", transport=event.transport.value, address=str(event.local))
            case CannotServe():
                log.error(
                    "cannot serve",
                    transport=event.transport.value,
                    address=str(event.local),
                    cause=event.cause.value,
                    detail=event.detail,
                )
            case Started():
                log.debug("started", listeners=event.serving, failed=event.failed)
            case Drained():
                log.info("drained: the last allocation is gone")
            case LookUp():
                log.debug("looking up a user", user=event.username)


def usage_fields(usage: Usage) -> dict[str, int]:
    """Return what was relayed as fields of a log line or of the admin socket."""
    return {
        "packets_from_client": usage.packets_from_client,
        "octets_from_client": usage.octets_from_client,
        "packets_to_client": usage.packets_to_client,
        "octets_to_client": usage.octets_to_client,
        "packets_over_rate": usage.dropped,
    }
