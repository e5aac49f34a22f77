"""natcheck as a program behind real NATs: its document, its text, its packets, its interruption."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from nattype.jsonform import from_json, json_schema, loads
from nattype.lab import Lab
from nattype.model import NatType, kind
from nattype.peers import compare
from nattype.report import Reach

ROOT = Path(__file__).parents[2]
NATCHECK = (sys.executable, "-P", "-m", "nattype.cli")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def behind(name: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "nattype.lab.cli", "run", "--nat", name, "--", *NATCHECK)


def natcheck(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*behind(name), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=ENVIRONMENT,
    )


@pytest.mark.parametrize("name", ["port-restricted-cone", "symmetric-sequential", "udp-blocked"])
def test_a_real_document_is_as_the_schema_says(name: str) -> None:
    done = natcheck(name, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    schema = json_schema()
    jsonschema.validate(document, schema)
    assert set(document) == set(schema["properties"]), "no field that is not documented"
    report = from_json(document)
    expected = kind(name).expected
    assert report.udp is not None
    assert report.tcp is not None
    assert (report.udp.nat_type, report.tcp.nat_type) == (expected.udp, expected.tcp)


def test_two_real_reports_compare() -> None:
    easy, hard = (
        loads(natcheck(name, "--json").stdout) for name in ("port-restricted-cone", "symmetric")
    )
    assert compare(easy, hard).udp is Reach.BIRTHDAY
    assert compare(hard, hard).udp is Reach.RELAY


def test_the_text_is_plain_and_the_verdict_first() -> None:
    done = natcheck("restricted-cone")
    assert done.returncode == 0
    assert done.stdout.startswith("You are behind a restricted cone NAT")
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


HOST_FIREWALL = """
table inet firewall {
  chain input {
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    meta l4proto icmpv6 accept
    ct state established,related accept
  }
}
"""


@pytest.mark.parametrize(
    ("name", "kind_found", "verdict", "advice"),
    [
        ("open", NatType.SYMMETRIC_FIREWALL, "no NAT, but a firewall", "your port in on the fire"),
        # Two filters in a row look like one, so all that can be done is to say so.
        ("full-cone", NatType.PORT_RESTRICTED_CONE, "port-restricted", "this host's own firewall"),
    ],
)
def test_a_firewall_of_the_hosts_own(
    name: str, kind_found: NatType, verdict: str, advice: str
) -> None:
    with Lab.nat(name, ipv6="off") as lab:
        lab.host.run(["nft", "-f", "-"], given=HOST_FIREWALL, text=True, check=True)
        document, text = (
            lab.host.run(
                [*NATCHECK, *options], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
            )
            for options in (["--json"], [])
        )
    report = loads(document.stdout)
    assert report.udp is not None
    assert report.tcp is not None
    assert (report.udp.nat_type, report.tcp.nat_type) == (kind_found, kind_found)
    assert verdict in report.verdict
    assert advice in " ".join(text.stdout.split())


def test_tcp_alone_where_it_is_blocked() -> None:
    done = natcheck("tcp-blocked", "--tcp-only", "-4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("TCP does not get through from here.\n")


def test_explain_shows_the_packets_that_decided() -> None:
    done = natcheck("full-cone", "--explain", "--udp-only")
    assert done.returncode == 0
    assert "CHANGE-REQUEST change_ip True, change_port True" in done.stdout
    assert "<- 192.175.48.10:3479  Binding success" in done.stdout
    assert "magic cookie: 0x2112a442" in done.stdout


def test_an_interrupt_on_a_terminal_is_clean() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, behind("udp-blocked"), ENVIRONMENT | {"TERM": "xterm"})
    said, began, interrupted = b"", time.monotonic(), False
    while time.monotonic() - began < 60:
        readable, _, _ = select.select([terminal], [], [], 0.1)
        if readable:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # Linux says EIO at the end of a terminal.
                break
            said += piece
        # The progress display begins with the diagnosis, which takes seconds behind this NAT.
        if not interrupted and said:
            os.write(terminal, b"\x03")
            interrupted = True
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert interrupted
    assert os.waitstatus_to_exitcode(status) == 130, said
    assert b"interrupted" in said
    assert b"Traceback" not in said


def test_a_network_without_a_server_is_inconclusive() -> None:
    done = subprocess.run(
        [*NATCHECK, "--server", "127.0.0.1:9", "--json", "--timeout", "3"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 1, done.stderr
    report = loads(done.stdout)
    assert report.udp is not None
    assert report.udp.nat_type is NatType.INCONCLUSIVE
    assert report.verdict.startswith("Inconclusive: no STUN server answered (127.0.0.1:9)")


def test_natlab_finds_natcheck_without_an_activated_environment() -> None:
    beside = Path(sys.executable).parent
    if not (beside / "natlab").exists():
        pytest.fail(f"natkit is not installed in {beside}")
    done = subprocess.run(
        [beside / "natlab", "run", "--nat", "full-cone", "--", "natcheck", "--udp-only", "--json"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["udp"]["nat_type"] == "full cone"
