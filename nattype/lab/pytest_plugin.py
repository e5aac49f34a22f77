"""The fixture ``natlab``: kernel NATs in the tests of any project.

    def test_my_program_gets_through(natlab):
        lab = natlab("symmetric", loss=0.1)
        assert lab.host.run(["my-program"], timeout=30).returncode == 0

    def test_two_of_them_find_each_other(natlab):
        lab = natlab.pair("port-restricted-cone", "full-cone")
        ...

Arguments are those of :meth:`nattype.lab.Lab.nat` and :meth:`nattype.lab.Lab.pair`.  A test that
uses it is skipped where the machine cannot build NATs, with what to run as the reason; where ``CI``
or ``NATLAB_REQUIRED`` is set it fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nattype.lab.kernel.lab import Lab
    from nattype.lab.kernel.spec import AnyKind


class LabFactory:
    """Builds laboratories that end with the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, kind: AnyKind, **options: Any) -> Lab:
        """Return a running laboratory with a host behind this kind of NAT."""
        from nattype.lab.kernel.lab import Lab

        return self.build(Lab.nat(kind, **options))

    def pair(self, a: AnyKind, b: AnyKind, **options: Any) -> Lab:
        """Return a running laboratory with hosts ``a`` and ``b`` behind NATs of their own."""
        from nattype.lab.kernel.lab import Lab

        return self.build(Lab.pair(a, b, **options))

    def build(self, lab: Lab) -> Lab:
        """Start a laboratory that was described by hand, and end it with the test."""
        return self._stack.enter_context(lab)


@pytest.fixture(scope="session")
def _natlab_problem() -> str | None:
    from nattype.lab.doctor import problem

    return problem()


@pytest.fixture
def natlab(_natlab_problem: str | None) -> Iterator[LabFactory]:
    """Return a factory of laboratories with real NATs."""
    if _natlab_problem is not None:
        if os.environ.get("CI") or os.environ.get("NATLAB_REQUIRED"):
            pytest.fail(f"natlab: {_natlab_problem}")
        pytest.skip(f"natlab: {_natlab_problem}")
    with ExitStack() as stack:
        yield LabFactory(stack)
