"""turnd is worthless to reflect from: strangers get back no more than they sent, and leave nothing.

All of 127.0.0.0/8 is local, so a source of one's own stands for one that is forged: the server
cannot tell them apart.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import turn
from stun import attributes as attrs
from stun.codec import decode, encode
from stun.discovery import Target, Transport
from stun.message import Message
from stun.registry import Class, Method
from stun.sansio import Address
from tools.soak_turnd import Turnd, total
from tools.soak_worker import PASSWORD, USERS
from turn.server.config import Limits

pytestmark = pytest.mark.interop

LIMITS = Limits()
REQUESTS = 3000
MANY = 100_000
BATCH = 200
MOST_GROWTH = 512 << 10
"""Resident octets by which 100,000 strangers may leave the server greater: five for each.

What it keeps of one, if it kept anything, would take some hundred.
"""

Maker = Callable[[random.Random], bytes]


@pytest.fixture(scope="module")
def turnd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnd]:
    turnd = Turnd(tmp_path_factory.mktemp("turnd"), lifetime=600, idle=60)
    turnd.start()
    try:
        yield turnd
        assert turnd.lost_in_the_kernel() == 0, "this machine is too busy: nothing was shown"
    finally:
        status = turnd.stop()
    said = turnd.log.read_text()
    assert status == 0, said
    assert "Traceback" not in said, said
    assert '"level": "error"' not in said, said


@contextmanager
def stranger(turnd: Turnd, host: str) -> Iterator[socket.socket]:
    """Yield a socket at a host, connected to the server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.connect(("127.0.0.1", turnd.port))
        sock.settimeout(5)
        yield sock


def drain(sock: socket.socket, patience: float = 0.0) -> list[bytes]:
    """Return what has come, and what comes until nothing has for ``patience`` seconds."""
    answers = []
    sock.settimeout(patience)
    try:
        while True:
            answers.append(sock.recv(65535))
    except (BlockingIOError, TimeoutError):
        return answers


# The requests. ------------------------------------------------------------------------------------


def binding(rng: random.Random) -> bytes:
    return encode(Message.request(Method.BINDING, rng.randbytes(12)))


def allocate(rng: random.Random) -> bytes:
    request = Message.request(Method.ALLOCATE, rng.randbytes(12))
    return encode(request.add(attrs.REQUESTED_TRANSPORT, 17))


def empty_allocate(rng: random.Random) -> bytes:
    """The shortest request that a 401 answers."""
    return encode(Message.request(Method.ALLOCATE, rng.randbytes(12)))


def change_request(rng: random.Random) -> bytes:
    request = Message.request(Method.BINDING, rng.randbytes(12))
    return encode(request.add(attrs.CHANGE_REQUEST, attrs.ChangeRequest(True, True)))


def malformed(rng: random.Random) -> bytes:
    """A Binding request with an attribute whose value nobody can read."""
    request = Message.request(Method.BINDING, rng.randbytes(12))
    request.attributes.append((attrs.CHANGE_REQUEST.code, b"\x01"))
    return encode(request)


def unknown(rng: random.Random) -> bytes:
    """A Binding request with an attribute that must be understood."""
    request = Message.request(Method.BINDING, rng.randbytes(12))
    request.attributes.append((0x7ABC, b""))
    return encode(request)


def classic(rng: random.Random) -> bytes:
    """A Binding request of RFC 3489, without a cookie."""
    return bytes.fromhex("0001 0000 0000") + rng.randbytes(14)


def made_up(rng: random.Random) -> bytes:
    """An Allocate request of somebody who made everything up."""
    request = Message.request(Method.ALLOCATE, rng.randbytes(12))
    request.add(attrs.REQUESTED_TRANSPORT, 17).add(attrs.USERNAME, USERS[0])
    request.add(attrs.REALM, "r").add(attrs.NONCE, b"n")
    return encode(request, key=rng.randbytes(16))


KINDS: tuple[Maker, ...] = (
    binding,
    allocate,
    empty_allocate,
    change_request,
    malformed,
    unknown,
    classic,
    made_up,
)


# One answer. --------------------------------------------------------------------------------------


def test_a_bare_binding_request_gets_32_octets(turnd: Turnd, rng: random.Random) -> None:
    with stranger(turnd, "127.30.0.1") as sock:
        request = binding(rng)
        assert len(request) == 20
        sock.send(request)
        answer = sock.recv(65535)
        own = Address(*sock.getsockname())
    assert len(answer) <= 32
    response = decode(answer)
    assert response.message_class is Class.SUCCESS
    assert response.get(attrs.XOR_MAPPED_ADDRESS) == own


@pytest.mark.parametrize("make", [allocate, empty_allocate])
def test_a_challenge_has_at_most_100_octets(turnd: Turnd, rng: random.Random, make: Maker) -> None:
    with stranger(turnd, "127.30.1.1") as sock:
        sock.send(make(rng))
        answer = sock.recv(65535)
    assert len(answer) <= 100
    response = decode(answer)
    error = response.get(attrs.ERROR_CODE)
    assert error is not None
    assert error.code == 401
    # With what a client needs to go on.
    assert response.get(attrs.REALM)
    assert response.get(attrs.NONCE)


# Floods. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", KINDS)
def test_a_flood_gets_back_what_came_in_and_a_burst(
    turnd: Turnd, rng: random.Random, make: Maker
) -> None:
    before, lost_before = turnd.metrics(), dropped_at(turnd.port)
    # A prefix for each, as their budgets are.
    with stranger(turnd, f"127.31.{KINDS.index(make)}.1") as sock:
        request = make(rng)
        sock.send(request)
        one = len(sock.recv(65535))
        came_in, answers = len(request), 1
        goes_out = one
        began = time.monotonic()
        for at in range(REQUESTS):
            request = make(rng)
            sock.send(request)
            came_in += len(request)
            if at % 20 == 19:
                time.sleep(0.001)
                found = drain(sock)
                answers += len(found)
                goes_out += sum(map(len, found))
        found = drain(sock, 0.3)
        answers += len(found)
        goes_out += sum(map(len, found))
        seconds = time.monotonic() - began
        assert dropped_at(sock.getsockname()[1]) == 0
    allowed = came_in + LIMITS.unverified_burst + LIMITS.unverified_refill * seconds
    assert goes_out <= allowed
    after = turnd.metrics()
    limited = 'turnd_dropped_total{reason="rate_limited"}'
    silent = after.get(limited, 0) - before.get(limited, 0)
    # Every request had an answer, or is counted among those that had none, or the kernel of a busy
    # machine had no room for it.
    assert answers + silent + dropped_at(turnd.port) - lost_before == REQUESTS + 1
    if one * REQUESTS > allowed:
        assert silent > 0


def test_some_kind_is_held_back(turnd: Turnd, rng: random.Random) -> None:
    """Otherwise the floods above have shown nothing."""
    with stranger(turnd, "127.30.2.1") as sock:
        for make in (binding, allocate, empty_allocate):
            request = make(rng)
            sock.send(request)
            assert len(sock.recv(65535)) * REQUESTS > (
                len(request) * REQUESTS + LIMITS.unverified_burst + 10 * LIMITS.unverified_refill
            )


def test_dtls_hellos_draw_less_than_they_are(turnd: Turnd, rng: random.Random) -> None:
    with stranger(turnd, "127.30.3.1") as sock:
        came_in = 0
        for _ in range(200):
            came_in += sock.send(client_hello(rng))
        goes_out = sum(map(len, drain(sock, 0.3)))
    assert 0 < goes_out <= came_in


def client_hello(rng: random.Random) -> bytes:
    """Make a ClientHello of DTLS 1.2 without a cookie (RFC 6347 section 4.2.1)."""
    body = b"\xfe\xfd" + rng.randbytes(32) + b"\x00\x00\x00\x02\xc0\x2b\x01\x00\x00\x00"
    length = len(body).to_bytes(3)
    message = b"\x01" + length + bytes(5) + length + body
    return b"\x16\xfe\xff" + bytes(8) + len(message).to_bytes(2) + message


def dropped_at(port: int) -> int:
    """Return how many datagrams the kernel had no room for at the sockets of a port."""
    lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    return sum(
        int(line.split()[-1])
        for line in lines
        if int(line.split()[1].rpartition(":")[2], 16) == port
    )


# Those who are honest. ----------------------------------------------------------------------------


def test_an_honest_client_does_not_notice(turnd: Turnd, rng: random.Random) -> None:
    over_udp = Target(Address("127.0.0.1", turnd.port), Transport.UDP)
    stopping = threading.Event()
    sent = [0]

    def flood() -> None:
        with stranger(turnd, "127.32.0.1") as sock:
            while not stopping.wait(0.002):
                for _ in range(20):
                    sock.send(empty_allocate(rng))
                    sent[0] += 1
                drain(sock)

    async def talk(server: Target | str, local: str) -> dict[str, int]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.setblocking(False)
            loop = asyncio.get_running_loop()
            async with turn.connect(
                server,
                username=USERS[0],
                password=PASSWORD,
                local=Address(local, 0),
            ) as relay:
                counters = dict(relay.counters)
                relay.send(b"hello", peer.getsockname())
                async with asyncio.timeout(5):
                    data, source = await loop.sock_recvfrom(peer, 100)
                    await loop.sock_sendto(peer, data, source)
                    assert (await relay.recv())[0] == b"hello"
                return counters

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        while sent[0] < REQUESTS:  # by now the flood has spent what its prefix has
            time.sleep(0.01)
        for number in range(10):
            counters = asyncio.run(talk(over_udp, f"127.1.2.{number + 3}"))
            # The 401 and the success, and nothing had to be asked twice, which would have cost
            # half a second (RFC 8489 section 6.2.1).
            assert counters["datagrams sent"] == 2, counters
        # Whoever shares the prefix of the flood shares what it may have over UDP.  But TCP, which
        # is tried a second later, shows that their source is real.
        asyncio.run(talk(f"turn:127.0.0.1:{turnd.port}", "127.32.0.99"))
    finally:
        stopping.set()
        flooding.join()


# Nothing is kept. ---------------------------------------------------------------------------------


def wait_until_read(probes: list[socket.socket], rng: random.Random) -> None:
    """Wait for an answer, which says that the server has read everything before the question."""
    for probe in probes:
        # One may share its budget with one of those that send so much: such is a hash table.
        probe.settimeout(1)
        probe.send(binding(rng))
        try:
            probe.recv(65535)
        except TimeoutError:
            continue
        return
    raise AssertionError("the server answers nobody any more")


def test_many_strangers_leave_nothing(turnd: Turnd, rng: random.Random) -> None:
    with ExitStack() as stack:
        socks = [
            stack.enter_context(stranger(turnd, f"127.{60 + n // 16}.{n % 16}.{1 + n % 250}"))
            for n in range(160)
        ]
        probes = [stack.enter_context(stranger(turnd, f"127.3{n}.4.1")) for n in range(5)]

        def send(number: int) -> None:
            for _ in range(number // BATCH):
                for _ in range(BATCH):
                    rng.choice(socks).send(rng.choice(KINDS)(rng))
                wait_until_read(probes, rng)

        # Tables of constant size, the answers' buffers and the like get their memory now.
        send(MANY // 5)
        before, resident = turnd.metrics(), turnd.resident()
        send(MANY)
        after, grown = turnd.metrics(), turnd.resident() - resident
    assert total(after, "turnd_requests") - total(before, "turnd_requests") >= MANY
    assert grown <= MOST_GROWTH, f"{grown} octets after {MANY} requests"
    for gauge in ("allocations", "permissions", "channels", "connections"):
        assert after[f"turnd_{gauge}"] == 0
    # No series for any of them either.  What the sockets count depends on how busy the machine is.
    fresh = {key for key in set(after) - set(before) if key.startswith("turnd_")}
    assert not {key for key in fresh if not key.startswith("turnd_transport_events")}
    assert len(fresh) < 5, fresh
