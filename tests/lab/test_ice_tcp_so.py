"""TCP simultaneous open through two kernel NATs, whatever they do with a SYN that nobody asked for.

Each end is a program on its own host of the laboratory, behind its own NAT, 40 ms one way from the
other, or as near as it can be: then a NAT's refusal comes back before a program can do anything,
and no two SYNs are ever under way at once.  What is carried between the ends in place of signalling
is one address each way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nattype.lab import Lab, Machine

pytestmark = pytest.mark.lab

END = Path(__file__).with_name("ice_tcp_end.py")
ROOT = Path(__file__).parents[2]
DELAY = 0.02
"""Seconds each way on each access link, so that a round trip between the ends takes 80 ms."""
TRIALS = 20
SKEWS = (0.0, 0.05, 0.1, 0.2, 0.4)
"""By how many seconds one end starts before the other."""
DROPS, RESETS, ICMP = "port-restricted-cone", "port-restricted-rst", "port-restricted-icmp"


class End:
    """One end, as the test sees it."""

    def __init__(self, lab: Lab, machine: Machine, stack: ExitStack) -> None:
        self.stun = lab.stun
        self.host = machine.ipv4
        self.program = stack.enter_context(
            machine.popen([sys.executable, str(END)], stdin=-1, stdout=-1, text=True, cwd=ROOT)
        )

    def do(self, **command: Any) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(json.dumps(command) + "\n")
        self.program.stdin.flush()

    def told(self) -> dict[str, Any]:
        assert self.program.stdout is not None
        line = self.program.stdout.readline()
        assert line, "the program ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def gather(self) -> list[Any]:
        self.do(do="gather", host=self.host, stun=self.stun)
        told = self.told()
        assert told["told"] == "candidate", told
        found: list[Any] = told["at"]
        return found


@pytest.fixture(
    scope="module",
    params=[
        (DROPS, DROPS, DELAY),
        (RESETS, RESETS, DELAY),
        (ICMP, ICMP, DELAY),
        (DROPS, RESETS, DELAY),
        (RESETS, ICMP, DELAY),
        (RESETS, RESETS, 0),
        (ICMP, ICMP, 0),
    ],
    ids=lambda param: f"{param[0]}+{param[1]}-{param[2]:g}s",
)
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[End, End]]:
    left, right, delay = request.param
    with Lab.pair(left, right, delay=delay, ipv6="off") as lab, ExitStack() as stack:
        yield End(lab, lab.a, stack), End(lab, lab.b, stack)


def test_every_trial_succeeds(ends: tuple[End, End]) -> None:
    a, b = ends
    for trial in range(TRIALS):
        skew = SKEWS[trial % len(SKEWS)]
        late_is_a = trial % 2 == 0
        at_a, at_b = a.gather(), b.gather()
        a.do(do="open", to=at_b, after=skew if late_is_a else 0)
        b.do(do="open", to=at_a, after=0 if late_is_a else skew)
        told = a.told(), b.told()
        assert all(one["told"] == "data" for one in told), (trial, skew, told)
        assert [one["remote"] for one in told] == [at_b, at_a]
