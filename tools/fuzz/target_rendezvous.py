"""What must hold whatever a client, a rendezvous, a peer or a person types at the rendezvous.

Shared by the coverage-guided fuzzer (python -m tools.fuzz) and the short run of every test
session (tests/fuzz/test_fuzz_rendezvous.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from ice.rendezvous.channel import LONGEST, Channel, sealed_length
from ice.rendezvous.codes import LONGEST_SECRET, MADE_WORDS, Code, parse
from ice.rendezvous.errors import (
    BadPeer,
    OtherVersion,
    RendezvousError,
    Tampered,
    WrongCode,
)
from ice.rendezvous.meeting import decoded, encoded
from ice.rendezvous.pairing import HELLO_LENGTH, Keys, Pairing
from ice.rendezvous.protocol import (
    MAX_DATA,
    MAX_HELLO,
    MAX_WORDS,
    BadMessage,
    Error,
    Gone,
    Join,
    Joined,
    Leave,
    Message,
    Peer,
    Time,
    TimeAnswer,
    TurnAccess,
    Unknown,
    Welcome,
    from_client,
    from_server,
    is_name,
    is_one_time,
)
from ice.rendezvous.words import WORDS
from stun.errors import UsageError
from stun.sansio import Address

MOST_TOLD = 2 * MAX_WORDS
"""Characters of a complaint, whatever it is about."""


def _is_told_well(error: Exception) -> None:
    text = str(error)
    assert text
    assert text.isprintable()
    assert len(text) <= MOST_TOLD


# The protocol -------------------------------------------------------------------------------------


def check_rendezvous(data: bytes) -> None:
    """What is read comes back as it was read, within its bounds; all else is refused in words."""
    for text in (data, data.decode("utf-8", "surrogateescape")):
        for read in (from_client, from_server):
            refused: BadMessage | None = None
            try:
                message = read(text)
            except BadMessage as wrong:
                refused = wrong
            if refused is not None:
                _is_told_well(refused)
                assert refused.code.value
                continue
            if isinstance(message, Unknown):
                assert message.kind.isprintable()
                continue
            assert read(message.encode()) == message
            match message:
                case Message(octets):
                    assert len(octets) <= MAX_DATA
                case Join(name, hello):
                    assert name is None or is_name(name)
                    assert len(hello) <= MAX_HELLO
                case Peer(hello):
                    assert len(hello) <= MAX_HELLO
                case Joined(name, seconds):
                    assert is_name(name)
                    assert 0 <= seconds < float("inf")
                case Error(_, words) | Gone(words):
                    assert words.isprintable()
                    assert len(words) <= MAX_WORDS
                case Welcome():
                    assert 0 <= message.observed.port <= 0xFFFF
                    assert message.observed.host.isprintable()


def rendezvous_seeds() -> Iterator[bytes]:
    """Yield every message, and some that are none."""
    turn = TurnAccess(("turn:192.0.2.1:3478?transport=tcp",), "1700000000:u", "c2VjcmV0", 86400)
    for message in (
        Join(None, b"\1S" + bytes(32)),
        Join("alice.laptop", b""),
        Leave(),
        Time(1.5),
        Message(b""),
        Message(bytes(528)),
        Welcome(Address("192.0.2.7", 4711), 1.7e9, "natkit/0.1", turn, ("stun:192.0.2.1",)),
        Welcome(Address("2001:db8::7", 0), 0.0),
        Joined("7", 3600.0),
        Peer(b"\1S" + bytes(32)),
        Gone("left"),
        TimeAnswer(1.5, 1.7e9),
        Error("busy", "two are connected under this name already"),
    ):
        yield message.encode().encode()
    yield b"[" * 2000
    yield b'{"type":"time","sent":1e999}'
    yield b'{"type":"time","sent":NaN}'
    yield b'{"type":"weather","is":"fine"}'
    yield b'{"type":"join","v":' + b"9" * 5000 + b"}"


# The channel --------------------------------------------------------------------------------------


def _keys() -> tuple[Keys, Keys]:
    draw = random.Random(9).randbytes
    there, back, other = draw(32), draw(32), draw(32)
    resume = Code("r.", "")
    return (
        Keys(first=True, seal=there, open=back, resume=resume, _exporter=other),
        Keys(first=False, seal=back, open=there, resume=resume, _exporter=other),
    )


def check_channel(data: bytes) -> None:
    """Whatever is done to the sealed messages, what is opened is what was sealed, from the first.

    The octets are steps: what to do, a length, octets.  What is opened once and fails ends it.
    """
    one, other = (Channel(keys) for keys in _keys())
    said: list[bytes] = []
    sent: list[bytes] = []
    back: list[bytes] = []
    heard: list[bytes] = []
    failed: type[RendezvousError] | None = None
    error: RendezvousError | None
    place = 0
    while len(data) >= 2:
        what, length, data = data[0], data[1], data[2:]
        octets, data = data[:length], data[length:]
        match what >> 5:
            case 0 | 1:
                message = octets * (1 + (what & 31) * 8)
                sealed = one.seal(message)
                assert len(sealed) == sealed_length(len(message)) <= MAX_DATA
                said.append(message)
                sent.append(sealed)
                continue
            case 2:
                back.append(other.seal(octets))
                continue
            case 3:
                given = octets
            case 4 if back:
                given = back[length % len(back)]
            case 5 if sent:
                given = sent[length % len(sent)]
            case 6 if place < len(sent):
                changed = bytearray(sent[place])
                changed[length * 3 % len(changed)] ^= 1 << (what & 7)
                given = bytes(changed)
            case _:
                if place >= len(sent):
                    continue
                given = sent[place]
        try:
            opened = other.open(given)
        except (WrongCode, Tampered) as wrong:
            error = wrong
        else:
            error = None
        if error is not None:
            failed = Tampered if heard else WrongCode
            assert type(error) is failed
            _is_told_well(error)
            continue
        assert failed is None
        assert given == sent[place]
        heard.append(opened)
        place += 1
        assert heard == said[:place]
        check_message(opened)


def check_message(octets: bytes) -> None:
    """A peer that has the code may send anything: an object, which comes back, or an error."""
    try:
        message = decoded(octets)
    except BadPeer as error:
        _is_told_well(error)
        return
    assert decoded(encoded(message)) == message
    assert len(octets) <= LONGEST


def channel_seeds() -> Iterator[bytes]:
    """Yield conversations: honest, and with each kind of interference."""
    hello, more = b'\x00\x09{"n":1.5}', b'\x05\x0a{"x":[{}]}'
    opened = b"\xe0\x00"
    yield hello + opened + more + opened
    yield hello + hello + opened + opened + opened
    yield hello + more + opened + b"\xa0\x00" + opened
    yield hello + more + b"\xa0\x01" + opened
    yield hello + b"\xc3\x07" + opened
    yield hello + opened + hello + b"\xc0\x90" + opened
    yield b"\x40\x03abc" + hello + b"\x80\x00" + opened
    yield hello + b"\x60\x10" + bytes(16) + opened
    yield b"\x1f\xff" + b"[" * 255 + opened
    yield b'\x00\x0e{"x":"\\ud800"}' + opened
    yield b'\x00\x09{"x":NaN}' + opened
    yield b'\x00\x0b{"x":1e999}' + opened
    yield b"\x00\x00" + opened


# Hellos -------------------------------------------------------------------------------------------


def check_hello(data: bytes) -> None:
    """A hello gives keys of full length, or is refused; no two ways lead to the same keys."""
    draw = random.Random(3).randbytes
    pairing = Pairing("acorn-violin-harbor", draw)
    for hello in (data, pairing.hello[:2] + data[:32].ljust(32, b"\0")):
        pairing = Pairing("acorn-violin-harbor", draw)
        try:
            keys = pairing.finish(hello, "7")
        except (Tampered, OtherVersion) as error:
            _is_told_well(error)
            continue
        assert len(hello) == HELLO_LENGTH
        assert hello != pairing.hello
        assert len(keys.seal) == len(keys.open) == 32
        assert keys.seal != keys.open
        assert keys.first is (pairing.hello < hello)


def hello_seeds() -> Iterator[bytes]:
    """Yield hellos, and points that must not be taken for any."""
    for number in range(4):
        yield Pairing("harbor", random.Random(number).randbytes).hello
    for y in (0, 1, 2, (1 << 255) - 20, (1 << 255) - 18, 1 | 1 << 255, (1 << 256) - 1):
        yield y.to_bytes(32, "little")
    yield b""
    yield b"\x02"


# Codes --------------------------------------------------------------------------------------------


def check_code(data: bytes) -> None:
    """Whatever is typed is a code, which reads the same when it is typed again, or refused."""
    try:
        code = parse(data.decode("utf-8", "surrogateescape"))
    except UsageError as error:
        _is_told_well(error)
        return
    assert parse(str(code)) == code
    assert is_name(code.name)
    assert code.secret not in repr(code) or code.secret in code.name or code.secret in "Code(name="
    assert str(code).isprintable()
    assert " " not in str(code)
    if is_one_time(code.name):
        words = code.secret.split("-")
        assert set(words) <= set(WORDS)
        assert len(words) >= MADE_WORDS
    else:
        assert len(code.secret) <= LONGEST_SECRET


def code_seeds() -> Iterator[bytes]:
    """Yield codes as people type them."""
    for text in (
        "7-acorn-violin-harbor",
        " 7 ACORN violin\tharbor\n",
        "7\u2013acorn\u2014violin\u2011harbor",
        "\uff17-acorn-violin-harbor",
        "alice.laptop-correct horse battery",
        "a_b-stra\u00dfe-\u0130stanbul",
        "7-acorn-violin-habror",
        "acorn-violin-harbor",
        "alice-12345",
        "alice-\x1b[2Jsecret",
        "-",
        "",
        "x" * 70 + "-secret",
    ):
        yield text.encode()


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "rendezvous": (check_rendezvous, rendezvous_seeds),
    "channel": (check_channel, channel_seeds),
    "hello": (check_hello, hello_seeds),
    "code": (check_code, code_seeds),
}
