"""Addresses of every state on a real kernel: which of them candidates are gathered on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nattype.lab import Lab, Machine

ROOT = Path(__file__).parents[2]
SETUP = """
set -e
ip link add near type veth peer name far
echo 2 > /proc/sys/net/ipv6/conf/near/use_tempaddr
echo 0 > /proc/sys/net/ipv6/conf/near/accept_dad
ip link set far up
ip link set near up
ip addr add 2001:db8:1::1/64 dev near valid_lft 3600 preferred_lft 1800 mngtmpaddr
ip addr add 2001:db8:2::1/64 dev near valid_lft 3600 preferred_lft 0
ip addr add 2001:db8:3::1/64 dev near
ip addr add 198.51.100.1/24 dev near
ip link add idle type veth peer name idler
ip addr add 198.51.100.129/25 dev idle
ip link set idle up
"""
PROGRAM = """
import json, select, subprocess
from ice.config import Config
from ice.interfaces import local_addresses, local_interfaces
from ice.netlink import Changes

with Changes() as changes:
    before = changes.take()
    subprocess.run(["ip", "addr", "add", "198.51.100.2/24", "dev", "near"], check=True)
    told = bool(select.select([changes], [], [], 10)[0]) and changes.take()
    print(json.dumps({
        "changes": [before, told, changes.take()],
        "temporary": [a.host for a in local_addresses() if a.temporary],
        "chosen": {i.host: i.name for i in local_interfaces(Config())},
        "near": [i.host for i in local_interfaces(Config(interfaces=("near",)))],
    }))
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Lab.nat("full-cone", server_command=(), ipv6="off") as lab:
        lab.host.run(["sh", "-c", SETUP], check=True)
        yield lab.host


def test_addresses_of_every_state(machine: Machine) -> None:
    done = machine.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT
    )
    told = json.loads(done.stdout)
    assert told["changes"] == [False, True, False]
    (temporary,) = told["temporary"]
    assert temporary.startswith("2001:db8:1:")
    # Neither the address that it stands in for, nor the deprecated one, nor any of the link: a
    # temporary address shields the host (RFC 8445 5.1.1.1).  Of another prefix it says nothing.
    assert sorted(told["near"]) == sorted(
        [temporary, "2001:db8:3::1", "198.51.100.1", "198.51.100.2"]
    )
    assert told["near"][0] == temporary
    assert told["chosen"][machine.ipv4] != "near"
    assert "198.51.100.129" not in told["chosen"], "there is no carrier"
    assert not any(host.startswith(("fe80", "127.", "::1")) for host in told["chosen"])
