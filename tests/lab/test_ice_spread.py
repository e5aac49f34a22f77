"""Prediction, birthday probing and low-TTL opening through two kernel NATs, with real sockets.

Each end is a program on its own host, 40 ms one way from the other; neither has a relay.
``python -m tools.icespread kernel --runs 20`` measures the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.icespread import Case, End, attempt, cases, ends

pytestmark = pytest.mark.lab

TRIALS = 3
CASES = [case for case in cases() if case.expected is None or case.expected > 0.999]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def meeting(request: pytest.FixtureRequest) -> Iterator[tuple[Case, End, End]]:
    case: Case = request.param
    with ends(case) as (a, b):
        yield case, a, b


def test_they_meet(meeting: tuple[Case, End, End]) -> None:
    case, a, b = meeting
    if case.hopeless:
        assert attempt(case, a, b).seconds is None
        return
    for _ in range(TRIALS):
        trial = attempt(case, a, b)
        # One in 3000 birthdays fails with 2048 probes; not two in a row.
        if trial.seconds is None and case.expected is not None:
            trial = attempt(case, a, b)
        assert trial.seconds is not None, trial.why
