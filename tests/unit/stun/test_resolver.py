"""The edge to the name service; its answers are played."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading

import dns.asyncresolver
import dns.exception
import dns.resolver
import dns.rrset
import pytest

from stun.discovery import Transport
from stun.resolver import ResolutionError, resolve, resolve_async
from stun.sansio import Address

RECORDS = {
    ("_stun._udp.example.org", "SRV"): ["10 0 3479 b.example.org.", "5 0 3478 a.example.org."],
    ("example.org", "NAPTR"): [
        '100 10 "S" "RELAY:turn.udp" "" _turn._udp.example.org.',
        '50 10 "A" "RELAY:turn.tls" "" a.example.org.',
    ],
    ("_turn._udp.example.org", "SRV"): ["0 0 5000 b.example.org."],
}
ADDRESSES = {
    "a.example.org": ["192.0.2.1", "2001:db8::1"],
    "b.example.org": ["192.0.2.2"],
    "plain.example": ["192.0.2.9"],
}


def service(name, kind, **options):
    assert options["lifetime"] > 0
    try:
        texts = RECORDS[name, kind]
    except KeyError:
        raise dns.resolver.NXDOMAIN from None
    return dns.rrset.from_text_list(f"{name}.", 60, "IN", kind, texts)


def getaddrinfo(host, port, family=0, *rest, **named):
    found, kind = [], socket.SOCK_DGRAM
    for text in ADDRESSES.get(host, ()):
        ipv6 = ":" in text
        af = socket.AF_INET6 if ipv6 else socket.AF_INET
        if family in (0, af):
            # As on a real system, more than one entry for an address.
            found += [(af, kind, 17, "", (text, 0, 0, 0) if ipv6 else (text, 0))] * 2
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return found


@pytest.fixture(autouse=True)
def played(monkeypatch):
    class Blocking:
        resolve = staticmethod(service)

    class Asynchronous:
        @staticmethod
        async def resolve(*args, **options):
            return service(*args, **options)

    monkeypatch.setattr(dns.resolver, "Resolver", Blocking)
    monkeypatch.setattr(dns.asyncresolver, "Resolver", Asynchronous)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture(params=["blocking", "asyncio"])
def find(request):
    if request.param == "blocking":
        return resolve
    return lambda *args, **options: asyncio.run(resolve_async(*args, **options))


def addresses(targets):
    return [target.address for target in targets]


def test_srv(find):
    assert addresses(find("stun:example.org")) == [
        Address("192.0.2.1", 3478),
        Address("2001:db8::1", 3478),
        Address("192.0.2.2", 3479),
    ]


def test_naptr(find):
    found = find("turn:example.org", supported=[Transport.UDP, Transport.TLS], family=4)
    assert [(t.transport, t.address.port, t.name) for t in found] == [
        (Transport.TLS, 5349, "example.org"),
        (Transport.UDP, 5000, None),
    ]


def test_without_srv(find):
    assert addresses(find("plain.example")) == [Address("192.0.2.9", 3478)]


def test_an_address_asks_nobody(find, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert addresses(find("[2001:db8::1]:99")) == [Address("2001:db8::1", 99)]


@pytest.mark.parametrize("by", [0, 1], ids=["number", "name"])
def test_a_zone_is_written_as_sockets_report_it(find, by):
    interface = socket.if_nameindex()[0]
    found = find(f"[fe80::1%{interface[by]}]:99")
    assert addresses(found) == [Address(f"fe80::1%{interface[1]}", 99)]


def test_a_zone_that_this_machine_does_not_have(find):
    with pytest.raises(ResolutionError, match="no interface 'nowhere9'"):
        find("stun:[fe80::1%25nowhere9]:3478")


@pytest.mark.parametrize(("family", "host"), [(4, "192.0.2.1"), (6, "2001:db8::1")])
def test_one_family(find, family, host):
    assert addresses(find("a.example.org:7", family=family)) == [Address(host, 7)]


def test_an_address_of_the_other_family(find):
    with pytest.raises(ResolutionError, match="IPv6"):
        find("192.0.2.1", family=6)


def test_nothing_found(find):
    with pytest.raises(ResolutionError, match=r"stun:nobody\.example"):
        find("nobody.example")


@pytest.mark.parametrize(
    "failure", [dns.exception.Timeout, dns.resolver.NoNameservers, OSError, dns.resolver.NoAnswer]
)
def test_a_name_service_that_fails_has_no_records(find, monkeypatch, failure):
    def fail(*args, **options):
        raise failure

    monkeypatch.setattr(sys.modules[__name__], "service", fail)
    monkeypatch.setattr(dns.resolver.Resolver, "resolve", staticmethod(fail))
    assert addresses(find("plain.example")) == [Address("192.0.2.9", 3478)]


def test_names_that_are_no_names(find):
    with pytest.raises(ResolutionError):
        find("a..b")


def test_dnspython_is_not_loaded_when_it_is_not_needed():
    program = (
        "import sys; from stun.resolver import resolve; resolve('127.0.0.1:3478');"
        "sys.exit('dns' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_name_service_that_never_answers_holds_nobody(monkeypatch):
    """Neither who gives up waiting nor, as asyncio's own threads would, the end of the program."""
    answer = threading.Event()
    ended = threading.Event()

    def silent(*args, **options):
        answer.wait(30)
        ended.set()
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", silent)

    async def impatient():
        asking = asyncio.create_task(resolve_async("plain.example:1"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(impatient())
    assert not ended.is_set()
    answer.set()
    assert ended.wait(30)
