"""``punch`` on both sides of real NATs: some cells of the grid that ``make grid`` measures whole.

Each is two processes of the command, started apart, with turnd as rendezvous and relay, 40 ms one
way.  What is sent has to come whole and in order, over the way that this pair of NATs allows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.grid.cells import MODE_NAMES, NATKIT, mark
from tools.grid.rows import Terms, row

pytestmark = pytest.mark.lab

PORT_RESTRICTED, SEQUENTIAL, RANDOM = "port-restricted-cone", "symmetric-sequential", "symmetric"

PATIENCE = 40
"""Seconds for a direct way, where a loaded machine spoils a prediction or two."""


@pytest.mark.parametrize(
    ("mode", "kind", "others"),
    [
        ("udp", PORT_RESTRICTED, ["open", PORT_RESTRICTED, SEQUENTIAL]),
        ("udp", RANDOM, ["full-cone", "restricted-cone"]),
        ("tcp/drop", PORT_RESTRICTED, ["full-cone", PORT_RESTRICTED]),
        ("tcp/rst", PORT_RESTRICTED, ["restricted-cone", PORT_RESTRICTED]),
        ("tcp/icmp", PORT_RESTRICTED, ["open", PORT_RESTRICTED, SEQUENTIAL]),
    ],
)
def test_a_direct_way_is_found(mode: str, kind: str, others: list[str], tmp_path: Path) -> None:
    how = MODE_NAMES[mode]
    with row(how, kind, tmp_path, Terms(patience=PATIENCE), others) as laboratory:
        for other in others:
            run, story = laboratory.run(NATKIT, other, 0)
            found = (run.outcome, run.over, run.why)
            assert found == ("direct", how.transport, ""), "\n".join(story)
            assert mark(kind, other) in {"D", "D*", "P"}


@pytest.mark.parametrize("mode", ["udp", "tcp/drop"])
def test_the_relay_carries_what_can_not_be_direct(mode: str, tmp_path: Path) -> None:
    how = MODE_NAMES[mode]
    with row(how, RANDOM, tmp_path, Terms(patience=4), [RANDOM]) as laboratory:
        run, story = laboratory.run(NATKIT, RANDOM, 0)
    assert mark(RANDOM, RANDOM) == "R"
    assert (run.outcome, run.over, run.why) == ("relay", how.transport, ""), "\n".join(story)
    assert run.first is not None
    assert run.direct is None
