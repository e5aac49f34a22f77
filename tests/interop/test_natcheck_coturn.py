"""natcheck against coturn's RFC 5780 server, behind real kernel NATs."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from nattype.jsonform import from_json
from nattype.lab import Lab
from nattype.model import Filtering, NatType, kind

TURNSERVER = shutil.which("turnserver")
COMMAND = [
    TURNSERVER or "turnserver",
    *("-n", "--log-file=stdout", "--no-auth", "--no-tls", "--no-dtls", "--no-cli"),
    *("-L", "{A}", "-L", "{B}", "--listening-port={port}"),
]

pytestmark = pytest.mark.skipif(TURNSERVER is None, reason="coturn is not installed")


@pytest.mark.parametrize(
    "name",
    ["open", "full-cone", "restricted-cone", "port-restricted-cone", "symmetric", "firewall"],
)
def test_coturn_gives_the_same_verdict_over_udp(name: str) -> None:
    with Lab.nat(name, server_command=COMMAND) as lab:
        done = lab.host.run(
            [sys.executable, "-m", "nattype.cli", "--json"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    report = from_json(json.loads(done.stdout))
    expected = kind(name).expected
    assert report.culprits == ()
    assert report.udp is not None
    assert report.udp.nat_type is expected.udp
    assert report.udp.mapping is expected.mapping
    assert report.udp.filtering is expected.filtering
    # It cannot connect back, so TCP's mapping is known and its filtering is not.
    assert report.tcp is not None
    assert report.tcp.mapping is expected.mapping
    assert report.tcp.filtering is Filtering.UNKNOWN
    assert report.tcp.nat_type in (NatType.INCONCLUSIVE, NatType.SYMMETRIC)
