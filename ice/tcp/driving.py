"""What the drivers of a puncher share: arguments understood, an address of this machine chosen."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Final, TypeAlias

from ice.config import Credentials, Server
from ice.tcp.puncher import Puncher
from ice.tcp.terms import MappedPort, PortsReady, credentials
from stun.discovery import Target, Transport
from stun.errors import UsageError
from stun.sansio import Address
from stun.sockaddr import family_of, to_sockaddr
from stun.uri import StunUri

ServerLike: TypeAlias = str | StunUri | Server
"""A STUN server: ``HOST:PORT``, a ``stun:`` URI, or one that has been looked up."""
AddressLike: TypeAlias = Address | tuple[str, int] | Sequence[object]
"""Host and port; the host is numeric."""

TRANSPORT: Final = Transport.TCP


class Told:
    """What ports are, as both drivers tell it; ``machine`` is theirs."""

    def __init__(self, machine: Puncher) -> None:
        self._machine = machine
        self._ready = PortsReady(())

    @property
    def ports(self) -> tuple[MappedPort, ...]:
        """Each port: where it is here, and what it is outside."""
        return self._ready.ports

    @property
    def addresses(self) -> tuple[Address, ...]:
        """What the peer is to be told, in this order."""
        return self._ready.addresses()

    @property
    def missing(self) -> tuple[str, ...]:
        """What was sought in vain, in words: a server that does not answer, a port in use."""
        return self._ready.missing

    @property
    def counters(self) -> Mapping[str, int]:
        """What came and was not used, by reason; a stranger's connection is one of these."""
        return self._machine.counters


class Role:
    """Which side this is, and by what both prove themselves.

    By a ``secret`` that both have, or by the credentials of both: ``local`` and ``remote``.
    """

    def __init__(
        self,
        *,
        controlling: bool,
        secret: bytes | str | None,
        local: Credentials | None,
        remote: Credentials | None,
    ) -> None:
        self.controlling = controlling
        if secret is not None and local is None and remote is None:
            self.local, self.remote = credentials(secret, controlling=controlling)
        elif secret is None and local is not None and remote is not None:
            self.local, self.remote = local, remote
        else:
            raise UsageError(
                "both sides prove themselves: give secret=, the same to both, or the credentials"
                " of both, local= and remote="
            )


def addresses_of(remote: Iterable[AddressLike]) -> list[Address]:
    """Understand the peer's addresses, also as JSON gives them.  Raises ``UsageError``."""
    found = []
    for each in remote:
        try:
            host, port = each
            ip_address(str(host).partition("%")[0])
            found.append(Address(str(host), int(port)))  # type: ignore[call-overload]
        except (TypeError, ValueError):
            text = f"{each!r} is not an address: (host, port), the host being numeric"
            raise UsageError(text) from None
    return found


def host_towards(addresses: Iterable[Address]) -> str:
    """Return the address of this machine from which the first of these is reached.

    Raises :class:`stun.errors.UsageError`: nothing leads to any of them.
    """
    why = "there is nothing to be reached; give host=, an address of this machine"
    for address in addresses:
        try:
            with socket.socket(family_of(address), socket.SOCK_DGRAM) as probe:
                probe.connect(to_sockaddr(address))  # sends nothing
                host, *_ = probe.getsockname()
                return str(host)
        except OSError as error:
            why = f"no way to {address}: {error.strerror}; give host=, an address of this machine"
    raise UsageError(why)


def looked_up(name: object, targets: Sequence[Target]) -> Server:
    """Return the server that was found by looking up a name."""
    return Server(str(name), tuple(targets))


def ports_of(count: int, ports: Sequence[int] | None) -> tuple[int, ...]:
    """Return the local ports to use: those given, else so many that the system chooses."""
    return (0,) * count if ports is None else tuple(ports)
