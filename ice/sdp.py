"""What SDP says about ICE (RFC 8839, RFC 8840, RFC 8838), read and written.

:func:`parse` takes an offer, an answer or a trickled fragment (``application/trickle-ice-sdpfrag``)
and gives a :class:`Description`: what stands before the first ``m=`` line, and one
:class:`Section` for each media description.  Everything that is not ICE's is passed over.  A line
that is ICE's and wrong is left out and told in :attr:`Description.problems`; the others count all
the same, for a peer that sends one candidate that nobody understands can still be reached at the
others.

:meth:`Description.lines` and :meth:`Section.lines` are the attributes to put into an offer or an
answer; :func:`fragment` writes a whole trickled body.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from ice.candidate import (
    DISCARD_PORT,
    UNSPECIFIED,
    Candidate,
    CandidateError,
    CandidateType,
    TcpType,
    is_name,
    parse_host,
)
from ice.config import Credentials
from stun.errors import UsageError
from stun.sansio import Address

FRAGMENT_TYPE: Final = "application/trickle-ice-sdpfrag"
"""The media type of what :func:`fragment` writes (RFC 8840 section 9)."""

TRICKLE: Final = "trickle"
"""The option of RFC 8838: candidates may come later."""
ICE2: Final = "ice2"
"""The option of RFC 8445 section 10, against agents of RFC 5245."""
RENOMINATION: Final = "renomination"
"""The option of draft-thatcher-ice-renomination: nominations are numbered, the last one counts."""

DEFAULT_PACING: Final = 50
"""Milliseconds, where ``ice-pacing`` is absent (RFC 8839 section 5.5)."""

MOST_CHARACTERS: Final = 1 << 20
"""Of a body; more is no session description of this world."""
MOST_SECTIONS: Final = 1000
"""Media descriptions; the following ones are problems."""
MOST_CANDIDATES: Final = 1000
"""Of one media section; the following ones are problems."""
MOST_OPTIONS: Final = 64
"""Of one level."""
MOST_PROBLEMS: Final = 50
"""That are told one by one; :attr:`Description.left_out` counts them all."""
_MOST_SHOWN = 80

_PSEUDO_MEDIA = "audio 9 RTP/AVP 0"
_UFRAG = re.compile(r"[!-9;-~]{4,256}")
_PASSWORD = re.compile(r"[!-~]{22,256}")
_TOKEN = re.compile(r"[!-~]{1,256}")
_DIGITS = re.compile(r"[0-9]{1,10}")
_MEDIA = re.compile(r"[!-~]+ ([0-9]{1,5})(?:/[0-9]{1,5})? [!-~]+(?: [!-~]+)*")
_CONNECTION = re.compile(r"IN IP[46] ([!-~]+)", re.IGNORECASE)
_RTCP = re.compile(r"([0-9]{1,5})(?: IN IP[46] ([!-~]+))?", re.IGNORECASE)
_CONTROL = re.compile(r"[\0-\x1f\x7f]")


class SdpError(UsageError):
    """A body that is not taken apart at all, or values that cannot be written."""


class Problem(NamedTuple):
    """A line that was left out: its number, counted from 1, its beginning, and what is wrong."""

    line: int
    text: str
    what: str


class RemoteCandidate(NamedTuple):
    """An element of ``remote-candidates``: what the controlling agent has selected."""

    component: int
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.component} {self.host.partition('%')[0]} {self.port}"


@dataclass(frozen=True, slots=True)
class Section:
    """A media description, as far as ICE goes.

    ``media``: the value of its ``m=`` line, which in a trickled fragment is a pseudo one, as it is
    for a line that could not be read.  ``ufrag`` and ``password``: of this level, and
    then over those of the session.  ``default``: the default destination, what ``c=`` and ``m=``
    say (RFC 8839 section 3); ``rtcp``: that of the RTCP component, if there is such an attribute.
    Both are read only: the lines that they are from are not ICE's.
    """

    media: str = _PSEUDO_MEDIA
    mid: str | None = None
    ufrag: str | None = None
    password: str | None = None
    options: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    remote_candidates: tuple[RemoteCandidate, ...] = ()
    end_of_candidates: bool = False
    mismatch: bool = False
    rtcp_mux: bool = False
    default: Address | None = None
    rtcp: Address | None = None

    @property
    def port(self) -> int:
        """The port of the ``m=`` line, 0 for a stream that is disabled."""
        match = _MEDIA.fullmatch(self.media)
        return int(match[1]) if match else DISCARD_PORT

    def lines(self) -> list[str]:
        """Return the attributes of this level, without line ends, the mid first."""
        lines = [] if self.mid is None else [f"a=mid:{self.mid}"]
        lines += _common_lines(self)
        if self.rtcp_mux:
            lines.append("a=rtcp-mux")
        lines += [f"a={candidate.to_sdp()}" for candidate in self.candidates]
        if self.remote_candidates:
            told = " ".join(map(str, self.remote_candidates))
            lines.append(f"a=remote-candidates:{told}")
        if self.end_of_candidates:
            lines.append("a=end-of-candidates")
        if self.mismatch:
            lines.append("a=ice-mismatch")
        return _checked(lines)


@dataclass(frozen=True, slots=True)
class Description:
    """A session description or a fragment of one, as far as ICE goes.

    ``pacing``: milliseconds.  ``end_of_candidates``: of all sections.  ``bundle``: the mids of the
    first BUNDLE group (RFC 8843).  ``problems``: what was left out in reading, the first
    :data:`MOST_PROBLEMS` of ``left_out``.
    """

    sections: tuple[Section, ...] = ()
    ufrag: str | None = None
    password: str | None = None
    lite: bool = False
    options: tuple[str, ...] = ()
    pacing: int | None = None
    end_of_candidates: bool = False
    bundle: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = field(default=(), compare=False)
    left_out: int = field(default=0, compare=False)

    def section(self, mid: str) -> Section | None:
        """Return the media description with this identification tag."""
        return next((section for section in self.sections if section.mid == mid), None)

    def credentials(self, section: Section | None = None) -> Credentials | None:
        """Return what holds for a section, or for the session; ``None`` unless both are there.

        "When present in both, the value in the media-level takes precedence" (RFC 8839 section
        5.4).
        """
        ufrag = (section and section.ufrag) or self.ufrag
        password = (section and section.password) or self.password
        return None if ufrag is None or password is None else Credentials(ufrag, password)

    def options_of(self, section: Section) -> tuple[str, ...]:
        """Return the options that hold for a section: the session's and its own."""
        return tuple(dict.fromkeys(self.options + section.options))

    def is_ended(self, section: Section) -> bool:
        """Whether no more candidates of a section will come."""
        return self.end_of_candidates or section.end_of_candidates

    def is_mismatch(self, section: Section) -> bool:
        """Whether ``ice-mismatch`` is to be answered: somebody has changed the addresses.

        RFC 8839 section 4.2.5: the default destination of a component "appears in a candidate
        attribute", unless it is 0.0.0.0 or :: with port 9, or a name, or, with trickling, is still
        to come (RFC 8840 section 4.1.2).  A disabled stream has none.
        """
        if not section.candidates or section.port == 0:
            return False
        if TRICKLE in self.options_of(section) and not self.is_ended(section):
            return False
        told = {(candidate.component, candidate.address) for candidate in section.candidates}
        defaults = {1: section.default, 2: section.rtcp}
        if section.default is not None and section.rtcp is None:
            # RFC 8839 3: "its port is one greater".
            defaults[2] = Address(section.default.host, section.default.port + 1)
        return any(
            default is not None and not _is_open(default) and (component, default) not in told
            for component, default in defaults.items()
            if component == 1 or any(component == had for had, _ in told)
        )

    def lines(self) -> list[str]:
        """Return the attributes of the session level, without line ends."""
        lines = [f"a=group:BUNDLE {' '.join(self.bundle)}"] if self.bundle else []
        if self.lite:
            lines.append("a=ice-lite")
        if self.pacing is not None:
            lines.append(f"a=ice-pacing:{self.pacing}")
        lines += _common_lines(self)
        if self.end_of_candidates:
            lines.append("a=end-of-candidates")
        return _checked(lines)


def _is_open(default: Address) -> bool:
    """Whether a default destination says nothing about where."""
    unspecified = default.host in UNSPECIFIED.values() and default.port == DISCARD_PORT
    return unspecified or is_name(default.host)


def _common_lines(level: Section | Description) -> list[str]:
    lines = []
    if level.ufrag is not None:
        lines.append(f"a=ice-ufrag:{level.ufrag}")
    if level.password is not None:
        lines.append(f"a=ice-pwd:{level.password}")
    if level.options:
        lines.append(f"a=ice-options:{' '.join(level.options)}")
    return lines


def _checked(lines: list[str]) -> list[str]:
    for line in lines:
        if _CONTROL.search(line):
            raise SdpError(f"{line[:_MOST_SHOWN]!r} does not fit on a line")
    return lines


def fragment(description: Description) -> str:
    """Write a body of the type :data:`FRAGMENT_TYPE` (RFC 8840 section 9.2).

    It has to hold all candidates of the generation so far, "in the same order as they were sent
    before" (section 4.4).  Raises :class:`SdpError` for a value that holds a line end.
    """
    lines = description.lines()
    for section in description.sections:
        lines += _checked([f"m={section.media}"])
        lines += section.lines()
    return "".join(f"{line}\r\n" for line in lines)


def unseen(known: Iterable[Candidate], told: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates of a fragment that were not told before, in order.

    They are equal "if their IP address port, transport, and component ID are the same" (RFC 8840
    section 4.4).
    """
    seen = {_identity(candidate) for candidate in known}
    new = []
    for candidate in told:
        if (identity := _identity(candidate)) not in seen:
            seen.add(identity)
            new.append(candidate)
    return new


def _identity(candidate: Candidate) -> tuple[object, ...]:
    # Active TCP candidates of one address differ from others by nothing but their kind.
    return candidate.address, candidate.transport, candidate.component, candidate.tcptype


def default_candidate(candidates: Iterable[Candidate], component: int = 1) -> Candidate | None:
    """Return the candidate for the ``m=`` and ``c=`` lines, before one is nominated.

    The one most likely to work "with a peer that does not support ICE": relayed, else reflexive,
    else host, over UDP (RFC 8445 section 5.1.4, RFC 6544 section 4.3), the one of the highest
    priority among equals.  A name is none that such a peer could use, nor is what only dials.
    """
    kinds = (CandidateType.HOST, CandidateType.SERVER_REFLEXIVE, CandidateType.RELAYED)
    able = [
        candidate
        for candidate in candidates
        if candidate.component == component
        and candidate.type in kinds
        and candidate.tcptype is not TcpType.ACTIVE
        and not candidate.is_name
    ]
    return max(
        able, key=lambda c: (c.transport == "udp", kinds.index(c.type), c.priority), default=None
    )


def parse(text: str) -> Description:
    """Read an offer, an answer or a fragment.  Lines end in CRLF or LF.

    Raises :class:`SdpError` for more than :data:`MOST_CHARACTERS`, and for nothing else.
    """
    if len(text) > MOST_CHARACTERS:
        raise SdpError(f"a body of {len(text)} characters; at most {MOST_CHARACTERS} are read")
    reader = _Reader()
    for number, line in enumerate(text.split("\n"), 1):
        reader.take(number, line.rstrip("\r"))
    return reader.description()


class _Reader:
    """Takes one line after another.

    ``session`` and ``media`` are the fields of the level that is being read; attribute names are
    compared without regard to case, as RFC 8840 section 9.2 demands of a receiver.
    """

    def __init__(self) -> None:
        self.session: dict[str, Any] = {}
        self.level = self.session
        self.media: list[dict[str, Any]] = []
        self.problems: list[Problem] = []
        self.left_out = 0

    def take(self, number: int, line: str) -> None:
        try:
            match line[:2]:
                case "a=":
                    name, _, value = line[2:].partition(":")
                    if (take := _ATTRIBUTES.get(name.strip().lower())) is not None:
                        take(self, value)
                case "m=":
                    self.section(line[2:])
                case "c=":
                    if (match := _CONNECTION.fullmatch(line[2:])) is None:
                        raise ValueError("no connection address")
                    self.level["host"] = parse_host(match[1].partition("/")[0])
        except CandidateError as wrong:
            self.problem(number, line, wrong.problem)
        except ValueError as wrong:
            self.problem(number, line, str(wrong))

    def section(self, media: str) -> None:
        match = _MEDIA.fullmatch(media)
        is_odd = match is None or int(match[1]) > 0xFFFF
        # What comes belongs to this section even if the line itself is odd, or is one too many.
        self.level = {} if is_odd else {"media": media}
        if len(self.media) >= MOST_SECTIONS:
            raise ValueError(f"more than {MOST_SECTIONS} media descriptions")
        self.media.append(self.level)
        if is_odd:
            raise ValueError("no media, port, protocol and format")

    def problem(self, number: int, line: str, what: str) -> None:
        self.left_out += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(number, line[:_MOST_SHOWN], what))

    def description(self) -> Description:
        elsewhere = self.session.pop("host", None)
        sections = []
        for level in self.media:
            host = level.pop("host", elsewhere)
            rtcp_port, rtcp_host = level.pop("rtcp", (None, None))
            section = Section(**level)
            sections.append(
                replace(
                    section,
                    candidates=tuple(section.candidates),
                    default=host and Address(host, section.port),
                    rtcp=rtcp_port
                    and (rtcp_host or host)
                    and Address(rtcp_host or host, rtcp_port),
                )
            )
        return Description(
            tuple(sections), **self.session, problems=tuple(self.problems), left_out=self.left_out
        )

    # Attributes.  Each raises ValueError with what is wrong. -----------------------------------

    def once(self, name: str, value: object) -> None:
        if name in self.level:
            raise ValueError("for the second time")
        self.level[name] = value

    def ufrag(self, value: str) -> None:
        # RFC 8839 5.4 has letters, digits, "+" and "/"; some draw from other alphabets, which does
        # no harm unless it has the colon that parts the two fragments in USERNAME.
        if _UFRAG.fullmatch(value) is None:
            raise ValueError("no username fragment of 4 to 256 characters")
        self.once("ufrag", value)

    def password(self, value: str) -> None:
        if _PASSWORD.fullmatch(value) is None:
            raise ValueError("no password of 22 to 256 characters")
        self.once("password", value)

    def options(self, value: str) -> None:
        self.once("options", _tokens(value, MOST_OPTIONS))

    def pacing(self, value: str) -> None:
        self.session_only()
        if _DIGITS.fullmatch(value) is None:
            raise ValueError("no number of milliseconds")
        self.once("pacing", int(value))

    def lite(self, _: str) -> None:
        self.session_only()
        self.level["lite"] = True

    def group(self, value: str) -> None:
        if self.level is self.session and value.lower().startswith("bundle "):
            self.once("bundle", _tokens(value[len("bundle ") :], MOST_SECTIONS))

    def end_of_candidates(self, _: str) -> None:
        self.level["end_of_candidates"] = True

    def mismatch(self, _: str) -> None:
        self.media_only()
        self.level["mismatch"] = True

    def mid(self, value: str) -> None:
        self.media_only()
        if _TOKEN.fullmatch(value) is None:
            raise ValueError("no identification tag")
        self.once("mid", value)

    def rtcp_mux(self, _: str) -> None:
        if self.level is not self.session:
            self.level["rtcp_mux"] = True

    def rtcp(self, value: str) -> None:
        if self.level is self.session or not value:
            return
        if (match := _RTCP.fullmatch(value)) is None:
            raise ValueError("no port of RTCP")
        self.once("rtcp", (_number(match[1]), match[2] and parse_host(match[2])))

    def candidate(self, value: str) -> None:
        self.media_only()
        candidates = self.level.setdefault("candidates", [])
        if len(candidates) >= MOST_CANDIDATES:
            raise ValueError(f"more than {MOST_CANDIDATES} candidates")
        candidates.append(Candidate.from_sdp(value))

    def remote_candidates(self, value: str) -> None:
        """Take several on one line or, as the example of RFC 8839 has it, a line for each."""
        self.media_only()
        words = value.split(" ")
        told = []
        for n in range(0, len(words), 3):
            triple = words[n : n + 3]
            if len(triple) < 3:
                raise ValueError("component, address and port expected")
            component, host, port = triple
            told.append(
                RemoteCandidate(_number(component, 1, 256), parse_host(host), _number(port))
            )
        before = self.level.get("remote_candidates", ())
        if len(before) + len(told) > MOST_CANDIDATES:
            raise ValueError(f"more than {MOST_CANDIDATES} candidates")
        self.level["remote_candidates"] = (*before, *told)

    def session_only(self) -> None:
        if self.level is not self.session:
            raise ValueError("belongs before the first media description")

    def media_only(self) -> None:
        if self.level is self.session:
            raise ValueError("belongs into a media description")


def _tokens(value: str, most: int) -> tuple[str, ...]:
    tokens = value.split(maxsplit=most)
    if len(tokens) > most:
        raise ValueError(f"more than {most} words")
    if not tokens or not all(map(_TOKEN.fullmatch, tokens)):
        raise ValueError("no list of words")
    return tuple(tokens)


def _number(text: str, least: int = 0, most: int = 0xFFFF) -> int:
    if _DIGITS.fullmatch(text) is None or not least <= int(text) <= most:
        raise ValueError(f"a number from {least} to {most} expected")
    return int(text)


_ATTRIBUTES: dict[str, Callable[[_Reader, str], None]] = {
    "ice-ufrag": _Reader.ufrag,
    "ice-pwd": _Reader.password,
    "ice-options": _Reader.options,
    "ice-pacing": _Reader.pacing,
    "ice-lite": _Reader.lite,
    "ice-mismatch": _Reader.mismatch,
    "candidate": _Reader.candidate,
    "remote-candidates": _Reader.remote_candidates,
    "end-of-candidates": _Reader.end_of_candidates,
    "mid": _Reader.mid,
    "group": _Reader.group,
    "rtcp": _Reader.rtcp,
    "rtcp-mux": _Reader.rtcp_mux,
    "rtcp-mux-only": _Reader.rtcp_mux,
}
