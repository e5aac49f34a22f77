"""The plan: the pair matrix as a table, and what is decided where measurements are missing."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from random import Random

import pytest

from ice.predict.moves import BIRTHDAY_BUDGET, PREDICTION_BUDGET, mixed_chance
from ice.predict.plan import plan
from ice.predict.steps import Budget, Plan, Step, Strategy
from ice.predict.summary import FamilySummary, NatSummary, PathSummary, Transport
from nattype.model import Allocation, Filtering, Mapping, Unsolicited
from nattype.peers import MATRIX, PeerKind, birthday_probability
from nattype.report import Reach
from stun.errors import UsageError

EIM, ADM, APDM = (
    Mapping.ENDPOINT_INDEPENDENT,
    Mapping.ADDRESS_DEPENDENT,
    Mapping.ADDRESS_AND_PORT_DEPENDENT,
)
EIF, ADF, APDF = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)
KEPT, COUNTS, DRAWS = Allocation.PRESERVED, Allocation.SEQUENTIAL, Allocation.RANDOM


def nat(
    mapping: Mapping,
    filtering: Filtering,
    allocation: Allocation,
    unsolicited: Unsolicited = Unsolicited.DROP,
) -> PathSummary:
    """A path of which everything was measured."""
    return PathSummary(
        mapping=mapping,
        filtering=filtering,
        allocation=allocation,
        delta=1 if allocation is COUNTS else None,
        confidence=0.0 if allocation is DRAWS else 1.0,
        unsolicited=unsolicited,
        simultaneous_open=True,
        remaps_after_inbound=False,
    )


MEASURED = {
    "O": nat(Mapping.NONE, Filtering.NONE, KEPT, Unsolicited.OPEN),
    "FC": nat(EIM, EIF, KEPT, Unsolicited.OPEN),
    "AR": nat(EIM, ADF, KEPT),
    "PR": nat(EIM, APDF, KEPT),
    "SS": nat(APDM, APDF, COUNTS),
    "SR": nat(APDM, APDF, DRAWS),
}
KINDS = dict(zip(MEASURED, PeerKind, strict=True))
HOSTS = ("192.0.2.1", "198.51.100.1")


def side(path: PathSummary, layers: int | None = 1) -> NatSummary:
    return NatSummary(ipv4=FamilySummary(path, path), layers=layers)


def both(a: PathSummary, b: PathSummary) -> tuple[NatSummary, NatSummary]:
    """Two sides with addresses of their own, as any two have that are not neighbours."""
    return side(replace(a, hosts=HOSTS[:1])), side(replace(b, hosts=HOSTS[1:]))


def cell(a: str, b: str, transport: Transport, trouble: Unsolicited = Unsolicited.DROP) -> Plan:
    first, second = (
        path if path.admits_anybody else replace(path, unsolicited=trouble)
        for path in (MEASURED[a], MEASURED[b])
    )
    return plan(*both(first, second), transport=transport, birthday=True)


# The matrix. --------------------------------------------------------------------------------------

# D direct, D* the one whose filter goes by address opens and listens (TCP), P prediction,
# PP both are predicted, B birthday probing, R relay.  Counting against drawing is R here and not B:
# see test_counting_against_drawing_costs_as_much_as_it_is_said_to.
UDP = """
        O    FC   AR   PR   SS   SR
    O   D    D    D    D    D    D
    FC  D    D    D    D    D    D
    AR  D    D    D    D    D    D
    PR  D    D    D    D    P    B
    SS  D    D    D    P    PP   R
    SR  D    D    D    B    R    R
"""
TCP = """
        O    FC   AR   PR   SS   SR
    O   D    D    D    D    D    D
    FC  D    D    D    D    D    D
    AR  D    D    D    D    D*   D*
    PR  D    D    D    D    P    B
    SS  D    D    D*   P    PP   R
    SR  D    D    D*   B    R    R
"""


def cells(table: str) -> dict[tuple[str, str], str]:
    names, *rows = (line.split() for line in table.strip().splitlines())
    return {(row[0], name): how for row in rows for name, how in zip(names, row[1:], strict=True)}


def first_of(made: Plan) -> str:
    """Say in the table's letters how a plan begins."""
    step = made.steps[0]
    match step.mine.strategy, step.theirs.strategy:
        case Strategy.PLAIN, Strategy.PLAIN:
            return "D"
        case (Strategy.OPEN_THEN_LISTEN, Strategy.DIAL_IN) | (
            Strategy.DIAL_IN,
            Strategy.OPEN_THEN_LISTEN,
        ):
            return "D*"
        case Strategy.PREDICT, Strategy.PREDICT:
            return "PP" if step.mine.offsets and step.theirs.offsets else "P"
        case (Strategy.BIRTHDAY_SOCKETS, Strategy.BIRTHDAY_PROBES) | (
            Strategy.BIRTHDAY_PROBES,
            Strategy.BIRTHDAY_SOCKETS,
        ):
            return "B"
        case Strategy.RELAY, Strategy.RELAY:
            return "R"
    raise AssertionError(step)


@pytest.mark.parametrize(("pair", "how"), cells(UDP).items())
def test_each_cell_over_udp(pair: tuple[str, str], how: str) -> None:
    assert first_of(cell(*pair, "udp")) == how


@pytest.mark.parametrize(
    "trouble", [Unsolicited.DROP, Unsolicited.RST, Unsolicited.ICMP], ids=lambda t: t.value
)
@pytest.mark.parametrize(("pair", "how"), cells(TCP).items())
def test_each_cell_over_tcp(pair: tuple[str, str], how: str, trouble: Unsolicited) -> None:
    made = cell(*pair, "tcp", trouble)
    assert first_of(made) == how
    opener = made.steps[0]
    for mine, theirs in ((opener.mine, opener.theirs), (opener.theirs, opener.mine)):
        if mine.strategy is Strategy.OPEN_THEN_LISTEN:
            # A refusal would shut the opener's NAT again, so nothing must be refused.
            assert (mine.ttl is None) is (trouble is Unsolicited.DROP)
            assert theirs.after > mine.after
    if how == "D" and trouble is not Unsolicited.DROP and not {"O", "FC"} & {*pair}:
        assert made.strategies[1] is Strategy.LOW_TTL


def test_the_table_is_that_of_the_pair_matrix_but_for_one_cell() -> None:
    letters = {Reach.DIRECT: "D", Reach.PREDICTION: "P", Reach.BIRTHDAY: "B", Reach.RELAY: "R"}
    for (a, b), how in {**cells(TCP), **cells(UDP)}.items():
        known = letters[MATRIX[KINDS[a], KINDS[b]]]
        if {a, b} == {"SS", "SR"}:
            assert (known, how) == ("B", "R")
        else:
            assert how[0] == known


def test_who_does_what_in_the_cells_with_two_roles() -> None:
    assert cell("PR", "SR", "udp").steps[0].strategy is Strategy.BIRTHDAY_PROBES
    assert cell("SR", "PR", "tcp").steps[0].strategy is Strategy.BIRTHDAY_SOCKETS
    assert cell("AR", "SS", "tcp").steps[0].strategy is Strategy.OPEN_THEN_LISTEN
    assert cell("SR", "AR", "tcp").steps[0].strategy is Strategy.DIAL_IN
    assert cell("PR", "SS", "udp").steps[0].theirs.offsets == tuple(range(1, 17))
    assert cell("PR", "SS", "udp").steps[0].mine.offsets == ()


def test_birthday_probing_stands_behind_prediction_in_case_that_it_fails() -> None:
    assert cell("SS", "PR", "udp").strategies == (
        Strategy.PREDICT,
        Strategy.PREDICT,
        Strategy.BIRTHDAY_SOCKETS,
        Strategy.RELAY,
    )


# Both sides. --------------------------------------------------------------------------------------

PATHS = [
    PathSummary(
        mapping=mapping,
        filtering=filtering,
        allocation=allocation,
        delta=3 if allocation is COUNTS else None,
        confidence=0.5,
        unsolicited=unsolicited,
        simultaneous_open=so,
        remaps_after_inbound=remaps,
    )
    for mapping, filtering, allocation in product(Mapping, Filtering, Allocation)
    for unsolicited, so, remaps in (
        (Unsolicited.DROP, True, False),
        (Unsolicited.RST, False, True),
        (Unsolicited.UNKNOWN, None, None),
    )
]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_both_sides_make_the_same_plan_whatever_their_nats_do(
    transport: Transport, rng: Random
) -> None:
    # All behaviours against each other would be 90 000 pairs: each once, and as many at random.
    others = [rng.sample(PATHS, len(PATHS)) for _ in range(12)]
    pairs = [(a, b) for order in others for a, b in zip(PATHS, order, strict=True)]
    for a, b in [*((path, path) for path in PATHS), *pairs]:
        first, second = (NatSummary(FamilySummary(p, p), layers=n) for p, n in ((a, 1), (b, 2)))
        mine = plan(first, second, transport=transport, birthday=True)
        theirs = plan(second, first, transport=transport, birthday=True)
        assert mine.mirrored() == theirs
        assert mine.steps[-1].strategy is Strategy.RELAY
        assert Strategy.RELAY not in mine.strategies[:-1]
        _is_within(mine, BIRTHDAY_BUDGET)


def _is_within(made: Plan, budget: Budget) -> None:
    for step in made.direct:
        assert step.why
        assert 0 < step.seconds <= budget.seconds
        for move in (step.mine, step.theirs):
            assert move.packets <= budget.packets
            assert move.sockets <= budget.sockets
            assert move.probes <= move.packets or move.probes == 0


def test_plans_hold_for_the_summaries_that_were_sent_as_well() -> None:
    """What was rounded on its way must not lead one side elsewhere than the other."""
    for a, b in product(MEASURED.values(), repeat=2):
        first, second = both(replace(a, confidence=0.3333), replace(b, confidence=0.6667))
        sent = NatSummary.loads(first.dumps()), NatSummary.loads(second.dumps())
        for transport in ("udp", "tcp"):
            mine = plan(first, sent[1], transport=transport, birthday=True)
            theirs = plan(second, sent[0], transport=transport, birthday=True)
            assert mine == theirs.mirrored()


# Missing measurements. ----------------------------------------------------------------------------


def test_nothing_known_is_plain_checks_and_then_gentler_ones() -> None:
    made = plan(NatSummary(), NatSummary(), transport="udp", birthday=True)
    assert made.strategies == (Strategy.PLAIN, Strategy.LOW_TTL, Strategy.RELAY)


def test_two_ordinary_stun_servers_tell_enough_for_the_whole_ladder() -> None:
    """They tell the mapping and the allocation, and nothing of filters.

    What is needed with the filters that most NATs have comes first.
    """
    cone = PathSummary(mapping=EIM, allocation=KEPT, confidence=1.0)
    draws = PathSummary(mapping=APDM, allocation=DRAWS)
    counts = PathSummary(mapping=APDM, allocation=COUNTS, delta=1, confidence=1.0)
    assert plan(*both(cone, draws), transport="udp", birthday=True).strategies == (
        Strategy.BIRTHDAY_PROBES,
        Strategy.PLAIN,
        Strategy.LOW_TTL,
        Strategy.RELAY,
    )
    assert plan(*both(cone, counts), transport="tcp").strategies == (
        Strategy.PREDICT,
        Strategy.PREDICT,
        Strategy.PLAIN,
        Strategy.OPEN_THEN_LISTEN,
        Strategy.LOW_TTL,
        Strategy.RELAY,
    )


def test_one_stun_server_tells_the_mapping_of_a_nat_that_keeps_ports() -> None:
    kept = PathSummary(allocation=KEPT, confidence=1.0)
    assert kept.kinds == {
        PeerKind.FULL_CONE,
        PeerKind.RESTRICTED_CONE,
        PeerKind.PORT_RESTRICTED_CONE,
    }
    counts = PathSummary(allocation=COUNTS, delta=1, confidence=1.0)
    made = plan(*both(kept, counts), transport="udp", birthday=True)
    assert Strategy.PREDICT in made.strategies


def test_who_is_not_known_to_be_what_he_is_taken_for_is_not_guessed_at() -> None:
    unknown = PathSummary(allocation=DRAWS)
    made = plan(*both(unknown, PathSummary()), transport="udp", birthday=True)
    assert Strategy.BIRTHDAY_PROBES not in made.strategies
    assert Strategy.BIRTHDAY_SOCKETS not in made.strategies


def test_a_chance_that_hangs_on_an_unknown_filter_is_not_called_one() -> None:
    draws = PathSummary(mapping=APDM, allocation=DRAWS)
    made = plan(*both(draws, MEASURED["SR"]), transport="udp", birthday=True)
    step = next(s for s in made.direct if s.strategy is Strategy.BIRTHDAY_SOCKETS)
    assert step.chance is None
    assert "if the filter" in step.why


def test_a_symmetric_nat_that_lets_anybody_in_is_reached_like_a_cone() -> None:
    for transport in ("udp", "tcp"):
        made = plan(*both(nat(APDM, EIF, DRAWS), MEASURED["SR"]), transport=transport)
        assert made.steps[0].strategy is Strategy.PLAIN


def test_two_that_draw_meet_where_one_filter_goes_by_address() -> None:
    made = plan(*both(nat(APDM, ADF, DRAWS), MEASURED["SR"]), transport="udp", birthday=True)
    step = made.steps[0]
    assert step.strategy is Strategy.BIRTHDAY_SOCKETS
    assert step.chance == birthday_probability(step.theirs.probes, step.mine.sockets)
    # A TCP socket that dials is open to one endpoint, whatever its NAT lets in.
    made = plan(*both(nat(APDM, ADF, DRAWS), MEASURED["SR"]), transport="tcp", birthday=True)
    assert made.strategies == (Strategy.RELAY,)


def test_counting_with_a_filter_by_address_is_predicted_to_one_that_draws() -> None:
    step = plan(*both(nat(APDM, ADF, COUNTS), MEASURED["SR"]), transport="udp").steps[0]
    assert step.strategy is Strategy.PREDICT
    assert step.mine.offsets


def test_counting_with_a_mapping_by_address_takes_every_guess_on_one_port() -> None:
    made = plan(*both(MEASURED["SR"], nat(ADM, APDF, COUNTS)), transport="udp", birthday=True)
    step = made.steps[0]
    assert step.strategy is Strategy.BIRTHDAY_SOCKETS
    assert step.theirs.offsets
    assert step.mine.sockets * len(step.theirs.offsets) <= BIRTHDAY_BUDGET.packets
    assert step.chance is not None
    assert step.chance > 0.99


def test_counting_against_drawing_costs_as_much_as_it_is_said_to(rng: Random) -> None:
    """One known port takes one guess: simulated, the chance is what the plan computes."""
    assert mixed_chance(256, 8, 8, 64512, by_address=False) < 0.04
    sockets, aims, pool = 64, 32, 2048
    met = 0
    rounds = 3000
    for _ in range(rounds):
        # The drawing side: for each (socket, aim) a mapping with a random port.
        mappings = rng.sample(range(pool), sockets * aims // 2)
        aimed = {port: n % aims for n, port in enumerate(mappings)}
        probes = rng.sample(range(pool), aims)
        met += any(aimed.get(port) == n for n, port in enumerate(probes))
    expected = mixed_chance(sockets // 2, aims, aims, pool, by_address=False)
    assert met / rounds == pytest.approx(expected, abs=0.03)


def test_counting_against_drawing_is_tried_only_in_a_small_block_of_ports() -> None:
    rich = Budget(packets=65536, sockets=1024, seconds=120)
    two = both(MEASURED["SS"], MEASURED["SR"])
    for budget in (None, rich):
        made = plan(*two, transport="udp", birthday=True, budget=budget)
        assert made.strategies == (Strategy.RELAY,)
        assert "no affordable number of guesses" in made.steps[0].why
    block = replace(MEASURED["SR"], pool=(4096, 5119))
    step = plan(*both(MEASURED["SS"], block), transport="udp", birthday=True).steps[0]
    assert (step.theirs.sockets, step.mine.offsets) == (256, (1, 2))
    # Half of the block is left for everything else that the subscriber does.
    assert step.theirs.packets == 512
    assert step.chance == pytest.approx(0.393, abs=0.001)


def test_a_small_block_of_ports_makes_guessing_cheap_and_is_not_used_up() -> None:
    block = replace(MEASURED["SR"], pool=(4096, 5119))
    step = plan(*both(MEASURED["PR"], block), transport="udp", birthday=True).steps[0]
    assert step.mine.ports == (4096, 5119)
    assert step.mine.probes <= 1024
    assert step.theirs.sockets == 256
    assert step.chance == 1.0


# Terms. -------------------------------------------------------------------------------------------


def test_birthday_probing_has_to_be_allowed() -> None:
    made = plan(*both(MEASURED["PR"], MEASURED["SR"]), transport="udp")
    assert made.strategies == (Strategy.RELAY,)
    assert "not allowed" in made.steps[0].why


def test_birthday_probing_keeps_to_its_budget() -> None:
    two = both(MEASURED["PR"], MEASURED["SR"])
    step = plan(*two, transport="udp", birthday=True).steps[0]
    assert (step.mine.probes, step.theirs.sockets) == (2048, 256)
    assert step.chance == pytest.approx(0.9997, abs=1e-4)
    budget = Budget(packets=512, sockets=128, seconds=5)
    step = plan(*two, transport="udp", birthday=True, budget=budget).steps[0]
    assert (step.mine.probes, step.theirs.sockets) == (512, 128)
    assert step.chance == birthday_probability(512, 128)
    assert step.seconds <= 5
    none = plan(*two, transport="udp", birthday=True, budget=Budget(packets=0))
    assert none.strategies == (Strategy.RELAY,)


def test_prediction_needs_no_leave_and_keeps_to_little() -> None:
    for pair in (("PR", "SS"), ("SS", "SS")):
        for transport in ("udp", "tcp"):
            made = cell(*pair, transport)
            steps = [step for step in made.direct if step.strategy is Strategy.PREDICT]
            assert steps
            for step in steps:
                for move in (step.mine, step.theirs):
                    assert move.packets <= PREDICTION_BUDGET.packets
                    assert move.sockets <= PREDICTION_BUDGET.sockets


def test_the_second_window_is_wider_than_the_first() -> None:
    first, second = (
        step for step in cell("SS", "SS", "udp").direct if step.strategy is Strategy.PREDICT
    )
    assert (first.mine.sockets, first.mine.offsets) == (16, (16,))
    assert (second.mine.sockets, second.mine.offsets) == (48, (48,))


def test_a_nat_whose_ports_are_hard_to_foretell_gets_a_wider_window_at_once() -> None:
    noisy = replace(MEASURED["SS"], confidence=0.5)
    step = plan(*both(MEASURED["PR"], noisy), transport="udp").steps[0]
    assert len(step.theirs.offsets) == 32


def test_the_step_of_a_nat_that_counts_is_in_the_offsets() -> None:
    down = replace(MEASURED["SS"], delta=-2)
    step = plan(*both(MEASURED["PR"], down), transport="udp").steps[0]
    assert step.theirs.offsets[:3] == (-2, -4, -6)


def test_only_one_of_two_runs_opens_where_syns_are_refused() -> None:
    for trouble in (Unsolicited.RST, Unsolicited.ICMP):
        step = cell("SS", "SS", "tcp", trouble).steps[0]
        opener, dialler = sorted((step.mine, step.theirs), key=lambda move: move.after)
        assert opener.ttl is not None
        assert dialler.ttl is None
        assert dialler.after > 0
    step = cell("SS", "SS", "tcp").steps[0]
    assert step.mine.ttl is step.theirs.ttl is None


def test_what_worked_before_is_tried_first() -> None:
    two = both(MEASURED["SS"], MEASURED["PR"])
    history = {Strategy.BIRTHDAY_SOCKETS}
    mine = plan(*two, transport="udp", birthday=True, history=history)
    assert mine.strategies[0] is Strategy.BIRTHDAY_SOCKETS
    seen_there = {strategy.counterpart for strategy in history}
    theirs = plan(*reversed(two), transport="udp", birthday=True, history=seen_there)
    assert mine == theirs.mirrored()
    # What the plan does not have is not brought in.
    assert plan(*two, transport="udp", history={Strategy.OPEN_THEN_LISTEN}).strategies[0] is (
        Strategy.PREDICT
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"packets": -1},
        {"packets": 10**9},
        {"sockets": 0},
        {"seconds": 0.0},
        {"seconds": float("nan")},
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="budget"):
        Budget(**wrong)  # type: ignore[arg-type]


# Special paths. -----------------------------------------------------------------------------------


def test_a_nat_that_resents_early_packets_is_not_given_any() -> None:
    touchy = replace(MEASURED["PR"], remaps_after_inbound=True)
    step = plan(*both(MEASURED["PR"], touchy), transport="udp").steps[0]
    assert step.strategy is Strategy.LOW_TTL
    # Whoever faces it sends a packet that dies on the way; itself it faces nothing of the kind.
    assert step.mine.ttl == 2
    assert step.theirs.ttl is None
    two = plan(*both(touchy, touchy), transport="udp").steps[0]
    assert two.mine.ttl == two.theirs.ttl == 2


def test_the_hops_pass_every_nat_of_ones_own() -> None:
    touchy = replace(MEASURED["PR"], remaps_after_inbound=True)
    carrier = side(replace(MEASURED["PR"], hosts=HOSTS[:1]), layers=2)
    step = plan(carrier, side(replace(touchy, hosts=HOSTS[1:])), transport="udp").steps[0]
    assert step.mine.ttl == 3


def test_sockets_do_not_knock_at_a_nat_that_resents_it() -> None:
    touchy = replace(MEASURED["PR"], remaps_after_inbound=True)
    step = plan(*both(touchy, MEASURED["SR"]), transport="udp", birthday=True).steps[0]
    assert step.theirs.ttl == 2
    assert step.mine.after > 0
    step = plan(*both(touchy, MEASURED["SS"]), transport="udp").steps[0]
    assert (step.mine.ttl, step.theirs.ttl) == (None, 2)


def test_neighbours_behind_one_address_use_plain_checks_alone() -> None:
    shared = replace(MEASURED["SR"], hosts=HOSTS)
    made = plan(side(shared), side(shared), transport="udp", birthday=True)
    assert made.strategies == (Strategy.PLAIN, Strategy.RELAY)
    assert "one external address" in made.steps[0].why


def test_what_is_blocked_is_not_tried() -> None:
    blocked = PathSummary(blocked=True)
    made = plan(*both(blocked, MEASURED["O"]), transport="udp")
    assert made.strategies == (Strategy.RELAY,)
    assert "no UDP gets through" in made.steps[0].why


def test_two_nats_against_simultaneous_open_need_the_relay() -> None:
    strict = replace(MEASURED["PR"], simultaneous_open=False)
    made = plan(*both(strict, strict), transport="tcp")
    assert made.strategies == (Strategy.RELAY,)
    assert "REQ-2" in made.steps[0].why
    # One that follows RFC 5382 is enough, and so is one that lets anybody in.
    assert plan(*both(strict, MEASURED["PR"]), transport="tcp").direct
    assert plan(*both(strict, MEASURED["FC"]), transport="tcp").direct


def test_no_family_in_common() -> None:
    path = FamilySummary(MEASURED["O"], MEASURED["O"])
    made = plan(NatSummary(ipv4=path), NatSummary(ipv6=path), transport="udp")
    assert made.strategies == (Strategy.RELAY,)
    assert "no address family in common" in made.steps[0].why


def test_plain_checks_over_ipv6_come_before_guesses_over_ipv4() -> None:
    firewall = nat(Mapping.NONE, APDF, KEPT)

    def dual(path: PathSummary) -> NatSummary:
        return NatSummary(FamilySummary(path, path), FamilySummary(firewall, firewall))

    made = plan(dual(MEASURED["PR"]), dual(MEASURED["SR"]), transport="udp", birthday=True)
    assert made.strategies == (Strategy.PLAIN, Strategy.BIRTHDAY_PROBES, Strategy.RELAY)
    assert [step.family for step in made.steps] == [None, "ipv4", None]


def test_a_plan_reads_like_one() -> None:
    text = str(cell("PR", "SR", "udp"))
    assert text.startswith("over UDP:\n1. birthday, many probes (peer: birthday, many sockets): ")
    assert "256 sockets" in text
    assert "2048 probes" in text
    assert "99.9 %" in text
    assert text.endswith("2. relay: if none of this gets through, the relay stays")


def test_a_step_seen_twice_from_the_other_side_is_itself() -> None:
    for a, b in product(MEASURED, repeat=2):
        for step in cell(a, b, "tcp").steps:
            assert isinstance(step, Step)
            assert step.mirrored().mirrored() == step


@pytest.mark.parametrize("tested", [True, False])
def test_what_is_not_known_of_tcp_is_presumed(tested: bool) -> None:
    """A server that does not dial back leaves the filter of TCP open; the plan begins well."""

    def behind(mapping: Mapping, allocation: Allocation) -> NatSummary:
        by_port = Filtering.ADDRESS_AND_PORT_DEPENDENT
        udp = PathSummary(mapping=mapping, filtering=by_port, allocation=allocation, delta=1)
        tcp = replace(udp, filtering=Filtering.UNKNOWN)
        return NatSummary(ipv4=FamilySummary(udp if tested else None, tcp))

    keeps = behind(Mapping.ENDPOINT_INDEPENDENT, Allocation.PRESERVED)
    counts = behind(Mapping.ADDRESS_AND_PORT_DEPENDENT, Allocation.SEQUENTIAL)
    for mine, theirs in ((keeps, counts), (counts, keeps), (counts, counts)):
        made = plan(mine, theirs, transport="tcp")
        assert made.strategies[0] is Strategy.PREDICT
        # But for what it is not sure of it has the rest, too.
        assert Strategy.PLAIN in made.strategies
        assert plan(theirs, mine, transport="tcp") == made.mirrored()
    assert plan(keeps, keeps, transport="tcp").strategies[0] is Strategy.PLAIN
