"""What must hold for any text that is taken for a candidate or for a session description.

Shared by the coverage-guided fuzzer (python -m tools.fuzz) and the short run of every test
session (tests/fuzz/test_fuzz_ice.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ice import sdp
from ice.candidate import MOST_CHARACTERS, Candidate, CandidateError, is_name
from ice.priority import pair_priority, peer_reflexive_priority

VECTORS = Path(__file__).resolve().parents[2] / "rfc-vectors" / "ice"
MOST_TOLD = 1024
"""Characters of a complaint, whatever it is about."""


def check_candidate(data: bytes) -> None:
    """A candidate comes back as it was understood; anything else is refused with its place."""
    text = data.decode("utf-8", "surrogateescape")
    refused: CandidateError | None = None
    try:
        candidate = Candidate.from_sdp(text)
    except CandidateError as wrong:
        refused = wrong
    if refused is not None:
        assert 0 <= refused.position <= len(text)
        assert len(str(refused)) < MOST_TOLD
        assert str(refused).isprintable()
        return
    assert len(text) <= MOST_CHARACTERS
    assert 1 <= candidate.component <= 256
    assert 0 <= candidate.port <= 0xFFFF
    assert (candidate.tcptype is None) is (candidate.transport == "udp")
    assert candidate.is_name is is_name(candidate.host)
    written = candidate.to_sdp()
    assert written.isascii()
    assert written.isprintable()
    if len(written) <= MOST_CHARACTERS:
        again = Candidate.from_sdp(written)
        assert again.to_sdp() == written
        same = ("foundation", "component", "transport", "priority", "type", "tcptype", "extensions")
        assert all(getattr(again, name) == getattr(candidate, name) for name in same)
        assert again.host == candidate.host.partition("%")[0]
    assert 0 <= peer_reflexive_priority(candidate) < 1 << 31
    one_way = pair_priority(candidate.priority, 1)
    swapped = pair_priority(1, candidate.priority)
    assert one_way - swapped == (candidate.priority > 1) - (candidate.priority < 1)


def candidate_seeds() -> Iterator[bytes]:
    """Yield every candidate of the vectors, good and bad."""
    for case in json.loads((VECTORS / "candidates.json").read_text())["cases"]:
        yield case["text"].encode()


def check_sdp(data: bytes) -> None:
    """Whatever was understood can be written, and is then understood in the same way."""
    text = data.decode("utf-8", "surrogateescape")
    told = sdp.parse(text)
    assert len(told.problems) == min(told.left_out, sdp.MOST_PROBLEMS)
    assert told.left_out <= text.count("\n") + 1
    for section in told.sections:
        assert len(section.candidates) <= sdp.MOST_CANDIDATES
        assert told.credentials(section) is not None or None in (told.ufrag, told.password)
        assert isinstance(told.is_mismatch(section), bool)
        default = sdp.default_candidate(section.candidates)
        assert default is None or default in section.candidates
        assert sdp.unseen(section.candidates, section.candidates) == []
    written = sdp.fragment(told)
    assert written.isascii()
    again = sdp.parse(written)
    assert again.left_out == 0
    assert sdp.fragment(again) == written
    assert replace(again, sections=()) == replace(told, sections=())
    assert [section.lines() for section in again.sections] == [
        section.lines() for section in told.sections
    ]


def sdp_seeds() -> Iterator[bytes]:
    """Yield every body of the vectors, and one with everything in it."""
    for case in json.loads((VECTORS / "bodies.json").read_text())["cases"]:
        yield "\r\n".join([*case["lines"], ""]).encode()
    yield (
        b"a=ice-lite\r\na=ice-options:trickle ice2 renomination\r\na=end-of-candidates\r\n"
        b"m=audio 5000 RTP/AVP 0\r\nc=IN IP4 192.0.2.1\r\na=rtcp:5002 IN IP4 192.0.2.2\r\n"
        b"a=mid:a\r\na=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuv\r\n"
        b"a=ice-options:rtp+ecn\r\na=remote-candidates:1 192.0.2.3 1 2 2001:db8::1 2\r\n"
        b"m=video 0 RTP/AVP 1\r\na=ice-mismatch\r\na=mid:b\r\n"
    )


TARGETS = {
    "candidate": (check_candidate, candidate_seeds),
    "sdp": (check_sdp, sdp_seeds),
}
