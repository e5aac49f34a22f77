"""Whether what a server says can be used: pure checks of one answer.

RFC 5780 section 6 lets a server advertise its second address in OTHER-ADDRESS.  Servers in the wild
advertise 0.0.0.0, the private address they have behind their own NAT, or their only address, and a
client that believes them mistakes the server's fault for its NAT's behaviour (RFC 5780 erratum
7971).
"""

from __future__ import annotations

import ipaddress

from nattype.observations import Asked
from stun.sansio import Address


def is_public(host: str) -> bool:
    """Whether a numeric address can be reached from the whole Internet."""
    return ipaddress.ip_address(host.partition("%")[0]).is_global


def same_host(one: str, other: str) -> bool:
    """Whether two numeric hosts are the same address, in whatever form they are written."""
    return ipaddress.ip_address(one.partition("%")[0]) == ipaddress.ip_address(
        other.partition("%")[0]
    )


def fault_of_other(server: Address, other: Address) -> str | None:
    """Return what is wrong with OTHER-ADDRESS as advertised by ``server``; ``None``: nothing."""
    if other.is_ipv6 != server.is_ipv6:
        return f"advertises a second address of another family, {other}"
    if ipaddress.ip_address(other.host.partition("%")[0]).is_unspecified or other.port == 0:
        return f"advertises {other} as its second address, which is nobody's"
    if same_host(other.host, server.host):
        return f"advertises its own address, {other}, as its second one"
    if other.port == server.port:
        return f"advertises a second address with the same port, {other}"
    if is_public(server.host) and not is_public(other.host):
        return f"advertises a private second address, {other}, to the public"
    return None


def fault_of_mapped(asked: Asked) -> str | None:
    """Return what is wrong with the mapped address of an answer; ``None``: nothing."""
    mapped = asked.mapped
    if mapped is None:
        return "answers without a mapped address"
    if mapped.is_ipv6 != asked.server.is_ipv6:
        return f"answers with a mapped address of another family, {mapped}"
    if ipaddress.ip_address(mapped.host.partition("%")[0]).is_unspecified or mapped.port == 0:
        return f"answers with {mapped} as the mapped address"
    return None
