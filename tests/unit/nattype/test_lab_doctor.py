"""The doctor: what is wrong, and the command that mends it."""

from __future__ import annotations

import errno
import shutil
import sys

import pytest

from nattype.lab import doctor
from nattype.lab.kernel import remedies

REFUSED = OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize(
    ("name", "value", "command"),
    [
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            "1",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            "kernel.unprivileged_userns_clone",
            "0",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            "user.max_user_namespaces",
            "0",
            "sudo sysctl -w user.max_user_namespaces=10000",
        ),
    ],
)
def test_what_forbids_namespaces_is_named_with_its_cure(
    name: str, value: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedies, "_sysctl", lambda asked: value if asked == name else "")
    assert command in remedies.why_not_permitted(REFUSED)
    monkeypatch.setattr(doctor, "_in_child", lambda _: REFUSED)
    finding = doctor._namespaces()
    assert not finding.good
    assert name in finding.what
    assert finding.fix == command


def test_missing_programs_come_with_this_distributions_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only(*present: str) -> None:
        monkeypatch.setattr(
            shutil, "which", lambda name, **_: f"/usr/bin/{name}" if name in present else None
        )

    only("apt-get", "ip")
    assert doctor.problem() == (
        "nftables is not installed (no program nft); run: sudo apt-get install -y nftables iproute2"
    )


def test_a_machine_without_linux_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert doctor.problem() == "kernel NATs need Linux, this is darwin"


def test_rules_that_the_kernel_refuses_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_in_child", lambda _: OSError(errno.EPROTO, "No such file"))
    finding = doctor._rules()
    assert not finding.good
    assert "modprobe" in finding.fix


def test_an_attempt_in_a_child_changes_nothing_here() -> None:
    assert doctor._in_child(lambda: None) is None

    def fail() -> None:
        raise OSError(errno.ENOSPC, "full")

    error = doctor._in_child(fail)
    assert error is not None
    assert (error.errno, error.strerror) == (errno.ENOSPC, "full")
