"""What keeps laboratories from being built on this machine, and the command that mends it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from nattype.lab.kernel.errors import NotPermitted

_INSTALL = {
    "apt-get": "sudo apt-get install -y nftables iproute2",
    "dnf": "sudo dnf install -y nftables iproute",
    "pacman": "sudo pacman -S --needed nftables iproute2",
    "zypper": "sudo zypper install nftables iproute2",
    "apk": "sudo apk add nftables iproute2",
}

# Sysctls that keep ordinary users from namespaces: the value that forbids, and how to allow it.
_FORBIDDING = (
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("user.max_user_namespaces", "0", "10000"),
    ("user.max_net_namespaces", "0", "10000"),
)


def tool(name: str) -> str:
    """Return the path of ``ip`` or ``nft``.  Raises ``NotPermitted`` with what to install."""
    # An ordinary user's PATH has no /usr/sbin on Debian, where nft lives.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/local/sbin"
    found = shutil.which(name, path=path)
    if found is None:
        raise NotPermitted(f"the program {name} is missing. Run: {install_command()}")
    return found


def install_command() -> str:
    """Return the command that installs what a laboratory needs, for this distribution."""
    for manager, command in _INSTALL.items():
        if shutil.which(manager):
            return command
    return _INSTALL["apt-get"]


def why_not_permitted(error: OSError) -> str:
    """Return why namespaces were refused, and the command that allows them."""
    for name, forbidden, allowed in _FORBIDDING:
        if _sysctl(name) == forbidden:
            return (
                f"this system does not let ordinary users make namespaces ({name} = {forbidden}). "
                f"Run: sudo sysctl -w {name}={allowed}\n"
                "or run natlab itself with sudo."
            )
    if error.errno == errno.ENOSPC:
        return "too many namespaces exist already; see /proc/sys/user/max_*_namespaces"
    if error.errno == errno.EINVAL and not _root_is_a_mount():
        return (
            "the root directory is not a mount point (a chroot?), so mounts cannot be kept apart. "
            "Run: mount --bind DIR DIR, before chroot DIR"
        )
    if error.errno in (errno.ENOSYS, errno.EINVAL):
        return "this kernel was built without namespaces"
    if _in_container():
        return (
            f"this container may not make namespaces ({error}). Start it with: "
            "docker run --privileged, or --cap-add SYS_ADMIN --cap-add NET_ADMIN "
            "--security-opt apparmor=unconfined --security-opt seccomp=unconfined"
        )
    return f"namespaces are not permitted here ({error}). Run natlab with sudo."


def _root_is_a_mount() -> bool:
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return True
    return any(line.split()[4] == "/" for line in mounts)


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name.replace(".", "/")).read_text().strip()
    except OSError:
        return ""
