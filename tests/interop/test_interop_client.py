"""Our client asks coturn, and a client that others wrote (aioice) meets our authenticator."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stun.attributes import (
    LIFETIME,
    MESSAGE_INTEGRITY_SHA256,
    REQUESTED_TRANSPORT,
    XOR_MAPPED_ADDRESS,
    XOR_RELAYED_ADDRESS,
)
from stun.auth_client import AuthenticationFailed
from stun.auth_server import Authenticator, Rejected, StaticUsers
from stun.blocking import Driver
from stun.client import Client, Config, Event, Failed, FailureCause, Reply, mapped_address
from stun.codec import decode, encode
from stun.credentials import LongTerm, ShortTerm, rest_credentials
from stun.errors import ErrorResponse
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Method
from stun.sansio import (
    Address,
    Connected,
    Dial,
    Instant,
    Opened,
    OpenUdp,
    Received,
    SocketEvent,
    Transmit,
)

HOST, ANY_PORT = "127.0.0.1", 0
USER, REALM = LongTerm("user", "pass"), "example.org"
SECRET = "a secret that coturn and we share"


class Asker:
    """A client with one socket of its own: UDP, TCP, or TLS where a name is given."""

    def __init__(self, server: Address, transport: str, name: str = "", **config: Any) -> None:
        self.client = Client(Config(**config), entropy=os.urandom)
        self.server = server
        self.local: Address | None = None
        self._outputs: deque[Any] = deque()
        local = Address(HOST, ANY_PORT)
        self._udp = transport == "udp"
        self._outputs.append(
            OpenUdp(1, local) if self._udp else Dial(1, local, server, name or None)
        )

    def ask(self, message: Message | None, credentials: LongTerm | None, now: Instant) -> bytes:
        assert self.local is not None
        if not self._udp:
            return self.client.request_over(1, message, credentials=credentials, now=now)
        return self.client.request(
            message,
            destination=self.server,
            source=self.local,
            credentials=credentials,
            accept_from=frozenset({self.server}),
            now=now,
        )

    def receive(self, packet: Received, now: Instant) -> None:
        self.client.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        if isinstance(event, Opened | Connected):
            self.local = event.local
        self.client.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        self.client.on_deadline(now)

    def deadline(self) -> Instant | None:
        return self.client.deadline()

    def poll(self) -> Any:
        return self._outputs.popleft() if self._outputs else self.client.poll()


class Conversation:
    """An :class:`Asker` that runs."""

    def __init__(
        self, server: Address, transport: str, *, tls: ssl.SSLContext, **config: Any
    ) -> None:
        name = "stun.example" if transport == "tls" else ""
        self.asker = Asker(server, transport, name, **config)
        self.events: list[Event] = []
        self.driver: Driver[Event] = Driver(self.asker, on_event=self.events.append, tls=tls)
        assert self.driver.run_until(lambda: self.asker.local is not None, 5)

    def __call__(
        self, message: Message | None = None, credentials: LongTerm | None = None
    ) -> Reply | Failed:
        name = self.asker.ask(message, credentials, self.driver.now())
        self.driver.flush()
        assert self.driver.run_until(lambda: bool(self.events), 10), "no answer"
        (event,) = self.events
        self.events.clear()
        assert isinstance(event, Reply | Failed)
        assert event.transaction_id == name
        return event


def allocate() -> Message:
    return Message.request(Method.ALLOCATE, os.urandom(12)).add(REQUESTED_TRANSPORT, 17)


def refresh(lifetime: int) -> Message:
    return Message.request(Method.REFRESH, os.urandom(12)).add(LIFETIME, lifetime)


class Coturn:
    def __init__(self, port: int, tls_port: int, certificate: Path) -> None:
        self.addresses = {
            "udp": Address(HOST, port),
            "tcp": Address(HOST, port),
            "tls": Address(HOST, tls_port),
        }
        self.tls = ssl.create_default_context(cafile=str(certificate))
        self.open: list[Conversation] = []

    def __call__(self, transport: str = "udp", **config: Any) -> Conversation:
        server = self.addresses[transport]
        conversation = Conversation(server, transport, tls=self.tls, **config)
        self.open.append(conversation)
        return conversation


@contextmanager
def coturn(program: str, certificate: Path, folder: Path, *options: str) -> Iterator[Coturn]:
    probe = socket.socket(), socket.socket()
    for each in probe:
        each.bind((HOST, 0))
    port, tls_port = (each.getsockname()[1] for each in probe)
    for each in probe:
        each.close()
    command = (
        f"{program} -n --no-cli --log-file stdout --simple-log -L {HOST} -r {REALM}"
        f" -p {port} --tls-listening-port {tls_port} --cert {certificate} --pkey {certificate}"
        f" --pidfile {folder / 'pid'} --userdb {folder / 'db'}"
    )
    log = (folder / "log").open("wb")
    process = subprocess.Popen([*command.split(), *options], stdout=log, stderr=log)
    try:
        running = Coturn(port, tls_port, certificate)
        for _ in range(200):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                for address in (running.addresses["tcp"], running.addresses["tls"]):
                    socket.create_connection(address, 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield running
        for conversation in running.open:
            conversation.driver.close()
    finally:
        process.terminate()
        process.wait(10)
        log.close()


@pytest.fixture(scope="module")
def with_users(
    require_peer: Callable[..., str], certificate: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Coturn]:
    """coturn that knows a user, and whose nonces are stale after a second."""
    program = require_peer("turnserver", "coturn")
    folder = tmp_path_factory.mktemp("coturn")
    options = ("--lt-cred-mech", "-u", "user:pass", "--stale-nonce=1", "--fingerprint")
    with coturn(program, certificate, folder, *options) as running:
        yield running


@pytest.fixture(scope="module")
def with_secret(
    require_peer: Callable[..., str], certificate: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Coturn]:
    """coturn that shares a secret with whoever hands out time-limited credentials."""
    program = require_peer("turnserver", "coturn")
    folder = tmp_path_factory.mktemp("coturn")
    options = ("--use-auth-secret", f"--static-auth-secret={SECRET}")
    with coturn(program, certificate, folder, *options) as running:
        yield running


TRANSPORTS = pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])


@TRANSPORTS
def test_binding(with_users: Coturn, transport: str) -> None:
    ask = with_users(transport)
    for _ in range(3):
        reply = ask()
        assert isinstance(reply, Reply), reply
        assert mapped_address(reply.message) == reply.local == ask.asker.local
        assert reply.source == with_users.addresses[transport]
        assert reply.rtt is not None


def test_binding_with_fingerprint(with_users: Coturn) -> None:
    # coturn adds FINGERPRINT to its answers; a client that demands it is content.
    assert isinstance(with_users(fingerprint=True)(), Reply)


@TRANSPORTS
def test_allocation_with_long_term_credentials(with_users: Coturn, transport: str) -> None:
    ask = with_users(transport)
    reply = ask(allocate(), USER)
    assert isinstance(reply, Reply), reply
    assert reply.authenticated
    relayed = reply.message.get(XOR_RELAYED_ADDRESS)
    assert relayed is not None
    assert relayed.host == HOST
    assert reply.message.get(XOR_MAPPED_ADDRESS) == reply.local
    released = ask(refresh(0), USER)
    assert isinstance(released, Reply), released
    assert released.message.get(LIFETIME) == 0


def test_a_stale_nonce(with_users: Coturn) -> None:
    ask = with_users()
    assert isinstance(ask(allocate(), USER), Reply)
    time.sleep(2.1)
    reply = ask(refresh(600), USER)
    assert isinstance(reply, Reply), reply
    assert reply.authenticated
    # The id of the answer is not that of the request: it was asked again after a 438.
    assert reply.message.transaction_id != reply.transaction_id


@TRANSPORTS
def test_wrong_password(with_users: Coturn, transport: str) -> None:
    failed = with_users(transport)(allocate(), LongTerm("user", "wrong"))
    assert isinstance(failed, Failed)
    assert failed.cause is FailureCause.AUTHENTICATION
    assert isinstance(failed.error, AuthenticationFailed)
    assert failed.error.code == 401


def test_an_error_that_proves_itself(with_users: Coturn) -> None:
    # A refresh of what was never allocated: 437, sealed with the user's key.
    failed = with_users()(refresh(600), USER)
    assert isinstance(failed, Failed)
    assert failed.cause is FailureCause.ERROR_RESPONSE, failed
    assert isinstance(failed.error, ErrorResponse)
    assert failed.error.code == 437


def test_time_limited_credentials(with_secret: Coturn) -> None:
    now = int(time.time())
    reply = with_secret()(allocate(), rest_credentials(SECRET, now + 60, "alice"))
    assert isinstance(reply, Reply), reply
    assert reply.authenticated
    for wrong in (
        rest_credentials(SECRET, now - 60, "alice"),
        rest_credentials("another secret", now + 60, "alice"),
    ):
        failed = with_secret()(allocate(), wrong)
        assert isinstance(failed, Failed)
        assert failed.cause is FailureCause.AUTHENTICATION


# A client that others wrote meets our authenticator. ----------------------------------------------


class Relay(threading.Thread):
    """Answers Allocate and Refresh; everything about authentication is the authenticator's."""

    def __init__(self, authenticator: Authenticator) -> None:
        super().__init__(name="relay")
        self.authenticator = authenticator
        self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.bind((HOST, 0))
        self.socket.settimeout(0.1)
        self.done = threading.Event()
        self.codes: list[int] = []

    def run(self) -> None:
        while not self.done.is_set():
            try:
                data, source = self.socket.recvfrom(65535)
            except TimeoutError:
                continue
            self.socket.sendto(self.answer(decode(data), Address(*source)), source)
        self.socket.close()

    def answer(self, request: Message, source: Address) -> bytes:
        outcome = self.authenticator.validate(request, source, time.monotonic_ns())
        if isinstance(outcome, Rejected):
            self.codes.append(int(outcome.code))
            return encode(outcome.response(request), fingerprint=True)
        self.codes.append(0)
        response = Message.success(request).add(LIFETIME, request.get(LIFETIME) or 0)
        if request.method == Method.ALLOCATE:
            response.add(XOR_RELAYED_ADDRESS, Address(HOST, 50000))
            response.add(XOR_MAPPED_ADDRESS, source)
        return outcome.seal(response, fingerprint=True)


@pytest.mark.parametrize("modern", [True, False], ids=["rfc8489", "rfc5389"])
def test_aioice_allocates(require_module: Callable[..., Any], modern: bool) -> None:
    turn = require_module("aioice.turn", "aioice")
    authenticator = Authenticator(
        REALM,
        StaticUsers({"user": "pass"}, REALM),
        NonceMaker([os.urandom(16)]),
        **({} if modern else {"algorithms": ()}),
        unix_epoch=int(time.time()),
    )
    relay = Relay(authenticator)
    server = relay.socket.getsockname()

    async def talk(password: str) -> tuple[str, int]:
        transport, _ = await turn.create_turn_endpoint(
            asyncio.DatagramProtocol,
            server_addr=server,
            username="user",
            password=password,
            lifetime=600,
        )
        try:
            return transport.get_extra_info("sockname")
        finally:
            transport.close()
            await asyncio.sleep(0.2)

    relay.start()
    try:
        # aioice knows RFC 5389 only: it passes over the offer of algorithms and uses MD5.
        assert asyncio.run(talk("pass")) == (HOST, 50000)
        assert relay.codes == [401, 0, 0]  # the last one is the Refresh that gives it back
        stun = require_module("aioice.stun", "aioice")
        with pytest.raises(stun.TransactionFailed):
            asyncio.run(talk("wrong"))
        assert relay.codes[3:] == [401, 401]
    finally:
        relay.done.set()
        relay.join(5)


def test_aioice_and_short_term_credentials(require_module: Callable[..., Any]) -> None:
    aioice = require_module("aioice.stun", "aioice")
    server, local = Address("192.0.2.1", 1), Address("192.0.2.2", 2)
    client = Client(entropy=os.urandom)
    client.request(destination=server, source=local, now=0, credentials=ShortTerm("a:b", "secret"))
    sent = client.poll()
    assert isinstance(sent, Transmit)
    request = aioice.parse_message(sent.data)
    assert request.attributes["USERNAME"] == "a:b"
    # It has both proofs; an agent of RFC 5389 reads the first and passes over the second.
    assert request.check_message_integrity(b"secret")
    response = aioice.Message(
        message_method=aioice.Method.BINDING,
        message_class=aioice.Class.RESPONSE,
        transaction_id=request.transaction_id,
    )
    response.attributes["XOR-MAPPED-ADDRESS"] = tuple(local)
    response.add_message_integrity(b"secret")
    client.receive(Received(bytes(response), server, local), 1)
    reply = client.poll()
    assert isinstance(reply, Reply), reply
    assert reply.authenticated
    assert mapped_address(reply.message) == local
    # From now on it gets the one proof that it understands.
    client.request(destination=server, source=local, now=2, credentials=ShortTerm("a:b", "secret"))
    again = client.poll()
    assert isinstance(again, Transmit)
    assert not decode(again.data).has(MESSAGE_INTEGRITY_SHA256)
