"""Priorities and foundations (RFC 8445 sections 5.1.1.3, 5.1.2 and 6.1.2.3; RFC 6544 section 4.2).

Local preferences.  They "MUST be unique" among candidates of one type (RFC 8445 section 5.1.2.1),
over all addresses of the host and all servers, and what is left of one for a TCP candidate has 13
bits, for its upper three are the direction.  So the addresses of the host are ``SERVERS`` apart,
from the top down, and the servers lie between: :func:`local_preference`.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import blake2b
from typing import Final

from ice.candidate import Candidate, CandidateType, TcpType

HIGHEST: Final = 0xFFFF
""""When there is only a single IP address, this value SHOULD be set to 65535"."""
SERVERS: Final = 32
"""Local preferences that belong to one address of the host: so many servers can be told apart."""
_OTHER_HIGHEST = 0x1FFF
MOST_ADDRESSES: Final = (_OTHER_HIGHEST + 1) // SERVERS
"""Addresses of the host whose preferences are unique over TCP as well."""

# RFC 8445 5.1.2.2: "126 for host candidates, 110 for peer-reflexive candidates, 100 for
# server-reflexive candidates, and 0 for relayed candidates".
_TYPE_PREFERENCE = {
    CandidateType.HOST: 126,
    CandidateType.PEER_REFLEXIVE: 110,
    CandidateType.SERVER_REFLEXIVE: 100,
    CandidateType.RELAYED: 0,
}
# RFC 6544 4.2: of host and relayed candidates "6 for active, 4 for passive, and 2 for S-O"; for
# server-reflexive ones "6 for S-O, 4 for active, and 2 for passive".
_DIRECTION = {TcpType.ACTIVE: 6, TcpType.PASSIVE: 4, TcpType.SIMULTANEOUS_OPEN: 2}
_DIRECTION_REFLEXIVE = {TcpType.SIMULTANEOUS_OPEN: 6, TcpType.ACTIVE: 4, TcpType.PASSIVE: 2}


def local_preference(interface: int, server: int = 0) -> int:
    """Return the local preference of what the ``server``-th server told of an address.

    ``interface``: the preference of the address (:class:`ice.config.Interface`).  ``server``: its
    place among the servers that are asked from there, 0 for the first; host candidates, which have
    none, leave it out.  Beyond ``SERVERS`` it is the last one's.
    """
    return max(0, interface - min(server, SERVERS - 1))


def type_preference(kind: CandidateType, tcptype: TcpType | None = None) -> int:
    """Return the type preference (RFC 8445 section 5.1.2.2).

    Candidates of the same type are one less over TCP than over UDP, which RFC 6544 section 4.2
    calls enough "if the candidate type is more important".
    """
    preference = _TYPE_PREFERENCE[kind]
    return preference if tcptype is None else max(0, preference - 1)


def tcp_local_preference(kind: CandidateType, tcptype: TcpType, other: int) -> int:
    """Return the local preference of a TCP candidate: (2^13) * direction-pref + other-pref.

    ``other``: 0 to 8191, what tells apart candidates of one kind and direction (RFC 6544 section
    4.2).
    """
    reflexive = kind in (CandidateType.SERVER_REFLEXIVE, CandidateType.PEER_REFLEXIVE)
    return (_DIRECTION_REFLEXIVE if reflexive else _DIRECTION)[tcptype] << 13 | other


def formula(type_preference: int, local_preference: int, component: int) -> int:
    """Return the priority by the recommended formula of RFC 8445 section 5.1.2.1.

    ``type_preference``: 0 to 126, ``local_preference``: 0 to 65535, ``component``: 1 to 256.
    """
    return type_preference << 24 | local_preference << 8 | 256 - component


def candidate_priority(
    kind: CandidateType, component: int, local_preference: int, tcptype: TcpType | None = None
) -> int:
    """Return the priority that a candidate gets here.

    ``local_preference``: 0 to 65535.  With ``tcptype`` it is a TCP candidate: what the preference
    is below 65535 is then taken from the 8191 of its other-pref, and its type preference is one
    less.  The priority is at least 1: "a positive integer between 1 and (2**31 - 1)".
    """
    if tcptype is not None:
        other = max(0, local_preference - (HIGHEST - _OTHER_HIGHEST))
        local_preference = tcp_local_preference(kind, tcptype, other)
    # The formula gives a relayed candidate of component 256 with the local preference 0 none.
    return max(1, formula(type_preference(kind, tcptype), local_preference, component))


def peer_reflexive_priority(candidate: Candidate) -> int:
    """Return what PRIORITY says in a check that is sent from this local candidate.

    It is the candidate's own, "but with the candidate type preference of peer-reflexive candidates"
    (RFC 8445 section 7.1.1).
    """
    preference = type_preference(CandidateType.PEER_REFLEXIVE, candidate.tcptype)
    return preference << 24 | candidate.priority & 0xFFFFFF


def pair_priority(controlling: int, controlled: int) -> int:
    """Return the priority of a pair of candidates, of which each agent has one.

    RFC 8445 section 6.1.2.3: 2^32*MIN(G,D) + 2*MAX(G,D) + (G>D?1:0), G being the controlling
    agent's candidate and D the controlled one's.
    """
    if controlling > controlled:
        return (controlled << 32) + (controlling << 1) + 1
    return (controlling << 32) + (controlled << 1)


def foundation(
    kind: CandidateType,
    base_host: str,
    server_host: str,
    transport: str,
    secret: bytes = b"",
) -> str:
    """Return the foundation of a candidate: 8 of the characters that it may have.

    Two are equal when RFC 8445 section 5.1.1.3 says so: the same type, the same IP address of the
    base, the same IP address of the server (empty for a host candidate) and the same transport
    protocol; else they differ, but for a chance of 2^-48.  With ``secret``, up to 64 octets that
    stay on this host, nobody can try addresses until one fits, and so learn one that is hidden.
    """
    told = "\0".join((kind, base_host, server_host, transport)).encode()
    return b64encode(blake2b(told, digest_size=6, key=secret).digest()).decode()
