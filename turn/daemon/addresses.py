"""This machine's addresses: what a wildcard stands for, what to relay from, and when they change.

turnd binds no wildcard.  A datagram that came to ``0.0.0.0`` must be answered from the address it
came to, which costs ancillary data in both directions of every packet, and with it the batching of
the data plane.  So a wildcard becomes one socket for each address, and addresses that appear later
get theirs when they do.

Left out is what no client can be given: IPv6 link-local addresses, which mean nothing without a
zone of this very machine, and addresses that the kernel does not yet answer for (RFC 4862 section
5.4, "tentative").
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ifaddr

from stun.errors import StunError, UsageError

ANY_IPV4: Final = "0.0.0.0"  # noqa: S104  (what it stands for is bound instead)
ANY_IPV6: Final = "::"
WILDCARDS: Final = (ANY_IPV4, ANY_IPV6)

# linux/if_addr.h.
_TEMPORARY, _DEPRECATED, _TENTATIVE = 0x01, 0x20, 0x40

# Any global address would do: connecting a UDP socket sends nothing, it only looks up the route.
_SOMEWHERE = {4: "198.41.0.4", 6: "2001:503:ba3e::2:30"}


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of this machine.  ``host`` is in the form of RFC 5952, link-local with a zone."""

    host: str
    interface: str
    lasting: bool = True
    """Not one of those that exist for privacy and go again (RFC 8981)."""
    ready: bool = True
    """The kernel takes packets for it."""

    @property
    def is_ipv6(self) -> bool:
        """Whether it is an IPv6 address."""
        return ":" in self.host

    @property
    def is_link_local(self) -> bool:
        """Whether it is an IPv6 address that has a meaning on one link only."""
        return "%" in self.host


Lister = Callable[[], tuple[LocalAddress, ...]]
"""Tells this machine's addresses: :func:`local_addresses`, or what a test has in its place."""


def local_addresses() -> tuple[LocalAddress, ...]:
    """Return every address of every interface, in the order of the interfaces.

    Raises :class:`stun.errors.StunError` where the system does not tell, for want of descriptors.
    """
    flags = _ipv6_flags()
    found: dict[str, LocalAddress] = {}
    try:
        adapters = ifaddr.get_adapters()
    except OSError as error:
        problem = error.strerror or error
        raise StunError(f"this machine's addresses cannot be listed: {problem}") from None
    for adapter in adapters:
        for entry in adapter.ips:
            if isinstance(entry.ip, str):
                host = entry.ip
            else:
                numeric = ipaddress.IPv6Address(entry.ip[0])
                host = str(numeric)
                if numeric.is_link_local:
                    host = f"{host}%{adapter.name}"
            flag = flags.get(host.partition("%")[0], 0)
            found.setdefault(
                host,
                LocalAddress(
                    host,
                    adapter.name,
                    lasting=not flag & (_TEMPORARY | _DEPRECATED),
                    ready=not flag & _TENTATIVE,
                ),
            )
    return tuple(found.values())


def _ipv6_flags(path: Path = Path("/proc/net/if_inet6")) -> dict[str, int]:
    """Return the kernel's flags of IPv6 addresses, empty where it does not tell (not Linux)."""
    flags: dict[str, int] = {}
    with suppress(OSError):
        for line in path.read_text("ascii").splitlines():
            octets, _, _, _, flag, _ = line.split()
            flags[str(ipaddress.IPv6Address(bytes.fromhex(octets)))] = int(flag, 16)
    return flags


def numeric_host(text: str) -> str:
    """Return an address as RFC 5952 writes it, without brackets.

    Raises :class:`stun.errors.UsageError` when it is not numeric.
    """
    bare = text.strip().removeprefix("[").removesuffix("]")
    host, percent, zone = bare.partition("%")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(f"{text!r} is not a numeric IPv4 or IPv6 address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise UsageError(f"{text!r} is an IPv4 address in IPv6; write {address.ipv4_mapped}")
    return f"{address}{percent}{zone}"


def servable(addresses: Iterable[LocalAddress]) -> list[str]:
    """Return the hosts that a wildcard stands for."""
    return [one.host for one in addresses if one.ready and not one.is_link_local]


def expand(host: str, hosts: Iterable[str]) -> list[str]:
    """Return ``host``, or the ones of ``hosts`` that it stands for if it is a wildcard."""
    if host not in WILDCARDS:
        return [host]
    return [one for one in hosts if (":" in one) == (host == ANY_IPV6)]


def route_host(family: int) -> str | None:
    """Return the address that packets to the internet leave from: ``family`` is 4 or 6.

    ``None`` when there is no route.  Nothing is sent.
    """
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect((_SOMEWHERE[family], 9))
            host: str = probe.getsockname()[0]
    except OSError:
        return None
    return host.partition("%")[0]


@dataclass(frozen=True, slots=True)
class RelayChoice:
    """What turnd relays from unless it is told."""

    hosts: tuple[str, ...]
    private: tuple[str, ...]
    """Those of ``hosts`` that peers on the internet cannot reach."""


def choose_relays(
    addresses: Iterable[LocalAddress],
    is_global: Callable[[str], bool],
    route: Callable[[int], str | None] = route_host,
) -> RelayChoice:
    """Choose relay hosts, for each family by itself.

    The globally reachable addresses that last; where there are none, the one that packets to the
    internet leave from, which a one-to-one NAT may make reachable; on a machine without any route
    loopback, so that turnd can be tried.
    """
    known = [one for one in addresses if one.ready and not one.is_link_local]
    hosts: list[str] = []
    private: list[str] = []
    for family in (4, 6):
        mine = [one for one in known if one.is_ipv6 == (family == 6)]
        reachable = [one.host for one in mine if one.lasting and is_global(one.host)]
        if not reachable:
            host = route(family)
            if host is None or host not in {one.host for one in mine}:
                continue
            if is_global(host):
                reachable = [host]
            else:
                private.append(host)
                hosts.append(host)
        hosts += reachable
    if not hosts:
        hosts = private = [one.host for one in known if not one.is_ipv6][:1]
    return RelayChoice(tuple(hosts), tuple(private))


def changes(before: Iterable[str], after: Iterable[str]) -> Iterator[str]:
    """Say in words what came and what went."""
    old, new = set(before), set(after)
    for host in sorted(new - old):
        yield f"the address {host} has appeared"
    for host in sorted(old - new):
        yield f"the address {host} has gone"
