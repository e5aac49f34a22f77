"""Whether this machine can build NATs, and if not, what must be run.

Every finding is made by doing the thing in a child process, not by guessing from versions: settings
that forbid user namespaces have many names, and their effects are few.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nattype.lab.kernel.errors import NotPermitted
from nattype.lab.kernel.remedies import install_command, tool, why_not_permitted


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


def _tool(name: str, package: str) -> Finding:
    try:
        return Finding(True, f"{package}: {tool(name)}")
    except NotPermitted:
        return Finding(False, f"{package} is not installed (no program {name})", install_command())


def _namespaces() -> Finding:
    from nattype.lab.kernel.namespaces import is_privileged

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
        import subprocess

        from nattype.lab.kernel import rules
        from nattype.model import kind

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
    from nattype.lab.kernel.namespaces import (
        CLONE_NEWNET,
        is_privileged,
        isolate,
        unshare,
    )

    isolate(user_namespace=not is_privileged())
    # AppArmor lets the user namespace be made, and then refuses everything in it.
    unshare(CLONE_NEWNET)


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
