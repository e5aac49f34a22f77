"""What leaves this machine protected by IPsec, which the program in the kernel would not see to.

Theory of operation.  The program sends on an interface, below the place where Linux looks at its
IPsec policies (RFC 4301 section 4.4.1; ip-xfrm(8)).  So what a policy protects, or forbids, must
stay with the sockets.  The policies are read once and again when they have changed; without any,
which is how most machines are, there is nothing to compare.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final, NamedTuple

from turn.dataplane.kernel.netlink import Conversation, attributes

_XFRM: Final = 6
_NEW_POLICY, _GET_POLICY = 0x13, 0x15
_GROUP_POLICY = 1 << 3
_ID_SIZE = 64
# struct xfrm_userpolicy_info: the selector, two lifetimes, and what the policy is.
_SELECTOR = struct.Struct("=16s16s8sHBBB3xiI")
_RULE = struct.Struct("=96xIIBBBB4x")
_TEMPLATES = 5
_OUT = 1
_ALLOW = 0
_NOT_HERE = {errno.EPROTONOSUPPORT, errno.EPERM, errno.EACCES}


class Policy(NamedTuple):
    """A policy for packets that leave.  A prefix: octets of an address, and its bits."""

    priority: int
    family: int
    source: tuple[bytes, int]
    destination: tuple[bytes, int]
    protocol: int
    is_narrow: bool
    """Whether it is for some ports or one interface alone."""
    is_plain: bool
    """Whether packets leave as they are."""


class Policies:
    """The policies of the network namespace that it was made in.  Raises ``OSError``."""

    def __init__(self) -> None:
        self._kernel: Conversation | None = None
        self._policies: list[Policy] = []
        try:
            self._kernel = Conversation(_XFRM, _GROUP_POLICY)
        except OSError as error:
            if error.errno not in _NOT_HERE:  # a kernel without IPsec has no policies
                raise
            return
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return what to wait on for changes; -1 where there can be none."""
        return -1 if self._kernel is None else self._kernel.fileno()

    def changed(self) -> bool:
        """Take what was told of changes; return whether there was anything.  Raises ``OSError``."""
        if self._kernel is None or self._kernel.news() == set():
            return False
        self._read()
        return True

    def leave_plain(self, source: str, destination: str) -> bool:
        """Whether UDP between these hosts leaves as it is, whatever its ports."""
        if not self._policies:
            return True
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        here, there = (socket.inet_pton(family, host) for host in (source, destination))
        for policy in self._policies:
            if (
                policy.family == family
                and policy.protocol in {0, socket.IPPROTO_UDP}
                and _is_in(here, *policy.source)
                and _is_in(there, *policy.destination)
                # An exception for some ports is none for the others.
                and not (policy.is_narrow and policy.is_plain)
            ):
                return policy.is_plain
        return True

    def close(self) -> None:
        """Hear no more."""
        if self._kernel is not None:
            self._kernel.close()

    def _read(self) -> None:
        assert self._kernel is not None
        bodies = self._kernel.table(_GET_POLICY, bytes(_ID_SIZE), _NEW_POLICY)
        found = [policy for body in bodies if (policy := _read_policy(body)) is not None]
        # The lowest number is asked first; of equal ones, what came first.
        self._policies = sorted(found, key=lambda policy: policy.priority)


def _read_policy(body: bytes) -> Policy | None:
    size = _SELECTOR.size + _RULE.size
    if len(body) < size:
        return None
    to, of, ports, family, to_bits, of_bits, protocol, interface, _ = _SELECTOR.unpack_from(body)
    priority, _, direction, action, _, _ = _RULE.unpack_from(body, _SELECTOR.size)
    if direction != _OUT:
        return None
    plain = action == _ALLOW and not attributes(body, size).get(_TEMPLATES)
    narrow = any(ports) or bool(interface)
    return Policy(priority, family, (of, of_bits), (to, to_bits), protocol, narrow, plain)


def _is_in(host: bytes, prefix: bytes, bits: int) -> bool:
    beyond = max(8 * len(host) - bits, 0)
    ours = int.from_bytes(host, "big") >> beyond
    return ours == int.from_bytes(prefix[: len(host)], "big") >> beyond
