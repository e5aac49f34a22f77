"""turnd's configuration: what is read, and what is said about what is wrong."""

from __future__ import annotations

import re
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stun.discovery import Transport
from stun.sansio import Address
from stun.users import StoredKeys
from turn.daemon import settings_values as values
from turn.daemon.config import ConfigError, Flags, effective, load
from turn.daemon.settings import Settings, allowed_keys
from turn.daemon.settings_values import Hidden, ListenUrl, Relay
from turn.server.config import Limits


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """``read(text, flags)`` loads a configuration with this text."""

    def read(text: str, flags: Flags | None = None, **environment: str) -> Settings:
        path = tmp_path / "turnd.toml"
        path.write_text(textwrap.dedent(text))
        return load(path, flags, environment)

    return read


@pytest.fixture
def problems(read: Any, tmp_path: Path) -> Any:
    """``problems(text, flags)`` are the lines about a configuration that is wrong."""

    def problems(text: str, flags: Flags | None = None, **environment: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(text, flags, **environment)
        return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]

    return problems


def flags(*given: tuple[str, Any, str], users: tuple[str, ...] = ()) -> Flags:
    made = Flags(users=list(users))
    for path, value, flag in given:
        made.set(tuple(path.split(".")), value, flag)
    return made


WHOLE = """
    realm = "example.org"
    software = "turnd"
    alternate_servers = ["192.0.2.9", "[2001:db8::9]:5000"]

    [[listen]]
    url = "udp://0.0.0.0"
    advertise = "203.0.113.5"
    [[listen]]
    url = "tcp://[::]:80?proxy=10.0.0.0/8"
    proxy = "192.168.0.0/16"

    [relay]
    addresses = ["10.0.0.5=203.0.113.5", "2001:DB8::5"]
    ports = "50000-60000"
    mobility = false

    [auth]
    secrets = ["first", { file = "secret" }, { env = "SECRET" }]
    store = "sqlite:///users.db"
    [auth.users]
    alice = "wonder"
    "bob@example.org" = { md5 = "000102030405060708090a0b0c0d0e0f" }
    carol = { file = "secret" }

    [peers]
    allow = ["10.0.0.0/8"]
    deny = "198.41.0.4"

    [limits]
    allocations_per_user = 5

    [metrics]
    listen = "[::1]:9641"

    [log]
    format = "json"
    level = "debug"

    [admin]
    socket = "run/admin.sock"
"""


def test_a_whole_configuration(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("from a file\nand no more\n")
    monkeypatch.setenv("SECRET", "from outside")
    settings = read(WHOLE)
    assert settings.realm == "example.org"
    assert settings.alternate_servers == (Address("192.0.2.9", 3478), Address("2001:db8::9", 5000))
    assert [listen.place for listen in settings.listen] == [
        ListenUrl(Transport.UDP, "0.0.0.0", 3478, (), "203.0.113.5"),
        ListenUrl(Transport.TCP, "::", 80, ("10.0.0.0/8", "192.168.0.0/16")),
    ]
    assert settings.relay.addresses == (
        Relay("10.0.0.5", "203.0.113.5"),
        Relay("2001:db8::5", "2001:db8::5"),
    )
    assert settings.relay.ports == (50000, 60000)
    assert not settings.relay.mobility
    assert [secret.text for secret in settings.auth.secrets] == [
        "first",
        "from a file",
        "from outside",
    ]
    assert settings.auth.users["bob@example.org"] == StoredKeys(bytes(range(16)))
    assert settings.auth.users["carol"] == Hidden("from a file", "from secret")
    assert settings.peers.allow == ("10.0.0.0/8",)
    assert settings.peers.deny == ("198.41.0.4/32",)
    assert settings.make_limits() == Limits(allocations_per_user=5)
    assert settings.metrics.listen == Address("::1", 9641)
    assert (settings.log.format, settings.log.level) == ("json", "debug")
    assert settings.admin.socket == tmp_path / "run" / "admin.sock"


def test_nothing_is_a_configuration() -> None:
    settings = load()
    assert settings == Settings()
    assert not settings.auth.anybody
    assert settings.make_limits() == Limits()


def test_flags_override_the_file(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given_flags = flags(
        ("listen", [{"url": "udp://127.0.0.1"}], "--listen"),
        ("limits.allocations", 7, "--max-allocations"),
        users=("dora:pass:word",),
    )
    text = """
        realm = "kept"
        [[listen]]
        url = "tcp://127.0.0.1"
        [[listen]]
        url = "tcp://127.0.0.2"
        [limits]
        allocations = 5
        connections = 6
        [auth]
        users = { alice = "x" }
        secrets = ["s"]
    """
    settings = read(text, given_flags)
    assert settings.realm == "kept"
    assert [listen.place.host for listen in settings.listen] == ["127.0.0.1"]
    assert settings.make_limits() == Limits(allocations=7, connections=6)
    assert settings.auth.users == {"dora": Hidden("pass:word")}
    assert len(settings.auth.secrets) == 1


def test_the_password_of_a_user_flag_may_be_elsewhere(read: Any) -> None:
    file = '[auth]\nusers = { alice = "in the file" }\n'
    assert read(file, flags(users=("alice",))).auth.users["alice"].text == "in the file"
    settings = read(file, flags(users=("alice",)), TURND_PASSWORD="outside")
    assert settings.auth.users["alice"].text == "outside"
    with pytest.raises(ConfigError, match=r"--user bob: there is no password.*TURND_PASSWORD"):
        read(file, flags(users=("bob",)))
    with pytest.raises(ConfigError, match="--user ':x': write NAME:PASSWORD"):
        read(file, flags(users=(":x",)))


# What is wrong. -----------------------------------------------------------------------------------


def test_every_error_has_its_line_and_they_are_told_in_order(problems: Any) -> None:
    told = problems("""\
        relm = "x"
        [[listen]]
        url = "udp://0.0.0.0"
        [[listen]]
        url = "upd://0.0.0.0"
        [relay]
        adresses = []
        ports = "60000-50000"
        [limits]
        allocations = "many"
        [log]
        format = "jsn"
    """)
    assert told == [
        "turnd.toml, line 1: the configuration has no key 'relm'; did you mean 'realm'?; "
        "allowed: " + ", ".join(sorted(Settings.model_fields)),
        "turnd.toml, line 5: listen[1].url: 'upd' in 'upd://0.0.0.0' is no transport; there are "
        "udp, tcp, tls and dtls",
        "turnd.toml, line 7: [relay] has no key 'adresses'; did you mean 'addresses'?; allowed: "
        "addresses, default_lifetime, max_lifetime, mobility, ports, tcp",
        "turnd.toml, line 8: relay.ports: '60000-50000' is not a range of ports; write LO-HI, as "
        '"49152-65535", both from 1 to 65535, the lower one first',
        'turnd.toml, line 10: limits.allocations: "many" is wrong: it must be a whole number',
        'turnd.toml, line 12: log.format: "jsn" is wrong: allowed: text or json; did you mean '
        "'json'?",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("realm = 5", "line 1: realm: 5 is wrong: it must be a text"),
        ('realm = ""', 'line 1: realm: "" is wrong: it must not be empty'),
        ("idle = 0", "line 1: idle: 0 is wrong: it must be 1 or more"),
        ("idle = 1.5", "line 1: idle: 1.5 is wrong: it must be a whole number"),
        ("idle = true", "line 1: idle: true is wrong: it must be a whole number"),
        ("partial = 1", "line 1: partial: 1 is wrong: it must be true or false"),
        ("relay = 5", "line 1: relay: 5 is wrong: it must be a table, [relay]"),
        (
            "listen = {}",
            "line 1: listen: a table is wrong: it must be a list of tables: write [[listen]]",
        ),
        ("[[listen]]", "line 1: [[listen]] needs url"),
        ("[tls]", "line 1: [tls] needs certificate"),
        (
            '[relay]\naddresses = ["10.0.0.5=2001:db8::1"]',
            "line 2: relay.addresses[0]: '10.0.0.5=2001:db8::1': both addresses must be of one "
            "family, IPv4 or IPv6",
        ),
        (
            '[relay]\naddresses = ["0.0.0.0"]',
            "line 2: relay.addresses[0]: '0.0.0.0': peers need one address to send to, not every "
            "one",
        ),
        (
            "[relay]\nmax_lifetime = 300",
            "line 1: relay: default_lifetime (600) must not be more than max_lifetime (300)",
        ),
        (
            '[peers]\nallow = ["10.0.0.1/8"]',
            "line 2: peers.allow[0]: '10.0.0.1/8' has bits set behind its prefix: the network is "
            "10.0.0.0/8, the single address 10.0.0.1",
        ),
        (
            "[auth]\nusers = { al = 5 }",
            'line 2: auth.users.al: a secret is a text, {file = "PATH"} or {env = "NAME"}',
        ),
        (
            '[auth.users]\nal = { md5 = "00" }',
            "line 2: auth.users.al: md5 must be 32 hexadecimal digits",
        ),
        (
            '[auth.users]\nal = { md6 = "00" }',
            'line 2: auth.users.al: a user has a password, {file = "PATH"}, {env = "NAME"}, or '
            'keys {md5 = "HEX", sha256 = "HEX"} (the digest of USERNAME:REALM:PASSWORD)',
        ),
        ('[auth]\nsecrets = [\n"x",\n""]', "line 4: auth.secrets[1]: a secret is empty"),
        (
            '[auth]\nsecrets = [{ env = "NO_SUCH_VARIABLE" }]',
            "line 2: auth.secrets[0]: the environment has no variable NO_SUCH_VARIABLE",
        ),
        (
            '[auth]\nnonce_secret = "short"',
            "line 2: auth.nonce_secret: the secret of nonces must have 16 octets at least",
        ),
        (
            '[metrics]\nlisten = "127.0.0.1"',
            "line 2: metrics.listen: '127.0.0.1' has no port; write ADDRESS:PORT, as "
            "127.0.0.1:9641",
        ),
        (
            '[log]\nlevel = "warn"',
            'line 2: log.level: "warn" is wrong: allowed: debug, info, warning or error; did you '
            "mean 'warning'?",
        ),
        (
            '[auth.oauth]\nserver_name = "x"\nkeys = [{ kid = "k", key = "AAAA" }]',
            "line 3: auth.oauth.keys[0]: the key 'k' has 3 octets: A256GCM needs 32",
        ),
        ('a = "b"\na = "c"', "end of document: Cannot overwrite a value"),
        ("a = ", "end of document: Invalid value"),
    ],
)
def test_what_is_said(problems: Any, text: str, told: str) -> None:
    assert problems(text) == [f"turnd.toml, {told}"]


def test_the_database_is_named_by_a_url(problems: Any) -> None:
    (told,) = problems('[auth]\nstore = "mysql://me:secret@host/x"')
    assert told.startswith("turnd.toml, line 2: auth.store: ")
    assert "names no users' database" in told
    assert "secret" not in told


def test_tls_needs_a_certificate(problems: Any) -> None:
    (told,) = problems('[[listen]]\nurl = "tls://0.0.0.0"')
    assert "tls://0.0.0.0:5349 needs a certificate: --cert PEM" in told


def test_a_wrong_flag_is_named(problems: Any) -> None:
    told = problems(
        "[limits]\nallocations = 5\nconnections = -1",
        flags(
            ("listen", [{"url": "udp://[::1]"}, {"url": "udp://::1"}], "--listen"),
            ("limits.allocations", -1, "--max-allocations"),
            ("relay.ports", "5", "--relay-ports"),
        ),
    )
    assert told == [
        "--listen: 'udp://::1': an IPv6 address is written in brackets, as [::1]:3478",
        "--relay-ports: '5' is not a range of ports; write LO-HI, as \"49152-65535\", both from 1 "
        "to 65535, the lower one first",
        "--max-allocations: -1 is wrong: it must be 0 or more",
        "turnd.toml, line 3: limits.connections: -1 is wrong: it must be 0 or more",
    ]


def test_no_secret_is_told(problems: Any) -> None:
    text = """
        [auth]
        users = { al = ["hunter2"], bo = { md5 = "hunter2" } }
        secrets = [["hunter2"]]
        nonce_secret = "hunter2"
    """
    told = problems(text)
    assert len(told) == 4
    assert "hunter2" not in "".join(told)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.toml cannot be read: No such file"):
        load(tmp_path / "nope.toml")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"a = 1\nrealm = 'caf\xe9'\n")
    with pytest.raises(ConfigError, match=r"latin\.toml, line 2: a TOML file is UTF-8"):
        load(latin)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_secrets_in_files_that_cannot_be_read(problems: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "octets").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text("\n")
    for name, why in (
        ("nope", "cannot be read: No such file"),
        ("folder", "cannot be read: Is a directory"),
        ("octets", "is not UTF-8"),
        ("empty", "a secret is empty (from empty)"),
    ):
        (told,) = problems(f'[auth]\nsecrets = [{{ file = "{name}" }}]')
        assert why in told


@given(st.text(max_size=60))
def test_any_text_is_a_configuration_or_an_error(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        load(path, environment={})
    except ConfigError:
        return


# Values. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("udp://192.0.2.1", ListenUrl(Transport.UDP, "192.0.2.1", 3478)),
        ("TCP://192.0.2.1:80/", ListenUrl(Transport.TCP, "192.0.2.1", 80)),
        ("tls://[2001:DB8::1]", ListenUrl(Transport.TLS, "2001:db8::1", 5349)),
        ("dtls://[::]:443", ListenUrl(Transport.DTLS, "::", 443)),
        ("udp://*:5000", ListenUrl(Transport.UDP, "*", 5000)),
        ("udp://[fe80::1%eth0]", ListenUrl(Transport.UDP, "fe80::1%eth0", 3478)),
        (
            "tcp://0.0.0.0?proxy=10.0.0.0/8,::1&advertise=203.0.113.5",
            ListenUrl(Transport.TCP, "0.0.0.0", 3478, ("10.0.0.0/8", "::1/128"), "203.0.113.5"),
        ),
    ],
)
def test_places_to_listen(text: str, url: ListenUrl) -> None:
    assert values.listen_url(text) == url
    assert values.listen_url(str(url)) == url


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("udp:192.0.2.1", "is not a place to listen"),
        ("192.0.2.1:3478", "is not a place to listen"),
        ("udp://", "the address is missing"),
        ("udp://:3478", "the address is missing"),
        ("udp://example.org", "names are not looked up"),
        ("udp://[192.0.2.1]", "only an IPv6 address is written in brackets"),
        ("udp://1.2.3.4:0", "ports are 1 to 65535"),
        ("udp://1.2.3.4:99999", "ports are 1 to 65535"),
        ("udp://1.2.3.4?proxy=10.0.0.0/8", "for tcp and tls only"),
        ("tcp://1.2.3.4?proxy=10", "is not a network"),
        ("tcp://1.2.3.4?prox=10.0.0.0/8", "'prox' in"),
        (5, "is not a text"),
    ],
)
def test_what_is_no_place_to_listen(text: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        values.listen_url(text)


@pytest.mark.parametrize(
    "value", ["x", "5-", "0-10", "10-5", "5-5", "1-65536", [1], [True], 5, None, ["1", "2"]]
)
def test_what_is_no_range_of_ports(value: Any) -> None:
    with pytest.raises(ValueError, match="range"):
        values.port_range(value)


def test_ranges_of_ports() -> None:
    assert values.port_range(" 49152 - 65535 ") == (49152, 65535)
    assert values.port_range([1024, 1025]) == (1024, 1025)


@pytest.mark.parametrize("value", [True, 1.0, "x", None, 0, 65536, -1])
def test_what_is_no_port(value: Any) -> None:
    with pytest.raises(ValueError, match="ports are 1 to 65535"):
        values.port_number(value)


# Showing it. --------------------------------------------------------------------------------------


def test_the_effective_configuration_can_be_read_again_and_tells_no_secret(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hunter2")
    monkeypatch.setenv("SECRET", "hunter2")
    settings = read(WHOLE.replace('"wonder"', '"hunter2"').replace('"first"', '"hunter2"'))
    shown = effective(settings)
    assert "hunter2" not in shown
    assert "00010203" not in shown
    again = read(shown.replace('"(hidden keys)"', '{ md5 = "000102030405060708090a0b0c0d0e0f" }'))
    for name in set(Settings.model_fields) - {"auth", "listen"}:
        assert getattr(again, name) == getattr(settings, name)
    assert [one.place for one in again.listen] == [one.place for one in settings.listen]
    assert set(again.auth.users) == set(settings.auth.users)


def test_the_effective_configuration_of_nothing() -> None:
    shown = effective(load())
    assert 'realm = "natkit"' in shown
    assert "allocations_per_user = 200" in shown


DOCUMENT = Path(__file__).parents[3] / "docs" / "turnd.md"


def test_the_example_of_the_document_is_a_configuration(read: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("north")
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    settings = read(example)
    assert len(settings.listen) == 3
    assert settings.auth.secrets[0].text == "north"


def test_the_document_has_every_key_and_every_limit() -> None:
    text = DOCUMENT.read_text()
    for path in ((), *((name,) for name in Settings.model_fields)):
        for key in allowed_keys(path):
            assert key in text, (*path, key)
    for field in fields(Limits):
        assert f"`{field.name}` | {field.default} |" in text


def test_keys_that_tables_may_have() -> None:
    assert allowed_keys(("listen", 3)) == ["advertise", "proxy", "url"]
    assert "allocations" in allowed_keys(("limits",))
    assert allowed_keys(("auth", "oauth", "keys", 0))[0] == "algorithm"
    assert allowed_keys(("auth", "users")) == []
