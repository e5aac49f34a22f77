"""What must hold for the server, whatever comes in at any of its sockets.

Shared by the coverage-guided fuzzer (python -m tools.fuzz), the short run of every test
session (tests/fuzz/test_fuzz_server.py) and tests/property/test_server_invariants.py.

The input is a script: octets choose what happens next (a datagram, a connection, bytes on a stream,
the end of a socket, time passing), and the rest is payload.  Well-formed requests are among the
choices, so that a run gets deep before something odd arrives.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

from stun.attributes import CHANGE_REQUEST, CONNECT_BACK, PADDING, ChangeRequest, ConnectBack
from stun.codec import Message, decode, encode
from stun.connectback import MOST_DIALS
from stun.errors import DecodeError
from stun.registry import Class, Method
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
    Listen,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
    Undeliverable,
    Write,
)
from stun.server import Server, ServerConfig, Site

VECTORS = Path(__file__).resolve().parents[2] / "rfc-vectors"
V4 = Site(Address("192.31.196.10", 3478), Address("192.175.48.10", 3479))
V6 = Site(Address("2620:4f:8000:a::10", 3478), Address("2620:4f:8000:b::10", 3479))
CLIENTS = (Address("192.52.193.5", 40_000), Address("2620:4f:8000:1::5", 40_000))
FACTORS = (3.4, 5.8)
"""The greatest multiple of a datagram that its answer may be, by family; stun/responder.py."""
REQUESTS = (
    Message.request(Method.BINDING, bytes(12)),
    Message.request(Method.BINDING, bytes(12)).add(CHANGE_REQUEST, ChangeRequest(True, True)),
    Message.request(Method.BINDING, bytes(12)).add(PADDING, bytes(100)),
    *(
        Message.request(Method.BINDING, bytes(12)).add(CONNECT_BACK, ConnectBack(kind, 3, 9, 90))
        for kind in (1, 2, 3)
    ),
)
MOST_STEPS = 2000
CAUSES = tuple(Cause)


class World:
    """The other end of everything that the server asks for, led by a script."""

    def __init__(self, script: bytes) -> None:
        self.script = deque(script)
        self.now = 0
        config = ServerConfig(*V4, more=(V6,), software="natkit", connections_per_source=4)
        self.server = Server(config, entropy=random.Random(0).randbytes)
        self.udp: list[Address] = []
        self.listeners: dict[Address, Handle] = {}
        self.silent: set[Address] = set()
        self.connections: dict[Handle, Address] = {}
        self.dialled: dict[Handle, Dial] = {}
        self.undecided: set[Handle] = set()
        self.accepted = 0
        self.reached: set[str] = set()
        self.packets = self.answers = 0
        self.request: Received | None = None
        self.server.start(0)
        self.drain()

    def take(self) -> int:
        """Return the next octet of the script; zeros once it is at its end."""
        return self.script.popleft() if self.script else 0

    def payload(self) -> bytes:
        choice = self.take()
        if choice < len(REQUESTS):
            return encode(REQUESTS[choice], fingerprint=bool(self.take() & 1))
        return bytes(self.take() for _ in range(min(self.take() * 4, len(self.script))))

    def drain(self) -> None:
        """Carry out what the server asks for, and judge it."""
        while (output := self.server.poll()) is not None:
            self.reached.add(type(output).__name__)
            match output:
                case OpenUdp(handle, local):
                    self.udp.append(local)
                    self.server.on_socket(Opened(handle, local), self.now)
                case Listen(handle, local, silent):
                    if silent:
                        local = Address(local.host, 50_000 + handle)
                        self.silent.add(local)
                    else:
                        self.listeners[local] = handle
                    self.server.on_socket(Opened(handle, local), self.now)
                case Transmit():
                    self.judge_answer(output)
                case Write(handle, data):
                    assert handle in self.connections or handle in self.dialled
                    assert decode(data).message_class is not Class.REQUEST
                case Dial(handle, local, remote):
                    # Nobody is dialled but who is connected, and never by many.
                    assert remote in self.connections.values()
                    assert local.port == 0 or local in self.silent
                    self.dialled[handle] = output
                    self.undecided.add(handle)
                    assert len(self.undecided) <= MOST_DIALS * len(self.connections)
                case Shut(handle):
                    self.connections.pop(handle, None)
                    self.dialled.pop(handle, None)
                    self.undecided.discard(handle)
                case _:
                    pass  # what is told to people

    def judge_answer(self, sent: Transmit) -> None:
        self.answers += 1
        asked = self.request
        assert asked is not None, "a datagram that nobody asked for"
        self.request = None
        assert sent.source in self.udp
        assert sent.destination.host == asked.source.host
        assert len(sent.data) <= FACTORS[asked.source.is_ipv6] * len(asked.data)
        message = decode(sent.data)
        assert message.message_class in {Class.SUCCESS, Class.ERROR}
        assert asked.data[4:20] == sent.data[4:20], "the transaction id is not that of the request"

    def step(self) -> None:
        """Let one thing happen."""
        match self.take() % 8:
            case 0 | 1:
                at = self.take()
                local = self.udp[at % len(self.udp)]
                client = CLIENTS[local.is_ipv6]
                self.packets += 1
                self.request = Received(self.payload(), client, local)
                self.server.receive(self.request, self.now)
                self.drain()
                self.request = None
            case 2:
                local, handle = list(self.listeners.items())[self.take() % len(self.listeners)]
                client = Address(CLIENTS[local.is_ipv6].host, 1 + self.take())
                self.accepted += 1
                self.connections[-self.accepted] = client
                self.server.on_socket(Accepted(handle, -self.accepted, local, client), self.now)
            case 3 | 4 if self.connections:
                handle = list(self.connections)[self.take() % len(self.connections)]
                self.server.on_socket(Arrived(handle, self.payload()), self.now)
            case 5 if self.connections:
                handle = list(self.connections)[self.take() % len(self.connections)]
                del self.connections[handle]
                cause = CAUSES[self.take() % len(CAUSES)]
                self.server.on_socket(Closed(handle, cause), self.now)
            case 6 if self.dialled:
                self.decide(list(self.dialled)[self.take() % len(self.dialled)])
            case _:
                self.now += self.take() ** 2 * MILLISECOND
                self.server.on_deadline(self.now)
        self.drain()

    def decide(self, handle: Handle) -> None:
        dial = self.dialled[handle]
        choice = self.take() % (len(CAUSES) + 3)
        if choice >= len(CAUSES) and handle in self.undecided:
            self.undecided.discard(handle)
            local = Address(dial.local.host, dial.local.port or 44_444)
            self.server.on_socket(Connected(handle, local, dial.remote), self.now)
        elif choice == len(CAUSES):
            self.server.on_socket(Arrived(handle, self.payload()), self.now)
        elif choice > len(CAUSES):
            event = Undeliverable(self.udp[0], CLIENTS[0], self.take(), self.take())
            self.server.on_socket(event, self.now)
        else:
            del self.dialled[handle]
            self.undecided.discard(handle)
            self.server.on_socket(Closed(handle, CAUSES[choice]), self.now)

    def finish(self) -> None:
        """Close everything: nothing may be left to do, and everything is accounted for."""
        for handle in list(self.connections):
            self.server.on_socket(Closed(handle, Cause.RESET), self.now)
            del self.connections[handle]
            self.drain()
        while (due := self.server.deadline()) is not None:
            assert due >= 0
            self.now = max(self.now, due)
            self.server.on_deadline(self.now)
            self.drain()
        assert not self.dialled, "connections were left open"
        assert self.server.counters["connections open"] == 0


def check_script(script: bytes) -> set[str]:
    """Raise ``AssertionError``, or whatever escapes, when the server does wrong.

    Returns the names of what the server ordered and told.
    """
    world = World(script)
    for _ in range(MOST_STEPS):
        if not world.script:
            break
        world.step()
    world.finish()
    return world.reached


@cache
def _datagram_world() -> World:
    # Datagrams leave no state but budgets, so one server takes them all.
    return World(b"")


def _accounted(world: World) -> int:
    return sum(world.server.drops.values()) + world.server.counters.get("indications", 0)


def check_datagram(data: bytes) -> None:
    """Give these octets to every endpoint: an answer, a counted discard, or an indication."""
    world = _datagram_world()
    world.now += SECOND  # enough for every budget to be whole again
    world.answers = 0
    before = _accounted(world)
    for local in world.udp:
        world.request = Received(data, CLIENTS[local.is_ipv6], local)
        world.server.receive(world.request, world.now)
        world.drain()
    answered = world.answers
    assert answered + _accounted(world) - before == len(world.udp)
    try:
        is_request = decode(data).message_class is Class.REQUEST
    except DecodeError:
        is_request = False
    assert is_request or not answered


def messages() -> Iterator[bytes]:
    """Yield every message of the vectors, good and hostile, and requests that are served."""
    for name in ("stun/rfc5769.json", "stun/rfc8489-b1.json", "hostile/stun-messages.json"):
        for case in json.loads((VECTORS / name).read_text())["cases"]:
            yield bytes.fromhex(case["hex"])
    yield from map(encode, REQUESTS)


def scripts() -> Iterator[bytes]:
    """Yield runs that go through connections and dials."""
    for kind, outcome in product(range(3, 6), range(len(CAUSES) + 3)):
        yield bytes((2, 0, 7, 3, 0, kind, 0, 7, 20, 6, 0, outcome, 7, 10, 6, 0, outcome, 7, 99))
    for at, choice in product(range(8), range(len(REQUESTS))):
        yield bytes((0, at, choice, 0, 1, at, choice, 1))
    for message in messages():
        octets = message[:1000]
        yield bytes((2, 0, 7, 3, 0, 99, (len(octets) + 3) // 4)) + octets


TARGETS = {"datagram": (check_datagram, messages), "server": (check_script, scripts)}
