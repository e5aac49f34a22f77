"""A reload takes every key of the configuration: but for ``workers``, none needs another start."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stun.sansio import SECOND, Address
from tools.certificate import issue
from turn.daemon import forwarding
from turn.daemon.addresses import LocalAddress
from turn.daemon.admin import ask
from turn.daemon.config import Flags, load
from turn.daemon.service import Turnd
from turn.daemon.settings import allowed_keys
from turn.users import open_table

HOSTS = tuple(LocalAddress(f"127.0.0.{n}", "lo") for n in (1, 2))
PORT = 17_391
"""Below what the kernel gives away by itself, so it is free on the loopback of a test."""
KEY = base64.b64encode(bytes(range(32))).decode()
NO_KERNEL = "the kernel of this test is as old as it needs"
OTHER_KEY = base64.b64encode(bytes(32)).decode()


def listen(url: str, **more: Any) -> list[dict[str, Any]]:
    return [{"url": url, **more}]


def oauth(**changes: Any) -> dict[str, Any]:
    key = {"kid": "k", "key": KEY} | {k: v for k, v in changes.items() if k != "server_name"}
    return {"server_name": changes.get("server_name", "here"), "keys": [key]}


def config(name: str) -> Callable[[Turnd], Any]:
    return lambda turnd: getattr(turnd._server.config, name)


def limit(name: str) -> Callable[[Turnd], Any]:
    return lambda turnd: getattr(turnd._server._core.quotas._limits, name)


def tokens(turnd: Turnd) -> Any:
    found = turnd._server._gate._authenticator._tokens
    assert found is not None
    return found


def served(turnd: Turnd) -> Any:
    """What the driver gives to clients that speak TLS."""
    assert turnd._driver._sockets._server_tls is turnd.certificate.tls
    return turnd.certificate.tls


def knows(name: str) -> Callable[[Turnd], Any]:
    """Whether the authenticator knows a user."""

    def look(turnd: Turnd) -> bool:
        return bool(turnd._server._gate._authenticator._users.secrets(name, 1_000))

    return look


def rendezvous(turnd: Turnd) -> Any:
    return turnd._parts._open["rendezvous"].companion


def denied(host: str) -> Callable[[Turnd], Any]:
    return lambda turnd: not turnd._server._core.verdict_on_host(host).allowed


LIVE: dict[str, tuple[Any, Any, Callable[[Turnd], Any], Any]] = {
    # key: (what it is first, what it is then, where it is seen, what is seen then)
    "realm": ("one", "two", lambda t: t._server._gate._authenticator._realm, "two"),
    "software": (None, "natkit", lambda t: t._server._core._software, b"natkit"),
    "fingerprint": (None, True, config("fingerprint"), True),
    "alternate_servers": ([], ["192.0.2.1"], config("alternates"), (Address("192.0.2.1", 3478),)),
    "partial": (False, True, lambda t: t.settings.partial, True),
    "dataplane": ("sockets", "auto", lambda t: t.forwarding.why, NO_KERNEL),
    "idle": (60, 30, config("idle"), 30 * SECOND),
    "listen.url": (
        listen(f"udp://127.0.0.1:{PORT}"),
        listen(f"tcp://127.0.0.2:{PORT}"),
        lambda t: [*t.serving],
        [("tcp", Address("127.0.0.2", PORT))],
    ),
    "listen.proxy": (
        listen(f"tcp://127.0.0.1:{PORT}", proxy="192.0.2.0/24"),
        listen(f"tcp://127.0.0.1:{PORT}", proxy="198.51.100.0/24"),
        lambda t: "198.51.100.7" in t._driver._sockets.streams._proxies[PORT],
        True,
    ),
    "listen.advertise": (
        listen(f"udp://127.0.0.1:{PORT}"),
        listen(f"udp://127.0.0.1:{PORT}", advertise="203.0.113.9"),
        lambda t: t.uris(),
        [f"turn:203.0.113.9:{PORT}?transport=udp"],
    ),
    "relay.addresses": (
        ["127.0.0.1"],
        ["127.0.0.2=203.0.113.2"],
        lambda t: [(r.local, r.advertised) for r in t._server.config.relays],
        [("127.0.0.2", "203.0.113.2")],
    ),
    "relay.ports": (
        "49152-65535",
        "50000-50999",
        lambda t: (t._server._core.ports.low, t._server._core.ports.high),
        (50000, 50999),
    ),
    "relay.tcp": (True, False, config("tcp_relay"), False),
    "relay.mobility": (True, False, config("mobility"), False),
    "relay.default_lifetime": (600, 700, config("default_lifetime"), 700 * SECOND),
    "relay.max_lifetime": (3600, 1800, config("max_lifetime"), 1800 * SECOND),
    "auth.users": ({"ann": "x"}, {"bob": "x"}, knows("bob"), True),
    "auth.secrets": (["a"], ["b"], lambda t: t.credentials("", 9).password, None),
    "auth.store": ("sqlite:///{}/1.db", "sqlite:///{}/2.db", lambda t: t._parts.users, None),
    "auth.anonymous": (False, True, lambda t: t._server._gate._authenticator._cookie, None),
    "auth.sha256": (True, False, lambda t: t._server._gate._authenticator._offered, ()),
    "auth.nonce_secret": ("a" * 16, "b" * 16, lambda t: t.nonces.secrets[0], b"b" * 16),
    "auth.nonce_lifetime": (3600, 60, lambda t: t.nonces.lifetime, 60),
    "auth.oauth.server_name": (oauth(), oauth(server_name="there"), tokens, None),
    "auth.oauth.keys.kid": (oauth(), oauth(kid="other"), tokens, None),
    "auth.oauth.keys.key": (oauth(), oauth(key=OTHER_KEY), tokens, None),
    "auth.oauth.keys.algorithm": (
        oauth(),
        oauth(algorithm="A128GCM", key=KEY[:22] + "=="),
        tokens,
        None,
    ),
    "auth.oauth.keys.timestamp": (oauth(), oauth(timestamp=5, lifetime=9), tokens, None),
    "auth.oauth.keys.lifetime": (oauth(), oauth(timestamp=5, lifetime=9), tokens, None),
    "peers.allow": ([], ["10.0.0.0/8"], denied("10.0.0.1"), False),
    "peers.deny": ([], ["8.8.8.0/24"], denied("8.8.8.8"), True),
    "peers.nat64": ([], ["2a00:64::/96"], denied("2a00:64::a00:1"), True),
    "metrics.listen": (None, f"127.0.0.1:{PORT}", lambda t: "metrics" in _open(t), True),
    "log.format": ("text", "json", lambda t: t._journal, None),
    "log.level": ("error", "warning", lambda t: t._log, None),
    "admin.socket": (False, "{}/turnd.sock", lambda t: "admin" in _open(t), True),
    "discovery.alternates": ([], ["127.0.0.2"], config("discovery"), None),
    "discovery.port": (
        {"alternates": "127.0.0.2", "port": PORT + 1},
        {"alternates": "127.0.0.2", "port": PORT + 2},
        lambda t: ("udp", Address("127.0.0.2", PORT + 2)) in t.serving,
        True,
    ),
    "rendezvous.listen": (
        {"listen": [f"ws://127.0.0.1:{PORT}"]},
        {"listen": [f"ws://127.0.0.2:{PORT}", f"ws://127.0.0.1:{PORT}"]},
        lambda t: rendezvous(t).status()["serving"],
        [f"127.0.0.1:{PORT}", f"127.0.0.2:{PORT}"],
    ),
    "rendezvous.proxies": (
        {"listen": f"ws://127.0.0.1:{PORT}"},
        {"listen": f"ws://127.0.0.1:{PORT}", "proxies": "10.0.0.0/8"},
        lambda t: "10.0.0.1" in rendezvous(t).server.machine.proxies,
        True,
    ),
    "tls.certificate": ({"certificate": "1.pem"}, {"certificate": "2.pem"}, served, None),
    "tls.key": (
        {"certificate": "1.pem"},
        {"certificate": "1.pem", "key": "1.key"},
        lambda t: served(t).key.name,
        "1.key",
    ),
    "tls.password": (
        {"certificate": "1.pem"},
        {"certificate": "1.pem", "key": "1.locked", "password": "sesame"},
        lambda t: served(t).key.name,
        "1.locked",
    ),
    "tls.minimum": (
        {"certificate": "1.pem"},
        {"certificate": "1.pem", "minimum": "1.3"},
        lambda t: served(t).streams.minimum_version,
        ssl.TLSVersion.TLSv1_3,
    ),
    "tls.detect": (
        {"certificate": "1.pem", "detect": False},
        {"certificate": "1.pem", "detect": True},
        lambda t: [at.detect for at in t._server.config.listeners],
        [True],
    ),
} | {f"limits.{name}": (7, 9, limit(name), 9) for name in allowed_keys(("limits",))}
TABLES = {
    "listen.": "listen",
    "auth.oauth.": "auth.oauth",
    "tls.": "tls",
    "rendezvous.": "rendezvous",
}


def _open(turnd: Turnd) -> set[str]:
    return {name for name, part in turnd._parts._open.items() if part.key is not None}


def leaves(path: tuple[str, ...] = ()) -> Iterator[str]:
    for key in allowed_keys(path):
        inner = (*path, key)
        yield from leaves(inner) if allowed_keys(inner) else [".".join(inner)]


def test_every_key_is_here() -> None:
    # Sockets that share a port are picked by their number: another one would move every client.
    assert sorted([*LIVE, "workers"]) == sorted(leaves())


def placed(value: Any, place: Path) -> Any:
    """Return a value with the files in it."""
    match value:
        case str():
            return value.format(place) if "{}" in value else value
        case {"certificate": _}:
            files = {k: f"{place}/{v}" for k, v in value.items() if k in ("certificate", "key")}
            return value | files
        case _:
            return value


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in "12":
        issued = issue([f"{name}.example"])
        (tmp_path / f"{name}.pem").write_bytes(issued.certificate_pem() + issued.key_pem())
        (tmp_path / f"{name}.key").write_bytes(issued.key_pem())
        (tmp_path / f"{name}.locked").write_bytes(issued.key_pem("sesame"))
        open_table(f"sqlite:///{tmp_path}/{name}.db", "natkit").close()
    return tmp_path


@pytest.mark.parametrize("key", LIVE)
async def test_it_is_taken_while_turnd_runs(
    key: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "why_not", lambda: NO_KERNEL)
    first, then, seen, expected = LIVE[key]
    at = next((table for start, table in TABLES.items() if key.startswith(start)), key)
    if key == "discovery.port":
        at = "discovery"
    value = first

    def settings() -> Any:
        flags = Flags()
        tables = {
            "relay.addresses": ["127.0.0.1"],
            "dataplane": "sockets",
            "listen": listen(f"udp://127.0.0.1:{PORT}"),
            "auth.users": {"ann": "secret"},
            "admin.socket": False,
            "log.level": "error",
        }
        for name, one in (tables | {at: placed(value, place)}).items():
            if one is not None:
                flags.set(tuple(name.split(".")), one, f"--{name}")
        return load(None, flags)

    ready = asyncio.Event()

    def on_ready(_: Turnd) -> bool:
        ready.set()
        return True

    turnd = Turnd(settings, on_ready=on_ready, lister=lambda: HOSTS)
    life = asyncio.ensure_future(turnd.run())
    waiting = asyncio.ensure_future(ready.wait())
    await asyncio.wait((life, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        assert ready.is_set(), life.exception()
        before = seen(turnd)
        value = then
        changed = await turnd.reload()
        after = seen(turnd)
        assert after != before
        assert expected is None or after == expected
        # What is only asked for at the start says nothing; a key that is the same has no news.
        assert changed or key in {"partial", "tls.key", "tls.password"}
        assert await turnd.reload() == []
    finally:
        turnd.stop()
        await life


async def test_secrets_in_files_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("one\n")
    configuration = tmp_path / "turnd.toml"
    configuration.write_text(
        'relay.addresses = "127.0.0.1"\nauth.secrets = { file = "secret" }\n'
        f'listen = [{{ url = "udp://127.0.0.1:{PORT}" }}]\nadmin.socket = "turnd.sock"\n'
        'dataplane = "sockets"\nlog.level = "error"\n'
    )
    ready = asyncio.Event()

    def on_ready(_: Turnd) -> bool:
        ready.set()
        return True

    turnd = Turnd(lambda: load(configuration), on_ready=on_ready, lister=lambda: HOSTS)
    life = asyncio.ensure_future(turnd.run())
    await ready.wait()
    file.write_text("two\n")
    answer = await asyncio.to_thread(ask, tmp_path / "turnd.sock", "reload")
    assert any("users replaced" in line for line in answer["changed"])
    turnd.stop()
    await life
