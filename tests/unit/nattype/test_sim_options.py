"""Options are values, and none of them is on unless it is asked for."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from nattype.lab.sim import SimOptions, behind
from nattype.lab.sim.options import LIKE_LINUX


def test_options_cannot_be_changed_in_a_running_box() -> None:
    with pytest.raises(FrozenInstanceError):
        LIKE_LINUX.alg = True  # type: ignore[misc]


def test_a_box_has_no_options_unless_asked(seed: int) -> None:
    assert [box.options for box in behind("cgnat", seed=seed).boxes] == [SimOptions()] * 2


def test_the_transitory_time_is_what_rfc_5382_demands() -> None:
    """REQ-5: the "transitory connection idle-timeout" MUST NOT be less than four minutes."""
    assert LIKE_LINUX.tcp_transitory == 4 * 60
