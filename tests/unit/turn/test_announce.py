"""What turnd says to whoever started it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stun.discovery import Transport
from stun.sansio import Address, Cause
from turn.daemon.addresses import LocalAddress
from turn.daemon.announce import (
    MOST_URIS,
    advise,
    alternate_advice,
    announce,
    ports_advice,
    relay_advice,
)
from turn.daemon.config import Flags, load
from turn.daemon.plan import Credential, Plan, make_plan
from turn.server.config import RelayAddress
from turn.server.events import CannotServe, Serving

MACHINE = (LocalAddress("127.0.0.1", "lo"), LocalAddress("10.0.0.5", "eth0"))
UDP, TCP, TLS = Transport.UDP, Transport.TCP, Transport.TLS


def failure(
    cause: Cause, host: str = "10.0.0.5", transport: Transport = UDP, port: int = 3478
) -> CannotServe:
    return CannotServe(transport, Address(host, port), cause, "detail of the system")


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (Cause.ADDRESS_IN_USE, ["port 3478 of UDP is in use at 10.0.0.5", "`ss -lpn --udp sport = :"
         "3478`", "--listen udp://10.0.0.5:PORT"]),
        (Cause.ADDRESS_NOT_AVAILABLE, ["10.0.0.5 is not an address of this machine",
         "`ip address`", "--listen udp://LOCAL:3478?advertise=10.0.0.5"]),
        (Cause.NOT_PERMITTED, ["not permitted to bind 10.0.0.5:3478", "CAP_NET_BIND_SERVICE"]),
        (Cause.OTHER, ["cannot listen at udp://10.0.0.5:3478: detail of the system"]),
    ],
)  # fmt: skip
def test_failures_say_what_to_do(cause: Cause, words: list[str]) -> None:
    (line,) = advise([failure(cause)])
    for word in words:
        assert word in line


def test_a_port_in_use_behind_a_wildcard_is_one_thing_to_say() -> None:
    failures = [
        failure(Cause.ADDRESS_IN_USE, host, transport)
        for transport in (UDP, TCP)
        for host in ("127.0.0.1", "10.0.0.5")
    ]
    (line,) = advise(failures, {one.local for one in failures})
    assert "port 3478 of UDP and TCP is in use at 127.0.0.1, 10.0.0.5" in line
    assert "--listen udp://*:PORT" in line
    assert len(advise(failures)) == 2, "places that were named are told apart"


def test_ipv6_is_written_in_brackets() -> None:
    (line,) = advise([failure(Cause.ADDRESS_IN_USE, "2001:db8::1", TCP)])
    assert "--listen tcp://[2001:db8::1]:PORT" in line


def test_relay_failures_say_what_to_do() -> None:
    problem = OSError(99, "Cannot assign requested address")
    text = relay_advice(RelayAddress("203.0.113.5", "203.0.113.5"), problem)
    assert "--relay-address LOCAL=203.0.113.5" in text
    text = relay_advice(RelayAddress("10.0.0.9", "203.0.113.5"), problem)
    assert "LOCAL=" not in text, "it is written so already, with a wrong one"
    assert "before the = of 10.0.0.9=203.0.113.5" in text
    assert "--alternate-address 192.0.2.9 cannot" in alternate_advice("192.0.2.9", problem)
    assert "--relay-ports LO-HI" in ports_advice("10.0.0.5", (50000, 50001))


def announced(made: Plan, made_up: Credential | None, names: tuple[str, ...] = ()) -> str:
    out = io.StringIO()
    serving = [Serving(at.transport, at.local) for at in made.config.listeners]
    announce(Console(file=out, width=40), made, serving, made_up=made_up, names=names)
    return out.getvalue()


def plan(*urls: str) -> Plan:
    flags = Flags()
    if urls:
        flags.set(("listen",), [{"url": url} for url in urls], "--listen")
    return make_plan(load(None, flags), MACHINE, {4: "10.0.0.5", 6: None}.get)


def test_the_made_up_user_can_be_copied() -> None:
    text = announced(plan(), Credential("user-1", "pass"))
    lines = [line.strip() for line in text.splitlines()]
    assert lines[:3] == [
        "serving UDP at 127.0.0.1:3478, 10.0.0.5:3478",
        "serving TCP at 127.0.0.1:3478, 10.0.0.5:3478",
        "relaying from 10.0.0.5, ports 49152 to 65535",
    ]
    assert "urls        turn:10.0.0.5?transport=udp" in lines
    assert "username    user-1" in lines
    assert "credential  pass" in lines
    assert "turnd check 'turn:10.0.0.5?transport=udp' --user user-1:pass" in lines
    assert "turnutils_uclient -y -c -n 10 -u user-1 -w pass -p 3478 10.0.0.5" in lines
    assert any(line.startswith("warning: relays from 10.0.0.5") for line in lines)


@pytest.mark.parametrize(
    ("url", "names", "shown"),
    [
        ("ws://*:8080", (), "ws://10.0.0.5:8080"),
        ("wss://*:443", ("relay.example",), "wss://relay.example:443"),
        ("ws://[2001:db8::7]:8080", (), "ws://[2001:db8::7]:8080"),
    ],
)
def test_how_to_meet_at_the_rendezvous(url: str, names: tuple[str, ...], shown: str) -> None:
    out = io.StringIO()
    made = plan("udp://*")
    announce(Console(file=out, width=40), made, [], made_up=None, names=names, rendezvous=[url])
    assert f"rendezvous at {url}\n" in out.getvalue()
    assert f"two machines meet here by: punch listen --rendezvous {shown}\n" in out.getvalue()


@pytest.mark.parametrize("how", ["in the kernel, at eth0", "with sockets: it needs Linux 6.6"])
def test_how_it_relays_is_said(how: str) -> None:
    out = io.StringIO()
    announce(Console(file=out, width=40), plan(), [], made_up=None, dataplane=how)
    assert f"relaying {how}\n" in out.getvalue()


def test_configured_users_are_not_shown() -> None:
    text = announced(plan(), None)
    assert "serving UDP" in text
    assert "user" not in text


def test_many_addresses_are_cut_short() -> None:
    text = announced(plan(*(f"udp://10.0.0.5:{5000 + n}" for n in range(10))), Credential("u", "p"))
    assert text.count("turn:10.0.0.5:") == MOST_URIS + 1  # and the one to try
    assert "and 4 more" in text


def test_without_udp_there_is_nothing_to_try() -> None:
    text = announced(plan("tcp://10.0.0.5"), Credential("u", "p"))
    assert "turnutils_uclient" not in text
    assert "turn:10.0.0.5?transport=tcp" in text
