"""TLS 1.3 over the packets of an ICE connection that runs over TCP: the carrier of a direct stream.

Theory of operation.  ICE over TCP gives packets in order and loses none, so a TLS stream fits in
them, cut anywhere but for one thing: an agent tells data from checks by a packet's first octet
(RFC 7983 section 7), so none begins with what a STUN message may begin with.  What is sent in one
go shares packets, and they leave in one write.

OpenSSL encrypts and decrypts in memory; there is no task.  What arrives in one wake-up of the event
loop is decrypted and given up once, at the end of it.  Where the connection takes no more,
records wait here, and :attr:`TlsCarrier.congested` says so.  What is sent from within a callback of
the connection waits until that has returned, for only then can be seen whether it is taken; and in
one go no more is sent than :data:`BURST`, so that others get their turn.

Who the peer is, says the pinned fingerprint and nothing else.  Both sides send a certificate
(RFC 8446 section 4.3.2) and prove to have its key; OpenSSL asks for an opinion on each certificate,
where no authority and no date has a say, and the one that the handshake ended with is looked at
once more before any octet is given or taken.

An agent may go over to another pair as long as both sides have not agreed on one.  What is under
way on one TCP connection and on another arrives in any order, which TLS does not bear.  So the
client, who speaks first, waits until there is a nominated pair.  If the pair changes after that,
the first record that does not fit ends the carrier.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from OpenSSL import SSL, crypto

from ice.connection import Connection
from ice.link.carrying import ALPN, Carrying, State
from ice.link.certificate import Identity, fingerprint_of

MOST_PACKET: Final = 0xFFFF
"""Octets of the longest packet: the length in front of it has 16 bits (RFC 4571 section 2)."""
RECORD: Final = 1 << 14
"""Octets that a record holds at most (RFC 8446 section 5.1)."""
_OVERHEAD: Final = 5 + 1 + 16
"""What a record adds: header, content type and the tag of the AEAD."""
_STUN: Final = 4
"""First octets below this are of STUN (RFC 7983 section 7)."""
ENOUGH: Final = 1 << 18
"""Octets that do not wait for more of the same go."""
BURST: Final = 1 << 19
"""Octets that are sent in one go.  A driver that is just at work carries orders out afterwards, and
only then can be seen that the connection takes no more; it gives up at twice as much."""
UNDECIDED: Final = 2.0
"""Seconds that the client waits for a nominated pair before it goes ahead without."""
_PARTIAL_WRITE: Final = 1
"""SSL_MODE_ENABLE_PARTIAL_WRITE of <openssl/ssl.h>, which pyOpenSSL sets and has no name for."""
_REFUSALS: Final = ("tlsv1 alert unknown ca", "ssl/tls alert bad certificate")
"""What a peer's OpenSSL says to a certificate that was not agreed on."""


class TlsCarrier(Carrying):
    """A :class:`ice.link.carrier.Carrier` over a connection whose pair is of TCP.

    It has no datagrams.
    """

    most_datagram = 0

    def __init__(
        self,
        connection: Connection,
        identity: Identity,
        peer_fingerprint: bytes,
        *,
        server: bool,
    ) -> None:
        super().__init__(connection, identity, peer_fingerprint, server=server)
        self._tls: SSL.Connection | None = None
        self._made = 0
        """Octets of records that OpenSSL keeps, at least."""
        self._waiting: deque[memoryview] = deque()
        """Packets that could not be sent yet."""
        self._gone = 0
        """Octets sent in this go."""
        self._told = False
        """Whether :attr:`congested` was true when it was last looked at."""
        self._inside = False
        """Whether the connection is just calling."""
        self._reading: asyncio.Handle | None = None
        """What will give up the octets that have come."""
        self._soon: asyncio.Handle | None = None
        self._undecided: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._stranger = False
        """Whether the peer has shown a certificate that is not the pinned one."""

    # The handshake. -------------------------------------------------------------------------------

    def _begin(self) -> None:
        context = _context(self._identity, server=self._server)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._on_certificate)
        self._tls = tls = SSL.Connection(context, None)
        if self._server:
            tls.set_accept_state()
            return
        tls.set_connect_state()
        if self._connection.agreed:
            self._shake(tls)
        else:
            self._undecided = self._loop.call_later(UNDECIDED, self._go_ahead)

    def _go_ahead(self) -> None:
        """Say hello, to whatever pair there is."""
        if self._undecided is not None:
            self._undecided.cancel()
            self._undecided = None
            if self._tls is not None:
                self._guard(self._shake, self._tls)

    def _on_certificate(
        self, _: SSL.Connection, certificate: crypto.X509, __: int, depth: int, ___: int
    ) -> bool:
        """Say what is thought of a certificate; its issuers, if it has any, do not matter."""
        if depth == 0:
            self._stranger = not self._is_pinned(certificate)
            return not self._stranger
        return True

    def _is_pinned(self, certificate: crypto.X509 | None) -> bool:
        if certificate is None:
            return False
        return (
            fingerprint_of(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)) == self._peer
        )

    def _shake(self, tls: SSL.Connection) -> bool:
        """Go on with the handshake; whether it is done."""
        try:
            tls.do_handshake()
        except SSL.WantReadError:
            self._send_records(tls)
            return False
        except SSL.Error as error:
            self._last_words(tls)
            if self._stranger:
                self._fail("the peer's certificate is not the one that was agreed on")
            else:
                self._fail(f"the TLS handshake failed: {_reason(error)}")
            return False
        self._send_records(tls)
        if not self._is_pinned(tls.get_peer_certificate()):
            self._fail("the peer's certificate is not the one that was agreed on")
            return False
        if tls.get_alpn_proto_negotiated() != ALPN.encode():
            self._say_farewell()
            self._fail("the peer speaks TLS for something else")
            return False
        self._opened()
        return True

    # Receiving. -----------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        tls = self._tls
        if tls is None or not data:
            return
        self._inside = True
        try:
            tls.bio_write(data)
            if self._state is State.OPEN:
                if self._reading is None:
                    self._reading = self._loop.call_soon(self._guard, self._read_all)
            elif self._shake(tls):
                self._read(tls)
        finally:
            self._inside = False

    def _read_all(self) -> None:
        """Give up what came in this wake-up of the event loop."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
            if self._tls is not None:
                self._read(self._tls)

    def _read(self, tls: SSL.Connection) -> None:
        """Give up all that can be decrypted."""
        parts: list[bytes] = []
        failure = ""
        receive = tls.recv
        try:
            while True:
                parts.append(receive(RECORD))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            failure = "the peer has closed the connection"
        except SSL.Error as error:
            self._last_words(tls)
            failure = f"TLS failed: {_reason(error)}"
        if parts:
            self.on_data(parts[0] if len(parts) == 1 else b"".join(parts))
        if failure:
            self._fail(failure)

    # Sending. -------------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """Whether packets wait, or the connection takes no more."""
        self._told = told = bool(self._waiting) or self._connection.congested
        return told

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt octets; they leave at the end of this go, or at once if they are many."""
        tls = self._tls
        if self._state is not State.OPEN or tls is None:
            return
        at, size = 0, len(data)
        try:
            while at < size:  # once, but for an old pyOpenSSL
                octets = tls.send(memoryview(data)[at:] if at else data)
                self._made += octets + -(-octets // RECORD) * _OVERHEAD
                at += octets
        except SSL.Error as error:
            self._fail(f"TLS failed: {_reason(error)}")
            return
        if self._made >= ENOUGH:
            self._send_records(tls)
        elif self._made:
            self._flush_soon()

    def _send_records(self, tls: SSL.Connection) -> None:
        """Send all that OpenSSL has made."""
        most = max(self._made, RECORD) + 1  # to ask for what is not there costs an exception
        self._made = 0
        made = b""
        try:
            while True:
                part = tls.bio_read(most)
                made = made + part if made else part
                if len(part) < most:
                    break
        except SSL.WantReadError:
            pass
        if made:
            self._go(_packets(made), len(made))

    def _go(self, packets: Sequence[memoryview], octets: int) -> None:
        """Send packets, or keep them if they cannot go now."""
        if self._inside or self._waiting or self._connection.congested or self._gone > BURST:
            self._waiting.extend(packets)
            self._flush_soon()
        else:
            self._gone += octets
            self._connection.send_all(packets)

    def send_datagram(self, data: bytes) -> bool:  # noqa: ARG002 - what the protocol asks for
        """Say no: a datagram that waits behind a stream is none."""
        return False

    def _flush_soon(self) -> None:
        if self._soon is None and self._state is not State.ENDED:
            self._soon = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what waits, as far as the connection takes it."""
        self._soon = None
        self._gone = 0
        if self._made and self._tls is not None:
            self._send_records(self._tls)
        connection, waiting = self._connection, self._waiting
        while waiting and not connection.congested and self._gone <= BURST:
            packets = []
            while waiting and self._gone <= BURST:
                packets.append(waiting.popleft())
                self._gone += len(packets[-1])
            connection.send_all(packets)
        if connection.congested:
            return
        if waiting:
            self._flush_soon()
            return
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._told and self._state is State.OPEN:
            self._told = False
            self.on_relief()

    def relieved(self) -> None:
        """Go on sending."""
        self._flush_soon()

    def rerouted(self) -> None:
        """Begin, when the agents have agreed; end, when the TCP connection has."""
        if self._connection.selected_pair is None:
            self._fail("the TCP connection to the peer has ended")
        elif self._connection.agreed:
            self._go_ahead()
            self._flush_soon()

    # The end. -------------------------------------------------------------------------------------

    def _fail(self, why: str) -> None:
        if self._state is State.OPEN:
            self._guard(self._read_all)  # it came before the end did
        super()._fail(why)

    async def _drain(self) -> None:
        while (self._waiting or self._made) and self._state is State.OPEN:
            self._drained = self._loop.create_future()
            await self._drained

    def _last_words(self, tls: SSL.Connection) -> None:
        """Send the alert that says what was wrong, if it can go now."""
        self._send_records(tls)
        while self._waiting and not self._connection.congested:
            self._connection.send_all((self._waiting.popleft(),))

    def _say_farewell(self) -> None:
        tls = self._tls
        assert tls is not None
        try:
            tls.shutdown()  # close_notify, RFC 8446 section 6.1
        except SSL.Error:
            return
        self._last_words(tls)

    def _release(self) -> None:
        for handle in (self._soon, self._undecided, self._reading):
            if handle is not None:
                handle.cancel()
        self._soon = self._undecided = self._reading = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._waiting.clear()
        self._tls = None


def _context(identity: Identity, *, server: bool) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.use_certificate(identity.certificate)
    context.use_privatekey(identity.key)
    # One call makes all the records of a packet; before pyOpenSSL 25.1 it makes one.
    if hasattr(context, "clear_mode"):
        context.clear_mode(_PARTIAL_WRITE)
    # Nothing is ever resumed: each connection proves both identities.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if server:
        context.set_alpn_select_callback(_select)
    else:
        context.set_alpn_protos([ALPN.encode()])
    return context


def _packets(records: bytes) -> list[memoryview]:
    """Cut records into packets that do not look like STUN; the first one begins with a record."""
    view, size = memoryview(records), len(records)
    packets: list[memoryview] = []
    at = 0
    while size - at > MOST_PACKET:
        end = at + MOST_PACKET
        while records[end] < _STUN:  # at the latest, it is back where this packet begins
            end -= 1
        packets.append(view[at:end])
        at = end
    packets.append(view[at:])
    return packets


def _select(_: SSL.Connection, offered: list[bytes]) -> bytes:
    # With nothing selected the handshake goes on, and both sides see that afterwards.
    return ALPN.encode() if ALPN.encode() in offered else b""


def _reason(error: SSL.Error) -> str:
    """Return OpenSSL's words, or what they mean here."""
    errors = error.args[0] if error.args and isinstance(error.args[0], list) else ()
    words = str(errors[0][-1]) if errors else ""
    if words in _REFUSALS:
        return f"the peer does not take this side's certificate for the right one ({words})"
    return words or "OpenSSL does not say why"
