"""What goes into a puncher and what comes out: its configuration, the agreement, its events."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeAlias

from ice.config import Credentials
from ice.session import PASSWORD_OCTETS, UFRAG_OCTETS
from stun.errors import UsageError
from stun.mac import hmac_sha256
from stun.sansio import SECOND, Address, Handle, Instant

MOST_PORTS: Final = 8
LEAST_SECRET: Final = 16


def start_at(now: Instant, rtt: int, *, told: bool) -> Instant:
    """Return when to begin, so that both sides begin together.

    One side says "go" when everything else is settled; ``rtt`` is the round trip, in nanoseconds,
    of messages between the two by way of whoever carries them, as that side has measured it.  Who
    is told begins at once, ``told`` being true, and who says it begins half a round trip after
    having said it: by then the word has arrived.  ``now``: when it was said, or heard.
    """
    return now if told else now + rtt // 2


def credentials(secret: bytes | str, *, controlling: bool) -> tuple[Credentials, Credentials]:
    """Derive both sides' credentials from a secret that they share: this side's and the peer's.

    The secret has to be random, at least 16 octets: whoever sees a check can try secrets at home.
    Raises :class:`stun.errors.UsageError` for a shorter one.
    """
    key = secret.encode() if isinstance(secret, str) else secret
    if len(key) < LEAST_SECRET:
        text = f"a secret of {len(key)} octets can be guessed: at least {LEAST_SECRET} are needed,"
        raise UsageError(f"{text} such as secrets.token_urlsafe() gives")
    ours, theirs = (
        Credentials(
            b64encode(hmac_sha256(key, b"natkit punch ufrag " + role)[:UFRAG_OCTETS]).decode(),
            b64encode(hmac_sha256(key, b"natkit punch pwd " + role)[:PASSWORD_OCTETS]).decode(),
        )
        for role in ((b"1", b"2") if controlling else (b"2", b"1"))
    )
    return ours, theirs


@dataclass(frozen=True, slots=True)
class PunchConfig:
    """What a puncher is told.  Raises :class:`stun.errors.UsageError`.

    ``host``: the address of this machine to dial from and listen on.  ``ports``: the local ports,
    0 for any; each but the first is a spare.  Durations are nanoseconds.
    """

    host: str
    ports: tuple[int, ...] = (0,)
    gather_timeout: int = 10 * SECOND
    """How long STUN servers may take to answer."""
    keepalive: int = 15 * SECOND
    """How often they are asked again, which keeps mappings."""
    software: str | None = None

    def __post_init__(self) -> None:
        try:
            ip_address(self.host.partition("%")[0])
        except ValueError as wrong:
            raise UsageError(f"host: {wrong}") from None
        if not 1 <= len(self.ports) <= MOST_PORTS:
            raise UsageError(f"{len(self.ports)} ports: 1 to {MOST_PORTS}")
        if not all(0 <= port <= 0xFFFF for port in self.ports):
            raise UsageError(f"{self.ports} are not ports: 0-65535, 0 for any")
        if len({port for port in self.ports if port}) < sum(map(bool, self.ports)):
            raise UsageError(f"{self.ports}: the same port twice")


# What a puncher tells. ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MappedPort:
    """A port that listens: where it is here, and what it is outside, as far as anybody told."""

    local: Address
    external: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class PortsReady:
    """The ports are open and the servers have answered; told again when a mapping has changed.

    ``missing`` says what was sought in vain.  Where some ports are known outside, those that are
    not are of no use and are shut.
    """

    ports: tuple[MappedPort, ...]
    missing: tuple[str, ...] = ()

    def addresses(self) -> tuple[Address, ...]:
        """Return what the peer is to be told, in an order that pairs the ports rightly.

        First what the ports are outside, then what they are here, for a peer in the same network.
        """
        found: dict[Address, None] = {}
        hosts: dict[str, list[MappedPort]] = {}
        for port in self.ports:
            for external in port.external:
                served = hosts.setdefault(external.host, [])
                if port not in served:  # symmetric NATs give it several ports: none of any use
                    served.append(port)
                    found[external] = None
        found |= dict.fromkeys(port.local for port in self.ports)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Elected:
    """The connection that both sides have chosen.

    ``handle`` is its socket: the driver hands it over, and this machine knows it no more.  ``data``
    is what came on it behind the last check, before the driver was told to hold it.  ``took``:
    nanoseconds since the attempts began.
    """

    handle: Handle
    local: Address
    remote: Address
    data: bytes
    took: int


@dataclass(frozen=True, slots=True)
class GaveUp:
    """There is no connection, and none is sought any more: why, in words."""

    why: str


PunchEvent: TypeAlias = PortsReady | Elected | GaveUp
