"""Why a laboratory cannot be built here, and the command that mends it."""

from __future__ import annotations

import errno
import shutil

import pytest

from nattype.lab.kernel import remedies
from nattype.lab.kernel.errors import NotPermitted

REFUSED = OSError(errno.EPERM, "Operation not permitted")


def test_other_refusals_are_explained_by_their_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedies, "_sysctl", lambda _: "")
    assert "max_*_namespaces" in remedies.why_not_permitted(OSError(errno.ENOSPC, "No space"))
    assert "without namespaces" in remedies.why_not_permitted(OSError(errno.EINVAL, "Invalid"))
    monkeypatch.setattr(remedies, "_in_container", lambda: True)
    assert "docker run --privileged" in remedies.why_not_permitted(REFUSED)
    monkeypatch.setattr(remedies, "_in_container", lambda: False)
    assert "with sudo" in remedies.why_not_permitted(REFUSED)


def test_a_missing_program_comes_with_this_distributions_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    present: list[str] = ["dnf"]
    monkeypatch.setattr(shutil, "which", lambda name, **_: name if name in present else None)
    assert remedies.install_command() == "sudo dnf install -y nftables iproute"
    with pytest.raises(NotPermitted, match="Run: sudo dnf install"):
        remedies.tool("nft")
    present[:] = ["nft"]
    assert remedies.tool("nft") == "nft"
    assert remedies.install_command().startswith("sudo apt-get install")
