"""The judge of UDP and of layers, on observations written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nattype.classify import classify
from nattype.model import Filtering, Hairpin, Mapping, NatType
from nattype.observations import (
    Asked,
    Challenge,
    Change,
    Contact,
    FilteringRun,
    Gateway,
    HairpinRun,
    LifetimeTrial,
    Observations,
    PoisonRun,
    UdpObservations,
)
from nattype.report import Outcome
from stun.sansio import MILLISECOND, Address

A, B = Address("192.31.196.10", 3478), Address("192.175.48.10", 3479)
AQ, BP = Address(A.host, B.port), Address(B.host, A.port)
LOCAL = Address("192.168.1.2", 50000)
OUTSIDE = "192.52.193.2"


def asked(server: Address = A, port: int | None = 40000, **rest: object) -> Asked:
    """An exchange; ``port`` ``None`` for one that got no answer."""
    base = Asked(LOCAL, server, expected=server, sends=1)
    if port is not None:
        base = replace(
            base, source=server, mapped=Address(OUTSIDE, port), other=B, rtt=10 * MILLISECOND
        )
    return replace(base, **rest)  # type: ignore[arg-type]


def change(how: Change, *, answered: bool, control: bool = True) -> Challenge:
    expected = B if how is Change.BOTH else AQ
    request = Asked(LOCAL, A, how, expected, sends=9, source=expected if answered else None)
    if answered:
        return Challenge(request)
    return Challenge(request, asked() if control else asked(port=None))


CONTROLS = FilteringRun(
    both_control=change(Change.BOTH, answered=True),
    port_control=change(Change.PORT, answered=True),
)


def filtered(*, both: bool, port: bool) -> FilteringRun:
    return replace(
        CONTROLS,
        both=change(Change.BOTH, answered=both),
        port=change(Change.PORT, answered=port),
    )


def observations(udp: UdpObservations, **rest: object) -> Observations:
    base = Observations("ipv4", udp, None, primary=A, alternate=B)
    return replace(base, **rest)  # type: ignore[arg-type]


def udp(*ports: int | None, **rest: object) -> UdpObservations:
    """What A:p, B:p, B:q and A:q saw of the mapping socket, in this order."""
    base = UdpObservations(
        LOCAL.host,
        contacts=(Contact(A, "stun.example.org", asked()),),
        mapping=tuple(asked(s, p) for s, p in zip((A, BP, B, AQ), ports, strict=False)),
        filtering=filtered(both=False, port=False),
    )
    return replace(base, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ports", "mapping", "port_only"),
    [
        ((1, 1, 1, 1), Mapping.ENDPOINT_INDEPENDENT, False),
        ((1, 2, 2, 1), Mapping.ADDRESS_DEPENDENT, False),
        ((1, 2, 3, 4), Mapping.ADDRESS_AND_PORT_DEPENDENT, False),
        ((1, 1, 2, 2), Mapping.ADDRESS_AND_PORT_DEPENDENT, True),
        # Some answers are missing.
        ((1, 1, None, None), Mapping.ENDPOINT_INDEPENDENT, False),
        ((1, None, 1, None), Mapping.ENDPOINT_INDEPENDENT, False),
        ((1, 2, None, None), Mapping.ADDRESS_AND_PORT_DEPENDENT, False),
        ((1, None, None, 2), Mapping.ADDRESS_AND_PORT_DEPENDENT, False),
        ((1, None, None, 1), Mapping.UNKNOWN, False),
        ((1, None, None, None), Mapping.UNKNOWN, False),
        ((None, 1, 2, None), Mapping.ADDRESS_AND_PORT_DEPENDENT, False),
    ],
)
def test_mapping(ports: tuple[int | None, ...], mapping: Mapping, port_only: bool) -> None:
    found = classify(observations(udp(*ports))).udp
    assert found is not None
    assert found.mapping is mapping
    assert found.mapping_depends_on_port_only is port_only


def test_no_nat_is_told_by_the_local_address() -> None:
    at_home = [replace(asked(s), mapped=LOCAL) for s in (A, BP, B, AQ)]
    for run, kind in (
        (filtered(both=True, port=True), NatType.OPEN),
        (filtered(both=False, port=True), NatType.SYMMETRIC_FIREWALL),
        (filtered(both=False, port=False), NatType.SYMMETRIC_FIREWALL),
    ):
        seen = udp(contacts=(Contact(A, "a", at_home[0]),), mapping=tuple(at_home), filtering=run)
        found = classify(observations(seen))
        assert found.udp is not None
        assert found.udp.nat_type is kind
        assert (found.behind_nat, found.layers) == (False, 0)


def test_one_external_address_with_another_port_is_a_nat_on_this_host() -> None:
    ported = [replace(asked(s), mapped=Address(LOCAL.host, 777)) for s in (A, BP, B, AQ)]
    found = classify(observations(udp(mapping=tuple(ported)))).udp
    assert found is not None
    assert found.mapping is Mapping.ENDPOINT_INDEPENDENT


@pytest.mark.parametrize(
    ("both", "port", "filtering", "kind"),
    [
        (True, True, Filtering.ENDPOINT_INDEPENDENT, NatType.FULL_CONE),
        (False, True, Filtering.ADDRESS_DEPENDENT, NatType.RESTRICTED_CONE),
        (False, False, Filtering.ADDRESS_AND_PORT_DEPENDENT, NatType.PORT_RESTRICTED_CONE),
        # Stranger still than a filter: B gets through, A:q does not.  B decides.
        (True, False, Filtering.ENDPOINT_INDEPENDENT, NatType.FULL_CONE),
    ],
)
def test_filtering(both: bool, port: bool, filtering: Filtering, kind: NatType) -> None:
    found = classify(observations(udp(1, 1, 1, 1, filtering=filtered(both=both, port=port))))
    assert found.udp is not None
    assert found.udp.filtering is filtering
    assert found.udp.nat_type is kind
    assert found.culprits == ()


def unanswered_control() -> Challenge:
    return Challenge(Asked(LOCAL, A, Change.BOTH, B, sends=9), asked())


@pytest.mark.parametrize(
    "changed",
    [
        {"both": change(Change.BOTH, answered=False, control=False)},
        {"both": None},
        {"both_control": None},
        {"both_control": unanswered_control()},
        {"port": None},
        {"port": change(Change.PORT, answered=False, control=False)},
        {"port_control": None},
        {"port_control": unanswered_control()},
    ],
)
def test_a_silence_without_its_control_says_nothing(changed: dict[str, Challenge | None]) -> None:
    run = replace(filtered(both=False, port=False), **changed)  # type: ignore[arg-type]
    found = classify(observations(udp(1, 1, 1, 1, filtering=run)))
    assert found.udp is not None
    assert found.udp.filtering is Filtering.UNKNOWN
    assert found.udp.nat_type is NatType.INCONCLUSIVE
    sentences = [e for e in found.evidence if e.test == "udp.filtering"]
    assert [e.outcome for e in sentences] == [Outcome.INCONCLUSIVE]
    assert sentences[0].detail.startswith("Filtering is not known: ")


@pytest.mark.parametrize(
    ("alter", "word"),
    [
        ({"source": A}, "ignores CHANGE-REQUEST"),
        ({"source": A, "error": 420}, "error 420"),
        ({"source": A, "error": 500}, "error 500"),
        ({"strange": BP}, "answered from 192.175.48.10:3478"),
    ],
)
def test_a_dishonest_server_is_the_culprit(alter: dict[str, object], word: str) -> None:
    request = replace(Asked(LOCAL, A, Change.BOTH, B, sends=2), **alter)  # type: ignore[arg-type]
    run = replace(filtered(both=False, port=False), both=Challenge(request, asked()))
    found = classify(observations(udp(1, 1, 1, 1, filtering=run)))
    assert found.udp is not None
    assert found.udp.filtering is Filtering.UNKNOWN
    assert len(found.culprits) == 1
    assert word in found.culprits[0]
    assert found.culprits[0].startswith("stun.example.org (192.31.196.10:3478)")
    fault = next(e for e in found.evidence if e.test == "server.honesty")
    assert fault.outcome is Outcome.SERVER_FAULT
    assert fault.server == str(A)


def test_a_server_that_lacks_response_port_is_no_culprit() -> None:
    refused = Challenge(Asked(LOCAL, A, Change.BOTH, B, sends=1, source=A, error=420))
    run = replace(filtered(both=False, port=False), both_control=refused)
    found = classify(observations(udp(1, 2, 3, 4, filtering=run)))
    assert found.udp is not None
    assert found.udp.filtering is Filtering.UNKNOWN
    assert found.udp.nat_type is NatType.SYMMETRIC
    assert found.culprits == ()


def test_a_dead_second_address_is_named() -> None:
    found = classify(observations(udp(1, None, None, 1)))
    assert any("did not answer" in culprit for culprit in found.culprits)


def test_nothing_is_blamed_on_a_server_when_nobody_answers() -> None:
    found = classify(observations(udp(None, None, None, None)))
    assert found.culprits == ()


def test_a_mapping_that_changed_by_itself_is_not_symmetric() -> None:
    later = asked(A, 9, at=2_000 * MILLISECOND)
    found = classify(observations(udp(1, 9, 9, 9, last=later))).udp
    assert found is not None
    assert found.mapping is Mapping.UNKNOWN
    assert found.mapping_stable is False
    same = classify(observations(udp(1, 2, 3, 4, last=asked(A, 1)))).udp
    assert same is not None
    assert same.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT
    assert same.mapping_stable is True


def test_a_mapping_that_had_time_to_expire_is_not_called_unstable() -> None:
    later = asked(A, 9, at=31_000 * MILLISECOND)
    found = classify(observations(udp(1, 2, 3, 4, last=later))).udp
    assert found is not None
    assert found.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT
    assert found.mapping_stable is None


@pytest.mark.parametrize(
    ("before", "elsewhere", "knocker", "remaps"),
    [(1, 1, 1, False), (1, 1, 2, True), (1, 2, 3, None), (1, 1, None, None)],
)
def test_inbound_first(before: int, elsewhere: int, knocker: int | None, remaps: object) -> None:
    run = PoisonRun(asked(A, before), asked(BP, elsewhere), asked(B, knocker))
    found = classify(observations(udp(1, 1, 1, 1, poison=run))).udp
    assert found is not None
    assert found.remaps_after_inbound is remaps


@pytest.mark.parametrize(
    ("seen", "control", "hairpin"),
    [
        (Address(OUTSIDE, 1), None, Hairpin.EXTERNAL),
        (Address(LOCAL.host, 50001), None, Hairpin.INTERNAL),
        (None, asked(), Hairpin.NONE),
        (None, asked(port=None), Hairpin.UNKNOWN),
    ],
)
def test_hairpinning(seen: Address | None, control: Asked | None, hairpin: Hairpin) -> None:
    run = HairpinRun(
        Address(OUTSIDE, 1),
        Address(OUTSIDE, 2),
        Address(LOCAL.host, 50001),
        Address(LOCAL.host, 50002),
        9,
        seen,
        control,
    )
    found = classify(observations(udp(1, 1, 1, 1, hairpin=run))).udp
    assert found is not None
    assert found.hairpinning is hairpin


@pytest.mark.parametrize(
    ("challenge", "fragments"),
    [
        (Challenge(asked(padding=1500)), True),
        (Challenge(asked(padding=0)), None),
        (Challenge(asked(error=420)), None),
        (Challenge(asked(port=None), asked()), False),
        (Challenge(asked(port=None), asked(port=None)), None),
    ],
)
def test_fragments(challenge: Challenge, fragments: bool | None) -> None:
    found = classify(observations(udp(1, 1, 1, 1, fragments=challenge))).udp
    assert found is not None
    assert found.fragments is fragments


def test_lifetimes_are_brackets_and_the_keepalive_is_safely_inside() -> None:
    trials = (
        LifetimeTrial(False, 0.0, True),
        LifetimeTrial(False, 20.0, True),
        LifetimeTrial(False, 34.0, False),
        LifetimeTrial(False, 26.0, True),
        LifetimeTrial(False, 60.0, False),
        LifetimeTrial(True, 96.0, True),
        LifetimeTrial(True, 125.0, None),
    )
    found = classify(observations(udp(1, 1, 1, 1, lifetimes=trials))).udp
    assert found is not None
    assert found.lifetime_one_shot is not None
    assert (found.lifetime_one_shot.alive, found.lifetime_one_shot.dead) == (26.0, 34.0)
    assert found.lifetime_stream is not None
    assert (found.lifetime_stream.alive, found.lifetime_stream.dead) == (96.0, None)
    assert found.keepalive == 19.5


def test_a_server_without_response_port_gives_no_lifetime() -> None:
    trials = (LifetimeTrial(False, 0.0, None),)
    found = classify(observations(udp(1, 1, 1, 1, lifetimes=trials)))
    assert found.udp is not None
    assert found.udp.keepalive is None
    assert any("RESPONSE-PORT" in e.detail for e in found.evidence)


@pytest.mark.parametrize(
    ("tcp_alive", "strays", "kind"),
    [
        (True, (), NatType.UDP_BLOCKED),
        (False, (), NatType.INCONCLUSIVE),
        # Something does come from the server: UDP is not blocked, whatever it is.
        (True, (A,), NatType.INCONCLUSIVE),
        (True, (Address("198.51.100.1", 5),), NatType.UDP_BLOCKED),
    ],
)
def test_blocked_or_dead(tcp_alive: bool, strays: tuple[Address, ...], kind: NatType) -> None:
    silent = UdpObservations(
        LOCAL.host,
        contacts=(Contact(A, "a", asked(port=None, sends=10)),),
        tcp_alive=tcp_alive,
        strays=strays,
    )
    found = classify(observations(silent, alternate=None))
    assert found.udp is not None
    assert found.udp.nat_type is kind
    assert found.reached is False
    assert found.behind_nat is None


@pytest.mark.parametrize(
    ("external", "layers"), [(OUTSIDE, 1), ("100.64.3.9", 2), ("192.168.0.7", 2), (None, None)]
)
def test_layers(external: str | None, layers: int | None) -> None:
    gateway = Gateway(Address("192.168.1.1", 5351), "NAT-PMP", external)
    found = classify(observations(udp(1, 1, 1, 1), gateway=gateway))
    assert found.behind_nat is True
    assert found.layers == layers


def test_an_alg_is_evidence_and_does_not_disturb() -> None:
    rewritten = asked(plain_mapped=LOCAL)
    seen = udp(1, 1, 1, 1, contacts=(Contact(A, "a", rewritten),))
    found = classify(observations(seen))
    assert found.udp is not None
    assert found.udp.nat_type is NatType.PORT_RESTRICTED_CONE
    assert any(e.test == "udp.alg" for e in found.evidence)


def test_no_observations_no_verdict() -> None:
    found = classify(Observations("ipv6", None, None))
    assert found.udp is None
    assert found.tcp is None
    assert found.evidence == ()
