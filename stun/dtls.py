"""DTLS 1.2 over a driver's datagrams: sessions of a server's UDP ports, and of clients (RFC 7350).

Theory of operation.  Nothing is kept of a client before it has proved that it can be reached: a
ClientHello without a good cookie is answered with a HelloVerifyRequest, which is shorter, and
forgotten (RFC 6347 section 4.2.1; :mod:`stun.hello`).  With a good one a session begins, keyed by
both addresses.  OpenSSL does the rest over memory BIOs; this module cuts what it says into
datagrams, feeds it what comes, and calls it when its retransmission timer is due.

A new ClientHello for a session that is there begins a new one in its place, but only with a cookie:
RFC 6347 section 4.2.8, a server "MUST NOT destroy the existing association until the client has
demonstrated reachability".

Each record of application data is one :class:`stun.sansio.Arrived`, each
:class:`stun.sansio.Write` one datagram.
"""

from __future__ import annotations

import heapq
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

from OpenSSL import SSL

from stun.datagrams import Core, Datagrams
from stun.hello import Cookies, read_datagram, verify_request
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Entropy,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Security,
    Shut,
    Transmit,
    Undeliverable,
    Write,
)
from stun.sockaddr import (
    cause_of_stream,
    detail_of,
    family_of,
    from_sockaddr,
    is_wildcard,
    to_sockaddr,
)
from stun.tls import (
    DTLS_MTU,
    CertificateProblem,
    ClientTls,
    NoCommonProtocol,
    ServerTls,
    ascii_name,
    name_matches,
)

HANDSHAKE: Final = 10 * SECOND
"""How long a handshake may take: 1, 2 and 4 s until OpenSSL has sent a flight four times."""
HANDSHAKES: Final = 1024
"""Handshakes of clients at once: for one more the oldest gives way."""
SESSIONS: Final = 16384
"""Sessions of clients at once: beyond, new ones are not answered.  Each is 70 KiB of OpenSSL's."""
IDLE: Final = 3900 * SECOND
"""How long a session lives without a word of the client.  It is the last bound, longer than the
longest lifetime of an allocation: a machine that has timers of its own shuts sessions earlier."""
COOKIE_PERIOD: Final = 60 * SECOND
"""How often the secret behind the cookies changes."""

_HEADER = 13
_APPLICATION_DATA = 23
_LARGEST_RECORD = 1 << 14
_OVERHEAD = 128
"""No less than what a record adds to its content with any of the cipher suites in use."""
_SWEEPS = 8
_PRECISION = 5_000_000  # ns
_VERIFY_ERRORS = {
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is self-signed and not trusted",
    19: "its chain ends in a self-signed certificate that is not trusted",
    20: "its issuer is not known here",
    21: "the server did not send the intermediate certificates",
    23: "it has been revoked",
}

_Key: TypeAlias = tuple[Address, Address]


class _Session:
    """One association, of either side."""

    __slots__ = (
        "connection",
        "due",
        "handle",
        "heard",
        "is_open",
        "key",
        "listener",
        "random",
        "server_name",
        "verify_error",
    )

    def __init__(self, key: _Key, handle: Handle, connection: SSL.Connection) -> None:
        self.key = key
        """Our address and the peer's."""
        self.handle = handle
        self.connection = connection
        self.listener: Handle | None = None
        """The UDP socket's handle where we are the server."""
        self.random = b""
        self.is_open = False
        self.heard: Instant = 0
        self.due: Instant | None = None
        self.server_name = ""
        self.verify_error = 0


class Dtls:
    """Every DTLS session of a machine.

    ``datagrams`` carries them; ``server_tls`` is the certificate for the ports in :meth:`serve`;
    ``tls`` is what clients verify servers by, the system's store by default.  ``number`` gives
    handles for sessions that clients begin.
    """

    def __init__(
        self,
        core: Core,
        datagrams: Datagrams,
        *,
        number: Callable[[], Handle],
        server_tls: ServerTls | None = None,
        tls: ssl.SSLContext | ClientTls | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        self._core = core
        self._datagrams = datagrams
        self._number = number
        self._server_tls = server_tls
        self._given_tls = tls
        self._client_tls: ClientTls | None = None
        self._cookies = Cookies(entropy, COOKIE_PERIOD)
        self._sessions: dict[_Key, _Session] = {}
        self._by_handle: dict[Handle, _Session] = {}
        # By when a handshake must be done, the earliest first: all may take equally long.
        self._handshakes: dict[_Session, Instant] = {}
        # OpenSSL's retransmission timers; an entry that is not its session's ``due`` is void.
        self._timers: list[tuple[Instant, int, _Session]] = []
        self._timer_number = 0
        self._sweep: Instant | None = None
        self.counts: Counter[str] = Counter()

    def serve_with(self, server_tls: ServerTls | None) -> None:
        """Use another certificate for sessions from now on."""
        self._server_tls = server_tls

    def __contains__(self, handle: Handle) -> bool:
        return handle in self._by_handle

    # Datagrams. -----------------------------------------------------------------------------------

    def packet(self, packet: Received, handle: Handle) -> None:
        """Take a datagram that came to the UDP socket ``handle``."""
        data = packet.data
        key = (packet.local, packet.source)
        session = self._sessions.get(key)
        if not data or not 20 <= data[0] < 64:
            self.counts["not DTLS, on a port for DTLS only"] += 1
            return
        hello = read_datagram(data)
        if hello is None or (session is not None and session.listener is None):
            if session is not None:
                self._feed(session, data)
            else:
                self.counts["DTLS records that belong to no session"] += 1
            return
        now = self._core.reactor.now()
        if not hello.cookie or not self._cookies.check(hello, packet.source, packet.local, now):
            answer = verify_request(
                data, self._cookies.make(hello, packet.source, packet.local, now)
            )
            if len(answer) <= len(data):
                self.counts["DTLS cookies sent"] += 1
                self._datagrams.send(Transmit(answer, packet.source, packet.local))
            return
        if session is not None:
            if session.random == hello.random:  # the ClientHello that began it, once more
                self._feed(session, data)
                return
            self._end(session, Cause.RESET, "the client began a new DTLS session")
        self._accept(key, handle, data, hello.random, now)

    def _accept(
        self, key: _Key, listener: Handle, data: bytes, random: bytes, now: Instant
    ) -> None:
        if self._server_tls is None:  # taken away since the port was opened
            self.counts["DTLS clients turned away: there is no certificate"] += 1
            return
        try:
            context = self._server_tls.datagrams
        except CertificateProblem as error:
            self.counts[f"DTLS clients turned away: {error.problem}"] += 1
            return
        if len(self._sessions) >= SESSIONS:
            self.counts["DTLS clients turned away: too many sessions"] += 1
            return
        if len(self._handshakes) >= HANDSHAKES:
            oldest = next(iter(self._handshakes))
            self._end(oldest, Cause.OTHER, "gave way to a newer one")
        connection = SSL.Connection(context, None)
        connection.set_accept_state()
        connection.set_ciphertext_mtu(DTLS_MTU)
        connection.bio_write(data)
        try:
            connection.DTLSv1_listen()
        except SSL.Error as error:
            self.counts[f"DTLS handshake failed: {_reason(error) or 'bad ClientHello'}"] += 1
            return
        session = _Session(key, self._number(), connection)
        session.listener, session.random = listener, random
        self._begin(session, now)

    def _begin(self, session: _Session, now: Instant) -> None:
        session.heard = now
        self._sessions[session.key] = session
        self._by_handle[session.handle] = session
        self._handshakes[session] = now + HANDSHAKE
        if self._sweep is None:
            self._sweep = now + IDLE // _SWEEPS
        self._handshake(session)

    def _feed(self, session: _Session, data: bytes) -> None:
        """Give a datagram to OpenSSL and take what comes of it."""
        connection = session.connection
        session.heard = self._core.reactor.now()
        if len(data) > _LARGEST_RECORD + 2048:
            self.counts["DTLS records that are too long"] += 1
            return
        connection.bio_write(data)
        if session.is_open:
            # Mostly a datagram is one record of application data, and to ask for a second one
            # costs an exception.
            one = data[0] == _APPLICATION_DATA and len(data) == _HEADER + (data[11] << 8 | data[12])
            self._read(session, once=one)
            if data[0] != _APPLICATION_DATA:
                self._send_records(session)
        else:
            self._handshake(session)

    def _read(self, session: _Session, *, once: bool = False) -> None:
        connection, tell, handle = session.connection, self._core.tell, session.handle
        try:
            # What the machine does about one piece may shut the session.
            while session.handle in self._by_handle:
                tell(Arrived(handle, connection.recv(_LARGEST_RECORD)))
                if once:
                    break
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self._say_goodbye(session)
            self._end(session, Cause.END_OF_STREAM)
        except SSL.Error as error:
            self._send_records(session)
            self._end(session, Cause.TLS_FAILED, _reason(error))

    # Handshakes. ----------------------------------------------------------------------------------

    def _handshake(self, session: _Session) -> None:
        try:
            session.connection.do_handshake()
        except SSL.WantReadError:
            self._send_records(session)
            self._arm(session)
            return
        except (SSL.Error, NoCommonProtocol) as error:
            self._send_records(session)  # the alert that says why
            self._end(session, Cause.TLS_FAILED, self._why(session, error))
            return
        self._send_records(session)
        if session.server_name and not self._is_for(session):
            self._say_goodbye(session)
            detail = f"the certificate is not for {session.server_name}"
            self._end(session, Cause.TLS_FAILED, detail)
            return
        session.is_open = True
        session.due = None
        del self._handshakes[session]
        local, remote = session.key
        if session.listener is None:
            self._core.tell(Connected(session.handle, local, remote))
        else:
            self._core.tell(Accepted(session.listener, session.handle, local, remote, secure=True))
        self._read(session)

    def _why(self, session: _Session, error: Exception) -> str:
        if session.verify_error:
            code = session.verify_error
            what = _VERIFY_ERRORS.get(code, f"OpenSSL's verification error {code}")
            return f"the server's certificate is refused: {what}"
        return _reason(error) if isinstance(error, SSL.Error) else str(error)

    def _is_for(self, session: _Session) -> bool:
        if not self._client().streams.check_hostname:
            return True
        try:
            certificate = session.connection.get_peer_certificate(as_cryptography=True)
        except ValueError:  # OpenSSL reads what the other library does not
            return False
        return certificate is not None and name_matches(certificate, session.server_name)

    def _send_records(self, session: _Session) -> None:
        """Send what OpenSSL has to say, whole records in datagrams of the MTU at most."""
        local, remote = session.key
        with suppress(SSL.WantReadError):
            while True:
                said = session.connection.bio_read(1 << 16)
                start = at = 0
                while at < len(said):
                    end = at + _HEADER + int.from_bytes(said[at + 11 : at + 13], "big")
                    if end - start > DTLS_MTU and at > start:
                        self._datagrams.send(Transmit(said[start:at], remote, local))
                        start = at
                    at = end
                self._datagrams.send(Transmit(said[start:], remote, local))

    # What the machine asks for. -------------------------------------------------------------------

    def dial(self, order: Dial) -> None:
        """Begin a session with a server."""
        local, name = order.local, order.server_name
        if name is not None and not _is_numeric(name):
            try:
                name = ascii_name(name)
            except ValueError as error:
                self._core.tell(Closed(order.handle, Cause.TLS_FAILED, str(error)))
                return
        if is_wildcard(local.host):
            # The records have to be sent from one address, and Connected has to name it.
            try:
                with socket.socket(family_of(order.remote), socket.SOCK_DGRAM) as probe:
                    probe.connect(to_sockaddr(order.remote))
                    local = Address(from_sockaddr(probe.getsockname()).host, local.port)
            except OSError as error:
                self._core.tell(Closed(order.handle, cause_of_stream(error), detail_of(error)))
                return
        outcome = self._datagrams.open(OpenUdp(order.handle, local, Security.REQUIRED))
        if not isinstance(outcome, Opened):
            self._core.tell(outcome)
            return
        connection = SSL.Connection(self._client().datagrams, None)
        connection.set_verify(connection.get_verify_mode(), _on_verify)
        connection.set_connect_state()
        connection.set_ciphertext_mtu(DTLS_MTU)
        session = _Session((outcome.local, order.remote), order.handle, connection)
        connection.set_app_data(session)
        if name is not None:
            session.server_name = name
            if not _is_numeric(name):
                connection.set_tlsext_host_name(name.encode())
        self._begin(session, self._core.reactor.now())

    def _client(self) -> ClientTls:
        if self._client_tls is None:
            given = self._given_tls
            self._client_tls = ClientTls.of(given) if isinstance(given, ssl.SSLContext) else given
        if self._client_tls is None:
            self._client_tls = ClientTls()
        return self._client_tls

    def write(self, order: Write) -> None:
        """Send a datagram."""
        session = self._by_handle[order.handle]
        if not session.is_open:
            self.counts["not written: the DTLS handshake is not done"] += 1
            return
        try:
            session.connection.send(order.data)
            record = session.connection.bio_read(len(order.data) + _OVERHEAD)
        except SSL.Error as error:
            self.counts[f"not written: DTLS: {_reason(error) or 'no record'}"] += 1
            return
        local, remote = session.key
        self._datagrams.send(Transmit(record, remote, local))

    def shut(self, order: Shut) -> None:
        """End a session with close_notify, or without a word for ``reset``."""
        session = self._by_handle[order.handle]
        if not order.reset:
            self._say_goodbye(session)
        self._forget(session)

    def shut_port(self, handle: Handle) -> None:
        """Forget every session of a UDP socket that is about to be shut, after telling the peer."""
        for session in [s for s in self._by_handle.values() if s.listener == handle]:
            self._say_goodbye(session)
            self._end(session, Cause.OTHER, "the port was closed")

    def undeliverable(self, event: Undeliverable) -> bool:
        """Take an ICMP error, if it is about a session that we began; it ends a handshake only."""
        session = self._sessions.get((event.local, event.destination))
        if session is None or session.listener is not None:
            return False
        if not session.is_open:
            detail = f"ICMP type {event.icmp_type} code {event.icmp_code}"
            self._end(session, Cause.UNREACHABLE, detail)
        return True

    def close(self) -> None:
        """End every session with close_notify."""
        for session in [*self._by_handle.values()]:
            if session.is_open:
                self._say_goodbye(session)
            self._forget(session)

    # Endings. -------------------------------------------------------------------------------------

    def _say_goodbye(self, session: _Session) -> None:
        with suppress(SSL.Error):
            session.connection.shutdown()
        self._send_records(session)

    def _end(self, session: _Session, cause: Cause, detail: str = "") -> None:
        """Forget a session, and tell the machine if it knows of it."""
        if self._by_handle.get(session.handle) is not session:
            return
        self._forget(session)
        if session.is_open or session.listener is None:
            self._core.tell(Closed(session.handle, cause, detail))
        else:
            self.counts[f"DTLS handshake failed: {detail or cause.value}"] += 1

    def _forget(self, session: _Session) -> None:
        session.due = None
        self._handshakes.pop(session, None)
        del self._by_handle[session.handle]
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        if session.listener is None:
            self._datagrams.flush()
            self._datagrams.shut(session.handle)

    # Time. ----------------------------------------------------------------------------------------

    def _arm(self, session: _Session) -> None:
        left = session.connection.DTLSv1_get_timeout()
        if left is None:
            session.due = None
            return
        due = self._core.reactor.now() + int(left * SECOND)
        if session.due is not None and abs(due - session.due) < _PRECISION:
            return  # the same timer: nobody fills the heap by sending what moves nothing
        session.due = due
        self._timer_number += 1
        heapq.heappush(self._timers, (due, self._timer_number, session))

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_time` is to be called, or ``None``."""
        timers = self._timers
        while timers and timers[0][2].due != timers[0][0]:
            heapq.heappop(timers)
        at = self._sweep
        if timers and (at is None or timers[0][0] < at):
            at = timers[0][0]
        if self._handshakes:
            first = next(iter(self._handshakes.values()))
            at = first if at is None or first < at else at
        return at

    def on_time(self, now: Instant) -> None:
        """Send again, give up handshakes that take too long and sessions that are silent."""
        for session, at in [*self._handshakes.items()]:
            if at > now:
                break
            self._end(session, Cause.TIMED_OUT, "the DTLS handshake took too long")
        timers = self._timers
        while timers and timers[0][0] <= now:
            at, _, session = heapq.heappop(timers)
            if session.due == at:
                self._send_again(session)
        if self._sweep is not None and self._sweep <= now:
            for session in [*self._by_handle.values()]:
                if session.listener is not None and session.heard + IDLE <= now:
                    self._say_goodbye(session)
                    self._end(session, Cause.TIMED_OUT, "no word of the client")
            self._sweep = now + IDLE // _SWEEPS if self._by_handle else None

    def _send_again(self, session: _Session) -> None:
        try:
            session.connection.DTLSv1_handle_timeout()
        except SSL.Error as error:
            self._end(session, Cause.TIMED_OUT, _reason(error))
            return
        self._send_records(session)
        self._arm(session)


def _on_verify(connection: SSL.Connection, _: object, code: int, __: int, ok: int) -> bool:
    if not ok:
        session = connection.get_app_data()
        session.verify_error = session.verify_error or code
    return bool(ok)


def _is_numeric(name: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, name.partition("%")[0])
            return True
    return False


def _reason(error: SSL.Error) -> str:
    """Return OpenSSL's own words for an error."""
    queue = error.args[0] if error.args else None
    if isinstance(queue, list) and queue and isinstance(queue[-1], tuple):
        return str(queue[-1][-1])
    return " ".join(str(part) for part in error.args)
