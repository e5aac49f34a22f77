"""What a person, or a program, is told on standard error while a command runs."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TextIO, assert_never

from ice.link import events as link
from ice.punch import events
from ice.punch.link import Traffic

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE: Final = 1.0
"""Seconds that whoever gave a code waits before being told for what: most often the other side is
there already."""
MANY: Final = 20
"""With more files than these, only what is worth a look is told of each."""
RHYTHM: Final = 1.0
"""Seconds between two :class:`ice.punch.events.Progress`."""


class Output:
    """Tells events.

    ``command`` makes of a code the command that the other side has to type.  With ``given`` the
    code is one that the user has given, so it need not be told at once.
    """

    def __init__(
        self,
        command: Callable[[str], str],
        *,
        given: bool = False,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        file: TextIO | None = None,
    ) -> None:
        self.traffic = Traffic()
        self.verbose = verbose
        self._command = command
        self._given = given
        self._json = as_json
        self._quiet = quiet
        self._file = sys.stderr if file is None else file
        self._reminder: asyncio.TimerHandle | None = None
        self._paths = 0
        self._many = False
        self._states: Counter[str] = Counter()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._due = 0.0

    # Telling. -------------------------------------------------------------------------------------

    def on_link(self, event: link.LinkEvent) -> None:
        """Tell what a connection says of itself."""
        self.traffic.see(event)
        if isinstance(event, link.Met):
            self.traffic.met()
        self.tell(self._of_link(event))

    def tell(self, event: events.Event) -> None:
        """Tell an event: as a line of JSON, or in words."""
        if isinstance(event, events.Met) and self._reminder is not None:
            self._reminder.cancel()
        if self._json:
            self._write(events.line(event))
            return
        if isinstance(event, events.Waiting) and self._given:
            if self._quiet:
                return
            loop = asyncio.get_running_loop()
            self._reminder = loop.call_later(PATIENCE, self._say, self._waiting(event))
            return
        quietly = isinstance(event, events.Error | events.Waiting)
        if self._quiet and not quietly:
            return
        text = self._words(event)
        if text:
            self._say(text)

    def summary(self) -> None:
        """Tell what there was, if the two have met."""
        traffic = self.traffic
        if traffic.seconds:
            share = traffic.share
            self.tell(events.Summary(traffic.sent, traffic.received, traffic.seconds, share))

    def _of_link(self, event: link.LinkEvent) -> events.Event:
        match event:
            case link.Waiting(code, seconds):
                return events.Waiting(code, seconds, self._command(code))
            case link.Met(ms):
                return events.Met(ms)
            case link.PathChanged(kind, transport, ms, why, local, remote, rtt, relay):
                rtt = None if rtt is None else rtt * 1e3
                return events.Path(kind, transport, ms, why, local, remote, rtt, relay)
            case link.PathLost(kind, transport, why):
                return events.PathLost(kind, transport, why)
            case link.Trying(transport, strategy, attempt, why):
                return events.Trying(transport, strategy, attempt, why)
            case link.NotDirect(transport, strategy, attempt, why, again):
                return events.NotDirect(transport, strategy, attempt, why, again)
            case link.Interrupted(why):
                return events.Interrupted(why)
            case link.Ended(error):
                return events.Ended(error)
            case _:
                assert_never(event)

    # Words. ---------------------------------------------------------------------------------------

    def _words(self, event: events.Event) -> str | None:
        """Return the words for a person, or None for what only a curious one wants to know."""
        match event:
            case events.Waiting():
                return self._waiting(event)
            case events.Met(ms):
                return f"the other side is there, after {duration(ms / 1e3)}"
            case events.Path():
                return self._path(event)
            case events.PathLost(kind, transport, why):
                return f"lost: {_way(kind, transport)}: {why}" if self.verbose else None
            case events.Trying(transport, strategy, attempt, why):
                because = f": {why}" if why else ""
                text = f"trying directly over {transport.upper()}, {strategy}, attempt {attempt}"
                return f"{text}{because}" if self.verbose else None
            case events.NotDirect(transport, _, _, why, again):
                then = "" if again is None else f"; again in {duration(again)}"
                text = f"not directly over {transport.upper()}: {why}{then}"
                return text if self.verbose else None
            case events.Interrupted(why):
                return f"interrupted: {why}"
            case events.Ended(error):
                return f"the connection has ended: {error}" if self.verbose and error else None
            case events.Offer(files, octets):
                self._many = files > MANY and not self.verbose
                return f"{count(files, 'file')}, {size(octets)}"
            case events.File():
                self._states[event.state] += 1
                dull = self._many and event.state in {"started", "done", "same"} and not event.why
                return None if dull else _file(event)
            case events.Note(text):
                return text
            case events.Listening(host, port):
                return f"listening at {host} port {port}"
            case events.Connection():
                return _connection(event) if self.verbose or event.state == "refused" else None
            case events.Summary():
                return self._files() + _summary(event)
            case events.Error(_, text):
                return f"punch: {text}"
            case events.Progress():
                return None
            case _:
                assert_never(event)

    def _waiting(self, event: events.Waiting) -> str:
        if self._given:
            return f"waiting for the other side: {event.command}"
        return (
            f"code: {event.code}\n"
            f"on the other machine, within {duration(event.seconds)}: {event.command}"
        )

    def _files(self) -> str:
        """Return how many files there were of each kind, if they have not been told one by one."""
        if not self._many:
            return ""
        kinds = (("done", ""), ("same", " were there already"), ("failed", " failed"))
        told = [f"{count(self._states[kind], 'file')}{text}" for kind, text in kinds
                if self._states[kind]]  # fmt: skip
        return ", ".join(told) + "\n" if told else ""

    def _path(self, event: events.Path) -> str:
        self._paths += 1
        after = f"after {duration(event.ms / 1e3)}"
        if event.kind == "relay":
            text = f"relayed {after}" + (f" by {event.relay}" if event.relay else "")
        else:
            text = f"direct over {event.transport.upper()} {after}"
            text += f": {event.remote}" if event.remote else ""
        if self.verbose and event.rtt is not None:
            text += f", round trip {duration(event.rtt / 1e3)}"
        if self.verbose and event.local:
            text += f", from {event.local}"
        if event.why and (self.verbose or (self._paths > 1 and event.kind == "relay")):
            text += f" ({event.why})"
        return text

    # Progress. ------------------------------------------------------------------------------------

    def begin(self, total: int) -> None:
        """Show a bar from now on, on a terminal."""
        if self._json or self._quiet or not self._file.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=self._file),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total)
        self._bar.start()

    def progress(self, octets: int, total: int, name: str, *, goes_on: bool = False) -> None:
        """Tell how far it is; ``goes_on``: the last octets were there before and have no speed."""
        if self._bar is not None and self._task is not None:
            if goes_on:
                self._bar.reset(self._task, completed=octets)
            self._bar.update(self._task, completed=octets, total=total, description=short(name))
        now = self.traffic.clock()
        if self._json and (now >= self._due or octets >= total):
            self._due = now + RHYTHM
            self.tell(events.Progress(octets, total))

    def end(self) -> None:
        """Show the bar no longer, nor anything that was put off."""
        if self._reminder is not None:
            self._reminder.cancel()
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    # Writing. -------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._write(printable(text))

    def _write(self, text: str) -> None:
        try:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                self._file.write(text + "\n")
                self._file.flush()
        except (OSError, ValueError):
            # Nobody listens any more.  What is transferred is worth more than what is told of it.
            self._quiet, self._json = True, False


# Words for values. --------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Return ``text`` without anything that could steer a terminal: file names are a peer's."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "replace").decode()
        for c in text
    )


def short(name: str, most: int = 32) -> str:
    """Return a name that leaves room for a bar: without markup, and cut at its beginning."""
    name = printable(name).replace("\n", "\\n").replace("[", "\\[")
    return name if len(name) <= most else "…" + name[1 - most :]


def size(octets: int) -> str:
    """Return a number of octets for a person, in decimal units."""
    if octets < 1000:
        return f"{octets} B"
    value, units = octets / 1000, ["TB", "GB", "MB", "kB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop()
    return f"{value:.3g} {units[-1]}"


def duration(seconds: float) -> str:
    """Return a duration for a person."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.3g} h"


def count(number: int, noun: str) -> str:
    """Return a number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _way(kind: str, transport: str) -> str:
    return "the relay" if kind == "relay" else f"the direct path over {transport.upper()}"


def _file(event: events.File) -> str | None:
    match event.state:
        case "started":
            if 0 < event.offset < event.size:
                return f"{event.name}: goes on after {size(event.offset)} of {size(event.size)}"
            return None
        case "done":
            changed = f"; {event.why}" if event.why else ""
            return f"{event.name}: {size(event.size)}, SHA-256 {event.sha256}{changed}"
        case "same":
            return f"{event.name}: is there already, the same"
        case "failed" | "skipped":
            return f"{event.name}: {event.state}: {event.why}"
        case _:
            assert_never(event.state)


def _connection(event: events.Connection) -> str:
    of = f" ({event.peer})" if event.peer else ""
    why = f": {event.why}" if event.why else ""
    return f"connection {event.number}{of} {event.state}{why}"


def _summary(event: events.Summary) -> str:
    text = f"sent {size(event.sent)}, received {size(event.received)} in {duration(event.seconds)}"
    if event.direct is not None:
        text += f"; {event.direct * 100:.0f} % went directly"
    return text
