"""Pairing: same secret, same keys; any other secret, name, version or interference, none."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spake2 import SPAKE2_A, SPAKE2_Symmetric
from spake2.ed25519_basic import Base, L, Q, bytes_to_element

from ice.rendezvous.errors import OtherVersion, RendezvousError, Tampered
from ice.rendezvous.pairing import HELLO_LENGTH, IDENTITY, LONGEST_EXPORT, Keys, Pairing

SECRETS = st.text(st.characters(codec="utf-8"), max_size=20)


def seeded(seed: int):
    return random.Random(seed).randbytes


def pair(ours: str, theirs: str, names: tuple[str, str] = ("7", "7"), seed: int = 1):
    one, other = Pairing(ours, seeded(seed)), Pairing(theirs, seeded(seed + 1))
    return one.finish(other.hello, names[0]), other.finish(one.hello, names[1])


def material(keys: Keys) -> set[bytes]:
    return {
        keys.seal,
        keys.open,
        keys.resume.secret.encode(),
        keys.resume.name.encode(),
        keys.exporter("x"),
    }


@settings(max_examples=25)
@given(SECRETS, st.integers(0, 1 << 30))
def test_the_same_secret(secret: str, seed: int) -> None:
    one, other = pair(secret, secret, seed=seed)
    assert one.first is not other.first
    assert (one.seal, one.open) == (other.open, other.seal)
    assert one.resume == other.resume
    assert one.exporter("label", 77) == other.exporter("label", 77)
    assert len(material(one)) == 5


@settings(max_examples=15)
@given(SECRETS, SECRETS, st.integers(0, 1 << 30))
def test_another_secret_shares_nothing(ours: str, theirs: str, seed: int) -> None:
    one, other = pair(ours, theirs + " " if ours == theirs else theirs, seed=seed)
    assert not material(one) & material(other)
    assert one.first is not other.first


def test_another_name_shares_nothing() -> None:
    one, other = pair("acorn", "acorn", ("alice", "bob"))
    assert not material(one) & material(other)


def test_each_pairing_has_keys_of_its_own() -> None:
    assert not material(pair("acorn", "acorn", seed=1)[0]) & material(
        pair("acorn", "acorn", seed=3)[0]
    )


def test_another_application_shares_nothing(seed: int) -> None:
    """Who uses the same library with the same secret, but for something else, gets other keys."""
    ours = Pairing("acorn", seeded(seed))
    other = SPAKE2_Symmetric(b"acorn", idSymmetric=IDENTITY + b"?", entropy_f=seeded(seed + 1))
    same = SPAKE2_Symmetric(b"acorn", idSymmetric=IDENTITY, entropy_f=seeded(seed + 1))
    hello = other.start()
    assert hello == same.start()
    assert other.finish(ours.hello[1:]) != same.finish(ours.hello[1:])
    # The one with this identity is what a peer has.
    assert len(ours.finish(b"\x01" + hello, "7").seal) == 32


def test_a_hello_is_all_that_is_said(seed: int) -> None:
    one = Pairing("acorn", seeded(seed))
    assert len(one.hello) == HELLO_LENGTH
    # The library adds a letter for its side; what follows is a point of the group.
    bytes_to_element(one.hello[2:])


def test_nothing_secret_is_shown(seed: int) -> None:
    keys, _ = pair("acorn-violin", "acorn-violin", seed=seed)
    shown = repr(keys) + repr(Pairing("acorn-violin", seeded(seed)))
    assert "acorn" not in shown
    assert not any(repr(secret)[2:-1] in shown for secret in material(keys))


def test_exported_octets_depend_on_label_and_length() -> None:
    keys, _ = pair("acorn", "acorn")
    assert keys.exporter("a") != keys.exporter("b")
    assert len(keys.exporter("a", LONGEST_EXPORT)) == LONGEST_EXPORT
    with pytest.raises(ValueError, match="larger than 8160"):
        keys.exporter("a", LONGEST_EXPORT + 1)


# Interference. ------------------------------------------------------------------------------------


def test_ones_own_hello_sent_back(seed: int) -> None:
    one = Pairing("acorn", seeded(seed))
    with pytest.raises(Tampered):
        one.finish(one.hello, "7")


def test_no_hello_can_be_written_in_two_ways() -> None:
    """Else one's own could be sent back in other octets: y and y + Q, where that has 255 bits."""
    for y in range(19):
        for sign in (0, 1 << 255):
            for octets in (
                (y | sign).to_bytes(32, "little"),
                (y + Q | sign).to_bytes(32, "little"),
            ):
                with pytest.raises(Tampered):
                    Pairing("acorn", seeded(1)).finish(b"\x01S" + octets, "7")


def test_ones_own_point_negated_or_shifted_gives_keys_that_nobody_knows(seed: int) -> None:
    """Relatives of one's own hello pass for hellos; what comes of them cannot be foreseen."""
    element = bytes_to_element(Pairing("acorn", seeded(seed)).hello[2:])
    found = []
    for relative in (element.scalarmult(L - 1), element.add(Base), element.scalarmult(2)):
        hello = b"\x01S" + relative.to_bytes()
        found.append(Pairing("acorn", seeded(seed)).finish(hello, "7").seal)
    assert len(set(found)) == 3


NEUTRAL = (1).to_bytes(32, "little")
ORDER_2 = (Q - 1).to_bytes(32, "little")
ORDER_4 = bytes(32)


@pytest.mark.parametrize(
    "hello",
    [
        b"",
        b"\x01",
        b"\x01S",
        b"\x01S" + bytes(31),
        b"\x01S" + NEUTRAL,
        b"\x01S" + ORDER_2,
        b"\x01S" + ORDER_4,
        b"\x01S" + b"\xff" * 32,
        b"\x01A" + Base.to_bytes(),
        b"\x01" + SPAKE2_A(b"acorn", entropy_f=seeded(1)).start(),
        b"\x01S" + Base.to_bytes() + b"\0",
        b"\x01s" + Base.to_bytes(),
    ],
    ids=lambda hello: hello.hex()[:12] or "empty",
)
def test_what_is_no_hello(hello: bytes) -> None:
    with pytest.raises(Tampered):
        Pairing("acorn", seeded(1)).finish(hello, "7")


def test_another_version_is_called_one() -> None:
    with pytest.raises(OtherVersion, match="version 2 of the pairing, this program version 1"):
        Pairing("acorn", seeded(1)).finish(b"\x02anything at all", "7")


@settings(max_examples=60)
@given(
    st.binary(max_size=40)
    | st.builds(lambda y: b"\x01S" + y.to_bytes(32, "little"), st.integers(0, (1 << 256) - 1))
)
@example(b"\x01S" + Base.to_bytes())
def test_whatever_is_given_as_a_hello(hello: bytes) -> None:
    keys, said = None, ""
    try:
        keys = Pairing("acorn", seeded(1)).finish(hello, "7")
    except RendezvousError as error:
        said = str(error)
    assert said.isprintable()
    if keys is not None:
        assert len(hello) == HELLO_LENGTH
        assert len(material(keys)) == 5


def test_a_pairing_answers_once(seed: int) -> None:
    """A second answer would be a second guess."""
    one, other = Pairing("acorn", seeded(seed)), Pairing("acorn", seeded(seed + 1))
    one.finish(other.hello, "7")
    with pytest.raises(RuntimeError):
        one.finish(other.hello, "7")
    broken = Pairing("acorn", seeded(seed))
    with pytest.raises(Tampered):
        broken.finish(b"", "7")
    with pytest.raises(RuntimeError):
        broken.finish(other.hello, "7")


# Meeting again. -----------------------------------------------------------------------------------


def test_resumed_keys_are_new_and_lead_to_the_same_place(seed: int) -> None:
    before = pair("acorn", "acorn", seed=seed)
    assert before[0].resume.name.startswith("r.")
    for again in range(3):
        secret = before[0].resume.secret
        one = Pairing(secret, seeded(seed + 10 + again))
        other = Pairing(secret, seeded(seed + 20 + again))
        name = before[0].resume.name
        after = (
            one.finish(other.hello, name, before[0]),
            other.finish(one.hello, name, before[1]),
        )
        assert after[0].seal == after[1].open != before[0].seal
        assert after[0].open == after[1].seal
        assert [keys.first for keys in after] == [keys.first for keys in before]
        assert after[0].resume == after[1].resume == before[0].resume
        assert after[0].exporter("x") == after[1].exporter("x") != before[0].exporter("x")


def test_ones_own_earlier_connection_is_no_peer(seed: int) -> None:
    """It has the secret, but the same role: neither can open what the other seals."""
    keys, _ = pair("acorn", "acorn", seed=seed)
    one = Pairing(keys.resume.secret, seeded(seed + 10))
    ghost = Pairing(keys.resume.secret, seeded(seed + 11))
    mine, its = one.finish(ghost.hello, "r.", keys), ghost.finish(one.hello, "r.", keys)
    assert mine.seal == its.seal
    assert mine.open != its.seal
