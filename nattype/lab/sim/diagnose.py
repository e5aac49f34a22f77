"""natcheck on the simulated network: the probe and the server, unchanged, in virtual time.

    report = diagnose("symmetric", seed=7)

Takes milliseconds, needs no privileges, and is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from nattype.assembly import assemble
from nattype.classify import classify
from nattype.lab.sim.options import LIKE_LINUX, SimOptions
from nattype.lab.sim.scenario import SERVER_A, SERVER_A6, SERVER_B, SERVER_B6, Scenario, behind
from nattype.lab.sim.wire import PERFECT
from nattype.model import Kind, Link
from nattype.observations import Observations
from nattype.probe.machine import Finished, Plan, Probe, ProbeConfig, ProbeEvent
from nattype.probe.session import Server as Target
from nattype.report import Report
from stun.sansio import SECOND, Address, SocketMachine
from stun.server import Server, ServerConfig, Site

PORT = 3478
PRIMARY = {"ipv4": Address(SERVER_A, PORT), "ipv6": Address(SERVER_A6, PORT)}
ALTERNATE = {"ipv4": Address(SERVER_B, PORT + 1), "ipv6": Address(SERVER_B6, PORT + 1)}


def diagnose(
    kind: Kind | str,
    *,
    seed: int = 0,
    link: Link = PERFECT,
    options: SimOptions | Sequence[SimOptions] = LIKE_LINUX,
    families: Sequence[str] = ("ipv4",),
    udp: bool = True,
    tcp: bool = True,
    lifetime: bool = False,
    timeout: float = 60.0,
) -> Report:
    """Put a host behind ``kind``, diagnose, and return the report.

    ``families``: of ``ipv4`` and ``ipv6``, which to diagnose.  ``timeout``: virtual seconds.
    """
    scenario = behind(kind, seed=seed, link=link, options=options)
    serve(scenario)
    seen = observe(
        scenario, families=families, udp=udp, tcp=tcp, lifetime=lifetime, timeout=timeout
    )
    report = assemble([classify(one) for one in seen])
    return replace(
        report,
        servers=tuple(str(PRIMARY[family]) for family in families),
        seconds=max(one.took for one in seen) / SECOND,
    )


def serve(scenario: Scenario) -> Server:
    """Run the STUN server with two addresses of each family on the scenario's server."""
    config = ServerConfig(
        PRIMARY["ipv4"], ALTERNATE["ipv4"], more=(Site(PRIMARY["ipv6"], ALTERNATE["ipv6"]),)
    )
    server = Server(config, entropy=scenario.world.entropy("stun server"))
    server.start(scenario.world.now)
    scenario.world.attach(server, scenario.server)
    return server


def observe(
    scenario: Scenario,
    *,
    servers: Sequence[Address] | None = None,
    families: Sequence[str] = ("ipv4",),
    udp: bool = True,
    tcp: bool = True,
    lifetime: bool = False,
    timeout: float = 60.0,
    wrap: Callable[[Probe], SocketMachine[Any]] = lambda probe: probe,
) -> tuple[Observations, ...]:
    """Run the probe on the scenario's host and return what it saw, by family.

    ``servers``: whom it asks, by default the primary address of each family.  ``wrap`` may put
    another machine between the probe and the network.
    """
    targets = list(servers) if servers is not None else [PRIMARY[family] for family in families]
    plans = tuple(
        Plan(
            family,
            _own_address(scenario, ipv6=family == "ipv6"),
            tuple(Target(a, str(a)) for a in targets if a.is_ipv6 == (family == "ipv6")),
        )
        for family in families
    )
    config = ProbeConfig(plans, udp, tcp, lifetime, int(timeout * SECOND))
    probe = Probe(config, entropy=scenario.world.entropy("probe"))
    finished: list[Finished] = []

    def on_event(event: ProbeEvent) -> None:
        if isinstance(event, Finished):
            finished.append(event)

    scenario.world.attach(wrap(probe), scenario.host, on_event=on_event)
    probe.start(scenario.world.now)
    scenario.world.run(until=lambda: bool(finished), max_time=timeout + 1.0)
    return finished[0].observations


def _own_address(scenario: Scenario, *, ipv6: bool) -> str:
    routes = scenario.sites[0].lan.routes
    return next(
        host
        for host, interface in routes.items()
        if interface.node is scenario.host and (":" in host) == ipv6
    )
