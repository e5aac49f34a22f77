"""Two sessions over carriers that come, pause, fall silent and end: what is written is read."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ice.link.happenings import Aborted, Suspect
from tools.linkdesk import Appetite, Desk, Wire

KIB = 1024
rates = st.sampled_from([30e3, 125e3, 1e6, 10e6, 100e6])
delays = st.sampled_from([0.0001, 0.005, 0.04, 0.15, 0.4])
moments = st.floats(0, 8).map(lambda value: round(value, 3))


@dataclass(frozen=True)
class Fate:
    """What becomes of a carrier."""

    kind: str
    at: float = 0.0
    later: float = 0.0
    octets: int = 0


fates = st.one_of(
    st.just(Fate("lives")),
    st.builds(Fate, st.just("silent"), at=moments),
    st.builds(Fate, st.just("cut"), octets=st.integers(0, 600_000)),
    st.builds(Fate, st.just("ends"), at=moments, later=st.floats(0, 4)),
    st.builds(Fate, st.just("ends one side"), at=moments),
    st.builds(Fate, st.just("pauses"), at=moments, later=st.floats(0.05, 5)),
)


@dataclass(frozen=True)
class Plan:
    """A carrier: when it comes, what it is like, how it ends."""

    rank: int
    rate: float
    delay: float
    buffer: int
    comes: float
    skew: float
    fate: Fate


buffers = st.sampled_from([16 * KIB, 256 * KIB, 2048 * KIB])
plans = st.builds(
    Plan,
    rank=st.integers(1, 3),
    rate=rates,
    delay=delays,
    buffer=buffers,
    comes=moments,
    skew=st.sampled_from([0.0, 0.03, 0.5, 4.0]),
    fate=fates,
)
appetites = st.builds(
    Appetite,
    write=st.sampled_from([100, 5000, 65536, 300_000]),
    write_pause=st.sampled_from([0.0, 0.0, 0.001]),
    read=st.sampled_from([1000, 65536, 1 << 30]),
    read_pause=st.sampled_from([0.0, 0.0, 0.002]),
)

sizes = st.sampled_from([0, 1, 70_000, 400_000, 1_500_000])


def lay(desk: Desk, plan: Plan) -> None:
    """Let a carrier come and meet its fate."""

    def come() -> None:
        wire = desk.wire(
            plan.rank, rate=plan.rate, delay=plan.delay, buffer=plan.buffer, skew=plan.skew
        )
        fate = plan.fate
        if fate.kind == "cut":
            wire.hush(fate.octets)
        elif fate.kind == "silent":
            desk.clock.after(fate.at, wire.hush)
        elif fate.kind == "pauses":
            desk.clock.after(fate.at, lambda: wire.pause(fate.later))
        elif fate.kind.startswith("ends"):
            desk.clock.after(fate.at, lambda: wire.end(0))
            if fate.kind == "ends":
                desk.clock.after(fate.at + fate.later, lambda: wire.end(1))

    desk.clock.after(plan.comes, come)


@given(
    plans=st.lists(plans, max_size=3),
    survivor=st.builds(
        Plan,
        rank=st.integers(1, 3),
        rate=rates,
        delay=delays,
        buffer=buffers,
        comes=moments,
        skew=st.sampled_from([0.0, 0.5]),
        fate=st.just(Fate("lives")),
    ),
    window=st.sampled_from([64 * KIB, 256 * KIB, 8192 * KIB]),
    users=st.tuples(st.tuples(appetites, sizes), st.tuples(appetites, sizes)),
    seed=st.integers(0, 1 << 32),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_written_is_read_and_both_sides_end(
    plans: list[Plan],
    survivor: Plan,
    window: int,
    users: tuple[tuple[Appetite, int], tuple[Appetite, int]],
    seed: int,
) -> None:
    rng = Random(seed)
    desk = Desk(window=window, appetites=(users[0][0], users[1][0]))
    for plan in [*plans, survivor]:
        lay(desk, plan)
    for person, (_, size) in zip(desk.people, users, strict=True):
        person.give(rng.randbytes(size))
        assert person.session.signal(b"hello", desk.clock.now)
    assert desk.clock.run(1200, desk.over), [p.session.carriers() for p in desk.people]
    assert desk.finished(), [person.outcome for person in desk.people]
    for person in desk.people:
        assert person.read == len(person.other.to_write)
        assert person.told.signals == [b"hello"]
        assert not person.told.of(Aborted)
        event(f"moves: {min(len(person.moves), 6)}")


deaths = st.one_of(
    st.builds(Fate, st.just("silent"), at=st.floats(1.5, 5)),
    st.builds(Fate, st.just("cut"), octets=st.integers(400_000, 3_000_000)),
    st.builds(Fate, st.just("ends"), at=st.floats(1.5, 5), later=st.floats(0, 4)),
    st.builds(Fate, st.just("ends one side"), at=st.floats(1.5, 5)),
    st.builds(Fate, st.just("pauses"), at=st.floats(1.5, 5), later=st.floats(0.05, 6)),
)


@given(
    doomed=st.lists(
        st.builds(
            Plan,
            rank=st.integers(2, 4),
            rate=st.sampled_from([250e3, 1e6, 10e6]),
            delay=st.sampled_from([0.0005, 0.02, 0.15]),
            buffer=buffers,
            comes=st.floats(0, 1),
            skew=st.just(0.0),
            fate=deaths,
        ),
        min_size=1,
        max_size=2,
    ),
    spare=st.builds(
        Plan,
        rank=st.just(1),
        rate=st.sampled_from([250e3, 1e6, 10e6]),
        delay=st.sampled_from([0.0005, 0.02, 0.15]),
        buffer=buffers,
        comes=st.just(0.0),
        skew=st.just(0.0),
        fate=st.just(Fate("lives")),
    ),
    seed=st.integers(0, 1 << 32),
    both=st.booleans(),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_stall_over_three_seconds_while_a_spare_lives(
    doomed: list[Plan], spare: Plan, seed: int, both: bool
) -> None:
    rng = Random(seed)
    desk = Desk()
    for plan in [spare, *doomed]:
        lay(desk, plan)
    for person in desk.people if both else desk.people[:1]:
        # Enough for as long as anything happens, at the rate of the best.
        person.give(rng.randbytes(4_000_000), end=False)
    everybody = [person for person in desk.people if person.other.to_write]

    def read() -> bool:
        return all(person.read == len(person.other.to_write) for person in everybody)

    assert desk.clock.run(120, read)
    for person in everybody:
        assert person.stall <= 3, (person.stall, person.told.events)


def spares(desk: Desk) -> tuple[Wire, Wire]:
    """Return a relay and a better carrier, both in use already."""
    relay = desk.wire(1, rate=2e6, delay=0.04)
    direct = desk.wire(2, rate=20e6, delay=0.02)
    desk.clock.run(0.5)
    return relay, direct


@given(grain=st.integers(1, 40), seed=st.integers(0, 1 << 32))
@settings(max_examples=20, deadline=None)
def test_octets_come_in_any_portions(grain: int, seed: int) -> None:
    desk = Desk()
    wire = desk.wire()
    for way in wire.ways:
        way.grain = grain
    for person in desk.people:
        person.give(Random(seed).randbytes(3000))
        for size in (0, 100, 1000):
            assert person.session.signal(bytes(size), desk.clock.now)
    assert desk.clock.run(20, desk.finished)
    for person in desk.people:
        assert [len(text) for text in person.told.signals] == [0, 100, 1000]
        assert not person.told.of(Suspect)
        assert person.session.carriers()[0].outstanding == 0


@given(octet=st.integers(0, 70_000), side=st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_carrier_may_die_at_any_octet(octet: int, side: int) -> None:
    desk = Desk()
    _, direct = spares(desk)
    direct.ways[side].silent_after = octet
    for person in desk.people:
        person.give(Random(octet).randbytes(70_000))
        person.session.signal(b"one", desk.clock.now)
        person.session.signal(b"two", desk.clock.now)
    assert desk.clock.run(20, desk.finished)
    for person in desk.people:
        assert person.told.signals == [b"one", b"two"]
