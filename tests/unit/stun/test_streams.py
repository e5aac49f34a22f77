"""Streams of a server under both drivers: TLS or not, proxies, holding and congestion."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from stun import streams, tcp
from stun.sansio import (
    MILLISECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Connected,
    Dial,
    Hold,
    Listen,
    Opened,
    OpenUdp,
    Relieved,
    Security,
    Shut,
    Write,
)
from stun.streams import Networks
from stun.tls import ClientTls, ServerTls
from tools.certificate import write_self_signed
from tools.driving import PATIENCE, Recorder, Runner, Told, beside, connect, free_port

LOCALHOST = "127.0.0.1"
ANY = Address(LOCALHOST, 0)
STUN = bytes.fromhex("000100002112a442") + bytes(12)


def echo(machine: Recorder, event: Told) -> None:
    if isinstance(event, Arrived):
        machine.order(Write(event.handle, event.data))


# TLS and plain on one port. -----------------------------------------------------------------------


def test_plain_and_tls_on_one_port(run: Runner, certificate: Path) -> None:
    port = free_port()
    address = Address(LOCALHOST, port)
    machine = Recorder(echo).order(Listen(1, address, security=Security.DETECT, exclusive=True))

    def clients() -> None:
        with connect(address) as plain:
            plain.sendall(STUN)
            assert plain.recv(100) == STUN
        context = ClientTls(certificate).streams
        with (
            connect(address) as sock,
            context.wrap_socket(sock, server_hostname="stun.example") as tls,
        ):
            assert tls.selected_alpn_protocol() == "stun.turn"
            tls.sendall(STUN * 1000)
            received = b""
            while len(received) < len(STUN) * 1000:
                received += tls.recv(65536)
            assert received == STUN * 1000
            tls.unwrap()

    beside(
        run,
        machine,
        clients,
        lambda: len(machine.all(Closed)) == 2,
        server_tls=ServerTls(certificate),
    )
    assert [event.secure for event in machine.all(Accepted)] == [False, True]
    assert [event.cause for event in machine.all(Closed)] == [Cause.END_OF_STREAM] * 2


def test_a_tls_client_in_single_octets(run: Runner, certificate: Path) -> None:
    # What a client on a bad path looks like: each octet in a segment of its own.
    address = Address(LOCALHOST, free_port())
    machine = Recorder(echo).order(Listen(1, address, security=Security.REQUIRED))

    def client() -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = ClientTls(certificate).streams.wrap_bio(
            incoming, outgoing, server_hostname="stun.example"
        )
        with connect(address) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def exchange(step: Callable[[], object]) -> object:
                while True:
                    try:
                        return step()
                    except ssl.SSLWantReadError:
                        for octet in outgoing.read():
                            sock.sendall(bytes([octet]))
                        incoming.write(sock.recv(65536))

            exchange(tls.do_handshake)
            tls.write(STUN)
            assert exchange(lambda: tls.read(100)) == STUN

    beside(run, machine, client, lambda: machine.all(Closed), server_tls=ServerTls(certificate))
    assert machine.one(Accepted).secure


@pytest.mark.parametrize(
    "order", [Listen(1, ANY, security=Security.DETECT), OpenUdp(1, ANY, Security.DETECT)]
)
def test_encryption_needs_a_certificate(run: Runner, order: Listen | OpenUdp) -> None:
    machine = Recorder().order(order)
    run(machine, lambda: machine.heard)
    closed = machine.one(Closed)
    assert closed.cause is Cause.TLS_FAILED
    assert "no certificate" in closed.detail


def meet(
    run: Runner, machine: Recorder, client: Callable[[], None], count: str, **options: object
) -> None:
    """Let a client try its luck until the driver has counted what became of it."""
    beside(
        run, machine, client, lambda: any(count in name for name in run.driver.counters), **options
    )
    assert not machine.all(Accepted)


def test_plain_where_tls_is_required_is_refused(run: Runner, certificate: Path) -> None:
    address = Address(LOCALHOST, free_port())

    def client() -> None:
        with connect(address) as sock:
            sock.sendall(STUN)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""

    machine = Recorder().order(Listen(1, address, security=Security.REQUIRED))
    meet(run, machine, client, "not TLS", server_tls=ServerTls(certificate))


def test_tls_for_another_protocol_is_told_why(run: Runner, certificate: Path) -> None:
    address = Address(LOCALHOST, free_port())

    def client() -> None:
        context = ClientTls(certificate, protocols=("h2",)).streams
        with (
            connect(address) as sock,
            pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"),
        ):
            context.wrap_socket(sock, server_hostname="stun.example")

    machine = Recorder().order(Listen(1, address, security=Security.DETECT))
    meet(run, machine, client, "other protocols only", server_tls=ServerTls(certificate))


def test_who_says_nothing_is_sent_away(
    run: Runner, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HANDSHAKE", 50 * MILLISECOND)
    address = Address(LOCALHOST, free_port())

    def client() -> None:
        with connect(address) as sock:
            sock.sendall(b"\x16\x03\x01\x02")  # the first octets of a ClientHello, no more
            assert sock.recv(100) == b""

    machine = Recorder().order(Listen(1, address, security=Security.DETECT))
    meet(run, machine, client, "took too long", server_tls=ServerTls(certificate))


def test_of_many_that_say_nothing_the_oldest_gives_way(
    run: Runner, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HANDSHAKES", 2)
    address = Address(LOCALHOST, free_port())
    silent: list[socket.socket] = []

    def client() -> None:
        silent.extend(connect(address) for _ in range(3))
        assert silent[0].recv(100) == b""
        for sock in silent[1:]:
            sock.sendall(STUN)
            assert sock.recv(100) == STUN
            sock.close()

    machine = Recorder(echo).order(Listen(1, address, security=Security.DETECT))
    beside(
        run,
        machine,
        client,
        lambda: len(machine.all(Closed)) == 2,
        server_tls=ServerTls(certificate),
    )
    silent[0].close()
    assert run.counters["not accepted: gave way to a newer one"] == 1


def test_a_new_certificate_is_for_new_connections(run: Runner, tmp_path: Path) -> None:
    path = write_self_signed(tmp_path / "both.pem", "stun.example")
    old = ClientTls(path).streams
    tls = ServerTls(path)
    write_self_signed(path, "stun.example")
    new = ClientTls(path).streams
    address = Address(LOCALHOST, free_port())

    def client() -> None:
        with old.wrap_socket(connect(address), server_hostname="stun.example") as first:
            assert tls.reload()
            with new.wrap_socket(connect(address), server_hostname="stun.example") as second:
                for sock in (first, second):
                    sock.sendall(STUN)
                    assert sock.recv(100) == STUN

    machine = Recorder(echo).order(Listen(1, address, security=Security.REQUIRED))
    beside(run, machine, client, lambda: len(machine.all(Closed)) == 2, server_tls=tls)


def test_a_certificate_and_proxies_can_be_taken_away(run: Runner, certificate: Path) -> None:
    plain, proxied = (Address(LOCALHOST, free_port()) for _ in range(2))

    def client() -> None:
        with connect(plain) as sock:
            run.driver._sockets.serve_with(None, {})
            context = ClientTls(certificate).streams
            with pytest.raises(OSError):  # noqa: PT011  (closed or reset, as it happens)
                context.wrap_socket(sock, server_hostname="stun.example")
        with connect(plain) as sock:
            sock.sendall(STUN)
            assert sock.recv(100) == STUN
        with connect(proxied) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(HEADER + STUN)
            assert sock.recv(100) == b""

    machine = Recorder(echo).order(
        Listen(1, plain, security=Security.DETECT), Listen(2, proxied, security=Security.DETECT)
    )
    beside(
        run,
        machine,
        client,
        lambda: "not accepted: not one of the proxies" in run.driver.counters,
        server_tls=ServerTls(certificate),
        proxies={proxied.port: ["127.0.0.1"]},
    )
    assert len(machine.all(Accepted)) == 1
    assert run.counters["not accepted: there is no certificate to serve TLS with"] == 1


def test_shutting_a_listener_ends_what_is_undecided(run: Runner, certificate: Path) -> None:
    address = Address(LOCALHOST, free_port())
    with socket.socket() as sock:

        def react(machine: Recorder, event: Told) -> None:
            match event:
                case Opened(1):
                    sock.connect(address)
                    sock.sendall(b"\x16")
                    machine.order(Listen(2, ANY))
                case Opened(2, local):
                    machine.order(Dial(3, ANY, local))
                case Connected(3):
                    machine.order(Shut(1))

        machine = Recorder(react).order(Listen(1, address, security=Security.DETECT))
        run(machine, lambda: machine.all(Accepted), server_tls=ServerTls(certificate))
        sock.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert machine.one(Accepted).listener == 2


# Ports of one's own. ------------------------------------------------------------------------------


@pytest.mark.parametrize("other_is_shared", [False, True])
def test_an_exclusive_port_is_shared_with_nobody(run: Runner, other_is_shared: bool) -> None:
    with socket.socket() as other:
        if other_is_shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((LOCALHOST, 0))
        other.listen()
        address = Address(*other.getsockname())
        machine = Recorder().order(Listen(1, address, exclusive=True), OpenUdp(2, address))
        run(machine, lambda: len(machine.heard) == 2)
    assert machine.one(Closed, 1).cause is Cause.ADDRESS_IN_USE
    assert machine.all(Opened, 2), "a UDP port is another one"


def test_an_exclusive_port_can_be_had_again_at_once(run: Runner) -> None:
    # Connections in TIME-WAIT are no reason to wait.
    address = Address(LOCALHOST, free_port())

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1):
                machine.order(Dial(2, ANY, address))
            case Accepted(1, handle):
                machine.order(Shut(handle))
            case Closed(2):
                machine.order(Shut(1), Listen(3, address, exclusive=True))

    machine = Recorder(react).order(Listen(1, address, exclusive=True))
    run(machine, lambda: machine.all(Opened, 3) or machine.all(Closed, 3))
    assert machine.all(Opened, 3)


def test_a_udp_port_in_use(run: Runner) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((LOCALHOST, 0))
        machine = Recorder().order(OpenUdp(1, Address(*other.getsockname())))
        run(machine, lambda: machine.heard)
    assert machine.one(Closed, 1).cause is Cause.ADDRESS_IN_USE


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="no such option")
def test_silent_clients_are_asked_for_a_sign_of_life(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            machine.order(Dial(2, ANY, event.local))

    options: list[int] = []

    def done() -> bool:
        if machine.all(Accepted) and not options:
            sock = run.driver._sockets.streams._streams[-1].sock
            options.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            options.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
        return bool(options)

    machine = Recorder(react).order(Listen(1, ANY))
    run(machine, done)
    assert options == [1, tcp.KEEPALIVE[0]]


# Holding and congestion. --------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True])
def test_a_held_stream_is_not_read(
    run: Runner, certificate: Path, secure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far more than the kernel takes for a peer that does not read.
    payload = os.urandom(1 << 20) * 16
    monkeypatch.setattr(tcp, "PENDING_LIMIT", 1 << 25)

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address, "stun.example" if secure else None))
            case Accepted(1, handle):
                machine.order(Hold(handle), Write(handle, b"go"))
            case Arrived(2):
                machine.order(Write(2, payload))
            case Congested(2):
                machine.due = machine.at + 100 * MILLISECOND
            case Relieved(2):
                machine.order(Shut(2))

    security = Security.DETECT if secure else Security.NONE
    machine = Recorder(react).order(Listen(1, ANY, security=security))
    seen_when_held = -1

    def done() -> bool:
        nonlocal seen_when_held
        if machine.deadlines and seen_when_held < 0:
            seen_when_held = len(machine.bytes_on(-1))
            machine.order(Hold(-1, held=False))
        return bool(machine.all(Closed, -1))

    run(machine, done, tls=ClientTls(certificate), server_tls=ServerTls(certificate))
    assert seen_when_held == 0
    assert machine.bytes_on(-1) == payload
    assert len(machine.all(Congested, 2)) == len(machine.all(Relieved, 2)) == 1
    assert machine.one(Closed, -1).cause is Cause.END_OF_STREAM


def test_a_held_stream_keeps_its_end_to_itself(run: Runner, certificate: Path) -> None:
    # TLS finds close_notify behind the last octets, in the same read.
    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address, "stun.example"))
            case Connected(2):
                machine.order(Write(2, b"last words"), Shut(2))
            case Arrived(handle):
                machine.order(Hold(handle))
                machine.due = machine.at + 50 * MILLISECOND

    machine = Recorder(react).order(Listen(1, ANY, security=Security.REQUIRED))
    told_while_held = -1

    def done() -> bool:
        nonlocal told_while_held
        if machine.deadlines and told_while_held < 0:
            told_while_held = len(machine.all(Closed))
            machine.order(Hold(-1, held=False))
        return bool(machine.all(Closed))

    run(machine, done, tls=ClientTls(certificate), server_tls=ServerTls(certificate))
    assert told_while_held == 0
    assert machine.bytes_on(-1) == b"last words"
    assert machine.one(Closed, -1).cause is Cause.END_OF_STREAM


def test_hold_of_a_stream_that_is_gone(run: Runner) -> None:
    machine = Recorder().order(Hold(5), Hold(5, held=False), Listen(1, ANY))
    run(machine, lambda: machine.all(Opened))


def test_a_machine_may_shut_when_it_is_relieved(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "PENDING_LIMIT", 1 << 24)

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address))
            case Accepted(1, handle):
                machine.order(Hold(handle))
            case Connected(2):
                # More than the kernel takes of a peer that does not read, and than the mark.
                machine.order(*[Write(2, bytes(200_000))] * 40)
            case Congested(2):
                machine.order(Hold(-1, held=False))
            case Relieved(2):
                machine.order(Shut(2))

    machine = Recorder(react).order(Listen(1, ANY))
    run(machine, lambda: machine.all(Closed))
    assert len(machine.all(Congested, 2)) == len(machine.all(Relieved, 2)) == 1
    assert len(machine.bytes_on(-1)) == 8_000_000


# Proxies. -----------------------------------------------------------------------------------------

CLIENT, SERVER = Address("192.0.2.1", 40000), Address("198.51.100.1", 3478)
HEADER = b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 3478\r\n"


@pytest.mark.parametrize("security", [Security.NONE, Security.DETECT], ids=["plain", "detect"])
def test_a_proxy_says_who_the_client_is(run: Runner, certificate: Path, security: Security) -> None:
    address = Address(LOCALHOST, free_port())
    ends: list[Address] = []

    def clients() -> None:
        with connect(address) as sock:
            sock.sendall(HEADER + STUN)
            assert sock.recv(100) == STUN
        with connect(address) as sock:
            ends.append(Address(*sock.getsockname()))
            sock.sendall(b"PROXY UNKNOWN\r\n")
            sock.sendall(STUN)
            assert sock.recv(100) == STUN
        if security is Security.DETECT:
            with connect(address) as sock:
                sock.sendall(HEADER)
                context = ClientTls(certificate).streams
                with context.wrap_socket(sock, server_hostname="stun.example") as tls:
                    tls.sendall(STUN)
                    assert tls.recv(100) == STUN

    number = 3 if security is Security.DETECT else 2
    machine = Recorder(echo).order(Listen(1, address, security=security))
    beside(
        run,
        machine,
        clients,
        lambda: len(machine.all(Closed)) == number,
        server_tls=ServerTls(certificate),
        proxies={address.port: ["127.0.0.0/8"]},
    )
    assert [(e.remote, e.local, e.secure) for e in machine.all(Accepted)] == [
        (CLIENT, SERVER, False),
        (ends[0], address, False),
        (CLIENT, SERVER, True),
    ][:number]


def test_who_is_no_proxy_is_not_served(run: Runner) -> None:
    address = Address(LOCALHOST, free_port())

    def client() -> None:
        with connect(address) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(HEADER + STUN)
            assert sock.recv(100) == b""

    machine = Recorder(echo).order(Listen(1, address))
    meet(run, machine, client, "not one of the proxies", proxies={address.port: ["192.0.2.0/24"]})


def test_a_proxy_without_a_header_is_not_served(run: Runner) -> None:
    address = Address(LOCALHOST, free_port())

    def client() -> None:
        with connect(address) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(STUN)
            assert sock.recv(100) == b""

    machine = Recorder(echo).order(Listen(1, address))
    meet(run, machine, client, "no PROXY protocol header", proxies={address.port: ["127.0.0.1"]})


def test_a_header_where_no_proxy_is_expected_is_what_a_client_said(run: Runner) -> None:
    address = Address(LOCALHOST, free_port())

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1):
                machine.order(Dial(2, ANY, address))
            case Connected(2):
                machine.order(Write(2, HEADER))

    machine = Recorder(react).order(Listen(1, address))
    run(
        machine,
        lambda: len(machine.bytes_on(-1)) == len(HEADER),
        proxies={address.port + 1: ["127.0.0.1"]},
    )
    assert machine.bytes_on(-1) == HEADER
    assert machine.one(Accepted).remote.host == LOCALHOST


def test_networks() -> None:
    trusted = Networks(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "fe80::/10"])
    for host in ("10.255.0.1", "192.0.2.7", "2001:db8::9", "fe80::1%lo"):
        assert host in trusted
    for host in ("11.0.0.1", "192.0.2.8", "2001:db9::", "::1"):
        assert host not in trusted
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8"):
        Networks(["10.0.0.1/8"])
