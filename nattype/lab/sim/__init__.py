"""A simulated network on virtual time, with the behaviour of the kernel's NATs.

Hosts run :class:`~stun.sansio.SocketMachine` machines unchanged; boxes behave as
:class:`~nattype.model.NatModel` says; links lose, delay and reorder as :class:`~nattype.model.Link`
says.  A run is a function of its seed, takes no real time and needs no privileges::

    from nattype.lab.sim import behind

    scenario = behind("symmetric", seed=7)
    server = scenario.world.attach(server_machine, scenario.server)
    client = scenario.world.attach(client_machine, scenario.host)
    scenario.world.run(until=lambda: bool(client.events), max_time=60)

The parts: :mod:`~nattype.lab.sim.clock` (virtual time), :mod:`~nattype.lab.sim.wire` (packets,
networks, what became of each packet), :mod:`~nattype.lab.sim.nat` and
:mod:`~nattype.lab.sim.ports` (boxes), :mod:`~nattype.lab.sim.host` and
:mod:`~nattype.lab.sim.tcp` (hosts), :mod:`~nattype.lab.sim.driver` (machines on hosts),
:mod:`~nattype.lab.sim.world` and :mod:`~nattype.lab.sim.scenario` (all of it put together),
:mod:`~nattype.lab.sim.options` (what only a simulated NAT can do),
:mod:`~nattype.lab.sim.machines` (two machines to begin with).

Calibration.  ``tests/lab/test_calibration.py`` plays the same scenarios in the kernel's namespaces
and here, for every named kind, every point of the grid and two mixed chains, over IPv4 and IPv6,
and demands the same observations: who shares a mapping, whether the port is preserved or what the
step is, who passes the filter before and after being answered, what the inbound-first poison
costs, which ICMP errors come through in both directions, hairpinning, two hosts with one port, TCP
mapping, filtering and refusals (silence, RST, ICMP), simultaneous open, who may return after a
reset, and the two lifetimes of UDP.

Where the two are known to differ, and are not compared:

* an external port belongs to one mapping at a time here (RFC 4787 REQ-3); Linux shares it between
  hosts whose remote endpoints differ, so two hosts with the same port behind a port-preserving NAT
  keep it towards different servers there;
* a host of an address-dependent mapping that had already sent to a stranger sees him under another
  source port on Linux, because two sessions cannot be one; here he keeps his address;
* the numbers: ports drawn at random, where a sequence begins, times below a millisecond;
* SYN retransmission follows RFC 6298 (1, 3, 7 s ...); Linux since 6.5 sends the first few a second
  apart.
"""

from nattype.lab.sim.driver import Attachment
from nattype.lab.sim.host import Host
from nattype.lab.sim.nat import Box
from nattype.lab.sim.options import Pooling, Refresh, SimOptions
from nattype.lab.sim.scenario import (
    SERVER_A,
    SERVER_A6,
    SERVER_B,
    SERVER_B6,
    Scenario,
    Site,
    behind,
    pair,
)
from nattype.lab.sim.wire import Entry, Fate, Happening, Interface, Network
from nattype.lab.sim.world import World

__all__ = [
    "SERVER_A",
    "SERVER_A6",
    "SERVER_B",
    "SERVER_B6",
    "Attachment",
    "Box",
    "Entry",
    "Fate",
    "Happening",
    "Host",
    "Interface",
    "Network",
    "Pooling",
    "Refresh",
    "Scenario",
    "SimOptions",
    "Site",
    "World",
    "behind",
    "pair",
]
