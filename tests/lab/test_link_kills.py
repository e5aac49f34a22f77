"""Programs that are killed (SIGKILL), at every stage: who is left ends, or goes on, and says why.

What is asserted of time are the bounds that the documentation gives, no more.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nattype.lab.pytest_plugin import LabFactory
from tools.linklab import MIB
from tools.linknet import LinkLabError, Net, Program, Relay, Rendezvous, network

UNMET = 15.0
"""Seconds within which whoever has no way yet ends, when the peer or the rendezvous is gone."""
UNHEARD = 50.0
"""Seconds within which whoever had a way ends, when nothing is heard of the peer any more: silence
is noticed (up to 15 s where nothing is sent), and then the peer is waited for, 30 s."""
AGAIN = 30.0
"""Seconds within which a link goes on, once it can."""
LIFETIME = 120
"""Of allocations, in seconds, the least that turnd allows: what a program that was killed has left
there ends by then."""

PUNCHES = ("listen", "connect")
Fate = Callable[[int], None]


@pytest.fixture
def net(natlab: LabFactory) -> Iterator[Net]:
    """A network of two sites; ``natlab`` says whether this machine can have one."""
    with network("port-restricted-cone", "port-restricted-cone", hosts=10) as built:
        yield built


def all_at_once(*fates: Fate) -> None:
    """Let each happen to hosts of its own; they mostly wait.  Fails with all that failed."""
    failures: list[str] = []

    def suffer(number: int, fate: Fate) -> None:
        try:
            time.sleep(number * 0.3)  # a program that starts takes its time alone
            fate(number)
        except (AssertionError, LinkLabError, subprocess.CalledProcessError) as failure:
            failures.append(f"{getattr(fate, '__name__', fate)}: {failure}")

    with ThreadPoolExecutor(len(fates)) as pool:
        for each in [pool.submit(suffer, n, fate) for n, fate in enumerate(fates)]:
            each.result()
    assert not failures, "\n\n".join(failures)


def named(name: str, fate: Fate) -> Fate:
    fate.__name__ = name
    return fate


class Both:
    """Two sides: ``punch`` here and an end there, or the other way round."""

    def __init__(self, net: Net, url: str, number: int, *, punch: str, **config: Any) -> None:
        self.net = net
        self.url = url
        self.code = f"kill{number}-secretword"
        self.config = config
        self.hosts = (f"a{number}", f"b{number}")
        self.role = punch
        """Of punch; ``listen`` is on the first host."""
        self.punch: Program
        self.end: Program

    def start_punch(self) -> Program:
        options = [
            word
            for word, wanted in (("--relay-only", self.config.get("direct") is False),)
            if wanted
        ]
        listens = self.role == "listen"
        words = ["listen", "--code", self.code] if listens else ["connect", self.code]
        host = self.hosts[0 if listens else 1]
        self.punch = self.net.punch(host, *words, "--rendezvous", self.url, *options)
        return self.punch

    def start_end(self) -> Program:
        self.end = self.net.end(self.hosts[1 if self.role == "listen" else 0])
        self.end.do("state")
        self.before = self.end.expect(told="state")["fds"]
        self.end.do("connect", url=self.url, code=self.code, config=self.config)
        return self.end

    def start(self) -> None:
        self.start_punch()
        self.start_end()

    def until(self, stage: str) -> None:
        """Wait until both are so far."""
        punch, end = self.punch, self.end
        if stage == "met":
            # Sooner than any way is there, if possible; later is as good.
            end.expect(event="Met")
            return
        kind = "direct" if stage in ("direct", "busy") else "relay"
        end.expect(told="connected")
        end.expect(event="PathChanged", kind=kind)
        punch.expect(event="path", kind=kind)
        if stage == "busy":
            end.do("receive")
            threading.Thread(target=self._feed, daemon=True).start()
            end.until("octets", lambda: bool(end.all(told="progress")))

    def _feed(self) -> None:
        block = random.Random(self.code).randbytes(MIB)
        while self.punch.running:
            try:
                self.punch.write(block)
            except (OSError, ValueError):
                return
            time.sleep(0.3)


def punch_fails(punch: Program, within: float, *codes: str) -> str:
    """See that punch fails within so many seconds, and says why in a sentence; return that."""
    began = time.monotonic()
    assert punch.end(within) == 1, punch.story()
    assert punch.ended_at - began <= within
    error = punch.all(event="error")[-1]
    assert error["code"] in codes, error
    assert len(error["text"]) > 20, error
    assert not [line for line in punch.said if "Traceback" in line or "Error" in line], punch.said
    return str(error["text"])


def end_fails(end: Program, within: float, before: list[str]) -> str:
    """See that the end is told within so many seconds, and holds nothing afterwards."""
    end.until("it is told", lambda: bool(end.all(told="failed")), within)
    told = end.all(told="failed")[0]
    assert end.expect(event="Ended")["error"], end.story()
    deadline = time.monotonic() + 10
    while True:
        since = len(end.told)
        end.do("state")
        state = end.expect(told="state", since=since)
        if not state["tasks"] and state["fds"] == before:
            break
        assert time.monotonic() < deadline, (state["tasks"], state["fds"], before)
        time.sleep(0.2)
    assert not end.said, end.said
    return str(told["text"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_either_side_is_killed(net: Net) -> None:
    relay = Relay(net, lifetime=LIFETIME)
    before = relay.held()

    def fate(stage: str, victim: str, role: str) -> Fate:
        def happen(number: int) -> None:
            relayed = stage == "relay"
            both = Both(
                net, relay.url, number, punch=role, **({"direct": False} if relayed else {})
            )
            both.start()
            both.until(stage)
            bound = UNMET if stage == "met" else UNHEARD
            if victim == "end":
                both.end.kill()
                codes = ("peer-gone",) if stage == "met" else ("connection-lost",)
                # A way may have been found just before.
                punch_fails(both.punch, UNHEARD, *codes, "connection-lost")
            else:
                both.punch.kill()
                if stage not in ("met", "busy"):
                    both.end.do("receive")
                end_fails(both.end, max(bound, UNHEARD), both.before)

        return named(f"{stage}: the {victim} is killed, punch {role}s", happen)

    all_at_once(
        *(
            fate(stage, victim, PUNCHES[(n + m) % 2])
            for n, stage in enumerate(("met", "relay", "direct", "busy"))
            for m, victim in enumerate(("end", "punch"))
        )
    )
    deadline = time.monotonic() + LIFETIME + 15
    while relay.allocations() or relay.held() > before:
        assert time.monotonic() < deadline, (relay.allocations(), relay.held(), before)
        time.sleep(1)


@pytest.mark.timeout(120)
def test_whoever_waits_is_killed_or_waits_for_nothing(net: Net) -> None:
    relay = Relay(net)

    def the_code_can_be_used_again(number: int) -> None:
        both = Both(net, relay.url, number, punch="listen")
        both.start_punch().expect(event="waiting")
        both.punch.kill()
        both.start()
        both.until("relay")

    def the_rendezvous_ends(number: int) -> None:
        other = Relay(net, number)
        both = Both(net, other.url, number, punch="connect")
        both.start_punch().expect(event="waiting")
        other.kill()
        text = punch_fails(both.punch, UNMET, "lost")
        assert "start again" in text

    def there_is_no_rendezvous(number: int) -> None:
        other = Relay(net, number)
        other.kill()
        both = Both(net, other.url, number, punch="connect")
        both.start_punch()
        text = punch_fails(both.punch, UNMET, "unreachable")
        assert "rendezvousd" in text

    all_at_once(the_code_can_be_used_again, the_rendezvous_ends, there_is_no_rendezvous)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_servers_are_killed(net: Net) -> None:
    def while_they_meet(number: int) -> None:
        """Before there is a way: whoever has none in the end says that the rendezvous is gone."""
        relay = Relay(net, number)
        both = Both(net, relay.url, number, punch="listen", direct=False)
        both.start()
        both.until("met")
        relay.kill()
        punch_fails(both.punch, UNHEARD, "lost", "peer-gone", "connection-lost")
        end_fails(both.end, UNHEARD, both.before)

    def the_link_is_direct(number: int) -> None:
        """Nobody notices; and when they are back, the relay is a spare again."""
        relay = Relay(net, number)
        both = Both(net, relay.url, number, punch="connect")
        both.start()
        both.until("direct")
        both.end.until("tcp", lambda: bool(both.end.all(event="PathChanged", transport="tcp")))
        relay.kill()
        both.end.expect(AGAIN, event="PathLost", kind="relay")
        says(both)
        relay.start()
        deadline = time.monotonic() + 2 * AGAIN
        while relay.allocations() < 2:
            assert time.monotonic() < deadline, both.end.story()
            time.sleep(0.5)
        says(both)
        assert not both.end.all(event="Interrupted")
        # The spare is good for something: the direct way goes.
        since = len(both.end.told)
        net.only_server(both.hosts[1])
        both.end.expect(AGAIN, event="PathChanged", kind="relay", since=since)
        says(both)

    def the_link_is_relayed(number: int) -> None:
        """It is interrupted, and goes on when they are back, with another secret as it is."""
        relay = Relay(net, number)
        both = Both(net, relay.url, number, punch="listen", direct=False)
        both.start()
        both.until("relay")
        relay.kill()
        both.end.expect(AGAIN, event="Interrupted")
        both.punch.expect(AGAIN, event="interrupted")
        relay.start()
        says(both)

    def a_transfer_is_relayed(number: int) -> None:
        """What is under way, and what is written meanwhile, arrives once and in order."""
        relay = Relay(net, number)
        both = Both(net, relay.url, number, punch="connect", direct=False)
        both.start()
        both.until("relay")
        both.end.do("receive")
        data = random.Random(number).randbytes(16 * MIB)
        writing = threading.Thread(target=both.punch.write, args=(data,), daemon=True)
        writing.start()
        both.end.until(
            "some", lambda: any(e["octets"] > MIB for e in both.end.all(told="progress"))
        )
        relay.kill()
        both.end.expect(AGAIN, event="Interrupted")
        relay.start()
        writing.join(2 * AGAIN)
        assert not writing.is_alive(), both.end.story()
        both.punch.end_input()
        received = both.end.expect(2 * AGAIN, told="received")
        assert received["sha256"] == hashlib.sha256(data).hexdigest()
        both.end.do("close")
        assert both.punch.end() == 0, both.punch.story()

    def the_link_is_relayed_and_they_stay_away(number: int) -> None:
        relay = Relay(net, number)
        both = Both(net, relay.url, number, punch="connect", direct=False)
        both.start()
        both.until("relay")
        relay.kill()
        both.end.do("receive")
        punch_fails(both.punch, UNHEARD, "connection-lost")
        end_fails(both.end, UNHEARD, both.before)

    def the_rendezvous_alone(number: int) -> None:
        """After the meeting it is not needed."""
        relay = Relay(net, number, apart=True, secret="s3cret")
        rendezvous = Rendezvous(net, relay, "s3cret", number)
        both = Both(net, rendezvous.url, number, punch="listen", direct=False)
        both.start()
        both.until("relay")
        rendezvous.kill()
        says(both)

    def the_relay_alone(number: int) -> None:
        """It comes back, and the rendezvous is what the two go to meanwhile."""
        relay = Relay(net, number, apart=True, secret="s3cret")
        rendezvous = Rendezvous(net, relay, "s3cret", number)
        both = Both(net, rendezvous.url, number, punch="connect", direct=False)
        both.start()
        both.until("relay")
        relay.kill()
        both.end.expect(AGAIN, event="Interrupted")
        relay.start()
        says(both)

    all_at_once(
        while_they_meet,
        the_link_is_direct,
        the_link_is_relayed,
        a_transfer_is_relayed,
        the_link_is_relayed_and_they_stay_away,
        the_rendezvous_alone,
        the_relay_alone,
    )


def says(both: Both) -> None:
    """See that what is written comes out at the other side."""
    word = f"word {len(both.punch.told)} {len(both.end.told)} {time.monotonic()}"
    since = len(both.end.told)
    both.end.do("hear")
    both.punch.write(word.encode() + b"\n")
    assert both.end.expect(AGAIN, told="heard", since=since)["text"] == word


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_host_gets_another_address(net: Net) -> None:
    """As when it goes to another Wi-Fi: what was sent meanwhile arrives, and no way is given up."""
    relay = Relay(net)
    both = Both(net, relay.url, 0, punch="connect")
    both.start()
    both.until("direct")
    both.end.do("receive")
    moved = net.lab["b0"].ipv4.rpartition(".")[0] + ".99"
    for n in range(20):
        both.punch.write(f"{n}\n".encode())
        if n == 10:
            net.move("b0", moved)
        time.sleep(0.05)
    since = len(both.punch.told)
    both.punch.until(
        "a direct way",
        lambda: bool([e for e in both.punch.told[since:] if e.get("kind") == "direct"]),
        AGAIN,
    )
    both.punch.end_input()
    wanted = "".join(f"{n}\n" for n in range(20)).encode()
    received = both.end.expect(told="received")
    assert received["sha256"] == hashlib.sha256(wanted).hexdigest()
    both.end.do("close")
    assert both.punch.end() == 0
    both.end.expect(told="closed")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_file_goes_on_after_either_side_was_killed(net: Net) -> None:
    relay = Relay(net)

    def fate(victim: str) -> Fate:
        def happen(number: int) -> None:
            home, there = net.fresh(), net.fresh()
            file = home / "holiday.tar"
            with file.open("wb") as out:
                block = random.Random(victim).randbytes(MIB)
                for n in range(48):
                    out.write(n.to_bytes(8) + block[8:])
            part = there / "holiday.tar.punch-part"

            def begin(code: str) -> tuple[Program, Program]:
                options = ["--rendezvous", relay.url, "--relay-only"]
                send = net.punch(f"a{number}", "send", str(file), "--code", code, *options)
                recv = net.punch(f"b{number}", "recv", code, "-d", str(there), *options)
                return send, recv

            send, recv = begin(f"one{number}-secretword")
            recv.until("a part", lambda: bool(recv.all(event="progress")))
            deadline = time.monotonic() + 60
            while not part.exists() or part.stat().st_size < 4 * MIB:
                assert time.monotonic() < deadline, recv.story()
                time.sleep(0.05)
            killed, left = (send, recv) if victim == "send" else (recv, send)
            killed.kill()
            had = part.stat().st_size
            assert 0 < had < 48 * MIB
            assert sorted(path.name for path in there.iterdir()) == [part.name]
            left.process.terminate()  # as a person does who sees that nothing moves
            assert left.end() == 143
            had = part.stat().st_size
            send, recv = begin(f"two{number}-secretword")
            assert send.end(90) == 0, send.story()
            assert recv.end(90) == 0, recv.story()
            began = recv.all(event="file", state="resumed") or recv.all(event="file")
            assert began[0]["offset"] == had, (began, had)
            assert [path.name for path in there.iterdir()] == [file.name]
            whole = (there / file.name).read_bytes()
            assert hashlib.sha256(whole).digest() == hashlib.sha256(file.read_bytes()).digest()

        return named(f"{victim} is killed", happen)

    all_at_once(fate("send"), fate("recv"))
