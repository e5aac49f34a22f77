"""The values of turnd's configuration that are more than a number or a text, and how each is read.

The same functions read what a TOML file says and what a flag says.  Each raises ``ValueError`` with
a sentence that says what was found and what is allowed.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from stun.discovery import Transport
from stun.errors import UsageError
from stun.sansio import Address
from stun.users import StoredKeys
from turn.daemon.addresses import WILDCARDS, numeric_host
from turn.server.policy import parse_network

T = TypeVar("T")

EVERY_HOST: Final = "*"
"""Every address of this machine, IPv4 and IPv6."""

_URL = re.compile(r"(?P<scheme>[A-Za-z]+)://(?P<rest>[^?/]*)/?(?:\?(?P<query>.*))?", re.ASCII)
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:]*))(?::(?P<port>\d*))?", re.ASCII)
_RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*", re.ASCII)
_FORM = "write udp://ADDRESS:PORT (or tcp, tls, dtls), as udp://0.0.0.0:3478 or tls://[::]:5349"


@dataclass(frozen=True, slots=True)
class ListenUrl:
    """Where to listen: ``host`` may be a wildcard, or ``*`` for every address of either family."""

    transport: Transport
    host: str
    port: int
    proxies: tuple[str, ...] = ()
    """Networks of proxies that name the client (the PROXY protocol)."""
    advertised: str | None = None
    """The address as clients see it, behind a one-to-one NAT."""

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for addresses that may come and go."""
        return self.host in (*WILDCARDS, EVERY_HOST)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = [f"proxy={network}" for network in self.proxies]
        if self.advertised is not None:
            query.append(f"advertise={self.advertised}")
        text = f"{self.transport.value.lower()}://{host}:{self.port}"
        return f"{text}?{'&'.join(query)}" if query else text


@dataclass(frozen=True, slots=True)
class Relay:
    """A host to relay from, and the one that peers see.

    A wildcard stands for the host that turnd would choose by itself.
    """

    local: str
    advertised: str

    def __str__(self) -> str:
        return self.local if self.local == self.advertised else f"{self.local}={self.advertised}"


@dataclass(frozen=True, slots=True)
class Hidden:
    """A secret text.  ``source`` says where it came from; its own form tells nothing."""

    text: str = field(repr=False)
    source: str = ""

    def __str__(self) -> str:
        return f"(hidden{', ' if self.source else ''}{self.source})"


def value_error(parse: Callable[[Any], T]) -> Callable[[Any], T]:
    """Let a function that raises :class:`UsageError` raise ``ValueError`` instead."""

    def checked(value: Any) -> T:
        try:
            return parse(value)
        except UsageError as error:
            raise ValueError(str(error)) from None

    return checked


def _text(value: Any, example: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text; write {example}")
    return value


def listen_url(value: Any) -> ListenUrl:
    """Read ``udp://A:P``, ``tcp://A:P``, ``tls://A:P`` or ``dtls://A:P``; the port is optional."""
    text = _text(value, '"udp://0.0.0.0:3478"')
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a place to listen: {_FORM}")
    try:
        transport = Transport(match["scheme"].upper())
    except ValueError:
        raise ValueError(
            f"{match['scheme']!r} in {text!r} is no transport; there are udp, tcp, tls and dtls"
        ) from None
    host, port = _authority(match["rest"], transport.default_port, text)
    proxies: list[str] = []
    advertised = None
    for key, found in parse_qsl(match["query"] or "", keep_blank_values=True):
        if key == "proxy":
            if transport.protocol == "udp":
                raise ValueError(f"{text!r}: the PROXY protocol is for tcp and tls only")
            proxies += [_network(one) for one in found.split(",")]
        elif key == "advertise":
            advertised = _host(found)
        else:
            raise ValueError(f"{key!r} in {text!r} is not known; there are proxy and advertise")
    return ListenUrl(transport, host, port, tuple(proxies), advertised)


@dataclass(frozen=True, slots=True)
class WebUrl:
    """Where to listen for WebSockets; ``host`` may be a wildcard, or ``*`` for every address."""

    secure: bool
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.secure else 'ws'}://{host}:{self.port}"


def web_url(value: Any) -> WebUrl:
    """Read ``ws://A:P`` or ``wss://A:P``; the port is optional: 8080, 443."""
    text = _text(value, '"ws://*:8080"')
    match = _URL.fullmatch(text)
    scheme = "" if match is None else match["scheme"].lower()
    if match is None or match["query"] or scheme not in ("ws", "wss"):
        raise ValueError(
            f"{text!r} is not a place to listen for WebSockets: write ws://ADDRESS:PORT or "
            "wss://ADDRESS:PORT, as ws://*:8080 or wss://[::]:443"
        )
    secure = scheme == "wss"
    return WebUrl(secure, *_authority(match["rest"], 443 if secure else 8080, text))


def _authority(rest: str, default_port: int, text: str) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(rest)
    if match is None or not (match["v6"] or match["host"]):
        if rest.count(":") > 1 and not rest.startswith("["):
            raise ValueError(f"{text!r}: an IPv6 address is written in brackets, as [::1]:3478")
        raise ValueError(f"{text!r}: the address is missing or has no form; {_FORM}")
    host = EVERY_HOST if match["host"] == EVERY_HOST else _host(match["v6"] or match["host"])
    if match["v6"] and ":" not in host:
        raise ValueError(f"{text!r}: only an IPv6 address is written in brackets")
    return host, port_number(match["port"] or default_port)


def _host(text: str) -> str:
    try:
        return numeric_host(text)
    except UsageError as error:
        raise ValueError(
            f"{error}; names are not looked up here (`ip address` lists this machine's addresses)"
        ) from None


def host(value: Any) -> str:
    """Read a numeric address."""
    return _host(_text(value, 'an address, as "192.0.2.1"'))


def port_number(value: Any) -> int:
    """Read a port, 1 to 65535."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if isinstance(value, bool | float) or not 0 < number < 65536:
        raise ValueError(f"{value!r} is not a port: ports are 1 to 65535")
    return number


def address(value: Any, default_port: int | None = None) -> Address:
    """Read ``A:P`` or ``[A]:P``; the port may be left out where there is a default one."""
    text = _text(value, '"127.0.0.1:9641"')
    match = _AUTHORITY.fullmatch(text)
    if match is None or not (match["v6"] or match["host"]):
        raise ValueError(f"{text!r} is not ADDRESS:PORT, as 127.0.0.1:9641 or [::1]:9641")
    if not match["port"] and default_port is None:
        raise ValueError(f"{text!r} has no port; write ADDRESS:PORT, as 127.0.0.1:9641")
    return Address(_host(match["v6"] or match["host"]), port_number(match["port"] or default_port))


def relay(value: Any) -> Relay:
    """Read ``A`` or ``A=PUBLIC``, both numeric and of one family.

    ``0.0.0.0=PUBLIC`` is for machines whose own address is not known beforehand: containers.
    """
    text = _text(value, '"10.0.0.5" or "10.0.0.5=203.0.113.5"')
    local, equals, public = text.partition("=")
    made = Relay(_host(local), _host(public) if equals else _host(local))
    if made.advertised in WILDCARDS:
        raise ValueError(f"{text!r}: peers need one address to send to, not every one")
    if (":" in made.local) != (":" in made.advertised):
        raise ValueError(f"{text!r}: both addresses must be of one family, IPv4 or IPv6")
    return made


def port_range(value: Any) -> tuple[int, int]:
    """Read ``LO-HI``, both included, or a list of the two."""
    match value:
        case str():
            found = _RANGE.fullmatch(value)
            low, high = (int(found[1]), int(found[2])) if found else (0, 0)
        case [int() as low, int() as high]:
            pass
        case _:
            low = high = 0
    if not 0 < low <= high < 65536:
        raise ValueError(
            f'{value!r} is not a range of ports; write LO-HI, as "49152-65535", '
            "both from 1 to 65535, the lower one first"
        )
    if low == high:
        raise ValueError(f"{value!r}: one port is no range; EVEN-PORT needs two at least")
    return low, high


def _network(text: str) -> str:
    try:
        return str(parse_network(text))
    except UsageError as error:
        raise ValueError(str(error)) from None


def network(value: Any) -> str:
    """Read a network or a single address."""
    return _network(_text(value, '"10.0.0.0/8"'))


# Secrets. -----------------------------------------------------------------------------------------


def hidden(value: Any, directory: Path, environment: Mapping[str, str] = os.environ) -> Hidden:
    """Read a secret: a text, ``{file = PATH}`` (its first line) or ``{env = NAME}``.

    ``directory``: what PATH is relative to.
    """
    match value:
        case str():
            found = Hidden(value)
        case {"file": str() as name, **rest} if not rest:
            found = Hidden(_first_line(directory / name), f"from {name}")
        case {"env": str() as name, **rest} if not rest:
            if name not in environment:
                raise ValueError(f"the environment has no variable {name}")
            found = Hidden(environment[name], f"from ${name}")
        case _:
            raise ValueError('a secret is a text, {file = "PATH"} or {env = "NAME"}')
    if not found.text:
        raise ValueError(f"a secret is empty{found.source and f' ({found.source})'}")
    return found


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{path} is a directory")
            return file.readline().rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None


def credential(
    value: Any, directory: Path, environment: Mapping[str, str] = os.environ
) -> Hidden | StoredKeys:
    """Read what a user proves itself with: a secret, or keys ``{md5 = HEX, sha256 = HEX}``."""
    if not isinstance(value, Mapping) or {"file", "env"} & set(value):
        return hidden(value, directory, environment)
    unknown = set(value) - {"md5", "sha256"}
    if unknown or not value:
        raise ValueError(
            'a user has a password, {file = "PATH"}, {env = "NAME"}, or keys '
            '{md5 = "HEX", sha256 = "HEX"} (the digest of USERNAME:REALM:PASSWORD)'
        )
    return StoredKeys(_key(value, "md5", 16), _key(value, "sha256", 32))


def _key(value: Mapping[str, Any], name: str, octets: int) -> bytes | None:
    if name not in value:
        return None
    try:
        key = bytes.fromhex(value[name])
    except (TypeError, ValueError):
        key = b""
    if len(key) != octets:
        raise ValueError(f"{name} must be {octets * 2} hexadecimal digits")
    return key


def octets_of_base64(text: str) -> bytes:
    """Read base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it must be base64") from None


def user_flag(text: str) -> tuple[str, str | None]:
    """Read ``NAME:PASSWORD`` or ``NAME`` of a command line."""
    name, colon, password = text.partition(":")
    if not name or (colon and not password):
        raise ValueError(f"{text!r}: write NAME:PASSWORD, or NAME with the password elsewhere")
    return name, password if colon else None
