"""natcheck on the simulated network, as one call."""

from __future__ import annotations

from nattype.lab.sim.diagnose import ALTERNATE, PRIMARY, diagnose
from nattype.model import Link, NatType


def test_a_report_as_natcheck_would_make_it(seed: int) -> None:
    report = diagnose("symmetric", seed=seed, families=("ipv4", "ipv6"))
    assert report.servers == (str(PRIMARY["ipv4"]), str(PRIMARY["ipv6"]))
    assert report.udp is not None
    assert report.udp.nat_type is NatType.SYMMETRIC
    assert report.verdict.startswith("You are behind a symmetric NAT")
    assert report.peers
    assert report.behind_nat is True
    assert 0 < report.seconds < 5


def test_the_time_allowed_ends_it(seed: int) -> None:
    report = diagnose("port-restricted-cone", seed=seed, link=Link(delay=0.1), timeout=0.5)
    assert report.seconds == 0.5
    assert not report.conclusive


def test_the_server_has_two_addresses_that_differ_in_host_and_port() -> None:
    for family in ("ipv4", "ipv6"):
        assert PRIMARY[family].host != ALTERNATE[family].host
        assert PRIMARY[family].port != ALTERNATE[family].port
