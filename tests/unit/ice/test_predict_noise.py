"""What attempts of this host's own do to measurements and predictions, and what is made of it."""

from __future__ import annotations

import pytest

from ice.predict.moves import LEAD
from ice.predict.plan import plan
from ice.predict.steps import Plan, Strategy
from ice.predict.summary import FamilySummary, NatSummary, PathSummary, Transport
from nattype.model import Allocation, Filtering, Mapping, Unsolicited
from nattype.peers import PeerKind

APDF = Filtering.ADDRESS_AND_PORT_DEPENDENT


def path(unsolicited: Unsolicited = Unsolicited.RST, host: str = "192.0.2.1") -> PathSummary:
    """A symmetric NAT whose ports were seen in order, but never foretold."""
    return PathSummary(
        mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
        filtering=APDF,
        hosts=(host,),
        unsolicited=unsolicited,
        remaps_after_inbound=False,
    )


def cone(unsolicited: Unsolicited) -> PathSummary:
    return PathSummary(
        mapping=Mapping.ENDPOINT_INDEPENDENT,
        filtering=APDF,
        allocation=Allocation.PRESERVED,
        confidence=1.0,
        hosts=("198.51.100.1",),
        unsolicited=unsolicited,
        remaps_after_inbound=False,
    )


def made(mine: PathSummary, theirs: PathSummary, transport: Transport = "tcp") -> Plan:
    summaries = [NatSummary(ipv4=FamilySummary(each, each)) for each in (mine, theirs)]
    return plan(*summaries, transport=transport, birthday=True)


def test_ports_in_no_known_order_may_be_counted_or_drawn() -> None:
    assert path().kinds == {PeerKind.SYMMETRIC_SEQUENTIAL, PeerKind.SYMMETRIC}
    assert PathSummary(
        mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, filtering=APDF, allocation=Allocation.RANDOM
    ).kinds == {PeerKind.SYMMETRIC}


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_prediction_is_tried_before_birthday_probing_where_the_order_is_not_known(
    transport: Transport,
) -> None:
    found = made(path(), cone(Unsolicited.RST), transport).strategies
    assert found[0] is Strategy.PREDICT
    assert Strategy.BIRTHDAY_SOCKETS in found


def test_two_whose_order_is_not_known_are_worth_a_prediction() -> None:
    assert made(path(), path(host="198.51.100.1")).strategies[0] is Strategy.PREDICT


@pytest.mark.parametrize(
    ("unsolicited", "after"),
    [(Unsolicited.DROP, 0.0), (Unsolicited.RST, LEAD), (Unsolicited.ICMP, LEAD)],
)
def test_nobody_dials_into_a_run_whose_first_syns_are_still_dying(
    unsolicited: Unsolicited, after: float
) -> None:
    """Linux ends a socket in SYN-RECEIVED when ICMP says that its SYN's hops were used up."""
    step = made(path(unsolicited), cone(unsolicited)).steps[0]
    assert step.mine.strategy is Strategy.PREDICT
    assert (step.mine.ttl is None) == (after == 0)
    assert step.theirs.after == after
