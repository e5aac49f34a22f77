"""One connection to the rendezvous: HTTP at first, then a WebSocket (RFC 6455).

The framing is that of the ``websockets`` library, without its input and output: octets in, octets
out.  A plain HTTP request is answered with a page, so that a person, a browser or a health check
finds out what is here.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol, TypeAlias

from websockets.frames import CloseCode, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from ice.rendezvous.protocol import MAX_TEXT, Error, ErrorCode
from stun.sansio import Address

FORWARDED: Final = "X-Forwarded-For"
_MOST_FORWARDED = 32
_END_OF_HEAD = b"\r\n\r\n"

_ABOUT: Final = """\
This is a rendezvous of natkit: programs that have the same code word meet here by WebSocket.
  punch listen --rendezvous URL           prints a code
  punch connect CODE --rendezvous URL     joins the two programs' standard input and output
with URL being this address, beginning with ws:// (or wss://).  /health says how it is.
"""


class Hosts(Protocol):
    """A set of hosts, perhaps by networks."""

    def __contains__(self, host: str, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class Upgraded:
    """It is a WebSocket from now on.  ``forwarded``: what proxies said of where it comes from."""

    forwarded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A message."""

    text: str


@dataclass(frozen=True, slots=True)
class Alive:
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class Left:
    """The client has closed the WebSocket."""


@dataclass(frozen=True, slots=True)
class Broken:
    """What the client sent breaks a rule; it has been told, and the WebSocket is closed."""

    code: ErrorCode
    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The library has failed, so nothing more can be done with this connection."""

    problem: str


Health: TypeAlias = Callable[[], dict[str, object]]
WebEvent: TypeAlias = Upgraded | Text | Alive | Left | Broken | Failed


class _WebSocket(ServerProtocol):
    """The library's, with words for whoever breaks its rules."""

    broken: Broken | None = None

    def fail(self, code: CloseCode | int, reason: str = "") -> None:
        """Fail the WebSocket connection (RFC 6455 section 7.1.7), saying why beforehand."""
        if self.state is OPEN and code != CloseCode.ABNORMAL_CLOSURE:
            if code == CloseCode.MESSAGE_TOO_BIG:
                text = f"a message of more than {MAX_TEXT} octets"
                self.broken = Broken(ErrorCode.TOO_LARGE, text)
            else:
                self.broken = Broken(ErrorCode.MALFORMED, "not what RFC 6455 allows")
            said = Error(self.broken.code.value, self.broken.text)
            self.send_text(said.encode().encode())
        super().fail(code, reason)


class WebConnection:
    """Octets of one connection, in and out.

    After each call :meth:`take_output` gives what is to be sent, and says whether that is all.
    """

    __slots__ = ("_fragments", "_protocol", "_tail", "_text")

    def __init__(self) -> None:
        # No extensions: compressing what is encrypted gains nothing, and costs memory.
        self._protocol = _WebSocket(max_size=MAX_TEXT)
        self._fragments: bytearray | None = None
        self._text = True
        # The last octets of the head of the request, until it has ended.
        self._tail: bytes | None = b""

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._protocol.state is OPEN

    def receive(self, data: bytes, health: Health) -> list[WebEvent]:
        """Take octets; ``health`` tells what ``/health`` says, if it is asked for."""
        try:
            if self._tail is None:
                return self._feed(data, health)
            # What follows the request is read once it is clear that it is a WebSocket: the library
            # reads on, and answers a request no more once it has met what is no frame.
            end = (self._tail + data).find(_END_OF_HEAD)
            if end < 0:
                self._tail = (self._tail + data)[1 - len(_END_OF_HEAD) :]
                return self._feed(data, health)
            end += len(_END_OF_HEAD) - len(self._tail)
            self._tail = None
            found = self._feed(data[:end], health)
            return found + self._feed(data[end:], health) if self.is_open else found
        except Exception as error:
            # Octets of strangers in somebody else's code: what it trips over is theirs alone.
            return [Failed(f"{type(error).__name__}: {error}")]

    def _feed(self, data: bytes, health: Health) -> list[WebEvent]:
        protocol = self._protocol
        found: list[WebEvent] = []
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Request):
                found += self._on_request(event, health)
                continue
            if isinstance(event, Response):  # which only a client is sent
                continue
            match event.opcode:
                case Opcode.TEXT | Opcode.BINARY | Opcode.CONT:
                    if event.opcode is not Opcode.CONT:
                        self._text = event.opcode is Opcode.TEXT
                    found += self._on_data(event.data, whole=event.fin)
                case Opcode.CLOSE:
                    found.append(Left())
                case Opcode.PING | Opcode.PONG:
                    found.append(Alive())
        if protocol.broken is not None:
            found.append(protocol.broken)
        return found

    def _on_data(self, data: bytes | bytearray | memoryview, *, whole: bool) -> list[WebEvent]:
        if self._fragments is not None or not whole:
            # Joined as they come: a message may be cut into as many pieces as it has octets.
            self._fragments = self._fragments or bytearray()
            self._fragments += data
            if not whole:
                return [Alive()]
            data, self._fragments = self._fragments, None
        if not self._text:
            return [Broken(ErrorCode.MALFORMED, "a message is text, not binary")]
        try:
            return [Text(str(data, "utf-8"))]
        except UnicodeDecodeError:
            return [Broken(ErrorCode.MALFORMED, "a message that is not UTF-8")]

    def _on_request(self, request: Request, health: Health) -> list[WebEvent]:
        protocol = self._protocol
        if "Upgrade" not in request.headers:
            protocol.send_response(self._page(request.path.partition("?")[0], health))
            return []
        response = protocol.accept(request)
        protocol.send_response(response)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            return []
        return [Upgraded(tuple(request.headers.get_all(FORWARDED)))]

    def _page(self, path: str, health: Health) -> Response:
        protocol = self._protocol
        match path:
            case "/":
                return protocol.reject(HTTPStatus.OK, _ABOUT)
            case "/health":
                page = protocol.reject(HTTPStatus.OK, json.dumps(health()) + "\n")
                del page.headers["Content-Type"]
                page.headers["Content-Type"] = "application/json"
                return page
            case _:
                return protocol.reject(HTTPStatus.NOT_FOUND, f"There is nothing here.\n\n{_ABOUT}")

    def send(self, text: str) -> None:
        """Send a message, unless the WebSocket is not open."""
        if self.is_open:
            self._protocol.send_text(text.encode())

    def ping(self) -> None:
        """Ask for a sign of life."""
        if self.is_open:
            self._protocol.send_ping(b"")

    def close(self, code: int, reason: str) -> None:
        """Close the WebSocket."""
        if self.is_open:
            self._protocol.send_close(code, reason)

    def take_output(self) -> tuple[bytes, bool]:
        """Return the octets to send, and whether the stream ends behind them."""
        pieces = self._protocol.data_to_send()
        return b"".join(pieces), b"" in pieces


def forwarded_client(remote: Address, forwarded: Iterable[str], trusted: Hosts) -> Address:
    """Return where a client comes from, of what trusted proxies have written (``X-Forwarded-For``).

    Each proxy appends whom it was asked by.  Read from the end, the first that is no trusted proxy
    is the client; whatever stands before it the client may have made up.  Port 0: nobody says.
    """
    hosts = [host.strip() for header in forwarded for host in header.split(",")]
    client = remote
    for text in reversed(hosts[-_MOST_FORWARDED:]):
        if client.host not in trusted:
            break
        found = _address(text)
        if found is None:
            break
        client = found
    return client


def _address(text: str) -> Address | None:
    """Read ``A``, ``A:PORT`` or ``[A]:PORT``."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    try:
        known = port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 65536
        return Address(str(ipaddress.ip_address(host)), int(port) if known else 0)
    except ValueError:
        return None
