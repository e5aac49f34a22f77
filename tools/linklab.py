"""Links behind kernel NATs, and what may befall them: paths that are cut, programs that are killed.

    python tools/linklab.py transfer [--gib 1] [--delay 0.02] [--kind port-restricted-cone]
    python tools/linklab.py throughput [--mib 256] [--rounds 3] [--delay 0.04] [--mbit 400]

``transfer`` sends that much from one side to the other: it begins on the relay, for the way between
the two public addresses is barred; the bar is lifted, and it goes on directly; the NAT of the one
that sends forgets all that it knows; the direct way is cut for some seconds; and it is mended.  It
prints what happened when, by which way how much came, and the longest stall after each change.

``throughput`` measures the direct way beside TLS over a plain TCP socket (asyncio's streams) on the
same network, each several times, by turns.

``tests/lab/test_link_transfer.py`` and ``tests/lab/test_link_kills.py`` use what is here.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tools.linknet import PATIENCE, Net, Relay, connect, network

MIB: Final = 1 << 20
SHARE: Final = 0.8
"""What a link is to have of the throughput of TLS over plain TCP, at least."""
STALL: Final = 3.0
"""Seconds that nothing may be read, at most, whatever happens to the direct way."""


# A transfer, and what befalls it. -----------------------------------------------------------------


@dataclass
class Change:
    """Something that was done to the network, and what came of it."""

    at: float
    what: str
    octets: int
    """That had been read by then."""
    moved: float | None = None
    """Seconds until the sender was on the way that was waited for."""
    stall: float = 0.0
    """The longest time between two reads from then to the next change, in seconds."""


@dataclass
class Story:
    """A transfer: what was done meanwhile, and what the one who reads has seen."""

    octets: int
    began: float = 0.0
    ended: float = 0.0
    sent: str = ""
    received: str = ""
    changes: list[Change] = field(default_factory=list)
    paths: list[tuple[float, str]] = field(default_factory=list)
    """When the sender took which way."""
    progress: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stall(self) -> float:
        """The longest time between two reads that gave octets, in seconds."""
        return max(float(each["gap"]) for each in self.progress)

    @property
    def ways(self) -> list[str]:
        """The ways that the sender took, ``relay`` or ``direct``, each change once."""
        kinds = [path.partition(" ")[0] for _, path in self.paths]
        return [kind for kind, _ in itertools.groupby(kinds)]

    def settle(self) -> None:
        """See which stall belongs to which change."""
        for change, later in itertools.zip_longest(self.changes, self.changes[1:]):
            until = later.at if later else float("inf")
            gaps = [each["gap"] for each in self.progress if change.at < each["at"] <= until]
            change.stall = max(gaps, default=0.0)

    def lines(self) -> Iterator[str]:
        """Tell it, for a person."""
        yield f"{self.octets / MIB:g} MiB in {self.ended - self.began:.1f} s"
        happened: list[tuple[float, str]] = [
            *((each.at, f"-- {each.what} --") for each in self.changes),
            *((at, f"sends on {path}") for at, path in self.paths),
        ]
        step = max(0.25, (self.ended - self.began) / 60)
        before: dict[str, Any] = {"at": self.began, "octets": 0, "by": {}}
        for each in self.progress:
            if each["at"] - before["at"] < step and each is not self.progress[-1]:
                continue
            seconds = max(each["at"] - before["at"], 1e-3)
            rates = [
                f"{way} {(count - before['by'].get(way, 0)) / seconds / 1e6:.1f}"
                for way, count in each["by"].items()
                if count != before["by"].get(way, 0)
            ]
            gap = max(one["gap"] for one in self.progress if before["at"] < one["at"] <= each["at"])
            text = f"{each['octets'] / MIB:7.1f} MiB  MB/s: {', '.join(rates) or 'none':30}"
            happened.append((each["at"], f"{text}  longest pause {gap * 1e3:.0f} ms"))
            before = each
        for at, text in sorted(happened):
            yield f"{at - self.began:7.2f} s  {text}"
        for change in self.changes:
            moved = "" if change.moved is None else f", moved after {change.moved:.2f} s"
            yield f"{change.what}: longest stall {change.stall:.2f} s{moved}"
        equal = "equal" if self.sent == self.received else "DIFFERENT"
        yield f"SHA-256 {equal}: {self.received}; longest stall {self.stall:.2f} s"


def transfer(
    net: Net, url: str, octets: int, *, cut: float = 4.0, patience: float = PATIENCE
) -> Story:
    """Send octets from ``a0`` to ``b0`` while the network changes; see the module's text.

    ``cut``: for how many seconds the direct way is barred.  ``patience``: for how many a change of
    ways is waited for.
    """
    story = Story(octets)
    net.bar()
    net.strict("a")
    pair = connect(net, url)
    a, b = pair.a, pair.b
    b.do("receive")
    a.do("send", octets=octets, seed=octets)
    story.began = time.monotonic()

    def read() -> int:
        return int(next((e["octets"] for e in reversed(b.told) if "octets" in e), 0))

    def has_read(share: float) -> None:
        b.until(f"{share:.0%} of it", lambda: read() >= share * octets, 600)

    def change(what: str, action: Callable[[], None], kind: str = "") -> None:
        told = len(a.told)
        done = Change(time.monotonic(), what, read())
        story.changes.append(done)
        action()
        if kind:
            moved = a.expect(patience, since=told, event="PathChanged", kind=kind)
            done.moved = moved["at"] - done.at

    has_read(1 / 16)
    change("the direct way is there", net.lift, "direct")
    a.expect(patience, event="PathChanged", transport="tcp", kind="direct")
    has_read(1 / 4)
    change("the NAT of a has forgotten everything", lambda: net.flush("a"), "direct")
    a.until("tcp", lambda: pair.path(a) == "direct tcp", patience)
    has_read(7 / 16)
    change("the direct way is cut", net.bar, "relay")
    time.sleep(max(0.0, story.changes[-1].at + cut - time.monotonic()))
    change("the direct way is mended", net.lift, "direct")
    received = b.expect(600, told="received")
    story.sent = a.expect(told="sent")["sha256"]
    story.received = received["sha256"]
    story.ended = received["at"]
    story.progress = [*b.all(told="progress"), received]
    story.paths = [
        (each["at"], "relay" if each["kind"] == "relay" else f"direct {each['transport']}")
        for each in a.all(event="PathChanged")
    ]
    story.settle()
    for end in (a, b):
        end.do("close")
    for end in (a, b):
        end.expect(told="closed")
    return story


# How fast. ----------------------------------------------------------------------------------------


@dataclass
class Speeds:
    """What was measured by turns, octets a second."""

    link: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The link's median as a share of the plain socket's."""
        return statistics.median(self.link) / statistics.median(self.plain)

    def lines(self) -> Iterator[str]:
        """Tell them, for a person."""
        for name, rates in (("link", self.link), ("TLS over TCP", self.plain)):
            each = ", ".join(f"{rate / 1e6:.1f}" for rate in rates)
            yield f"{name:12} {statistics.median(rates) / 1e6:7.1f} MB/s  ({each})"
        yield f"ratio        {self.ratio:7.2f}"


def measure(net: Net, url: str, octets: int, rounds: int) -> Speeds:
    """Measure a link from ``a0`` to ``b0``, whose host is public, beside TLS over plain TCP."""
    pair = connect(net, url, udp=False)
    a, b = pair.a, pair.b
    a.until("direct", lambda: pair.path(a) == "direct tcp")
    b.until("direct", lambda: pair.path(b) == "direct tcp")
    host = net.lab["b0"].ipv4
    b.do("serve", host=host, port=4433)
    b.expect(told="serving")
    a.do("dial", host=host, port=4433)
    a.expect(told="dialled")
    speeds = Speeds()
    for each in range(-1, rounds):
        for over, rates in (("link", speeds.link), ("plain", speeds.plain)):
            told = len(b.told)
            size = octets if each >= 0 else octets // 8  # the first one warms both up
            b.do("take", octets=size, over=over)
            a.do("pour", octets=size, over=over)
            rate = b.expect(600, since=told, told="took")["rate"]
            if each >= 0:
                rates.append(rate)
    return speeds


# Commands. ----------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("transfer", "throughput"):
        command = commands.add_parser(name)
        command.add_argument("--delay", type=float, default=0.0, help="one way, each side, seconds")
        command.add_argument("--mbit", type=float, default=0.0, help="what a site can receive")
        if name == "transfer":
            command.add_argument("--gib", type=float, default=1.0)
            command.add_argument("--kind", default="port-restricted-cone", help="of either NAT")
        else:
            command.add_argument("--mib", type=int, default=256)
            command.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()
    print(f"{os.cpu_count()} processors; load before: {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}")
    is_transfer = options.command == "transfer"
    kinds = (options.kind, options.kind) if is_transfer else ("port-restricted-cone", "open")
    with network(*kinds, delay=options.delay) as net:
        if options.mbit:
            net.limit(options.mbit)
        relay = Relay(net)
        told: Story | Speeds
        if is_transfer:
            told = transfer(net, relay.url, int(options.gib * 1024 * MIB))
            well = told.sent == told.received and told.stall < STALL
        else:
            told = measure(net, relay.url, options.mib * MIB, options.rounds)
            well = told.ratio >= SHARE
    print(*told.lines(), sep="\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
