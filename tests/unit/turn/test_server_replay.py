"""Responses that are kept for requests that come twice."""

from __future__ import annotations

from stun.sansio import SECOND, Address
from turn.server.replay import KEPT_FOR, MOST, Replay

FLOW = (Address("192.52.193.5", 40_000), Address("192.31.196.10", 3478))
OTHER = (Address("192.52.193.5", 40_001), Address("192.31.196.10", 3478))


def test_a_response_is_found_by_flow_and_transaction_for_forty_seconds() -> None:
    replay = Replay()
    replay.keep(FLOW, b"t" * 12, b"answer", 0)
    assert replay.find(FLOW, b"t" * 12, KEPT_FOR - 1) == b"answer"
    assert replay.find(OTHER, b"t" * 12, 0) is None
    assert replay.find(FLOW, b"u" * 12, 0) is None
    assert replay.find(FLOW, b"t" * 12, KEPT_FOR) is None
    assert len(replay) == 0


def test_a_later_answer_to_the_same_request_takes_the_place() -> None:
    replay = Replay()
    replay.keep(FLOW, b"t" * 12, b"one", 0)
    replay.keep(FLOW, b"t" * 12, b"two", SECOND)
    assert replay.find(FLOW, b"t" * 12, SECOND) == b"two"
    assert len(replay) == 1


def test_memory_is_bounded() -> None:
    replay = Replay()
    for n in range(MOST + 100):
        replay.keep(FLOW, n.to_bytes(12), b"answer", n)
    assert len(replay) == MOST
    assert replay.find(FLOW, (99).to_bytes(12), MOST) is None
    assert replay.find(FLOW, (100).to_bytes(12), MOST) == b"answer"
