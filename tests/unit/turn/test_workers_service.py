"""turnd with two workers, as a program on loopback: what clients and the operator see of it."""

from __future__ import annotations

import os
import random
import signal
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stun import attributes as a
from stun.discovery import Transport
from stun.registry import Method
from stun.sansio import Address
from tools.certificate import write_self_signed
from tools.turndesk import TCP, code
from tools.turnlive import LiveCaller, LiveTurnd, free_port


class Stage:
    """A turnd with two workers, and clients of it."""

    def __init__(self, turnd: LiveTurnd, rng: random.Random) -> None:
        self.turnd = turnd
        self.rng = rng
        self.callers: list[LiveCaller] = []

    def caller(self, **options: Any) -> LiveCaller:
        made = LiveCaller(options.pop("server", self.turnd.server), self.rng, **options)
        self.callers.append(made)
        return made

    def worker_of(self, caller: LiveCaller) -> int:
        """Return which worker has the allocation of a client."""
        client = str(caller.address)
        (number,) = [s["worker"] for s in self.turnd.ask("sessions") if s["client"] == client]
        assert isinstance(number, int)
        return number

    def caller_of(self, worker: int, **options: Any) -> LiveCaller:
        """Return a client whose five-tuple is a certain worker's, without an allocation."""
        for _ in range(64):
            made = self.caller(**options)
            made.allocate()
            if self.worker_of(made) == worker:
                made.refresh(0)
                return made
            made.refresh(0)
            made.close()
        raise AssertionError("the kernel picks one worker only")

    def stream_of(self, worker: int, **options: Any) -> LiveCaller:
        """Return a client with a connection that a certain worker accepted, without allocation."""
        return self.caller_of(worker, transport=options.pop("transport", Transport.TCP), **options)

    def close(self) -> None:
        for caller in self.callers:
            caller.close()


@pytest.fixture
def staged(rng: random.Random) -> Iterator[Callable[..., Stage]]:
    open_: list[tuple[LiveTurnd, Stage]] = []

    def make(**tables: Any) -> Stage:
        turnd = LiveTurnd(
            {"workers": 2} | {key.replace("__", "."): value for key, value in tables.items()}
        )
        turnd.__enter__()
        stage = Stage(turnd, rng)
        open_.append((turnd, stage))
        return stage

    yield make
    for turnd, stage in open_:
        stage.close()
        turnd.__exit__(None, None, None)


def relays_to(one: LiveCaller, other: LiveCaller, relayed: Address, back: Address) -> bool:
    """Whether what one client sends on a channel comes to the other on its own."""
    assert code(one.bind(0x4000, back)) == 0
    assert code(other.bind(0x4001, relayed)) == 0
    one.push(0x4000, b"there")
    there = other.wait_for_data()
    other.push(0x4001, b"and back")
    return (there, one.wait_for_data()) == ((0x4001, b"there"), (0x4000, b"and back"))


def relayed_of(response: Any) -> Address:
    address = response.get(a.XOR_RELAYED_ADDRESS)
    assert isinstance(address, Address)
    return address


# Clients. -----------------------------------------------------------------------------------------


def test_clients_are_spread_and_reach_each_other(staged: Callable[..., Stage]) -> None:
    stage = staged()
    one, other = stage.caller_of(1), stage.caller_of(2)
    first, second = one.relayed(), other.relayed()
    assert {stage.worker_of(one), stage.worker_of(other)} == {1, 2}
    assert relays_to(one, other, first, second)
    stream, more = stage.stream_of(1), stage.stream_of(2)
    assert relays_to(stream, more, stream.relayed(), more.relayed())


def test_the_servers_own_host_is_closed_but_for_open_relayed_addresses(
    staged: Callable[..., Stage],
) -> None:
    stage = staged(peers__allow=[], peers__deny=[])
    one, other = stage.caller_of(1), stage.caller_of(2)
    first, second = one.relayed(), other.relayed()
    assert relays_to(one, other, first, second)
    with socket.socket(type=socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        assert code(one.bind(0x4003, Address(*service.getsockname()))) == 403
    assert code(other.refresh(0)) == 0
    # Its port may be some program's now: nothing is sent there, by channel or otherwise.
    with socket.socket(type=socket.SOCK_DGRAM) as program:
        program.bind(second)
        # As soon as the other worker has heard of it, which is a matter of milliseconds.
        time.sleep(0.1)
        program.settimeout(0.2)
        for _ in range(3):
            one.push(0x4000, b"for the client that was here")
            with pytest.raises(TimeoutError):
                program.recv(100)
    assert code(one.bind(0x4004, Address("127.0.0.1", second.port - 1))) == 403


def test_a_reservation_is_redeemed_from_another_workers_five_tuple(
    staged: Callable[..., Stage],
) -> None:
    stage = staged()
    one, other = stage.caller_of(1), stage.caller_of(2)
    response = one.allocate((a.EVEN_PORT, True))
    token = response.get(a.RESERVATION_TOKEN)
    relayed = relayed_of(response)
    assert token is not None
    again = relayed_of(other.allocate((a.RESERVATION_TOKEN, token)))
    assert again == Address(relayed.host, relayed.port + 1)
    assert stage.worker_of(other) == 1, "the owner of the port has the allocation"
    # All that comes later from the five-tuple is the owner's as well.
    assert relays_to(one, other, relayed, again)
    assert code(other.refresh(600)) == 0
    assert code(other.ask(Method.ALLOCATE, (a.REQUESTED_TRANSPORT, 17))) == 437
    assert code(other.refresh(0)) == 0
    assert code(other.refresh(600)) == 437
    assert other.relayed(), "and it can begin anew"


def test_a_token_of_nobody(staged: Callable[..., Stage]) -> None:
    stage = staged()
    caller = stage.caller_of(2)
    for token in (b"\1" + bytes(7), b"\2" + bytes(7), bytes(8), b"\xff" * 8):
        response = caller.ask(
            Method.ALLOCATE, (a.REQUESTED_TRANSPORT, 17), (a.RESERVATION_TOKEN, token)
        )
        assert code(response) == 508


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_a_mobile_client_moves_to_another_workers_five_tuple(
    staged: Callable[..., Stage], transport: Transport
) -> None:
    stage = staged()
    old, new = stage.caller_of(1), stage.caller_of(2, transport=transport)
    response = old.allocate((a.MOBILITY_TICKET, b""))
    ticket, relayed = response.get(a.MOBILITY_TICKET), relayed_of(response)
    peer = stage.caller_of(2)
    there = peer.relayed()
    assert relays_to(old, peer, relayed, there)
    moved = new.refresh(600, (a.MOBILITY_TICKET, ticket))
    assert code(moved) == 0
    new.push(0x4000, b"from the new")
    assert peer.wait_for_data() == (0x4001, b"from the new")
    peer.push(0x4001, b"to the new")
    assert new.wait_for_data() == (0x4000, b"to the new")
    assert stage.worker_of(new) == 1
    assert code(old.refresh()) == 437
    # And back to a five-tuple of the first worker, which is the owner.
    following = moved.get(a.MOBILITY_TICKET) if moved is not None else None
    third = stage.caller_of(1)
    assert code(third.refresh(600, (a.MOBILITY_TICKET, following))) == 0


def tcp_peer() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)
    return listener


def test_a_connection_bind_on_another_worker(staged: Callable[..., Stage]) -> None:
    stage = staged()
    control = stage.stream_of(1)
    control.allocate(transport=TCP)
    with tcp_peer() as listener:
        for worker in (1, 2, 2):
            peer = Address(*listener.getsockname())
            response = control.ask(Method.CONNECT, (a.XOR_PEER_ADDRESS, peer))
            assert response is not None
            identifier = response.get(a.CONNECTION_ID)
            assert identifier is not None
            connection, _ = listener.accept()
            data = stage.stream_of(worker)
            with connection:
                connection.settimeout(5)
                connection.sendall(b"early")
                assert code(data.ask(Method.CONNECTION_BIND, (a.CONNECTION_ID, identifier))) == 0
                data.sock.settimeout(5)
                early = data.rest()
                assert early + read(data.sock, 5 - len(early)) == b"early"
                payload = random.Random(worker).randbytes(300_000)
                data.sock.sendall(payload[:100_000])
                assert read(connection, 100_000) == payload[:100_000]
                connection.sendall(payload)
                assert read(data.sock, len(payload)) == payload
                data.close()
                assert connection.recv(1) == b""


def test_streams_between_clients_of_two_workers(staged: Callable[..., Stage]) -> None:
    stage = staged(peers__allow=[])
    one, other = stage.stream_of(1), stage.stream_of(2)
    here, there = (relayed_of(caller.allocate(transport=TCP)) for caller in (one, other))
    assert code(other.permit(here)) == 0
    response = one.ask(Method.CONNECT, (a.XOR_PEER_ADDRESS, there))
    assert code(response) == 0
    assert response is not None
    while not other.indications:
        other.fetch(5)
    (attempt,) = other.indications
    assert attempt.get(a.XOR_PEER_ADDRESS) == here
    ends = []
    for worker, named in ((2, response), (1, attempt)):
        data = stage.stream_of(worker)
        identifier = named.get(a.CONNECTION_ID)
        assert code(data.ask(Method.CONNECTION_BIND, (a.CONNECTION_ID, identifier))) == 0
        data.sock.settimeout(5)
        ends.append(data.sock)
    payload = random.Random(7).randbytes(200_000)
    for sender, receiver in (ends, ends[::-1]):
        sender.sendall(payload)
        assert read(receiver, len(payload)) == payload


def read(sock: socket.socket, octets: int) -> bytes:
    data = bytearray()
    while len(data) < octets and (piece := sock.recv(65536)):
        data += piece
    return bytes(data)


def test_a_tls_connection_that_is_another_workers(
    staged: Callable[..., Stage], tmp_path: Any
) -> None:
    certificate = tmp_path / "cert.pem"
    write_self_signed(certificate, "turn.example")
    port = free_port()
    stage = staged(
        listen=[f"udp://127.0.0.1:{port}", f"tls://127.0.0.1:{port}"],
        tls__certificate=str(certificate),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    tls = {"transport": Transport.TLS, "tls": context, "server": Address("127.0.0.1", port)}
    control = stage.caller_of(1, **tls)
    control.allocate(transport=TCP)
    with tcp_peer() as listener:
        peer = Address(*listener.getsockname())
        response = control.ask(Method.CONNECT, (a.XOR_PEER_ADDRESS, peer))
        assert response is not None
        identifier = response.get(a.CONNECTION_ID)
        connection, _ = listener.accept()
        data = stage.caller_of(2, **tls)
        with connection:
            connection.settimeout(5)
            assert code(data.ask(Method.CONNECTION_BIND, (a.CONNECTION_ID, identifier))) == 0
            data.sock.settimeout(5)
            payload = random.Random(3).randbytes(400_000)
            data.sock.sendall(payload[:100_000])
            assert read(connection, 100_000) == payload[:100_000]
            connection.sendall(payload)
            assert read(data.sock, len(payload)) == payload
            connection.shutdown(socket.SHUT_WR)
            assert data.sock.recv(1) == b"", "the end goes through the pipe as well"


# Quotas and rates. --------------------------------------------------------------------------------


def test_quotas_hold_over_all_workers(staged: Callable[..., Stage]) -> None:
    stage = staged(limits__allocations_per_user=3, limits__allocations=5)
    request = (a.REQUESTED_TRANSPORT, 17)
    callers = [stage.caller_of(worker) for worker in (1, 2, 1, 2)]
    codes = [code(caller.ask(Method.ALLOCATE, request)) for caller in callers]
    assert codes == [0, 0, 0, 486]
    bobs = [stage.caller(username="bob", password="hidden") for _ in range(3)]
    assert [code(caller.ask(Method.ALLOCATE, request)) for caller in bobs] == [0, 0, 508]
    callers[0].refresh(0)
    assert code(bobs[2].ask(Method.ALLOCATE, request)) == 0
    callers[1].refresh(0)
    assert code(callers[3].ask(Method.ALLOCATE, request)) == 0


def test_connections_are_counted_over_all_workers(staged: Callable[..., Stage]) -> None:
    stage = staged(limits__connections_per_client=4)
    kept, refused = [], 0
    for _ in range(12):
        try:
            caller = stage.caller(transport=Transport.TCP)
            caller.allocate()
        except OSError:
            refused += 1
        else:
            kept.append(caller)
    assert (len(kept), refused) == (4, 8)
    assert {stage.worker_of(caller) for caller in kept} <= {1, 2}


def test_a_rate_is_one_rate_for_all_workers(staged: Callable[..., Stage]) -> None:
    rate = 200_000
    stage = staged(limits__octets_per_second_per_user=rate)
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        peer.setblocking(False)
        callers = [stage.caller_of(worker) for worker in (1, 2)]
        for caller in callers:
            caller.allocate()
            assert code(caller.bind(0x4000, Address(*peer.getsockname()))) == 0
        began, sent, octets = time.monotonic(), 0, 0
        while sent < 1200:
            for caller in callers:
                caller.push(0x4000, bytes(1000))
            sent += 2
            time.sleep(0.0005)
            octets += drained(peer)
        time.sleep(0.2)
        octets += drained(peer)
        passed = time.monotonic() - began
    # The burst of a second, what came back meanwhile, and a lease and a packet for each.
    assert octets <= rate * (1 + passed) + 4 * 4096 + 4000
    assert octets >= min(rate, sent * 1000) * 0.9


def drained(peer: socket.socket) -> int:
    octets = 0
    while True:
        try:
            octets += len(peer.recv(2000))
        except BlockingIOError:
            return octets


# Workers that die. --------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_told_of(staged: Callable[..., Stage]) -> None:
    stage = staged(limits__allocations_per_user=2)
    one, other = stage.caller_of(1), stage.caller_of(2)
    first, second = one.relayed(), other.relayed()
    assert relays_to(one, other, first, second)
    time.sleep(1.2)  # so that the supervisor has heard what it had
    before = stage.turnd.ask("status")["workers"]
    os.kill(before[1]["pid"], signal.SIGKILL)
    line = stage.turnd.wait_for("a worker has ended, and another takes its place")
    assert (line["worker"], line["how"], line["allocations_lost"]) == (2, "killed by SIGKILL", 1)
    # Its place waits for the next; nobody else's clients are moved.
    assert code(one.refresh(600)) == 0
    assert code(other.refresh(600)) == 437
    assert stage.turnd.wait_for("a worker serves in its place")["worker"] == 2
    assert code(other.ask(Method.ALLOCATE, (a.REQUESTED_TRANSPORT, 17))) == 0, "its quota is free"
    assert stage.worker_of(other) == 2
    again = [s["relayed"][0] for s in stage.turnd.ask("sessions") if s["worker"] == 2]
    assert relays_to_again(
        one, other, Address("127.0.0.1", int(again[0].rpartition(":")[2])), first
    )
    status = stage.turnd.ask("status")
    assert status["replaced"] == 1
    assert status["workers"][1]["pid"] != before[1]["pid"]


def relays_to_again(one: LiveCaller, other: LiveCaller, there: Address, here: Address) -> bool:
    assert code(one.bind(0x4005, there)) == 0
    assert code(other.bind(0x4005, here)) == 0
    one.push(0x4005, b"again")
    return other.wait_for_data() == (0x4005, b"again")


def test_what_names_a_dead_worker(staged: Callable[..., Stage]) -> None:
    stage = staged()
    stream, later = stage.stream_of(2), stage.stream_of(2)
    os.kill(stage.turnd.ask("status")["workers"][0]["pid"], signal.SIGKILL)
    stage.turnd.wait_for("a worker has ended, and another takes its place")
    names_it = (a.CONNECTION_ID, 1 << 24 | 5)
    with pytest.raises(ConnectionError):
        stream.ask(Method.CONNECTION_BIND, names_it)
    stage.turnd.wait_for("a worker serves in its place")
    assert code(later.ask(Method.CONNECTION_BIND, names_it)) == 400


def test_counts_of_a_dead_worker_stay(staged: Callable[..., Stage]) -> None:
    port = free_port()
    stage = staged(metrics__listen=f"127.0.0.1:{port}")
    one, other = stage.caller_of(1), stage.caller_of(2)
    one.relayed(), other.relayed()
    before = scraped(port, 'turnd_allocations_created_total{transport="udp"}')
    assert before >= 2
    time.sleep(1.2)
    os.kill(stage.turnd.ask("status")["workers"][0]["pid"], signal.SIGKILL)
    stage.turnd.wait_for("a worker serves in its place")
    assert scraped(port, 'turnd_allocations_created_total{transport="udp"}') == before
    assert scraped(port, "turnd_allocations") == 1
    assert scraped(port, "turnd_workers_replaced_total") == 1
    assert scraped(port, 'turnd_worker_allocations{worker="2"}') == 1
    for worker in (1, 2):
        assert scraped(port, f'turnd_worker_up{{worker="{worker}"}}') == 1
        assert scraped(port, f'turnd_worker_cpu_seconds_total{{worker="{worker}"}}') > 0
        resident = scraped(port, f'turnd_worker_resident_memory_bytes{{worker="{worker}"}}')
        assert 1 << 24 < resident < 1 << 28


def scraped(port: int, series: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{series} "):
                return float(line.rpartition(" ")[2])
    raise AssertionError(f"no {series}")


def test_no_worker_outlives_its_supervisor(staged: Callable[..., Stage]) -> None:
    stage = staged()
    pids = [worker["pid"] for worker in stage.turnd.ask("status")["workers"]]
    stage.turnd.process.kill()
    stage.turnd.process.wait()
    end = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# The operator. ------------------------------------------------------------------------------------


def test_sessions_and_disconnect_over_all(staged: Callable[..., Stage]) -> None:
    stage = staged()
    callers = [stage.caller_of(worker) for worker in (1, 2, 2)]
    bob = stage.caller(username="bob", password="hidden")
    for caller in (*callers, bob):
        caller.allocate()
    sessions = stage.turnd.ask("sessions")
    assert len(sessions) == 4
    assert stage.turnd.ask("disconnect", user="alice") == {"ended": 3}
    (left,) = stage.turnd.ask("sessions")
    assert left["user"] == "bob"
    assert stage.turnd.ask("disconnect", session=left["session"]) == {"ended": 1}
    assert [code(caller.refresh()) for caller in callers] == [437] * 3


def test_reload_goes_to_all(staged: Callable[..., Stage]) -> None:
    stage = staged()
    callers = [stage.caller_of(worker) for worker in (1, 2)]
    for caller in callers:
        caller.allocate()
    more = free_port()
    stage.turnd.write(
        listen=[*stage.turnd.tables["listen"], f"udp://127.0.0.1:{more}"],
        peers__deny=["127.9.0.0/16"],
        auth__users={"alice": "secret", "carol": "new"},
        limits__allocations_per_user=1,
    )
    changed = stage.turnd.ask("reload")["changed"]
    assert f"listening at UDP 127.0.0.1:{more}" in changed
    for number, caller in enumerate(callers):
        assert code(caller.refresh()) == 0
        denied = Address("127.9.1.1", 9 + number)
        assert code(caller.bind(0x4000, denied)) == 403
    assert code(stage.caller().ask(Method.ALLOCATE, (a.REQUESTED_TRANSPORT, 17))) == 486
    for _ in range(8):
        carol = stage.caller(username="carol", password="new", server=Address("127.0.0.1", more))
        carol.allocate()
        assert code(carol.refresh(0)) == 0
    # What is wrong changes nothing, in none of them.
    stage.turnd.write(relay__ports="50000-50001")
    with pytest.raises(Exception, match="too few for 2 workers"):
        stage.turnd.ask("reload")
    with socket.socket(type=socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        taken = holder.getsockname()[1]
        stage.turnd.write(
            relay__ports="49152-65535",
            listen=[*stage.turnd.tables["listen"], f"udp://127.0.0.1:{taken}"],
        )
        with pytest.raises(Exception, match=f"port {taken} of UDP is in use"):
            stage.turnd.ask("reload")
    assert [code(caller.refresh()) for caller in callers] == [0, 0]


def test_drain_waits_for_the_last_of_all(staged: Callable[..., Stage]) -> None:
    stage = staged()
    one, other = stage.caller_of(1), stage.caller_of(2)
    token = one.allocate((a.EVEN_PORT, True)).get(a.RESERVATION_TOKEN)
    other.allocate()
    assert stage.turnd.ask("drain") == {"left": 2}
    stranger = stage.caller()
    assert code(stranger.ask(Method.ALLOCATE, (a.REQUESTED_TRANSPORT, 17))) == 508
    assert code(one.refresh(0)) == 0
    time.sleep(0.5)
    assert stage.turnd.process.poll() is None
    for _ in range(6):
        # Also from five-tuples of the worker that has nothing left.
        late = stage.caller()
        assert code(late.ask(Method.ALLOCATE, (a.REQUESTED_TRANSPORT, 17))) == 508
    assert code(other.refresh(0)) == 0
    assert stage.turnd.process.wait(20) == 0
    assert token


def test_another_turnd_with_workers_does_not_share_the_port(staged: Callable[..., Stage]) -> None:
    stage = staged()
    other = LiveTurnd({"workers": 2, "listen": stage.turnd.tables["listen"]})
    with pytest.raises(AssertionError, match="is in use"), other:
        pass


def test_nonces_are_everybodys(staged: Callable[..., Stage]) -> None:
    stage = staged()
    one, other = stage.caller_of(1), stage.caller_of(2)
    other.sessions = one.sessions
    response = other.ask(Method.ALLOCATE, (a.REQUESTED_TRANSPORT, 17), follow=False)
    assert code(response) == 0, "no challenge: the nonce came from the other worker"
