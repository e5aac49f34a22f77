"""Asking the router what its outside is, without asking it for anything (RFC 6886, RFC 6887).

NAT-PMP's first opcode returns the router's external address and makes no mapping.  If that is not
the address that servers see, there is another NAT behind the router.  PCP has no such question; its
ANNOUNCE only tells that the router speaks it.  Most routers speak neither and stay silent or send
ICMP, so this runs beside other tests and its silence means nothing.
"""

from __future__ import annotations

import ipaddress
import struct

from nattype.observations import Gateway
from nattype.probe.session import Session
from stun.sansio import MILLISECOND, Address, Transmit

PORT = 5351
"""RFC 6886 section 3.1 and RFC 6887 section 19.1."""

_NAT_PMP_QUESTION = bytes((0, 0))
"""Version 0, opcode 0: "the public address request" of RFC 6886 section 3.2."""
_NAT_PMP_ANSWER = struct.Struct("!BBHI4s")
_PCP_ANNOUNCE = struct.Struct("!BBHI16s")
"""RFC 6887 section 7.1: version, opcode, reserved, lifetime, the client's address."""
_INTERVALS = (250 * MILLISECOND, 500 * MILLISECOND)
"""RFC 6886 section 3.1 starts at 250 ms and doubles; two sends and 750 ms are enough on a LAN."""


def external_of(answer: bytes) -> str | None:
    """Return the external address in a NAT-PMP answer, ``None`` if it has none.

    RFC 6886 section 3.2: 12 octets, opcode 128, result code 0.  Before it has an address itself a
    router may answer 0.0.0.0.
    """
    if len(answer) != _NAT_PMP_ANSWER.size:
        return None
    version, opcode, result, _, octets = _NAT_PMP_ANSWER.unpack(answer)
    if (version, opcode, result) != (0, 128, 0) or not any(octets):
        return None
    return str(ipaddress.IPv4Address(octets))


def is_pcp(answer: bytes) -> bool:
    """Whether an answer is one of PCP: version 2 and the response bit (RFC 6887 section 7.2)."""
    return len(answer) >= 24 and answer[0] == 2 and bool(answer[1] & 0x80)


async def ask_gateway(session: Session, router: str) -> None:
    """Ask ``router`` by NAT-PMP and PCP at once; note what it says."""
    bench, strands = session.bench, session.strands
    socket = await bench.udp()
    remote = Address(router, PORT)
    own = ipaddress.ip_address(bench.host.partition("%")[0])
    mapped = own.packed if own.version == 6 else bytes(10) + b"\xff\xff" + own.packed
    began = strands.now
    answers = bench.hear(socket, remote)
    protocol = None
    for interval in _INTERVALS:
        for question in (_NAT_PMP_QUESTION, _PCP_ANNOUNCE.pack(2, 0, 0, 0, mapped)):
            bench.put(Transmit(question, remote, socket.local))
        until = strands.now + interval
        while await strands.any_of(answers.news, within=until - strands.now):
            for answer in answers.take():
                if is_pcp(answer):
                    protocol = protocol or "PCP"
                external = external_of(answer)
                if external is not None:
                    session.gateway = Gateway(remote, "NAT-PMP", external, at=began - bench.started)
                    return
    if protocol is not None:
        session.gateway = Gateway(remote, protocol, None, at=began - bench.started)
