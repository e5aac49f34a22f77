"""What turnd is shipped with grants what it needs, and carries the program for the kernel."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from turn.daemon.capabilities import WANTED
from turn.dataplane.kernel.support import CAPABILITIES, object_path

ROOT = Path(__file__).parents[3]
UNIT = (ROOT / "packaging/turnd.service").read_text()
IMAGE = (ROOT / "packaging/Dockerfile").read_text()
PROGRAM = object_path().relative_to(ROOT)


def values(key: str) -> list[str]:
    """Return what the unit says for a key, a line each."""
    return re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)


@pytest.mark.parametrize("key", ["AmbientCapabilities", "CapabilityBoundingSet"])
def test_the_unit_grants_what_the_kernel_asks_for(key: str) -> None:
    (granted,) = values(key)
    assert {*granted.split()} == {*CAPABILITIES, "CAP_NET_BIND_SERVICE"}


def test_the_unit_lets_the_one_privileged_call_through() -> None:
    # systemd.exec(5): later lines add to what earlier ones left.
    assert values("SystemCallFilter") == ["@system-service", "~@privileged @resources", "bpf"]


def test_the_unit_lets_turnd_ask_for_routes() -> None:
    assert "AF_NETLINK" in values("RestrictAddressFamilies")[0].split()


def test_the_image_permits_what_turnd_takes_into_effect() -> None:
    permitted = re.search(r"setcap (\S+)\+p ", IMAGE)
    assert permitted is not None
    names = {"cap_net_bind_service": 10} | {n.lower(): bit for n, bit in CAPABILITIES.items()}
    assert {names[name] for name in permitted[1].split(",")} == {*WANTED}
    assert {*CAPABILITIES.values()} < {*WANTED}


def test_the_built_program_is_shipped_though_git_ignores_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["artifacts"] == [f"/{PROGRAM}"]
    assert "*.bpf.o" in (ROOT / ".gitignore").read_text().splitlines()
    makefile = (ROOT / "Makefile").read_text()
    assert f"KERNEL := {PROGRAM.parent}\n" in makefile
    assert f"$(KERNEL)/{PROGRAM.name}: $(KERNEL)/relay.bpf.c $(KERNEL)/relay.h\n" in makefile
