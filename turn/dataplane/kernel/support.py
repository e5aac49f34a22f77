"""Whether the kernel can relay here, and if not, why: one line for a person.

Theory of operation.  What can be looked up is looked up, in the order in which a person would put
it right: the system, the library, the object file, the privileges.  What is left, from a kernel
that was configured without it to a container's filter of system calls, is tried: the shortest
program there is, offered to an interface that does not exist.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
from pathlib import Path
from typing import Final

from turn.dataplane.kernel import libbpf

OLDEST_KERNEL: Final = (6, 6)
"""The first Linux with TCX."""

CAPABILITIES: Final = {"CAP_BPF": 39, "CAP_NET_ADMIN": 12}
"""What a process needs (capabilities(7)), with the bit of each."""
_SYS_ADMIN = 21  # stands for CAP_BPF

_NO_INTERFACE = 0x7FFFFFFF
_WHOLE = ["0", "0", "4294967295"]


class KernelUnavailable(Exception):
    """The kernel cannot relay here.

    Its text is one line, which says what is missing and what to do.  ``detail`` is for a log, and
    may be long.
    """

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.detail = detail


def object_path() -> Path:
    """Return where the built program is, or would be."""
    return Path(__file__).with_name("relay.bpf.o")


def why_not(path: Path | None = None) -> str | None:
    """Return why the kernel cannot relay here; ``None`` when it can, as far as can be told.

    ``path`` is of the object file, where it is not the package's own.
    """
    return (
        _of_the_system()
        or _of_the_library()
        or _of_the_object(path or object_path())
        or _of_privileges()
        or _of_the_clock()
        or _of_a_trial()
    )


def explain(error: OSError) -> str:
    """Return why the kernel refuses what it was asked for, as far as can be told."""
    if isinstance(error, libbpf.RefusedError):
        return _words(error)
    if error.errno in {errno.EPERM, errno.EACCES}:
        if _in_user_namespace():
            return (
                "the kernel refuses BPF in a user namespace: start turnd in the first one "
                "(not in a rootless container)"
            )
        if _status("Seccomp", "0") != "0":
            return (
                "the system call bpf is filtered: allow it (systemd: SystemCallFilter=bpf; "
                "containers: a seccomp profile with it, or the capability CAP_BPF)"
            )
        return f"the kernel refuses BPF, probably by a security module ({_words(error)})"
    if error.errno == errno.ENOSYS:
        return "this kernel was built without BPF (CONFIG_BPF_SYSCALL)"
    return _words(error)


def _of_the_system() -> str | None:
    if sys.platform != "linux":
        return f"it needs Linux, and this is {platform.system()}"
    release = platform.release()
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        return f"it needs Linux {oldest} or newer, and this is {release}"
    return None


def _of_the_library() -> str | None:
    try:
        libbpf.library()
    except OSError as error:
        if error.errno == errno.ENOSYS:  # no such function
            return f"libbpf is not whole: {error.strerror}"
        return (
            f"libbpf 1.0 or newer ({libbpf.SONAME}) is not installed: apt install libbpf1, "
            "or dnf install libbpf"
        )
    return None


def _of_the_object(path: Path) -> str | None:
    try:
        with path.open("rb"):
            return None
    except FileNotFoundError:
        return f"the program is not built ({path}): make bpf, which needs clang"
    except OSError as error:
        return f"the program cannot be read: {path}: {error.strerror}"


def _of_privileges() -> str | None:
    held = int(_status("CapEff", "0"), 16)
    if held >> _SYS_ADMIN & 1:
        held |= 1 << CAPABILITIES["CAP_BPF"]
    missing = [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]
    if not missing:
        return None
    words = (
        f"the capability {missing[0]} is missing"
        if len(missing) == 1
        else f"the capabilities {' and '.join(missing)} are missing"
    )
    if os.geteuid() == 0:
        added = " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in missing)
        return f"{words}: give them to the container ({added})"
    ambient = " ".join(CAPABILITIES)
    return (
        f"{words}: start turnd as root, or with AmbientCapabilities={ambient} in its systemd unit"
    )


def _of_the_clock() -> str | None:
    # The program compares with the kernel's own time (bpf_ktime_get_ns): the ends of routes would
    # be off by as much as the clocks are apart.
    try:
        offsets = Path("/proc/self/timens_offsets").read_text()
    except OSError:  # a kernel without time namespaces
        return None
    if re.search(r"^monotonic(?:\s+0){2}$", offsets.strip(), re.MULTILINE):
        return None
    return (
        "its clock is not the kernel's, for this is a time namespace (time_namespaces(7)): "
        "start turnd in the first one"
    )


def _of_a_trial() -> str | None:
    try:
        program = libbpf.load_nothing()
    except OSError as error:
        return explain(error)
    try:
        link = libbpf.attach(program, _NO_INTERFACE)
    except OSError as error:
        if error.errno == errno.ENODEV:  # all was well but the interface
            return None
        if error.errno == errno.EINVAL:
            return "this kernel was built without TCX (CONFIG_NET_XGRESS)"
        return explain(error)
    else:
        os.close(link)
        return None
    finally:
        os.close(program)


def _status(name: str, absent: str) -> str:
    """Return a line of /proc/self/status."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return absent
    found = re.search(rf"^{name}:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else absent


def _in_user_namespace() -> bool:
    try:
        return Path("/proc/self/uid_map").read_text().split() != _WHOLE
    except OSError:
        return False


def _words(error: OSError) -> str:
    return error.strerror or str(error)
