"""TCP allocations (RFC 6062) of clients with access tokens (RFC 7635), through a turnd process.

What is peculiar: a data connection is another five-tuple, without an allocation, and RFC 7635
section 9 wants no token in its ConnectionBind; the server must find the key by CONNECTION-ID.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import turn
from stun.attributes import (
    ACCESS_TOKEN,
    CONNECTION_ID,
    ERROR_CODE,
    LIFETIME,
    NONCE,
    REALM,
    REQUESTED_TRANSPORT,
    THIRD_PARTY_AUTHORIZATION,
    USERNAME,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
)
from stun.codec import decode, encode
from stun.credentials import LongTerm, ThirdParty
from stun.discovery import Target, Transport
from stun.integrity import check_integrity
from stun.message import Message
from stun.oauth import Contents, TokenKey, timestamp_of
from stun.registry import Class, Method
from stun.sansio import Address
from stun.tls import ClientTls
from tools.certificate import write_self_signed

HOST, NAME = "127.0.0.1", "turn.example"
USER, PASSWORD = "alice", "sesame"
MUCH = 1 << 20
MESSAGES, LENGTH = 20, 800
KEYS = (
    # Those that are built into turnutils_uclient -J, which takes one of them for each request.
    ("north", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDEK", "A256GCM"),
    ("union", "MTIzNDU2Nzg5MDEyMzQ1Ngo=", "A128GCM"),
    ("oldempire", "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIK", "A256GCM"),
)
CONFIGURATION = """
realm = "example.org"

[[listen]]
url = "tcp://127.0.0.1:{port}"

[[listen]]
url = "tls://127.0.0.1:{tls_port}"

[tls]
certificate = "{certificate}"

[relay]
addresses = ["127.0.0.1"]

[peers]
allow = ["127.0.0.1"]

[auth.users]
alice = "sesame"

[auth.oauth]
server_name = "turn.example"
keys = [{keys}]

[log]
format = "json"

[admin]
socket = false
"""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def bearer(kid: str = "north", key_length: int = 20) -> ThirdParty:
    """What an authorization server would give to a client: each time another token."""
    (key,) = (TokenKey.from_base64(*one) for one in KEYS if one[0] == kid)
    mac_key = os.urandom(key_length)
    contents = Contents(mac_key, timestamp_of(time.time()), 3600)
    return ThirdParty(kid, mac_key, key.seal(contents, NAME, os.urandom(12)))


class Turnd:
    """turnd in a process of its own, and its log."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as plain, socket.socket() as secure:
            plain.bind((HOST, 0))
            secure.bind((HOST, 0))
            self.port, self.tls_port = plain.getsockname()[1], secure.getsockname()[1]
        self.certificate = write_self_signed(folder / "certificate.pem", NAME)
        self._log = folder / "log"
        keys = (f'{{kid = "{k}", key = "{o}", algorithm = "{a}"}}' for k, o, a in KEYS)
        configuration = folder / "turnd.toml"
        configuration.write_text(
            CONFIGURATION.format(
                port=self.port,
                tls_port=self.tls_port,
                certificate=self.certificate,
                keys=", ".join(keys),
            )
        )
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "turn.daemon.cli", "--config", str(configuration)],
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        end = time.monotonic() + 20
        while True:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            try:
                for port in (self.port, self.tls_port):
                    socket.create_connection((HOST, port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            assert self._process.wait(20) == 0, self._log.read_text()
        finally:
            self._process.kill()
            self._process.wait()

    def events(self, message: str) -> list[dict[str, Any]]:
        """Return the log's lines of one kind; raises for one that is not a log line."""
        found = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [event for event in found if event["message"] == message]

    def connect(self, credentials: ThirdParty, *, secure: bool = False) -> Any:
        port, transport = (self.port, Transport.TCP)
        if secure:
            port, transport = (self.tls_port, Transport.TLS)
        return turn.connect(
            Target(Address(HOST, port), transport, NAME if secure else None),
            credentials=credentials,
            protocol="tcp",
            tls=ClientTls(self.certificate),
        )


@pytest.fixture
def turnd(tmp_path: Path) -> Iterator[Turnd]:
    server = Turnd(tmp_path)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


class Peer:
    """A peer that listens; its connections come out of a queue."""

    def __init__(self) -> None:
        self.address = Address("", 0)
        self.accepted: asyncio.Queue[Streams] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Peer:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.append(writer)
            self.accepted.put_nowait((reader, writer))

        self._server = await asyncio.start_server(take, HOST, 0)
        self.address = Address(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()


async def put(writer: asyncio.StreamWriter, octets: bytes) -> None:
    """Write in pieces of all sizes."""
    at, size = 0, 1
    while at < len(octets):
        writer.write(octets[at : at + size])
        await writer.drain()
        at, size = at + size, size * 3 % 50_021


async def unchanged_both_ways(one: Streams, other: Streams, rng: random.Random) -> None:
    """Have both ends of a relayed connection send much at the same time, and compare it."""
    ours, theirs = rng.randbytes(MUCH), rng.randbytes(MUCH)
    _, _, came, went = await asyncio.gather(
        put(one[1], ours),
        put(other[1], theirs),
        one[0].readexactly(MUCH),
        other[0].readexactly(MUCH),
    )
    assert went == ours
    assert came == theirs


# Our client. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kid", ["north", "union"])
@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
async def test_a_client_that_connects(
    turnd: Turnd, rng: random.Random, secure: bool, kid: str
) -> None:
    async with Peer() as peer, turnd.connect(bearer(kid), secure=secure) as relay:
        connection = await relay.open_connection(peer.address)
        accepted = await peer.accepted.get()
        # RFC 6062 section 5.2: "The local endpoint is the relayed transport address".
        assert Address(*accepted[1].get_extra_info("peername")) == relay.relayed_address
        await unchanged_both_ways(connection, accepted, rng)
        connection[1].close()
        assert await accepted[0].read() == b""
    turnd.stop()
    (created,) = turnd.events("allocation created")
    assert (created["user"], created["protocol"]) == (kid, "tcp")
    (ended,) = turnd.events("allocation ended")
    assert (ended["octets_from_client"], ended["octets_to_client"]) == (MUCH, MUCH)


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
async def test_a_peer_that_connects(turnd: Turnd, rng: random.Random, secure: bool) -> None:
    async with turnd.connect(bearer(), secure=secure) as relay:
        await relay.permit(HOST)
        peer = await asyncio.open_connection(*relay.relayed_address)
        reader, writer, address = await anext(relay.accept())
        assert address == Address(*peer[1].get_extra_info("sockname"))
        await unchanged_both_ways((reader, writer), peer, rng)
        peer[1].close()
        assert await reader.read() == b""


async def test_connections_before_and_after_a_refresh(turnd: Turnd, rng: random.Random) -> None:
    async with Peer() as peer, turnd.connect(bearer()) as relay:
        first = await relay.open_connection(peer.address)
        await relay.refresh()
        await relay.permit(HOST)
        second = await asyncio.open_connection(*relay.relayed_address)
        reader, writer, _ = await anext(relay.accept())
        await asyncio.gather(
            unchanged_both_ways(first, await peer.accepted.get(), rng),
            unchanged_both_ways((reader, writer), second, rng),
        )
        for _, closing in (first, second):
            closing.close()


async def test_clients_of_one_authorization_server_at_a_time(
    turnd: Turnd, rng: random.Random
) -> None:
    # Both have the username north.
    async with Peer() as peer, turnd.connect(bearer()) as one, turnd.connect(bearer()) as other:
        pairs = []
        for relay in (one, other):
            connection = await relay.open_connection(peer.address)
            accepted = await peer.accepted.get()
            assert Address(*accepted[1].get_extra_info("peername")) == relay.relayed_address
            pairs.append((connection, accepted))
        await asyncio.gather(*(unchanged_both_ways(*pair, rng) for pair in pairs))
        for connection, _ in pairs:
            connection[1].close()


# Octet by octet. ----------------------------------------------------------------------------------


class Raw:
    """A client that is led by hand: one connection to turnd and what it is signed with."""

    def __init__(self, turnd: Turnd, streams: Streams) -> None:
        self._turnd = turnd
        self.streams = streams
        self._nonce = b""

    @classmethod
    async def open(cls, turnd: Turnd) -> Raw:
        return cls(turnd, await asyncio.open_connection(HOST, turnd.port))

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.streams[1].close()

    async def receive(self) -> Message:
        header = await self.streams[0].readexactly(20)
        return decode(header + await self.streams[0].readexactly(int.from_bytes(header[2:4])))

    async def ask(
        self,
        request: Message,
        username: str = "",
        key: bytes = b"",
        token: bytes = b"",
    ) -> Message:
        """Send a request, with a proof unless ``username`` is empty, and return the response."""
        if username:
            if not self._nonce:
                challenge = await self.ask(Message.request(request.method, os.urandom(12)))
                assert challenge.get(THIRD_PARTY_AUTHORIZATION) == NAME
                self._nonce = challenge.get(NONCE) or b""
            request.add(USERNAME, username).add(REALM, "example.org").add(NONCE, self._nonce)
        if token:
            request.attributes.append((ACCESS_TOKEN.code, token))
        self.streams[1].write(encode(request, key=key) if username else encode(request))
        response = await self.receive()
        assert response.transaction_id == request.transaction_id
        if response.message_class is Class.SUCCESS:
            assert check_integrity(response, key), "the response is not proved with the same key"
        return response

    async def allocate(self, credentials: ThirdParty) -> Address:
        request = make(Method.ALLOCATE).add(REQUESTED_TRANSPORT, 6)
        response = await self.with_token(request, credentials)
        relayed = response.get(XOR_RELAYED_ADDRESS)
        assert relayed is not None, response.get(ERROR_CODE)
        return relayed

    async def with_token(self, request: Message, credentials: ThirdParty) -> Message:
        return await self.ask(request, credentials.kid, credentials.mac_key, credentials.token)

    async def without_token(self, request: Message, credentials: ThirdParty) -> Message:
        """RFC 7635 section 9 wants it "only in Allocate and Refresh requests"."""
        return await self.ask(request, credentials.kid, credentials.mac_key)


def make(method: Method) -> Message:
    return Message.request(method, os.urandom(12))


def bind(identifier: int) -> Message:
    return make(Method.CONNECTION_BIND).add(CONNECTION_ID, identifier)


def code_of(response: Message) -> int:
    error = response.get(ERROR_CODE)
    return 0 if error is None else error.code


@pytest.mark.parametrize("key_length", [16, 20, 32])
@pytest.mark.parametrize("style", ["as RFC 7635 says", "with the token"])
async def test_connect_and_connection_bind(
    turnd: Turnd, rng: random.Random, style: str, key_length: int
) -> None:
    credentials = bearer(key_length=key_length)
    async with Peer() as peer, await Raw.open(turnd) as control, await Raw.open(turnd) as data:
        say = Raw.with_token if style == "with the token" else Raw.without_token
        relayed = await control.allocate(credentials)
        request = make(Method.CONNECT).add(XOR_PEER_ADDRESS, peer.address)
        connected = await say(control, request, credentials)
        identifier = connected.get(CONNECTION_ID)
        assert identifier, code_of(connected)
        accepted = await peer.accepted.get()
        assert Address(*accepted[1].get_extra_info("peername")) == relayed
        accepted[1].write(b"early")
        assert code_of(await say(data, bind(identifier), credentials)) == 0
        # From here on it is the peer that speaks, and whose octets come.
        assert await data.streams[0].readexactly(5) == b"early"
        await unchanged_both_ways(data.streams, accepted, rng)
        data.streams[1].close()
        assert await accepted[0].read() == b""


async def test_a_connection_attempt(turnd: Turnd, rng: random.Random) -> None:
    credentials = bearer()
    async with await Raw.open(turnd) as control, await Raw.open(turnd) as data:
        relayed = await control.allocate(credentials)
        request = make(Method.CREATE_PERMISSION).add(XOR_PEER_ADDRESS, Address(HOST, 0))
        assert code_of(await control.without_token(request, credentials)) == 0
        peer = await asyncio.open_connection(*relayed)
        attempt = await control.receive()
        assert (attempt.method, attempt.message_class) == (
            Method.CONNECTION_ATTEMPT,
            Class.INDICATION,
        )
        assert attempt.get(XOR_PEER_ADDRESS) == Address(*peer[1].get_extra_info("sockname"))
        identifier = attempt.get(CONNECTION_ID)
        assert identifier
        assert code_of(await data.without_token(bind(identifier), credentials)) == 0
        await unchanged_both_ways(data.streams, peer, rng)
        peer[1].close()
        assert await data.streams[0].read() == b""


async def test_who_may_not_take_the_connection(turnd: Turnd, rng: random.Random) -> None:
    rightful, other, elsewhere = bearer(), bearer(), bearer("union")
    stranger = LongTerm(USER, PASSWORD).key("example.org")
    async with Peer() as peer, await Raw.open(turnd) as control:
        await control.allocate(rightful)
        request = make(Method.CONNECT).add(XOR_PEER_ADDRESS, peer.address)
        identifier = (await control.without_token(request, rightful)).get(CONNECTION_ID)
        assert identifier
        accepted = await peer.accepted.get()
        for expected, arguments in (
            # Whoever says nothing is asked for a token, or a password.
            (401, ()),
            # Another token of the same authorization server: the same username, another client.
            (401, (other.kid, other.mac_key)),
            (441, (other.kid, other.mac_key, other.token)),
            (441, (elsewhere.kid, elsewhere.mac_key, elsewhere.token)),
            # Somebody else's token, of which the key is not known.
            (401, (rightful.kid, other.mac_key, rightful.token)),
            (441, (USER, stranger)),
        ):
            async with await Raw.open(turnd) as data:
                assert code_of(await data.ask(bind(identifier), *arguments)) == expected
        # None of them has spoilt it.
        async with await Raw.open(turnd) as data:
            assert code_of(await data.without_token(bind(identifier), rightful)) == 0
            await unchanged_both_ways(data.streams, accepted, rng)


async def test_a_token_that_was_renewed(turnd: Turnd, rng: random.Random) -> None:
    # RFC 7635 section 4: the client gets "a new token before the old one expires".
    old, new = bearer(), bearer()
    async with Peer() as peer, await Raw.open(turnd) as control:
        await control.allocate(old)
        refreshed = await control.with_token(make(Method.REFRESH), new)
        assert refreshed.get(LIFETIME), code_of(refreshed)
        request = make(Method.CONNECT).add(XOR_PEER_ADDRESS, peer.address)
        identifier = (await control.without_token(request, new)).get(CONNECTION_ID)
        assert identifier
        accepted = await peer.accepted.get()
        async with await Raw.open(turnd) as data:
            assert code_of(await data.without_token(bind(identifier), old)) == 401
        async with await Raw.open(turnd) as data:
            assert code_of(await data.without_token(bind(identifier), new)) == 0
            await unchanged_both_ways(data.streams, accepted, rng)


# coturn's client. ---------------------------------------------------------------------------------


@pytest.mark.parametrize("passive", [False, True], ids=["active", "passive"])
def test_a_client_of_coturns(turnd: Turnd, require_peer: Callable[..., str], passive: bool) -> None:
    client = require_peer("turnutils_uclient", "coturn")
    command = [client, "-J", "-T", "-n", str(MESSAGES), "-l", str(LENGTH), "-z", "5"]
    command += ["-P", "-m", "2"] if passive else []
    done = subprocess.run(
        [*command, "-p", str(turnd.port), HOST],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        errors="replace",
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    totals = re.findall(r"start_mclient: tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", said)
    assert totals, said
    sent, received = map(int, totals[-1])
    assert sent == 2 * MESSAGES
    # It takes messages that arrive together for one.  When it waits for peers, they are plain
    # sockets of its own: what they send is counted, what they get is not.  With passwords, and with
    # coturn's server, it is the same.
    relayed = MESSAGES if passive else sent
    assert received >= relayed * 0.9
    turnd.stop()
    created = turnd.events("allocation created")
    assert {event["user"] for event in created} <= {kid for kid, _, _ in KEYS}
    assert {event["protocol"] for event in created} == {"tcp"}
    ended = turnd.events("allocation ended")
    brought = sum(event["octets_from_client"] for event in ended)
    assert brought == sum(event["octets_to_client"] for event in ended) == relayed * LENGTH
