"""Punching by itself between NATs of the simulated network, up to the last octet."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from ice.base import PathOpened
from ice.config import Server
from ice.tcp.puncher import Puncher, Stage
from ice.tcp.terms import Elected, GaveUp, PortsReady, PunchConfig, credentials, start_at
from nattype.lab.sim import Host
from nattype.lab.sim.world import World
from nattype.model import Link
from stun.errors import DropReason
from stun.sansio import (
    SECOND,
    Address,
    Arrived,
    Closed,
    Dial,
    Hold,
    Instant,
    Received,
    SocketEvent,
    Write,
)
from tools.icetcpnet import DROPS, FAR, FAST, ICMP, REFLEXIVE, RESETS, SO, STUN, Net

POISONED = "port-restricted-poisoned"
SECRET = "correct horse battery staple"


class User:
    """A puncher, and whoever uses the connection that it elects: sends at once, and reads."""

    def __init__(
        self, world: World, host: Host, *, controlling: bool, ports: int = 1, name: str = ""
    ) -> None:
        self.world = world
        self.host = host
        self.controlling = controlling
        self.puncher = Puncher(
            PunchConfig(host.address(), (0,) * ports), entropy=world.entropy(name or "a")
        )
        self.queue: deque[Any] = deque()
        self.ready: PortsReady | None = None
        self.hole: Elected | None = None
        self.failed = ""
        self.got = b""
        self.ended = False
        self.dials: list[Dial] = []
        self.words = (name or "a").encode() * 5000
        self.attached = world.attach(self, host, lambda _: None)

    # As a machine.

    def receive(self, packet: Received, now: Instant) -> None:
        self.puncher.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        if self.hole is not None and getattr(event, "handle", None) == self.hole.handle:
            if isinstance(event, Arrived):
                self.got += event.data
            elif isinstance(event, Closed):
                self.ended = True
            return
        self.puncher.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        self.puncher.on_deadline(now)

    def deadline(self) -> Instant | None:
        return self.puncher.deadline()

    def poll(self) -> Any:
        if self.queue:
            return self.queue.popleft()
        output = self.puncher.poll()
        match output:
            case PortsReady():
                self.ready = output
            case Elected(handle):
                self.hole = output
                self.got += output.data
                self.queue += [Hold(handle, held=False), Write(handle, self.words)]
            case GaveUp(why):
                self.failed = why
            case Dial():
                self.dials.append(output)
            case _:
                pass
        return output

    # As a program.

    def open(self, *servers: Server) -> None:
        self.puncher.open(servers, self.world.now)
        self.attached.pump()

    def start(self, to: tuple[Address, ...], **options: Any) -> None:
        options.setdefault("controlling", self.controlling)
        secret = options.pop("secret", SECRET)
        ours, theirs = credentials(secret, controlling=options["controlling"])
        self.puncher.start(to, ours, theirs, self.world.now, **options)
        self.attached.pump()

    @property
    def addresses(self) -> tuple[Address, ...]:
        assert self.ready is not None
        return self.ready.addresses()


class Meeting:
    """Two users behind NATs, and the server."""

    def __init__(
        self, seed: int, a: str = DROPS, b: str = DROPS, *, link: Link = FAR, ports: int = 1
    ) -> None:
        self.net = Net(seed, a, b, link=link)
        self.world = self.net.world
        scenario = self.net.scenario
        self.a = User(self.world, scenario.host, controlling=True, ports=ports, name="alice")
        self.b = User(self.world, scenario.peer, controlling=False, ports=ports, name="bob")
        self.both = (self.a, self.b)

    def map(self) -> None:
        for user in self.both:
            user.open(STUN)
        self.net.until(lambda: all(user.ready for user in self.both))

    def punch(self, skew: float = 0, **options: Any) -> float:
        """Connect; return how many seconds it took the later one, both sides' octets included."""
        at = self.world.now
        late = at + int(skew * SECOND)
        to_a, to_b = self.a.addresses, self.b.addresses
        self.a.start(to_b, at=at, **options)
        self.b.start(to_a, at=late, **options)
        self.world.run(until=lambda: all(u.hole or u.failed for u in self.both), max_time=60)
        assert not any(user.failed for user in self.both), [u.failed for u in self.both]
        took = (self.world.now - late) / SECOND
        self.check()
        return took

    def check(self) -> None:
        """Both have the same connection, and lose nothing of what each sends at once."""
        a, b = self.both
        self.net.until(lambda: (a.got, b.got) == (b.words, a.words))
        assert a.hole is not None
        assert b.hole is not None
        for user, other in ((a, b), (b, a)):
            assert user.hole is not None
            assert user.hole.remote.host in {address.host for address in other.addresses}
            assert user.puncher.stage is Stage.OVER
            assert user.puncher.deadline() is None
        self.net.wait(1)
        assert not a.ended
        assert not b.ended


@pytest.mark.parametrize("low_ttl", [False, True], ids=["plain", "low-ttl"])
@pytest.mark.parametrize("link", [FAST, FAR], ids=["fast", "far"])
@pytest.mark.parametrize("skew", [0, 0.05, 0.2, 0.4, 1])
@pytest.mark.parametrize(
    "pair",
    [
        (DROPS, DROPS),
        (RESETS, RESETS),
        (ICMP, ICMP),
        (DROPS, RESETS),
        (ICMP, RESETS),
        ("full-cone", DROPS),
        ("restricted-cone", RESETS),
        ("open", "port-restricted-cone"),
    ],
)
def test_every_pair_connects(
    pair: tuple[str, str], skew: float, link: Link, low_ttl: bool, seed: int
) -> None:
    meeting = Meeting(seed, *pair, link=link, ports=3)
    meeting.map()
    took = meeting.punch(skew, low_ttl=low_ttl)
    assert took < (3 if low_ttl else 2)


def with_loss(nat: str, seed: int, skew: float) -> None:
    """Connect where one packet in six is lost from end to end, and packets overtake each other."""
    meeting = Meeting(seed, nat, nat, link=Link(delay=0.02, jitter=0.01, loss=0.08))
    for user in meeting.both:
        user.open()  # without a server, whose answers might be lost as well
    meeting.net.until(lambda: all(user.ready for user in meeting.both))
    at_a, at_b = (
        (Address(f"192.52.193.{2 + 32 * k}", user.addresses[0].port),)
        for k, user in enumerate(meeting.both)
    )
    meeting.a.start(at_b)
    meeting.net.wait(skew)
    meeting.b.start(at_a)
    meeting.world.run(until=lambda: all(user.hole for user in meeting.both), max_time=40)
    a, b = meeting.both
    assert a.hole, (seed, a.failed, b.failed)
    assert b.hole, (seed, a.failed, b.failed)
    meeting.net.until(lambda: (a.got, b.got) == (b.words, a.words))


@pytest.mark.parametrize("nat", [DROPS, RESETS, ICMP])
def test_with_loss_and_reordering(nat: str, seed: int) -> None:
    for n in range(12):
        with_loss(nat, seed + n, 0.1 * (n % 4))


class TestStrangers:
    def dialling(self, meeting: Meeting) -> tuple[Any, Any]:
        """Put somebody on the public network who dials a port of ``a``, which is in the open."""
        puppet, attached = meeting.net.stranger()
        host = meeting.net.scenario.sites[0].host
        there = Address(host.address(), meeting.a.addresses[0].port)
        handle = puppet.dial(Address(attached.host.address(), 0), there)
        attached.pump()
        meeting.net.until(lambda: puppet.connected(handle))
        return puppet, (attached, handle)

    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            (b"\x00\x04GET ", DropReason.NOT_EXPECTED_PROTOCOL),
            (b"GET / HTTP/1.1\r\n\r\n", DropReason.TOO_LONG),
        ],
    )
    def test_one_that_says_something_else(self, seed: int, said: bytes, reason: Any) -> None:
        meeting = Meeting(seed, "open", DROPS)
        meeting.map()
        puppet, (attached, handle) = self.dialling(meeting)
        puppet.write(handle, said)
        attached.pump()
        meeting.net.until(lambda: puppet.closed(handle))
        assert meeting.a.puncher.drops[reason] == 1
        meeting.punch()

    def test_one_with_another_secret(self, seed: int) -> None:
        meeting = Meeting(seed, "open", DROPS)
        meeting.map()
        meeting.b.start(meeting.a.addresses, secret="quite another secret of somebody")
        meeting.a.start(meeting.b.addresses, timeout=5 * SECOND)
        meeting.net.until(lambda: meeting.a.failed)
        assert meeting.a.puncher.drops[DropReason.UNKNOWN_USERNAME]
        assert "its username is not of this session" in meeting.a.failed

    def test_one_that_is_silent(self, seed: int) -> None:
        meeting = Meeting(seed, "open", DROPS)
        meeting.map()
        puppet, (_, handle) = self.dialling(meeting)
        meeting.net.until(lambda: puppet.closed(handle), 20)
        assert meeting.a.puncher.drops[DropReason.MISSING_INTEGRITY] == 1

    def test_many_do_not_keep_the_peer_out(self, seed: int) -> None:
        meeting = Meeting(seed, "open", DROPS)
        meeting.map()
        for _ in range(40):
            self.dialling(meeting)
        assert meeting.punch() < 2


class TestRoles:
    def test_two_that_control(self, seed: int) -> None:
        """By a secret, the credentials of the two are then those of one side."""
        meeting = Meeting(seed, "open", DROPS)
        meeting.map()
        meeting.a.start(meeting.b.addresses)
        meeting.b.start(meeting.a.addresses, controlling=True)
        meeting.net.until(lambda: meeting.a.failed or meeting.b.failed)
        why = meeting.a.failed or meeting.b.failed
        assert "one side has to be controlling, the other controlled" in why

    def test_the_early_one_is_waited_for(self, seed: int) -> None:
        """The peer has connected and asked before this side knows anything of it."""
        meeting = Meeting(seed, "open", DROPS)
        meeting.map()
        meeting.b.start(meeting.a.addresses)
        meeting.net.wait(3)
        meeting.a.start(meeting.b.addresses)
        meeting.net.until(lambda: all(user.hole for user in meeting.both))
        meeting.check()


class TestSpares:
    def test_a_pair_of_ports_that_is_spoilt(self, seed: int) -> None:
        """Nothing gets through on the first pair: somebody filters that port."""
        meeting = Meeting(seed, RESETS, RESETS, ports=3)
        meeting.map()
        spoilt = meeting.b.addresses[0]
        wrong = Address(spoilt.host, 1)
        to_b = (wrong, *meeting.b.addresses[1:])
        meeting.a.start(to_b)
        meeting.b.start(meeting.a.addresses)
        meeting.net.until(lambda: all(user.hole for user in meeting.both))
        meeting.check()
        assert meeting.a.hole is not None
        assert meeting.a.hole.remote == meeting.b.addresses[1]

    def test_one_that_is_silent(self, seed: int) -> None:
        meeting = Meeting(seed, DROPS, DROPS, ports=2)
        meeting.map()
        first, second = meeting.b.addresses[:2]
        meeting.a.start((Address(first.host, 1), second))
        meeting.b.start(meeting.a.addresses)
        meeting.net.until(lambda: all(user.hole for user in meeting.both))
        meeting.check()


class TestSymmetry:
    def test_an_open_peer_is_dialled_from_wherever(self, seed: int) -> None:
        """What a symmetric NAT is seen as is of no use, but it can dial out."""
        meeting = Meeting(seed, "symmetric", "full-cone")
        meeting.map()
        assert meeting.punch() < 3

    def test_a_hopeless_pair_fails_and_says_what_was_tried(self, seed: int) -> None:
        meeting = Meeting(seed, "symmetric", RESETS)
        meeting.map()
        meeting.a.start(meeting.b.addresses, timeout=6 * SECOND)
        meeting.b.start(meeting.a.addresses, timeout=6 * SECOND)
        meeting.net.until(lambda: all(user.failed for user in meeting.both))
        assert "no connection within 6 s" in meeting.a.failed
        assert "connection refused (RST)" in meeting.a.failed
        assert str(meeting.b.addresses[0]) in meeting.a.failed


def test_a_nat_that_takes_offence(seed: int) -> None:
    """An uninvited SYN costs the session its port there; a low TTL lets none come too early."""
    meeting = Meeting(seed, POISONED, POISONED)
    meeting.map()
    assert meeting.punch(0.4, low_ttl=True) < 2
    early = [dial for dial in meeting.a.dials if dial.remote == meeting.b.addresses[0]]
    assert early[0].ttl == 2


@pytest.mark.parametrize("nat", [DROPS, RESETS, ICMP, POISONED])
def test_an_agent_begins_with_a_low_ttl_if_it_is_told_so(nat: str, seed: int) -> None:
    net = Net(seed, nat, nat, low_ttl_first=True, simultaneous_open=1)
    net.gathered(STUN)
    found = {end: end.candidate(REFLEXIVE, SO) for end in (net.a, net.b)}
    began = net.world.now
    before = net.world.dropped.copy()
    net.a.open(found[net.a].base, found[net.b].candidate.address)
    net.wait(0.3)
    net.b.open(found[net.b].base, found[net.a].candidate.address)
    net.wait(0.3)
    assert not net.a.told(PathOpened)
    assert not net.b.told(PathOpened)
    assert net.world.dropped != before  # what was sent has died on its way
    net.until(lambda: net.a.told(PathOpened) and net.b.told(PathOpened))
    assert net.world.now - began < 2 * SECOND


def test_in_step(seed: int) -> None:
    """One says "go" and waits for half a round trip; the other begins when it hears it."""
    meeting = Meeting(seed, RESETS, RESETS)
    meeting.map()
    rtt = int(0.3 * SECOND)
    said = meeting.world.now
    to_b, to_a = meeting.b.addresses, meeting.a.addresses
    meeting.a.start(to_b, at=start_at(said, rtt, told=False))
    meeting.world.run(until=said + rtt // 2 - 1)
    assert not [dial for dial in meeting.a.dials if dial.remote in to_b]
    meeting.b.start(to_a, at=start_at(meeting.world.now, rtt, told=True))
    meeting.net.until(lambda: all(user.hole for user in meeting.both))
    assert meeting.world.now - said - rtt // 2 < int(0.3 * SECOND)
    meeting.check()
