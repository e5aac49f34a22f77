"""Where a rendezvous listens: ``ws://ADDRESS:PORT`` and ``wss://ADDRESS:PORT``."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from stun.errors import UsageError
from stun.sansio import Address

EVERY_HOST: Final = "*"
"""Every address of this machine, IPv4 and IPv6."""
WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104  (what a listener may well mean)
DEFAULT_PORT: Final = 8080
DEFAULT_SECURE_PORT: Final = 443

_URL = re.compile(
    r"(?P<scheme>wss?)://(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:/\[\]]+))(?::(?P<port>\d{1,5}))?/?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Place:
    """A place to listen; ``host`` is numeric, or ``*`` for every address."""

    secure: bool
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.secure else 'ws'}://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read a URL.  Raises :class:`stun.errors.UsageError`, which says what is allowed."""
        match = _URL.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is not a place to listen: write ws://ADDRESS:PORT or "
                "wss://ADDRESS:PORT, as ws://*:8080 or wss://[2001:db8::7]:443"
            )
        secure = match["scheme"].lower() == "wss"
        host = match["host"] or match["v6"]
        if host != EVERY_HOST:
            try:
                host = str(ipaddress.ip_address(host))
            except ValueError:
                raise UsageError(
                    f"{text!r}: {host!r} is not an address; names are not looked up here "
                    "(`ip address` lists this machine's addresses, * stands for all)"
                ) from None
        default = DEFAULT_SECURE_PORT if secure else DEFAULT_PORT
        port = int(match["port"] or default)
        if not 0 < port < 65536:
            raise UsageError(f"{text!r}: {port} is not a port: ports are 1 to 65535")
        return cls(secure, host, port)

    def addresses(self) -> list[Address]:
        """Return what to bind."""
        hosts = WILDCARDS if self.host == EVERY_HOST else (self.host,)
        return [Address(host, self.port) for host in hosts]


def by_address(places: Iterable[Place]) -> dict[Address, Place]:
    """Return places by what they bind.

    Raises :class:`stun.errors.UsageError` where one port would be for TLS and not for TLS.
    """
    found: dict[Address, Place] = {}
    ports: dict[int, Place] = {}
    for place in places:
        other = ports.setdefault(place.port, place)
        if other.secure is not place.secure:
            raise UsageError(f"{other} and {place}: a port is either for ws or for wss")
        for address in place.addresses():
            found.setdefault(address, place)
    return found
