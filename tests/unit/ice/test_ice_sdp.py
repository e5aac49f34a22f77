"""ICE in SDP.  The bodies of the RFCs are in rfc-vectors/ice/bodies.json."""

from __future__ import annotations

import pytest

from ice import sdp
from ice.candidate import Candidate
from ice.config import Credentials
from ice.sdp import Description, RemoteCandidate, SdpError, Section, fragment, parse
from stun.sansio import Address

UFRAG, PASSWORD = "8hhY", "asd88fgpdd777uzjYhagZg"
HOST = Candidate.from_sdp("1 1 udp 2130706431 203.0.113.141 8998 typ host")
REFLEXIVE = Candidate.from_sdp(
    "2 1 udp 1694498815 192.0.2.3 45664 typ srflx raddr 203.0.113.141 rport 8998"
)
RELAYED = Candidate.from_sdp("3 1 udp 255 198.51.100.1 50000 typ relay raddr :: rport 9")
PASSIVE = Candidate.from_sdp("4 1 tcp 2107637759 203.0.113.141 8999 typ host tcptype passive")
ACTIVE = Candidate.from_sdp("5 1 tcp 2111832063 203.0.113.141 9 typ host tcptype active")
RTCP = Candidate.from_sdp("1 2 udp 2130706430 203.0.113.141 8999 typ host")

EVERYTHING = Description(
    sections=(
        Section(
            media="audio 45664 RTP/AVP 0 8",
            mid="a1",
            ufrag="abcd",
            password="x" * 256,
            options=("rtp+ecn",),
            candidates=(HOST, REFLEXIVE, RTCP, PASSIVE, ACTIVE),
            remote_candidates=(
                RemoteCandidate(1, "192.0.2.1", 5000),
                RemoteCandidate(2, "2001:db8::1", 5001),
            ),
            end_of_candidates=True,
            rtcp_mux=True,
        ),
        Section(media="video 0 RTP/AVP 31", mid="b", mismatch=True),
        Section(),
    ),
    ufrag=UFRAG,
    password=PASSWORD,
    lite=True,
    options=("trickle", "ice2", "renomination"),
    pacing=20,
    end_of_candidates=True,
    bundle=("a1", "b"),
)


def body(*lines: str) -> str:
    return "".join(f"{line}\r\n" for line in lines)


def problems(*lines: str) -> list[tuple[int, str]]:
    return [(problem.line, problem.what) for problem in parse(body(*lines)).problems]


def test_everything_comes_back() -> None:
    assert parse(fragment(EVERYTHING)) == EVERYTHING
    assert parse(fragment(EVERYTHING)).left_out == 0


def test_what_a_fragment_looks_like() -> None:
    told = Description(
        (Section(mid="1", candidates=(HOST,), end_of_candidates=True),), UFRAG, PASSWORD
    )
    assert fragment(told) == body(
        "a=ice-ufrag:8hhY",
        "a=ice-pwd:asd88fgpdd777uzjYhagZg",
        "m=audio 9 RTP/AVP 0",
        "a=mid:1",
        "a=candidate:1 1 udp 2130706431 203.0.113.141 8998 typ host",
        "a=end-of-candidates",
    )
    assert sdp.FRAGMENT_TYPE == "application/trickle-ice-sdpfrag"


def test_lines_for_an_offer() -> None:
    assert EVERYTHING.lines() == [
        "a=group:BUNDLE a1 b",
        "a=ice-lite",
        "a=ice-pacing:20",
        f"a=ice-ufrag:{UFRAG}",
        f"a=ice-pwd:{PASSWORD}",
        "a=ice-options:trickle ice2 renomination",
        "a=end-of-candidates",
    ]
    assert EVERYTHING.sections[1].lines() == ["a=mid:b", "a=ice-mismatch"]
    assert (
        "a=remote-candidates:1 192.0.2.1 5000 2 2001:db8::1 5001" in EVERYTHING.sections[0].lines()
    )


def test_nothing() -> None:
    assert parse("") == Description()
    assert fragment(Description()) == ""
    assert Description().credentials() is None


@pytest.mark.parametrize(
    "told",
    [
        Description(ufrag="8hhY\r\na=ice-lite"),
        Description(bundle=("a\n",)),
        Description((Section(media="audio 9 RTP/AVP 0\r\nm=x"),)),
        Description((Section(mid="1\0"),)),
    ],
)
def test_no_value_can_bring_a_line_of_its_own(told: Description) -> None:
    with pytest.raises(SdpError, match="does not fit on a line"):
        fragment(told)


def test_levels() -> None:
    """RFC 8839 5.4: "the value in the media-level takes precedence"."""
    told = parse(
        body(
            f"a=ice-ufrag:{UFRAG}",
            f"a=ice-pwd:{PASSWORD}",
            "a=ice-options:trickle ice2",
            "m=audio 9 RTP/AVP 0",
            "a=mid:0",
            "m=video 9 RTP/AVP 0",
            "a=mid:1",
            "a=ice-ufrag:wxyz",
            f"a=ice-pwd:{'p' * 22}",
            "a=ice-options:ice2 renomination",
            "a=end-of-candidates",
        )
    )
    first, second = told.sections
    assert told.credentials(first) == told.credentials() == Credentials(UFRAG, PASSWORD)
    assert told.credentials(second) == Credentials("wxyz", "p" * 22)
    assert told.options_of(first) == ("trickle", "ice2")
    assert told.options_of(second) == ("trickle", "ice2", "renomination")
    assert (told.is_ended(first), told.is_ended(second)) == (False, True)
    assert told.section("1") is second
    assert told.section("2") is None


def test_credentials_need_both() -> None:
    told = parse(body(f"a=ice-ufrag:{UFRAG}", "m=audio 9 RTP/AVP 0", f"a=ice-pwd:{PASSWORD}"))
    assert told.credentials() is None
    assert told.credentials(told.sections[0]) == Credentials(UFRAG, PASSWORD)


def test_names_have_no_case_and_remote_candidates_may_be_apart() -> None:
    """RFC 8840 9.2: "a receiver MUST treat them as case insensitive"; RFC 8839 5.2's example."""
    told = parse(
        body(
            "a=Ice-Lite",
            "m=audio 9 RTP/AVP 0",
            "a=CANDIDATE:1 1 UDP 2130706431 203.0.113.141 8998 TYP host",
            "a=remote-candidates:1 192.0.2.3 45664",
            "a=remote-candidates:2 192.0.2.3 45665",
        )
    )
    assert told.lite
    assert told.sections[0].candidates == (HOST,)
    assert told.sections[0].remote_candidates == ((1, "192.0.2.3", 45664), (2, "192.0.2.3", 45665))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a=ice-ufrag:abc", "username fragment"),
        (f"a=ice-ufrag:{'a' * 257}", "username fragment"),
        ("a=ice-ufrag:ab:cd", "username fragment"),
        (f"a=ice-pwd:{'a' * 21}", "password"),
        (f"a=ice-pwd:{'a' * 257}", "password"),
        ("a=ice-options:", "no list of words"),
        ("a=ice-options:a\tb\x00", "no list of words"),
        (f"a=ice-options:{'o ' * 65}", "more than 64 words"),
        ("a=ice-lite", "before the first media description"),
        ("a=ice-pacing:50", "before the first media description"),
        ("a=candidate:", "it ends before the component"),
        ("a=candidate:1 1 udp 1 200a0b:12f0::1 5000 typ host", "not an IPv6 address"),
        ("a=candidate:1 1 sctp 1 192.0.2.1 5000 typ host", "unknown transport 'sctp'"),
        ("a=remote-candidates:1 192.0.2.1", "component, address and port"),
        ("a=remote-candidates:1 nowhere! 1", "neither an address nor a name"),
        ("a=remote-candidates:0 192.0.2.1 1", "1 to 256"),
        ("a=remote-candidates:1 192.0.2.1 65536", "0 to 65535"),
        ("a=mid:", "identification tag"),
        ("a=rtcp:x", "port of RTCP"),
        ("a=rtcp:70000", "0 to 65535"),
        ("c=IN IP4", "no connection address"),
        ("c=IN IP4 192.0.2.300", "not an IPv4 address"),
        ("m=audio", "media, port, protocol and format"),
        ("m=audio 70000 RTP/AVP 0", "media, port, protocol and format"),
    ],
)
def test_a_wrong_line_is_left_out_and_told(line: str, what: str) -> None:
    told = parse(body("m=audio 9 RTP/AVP 0", f"a={HOST.to_sdp()}", line))
    assert told.sections[0] == Section(candidates=(HOST,))
    (problem,) = told.problems
    assert problem.line == 3
    assert problem.text == line[:80]
    assert what in problem.what


@pytest.mark.parametrize("name", ["candidate:1", "remote-candidates:1", "mid:a", "ice-mismatch"])
def test_what_belongs_into_a_media_description(name: str) -> None:
    assert problems(f"a={name}") == [(1, "belongs into a media description")]


@pytest.mark.parametrize(
    "line",
    ["a=ice-ufrag:abcd", f"a=ice-pwd:{'a' * 22}", "a=ice-options:ice2", "a=ice-pacing:1"],
)
def test_the_first_of_two_counts(line: str) -> None:
    assert problems(line, line) == [(2, "for the second time")]


def test_an_odd_media_line_still_begins_a_section() -> None:
    told = parse(body("m=audio 9 RTP/AVP 0", "a=mid:0", "m=odd", "a=mid:1", f"a={HOST.to_sdp()}"))
    assert [section.mid for section in told.sections] == ["0", "1"]
    assert told.sections[1].candidates == (HOST,)
    assert told.left_out == 1


def test_other_lines_are_not_ours() -> None:
    told = parse(body("v=0", "a=group:LS 1 2", "a=rtpmap:0 PCMU/8000", "x", "", "a=", "a", "é=1"))
    assert told == Description()
    assert told.left_out == 0


# What the peer cannot make us keep. ---------------------------------------------------------------


def test_length() -> None:
    assert parse("x" * sdp.MOST_CHARACTERS).left_out == 0
    with pytest.raises(SdpError, match="1048577 characters"):
        parse("x" * (sdp.MOST_CHARACTERS + 1))


def test_numbers_of_everything_are_bounded() -> None:
    candidate = f"a={HOST.to_sdp()}\n"
    told = parse("m=a 9 b 0\n" + candidate * (sdp.MOST_CANDIDATES + 200))
    assert len(told.sections[0].candidates) == sdp.MOST_CANDIDATES
    assert told.left_out == 200
    assert len(told.problems) == sdp.MOST_PROBLEMS
    told = parse(("m=a 9 b 0\n" + candidate) * (sdp.MOST_SECTIONS + 10))
    assert len(told.sections) == sdp.MOST_SECTIONS
    assert told.left_out == 10
    told = parse("m=a 9 b 0\n" + "a=remote-candidates:1 1.2.3.4 5\n" * (sdp.MOST_CANDIDATES + 5))
    assert len(told.sections[0].remote_candidates) == sdp.MOST_CANDIDATES
    told = parse("m=a 9 b 0\na=remote-candidates:" + " ".join(["1 1.2.3.4 5"] * 2000))
    assert told.sections[0].remote_candidates == ()


# Default destinations. ----------------------------------------------------------------------------


def described(*lines: str, media: str = "audio 45664 RTP/AVP 0") -> tuple[Description, Section]:
    told = parse(body(f"m={media}", *lines))
    assert told.left_out == 0
    return told, told.sections[0]


def test_default_destinations() -> None:
    told = parse(
        body(
            "c=IN IP4 192.0.2.3",
            "m=audio 45664/2 RTP/AVP 0",
            "m=audio 5 RTP/AVP 0",
            "c=IN IP6 2001:DB8::1",
            "a=rtcp:7",
            "m=audio 6 RTP/AVP 0",
            "c=IN IP4 224.2.1.1/127",
            "a=rtcp:8 IN IP4 192.0.2.9",
        )
    )
    assert [section.default for section in told.sections] == [
        Address("192.0.2.3", 45664),
        Address("2001:db8::1", 5),
        Address("224.2.1.1", 6),
    ]
    assert [section.rtcp for section in told.sections] == [
        None,
        Address("2001:db8::1", 7),
        Address("192.0.2.9", 8),
    ]


@pytest.mark.parametrize(
    ("connection", "mismatch"),
    [
        ("c=IN IP4 192.0.2.3", False),
        ("c=IN IP4 192.0.2.4", True),
        ("c=IN IP4 host.example.org", False),
        ("a=no-connection-line", False),
    ],
)
def test_mismatch(connection: str, mismatch: bool) -> None:
    told, section = described(connection, f"a={HOST.to_sdp()}", f"a={REFLEXIVE.to_sdp()}")
    assert told.is_mismatch(section) is mismatch


@pytest.mark.parametrize("connection", ["c=IN IP4 0.0.0.0", "c=IN IP6 ::"])
def test_an_open_default_is_no_mismatch(connection: str) -> None:
    told, section = described(connection, f"a={HOST.to_sdp()}", media="audio 9 RTP/AVP 0")
    assert not told.is_mismatch(section)
    told, section = described(connection, f"a={HOST.to_sdp()}", media="audio 10 RTP/AVP 0")
    assert told.is_mismatch(section)


def test_no_mismatch_while_candidates_may_come() -> None:
    lines = ("c=IN IP4 192.0.2.4", "a=ice-options:trickle", f"a={HOST.to_sdp()}")
    told, section = described(*lines)
    assert not told.is_mismatch(section)
    told, section = described(*lines, "a=end-of-candidates")
    assert told.is_mismatch(section)


def test_no_mismatch_of_a_stream_that_is_disabled_or_has_no_candidates() -> None:
    told, section = described("c=IN IP4 192.0.2.4", media="audio 0 RTP/AVP 0")
    assert not told.is_mismatch(section)
    told, section = described("c=IN IP4 192.0.2.4")
    assert not told.is_mismatch(section)


@pytest.mark.parametrize(
    ("rtcp", "mismatch"),
    [
        ("a=nothing", False),
        ("a=rtcp:8999", False),
        ("a=rtcp:9000", True),
        ("a=rtcp:8999 IN IP4 192.0.2.1", True),
    ],
)
def test_mismatch_of_rtcp(rtcp: str, mismatch: bool) -> None:
    told, section = described(
        "c=IN IP4 203.0.113.141",
        rtcp,
        f"a={HOST.to_sdp()}",
        f"a={RTCP.to_sdp()}",
        media="audio 8998 RTP/AVP 0",
    )
    assert told.is_mismatch(section) is mismatch


def test_the_candidate_for_those_without_ice() -> None:
    choose = sdp.default_candidate
    assert choose([]) is None
    assert choose([HOST, REFLEXIVE, RELAYED, PASSIVE]) == RELAYED
    assert choose([HOST, REFLEXIVE, PASSIVE]) == REFLEXIVE
    assert choose([PASSIVE, HOST]) == HOST
    assert choose([PASSIVE, ACTIVE]) == PASSIVE
    assert choose([ACTIVE]) is None
    assert choose([HOST, RTCP], component=2) == RTCP
    assert choose([Candidate.from_sdp("1 1 udp 1 x.local 1 typ host")]) is None


def test_repeated_candidates() -> None:
    """RFC 8840 4.4: the body of each INFO request repeats all that were sent before."""
    first = [HOST, REFLEXIVE]
    again = Candidate.from_sdp(HOST.to_sdp().replace("candidate:1", "candidate:other"))
    assert sdp.unseen(first, [again, REFLEXIVE, RTCP, PASSIVE, ACTIVE, RTCP]) == [
        RTCP,
        PASSIVE,
        ACTIVE,
    ]
    assert sdp.unseen([], first) == first
