"""What must hold whatever octets reach the client, the server's authentication and the splitters.

Shared by the coverage-guided fuzzer (python -m tools.fuzz) and the short run of every test
session (tests/fuzz/test_fuzz_client.py).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from stun.auth_server import AnyOf, Authenticator, Rejected, RestUsers, StaticUsers
from stun.client import Client, Config, Failed, Indication, Reply, mapped_address
from stun.codec import decode, encode
from stun.credentials import LongTerm, ShortTerm, long_term_key, rest_expiry
from stun.demux import classify, classify_stream, is_stun
from stun.errors import DecodeError, Dropped
from stun.framing import Rfc4571Stream, StunStream
from stun.message import Message
from stun.nonce import NonceMaker, NonceState, parse_cookie
from stun.registry import PasswordAlgorithm
from stun.sansio import (
    SECOND,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Received,
    Transmit,
    Undeliverable,
    Write,
)
from stun.uri import UriError, parse, parse_server

VECTORS = Path(__file__).resolve().parents[2] / "rfc-vectors"

SERVER, LOCAL = Address("192.0.2.1", 3478), Address("192.0.2.2", 40000)
REALM, PASSWORD = "example.org", "pass"
CREDENTIALS = (
    None,
    LongTerm("user", PASSWORD),
    ShortTerm("user", PASSWORD),
    LongTerm("\u2168", "x"),
)
KEYS = (
    PASSWORD.encode(),
    long_term_key("user", REALM, PASSWORD),
    long_term_key("user", REALM, PASSWORD, PasswordAlgorithm.SHA256),
)


def _cases(name: str) -> list[dict[str, str]]:
    cases: list[dict[str, str]] = json.loads((VECTORS / name).read_text())["cases"]
    return cases


def messages() -> Iterator[bytes]:
    """Yield every message of the vectors."""
    for name in ("stun/rfc5769.json", "stun/rfc8489-b1.json", "hostile/stun-messages.json"):
        for case in _cases(name):
            yield bytes.fromhex(case["hex"])


# The splitters ------------------------------------------------------------------------------------


def _split(stream: StunStream | Rfc4571Stream, pieces: Iterator[bytes]) -> object:
    found = list(itertools.chain.from_iterable(map(stream.feed, pieces)))
    return found, str(stream.error), stream.pending


def check_framing(data: bytes) -> None:
    """Wherever a stream is cut, the same messages come out, and the same error."""
    classify(data)
    classify_stream(data)
    is_stun(data)
    makers: tuple[Callable[[], StunStream | Rfc4571Stream], ...] = (
        StunStream,
        lambda: StunStream(channel_data=True),
        lambda: StunStream(channel_data=True, limit=64),
        Rfc4571Stream,
        lambda: Rfc4571Stream(limit=64),
    )
    for make in makers:
        whole = make()
        messages_found, error, pending = found = _split(whole, iter((data,)))  # type: ignore[misc]
        single = _split(make(), (data[n : n + 1] for n in range(len(data))))
        step = 1 + (data[0] if data else 0) % 7
        some = _split(make(), (data[n : n + step] for n in range(0, len(data), step)))
        assert found == single == some
        assert sum(map(len, messages_found)) + pending <= len(data)
        assert (error == "None") == (whole.error is None)
        if whole.error is not None:
            assert 0 <= whole.error.offset <= len(data)
            assert pending == 0


def framing_seeds() -> Iterator[bytes]:
    """Yield streams of vectors."""
    for case in _cases("stun/framing.json"):
        yield bytes.fromhex(case["stream"])
    for message in messages():
        yield message + message
        yield len(message).to_bytes(2) + message


# URIs ---------------------------------------------------------------------------------------------


def check_uri(data: bytes) -> None:
    """A URI comes back as it was understood, and anything else is refused with its place."""
    text = data.decode("utf-8", "surrogateescape")
    for reader in (parse, parse_server):
        refused: UriError | None = None
        try:
            uri = reader(text)
        except UriError as error:
            refused = error
        if refused is not None:
            assert 0 <= refused.position <= len(refused.text)
            continue
        assert parse(str(uri)) == uri
        assert uri.host
        assert uri.port is None or 1 <= uri.port <= 0xFFFF
        assert str(uri).isascii()


def uri_seeds() -> Iterator[bytes]:
    """Yield URIs, good and bad."""
    for case in _cases("stun/uris.json"):
        yield case["uri"].encode()
    yield from (b"stun:[fe80::1%25eth0]:1", b"[::1]:5", b"a:5", "bücher.example:1".encode())
    yield from (b"stun:b%C3%BCcher", b"turn:h?transport=x", b"stun:1.2.3.4.", b"stuns:[::1]")


# Nonces and the server's side ---------------------------------------------------------------------

MAKER = NonceMaker([b"a secret of sixteen octets"])
NONCE = MAKER.make(LOCAL, 0)
AUTHENTICATORS = tuple(
    Authenticator(
        REALM,
        AnyOf(StaticUsers({"user": PASSWORD}, REALM), RestUsers(["secret"])),
        MAKER,
        algorithms=algorithms,
        anonymous=anonymous,
    )
    for algorithms in ((), (PasswordAlgorithm.SHA256, PasswordAlgorithm.MD5))
    for anonymous in (False, True)
)


def check_nonce(data: bytes) -> None:
    """No nonce is valid but the one that was made, and no request gets more than an error."""
    parse_cookie(data)
    rest_expiry(data.decode("utf-8", "replace"))
    state = MAKER.check(data, LOCAL, 0)
    assert (state is NonceState.VALID) == (data == NONCE)
    try:
        request = decode(data)
    except DecodeError:
        return
    for authenticator in AUTHENTICATORS:
        outcome = authenticator.validate(request, LOCAL, 0)
        assert isinstance(outcome, Rejected)
        response = decode(encode(outcome.response(request)))
        assert response.transaction_id == request.transaction_id


def nonce_seeds() -> Iterator[bytes]:
    """Yield nonces, and requests that carry some."""
    yield NONCE
    for case in _cases("stun/nonce-cookie.json"):
        yield case["cookie"].encode() + b"/rest"
    yield from messages()


# The client ---------------------------------------------------------------------------------------


def check_client(data: bytes) -> None:
    """Each request ends in exactly one event, timers follow the requests, and nothing escapes.

    The first octet chooses the set-up; then come steps: what to do, a length, octets.  Octets may
    be given the transaction id that is waited for, and a proof with the right key, so that a fuzzer
    need not guess either.
    """
    if not data:
        return
    setup, steps = data[0], data[1:]
    numbers = itertools.count(1)
    client = Client(
        Config(fingerprint=bool(setup & 4)), entropy=lambda size: next(numbers).to_bytes(size)
    )
    credentials = CREDENTIALS[setup & 3]
    client.on_socket(Connected(1, LOCAL, SERVER), 0)
    accept = frozenset({SERVER}) if setup & 8 else None
    waiting = {
        client.request(
            destination=SERVER, source=LOCAL, now=0, credentials=credentials, accept_from=accept
        ),
        client.request_over(1, now=0, credentials=credentials),
    }
    now = 0
    last: dict[type, bytes] = {}

    def drain() -> None:
        for output in iter(client.poll, None):
            if isinstance(output, Transmit | Write):
                last[type(output)] = output.data
            elif isinstance(output, Reply | Failed):
                waiting.remove(output.transaction_id)
                if isinstance(output, Reply):
                    mapped_address(output.message)
                    assert output.authenticated or not isinstance(credentials, ShortTerm)
                else:
                    assert str(output.error)
            else:
                assert isinstance(output, Indication | Dropped)
        assert client.open_requests == len(waiting)
        assert (client.deadline() is None) == (not waiting)

    drain()
    while len(steps) >= 2:
        what, length, steps = steps[0], steps[1], steps[2:]
        octets, steps = steps[:length], steps[length:]
        over = Write if what & 1 else Transmit
        if what & 2 and len(octets) >= 20:
            octets = octets[:4] + last[over][4:20] + octets[20:]
        if what & 4:
            octets = _prove(octets, KEYS[(what >> 4) % 3], sha256=bool(what & 8))
        match what >> 6:
            case 0 | 1 if over is Transmit:
                client.receive(Received(octets, SERVER, LOCAL), now)
            case 0 | 1:
                client.on_socket(Arrived(1, octets), now)
            case 2:
                now += length * SECOND // 8
                client.on_deadline(now)
            case 3 if over is Transmit:
                client.on_socket(Undeliverable(LOCAL, SERVER, length & 3, what & 7), now)
            case 3:
                client.on_socket(Closed(1, Cause.RESET), now)
        drain()
    for _ in range(100):
        due = client.deadline()
        if due is None:
            break
        client.on_deadline(due)
        drain()
    assert not waiting


def _prove(octets: bytes, key: bytes, *, sha256: bool) -> bytes:
    try:
        message = decode(octets)
    except DecodeError:
        return octets
    plain = Message(
        message.method,
        message.message_class,
        message.transaction_id,
        [entry for entry in message.attributes if entry[0] not in (0x0008, 0x001C, 0x8028)],
        message.cookie,
    )
    return encode(plain, sha256_key=key) if sha256 else encode(plain, key=key)


def client_seeds() -> Iterator[bytes]:
    """Yield set-ups with what servers answer."""
    errors = b"\x00\x09\x00\x04\x00\x00"
    challenge = (
        b"\x00\x14\x00\x0bexample.org\x00\x00\x15\x00\x10obMatJos2AAABabc"
        b"\x80\x02\x00\x08\x00\x02\x00\x00\x00\x01\x00\x00"
    )
    mapped = b"\x00\x20\x00\x08\x00\x01\x11\x22\x33\x44\x55\x66"
    bodies = [
        (b"\x01\x01", mapped),
        (b"\x01\x11", errors + b"\x04\x01" + challenge),
        (b"\x01\x11", errors + b"\x04\x26" + challenge),
        (b"\x01\x11", errors + b"\x03\x00\x80\x23\x00\x08\x00\x01\x11\x22\x33\x44\x55\x66"),
        (b"\x01\x11", errors + b"\x04\x14\x00\x0a\x00\x04\x00\x03\x7f\xff"),
        (b"\x00\x11", b""),
    ]
    made = [
        kind + len(body).to_bytes(2) + b"\x21\x12\xa4\x42" + bytes(12) + body
        for kind, body in bodies
    ]
    for setup in range(16):
        for first, second in itertools.product(made, made):
            for what in (2, 3, 2 | 4 | 8 | 32, 3 | 4 | 16):
                yield (
                    bytes((setup, what & 3, len(first))) + first
                    + bytes((what, len(second))) + second
                )  # fmt: skip
    for message in messages():
        yield bytes((1, 2, len(message) & 0xFF)) + message[:255]


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "framing": (check_framing, framing_seeds),
    "uri": (check_uri, uri_seeds),
    "nonce": (check_nonce, nonce_seeds),
    "client": (check_client, client_seeds),
}
"""What is checked, and what to start from, by name."""
