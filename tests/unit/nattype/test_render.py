"""The report on a console: in the right order, within 80 columns, without escapes into a pipe."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from rich.console import Console

from nattype.explain import explain
from nattype.model import (
    NAMED_KINDS,
    Allocation,
    Filtering,
    Hairpin,
    Kind,
    Mapping,
    NatType,
    Unsolicited,
)
from nattype.peers import compare
from nattype.render import plain, printable, render, render_comparison
from nattype.report import (
    AllocationReport,
    Evidence,
    FamilyReport,
    LifetimeReport,
    Outcome,
    Report,
    TcpReport,
    UdpReport,
)
from nattype.verdict import complete
from stun.sansio import Address


def report_of(kind: Kind, **more: object) -> Report:
    expected = kind.expected
    udp = UdpReport(
        nat_type=expected.udp,
        mapping=expected.mapping,
        filtering=expected.filtering,
        allocation=AllocationReport(expected.allocation, 1, 0.9),
        hairpinning=Hairpin.EXTERNAL,
        local_address=Address("192.168.1.2", 54321),
        mapped_address=Address("192.52.193.4", 54321),
        mapping_stable=True,
        remaps_after_inbound=False,
        fragments=True,
        lifetime_one_shot=LifetimeReport(28.0, 32.0),
        lifetime_stream=LifetimeReport(120.0, None),
        keepalive=25.0,
        rtt=0.0123,
    )
    tcp = TcpReport(
        nat_type=expected.tcp,
        mapping=expected.mapping,
        filtering=expected.filtering,
        unsolicited=Unsolicited.RST,
        allocation=AllocationReport(expected.allocation, 1, 0.9),
        simultaneous_open=True,
        mapped_address=Address("192.52.193.4", 54322),
    )
    evidence = (
        Evidence(
            "udp.mapping", Outcome.POSITIVE, "A:p, B:p and B:q all saw one address. " * 3, 0.1
        ),
        Evidence("udp.filtering", Outcome.NEGATIVE, "Nothing came.", 0.9, "192.0.2.1:3478"),
        Evidence("martian.test", Outcome.SKIPPED, "Unheard of."),
    )
    return complete(
        Report("", "ipv4", udp, tcp, evidence=evidence, servers=("192.0.2.1:3478",), **more)
    )


HOME = report_of(NAMED_KINDS[6])


@pytest.mark.parametrize("kind", NAMED_KINDS, ids=lambda kind: kind.name)
def test_plain_text_fits_80_columns_and_has_no_escapes(kind: Kind) -> None:
    text = plain(lambda console: render(report_of(kind), console))
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_the_verdict_is_first_then_peers_then_axes_then_evidence() -> None:
    text = plain(lambda console: render(HOME, console), width=200)
    assert text.startswith(HOME.verdict)
    order = [
        text.index(part)
        for part in (HOME.verdict, "To connect with", "What was found, IPv4", "Evidence")
    ]
    assert order == sorted(order)


def test_every_finding_is_shown() -> None:
    text = plain(lambda console: render(HOME, console), width=200)
    for row in (
        "mapping endpoint-independent endpoint-independent",
        "filtering address-and-port-dependent address-and-port-dependent",
        "uninvited SYN - answered with RST",
        "simultaneous open - yes",
        "port allocation preserved (90% predicted) preserved (90% predicted)",
        "hairpinning yes, source external -",
        "external address 192.52.193.4:54321 192.52.193.4:54322",
        "when a peer sends first the mapping stays -",
        "idle lifetime, one packet 28 to 32 s -",
        "idle lifetime, two-way 120 s or more -",
        "keepalive every 25 s -",
        "round trip 12.3 ms -",
        "a symmetric NAT birthday probing birthday probing",
        "no NAT (open) direct direct",
    ):
        assert row in " ".join(text.split()), row


def test_what_was_not_tested_has_no_column() -> None:
    only_udp = complete(Report("", "ipv4", HOME.udp, None))
    text = plain(lambda console: render(only_udp, console))
    assert "TCP" not in text.replace("TCP hole", "")


def test_the_other_family_has_its_own_table() -> None:
    v6 = UdpReport(NatType.OPEN, Mapping.NONE, Filtering.NONE)
    both = report_of(NAMED_KINDS[6], other_family=FamilyReport("ipv6", v6, None))
    text = plain(lambda console: render(both, console))
    assert "What was found, IPv6" in text


def test_the_evidence_can_be_left_to_somebody_else() -> None:
    text = plain(lambda console: render(HOME, console, evidence=False))
    assert "Evidence" not in text
    assert "martian.test" not in text
    assert text.startswith(HOME.verdict[:60])


def test_culprits_stand_below_the_verdict() -> None:
    lying = report_of(NAMED_KINDS[6], culprits=("192.0.2.1:3478 ignores CHANGE-REQUEST.",))
    lines = plain(lambda console: render(lying, console), width=300).splitlines()
    assert lines[1] == "Not to be trusted: 192.0.2.1:3478 ignores CHANGE-REQUEST."


def test_random_ports_claim_no_prediction() -> None:
    path = UdpReport(allocation=AllocationReport(Allocation.RANDOM, None, 0.1))
    text = plain(lambda console: render(Report("v", "ipv4", path, None), console))
    assert "predicted" not in text


def drawn(**options: object) -> str:
    buffer = io.StringIO()
    render(HOME, Console(file=buffer, width=80, force_terminal=True, **options))
    return buffer.getvalue()


def test_a_terminal_gets_colour_but_not_with_no_color() -> None:
    assert "\x1b[32m" in drawn(_environ={"TERM": "xterm-256color"})
    plainer = drawn(_environ={"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert "\x1b[32m" not in plainer
    assert "\x1b[1m" in plainer, "NO_COLOR is about colour; bold stays"


def test_a_narrow_terminal_loses_no_word() -> None:
    wide, narrow = (
        Counter("".join(plain(lambda console: render(HOME, console), width=width).split()))
        for width in (300, 40)
    )
    assert narrow == wide


def test_words_from_elsewhere_cannot_steer_the_terminal_nor_style_the_text() -> None:
    nasty = "[red]x[/red] \x1b[2J\x07\x9b\u202e"
    report = Report(
        nasty,
        "ipv4",
        UdpReport(),
        None,
        culprits=(nasty,),
        evidence=(Evidence(nasty, Outcome.POSITIVE, nasty, 0, nasty),),
        servers=(nasty,),
    )
    for draw in (render, explain):
        text = plain(lambda console, draw=draw: draw(report, console), width=200)
        assert "[red]x[/red] \\x1b[2J\\x07\\x9b\\u202e" in text
        assert not set(text) & set("\x1b\x07\x9b\u202e")


def test_printable_keeps_what_people_write() -> None:
    assert printable("Grüße, 東京\n") == "Grüße, 東京\n"


def test_a_comparison() -> None:
    found = compare(HOME, report_of(NAMED_KINDS[12]))
    text = plain(lambda console: render_comparison(found, console))
    assert text.startswith(found.sentence.split(",", maxsplit=1)[0])
    assert max(map(len, text.splitlines())) <= 80
    assert "TCP" in text


@pytest.mark.parametrize(
    ("mapping", "word"),
    [
        (Mapping.NONE, "no NAT; filter not known"),
        (Mapping.ENDPOINT_INDEPENDENT, "a cone; filter not known"),
        (Mapping.UNKNOWN, "inconclusive"),
    ],
)
def test_what_is_known_without_the_filter_is_said(mapping: Mapping, word: str) -> None:
    report = complete(Report("", "ipv4", UdpReport(mapping=mapping), None))
    text = plain(lambda console: render(report, console))
    (kind,) = (line for line in text.splitlines() if line.startswith("kind"))
    assert kind.endswith(word)
