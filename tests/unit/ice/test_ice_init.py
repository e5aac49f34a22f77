"""What ``import ice`` gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ice


def test_every_public_name_is_there() -> None:
    for name in ice.__all__:
        assert getattr(ice, name).__name__ == name
    assert dir(ice) == sorted(ice.__all__)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'ice' has no attribute 'Agnet'"):
        _ = ice.Agnet


def test_a_parser_of_candidates_loads_no_event_loop() -> None:
    code = "import ice, sys; ice.Candidate; assert not {'asyncio', 'ssl', 'dns'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_are_what_programs_catch() -> None:
    error = ice.ConnectionLost("gone")
    assert isinstance(error, ConnectionError)
    assert isinstance(error, ice.ConnectionFailed | ice.IceError)
    assert (str(error), error.why, error.explanation) == ("gone", "gone", None)
