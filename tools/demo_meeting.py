"""The end of the demo: two peers behind two real NATs, and ``punch`` on either side.

Theory of operation.  Two NATs of different make are built in the kernel, with a public network
between them.  ``turnd --with-rendezvous`` runs there, and on the hosts behind them run the commands
that two people would type.  A packet socket in each NAT shows what passes; the rest is what the
commands tell (``punch --json``), and what comes out of them.  One thread does all that, waiting on
every descriptor at once; the programs end with the laboratory, however this one ends.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from nattype.lab import Lab, LabError, Machine, Process
from nattype.lab.kernel.spec import site
from tools.demo_diagram import BAD, GOOD, SIDES, STYLES, Diagram
from tools.demo_peer import Peer
from tools.demo_wire import Taps, Wire

T = TypeVar("T")
Words = str | Text | tuple[str, str]

ROOT: Final = Path(__file__).parents[1]
KINDS: Final = {"A": "port-restricted-rst", "B": "port-restricted-icmp"}
UNINVITED: Final = {
    "A": "refuses the uninvited with RST",
    "B": "refuses the uninvited with ICMP",
}
DELAY: Final = 0.02
"""Seconds between a NAT and the public network, each way."""
RENDEZVOUS_PORT: Final = 8080
OPTIONS: Final = ("--tcp-only", "--json")
QUESTION: Final = "Can you hear me, B?"
ANSWER: Final = "Loud and clear, A."
PERIOD: Final = 0.005
"""Seconds between two lines that a peer sends."""
AFTERWARDS: Final = 1.0
"""Seconds for which the two go on when they have a direct path."""
PATIENCE: Final = 30.0
"""Seconds after which something has gone wrong, whatever it was."""
TICK: Final = 0.05
"""Seconds between two pictures."""
INDENT: Final = 11


class MeetingError(Exception):
    """The meeting has failed: what happened, in a sentence."""


def run(console: Console) -> bool:
    """Have the two meet, and tell it; return whether all went well.  It needs a laboratory."""
    stage = Stage(console)
    stage.say(("Two peers, each behind a NAT that lets in answers only, meet over TCP:", "bold"))
    sites = (site(KINDS[side], name=side, hosts=(side,), delay=DELAY) for side in SIDES)
    try:
        with (
            ended_by_signals(),
            Lab(*sites, server_command=(), ipv6="off") as lab,
            stage.moving(),
            contextlib.closing(Meeting(lab, stage)) as meeting,
        ):
            try:
                meeting.play()
            except MeetingError:
                meeting.explain()
                raise
    except (LabError, MeetingError) as error:
        stage.say((f"The meeting failed: {error}", BAD))
        return False
    return True


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """End as by an exception, so that the terminal is left as it was, on SIGTERM and SIGHUP."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            if handler is signal.SIG_DFL:
                signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# What is told. ------------------------------------------------------------------------------------


class Stage:
    """Where it is told: lines that stay, and on a terminal a picture below them that moves."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Allow pictures, if this is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        try:
            with self._live:
                yield
        finally:
            self._live = None

    def say(self, *parts: Words) -> None:
        """Tell a line that stays."""
        self.console.print(Text.assemble(*parts), soft_wrap=True)

    def at(self, ms: float | None, *parts: Words) -> None:
        """Tell what happened at a time, in milliseconds since the two met."""
        when = "" if ms is None else f"{ms:.0f} ms"
        self.say((f"{when:>{INDENT - 2}}  ", "dim"), *parts)

    def typed(self, where: str, command: str) -> None:
        """Tell what is typed, and where."""
        self.say((f"{where}$ ", f"bold {STYLES.get(where, 'default')}"), command)

    def show(self, picture: RenderableType) -> None:
        """Show what will be replaced."""
        if self._live is not None:
            self._live.update(picture, refresh=True)


# The meeting. -------------------------------------------------------------------------------------


class Meeting:
    """The meeting, in a laboratory that is up."""

    def __init__(self, lab: Lab, stage: Stage) -> None:
        self._lab, self._stage = lab, stage
        self._selector = selectors.DefaultSelector()
        nats = {side: lab.box(site=side) for side in SIDES}
        self._nats = {side: nat.ipv4 for side, nat in nats.items()}
        self._server = lab.server_addresses()[0]
        self._turnd: Process | None = None
        self._turnd_said: deque[bytes] = deque(maxlen=20)
        self.peers: dict[str, Peer] = {}
        self.wire = Wire(self._nats)
        self._taps = Taps(nats)
        for tap in self._taps.sockets:
            self._selector.register(tap, selectors.EVENT_READ, self._read_taps)
        self._files: list[IO[bytes]] = []
        self._talking = False
        self._next_line = self._next_picture = 0.0

    def close(self) -> None:
        """Stop looking and listening; the programs end with the laboratory."""
        self._selector.close()
        self._taps.close()
        for file in self._files:
            file.close()

    # The story. -----------------------------------------------------------------------------------

    def play(self) -> None:
        """Have them meet, and tell it.  Raises :class:`MeetingError`."""
        for side in SIDES:
            self._stage.say(
                (f"  {side}", f"bold {STYLES[side]}"),
                f" {self._lab[side].ipv4}, behind {self._nats[side]}, which {UNINVITED[side]}",
            )
        self._stage.say(f"  It takes {DELAY * 4e3:.0f} ms from one to the other and back.")
        self._stage.say()
        self._serve()
        url = f"ws://{self._server}:{RENDEZVOUS_PORT}"
        self._stage.at(None, (f"both peers have PUNCH_RENDEZVOUS={url}", "dim"))
        self._stage.typed("A", f"punch listen {' '.join(OPTIONS)}")
        a = self._start("A", "listen")
        waiting = self._until(lambda: a.event("waiting"), "A has reached the rendezvous")
        self._stage.at(None, "the code is ", (waiting["code"], "bold"))
        self._stage.typed("B", f"punch connect {waiting['code']} {' '.join(OPTIONS)}")
        b = self._start("B", "connect", waiting["code"])
        both = (a, b)
        self._until(lambda: a.met_at and b.met_at, "the two have met")
        self._stage.at(0, "they have met, and proved to each other that they have the same code")
        self._until(lambda: a.paths and b.paths, "there was any path")
        first = self._tell_path(0)
        self._talk(a, b, QUESTION)
        self._talk(b, a, ANSWER)
        self._talking = True
        self._until(lambda: a.is_direct and b.is_direct, "there was a direct path")
        self._draw()
        last = self._tell_path(-1)
        enough = time.monotonic() + AFTERWARDS
        self._until(lambda: time.monotonic() > enough, "they have talked")
        self._talking = False
        for peer in both:
            peer.end()
        self._until(lambda: all(peer.over for peer in both), "both were done")
        self._tell_sum(a, b, first, last)

    def explain(self) -> None:
        """Tell all that is known, after something went wrong."""
        if self._taps.sockets:
            self._draw()
        for side, peer in self.peers.items():
            for event in peer.events:
                if event["event"] not in {"waiting", "met"}:
                    text = ", ".join(f"{k} {v}" for k, v in event.items() if v and k != "event")
                    self._stage.say((f"  {side}", STYLES[side]), f" {event['event']}: {text}")

    def _draw(self) -> None:
        """Draw the diagram so that it stays, and look no longer."""
        self._read_taps()
        for tap in self._taps.sockets:
            self._selector.unregister(tap)
        self._taps.close()
        self._stage.say()
        for line in self._diagram():
            self._stage.say(line)
        self._stage.say()

    def _tell_path(self, which: int) -> float:
        """Tell of the first or the last path of both sides; return when the later one had it."""
        paths = [peer.paths[which] for peer in self.peers.values()]
        path, ms = paths[0], max(each["ms"] for each in paths)
        if path["kind"] == "relay":
            self._stage.at(ms, ("relayed", f"bold {GOOD}"), f" by turnd at {self._server}")
        else:
            words = f"direct over {path['transport'].upper()}"
            self._stage.at(ms, (words, f"bold {GOOD}"), f", {path['local']} to {path['remote']}")
        return float(ms)

    def _talk(self, speaker: Peer, hearer: Peer, words: str) -> None:
        """Have one side say something, and tell when the other one has heard it."""
        line = words.encode() + b"\n"
        speaker.send(line)
        self._until(lambda: hearer.received.endswith(line), f"{hearer.side} has heard {words!r}")
        ms = (time.time_ns() - hearer.met_at) / 1e6
        self._stage.at(ms, (f"{speaker.side}: {words}", STYLES[speaker.side]))

    def _tell_sum(self, a: Peer, b: Peer, first: float, last: float) -> None:
        for sender, receiver in ((a, b), (b, a)):
            if sender.sent != receiver.received:
                raise MeetingError(
                    f"{sender.side} sent {len(sender.sent)} octets and {receiver.side} received "
                    f"{len(receiver.received)}, and they are not the same"
                )
        ends = [end for peer in (a, b) if (end := peer.event("summary")) is not None]
        direct = round(100 * sum(end["direct"] or 0.0 for end in ends) / max(1, len(ends)))
        lines = (a.sent + b.sent).count(b"\n")
        self._stage.at(
            None, f"{lines} lines were said, {100 - direct} % by the relay, {direct} % directly;"
        )
        self._stage.at(None, "each was heard, once and in order")
        how = "Relayed" if a.paths[0]["kind"] == "relay" else "Connected"
        path = f"direct over {a.paths[-1]['transport'].upper()}"
        self._stage.say()
        self._stage.say(
            (f"{how} after {first:.0f} ms, {path} after {last:.0f} ms.", f"bold {GOOD}")
        )

    # What runs. -----------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._stage.typed("public host", "turnd --with-rendezvous")
        self._turnd = self._popen(
            self._lab.server, "turn.daemon.cli", ["--with-rendezvous"], stderr=subprocess.STDOUT
        )
        assert self._turnd.stdout is not None
        self._watch(self._turnd.stdout, self._turnd_said.append)
        self._until(self._is_served, "turnd has answered")

    def _is_served(self) -> bool:
        with self._lab.server.socket(socket.AF_INET, socket.SOCK_STREAM) as caller:
            return caller.connect_ex((self._server, RENDEZVOUS_PORT)) == 0

    def _start(self, side: str, *command: str) -> Peer:
        machine = self._lab[side]
        process = self._popen(
            machine,
            "ice.punch.cli",
            [*command, *OPTIONS],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        peer = self.peers[side] = Peer(side, process)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._files.append(process.stdin)
        self._watch(process.stdout, peer.take_output)
        self._watch(process.stderr, peer.take_events)
        return peer

    def _popen(
        self, machine: Machine, module: str, arguments: Sequence[str], **redirections: Any
    ) -> Process:
        paths = (str(ROOT), os.environ.get("PYTHONPATH"))
        return machine.popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdout=subprocess.PIPE,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "PUNCH_RENDEZVOUS": f"ws://{self._server}:{RENDEZVOUS_PORT}",
                # What is remembered of networks is to vanish with these.  /run is the
                # laboratory's own.
                "XDG_CACHE_HOME": "/run/natkit-demo",
            },
            **redirections,
        )

    def _watch(self, file: IO[bytes], take: Callable[[bytes], object]) -> None:
        """Hand over what comes from a program; nothing is the end."""

        def read() -> None:
            try:
                data = os.read(file.fileno(), 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self._selector.unregister(file)
            take(data)

        os.set_blocking(file.fileno(), False)
        self._selector.register(file, selectors.EVENT_READ, read)
        self._files.append(file)

    # The loop. ------------------------------------------------------------------------------------

    def _until(self, done: Callable[[], T | None], what: str) -> T:
        """Go on until ``done`` says something, and return that; ``what`` is in words what it is.

        Raises :class:`MeetingError` when that takes too long, and when a peer has failed.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            result = done()
            if result:
                return result
            if time.monotonic() > deadline:
                raise MeetingError(f"{PATIENCE:g} s went by before {what}")
            if self._turnd is not None and self._turnd.poll() is not None:
                said = b"".join(self._turnd_said).decode(errors="replace").strip()
                raise MeetingError(f"turnd has ended: {said}")
            for peer in self.peers.values():
                if peer.failure:
                    raise MeetingError(f"the punch of {peer.side} failed: {peer.failure}")
            self._step()

    def _step(self) -> None:
        for key, _ in self._selector.select(PERIOD if self._talking else TICK):
            key.data()
        now = time.monotonic()
        if self._talking and now >= self._next_line:
            self._next_line = now + PERIOD
            for peer in self.peers.values():
                peer.send_line()
        for peer in self.peers.values():
            peer.flush()
        if now >= self._next_picture:
            self._next_picture = now + TICK
            self._stage.show(self._picture())

    def _read_taps(self) -> None:
        self._taps.read(self.wire)

    def _diagram(self) -> list[Text]:
        console = self._stage.console
        zero = min((peer.met_at for peer in self.peers.values()), default=0)
        diagram = Diagram(self.wire, self._nats, console.width, zero=zero or None)
        return diagram.lines(time.time_ns(), encoding=console.encoding)

    def _picture(self) -> Group:
        lines: list[Text] = []
        if self._taps.sockets:
            # What is too high for the terminal could not be replaced.
            lines += self._diagram()[-max(4, self._stage.console.height - 4) :]
        if self._talking:
            counts = " and ".join(
                f"{len(peer.received)} octets to {peer.side}" for peer in self.peers.values()
            )
            directly = all(peer.is_direct for peer in self.peers.values())
            way = "directly" if directly else "by the relay"
            lines.append(Text(f"{'':{INDENT}}{counts}, now {way}", "dim"))
        return Group(*lines)
