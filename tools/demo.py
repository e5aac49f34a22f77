"""Builds every kind of NAT on this machine, runs natcheck behind each, and shows both.

On a Linux machine that allows it the NATs are real ones, in network namespaces of the kernel; else
the same kinds are simulated.  Then two peers behind two real NATs meet (``tools/demo_meeting.py``).
Exit code 0 when natcheck named every kind as it was built, and the two met directly, else 1.

    python tools/demo.py [--simulated] [KIND...]     only these kinds, and no meeting
    python tools/demo.py --meeting [--svg FILE]      nothing but the meeting, also as a picture
"""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.live import Live  # noqa: E402
from rich.table import Table  # noqa: E402
from rich.text import Text  # noqa: E402

from nattype.assembly import assemble  # noqa: E402
from nattype.classify import classify  # noqa: E402
from nattype.jsonform import ReportFormatError, loads  # noqa: E402
from nattype.lab.sim import scenario  # noqa: E402
from nattype.model import NAMED_KINDS, Kind, NatType, kind  # noqa: E402
from nattype.probe.machine import Finished, Plan, Probe, ProbeConfig  # noqa: E402
from nattype.probe.session import Server as ProbedServer  # noqa: E402
from nattype.report import Report  # noqa: E402
from stun import server as stun_server  # noqa: E402
from stun.sansio import Address  # noqa: E402

AT_ONCE = 2
SECONDS_EACH = 40
"""A run that takes longer has failed."""
SIMULATED_SEED = 1


@dataclass(frozen=True, slots=True)
class Result:
    """What natcheck said behind one kind, and in how many seconds."""

    kind: Kind
    report: Report | None
    seconds: float
    trouble: str = ""

    @property
    def differences(self) -> list[str]:
        """What is not as it was built; empty when natcheck is right."""
        expected, report = self.kind.expected, self.report
        if report is None or report.udp is None or report.tcp is None:
            return [self.trouble or "a protocol was not tested"]
        wanted: list[tuple[str, str, str]] = []
        for name, true, path in (
            ("UDP", expected.udp, report.udp),
            ("TCP", expected.tcp, report.tcp),
        ):
            wanted.append((name, true, path.nat_type))
            if true not in (NatType.UDP_BLOCKED, NatType.TCP_BLOCKED):
                wanted.append((f"{name} mapping", expected.mapping, path.mapping))
        return [
            f"{name} is {true}, natcheck says {said}" for name, true, said in wanted if true != said
        ]


Runner = Callable[[Kind], Result]


def in_the_kernel(which: Kind) -> Result:
    """Run natcheck behind real NATs, as anybody would: ``natlab run --nat KIND -- natcheck``."""
    natcheck = [sys.executable, "-P", "-m", "nattype.cli", "--json"]
    natlab = [sys.executable, "-P", "-m", "nattype.lab.cli", "run", "--nat", which.name]
    if not Path("/proc/sys/net/ipv6").exists():
        natlab.append("--no-ipv6")
    command = [*natlab, "--", *natcheck]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS_EACH,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    except subprocess.TimeoutExpired:
        return Result(which, None, SECONDS_EACH, f"no answer within {SECONDS_EACH} s")
    seconds = time.monotonic() - began
    try:
        return Result(which, loads(done.stdout), seconds)
    except ReportFormatError as error:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        trouble = said[-1] if said else str(error)
        return Result(which, None, seconds, f"exit code {done.returncode}: {trouble}")


def simulated(which: Kind) -> Result:
    """Run natcheck's probe behind simulated NATs, in virtual time."""
    began = time.monotonic()
    place = scenario.behind(which, seed=SIMULATED_SEED)
    world = place.world
    asked = Address(scenario.SERVER_A, 3478)
    server = stun_server.Server(
        stun_server.ServerConfig(asked, Address(scenario.SERVER_B, 3479)),
        entropy=world.entropy("server"),
    )
    serving = world.attach(server, place.server)
    server.start(world.now)
    serving.pump()
    own = next(host for host in place.host.addresses if ":" not in host)
    probe = Probe(
        ProbeConfig((Plan("ipv4", own, (ProbedServer(asked, "the simulated server"),)),)),
        entropy=world.entropy("probe"),
    )
    running = world.attach(probe, place.host)
    probe.start(world.now)
    running.pump()
    world.run(lambda: probe.finished)
    finished = running.events[-1]
    assert isinstance(finished, Finished)
    report = assemble([classify(seen) for seen in finished.observations])
    return Result(which, report, time.monotonic() - began)


class Board:
    """The table, and what is done so far."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self._kinds = kinds
        self._started: dict[str, float] = {}
        self.results: dict[str, Result] = {}

    def started(self, which: Kind) -> None:
        """Note that natcheck runs behind this kind."""
        self._started[which.name] = time.monotonic()

    def __rich__(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("kind", min_width=max(len(which.name) for which in self._kinds))
        longest = max(len(name) for name in NatType)
        for heading in ("expected", "found, UDP and TCP"):
            table.add_column(heading, min_width=longest)
        table.add_column("seconds", justify="right")
        for which in self._kinds:
            table.add_row(*self._row(which))
        return table

    def _row(self, which: Kind) -> tuple[Text, ...]:
        expected = which.expected
        row = (Text(which.name), Text(_names(expected.udp, expected.tcp)))
        result = self.results.get(which.name)
        if result is None:
            since = self._started.get(which.name)
            if since is None:
                return row
            return (*row, Text("...", "dim"), Text(f"{time.monotonic() - since:.0f}", "dim"))
        spent = Text(f"{result.seconds:.1f}")
        report = result.report
        if report is None or report.udp is None or report.tcp is None:
            return (*row, Text("no report", "bold red"), spent)
        found = _names(report.udp.nat_type, report.tcp.nat_type)
        return (*row, Text(found, "bold red" if result.differences else "green"), spent)


def _names(udp: NatType, tcp: NatType) -> str:
    if udp is tcp:
        return udp.value
    # "udp blocked" is a name of its own; beside the protocol it would say it twice.
    over_udp, over_tcp = (
        name.value.removeprefix("udp ").removeprefix("tcp ") for name in (udp, tcp)
    )
    return f"UDP {over_udp}, TCP {over_tcp}"


def run(kinds: Sequence[Kind], runner: Runner, board: Board, tick: Callable[[], None]) -> None:
    """Run natcheck behind every kind, ``AT_ONCE`` at a time; call ``tick`` as things change."""
    waiting = list(kinds)
    running: dict[Future[Result], Kind] = {}
    at_once = AT_ONCE if runner is in_the_kernel else 1
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    which = waiting.pop(0)
                    board.started(which)
                    running[pool.submit(runner, which)] = which
                done, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
                for future in done:
                    board.results[running.pop(future).name] = future.result()
                tick()
        except KeyboardInterrupt:
            # The terminal's Ctrl-C has reached the programs that run as well; wait for them only.
            waiting.clear()
            raise


def choose(wanted_simulated: bool, console: Console) -> tuple[Runner, str]:
    """Return how to run, and in what words; say it when real NATs cannot be had."""
    if wanted_simulated:
        return simulated, "simulated"
    from nattype.lab.doctor import problem

    missing = problem()
    if missing is None:
        return in_the_kernel, "built in the kernel"
    console.print(f"No real NATs here: {missing}", soft_wrap=True)
    console.print("Going on with the simulated network.")
    return simulated, "simulated"


def summary(board: Board, how: str, seconds: float, console: Console) -> bool:
    """Say how it went; return whether all was right."""
    wrong = [result for result in board.results.values() if result.differences]
    for result in wrong:
        for difference in result.differences:
            console.print(Text(f"{result.kind.name}: {difference}", "red"))
    right = len(board.results) - len(wrong)
    kinds = "kind" if len(board.results) == 1 else "kinds"
    line = (
        f"{len(board.results)} {kinds} of NAT {how}, {right} named correctly, in {seconds:.0f} s."
    )
    console.print(Text(line, "bold red" if wrong else "bold green"))
    return not wrong


def try_next(console: Console) -> None:
    """Say what to try next."""
    folder = os.path.relpath(Path(sys.executable).parent)
    console.print("Try next:", highlight=False)
    for command, what in (
        ("natcheck", "which NAT are you behind yourself?"),
        (
            "natlab run --nat symmetric -- natcheck",
            "the whole report, behind a NAT of your choice",
        ),
        ("natlab kinds", "every kind there is"),
        ("turnd --with-rendezvous", "relay and rendezvous, on a machine that everybody reaches"),
        ("punch listen", "then type on another machine what it prints"),
    ):
        console.print(Text(f"  {folder}/{command}").append(f"   {what}", "dim"), soft_wrap=True)


def meeting(wanted_simulated: bool, console: Console) -> bool:
    """Have two peers meet behind real NATs; where there are none, say why not."""
    from nattype.lab.doctor import problem

    missing = "run the demo without --simulated" if wanted_simulated else problem()
    if missing is None:
        from tools import demo_meeting

        return demo_meeting.run(console)
    console.print(
        "Left out: two peers behind two NATs, who meet. Theirs are real programs with real "
        f"sockets, for which no NAT is simulated; {missing}",
        soft_wrap=True,
    )
    return True


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description="Build NATs of every kind, name each of them, and have two peers meet."
    )
    parser.add_argument("--simulated", action="store_true", help="do not build real NATs")
    parser.add_argument("--meeting", action="store_true", help="nothing but the two peers")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="a picture of --meeting")
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help="only these kinds (natlab kinds), and no peers"
    )
    words = parser.parse_args()
    try:
        kinds = [kind(name) for name in words.kinds] or list(NAMED_KINDS)
    except ValueError as error:
        parser.error(str(error))
    if words.svg is not None:
        return 0 if painted(words.svg) else 1
    # A pipe gets plain lines, wide enough for the table.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    right = True
    if not words.meeting:
        right = name_all(kinds, words.simulated, console)
        console.print()
    if words.meeting or not words.kinds:
        right = meeting(words.simulated, console) and right
        console.print()
    try_next(console)
    return 0 if right else 1


def painted(path: Path) -> bool:
    """Have two peers meet, and keep what is shown as a picture; return whether all went well."""
    console = Console(
        width=80, highlight=False, record=True, file=io.StringIO(), color_system="truecolor"
    )
    right = meeting(wanted_simulated=False, console=console)
    print(console.export_text(clear=False), end="")
    picture = console.export_svg(title="make demo", unique_id="demo")
    # Nobody's fonts are fetched from anywhere to show it.
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))
    return right


def name_all(kinds: Sequence[Kind], wanted_simulated: bool, console: Console) -> bool:
    """Have natcheck name every kind, and tell it; return whether all was right."""
    runner, how = choose(wanted_simulated, console)
    board = Board(kinds)
    began = time.monotonic()
    if console.is_terminal:
        with Live(board, console=console, refresh_per_second=4):
            run(kinds, runner, board, lambda: None)
    else:
        run(kinds, runner, board, lambda: None)
        console.print(board)
    console.print()
    return summary(board, how, time.monotonic() - began, console)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
