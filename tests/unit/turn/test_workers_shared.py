"""The memory that workers share: accounts, rates, openings."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from stun.sansio import SECOND
from turn.daemon.workers.accounts import Accounts, digest_of, region_size, slots_for
from turn.daemon.workers.memory import Memory
from turn.daemon.workers.openings import SIZE as OPENINGS_SIZE
from turn.daemon.workers.openings import Openings
from turn.daemon.workers.rates import SIZE as RATES_SIZE
from turn.daemon.workers.rates import Rates
from turn.meter import Meter
from turn.server.config import Limits

SLOTS = 64


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory.make(3 * region_size(SLOTS) + RATES_SIZE + OPENINGS_SIZE)
    yield made
    made.close()


def of(memory: Memory, number: int, slots: int = SLOTS) -> Accounts:
    return Accounts(memory, 0, slots, 3, number)


# Accounts. ----------------------------------------------------------------------------------------


def test_accounts_agree_with_a_dictionary(memory: Memory, rng: random.Random) -> None:
    """Entries come and go in a table that is full for the most part; none is lost or left."""
    accounts, kept = of(memory, 1), of(memory, 2)
    users: Counter[str] = Counter()
    clients: dict[bytes, tuple[int, int]] = {}
    for _ in range(5_000):
        name = f"user{rng.randrange(20)}"
        users[name] = rng.choice((0, 0, 1, 7))
        accounts.note_user(name, users[name])
        client = bytes([rng.randrange(20)])
        clients[client] = rng.choice(((0, 0), (1, 0), (0, 2), (3, 4)))
        accounts.note_client(client, *clients[client])
        name, client = f"user{rng.randrange(24)}", bytes([rng.randrange(24)])
        assert kept.user(name) == users[name]
        assert kept.client(client) == clients.get(client, (0, 0))
    assert accounts.unshared == 0
    for name in users:
        accounts.note_user(name, 0)
    for client in clients:
        accounts.note_client(client, 0, 0)
    accounts.note_totals(0, 0)
    assert not any(memory.view[: region_size(SLOTS)]), "an empty table is as it was"


def test_sums_are_of_all_others(memory: Memory) -> None:
    first, second, third, supervisor = (of(memory, number) for number in (1, 2, 3, 0))
    for number, one in enumerate((first, second, third), 1):
        one.note_user("ann", number)
        one.note_client("192.0.2.1", number, 10 * number)
        one.note_totals(number, 10 * number)
    assert (first.user("ann"), first.client("192.0.2.1"), first.totals()) == (5, (5, 50), (5, 50))
    assert (supervisor.user("ann"), supervisor.totals()) == (6, (6, 60))
    supervisor.clear(2)
    assert (first.user("ann"), first.client("192.0.2.1"), first.totals()) == (3, (3, 30), (3, 30))
    second.note_user("ann", 1)
    assert first.user("ann") == 4, "whoever takes its place begins with nothing"


def test_what_finds_no_room_is_counted(memory: Memory) -> None:
    accounts, other = of(memory, 1), of(memory, 2)
    for number in range(SLOTS):
        accounts.note_user(f"user{number}", 1)
    assert accounts.unshared == SLOTS // 4
    assert sum(other.user(f"user{number}") for number in range(SLOTS)) == SLOTS * 3 // 4
    accounts.note_user("user0", 2)
    assert other.user("user0") == 2, "what is there changes all the same"
    accounts.note_user("user0", 0)
    accounts.note_user("late", 1)
    assert other.user("late") == 1


def test_names_do_not_mix() -> None:
    names = ["a", b"a", "192.0.2.1", b"192.0.2.1", "", b"", "\udc80"]
    assert len({digest_of(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("limits", "slots"),
    [
        (Limits(), 262_144),
        (Limits(allocations=10, connections=10), 256),
        (Limits(allocations=0), 131_072),
    ],
)
def test_there_is_room_for_what_is_allowed(limits: Limits, slots: int) -> None:
    assert slots_for(limits) == slots


def test_the_lock_is_let_go_of_by_who_dies(memory: Memory) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        memory.__enter__()
        os.write(told, b"x")
        signal.pause()
    os.read(ready, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with memory, memory:
        memory.view[0] = 1
    os.close(ready)
    os.close(told)


# Rates. -------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now


def test_a_rate_is_one_for_all(memory: Memory, rng: random.Random) -> None:
    """The law of turn.meter, over meters of two workers that share a user's rate."""
    clock, rate, burst = Clock(), 100_000, 1.0
    workers = [Rates(memory, 0, clock) for _ in range(2)]
    meters = [Meter(worker.bucket("user", "ann", (rate, 0))) for worker in workers]
    passed = Counter[int]()
    began = clock.now
    while clock.now < began + 20 * SECOND:
        clock.now += rng.randrange(2_000_000)
        which = rng.randrange(2)
        size = rng.randrange(1, 1_200)
        if meters[which].take(size, clock.now):
            passed[which] += size
    most = rate * (20 + burst)
    # Beyond it each may hold a purse and a lease of 4096, and one packet.
    assert most * 0.95 < passed.total() < most + 2 * (2.5 * 4096 + 1_200)
    assert 0.35 < passed[0] / passed.total() < 0.65


def test_users_and_clients_have_each_their_own(memory: Memory) -> None:
    clock = Clock()
    rates = Rates(memory, 0, clock)
    for whose, name in (("user", "a"), ("user", "b"), ("client", "a"), ("client", b"a")):
        bucket = rates.bucket(whose, name, (10_000, 0))
        assert bucket.source is not None
        assert bucket.source.draw(10_001, 0)
        assert not bucket.source.draw(1, 0)
    clock.now += SECOND
    assert rates.bucket("user", "a", (10_000, 0)).source.draw(1, 0)  # type: ignore[union-attr]


def test_debts_are_remembered_and_idle_ones_are_full(memory: Memory) -> None:
    clock = Clock()
    rates = Rates(memory, 0, clock)
    bucket = rates.bucket("user", "ann", (1_000, 10))
    assert bucket.source is not None
    assert bucket.source.draw(3_000, 0)
    clock.now += SECOND
    again = rates.bucket("user", "ann", (1_000, 10)).source
    assert again is not None
    assert not again.draw(1, 0), "giving up the allocation does not pay a debt"
    assert again.draw(0, 10), "what is not asked for is not in debt"
    clock.now += 10 * SECOND
    assert again.draw(1_000, 10)
    assert not again.draw(1, 0), "nor is more than a burst saved up"


def test_other_rates_hold_at_once(memory: Memory) -> None:
    clock = Clock()
    bucket = Rates(memory, 0, clock).bucket("user", "ann", (1_000, 0))
    assert bucket.source is not None
    bucket.change(10, 0)
    assert bucket.source.draw(10, 0)
    assert not bucket.source.draw(1, 0)


def test_the_longest_idle_gives_way(memory: Memory) -> None:
    clock = Clock()
    rates = Rates(memory, 0, clock)
    names = [f"user{number}" for number in range(40_000)]
    for name in names:
        clock.now += 1_000
        source = rates.bucket("user", name, (1_000, 0)).source
        assert source is not None
        assert source.draw(500, 0)
    assert rates.bucket("user", names[-1], (1_000, 0)).source.draw(500, 0)  # type: ignore[union-attr]
    last = rates.bucket("user", names[-1], (1_000, 0)).source
    assert last is not None
    assert not last.draw(1, 0), "the newest are there"


# Openings. ----------------------------------------------------------------------------------------


def test_openings(memory: Memory) -> None:
    first, second, supervisor = (Openings(memory, 0, number) for number in (1, 2, 0))
    for one in (first, second, supervisor):
        one.places = {"127.0.0.1": 0, "::1": 1}
    first.open("127.0.0.1", 50_000, tcp=False)
    assert second.has("127.0.0.1", 50_000, tcp=False)
    assert not first.has("127.0.0.1", 50_000, tcp=False), "its own it knows itself"
    assert not second.has("127.0.0.1", 50_000, tcp=True)
    assert not second.has("::1", 50_000, tcp=False)
    assert not second.has("127.0.0.1", 50_001, tcp=False)
    second.visit("127.0.0.1", 50_000)
    assert first.close("127.0.0.1", 50_000, tcp=False), "somebody is to be told"
    assert not second.has("127.0.0.1", 50_000, tcp=False)
    first.open("127.0.0.1", 50_000, tcp=False)
    assert not first.close("127.0.0.1", 50_000, tcp=False), "once"
    for port in (0, 65_535):
        first.open("::1", port, tcp=True)
        second.open("::1", port ^ 1, tcp=True)
    supervisor.clear(1)
    assert not second.has("::1", 65_535, tcp=True)
    assert first.has("::1", 65_534, tcp=True)


def test_a_host_without_a_place(memory: Memory) -> None:
    openings = Openings(memory, 0, 1)
    openings.open("192.0.2.1", 5, tcp=False)
    openings.visit("192.0.2.1", 5)
    assert not openings.has("192.0.2.1", 5, tcp=False)
    assert not openings.close("192.0.2.1", 5, tcp=False)
