"""Many allocations with a channel each: how fast they are made, what they need, how they end.

They are made one after another, so the last one ends as long after the first as making them took.
That one has ended is seen from outside: its relayed transport address has no socket any more.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from tools.bench import measures
from tools.bench.lab import FAR
from tools.bench.load import cpu_of, resident
from tools.bench.ways import Relay

SIZE = 160
POLL = 0.1
PATIENCE = 60.0
"""Seconds that a server may be late with the end of allocations."""
STEADY = 3.0
"""Seconds without a change after which no more allocations are expected to end."""
_MEMORY = re.compile(r"^memlock:\s*(\d+)", re.MULTILINE)
_RELAYED = "".join(f"{int(part):02X}" for part in reversed(FAR.split(".")))


def relay_sockets(pid: int) -> int:
    """Return how many UDP sockets a server relays from."""
    # proc(5), /proc/net/udp: "sl local_address rem_address ...", addresses in hexadecimal.
    lines = Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]
    return sum(line.split(None, 2)[1].startswith(_RELAYED) for line in lines)


def kernel_maps(pid: int) -> int:
    """Return the octets of the BPF maps that a process holds, which are not in its resident set."""
    seen: dict[str, int] = {}
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = info.read_text()
        except OSError:  # closed meanwhile
            continue
        if "map_id:" in text and (found := _MEMORY.search(text)):
            seen[text.partition("map_id:")[2].split()[0]] = int(found[1])
    return sum(seen.values())


def hold(way: Relay, count: int, lifetime: int, *, expire: bool) -> dict[str, Any]:
    """Make so many allocations, one after another; wait until all have expired, if asked to."""
    pid = way.pids[0]
    way.grow(1)
    memory, cpu, begin = resident(pid), cpu_of(pid), time.monotonic()
    way.grow(count)
    made = time.monotonic()
    found: dict[str, Any] = {
        "lifetime": lifetime,
        "set_up_seconds": made - begin,
        "set_up_per_second": (count - 1) / (made - begin),
        "set_up_cpu_us": (cpu_of(pid) - cpu) / (count - 1) * 1e6,
        "resident_octets": resident(pid),
        "octets_each": (resident(pid) - memory) / (count - 1),
        "kernel_map_octets": kernel_maps(pid),
        "relay_sockets": relay_sockets(pid),
        "flows_that_passed": measures.passes(way.traffic(count, SIZE, to_peer=True)),
    }
    if not expire:
        return found
    time.sleep(max(0.0, begin + lifetime - 1 - time.monotonic()))
    cpu = cpu_of(pid)
    last = made + lifetime
    left, ended = _last_change(pid, last)
    found |= {
        "expired_seconds_after_the_last": ended - last,
        "expiry_cpu_us": (cpu_of(pid) - cpu) / count * 1e6,
        "relay_sockets_left": left,  # turnd has some open for those who come next
        "resident_octets_after": resident(pid),
        "flows_that_passed_after": measures.passes(way.traffic(count, SIZE, to_peer=True)),
    }
    return found


def _last_change(pid: int, end: float) -> tuple[int, float]:
    """Wait until no more relay sockets are closed; return how many are left, and since when."""
    left, since = relay_sockets(pid), time.monotonic()
    while (now := time.monotonic()) < end + PATIENCE:
        if (seen := relay_sockets(pid)) != left:
            left, since = seen, now
        if now > max(since, end) + STEADY:
            break
        time.sleep(POLL)
    return left, since


def words(found: dict[str, Any]) -> str:
    """Return it as a line."""
    text = (
        f"set up {found['set_up_per_second']:,.0f}/s, {found['set_up_cpu_us']:.0f} us of CPU each; "
        f"resident {found['resident_octets'] / 1e6:.1f} MB ({found['octets_each']:,.0f} each), "
        f"kernel maps {found['kernel_map_octets'] / 1e6:.1f} MB; "
        f"{found['flows_that_passed']:,} pass"
    )
    if "expiry_cpu_us" not in found:
        return text
    return (
        f"{text}; expired {found['expired_seconds_after_the_last']:+.1f} s from the last's end, "
        f"{found['expiry_cpu_us']:.0f} us of CPU each, {found['relay_sockets_left']:,} left, "
        f"{found['flows_that_passed_after']:,} pass"
    )
