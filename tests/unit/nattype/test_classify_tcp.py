"""The judge of TCP, on observations written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nattype.classify import classify
from nattype.classify_tcp import judge_tcp
from nattype.findings import Findings
from nattype.model import Filtering, Mapping, NatType, Unsolicited
from nattype.observations import (
    Asked,
    BackKind,
    ConnectedBack,
    Contact,
    Dialled,
    Observations,
    TcpObservations,
    UdpObservations,
)
from nattype.report import Outcome, TcpReport, UdpReport
from stun.sansio import SECOND, Address, Cause

A, B = Address("192.31.196.10", 3478), Address("192.175.48.10", 3479)
AQ, BP = Address(A.host, B.port), Address(B.host, A.port)
LOCAL = Address("192.168.1.2", 50000)
OUTSIDE = "192.52.193.2"


def asked(server: Address, port: int) -> Asked:
    mapped = Address(OUTSIDE, port)
    return Asked(LOCAL, server, expected=server, sends=1, source=server, mapped=mapped, other=B)


def back(kind: BackKind, server: Address = A, **counts: object) -> ConnectedBack:
    base = ConnectedBack(kind, LOCAL, server, granted=8, reported=True)
    return replace(base, **counts)  # type: ignore[arg-type]


def opened(server: Address, *, done: bool = True) -> ConnectedBack:
    remote = Address(server.host, 4444)
    cause = None if done else Cause.TIMED_OUT
    return back(
        BackKind.SIMULTANEOUS,
        server,
        granted=1,
        established=int(done),
        timed_out=int(not done),
        dialled=Dialled(LOCAL, remote, done, cause),
    )


SILENT = {"timed_out": 8}
REFUSED = {"refused": 8}
ICMP = {"unreachable": 8}
FROM_B = {"established": 8, "accepted_from": (Address(B.host, 9999),)}
FROM_A = {"established": 8, "accepted_from": (Address(A.host, 9999),)}
STRANGER, NEIGHBOUR = BackKind.OTHER_ADDRESS, BackKind.SAME_ADDRESS
OPENS = (opened(A), opened(BP))


def judged(
    *backs: ConnectedBack,
    ports: tuple[int, ...] = (1, 1, 1, 1),
    udp: UdpReport | None = None,
    findings: Findings | None = None,
) -> TcpReport:
    mapping = tuple(asked(s, p) for s, p in zip((A, BP, B, AQ), ports, strict=False))
    seen = TcpObservations(
        LOCAL.host,
        contacts=(Contact(A, "a", asked(A, 1)),),
        mapping=(mapping[:1], mapping),
        back=backs,
    )
    whole = Observations("ipv4", None, seen, primary=A, alternate=B)
    return judge_tcp(seen, whole, udp, findings or Findings())


@pytest.mark.parametrize(
    ("stranger", "neighbour", "filtering", "unsolicited"),
    [
        (FROM_B, SILENT, Filtering.ENDPOINT_INDEPENDENT, Unsolicited.OPEN),
        (SILENT, FROM_A, Filtering.ADDRESS_DEPENDENT, Unsolicited.DROP),
        (REFUSED, FROM_A, Filtering.ADDRESS_DEPENDENT, Unsolicited.RST),
        (SILENT, SILENT, Filtering.ADDRESS_AND_PORT_DEPENDENT, Unsolicited.DROP),
        (REFUSED, REFUSED, Filtering.ADDRESS_AND_PORT_DEPENDENT, Unsolicited.RST),
        (ICMP, ICMP, Filtering.ADDRESS_AND_PORT_DEPENDENT, Unsolicited.ICMP),
        # A few were lost on their way.
        ({"refused": 1, "timed_out": 7}, REFUSED, Filtering.ADDRESS_AND_PORT_DEPENDENT,
         Unsolicited.RST),
    ],
)  # fmt: skip
def test_filtering(
    stranger: dict[str, object],
    neighbour: dict[str, object],
    filtering: Filtering,
    unsolicited: Unsolicited,
) -> None:
    found = judged(back(STRANGER, **stranger), back(NEIGHBOUR, **neighbour), *OPENS)
    assert found.filtering is filtering
    assert found.unsolicited is unsolicited


def test_an_answered_knock_needs_no_simultaneous_open() -> None:
    found = judged(back(STRANGER, **REFUSED), back(NEIGHBOUR, **REFUSED))
    assert found.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT
    assert found.simultaneous_open is None


@pytest.mark.parametrize("opens", [(), (opened(A),), (opened(BP),), (opened(A, done=False),)])
def test_silence_without_control_says_nothing(opens: tuple[ConnectedBack, ...]) -> None:
    found = judged(back(STRANGER, **SILENT), back(NEIGHBOUR, **SILENT), *opens)
    assert found.filtering is Filtering.UNKNOWN
    assert found.unsolicited is Unsolicited.UNKNOWN
    assert found.nat_type is NatType.INCONCLUSIVE


def test_silence_of_the_second_address_needs_its_own_control() -> None:
    found = judged(back(STRANGER, **SILENT), back(NEIGHBOUR, **FROM_A), opened(A))
    assert found.filtering is Filtering.UNKNOWN


@pytest.mark.parametrize("agrees", [True, False])
def test_where_no_control_is_possible_udp_must_agree(agrees: bool) -> None:
    apdf, eif = Filtering.ADDRESS_AND_PORT_DEPENDENT, Filtering.ENDPOINT_INDEPENDENT
    found = judged(
        back(STRANGER, **SILENT),
        back(NEIGHBOUR, **SILENT),
        ports=(1, 2, 3, 4),
        udp=UdpReport(filtering=apdf if agrees else eif),
    )
    assert found.filtering is (apdf if agrees else Filtering.UNKNOWN)
    assert found.nat_type is NatType.SYMMETRIC


@pytest.mark.parametrize(
    "odd",
    [
        # Something answered for this host, or the server is wrong: nobody connected here.
        {"established": 8},
        {"established": 1, "timed_out": 7},
        {"other": 8},
        {"reported": False},
    ],
)
def test_what_is_not_clear_stays_unknown(odd: dict[str, object]) -> None:
    found = judged(back(STRANGER, **odd), back(NEIGHBOUR, **SILENT), *OPENS)
    assert found.filtering is Filtering.UNKNOWN


def test_a_server_that_dials_from_the_wrong_address_proves_nothing_about_strangers() -> None:
    found = judged(back(STRANGER, **FROM_A), back(NEIGHBOUR, **FROM_A), *OPENS)
    assert found.filtering is Filtering.UNKNOWN


def test_a_server_that_cannot_help() -> None:
    cannot = replace(back(STRANGER), granted=0, reported=False)
    findings = Findings()
    found = judged(cannot, replace(cannot, kind=NEIGHBOUR), findings=findings)
    assert found.filtering is Filtering.UNKNOWN
    assert found.mapping is Mapping.ENDPOINT_INDEPENDENT
    assert [e.outcome for e in findings.evidence if e.test == "tcp.filtering"] == [Outcome.SKIPPED]


def test_a_server_that_will_not_help_now_may_help_another_time() -> None:
    refused = replace(back(STRANGER), granted=0, reported=False, error=486)
    findings = Findings()
    judged(refused, findings=findings)
    (said,) = (e for e in findings.evidence if e.test == "tcp.filtering")
    assert said.outcome is Outcome.INCONCLUSIVE
    assert "error 486" in said.detail


@pytest.mark.parametrize(
    ("backs", "ports", "result"),
    [
        ((opened(A),), (1, 1, 1, 1), True),
        ((opened(A, done=False), opened(A)), (1, 1, 1, 1), True),
        ((opened(A, done=False),) * 3, (1, 1, 1, 1), False),
        ((opened(A, done=False),) * 2, (1, 1, 1, 1), None),
        ((opened(A, done=False),) * 6, (1, 2, 3, 4), None),
        ((), (1, 1, 1, 1), None),
    ],
)
def test_simultaneous_open(
    backs: tuple[ConnectedBack, ...], ports: tuple[int, ...], result: bool | None
) -> None:
    assert judged(*backs, ports=ports).simultaneous_open is result


def test_a_connection_that_only_one_side_saw_is_no_simultaneous_open() -> None:
    # A listener that is not silent would accept this host's SYN alone.
    one_sided = replace(opened(A), established=0, timed_out=1)
    assert judged(one_sided).simultaneous_open is None


def silent_to(*hosts: str, cause: Cause = Cause.TIMED_OUT) -> tuple[Dialled, ...]:
    return tuple(Dialled(LOCAL, Address(host, 3478), False, cause) for host in hosts)


@pytest.mark.parametrize(
    ("dialled", "alive", "kind"),
    [
        (silent_to(A.host, B.host), (A, BP), NatType.TCP_BLOCKED),
        (silent_to(A.host, B.host, cause=Cause.UNREACHABLE), (A, BP), NatType.TCP_BLOCKED),
        (silent_to(A.host), (A, BP), NatType.INCONCLUSIVE),
        (silent_to(A.host, B.host), (A,), NatType.INCONCLUSIVE),
        (silent_to(A.host, B.host), (), NatType.INCONCLUSIVE),
        (silent_to(A.host, B.host, cause=Cause.REFUSED), (A, BP), NatType.INCONCLUSIVE),
        ((*silent_to(A.host), Dialled(LOCAL, BP, True)), (A, BP), NatType.INCONCLUSIVE),
    ],
)
def test_blocked(dialled: tuple[Dialled, ...], alive: tuple[Address, ...], kind: NatType) -> None:
    seen = TcpObservations(
        LOCAL.host, contacts=(Contact(A, "a"),), dialled=dialled, udp_alive=alive
    )
    found = classify(Observations("ipv4", None, seen, primary=A, alternate=B))
    assert found.tcp is not None
    assert found.tcp.nat_type is kind
    assert found.evidence[-1].test == "tcp.blocked"


@pytest.mark.parametrize("dialled", [(), (Dialled(LOCAL, A, True),), silent_to(A.host, B.host)])
def test_a_diagnosis_cut_short_blames_nobody(dialled: tuple[Dialled, ...]) -> None:
    seen = TcpObservations(LOCAL.host, dialled=dialled, udp_alive=(A, BP), complete=False)
    udp = UdpObservations(LOCAL.host, tcp_alive=True, complete=False)
    found = classify(Observations("ipv4", udp, seen, primary=A, alternate=B, took=SECOND))
    assert found.udp == UdpReport()
    assert found.tcp == TcpReport()
    assert found.culprits == ()
    assert [e.outcome for e in found.evidence] == [Outcome.INCONCLUSIVE] * 2
    assert all("the time allowed was up" in e.detail and e.at == 1.0 for e in found.evidence)
