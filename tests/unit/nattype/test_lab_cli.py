"""The command line of natlab, up to where the laboratory would be built."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from nattype.lab import cli
from nattype.lab.kernel import commands
from nattype.lab.kernel.errors import NotPermitted, Unsupported
from nattype.lab.kernel.spec import LabSpec
from nattype.model import NAMED_KINDS, Unsolicited, grid


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    for name in ("run", "pair", "shell"):
        monkeypatch.setattr(commands, name, lambda *args: calls.append(args) or 0)
    return calls


def test_kinds_lists_all_and_says_what_they_are() -> None:
    text = CliRunner().invoke(cli.natlab, ["kinds"]).output
    for kind in NAMED_KINDS:
        assert f"{kind.name} " in text
        assert kind.summary in text
    points = CliRunner().invoke(cli.natlab, ["kinds", "--grid"]).output.splitlines()
    assert [line.split()[0] for line in points] == [kind.name for kind in grid()]


def test_kinds_as_json_says_what_to_expect() -> None:
    kinds = json.loads(CliRunner().invoke(cli.natlab, ["kinds", "--json"]).output)
    by_name = {kind["name"]: kind for kind in kinds}
    assert by_name["symmetric"]["expected"] == {
        "udp": "symmetric",
        "tcp": "symmetric",
        "mapping": "address-and-port-dependent",
        "filtering": "address-and-port-dependent",
        "allocation": "random",
    }
    assert len(by_name["cgnat"]["boxes"]) == 2


def test_run_hands_over_the_command_untouched(built: list[tuple[Any, ...]]) -> None:
    args = ["run", "--nat", "symmetric", "--", "prog", "--nat", "x", "--", "-h"]
    assert cli.run_cli(args) == 0
    spec, command = built[0]
    assert command == ("prog", "--nat", "x", "--", "-h")
    assert spec.sites[0].kind.name == "symmetric"


def test_options_arrive_in_the_units_of_the_model(built: list[tuple[Any, ...]]) -> None:
    args = [
        "run",
        "--nat",
        "cgnat",
        "--loss",
        "10",
        "--delay",
        "25",
        "--jitter",
        "5",
        "--mtu",
        "1400",
    ]
    args += ["--tcp-unsolicited", "icmp", "--hairpin", "--udp-timeout", "3", "--no-ipv6"]
    args += [
        "--udp-stream-timeout",
        "6",
        "--seed",
        "5",
        "--server-command",
        "srv -L '{A} x'",
        "true",
    ]
    assert cli.run_cli(args) == 0
    spec: LabSpec = built[0][0]
    link, box = spec.sites[0].link, spec.sites[0].kind.boxes[1]
    assert (link.loss, link.delay, link.jitter, link.mtu) == (0.1, 0.025, 0.005, 1400)
    assert (box.hairpin, box.unsolicited_tcp) == (True, Unsolicited.ICMP)
    assert (box.lifetimes.udp_one_shot, box.lifetimes.udp_stream) == (3, 6)
    assert (spec.ipv6, spec.seed, spec.server_command) == ("off", 5, ("srv", "-L", "{A} x"))


def test_without_a_server(built: list[tuple[Any, ...]]) -> None:
    assert cli.run_cli(["run", "--nat", "open", "--no-server", "true"]) == 0
    assert built[0][0].server_command == ()
    assert cli.run_cli(["run", "--nat", "open", "true"]) == 0
    assert built[1][0].server_command is None
    # Ports differ from run to run unless a seed is given.
    assert built[0][0].seed != built[1][0].seed


def test_a_pair_is_given_either_way(built: list[tuple[Any, ...]]) -> None:
    base = ["pair", "--a", "symmetric", "--b", "open"]
    assert cli.run_cli([*base, "--", "one", "-a", ":::", "two"]) == 0
    assert cli.run_cli([*base, "--run-a", "one -a", "--run-b", "two", "--server", "relay"]) == 0
    assert built[0][1:] == ([("a", ("one", "-a")), ("b", ("two",))], None)
    assert built[1][1:] == (
        [("a", ("/bin/sh", "-c", "one -a")), ("b", ("/bin/sh", "-c", "two"))],
        ("/bin/sh", "-c", "relay"),
    )
    assert [site.name for site in built[0][0].sites] == ["a", "b"]


@pytest.mark.parametrize("rest", [
    [], ["--", "one"], ["--", ":::", "two"], ["--", "one", ":::"], ["--run-a", "one"],
    ["--run-a", "one", "--run-b", "two", "--", "one", ":::", "two"],
    ["--", "one", ":::", "two", ":::", "three"],
])  # fmt: skip
def test_half_a_pair_is_wrong_usage(
    rest: list[str], built: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_cli(["pair", "--a", "open", "--b", "open", *rest]) == 2
    assert "COMMAND_A ::: COMMAND_B" in capsys.readouterr().err
    assert built == []


def test_an_unknown_kind_is_answered_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run_cli(["run", "--nat", "cone", "true"]) == 2
    error = capsys.readouterr().err
    assert "unknown kind 'cone'" in error
    assert all(kind.name in error for kind in NAMED_KINDS)
    assert "natlab kinds" in error


@pytest.mark.parametrize("error", [NotPermitted("Run: sudo x"), Unsupported("no such NAT")])
def test_a_laboratory_that_cannot_be_built_says_why(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(commands, "run", fail)
    assert cli.run_cli(["run", "--nat", "open", "true"]) == cli.LAB_FAILED
    assert capsys.readouterr().err == f"natlab: {error}\n"


def test_the_shell_introduces_its_machines(
    built: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_cli(["shell", "--nat", "cgnat"]) == 0
    said = capsys.readouterr().err
    assert "cgnat" in said
    assert "host, box1, box2, internet, server" in said
    assert len(built) == 1
