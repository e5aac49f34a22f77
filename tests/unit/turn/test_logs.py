"""The lines of turnd's log, as text and as JSON."""

from __future__ import annotations

import io
import json
from typing import Any, get_args

import pytest

from stun.discovery import Transport
from stun.registry import ErrorCode, Method
from stun.sansio import SECOND, Address, Cause
from turn.daemon.logs import Format, Journal, logger
from turn.meter import Usage
from turn.server.events import (
    AllocationCreated,
    AllocationEnded,
    CannotServe,
    Drained,
    EndReason,
    LookUp,
    RequestRefused,
    ServerEvent,
    Serving,
    Started,
)

CLIENT = Address("198.51.100.7", 40000)
SERVER = Address("203.0.113.1", 3478)

CREATED = AllocationCreated(
    session="abcdefghijkl",
    username="alice",
    client=CLIENT,
    server=SERVER,
    transport=Transport.TLS,
    relayed=(Address("203.0.113.1", 50000), Address("2001:db8::1", 50002)),
    tcp=False,
    lifetime=600,
)


def ended() -> AllocationEnded:
    usage = Usage()
    usage.packets_from_client, usage.octets_from_client = 3, 300
    usage.packets_to_client, usage.octets_to_client = 2, 200
    usage.dropped = 1
    return AllocationEnded(
        "abcdefghijkl", "alice", CLIENT, EndReason.EXPIRED, 1_500 * SECOND // 1000, usage
    )


EVENTS: dict[str, tuple[ServerEvent, dict[str, Any]]] = {
    "created": (
        CREATED,
        {
            "message": "allocation created",
            "level": "info",
            "session": "abcdefghijkl",
            "user": "alice",
            "client": "198.51.100.7:40000",
            "transport": "TLS",
            "relayed": "203.0.113.1:50000 [2001:db8::1]:50002",
            "protocol": "udp",
            "lifetime": 600,
        },
    ),
    "ended": (
        ended(),
        {
            "message": "allocation ended",
            "level": "info",
            "session": "abcdefghijkl",
            "user": "alice",
            "client": "198.51.100.7:40000",
            "reason": "its lifetime ran out",
            "seconds": 1.5,
            "packets_from_client": 3,
            "octets_from_client": 300,
            "packets_to_client": 2,
            "octets_to_client": 200,
            "packets_over_rate": 1,
        },
    ),
    "refused": (
        RequestRefused(
            CLIENT,
            Method.CREATE_PERMISSION,
            ErrorCode.FORBIDDEN,
            "RFC 1918",
            session="abcdefghijkl",
        ),
        {
            "message": "request refused",
            "level": "info",
            "client": "198.51.100.7:40000",
            "method": "CreatePermission",
            "code": 403,
            "detail": "RFC 1918",
            "session": "abcdefghijkl",
        },
    ),
    "serving": (
        Serving(Transport.UDP, SERVER),
        {
            "message": "serving",
            "level": "debug",
            "transport": "UDP",
            "address": "203.0.113.1:3478",
        },
    ),
    "cannot serve": (
        CannotServe(Transport.TCP, SERVER, Cause.ADDRESS_IN_USE, "errno 98"),
        {
            "message": "cannot serve",
            "level": "error",
            "transport": "TCP",
            "address": "203.0.113.1:3478",
            "cause": "address already in use",
            "detail": "errno 98",
        },
    ),
    "started": (
        Started(3, 1),
        {"message": "started", "level": "debug", "listeners": 3, "failed": 1},
    ),
    "drained": (Drained(), {"message": "drained: the last allocation is gone", "level": "info"}),
    "lookup": (
        LookUp("alice"),
        {"message": "looking up a user", "level": "debug", "user": "alice"},
    ),
}


def test_every_event_has_its_line() -> None:
    assert {type(event) for event, _ in EVENTS.values()} == set(get_args(ServerEvent))


@pytest.mark.parametrize("name", EVENTS)
def test_a_line_of_json(name: str) -> None:
    event, expected = EVENTS[name]
    out = io.StringIO()
    Journal(logger("json", "debug", out)).tell(event)
    (line,) = out.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("timestamp").endswith("Z")
    assert found == expected


@pytest.mark.parametrize("name", EVENTS)
def test_a_line_of_text(name: str) -> None:
    event, expected = EVENTS[name]
    out = io.StringIO()
    Journal(logger("text", "debug", out)).tell(event)
    (line,) = out.getvalue().splitlines()
    assert expected["message"] in line
    assert "\x1b" not in line  # no colours where no terminal is
    for key, value in expected.items():
        if key not in {"message", "level"}:
            assert f"{key}={value}" in line or f"{key}='{value}'" in line


@pytest.mark.parametrize("form", get_args(Format))
def test_what_is_below_the_level_is_left_out(form: Format) -> None:
    out = io.StringIO()
    journal = Journal(logger(form, "warning", out))
    for event, _ in EVENTS.values():
        journal.tell(event)
    (line,) = out.getvalue().splitlines()
    assert "cannot serve" in line


def test_a_name_cannot_forge_a_line() -> None:
    forged = "alice\n2026-01-01T00:00:00Z [error] all is lost\x1b[31m"
    for form in get_args(Format):
        out = io.StringIO()
        event = RequestRefused(CLIENT, Method.ALLOCATE, 401, "", username=forged)
        Journal(logger(form, "info", out)).tell(event)
        assert len(out.getvalue().splitlines()) == 1
        assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_what_would_not_be_written_is_not_put_into_words(level: Any) -> None:
    everything, some = io.StringIO(), io.StringIO()
    for event, _ in EVENTS.values():
        Journal(logger("json", level, everything)).tell(event)
        Journal(logger("json", level, some), level).tell(event)

    def messages(out: io.StringIO) -> list[str]:
        return [json.loads(line)["message"] for line in out.getvalue().splitlines()]

    assert messages(some) == messages(everything)
    assert messages(some)
    if level == "error":
        unused: Any = None  # whoever used this logger would fail
        journal = Journal(unused, level)
        for event, _ in EVENTS.values():
            if not isinstance(event, CannotServe):
                journal.tell(event)
