"""Send and Data indications (RFC 8656 section 11), and ChannelData as it arrives (section 12.6)."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from stun.attributes import DATA, DONT_FRAGMENT, ICMP, XOR_PEER_ADDRESS
from stun.errors import DropReason
from stun.message import Message
from stun.outcome import value_of
from stun.registry import Method
from stun.sansio import Address
from turn.client.events import Data, PeerUnreachable

_header = Struct("!HH").unpack_from


class Unusable(NamedTuple):
    """Why something is dropped."""

    reason: DropReason
    detail: str


def send_indication(
    transaction_id: bytes, peer: Address, data: bytes, *, dont_fragment: bool
) -> Message:
    """Make a Send indication; nobody answers it and nobody sends it twice."""
    message = Message.indication(Method.SEND, transaction_id).add(XOR_PEER_ADDRESS, peer)
    if dont_fragment:
        message.add(DONT_FRAGMENT, True)
    return message.add(DATA, data)


def read_data(message: Message) -> Data | PeerUnreachable | Unusable:
    """Return what a Data indication tells."""
    if message.method != Method.DATA:
        return Unusable(DropReason.UNKNOWN_METHOD, "this indication is not for a client")
    peer = value_of(message, XOR_PEER_ADDRESS)
    if peer is None:
        return Unusable(DropReason.BAD_ATTRIBUTE_VALUE, "Data without XOR-PEER-ADDRESS")
    icmp = value_of(message, ICMP)
    if icmp is not None:
        return PeerUnreachable(peer, icmp.icmp_type, icmp.icmp_code, icmp.data)
    data = value_of(message, DATA)
    if data is None:
        return Unusable(DropReason.BAD_ATTRIBUTE_VALUE, "Data without DATA")
    return Data(peer, data)


def read_channel_data(message: bytes, peers: dict[int, Address]) -> Data | Unusable:
    """Return what a ChannelData message carries; ``peers`` by channel number."""
    if len(message) < 4:
        return Unusable(DropReason.TOO_SHORT, "ChannelData")
    number, length = _header(message)
    peer = peers.get(number)
    if peer is None:
        return Unusable(DropReason.UNKNOWN_STREAM, f"channel {number:#06x} is not bound")
    end = 4 + length
    if end > len(message):
        return Unusable(DropReason.LENGTH_MISMATCH, "ChannelData")
    return Data(peer, message[4:end])
