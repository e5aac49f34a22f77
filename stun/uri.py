"""``stun:``, ``stuns:``, ``turn:`` and ``turns:`` URIs (RFC 7064, RFC 7065, RFC 3986).

They are not hierarchical, and "Developers MUST NOT use a generic hierarchical URI parser" on them,
so they are parsed here, character by character where it matters, and an error says what is wrong
and where.  :func:`parse` is strict; :func:`parse_server` also takes what people type on a command
line.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from stun.attributes import host_text
from stun.errors import UsageError

DEFAULT_PORT = 3478
"""STUN and TURN over UDP and TCP (RFC 8489 section 18.6)."""
DEFAULT_TLS_PORT = 5349
"""STUN and TURN over TLS and DTLS."""

_SCHEMES = ("stun", "stuns", "turn", "turns")

# RFC 3986 section 2.
_UNRESERVED = r"A-Za-z0-9._~\-"
_SUB_DELIMS = "!$&'()*+,;="
_REG_NAME = re.compile(f"(?:[{_UNRESERVED}{_SUB_DELIMS}]|%[0-9A-Fa-f]{{2}})*")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_DIGITS = re.compile(r"[0-9]+")
_TRANSPORT = _ZONE = re.compile(f"[{_UNRESERVED}]+")
_IPV4 = re.compile(
    r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)", re.ASCII
)


class UriError(UsageError):
    """A URI that is not one: ``problem`` at ``position`` (counted from 0) in ``text``."""

    def __init__(self, text: str, position: int, problem: str) -> None:
        super().__init__(f"{text!r}: {problem} (at character {position + 1})")
        self.text = text
        self.position = position
        self.problem = problem


class _ServerUri:
    """What the two kinds of URI share; each declares its fields in the order of its grammar."""

    __slots__ = ()
    _name: ClassVar[str]
    host: str
    port: int | None
    secure: bool

    @property
    def scheme(self) -> str:
        """The scheme."""
        return f"{self._name}s" if self.secure else self._name

    @property
    def default_port(self) -> int:
        """The port where no SRV record names another one."""
        return DEFAULT_TLS_PORT if self.secure else DEFAULT_PORT

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address."""
        return is_ip_address(self.host)

    def __str__(self) -> str:
        return f"{self.scheme}:{_authority(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class StunUri(_ServerUri):
    """A STUN server (RFC 7064).

    ``host``: a name, or an IP address as :class:`stun.sansio.Address` has it, without brackets.
    ``port``: ``None`` when the URI has none, so that a server is looked for with SRV.
    """

    _name = "stun"
    host: str
    port: int | None = None
    secure: bool = False


@dataclass(frozen=True, slots=True)
class TurnUri(_ServerUri):
    """A TURN server (RFC 7065).

    As :class:`StunUri`.  ``transport``: ``"udp"``, ``"tcp"`` or an extension in lower case, as the
    URI says; with ``secure`` these mean DTLS (RFC 7350) and TLS.  ``None`` when the URI has none.
    """

    _name = "turn"
    host: str
    port: int | None = None
    transport: str | None = None
    secure: bool = False

    def __str__(self) -> str:
        transport = "" if self.transport is None else f"?transport={self.transport}"
        return f"{_ServerUri.__str__(self)}{transport}"


Uri: TypeAlias = StunUri | TurnUri


def is_ip_address(host: str) -> bool:
    """Whether ``host`` is a numeric IPv4 or IPv6 address, perhaps with a zone."""
    return _IPV4.fullmatch(host) is not None or ":" in host


def parse(text: str) -> Uri:
    """Parse a URI, strictly.  Raises :class:`UriError`.

    A ``stuns`` URI with an IP address is refused: it "MUST be rejected", since no certificate would
    prove the server (RFC 8489 section 8.1).  An empty port is one that is not there (RFC 3986
    section 3.2.3).
    """
    scheme, colon, _ = text.partition(":")
    if not colon or scheme.lower() not in _SCHEMES:
        raise UriError(text, 0, f"the scheme must be one of {', '.join(_SCHEMES)}")
    scheme = scheme.lower()
    secure = scheme.endswith("s")
    start = len(scheme) + 1
    if text.startswith("//", start):
        raise UriError(text, start, f"no slashes here: {scheme}:{text[start + 2 :]}")
    host, port, at = _parse_authority(text, start)
    transport = None
    if scheme.startswith("turn") and text.startswith("?", at):
        transport, at = _parse_transport(text, at + 1)
    if at != len(text):
        raise UriError(text, at, f"{text[at]!r} does not belong here")
    if scheme.startswith("turn"):
        return TurnUri(host, port, transport, secure)
    if secure and is_ip_address(host):
        raise UriError(text, start, "a stuns URI needs a name that a certificate can prove")
    return StunUri(host, port, secure)


def parse_server(text: str) -> Uri:
    """Parse what a person calls a server: ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, or a URI.

    A bare IPv6 address needs no brackets, and a name may be international.  Without a scheme it is
    a ``stun`` server.  Raises :class:`UriError`.
    """
    text = text.strip()
    if not text:
        raise UriError(text, 0, "a host is missing")
    scheme, colon, rest = text.partition(":")
    if colon and scheme.lower() in _SCHEMES:
        return parse(text)
    if rest.startswith("//"):
        raise UriError(text, 0, f"the scheme must be one of {', '.join(_SCHEMES)}")
    if text.count(":") > 1 and not text.startswith("["):
        address, _, zone = text.partition("%")
        return StunUri(_ipv6(text, 0, address, zone))
    if not text.isascii():
        text = _to_ascii(text)
    host, port, at = _parse_authority(text, 0, zone_escape="%")
    if at != len(text):
        raise UriError(text, at, f"{text[at]!r} does not belong here")
    return StunUri(host, port)


def _to_ascii(text: str) -> str:
    """Return the name with its international labels in the form that DNS has (RFC 5890)."""
    host, colon, port = text.partition(":")
    try:
        return host.encode("idna").decode() + colon + port
    except UnicodeError as error:
        raise UriError(text, 0, f"not a host name: {error}") from None


def _authority(host: str, port: int | None) -> str:
    if ":" in host:
        # RFC 6874 section 2: the "%" before a zone is written "%25".
        text = f"[{host.replace('%', '%25')}]"
    elif _REG_NAME.fullmatch(host) and "%" not in host:
        text = host
    else:
        text = "".join(
            char if _REG_NAME.fullmatch(char) else "".join(f"%{o:02X}" for o in char.encode())
            for char in host
        )
    return text if port is None else f"{text}:{port}"


def _parse_authority(
    text: str, start: int, *, zone_escape: str = "%25"
) -> tuple[str, int | None, int]:
    """Parse ``host [ ":" port ]`` from ``start``; return both and where they end."""
    if text.startswith("[", start):
        end = text.find("]", start)
        if end < 0:
            raise UriError(text, start, "'[' is never closed")
        literal = text[start + 1 : end]
        if literal[:1] in ("v", "V"):
            raise UriError(text, start + 1, "this future kind of address is not known")
        address, escape, zone = literal.partition(zone_escape)
        if escape and not zone:
            raise UriError(text, end, "the zone is missing")
        host = _ipv6(text, start + 1, address, zone)
        end += 1
        if end < len(text) and text[end] not in ":?":
            raise UriError(text, end, f"{text[end]!r} does not belong after ']'")
    else:
        match = _REG_NAME.match(text, start)
        end = start if match is None else match.end()
        if end < len(text) and text[end] not in ":?":
            raise UriError(text, end, f"{text[end]!r} is not allowed in a host")
        if end == start:
            raise UriError(text, start, "the host is missing")
        if text.startswith(":", end) and ":" in text[end + 1 :]:
            raise UriError(text, start, "an IPv6 address needs brackets")
        host = _reg_name(text, start, text[start:end])
    if not text.startswith(":", end):
        return host, None, end
    first = end + 1
    end = first
    while end < len(text) and text[end] in "0123456789":
        end += 1
    if end < len(text) and text[end] != "?":
        raise UriError(text, end, "a port is a number")
    digits = text[first:end].lstrip("0")
    if first == end:
        return host, None, end
    if not digits or len(digits) > 5 or int(digits) > 0xFFFF:
        raise UriError(text, first, "a port is a number from 1 to 65535")
    return host, int(digits), end


def _parse_transport(text: str, start: int) -> tuple[str, int]:
    if text[start : start + 10].lower() != "transport=":
        raise UriError(text, start, "only ?transport= may follow")
    match = _TRANSPORT.match(text, start + 10)
    if match is None:
        raise UriError(text, start + 10, "the transport is missing")
    return match[0].lower(), match.end()


def _ipv6(text: str, start: int, address: str, zone: str) -> str:
    if "%" in address:
        raise UriError(text, start + address.index("%"), "a zone of an IPv6 address follows %25")
    try:
        # Whatever the spelling, the address gets the one that sockets report.
        host = host_text(ipaddress.IPv6Address(address).packed)
    except ValueError as error:
        raise UriError(text, start, f"not an IPv6 address: {error}") from None
    if zone and not _ZONE.fullmatch(zone):
        raise UriError(text, start, f"{zone!r} is not a zone")
    return f"{host}%{zone}" if zone else host


def _reg_name(text: str, start: int, name: str) -> str:
    """Return the host that a reg-name of RFC 3986 section 3.2.2 stands for."""
    if "%" in name:
        name = _percent_decoded(text, start, name)
    last = name.rstrip(".").rpartition(".")[2]
    if _DIGITS.fullmatch(last) and not _IPV4.fullmatch(name):
        # By the grammar this is a name, but no top-level domain is a number (RFC 1123 section
        # 2.1): it is a mistyped address, and a resolver might read it as yet another one.
        raise UriError(text, start, f"{name} is not an IPv4 address")
    return name


def _percent_decoded(text: str, start: int, name: str) -> str:
    octets = _PERCENT.sub(lambda match: bytes((int(match[1], 16),)), name.encode("ascii"))
    try:
        host = octets.decode()
    except UnicodeDecodeError:
        raise UriError(text, start, "percent-encoded octets that are not UTF-8") from None
    # Section 3.2.2 has percent-encoding for international names; what else it could smuggle in
    # (a colon, a slash, a NUL) no name service takes.
    for char in host:
        if char.isascii() and (char == "%" or not _REG_NAME.fullmatch(char)):
            raise UriError(text, start, f"{char!r} is not allowed in a host, encoded or not")
    return host
