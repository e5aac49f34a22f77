"""What discover makes of its arguments, and one run on the loopback."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import nattype
from nattype.discover import DEFAULT_SERVERS, _wanted, own_address
from nattype.model import Mapping, NatType
from nattype.report import Report
from stun import blocking
from stun.errors import UsageError
from stun.sansio import Address
from stun.server import Server, ServerConfig, Started
from stun.uri import StunUri

ALL = {"udp": True, "tcp": True, "lifetime": False, "timeout": None}


def test_servers_come_from_the_environment_or_are_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATLAB_STUN", "192.0.2.1:3478, [2001:db8::1]:3479")
    monkeypatch.delenv("NATLAB_STUN6", raising=False)
    wanted = _wanted(None, None, **ALL)
    assert wanted.servers == (StunUri("192.0.2.1", 3478), StunUri("2001:db8::1", 3479))
    assert wanted.families == ("ipv4", "ipv6")
    monkeypatch.delenv("NATLAB_STUN")
    assert len(_wanted(None, None, **ALL).servers) == len(DEFAULT_SERVERS)


def test_servers_may_be_given_in_many_forms() -> None:
    servers = ["stun.example.org", "192.0.2.1:99", "stun:[2001:db8::1]", "a.example,b.example"]
    assert [str(s) for s in _wanted(servers, 4, **ALL).servers] == [
        "stun:stun.example.org",
        "stun:192.0.2.1:99",
        "stun:[2001:db8::1]",
        "stun:a.example",
        "stun:b.example",
    ]
    assert _wanted("stun.example.org", 6, **ALL).families == ("ipv6",)
    twice = _wanted(["a.example", "a.example"], None, **ALL)
    assert len(twice.servers) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"servers": ["not a host!"]},
        {"servers": ["host:99999"]},
        {"servers": ["stuns:stun.example.org"]},
        {"servers": ["turn:turn.example.org"]},
        {"family": "ipv5"},
        {"udp": False, "tcp": False},
        {"timeout": 0},
        {"timeout": -1.0},
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    arguments: dict[str, object],
) -> None:
    with pytest.raises(UsageError):
        nattype.discover(**{"servers": ["192.0.2.1"], **arguments})  # type: ignore[arg-type]


def test_a_name_that_does_not_exist_is_no_exception() -> None:
    report = nattype.discover(["natkit-test.invalid:3478"])
    assert not report.conclusive
    assert report.udp is not None
    assert report.udp.nat_type is NatType.INCONCLUSIVE
    assert [e.test for e in report.evidence] == ["server.resolution"]
    assert "natkit-test.invalid" in report.evidence[0].detail
    assert report.verdict.startswith("Inconclusive")


def test_a_family_without_an_address_is_no_exception() -> None:
    report = nattype.discover(["127.0.0.1:9"], family="ipv6")
    assert report.family == "ipv6"
    assert not report.conclusive
    assert report.evidence


def test_own_address() -> None:
    assert own_address(Address("127.0.0.1", 9)) == "127.0.0.1"
    assert own_address(Address("::1", 9)) in ("::1", None)


@dataclass
class Served:
    primary: Address

    def __str__(self) -> str:
        return str(self.primary)


@pytest.fixture
def server() -> Iterator[Served]:
    """The server with two addresses on the loopback, in a thread."""
    ready, stop = threading.Event(), threading.Event()
    # Two ports that are free on both addresses are not known beforehand: try until they are.
    for attempt in range(20):
        port = 20_000 + (os.getpid() * 7 + attempt * 101) % 30_000
        config = ServerConfig(Address("127.0.0.1", port), Address("127.0.0.2", port + 1))
        machine = Server(config, entropy=os.urandom)
        failed: list[object] = []

        def run(machine: Server = machine, failed: list[object] = failed) -> None:
            def on_event(event: object) -> None:
                if type(event).__name__ == "CannotServe":
                    failed.append(event)
                if isinstance(event, Started):
                    ready.set()

            with blocking.Driver(machine, on_event=on_event) as driver:
                machine.start(driver.now())
                while not stop.is_set():
                    driver.step(0.05)

        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(10)
        if not failed:
            break
        stop.set()
        thread.join()
        ready.clear()
        stop.clear()
    yield Served(Address("127.0.0.1", port))
    stop.set()
    thread.join()


def _is_open(report: Report) -> None:
    assert report.udp is not None
    assert report.tcp is not None
    assert report.udp.nat_type is NatType.OPEN
    assert report.tcp.nat_type is NatType.OPEN
    assert report.udp.mapping is Mapping.NONE
    assert report.behind_nat is False
    assert report.layers == 0
    assert report.peers
    assert report.culprits == ()
    assert report.tcp.simultaneous_open is True


def test_discover(server: Served) -> None:
    steps: list[str] = []
    report = nattype.discover(str(server), on_progress=lambda step: steps.append(str(step)))
    _is_open(report)
    assert report.servers == (str(server),)
    assert len(steps) > 8
    assert steps[-1].startswith("done")


def test_discover_async(server: Served) -> None:
    _is_open(asyncio.run(nattype.discover_async([str(server)])))


def test_discover_async_can_be_cancelled(server: Served) -> None:
    async def hurried() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await nattype.discover_async([str(server), "127.0.0.1:9"], lifetime=True)

    asyncio.run(hurried())


def test_the_timeout_ends_it_with_a_report() -> None:
    report = nattype.discover("127.0.0.1:9", timeout=0.3, tcp=False)
    assert report.seconds == pytest.approx(0.3, abs=0.2)
    assert report.tcp is None
    assert not report.conclusive
