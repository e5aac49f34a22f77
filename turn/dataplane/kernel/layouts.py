"""What is in the maps of the program in the kernel: ``relay.h`` once more, in Python.

Theory of operation.  A :class:`Layout` lists the fields of a C structure with their formats; a test
compares each with ``relay.h`` and with the type information of the built program.  On top of them
are the values that the rest of natkit speaks of, with transport addresses as
:class:`stun.sansio.Address`.

A packet is matched by addresses and ports alone, so an address that means one host on one link and
another host on the next cannot be in a path.  Link-local addresses, which may be used again in
every zone (RFC 4007 section 5), are refused; what they have to say stays with the sockets.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Final, NamedTuple

from stun.attributes.address import host_octets, host_text
from stun.sansio import SECOND, Address, Instant

_MAPPED = bytes(10) + b"\xff\xff"
_PORT = struct.Struct("!H")
_FRACTION = 1 << 16


class Layout:
    """A structure of ``relay.h``: its name there, and its fields with their formats, in order."""

    def __init__(self, name: str, **fields: str) -> None:
        self.name = name
        self.fields: Mapping[str, str] = fields
        self.struct = struct.Struct("=" + "".join(fields.values()))
        self.pack = self.struct.pack
        self.unpack = self.struct.unpack

    @property
    def size(self) -> int:
        """Its octets."""
        return self.struct.size

    def offsets(self) -> dict[str, tuple[int, int]]:
        """Return where each field is and how many octets it has."""
        found, at = {}, 0
        for name, code in self.fields.items():
            size = struct.calcsize("=" + code)
            found[name] = at, size
            at += size
        return found


# What is in network order is written as octets.
KEY: Final = Layout(
    "path_key",
    local="16s", remote="16s", local_port="2s", remote_port="2s", channel="2s", zero="H",
)  # fmt: skip
PATH: Final = Layout(
    "path",
    expires="Q", source="16s", destination="16s", source_port="2s", destination_port="2s",
    channel="2s", mtu="H", ifindex="I", usage="I", buckets="2I", next_hop="16s", serial="Q",
)  # fmt: skip
USAGE: Final = Layout("usage", packets="Q", octets="Q", dropped="Q", zero="Q")
BUCKET: Final = Layout(
    "bucket",
    lock="I", zero="I", octet_cost="Q", packet_cost="Q", burst="Q", octets_at="Q", packets_at="Q",
)  # fmt: skip
DRAW: Final = Layout("draw", ethernet="16s", bucket="I", packets="I", octets="Q")
LAYOUTS: Final = (KEY, PATH, USAGE, BUCKET, DRAW)

PORT_WORDS: Final = 1024
"""Elements of the map of ports: 64 bits each."""


class Count(IntEnum):
    """What the program counts (``enum count``): packets forwarded, dropped, passed up and why."""

    TO_PEERS = 0
    TO_CLIENTS = 1
    OVER_RATE = 2
    NO_PATH = 3
    EXPIRED = 4
    MALFORMED = 5
    VLAN = 6
    FRAGMENT = 7
    OPTIONS = 8
    SEGMENTED = 9
    UNFINISHED = 10
    UNCHECKED = 11
    LAST_HOP = 12
    TOO_BIG = 13
    NOT_MOVED = 14


WORDS: Final[Mapping[Count, str]] = {
    Count.TO_PEERS: "forwarded to peers",
    Count.TO_CLIENTS: "forwarded to clients",
    Count.OVER_RATE: "dropped: over the rate",
    Count.NO_PATH: "passed up: no path",
    Count.EXPIRED: "passed up: the path is over",
    Count.MALFORMED: "passed up: malformed",
    Count.VLAN: "passed up: VLAN tag",
    Count.FRAGMENT: "passed up: fragment",
    Count.OPTIONS: "passed up: IP options or extension headers",
    Count.SEGMENTED: "passed up: several datagrams in one (GRO)",
    Count.UNFINISHED: "passed up: sent on this machine",
    Count.UNCHECKED: "passed up: no UDP checksum",
    Count.LAST_HOP: "passed up: TTL is 1",
    Count.TOO_BIG: "passed up: longer than the MTU",
    Count.NOT_MOVED: "passed up: the kernel could not change it",
}
"""Each :class:`Count` for a person."""


class PathKey(NamedTuple):
    """How a packet is found: local and remote transport address, and the channel (0: of a peer)."""

    local: Address
    remote: Address
    channel: int

    def pack(self) -> bytes:
        """Return the key of the map.  Errors: see :func:`pack_host`."""
        return pack_key(*self)


class Path(NamedTuple):
    """One direction of a route.  ``channel`` is of the header to be written; 0: none is.

    ``mtu`` is octets of the longest IP packet, ``usage`` and ``buckets`` are indices in the maps.
    ``next_hop`` is the neighbour that packets are given to; empty: the program looks it up.
    ``serial`` is to be another number each time that a path is set.
    """

    expires: Instant
    source: Address
    destination: Address
    channel: int
    mtu: int
    ifindex: int
    usage: int
    buckets: tuple[int, int] = (0, 0)
    next_hop: str = ""
    serial: int = 0

    def pack(self) -> bytes:
        """Return the value of the map.  Errors: see :func:`pack_host`."""
        return PATH.pack(
            self.expires,
            pack_host(self.source.host),
            pack_host(self.destination.host),
            _PORT.pack(self.source.port),
            _PORT.pack(self.destination.port),
            _PORT.pack(self.channel),
            self.mtu,
            self.ifindex,
            self.usage,
            *self.buckets,
            pack_next_hop(self.next_hop),
            self.serial,
        )


class PathUsage(NamedTuple):
    """What has passed on a path: packets, octets of payload, and packets over the rate."""

    packets: int
    octets: int
    dropped: int


class Rate(NamedTuple):
    """What a bucket in the kernel is: see ``relay.h`` for the units."""

    octet_cost: int
    packet_cost: int
    burst: int
    octets_at: Instant
    packets_at: Instant

    def pack(self) -> bytes:
        """Return the value of the map; the kernel minds the lock."""
        return BUCKET.pack(0, 0, *self)


def pack_host(host: str) -> bytes:
    """Return 16 octets for a numeric address, IPv4 as ``::ffff:a.b.c.d`` (RFC 4291 2.5.5.2).

    Raises ``ValueError`` for what is no address, and for a link-local one.
    """
    octets = host_octets(host)
    if len(octets) == 4:
        return _MAPPED + octets
    if "%" in host or (octets[0] == 0xFE and octets[1] & 0xC0 == 0x80):
        raise ValueError(f"{host} is of one link: a path has addresses that hold on all of them")
    return octets


def pack_next_hop(host: str) -> bytes:
    """Return 16 octets for a neighbour, whose address may be one of the link; empty: zeros.

    Raises ``ValueError`` for what is no address.
    """
    octets = host_octets(host) if host else bytes(16)
    return _MAPPED + octets if len(octets) == 4 else octets


def unpack_host(octets: bytes) -> str:
    """Return the address of what :func:`pack_host` makes."""
    return host_text(octets[12:] if octets.startswith(_MAPPED) else octets)


def pack_key(local: Address, remote: Address, channel: int) -> bytes:
    """Return the key of a path.

    Raises ``ValueError`` (see :func:`pack_host`), ``struct.error`` when a number has more than 16
    bits.
    """
    return KEY.pack(
        pack_host(local.host),
        pack_host(remote.host),
        _PORT.pack(local.port),
        _PORT.pack(remote.port),
        _PORT.pack(channel),
        0,
    )


def unpack_key(octets: bytes) -> PathKey:
    """Return what :func:`pack_key` was given."""
    local, remote, local_port, remote_port, channel, _ = KEY.unpack(octets)
    return PathKey(
        Address(unpack_host(local), int.from_bytes(local_port)),
        Address(unpack_host(remote), int.from_bytes(remote_port)),
        int.from_bytes(channel),
    )


def unpack_path(octets: bytes) -> Path:
    """Return what :meth:`Path.pack` was made from."""
    (expires, source, destination, source_port, destination_port, channel, mtu, ifindex, usage,
     first, second, next_hop, serial) = PATH.unpack(octets)  # fmt: skip
    return Path(
        expires,
        Address(unpack_host(source), int.from_bytes(source_port)),
        Address(unpack_host(destination), int.from_bytes(destination_port)),
        int.from_bytes(channel),
        mtu,
        ifindex,
        usage,
        (first, second),
        unpack_host(next_hop) if any(next_hop) else "",
        serial,
    )


def unpack_rate(octets: bytes) -> Rate:
    """Return the rate in a bucket of the map."""
    return Rate(*BUCKET.unpack(octets)[2:])


def pack_draw(bucket: int, octets: int, packets: int) -> bytes:
    """Return what the program "draw" is run on."""
    return DRAW.pack(b"", bucket, packets, octets)


# Rates. -------------------------------------------------------------------------------------------


def changed(old: Rate, octet_rate: int, packet_rate: int, burst: int, now: Instant) -> Rate:
    """Return what a bucket is at these rates (each a second; 0: no limit) and this burst (in ns).

    It is the law of :meth:`turn.meter.Bucket.change`: what the bucket holds and what it owes stay,
    up to the new depth, and what had no limit begins full.
    """
    octet_cost = _cost(octet_rate, _FRACTION)
    packet_cost = _cost(packet_rate, 1)
    # What it holds is worth so many nanoseconds of the old rates, and of the new ones:
    octets = old.burst - max(old.octets_at - now, 0)
    packets = old.burst - max(old.packets_at - now, 0)
    octets = octets * octet_cost // old.octet_cost if old.octet_cost else burst
    packets = packets * packet_cost // old.packet_cost if old.packet_cost else burst
    return Rate(
        octet_cost,
        packet_cost,
        burst,
        now + max(burst - octets, 0),
        now + max(burst - packets, 0),
    )


def _cost(rate: int, fraction: int) -> int:
    # Rounded up: never more than the rate.
    return -(-SECOND * fraction // rate) if rate else 0
