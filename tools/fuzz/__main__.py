"""Coverage-guided fuzzing, with atheris, of everything that takes a peer's bytes.

    python -m tools.fuzz                                   every target, FUZZ_SECONDS each
    python -m tools.fuzz --seconds 60 --jobs 1 uri nonce   some of them, for a minute each
    python -m tools.fuzz --one decode [CORPUS_DIRECTORY...] [-max_total_time=600]

The last form runs one target in this process; what follows its name is libFuzzer's.  The vectors of
rfc-vectors are always among the seeds; a corpus directory, if given, is added to them and grows.
What is demanded of each target is in tools/fuzz/target_*.py, which the test session runs as well.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

MODULES = {
    "decode": "target_decode",
    "client": "target_client",
    "framing": "target_client",
    "nonce": "target_client",
    "uri": "target_client",
    "datagram": "target_server",
    "server": "target_server",
    "probe": "target_probe",
}
TAIL = 12
"""Lines of a failed run that are shown."""


def one(name: str, arguments: list[str]) -> None:
    """Fuzz one target; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["stun", "nattype"]):
        module = import_module(f"tools.fuzz.{MODULES[name]}")
    check: Callable[[bytes], object]
    seeds: Callable[[], Iterator[bytes]]
    check, seeds = module.TARGETS[name]
    directories = [argument for argument in arguments if not argument.startswith("-")]
    options = [argument for argument in arguments if argument.startswith("-")]
    with tempfile.TemporaryDirectory(prefix="natkit-fuzz-") as scratch:
        for number, octets in enumerate(seeds()):
            Path(scratch, f"seed-{number}").write_bytes(octets)
        # libFuzzer writes what it finds to the first directory: the caller's, if there is one.
        arguments = [sys.argv[0], *directories, scratch, *options]
        atheris.Setup(arguments, lambda octets: void(check(octets)))
        atheris.Fuzz()


def void(_: object) -> None:
    """Drop a check's result: libFuzzer takes none."""


def run(name: str, seconds: int) -> bool:
    """Fuzz one target in a process of its own and print what came of it."""
    started = time.monotonic()
    command = [sys.executable, "-m", "tools.fuzz", "--one", name, f"-max_total_time={seconds}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    output = done.stdout + done.stderr
    counts = re.findall(r"^#(\d+)", output, re.MULTILINE)
    executions = int(counts[-1]) if counts else 0
    verdict = "clean" if done.returncode == 0 else f"FAILED (exit {done.returncode})"
    print(f"{name:9} {executions:>9} runs in {time.monotonic() - started:4.0f} s  {verdict}")
    if done.returncode:
        print("\n".join(output.splitlines()[-TAIL:]))
    sys.stdout.flush()
    return done.returncode == 0


def main() -> int:
    if sys.argv[1:2] == ["--one"] and sys.argv[2:3] and sys.argv[2] in MODULES:
        one(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("targets", nargs="*", choices=[[], *MODULES], help="all by default")
    arguments = parser.parse_args()
    names = arguments.targets or list(MODULES)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        good = list(pool.map(lambda name: run(name, arguments.seconds), names))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
