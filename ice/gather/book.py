"""The book of local candidates: their priorities, foundations, and what of them may be told.

Whoever finds an address (a socket, a STUN server's answer, an allocation) brings it here, and a
candidate comes of it or does not:

* one with the transport address and the base of another is redundant (RFC 8445 section 5.1.3);
* with :attr:`ice.config.Policy.RELAY` only relayed candidates are made, and their related address
  is hidden, for it is one that the peer is not to learn;
* an address that has an mDNS name is replaced by the name, and hidden in what is related to it.

One-to-one NAT.  A public address that is known by configuration is a mapping that no server had to
tell, so a full agent has it as a server-reflexive candidate beside the host candidate: peers on the
same network still meet directly, and all the rules for mappings hold.  A lite agent has nothing but
host candidates (RFC 8445 section 2.5), so there the public address takes the private one's place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ice.base import Base, BaseId, CandidateFound, CandidateNotFound, Standing
from ice.candidate import Candidate, CandidateType, TcpType
from ice.config import Config, Interface, Policy
from ice.gather.reach import without_zone
from ice.priority import HIGHEST, candidate_priority, formula, foundation, local_preference
from stun.sansio import Address

DISCARD: Final = 9
"""RFC 8839 section 5.1: an address that is not to be revealed "MUST be set to "0.0.0.0" (for IPv4
candidates) or "::" (for IPv6 candidates) and the port to "9"."""


MOST_PREDICTED: Final = 64
"""Candidates of predicted ports: an agent takes no more than 100 pairs of a stream."""
PREDICTED: Final = 40
"""The type preference of a predicted candidate: one that is known to be there comes before it, and
it comes before a relay."""


@dataclass(frozen=True, slots=True)
class Source:
    """Who told of an address.

    ``name``: the server as explanations call it.  ``host``: its IP address.  ``rank``: its place
    among the servers that are asked from one address; the lower it is, the higher the priority.
    """

    name: str
    host: str = ""
    rank: int = 0


NOBODY: Final = Source("")
CONFIGURATION: Final = Source("one-to-one NAT")


class Book:
    """All candidates of one agent.  What comes of an address is appended to ``queue``.

    ``secret`` keys the foundations, so that they tell nothing of what is hidden.
    """

    def __init__(self, config: Config, queue: deque[Any], *, secret: bytes) -> None:
        self._config = config
        self._queue = queue
        self._secret = secret
        self._found: dict[BaseId, list[CandidateFound]] = {}
        self._predictions = 0

    # Making candidates. ---------------------------------------------------------------------------

    def host(
        self, base: Base, interface: Interface, standing: Standing = Standing.GATHERED
    ) -> None:
        """Take note of a socket of this host."""
        if self._config.policy is Policy.RELAY:
            return
        advertised = interface.advertised
        port = base.address.port
        own = interface.mdns or base.address.host
        lite = self._config.lite
        shown = Address(advertised if lite and advertised else own, port)
        self._add(CandidateType.HOST, shown, base, interface, standing=standing)
        if standing is Standing.GATHERED and advertised and not lite:
            self.reflexive(base, interface, Address(advertised, port), CONFIGURATION)

    def reflexive(
        self, base: Base, interface: Interface, mapped: Address, source: Source
    ) -> Candidate | None:
        """Take note that ``base`` is seen as ``mapped``; the candidate, if it is a new one."""
        if self._config.policy is Policy.RELAY:
            return None
        related = _hidden(mapped) if interface.mdns else base.address
        kind = CandidateType.SERVER_REFLEXIVE
        return self._add(kind, mapped, base, interface, source=source, related=related)

    def relayed(
        self, base: Base, interface: Interface, mapped: Address, source: Source
    ) -> Candidate | None:
        """Take note of a relayed address, and of how its server sees this host."""
        address = base.address
        # The port of an active TCP candidate says nothing (RFC 6544 section 4.5).
        is_active = base.tcptype is TcpType.ACTIVE
        if not is_active and any(_is_at(found, base) for found in self._all()):
            # RFC 8445 section 5.1.1.2: "If a relayed candidate is identical to a host candidate
            # [...], the relayed candidate MUST be discarded."
            return None
        revealing = interface.mdns and mapped.host == interface.host
        hidden = self._config.policy is Policy.RELAY or revealing
        related = _hidden(address) if hidden else mapped
        kind = CandidateType.RELAYED
        return self._add(kind, address, base, interface, source=source, related=related)

    def _add(
        self,
        kind: CandidateType,
        shown: Address,
        base: Base,
        interface: Interface,
        *,
        source: Source = NOBODY,
        related: Address | None = None,
        standing: Standing = Standing.GATHERED,
    ) -> Candidate | None:
        place = without_zone(shown)
        of_base = self._found.setdefault(base.id, [])
        if any(found.candidate.address == place for found in of_base):
            return None
        candidate = Candidate(
            foundation=foundation(
                kind, base.address.host, source.host, base.transport, self._secret
            ),
            component=base.component,
            transport=base.transport,
            priority=self._priority(kind, base, interface, source),
            host=place.host,
            port=place.port,
            type=kind,
            related_address=None if related is None else without_zone(related).host,
            related_port=None if related is None else related.port,
            tcptype=base.tcptype,
        )
        found = CandidateFound(candidate, base, source.name, standing)
        of_base.append(found)
        self._queue.append(found)
        return candidate

    def predict(
        self, bases: Iterable[Base], offsets: Sequence[int], ports: Sequence[int]
    ) -> list[Candidate]:
        """Make candidates of ports that NATs are expected to give out next.

        They are on the addresses that servers have told of a base, over UDP and for simultaneous
        open: ``offsets`` from each port that was told, then ``ports`` as they are.  In this order
        each has a lower priority than the one before.  What is known, or no port, is passed over.
        """
        made = []
        for base in bases:
            if base.is_relayed or base.tcptype not in (None, TcpType.SIMULTANEOUS_OPEN):
                continue
            of_base = self._found.get(base.id, [])
            known = {found.candidate.address for found in of_base}
            seen = [found for found in of_base if _is_mapping(found)]
            hosts = {found.candidate.host: found for found in reversed(seen)}
            wanted = [(one, one.candidate.port + offset) for offset in offsets for one in seen]
            wanted += [(like, port) for port in ports for like in hosts.values()]
            for like, port in wanted:
                place = Address(like.candidate.host, port)
                if place in known or not 1 <= port <= 0xFFFF or self._predictions >= MOST_PREDICTED:
                    continue
                known.add(place)
                self._predictions += 1
                made.append(self._predict(like, place))
        return made

    def forget_predictions(self) -> None:
        """Take note that the ports that were predicted are out of date."""
        self._predictions = 0
        for of_base in self._found.values():
            of_base[:] = [found for found in of_base if found.standing is not Standing.PREDICTED]

    def _predict(self, like: CandidateFound, place: Address) -> Candidate:
        preference = max(0, HIGHEST - self._predictions)
        candidate = replace(
            like.candidate,
            # What one of them shows says nothing about the next, so each is checked at once: their
            # foundations differ (RFC 8445 section 5.1.1.3).
            foundation=f"{like.candidate.foundation}{self._predictions}",
            priority=formula(PREDICTED, preference, like.base.component),
            port=place.port,
        )
        found = CandidateFound(candidate, like.base, like.server, Standing.PREDICTED)
        self._found[like.base.id].append(found)
        self._queue.append(found)
        return candidate

    def _priority(
        self, kind: CandidateType, base: Base, interface: Interface, source: Source
    ) -> int:
        """Choose a priority that no other candidate of the stream has (RFC 8445 section 5.1.2)."""
        taken = {
            found.candidate.priority for found in self._all() if found.base.stream == base.stream
        }
        preference = local_preference(interface.preference, source.rank)
        while True:
            priority = candidate_priority(kind, base.component, preference, base.tcptype)
            if priority not in taken or preference == 0:
                return priority
            preference -= 1

    def _all(self) -> Iterator[CandidateFound]:
        for of_base in self._found.values():
            yield from of_base

    # What is known. -------------------------------------------------------------------------------

    def mapped(self, base: Base) -> Iterator[Address]:
        """Give the addresses that servers have seen a base as."""
        for found in self._found.get(base.id, ()):
            if _is_mapping(found):
                yield found.candidate.address

    def missing(self, stream: int, component: int, what: str, why: str) -> None:
        """Tell of a candidate that was sought and not had."""
        self._queue.append(CandidateNotFound(stream, component, what, why))

    def forget(self, base: Base) -> None:
        """Take note that a base is no more, and its candidates with it."""
        self._found.pop(base.id, None)


def _is_at(found: CandidateFound, base: Base) -> bool:
    """Whether a candidate has the very transport address of a base."""
    candidate = found.candidate
    return candidate.transport == base.transport and candidate.address == base.address


def _is_mapping(found: CandidateFound) -> bool:
    """Whether a server has told of it."""
    reflexive = found.candidate.type is CandidateType.SERVER_REFLEXIVE
    return reflexive and found.standing is Standing.GATHERED


def _hidden(like: Address) -> Address:
    """Return what stands for a related address that is not told (RFC 8839 section 5.1)."""
    return Address("::" if like.is_ipv6 else "0.0.0.0", DISCARD)  # noqa: S104  (not bound)
