"""A simulated internet: the clock, the networks and everything on them, from one seed.

::

    world = World(seed=7)
    lan = world.network("lan")
    host = world.host("laptop")
    world.plug(host, lan, "192.168.1.2")
    box = world.box("router", kind("symmetric").boxes[0], lan, world.internet,
                    inside_addresses=("192.168.1.1",), external=("192.52.193.1",))
    station = world.attach(machine, host)
    world.run(until=lambda: bool(station.events), max_time=60)

Most callers want :mod:`nattype.lab.sim.scenario`, which builds the laboratory's usual networks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, TypeVar

from nattype.lab.sim.clock import Clock
from nattype.lab.sim.driver import Attachment
from nattype.lab.sim.host import Host
from nattype.lab.sim.nat import Box
from nattype.lab.sim.options import LIKE_LINUX, SimOptions
from nattype.lab.sim.wire import PERFECT, Entry, Fate, Interface, Ledger, Network, Node
from nattype.model import Link, NatModel
from stun.sansio import Entropy, Instant, SocketMachine

Event = TypeVar("Event")

INTERNET_ROUTER: Final = ("192.52.193.254", "2620:4f:8000:1::ffff")


class World:
    """Everything that exists, and its time.

    The same seed and the same calls give the same run, packet by packet.  Each part draws from its
    own stream of random numbers, named by the part, so that adding a host does not change what
    another one draws.
    """

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.clock = Clock()
        self.ledger = Ledger(self.clock, trace=trace)
        self._nodes: dict[str, Node] = {}
        self._inside: dict[Network, Box] = {}
        self._attachments: list[Attachment[object]] = []
        self.internet = self.network("internet", router=INTERNET_ROUTER)
        """The public network: routed, so that it costs a hop, and empty at first."""

    # Building. -----------------------------------------------------------------------------------

    def random(self, name: str) -> Random:
        """Return the stream of random numbers of this name, from its start."""
        return Random(f"{self.seed}/{name}")

    def entropy(self, name: str) -> Entropy:
        """Return seeded entropy for a machine, in place of ``os.urandom``."""
        return self.random(f"entropy of {name}").randbytes

    def network(self, name: str, *, router: tuple[str, str] | None = None) -> Network:
        """Make a network."""
        return Network(name, self.clock, self.ledger, self.random(f"network {name}"), router=router)

    def host(self, name: str) -> Host:
        """Make a host that is not plugged in anywhere yet."""
        host = Host(name, self.clock, self.ledger, self.random(f"host {name}"))
        self._add(host)
        return host

    def plug(
        self, host: Host, network: Network, *addresses: str, link: Link = PERFECT
    ) -> Interface:
        """Plug a host into a network with these addresses; a host may have several interfaces."""
        interface = Interface(host, network, link)
        box = self._inside.get(network)
        for address in addresses:
            host.add_address(address, interface)
            if box is not None:
                box.adopt(address)
        return interface

    def box(
        self,
        name: str,
        model: NatModel,
        inside: Network,
        outside: Network,
        *,
        inside_addresses: Sequence[str],
        external: Sequence[str],
        link: Link = PERFECT,
        options: SimOptions = LIKE_LINUX,
    ) -> Box:
        """Put a box between two networks; ``link`` is what it hangs on outside.

        Build from the outside in: a firewall announces the hosts that are plugged in behind it to
        the network outside.
        """
        box = Box(
            name,
            model,
            clock=self.clock,
            ledger=self.ledger,
            random=self.random(f"box {name}"),
            options=options,
        )
        self._add(box)
        inner, outer = Interface(box, inside), Interface(box, outside, link)
        for address in inside_addresses:
            inner.add(address)
        beyond = self._inside.get(outside)
        for address in external:
            outer.add(address)
            if beyond is not None:
                beyond.adopt(address)
        box.connect(inner, outer, external)
        self._inside[inside] = box
        return box

    def attach(
        self,
        machine: SocketMachine[Event],
        host: Host,
        on_event: Callable[[Event], None] | None = None,
    ) -> Attachment[Event]:
        """Run a machine on a host; its events go to ``on_event``, else to ``Attachment.events``."""
        attachment = Attachment(machine, host, self.clock, on_event)
        self._attachments.append(attachment)  # type: ignore[arg-type]  # only pumped from here
        return attachment

    def _add(self, node: Node) -> None:
        if node.name in self._nodes:
            raise ValueError(f"there are two nodes called {node.name!r}")
        self._nodes[node.name] = node

    # Running. ------------------------------------------------------------------------------------

    @property
    def now(self) -> Instant:
        """The instant, in nanoseconds since the world began."""
        return self.clock.now

    def run(
        self,
        until: Callable[[], bool] | Instant | None = None,
        max_time: float | None = None,
    ) -> bool:
        """Let time pass until ``until`` holds, nothing is due, or ``max_time`` seconds are over.

        ``until`` is a predicate or an instant.  Returns whether it came about; without ``until``,
        whether nothing is due any more.
        """
        for attachment in self._attachments:
            attachment.pump()
        return self.clock.run(until, max_time)

    # Looking. ------------------------------------------------------------------------------------

    @property
    def trace(self) -> list[Entry]:
        """Each step of each packet, in order; empty unless the world was made with ``trace``."""
        return self.ledger.trace or []

    @property
    def sent(self) -> int:
        """Packets made by hosts and routers."""
        return self.ledger.sent

    @property
    def delivered(self) -> int:
        """Packets that reached a socket."""
        return self.ledger.delivered

    @property
    def dropped(self) -> Counter[Fate]:
        """Packets that did not, by reason."""
        return self.ledger.dropped

    def in_flight(self) -> int:
        """Packets that are on their way."""
        return self.ledger.in_flight()
