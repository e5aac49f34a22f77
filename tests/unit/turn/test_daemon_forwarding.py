"""Which data plane turnd relays with: what is wanted, what there is, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from turn.daemon import forwarding
from turn.daemon.beforehand import CannotStart
from turn.daemon.forwarding import (
    MOST_ROUTES,
    Forwarding,
    open_forwarding,
    room,
    would_relay,
)
from turn.dataplane.kernel.support import KernelUnavailable
from turn.server.config import Limits, RelayAddress, ServerConfig
from turn.server.policy import PeerPolicy

OLD = "it needs Linux 6.6 or newer, and this is 5.10.0"
RELAYS = (RelayAddress("192.0.2.1", "192.0.2.1"), RelayAddress("2001:db8::1", "2001:db8::1"))


class Routes:
    """What relays in the kernel, as far as turnd looks at it."""

    def __init__(self, *interfaces: str, refused: tuple[str, ...] = ()) -> None:
        self.interfaces, self.refused = interfaces, refused
        self.closed = 0

    def counters(self) -> dict[str, int]:
        return {"forwarded to peers": 5, "routes left to the sockets: no room": 2}

    def close(self) -> None:
        self.closed += 1


def in_kernel(*interfaces: str, refused: tuple[str, ...] = ()) -> Any:
    return Routes(*interfaces, refused=refused)


def config(**limits: int) -> ServerConfig:
    return ServerConfig(
        listeners=(),
        relays=RELAYS,
        realm="r",
        policy=PeerPolicy(),
        ports=(50_000, 50_099),
        limits=Limits(**limits),
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a machine has: ``why`` the kernel cannot, and what loading ``gives``."""
    found: dict[str, Any] = {"why": None, "gives": in_kernel(), "loads": 0}

    def load(routes: int) -> Any:
        assert routes == room(config())
        found["loads"] += 1
        if isinstance(found["gives"], str):
            raise KernelUnavailable(found["gives"], "R3 has pointer with unsupported alu operation")
        return found["gives"]

    monkeypatch.setattr(forwarding, "why_not", lambda: found["why"])
    monkeypatch.setattr(forwarding, "_load", load)
    return found


def test_sockets_ask_nothing_of_the_kernel(machine: dict[str, Any]) -> None:
    made = open_forwarding("sockets", config())
    assert (made.kernel, machine["loads"]) == (None, 0)
    assert str(made) == "with sockets: as configured"
    made.close()


@pytest.mark.parametrize("wanted", ["auto", "kernel"])
def test_the_kernel_is_taken_where_it_can_be_had(machine: dict[str, Any], wanted: Any) -> None:
    made = open_forwarding(wanted, config())
    assert made.kernel is machine["gives"]
    assert str(made) == "in the kernel, at no interface yet"


def test_the_interfaces_are_named() -> None:
    made = Forwarding("auto", in_kernel("eth0", "eth1", refused=("tap0: No such device",)))
    assert str(made) == "in the kernel, at eth0, eth1"
    assert made.status() == {
        "wanted": "auto",
        "kernel": True,
        "why": "",
        "interfaces": ["eth0", "eth1"],
        "refused": ["tap0: No such device"],
        "left": {"no room": 2},
    }


@pytest.mark.parametrize("at", ["beforehand", "when loading"])
def test_auto_goes_on_with_sockets_and_says_why(machine: dict[str, Any], at: str) -> None:
    machine |= {"why": OLD} if at == "beforehand" else {"gives": OLD}
    made = open_forwarding("auto", config())
    assert (made.status()["kernel"], made.status()["why"]) == (False, OLD)
    assert str(made) == f"with sockets: {OLD}"
    assert bool(made.detail) is (at == "when loading")


@pytest.mark.parametrize("at", ["beforehand", "when loading"])
def test_kernel_does_not_start_without(machine: dict[str, Any], at: str) -> None:
    machine |= {"why": OLD} if at == "beforehand" else {"gives": OLD}
    with pytest.raises(CannotStart) as caught:
        open_forwarding("kernel", config())
    assert str(caught.value) == (
        f"cannot relay in the kernel: {OLD}; or have turnd choose: --dataplane auto"
    )


def test_what_would_be_is_told_without_doing_it(machine: dict[str, Any]) -> None:
    assert would_relay("auto") == would_relay("kernel") == "relaying in the kernel"
    assert would_relay("sockets") == "relaying with sockets: as configured"
    machine["why"] = OLD
    assert would_relay("auto") == f"relaying with sockets: {OLD}"
    assert would_relay("kernel") == f"would not start: it cannot relay in the kernel: {OLD}"
    assert would_relay("sockets") == "relaying with sockets: as configured"
    assert machine["loads"] == 0


# Another configuration. ---------------------------------------------------------------------------


def test_what_is_the_same_stays_open(machine: dict[str, Any]) -> None:
    made = open_forwarding("auto", config())
    assert made.follow("auto", config(allocations=5)) is made, "its maps stay as they are"
    kept = made.follow("kernel", config())
    assert kept == replace(made, wanted="kernel")
    assert kept.follow("auto", config()) == made
    sockets = open_forwarding("sockets", config())
    assert sockets.follow("sockets", config()) is sockets
    assert machine["loads"] == 1


def test_from_one_to_the_other_and_back(machine: dict[str, Any]) -> None:
    made = open_forwarding("auto", config())
    sockets = made.follow("sockets", config())
    assert sockets.kernel is None
    before = machine["gives"]
    assert not before.closed, "that is for later, when nothing can fail any more"
    machine["gives"] = another = in_kernel()
    assert sockets.follow("kernel", config()).kernel is another
    made.close()
    assert (before.closed, machine["loads"]) == (1, 2)


def test_what_was_missing_is_looked_for_again(machine: dict[str, Any]) -> None:
    machine["why"] = OLD
    made = open_forwarding("auto", config())
    assert made.follow("auto", config()) == made
    with pytest.raises(CannotStart):
        made.follow("kernel", config())
    machine["why"] = None
    assert made.follow("auto", config()).kernel is machine["gives"]


# Room. --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allocations", "routes"), [(0, 400), (50_000, 400), (200, 400), (150, 300), (1, 2)]
)
def test_there_is_room_for_what_may_be(allocations: int, routes: int) -> None:
    assert room(config(allocations=allocations)) == routes


def test_room_has_a_bound() -> None:
    wide = replace(config(allocations=0), ports=(1024, 65_535), relays=RELAYS * 4)
    assert room(wide) == MOST_ROUTES
