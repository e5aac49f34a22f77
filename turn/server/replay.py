"""Responses that are kept for requests that come twice.

"The server MUST respond to retransmissions such that [...] the overall state on the client and
server is identical" to that with one request and one response (RFC 8489 section 6.3.1).  For most
requests of TURN doing the work again would serve (the "stateless stack approach" of RFC 8656); for
a late copy it does harm: an Allocate that arrives again after a Refresh to zero would make an
allocation that nobody knows of, an old Refresh would undo a newer one, a ChannelBind that was
refused for want of an allocation would be done after all.  So the responses are kept, for as long
as a copy may be under way; only those to authentic requests, so that strangers leave nothing here.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from stun.sansio import SECOND, Instant
from turn.server.allocation import FlowKey

KEPT_FOR: Final = 40 * SECOND
""""remembering all received requests and the corresponding responses for 40 seconds" (RFC 8656
section 5)."""
MOST: Final = 16_384
"""Responses that are kept; with more than 400 requests a second the oldest are given up earlier.
Their clients retransmit within the first second as a rule (the RTO begins at half of one)."""


class Replay:
    """Responses by five-tuple and transaction id."""

    __slots__ = ("_lines", "_responses")

    def __init__(self) -> None:
        self._responses: dict[tuple[FlowKey, bytes], bytes] = {}
        self._lines: deque[tuple[Instant, tuple[FlowKey, bytes]]] = deque()

    def find(self, flow: FlowKey, transaction_id: bytes, now: Instant) -> bytes | None:
        """Return the response that was given to this very request, if it is still kept."""
        kept = self._responses.get((flow, transaction_id))
        if kept is None:
            return None
        self._forget(now)
        return self._responses.get((flow, transaction_id))

    def keep(self, flow: FlowKey, transaction_id: bytes, response: bytes, now: Instant) -> None:
        """Keep a response."""
        self._forget(now)
        key = (flow, transaction_id)
        if key not in self._responses:
            self._lines.append((now + KEPT_FOR, key))
        self._responses[key] = response
        if len(self._lines) > MOST:
            del self._responses[self._lines.popleft()[1]]

    def _forget(self, now: Instant) -> None:
        lines = self._lines
        while lines and lines[0][0] <= now:
            del self._responses[lines.popleft()[1]]

    def __len__(self) -> int:
        return len(self._responses)
