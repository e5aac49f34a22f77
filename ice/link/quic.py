"""QUIC over the packets of an ICE connection that runs over UDP: reliable, in order, and datagrams.

Theory of operation.  aioquic's connection is a machine: packets and the time go in, packets and
events come out; there is no task.  What arrives in one wake-up of the event loop is taken in as it
comes, and answered, and given up, once at the end of it.  Each side writes one unidirectional
stream, whose first octets prove who it is (:mod:`ice.link.handshake`).

*How long a packet may be.*  Time is spent by the packet, not by the octet, and 1200 octets, which
pass everywhere, are few.  The client's first packet is always padded to the greatest length, and so
is the server's (RFC 9000 section 14.1), so a handshake in packets of 1400 octets that succeeds has
probed the path in both directions.  The client therefore begins two handshakes at once, in long
packets and in short ones, and goes on with the one that comes through first: the long one where it
is possible, since it leaves first.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    PingAcknowledged,
    ProtocolNegotiated,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.quic.packet import QuicErrorCode

from ice.connection import Connection
from ice.link.carrying import ALPN, Carrying, State
from ice.link.certificate import Identity
from ice.link.handshake import CID, VERSION, Handshake

SHORT: Final = 1200
"""Octets of a packet that passes everywhere (RFC 9000 section 14)."""
LONG: Final = 1400
"""Octets of a packet that passes where the MTU is 1500, through a TURN server as well (the longest
header that one adds is 36 octets), and through most tunnels."""
MARK: Final = 1 << 17
"""Octets that may wait to be sent before the carrier is congested."""
MOST_DATAGRAMS: Final = 1 << 16
"""Octets of datagrams that may wait."""
MOST_TRIES: Final = 4
"""Handshakes that a server answers."""

_ADDRESS: Final = ("peer", 0)
"""Where packets come from, as far as QUIC is concerned: paths are ICE's business."""
_DATAGRAM_OVERHEAD: Final = 1 + CID + 2 + 16 + 1 + 2
"""First octet, connection ID, packet number, tag; type and length of the frame."""

# Whatever a peer does wrong, aioquic logs as a warning, which without this goes to the terminal.
logging.getLogger("quic").addHandler(logging.NullHandler())


class QuicCarrier(Carrying):
    """A :class:`ice.link.carrier.Carrier` over a connection whose pair is of UDP."""

    def __init__(
        self,
        connection: Connection,
        identity: Identity,
        peer_fingerprint: bytes,
        *,
        server: bool,
    ) -> None:
        super().__init__(connection, identity, peer_fingerprint, server=server)
        self._tries: list[Handshake] = []
        self._chosen: Handshake | None = None
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told = False
        """Whether :attr:`congested` was true when it was last looked at."""
        self._datagrams = 0
        """Octets of datagrams that may still wait."""
        self._farewell: asyncio.Future[None] | None = None

    # The handshake. -------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._server:
            return
        now = self._loop.time()
        for size in (LONG, SHORT):
            attempt = self._new_try(size, None)
            attempt.quic.connect(_ADDRESS, now)
        self._transmit()

    def _new_try(self, size: int, destination: bytes | None) -> Handshake:
        pair = self._connection.selected_pair
        rtt = None if pair is None or not pair.rtt else max(pair.rtt / 1e9, 0.02)
        attempt = Handshake(self._identity, self._peer, size=size, rtt=rtt, destination=destination)
        self._tries.append(attempt)
        return attempt

    def _answer(self, data: bytes, to: bytes) -> None:
        """Begin as a server, if this is a client's first packet.

        The four bits after the first two are those of Initial packets in version 1 (RFC 9000
        section 17.2.2).
        """
        if len(data) < SHORT or data[0] & 0xF0 != 0xC0 or data[1:5] != VERSION.to_bytes(4):
            return
        if not 8 <= len(to) <= 20 or any(to in attempt.names for attempt in self._tries):
            return
        if len(self._tries) >= MOST_TRIES:
            idle = next((each for each in self._tries if not each.greeted), None)
            if idle is None:
                return
            self._tries.remove(idle)
        self._new_try(LONG if len(data) >= LONG else SHORT, to)

    def _take(self, data: bytes) -> None:
        if self._chosen is not None:
            self._hand_over(self._chosen, data)
        elif len(data) > 6:
            # RFC 8999 section 5.1: where the destination is in a long header, in any version.
            to = data[6 : 6 + data[5]] if data[0] & 0x80 else None
            if self._server and to is not None:
                self._answer(data, to)
            for attempt in self._tries[:]:
                # A server's connection that has not understood anything yet takes any client's
                # first packet for its own.
                if to is None or to in attempt.names:
                    self._hand_over(attempt, data)
        self._settle_soon()

    def _hand_over(self, attempt: Handshake, data: bytes) -> None:
        try:
            attempt.quic.receive_datagram(data, _ADDRESS, self._loop.time())
        except Exception as error:  # what aioquic did not think of; nobody but the peer can do it
            self._fail(f"what the peer sends cannot be understood: {error!r}")
            return
        if attempt.quic.get_peer_address() is None:  # it was no first packet after all
            self._tries.remove(attempt)

    def _settle(self) -> None:
        self._soon = None
        self._guard(self._settled)

    def _settled(self) -> None:
        """Give up what has come, and send what there is to send."""
        for attempt in self._tries[:]:
            self._shake(attempt)
            if self._chosen is not None or self._state is State.ENDED:
                break
        if self._chosen is not None:
            self._read(self._chosen)
        if self._state is not State.ENDED:
            self._transmit()

    def _shake(self, attempt: Handshake) -> None:
        """Go on with a handshake."""
        if attempt.server:
            attempt.prove()
        early = b""
        while (event := attempt.quic.next_event()) is not None:
            match event:
                case ProtocolNegotiated():
                    attempt.greeted = True
                case HandshakeCompleted():
                    attempt.shaken = event.alpn_protocol == ALPN
                case StreamDataReceived():
                    wrong = "it has opened another stream"
                    more = (
                        attempt.verify(event.data) if event.stream_id == attempt.theirs else wrong
                    )
                    if isinstance(more, str):
                        for each in self._tries:
                            each.quic.close(error_code=1, reason_phrase="unexpected identity")
                        self._transmit()
                        self._fail(f"the peer is not who it has to be: {more}")
                        return
                    early += more
                case ConnectionTerminated():
                    self._tries.remove(attempt)
                    if not self._tries:
                        self._fail(_ending(event, "the QUIC handshake failed"))
                    return
        if attempt.shaken and attempt.proved:
            self._choose(attempt)
            if early:
                self.on_data(early)

    def _choose(self, chosen: Handshake) -> None:
        """Go on with this one alone."""
        chosen.prove()
        for other in self._tries:
            if other is not chosen:
                other.quic.close()
        self._transmit()
        self._tries.clear()
        self._chosen = chosen
        self._opened()

    # Receiving. -----------------------------------------------------------------------------------

    def _read(self, chosen: Handshake) -> None:
        """Give up everything that has come."""
        parts: list[bytes] = []
        failure = ""
        event: QuicEvent | None
        while (event := chosen.quic.next_event()) is not None:
            if type(event) is StreamDataReceived:
                if event.stream_id != chosen.theirs or event.end_stream:
                    failure = "the peer uses its streams otherwise than agreed"
                    break
                parts.append(event.data)
            elif type(event) is DatagramFrameReceived:
                self.on_datagram(event.data)
            elif type(event) is ConnectionTerminated:
                failure = _ending(event, "the QUIC connection ended")
            elif type(event) is PingAcknowledged:
                self._arrived(chosen)
            elif type(event) in (StreamReset, StopSendingReceived):
                failure = "the peer has given up its stream"
        if parts and self._state is State.OPEN:
            self.on_data(parts[0] if len(parts) == 1 else b"".join(parts))
        if failure:
            self._fail(failure)

    # Sending. -------------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """Whether more than :data:`MARK` octets wait to be sent."""
        chosen = self._chosen
        self._told = told = chosen is not None and chosen.unsent > MARK
        return told

    @property
    def most_datagram(self) -> int:
        """Octets of the longest datagram: what fits into one packet."""
        return 0 if self._chosen is None else self._chosen.size - _DATAGRAM_OVERHEAD

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send octets after those before."""
        chosen = self._chosen
        if self._state is State.OPEN and chosen is not None:
            chosen.write(data)
            self._settle_soon()

    def send_datagram(self, data: bytes) -> bool:
        """Send a datagram (RFC 9221) ahead of the stream; false if it is too long, or many wait."""
        chosen = self._chosen
        if self._state is not State.OPEN or chosen is None or len(data) > self.most_datagram:
            return False
        size = len(data) + _DATAGRAM_OVERHEAD
        if self._datagrams + size > MOST_DATAGRAMS:
            return False
        self._datagrams += size
        chosen.quic.send_datagram_frame(data)
        self._settle_soon()
        return True

    def _settle_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_soon(self._settle)

    def _transmit(self) -> None:
        """Send what may be sent now, and see when there will be more to do."""
        if self._connection.congested:  # to a relay that is reached by TCP; it tells when it is not
            self._wake_at(None)
            return
        now = self._loop.time()
        send = self._connection.send_nowait
        chosen = self._chosen
        due: float | None = None
        for attempt in (chosen,) if chosen is not None else self._tries:
            octets = 0
            for data, _ in attempt.quic.datagrams_to_send(now):
                send(data)
                octets += len(data)
            # Datagrams go first, so what was sent has them.
            self._datagrams = max(0, self._datagrams - octets)
            at = attempt.quic.get_timer()
            if at is not None and (due is None or at < due):
                due = at
        self._wake_at(due)
        if self._told and chosen is not None and chosen.unsent <= MARK // 2:
            self._told = False
            self.on_relief()

    def _wake_at(self, due: float | None) -> None:
        timer = self._timer
        if timer is not None:
            # One that comes early does no harm.
            if due is not None and timer.when() <= due:
                return
            timer.cancel()
        self._timer = None if due is None else self._loop.call_at(due, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._guard(self._timed)

    def _timed(self) -> None:
        now = self._loop.time()
        for attempt in (self._chosen,) if self._chosen is not None else self._tries:
            at = attempt.quic.get_timer()
            if at is not None and at <= now:
                attempt.quic.handle_timer(now)
        self._settled()

    def relieved(self) -> None:
        """Go on sending."""
        self._settle_soon()

    def rerouted(self) -> None:
        """Go on at once when there is a pair again.

        QUIC asks ever more seldom while nothing comes back (RFC 9002 section 6.2.1).
        """
        if self._chosen is not None and self._connection.selected_pair is not None:
            self._chosen.quic.send_ping(0)
            self._settle_soon()

    # The end. -------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Wait until all has been sent, and a packet after that has arrived.

        What was lost on the way has been sent again by then.
        """
        self._farewell = self._loop.create_future()
        self._ask()
        await self._farewell

    def _ask(self) -> None:
        assert self._chosen is not None
        self._chosen.quic.send_ping(0)
        self._settle_soon()

    def _arrived(self, chosen: Handshake) -> None:
        farewell = self._farewell
        if farewell is None or farewell.done():
            return
        if chosen.unsent:
            self._ask()
        else:
            farewell.set_result(None)

    def _say_farewell(self) -> None:
        if self._chosen is not None:
            self._chosen.quic.close()
            for data, _ in self._chosen.quic.datagrams_to_send(self._loop.time()):
                self._connection.send_nowait(data)

    def _release(self) -> None:
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        self._soon = self._timer = None
        if self._farewell is not None and not self._farewell.done():
            self._farewell.set_result(None)
        self._tries.clear()
        self._chosen = None


def _ending(event: ConnectionTerminated, what: str) -> str:
    if event.error_code == QuicErrorCode.NO_ERROR and not event.reason_phrase:
        return "the peer has closed the connection"
    reason = event.reason_phrase
    if event.error_code == QuicErrorCode.APPLICATION_ERROR:
        # RFC 9000 section 10.2.3: all that may be said of it before the handshake is done.
        reason = "the peer does not want it"
    return f"{what}: {reason or 'no reason given'} ({event.error_code:#x})"
