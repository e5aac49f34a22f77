"""turnd lives through clients that come, talk and vanish, and through malformed traffic.

The short form of ``make soak``: the same clients and attacks, with shorter lifetimes.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from rich.console import Console

from tools.soak import Soak
from tools.soak_report import Findings, checks, to_json

pytestmark = pytest.mark.interop

SECONDS, CLIENTS = 10, 40


@pytest.fixture(scope="module")
def found(pytestconfig: pytest.Config) -> Findings:
    seed = int(pytestconfig.getoption("--seed"))
    soak = Soak(SECONDS, CLIENTS, seed, corpus=None, console=Console())
    return asyncio.run(soak.run())


def test_everything_holds(found: Findings) -> None:
    wrong = [f"{check.name}: {check.detail}" for check in checks(found) if not check.passed]
    assert not wrong, "\n".join(wrong)


def test_it_was_worth_the_name(found: Findings) -> None:
    # A soak that nobody came to would pass every check but this one.
    tally = found.tally
    for transport in ("UDP", "TCP", "TLS", "DTLS"):
        assert tally[f"allocations over {transport}"] > 0
    for what in ("echoes", "streams", "processes killed", "reloads"):
        assert tally[what] > 0
    for attack in ("datagrams", "flood", "broken_stream", "rude", "dtls", "tls", "wrong_password"):
        assert tally[f"attacks: {attack}"] > 0
    ended = {key for key, value in found.metrics.items() if "allocations_ended" in key and value}
    for reason in ("expired", "connection_closed", "refreshed_to_zero"):
        assert f'turnd_allocations_ended_total{{reason="{reason}"}}' in ended


def test_it_is_told_in_json(found: Findings) -> None:
    document = json.loads(json.dumps(to_json(found)))
    assert document["passed"]
    assert len(document["samples"]) == len(found.samples) >= 6
    assert {check["name"] for check in document["checks"]} == {c.name for c in checks(found)}
