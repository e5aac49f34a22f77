"""turnd as a whole on loopback: how it starts, goes over to another configuration, and stops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stun.errors import StunError, UsageError
from stun.sansio import Address
from tools.certificate import write_self_signed
from turn.aio import RelayDriver
from turn.client.aio import connect
from turn.daemon import forwarding
from turn.daemon.addresses import LocalAddress
from turn.daemon.admin import ask
from turn.daemon.beforehand import CannotStart
from turn.daemon.config import ConfigError, Flags, load
from turn.daemon.service import Turnd
from turn.users import open_table

LOOPBACK = LocalAddress("127.0.0.1", "lo")
SECOND = LocalAddress("127.0.0.2", "lo")

BASE: dict[str, Any] = {
    "relay.addresses": ["127.0.0.1"],
    "dataplane": "sockets",
    "peers.allow": ["127.0.0.0/8"],
    "auth.users": {"ann": "secret"},
    "admin.socket": False,
    "log.level": "error",
}


class Stage:
    """A turnd whose configuration and machine the test changes."""

    def __init__(self, **tables: Any) -> None:
        self.tables = BASE | {key.replace("__", "."): value for key, value in tables.items()}
        self.hosts = (LOOPBACK,)
        self.port = free_port()
        self.tables.setdefault("listen", [f"udp://127.0.0.1:{self.port}"])
        self.turnd: Turnd

    def load(self) -> Any:
        flags = Flags()
        for path, value in self.tables.items():
            urls = [{"url": url} for url in value] if path == "listen" else value
            flags.set(tuple(path.split(".")), urls, f"--{path}")
        return load(None, flags)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Turnd]:
        ready = asyncio.Event()

        def on_ready(_: Turnd) -> bool:
            ready.set()
            return True

        self.turnd = Turnd(self.load, on_ready=on_ready, lister=lambda: self.hosts, version="1.2")
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


def free_port(number: int = 1) -> int:
    """Return a port that is free for UDP and TCP on the hosts used here."""
    for _ in range(50):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port
    raise AssertionError("no port is free")


# Starting. ----------------------------------------------------------------------------------------


async def test_it_relays_for_a_user() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        assert await stage.relays()
        assert turnd.uris() == [f"turn:127.0.0.1:{stage.port}?transport=udp"]
        assert turnd.usage().packets_from_client == 1
        assert turnd.status()["serving"] == [
            {"transport": "UDP", "address": f"127.0.0.1:{stage.port}"}
        ]
    with socket.socket(type=socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", stage.port))


async def test_nobody_configured_makes_one_user_that_outlives_a_reload() -> None:
    stage = Stage()
    del stage.tables["auth.users"]
    async with stage.running() as turnd:
        made_up = turnd.made_up
        assert made_up is not None
        assert await stage.relays(*made_up)
        await turnd.reload()
        assert await stage.relays(*made_up)
        stage.tables["auth.users"] = {"ann": "secret"}
        await turnd.reload()
        assert turnd.made_up is None
        assert await stage.relays()
        with pytest.raises(StunError):
            await stage.relays(*made_up)


async def test_a_port_in_use() -> None:
    stage = Stage()
    with socket.socket(type=socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", stage.port))
        with pytest.raises(CannotStart, match=f"port {stage.port} of UDP is in use at 127.0.0.1"):
            async with stage.running():
                raise AssertionError("it must not serve")


async def test_a_port_in_use_may_be_done_without() -> None:
    stage = Stage(partial=True)
    stage.tables["listen"].append(f"tcp://127.0.0.1:{stage.port}")
    with socket.socket(type=socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", stage.port))
        async with stage.running() as turnd:
            assert turnd.uris() == [f"turn:127.0.0.1:{stage.port}?transport=tcp"]
            assert await stage.relays(uri=turnd.uris()[0])
            holder.close()
            turnd._look_at_addresses()
            assert len(turnd.serving) == 2, "it was tried again"
            assert await stage.relays()


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("listen", ["udp://192.0.2.77:3478"], "192.0.2.77 is not an address of this machine"),
        ("relay.addresses", ["192.0.2.77"], "cannot relay from 192.0.2.77"),
    ],
)
async def test_addresses_of_others(key: str, value: Any, why: str) -> None:
    stage = Stage()
    stage.tables[key] = value
    with pytest.raises(CannotStart, match=why):
        async with stage.running():
            raise AssertionError("it must not serve")


async def test_no_free_port_to_relay_from() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
        for _ in range(50):
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            with contextlib.suppress(OSError):
                two.bind(("127.0.0.1", port + 1))
                break
            one.close()
            one = socket.socket(type=socket.SOCK_DGRAM)  # noqa: PLW2901
        stage = Stage(relay__ports=f"{port}-{port + 1}")
        with pytest.raises(CannotStart, match=f"no port from {port} to {port + 1} is free"):
            async with stage.running():
                raise AssertionError("it must not serve")


async def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    stage = Stage(tls__certificate=str(tmp_path / "nope.pem"))
    with pytest.raises(StunError, match=r"nope\.pem: no such file"):
        async with stage.running():
            raise AssertionError("it must not serve")


async def test_a_database_that_cannot_be_used(tmp_path: Path) -> None:
    stage = Stage(auth__store=f"sqlite:///{tmp_path}/nope/users.db")
    with pytest.raises(StunError, match=r"users\.db"):
        async with stage.running():
            raise AssertionError("it must not serve")


# Reloading. ---------------------------------------------------------------------------------------


async def test_a_reload_changes_everything_at_once() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        assert await turnd.reload() == []
        other = free_port()
        stage.tables |= {
            "listen": [f"tcp://127.0.0.1:{other}"],
            "auth.users": {"bob": "word"},
            "realm": "elsewhere",
        }
        changed = "\n".join(await turnd.reload())
        assert f"listening at TCP 127.0.0.1:{other}" in changed
        assert f"no longer listening at UDP 127.0.0.1:{stage.port}" in changed
        assert "realm" in changed
        assert await stage.relays("bob", "word", uri=f"turn:127.0.0.1:{other}?transport=tcp")
        with pytest.raises(StunError):
            await stage.relays(uri=f"turn:127.0.0.1:{other}?transport=tcp")


async def test_allocations_outlive_a_reload() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        uri = f"turn:127.0.0.1:{stage.port}"
        async with connect(uri, username="ann", password="secret") as relay:
            await relay.permit(relay.relayed_address)
            stage.tables["limits.allocations"] = 5
            assert any("limit" in line for line in await turnd.reload())
            relay.send(b"still there", relay.relayed_address)
            assert (await relay.recv())[0] == b"still there"


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("limits.allocations", "many", ConfigError),
        ("listen", ["udp://192.0.2.77"], CannotStart),
        ("relay.addresses", ["192.0.2.77"], CannotStart),
        ("tls.certificate", "/nope.pem", StunError),
        ("auth.store", "sqlite:////nope/users.db", StunError),
        ("metrics.listen", "192.0.2.77:9", UsageError),
        ("admin.socket", "/proc/nope/turnd.sock", UsageError),
    ],
)
async def test_a_bad_reload_changes_nothing(key: str, value: Any, error: type[Exception]) -> None:
    stage = Stage()
    async with stage.running() as turnd:
        before = turnd.settings, turnd.plan, dict(turnd.serving)
        stage.tables |= {"auth.users": {"bob": "word"}, key: value}
        with pytest.raises(error):
            await turnd.reload()
        assert (turnd.settings, turnd.plan, turnd.serving) == before
        assert await stage.relays()


class Kernel:
    """In the place of :class:`turn.dataplane.kernel.routes.KernelRoutes`."""

    interfaces = ("eth0",)

    def __init__(self) -> None:
        self.closed = False

    def __len__(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("started", ["sockets", "auto"])
async def test_a_bad_reload_leaves_the_data_plane_as_it_is(
    started: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def load(_: object) -> Any:
        made.append(Kernel())
        return made[-1]

    used: list[Any] = []
    monkeypatch.setattr(forwarding, "why_not", lambda: None)
    monkeypatch.setattr(forwarding, "_load", load)
    monkeypatch.setattr(RelayDriver, "use_kernel", lambda _, kernel: used.append(kernel))
    stage = Stage(dataplane=started)
    async with stage.running() as turnd:
        before = turnd.forwarding
        assert used == [before.kernel]
        stage.tables |= {"dataplane": "kernel", "metrics.listen": "192.0.2.77:9"}
        with pytest.raises(UsageError):
            await turnd.reload()
        assert turnd.forwarding is before
        assert len(used) == 1
        # What was opened for it goes again, what is in use stays.
        assert [kernel.closed for kernel in made] == [started == "sockets"]
        del stage.tables["metrics.listen"]
        told = ["relays in the kernel, at eth0"] if started == "sockets" else []
        assert await turnd.reload() == told
        assert turnd.forwarding.wanted == "kernel"
        assert used[-1] is turnd.forwarding.kernel is made[-1]
        assert turnd.kernel_routes() == 0


async def test_a_reload_that_wants_a_port_in_use() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        other = free_port()
        with socket.socket(type=socket.SOCK_DGRAM) as holder:
            holder.bind(("127.0.0.1", other))
            stage.tables["listen"] = [f"udp://127.0.0.1:{other}"]
            with pytest.raises(CannotStart, match="is in use"):
                await turnd.reload()
        assert await stage.relays()
        await turnd.reload()
        stage.port = other
        assert await stage.relays()


async def test_metrics_and_the_admin_socket_can_be_moved(tmp_path: Path) -> None:
    first, second, metrics = tmp_path / "1.sock", tmp_path / "2.sock", free_port()
    stage = Stage(admin__socket=str(first), metrics__listen=f"127.0.0.1:{metrics}")
    async with stage.running() as turnd:
        status = await asyncio.to_thread(ask, first, "status")
        assert status["version"] == "1.2"
        assert "turnd_allocations 0.0" in await scrape(metrics)
        stage.tables["admin.socket"] = str(second)
        stage.tables["metrics.listen"] = f"127.0.0.1:{free_port()}"
        # Asked through the socket that goes: the answer must still come.
        answer = await asyncio.to_thread(ask, first, "reload")
        assert answer["changed"] == [
            f"metrics: {stage.tables['metrics.listen']}",
            f"admin: {second}",
        ]
        async with asyncio.timeout(10):
            while first.exists():  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert await asyncio.to_thread(ask, second, "sessions") == []
        with pytest.raises(ConnectionRefusedError):
            await scrape(metrics)
        assert turnd.settings.admin.socket == second


async def scrape(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return text


async def test_the_log_can_be_changed(capfd: pytest.CaptureFixture[str]) -> None:
    stage = Stage()
    async with stage.running() as turnd:
        stage.tables |= {"log.level": "info", "log.format": "json"}
        await turnd.reload()
        assert '"message": "reloaded"' in capfd.readouterr().err


async def test_nonces_survive_another_nonce_secret() -> None:
    stage = Stage(auth__nonce_secret="0123456789abcdef")
    async with stage.running() as turnd:
        nonce = turnd.nonces.make(Address("192.0.2.1", 1), 1000)
        stage.tables["auth.nonce_secret"] = "fedcba9876543210"
        assert "nonces: another secret" in await turnd.reload()
        assert turnd.nonces.check(nonce, Address("192.0.2.1", 1), 1000).value == "valid"
        assert turnd.nonces.secrets[0] == b"fedcba9876543210"


# Looking after it. --------------------------------------------------------------------------------


async def test_addresses_come_and_go() -> None:
    stage = Stage()
    stage.tables["listen"] = [f"udp://0.0.0.0:{stage.port}"]
    second = f"turn:127.0.0.2:{stage.port}"
    async with stage.running() as turnd:
        assert len(turnd.serving) == 1
        stage.hosts = (LOOPBACK, SECOND)
        turnd._look_at_addresses()
        assert await stage.relays(uri=second)
        async with connect(second, username="ann", password="secret"):
            assert len(list(turnd.sessions())) == 1
            stage.hosts = (LOOPBACK,)
            turnd._look_at_addresses()
            assert not list(turnd.sessions()), "its five-tuple is gone"
        assert [local.host for _, local in turnd.serving] == ["127.0.0.1"]
        assert await stage.relays()


async def test_all_addresses_going_changes_nothing() -> None:
    stage = Stage()
    stage.tables["listen"] = [f"udp://0.0.0.0:{stage.port}"]
    async with stage.running() as turnd:
        stage.hosts = ()
        turnd._look_at_addresses()
        assert await stage.relays()


async def test_an_address_that_is_not_ready_is_tried_again() -> None:
    stage = Stage()
    stage.tables["listen"] = [f"udp://0.0.0.0:{stage.port}"]
    stage.hosts = (LOOPBACK, LocalAddress("192.0.2.77", "eth9"))
    async with stage.running() as turnd:
        assert len(turnd.serving) == 1, "what a wildcard stands for may be missing"
        turnd._look_at_addresses()
        assert await stage.relays()


async def test_a_renewed_certificate_is_taken(tmp_path: Path) -> None:
    path = write_self_signed(tmp_path / "cert.pem", "one.example")
    stage = Stage(tls__certificate=str(path))
    async with stage.running() as turnd:
        assert turnd.certificate_names() == ("one.example",)
        turnd.certificate.look(turnd._log)
        write_self_signed(path, "two.example")
        turnd.certificate.look(turnd._log)
        assert turnd.certificate_names() == ("two.example",)
        path.write_text("nonsense")
        turnd.certificate.look(turnd._log)
        assert turnd.certificate_names() == ("two.example",), "the old one goes on"
        expiry = turnd.certificate_expiry()
        assert expiry is not None


async def test_a_certificate_can_come_with_a_reload(tmp_path: Path) -> None:
    path = write_self_signed(tmp_path / "cert.pem", "one.example")
    stage = Stage()
    secure = free_port()
    async with stage.running() as turnd:
        stage.tables |= {
            "tls.certificate": str(path),
            "listen": [*stage.tables["listen"], f"tls://127.0.0.1:{secure}"],
        }
        changed = await turnd.reload()
        assert any(line.startswith("certificate: one.example") for line in changed)
        assert turnd.uris()[-1] == f"turns:one.example:{secure}?transport=tcp"
        assert await stage.relays()


# Users of a database. -----------------------------------------------------------------------------


async def test_users_of_a_database_beside_others(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/users.db"
    table = open_table(url, "natkit")
    table.add("dora", "from the table")
    table.close()
    stage = Stage(auth__store=url)
    async with stage.running() as turnd:
        assert await stage.relays("dora", "from the table")
        assert await stage.relays()
        # Who asks the database ahead of time has the clock by which the machine believes it.
        assert turnd.unix_time() > 1_700_000_000
        assert turnd._unix_epoch == turnd._server._gate._unix_epoch
        del stage.tables["auth.store"]
        assert "database: none" in await turnd.reload()
        with pytest.raises(StunError):
            await stage.relays("dora", "from the table")


# What its operator may do. ------------------------------------------------------------------------


async def test_time_limited_credentials() -> None:
    stage = Stage(auth__secrets=["north", "older"])
    async with stage.running() as turnd:
        minted = turnd.credentials("bob", 60)
        assert minted.username.endswith(":bob")
        assert await stage.relays(minted.username, minted.password)
        assert minted.uris == (f"turn:127.0.0.1:{stage.port}?transport=udp",)


async def test_without_a_secret_there_are_none() -> None:
    async with Stage().running() as turnd:
        with pytest.raises(UsageError, match="--secret-file"):
            turnd.credentials("bob", 60)


async def test_disconnecting() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        uri = f"turn:127.0.0.1:{stage.port}"
        async with connect(uri, username="ann", password="secret"):
            (session,) = turnd.sessions()
            assert turnd.disconnect(session="no such", username=None) == 0
            assert turnd.disconnect(session=session.session, username=None) == 1
            assert not list(turnd.sessions())


async def test_draining_ends_with_the_last_allocation() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        uri = f"turn:127.0.0.1:{stage.port}"
        async with connect(uri, username="ann", password="secret"):
            assert turnd.drain() == 1
            assert turnd.status()["draining"]
            with pytest.raises(StunError):
                await stage.relays()
            assert not turnd._stopping.is_set()
        async with asyncio.timeout(10):
            await turnd._stopping.wait()


async def test_signals() -> None:
    stage = Stage()
    async with stage.running() as turnd:
        stage.tables["realm"] = "another"
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(10):
            while turnd.settings.realm != "another":  # noqa: ASYNC110
                await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await turnd._stopping.wait()
    # The second one would have ended the process at once.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_the_failure_of_something_beside_ends_it() -> None:
    stage = Stage()

    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with stage.running() as turnd:
            turnd.spawn(fail())
            async with asyncio.timeout(10):
                await turnd._stopping.wait()
