"""Whether this machine can build NATs, and if not, what must be run.

Every finding is made by doing the thing in a child process, not by guessing from versions: settings
that forbid user namespaces have many names, and their effects are few.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    good: bool
    what: str
    fix: str = ""
    """The command that would help; empty when nothing must be done or nothing is known to help."""


def examine() -> list[Finding]:
    """Look at everything that a laboratory needs; the first bad finding is what to mend first."""
    if sys.platform != "linux":
        return [Finding(False, f"kernel NATs need Linux, this is {sys.platform}")]
    findings = [_tool("ip", "iproute2"), _tool("nft", "nftables"), _namespaces()]
    if all(finding.good for finding in findings):
        findings += [_rules(), _ipv6()]
    return findings


def problem() -> str | None:
    """Return why no laboratory can be built here and what to run, ``None`` if one can."""
    for finding in examine():
        if not finding.good:
            return f"{finding.what}; run: {finding.fix}" if finding.fix else finding.what
    return None


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


def _tool(name: str, package: str) -> Finding:
    from nattype.lab.kernel.build import tool  # noqa: PLC0415
    from nattype.lab.kernel.errors import NotPermitted  # noqa: PLC0415

    try:
        return Finding(True, f"{package}: {tool(name)}")
    except NotPermitted:
        return Finding(False, f"{package} is not installed (no program {name})", install_command())


def install_command() -> str:
    """Return the command that installs what a laboratory needs, for this distribution."""
    for manager, command in _INSTALL.items():
        if shutil.which(manager):
            return command
    return _INSTALL["apt-get"]


def _namespaces() -> Finding:
    from nattype.lab.kernel.namespaces import is_privileged  # noqa: PLC0415

    privileged = is_privileged()
    error = _in_child(_throwaway_network)
    if error is None:
        return Finding(True, "namespaces: as root" if privileged else "namespaces: as this user")
    text = why_not_permitted(error)
    what, _, fix = text.partition(" Run: ")
    return Finding(False, what, fix.partition("\n")[0])


def _rules() -> Finding:
    """Load the rules of a NAT that uses everything, in a namespace that nobody sees."""

    def attempt() -> None:
        _throwaway_network()
        import subprocess  # noqa: PLC0415

        from nattype.lab.kernel import rules  # noqa: PLC0415
        from nattype.lab.kernel.build import tool  # noqa: PLC0415
        from nattype.model import kind  # noqa: PLC0415

        model = kind("adm+adf+sequential").boxes[0]
        script = rules.ruleset(
            model, rules.IPV4, external="192.52.193.2", inside=["192.168.1.0/24"], seed=0
        )
        done = subprocess.run(
            [tool("nft"), "-f", "-"], input=script, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise OSError(errno.EPROTO, done.stderr.strip().splitlines()[0])

    error = _in_child(attempt)
    if error is None:
        return Finding(True, "nftables: the kernel takes NAT rules with dynamic maps")
    return Finding(
        False,
        f"the kernel refuses the NAT rules: {error.strerror}",
        "sudo modprobe -a nf_tables nft_ct nft_nat nft_masq nft_hash nft_numgen nft_reject_inet",
    )


def _ipv6() -> Finding:
    if Path("/proc/sys/net/ipv6").is_dir():
        return Finding(True, "IPv6: yes")
    return Finding(True, "IPv6: this kernel has none; use natlab with --no-ipv6")


def _throwaway_network() -> None:
    from nattype.lab.kernel.namespaces import (  # noqa: PLC0415
        CLONE_NEWNET,
        is_privileged,
        isolate,
        unshare,
    )

    isolate(user_namespace=not is_privileged())
    # AppArmor lets the user namespace be made, and then refuses everything in it.
    unshare(CLONE_NEWNET)


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name.replace(".", "/")).read_text().strip()
    except OSError:
        return ""


def _in_child(attempt: Callable[[], None]) -> OSError | None:
    """Return what ``attempt`` raised, run where it can change nothing of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(10)
            attempt()
            os.write(writer, b"ok")
        except OSError as error:
            os.write(writer, f"{error.errno or 0} {error.strerror}".encode()[:4000])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123
        said = pipe.read().decode(errors="replace")
    os.waitpid(child, 0)
    if said == "ok":
        return None
    code, _, text = said.partition(" ")
    return OSError(int(code or 0), text or "it ended without a word")
