"""Fuzzing of everything that takes a peer's bytes: guided by coverage, and by hypothesis.

    python -m tools.fuzz                                    every target, ten minutes each
    python -m tools.fuzz --seconds 60 --jobs 1 uri nonce    some of them, for a minute each
    python -m tools.fuzz --corpus DIRECTORY decode          with the files in it as further seeds
    python -m tools.fuzz --one decode [DIRECTORY...] [-max_total_time=600]

The last form runs one atheris target in this process; what follows its name is libFuzzer's.  The
vectors of rfc-vectors are always among the seeds.  What is demanded of the atheris targets is in
tools/fuzz/target_*.py; the others repeat files of the test session under one seed after another.
"""

from __future__ import annotations

import argparse
import os
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
    "turn-server": "target_turn_server",
    "turn-client": "target_turn_client",
    "probe": "target_probe",
    "candidate": "target_ice",
    "sdp": "target_ice",
    "link": "target_link",
    "frames": "target_link",
    "rendezvous": "target_rendezvous",
    "channel": "target_rendezvous",
    "hello": "target_rendezvous",
    "code": "target_rendezvous",
}
PROPERTIES = {
    "examples-decode": (
        "tests/fuzz/test_fuzz_decode.py",
        "tests/property/test_codec_equivalence.py",
    ),
    "examples-client": (
        "tests/fuzz/test_fuzz_client.py",
        "tests/property/test_client_conversations.py",
        "tests/property/test_client_texts_and_streams.py",
    ),
    "examples-server": (
        "tests/fuzz/test_fuzz_server.py",
        "tests/property/test_server_invariants.py",
    ),
    "examples-turn-server": ("tests/fuzz/test_fuzz_turn_server.py",),
    "examples-turn-client": ("tests/fuzz/test_fuzz_turn_client.py",),
    "examples-ice": ("tests/fuzz/test_fuzz_ice.py",),
    "examples-link": ("tests/fuzz/test_fuzz_link.py", "tests/property/test_link_session.py"),
    "examples-rendezvous": (
        "tests/fuzz/test_fuzz_rendezvous.py",
        "tests/unit/ice/test_meeting_channel.py",
        "tests/unit/ice/test_meeting_pairing.py",
    ),
    "examples-probe": ("tests/fuzz/test_fuzz_probe.py", "tests/property/test_probe_verdicts.py"),
}
TAIL = 12
"""Lines of a failed run that are shown."""


def one(name: str, arguments: list[str]) -> None:
    """Fuzz one target; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["stun", "turn", "ice", "nattype"]):
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


def fuzz(name: str, seconds: int, corpus: Path | None) -> tuple[int, str, str]:
    """Fuzz one target in a process of its own; return how often it ran, what is wrong, the end."""
    command = [sys.executable, "-m", "tools.fuzz", "--one", name, f"-max_total_time={seconds}"]
    with tempfile.TemporaryDirectory(prefix="natkit-corpus-") as scratch:
        # libFuzzer adds what it finds to the first directory, which must not be the caller's.
        directories = [scratch, str(corpus)] if corpus else []
        done = subprocess.run(
            [*command, *directories], capture_output=True, text=True, errors="replace", check=False
        )
    output = done.stdout + done.stderr
    counts = re.findall(r"^#(\d+)", output, re.MULTILINE)
    wrong = f"exit {done.returncode}" if done.returncode else ""
    return int(counts[-1]) if counts else 0, wrong, output


def repeat(name: str, seconds: int, corpus: Path | None) -> tuple[int, str, str]:
    """Run test files under one seed after another; return as :func:`fuzz` does."""
    environment = os.environ | ({"NATKIT_FUZZ_CORPUS": str(corpus)} if corpus else {})
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        rounds += 1
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--seed", str(rounds), *PROPERTIES[name]],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        if done.returncode:
            return rounds, f"--seed {rounds}", done.stdout
    return rounds, "", ""


def run(name: str, seconds: int, corpus: Path | None) -> bool:
    """Run one target and print what came of it."""
    started = time.monotonic()
    count, wrong, output = (repeat if name in PROPERTIES else fuzz)(name, seconds, corpus)
    verdict = f"FAILED ({wrong})" if wrong else "clean"
    print(f"{name:15} {count:>9} runs in {time.monotonic() - started:4.0f} s  {verdict}")
    if wrong:
        print("\n".join(output.splitlines()[-TAIL:]))
    sys.stdout.flush()
    return not wrong


def main() -> int:
    if sys.argv[1:2] == ["--one"] and sys.argv[2:3] and sys.argv[2] in MODULES:
        one(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("--corpus", type=Path, help="a directory of files to start from besides")
    targets = [*MODULES, *PROPERTIES]
    parser.add_argument("targets", nargs="*", choices=[[], *targets], help="all by default")
    arguments = parser.parse_args()
    names = arguments.targets or targets
    corpus = arguments.corpus.resolve() if arguments.corpus else None
    with ThreadPoolExecutor(arguments.jobs) as pool:
        good = list(pool.map(lambda name: run(name, arguments.seconds, corpus), names))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
