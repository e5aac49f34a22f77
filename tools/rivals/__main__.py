"""natcheck beside pystun3 and turnutils_natdiscovery: the same NATs, the same dishonest servers.

    python -m tools.rivals [--only WORD] [--redraw] [--readme FILE]

Each tool gets the server and nothing else, as a person would run it, behind NATs that the kernel
makes, with UDP alone (the others know nothing else).  The table goes between its markers into
README.md, the answers into docs/rivals.json.  tools/rivals/words.py has the rules by which answers
are judged.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from nattype.model import Kind, kind
from tools.rivals import words
from tools.rivals.dishonest import Fault
from tools.rivals.words import Answer, Mark, Run

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(sys.prefix) / "peers"
"""pystun3's package is called ``stun`` as natkit's is, so it lives apart, on nobody's path."""
ANSWERS = ROOT / "docs" / "rivals.json"
SERVER = "192.31.196.10"
SECONDS_EACH = 45
"""pystun3's longest way to an answer is four requests without one, eight seconds each."""
AT_ONCE = 2
BEGIN, END = "<!-- rivals: written by make rivals -->", "<!-- end of rivals -->"

HONEST = (
    "open",
    "firewall",
    "full-cone",
    "restricted-cone",
    "port-restricted-cone",
    "port-restricted-poisoned",
    "adm+eif+random",
    "symmetric-sequential",
    "symmetric",
    "udp-blocked",
    "cgnat",
)
BEHIND_DISHONEST = ("port-restricted-cone", "symmetric")
FAULTS = {
    Fault.IGNORE_CHANGE: "the server ignores CHANGE-REQUEST",
    Fault.REFUSE_CHANGE: "the server answers 420 to CHANGE-REQUEST",
    Fault.PRIVATE_OTHER: "the server advertises a private second address",
    Fault.NO_OTHER: "the server has no second address",
    Fault.DEAD_SECOND: "the server's second address is dead",
}
NOTES = (
    "EIM, ADM, APDM: endpoint-independent, address-dependent, address-and-port-dependent mapping;",
    "EIF, ADF, APDF: the same for filtering. Every tool got the server's address and nothing else;",
    "told the host's own address by hand (`-i`, `-L`), the other two get the first two rows right.",
    "The rules of the judgement are in [tools/rivals/words.py](tools/rivals/words.py).",
)
SAID = 400
"""Characters of a tool's output that are kept, from its end."""
SYMBOL = {Mark.RIGHT: "right", Mark.WRONG: "**wrong**", Mark.NO_ANSWER: "no answer"}


@dataclass(frozen=True, slots=True)
class Situation:
    """What a tool is put into."""

    kind: Kind
    fault: Fault

    @property
    def title(self) -> str:
        """The first cell of the row."""
        if self.fault is Fault.NONE:
            return self.kind.name
        return f"{self.kind.name}; {FAULTS[self.fault]}"


@dataclass(frozen=True, slots=True)
class Tool:
    """A program and how its words are read."""

    name: str
    command: tuple[str, ...]


def situations() -> Iterator[Situation]:
    """Yield every row of the table."""
    for name in HONEST:
        yield Situation(kind(name), Fault.NONE)
    for fault in FAULTS:
        for name in BEHIND_DISHONEST:
            yield Situation(kind(name), fault)


READERS = {"natcheck": words.natcheck, "pystun3": words.pystun3, "turnutils": words.turnutils}


def tools(console: Console) -> list[Tool]:
    """Return the tools that can be had; pystun3 is installed, coturn's have to be there."""
    found = [
        Tool(
            "natcheck",
            (
                "env",
                f"PYTHONPATH={ROOT}",
                sys.executable,
                "-P",
                "-m",
                "nattype.cli",
                "--json",
                "--udp-only",
                "--server",
                SERVER,
            ),
        )
    ]
    pystun3 = PEERS / "bin" / "pystun3"
    if not pystun3.exists():
        console.print(f"installing pystun3 into {PEERS}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(PEERS), "pystun3>=2"], check=True)
    found.append(
        Tool(
            "pystun3",
            ("env", f"PYTHONPATH={PEERS}", sys.executable, "-P", str(pystun3), "-H", SERVER),
        )
    )
    turnutils = shutil.which("turnutils_natdiscovery")
    if turnutils is None:
        console.print("turnutils_natdiscovery is missing; run: sudo apt-get install -y coturn")
    else:
        found.append(Tool("turnutils", (turnutils, "-m", "-f", SERVER)))
    return found


def try_out(tool: Tool, situation: Situation) -> Run:
    """Run one tool in one situation."""
    behind = [
        sys.executable, "-m", "tools.rivals.behind",
        "--nat", situation.kind.name, "--fault", situation.fault.value, "--", *tool.command,
    ]  # fmt: skip
    began = time.monotonic()
    process = subprocess.Popen(
        behind,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
    )
    try:
        out, _ = process.communicate(timeout=SECONDS_EACH)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        code = None
    if "the NAT could not be built" in out:
        raise SystemExit(out.strip())
    return Run(out, code, time.monotonic() - began)


def cell(answer: Answer, judged: Mark) -> str:
    """Return a cell of the table: the judgement, and the tool's words where they matter."""
    if judged is Mark.RIGHT:
        return SYMBOL[judged]
    return f"{SYMBOL[judged]}: {answer.words}"


def table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Return the answers as Markdown, with each tool's sums in the last row."""
    titles = {"turnutils": "turnutils_natdiscovery"}
    lines = [
        "| behind | what is there | " + " | ".join(titles.get(n, n) for n in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for row in rows:
        cells = [row["answers"][name]["cell"] for name in names]
        lines.append(f"| {row['situation']} | {row['truth']} | {' | '.join(cells)} |")
    sums = []
    for name in names:
        marks = [row["answers"][name]["mark"] for row in rows]
        sums.append(", ".join(f"{marks.count(m.value)} {m.value}" for m in Mark))
    lines.append(f"| **sum of {len(rows)}** | | {' | '.join(sums)} |")
    return "\n".join([*lines, "", *NOTES]) + "\n"


def write_between(path: Path, text: str) -> bool:
    """Put ``text`` between the markers of a file; return whether the markers are there."""
    content = path.read_text() if path.exists() else ""
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    return True


def measure(chosen: Sequence[Situation], console: Console) -> list[dict[str, Any]]:
    """Run every tool in every situation and return the rows."""
    present = tools(console)
    jobs = [(tool, situation) for situation in chosen for tool in present]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = iter(
            list(
                track(
                    pool.map(lambda job: try_out(*job), jobs),
                    total=len(jobs),
                    description="running the tools",
                    console=console,
                    disable=not console.is_terminal,
                )
            )
        )
    return [
        {
            "situation": situation.title,
            "kind": situation.kind.name,
            "fault": situation.fault.value,
            "truth": situation.kind.expected.udp.value,
            "answers": {tool.name: judge(tool, situation, next(runs)) for tool in present},
        }
        for situation in chosen
    ]


def judge(tool: Tool, situation: Situation, run: Run) -> dict[str, Any]:
    """Return what is kept of one run."""
    answer = READERS[tool.name](run)
    judged = words.mark(answer, situation.kind.expected)
    return {
        "mark": judged.value,
        "cell": cell(answer, judged),
        "words": answer.words,
        "seconds": round(run.seconds, 1),
        "code": run.code,
        "said": run.out[-SAID:],
    }


def main() -> int:
    """Make the table."""
    parser = argparse.ArgumentParser(description="natcheck beside its rivals")
    parser.add_argument("--only", default="", help="only situations whose title has this word")
    parser.add_argument("--redraw", action="store_true", help="draw the last answers again")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if options.redraw:
        rows = json.loads(ANSWERS.read_text())
    else:
        chosen = [s for s in situations() if options.only in s.title]
        if not chosen:
            parser.error(f"no situation's title has {options.only!r} in it")
        rows = measure(chosen, console)
    text = table(rows, list(rows[0]["answers"]))
    console.print(text)
    if not options.only:
        ANSWERS.write_text(json.dumps(rows, indent=1) + "\n")
        if not write_between(options.readme, text):
            console.print(f"{options.readme.name} has no place for it: {BEGIN} ... {END}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
