"""Write rfc-vectors/stun/attributes.json: what the value of each attribute looks like in octets.

The octets come from the construct specification (stun/spec.py); the hot codec, which is what the
vectors test, takes no part.  Run it from the top of the source tree after a change of the
specification, and read the difference:

    python -m tools.vectors.attributes
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from stun import spec
from stun.registry import AttributeType

TARGET = Path(__file__).resolve().parents[2] / "rfc-vectors" / "stun" / "attributes.json"
TRANSACTION_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")  # RFC 5769's


def address(host: str, port: int) -> tuple[Any, Any]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return [host, port], {"port": port, "address": socket.inet_pton(family, host)}


def octets(hexadecimal: str) -> tuple[Any, Any]:
    return hexadecimal, {"octets": bytes.fromhex(hexadecimal)}


def number(value: int) -> tuple[Any, Any]:
    return value, {"value": value}


def text(value: str) -> tuple[Any, Any]:
    return value, {"text": value}


def error(code: int, reason: str) -> tuple[Any, Any]:
    parts = {"class": {"digit": code // 100}, "number": code % 100, "reason": reason.encode()}
    return [code, reason], parts


def algorithm(value: int, parameters: str = "") -> dict[str, Any]:
    raw = bytes.fromhex(parameters)
    return {"algorithm": value, "parameters_length": len(raw), "parameters": raw}


def named(*values: Any, **fields: Any) -> tuple[Any, Any]:
    return list(values), fields


A = AttributeType
IPV4 = ("192.0.2.1", 32853)
IPV6 = ("2001:db8:1234:5678:11:2233:4455:6677", 32853)

# (identifier, attribute, (the value in JSON, the value in the specification's terms))
ROWS: list[tuple[str, AttributeType, tuple[Any, Any]]] = [
    *(
        (f"{kind.label.lower()}-{name}", kind, address(*value))
        for kind in (
            A.MAPPED_ADDRESS,
            A.XOR_MAPPED_ADDRESS,
            A.XOR_PEER_ADDRESS,
            A.XOR_RELAYED_ADDRESS,
            A.ALTERNATE_SERVER,
            A.RESPONSE_ORIGIN,
            A.OTHER_ADDRESS,
            A.CHANGED_ADDRESS,
            A.SOURCE_ADDRESS,
            A.REFLECTED_FROM,
            A.RESPONSE_ADDRESS,
        )
        for name, value in (("ipv4", IPV4), ("ipv6", IPV6))
    ),
    ("xor-mapped-address-all-zeros", A.XOR_MAPPED_ADDRESS, address("0.0.0.0", 0)),
    ("xor-mapped-address-all-ones", A.XOR_MAPPED_ADDRESS, address("255.255.255.255", 65535)),
    ("mapped-address-ipv6-zeros", A.MAPPED_ADDRESS, address("::", 1)),
    ("mapped-address-ipv6-loopback", A.MAPPED_ADDRESS, address("::1", 1)),
    ("mapped-address-ipv4-mapped", A.MAPPED_ADDRESS, address("::ffff:192.0.2.1", 1)),
    ("mapped-address-rfc5952-first-run", A.MAPPED_ADDRESS, address("2001:db8::1:0:0:1", 1)),
    ("mapped-address-rfc5952-one-zero", A.MAPPED_ADDRESS, address("2001:db8:0:1:1:1:1:1", 1)),
    ("username-ice", A.USERNAME, text("evtj:h6vY")),
    ("username-katakana", A.USERNAME, text("マトリックス")),
    ("realm", A.REALM, text("example.org")),
    ("alternate-domain", A.ALTERNATE_DOMAIN, text("stun.example.org")),
    ("third-party-authorization", A.THIRD_PARTY_AUTHORIZATION, text("auth.example.org")),
    ("software", A.SOFTWARE, ("test vector", {"octets": b"test vector"})),
    ("origin", A.ORIGIN, ("https://example.org", {"octets": b"https://example.org"})),
    ("nonce", A.NONCE, octets(b"obMatJos2AAAB".hex())),
    ("userhash", A.USERHASH, octets("4a3cf38fef6992bda952c6780417da0f" * 2)),
    ("message-integrity", A.MESSAGE_INTEGRITY, octets("2b91f599fd9e90c38c7489f92af9ba53f06be7d7")),
    ("message-integrity-sha256-full", A.MESSAGE_INTEGRITY_SHA256, octets("5c" * 32)),
    ("message-integrity-sha256-shortest", A.MESSAGE_INTEGRITY_SHA256, octets("5c" * 16)),
    ("fingerprint", A.FINGERPRINT, number(0xC07D4C96)),
    ("error-code-401", A.ERROR_CODE, error(401, "Unauthenticated")),
    ("error-code-300", A.ERROR_CODE, error(300, "Try Alternate")),
    ("error-code-699", A.ERROR_CODE, error(699, "größter Code")),
    ("address-error-code", A.ADDRESS_ERROR_CODE, (
        [2, 440, "Address Family not Supported"],
        {"family": 2, **error(440, "Address Family not Supported")[1]},
    )),
    ("unknown-attributes", A.UNKNOWN_ATTRIBUTES, (
        [0x0003, 0x0026, 0x7FFF],
        {"types": [{"value": 0x0003}, {"value": 0x0026}, {"value": 0x7FFF}]},
    )),
    ("unknown-attributes-none", A.UNKNOWN_ATTRIBUTES, ([], {"types": []})),
    ("password-algorithms", A.PASSWORD_ALGORITHMS, (
        [[1, ""], [2, ""]],
        {"algorithms": [algorithm(1), algorithm(2)]},
    )),
    ("password-algorithms-parameters", A.PASSWORD_ALGORITHMS, (
        [[0x8000, "616263"], [2, ""]],
        {"algorithms": [algorithm(0x8000, "616263"), algorithm(2)]},
    )),
    ("password-algorithm", A.PASSWORD_ALGORITHM, ([2, ""], {"algorithm": algorithm(2)})),
    *(
        (f"change-request-{name}", A.CHANGE_REQUEST, (
            [ip, port],
            {"flags": {"change_ip": ip, "change_port": port}},
        ))
        for name, ip, port in (
            ("none", False, False),
            ("ip", True, False),
            ("port", False, True),
            ("both", True, True),
        )
    ),
    ("response-port", A.RESPONSE_PORT, number(3478)),
    ("padding", A.PADDING, octets("00" * 16)),
    ("channel-number", A.CHANNEL_NUMBER, number(0x4000)),
    ("lifetime", A.LIFETIME, number(600)),
    ("data", A.DATA, octets("cafe")),
    ("requested-address-family-ipv6", A.REQUESTED_ADDRESS_FAMILY, number(2)),
    ("additional-address-family-ipv6", A.ADDITIONAL_ADDRESS_FAMILY, number(2)),
    ("even-port", A.EVEN_PORT, (False, {"value": {"reserve_next": False}})),
    ("even-port-reserve-next", A.EVEN_PORT, (True, {"value": {"reserve_next": True}})),
    ("requested-transport-udp", A.REQUESTED_TRANSPORT, number(17)),
    ("requested-transport-tcp", A.REQUESTED_TRANSPORT, number(6)),
    ("dont-fragment", A.DONT_FRAGMENT, (True, {})),
    ("reservation-token", A.RESERVATION_TOKEN, octets("0011223344556677")),
    ("icmp-fragmentation-needed", A.ICMP, named(
        3, 4, 1400, icmp_type=3, icmp_code=4, error_data=1400
    )),
    ("icmp-type-over-127", A.ICMP, named(255, 255, 0, icmp_type=255, icmp_code=255, error_data=0)),
    ("connection-id", A.CONNECTION_ID, number(0xDEADBEEF)),
    ("mobility-ticket-empty", A.MOBILITY_TICKET, octets("")),
    ("access-token", A.ACCESS_TOKEN, (
        ["68346a336b326c326e346235", "616263"],
        {"nonce_length": 12, "nonce": b"h4j3k2l2n4b5", "encrypted_block": b"abc"},
    )),
    ("priority", A.PRIORITY, number(0x6E0001FF)),
    ("use-candidate", A.USE_CANDIDATE, (True, {})),
    ("ice-controlled", A.ICE_CONTROLLED, number(0x932FF9B151263B36)),
    ("ice-controlling", A.ICE_CONTROLLING, number(0xFFFFFFFFFFFFFFFF)),
    ("transaction-transmit-counter", A.TRANSACTION_TRANSMIT_COUNTER, named(
        7, 2, requests=7, responses=2
    )),
    ("ecn-check", A.ECN_CHECK, ([True, 3], {"value": {"valid": True, "echo": 3}})),
    ("connect-back", A.CONNECT_BACK, named(
        3, 4, 250, 1500, 49152, kind=3, count=4, delay=250, wait=1500, port=49152
    )),
    ("connect-back-result", A.CONNECT_BACK_RESULT, named(
        3, 1, 2, 3, 4, 5, kind=3, established=1, refused=2, unreachable=3, timed_out=4, other=5
    )),
]  # fmt: skip


def case(identifier: str, kind: AttributeType, value: tuple[Any, Any]) -> dict[str, Any]:
    shown, declared = value
    built = spec.VALUES[kind].build(declared, transaction_id=TRANSACTION_ID)
    return {
        "id": identifier,
        "section": kind.section,
        "attribute": kind.label,
        "type": f"{int(kind):#06x}",
        "value": shown,
        "hex": built.hex(),
    }


def document() -> dict[str, Any]:
    return {
        "$schema": "../schema/vectors.schema.json",
        "schema": 1,
        "kind": "attribute-value",
        "title": "The value of each attribute in octets, without padding",
        "source": "the sections that the cases name",
        "origin": "computed",
        "transaction_id": TRANSACTION_ID.hex(),
        "cases": [case(*row) for row in ROWS],
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(document(), indent=2, ensure_ascii=False) + "\n")
    print(f"{len(ROWS)} cases in {TARGET}")
