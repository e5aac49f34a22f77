"""The search for lifetimes, where the server helps badly."""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise
from typing import Any

from nattype.classify import classify
from nattype.lab.sim import SERVER_A, SERVER_B, behind
from nattype.lab.sim.diagnose import observe
from nattype.model import Link
from nattype.probe.lifetime import LADDER
from stun import attributes
from stun.codec import Message, decode, encode
from stun.responder import Limits
from stun.sansio import Address, Instant, Received, SocketEvent, Transmit
from stun.server import Server, ServerConfig

A, B = Address(SERVER_A, 3478), Address(SERVER_B, 3479)


class Server5780(Server):
    """Says what it does with RESPONSE-PORT: refuse, stay silent, or stop after a while."""

    def __init__(self, config: ServerConfig, seed: int, *, refuse: bool, allow: int) -> None:
        super().__init__(config, entropy=random.Random(seed).randbytes)
        self.refuse, self.allow = refuse, allow
        self.extra: deque[Any] = deque()

    def receive(self, packet: Received, now: Instant) -> None:
        message = decode(packet.data)
        if message.has(attributes.RESPONSE_PORT):
            self.allow -= 1
            if self.allow < 0:
                if self.refuse:
                    error = encode(Message.error(message, 420))
                    self.extra.append(Transmit(error, packet.source, packet.local))
                return
        super().receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        super().on_socket(event, now)

    def poll(self) -> Any:
        return self.extra.popleft() if self.extra else super().poll()


def lifetimes(seed: int, *, refuse: bool = False, allow: int = 10**9, **config: Any) -> Any:
    scenario = behind("port-restricted-cone", seed=seed, link=Link(delay=0.005))
    server = Server5780(ServerConfig(A, B, **config), seed, refuse=refuse, allow=allow)
    server.start(0)
    scenario.world.attach(server, scenario.server)
    found = classify(observe(scenario, tcp=False, lifetime=True, timeout=600)[0])
    assert found.udp is not None
    return found.udp


def test_a_server_that_refuses_response_port(seed: int) -> None:
    udp = lifetimes(seed, refuse=True, allow=0)
    assert udp.lifetime_one_shot.alive is None
    assert udp.lifetime_one_shot.dead is None
    assert udp.keepalive is None


def test_a_server_that_ignores_response_port(seed: int) -> None:
    udp = lifetimes(seed, allow=0)
    assert udp.lifetime_one_shot.dead is None
    assert udp.keepalive is None


def test_a_server_that_has_had_enough_makes_no_mapping_dead(seed: int) -> None:
    # It falls silent in the middle of the search: silence is then no sign of death.
    udp = lifetimes(seed, allow=14)
    assert udp.lifetime_one_shot.dead is None or udp.lifetime_one_shot.dead >= 30
    assert udp.lifetime_stream.dead is None or udp.lifetime_stream.dead >= 120


def test_a_server_with_a_narrow_limit_is_enough(seed: int) -> None:
    udp = lifetimes(seed, limits=Limits(special=8, special_burst=40))
    assert udp.lifetime_one_shot.alive is not None
    assert udp.lifetime_one_shot.alive <= 30 <= (udp.lifetime_one_shot.dead or 1e9) + 0.5


def test_the_ladder_climbs_evenly() -> None:
    steps = [after / before for before, after in pairwise(LADDER[5:])]
    assert all(1.2 < step < 1.4 for step in steps)
    assert list(LADDER) == sorted(set(LADDER))
