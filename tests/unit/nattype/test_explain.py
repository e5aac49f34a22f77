"""What ``--explain`` says: a purpose for each test that there is, and every packet."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import nattype
from nattype.explain import PURPOSES, explain, purpose
from nattype.render import plain
from nattype.report import Evidence, Outcome, Report
from nattype.trace import Step, Traced
from stun.attributes import CHANGE_REQUEST, SOFTWARE, XOR_MAPPED_ADDRESS, ChangeRequest
from stun.codec import Message, encode
from stun.registry import Method
from stun.sansio import SECOND, Address

HOST, SERVER = Address("192.168.1.2", 5000), Address("192.0.2.1", 3478)
EVIDENCE = (
    Evidence("udp.mapping", Outcome.POSITIVE, "All saw one address.", 0.5),
    Evidence("udp.mapping", Outcome.INCONCLUSIVE, "The last was silent.", 1.25, "192.0.2.1:3478"),
    Evidence("martian.test", Outcome.SKIPPED, "Unheard of."),
)
REPORT = Report("v", "ipv4", None, None, evidence=EVIDENCE)


def said(packets: tuple[Traced, ...] = ()) -> str:
    return plain(lambda console: explain(REPORT, console, packets), width=120)


def test_every_test_that_the_judges_write_of_has_a_purpose() -> None:
    package = Path(nattype.__file__).parent
    written: set[str] = set()
    for path in package.rglob("*.py"):
        if path.stem == "explain" or "lab" in path.parts:
            continue
        source = path.read_text()
        written.update(re.findall(r'"((?:udp|tcp|server|nat)\.[a-z-]+)"', source))
        for node in ast.walk(ast.parse(source)):
            match node:
                # A name with the protocol put before it.
                case ast.Call(
                    func=ast.Attribute(attr="note"),
                    args=[ast.JoinedStr(values=[*_, ast.Constant(value=str(end))]), *_],
                ):
                    written.update(f"{protocol}{end}" for protocol in ("udp", "tcp"))
    assert {"udp.mapping", "tcp.simultaneous-open", "nat.layers", "tcp.alg"} <= written
    assert written == set(PURPOSES)


@pytest.mark.parametrize("name", PURPOSES)
def test_a_purpose_is_a_question_a_method_and_a_norm(name: str) -> None:
    known = PURPOSES[name]
    assert known.question.endswith("?")
    assert known.method.endswith(".")
    assert re.match(r"RFC \d{4} section", known.norm)


def test_purposes_are_found_by_the_beginning_of_a_name() -> None:
    assert purpose("udp.mapping.again") is PURPOSES["udp.mapping"]
    assert purpose("udp") is None


def test_each_test_is_explained_once_with_all_its_outcomes() -> None:
    text = " ".join(said().split())
    assert text.count("Do different peers see this host at the same address and port?") == 1
    assert "RFC 5780 section 4.3" in text
    assert "0.50 s positive: All saw one address." in text
    assert "1.25 s inconclusive: The last was silent. [192.0.2.1:3478]" in text
    assert "skipped: Unheard of." in text
    assert "packets" not in text


def request(number: int, change: bool = False) -> bytes:
    message = Message.request(Method.BINDING, bytes([number] * 12)).add(SOFTWARE, "test")
    if change:
        message.add(CHANGE_REQUEST, ChangeRequest(True, False))
    return encode(message)


def sent(at: float, data: bytes) -> Traced:
    return Traced(int(at * SECOND), Step.SENT, "UDP", HOST, SERVER, data)


def test_packets_are_told_in_a_line_each_and_new_shapes_taken_apart() -> None:
    answer = Message.success(Message.request(Method.BINDING, bytes(12)))
    answer.add(XOR_MAPPED_ADDRESS, Address("192.52.193.4", 40000))
    text = said(
        (
            Traced(0, Step.DIALLED, "TCP", HOST, SERVER),
            sent(100, request(1)),
            sent(100.25, request(2)),
            sent(100.5, request(3, change=True)),
            Traced(101 * SECOND, Step.RECEIVED, "UDP", HOST, SERVER, encode(answer)),
            Traced(102 * SECOND, Step.CLOSED, "TCP", HOST, SERVER, detail="refused"),
        )
    )
    assert "0.0000  TCP 192.168.1.2:5000 dial 192.0.2.1:3478" in text
    assert "0.2500  UDP 192.168.1.2:5000 -> 192.0.2.1:3478  Binding request 0202" in text
    assert "CHANGE-REQUEST change_ip True" in text
    assert "192.168.1.2:5000 <- 192.0.2.1:3478  Binding success" in text
    assert "XOR-MAPPED-ADDRESS 192.52.193.4:40000" in text
    assert "closed 192.0.2.1:3478 (refused)" in text
    # Two shapes of requests and one of answers; the second plain request is one line.
    assert text.count("magic cookie") == 3


def test_what_is_no_stun_message_is_shown_without_harm() -> None:
    text = said((sent(1, b"\xff" * 300), sent(2, b""), sent(3, request(1)[:-1])))
    assert "300 octets, no STUN message" in text
    assert "0 octets, no STUN message" in text
    assert "refused" in text
    assert max(map(len, text.splitlines())) < 200
