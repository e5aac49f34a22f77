"""Why the kernel cannot relay here, told in one line that says what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from turn.dataplane.kernel import libbpf, support
from turn.dataplane.kernel.program import RelayProgram
from turn.dataplane.kernel.support import KernelUnavailable, explain, object_path, why_not

STATUS = {"CapEff": f"{1 << 39 | 1 << 12:016x}", "Seccomp": "0"}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    path = tmp_path / "relay.bpf.o"
    path.touch()
    return path


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine that can do everything; called, one that lacks something."""

    def give(
        *,
        system: str = "linux",
        release: str = "6.6.0-1-amd64",
        library: OSError | None = None,
        load: OSError | None = None,
        attach: OSError | None = None,
        users: str = "0 0 4294967295",
        **status: str,
    ) -> None:
        def fail(error: OSError | None) -> int:
            if error is not None:
                raise error
            # A descriptor, which is closed by who gets it.
            return os.open(os.devnull, os.O_RDONLY)

        monkeypatch.setattr(support.sys, "platform", system)
        monkeypatch.setattr(support.platform, "release", lambda: release)
        monkeypatch.setattr(support.platform, "system", lambda: "Darwin")
        monkeypatch.setattr(libbpf, "library", lambda: library and fail(library))
        monkeypatch.setattr(libbpf, "load_nothing", lambda: fail(load))
        monkeypatch.setattr(
            libbpf, "attach", lambda *_: fail(attach or libbpf.BpfError(errno.ENODEV, "gone"))
        )
        lines = {**STATUS, **status}
        monkeypatch.setattr(support, "_status", lines.get)
        monkeypatch.setattr(support, "_in_user_namespace", lambda: users.split() != support._WHOLE)

    give()
    return give


def test_nothing_is_missing(built: Path) -> None:
    assert why_not(built) is None


@pytest.mark.parametrize("release", ["6.5.13", "5.10.0-30-amd64", "mystery"])
def test_an_old_kernel(able: Callable[..., None], built: Path, release: str) -> None:
    able(release=release)
    assert why_not(built) == f"it needs Linux 6.6 or newer, and this is {release}"


@pytest.mark.parametrize("release", ["6.6.0", "6.18.44", "7.0-rc1", "10.1"])
def test_a_new_kernel(able: Callable[..., None], built: Path, release: str) -> None:
    able(release=release)
    assert why_not(built) is None


def test_another_system(able: Callable[..., None], built: Path) -> None:
    able(system="darwin")
    assert why_not(built) == "it needs Linux, and this is Darwin"


def test_no_library(able: Callable[..., None], built: Path) -> None:
    able(library=OSError("libbpf.so.1: cannot open shared object file"))
    assert "apt install libbpf1" in (why_not(built) or "")


def test_a_library_that_lacks_a_function(able: Callable[..., None], built: Path) -> None:
    able(library=OSError(errno.ENOSYS, "libbpf.so.1 has no bpf_link_create"))
    assert why_not(built) == "libbpf is not whole: libbpf.so.1 has no bpf_link_create"


def test_no_object(tmp_path: Path) -> None:
    path = tmp_path / "relay.bpf.o"
    assert why_not(path) == f"the program is not built ({path}): make bpf, which needs clang"


def test_an_object_that_cannot_be_read(tmp_path: Path) -> None:
    assert why_not(tmp_path) == f"the program cannot be read: {tmp_path}: Is a directory"


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ((), "the capabilities CAP_BPF and CAP_NET_ADMIN are missing"),
        ((39,), "the capability CAP_NET_ADMIN is missing"),
        ((12,), "the capability CAP_BPF is missing"),
        ((21,), "the capability CAP_NET_ADMIN is missing"),
    ],
)
def test_no_privilege(
    able: Callable[..., None],
    built: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: tuple[int, ...],
    words: str,
) -> None:
    able(CapEff=f"{sum(1 << bit for bit in held):016x}")
    monkeypatch.setattr(support.os, "geteuid", lambda: 1000)
    assert why_not(built) == (
        f"{words}: start turnd as root, or with AmbientCapabilities=CAP_BPF CAP_NET_ADMIN in its "
        "systemd unit"
    )


def test_root_of_a_container(
    able: Callable[..., None], built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able(CapEff="00000000a80425fb")  # what Docker leaves to root
    monkeypatch.setattr(support.os, "geteuid", lambda: 0)
    assert why_not(built) == (
        "the capabilities CAP_BPF and CAP_NET_ADMIN are missing: give them to the container "
        "(--cap-add BPF --cap-add NET_ADMIN)"
    )


@pytest.mark.parametrize("held", [(39, 12), (21, 12), (39, 21, 12)])
def test_privilege_enough(able: Callable[..., None], built: Path, held: tuple[int, ...]) -> None:
    able(CapEff=f"{sum(1 << bit for bit in held):016x}")
    assert why_not(built) is None


REFUSED = libbpf.BpfError(errno.EPERM, "the kernel takes no program: Operation not permitted")


def test_a_user_namespace(able: Callable[..., None], built: Path) -> None:
    able(load=REFUSED, users="0 1000 1")
    assert "in a user namespace" in (why_not(built) or "")


def test_a_filter_of_system_calls(able: Callable[..., None], built: Path) -> None:
    able(load=REFUSED, Seccomp="2")
    assert "SystemCallFilter=bpf" in (why_not(built) or "")


def test_a_security_module(able: Callable[..., None], built: Path) -> None:
    able(load=REFUSED)
    assert "probably by a security module" in (why_not(built) or "")


def test_a_kernel_without_bpf(able: Callable[..., None], built: Path) -> None:
    able(load=libbpf.BpfError(errno.ENOSYS, "no"))
    assert why_not(built) == "this kernel was built without BPF (CONFIG_BPF_SYSCALL)"


def test_a_kernel_without_tcx(able: Callable[..., None], built: Path) -> None:
    able(attach=libbpf.BpfError(errno.EINVAL, "no"))
    assert why_not(built) == "this kernel was built without TCX (CONFIG_NET_XGRESS)"


def test_what_nobody_foresaw_is_told_in_the_systems_words(
    able: Callable[..., None], built: Path
) -> None:
    able(attach=libbpf.BpfError(errno.ENOMEM, "no program can be put there: no memory"))
    assert why_not(built) == "no program can be put there: no memory"


def test_the_verifier_is_quoted() -> None:
    error = libbpf.RefusedError(errno.EACCES, "the verifier says: R1 is not what it was")
    assert explain(error) == "the verifier says: R1 is not what it was"


@pytest.mark.parametrize(
    "missing",
    [
        {"system": "darwin"}, {"release": "5.4.0"}, {"library": OSError("none")},
        {"CapEff": "0"}, {"load": REFUSED}, {"load": REFUSED, "Seccomp": "2"},
    ],
)  # fmt: skip
def test_it_is_one_line(able: Callable[..., None], built: Path, missing: dict[str, object]) -> None:
    able(**missing)
    line = why_not(built)
    assert line
    assert "\n" not in line
    with pytest.raises(KernelUnavailable) as raised:
        RelayProgram.load(path=built)
    assert str(raised.value) == line


def test_the_object_is_beside_the_source() -> None:
    assert object_path().with_name("relay.bpf.c").exists()
