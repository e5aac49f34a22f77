"""What must hold of the simulated network whatever is sent over it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nattype.lab.sim import SERVER_A, SERVER_B, Scenario, SimOptions, behind, pair
from nattype.lab.sim.machines import Puppet, Reflector
from nattype.lab.sim.options import Pooling
from nattype.model import (
    NAMED_KINDS,
    Allocation,
    Filtering,
    Kind,
    Link,
    Mapping,
    NatModel,
    Unsolicited,
    grid,
)
from stun.sansio import MILLISECOND, SECOND, Address, Cause, Closed, Received

EVERY_KIND = (*NAMED_KINDS, *grid())
REMOTES = tuple(Address(host, port) for host in (SERVER_A, SERVER_B) for port in (3478, 3479, 3480))
LOCAL_PORTS = (5000, 5001, 5002)
QUICK = settings(max_examples=150, deadline=None, derandomize=True)


def mixed_program(seed: int, *, trace: bool) -> Scenario:
    """Run a random mixture of UDP and TCP through two random NATs and bad links."""
    rng = Random(seed)

    def link() -> Link:
        loss, delay = rng.choice((0, 0.1, 0.4)), rng.random() / 5
        return Link(loss, delay, rng.random() / 10, rng.choice((1500, 1280)))

    def options() -> SimOptions:
        return SimOptions(
            port_parity=rng.random() < 0.2,
            external_addresses=rng.choice((1, 2)),
            pooling=rng.choice(tuple(Pooling)),
            remap_after=rng.choice((None, 3.0)),
            syn_hold=rng.choice((0.0, 0.5)),
            alg=rng.random() < 0.2,
        )

    scenario = pair(
        rng.choice(EVERY_KIND),
        rng.choice(EVERY_KIND),
        seed=seed,
        link_a=link(),
        link_b=link(),
        options_a=options(),
        options_b=options(),
        trace=trace,
    )
    world = scenario.world
    world.attach(Reflector(*REMOTES), scenario.server)
    stranger = scenario.public_host()
    puppets = []
    for host in (scenario.host, scenario.peer, stranger):
        puppet = Puppet()
        world.attach(puppet, host)
        locals_ = [Address(host.address(), port) for port in LOCAL_PORTS]
        for local in locals_:
            puppet.bind(local)
            puppet.listen(local, silent=rng.random() < 0.2)
        puppets.append((puppet, locals_))
    seen = [*REMOTES, Address(stranger.address(), 5000)]
    for _ in range(40):
        puppet, locals_ = rng.choice(puppets)
        local, remote = rng.choice(locals_), rng.choice(seen)
        match rng.randrange(5):
            case 0 | 1:
                puppet.send(local, remote, rng.randbytes(rng.choice((4, 100, 4000))))
            case 2:
                puppet.write(puppet.dial(local, remote), rng.randbytes(5000))
            case 3:
                puppet.shut(rng.randrange(-3, 12), reset=rng.random() < 0.5)
            case _:
                # Knock at the mappings that exist, from wherever.
                for site in scenario.sites:
                    for box in site.boxes:
                        seen += [external for _, _, external in box.translations()][:3]
        world.run(max_time=rng.random())
        conserved(scenario)
    return scenario


def conserved(scenario: Scenario) -> None:
    world = scenario.world
    assert world.sent == world.delivered + sum(world.dropped.values()) + world.in_flight()


def test_a_run_is_a_function_of_its_seed(seed: int) -> None:
    for case in range(seed, seed + 15):
        first, second = (mixed_program(case, trace=True).world.trace for _ in range(2))
        assert first == second, case
        assert len(first) > 40, case


def test_tracing_changes_nothing(seed: int) -> None:
    for case in range(seed, seed + 5):
        watched, unwatched = (mixed_program(case, trace=trace).world for trace in (True, False))
        assert (watched.now, watched.sent, watched.delivered, watched.dropped) == (
            unwatched.now,
            unwatched.sent,
            unwatched.delivered,
            unwatched.dropped,
        )


def test_every_packet_has_one_fate_and_everything_ends(seed: int) -> None:
    for case in range(seed, seed + 60):
        scenario = mixed_program(case, trace=True)
        assert scenario.world.run(max_time=3600), f"seed {case}: something never ends"
        conserved(scenario)
        assert scenario.world.in_flight() == 0
        fates = [e.serial for e in scenario.world.trace if e.happening in ("delivered", "dropped")]
        assert sorted(fates) == list(range(1, scenario.world.sent + 1)), case


# The behaviour of one box against a model of it that knows nothing of packets. ------------------


@dataclass(frozen=True)
class Out:
    local: int
    remote: int


@dataclass(frozen=True)
class In:
    remote: int
    mapping: int


STEPS = st.lists(
    st.builds(Out, st.integers(0, len(LOCAL_PORTS) - 1), st.integers(0, len(REMOTES) - 1))
    | st.builds(In, st.integers(0, len(REMOTES) - 1), st.integers(0, 7)),
    max_size=40,
)
MAPPINGS = st.sampled_from(
    (Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT)
)
FILTERINGS = st.sampled_from(
    (
        Filtering.ENDPOINT_INDEPENDENT,
        Filtering.ADDRESS_DEPENDENT,
        Filtering.ADDRESS_AND_PORT_DEPENDENT,
    )
)


class Oracle:
    """What RFC 4787 says of a NAT, as sets: who shares a mapping, and whom a mapping lets in."""

    def __init__(self, mapping: Mapping, filtering: Filtering) -> None:
        self.mapping, self.filtering = mapping, filtering
        self.keys: dict[tuple[object, ...], Address] = {}
        self.owner: dict[Address, Address] = {}
        self.contacted: dict[Address, set[Address]] = {}
        self.route: dict[tuple[Address, Address], Address] = {}

    def out(self, local: Address, remote: Address, seen: Address) -> None:
        """Check what the remote side saw."""
        expected = self.route.get((local, remote))
        if expected is None:
            key: tuple[object, ...] = (local,)
            if self.mapping is Mapping.ADDRESS_DEPENDENT:
                key += (remote.host,)
            elif self.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT:
                key += (remote,)
            expected = self.keys.get(key)
            if expected is None:
                assert seen not in self.owner, "two mappings share an external endpoint"
                expected = self.keys[key] = seen
                self.owner[seen] = local
                self.contacted[seen] = set()
        assert seen == expected
        self.route[local, remote] = seen
        self.contacted[seen].add(remote)

    def passes(self, remote: Address, external: Address) -> Address | None:
        """Return the inside endpoint that must get the packet, or ``None``."""
        contacted = self.contacted[external]
        local = self.owner[external]
        open_ = remote in contacted
        if self.filtering is Filtering.ENDPOINT_INDEPENDENT:
            open_ = True
        elif self.filtering is Filtering.ADDRESS_DEPENDENT:
            open_ = any(remote.host == other.host for other in contacted)
        if not open_:
            return None
        # The answer leaves by the mapping addressed, unless the two already talk over another one.
        self.route.setdefault((local, remote), external)
        return local


@QUICK
@given(
    mapping=MAPPINGS,
    filtering=FILTERINGS,
    allocation=st.sampled_from((Allocation.PRESERVED, Allocation.SEQUENTIAL, Allocation.RANDOM)),
    steps=STEPS,
    case=st.integers(0, 1000),
)
def test_a_box_does_what_rfc_4787_says(
    mapping: Mapping, filtering: Filtering, allocation: Allocation, steps: list[Out | In], case: int
) -> None:
    model = NatModel(mapping, filtering, allocation)
    scenario = behind(Kind("box", "", (model,)), seed=case)
    world = scenario.world
    client, server = Puppet(), Puppet()
    world.attach(client, scenario.host)
    world.attach(server, scenario.server)
    inside = [Address(scenario.host.address(), port) for port in LOCAL_PORTS]
    for local in inside:
        client.bind(local)
    for remote in REMOTES:
        server.bind(remote)
    oracle = Oracle(mapping, filtering)
    ports: list[int] = []
    for step in steps:
        client.log.clear()
        server.log.clear()
        world.run()
        if isinstance(step, Out):
            local, remote = inside[step.local], REMOTES[step.remote]
            client.send(local, remote)
            world.run()
            [packet] = [what for _, what in server.log if isinstance(what, Received)]
            if packet.source not in oracle.owner:
                ports.append(packet.source.port)
                if allocation is Allocation.PRESERVED and local.port not in ports[:-1]:
                    assert packet.source.port == local.port
            oracle.out(local, remote, packet.source)
        elif oracle.owner:
            external = list(oracle.owner)[step.mapping % len(oracle.owner)]
            remote = REMOTES[step.remote]
            server.send(remote, external)
            world.run()
            packets = [what for _, what in client.log if isinstance(what, Received)]
            expected = oracle.passes(remote, external)
            assert [(p.source, p.local) for p in packets] == (
                [] if expected is None else [(remote, expected)]
            )
    if allocation is Allocation.SEQUENTIAL:
        assert ports == list(range(ports[0], ports[0] + len(ports))) if ports else True
    assert world.now < SECOND, "no lifetime has anything to do with it"


# TCP. -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exchange:
    """Bytes to write on both sides, in pieces, and who closes how and when."""

    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    close_after: float
    we_close: bool
    reset: bool


EXCHANGES = st.builds(
    Exchange,
    st.lists(st.integers(0, 20_000), max_size=4).map(tuple),
    st.lists(st.integers(0, 20_000), max_size=4).map(tuple),
    st.sampled_from((0.0, 0.05, 1.0, 30.0)),
    st.booleans(),
    st.booleans(),
)
LINKS = st.builds(
    Link,
    st.sampled_from((0.0, 0.05, 0.2, 0.5)),
    st.sampled_from((0.0, 0.01, 0.3)),
    st.sampled_from((0.0, 0.1)),
    st.sampled_from((1500, 576)),
)


@QUICK
@given(exchange=EXCHANGES, link=LINKS, case=st.integers(0, 1000))
def test_a_stream_arrives_in_order_once_and_ends_on_both_sides(
    exchange: Exchange, link: Link, case: int
) -> None:
    rng = Random(case)
    scenario = behind("port-restricted-cone", seed=case, link=link)
    world = scenario.world
    client, server = Puppet(), Puppet()
    world.attach(client, scenario.host)
    world.attach(server, scenario.server)
    server.listen(REMOTES[0])
    handle = client.dial(Address(scenario.host.address(), 5000), REMOTES[0])
    assert world.run(until=lambda: len(client.told()) > 0, max_time=200), "a dial that never ends"
    if not client.connected(handle):
        assert client.closed(handle) is Cause.TIMED_OUT
        assert link.loss > 0
        return
    ours = [rng.randbytes(size) for size in exchange.ours]
    theirs = [rng.randbytes(size) for size in exchange.theirs]
    for piece in ours:
        client.write(handle, piece)
    world.run(until=lambda: bool(server.accepted()), max_time=200)
    if not server.accepted():
        assert link.loss > 0
        return
    [accepted] = server.accepted()
    for piece in theirs:
        server.write(accepted.handle, piece)
    world.run(max_time=exchange.close_after)
    closer, other = (client, server) if exchange.we_close else (server, client)
    closer_handle = handle if exchange.we_close else accepted.handle
    other_handle = accepted.handle if exchange.we_close else handle
    ended_before = closer.closed(closer_handle) is not None
    closer.shut(closer_handle, reset=exchange.reset)
    assert world.run(max_time=7200), "a connection that never ends"
    sent_by_closer = b"".join(ours if exchange.we_close else theirs)
    sent_by_other = b"".join(theirs if exchange.we_close else ours)
    assert sent_by_closer.startswith(other.stream(other_handle))
    assert sent_by_other.startswith(closer.stream(closer_handle))
    assert closer.closed(closer_handle) is None or ended_before
    cause = other.closed(other_handle)
    if cause is Cause.END_OF_STREAM:
        assert other.stream(other_handle) == sent_by_closer, "the end came before the bytes"
    elif cause is None:
        # Only an RST, which nobody repeats, may be lost and leave the other side waiting.
        assert link.loss > 0
    else:
        assert cause in (Cause.RESET, Cause.TIMED_OUT)
    count = [e for e in (*client.told(), *server.told()) if isinstance(e, Closed)]
    assert len(count) <= 2


@QUICK
@given(
    skew=st.integers(-400, 400),
    delay=st.sampled_from((0.0, 0.04, 0.2)),
    unsolicited=st.sampled_from((Unsolicited.DROP, Unsolicited.RST, Unsolicited.ICMP)),
    case=st.integers(0, 1000),
)
def test_both_sides_of_a_simultaneous_open_agree(
    skew: int, delay: float, unsolicited: Unsolicited, case: int
) -> None:
    """Two port-preserving NATs and one dial on each side, up to 400 ms apart."""
    model = NatModel(unsolicited_tcp=unsolicited)
    box = Kind("box", "", (model,))
    scenario = pair(box, box, seed=case, link_a=Link(delay=delay), link_b=Link(delay=delay))
    world = scenario.world
    ends = []
    for site in scenario.sites:
        puppet = Puppet()
        world.attach(puppet, site.host)
        local = Address(site.host.address(), 5000)
        ends.append((puppet, local, Address(site.boxes[0].external_addresses()[0], 5000)))
    (a, a_local, a_mapped), (b, b_local, b_mapped) = ends
    if skew < 0:
        a, a_local, a_mapped, b, b_local, b_mapped = b, b_local, b_mapped, a, a_local, a_mapped
    first = a.dial(a_local, b_mapped)
    world.run(until=world.now + abs(skew) * MILLISECOND)
    second = b.dial(b_local, a_mapped)
    assert world.run(max_time=300), "a dial that never ends"
    assert a.connected(first) == b.connected(second)
    for puppet, handle in ((a, first), (b, second)):
        assert puppet.connected(handle) != (puppet.closed(handle) is not None)
    if unsolicited is Unsolicited.DROP:
        # Silence is what a SYN's retransmission is made for, whatever the skew.
        assert a.connected(first)
    if a.connected(first):
        a.write(first, b"one")
        b.write(second, b"connection")
        world.run()
        assert (b.stream(second), a.stream(first)) == (b"one", b"connection")


def test_ten_thousand_seeded_runs_are_cheap_enough_to_be_made(seed: int) -> None:
    """The point of the simulator; here a hundredth of them, each of its own seed and kind."""
    rng = Random(seed)
    for case in range(100):
        scenario = behind(rng.choice(EVERY_KIND), seed=case, link=Link(loss=0.1, delay=0.02))
        scenario.world.attach(Reflector(*REMOTES), scenario.server)
        client = Puppet()
        scenario.world.attach(client, scenario.host)
        local = Address(scenario.host.address(), 5000)
        client.bind(local)
        for remote in REMOTES:
            client.send(local, remote)
            client.dial(local, remote)
        assert scenario.world.run(max_time=600)
        conserved(scenario)


@pytest.mark.parametrize("which", EVERY_KIND, ids=lambda k: k.name)
def test_no_kind_lets_out_what_it_would_not_take_back(which: Kind, seed: int) -> None:
    """Whoever is asked can answer: every NAT serves a client, whatever its behaviour."""
    if any(box.udp_blocked for box in which.boxes):
        return
    scenario = behind(which, seed=seed)
    scenario.world.attach(Reflector(*REMOTES), scenario.server)
    client = Puppet()
    scenario.world.attach(client, scenario.host)
    local = Address(scenario.host.address(), 5000)
    client.bind(local)
    for remote in REMOTES:
        client.send(local, remote)
    scenario.world.run()
    assert [packet.source for packet in client.received()] == list(REMOTES)
