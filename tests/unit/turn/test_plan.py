"""From settings to what is served on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stun.discovery import Transport
from stun.sansio import Address
from turn.daemon.addresses import LocalAddress
from turn.daemon.config import ConfigError, Flags, load
from turn.daemon.plan import Credential, Plan, make_plan, make_tokens, make_users, turn_uris
from turn.server.config import ListenAt, RelayAddress

MACHINE = (
    LocalAddress("127.0.0.1", "lo"),
    LocalAddress("::1", "lo"),
    LocalAddress("198.41.0.4", "eth0"),
    LocalAddress("10.0.0.5", "eth1"),
    LocalAddress("2a00:1450::5", "eth0"),
    LocalAddress("fe80::1%eth0", "eth0"),
)
UDP, TCP, TLS, DTLS = Transport.UDP, Transport.TCP, Transport.TLS, Transport.DTLS


def plan(machine: Any = MACHINE, route: Any = lambda _: None, **tables: Any) -> Plan:
    flags = Flags()
    for path, value in tables.items():
        keys = tuple(path.split("__"))
        if keys == ("listen",):
            value = [{"url": url} for url in value]  # noqa: PLW2901  (what the flag says)
        flags.set(keys, value, f"--{path}")
    return make_plan(load(None, flags), machine, route)


def places(made: Plan) -> list[tuple[str, str]]:
    return [(at.transport.value, str(at.local)) for at in made.config.listeners]


def test_nothing_configured_means_udp_and_tcp_everywhere() -> None:
    made = plan()
    hosts = ("127.0.0.1", "198.41.0.4", "10.0.0.5", "[::1]", "[2a00:1450::5]")
    assert places(made) == [(kind, f"{host}:3478") for kind in ("UDP", "TCP") for host in hosts]
    assert made.config.relays == (
        RelayAddress("198.41.0.4", "198.41.0.4"),
        RelayAddress("2a00:1450::5", "2a00:1450::5"),
    )
    assert not made.warnings
    assert len(made.passing) == 5, "any of them may go"


def test_a_certificate_brings_secure_ports_and_detection(certificate_path: Path) -> None:
    made = plan(machine=MACHINE[:1], relay__addresses=["127.0.0.1"],
                tls__certificate=str(certificate_path))  # fmt: skip
    assert places(made) == [
        ("UDP", "127.0.0.1:3478"),
        ("TCP", "127.0.0.1:3478"),
        ("DTLS", "127.0.0.1:5349"),
        ("TLS", "127.0.0.1:5349"),
    ]
    assert [at.detect for at in made.config.listeners] == [True, True, False, False]


@pytest.fixture
def certificate_path(tmp_path: Path) -> Path:
    return tmp_path / "cert.pem"  # a plan does not open it


def test_named_addresses_go_before_wildcards() -> None:
    made = plan(listen=["udp://0.0.0.0", "udp://10.0.0.5?advertise=203.0.113.9"])
    by_host = {at.local.host: at for at in made.config.listeners}
    assert set(by_host) == {"127.0.0.1", "198.41.0.4", "10.0.0.5"}
    assert by_host["10.0.0.5"].advertised == Address("203.0.113.9", 3478)
    assert Address("10.0.0.5", 3478) not in made.passing


def test_plain_and_secure_at_one_place_are_told_apart_there() -> None:
    made = plan(
        listen=["tcp://10.0.0.5:443", "tls://10.0.0.5:443", "dtls://10.0.0.5:443",
                "udp://10.0.0.5:443"],
        tls__certificate="x",
        tls__detect=False,
    )  # fmt: skip
    assert [(at.transport, at.detect) for at in made.config.listeners] == [(TCP, True), (UDP, True)]


def test_relay_addresses_say_how_listeners_are_seen() -> None:
    made = plan(relay__addresses=["10.0.0.5=203.0.113.5"], listen=["udp://10.0.0.5"])
    assert made.config.listeners[0].advertised == Address("203.0.113.5", 3478)
    assert not made.warnings


def test_two_relay_addresses_are_not_seen_as_one() -> None:
    with pytest.raises(ConfigError, match=r"2 local addresses .* seen as 203\.0\.113\.5"):
        plan(relay__addresses=["10.0.0.5=203.0.113.5", "10.0.0.6=203.0.113.5"])


def test_private_relays_are_warned_of() -> None:
    behind_a_nat = MACHINE[:2] + MACHINE[3:4]
    (warning,) = plan(machine=behind_a_nat, route={4: "10.0.0.5", 6: None}.get).warnings
    assert "relays from 10.0.0.5, which peers on the internet cannot reach" in warning
    assert "--relay-address 10.0.0.5=PUBLIC" in warning
    (warning,) = plan(relay__addresses=["10.0.0.5"]).warnings
    assert "--relay-address 10.0.0.5=PUBLIC" in warning
    # Who opens a private network relays within it.
    assert not plan(relay__addresses=["10.0.0.5"], peers__allow=["10.0.0.0/8"]).warnings


def test_a_machine_may_know_its_public_address_alone() -> None:
    behind_a_nat = MACHINE[:2] + MACHINE[3:4]
    made = plan(
        machine=behind_a_nat,
        route={4: "10.0.0.5", 6: None}.get,
        relay__addresses=["0.0.0.0=203.0.114.7"],
    )
    assert made.config.relays == (RelayAddress("10.0.0.5", "203.0.114.7"),)
    assert not made.warnings
    with pytest.raises(ConfigError, match="no address of that family"):
        plan(machine=behind_a_nat, relay__addresses=["::=2001:db8::1"])


def test_long_realms_are_warned_of() -> None:
    assert not plan(realm="r" * 24).warnings
    (warning,) = plan(realm="r" * 25).warnings
    assert "a 401 is longer than 100" in warning


def test_proxies_are_of_a_port() -> None:
    made = plan(
        listen=["tcp://10.0.0.5:80?proxy=10.0.0.0/8", "udp://10.0.0.5:80", "tcp://10.0.0.5"]
    )
    assert made.proxies == {80: ("10.0.0.0/8",)}
    assert [at.proxied for at in made.config.listeners] == [True, False, False]
    with pytest.raises(ConfigError, match="share the TCP port 80 but not their proxies"):
        plan(listen=["tcp://10.0.0.5:80?proxy=10.0.0.0/8", "tcp://127.0.0.1:80"])


def test_the_servers_own_addresses_are_no_peers() -> None:
    policy = plan(relay__addresses=["198.41.0.4=203.0.114.7"]).config.policy
    for host in ("198.41.0.4", "203.0.114.7", "2a00:1450::5"):
        assert policy.check(host).own, host
        assert not policy.check(host).allowed, host
    # Loopback is denied as it is, and can be opened as the block that it is.
    assert not policy.check("127.0.0.1").allowed
    assert plan(peers__allow=["127.0.0.0/8"]).config.policy.check("127.0.0.1").allowed


def test_an_alternate_address_brings_both_ports_at_both() -> None:
    made = plan(
        listen=["udp://198.41.0.4", "tcp://198.41.0.4"],
        relay__addresses=["198.41.0.4"],
        discovery__alternates=["10.0.0.5"],
    )
    corners = [
        "198.41.0.4:3478", "198.41.0.4:3479", "10.0.0.5:3478", "10.0.0.5:3479",
    ]  # fmt: skip
    assert sorted(places(made)) == sorted((kind, at) for kind in ("UDP", "TCP") for at in corners)
    assert made.config.discovery == ((Address("198.41.0.4", 3478), Address("10.0.0.5", 3479)),)


def test_behind_a_wildcard_the_primary_is_no_loopback_address() -> None:
    made = plan(discovery__alternates=["10.0.0.5"])
    assert made.config.discovery == ((Address("198.41.0.4", 3478), Address("10.0.0.5", 3479)),)


def test_an_alternate_without_a_primary() -> None:
    with pytest.raises(ConfigError, match="no UDP listener of IPv6"):
        plan(listen=["udp://198.41.0.4"], discovery__alternates=["2a00:1450::5"])
    with pytest.raises(ConfigError, match="no UDP listener of IPv4"):
        plan(listen=["udp://198.41.0.4"], discovery__alternates=["198.41.0.4"])


def test_machines_without_addresses() -> None:
    with pytest.raises(ConfigError, match="no address to relay from"):
        plan(machine=())
    with pytest.raises(ConfigError, match="nothing to listen on"):
        plan(machine=(), relay__addresses=["10.0.0.5"], listen=["udp://[::]"])


def test_users_of_every_kind() -> None:
    flags = Flags(users=["ann:secret"])
    flags.set(("auth", "secrets"), ["north"], "--secret")
    users = make_users(load(None, flags), [Credential("made-up", "x")])
    assert [len(users.secrets(name, 100)) for name in ("ann", "made-up", "200:bob", "50:bob")] == [
        1, 1, 1, 0,
    ]  # fmt: skip


def test_tokens() -> None:
    assert make_tokens(load()) is None
    flags = Flags()
    key = {"kid": "north", "key": "A" * 43 + "="}
    flags.set(("auth", "oauth"), {"server_name": "turn.example.org", "keys": [key]}, "--oauth")
    tokens = make_tokens(load(None, flags))
    assert tokens is not None
    assert tokens.server_name == "turn.example.org"


def test_uris_begin_with_what_reaches_furthest() -> None:
    listeners = [
        ListenAt(UDP, Address("127.0.0.1", 3478)),
        ListenAt(TCP, Address("10.0.0.5", 80)),
        ListenAt(UDP, Address("10.0.0.6", 3478), advertised=Address("198.41.0.4", 3478)),
        ListenAt(TLS, Address("2a00:1450::5", 443)),
        ListenAt(DTLS, Address("2a00:1450::5", 5349)),
    ]
    assert turn_uris(listeners) == [
        "turn:198.41.0.4?transport=udp",
        "turns:[2a00:1450::5]:443?transport=tcp",
        "turns:[2a00:1450::5]?transport=udp",
        "turn:10.0.0.5:80?transport=tcp",
        "turn:127.0.0.1?transport=udp",
    ]
    named = turn_uris(listeners, ("*.example.org", "192.0.2.1", "turn.example.org"))
    assert named[1] == "turns:turn.example.org:443?transport=tcp"


def test_plans_of_the_same_are_the_same() -> None:
    assert plan() == plan()
    assert plan().config == plan().config
