"""Which generation something belongs to, with messages that cross on their way."""

from __future__ import annotations

from random import Random

import pytest

from ice.candidate import Candidate, CandidateType
from ice.config import Credentials
from ice.session import MOST_HELD, Session, make_credentials, ufrag_of

ONE = Credentials("aaaa", "1" * 22)
TWO = Credentials("bbbb", "2" * 22)
THREE = Credentials("cccc", "3" * 22)
OWN = Credentials("oooo", "0" * 22)
ICE_CHARS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")


def candidate(port: int = 1, *extensions: tuple[str, str]) -> Candidate:
    return Candidate("1", 1, "udp", 1, "192.0.2.1", port, CandidateType.HOST, extensions=extensions)


def agree(session: Session, credentials: Credentials) -> list[tuple[Candidate | None, int]]:
    held = session.agree(credentials, lite=False, options=())
    return [(each.candidate, each.stream) for each in held]


def test_credentials_are_ice_chars_and_random_enough(rng: Random) -> None:
    drawn = [make_credentials(rng.randbytes) for _ in range(200)]
    for each in drawn:
        assert len(each.ufrag) * 6 >= 24
        assert len(each.password) * 6 >= 128
        assert set(each.ufrag + each.password) <= ICE_CHARS
    assert len({each.ufrag for each in drawn}) == len({each.password for each in drawn}) == 200


def test_the_first_credentials_are_no_restart() -> None:
    session = Session(OWN)
    assert not session.is_restart(ONE)
    agree(session, ONE)
    assert session.is_answered
    assert not session.is_restart(ONE)
    assert session.is_restart(TWO)


def test_the_answer_to_a_restart_is_no_restart() -> None:
    session = Session(OWN)
    agree(session, ONE)
    session.restart(Credentials("pppp", "4" * 22))
    assert (session.generation, session.local.ufrag) == (1, "pppp")
    assert not session.is_answered
    assert not session.is_restart(TWO)
    agree(session, TWO)
    assert session.is_restart(THREE)


def test_before_the_credentials_everything_waits() -> None:
    session = Session(OWN)
    assert session.belongs("") is None
    assert session.belongs("aaaa") is None
    session.hold(candidate(1), 0)
    session.hold(candidate(2), 1, "aaaa")
    session.hold(candidate(3), 0, "zzzz")
    session.hold(None, 0, "aaaa")
    assert agree(session, ONE) == [(candidate(1), 0), (candidate(2), 1), (None, 0)]
    # What was of another generation is not kept a second time.
    assert agree(session, Credentials("zzzz", "5" * 22)) == []


def test_a_late_candidate_of_a_generation_that_is_over_is_known() -> None:
    session = Session(OWN)
    agree(session, ONE)
    assert session.belongs("aaaa") is True
    assert session.belongs("") is True
    session.restart(Credentials("pppp", "4" * 22))
    # Our restart has not been answered: what comes with the old fragment was sent before it.
    assert session.belongs("aaaa") is False
    assert session.belongs("bbbb") is None
    agree(session, TWO)
    assert session.belongs("aaaa") is False
    assert session.belongs("bbbb") is True
    assert session.belongs("cccc") is None


def test_what_is_held_is_bounded() -> None:
    session = Session(OWN)
    taken = [session.hold(candidate(port), 0) for port in range(MOST_HELD + 5)]
    assert taken == [True] * MOST_HELD + [False] * 5
    assert len(agree(session, ONE)) == MOST_HELD
    assert session.hold(candidate(), 0)


@pytest.mark.parametrize(
    ("extensions", "ufrag"),
    [((), ""), ((("generation", "0"), ("ufrag", "Ab+/")), "Ab+/"), ((("network-id", "1"),), "")],
)
def test_a_candidate_may_name_its_fragment(
    extensions: tuple[tuple[str, str], ...], ufrag: str
) -> None:
    assert ufrag_of(candidate(1, *extensions)) == ufrag
