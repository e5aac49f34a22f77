"""Messages of Multicast DNS."""

from __future__ import annotations

import dns.message
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.mdnswire import Heard, Question, answer, as_name, query, read

NAME = "3f1c2f9e-6f0a-4a8d-9a1e-1b2c3d4e5f60.local"
BOTH = frozenset((4, 6))


def test_a_question() -> None:
    heard = read(query(NAME, 7))
    assert heard == Heard(
        7,
        (
            Question(NAME, frozenset((4,)), unicast=True),
            Question(NAME, frozenset((6,)), unicast=True),
        ),
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "fe80::1%eth0"])
@pytest.mark.parametrize("legacy", [None, (7, BOTH)])
def test_an_answer(host: str, legacy: tuple[int, frozenset[int]] | None) -> None:
    octets = answer(NAME, host, legacy=legacy)
    heard = read(octets)
    assert heard is not None
    assert heard.addresses == {NAME: (host.partition("%")[0],)}
    message = dns.message.from_wire(octets)
    assert message.id == (7 if legacy else 0)
    # RFC 6762: the question is repeated to simple resolvers only (6.7, 18.1); the top bit of the
    # class is "MUST NOT be set" there and is set for others (10.2).
    assert bool(message.question) is bool(legacy)
    assert all((records.rdclass & 0x8000 == 0) is bool(legacy) for records in message.answer)
    # Section 6.1: what else there is not, an NSEC record says.
    assert [records.rdtype for records in message.additional] == (
        [] if legacy else [dns.rdatatype.NSEC]
    )


def test_the_nsec_record_says_which_family_there_is() -> None:
    for host, there in (("192.0.2.1", "A"), ("2001:db8::1", "AAAA")):
        message = dns.message.from_wire(answer(NAME, host))
        assert message.additional[0][0].to_text() == f"{NAME}. {there}"


def test_a_name_that_is_taken_back_is_no_address() -> None:
    assert read(answer(NAME, "192.0.2.1", ttl=0)) is None


def test_several_addresses_are_all_heard() -> None:
    message = dns.message.from_wire(answer(NAME, "192.0.2.1", legacy=(1, BOTH)))
    message.answer.append(dns.rrset.from_text(f"{NAME}.", 10, "IN", "AAAA", "2001:db8::1"))
    heard = read(message.to_wire())
    assert heard is not None
    assert heard.addresses == {NAME: ("192.0.2.1", "2001:db8::1")}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (NAME, NAME),
        (NAME.upper() + ".", NAME),
        ("printer.local", None),
        (f"x.{NAME}", None),
        (NAME.replace(".local", ".example"), None),
        ("", None),
    ],
)
def test_names_of_agents(text: str, name: str | None) -> None:
    assert as_name(text) == name


def test_what_is_about_others_says_nothing() -> None:
    other = dns.message.make_query("printer.local", "A")
    assert read(other.to_wire()) is None
    failed = dns.message.from_wire(answer(NAME, "192.0.2.1", legacy=(1, BOTH)))
    failed.set_rcode(3)
    assert read(failed.to_wire()) is None


@given(st.binary(max_size=200))
def test_any_octets(octets: bytes) -> None:
    heard = read(octets)
    assert heard is None or heard.questions or heard.addresses


@given(st.data())
def test_any_spoilt_message(data: st.DataObject) -> None:
    octets = bytearray(answer(NAME, "192.0.2.1"))
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    del octets[data.draw(st.integers(0, len(octets))) :]
    read(bytes(octets))
