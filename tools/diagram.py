"""Draws docs/demo-network.svg: what `make demo` builds on this machine.

The kinds and what natcheck must say of them come from the model, so that the picture cannot
disagree with the program.  The SVG follows the reader's light or dark setting by itself.

    python tools/diagram.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nattype.model import Filtering, Kind, Mapping, NatModel, kind  # noqa: E402

WIDTH, HEIGHT = 1080, 590
MARGIN = 30
COLUMNS = ("open", "firewall", "full-cone", "port-restricted-cone", "symmetric", "cgnat")

# One colour a role, for light and for dark.
PALETTE = {
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9198a1"),
    "line": ("#818b98", "#656c76"),
    "net": ("#ddf4ff", "#10263d"),
    "netline": ("#0969da", "#4493f8"),
    "server": ("#dafbe1", "#12291b"),
    "serverline": ("#1a7f37", "#3fb950"),
    "nat": ("#fff4d6", "#2d2410"),
    "natline": ("#9a6700", "#d29922"),
    "host": ("#f3eefc", "#221a33"),
    "hostline": ("#8250df", "#ab7df8"),
}

MAPPING = {
    Mapping.NONE: "no translation",
    Mapping.ENDPOINT_INDEPENDENT: "one port for all",
    Mapping.ADDRESS_DEPENDENT: "a port per address",
    Mapping.ADDRESS_AND_PORT_DEPENDENT: "a port per peer",
}
FILTERING = {
    Filtering.NONE: "anybody gets in",
    Filtering.ENDPOINT_INDEPENDENT: "anybody gets in",
    Filtering.ADDRESS_DEPENDENT: "known hosts get in",
    Filtering.ADDRESS_AND_PORT_DEPENDENT: "only answers get in",
}


# What is painted in which colour: (selector, property, role).
PAINT = (
    ("text", "fill", "ink"),
    (".small", "fill", "soft"),
    (".paper", "fill", "paper"),
    (".wire", "stroke", "line"),
    *((f".{role}", "fill", role) for role in ("net", "server", "nat", "host")),
    *((f".{role}", "stroke", f"{role}line") for role in ("net", "server", "nat", "host")),
    (".says", "fill", "hostline"),
)


def style() -> str:
    """Return the style sheet: the light colours, then the dark ones for readers who prefer them.

    The colours are written out, because CSS variables are not known to every SVG renderer.
    """
    light, dark = (
        "".join(f"{selector}{{{what}:{PALETTE[role][n]}}}" for selector, what, role in PAINT)
        for n in (0, 1)
    )
    rules = [
        "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;"
        "font-size:13px;text-anchor:middle}",
        ".title{font-size:17px;font-weight:600}",
        ".name{font-size:14px;font-weight:600}",
        ".small{font-size:11.5px}",
        ".mono{font-family:ui-monospace,'SF Mono',Menlo,'DejaVu Sans Mono',monospace;"
        "font-size:11.5px}",
        ".start{text-anchor:start}",
        ".wire{stroke-width:2;fill:none}",
        ".net,.server,.nat,.host{stroke-width:1.6}",
        ".says{font-size:12.5px;font-weight:600}",
        ".firewall{stroke-dasharray:6 4}",
        light,
        f"@media (prefers-color-scheme:dark){{{dark}}}",
    ]
    return "\n".join(rules)


def text(x: float, y: float, words: str, role: str = "") -> str:
    """Return a line of text, centred at ``x`` unless its role says otherwise."""
    return f'<text x="{x:g}" y="{y:g}" class="{role}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, role: str) -> str:
    """Return a rounded box whose upper left corner is (x, y)."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="9" class="{role}"/>'
    )


def wire(x: float, top: float, bottom: float) -> str:
    """Return an upright cable."""
    return f'<path d="M{x:g} {top:g}V{bottom:g}" class="wire"/>'


def server() -> list[str]:
    """Return the STUN server with its two addresses, each of two ports."""
    left, top, width = 300, 58, 480
    parts = [
        *(wire(x, 150, 186) for x in (left + 120, left + width - 120)),
        box(left, top, width, 92, "server"),
        text(left + width / 2, top + 24, "STUN server: natcheck serve", "name"),
    ]
    for x, name, host in (
        (left + 18, "A", "192.31.196.10"),
        (left + width / 2 + 9, "B", "192.175.48.10"),
    ):
        parts += [
            f'<rect x="{x:g}" y="{top + 38}" width="204" height="40" rx="6" class="paper" '
            'style="stroke:var(--serverline)"/>',
            text(x + 102, top + 55, f"{name}: {host}", "mono"),
            text(x + 102, top + 71, "ports 3478, 3479 over UDP, TCP", "small"),
        ]
    return parts


def nat(x: float, y: float, width: float, model: NatModel, name: str) -> list[str]:
    """Return one box on the path, with what it does to packets out and in."""
    firewall = model.mapping is Mapping.NONE
    return [
        box(x - width / 2, y, width, 74, "nat firewall" if firewall else "nat"),
        text(x, y + 22, name, "name"),
        text(x, y + 43, MAPPING[model.mapping], "small"),
        text(x, y + 61, FILTERING[model.filtering], "small"),
    ]


def column(x: float, width: float, which: Kind) -> list[str]:
    """Return a host and what stands between it and the public network."""
    top, bottom, host = 226, 470, 66
    parts = [wire(x, top, bottom)]
    if len(which.boxes) == 1:
        model = which.boxes[0]
        name = "firewall" if model.mapping is Mapping.NONE else "NAT"
        parts += nat(x, 306, width, model, name)
    elif len(which.boxes) == 2:
        home, carrier = which.boxes
        parts += nat(x, 262, width, carrier, "carrier's NAT")
        parts += nat(x, 368, width, home, "home NAT")
        parts.append(text(x + 6, 357, "100.64.0.0/10", "small start"))
    public = all(model.mapping is Mapping.NONE for model in which.boxes)
    address = "192.52.193.x" if public else "192.168.1.10"
    parts += [
        box(x - width / 2, bottom, width, host, "host"),
        text(x, bottom + 25, "natcheck", "name"),
        text(x, bottom + 47, address, "mono"),
        text(x, bottom + host + 22, str(which.expected.udp), "says"),
    ]
    return parts


def draw() -> str:
    """Return the whole picture."""
    step = (WIDTH - 2 * MARGIN) / len(COLUMNS)
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" class="paper"/>',
        text(WIDTH / 2, 36, "One machine, real NATs: a network namespace for every box", "title"),
        *server(),
        box(MARGIN, 186, WIDTH - 2 * MARGIN, 40, "net"),
        text(WIDTH / 2, 211, "public network: 192.52.193.0/24 and 2620:4f:8000:1::/64", "mono"),
    ]
    for n, name in enumerate(COLUMNS):
        parts += column(MARGIN + step * (n + 0.5), step - 22, kind(name))
    parts.append(text(WIDTH / 2, HEIGHT - 12, "what natcheck has to find behind each", "small"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="what">\n'
        '<title id="what">The network that make demo builds: hosts behind six kinds of NAT, '
        "a public network, and a STUN server with two addresses</title>\n"
        f"<style>\n{style()}\n</style>\n{body}\n</svg>\n"
    )


def main() -> None:
    """Write the picture."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "demo-network.svg"
    path.parent.mkdir(exist_ok=True)
    path.write_text(draw())
    print(path)


if __name__ == "__main__":
    main()
