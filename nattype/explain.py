"""What each test of natcheck does, why, and where it is written down (``natcheck --explain``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from nattype.render import printable
from nattype.report import Evidence, Report
from nattype.trace import Step, Traced
from stun.sansio import SECOND


@dataclass(frozen=True, slots=True)
class Purpose:
    """Why a test is made and how, and the norm behind it."""

    question: str
    method: str
    norm: str


PURPOSES: dict[str, Purpose] = {
    "server.resolution": Purpose(
        "Does this server have an address, and is there a way to it?",
        "Its name is looked up once, services first, then addresses; the addresses are kept for "
        "all tests.",
        "RFC 8489 section 8; RFC 5780 section 5.1",
    ),
    "udp.contact": Purpose(
        "Does UDP get through to a server and back?",
        "Each server gets a Binding request, repeated with growing pauses until it answers.",
        "RFC 5780 section 4.2; RFC 8489 section 6.2.1",
    ),
    "tcp.contact": Purpose(
        "Does TCP get through to a server and back?",
        "Each server is dialled and gets a Binding request over the connection.",
        "RFC 8489 section 6.2.2",
    ),
    "udp.blocked": Purpose(
        "Is it UDP that does not get through, or is the server dead?",
        "A server that is silent over UDP is asked over TCP; an answer there shows that it lives.",
        "RFC 5780 section 4.2",
    ),
    "tcp.blocked": Purpose(
        "Is it TCP that does not get through, or is the server dead?",
        "A server that is silent over TCP is asked over UDP; an answer there shows that it lives.",
        "RFC 5780 section 4.2",
    ),
    "server.honesty": Purpose(
        "Can this server be believed?",
        "Its OTHER-ADDRESS must differ from its own address in host and port and must not be "
        "private while its own is public; an answer must come from the address that was asked; a "
        "request to answer from elsewhere must not be answered from the same place.",
        "RFC 5780 sections 6.1, 7.2 and 7.4",
    ),
    "udp.alg": Purpose(
        "Does anything on the path rewrite addresses inside packets?",
        "The address in MAPPED-ADDRESS, which stands there as it is, is compared with the one in "
        "XOR-MAPPED-ADDRESS, which a rewriter does not recognise.",
        "RFC 8489 section 14.2; RFC 4787 section 7",
    ),
    "tcp.alg": Purpose(
        "Does anything on the path rewrite addresses inside TCP streams?",
        "As for UDP.",
        "RFC 8489 section 14.2; RFC 5382 section 6",
    ),
    "nat.layers": Purpose(
        "Is there another NAT behind the router?",
        "The router is asked for its external address, which makes no mapping; that address is "
        "compared with the one that servers see.",
        "RFC 6886 section 3.2; RFC 6598 section 1",
    ),
    "udp.mapping": Purpose(
        "Do different peers see this host at the same address and port?",
        "One socket asks the server's first address, its other address, and its other address and "
        "port which external address they see, then the first again. This socket never asks for "
        "an answer from elsewhere, since such an answer can leave state in the NAT.",
        "RFC 5780 section 4.3; RFC 4787 section 4.1",
    ),
    "udp.filtering": Purpose(
        "Who may send to this host's external address?",
        "A fresh socket asks the server to answer from its other address and port; another fresh "
        "one, from its other port only. A control shows that the server's other address works: a "
        "socket that has sent there must get the answer.",
        "RFC 5780 section 4.4; RFC 4787 section 5",
    ),
    "udp.allocation": Purpose(
        "Which external port will the next socket get?",
        "Several fresh sockets show the pattern; the next ports are then predicted, and the "
        "share of right predictions is the confidence.",
        "RFC 4787 section 4.2",
    ),
    "udp.hairpinning": Purpose(
        "Can two hosts behind this NAT meet at their external addresses?",
        "One socket sends to the external address of another socket of this host; the source that "
        "arrives is noted.",
        "RFC 5780 section 3.4; RFC 4787 section 6, REQ-9",
    ),
    "udp.inbound-first": Purpose(
        "Does a peer that sends first cost this host its mapping?",
        "The server is asked to answer from its other address, which knocks at the NAT uninvited; "
        "then the same socket asks that address which external port it sees.",
        "RFC 4787 section 4.1, REQ-1, and section 8, REQ-11",
    ),
    "udp.fragments": Purpose(
        "Do datagrams larger than the path's MTU pass?",
        "A request with PADDING of 1500 octets asks for an answer that is padded too.",
        "RFC 5780 section 3.5; RFC 4787 sections 10 and 11",
    ),
    "udp.pooling": Purpose(
        "Do all sockets of this host show one external address?",
        "The external addresses of all sockets used are compared.",
        "RFC 4787 section 4.1, REQ-2",
    ),
    "udp.stability": Purpose(
        "Does the mapping stay the same while it is used?",
        "The first request is repeated at the end, from the same socket.",
        "RFC 4787 section 4.1",
    ),
    "udp.lifetime": Purpose(
        "How long does an idle mapping survive?",
        "A socket falls silent; after a while another socket asks the server to answer to the "
        "first one's external port. Many sockets wait side by side, each for another time.",
        "RFC 5780 section 4.6; RFC 4787 section 4.3, REQ-5",
    ),
    "tcp.mapping": Purpose(
        "Do different peers see this host's TCP connections at the same address and port?",
        "One local port connects to all four of the server's addresses and ports; all connections "
        "stay open, so that no port is reused.",
        "RFC 5382 section 4.1, REQ-1",
    ),
    "tcp.filtering": Purpose(
        "What does a TCP connection from a stranger meet?",
        "While a connection to the server is open and this host listens on its port, the server "
        "dials the external address from a port, and from an address, that was never contacted.",
        "RFC 5382 section 4.3, REQ-3 and REQ-4",
    ),
    "tcp.simultaneous-open": Purpose(
        "Can two hosts behind such NATs open a TCP connection to each other?",
        "This host dials a port of the server that stays silent; the server then dials back from "
        "that port, and the connection must be established by the two SYNs that cross.",
        "RFC 5382 section 4.2, REQ-2; RFC 9293 section 3.5",
    ),
    "tcp.allocation": Purpose(
        "Which external port will the next TCP connection get?",
        "As for UDP, with fresh connections.",
        "RFC 5382 section 7.1",
    ),
}


def purpose(test: str) -> Purpose | None:
    """Return what a test is for, by its name or by the longest known beginning of its name."""
    parts = test.split(".")
    for end in range(len(parts), 0, -1):
        found = PURPOSES.get(".".join(parts[:end]))
        if found is not None:
            return found
    return None


def explain(report: Report, console: Console, packets: Sequence[Traced] = ()) -> None:
    """Write, for each test that was made, its question, its method, its norm and its outcome.

    Then every packet, one line each; where a packet has a shape that none before had, it is taken
    apart field by field.
    """
    by_test: dict[str, list[Evidence]] = {}
    for item in report.evidence:
        by_test.setdefault(item.test, []).append(item)
    for test, items in by_test.items():
        known = purpose(test)
        title = Text(printable(test), "bold")
        if known is not None:
            title.append(f"  {known.question}", "not bold")
        console.print(title)
        if known is not None:
            console.print(_inset(Text(f"{known.method} ({known.norm})", "dim")))
        for item in items:
            line = Text(f"{item.at:6.2f} s  {item.outcome.value}: {printable(item.detail)}")
            if item.server is not None and item.server not in item.detail:
                line.append(f" [{printable(item.server)}]")
            console.print(_inset(line))
        console.print()
    if packets:
        _packets(packets, console)


# What every message has, or what says the same again.
_UNREMARKABLE = frozenset({"header", "SOFTWARE", "MAPPED-ADDRESS", "FINGERPRINT"})
_VALUE_COLUMNS = 60


def _packets(packets: Sequence[Traced], console: Console) -> None:
    # The construct specification behind it takes a while to load.
    from stun.dissect import explain as dissect

    # What was asked for before anything happened has no time yet.
    began = next((packet.at for packet in packets if packet.at), 0)
    shapes: set[tuple[object, ...]] = set()
    console.print(Text(f"{len(packets)} packets and events of connections", "bold"))
    for packet in packets:
        seconds = max(0, packet.at - began) / SECOND
        head = f"{seconds:8.4f}  {packet.transport} {packet.local}"
        if packet.step not in (Step.SENT, Step.RECEIVED):
            said = f" ({printable(packet.detail)})" if packet.detail else ""
            line = f"{head} {packet.step.value} {packet.remote}{said}"
            console.print(Text(line, "dim"), soft_wrap=True)
            continue
        found = dissect(packet.data)
        told = [
            f"{part.name} {_short(part.value)}".rstrip()
            for part in found.parts
            if part.name not in _UNREMARKABLE
        ]
        line = f"{head} {packet.step.value} {packet.remote}  {'; '.join([found.summary, *told])}"
        style = "cyan" if packet.step is Step.SENT else "green"
        console.print(Text(printable(line), style), soft_wrap=True)
        kind = found.summary.split()[:2]
        shape = (packet.step, *kind, *(part.name for part in found.parts))
        if shape not in shapes:
            shapes.add(shape)
            for line in found.lines()[1:]:
                console.print(
                    Text(f"          {printable(_short(line, 90))}", "dim"), soft_wrap=True
                )


def _short(text: str, columns: int = _VALUE_COLUMNS) -> str:
    """Cut the middle out of what is too long; its end may name a section."""
    if len(text) <= columns:
        return text
    kept = (columns - 5) // 2
    return f"{text[:kept]} ... {text[-kept:]}"


def _inset(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 2))
