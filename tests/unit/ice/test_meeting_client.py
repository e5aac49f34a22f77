"""Reaching a rendezvous, or being told why not and what to do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.server import serve

from ice.rendezvous import client as client_module
from ice.rendezvous.client import Client, proxy_for
from ice.rendezvous.errors import Refused, RendezvousLost, RendezvousUnreachable
from ice.rendezvous.protocol import Error, Gone, Join, Joined, TimeAnswer, Welcome
from stun.errors import UsageError
from stun.sansio import Address
from tools.certificate import DAY, issue
from tools.meetingdesk import Desk

GREETING = Welcome(Address("192.0.2.1", 1), 1.7e9)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all", "http", "https", "ws", "wss", "socks", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@contextlib.asynccontextmanager
async def tcp_server(answer: bytes | None, **options: object):
    """A server that reads a little, says ``answer`` (None: nothing), and closes unless silent."""

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await reader.read(4096)
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(on_client, "127.0.0.1", 0, **options)
    async with server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def saying(*texts: str | bytes, stay: bool = True):
    """A WebSocket server that says ``texts`` whatever it is told."""

    async def on_client(web) -> None:
        for text in texts:
            await web.send(text)
        if stay:
            await web.wait_closed()

    async with serve(on_client, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def why(url: str, **options) -> str:
    with pytest.raises(RendezvousUnreachable) as caught:
        await Client.connect(url, **options)
    text = str(caught.value)
    assert url.rpartition("@")[2].removeprefix("ws://").removeprefix("wss://") in text
    assert text.isprintable()
    return text


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def trusting(authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate_pem().decode())


def server_context(tmp_path, issued) -> ssl.SSLContext:
    (tmp_path / "both.pem").write_bytes(issued.certificate_pem() + issued.key_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    return context


# What is reached. ---------------------------------------------------------------------------------


async def test_a_conversation() -> None:
    async with Desk(ahead=-3600).open() as desk:
        client = await Client.connect(desk.url)
        assert client.url == desk.url
        assert client.welcome.observed.host == "127.0.0.1"
        await client.measure_clock()
        await client.send(Join("alice", b"hello"))
        assert await client.receive() == Joined("alice", 3600.0)
        await client.close()
        await client.close()
        with pytest.raises(RendezvousLost, match=r"closed|gone"):
            await client.receive()
        with pytest.raises(RendezvousLost):
            await client.send(Join("alice", b"hello"))


async def test_over_tls(tmp_path) -> None:
    authority = issue(["authority"], authority=True)
    context = server_context(tmp_path, issue(["localhost"], issuer=authority))

    async def on_client(web) -> None:
        await web.send(GREETING.encode())
        await web.wait_closed()

    async with serve(on_client, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        client = await Client.connect(f"wss://localhost:{port}", ssl=trusting(authority))
        assert client.welcome == GREETING
        await client.close()

        text = await why(f"wss://localhost:{port}")
        assert "cannot be trusted: its certificate is not good" in text
        text = await why(f"wss://127.0.0.1:{port}", ssl=trusting(authority))
        assert "mismatch" in text
        # Nobody speaks in the clear to what wants TLS.
        text = await why(f"ws://localhost:{port}")
        assert "no WebSocket" in text
        assert "whether it is wss:// there" in text


async def test_an_expired_certificate(tmp_path) -> None:
    authority = issue(["authority"], authority=True, begins=-9 * DAY)
    old = issue(["localhost"], issuer=authority, begins=-9 * DAY, ends=-DAY)
    async with tcp_server(b"", ssl=server_context(tmp_path, old)) as port:
        assert "expired" in await why(f"wss://localhost:{port}", ssl=trusting(authority))


# What is not. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_nothing_listens(host: str) -> None:
    text = await why(f"ws://{host}:{unused_port()}")
    assert text.startswith("nothing listens at ws://")
    assert "start rendezvousd there" in text
    assert "8080" in text


async def test_a_name_without_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    text = await why("ws://rendezvous.invalid:8080")
    assert "the name rendezvous.invalid has no address (Name or service not known)" in text


async def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", refuse)
    assert "this machine may have no network" in await why("ws://192.0.2.1:8080")


async def test_no_tls_there() -> None:
    async with tcp_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        text = await why(f"wss://127.0.0.1:{port}")
        assert "what answers there does not speak it" in text
        assert f"it is at ws://127.0.0.1:{port}" in text
    async with Desk().open() as desk:
        assert "whether it is ws:// there" in await why(desk.url.replace("ws:", "wss:"))


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"\0" * 99])
async def test_no_http_there(answer: bytes) -> None:
    async with tcp_server(answer) as port:
        assert "is no WebSocket; check the port" in await why(f"ws://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("status", "said"), [(200, "200"), (401, "USER:PASSWORD"), (404, "path"), (503, "503; the")]
)
async def test_an_http_server_of_another_kind(status: int, said: str) -> None:
    answer = f"HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n".encode()
    async with tcp_server(answer) as port:
        text = await why(f"ws://127.0.0.1:{port}")
    assert f"no rendezvous: HTTP status {status}" in text
    assert said in text


async def test_a_redirect_from_tls_to_none(tmp_path) -> None:
    authority = issue(["authority"], authority=True)
    context = server_context(tmp_path, issue(["localhost"], issuer=authority))
    answer = b"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
    async with tcp_server(answer, ssl=context) as port:
        text = await why(f"wss://localhost:{port}", ssl=trusting(authority))
    assert "sends elsewhere than may be followed" in text


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["hello"], "a WebSocket, but no rendezvous: a message that is not JSON"),
        ([b"\xff\xfe"], "no rendezvous"),
        (['{"type":"hi"}'], "a WebSocket, but no rendezvous: it does not greet"),
        ([Joined("7", 1).encode()], "it does not greet"),
        ([GREETING.encode().replace('"v":1', '"v":2')], "version 2 of the protocol"),
        (["x" * 300_000], "no rendezvous"),
        ([], "no rendezvous"),
    ],
)
async def test_a_websocket_of_another_kind(texts: list[str], said: str) -> None:
    async with saying(*texts, stay=False) as url:
        assert said in await why(url)


async def test_a_server_that_refuses_at_once() -> None:
    async with saying(Error("too-many", "too many of \x1b[31myou").encode()) as url:
        with pytest.raises(Refused, match=r"too many of \?\[31myou") as caught:
            await Client.connect(url)
        assert caught.value.code == "too-many"


@pytest.mark.parametrize("where", ["before HTTP", "before the welcome"])
async def test_a_server_that_is_silent(where: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if where == "before HTTP":
            url = f"ws://127.0.0.1:{await stack.enter_async_context(tcp_server(None))}"
        else:
            url = await stack.enter_async_context(saying())
        assert "does not answer within 0.2 s" in await why(url, timeout=0.2)


@pytest.mark.parametrize(
    "url",
    ["", "example.org", "http://example.org", "ws://", "ws://a:b:c", "ws://h:99999", "ws://h#f"],
)
async def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UsageError, match="ws://HOST:PORT or, with TLS, wss://HOST:PORT"):
        await Client.connect(url)


async def test_a_password_in_the_url_is_not_shown() -> None:
    text = await why(f"ws://user:hush@127.0.0.1:{unused_port()}")
    assert "hush" not in text


# What the server does afterwards. -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("nonsense", "does not keep to its protocol: a message that is not JSON"),
        (GREETING.encode(), "it greets twice"),
        ('{"type":"peer","hello":"!"}', "does not keep to its protocol: hello"),
        ("x" * 300_000, "does not keep to the WebSocket protocol .1009"),
        (b"\0", "does not keep to its protocol"),
    ],
)
async def test_a_server_that_breaks_its_protocol(after: str | bytes, said: str) -> None:
    async with saying(GREETING.encode(), after) as url:
        client = await Client.connect(url)
        with pytest.raises(RendezvousLost, match=said):
            await client.receive()
        await client.close()


async def test_what_is_not_known_is_passed_over() -> None:
    texts = ['{"type":"news"}', TimeAnswer(9, 9).encode(), '{"type":"gone","reason":"left","x":1}']
    async with saying(GREETING.encode(), *texts) as url:
        client = await Client.connect(url)
        assert await client.receive() == Gone("left")
        await client.close()


async def test_a_server_that_closes_says_why() -> None:
    async def on_client(web) -> None:
        await web.send(GREETING.encode())
        await web.close(1001, "back in a\tminute")

    async with serve(on_client, "127.0.0.1", 0) as server:
        client = await Client.connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(RendezvousLost, match=r"closed .* \(1001: back in a\?minute\)"):
            await client.receive()
        await client.close()


async def test_a_connection_that_breaks() -> None:
    async def on_client(web) -> None:
        await web.send(GREETING.encode())
        web.transport.abort()

    async with serve(on_client, "127.0.0.1", 0) as server:
        client = await Client.connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(RendezvousLost, match="is gone: the connection broke"):
            await client.receive()
        await client.close()


async def test_a_server_that_does_not_answer_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PING", 0.05)

    async def on_client(web) -> None:
        await web.send(GREETING.encode())
        web.transport.pause_reading()
        await web.wait_closed()

    async with serve(on_client, "127.0.0.1", 0, close_timeout=0.1) as server:
        client = await Client.connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(RendezvousLost, match="does not answer any more"):
            await client.receive()
        await client.close()
        for web in server.connections:
            web.transport.abort()


# Proxies. -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def http_proxy(target: int, answer: bytes = b"HTTP/1.1 200 Go ahead\r\n\r\n"):
    """A proxy that leads every CONNECT to a port of this host; its own port, and the requests."""
    requests: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while octets := await reader.read(4096):
                writer.write(octets)
            writer.close()

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        if b" 200 " in answer:
            there, back = await asyncio.open_connection("127.0.0.1", target)
            await asyncio.gather(pump(reader, back), pump(there, writer))
            back.close()
        writer.close()

    server = await asyncio.start_server(on_client, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], requests


@pytest.mark.parametrize(
    "variable", ["https_proxy", "HTTPS_PROXY", "http_proxy", "ws_proxy", "all_proxy"]
)
async def test_through_the_proxy_of_the_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Desk().open() as desk, http_proxy(int(desk.url.rpartition(":")[2])) as found:
        port, requests = found
        monkeypatch.setenv(variable, f"http://user:pass@127.0.0.1:{port}")
        client = await Client.connect("ws://rendezvous.invalid:8080")
        await client.send(Join("alice", b""))
        assert isinstance(await client.receive(), Joined)
        await client.close()
        assert requests[0].startswith(b"CONNECT rendezvous.invalid:8080 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic dXNlcjpwYXNz" in requests[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_no_proxy_for_this_host(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{unused_port()}")
    async with Desk().open() as desk:
        client = await Client.connect(desk.url.replace("127.0.0.1", host))
        await client.close()


async def test_the_exceptions_of_the_environment_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("no_proxy", "rendezvous.test")
    real = socket.getaddrinfo

    def known(host, *rest, **options):
        return real("127.0.0.1" if host == "rendezvous.test" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", known)
    async with Desk().open() as desk:
        client = await Client.connect(desk.url.replace("127.0.0.1", "rendezvous.test"))
        await client.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Who are you\r\n\r\n", "it answers with HTTP status 407"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "what answers there is no HTTP proxy"),
    ],
)
async def test_a_proxy_that_does_not(
    answer: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with http_proxy(0, answer) as (port, _):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        text = await why("ws://rendezvous.invalid")
    assert "through the proxy that the environment names" in text
    assert said in text


async def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    port = unused_port()
    monkeypatch.setenv("https_proxy", f"http://user:hush@127.0.0.1:{port}")
    text = await why("ws://rendezvous.invalid")
    assert "through the proxy that the environment names" in text
    assert f"http://127.0.0.1:{port}: nothing listens there" in text
    assert "hush" not in text


async def test_a_socks_proxy_without_the_package_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "python_socks", None)
    text = await why("ws://rendezvous.invalid")
    assert "python-socks must be installed" in text


async def test_a_proxy_of_no_known_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "gopher://127.0.0.1:9")
    assert "scheme gopher isn't supported" in await why("ws://rendezvous.invalid")


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("ws://h", {}, None),
        ("ws://h", {"http_proxy": "http://a"}, "http://a"),
        ("wss://h", {"http_proxy": "http://a"}, None),
        ("ws://h", {"http_proxy": "http://a", "https_proxy": "http://b"}, "http://b"),
        ("wss://h", {"https_proxy": "http://b", "socks_proxy": "http://c"}, "socks5h://c"),
        ("wss://h", {"wss_proxy": "http://w", "socks_proxy": "socks5://c"}, "http://w"),
        ("wss://h", {"all_proxy": "socks5://c"}, "socks5://c"),
        ("wss://h.example.org", {"all_proxy": "http://a", "no_proxy": "example.org"}, None),
        ("ws://h:81", {"all_proxy": "http://a", "no_proxy": "h:81"}, None),
        ("ws://h:82", {"all_proxy": "http://a", "no_proxy": "h:81"}, "http://a"),
        ("ws://[::1]:81", {"all_proxy": "http://a"}, None),
        ("ws://127.9.9.9", {"all_proxy": "http://a"}, None),
        ("ws://a.localhost", {"all_proxy": "http://a"}, None),
    ],
)
def test_which_proxy(
    url: str, environment: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(urlsplit(url)) == proxy
