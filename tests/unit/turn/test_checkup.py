"""What ``turnd check`` concludes from what it sees."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stun.discovery import Target, Transport
from stun.sansio import Address
from tools.certificate import DAY, Issued, issue
from turn.client.errors import (
    InsufficientCapacity,
    NotAuthenticated,
    QuotaReached,
    ServerUnreachable,
)
from turn.daemon import checkup
from turn.daemon.checkup import Finding, Level, check_chain, check_status, remedy, worst

NOW = 1_800_000_000.0
HEALTHY: dict[str, Any] = {
    "version": "1.2.3",
    "serving": [{"transport": "UDP", "address": "192.0.2.1:3478"}],
    "draining": False,
    "warnings": [],
    "sessions": 7,
    "ports": [49152, 65535],
    "certificate": {
        "path": "/etc/turnd/fullchain.pem",
        "names": ["turn.example"],
        "not_after": NOW + 60 * 86400,
    },
}


RENDEZVOUS = {
    "places": ["ws://*:8080"],
    "serving": ["0.0.0.0:8080"],
    "connected": 3,
    "waiting": 1,
    "paired": 2,
}


@pytest.fixture(autouse=True)
def roomy_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "rmem_max"
    path.write_text("4194304\n")
    monkeypatch.setattr(checkup, "RMEM_MAX", path)


def of(status: dict[str, Any]) -> list[Finding]:
    return list(check_status(status, now=NOW))


def test_a_healthy_server_has_nothing_to_mend() -> None:
    findings = of(HEALTHY)
    assert worst(findings) is Level.OK
    assert not any(finding.fix for finding in findings)
    assert "7 allocations, listening at UDP 192.0.2.1:3478" in findings[0].text


def test_a_healthy_rendezvous_is_told_of() -> None:
    findings = of(HEALTHY | {"rendezvous": RENDEZVOUS})
    assert worst(findings) is Level.OK
    assert any("3 clients, 1 of them wait, ws://*:8080" in finding.text for finding in findings)


def workers(*serving: bool, replaced: int = 0) -> dict[str, Any]:
    crew = [
        {"worker": number, "pid": 100 + number, "serves": serves, "sessions": 3 * number}
        for number, serves in enumerate(serving, 1)
    ]
    return {"workers": crew, "replaced": replaced}


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (workers(True, True), "all 2 serve, allocations 3, 6"),
        (workers(True, True, replaced=1), "all 2 serve, allocations 3, 6, 1 replaced since"),
    ],
)
def test_workers_that_serve_are_told_of(status: dict[str, Any], text: str) -> None:
    findings = of(HEALTHY | status)
    assert worst(findings) is Level.OK
    assert [text in one.text for one in findings if one.subject == "workers"] == [True]


def dataplane(**changes: Any) -> dict[str, Any]:
    status = {
        "wanted": "auto",
        "kernel": True,
        "why": "",
        "interfaces": ["eth0", "eth1"],
        "refused": [],
        "left": {},
    }
    return {"dataplane": status | changes}


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (dataplane(), "it relays in the kernel, at eth0, eth1"),
        (
            dataplane(wanted="sockets", kernel=False, why="as configured", interfaces=[]),
            "it relays with sockets: as configured",
        ),
    ],
)
def test_the_data_plane_that_was_wanted_is_told_of(status: dict[str, Any], text: str) -> None:
    findings = of(HEALTHY | status)
    assert worst(findings) is Level.OK
    (finding,) = [finding for finding in findings if finding.subject == "data plane"]
    assert (finding.text, finding.fix) == (text, "")


@pytest.mark.parametrize(
    ("change", "level", "text", "fix"),
    [
        (
            dataplane(kernel=False, why="libbpf is missing: apt install libbpf1", interfaces=[]),
            Level.WARNING,
            "with sockets: libbpf is missing: apt install libbpf1",
            'dataplane = "sockets"',
        ),
        (
            workers(True, False, False),
            Level.WARNING,
            "2 of 3 do not serve at the moment: 2, 3",
            "log",
        ),
        (dataplane(interfaces=[]), Level.WARNING, "no interface is there", "ip -brief link"),
        (
            dataplane(refused=["tap0: No such device"]),
            Level.WARNING,
            "what comes in by tap0 is relayed with sockets: No such device",
            "bpftool net",
        ),
        (
            dataplane(left={"no room in the kernel for more of them": 3}),
            Level.WARNING,
            "3 channels so far left to the sockets: no room in the kernel for more of them",
            "",
        ),
        ({"rendezvous": RENDEZVOUS | {"serving": []}}, Level.FAILED, "at nothing", "log"),
        ({"serving": []}, Level.FAILED, "listening at nothing", ""),
        ({"draining": True}, Level.WARNING, "draining", "restart"),
        ({"warnings": ["a private relay"]}, Level.WARNING, "a private relay", ""),
        ({"ports": [50000, 50009]}, Level.WARNING, "10 ports", "widen --relay-ports"),
        ({"certificate": None}, Level.WARNING, "no turns:", "--cert"),
        (
            {"certificate": HEALTHY["certificate"] | {"not_after": NOW + 5 * 86400}},
            Level.WARNING,
            "5 days left",
            "renew",
        ),
        (
            {"certificate": HEALTHY["certificate"] | {"not_after": NOW - 1}},
            Level.FAILED,
            "expired",
            "renew",
        ),
    ],
)
def test_what_is_wrong_has_a_finding(
    change: dict[str, Any], level: Level, text: str, fix: str
) -> None:
    findings = of(HEALTHY | change)
    assert worst(findings) is level
    assert any(f.level is level and text in f.text and fix in f.fix for f in findings), findings


def test_small_receive_buffers_are_told(tmp_path: Path) -> None:
    (tmp_path / "rmem_max").write_text("212992\n")
    (finding,) = [finding for finding in of(HEALTHY) if finding.subject == "kernel"]
    assert finding.level is Level.WARNING
    assert "208 KiB" in finding.text
    assert "sysctl -w net.core.rmem_max=4194304" in finding.fix


def test_a_kernel_that_does_not_say_is_no_finding(tmp_path: Path) -> None:
    (tmp_path / "rmem_max").unlink()
    assert worst(of(HEALTHY)) is Level.OK


TARGET = Target(Address("192.0.2.1", 5349), Transport.TLS, "turn.example")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ServerUnreachable(TARGET, "connection refused"), "open TCP port 5349 in the firewall"),
        (NotAuthenticated(TARGET, "Allocate", 401, ""), "check the user"),
        (QuotaReached(TARGET, "Allocate", 486, ""), "[limits]"),
        (InsufficientCapacity(TARGET, "Allocate", 508, ""), "no relay port is free"),
    ],
)
def test_each_failure_has_its_remedy(error: Any, words: str) -> None:
    assert words in remedy(error, TARGET)


# The certificate chain. ---------------------------------------------------------------------------


@contextmanager
def tls_server(*chain: Issued, folder: Path) -> Iterator[Address]:
    """A server that shows ``chain``, its own certificate first."""
    path = folder / "chain.pem"
    path.write_bytes(b"".join(one.certificate_pem() for one in chain) + chain[0].key_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        try:
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(1)
        except OSError:
            connection.close()  # the client did not like it

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Address("127.0.0.1", listener.getsockname()[1])
    finally:
        thread.join(10)
        listener.close()


@pytest.fixture(scope="module")
def root() -> Issued:
    return issue(["natkit test authority"], authority=True)


@pytest.fixture
def trusting(root: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the system trust ``root``."""
    path = tmp_path / "root.pem"
    path.write_bytes(root.certificate_pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


def look_at(*chain: Issued, folder: Path, name: str = "localhost") -> Finding:
    with tls_server(*chain, folder=folder) as address:
        return check_chain(Target(address, Transport.TLS, name), name)


@pytest.mark.usefixtures("trusting")
def test_a_chain_that_holds(root: Issued, tmp_path: Path) -> None:
    middle = issue(["natkit test intermediate"], issuer=root, authority=True)
    leaf = issue(["localhost"], issuer=middle, ends=90 * DAY)
    finding = look_at(leaf, middle, folder=tmp_path)
    assert finding.level is Level.OK, finding
    assert "the chain holds for localhost" in finding.text


@pytest.mark.usefixtures("trusting")
def test_a_missing_intermediate(root: Issued, tmp_path: Path) -> None:
    middle = issue(["natkit test intermediate"], issuer=root, authority=True)
    finding = look_at(issue(["localhost"], issuer=middle), folder=tmp_path)
    assert (finding.level, "incomplete" in finding.text) == (Level.FAILED, True), finding
    assert "fullchain.pem" in finding.fix


def test_a_certificate_that_signed_itself(tmp_path: Path) -> None:
    finding = look_at(issue(["localhost"]), folder=tmp_path)
    assert (finding.level, "self-signed" in finding.text) == (Level.FAILED, True), finding


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize(
    ("name", "words"), [("other.example", "another name"), ("127.0.0.1", "not for this address")]
)
def test_a_certificate_for_another_name(
    root: Issued, tmp_path: Path, name: str, words: str
) -> None:
    finding = look_at(issue(["localhost"], issuer=root), folder=tmp_path, name=name)
    assert (finding.level, words in finding.text) == (Level.FAILED, True), finding


@pytest.mark.usefixtures("trusting")
def test_an_expired_certificate(root: Issued, tmp_path: Path) -> None:
    old = issue(["localhost"], issuer=root, begins=-2 * DAY, ends=datetime.timedelta(hours=-1))
    finding = look_at(old, folder=tmp_path)
    assert (finding.level, "expired" in finding.text) == (Level.FAILED, True), finding


@pytest.mark.usefixtures("trusting")
def test_a_certificate_that_will_expire_soon(root: Issued, tmp_path: Path) -> None:
    finding = look_at(issue(["localhost"], issuer=root, ends=3 * DAY), folder=tmp_path)
    assert (finding.level, "expires in" in finding.text) == (Level.WARNING, True), finding


def test_nothing_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", reserved.getsockname()[1])
        finding = check_chain(Target(address, Transport.TLS, "localhost"), "localhost")
    assert finding.level is Level.FAILED
    assert f"open TCP port {address.port}" in finding.fix
