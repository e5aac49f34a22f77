"""What ``punch --json`` writes on standard error: one object a line, each declared once, here.

Theory of operation.  An event is a frozen dataclass.  Its class says in ``event`` how it is called,
and each field carries the sentence that documents it; the line, the JSON Schema (draft 2020-12) and
the table in ``docs/punch.md`` follow from that.  Names and meanings are stable: a program that
passes over events and fields that it does not know will go on working.
"""

from __future__ import annotations

import dataclasses
import json
import types
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ice.link.events import Kind, Transport

FileState: TypeAlias = Literal["started", "done", "same", "failed", "skipped"]
State: TypeAlias = Literal["opened", "refused", "closed", "reset"]

SCHEMA = 1
"""The version of the form.  It grows only when an event or a field changes its meaning."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """This side is at the rendezvous and waits for the other one."""

    event: ClassVar = "waiting"
    code: Annotated[str, "what the other side needs"]
    seconds: Annotated[float, "for how long the code is good"]
    command: Annotated[str, "what the other side has to type"]


@dataclass(frozen=True, slots=True)
class Met:
    """The other side is there and has proved that it has the same code."""

    event: ClassVar = "met"
    ms: Annotated[float, "milliseconds since this side began"]


@dataclass(frozen=True, slots=True)
class Path:
    """What is sent goes this way from now on."""

    event: ClassVar = "path"
    kind: Annotated[Kind, "through a relay or directly"]
    transport: Annotated[Transport, "what leaves this host"]
    ms: Annotated[float, "milliseconds since the other side was met"]
    why: Annotated[str, "why it changed"]
    local: Annotated[str, "the transport address at this end, if known"] = ""
    remote: Annotated[str, "the transport address at the other end, if known"] = ""
    rtt: Annotated[float | None, "round-trip time of the path in milliseconds"] = None
    relay: Annotated[str, "the URI of the relay that this side uses, if it does"] = ""


@dataclass(frozen=True, slots=True)
class PathLost:
    """A path is gone; another one carries on if there is one."""

    event: ClassVar = "path-lost"
    kind: Annotated[Kind, "through a relay or directly"]
    transport: Annotated[Transport, "what left this host"]
    why: Annotated[str, "why it is gone"]


@dataclass(frozen=True, slots=True)
class Trying:
    """A direct path is sought."""

    event: ClassVar = "trying"
    transport: Annotated[Transport, "over what"]
    strategy: Annotated[str, "how"]
    attempt: Annotated[int, "the number of the attempt"]
    why: Annotated[str, "why that may work"] = ""


@dataclass(frozen=True, slots=True)
class NotDirect:
    """An attempt at a direct path came to nothing."""

    event: ClassVar = "not-direct"
    transport: Annotated[Transport, "over what"]
    strategy: Annotated[str, "how"]
    attempt: Annotated[int, "the number of the attempt"]
    why: Annotated[str, "why it failed"]
    again: Annotated[float | None, "seconds until the next attempt, or null: there is none"] = None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """There is no path for the moment; nothing is lost, and paths are sought."""

    event: ClassVar = "interrupted"
    why: Annotated[str, "what happened"]


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is over."""

    event: ClassVar = "ended"
    error: Annotated[str | None, "why, or null: both sides had finished"] = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What is about to be sent or received."""

    event: ClassVar = "offer"
    files: Annotated[int, "how many files"]
    octets: Annotated[int, "their octets altogether"]


@dataclass(frozen=True, slots=True)
class File:
    """What becomes of one file."""

    event: ClassVar = "file"
    name: Annotated[str, "its path, as the receiving side sees it, parts joined by /"]
    state: Annotated[
        FileState, "same: it was there already; skipped: it is no file that can be sent"
    ]
    size: Annotated[int, "its octets"] = 0
    offset: Annotated[int, "where the transfer goes on from; 0: it is a new one"] = 0
    sha256: Annotated[str | None, "of the whole file, checked at both ends"] = None
    why: Annotated[str | None, "what is wrong"] = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the transfer is; about once a second."""

    event: ClassVar = "progress"
    octets: Annotated[int, "of all files, as far as they are there"]
    total: Annotated[int, "of all files"]


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth knowing that is no error."""

    event: ClassVar = "note"
    text: Annotated[str, "words for a person"]


@dataclass(frozen=True, slots=True)
class Listening:
    """The port to be forwarded is open."""

    event: ClassVar = "listening"
    host: Annotated[str, "the address"]
    port: Annotated[int, "the port"]


@dataclass(frozen=True, slots=True)
class Connection:
    """What becomes of one forwarded connection."""

    event: ClassVar = "connection"
    number: Annotated[int, "the same number at both sides"]
    state: Annotated[State, "refused: by the target; closed: both directions had ended"]
    peer: Annotated[str, "who came, or the target"] = ""
    why: Annotated[str | None, "why it was refused or reset"] = None


@dataclass(frozen=True, slots=True)
class Summary:
    """The end: what there was."""

    event: ClassVar = "summary"
    sent: Annotated[int, "octets given to the connection"]
    received: Annotated[int, "octets taken from the connection"]
    seconds: Annotated[float, "since the other side was met"]
    direct: Annotated[float | None, "the share of the octets that went directly, 0 to 1"] = None


@dataclass(frozen=True, slots=True)
class Error:
    """Why the command fails.  It is the last event."""

    event: ClassVar = "error"
    code: Annotated[str, "a word that stays the same"]
    text: Annotated[str, "what happened and what to do"]


Event: TypeAlias = (
    Waiting
    | Met
    | Path
    | PathLost
    | Trying
    | NotDirect
    | Interrupted
    | Ended
    | Offer
    | File
    | Progress
    | Note
    | Listening
    | Connection
    | Summary
    | Error
)

EVENTS: tuple[type[Event], ...] = get_args(Event)


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as it is written."""
    fields = {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(event).items()
    }
    return {"event": event.event} | fields


def line(event: Event) -> str:
    """Return the line that is written: ASCII, so that no terminal and no locale matters."""
    return json.dumps(to_json(event), allow_nan=False)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a line."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of punch --json",
        "description": f"Version {SCHEMA}. Events and fields may be added.",
        "oneOf": [{"$ref": f"#/$defs/{kind.event}"} for kind in EVENTS],
        "$defs": {kind.event: _object(kind) for kind in EVENTS},
    }


def _object(kind: type[Event]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    properties: dict[str, Any] = {"event": {"const": kind.event}}
    for each in dataclasses.fields(kind):
        of, description = get_args(hints[each.name])
        properties[each.name] = _value(of) | {"description": description}
    return {
        "type": "object",
        "description": (kind.__doc__ or "").strip(),
        "properties": properties,
        "required": list(properties),
    }


_NAMES = {str: "string", int: "integer", float: "number"}


def _value(of: Any) -> dict[str, Any]:
    if get_origin(of) is Literal:
        return {"enum": list(get_args(of))}
    if get_origin(of) in {Union, types.UnionType}:
        inner = next(each for each in get_args(of) if each is not type(None))
        return {"type": [_NAMES[inner], "null"]}
    return {"type": _NAMES[of]}
