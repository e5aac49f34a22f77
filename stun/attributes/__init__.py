"""Every attribute of the registry, as a constant with the type of its value.

``message.get(attributes.XOR_MAPPED_ADDRESS)`` is an :class:`stun.sansio.Address` for the type
checker and at run time.  The numbers and names are in :mod:`stun.registry`, the formats in
:mod:`stun.layout`; here the two meet.
"""

from __future__ import annotations

from typing import Any, Final

from stun.attributes.address import PlainAddress, XorAddress, host_octets, host_text
from stun.attributes.base import Attribute, Diagnostic, Flag, Number, Octets, Text
from stun.attributes.structured import (
    AccessToken,
    AccessTokenAttribute,
    AddressError,
    AddressErrorAttribute,
    Algorithm,
    ChangeRequest,
    ChangeRequestAttribute,
    ConnectBack,
    ConnectBackAttribute,
    ConnectBackResult,
    ConnectBackResultAttribute,
    EcnCheck,
    EcnCheckAttribute,
    ErrorCodeAttribute,
    ErrorValue,
    EvenPort,
    FamilyAttribute,
    Icmp,
    IcmpAttribute,
    PasswordAlgorithmAttribute,
    PasswordAlgorithmsAttribute,
    ResponsePort,
    TransmitCounter,
    TransmitCounterAttribute,
    UnknownAttributes,
)
from stun.layout import U8_RESERVED24, U16_RESERVED16, U32, U64
from stun.registry import AttributeType as _Type

# RFC 8489 -----------------------------------------------------------------------------------------

MAPPED_ADDRESS: Final = PlainAddress(_Type.MAPPED_ADDRESS)
XOR_MAPPED_ADDRESS: Final = XorAddress(_Type.XOR_MAPPED_ADDRESS)
USERNAME: Final = Text(_Type.USERNAME, octets=508)  # "fewer than 509 bytes"
USERHASH: Final = Octets(_Type.USERHASH, 32, 32)
MESSAGE_INTEGRITY: Final = Octets(_Type.MESSAGE_INTEGRITY, 20, 20)
MESSAGE_INTEGRITY_SHA256: Final = Octets(_Type.MESSAGE_INTEGRITY_SHA256, 16, 32, multiple=4)
FINGERPRINT: Final = Number(_Type.FINGERPRINT, U32)
ERROR_CODE: Final = ErrorCodeAttribute(_Type.ERROR_CODE)
REALM: Final = Text(_Type.REALM, characters=127)  # "fewer than 128 characters"
# A nonce is echoed octet by octet and read by its server alone, so it is not decoded to text.
NONCE: Final = Octets(_Type.NONCE, longest=763)
PASSWORD_ALGORITHMS: Final = PasswordAlgorithmsAttribute(_Type.PASSWORD_ALGORITHMS)
PASSWORD_ALGORITHM: Final = PasswordAlgorithmAttribute(_Type.PASSWORD_ALGORITHM)
UNKNOWN_ATTRIBUTES: Final = UnknownAttributes(_Type.UNKNOWN_ATTRIBUTES)
SOFTWARE: Final = Diagnostic(_Type.SOFTWARE, characters=127)
ALTERNATE_SERVER: Final = PlainAddress(_Type.ALTERNATE_SERVER)
ALTERNATE_DOMAIN: Final = Text(_Type.ALTERNATE_DOMAIN, octets=255)

# RFC 3489, for peers of its time ------------------------------------------------------------------

RESPONSE_ADDRESS: Final = PlainAddress(_Type.RESPONSE_ADDRESS)
SOURCE_ADDRESS: Final = PlainAddress(_Type.SOURCE_ADDRESS)
CHANGED_ADDRESS: Final = PlainAddress(_Type.CHANGED_ADDRESS)
PASSWORD: Final = Octets(_Type.PASSWORD)
REFLECTED_FROM: Final = PlainAddress(_Type.REFLECTED_FROM)
XOR_MAPPED_ADDRESS_DRAFT: Final = XorAddress(_Type.XOR_MAPPED_ADDRESS_DRAFT)

# RFC 5780 -----------------------------------------------------------------------------------------

CHANGE_REQUEST: Final = ChangeRequestAttribute(_Type.CHANGE_REQUEST)
PADDING: Final = Octets(_Type.PADDING)
RESPONSE_PORT: Final = ResponsePort(_Type.RESPONSE_PORT)
RESPONSE_ORIGIN: Final = PlainAddress(_Type.RESPONSE_ORIGIN)
OTHER_ADDRESS: Final = PlainAddress(_Type.OTHER_ADDRESS)
# RFC 5780 section 9.1 assigns the number; no RFC defines the value.
CACHE_TIMEOUT: Final = Octets(_Type.CACHE_TIMEOUT)

# RFC 8656 (TURN) ----------------------------------------------------------------------------------

CHANNEL_NUMBER: Final = Number(_Type.CHANNEL_NUMBER, U16_RESERVED16)
LIFETIME: Final = Number(_Type.LIFETIME, U32)
XOR_PEER_ADDRESS: Final = XorAddress(_Type.XOR_PEER_ADDRESS)
DATA: Final = Octets(_Type.DATA)
XOR_RELAYED_ADDRESS: Final = XorAddress(_Type.XOR_RELAYED_ADDRESS)
REQUESTED_ADDRESS_FAMILY: Final = FamilyAttribute(_Type.REQUESTED_ADDRESS_FAMILY)
EVEN_PORT: Final = EvenPort(_Type.EVEN_PORT)
REQUESTED_TRANSPORT: Final = Number(_Type.REQUESTED_TRANSPORT, U8_RESERVED24)
DONT_FRAGMENT: Final = Flag(_Type.DONT_FRAGMENT)
RESERVATION_TOKEN: Final = Octets(_Type.RESERVATION_TOKEN, 8, 8)
ADDITIONAL_ADDRESS_FAMILY: Final = FamilyAttribute(_Type.ADDITIONAL_ADDRESS_FAMILY)
ADDRESS_ERROR_CODE: Final = AddressErrorAttribute(_Type.ADDRESS_ERROR_CODE)
ICMP: Final = IcmpAttribute(_Type.ICMP)
# RFC 8656 section 18 reserves both; drafts of TURN gave them these meanings.
BANDWIDTH: Final = Number(_Type.BANDWIDTH, U32)
TIMER_VAL: Final = Number(_Type.TIMER_VAL, U32)

# RFC 6062 (TURN over TCP to the peer), RFC 8016 (mobility), RFC 7635 (tokens) ---------------------

CONNECTION_ID: Final = Number(_Type.CONNECTION_ID, U32)
MOBILITY_TICKET: Final = Octets(_Type.MOBILITY_TICKET)
ACCESS_TOKEN: Final = AccessTokenAttribute(_Type.ACCESS_TOKEN)
THIRD_PARTY_AUTHORIZATION: Final = Text(_Type.THIRD_PARTY_AUTHORIZATION)

# RFC 8445 (ICE), RFC 7982 (round-trip times), RFC 6679 (ECN) --------------------------------------

PRIORITY: Final = Number(_Type.PRIORITY, U32)
USE_CANDIDATE: Final = Flag(_Type.USE_CANDIDATE)
ICE_CONTROLLED: Final = Number(_Type.ICE_CONTROLLED, U64)
ICE_CONTROLLING: Final = Number(_Type.ICE_CONTROLLING, U64)
TRANSACTION_TRANSMIT_COUNTER: Final = TransmitCounterAttribute(_Type.TRANSACTION_TRANSMIT_COUNTER)
ECN_CHECK: Final = EcnCheckAttribute(_Type.ECN_CHECK)

# Known by name; their values are their owners' business -------------------------------------------

ORIGIN: Final = Diagnostic(_Type.ORIGIN)
CISCO_STUN_FLOWDATA: Final = Octets(_Type.CISCO_STUN_FLOWDATA)
ENF_FLOW_DESCRIPTION: Final = Octets(_Type.ENF_FLOW_DESCRIPTION)
ENF_NETWORK_STATUS: Final = Octets(_Type.ENF_NETWORK_STATUS)
CISCO_WEBEX_FLOW_INFO: Final = Octets(_Type.CISCO_WEBEX_FLOW_INFO)
CITRIX_TRANSACTION_ID: Final = Octets(_Type.CITRIX_TRANSACTION_ID)
GOOG_NETWORK_INFO: Final = Octets(_Type.GOOG_NETWORK_INFO)
GOOG_LAST_ICE_CHECK_RECEIVED: Final = Octets(_Type.GOOG_LAST_ICE_CHECK_RECEIVED)
GOOG_MISC_INFO: Final = Octets(_Type.GOOG_MISC_INFO)
GOOG_OBSOLETE_1: Final = Octets(_Type.GOOG_OBSOLETE_1)
GOOG_CONNECTION_ID: Final = Octets(_Type.GOOG_CONNECTION_ID)
GOOG_DELTA: Final = Octets(_Type.GOOG_DELTA)
GOOG_DELTA_ACK: Final = Octets(_Type.GOOG_DELTA_ACK)
GOOG_DELTA_SYNC_REQ: Final = Octets(_Type.GOOG_DELTA_SYNC_REQ)
GOOG_MESSAGE_INTEGRITY_32: Final = Octets(_Type.GOOG_MESSAGE_INTEGRITY_32)
META_DTLS_IN_STUN: Final = Octets(_Type.META_DTLS_IN_STUN)
META_DTLS_IN_STUN_ACKNOWLEDGEMENT: Final = Octets(_Type.META_DTLS_IN_STUN_ACKNOWLEDGEMENT)

# natkit: TCP cooperation between natcheck and its server ------------------------------------------

CONNECT_BACK: Final = ConnectBackAttribute(_Type.CONNECT_BACK)
CONNECT_BACK_RESULT: Final = ConnectBackResultAttribute(_Type.CONNECT_BACK_RESULT)


BY_CODE: Final[dict[int, Attribute[Any]]] = {
    constant.code: constant
    for constant in tuple(globals().values())
    if isinstance(constant, Attribute)
}
"""Every attribute above by its number."""


def lookup(code: int) -> Attribute[Any]:
    """Return the attribute of this number; an unknown one has its octets as its value."""
    return BY_CODE.get(code) or Octets(_Type.make(code))


__all__ = [
    "BY_CODE",
    "AccessToken",
    "AddressError",
    "Algorithm",
    "Attribute",
    "ChangeRequest",
    "ConnectBack",
    "ConnectBackResult",
    "EcnCheck",
    "ErrorValue",
    "Icmp",
    "TransmitCounter",
    "host_octets",
    "host_text",
    "lookup",
]
