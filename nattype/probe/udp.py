"""The UDP tests: mapping, allocation, filtering, poison, hairpinning, fragments.

Order matters, and so does which socket asks what (RFC 5780 sections 4.1 and 4.5):

* a filter is tested from a fresh socket that has sent nothing to the address the answer is to come
  from, or the test itself has opened the filter;
* the mapping is tested from a socket that never asks for a change, because an uninvited packet from
  the alternate address leaves state in some routers that costs a later outbound packet its mapping;
* ports are counted while nothing else makes mappings.
"""

from __future__ import annotations

from nattype.allocation import Pattern, pattern_of
from nattype.honesty import same_host
from nattype.model import Allocation
from nattype.observations import Asked, Challenge, Change, HairpinRun, PoisonRun, Prediction
from nattype.probe.pace import SENDS
from nattype.probe.requests import UdpSocket
from nattype.probe.session import Quad, Session
from nattype.probe.strand import Strand, Wait
from stun.codec import Message, encode
from stun.registry import Method
from stun.sansio import MILLISECOND, Address, Transmit
from stun.transaction import Schedule

FRESH = 8
"""Fresh sockets whose external ports are compared (besides one that asks several endpoints)."""
PREDICTIONS = 5
_LARGE = 1500
"""Octets of PADDING: with the headers more than an Ethernet frame holds."""
_LARGE_SENDS = 16
"""Fragments are lost in pairs: at 10 % loss of each, one round trip in three is.  0.35 ** 16 =
5e-8."""
_HAIRPIN_SPACING = 60 * MILLISECOND


class UdpTests:
    """The tests of one family; each notes what it saw in the session."""

    def __init__(self, session: Session, server: Address) -> None:
        self.session = session
        self.server = server
        self.bench = session.bench
        self.strands = session.strands
        self.mapped: Wait[None] = Wait()
        """Set when the mapping test is over."""
        self._mapping_socket: UdpSocket | None = None
        self._strands: list[Strand[None]] = []

    # Mapping and allocation.

    def _endpoints(self) -> list[Address]:
        """Return whom the mapping socket asks, in this order, besides the server itself."""
        quad = self.session.quad
        if quad is not None:
            return [quad.same_port, quad.alternate, quad.same_address]
        others = [s.address for s in self.session.servers if s.address != self.server]
        # An ordinary server often answers at a second port all the same: 3479 is the alternate
        # default, 19302 a large operator's.
        spare = [
            Address(self.server.host, port)
            for port in (self.server.port + 1, 3478, 3479, 19302)
            if port != self.server.port and port <= 0xFFFF
        ]
        return list(dict.fromkeys([*others, *spare]))

    async def mapping_and_allocation(self) -> None:
        """Ask from one socket and from many, interleaved, then foretell the next ports."""
        session, notes = self.session, self.session.udp
        sockets = [await self.bench.udp() for _ in range(FRESH + 1)]
        mapping_socket = self._mapping_socket = sockets[0]
        fresh = sockets[1:]
        trusted = session.quad is not None
        turns: list[tuple[UdpSocket, Address]] = []
        endpoints = self._endpoints()
        for number, socket in enumerate(fresh):
            turns.append((socket, self.server))
            if number == 0:
                turns.append((mapping_socket, self.server))
            elif endpoints:
                turns.append((mapping_socket, endpoints.pop(0)))
        turns.extend((mapping_socket, endpoint) for endpoint in endpoints)
        results: list[Asked | None] = [None] * len(turns)
        counted: Wait[None] = Wait()

        async def one(index: int) -> None:
            socket, endpoint = turns[index]
            sure = trusted or endpoint == self.server
            schedule = session.pace.patient if sure else session.pace.question
            asked = await socket.ask(endpoint, schedule)
            results[index] = asked
            if session.sound(asked):
                session.note_rtt(asked)
                session.alive_over_udp[endpoint] = None
            if all(results[n] is not None for n, (_, to) in enumerate(turns) if to == self.server):
                counted.set(None)

        async def everybody() -> None:
            await self.strands.gather([one(index) for index in range(len(turns))])
            for (socket, _), asked in zip(turns, results, strict=True):
                if socket is mapping_socket and asked is not None:
                    notes.mapping.append(asked)
            self.mapped.set(None)
            session.step("UDP mapping")

        # Who does not answer the mapping socket (a dead second address) is not waited for here.
        self._strands.append(self.strands.spawn(everybody()))
        await self.strands.any_of(counted, self.mapped)
        await self.strands.any_of(self.mapped, within=session.pace.grace)
        notes.ordered.extend(
            asked for asked in results if asked is not None and session.sound(asked)
        )
        await self._predict(pattern_of(notes.ordered))

    async def mapping(self) -> None:
        """Wait until everybody has answered the mapping socket, or will not."""
        await self.mapped

    def cancel(self) -> None:
        """End what still waits for an answer."""
        for strand in self._strands:
            strand.cancel()

    async def _predict(self, found: Pattern) -> None:
        notes = self.session.udp
        if found.allocation is Allocation.PRESERVED:
            sockets = [await self.bench.udp() for _ in range(PREDICTIONS)]
            foretold = [found.predict(socket.local.port, 0) for socket in sockets]
            answers = await self.strands.gather(
                [socket.ask(self.server, self.session.pace.question) for socket in sockets]
            )
            for port, asked in zip(foretold, answers, strict=True):
                if port is not None and self.session.sound(asked) and asked.mapped is not None:
                    notes.predictions.append(Prediction(port, asked.mapped.port))
        elif found.allocation is Allocation.SEQUENTIAL:
            # The way a peer would use it: learn one mapping, foretell the next.
            last: int | None = None
            for _ in range(PREDICTIONS + 1):
                socket = await self.bench.udp()
                port = None if last is None else found.predict(socket.local.port, last)
                asked = await socket.ask(self.server, self.session.pace.question)
                if not self.session.sound(asked) or asked.mapped is None:
                    continue
                last = asked.mapped.port
                if port is not None:
                    notes.predictions.append(Prediction(port, last))
        self.session.step("UDP port allocation")

    async def mapping_again(self) -> None:
        """Ask A:p again from the mapping socket, to see whether its mapping is still the same."""
        await self.mapped
        if self._mapping_socket is not None:
            self.session.udp.last = await self._mapping_socket.ask(
                self.server, self.session.pace.patient
            )

    # Filtering.

    async def filtering(self, quad: Quad) -> None:
        """Run the four challenges side by side, each on a socket of its own."""
        await self.strands.gather(
            [
                self._from_strangers(quad),
                self._from_another_port(quad),
                self._control(Change.BOTH, quad.alternate),
                self._control(Change.PORT, quad.same_address),
            ]
        )
        self.session.step("UDP filtering")

    async def _open_mapping(self) -> tuple[UdpSocket, bool]:
        socket = await self.bench.udp()
        asked = await socket.ask(self.server, self.session.pace.patient)
        self.session.udp.first.append(asked)
        return socket, asked.answered

    async def _from_strangers(self, quad: Quad) -> None:
        """Have B:q answer, which this socket never contacted; then see what the knock has cost."""
        notes, now_pace = self.session.udp, self.session.pace
        socket, opened = await self._open_mapping()
        if not opened:
            return
        notes.both = await socket.challenge(
            self.server, now_pace, change=Change.BOTH, expected=quad.alternate
        )
        if not notes.both.positive and not notes.both.negative:
            return
        before = notes.first_of(socket.local)
        # Only now may this socket talk to B.
        elsewhere = await socket.ask(quad.same_port, now_pace.question)
        if before is not None and elsewhere.answered:
            knocker = await socket.ask(quad.alternate, now_pace.patient)
            notes.poison = PoisonRun(before, elsewhere, knocker)

    async def _from_another_port(self, quad: Quad) -> None:
        """Have A:q answer, which this socket never contacted."""
        socket, opened = await self._open_mapping()
        if opened:
            self.session.udp.port = await socket.challenge(
                self.server, self.session.pace, change=Change.PORT, expected=quad.same_address
            )

    async def _control(self, change: Change, source: Address) -> None:
        """Contact ``source``, then have it answer a request to A:p: that must arrive.

        Behind a NAT whose mapping depends on the destination the answer goes to a mapping that
        ``source`` may not use, so there RESPONSE-PORT directs it to the one it may.
        """
        notes, now_pace = self.session.udp, self.session.pace
        socket = await self.bench.udp()
        contacted = await socket.ask(source, now_pace.patient)
        if not self.session.sound(contacted) or contacted.mapped is None:
            return
        here = await socket.ask(self.server, now_pace.patient)
        moved = here.mapped is not None and here.mapped.port != contacted.mapped.port
        control = await socket.challenge(
            self.server,
            now_pace,
            change=change,
            expected=source,
            response_port=contacted.mapped.port if moved else None,
        )
        if change is Change.BOTH:
            notes.both_control = control
        else:
            notes.port_control = control

    # Hairpinning and fragments.

    async def hairpinning(self) -> None:
        """Have two sockets send to each other's mapped addresses."""
        a, b = await self.bench.udp(), await self.bench.udp()
        now_pace = self.session.pace
        asked_a, asked_b = await self.strands.gather(
            [socket.ask(self.server, now_pace.patient) for socket in (a, b)]
        )
        if not (self.session.sound(asked_a) and self.session.sound(asked_b)):
            return
        mapped_a, mapped_b = asked_a.mapped, asked_b.mapped
        assert mapped_a is not None
        assert mapped_b is not None
        if same_host(mapped_a.host, a.local.host):
            # There is no NAT to turn a packet round.
            return
        arrived: Wait[Address] = Wait()
        from_a, from_b = (self._nonce(wait) for wait in (arrived, Wait[Address]()))
        began, sends = self.strands.now, 0
        while sends < SENDS and not arrived.done:
            # b first: its packet to a's mapped address opens its filter for a's answer.
            self.bench.put(Transmit(from_b, mapped_a, b.local))
            self.bench.put(Transmit(from_a, mapped_b, a.local))
            sends += 1
            await self.strands.any_of(arrived, within=_HAIRPIN_SPACING)
        await self.strands.any_of(arrived, within=now_pace.silence)
        control = None
        if not arrived.done:
            control = await b.ask(self.server, now_pace.patient)
            await self.strands.any_of(arrived, within=now_pace.grace)
        self.session.udp.hairpin = HairpinRun(
            mapped_a,
            mapped_b,
            a.local,
            b.local,
            sends,
            arrived.value,
            control,
            began - self.bench.started,
        )
        self.session.step("UDP hairpinning")

    def _nonce(self, arrived: Wait[Address]) -> bytes:
        message = Message.indication(Method.BINDING, self.bench.entropy(12))
        self.bench.nonces[message.transaction_id] = arrived
        return encode(message)

    async def fragments(self) -> None:
        """Send a request that is larger than the path's MTU, and want an answer that is, too."""
        socket = await self.bench.udp()
        now_pace = self.session.pace
        first = now_pace.question.intervals[0]
        schedule = Schedule.fixed((first,) * (_LARGE_SENDS - 1), now_pace.silence)
        inquiry = socket.inquire(self.server, padding=_LARGE)
        asked = await socket.walk(inquiry, schedule, heed_icmp=False)
        control = None
        if asked.source is None:
            control = await socket.ask(self.server, now_pace.patient)
            await self.strands.any_of(inquiry.answer, within=now_pace.grace)
        self.session.udp.fragments = Challenge(inquiry.result(self.bench.started), control)
        self.session.step("UDP fragments")
