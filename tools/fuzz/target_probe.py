"""What must hold for the probe, whatever comes in at any of its sockets.

Shared by the coverage-guided fuzzer (python -m tools.fuzz) and the short run of every test
session (tests/fuzz/test_fuzz_probe.py).

The input is a script: octets choose what happens next (a datagram to one of the probe's sockets,
bytes on a stream, a socket event, time passing), and the rest is payload.
Valid answers to the probe's own requests are among the choices, so that a run gets deep into the
tests before something odd arrives.  The machine must never raise, must always drain, and must come
to its end when its time is up.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

from nattype.classify import classify
from nattype.probe.machine import Finished, Plan, Probe, ProbeConfig
from nattype.probe.session import Server
from stun import attributes
from stun.attributes import ConnectBack, ConnectBackResult
from stun.codec import Message, decode, encode
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
    Listen,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
    Undeliverable,
    Write,
)

A, B = Address("192.31.196.10", 3478), Address("192.175.48.10", 3479)
OTHERS = (A, B, Address(A.host, B.port), Address(B.host, A.port), Address("198.51.100.7", 9))
HOST = "192.168.1.2"
MOST_STEPS = 4_000
"""Turns of a run; a probe that needs more does not come to its end."""
MOST_OUTPUTS = 20_000


class World:
    """The other end of everything that the probe asks for, led by a script."""

    def __init__(self, script: bytes) -> None:
        self.script = deque(script)
        self.now = 0
        self.ports: list[Address] = []
        self.sent: deque[Transmit] = deque(maxlen=32)
        self.streams: dict[int, tuple[Address, Address]] = {}
        self.listeners: list[int] = []
        self.written: deque[tuple[int, bytes]] = deque(maxlen=16)
        self.pending: deque[object] = deque()
        self.next_port = 40_000
        self.outputs = 0
        self.asked_for: set[str] = set()
        self.finished: Finished | None = None
        servers = (Server(A, "one"), Server(OTHERS[4], "two"))
        config = ProbeConfig((Plan("ipv4", HOST, servers),), lifetime=bool(self.take() & 1))
        self.probe = Probe(config, entropy=random.Random(0).randbytes)

    def take(self) -> int:
        """Return the next octet of the script; zeros once it is at its end."""
        return self.script.popleft() if self.script else 0

    def payload(self) -> bytes:
        return bytes(self.take() for _ in range(min(self.take(), len(self.script))))

    def drain(self) -> None:
        while True:
            while (output := self.probe.poll()) is not None:
                self.outputs += 1
                assert self.outputs < MOST_OUTPUTS, "the probe floods"
                self.asked_for.add(type(output).__name__)
                self.carry_out(output)
            if not self.pending:
                return
            self.probe.on_socket(self.pending.popleft(), self.now)  # type: ignore[arg-type]

    def carry_out(self, output: object) -> None:
        match output:
            case OpenUdp(handle, local) | Listen(handle, local):
                if self.take() == 255:
                    self.pending.append(Closed(handle, Cause.NOT_PERMITTED))
                    return
                self.next_port += 1
                opened = Address(local.host, local.port or self.next_port)
                if isinstance(output, OpenUdp):
                    self.ports.append(opened)
                else:
                    self.listeners.append(handle)
                self.pending.append(Opened(handle, opened))
            case Dial(handle, local, remote):
                choice = self.take()
                self.next_port += 1
                opened = Address(local.host, local.port or self.next_port)
                if choice < 192:
                    self.streams[handle] = (opened, remote)
                    self.pending.append(Connected(handle, opened, remote))
                elif choice < 224:
                    self.pending.append(Closed(handle, list(Cause)[choice % len(Cause)]))
            case Transmit():
                self.sent.append(output)
            case Write(handle, data):
                self.written.append((handle, data))
            case Shut(handle):
                self.streams.pop(handle, None)
            case Finished():
                self.finished = output

    def answer(self, data: bytes, mapped: Address) -> Message | None:
        """Return what a server would say, with the script's variations."""
        try:
            request = decode(data)
        except DecodeError:
            return None
        if request.message_class is not Class.REQUEST:
            return None
        if self.take() >= 240:
            return Message.error(request, (400, 420, 500)[self.take() % 3])
        answer = Message.success(request)
        answer.add(attributes.XOR_MAPPED_ADDRESS, mapped)
        answer.add(attributes.OTHER_ADDRESS, OTHERS[self.take() % 5] if self.take() & 1 else B)
        asked = request.get(attributes.CONNECT_BACK)
        if asked is not None:
            answer.add(attributes.CONNECT_BACK, ConnectBack(asked.kind, self.take(), 0, 0, 1234))
        return answer

    def step(self) -> None:
        choice = self.take() % 10
        match choice:
            case 0 | 1 | 2 if self.sent:
                sent = self.sent.popleft()
                mapped = Address("192.52.193.2", (sent.source.port + self.take()) % 65536)
                answer = self.answer(sent.data, mapped)
                if answer is not None:
                    source = sent.destination if choice else OTHERS[self.take() % 5]
                    self.probe.receive(Received(encode(answer), source, sent.source), self.now)
            case 3 if self.ports:
                local = self.ports[self.take() % len(self.ports)]
                source = OTHERS[self.take() % 5]
                self.probe.receive(Received(self.payload(), source, local), self.now)
            case 4 | 5 if self.written:
                handle, data = self.written.popleft()
                if handle in self.streams:
                    answer = self.answer(data, Address("192.52.193.2", self.take()))
                    octets = encode(answer) if answer is not None else b""
                    if self.take() & 1:
                        counts = [self.take() for _ in range(5)]
                        result = ConnectBackResult(1 + self.take() % 3, *counts)
                        report = Message.indication(Method.BINDING, bytes(12))
                        octets += encode(report.add(attributes.CONNECT_BACK_RESULT, result))
                    self.probe.on_socket(Arrived(handle, octets), self.now)
            case 6 if self.streams:
                handle = list(self.streams)[self.take() % len(self.streams)]
                if self.take() & 1:
                    self.probe.on_socket(Arrived(handle, self.payload()), self.now)
                else:
                    del self.streams[handle]
                    self.probe.on_socket(Closed(handle, Cause.RESET), self.now)
            case 7:
                handle = self.take() - 128
                listener = self.listeners[-1] if self.listeners else handle
                local, remote = Address(HOST, self.take()), OTHERS[self.take() % 5]
                for event in (
                    Accepted(listener, -1 - self.take(), local, remote),
                    Undeliverable(local, remote, 3, self.take()),
                    Arrived(handle, self.payload()),
                ):
                    self.probe.on_socket(event, self.now)
            case 8:
                self.now += self.take() * MILLISECOND
                self.probe.on_deadline(self.now)
            case _:
                self.pass_time()

    def pass_time(self) -> None:
        deadline = self.probe.deadline()
        if deadline is not None:
            assert deadline >= 0
            self.now = max(self.now, deadline)
        self.probe.on_deadline(self.now)

    def run(self) -> None:
        self.probe.start(0)
        self.drain()
        for _ in range(MOST_STEPS):
            if self.finished is not None:
                break
            if self.script:
                self.step()
            else:
                self.pass_time()
            self.drain()
        assert self.finished is not None, "the probe did not come to its end"
        assert self.probe.deadline() is None
        for one in self.finished.observations:
            classify(one)
        # What still arrives afterwards is dropped with a reason.
        self.probe.receive(Received(b"late", A, Address(HOST, 1)), self.now + SECOND)
        self.probe.on_deadline(self.now + SECOND)
        assert self.probe.poll() is not None


def check_script(script: bytes) -> set[str]:
    """Run one script; raises if the probe does.  Returns the kinds of outputs and events."""
    world = World(script)
    world.run()
    return world.asked_for


def seeds() -> Iterator[bytes]:
    """Give scripts that reach the depths: answers in order, then variations."""
    for seed in range(24):
        rng = random.Random(seed)
        steps = []
        for _ in range(60 * (1 + seed % 5)):
            choice = rng.choices(range(10), (8, 30, 30, 2, 12, 12, 2, 1, 2, 1 + seed % 4))[0]
            steps += [choice, *rng.choices((0, 0, 0, 1, 2, 250, rng.randrange(256)), k=4)]
        yield bytes(steps)


TARGETS = {"probe": (check_script, seeds)}
