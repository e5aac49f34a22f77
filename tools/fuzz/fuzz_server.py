"""Coverage-guided fuzzing of the server: datagrams, and whole runs of socket events.

    python -m tools.fuzz.fuzz_server TARGET [CORPUS_DIRECTORY...] [-max_total_time=600]

TARGET is datagram or script; the other arguments are libFuzzer's.  Vectors of rfc-vectors are
always among the seeds; a corpus directory, if given, is added to them and grows.  What is demanded
is in tools/fuzz/target_server.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["stun"]):
    from tools.fuzz.target_server import TARGETS


def main() -> None:
    names = ", ".join(TARGETS)
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tools.fuzz.fuzz_server TARGET [...]   (TARGET: {names})")
    check, seeds = TARGETS[sys.argv[1]]
    rest = sys.argv[2:]
    with tempfile.TemporaryDirectory(prefix="natkit-fuzz-") as scratch:
        for number, octets in enumerate(seeds()):
            Path(scratch, f"seed-{number}").write_bytes(octets)
        # libFuzzer writes what it finds to the first directory: the caller's, if there is one.
        directories = [argument for argument in rest if not argument.startswith("-")]
        options = [argument for argument in rest if argument.startswith("-")]
        atheris.Setup([sys.argv[0], *directories, scratch, *options], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
