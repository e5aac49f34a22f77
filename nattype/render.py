"""A report as a person sees it: the verdict, whom you can reach, what was found, the evidence.

Rendering is pure: it writes to the ``rich`` console that it is given and looks at nothing else.  On
a terminal that console adds colour; :func:`plain` gives the same words for a pipe or a file.
Colour never carries meaning of its own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nattype.model import Allocation, Filtering, Hairpin, Mapping, NatType, Unsolicited
from nattype.peers import Comparison
from nattype.report import (
    AllocationReport,
    LifetimeReport,
    Outcome,
    Reach,
    Report,
    TcpReport,
    UdpReport,
)
from nattype.verdict import FAMILY_NAMES, advice

REACH_STYLE: dict[Reach, str] = {
    Reach.DIRECT: "green",
    Reach.PREDICTION: "cyan",
    Reach.BIRTHDAY: "yellow",
    Reach.RELAY: "magenta",
    Reach.NONE: "red",
    Reach.UNKNOWN: "dim",
}
_OUTCOME_STYLE: dict[Outcome, str] = {
    Outcome.POSITIVE: "green",
    Outcome.NEGATIVE: "blue",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.SERVER_FAULT: "red",
    Outcome.SKIPPED: "dim",
}
_HAIRPIN: dict[Hairpin, str] = {
    Hairpin.EXTERNAL: "yes, source external",
    Hairpin.INTERNAL: "yes, but source internal",
    Hairpin.NONE: "no",
}
_UNSOLICITED: dict[Unsolicited, str] = {
    Unsolicited.OPEN: "let in",
    Unsolicited.DROP: "dropped",
    Unsolicited.RST: "answered with RST",
    Unsolicited.ICMP: "answered with ICMP",
}
_NOT_KNOWN = "-"
_NOTHING = (Reach.UNKNOWN, Reach.UNKNOWN)

# A label and what UDP and TCP say to it; None where the question does not arise.
_Row = tuple[str, str | None, str | None]


def printable(text: str) -> str:
    """Return ``text`` with everything that could steer a terminal shown as an escape.

    A server's words end up in reports, and a report may come from somebody else.
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def render(report: Report, console: Console, *, evidence: bool = True) -> None:
    """Write the report to ``console``: all of it, or all but the evidence."""
    style = "bold green" if report.conclusive else "bold yellow"
    console.print(Text(printable(report.verdict), style))
    for culprit in report.culprits:
        console.print(Text(f"Not to be trusted: {printable(culprit)}", "red"))
    if any((peer.udp, peer.tcp) != _NOTHING for peer in report.peers.values()):
        console.print()
        console.print(_peers(report))
    todo = advice(report)
    if todo:
        console.print()
        console.print(Text("What to do", "bold"))
    for line in todo:
        console.print(_item(line))
    console.print()
    console.print(_findings(FAMILY_NAMES[report.family], report.udp, report.tcp, report))
    if report.other_family is not None:
        other = report.other_family
        console.print()
        console.print(_findings(FAMILY_NAMES[other.family], other.udp, other.tcp, None))
    if evidence and report.evidence:
        console.print()
        console.print(_evidence(report))
    asked = ", ".join(map(printable, report.servers)) or "no server"
    console.print()
    console.print(Text(f"Asked {asked}; took {report.seconds:.1f} s.", "dim"))


def render_comparison(comparison: Comparison, console: Console) -> None:
    """Write the answer of ``natcheck compare`` to ``console``."""
    console.print(Text(comparison.sentence, f"bold {REACH_STYLE[comparison.best]}"))
    console.print()
    table = _table("", "how", "over")
    for name, how, family in (
        ("UDP", comparison.udp, comparison.udp_family),
        ("TCP", comparison.tcp, comparison.tcp_family),
    ):
        over = FAMILY_NAMES[family] if family is not None else _NOT_KNOWN
        table.add_row(Text(name), _reach(how), Text(over))
    console.print(table)
    if comparison.reasons:
        console.print()
    for reason in comparison.reasons:
        console.print(_item(printable(reason)))


def _item(text: str) -> Table:
    # A hanging indent, so that wrapped lines stay readable as one item.
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(Text("-"), Text(text))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _reach(how: Reach) -> Text:
    return Text(how.value, REACH_STYLE[how])


def _peers(report: Report) -> Table:
    table = _table(
        "To connect with a peer behind",
        *(name for name, path in (("UDP", report.udp), ("TCP", report.tcp)) if path is not None),
    )
    for kind, peer in report.peers.items():
        name = "no NAT (open)" if kind == "open" else f"a {kind} NAT"
        ways = [
            _reach(way)
            for way, path in ((peer.udp, report.udp), (peer.tcp, report.tcp))
            if path is not None
        ]
        table.add_row(Text(name), *ways)
    return table


def _findings(
    family: str, udp: UdpReport | None, tcp: TcpReport | None, report: Report | None
) -> Table:
    shown = [n for n, path in enumerate((udp, tcp), start=1) if path is not None]
    table = _table(f"What was found, {family}", *(("", "UDP", "TCP")[n] for n in shown))
    for row in _rows(udp, tcp):
        cells = [row[n] for n in shown]
        if any(cell is not None for cell in cells):
            table.add_row(Text(row[0]), *(_cell(cell) for cell in cells))
    if report is not None and report.layers is not None and report.layers > 1:
        table.add_row(Text("layers of NAT"), Text(f"{report.layers} or more", "bold"))
    return table


def _cell(text: str | None) -> Text:
    return Text(_NOT_KNOWN, "dim") if text is None else Text(printable(text))


def _rows(udp: UdpReport | None, tcp: TcpReport | None) -> Iterable[_Row]:
    """Every finding, in the order in which it matters to whoever wants to connect."""
    u, t = udp or UdpReport(), tcp or TcpReport()
    yield "kind", _kind(u), _kind(t)
    yield "mapping", _mapping(u), _axis(t.mapping)
    yield "filtering", _axis(u.filtering), _axis(t.filtering)
    yield "uninvited SYN", None, _UNSOLICITED.get(t.unsolicited)
    yield "simultaneous open", None, _yes_no(t.simultaneous_open)
    yield "port allocation", _allocation(u.allocation), _allocation(t.allocation)
    yield "hairpinning", _HAIRPIN.get(u.hairpinning), None
    yield "external address", _address(u.mapped_address), _address(t.mapped_address)
    yield "local address", _address(u.local_address), _address(t.local_address)
    yield "one external address", _yes_no(u.address_pooling_paired), None
    yield "mapping stays", _yes_no(u.mapping_stable), None
    yield (
        "when a peer sends first",
        {None: None, True: "the mapping is lost", False: "the mapping stays"}[
            u.remaps_after_inbound
        ],
        None,
    )
    yield "fragments pass", _yes_no(u.fragments), None
    yield "idle lifetime, one packet", _lifetime(u.lifetime_one_shot), None
    yield "idle lifetime, two-way", _lifetime(u.lifetime_stream), None
    yield "keepalive", None if u.keepalive is None else f"every {u.keepalive:g} s", None
    yield "round trip", _milliseconds(u.rtt), _milliseconds(t.rtt)


def _kind(path: UdpReport | TcpReport) -> str:
    match path.nat_type, path.mapping:
        case ((NatType.UDP_BLOCKED | NatType.TCP_BLOCKED), _):
            return "blocked"
        case NatType.INCONCLUSIVE, Mapping.NONE:
            return "no NAT; filter not known"
        case NatType.INCONCLUSIVE, Mapping.ENDPOINT_INDEPENDENT:
            return "a cone; filter not known"
        case kind, _:
            return kind.value


def _axis(value: Mapping | Filtering) -> str | None:
    return None if value in (Mapping.UNKNOWN, Filtering.UNKNOWN) else value.value


def _mapping(udp: UdpReport) -> str | None:
    if udp.mapping_depends_on_port_only:
        return "port-dependent (not on the address)"
    return _axis(udp.mapping)


def _allocation(allocation: AllocationReport) -> str | None:
    if allocation.pattern is Allocation.UNKNOWN:
        return None
    text = allocation.pattern.value
    if allocation.pattern is Allocation.SEQUENTIAL and allocation.delta is not None:
        text += f", step {allocation.delta}"
    if allocation.pattern is not Allocation.RANDOM and allocation.confidence:
        text += f" ({allocation.confidence:.0%} predicted)"
    return text


def _yes_no(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _address(value: tuple[str, int] | None) -> str | None:
    return None if value is None else str(value)


def _lifetime(value: LifetimeReport | None) -> str | None:
    if value is None:
        return None
    match value.alive, value.dead:
        case None, None:
            return None
        case alive, None:
            return f"{alive:g} s or more"
        case None, dead:
            return f"less than {dead:g} s"
        case alive, dead:
            return f"{alive:g} to {dead:g} s"


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds * 1000:.1f} ms"


def _evidence(report: Report) -> Table:
    table = _table("Evidence", "outcome", "detail")
    table.columns[0].no_wrap = True
    table.columns[1].no_wrap = True
    for item in report.evidence:
        table.add_row(
            Text(printable(item.test)),
            Text(item.outcome.value, _OUTCOME_STYLE[item.outcome]),
            Text(printable(item.detail)),
        )
    return table


def plain(draw: Callable[[Console], None], width: int = 80) -> str:
    """Return what ``draw`` writes to a console as plain text: no escapes, no trailing blanks."""
    buffer = io.StringIO()
    draw(Console(file=buffer, width=width, color_system=None, force_terminal=False))
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())
