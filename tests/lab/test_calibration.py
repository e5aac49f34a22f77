"""The simulated NATs against the kernel's: the same scenarios must show the same in both worlds.

A :class:`Net` has the verbs that a scenario is written in: bind, send, dial, listen, close, wait.
One is made of the kernel laboratory and plain sockets, the other of the simulator and puppets.
What a scenario observes is told as plain values without anything that chance decides: which port,
but not its number.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise

import pytest

from nattype.lab import Lab
from nattype.lab.sim import SERVER_A, SERVER_A6, SERVER_B, SERVER_B6, behind
from nattype.lab.sim.machines import Puppet
from nattype.model import NAMED_KINDS, Filtering, Kind, Lifetimes, Mapping, NatModel, grid
from stun.sansio import SECOND, Address, Cause, Undeliverable

pytestmark = pytest.mark.lab

CHAINS = (
    Kind("firewall-nat", "", (NatModel(mapping=Mapping.NONE), NatModel())),
    Kind("nat-firewall", "", (NatModel(), NatModel(mapping=Mapping.NONE))),
)
KINDS = (*NAMED_KINDS, *grid(), *CHAINS)

SETTLE = 0.05
"""Seconds after which a packet that has not come will not come; both worlds have no delay."""
SILENCE = 0.15
"""Seconds without an answer after which a SYN counts as dropped; it is repeated after one."""

HOST, NEIGHBOUR, SERVER = "host", "neighbour", "server"
ENDPOINTS = ("A:p", "A:q", "B:p", "B:q")


class Net(ABC):
    """The verbs.  Sockets are named by (machine, address)."""

    def __init__(self, *, ipv6: bool) -> None:
        a, b = (SERVER_A6, SERVER_B6) if ipv6 else (SERVER_A, SERVER_B)
        self.ipv6 = ipv6
        self.at = {
            f"{name}:{letter}": Address(host, port)
            for name, host in (("A", a), ("B", b))
            for letter, port in (("p", 5000), ("q", 5001), ("x", 5002), ("s", 5003))
        }
        self._port = 20_000

    def fresh(self, machine: str = HOST) -> Address:
        """Return an address of a machine with a port that was not used before."""
        self._port += 7
        return Address(self.address(machine), self._port)

    @abstractmethod
    def address(self, machine: str) -> str: ...

    @abstractmethod
    def bind(self, machine: str, local: Address) -> None: ...

    @abstractmethod
    def send(self, machine: str, local: Address, to: Address) -> None: ...

    @abstractmethod
    def close(self, machine: str, local: Address) -> None: ...

    @abstractmethod
    def take(self, machine: str, local: Address) -> list[Address]:
        """Wait a moment; return who sent the datagrams that came since the last time."""

    @abstractmethod
    def errors(self, machine: str, local: Address) -> set[tuple[int, int]]:
        """Return type and code of the ICMP errors that came for a UDP socket."""

    @abstractmethod
    def listen(self, machine: str, local: Address) -> None: ...

    @abstractmethod
    def dial(self, machine: str, local: Address, to: Address) -> int:
        """Send a SYN; return a number for the connection."""

    @abstractmethod
    def outcome(self, number: int) -> str:
        """Wait; say what became of a dial: open, rst, icmp or silence."""

    @abstractmethod
    def abandon(self, number: int) -> None:
        """Close a dial's socket."""

    @abstractmethod
    def accepted(self, machine: str, local: Address) -> list[Address]:
        """Wait a moment; return who connected to a listener since the last time."""

    @abstractmethod
    def reset(self, machine: str) -> None:
        """Reset every connection that this machine's listeners have accepted."""

    @abstractmethod
    def sleep(self, seconds: float) -> None: ...

    # Combinations.

    def seen(self, local: Address, endpoint: str, machine: str = HOST) -> Address | None:
        """Send from a host's socket; return whom the server's socket sees."""
        self.send(machine, local, self.at[endpoint])
        senders = self.take(SERVER, self.at[endpoint])
        assert len(senders) <= 1
        return senders[0] if senders else None

    def passes(self, endpoint: str, mapped: Address, local: Address, machine: str = HOST) -> bool:
        """Send from the server; say whether the host's socket gets it, with the right source."""
        self.send(SERVER, self.at[endpoint], mapped)
        senders = self.take(machine, local)
        assert senders in ([], [self.at[endpoint]])
        return bool(senders)


class Simulated(Net):
    def __init__(self, which: Kind, *, ipv6: bool) -> None:
        super().__init__(ipv6=ipv6)
        self.scenario = behind(which, seed=1)
        self.world = self.scenario.world
        hosts = {
            HOST: self.scenario.host,
            NEIGHBOUR: self.scenario.neighbour(),
            SERVER: self.scenario.server,
        }
        self.hosts = hosts
        self.puppets = {name: Puppet() for name in hosts}
        for name, host in hosts.items():
            self.world.attach(self.puppets[name], host)
        self.handles: dict[tuple[str, Address], int] = {}
        self.dials: list[tuple[Puppet, int]] = []
        self.counted: dict[tuple[str, Address, str], int] = {}

    def address(self, machine: str) -> str:
        return self.hosts[machine].address(ipv6=self.ipv6)

    def bind(self, machine: str, local: Address) -> None:
        self.handles[machine, local] = self.puppets[machine].bind(local)

    def send(self, machine: str, local: Address, to: Address) -> None:
        self.puppets[machine].send(local, to, b"?")

    def close(self, machine: str, local: Address) -> None:
        self.puppets[machine].shut(self.handles.pop((machine, local)))

    def _fresh(self, what: str, machine: str, local: Address, all_: list[Address]) -> list[Address]:
        key = (machine, local, what)
        before = self.counted.get(key, 0)
        self.counted[key] = len(all_)
        return all_[before:]

    def take(self, machine: str, local: Address) -> list[Address]:
        self.world.run(max_time=SETTLE)
        packets = self.puppets[machine].received()
        return self._fresh("udp", machine, local, [p.source for p in packets if p.local == local])

    def errors(self, machine: str, local: Address) -> set[tuple[int, int]]:
        self.world.run(max_time=SETTLE)
        events = [e for e in self.puppets[machine].told() if isinstance(e, Undeliverable)]
        return {(e.icmp_type, e.icmp_code) for e in events if e.local == local}

    def listen(self, machine: str, local: Address) -> None:
        self.puppets[machine].listen(local)
        self.world.run(max_time=0)

    def dial(self, machine: str, local: Address, to: Address) -> int:
        puppet = self.puppets[machine]
        self.dials.append((puppet, puppet.dial(local, to)))
        self.world.run(max_time=SETTLE)
        return len(self.dials) - 1

    def outcome(self, number: int) -> str:
        self.world.run(max_time=SILENCE)
        puppet, handle = self.dials[number]
        if puppet.connected(handle):
            return "open"
        cause = puppet.closed(handle)
        return {
            None: "silence",
            Cause.REFUSED: "rst",
            Cause.RESET: "rst",
            Cause.UNREACHABLE: "icmp",
        }[cause]

    def abandon(self, number: int) -> None:
        puppet, handle = self.dials[number]
        puppet.shut(handle)
        self.world.run(max_time=SETTLE)

    def accepted(self, machine: str, local: Address) -> list[Address]:
        self.world.run(max_time=SETTLE)
        events = self.puppets[machine].accepted()
        return self._fresh("tcp", machine, local, [e.remote for e in events if e.local == local])

    def reset(self, machine: str) -> None:
        for event in self.puppets[machine].accepted():
            self.puppets[machine].shut(event.handle, reset=True)
        self.world.run(max_time=SETTLE)

    def sleep(self, seconds: float) -> None:
        self.world.run(until=self.world.now + round(seconds * SECOND))


class Real(Net):
    def __init__(self, lab: Lab, stack: ExitStack, *, ipv6: bool) -> None:
        super().__init__(ipv6=ipv6)
        self.lab, self.stack = lab, stack
        self.family = socket.AF_INET6 if ipv6 else socket.AF_INET
        self.udp: dict[tuple[str, Address], socket.socket] = {}
        self.listeners: dict[tuple[str, Address], socket.socket] = {}
        self.dials: list[socket.socket] = []
        self.decided: dict[int, str] = {}
        self.connections: dict[str, list[socket.socket]] = {}

    def address(self, machine: str) -> str:
        place = self.lab[machine]
        address = place.ipv6 if self.ipv6 else place.ipv4
        assert address is not None
        return str(address)

    def _socket(self, machine: str, kind: socket.SocketKind, local: Address) -> socket.socket:
        sock = self.stack.enter_context(self.lab[machine].socket(self.family, kind))
        sock.setblocking(False)
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if self.ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
        else:
            sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        sock.bind(local)
        return sock

    def bind(self, machine: str, local: Address) -> None:
        self.udp[machine, local] = self._socket(machine, socket.SOCK_DGRAM, local)

    def send(self, machine: str, local: Address, to: Address) -> None:
        sock = self.udp[machine, local]
        try:
            sock.sendto(b"?", to)
        except OSError:  # an error that came for an earlier datagram is told here
            sock.sendto(b"?", to)

    def close(self, machine: str, local: Address) -> None:
        self.udp.pop((machine, local)).close()

    def take(self, machine: str, local: Address) -> list[Address]:
        sock = self.udp[machine, local]
        senders: list[Address] = []
        until = time.monotonic() + SETTLE
        while (left := until - time.monotonic()) > 0:
            # Every scenario sends one packet at a time, so a second one follows at once or never.
            if not select.select([sock], [], [], 0.002 if senders else left)[0]:
                break
            try:
                _, source = sock.recvfrom(100)
            except OSError:
                time.sleep(0.001)
                continue
            senders.append(Address(source[0], source[1]))
        return senders

    @staticmethod
    def _icmp(sock: socket.socket) -> set[tuple[int, int]]:
        found: set[tuple[int, int]] = set()
        while True:
            try:
                _, ancillary, _, _ = sock.recvmsg(100, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return found
            for _, _, data in ancillary:
                _, origin, kind, code = struct.unpack_from("=IBBB", data)
                if origin in (2, 3):  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6
                    found.add((kind, code))

    def errors(self, machine: str, local: Address) -> set[tuple[int, int]]:
        sock = self.udp[machine, local]
        until = time.monotonic() + SETTLE
        found: set[tuple[int, int]] = set()
        while not found and time.monotonic() < until:
            time.sleep(0.005)
            found = self._icmp(sock)
        return found

    def listen(self, machine: str, local: Address) -> None:
        sock = self._socket(machine, socket.SOCK_STREAM, local)
        sock.listen()
        self.listeners[machine, local] = sock

    def dial(self, machine: str, local: Address, to: Address) -> int:
        sock = self._socket(machine, socket.SOCK_STREAM, local)
        with suppress(BlockingIOError):
            sock.connect(to)
        self.dials.append(sock)
        return len(self.dials) - 1

    def outcome(self, number: int) -> str:
        if number in self.decided:  # the kernel tells an error once
            return self.decided[number]
        sock = self.dials[number]
        if not select.select([], [sock], [], SILENCE)[1]:
            return "silence"
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        said = {0: "open", errno.ECONNREFUSED: "rst", errno.ECONNRESET: "rst"}
        self.decided[number] = "icmp" if self._icmp(sock) else said[code]
        if self.decided[number] == "icmp":
            # The kernel tells of the error and keeps the socket in SYN-SENT; natkit's drivers, like
            # most programs, close it then.
            sock.close()
        return self.decided[number]

    def abandon(self, number: int) -> None:
        self.dials[number].close()
        time.sleep(SETTLE)

    def accepted(self, machine: str, local: Address) -> list[Address]:
        listener = self.listeners[machine, local]
        select.select([listener], [], [], SETTLE)
        peers: list[Address] = []
        while True:
            try:
                sock, source = listener.accept()
            except BlockingIOError:
                return peers
            self.connections.setdefault(machine, []).append(self.stack.enter_context(sock))
            peers.append(Address(source[0], source[1]))

    def reset(self, machine: str) -> None:
        for sock in self.connections.pop(machine, []):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        time.sleep(SETTLE)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


# Scenarios.  Each returns what it saw, without what chance decides. ------------------------------


def ordinals(local: Address, seen: list[Address | None]) -> list[str | None]:
    """Replace addresses by letters in order of appearance; say where a port was preserved."""
    letters: dict[Address, str] = {}
    named: list[str | None] = []
    for address in seen:
        if address is None:
            named.append(None)
            continue
        letter = letters.setdefault(address, chr(ord("a") + len(letters)))
        same_port = " same port" if address.port == local.port else ""
        named.append(f"{letter}{' untouched' if address == local else same_port}")
    return named


def udp_mapping(net: Net) -> object:
    local = net.fresh()
    net.bind(HOST, local)
    order = (*ENDPOINTS, "B:p", "A:p")
    return ordinals(local, [net.seen(local, endpoint) for endpoint in order])


def udp_filtering(net: Net) -> object:
    found = {}
    for stranger in ("A:q", "B:p", "B:q"):
        local = net.fresh()
        net.bind(HOST, local)
        mapped = net.seen(local, "A:p")
        if mapped is None:
            return None
        first = net.passes(stranger, mapped, local)
        # Whether the answer to the stranger leaves by the mapping that he used, and whether he, and
        # others of his address, may come in afterwards.
        answer = net.seen(local, stranger)
        found[stranger] = (
            first,
            answer == mapped,
            answer is not None and net.passes(stranger, answer, local),
            net.passes("A:p", mapped, local),
            net.passes("B:q" if stranger == "B:p" else "B:p", mapped, local),
        )
    return found


def udp_allocation(net: Net) -> object:
    steps = []
    ports = []
    for _ in range(6):
        local = net.fresh()
        net.bind(HOST, local)
        mapped = net.seen(local, "A:p")
        if mapped is None:
            return None
        steps.append(mapped.port - local.port)
        ports.append(mapped.port)
    differences = {b - a for a, b in pairwise(ports)}
    if set(steps) == {0}:
        return "preserved"
    return differences.pop() if len(differences) == 1 else "no pattern"


def udp_poison(net: Net) -> object:
    """A stranger knocks first, then he and another are sent to."""
    local = net.fresh()
    net.bind(HOST, local)
    mapped = net.seen(local, "A:p")
    if mapped is None:
        return None
    knocked = net.passes("B:q", mapped, local)
    errors = net.errors(SERVER, net.at["B:q"])
    others = ordinals(local, [mapped, net.seen(local, "B:p"), net.seen(local, "B:q")])
    return knocked, errors, others


def udp_errors(net: Net) -> object:
    """Closed ports outside and inside, and what is told about them."""
    local = net.fresh()
    net.bind(HOST, local)
    net.send(HOST, local, net.at["A:x"])
    outward = net.errors(HOST, local)
    other = net.fresh()
    net.bind(HOST, other)
    mapped = net.seen(other, "A:q")
    net.close(HOST, other)
    if mapped is None:
        return outward, None
    net.send(SERVER, net.at["A:q"], mapped)
    return outward, net.errors(SERVER, net.at["A:q"])


def udp_hairpin(net: Net) -> object:
    a, b = net.fresh(HOST), net.fresh(NEIGHBOUR)
    net.bind(HOST, a)
    net.bind(NEIGHBOUR, b)
    mapped_a, mapped_b = net.seen(a, "A:p"), net.seen(b, "A:p", NEIGHBOUR)
    if mapped_a is None or mapped_b is None:
        return None
    names = {a: "internal", mapped_a: "external", b: "internal", mapped_b: "external"}
    net.send(NEIGHBOUR, b, mapped_a)
    first = [names.get(source, "other") for source in net.take(HOST, a)]
    net.send(HOST, a, mapped_b)
    second = [names.get(source, "other") for source in net.take(NEIGHBOUR, b)]
    return first, second


def udp_same_port_twice(net: Net) -> object:
    """Two hosts with the same port ask the same server; both must get their answers."""
    net.bind(HOST, a := net.fresh(HOST))
    net.bind(NEIGHBOUR, b := Address(net.address(NEIGHBOUR), a.port))
    mapped_a, mapped_b = net.seen(a, "A:p"), net.seen(b, "A:p", NEIGHBOUR)
    if mapped_a is None or mapped_b is None:
        return None
    return (
        mapped_a == mapped_b,
        net.passes("A:p", mapped_a, a),
        net.passes("A:p", mapped_b, b, NEIGHBOUR),
    )


def tcp_mapping(net: Net) -> object:
    local = net.fresh()
    seen: list[Address | None] = []
    for endpoint in ENDPOINTS:
        number = net.dial(HOST, local, net.at[endpoint])
        if net.outcome(number) != "open":
            seen.append(None)
            continue
        seen += net.accepted(SERVER, net.at[endpoint])
    return ordinals(local, seen)


def tcp_filtering(net: Net) -> object:
    found = {}
    for stranger in ("A:x", "B:x"):
        local = net.fresh()
        number = net.dial(HOST, local, net.at["A:p"])
        if net.outcome(number) != "open":
            return net.outcome(number)
        [mapped] = net.accepted(SERVER, net.at["A:p"])
        uninvited = net.dial(SERVER, net.at[stranger], mapped)
        unheard = net.outcome(uninvited)
        net.abandon(uninvited)
        net.listen(HOST, local)
        found[stranger] = unheard, net.outcome(net.dial(SERVER, net.at[stranger], mapped))
    return found


def tcp_refusal(net: Net) -> object:
    """A refused dial, then another one from the same port: is the mapping still the same?"""
    local = net.fresh()
    refused = net.outcome(net.dial(HOST, local, net.at["A:x"]))
    first = net.outcome(net.dial(HOST, local, net.at["A:p"]))
    second = net.outcome(net.dial(HOST, local, net.at["A:q"]))
    peers = [
        *net.accepted(SERVER, net.at["A:p"]),
        *net.accepted(SERVER, net.at["A:q"]),
    ]
    return refused, first, second, ordinals(local, list(peers))


def tcp_simultaneous_open(net: Net) -> object:
    """The server dials first, into the filter; then the host dials the server's endpoint."""
    local = net.fresh()
    if net.outcome(net.dial(HOST, local, net.at["A:p"])) != "open":
        return None
    [mapped] = net.accepted(SERVER, net.at["A:p"])
    theirs = net.dial(SERVER, net.at["A:s"], mapped)
    early = net.outcome(theirs)
    ours = net.dial(HOST, local, net.at["A:s"])
    # A side whose dial has failed holds no socket any more, so the host's outcome is final.
    return early, net.outcome(ours), net.outcome(theirs)


def tcp_after_reset(net: Net) -> object:
    """Whether the peer of a connection that was reset may come in again."""
    local = net.fresh()
    net.listen(HOST, local)
    if net.outcome(net.dial(HOST, local, net.at["B:q"])) != "open":
        return None
    [mapped] = net.accepted(SERVER, net.at["B:q"])
    net.reset(SERVER)
    return net.outcome(net.dial(SERVER, net.at["B:q"], mapped))


SCENARIOS: tuple[Callable[[Net], object], ...] = (
    udp_mapping,
    udp_filtering,
    udp_allocation,
    udp_poison,
    udp_errors,
    udp_hairpin,
    udp_same_port_twice,
    tcp_mapping,
    tcp_filtering,
    tcp_refusal,
    tcp_simultaneous_open,
    tcp_after_reset,
)


def prepare(net: Net) -> None:
    for endpoint in ENDPOINTS:
        net.bind(SERVER, net.at[endpoint])
        net.listen(SERVER, net.at[endpoint])


@contextmanager
def kernel(which: Kind, *, ipv6: bool) -> Iterator[Net]:
    lab = Lab.nat(
        which, hosts=(HOST, NEIGHBOUR), server_command=(), ipv6="nat" if ipv6 else "off", seed=1
    )
    with lab, ExitStack() as stack:
        net = Real(lab, stack, ipv6=ipv6)
        prepare(net)
        yield net


def simulator(which: Kind, *, ipv6: bool) -> Net:
    net = Simulated(which, ipv6=ipv6)
    prepare(net)
    return net


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("which", KINDS, ids=lambda k: k.name)
def test_both_worlds_agree(which: Kind, family: str) -> None:
    ipv6 = family == "ipv6"
    model = simulator(which, ipv6=ipv6)
    with kernel(which, ipv6=ipv6) as net:
        for scenario in SCENARIOS:
            found = scenario(net)
            predicted = scenario(model)
            assert predicted == found, f"{scenario.__name__}: simulated, then real"


def test_lifetimes_agree() -> None:
    """One shot and stream, in real seconds: the shortest that leave room for a busy machine."""
    model = NatModel(
        filtering=Filtering.ENDPOINT_INDEPENDENT,
        lifetimes=Lifetimes(udp_one_shot=2.0, udp_stream=5.0),
    )
    which = Kind("short-lived", "", (model,))

    def scenario(net: Net) -> object:
        shot, stream = net.fresh(), net.fresh()
        seen = {}
        for local in (shot, stream):
            net.bind(HOST, local)
            seen[local] = net.seen(local, "A:p")
        found = []
        for _ in range(5):  # both ways for over two seconds
            net.sleep(0.5)
            mapped = seen[stream]
            assert mapped is not None
            found.append(net.passes("A:p", mapped, stream))
            found.append(net.seen(stream, "A:p") == mapped)
        for mapped, local in ((seen[shot], shot), (seen[stream], stream)):
            assert mapped is not None
            found.append(net.passes("A:p", mapped, local))
        net.sleep(3.5)
        mapped = seen[stream]
        assert mapped is not None
        found.append(net.passes("B:q", mapped, stream))
        net.sleep(5.7)
        found.append(net.passes("A:p", mapped, stream))
        return found

    predicted = scenario(simulator(which, ipv6=False))
    assert predicted == [True] * 10 + [False, True, True, False]
    with kernel(which, ipv6=False) as net:
        assert scenario(net) == predicted


def main() -> None:
    """Print what each world says of the kinds named on the command line."""
    for name in sys.argv[1:]:
        which = next(k for k in KINDS if k.name == name)
        with kernel(which, ipv6=False) as net:
            model = simulator(which, ipv6=False)
            for scenario in SCENARIOS:
                print(name, scenario.__name__)
                print("  simulated", scenario(model))
                print("  real     ", scenario(net))


if __name__ == "__main__":
    main()
