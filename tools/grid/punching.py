"""``punch listen`` on one host and ``punch connect`` on another: what they tell, and when.

Theory of operation.  Both are the real command, each a process of its own, with pipes.  Each side
is fed a numbered line every 50 ms from the moment it starts, so that there is something to send as
soon as there is a way; the other side's output has to be the same lines, none missing, none twice,
all in order.  Once both send directly, or the time for that is over, the inputs end, and so have
the two commands, without an error.

Times count from when the first of the two says ``met``, to when the second has what is timed: what
a person would see who watches both.  They are taken as the lines come out of the pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from nattype.lab import Machine, Process
from tools.grid.cells import NATKIT, Cell, Outcome, Run

ROOT: Final = Path(__file__).resolve().parents[2]
PUNCH: Final = (sys.executable, "-P", "-m", "ice.punch.cli")
RHYTHM: Final = 0.05
"""Seconds between two lines."""
STARTING: Final = 30.0
"""Seconds in which two programs have to come to the rendezvous, on a machine with much to do."""
MORE: Final = 0.3
"""Seconds that lines go on once both send directly, so that some go that way."""
ENDING: Final = 15.0
"""Seconds in which both have to end once their input has ended."""


Told: TypeAlias = "queue.Queue[tuple[float, str, dict[str, Any]]]"
"""What is told, when and by whom, as it comes."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How two sides are brought together."""

    rendezvous: str
    code: str
    skew: float
    """Seconds between the two starts."""
    late: str
    """``a`` or ``b``: who is started second."""
    patience: float
    """Seconds, from when they met, in which a direct way has to be there."""
    birthday: bool = True


@dataclass(slots=True)
class Side:
    """One of the two commands, while it runs."""

    name: str
    program: Process
    told: Told
    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    first: float | None = None
    sent: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for work in (self._feed, self._read, self._listen):
            thread = threading.Thread(target=work, name=f"{work.__name__} {self.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def finish(self) -> str:
        """Wait for its end, now that both inputs end, and return what was wrong with it."""
        wrong = ""
        try:
            status = self.program.wait(ENDING)
        except subprocess.TimeoutExpired:
            wrong = f"{self.name} does not end"
            self.program.kill()
            self.program.wait()
        else:
            if status:
                wrong = f"{self.name} ended with {status}: {self.error}"
            elif noise := self.last("noise"):
                wrong = f"{self.name} wrote what is no event: {noise['text']}"
        for thread in self._threads:
            thread.join(ENDING)
        for stream in (self.program.stdin, self.program.stdout, self.program.stderr):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        return wrong

    @property
    def error(self) -> str:
        """What it said last of what is wrong."""
        for _, event in reversed(self.events):
            if found := event.get("text") or event.get("error"):
                return str(found)
        return "it does not say why"

    def when(self, is_it: Callable[[dict[str, Any]], bool]) -> float | None:
        """Return when it first told of something, on the clock of ``time.monotonic``."""
        return next((at for at, event in self.events if is_it(event)), None)

    def last(self, kind: str) -> dict[str, Any] | None:
        """Return what it told last of one kind of event."""
        return next((event for _, event in reversed(self.events) if event["event"] == kind), None)

    def _feed(self) -> None:
        stdin = self.program.stdin
        assert stdin is not None
        with contextlib.suppress(OSError):
            while not self.done.is_set():
                line = f"{self.name} {len(self.sent)}\n"
                self.sent.append(line)
                stdin.write(line)
                stdin.flush()
                self.done.wait(RHYTHM)
            stdin.close()

    def _read(self) -> None:
        assert self.program.stdout is not None
        for line in self.program.stdout:
            if self.first is None:
                self.first = time.monotonic()
                self.told.put((self.first, self.name, {"event": "first"}))
            self.received.append(line)

    def _listen(self) -> None:
        assert self.program.stderr is not None
        for line in self.program.stderr:
            now = time.monotonic()
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "noise", "text": line.rstrip()}
            self.events.append((now, event))
            self.told.put((now, self.name, event))
        self.told.put((time.monotonic(), self.name, {"event": "gone"}))


def connect(
    machines: dict[str, Machine], cell: Cell, number: int, terms: Terms, folder: Path
) -> tuple[Run, list[str]]:
    """Connect once; return what came of it, and the story: a line for each thing that was told."""
    told: Told = queue.Queue()
    sides: dict[str, Side] = {}
    early = "b" if terms.late == "a" else "a"
    for name in (early, terms.late):
        if sides:
            time.sleep(terms.skew)
        command = _command(name, cell, terms)
        # What worked before in this network is remembered there: each run is the first one.
        cache = folder / f"cache-{name}"
        program = machines[name].popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)},
        )
        sides[name] = Side(name, program, told)
        sides[name].start()
    wrong: list[str] = []
    try:
        wrong += _watch(sides, told, terms)
    finally:
        for side in sides.values():
            side.done.set()
        wrong += [found for side in sides.values() if (found := side.finish())]
    whole = True
    for here, there in (("a", "b"), ("b", "a")):
        if sides[here].received != sides[there].sent:
            whole = False
            wrong.append(
                f"{here} received {len(sides[here].received)} lines that are not the "
                f"{len(sides[there].sent)} that {there} was given"
            )
    return _judge(sides, cell, number, terms, "; ".join(wrong), whole=whole), _story(sides)


def _command(name: str, cell: Cell, terms: Terms) -> list[str]:
    command = ["listen", "--code", terms.code] if name == "a" else ["connect", terms.code]
    options = ["--rendezvous", terms.rendezvous, f"--{cell.mode.transport}-only", "--json"]
    return [*PUNCH, *command, *options, *(["--birthday"] if terms.birthday else [])]


def _watch(
    sides: dict[str, Side],
    told: Told,
    terms: Terms,
) -> list[str]:
    """Wait until both send directly, or it is over; return what was wrong."""
    kinds = dict.fromkeys(sides, "")
    firsts: set[str] = set()
    end = time.monotonic() + STARTING
    met = False
    while set(kinds.values()) != {"direct"} or len(firsts) < len(sides):
        try:
            now, name, event = told.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return [] if met else ["they did not meet"]
        match event:
            case {"event": "met"} if not met:
                met, end = True, now + terms.patience
            case {"event": "path", "kind": kind}:
                kinds[name] = kind
            case {"event": "first"}:
                firsts.add(name)
            case {"event": "gone"}:
                return [f"{name} has ended: {sides[name].error}"]
    time.sleep(MORE)
    return []


def _judge(
    sides: dict[str, Side], cell: Cell, number: int, terms: Terms, wrong: str, *, whole: bool
) -> Run:
    met = [side.when(lambda event: event["event"] == "met") for side in sides.values()]
    start = min((at for at in met if at is not None), default=None)
    firsts = [side.first for side in sides.values()]
    paths = [side.last("path") for side in sides.values()]
    directs = [side.when(_is_direct) for side in sides.values()]
    outcome: Outcome = "none"
    over = ""
    if whole and None not in firsts and None not in paths:
        # A path that only one of the two has is none.
        outcome = "direct" if all(path["kind"] == "direct" for path in paths if path) else "relay"
        over = "/".join(sorted({path["transport"] for path in paths if path}))
    return Run(
        NATKIT,
        cell,
        number,
        outcome,
        over=over,
        first=_span(start, firsts),
        direct=_span(start, directs) if outcome == "direct" else None,
        strategy=_strategy(sides["a"]),
        skew=round(terms.skew, 3),
        late=terms.late,
        load=round(os.getloadavg()[0], 2),
        why=wrong,
    )


def _is_direct(event: dict[str, Any]) -> bool:
    return (event["event"], event.get("kind")) == ("path", "direct")


def _span(start: float | None, ends: list[float | None]) -> float | None:
    """Return how long it took until the last one was there, if all were."""
    known = [end for end in ends if end is not None]
    if start is None or len(known) < len(ends):
        return None
    return round(max(known) - start, 3)


def _strategy(side: Side) -> str:
    """Return what was tried last before the first direct way, or at all."""
    found = ""
    for _, event in side.events:
        if event["event"] == "trying":
            found = event["strategy"]
        elif _is_direct(event):
            break
    return found


def _story(sides: dict[str, Side]) -> list[str]:
    told = [(at, side.name, event) for side in sides.values() for at, event in side.events]
    told += [(side.first, side.name, {"event": "first"}) for side in sides.values() if side.first]
    begin = min((at for at, _, _ in told), default=0.0)
    return [
        f"{at - begin:8.3f} {name} {json.dumps(event)}"
        for at, name, event in sorted(told, key=lambda each: each[:2])
    ]
