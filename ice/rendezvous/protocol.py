"""The messages between a rendezvous and its clients: one JSON object in one WebSocket text message.

Theory of operation.  Each kind of message is a value here; ``encode`` makes its text, and
:func:`from_client` and :func:`from_server` read one.  Neither side trusts the other: every reader
bounds what it takes, and raises :class:`BadMessage` for anything else.  Fields that are not known
are passed over, so that a later version may add some; a server's message of a type that is not
known is :class:`Unknown`, which a client passes over as well.

What two peers say to each other (``hello`` and ``data``) is base64 (RFC 4648 section 4, with
padding) and means nothing to the server.

======================  ===========================================================================
client to server
======================  ===========================================================================
:class:`Join`           ``{"type": "join", "v": 1, "name": NAME or null, "hello": BASE64}``
:class:`Message`        ``{"type": "message", "data": BASE64}``
:class:`Leave`          ``{"type": "leave"}``
:class:`Time`           ``{"type": "time", "sent": NUMBER}``
======================  ===========================================================================

======================  ===========================================================================
server to client
======================  ===========================================================================
:class:`Welcome`        ``{"type": "welcome", "v": 1, "observed": {"host", "port"}, "time": UNIX,
                        "software", "turn": {"urls", "username", "credential", "ttl"} or null,
                        "stun": [URI...], "limits": {"message", "hello", "wait"}}``
:class:`Joined`         ``{"type": "joined", "name": NAME, "seconds": NUMBER}``
:class:`Peer`           ``{"type": "peer", "hello": BASE64}``
:class:`Message`        as above
:class:`Gone`           ``{"type": "gone", "reason": TEXT}``
:class:`TimeAnswer`     ``{"type": "time", "sent": NUMBER, "time": UNIX}``
:class:`Error`          ``{"type": "error", "code": CODE, "text": TEXT}``
======================  ===========================================================================

A conversation: the server sends Welcome at once; the client sends Join, once; the server answers
with Joined, and with Peer when there are two; messages are forwarded both ways; Gone ends it.
After Gone and after Error the server closes the connection.  Time may be asked for at any time.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NoReturn, TypeAlias

from ice.rendezvous.errors import RendezvousError
from stun.sansio import Address

VERSION: Final = 1
"""Of this protocol: what Join and Welcome say as ``v``."""

MAX_HELLO: Final = 1024
"""Octets of a hello, decoded.  A message of SPAKE2 has 33."""
MAX_DATA: Final = 65536
"""Octets of a message's data, decoded."""
MAX_TEXT: Final = 4 * ((MAX_DATA + 2) // 3) + 1024
"""Octets of a WebSocket message: the longest data in base64, and what stands around it."""
MAX_WORDS: Final = 1024
"""Characters of a text for a person."""
MAX_URIS: Final = 32
"""STUN and TURN URIs, each, in a Welcome."""
MAX_URI: Final = 1024
"""Characters of one."""

_NAME: Final = re.compile(r"[a-z0-9._]{1,64}", re.ASCII)
_LARGEST: Final = float(1 << 63)


class ErrorCode(StrEnum):
    """What an :class:`Error` says; the values are stable, and a client may meet others."""

    BUSY = "busy"
    """Two have met under this name already."""
    UNKNOWN_NAME = "unknown-name"
    """Nobody waits under this one-time name: it was used, has expired or was never given out."""
    EXPIRED = "expired"
    """Nobody came within the time that a client may wait."""
    MALFORMED = "malformed"
    """Not a message of this protocol, or not at this time."""
    TOO_LARGE = "too-large"
    """A hello, a message or a name is longer than it may be."""
    TOO_MANY = "too-many"
    """Over a rate or a number that an address or the server may have."""
    VERSION = "version"
    """Another version of this protocol is spoken."""
    IDLE = "idle"
    """The client did not join in time."""
    SLOW = "slow"
    """The client does not read what it is sent."""
    UNAVAILABLE = "unavailable"
    """The server cannot do it for the moment: it lacks what it keeps its names in."""
    SHUTTING_DOWN = "shutting-down"
    """The server is being stopped; another, or the same, may be there in a moment."""


class GoneReason(StrEnum):
    """Why the peer is gone; a client may meet others."""

    LEFT = "left"
    """It said so, or closed its connection."""
    LOST = "lost"
    """Its connection broke, or it answers no more, or the server that it was at is gone."""
    EXPELLED = "expelled"
    """The server ended its connection: it broke a rule or a limit."""


class BadMessage(RendezvousError):
    """What came is no message of this protocol: ``code`` for programs, ``text`` for people."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code: ErrorCode = code
        self.text = text


def is_name(text: str) -> bool:
    """Whether ``text`` can be a name: 1 to 64 of ``a-z 0-9 . _``."""
    return _NAME.fullmatch(text) is not None


def is_one_time(name: str) -> bool:
    """Whether a name is a one-time name, which only a server can give out: digits alone."""
    return name.isascii() and name.isdecimal()


# Both ways. ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """What one peer says to the other; sealed, so that nobody between can read or change it."""

    data: bytes = field(repr=False)

    def encode(self) -> str:
        """Return the text to send."""
        # Base64 needs no escapes, and this is the one message that is long.
        return f'{{"type":"message","data":"{_to_base64(self.data)}"}}'


# Client to server. --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Join:
    """The client wants to meet whoever joins the same name.

    ``name``: ``None`` asks for a one-time name.  ``hello``: given to the peer as it is.
    """

    name: str | None
    hello: bytes = field(repr=False)

    def encode(self) -> str:
        """Return the text to send."""
        return _text(
            {"type": "join", "v": VERSION, "name": self.name, "hello": _to_base64(self.hello)}
        )


@dataclass(frozen=True, slots=True)
class Leave:
    """The client goes; the server tells its peer and closes the connection."""

    def encode(self) -> str:
        """Return the text to send."""
        return '{"type":"leave"}'


@dataclass(frozen=True, slots=True)
class Time:
    """The client asks for the time.  ``sent`` comes back as it is: the client's own clock."""

    sent: float

    def encode(self) -> str:
        """Return the text to send."""
        return _text({"type": "time", "sent": self.sent})


ClientMessage: TypeAlias = Join | Message | Leave | Time


# Server to client. --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TurnAccess:
    """A time-limited TURN credential and where it is good; ``ttl`` in seconds from now on."""

    urls: tuple[str, ...]
    username: str
    credential: str = field(repr=False)
    ttl: int


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the server takes: octets of a message's data and of a hello, seconds of waiting."""

    message: int = MAX_DATA
    hello: int = MAX_HELLO
    wait: int = 3600


@dataclass(frozen=True, slots=True)
class Welcome:
    """The first thing that the server says.

    ``observed``: the transport address that the client came from; port 0 where a proxy stands
    between and does not say.  ``time``: seconds since 1970 by the server's clock.
    """

    observed: Address
    time: float
    software: str = ""
    turn: TurnAccess | None = None
    stun: tuple[str, ...] = ()
    limits: ServerLimits = ServerLimits()

    def encode(self) -> str:
        """Return the text to send."""
        turn, limits = self.turn, self.limits
        return _text(
            {
                "type": "welcome",
                "v": VERSION,
                "observed": {"host": self.observed.host, "port": self.observed.port},
                "time": self.time,
                "software": self.software,
                "turn": None
                if turn is None
                else {
                    "urls": list(turn.urls),
                    "username": turn.username,
                    "credential": turn.credential,
                    "ttl": turn.ttl,
                },
                "stun": list(self.stun),
                "limits": {
                    "message": limits.message,
                    "hello": limits.hello,
                    "wait": limits.wait,
                },
            }
        )


@dataclass(frozen=True, slots=True)
class Joined:
    """The client is known by ``name``, which is good for ``seconds`` if nobody comes before."""

    name: str
    seconds: float

    def encode(self) -> str:
        """Return the text to send."""
        return _text({"type": "joined", "name": self.name, "seconds": self.seconds})


@dataclass(frozen=True, slots=True)
class Peer:
    """There are two now; ``hello`` is the other one's."""

    hello: bytes = field(repr=False)

    def encode(self) -> str:
        """Return the text to send."""
        return _text({"type": "peer", "hello": _to_base64(self.hello)})


@dataclass(frozen=True, slots=True)
class Gone:
    """The peer is gone; ``reason`` is mostly a :class:`GoneReason`."""

    reason: str

    def encode(self) -> str:
        """Return the text to send."""
        return _text({"type": "gone", "reason": self.reason})


@dataclass(frozen=True, slots=True)
class TimeAnswer:
    """The time by the server's clock, seconds since 1970, and what the client had sent."""

    sent: float
    time: float

    def encode(self) -> str:
        """Return the text to send."""
        return _text({"type": "time", "sent": self.sent, "time": self.time})


@dataclass(frozen=True, slots=True)
class Error:
    """The server refuses; ``code`` is mostly an :class:`ErrorCode`, ``text`` is for a person."""

    code: str
    text: str

    def encode(self) -> str:
        """Return the text to send."""
        return _text({"type": "error", "code": self.code, "text": self.text})


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a later version; a client passes over it."""

    kind: str


ServerMessage: TypeAlias = Welcome | Joined | Peer | Message | Gone | TimeAnswer | Error
AnyServerMessage: TypeAlias = ServerMessage | Unknown


# Reading. -----------------------------------------------------------------------------------------


def from_client(text: str | bytes) -> ClientMessage:
    """Read what a client sent.  Raises :class:`BadMessage`, whose code the client can be told."""
    found = _object(text)
    kind = found.get("type")
    reader = _FROM_CLIENT.get(kind) if isinstance(kind, str) else None
    if reader is None:
        _refuse(
            f"no message of a client has the type {_quoted(kind)}; there are "
            + ", ".join(sorted(_FROM_CLIENT))
        )
    return reader(found)


def from_server(text: str | bytes) -> AnyServerMessage:
    """Read what a server sent.  Raises :class:`BadMessage`."""
    found = _object(text)
    kind = found.get("type")
    if not isinstance(kind, str):
        _refuse("a message without a type")
    reader = _FROM_SERVER.get(kind)
    return Unknown(_clean(kind, 64)) if reader is None else reader(found)


def _object(text: str | bytes) -> dict[str, Any]:
    # No character is less than one octet, so this holds for both.
    if len(text) > MAX_TEXT:
        _refuse(f"a message of more than {MAX_TEXT} octets", ErrorCode.TOO_LARGE)
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        _refuse("a message that is not JSON")
    if not isinstance(found, dict):
        _refuse("a message that is not a JSON object")
    return found


def _no_number(_: str) -> NoReturn:
    # RFC 8259 section 6: "such as Infinity and NaN are not permitted".
    raise ValueError


def _message(found: Mapping[str, Any]) -> Message:
    return Message(_octets(found, "data", MAX_DATA))


def _join(found: Mapping[str, Any]) -> Join:
    version = found.get("v")
    if type(version) is not int or version != VERSION:
        _refuse(
            f"this server speaks version {VERSION} of the protocol, not {_quoted(version)}",
            ErrorCode.VERSION,
        )
    name = found.get("name")
    if name is not None and not (isinstance(name, str) and is_name(name)):
        _refuse(
            "a name has 1 to 64 characters, each a small letter a to z, a digit, a dot or an "
            "underscore",
            ErrorCode.TOO_LARGE
            if isinstance(name, str) and len(name) > 64
            else ErrorCode.MALFORMED,
        )
    return Join(name, _octets(found, "hello", MAX_HELLO))


def _time(found: Mapping[str, Any]) -> Time:
    return Time(_number(found, "sent"))


def _welcome(found: Mapping[str, Any]) -> Welcome:
    version = found.get("v")
    if type(version) is not int or version != VERSION:
        _refuse(
            f"the server speaks version {_quoted(version)} of the protocol, this program version "
            f"{VERSION}: one of them is too old",
            ErrorCode.VERSION,
        )
    observed = _table(found, "observed")
    port = observed.get("port")
    if type(port) is not int or not 0 <= port < 65536:
        _refuse("the observed port is no port")
    turn = found.get("turn")
    return Welcome(
        Address(_short(observed, "host", 64), port),
        _number(found, "time"),
        _words(found, "software", 128) if "software" in found else "",
        None if turn is None else _turn(_table(found, "turn")),
        _uris(found, "stun"),
        _limits(_table(found, "limits")) if "limits" in found else ServerLimits(),
    )


def _turn(found: Mapping[str, Any]) -> TurnAccess:
    return TurnAccess(
        _uris(found, "urls"),
        _short(found, "username", 508),
        _short(found, "credential", 1024),
        _count(found, "ttl", 1 << 40),
    )


def _limits(found: Mapping[str, Any]) -> ServerLimits:
    # Whatever more a server takes, a client of this version sends no more than it may read.
    return ServerLimits(
        min(_count(found, "message", 1 << 40), MAX_DATA),
        min(_count(found, "hello", 1 << 40), MAX_HELLO),
        _count(found, "wait", 1 << 40),
    )


def _joined(found: Mapping[str, Any]) -> Joined:
    name = found.get("name")
    if not (isinstance(name, str) and is_name(name)):
        _refuse("the name that the server gave is no name")
    seconds = _number(found, "seconds")
    if seconds < 0:
        _refuse("a name that has expired before it was given")
    return Joined(name, seconds)


def _peer(found: Mapping[str, Any]) -> Peer:
    return Peer(_octets(found, "hello", MAX_HELLO))


def _gone(found: Mapping[str, Any]) -> Gone:
    return Gone(_words(found, "reason", 64))


def _time_answer(found: Mapping[str, Any]) -> TimeAnswer:
    return TimeAnswer(_number(found, "sent"), _number(found, "time"))


def _error(found: Mapping[str, Any]) -> Error:
    return Error(_words(found, "code", 64), _words(found, "text", MAX_WORDS))


_FROM_CLIENT: Final[Mapping[str, Callable[[Mapping[str, Any]], ClientMessage]]] = {
    "join": _join,
    "message": _message,
    "leave": lambda _: Leave(),
    "time": _time,
}

_FROM_SERVER: Final[Mapping[str, Callable[[Mapping[str, Any]], ServerMessage]]] = {
    "welcome": _welcome,
    "joined": _joined,
    "peer": _peer,
    "message": _message,
    "gone": _gone,
    "time": _time_answer,
    "error": _error,
}


# Fields. ------------------------------------------------------------------------------------------


def _refuse(text: str, code: ErrorCode = ErrorCode.MALFORMED) -> NoReturn:
    raise BadMessage(code, text) from None


def _octets(found: Mapping[str, Any], key: str, most: int) -> bytes:
    value = found.get(key)
    if not isinstance(value, str):
        _refuse(f"{key} must be octets in base64")
    if len(value) > 4 * ((most + 2) // 3):
        _refuse(f"{key} has more than {most} octets", ErrorCode.TOO_LARGE)
    try:
        octets = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        _refuse(f"{key} must be octets in base64")
    if len(octets) > most:
        _refuse(f"{key} has more than {most} octets", ErrorCode.TOO_LARGE)
    return octets


def _number(found: Mapping[str, Any], key: str) -> float:
    value = found.get(key)
    # 1e999 is read as infinity, which is not less than the largest.
    if type(value) is not int and type(value) is not float:
        _refuse(f"{key} must be a number")
    if not -_LARGEST < value < _LARGEST:
        _refuse(f"{key} must be a number")
    return float(value)


def _count(found: Mapping[str, Any], key: str, most: int) -> int:
    value = found.get(key)
    if type(value) is not int or not 0 <= value <= most:
        _refuse(f"{key} must be a whole number, 0 or more")
    return value


def _table(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = found.get(key)
    if not isinstance(value, dict):
        _refuse(f"{key} must be an object")
    return value


def _short(found: Mapping[str, Any], key: str, most: int) -> str:
    value = found.get(key)
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        _refuse(f"{key} must be a text of at most {most} characters")
    return value


def _words(found: Mapping[str, Any], key: str, most: int) -> str:
    value = found.get(key)
    if not isinstance(value, str):
        _refuse(f"{key} must be a text")
    return _clean(value, most)


def _clean(text: str, most: int) -> str:
    """Return a text that may be shown on a terminal, whoever wrote it."""
    return "".join(one if one.isprintable() else "?" for one in text[:most])


def _uris(found: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = found.get(key, [])
    if not isinstance(value, list) or len(value) > MAX_URIS:
        _refuse(f"{key} must be a list of at most {MAX_URIS} URIs")
    for one in value:
        if not isinstance(one, str) or len(one) > MAX_URI or not one.isprintable():
            _refuse(f"{key}: a URI is a text of at most {MAX_URI} characters")
    return tuple(value)


def _quoted(value: object) -> str:
    if isinstance(value, str):
        return f'"{_clean(value, 32)}"'
    return repr(value) if isinstance(value, int) and abs(value) < 1 << 63 else "that"


def _to_base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def _text(found: Mapping[str, Any]) -> str:
    return json.dumps(found, separators=(",", ":"))
