"""The supervisor, in this process, and its workers: how it starts, looks after them, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from stun.errors import StunError
from stun.tls import ClientTls
from tools.certificate import write_self_signed
from tools.turnlive import free_port
from turn.client.aio import connect
from turn.daemon.addresses import LocalAddress
from turn.daemon.config import Flags, load
from turn.daemon.service import CannotStart
from turn.daemon.workers import crew
from turn.daemon.workers.supervisor import Supervisor
from turn.users import open_table

LOOPBACK, SECOND = LocalAddress("127.0.0.1", "lo"), LocalAddress("127.0.0.2", "lo")


class Stage:
    """A supervisor whose configuration and machine the test changes."""

    def __init__(self, **tables: Any) -> None:
        self.port = free_port()
        self.tables: dict[str, Any] = {
            "workers": 2,
            "listen": [f"udp://127.0.0.1:{self.port}"],
            "relay.addresses": ["127.0.0.1"],
            "peers.allow": ["127.0.0.0/8"],
            "auth.users": {"ann": "secret"},
            "admin.socket": False,
            "log.level": "error",
            "dataplane": "sockets",
        } | {key.replace("__", "."): value for key, value in tables.items()}
        self.hosts = (LOOPBACK,)
        self.turnd: Supervisor

    def load(self) -> Any:
        flags = Flags()
        for path, value in self.tables.items():
            urls = [{"url": url} for url in value] if path == "listen" else value
            flags.set(tuple(path.split(".")), urls, f"--{path}")
        return load(None, flags)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Supervisor]:
        ready = asyncio.Event()

        def on_ready(_: Any) -> bool:
            ready.set()
            return True

        self.turnd = Supervisor(
            self.load, on_ready=on_ready, lister=lambda: self.hosts, version="1.2", watch=0.2
        )
        life = asyncio.ensure_future(self.turnd.run())
        waiting = asyncio.ensure_future(ready.wait())
        await asyncio.wait((life, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            if ready.is_set():
                yield self.turnd
        finally:
            self.turnd.stop()
            await life

    async def relays(self, user: str = "ann", password: str = "secret", **options: Any) -> bool:
        """Whether a client can relay to itself."""
        uri = options.pop("uri", f"turn:127.0.0.1:{self.port}")
        async with connect(uri, username=user, password=password, **options) as relay:
            await relay.permit(relay.relayed_address)
            relay.send(b"round", relay.relayed_address)
            data, _ = await relay.recv()
            return bool(data == b"round")

    async def all_relay(self, *user: str, **options: Any) -> bool:
        """Whether clients of every worker can."""
        tried = [self.relays(*user, **options) for _ in range(10)]
        return all(await asyncio.gather(*tried))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (it is about other processes)
            await asyncio.sleep(0.02)


async def test_it_serves_and_leaves_nothing() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        assert await stage.all_relay()
        pids = [member.pid for member in turnd.crew.members]
        await turnd.crew.refresh()
        assert turnd.usage().packets_from_client == 10
        created = [member.figures.metrics.allocations_created for member in turnd.crew.members]
        assert all(sum(one.values()) for one in created), "both had some of them"
    for pid in pids:
        assert pid is not None
        assert not Path(f"/proc/{pid}").exists()
    with socket.socket(type=socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", stage.port))


@pytest.mark.parametrize("scheme", ["turn", "turns"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_clients_of_every_transport_move_about(
    tmp_path: Path, scheme: str, transport: str
) -> None:
    """Each new five-tuple is one worker's or the other's; the allocation stays where it is."""
    certificate = write_self_signed(tmp_path / "cert.pem", "localhost", "127.0.0.1")
    port = free_port()
    stage = Stage(
        listen=[f"{kind}://127.0.0.1:{port}" for kind in ("udp", "tcp")],
        tls__certificate=str(certificate),
    )
    async with stage.running() as turnd:
        async with connect(
            f"{scheme}:127.0.0.1:{port}?transport={transport}",
            username="ann",
            password="secret",
            mobility=True,
            tls=ClientTls(certificate),
        ) as relay:
            await relay.permit(relay.relayed_address)
            for number in range(16):
                await relay.move()
                data = b"round %d" % number * 100
                relay.send(data, relay.relayed_address)
                assert (await relay.recv())[0] == data
        await turnd.crew.refresh()
        assert turnd.transport_counters()["handed over to other workers"] >= 1
        assert turnd.metrics.allocations == 0
        # The old connections are closed a little after the client has left them.
        await until(lambda: turnd.metrics.connections == 0)


async def test_nobody_configured_makes_one_user_for_all() -> None:
    stage = Stage()
    del stage.tables["auth.users"]
    async with stage.running() as turnd:
        assert turnd.made_up is not None
        assert await stage.all_relay(*turnd.made_up)
        await turnd.reload()
        assert await stage.all_relay(*turnd.made_up)


async def test_what_a_rendezvous_hands_out_is_good_at_every_worker() -> None:
    stage = Stage(rendezvous__listen=[f"ws://127.0.0.1:{free_port()}"])
    async with stage.running() as turnd:
        surroundings = turnd._parts._surroundings()
        made = surroundings.mint("visitor", 600, int(time.time()))
        assert await stage.all_relay(made.username, made.password)
        assert turnd.status()["rendezvous"] is not None


async def test_a_port_in_use() -> None:
    stage = Stage()
    with socket.socket(type=socket.SOCK_DGRAM) as holder:
        # Also where whoever has it would share it.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", stage.port))
        with pytest.raises(CannotStart, match=f"port {stage.port} of UDP is in use at 127.0.0.1"):
            async with stage.running():
                raise AssertionError("it must not serve")
        more = free_port()
        stage.tables |= {
            "partial": True,
            "listen": [f"udp://127.0.0.1:{stage.port}", f"udp://127.0.0.1:{more}"],
        }
        async with stage.running() as turnd:
            assert await stage.all_relay(uri=f"turn:127.0.0.1:{more}")
            holder.close()
            await until(lambda: len(turnd.serving) == 2)
            assert await stage.all_relay()


async def test_a_worker_that_cannot_begin_is_told_of_once(tmp_path: Path) -> None:
    stage = Stage(auth__store=f"sqlite:///{tmp_path}/missing.db")
    with pytest.raises(StunError, match=r"missing\.db") as caught:
        async with stage.running():
            raise AssertionError("it must not serve")
    assert str(caught.value).count("missing.db") == 1
    assert all(member.line is None or member.line.ended for member in stage.turnd.crew.members)


async def test_a_database_is_asked_by_each(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/users.db"
    table = open_table(url, "natkit")
    table.add("dora", "word")
    stage = Stage(auth__store=url)
    async with stage.running() as turnd:
        assert await stage.all_relay("dora", "word")
        await turnd.crew.refresh()
        lookups = turnd.lookups()
        assert lookups is not None
        assert lookups["answered"] >= 1
    table.close()


async def test_addresses_that_come_and_go() -> None:
    port = free_port()
    stage = Stage(listen=[f"udp://0.0.0.0:{port}"])
    async with stage.running() as turnd:
        assert await stage.all_relay(uri=f"turn:127.0.0.1:{port}")
        stage.hosts = (LOOPBACK, SECOND)
        await until(lambda: len(turnd.serving) == 2)
        assert await stage.all_relay(uri=f"turn:127.0.0.2:{port}")
        stage.hosts = (LOOPBACK,)
        await until(lambda: len(turnd.serving) == 1)
        with pytest.raises(StunError):
            await stage.relays(uri=f"turn:127.0.0.2:{port}", timeout=1)
        assert await stage.all_relay(uri=f"turn:127.0.0.1:{port}")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
async def test_a_worker_that_ends_is_replaced(kind: signal.Signals) -> None:
    stage = Stage()
    async with stage.running() as turnd:
        member = turnd.crew.members[0]
        pid = member.pid
        assert pid is not None
        os.kill(pid, kind)
        await until(lambda: member.pid != pid and member.serves)
        assert turnd.crew.replaced == 1
        assert await stage.all_relay()


async def test_a_worker_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "HUNG", 3.0)
    stage = Stage()
    async with stage.running() as turnd:
        member = turnd.crew.members[1]
        pid = member.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: member.pid != pid and member.serves)
        assert await stage.all_relay()


async def test_what_was_reloaded_is_what_a_new_worker_gets() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        stage.tables["auth.users"] = {"bob": "hidden"}
        stage.tables["limits.allocations_per_user"] = 17
        changed = await turnd.reload()
        assert changed.count("limit allocations_per_user is 17 (was 200)") == 1
        for member in turnd.crew.members:
            pid = member.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda m=member, p=pid: m.pid != p and m.serves)  # type: ignore[misc]
        assert await stage.all_relay("bob", "hidden")
        with pytest.raises(StunError):
            await stage.relays("ann", "secret")


async def test_a_reload_that_a_worker_cannot_follow(tmp_path: Path) -> None:
    stage, more = Stage(), free_port()
    async with stage.running() as turnd:
        stage.tables["listen"] = [*stage.tables["listen"], f"udp://127.0.0.1:{more}"]
        stage.tables["auth.store"] = f"sqlite:///{tmp_path}/missing.db"
        with pytest.raises(StunError, match=r"missing\.db"):
            await turnd.reload()
        assert await stage.all_relay(), "all is as it was"
        assert len(turnd.serving) == 1
        async with asyncio.timeout(10):
            while not is_free(more):  # noqa: ASYNC110  (what was given is taken back)
                await asyncio.sleep(0.02)
        del stage.tables["auth.store"]
        await turnd.reload()
        assert await stage.all_relay(uri=f"turn:127.0.0.1:{more}")


def is_free(port: int) -> bool:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def test_other_workers_take_another_start() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        stage.tables["workers"] = 3
        assert "workers: 3 from the next start of turnd on" in await turnd.reload()
        assert len(turnd.crew.members) == 2
        assert await stage.all_relay()


async def test_drained_also_when_a_worker_died(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    ready = asyncio.Event()

    def on_ready(_: Any) -> bool:
        ready.set()
        return True

    turnd = Supervisor(stage.load, on_ready=on_ready, lister=lambda: stage.hosts)
    life = asyncio.ensure_future(turnd.run())
    await ready.wait()
    async with connect(f"turn:127.0.0.1:{stage.port}", username="ann", password="secret"):
        await turnd.crew.refresh()
        (holder,) = [m for m in turnd.crew.members if m.figures.metrics.allocations]
        (idle,) = [m for m in turnd.crew.members if m is not holder]
        assert turnd.drain() == 1
        await until(lambda: idle.drained)
        assert idle.pid is not None
        os.kill(idle.pid, signal.SIGKILL)
        await until(lambda: idle.serves and idle.drained)
        assert not life.done()
    async with asyncio.timeout(20):
        await life


async def test_nonces_and_the_fleets_counts_reach_the_workers() -> None:
    stage = Stage(limits__allocations_per_user=3)
    async with stage.running() as turnd:
        turnd.elsewhere({"ann": 3})
        turnd.nonces.rotate([bytes(32), *turnd.nonces.secrets])
        await asyncio.sleep(1.3)
        with pytest.raises(StunError, match="486"):
            await stage.relays()
        turnd.elsewhere({})
        await asyncio.sleep(1.3)
        assert await stage.relays()
