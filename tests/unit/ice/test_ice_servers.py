"""What a program calls a server."""

from __future__ import annotations

import pytest

from ice.config import Server
from ice.servers import IceServer, Wanted, as_wanted, look_up
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.errors import UsageError
from stun.sansio import Address
from stun.uri import StunUri, TurnUri

USER = LongTerm("user", "pass")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stun:192.0.2.1", [(3478, Transport.UDP)]),
        ("192.0.2.1:5000", [(5000, Transport.UDP)]),
        ("turn:192.0.2.1?transport=udp", [(3478, Transport.UDP)]),
        ("turn:192.0.2.1:80?transport=tcp", [(80, Transport.TCP)]),
        (
            "turn:192.0.2.1",
            [
                (3478, Transport.UDP),
                (3478, Transport.TCP),
                (5349, Transport.DTLS),
                (5349, Transport.TLS),
            ],
        ),
        ("turns:192.0.2.1?transport=udp", [(5349, Transport.DTLS)]),
    ],
)
def test_an_address_needs_no_lookup(text: str, expected: list[tuple[int, Transport]]) -> None:
    wanted = as_wanted(text, USER)
    assert isinstance(wanted, Wanted)
    assert wanted.is_numeric
    found = wanted.found()
    assert [(t.address.port, t.transport) for t in found.targets] == expected
    assert found.turn is text.startswith("turn")
    assert found.credentials == (USER if found.turn else None)


def test_a_name_does() -> None:
    wanted = as_wanted("stun:stun.example", None)
    assert wanted == Wanted(StunUri("stun.example"), None)
    assert isinstance(wanted, Wanted)
    assert not wanted.is_numeric
    target = Target(Address("192.0.2.1", 3478), Transport.UDP)
    assert wanted.found([target]) == Server("stun:stun.example", (target,))


def test_credentials_of_its_own() -> None:
    own = as_wanted(IceServer("turn:relay.example", "me", "secret"), USER)
    shared = as_wanted(IceServer("turn:relay.example"), USER)
    assert isinstance(own, Wanted)
    assert isinstance(shared, Wanted)
    assert own.credentials == LongTerm("me", "secret")
    assert shared.credentials == USER
    with pytest.raises(UsageError, match=r"IceServer\('turn:relay.example', username="):
        as_wanted(TurnUri("relay.example"), None)
    with pytest.raises(UsageError, match="a username and a password"):
        as_wanted(IceServer("turn:relay.example", "me"), None)


def test_what_has_been_looked_up_stays() -> None:
    server = Server("mine", ())
    assert as_wanted(server, None) is server


async def test_looking_up(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(Address("192.0.2.1", 3478), Transport.UDP)

    async def resolve(uri: TurnUri, supported: tuple[Transport, ...]) -> list[Target]:
        assert uri.host == "relay.example"
        assert set(supported) == set(Transport)
        return [target]

    monkeypatch.setattr("stun.resolver.resolve_async", resolve)
    found = await look_up(Wanted(TurnUri("relay.example"), USER))
    assert found == Server("turn:relay.example", (target,), turn=True, credentials=USER)
