"""A program in the kernel that knows a few routes, frames for it, and a model of what it should do.

The program is run by the kernel on frames of ours (BPF_PROG_TEST_RUN); the frames go nowhere.  The
model is :func:`foreseen`: it says what is to come out, field by field.  Checksums are computed anew
in what came out, by :mod:`tests.lab.frames`.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from stun.sansio import SECOND, Address
from tests.lab import frames
from tests.lab.frames import Datagram, Seen
from tests.lab.turnd_world import require
from turn.dataplane.kernel.layouts import Count, Path, pack_key
from turn.dataplane.kernel.libbpf import TC_REDIRECT, TCX_NEXT
from turn.dataplane.kernel.program import RelayProgram

LOOPBACK, OTHER, FAR = "00:00:00:00:00:00", "02:00:00:00:00:01", "02:00:00:00:00:02"
"""The loopback interface has the first address, so frames for it are for this machine."""
MTU = 1500
FAMILIES = ("IPv4", "IPv6")
HOSTS = {
    "IPv4": ("192.0.2.1", "198.51.100.7", "203.0.113.9"),
    "IPv6": ("2001:db8::1", "2001:db8:c::7", "2001:db8:d::9"),
}
"""Of the server, the client and the peer."""
CHANNEL = 0x4ABC


class Leg(NamedTuple):
    """One direction: how packets arrive, and how they leave."""

    local: Address
    remote: Address
    channel: int
    source: Address
    destination: Address
    write: int
    usage: int


@dataclass(frozen=True)
class Relay:
    """A program that knows four routes: each family of the client with each of the peer."""

    program: RelayProgram
    legs: dict[tuple[str, str, str], Leg]

    def leg(self, direction: str, arrives: str = "IPv4", leaves: str = "IPv4") -> Leg:
        return self.legs[direction, arrives, leaves]

    def set(self, leg: Leg, **values: object) -> None:
        """Put a path in, or change it."""
        path = Path(
            time.monotonic_ns() + 600 * SECOND, leg.source, leg.destination, leg.write, MTU, 1,
            leg.usage,
        )._replace(**values)  # fmt: skip
        self.program.set_path(pack_key(*leg[:3]), path.pack())

    def counted(self, frame: bytes, **how: int) -> tuple[int, bytes, dict[Count, int]]:
        """Run it on a frame; return its verdict, the frame then, and what it counted."""
        before = self.program.counts()
        verdict, after = self.program.run(frame, **how)
        now = self.program.counts()
        return (
            verdict,
            after,
            {one: now[one] - before[one] for one in Count if now[one] > before[one]},
        )

    def passes_up(self, frame: bytes, why: Count | None, **how: int) -> None:
        """Assert that the stack gets the frame as it is, and that this was counted (or nothing)."""
        verdict, after, counts = self.counted(frame, **how)
        assert counts == ({} if why is None else {why: 1})
        assert verdict == TCX_NEXT
        assert after == frame

    def forwards(self, frame: bytes) -> Seen:
        """Assert that the frame is sent on; return what it is then."""
        verdict, after, counts = self.counted(frame)
        assert verdict == TC_REDIRECT, counts
        # The neighbour subsystem writes the Ethernet header, by what the packet is then.
        seen = frames.read(frames.frame(FAR, OTHER, after[14:]))
        assert seen is not None
        # Nothing is behind the packet, neither padding nor what filled up the frame.
        header = 40 if seen.packet.source.is_ipv6 else 20
        assert len(after) == 14 + header + 8 + len(seen.packet.payload)
        assert len(counts) == 1
        assert sum(counts.values()) == 1
        return seen


@contextmanager
def relays() -> Iterator[Relay]:
    """A program with its routes, which is closed at the end."""
    require("kernel")
    program = RelayProgram.load(routes=64, buckets=8)
    legs = {}
    for n, client_family in enumerate(FAMILIES):
        for m, peer_family in enumerate(FAMILIES):
            server, client, _ = HOSTS[client_family]
            relayed, _, peer = HOSTS[peer_family]
            number = 2 * n + m
            ends = (
                Address(server, 3478), Address(client, 40000 + number),
                Address(relayed, 50000 + number), Address(peer, 6000 + number),
            )  # fmt: skip
            legs["to peers", client_family, peer_family] = Leg(
                ends[0], ends[1], CHANNEL, ends[2], ends[3], 0, 2 * number
            )
            legs["to clients", peer_family, client_family] = Leg(
                ends[2], ends[3], 0, ends[0], ends[1], CHANNEL, 2 * number + 1
            )
    found = Relay(program, legs)
    for leg in legs.values():
        found.set(leg)
        program.serve_port(leg.local.port)
    try:
        yield found
    finally:
        program.close()


# Frames, and the model. ---------------------------------------------------------------------------


def channel_data(payload: bytes, padding: bytes = b"", channel: int = CHANNEL) -> bytes:
    return struct.pack("!HH", channel, len(payload)) + payload + padding


def datagram(
    leg: Leg, payload: bytes = b"payload", padding: bytes = b"", **fields: object
) -> Datagram:
    """What arrives on a leg, with this to be relayed."""
    body = channel_data(payload, padding, leg.channel) if leg.channel else payload
    return replace(Datagram(leg.remote, leg.local, body), **fields)


def arriving(what: Datagram, trailer: bytes = b"") -> bytes:
    (packet,) = frames.packets(what)
    return frames.frame(LOOPBACK, OTHER, packet) + trailer


def changed(frame: bytes, at: int, octets: bytes) -> bytes:
    """A frame with other octets in its packet, from ``at`` on."""
    at += 14
    return frame[:at] + octets + frame[at + len(octets) :]


def foreseen(leg: Leg, what: Datagram, payload: bytes) -> Datagram:
    """What is to leave when ``what`` arrives, but for the identification and the checksum."""
    to_ipv6 = leg.destination.is_ipv6
    body = channel_data(payload, channel=leg.write) if leg.write else payload
    if to_ipv6:
        df = False
    elif what.source.is_ipv6:
        # RFC 7915 section 5.1: DF is zero up to 1260 octets, which is what is left in IPv4 of the
        # 1280 that every link of IPv6 takes, and one beyond.
        df = 20 + 8 + len(body) > 1260
    else:
        df = what.df
    return Datagram(leg.source, leg.destination, body, ttl=what.ttl - 1, tos=what.tos, df=df)


def assert_right(seen: Seen, expected: Datagram) -> None:
    found = seen.packet
    assert seen.header_right
    assert seen.checksum_right
    ours = {"identification": expected.identification, "checksum": expected.checksum}
    assert replace(found, **ours) == expected
