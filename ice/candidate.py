"""Candidates: the transport addresses that a peer may be reached at (RFC 8445, RFC 6544).

Their text form is that of the candidate attribute (RFC 8839 section 5.1, RFC 6544 section 4.5).
What is written is strictly by the grammar.  What is read may depart from it where others are known
to: nothing depends on a priority being the product of the recommended formula (examples of RFC 8838
and RFC 8840 are not), and letters are compared without regard to case where they name something.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NoReturn

from stun.attributes.address import host_octets, host_text
from stun.errors import UsageError
from stun.sansio import Address

MOST_CHARACTERS: Final = 2048
"""Of a candidate's text.  Two names of 255 and a username fragment of 256 leave room to spare."""
DISCARD_PORT: Final = 9
"""Stands for a port that is not told or that nobody can dial (RFC 8839 5.1, RFC 6544 4.5)."""
UNSPECIFIED: Final = {False: "0.0.0.0", True: "::"}  # noqa: S104  (written, never bound)
"""What stands for a related address that is not told: of IPv4, of IPv6."""

_MOST_QUOTED = 120
_FIELDS = ("foundation", "component", "transport", "priority", "address", "port", "'typ'", "type")
_ATTRIBUTES = ("raddr", "rport")
_TCP_ATTRIBUTES = ("raddr", "rport", "tcptype")
_INVISIBLE = re.compile(r"[^\x20-\x7e]")
_DOTTED = re.compile(r"[0-9.]+")
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_.])?")
_ZONE = re.compile(r"[A-Za-z0-9._~-]{1,32}")


class CandidateError(UsageError):
    """A candidate's text that is none: ``problem`` at ``position`` (counted from 0) in ``text``."""

    def __init__(self, text: str, position: int, problem: str) -> None:
        quoted = repr(text if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]}...")
        super().__init__(f"{quoted}: {problem} (at character {position + 1})")
        self.text = text[:MOST_CHARACTERS]
        self.position = position
        self.problem = problem


class UnsupportedCandidate(CandidateError):
    """A candidate that may be well-formed, of a transport or a type that is not known here.

    "An implementation MUST ignore" what it does not understand (RFC 8839 section 5.1), so this is
    no fault of the peer's.
    """


class CandidateType(StrEnum):
    """How an address was learned (RFC 8445 section 5.1.1)."""

    HOST = "host"
    SERVER_REFLEXIVE = "srflx"
    PEER_REFLEXIVE = "prflx"
    RELAYED = "relay"


class TcpType(StrEnum):
    """Who opens the connection of a TCP candidate (RFC 6544 section 4.5)."""

    ACTIVE = "active"
    PASSIVE = "passive"
    SIMULTANEOUS_OPEN = "so"

    @property
    def counterpart(self) -> TcpType:
        """What the other side of a connection has to be (RFC 6544 section 6.2)."""
        return _COUNTERPARTS[self]


_COUNTERPARTS = {
    TcpType.ACTIVE: TcpType.PASSIVE,
    TcpType.PASSIVE: TcpType.ACTIVE,
    TcpType.SIMULTANEOUS_OPEN: TcpType.SIMULTANEOUS_OPEN,
}


_TYPES = {str(kind): kind for kind in CandidateType}
_TCP_TYPES = {str(tcptype): tcptype for tcptype in TcpType}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate as it is told to the peer.

    ``host`` is a numeric address, or a ``.local`` name that stands for one.  ``transport`` is
    ``"udp"`` or ``"tcp"``.  ``related_address`` and ``related_port`` are for diagnostics: the base,
    or for a relayed candidate the mapped address; ``None`` where it is not told.  ``extensions``
    are the (name, value) pairs of the candidate attribute that have no field here, in order.
    """

    foundation: str
    component: int
    transport: str
    priority: int
    host: str
    port: int
    type: CandidateType
    related_address: str | None = None
    related_port: int | None = None
    tcptype: TcpType | None = None
    extensions: tuple[tuple[str, str], ...] = ()
    local_name: str | None = field(default=None, compare=False)
    """The ``.local`` name that ``host`` was looked up from, which is told in its place."""

    @property
    def address(self) -> Address:
        """Where it is."""
        return Address(self.host, self.port)

    @property
    def is_name(self) -> bool:
        """Whether ``host`` is a name, so that there is nothing to send to before it is resolved."""
        return is_name(self.host)

    @property
    def is_mdns(self) -> bool:
        """Whether ``host`` is a name that stands for an address of the peer's link.

        It ends in ``.local`` and has no other dot (draft-ietf-mmusic-mdns-ice-candidates, section
        3.2.1).  Any other name is to be ignored: RFC 8839 section 5.1 leaves it to an extension.
        """
        return self.host.count(".") == 1 and self.host.lower().endswith(".local") and self.is_name

    def extension(self, name: str) -> str | None:
        """Return the value of the first extension attribute of that name."""
        for key, value in self.extensions:
            if key == name:
                return value
        return None

    def to_sdp(self) -> str:
        """Return the attribute without ``a=``: ``"candidate:1 1 udp 2130706431 ..."``.

        A zone is left out, as it means nothing to another host (RFC 4007 section 6).  A related
        address that is not told is written as RFC 8839 section 5.1 has it: the attribute "MUST be
        present" then, with "0.0.0.0" or "::" and port 9.
        """
        host = self.host.partition("%")[0]
        port = DISCARD_PORT if self.tcptype is TcpType.ACTIVE else self.port
        text = (
            f"candidate:{self.foundation} {self.component} {self.transport} {self.priority} "
            f"{host} {port} typ {self.type}"
        )
        if self.type is not CandidateType.HOST:
            if self.related_address is None:
                text += f" raddr {UNSPECIFIED[':' in host]} rport {DISCARD_PORT}"
            else:
                related_port = DISCARD_PORT if self.related_port is None else self.related_port
                text += f" raddr {self.related_address.partition('%')[0]} rport {related_port}"
        if self.tcptype is not None:
            text += f" tcptype {self.tcptype}"
        return text + "".join(f" {name} {value}" for name, value in self.extensions)

    @classmethod
    def from_sdp(cls, text: str) -> Candidate:
        """Parse a candidate attribute, with or without ``a=`` and ``candidate:`` before it.

        Raises :class:`CandidateError` that says what is wrong and where, and its subclass
        :class:`UnsupportedCandidate` for a transport or a type that is not known.  IP addresses
        come out as :class:`stun.sansio.Address` has them, with their zone if they have one.  A TCP
        candidate without ``tcptype`` is passive: so are those that speak of no other kind.
        """
        return _Reader(text).candidate()


def is_name(host: str) -> bool:
    """Whether it is a name and no IP address."""
    return ":" not in host and _DOTTED.fullmatch(host) is None


def parse_host(text: str) -> str:
    """Return a connection address (RFC 8839 section 5.1) as a candidate has it, or a name.

    IP addresses come out in the form of RFC 5952, with their zone if they have one.  Raises
    ``ValueError`` with the reason.
    """
    # "The presence of a colon indicates IPv6."
    is_ipv6 = ":" in text
    if is_ipv6 or _DOTTED.fullmatch(text):
        _, percent, zone = text.partition("%")
        if percent and _ZONE.fullmatch(zone) is None:
            raise ValueError("the zone of this address is none")
        try:
            return host_text(host_octets(text)) + percent + zone
        except UsageError:
            raise ValueError(f"not an IPv{6 if is_ipv6 else 4} address") from None
    if _NAME.fullmatch(text) is None:
        raise ValueError("neither an address nor a name")
    return text


class _Reader:
    """Takes one attribute apart; knows where each field stands."""

    __slots__ = ("fields", "start", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > MOST_CHARACTERS:
            problem = f"{len(text)} characters are more than {MOST_CHARACTERS}"
            raise CandidateError(text, MOST_CHARACTERS, problem)
        start = 2 if text.startswith("a=") else 0
        if text.startswith("candidate:", start):
            start += len("candidate:")
        body = text[start:].rstrip("\r\n ")
        if not (body.isascii() and body.isprintable()):
            invisible = _INVISIBLE.search(body)
            assert invisible is not None
            problem = f"{invisible[0]!r} is no visible ASCII character"
            raise CandidateError(text, start + invisible.start(), problem)
        self.start = start
        self.fields = body.split(" ")

    def candidate(self) -> Candidate:
        fields = self.fields
        if len(fields) < len(_FIELDS):
            self.fail(len(fields), f"it ends before the {_FIELDS[len(fields)]}")
        foundation = fields[0]
        # RFC 8839 5.1: 1 to 32 of letters, digits, "+" and "/".  It is only ever compared, so that
        # other characters do no harm.
        if not 1 <= len(foundation) <= 32:
            self.fail(0, f"a foundation has 1 to 32 characters, not {len(foundation)}")
        component = self.number(1, 1, 256)
        transport = fields[2].lower()
        if transport not in ("udp", "tcp"):
            self.unsupported(2, "transport")
        # RFC 8445 5.1.2 has 1 to 2**31 - 1.  PRIORITY carries 32 bits, and so do other agents.
        priority = self.number(3, 0, 0xFFFFFFFF)
        host = self.host(4)
        port = self.number(5, 0, 0xFFFF)
        if fields[6].lower() != "typ":
            self.fail(6, "'typ' expected")
        kind = _TYPES.get(fields[7].lower())
        if kind is None:
            self.unsupported(7, "type")
        tcptype: TcpType | None = None
        related_address: str | None = None
        related_port: int | None = None
        extensions: list[tuple[str, str]] = []
        seen = set()
        for n in range(8, len(fields), 2):
            name = fields[n]
            if not name:
                self.fail(n, "the name of an extension attribute expected")
            # The value is *VCHAR and may be empty, so it may be missing at the end.
            value = fields[n + 1] if n + 1 < len(fields) else ""
            key = name.lower()
            if key not in (_TCP_ATTRIBUTES if transport == "tcp" else _ATTRIBUTES):
                extensions.append((name, value))
                continue
            if n + 1 == len(fields):
                self.fail(n + 1, f"it ends before the value of {key}")
            if key in seen:
                self.fail(n, f"{key} for the second time")
            seen.add(key)
            if key == "raddr":
                related_address = self.host(n + 1)
            elif key == "rport":
                related_port = self.number(n + 1, 0, 0xFFFF)
            else:
                tcptype = _TCP_TYPES.get(value.lower())
                if tcptype is None:
                    self.unsupported(n + 1, "tcptype")
        if transport == "tcp" and tcptype is None:
            tcptype = TcpType.PASSIVE
        # Some write port 0 for an active candidate, which nobody dials.
        if port == 0 and tcptype is not TcpType.ACTIVE:
            self.fail(5, "port 0 cannot be sent to")
        return Candidate(
            foundation, component, transport, priority, host, port, kind,
            related_address, related_port, tcptype, tuple(extensions),
        )  # fmt: skip

    def number(self, n: int, least: int, most: int) -> int:
        field = self.fields[n]
        # Nothing but ASCII has come this far.
        value = int(field) if field.isdigit() and len(field) <= 10 else -1
        if not least <= value <= most:
            self.fail(n, f"a number from {least} to {most} expected")
        return value

    def host(self, n: int) -> str:
        try:
            return parse_host(self.fields[n])
        except ValueError as wrong:
            self.fail(n, str(wrong))

    def where(self, n: int) -> int:
        """Return the position of field ``n``, or of the end when there are fewer."""
        before = self.fields[:n]
        position = self.start + sum(map(len, before)) + len(before)
        return position if n < len(self.fields) else position - 1

    def fail(self, n: int, problem: str) -> NoReturn:
        raise CandidateError(self.text, self.where(n), problem)

    def unsupported(self, n: int, what: str) -> NoReturn:
        shown = self.fields[n][:32]
        raise UnsupportedCandidate(self.text, self.where(n), f"unknown {what} {shown!r}")
