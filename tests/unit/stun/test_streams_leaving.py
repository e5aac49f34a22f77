"""How streams end under both drivers: nothing that was written is lost, nobody is waited for long.

And how they begin: nothing that came early is lost either.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stun import streams, tcp
from stun.hello import ALERT_NO_APPLICATION_PROTOCOL
from stun.sansio import (
    MILLISECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Hold,
    Listen,
    Opened,
    Security,
    Shut,
    Write,
)
from stun.tls import ClientTls, ServerTls
from tools.driving import PATIENCE, Recorder, Runner, Told, beside, connect, free_port

LOCALHOST = "127.0.0.1"
ANY = Address(LOCALHOST, 0)
LAST_WORDS = os.urandom(100_000)
STUN = bytes.fromhex("000100002112a442") + bytes(12)


def say_and_shut(machine: Recorder, event: Told) -> None:
    """Answer the first octets, and close though more may have come."""
    if isinstance(event, Arrived):
        machine.order(Write(event.handle, LAST_WORDS), Shut(event.handle), "shut")


def read_all(sock: socket.socket) -> bytes:
    said = b""
    while part := sock.recv(65536):
        said += part
    return said


def leaving(run: Runner) -> int:
    return len(run.driver._sockets.streams._leaving)


def nobody_left(run: Runner) -> Callable[[], bool]:
    return lambda: bool(run.told) and not leaving(run)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_last_words_reach_a_peer_that_had_more_to_say(
    run: Runner, certificate: Path, secure: bool
) -> None:
    address = Address(LOCALHOST, free_port())

    def client() -> None:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(connect(address))
            if secure:
                context = ClientTls(certificate).streams
                wrapped = context.wrap_socket(sock, server_hostname="stun.example")
                sock = stack.enter_context(wrapped)
            # Far more than the machine takes, before anything of the answer is read.
            sock.sendall(bytes(500_000))
            assert read_all(sock) == LAST_WORDS
            # It may go on: nobody reads it, and nobody minds.
            sock.sendall(b"thanks")

    machine = Recorder(say_and_shut).order(
        Listen(1, address, security=Security.REQUIRED if secure else Security.NONE)
    )
    beside(run, machine, client, nobody_left(run), server_tls=ServerTls(certificate))
    assert len(machine.all(Arrived)) == 1
    assert not machine.all(Closed)


def test_a_peer_that_sends_without_end_is_reset(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "DISCARD_LIMIT", 100_000)
    address = Address(LOCALHOST, free_port())
    sent = 0

    def client() -> None:
        nonlocal sent
        with connect(address) as sock, contextlib.suppress(ConnectionError):
            while True:
                sent += sock.send(bytes(50_000))

    machine = Recorder(say_and_shut).order(Listen(1, address))
    beside(run, machine, client, nobody_left(run))
    assert sent > 100_000


@pytest.mark.parametrize("sends", [False, True])
def test_a_peer_that_does_not_close_is_not_waited_for(
    run: Runner, monkeypatch: pytest.MonkeyPatch, sends: bool
) -> None:
    monkeypatch.setattr(streams, "LINGER", 100 * MILLISECOND)
    address = Address(LOCALHOST, free_port())
    ended = False

    def client() -> None:
        with connect(address) as sock:
            sock.sendall(b"x")
            assert read_all(sock) == LAST_WORDS
            end = time.monotonic() + PATIENCE
            while sends and time.monotonic() < end:  # an octet now and then gains no time
                try:
                    sock.send(b"x")
                except ConnectionError:
                    break
                time.sleep(0.002)
            while not ended and time.monotonic() < end:
                time.sleep(0.002)

    def done() -> bool:
        nonlocal ended
        ended = ended or nobody_left(run)()
        return ended

    beside(run, Recorder(say_and_shut).order(Listen(1, address)), client, done)


def test_no_more_than_some_leave_at_once(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LEAVING", 3)
    address = Address(LOCALHOST, free_port())
    seen = [0]

    def client() -> None:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(address)) for _ in range(8)]
            for sock in socks:
                sock.sendall(b"x")
            for sock in socks:
                assert read_all(sock) == LAST_WORDS

    def done() -> bool:
        seen.append(leaving(run))
        return run.told == ["shut"] * 8 and not leaving(run)

    beside(run, Recorder(say_and_shut).order(Listen(1, address)), client, done)
    assert max(seen) <= 3


def test_an_alert_reaches_a_client_that_says_more(run: Runner, certificate: Path) -> None:
    address = Address(LOCALHOST, free_port())
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="stun.example").do_handshake()

    def client() -> None:
        with connect(address) as sock:
            sock.sendall(outgoing.read() + bytes(500_000))
            assert read_all(sock) == ALERT_NO_APPLICATION_PROTOCOL

    machine = Recorder().order(Listen(1, address, security=Security.REQUIRED))
    ended = "not accepted: TLS client that offers other protocols only (ALPN)"
    beside(
        run,
        machine,
        client,
        lambda: ended in run.driver.counters and not leaving(run),
        server_tls=ServerTls(certificate),
    )
    assert not machine.all(Accepted)


def test_what_was_not_sent_does_not_look_like_the_end(run: Runner) -> None:
    """A slow reader must not take a part for the whole."""
    address = Address(LOCALHOST, free_port())
    given_up = threading.Event()

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Accepted(handle=handle):
                machine.order(*[Write(handle, bytes(1 << 16)) for _ in range(400)])
            case Closed():
                given_up.set()

    def read_late() -> None:
        with connect(address) as sock:
            assert given_up.wait(PATIENCE)
            read_all(sock)

    def client() -> None:
        # Also of connect(): the server may be done before that has looked at the outcome.
        with pytest.raises(ConnectionResetError):
            read_late()

    machine = Recorder(react).order(Listen(1, address))
    beside(run, machine, client, lambda: machine.all(Closed))
    assert machine.one(Closed).detail == "peer does not read"


def test_a_stream_that_both_shut_is_over_at_once(run: Runner) -> None:
    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address))
            case Connected(2):
                machine.order(Shut(2))
            case Accepted(1, handle):
                machine.order(Shut(handle), "shut")

    begin = time.monotonic()
    run(Recorder(react).order(Listen(1, ANY)), nobody_left(run))
    assert time.monotonic() - begin < streams.LINGER / 2e9


# Beginnings. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_what_comes_with_the_beginning_waits_for_a_machine_that_holds(
    run: Runner, certificate: Path, secure: bool
) -> None:
    """A client's first octets are read before it is known what the client is."""

    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address, "stun.example" if secure else None))
            case Connected(2):
                machine.order(Write(2, STUN))
            case Accepted(1, handle):
                machine.order(Hold(handle))
                machine.due = machine.at + 50 * MILLISECOND

    machine = Recorder(react).order(Listen(1, ANY, security=Security.DETECT))
    told_while_held = -1

    def done() -> bool:
        nonlocal told_while_held
        if machine.deadlines and told_while_held < 0:
            told_while_held = len(machine.all(Arrived))
            machine.order(Hold(-1, held=False))
        return machine.bytes_on(-1) == STUN

    run(machine, done, tls=ClientTls(certificate), server_tls=ServerTls(certificate))
    assert told_while_held == 0


def test_a_dial_that_is_held_gets_through_its_handshake(run: Runner, certificate: Path) -> None:
    def react(machine: Recorder, event: Told) -> None:
        match event:
            case Opened(1, address):
                machine.order(Dial(2, ANY, address, "stun.example"), Hold(2))
            case Accepted(1, handle):
                machine.order(Write(handle, STUN), Shut(handle))
            case Connected(2):
                machine.due = machine.at + 50 * MILLISECOND

    machine = Recorder(react).order(Listen(1, ANY, security=Security.REQUIRED))

    def done() -> bool:
        if machine.deadlines and not machine.all(Arrived):
            machine.order(Hold(2, held=False))
        return bool(machine.all(Closed, 2))

    run(machine, done, tls=ClientTls(certificate), server_tls=ServerTls(certificate))
    assert machine.bytes_on(2) == STUN
    assert machine.one(Closed, 2).cause is Cause.END_OF_STREAM
