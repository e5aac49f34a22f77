"""``natcheck`` as a person and a script meet it: output, errors in sentences, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

import nattype
from nattype import cli
from nattype.jsonform import dumps, from_json, json_schema
from nattype.model import Filtering, Mapping, NatType
from nattype.report import Evidence, Outcome, Report, TcpReport, UdpReport
from nattype.trace import Step, Traced
from nattype.verdict import complete
from stun.errors import StunError, UsageError
from stun.sansio import Address

UDP = UdpReport(
    NatType.PORT_RESTRICTED_CONE,
    Mapping.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
    mapped_address=Address("192.52.193.4", 50000),
    local_address=Address("192.168.1.2", 50000),
)
TCP = TcpReport(
    NatType.PORT_RESTRICTED_CONE,
    Mapping.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
    mapped_address=Address("192.52.193.4", 50000),
    local_address=Address("192.168.1.2", 50000),
)
HOME = complete(Report("", "ipv4", UDP, TCP, servers=("192.0.2.1:3478",)))
UNCLEAR = complete(Report("", "ipv4", UdpReport(), TcpReport()))
ROOT = Path(cli.__file__).parent.parent


class Discovery:
    """Stands in for the network: notes how it was asked, and gives the report it was told to."""

    def __init__(self) -> None:
        self.result: Report | BaseException = HOME
        self.servers: object = "not asked"
        self.options: dict[str, object] = {}
        self.packets: list[Traced] = []

    def __call__(self, servers: object, **options: object) -> Report:
        self.servers, self.options = servers, options
        if isinstance(self.result, BaseException):
            raise self.result
        for packet in self.packets:
            on_packet = options["on_packet"]
            assert callable(on_packet)
            on_packet(packet)
        return self.result


@pytest.fixture
def discovery(monkeypatch: pytest.MonkeyPatch) -> Discovery:
    stand_in = Discovery()
    monkeypatch.setitem(vars(nattype), "discover", stand_in)
    monkeypatch.delenv("NATLAB_STUN", raising=False)
    return stand_in


@pytest.mark.parametrize(("result", "code"), [(HOME, 0), (UNCLEAR, 1)])
def test_the_exit_code_tells_whether_it_was_classified(
    discovery: Discovery, capsys: pytest.CaptureFixture[str], result: Report, code: int
) -> None:
    discovery.result = result
    assert cli.run_command([]) == code
    out, err = capsys.readouterr()
    assert " ".join(out.split()).startswith(result.verdict)
    assert "\x1b" not in out
    assert err == "", "no progress into a pipe"


def test_json_is_the_document_and_nothing_else(
    discovery: Discovery, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json_schema())
    assert from_json(document) == HOME


def test_by_default_everything_is_tested_at_the_default_servers(discovery: Discovery) -> None:
    cli.run_command([])
    assert discovery.servers is None
    assert discovery.options == {
        "family": None,
        "udp": True,
        "tcp": True,
        "lifetime": False,
        "on_progress": None,
    }


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["--udp-only"], "tcp", False),
        (["--tcp-only"], "udp", False),
        (["-4"], "family", "ipv4"),
        (["-6"], "family", "ipv6"),
        (["--lifetime"], "lifetime", True),
        (["--timeout", "2.5"], "timeout", 2.5),
    ],
)
def test_options_reach_the_diagnosis(
    discovery: Discovery, words: list[str], option: str, value: object
) -> None:
    assert cli.run_command(words) == 0
    assert discovery.options[option] == value


def test_servers_are_repeatable(discovery: Discovery) -> None:
    cli.run_command(["--server", "a.example", "--json", "--server", "b.example:3479"])
    assert discovery.servers == ("a.example", "b.example:3479")


def test_the_environment_is_left_to_discover(
    discovery: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows NATLAB_STUN6 too, and asks over both families."""
    monkeypatch.setenv("NATLAB_STUN", "192.31.196.10:3478")
    cli.run_command([])
    assert discovery.servers is None
    cli.run_command(["--server", "other.example"])
    assert discovery.servers == ("other.example",)


def test_explain_takes_the_place_of_the_evidence(
    discovery: Discovery, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = Evidence("udp.mapping", Outcome.POSITIVE, "It was so.")
    discovery.result = replace(HOME, evidence=(evidence,))
    discovery.packets = [
        Traced(5, Step.SENT, "UDP", Address("192.168.1.2", 1), Address("192.0.2.1", 3478), bytes(8))
    ]
    assert cli.run_command(["--explain"]) == 0
    out = capsys.readouterr().out
    assert " ".join(out.split()).startswith(HOME.verdict)
    assert out.count("It was so.") == 1
    assert "Do different peers see this host at the same address and port?" in " ".join(out.split())
    assert "192.168.1.2:1 -> 192.0.2.1:3478  8 octets, no STUN message" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--udp-only", "--tcp-only"], "--udp-only and --tcp-only exclude each other"),
        (["-4", "-6"], "-4 and -6 exclude each other"),
        (["--json", "--explain"], "exclude each other"),
        (["--lifetime", "--tcp-only"], "exclude each other"),
        (["--timeout", "0"], "0"),
        (["--timeout", "soon"], "soon"),
        (["--nonsense"], "--nonsense"),
        (["stun.example.org"], "natcheck --server stun.example.org"),
        (["compare", "/nonexistent/a.json", "b.json"], "read /nonexistent/a.json"),
        (["compare", "a.json"], "B.JSON"),
        (["serve", "--port", "65536"], "65536"),
        (["serve", "--port", "65535", "--address", "127.0.0.1"], "65536 is not a port"),
        (["serve", "--address", "example.org"], "'example.org' is not a numeric"),
        (["serve", "--advertise", "10.0.0.5"], "--advertise 10.0.0.5=203.0.113.5"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told_in_words(
    discovery: Discovery, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.run_command(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert discovery.servers == "not asked"


def test_a_wrong_server_is_wrong_usage(
    discovery: Discovery, capsys: pytest.CaptureFixture[str]
) -> None:
    discovery.result = UsageError("'a:b:c' is no HOST[:PORT]")
    assert cli.run_command(["--server", "a:b:c"]) == 2
    assert "'a:b:c' is no HOST[:PORT]" in capsys.readouterr().err


@pytest.mark.parametrize("error", [StunError("the name has no address"), OSError("no network")])
def test_a_failure_is_a_sentence_and_not_a_traceback(
    discovery: Discovery, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    discovery.result = error
    assert cli.run_command([]) == 1
    err = capsys.readouterr().err
    assert f"the diagnosis could not be made: {error}." in err
    assert "Traceback" not in err


def test_an_interrupt_is_clean(discovery: Discovery, capsys: pytest.CaptureFixture[str]) -> None:
    discovery.result = KeyboardInterrupt()
    assert cli.run_command([]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip() == "natcheck: interrupted"


def test_serve_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def run(addresses: object, port: int, alternate: object, **options: object) -> int:
        asked.update(options, addresses=addresses, port=port, alternate=alternate)
        return 1

    monkeypatch.setattr("nattype.serve.run", run)
    words = "serve --address 10.0.0.5 --address fd00::5 --port 99 --no-connect-back"
    assert cli.run_command([*words.split(), "--advertise", "10.0.0.5=203.0.113.5"]) == 1
    assert asked == {
        "addresses": ("10.0.0.5", "fd00::5"),
        "port": 99,
        "alternate": None,
        "advertise": {"10.0.0.5": "203.0.113.5"},
        "connect_back": False,
        "certificate": None,
        "private_key": None,
        "tls_port": 5349,
    }


def reports(folder: Path, first: Report, second: Report) -> list[str]:
    paths = [folder / "a.json", folder / "b.json"]
    for path, report in zip(paths, (first, second), strict=True):
        path.write_text(dumps(report))
    return [str(path) for path in paths]


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = replace(HOME, udp=replace(UDP, mapped_address=Address("192.52.193.9", 1)))
    assert cli.run_command(["compare", *reports(tmp_path, HOME, other)]) == 0
    assert capsys.readouterr().out.startswith("Yes: directly, over UDP and over TCP (IPv4).\n")


@pytest.mark.parametrize("before", [True, False])
def test_compare_as_json_whichever_side_the_option_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    other = replace(HOME, udp=replace(UDP, mapped_address=Address("192.52.193.9", 1)))
    words = ["compare", *reports(tmp_path, HOME, other)]
    assert cli.run_command(["--json", *words] if before else [*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert document["udp"] == "direct"
    assert document["sentence"].startswith("Yes")


def test_compare_that_cannot_tell(tmp_path: Path) -> None:
    assert cli.run_command(["compare", *reports(tmp_path, HOME, UNCLEAR)]) == 1


def test_compare_names_the_file_and_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = reports(tmp_path, HOME, HOME)
    broken = json.loads(dumps(HOME))
    broken["udp"]["mapping"] = "cubic"
    Path(second).write_text(json.dumps(broken))
    assert cli.run_command(["compare", first, second]) == 2
    err = capsys.readouterr().err
    assert f"{second} is no report of natcheck: udp.mapping:" in err
    assert '"cubic" is none of none, endpoint-independent' in err


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["--json-schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["--version"]) == 0
    assert capsys.readouterr().out.startswith("natcheck ")


def run(*words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code is not None else ["-m", "nattype.cli", *words]
    return subprocess.run(
        [sys.executable, *program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_help_names_everything() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for word in (
        "--server", "--udp-only", "--tcp-only", "-4", "-6", "--json", "--lifetime", "--timeout",
        "--explain", "--version", "serve", "compare", "Exit code: 0 classified",
    ):  # fmt: skip
        assert word in done.stdout


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'rich', 'dns', 'construct', 'asyncio', 'nattype.probe', 'stun.codec', 'jsonschema'}"
    done = run(
        code="import sys; from nattype import cli; cli.run_command(['--help']);"
        f"loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_none_of_it() -> None:
    done = run(
        code="import sys, nattype;"
        "loaded = [m for m in sys.modules if m.startswith(('nattype.', 'stun', 'rich'))];"
        "assert not loaded, loaded"
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = (
        "import sys, nattype; from nattype import cli; from nattype.report import *\n"
        "nattype.discover = lambda *a, **k: Report('x' * 10**6, 'ipv4', None, None)\n"
        "cli.main(['--json'])"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


def test_a_full_disk_is_no_traceback() -> None:
    code = (
        "import nattype; from nattype import cli; from nattype.report import *\n"
        "nattype.discover = lambda *a, **k: Report('x', 'ipv4', None, None)\n"
        "cli.main(['--json'])"
    )
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert done.stderr == "natcheck: the output cannot be written: No space left on device\n"
    assert done.returncode == 1
