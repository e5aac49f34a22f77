"""The diagnosis in the background, with another one in place of natcheck's probe."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ice.predict.diagnose import MOST_SERVERS, Diagnosing, Diagnosis, diagnose
from ice.predict.summary import NatSummary
from nattype.model import Mapping
from nattype.report import Report, UdpReport
from stun.errors import StunError, UsageError
from stun.uri import StunUri

REPORT = Report("", "ipv4", UdpReport(mapping=Mapping.ENDPOINT_INDEPENDENT), None, layers=1)


class Probe:
    """Stands in for ``nattype.discover_async``."""

    def __init__(self, ends: Exception | None = None, *, hangs: bool = False) -> None:
        self.calls: list[tuple[tuple[str, ...], bool, bool, float]] = []
        self.cancelled = False
        self._ends = ends
        self._hangs = hangs

    async def __call__(
        self,
        servers: Sequence[str | StunUri],
        *,
        udp: bool,
        tcp: bool,
        timeout: float,  # noqa: ASYNC109  (as it is there)
    ) -> Report:
        self.calls.append((tuple(map(str, servers)), udp, tcp, timeout))
        if self._hangs:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        await asyncio.sleep(0)
        if self._ends is not None:
            raise self._ends
        return REPORT


async def test_a_diagnosis_becomes_a_summary() -> None:
    probe = Probe()
    found = await diagnose(["stun:192.0.2.1", "192.0.2.2:3479"], seconds=3, discover=probe)
    assert found == Diagnosis(NatSummary.from_report(REPORT))
    ((servers, udp, tcp, timeout),) = probe.calls
    assert servers == ("stun:192.0.2.1", "stun:192.0.2.2:3479")
    assert (udp, tcp, timeout) == (True, True, 3)


async def test_without_servers_nobody_is_asked() -> None:
    """The probe has public servers of its own for this case, which were not agreed to here."""
    probe = Probe()
    found = await diagnose([], discover=probe)
    assert found.summary == NatSummary()
    assert "no plain STUN server" in found.note
    assert not probe.calls


async def test_servers_that_cannot_be_used_are_left_out_and_named() -> None:
    probe = Probe()
    uris = ["stuns:stun.example", "turn:192.0.2.8", "stun:192.0.2.1", "stun:192.0.2.1", "::::"]
    found = await diagnose(uris, discover=probe)
    assert probe.calls[0][0] == ("stun:192.0.2.1",)
    assert "stuns:stun.example is no plain STUN server" in found.note
    assert found.summary == NatSummary.from_report(REPORT)


async def test_not_everybody_is_asked() -> None:
    probe = Probe()
    await diagnose([f"192.0.2.{n}" for n in range(1, 100)], discover=probe)
    assert len(probe.calls[0][0]) == MOST_SERVERS


@pytest.mark.parametrize("error", [UsageError("wrong"), StunError("odd"), OSError(13, "denied")])
async def test_a_diagnosis_that_fails_is_a_note(error: Exception) -> None:
    found = await diagnose(["192.0.2.1"], discover=Probe(error))
    assert found.summary == NatSummary()
    assert str(error) in found.note


async def test_one_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ice.predict.diagnose.GRACE", 0.01)
    probe = Probe(hangs=True)
    found = await diagnose(["192.0.2.1"], seconds=0.01, discover=probe)
    assert "did not end" in found.note
    assert probe.cancelled


async def test_in_the_background_it_tells_when_it_is_done() -> None:
    told: list[Diagnosis] = []
    async with Diagnosing(["192.0.2.1"], discover=Probe(), on_done=told.append) as diagnosing:
        early = diagnosing.found
        found = await diagnosing.result()
        assert early is None
        assert diagnosing.found == found == told[0]
        assert found.summary.layers == 1


async def test_whoever_cannot_wait_takes_what_there_is() -> None:
    probe = Probe(hangs=True)
    async with Diagnosing(["192.0.2.1"], discover=probe) as diagnosing:
        found = await diagnosing.result(patience=0.01)
        assert found.summary == NatSummary()
        assert "still going on" in found.note
        assert diagnosing.found is None
    assert probe.cancelled


async def test_leaving_ends_it_at_once() -> None:
    probe = Probe(hangs=True)
    async with Diagnosing(["192.0.2.1"], discover=probe):
        await asyncio.sleep(0)
    assert probe.cancelled
