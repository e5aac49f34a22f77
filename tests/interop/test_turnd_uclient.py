"""coturn's own test clients against turnd: the whole program, as an operator starts it.

turnutils_uclient's exit status says little: it is 0 after half of the messages were lost.  So its
last line of totals is what counts.  Where it cannot succeed against any server, coturn's included,
the test says so.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.conftest import free_ports
from tests.interop.places import HERE, Machine, Place, placed
from tests.lab.turnd_world import Moved, moved, scrape

USER, PASSWORD, SECRET = "ann", "from-the-test", "north"
UCLIENT = "turnutils_uclient"

Run = Callable[..., str]


@dataclass
class Turnd:
    """A turnd that runs, and an echo server for it to relay to."""

    process: subprocess.Popen[str]
    log: Path
    port: int
    secure: int
    peer: int
    metrics: int
    place: Place

    def lines(self) -> str:
        return self.log.read_text()

    def moved(self) -> Moved:
        """Return what was forwarded so far, by whom."""
        return moved(scrape(self.place.server, self.metrics))


@contextlib.contextmanager
def started(log: Path, *arguments: str, on: Machine = HERE) -> Iterator[subprocess.Popen[str]]:
    """Run turnd until the block ends; it must end as it is told, with status 0."""
    with log.open("w") as out:
        process = on.popen(
            [sys.executable, "-m", "turn.daemon.cli", "--log-level", "debug", *arguments],
            stdout=out, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while "started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield process
            assert process.poll() is None, log.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def turnd(
    tmp_path_factory: pytest.TempPathFactory,
    certificate: Path,
    require_peer: Callable[..., str],
    plane: str,
) -> Iterator[Turnd]:
    """UDP, TCP, TLS and DTLS, IPv4 and IPv6, static and time-limited users."""
    port, secure, peer, metrics = free_ports(("127.0.0.1", "::1"), 4)
    log = tmp_path_factory.mktemp("turnd") / "log"
    with placed(plane) as place:
        v4, v6 = place.both(place.peer)
        echo = place.peer.popen(
            [require_peer("turnutils_peer", "coturn"), "-L", v4, "-L", v6, "-p", str(peer)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        hosts = place.server.ipv4, f"[{place.server.ipv6}]"
        allowed = {*place.both(place.peer), *place.both(place.client)}
        listeners = [
            *(f"{scheme}://{host}:{port}" for scheme in ("udp", "tcp") for host in hosts),
            *(f"{scheme}://{host}:{secure}" for scheme in ("dtls", "tls") for host in hosts),
        ]
        try:
            with started(
                log,
                *(argument for url in listeners for argument in ("--listen", url)),
                *(a for host in place.relayed_at for a in ("--relay-address", host)),
                *(a for host in allowed for a in ("--allow-peer", host)),
                *("--user", f"{USER}:{PASSWORD}", "--secret", SECRET),
                *("--cert", str(certificate), "--admin-socket", ""),
                *("--dataplane", plane, "--metrics", f"127.0.0.1:{metrics}"),
                on=place.server,
            ) as process:
                yield Turnd(process, log, port, secure, peer, metrics, place)
        finally:
            echo.terminate()
            echo.wait(10)


@pytest.fixture
def run(turnd: Turnd, require_peer: Callable[..., str]) -> Run:
    program = require_peer(UCLIENT, "coturn")

    def run(
        *options: str,
        host6: bool = False,
        peer6: bool = False,
        peer: str | None = None,
        credential: tuple[str, ...] = ("-u", USER, "-w", PASSWORD),
        seconds: float = 60,
    ) -> str:
        place = turnd.place
        port = turnd.secure if "-S" in options else turnd.port
        command = [program, *options, *credential, "-p", str(port), "-n", "5", "-l", "170"]
        if "-y" not in options:
            command += ["-e", peer or place.both(place.peer)[peer6], "-r", str(turnd.peer)]
        process = place.client.popen(
            [*command, place.both(place.server)[host6]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            output += b"\ntimed out"
        return str(output.decode(errors="replace"))

    return run


def totals(text: str) -> tuple[int, int]:
    """Return how many messages were sent, and how many came back."""
    found = re.findall(r"start_mclient: tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", text)
    assert found, text
    sent, received = found[-1]
    return int(sent), int(received)


def all_came_back(text: str, at_least: int = 5) -> None:
    sent, received = totals(text)
    assert sent == received >= at_least, text
    assert "Total lost packets 0 " in text, text


FAST = ("udp", "channels")
"""What the kernel can forward."""
TRANSPORTS = {"udp": (), "tcp": ("-t",), "dtls": ("-S",), "tls": ("-t", "-S")}


@pytest.mark.parametrize("relaying", ["channels", "send"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_echo_server_as_peer(
    turnd: Turnd, plane: str, run: Run, transport: str, relaying: str
) -> None:
    method = ("-s",) if relaying == "send" else ()
    before = turnd.moved().in_kernel
    all_came_back(run(*TRANSPORTS[transport], *method), 10)
    in_kernel = turnd.moved().in_kernel - before
    # The most of it: all that is sent when the channels are bound.
    assert in_kernel >= (10 if plane == "kernel" and (transport, relaying) == FAST else 0)


@pytest.mark.parametrize("relaying", ["channels", "send"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_clients_relay_to_each_other(run: Run, transport: str, relaying: str) -> None:
    method = ("-s",) if relaying == "send" else ()
    all_came_back(run(*TRANSPORTS[transport], *method, "-y"), 20)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_tcp_allocations(run: Run, transport: str) -> None:
    all_came_back(run("-T", *TRANSPORTS[transport], "-y"), 10)


@pytest.mark.parametrize("plane", ["sockets"], indirect=True)
def test_tcp_allocations_with_an_active_peer(run: Run) -> None:
    # The client reads one direction only: half of the messages is what it gets of coturn too.
    # With TLS it fails against coturn as well.  It wants 127.0.0.1 for its peer in any case, so
    # that all have to be on one machine; TCP is not the data plane's.
    assert totals(run("-P", "-t", "-y")) == (10, 5)


@pytest.mark.parametrize("host6", [False, True], ids=["127.0.0.1", "::1"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_ipv6_relayed_addresses(run: Run, transport: str, host6: bool) -> None:
    all_came_back(run(*TRANSPORTS[transport], "-x", host6=host6, peer6=True))


def test_ipv4_asked_for_over_ipv6(run: Run) -> None:
    all_came_back(run("-X", host6=True))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_both_families_in_one_allocation(run: Run, transport: str) -> None:
    all_came_back(run(*TRANSPORTS[transport], "-Z"))
    all_came_back(run(*TRANSPORTS[transport], "-Z", "-y"), 10)


@pytest.mark.parametrize("method", ["-M", "-Ms"], ids=["channels", "send"])
def test_mobility(run: Run, method: str) -> None:
    # Over TCP coturn refuses it as well: it shows a ticket that it has used already.  Over DTLS it
    # crashes when its second handshake is for DTLS 1.0, which turnd does not speak: it picks one.
    all_came_back(run(method, "-y"), 20)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "option",
    [
        pytest.param("-g", id="dont-fragment"),
        pytest.param("-G", id="more-requests"),
        pytest.param("-D", id="padded-channel-data"),
        pytest.param("-c", id="no-rtcp"),
        pytest.param("-N", id="negative"),
        pytest.param("-B", id="disconnects"),
    ],
)
def test_variants(run: Run, transport: str, option: str) -> None:
    sent, received = totals(run(*TRANSPORTS[transport], option, "-y"))
    assert sent == received >= 10


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_time_limited_credentials(run: Run, transport: str) -> None:
    text = run(*TRANSPORTS[transport], "-y", credential=("-u", USER, "-W", SECRET))
    all_came_back(text, 20)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "credential",
    [
        pytest.param(("-u", USER, "-w", "wrong"), id="password"),
        pytest.param(("-u", "nobody", "-w", PASSWORD), id="user"),
        pytest.param(("-u", USER, "-W", "south"), id="secret"),
    ],
)
def test_wrong_credentials(run: Run, transport: str, credential: tuple[str, ...]) -> None:
    text = run(*TRANSPORTS[transport], "-y", credential=credential, seconds=20)
    assert "Cannot complete Allocation" in text, text
    assert "tot_send_msgs" not in text


@pytest.mark.parametrize("option", ["-R", "-O"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_hostile_clients_harm_nobody(run: Run, transport: str, option: str) -> None:
    # These clients send nonsense until they are stopped; nothing good can come back.
    run(*TRANSPORTS[transport], option, "-y", seconds=5)
    all_came_back(run("-y", "-c"))


def test_a_peer_that_policy_denies(run: Run) -> None:
    text = run("-c", peer="10.1.2.3", seconds=20)
    assert re.search(r"error 403", text), text


def test_a_bandwidth_of_many_clients(run: Run) -> None:
    sent, received = totals(run("-y", "-m", "20", "-z", "5"))
    assert sent == received == 20 * 5


# STUN clients. ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def discovery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A turnd with a second address: all of 127.0.0.0/8 is local."""
    (port,) = free_ports(("127.0.0.1", "127.0.0.2"), 1)
    log = tmp_path_factory.mktemp("discovery") / "log"
    with started(
        log,
        *("--listen", f"udp://127.0.0.1:{port}", "--listen", f"tcp://127.0.0.1:{port}"),
        *("--alternate-address", "127.0.0.2", "--relay-address", "127.0.0.1"),
        *("--dataplane", "sockets"),
        *("--user", f"{USER}:{PASSWORD}", "--admin-socket", ""),
    ):
        yield port


def output_of(*command: str, seconds: float = 60) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("padding", [(), ("-P",)], ids=["plain", "padded"])
def test_natdiscovery(
    discovery: int, require_peer: Callable[..., str], padding: tuple[str, ...]
) -> None:
    client = require_peer("turnutils_natdiscovery", "coturn")
    text = output_of(client, "-m", "-f", *padding, "-p", str(discovery), "127.0.0.1")
    assert "Endpoint Independent Mapping" in text, text
    assert "Endpoint Independent Filtering" in text, text


def test_natdiscovery_hairpin(discovery: int, require_peer: Callable[..., str]) -> None:
    client = require_peer("turnutils_natdiscovery", "coturn")
    text = output_of(client, "-H", "-p", str(discovery), "-L", "127.0.0.1", "127.0.0.1")
    assert re.search(r"UDP reflexive addr: 127\.0\.0\.1:\d+", text), text


def test_stunclient_with_rfc_5780(discovery: int, require_peer: Callable[..., str]) -> None:
    client = require_peer("turnutils_stunclient", "coturn")
    text = output_of(client, "-f", "-p", str(discovery), "127.0.0.1")
    assert set(re.findall(r"Other addr: : (\S+):", text)) == {"127.0.0.2"}, text
    assert "127.0.0.2" in re.findall(r"Response origin: : (\S+):", text), text


def test_stunclient_with_one_address(turnd: Turnd, require_peer: Callable[..., str]) -> None:
    client = require_peer("turnutils_stunclient", "coturn")
    place = turnd.place
    process = place.client.popen(
        [client, "-p", str(turnd.port), place.server.ipv4],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    text, _ = process.communicate(timeout=60)
    assert re.search(r"UDP reflexive addr: [\d.]+:\d+", text), text
    assert "Other addr" not in text


def test_a_client_of_rfc_3489(discovery: int, require_peer: Callable[..., str]) -> None:
    client = require_peer("stun", "stun-client")
    text = output_of(client, f"127.0.0.1:{discovery}")
    assert re.search(r"Primary: Open", text), text
