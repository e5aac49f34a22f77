"""A soak is judged by its figures."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from tools.soak_report import MIB, SLACK, Findings, checks, render, sixths, to_json
from tools.soak_turnd import Sample

IDLE = Sample(0.0, 60 * MIB, 16, 1, 1.0, 0, 0, 0, 0, 0, 0, 0)


def busy(second: float, resident: int) -> Sample:
    return Sample(second, resident, 400, 1, second / 10, 200, 200, 300, 150, 4, 1000, 100)


def good() -> Findings:
    """What a soak without a fault has seen."""
    return Findings(
        seed=1,
        seconds=600,
        clients=200,
        idle=IDLE,
        samples=[busy(5.0 * n, 80 * MIB) for n in range(1, 121)],
        end=replace(IDLE, second=640.0, relayed=1000, dropped=100),
        metrics={
            'turnd_allocations_created_total{transport="udp"}': 900.0,
            'turnd_allocations_created_total{transport="tcp"}': 100.0,
            'turnd_allocations_ended_total{reason="expired"}': 1000.0,
            'turnd_dropped_total{reason="too_short"}': 60.0,
            'turnd_dropped_total{reason="no_permission"}': 40.0,
        },
        tally=Counter({"must drop: too_short": 60, "echoes": 5000, "clients that came": 1000}),
        worker_statuses=[0, 0],
        log_levels=Counter(info=2000),
        status=0,
    )


def failed(found: Findings) -> list[str]:
    return [check.name for check in checks(found) if not check.passed]


def test_a_soak_without_a_fault() -> None:
    assert failed(good()) == []


def _memory(found: Findings) -> None:
    found.samples[-20:] = [busy(600, 80 * MIB + SLACK + 1)] * 20


def _descriptors(found: Findings) -> None:
    assert found.end is not None
    found.end = replace(found.end, descriptors=17)


def _threads(found: Findings) -> None:
    assert found.end is not None
    found.end = replace(found.end, threads=2)


def _gauges(found: Findings) -> None:
    assert found.end is not None
    found.end = replace(found.end, permissions=1)


def _books(found: Findings) -> None:
    found.metrics = {**found.metrics, 'turnd_allocations_ended_total{reason="expired"}': 999.0}


def _not_counted(found: Findings) -> None:
    found.tally["must drop: too_short"] += 1


def _not_sent(found: Findings) -> None:
    found.tally["must drop: too_short"] -= 1


def _nothing_sent(found: Findings) -> None:
    found.tally["must drop: too_short"] = 0
    found.metrics = {k: v for k, v in found.metrics.items() if "too_short" not in k}


def _log(found: Findings) -> None:
    found.bad_lines.append("Traceback (most recent call last):")


def _killed(found: Findings) -> None:
    found.status = None


def _failures(found: Findings) -> None:
    found.failures.append("1 of 1 datagrams never came back")


def _worker(found: Findings) -> None:
    found.worker_statuses = [0, 1]


def _nobody(found: Findings) -> None:
    found.tally["echoes"] = 0


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (_memory, "memory is flat"),
        (_descriptors, "no descriptor leaked"),
        (_threads, "no thread leaked"),
        (_gauges, "nothing of a client is left"),
        (_books, "every allocation ended"),
        (_not_counted, "every drop is counted"),
        (_not_sent, "every drop is counted"),
        (_nothing_sent, "every drop is counted"),
        (_log, "no error in the log"),
        (_killed, "SIGTERM ends it with status 0"),
        (_failures, "no honest client failed"),
        (_worker, "no honest client failed"),
        (_nobody, "no honest client failed"),
    ],
)
def test_each_fault_fails_its_check(spoil: Callable[[Findings], None], name: str) -> None:
    found = good()
    spoil(found)
    assert failed(found) == [name]
    assert not to_json(found)["passed"]


def test_what_the_kernel_lost_turnd_cannot_count() -> None:
    found = good()
    _not_counted(found)
    found.lost_in_the_kernel = 1
    assert failed(found) == []


def test_one_sample_out_of_the_line_is_no_leak() -> None:
    found = good()
    found.samples[-1] = busy(600, 200 * MIB)
    assert failed(found) == []


def test_sixths() -> None:
    samples = [busy(n, n) for n in range(13)]
    groups = sixths(samples, lambda sample: sample.second)
    assert [n for group in groups for n in group] == [*range(13)]
    assert {len(group) for group in groups} == {2, 3}
    assert sixths(samples[:5], lambda sample: sample.second) == []


def test_a_person_and_a_program_can_read_it() -> None:
    found = good()
    out = io.StringIO()
    render(found, Console(file=out, width=200))
    text = out.getvalue()
    assert "80.00" in text
    assert "FAIL" not in text
    for check in checks(found):
        assert check.name in text
    document = json.loads(json.dumps(to_json(found)))
    assert document["passed"]
    assert len(document["samples"]) == 120
    assert document["samples"][0]["rss"] == 80 * MIB
