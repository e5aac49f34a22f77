"""Reaching a server, and choosing among several.

All servers are asked at once and from sockets of their own, so that a dead one costs nothing.  The
first that offers RFC 5780 (a second address that can be believed) is used for the tests; when an
ordinary one answers first, the others get a moment more.
"""

from __future__ import annotations

from contextlib import suppress

from nattype.honesty import fault_of_other
from nattype.observations import Asked, Contact, Dialled
from nattype.probe import pace
from nattype.probe.bench import SocketUnavailable
from nattype.probe.requests import UdpSocket
from nattype.probe.session import Quad, Server, Session
from nattype.probe.strand import Wait
from nattype.probe.streams import Stream
from stun.sansio import MILLISECOND, Address

_HEDGE = 250 * MILLISECOND
"""A SYN that is lost is sent again after a second; another one from another port goes out
sooner."""
_HEDGES = 8
_GIVE_UP = 3_500 * MILLISECOND
"""From the first SYN until TCP counts as silent: the kernel has sent the early ones three times."""


def quad_of(asked: Asked) -> Quad | None:
    """Return the four addresses of the server that answered, if it advertises a second one."""
    if asked.other is None or fault_of_other(asked.server, asked.other) is not None:
        return None
    return Quad(asked.server, asked.other)


def moment(session: Session, asked: Asked) -> int:
    """Return how long a better server may come after the first one, ns."""
    return max(250 * MILLISECOND, 2 * (asked.rtt or session.pace.rtt))


async def over_udp(session: Session, first: Wait[Asked], best: Wait[Asked | None]) -> None:
    """Ask every server over UDP.

    ``first`` is set by the first answer, ``best`` once it is clear which server the tests use, or
    that none answers.
    """

    async def one(server: Server) -> None:
        socket: UdpSocket = await session.bench.udp()
        asked = await socket.ask(server.address, pace.contact())
        session.udp.contacts.append(Contact(server.address, server.name, asked))
        if session.sound(asked):
            session.note_rtt(asked)
            session.alive_over_udp[server.address] = None
            if quad_of(asked) is not None:
                first.set(asked)
                best.set(asked)
            elif not first.done:
                first.set(asked)

    async def all_of_them() -> None:
        with suppress(SocketUnavailable):
            await session.strands.gather([one(server) for server in session.servers])

    everybody = session.strands.spawn(all_of_them())
    try:
        await session.strands.any_of(first, everybody.ended)
        if first.done and not best.done:
            earliest = await first
            await session.strands.any_of(best, everybody.ended, within=moment(session, earliest))
            best.set(earliest)
        best.set(None)
        # The stragglers may still tell something about themselves; nobody waits for them.
        await everybody
    finally:
        everybody.cancel()


class Reached:
    """A server that accepted a connection, and that connection."""

    __slots__ = ("asked", "stream")

    def __init__(self, asked: Asked, stream: Stream) -> None:
        self.asked = asked
        self.stream = stream


async def over_tcp(session: Session, best: Wait[Reached | None]) -> None:
    """Connect to every server; ``best`` is set as in :func:`over_udp`."""
    first: Wait[Reached] = Wait()

    async def one(server: Server) -> None:
        stream = await connect(session, server.address)
        if stream is None:
            session.tcp.contacts.append(Contact(server.address, server.name))
            return
        asked, _ = await stream.ask(session.pace.handshake)
        session.tcp.contacts.append(Contact(server.address, server.name, asked))
        if session.sound(asked):
            session.alive_over_tcp[server.address] = None
            reached = Reached(asked, stream)
            if quad_of(asked) is not None:
                best.set(reached)
            first.set(reached)

    everybody = session.strands.spawn(
        session.strands.gather([one(server) for server in session.servers])
    )
    try:
        await session.strands.any_of(first, everybody.ended)
        if first.done and not best.done:
            earliest = await first
            wait = moment(session, earliest.asked)
            await session.strands.any_of(best, everybody.ended, within=wait)
            best.set(earliest)
        best.set(None)
        await everybody
    finally:
        everybody.cancel()


async def connect(session: Session, remote: Address) -> Stream | None:
    """Connect to a server from whichever fresh port gets through first.

    A refusal is final.  Silence is decided after :data:`_HEDGES` SYNs from as many ports, most of
    them sent again by the kernel: at 10 % loss each way all fail with probability 0.19 ** 16.
    """
    strands, bench = session.strands, session.bench
    won: Wait[Stream | None] = Wait()
    outcomes: list[Dialled] = []
    began = strands.now

    async def one() -> None:
        stream, dialled = await bench.dial(remote, began + _GIVE_UP - strands.now)
        outcomes.append(dialled)
        session.tcp.dialled.append(dialled)
        if stream is not None:
            if won.done:
                stream.close()
            won.set(stream)

    attempts = []
    try:
        for number in range(_HEDGES):
            attempts.append(strands.spawn(one()))
            # A refusal or an ICMP error is an answer: one more may contradict it, not seven.
            if await strands.any_of(won, within=_HEDGE) or (number and len(outcomes) > 1):
                break
        else:
            await strands.any_of(won, within=began + _GIVE_UP - strands.now)
        return won.value
    finally:
        for attempt in attempts:
            attempt.cancel()
