"""Coverage-guided fuzzing of everything that reads a STUN message, with atheris.

    python -m tools.fuzz.fuzz_decode [CORPUS_DIRECTORY...] [-max_total_time=600]

Arguments are libFuzzer's.  The message vectors of rfc-vectors are always among the seeds; a corpus
directory, if given, is added to them and grows.  tools/fuzz/target_decode.py says what is demanded.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["stun"]):
    from tools.fuzz.target_decode import check_message, seeds


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="natkit-fuzz-") as scratch:
        for number, octets in enumerate(seeds()):
            Path(scratch, f"seed-{number}").write_bytes(octets)
        # libFuzzer writes what it finds to the first directory: the caller's, if there is one.
        directories = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
        atheris.Setup([sys.argv[0], *directories, scratch, *options], check_message)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
