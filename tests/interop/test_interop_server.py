"""Our server, asked by clients that others wrote: coturn, Vovida's (RFC 3489), aioice, pystun3."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stun.sansio import Address
from stun.server import ServerConfig


def output_of(*command: str, seconds: float = 60) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    return done.stdout + done.stderr


# coturn. ------------------------------------------------------------------------------------------


def test_coturn_stunclient(natkit_server: Any, require_peer: Callable[..., str]) -> None:
    client = require_peer("turnutils_stunclient", "coturn")
    text = output_of(client, "-p", str(natkit_server.port), "127.0.0.1")
    assert re.search(r"UDP reflexive addr: 127\.0\.0\.1:\d+", text), text


def test_coturn_stunclient_with_rfc_5780(
    natkit_server: Any, require_peer: Callable[..., str]
) -> None:
    client = require_peer("turnutils_stunclient", "coturn")
    primary, alternate = natkit_server.config.primary, natkit_server.config.alternate
    text = output_of(client, "-f", "-p", str(primary.port), "127.0.0.1")
    origins = re.findall(r"Response origin: : (\S+)", text)
    assert str(primary) in origins, text
    assert str(alternate) in origins, "no answer came from the other address"
    assert set(re.findall(r"Other addr: : (\S+)", text)) == {str(alternate)}


@pytest.mark.parametrize("padding", [False, True], ids=["plain", "padded"])
def test_coturn_natdiscovery_finds_no_nat(
    natkit_server: Any, require_peer: Callable[..., str], padding: bool
) -> None:
    client = require_peer("turnutils_natdiscovery", "coturn")
    port = str(natkit_server.port)
    options = ["-P"] if padding else []
    text = output_of(client, "-m", "-f", "-p", port, "-L", "127.0.0.1", *options, "127.0.0.1")
    # What it says of "no NAT" is "NAT with Endpoint Independent ..." (mapping and filtering).
    assert "Endpoint Independent Mapping" in text, text
    assert "Endpoint Independent Filtering" in text, text


def test_coturn_natdiscovery_hairpin(natkit_server: Any, require_peer: Callable[..., str]) -> None:
    client = require_peer("turnutils_natdiscovery", "coturn")
    text = output_of(client, "-H", "-p", str(natkit_server.port), "-L", "127.0.0.1", "127.0.0.1")
    assert re.search(r"UDP reflexive addr: 127\.0\.0\.1:\d+", text), text


def test_coturn_natdiscovery_lifetime_uses_response_port(
    natkit_server: Any, require_peer: Callable[..., str]
) -> None:
    client = require_peer("turnutils_natdiscovery", "coturn")
    port = str(natkit_server.port)
    text = output_of(client, "-t", "-T", "1", "-p", port, "-L", "127.0.0.1", "127.0.0.1")
    assert "UDP reflexive addr" in text, text
    assert "rror" not in text, text


def test_coturn_stunclient_with_one_address(
    lone_server: Any, require_peer: Callable[..., str]
) -> None:
    client = require_peer("turnutils_stunclient", "coturn")
    text = output_of(client, "-p", str(lone_server.port), "127.0.0.1")
    assert re.search(r"UDP reflexive addr: 127\.0\.0\.1:\d+", text), text
    assert "Other addr" not in text


# RFC 3489. ----------------------------------------------------------------------------------------


def test_the_vovida_client_sees_an_open_network(
    natkit_server: Any, require_peer: Callable[..., str]
) -> None:
    client = require_peer("stun", "stun-client")
    text = output_of(client, f"127.0.0.1:{natkit_server.port}")
    assert "Primary: Open" in text, text


@pytest.mark.parametrize(
    ("test", "other_host", "other_port"),
    [(1, False, False), (2, True, False), (3, False, True)],
)
def test_the_vovida_client_asks_for_each_change(
    natkit_server: Any,
    require_peer: Callable[..., str],
    test: int,
    other_host: bool,
    other_port: bool,
) -> None:
    client = require_peer("stun", "stun-client")
    primary, alternate = natkit_server.config.primary, natkit_server.config.alternate
    text = output_of(client, f"127.0.0.1:{primary.port}", str(test), "-v")
    assert "ok=1" in text, text
    origin = Address(
        (alternate if other_host else primary).host, (alternate if other_port else primary).port
    )
    assert f"SourceAddress = {origin}" in text, text
    assert f"ChangedAddress = {alternate}" in text, text


def _pystun3() -> ModuleType | None:
    """Load pystun3, whose package is called ``stun`` as ours is, under a name of its own."""
    path = Path(sys.prefix, "peers", "stun", "__init__.py")
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("pystun3", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pystun3_sees_an_open_network(natkit_server: Any, missing: Callable[..., Any]) -> None:
    pystun = _pystun3() or missing("pystun3", "make interop installs it apart from natkit's stun")
    kind, host, port = pystun.get_ip_info("127.0.0.1", 0, "127.0.0.1", natkit_server.port)
    assert (kind, host) == (pystun.OpenInternet, "127.0.0.1")
    assert port


# aioice. ------------------------------------------------------------------------------------------


def test_aioice_over_udp(natkit_server: Any, require_module: Callable[..., ModuleType]) -> None:
    require_module("aioice")
    from aioice import ice, stun

    async def ask() -> tuple[Any, tuple[str, int]]:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            lambda: ice.StunProtocol(None), local_addr=("127.0.0.1", 0)
        )
        request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        local = transport.get_extra_info("sockname")
        try:
            response, _ = await protocol.request(request, ("127.0.0.1", natkit_server.port))
        finally:
            transport.close()
        return response, local

    response, local = asyncio.run(ask())
    assert response.attributes["XOR-MAPPED-ADDRESS"] == local
    assert response.attributes["OTHER-ADDRESS"] == tuple(natkit_server.config.alternate)


def _ask_with_aioice_over_stream(port: int, **options: Any) -> tuple[Any, tuple[str, int]]:
    from aioice import stun

    async def ask() -> tuple[Any, tuple[str, int]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
        request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        writer.write(bytes(request))
        head = await reader.readexactly(20)
        body = await reader.readexactly(struct.unpack_from("!H", head, 2)[0])
        local = writer.get_extra_info("sockname")
        writer.close()
        await writer.wait_closed()
        response = stun.parse_message(head + body)
        assert response.transaction_id == request.transaction_id
        return response, local

    return asyncio.run(ask())


def test_aioice_messages_over_tcp(
    natkit_server: Any, require_module: Callable[..., ModuleType]
) -> None:
    require_module("aioice")
    response, local = _ask_with_aioice_over_stream(natkit_server.port)
    assert response.attributes["XOR-MAPPED-ADDRESS"] == local
    assert response.attributes["SOFTWARE"] == "natkit"


def test_aioice_messages_over_tls_of_openssl(
    require_module: Callable[..., ModuleType],
    serve: Callable[..., Any],
    certificate: Any,
    natkit_server: Any,
) -> None:
    require_module("aioice")
    port = natkit_server.port + 100
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)
    config = ServerConfig(Address("127.0.0.1", port), tls_ports=(port + 1, port + 2))
    with serve(config, tls_ports={port + 1: server_side, port + 2: server_side}):
        response, local = _ask_with_aioice_over_stream(
            port + 1,
            ssl=ssl.create_default_context(cafile=str(certificate)),
            server_hostname="stun.example",
        )
    assert response.attributes["XOR-MAPPED-ADDRESS"] == local
