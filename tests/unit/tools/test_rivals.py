"""The judges of ``make rivals``: what a tool said is read right, and judged in its own terms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nattype.jsonform import dumps
from nattype.model import Filtering, Mapping, NatType, kind
from nattype.report import Report, UdpReport
from stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    ERROR_CODE,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
)
from stun.codec import Message, decode, encode
from stun.registry import Class, Method
from stun.sansio import Address
from tools.rivals import __main__ as rivals
from tools.rivals import words
from tools.rivals.dishonest import PRIVATE, Fault, Server
from tools.rivals.words import Answer, Mark, Run


def run(out: str, code: int | None = 0) -> Run:
    return Run(out, code, 1.0)


PYSTUN3 = "NAT Type: {}\nExternal IP: 192.52.193.2\nExternal Port: 54320\n"
TURNUTILS = "-= Mapping Behavior Discovery =-\n{}\n-= Filtering Behavior Discovery =-\n{}\n"


@pytest.mark.parametrize(
    ("said", "built", "expected"),
    [
        ("Symmetric NAT", "symmetric", Mark.RIGHT),
        ("Full Cone", "symmetric", Mark.WRONG),
        ("Restric Port NAT", "port-restricted-cone", Mark.RIGHT),
        ("Restric NAT", "port-restricted-cone", Mark.WRONG),
        ("Blocked", "udp-blocked", Mark.RIGHT),
        ("Open Internet", "open", Mark.RIGHT),
        ("Symmetric UDP Firewall", "firewall", Mark.RIGHT),
        ("Meet an error, when do Test1 on Changed IP and Port", "symmetric", Mark.NO_ANSWER),
    ],
)
def test_pystun3(said: str, built: str, expected: Mark) -> None:
    answer = words.pystun3(run(PYSTUN3.format(said)))
    assert words.mark(answer, kind(built).expected) is expected
    assert answer.words == said


@pytest.mark.parametrize(
    ("mapping", "filtering", "built", "expected"),
    [
        ("NAT with Endpoint Independent Mapping!", "NAT with Endpoint Independent Filtering!",
         "full-cone", Mark.RIGHT),
        ("NAT with Endpoint Independent Mapping!", "NAT with Address and Port Dependent Filtering!",
         "port-restricted-cone", Mark.RIGHT),
        ("NAT with Address and Port Dependent Mapping!", "", "symmetric", Mark.RIGHT),
        ("NAT with Address and Port Dependent Mapping!", "NAT with Endpoint Independent Filtering!",
         "symmetric", Mark.WRONG),
        ("NAT with Address and Port Dependent Mapping!",
         "NAT with Address and Port Dependent Filtering!", "symmetric-address", Mark.WRONG),
        ("NAT with Endpoint Independent Mapping!", "", "port-restricted-cone", Mark.NO_ANSWER),
        ("", "NAT with Address and Port Dependent Filtering!", "symmetric", Mark.NO_ANSWER),
        ("NAT with Endpoint Independent Mapping!", "NAT with Endpoint Independent Filtering!",
         "open", Mark.WRONG),
        ("No NAT! (Endpoint Independent Mapping)", "NAT with Endpoint Independent Filtering!",
         "open", Mark.RIGHT),
        ("STUN receive timeout..", "STUN receive timeout..", "udp-blocked", Mark.NO_ANSWER),
    ],
)  # fmt: skip
def test_turnutils(mapping: str, filtering: str, built: str, expected: Mark) -> None:
    answer = words.turnutils(run(TURNUTILS.format(mapping, filtering)))
    assert words.mark(answer, kind(built).expected) is expected


def test_turnutils_words_are_of_the_axis_they_speak_of() -> None:
    said = TURNUTILS.format(
        "NAT with Address and Port Dependent Mapping!",
        "NAT with Address and Port Dependent Filtering!",
    )
    assert words.turnutils(run(said)).words == "APDM + APDF"


def natcheck(udp: UdpReport, *culprits: str) -> Answer:
    return words.natcheck(run(dumps(Report("v", "ipv4", udp, None, culprits=culprits))))


def test_natcheck_must_get_both_behaviours_right() -> None:
    truth = kind("adm+eif+random").expected
    both = UdpReport(NatType.SYMMETRIC, Mapping.ADDRESS_DEPENDENT, Filtering.ENDPOINT_INDEPENDENT)
    assert words.mark(natcheck(both), truth) is Mark.RIGHT
    worse = UdpReport(NatType.SYMMETRIC, Mapping.ADDRESS_AND_PORT_DEPENDENT)
    assert words.mark(natcheck(worse), truth) is Mark.WRONG


def test_natcheck_that_does_not_know() -> None:
    half = UdpReport(mapping=Mapping.ENDPOINT_INDEPENDENT)
    answer = natcheck(half, "192.0.2.1 ignores CHANGE-REQUEST")
    assert words.mark(answer, kind("port-restricted-cone").expected) is Mark.NO_ANSWER
    assert words.mark(answer, kind("symmetric").expected) is Mark.WRONG
    assert answer.words == "inconclusive, names the server as the cause"
    assert natcheck(half).words == "inconclusive"


@pytest.mark.parametrize("reader", [words.pystun3, words.turnutils, words.natcheck])
@pytest.mark.parametrize(
    ("out", "code", "said"),
    [
        ("", None, "does not end"),
        ("Traceback (most recent call last):\n  File\nTypeError: bad\n", 1, "crashes (TypeError)"),
        ("", -11, "killed by signal 11"),
        ("", 0, "nothing"),
    ],
)
def test_failures_are_told_in_words(reader, out: str, code: int | None, said: str) -> None:
    answer = reader(run(out, code))
    assert answer.words == said
    for built in ("open", "symmetric", "udp-blocked"):
        assert words.mark(answer, kind(built).expected) is Mark.NO_ANSWER


def test_the_table_and_its_sums() -> None:
    def answers(mark: Mark, cell: str) -> dict:
        return {"natcheck": {"mark": mark.value, "cell": cell}}

    rows = [
        {"situation": "open", "truth": "open", "answers": answers(Mark.RIGHT, "right")},
        {"situation": "x", "truth": "symmetric", "answers": answers(Mark.WRONG, "**wrong**: y")},
    ]
    lines = rivals.table(rows, ["natcheck"]).splitlines()
    assert lines[2] == "| open | open | right |"
    assert lines[4] == "| **sum of 2** | | 1 right, 1 wrong, 0 no answer |"


def test_the_table_goes_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{rivals.BEGIN}\nold\n{rivals.END}\nafter\n")
    for _ in range(2):
        assert rivals.write_between(readme, "new\n")
        assert readme.read_text() == f"before\n{rivals.BEGIN}\n\nnew\n\n{rivals.END}\nafter\n"
    readme.write_text("nothing here\n")
    assert not rivals.write_between(readme, "new\n")
    assert readme.read_text() == "nothing here\n"


def test_every_situation_is_one_of_its_kind() -> None:
    titles = [situation.title for situation in rivals.situations()]
    assert len(titles) == len(set(titles)) >= 20
    faults = {situation.fault for situation in rivals.situations()}
    assert faults == set(Fault)


FIRST, SECOND, CLIENT = "127.0.0.1", "127.0.0.2", Address("127.0.0.9", 4000)
ASKED = Address(FIRST, 3478)


def answered(fault: Fault, ip: bool = False, port: bool = False, cookie: int | None = None):
    """What such a server answers, and from where; without sockets."""
    server = Server(fault, FIRST, SECOND, bind=False)
    request = Message.request(Method.BINDING, bytes(12))
    if cookie is not None:
        request.cookie = cookie
    if ip or port:
        request.add(CHANGE_REQUEST, ChangeRequest(ip, port))
    found = server.answer(encode(request), CLIENT, ASKED)
    return None if found is None else (found[0], decode(found[1]))


def test_without_a_fault_it_does_as_rfc_5780_says() -> None:
    for ip, port, sender in (
        (False, False, Address(FIRST, 3478)),
        (False, True, Address(FIRST, 3479)),
        (True, False, Address(SECOND, 3478)),
        (True, True, Address(SECOND, 3479)),
    ):
        origin, message = answered(Fault.NONE, ip, port)
        assert origin == sender
        assert message.get(RESPONSE_ORIGIN) == sender
        assert message.get(OTHER_ADDRESS) == Address(SECOND, 3479)
        assert message.get(XOR_MAPPED_ADDRESS) == CLIENT


def test_each_fault_is_as_it_is_called() -> None:
    origin, _ = answered(Fault.IGNORE_CHANGE, True, True)
    assert origin == ASKED
    origin, message = answered(Fault.REFUSE_CHANGE, True, True)
    assert origin == ASKED
    assert message.message_class is Class.ERROR
    assert message.get(ERROR_CODE).code == 420
    _, message = answered(Fault.PRIVATE_OTHER)
    assert message.get(OTHER_ADDRESS) == PRIVATE
    _, message = answered(Fault.NO_OTHER)
    assert not message.has(OTHER_ADDRESS)
    assert answered(Fault.DEAD_SECOND, True, True) is None
    origin, message = answered(Fault.DEAD_SECOND, False, True)
    assert origin == Address(FIRST, 3479)
    assert message.get(OTHER_ADDRESS) == Address(SECOND, 3479)


def test_it_speaks_with_clients_of_rfc_3489() -> None:
    _, message = answered(Fault.NONE, cookie=0x01020304)
    assert message.cookie == 0x01020304
    assert message.get(MAPPED_ADDRESS) == CLIENT
    assert message.get(CHANGED_ADDRESS) == Address(SECOND, 3479)
    assert not message.has(XOR_MAPPED_ADDRESS)


def test_it_is_silent_on_what_is_no_request() -> None:
    server = Server(Fault.NONE, FIRST, SECOND, bind=False)
    for data in (b"", b"\x00" * 20, b"\xff" * 40, encode(Message.indication(1, bytes(12)))):
        assert server.answer(data, CLIENT, ASKED) is None


def test_the_json_beside_the_table_can_be_read() -> None:
    path = rivals.ROOT / "docs" / "rivals.json"
    rows = json.loads(path.read_text())
    assert {row["situation"] for row in rows} == {s.title for s in rivals.situations()}
