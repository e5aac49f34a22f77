"""Whatever is told in whatever order, and whatever a peer that knows the password sends."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ice.base import Base
from ice.candidate import Candidate, CandidateType, TcpType
from ice.config import Config, Credentials, Nomination
from ice.pair import PairState
from stun.attributes import USERNAME
from stun.codec import encode
from stun.errors import UsageError
from stun.message import Message
from stun.registry import Class
from stun.sansio import MILLISECOND, SECOND, Address, Cause
from tools.icestub import LOCAL_KEY, REMOTE, Bench, make_candidate

MS = MILLISECOND
CODES = (
    0x0006,
    0x0020,
    0x0024,
    0x0025,
    0x0030,
    0x0009,
    0x000A,
    0x7F01,
    0x8022,
    0x8029,
    0x802A,
    0xC001,
)
VALUES = st.one_of(
    st.binary(max_size=16), st.sampled_from((b"", bytes(4), bytes(8), b"\xff" * 8, b"locl:remo"))
)
ATTRIBUTES = st.lists(st.tuples(st.sampled_from(CODES), VALUES), max_size=6)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_octets_never_raise(data: bytes) -> None:
    bench = Bench()
    base = bench.host()
    bench.know_peer()
    bench.deliver(base, Address("10.0.0.2", 6000), data)
    assert sum(bench.checker.drops.values()) == 1
    assert list(bench.checker.pairs()) == []


@settings(max_examples=300)
@given(ATTRIBUTES, st.booleans(), st.booleans())
def test_what_a_peer_with_the_password_sends_never_raises(
    attributes: list[tuple[int, bytes]], controlling: bool, named: bool
) -> None:
    bench = Bench(controlling=controlling)
    base = bench.host()
    bench.know_peer()
    bench.candidate()
    (check,) = bench.advance()
    for kind in Class:
        message = Message(1, kind, check.message.transaction_id)
        if named:
            message.add(USERNAME, "locl:remo")
        message.attributes.extend(attributes)
        for key in (LOCAL_KEY, REMOTE.password.encode()):
            bench.deliver(base, check.remote, encode(message, key=key, fingerprint=True))
    bench.advance(SECOND)
    check_invariants(bench)


HOSTS = ("10.0.0.1", "10.0.1.1", "2001:db8::1", "fe80::1%eth0", "127.0.0.1")
REMOTES = ("10.0.0.2", "192.0.2.2", "2001:db8::2", "fe80::2", "127.0.0.1", "0.0.0.0", "x.local")


class Monkey:
    """Does something, anything, to a checker."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        config = Config(
            components=rng.choice((1, 2)),
            streams=rng.choice((1, 2)),
            most_pairs=rng.choice((3, 10, 100)),
            most_remote=rng.choice((3, 10, 256)),
            monitor=rng.random() < 0.5,
            lite=rng.random() < 0.1,
            nomination=rng.choice(list(Nomination)),
        )
        self.bench = Bench(config, controlling=rng.random() < 0.5, seed=seed)
        self.bases: list[Base] = []
        self.generation = 0
        self.local, self.remote = ("locl", LOCAL_KEY), ("remo", REMOTE.password.encode())
        self.doings = (
            *[self.add_local] * 3,
            *[self.add_remote] * 3,
            self.know,
            *[self.answer] * 8,
            *[self.ask] * 5,
            self.refuse,
            self.path,
            self.lose_base,
            self.restart,
            self.probe,
            self.nominate,
            self.lost,
            self.end,
            *[self.wait] * 6,
        )

    def where(self) -> dict[str, int]:
        config = self.bench.checker._core.config
        return {
            "component": self.rng.randint(1, config.components),
            "stream": self.rng.randrange(config.streams),
        }

    def add_local(self) -> None:
        tcptype = self.rng.choice((None, None, *TcpType))
        host, port = self.rng.choice(HOSTS), self.rng.randint(5000, 5005)
        relay = "turn:r" if tcptype is None and self.rng.random() < 0.2 else ""
        self.bases.append(self.bench.host(host, port, tcptype=tcptype, relay=relay, **self.where()))  # type: ignore[arg-type]

    def remote_candidate(self, component: int) -> Candidate:
        tcptype = self.rng.choice((None, None, *TcpType))
        return make_candidate(
            self.rng.choice(REMOTES),
            self.rng.randint(6000, 6005),
            self.rng.choice(list(CandidateType)),
            component=component,
            tcptype=tcptype,
            preference=self.rng.randint(0, 65535),
        )

    def add_remote(self) -> None:
        where = self.where()
        candidate = self.remote_candidate(where["component"])
        if self.rng.random() < 0.1:
            candidate = replace(candidate, foundation="same")
        self.bench.checker.add_remote(candidate, where["stream"], self.bench.now)

    def know(self) -> None:
        ufrag, key = self.remote
        credentials = Credentials(ufrag, key.decode())
        self.bench.checker.set_remote(credentials, self.rng.random() < 0.1, self.bench.now)

    def checks(self) -> list:  # type: ignore[type-arg]
        recent = self.bench.sent[-40:]
        return [sent for sent in recent if sent.message.message_class is Class.REQUEST]

    def answer(self) -> None:
        if checks := self.checks():
            sent = self.rng.choice(checks)
            mapped = self.rng.choice((None, Address("198.51.100.1", self.rng.randint(1, 3))))
            source = Address("9.9.9.9", 9) if self.rng.random() < 0.1 else None
            self.bench.answer(
                sent,
                mapped=mapped,
                source=source,
                key=self.remote[1],
                after=self.rng.randint(0, 90) * MS,
            )

    def refuse(self) -> None:
        if checks := self.checks():
            code = self.rng.choice((400, 401, 487, 487, 500))
            self.bench.refuse(self.rng.choice(checks), code, key=self.remote[1])

    def ask(self) -> None:
        if not self.bases:
            return
        base = self.rng.choice(self.bases)
        family = "2001:db8::2" if base.address.is_ipv6 else "10.0.0.2"
        known = [pair.remote_address for pair in self.bench.checker.pairs() if pair.base is base]
        source = Address(family, self.rng.randint(6000, 6010))
        if known and self.rng.random() < 0.7:
            source = self.rng.choice(known)
        theirs = self.rng.choice(("remo", self.remote[0]))
        role: dict[str, object] = {}
        if self.rng.random() < 0.1:
            name = self.rng.choice(("controlling", "controlled"))
            role[name] = self.rng.choice((0, 1 << 63, (1 << 64) - 1))
        self.bench.ask(
            base,
            source,
            username=f"{self.local[0]}:{theirs}",
            key=self.local[1],
            use_candidate=self.rng.random() < 0.4,
            priority=self.rng.choice((1, 0x6EFFFFFF, 0xFFFFFFFF)),
            **role,
        )

    def path(self) -> None:
        pairs = [pair for pair in self.bench.checker.pairs() if pair.base.is_reliable]
        if self.rng.random() < 0.2:
            pairs = list(self.bench.checker.pairs())
        if not pairs:
            return
        pair = self.rng.choice(pairs)
        base, remote, now = pair.base, pair.remote_address, self.bench.now
        match self.rng.randrange(3):
            case 0:
                self.bench.checker.path_opened(base, remote, now)
            case 1:
                self.bench.checker.path_closed(base, remote, Cause.RESET, now)
            case 2:
                self.bench.checker.path_unreachable(base, remote, now)

    def lose_base(self) -> None:
        if self.bases:
            base = self.bases.pop(self.rng.randrange(len(self.bases)))
            self.bench.checker.base_lost(base, self.bench.now)

    def restart(self) -> None:
        if self.rng.random() < 0.3:
            self.generation += 1
            name = f"g{self.generation:03}"
            self.local = (name, (name * 8).encode())
            self.remote = (f"r{self.generation:03}", (f"r{self.generation:03}" * 8).encode())
            credentials = Credentials(name, name * 8)
            self.bench.checker.restart(credentials, self.bench.now)
            for base in self.bases:
                candidate = make_candidate(
                    *base.address, component=base.component, tcptype=base.tcptype
                )
                self.bench.checker.add_local(candidate, base, self.bench.now)

    def some_pair(self):  # type: ignore[no-untyped-def]
        return self.rng.choice([*self.bench.checker.pairs(), None])

    def probe(self) -> None:
        if pair := self.some_pair():
            self.bench.checker.probe(pair, self.bench.now)

    def nominate(self) -> None:
        if pair := self.some_pair():
            self.bench.checker.nominate(pair, self.bench.now)

    def lost(self) -> None:
        if pair := self.some_pair():
            self.bench.checker.lost(pair, "for the sake of it", self.bench.now)

    def end(self) -> None:
        if self.rng.random() < 0.3:
            self.bench.checker.end_of_local(self.bench.now)
            self.bench.checker.end_of_remote(self.bench.now)

    def wait(self) -> None:
        self.bench.advance(self.rng.choice((0, 10, 50, 50, 500, 5000, 60_000)) * MS)

    def play(self, steps: int) -> None:
        for _ in range(steps):
            with suppress(UsageError):
                self.rng.choice(self.doings)()
            self.bench.drain()
            check_invariants(self.bench)


def check_invariants(bench: Bench) -> None:
    core = bench.checker._core
    config = core.config
    generation = core.generation
    assert generation is not None
    listed = 0
    for checklist in generation.checklists:
        listed += len(checklist.pairs)
        assert len(checklist.pairs) <= config.most_pairs
        assert len(checklist.remotes) <= config.most_remote
        priorities = [pair.priority for pair in checklist.pairs]
        assert priorities == sorted(priorities, reverse=True)
        assert list(checklist.triggered) == [p for p in checklist.triggered if p.queued]
        assert set(checklist.triggered) == {p for p in checklist.pairs if p.queued}
        for pair in checklist.pairs:
            assert generation.paths[pair.base, pair.remote_address] is pair
            assert pair.base in generation.bases
            assert pair.valid == (pair.state is PairState.SUCCEEDED)
            assert not pair.removed
            assert pair.queued <= (pair.state is PairState.WAITING)
            assert not pair.nominated or checklist.selected[pair.component] is pair
            assert pair in generation._groups[pair.foundation]
            if pair.state is PairState.IN_PROGRESS:
                assert pair.current is not None
        for table in (checklist.selected, checklist.nominating):
            for component, pair in table.items():
                assert pair.valid
                assert pair.component == component
                assert pair in checklist.pairs
    assert listed == len(generation.paths) == sum(map(len, generation._groups.values()))
    assert not core.dirty
    due = bench.checker.deadline()
    if due is not None and due > bench.now:
        # Nothing is forgotten: what is in progress has a deadline.
        assert due <= bench.now + max(config.patience, 40 * SECOND)


@settings(max_examples=300)
@given(st.integers(0, 1 << 32))
def test_any_commands_in_any_order(seed: int) -> None:
    Monkey(seed).play(120)
