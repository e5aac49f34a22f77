"""Access tokens (RFC 7635) between coturn and us: made by either, opened by the other, and used."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import sqlite3
import subprocess
import time
from collections import deque
from contextlib import closing
from typing import Any

import pytest

from stun import aio
from stun.attributes import (
    LIFETIME,
    REQUESTED_TRANSPORT,
    THIRD_PARTY_AUTHORIZATION,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
)
from stun.auth_client import AuthenticationFailed
from stun.blocking import Driver
from stun.client import Client, Event, Failed, Reply
from stun.credentials import ThirdParty
from stun.discovery import Transport
from stun.message import Message
from stun.nonce import NonceMaker
from stun.oauth import Contents, TokenAlgorithm, TokenKey, TokenRefused, Tokens, timestamp_of
from stun.registry import Method
from stun.sansio import SECOND, Address, Instant, Opened, OpenUdp, Received, SocketEvent
from stun.users import StaticUsers
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.events import AllocationCreated
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

HOST = "127.0.0.1"
SERVER_NAME = "blackdow.carleon.gov"
LONG_TERM = b"HGkj32KJGiuy098sdfaqbNjOiaz71923"  # of appendix A
MADE = 1_400_000_000
KEYS = {
    name: TokenKey("oldempire", LONG_TERM, TokenAlgorithm.named(name), MADE)
    for name in ("A256GCM", "A128GCM")
}
NONCE = b"h4j3k2l2n4b5"


def encoded(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


@pytest.fixture(scope="module")
def turnutils_oauth(require_peer):
    program = require_peer("turnutils_oauth", "coturn")

    def run(mode: str, algorithm: str, *options: str, server: str = SERVER_NAME) -> Any:
        command = [program, mode, "-v", f"--server-name={server}"]
        command += ["--auth-key-id=oldempire", f"--auth-key={encoded(LONG_TERM)}"]
        command += [f"--auth-key-timestamp={MADE}", "--auth-key-lifetime=2000000000"]
        command += [f"--auth-key-as-rs-alg={algorithm}", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    return run


@pytest.mark.parametrize("algorithm", KEYS)
@pytest.mark.parametrize("length", [20, 32])
@pytest.mark.parametrize("fraction", [0, 32000])
def test_a_token_of_coturns(turnutils_oauth, algorithm, length, fraction):
    mac_key, timestamp = b"k" * length, (MADE + 10) << 16 | fraction
    done = turnutils_oauth(
        "-e",
        algorithm,
        f"--token-nonce={encoded(NONCE)}",
        f"--token-mac-key={encoded(mac_key)}",
        f"--token-timestamp={timestamp}",
        "--token-lifetime=3600",
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    token = base64.b64decode(made["access_token"])
    contents = Contents(mac_key, timestamp, 3600)
    assert KEYS[algorithm].open(token, SERVER_NAME) == contents
    # The same values make the same octets.
    assert KEYS[algorithm].seal(contents, SERVER_NAME, NONCE) == token
    with pytest.raises(TokenRefused):
        KEYS[algorithm].open(token, "another.example")


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_of_ours(turnutils_oauth, algorithm):
    # coturn prints the session key as it is.
    contents = Contents(os.urandom(10).hex().encode(), timestamp_of(MADE + 10), 1234)
    token = KEYS[algorithm].seal(contents, SERVER_NAME, os.urandom(12))
    done = turnutils_oauth("-d", algorithm, f"--token={encoded(token)}")
    assert done.returncode == 0, done.stderr
    assert "Valid token" in done.stdout
    found = dict(re.findall(r"(mac key|unixtime|lifetime): (\S+)", done.stdout))
    assert found == {
        "mac key": contents.mac_key.decode(),
        "unixtime": str(MADE + 10),
        "lifetime": "1234",
    }


@pytest.mark.parametrize("algorithm", KEYS)
def test_coturn_refuses_what_we_made_for_another(turnutils_oauth, algorithm):
    contents = Contents(os.urandom(20), timestamp_of(MADE + 10), 1234)
    token = KEYS[algorithm].seal(contents, SERVER_NAME, os.urandom(12))
    done = turnutils_oauth("-d", algorithm, f"--token={encoded(token)}", server="another.example")
    assert done.returncode != 0
    assert "integrity check failed" in done.stderr + done.stdout


# Our client at coturn's server. -------------------------------------------------------------------


class Asker:
    """A client with one UDP socket."""

    def __init__(self, server: Address) -> None:
        self.client = Client(entropy=os.urandom)
        self.server = server
        self.local: Address | None = None
        self._outputs = deque([OpenUdp(1, Address(HOST, 0))])

    def receive(self, packet: Received, now: Instant) -> None:
        self.client.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        if isinstance(event, Opened):
            self.local = event.local
        self.client.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        self.client.on_deadline(now)

    def deadline(self) -> Instant | None:
        return self.client.deadline()

    def poll(self) -> Any:
        return self._outputs.popleft() if self._outputs else self.client.poll()


class Conversation:
    """Requests over one socket, one after the other."""

    def __init__(self, server: Address) -> None:
        self.asker = Asker(server)
        self.events: list[Event] = []
        self.driver: Driver[Event] = Driver(self.asker, on_event=self.events.append)
        assert self.driver.run_until(lambda: self.asker.local is not None, 5)

    def __call__(self, message: Message, credentials: ThirdParty | None) -> Reply | Failed:
        assert self.asker.local is not None
        self.asker.client.request(
            message,
            destination=self.asker.server,
            source=self.asker.local,
            credentials=credentials,
            now=self.driver.now(),
        )
        self.driver.flush()
        assert self.driver.run_until(lambda: bool(self.events), 10), "no answer"
        (event,) = self.events
        self.events.clear()
        assert isinstance(event, Reply | Failed)
        return event


@pytest.fixture(scope="module")
def coturn(require_peer, tmp_path_factory):
    """A coturn that takes access tokens and nothing else."""
    program = require_peer("turnserver", "coturn")
    folder = tmp_path_factory.mktemp("coturn")
    with closing(sqlite3.connect(folder / "db")) as database:
        # Of coturn's schema what a server with access tokens reads.
        database.executescript(
            """
            CREATE TABLE oauth_key (
                kid varchar(128), ikm_key varchar(256), timestamp bigint default 0,
                lifetime integer default 0, as_rs_alg varchar(64) default '',
                realm varchar(127), primary key (kid));
            CREATE TABLE turnusers_lt (realm varchar(127), name varchar(512), hmackey char(128));
            CREATE TABLE turn_secret (realm varchar(127), value varchar(256));
            CREATE TABLE allowed_peer_ip (realm varchar(127), ip_range varchar(256));
            CREATE TABLE denied_peer_ip (realm varchar(127), ip_range varchar(256));
            CREATE TABLE turn_origin_to_realm (origin varchar(127), realm varchar(127));
            CREATE TABLE turn_realm_option
                (realm varchar(127), opt varchar(32), value varchar(128));
            CREATE TABLE admin_user (name varchar(32), realm varchar(127), password varchar(127));
            """
        )
        for name in KEYS:
            database.execute(
                "INSERT INTO oauth_key VALUES (?, ?, ?, 0, ?, '')",
                (f"kid-{name}", encoded(LONG_TERM), 0, name),
            )
        database.commit()
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = (
        f"{program} -n --no-cli --no-tls --no-dtls --log-file stdout --simple-log -L {HOST}"
        f" -r example.org -p {port} --lt-cred-mech --oauth --server-name {SERVER_NAME}"
        f" --pidfile {folder / 'pid'} --userdb {folder / 'db'} --allow-loopback-peers"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command.split(), stdout=log, stderr=log)
        try:
            for _ in range(200):
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    socket.create_connection((HOST, port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield Address(HOST, port)
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def talk(coturn):
    conversation = Conversation(coturn)
    yield conversation
    conversation.driver.close()


def bearer(algorithm: str, *, issued: float | None = None, server: str = SERVER_NAME) -> ThirdParty:
    """What an authorization server would give to a client."""
    key = TokenKey(f"kid-{algorithm}", LONG_TERM, TokenAlgorithm.named(algorithm))
    mac_key = os.urandom(10).hex().encode()
    contents = Contents(mac_key, timestamp_of(time.time() if issued is None else issued), 3600)
    return ThirdParty(key.kid, mac_key, key.seal(contents, server, os.urandom(12)))


def allocate() -> Message:
    return Message.request(Method.ALLOCATE, os.urandom(12)).add(REQUESTED_TRANSPORT, 17)


def test_coturn_names_itself(talk):
    outcome = talk(allocate(), None)
    assert isinstance(outcome, Failed)
    assert outcome.message is not None
    assert outcome.message.get(THIRD_PARTY_AUTHORIZATION) == SERVER_NAME


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_client_of_ours_allocates(talk, algorithm):
    credentials = bearer(algorithm)
    outcome = talk(allocate(), credentials)
    assert isinstance(outcome, Reply), outcome
    assert outcome.authenticated
    assert outcome.message.has(XOR_RELAYED_ADDRESS)
    # RFC 7635 section 9: the token goes with Allocate and Refresh only.
    permission = Message.request(Method.CREATE_PERMISSION, os.urandom(12))
    outcome = talk(permission.add(XOR_PEER_ADDRESS, Address(HOST, 9)), credentials)
    assert isinstance(outcome, Reply), outcome
    refresh = Message.request(Method.REFRESH, os.urandom(12)).add(LIFETIME, 0)
    outcome = talk(refresh, credentials)
    assert isinstance(outcome, Reply), outcome


@pytest.mark.parametrize("wrong", ["expired", "for another server"])
def test_a_token_that_coturn_does_not_take(talk, wrong):
    if wrong == "expired":
        credentials = bearer("A256GCM", issued=time.time() - 7200)
    else:
        credentials = bearer("A256GCM", server="another.example")
    outcome = talk(allocate(), credentials)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, AuthenticationFailed)
    assert SERVER_NAME in outcome.error.why


# coturn's client at our server. -------------------------------------------------------------------

UCLIENT_KEYS = (  # built into turnutils_uclient -J, which takes one of them for each request
    ("north", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDEK", "A256GCM"),
    ("union", "MTIzNDU2Nzg5MDEyMzQ1Ngo=", "A128GCM"),
    ("oldempire", "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIK", "A256GCM"),
)


def relay(keys, *options: str) -> tuple[int, str, list[AllocationCreated]]:
    """Let turnutils_uclient talk to itself through a relay of ours."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    server = Server(
        ServerConfig(
            (ListenAt(Transport.UDP, Address(HOST, port)),),
            (RelayAddress(HOST, HOST),),
            "example.org",
            PeerPolicy(allow=["127.0.0.0/8"]),
        ),
        StaticUsers({}, "example.org"),
        NonceMaker([os.urandom(32)]),
        entropy=os.urandom,
        unix_epoch=int(time.time()) - time.monotonic_ns() // SECOND,
        tokens=Tokens(SERVER_NAME, [TokenKey.from_base64(*key) for key in keys]),
    )
    created: list[AllocationCreated] = []

    def on_event(event: object) -> None:
        if isinstance(event, AllocationCreated):
            created.append(event)

    async def body() -> tuple[int, str]:
        async with aio.Driver(server, on_event=on_event) as driver:
            server.start(driver.now())
            driver.flush()
            running = asyncio.create_task(driver.run())
            client = await asyncio.create_subprocess_exec(
                "turnutils_uclient",
                *("-J", "-y", "-n", "3", *options, "-p", str(port), HOST),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await asyncio.wait_for(client.communicate(), 60)
            driver.close()
            await running
            return client.returncode or 0, said.decode()

    return *asyncio.run(body()), created


@pytest.mark.parametrize("options", [(), ("-s",), ("-G", "-m", "3")], ids=" ".join)
def test_a_client_of_coturns_relays(require_peer, options):
    require_peer("turnutils_uclient", "coturn")
    code, said, created = relay(UCLIENT_KEYS, *options)
    assert code == 0, said
    assert "Total lost packets 0 " in said, said
    assert {event.username for event in created} <= {name for name, _, _ in UCLIENT_KEYS}
    # "The lifetime provided by the TURN server [...] MUST be less than or equal to the lifetime of
    # the token": those of turnutils_uclient have 300 to 600 s, and Delta is 5.
    assert all(event.lifetime <= 605 for event in created)


def test_a_client_of_coturns_with_keys_that_are_not_ours(require_peer):
    require_peer("turnutils_uclient", "coturn")
    wrong = [(name, encoded(bytes(32)), algorithm) for name, _, algorithm in UCLIENT_KEYS]
    code, said, created = relay(wrong)
    assert code != 0
    assert "Cannot complete Allocation" in said
    assert not created
