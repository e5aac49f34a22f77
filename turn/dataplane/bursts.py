"""Datagrams of one peer that came together: each gets its header, and they leave together."""

from __future__ import annotations

from stun.sansio import Instant
from turn.dataplane.flows import CHANNEL, Flow
from turn.dataplane.mmsg import HEADROOM, MAX_SEGMENTS, Inbox, split

_write_header = CHANNEL.pack_into


def take_burst(inbox: Inbox, flow: Flow, slot: int, lengths: tuple[int, ...], now: Instant) -> int:
    """Have what was read from slot ``slot`` on sent to the client; return how many datagrams it is.

    They stay in the inbox until the outbox of the flow is flushed.  What is over the rate is not
    sent; it counts all the same.
    """
    packets, sizes = len(lengths), inbox.sizes
    meter, waiting = flow.meter, flow.waiting
    usage = meter.usage
    memory, starts, addresses = inbox.memory, inbox.starts, inbox.addresses
    channel, octets = flow.channel, sum(lengths)
    if sizes is not None:
        # In the order of arrival, so that a flow's datagrams do not overtake one another.
        packets = 0
        for n, (length, size) in enumerate(zip(lengths, sizes, strict=True), slot):
            packets += _join(inbox, flow, n, length, size=size or max(length, 1), now=now)
        return packets
    if packets and not waiting:
        flow.outbox.destinations.append(flow)
    if octets <= meter.octets and packets <= meter.packets:
        meter.octets -= octets
        meter.packets -= packets
        usage.packets_to_client += packets
        usage.octets_to_client += octets
        for n, length in enumerate(lengths, slot):
            _write_header(memory, starts[n] - 4, channel, length)
            waiting += (addresses[n] - 4, length + 4)
    else:
        for n, length in enumerate(lengths, slot):
            if meter.take(length, now):
                usage.packets_to_client += 1
                usage.octets_to_client += length
                _write_header(memory, starts[n] - 4, channel, length)
                waiting += (addresses[n] - 4, length + 4)
    return packets


def _join(inbox: Inbox, flow: Flow, slot: int, length: int, *, size: int, now: Instant) -> int:
    """Give each datagram of a joined one its header, in place; return how many they are."""
    meter = flow.meter
    count = -(-length // size) or 1
    passed = count
    if length <= meter.octets and count <= meter.packets:
        meter.octets -= length
        meter.packets -= count
    else:
        passed = 0
        while passed < count and meter.take(min(size, length - passed * size), now):
            passed += 1
        if passed < count:  # the first that did not pass is counted already
            meter.usage.dropped += count - passed - 1
            length = passed * size
        if not passed:
            return count
    vector = inbox.insert_headers(slot, length, size, flow.channel)
    meter.usage.packets_to_client += passed
    meter.usage.octets_to_client += length
    joined, segment = flow.outbox.joined, size + HEADROOM
    if passed <= MAX_SEGMENTS:
        joined.append((flow.name, vector, segment, passed))
    else:
        # No kernel joins so many, save what another program here sent segmented.
        parts = split(vector, segment)
        for at in range(0, len(parts), 2):
            joined.append((flow.name, parts[at : at + 2], parts[at + 1], 1))
    return count
