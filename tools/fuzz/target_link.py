"""What must hold for a link's session whatever its peer sends and whatever becomes of its carriers.

A script is octets: each happening is one of them, with what it needs after it.  Shared by the
coverage-guided fuzzer (python -m tools.fuzz) and the short run of every test session
(tests/fuzz/test_fuzz_link.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from ice.link import frames
from ice.link.frames import State
from ice.link.happenings import (
    Aborted,
    Data,
    Datagram,
    Eof,
    Finished,
    Moved,
    Send,
    SessionEvent,
    Signal,
    Stranded,
)
from ice.link.session import Session
from stun.errors import UsageError
from stun.sansio import MILLISECOND, SECOND

WINDOW = 64 * 1024
MOST_SENT = 1 << 20
"""Octets that one happening may make a session send: a window's worth, and again for each move."""


class Script:
    """Octets, taken one after the other; zeros when they are used up."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._octets)

    def octets(self, count: int) -> bytes:
        """Return the next octets, fewer at the end."""
        self._at += count
        return self._octets[self._at - count : self._at]

    def number(self, width: int = 1) -> int:
        """Return the next octets as a number."""
        return int.from_bytes(self.octets(width).ljust(width, b"\0"), "big")


class Stage:
    """A session, and everything that it may be held to."""

    def __init__(self) -> None:
        self.now = SECOND
        self.congested: set[int] = set()
        self.session = Session(
            controlling=True, congested=self.congested.__contains__, window=WINDOW
        )
        self.attached: set[int] = set()
        self.written = 0
        self.taken = 0
        self.consumed = 0
        self.eof = False
        self.closed = False
        self.end: SessionEvent | None = None
        self.reached: set[str] = set()

    def drain(self) -> None:
        """Take what the session has, and see that it may have it."""
        sent = 0
        while (event := self.session.poll()) is not None:
            self.reached.add(type(event).__name__)
            assert self.end is None, "something after the end"
            match event:
                case Send(number, data):
                    assert number in self.attached
                    sent += len(data)
                    assert sent <= MOST_SENT, "no end of sending"
                case Data(data):
                    assert len(data) > 0
                    assert not self.eof
                    assert not self.closed
                    self.taken += len(data)
                    assert self.taken - self.consumed <= WINDOW
                case Eof():
                    assert not self.eof
                    self.eof = True
                case Signal(data):
                    assert len(data) <= frames.MOST_SIGNAL
                case Datagram(data):
                    assert len(data) <= frames.MOST_DATAGRAM
                case Moved(number, previous, _):
                    assert number in self.attached
                    assert number != previous
                case Stranded():
                    assert not self.attached
                case Finished():
                    assert self.eof or self.closed
                    self.end = event
                case Aborted(_, reason, _):
                    assert reason.isprintable()
                    assert len(reason) <= frames.MOST_REASON
                    self.end = event
                case _:
                    pass
        assert self.session.over is (self.end is not None)
        assert len(self.session.carriers()) == len(self.attached) or self.session.over
        due, real = self.session.deadline(), self.session._earliest()
        assert self.session.over or real is None or (due is not None and due <= real)

    def happen(self, script: Script) -> None:
        """Let one thing happen."""
        session, now = self.session, self.now
        what = script.number()
        number = what >> 4 & 3
        match what & 15:
            case 0:
                if number in self.attached:
                    return
                if not session.over:
                    self.attached.add(number)
                session.attach(number, script.number() & 3, now)
            case 1:
                self.attached.discard(number)
                session.detach(number, "lost", now)
            case 2:
                session.received(number, script.octets(script.number(2)), now)
            case 3:
                session.received(number, self._frame(script), now)
            case 4 | 5:
                self._pass(script.number(2) * MILLISECOND)
            case 6:
                size = script.number(2)
                if not session.over and not session.ended:
                    session.write(bytes(size), now)
                    self.written += size
            case 7:
                size = min(script.number(2), self.taken - self.consumed)
                session.consumed(size, now)
                self.consumed += size
            case 8:
                session.signal(script.octets(script.number()), now)
            case 9:
                session.send_datagram(script.octets(script.number()), now)
            case 10:
                session.write_eof(now)
            case 11:
                self.closed = True
                self.consumed = self.taken  # by the session itself
                session.close(now)
            case 12:
                self.congested.add(number)
            case 13:
                self.congested.discard(number)
                session.relieved(number, now)
            case 14 if script.number() == 0:
                session.abort(script.number(2), "as the script wants", now)
            case _:
                self._misuse()

    def _pass(self, time: int) -> None:
        end = self.now + time
        steps = 0
        while (due := self.session.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.session.on_deadline(self.now)
            self.drain()
            steps += 1
            assert steps < 100_000, "a deadline that is never met"
        self.now = end

    def _misuse(self) -> None:
        session = self.session
        try:
            session.consumed(self.taken - self.consumed + 1, self.now)
        except UsageError:
            self.reached.add("UsageError")
        else:
            assert self.closed

    def _frame(self, script: Script) -> bytes:
        """Return a frame that is well made; what it says may be anything."""
        near = [0, self.taken, self.written, self.written + 1, WINDOW, 1 << 62]

        def offset() -> int:
            which = script.number()
            return near[which] if which < len(near) else script.number(3)

        def state() -> State:
            return State(offset(), offset(), script.number())

        match script.number() % 9:
            case 0:
                return frames.hello(script.number() == 1, state())
            case 1:
                size = script.number(2) % 5000 + 1
                return frames.data_header(offset(), size) + bytes(size)
            case 2:
                return frames.fin(offset())
            case 3:
                views = {view.carrier_id: view.sent for view in self.session.carriers()}
                sent = views.get(script.number() & 3, 0)
                return frames.ack(state(), min(sent, script.number(3)))
            case 4:
                return frames.ping()
            case 5:
                return frames.signal(script.number(), script.octets(script.number()))
            case 6:
                return frames.datagram(script.octets(script.number()))
            case 7:
                return frames.close()
            case _:
                return frames.abort(script.number(2), script.octets(9).decode("latin-1"))


def check_session(octets: bytes) -> set[str]:
    """Play a script; return the names of what the session has told."""
    stage, script = Stage(), Script(octets)
    while script:
        stage.happen(script)
        stage.drain()
    return stage.reached


def check_reader(octets: bytes) -> None:
    """However octets are cut, the same is read, or the same is wrong."""
    whole, wrong = read(octets, len(octets) or 1)
    for step in (1, 7):
        assert read(octets, step) == (whole, wrong)


def read(octets: bytes, step: int) -> tuple[list[tuple[int, bytes]], str]:
    """Return what is read in steps, as kind or offset and octets, and the complaint at the end."""
    reader = frames.Reader()
    found: list[tuple[int, bytes]] = []
    for at in range(0, len(octets), step):
        try:
            items = reader.feed(octets[at : at + step])
        except frames.Violation as violation:
            # What was before it in the same step was not told: the session ends anyhow.
            return [], str(violation)
        for item in items:
            if isinstance(item, frames.Frame):
                found.append((-item.kind, item.body))
            elif item.first:
                found.append((item.offset, bytes(item.data)))
            else:
                begun, before = found.pop()
                assert item.offset == begun + len(before)
                found.append((begun, before + bytes(item.data)))
        assert reader.kept <= 4 + 4 + frames.MOST_SIGNAL
    return found, ""


HELLO = b"\x03\x00\x00\x00\x04\x00"
"""A well made HELLO on carrier 0: no offset, the window of WINDOW octets, no signals."""


def session_seeds() -> Iterator[bytes]:
    """Yield scripts of ordinary lives."""
    attach = b"\x00\x01"
    meet = attach + HELLO + b"\x03\x03\x00\x00\x04\x00\x00\x00\xff"
    second = b"\x10\x02" + b"\x13" + HELLO[1:] + b"\x13\x03\x00\x00\x04\x00\x01\x00\xff"
    data = b"\x03\x01\x00\x63\x01"
    ended = b"\x03\x03\x00\x03\x04\x00\x00\x00\xff"
    yield attach
    yield meet
    yield meet + b"\x06\x10\x00" + b"\x04\x08\x00" * 4
    yield meet + data + data + b"\x07\x00\x64" + b"\x04\x00\x10" + data
    yield meet + b"\x08\x05hello" + b"\x09\x05world" + b"\x03\x05\x00\x03abc\x03\x06\x03abc"
    yield meet + second + b"\x06\xff\xff\x06\xff\xff" + b"\x11\x04\x00\x10\x01\x00\x02" + attach
    yield meet + b"\x0c\x06\x20\x00\x04\x00\x10\x0d" + second + b"\x1c\x04\x04\x00"
    yield meet + b"\x0a\x03\x02\x01" + ended + b"\x03\x07"
    yield meet + b"\x06\x00\x05\x0a\x03\x02\x01" + ended + b"\x04\x20\x00"
    yield meet + b"\x06\xff\xff\x06\x00\x02\x03\x03\x00\xff\x00\xff\xff\x04\x00\x01\xff\xff"
    yield meet + b"\x0b" + data + b"\x0e\x00\x00\x11"
    yield meet + b"\x03\x08\x00\x11reasons!!" + b"\x0f"
    yield meet + data + b"\x0f"
    yield meet + b"\x02\x00\x08\x05\x00\x00\x00\x08\x00\x00\x00" + b"\x02\x00\x04\xff\x00\x00\x00"
    # Silence, a suspect, its spare, and the answer after all.
    yield (
        meet + second + b"\x06\x00\x09\x04\x08\x00" + b"\x13\x03\x01\x00\x04\x00\x00\x01\xff"
        b"\x04\x40\x00"
    )


def reader_seeds() -> Iterator[bytes]:
    """Yield every kind of frame, and all of them together."""
    state = State(5, 1 << 40, 2)
    kinds = (
        frames.hello(True, state),
        frames.data_header(0, 3) + b"abc",
        frames.fin(3),
        frames.ack(state, 9),
        frames.ping(),
        frames.signal(0, b"signal"),
        frames.datagram(b"datagram"),
        frames.close(),
        frames.abort(16, "enough"),
    )
    yield from kinds
    yield b"".join(kinds)


TARGETS = {
    "link": (check_session, session_seeds),
    "frames": (check_reader, reader_seeds),
}
