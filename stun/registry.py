"""The numbers of STUN and of the protocols that extend it: one table each.

The tables are enums, because a name with a type is easier to use than a key.  They are *open*: a
number that no table lists is a member too, with the name ``UNKNOWN_...``, so that a message from
the future survives decoding.  Beside each number stand the name that IANA gives it, the section
that defines it and its status; tests/unit/stun/test_registry.py checks all of it against IANA's
tables in rfc-vectors/iana.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import TypeVar

MAGIC_COOKIE = 0x2112A442
"""RFC 8489 section 5.  A message with anything else here comes from an RFC 3489 peer."""

HEADER_SIZE = 20
"""Octets of the header, RFC 8489 section 5."""

FINGERPRINT_XOR = 0x5354554E
"""RFC 8489 section 14.7: the CRC-32 is "XOR'ed with the 32-bit value 0x5354554e"."""


class Status(StrEnum):
    """How a number came to be in a table."""

    ASSIGNED = "assigned by IANA"
    HISTORIC = "reserved by IANA; used by an obsolete RFC"
    IN_USE = "reserved by IANA, yet in use"
    UNREGISTERED = "not assigned by IANA; seen on the wire"
    NATKIT = "not assigned by IANA; natkit's own"
    UNKNOWN = "not in any table"


_Open = TypeVar("_Open", bound="OpenEnum")


class OpenEnum(IntEnum):
    """An enum that has a member for every number of its range, listed or not."""

    label: str
    """The name as IANA writes it."""
    section: str
    """Where it is defined."""
    status: Status

    def __new__(
        cls, value: int, label: str = "", section: str = "", status: Status = Status.ASSIGNED
    ) -> OpenEnum:
        """Make a row of the table."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.label = label
        member.section = section
        member.status = status
        return member

    @classmethod
    def _limit(cls) -> int:
        return 0xFFFF

    @classmethod
    def _missing_(cls, value: object) -> OpenEnum | None:
        # Pseudo-members are made anew each time and never stored: a peer could otherwise fill the
        # memory with them.  They compare and hash as the integers that they are.
        if not isinstance(value, int) or not 0 <= value <= cls._limit():
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{value:#06x}"
        member._value_ = int(value)
        member.label = f"{value:#06x}"
        member.section = ""
        member.status = Status.UNKNOWN
        return member

    @classmethod
    def make(cls: type[_Open], value: int) -> _Open:
        """Return the member for a number; ``ValueError`` when it is outside the field's range."""
        return cls(value)

    def __reduce_ex__(self, _: object) -> tuple[type[OpenEnum], tuple[int]]:
        """Copy and pickle by number: some Pythons do it by name, which may be unlisted."""
        return type(self), (int(self),)

    @property
    def is_known(self) -> bool:
        """Whether the number is in the table."""
        return self.status is not Status.UNKNOWN


class Class(IntEnum):
    """The class of a message: the two bits C1 C0 of its type (RFC 8489 section 5)."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


class Method(OpenEnum):
    """What a message is about: 12 bits of its type (RFC 8489 section 18.2)."""

    BINDING = 0x001, "Binding", "RFC 8489 section 3"
    SHARED_SECRET = 0x002, "SharedSecret", "RFC 3489 section 8.2", Status.HISTORIC
    ALLOCATE = 0x003, "Allocate", "RFC 8656 section 7"
    REFRESH = 0x004, "Refresh", "RFC 8656 section 8"
    SEND = 0x006, "Send", "RFC 8656 section 11"
    DATA = 0x007, "Data", "RFC 8656 section 11"
    CREATE_PERMISSION = 0x008, "CreatePermission", "RFC 8656 section 10"
    CHANNEL_BIND = 0x009, "ChannelBind", "RFC 8656 section 12"
    CONNECT = 0x00A, "Connect", "RFC 6062 section 4.3"
    CONNECTION_BIND = 0x00B, "ConnectionBind", "RFC 6062 section 4.3"
    CONNECTION_ATTEMPT = 0x00C, "ConnectionAttempt", "RFC 6062 section 4.4"
    GOOG_PING = 0x080, "GOOG-PING", "IANA, Jonas Oreland"

    @classmethod
    def _limit(cls) -> int:
        return 0xFFF


class AttributeType(OpenEnum):
    """The type of an attribute (RFC 8489 section 18.3)."""

    MAPPED_ADDRESS = 0x0001, "MAPPED-ADDRESS", "RFC 8489 section 14.1"
    RESPONSE_ADDRESS = 0x0002, "RESPONSE-ADDRESS", "RFC 3489 section 11.2.2", Status.HISTORIC
    # Reserved by IANA since RFC 5389 and used again by RFC 5780 (errata 4233).
    CHANGE_REQUEST = 0x0003, "CHANGE-REQUEST", "RFC 5780 section 7.2", Status.IN_USE
    SOURCE_ADDRESS = 0x0004, "SOURCE-ADDRESS", "RFC 3489 section 11.2.5", Status.HISTORIC
    CHANGED_ADDRESS = 0x0005, "CHANGED-ADDRESS", "RFC 3489 section 11.2.3", Status.HISTORIC
    USERNAME = 0x0006, "USERNAME", "RFC 8489 section 14.3"
    PASSWORD = 0x0007, "PASSWORD", "RFC 3489 section 11.2.7", Status.HISTORIC
    MESSAGE_INTEGRITY = 0x0008, "MESSAGE-INTEGRITY", "RFC 8489 section 14.5"
    ERROR_CODE = 0x0009, "ERROR-CODE", "RFC 8489 section 14.8"
    UNKNOWN_ATTRIBUTES = 0x000A, "UNKNOWN-ATTRIBUTES", "RFC 8489 section 14.13"
    REFLECTED_FROM = 0x000B, "REFLECTED-FROM", "RFC 3489 section 11.2.11", Status.HISTORIC
    CHANNEL_NUMBER = 0x000C, "CHANNEL-NUMBER", "RFC 8656 section 18.1"
    LIFETIME = 0x000D, "LIFETIME", "RFC 8656 section 18.2"
    BANDWIDTH = 0x0010, "BANDWIDTH", "RFC 8656 section 18", Status.HISTORIC
    XOR_PEER_ADDRESS = 0x0012, "XOR-PEER-ADDRESS", "RFC 8656 section 18.3"
    DATA = 0x0013, "DATA", "RFC 8656 section 18.4"
    REALM = 0x0014, "REALM", "RFC 8489 section 14.9"
    NONCE = 0x0015, "NONCE", "RFC 8489 section 14.10"
    XOR_RELAYED_ADDRESS = 0x0016, "XOR-RELAYED-ADDRESS", "RFC 8656 section 18.5"
    REQUESTED_ADDRESS_FAMILY = 0x0017, "REQUESTED-ADDRESS-FAMILY", "RFC 8656 section 18.6"
    EVEN_PORT = 0x0018, "EVEN-PORT", "RFC 8656 section 18.7"
    REQUESTED_TRANSPORT = 0x0019, "REQUESTED-TRANSPORT", "RFC 8656 section 18.8"
    DONT_FRAGMENT = 0x001A, "DONT-FRAGMENT", "RFC 8656 section 18.9"
    ACCESS_TOKEN = 0x001B, "ACCESS-TOKEN", "RFC 7635 section 6.2"
    MESSAGE_INTEGRITY_SHA256 = 0x001C, "MESSAGE-INTEGRITY-SHA256", "RFC 8489 section 14.6"
    PASSWORD_ALGORITHM = 0x001D, "PASSWORD-ALGORITHM", "RFC 8489 section 14.12"
    USERHASH = 0x001E, "USERHASH", "RFC 8489 section 14.4"
    XOR_MAPPED_ADDRESS = 0x0020, "XOR-MAPPED-ADDRESS", "RFC 8489 section 14.2"
    TIMER_VAL = 0x0021, "TIMER-VAL", "RFC 8656 section 18", Status.HISTORIC
    RESERVATION_TOKEN = 0x0022, "RESERVATION-TOKEN", "RFC 8656 section 18.10"
    PRIORITY = 0x0024, "PRIORITY", "RFC 8445 section 7.1.1"
    USE_CANDIDATE = 0x0025, "USE-CANDIDATE", "RFC 8445 section 7.1.2"
    PADDING = 0x0026, "PADDING", "RFC 5780 section 7.6"
    RESPONSE_PORT = 0x0027, "RESPONSE-PORT", "RFC 5780 section 7.5"
    CONNECTION_ID = 0x002A, "CONNECTION-ID", "RFC 6062 section 6.2.1"

    ADDITIONAL_ADDRESS_FAMILY = 0x8000, "ADDITIONAL-ADDRESS-FAMILY", "RFC 8656 section 18.11"
    ADDRESS_ERROR_CODE = 0x8001, "ADDRESS-ERROR-CODE", "RFC 8656 section 18.12"
    PASSWORD_ALGORITHMS = 0x8002, "PASSWORD-ALGORITHMS", "RFC 8489 section 14.11"
    ALTERNATE_DOMAIN = 0x8003, "ALTERNATE-DOMAIN", "RFC 8489 section 14.16"
    ICMP = 0x8004, "ICMP", "RFC 8656 section 18.13"
    # Servers of RFC 3489's time send this beside MAPPED-ADDRESS; drafts of RFC 5389 had the number.
    XOR_MAPPED_ADDRESS_DRAFT = (
        0x8020,
        "XOR-MAPPED-ADDRESS (draft)",
        "draft-ietf-behave-rfc3489bis-02 section 10.2.12",
        Status.UNREGISTERED,
    )
    SOFTWARE = 0x8022, "SOFTWARE", "RFC 8489 section 14.14"
    ALTERNATE_SERVER = 0x8023, "ALTERNATE-SERVER", "RFC 8489 section 14.15"
    TRANSACTION_TRANSMIT_COUNTER = (
        0x8025,
        "TRANSACTION_TRANSMIT_COUNTER",
        "RFC 7982 section 3.1",
    )
    CACHE_TIMEOUT = 0x8027, "CACHE-TIMEOUT", "RFC 5780 section 9.1"
    FINGERPRINT = 0x8028, "FINGERPRINT", "RFC 8489 section 14.7"
    ICE_CONTROLLED = 0x8029, "ICE-CONTROLLED", "RFC 8445 section 7.1.3"
    ICE_CONTROLLING = 0x802A, "ICE-CONTROLLING", "RFC 8445 section 7.1.3"
    RESPONSE_ORIGIN = 0x802B, "RESPONSE-ORIGIN", "RFC 5780 section 7.3"
    OTHER_ADDRESS = 0x802C, "OTHER-ADDRESS", "RFC 5780 section 7.4"
    ECN_CHECK = 0x802D, "ECN-CHECK STUN", "RFC 6679 section 7.2.2"
    THIRD_PARTY_AUTHORIZATION = 0x802E, "THIRD-PARTY-AUTHORIZATION", "RFC 7635 section 6.1"
    # Chrome sends the page's origin here.
    ORIGIN = 0x802F, "ORIGIN", "draft-ietf-tram-stun-origin-06", Status.UNREGISTERED
    MOBILITY_TICKET = 0x8030, "MOBILITY-TICKET", "RFC 8016 section 3.3"

    CISCO_STUN_FLOWDATA = 0xC000, "CISCO-STUN-FLOWDATA", "IANA, Dan Wing"
    ENF_FLOW_DESCRIPTION = 0xC001, "ENF-FLOW-DESCRIPTION", "IANA, Pål Erik Martinsen"
    ENF_NETWORK_STATUS = 0xC002, "ENF-NETWORK-STATUS", "IANA, Pål Erik Martinsen"
    CISCO_WEBEX_FLOW_INFO = 0xC003, "CISCO-WEBEX-FLOW-INFO", "IANA, Stefano Giorcelli"
    CITRIX_TRANSACTION_ID = 0xC056, "CITRIX-TRANSACTION-ID", "IANA, Paras Babbar"
    GOOG_NETWORK_INFO = 0xC057, "GOOG-NETWORK-INFO", "IANA, Jonas Oreland"
    GOOG_LAST_ICE_CHECK_RECEIVED = (
        0xC058,
        "GOOG-LAST-ICE-CHECK-RECEIVED",
        "IANA, Jonas Oreland",
    )
    GOOG_MISC_INFO = 0xC059, "GOOG-MISC-INFO", "IANA, Jonas Oreland"
    GOOG_OBSOLETE_1 = 0xC05A, "GOOG-OBSOLETE-1", "IANA, Jonas Oreland"
    GOOG_CONNECTION_ID = 0xC05B, "GOOG-CONNECTION-ID", "IANA, Jonas Oreland"
    GOOG_DELTA = 0xC05C, "GOOG-DELTA", "IANA, Jonas Oreland"
    GOOG_DELTA_ACK = 0xC05D, "GOOG-DELTA-ACK", "IANA, Jonas Oreland"
    GOOG_DELTA_SYNC_REQ = 0xC05E, "GOOG-DELTA-SYNC-REQ", "IANA, Jonas Oreland"
    GOOG_MESSAGE_INTEGRITY_32 = 0xC060, "GOOG-MESSAGE-INTEGRITY-32", "IANA, Jonas Oreland"
    META_DTLS_IN_STUN = 0xC070, "META-DTLS-IN-STUN", "IANA, Philipp Hancke"
    META_DTLS_IN_STUN_ACKNOWLEDGEMENT = (
        0xC071,
        "META-DTLS-IN-STUN-ACKNOWLEDGEMENT",
        "IANA, Philipp Hancke",
    )
    # RFC 8489 section 18.3 gives 0xC000-0xFFFF to Expert Review, comprehension-optional: whoever
    # does not know these two passes over them.
    CONNECT_BACK = 0xF4A0, "CONNECT-BACK", "natkit, stun/attributes", Status.NATKIT
    CONNECT_BACK_RESULT = 0xF4A1, "CONNECT-BACK-RESULT", "natkit, stun/attributes", Status.NATKIT


def comprehension_required(code: int) -> bool:
    """Whether an agent that does not know this attribute must refuse (RFC 8489 section 14)."""
    return code < 0x8000


class ErrorCode(OpenEnum):
    """An error code; ``label`` is its default reason phrase (RFC 8489 sections 14.8 and 18.4)."""

    TRY_ALTERNATE = 300, "Try Alternate", "RFC 8489 section 14.8"
    BAD_REQUEST = 400, "Bad Request", "RFC 8489 section 14.8"
    # "Unauthorized" in RFC 5389, and most servers still say so: never compare reason phrases.
    UNAUTHENTICATED = 401, "Unauthenticated", "RFC 8489 section 14.8"
    FORBIDDEN = 403, "Forbidden", "RFC 8656 section 19"
    MOBILITY_FORBIDDEN = 405, "Mobility Forbidden", "RFC 8016 section 3.4"
    UNKNOWN_ATTRIBUTE = 420, "Unknown Attribute", "RFC 8489 section 14.8"
    STALE_CREDENTIALS = 430, "Stale Credentials", "RFC 3489 section 11.2.9", Status.HISTORIC
    INTEGRITY_CHECK_FAILURE = (
        431,
        "Integrity Check Failure",
        "RFC 3489 section 11.2.9",
        Status.HISTORIC,
    )
    MISSING_USERNAME = 432, "Missing Username", "RFC 3489 section 11.2.9", Status.HISTORIC
    USE_TLS = 433, "Use TLS", "RFC 3489 section 11.2.9", Status.HISTORIC
    ALLOCATION_MISMATCH = 437, "Allocation Mismatch", "RFC 8656 section 19"
    STALE_NONCE = 438, "Stale Nonce", "RFC 8489 section 14.8"
    ADDRESS_FAMILY_NOT_SUPPORTED = 440, "Address Family not Supported", "RFC 8656 section 19"
    WRONG_CREDENTIALS = 441, "Wrong Credentials", "RFC 8656 section 19"
    UNSUPPORTED_TRANSPORT_PROTOCOL = 442, "Unsupported Transport Protocol", "RFC 8656 section 19"
    PEER_ADDRESS_FAMILY_MISMATCH = 443, "Peer Address Family Mismatch", "RFC 8656 section 19"
    CONNECTION_ALREADY_EXISTS = 446, "Connection Already Exists", "RFC 6062 section 6.3"
    CONNECTION_TIMEOUT_OR_FAILURE = 447, "Connection Timeout or Failure", "RFC 6062 section 6.3"
    ALLOCATION_QUOTA_REACHED = 486, "Allocation Quota Reached", "RFC 8656 section 19"
    ROLE_CONFLICT = 487, "Role Conflict", "RFC 8445 section 16.2"
    SERVER_ERROR = 500, "Server Error", "RFC 8489 section 14.8"
    INSUFFICIENT_CAPACITY = 508, "Insufficient Capacity", "RFC 8656 section 19"
    GLOBAL_FAILURE = 600, "Global Failure", "RFC 3489 section 11.2.9", Status.HISTORIC

    @classmethod
    def _limit(cls) -> int:
        return 699


def default_reason(code: int) -> str:
    """Return the reason phrase that the tables have for an error code, or an empty string."""
    return _REASONS.get(code, "")


_REASONS = {int(code): code.label for code in ErrorCode}


class PasswordAlgorithm(OpenEnum):
    """How a long-term key is made from a password (RFC 8489 section 18.5)."""

    MD5 = 0x0001, "MD5", "RFC 8489 section 18.5.1.1"
    SHA256 = 0x0002, "SHA-256", "RFC 8489 section 18.5.1.2"


class SecurityFeature(IntEnum):
    """A bit of the nonce cookie, from the least significant on (RFC 8489 18.1, erratum 6290)."""

    PASSWORD_ALGORITHMS = 0
    USERNAME_ANONYMITY = 1


class Family(IntEnum):
    """The address families of RFC 8489 section 14.1."""

    IPV4 = 0x01
    IPV6 = 0x02
