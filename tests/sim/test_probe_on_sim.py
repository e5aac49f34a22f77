"""The probe behind every kind of NAT, on virtual time: right, or inconclusive, and never wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nattype.lab.sim import Pooling, SimOptions, behind
from nattype.lab.sim.diagnose import diagnose, observe, serve
from nattype.model import (
    NAMED_KINDS,
    Allocation,
    Filtering,
    Hairpin,
    Lifetimes,
    Link,
    Mapping,
    NatType,
    Unsolicited,
    grid,
    kind,
)
from nattype.report import Outcome, Report

KINDS = [k.name for k in (*NAMED_KINDS, *grid())]
UNDECIDED = {
    NatType.INCONCLUSIVE,
    Mapping.UNKNOWN,
    Filtering.UNKNOWN,
    Allocation.UNKNOWN,
    Unsolicited.UNKNOWN,
    Hairpin.UNKNOWN,
    None,
}


def wrong(name: str, report: Report) -> list[str]:
    """What the report says that is not so; what it leaves open is not wrong."""
    expected = kind(name).expected
    boxes = kind(name).boxes
    assert report.udp is not None
    assert report.tcp is not None
    said: dict[str, tuple[object, object]] = {
        "udp": (report.udp.nat_type, expected.udp),
        "tcp": (report.tcp.nat_type, expected.tcp),
        "stable": (report.udp.mapping_stable, True),
        "fragments": (report.udp.fragments, True),
        "remaps": (
            report.udp.remaps_after_inbound,
            any(box.remaps_after_inbound for box in boxes),
        ),
        "simultaneous open": (report.tcp.simultaneous_open, True),
        "hairpin": (
            report.udp.hairpinning,
            Hairpin.EXTERNAL if any(box.hairpin for box in boxes) else Hairpin.NONE,
        ),
    }
    for protocol, path in (("udp", report.udp), ("tcp", report.tcp)):
        if "blocked" in path.nat_type:
            continue
        said[f"{protocol} mapping"] = (path.mapping, expected.mapping)
        said[f"{protocol} filtering"] = (path.filtering, expected.filtering)
        said[f"{protocol} allocation"] = (path.allocation.pattern, expected.allocation)
    open_to_all = expected.filtering in (Filtering.NONE, Filtering.ENDPOINT_INDEPENDENT)
    strangers_meet = (
        Unsolicited.OPEN if open_to_all else (boxes[0].unsolicited_tcp if boxes else None)
    )
    if len(boxes) == 1:
        said["unsolicited"] = (report.tcp.unsolicited, strangers_meet)
    faults = [f"{name}: {got} is not {true}" for name, (got, true) in said.items()
              if got not in UNDECIDED and got != true]  # fmt: skip
    return faults + list(report.culprits)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_recognised(name: str, seed: int) -> None:
    report = diagnose(name, seed=seed, link=Link(delay=0.005))
    expected = kind(name).expected
    assert report.udp is not None
    assert report.tcp is not None
    assert wrong(name, report) == []
    assert (report.udp.nat_type, report.tcp.nat_type) == (expected.udp, expected.tcp)
    if expected.udp is not NatType.UDP_BLOCKED:
        assert report.udp.mapping is expected.mapping
        assert report.udp.filtering is expected.filtering
        assert report.udp.allocation.pattern is expected.allocation
        if expected.allocation is not Allocation.RANDOM:
            assert report.udp.allocation.confidence == 1.0
    assert report.conclusive


@pytest.mark.parametrize("name", [name for name in KINDS if "blocked" not in name])
def test_an_ordinary_path_takes_less_than_three_seconds(name: str, seed: int) -> None:
    assert diagnose(name, seed=seed, link=Link(delay=0.015)).seconds < 3.0


def _lossy(name: str, seeds: range, link: Link) -> tuple[list[str], int]:
    faults, conclusive = [], 0
    for seed in seeds:
        report = diagnose(name, seed=seed, link=link)
        faults += [f"seed {seed}: {fault}" for fault in wrong(name, report)]
        conclusive += report.conclusive
    return faults, conclusive


@pytest.mark.parametrize("name", KINDS)
def test_loss_never_makes_a_wrong_verdict(name: str, seed: int) -> None:
    seeds = range(seed, seed + 6)
    faults, conclusive = _lossy(name, seeds, Link(loss=0.1, delay=0.01, jitter=0.005))
    assert faults == []
    assert conclusive >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "link",
    [
        Link(loss=0.1, delay=0.01, jitter=0.005),
        Link(loss=0.1, delay=0.1, jitter=0.05),
        Link(delay=0.15, jitter=0.1),
    ],
    ids=["near", "far", "disordered"],
)
def test_loss_never_makes_a_wrong_verdict_in_many_runs(name: str, link: Link, seed: int) -> None:
    faults, conclusive = _lossy(name, range(seed, seed + 40), link)
    assert faults == []
    assert conclusive >= 34


@pytest.mark.parametrize("name", ["port-restricted-cone", "symmetric-sequential", "cgnat"])
def test_a_distant_server_changes_nothing_but_the_time(name: str, seed: int) -> None:
    report = diagnose(name, seed=seed, link=Link(delay=0.15, jitter=0.1))
    assert wrong(name, report) == []
    assert report.conclusive


@pytest.mark.parametrize("name", KINDS)
def test_ipv6_beside_ipv4(name: str, seed: int) -> None:
    report = diagnose(name, seed=seed, families=("ipv4", "ipv6"))
    assert wrong(name, report) == []
    assert report.family == "ipv4"
    assert report.other_family is not None
    assert report.other_family.family == "ipv6"
    six = replace(
        report, udp=report.other_family.udp, tcp=report.other_family.tcp, other_family=None
    )
    assert wrong(name, six) == []
    assert six.conclusive


def test_the_same_seed_gives_the_same_observations(seed: int) -> None:
    runs = []
    for _ in range(2):
        scenario = behind("symmetric", seed=seed, link=Link(loss=0.1, delay=0.02, jitter=0.01))
        serve(scenario)
        runs.append(observe(scenario))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("one_shot", "stream"), [(30.0, 120.0), (7.0, 16.0), (90.0, 90.0)])
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_lifetimes_are_bracketed(one_shot: float, stream: float, loss: float, seed: int) -> None:
    plain = kind("port-restricted-cone")
    aged = replace(
        plain,
        boxes=tuple(replace(box, lifetimes=Lifetimes(one_shot, stream)) for box in plain.boxes),
    )
    link = Link(loss=loss, delay=0.01)
    report = diagnose(aged, seed=seed, lifetime=True, tcp=False, timeout=900, link=link)
    assert report.udp is not None
    for found, true in (
        (report.udp.lifetime_one_shot, one_shot),
        (report.udp.lifetime_stream, stream),
    ):
        assert found is not None
        assert found.alive is not None
        assert found.dead is not None
        # What was sent just before the silence began, and the server's way, cost fractions.
        assert found.alive <= true <= found.dead + 0.5
        assert found.dead - found.alive <= max(1.0, 0.05 * true) + 0.2
    assert report.udp.keepalive is not None
    assert report.udp.keepalive < min(one_shot, stream)
    assert report.udp.mapping_stable is True


def test_lifetimes_end_with_the_time_allowed(seed: int) -> None:
    report = diagnose("port-restricted-cone", seed=seed, lifetime=True, tcp=False, timeout=60)
    assert report.seconds <= 60
    assert report.udp is not None
    assert report.udp.nat_type is NatType.PORT_RESTRICTED_CONE
    found = report.udp.lifetime_stream
    assert found is not None
    assert found.dead is None
    assert found.alive is not None
    assert found.alive >= 40


# What only the simulated network can do.


def test_internal_hairpin_is_told_apart(seed: int) -> None:
    options = SimOptions(hairpin_internal_source=True)
    report = diagnose("full-cone-hairpin", seed=seed, options=options)
    assert report.udp is not None
    assert report.udp.hairpinning is Hairpin.INTERNAL


def test_dropped_fragments_are_found_out(seed: int) -> None:
    report = diagnose("port-restricted-cone", seed=seed, options=SimOptions(drop_fragments=True))
    assert report.udp is not None
    assert report.udp.fragments is False
    assert report.udp.nat_type is NatType.PORT_RESTRICTED_CONE


def test_arbitrary_pooling_is_found_out(seed: int) -> None:
    options = SimOptions(external_addresses=4, pooling=Pooling.ARBITRARY)
    report = diagnose("full-cone", seed=seed, options=options)
    assert report.udp is not None
    assert report.udp.address_pooling_paired is False
    assert report.udp.nat_type is NatType.FULL_CONE


def test_an_alg_is_found_out(seed: int) -> None:
    report = diagnose("port-restricted-cone", seed=seed, options=SimOptions(alg=True))
    assert report.udp is not None
    assert report.udp.nat_type is NatType.PORT_RESTRICTED_CONE
    assert any(e.test == "udp.alg" for e in report.evidence)


def test_a_mapping_that_changes_in_use_is_not_taken_for_a_symmetric_nat(seed: int) -> None:
    link = Link(delay=0.02)
    options = SimOptions(remap_after=0.5)
    report = diagnose("full-cone-random", seed=seed, link=link, options=options)
    assert report.udp is not None
    assert report.udp.mapping_stable is False
    assert report.udp.nat_type in (NatType.FULL_CONE, NatType.INCONCLUSIVE)


@pytest.mark.parametrize("name", ["port-restricted-cone", "symmetric"])
def test_ports_from_a_carriers_block_are_no_sequence(name: str, seed: int) -> None:
    plain = kind(name)
    blocked = replace(
        plain,
        boxes=tuple(replace(box, allocation=Allocation.RANDOM) for box in plain.boxes),
    )
    for n in range(10):
        report = diagnose(blocked, seed=seed + n, options=SimOptions(port_block=512))
        assert report.udp is not None
        assert report.udp.allocation.pattern in (Allocation.RANDOM, Allocation.UNKNOWN)


def test_each_evidence_is_a_sentence_with_its_time(seed: int) -> None:
    report = diagnose("port-restricted-cone", seed=seed, link=Link(delay=0.01))
    assert {e.test for e in report.evidence} >= {
        "udp.contact",
        "udp.mapping",
        "udp.allocation",
        "udp.filtering",
        "udp.hairpinning",
        "udp.inbound-first",
        "udp.fragments",
        "udp.stability",
        "tcp.contact",
        "tcp.mapping",
        "tcp.allocation",
        "tcp.filtering",
        "tcp.simultaneous-open",
    }
    for evidence in report.evidence:
        assert evidence.detail.endswith(".")
        assert evidence.detail[0].isupper() or evidence.detail[0].isdigit()
        assert 0 <= evidence.at <= report.seconds
        assert evidence.outcome is not Outcome.SERVER_FAULT
