"""The system calls that namespaces are made of, and the few files that go with them.

Python 3.11 has neither ``unshare`` nor ``setns``, and the programs ``unshare`` and ``nsenter`` cost
a process each and swallow signals, so the calls are made here through the C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Give this process new namespaces of the kinds in ``flags``.  Raises ``OSError``."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Enter the namespace that ``fd`` refers to.  Raises ``OSError``."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    """Attach a file system, with the arguments of the system call.  Raises ``OSError``."""
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode(),
    )
    _check(result, f"mount {target}")


def die_with_parent(number: int) -> None:
    """Ask for this signal when the parent dies, or the thread of it that forked."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")


def precise_timers() -> None:
    """Let the kernel wake this process within a microsecond instead of the usual fifty."""
    _check(_libc.prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0), "prctl")


def is_privileged() -> bool:
    """Whether namespaces can be made without a user namespace around them.

    Root in an ordinary container has uid 0 and yet lacks CAP_SYS_ADMIN, so the capabilities decide.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return os.geteuid() == 0
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return bool(effective >> _CAP_SYS_ADMIN & effective >> _CAP_NET_ADMIN & 1)
    return False


def isolate(*, user_namespace: bool) -> None:
    """Move this single-threaded process into namespaces of its own; its next child is their PID 1.

    With ``user_namespace`` the caller becomes root in there (and nowhere else): "a process that has
    a full set of capabilities in the new user namespace" may make the others, user_namespaces(7).
    Raises ``OSError``.
    """
    uid, gid = os.geteuid(), os.getegid()
    unshare((CLONE_NEWUSER if user_namespace else 0) | CLONE_NEWNS | CLONE_NEWPID)
    if user_namespace:
        # user_namespaces(7): setgroups must be denied before an unprivileged gid_map is written.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def private_mounts() -> None:
    """Give a new mount and PID namespace a /proc and a /run/netns of its own.

    ``ip netns`` wants /run/netns.  An ordinary user may not create it, so /run becomes a private
    tmpfs in which everything else of the machine's /run is still to be found.
    """
    # A container that masks parts of /proc does not allow a fresh one; the old one serves too.
    with contextlib.suppress(OSError):
        mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    machine = os.open("/run", os.O_PATH | os.O_DIRECTORY)
    try:
        entries = [entry.name for entry in Path("/run").iterdir()]
        mount("natlab", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
        Path("/run/netns").mkdir()
        with contextlib.suppress(OSError):
            Path("/run/.machine").mkdir()
            mount(f"/proc/self/fd/{machine}", "/run/.machine", None, _MS_BIND | _MS_REC)
            for entry in entries:
                if entry != "netns":
                    Path("/run", entry).symlink_to(Path(".machine", entry))
    finally:
        os.close(machine)


def private_sysfs() -> None:
    """Show the interfaces of this process's network namespace in /sys, where that is allowed."""
    with contextlib.suppress(OSError):
        unshare(CLONE_NEWNS)
        mount("sysfs", "/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def new_network(name: str) -> int:
    """Create a network namespace, enter it, name it for ``ip netns``; return its descriptor."""
    unshare(CLONE_NEWNET)
    path = Path("/run/netns", name)
    path.touch(mode=0o444)
    mount("/proc/self/ns/net", str(path), None, _MS_BIND)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def inside(fd: int) -> Iterator[None]:
    """Run the body in the network namespace ``fd``; children started there stay there."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd)
        yield
    finally:
        setns(before)
        os.close(before)
