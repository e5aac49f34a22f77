"""turnd in the kernel and with sockets, coturn, and plain forwarding of IP, in one run.

    python -m tools.bench.planes [--full] [--only SECTION,...] [--ways WAY,...] [--rounds 3]
        [--seconds 0.4] [--python PROGRAM] [--write]

Each way has three machines to itself (tools/bench/lab.py), a server has the first core, generator
and sink the last.  All ways take turns in every round; figures are medians over the rounds.

clients      CPU time of the whole machine for each packet relayed, that of generator, sink and one
             cable subtracted, and packets a second: by clients with a channel each, both directions
payload      the same cost by octets of payload
latency      what a way adds to the time a packet needs, at 10, 50 and 90 % of coturn's rate
channels     the cost by channels of few clients
workers      servers with one thread or process, and with two
allocations  10,000 allocations with a channel: set up, held, expired

``--write`` puts everything that was seen into docs/bench-planes.json and draws
docs/bench-planes.svg.  It takes about ten minutes, with ``--full`` about an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from tools.bench import held, load, measures, planes_picture
from tools.bench.measures import Seen
from tools.bench.relay import machine
from tools.bench.servers import Command, coturn_with, turnd
from tools.bench.ways import (
    LIFETIME,
    PROBE_PORT,
    Next,
    Nowhere,
    Passage,
    Way,
    passing,
    relayed_by,
)
from turn.dataplane.kernel.support import why_not

ROOT = Path(__file__).resolve().parents[2]
RATE = 80_000
"""Packets a second at which costs are measured: no way is at its limit."""
SIZES = (160, 1200)
"""Octets of payload: speech and video."""
COUNTS = (1, 10, 100, 1_000, 10_000)
MIDDLE = 100
PAYLOADS = (20, 160, 600, 1200, 1400)
PER_CLIENT = 1_000
"""Channels of an allocation, at most: coturn needs minutes to bind 4,000."""
LOADS = (0.1, 0.5, 0.9)
HELD = 10_000
SHORT = 40
"""Seconds that allocations live whose end is waited for."""
DESCRIPTORS = 1 << 17
SECTIONS = ("clients", "payload", "latency", "channels", "workers", "allocations")

SENDER, DIRECT, FORWARD = "sender alone", "no relay", "IP forwarding"
KERNEL, SOCKETS, COTURN = "turnd, kernel", "turnd, sockets", "coturn"
BASES = (SENDER, DIRECT)
JSON, SVG = ROOT / "docs/bench-planes.json", ROOT / "docs/bench-planes.svg"

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How long and how often, and what."""

    rounds: int = 3
    seconds: float = 0.4
    full: bool = False
    ways: tuple[str, ...] = (FORWARD, KERNEL, SOCKETS, COTURN)
    python: str = sys.executable


def command(name: str, python: str, *, lifetime: int = LIFETIME) -> Command:
    """Return how to start a server that is a way."""
    if name == COTURN:
        return coturn_with(lifetime=max(lifetime, 1))
    plane = "kernel" if name == KERNEL else "sockets"
    return turnd(python, "--dataplane", plane, lifetime=lifetime)


def up(stack: ExitStack, names: Sequence[str], python: str) -> dict[str, Way]:
    """Build the laboratories of these ways."""
    ways: dict[str, Way] = {}
    for name in names:
        kinds = {SENDER: Nowhere, DIRECT: Next, FORWARD: Passage}
        context: AbstractContextManager[Way]
        if name in kinds:
            context = passing(name, kinds[name])
        else:
            context = relayed_by(name, command(name, python), in_user_space=name != KERNEL)
        ways[name] = stack.enter_context(context)
    return ways


# Costs and rates. ---------------------------------------------------------------------------------


def in_turns(
    ways: Mapping[str, Way], rounds: int, measure: Callable[[Way], Seen]
) -> dict[str, list[Seen]]:
    """Measure all ways in every round."""
    found: dict[str, list[Seen]] = {name: [] for name in ways}
    for n in range(rounds):
        # Who is first in a round is last in the next one.
        for name in reversed([*ways]) if n % 2 else [*ways]:
            found[name].append(measure(ways[name]))
    return found


def costs(
    ways: Mapping[str, Way], count: int, size: int, plan: Plan, *, to_peer: bool
) -> dict[str, Record]:
    """Return what each way costs with so many flows, by name."""
    passed = {
        name: measures.passes(way.traffic(count, size, to_peer=to_peer))
        for name, way in ways.items()
        if name != SENDER
    }
    found = in_turns(
        ways,
        plan.rounds,
        lambda way: measures.cost(way.traffic(count, size, to_peer=to_peer), RATE, plan.seconds),
    )
    net = {
        name: [
            (a.microseconds - b.microseconds, a.own_microseconds - b.own_microseconds)
            for a, b in zip(seen, found[DIRECT], strict=True)
        ]
        for name, seen in found.items()
    }
    rows: dict[str, Record] = {}
    for name, seen in found.items():
        rows[name] = {
            "cpu_us": median(machine for machine, _ in net[name]),
            "own_cpu_us": median(own for _, own in net[name]),
            "server_cpu_us": median(one.server / max(one.sent, 1) * 1e6 for one in seen),
            "gross_cpu_us": median(one.microseconds for one in seen),
            "lost": median(one.loss for one in seen),
            "flows": ways[name].traffic(count, size, to_peer=to_peer).flows,
            "flows_that_passed": passed.get(name, 0),
            "rounds": [asdict(one) for one in seen],
        }
        if COTURN in net and name not in BASES:
            pairs = [*zip(net[name], net[COTURN], strict=True)]
            rows[name]["to_coturn"] = median(a[0] / b[0] for a, b in pairs)
            rows[name]["own_to_coturn"] = median(a[1] / b[1] for a, b in pairs)
    return rows


def rates(
    ways: Mapping[str, Way], count: int, size: int, plan: Plan, *, to_peer: bool
) -> dict[str, Record]:
    """Return how much passes on each way, by name."""
    able = {name: way for name, way in ways.items() if name != SENDER}
    found = in_turns(
        able,
        plan.rounds,
        lambda way: measures.rate(way.traffic(count, size, to_peer=to_peer), plan.seconds),
    )
    rows: dict[str, Record] = {}
    for name, seen in found.items():
        rows[name] = {
            "per_second": median(one.rate for one in seen),
            "server_cpu_us": median(one.server / max(one.received, 1) * 1e6 for one in seen),
            "own_cpu_us": median(one.own_microseconds for one in seen),
            "lost": median(one.loss for one in seen),
            "rounds": [asdict(one) for one in seen],
        }
        for other, word in ((FORWARD, "to_forwarding"), (COTURN, "to_coturn")):
            if other in found:
                pairs = zip(seen, found[other], strict=True)
                rows[name][word] = median(a.rate / b.rate for a, b in pairs)
    return rows


def median(values: Iterable[float]) -> float:
    """Return the median of what is iterated over."""
    return float(statistics.median(values))


def row(section: str, *, clients: int, channels: int, size: int, to_peer: bool) -> Record:
    """Return what a row is about."""
    way = "client to peer" if to_peer else "peer to client"
    return {
        "section": section,
        "direction": way,
        "clients": clients,
        "channels": channels,
        "octets": size,
    }


def by_clients(ways: dict[str, Way], plan: Plan, wanted: Sequence[str]) -> Iterator[Record]:
    """Yield rows of the sections ``clients`` and ``payload`` and ``latency``."""
    servers = {name: way for name, way in ways.items() if name != SENDER}
    capacity = 0.0
    for count in COUNTS if "clients" in wanted else (MIDDLE,):
        for way in ways.values():
            way.grow(count)
        main = count in {1, MIDDLE, COUNTS[-1]} or plan.full
        for size in SIZES if main else SIZES[:1]:
            for to_peer in (True, False):
                if "clients" not in wanted and (size, to_peer) != (SIZES[0], True):
                    continue
                if not (main or to_peer):
                    continue
                about = row("clients", clients=count, channels=1, size=size, to_peer=to_peer)
                about["cost"] = costs(servers, count, size, plan, to_peer=to_peer)
                if main:
                    about["rate"] = rates(servers, count, size, plan, to_peer=to_peer)
                    if (count, size, to_peer) == (MIDDLE, SIZES[0], True):
                        capacity = base_rate(about["rate"])
                yield about
        if count == MIDDLE and "payload" in wanted:
            for size in PAYLOADS:
                about = row("payload", clients=count, channels=1, size=size, to_peer=True)
                yield about | {"cost": costs(ways, count, size, plan, to_peer=True)}
        if count == MIDDLE and "latency" in wanted:
            yield from latencies(servers, count, capacity, plan)


def base_rate(found: Mapping[str, Record]) -> float:
    """Return the rate that loads are shares of: coturn's, or else the least."""
    best = found.get(COTURN) or min(found.values(), key=lambda one: one["per_second"])
    return float(best["per_second"])


def by_channels(ways: dict[str, Way], plan: Plan) -> Iterator[Record]:
    """Yield the rows of the section ``channels``."""
    for count in COUNTS:
        for way in ways.values():
            way.grow(count, per_client=PER_CLIENT)
        if count == 10 and not plan.full:
            continue
        clients = -(-count // PER_CLIENT)
        about = row("channels", clients=clients, channels=count, size=SIZES[0], to_peer=True)
        yield about | {"cost": costs(ways, count, SIZES[0], plan, to_peer=True)}


# Latency. -----------------------------------------------------------------------------------------


def latencies(ways: Mapping[str, Way], count: int, capacity: float, plan: Plan) -> Iterator[Record]:
    """Yield the rows of the section ``latency``."""
    for to_peer in (True, False):
        for share in LOADS:
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for n in range(plan.rounds):
                for name, way in ways.items():
                    traffic = way.traffic(count, SIZES[0], to_peer=to_peer)
                    arrivals = way.sink(to_peer=to_peer, port=PROBE_PORT)
                    assert arrivals is not None
                    probes = way.probes(
                        round(plan.seconds * measures.PROBES), SIZES[0], to_peer=to_peer
                    )
                    taken[name] += measures.latency(
                        traffic, probes, arrivals, share * capacity, seed=n
                    )
            about = row("latency", clients=count, channels=1, size=SIZES[0], to_peer=to_peer)
            about |= {"load": share, "packets_a_second": share * capacity}
            sent = plan.rounds * round(plan.seconds * measures.PROBES)
            yield about | {"latency": added(taken, sent)}


def added(taken: Mapping[str, Sequence[float]], sent: int) -> dict[str, Record]:
    """Return percentiles by way, and what they are above those without a relay."""
    rows: dict[str, Record] = {}
    for name, values in taken.items():
        if len(values) < 100:
            rows[name] = {"arrived": len(values), "sent": sent}
            continue
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        rows[name] = {
            "p50_us": cuts[49],
            "p99_us": cuts[98],
            "arrived": len(values),
            "sent": sent,
        }
    base = rows[DIRECT]
    for one in rows.values():
        for what in ("p50", "p99"):
            if f"{what}_us" in one:
                one[f"added_{what}_us"] = one[f"{what}_us"] - base[f"{what}_us"]
    return rows


# The others. --------------------------------------------------------------------------------------


def by_workers(plan: Plan) -> Iterator[Record]:
    """Yield the rows of the section ``workers``."""
    python = plan.python
    both = ",".join(str(core) for core in (measures.SERVER_CORE, measures.LOAD_CORE))
    servers: dict[str, tuple[Command, str]] = {}
    if SOCKETS in plan.ways:
        alone = ("--dataplane", "sockets", "--workers")
        servers[f"{SOCKETS}, 1 worker"] = turnd(python, *alone, "1"), "0"
        servers[f"{SOCKETS}, 2 workers"] = turnd(python, *alone, "2"), both
    if COTURN in plan.ways:
        servers[f"{COTURN}, 1 relay thread"] = coturn_with(), "0"
        servers[f"{COTURN}, 2 relay threads"] = coturn_with("-m", "2"), both
    with ExitStack() as stack:
        ways = up(stack, (DIRECT,), python)
        for name, (start, cores) in servers.items():
            ways[name] = stack.enter_context(relayed_by(name, start, cores=cores))
        for way in ways.values():
            way.grow(MIDDLE)
        for size in SIZES:
            for to_peer in (True, False) if plan.full else (True,):
                about = row("workers", clients=MIDDLE, channels=1, size=size, to_peer=to_peer)
                about["cost"] = costs(ways, MIDDLE, size, plan, to_peer=to_peer)
                about["rate"] = rates(ways, MIDDLE, size, plan, to_peer=to_peer)
                yield about


def by_allocations(plan: Plan) -> Iterator[Record]:
    """Yield the rows of the section ``allocations``."""
    found: dict[str, Record] = {}
    for name in plan.ways:
        if name != FORWARD:
            # coturn's allocations live 600 seconds or more, whatever is asked for.
            lifetime = SHORT if name != COTURN and not plan.full else 600
            start = command(name, plan.python, lifetime=lifetime)
            with relayed_by(name, start, lifetime=lifetime) as way:
                found[name] = held.hold(way, HELD, lifetime, expire=plan.full or lifetime == SHORT)
    yield {"section": "allocations", "allocations": HELD, "held": found}


# Tables. ------------------------------------------------------------------------------------------


def show(record: Record) -> None:
    """Print what was found in one row."""
    if "held" in record:
        print(f"\n{record['allocations']:,} allocations with a channel")
        for name, one in record["held"].items():
            print(f"  {name:16}", held.words(one), flush=True)
        return
    words = f"{record['section']}: {record['direction']}, {record['clients']:,} clients, "
    words += f"{record['channels']:,} channels, {record['octets']} octets"
    if "load" in record:
        words += f", {record['load']:.0%} ({record['packets_a_second']:,.0f}/s)"
    print(f"\n{words}")
    for name in record.get("cost") or record["latency"]:
        cells = f"  {name:28}"
        if cost := record.get("cost", {}).get(name):
            cells += f"{cost['cpu_us']:8.2f} us (processes {cost['own_cpu_us']:5.2f}"
            cells += f", server {cost['server_cpu_us']:5.2f})"
            if name not in BASES:
                cells += f"{cost.get('to_coturn', 1):7.2f}x{cost['lost']:8.2%} lost"
                if cost["flows_that_passed"] != max(record["clients"], record["channels"]):
                    cells += f"  {cost['flows_that_passed']:,} of {cost['flows']:,} flows pass"
            else:
                cells += f"   gross {cost['gross_cpu_us']:.2f}"
        if rate := record.get("rate", {}).get(name):
            cells += f"{rate['per_second']:12,.0f}/s {rate['lost']:7.2%} lost"
            if "to_forwarding" in rate:
                cells += f" {rate['to_forwarding']:6.2f}x forwarding"
        if latency := record.get("latency", {}).get(name):
            cells += f"{latency['arrived']:,} of {latency['sent']:,} arrived"
            if "p50_us" in latency:
                cells += f": p50 {latency['p50_us']:8.1f} us, p99 {latency['p99_us']:8.1f} us"
                cells += f"; added {latency['added_p50_us']:8.1f}, {latency['added_p99_us']:8.1f}"
        print(cells)
    sys.stdout.flush()


def verdict(rows: Sequence[Record]) -> Iterator[str]:
    """Yield what all rows of packets relayed say together, worst and best."""
    wanted: list[tuple[str, str, str, str]] = [
        (KERNEL, "rate", "to_forwarding", "packets a second, to those of plain forwarding"),
        (KERNEL, "cost", "to_coturn", "CPU of the machine for a packet, to coturn's"),
        (KERNEL, "cost", "own_to_coturn", "the same, of the processes involved"),
        (SOCKETS, "rate", "to_coturn", "packets a second, to coturn's"),
        (SOCKETS, "cost", "to_coturn", "CPU of the machine for a packet, to coturn's"),
        (SOCKETS, "cost", "own_to_coturn", "the same, of the processes involved"),
    ]
    for name, what, ratio, words in wanted:
        seen = [row[what][name] for row in rows if name in row.get(what, {})]
        if found := sorted(one[ratio] for one in seen if ratio in one):
            middle = statistics.median(found)
            yield f"{name}: {words}: {found[0]:.2f} to {found[-1]:.2f}, median {middle:.2f}"


def measure(plan: Plan, wanted: Sequence[str]) -> Iterator[Record]:
    """Yield all rows."""
    everything = (*BASES, *plan.ways)
    if {"clients", "payload", "latency"} & {*wanted}:
        with ExitStack() as stack:
            yield from by_clients(up(stack, everything, plan.python), plan, wanted)
    if "channels" in wanted:
        with ExitStack() as stack:
            yield from by_channels(up(stack, everything, plan.python), plan)
    if "workers" in wanted:
        yield from by_workers(plan)
    if "allocations" in wanted:
        yield from by_allocations(plan)


def available(ways: Sequence[str]) -> tuple[str, ...]:
    """Return which of these ways there can be here; say why the others cannot."""
    missing = {}
    if (reason := why_not()) is not None:
        missing[KERNEL] = reason
    if shutil.which("turnserver") is None:
        missing[COTURN] = "turnserver is missing: sudo apt-get install coturn"
    for name in ways:
        if name in missing:
            print(f"without {name}: {missing[name]}")
    return tuple(name for name in ways if name not in missing)


def many_descriptors() -> None:
    """Let servers have several sockets for each of 10,000 clients, where that is allowed."""
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    load.many_descriptors()


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="longer rounds, and more of them")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of a measurement")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--ways", default="", help="of them only those with one of these words")
    parser.add_argument("--python", default=sys.executable, help="the Python that turnd runs on")
    parser.add_argument("--write", action="store_true", help=f"write {JSON.name} and {SVG.name}")
    parser.add_argument("--json", type=Path, help="write everything that was seen to this file")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := {*wanted} - {*SECTIONS}:
        parser.error(f"no section is called {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    words = options.ways.split(",")
    plan = Plan(full=options.full, python=options.python)
    chosen = [way for way in plan.ways if any(word in way for word in words)]
    plan = replace(plan, ways=available(chosen))
    if plan.full:
        plan = replace(plan, rounds=5, seconds=1.0)
    plan = replace(
        plan, rounds=options.rounds or plan.rounds, seconds=options.seconds or plan.seconds
    )
    if os.geteuid() != 0:
        sys.exit("network namespaces and frames of one's own need root: sudo, or run as root")
    many_descriptors()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    report: Record = {
        "machine": machine(options.python),
        # Which Python it is, "machine" says; where it lies concerns nobody else.
        "plan": {"rate": RATE, "descriptors": limit}
        | {name: value for name, value in asdict(plan).items() if name != "python"},
        "rows": [],
    }
    begin = time.monotonic()
    for record in measure(plan, wanted):
        show(record)
        report["rows"].append(record)
    print("", *verdict(report["rows"]), sep="\n")
    print(f"\n{time.monotonic() - begin:,.0f} seconds")
    paths = [path for path in (options.json, JSON if options.write else None) if path]
    for path in paths:
        path.write_text(json.dumps(report, indent=1) + "\n")
    if options.write:
        SVG.write_text(planes_picture.draw(report))


if __name__ == "__main__":
    main()
