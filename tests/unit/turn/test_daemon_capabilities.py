"""Capabilities that are permitted and not in effect, as a container may give them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Runs as a child, so that whatever happens to its capabilities happens to nobody else: it puts one
# of them out of effect, as a file without the effective bit does.
CHILD = """
import ctypes, re, sys
from pathlib import Path
from turn.daemon import capabilities as c

def effective():
    held = re.search(r"CapEff:\\s*(\\S+)", Path("/proc/self/status").read_text())
    return int(held[1], 16) >> c.NET_BIND_SERVICE & 1

header, data = c._Header(c._VERSION_3, 0), (c._Data * 2)()
libc = ctypes.CDLL(None)
assert libc.capget(ctypes.byref(header), data) == 0
data[0].effective &= ~(1 << c.NET_BIND_SERVICE)
if sys.argv[1] == "gone":
    data[0].permitted &= ~(1 << c.NET_BIND_SERVICE)
assert libc.capset(ctypes.byref(header), data) == 0
assert not effective()
print(sorted(c.take_permitted()), effective())
print(sorted(c.take_permitted()), effective())
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="has none to put away")
@pytest.mark.parametrize(
    ("how", "told"), [("permitted", "[10] 1\n[] 1\n"), ("gone", "[] 0\n[] 0\n")]
)
def test_what_is_permitted_is_taken_into_effect_and_nothing_else(how: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.stdout, done.stderr) == (told, "")
