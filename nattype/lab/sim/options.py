"""What a simulated NAT can do that a kernel NAT cannot: behaviour beside :class:`NatModel`.

The defaults are Linux's, so that a box without options behaves like the kernel NAT of its model.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Refresh(StrEnum):
    """Packets of which direction keep a mapping alive (RFC 4787 section 4.3, REQ-6)."""

    BOTH = "both"
    """As Linux does."""
    OUTBOUND = "outbound"
    """The least that REQ-6 demands."""
    INBOUND = "inbound"
    """Against REQ-6: keepalives from inside are in vain."""
    NEVER = "never"
    """A mapping ends its lifetime after it was made, used or not."""


class Pooling(StrEnum):
    """Which of several external addresses a mapping gets (RFC 4787 section 4.1, REQ-2)."""

    PAIRED = "paired"
    ARBITRARY = "arbitrary"


@dataclass(frozen=True, slots=True)
class SimOptions:
    """Behaviour of a simulated box that :class:`~nattype.model.NatModel` has no axis for."""

    port_parity: bool = False
    """Even internal ports get even external ones, odd ones odd ones (RFC 4787 section 4.2.2)."""
    port_block: int | None = None
    """Ports a subscriber of a chunked carrier NAT may have: a block of this size, aligned to it, is
    set aside for each internal address and new mappings come from there (RFC 7422)."""
    external_addresses: int = 1
    pooling: Pooling = Pooling.PAIRED
    refresh: Refresh = Refresh.BOTH
    remap_after: float | None = None
    """Seconds after which a mapping in use is replaced by another with another port."""
    hairpin_internal_source: bool = False
    """Hairpinned packets keep their internal source, against RFC 4787 REQ-9."""
    syn_hold: float = 0.0
    """Seconds that an uninvited SYN is held unanswered, in case an outbound SYN makes it half of a
    simultaneous open; RFC 5382 REQ-4 asks for at least 6.  ICMP follows when none came."""
    alg: bool = False
    """Rewrite the internal address to the external one, and back, wherever its octets stand in a
    datagram's payload: the application-level gateways for which XOR-MAPPED-ADDRESS exists."""
    drop_fragments: bool = False
    tcp_transitory: float = 240.0
    """Seconds that a TCP connection may be half open or half closed: RFC 5382 REQ-5 asks for four
    minutes at least."""


LIKE_LINUX: Final = SimOptions()
"""No options: what the kernel's NATs do."""
