"""What turnd says to whoever started it: where it serves, how to try it, what to do about failures.

Pure: values in, lines out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from stun.discovery import Transport
from stun.sansio import Address, Cause
from stun.uri import parse_server
from turn.daemon.plan import Credential, Plan, turn_uris
from turn.server.config import ListenAt, RelayAddress
from turn.server.events import CannotServe, Serving

if TYPE_CHECKING:
    from rich.console import Console

MOST_URIS = 6
"""URIs that are printed; a machine with many addresses has many more."""


def advise(failures: Iterable[CannotServe], passing: Collection[Address] = ()) -> list[str]:
    """Say what is wrong with listeners that could not be had, and what to do.

    ``passing``: those that a wildcard stands for.  A port that some program has, it has at most of
    its addresses, which is one thing to say.
    """
    groups: dict[tuple[Cause, int, str], list[CannotServe]] = {}
    for failure in failures:
        where = "" if failure.local in passing else str(failure.local)
        groups.setdefault((failure.cause, failure.local.port, where), []).append(failure)
    return list(dict.fromkeys(_advice(group, passing) for group in groups.values()))


def _advice(failures: Sequence[CannotServe], passing: Collection[Address]) -> str:
    failure = failures[0]
    where, transport = failure.local, failure.transport
    scheme = transport.value.lower()
    match failure.cause:
        case Cause.ADDRESS_NOT_AVAILABLE:
            return (
                f"{where.host} is not an address of this machine; `ip address` lists those that "
                f"are. Behind a one-to-one NAT, listen at the local address: "
                f"--listen {scheme}://LOCAL:{where.port}?advertise={where.host}"
            )
        case Cause.ADDRESS_IN_USE:
            kinds = sorted({one.transport.protocol for one in failures}, reverse=True)
            hosts = list(dict.fromkeys(one.local.host for one in failures))
            host = "*" if where in passing else str(where).rpartition(":")[0]
            return (
                f"port {where.port} of {' and '.join(kind.upper() for kind in kinds)} is in use at "
                f"{', '.join(hosts)}; `ss -lpn {' '.join(f'--{kind}' for kind in kinds)} sport = "
                f":{where.port}` names the program. Stop it, or choose another port: "
                f"--listen {scheme}://{host}:PORT"
            )
        case Cause.NOT_PERMITTED:
            return (
                f"not permitted to bind {where}; ports below 1024 need root or "
                "CAP_NET_BIND_SERVICE (`AmbientCapabilities=` of systemd, `setcap`), TURN's own "
                "port 3478 does not"
            )
        case _:
            detail = failure.detail or failure.cause.value
            return f"cannot listen at {scheme}://{where}: {detail}"


def relay_advice(relay: RelayAddress, problem: OSError) -> str:
    """Say what is wrong with a host to relay from."""
    host, public = relay.local, relay.advertised
    text = (
        f"cannot relay from {host}: {problem.strerror or problem}; `ip address` lists this "
        "machine's addresses"
    )
    if host == public:
        return f"{text}. Behind a one-to-one NAT write --relay-address LOCAL={host}"
    return f"{text}, of which one goes before the = of {host}={public}"


def alternate_advice(host: str, problem: OSError) -> str:
    """Say what is wrong with the second address of behaviour discovery."""
    return (
        f"--alternate-address {host} cannot be served: {problem.strerror or problem}; it must be "
        "a second address of this machine (`ip address` lists them) that reaches the internet as "
        "itself"
    )


def ports_advice(host: str, ports: tuple[int, int]) -> str:
    """Say that no port to relay from is free."""
    low, high = ports
    return (
        f"no port from {low} to {high} is free at {host} for relaying; `ss -uan src {host}` names "
        "what has them. Give another range with --relay-ports LO-HI"
    )


def where_it_serves(serving: Sequence[Serving]) -> Iterator[str]:
    """Say where clients come to, a line a transport."""
    for transport in Transport:
        places = [str(place.local) for place in serving if place.transport is transport]
        if places:
            yield f"serving {transport.value} at {', '.join(places)}"


def what_it_relays(plan: Plan) -> str:
    """Say which addresses peers will see."""
    low, high = plan.config.ports
    hosts = [
        relay.local if relay.local == relay.advertised else f"{relay.local} (as {relay.advertised})"
        for relay in plan.config.relays
    ]
    return f"relaying from {', '.join(hosts)}, ports {low} to {high}"


def try_lines(listeners: Iterable[ListenAt], user: Credential, names: tuple[str, ...]) -> list[str]:
    """Return commands that test the server from another machine."""
    plain = [at for at in listeners if at.transport is Transport.UDP]
    if not plain:
        return []
    uri = turn_uris(plain, names)[0]
    seen = next(
        seen
        for seen in ((at.advertised or at.local) for at in plain)
        if turn_uris([ListenAt(Transport.UDP, seen)])[0] == uri
    )
    return [
        f"turnd check '{uri}' --user {user.username}:{user.password}",
        f"turnutils_uclient -y -c -n 10 -u {user.username} -w {user.password} "
        f"-p {seen.port} {seen.host}",
    ]


def meet(rendezvous: Sequence[str], plan: Plan, names: tuple[str, ...]) -> str:
    """Return the option by which clients of a rendezvous find it from another machine."""
    url = rendezvous[0]
    if "//*" in url:
        uris = turn_uris(plan.config.listeners, names)
        host = parse_server(uris[0]).host if uris else "HOST"
        if url.startswith("wss:"):  # whose certificate has names
            host = next((name for name in names if not name.startswith("*")), host)
        url = url.replace("*", f"[{host}]" if ":" in host else host)
    return f"--rendezvous {url}"


def announce(
    console: Console,
    plan: Plan,
    serving: Sequence[Serving],
    *,
    made_up: Credential | None,
    names: tuple[str, ...] = (),
    rendezvous: Sequence[str] = (),
    dataplane: str = "",
) -> None:
    """Print where turnd serves, how it relays, and with ``made_up`` how to use it."""
    for line in where_it_serves(serving):
        _print(console, line)
    _print(console, what_it_relays(plan))
    if dataplane:
        _print(console, f"relaying {dataplane}")
    if rendezvous:
        _print(console, f"rendezvous at {', '.join(rendezvous)}")
        _print(console, f"two machines meet here by: punch listen {meet(rendezvous, plan, names)}")
    for warning in plan.warnings:
        _print(console, f"warning: {warning}", style="yellow")
    if made_up is None:
        return
    there = {place.local for place in serving}
    listeners = [at for at in plan.config.listeners if at.local in there]
    uris = turn_uris(listeners, names)
    _print(console, "")
    _print(console, "nobody is configured, so one user was made up, until turnd ends:")
    for uri in uris[:MOST_URIS]:
        _print(console, f"  urls        {uri}", style="bold")
    if len(uris) > MOST_URIS:
        _print(console, f"              and {len(uris) - MOST_URIS} more")
    _print(console, f"  username    {made_up.username}", style="bold")
    _print(console, f"  credential  {made_up.password}", style="bold")
    commands = try_lines(listeners, made_up, names)
    if commands:
        _print(console, "")
        _print(console, "try it from another machine:")
        for command in commands:
            _print(console, f"  {command}")
    _print(console, "")


def _print(console: Console, line: str, style: str | None = None) -> None:
    # Not wrapped: what is printed here is copied.
    console.print(line, style=style, soft_wrap=True, highlight=False, markup=False)
