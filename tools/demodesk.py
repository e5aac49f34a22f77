"""Packets as two NATs see them, for the tests of what the demo makes of them."""

from __future__ import annotations

import socket
import struct
from typing import Final

from tools.demo_wire import ACK, INNER, OUTER, RST, SYN, Wire

NAT: Final = {"A": "192.52.193.2", "B": "192.52.193.34"}
HOST: Final = {"A": "192.168.1.10", "B": "192.168.2.10"}
PORT: Final = {"A": 4000, "B": 5000}
OTHER: Final = {"A": "B", "B": "A"}


def ipv4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """Return an IPv4 packet."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    return head + addresses + payload


def tcp(
    source: tuple[str, int],
    target: tuple[str, int],
    flags: int,
    sequence: int = 100,
    acknowledged: int = 0,
    *,
    octets: int = 0,
) -> bytes:
    """Return an IPv4 packet with a TCP segment."""
    head = struct.pack(
        "!HHIIBBHHH", source[1], target[1], sequence, acknowledged, 0x50, flags, 1000, 0, 0
    )
    return ipv4(source[0], target[0], socket.IPPROTO_TCP, head + bytes(octets))


def icmp(source: str, target: str, quoted: bytes, kind: int = 3) -> bytes:
    """Return an ICMP error about a packet."""
    message = struct.pack("!BBHI", kind, 13, 0, 0) + quoted[:28]
    return ipv4(source, target, socket.IPPROTO_ICMP, message)


class Play:
    """What two NATs see when hosts behind them send segments, in milliseconds."""

    def __init__(self) -> None:
        self.wire = Wire(NAT)

    def see(self, ms: float, side: str, interface: str, packet: bytes, *, out: bool) -> None:
        """Have a NAT see a packet."""
        self.wire.take(round(ms * 1e6), side, interface, outgoing=out, packet=packet)

    def leave(
        self,
        ms: float,
        side: str,
        flags: int,
        sequence: int = 100,
        acknowledged: int = 0,
        *,
        octets: int = 0,
        ports: tuple[int, int] | None = None,
    ) -> None:
        """Have a host send a segment, and its NAT pass it on."""
        mine, theirs = ports or (PORT[side], PORT[OTHER[side]])
        rest = ((NAT[OTHER[side]], theirs), flags, sequence, acknowledged)
        inside = tcp((HOST[side], mine), *rest, octets=octets)
        outside = tcp((NAT[side], mine), *rest, octets=octets)
        self.see(ms, side, INNER, inside, out=False)
        self.see(ms, side, OUTER, outside, out=True)

    def arrive(
        self,
        ms: float,
        side: str,
        flags: int,
        sequence: int = 100,
        acknowledged: int = 0,
        *,
        ports: tuple[int, int] | None = None,
        let_in: bool = True,
    ) -> None:
        """Have what the host of ``side`` sent come to the other NAT, and perhaps to its host."""
        mine, theirs = ports or (PORT[side], PORT[OTHER[side]])
        other = OTHER[side]
        source, rest = (NAT[side], mine), (flags, sequence, acknowledged)
        self.see(ms, other, OUTER, tcp(source, (NAT[other], theirs), *rest), out=False)
        if let_in:
            self.see(ms, other, INNER, tcp(source, (HOST[other], theirs), *rest), out=True)

    def refuse(self, ms: float, side: str, sequence: int = 100) -> None:
        """Have the other NAT answer a SYN of ``side`` with RST, which arrives 20 ms later."""
        other = OTHER[side]
        ends = ((NAT[other], PORT[other]), (NAT[side], PORT[side]))
        packet = tcp(*ends, RST | ACK, 0, sequence + 1)
        self.see(ms, other, OUTER, packet, out=True)
        self.see(ms + 20, side, OUTER, packet, out=False)
        inner = tcp(ends[0], (HOST[side], PORT[side]), RST | ACK, 0, sequence + 1)
        self.see(ms + 20, side, INNER, inner, out=True)

    def simultaneous_open(self, a: float = 0.0, b: float = 2.0) -> None:
        """Have a SYN of either side cross the other one's, 20 ms one way."""
        self.leave(a, "A", SYN, 100)
        self.leave(b, "B", SYN, 900)
        self.arrive(a + 20, "A", SYN, 100)
        self.leave(a + 20, "B", SYN | ACK, 900, 101)
        self.arrive(b + 20, "B", SYN, 900)
        self.leave(b + 20, "A", SYN | ACK, 100, 901)
        self.arrive(a + 40, "B", SYN | ACK, 900, 101)
        self.arrive(b + 40, "A", SYN | ACK, 100, 901)
