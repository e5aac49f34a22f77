"""The TCP tests: mapping, allocation, filtering, simultaneous open.

The server cooperates over a live connection (CONNECT-BACK): it dials the source of that connection
from a port, or from an address and port, that this host has never contacted, and reports what its
SYNs met.  Three things differ from UDP:

* a lost SYN is sent again after a second only, so every step is tried from several fresh ports side
  by side instead of several times from one;
* connections to the different endpoints stay open together, because a NAT may let go of a mapping
  with its last connection (RFC 5382 section 5);
* a SYN that was not answered proves nothing about a server that cannot dial at all.  The
  simultaneous open is the control: there this host has contacted the very port that the server
  dials from.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from nattype.allocation import Pattern, pattern_of
from nattype.model import Allocation
from nattype.observations import Asked, BackKind, ConnectedBack, Prediction
from nattype.probe.bench import SocketUnavailable
from nattype.probe.contact import connect
from nattype.probe.session import Quad, Session
from nattype.probe.strand import Wait
from nattype.probe.streams import Dialling, Stream
from stun import attributes
from stun.attributes import ConnectBack
from stun.errors import DecodeError
from stun.sansio import MILLISECOND, SECOND, Address

FRESH = 8
PREDICTIONS = 4
MAPPING_SETS = 3
"""Local ports that ask all four endpoints; the first complete set is enough."""
SIMULTANEOUS = 3
"""Simultaneous opens tried at once for each of the server's addresses, and again when all fail."""
BACK_DIALS = 8
"""SYNs of the server: at 10 % loss each way all fail with probability 0.19 ** 8 = 1.7e-6."""

_RESENT = 900 * MILLISECOND
"""A connection that took longer than this had its SYN sent again (RFC 6298: after one second)."""
_STRAGGLERS = 400 * MILLISECOND
_CODE = {BackKind.SAME_ADDRESS: 1, BackKind.OTHER_ADDRESS: 2, BackKind.SIMULTANEOUS: 3}


class TcpTests:
    """The tests of one family; each notes what it saw in the session."""

    def __init__(self, session: Session, server: Address) -> None:
        self.session = session
        self.server = server
        self.bench = session.bench
        self.strands = session.strands
        self._ready: list[tuple[Stream, Asked]] = []
        self._mapped: Wait[None] = Wait()

    # Connections to A:p.

    async def _first_exchange(self, dialling: Dialling, within: int) -> tuple[Stream, Asked] | None:
        stream, dialled = await self.bench.finish_dial(dialling, within)
        self.session.tcp.dialled.append(dialled)
        if stream is None:
            return None
        asked, _ = await stream.ask(self.session.pace.handshake)
        if dialled.took > _RESENT:
            asked = replace(asked, sends=2)
        if not self.session.sound(asked):
            stream.close()
            return None
        self.session.note_stream_rtt(asked)
        self.session.alive_over_tcp[dialling.remote] = None
        return stream, asked

    async def allocation(self) -> None:
        """Dial A:p from fresh ports in order, then foretell the external ports of the next."""
        handshake = self.session.pace.handshake
        results: list[Asked | None] = [None] * FRESH
        done = 0
        most: Wait[None] = Wait()
        order = [self.bench.start_dial(self.server) for _ in range(FRESH)]

        async def one(index: int) -> None:
            nonlocal done
            reached = await self._first_exchange(order[index], handshake)
            done += 1
            if reached is not None:
                results[index] = reached[1]
                self._ready.append(reached)
            if done >= FRESH // 2:
                most.set(None)

        everybody = self.strands.spawn(self.strands.gather([one(n) for n in range(FRESH)]))
        try:
            await self.strands.any_of(most, everybody.ended)
            await self.strands.any_of(everybody.ended, within=_STRAGGLERS)
        finally:
            everybody.cancel()
        self.session.tcp.ordered.extend(asked for asked in results if asked is not None)
        await self._predict(pattern_of(self.session.tcp.ordered))
        self.session.step("TCP port allocation")

    async def _predict(self, found: Pattern) -> None:
        notes, patience = self.session.tcp, max(_STRAGGLERS, 4 * self.session.pace.rtt)
        if found.allocation is Allocation.PRESERVED:
            order = [self.bench.start_dial(self.server) for _ in range(PREDICTIONS)]
            for reached in await self.strands.gather(
                [self._first_exchange(dialling, patience) for dialling in order]
            ):
                if reached is not None:
                    stream, asked = reached
                    self._ready.append(reached)
                    foretold = found.predict(stream.local.port, 0)
                    if foretold is not None and asked.mapped is not None:
                        notes.predictions.append(Prediction(foretold, asked.mapped.port))
        elif found.allocation is Allocation.SEQUENTIAL:
            last: int | None = None
            for _ in range(PREDICTIONS + 1):
                dialling = self.bench.start_dial(self.server)
                reached = await self._first_exchange(dialling, patience)
                foretold = None if last is None else found.predict(0, last)
                if reached is None or reached[1].mapped is None:
                    # The lost SYN may or may not have taken a port: begin again.
                    last = None
                    continue
                self._ready.append(reached)
                last = reached[1].mapped.port
                if foretold is not None:
                    notes.predictions.append(Prediction(foretold, last))

    async def _take(self, server: Address | None = None) -> tuple[Stream, Asked] | None:
        """Return a connection that no test has used, from a port that contacted nobody else."""
        while server is None and self._ready:
            stream, asked = self._ready.pop(0)
            if not stream.ended.done:
                return stream, asked
        fresh = await connect(self.session, server or self.server)
        if fresh is None:
            return None
        asked, _ = await fresh.ask(self.session.pace.handshake)
        return (fresh, asked) if self.session.sound(asked) else None

    # Mapping.

    async def mapping(self, endpoints: list[Address]) -> None:
        """Ask every endpoint from one local port, all connections open together."""
        complete: Wait[None] = Wait()
        taken = [reached for _ in range(MAPPING_SETS) if (reached := await self._take())]

        async def one_set(stream: Stream, asked: Asked) -> None:
            port = stream.local.port
            seen = self.session.tcp.mapping.setdefault(port, [])
            seen.append(asked)
            await self.strands.gather([self._also(port, to, seen) for to in endpoints])
            if len(seen) == len(endpoints) + 1:
                complete.set(None)

        everybody = self.strands.spawn(
            self.strands.gather([one_set(stream, asked) for stream, asked in taken])
        )
        try:
            await self.strands.any_of(complete, everybody.ended)
        finally:
            everybody.cancel()
            self._mapped.set(None)
        self.session.step("TCP mapping")

    async def _also(self, port: int, endpoint: Address, seen: list[Asked]) -> None:
        timeout = self.session.pace.handshake
        stream, dialled = await self.bench.dial(endpoint, timeout, local_port=port)
        self.session.tcp.dialled.append(dialled)
        if stream is not None:
            asked, _ = await stream.ask(timeout)
            if self.session.sound(asked):
                self.session.alive_over_tcp[endpoint] = None
                seen.append(asked)

    # Filtering and simultaneous open.

    async def filtering(self, quad: Quad) -> None:
        """Have the server knock from elsewhere, and from where this host knocks itself."""
        await self.strands.gather(
            [
                self._knock(BackKind.OTHER_ADDRESS),
                self._knock(BackKind.SAME_ADDRESS),
                self._simultaneous(self.server),
                self._simultaneous(quad.same_port),
            ]
        )
        self.session.step("TCP filtering")

    async def _knock(self, kind: BackKind) -> None:
        reached = await self._take()
        if reached is not None:
            stream, _ = reached
            await self._connect_back(stream, kind)

    async def _simultaneous(self, server: Address) -> None:
        """Try until one succeeds: a lost SYN on either side costs an attempt a second.

        Behind a NAT that shows each endpoint another port, the server would dial the wrong one.
        """
        await self._mapped
        if self._moves_by_port():
            return
        success: Wait[None] = Wait()
        for _ in range(2):
            rounds = self.strands.spawn(
                self.strands.gather(
                    [self._one_simultaneous(server, success) for _ in range(SIMULTANEOUS)]
                )
            )
            try:
                await self.strands.any_of(success, rounds.ended)
            finally:
                rounds.cancel()
            if success.done or not self._can_help(server):
                return

    def _moves_by_port(self) -> bool:
        return any(
            one.mapped != other.mapped
            for seen in self.session.tcp.mapping.values()
            for one, other in combinations(seen, 2)
            if one.server.host == other.server.host
        )

    def _can_help(self, server: Address) -> bool:
        return any(b.granted for b in self.session.tcp.back if b.server == server)

    async def _one_simultaneous(self, server: Address, success: Wait[None]) -> None:
        reached = await self._take(None if server == self.server else server)
        if reached is not None:
            back = await self._connect_back(reached[0], BackKind.SIMULTANEOUS)
            if back.dialled is not None and back.dialled.connected and back.established:
                success.set(None)

    async def _connect_back(self, stream: Stream, kind: BackKind) -> ConnectedBack:
        """Ask the server to dial this connection's source; note and return what came of it."""
        seen = ConnectedBack(
            kind, stream.local, stream.remote, at=self.strands.now - self.bench.started
        )
        position = len(self.session.tcp.back)
        self.session.tcp.back.append(seen)
        seen = await self._exchange(stream, seen)
        self.session.tcp.back[position] = seen
        return seen

    async def _exchange(self, stream: Stream, seen: ConnectedBack) -> ConnectedBack:
        now_pace = self.session.pace
        listener = None
        simultaneous = seen.kind is BackKind.SIMULTANEOUS
        if not simultaneous:
            try:
                listener = await self.bench.listen(stream.local.port)
            except SocketUnavailable:
                return seen
        wait = max(now_pace.silence + 200 * MILLISECOND, 2 * SECOND if simultaneous else 0)
        # A simultaneous open needs this host's SYN to be through its NAT before the server's comes.
        delay = max(80 * MILLISECOND, now_pace.rtt) if simultaneous else 0
        asked, response = await stream.ask(
            now_pace.handshake,
            connect_back=ConnectBack(
                _CODE[seen.kind],
                BACK_DIALS,
                min(delay // MILLISECOND, 0xFFFF),
                min(wait // MILLISECOND, 0xFFFF),
                0,
            ),
        )
        granted = None
        if response is not None and asked.error is None:
            try:
                granted = response.get(attributes.CONNECT_BACK)
            except DecodeError:
                granted = None
        if granted is None or not granted.count:
            return replace(seen, error=asked.error)
        seen = replace(seen, granted=granted.count)
        limit = wait + delay + BACK_DIALS * 50 * MILLISECOND + now_pace.handshake
        if simultaneous:
            remote = Address(stream.remote.host, granted.port)
            mine = self.bench.start_dial(remote, stream.local.port)
            report = self.strands.spawn(self._report(stream, seen, limit))
            try:
                await self.strands.any_of(mine.outcome, report.ended, within=limit)
                peer, dialled = await self.bench.finish_dial(mine, now_pace.grace)
                seen = replace(await report, dialled=dialled)
                if peer is not None:
                    peer.close()
                return seen
            finally:
                report.cancel()
        seen = await self._report(stream, seen, limit)
        if listener is not None:
            if seen.established and not listener.accepted:
                await self.strands.sleep(now_pace.grace)
            seen = replace(seen, accepted_from=tuple(listener.accepted))
            self.bench.shut(listener.handle)
        return seen

    async def _report(self, stream: Stream, seen: ConnectedBack, limit: int) -> ConnectedBack:
        """Wait for the server's report on its dials."""
        until = self.strands.now + limit
        while True:
            for message in stream.indications:
                try:
                    result = message.get(attributes.CONNECT_BACK_RESULT)
                except DecodeError:
                    continue
                if result is not None:
                    return replace(
                        seen,
                        established=result.established,
                        refused=result.refused,
                        unreachable=result.unreachable,
                        timed_out=result.timed_out,
                        other=result.other,
                        reported=True,
                    )
            stream.news = Wait()
            left = until - self.strands.now
            if stream.ended.done or left <= 0:
                return seen
            await self.strands.any_of(stream.news, stream.ended, within=left)
