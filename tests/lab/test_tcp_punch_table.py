"""Punching by itself through two kernel NATs: no trial may fail, whatever they do with a SYN.

``python tools/sotable.py`` is the same with more trials, as a table.
"""

from __future__ import annotations

import pytest

from tools.sotable import DROPS, ICMP, RESETS, run_cell

pytestmark = pytest.mark.lab

DELAY = 0.04
"""Seconds one way from end to end."""
SKEW = 0.4
TRIALS = 12


@pytest.mark.parametrize("low_ttl", [False, True], ids=["plain", "low-ttl"])
@pytest.mark.parametrize(
    ("left", "right"),
    [(DROPS, DROPS), (RESETS, RESETS), (ICMP, ICMP), (DROPS, RESETS), (RESETS, ICMP)],
)
def test_every_trial_succeeds(left: str, right: str, low_ttl: bool) -> None:
    cell = run_cell(left, right, trials=TRIALS, skew=SKEW, delay=DELAY, low_ttl=low_ttl)
    assert not cell.failures
    assert cell.successes == TRIALS


@pytest.mark.parametrize("nat", [RESETS, ICMP])
def test_without_delay(nat: str) -> None:
    """A refusal comes back before a program can do anything: no two SYNs are ever under way."""
    cell = run_cell(nat, nat, trials=40, skew=0.02, delay=0, low_ttl=False, count=1)
    assert not cell.failures
    assert cell.successes == 40
