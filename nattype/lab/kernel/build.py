"""Turns a plan into namespaces, interfaces, routes and rules.

Programs are the expensive part (some milliseconds each), so there is one ``ip`` for all cables, one
``ip`` for each machine and one ``nft`` for each box, side by side, and no program at all where a
system call or a file does: namespaces, sysctls, offloads, the emptying of conntrack.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from nattype.lab.kernel.errors import LabError, NotPermitted
from nattype.lab.kernel.namespaces import inside, new_network
from nattype.lab.kernel.remedies import tool
from nattype.lab.kernel.topology import WIRE, Cable, Interface, Namespace, Plan
from nattype.model import Link

_SIOCGIFFLAGS, _SIOCETHTOOL = 0x8913, 0x8946
_IFF_RUNNING = 0x40
_ETHTOOL_GLINK = 0x0A
_RTF_LOCAL = 0x80000000
_ETHTOOL_SET = {"tx-checksum": 0x17, "scatter": 0x19, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}
_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_CTNETLINK, _IPCTNL_MSG_CT_DELETE = 1, 2
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4

_SYSCTLS = {
    # Packets are to take the paths of the plan, also where the way back is another one.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    # Every refused SYN is to be told so, not one a second.
    "net/ipv4/icmp_ratelimit": "0",
    "net/ipv6/icmp/ratelimit": "0",
    # Addresses are usable at once, and nobody invents further ones.
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/dad_transmits": "0",
    "net/ipv6/conf/all/accept_ra": "0",
    "net/ipv6/conf/default/accept_ra": "0",
}
_FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
_BRIDGED = {
    f"net/bridge/bridge-nf-call-{what}": "0" for what in ("iptables", "ip6tables", "arptables")
}


class Builder:
    """Builds one laboratory inside the private mount namespace that this process is in."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ip, self._nft = tool("ip"), tool("nft")
        with_ipv6 = any(":" in a for i in plan.interfaces for a in i.addresses)
        if with_ipv6 and not Path("/proc/sys/net/ipv6").is_dir():
            raise NotPermitted("this kernel has no IPv6: build the laboratory without (--no-ipv6)")
        self.networks: dict[str, int] = {}
        """Descriptors of the network namespaces by machine."""

    def cables(self) -> None:
        """Make all machines and plug in all cables.  Raises ``LabError``."""
        names = list(self._plan.namespaces)
        if any(cable.wired for cable in self._plan.cables):
            names.append(WIRE)
        for name in names:
            self.networks[name] = new_network(name)
            _sysctls(_SYSCTLS)
            if name == WIRE:
                _sysctls({"net/ipv6/conf/default/disable_ipv6": "1"})
            elif self._plan.namespaces[name].forwards:
                _sysctls(_FORWARDING)
                if any(bridge.namespace == name for bridge in self._plan.bridges):
                    _sysctls(_BRIDGED, missing_ok=True)
        self._run([(None, [self._ip, "-batch", "-"], "\n".join(self._cable_lines()) + "\n")])

    def machines(self, *names: str) -> None:
        """Give these machines (all, when none is named) their addresses, routes and rules."""
        chosen = names or tuple(self._plan.namespaces)
        jobs: list[tuple[str | None, list[str], str]] = []
        for name in chosen:
            namespace = self._plan.namespaces[name]
            jobs += [(name, [self._nft, "-f", "-"], script) for script in namespace.rules]
            lines = "\n".join(self._machine_lines(namespace))
            jobs.append((name, [self._ip, "-batch", "-"], lines + "\n"))
        self._run(jobs)
        for name in chosen:
            lifetimes = self._plan.namespaces[name].lifetimes
            if lifetimes is not None:
                with inside(self.networks[name]):
                    # These files exist only once the rules have called for conntrack.
                    _sysctls(
                        {
                            "net/netfilter/nf_conntrack_udp_timeout": _ceil(lifetimes.udp_one_shot),
                            "net/netfilter/nf_conntrack_udp_timeout_stream": _ceil(
                                max(lifetimes.udp_stream, lifetimes.udp_one_shot)
                            ),
                            "net/netfilter/nf_conntrack_tcp_timeout_established": _ceil(
                                lifetimes.tcp_established
                            ),
                            # As home routers do: sequence windows are the endpoints' business.
                            "net/netfilter/nf_conntrack_tcp_be_liberal": "1",
                        },
                        missing_ok=True,
                    )

    def nft(self, machine: str, script: str) -> None:
        """Run an nft script on a machine.  Raises ``LabError``."""
        self._run([(machine, [self._nft, "-f", "-"], script)])

    def await_ready(self) -> None:
        """Wait until every interface carries packets and every address is answered for.

        The kernel finishes both some time after it was asked, and until then drops packets: an
        interface that was up before its peer, an IPv6 address that has no local route yet.  Raises
        ``LabError``.
        """
        deadline = time.monotonic() + 5
        for machine, descriptor in self.networks.items():
            interfaces = [i for i in self._plan.interfaces if i.namespace == machine]
            names = [interface.name for interface in interfaces]
            if machine == WIRE:
                names = [name for left, right, _ in self._wires() for name in (left, right)]
            addresses = {
                socket.inet_pton(socket.AF_INET6, address.partition("/")[0]).hex()
                for interface in interfaces
                for address in interface.addresses
                if ":" in address
            }
            with inside(descriptor):
                while not (all(map(_carries, names)) and addresses <= _local_routes()):
                    if time.monotonic() > deadline:
                        raise LabError(f"the interfaces of {machine} stay down")
                    time.sleep(0.0005)

    def _wires(self) -> list[tuple[str, str, Link]]:
        return [
            (f"l{index}", f"r{index}", cable.link)
            for index, cable in enumerate(self._plan.cables)
            if cable.wired
        ]

    def lay_wire(self) -> list[tuple[str, str, Link]]:
        """Prepare the wire's ends; return the pairs between which it carries packets, and how."""
        wires = self._wires()
        inner = [name for left, right, _ in wires for name in (left, right)]
        for cable in self._plan.cables:
            if cable.wired:
                for end in (cable.left, cable.right):
                    with inside(self.networks[end.namespace]):
                        offloads_off(end.name)
        with inside(self.networks[WIRE]):
            for name in inner:
                offloads_off(name)
        lines = "".join(f"link set {name} up\n" for name in inner)
        self._run([(WIRE, [self._ip, "-batch", "-"], lines)])
        return wires

    def _cable_lines(self) -> Iterable[str]:
        for index, cable in enumerate(self._plan.cables):
            left, right = cable.left, cable.right
            if cable.wired:
                yield _veth(left, Interface(WIRE, f"l{index}", "", mtu=left.mtu), 4 * index)
                yield _veth(right, Interface(WIRE, f"r{index}", "", mtu=right.mtu), 4 * index + 2)
            else:
                yield _veth(left, right, 4 * index)

    def _machine_lines(self, namespace: Namespace) -> Iterable[str]:
        name = namespace.name
        yield "link set lo up"
        bridges = [bridge for bridge in self._plan.bridges if bridge.namespace == name]
        for bridge in bridges:
            yield f"link add {bridge.interface.name} address {bridge.interface.mac} type bridge"
        interfaces = [i for i in self._plan.interfaces if i.namespace == name]
        for interface in interfaces:
            for address in interface.addresses:
                nodad = " nodad" if ":" in address else ""
                yield f"addr add {address} dev {interface.name}{nodad}"
        for bridge in bridges:
            for port in bridge.ports:
                yield f"link set {port} master {bridge.interface.name}"
        for interface in interfaces:
            yield f"link set {interface.name} up"
        for cable in self._plan.cables:
            yield from self._neighbours(name, cable)
        for prefix, gateway in namespace.routes:
            yield f"route add {prefix} via {gateway}"

    def _neighbours(self, name: str, cable: Cable) -> Iterable[str]:
        """Know the other end's address beforehand: no first packet waits for ARP."""
        for here, there in ((cable.left, cable.right), (cable.right, cable.left)):
            if here.namespace == name and here.addresses:
                for address in there.addresses:
                    host = address.partition("/")[0]
                    yield f"neigh add {host} lladdr {there.mac} dev {here.name} nud permanent"

    def _run(self, jobs: list[tuple[str | None, list[str], str]]) -> None:
        running = []
        for machine, args, script in jobs:
            place = inside(self.networks[machine]) if machine else contextlib.nullcontext()
            with place:
                process = subprocess.Popen(
                    args,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            running.append((f"{args[0]} on {machine}", process, script))
        failures = []
        for what, process, script in running:
            output, _ = process.communicate(script)
            if process.returncode:
                failures.append(f"{what}: {output[:600].strip()}")
        if failures:
            raise LabError("\n".join(failures))


def _veth(left: Interface, right: Interface, number: int) -> str:
    # The kernel reports the carrier of a veth at once only if its index differs from its peer's;
    # otherwise (index 2 on both machines) the link stays dead for up to a second.
    def end(interface: Interface, index: int) -> str:
        mac = f" address {interface.mac}" if interface.mac else ""
        place = f"netns {interface.namespace} mtu {interface.mtu}{mac}"
        return f"name {interface.name} index {index} {place}"

    return f"link add {end(left, 10 + number)} type veth peer {end(right, 11 + number)}"


def _ceil(seconds: float) -> str:
    return str(max(1, round(seconds)))


def _sysctls(settings: dict[str, str], *, missing_ok: bool = False) -> None:
    """Set sysctls of the network namespace that this process is in."""
    for key, value in settings.items():
        try:
            Path("/proc/sys", key).write_text(value)
        except FileNotFoundError:
            # A machine without IPv6, or without conntrack's files, still makes a laboratory.
            if not missing_ok and "/ipv4/" in key:
                raise


def offloads_off(interface: str) -> None:
    """Switch off what a network card would do to packets: checksums, joining, splitting.

    A packet with its checksum left to the card, as veth passes it on, would leave a user-space wire
    with a wrong one.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in _ETHTOOL_SET.values():
            with contextlib.suppress(OSError):
                _ethtool(sock, interface, command)


def _carries(interface: str) -> bool:
    """Whether the interface, and what the kernel still has to do for it, is up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # New kernels finish that work on this very question.
        _ethtool(sock, interface, _ETHTOOL_GLINK)
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16s24x", interface.encode()))
        if not struct.unpack_from("=H", answer, 16)[0] & _IFF_RUNNING:
            return False
        # Others set the flag first, both under one lock, which asking again waits for.
        _ethtool(sock, interface, _ETHTOOL_GLINK)
        return True


def _local_routes() -> set[str]:
    """Return the IPv6 addresses, in hex, that this machine takes packets for."""
    try:
        lines = Path("/proc/net/ipv6_route").read_text().splitlines()
    except FileNotFoundError:
        return set()
    fields = [line.split() for line in lines]
    return {f[0] for f in fields if f[1] == "80" and int(f[8], 16) & _RTF_LOCAL}


def _ethtool(sock: socket.socket, interface: str, command: int) -> None:
    value = array.array("B", struct.pack("=II", command, 0))
    request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])
    fcntl.ioctl(sock, _SIOCETHTOOL, request)


def flush_conntrack() -> None:
    """Empty conntrack in the network namespace that this process is in.  Raises ``OSError``."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        kind = _NFNL_SUBSYS_CTNETLINK << 8 | _IPCTNL_MSG_CT_DELETE
        # struct nlmsghdr, then struct nfgenmsg: family 0 (all), version 0.
        sock.send(struct.pack("=IHHIIBBH", 20, kind, _NLM_F_REQUEST | _NLM_F_ACK, 1, 0, 0, 0, 0))
        answer = sock.recv(4096)
        code = struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise OSError(-code, f"conntrack: {os.strerror(-code)}")
