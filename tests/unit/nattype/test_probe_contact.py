"""Reaching servers: first contact, and which one is used."""

from __future__ import annotations

import random

import pytest

from nattype.lab.sim import SERVER_A, SERVER_B, behind
from nattype.lab.sim.diagnose import observe
from nattype.model import Link
from nattype.observations import Asked, Observations
from nattype.probe.contact import quad_of
from stun.sansio import Address
from stun.server import Server, ServerConfig

A, B = Address(SERVER_A, 3478), Address(SERVER_B, 3479)
PLAIN = Address(SERVER_B, 19302)
DEAD = Address("192.52.193.250", 3478)


def run(seed: int, servers: list[Address], *configs: ServerConfig, loss: float) -> Observations:
    scenario = behind("port-restricted-cone", seed=seed, link=Link(delay=0.02, loss=loss))
    for config in configs:
        server = Server(config, entropy=random.Random(seed).randbytes)
        server.start(0)
        scenario.world.attach(server, scenario.server)
    return observe(scenario, servers=servers)[0]


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("order", [[A, PLAIN, DEAD], [DEAD, PLAIN, A]])
def test_the_best_server_is_used_whatever_the_order(
    order: list[Address], loss: float, seed: int
) -> None:
    seen = run(seed, order, ServerConfig(A, B), ServerConfig(PLAIN), loss=loss)
    if loss == 0.0:
        assert (seen.primary, seen.alternate) == (A, B)
    else:
        # Should its first answers all be lost, the ordinary one is used rather than waited for.
        assert seen.primary in (A, PLAIN)
    assert seen.udp is not None
    assert seen.tcp is not None


def test_an_ordinary_server_is_used_when_there_is_no_better(seed: int) -> None:
    seen = run(seed, [DEAD, PLAIN], ServerConfig(PLAIN), loss=0.0)
    assert (seen.primary, seen.alternate) == (PLAIN, None)
    assert seen.took < 3_000_000_000


def test_a_lost_syn_costs_no_second(seed: int) -> None:
    for n in range(10):
        seen = run(seed + n, [A], ServerConfig(A, B), loss=0.1)
        assert seen.tcp is not None
        assert seen.tcp.contacts
        asked = seen.tcp.contacts[0].asked
        assert asked is not None
        # From whichever port got through; the others were given up.
        assert asked.answered


def test_the_four_addresses() -> None:
    asked = Asked(Address("192.168.1.2", 5), A, source=A, mapped=Address("192.52.193.2", 5))
    assert quad_of(asked) is None
    full = Asked(Address("192.168.1.2", 5), A, source=A, other=B)
    quad = quad_of(full)
    assert quad is not None
    assert quad.same_address == Address(SERVER_A, 3479)
    assert quad.same_port == Address(SERVER_B, 3478)
    liar = Asked(Address("192.168.1.2", 5), A, source=A, other=Address("10.0.0.1", 3479))
    assert quad_of(liar) is None
