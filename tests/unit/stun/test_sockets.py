"""Both drivers with real sockets on loopback: what each order does and what is reported for it.

Every scenario is a machine that both drivers run, so neither can do what the other does not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stun import streams, tcp, udp
from stun.errors import UsageError
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
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
    Undeliverable,
    Write,
)
from tools.driving import PATIENCE, Recorder, Runner, Told

LOCALHOST = "127.0.0.1"
ANY = Address(LOCALHOST, 0)
ANY6 = Address("::1", 0)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a Linux socket option")


@contextlib.contextmanager
def plain_listener(host: str = LOCALHOST) -> Iterator[tuple[socket.socket, Address]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        server.settimeout(PATIENCE)
        yield server, Address(*server.getsockname()[:2])


@contextlib.contextmanager
def plain_udp() -> Iterator[tuple[socket.socket, Address]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind((LOCALHOST, 0))
        peer.settimeout(PATIENCE)
        yield peer, Address(*peer.getsockname())


def free_tcp_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOCALHOST, 0))
        port: int = sock.getsockname()[1]
        return port


# UDP. ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("local", [ANY, ANY6], ids=["IPv4", "IPv6"])
def test_datagrams_between_two_sockets_of_a_machine(run: Runner, local: Address) -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened) and event.handle == 2:
            machine.order(Transmit(b"ping", event.local, machine.one(Opened, 1).local))
        elif isinstance(event, Received) and event.data == b"ping":
            machine.order(Transmit(b"pong", event.source, event.local))

    machine = Recorder(react).order(OpenUdp(1, local), OpenUdp(2, local))
    run(machine, lambda: len(machine.all(Received)) == 2)
    one, two = machine.one(Opened, 1).local, machine.one(Opened, 2).local
    assert one.port
    assert one.host == local.host
    assert machine.all(Received) == [Received(b"ping", one, two), Received(b"pong", two, one)]
    assert run.counters["datagrams received"] == run.counters["datagrams sent"] == 2


@linux_only
def test_a_wildcard_socket_tells_and_uses_the_address_a_datagram_was_sent_to(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            peer.sendto(b"?", ("127.0.0.7", event.local.port))
        elif isinstance(event, Received):
            machine.order(Transmit(b"!", event.source, event.local))

    with plain_udp() as (peer, address):
        machine = Recorder(react).order(OpenUdp(1, Address("0.0.0.0", 0)))
        run(machine, lambda: machine.all(Received))
        packet = machine.one(Received)
        assert packet.local == Address("127.0.0.7", machine.one(Opened).local.port)
        assert packet.source == address
        assert peer.recvfrom(10) == (b"!", packet.local)


@linux_only
def test_an_ipv6_wildcard_socket_does_the_same(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            peer.sendto(b"?", ("::1", event.local.port))
        elif isinstance(event, Received):
            machine.order(Transmit(b"!", event.source, event.local))

    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer:
        peer.bind(("::1", 0))
        peer.settimeout(PATIENCE)
        machine = Recorder(react).order(OpenUdp(1, Address("::", 0)))
        run(machine, lambda: machine.all(Received))
        assert machine.one(Received).local.host == "::1"
        assert peer.recv(10) == b"!"


def test_a_burst_larger_than_a_batch_arrives_whole_and_in_order(run: Runner) -> None:
    number = 3 * udp.BATCH + 5

    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            for n in range(number):
                peer.sendto(b"%d" % n, event.local)

    with plain_udp() as (peer, _):
        machine = Recorder(react).order(OpenUdp(1, ANY))
        run(machine, lambda: len(machine.all(Received)) == number)
        assert [int(packet.data) for packet in machine.all(Received)] == list(range(number))


def test_an_empty_datagram_is_a_datagram(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            machine.order(Transmit(b"", event.local, event.local))

    machine = Recorder(react).order(OpenUdp(1, ANY))
    run(machine, lambda: machine.all(Received))
    assert machine.one(Received).data == b""


@linux_only
@pytest.mark.parametrize(("local", "icmp"), [(ANY, (3, 3)), (ANY6, (1, 4))], ids=["IPv4", "IPv6"])
def test_icmp_port_unreachable_is_reported(
    run: Runner, local: Address, icmp: tuple[int, int]
) -> None:
    with socket.socket(udp.family_of(local), socket.SOCK_DGRAM) as closed:
        closed.bind(local)
        nobody = Address(*closed.getsockname()[:2])

    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            machine.order(Transmit(b"x", nobody, event.local))

    machine = Recorder(react).order(OpenUdp(1, local))
    run(machine, lambda: machine.all(Undeliverable))
    here = machine.one(Opened).local
    assert machine.all(Undeliverable) == [Undeliverable(here, nobody, *icmp)]


@linux_only
def test_a_pending_icmp_error_costs_no_other_datagram(run: Runner) -> None:
    with plain_udp() as (_, nobody):
        pass

    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            # The second send of this round meets the error of the first.
            for _ in range(4):
                machine.order(
                    Transmit(b"lost", nobody, event.local), Transmit(b"x", address, event.local)
                )

    with plain_udp() as (peer, address):
        machine = Recorder(react).order(OpenUdp(1, ANY))
        run(machine, lambda: len(machine.all(Undeliverable)) == 4)
        assert [peer.recv(10) for _ in range(4)] == [b"x"] * 4
        assert run.counters["datagrams sent"] == 8


@pytest.mark.parametrize(
    ("data", "to"),
    [
        (bytes(70_000), Address(LOCALHOST, 9)),
        (b"x", Address(LOCALHOST, 0)),
        (b"x", Address("::1", 9)),
        (b"x", Address(LOCALHOST, 70_000)),
        (b"x", Address("255.255.255.255", 9)),
        (b"x", Address("fe80::1%nosuch", 9)),
    ],
    ids=["too long", "port 0", "other family", "no port", "broadcast", "no such zone"],
)
def test_what_cannot_be_sent_is_counted_and_never_raises(
    run: Runner, data: bytes, to: Address
) -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            machine.order(Transmit(data, to, event.local), "sent")

    machine = Recorder(react).order(OpenUdp(1, ANY))
    run(machine, lambda: run.told)
    refused = {what: n for what, n in run.counters.items() if what.startswith("not sent")}
    assert sum(refused.values()) == 1, run.counters
    assert run.counters["datagrams sent"] == 0


def test_a_datagram_from_an_address_without_a_socket_is_counted(run: Runner) -> None:
    machine = Recorder().order(Transmit(b"x", Address(LOCALHOST, 9), Address(LOCALHOST, 9)), "e")
    run(machine, lambda: run.told)
    assert run.counters["not sent: no socket has this source address"] == 1


def test_bind_errors_name_their_cause(run: Runner) -> None:
    with plain_udp() as (_, taken):
        machine = Recorder().order(
            OpenUdp(1, taken),
            OpenUdp(2, Address("192.0.2.1", 0)),
            Listen(3, Address("192.0.2.1", 0)),
            Dial(4, Address("192.0.2.1", 0), Address(LOCALHOST, 9)),
        )
        run(machine, lambda: len(machine.heard) == 4)
    assert [event.cause for event in machine.heard] == [
        Cause.ADDRESS_IN_USE,
        *[Cause.ADDRESS_NOT_AVAILABLE] * 3,
    ]
    assert machine.one(Closed, 1).detail == os.strerror(errno.EADDRINUSE)


def test_a_shut_udp_socket_is_closed_and_its_counts_are_kept(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            machine.order(Transmit(b"x", event.local, event.local), Shut(1), "shut")

    machine = Recorder(react).order(OpenUdp(1, ANY))
    run(machine, lambda: run.told)
    assert run.counters["datagrams sent"] == 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(machine.one(Opened).local)


def test_nothing_follows_on_a_udp_socket_that_was_shut(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(2, address):
                one = machine.one(Opened, 1).local
                machine.order(*(Transmit(b"x", one, address) for _ in range(3)))
            case Received():
                machine.order(Shut(1), "heard")

    machine = Recorder(react).order(OpenUdp(1, ANY), OpenUdp(2, ANY))
    run(machine, lambda: run.told)
    assert len(machine.all(Received)) == 1


# TCP. ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("local", [ANY, ANY6], ids=["IPv4", "IPv6"])
def test_dial_accept_talk_and_close(run: Runner, local: Address) -> None:
    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, local, address))
            case Connected(2):
                machine.order(Write(2, b"hello"))
            case Arrived(handle, data) if handle < 0:
                machine.order(Write(handle, data.upper()), Shut(handle))

    machine = Recorder(react).order(Listen(1, local))
    run(machine, lambda: machine.all(Closed, 2))
    accepted, connected = machine.one(Accepted), machine.one(Connected)
    assert accepted.listener == 1
    assert accepted.handle == -1
    assert (accepted.local, accepted.remote) == (connected.remote, connected.local)
    assert machine.bytes_on(-1) == b"hello"
    assert machine.bytes_on(2) == b"HELLO"
    assert machine.one(Closed).cause is Cause.END_OF_STREAM


def test_a_refused_dial(run: Runner) -> None:
    machine = Recorder().order(Dial(1, ANY, Address(LOCALHOST, free_tcp_port())))
    run(machine, lambda: machine.heard)
    assert machine.one(Closed, 1).cause is Cause.REFUSED


def test_a_dial_to_where_no_route_goes(run: Runner) -> None:
    machine = Recorder().order(Dial(1, ANY, Address("192.0.2.1", 9)))
    run(machine, lambda: machine.heard)
    assert machine.one(Closed, 1).cause in {Cause.UNREACHABLE, Cause.OTHER}


def test_many_dials_share_a_port_and_a_listener_has_it_too(run: Runner) -> None:
    port = Address(LOCALHOST, free_tcp_port())
    with plain_listener() as (_, one), plain_listener() as (_, two):
        machine = Recorder().order(Listen(1, port), Dial(2, port, one), Dial(3, port, two))
        run(machine, lambda: len(machine.all(Connected)) == 2)
        assert {event.local for event in machine.all(Connected)} == {port}


def test_the_same_pair_of_endpoints_twice_is_refused_as_in_use(run: Runner) -> None:
    port = Address(LOCALHOST, free_tcp_port())
    with plain_listener() as (_, server):
        machine = Recorder().order(Dial(1, port, server), Dial(2, port, server))
        run(machine, lambda: machine.all(Closed))
        assert machine.one(Closed).handle == 2
        assert machine.one(Closed).cause is Cause.ADDRESS_IN_USE


def test_reset_is_told_apart_from_end_of_stream(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address))
            case Accepted(handle=handle):
                machine.order(Shut(handle, reset=True))

    machine = Recorder(react).order(Listen(1, ANY))
    run(machine, lambda: machine.all(Closed, 2))
    assert machine.one(Closed, 2).cause is Cause.RESET


@pytest.fixture
def trickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the kernel take only a little at a time, as it does when the way is slow."""
    real = tcp.Stream._send

    def send(stream: tcp.Stream, data: bytes | bytearray) -> int:
        return real(stream, data[:20_000])

    monkeypatch.setattr(tcp.Stream, "_send", send)


@pytest.mark.usefixtures("trickle")
def test_a_large_write_arrives_whole_though_it_is_shut_at_once(run: Runner) -> None:
    payload = os.urandom(tcp.PENDING_LIMIT - 1000)

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address))
            case Connected(2):
                machine.order(Write(2, payload), Shut(2))

    machine = Recorder(react).order(Listen(1, ANY))
    run(machine, lambda: machine.all(Closed, -1))
    assert machine.bytes_on(-1) == payload
    assert machine.one(Closed).cause is Cause.END_OF_STREAM


@pytest.mark.usefixtures("trickle")
def test_a_shut_stream_gives_up_on_its_last_bytes_in_time(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LINGER", 30 * MILLISECOND)
    monkeypatch.setattr(tcp.Stream, "_send", lambda stream, data: 0)

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address))
            case Connected(2):
                machine.order(Write(2, b"never sent"), Shut(2))

    machine = Recorder(react).order(Listen(1, ANY))
    run(machine, lambda: machine.all(Closed))
    assert machine.one(Closed, -1).cause is Cause.RESET


def test_a_peer_that_does_not_read_is_let_go(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Connected):
            machine.order(*[Write(1, bytes(1 << 16)) for _ in range(400)])

    with plain_listener() as (_, address):
        machine = Recorder(react).order(Dial(1, ANY, address))
        run(machine, lambda: machine.all(Closed))
    closed = machine.one(Closed, 1)
    assert (closed.cause, closed.detail) == (Cause.OTHER, "peer does not read")
    assert run.counters["not written: the stream is not open"] > 0


def test_a_stream_that_was_shut_in_mid_stream_says_nothing_more(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Connected(1):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(bytes(1 << 20))
            case Arrived(1):
                machine.order(Shut(1), "shut")

    with plain_listener() as (server, address):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        machine = Recorder(react).order(Dial(1, Address(LOCALHOST, 0), address))
        run(machine, lambda: run.told)
    assert len(machine.all(Arrived)) == 1
    assert not machine.all(Closed)


@pytest.mark.usefixtures("trickle")
def test_a_stream_that_was_shut_hears_nothing_while_its_last_bytes_leave(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                peer.connect(address)
                peer.sendall(bytes(300_000))
            case Arrived(handle):
                machine.order(Write(handle, bytes(200_000)), Shut(handle), "shut")

    with socket.socket() as peer:
        peer.settimeout(PATIENCE)
        machine = Recorder(react).order(Listen(1, ANY))
        run(machine, lambda: run.told)
        assert len(machine.all(Arrived)) == 1
    assert not machine.all(Closed)


@pytest.mark.usefixtures("trickle")
def test_an_answer_reaches_a_peer_that_has_shut_its_writing_side(run: Runner) -> None:
    answer = os.urandom(300_000)

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address))
            case Connected(2):
                stream = run.driver._sockets.streams._streams[2]
                stream.write(b"question")
                stream.sock.shutdown(socket.SHUT_WR)
            case Arrived(handle) if handle < 0:
                machine.order(Write(handle, answer))

    machine = Recorder(react).order(Listen(1, ANY))
    run(machine, lambda: machine.all(Closed, 2))
    assert machine.bytes_on(2) == answer
    assert machine.one(Closed, -1).cause is Cause.END_OF_STREAM


def test_a_dial_can_be_shut_before_it_is_decided(run: Runner) -> None:
    with plain_listener() as (_, address):
        machine = Recorder().order(Dial(1, ANY, address), Shut(1), Dial(1, ANY, address))
        run(machine, lambda: machine.heard)
        assert machine.one(Connected, 1)


def test_what_was_shut_is_not_told_of_even_if_it_failed_already(run: Runner) -> None:
    nowhere = Address("192.0.2.1", 0)
    machine = Recorder().order(Dial(1, nowhere, nowhere), OpenUdp(2, nowhere), Shut(1), "done")
    run(machine, lambda: run.told)
    assert machine.all(Closed, 1) == []
    assert machine.one(Closed, 2)


def test_three_hundred_sockets_open_and_close_quickly(run: Runner) -> None:
    machine = Recorder()
    for handle in range(1, 301):
        machine.order(OpenUdp(handle, ANY))
    run(machine, lambda: len(machine.all(Opened)) == 300)
    assert len({event.local.port for event in machine.all(Opened)}) == 300


@pytest.mark.parametrize(("pause", "accepted"), [(20 * MILLISECOND, 1), (60 * SECOND, 0)])
def test_a_listener_rests_while_descriptors_are_short(
    run: Runner, monkeypatch: pytest.MonkeyPatch, pause: Instant, accepted: int
) -> None:
    monkeypatch.setattr(streams, "ACCEPT_PAUSE", pause)
    real, tried = tcp.Listener.accept, []

    def accept(listener: tcp.Listener) -> Any:
        tried.append(listener)
        if len(tried) == 1:
            raise OSError(errno.EMFILE, "too many open files")
        return real(listener)

    monkeypatch.setattr(tcp.Listener, "accept", accept)

    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            machine.order(Dial(2, ANY, event.local))

    machine = Recorder(react).order(Listen(1, ANY))

    def begin(now: Instant) -> None:
        machine.due = now + 200 * MILLISECOND

    run(machine, lambda: machine.deadlines or machine.all(Accepted), begin=begin)
    assert len(machine.all(Accepted)) == accepted
    assert run.counters[f"not accepted: {os.strerror(errno.EMFILE)}"] == 1


# Silent listeners. --------------------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize("local", [ANY, ANY6], ids=["IPv4", "IPv6"])
def test_a_silent_listener_does_not_answer_and_can_be_dialled_from(
    run: Runner, local: Address
) -> None:
    caller = socket.socket(udp.family_of(local))
    caller.setblocking(False)

    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            with contextlib.suppress(BlockingIOError):
                caller.connect(event.local)
            machine.order(Dial(2, event.local, address))

    with caller, plain_listener(local.host) as (_, address):
        machine = Recorder(react).order(Listen(1, local, silent=True))

        def begin(now: Instant) -> None:
            # Loopback answers in microseconds; 300 ms without an answer are silence.
            machine.due = now + 300 * MILLISECOND

        run(machine, lambda: machine.deadlines, begin=begin)
        assert machine.one(Connected, 2).local == machine.one(Opened, 1).local
        assert not machine.all(Accepted)
        # Neither established nor refused: the SYN is still unanswered.
        assert caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        with pytest.raises(OSError, match="not connected"):
            caller.getpeername()


@linux_only
def test_simultaneous_open_completes_on_silent_ports(run: Runner) -> None:
    # Both ends ignore bare SYNs and dial the other: the SYNs cross.
    one, two = (Address(LOCALHOST, free_tcp_port()) for _ in range(2))
    machine = Recorder().order(
        Listen(1, one, silent=True),
        Listen(2, two, silent=True),
        Dial(3, one, two),
        Dial(4, two, one),
    )
    run(machine, lambda: len(machine.all(Connected)) == 2)
    assert machine.one(Connected, 3) == Connected(3, one, two)
    assert machine.one(Connected, 4) == Connected(4, two, one)
    assert not machine.all(Accepted)


def test_where_silence_is_not_to_be_had_it_is_said(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "_LINUX", False)
    machine = Recorder().order(Listen(1, ANY, silent=True))
    run(machine, lambda: machine.heard)
    assert machine.one(Closed, 1).cause is Cause.NOT_PERMITTED


def test_a_stream_with_much_to_say_leaves_others_their_turn(run: Runner) -> None:
    with socket.socket() as eager:

        def react(machine: Recorder, event: Told) -> None:
            match event:
                case Opened(2):
                    eager.connect(machine.one(Opened, 1).local)
                    eager.setblocking(False)
                    assert eager.send(bytes(100_000)) == 100_000
                case Accepted():
                    udp = machine.one(Opened, 2).local
                    machine.order(Transmit(b"x", udp, udp))

        machine = Recorder(react).order(Listen(1, ANY), OpenUdp(2, ANY))
        run(machine, lambda: len(machine.bytes_on(-1)) == 100_000 and machine.all(Received))
    kinds = [type(event) for event in machine.heard]
    assert kinds.index(Received) < kinds.index(Arrived) + 2


def test_a_peer_that_asks_and_does_not_read_is_held_back(run: Runner) -> None:
    factor, sent, received = 5, 0, 0

    def ask_and_only_then_read(address: Address) -> None:
        nonlocal sent, received
        with socket.create_connection(address, timeout=0.3) as peer:
            with contextlib.suppress(TimeoutError):
                while True:
                    sent += peer.send(bytes(1 << 16))
            peer.settimeout(PATIENCE)
            while received < sent * factor and (data := peer.recv(1 << 20)):
                received += len(data)

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(local=address):
                threading.Thread(target=ask_and_only_then_read, args=(address,)).start()
            case Arrived(handle, data):
                machine.order(Write(handle, data * factor))

    machine = Recorder(react).order(Listen(1, ANY))
    run(machine, lambda: machine.all(Closed))
    assert received == sent * factor
    assert machine.one(Closed).cause is Cause.END_OF_STREAM


# TLS. ---------------------------------------------------------------------------------------------


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_tls_on_both_sides(run: Runner, certificate: Path) -> None:
    port = free_tcp_port()
    payload = os.urandom(300_000)

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address, "stun.example"))
            case Connected(2):
                machine.order(Write(2, payload))
            case Arrived(handle) if handle < 0 and len(machine.bytes_on(handle)) == len(payload):
                machine.order(Write(handle, b"thanks"), Shut(handle))

    machine = Recorder(react).order(Listen(1, Address(LOCALHOST, port)))
    run(
        machine,
        lambda: machine.all(Closed),
        tls=ssl.create_default_context(cafile=str(certificate)),
        tls_ports={port: server_context(certificate)},
    )
    assert machine.bytes_on(-1) == payload
    assert machine.bytes_on(2) == b"thanks"
    assert machine.one(Closed, 2).cause is Cause.END_OF_STREAM


@pytest.mark.parametrize(
    ("name", "trusted", "complaint"),
    [
        ("other.example", True, "not valid for 'other.example'"),
        ("stun.example", False, "self-signed certificate"),
        ("", True, "server_hostname cannot be an empty string"),
    ],
    ids=["another name", "not trusted", "no name"],
)
def test_a_certificate_that_does_not_prove_the_name(
    run: Runner, certificate: Path, name: str, trusted: bool, complaint: str
) -> None:
    port = free_tcp_port()

    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            machine.order(Dial(2, ANY, event.local, name))

    machine = Recorder(react).order(Listen(1, Address(LOCALHOST, port)))
    cafile = str(certificate) if trusted else None
    run(
        machine,
        lambda: machine.all(Closed),
        tls=ssl.create_default_context(cafile=cafile),
        tls_ports={port: server_context(certificate)},
    )
    closed = machine.one(Closed, 2)
    assert closed.cause is Cause.TLS_FAILED
    assert complaint in closed.detail
    assert not machine.all(Connected)
    assert not machine.all(Accepted)


def test_dialling_tls_where_something_else_answers(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address, "stun.example"))
            case Accepted(handle=handle):
                machine.order(Write(handle, b"220 mail.example ESMTP\r\n"))

    machine = Recorder(react).order(Listen(1, ANY))
    run(machine, lambda: machine.all(Closed, 2))
    assert machine.one(Closed, 2).cause is Cause.TLS_FAILED


def test_plain_bytes_at_a_tls_port_are_counted_and_nothing_is_accepted(
    run: Runner, certificate: Path
) -> None:
    port = free_tcp_port()

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address))
            case Connected(2):
                machine.order(Write(2, b"GET / HTTP/1.0\r\n\r\n"))

    machine = Recorder(react).order(Listen(1, Address(LOCALHOST, port)))
    run(machine, lambda: machine.all(Closed), tls_ports={port: server_context(certificate)})
    assert not machine.all(Accepted)
    assert any(what.startswith("TLS handshake failed") for what in run.counters)


def test_a_tls_handshake_that_never_ends_is_given_up(
    run: Runner, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HANDSHAKE", 30 * MILLISECOND)
    port = free_tcp_port()

    def react(machine: Recorder, event: Told) -> None:
        if isinstance(event, Opened):
            machine.order(Dial(2, ANY, event.local))

    machine = Recorder(react).order(Listen(1, Address(LOCALHOST, port)))
    run(machine, lambda: machine.all(Closed, 2), tls_ports={port: server_context(certificate)})
    assert run.counters["TLS handshake failed: took too long"] == 1


def test_many_tls_handshakes_at_once_and_the_oldest_gives_way(
    run: Runner, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HANDSHAKES", 2)
    port = free_tcp_port()

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(local=address):
                machine.order(Dial(2, ANY, address))
            case Connected(handle, remote=address) if handle < 4:
                machine.order(Dial(handle + 1, ANY, address))

    machine = Recorder(react).order(Listen(1, Address(LOCALHOST, port)))
    run(machine, lambda: machine.all(Closed), tls_ports={port: server_context(certificate)})
    assert machine.one(Closed).handle == 2
    assert run.counters["TLS handshake failed: gave way to a newer one"] == 1


# Time and events. ---------------------------------------------------------------------------------


def test_deadlines_come_on_time_and_not_before(run: Runner) -> None:
    machine = Recorder()

    def begin(now: Instant) -> None:
        machine.due = now + 50 * MILLISECOND

    run(machine, lambda: machine.deadlines, begin=begin)
    assert len(machine.deadlines) == 1


def test_a_deadline_that_moves_away_is_followed(run: Runner) -> None:
    machine = Recorder()
    first: list[Instant] = []

    def react(recorder: Recorder, event: Told) -> None:
        first.append(recorder.due or 0)
        recorder.due = (recorder.due or 0) + 30 * MILLISECOND

    machine.react = react

    def begin(now: Instant) -> None:
        machine.due = now + 30 * MILLISECOND
        machine.order(OpenUdp(1, ANY))

    run(machine, lambda: machine.deadlines, begin=begin)
    assert machine.deadlines[0] >= first[0] + 30 * MILLISECOND


def test_a_deadline_long_past_comes_at_once_and_once(run: Runner) -> None:
    machine = Recorder()

    def begin(now: Instant) -> None:
        machine.due = now - 5 * SECOND

    run(machine, lambda: machine.deadlines, begin=begin)
    assert len(machine.deadlines) == 1


def test_what_is_no_order_is_told_in_order(run: Runner) -> None:
    machine = Recorder().order("first", OpenUdp(1, ANY), "second")
    run(machine, lambda: len(run.told) == 2)
    assert run.told == ["first", "second"]


def test_orders_given_while_an_event_is_told_are_carried_out(run: Runner) -> None:
    class Telling(list[str]):
        def append(self, event: str) -> None:
            super().append(event)
            machine.order(OpenUdp(1, ANY))
            run.driver.flush()

    run.told = Telling()
    machine = Recorder().order("go")
    run(machine, lambda: machine.heard)
    assert machine.one(Opened, 1)


def test_closing_while_an_event_is_told_ends_it(run: Runner) -> None:
    class Closing(list[str]):
        def append(self, event: str) -> None:
            super().append(event)
            run.driver.close()

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(local=address):
                machine.order(*(Transmit(b"x", address, address) for _ in range(3)))
            case Received():
                machine.order("heard")

    run.told = Closing()
    machine = Recorder(react).order(OpenUdp(1, ANY), OpenUdp(2, ANY))
    run(machine, lambda: run.told)
    assert run.told == ["heard"]


def test_a_handle_in_use_is_a_mistake_of_the_machine(run: Runner) -> None:
    machine = Recorder().order(OpenUdp(1, ANY), Listen(1, ANY))
    with pytest.raises(UsageError, match="socket 1 is open already"):
        run(machine, lambda: False, timeout=0.1)


def test_shutting_what_is_not_open_is_no_mistake(run: Runner) -> None:
    machine = Recorder().order(Shut(7), Write(7, b"x"), "done")
    run(machine, lambda: run.told)
    assert machine.heard == []
