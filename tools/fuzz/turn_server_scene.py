"""Where the TURN server's fuzz target plays: the configuration, who comes, what they may do."""

from __future__ import annotations

from collections.abc import Iterator

from stun.credentials import LongTerm
from stun.discovery import Transport
from stun.sansio import Address, Cause
from turn.server.config import Limits, ListenAt, RelayAddress, ServerConfig
from turn.server.policy import PeerPolicy

REALM_NAME = "example.org"
UNIX_TIME = 1_700_000_000
INSIDE, OUTSIDE = "10.0.0.7", "192.31.196.11"
HOST6 = "2620:4f:8000:a::10"
LISTENERS = (
    ListenAt(Transport.UDP, Address("192.31.196.10", 3478), detect=True),
    ListenAt(Transport.TCP, Address("192.31.196.10", 3478), detect=True),
    ListenAt(Transport.UDP, Address(HOST6, 3478)),
    ListenAt(Transport.TCP, Address(HOST6, 3478)),
)
RELAYS = (RelayAddress(INSIDE, OUTSIDE), RelayAddress(HOST6, HOST6))
OWN = ("192.31.196.10", INSIDE, OUTSIDE, HOST6)
CONFIG = ServerConfig(
    listeners=LISTENERS,
    relays=RELAYS,
    realm=REALM_NAME,
    policy=PeerPolicy(own=OWN),
    ports=(50_000, 50_015),
    limits=Limits(
        allocations=12,
        allocations_per_user=6,
        allocations_per_client=8,
        permissions_per_allocation=4,
        channels_per_allocation=3,
        tcp_connections_per_allocation=3,
        octets_per_second_per_user=20_000,
        packets_per_second_per_user=100,
        connections=16,
        connections_per_client=12,
    ),
    software="natkit",
)
CLIENTS = (
    Address("192.52.193.5", 40_000),
    Address("192.52.193.6", 40_000),
    Address("2620:4f:8000:1::5", 40_000),
)
PEERS = (
    Address("192.175.48.20", 7000),
    Address("192.175.48.20", 7001),
    Address("192.175.48.21", 7000),
    Address("2620:4f:8000:b::20", 7000),
    Address("127.0.0.1", 3478),
    Address("192.31.196.10", 3478),
    Address(OUTSIDE, 50_001),
    Address("192.175.48.20", 0),
)
USERS = {"alice": "secret", "bob": "other secret"}
KEYS = {name: LongTerm(name, word).key(REALM_NAME) for name, word in USERS.items()}
SECRETS = (b"a secret of sixteen octets",)


def scripts() -> Iterator[bytes]:
    """Yield runs that go through everything that the server has."""
    allocate = bytes((0, 0, 0, 6, 0, 0))
    permit = bytes((0, 0, 0, 17, 0, 0, 0))
    bind = bytes((0, 0, 0, 19, 1, 0, 0))
    data = bytes((0, 0, 0, 1, 1, 4)) + b"data"
    back = bytes((8, 0, 4)) + b"back" + bytes((0,))
    yield allocate + permit + bind + data + back
    for choice in range(24):
        yield allocate + permit + bytes((0, 0, 0, choice, 1, 0, 0, 0, 0, 0)) + back
    connect = bytes((3, 1, 0, 0))
    tcp = bytes((4, 0, 9, 0, 0, 0))
    dial = bytes((4, 0, 20, 0, 0, 0))
    up = bytes((10, 0))
    join = bytes((3, 1, 0, 0, 4, 1, 22, 0, 0, 0))
    stream = bytes((10, 0, 4)) + b"peer" + bytes((0, 0)) + bytes((4, 1, 4)) + b"user" + bytes((0,))
    yield connect + tcp + dial + up + join + stream
    much = bytes((10, 0, 255)) + bytes(255) + bytes((255, 1))
    yield connect + tcp + dial + up + much + join + much * 2 + bytes((14, 255)) + much
    for handle in range(3):
        steps = bytes((11, handle)) + much + bytes((7, handle, 0))
        yield connect + tcp + dial + up + join + steps + bytes((14, 255, 11, 0))
    for cause in range(len(Cause)):
        yield connect + tcp + dial + bytes((7, 1, cause))
    yield connect + tcp + bytes((4, 0, 17, 0, 0, 0, 0)) + bytes((9, 0, 0)) + join + stream
    for steps in (bytes((14, 255)), bytes((13, 0, 0)), bytes((13, 1, 0)), bytes((13, 2, 1, 0))):
        yield allocate + permit + bind + steps + data + back
        yield allocate + permit + bytes((12, 2, 0, 3, 3)) + bind + bytes((12, 2, 0, 11, 0)) + steps
        yield connect + tcp + dial + up + join + steps + stream
