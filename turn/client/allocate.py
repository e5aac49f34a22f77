"""The Allocate request and what its answer says (RFC 8656 section 7)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from stun.attributes import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    DONT_FRAGMENT,
    EVEN_PORT,
    LIFETIME,
    MOBILITY_TICKET,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    XOR_RELAYED_ADDRESS,
    AddressError,
)
from stun.client import Reply
from stun.errors import DecodeError
from stun.message import Message
from stun.outcome import mapped_address, value_of
from stun.registry import Family
from stun.sansio import Address
from turn.client.config import ClientConfig

UDP, TCP = 17, 6
"""Protocol numbers for REQUESTED-TRANSPORT."""
_COTURN_ADDITIONAL_ADDRESS_FAMILY, _COTURN_ADDRESS_ERROR_CODE = 0x8032, 0x8033

DEFAULT_LIFETIME = 600
"""Seconds (RFC 8656 section 3.2), should a server leave LIFETIME out of its answer."""


@dataclass(frozen=True, slots=True)
class Granted:
    """An allocation as the server described it.  ``lifetime`` in seconds."""

    relayed: tuple[Address, ...]
    mapped: Address
    lifetime: int
    reservation_token: bytes | None
    refused: AddressError | None
    ticket: bytes | None


@dataclass(frozen=True, slots=True)
class Wrong:
    """An allocation that is of no use, and why."""

    lifetime: int
    why: str


def allocate_request(config: ClientConfig, message: Message) -> Message:
    """Add to an Allocate request what is asked for."""
    message.add(REQUESTED_TRANSPORT, TCP if config.tcp else UDP)
    if config.family == "dual":
        # "The attribute value in the ADDITIONAL-ADDRESS-FAMILY MUST be set to 0x02".
        message.add(ADDITIONAL_ADDRESS_FAMILY, Family.IPV6)
        # coturn (4.6) knows both attributes by numbers from before IANA assigned any; to others
        # these are unknown attributes that need not be understood.
        value = ADDITIONAL_ADDRESS_FAMILY.to_octets(Family.IPV6)
        message.attributes.append((_COTURN_ADDITIONAL_ADDRESS_FAMILY, value))
    elif config.family is not None:
        message.add(REQUESTED_ADDRESS_FAMILY, Family.IPV6 if config.family == 6 else Family.IPV4)
    if config.lifetime is not None:
        message.add(LIFETIME, config.lifetime)
    if config.even_port:
        message.add(EVEN_PORT, config.reserve_next)
    if config.reservation_token is not None:
        message.add(RESERVATION_TOKEN, config.reservation_token)
    if config.dont_fragment:
        message.add(DONT_FRAGMENT, True)
    if config.mobility:
        # RFC 8016 section 3.1.1: "with a length of zero" it asks for a ticket.
        message.add(MOBILITY_TICKET, b"")
    return message


def read_allocation(config: ClientConfig, reply: Reply) -> Granted | Wrong:
    """Return what a success response to Allocate gives."""
    message = reply.message
    lifetime = value_of(message, LIFETIME) or DEFAULT_LIFETIME
    try:
        relayed = tuple(message.all(XOR_RELAYED_ADDRESS))
    except DecodeError as error:
        # Section 7.3: of a family that the client does not handle; it "MUST delete the allocation".
        return Wrong(lifetime, f"its relayed address cannot be used: {error}")
    if not relayed:
        return Wrong(lifetime, "its answer has no relayed address")
    if config.family in (4, 6) and relayed[0].is_ipv6 is not (config.family == 6):
        return Wrong(lifetime, f"it gave {relayed[0]} where IPv{config.family} was asked for")
    return Granted(
        relayed,
        mapped_address(message) or reply.local,
        lifetime,
        value_of(message, RESERVATION_TOKEN),
        _refused_family(message),
        value_of(message, MOBILITY_TICKET) or None,
    )


def _refused_family(message: Message) -> AddressError | None:
    known = (ADDRESS_ERROR_CODE.code, _COTURN_ADDRESS_ERROR_CODE)
    for code, value in message.attributes:
        if code in known:
            with suppress(DecodeError):
                return ADDRESS_ERROR_CODE.from_octets(value)
    return None
