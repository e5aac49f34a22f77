"""Blocks of addresses that are not, or not simply, hosts of the Internet: a table and its sources.

Every row of the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, RFC 8190) is here,
with the answer of their column "Globally Reachable".  "N/A" and a row that was terminated count as
not reachable.  Added are the blocks that those registries leave to others: multicast, and what the
"Internet Protocol Version 6 Address Space" holds in reserve around 2000::/3.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Block(NamedTuple):
    """A block, its name, the document that sets it aside, and whether the Internet reaches it."""

    network: str
    name: str
    rfc: str
    reachable: bool = False


IPV4: Final = (
    Block("0.0.0.0/8", "this network", "RFC 791 section 3.2"),
    Block("0.0.0.0/32", "this host on this network", "RFC 1122 section 3.2.1.3"),
    Block("10.0.0.0/8", "private-use", "RFC 1918"),
    Block("100.64.0.0/10", "shared address space of carrier-grade NAT", "RFC 6598"),
    Block("127.0.0.0/8", "loopback", "RFC 1122 section 3.2.1.3"),
    Block("169.254.0.0/16", "link-local", "RFC 3927"),
    Block("172.16.0.0/12", "private-use", "RFC 1918"),
    Block("192.0.0.0/24", "IETF protocol assignments", "RFC 6890 section 2.1"),
    Block("192.0.0.0/29", "IPv4 service continuity", "RFC 7335"),
    Block("192.0.0.8/32", "IPv4 dummy address", "RFC 7600"),
    Block("192.0.0.9/32", "PCP anycast", "RFC 7723", reachable=True),
    Block("192.0.0.10/32", "TURN anycast", "RFC 8155", reachable=True),
    Block("192.0.0.170/32", "NAT64/DNS64 discovery", "RFC 8880"),
    Block("192.0.0.171/32", "NAT64/DNS64 discovery", "RFC 8880"),
    Block("192.0.2.0/24", "documentation", "RFC 5737"),
    Block("192.31.196.0/24", "AS112", "RFC 7535", reachable=True),
    Block("192.52.193.0/24", "AMT", "RFC 7450", reachable=True),
    Block("192.88.99.0/24", "deprecated 6to4 relay anycast", "RFC 7526"),
    Block("192.88.99.2/32", "6a44 relay anycast", "RFC 6751"),
    Block("192.168.0.0/16", "private-use", "RFC 1918"),
    Block("192.175.48.0/24", "AS112 by direct delegation", "RFC 7534", reachable=True),
    Block("198.18.0.0/15", "benchmarking", "RFC 2544"),
    Block("198.51.100.0/24", "documentation", "RFC 5737"),
    Block("203.0.113.0/24", "documentation", "RFC 5737"),
    Block("224.0.0.0/4", "multicast", "RFC 5771"),
    Block("240.0.0.0/4", "reserved", "RFC 1112 section 4"),
    Block("255.255.255.255/32", "limited broadcast", "RFC 919 section 7"),
)

IPV6: Final = (
    Block("::/128", "unspecified address", "RFC 4291"),
    Block("::1/128", "loopback", "RFC 4291"),
    Block("64:ff9b::/96", "NAT64", "RFC 6052", reachable=True),
    Block("64:ff9b:1::/48", "NAT64 for local use", "RFC 8215"),
    Block("100::/64", "discard-only", "RFC 6666"),
    Block("100:0:0:1::/64", "dummy prefix", "RFC 9780"),
    Block("2001::/23", "IETF protocol assignments", "RFC 2928"),
    Block("2001::/32", "Teredo", "RFC 4380"),
    Block("2001:1::1/128", "PCP anycast", "RFC 7723", reachable=True),
    Block("2001:1::2/128", "TURN anycast", "RFC 8155", reachable=True),
    Block("2001:1::3/128", "DNS-SD SRP anycast", "RFC 9665", reachable=True),
    Block("2001:2::/48", "benchmarking", "RFC 5180"),
    Block("2001:3::/32", "AMT", "RFC 7450", reachable=True),
    Block("2001:4:112::/48", "AS112", "RFC 7535", reachable=True),
    Block("2001:10::/28", "deprecated ORCHID", "RFC 4843"),
    Block("2001:20::/28", "ORCHIDv2", "RFC 7343", reachable=True),
    Block("2001:30::/28", "drone remote ID", "RFC 9374", reachable=True),
    Block("2001:db8::/32", "documentation", "RFC 3849"),
    Block("2002::/16", "6to4", "RFC 3056"),
    Block("2620:4f:8000::/48", "AS112 by direct delegation", "RFC 7534", reachable=True),
    Block("3fff::/20", "documentation", "RFC 9637"),
    Block("5f00::/16", "segment routing SIDs", "RFC 9602"),
    Block("fc00::/7", "unique local", "RFC 4193"),
    Block("fe80::/10", "link-local", "RFC 4291"),
    # Outside of the special-purpose registry.
    Block("::/8", "reserved", "RFC 4291"),
    Block("100::/8", "reserved", "RFC 4291"),
    Block("200::/7", "reserved", "RFC 4048"),
    Block("400::/6", "reserved", "RFC 4291"),
    Block("800::/5", "reserved", "RFC 4291"),
    Block("1000::/4", "reserved", "RFC 4291"),
    Block("4000::/3", "reserved", "RFC 4291"),
    Block("6000::/3", "reserved", "RFC 4291"),
    Block("8000::/3", "reserved", "RFC 4291"),
    Block("a000::/3", "reserved", "RFC 4291"),
    Block("c000::/3", "reserved", "RFC 4291"),
    Block("e000::/4", "reserved", "RFC 4291"),
    Block("f000::/5", "reserved", "RFC 4291"),
    Block("f800::/6", "reserved", "RFC 4291"),
    Block("fe00::/9", "reserved", "RFC 4291"),
    Block("fec0::/10", "deprecated site-local", "RFC 3879"),
    Block("ff00::/8", "multicast", "RFC 4291"),
)

IPV4_IN_IPV6: Final = (
    Block("::/96", "IPv4-compatible address", "RFC 4291 section 2.5.5.1"),
    Block("::ffff:0:0/96", "IPv4-mapped address", "RFC 4291 section 2.5.5.2"),
)
"""IPv4 addresses in the form of IPv6.  A system may open an IPv4 flow for one, so no rule of an
operator opens them: the IPv4 address has rules of its own."""
