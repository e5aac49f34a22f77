"""What people say to turn.connect."""

from __future__ import annotations

from typing import Any

import pytest

import turn
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.errors import StunError, UsageError
from stun.sansio import Address
from stun.uri import TurnUri
from turn.client.errors import NoRelay
from turn.client.setup import Wanted, as_credentials, as_peer, as_uri, supported

V4 = Target(Address("192.0.2.1", 3478), Transport.TCP)
V6 = Target(Address("2001:db8::1", 3478), Transport.TCP)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("turn:relay.example", TurnUri("relay.example")),
        ("turns:relay.example?transport=udp", TurnUri("relay.example", None, "udp", True)),
        ("relay.example", TurnUri("relay.example")),
        ("relay.example:3479", TurnUri("relay.example", 3479)),
        ("[2001:db8::1]:3479", TurnUri("2001:db8::1", 3479)),
        (TurnUri("relay.example"), TurnUri("relay.example")),
    ],
)
def test_servers(said: str | TurnUri, meant: TurnUri) -> None:
    assert as_uri(said) == meant


@pytest.mark.parametrize("said", ["stun:relay.example", " STUNS:relay.example", "http://x", ""])
def test_what_is_no_relay(said: str) -> None:
    with pytest.raises(UsageError):
        as_uri(said)


def test_transports() -> None:
    assert supported("udp")[0] is Transport.UDP
    # RFC 6062 section 4.1.
    assert [*supported("tcp")] == [Transport.TCP, Transport.TLS]


def test_credentials() -> None:
    user = LongTerm("user", "secret")
    assert as_credentials("user", "secret", None) == user
    assert as_credentials(None, None, user) is user
    assert as_credentials(None, None, None) is None
    for wrong in (("user", None, None), (None, "secret", None), ("user", "secret", user)):
        with pytest.raises(UsageError, match="a username and a password"):
            as_credentials(*wrong)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (("192.0.2.1", 9), Address("192.0.2.1", 9)),
        (Address("2001:DB8:0:0::1", 9), Address("2001:db8::1", 9)),
        # What asyncio and the socket module say of an IPv6 peer.
        (("2001:db8::1", 9, 0, 0), Address("2001:db8::1", 9)),
    ],
)
def test_peers(said: tuple[str, int], meant: Address) -> None:
    assert as_peer(said) == meant


@pytest.mark.parametrize("said", [("name", 9), ("192.0.2.1", -1), ("192.0.2.1", 65536), (), 5])
def test_what_is_no_peer(said: tuple[str, int]) -> None:
    with pytest.raises(UsageError):
        as_peer(said)


def test_a_configuration_for_each_server() -> None:
    wanted = Wanted("turn:relay.example", None, "tcp", None, 5.0, {"lifetime": 700})
    configs = wanted.configs([V4, V6])
    assert [(c.server, c.tcp, c.lifetime) for c in configs] == [(V4, True, 700), (V6, True, 700)]
    local = Address("2001:db8::9", 0)
    wanted = Wanted("turn:relay.example", None, "udp", None, 5.0, {"local": local})
    assert [config.server for config in wanted.configs([V4, V6])] == [V6]
    with pytest.raises(UsageError, match="another address family"):
        wanted.configs([V4])


def test_too_late() -> None:
    wanted = Wanted("turn:relay.example", None, "udp", None, 2.5, {})
    assert str(wanted.too_late([])) == "turn:relay.example gave no relayed address within 2.5 s"
    with_reasons = wanted.too_late([StunError("one failed")])
    assert isinstance(with_reasons, NoRelay)
    assert "one failed" in str(with_reasons)
    assert "TURN server 192.0.2.1:3478 over TCP" in str(Wanted(V4, None, "udp", None, 1, {}))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"protocol": "sctp"}, "protocol='sctp': it is one of 'udp', 'tcp'"),
        ({"family": 5}, "family=5: it is one of None, 4, 6, 'dual'"),
        ({"address_family": "4"}, "address_family='4': it is one of None, 4, 6"),
        ({"local": "192.0.2.7"}, "'192.0.2.7': a peer is"),
        ({"server": "turn:relay.example?transport=udp", "protocol": "tcp"}, "TCP or TLS only"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        turn.connect(**{"server": "relay.example"} | options)


def test_an_option_that_there_is_not_is_named() -> None:
    with pytest.raises(TypeError, match="no argument 'lifetmie'; its options are"):
        turn.connect("relay.example", lifetmie=3)  # type: ignore[call-arg]


def test_a_text_is_no_peer() -> None:
    with pytest.raises(UsageError, match=r"'192\.0\.2\.1': a peer is \(numeric IP address, port\)"):
        as_peer("192.0.2.1")  # type: ignore[arg-type]
