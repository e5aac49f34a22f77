"""What is told: in words, and as JSON that its schema describes."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from ice.link import events as link
from ice.punch import events
from ice.punch.link import Traffic
from ice.punch.output import Output, count, duration, printable, short, size

DOCS = Path(__file__).parents[3] / "docs"

LINK_EVENTS: list[link.LinkEvent] = [
    link.Waiting("7-acorn-violin-harbor", 3600.0),
    link.Met(812.3456),
    link.PathChanged("relay", "udp", 210.4, "it is the first", relay="turn:turn.example"),
    link.Trying("tcp", "plain", 0, "both mappings are endpoint-independent"),
    link.NotDirect("udp", "plain", 0, "no check was answered", 5.0),
    link.PathChanged("direct", "tcp", 480, "it is better", "10.0.0.2:9", "192.0.2.1:4433", 0.0401),
    link.PathLost("direct", "tcp", "reset by the peer"),
    link.PathChanged("relay", "udp", 9000, "the direct path was lost", relay="turn:turn.example"),
    link.Interrupted("every way to the peer is gone"),
    link.Ended(None),
    link.Ended("nothing was heard"),
]
OWN_EVENTS: list[events.Event] = [
    events.Offer(2, 12_300_000),
    events.File("a/b.iso", "started", 100, 0),
    events.File("a/b.iso", "started", 100_000, 50_000),
    events.File("a/b.iso", "done", 100, 0, "ab" * 32),
    events.File("a/b.iso", "done", 100, 0, "ab" * 32, "it grew"),
    events.File("a/b.iso", "same", 100),
    events.File("a/b.iso", "failed", 100, why="no space"),
    events.File("a/b.iso", "skipped", why="a pipe"),
    events.Progress(5, 10),
    events.Note("worth knowing"),
    events.Listening("127.0.0.1", 8080),
    events.Connection(1, "opened", "127.0.0.1:5"),
    events.Connection(2, "refused", "", "connection refused"),
    events.Connection(1, "closed", "127.0.0.1:5"),
    events.Connection(3, "reset", "127.0.0.1:6", "closed"),
    events.Summary(1_000_000, 34, 12.34, 0.98),
    events.Summary(0, 0, 0.5, None),
    events.Error("wrong-code", "the peer does not have the same code"),
]


def output(**options: Any) -> tuple[Output, io.StringIO]:
    file = io.StringIO()
    return Output(lambda code: f"punch connect {code}", file=file, **options), file


def tell_all(**options: Any) -> list[str]:
    told, file = output(**options)
    for event in LINK_EVENTS:
        told.on_link(event)
    for each in OWN_EVENTS:
        told.tell(each)
    told.end()
    return file.getvalue().splitlines()


def test_words() -> None:
    assert tell_all() == [
        "code: 7-acorn-violin-harbor",
        "on the other machine, within 60 min: punch connect 7-acorn-violin-harbor",
        "the other side is there, after 812 ms",
        "relayed after 210 ms by turn:turn.example",
        "direct over TCP after 480 ms: 192.0.2.1:4433",
        "relayed after 9 s by turn:turn.example (the direct path was lost)",
        "interrupted: every way to the peer is gone",
        "2 files, 12.3 MB",
        "a/b.iso: goes on after 50 kB of 100 kB",
        f"a/b.iso: 100 B, SHA-256 {'ab' * 32}",
        f"a/b.iso: 100 B, SHA-256 {'ab' * 32}; it grew",
        "a/b.iso: is there already, the same",
        "a/b.iso: failed: no space",
        "a/b.iso: skipped: a pipe",
        "worth knowing",
        "listening at 127.0.0.1 port 8080",
        "connection 2 refused: connection refused",
        "sent 1 MB, received 34 B in 12.3 s; 98 % went directly",
        "sent 0 B, received 0 B in 500 ms",
        "punch: the peer does not have the same code",
    ]


def test_more_words() -> None:
    told = tell_all(verbose=True)
    for line in (
        "trying directly over TCP, plain, attempt 0: both mappings are endpoint-independent",
        "not directly over UDP: no check was answered; again in 5 s",
        "direct over TCP after 480 ms: 192.0.2.1:4433, round trip 40 ms, from 10.0.0.2:9"
        " (it is better)",
        "lost: the direct path over TCP: reset by the peer",
        "the connection has ended: nothing was heard",
        "connection 1 (127.0.0.1:5) opened",
    ):
        assert line in told


def test_quiet() -> None:
    assert tell_all(quiet=True) == [
        "code: 7-acorn-violin-harbor",
        "on the other machine, within 60 min: punch connect 7-acorn-violin-harbor",
        "punch: the peer does not have the same code",
    ]


def test_many_files_are_told_together() -> None:
    told, file = output()
    told.tell(events.Offer(500, 1000))
    for n in range(490):
        told.tell(events.File(f"{n}", "started", 2))
        told.tell(events.File(f"{n}", "same" if n % 7 == 0 else "done", 2, sha256="ab" * 32))
    told.tell(events.File("odd", "done", 2, sha256="ab" * 32, why="it grew"))
    told.tell(events.File("bad", "failed", 2, why="no space"))
    told.tell(events.Summary(1000, 0, 1.0, 1.0))
    assert file.getvalue().splitlines() == [
        "500 files, 1 kB",
        f"odd: 2 B, SHA-256 {'ab' * 32}; it grew",
        "bad: failed: no space",
        "421 files, 70 files were there already, 1 file failed",
        "sent 1 kB, received 0 B in 1 s; 100 % went directly",
    ]


def test_quiet_with_a_code_that_was_given() -> None:
    told, file = output(quiet=True, given=True)
    told.on_link(link.Waiting("team-secretword", 3600))
    assert file.getvalue() == ""


# JSON. --------------------------------------------------------------------------------------------


def test_every_event_is_as_the_schema_says() -> None:
    schema = json.loads((DOCS / "punch-events.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    lines = [json.loads(line) for line in tell_all(as_json=True)]
    assert {line["event"] for line in lines} == {kind.event for kind in events.EVENTS}
    closed = json.loads(
        json.dumps(schema).replace(
            '"type": "object"', '"type": "object", "additionalProperties": false'
        )
    )
    for line in lines:
        jsonschema.validate(line, schema)
        jsonschema.validate(line, closed)
    for wrong in ({"event": "path"}, {"event": "nothing"}, {}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_schema_in_docs_is_what_the_command_prints() -> None:
    text = json.dumps(events.json_schema(), indent=2) + "\n"
    assert (DOCS / "punch-events.schema.json").read_text() == text


def test_the_guide_tells_every_event_and_field() -> None:
    guide = (DOCS / "punch.md").read_text()
    for kind in events.EVENTS:
        fields = ", ".join(f"`{field.name}`" for field in dataclasses.fields(kind))
        assert f"| `{kind.event}` | {fields} |" in guide, f"{kind.event}: {fields}"


def test_the_path_event_is_as_promised() -> None:
    told, file = output(as_json=True)
    told.on_link(link.PathChanged("direct", "udp", 480.12345, "why", rtt=0.0401234))
    line = json.loads(file.getvalue())
    assert line["event"] == "path"
    assert (line["kind"], line["transport"], line["ms"], line["rtt"]) == (
        "direct",
        "udp",
        480.123,
        40.123,
    )


def test_every_event_of_a_link_is_told() -> None:
    assert {type(each) for each in LINK_EVENTS} == set(get_args(link.LinkEvent))
    assert {type(each) for each in OWN_EVENTS} | {
        events.Waiting, events.Met, events.Path, events.PathLost, events.Trying, events.NotDirect,
        events.Interrupted, events.Ended,
    } == set(events.EVENTS)  # fmt: skip


# A code that was given, and listeners that leave. -------------------------------------------------


async def test_who_gave_a_code_is_reminded_only_if_it_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ice.punch.output.PATIENCE", 0.01)
    told, file = output(given=True)
    told.on_link(link.Waiting("team-secretword", 3600))
    told.on_link(link.Met(5))
    await asyncio.sleep(0.03)
    assert "waiting" not in file.getvalue()
    told, file = output(given=True)
    told.on_link(link.Waiting("team-secretword", 3600))
    await asyncio.sleep(0.03)
    assert file.getvalue() == "waiting for the other side: punch connect team-secretword\n"
    told, file = output(given=True)
    told.on_link(link.Waiting("team-secretword", 3600))
    told.end()
    await asyncio.sleep(0.03)
    assert file.getvalue() == ""


def test_nobody_listens_any_more() -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    told = Output(str, file=Gone())
    told.tell(events.Note("one"))
    told.tell(events.Error("x", "two"))


def test_a_bar_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    told = Output(str, file=file)
    told.begin(1000)
    told.progress(100, 1000, "[red]\x1b[2J" + "x" * 100)
    told.tell(events.Note("[bold]above the bar[/bold]"))
    told.progress(600, 1000, "b", goes_on=True)
    told.progress(1000, 1000, "b")
    told.end()
    told.end()
    told.tell(events.Note("after"))
    text = file.getvalue()
    assert "[bold]above the bar[/bold]" in text
    assert "\x1b[2J" not in text
    assert text.endswith("after\n")


def test_progress_is_told_about_once_a_second() -> None:
    told, file = output(as_json=True)
    now = [0.0]
    told.traffic.clock = lambda: now[0]
    for octets in range(0, 1001, 10):
        now[0] = octets / 100
        told.progress(octets, 1000, "x")
    assert 10 <= len(file.getvalue().splitlines()) <= 12


# Traffic. -----------------------------------------------------------------------------------------


def test_the_share_that_went_directly() -> None:
    now = [100.0]
    traffic = Traffic(clock=lambda: now[0])
    assert traffic.share is None
    assert traffic.seconds == 0
    traffic.met()
    traffic.see(link.PathChanged("relay", "udp", 1, ""))
    traffic.sent += 100
    traffic.received += 100
    traffic.see(link.PathChanged("direct", "tcp", 1, ""))
    traffic.see(link.Interrupted(""))
    traffic.sent += 600
    now[0] = 105.5
    assert traffic.share == 0.75
    traffic.see(link.PathChanged("relay", "udp", 1, ""))
    traffic.received += 200
    assert traffic.share == 0.6
    assert traffic.seconds == 5.5


# Words for values. --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345, "12.3 kB"), (999_499, "999 kB"),
        (999_500, "1 MB"), (1 << 30, "1.07 GB"), (10**12, "1 TB"),
    ],
)  # fmt: skip
def test_size(octets: int, text: str) -> None:
    assert size(octets) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0 ms"), (0.21, "210 ms"), (0.9996, "1 s"), (12.34, "12.3 s"), (59.94, "59.9 s"),
        (60, "1 min"), (3600, "60 min"), (9000, "2.5 h"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_other_words() -> None:
    assert (count(1, "file"), count(0, "file"), count(2, "file")) == (
        "1 file",
        "0 files",
        "2 files",
    )
    assert printable("a\x1b[2J\u202e\udce9\n") == "a\\x1b[2J\\u202e\\udce9\n"
    assert short("x" * 40) == "…" + "x" * 31
    assert re.fullmatch(r"[^\n]*", short("a\nb"))
