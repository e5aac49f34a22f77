"""DTLS sessions on a wire that a test holds in its hands, then under both drivers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import pytest
from OpenSSL import SSL

from stun import dtls, tls
from stun.datagrams import UdpDatagrams, is_encrypted
from stun.dtls import Dtls
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Security,
    Shut,
    SocketEvent,
    Transmit,
    Undeliverable,
    Write,
)
from stun.tls import DTLS_MTU, ClientTls, ServerTls
from tools.certificate import issue, write_self_signed
from tools.driving import Recorder, Runner, Told

SERVER = Address("198.51.100.1", 5349)
CLIENT = Address("192.0.2.1", 40000)
ANY = Address("127.0.0.1", 0)
NAME = "stun.example"


class End:
    """One end: a :class:`Dtls` whose datagrams stay in ``sent`` until a test moves them."""

    def __init__(self, address: Address, rng: Random, **options: Any) -> None:
        self.address = address
        self.time: Instant = 0
        self.told: list[SocketEvent] = []
        self.sent: deque[Transmit] = deque()
        self.bound: set[Handle] = set()
        self.react: Callable[[SocketEvent], None] = lambda _: None
        self.accepted = 0
        self.machine: Any = None
        self.reactor: Any = self
        self.dtls = Dtls(self, self, number=self.number, entropy=rng.randbytes, **options)

    # As a Core and its reactor.

    def now(self) -> Instant:
        return self.time

    def pump(self) -> None: ...

    def settle(self) -> None: ...

    def encrypted(self, packet: Received, handle: Handle) -> None: ...

    def tell(self, event: SocketEvent) -> None:
        self.told.append(event)
        self.react(event)

    def number(self) -> Handle:
        self.accepted -= 1
        return self.accepted

    # As a Datagrams.

    def open(self, order: OpenUdp) -> Opened | Closed:
        self.bound.add(order.handle)
        return Opened(order.handle, self.address)

    def shut(self, handle: Handle) -> bool:
        self.bound.discard(handle)
        return True

    def send(self, transmit: Transmit) -> None:
        assert transmit.source == self.address
        self.sent.append(transmit)

    def flush(self) -> None: ...

    def counters(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None: ...

    # For tests.

    def take(self, transmit: Transmit, source: Address | None = None) -> None:
        self.dtls.packet(Received(transmit.data, source or transmit.source, self.address), 1)

    def one(self, kind: type) -> Any:
        (event,) = [event for event in self.told if type(event) is kind]
        return event

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.told]


class Wire:
    """A server, a client, and what is between them."""

    def __init__(self, certificate: Path, rng: Random) -> None:
        self.server = End(SERVER, rng, server_tls=ServerTls(certificate))
        self.client = End(CLIENT, rng, tls=ClientTls(certificate))

    def move(self, lose: Callable[[Transmit], bool] = lambda _: False) -> None:
        """Carry datagrams until there are none."""
        ends = {SERVER: self.server, CLIENT: self.client}
        while any(end.sent for end in ends.values()):
            for end in ends.values():
                while end.sent:
                    transmit = end.sent.popleft()
                    if not lose(transmit):
                        ends[transmit.destination].take(transmit)

    def dial(self, name: str | None = NAME) -> None:
        self.client.dtls.dial(Dial(1, CLIENT, SERVER, name, datagrams=True))

    def open(self) -> Wire:
        self.dial()
        self.move()
        assert self.client.kinds() == ["Connected"]
        assert self.server.kinds() == ["Accepted"]
        return self


@pytest.fixture
def wire(certificate: Path, rng: Random) -> Iterator[Wire]:
    wire = Wire(certificate, rng)
    yield wire
    wire.client.dtls.close()
    wire.server.dtls.close()


# Sessions. ----------------------------------------------------------------------------------------


def test_a_session(wire: Wire) -> None:
    wire.open()
    assert wire.client.one(Connected) == Connected(1, CLIENT, SERVER)
    assert wire.server.one(Accepted) == Accepted(1, -1, SERVER, CLIENT, secure=True)
    wire.client.dtls.write(Write(1, b"one"))
    wire.client.dtls.write(Write(1, b"two"))
    assert len(wire.client.sent) == 2, "one datagram each"
    wire.move()
    wire.server.dtls.write(Write(-1, b"three"))
    wire.move()
    assert wire.server.told[1:] == [Arrived(-1, b"one"), Arrived(-1, b"two")]
    assert wire.client.told[1:] == [Arrived(1, b"three")]


def test_two_records_in_one_datagram(wire: Wire) -> None:
    wire.open()
    for data in (b"one", b"two"):
        wire.client.dtls.write(Write(1, data))
    both = b"".join(transmit.data for transmit in wire.client.sent)
    wire.client.sent.clear()
    wire.server.take(Transmit(both, SERVER, CLIENT))
    assert wire.server.told[1:] == [Arrived(-1, b"one"), Arrived(-1, b"two")]


@pytest.mark.parametrize("reset", [False, True])
def test_either_side_may_end_it(wire: Wire, reset: bool) -> None:
    wire.open()
    wire.client.dtls.shut(Shut(1, reset))
    assert not wire.client.bound
    assert 1 not in wire.client.dtls
    if reset:
        assert not wire.client.sent
        return
    wire.move()
    assert wire.server.one(Closed) == Closed(-1, Cause.END_OF_STREAM)
    assert -1 not in wire.server.dtls


def test_the_server_says_goodbye_too(wire: Wire) -> None:
    wire.open()
    wire.server.dtls.shut(Shut(-1))
    wire.move()
    assert wire.client.one(Closed) == Closed(1, Cause.END_OF_STREAM)
    assert not wire.client.bound


def test_shutting_the_port_ends_its_sessions(wire: Wire) -> None:
    wire.open()
    wire.server.dtls.shut_port(2)
    assert wire.server.kinds() == ["Accepted"], "the session is another port's"
    wire.server.dtls.shut_port(1)
    wire.move()
    assert wire.server.one(Closed).cause is Cause.OTHER
    assert wire.client.one(Closed).cause is Cause.END_OF_STREAM


def test_a_machine_may_shut_a_session_when_something_arrives(wire: Wire) -> None:
    wire.open()

    def react(event: SocketEvent) -> None:
        if isinstance(event, Arrived):
            wire.server.dtls.shut(Shut(event.handle))

    wire.server.react = react
    for data in (b"one", b"two"):
        wire.client.dtls.write(Write(1, data))
    both = b"".join(transmit.data for transmit in wire.client.sent)
    wire.client.sent.clear()
    wire.server.take(Transmit(both, SERVER, CLIENT))
    assert wire.server.told[1:] == [Arrived(-1, b"one")]


def test_records_are_at_most_the_mtu_while_shaking_hands(tmp_path: Path, rng: Random) -> None:
    # A certificate that does not fit one datagram.
    names = [f"host{n}.{'long-' * 10}name.example" for n in range(60)]
    issued = issue([NAME, *names])
    path = tmp_path / "long.pem"
    path.write_bytes(issued.certificate_pem() + issued.key_pem())
    wire = Wire(path, rng)
    sizes: list[int] = []

    def note(transmit: Transmit) -> bool:
        sizes.append(len(transmit.data))
        return False

    wire.dial()
    wire.move(note)
    assert wire.client.kinds() == ["Connected"]
    assert max(sizes) <= DTLS_MTU
    assert sum(size > DTLS_MTU - 200 for size in sizes) >= 3, "datagrams are filled"


def test_what_is_written_too_early_or_too_long_is_counted(wire: Wire) -> None:
    wire.dial()
    wire.client.sent.clear()
    wire.client.dtls.write(Write(1, b"early"))
    assert not wire.client.sent
    assert wire.client.dtls.counts["not written: the DTLS handshake is not done"] == 1
    wire.client.dtls.shut(Shut(1))
    wire.client.dtls.counts.clear()
    wire.client.sent.clear()
    wire.open()
    wire.client.dtls.write(Write(1, bytes(16_385)))
    assert not wire.client.sent
    assert sum(wire.client.dtls.counts.values()) == 1
    wire.client.dtls.write(Write(1, bytes(16_384)))
    wire.move()
    assert wire.server.one(Arrived).data == bytes(16_384)


# Before there is a session. -----------------------------------------------------------------------


def test_no_state_and_no_gain_before_the_cookie(wire: Wire) -> None:
    wire.dial()
    (hello,) = wire.client.sent
    wire.client.sent.clear()
    for port in range(1000):
        wire.server.take(hello, Address("203.0.113.9", port))
    assert len(wire.server.sent) == 1000
    assert all(len(transmit.data) < len(hello.data) for transmit in wire.server.sent)
    assert not wire.server.dtls._sessions
    assert wire.server.dtls.deadline() is None
    assert not wire.server.told


def test_a_cookie_of_somebody_else_is_answered_with_another(wire: Wire) -> None:
    wire.dial()
    wire.server.take(wire.client.sent.popleft())
    wire.client.take(wire.server.sent.popleft())
    with_cookie = wire.client.sent.popleft()
    wire.server.take(with_cookie, Address("203.0.113.9", 1))
    assert not wire.server.dtls._sessions
    (answer,) = wire.server.sent
    assert len(answer.data) < len(with_cookie.data)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", "not DTLS"),
        (b"\x00\x01\x00\x00", "not DTLS"),
        (b"\x40\x00\x00\x00", "not DTLS"),
        (b"\x17\xfe\xfd" + bytes(10), "no session"),
        (b"\x16\xfe\xff" + bytes(60), "no session"),
        (b"\x15\xfe\xfd" + bytes(10), "no session"),
    ],
)
def test_what_belongs_to_no_session_is_counted(wire: Wire, data: bytes, count: str) -> None:
    wire.server.take(Transmit(data, SERVER, CLIENT))
    assert not wire.server.sent
    assert [count in name for name in wire.server.dtls.counts] == [True]


def test_noise_ends_nothing(wire: Wire, rng: Random) -> None:
    wire.open()
    for _ in range(300):
        data = bytes([rng.randrange(20, 64)]) + rng.randbytes(rng.randrange(100))
        wire.server.take(Transmit(data, SERVER, CLIENT))
        header = bytes([rng.choice([20, 21, 22, 23])]) + b"\xfe\xfd" + rng.randbytes(8)
        body = rng.randbytes(rng.randrange(60))
        forged = header + len(body).to_bytes(2, "big") + body
        wire.server.take(Transmit(forged, SERVER, CLIENT))
    wire.server.take(Transmit(b"\x17" + bytes(60_000), SERVER, CLIENT))
    wire.client.dtls.write(Write(1, b"still there"))
    wire.server.take(wire.client.sent.popleft())
    assert wire.server.told[1:] == [Arrived(-1, b"still there")]


def test_a_damaged_handshake_raises_nothing(wire: Wire, rng: Random) -> None:
    def damage(transmit: Transmit) -> bool:
        data = bytearray(transmit.data)
        if rng.random() < 0.5:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            transmit.data = bytes(data)
        return False

    for _ in range(50):
        wire.dial()
        wire.move(damage)
        if 1 in wire.client.dtls:
            wire.client.dtls.shut(Shut(1))
        wire.move(damage)


# Old and new sessions. ----------------------------------------------------------------------------


def test_a_client_that_begins_anew_replaces_its_session(wire: Wire) -> None:
    wire.open()
    wire.client.dtls.shut(Shut(1, reset=True))
    wire.client.told.clear()
    wire.dial()
    wire.server.take(wire.client.sent.popleft())
    assert -1 in wire.server.dtls, "a ClientHello without a cookie proves nothing"
    wire.move()
    assert wire.client.kinds() == ["Connected"]
    assert wire.server.kinds() == ["Accepted", "Closed", "Accepted"]
    assert wire.server.one(Closed).handle == -1
    assert wire.server.told[-1] == Accepted(1, -2, SERVER, CLIENT, secure=True)
    wire.client.dtls.write(Write(1, b"on the new one"))
    wire.move()
    assert wire.server.told[-1] == Arrived(-2, b"on the new one")


def test_a_late_copy_of_the_client_hello_changes_nothing(wire: Wire) -> None:
    hellos: list[Transmit] = []

    def note(transmit: Transmit) -> bool:
        if transmit.data[0] == 22 and transmit.data[13] == 1:
            hellos.append(transmit)
        return False

    wire.dial()
    wire.move(note)
    assert len(hellos) == 2
    for hello in hellos:
        wire.server.take(hello)
    wire.server.sent.clear()
    wire.client.dtls.write(Write(1, b"x"))
    wire.move()
    assert wire.server.kinds() == ["Accepted", "Arrived"]


# Limits. ------------------------------------------------------------------------------------------


def half_open(wire: Wire, port: int) -> None:
    """Let a client prove that it can be reached, then say no more."""
    source = Address("203.0.113.9", port)
    client = End(source, Random(port), tls=ClientTls(verify=False))
    client.dtls.dial(Dial(1, source, SERVER, None, datagrams=True))
    wire.server.take(client.sent.popleft())
    client.take(wire.server.sent.popleft())
    wire.server.take(client.sent.popleft())
    wire.server.sent.clear()
    client.dtls.close()


def test_handshakes_are_bounded_in_number_and_time(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtls, "HANDSHAKES", 3)
    for port in range(5):
        half_open(wire, port)
    assert len(wire.server.dtls._sessions) == 3
    assert wire.server.dtls.counts["DTLS handshake failed: gave way to a newer one"] == 2
    at = wire.server.dtls.deadline()
    assert at is not None
    assert at <= dtls.HANDSHAKE
    wire.server.time = dtls.HANDSHAKE
    wire.server.dtls.on_time(wire.server.time)
    assert not wire.server.dtls._sessions
    assert wire.server.dtls.counts["DTLS handshake failed: the DTLS handshake took too long"] == 3
    assert not wire.server.told, "the machine never knew of them"


def test_sessions_are_bounded_in_number(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.open()
    monkeypatch.setattr(dtls, "SESSIONS", 1)
    half_open(wire, 1)
    assert len(wire.server.dtls._sessions) == 1
    assert wire.server.dtls.counts["DTLS clients turned away: too many sessions"] == 1


def test_a_client_that_is_never_heard_again_is_forgotten(wire: Wire) -> None:
    wire.open()
    now = 0
    while 1:
        at = wire.server.dtls.deadline()
        if at is None:
            break
        assert at > now or at == 0
        now = wire.server.time = at
        wire.server.dtls.on_time(now)
        if now == dtls.IDLE // 8 * 4:
            wire.client.dtls.write(Write(1, b"alive"))
            wire.server.take(wire.client.sent.popleft())
    assert wire.server.one(Closed) == Closed(-1, Cause.TIMED_OUT, "no word of the client")
    assert now >= dtls.IDLE // 8 * 4 + dtls.IDLE


def test_nobody_answers(wire: Wire) -> None:
    wire.dial()
    wire.client.sent.clear()
    at = wire.client.dtls.deadline()
    assert at is not None
    assert 0 < at <= SECOND, "OpenSSL's retransmission timer, RFC 6347 section 4.2.4.1"
    wire.client.time = dtls.HANDSHAKE
    wire.client.dtls.on_time(wire.client.time)
    assert wire.client.one(Closed).cause is Cause.TIMED_OUT
    assert not wire.client.bound


@pytest.mark.parametrize("opened", [False, True])
def test_icmp_ends_a_handshake_only(wire: Wire, opened: bool) -> None:
    event = Undeliverable(CLIENT, SERVER, 3, 3)
    if opened:
        wire.open()
        assert wire.client.dtls.undeliverable(event), "and nobody else's business"
        assert wire.client.kinds() == ["Connected"]
        assert not wire.server.dtls.undeliverable(Undeliverable(SERVER, CLIENT, 3, 3))
    else:
        wire.dial()
        assert wire.client.dtls.undeliverable(event)
        assert wire.client.one(Closed).cause is Cause.UNREACHABLE
    assert not wire.client.dtls.undeliverable(Undeliverable(CLIENT, CLIENT, 3, 3))


# Certificates. ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        (NAME, ""),
        ("127.0.0.1", ""),
        (None, ""),
        ("other.example", "the certificate is not for other.example"),
        ("127.0.0.2", "the certificate is not for 127.0.0.2"),
    ],
)
def test_the_name_is_verified(wire: Wire, name: str | None, detail: str) -> None:
    wire.dial(name)
    wire.move()
    if not detail:
        assert wire.client.kinds() == ["Connected"]
    else:
        assert wire.client.one(Closed) == Closed(1, Cause.TLS_FAILED, detail)


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64, "a\0b", "\ud800", ".example"])
def test_a_name_that_is_none_is_not_dialled(wire: Wire, name: str) -> None:
    # It may be what a server said (ALTERNATE-DOMAIN).
    wire.dial(name)
    closed = wire.client.one(Closed)
    assert closed == Closed(1, Cause.TLS_FAILED, f"{name!r} is not the name of a server")
    assert not wire.client.bound
    assert not wire.client.sent


def test_a_name_beyond_ascii_is_verified_as_certificates_have_it(
    tmp_path: Path, rng: Random
) -> None:
    wire = Wire(write_self_signed(tmp_path / "idn.pem", "xn--bcher-kva.example"), rng)
    wire.dial("b\u00fccher.example.")
    wire.move()
    assert wire.client.kinds() == ["Connected"]


def test_a_certificate_that_only_one_library_takes(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, refusal = tls._dtls_context, SSL.Error([("", "", "ee key too small")])
    kept = ServerTls(write_self_signed(tmp_path / "kept.pem", NAME))
    assert kept.datagrams
    monkeypatch.setattr(tls, "_dtls_context", Mock(side_effect=refusal))
    refused = ServerTls(write_self_signed(tmp_path / "refused.pem", NAME))
    wire.server.dtls.serve_with(refused)
    wire.dial()
    wire.move()
    assert not wire.client.told
    (count,) = [name for name in wire.server.dtls.counts if "turned away" in name]
    assert "ee key too small" in count
    # A server whose sessions have a certificate does not change to one that they cannot have.
    before = kept.streams, kept.datagrams
    write_self_signed(kept.certificate, NAME)
    with pytest.raises(tls.CertificateProblem, match="ee key too small"):
        kept.reload()
    assert (kept.streams, kept.datagrams) == before
    monkeypatch.setattr(tls, "_dtls_context", made)
    assert kept.reload()


def test_a_port_that_cannot_serve_dtls_is_not_opened(
    run: Runner, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = Mock(side_effect=SSL.Error([("", "", "ee key too small")]))
    monkeypatch.setattr(tls, "_dtls_context", refusal)
    machine = Recorder().order(OpenUdp(1, ANY, Security.DETECT))
    run(machine, lambda: machine.all(Closed), server_tls=ServerTls(certificate))
    assert machine.one(Closed).cause is Cause.TLS_FAILED
    assert "ee key too small" in machine.one(Closed).detail


def test_junk_during_a_handshake_does_not_pile_up(wire: Wire) -> None:
    wire.dial()
    wire.move(lambda transmit: transmit.source == SERVER and len(transmit.data) > 60)
    for _ in range(500):
        wire.server.dtls.packet(Received(b"\x16" + bytes(60), CLIENT, SERVER), 1)
    # OpenSSL's timer goes by a clock of its own, so that it does not seem to stand still here.
    assert 1 <= len(wire.server.dtls._timers) < 50


def test_a_certificate_that_is_not_trusted(wire: Wire, tmp_path: Path, rng: Random) -> None:
    other = write_self_signed(tmp_path / "other.pem", NAME)
    wire.client = End(CLIENT, rng, tls=ClientTls(other))
    wire.dial()
    wire.move()
    closed = wire.client.one(Closed)
    assert closed.cause is Cause.TLS_FAILED
    assert "refused: it is self-signed and not trusted" in closed.detail
    assert [name for name in wire.server.dtls.counts if "unknown ca" in name]
    assert not wire.server.dtls._sessions


def test_another_protocol_than_ours(wire: Wire, certificate: Path, rng: Random) -> None:
    wire.client = End(CLIENT, rng, tls=ClientTls(certificate, protocols=("h2",)))
    wire.dial()
    wire.move()
    assert "no application protocol" in wire.client.one(Closed).detail
    assert not wire.server.told


def test_another_certificate_is_for_new_sessions(wire: Wire, tmp_path: Path, rng: Random) -> None:
    wire.open()
    other = write_self_signed(tmp_path / "other.pem", NAME)
    wire.server.dtls.serve_with(ServerTls(other))
    wire.client.dtls.write(Write(1, b"on the old one"))
    wire.move()
    assert wire.server.told[-1] == Arrived(-1, b"on the old one")
    wire.client = End(CLIENT, rng, tls=ClientTls(other))
    wire.dial()
    wire.move()
    assert wire.client.kinds() == ["Connected"]


def test_without_a_certificate_nobody_gets_in(wire: Wire) -> None:
    wire.server.dtls.serve_with(None)
    wire.dial()
    wire.move()
    assert not wire.client.told
    assert wire.server.dtls.counts["DTLS clients turned away: there is no certificate"] == 1


# Under the drivers. -------------------------------------------------------------------------------


def answering(machine: Recorder, event: Told) -> None:
    match event:
        case Opened(1, local):
            machine.order(Dial(2, ANY, local, NAME, datagrams=True))
        case Connected(2):
            machine.order(Write(2, b"encrypted"))
        case Arrived(handle, data) if handle < 0:
            machine.order(Write(handle, data.upper()))


@pytest.mark.parametrize(
    "security", [Security.DETECT, Security.REQUIRED], ids=["detect", "required"]
)
@pytest.mark.parametrize("local", [ANY, Address("::1", 0)], ids=["IPv4", "IPv6"])
def test_both_sides_over_sockets(
    run: Runner, certificate: Path, security: Security, local: Address
) -> None:
    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                # Plain STUN to the same port, from a socket of its own.
                machine.order(OpenUdp(3, local))
                machine.order(Dial(2, Address(local.host, 0), address, NAME, datagrams=True))
            case Opened(3, source):
                machine.order(Transmit(b"\x00\x01plain", machine.one(Opened, 1).local, source))
            case _:
                answering(machine, event)

    machine = Recorder(react).order(OpenUdp(1, local, security))
    plain = "not DTLS, on a port for DTLS only"
    run(
        machine,
        lambda: (
            machine.all(Arrived, 2) and (machine.all(Received) or run.driver.counters.get(plain))
        ),
        tls=ClientTls(certificate),
        server_tls=ServerTls(certificate),
    )
    assert machine.one(Arrived, 2).data == b"ENCRYPTED"
    accepted, connected = machine.one(Accepted), machine.one(Connected)
    assert accepted.secure
    assert (accepted.listener, accepted.local) == (1, machine.one(Opened, 1).local)
    assert (connected.local, connected.remote) == (accepted.remote, accepted.local)
    assert bool(machine.all(Received)) is (security is Security.DETECT)


def test_a_dial_from_the_wildcard_address(run: Runner, certificate: Path) -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            machine.order(Dial(2, Address("0.0.0.0", 0), event.local, NAME, datagrams=True))

    machine = Recorder(react).order(OpenUdp(1, ANY, Security.REQUIRED))
    run(
        machine,
        lambda: machine.all(Connected),
        tls=ClientTls(certificate),
        server_tls=ServerTls(certificate),
    )
    assert machine.one(Connected).local.host == "127.0.0.1"


def test_nobody_serves_there(run: Runner, certificate: Path) -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            machine.order(Shut(1), Dial(2, ANY, event.local, NAME, datagrams=True))

    machine = Recorder(react).order(OpenUdp(1, ANY))
    run(machine, lambda: machine.all(Closed, 2), tls=ClientTls(certificate))
    assert machine.one(Closed, 2).cause is Cause.UNREACHABLE


def test_a_local_address_that_cannot_be_had(run: Runner) -> None:
    machine = Recorder().order(
        Dial(1, Address("192.0.2.1", 0), Address("127.0.0.1", 9), None, datagrams=True),
        Dial(2, Address("0.0.0.0", 0), Address("::1", 9), None, datagrams=True),
    )
    run(machine, lambda: len(machine.all(Closed)) == 2)
    assert machine.one(Closed, 1).cause is Cause.ADDRESS_NOT_AVAILABLE


def test_lost_flights_are_sent_again(
    run: Runner, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each side's first flight after the cookie is lost; OpenSSL's timers are a second.
    lost: list[bytes] = []
    real = UdpDatagrams.send

    def send(self: UdpDatagrams, transmit: Transmit) -> None:
        kind = transmit.data[13]  # the handshake message that leads the flight
        if kind in {2, 16} and kind not in lost:
            lost.append(kind)
        else:
            real(self, transmit)

    monkeypatch.setattr(UdpDatagrams, "send", send)
    machine = Recorder(answering).order(OpenUdp(1, ANY, Security.REQUIRED))
    run(
        machine,
        lambda: machine.all(Arrived, 2),
        tls=ClientTls(certificate),
        server_tls=ServerTls(certificate),
    )
    assert lost == [2, 16]


def test_closing_the_driver_says_goodbye(run: Runner, certificate: Path) -> None:
    said: list[Transmit] = []
    machine = Recorder(answering).order(OpenUdp(1, ANY, Security.REQUIRED))

    def done() -> bool:
        if machine.all(Arrived, 2) and not said:
            datagrams = run.driver._sockets.datagrams
            real = datagrams.send
            datagrams.send = lambda transmit: (said.append(transmit), real(transmit))
            said.append(Transmit(b"", ANY, ANY))
        return bool(said)

    run(machine, done, tls=ClientTls(certificate), server_tls=ServerTls(certificate))
    # Alerts (21), of the client and of the server.
    assert [transmit.data[0] for transmit in said[1:]] == [21, 21]


def test_a_listener_of_datagrams_that_is_shut_takes_its_sessions_along(
    run: Runner, certificate: Path
) -> None:
    def react(machine: Recorder, event: Told) -> None:
        answering(machine, event)
        if isinstance(event, Arrived) and event.handle == 2:
            machine.order(Shut(1))

    machine = Recorder(react).order(OpenUdp(1, ANY, Security.REQUIRED))
    run(
        machine,
        lambda: len(machine.all(Closed)) == 2,
        tls=ClientTls(certificate),
        server_tls=ServerTls(certificate),
    )
    assert machine.one(Closed, 2).cause is Cause.END_OF_STREAM
    assert machine.one(Closed, -1).cause is Cause.OTHER


@pytest.mark.parametrize("octet", range(256))
def test_which_packets_are_encrypted(octet: int) -> None:
    data = bytes([octet]) + bytes(20)
    assert is_encrypted(data, Security.DETECT) is (20 <= octet <= 63)
    assert is_encrypted(data, Security.REQUIRED)
    assert not is_encrypted(data, Security.NONE)


def test_an_empty_packet_is_not_encrypted() -> None:
    assert not is_encrypted(b"", Security.DETECT)
    assert is_encrypted(b"", Security.REQUIRED)


def test_time_is_of_the_driver(wire: Wire) -> None:
    wire.open()
    assert wire.client.dtls.deadline() == dtls.IDLE // 8
    assert wire.server.dtls.deadline() == dtls.IDLE // 8
    wire.server.dtls.on_time(5 * MILLISECOND)
    assert wire.server.kinds() == ["Accepted"]
