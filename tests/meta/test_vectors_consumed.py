"""Every vector follows the schema, and every vector has a test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from stun.errors import DropReason

TOP = Path(__file__).resolve().parents[2]
ROOT = TOP / "rfc-vectors"
FILES = sorted(path for path in ROOT.glob("*/*.json") if path.parent.name not in {"schema", "iana"})
VALIDATOR = Draft202012Validator(json.loads((ROOT / "schema/vectors.schema.json").read_text()))


def collect(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "tests/vectors", "--collect-only", "-q"]
    command += ["-p", "no:cacheprovider", f"--vectors-root={root}"]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_follows_the_schema(path: Path) -> None:
    document = json.loads(path.read_text())
    VALIDATOR.validate(document)
    ids = [case["id"] for case in document["cases"]]
    assert len(ids) == len(set(ids))
    flags = {flag for case in document["cases"] for flag in case.get("flags", ())}
    assert flags <= set(document.get("notes", {})), "a flag without a note"
    reasons = {case["reason"] for case in document["cases"] if "reason" in case}
    assert reasons <= {reason.name for reason in DropReason}


@pytest.mark.parametrize(
    "spoilt",
    [
        {"schema": 2},
        {"kind": "no-such-kind"},
        {"origin": "hearsay"},
        {"cases": []},
        {"cases": [{"id": "x"}]},
        {"cases": [{"id": "x", "hex": "0G", "stage": "accept", "attributes": []}]},
        {"cases": [{"id": "x", "hex": "00", "stage": "decode"}]},
        {"extra": 1},
    ],
    ids=str,
)
def test_the_schema_refuses(spoilt: dict[str, object]) -> None:
    good = json.loads((ROOT / "hostile/stun-messages.json").read_text())
    assert VALIDATOR.is_valid(good)
    assert not VALIDATOR.is_valid({**good, **spoilt})


def test_every_vector_has_a_test() -> None:
    done = collect(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_vector_without_a_test_is_noticed(tmp_path: Path) -> None:
    """The check above can fail: a new file, and a case that no test's group takes."""
    shutil.copytree(ROOT, tmp_path, dirs_exist_ok=True)
    orphan = json.loads((ROOT / "stun/rfc5769.json").read_text())
    (tmp_path / "stun/orphan.json").write_text(json.dumps(orphan))
    primitives = json.loads((ROOT / "stun/primitives.json").read_text())
    primitives["cases"].append({**primitives["cases"][0], "id": "stray", "group": "of-nobody"})
    (tmp_path / "stun/primitives.json").write_text(json.dumps(primitives))
    done = collect(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stun/orphan.json#request" in done.stdout
    assert "stun/primitives.json#stray" in done.stdout
    assert f"{len(orphan['cases']) + 1} vectors without a test" in done.stdout
