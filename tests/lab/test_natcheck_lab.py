"""natcheck behind real kernel NATs: what it finds is what was built."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest

from nattype.jsonform import from_json
from nattype.lab import Lab
from nattype.model import (
    NAMED_KINDS,
    Allocation,
    Filtering,
    Hairpin,
    Kind,
    Mapping,
    NatType,
    Unsolicited,
    grid,
    kind,
)
from nattype.report import Report, TcpReport, UdpReport

pytestmark = pytest.mark.lab

NATCHECK = [sys.executable, "-m", "nattype.cli", "--json"]
UNDECIDED = {NatType.INCONCLUSIVE, Mapping.UNKNOWN, Filtering.UNKNOWN, Allocation.UNKNOWN}
LOSSY_RUNS = 4


def natcheck(lab: Lab, *arguments: str, ipv6: bool = False) -> Report:
    servers = ["--server", lab.environment["NATLAB_STUN"]]
    if ipv6:
        servers += ["--server", lab.environment["NATLAB_STUN6"]]
    done = lab.host.run(
        [*NATCHECK, *servers, *arguments], capture_output=True, text=True, timeout=90
    )
    assert done.returncode in (0, 1), done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return from_json(document)


def differences(built: Kind, udp: UdpReport, tcp: TcpReport) -> list[str]:
    """What is said to be other than it was built; what is left open does not differ."""
    expected = built.expected
    said = [("udp", udp.nat_type, expected.udp), ("tcp", tcp.nat_type, expected.tcp)]
    for path in (udp, tcp):
        if "blocked" not in path.nat_type:
            said += [
                ("mapping", path.mapping, expected.mapping),
                ("filtering", path.filtering, expected.filtering),
                ("allocation", path.allocation.pattern, expected.allocation),
            ]
    return [
        f"{what}: {found} is not {true}"
        for what, found, true in said
        if found not in UNDECIDED and found != true
    ]


@pytest.mark.parametrize("built", NAMED_KINDS, ids=lambda built: built.name)
def test_named_kinds_over_both_families(built: Kind) -> None:
    with Lab.nat(built) as lab:
        report = natcheck(lab, ipv6=True)
    assert report.udp is not None
    assert report.tcp is not None
    assert report.culprits == ()
    assert report.conclusive
    assert differences(built, report.udp, report.tcp) == []
    six = report.other_family
    assert six is not None
    assert six.family == "ipv6"
    assert six.udp is not None
    assert six.tcp is not None
    assert NatType.INCONCLUSIVE not in (six.udp.nat_type, six.tcp.nat_type)
    assert differences(built, six.udp, six.tcp) == []
    if report.udp.nat_type is not NatType.UDP_BLOCKED and built.boxes:
        hairpin = any(box.hairpin for box in built.boxes)
        assert report.udp.fragments is True
        assert report.udp.mapping_stable is True
        if report.udp.mapping is not Mapping.NONE:
            assert report.udp.hairpinning is (Hairpin.EXTERNAL if hairpin else Hairpin.NONE)
        if report.udp.mapping is Mapping.ENDPOINT_INDEPENDENT:
            poisoned = any(box.remaps_after_inbound for box in built.boxes)
            assert report.udp.remaps_after_inbound is poisoned
    if report.udp.mapping is Mapping.ENDPOINT_INDEPENDENT and "blocked" not in report.tcp.nat_type:
        assert report.tcp.simultaneous_open is True


@pytest.mark.slow
@pytest.mark.parametrize("built", grid(), ids=lambda built: built.name)
def test_every_point_of_the_grid(built: Kind) -> None:
    with Lab.nat(built) as lab:
        report = natcheck(lab)
    assert report.udp is not None
    assert report.tcp is not None
    assert report.conclusive
    assert differences(built, report.udp, report.tcp) == []


@pytest.mark.parametrize(
    "name",
    ["full-cone", "restricted-cone", "port-restricted-cone", "symmetric-sequential", "firewall"],
)
def test_loss_may_leave_it_open_and_never_makes_it_wrong(name: str) -> None:
    with Lab.nat(name, loss=0.1) as lab:
        reports = [natcheck(lab) for _ in range(LOSSY_RUNS)]
    for report in reports:
        assert report.udp is not None
        assert report.tcp is not None
        assert differences(kind(name), report.udp, report.tcp) == []
        assert report.culprits == ()
    assert any(report.conclusive for report in reports)


@pytest.mark.parametrize("unsolicited", [Unsolicited.DROP, Unsolicited.RST, Unsolicited.ICMP])
def test_what_an_uninvited_syn_meets(unsolicited: Unsolicited) -> None:
    plain = kind("port-restricted-cone")
    boxes = tuple(replace(box, unsolicited_tcp=unsolicited) for box in plain.boxes)
    with Lab.nat(replace(plain, boxes=boxes)) as lab:
        report = natcheck(lab, "--tcp-only")
    assert report.udp is None
    assert report.tcp is not None
    assert report.tcp.unsolicited is unsolicited
    assert report.tcp.nat_type is NatType.PORT_RESTRICTED_CONE


def test_lifetimes() -> None:
    with Lab.nat("port-restricted-cone", udp_timeout=3, udp_stream_timeout=6) as lab:
        report = natcheck(lab, "--udp-only", "--lifetime")
    assert report.udp is not None
    for found, true in ((report.udp.lifetime_one_shot, 3), (report.udp.lifetime_stream, 6)):
        assert found is not None
        assert found.alive is not None
        assert found.dead is not None
        assert found.alive <= true <= found.dead + 0.5
    assert report.udp.keepalive is not None
    assert report.udp.keepalive < 3


def test_two_servers_in_turn_do_not_disturb_one_another() -> None:
    with Lab.nat("symmetric") as lab:
        reports = [natcheck(lab, "--udp-only") for _ in range(3)]
    assert {report.udp.nat_type for report in reports if report.udp} == {NatType.SYMMETRIC}
