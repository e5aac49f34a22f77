"""300 (Try Alternate): followed, but not in circles and not for just anybody."""

from __future__ import annotations

import random

import pytest

from stun.attributes import ALTERNATE_DOMAIN, ALTERNATE_SERVER
from stun.discovery import Target, Transport
from stun.outcome import TryAlternate
from stun.registry import Method
from stun.sansio import SECOND, Address, Dial
from tools.clientdesk import SERVER, Desk, error
from turn.client.errors import RedirectRefused
from turn.client.events import Allocated, Failed, Redirected
from turn.client.redirect import Redirects

NEXT = Address("192.0.2.2", 3478)
THIRD = Address("192.0.2.3", 3478)


def to(*servers: Address, domain: str | None = None, prove: bool = True) -> object:
    attributes: list[tuple[object, object]] = [(ALTERNATE_SERVER, server) for server in servers]
    if domain is not None:
        attributes.append((ALTERNATE_DOMAIN, domain))
    return error(300, prove=prove, attributes=attributes)


def desk_with(rng: random.Random, *answers: object, **options: object) -> Desk:
    desk = Desk(rng, **options)  # type: ignore[arg-type]
    desk.script(Method.ALLOCATE, *answers)  # type: ignore[arg-type]
    return desk.allocate()


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_it_is_followed(rng: random.Random, transport: Transport) -> None:
    desk = desk_with(rng, to(NEXT), transport=transport)
    there = Target(NEXT, transport)
    assert desk.last(Redirected) == Redirected(Target(SERVER, transport), there)
    assert desk.last(Allocated).server == there
    assert len(desk.open) == 1


def test_before_any_challenge_it_needs_no_proof(rng: random.Random) -> None:
    desk = Desk(rng)
    desk.key, key = b"", desk.key
    desk.script(Method.ALLOCATE, to(NEXT, prove=False))  # type: ignore[arg-type]
    desk.client.allocate(desk.now)
    # The next server asks for credentials.
    while not desk.told(Redirected):
        desk.run()
        desk.key = key
    assert desk.last(Allocated).server.address == NEXT


def test_after_a_challenge_it_does(rng: random.Random) -> None:
    desk = desk_with(rng, to(NEXT, prove=False))
    refused = desk.last(Failed).error
    assert isinstance(refused, RedirectRefused)
    assert "without the proof" in str(refused)


@pytest.mark.parametrize("domain", [None, "other.example"])
def test_the_certificate_has_to_be_for(rng: random.Random, domain: str | None) -> None:
    desk = desk_with(rng, to(NEXT, domain=domain, prove=False), transport=Transport.TLS)
    dialled = desk.orders[-1]
    assert isinstance(dialled, Dial)
    assert (dialled.remote, dialled.server_name) == (NEXT, domain or "relay.example")


def test_circles(rng: random.Random) -> None:
    desk = desk_with(rng, to(NEXT), to(SERVER))
    assert "in circles" in str(desk.last(Failed).error)
    desk.allocate()  # another allocation is another request
    assert desk.told(Allocated)


def test_one_too_many(rng: random.Random) -> None:
    ways = [to(Address(f"192.0.2.{n}", 3478)) for n in range(10, 20)]
    desk = desk_with(rng, *ways)
    assert len(desk.told(Redirected)) == 3
    assert "after 3 redirections" in str(desk.last(Failed).error)
    desk = desk_with(rng, to(NEXT), redirects=0)
    assert isinstance(desk.last(Failed).error, RedirectRefused)


@pytest.mark.parametrize("servers", [(), (Address("0.0.0.0", 1),), (Address("192.0.2.2", 0),)])
def test_nowhere_to_go(rng: random.Random, servers: tuple[Address, ...]) -> None:
    desk = desk_with(rng, to(*servers))
    assert "no address that could be asked" in str(desk.last(Failed).error)


def test_five_minutes_later_a_server_may_be_asked_again() -> None:
    redirects = Redirects(9)
    here = Target(SERVER, Transport.UDP)
    said = TryAlternate(300, "", (NEXT, THIRD), None, True)
    redirects.asked(Target(NEXT, Transport.UDP), 0)
    refused = redirects.follow(here, said, 299 * SECOND, challenged=True)
    assert isinstance(refused, RedirectRefused)
    followed = redirects.follow(here, said, 300 * SECOND, challenged=True)
    assert followed == Target(NEXT, Transport.UDP)
