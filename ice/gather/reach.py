"""Which servers can be asked from which address of this host."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from stun.sansio import Address


def can_reach(host: str, server: Address) -> bool:
    """Whether a packet from ``host`` may get to ``server``, as far as the addresses tell.

    The families have to be the same; what is sent from a loopback or a link-local address stays on
    this host or on that link (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.6, RFC 3927 section
    2.7), and so it is no use to ask beyond.
    """
    if (":" in host) is not server.is_ipv6:
        return False
    ours, theirs = _parse(host), _parse(server.host)
    if ours.is_loopback:
        return theirs.is_loopback
    if ours.is_link_local:
        return theirs.is_link_local and _zone(server.host) in ("", _zone(host))
    return True


def is_plausible(address: Address) -> bool:
    """Whether a server's word that this is an address of ours makes sense at all."""
    parsed = _parse(address.host)
    return address.port != 0 and not (parsed.is_unspecified or parsed.is_multicast)


def is_link_local(address: Address) -> bool:
    """Whether it is an IPv6 address that means nothing without a zone (RFC 4291 section 2.5.6)."""
    return address.host.startswith(("fe8", "fe9", "fea", "feb"))


def without_zone(address: Address) -> Address:
    """Return an address as it is known outside this host (RFC 4007 section 11.2)."""
    host, zone, _ = address.host.partition("%")
    return Address(host, address.port) if zone else address


def _parse(host: str) -> IPv4Address | IPv6Address:
    return ip_address(host.partition("%")[0])


def _zone(host: str) -> str:
    return host.partition("%")[2]
