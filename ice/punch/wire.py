"""What `punch send` and `punch recv` say to each other.

After the greeting both directions are a sequence of frames: a kind (one octet), a length (four, in
network order) and so many octets.  A MESSAGE is a JSON object, ``{"say": NAME, ...}``; DATA is a
part of the file that has been started.  Files have numbers, from 1 upwards in the order of their
heads, and their contents follow in the same order:

====================  ============================  ================================================
sender                receiver                      meaning
====================  ============================  ================================================
total                                               how many files and octets there will be
head                                                a file or a directory; several may be under way
..                    want                          send it; what is there of it already
..                    have                          the hash of what is there, when it is known
start, DATA..., end                                 the contents from an offset on, then the hash
..                    kept                          it is complete, checked, and has its name
leave                                               no more comes of this file, and why
..                    refuse                        it is not taken, at any time, and why
done                                                there are no more files
====================  ============================  ================================================

Each message is declared below, with what its fields may be; nothing else gets past :func:`decode`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Final, TypeAlias, get_args, get_type_hints

from ice.punch.link import PunchError, Traffic

HEADER: Final = struct.Struct("!BI")
MOST_MESSAGE: Final = 1 << 17
MOST_DATA: Final = 1 << 20
MOST_DEPTH: Final = 64
"""Directories within directories."""
MOST_TEXT: Final = 1000
AHEAD: Final = 64
"""Heads that may be under way."""


class Kind(IntEnum):
    """The kinds of frames."""

    MESSAGE = 1
    DATA = 2


class WireError(PunchError):
    """The other side does not keep to the protocol."""

    def __init__(self, why: str) -> None:
        super().__init__("protocol", f"the other side does not keep to the protocol: {why}")


# What a field may be. -----------------------------------------------------------------------------


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MOST_TEXT


def _sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _parts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= MOST_DEPTH
        and all(isinstance(part, str) and len(part) <= MOST_TEXT for part in value)
    )


Number = Annotated[int, _whole(1, (1 << 31) - 1)]
Octets = Annotated[int, _whole(0, (1 << 63) - 1)]
Instant = Annotated[int, _whole(-(1 << 63), (1 << 63) - 1)]
Mode = Annotated[int, _whole(0, 0o7777)]
Text = Annotated[str, _text]
Sha256 = Annotated[str, _sha256]
Flag = Annotated[bool, _flag]
Parts = Annotated[list[str], _parts]


# Messages. ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Total:
    """How many files there will be, and their octets, as far as that is known now."""

    say: ClassVar = "total"
    files: Octets
    octets: Octets


@dataclass(frozen=True, slots=True)
class Head:
    """A file or a directory.  ``mtime``: nanoseconds since 1970; ``mode``: permission bits."""

    say: ClassVar = "head"
    number: Number
    parts: Parts
    directory: Flag
    size: Octets
    mtime: Instant
    mode: Mode


@dataclass(frozen=True, slots=True)
class Start:
    """The contents follow from ``offset`` on, up to ``size``."""

    say: ClassVar = "start"
    number: Number
    offset: Octets
    size: Octets
    mtime: Instant


@dataclass(frozen=True, slots=True)
class End:
    """All is sent, and this is the hash of the whole.  ``note``: what is odd about it, if so."""

    say: ClassVar = "end"
    number: Number
    sha256: Sha256
    note: Text


@dataclass(frozen=True, slots=True)
class Leave:
    """No more comes of this file."""

    say: ClassVar = "leave"
    number: Number
    why: Text


@dataclass(frozen=True, slots=True)
class Done:
    """There are no more files."""

    say: ClassVar = "done"


@dataclass(frozen=True, slots=True)
class Want:
    """Send it.  If ``offset`` is not 0, so much is there already and its hash follows.

    ``replace``: if that is something else, send everything, rather than nothing.
    """

    say: ClassVar = "want"
    number: Number
    offset: Octets
    replace: Flag


@dataclass(frozen=True, slots=True)
class Have:
    """The hash of what is there already."""

    say: ClassVar = "have"
    number: Number
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Kept:
    """The file is complete, checked, and has its name.  ``same``: it was there before."""

    say: ClassVar = "kept"
    number: Number
    same: Flag


@dataclass(frozen=True, slots=True)
class Refuse:
    """The file is not taken."""

    say: ClassVar = "refuse"
    number: Number
    why: Text


Message: TypeAlias = Total | Head | Start | End | Leave | Done | Want | Have | Kept | Refuse

_BY_NAME: Final[dict[str, type[Message]]] = {kind.say: kind for kind in get_args(Message)}
_CHECKS: Final[dict[str, dict[str, Callable[[Any], bool]]]] = {
    name: {
        field: get_args(hint)[1]
        for field, hint in get_type_hints(kind, include_extras=True).items()
        if field != "say"
    }
    for name, kind in _BY_NAME.items()
}


def encode(message: Message) -> bytes:
    """Return the frame of a message."""
    values = dataclasses.asdict(message)
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = value[:MOST_TEXT]
    body = json.dumps({"say": message.say} | values).encode("ascii")
    return HEADER.pack(Kind.MESSAGE, len(body)) + body


def data_header(octets: int) -> bytes:
    """Return the header of a DATA frame."""
    return HEADER.pack(Kind.DATA, octets)


def decode(body: bytes) -> Message:
    """Return the message in a frame.  Raises :class:`WireError`."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        raise WireError("a message that is no JSON") from None
    say = raw.get("say") if isinstance(raw, dict) else None
    if not isinstance(say, str) or say not in _BY_NAME:
        raise WireError("a message that is none")
    checks = _CHECKS[say]
    for name, right in checks.items():
        if not right(raw.get(name)):
            raise WireError(f"{say} with a wrong {name}")
    return _BY_NAME[say](**{name: raw[name] for name in checks})


async def read_frame(reader: asyncio.StreamReader, traffic: Traffic) -> Message | int | None:
    """Read a message, or the header of a DATA frame: its octets; None at the end.

    Raises :class:`WireError`.
    """
    try:
        kind, length = HEADER.unpack(await reader.readexactly(HEADER.size))
        traffic.received += HEADER.size + (length if kind == Kind.MESSAGE else 0)
        if kind == Kind.DATA and length <= MOST_DATA:
            return int(length)
        if kind != Kind.MESSAGE or length > MOST_MESSAGE:
            raise WireError(f"a frame of kind {kind} and {length} octets")
        return decode(await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise WireError("it ended within a frame") from None
        return None
